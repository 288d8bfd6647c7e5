"""When is a mapping of PCP asked for, asked for again, renewed, and lost?

Three schedules, one after the other:

1. Until the first answer, twice within 0.75 s; nobody may be there.
2. Retransmission (RFC 6887, 8.1.1): after about 3 s, then twice as long each time, up to 1024 s, without an end. It
   holds after silence, after an error whose lifetime is over, after a loss, and when a mapping has to be made again.
3. Renewal (11.2.1), while there is a lease: single requests between 1/2 and 5/8 of its lifetime, 3/4 and 13/16, 7/8
   and 29/32 …, but never two within four seconds.

Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from iceagent.net.address import TransportAddress
from portmap.server_link import MIN_SPACING_S, PROBE_WAITS, Attempts
from portmap.values import MapRequest

__all__ = ["IRT_S", "MRT_S", "Lease", "Mapping", "Refusal", "next_rt"]

IRT_S = 3.0
MRT_S = 1024.0
_RAND = 0.1


def next_rt(previous_s: float, rng: Random) -> float:
    """RFC 6887, 8.1.1: the retransmission time after ``previous_s``; 0: the first one."""
    base_s = min(2 * previous_s, MRT_S) if previous_s else IRT_S
    return base_s * (1 + rng.uniform(-_RAND, _RAND))


@dataclass(slots=True)
class Lease:
    """What a server gave.

    Attributes:
        external: where.
        granted_at: when.
        lifetime_s: for how long, 1 … 86400.
        renewals: how often it was asked to renew it.
    """

    external: TransportAddress
    granted_at: float
    lifetime_s: int
    renewals: int = 0

    @property
    def expires_at(self) -> float:
        """When it ends."""
        return self.granted_at + self.lifetime_s

    def renewal_at(self, rng: Random) -> float:
        """RFC 6887, 11.2.1: when to ask for the next time."""
        remaining = 0.5 ** (self.renewals + 1)
        return self.granted_at + self.lifetime_s * (1 - remaining + rng.uniform(0, remaining / 4))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error, which holds for a while (RFC 6887, 8.3).

    Attributes:
        until: when it may be asked again.
        code: the result code; ``None``: it was a success without a lifetime.
        reason: in words.
    """

    until: float
    code: int | None
    reason: str


@dataclass(slots=True, eq=False)
class Mapping:
    """One that is wanted.

    Attributes:
        key: of the mapping.
        request: as given.
        suggested: the external address to ask for: the one that there was (11.2).
        probe: while nobody has answered, for 0.75 s.
        lease: while there is one.
        next_at: when it is asked for; ``None``: not again before the lease ends.
        refusal: the last answer, if it was an error.
        is_doubtful: the gateway has restarted since ``lease`` was given.
        unanswered: how many requests were sent since the last answer.
        first_sent_at: the first of these.
        sent_at: the last one ever.
    """

    key: int
    request: MapRequest
    suggested: TransportAddress
    probe: Attempts | None = None
    lease: Lease | None = None
    next_at: float | None = None
    refusal: Refusal | None = None
    is_doubtful: bool = False
    unanswered: int = 0
    first_sent_at: float = -math.inf
    sent_at: float = -math.inf
    _rt_s: float = field(default=0.0)
    _is_retransmitting: bool = field(default=False)

    @property
    def held_until(self) -> float:
        """An error's lifetime: it is not to be asked for before."""
        return -math.inf if self.refusal is None else self.refusal.until

    @property
    def deadline(self) -> float:
        """When something is to be done; infinite: nothing is."""
        at = math.inf if self.next_at is None else self.next_at
        return at if self.lease is None else min(at, self.lease.expires_at)

    def on_sent(self, now: float, rng: Random) -> None:
        """A request leaves: when is the next one due?"""
        if not self.unanswered:
            self.first_sent_at = now
        self.unanswered += 1
        self.sent_at = now
        if self.probe is not None:
            self.next_at = self.probe.next_at
        elif self.lease is None or self._is_retransmitting:
            self.wait(now, rng)
        else:
            self.lease.renewals += 1
            self._plan_renewal(self.lease, now, rng)

    def start_probe(self, now: float) -> None:
        """The first request leaves now."""
        self.probe = Attempts.start(PROBE_WAITS, now)

    def wait(self, now: float, rng: Random) -> float:
        """Be silent for the next retransmission time, and return it."""
        self.probe = None
        self._is_retransmitting = True
        self._rt_s = next_rt(self._rt_s, rng)
        self.next_at = now + self._rt_s
        return self._rt_s

    def ask_at(self, at: float) -> None:
        """Ask then, and go on with retransmissions."""
        self.probe = None
        self._is_retransmitting = True
        self._rt_s = 0.0
        self.next_at = max(at, self.sent_at + MIN_SPACING_S)

    def on_granted(self, lease: Lease, now: float, rng: Random) -> None:
        """There is a lease, or another one."""
        self._on_answer()
        self.lease, self.suggested = lease, lease.external
        self.refusal, self.is_doubtful = None, False
        self._is_retransmitting = False
        self._plan_renewal(lease, now, rng)

    def on_refused(self, refusal: Refusal) -> None:
        """There is none, and it is not to be asked for before."""
        self._on_answer()
        self.lease, self.refusal = None, refusal
        self.ask_at(refusal.until)

    def on_not_renewed(self, now: float, refusal: Refusal, rng: Random) -> None:
        """The lease goes on as it was (RFC 6887, 7.3), and the next renewal is not to be sent before."""
        assert self.lease is not None
        self._on_answer()
        self.refusal = refusal
        self._is_retransmitting = False
        self._plan_renewal(self.lease, now, rng)

    def on_lost(self, now: float) -> None:
        """The lease has ended."""
        self.lease = None
        self.ask_at(max(now, self.held_until))

    def rtt_s(self, now: float) -> float | None:
        """From the request to its answer; ``None``: there were several, or none."""
        return now - self.first_sent_at if self.unanswered == 1 else None

    def _on_answer(self) -> None:
        self.unanswered = 0
        self.probe = None

    def _plan_renewal(self, lease: Lease, now: float, rng: Random) -> None:
        at = max(lease.renewal_at(rng), now, self.sent_at + MIN_SPACING_S, self.held_until)
        self.next_at = at if at < lease.expires_at else None
