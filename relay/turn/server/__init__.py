"""The server's side of TURN, sans-IO.

Who may relay (``auth``), whom to (``policy``), what there is (``allocation``), what transports share (``service``),
what is asked for (``allocate``) and answered (``core``), and connections with peers over TCP (``tcp``). Whether what an
operator says of it can be meant is judged first (``checks``).
"""

from __future__ import annotations

from relay.turn.server.allocation import ServedAllocation
from relay.turn.server.auth import Accounts, Refused
from relay.turn.server.core import TurnServer
from relay.turn.server.events import AllocationEnded, AllocationMade
from relay.turn.server.policy import PeerPolicy
from relay.turn.server.service import RelayPorts, TurnOptions, TurnService
from relay.turn.server.tcp import (
    BindStreams,
    ClosePeer,
    ConnectPeer,
    Opening,
    OpenListeners,
    PeerConnection,
    StopListening,
)

__all__ = [
    "Accounts",
    "AllocationEnded",
    "AllocationMade",
    "BindStreams",
    "ClosePeer",
    "ConnectPeer",
    "OpenListeners",
    "Opening",
    "PeerConnection",
    "PeerPolicy",
    "Refused",
    "RelayPorts",
    "ServedAllocation",
    "StopListening",
    "TurnOptions",
    "TurnServer",
    "TurnService",
]
