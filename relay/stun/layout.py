"""How is a message read that looks like one we have read before?

The messages of a peer repeat: the same type, the same attributes with the same lengths, other values. A layout is the
format of one such kind of message, as a single struct, so that one call reads the whole of it. It is learned from a
message whose integrity has been verified, so that strangers cannot fill the table, and it is nothing but a short cut:
:func:`relay.stun.parse` takes it only where it would find exactly the same attributes one by one, and goes the long
way whenever anything is unusual. A layout ends with MESSAGE-INTEGRITY and FINGERPRINT, as the checks of ICE do.

Pure.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.stun import values
from relay.stun.attributes import ATTRIBUTES, Attribute
from relay.stun.wire import ATTRIBUTE_HEAD, HEADER_LENGTH, MessageClass

LAYOUT_LIMIT = 256
"""Starts kept; a session has about four. When the table is full it is emptied, and learned anew."""

SAME_START_LIMIT = 4
"""Layouts that share type and length, as the checks of a controlling and a controlled agent do."""

MAX_LAYOUT_LENGTH = 548
"""Bytes of a message worth learning: what surely passes unfragmented over IPv4 (RFC 8489, 6.1)."""

SEALS_LENGTH = 32
"""Bytes of MESSAGE-INTEGRITY and FINGERPRINT at the end."""

_HEAD_OF_INTEGRITY = 0x0008_0014
_HEAD_OF_FINGERPRINT = 0x8028_0004
_NUMBERS: dict[Callable[[bytes, bytes], Any], str] = {values.decode_u32: "I", values.decode_u64: "Q"}
_AS_UNPACKED = frozenset((*_NUMBERS, values.decode_bytes))

# The length of the value is known and has been found good, so that less is left to check.
_QUICK: dict[Callable[[bytes, bytes], Any], Callable[[bytes], Any]] = {
    values.decode_text: bytes.decode,
    values.decode_flag: operator.not_,
    values.decode_xor_address: values.decode_xored_4,
}

LAYOUTS: dict[bytes, Layout] = {}
"""By the first four bytes, type and length: the newest layout, which leads to the others that begin so."""


class Envelope(NamedTuple):
    """What is around the attributes of a message that arrived; the same for every message of one layout.

    Attributes:
        unknown_required: the comprehension-required codes that we do not know, in order, each once.
        integrity_at: where MESSAGE-INTEGRITY begins, or 0.
        integrity_sha256_at: where MESSAGE-INTEGRITY-SHA256 begins, or 0.
        has_fingerprint: whether there is a FINGERPRINT (it is correct then).
        signed_head: of a layout only: the first four bytes as MESSAGE-INTEGRITY covers them.
    """

    unknown_required: tuple[int, ...] = ()
    integrity_at: int = 0
    integrity_sha256_at: int = 0
    has_fingerprint: bool = False
    signed_head: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One kind of message.

    Attributes:
        method: of every message of this kind.
        message_class: the same.
        unpack: gives numbers and values in turn: type, length and cookie as one number, the transaction id, then code
            and length of each attribute as one number, and its value.
        heads: the numbers.
        codes: the code of each attribute but the two seals.
        decoders: which values are not yet what they should be, and what makes them so.
        xored: the same, for those that take the transaction id.
        envelope: the same for every message.
        other: the next one to try with the same type and length.
        depth: how many layouts this and the others are.
    """

    method: int
    message_class: MessageClass
    unpack: Callable[[bytes], tuple[Any, ...]]
    heads: tuple[int, ...]
    codes: tuple[int, ...]
    decoders: tuple[tuple[int, Callable[[bytes], Any]], ...]
    xored: tuple[tuple[int, Callable[[bytes, bytes], Any]], ...]
    envelope: Envelope
    other: Layout | None
    depth: int


def learn(data: bytes, envelope: Envelope, method: int, message_class: MessageClass) -> None:
    """Remember the kind of a message that was parsed the long way and verified, if it is of use."""
    other = LAYOUTS.get(data[:4])
    if len(data) > MAX_LAYOUT_LENGTH or not envelope.has_fingerprint:
        return
    if other is not None and other.depth >= SAME_START_LIMIT:
        return
    if envelope.integrity_at != len(data) - SEALS_LENGTH:
        return
    if other is None and len(LAYOUTS) >= LAYOUT_LIMIT:
        LAYOUTS.clear()
    LAYOUTS[data[:4]] = _layout(data, envelope, method, message_class, other)


def signed_head(data: bytes, at: int, length: int) -> bytes:
    """The first four bytes of a message as an integrity attribute covers them: the message ends with that attribute.

    Args:
        data: the message.
        at: where the attribute begins.
        length: bytes of the attribute with its head.
    """
    return data[:2] + (at + length - HEADER_LENGTH).to_bytes(2, "big")


def _layout(data: bytes, envelope: Envelope, method: int, message_class: MessageClass, other: Layout | None) -> Layout:
    formats = [">Q12s"]
    heads = [int.from_bytes(data[:8], "big")]
    codes: list[int] = []
    decoders: list[tuple[int, Callable[[bytes], Any]]] = []
    xored: list[tuple[int, Callable[[bytes, bytes], Any]]] = []
    position, end = HEADER_LENGTH, envelope.integrity_at
    while position < end:
        code, length = ATTRIBUTE_HEAD.unpack_from(data, position)
        attribute = ATTRIBUTES.get(code)
        if attribute is None or attribute.decode not in _NUMBERS:
            formats.append(f"I{length}s{-length & 3}x")
        else:
            formats.append(f"I{_NUMBERS[attribute.decode]}")
        if attribute is not None and attribute.decode is values.decode_xor_address and length != 8:
            xored.append((len(codes), attribute.decode))
        elif attribute is not None and attribute.decode not in _AS_UNPACKED:
            decoders.append((len(codes), _QUICK.get(attribute.decode) or _without_id(attribute)))
        heads.append(code << 16 | length)
        codes.append(code)
        position += 4 + length + (-length & 3)
    formats.append("I20sII")
    heads += _HEAD_OF_INTEGRITY, _HEAD_OF_FINGERPRINT
    return Layout(
        method=method,
        message_class=message_class,
        unpack=struct.Struct("".join(formats)).unpack,
        heads=tuple(heads),
        codes=tuple(codes),
        decoders=tuple(decoders),
        xored=tuple(xored),
        envelope=envelope._replace(signed_head=signed_head(data, end, 24)),
        other=other,
        depth=1 if other is None else other.depth + 1,
    )


def _without_id(attribute: Attribute[Any]) -> Callable[[bytes], Any]:
    return lambda data: attribute.decode(data, b"")
