"""What do all mappings of one gateway share, and how does an attempt at one end? Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from iceagent.net.core import Event
from portmap.upnp.description import Service
from portmap.upnp.exchanges import Exchanges
from portmap.values import Gateway, MapRequest

__all__ = ["MAX_LEASE_S", "Attempt", "Denial", "Desk", "Grant", "Habits", "lease_of"]

MAX_LEASE_S = 3600
"""No mapping is left behind for longer, should we vanish. (WANIPConnection:2, 2.5.21 recommends 3600 s.)"""

# A port below is reserved in many gateways, and 0 would mean all ports.
MIN_RANDOM_PORT = 1024


@dataclass(slots=True)
class Habits:
    """What the gateway has taught us; forgotten with its service.

    Attributes:
        only_permanent: it knows no leases (725; some say 402).
        no_any: its AddAnyPortMapping does not work.
        same_port: inside and outside ports must be the same (724).
    """

    only_permanent: bool = False
    no_any: bool = False
    same_port: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """There is a mapping.

    Attributes:
        port: outside.
        lease_s: seconds, of which it was granted; 0: for ever.
        rtt_s: of the request.
        is_seen: the gateway has shown it in its list.
        unique_id: of a pinhole.
    """

    port: int
    lease_s: int
    rtt_s: float
    is_seen: bool = False
    unique_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """There is none.

    Attributes:
        code: the gateway's error code; ``None``: it told none.
        reason: in words.
        is_reached: the gateway answered; else its control point may be elsewhere by now.
        is_gone: of a renewal: what there was is certainly gone.
    """

    code: int | None
    reason: str
    is_reached: bool = True
    is_gone: bool = False


class Attempt(Protocol):
    """Makes or renews one mapping; tells how that ended once."""

    def stop(self, undone: Callable[[bool, float], None] | None) -> bool:
        """Tell nothing any more.

        Args:
            undone: delete what is granted after all, and call this with whether nothing is left, and the time;
                ``None``: leave it.

        Returns:
            Whether a request that may have an effect is under way; if not, ``undone`` is not called.
        """


@dataclass(slots=True)
class Desk:
    """What all mappings share.

    Attributes:
        gateway: whose.
        exchanges: fetches.
        events: of the client.
        rng: for jitter.
        system_rng: for ports, which nobody shall guess.
        on_missing: called when a mapping is found missing: the gateway has restarted; and the time.
        on_unreachable: called when the gateway's control point does not answer; and the time.
        service: in use; ``None``: none is known.
        habits: of that service.
        ports: outside ports of all mappings there are: key → port.
    """

    gateway: Gateway
    exchanges: Exchanges
    events: deque[Event]
    rng: Random
    system_rng: Random
    on_missing: Callable[[float], None]
    on_unreachable: Callable[[float], None]
    service: Service | None = None
    habits: Habits = field(default_factory=Habits)
    ports: dict[int, int] = field(default_factory=dict)

    def random_port(self) -> int:
        """An outside port that none of our mappings has, 1024 … 65535."""
        taken = set(self.ports.values())
        while (port := self.system_rng.randrange(MIN_RANDOM_PORT, 65536)) in taken:
            pass
        return port


def lease_of(request: MapRequest) -> int:
    """Which lease is asked for, in seconds."""
    return max(1, min(request.lifetime_s, MAX_LEASE_S))
