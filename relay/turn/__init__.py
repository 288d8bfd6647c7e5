"""TURN: what a client and a server of RFC 8656 do, sans-IO.

The client is one :class:`Allocation` per five-tuple; what it says are the events of :mod:`relay.turn.events`.
"""

from __future__ import annotations

from relay.account import TurnCredentials
from relay.turn.allocation import CHANNEL_HEAD, Allocation, AllocationOptions, AllocationState, is_channel_data
from relay.turn.credentials import AuthenticationFailed, LongTermAuth
from relay.turn.events import (
    Allocated,
    AllocationLost,
    AllocationMoved,
    AllocationRefused,
    AllocationReleased,
    PeerData,
    PeerRefused,
    PeerUnreachable,
)

__all__ = [
    "CHANNEL_HEAD",
    "Allocated",
    "Allocation",
    "AllocationLost",
    "AllocationMoved",
    "AllocationOptions",
    "AllocationRefused",
    "AllocationReleased",
    "AllocationState",
    "AuthenticationFailed",
    "LongTermAuth",
    "PeerData",
    "PeerRefused",
    "PeerUnreachable",
    "TurnCredentials",
    "is_channel_data",
]
