"""The latching relay on machines in memory, in virtual time: sockets, port pairs, caps, and addresses that change."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.testing import MemoryHost
from relay.backend import KernelUnavailable
from relay.latch.channel import Channel, ChannelClosed, ChannelOptions, SideKey, SideLatched
from relay.latch.relay import LatchRelay, random_key
from relay.stun import USERNAME, XOR_MAPPED_ADDRESS, MessageClass, Method, build, parse, short_term_key
from tests.shell.world import World, in_virtual_time

RELAY = "20.0.1.1"
LEFT, RIGHT = 5000, 5001


class Client:
    """One end of a call."""

    def __init__(self, host: MemoryHost, address: str, key: SideKey | None, to: TransportAddress) -> None:
        self.received: list[bytes] = []
        self.sources: set[tuple[str, int]] = set()
        self.mapped: TransportAddress | None = None
        self._host = host
        self._address = address
        self._key = key
        self.to = to
        self._socket = self._open()

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.sources.add(source)
        if data[:2] == b"\x01\x01":
            self.mapped = parse(data).get(XOR_MAPPED_ADDRESS)
        else:
            self.received.append(data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """None is expected."""

    async def latch(self) -> None:
        """Ask, and hear the answer."""
        assert self._key is not None
        request = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, self._key.username))
        await self.send(request.encode(short_term_key(self._key.password)))

    async def send(self, *datagrams: bytes) -> None:
        """And wait until they have arrived."""
        for data in datagrams:
            self._socket.send(data, self.to)
        await asyncio.sleep(1)

    def rebind(self) -> None:
        """Another port, as a NAT that has forgotten us would give."""
        self._socket.close()
        self._socket = self._open()

    def _open(self) -> DatagramSocket:
        return self._host.socket(TransportAddress(self._address, 0), self, SocketOptions())


class Call:
    """A relay, two clients and a stranger.

    Attributes:
        events: that the relay told.
    """

    def __init__(self, world: World, addresses: tuple[str, ...] = (RELAY,)) -> None:
        self.events: list[Event] = []
        self.host = world.host("relay", addresses)
        self._machines = {
            name: (world.host(name, address), address)
            for name, address in (("alice", "20.0.2.1"), ("bob", "20.0.3.1"), ("mallory", "20.0.4.1"))
        }

    def relay(self, **options: Any) -> LatchRelay:
        return LatchRelay(self.host, on_event=self.events.append, **options)

    def clients(self, channel: Channel, host: str = RELAY) -> tuple[Client, Client, Client]:
        """Alice on the left, Bob on the right, and Mallory, who has no key."""
        left, right = (TransportAddress(host, side.port) for side in channel.sides)
        keys = (channel.options.left, channel.options.right, None)
        ways = (left, right, left)
        machines = zip(self._machines.values(), keys, ways, strict=True)
        alice, bob, mallory = (Client(machine, address, key, to) for (machine, address), key, to in machines)
        return alice, bob, mallory

    def closed(self) -> list[str]:
        """Why channels have ended."""
        return [event.reason for event in self.events if isinstance(event, ChannelClosed)]


@in_virtual_time
async def test_a_call_passes_both_ways_and_nobody_else_hears_or_says_anything() -> None:
    call = Call(World())
    async with call.relay() as relay:
        channel = relay.open(LEFT, RIGHT)
        alice, bob, mallory = call.clients(channel)
        await mallory.send(*[b"before"] * 50)
        await alice.latch()
        await alice.send(b"nobody is there")
        await bob.latch()
        await alice.send(b"one", b"", b"two")
        await bob.send(b"three")
        mallory.to = TransportAddress(RELAY, RIGHT)
        await mallory.send(*[b"during"] * 50)
        assert bob.received == [b"one", b"", b"two"]
        assert alice.received == [b"three"]
        assert mallory.received == []
        assert (alice.sources, bob.sources) == ({(RELAY, LEFT)}, {(RELAY, RIGHT)})
        assert alice.mapped is not None
        statistics = relay.statistics(channel)
        assert (statistics.packets, statistics.octets) == (4, 11)
        assert (statistics.left.dropped, statistics.right.dropped) == (51, 50)


@in_virtual_time
async def test_a_client_that_was_rebound_goes_on_after_one_request() -> None:
    call = Call(World())
    async with call.relay() as relay:
        channel = relay.open(LEFT, RIGHT)
        alice, bob, _ = call.clients(channel)
        await alice.latch()
        await bob.latch()
        alice.rebind()
        await alice.send(b"lost")
        await alice.latch()
        await alice.send(b"found")
        await bob.send(b"back")
        assert bob.received == [b"found"]
        assert alice.received == [b"back"]


@in_virtual_time
async def test_a_channel_that_is_idle_ends_and_its_ports_are_free() -> None:
    call = Call(World())
    async with call.relay() as relay:
        options = ChannelOptions(left=random_key(), right=random_key(), idle_s=30)
        channel = relay.open(LEFT, RIGHT, options=options)
        await asyncio.sleep(32)
        assert call.closed() == ["idle"]
        assert relay.channels == ()
        assert not channel.is_open
        again = relay.open(LEFT, RIGHT, options=options)
        alice, _, _ = call.clients(again)
        await alice.latch()
        assert alice.mapped is not None
    assert call.closed() == ["idle", "closed"]


@pytest.mark.parametrize(
    ("limits", "sent", "arrives", "reason"),
    [
        ({"max_packets": 3}, [b"a", b"b", b"c", b"d"], [b"a", b"b", b"c"], "packet cap"),
        ({"max_bytes": 10}, [b"four", b"four", b"four", b"x"], [b"four", b"four"], "byte cap"),
        ({"max_bytes": 8}, [b"four", b"four"], [b"four", b"four"], "byte cap"),
    ],
)
@in_virtual_time
async def test_a_cap_is_exact(limits: dict[str, Any], sent: list[bytes], arrives: list[bytes], reason: str) -> None:
    call = Call(World())
    async with call.relay() as relay:
        options = ChannelOptions(left=random_key(), right=random_key(), **limits)
        channel = relay.open(LEFT, RIGHT, options=options)
        alice, bob, _ = call.clients(channel)
        await alice.latch()
        await bob.latch()
        await alice.send(*sent)
        assert bob.received == arrives
        assert call.closed() == [reason]


@in_virtual_time
async def test_the_first_source_is_taken_where_that_was_asked_for() -> None:
    call = Call(World())
    async with call.relay() as relay:
        channel = relay.open(LEFT, RIGHT, options=ChannelOptions(first_source=True))
        alice, bob, _ = call.clients(channel)
        await bob.send(b"here I am")
        await alice.send(b"hello")
        assert bob.received == [b"hello"]
        assert [event.how for event in call.events if isinstance(event, SideLatched)] == ["first source"] * 2


@in_virtual_time
async def test_every_address_of_the_host_relays_and_answers_from_itself() -> None:
    call = Call(World(), (RELAY, "20.0.1.2"))
    async with call.relay() as relay:
        channel = relay.open(LEFT, RIGHT)
        alice, _, _ = call.clients(channel, "20.0.1.2")
        _, bob, _ = call.clients(channel)
        await alice.latch()
        await bob.latch()
        await alice.send(b"hello")
        await bob.send(b"back")
        assert (alice.received, bob.received) == ([b"back"], [b"hello"])
        assert alice.sources == {("20.0.1.2", LEFT)}
    async with call.relay(bind=["20.0.1.2"]) as relay:
        assert relay.hosts == ("20.0.1.2",)


@in_virtual_time
async def test_an_address_that_comes_is_used_and_one_that_goes_takes_its_latch_along() -> None:
    call = Call(World())
    async with call.relay() as relay:
        channel = relay.open(LEFT, RIGHT)
        alice, bob, _ = call.clients(channel)
        await alice.latch()
        await bob.latch()
        call.host.add_address("eth0", "20.0.1.9")
        await asyncio.sleep(1)
        assert "20.0.1.9" in relay.hosts
        call.host.remove_address("eth0", RELAY)
        await asyncio.sleep(1)
        assert channel.left.peer is None
        alice, bob, _ = call.clients(channel, "20.0.1.9")
        await alice.latch()
        await bob.latch()
        await alice.send(b"hello")
        assert bob.received == [b"hello"]


@in_virtual_time
async def test_ports_that_cannot_be_had_leave_nothing_open() -> None:
    call = Call(World())
    async with call.relay(ports=(6000, 6003)) as relay:
        relay.open(LEFT, RIGHT)
        for ports in ((LEFT, 7000), (7000, LEFT)):
            with pytest.raises(OSError, match="in use") as caught:
                relay.open(*ports)
            assert caught.value.errno == errno.EADDRINUSE
        assert len(relay.channels) == 1
        relay.open(7000, 7001)
        random = [relay.open() for _ in range(2)]
        assert sorted(side.port for channel in random for side in channel.sides) == [6000, 6001, 6002, 6003]
        with pytest.raises(OSError, match="no two ports are free in 6000-6003"):
            relay.open()
        relay.close_channel(random[0])
        relay.open()


@in_virtual_time
async def test_what_cannot_be_meant_is_said() -> None:
    call = Call(World())
    with pytest.raises(ValueError, match="backend is 'kernel'"):
        call.relay(backend="kernel")
    with pytest.raises(ValueError, match="several addresses are expected"):
        call.relay(bind="20.0.1.1")
    with pytest.raises(OSError, match=r"no interface has the address 20\.9\.9\.9"):
        await call.relay(bind=["20.9.9.9"]).__aenter__()
    with pytest.raises(OSError, match="there is no interface wlan7"):
        await call.relay(interface="wlan7").__aenter__()
    relay = call.relay(max_channels=1)
    with pytest.raises(ValueError, match="not open"):
        relay.open(LEFT, RIGHT)
    async with relay:
        for ports in ((0, 1), (1, 65_536), (5, 5), (5, None)):
            with pytest.raises(ValueError, match="port"):
                relay.open(*ports)
        relay.open()
        with pytest.raises(OSError, match="no more are allowed"):
            relay.open()
        with pytest.raises(ValueError, match="open already"):
            await relay.__aenter__()
    assert relay.channels == ()
    await relay.aclose()


@in_virtual_time
async def test_a_host_without_a_kernel_is_relayed_in_userspace_and_says_why() -> None:
    call = Call(World())
    async with call.relay() as relay:
        assert (relay.backend, relay.reason) == ("userspace", "this host has no kernel of its own")
    async with call.relay(backend="userspace") as relay:
        assert (relay.backend, relay.reason) == ("userspace", None)
    with pytest.raises(KernelUnavailable):
        await call.relay(backend="nftables").__aenter__()
