"""How do pairs stand against each other?

``relay/preference.py`` compares; here it is shown the pairs: what ICE's types and priorities say of a path, whether
either end's network costs money (NETWORK-COST, kept on the pair), and whether our address is about to go or has no
link.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from iceagent.core.pair import CandidatePair
from iceagent.net.address import TransportAddress
from relay.preference import Rated, Rival, Standing, rival

__all__ = ["Preference"]

# Type preferences of the lesser candidate (RFC 8445, 5.1.2.2): 126 for host, 110 and 100 for reflexive ones, 0 for
# relayed. Others' are near: libnice has 120 for host and 30 for relayed, libwebrtc 2 to 0.
_HOST_TYPE = 112
_REFLEXIVE_TYPE = 64
_TYPE_SHIFT = 56

# One for all: ``frozenset()`` is 216 bytes each time.
_NO_BASES: frozenset[TransportAddress] = frozenset()


class Preference:
    """What is known of pairs beyond their priorities."""

    __slots__ = ("_deprecated", "_down")

    def __init__(self) -> None:
        self._deprecated = self._down = _NO_BASES

    def deprecate(self, base: TransportAddress, *, is_deprecated: bool) -> None:
        """The address of a base is about to go, or is not any more."""
        self._deprecated = _changed(self._deprecated, base, is_in=is_deprecated)

    def set_link(self, base: TransportAddress, *, is_up: bool) -> None:
        """The interface of a base has lost its carrier, or has it again."""
        self._down = _changed(self._down, base, is_in=not is_up)

    def forget(self, base: TransportAddress) -> None:
        """The socket is gone."""
        self.deprecate(base, is_deprecated=False)
        self.set_link(base, is_up=True)

    def standing(self, pair: CandidatePair, now: float) -> Standing:
        """How a valid pair stands; of one that is not, its priority is taken for its rank."""
        priority = pair.rank if pair.is_valid else pair.priority
        lesser_type = priority >> _TYPE_SHIFT
        return Standing(
            now >= pair.shunned_until,
            pair.base not in self._deprecated and pair.base not in self._down,
            not pair.is_metered,
            not pair.is_relayed,
            (lesser_type >= _HOST_TYPE) + (lesser_type >= _REFLEXIVE_TYPE),
        )

    def key(self, pair: CandidatePair, now: float) -> tuple[Standing, int]:
        """Greater is better, where round trips are not looked at."""
        return self.standing(pair, now), pair.rank

    def best(self, pairs: Iterable[CandidatePair], now: float) -> CandidatePair | None:
        """The best of some valid pairs."""
        return max(pairs, key=lambda pair: self.key(pair, now), default=None)

    def rival(
        self,
        pair: CandidatePair,
        others: Iterable[CandidatePair],
        now: float,
        moves: tuple[int, float] | None = None,
    ) -> Rival | None:
        """The valid pair that should carry data instead of this one; see :func:`relay.preference.rival`."""
        rated = (Rated(self.standing(other, now), other) for other in others if other is not pair)
        return rival(Rated(self.standing(pair, now), pair), rated, now, moves=moves)

    def substitutes(self, pair: CandidatePair, others: Iterable[CandidatePair], now: float) -> list[CandidatePair]:
        """Pairs in the order in which they may take another one's place: of those that work, stay and cost nothing,
        what leaves from a socket of its own; for what breaks is a network mostly.
        """

        def key(other: CandidatePair) -> tuple[bool, bool, bool, bool, int]:
            standing = self.standing(other, now)
            is_elsewhere = other.base != pair.base
            return standing.is_trusted, standing.is_staying, standing.is_free, is_elsewhere, other.rank

        return sorted(others, key=key, reverse=True)

    def is_known_to_us_alone(self, pair: CandidatePair, than: CandidatePair, now: float) -> bool:
        """Whether a pair that works is better than another one for what the peer may not know."""
        mine, other = self.standing(pair, now), self.standing(than, now)
        return mine.is_trusted and mine.is_staying and not other.is_staying

    def might_better(self, pair: CandidatePair, than: CandidatePair) -> bool:
        """Whether a pair would be better than a valid one, if it worked; that either was left does not count."""
        mine, other = self.standing(pair, math.inf), self.standing(than, math.inf)
        return mine > other or (mine == other and pair.priority > than.rank)


def _changed(bases: frozenset[TransportAddress], base: TransportAddress, *, is_in: bool) -> frozenset[TransportAddress]:
    """The same object where nothing changes: most sessions share the empty one."""
    if is_in:
        return bases | {base}
    return bases - {base} if base in bases else bases
