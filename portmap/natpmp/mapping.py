"""When is a mapping of NAT-PMP asked for, renewed, and lost? RFC 6886, 3.3: "renew the mapping halfway to expiry time,
like DHCP"; and like DHCP (RFC 2131, 4.4.5) it is tried again after half of what remains, but not sooner than after a
minute. What was never answered rests for as long as PCP does at most. Pure.

DEVIATION: the lifetime that is asked for is an hour where nobody says otherwise, and not the two of 3.3:
``test_an_hour_is_asked_for_where_nobody_says_otherwise``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from portmap.natpmp.queue import Job
from portmap.server_link import MIN_SPACING_S
from portmap.values import MapRequest

__all__ = ["REST_S", "Lease", "Mapping"]

REST_S = 1024.0
"""After nine requests without an answer, or a closed port. RFC 6886, 3.1: the client "should not retain this
information for too long"; RFC 6887, 8.1.1, never waits longer."""

_MIN_RETRY_S = 60.0


@dataclass(slots=True)
class Lease:
    """What a gateway gave.

    Attributes:
        external_port: where.
        granted_at: when.
        lifetime_s: for how long, 1 … 86400.
    """

    external_port: int
    granted_at: float
    lifetime_s: int

    @property
    def expires_at(self) -> float:
        """When it ends."""
        return self.granted_at + self.lifetime_s


@dataclass(slots=True, eq=False)
class Mapping:
    """One that is wanted.

    Attributes:
        key: of the mapping.
        request: as given.
        identity: opcode and internal port.
        suggested: the external port to ask for: the one that there was (3.3).
        probing_since: nobody has answered yet, and nobody was told so.
        job: the request that is under way.
        lease: while there is one.
        next_at: when it is asked for; ``None``: not by itself.
        held_until: it was refused, and is not to be asked for before.
        is_doubtful: the gateway has restarted since ``lease`` was given.
    """

    key: int
    request: MapRequest
    identity: tuple[int, int]
    suggested: int
    probing_since: float | None = None
    job: Job | None = None
    lease: Lease | None = None
    next_at: float | None = None
    held_until: float = -math.inf
    is_doubtful: bool = False

    @property
    def deadline(self) -> float:
        """When something is to be done, but for the end of probing; infinite: nothing is."""
        at = math.inf if self.next_at is None else self.next_at
        return at if self.lease is None else min(at, self.lease.expires_at)

    def on_granted(self, lease: Lease) -> None:
        """There is a lease, or another one."""
        self.job, self.probing_since = None, None
        self.lease, self.suggested = lease, lease.external_port
        self.held_until, self.is_doubtful = -math.inf, False
        self.next_at = lease.granted_at + max(lease.lifetime_s / 2, MIN_SPACING_S)

    def on_refused(self, now: float, hold_s: float | None) -> None:
        """There is none, and it is not to be asked for before; ``None``: not by itself."""
        self.job, self.probing_since, self.lease = None, None, None
        self.next_at = None if hold_s is None else now + hold_s
        self.held_until = -math.inf if hold_s is None else now + hold_s

    def on_unanswered(self, now: float) -> None:
        """All requests were sent in vain."""
        self.job = None
        rest_s = REST_S if self.lease is None else max((self.lease.expires_at - now) / 2, _MIN_RETRY_S)
        self.next_at = now + rest_s

    def on_not_renewed(self, now: float, hold_s: float) -> None:
        """The gateway cannot renew it now. The lease goes on."""
        self.on_unanswered(now)
        self.held_until = now + hold_s

    def on_lost(self, now: float, *, was_asked: bool) -> None:
        """The lease has ended; ``was_asked``: while it was to be renewed."""
        self.lease = None
        if was_asked or self.next_at is None:
            self.next_at = now
        else:
            self.next_at = max(now, min(now + MIN_SPACING_S, self.next_at), self.held_until)
