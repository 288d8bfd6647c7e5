"""UDP sockets on real loopback addresses, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.net.sockets import MAX_BUDGET, RETRY_TRAINS_AFTER, UdpSocket, open_socket
from iceagent.net.trains import MAX_SEGMENT, SOL_UDP, UDP_GRO
from tests.loopback.loops import Inbox, LoopFactory, on_both_loops, run

ANY_PORT = TransportAddress("127.0.0.1", 0)
ANY_PORT_V6 = TransportAddress("::1", 0)


@contextlib.contextmanager
def opened(
    inbox: Inbox, local: TransportAddress = ANY_PORT, options: SocketOptions | None = None
) -> Iterator[UdpSocket]:
    sock = open_socket(local, inbox, options or SocketOptions(), asyncio.get_running_loop())
    try:
        yield sock
    finally:
        sock.close()


@contextlib.contextmanager
def plain(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind((host, 0))
        yield sock


def closed_port() -> TransportAddress:
    """An address that nobody listens on."""
    with plain() as sock:
        return TransportAddress(*sock.getsockname())


@on_both_loops
@pytest.mark.parametrize("local", [ANY_PORT, ANY_PORT_V6], ids=["IPv4", "IPv6"])
def test_datagrams_arrive_in_order_with_their_source(loop_factory: LoopFactory, local: TransportAddress) -> None:
    async def main() -> None:
        inbox = Inbox()
        with opened(inbox, local) as receiver, opened(Inbox(), local) as sender:
            sent = [bytes([number]) * number for number in range(50)]
            assert [sender.send(data, receiver.address) for data in sent] == [0] * 50
            await inbox.until(lambda: len(inbox.received) == 50)
            assert [data for data, _ in inbox.received] == sent
            assert {source for _, source in inbox.received} == {sender.address}

    run(loop_factory, main())


@on_both_loops
def test_the_largest_datagram_arrives_whole(loop_factory: LoopFactory) -> None:
    """65,507 bytes: 65,535 less the headers of IPv4 (20) and UDP (8). One more does not leave."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox) as receiver, opened(Inbox()) as sender:
            data = os.urandom(65_507)
            assert sender.send(data, receiver.address) == 0
            assert sender.send(data + b"!", receiver.address) == errno.EMSGSIZE
            await inbox.until(lambda: bool(inbox.received))
            assert inbox.received == [(data, sender.address)]

    run(loop_factory, main())


@on_both_loops
def test_the_kernels_own_refusal_is_told_once_and_the_reader_lives(loop_factory: LoopFactory) -> None:
    """An EMSGSIZE is returned by ``send`` and queued as an error too: the receiver is not told a second time."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox) as sock, opened(Inbox()) as other:
            assert sock.send(bytes(65_520), other.address) == errno.EMSGSIZE
            other.send(b"still there", sock.address)
            await inbox.until(lambda: bool(inbox.received))
            assert inbox.errors == []

    run(loop_factory, main())


@on_both_loops
def test_the_budget_follows_the_traffic(loop_factory: LoopFactory) -> None:
    """1, 2, 4 … 64 datagrams per wake-up while they are used up; back to what was read when the socket runs empty."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox, options=SocketOptions(receive_buffer=1 << 20)) as receiver, opened(Inbox()) as sender:
            assert receiver.budget == 1
            for _ in range(127 + 3):  # 1 + 2 + … + 64, then three more
                assert sender.send(b"x", receiver.address) == 0
            await inbox.until(lambda: len(inbox.received) == 127)
            assert (receiver.wakeups, receiver.empty_reads) == (7, 0)
            await inbox.until(lambda: len(inbox.received) == 130)
            await asyncio.sleep(0)
            assert (receiver.wakeups, receiver.empty_reads, receiver.budget) == (8, 1, 3)
            sender.send(b"x", receiver.address)
            await inbox.until(lambda: len(inbox.received) == 131)
            await asyncio.sleep(0)
            assert (receiver.wakeups, receiver.empty_reads, receiver.budget) == (9, 2, 1)

    assert MAX_BUDGET == 64
    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("burst", [1, 8])
