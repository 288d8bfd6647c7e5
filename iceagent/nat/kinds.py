"""What may a NAT do with a port, and with a stranger's packet? See :mod:`iceagent.net.behaviour`, which defines them.

The words are on the ground floor because ``relay`` measures with them and may import nothing above it. Pure.
"""

from __future__ import annotations

from iceagent.net.behaviour import Filtering, Mapping

__all__ = ["Filtering", "Mapping"]
