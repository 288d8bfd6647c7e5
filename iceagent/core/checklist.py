"""Which pair is checked next?

Forming (RFC 8445, 6.1.2.2), pruning (6.1.2.4), the limit (6.1.2.5), freezing and unfreezing (6.1.2.6, 7.2.5.3.3; with
trickle RFC 8838, 12), the triggered-check queue (6.1.4.1) and the choice (6.1.4.2).

Candidates of ours that share a base form one pair per remote address: the pair of the base's best candidate. Pairs
are found by (base, remote address); the list holds at most ``Config.max_pairs``, the lowest unchecked ones give way.

DEVIATION from 6.1.4.2, which goes by priority alone: pairs of the base that the kernel routes the remote address from
come first; pinned by test_one_pair_of_sixteen_by_sixteen_addresses_works. With ``Config.relay_first`` relayed pairs
come before them, those with a relay at both ends in front: nothing but a dead server stops them.

Knows nothing of STUN, pacing or time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.context import Context
from iceagent.core.pair import TRANSITIONS, CandidatePair, PairState
from iceagent.net.address import TransportAddress
from iceagent.priority import pair_priority

__all__ = ["CheckList", "CheckListListener"]

# Transmissions without an answer, 0.2 to 0.4 s with early checks.
_PATIENCE = 3
_UNCHECKED = frozenset({PairState.FROZEN, PairState.WAITING})

_Key = tuple[TransportAddress, TransportAddress]


class CheckListListener(Protocol):
    """Who hears of pairs that leave the list."""

    def pair_discarded(self, pair: CandidatePair) -> None:
        """One does."""


class CheckList:
    """The pairs of one session generation, all components.

    Args:
        context: role, keys and limits.
        preferred_host: the local host that the kernel routes a remote address from, if known.
        listener: hears of pairs that leave; ``None``: nobody does.

    Attributes:
        is_over: the peer has closed: no pair is formed any more.
    """

    __slots__ = (
        "_bases",
        "_context",
        "_count",
        "_failed",
        "_foundations",
        "_listener",
        "_pairs",
        "_preferred_host",
        "_remotes",
        "_triggered",
        "_unchecked",
        "is_over",
    )

    def __init__(
        self,
        context: Context,
        preferred_host: Callable[[TransportAddress], str | None],
        listener: CheckListListener | None = None,
    ) -> None:
        self._context = context
        self._listener = listener
        self._preferred_host = preferred_host
        self._bases: dict[int, dict[TransportAddress, Candidate]] = {}
        self._remotes: dict[int, list[Candidate]] = {}
        self._pairs: dict[_Key, CandidatePair] = {}
        self._foundations: dict[tuple[str, str], int] = {}
        self._failed: dict[CandidatePair, None] = {}
        self._triggered: dict[CandidatePair, None] = {}
        self._count = 0
        self.is_over = False
        self._unchecked: list[tuple[tuple[int, int], int, CandidatePair]] = []

    # --- commands ------------------------------------------------------------------------------------------------

    def add_local(self, candidate: Candidate) -> None:
        """Pair a candidate of ours with every remote one, unless its base is paired already."""
        base = candidate.base or candidate.address
        bases = self._bases.setdefault(candidate.component, {})
        known = bases.get(base)
        if known is not None and candidate.priority <= known.priority:
            return
        bases[base] = candidate
        for pair in [p for p in self._pairs.values() if p.base == base and p.component == candidate.component]:
            self._replace(pair, candidate, pair.remote)
        for remote in list(self._remotes.get(candidate.component, ())):
            self._form(candidate, remote, self._preferred_host(remote.address))

    def add_remote(self, candidate: Candidate) -> None:
        """Pair a remote candidate with every base of ours."""
        self._remotes.setdefault(candidate.component, []).append(candidate)
        # One question to the kernel per remote address, not per pair.
        preferred_host = self._preferred_host(candidate.address)
        for local in self._bases.get(candidate.component, {}).values():
            self._form(local, candidate, preferred_host)

    def remotes(self, component: int) -> Sequence[Candidate]:
        """The peer's candidates of a component; not to be changed."""
        return self._remotes.get(component, ())

    def replace_remote(self, candidate: Candidate) -> None:
        """An address learnt by a check is now signalled: its pairs keep their state, and take over type, priority,
        foundation.
        """
        for pair in self._pairs.values():
            if pair.destination == candidate.address and pair.component == candidate.component:
                self._replace(pair, pair.local, candidate)

    def _replace(self, pair: CandidatePair, local: Candidate, remote: Candidate) -> None:
        self._uncount(pair.foundation)
        pair.local, pair.remote = local, remote
        pair.preferred = self._preferred(local, remote, bool(pair.preferred & 1))
        self._foundations[pair.foundation] = self._foundations.get(pair.foundation, 0) + 1
        pair.rerank(self._context.controlling)
        self._unchecked.clear()

    def remove_remote(self, candidate: Candidate) -> None:
        """Forget a remote candidate and its pairs."""
        remotes = self._remotes.get(candidate.component, [])
        if candidate in remotes:
            remotes.remove(candidate)
        for pair in [p for p in self._pairs.values() if p.destination == candidate.address]:
            # A dead one is kept: it must be remembered that its credentials are (RFC 7675, 5.1).
            if pair.component == candidate.component and not pair.dead:
                self._discard(pair)

    def remove_base(self, base: TransportAddress) -> list[CandidatePair]:
        """Forget a socket that is gone, and return the pairs that used it."""
        for bases in self._bases.values():
            bases.pop(base, None)
        gone = [pair for pair in self._pairs.values() if pair.base == base]
        for pair in gone:
            self._discard(pair)
        return gone

    def trigger(self, pair: CandidatePair) -> None:
        """Queue a triggered check (6.1.4.1), once."""
        self.set_state(pair, PairState.WAITING)
        self._triggered.setdefault(pair)

    def untrigger(self, pair: CandidatePair) -> None:
        """The pair needs no check any more."""
        self._triggered.pop(pair, None)

    def set_state(self, pair: CandidatePair, state: PairState) -> None:
        """Move a pair along the table; success unfreezes its foundation (7.2.5.3.3). Only Waiting pairs are in the
        queue.
        """
        if pair.state is state:
            return
        if state not in TRANSITIONS[pair.state]:
            raise AssertionError(f"{pair} cannot become {state.value}")
        if state is PairState.WAITING and pair.state not in _UNCHECKED:
            # To be found again among those that may give way.
            self._unchecked.clear()
        pair.state = state
        if state is PairState.FAILED:
            self._failed[pair] = None
        else:
            self._failed.pop(pair, None)
        if state is not PairState.WAITING:
            self.untrigger(pair)
        if state is PairState.SUCCEEDED:
            for other in self._of_foundation(pair.foundation):
                if other.state is PairState.FROZEN:
                    self.set_state(other, PairState.WAITING)

    def rerank(self) -> None:
        """Our role changed (7.3.1.1): priorities depend on it."""
        for pair in self._pairs.values():
            pair.rerank(self._context.controlling)
        self._unchecked.clear()

    def retain(self, keep: Callable[[CandidatePair], bool]) -> None:
        """Drop every pair that is not to be kept."""
        for pair in [pair for pair in self._pairs.values() if not keep(pair)]:
            self._discard(pair)

    # --- questions -----------------------------------------------------------------------------------------------

    def next_triggered(self) -> CandidatePair | None:
        """The first of the triggered-check queue; it stays there until :meth:`untrigger`."""
        return next(iter(self._triggered), None)

    def next_ordinary(self, wanted: Callable[[CandidatePair], bool]) -> CandidatePair | None:
        """The Waiting pair of highest order, else a Frozen one of an idle foundation, which becomes Waiting
        (6.1.4.2).
        """
        waiting = self._best(p for p in self._pairs.values() if p.state is PairState.WAITING and wanted(p))
        if waiting is not None:
            return waiting
        # DEVIATION: one that was sent three times in vain keeps none of its foundation waiting any more, for it may go
        # on for 39 s; pinned by test_a_pair_that_is_not_answered_holds_its_foundation_back_for_three_transmissions.
        busy = {
            p.foundation
            for p in self._pairs.values()
            if p.state is PairState.WAITING or (p.state is PairState.IN_PROGRESS and p.requests_sent < _PATIENCE)
        }
        frozen = self._best(
            p for p in self._pairs.values() if p.state is PairState.FROZEN and p.foundation not in busy and wanted(p)
        )
        if frozen is not None:
            self.set_state(frozen, PairState.WAITING)
        return frozen

    @property
    def has_unchecked(self) -> bool:
        """Whether any pair is Waiting or Frozen."""
        return any(p.state in (PairState.WAITING, PairState.FROZEN) for p in self._pairs.values())

    def find(self, base: TransportAddress, remote: TransportAddress) -> CandidatePair | None:
        """The pair of a five-tuple."""
        return self._pairs.get((base, remote))

    def local(self, component: int, base: TransportAddress) -> Candidate | None:
        """Our best candidate on a base."""
        return self._bases.get(component, {}).get(base)

    def __iter__(self) -> Iterator[CandidatePair]:
        return iter(self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def unfinished(self) -> int:
        """Pairs Waiting or In-Progress: what the RTO of 14.3 scales with."""
        return sum(p.state in (PairState.WAITING, PairState.IN_PROGRESS) for p in self._pairs.values())

    # --- forming -------------------------------------------------------------------------------------------------

    def form(self, local: Candidate, remote: Candidate) -> CandidatePair | None:
        """The pair of a base and a remote candidate that just proved itself by a check; made if there is none."""
        known = self._pairs.get((local.base or local.address, remote.address))
        return known or self._form(local, remote, self._preferred_host(remote.address), proven=True)

    def _form(
        self, local: Candidate, remote: Candidate, preferred_host: str | None, *, proven: bool = False
    ) -> CandidatePair | None:
        base = local.base or local.address
        keys = self._context.keys
        if keys is None or self.is_over:
            return None
        if not _may_pair(base, remote.address) or (base, remote.address) in self._pairs:
            return None
        preferred = self._preferred(local, remote, preferred_host == base.host)
        if len(self._pairs) >= self._context.config.max_pairs:
            # Most pairs of two hosts with many addresses end here: nothing is made before there is room for it.
            mine, theirs = local.priority, remote.priority
            priority = pair_priority(mine, theirs) if self._context.controlling else pair_priority(theirs, mine)
            if not self._make_room((preferred, priority), proven=proven):
                self._context.counters["pairs over the limit"] += 1
                return None
        self._count += 1
        pair = CandidatePair(number=self._count, local=local, remote=remote, keys=keys, preferred=preferred)
        pair.rerank(self._context.controlling)
        self._insert(pair)
        return pair

    def _preferred(self, local: Candidate, remote: Candidate, is_route: bool) -> int:
        relays = (local.type is CandidateType.RELAYED) + (remote.type is CandidateType.RELAYED)
        return is_route + 2 * relays * self._context.config.relay_first

    def _insert(self, pair: CandidatePair) -> None:
        self._pairs[pair.key] = pair
        if self._unchecked:
            heapq.heappush(self._unchecked, (pair.order, -pair.number, pair))
        # RFC 8838, 12: the first pair of a foundation, and one whose foundation already succeeded, start Waiting.
        # DEVIATION: also one that comes when all others of its foundation are under way, some of its component. It is
        # the peer's next address, mostly, and they may go unanswered for 39 s; pinned by
        # test_the_peers_next_address_does_not_wait_for_the_one_before.
        foundation = pair.foundation
        count = self._foundations.get(foundation, 0)
        self._foundations[foundation] = count + 1
        others = [p for p in self._of_foundation(foundation) if p is not pair] if count else []
        is_next = all(p.state is PairState.IN_PROGRESS or p.openers for p in others)
        is_next = is_next and any(p.component == pair.component for p in others)
        if not count or is_next or any(p.state is PairState.SUCCEEDED for p in others):
            self.set_state(pair, PairState.WAITING)

    def _make_room(self, order: tuple[int, int], *, proven: bool) -> bool:
        """Let the lowest pair that was never checked give way (6.1.2.5); one that a peer's check proved needs no
        higher order.
        """
        failed = next((p for p in self._failed if not p.dead), None)
        if failed is not None:
            # RFC 8838, 10 and 11: "SHOULD discard any pairs in the Failed state to make room". A dead one is kept: it
            # must be remembered that its credentials are (RFC 7675, 5.1).
            self._discard(failed)
            return True
        lowest = self._lowest()
        if lowest is None or (not proven and order <= lowest.order):
            return False
        self._discard(lowest)
        return True

    def _lowest(self) -> CandidatePair | None:
        """The lowest pair that is not being checked. The heap is made when it is needed, and may hold pairs that are
        gone, checked or ranked anew.
        """
        for _ in range(2):
            while self._unchecked:
                order, _number, pair = self._unchecked[0]
                if self._pairs.get(pair.key) is pair and pair.state in _UNCHECKED and pair.order == order:
                    return pair
                heapq.heappop(self._unchecked)
            self._unchecked = [(p.order, -p.number, p) for p in self._pairs.values() if p.state in _UNCHECKED]
            heapq.heapify(self._unchecked)
        return None

    def _discard(self, pair: CandidatePair) -> None:
        self._pairs.pop(pair.key, None)
        self._failed.pop(pair, None)
        self.untrigger(pair)
        self._uncount(pair.foundation)
        if self._listener is not None:
            self._listener.pair_discarded(pair)

    def _uncount(self, foundation: tuple[str, str]) -> None:
        self._foundations[foundation] -= 1
        if not self._foundations[foundation]:
            del self._foundations[foundation]

    def _of_foundation(self, foundation: tuple[str, str]) -> list[CandidatePair]:
        if self._foundations.get(foundation, 0) <= 1:
            return []
        return [p for p in self._pairs.values() if p.foundation == foundation]

    @staticmethod
    def _best(pairs: Iterable[CandidatePair]) -> CandidatePair | None:
        return max(pairs, key=lambda p: p.order, default=None)


def _may_pair(base: TransportAddress, remote: TransportAddress) -> bool:
    """Same family, and both link-local or neither: an IPv6 link-local address reaches its own link only (6.1.2.2)."""
    if base.version != remote.version:
        return False
    return base.version == 4 or base.ip.is_link_local == remote.ip.is_link_local
