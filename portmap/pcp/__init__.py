"""PCP, the Port Control Protocol (RFC 6887): mappings of a NAT, and pinholes of an IPv6 firewall. Pure.

``messages.py`` has the bytes, ``mapping.py`` when a mapping is asked for, ``client.py`` all that a client does. MAP and
ANNOUNCE only: PEER is for connections that exist.
"""

from __future__ import annotations

from portmap.pcp.client import PcpClient
from portmap.server_link import SERVER_PORT as PCP_PORT
from portmap.server_link import is_for_pcp

__all__ = ["PCP_PORT", "PcpClient", "is_for_pcp"]
