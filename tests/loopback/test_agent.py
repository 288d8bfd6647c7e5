"""The agent on real sockets: gathering, connecting, data, misuse and the end. Loopback only."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iceagent import (
    Agent,
    AgentClosed,
    AgentState,
    Candidate,
    ConnectFailed,
    Description,
    IceServer,
    NoPath,
    UsageError,
)
from iceagent.core.session import IceSession
from iceagent.events import (
    BaseFailed,
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    RemoteCandidateRefused,
    SelectedPathChanged,
    ServerFailed,
    StateChanged,
)
from iceagent.gather.bases import Base
from iceagent.net.address import TransportAddress
from iceagent.net.host import SocketOptions
from iceagent.net.local import local_host
from iceagent.net.sockets import UdpSocket
from tests.loopback.agents import config, connected, exchange
from tests.loopback.loops import LoopFactory, on_both_loops, run


class Blackhole:
    """A bound socket that answers nothing and sends no ICMP error."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.socket = local_host().socket(TransportAddress("127.0.0.1", 0), self, SocketOptions())

    def datagram_received(self, socket: object, data: bytes, source: tuple[str, int]) -> None:
        self.received.append(data)

    def error_received(self, socket: object, destination: object, errno: int) -> None:
        """Nothing is sent from here."""


@on_both_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_two_agents_connect_and_carry_datagrams_both_ways(loop_factory: LoopFactory, host: str) -> None:
    async def main() -> None:
        async with connected(config(hosts=(host,)), config(hosts=(host,))) as (a, b):
            a.send(b"from a")
            b.send(b"from b")
            assert await b.recv() == b"from a"
            assert await a.recv() == b"from b"
            path = a.path()
            assert path is not None and path.kind == "direct"
            assert path.local.address.host == path.remote.address.host == host

    run(loop_factory, main())


@on_both_loops
def test_every_first_byte_reaches_the_other_side_in_both_directions(loop_factory: LoopFactory) -> None:
    """RFC 7983, 7: only STUN is ours; a quarter of QUIC's datagrams begin like ChannelData."""

    async def main() -> None:
        async with connected() as (a, b):
            for first in range(256):
                for data in (bytes([first]), bytes([first]) + b"\x00\x00\x00" + os.urandom(40)):
                    a.send(data)
                    assert await b.recv() == data
                    b.send(data)
                    assert await a.recv() == data
            a.send(b"")
            assert await b.recv() == b""

    run(loop_factory, main())


async def test_a_data_handler_gets_what_has_been_waiting_and_what_comes() -> None:
    async with connected() as (a, b):
        a.send(b"1")
        assert await b.recv() == b"1"
        a.send(b"2")
        got: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        b.set_data_handler(lambda data, component: got.put_nowait((data, component)))
        a.send(b"3")
        assert [await got.get(), await got.get()] == [(b"2", 1), (b"3", 1)]
        with pytest.raises(UsageError, match="data handler"):
            await b.recv()
        b.set_data_handler(None)
        a.send(b"4")
        assert await b.recv() == b"4"


async def test_components_have_paths_of_their_own() -> None:
    two = config(components=2)
    async with connected(two, two) as (a, b):
        a.send(b"rtp", component=1)
        a.send(b"rtcp", component=2)
        assert await b.recv(component=2) == b"rtcp"
        assert await b.recv(component=1) == b"rtp"


async def test_candidates_may_come_before_the_description_and_one_by_one() -> None:
    async with Agent(config(), controlling=True) as a, Agent(config(), controlling=False) as b:
        await asyncio.gather(a.gather(), b.gather())
        for x, y in ((a, b), (b, a)):
            for candidate in x.local_candidates:
                y.add_remote_candidate(candidate.to_sdp())
            y.end_remote_candidates()
            y.set_remote_description(Description(credentials=x.local_description.credentials, options=("trickle",)))
        await asyncio.gather(a.connect(), b.connect())


async def test_connecting_first_and_hearing_of_the_peer_later() -> None:
    async with Agent(config(), controlling=True) as a, Agent(config(), controlling=False) as b:
        waiting = asyncio.gather(a.connect(), b.connect())
        await exchange(a, b)
        await waiting


