"""What does the shell of a TURN server hear of allocations? Pure."""

from __future__ import annotations

from dataclasses import dataclass

from iceagent.net.core import Event
from relay.turn.server.allocation import ServedAllocation

__all__ = ["AllocationEnded", "AllocationMade"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationMade(Event):
    """A client has relayed addresses from now on."""

    allocation: ServedAllocation


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationEnded(Event):
    """It has none any more; they are closed.

    Attributes:
        allocation: what it was.
        reason: ``deleted``, ``expired``, ``stream closed``.
    """

    allocation: ServedAllocation
    reason: str
