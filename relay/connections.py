"""How are the streams of a STUN and TURN server read?

Each is cut into messages; whoever speaks something else is cut off, unless it has become a client's data connection
(RFC 6062), whose bytes are passed on as they are. A stream is not read while something of it waits,
and all streams together have so many messages in a turn of the loop, in turns: clients that send requests without end
slow each other down, and nobody who asks over UDP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from iceagent.net.address import TransportAddress
from iceagent.net.driver import Driver
from iceagent.net.host import Stream, StreamListener
from relay.stun import HEADER_LENGTH, BadMessage, StreamFramer, is_stun
from relay.stun_server import StreamServer

__all__ = ["Connection", "Pausable", "RawListener", "Turns"]

MESSAGES_PER_TURN = 64
"""Messages taken from all streams together before UDP and the timers get their turn."""

MAX_UNREAD = 1 << 20
"""Bytes that may wait of a stream that cannot be paused, or that goes on for a while; with more it is cut off."""


@runtime_checkable
class Pausable(Protocol):
    """A stream that can be told to wait, as those of this machine can."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class RawListener(StreamListener, Protocol):
    """Who hears a stream that is no longer cut into messages; see ``iceagent/net/streams.py``."""

    def eof_received(self, stream: Stream) -> bool: ...

    def writing_paused(self, stream: Stream) -> None: ...

    def writing_resumed(self, stream: Stream) -> None: ...


class Turns:
    """Lets connections read in turns, some messages of all together in one turn of the loop.

    Args:
        messages: how many; counted in bytes, at the shortest message's length.
    """

    def __init__(self, messages: int) -> None:
        self._budget = messages * HEADER_LENGTH
        self._waiting: deque[Connection] = deque()
        self._loop = asyncio.get_running_loop()

    def add(self, connection: Connection) -> None:
        """It has something to read, and had nothing before."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        left = self._budget
        try:
            while self._waiting and left > 0:
                connection = self._waiting[0]
                left -= max(HEADER_LENGTH, connection.read(left))
                self._waiting.popleft()
                if connection.has_unread:
                    self._waiting.append(connection)
        finally:
            if self._waiting:
                self._loop.call_soon(self._run)


class Connection:
    """One accepted stream: cuts what arrives into messages; whoever speaks something else than STUN is cut off."""

    def __init__(
        self,
        stream: Stream,
        core: StreamServer,
        driver: Driver,
        turns: Turns,
        register: dict[tuple[TransportAddress, TransportAddress], Connection],
        on_channel_data: Callable[[tuple[TransportAddress, TransportAddress], bytes], bool],
        on_closed: Callable[[tuple[TransportAddress, TransportAddress]], None],
    ) -> None:
        self._on_channel_data = on_channel_data
        self._on_closed = on_closed
        self.stream = stream
        self._core = core
        self._driver = driver
        self._register = register
        self._key = (stream.local_address, stream.remote_address)
        self._turns = turns
        self._pausable = stream if isinstance(stream, Pausable) else None
        self._raw: RawListener | None = None
        self._unread = b""
        self._position = 0
        self._framer = StreamFramer()
        self._has_begun = False
        self._is_closed = False
        register[self._key] = self

    def close(self) -> None:
        """Close, and be forgotten by the shell; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._unread = b""
            self._register.pop(self._key, None)
            self.stream.close()
            self._on_closed(self._key)

    def become(self, raw: RawListener) -> None:
        """No more messages: from now on this one hears what comes, and closes the stream."""
        self._raw = raw
        self._register.pop(self._key, None)
        self._driver.command(self._core.close, *self._key)

    @property
    def has_unread(self) -> bool:
        """Whether something waits for its turn."""
        return bool(self._unread)

    def data_received(self, stream: Stream, data: bytes) -> None:
        """Keep it for its turn, and read no more until then."""
        if self._is_closed or not data:
            return
        if self._raw is not None:
            self._raw.data_received(stream, data)
            return
        if self._unread:
            self._unread = self._unread[self._position :] + data
            self._position = 0
            if len(self._unread) > MAX_UNREAD:
                self._end()
            return
        self._unread, self._position = data, 0
        self._turns.add(self)
        if self._pausable is not None:
            self._pausable.pause_reading()

    def read(self, limit: int) -> int:
        """Give whole messages out of at most ``limit`` bytes to the core; returns the number of bytes."""
        data = self._unread[self._position : self._position + limit]
        self._position += len(data)
        self._feed(data)
        if self._raw is not None:
            # Whoever did not wait for the answer has sent what is not ours.
            early = self._framer.take_rest() + self._unread[self._position :]
            self._unread = b""
            if early:
                self._raw.data_received(self.stream, early)
            return len(data)
        if self._position >= len(self._unread):
            self._unread = b""
            if self._pausable is not None:
                self._pausable.resume_reading()
        return len(data)

    def _feed(self, data: bytes) -> None:
        # The framer knows ChannelData as well; a stream that begins so is HTTP or noise.
        if self._is_closed or not self._begins_like_stun(data):
            self._end()
            return
        self._framer.add(data)
        try:
            while self._raw is None and (message := self._framer.next_message()) is not None:
                self._take(message)
        except BadMessage:
            self._end()

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """The other side ended it."""
        if self._raw is not None:
            self._raw.connection_lost(stream, errno)
        else:
            self._end()

    def eof_received(self, stream: Stream) -> bool:
        """The other side will send no more: of messages, it wants no answers either."""
        return self._raw is not None and self._raw.eof_received(stream)

    def writing_paused(self, stream: Stream) -> None:
        """Much waits to be written."""
        if self._raw is not None:
            self._raw.writing_paused(stream)

    def writing_resumed(self, stream: Stream) -> None:
        """Little does."""
        if self._raw is not None:
            self._raw.writing_resumed(stream)

    def _take(self, message: bytes) -> None:
        if self._is_closed:
            return
        if is_stun(message):
            self._driver.datagram(*self._key, message)
        elif not self._on_channel_data(self._key, message):
            self._end()

    def _begins_like_stun(self, data: bytes) -> bool:
        if self._has_begun or not data:
            return True
        self._has_begun = True
        return data[0] < 4

    def _end(self) -> None:
        if not self._is_closed:
            self.close()
            self._driver.command(self._core.close, *self._key)
