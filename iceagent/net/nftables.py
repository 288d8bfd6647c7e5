"""How does a program have a table of its own in the kernel's nftables?

A :class:`Table` of the family ``netdev`` belongs to one netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): nobody else can
change it, ``nft flush ruleset`` leaves it alone, and it is gone when the socket is closed, by us or, whatever becomes
of the process, by the kernel. So there is nothing to clean up at the next start. Its rules stand at the ingress of
devices, before connection tracking and routing: no connection is tracked, and no sysctl has to be changed.

Every change is one transaction: all of it or nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from iceagent.net.netlink import NLMSGHDR
from iceagent.net.nft_messages import attribute, attributes, element, expressions, nested, number, text

__all__ = ["Counts", "NetlinkHost", "Table", "explained"]

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
NETLINK_NETFILTER = 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x1, 0x4, 0x300, 0x200, 0x400, 0x800
NLM_F_DUMP_INTR = 0x10
SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEW_TABLE, NEW_CHAIN, DELETE_CHAIN, NEW_RULE, DELETE_RULE = 0, 3, 5, 6, 8
NEW_SET, NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT, NEW_OBJECT, GET_OBJECT = 9, 12, 13, 14, 18, 19
FAMILY_NETDEV = 5
TABLE_OWNER = 0x2
OBJECT_COUNTER = 1
GENERIC = struct.Struct("=BBH")

SET_MAP, SET_TIMEOUT, SET_EVALUATED = 0x8, 0x10, 0x20
# What nft(8) takes keys for, by their size: addresses.
TYPE_INTEGER = 4
_TYPES = {4: 7, 16: 8}

# The kernel answers at once; this is for one that does not.
ANSWER_TIMEOUT_S = 2.0
RECEIVE_SIZE = 1 << 18
# Elements in one message: an attribute's length is 16 bits.
ELEMENTS_PER_MESSAGE = 256
# A dump that met a change is asked for again, this often.
DUMP_ATTEMPTS = 5
# What may wait to be read: an acknowledgement has up to 64 bytes and its buffer.
RECEIVE_BUFFER = 1 << 22


@runtime_checkable
class NetlinkHost(Protocol):
    """A host with a kernel of its own."""

    def netlink(self, protocol: int) -> socket.socket:
        """Open a netlink socket there."""


class Counts(NamedTuple):
    """Of packets.

    Attributes:
        packets: how many.
        octets: their bytes, from the network header on.
    """

    packets: int
    octets: int


class Table:
    """A table of the family ``netdev`` that lives as long as this object is open.

    What is added is queued until :meth:`commit`.

    Args:
        host: where.
        name: the table's name begins so, and ends with the number of its socket, which no other has.

    Raises:
        OSError: netlink is not allowed here.
    """

    def __init__(self, host: NetlinkHost, name: str) -> None:
        self._queue: list[bytes] = []
        self._sequence = itertools.count(1)
        self._socket = host.netlink(NETLINK_NETFILTER)
        try:
            self._socket.settimeout(ANSWER_TIMEOUT_S)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self.name = f"{name}-{self._socket.getsockname()[0]}"
        except BaseException:
            self._socket.close()
            raise
        self._add(NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, text(1, self.name), number(2, TABLE_OWNER))

    def close(self) -> None:
        """The kernel removes the table; idempotent."""
        self._socket.close()

    # --- what it has ----------------------------------------------------------------------------------------------

    def add_counter(self, name: str) -> None:
        """A counter that rules refer to."""
        self._add(NEW_OBJECT, NLM_F_CREATE, text(1, self.name), text(2, name), number(3, OBJECT_COUNTER), nested(4))

    def add_set(self, name: str, key_size: int, limit: int, *, timeout_s: int | None = None) -> None:
        """A set of keys of so many bytes; with a timeout, one that rules write into, whose entries end unused.

        Args:
            limit: how many it takes.
        """
        flags = 0 if timeout_s is None else SET_EVALUATED | SET_TIMEOUT
        extra = [] if timeout_s is None else [number(11, timeout_s * 1000, 8)]
        self._add_set(name, flags, key_size, limit, *extra)

    def add_map(self, name: str, key_size: int, value_size: int, limit: int, *, expression: bytes = b"") -> None:
        """A map.

        Args:
            expression: of which every entry has one, a counter.
        """
        extra = [number(6, TYPE_INTEGER), number(7, value_size)]
        if expression:
            extra.append(nested(17, expression))
        self._add_set(name, SET_MAP, key_size, limit, *extra)

    def add_chain(self, name: str) -> None:
        """A chain that others jump to."""
        self._add(NEW_CHAIN, NLM_F_CREATE, text(1, self.name), text(3, name))

    def add_ingress(self, chain: str, device: str, priority: int) -> None:
        """A chain that everything passes which comes in through a device."""
        hook = nested(4, number(1, 0), number(2, priority), text(3, device))
        self._add(NEW_CHAIN, NLM_F_CREATE, text(1, self.name), text(3, chain), hook, text(7, "filter"), number(5, 1))

    def remove_ingress(self, chain: str) -> None:
        """Remove such a chain with its rules."""
        self._add(DELETE_RULE, 0, text(1, self.name), text(2, chain))
        self._add(DELETE_CHAIN, 0, text(1, self.name), text(3, chain))

    def add_rule(self, chain: str, *parts: bytes) -> None:
        """A rule behind the others: expressions of ``nft_messages``."""
        self._add(
            NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, text(1, self.name), text(2, chain), nested(4, expressions(parts))
        )

    def remove_rules(self, chain: str) -> None:
        """All rules of a chain."""
        self._add(DELETE_RULE, 0, text(1, self.name), text(2, chain))

    def add_keys(self, set_name: str, keys: Iterable[bytes]) -> None:
        """These are in the set from now on."""
        self._elements(NEW_ELEMENT, NLM_F_CREATE, set_name, [nested(1, attribute(1, key)) for key in keys])

    def add_values(self, map_name: str, values: Mapping[bytes, bytes]) -> None:
        """These are in the map from now on; EEXIST at the commit, where a key has another value there."""
        found = [nested(1, attribute(1, key)) + nested(2, attribute(1, value)) for key, value in values.items()]
        self._elements(NEW_ELEMENT, NLM_F_CREATE | NLM_F_EXCL, map_name, found)

    def remove_keys(self, set_name: str, keys: Iterable[bytes]) -> None:
        """These are no more in the set or map; ENOENT at the commit, where one was not."""
        self._elements(DELETE_ELEMENT, 0, set_name, [nested(1, attribute(1, key)) for key in keys])

    def commit(self) -> None:
        """Do what is queued: all of it or, when this raises, nothing. Blocks for some microseconds a message.

        Raises:
            OSError: the kernel refused: EPERM without CAP_NET_ADMIN; see :func:`explained`.
        """
        queue, self._queue = self._queue, []
        if not queue:
            return
        sequences = []
        sent = [_message(BATCH_BEGIN, 0, next(self._sequence), 0, SUBSYSTEM)]
        for message in queue:
            sequence = next(self._sequence)
            sequences.append(sequence)
            sent.append(message[:8] + struct.pack("=I", sequence) + message[12:])
        sent.append(_message(BATCH_END, 0, next(self._sequence), 0, SUBSYSTEM))
        data = b"".join(sent)
        if len(data) > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(data) * 2)
        self._socket.send(data)
        self._await(sequences)

    # --- what is read -----------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Counts]:
        """What the table's counters have counted.

        Raises:
            OSError: the kernel did not answer.
        """
        found = {}
        for message in self._dump(GET_OBJECT, text(1, self.name), number(3, OBJECT_COUNTER)):
            fields = dict(attributes(message))
            if fields.get(1, b"").rstrip(b"\0").decode() == self.name:
                found[fields[2].rstrip(b"\0").decode()] = _counts(fields[4])
        return found

    def values(self, map_name: str, keys: Sequence[bytes] | None = None) -> Iterator[tuple[bytes, Counts]]:
        """The keys of a map whose entries count, or these of them, with what they have counted. While it changes, one
        may be missing.

        Raises:
            OSError: the kernel did not answer, or one of ``keys`` is not there (ENOENT).
        """
        head = text(1, self.name) + text(2, map_name)
        if keys is None:
            messages = self._dump(GET_ELEMENT, head)
        else:
            messages = [
                message
                for start in range(0, len(keys), ELEMENTS_PER_MESSAGE)
                for message in self._ask(GET_ELEMENT, head, keys[start : start + ELEMENTS_PER_MESSAGE])
            ]
        for message in messages:
            for kind, listed in attributes(message):
                if kind != 3:
                    continue
                for _, entry in attributes(listed):
                    fields = dict(attributes(entry))
                    expression = dict(attributes(fields[7]))
                    yield dict(attributes(fields[1]))[1], _counts(expression[2])

    # --- netlink ----------------------------------------------------------------------------------------------------

    def _add(self, kind: int, flags: int, *parts: bytes) -> None:
        body = b"".join(parts)
        self._queue.append(_message(SUBSYSTEM << 8 | kind, NLM_F_ACK | flags, 0, FAMILY_NETDEV, 0, body))

    def _add_set(self, name: str, flags: int, key_size: int, limit: int, *extra: bytes) -> None:
        shown_as = _TYPES.get(key_size, TYPE_INTEGER)
        parts = [text(1, self.name), text(2, name), number(3, flags), number(4, shown_as), number(5, key_size)]
        # A transaction's own number for it; the kernel wants one.
        parts += [nested(9, number(1, limit)), number(10, len(self._queue) + 1), *extra]
        self._add(NEW_SET, NLM_F_CREATE, *parts)

    def _elements(self, kind: int, flags: int, set_name: str, found: Sequence[bytes]) -> None:
        for start in range(0, len(found), ELEMENTS_PER_MESSAGE):
            some = [element(each) for each in found[start : start + ELEMENTS_PER_MESSAGE]]
            self._add(kind, flags, text(1, self.name), text(2, set_name), nested(3, *some))

    def _await(self, sequences: Sequence[int]) -> None:
        """Until all of these are acknowledged. The first refusal ends the transaction."""
        pending = set(sequences)
        refusal = 0
        while pending:
            for kind, _, sequence, body in _messages(self._socket.recv(RECEIVE_SIZE)):
                if kind != NLMSG_ERROR or sequence < sequences[0] - 1:
                    continue
                (code,) = struct.unpack_from("=i", body)
                if code:
                    refusal = refusal or -code
                    if sequence not in pending:
                        # About the whole of it.
                        pending.clear()
                pending.discard(sequence)
        if refusal:
            raise OSError(refusal, os.strerror(refusal))

    def _dump(self, kind: int, *parts: bytes) -> list[bytes]:
        found: list[bytes] = []
        for _ in range(DUMP_ATTEMPTS):
            sequence = next(self._sequence)
            request = SUBSYSTEM << 8 | kind
            self._socket.send(
                _message(request, NLM_F_REQUEST | NLM_F_DUMP, sequence, FAMILY_NETDEV, 0, b"".join(parts))
            )
            found, is_whole = self._dumped(sequence)
            if is_whole:
                break
        return found

    def _ask(self, kind: int, head: bytes, keys: Sequence[bytes]) -> list[bytes]:
        """What the kernel answers about these keys: a message for each, and an acknowledgement behind them."""
        sequence = next(self._sequence)
        listed = nested(3, *(element(nested(1, attribute(1, key))) for key in keys))
        request = SUBSYSTEM << 8 | kind
        self._socket.send(_message(request, NLM_F_REQUEST | NLM_F_ACK, sequence, FAMILY_NETDEV, 0, head + listed))
        return self._dumped(sequence)[0]

    def _dumped(self, sequence: int) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        is_whole = True
        while True:
            for kind, flags, number_, body in _messages(self._socket.recv(RECEIVE_SIZE)):
                if number_ != sequence:
                    continue
                is_whole = is_whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return found, is_whole
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code in (0, -errno.EINTR):
                        return found, not code
                    raise OSError(-code, os.strerror(-code))
                found.append(body[GENERIC.size :])


def explained(error: OSError) -> str:
    """Why the kernel gave no table, in a clause."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "it needs CAP_NET_ADMIN (root)"
    if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return f"this kernel has not what is needed: nftables of Linux 5.12 or later ({error.strerror})"
    return f"the kernel refused it: {error.strerror or error}"


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes = b"") -> bytes:
    body = GENERIC.pack(family, 0, socket.htons(resource)) + body
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and body of each."""
    offset = 0
    while offset + NLMSGHDR.size <= len(data):
        length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(data, offset)
        length = max(NLMSGHDR.size, length)
        yield kind, flags, sequence, data[offset + NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


def _counts(data: bytes) -> Counts:
    fields = dict(attributes(data))
    return Counts(int.from_bytes(fields[2], "big"), int.from_bytes(fields[1], "big"))
