"""How does a stream get through an HTTP proxy?

Where only the proxy may leave, it is asked for a tunnel: CONNECT (RFC 9110, 9.3.6), with Basic authentication (RFC
7617) if the proxy has credentials. After a 2xx answer the socket is the target's, and what the target says first may
stand right behind the answer's head; so the head is read to its last byte and no further.

Which proxy, :func:`from_environment` says by the variables that curl and most others read (there is no standard):
``https_proxy``, then ``all_proxy``, unless ``no_proxy`` names the host.

Not here: TLS to the proxy itself, SOCKS, Digest and Negotiate authentication. :class:`Proxy`, the value, is in
``iceagent.net.host``, which may not import this file.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import ipaddress
import re
import socket
from collections.abc import Mapping

from iceagent.net.address import canonical_host, ip_address, quoted
from iceagent.net.host import Proxy

__all__ = ["Proxy", "ProxyRefused", "from_environment", "tunnel"]

# Bytes of all the heads of one answer. RFC 9110, 5.4 leaves the limit to us; most servers stop a request at 8 KiB.
MAX_HEAD = 8192
# Characters of a reason phrase that are kept.
MAX_REASON = 100

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: (.*))?")
_HTTP = b"HTTP/"
# RFC 9112, 2.2: a recipient MAY recognize a single LF as a line terminator.
_HEAD_ENDS = (b"\r\n\r\n", b"\n\r\n", b"\n\n")
# A host name, or an IP address without brackets and zone.
_TARGET = re.compile(r"[A-Za-z0-9_.:-]+")
# CTL of RFC 5234, B.1.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ProxyRefused(ConnectionRefusedError):
    """The proxy answered, and not with a tunnel; errno ECONNREFUSED.

    Attributes:
        status: HTTP status code, 300 … 999; 407: it wants (other) credentials.
        reason: the reason phrase, escaped, at most 100 characters; may be empty.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(errno.ECONNREFUSED, f"the proxy refuses the tunnel: {status} {reason}".rstrip())
        self.status = status
        self.reason = reason