def test_a_steady_rhythm_is_learned(loop_factory: LoopFactory, burst: int) -> None:
    """Where every wake-up finds the same number, a read too many is rare: after 1, 2, 4, 8, 16, 16 … wake-ups."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox) as receiver, opened(Inbox()) as sender:
            receiver.budget = burst
            for number in range(1, 101):
                for _ in range(burst):
                    sender.send(b"x", receiver.address)
                await inbox.until(lambda number=number: len(inbox.received) == number * burst)  # type: ignore[misc]
                await asyncio.sleep(0)
            # In vain after 1, 2, 4, 8, 16, 16, 16, 16 used-up wake-ups, each followed by the one that runs empty.
            assert (receiver.wakeups, receiver.empty_reads) == (100, 8)

    run(loop_factory, main())


@on_both_loops
def test_data_arrives_after_three_icmp_errors(loop_factory: LoopFactory) -> None:
    """Each refusal names its destination; uvloop would stop the reader at the first, asyncio spin on the queue."""

    async def main() -> None:
        inbox = Inbox()
        dead = [closed_port() for _ in range(3)]
        with opened(inbox) as sock, opened(Inbox()) as other:
            for number, address in enumerate(dead, 1):
                assert sock.send(b"anybody?", address) == 0
                await inbox.until(lambda number=number: len(inbox.errors) == number)  # type: ignore[misc]
            assert inbox.errors == [(address, errno.ECONNREFUSED) for address in dead]
            wakeups = sock.wakeups
            for number in range(1, 4):
                other.send(b"here", sock.address)
                await inbox.until(lambda number=number: len(inbox.received) == number)  # type: ignore[misc]
            assert sock.wakeups - wakeups <= 6
            assert sock.errors == 3

    run(loop_factory, main())


@on_both_loops
def test_an_error_about_one_peer_does_not_cost_another_its_datagram(loop_factory: LoopFactory) -> None:
    """Linux reports a pending ICMP error on the next send, whoever that is for; that send is tried again."""

    async def main() -> None:
        inbox, outbox = Inbox(), Inbox()
        dead = closed_port()
        with opened(outbox) as sock, opened(inbox) as other:
            for number in range(20):
                assert sock.send(b"to nobody", dead) == 0
                assert sock.send(b"to the living", other.address) == 0
                await inbox.until(lambda number=number: len(inbox.received) > number)  # type: ignore[misc]
            await outbox.until(lambda: len(outbox.errors) == 20)
            assert set(outbox.errors) == {(dead, errno.ECONNREFUSED)}
            other.send(b"back", sock.address)
            await outbox.until(lambda: bool(outbox.received))

    run(loop_factory, main())


@on_both_loops
def test_many_errors_at_once_are_all_told_and_do_not_spin(loop_factory: LoopFactory) -> None:
    """More errors than one wake-up takes (32), with data in between; afterwards the loop is quiet."""

    async def main() -> None:
        inbox = Inbox()
        dead = closed_port()
        with opened(inbox, ANY_PORT) as sock, opened(Inbox()) as other:
            for _ in range(100):
                sock.send(b"anybody?", dead)
                other.send(b"yes", sock.address)
            await inbox.until(lambda: len(inbox.errors) == 100 and len(inbox.received) == 100)
            for _ in range(10):
                await asyncio.sleep(0)
            quiet = sock.wakeups
            for _ in range(50):
                await asyncio.sleep(0)
            assert sock.wakeups == quiet
            other.send(b"after", sock.address)
            await inbox.until(lambda: len(inbox.received) == 101)

    run(loop_factory, main())


@on_both_loops
def test_ipv6_errors_name_their_destination(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = Inbox()
        with plain(socket.AF_INET6, "::1") as probe:
            dead = TransportAddress(*probe.getsockname()[:2])
        with opened(inbox, ANY_PORT_V6) as sock:
            sock.send(b"anybody?", dead)
            await inbox.until(lambda: bool(inbox.errors))
            assert inbox.errors == [(dead, errno.ECONNREFUSED)]

    run(loop_factory, main())


class ClosingInbox(Inbox):
    """Closes the socket at the first thing it hears."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        super().datagram_received(socket, data, source)
        socket.close()

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        super().error_received(socket, destination, errno)
        socket.close()


