"""How is punched, and what is told of it? See ``punching.py``. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from iceagent.nat.openers import LEAD_S
from iceagent.nat.responding import USER
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.stun import IntegrityKey

__all__ = ["Answered", "DataReceived", "Failed", "Lost", "Path", "PunchOptions", "RoundTrips", "Settled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PunchOptions:
    """How to punch.

    Attributes:
        key: signs everything, and lets the other end be elsewhere than was said; ``None``: see the module.
        username: stands in what is signed; whom a latching relay knows its sides by. Ours take any.
        lead_s: seconds, 0 or more, between the first opener and the first request.
        timeout_s: seconds from the start to giving up; ``None``: never.
        keepalive_s: seconds between requests that keep the path, above 0; ``None``: it is not kept.
        is_open: who asks without a key is followed, too: the far end, which was told nobody's address.
    """

    key: IntegrityKey | None = field(default=None, repr=False)
    username: str = USER
    lead_s: float = LEAD_S
    timeout_s: float | None = 10.0
    keepalive_s: float | None = None
    is_open: bool = False


class Path(NamedTuple):
    """Where data goes.

    Attributes:
        base: our socket.
        remote: the address that was met.
    """

    base: TransportAddress
    remote: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Event):
    """The other end was met, or met again after a loss, or at another address.

    Attributes:
        path: data goes there from now on.
        mapped: our address as seen there; ``None``: it does not say.
        rtt_s: seconds, of this answer.
    """

    path: Path
    mapped: TransportAddress | None
    rtt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The path does not answer any more; it is tried again and again."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """Nobody has answered in time; nothing is sent any more. ``reason``: a clause for each address."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Event):
    """The other end has been answered as far as it needs it, and round trips are measured: one may leave now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReceived(Event):
    """A datagram from an address that was met."""

    data: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class RoundTrips:
    """Times of round trips, in seconds; ``None``: there were none."""

    count: int = 0
    min_s: float | None = None
    max_s: float | None = None
    sum_s: float = 0.0

    def add(self, rtt_s: float) -> None:
        """Count one more."""
        self.count += 1
        self.min_s = rtt_s if self.min_s is None else min(self.min_s, rtt_s)
        self.max_s = rtt_s if self.max_s is None else max(self.max_s, rtt_s)
        self.sum_s += rtt_s

    @property
    def mean_s(self) -> float | None:
        return self.sum_s / self.count if self.count else None
