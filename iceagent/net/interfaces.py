"""What interfaces and addresses has this machine, and when does that change?

An :class:`InterfaceTable` reads the kernel's links and addresses over netlink (rtnetlink(7)). While somebody is
subscribed it keeps its last reading warm: a second netlink socket hears that something changed, a burst of changes is
awaited for 50 ms, and the whole table is read again. What the notifications say is not looked at, so a lost one
(ENOBUFS) is as good as any.

pyroute2 takes the messages apart. Importing it costs 100 ms and more, a table of 31 interfaces 5 to 60 ms: both happen
in one worker thread of the process, not on the loop. The sockets are opened by the caller's thread, so that they belong
to its network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iceagent.net.address import canonical_host
from iceagent.net.host import Interface, InterfaceAddress, Subscription
from iceagent.net.links import BRIDGING_KINDS, Link, address_flags, kind_of, uplinks

__all__ = [
    "InterfaceTable",
    "Link",
    "address_flags",
    "kind_of",
    "open_netlink",
    "preload",
    "read_interfaces",
    "uplinks",
]

Callback = Callable[[Sequence[Interface]], None]

# How long a burst of changes is awaited before the table is read again.
DEBOUNCE_S = 0.05
# When a reading that failed is tried again.
RETRY_S = 5.0
# The kernel answers a dump at once; this is for a kernel that does not.
READ_TIMEOUT_S = 1.0
# A table that changed while it was dumped (NLM_F_DUMP_INTR) is dumped again, this often.
READ_ATTEMPTS = 3
# Messages taken apart (100 µs each) before the loop's thread is let in, which would else wait 5 ms for the interpreter.
MESSAGES_PER_TURN = 8
# Notifications taken per wake-up; what is left wakes the reader again.
MAX_NOTIFICATIONS_PER_WAKEUP = 64
# The kernel fills at most 32 KiB per message of a dump.
DUMP_BUFFER = 1 << 16

# <linux/netlink.h>, <linux/rtnetlink.h>
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 18, 20, 22, 24, 26
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
NLMSGHDR = struct.Struct("=IHHII")
DESTINATION_LENGTH_OFFSET = NLMSGHDR.size + 1  # rtm_dst_len, after rtm_family
# <linux/if.h>
IFF_UP = 0x1


def open_netlink(groups: int = 0) -> socket.socket:
    """A NETLINK_ROUTE socket in the calling thread's network namespace.

    Args:
        groups: RTMGRP_* to hear of.

    Raises:
        OSError: netlink is not allowed here (a seccomp filter).
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


def preload() -> None:
    """Start to import pyroute2 in the worker thread, so that the first reading finds it there. Returns at once."""
    _worker().submit(_pyroute2)


