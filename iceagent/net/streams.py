"""How do TCP and TLS streams get in and out of this machine?

asyncio's transports, behind :class:`iceagent.net.host.Stream`: what is written waits in a queue of at most 1 MiB, and a
peer that lets it fill is cut off, so that nobody can make us hold more. TLS verifies the server's name and chain.

Connections are accepted here, not by asyncio's server, which counts nothing before a TLS handshake is over and writes a
hundred tracebacks at once when descriptors run out. Here the handshakes under way have a bound and 3 s, some
descriptors stay free for the rest of the process, and where there are none at all, accepting pauses.

Through an HTTP proxy, the same socket gets a tunnel (``iceagent.net.proxy``) before TLS or the first byte.

No framing: whoever listens cuts the bytes into messages. Whoever passes them on as they are needs more than a
:class:`iceagent.net.host.StreamListener` hears: one that has the methods ``writing_paused(stream)`` and
``writing_resumed(stream)`` is told when much waits to be sent (64 KiB) and when little does, and one that has
``eof_received(stream)`` when the other end will send no more; if that returns true, we may go on sending, but over TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import select
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

from iceagent.net.address import TransportAddress, canonical_host, quoted
from iceagent.net.host import Proxy, Stream, StreamListener
from iceagent.net.proxy import tunnel
from iceagent.net.resolve import resolve

if sys.platform != "win32":
    import resource

__all__ = ["TcpListener", "TcpStream", "connect_tcp", "descriptor_limit", "listen_tcp", "raise_descriptor_limit"]

# A server that acknowledges nothing for so long, though something was sent, is gone: the default would be many minutes.
USER_TIMEOUT_MS = 3000
# What may wait to be sent on one stream, in bytes.
MAX_WRITE_QUEUE = 1 << 20
# A server that needs longer to take a connection, TLS handshake included, would be of no use for a call.
CONNECT_TIMEOUT_S = 10.0
# How long a closed stream may take to get rid of what is queued; then it is aborted.
CLOSE_TIMEOUT_S = 1.0

# Connections that a listener has accepted and that are not usable yet; one more costs the oldest. A client's handshake
# takes two round trips; at 500 connections a second that do not go on, this leaves it 250 ms. Never more than a quarter
# of the descriptors that connections may have.
MAX_HANDSHAKES = 128
HANDSHAKE_TIMEOUT_S = 3.0
# Connections taken in one go before other work of the loop gets its turn.
ACCEPT_BATCH = 16
# What the kernel keeps for us between two turns.
BACKLOG = 128
# How long nothing is accepted when the kernel has no descriptor or memory for another connection.
ACCEPT_PAUSE_S = 0.1
# Descriptors that no accepted connection may take (but at most a quarter of all): UDP sockets and resolvers need some.
SPARE_DESCRIPTORS = 64

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def connect_tcp(
    remote: TransportAddress,
    listener: StreamListener,
    *,
    local: TransportAddress | None = None,
    tls_server_name: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    alpn: Sequence[str] = (),
    proxy: Proxy | None = None,
    resolve: Callable[[str], Awaitable[Sequence[str]]] = resolve,
    open_socket: Callable[[int, int], socket.socket] = socket.socket,
) -> TcpStream:
    """Connect a stream.

    Args:
        remote: where to.
        listener: who is told what the stream receives.
        local: the address to connect from; ``None``: what the routes say, any port. Of a proxy's addresses, those of
            its family are tried first; it has no effect on the others.
        tls_server_name: use TLS, and verify that the server is this; sent as SNI.
        ssl_context: how TLS verifies, instead of by the system's authorities.
        alpn: the application protocols to offer (RFC 7301; ``stun.turn`` for TURN, RFC 7443). Only without
            ``ssl_context``, which has its own.
        proxy: ask this one for a tunnel to ``remote``, and speak TLS through that. Its addresses are tried in order,
            the next one when one is refused or unreachable. The stream's ``remote_address`` is the proxy's.
        resolve: finds the addresses of the proxy's name.
        open_socket: makes the socket, of a family and a kind; in another network namespace, say.

    Raises:
        OSError: refused (by the proxy: iceagent.net.proxy.ProxyRefused), unreachable, not done within 10 s
            (TimeoutError), or the certificate is not valid (ssl.SSLCertVerificationError).
        ValueError: the proxy's credentials cannot be sent; never of what ``Proxy.parse`` gave.
    """
    loop = asyncio.get_running_loop()
    if tls_server_name is not None and ssl_context is None:
        # Reading the system's authorities takes tens of milliseconds.
        ssl_context = await loop.run_in_executor(None, _client_context, tuple(alpn))
    is_tls = tls_server_name is not None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if proxy is None:
            sock = await _connected(remote, local, open_socket)
        else:
            sock = await _connected_to_proxy(proxy, local, resolve, open_socket)
        try:
            if proxy is not None:
                await tunnel(sock, remote.host, remote.port, proxy)
            _, stream = await loop.create_connection(
                lambda: TcpStream(lambda _: listener),
                sock=sock,
                ssl=ssl_context if is_tls else None,
                server_hostname=tls_server_name,
                ssl_handshake_timeout=CONNECT_TIMEOUT_S if is_tls else None,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S if is_tls else None,
            )
        except BaseException:
            sock.close()
            raise
    return stream


async def _connected(
    remote: TransportAddress, local: TransportAddress | None, open_socket: Callable[[int, int], socket.socket]
) -> socket.socket:
    sock = open_socket(_family(remote), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # asyncio does so only where the socket was made with IPPROTO_TCP: a check must not wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Also to connect.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        if local is not None:
            if local.port:
                # From where a listener of ours may be (RFC 6062, 5.2), see TcpListener.share_address.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((local.host, local.port))
        await asyncio.get_running_loop().sock_connect(sock, (remote.host, remote.port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected_to_proxy(
    proxy: Proxy,
    local: TransportAddress | None,
    resolve: Callable[[str], Awaitable[Sequence[str]]],
    open_socket: Callable[[int, int], socket.socket],
) -> socket.socket:
    """A socket that is connected to the first of the proxy's addresses that takes it."""
    addresses = [TransportAddress(host, proxy.port) for host in await _hosts_of(proxy, resolve)]
    if local is not None:
        addresses.sort(key=lambda address: address.version != local.version)
    refused: OSError = socket.gaierror(socket.EAI_NONAME, f"the proxy's name {quoted(proxy.host)} has no address")
    for address in addresses:
        fits = local is not None and local.version == address.version
        try:
            return await _connected(address, local if fits else None, open_socket)
        except OSError as error:
            refused = error
    raise refused


