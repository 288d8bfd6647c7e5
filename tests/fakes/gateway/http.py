"""How does an HTTP answer come, byte for byte, and what may a client's request look like? RFC 9112. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from tests.fakes.gateway.faults import Delivery

__all__ = ["ENDLESS_BODY_SIZE", "BadRequest", "HttpReply", "HttpRequest", "parse_request", "pause_s", "pieces"]

ENDLESS_BODY_SIZE = 300_000_000
"""Bytes that :attr:`Delivery.ENDLESS_BODY` announces, and brings if anybody takes them."""

MAX_REQUEST_HEAD = 8192
MAX_REQUEST_BODY = 65_536
PIECE = 65_536
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
REASONS |= {412: "Precondition Failed", 500: "Internal Server Error", 503: "Service Unavailable"}

_REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.([01])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~\t]*?)[ \t]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """An answer, and how it comes.

    Attributes:
        status: 200 … 599.
        headers: but those that say how long the body is.
        body: in full.
        delivery: if that is not readable, no client may use any of it.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delivery: Delivery = Delivery.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request. The names of header fields are in capitals."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class BadRequest(Exception):
    """It cannot be read. The message says why."""


def parse_request(data: bytes, host: str, blame: Callable[[str], None]) -> HttpRequest | None:
    """Read a request that has arrived so far.

    Args:
        data: all of the connection.
        host: what its Host must be: the server's address, with its port.
        blame: is told of what a client must not do.

    Returns:
        ``None``: more is to come.

    Raises:
        BadRequest: nobody can make sense of it.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        if len(data) > MAX_REQUEST_HEAD:
            raise BadRequest("more than 8 KiB of header")
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise BadRequest(f"the request line is {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadRequest(f"{line[:60]!r} is no header field")
        if field[1].upper() in headers:
            blame(f"{field[1]} twice")
        headers[field[1].upper()] = field[2]
    length = headers.get("CONTENT-LENGTH", "0")
    if not length.isdigit() or int(length) > MAX_REQUEST_BODY:
        raise BadRequest(f"Content-Length is {length!r}")
    if len(body) < int(length):
        return None
    _judge(match[1], match[3], headers, host, len(body) - int(length), blame)
    return HttpRequest(method=match[1], target=match[2], headers=headers, body=body)


def _judge(
    method: str, version: str, headers: dict[str, str], host: str, surplus: int, blame: Callable[[str], None]
) -> None:
    if version != "1":
        blame(f"HTTP/1.{version}")
    # RFC 9112, 3.2: "A client MUST send a Host header field".
    if headers.get("HOST", "").lower() != host.lower():
        blame(f"Host is {headers.get('HOST')!r}, and not {host!r}")
    if headers.get("CONNECTION", "").lower() != "close":
        blame(f"Connection is {headers.get('CONNECTION')!r}: one exchange is all we want of it")
    if "TRANSFER-ENCODING" in headers:
        blame("Transfer-Encoding, which many a gateway does not know")
    if method == "POST" and "CONTENT-LENGTH" not in headers:
        blame("a POST without Content-Length")
    if surplus:
        blame(f"{surplus} bytes after the body")


def pause_s(reply: HttpReply) -> float:
    """Seconds between two pieces."""
    return 1.0 if reply.delivery is Delivery.DRIP else 0.0


def pieces(reply: HttpReply) -> Iterator[bytes]:
    """What goes over the connection, before it is closed. By :attr:`Delivery.HANG` nothing does, and it stays open."""
    delivery, body = reply.delivery, reply.body
    if delivery in (Delivery.RESET, Delivery.HANG):
        return
    if delivery is Delivery.BANNER:
        yield b"SSH-2.0-OpenSSH_9.2\r\n"
    elif delivery is Delivery.DRIP:
        whole = _head(reply, _length(len(body))) + body
        for index in range(len(whole)):
            yield whole[index : index + 1]
    elif delivery is Delivery.ENDLESS_HEADER:
        yield _status_line(reply)
        for number in count():
            yield f"X-{number}: {'a' * 1000}\r\n".encode()
    elif delivery is Delivery.ENDLESS_BODY:
        yield _head(reply, _length(ENDLESS_BODY_SIZE))
        for start in range(0, ENDLESS_BODY_SIZE, PIECE):
            yield b"<" * min(PIECE, ENDLESS_BODY_SIZE - start)
    elif delivery in (Delivery.CHUNKED, Delivery.BAD_CHUNK, Delivery.ENDLESS_CHUNKS):
        yield from _chunks(reply)
    else:
        yield from _cut(_framed(reply))


def _framed(reply: HttpReply) -> bytes:
    """Head and body of an answer that is sent at once."""
    delivery, body = reply.delivery, reply.body
    size = len(body)
    lengths = {
        Delivery.UNTIL_CLOSE: (),
        Delivery.LENGTH_SHORT: _length(size // 2),
        Delivery.LENGTH_LONG: _length(size + 100),
        Delivery.LENGTH_TEXT: (("Content-Length", "many"),),
        Delivery.LENGTH_NEGATIVE: _length(-size),
        Delivery.LENGTH_TWICE: (*_length(size), *_length(size // 2)),
    }
    head = _head(reply, lengths.get(delivery, _length(size)))
    if delivery is Delivery.INTERIM:
        return b"HTTP/1.1 100 Continue\r\n\r\n" + head + body
    return head + (body[: size // 2] if delivery is Delivery.CUT else body)


def _chunks(reply: HttpReply) -> Iterator[bytes]:
    yield _head(reply, (("Transfer-Encoding", "chunked"),))
    while reply.delivery is Delivery.ENDLESS_CHUNKS:
        yield b"10000\r\n" + b"<" * PIECE + b"\r\n"
    for start in range(0, len(reply.body), 1000):
        chunk = reply.body[start : start + 1000]
        size = b"many" if reply.delivery is Delivery.BAD_CHUNK else f"{len(chunk):x};a=b".encode()
        yield size + b"\r\n" + chunk + b"\r\n"
    yield b"0\r\n\r\n"


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def _length(size: int) -> tuple[tuple[str, str], ...]:
    return (("Content-Length", str(size)),)


def _status_line(reply: HttpReply) -> bytes:
    version = "1.0" if reply.delivery is Delivery.UNTIL_CLOSE else "1.1"
    return f"HTTP/{version} {reply.status} {REASONS.get(reply.status, 'A Model')}\r\n".encode()


def _head(reply: HttpReply, lengths: tuple[tuple[str, str], ...]) -> bytes:
    fields = (*reply.headers, ("Connection", "close"), *lengths)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return _status_line(reply) + lines.encode("latin-1") + b"\r\n"
