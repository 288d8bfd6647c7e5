"""Through which device, and to which neighbour, does this machine send to an address?

One question to the kernel (RTM_GETROUTE, rtnetlink(7)), some microseconds long, on the caller's thread.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from iceagent.net.address import ip_address
from iceagent.net.netlink import NLMSGHDR, RTM_GETROUTE, RTM_NEWROUTE
from iceagent.net.nft_messages import attribute, attributes

__all__ = ["NextHop", "Routes"]

RTMSG = struct.Struct("=BBBBBBBBI")
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA = 1, 2, 4, 5, 9, 18
RTN_UNICAST = 1
NLM_F_REQUEST = 0x1
NLMSG_ERROR = 2
ANSWER_TIMEOUT_S = 1.0
RECEIVE_SIZE = 1 << 15


class NextHop(NamedTuple):
    """Where a packet leaves.

    Attributes:
        device: its index.
        neighbour: IP address of the router, or of the destination itself where there is none; packed, 4 or 16 bytes.
    """

    device: int
    neighbour: bytes


class Routes:
    """Asks for next hops.

    Args:
        sock: a NETLINK_ROUTE socket that no one else reads; closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_TIMEOUT_S)
        self._socket = sock
        self._sequence = itertools.count(1)

    def next_hop(self, source: str, destination: str, device: int = 0) -> NextHop | None:
        """Where a packet with these addresses leaves; ``None``: nowhere, or it stays on this machine, or its router is
        of the other IP version.

        Args:
            source: its own; not link-local, since nothing here says on which link.
            destination: likewise.
            device: index of the one that it has to leave through; 0: any.

        Raises:
            OSError: the kernel did not answer.
        """
        to, sender = ip_address(destination), ip_address(source)
        family = socket.AF_INET6 if to.version == 6 else socket.AF_INET
        bits = to.max_prefixlen
        body = RTMSG.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
        body += attribute(RTA_DST, to.packed) + attribute(RTA_SRC, sender.packed)
        if device:
            body += attribute(RTA_OIF, struct.pack("=I", device))
        sequence = next(self._sequence)
        self._socket.send(NLMSGHDR.pack(NLMSGHDR.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, sequence, 0) + body)
        while True:
            for kind, number, answer in _messages(self._socket.recv(RECEIVE_SIZE)):
                if number != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    return None
                if kind == RTM_NEWROUTE:
                    return _hop(answer, to.packed)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()


def _hop(answer: bytes, destination: bytes) -> NextHop | None:
    kind = RTMSG.unpack_from(answer)[7]
    fields = dict(attributes(answer[RTMSG.size :]))
    if kind != RTN_UNICAST or RTA_OIF not in fields or RTA_VIA in fields:
        return None
    (index,) = struct.unpack("=I", fields[RTA_OIF])
    return NextHop(index, fields.get(RTA_GATEWAY, destination))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + NLMSGHDR.size <= len(data):
        length, kind, _, number, _ = NLMSGHDR.unpack_from(data, offset)
        length = max(NLMSGHDR.size, length)
        yield kind, number, data[offset + NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3
