"""What does the gateway's own list say of a port? Pure. (WANIPConnection:1, 2.4.14 and 2.4.15.)

A gateway that is in truth a client of a PCP server (RFC 6970, 5.7) knows its own list only: asked for a port that is
not in there, it says no, whether it is free or another subscriber's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from iceagent.net.address import canonical_host
from portmap.upnp.description import Service
from portmap.upnp.exchanges import Answer, Exchanges
from portmap.values import MapRequest, Transport

__all__ = ["Entry", "Sight", "ask_entry", "entry_of", "number_in", "sight_of", "transport_in"]

CHECK_TIMEOUT_S = 1.0
NO_SUCH_ENTRY = 714


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A mapping in the gateway's list.

    Attributes:
        internal_host: whom it leads to: canonical if it is an IP address; a gateway may tell a name.
        internal_port: 0 … 65535; 0: it told none.
        is_enabled: it is in force.
        description: whatever its maker wrote; not to be trusted.
        lease_s: seconds that are left; 0: for ever, or not told.
    """

    internal_host: str
    internal_port: int
    is_enabled: bool
    description: str
    lease_s: int


class Sight(Enum):
    """What was seen at a port."""

    OURS = auto()
    DISABLED = auto()
    """Ours, but not in force."""
    FOREIGN = auto()
    """Another host's, or another program's of this host."""
    ABSENT = auto()
    UNCLEAR = auto()
    """It cannot, or will not, say; or says nothing sensible."""


def ask_entry(
    exchanges: Exchanges,
    service: Service,
    request: MapRequest,
    port: int,
    now: float,
    then: Callable[[Answer, float], None],
    *,
    timeout_s: float = CHECK_TIMEOUT_S,
    is_urgent: bool = False,
) -> None:
    """Ask what the gateway has at an outside port."""
    arguments = (
        ("NewRemoteHost", ""),
        ("NewExternalPort", str(port)),
        ("NewProtocol", request.transport.upper()),
    )
    source = request.internal.host
    action = "GetSpecificPortMappingEntry"
    exchanges.call(service, source, action, arguments, timeout_s, now, then, is_urgent=is_urgent)


def sight_of(answer: Answer, request: MapRequest) -> tuple[Sight, Entry | None]:
    """Judge the answer: is the port ours, as ``request`` wants it?"""
    if answer.values is None:
        return (Sight.ABSENT if answer.code == NO_SUCH_ENTRY else Sight.UNCLEAR), None
    entry = entry_of(answer.values)
    if entry.internal_port and entry.internal_port != request.internal.port:
        return Sight.FOREIGN, entry
    if not _is_ip(entry.internal_host) or not entry.internal_port:
        return Sight.UNCLEAR, entry
    if entry.internal_host != request.internal.host:
        return Sight.FOREIGN, entry
    return (Sight.OURS if entry.is_enabled else Sight.DISABLED), entry


def entry_of(values: dict[str, str]) -> Entry:
    """Read the output arguments of GetSpecificPortMappingEntry or GetGenericPortMappingEntry."""
    host = values.get("NewInternalClient", "").strip()
    return Entry(
        internal_host=canonical_host(host) if _is_ip(host) else host,
        internal_port=number_in(values, "NewInternalPort", 65535) or 0,
        is_enabled=values.get("NewEnabled", "1").strip().lower() not in ("0", "false", "no"),
        description=values.get("NewPortMappingDescription", ""),
        lease_s=number_in(values, "NewLeaseDuration", 2**32 - 1) or 0,
    )


def number_in(values: dict[str, str], name: str, highest: int) -> int | None:
    """An output argument that is a number from 0 to ``highest``; ``None``: it is not."""
    text = values.get(name, "").strip()
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if is_number and int(text) <= highest else None


def transport_in(values: dict[str, str]) -> Transport | None:
    """The protocol of an entry; ``None``: another than TCP and UDP."""
    match values.get("NewProtocol", "").strip().lower():
        case "udp":
            return "udp"
        case "tcp":
            return "tcp"
    return None


def _is_ip(host: str) -> bool:
    try:
        canonical_host(host)
    except ValueError:
        return False
    return True
