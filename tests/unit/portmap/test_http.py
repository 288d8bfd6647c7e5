"""How an HTTP exchange with a gateway goes, and what ends it when the other side means no good."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Stream, StreamListener
from iceagent.testing import MemoryHost, MemoryInternet, Network, run
from portmap.events import Fetch
from portmap.http import MAX_HEADER_BYTES, FetchFailed, Response, fetch

HOST = "11.0.0.1"
SERVER = TransportAddress("11.0.0.2", 5000)
GET = Fetch(
    number=1,
    server=SERVER,
    source=HOST,
    method="GET",
    target="/rootDesc.xml",
    headers=(("User-Agent", "test"),),
    body=b"",
    timeout_s=1.0,
    max_bytes=1000,
)
POST = dataclasses.replace(GET, method="POST", target="/ctl", headers=(("SOAPAction", '"a#b"'),), body=b"<a/>")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Server:
    """Accepts one stream after the other and says what it is told to.

    Args:
        talk: what it does once a request is there.
    """

    def __init__(self, talk: Callable[[Server, Stream], None]) -> None:
        self.received = b""
        self.source: TransportAddress | None = None
        self.lost: list[int] = []
        self._talk = talk

    def accept(self, stream: Stream) -> Server:
        self.source = stream.remote_address
        return self

    def data_received(self, stream: Stream, data: bytes) -> None:
        is_first = not self.received
        self.received += data
        if is_first:
            self._talk(self, stream)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        self.lost.append(errno)


def saying(*parts: bytes, is_closed: bool = True, every_s: float = 0.0) -> Callable[[Server, Stream], None]:
    """Says that, in pieces, and closes."""

    def talk(_: Server, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        for index, part in enumerate(parts):
            if every_s:
                loop.call_later(index * every_s, stream.write, part)
            else:
                stream.write(part)
        if is_closed:
            stream.close()

    return talk


def exchange(
    talk: Callable[[Server, Stream], None] | None, request: Fetch = GET, *, took_s: float | None = None
) -> tuple[Response | str, Server]:
    """Do one exchange: the response, or the reason why there is none; and the server afterwards."""

    async def main() -> tuple[Response | str, Server]:
        internet = MemoryInternet(Network.seeded(1))
        host: MemoryHost = internet.host("client", (HOST,))
        machine = internet.host("server", (SERVER.host,))
        server = Server(talk or saying())
        if talk is not None:
            await machine.listen_tcp(SERVER, server.accept)
        began_at = host.now()
        try:
            result: Response | str = await fetch(host, request)
        except FetchFailed as error:
            result = str(error)
        if took_s is not None:
            assert host.now() - began_at == pytest.approx(took_s, abs=0.1)
        # That the connection is closed takes its way to the server.
        await asyncio.sleep(1.0)
        return result, server

    return run(main())


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_get_is_sent_whole_and_once() -> None:
    result, server = exchange(saying(OK + b"Content-Length: 2\r\nX-Y: z\r\n\r\nhi"))
    assert result == Response(status=200, headers=(("content-length", "2"), ("x-y", "z")), body=b"hi")
    assert server.received == (
        b"GET /rootDesc.xml HTTP/1.1\r\nHost: 11.0.0.2:5000\r\nUser-Agent: test\r\nConnection: close\r\n\r\n"
    )
    assert server.source is not None and server.source.host == HOST


def test_a_post_has_its_length() -> None:
    result, server = exchange(saying(OK + b"Content-Length: 0\r\n\r\n"), POST)
    assert isinstance(result, Response) and result.body == b""
    assert server.received == (
        b'POST /ctl HTTP/1.1\r\nHost: 11.0.0.2:5000\r\nSOAPAction: "a#b"\r\nConnection: close\r\n'
        b"Content-Length: 4\r\n\r\n<a/>"
    )


def test_the_source_is_the_one_that_is_asked_for() -> None:
    """An address of another machine cannot be: nothing is sent from anywhere else instead."""
    result, server = exchange(saying(OK + b"\r\n"), dataclasses.replace(GET, source="11.0.0.9"))
    assert result == "11.0.0.9 is not an address of client"
    assert server.received == b""


@pytest.mark.parametrize(
    "request_",
    [
        dataclasses.replace(GET, target="/a b"),
        dataclasses.replace(GET, target="/\r\nHost: evil"),
        dataclasses.replace(GET, headers=(("X", "a\r\nb"),)),
        dataclasses.replace(GET, target="/ü"),
    ],
)
def test_what_is_no_request_is_not_sent(request_: Fetch) -> None:
    result, server = exchange(saying(OK + b"\r\n"), request_)
    assert isinstance(result, str) and result.startswith("not to be sent by HTTP: ")
    assert server.received == b""


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([OK + b"Content-Length: 5\r\n\r\nhello"], b"hello"),
        ([OK + b"Content-Length: 5\r\n\r\nhello and more"], b"hello"),
        ([OK + b"\r\nto the end"], b"to the end"),
        ([b"HTTP/1.0 200 OK\r\n\r\nold"], b"old"),
        ([b"HTTP/1.1 200 OK\nContent-Length: 2\n\nlf"], b"lf"),
        ([b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nno"], b"no"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"], b"abcde"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 1\r\n\r\n", b"x"], b"x"),
        ([bytes([byte]) for byte in OK + b"Content-Length: 3\r\n\r\nabc"], b"abc"),
        ([OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000], b"x" * 1000),
        ([OK + b"Content-Length: 0\r\nEXT:\r\nServer: \xe9\r\n\r\n"], b""),
    ],
)
def test_a_body_is_read_whatever_frames_it(parts: list[bytes], body: bytes) -> None:
    result, _ = exchange(saying(*parts))
    assert isinstance(result, Response) and (result.status, result.body) == (200, body)


@pytest.mark.parametrize("status", [301, 302, 404, 500])
def test_a_status_is_told_and_a_redirect_not_followed(status: int) -> None:
    result, _ = exchange(
        saying(f"HTTP/1.1 {status} X\r\nLocation: http://8.8.8.8/\r\nContent-Length: 1\r\n\r\n-".encode())
    )
    assert isinstance(result, Response) and (result.status, result.body) == (status, b"-")


def test_a_response_is_there_before_the_server_closes() -> None:
    """Some keep the connection open, whatever they were asked for."""
    result, server = exchange(saying(OK + b"Content-Length: 2\r\n\r\nhi", is_closed=False), took_s=0.0)
    assert isinstance(result, Response)
    assert server.lost == [0]


# --- what fails ------------------------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    result, _ = exchange(None)
    assert result == "nothing accepts streams at 11.0.0.2:5000"


def test_a_host_that_swallows_the_connection() -> None:
    async def main() -> str:
        internet = MemoryInternet(Network.seeded(1))
        host = internet.host("client", (HOST,))
        internet.host("server", (SERVER.host,))
        host.link().cut()
        with pytest.raises(FetchFailed) as caught:
            await fetch(host, GET)
        assert host.now() == pytest.approx(1.0)
        return str(caught.value)

    assert run(main()) == "no answer within 1 s"


def test_silence() -> None:
    result, server = exchange(saying(is_closed=False), took_s=1.0)
    assert result == "no answer within 1 s"
    assert server.lost == [0]


@pytest.mark.parametrize(
    "talk",
    [
        saying(*[b"x"] * 1000, is_closed=False, every_s=0.1),
        saying(OK, *[b"X-Y: z\r\n"] * 1000, is_closed=False, every_s=0.1),
        saying(OK + b"Content-Length: 900\r\n\r\n", *[b"x"] * 1000, is_closed=False, every_s=0.1),
        saying(OK + b"\r\n", *[b"x"] * 1000, is_closed=False, every_s=0.1),
        saying(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, is_closed=False, every_s=0.1),
        saying(OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 100, is_closed=False, every_s=0.1),
    ],
)
def test_a_drip_ends_with_the_time(talk: Callable[[Server, Stream], None]) -> None:
    """miniupnpc waits five seconds for every byte, and for ever in all."""
    result, server = exchange(talk, took_s=1.0)
    assert result == "no answer within 1 s"
    assert server.lost == [0]


class Endless:
    """Writes pieces of 64 KiB until the other side hangs up, and counts them."""

    def __init__(self, start: bytes, piece: bytes) -> None:
        self.count = 0
        self._start = start
        self._piece = piece

    def __call__(self, server: Server, stream: Stream) -> None:
        stream.write(self._start)
        self._write(server, stream)

    def _write(self, server: Server, stream: Stream) -> None:
        if not server.lost and self.count < 5000:
            self.count += 1
            stream.write(self._piece)
            asyncio.get_running_loop().call_later(0.001, self._write, server, stream)


@pytest.mark.parametrize(
    ("start", "piece", "why"),
    [
        (OK + b"Content-Length: 314572800\r\n\r\n", b"x" * 65536, "an answer of more than 1000 bytes"),
        (OK + b"\r\n", b"x" * 65536, "an answer of more than 1000 bytes"),
        (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n", "an answer of more than 1000 bytes"),
        (OK, b"X-Y: z\r\n" * 8192, None),
        (OK + b"X-Y: ", b"z" * 65536, None),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "an answer that has too many bytes"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "an answer in too many pieces"),
        (CHUNKED + b"1;", b"x" * 65536, None),
    ],
)
def test_what_never_ends_is_cut_off(start: bytes, piece: bytes, why: str | None) -> None:
    """A body of 300 MB, headers without end: miniupnpc takes them."""
    endless = Endless(start, piece)
    result, server = exchange(endless)
    assert isinstance(result, str)
    assert result == why or (why is None and result.startswith("not HTTP: "))
    # What was in flight, and no more.
    assert endless.count < 60 and server.lost == [0]


def test_headers_have_a_bound() -> None:
    header = b"X: " + b"y" * (MAX_HEADER_BYTES - 100) + b"\r\n"
    assert isinstance(exchange(saying(OK + header + b"Content-Length: 0\r\n\r\n"))[0], Response)
    result, _ = exchange(saying(OK, header, header, is_closed=False), took_s=0.1)
    assert isinstance(result, str) and result.startswith("not HTTP: ")


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "the answer ends early"),
        ([b"HTTP/1.1 200"], "the answer ends early"),
        ([OK + b"Content-Length: 10\r\n\r\nhi"], "the answer ends early"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhi"], "the answer ends early"),
    ],
)
def test_an_early_end_is_no_answer(parts: list[bytes], why: str) -> None:
    assert exchange(saying(*parts))[0] == why


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x00" * 100,
        b"<html></html>\r\n\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        OK + b"Transfer-Encoding: gzip\r\n\r\nx",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"no colon\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX Y: z\r\n\r\n",
    ],
)
def test_what_is_not_http_is_no_answer(data: bytes) -> None:
    result, _ = exchange(saying(data, is_closed=False))
    assert isinstance(result, str) and result.startswith("not HTTP: "), result


def test_a_stream_that_breaks_is_no_answer() -> None:
    def talk(_: Server, stream: Stream) -> None:
        stream.write(OK)
        # More than a stream may hold: it is reset.
        stream.write(b"x" * (2 << 20))

    result, _ = exchange(talk)
    assert result == "Connection reset by peer"


def test_a_cancelled_exchange_closes_its_stream() -> None:
    async def main() -> list[int]:
        internet = MemoryInternet(Network.seeded(1))
        host = internet.host("client", (HOST,))
        machine = internet.host("server", (SERVER.host,))
        server = Server(saying(is_closed=False))
        await machine.listen_tcp(SERVER, server.accept)
        task = asyncio.ensure_future(fetch(host, GET))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1.0)
        return server.lost

    assert run(main()) == [0]


def test_an_error_that_nobody_waits_for_any_more_is_nobodys() -> None:
    """The connection breaks before it is handed over, and time runs out: asyncio would complain of the first."""

    class Breaking:
        async def connect_tcp(self, _: TransportAddress, listener: StreamListener, **__: object) -> Stream:
            listener.connection_lost(cast(Stream, None), errno.ECONNRESET)
            await asyncio.sleep(10.0)
            raise AssertionError("it is cancelled before")

    async def main() -> None:
        with pytest.raises(FetchFailed, match="no answer within 1 s"):
            await fetch(cast(Host, Breaking()), GET)
        gc.collect()

    # Raises what was given to the loop's exception handler.
    run(main())


# --- anything --------------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        OK,
        b"HTTP/1.1 ",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: keep-alive\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
    ]
)


@settings(max_examples=100)
@given(st.lists(st.one_of(pieces, st.binary(max_size=5)), max_size=12), st.booleans())
def test_no_server_makes_it_raise_anything_else(parts: list[bytes], is_closed: bool) -> None:
    result, _ = exchange(saying(*parts, is_closed=is_closed))
    if isinstance(result, Response):
        assert 200 <= result.status <= 999 and len(result.body) <= 1000


def test_a_connection_that_ends_after_nobody_waits_any_more_is_nobodys_error() -> None:
    """It was being made when the exchange was cancelled; asyncio would tell the application of an error of its own."""
    complaints: list[dict[str, object]] = []

    class Slow:
        listener: StreamListener

        async def connect_tcp(self, remote: TransportAddress, listener: StreamListener, **_: object) -> Stream:
            self.listener = listener
            await asyncio.Event().wait()
            raise AssertionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        host = Slow()
        exchange = asyncio.ensure_future(fetch(host, GET))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        exchange.cancel()
        await asyncio.wait([exchange])
        host.listener.connection_lost(cast(Stream, None), 0)
        del host.listener
        gc.collect()

    asyncio.run(main())
    assert not complaints
