"""How is an HTTP exchange with a gateway done?

One request on one connection, over :meth:`iceagent.net.host.Host.connect_tcp`, with h11. A gateway's HTTP server is
nobody's pride, and whoever is on the network may pose as one: the time is bounded in total, so are headers and body,
nothing is followed anywhere, and nothing but :class:`FetchFailed` comes out.

What a stream receives is fed to h11 as it comes; nothing is queued. Addresses are IP addresses without zone, so a
link-local IPv6 server cannot be reached.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import h11

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Stream
from portmap.errors import FetchFailed
from portmap.events import Fetch

__all__ = ["FetchFailed", "Response", "fetch"]

MAX_HEADER_BYTES = 16 * 1024
"""Of the status line and all headers; also of a chunk's size line."""
# Chunks of a few bytes each have several times that in frames; interim responses are not endless either.
MAX_OVERHEAD_BYTES = 64 * 1024
MAX_OVERHEAD_FACTOR = 4
# Of what comes in one go: 64 kB in chunks of a byte would keep the loop busy for 50 ms.
MAX_PIECES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response, whatever its status.

    Attributes:
        status: 200 … 599.
        headers: names in lower case.
        body: whole.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


async def fetch(host: Host, request: Fetch) -> Response:
    """Do one exchange.

    Args:
        host: whose network it goes through.
        request: what is wanted.

    Raises:
        FetchFailed: it cannot be connected to, takes longer than ``request.timeout_s`` in all, ends early, has too
            many bytes, or is not HTTP.
    """
    try:
        async with asyncio.timeout(request.timeout_s):
            return await _exchange(host, request)
    except TimeoutError as error:
        raise FetchFailed(f"no answer within {request.timeout_s:g} s") from error
    except OSError as error:
        raise FetchFailed(_words(error)) from error


async def _exchange(host: Host, request: Fetch) -> Response:
    reader = _Reader(request)
    sent = reader.begin()
    try:
        stream = await host.connect_tcp(request.server, reader, local=TransportAddress(request.source, 0))
        try:
            stream.write(sent)
            return await reader.response
        finally:
            stream.close()
    finally:
        reader.forget()


class _Reader:
    """Hears what the stream receives; implements :class:`iceagent.net.host.StreamListener`.

    Attributes:
        response: of the exchange, once it is whole.
    """

    def __init__(self, request: Fetch) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._request = request
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._left = MAX_OVERHEAD_BYTES + MAX_OVERHEAD_FACTOR * request.max_bytes

    def begin(self) -> bytes:
        """The bytes of the request.

        Raises:
            FetchFailed: it has what no request can have.
        """
        request = self._request
        headers = [("Host", str(request.server)), *request.headers, ("Connection", "close")]
        if request.body or request.method == "POST":
            headers.append(("Content-Length", str(len(request.body))))
        try:
            sent = self._connection.send(h11.Request(method=request.method, target=request.target, headers=headers))
            if request.body:
                sent = (sent or b"") + (self._connection.send(h11.Data(data=request.body)) or b"")
            return (sent or b"") + (self._connection.send(h11.EndOfMessage()) or b"")
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise FetchFailed(f"not to be sent by HTTP: {error}") from error

    def forget(self) -> None:
        """Nobody waits any more. An error that came in the same moment, or comes later, is nobody's, and asyncio need
        not complain.
        """
        if not self.response.cancel() and not self.response.cancelled():
            self.response.exception()

    def data_received(self, stream: Stream, data: bytes) -> None:
        """The next bytes."""
        if self.response.done():
            return
        self._left -= len(data)
        if self._left < 0:
            self._fail("an answer that has too many bytes")
        else:
            self._feed(data)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """The other side has ended it: in order, which may be how its body ends, or not."""
        if self.response.done():
            return
        if errno:
            self._fail(os.strerror(errno))
            return
        self._feed(b"")
        if not self.response.done():
            self._fail("the answer ends early")

    def _feed(self, data: bytes) -> None:
        try:
            self._connection.receive_data(data)
            for _ in range(MAX_PIECES):
                event = self._connection.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return
                self._take(event)
                if self.response.done():
                    return
            self._fail("an answer in too many pieces")
        except h11.RemoteProtocolError as error:
            self._fail("the answer ends early" if not data else f"not HTTP: {error}")

    def _take(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > self._request.max_bytes:
                self._fail(f"an answer of more than {self._request.max_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage) and self._head is not None:
            headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._head.headers)
            self.response.set_result(Response(status=self._head.status_code, headers=headers, body=bytes(self._body)))

    def _fail(self, reason: str) -> None:
        self.response.set_exception(FetchFailed(reason))


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
