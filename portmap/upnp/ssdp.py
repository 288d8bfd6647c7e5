"""How is a gateway searched for, and what does an answer say? (UPnP Device Architecture 1.1, 1.3.) Pure.

A search is one datagram with HTTP's look, an answer likewise. The same bytes go to the gateway's own address and to the
multicast group: HOST names the group both times, because some devices look at it, and MX, which a unicast search need
not have, is there because devices of version 1.0 take no search without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iceagent.net.address import TransportAddress

__all__ = [
    "GROUPS",
    "SEARCH_TARGETS",
    "SERVICE_TARGETS",
    "SSDP_PORT",
    "BadReply",
    "Reply",
    "is_ssdp",
    "parse_reply",
    "search",
]

SSDP_PORT = 1900
GROUPS = {4: TransportAddress("239.255.255.250", SSDP_PORT), 6: TransportAddress("ff02::c", SSDP_PORT)}

# A device of version 2 must answer for version 1 as well; not all do.
SEARCH_TARGETS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
)
# For those that answer to the names of their services only.
SERVICE_TARGETS = {
    4: ("urn:schemas-upnp-org:service:WANIPConnection:1", "urn:schemas-upnp-org:service:WANPPPConnection:1"),
    6: ("urn:schemas-upnp-org:service:WANIPv6FirewallControl:1",),
}
# Seconds within which devices may delay their answer; 1 is the least that is allowed.
MX = 1

# An answer has some 400 bytes.
MAX_REPLY_BYTES = 4096
MAX_REPLY_LINES = 64

_STATUS = re.compile(rb"HTTP/1\.[0-9] +200(?: .*)?")
_IS_GATEWAY = re.compile(
    r"urn:schemas-upnp-org:(?:device:(?:InternetGatewayDevice|WANDevice|WANConnectionDevice)"
    r"|service:(?:WANIPConnection|WANPPPConnection|WANIPv6FirewallControl)):[0-9]",
    re.IGNORECASE,
)


class BadReply(ValueError):
    """A datagram that is no answer to our search; the text is one of a fixed number of phrases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer to a search.

    Attributes:
        location: where the description is, as it was written: see :func:`portmap.upnp.urls.vet_location`.
        names_gateway: ST or USN name a device or service of a gateway; else it has no ST at all.
    """

    location: str
    names_gateway: bool


def is_ssdp(data: bytes) -> bool:
    """Whether a datagram is an SSDP message, and nothing of the other protocols on the same socket."""
    return data[:5] == b"HTTP/" or data[:9] in (b"NOTIFY * ", b"M-SEARCH ")


def search(target: str, version: int) -> bytes:
    """The datagram that searches for ``target``.

    Args:
        target: the search target (ST).
        version: 4 or 6, of the group that HOST names.
    """
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {str(GROUPS[version]).upper()}",
        'MAN: "ssdp:discover"',
        f"MX: {MX}",
        f"ST: {target}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def parse_reply(data: bytes) -> Reply:
    """Read an answer; lenient about line ends, case and order.

    Raises:
        BadReply: it is none, it is about something else, or it has no LOCATION.
    """
    if len(data) > MAX_REPLY_BYTES:
        raise BadReply("SSDP message too long")
    first, _, rest = data.partition(b"\n")
    if not _STATUS.fullmatch(first.rstrip(b"\r")):
        raise BadReply("not an answer to a search")
    headers = _headers(rest)
    location = headers.get("location", "")
    if not location:
        raise BadReply("SSDP answer without LOCATION")
    target = headers.get("st")
    names_gateway = any(_IS_GATEWAY.search(text) for text in (target or "", headers.get("usn", "")))
    if target and not names_gateway:
        raise BadReply("SSDP answer of another device")
    return Reply(location=location, names_gateway=names_gateway)


def _headers(data: bytes) -> dict[str, str]:
    """Names in lower case; of several the first counts."""
    headers: dict[str, str] = {}
    lines = data.split(b"\n", MAX_REPLY_LINES + 1)
    if len(lines) > MAX_REPLY_LINES + 1:
        raise BadReply("SSDP message has too many lines")
    for line in lines:
        if not line.strip():
            break
        name, _, value = line.decode("latin-1").partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return headers
