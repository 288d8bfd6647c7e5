"""How do we ask the router to open a port? PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP IGD.

Of this project it needs :mod:`iceagent.net` only.
"""

from __future__ import annotations

__all__: list[str] = []
