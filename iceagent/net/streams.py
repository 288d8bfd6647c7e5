"""How do TCP and TLS streams get in and out of this machine?

asyncio's transports, behind :class:`iceagent.net.host.Stream`: what is written waits in a queue of at most 1 MiB, and a
peer that lets it fill is cut off, so that nobody can make us hold more. TLS verifies the server's name and chain.

No framing: whoever listens cuts the bytes into messages.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from iceagent.net.address import TransportAddress, canonical_host
from iceagent.net.host import Stream, StreamListener

__all__ = ["TcpListener", "TcpStream", "connect_tcp", "listen_tcp"]

# What may wait to be sent on one stream, in bytes.
MAX_WRITE_QUEUE = 1 << 20
# A server that needs longer to take a connection, TLS handshake included, would be of no use for a call.
CONNECT_TIMEOUT_S = 10.0
# How long a closed stream may take to get rid of what is queued; then it is aborted.
CLOSE_TIMEOUT_S = 1.0


async def connect_tcp(
    remote: TransportAddress,
    listener: StreamListener,
    *,
    local: TransportAddress | None = None,
    tls_server_name: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    alpn: Sequence[str] = (),
) -> TcpStream:
    """Connect a stream.

    Args:
        remote: where to.
        listener: who is told what the stream receives.
        local: the address to connect from; ``None``: what the routes say, any port.
        tls_server_name: use TLS, and verify that the server is this; sent as SNI.
        ssl_context: how TLS verifies, instead of by the system's authorities.
        alpn: the application protocols to offer (RFC 7301; ``stun.turn`` for TURN, RFC 7443). Only without
            ``ssl_context``, which has its own.

    Raises:
        OSError: refused, unreachable, no answer within 10 s (TimeoutError), or the certificate is not valid
            (ssl.SSLCertVerificationError).
    """
    loop = asyncio.get_running_loop()
    if tls_server_name is not None and ssl_context is None:
        # Reading the system's authorities takes tens of milliseconds.
        ssl_context = await loop.run_in_executor(None, _client_context, tuple(alpn))
    is_tls = tls_server_name is not None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, stream = await loop.create_connection(
            lambda: TcpStream(lambda _: listener),
            remote.host,
            remote.port,
            ssl=ssl_context if is_tls else None,
            server_hostname=tls_server_name,
            local_addr=None if local is None else (local.host, local.port),
            ssl_handshake_timeout=CONNECT_TIMEOUT_S if is_tls else None,
            ssl_shutdown_timeout=CLOSE_TIMEOUT_S if is_tls else None,
        )
    return stream


async def listen_tcp(
    local: TransportAddress,
    accept: Callable[[Stream], StreamListener],
    *,
    ssl_context: ssl.SSLContext | None = None,
) -> TcpListener:
    """Accept streams; with ``ssl_context`` (a server's, with its certificate), TLS.

    Args:
        local: where to listen; port 0 takes a free one.
        accept: called with every new stream, over TLS after the handshake; returns who hears what it receives.
        ssl_context: a server's context.

    Raises:
        OSError: the address cannot be bound.
    """
    is_tls = ssl_context is not None
    server = await asyncio.get_running_loop().create_server(
        lambda: TcpStream(accept),
        local.host,
        local.port,
        ssl=ssl_context,
        ssl_handshake_timeout=CONNECT_TIMEOUT_S if is_tls else None,
        ssl_shutdown_timeout=CLOSE_TIMEOUT_S if is_tls else None,
    )
    return TcpListener(server)


class TcpListener:
    """A bound TCP socket that accepts streams; implements :class:`iceagent.net.host.Listener`."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self._address = _address_of(server.sockets[0].getsockname())

    @property
    def address(self) -> TransportAddress:
        """What it is bound to."""
        return self._address

    def close(self) -> None:
        """Accept no more; idempotent. Streams accepted before stay open."""
        self._server.close()


class TcpStream(asyncio.Protocol):
    """A TCP or TLS connection; implements :class:`iceagent.net.host.Stream`."""

    def __init__(self, accept: Callable[[Stream], StreamListener]) -> None:
        self._accept = accept
        self._listener: StreamListener | None = None
        self._abort_errno = 0
        self._abort_timer: asyncio.TimerHandle | None = None

    @property
    def local_address(self) -> TransportAddress:
        """Our end."""
        return self._local_address

    @property
    def remote_address(self) -> TransportAddress:
        """The other end."""
        return self._remote_address

    @property
    def alpn_protocol(self) -> str | None:
        """The application protocol that TLS agreed on; ``None``: none, or no TLS."""
        tls = cast("_NegotiatedTls | None", self._transport.get_extra_info("ssl_object"))
        return None if tls is None else tls.selected_alpn_protocol()

    def write(self, data: bytes) -> None:
        """Queue ``data``; a peer that does not read gets its stream aborted once 1 MiB waits.

        After :meth:`close`, and after the connection was lost, nothing happens.
        """
        if self._listener is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() + len(data) > MAX_WRITE_QUEUE:
            self._abort_errno = errno.ENOBUFS
            self._transport.abort()
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once what is queued is out (a second at most); idempotent. The listener hears nothing afterwards."""
        if self._listener is None:
            return
        self._listener = None
        self._transport.close()
        self._abort_timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the stream is usable (over TLS, after the handshake)."""
        self._transport = cast(asyncio.Transport, transport)
        self._local_address = _address_of(transport.get_extra_info("sockname"))
        self._remote_address = _address_of(transport.get_extra_info("peername"))
        self._listener = _DEAF
        try:
            accepted = self._accept(self)
        except BaseException:
            self._transport.abort()
            raise
        if self._listener is not None:
            self._listener = accepted

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._listener is not None:
            self._listener.data_received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, once."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.connection_lost(self, self._abort_errno or _errno_of(exc))


class _DeafListener:
    """Hears for a stream while ``accept`` is deciding who does."""

    def data_received(self, stream: Stream, data: bytes) -> None:
        """Not called: nothing arrives before ``accept`` has returned."""

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """``accept`` raised: there is nobody to tell."""


_DEAF = _DeafListener()


class _NegotiatedTls(Protocol):
    """What :mod:`ssl` gives for an established session."""

    def selected_alpn_protocol(self) -> str | None: ...


@functools.lru_cache(maxsize=8)
def _client_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _address_of(name: tuple[str, int]) -> TransportAddress:
    return TransportAddress(canonical_host(name[0]), name[1])


def _errno_of(error: Exception | None) -> int:
    if error is None:
        return 0
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return number if number is not None and number > 0 else errno.EPROTO
