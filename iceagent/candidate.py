"""What is a candidate, and how is it written?

RFC 8445, 5.1 for the meaning, RFC 8839, 5.1 for the grammar: ``candidate:<foundation> <component> <transport>
<priority> <address> <port> typ <type> [raddr … rport …] [name value]*``. Extension attributes survive in their order.
ICE-TCP lines (RFC 6544) parse, and whoever adds them is told that they are ignored. A ``.local`` name may stand for
the address (mDNS). The grammar is open: a line of another transport, candidate type or kind of address is a good one
of a newer peer, which cannot be used (:class:`iceagent.UnsupportedCandidate`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from itertools import zip_longest

from iceagent.errors import InvalidCandidate, UnsupportedCandidate
from iceagent.net.address import TransportAddress, canonical_host

__all__ = ["Candidate", "CandidateType"]

# A line longer than this is no candidate: foundation 32, name 255, a handful of extensions.
_MAX_LINE = 1024
_FOUNDATION = re.compile(r"[A-Za-z0-9+/]{1,32}")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
# RFC 3261, 25.1: what transport-extension and cand-type are.
_TOKEN = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class CandidateType(Enum):
    """RFC 8445, 5.1.1 and the ``cand-type`` tokens of RFC 8839."""

    HOST = "host"
    PEER_REFLEXIVE = "prflx"
    SERVER_REFLEXIVE = "srflx"
    RELAYED = "relay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A transport address that a peer may be reached at.

    Attributes:
        foundation: 1 … 32 ``ice-char``; equal for candidates of the same type, base IP, protocol and server.
        component: 1 … 256.
        priority: 1 … 2**31 - 1; what we write is the formula of ``iceagent/priority.py``.
        address: where to; ``host`` may be a ``.local`` name until resolved.
        type: see :class:`CandidateType`.
        transport: ``udp`` or ``tcp``, lower case.
        related_address: ``raddr``/``rport``, ``None`` where there is none.
        extensions: (name, value) in order, among them ``ufrag``, ``generation``, ``tcptype``, ``network-cost``.
        base: our own candidates only: the socket (or relayed address) that checks leave from (RFC 8445, 5.1.1.2).
        origin: our own candidates only: who found it, e.g. ``interface eth0``, the server's URI.
        is_mapped: our own candidates only: a router maps it for us (:mod:`portmap`).
        network_id: our own candidates only: the index of the interface it stands on, as far as 16 bits hold it.
        network_cost: our own candidates only: 0 … 999, what that network costs (``iceagent/priority.py``).
    """

    foundation: str
    component: int
    priority: int
    address: TransportAddress
    type: CandidateType
    transport: str = "udp"
    related_address: TransportAddress | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    base: TransportAddress | None = None
    origin: str = ""
    is_mapped: bool = False
    network_id: int = 0
    network_cost: int = 0

    @classmethod
    def parse(cls, line: str) -> Candidate:
        """Read a candidate line, with or without ``a=`` and ``candidate:`` in front.

        Raises:
            UnsupportedCandidate: the line is well-formed, but of a transport, type or kind of address that is not known
                here. RFC 8839, 5.1: such lines are to be ignored.
            InvalidCandidate: any other reason; the message quotes the line and says what is wrong.
        """
        try:
            return _parse(line)
        except InvalidCandidate as error:
            raise type(error)(f"candidate line {line[:200]!r}: {error}") from None

    def to_sdp(self) -> str:
        """The line, from ``candidate:`` on."""
        parts = [
            f"candidate:{self.foundation} {self.component} {self.transport} {self.priority}",
            f"{self.address.host} {self.address.port} typ {self.type.value}",
        ]
        if self.related_address is not None:
            parts.append(f"raddr {self.related_address.host} rport {self.related_address.port}")
        parts += [f"{name} {value}" for name, value in self.extensions]
        return " ".join(parts)

    def extension(self, name: str) -> str | None:
        """The first value of an extension attribute."""
        return next((value for key, value in self.extensions if key == name), None)

    @property
    def ufrag(self) -> str | None:
        """The user name fragment this candidate belongs to, where it says so (RFC 8838, 9 / RFC 8839)."""
        return self.extension("ufrag")

    @property
    def has_name(self) -> bool:
        """Whether the address is a host name that must be resolved first."""
        return not _is_ip(self.address.host)

    def with_address(self, host: str) -> Candidate:
        """The same candidate at another IP address, e.g. the one that its name resolved to."""
        return replace(self, address=TransportAddress(canonical_host(host), self.address.port))