@on_both_loops
def test_closing_in_the_callback_ends_the_drain(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = ClosingInbox()
        with opened(inbox) as receiver, opened(Inbox()) as sender:
            receiver.budget = MAX_BUDGET
            for _ in range(10):
                sender.send(b"x", receiver.address)
            await inbox.until(lambda: bool(inbox.received))
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(inbox.received) == 1
            assert receiver.send(b"x", sender.address) == errno.EBADF

    run(loop_factory, main())


@on_both_loops
def test_closing_in_the_error_callback_ends_the_drain(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = ClosingInbox()
        dead = closed_port()
        with opened(inbox) as sock:
            for _ in range(5):
                sock.send(b"x", dead)
            await inbox.until(lambda: bool(inbox.errors))
            for _ in range(10):
                await asyncio.sleep(0)
            assert inbox.errors == [(dead, errno.ECONNREFUSED)]

    run(loop_factory, main())


class RaisingInbox(Inbox):
    """A receiver with a bug, of the kinds that the socket itself must not mistake for its own."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        super().datagram_received(socket, data, source)
        raise self.kind


@on_both_loops
@pytest.mark.parametrize("kind", [OSError, asyncio.CancelledError])
def test_a_receivers_bug_reaches_the_loops_handler_and_costs_no_datagram(
    loop_factory: LoopFactory, kind: type[BaseException]
) -> None:
    async def main() -> None:
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        inbox = RaisingInbox(kind)
        with opened(inbox) as receiver, opened(Inbox()) as sender:
            assert sender.send_many([b"x"] * 5, receiver.address) == (5, 0)
            await inbox.until(lambda: len(inbox.received) == 5)
        assert [type(error) for error in reported] == [kind] * 5

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("ttl", [1, 7, 255])
def test_a_ttl_is_for_one_datagram(loop_factory: LoopFactory, ttl: int) -> None:
    async def main() -> list[int]:
        with plain() as peer, opened(Inbox()) as sock:
            peer.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
            assert sock.send(b"with", peer.getsockname(), ttl) == 0
            assert sock.send(b"without", peer.getsockname()) == 0
            return [struct.unpack("=i", peer.recvmsg(16, 64)[1][0][2])[0] for _ in range(2)]

    assert run(loop_factory, main()) == [ttl, 64]


@on_both_loops
def test_hop_limit_and_traffic_class_of_ipv6(loop_factory: LoopFactory) -> None:
    """RFC 8445, 7.2.3: checks carry the DSCP of the data; it is the upper six bits of the traffic class."""

    async def main() -> dict[int, int]:
        with plain(socket.AF_INET6, "::1") as peer, opened(Inbox(), ANY_PORT_V6, SocketOptions(dscp=46)) as sock:
            peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            assert sock.send(b"x", peer.getsockname()[:2], 3) == 0
            return {kind: struct.unpack("=i", data)[0] for _, kind, data in peer.recvmsg(16, 64)[1]}

    assert run(loop_factory, main()) == {socket.IPV6_HOPLIMIT: 3, socket.IPV6_TCLASS: 46 << 2}


@on_both_loops
def test_dscp_of_ipv4(loop_factory: LoopFactory) -> None:
    async def main() -> int:
        with plain() as peer, opened(Inbox(), options=SocketOptions(dscp=46)) as sock:
            peer.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
            sock.send(b"x", peer.getsockname())
            return peer.recvmsg(16, 64)[1][0][2][0]

    assert run(loop_factory, main()) == 46 << 2


@pytest.mark.parametrize("dscp", [-1, 64])
def test_a_dscp_out_of_range_is_refused(dscp: int) -> None:
    async def main() -> None:
        with (
            pytest.raises(ValueError, match=f"DSCP {dscp} is not in 0 … 63"),
            opened(Inbox(), options=SocketOptions(dscp=dscp)),
        ):
            pass

    run(asyncio.new_event_loop, main())


@on_both_loops
def test_a_full_socket_says_eagain_whatever_the_kernel_calls_it(loop_factory: LoopFactory) -> None:
    """65,527 bytes over IPv6 are two fragments, the second finds a small send buffer full: ENOBUFS, and all are lost.

    (Loopback takes a datagram off the sender at once, so EAGAIN itself is tested where a link holds them up:
    tests/interop/test_multihome.py.)
    """

    async def main() -> None:
        inbox = Inbox()
        small = SocketOptions(send_buffer=4608)
        with opened(inbox, ANY_PORT_V6) as receiver, opened(Inbox(), ANY_PORT_V6, small) as sender:
            assert sender.send(bytes(65_527), receiver.address) == errno.EAGAIN
            assert sender.send(b"room for this", receiver.address) == 0
            await inbox.until(lambda: bool(inbox.received))
            assert inbox.received == [(b"room for this", sender.address)]
        with opened(inbox, ANY_PORT_V6) as receiver, opened(Inbox(), ANY_PORT_V6) as sender:
            assert sender.send(bytes(65_527), receiver.address) == 0
            await inbox.until(lambda: len(inbox.received) == 2)

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("local", [ANY_PORT, ANY_PORT_V6], ids=["IPv4", "IPv6"])
def test_many_arrive_one_by_one_in_order_and_whole(loop_factory: LoopFactory, local: TransportAddress) -> None:
    async def main() -> None:
        inbox = Inbox()
        with opened(inbox, local) as receiver, opened(Inbox(), local) as sender:
            sent = [os.urandom(size) for size in (*[1200] * 100, 700, 700, 0, 1, 9000, 9000, *[3] * 70, 2)]
            assert sender.send_many(sent, receiver.address) == (len(sent), 0)
            await inbox.until(lambda: len(inbox.received) == len(sent))
            assert [data for data, _ in inbox.received] == sent
            assert {source for _, source in inbox.received} == {sender.address}
            assert sender.send_many([], receiver.address) == (0, 0)

    run(loop_factory, main())


@on_both_loops
def test_a_train_costs_one_read_and_others_get_their_turn(loop_factory: LoopFactory) -> None:
    """54 datagrams of 1,200 bytes are one train. A wake-up hands over 64 datagrams at most, and the train it is at."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox, options=SocketOptions(receive_buffer=1 << 20)) as receiver, opened(Inbox()) as sender:
            receiver.budget = MAX_BUDGET
            sender.send_many([bytes(1200)] * 54 * 4, receiver.address)
            for wakeups, count in ((1, 108), (2, 216)):
                await inbox.until(lambda: len(inbox.received) >= 1)
                assert (receiver.wakeups, len(inbox.received)) == (wakeups, count)
                await asyncio.sleep(0)
            assert receiver.empty_reads == 0

    run(loop_factory, main())


@on_both_loops
def test_a_plain_sockets_datagrams_and_a_train_to_a_plain_socket(loop_factory: LoopFactory) -> None:
    """The other side need not know what a train is: on the wire there is none."""

    async def main() -> None:
        inbox = Inbox()
        with opened(inbox) as ours, plain() as other:
            sent = [b"%04d" % number for number in range(20)]
            for data in sent:
                other.sendto(data, ours.address)
            await inbox.until(lambda: len(inbox.received) == 20)
            assert [data for data, _ in inbox.received] == sent
            assert ours.send_many(sent, TransportAddress(*other.getsockname())) == (20, 0)
            assert [other.recvfrom(2048) for _ in sent] == [(data, ours.address) for data in sent]

    run(loop_factory, main())


class StubbornSocket(socket.socket):
    """Refuses trains as some devices and kernels do."""

    refusal = 0
    refused = 0

    def sendmsg(self, *arguments: Any) -> int:
        self.refused += 1
        raise OSError(self.refusal, os.strerror(self.refusal))


@pytest.mark.parametrize(
    ("refusal", "limit", "attempts"),
    [(errno.EIO, 0, 2), (errno.EINVAL, 99, 2), (errno.EMSGSIZE, 99, 2), (errno.ENOBUFS, MAX_SEGMENT, 2)],
)
async def test_where_trains_are_refused_datagrams_go_one_by_one(refusal: int, limit: int, attempts: int) -> None:
    """And a refusal that is about the size or the device is believed: the next ones try no train."""
    inbox = Inbox()
    sock = StubbornSocket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(ANY_PORT)
    sock.refusal = refusal
    sender = UdpSocket(sock, Inbox(), asyncio.get_running_loop(), 0)
    with opened(inbox) as receiver:
        assert sender.max_segment == MAX_SEGMENT
        for _ in range(2):
            assert sender.send_many([bytes(100)] * 10, receiver.address) == (10, 0)
        await inbox.until(lambda: len(inbox.received) == 20)
        assert (sender.max_segment, sock.refused) == (limit, attempts)
    sender.close()


async def test_a_refused_size_is_tried_again_in_the_end() -> None:
    """The path may be another one by then; or the refusal was that of a forged ICMP error."""
    sock = StubbornSocket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(ANY_PORT)
    sock.refusal = errno.EMSGSIZE
    sender = UdpSocket(sock, Inbox(), asyncio.get_running_loop(), 0)
    with plain() as peer:
        for _ in range(1 + RETRY_TRAINS_AFTER):
            assert sender.send_many([b"xy"] * 2, peer.getsockname()) == (2, 0)
    # Two attempts the first time, and two when it is tried again, which teaches the same.
    assert (sock.refused, sender.max_segment) == (4, 1)
    sender.close()


class FormerKernelSocket(socket.socket):
    """Has no UDP_GRO, as Linux before 5.0."""

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if (level, option) == (SOL_UDP, UDP_GRO):
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        super().setsockopt(level, option, *value)

    def sendmsg(self, *arguments: Any) -> int:
        raise AssertionError("a kernel that knows no UDP_SEGMENT would send one giant datagram")


async def test_an_old_kernel_gets_no_trains() -> None:
    inbox = Inbox()
    sock = FormerKernelSocket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(ANY_PORT)
    sender = UdpSocket(sock, Inbox(), asyncio.get_running_loop(), 0)
    with opened(inbox) as receiver:
        assert sender.send_many([b"x"] * 10, receiver.address) == (10, 0)
        await inbox.until(lambda: len(inbox.received) == 10)
    sender.close()


@on_both_loops
def test_many_survive_an_icmp_error_about_an_earlier_one(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox, news = Inbox(), Inbox()
        with opened(inbox) as receiver, opened(news) as sender:
            nobody = closed_port()
            assert sender.send(b"x", nobody) == 0
            # The kernel reports the error on the next call, which is a train to somebody else.
            assert sender.send_many([b"y"] * 10, receiver.address) == (10, 0)
            assert sender.max_segment == MAX_SEGMENT
            await inbox.until(lambda: len(inbox.received) == 10)
            await news.until(lambda: bool(news.errors))
            assert news.errors == [(nobody, errno.ECONNREFUSED)]

    run(loop_factory, main())


async def test_many_on_a_closed_socket_and_to_the_other_ip_version_are_an_errno() -> None:
    with opened(Inbox()) as sock:
        assert sock.send_many([b"x", b"x"], TransportAddress("::1", 9)) == (0, errno.EAFNOSUPPORT)
        assert sock.max_segment == MAX_SEGMENT
        sock.close()
        assert sock.send_many([b"x", b"x"], TransportAddress("127.0.0.1", 9)) == (0, errno.EBADF)


@on_both_loops
def test_a_destination_of_the_other_ip_version_is_an_errno(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with opened(Inbox()) as four, opened(Inbox(), ANY_PORT_V6) as six:
            assert four.send(b"x", six.address) == errno.EAFNOSUPPORT
            # An IPv6 socket here is IPv6 only (IPV6_V6ONLY): no IPv4 in disguise.
            assert six.send(b"x", four.address) == errno.EAFNOSUPPORT

    run(loop_factory, main())


@on_both_loops
def test_a_port_can_be_shared_by_both_ip_versions(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        any_ipv4 = TransportAddress("0.0.0.0", 0)
        with opened(Inbox(), any_ipv4) as four, opened(Inbox(), TransportAddress("::", four.address.port)) as six:
            assert six.address == ("::", four.address.port)

    run(loop_factory, main())


@on_both_loops
def test_a_taken_port_and_a_foreign_address_raise(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with opened(Inbox()) as sock:
            for local, number in ((sock.address, errno.EADDRINUSE), ("192.0.2.1", errno.EADDRNOTAVAIL)):
                address = local if isinstance(local, TransportAddress) else TransportAddress(local, 0)
                with pytest.raises(OSError) as caught, opened(Inbox(), address):
                    pass
                assert caught.value.errno == number

    run(loop_factory, main())


@on_both_loops
def test_an_interface_is_ignored_on_loopback(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = Inbox()
        with opened(inbox, options=SocketOptions(interface="no-such-device")) as sock:
            sock.send(b"to myself", sock.address)
            await inbox.until(lambda: bool(inbox.received))

    run(loop_factory, main())


@on_both_loops
def test_an_interface_that_does_not_exist_raises(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with (
            pytest.raises(OSError) as caught,
            opened(Inbox(), TransportAddress("0.0.0.0", 0), SocketOptions(interface="no-such-device")),
        ):
            pass
        assert caught.value.errno == errno.ENODEV

    run(loop_factory, main())


@on_both_loops
def test_close_is_idempotent_and_silent(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = Inbox()
        with opened(inbox) as receiver, opened(Inbox()) as sender:
            sender.send(b"x", receiver.address)
            receiver.close()
            receiver.close()
            for _ in range(10):
                await asyncio.sleep(0)
            assert inbox.received == []
            assert receiver.send(b"x", sender.address) == errno.EBADF

    run(loop_factory, main())


def test_a_socket_may_outlive_its_loop() -> None:
    """A program that forgot to close gets no second error from closing late."""
    loop = asyncio.new_event_loop()
    sock = open_socket(ANY_PORT, Inbox(), SocketOptions(), loop)
    loop.close()
    sock.close()


@on_both_loops
def test_two_loops_in_two_threads_do_not_share_a_buffer(loop_factory: LoopFactory) -> None:
    """The read runs without the interpreter's lock: with one buffer for both, one would hear the other's datagrams."""

    async def flood(mark: bytes) -> set[bytes]:
        inbox = Inbox()
        with opened(inbox, options=SocketOptions(receive_buffer=1 << 20)) as receiver, opened(Inbox()) as sender:
            for round_ in range(1, 51):
                for _ in range(20):
                    sender.send(mark * 1200, receiver.address)
                await inbox.until(lambda round_=round_: len(inbox.received) == round_ * 20)  # type: ignore[misc]
        return {data for data, _ in inbox.received}

    async def main() -> None:
        there = asyncio.to_thread(run, loop_factory, flood(b"b"))
        other, own = await asyncio.gather(there, flood(b"a"))
        assert (own, other) == ({b"a" * 1200}, {b"b" * 1200})

    run(loop_factory, main())
