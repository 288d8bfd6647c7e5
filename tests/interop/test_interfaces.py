"""The interface table against a real kernel, in network namespaces: flags, kinds, notifications, many links."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest

from iceagent.lab.namespace import Namespace
from iceagent.net.host import AddressFlag, Interface, InterfaceKind
from iceagent.net.local import LocalHost
from iceagent.net.netlink import open_netlink
from tests.interop.netns import namespace
from tests.loopback.loops import LoopFactory, News, on_both_loops, run

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000


@pytest.fixture
def home() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def host_in(home: Namespace, receive_buffer: int | None = None) -> LocalHost:
    """A host that lists the interfaces of ``home``."""

    def open_there(groups: int) -> socket.socket:
        with home.entered():
            sock = open_netlink(groups)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        return sock

    return LocalHost(open_netlink=open_there)


class Watcher(News):
    """Keeps every table it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Sequence[Interface]] = []

    def __call__(self, table: Sequence[Interface]) -> None:
        self.tables.append(table)
        self.tell()

    def has(self, name: str, *hosts: str) -> bool:
        """Whether the last table shows ``name`` with exactly these IPv4 addresses."""
        table = self.tables[-1] if self.tables else ()
        return any(link.name == name and ipv4_of(link) == list(hosts) for link in table)


def ipv4_of(link: Interface) -> list[str]:
    return [address.host for address in link.addresses if ":" not in address.host]


def named(table: Sequence[Interface], name: str) -> Interface:
    (link,) = (link for link in table if link.name == name)
    return link


@on_both_loops
def test_flags_of_addresses(home: Namespace, loop_factory: LoopFactory) -> None:
    """RFC 4862: tentative until known to be unique, deprecated at the end; RFC 8981: temporary."""
    home.ip("link add e0 type veth peer name e1", "link set e0 up", "link set e1 up")
    home.sysctl("ipv6/conf/e0/use_tempaddr", 2)
    home.sysctl("ipv6/conf/e1/accept_dad", 1)
    home.sysctl("ipv6/conf/e1/dad_transmits", 100)
    home.ip(
        "addr add 2001:db8::1/64 dev e0 nodad",
        "addr add 2001:db8::2/64 dev e0 nodad preferred_lft 0",
        "addr add 2001:db8:1::1/64 dev e0 nodad mngtmpaddr",
        "addr add 2001:db8:2::1/64 dev e1",
        "addr add 10.0.0.1/24 dev e0",
        "addr add 10.0.0.2/24 dev e0",
        "addr add 10.9.0.1 peer 10.9.0.2 dev e0",
    )

    async def main() -> None:
        table = await host_in(home).interfaces()
        found = {address.host: address for link in table for address in link.addresses}
        assert found["2001:db8::1"].flags == set()
        assert found["2001:db8::2"].flags == {AddressFlag.DEPRECATED}
        assert found["2001:db8:2::1"].flags == {AddressFlag.TENTATIVE}
        assert found["10.0.0.2"].flags == set(), "0x01 is secondary here, not temporary"
        assert (found["2001:db8::1"].prefix_length, found["10.0.0.1"].prefix_length) == (64, 24)
        assert "10.9.0.1" in found and "10.9.0.2" not in found, "of a point-to-point link, our own end"
        temporary = [host for host, address in found.items() if address.flags == {AddressFlag.TEMPORARY}]
        assert [host.startswith("2001:db8:1:") for host in temporary] == [True]

    run(loop_factory, main())


@on_both_loops
def test_kinds_of_links(home: Namespace, loop_factory: LoopFactory) -> None:
    home.ip(
        "link add wan type veth peer name other",
        "link add br0 type bridge",
        "link add port type veth peer name guest",
        "link set dev port master br0",
        *(f"link set dev {name} up" for name in ("wan", "other", "br0", "port", "guest")),
        "addr add 10.0.0.1/24 dev wan",
        "route add 0.0.0.0/0 via 10.0.0.2",
    )
    with home.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"office", IFF_TUN | IFF_NO_PI))

    async def main() -> None:
        table = await host_in(home).interfaces()
        assert {link.name: link.kind for link in table if link.name != "sit0"} == {
            "lo": InterfaceKind.LOOPBACK,
            "wan": InterfaceKind.ETHERNET,
            "other": InterfaceKind.CONTAINER,
            "br0": InterfaceKind.CONTAINER,
            "port": InterfaceKind.CONTAINER,
            "guest": InterfaceKind.CONTAINER,
            "office": InterfaceKind.VPN,
        }
        assert named(table, "wan").is_up
        assert not named(table, "office").is_up

    try:
        run(loop_factory, main())
    finally:
        os.close(tun)


