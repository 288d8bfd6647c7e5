"""What happens to a packet between two machines?

A :class:`Pipe` is one direction of a link: it delays, loses, doubles and reorders, and everything about it may be
changed while packets are under way (what has left already keeps its arrival time). Pure; all chance comes from the
``rng`` that is passed in, and nothing is drawn for a probability of 0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

__all__ = ["DEFAULT_LATENCY_S", "Fate", "Pipe"]

DEFAULT_LATENCY_S = 0.010
"""One way, on the link of a node: not 0, because in a world without delay a mistake can loop without time passing."""

MIN_HOLD_BACK_S = 0.010


class Fate(Enum):
    """What became of a packet. Every packet that is ``SENT`` or ``DUPLICATED`` ends in one of the others."""

    SENT = "sent"
    DUPLICATED = "duplicated"
    DELIVERED = "delivered"
    LOST = "lost"
    CUT = "cut"
    TOO_BIG = "too big"
    FILTERED = "filtered"
    BLOCKED = "blocked"
    UNROUTABLE = "unroutable"
    TTL_EXPIRED = "ttl expired"
    PORT_CLOSED = "port closed"
    QUEUE_FULL = "queue full"


@dataclass(slots=True)
class Pipe:
    """One direction of a link.

    Attributes:
        latency_s: seconds from one end to the other.
        jitter_s: a uniformly drawn further delay of 0 … ``jitter_s``. It alone never reorders.
        loss: probability, 0 … 1, that a packet is lost.
        duplication: probability that a packet arrives twice.
        reordering: probability that a packet is held back by ``hold_back_s``, so that later ones overtake it.
        hold_back_s: for how long; ``None``: as long as the latency, and 10 ms at least.
        mtu: bytes of the largest IP packet that passes; larger ones vanish, as in a black hole. ``None``: no limit.
        is_cut: nothing passes.
        reordered: packets held back so far.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    hold_back_s: float | None = None
    mtu: int | None = None
    is_cut: bool = False
    reordered: int = 0
    _last_arrival_at: float = 0.0

    def carry(self, size: int, now: float, rng: random.Random) -> Fate | tuple[float, ...]:
        """Send a packet of ``size`` bytes (with its headers): when it arrives, once or twice, or why it does not."""
        if self.is_cut:
            return Fate.CUT
        if self.mtu is not None and size > self.mtu:
            return Fate.TOO_BIG
        if self.loss and rng.random() < self.loss:
            return Fate.LOST
        if self.duplication and rng.random() < self.duplication:
            return (self._arrival(now, rng), self._arrival(now, rng))
        return (self._arrival(now, rng),)

    def _arrival(self, now: float, rng: random.Random) -> float:
        at = now + self.latency_s + (rng.uniform(0.0, self.jitter_s) if self.jitter_s else 0.0)
        if self.reordering and rng.random() < self.reordering:
            self.reordered += 1
            hold_back_s = max(self.latency_s, MIN_HOLD_BACK_S) if self.hold_back_s is None else self.hold_back_s
            return at + hold_back_s
        if self.jitter_s:
            at = self._last_arrival_at = max(at, self._last_arrival_at)
        return at
