"""What does a server's answer say about a path in doubt?

A STUN server that is asked from the path's own socket tells by where it sees us (``stun_queries.py``); a TURN server,
of a relayed address, by whether it knows us still. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from iceagent.events import Cause
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.turn import AllocationConfirmed, AllocationLost, AllocationMoved, ServerSilent

__all__ = ["Diagnosed", "of_relay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosed(Event):
    """What broke, as far as a server can tell.

    Attributes:
        base: the socket that asked, or the relayed address.
        cause: see there.
        reason: in words.
    """

    base: TransportAddress
    cause: Cause
    reason: str


def of_relay(event: Event, base: TransportAddress, server: TransportAddress) -> Diagnosed | None:
    """What a TURN server's answer, or its silence, says.

    Args:
        event: of the allocation, after it was verified.
        base: the relayed address.
        server: whose.

    Returns:
        ``None``: nothing: the server refuses us, or somebody else ended the allocation.
    """
    if isinstance(event, AllocationConfirmed):
        cause, words = Cause.PATH, "knows us as before"
    elif isinstance(event, AllocationMoved):
        cause, words = Cause.NAT, "sees us elsewhere, and has taken the relay along"
    elif isinstance(event, AllocationLost) and event.is_unknown:
        cause, words = Cause.NAT, "does not know us any more"
    elif isinstance(event, ServerSilent):
        cause, words = Cause.UPLINK, "does not answer"
    else:
        return None
    return Diagnosed(base=base, cause=cause, reason=f"the TURN server {server} {words}")
