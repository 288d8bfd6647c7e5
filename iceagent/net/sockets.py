"""How do datagrams get in and out of this machine?

A UDP socket on ``loop.add_reader`` with a drain loop: asyncio's own datagram transport allocates 256 KiB per datagram
and reads one per turn of the loop.

Reading. A wake-up reads up to ``budget`` datagrams. The budget starts at 1, doubles after a wake-up that used it up, to
64, and falls to what was read when the socket ran empty: the exception of a read too many costs as much as a datagram.
Where doubling found nothing more to read (one datagram at a time, or bursts of one size), it is tried again only after
2, 4, 8 and then 16 used-up wake-ups. One read may bring a whole train (``trains.py``).

Sending many. ``send_many`` makes trains. Where the kernel refuses one (its datagrams do not fit the path's MTU; the
device has no checksum offload, which some kernels ask for; the buffer has no room for all of it), its datagrams are
sent one by one, and that size is not tried again for a while if this was the cure.

Errors. IP_RECVERR makes the kernel queue ICMP errors together with the destination they are about. As long as one is
queued, poll reports an error: asyncio's reader then spins, and uvloop's stops for good after the first one. So the
queue is drained whenever a read finds an error or nothing, and the reader is registered anew. The kernel also reports
an error on the next call of the socket, whoever that is for: a send that fails is therefore tried a second time.

Scope ids of link-local IPv6 addresses stay in here: they are taken off every source and put back on every destination.

Several homes. Linux routes by destination: a socket on the second interface's address still leaves through the first
(weak host model). ``SocketOptions.interface`` binds the socket to the device, which needs no privilege from Linux 5.7
on; ``SocketOptions.egress_index`` chooses the outgoing interface alone where the kernel can (:func:`send_through`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.host import DatagramReceiver, DatagramSocket, SocketOptions, send_each
from iceagent.net.trains import (
    MAX_SEGMENT,
    SOL_UDP,
    UDP_GRO,
    cut,
    segment_size_option,
    trains,
)

__all__ = ["UdpSocket", "open_socket"]

# A UDP datagram has 65,507 bytes at most over IPv4, 65,527 over IPv6; a train has no more.
BUFFER_SIZE = 65_536
# Two ints with their control message headers: the size of a train's datagrams, and the TTL.
CONTROL_SIZE = 2 * socket.CMSG_SPACE(4)
# More would hold up the other sockets of the loop. The read that reaches it may bring a whole train: 63 + 128 at worst.
MAX_BUDGET = 64
# Used-up wake-ups before the budget is doubled once more, where that was in vain before.
MAX_PATIENCE = 16
# Calls of ``send_many`` after which a size that was refused is tried again: the path may be another one, or its MTU; or
# the refusal was that of an ICMP error that somebody forged.
RETRY_TRAINS_AFTER = 1_000
# ICMP errors read per wake-up; what is left wakes the reader again.
MAX_ERRORS_PER_WAKEUP = 32
# sock_extended_err (16 bytes) and the offender's address (28 at most), each with a control message header.
ERROR_CONTROL_SIZE = 256

# <linux/in.h>, <linux/in6.h>, <linux/errqueue.h>, <asm/socket.h>; not in Python's socket module.
IP_RECVERR = 11
IP_RECVTTL = 12
IPV6_RECVERR = 25
TTL_MESSAGES = frozenset({(socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)})
IP_UNICAST_IF = 50
SO_BINDTOIFINDEX = 62
MSG_ERRQUEUE = 0x2000
SO_EE_ORIGIN_LOCAL = 1
SO_EE_ORIGIN_ICMP = 2
SO_EE_ORIGIN_ICMP6 = 3
EXTENDED_ERROR = struct.Struct("=IBBBBII")

# What the kernel says when a datagram did not fit into a queue; with IP_RECVERR also the device's queue (ENOBUFS).
FULL = frozenset({errno.EAGAIN, errno.ENOBUFS})
# What it says to a train that it would take datagram by datagram.
NO_TRAIN = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE})


def open_socket(
    local: TransportAddress,
    receiver: DatagramReceiver,
    options: SocketOptions,
    loop: asyncio.AbstractEventLoop,
) -> UdpSocket:
    """Open a UDP socket, bind it and start to read it.

    Args:
        local: what to bind to; port 0 takes a free one.
        receiver: who is told what arrives.
        options: see :class:`SocketOptions`.
        loop: the loop that reads it. It is this loop's from now on: nothing here is thread-safe.

    Raises:
        OSError: the address cannot be bound, or an option is refused: SO_MARK needs CAP_NET_ADMIN, an interface on
            IPv6 before Linux 5.7 CAP_NET_RAW; or there is no such interface.
        ValueError: ``options.dscp`` is not in 0 … 63.
    """
    family = socket.AF_INET6 if local.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_options(sock, family, options)
        if options.interface is not None and not ip_address(local.host).is_loopback:
            bind_to_interface(sock, family, options.interface)
        elif options.egress_index:
            send_through(sock, family, options.egress_index)
        sock.bind(sockaddr(local, options.scope_id))
        return UdpSocket(sock, receiver, loop, options.scope_id, tells_ttl=options.tells_ttl)
    except BaseException:
        sock.close()
        raise


def set_options(sock: socket.socket, family: int, options: SocketOptions) -> None:
    """Everything that is set before the socket is bound, but the interface."""
    if not 0 <= options.dscp <= 63:
        raise ValueError(f"DSCP {options.dscp} is not in 0 … 63")
    traffic_class = options.dscp << 2
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        if options.tells_ttl:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        if traffic_class:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        if options.tells_ttl:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        if traffic_class:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
    if options.is_shared:
        # Linux wants every socket of the address to have one of them, whichever the first had.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option, value in (
        (socket.SO_MARK, options.mark),
        (socket.SO_RCVBUF, options.receive_buffer),
        (socket.SO_SNDBUF, options.send_buffer),
    ):
        if value is not None:
            sock.setsockopt(socket.SOL_SOCKET, option, value)


def bind_to_interface(sock: socket.socket, family: int, interface: str) -> None:
    """Make everything this socket sends leave through ``interface``.

    Raises:
        OSError: there is no such interface.
        PermissionError: IPv6 before Linux 5.7, without CAP_NET_RAW.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except PermissionError:
        if family == socket.AF_INET6:
            raise
        send_through(sock, family, socket.if_nametoindex(interface))