def _is_ip(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _parse(line: str) -> Candidate:
    if len(line) > _MAX_LINE:
        raise InvalidCandidate(f"{len(line)} characters, at most {_MAX_LINE} are read")
    text = line.strip().removeprefix("a=").removeprefix("candidate:")
    words = text.split(" ")
    if len(words) < 8:
        raise InvalidCandidate(f"{len(words)} fields, at least 8 are needed")
    # extension-att-value = *VCHAR: a value may be empty, a name may not.
    if any(not _VISIBLE.fullmatch(word) for word in (*words[:8], *words[8::2], *filter(None, words[9::2]))):
        raise InvalidCandidate("fields are separated by one space and hold printable ASCII only")
    foundation, component, transport, priority, host, port, typ, type_name = words[:8]
    if not _FOUNDATION.fullmatch(foundation):
        raise InvalidCandidate(f"foundation {foundation!r}: 1 to 32 of letters, digits, '+' and '/'")
    if typ != "typ":
        raise InvalidCandidate(f"{typ!r} where 'typ' belongs")
    extensions = _pairs(words[8:])
    # All numbers before anything may be found to be unknown: a wrong one is a malformed line in any transport.
    related_port = _related_port(extensions)
    return Candidate(
        foundation=foundation,
        component=_number(component, "component", 1, 256),
        priority=_number(priority, "priority", 1, 2**31 - 1),
        address=TransportAddress(port=_number(port, "port", 0, 65535), host=_host(host)),
        type=_type(type_name),
        transport=_transport(transport),
        related_address=_related(extensions, related_port),
        extensions=tuple((name, value) for name, value in extensions if name not in ("raddr", "rport")),
    )


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """Names and values; the space before an empty last value is lost where lines are stripped."""
    return list(zip_longest(words[::2], words[1::2], fillvalue=""))


def _related_port(extensions: list[tuple[str, str]]) -> int:
    # A browser that hides its address writes "raddr 0.0.0.0 rport 0".
    return _number(dict(reversed(extensions)).get("rport", "0"), "rport", 0, 65535)


def _related(extensions: list[tuple[str, str]], port: int) -> TransportAddress | None:
    host = dict(reversed(extensions)).get("raddr")
    return None if host is None else TransportAddress(_host(host), port)


def _host(host: str) -> str:
    if not host:
        raise InvalidCandidate("raddr has no address")
    if _is_ip(host):
        if "%" in host:
            raise UnsupportedCandidate(f"address {host!r}: a zone has no meaning to a peer")
        try:
            return canonical_host(host)
        except ValueError:
            raise InvalidCandidate(f"address {host!r} is no IP address") from None
    if not _HOST_NAME.fullmatch(host):
        # RFC 4566, 9: extn-addr = non-ws-string.
        raise UnsupportedCandidate(f"address {host!r} is neither an IP address nor a host name")
    return host.lower()


def _type(name: str) -> CandidateType:
    try:
        return CandidateType(name)
    except ValueError:
        raise _unknown(name, f"type {name!r} is not one of host, srflx, prflx, relay") from None


def _transport(name: str) -> str:
    transport = name.lower()
    if transport not in ("udp", "tcp"):
        raise _unknown(name, f"transport {name!r} is neither udp nor tcp")
    return transport


def _unknown(name: str, reason: str) -> InvalidCandidate:
    """A token is a name that others may know; anything else is nobody's."""
    return UnsupportedCandidate(reason) if _TOKEN.fullmatch(name) else InvalidCandidate(reason)


def _number(text: str, what: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise InvalidCandidate(f"{what} {text!r} is not a number from {low} to {high}")
    return int(text)
