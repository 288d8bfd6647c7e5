"""What is a gateway that speaks PCP, NAT-PMP and UPnP, and that can be wrong in every way known?

Written from the RFCs and from UPnP's specifications, and not from the clients that it judges: nothing in here imports
them. A gateway without a fault does what its specifications say, and is strict: what a client must not send is a
sentence in :attr:`FakeGateway.violations`, which a test wants to be empty.

- ``gateway``: all of it, pure: datagrams and HTTP exchanges in, answers out.
- ``faults``: what can be wrong with it, a switch each. ``state``: which makes of it there are (``Options``).
- ``core``: the gateway as a core, on a node of ``iceagent.testing``'s network.
- ``shell``: the gateway on a host: UDP and TCP, in memory or in a laboratory.
- ``pcp``, ``natpmp``, ``ssdp``, ``upnp`` with ``actions`` and ``description``: a protocol each. ``http``: how an answer
  comes, byte for byte. ``table``: the mappings. ``journal``: what was asked.
"""

from tests.fakes.gateway.core import GatewayCore, gateway_peer
from tests.fakes.gateway.faults import LOCATIONS, Delivery, Faults, Xml
from tests.fakes.gateway.gateway import FakeGateway
from tests.fakes.gateway.http import HttpReply
from tests.fakes.gateway.journal import Outgoing, PortClosed, Reply, Request
from tests.fakes.gateway.shell import GatewayShell
from tests.fakes.gateway.state import Options
from tests.fakes.gateway.table import PortMapping

__all__ = [
    "LOCATIONS",
    "Delivery",
    "FakeGateway",
    "Faults",
    "GatewayCore",
    "GatewayShell",
    "HttpReply",
    "Options",
    "Outgoing",
    "PortClosed",
    "PortMapping",
    "Reply",
    "Request",
    "Xml",
    "gateway_peer",
]
