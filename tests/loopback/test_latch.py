"""The latching relay on real sockets of loopback addresses, with ICE agents of two makes, and ``iceagent relay`` as a
process.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aioice
import pytest

from iceagent import Agent, Config, Description
from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.net.local import LocalHost
from iceagent.net.streams import raise_descriptor_limit
from relay.latch.channel import Channel, ChannelOptions, SideKey
from relay.latch.relay import LatchRelay
from relay.stun import USERNAME, XOR_MAPPED_ADDRESS, MessageClass, Method, build, parse, short_term_key
from tests.loopback.loops import PATIENCE_S, Inbox, LoopFactory, on_both_loops, run

HOST = "127.87.5.1"
SIZES = (0, 1, 100, 101, 1200, 1472, 9000, 65_507)
LEFT, RIGHT = (SideKey(username=each, password=each * 5) for each in ("left!", "right"))


class Client(Inbox):
    """A client of one side."""

    def __init__(self, to: TransportAddress, key: SideKey) -> None:
        super().__init__()
        self.to = to
        self.key = key
        self.trains: list[int] = []
        self.socket = LocalHost().socket(TransportAddress(to.host, 0), self, SocketOptions())

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        self.trains.append(len(datagrams))
        self.received += [(data, source) for data in datagrams]
        self.tell()

    async def latch(self) -> None:
        message = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, self.key.username))
        self.socket.send(message.encode(short_term_key(self.key.password)), self.to)
        (data,) = await self.take(1)
        answer = parse(data)
        assert answer.transaction_id == message.transaction_id
        assert answer.get(XOR_MAPPED_ADDRESS) == self.socket.address

    async def take(self, count: int) -> list[bytes]:
        """The next datagrams."""
        await self.until(lambda: len(self.received) >= count)
        found, self.received = self.received[:count], self.received[count:]
        assert {source for _, source in found} == {self.to}
        return [data for data, _ in found]


@asynccontextmanager
async def clients(channel: Channel, host: str) -> AsyncIterator[tuple[Client, Client]]:
    """Both, latched."""
    left, right = (
        Client(TransportAddress(host, side.port), key) for side, key in zip(channel.sides, (LEFT, RIGHT), strict=True)
    )
    for client in (left, right):
        await client.latch()
    yield left, right
    for client in (left, right):
        client.socket.close()


@on_both_loops
@pytest.mark.parametrize("host", [HOST, "::1"])
def test_every_size_passes_whole_and_trains_stay_trains(loop_factory: LoopFactory, host: str) -> None:
    async def main() -> None:
        async with LatchRelay(LocalHost(), backend="userspace", bind=[host]) as relay:
            channel = relay.open(options=ChannelOptions(left=LEFT, right=RIGHT))
            async with clients(channel, host) as (left, right):
                for size in SIZES:
                    data = os.urandom(size)
                    for sender, receiver in ((left, right), (right, left)):
                        assert sender.socket.send(data, sender.to) == 0
                        assert await receiver.take(1) == [data]
                datagrams = [bytes([number]) * 1200 for number in range(50)]
                assert left.socket.send_many(datagrams, left.to) == (50, 0)
                assert await right.take(50) == datagrams
                assert right.trains == [50]
            statistics = relay.statistics(channel)
            assert (statistics.left.packets, statistics.right.packets) == (50 + len(SIZES), len(SIZES))
            assert statistics.right.octets == sum(SIZES)

    run(loop_factory, main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@on_both_loops
def test_a_thousand_channels_come_and_go_and_leave_no_descriptor(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        raise_descriptor_limit()
        outside = descriptors()
        async with LatchRelay(LocalHost(), backend="userspace", bind=[HOST]) as relay:
            before = descriptors()
            options = ChannelOptions(left=LEFT, right=RIGHT)
            channels = [relay.open(options=options) for _ in range(1_000)]
            assert len({side.port for channel in channels for side in channel.sides}) == 2_000
            assert descriptors() == before + 2_000
            for channel in channels[:500]:
                relay.close_channel(channel)
            assert descriptors() == before + 1_000
            async with clients(channels[-1], HOST) as (left, right):
                left.socket.send(b"still there", left.to)
                assert await right.take(1) == [b"still there"]
        assert descriptors() == outside

    run(loop_factory, main())


# --- ICE agents ------------------------------------------------------------------------------------------------------


# Agents take what the interfaces have.
AGENTS = "127.0.0.1"


def ports(channel: Channel) -> tuple[TransportAddress, TransportAddress]:
    left, right = (TransportAddress(AGENTS, side.port) for side in channel.sides)
    return left, right


def described(to: TransportAddress, username: str, password: str) -> Description:
    """A peer whose only candidate is the relay's port."""
    lines = [f"a=ice-ufrag:{username}", f"a=ice-pwd:{password}", "a=end-of-candidates"]
    lines.insert(2, f"a=candidate:1 1 UDP 2130706431 {to.host} {to.port} typ host")
    return Description.parse("\n".join(lines))


