"""A datagram protocol over an agent whose paths come and go."""

from __future__ import annotations

import asyncio
import errno

import pytest

from iceagent import AgentState, ConnectFailed, create_datagram_endpoint
from iceagent.events import SelectedPathChanged, StateChanged
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time


class Recorder(asyncio.DatagramProtocol):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.data: list[tuple[bytes, tuple[object, ...]]] = []
        self.errors: list[int | None] = []
        self.ends: list[Exception | None] = []

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        self.data.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        assert isinstance(exc, OSError)
        self.errors.append(exc.errno)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


@in_virtual_time
async def test_between_two_paths_sending_is_an_error_and_no_exception() -> None:
    """ENETUNREACH, as from a socket whose interface is down; and the peer's name stays the same."""
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
        diary = Diary(world, a)
        left, at_a = await create_datagram_endpoint(Recorder, agent=a)
        right, at_b = await create_datagram_endpoint(Recorder, agent=b)
        alias = left.get_extra_info("peername")
        right.sendto(b"1")
        await asyncio.sleep(1)
        host.remove_interface("eth0")
        await diary.until(StateChanged, lambda event: event.new is AgentState.DISCONNECTED)
        left.sendto(b"nowhere")
        assert at_a.errors == [errno.ENETUNREACH]
        host.add_interface("wlan0", ["203.0.113.1"])
        await diary.until(SelectedPathChanged, lambda event: event.new is not None)
        await asyncio.sleep(1)
        left.sendto(b"2")
        right.sendto(b"2")
        await asyncio.sleep(1)
        assert at_a.data == [(b"1", alias), (b"2", alias)]
        assert at_b.data == [(b"2", alias)]
        assert left.get_extra_info("peername") == alias
        assert at_a.ends == at_b.ends == [] and at_a.errors == [errno.ENETUNREACH]


@in_virtual_time
async def test_a_failed_agent_ends_the_protocol() -> None:
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
        diary = Diary(world, a)
        transport, protocol = await create_datagram_endpoint(Recorder, agent=a)
        peer.link().cut()
        await diary.until(StateChanged, lambda event: event.new is AgentState.FAILED)
        await asyncio.sleep(0.1)
        (error,) = protocol.ends
        assert isinstance(error, ConnectionError) and "consent expired" in str(error)
        assert transport.is_closing()
        transport.sendto(b"x")
        assert protocol.errors == []


@in_virtual_time
async def test_no_endpoint_without_a_path() -> None:
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    peer.link().cut()
    async with world.agent(host) as a, world.agent(peer, controlling=False) as b:
        await exchange(a, b)
        with pytest.raises(ConnectFailed, match="no response"):
            await create_datagram_endpoint(Recorder, agent=a)
