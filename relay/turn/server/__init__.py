"""The server's side of TURN, sans-IO.

Who may relay (``auth``), whom to (``policy``), what there is (``allocation``), and what is answered (``core``).
"""

from __future__ import annotations

from relay.turn.server.allocation import ServedAllocation
from relay.turn.server.auth import Accounts
from relay.turn.server.core import (
    AllocationEnded,
    AllocationMade,
    RelayPorts,
    TurnOptions,
    TurnServer,
    TurnService,
)
from relay.turn.server.policy import PeerPolicy

__all__ = [
    "Accounts",
    "AllocationEnded",
    "AllocationMade",
    "PeerPolicy",
    "RelayPorts",
    "ServedAllocation",
    "TurnOptions",
    "TurnServer",
    "TurnService",
]
