"""What is a candidate pair, and which states can it be in?

States and their meaning are RFC 8445, 6.1.2.6. Ours differ in one thing: a Succeeded or Failed pair may be checked
again (Waiting), because paths come back and a later nomination needs a check. What cannot happen is not in the table.

::

    Frozen ──unfrozen──▶ Waiting ──check sent──▶ In-Progress ──response──▶ Succeeded
                            ▲                        │ ▲                        │
                            └──────triggered─────────┘ └──check again───────────┘
                            ▲                        ▼
                            └──────triggered────── Failed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.context import Keys
from iceagent.net.address import TransportAddress
from iceagent.priority import pair_priority
from relay.preference import EXPENSIVE
from relay.stun import Transaction
from relay.upgrade import TIMINGS

__all__ = ["TRANSITIONS", "CandidatePair", "PairState", "Traffic"]

# Smoothing of round trips, RFC 6298, 2.3: alpha = 1/8.
_RTT_WEIGHT = 0.125
# Of losses, the same: one of them alone makes no path a bad one.
_LOSS_WEIGHT = 0.125


class PairState(Enum):
    """RFC 8445, 6.1.2.6."""

    FROZEN = "frozen"
    WAITING = "waiting"
    IN_PROGRESS = "in-progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: dict[PairState, frozenset[PairState]] = {
    PairState.FROZEN: frozenset({PairState.WAITING, PairState.FAILED}),
    PairState.WAITING: frozenset({PairState.IN_PROGRESS, PairState.SUCCEEDED, PairState.FAILED}),
    PairState.IN_PROGRESS: frozenset({PairState.WAITING, PairState.SUCCEEDED, PairState.FAILED}),
    PairState.SUCCEEDED: frozenset({PairState.FAILED, PairState.WAITING}),
    PairState.FAILED: frozenset({PairState.WAITING, PairState.SUCCEEDED}),
}


@dataclass(slots=True, eq=False)
class Traffic:
    """Application data on one five-tuple; the data path keeps it, statistics and selection read it.

    Attributes:
        component: 1 … 256.
        received_at: when data last came in, seconds; 0.0: never.
        has_answered: a check of ours was answered from there.
        sent_at: when data last left.
        unanswered_at: when data first left since any last came in.
        is_asleep: whoever sends next is to say so (``liveness.py``).
    """

    component: int
    packets_received: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0
    packets_discarded: int = 0
    received_at: float = 0.0
    has_answered: bool = False
    sent_at: float = 0.0
    unanswered_at: float = 0.0
    is_asleep: bool = True


@dataclass(slots=True, eq=False, kw_only=True)
class CandidatePair:
    """A base of ours and a candidate of the peer's (RFC 8445, 6.1.2).

    There is one pair per base and remote address: pairs of reflexive candidates are pruned into their base's (6.1.2.4).

    Attributes:
        number: counts the pairs of a session, for reading logs.
        local: our candidate whose base checks leave from.
        valid_local: our candidate as the peer sees it, from the mapped address of a response (7.2.5.3.2); ``None``:
            not valid.
        keys: credentials of its checks; after a restart an old pair keeps its own.
        priority: 6.1.2.3.
        preferred: the greater, the earlier it is checked: 1 where the kernel would route the remote address from this
            base; with ``Config.relay_first`` 2 more for each end that is relayed.
        nominated: agreed between both ends.
        nominated_at: controlled only: when the peer first nominated it without a value.
        nominate_with: controlled only: nominate once the pair succeeds (7.3.1.5); the NOMINATION value, or -1 for none.
        dead: consent was lost; these credentials are never used here again (RFC 7675, 5.1).
        openers: how many were sent (``nat/openers.py``); the last one at ``opened_at``.
        rtt_s: smoothed round trip; ``None`` before the first.
        rtt_count: samples since it last began to work.
        loss: share of checks that are not answered, smoothed over eight answers, since then; 0.0 … 1.0.
        last_error: errno of the last ICMP or send error.
        requested_at: when a check of the peer's last came in.
        asked_at: when the first check of ours left that was not answered, nor any after it.
        is_silent: in use, although it does not answer: nothing else does either (``liveness.py``).
        shunned_until: it was left because it did not work; until then others come first.
        reported_until: its answers prove nothing until then, for an application reported that its data is eaten.
        times_left: how often.
        remote_cost: of the peer's network, as its last check there said (NETWORK-COST).
        kept_at: when a check last left to keep it warm (``standby.py``).
        main: the transaction that is repeated and decides about failure (``checker.py``).
        transactions: all that may still be answered, oldest first; ``main`` is one of them.
    """

    number: int
    local: Candidate
    remote: Candidate
    keys: Keys
    priority: int = 0
    preferred: int = 0
    state: PairState = PairState.FROZEN
    valid_local: Candidate | None = None
    nominated: bool = False
    nominated_at: float = 0.0
    nominate_with: int | None = None
    dead: bool = False
    early_checks: int = 0
    openers: int = 0
    opened_at: float | None = None
    check_started_at: float | None = None
    responded_at: float | None = None
    rtt_s: float | None = None
    rtt_count: int = 0
    loss: float = 0.0
    last_error: int = 0
    requested_at: float = 0.0
    asked_at: float = 0.0
    is_silent: bool = False
    shunned_until: float = 0.0
    reported_until: float = 0.0
    times_left: int = 0
    remote_cost: int = 0
    kept_at: float = 0.0
    requests_sent: int = 0
    responses_received: int = 0
    requests_received: int = 0
    responses_sent: int = 0
    main: Transaction | None = None
    transactions: list[Transaction] = field(default_factory=list)
    traffic: Traffic = field(init=False)
    base: TransportAddress = field(init=False)
    destination: TransportAddress = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.local.base or self.local.address
        self.destination = self.remote.address
        self.traffic = Traffic(self.local.component)

    @property
    def component(self) -> int:
        return self.local.component

    @property
    def key(self) -> tuple[TransportAddress, TransportAddress]:
        """What makes a pair unique within a generation."""
        return self.base, self.destination

    @property
    def foundation(self) -> tuple[str, str]:
        """RFC 8445, 6.1.2.6: pairs with equal foundations are expected to behave alike."""
        return self.local.foundation, self.remote.foundation

    @property
    def is_valid(self) -> bool:
        return self.valid_local is not None and not self.dead

    # What ``relay/upgrade.py`` and ``relay/preference.py`` look at.

    @property
    def heard_at(self) -> float:
        """When anything of the peer's last came over it."""
        return max(self.traffic.received_at, self.answered_at, self.requested_at)

    @property
    def answered_at(self) -> float:
        """When a check of ours was last answered; 0.0: never."""
        return self.responded_at or 0.0

    @property
    def sent_at(self) -> float:
        """When data last left."""
        return self.traffic.sent_at

    @property
    def unanswered_at(self) -> float:
        """When data first left since any last came in."""
        return self.traffic.unanswered_at

    @property
    def is_relayed(self) -> bool:
        """Whether a TURN server is on the way."""
        return CandidateType.RELAYED in (self.local.type, self.remote.type)

    @property
    def is_metered(self) -> bool:
        """Whether either end pays for what it sends there."""
        return self.local.network_cost in EXPENSIVE or self.remote_cost in EXPENSIVE

    @property
    def is_unanswered(self) -> bool:
        """Whether a check of ours left after the last answer."""
        return self.asked_at > self.answered_at

    @property
    def relays(self) -> frozenset[str]:
        """The IP addresses of relays on the way."""
        ends = ((self.local.type, self.base.host), (self.remote.type, self.destination.host))
        return frozenset(host for kind, host in ends if kind is CandidateType.RELAYED)

    def shares_with(self, other: CandidatePair) -> bool:
        """Whether what breaks one pair may well break the other one."""
        is_same_end = self.base == other.base or self.destination == other.destination
        return is_same_end or not self.relays.isdisjoint(other.relays)

    def is_beside(self, other: CandidatePair) -> bool:
        """Whether it goes over a relay, and over none that the other one needs."""
        return self.is_relayed and self.relays.isdisjoint(other.relays)

    @property
    def order(self) -> tuple[int, int]:
        """Greater is checked earlier."""
        return self.preferred, self.priority

    @property
    def rank(self) -> int:
        """Priority of the valid pair (7.2.5.3.2): with the candidate that the peer sees instead of the base."""
        return self._rank

    _rank: int = field(init=False, default=0)

    def rerank(self, controlling: bool) -> None:
        """Compute both priorities anew, after the role, the remote candidate or the valid candidate changed."""
        self.priority = self._pair_priority(self.local.priority, controlling)
        seen = self.valid_local or self.local
        self._rank = self._pair_priority(seen.priority, controlling)

    def _pair_priority(self, local_priority: int, controlling: bool) -> int:
        mine, theirs = local_priority, self.remote.priority
        return pair_priority(mine, theirs) if controlling else pair_priority(theirs, mine)

    @property
    def slower_type(self) -> CandidateType:
        """The less preferred type of the two candidates: relayed before reflexive before host."""
        types = {(self.valid_local or self.local).type, self.remote.type}
        order = (CandidateType.RELAYED, CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE)
        return next((t for t in order if t in types), CandidateType.HOST)

    def note_alive(self, now: float) -> None:
        """A check came in, or an answer: where the peer talks, what leaves from now on is to be followed by something.

        Where it says nothing, that proves enough until the next check: there is no silence to be suspicious of.
        """
        if self.traffic.received_at > 0.0 and now < self.traffic.received_at + TIMINGS.sent_within_s:
            self.traffic.unanswered_at = 0.0

    def add_rtt(self, sample_s: float) -> None:
        """Take a round trip into the smoothed one: the mean of the first eight, or one would count too much."""
        self.rtt_count += 1
        if self.rtt_s is None:
            self.rtt_s = sample_s
        else:
            self.rtt_s += max(_RTT_WEIGHT, 1 / self.rtt_count) * (sample_s - self.rtt_s)

    def add_answer(self, started_at: float) -> None:
        """A check was answered, which first left then: one that left before it, and was not, is lost. Several in a row
        count as one, for their path was down.
        """
        if self.asked_at < started_at and self.is_unanswered:
            self.loss += _LOSS_WEIGHT * (1.0 - self.loss)
        if self.loss:
            self.loss -= _LOSS_WEIGHT * self.loss

    def forget_samples(self) -> None:
        """It works no more: what is measured when it works again is another path, perhaps."""
        self.rtt_count = 0
        self.loss = 0.0

    def __str__(self) -> str:
        return f"#{self.number} {self.base} → {self.destination} ({self.state.value})"
