"""Streams through an HTTP proxy on loopback, on both event loops; and which proxy the environment says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Stream, StreamListener
from iceagent.net.local import LocalHost
from iceagent.net.proxy import (
    MAX_HEAD,
    MAX_REASON,
    Proxy,
    ProxyRefused,
    _parse_head_untrusted,
    from_environment,
    tunnel,
)
from iceagent.net.streams import connect_tcp, listen_tcp
from tests.certificates import make_certificate
from tests.loopback.loops import Ear, LoopFactory, News, on_both_loops, run

ANY_PORT = TransportAddress("127.0.0.1", 0)
# Nobody is there: what the fake proxy answers by itself.
TARGET = TransportAddress("192.0.2.1", 5349)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class FakeProxy(News):
    """Answers each CONNECT.

    Args:
        answer: what it sends, once it has read a request's head.
        joins: connects to the target first, and carries bytes both ways.
        hangs_up: closes after the answer.
    """

    def __init__(self, answer: bytes = ESTABLISHED, *, joins: bool = False, hangs_up: bool = False) -> None:
        super().__init__()
        self.heads: list[bytes] = []
        self.clients: list[str] = []
        self.address = ANY_PORT
        self._answer = answer
        self._joins = joins
        self._hangs_up = hangs_up
        self._open = 0

    @property
    def proxy(self) -> Proxy:
        """It, without credentials."""
        return Proxy(host=self.address.host, port=self.address.port)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeProxy]:
        server = await asyncio.start_server(self._serve, *ANY_PORT)
        self.address = TransportAddress._make(server.sockets[0].getsockname())
        try:
            yield self
        finally:
            server.close()
            await self.ended()

    async def ended(self) -> None:
        """Wait until no connection is open."""
        await self.until(lambda: self._open == 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.clients.append(writer.get_extra_info("peername")[0])
        # The client may go at any time, without having read all.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            self.tell()
            if self._joins:
                await self._join(reader, writer)
            else:
                writer.write(self._answer)
                if not self._hangs_up:
                    await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._open -= 1
        self.tell()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.heads[-1].split()[1].decode().rpartition(":")
        target_reader, target_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(self._answer)
        await asyncio.gather(carry(reader, target_writer), carry(target_reader, writer))


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()


class Server(Ear):
    """A target: keeps the streams that it accepts, and what they receive; may speak first."""

    def __init__(self, greeting: bytes = b"") -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self._greeting = greeting

    def accept(self, stream: Stream) -> StreamListener:
        self.streams.append(stream)
        stream.write(self._greeting)
        self.tell()
        return self

    @contextlib.asynccontextmanager
    async def listening(
        self, local: TransportAddress = ANY_PORT, ssl_context: ssl.SSLContext | None = None
    ) -> AsyncIterator[TransportAddress]:
        listener = await listen_tcp(local, self.accept, ssl_context=ssl_context)
        try:
            yield listener.address
        finally:
            listener.close()


async def attempt(fake: FakeProxy) -> OSError:
    """How connecting through ``fake`` fails."""
    async with fake.running():
        with pytest.raises(OSError) as caught:
            await connect_tcp(TARGET, Ear(), proxy=fake.proxy)
    return caught.value


# --- the tunnel --------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_go_both_ways(loop_factory: LoopFactory, host: str) -> None:
    """The request target is the destination's host and port (RFC 9110, 9.3.6), and so is Host."""

    async def main() -> None:
        server, ear, fake = Server(b"I speak first"), Ear(), FakeProxy(joins=True)
        async with server.listening(TransportAddress(host, 0)) as target, fake.running():
            stream = await connect_tcp(target, ear, proxy=fake.proxy)
            await ear.until(lambda: ear.data == b"I speak first")
            stream.write(b"ping")
            await server.until(lambda: server.data == b"ping")
            assert fake.heads == [f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()]
            assert stream.remote_address == fake.address
            stream.close()
            await server.until(lambda: server.lost == [0])

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    "head",
    [
        ESTABLISHED,
        b"HTTP/1.0 200\r\nProxy-agent: x\r\n\r\n",
        b"HTTP/1.1 299 \r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nVia: x\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ESTABLISHED,
        ESTABLISHED[:-2] + b"X: " + bytes(MAX_HEAD - len(ESTABLISHED) - 5).replace(b"\0", b"x") + b"\r\n\r\n",
    ],
    ids=["usual", "1.0 without reason", "with a length", "LF only", "mixed", "after 1xx", "of 8 KiB"],
)
def test_what_stands_right_behind_the_head_is_the_targets(loop_factory: LoopFactory, head: bytes) -> None:
    async def main() -> None:
        ear, fake = Ear(), FakeProxy(head + b"\r\nHTTP/1.1 first words", hangs_up=True)
        async with fake.running():
            await connect_tcp(TARGET, ear, proxy=fake.proxy)
            await ear.until(lambda: ear.lost == [0])
        assert ear.data == b"\r\nHTTP/1.1 first words"

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    ("status_line", "status", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required", 407, "Proxy Authentication Required"),
        (b"HTTP/1.1 403 Forbidden", 403, "Forbidden"),
        (b"HTTP/1.0 502", 502, ""),
        (b"HTTP/1.1 302 Found", 302, "Found"),
        (b"HTTP/1.1 999 \x1b[31m\xff\r", 999, r"\x1b[31m\xff\r"),
        (b"HTTP/1.1 503 " + b"x" * 1000, 503, "x" * MAX_REASON),
    ],
    ids=["407", "403", "without reason", "302", "escapes", "long"],
)
def test_a_refusal_is_told(loop_factory: LoopFactory, status_line: bytes, status: int, reason: str) -> None:
    async def main() -> None:
        error = await attempt(FakeProxy(status_line + b"\r\nContent-Length: 3\r\n\r\nno\n"))
        assert isinstance(error, ProxyRefused)
        assert (error.errno, error.status, error.reason) == (errno.ECONNREFUSED, status, reason)
        expected = f"the proxy refuses the tunnel: {status} {reason}".rstrip()
        assert str(error) == f"[Errno {errno.ECONNREFUSED}] {expected}"

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    ("answer", "hangs_up", "number", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD, False, errno.EPROTO, "has no end within 8192 bytes"),
        (b"HTTP/1.1 100 \r\n\r\n" * 1000, False, errno.EPROTO, "has no end within 8192 bytes"),
        (b"SSH-2.0-x", False, errno.EPROTO, "is not HTTP/1: 'S'"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", False, errno.EPROTO, "is not HTTP/1: 'HTTP/1.1 2000 OK'"),
        (b"HTTP/2 200\r\n\r\n", False, errno.EPROTO, "is not HTTP/1: 'HTTP/2 200'"),
        (b"", True, errno.ECONNRESET, "closed the connection after 0 bytes of its answer"),
        (b"HTTP/1.1 200 OK\r\n", True, errno.ECONNRESET, "closed the connection after 17 bytes of its answer"),
    ],
    ids=["endless", "endless 1xx", "garbage", "bad code", "HTTP/2", "nothing", "closed early"],
)
def test_what_is_no_answer_is_an_error(
    loop_factory: LoopFactory, answer: bytes, hangs_up: bool, number: int, message: str
) -> None:
    async def main() -> None:
        error = await attempt(FakeProxy(answer, hangs_up=hangs_up))
        assert not isinstance(error, ProxyRefused)
        assert error.errno == number
        assert message in str(error)

    run(loop_factory, main())


