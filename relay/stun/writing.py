"""How is an attribute written: type, length, value, padding?

RFC 8489, 14. The kinds that every connectivity check carries have a writer of their own, which writes all of it at
once; texts and IPv4 addresses are the same in one check after the other, so what was written is remembered.

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from iceagent.net.address import TransportAddress
from relay.stun import values
from relay.stun.attributes import ATTRIBUTES, Attribute
from relay.stun.wire import ATTRIBUTE_HEAD, padding

TEXT_CACHE_SIZE = 512
"""Texts that are remembered as written: at most 763 bytes each."""

_U32 = struct.Struct(">HHI")
_U64 = struct.Struct(">HHQ")


class NeedsTransactionId(LookupError):
    """An XORed IPv6 address has to be written by :func:`write_attribute`."""


def write_attribute(code: int, value: Any, transaction_id: bytes) -> bytes:
    """One attribute as bytes, padded with zeroes.

    Args:
        code: 0 … 0xFFFF.
        value: what the attribute of that code takes; bytes where there is none.
        transaction_id: 12 bytes.

    Raises:
        ValueError, OverflowError, struct.error: if the value does not fit.
    """
    attribute = ATTRIBUTES.get(code)
    data: bytes = value if attribute is None else attribute.encode(value, transaction_id)
    return _padded(code, data)


def _text_writer(code: int) -> Callable[[str], bytes]:
    @lru_cache(maxsize=TEXT_CACHE_SIZE)
    def write(text: str) -> bytes:
        return _padded(code, values.encode_text(text, b""))

    return write


def _xored_writer(code: int) -> Callable[[TransportAddress], bytes]:
    @lru_cache(maxsize=values.ADDRESS_CACHE_SIZE)
    def write(address: TransportAddress) -> bytes:
        if ":" in address[0]:
            raise NeedsTransactionId
        return _padded(code, values.encode_xor_address(address, b""))

    return write


def _flag_writer(code: int) -> Callable[[bool], bytes]:
    head = ATTRIBUTE_HEAD.pack(code, 0)

    def write(value: bool) -> bytes:
        return head if value is True else values.encode_flag(value, b"")

    return write


def _padded(code: int, data: bytes) -> bytes:
    return ATTRIBUTE_HEAD.pack(code, len(data)) + data + padding(len(data))


def _writer(attribute: Attribute[Any]) -> Callable[[Any], bytes] | None:
    if attribute.encode is values.encode_u32:
        return partial(_U32.pack, int(attribute), 4)
    if attribute.encode is values.encode_u64:
        return partial(_U64.pack, int(attribute), 8)
    if attribute.encode is values.encode_text:
        return _text_writer(attribute)
    if attribute.encode is values.encode_xor_address:
        return _xored_writer(attribute)
    if attribute.encode is values.encode_flag:
        return _flag_writer(attribute)
    if attribute.encode is values.encode_bytes:
        return partial(_padded, int(attribute))
    return None


WRITERS: dict[int, Callable[[Any], bytes]] = {
    attribute: writer for attribute in ATTRIBUTES.values() if (writer := _writer(attribute)) is not None
}
"""By code, those that do not need the transaction id."""
