"""How is a message read that looks like one we have read before?

The messages of a peer repeat: the same type, the same attributes with the same lengths, other values. A layout is the
format of one such kind of message, as a single struct, so that one call reads the whole of it. It is learned from a
message whose integrity has been verified, so that strangers cannot fill the table, and it is nothing but a short cut:
:func:`relay.stun.parse` takes it only where it would find exactly the same attributes one by one, and goes the long
way whenever anything is unusual. A layout ends with MESSAGE-INTEGRITY and FINGERPRINT, as the checks of ICE do.

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.stun import values
from relay.stun.attributes import ATTRIBUTES

LAYOUT_LIMIT = 256
"""Layouts kept; a session has about four. When the table is full it is emptied, and learned anew."""

MAX_LAYOUT_LENGTH = 548
"""Bytes of a message worth learning: what surely passes unfragmented over IPv4 (RFC 8489, 6.1)."""

SEALS_LENGTH = 32
"""Bytes of MESSAGE-INTEGRITY and FINGERPRINT at the end."""

_HEAD = struct.Struct(">HH")
_NUMBERS = {values.decode_u32: "I", values.decode_u64: "Q"}
_NUMBER_LENGTHS = {"I": 4, "Q": 8}

LAYOUTS: dict[bytes, Layout] = {}
"""By the first four bytes, type and length."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is around the attributes of a message that arrived; the same for every message of one layout.

    Attributes:
        unknown_required: the comprehension-required codes that we do not know, in order, each once.
        integrity_at: where MESSAGE-INTEGRITY begins, or 0.
        integrity_sha256_at: where MESSAGE-INTEGRITY-SHA256 begins, or 0.
        has_fingerprint: whether there is a FINGERPRINT (it is correct then).
    """

    unknown_required: tuple[int, ...] = ()
    integrity_at: int = 0
    integrity_sha256_at: int = 0
    has_fingerprint: bool = False
    is_learned: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of message.

    Attributes:
        length: bytes of the message.
        unpack: gives type, length, cookie, transaction id, then code and length (as one number) and value of each
            attribute.
        heads: the code and length of each attribute.
        codes: the code of each attribute but the two seals.
        decoders: which values are not yet what they should be, and what makes them so.
        envelope: of every message of this kind.
    """

    length: int
    unpack: Callable[[bytes], tuple[Any, ...]]
    heads: tuple[int, ...]
    codes: tuple[int, ...]
    decoders: tuple[tuple[int, Callable[[bytes, bytes], Any]], ...]
    envelope: Envelope
    method: int
    message_class: Any


def learn(data: bytes, envelope: Envelope, method: int, message_class: Any) -> None:
    """Remember the kind of a message that was parsed and verified, if it is of use."""
    if len(data) > MAX_LAYOUT_LENGTH or data[:4] in LAYOUTS or not envelope.has_fingerprint:
        return
    if envelope.integrity_at != len(data) - SEALS_LENGTH:
        return
    if len(LAYOUTS) >= LAYOUT_LIMIT:
        LAYOUTS.clear()
    LAYOUTS[data[:4]] = _layout(data, envelope, method, message_class)


def _layout(data: bytes, envelope: Envelope, method: int, message_class: Any) -> Layout:
    formats, heads, codes, decoders = [">HHI12s"], [], [], []
    position, end = 20, envelope.integrity_at
    while position < end:
        code, length = _HEAD.unpack_from(data, position)
        attribute = ATTRIBUTES.get(code)
        number = None if attribute is None else _NUMBERS.get(attribute.decode)
        if number is not None:
            formats.append(f"I{number}")
        else:
            formats.append(f"I{length}s{-length & 3}x")
            if attribute is not None and attribute.decode is not values.decode_bytes:
                decoders.append((len(codes), attribute.decode))
        heads.append(code << 16 | length)
        codes.append(code)
        position += 4 + length + (-length & 3)
    formats.append("I20sII")
    heads += _HEAD_OF_INTEGRITY, _HEAD_OF_FINGERPRINT
    return Layout(
        length=len(data),
        unpack=struct.Struct("".join(formats)).unpack,
        heads=tuple(heads),
        codes=tuple(codes),
        decoders=tuple(decoders),
        envelope=envelope,
        method=method,
        message_class=message_class,
    )


_HEAD_OF_INTEGRITY = 0x0008_0014
_HEAD_OF_FINGERPRINT = 0x8028_0004
