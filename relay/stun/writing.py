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

TEXT_CACHE_SIZE = 512
"""Texts that are remembered as written: at most 763 bytes each."""

_HEAD = struct.Struct(">HH")
_U32 = struct.Struct(">HHI")
_U64 = struct.Struct(">HHQ")


def write_attribute(code: int, value: Any, transaction_id: bytes) -> bytes:
    """One attribute as bytes, padded with zeroes.

    Args:
        code: 0 … 0xFFFF.
        value: what the attribute of that code takes; bytes where there is none.
        transaction_id: 12 bytes.

    Raises:
        ValueError, OverflowError, struct.error: if the value does not fit.
    """
    writer = WRITERS.get(code)
    if writer is not None:
        return writer(value)
    if code in _XORED and ":" not in value[0]:
        return _write_xored_4(code, value)
    attribute = ATTRIBUTES.get(code)
    data: bytes = value if attribute is None else attribute.encode(value, transaction_id)
    return _padded(code, data)


@lru_cache(maxsize=TEXT_CACHE_SIZE)
def _write_text(code: int, text: str) -> bytes:
    return _padded(code, values.encode_text(text, b""))


@lru_cache(maxsize=values.ADDRESS_CACHE_SIZE)
def _write_xored_4(code: int, address: TransportAddress) -> bytes:
    # The transaction id is in IPv6 addresses only.
    return _padded(code, values.encode_xor_address(address, b""))


def _write_flag(head: bytes, value: bool) -> bytes:
    return head + values.encode_flag(value, b"")


def _padded(code: int, data: bytes) -> bytes:
    return _HEAD.pack(code, len(data)) + data + values.padding(len(data))


def _writer(attribute: Attribute[Any]) -> Callable[[Any], bytes] | None:
    if attribute.encode is values.encode_u32:
        return partial(_U32.pack, attribute, 4)
    if attribute.encode is values.encode_u64:
        return partial(_U64.pack, attribute, 8)
    if attribute.encode is values.encode_text:
        return partial(_write_text, attribute)
    if attribute.encode is values.encode_flag:
        return partial(_write_flag, _HEAD.pack(attribute, 0))
    return None


WRITERS: dict[int, Callable[[Any], bytes]] = {
    attribute: writer for attribute in ATTRIBUTES.values() if (writer := _writer(attribute)) is not None
}
"""By code, those that do not need the transaction id."""

_XORED = frozenset(code for code, attribute in ATTRIBUTES.items() if attribute.encode is values.encode_xor_address)