async def test_an_ice_agent_latches_by_itself_of_either_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8445 agents that take the relay's port for their peer: ours on the left, aioice on the right."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: [AGENTS])
    keys = [SideKey(username=f"side{n}", password=f"{n}" * 22) for n in range(2)]
    async with LatchRelay(LocalHost(), backend="userspace", bind=[AGENTS]) as relay:
        channel = relay.open(options=ChannelOptions(left=keys[0], right=keys[1]))
        left, right = ports(channel)
        connection = aioice.Connection(ice_controlling=True)
        await connection.gather_candidates()
        connection.remote_username, connection.remote_password = keys[1].username, keys[1].password
        line = described(right, keys[1].username, keys[1].password).candidates[0].to_sdp()
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(line.removeprefix("candidate:")))
        await connection.add_remote_candidate(None)
        async with asyncio.timeout(PATIENCE_S):
            async with Agent(Config(loopback=True, bind_hosts=(AGENTS,)), controlling=True) as agent:
                agent.set_remote_description(described(left, keys[0].username, keys[0].password))
                await asyncio.gather(agent.connect(), connection.connect())
                agent.send(b"\x80 from ours")
                assert await connection.recv() == b"\x80 from ours"
                await connection.send(b"\x80 from aioice")
                assert await agent.recv() == b"\x80 from aioice"
        await connection.close()
        assert channel.left.moves == channel.right.moves == 0


async def test_two_ice_agents_check_each_other_through_a_channel() -> None:
    """Their checks are data: each finds the other behind its own side's port."""
    async with LatchRelay(LocalHost(), backend="userspace", bind=[AGENTS]) as relay:
        channel = relay.open(options=ChannelOptions(first_source=True))
        config = Config(loopback=True, bind_hosts=(AGENTS,))
        async with (
            asyncio.timeout(PATIENCE_S),
            Agent(config, controlling=True) as one,
            Agent(config, controlling=False) as other,
        ):
            for agent, peer, to in zip((one, other), (other, one), ports(channel), strict=True):
                credentials = peer.local_description.credentials
                agent.set_remote_description(described(to, credentials.ufrag, credentials.password))
            await asyncio.gather(one.connect(), other.connect())
            for sender, receiver in ((one, other), (other, one)):
                sender.send(b"\x80 through both ports")
                assert await receiver.recv() == b"\x80 through both ports"
        assert relay.statistics(channel).packets > 2


# --- the command -----------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for sock in socks:
        sock.bind((HOST, 0))
    found = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return found


@contextmanager
def relaying(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``iceagent relay`` in this process' stead of the kernel; it is ended at the latest when the block ends."""
    command = [sys.executable, "-m", "iceagent", "relay", "--backend", "userspace", "--bind", HOST, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=PATIENCE_S)
    event: dict[str, Any] = json.loads(line)
    return event


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    sock.settimeout(PATIENCE_S)
    return sock


def latch(sock: socket.socket, port: int, text: str) -> None:
    """By NAME:PASSWORD."""
    name, _, password = text.partition(":")
    request = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, name))
    sock.sendto(request.encode(short_term_key(password)), (HOST, port))
    assert parse(sock.recv(2048)).is_success


def test_the_command_tells_what_happens_in_json() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}", "--json", "--key", f"{right}=bob:{'b' * 22}") as process, udp() as a, udp() as b:
        ready = next_event(process)
        (channel,) = ready["channels"]
        assert ready["backend"] == "userspace" and ready["addresses"] == [HOST] and "reason" not in ready
        assert set(channel) == {"channel", "left", "right", "left_key"}
        latch(a, left, channel["left_key"])
        latch(b, right, f"bob:{'b' * 22}")
        told = [next_event(process) for _ in range(2)]
        assert [(each["side"], each["port"], each["address"], each["how"]) for each in told] == [
            (side, port, f"{HOST}:{sock.getsockname()[1]}", "key")
            for side, port, sock in (("left", left, a), ("right", right, b))
        ]
        a.sendto(b"hello", (HOST, left))
        assert b.recv(100) == b"hello"
        with udp() as again:
            latch(again, left, channel["left_key"])
            moved = next_event(process)
            assert moved["event"] == "side.moved"
            assert (moved["old"], moved["address"]) == tuple(f"{HOST}:{sock.getsockname()[1]}" for sock in (a, again))
        process.send_signal(signal.SIGTERM)
        closed, stopped = next_event(process), next_event(process)
        assert closed["event"] == "channel.closed"
        assert (closed["reason"], closed["left_packets"], closed["left_bytes"]) == ("closed", 1, 5)
        assert stopped["event"] == "relay.stopped"
        assert (stopped["packets"], stopped["bytes"], stopped["latches"], stopped["moves"]) == (1, 5, 2, 1)
        assert process.wait(PATIENCE_S) == 0