async def _hosts_of(proxy: Proxy, resolve: Callable[[str], Awaitable[Sequence[str]]]) -> Sequence[str]:
    try:
        return (canonical_host(proxy.host),)
    except ValueError:
        return await resolve(proxy.host)


async def listen_tcp(
    local: TransportAddress,
    accept: Callable[[Stream], StreamListener],
    *,
    ssl_context: ssl.SSLContext | None = None,
    open_socket: Callable[[int, int], socket.socket] = socket.socket,
) -> TcpListener:
    """Accept streams; with ``ssl_context`` (a server's, with its certificate), TLS.

    Args:
        local: where to listen; port 0 takes a free one.
        accept: called with every new stream, over TLS after the handshake; returns who hears what it receives.
        ssl_context: a server's context.
        open_socket: as in :func:`connect_tcp`.

    Raises:
        OSError: the address cannot be bound.
    """
    listening = open_socket(_family(local), socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if local.version == 6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((local.host, local.port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return TcpListener(listening, accept, ssl_context)


def _family(address: TransportAddress) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def descriptor_limit() -> int:
    """The lowest descriptor that no accepted connection may have; about as many connections can be open."""
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - min(SPARE_DESCRIPTORS, soft // 4)


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as the system allows it; does nothing where that fails."""
    if sys.platform == "win32":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # OSError: the hard limit is above what the kernel allows now. ValueError: the same, on other systems.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class TcpListener:
    """Accepts streams on a listening socket; implements :class:`iceagent.net.host.Listener`.

    Args:
        listening: not blocking; belongs to the listener.
        accept: as in :func:`listen_tcp`.
        ssl_context: as in :func:`listen_tcp`.

    Attributes:
        counters: ``accepted`` connections, and of them ``handshakes failed`` (those that were given up or took too long
            as well), ``given up`` (the oldest, for a newer one) and ``no descriptor`` (closed at once); ``pauses``.
    """

    def __init__(
        self,
        listening: socket.socket,
        accept: Callable[[Stream], StreamListener],
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._listening = listening
        self._accept = accept
        self._ssl_context = ssl_context
        self._address = _address_of(listening.getsockname())
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        # Connections that are not usable yet, the oldest first.
        self._arriving: dict[socket.socket, None] = {}
        # The loop itself remembers no task.
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(listening.fileno(), self._on_readable)

    @property
    def address(self) -> TransportAddress:
        """What it is bound to."""
        return self._address

    def close(self) -> None:
        """Accept no more; idempotent. Streams accepted before stay open; handshakes under way are given up."""
        if self._listening.fileno() < 0:
            return
        if self._pause is None:
            self._loop.remove_reader(self._listening.fileno())
        else:
            self._pause.cancel()
        self._listening.close()
        while self._arriving:
            self._give_up_oldest()

    def share_address(self) -> None:
        """Let :func:`connect_tcp` connect from this address, too. It was bound alone: nobody else listens there."""
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def _on_readable(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait()
                    return
                # accept(2): an error that the new connection already has; the next one may be fine.
                continue
            self._take(connection)

    def _wait(self) -> None:
        self.counters["pauses"] += 1
        self._loop.remove_reader(self._listening.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.fileno(), self._on_readable)

    def _take(self, connection: socket.socket) -> None:
        self.counters["accepted"] += 1
        limit = descriptor_limit()
        # The kernel gives the lowest number that is free.
        is_too_many = connection.fileno() >= limit
        if is_too_many and not self._arriving:
            self.counters["no descriptor"] += 1
            connection.close()
            return
        if is_too_many or len(self._arriving) >= max(1, min(MAX_HANDSHAKES, limit // 4)):
            self.counters["given up"] += 1
            self._give_up_oldest()
        with contextlib.suppress(OSError):  # It may be gone again.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arriving[connection] = None
        task = self._loop.create_task(self._receive(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_up_oldest(self) -> None:
        """The transport finds its connection at its end, whatever it was doing, and closes it."""
        connection = next(iter(self._arriving))
        del self._arriving[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    async def _receive(self, connection: socket.socket) -> None:
        def usable(stream: Stream) -> StreamListener:
            self._arriving.pop(connection, None)
            return self._accept(stream)

        is_tls = self._ssl_context is not None
        try:
            await self._loop.connect_accepted_socket(
                lambda: TcpStream(usable),
                connection,
                ssl=self._ssl_context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if is_tls else None,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S if is_tls else None,
            )
        except OSError:
            # No TLS, a refused certificate, no answer in time: the other side's affair.
            self.counters["handshakes failed"] += 1
        finally:
            self._arriving.pop(connection, None)


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

    def pause_reading(self) -> None:
        """Let the listener hear nothing until :meth:`resume_reading`; the kernel then slows the other side down.

        What has been decrypted already may still come. Idempotent; nothing happens on a closed stream.
        """
        if self._listener is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """End a pause; idempotent."""
        if self._listener is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def write_eof(self) -> bool:
        """Say that nothing more will be written, once what is queued is out; false: it cannot be said (over TLS)."""
        if self._listener is None or self._transport.is_closing() or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def tell_when_empty(self) -> None:
        """From now on writing is paused as long as more than a byte waits to be sent."""
        if self._listener is not None and not self._transport.is_closing():
            # With a limit of 0, TLS takes an empty queue for a long one.
            self._transport.set_write_buffer_limits(1, 0)

    @property
    def is_flushed(self) -> bool:
        """Whether the kernel has, or is about to have, all that was written."""
        if self._transport.is_closing() or self._transport.get_extra_info("ssl_object") is None:
            return self._transport.get_write_buffer_size() == 0
        # Below TLS is a second queue, which cannot be asked. It is as good as empty when the kernel would take more.
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLOUT)
        return self._transport.get_write_buffer_size() == 0 and bool(poll.poll(0))

    def be_patient(self) -> None:
        """Do not give the other end up as soon as :func:`connect_tcp` would, but when the system does."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # It may be gone again.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

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
        if transport.get_extra_info("peername") is None:
            # It was reset before anybody could ask who it is.
            self._transport.abort()
            return
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

    def pause_writing(self) -> None:
        """Called by asyncio: the queue is long."""
        self._tell("writing_paused")

    def resume_writing(self) -> None:
        """Called by asyncio: it is short again."""
        self._tell("writing_resumed")

    def eof_received(self) -> bool:
        """Called by asyncio: the other end will send no more; false: the transport closes."""
        return self._transport.can_write_eof() and self._tell("eof_received")

    def _tell(self, name: str) -> bool:
        method = getattr(self._listener, name, None)
        return method is not None and bool(method(self))

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
