"""Where do the messages begin and end in a stream to or from a TURN server?

Over TCP and TLS there are STUN messages and ChannelData, told apart by the two top bits (RFC 8656, 12, table 3); both
begin with their length. ChannelData is padded to a multiple of four on a stream (12.5). Pure.
"""

from __future__ import annotations

import struct

from relay.stun.errors import BadMessage
from relay.stun.wire import HEADER_LENGTH, MAGIC_COOKIE

__all__ = ["MAX_MESSAGE_LENGTH", "StreamFramer"]

MAX_MESSAGE_LENGTH = 65_552
"""Bytes of the longest message: the longest STUN message; padded ChannelData has 65,540 at most."""

_PREFIX_LENGTH = 8  # bytes of a STUN message up to and including its cookie
_CHANNEL_HEADER_LENGTH = 4
_HEAD = struct.Struct(">HH")


class StreamFramer:
    """Cuts a stream into messages. Never holds more than one incomplete message, :data:`MAX_MESSAGE_LENGTH` bytes."""

    __slots__ = ("_buffer", "_failure", "_needed", "_position")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._needed = _CHANNEL_HEADER_LENGTH
        self._failure: str | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived.

        Returns:
            The messages that are now complete, in order: STUN messages whole, ChannelData without its padding.

        Raises:
            BadMessage: if what follows is neither. The stream is lost then, with the messages that this call had found:
                every further call raises.
        """
        self.add(data)
        messages = []
        while (message := self.next_message()) is not None:
            messages.append(message)
        return messages

    def add(self, data: bytes) -> None:
        """Take what arrived, for :meth:`next_message`."""
        if self._failure is None:
            self._buffer += data

    def next_message(self) -> bytes | None:
        """The next message, as in :meth:`feed`; ``None``: it is not complete.

        Raises:
            BadMessage: what follows is none; every further call raises.
        """
        if self._failure is not None:
            raise BadMessage(self._failure)
        buffer, position = self._buffer, self._position
        if not position and len(buffer) < self._needed:
            return None
        try:
            needed, length = _measure(buffer, position)
        except BadMessage as error:
            self._failure = str(error)
            buffer.clear()
            self._position = 0
            raise
        if len(buffer) - position < needed:
            del buffer[:position]
            self._position = 0
            self._needed = needed
            return None
        self._position = position + needed
        return bytes(buffer[position : position + length])

    def take_rest(self) -> bytes:
        """What came behind the last message: no more messages follow, but something else."""
        rest = bytes(self._buffer[self._position :])
        self._buffer.clear()
        self._position = 0
        self._needed = _CHANNEL_HEADER_LENGTH
        return rest


def _measure(buffer: bytearray, position: int) -> tuple[int, int]:
    # How many bytes have to be there to go on, and how many of them are the message, if they suffice for one.
    available = len(buffer) - position
    if available and buffer[position] >= 0x80:
        raise BadMessage(f"first byte 0x{buffer[position]:02x}: neither STUN nor ChannelData")
    if available < _CHANNEL_HEADER_LENGTH:
        return _CHANNEL_HEADER_LENGTH, 0
    kind, length = _HEAD.unpack_from(buffer, position)
    if kind >= 0x4000:
        length += _CHANNEL_HEADER_LENGTH
        return length + (-length & 3), length
    if length & 3:
        raise BadMessage(f"a STUN message of length {length}, not a multiple of 4")
    if available < _PREFIX_LENGTH:
        return _PREFIX_LENGTH, 0
    cookie = int.from_bytes(buffer[position + 4 : position + 8], "big")
    if cookie != MAGIC_COOKIE:
        raise BadMessage(f"magic cookie 0x{cookie:08x}, not 0x{MAGIC_COOKIE:08x}")
    return HEADER_LENGTH + length, HEADER_LENGTH + length
