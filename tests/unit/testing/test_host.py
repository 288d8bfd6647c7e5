"""Hosts in memory, on a loop in virtual time."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from iceagent.net.address import TransportAddress as Address
from iceagent.net.host import (
    AddressFlag,
    DatagramSocket,
    Host,
    Interface,
    InterfaceKind,
    SocketOptions,
    SrvRecord,
    Subscription,
)
from iceagent.testing.clock import VirtualLoop
from iceagent.testing.host import MemoryHost
from iceagent.testing.internet import MemoryInternet
from iceagent.testing.links import Fate
from iceagent.testing.nat import NatModel
from iceagent.testing.network import Network
from iceagent.testing.stun_server import add_stun_server
from relay.stun import XOR_MAPPED_ADDRESS, MessageClass, Method, build, parse

Run = Callable[[Coroutine[Any, Any, Any]], Any]
A, B = Address("192.0.2.1", 1001), Address("192.0.2.2", 1002)


class Receiver:
    """Keeps what a socket hears, with its time."""

    def __init__(self, host: MemoryHost) -> None:
        self.host = host
        self.received: list[tuple[float, bytes, tuple[str, int]]] = []
        self.errors: list[tuple[Address | None, int]] = []

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.received.append((self.host.now(), data, source))

    def error_received(self, socket: DatagramSocket, destination: Address | None, errno: int) -> None:
        self.errors.append((destination, errno))


@pytest.fixture
def alice(iceagent_internet: MemoryInternet) -> MemoryHost:
    return iceagent_internet.host("alice", [A.host], latency_s=0.25)


@pytest.fixture
def bob(iceagent_internet: MemoryInternet) -> MemoryHost:
    return iceagent_internet.host("bob", [B.host], latency_s=0.25)


def test_a_memory_host_is_a_host(alice: MemoryHost) -> None:
    host: Host = alice
    assert host.now() == 0.0


def test_sockets_exchange_datagrams_at_the_right_times(alice: MemoryHost, bob: MemoryHost, iceagent_run: Run) -> None:
    ears_a, ears_b = Receiver(alice), Receiver(bob)
    a = alice.socket(A, ears_a, SocketOptions())
    b = bob.socket(B, ears_b, SocketOptions())

    async def main() -> None:
        assert a.send(b"hello", ("192.0.2.2", 1002)) == 0
        await asyncio.sleep(1)
        assert b.send(b"hi", A, ttl=32) == 0
        await asyncio.sleep(1)

    iceagent_run(main())
    assert ears_b.received == [(0.5, b"hello", A)]
    assert ears_a.received == [(1.5, b"hi", B)]
    assert a.address == A


def test_an_answer_from_within_the_receiver(alice: MemoryHost, bob: MemoryHost, iceagent_run: Run) -> None:
    class Echo(Receiver):
        def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
            assert socket.send(data, source) == 0

    ears = Receiver(alice)
    a = alice.socket(A, ears, SocketOptions())
    bob.socket(B, Echo(bob), SocketOptions())
    for number in range(3):
        a.send(bytes([number]), B)
    iceagent_run(asyncio.sleep(5))
    assert ears.received == [(1.0, bytes([number]), B) for number in range(3)]


def test_a_closed_socket_hears_and_sends_nothing(alice: MemoryHost, bob: MemoryHost, iceagent_run: Run) -> None:
    class Closing(Receiver):
        def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
            super().datagram_received(socket, data, source)
            socket.close()

    ears = Closing(bob)
    a = alice.socket(A, Receiver(alice), SocketOptions())
    b = bob.socket(B, ears, SocketOptions())
    a.send(b"one", B)
    a.send(b"two", B)
    iceagent_run(asyncio.sleep(1))
    assert [data for _, data, _ in ears.received] == [b"one"]
    assert b.send(b"late", A) == errno.EBADF
    b.close()
    assert bob.socket(B, Receiver(bob), SocketOptions()).address == B, "the address is free again"


def test_one_receivers_error_costs_no_other_its_datagram(
    alice: MemoryHost, bob: MemoryHost, iceagent_run: Run, iceagent_virtual_loop: VirtualLoop
) -> None:
    class Broken(Receiver):
        def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
            raise KeyError("a bug")

    ears = Receiver(bob)
    bob.socket(B, Broken(bob), SocketOptions())
    bob.socket(Address(B.host, 2000), ears, SocketOptions())
    a = alice.socket(A, Receiver(alice), SocketOptions())
    a.send(b"x", B)
    a.send(b"y", (B.host, 2000))
    iceagent_run(asyncio.sleep(1))
    assert [data for _, data, _ in ears.received] == [b"y"]
    assert [repr(failure["exception"]) for failure in iceagent_virtual_loop.failures] == ["KeyError('a bug')"]
    iceagent_virtual_loop.failures.clear()


def test_a_closed_port_is_an_error_where_the_network_says_so(iceagent_virtual_loop: VirtualLoop) -> None:
    internet = MemoryInternet(Network.seeded(1, icmp_errors=True), iceagent_virtual_loop)
    alice, _ = internet.host("alice", [A.host]), internet.host("bob", [B.host])
    ears = Receiver(alice)
    alice.socket(A, ears, SocketOptions()).send(b"anyone?", B)
    iceagent_virtual_loop.run_until_complete(asyncio.sleep(1))
    assert ears.errors == [(B, errno.ECONNREFUSED)]
    assert internet.network.counters[Fate.PORT_CLOSED] == 1


def test_port_0_takes_a_free_one(alice: MemoryHost) -> None:
    ports = {alice.socket(Address(A.host, 0), Receiver(alice), SocketOptions()).address.port for _ in range(100)}
    assert len(ports) == 100
    assert all(32768 <= port < 61000 for port in ports)


@pytest.mark.parametrize(
    ("local", "options", "code"),
    [
        (Address("192.0.2.99", 0), SocketOptions(), errno.EADDRNOTAVAIL),
        (Address("0.0.0.0", 0), SocketOptions(), errno.EADDRNOTAVAIL),
        (A, SocketOptions(), errno.EADDRINUSE),
        (Address(A.host, 0), SocketOptions(interface="wlan7"), errno.ENODEV),
    ],
)
def test_what_cannot_be_bound(alice: MemoryHost, local: Address, options: SocketOptions, code: int) -> None:
    alice.socket(A, Receiver(alice), SocketOptions(interface="eth0"))
    with pytest.raises(OSError) as caught:
        alice.socket(local, Receiver(alice), options)
    assert caught.value.errno == code


def test_a_stun_server_behind_a_nat(
    iceagent_internet: MemoryInternet, iceagent_network: Network, iceagent_run: Run
) -> None:
    iceagent_internet.add_peer(add_stun_server(iceagent_network, "stun", ["198.51.100.1"], delay_s=0.5))
    nat = iceagent_network.add_nat("nat", NatModel(["203.0.113.1"], iceagent_network.rng))
    host = iceagent_internet.host("host", ["192.168.1.2"], nat)
    ears = Receiver(host)
    base = host.socket(Address("192.168.1.2", 5000), ears, SocketOptions())
    base.send(build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode(), ("198.51.100.1", 3478))
    iceagent_run(asyncio.sleep(1))
    ((at, data, source),) = ears.received
    assert at == pytest.approx(0.54)
    assert source == ("198.51.100.1", 3478)
    assert parse(data).get(XOR_MAPPED_ADDRESS) == Address("203.0.113.1", 5000)


def test_interfaces_and_their_changes(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    host = iceagent_internet.host("host", ["192.0.2.1", "2001:DB8:0::1"], kind=InterfaceKind.WIFI)
    tables: list[Sequence[Interface]] = []

    async def main() -> None:
        subscription: Subscription = host.watch_interfaces(tables.append)
        await asyncio.sleep(0)
        tables.clear()
        host.add_interface("wwan0", ["10.0.0.2"], kind=InterfaceKind.CELLULAR, is_metered=True)
        host.add_address("eth0", "192.0.2.7", [AddressFlag.DEPRECATED])
        await asyncio.sleep(0)
        host.set_up("wwan0", False)
        host.remove_address("eth0", "192.0.2.1")
        await asyncio.sleep(0)
        host.remove_interface("wwan0")
        await asyncio.sleep(0)
        subscription.close()
        host.set_up("eth0", False)
        await asyncio.sleep(0)
        assert [each.name for each in await host.interfaces()] == ["lo", "eth0"]

    iceagent_run(main())
    assert len(tables) == 3, "what changes at once is told at once"
    lo, eth0, wwan0 = tables[0]
    assert (lo.kind, eth0.kind, wwan0.kind) == (InterfaceKind.LOOPBACK, InterfaceKind.WIFI, InterfaceKind.CELLULAR)
    assert [each.index for each in tables[0]] == [1, 2, 3]
    assert [(each.host, each.prefix_length) for each in eth0.addresses] == [
        ("192.0.2.1", 24),
        ("2001:db8::1", 64),
        ("192.0.2.7", 24),
    ]
    assert eth0.addresses[2].flags == {AddressFlag.DEPRECATED}
    assert (wwan0.metered, wwan0.is_up, tables[1][2].is_up) == (True, True, False)
    assert [each.host for each in tables[1][1].addresses] == ["2001:db8::1", "192.0.2.7"]
    assert [each.name for each in tables[2]] == ["lo", "eth0"]


def test_an_interface_that_is_down_carries_nothing(alice: MemoryHost, bob: MemoryHost, iceagent_run: Run) -> None:
    ears = Receiver(bob)
    a = alice.socket(A, Receiver(alice), SocketOptions())
    bob.socket(B, ears, SocketOptions())

    async def main() -> None:
        alice.set_up("eth0", False)
        assert a.send(b"lost", B) == 0
        await asyncio.sleep(1)
        alice.set_up("eth0", True)
        assert a.send(b"found", B) == 0
        await asyncio.sleep(1)
        alice.remove_interface("eth0")
        assert a.send(b"nowhere", B) == errno.EADDRNOTAVAIL

    iceagent_run(main())
    assert [data for _, data, _ in ears.received] == [b"found"]


def test_interface_names_are_unique(alice: MemoryHost) -> None:
    for name in ("eth0", "lo"):
        with pytest.raises(ValueError, match=f"has an interface '{name}' already"):
            alice.add_interface(name, [])
    assert alice.link("eth0") is alice.node.link


def test_being_suspended_adds_up_and_takes_no_time(alice: MemoryHost) -> None:
    before = alice.now()
    alice.suspend(10.0)
    alice.suspend(0.5)
    assert (alice.suspended_s(), alice.now()) == (10.5, before)


def test_source_host(alice: MemoryHost) -> None:
    alice.add_interface("wwan0", ["10.0.0.2", "2001:db8::9"])
    assert alice.source_host(B) == A.host
    assert alice.source_host(Address("2001:db8::1", 1)) == "2001:db8::9"
    assert alice.source_host(Address("127.0.0.1", 1)) == "127.0.0.1"
    alice.set_up("eth0", False)
    assert alice.source_host(B) == "10.0.0.2"
    alice.remove_interface("wwan0")
    assert alice.source_host(B) is None


def test_names(iceagent_internet: MemoryInternet, alice: MemoryHost, bob: MemoryHost, iceagent_run: Run) -> None:
    record = SrvRecord(host="stun.example", port=3478)
    iceagent_internet.names["stun.example"] = ["2001:DB8::1", "198.51.100.1"]
    iceagent_internet.services["_stun._udp.example"] = [record]
    alice.names["stun.example"] = ["127.0.0.1"]

    async def main() -> None:
        assert await bob.resolve("stun.example") == ("2001:db8::1", "198.51.100.1")
        assert await alice.resolve("stun.example") == ("127.0.0.1",)
        assert await alice.resolve("2001:DB8::2") == ("2001:db8::2",)
        assert await alice.resolve_srv("_stun._udp.example") == (record,)
        assert await alice.resolve_srv("_turn._udp.example") == ()
        with pytest.raises(socket.gaierror, match=r"no address for 'nowhere\.example'"):
            await alice.resolve("nowhere.example")

    iceagent_run(main())


def test_a_closed_internet_stands_still(
    iceagent_internet: MemoryInternet, alice: MemoryHost, bob: MemoryHost, iceagent_run: Run
) -> None:
    ears = Receiver(bob)
    bob.socket(B, ears, SocketOptions())
    alice.socket(A, Receiver(alice), SocketOptions()).send(b"x", B)
    iceagent_internet.close()
    iceagent_internet.close()
    iceagent_run(asyncio.sleep(10))
    assert ears.received == []
