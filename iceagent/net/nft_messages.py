"""How are tables, chains, sets and rules of nftables said to the kernel? Pure: bytes in, bytes out.

The attributes of nf_tables over nfnetlink, <linux/netfilter/nf_tables.h>: numbers in big-endian, unless they are data
of a packet or of the host. A rule is a list of expressions over registers; it is left for the next one (``break``) by
the first that does not match. Written here and not with nft(8), because what it cannot say is what is needed: a header
is turned round by registers, and a map's value fills several registers at once.

Registers have 4 bytes each and are counted from 0 to 15; longer values take several in a row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

__all__ = [
    "Base",
    "Checksum",
    "Cmp",
    "Meta",
    "Verdict",
    "attribute",
    "attributes",
    "bitwise",
    "compare",
    "counter",
    "element",
    "forward",
    "host_order",
    "limit",
    "load_meta",
    "load_payload",
    "lookup",
    "named",
    "nested",
    "number",
    "reference_counter",
    "store_payload",
    "text",
    "update_set",
    "verdict",
]

NESTED = 0x8000
HEADER = struct.Struct("=HH")
LIST_ELEMENT = 1
FIRST_REGISTER = 8  # NFT_REG32_00
DATA_VALUE, DATA_VERDICT = 1, 2


class Base(IntEnum):
    """Where in a packet an offset begins."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class Cmp(IntEnum):
    """How a register is compared, byte by byte: order is that of big-endian numbers."""

    EQ = 0
    NEQ = 1
    LT = 2
    LTE = 3
    GT = 4
    GTE = 5


class Meta(IntEnum):
    """What is known of a packet beside its bytes."""

    PROTOCOL = 1  # EtherType, 2 bytes, big-endian
    INPUT_INDEX = 4  # 4 bytes, the host's order
    INPUT_TYPE = 8  # ARPHRD_*, 2 bytes, the host's order
    PACKET_TYPE = 19  # PACKET_*, 1 byte


class Verdict(IntEnum):
    """What becomes of a packet."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


class Checksum(IntEnum):
    """Which checksums follow when bytes of a packet are replaced."""

    NONE = 0
    INET = 1  # the one at the offset that is given
    PSEUDO_HEADER = 2  # UDP's, which covers the addresses
    BOTH = 3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return HEADER.pack(HEADER.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def number(kind: int, value: int, size: int = 4) -> bytes:
    """A big-endian number of so many bytes; negative ones in two's complement."""
    return attribute(kind, value.to_bytes(size, "big", signed=value < 0))


def text(kind: int, value: str) -> bytes:
    """A name."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take attributes apart: kind and value. What is cut off ends it."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind & ~NESTED & 0xFFFF, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def element(*parts: bytes) -> bytes:
    """An entry of a list: of expressions, of a set's elements."""
    return nested(LIST_ELEMENT, *parts)


def named(name: str, *parts: bytes) -> bytes:
    """An expression, as rules and sets have them."""
    return text(1, name) + nested(2, *parts)


def host_order(value: int, size: int) -> bytes:
    """A number of 2 or 4 bytes as this host keeps it."""
    return struct.pack("=H" if size == 2 else "=I", value)


def _register(kind: int, register: int) -> bytes:
    return number(kind, FIRST_REGISTER + register)


def load_meta(key: Meta, register: int) -> bytes:
    """register ← what is known of the packet."""
    return named("meta", _register(1, register), number(2, key))


def load_payload(base: Base, offset: int, length: int, register: int) -> bytes:
    """register ← so many bytes of the packet, 1 … 64; a packet that is shorter does not match."""
    return named("payload", _register(1, register), number(2, base), number(3, offset), number(4, length))


def store_payload(
    base: Base, offset: int, length: int, register: int, checksum: Checksum = Checksum.NONE, checksum_offset: int = 0
) -> bytes:
    """The packet's bytes ← register.

    Args:
        checksum: which checksums are brought up to date.
        checksum_offset: of INET's, from ``base``.
    """
    parts = [_register(5, register), number(2, base), number(3, offset), number(4, length)]
    parts += [number(6, checksum & Checksum.INET), number(7, checksum_offset), number(8, int(checksum) >> 1)]
    return named("payload", *parts)


def compare(register: int, value: bytes, how: Cmp = Cmp.EQ) -> bytes:
    """Go on if the register compares so."""
    return named("cmp", _register(1, register), number(2, how), nested(3, attribute(DATA_VALUE, value)))


def bitwise(register: int, mask: bytes, flip: bytes | None = None) -> bytes:
    """register ← register & mask ^ flip."""
    value = attribute(DATA_VALUE, bytes(len(mask)) if flip is None else flip)
    parts = [_register(1, register), _register(2, register), number(3, len(mask))]
    return named("bitwise", *parts, nested(4, attribute(DATA_VALUE, mask)), nested(5, value))


def lookup(set_name: str, register: int, *, into: int | None = None, is_inverted: bool = False) -> bytes:
    """Go on if the register's value is in the set (or is not); of a map, ``into`` ← its value there."""
    parts = [text(1, set_name), _register(2, register)]
    if into is not None:
        parts.append(_register(3, into))
    if is_inverted:
        parts.append(number(5, 1))
    return named("lookup", *parts)


def update_set(set_name: str, register: int, expression: bytes) -> bytes:
    """Note the register's value in a set, and go on if the ``expression`` that belongs to that value does. A set that
    is full does not go on.
    """
    return named("dynset", text(1, set_name), number(3, 1), _register(4, register), nested(7, expression))


def limit(per_second: int, burst: int) -> bytes:
    """Go on unless there are more packets than these."""
    return named("limit", number(1, per_second, 8), number(2, 1, 8), number(3, burst), number(4, 0), number(5, 0))


def counter() -> bytes:
    """Count packets and bytes."""
    return named("counter")


def reference_counter(name: str) -> bytes:
    """Count packets and bytes in the table's counter of this name."""
    return named("objref", number(1, 1), text(2, name))


def verdict(kind: Verdict, chain: str | None = None) -> bytes:
    """End the rule with this."""
    parts = [number(1, kind)] + ([] if chain is None else [text(2, chain)])
    return named("immediate", number(1, 0), nested(2, nested(DATA_VERDICT, *parts)))


def forward(device: int, address: int | None = None, version: int = 4) -> bytes:
    """Send the packet, which this takes away, out of a device.

    Args:
        device: register with the device's index.
        address: register with the next hop, whose link-layer address the kernel finds out; the packet's TTL is
            decremented, and at 1 it is dropped. ``None``: the packet has its link-layer header.
        version: 4 or 6, of the next hop.
    """
    parts = [_register(1, device)]
    if address is not None:
        parts += [_register(2, address), number(3, 2 if version == 4 else 10)]
    return named("fwd", *parts)


def expressions(parts: Iterable[bytes] | Sequence[bytes]) -> bytes:
    """The list that a rule is."""
    return b"".join(element(part) for part in parts)
