"""Are these bytes a STUN message, and what does it say?

RFC 8489, 5, 6.3 and 14. :func:`parse` checks all that can be checked without a key: header, lengths, the value of every
known attribute, FINGERPRINT; it raises :class:`BadMessage` and nothing else. Integrity is checked by
:meth:`relay.stun.Message.verify`.

What follows MESSAGE-INTEGRITY is not protected by it, so it is ignored, but for MESSAGE-INTEGRITY-SHA256 and
FINGERPRINT (RFC 8489, 9): an attacker on the path could append to a signed message otherwise.

Pure.
"""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

from relay.stun.attributes import ATTRIBUTES
from relay.stun.errors import BadAttribute, BadMessage
from relay.stun.layout import LAYOUTS, Envelope
from relay.stun.message import Message, attribute_name
from relay.stun.wire import (
    ATTRIBUTE_HEAD,
    COMPREHENSION_OPTIONAL,
    FINGERPRINT,
    FINGERPRINT_MASK,
    HEADER,
    HEADER_LENGTH,
    MAGIC_COOKIE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    split_type,
)

__all__ = ["is_stun", "parse"]

MAX_MALFORMED = 8
"""Malformed values that are told as such; with more, the bytes are no message. Each costs a microsecond or two, and
anybody can send a thousand."""

_new = Message.__new__
_unpack_head = ATTRIBUTE_HEAD.unpack_from
_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")


def is_stun(data: bytes) -> bool:
    """Whether a datagram has a STUN header whose cookie and length fit: the test to make before any parsing.

    The first byte has to be below 4 (RFC 7983, 7), which all methods in use satisfy. Raises nothing.
    """
    size = len(data)
    return (
        size >= HEADER_LENGTH
        and data[0] < 4
        and data[4:8] == _COOKIE_BYTES
        and (data[2] << 8 | data[3]) == size - HEADER_LENGTH
        and not size & 3
    )


def parse(data: bytes) -> Message:
    """Read a message.

    Args:
        data: one whole message and nothing else.

    Raises:
        BadMessage: if the bytes are not a well-formed message, a known attribute has a malformed value, or FINGERPRINT
            is wrong or not the last attribute. Nothing else is raised, whatever the bytes are. If it is the value of
            an attribute alone, it is a BadAttribute.
    """
    layout = LAYOUTS.get(data[:4])
    if layout is None:
        return _parse(data)
    try:
        fields = layout.unpack(data)
        while fields[::2] != layout.heads:
            if layout.other is None:
                return _parse(data)
            layout = layout.other
            fields = layout.unpack(data)
        if fields[-1] != crc32(data[:-8]) ^ FINGERPRINT_MASK:
            return _parse(data)
        transaction_id, found = fields[1], list(fields[3:-4:2])
        for index, decode in layout.decoders:
            found[index] = decode(found[index])
        for index, decode_xored in layout.xored:
            found[index] = decode_xored(found[index], transaction_id)
    except (ValueError, struct.error):  # UnicodeDecodeError and BadMessage are ValueErrors
        return _parse(data)  # which says what is wrong
    message = _new(Message)
    message.method, message.message_class, message.transaction_id = layout.method, layout.message_class, transaction_id
    message._pairs, message._codes, message._values = None, layout.codes, found
    message._raw, message._envelope = data, layout.envelope
    return message


def _parse(data: bytes) -> Message:
    size = len(data)
    if size < HEADER_LENGTH:
        raise BadMessage(f"{size} bytes, fewer than the {HEADER_LENGTH} of a header")
    bits, length, cookie, transaction_id = HEADER.unpack_from(data)
    if cookie != MAGIC_COOKIE:
        raise BadMessage(f"magic cookie 0x{cookie:08x}, not 0x{MAGIC_COOKIE:08x}")
    if length & 3 or length != size - HEADER_LENGTH:
        raise BadMessage(f"length {length} in a message of {size} bytes")
    method, message_class = split_type(bits)
    message = Message(method, message_class, transaction_id)
    malformed: list[str] = []
    message._raw, message._envelope = data, _parse_attributes(message.attributes, data, transaction_id, malformed)
    if malformed:
        raise BadAttribute(malformed[0], message)
    return message


def _parse_attributes(
    attributes: list[tuple[int, Any]], data: bytes, transaction_id: bytes, malformed: list[str]
) -> Envelope:
    # Every attribute starts on a multiple of four and the length is one, so a head of four bytes is always there.
    unknown: list[int] = []
    integrity_at = sha256_at = code = 0
    has_fingerprint = False
    position, end = HEADER_LENGTH, len(data)
    try:
        while position < end:
            code, length = _unpack_head(data, position)
            start = position + 4
            stop = start + length
            if stop > end:
                raise BadMessage(f"{length} bytes announced, {end - start} there")
            if code in ATTRIBUTES:
                if not integrity_at and not sha256_at:
                    try:
                        attributes.append((code, ATTRIBUTES[code].decode(data[start:stop], transaction_id)))
                    except BadMessage as error:
                        if len(malformed) == MAX_MALFORMED:
                            raise
                        malformed.append(f"{attribute_name(code)}: {error}")
            elif code == FINGERPRINT:
                has_fingerprint = _check_fingerprint(data, position, length)
            elif code == MESSAGE_INTEGRITY_SHA256:
                sha256_at = sha256_at or _check_sha256(position, length)
            elif not integrity_at and not sha256_at:
                if code == MESSAGE_INTEGRITY:
                    integrity_at = _check_integrity(position, length)
                else:
                    attributes.append((code, data[start:stop]))
                    unknown.append(code)
            position = stop + (-length & 3)
    except BadMessage as error:
        raise BadMessage(f"{attribute_name(code)}: {error}") from error
    return Envelope(_required(unknown), integrity_at, sha256_at, has_fingerprint)


def _required(unknown: list[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([code for code in unknown if code < COMPREHENSION_OPTIONAL])) if unknown else ()


def _check_integrity(position: int, length: int) -> int:
    if length != 20:
        raise BadMessage(f"length {length}, not 20")
    return position


def _check_sha256(position: int, length: int) -> int:
    if length & 3 or not 16 <= length <= 32:
        raise BadMessage(f"length {length}, not a multiple of 4 within 16 to 32")
    return position


def _check_fingerprint(data: bytes, position: int, length: int) -> bool:
    if length != 4:
        raise BadMessage(f"length {length}, not 4")
    if position + 8 != len(data):
        raise BadMessage("not the last attribute")
    if int.from_bytes(data[-4:], "big") != crc32(data[:position]) ^ FINGERPRINT_MASK:
        raise BadMessage("wrong")
    return True