@on_both_loops
def test_a_proxy_that_does_not_answer_is_left_when_the_attempt_ends(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        fake = FakeProxy(b"HTTP/1.1 200")
        async with fake.running():
            connecting = asyncio.ensure_future(connect_tcp(TARGET, Ear(), proxy=fake.proxy))
            await fake.until(lambda: bool(fake.heads))
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await fake.ended()

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    ("username", "password", "user_pass"),
    [
        ("Aladdin", "open sesame", "Aladdin:open sesame"),
        ("jürgen", "a:b%", "jürgen:a:b%"),
        ("u", None, "u:"),
        ("", "p", ":p"),
    ],
)
def test_credentials_are_sent(loop_factory: LoopFactory, username: str, password: str | None, user_pass: str) -> None:
    """RFC 7617, 2; its example is the first."""

    async def main() -> None:
        ear, fake = Ear(), FakeProxy(hangs_up=True)
        async with fake.running():
            proxy = Proxy(host=fake.address.host, port=fake.address.port, username=username, password=password)
            await connect_tcp(TARGET, ear, proxy=proxy)
            await ear.until(lambda: ear.lost == [0])
        (head,) = fake.heads
        assert head.endswith(b"\r\nProxy-Authorization: Basic " + base64.b64encode(user_pass.encode()) + b"\r\n\r\n")

    run(loop_factory, main())


HARMLESS = Proxy(host="proxy.example", port=80)


