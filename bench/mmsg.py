"""How is a server loaded by a process that must not be the bottleneck?

With several datagrams in a call: sendmmsg(2) and recvmmsg(2), which Python does not have, through ctypes. A sender's
datagrams leave one by one, or as a train (UDP_SEGMENT, ``iceagent/net/trains.py``). What comes is counted and not
copied: MSG_TRUNC tells how long it was, and with UDP_GRO a train counts as the datagrams that it has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from iceagent.net.trains import SOL_UDP, UDP_GRO, UDP_SEGMENT

__all__ = ["Count", "Counter", "Sender", "call_mmsg", "load", "mmsg_headers"]

# Messages of one recvmmsg.
MESSAGES = 64
# What has not come when nothing has for so long is lost.
PATIENCE_S = 0.02


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr; the kernel writes ``length``, the bytes of the message."""

    _fields_ = (("message", _Message), ("length", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)


def mmsg_headers(messages: Sequence[Sequence[ctypes.Array[ctypes.c_char]]]) -> ctypes.Array[_Header]:
    """For :func:`call_mmsg`; every message is made of some buffers, which have to live as long."""
    headers = (_Header * len(messages))()
    for header, buffers in zip(headers, messages, strict=True):
        vectors = (_Vector * len(buffers))(*(_Vector(ctypes.addressof(buffer), len(buffer)) for buffer in buffers))
        header.message.vectors = ctypes.cast(vectors, ctypes.POINTER(_Vector))
        header.message.vectors_length = len(buffers)
    return headers


class Sender:
    """Sends the same datagram, so many times in a call, from a connected socket.

    Args:
        sock: connected.
        data: the datagram.
        count: of a call.
        is_train: as one train; else one by one.
    """

    def __init__(self, sock: socket.socket, data: bytes, count: int, *, is_train: bool) -> None:
        self.count = count
        self._socket = sock
        self._train = data * count if is_train else b""
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, len(data) if is_train else 0)
        self._buffer = ctypes.create_string_buffer(data, len(data))
        self._headers = mmsg_headers([[self._buffer]] * count)

    def close(self) -> None:
        """The socket sends one by one again; it stays open."""
        self._socket.setsockopt(SOL_UDP, UDP_SEGMENT, 0)

    def send(self) -> int:
        """Returns how many the kernel took."""
        try:
            if self._train:
                return self.count if self._socket.send(self._train) else 0
        except (BlockingIOError, ConnectionRefusedError):
            return 0
        return max(0, call_mmsg("sendmmsg", self._socket, self._headers, 0))


class Counter:
    """Counts what comes to a socket.

    Args:
        sock: as it comes to.
        size: of a datagram.
    """

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._socket = sock
        self._size = size
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self._buffer = ctypes.create_string_buffer(1)
        self._headers = mmsg_headers([[self._buffer]] * MESSAGES)

    def take(self) -> int:
        """Datagrams that have come since."""
        got = call_mmsg("recvmmsg", self._socket, self._headers, socket.MSG_DONTWAIT | socket.MSG_TRUNC, None)
        return sum(self._headers[i].length for i in range(got)) // self._size if got > 0 else 0


def call_mmsg(name: str, sock: socket.socket, headers: ctypes.Array[_Header], *rest: int | None) -> int:
    """Call ``sendmmsg`` or ``recvmmsg``.

    Returns:
        The number of messages; at most 0 where there is nothing to do, or an ICMP error about what was sent.

    Raises:
        OSError: everything else.
    """
    count: int = getattr(_libc, name)(sock.fileno(), headers, len(headers), *rest)
    if count < 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.ECONNREFUSED, errno.EINTR):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return count


class Count(NamedTuple):
    """What came of a load.

    Attributes:
        sent: datagrams.
        received: of those.
        seconds: elapsed.
    """

    sent: int
    received: int
    seconds: float


class Sends(Protocol):
    """As :class:`Sender`."""

    count: int

    def send(self) -> int: ...


class Takes(Protocol):
    """As :class:`Counter`."""

    def take(self) -> int: ...


def load(
    sender: Sends, counter: Takes, window: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Count:
    """Send as fast as what is sent arrives, and wait for the last of it.

    Args:
        window: datagrams that may be on their way; at least a call's.
        seconds: for so long.
    """
    sent = received = lost = 0
    started = moved = now = clock()
    while now < started + seconds:
        if sent - received - lost + sender.count <= window:
            sent += sender.send()
        came = counter.take()
        now = clock()
        if came:
            received += came
            # A late one is not lost.
            lost = min(lost, sent - received)
            moved = now
        elif now > moved + PATIENCE_S:
            lost = sent - received
            moved = now
    while received < sent and now < moved + PATIENCE_S:
        came = counter.take()
        now = clock()
        if came:
            received += came
            moved = now
    return Count(sent, received, moved - started)