class InterfaceTable:
    """The interfaces of one network namespace; belongs to the running loop, not thread-safe.

    Args:
        open_netlink: opens a NETLINK_ROUTE socket bound to the given groups (:func:`open_netlink`).

    Attributes:
        readings: how often the kernel was asked.
    """

    def __init__(self, open_netlink: Callable[[int], socket.socket] = open_netlink) -> None:
        self._open_netlink = open_netlink
        self._callbacks: dict[object, Callback] = {}
        self._table: tuple[Interface, ...] | None = None
        self._is_stale = True
        self._reading: asyncio.Future[tuple[Interface, ...]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._notifications: socket.socket | None = None
        self._debounce: asyncio.TimerHandle | None = None
        self.readings = 0

    async def read(self) -> tuple[Interface, ...]:
        """The table as it is now: at once where it is kept warm and nothing changed.

        Raises:
            OSError: netlink is not allowed here.
        """
        self._on_notification()
        while self._table is None or self._is_stale or self._notifications is None:
            reading = self._start_reading()
            table = await asyncio.shield(reading)
            self._on_read(reading)  # Its callback may have to wait for the loop's next turn.
            if self._notifications is None:
                return table
        return self._table

    def subscribe(self, callback: Callback) -> Subscription:
        """Keep the table warm, and call ``callback`` with it whenever it changed.

        Raises:
            OSError: netlink is not allowed here.
        """
        if self._notifications is None:
            self._watch()
        key = object()
        self._callbacks[key] = callback
        return Subscription(functools.partial(self._unsubscribe, key))

    def close(self) -> None:
        """End all subscriptions; idempotent."""
        self._callbacks.clear()
        self._unwatch()

    def _unsubscribe(self, key: object) -> None:
        self._callbacks.pop(key, None)
        if not self._callbacks:
            self._unwatch()

    def _watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._notifications = self._open_netlink(RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
        self._notifications.setblocking(False)
        self._loop.add_reader(self._notifications.fileno(), self._on_notification)
        self._is_stale = True  # A reading under way began before we listened.
        self._start_reading()

    def _unwatch(self) -> None:
        self._table, self._is_stale = None, True
        if self._debounce is not None:
            self._debounce.cancel()
            self._debounce = None
        if self._notifications is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._notifications.fileno())
            self._notifications.close()
        self._notifications = self._loop = None

    def _on_notification(self) -> None:
        self._take_notifications()
        self._schedule(DEBOUNCE_S)

    def _take_notifications(self) -> None:
        """Note whether there are any. One byte of each is enough: the kernel throws the rest of it away."""
        sock, loop = self._notifications, self._loop
        if sock is None or loop is None:
            return
        for _ in range(MAX_NOTIFICATIONS_PER_WAKEUP):
            try:
                sock.recv(1)
            except BlockingIOError:
                return
            except OSError:
                # ENOBUFS: some were lost. uvloop stops a reader whose socket had an error, so register it anew.
                loop.remove_reader(sock.fileno())
                loop.add_reader(sock.fileno(), self._on_notification)
            self._is_stale = True

    def _schedule(self, delay: float) -> None:
        """Read the table again after ``delay`` seconds, if it needs it then."""
        if self._is_stale and self._debounce is None and self._loop is not None:
            self._debounce = self._loop.call_later(delay, self._on_quiet)

    def _on_quiet(self) -> None:
        self._debounce = None
        if self._is_stale:
            try:
                self._start_reading()
            except OSError:
                self._schedule(RETRY_S)

    def _start_reading(self) -> asyncio.Future[tuple[Interface, ...]]:
        """The reading under way, or a new one: what changes from now on makes the table stale again."""
        if self._reading is None:
            sock = self._open_netlink(0)
            self._is_stale = False
            self.readings += 1
            self._reading = asyncio.get_running_loop().run_in_executor(_worker(), _read_and_close, sock)
            self._reading.add_done_callback(self._on_read)
        return self._reading

    def _on_read(self, reading: asyncio.Future[tuple[Interface, ...]]) -> None:
        """Take a reading that is done; a second call does nothing."""
        if reading is not self._reading:
            return
        self._reading = None
        if reading.cancelled() or reading.exception() is not None:
            self._is_stale = True
            self._schedule(RETRY_S)
            return
        if self._notifications is not None:
            before, self._table = self._table, reading.result()
            if before is not None and before != self._table:
                self._tell(self._table)
        self._schedule(DEBOUNCE_S)

    def _tell(self, table: tuple[Interface, ...]) -> None:
        for callback in list(self._callbacks.values()):
            try:
                callback(table)
            except Exception as error:  # One subscriber's bug must not cost the others their news.
                context = {"message": "A watcher of the interfaces raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)


def read_interfaces(sock: socket.socket) -> tuple[Interface, ...]:
    """Ask the kernel for all interfaces, in its order. Blocks for milliseconds, at most 3 s; imports pyroute2.

    Args:
        sock: a NETLINK_ROUTE socket that no one else reads.

    Raises:
        OSError: the kernel refused or did not answer in time.
    """
    sock.settimeout(READ_TIMEOUT_S)
    links = [_link(message) for message in _messages(_dump(sock, RTM_GETLINK), RTM_NEWLINK)]
    addresses = _addresses(_messages(_dump(sock, RTM_GETADDR), RTM_NEWADDR))
    needs_routes = any(link.info_kind in BRIDGING_KINDS and not link.master for link in links)
    leading_out = uplinks(links, _default_routes(sock) if needs_routes else ())
    return tuple(
        Interface(
            name=link.name,
            index=link.index,
            kind=kind_of(link, link.index in leading_out),
            mtu=link.mtu,
            is_up=link.is_up,
            addresses=tuple(addresses.get(link.index, ())),
        )
        for link in links
    )


@functools.cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="iceagent-netlink")


@functools.cache
def _pyroute2() -> Any:
    """The class that takes netlink messages apart."""
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    return MarshalRtnl


def _read_and_close(sock: socket.socket) -> tuple[Interface, ...]:
    with contextlib.closing(sock):
        return read_interfaces(sock)


def _dump(sock: socket.socket, request: int) -> list[bytes]:
    """All messages that answer a dump request, each with its header."""
    messages: list[bytes] = []
    for sequence in range(READ_ATTEMPTS):
        # The body is a zeroed ifinfomsg, the longest of the three kinds: any family, any interface.
        sock.send(NLMSGHDR.pack(NLMSGHDR.size + 16, request, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0) + bytes(16))
        messages, is_whole = _answer(sock, sequence)
        if is_whole:
            break
    return messages


def _answer(sock: socket.socket, sequence: int) -> tuple[list[bytes], bool]:
    messages: list[bytes] = []
    is_whole = True
    while True:
        for message in _split(sock.recv(DUMP_BUFFER)):
            _, kind, flags, number, _ = NLMSGHDR.unpack_from(message)
            if number != sequence:
                continue
            is_whole = is_whole and not flags & NLM_F_DUMP_INTR
            if kind == NLMSG_DONE:
                return messages, is_whole
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", message, NLMSGHDR.size)
                raise OSError(-code, "the kernel refused to list its interfaces")
            messages.append(message)


def _split(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + NLMSGHDR.size <= len(data):
        length = max(NLMSGHDR.size, NLMSGHDR.unpack_from(data, offset)[0])
        yield data[offset : offset + length]
        offset += (length + 3) & ~3


def _messages(raw: list[bytes], kind: int) -> Iterator[Any]:
    """``raw``, taken apart, without other kinds of message."""
    marshal = _pyroute2()()
    wanted = [message for message in raw if NLMSGHDR.unpack_from(message)[1] == kind]
    for number, message in enumerate(wanted, 1):
        yield from marshal.parse(message)
        if number % MESSAGES_PER_TURN == 0:
            time.sleep(0)


def _link(message: Any) -> Link:
    name = message.get_attr("IFLA_IFNAME")
    return Link(
        name=name,
        index=message["index"],
        info_kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        hardware_type=message["ifi_type"],
        master=message.get_attr("IFLA_MASTER") or 0,
        is_wireless=_is_wireless(name, message["index"]),
        mtu=message.get_attr("IFLA_MTU") or 0,
        is_up=bool(message["flags"] & IFF_UP) and message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
    )


def _is_wireless(name: str, index: int) -> bool:
    """Whether /sys knows the link as a WLAN card. /sys may show another namespace's links, so the index must agree."""
    folder = Path("/sys/class/net", name)
    if not (folder.joinpath("phy80211").exists() or folder.joinpath("wireless").exists()):
        return False
    with contextlib.suppress(OSError):
        return folder.joinpath("ifindex").read_text().strip() == str(index)
    return False


def _addresses(messages: Iterator[Any]) -> dict[int, list[InterfaceAddress]]:
    """Addresses by interface."""
    found: dict[int, list[InterfaceAddress]] = {}
    for message in messages:
        # On a point-to-point link IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL otherwise.
        host = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if message["family"] not in (socket.AF_INET, socket.AF_INET6) or host is None:
            continue
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        address = InterfaceAddress(
            host=canonical_host(host),
            prefix_length=message["prefixlen"],
            flags=address_flags(flags, message["family"] == socket.AF_INET6),
        )
        found.setdefault(message["index"], []).append(address)
    return found


def _default_routes(sock: socket.socket) -> set[int]:
    """Indexes of the interfaces that default routes go through."""
    # A router may have a million routes: only those of length 0 are worth taking apart.
    raw = [message for message in _dump(sock, RTM_GETROUTE) if message[DESTINATION_LENGTH_OFFSET] == 0]
    found: set[int | None] = set()
    for route in _messages(raw, RTM_NEWROUTE):
        hops = route.get_attr("RTA_MULTIPATH") or ()
        found.update(hop["oif"] for hop in hops)
        found.add(route.get_attr("RTA_OIF"))
    return {index for index in found if index is not None}
