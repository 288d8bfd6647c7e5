"""How is a client of RFC 3489 answered?

RFC 8489, 12: stand-alone servers "SHOULD support backwards compatibility with clients using [RFC3489]". How is said
in RFC 5389, 12.2, to which RFC 8489, 11 refers: such a client is known by the missing magic cookie; its 16 bytes of
transaction id are copied, and it gets a MAPPED-ADDRESS instead of an XOR-MAPPED-ADDRESS. libnice asks STUN servers
like this in its RFC 5245 mode too, and gets no server-reflexive candidate otherwise.

A CHANGE-REQUEST that asks for an answer from elsewhere gets none: an answer from the same address would make the
client believe that it stands behind a full cone NAT. Pure.
"""

from __future__ import annotations

import struct

from iceagent.net.address import TransportAddress
from relay.stun.wire import HEADER_LENGTH, MAGIC_COOKIE

__all__ = ["classic_response"]

_REQUEST = 0x0001
_RESPONSE = 0x0101
_MAPPED_ADDRESS = 0x0001
_CHANGE_REQUEST = 0x0003
_HEAD = struct.Struct("!HHI")
_ATTRIBUTE = struct.Struct("!HH")
# More attributes than any Binding request has.
_MAX_ATTRIBUTES = 16


def classic_response(data: bytes, source: TransportAddress) -> bytes | None:
    """The answer to a Binding request of RFC 3489; ``None`` if ``data`` is none, or asks for what is not offered."""
    if len(data) < HEADER_LENGTH or len(data) % 4:
        return None
    message_type, length, cookie = _HEAD.unpack_from(data)
    if message_type != _REQUEST or length != len(data) - HEADER_LENGTH or cookie == MAGIC_COOKIE:
        return None
    if not _is_plain(data):
        return None
    ip = source.ip
    value = struct.pack("!BBH", 0, 1 if ip.version == 4 else 2, source.port) + ip.packed
    body = _ATTRIBUTE.pack(_MAPPED_ADDRESS, len(value)) + value
    return struct.pack("!HH", _RESPONSE, len(body)) + data[4:HEADER_LENGTH] + body


def _is_plain(data: bytes) -> bool:
    """Whether it has no attribute that we would have to understand, but for a CHANGE-REQUEST that asks for nothing."""
    position = HEADER_LENGTH
    for _ in range(_MAX_ATTRIBUTES):
        if position == len(data):
            return True
        if position + _ATTRIBUTE.size > len(data):
            return False
        code, length = _ATTRIBUTE.unpack_from(data, position)
        value = data[position + _ATTRIBUTE.size : position + _ATTRIBUTE.size + length]
        asks_nothing = code == _CHANGE_REQUEST and value == bytes(4)
        if len(value) != length or (code < 0x8000 and not asks_nothing):
            return False
        position += _ATTRIBUTE.size + (length + 3 & ~3)
    return False