def test_a_channel_that_is_idle_waits_for_its_clients_anew() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}", "--json", "--idle", "1") as process, udp() as a:
        key = next_event(process)["channels"][0]["left_key"]
        for _ in range(2):
            latch(a, left, key)
            assert next_event(process)["event"] == "side.latched"
            idle = next_event(process)
            assert (idle["event"], idle["left"], idle["left_packets"]) == ("channel.idle", left, 0)


def test_the_command_ends_with_its_last_channel() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}", "--json", "--max-packets", "2") as process, udp() as a, udp() as b:
        (channel,) = next_event(process)["channels"]
        latch(a, left, channel["left_key"])
        latch(b, right, channel["right_key"])
        for _ in range(3):
            a.sendto(b"x", (HOST, left))
        told = [next_event(process) for _ in range(4)]
        assert [each["event"] for each in told[2:]] == ["channel.closed", "relay.stopped"]
        assert (told[2]["reason"], told[2]["left_packets"]) == ("packet cap", 2)
        assert process.wait(PATIENCE_S) == 0


def test_the_first_source_comes_with_a_warning_and_the_second_with_an_alarm() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}", "--json", "--first-source") as process, udp() as a, udp() as b:
        assert process.stderr is not None
        assert next_event(process)["channels"] == [{"channel": 1, "left": left, "right": right}]
        assert "--first-source: whoever finds a port first" in process.stderr.readline()
        a.sendto(b"first", (HOST, left))
        assert next_event(process)["how"] == "first source"
        for _ in range(5):
            b.sendto(b"second", (HOST, left))
        alarm = next_event(process)
        assert (alarm["event"], alarm["side"], alarm["datagrams"]) == ("side.alarm", "left", 1)
        assert alarm["address"] == f"{HOST}:{b.getsockname()[1]}"
        assert f"Somebody else, {alarm['address']}, sends to the left side of channel 1." in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert next_event(process)["event"] == "channel.closed"
        assert next_event(process)["alarms"] == 5
        assert process.wait(PATIENCE_S) == 130


def test_random_pairs_come_from_the_range_and_keys_from_a_file(tmp_path: Path) -> None:
    left, right = free_ports(2)
    keys = tmp_path / "keys"
    keys.write_text(f"# of the call\n\n{left}=alice:{'a' * 22}\n{right}=bob:{'b' * 22}\n")
    more = ["--channels", "3", "--port-range", "50000-50100"]
    with relaying(f"{left}:{right}", "--keys-file", str(keys), *more, "--json") as process, udp() as a:
        given, *drawn = next_event(process)["channels"]
        assert given == {"channel": 1, "left": left, "right": right}
        assert len({each[f"{side}_key"] for each in drawn for side in ("left", "right")}) == 6
        assert all(each[side] in range(50_000, 50_101) for each in drawn for side in ("left", "right"))
        latch(a, left, f"alice:{'a' * 22}")
        latch(a, drawn[2]["right"], drawn[2]["right_key"])


def test_the_command_speaks_plain_text_too() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}") as process:
        assert process.stdout is not None
        assert f"relay.ready backend=userspace addresses=[{HOST}]" in (line := process.stdout.readline()), line
        assert f"channel.opened channel=1 left={left} right={right} left_key=" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "relay.stopped packets=0 bytes=0" in process.stdout.read()


