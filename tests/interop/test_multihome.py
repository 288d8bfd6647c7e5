"""Two uplinks, in network namespaces: what a socket sends leaves through the interface it was opened for.

A home with two interfaces, each with its own network and default route, and behind both one server. The first default
route is the better one, so by the weak host model everything leaves through it unless it is told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from iceagent.lab.namespace import Namespace
from iceagent.net.address import TransportAddress
from iceagent.net.host import SocketOptions
from iceagent.net.interfaces import read_interfaces
from iceagent.net.netlink import open_netlink
from iceagent.net.sockets import UdpSocket, bind_to_interface, open_socket
from iceagent.net.trains import MAX_SEGMENT
from tests.interop.netns import namespace
from tests.loopback.loops import Inbox, LoopFactory, on_both_loops, run

FIRST = {4: "10.0.0.1", 6: "2001:db8:a::1"}
SECOND = {4: "10.1.0.1", 6: "2001:db8:b::1"}
SERVER = {4: "198.51.100.1", 6: "2001:db8:c::1"}
# Behind a link that carries 1,000 bytes.
NARROW = "198.51.100.2"
ROOT, NOBODY = 0, 65534

both_versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@dataclass
class World:
    """The home and what is behind its two links."""

    home: Namespace
    internet: Namespace

    def open(self, inbox: Inbox, local: TransportAddress, options: SocketOptions, user: int = ROOT) -> UdpSocket:
        """One of our sockets, at home, opened with the rights of ``user``."""
        with self.home.entered():
            os.seteuid(user)
            try:
                return open_socket(local, inbox, options, asyncio.get_running_loop())
            finally:
                os.seteuid(ROOT)

    def options(self, option: str, link: str) -> SocketOptions:
        """``option`` (``interface`` or ``egress_index``) with the value for one of our links."""
        with self.home.entered():
            index = socket.if_nametoindex(link)
        return SocketOptions(interface=link) if option == "interface" else SocketOptions(egress_index=index)

    @contextlib.contextmanager
    def server(self, version: int) -> Iterator[socket.socket]:
        """A plain socket on the server's address that tells which link a datagram came through."""
        with self.internet.entered():
            sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            if version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
            sock.settimeout(5)
            sock.bind((SERVER[version], 0))
            yield sock

    def link(self, index: int) -> str:
        """Name of a link of the Internet's side."""
        with self.internet.entered():
            return socket.if_indextoname(index)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with namespace() as home, namespace() as internet:
        home.ip(
            f"link add up0 type veth peer name down0 netns {internet.path}",
            f"link add up1 type veth peer name down1 netns {internet.path}",
            *(f"addr add {host}/24 dev up{link}" for link, host in enumerate((FIRST[4], SECOND[4]))),
            *(f"addr add {host}/64 dev up{link} nodad" for link, host in enumerate((FIRST[6], SECOND[6]))),
            "addr add fe80::1/64 dev up1 nodad",
            "link set up0 up",
            "link set up1 up",
        )
        internet.ip(
            "addr add 10.0.0.2/24 dev down0",
            "addr add 10.1.0.2/24 dev down1",
            "addr add 2001:db8:a::2/64 dev down0 nodad",
            "addr add 2001:db8:b::2/64 dev down1 nodad",
            f"addr add {SERVER[4]}/32 dev lo",
            f"addr add {SERVER[6]}/128 dev lo nodad",
            f"addr add {NARROW}/32 dev lo",
            "addr add fe80::2/64 dev down1 nodad",
            "link set down0 up",
            "link set down1 up",
        )
        home.ip(
            "route add 0.0.0.0/0 via 10.0.0.2 dev up0 metric 100",
            "route add 0.0.0.0/0 via 10.1.0.2 dev up1 metric 200",
            f"route add {NARROW}/32 via 10.0.0.2 dev up0 mtu lock 1000",
            "route add ::/0 via 2001:db8:a::2 dev up0 metric 100",
            "route add ::/0 via 2001:db8:b::2 dev up1 metric 200",
        )
        wait_for_links(home)
        wait_for_links(internet)
        yield World(home, internet)


