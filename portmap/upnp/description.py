"""Which services has a gateway, and where? (UPnP Device Architecture 1.1, 2.3.) Pure.

Of a description only the services that make mappings are read. Their order is the document's: a gateway with two lines
has two WAN*Connection services, and which of them is connected, its answers tell (``discovery.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from portmap.upnp.elements import BadDocument, parse_document
from portmap.upnp.urls import BadUrl, Url, resolve_url

__all__ = ["MAX_SERVICES", "Service", "services_of"]

MAX_SERVICES = 4
"""Of one description; further ones are not looked at."""

_TYPE = re.compile(r"urn:schemas-upnp-org:service:(WANIPConnection|WANPPPConnection|WANIPv6FirewallControl):([1-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that makes mappings.

    Attributes:
        type: its full name, which every request says.
        version: the number at the end of that.
        is_firewall: it opens pinholes for IPv6; else it maps ports of IPv4.
        control: where requests go.
    """

    type: str
    version: int
    is_firewall: bool
    control: Url


def services_of(data: bytes, location: Url) -> list[Service]:
    """Read a description.

    Args:
        data: as it was fetched.
        location: where from.

    Returns:
        In order, at most :data:`MAX_SERVICES`, at least one.

    Raises:
        BadDocument: it is no description, or none of a gateway, or no service can be reached on ``location``'s host.
    """
    root = parse_document(data)
    base = location
    # UDA 1.1 did away with URLBase. A wrong one (of an address that the gateway once had) is as good as none.
    if root.child_text("URLBase"):
        try:
            base = resolve_url(location, root.child_text("URLBase"))
        except BadUrl:
            base = location
    services: list[Service] = []
    refused = "it has no WANIPConnection, WANPPPConnection or WANIPv6FirewallControl"
    for element in root.walk():
        if element.name.lower() != "service":
            continue
        match = _TYPE.fullmatch(element.child_text("serviceType"))
        if match is None:
            continue
        try:
            control = resolve_url(base, element.child_text("controlURL"))
        except BadUrl as error:
            refused = f"the controlURL of its {match[1]}: {error}"
            continue
        is_firewall = match[1] == "WANIPv6FirewallControl"
        services.append(Service(type=match[0], version=int(match[2]), is_firewall=is_firewall, control=control))
        if len(services) == MAX_SERVICES:
            break
    if not services:
        raise BadDocument(refused)
    return services