async def test_events_tell_the_story_in_order() -> None:
    async with Agent(config(), controlling=True) as a, Agent(config(), controlling=False) as b:
        stream = a.events()
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        events: list[Event] = []
        while not (
            isinstance(events[-1:], list)
            and events
            and isinstance(events[-1], StateChanged)
            and events[-1].new is AgentState.CONNECTED
        ):
            events.append(await anext(stream))
        kinds = [type(event).__name__ for event in events]
        assert kinds == [
            "LocalCandidateFound",
            "GatheringDone",
            "StateChanged",
            "RemoteCandidateAdded",
            "SelectedPathChanged",
            "StateChanged",
        ]


async def test_report_20_a_dead_stun_server_adds_nothing_to_connecting() -> None:
    """janus#2982, aioice#4: host candidates are out at once, and the agents connect while the server is still being
    asked.
    """
    server = Blackhole()
    dead = (IceServer(urls=(f"stun:{server.socket.address}",)),)
    async with (
        Agent(config(servers=dead, gather_timeout_s=60), controlling=True) as a,
        Agent(config(servers=dead, gather_timeout_s=60), controlling=False) as b,
    ):
        streams = (a.events(), b.events())
        for agent, stream in zip((a, b), streams, strict=True):
            agent.start_gathering()
            assert isinstance(await anext(stream), LocalCandidateFound)
        a.set_remote_description(b.local_description)
        b.set_remote_description(a.local_description)
        await asyncio.gather(a.connect(), b.connect())
        assert not a.local_description.complete
        assert server.received
    server.socket.close()


async def test_a_stun_server_that_refuses_fails_fast() -> None:
    """An ICMP error ends a server's transaction at once: gathering is done long before its time is up."""
    gone = Blackhole()
    address = gone.socket.address
    gone.socket.close()
    servers = (IceServer(urls=(f"stun:{address}",)),)
    async with Agent(config(servers=servers, gather_timeout_s=3600), controlling=True) as agent:
        stream = agent.events()
        await agent.gather()
        kinds = [await anext(stream) for _ in range(3)]
        assert isinstance(kinds[0], LocalCandidateFound)
        assert isinstance(kinds[1], ServerFailed) and "Connection refused" in kinds[1].reason
        assert isinstance(kinds[2], GatheringDone) and kinds[2].count == 1


async def test_a_restart_finds_a_new_path_while_the_old_one_carries_data() -> None:
    """RFC 8445, 9; the peer answers with new credentials of its own, once."""
    async with connected() as (a, b):
        stream = b.events()
        before = a.local_description.credentials, b.local_description.credentials
        offer = a.restart()
        a.send(b"on the old path")
        assert await b.recv() == b"on the old path"
        b.set_remote_description(offer)
        answer = b.local_description
        a.set_remote_description(answer)
        assert (offer.credentials, answer.credentials) != before
        async for event in stream:
            if isinstance(event, SelectedPathChanged):
                break
            if isinstance(event, IceRestarted):
                assert event.by_peer
        b.send(b"on the new one")
        assert await a.recv() == b"on the new one"


async def test_refused_candidates_say_why() -> None:
    async with Agent(config(), controlling=True) as a, Agent(config(), controlling=False) as b:
        await exchange(a, b)
        stream = a.events()
        for line, reason in {
            "candidate:1 1 udp 1 0.0.0.0 9 typ host": "unspecified",
            "candidate:1 1 udp 1 224.0.0.1 9 typ host": "multicast",
            "candidate:1 1 udp 1 255.255.255.255 9 typ host": "broadcast",
            "candidate:1 1 udp 1 192.0.2.1 0 typ host": "port is 0",
            "candidate:1 1 tcp 1 192.0.2.1 9 typ host tcptype active": "TCP",
            "candidate:1 2 udp 1 192.0.2.1 9 typ host": "component 2",
            "candidate:1 1 udp 1 name.example 9 typ host": "not resolved",
            f"candidate:1 1 udp 1 127.0.0.1 {a.local_candidates[0].address.port} typ host": "own sockets",
        }.items():
            a.add_remote_candidate(line)
            event = await anext(stream)
            while not isinstance(event, RemoteCandidateRefused):
                event = await anext(stream)
            assert reason in event.reason