def from_environment(environ: Mapping[str, str], host: str) -> Proxy | None:
    """The proxy for streams to ``host``; ``None``: go directly.

    The first of ``https_proxy``, ``HTTPS_PROXY``, ``all_proxy`` and ``ALL_PROXY`` that is not empty counts, and the
    first of ``no_proxy`` and ``NO_PROXY``: entries with commas or blanks between them, each a domain (and all below it,
    with or without ``.`` or ``*.`` before it), an IP address, a block of them (``10.0.0.0/8``), or ``*`` for all. IP
    addresses are compared as addresses; a name is not resolved to see whether its address is in a block. An entry with
    a port, or one that cannot be read, fits nothing.

    Args:
        environ: as :data:`os.environ`.
        host: a name or an IP address; of a server given by its name, the name.

    Raises:
        ValueError: the variable that counts is not a proxy known here (SOCKS, say); the message names it.
    """
    name = next((name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if environ.get(name)), None)
    if name is None or _is_exempt(host, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        return Proxy.parse(environ[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _is_exempt(host: str, no_proxy: str) -> bool:
    entries = no_proxy.replace(",", " ").split()
    if "*" in entries:
        return True
    bare = host.removeprefix("[").removesuffix("]")
    try:
        ip = ip_address(canonical_host(bare))
    except ValueError:
        return any(_is_below(bare.rstrip(".").lower(), entry.lower()) for entry in entries)
    return any(_is_within(ip, entry) for entry in entries)


def _is_below(name: str, entry: str) -> bool:
    domain = entry.removeprefix("*").strip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _is_within(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, entry: str) -> bool:
    entry = entry.removeprefix("[").removesuffix("]")
    try:
        # Bits of the host in a block are common, and meant.
        block = ipaddress.ip_network(entry if "/" in entry else canonical_host(entry), strict=False)
    except ValueError:
        return False
    return ip in block


async def tunnel(sock: socket.socket, target_host: str, target_port: int, proxy: Proxy) -> None:
    """Ask the proxy at the other end of ``sock`` for a tunnel; afterwards the socket is the target's.

    No byte of what follows the answer's head has been read then. Has no time limit of its own. On an error, the socket
    is of no more use, and still open.

    Args:
        sock: connected to the proxy, not blocking.
        target_host: a name, or an IP address without brackets.
        target_port: 1 … 65535.
        proxy: whose credentials to send; where it is does not matter any more.

    Raises:
        ProxyRefused: the answer was not 2xx.
        OSError: ECONNRESET (closed before the end of the answer), EPROTO (not HTTP, or more than 8 KiB), or the
            network's.
        ValueError: the target or the credentials cannot be sent; nothing was.
    """
    request = _request(target_host, target_port, proxy)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    room = MAX_HEAD
    # RFC 9110, 15.2: a client MUST be able to parse one or more 1xx responses received prior to a final response.
    status, reason = 100, ""
    while status < 200:
        head = await _read_head(loop, sock, room)
        room -= len(head)
        status, reason = _parse_head_untrusted(head)
    # RFC 9110, 9.3.6: any Content-Length or Transfer-Encoding of a 2xx MUST be ignored.
    if status >= 300:
        raise ProxyRefused(status, reason)


def _request(target_host: str, target_port: int, proxy: Proxy) -> bytes:
    if not _TARGET.fullmatch(target_host):
        raise ValueError(f"{quoted(target_host)} is neither a host name nor an IP address that a proxy could reach")
    if not 0 < target_port < 65536:
        raise ValueError(f"{target_port} is not a port (1 to 65535)")
    authority = f"[{target_host}]:{target_port}" if ":" in target_host else f"{target_host}:{target_port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.username is not None:
        lines.append(f"Proxy-Authorization: Basic {_credentials(proxy.username, proxy.password or '')}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _credentials(username: str, password: str) -> str:
    """RFC 7617, 2: base64 of ``user-id:password``. The messages quote neither."""
    if ":" in username:
        raise ValueError("a proxy's user name may not have a colon (RFC 7617, 2)")
    user_pass = f"{username}:{password}"
    if _CONTROL.search(user_pass):
        raise ValueError("a proxy's user and password may not have control characters (RFC 7617, 2)")
    try:
        return base64.b64encode(user_pass.encode()).decode("ascii")
    except UnicodeEncodeError:
        # A lone surrogate. Not "from error": that one has the password.
        raise ValueError("a proxy's user and password must be text that UTF-8 can encode") from None


async def _read_head(loop: asyncio.AbstractEventLoop, sock: socket.socket, room: int) -> bytes:
    """Everything up to the empty line, in at most ``room`` bytes.

    Byte by byte: what follows is the target's, and no loop's ``sock_recv`` can peek. A usual head has 40 to 300.
    """
    head = bytearray()
    while not head.endswith(_HEAD_ENDS):
        if len(head) == room:
            raise OSError(errno.EPROTO, f"the proxy's answer has no end within {MAX_HEAD} bytes")
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise OSError(errno.ECONNRESET, f"the proxy closed the connection after {len(head)} bytes of its answer")
        head += byte
        if not _HTTP.startswith(head[: len(_HTTP)]):
            raise _not_http(bytes(head))
    return bytes(head)


def _parse_head_untrusted(head: bytes) -> tuple[int, str]:
    """Status code and reason phrase (escaped, cut off); the fields say nothing to us."""
    line = head.partition(b"\n")[0].removesuffix(b"\r")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise _not_http(line)
    reason = (match[2] or b"").decode("latin-1").encode("unicode_escape").decode("ascii")
    return int(match[1]), reason[:MAX_REASON]


def _not_http(data: bytes) -> OSError:
    return OSError(errno.EPROTO, f"the proxy's answer is not HTTP/1: {quoted(data.decode('latin-1'))}")
