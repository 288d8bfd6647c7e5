"""What arrived too early, and how long is it kept?

- Checks before the peer's credentials are known (RFC 8445, 7.3): already answered, kept for their triggered check. At
  most 100.
- Data from an address that has not authenticated itself yet: a peer may be connected one round trip before us, and a
  lost first DTLS flight costs a second. At most 16 datagrams for 1 s; what is not claimed is dropped and counted.
  DEVIATION from RFC 8445, 12.2, pinned by test_data_of_a_stranger_is_dropped_after_a_second_exactly.
- Candidates that name credentials which have not arrived (RFC 8838, 9). At most 100.
"""

from __future__ import annotations

from collections import Counter

from iceagent.candidate import Candidate
from iceagent.core.context import Context
from iceagent.core.responder import IncomingCheck
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram

__all__ = ["MAX_EARLY_CHECKS", "MAX_HELD_CANDIDATES", "MAX_HELD_DATAGRAMS", "Held"]

MAX_EARLY_CHECKS = 100
MAX_HELD_DATAGRAMS = 16
MAX_HELD_CANDIDATES = 100
HOLD_S = 1.0


class Held:
    """The waiting room of a session."""

    __slots__ = (
        "_candidates",
        "_checks",
        "_context",
        "_data",
    )

    def __init__(self, context: Context) -> None:
        self._context = context
        self._checks: dict[tuple[TransportAddress, TransportAddress], IncomingCheck] = {}
        self._data: list[tuple[float, Datagram]] = []
        self._candidates: list[Candidate] = []

    def hold_check(self, check: IncomingCheck) -> None:
        """Keep an early check; the last one of each five-tuple counts, but a nomination is not forgotten."""
        key = (check.base, check.source)
        known = self._checks.get(key)
        if known is None and len(self._checks) >= MAX_EARLY_CHECKS:
            self._context.counters["early checks over the limit"] += 1
            return
        if known is None or check.nomination is not None or known.nomination is None:
            self._checks[key] = check

    def take_checks(self) -> list[IncomingCheck]:
        """All early checks, in the order they came in."""
        checks = list(self._checks.values())
        self._checks.clear()
        return checks

    def hold_data(self, datagram: Datagram, now: float) -> None:
        """Keep data of a stranger who may turn out to be the peer."""
        if len(self._data) >= MAX_HELD_DATAGRAMS and not self._make_room(datagram):
            self._context.drop(datagram, "data from an address that never authenticated")
            return
        self._data.append((now + HOLD_S, datagram))

    def _make_room(self, datagram: Datagram) -> bool:
        """A stranger who sends much gives way to one who sends little."""
        counts = Counter(held.source for _, held in self._data)
        noisiest, count = counts.most_common(1)[0]
        if noisiest == datagram.source or count <= counts[datagram.source] + 1:
            return False
        victim = next(item for item in self._data if item[1].source == noisiest)
        self._data.remove(victim)
        self._context.drop(victim[1], "data from an address that never authenticated")
        return True

    def take_data(self, base: TransportAddress, source: TransportAddress) -> list[Datagram]:
        """The held data of an address that just authenticated itself, in order."""
        if not self._data:
            return []
        taken = [d for _, d in self._data if d.base == base and d.source == source]
        if taken:
            self._data = [item for item in self._data if item[1] not in taken]
        return taken

    def hold_candidate(self, candidate: Candidate) -> Candidate | None:
        """Keep a candidate for later; returns the oldest one when there are too many, which is forgotten."""
        self._candidates.append(candidate)
        return self._candidates.pop(0) if len(self._candidates) > MAX_HELD_CANDIDATES else None

    def take_candidates(self) -> list[Candidate]:
        """All held candidates, in order."""
        candidates = list(self._candidates)
        self._candidates.clear()
        return candidates

    def handle_timeout(self, now: float) -> None:
        """Drop what nobody claimed."""
        while self._data and now >= self._data[0][0]:
            self._context.drop(self._data.pop(0)[1], "data from an address that never authenticated")

    def poll_timeout(self) -> float | None:
        """When the oldest datagram is dropped."""
        return self._data[0][0] if self._data else None
