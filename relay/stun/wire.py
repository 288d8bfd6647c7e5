"""What do the first twenty bytes of a STUN message say, and which attributes seal it?

RFC 8489, 5 (header, message type) and 14.5 to 14.7 (the three attributes that are computed over the message). Pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from relay.stun.errors import BadMessage

MAGIC_COOKIE = 0x2112A442
"""RFC 8489, 5."""

HEADER_LENGTH = 20
"""Bytes before the attributes."""

TRANSACTION_ID_LENGTH = 12
"""Bytes of a transaction id."""

MAX_BODY_LENGTH = 0xFFFC
"""Bytes of attributes: what the 16-bit length of the header can say in steps of four."""

COMPREHENSION_OPTIONAL = 0x8000
"""Codes from here on may be ignored by those who do not know them: RFC 8489, 14."""

MESSAGE_INTEGRITY = 0x0008
MESSAGE_INTEGRITY_SHA256 = 0x001C
FINGERPRINT = 0x8028

FINGERPRINT_MASK = 0x5354554E
"""RFC 8489, 14.7."""

HEADER = struct.Struct(">HHI12s")
ATTRIBUTE_HEAD = struct.Struct(">HH")


class Method(IntEnum):
    """What a message is about: RFC 8489, 18.2; RFC 8656, 17; RFC 6062, 6.1."""

    BINDING = 1
    ALLOCATE = 3
    REFRESH = 4
    SEND = 6
    DATA = 7
    CREATE_PERMISSION = 8
    CHANNEL_BIND = 9
    CONNECT = 10
    CONNECTION_BIND = 11
    CONNECTION_ATTEMPT = 12


class MessageClass(IntEnum):
    """The two class bits of a message type: RFC 8489, 5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


def message_type(method: int, message_class: MessageClass) -> int:
    """Method and class as the 14 bits of the header: RFC 8489, 5, figure 3, the class between bits of the method.

    Raises:
        ValueError: if the method is not within 0 to 4095.
    """
    known = TYPES.get((method, message_class))
    if known is not None:
        return known
    if not 0 <= method <= 0xFFF:
        raise ValueError(f"method {method}, not within 0 to 4095")
    return _join(method, message_class)


def split_type(message_type: int) -> tuple[int, MessageClass]:
    """The inverse of :func:`message_type`; the method is a :class:`Method` where we know it.

    Raises:
        BadMessage: if one of the two top bits of 16 is set.
    """
    known = _METHODS.get(message_type)
    if known is not None:
        return known
    if message_type > 0x3FFF:
        raise BadMessage(f"message type 0x{message_type:04x}: the two top bits are not zero")
    method = (message_type & 0x3E00) >> 2 | (message_type & 0xE0) >> 1 | message_type & 0xF
    return method, MessageClass((message_type & 0x100) >> 7 | (message_type & 0x10) >> 4)


def padding(length: int) -> bytes:
    """The zero bytes (0 to 3) that follow ``length`` bytes, to end on a 32-bit boundary: RFC 8489, 14."""
    return _PADDING[length & 3]


def _join(method: int, message_class: int) -> int:
    bits = (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF
    return bits | (message_class & 2) << 7 | (message_class & 1) << 4


_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
TYPES: dict[tuple[int, MessageClass], int] = {
    (method, message_class): _join(method, message_class) for method in Method for message_class in MessageClass
}
"""The message types of the methods that we know, by method and class."""

_METHODS: dict[int, tuple[int, MessageClass]] = {bits: known for known, bits in TYPES.items()}