def wait_for_links(space: Namespace) -> None:
    """The kernel takes up to a second to notice a carrier, and IPv6 does not work before."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with space.entered(), open_netlink() as sock:
            links = read_interfaces(sock)
        if all(link.is_up for link in links if link.name[:2] in ("up", "do")):
            return
        time.sleep(0.02)
    raise TimeoutError(f"links that do not come up: {links}")


def taken_by(server: socket.socket) -> tuple[int, tuple[Any, ...]]:
    """Index of the link that the next datagram came through, and its source."""
    _, ancillary, _, source = server.recvmsg(2048, 256)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, 8):
            return struct.unpack_from("=i", data)[0], source
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return struct.unpack_from("=i", data, 16)[0], source
    raise AssertionError(f"no packet info in {ancillary}")


@both_versions
@on_both_loops
def test_without_the_interface_everything_leaves_through_the_first(
    world: World, loop_factory: LoopFactory, version: int
) -> None:
    """The pitfall itself: if this fails, the tests below prove nothing."""

    async def main() -> None:
        sock = world.open(Inbox(), TransportAddress(SECOND[version], 0), SocketOptions())
        with world.server(version) as server:
            sock.send(b"x", server.getsockname()[:2])
            index, source = taken_by(server)
        sock.close()
        assert (world.link(index), source[0]) == ("down0", SECOND[version])

    run(loop_factory, main())


@pytest.mark.parametrize("option", ["interface", "egress_index"])
@pytest.mark.parametrize("user", [ROOT, NOBODY], ids=["root", "nobody"])
@both_versions
@on_both_loops
def test_a_socket_leaves_through_its_interface_and_hears_the_answer(
    world: World, loop_factory: LoopFactory, version: int, user: int, option: str
) -> None:
    """Linux 5.7 and later let anyone bind an unbound socket to a device."""

    async def main() -> None:
        for link, hosts in (("up0", FIRST), ("up1", SECOND)):
            inbox = Inbox()
            sock = world.open(inbox, TransportAddress(hosts[version], 0), world.options(option, link), user)
            with world.server(version) as server:
                assert sock.send(b"question", server.getsockname()[:2]) == 0
                index, source = taken_by(server)
                assert (world.link(index), source[0]) == (link.replace("up", "down"), hosts[version])
                server.sendto(b"answer", source)
                await inbox.until(lambda inbox=inbox: bool(inbox.received))  # type: ignore[misc]
                assert inbox.received == [(b"answer", server.getsockname()[:2])]
            sock.close()

    run(loop_factory, main())


class OldKernelSocket(socket.socket):
    """Refuses SO_BINDTODEVICE as Linux did before 5.7."""

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_BINDTODEVICE):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().setsockopt(level, option, *value)


def test_an_old_kernels_way_chooses_the_link_too(world: World) -> None:
    """IP_UNICAST_IF, where SO_BINDTODEVICE is refused."""
    with world.home.entered():
        sock = OldKernelSocket(socket.AF_INET, socket.SOCK_DGRAM)
        bind_to_interface(sock, sock.family, "up1")
    with sock, world.server(4) as server:
        sock.bind((SECOND[4], 0))
        sock.sendto(b"x", server.getsockname())
        index, source = taken_by(server)
    assert (world.link(index), source[0]) == ("down1", SECOND[4])


@pytest.mark.parametrize("option", ["interface", "egress_index"])
@both_versions
def test_what_is_on_the_same_host_is_still_heard(world: World, version: int, option: str) -> None:
    """From the same address, and from a socket of no interface on the other one: both go through loopback."""

    async def main() -> None:
        inbox = Inbox()
        bound = world.options(option, "up1")
        receiver = world.open(inbox, TransportAddress(SECOND[version], 0), bound)
        neighbour = world.open(Inbox(), TransportAddress(SECOND[version], 0), bound)
        stranger = world.open(Inbox(), TransportAddress(FIRST[version], 0), SocketOptions())
        for sender in (neighbour, stranger):
            assert sender.send(b"x", receiver.address) == 0
        await inbox.until(lambda: len(inbox.received) == 2)
        assert inbox.received == [(b"x", neighbour.address), (b"x", stranger.address)]
        for sock in (receiver, neighbour, stranger):
            sock.close()

    run(asyncio.SelectorEventLoop, main())


@on_both_loops
def test_link_local_addresses_work_and_their_zone_stays_inside(world: World, loop_factory: LoopFactory) -> None:
    """Both ends are fe80::, on the second link; neither what we are bound to nor what we hear shows a zone."""

    async def main() -> None:
        with world.home.entered():
            scope_id = socket.if_nametoindex("up1")
        with world.internet.entered():
            peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            peer.bind(("fe80::2", 0, 0, socket.if_nametoindex("down1")))
        inbox = Inbox()
        with peer:
            peer.settimeout(5)
            sock = world.open(inbox, TransportAddress("fe80::1", 0), SocketOptions(scope_id=scope_id))
            assert sock.address.host == "fe80::1"
            there = TransportAddress("fe80::2", peer.getsockname()[1])
            assert sock.send(b"question", there, ttl=255) == 0
            data, source = peer.recvfrom(100)
            peer.sendto(b"answer", source)
            await inbox.until(lambda: bool(inbox.received))
            assert (data, inbox.received) == (b"question", [(b"answer", there)])
            peer.close()
            assert sock.send(b"anybody?", there) == 0
            await inbox.until(lambda: bool(inbox.errors))
            assert inbox.errors == [(there, errno.ECONNREFUSED)]
            sock.close()

    run(loop_factory, main())


@on_both_loops
def test_a_full_socket_says_eagain(world: World, loop_factory: LoopFactory) -> None:
    """The link holds up what waits for an ARP answer that never comes, and charges it to the sender."""

    async def main() -> None:
        sock = world.open(Inbox(), TransportAddress(FIRST[4], 0), SocketOptions(send_buffer=4608))
        results = [sock.send(bytes(1000), ("10.0.0.77", 9)) for _ in range(50)]
        sock.close()
        assert (results[0], results[-1], set(results)) == (0, errno.EAGAIN, {0, errno.EAGAIN})

    run(loop_factory, main())


@on_both_loops
def test_as_many_of_a_burst_leave_as_there_is_room_for(world: World, loop_factory: LoopFactory) -> None:
    """The kernel takes a train as a whole or not at all; what does not fit as a train is tried one by one."""

    async def main() -> None:
        one_by_one = world.open(Inbox(), TransportAddress(FIRST[4], 0), SocketOptions(send_buffer=4608))
        room = [one_by_one.send(bytes(1000), ("10.0.0.77", 9)) for _ in range(50)].index(errno.EAGAIN)
        together = world.open(Inbox(), TransportAddress(FIRST[4], 0), SocketOptions(send_buffer=4608))
        # The first train may find an empty buffer, which takes anything once.
        assert together.send_many([bytes(1000)] * 50, ("10.0.0.78", 9)) == (50, 0)
        assert together.send_many([bytes(1000)] * 50, ("10.0.0.78", 9)) == (0, errno.EAGAIN)
        assert together.max_segment == MAX_SEGMENT
        assert room > 0
        for sock in (one_by_one, together):
            sock.close()

    run(loop_factory, main())


@on_both_loops
def test_a_train_that_does_not_fit_the_path_goes_one_by_one(world: World, loop_factory: LoopFactory) -> None:
    """1,000 bytes of MTU less 28 of headers. Datagrams above are fragments, and trains of them are not tried again."""

    async def main() -> None:
        inbox = Inbox()
        sock = world.open(Inbox(), TransportAddress(FIRST[4], 0), SocketOptions())
        with world.internet.entered():
            receiver = open_socket(TransportAddress(NARROW, 0), inbox, SocketOptions(), asyncio.get_running_loop())
        sent = [os.urandom(size) for size in (*[1200] * 5, *[973] * 5, *[972] * 5, *[500] * 10)]
        limits = []
        for start in range(0, len(sent), 5):
            assert sock.send_many(sent[start : start + 5], receiver.address) == (5, 0)
            limits.append(sock.max_segment)
        await inbox.until(lambda: len(inbox.received) == len(sent))
        assert [data for data, _ in inbox.received] == sent
        assert limits == [1199, 972, 972, 972, 972]
        for each in (sock, receiver):
            each.close()

    run(loop_factory, main())