def test_a_terminal_shows_the_totals_live() -> None:
    left, right = free_ports(2)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "iceagent", "relay", "--backend", "userspace", f"{left}:{right}", "--bind", HOST]
    key = f"left:{'l' * 22}"
    with subprocess.Popen(
        [*command, "--key", f"{left}={key}"], stdout=follower, stderr=follower, env={**os.environ, "COLUMNS": "150"}
    ) as process:
        os.close(follower)
        seen = ""

        def read_until(text: str) -> None:
            nonlocal seen
            deadline = time.monotonic() + PATIENCE_S
            while text not in seen:
                assert select.select([leader], [], [], deadline - time.monotonic())[0], seen
                seen += os.read(leader, 65_536).decode()

        try:
            read_until("1 channels, 0 sides latched")
            with udp() as sock:
                latch(sock, left, key)
            read_until("1 channels, 1 sides latched")
            process.send_signal(signal.SIGINT)
            read_until("relay.stopped")
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
            os.close(leader)


def test_prometheus_is_told() -> None:
    left, right = free_ports(2)
    with relaying(f"{left}:{right}", "--json", "--metrics", f"{HOST}:0") as process, udp() as a:
        ready = next_event(process)
        latch(a, left, ready["channels"][0]["left_key"])
        deadline = time.monotonic() + PATIENCE_S
        page = ""
        while "iceagent_latch_latches_total 1.0" not in page:
            assert time.monotonic() < deadline, page
            time.sleep(0.1)
            page = urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=PATIENCE_S).read().decode()
        assert "iceagent_latch_packets_total 0.0" in page


def refused(*arguments: str) -> str:
    """A command line that must be refused: exit code 2, and one line."""
    command = [sys.executable, "-m", "iceagent", "relay", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout) == (2, ""), (result.stdout, result.stderr)
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use_is_wrong_usage_and_nothing_was_ready() -> None:
    with udp() as holder:
        port, (left,) = holder.getsockname()[1], free_ports(1)
        said = refused(f"{left}:{port}", "--bind", HOST, "--backend", "userspace", "--json")
        assert f"cannot listen on {HOST}:{port} (udp): the port is in use" in said


def test_too_many_channels_for_this_process_are_wrong_usage() -> None:
    words = (
        "ulimit -n 50; exec $0 -m iceagent relay --backend userspace --channels 40 --bind 127.0.0.1 --bind 127.0.0.2"
    )
    result = subprocess.run(
        ["sh", "-c", words, sys.executable], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "Too many open files; a channel takes 4, two for each address" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "a channel is needed, as in: iceagent relay 5000:5001; or --channels N"),
        (["5000"], "'5000' is no channel: two ports are expected, as in 5000:5001"),
        (["5000:"], "'5000:' is no channel"),
        (["x:y"], "'x:y' is no channel"),
        (["5000:65536"], "port 65536 is none"),
        (["0:5000"], "port 0 is none"),
        (["5000:5000"], "port 5000 is named twice"),
        (["5000:5001", "5001:5002"], "port 5001 is named twice"),
        (["9" * 5000 + ":1"], "9999…' is no channel"),
        (["5000:5001", "--key", "5000=secret"], "--key: PORT=NAME:PASSWORD is expected"),
        (["5000:5001", "--key", "9" * 5000 + "=a:secret"], "--key: PORT=NAME:PASSWORD is expected"),
        (["5000:5001", "--key", "5002=a:secret"], "--key 5002=…: no channel has this port"),
        (["5000:5001", "--key", "5000=:secret"], "--key: an empty string where a username"),
        (["5000:5001", "--key", "5000=a:"], "--key: an empty string where a username"),
        (["5000:5001", "--key", "5000=a:secret", "--key", "5000=b:secret"], "--key: port 5000 has a key already"),
        (["5000:5001", "--keys-file", "/nowhere"], "--keys-file: /nowhere cannot be read"),
        (["5000:5001", "--backend", "ebpf"], "'ebpf' is not one of 'auto', 'userspace', 'nftables'"),
        (["5000:5001", "--bind", "here"], "--bind here: an IPv4 or IPv6 address is expected"),
        (["5000:5001", "--bind", "192.0.2.99"], "no interface has the address 192.0.2.99"),
        (["5000:5001", "--interface", "eth77"], "there is no interface eth77; there are lo"),
        (["5000:5001", "--idle", "0"], "0 is not in the range"),
        (["5000:5001", "--max-bytes", "0"], "0 is not in the range"),
        (["--channels", "2", "--port-range", "50000-50002", "--bind", HOST], "no two ports are free in 50000-50002"),
        (["5000:5001", "--metrics", "127.0.0.1"], "--metrics '127.0.0.1': the port is missing"),
    ],
)
def test_wrong_usage_is_one_line_without_a_secret(arguments: list[str], complaint: str) -> None:
    said = refused(*arguments, "--backend", "userspace") if "--backend" not in arguments else refused(*arguments)
    assert complaint in said
    assert "secret" not in said
