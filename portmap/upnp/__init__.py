"""How is UPnP IGD spoken? A client without I/O, for port mappings over IPv4 and pinholes over IPv6.

Which question is answered where: ``urls.py`` which URL is followed, ``ssdp.py`` how is searched, ``discovery.py`` what
is chosen, ``elements.py`` and ``description.py`` what an XML document says, ``soap.py`` how an action is called,
``ports.py`` which router quirk is answered how, ``pinholes.py`` the same for IPv6, ``upkeep.py`` how a mapping is kept,
``external.py`` the external address, ``listing.py`` the gateway's list, ``client.py`` how they work together.

Discovery goes by UPnP Device Architecture 1.1; the services are WANIPConnection:1 and :2, WANPPPConnection:1 and
WANIPv6FirewallControl:1.
"""

from __future__ import annotations

from portmap.upnp.client import UpnpClient
from portmap.upnp.entries import Entry
from portmap.upnp.listing import ListedMapping, MappingsListed
from portmap.upnp.ssdp import is_ssdp

__all__ = ["Entry", "ListedMapping", "MappingsListed", "UpnpClient", "is_ssdp"]
