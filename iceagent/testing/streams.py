"""How do TCP streams cross a simulated network?

As a stream of bytes with the delay of the links it crosses and without their loss (TCP repairs it); while a link is
cut, what is written waits, and after 30 s the stream breaks. NATs and firewalls let streams out, where their policy
allows the port, and none in. TLS is a flag that both ends must agree on: there is no cryptography here.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from iceagent.net.address import TransportAddress
from iceagent.net.host import Stream, StreamListener
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.links import Pipe
from iceagent.testing.topology import Link, NatNode, Node

__all__ = ["MemoryListener", "MemoryStream", "Route", "connect", "find_route"]

MAX_WRITE_QUEUE = 1 << 20
"""Bytes waiting to leave on one stream; the bound of :class:`iceagent.net.host.Stream`."""

CONNECT_TIMEOUT_S = 10.0
STALL_LIMIT_S = 30.0
RETRY_S = 0.2
MAX_NESTING = 16
"""Routers on one way; more is a loop."""


class Route(NamedTuple):
    """The way of a stream.

    Attributes:
        node: where it ends.
        seen_source: the client's address as the server sees it.
        there: what it crosses to the server.
        back: what it crosses to the client.
    """

    node: Node
    seen_source: TransportAddress
    there: tuple[Pipe, ...]
    back: tuple[Pipe, ...]


def find_route(node: Node, source: TransportAddress, destination: TransportAddress) -> Route | int:
    """The way of a TCP connection, or the errno that an attempt ends with.

    Returns:
        EADDRNOTAVAIL (the source is not the node's), EHOSTUNREACH (no such machine) or ETIMEDOUT (a router drops it).
    """
    if node.has(source.host) and node.has(destination.host):
        return Route(node, source, (), ())
    link = node.link_of(source.host)
    if link is None:
        return errno.EADDRNOTAVAIL
    crossed: list[tuple[Pipe, Pipe]] = [(link.up, link.down)]
    realm, seen = link.realm, source
    for _ in range(MAX_NESTING):
        member = realm.members.get(destination.host)
        gateway = realm.gateway
        if member is None and gateway is not None:
            box = gateway.box(destination.version)
            if box is None:
                return errno.EHOSTUNREACH
            if not gateway.lets_out(destination, gateway.tcp_ports) or destination.host in box.external_hosts:
                return errno.ETIMEDOUT
            seen = TransportAddress(box.external_hosts[0], seen.port) if box.external_hosts else seen
            crossed.append((gateway.link.up, gateway.link.down))
            realm = gateway.outer
        elif isinstance(member, NatNode):
            box = member.box(destination.version)
            if not (isinstance(box, FirewallModel) and box.is_open):
                return errno.ETIMEDOUT
            crossed.append((member.link.down, member.link.up))
            realm = member.inner
        elif isinstance(member, Link) and member.node is not None:
            crossed.append((member.down, member.up))
            return Route(member.node, seen, tuple(pipe for pipe, _ in crossed), tuple(pipe for _, pipe in crossed))
        else:
            return errno.EHOSTUNREACH
    return errno.EHOSTUNREACH


class MemoryListener:
    """Accepts streams; implements :class:`iceagent.net.host.Listener`."""

    def __init__(
        self,
        address: TransportAddress,
        accept: Callable[[Stream], StreamListener],
        is_tls: bool,
        release: Callable[[], None],
    ) -> None:
        self.address = address
        self.accept = accept
        self.is_tls = is_tls
        self._release = release

    def close(self) -> None:
        """Accept no more; idempotent. Streams accepted before stay open."""
        self._release()


class MemoryStream:
    """One end of a stream; implements :class:`iceagent.net.host.Stream`.

    Args:
        local: our end.
        remote: the other end, as seen from here.
        path: what it crosses to get there.
    """

    def __init__(self, local: TransportAddress, remote: TransportAddress, path: tuple[Pipe, ...]) -> None:
        self.local_address = local
        self.remote_address = remote
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._other: MemoryStream | None = None
        self._listener: StreamListener | None = None
        self._is_open = True
        self._waiting: deque[bytes | int] = deque()
        self._waiting_bytes = 0
        self._in_flight: deque[bytes | int] = deque()
        self._last_arrival_at = 0.0
        self._stalled_at: float | None = None
        self._retry: asyncio.TimerHandle | None = None

    def join(self, other: MemoryStream) -> None:
        """Make two ends one stream."""
        self._other, other._other = other, self

    def listen(self, listener: StreamListener) -> None:
        """Say who hears what arrives."""
        if self._is_open:
            self._listener = listener

    def write(self, data: bytes) -> None:
        """Queue ``data``; when more than 1 MiB would wait, the stream is aborted. Nothing happens on a closed one."""
        if not self._is_open or not data:
            return
        if self._waiting_bytes + len(data) > MAX_WRITE_QUEUE:
            self._waiting.clear()
            self._break(errno.ENOBUFS)
            self._queue(errno.ECONNRESET)
            return
        self._waiting_bytes += len(data)
        self._queue(data)

    def close(self) -> None:
        """Close once what is queued is out; idempotent. The listener hears nothing afterwards."""
        if self._is_open:
            self._is_open = False
            self._listener = None
            self._queue(0)

    def _queue(self, item: bytes | int) -> None:
        """Send bytes, or the end: 0 in order, else an errno."""
        self._waiting.append(item)
        if self._retry is None:
            self._flush()

    def _flush(self) -> None:
        self._retry = None
        now = self._loop.time()
        if any(pipe.is_cut for pipe in self._path):
            self._stall(now)
            return
        self._stalled_at = None
        at = self._last_arrival_at = max(now + sum(pipe.latency_s for pipe in self._path), self._last_arrival_at)
        while self._waiting:
            self._in_flight.append(self._waiting.popleft())
            # Timers of one time have no order among themselves: each takes what is first, not what it was set for.
            self._loop.call_at(at, self._hand_over)
        self._waiting_bytes = 0

    def _stall(self, now: float) -> None:
        self._stalled_at = now if self._stalled_at is None else self._stalled_at
        if now - self._stalled_at >= STALL_LIMIT_S:
            self._waiting.clear()
            self._break(errno.ETIMEDOUT)
        else:
            self._retry = self._loop.call_later(RETRY_S, self._flush)

    def _hand_over(self) -> None:
        item = self._in_flight.popleft()
        if self._other is not None:
            self._other._take(item)

    def _take(self, item: bytes | int) -> None:
        if not self._is_open:
            return
        if isinstance(item, int):
            self._break(item)
        elif self._listener is not None:
            self._listener.data_received(self, item)

    def _break(self, code: int) -> None:
        self._is_open = False
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.connection_lost(self, code)


async def connect(
    route: Route | int,
    find_listener: Callable[[Node], MemoryListener | None],
    local: TransportAddress,
    remote: TransportAddress,
    listener: StreamListener,
    *,
    is_tls: bool,
) -> MemoryStream:
    """Open a stream.

    Args:
        route: from :func:`find_route`.
        find_listener: who accepts at ``remote`` on a node, asked when the first packet is there.
        local: the client's address.
        remote: the server's address.
        listener: who hears what the client's end receives.
        is_tls: whether the client speaks TLS, which takes one more round trip.

    Raises:
        OSError: ECONNREFUSED, EHOSTUNREACH, or as :func:`find_route` says; TimeoutError after 10 s; ssl.SSLError where
            only one side speaks TLS.
    """
    if isinstance(route, int) or any(pipe.is_cut for pipe in (*route.there, *route.back)):
        code = route if isinstance(route, int) else errno.ETIMEDOUT
        if code == errno.ETIMEDOUT:
            await asyncio.sleep(CONNECT_TIMEOUT_S)
        raise OSError(code, f"no stream from {local} to {remote}")
    await asyncio.sleep(sum(pipe.latency_s for pipe in (*route.there, *route.back)) * (2 if is_tls else 1))
    acceptor = find_listener(route.node)
    if acceptor is None:
        raise OSError(errno.ECONNREFUSED, f"nothing accepts streams at {remote}")
    if acceptor.is_tls is not is_tls:
        raise ssl.SSLError(f"only one side of the stream to {remote} speaks TLS")
    ours = MemoryStream(local, remote, route.there)
    theirs = MemoryStream(remote, route.seen_source, route.back)
    ours.join(theirs)
    ours.listen(listener)
    theirs.listen(acceptor.accept(theirs))
    return ours