@on_both_loops
def test_carrier_counts(home: Namespace, loop_factory: LoopFactory) -> None:
    """The other end of the cable is down: administratively up is not enough."""
    home.ip("link add e0 mtu 1400 type veth peer name e1", "link set e0 up")

    async def main() -> None:
        table = await host_in(home).interfaces()
        assert (named(table, "e0").is_up, named(table, "e1").is_up) == (False, False)
        assert named(table, "e0").mtu == 1400

    run(loop_factory, main())


@on_both_loops
def test_changes_are_told(home: Namespace, loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host, watcher = host_in(home), Watcher()
        subscription = host.watch_interfaces(watcher)
        assert [link.name for link in await host.interfaces() if link.name != "sit0"] == ["lo"]
        assert watcher.tables == [], "the first table is no change"
        home.ip("link add e0 type veth peer name e1", "addr add 10.0.0.1/24 dev e0", "link set e0 up", "link set e1 up")
        await watcher.until(lambda: watcher.has("e0", "10.0.0.1"))
        home.ip("addr add 10.0.0.9/24 dev e0")
        await watcher.until(lambda: watcher.has("e0", "10.0.0.1", "10.0.0.9"))
        home.ip("link del e0")
        await watcher.until(lambda: all(link.name != "e0" for link in watcher.tables[-1]))
        told = len(watcher.tables)
        subscription.close()
        home.ip("link add e2 type veth peer name e3")
        assert "e2" in {link.name for link in await host.interfaces()}
        assert len(watcher.tables) == told

    run(loop_factory, main())


@on_both_loops
def test_asking_right_after_a_change_shows_it(home: Namespace, loop_factory: LoopFactory) -> None:
    """The table is warm, and the notification is in the socket, not yet heard: it is not skipped over."""

    async def main() -> None:
        host = host_in(home)
        host.watch_interfaces(lambda _: None)
        await host.interfaces()
        for number in range(5):
            home.ip(f"link add e{number} type veth peer name f{number}")
            assert f"e{number}" in {link.name for link in await host.interfaces()}
        host.close()

    run(loop_factory, main())


@on_both_loops
def test_a_flood_of_changes_is_one_or_few_readings_and_lost_ones_do_not_matter(
    home: Namespace, loop_factory: LoopFactory
) -> None:
    """400 changes while nobody listens overflow the socket (ENOBUFS); the reader lives on and the table is right."""

    async def main() -> None:
        host, watcher = host_in(home, receive_buffer=4096), Watcher()
        host.watch_interfaces(watcher)
        await host.interfaces()
        readings = host._interfaces.readings
        home.ip("link add e0 type veth peer name e1", *(f"addr add 10.1.{n}.1/24 dev e0" for n in range(200)))
        await watcher.until(lambda: watcher.has("e0", *(f"10.1.{n}.1" for n in range(200))))
        assert host._interfaces.readings - readings <= 3
        home.ip("link set e0 up", "link set e1 up", "addr add 10.2.0.1/24 dev e1")
        await watcher.until(lambda: watcher.has("e1", "10.2.0.1"))
        host.close()

    run(loop_factory, main())


@on_both_loops
def test_thirty_interfaces_and_a_loop_that_is_not_held_up(home: Namespace, loop_factory: LoopFactory) -> None:
    """Their order is the kernel's; a burst of awaiting callers costs one reading."""
    home.ip(
        *(f"link add e{n} type veth peer name f{n}" for n in range(15)),
        *(f"addr add 10.{n}.0.1/24 dev e{n}" for n in range(15)),
    )

    async def main() -> None:
        host = host_in(home)
        tables = await asyncio.gather(*(host.interfaces() for _ in range(10)))
        assert all(table == tables[0] for table in tables)
        links = [link for link in tables[0] if link.name[0] in "ef"]
        assert len(links) == 30
        assert [link.index for link in links] == sorted(link.index for link in links)
        assert {link.name: ipv4_of(link) for link in links if link.name[0] == "e"} == {
            f"e{n}": [f"10.{n}.0.1"] for n in range(15)
        }
        assert host._interfaces.readings == 1

    run(loop_factory, main())