def send_through(sock: socket.socket, family: int, index: int) -> None:
    """Make what this socket sends leave through the interface ``index``, and where possible restrict nothing else.

    IPv4: IP_UNICAST_IF. IPv6: IPV6_UNICAST_IF does nothing for a socket that is bound to an address (the route by
    destination wins), so the socket is bound to the device; before Linux 5.7 that needs CAP_NET_RAW, and where it is
    refused the routes decide, which is right on every host with one uplink.

    Raises:
        OSError: there is no such interface.
    """
    if family == socket.AF_INET:
        # This option takes the index in network byte order.
        sock.setsockopt(socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", index))
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, index)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOPROTOOPT):
            raise


def sockaddr(address: tuple[str, int], scope_id: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What Python's socket calls take for ``address``; ``scope_id`` is used where the address is link-local."""
    host, port = address
    if scope_id and ":" in host and ip_address(host).is_link_local:
        return host, port, 0, scope_id
    return host, port


class UdpSocket:
    """A bound UDP socket on an event loop; implements :class:`iceagent.net.host.TtlSocket`.

    Attributes:
        budget: reads the next wake-up may do, 1 … 64.
        max_segment: datagrams up to this size are sent as trains; 0: none (Linux before 5.0, or the device refuses).
        received_ttl: of what the receiver is being told, where that was asked for; else 0.
        wakeups: how often the loop called.
        empty_reads: reads that found nothing.
        errors: ICMP errors taken from the kernel.
    """

    __slots__ = (
        "_address",
        "_fileno",
        "_is_closed",
        "_is_drain_due",
        "_is_ipv6",
        "_is_trial",
        "_kernel_max_segment",
        "_loop",
        "_patience",
        "_receiver",
        "_recvmsg",
        "_scope_id",
        "_sendto",
        "_socket",
        "_take_icmp",
        "_take_train",
        "_tells_ttl",
        "_trains_again_in",
        "_ttl",
        "_used_up",
        "budget",
        "empty_reads",
        "errors",
        "max_segment",
        "received_ttl",
        "wakeups",
    )

    def __init__(
        self,
        sock: socket.socket,
        receiver: DatagramReceiver,
        loop: asyncio.AbstractEventLoop,
        scope_id: int,
        *,
        tells_ttl: bool = False,
    ) -> None:
        host, port = sock.getsockname()[:2]
        self._address = TransportAddress(canonical_host(host), port)
        self._socket = sock
        self._fileno = sock.fileno()
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._scope_id = scope_id
        self._receiver = receiver
        # A receiver that can do with a train what it would do with each of its datagrams.
        self._take_train: Callable[[DatagramSocket, Sequence[bytes], tuple[str, int]], None] | None = getattr(
            receiver, "train_received", None
        )
        # One that passes on what an ICMP message said.
        self._take_icmp: Callable[[DatagramSocket, TransportAddress, int, int, int], None] | None = getattr(
            receiver, "icmp_received", None
        )
        self._loop = loop
        self._tells_ttl = tells_ttl
        self._ttl = 0  # What was set; 0: the system's.
        self.received_ttl = 0
        # Looked up once: these two are called for every datagram.
        self._recvmsg = sock.recvmsg
        self._sendto = sock.sendto
        self._is_closed = False
        self._is_drain_due = False
        self._is_trial = False  # The budget was doubled for the next wake-up.
        self._patience = 1
        self._used_up = 0
        self.budget = 1
        self.wakeups = 0
        self.empty_reads = 0
        self.errors = 0
        self.max_segment = self._kernel_max_segment = _take_trains(sock)
        self._trains_again_in = 0  # Calls of send_many until what was learned about trains is forgotten.
        loop.add_reader(self._fileno, self._on_readable)

    @property
    def address(self) -> TransportAddress:
        """What it is bound to."""
        return self._address

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        """Send at once, or not at all.

        Args:
            data: the payload.
            destination: an IP address (no name) and a port.
            ttl: IPv4 TTL or IPv6 hop limit of this one datagram, 1 … 255; ``None``: the system's.

        Returns:
            0 when the kernel took it, else the errno: ``EAGAIN`` when the socket or its device is full, ``EBADF`` when
            the socket is closed.
        """
        target = sockaddr(destination, self._scope_id) if self._scope_id else destination
        try:
            if ttl is None:
                self._sendto(data, target)
            else:
                self._send_with_ttl(data, target, ttl)
        except OSError as error:
            return self._send_again(data, target, ttl, error)
        return 0

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        """Send these in order, at once, as trains.

        Returns:
            How many the kernel took, and what :meth:`send` returned for the next one; 0: it took all.
        """
        target = sockaddr(destination, self._scope_id) if self._scope_id else destination
        if self._trains_again_in:
            self._trains_again_in -= 1
            if not self._trains_again_in:
                self.max_segment = self._kernel_max_segment
        taken = 0
        for train in trains(datagrams, self.max_segment):
            refusal = self._send_train(train, target)
            if refusal in NO_TRAIN:
                # Or an ICMP error about an earlier, longer datagram, which is over now.
                refusal = self._send_train(train, target)
            if not refusal:
                taken += len(train)
                continue
            count, number = send_each(self, train, destination)
            taken += count
            if number:
                return taken, number
            if refusal in NO_TRAIN:
                self.max_segment = 0 if refusal == errno.EIO else len(train[0]) - 1
                self._trains_again_in = RETRY_TRAINS_AFTER
        return taken, 0

    def set_ttl(self, ttl: int) -> None:
        """Send with this IPv4 TTL or IPv6 hop limit from now on, 1 … 255."""
        if ttl == self._ttl or self._is_closed:
            return
        if self._is_ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        self._ttl = ttl

    def close(self) -> None:
        """Close; idempotent. The receiver hears nothing afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fileno)
        self._socket.close()

    def _send_with_ttl(self, data: bytes, target: tuple[str, int] | tuple[str, int, int, int], ttl: int) -> None:
        if self._is_ipv6:
            level, option = socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT
        else:
            level, option = socket.IPPROTO_IP, socket.IP_TTL
        self._socket.sendmsg([data], [(level, option, struct.pack("=i", ttl))], 0, target)

    def _send_train(self, train: Sequence[bytes], target: tuple[str, int] | tuple[str, int, int, int]) -> int:
        """All of it or nothing; returns 0 or an errno, which may also be that of an ICMP error."""
        if len(train) == 1:
            return errno.EAGAIN
        try:
            self._socket.sendmsg(train, (segment_size_option(len(train[0])),), 0, target)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _send_again(
        self, data: bytes, target: tuple[str, int] | tuple[str, int, int, int], ttl: int | None, error: OSError
    ) -> int:
        """The second try: the first may have failed because of an ICMP error about an earlier datagram."""
        if self._is_closed:
            return errno.EBADF
        if error.errno in FULL:
            return errno.EAGAIN
        self._drain_errors_soon()
        try:
            if ttl is None:
                self._sendto(data, target)
            else:
                self._send_with_ttl(data, target, ttl)
        except socket.gaierror:
            # The destination is an address of the other IP version.
            return errno.EAFNOSUPPORT
        except OSError as second:
            return errno.EAGAIN if second.errno in FULL else second.errno or errno.EIO
        return 0

    def _on_readable(self) -> None:
        self.wakeups += 1
        recvmsg = self._recvmsg
        deliver = self._receiver.datagram_received
        is_ipv6 = self._is_ipv6
        budget = self.budget
        delivered = 0
        for count in range(budget):
            try:
                data, ancillary, _, source = recvmsg(BUFFER_SIZE, CONTROL_SIZE)
            except BlockingIOError:
                self.empty_reads += 1
                self._shrink(count)
                return
            except OSError:
                self._drain_errors()
                return
            if self._tells_ttl:
                self.received_ttl = _ttl_of(ancillary)
            if is_ipv6:
                source = _without_scope(source)
            datagrams = cut(data, ancillary) if ancillary else (data,)
            if len(datagrams) > 1 and self._take_train is not None:
                self._deliver_train(datagrams, source)
                if self._is_closed:
                    return
                delivered += len(datagrams)
                if delivered >= MAX_BUDGET:
                    break
                continue
            for datagram in datagrams:
                try:
                    deliver(self, datagram, source)
                except (Exception, asyncio.CancelledError) as error:
                    # A receiver's bug must not cost the datagrams behind this one.
                    self._report(error)
                if self._is_closed:
                    return
            delivered += len(datagrams)
            if delivered >= MAX_BUDGET:
                break
        self._grow()

    def _deliver_train(self, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        assert self._take_train is not None
        try:
            self._take_train(self, datagrams, source)
        except (Exception, asyncio.CancelledError) as error:  # As above.
            self._report(error)

    def _grow(self) -> None:
        """The wake-up used its budget up."""
        if self._is_trial:
            self._is_trial = False
            self._patience = 1
        self._used_up += 1
        if self._used_up >= self._patience and self.budget < MAX_BUDGET:
            self._used_up = 0
            self._is_trial = True
            self.budget *= 2

    def _shrink(self, count: int) -> None:
        """The socket ran empty after ``count`` datagrams."""
        if self._is_trial:
            self._is_trial = False
            self._patience = min(self._patience * 2, MAX_PATIENCE) if count * 2 <= self.budget else 1
        self._used_up = 0
        self.budget = count or 1
        if not count:
            self._drain_errors()

    def _drain_errors_soon(self) -> None:
        if not self._is_drain_due:
            self._is_drain_due = True
            self._loop.call_soon(self._drain_due_errors)

    def _drain_due_errors(self) -> None:
        self._is_drain_due = False
        if not self._is_closed:
            self._drain_errors()

    def _drain_errors(self) -> None:
        """Take ICMP errors off the kernel's queue, and register the reader anew (see the module's text)."""
        for _ in range(MAX_ERRORS_PER_WAKEUP):
            try:
                _, ancillary, _, name = self._socket.recvmsg(1, ERROR_CONTROL_SIZE, MSG_ERRQUEUE)
            except OSError:
                break
            found = _error_of(ancillary)
            if found is None:
                continue
            self.errors += 1
            number, is_icmp, kind, code, info = found
            destination = _destination_of(name)
            try:
                self._receiver.error_received(self, destination, number)
                if is_icmp and destination is not None and self._take_icmp is not None:
                    self._take_icmp(self, destination, kind, code, info)
            except (Exception, asyncio.CancelledError) as error:  # As above.
                self._report(error)
            if self._is_closed:
                return
        self._loop.remove_reader(self._fileno)
        self._loop.add_reader(self._fileno, self._on_readable)

    def _report(self, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": f"The receiver of UDP socket {self._address} raised", "exception": error}
        )


def _take_trains(sock: socket.socket) -> int:
    """Let the kernel hand over trains; returns the longest datagram that may be sent as part of one, 0: none."""
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        # Some systems that look like Linux accept an option that they do not know, and ignore it.
        is_known = sock.getsockopt(SOL_UDP, UDP_GRO) == 1
    except OSError:
        return 0
    return MAX_SEGMENT if is_known else 0


def _without_scope(source: tuple[str, int, int, int]) -> tuple[str, int]:
    host = source[0]
    # The C library writes ::192.0.2.1 where ``ipaddress`` writes ::c000:201.
    return (canonical_host(host) if "." in host else host), source[1]


def _ttl_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The TTL or hop limit of what was read; 0: the kernel did not say."""
    for level, kind, data in ancillary:
        if (level, kind) in TTL_MESSAGES:
            return int.from_bytes(data, sys.byteorder)
    return 0


def _error_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, bool, int, int, int] | None:
    """A queued error: its errno, whether it was ICMP, and type, code and the kernel's further number (the MTU, where
    that is what it is about); ``None`` for one of our own making, which the send has told already.
    """
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
            number, origin, icmp_type, code, _, info, _ = EXTENDED_ERROR.unpack_from(data)
            is_icmp = origin in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6)
            return None if origin == SO_EE_ORIGIN_LOCAL else (number, is_icmp, icmp_type, code, info)
    return None


def _destination_of(name: object) -> TransportAddress | None:
    if isinstance(name, tuple) and len(name) >= 2:
        return TransportAddress(canonical_host(name[0]), name[1])
    return None