@on_both_loops
@pytest.mark.parametrize(
    ("host", "port", "proxy"),
    [
        ("192.0.2.1\r\nX: y", 1, HARMLESS),
        ("turn.example\n", 1, HARMLESS),
        ("turn example", 1, HARMLESS),
        ("turn\0.example", 1, HARMLESS),
        ("türn.example", 1, HARMLESS),
        ("[::1]", 1, HARMLESS),
        ("", 1, HARMLESS),
        ("192.0.2.1", 0, HARMLESS),
        ("192.0.2.1", 65536, HARMLESS),
        ("192.0.2.1", 1, Proxy(host="h", port=1, username="u\r\n", password="s3cr3t")),
        ("192.0.2.1", 1, Proxy(host="h", port=1, username="u", password="s3cr3t\x7f")),
        ("192.0.2.1", 1, Proxy(host="h", port=1, username="u:v", password="s3cr3t")),
        ("192.0.2.1", 1, Proxy(host="h", port=1, username="u", password="s3cr3t\udcff")),
    ],
)
def test_what_cannot_be_sent_is_refused_before_a_byte_is(
    loop_factory: LoopFactory, host: str, port: int, proxy: Proxy
) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            with pytest.raises(ValueError, match=r"neither|not a port|may not|must be") as caught:
                await tunnel(ours, host, port, proxy)
            assert "s3cr3t" not in str(caught.value)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    run(loop_factory, main())


@given(st.one_of(st.binary(), st.binary().map(lambda data: b"HTTP/1.1 " + data + b"\r\n\r\n")))
def test_a_head_is_read_or_refused(head: bytes) -> None:
    with contextlib.suppress(OSError):
        status, reason = _parse_head_untrusted(head)
        assert 100 <= status <= 999
        assert len(reason) <= MAX_REASON
        assert reason.isprintable()


# --- TLS through it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for turn.example, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "turn.example")


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@on_both_loops
def test_tls_goes_through_the_tunnel(loop_factory: LoopFactory, certificate: tuple[Path, Path]) -> None:
    async def main() -> None:
        server, ear, fake = Server(b"welcome"), Ear(), FakeProxy(joins=True)
        async with server.listening(ssl_context=server_context(certificate)) as target, fake.running():
            stream = await connect_tcp(
                target,
                ear,
                tls_server_name="turn.example",
                ssl_context=ssl.create_default_context(cafile=str(certificate[0])),
                proxy=fake.proxy,
            )
            stream.write(b"secret")
            await server.until(lambda: server.data == b"secret")
            await ear.until(lambda: ear.data == b"welcome")
            assert fake.heads[0].startswith(f"CONNECT {target} ".encode()), "the address, not the name"
            stream.close()
            await server.until(lambda: server.lost == [0])

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(("trusts", "name"), [(True, "other.example"), (False, "turn.example")])
def test_tls_verifies_through_the_tunnel(
    loop_factory: LoopFactory, certificate: tuple[Path, Path], trusts: bool, name: str
) -> None:
    async def main() -> None:
        server, fake = Server(), FakeProxy(joins=True)
        context = ssl.create_default_context(cafile=str(certificate[0])) if trusts else None
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # The server's side complains, rightly.
        async with server.listening(ssl_context=server_context(certificate)) as target, fake.running():
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect_tcp(target, Ear(), tls_server_name=name, ssl_context=context, proxy=fake.proxy)
        assert server.streams == []

    run(loop_factory, main())


# --- the way to the proxy ----------------------------------------------------------------------------------------


def names(*hosts: str) -> Callable[[str], asyncio.Future[Sequence[str]]]:
    """A resolver that knows proxy.example."""

    def resolve(name: str) -> asyncio.Future[Sequence[str]]:
        assert name == "proxy.example"
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(hosts)
        return answer

    return resolve


@on_both_loops
@pytest.mark.parametrize(
    ("local", "hosts", "seen", "attempts"),
    [
        (None, ["127.0.0.1"], "127.0.0.1", 1),
        ("127.0.0.9", ["127.0.0.1"], "127.0.0.9", 1),
        ("127.0.0.9", ["::1", "127.0.0.1"], "127.0.0.9", 1),
        ("::1", ["127.0.0.1"], "127.0.0.1", 1),
        (None, ["::1", "127.0.0.77", "127.0.0.1"], "127.0.0.1", 3),
    ],
    ids=["any", "local", "its family first", "other family", "the next address"],
)
def test_the_proxys_name_is_resolved(
    loop_factory: LoopFactory, local: str | None, hosts: list[str], seen: str, attempts: int
) -> None:
    opened = []

    def open_socket(family: int, kind: int) -> socket.socket:
        opened.append(socket.socket(family, kind))
        return opened[-1]

    async def main() -> None:
        ear, fake = Ear(), FakeProxy(hangs_up=True)
        async with fake.running():
            proxy = Proxy(host="proxy.example", port=fake.address.port)
            source = None if local is None else TransportAddress(local, 0)
            await connect_tcp(TARGET, ear, local=source, proxy=proxy, resolve=names(*hosts), open_socket=open_socket)
            await ear.until(lambda: ear.lost == [0])
        assert (fake.clients, len(opened)) == ([seen], attempts)

    run(loop_factory, main())


