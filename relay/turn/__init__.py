"""TURN: what a client and a server of RFC 8656 do, sans-IO.

The client is one :class:`Allocation` per five-tuple; what it says are the events of :mod:`relay.turn.events`.
"""

from __future__ import annotations

from relay.account import TurnCredentials
from relay.turn.allocation import CHANNEL_HEAD, Allocation, AllocationOptions, AllocationState, is_channel_data
from relay.turn.credentials import AuthenticationFailed, LongTermAuth
from relay.turn.events import (
    Allocated,
    AllocationConfirmed,
    AllocationLost,
    AllocationMoved,
    AllocationRefused,
    AllocationReleased,
    PeerData,
    PeerRefused,
    PeerUnreachable,
    ServerSilent,
)

__all__ = [
    "CHANNEL_HEAD",
    "Allocated",
    "Allocation",
    "AllocationConfirmed",
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
    "ServerSilent",
    "TurnCredentials",
    "is_channel_data",
]