class TestMisuse:
    async def test_sending_before_there_is_a_path(self) -> None:
        async with Agent(config(), controlling=True) as agent:
            with pytest.raises(NoPath, match="component 1 has no path in the state new"):
                agent.send(b"x")

    async def test_two_receivers_at_once(self) -> None:
        async with connected() as (a, _):
            first = asyncio.ensure_future(a.recv())
            await asyncio.sleep(0)
            with pytest.raises(UsageError, match="two recv"):
                await a.recv()
            first.cancel()

    async def test_a_component_that_is_not_there(self) -> None:
        async with connected() as (a, _):
            with pytest.raises(UsageError, match="component 2 of an agent with 1"):
                await a.recv(component=2)
            with pytest.raises(NoPath):
                a.send(b"x", component=2)

    async def test_a_datagram_that_is_too_long(self) -> None:
        async with connected() as (a, b):
            with pytest.raises(UsageError, match="at most 65507"):
                a.send(bytes(65_508))
            a.send(bytes(65_507))
            assert len(await b.recv()) == 65_507

    async def test_everything_after_closing(self) -> None:
        agent = Agent(config(), controlling=True)
        await agent.aclose()
        await agent.aclose()
        for call in (
            agent.start_gathering,
            agent.restart,
            agent.end_remote_candidates,
            lambda: agent.send(b"x"),
            lambda: agent.add_remote_candidate("candidate:1 1 udp 1 192.0.2.1 9 typ host"),
        ):
            with pytest.raises(AgentClosed):
                call()
        with pytest.raises(AgentClosed):
            await agent.recv()
        assert [event async for event in agent.events()] == []

    async def test_a_wrong_server(self) -> None:
        with pytest.raises(UsageError, match="stun:"):
            Agent(config(servers=(IceServer(urls=("http://x",)),)), controlling=True)


class TestCancelling:
    async def test_connect_gather_and_recv_leave_the_agent_usable(self) -> None:
        async with Agent(config(), controlling=True) as a, Agent(config(), controlling=False) as b:
            for waiting in (a.gather(), a.connect(), a.recv()):
                task = asyncio.ensure_future(waiting)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await exchange(a, b)
            await asyncio.gather(a.connect(), b.connect())
            receiving = asyncio.ensure_future(b.recv())
            await asyncio.sleep(0)
            receiving.cancel()
            a.send(b"not lost")
            assert await b.recv() == b"not lost"


