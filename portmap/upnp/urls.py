"""Which URLs of a gateway may be fetched, and where do they lead? Pure.

A device tells us where its description is (LOCATION), and the description where its services are. Whoever answers a
search could so make us send requests anywhere. Therefore: ``http`` only, IP addresses only (no name is resolved), the
gateway itself or a neighbour that answers for it, and from its description never to another host.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from iceagent.net.address import TransportAddress, canonical_host, ip_address, quoted
from portmap.values import Gateway

__all__ = ["BadUrl", "Url", "is_neighbour", "parse_url", "resolve_url", "vet_location"]

# Longer ones than a description's few dozen characters mean nothing good.
MAX_URL_LENGTH = 512
DEFAULT_PORT = 80

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(#.*)?")
# What may stand in a request line: no space, no line break (RFC 9112, 3.2).
_VISIBLE = re.compile(r"[!-~]+")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")


class BadUrl(ValueError):
    """A URL that is not followed; the text says why."""


class Url(NamedTuple):
    """An ``http`` URL.

    Attributes:
        server: address and port, 1 … 65535.
        target: path and query, as in the request line; begins with a slash.
    """

    server: TransportAddress
    target: str

    def __str__(self) -> str:
        return f"http://{self.server}{self.target}"


def parse_url(text: str) -> Url:
    """Read an absolute URL.

    Raises:
        BadUrl: it is no URL, not ``http``, has a host name, a user or a zone, or no usable port.
    """
    text = _checked(text)
    match = _URL.fullmatch(text)
    if match is None:
        raise BadUrl(f"{quoted(text)} is no URL")
    if match["scheme"].lower() != "http":
        raise BadUrl(f"{quoted(text)} is not http")
    server = _server(match["authority"])
    target = match["target"]
    return Url(server, target if target.startswith("/") else f"/{target}")


def resolve_url(base: Url, reference: str) -> Url:
    """What ``reference`` means in a document at ``base`` (RFC 3986, 5.2; dot segments are the server's affair).

    Raises:
        BadUrl: as :func:`parse_url`; or it is on another host than ``base``. Another port is fine.
    """
    reference = _checked(reference)
    if "://" in reference.partition("?")[0] or reference.startswith("//"):
        url = parse_url(f"http:{reference}" if reference.startswith("//") else reference)
        if url.server.host != base.server.host:
            raise BadUrl(f"{quoted(reference)} is on another host than {base.server.host}")
        return url
    reference = reference.partition("#")[0]
    path = base.target.partition("?")[0]
    if reference.startswith("/"):
        target = reference
    elif reference.startswith("?"):
        target = path + reference
    else:
        target = path[: path.rindex("/") + 1] + reference
    return Url(base.server, _checked(target))


def vet_location(text: str, sender: str, gateway: Gateway) -> Url:
    """Judge the LOCATION that ``sender`` answered with.

    It may be on the gateway itself; or on the sender, if that is a private neighbour: some gateways have an address of
    their own beside the one that the default route names (a router with a floating address, say). Link-local IPv6
    addresses are refused: a URL has no zone for them, and gateways announce a global one.

    Args:
        text: the header's value.
        sender: the host that the answer came from; :func:`is_neighbour` was true.
        gateway: which was asked.

    Raises:
        BadUrl: says why it is not followed.
    """
    url = parse_url(text)
    host, ip = url.server.host, url.server.ip
    if url.server.version != gateway.version:
        raise BadUrl(f"{host} is not an IPv{gateway.version} address")
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified:
        raise BadUrl(f"{host} is not the address of a gateway")
    if ip.version == 6 and ip.is_link_local:
        raise BadUrl(f"{host} is link-local")
    if host == gateway.host:
        return url
    if not _is_inside(host, gateway):
        raise BadUrl(f"{host} is neither the gateway nor in {gateway.network}")
    if host == gateway.source:
        raise BadUrl(f"{host} is this machine")
    if ip.version == 4 and ip.is_global:
        raise BadUrl(f"{host} is not the gateway, and not private")
    # An IPv6 answer comes from a link-local address and names a global one.
    if host != sender and not ip_address(sender).is_link_local:
        raise BadUrl(f"{host} is neither the gateway nor {sender}, who said so")
    return url


def is_neighbour(host: str, gateway: Gateway) -> bool:
    """Whether a datagram from ``host`` came from the gateway's network: the only ones that are looked at."""
    if host == gateway.host or _is_inside(host, gateway):
        return True
    return gateway.version == 6 and ":" in host and ip_address(host).is_link_local


def _is_inside(host: str, gateway: Gateway) -> bool:
    ip, network = ip_address(host), ipaddress.ip_network(gateway.network, strict=False)
    return ip.version == network.version and ip in network


def _checked(text: str) -> str:
    text = text.strip(" \t\r\n")
    if not text:
        raise BadUrl("the URL is empty")
    if len(text) > MAX_URL_LENGTH:
        raise BadUrl(f"{quoted(text)} has more than {MAX_URL_LENGTH} characters")
    if not _VISIBLE.fullmatch(text):
        raise BadUrl(f"{quoted(text)} has characters that no URL has")
    return text


def _server(authority: str) -> TransportAddress:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        is_valid = bool(bracket) and ":" in host and "%" not in host and rest[:1] in ("", ":")
        port_text = rest[1:]
    else:
        host, _, port_text = authority.partition(":")
        is_valid = _IPV4.fullmatch(host) is not None
    try:
        canonical = canonical_host(host) if is_valid else ""
    except ValueError:
        canonical = ""
    if not canonical:
        raise BadUrl(f"{quoted(authority)} is not an IP address")
    if not port_text:
        return TransportAddress(canonical, DEFAULT_PORT)
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    if not is_number or not 1 <= int(port_text) <= 65535:
        raise BadUrl(f"{quoted(port_text)} is not a port (1 to 65535)")
    return TransportAddress(canonical, int(port_text))
