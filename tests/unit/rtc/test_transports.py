"""In the style of ORTC: DTLS and SCTP on a gatherer and a transport of ours, and what a hostile peer does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiortc import (
    RTCCertificate,
    RTCDataChannel,
    RTCDataChannelParameters,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCIceParameters,
    RTCIceTransport,
    RTCSctpTransport,
)
from aiortc.exceptions import InvalidStateError

from iceagent import AgentClosed, Candidate, InvalidCandidate, InvalidDescription
from iceagent.rtc import IceGatherer, IceTransport
from iceagent.rtc.candidates import to_aiortc
from iceagent.rtc.connection import AgentConnection
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.kit import until

PASSWORD = "p" * 22


class End:
    """One end: a gatherer, and an ICE transport on it."""

    def __init__(self, world: World, name: str, host: str, *, stock: bool = False) -> None:
        self.machine = world.host(name, host)
        self.gatherer = IceGatherer(host=self.machine)
        self.ice: RTCIceTransport = RTCIceTransport(self.gatherer) if stock else IceTransport(self.gatherer)
        self.dtls = RTCDtlsTransport(self.ice, [RTCCertificate.generateCertificate()])
        self.sctp = RTCSctpTransport(self.dtls)

    @property
    def connection(self) -> AgentConnection:
        return self.gatherer.connection

    async def start_ice(self, other: End, *, controlling: bool) -> None:
        self.ice._connection.ice_controlling = controlling
        for candidate in other.gatherer.getLocalCandidates():
            await self.ice.addRemoteCandidate(candidate)
        await self.ice.addRemoteCandidate(None)
        await self.ice.start(other.gatherer.getLocalParameters())

    async def start_rest(self, other: End) -> None:
        await self.dtls.start(other.dtls.getLocalParameters())
        await self.sctp.start(other.sctp.getCapabilities(), other.sctp.port)

    async def completed(self) -> None:
        """Until its pair is nominated."""
        await until(self.ice, "statechange", lambda: self.ice.state == "completed")

    async def stop(self) -> None:
        await self.sctp.stop()
        await self.dtls.stop()
        await self.ice.stop()


@dataclass
class Ends:
    world: World
    a: End
    b: End


@asynccontextmanager
async def two(*, stock: bool = False, ice: bool = True) -> AsyncIterator[Ends]:
    """Two ends; with ``ice``, both have a path."""
    world = World()
    a, b = End(world, "a", "20.0.0.1"), End(world, "b", "20.0.0.2", stock=stock)
    try:
        await asyncio.gather(a.gatherer.gather(), b.gatherer.gather())
        if ice:
            await asyncio.gather(a.start_ice(b, controlling=True), b.start_ice(a, controlling=False))
        yield Ends(world, a, b)
    finally:
        await asyncio.gather(a.stop(), b.stop())


@pytest.mark.parametrize("stock", [False, True], ids=["our transport", "aiortc's transport"])
@in_virtual_time
async def test_a_channel_on_transports_of_ones_own(stock: bool) -> None:
    async with two(stock=stock) as ends:
        a, b = ends.a, ends.b
        await a.completed()
        await b.completed()
        assert (a.ice.role, b.ice.role) == ("controlling", "controlled")
        heard: asyncio.Queue[str] = asyncio.Queue()
        b.sctp.on("datachannel", lambda channel: channel.on("message", heard.put_nowait))
        await asyncio.gather(a.start_rest(b), b.start_rest(a))
        channel = RTCDataChannel(a.sctp, RTCDataChannelParameters(label="x"))
        await until(channel, "open", lambda: channel.readyState == "open")
        for number in range(20):
            channel.send(str(number))
        assert [await asyncio.wait_for(heard.get(), 10) for _ in range(20)] == [str(number) for number in range(20)]
    assert (a.ice.state, b.ice.state) == ("closed", "closed")
    assert not a.machine._sockets and not b.machine._sockets


@in_virtual_time
async def test_aiortcs_transport_fails_when_the_peer_vanishes() -> None:
    """It knows nothing between ``completed`` and ``failed``."""
    async with two(stock=True) as ends:
        states: list[str] = []
        ends.b.ice.on("statechange", lambda: states.append(ends.b.ice.state))
        ends.a.machine.link().cut()
        await until(ends.b.ice, "statechange", lambda: ends.b.ice.state == "failed", 90.0)
        assert states == ["failed"]


@in_virtual_time
async def test_a_gatherer_tells_its_states_and_candidates() -> None:
    world = World()
    gatherer = IceGatherer(host=world.host("a", "20.0.0.1"), local_username="mine", local_password=PASSWORD)
    transport = IceTransport(gatherer)
    states: list[str] = []
    found: list[Candidate] = []
    gatherer.on("statechange", lambda: states.append(gatherer.state))
    gatherer.on("candidate", found.append)
    assert gatherer.state == "new"
    gatherer.start()
    gatherer.start()
    await asyncio.gather(gatherer.gather(), gatherer.gather())
    await gatherer.gather()
    assert (gatherer.state, states) == ("completed", ["gathering", "completed"])
    await asyncio.sleep(1.0)
    assert [candidate.address.host for candidate in found] == ["20.0.0.1"]
    (candidate,) = gatherer.getLocalCandidates()
    assert (candidate.ip, candidate.type) == ("20.0.0.1", "host")
    assert gatherer.getLocalParameters() == RTCIceParameters(usernameFragment="mine", password=PASSWORD)
    await transport.stop()
    await transport.stop()
    assert transport.state == "closed"


@in_virtual_time
async def test_a_transport_is_started_once() -> None:
    async with two(ice=False) as ends:
        parameters = ends.a.gatherer.getLocalParameters()
        starts = [asyncio.ensure_future(ends.b.ice.start(parameters)) for _ in range(3)]
        await ends.b.ice.addRemoteCandidate(ends.a.gatherer.getLocalCandidates()[0])
        await ends.a.start_ice(ends.b, controlling=True)
        await asyncio.gather(*starts)
        assert ends.b.ice.state in ("connected", "completed")
        await ends.b.ice.stop()
        with pytest.raises(InvalidStateError):
            await ends.b.ice.start(parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        RTCIceParameters(),
        RTCIceParameters(usernameFragment="abcd"),
        RTCIceParameters(password=PASSWORD),
        RTCIceParameters(usernameFragment="a", password=PASSWORD),
        RTCIceParameters(usernameFragment="abcd", password="short"),
        RTCIceParameters(usernameFragment="ab d", password=PASSWORD),
    ],
)
@in_virtual_time
async def test_parameters_that_are_none_are_refused_and_may_come_again(parameters: RTCIceParameters) -> None:
    async with two(ice=False) as ends:
        with pytest.raises((InvalidDescription, ConnectionError)):
            await ends.b.ice.start(parameters)
        assert ends.b.ice.state == "new"
        await asyncio.gather(ends.a.start_ice(ends.b, controlling=True), ends.b.start_ice(ends.a, controlling=False))
        await ends.b.completed()


@in_virtual_time
async def test_stopping_ends_all_waiting() -> None:
    async with two(ice=False) as ends:
        waiting = [
            asyncio.ensure_future(ends.b.ice.start(RTCIceParameters(usernameFragment="abcd", password=PASSWORD))),
            asyncio.ensure_future(ends.b.connection.recv()),
            asyncio.ensure_future(ends.b.connection.get_event()),
        ]
        await asyncio.sleep(1.0)
        assert not any(each.done() for each in waiting)
        await ends.b.ice.stop()
        started, received, event = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1.0)
        assert started is None or isinstance(started, ConnectionError)
        assert isinstance(received, ConnectionError)
        assert type(event).__name__ == "ConnectionClosed"
        with pytest.raises(ConnectionError):
            await ends.b.connection.send(b"x")
        with pytest.raises((ConnectionError, AgentClosed)):
            await ends.b.connection.gather_candidates()


@in_virtual_time
async def test_a_cancelled_receiver_loses_nothing() -> None:
    async with two() as ends:
        receiving = asyncio.ensure_future(ends.b.connection.recv())
        await asyncio.sleep(0.1)
        await ends.a.connection.send(b"\x80first")
        receiving.cancel()
        await asyncio.sleep(0.5)
        assert receiving.cancelled()
        assert await asyncio.wait_for(ends.b.connection.recv(), 1.0) == b"\x80first"


@in_virtual_time
async def test_what_is_sent_without_a_path_is_counted() -> None:
    async with two(ice=False) as ends:
        for _ in range(3):
            await ends.a.connection.send(b"\x80")
        assert ends.a.connection.counters == {"datagrams without a path": 3}


@in_virtual_time
async def test_a_lite_peer() -> None:
    """It only answers (RFC 8445, 2.5): ours checks and nominates."""
    world = World()
    ours = End(world, "a", "20.0.0.1")
    peer = world.agent(world.host("b", "20.0.0.2"), controlling=False, lite=True)
    async with peer:
        theirs, _ = await asyncio.gather(peer.gather(), ours.gatherer.gather())
        mine = ours.gatherer.getLocalParameters()
        assert mine.usernameFragment is not None and mine.password is not None
        peer.set_remote_description(ours.gatherer.agent.local_description)
        ours.ice._connection.ice_controlling = True
        for each in theirs.candidates:
            await ours.ice.addRemoteCandidate(to_aiortc(each, "0", 0))
        parameters = RTCIceParameters(theirs.credentials.ufrag, theirs.credentials.password, iceLite=True)
        await asyncio.gather(ours.ice.start(parameters), peer.connect())
        await ours.completed()
        await ours.connection.send(b"\x80 to the lite one")
        assert await peer.recv() == b"\x80 to the lite one"
        peer.send(b"\x80 and back")
        assert await ours.connection.recv() == b"\x80 and back"
    await ours.stop()


# --- hostile -----------------------------------------------------------------------------------------------------


async def flood(ends: Ends, count: int, size: int) -> None:
    """So many datagrams from A, faster than a reader comes to turn."""
    for number in range(count):
        ends.a.gatherer.agent.send(b"\x80" + number.to_bytes(4, "big").ljust(size - 1, b"x"))
        if number % 100 == 99:
            await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)


@pytest.mark.parametrize(("size", "least", "most_bytes"), [(100, 5_000, 10**6), (1_400, 2_000, 5 * 10**6)])
@in_virtual_time
async def test_ten_thousand_datagrams_that_nobody_reads(size: int, least: int, most_bytes: int) -> None:
    """A peer whose DTLS failed goes on sending: memory is bounded by number and by bytes, the first ones are kept, and
    what does not fit is counted.
    """
    async with two() as ends:
        await flood(ends, 10_000, size)
        b = ends.b.connection
        kept = list(b._waiting)
        assert least <= len(kept) < 10_000
        assert sum(map(len, kept)) <= most_bytes
        assert len(kept) + b.counters["datagrams nobody took"] == 10_000
        for number in range(len(kept)):
            data = await asyncio.wait_for(b.recv(), 1.0)
            assert int.from_bytes(data[1:5], "big") == number
        # And then it goes on.
        await ends.a.connection.send(b"\x80 again")
        assert await asyncio.wait_for(b.recv(), 1.0) == b"\x80 again"
        await flood(ends, 100, size)
        assert len(b._waiting) == 100


@in_virtual_time
async def test_empty_datagrams_are_dropped() -> None:
    """Aiortc reads the first byte of whatever comes."""
    async with two() as ends:
        await asyncio.gather(ends.a.start_rest(ends.b), ends.b.start_rest(ends.a))
        for data in (b"", b"\x00", b"\x80", b"\x14", b"\xff" * 1200, b"\x16\xfe\xfd", b""):
            ends.a.gatherer.agent.send(data)
        await asyncio.sleep(1.0)
        assert (ends.a.dtls.state, ends.b.dtls.state) == ("connected", "connected")
        heard: asyncio.Queue[str] = asyncio.Queue()
        ends.b.sctp.on("datachannel", lambda channel: channel.on("message", heard.put_nowait))
        channel = RTCDataChannel(ends.a.sctp, RTCDataChannelParameters(label="x"))
        await until(channel, "open", lambda: channel.readyState == "open")
        channel.send("still here")
        assert await asyncio.wait_for(heard.get(), 10.0) == "still here"


def candidate(number: int) -> RTCIceCandidate:
    return RTCIceCandidate(
        component=1,
        foundation=str(number),
        ip=f"20.1.{number // 250}.{number % 250}",
        port=9,
        priority=1 + number,
        protocol="udp",
        type="host",
    )


@pytest.mark.parametrize("when", ["before", "after"])
@in_virtual_time
async def test_five_thousand_candidates(when: str) -> None:
    """Of a peer that means us to keep and to check them all: what is kept is bounded, and the right one works."""
    async with two(ice=False) as ends:
        right = ends.a.gatherer.getLocalCandidates()[0]
        await ends.b.ice.addRemoteCandidate(right)
        if when == "before":
            for number in range(5_000):
                await ends.b.ice.addRemoteCandidate(candidate(number))
        starting = asyncio.ensure_future(ends.b.start_ice(ends.a, controlling=False))
        await asyncio.sleep(0)
        if when == "after":
            for number in range(5_000):
                await ends.b.ice.addRemoteCandidate(candidate(number))
        await ends.a.start_ice(ends.b, controlling=True)
        await asyncio.wait_for(starting, 20.0)
        assert len(ends.b.ice.getRemoteCandidates()) <= 1_001
        assert len(ends.b.gatherer.agent.pairs()) <= 100
        with pytest.raises(InvalidCandidate):
            await ends.b.ice.addRemoteCandidate(RTCIceCandidate(1, "!", "20.0.0.1", 9, 1, "udp", "host"))