class TestClosing:
    async def test_it_ends_whoever_waits(self) -> None:
        async with Agent(config(), controlling=True) as agent:
            waiting = [asyncio.ensure_future(agent.connect()), asyncio.ensure_future(agent.recv())]
            await asyncio.sleep(0)
            await agent.aclose()
            for task in waiting:
                with pytest.raises(AgentClosed):
                    await task

    async def test_report_11_it_returns_although_nobody_answers(self) -> None:
        """pion 9651b02. Counted in turns of the loop, not in time."""
        server = Blackhole()
        silent = config(servers=(IceServer(urls=(f"stun:{server.socket.address}",)),))
        agent = Agent(silent, controlling=True)
        agent.start_gathering()
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(agent.aclose())
        for _ in range(10):
            await asyncio.sleep(0)
        assert closing.done()
        server.socket.close()

    async def test_report_10_a_thousand_agents_leave_nothing_behind(self) -> None:
        """pion 427ac0f: leaks on close while gathering; here also after connecting."""
        # The first half fills what is bounded.
        for _ in range(170):
            await self.live_once()
        gc.collect()
        files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        for _ in range(170):
            await self.live_once()
        gc.collect()
        async with asyncio.timeout(10):
            # A reading of the interfaces that nobody waits for any more ends in its thread, with its socket.
            while len(os.listdir("/proc/self/fd")) > files:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == tasks
        assert len(os.listdir("/proc/self/fd")) == files
        assert [thing for thing in gc.get_objects() if isinstance(thing, (Agent, IceSession, Base, UdpSocket))] == []

    def test_report_10_a_thousand_agents_leave_no_memory_behind(self) -> None:
        """In a process of its own: what other tests have left in this one comes and goes."""
        program = "import asyncio; from tests.loopback.test_agent import TestClosing as T; asyncio.run(T.live_often())"
        command = [sys.executable, "-c", program]
        root = Path(__file__).parents[2]
        process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50, cwd=root)
        # 1,500 agents of 15 KiB and more would be over 22 MiB.
        assert int(process.stdout) < 4 * 2**20

    @classmethod
    async def live_often(cls) -> None:
        """Print by how much 1,500 agents have made this process greater, after as many."""
        for _ in range(500):
            await cls.live_once()
        gc.collect()
        before = cls.memory()
        for _ in range(500):
            await cls.live_once()
        gc.collect()
        print(cls.memory() - before)

    @staticmethod
    async def live_once() -> None:
        async with Agent(config(), controlling=True) as unfinished:
            unfinished.start_gathering()
            async with connected() as (a, b):
                a.send(b"x")
                await b.recv()

    @staticmethod
    def memory() -> int:
        """Resident bytes."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class TestGathering:
    async def test_report_9_a_port_range_that_is_full_fails_once(self) -> None:
        """pion#896: each address that fails, fails once, with the range in its reason."""
        taken = Blackhole()
        port = taken.socket.address.port
        async with Agent(config(port_range=(port, port)), controlling=True) as agent:
            stream = agent.events()
            description = await agent.gather()
            assert description.candidates == ()
            failed = await anext(stream)
            assert isinstance(failed, BaseFailed) and f"every port from {port} to {port}" in failed.reason
            assert isinstance(await anext(stream), GatheringDone)
        taken.socket.close()

    async def test_ports_stay_in_the_range(self) -> None:
        async with (
            Agent(config(port_range=(41000, 41009)), controlling=True) as a,
            Agent(config(port_range=(41000, 41009)), controlling=True) as b,
        ):
            await asyncio.gather(a.gather(), b.gather())
            ports = {a.local_candidates[0].address.port, b.local_candidates[0].address.port}
            assert len(ports) == 2 and all(41000 <= port <= 41009 for port in ports)

    async def test_filters_and_external_addresses(self) -> None:
        options = config(hosts=("127.0.0.1", "::1"), external_addresses={"198.51.100.7": "127.0.0.1"})
        async with Agent(options, controlling=True) as agent:
            lines = [candidate.to_sdp() for candidate in (await agent.gather()).candidates]
            port = agent.local_candidates[0].address.port
            assert any(
                f"198.51.100.7 {p} typ srflx raddr 127.0.0.1 rport {p}" in line
                for line in lines
                for p in (port, agent.local_candidates[1].address.port)
            )
        async with Agent(config(address_filter=lambda ip: ip.version == 6), controlling=True) as agent:
            assert (await agent.gather()).candidates == ()

    async def test_without_loopback_no_loopback_address_is_gathered(self) -> None:
        """RFC 8445, 5.1.1.1: addresses from a loopback interface MUST NOT be included."""
        only_loopback = config(interface_filter=lambda interface: interface.name == "lo")
        async with Agent(only_loopback, controlling=True) as agent:
            assert len((await agent.gather()).candidates) == 1
        from iceagent import Config

        filtered = Config(interface_filter=lambda interface: interface.name == "lo")
        async with Agent(filtered, controlling=True) as agent:
            assert (await agent.gather()).candidates == ()

    async def test_mdns_hides_addresses(self) -> None:
        """draft-ietf-mmusic-mdns-ice-candidates: a name in place of the address, related addresses hidden."""
        options = config(mdns=True, external_addresses={"198.51.100.7": None, "198.51.100.8": "127.0.0.1"})
        async with Agent(options, controlling=True) as agent:
            host, reflexive = (await agent.gather()).candidates
            assert host.address.host.endswith(".local")
            assert reflexive.related_address == ("0.0.0.0", 9)
            assert "127.0.0.1" not in agent.local_description.to_sdp()


async def test_failing_says_why() -> None:
    """No candidate at all, and the PAC timer is over (RFC 8863)."""
    impatient = config(pac_timeout_s=0.05)
    async with Agent(impatient, controlling=True) as a, Agent(config(), controlling=False) as b:
        await a.gather()
        a.set_remote_description(Description(credentials=b.local_description.credentials, complete=True))
        with pytest.raises(ConnectFailed, match="no pair was formed"):
            await a.connect()
        with pytest.raises(ConnectFailed):
            await a.recv()


async def test_statistics_count_what_went_over_the_path() -> None:
    async with connected() as (a, b):
        for size in (10, 20, 30):
            a.send(bytes([9]) * size)
            await b.recv()
        sent = next(pair for pair in a.pairs() if pair.selected)
        received = next(pair for pair in b.pairs() if pair.selected)
        assert (sent.packets_sent, sent.bytes_sent) == (3, 60)
        assert (received.packets_received, received.bytes_received) == (3, 60)
        assert sent.rtt_ms is not None and 0 < sent.rtt_ms < 1000
        assert (a.statistics().packets_sent, b.statistics().bytes_received) == (3, 60)
        assert str(sent).startswith("*")


def test_a_candidate_line_survives_the_agent() -> None:
    line = "candidate:1 1 udp 2130706431 192.0.2.1 9 typ host generation 0 network-cost 50"
    assert Candidate.parse(line).to_sdp() == line
