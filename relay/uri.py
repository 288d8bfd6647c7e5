"""How is a STUN or TURN server named?

``stun:`` and ``stuns:`` are RFC 7064, ``turn:`` and ``turns:`` RFC 7065: ``scheme:host[:port][?transport=udp|tcp]``,
the query for TURN only. An IPv6 address stands in brackets. Default ports: 3478, and 5349 for the ``s`` schemes
(RFC 8489, 8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iceagent.net.address import canonical_host, quoted

__all__ = ["BadUri", "ServerUri"]

_DEFAULT_PORTS = {"stun": 3478, "stuns": 5349, "turn": 3478, "turns": 5349}
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class BadUri(ValueError):
    """The text is no STUN or TURN URI; the message quotes (the beginning of) it and says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUri:
    """A server, as configured.

    Attributes:
        scheme: ``stun``, ``stuns``, ``turn`` or ``turns``.
        host: a name, or a canonical IP address.
        port: as written; ``None``: to be found by SRV, else the default (RFC 8489, 8; RFC 5928).
        transport: ``udp`` or ``tcp`` where the URI says so.
    """

    scheme: str
    host: str
    port: int | None = None
    transport: str | None = None

    @property
    def is_secure(self) -> bool:
        """Whether TLS or DTLS is asked for."""
        return self.scheme.endswith("s")

    @property
    def is_turn(self) -> bool:
        return self.scheme.startswith("turn")

    @property
    def default_port(self) -> int:
        """Where there is neither a port nor an SRV record."""
        return _DEFAULT_PORTS[self.scheme]

    @classmethod
    def parse(cls, text: str) -> ServerUri:
        """Read a URI.

        Raises:
            BadUri: see there.
        """
        scheme, colon, rest = text.partition(":")
        scheme = scheme.lower()
        if not colon or scheme not in _DEFAULT_PORTS:
            raise BadUri(f"{quoted(text)}: a server begins with stun:, stuns:, turn: or turns:")
        if rest.startswith("//"):
            raise BadUri(f"{quoted(text)}: no // after {scheme}: (RFC {7065 if 'turn' in scheme else 7064}, 3.1)")
        rest, question, query = rest.partition("?")
        host, port = _host_and_port(text, rest)
        return cls(scheme=scheme, host=host, port=port, transport=_transport(text, scheme, query if question else None))


def _host_and_port(text: str, rest: str) -> tuple[str, int | None]:
    if rest.startswith("["):
        host, bracket, port_text = rest[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise BadUri(f"{quoted(text)}: an IPv6 address is written [address]:port")
        port_text = port_text[1:]
    else:
        host, _, port_text = rest.partition(":")
    return _host(text, host), _port(text, port_text)


def _host(text: str, host: str) -> str:
    try:
        return canonical_host(host)
    except ValueError:
        if not _NAME.fullmatch(host):
            raise BadUri(f"{quoted(text)}: {quoted(host)} is neither a host name nor an IP address") from None
        return host.lower()


def _port(text: str, port: str) -> int | None:
    if not port:
        return None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise BadUri(f"{quoted(text)}: {quoted(port)} is not a port (1 to 65535)")
    return int(port)


def _transport(text: str, scheme: str, query: str | None) -> str | None:
    if query is None:
        return None
    name, _, value = query.partition("=")
    if not scheme.startswith("turn"):
        raise BadUri(f"{quoted(text)}: {scheme}: takes no query (RFC 7064, 3.1)")
    if name != "transport" or value.lower() not in ("udp", "tcp"):
        raise BadUri(f"{quoted(text)}: the query is transport=udp or transport=tcp (RFC 7065, 3.1)")
    return value.lower()
