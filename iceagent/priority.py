"""How are priorities computed, and which base is preferred over which?

Candidate priority (RFC 8445, 5.1.2.1): ``2**24 * type preference + 2**8 * local preference + (256 - component)``.
Pair priority (RFC 8445, 6.1.2.3): ``2**32 * min(G, D) + 2 * max(G, D) + (1 if G > D else 0)``.

Local preferences (RFC 8445, 5.1.2.2: unique per candidate of one type) are handed out by :class:`LocalPreferences`:
ordinary interfaces before metered ones before tunnels and containers; within a class the first batch interleaves IPv6
and IPv4 (RFC 8421, 4); bases that come later stand above the earlier ones of their class, for what just came up is
what the user just plugged in.

Pure arithmetic; which bases exist is ``iceagent/gather/host.py``'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeVar

from iceagent.candidate import CandidateType
from iceagent.net.host import InterfaceKind

__all__ = ["LocalPreferences", "candidate_priority", "interleave", "pair_priority"]

T = TypeVar("T")

TYPE_PREFERENCE = {
    # RFC 8445, 5.1.2.2 recommends 126 for host, 110 for peer-reflexive, 100 for server-reflexive, 0 for relayed.
    CandidateType.HOST: 126,
    CandidateType.PEER_REFLEXIVE: 110,
    CandidateType.SERVER_REFLEXIVE: 100,
    CandidateType.RELAYED: 0,
}

# Two bits of the local preference say the class, the other 14 the place in it.
_CLASS_SIZE = 1 << 14
# The first base of a class stands here; later batches are placed above, later members of one batch below.
_CLASS_MIDDLE = _CLASS_SIZE // 2
_CLASS = {
    InterfaceKind.ETHERNET: 3,
    InterfaceKind.WIFI: 3,
    InterfaceKind.OTHER: 3,
    InterfaceKind.CELLULAR: 2,
    InterfaceKind.VPN: 1,
    InterfaceKind.CONTAINER: 0,
    InterfaceKind.LOOPBACK: 0,
}


def candidate_priority(candidate_type: CandidateType, component: int, local_preference: int = 65535) -> int:
    """Priority of a candidate (RFC 8445, 5.1.2.1).

    Args:
        component: 1 … 256.
        local_preference: 0 … 65535.

    Returns:
        1 … 2**31 - 1.
    """
    return (TYPE_PREFERENCE[candidate_type] << 24) + (local_preference << 8) + (256 - component)


def pair_priority(controlling: int, controlled: int) -> int:
    """Priority of a pair from the priorities of the controlling and the controlled side's candidate (6.1.2.3)."""
    return (min(controlling, controlled) << 32) + (max(controlling, controlled) << 1) + (controlling > controlled)


def interleave(preferred: Sequence[T], other: Sequence[T]) -> list[T]:
    """One of ``preferred``, one of ``other``, and so on; the rest of the longer one last (RFC 8421, 4)."""
    return [item for pair in zip_longest(preferred, other) for item in pair if item is not None]


@dataclass(slots=True)
class LocalPreferences:
    """Hands out distinct local preferences, stable for as long as the agent lives."""

    _above: dict[int, int] = field(default_factory=dict)
    _below: dict[int, int] = field(default_factory=dict)

    def assign(self, bases: Iterable[tuple[str, int, InterfaceKind, bool]]) -> list[tuple[str, int]]:
        """Rank one batch of bases.

        Args:
            bases: (host, interface index, kind of interface, metered), in the system's order; ``host`` canonical.

        Returns:
            (host, local preference), best first.
        """
        classes: dict[int, list[str]] = {}
        for host, _index, kind, metered in bases:
            rank = min(_CLASS[kind], 2) if metered else _CLASS[kind]
            classes.setdefault(rank, []).append(host)
        result: list[tuple[str, int]] = []
        for rank in sorted(classes, reverse=True):
            hosts = classes[rank]
            ordered = interleave([h for h in hosts if ":" in h], [h for h in hosts if ":" not in h])
            result += zip(ordered, self._places(rank, len(ordered)), strict=True)
        return result

    def _places(self, rank: int, count: int) -> list[int]:
        """``count`` descending places in a class: the first batch below the middle, each later one above all."""
        if rank not in self._above:
            top, self._above[rank], self._below[rank] = _CLASS_MIDDLE, _CLASS_MIDDLE, _CLASS_MIDDLE - count
        else:
            top = self._above[rank] = min(self._above[rank] + count, _CLASS_SIZE - 1)
        return [rank * _CLASS_SIZE + max(top - i, 0) for i in range(count)]
