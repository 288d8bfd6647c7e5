"""NAT-PMP, the NAT Port Mapping Protocol (RFC 6886), for IPv4. Pure.

``messages.py`` has the bytes, ``queue.py`` whose turn it is, ``client.py`` all that a client does.
"""

from __future__ import annotations

from portmap.natpmp.client import NatPmpClient

__all__ = ["NatPmpClient"]