@on_both_loops
def test_a_proxy_that_is_not_there(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(ANY_PORT)
            proxy = Proxy(host="proxy.example", port=nobody.getsockname()[1])
            with pytest.raises(ConnectionRefusedError) as caught:
                await connect_tcp(TARGET, Ear(), proxy=proxy, resolve=names("127.0.0.1"))
            assert not isinstance(caught.value, ProxyRefused)
            with pytest.raises(socket.gaierror, match=r"'proxy\.example' has no address"):
                await connect_tcp(TARGET, Ear(), proxy=proxy, resolve=names())
        with pytest.raises(socket.gaierror):
            await connect_tcp(TARGET, Ear(), proxy=Proxy(host="a..b", port=1))

    run(loop_factory, main())


class HostWithAProxy(LocalHost):
    """Knows one name."""

    async def resolve(self, name: str) -> Sequence[str]:
        return {"proxy.example": ["127.0.0.1"]}[name]


@on_both_loops
def test_a_host_resolves_the_proxy_its_own_way(loop_factory: LoopFactory, certificate: tuple[Path, Path]) -> None:
    """And a context that is given to the call counts, not that of the host."""

    async def main() -> None:
        host: Host = HostWithAProxy(ssl_context=ssl.create_default_context())
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        server, fake = Server(), FakeProxy(joins=True)
        async with server.listening(ssl_context=server_context(certificate)) as target, fake.running():
            proxy = Proxy(host="proxy.example", port=fake.address.port)
            stream = await host.connect_tcp(
                target, Ear(), tls_server_name="turn.example", ssl_context=trust, alpn=["stun.turn"], proxy=proxy
            )
            await server.until(lambda: bool(server.streams))
            stream.close()
            await server.until(lambda: server.lost == [0])
        assert len(fake.heads) == 1

    run(loop_factory, main())


# --- the value ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "username", "password"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128, None, None),
        ("http://proxy.example", "proxy.example", 80, None, None),
        (" HTTP://proxy.example.:8080/ ", "proxy.example.", 8080, None, None),
        ("proxy.example:3128", "proxy.example", 3128, None, None),
        ("http://192.0.2.1:1", "192.0.2.1", 1, None, None),
        ("http://[2001:DB8::0:1]:65535", "2001:db8::1", 65535, None, None),
        ("http://[::1]", "::1", 80, None, None),
        ("http://user:pass@proxy:3128", "proxy", 3128, "user", "pass"),
        ("http://user@proxy:3128", "proxy", 3128, "user", None),
        ("http://user:@proxy:3128", "proxy", 3128, "user", ""),
        ("user:p:a@s@[::1]:3128", "::1", 3128, "user", "p:a@s"),
        ("http://us%40er:p%3aa%2Fs%C3%BC%@proxy", "proxy", 80, "us@er", "p:a/sü%"),
        ("http://bücher.example:80", "bücher.example", 80, None, None),
    ],
)
def test_a_proxy_is_read(url: str, host: str, port: int, username: str | None, password: str | None) -> None:
    proxy = Proxy.parse(url)
    assert proxy == Proxy(host=host, port=port, username=username, password=password)
    assert "password" not in repr(proxy)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "'' is neither a host name nor an IP address"),
        ("http://", "'' is neither a host name nor an IP address"),
        ("http://:3128", "'' is neither a host name nor an IP address"),
        ("http://pro xy:3128", "'pro xy' is neither a host name nor an IP address"),
        ("https://user:s3cr3t@proxy:3128", "'https' is not a kind of proxy known here: a proxy is written http://"),
        ("socks5h://user:s3cr3t@proxy:3128", "'socks5h' is not a kind of proxy known here"),
        ("user:s3cr3t://x@proxy:3128", "^a proxy is written http://"),
        ("http://user:s3cr3t/x@proxy:3128", "must have '/', '\\?' and '#' percent-encoded"),
        ("http://user:s3cr3t", "port is a number from 1 to 65535"),
        ("http://user:s3cr3t@proxy:0", "port is a number from 1 to 65535"),
        ("http://user:s3cr3t@proxy:65536", "port is a number from 1 to 65535"),
        ("http://user:s3cr3t@proxy:٣", "port is a number from 1 to 65535"),
        ("http://user:s3cr3t@2001:db8::1:80", "port is a number from 1 to 65535"),
        ("http://proxy:3128/path", "port is a number from 1 to 65535"),
        ("http://user:s3cr3t@[::1", r"written \[address\]:port"),
        ("http://user:s3cr3t@[::1]80", r"written \[address\]:port"),
        ("http://user:s3cr3t@[192.0.2.1]:80", "brackets is not an IPv6 address"),
        ("http://user:s3cr3t@[fe80::1%25eth0]:80", "brackets is not an IPv6 address"),
        ("http://user:s3cr3t%0d%0aX: y@proxy:80", "may not have control characters"),
        ("http://us\ner:s3cr3t@proxy:80", "may not have control characters"),
        ("http://user:s3cr3t%ff@proxy:80", "must be UTF-8"),
        ("http://user:s3cr3t\udcff@proxy:80", "must be UTF-8"),
    ],
)
def test_what_is_no_proxy_is_refused_and_no_password_quoted(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Proxy.parse(url)
    assert "s3cr3t" not in str(caught.value)


@given(st.text().map(lambda text: f"{text}s3cr3t"), st.text(), st.sampled_from(["", "http://", "https://"]))
def test_no_error_quotes_a_password(password: str, host: str, scheme: str) -> None:
    try:
        proxy = Proxy.parse(f"{scheme}user:{password}@{host}")
    except ValueError as error:
        assert "s3cr3t" not in str(error)
    else:
        assert "s3cr3t" not in repr(proxy)


# --- the environment ---------------------------------------------------------------------------------------------

P1, P2, P3, P4 = (f"http://p{number}:1" for number in range(1, 5))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"http_proxy": P1, "HTTP_PROXY": P1}, None),
        ({"https_proxy": P1, "HTTPS_PROXY": P2, "all_proxy": P3, "ALL_PROXY": P4}, "p1"),
        ({"HTTPS_PROXY": P2, "all_proxy": P3, "ALL_PROXY": P4}, "p2"),
        ({"all_proxy": P3, "ALL_PROXY": P4}, "p3"),
        ({"https_proxy": "", "ALL_PROXY": P4}, "p4"),
        ({"https_proxy": P1, "all_proxy": "socks5://x"}, "p1"),
        ({"https_proxy": P1, "no_proxy": "", "NO_PROXY": "*"}, None),
        ({"https_proxy": P1, "no_proxy": "other", "NO_PROXY": "*"}, "p1"),
        ({"https_proxy": "socks5://x", "no_proxy": "*"}, None),
    ],
)
def test_the_variables_have_an_order(environ: dict[str, str], expected: str | None) -> None:
    proxy = from_environment(environ, "turn.example")
    assert (None if proxy is None else proxy.host) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_exempt"),
    [
        ("*", "turn.example", True),
        ("a.example, *", "192.0.2.1", True),
        ("turn.example", "turn.example", True),
        ("Turn.Example", "tURN.example.", True),
        ("example", "turn.example", True),
        (".example", "turn.example", True),
        ("*.example.", "turn.example", True),
        (".turn.example", "turn.example", True),
        ("urn.example", "turn.example", False),
        ("a.turn.example", "turn.example", False),
        ("turn.example:5349", "turn.example", False),
        (".", "turn.example", False),
        (",, ,", "turn.example", False),
        ("a b,turn.example\tc", "turn.example", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.10", False),
        ("2.1", "192.0.2.1", False),
        ("192.0.2.77/24", "192.0.2.1", True),
        ("192.0.2.0/24", "192.0.3.1", False),
        ("192.0.2.0/33 192.0.2.0/x", "192.0.2.1", False),
        ("192.0.2.0/24", "turn.example", False),
        ("2001:db8::/32", "2001:DB8:1::1", True),
        ("2001:db8::/32", "192.0.2.1", False),
        ("2001:db8:0::1", "[2001:db8::1]", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_no_proxy(no_proxy: str, host: str, is_exempt: bool) -> None:
    expected = None if is_exempt else Proxy.parse(P1)
    assert from_environment({"https_proxy": P1, "no_proxy": no_proxy}, host) == expected


def test_a_variable_that_is_no_proxy_is_named() -> None:
    with pytest.raises(ValueError, match=r"^ALL_PROXY: 'socks5' is not a kind of proxy") as caught:
        from_environment({"ALL_PROXY": "socks5://user:s3cr3t@proxy:1080"}, "turn.example")
    assert "s3cr3t" not in str(caught.value)
