"""Which of the paths that work should carry data?

*Standing* comes first, and whatever is better there is worth a move at once (:class:`Standing` has the order): a direct
path beats a relay as fast as it, one within the network beats one through its NAT, and what costs money or is about to
go is taken only where there is nothing else.

Among paths of one standing ICE's priorities decide, until it is known how long their round trips are. Then the shorter
one does, with hysteresis: data leaves a path for one that is faster by 5 ms and by a tenth; it goes back to one of
higher priority once that is no slower any more; and half a minute lies between two such moves, twice as long after
each. What loses checks is gone to by none of these, and what loses a quarter of them is left for one that loses none.
One that has just come has its priority alone.

Pure. Paths are opaque; who knows more (``iceagent/core/preference.py``) says how they stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from relay.upgrade import TIMINGS, Timings

__all__ = ["EXPENSIVE", "Rated", "RatedPath", "Rival", "Standing", "rival"]

EXPENSIVE = range(900, 999)
"""Of NETWORK-COST: a network that is taken only where there is no other one. libwebrtc has it for cellular. 999 says
nothing: it has that for sockets on the wildcard address, which is every page that may not use the camera.
"""

_REASONS = (
    "the other one works",
    "the address of the other one is about to go",
    "the other one's network costs",
    "no relay is needed",
    "it is nearer",
)
_OF_HIGHER_PRIORITY = "it has the higher priority"


class Standing(NamedTuple):
    """What is compared before round trips and priorities are; greater is better, the first that differs decides.

    Attributes:
        is_trusted: it was not left a moment ago because it did not work.
        is_staying: our address is not about to go, and its interface has a carrier.
        is_free: neither end pays for what it sends there.
        is_direct: no relay is on the way.
        nearness: 2: within a network, no address is translated; 1: through a NAT, or what a router maps; 0: farther.
    """

    is_trusted: bool = True
    is_staying: bool = True
    is_free: bool = True
    is_direct: bool = True
    nearness: int = 2


class RatedPath(Protocol):
    """What is known of one path."""

    @property
    def rank(self) -> int:
        """ICE's priority, as both ends compute it."""

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip; ``None``: not known."""

    @property
    def rtt_count(self) -> int:
        """How many samples that is made of, since the path last began to work."""

    @property
    def loss(self) -> float:
        """Share of our checks that are not answered, smoothed; 0.0 … 1.0."""

    @property
    def answered_at(self) -> float:
        """When a check of ours was last answered."""


class Rated(NamedTuple):
    """A path and how it stands."""

    standing: Standing
    path: RatedPath

    @property
    def key(self) -> tuple[Standing, int]:
        """Greater is better, where round trips are not looked at."""
        return self.standing, self.path.rank


class Rival(NamedTuple):
    """A path that should carry data instead.

    Attributes:
        path: see there.
        reason: for people.
        is_measured: their round trips and losses, which are known, allow it.
    """

    path: RatedPath
    reason: str
    is_measured: bool = False


def rival(
    current: Rated,
    others: Iterable[Rated],
    now: float,
    *,
    moves: tuple[int, float] | None = (0, 0.0),
    timings: Timings = TIMINGS,
) -> Rival | None:
    """The path that should carry data instead of the current one; ``None``: none.

    Args:
        current: the one that does.
        others: those that work, in any order.
        now: seconds.
        moves: how many measured ones there have been, and when the last one of any kind was; ``None``: round trips and
            losses are not looked at.
        timings: see there.
    """
    above = [other for other in others if _is_above(other, current, now, moves, timings)]
    higher = [other for other in above if other.key > current.key]
    if higher:
        best = max(higher, key=lambda other: other.key)
        is_measured = best.standing == current.standing and _are_known(best, current, now, moves, timings)
        return Rival(best.path, _reason(best.standing, current.standing), is_measured)
    if above:
        fastest = min(above, key=lambda other: _rtt_s(other.path))
        reason = "it loses less" if current.path.loss >= timings.lossy else "it is faster"
        return Rival(fastest.path, reason, is_measured=True)
    return None


def _is_above(other: Rated, current: Rated, now: float, moves: tuple[int, float] | None, timings: Timings) -> bool:
    if other.standing != current.standing:
        return other.standing > current.standing
    is_higher = other.path.rank > current.path.rank
    if moves is None or not _are_known(other, current, now, moves, timings):
        return is_higher
    count, moved_at = moves
    if now < moved_at + min(timings.faster_pause_s * 2.0 ** min(count, 10), timings.max_faster_pause_s):
        return False
    theirs, ours = _rtt_s(other.path), _rtt_s(current.path)
    if other.path.loss > timings.clean:
        return False
    if current.path.loss >= timings.lossy:
        return theirs <= ours + timings.lossy_s
    if is_higher:
        return theirs <= ours + max(timings.as_fast_s, timings.as_fast_share * ours)
    return theirs <= ours - max(timings.faster_s, timings.faster_share * ours)


def _are_known(one: Rated, other: Rated, now: float, moves: tuple[int, float] | None, timings: Timings) -> bool:
    """Whether round trips are looked at, and known of both."""
    return moves is not None and _is_known(one.path, now, timings) and _is_known(other.path, now, timings)


def _is_known(path: RatedPath, now: float, timings: Timings) -> bool:
    """Whether what its round trip is was measured often enough, and lately."""
    return path.rtt_count >= timings.rtt_samples and now <= path.answered_at + timings.rtt_lasts_s


def _rtt_s(path: RatedPath) -> float:
    return path.rtt_s or 0.0


def _reason(best: Standing, current: Standing) -> str:
    differs = (reason for reason, ours, theirs in zip(_REASONS, best, current, strict=True) if ours != theirs)
    return next(differs, _OF_HIGHER_PRIORITY)
