"""How is the kernel asked for what it knows of the network?

rtnetlink(7): dumps over sockets that the caller opens, so that they belong to its network namespace. pyroute2 takes the
messages apart. Importing it costs 100 ms and more, a table of 31 interfaces 5 to 60 ms: both happen in one worker
thread of the process (:func:`worker`), not on the loop.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = [
    "INTERFACE_GROUPS",
    "NLMSGHDR",
    "RTM_DELROUTE",
    "RTM_GETADDR",
    "RTM_GETLINK",
    "RTM_GETROUTE",
    "RTM_NEWADDR",
    "RTM_NEWLINK",
    "RTM_NEWROUTE",
    "dump",
    "open_netlink",
    "parsed",
    "preload",
    "worker",
]

# The kernel answers a dump at once; this is for a kernel that does not.
READ_TIMEOUT_S = 1.0
# A table that changed while it was dumped (NLM_F_DUMP_INTR) is dumped again, this often.
READ_ATTEMPTS = 3
# Messages taken apart (100 µs each) before the loop's thread is let in, which would else wait 5 ms for the interpreter.
MESSAGES_PER_TURN = 8
# The kernel fills at most 32 KiB per message of a dump.
DUMP_BUFFER = 1 << 16

# <linux/netlink.h>, <linux/rtnetlink.h>
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
INTERFACE_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
"""Netlink groups that tell of changes of links and addresses."""
NLMSGHDR = struct.Struct("=IHHII")


def open_netlink(groups: int = 0, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """A netlink socket in the calling thread's network namespace.

    Args:
        groups: RTMGRP_* to hear of.
        protocol: NETLINK_*.

    Raises:
        OSError: netlink is not allowed here (a seccomp filter).
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


def preload() -> None:
    """Start to import pyroute2 in the worker thread, so that the first reading finds it there. Returns at once."""
    worker().submit(_pyroute2)


def load() -> None:
    """Import it now: 80 ms, during which whoever imports in the worker thread holds up the loop by turns."""
    _pyroute2()


@functools.cache
def worker() -> ThreadPoolExecutor:
    """The one thread that reads and takes apart."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="iceagent-netlink")


@functools.cache
def _pyroute2() -> Any:
    """The class that takes netlink messages apart."""
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    return MarshalRtnl


def dump(sock: socket.socket, request: int) -> list[bytes]:
    """All messages that answer a dump request, each with its header.

    Args:
        sock: a NETLINK_ROUTE socket that no one else reads.
        request: RTM_GET*.

    Raises:
        OSError: the kernel refused or did not answer in time.
    """
    sock.settimeout(READ_TIMEOUT_S)
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
                raise OSError(-code, "the kernel refused to list what it has")
            messages.append(message)


def _split(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + NLMSGHDR.size <= len(data):
        length = max(NLMSGHDR.size, NLMSGHDR.unpack_from(data, offset)[0])
        yield data[offset : offset + length]
        offset += (length + 3) & ~3


def parsed(raw: list[bytes], kind: int) -> Iterator[Any]:
    """``raw``, taken apart, without other kinds of message."""
    marshal = _pyroute2()()
    wanted = [message for message in raw if NLMSGHDR.unpack_from(message)[1] == kind]
    for number, message in enumerate(wanted, 1):
        yield from marshal.parse(message)
        if number % MESSAGES_PER_TURN == 0:
            time.sleep(0)
