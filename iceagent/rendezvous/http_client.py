"""How does a client ask a rendezvous server?

One request after the other on one connection, which is made when it is needed and kept for the next request. A server
may close a kept connection at any moment, so a request that fails on one is sent once more on a new one: all of ours
are idempotent (RFC 9110, 9.2.2). Time, headers and bodies are bounded, and nothing but :class:`OSError` comes out.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Stream
from iceagent.rendezvous.mailbox import MAX_TEXT

__all__ = ["HttpClient", "Response"]

MAX_HEADER_BYTES = 16 * 1024
# Whatever it is made of: interim responses, chunks of a few bytes.
MAX_RESPONSE_BYTES = 4 * MAX_TEXT
# A further address of the server's is tried after so long.
TRY_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a server answered.

    Attributes:
        status: 200 … 599.
        headers: by name, in lower case; the last one of a name.
        body: at most ``MAX_TEXT`` bytes.
    """

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class HttpClient:
    """A server, and a connection to it while there is one.

    Args:
        host: whose network is used.
        name: the server's, or its IP address.
        port: 1 … 65535.
        is_tls: HTTPS; the server is verified to be ``name``.
        ssl_context: how it is verified, instead of the host's own way.
    """

    def __init__(
        self, host: Host, name: str, port: int, *, is_tls: bool, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._host = host
        self._name = name
        self._port = port
        self._is_tls = is_tls
        self._ssl_context = ssl_context
        self._link: _Link | None = None
        bracketed = f"[{name}]" if ":" in name else name
        self._authority = bracketed if port == (443 if is_tls else 80) else f"{bracketed}:{port}"

    @property
    def local_host(self) -> str | None:
        """Our address on the connection; ``None``: there is none."""
        return None if self._link is None else self._link.local_host

    async def ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        timeout_s: float,
    ) -> Response:
        """Send a request, and wait for its answer; one at a time.

        Args:
            method: GET, PUT or DELETE.
            target: the path.
            headers: besides those that every request has.
            body: sent with PUT.
            timeout_s: for everything.

        Raises:
            OSError: there is no connection, it was lost, or what came is not HTTP; TimeoutError: no answer in time.
        """
        every = [("Host", self._authority), *headers, *_length(method, body)]
        head = h11.Request(method=method, target=target, headers=every)
        try:
            async with asyncio.timeout(timeout_s):
                if self._link is not None and self._link.is_open:
                    try:
                        return await self._link.exchange(head, body)
                    except OSError:
                        # Sent again below.
                        pass
                self.close()
                self._link = await self._connect()
                return await self._link.exchange(head, body)
        finally:
            if self._link is not None and not self._link.is_idle:
                self.close()

    def interrupt(self, reason: str) -> None:
        """End the connection, because it is known to be of no use any more."""
        if self._link is not None:
            self._link.fail(ConnectionAbortedError(errno.ECONNABORTED, reason))
            self.close()

    def close(self) -> None:
        """End the connection; the next request makes another one."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _connect(self) -> _Link:
        addresses = await self._host.resolve(self._name)
        failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{self._name} has no address")
        for index, address in enumerate(addresses, start=1):
            link = _Link(is_tls=self._is_tls)
            try:
                async with asyncio.timeout(TRY_S if index < len(addresses) else None):
                    link.stream = await self._host.connect_tcp(
                        TransportAddress(address, self._port),
                        link,
                        tls_server_name=self._name if self._is_tls else None,
                        ssl_context=self._ssl_context,
                    )
                return link
            except OSError as error:
                failure = error
        raise failure


class _Link:
    """One connection; implements :class:`iceagent.net.host.StreamListener`."""

    def __init__(self, *, is_tls: bool) -> None:
        self.stream: Stream | None = None
        self._hint = "" if is_tls else ": is this a port for https://?"
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._response: asyncio.Future[Response] | None = None
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._left = 0
        # Why it is of no use any more.
        self._failure: OSError | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can have another request."""
        return self.stream is not None and self._failure is None and self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and the server lets it stay open."""
        return self._http.our_state is h11.IDLE

    @property
    def local_host(self) -> str | None:
        """Our address."""
        return None if self.stream is None else self.stream.local_address.host

    async def exchange(self, head: h11.Request, body: bytes) -> Response:
        """Send a request and wait for the response.

        Raises:
            OSError: see :meth:`HttpClient.ask`.
        """
        assert self.stream is not None
        if self._failure is not None:
            raise self._failure
        self._response = asyncio.get_running_loop().create_future()
        self._left = MAX_RESPONSE_BYTES
        self._body.clear()
        sent = self._http.send(head) or b""
        if body:
            sent += self._http.send(h11.Data(data=body)) or b""
        sent += self._http.send(h11.EndOfMessage()) or b""
        try:
            self.stream.write(sent)
            return await self._response
        finally:
            if self._response.done() and not self._response.cancelled():
                # One that came as nobody waited any more is nobody's.
                self._response.exception()
            self._response = None

    def data_received(self, stream: Stream, data: bytes) -> None:
        """The next bytes."""
        self._left -= len(data)
        if self._response is None or self._response.done() or self._left < 0:
            # A server that speaks without being asked, or without end.
            self.fail(OSError(errno.EPROTO, "the answer has too many bytes"))
            return
        self._feed(data)

    def connection_lost(self, stream: Stream, number: int) -> None:
        """The server has ended it: in order, which may be how its body ends, or not."""
        if not number and self._response is not None and not self._response.done():
            self._feed(b"")
        self.fail(ConnectionResetError(number or errno.ECONNRESET, os.strerror(number or errno.ECONNRESET)))

    def fail(self, error: OSError) -> None:
        """It is of no use any more."""
        self._failure = self._failure or error
        if self._response is not None and not self._response.done():
            self._response.set_exception(error)

    def close(self) -> None:
        """Close; idempotent."""
        if self.stream is not None:
            self.stream.close()

    def _feed(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while self._response is not None and not self._response.done():
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return
                self._take(event, self._response)
        except h11.RemoteProtocolError:
            if data:
                self.fail(OSError(errno.EPROTO, "the answer is not HTTP, or its headers are too long"))
            elif self._left == MAX_RESPONSE_BYTES:
                self.fail(OSError(errno.EPROTO, f"it closes the connection without an answer{self._hint}"))
            else:
                self.fail(OSError(errno.EPROTO, "the answer ends early"))

    def _take(self, event: object, response: asyncio.Future[Response]) -> None:
        if isinstance(event, h11.Response):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > MAX_TEXT:
                self.fail(OSError(errno.EMSGSIZE, f"the answer has more than {MAX_TEXT} bytes"))
        elif isinstance(event, h11.EndOfMessage) and self._head is not None:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
            response.set_result(Response(status=self._head.status_code, headers=headers, body=bytes(self._body)))


def _length(method: str, body: bytes) -> list[tuple[str, str]]:
    return [("Content-Length", str(len(body)))] if body or method == "PUT" else []
