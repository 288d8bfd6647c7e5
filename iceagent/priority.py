"""How are priorities computed, and which base is preferred over which?

Candidate priority (RFC 8445, 5.1.2.1): ``2**24 * type preference + 2**8 * local preference + (256 - component)``.
Pair priority (RFC 8445, 6.1.2.3): ``2**32 * min(G, D) + 2 * max(G, D) + (1 if G > D else 0)``.

Local preferences are handed out to bases by :class:`LocalPreferences`: ordinary interfaces before metered ones before
tunnels and containers; within a class the first batch interleaves IPv6 and IPv4 (RFC 8421, 4); bases that come later
stand above the earlier ones of their class, for what just came up is what the user just plugged in. Each base gets
:data:`CANDIDATES_PER_BASE` values, one for every candidate of a type: "Each candidate for a data stream MUST have a
unique priority" (RFC 8445, 5.1.2).

What a network costs (:func:`network_cost`) is told to the peer by NETWORK-COST, with libwebrtc's figures.

A single address does not get 65535, as 5.1.2.1 recommends: the next one to come has to stand above it.

Pure arithmetic; which bases exist is ``iceagent/gather/host.py``'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TypeVar

from iceagent.candidate import CandidateType
from iceagent.net.host import InterfaceKind

__all__ = [
    "CANDIDATES_PER_BASE",
    "LocalPreferences",
    "candidate_priority",
    "interleave",
    "network_cost",
    "pair_priority",
]

T = TypeVar("T")

TYPE_PREFERENCE = {
    # RFC 8445, 5.1.2.2 recommends 126 for host, 110 for peer-reflexive, 100 for server-reflexive, 0 for relayed.
    CandidateType.HOST: 126,
    CandidateType.PEER_REFLEXIVE: 110,
    CandidateType.SERVER_REFLEXIVE: 100,
    CandidateType.RELAYED: 0,
}

CANDIDATES_PER_BASE = 16
"""Candidates of one type on one base that have a local preference of their own: a symmetric NAT gives one for every
server. The base's first one has the highest."""

# Two bits of the local preference say the class, the next ten the base's place in it, the last four the candidate.
_CLASS_SIZE = 1 << 14
_PLACES = _CLASS_SIZE // CANDIDATES_PER_BASE
# The first base of a class stands here; later batches are placed above, later members of one batch below.
_MIDDLE = _PLACES // 2
_CLASS = {
    InterfaceKind.ETHERNET: 3,
    InterfaceKind.WIFI: 3,
    InterfaceKind.OTHER: 3,
    InterfaceKind.CELLULAR: 2,
    InterfaceKind.VPN: 1,
    InterfaceKind.CONTAINER: 0,
    InterfaceKind.LOOPBACK: 0,
}

# kNetworkCostMin, Low, Unknown and High of libwebrtc.
_METERED_COST = 900
_COST = {
    InterfaceKind.ETHERNET: 0,
    InterfaceKind.LOOPBACK: 0,
    InterfaceKind.WIFI: 10,
    InterfaceKind.CONTAINER: 50,
    InterfaceKind.OTHER: 50,
    InterfaceKind.VPN: 50,
    InterfaceKind.CELLULAR: 900,
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


def network_cost(kind: InterfaceKind, metered: bool) -> int:
    """What NETWORK-COST says of an interface, 0 … 999; from 900 on, it is used only where nothing else works."""
    return _METERED_COST if metered else _COST[kind]


def interleave(preferred: Sequence[T], other: Sequence[T]) -> list[T]:
    """One of ``preferred``, one of ``other``, and so on; the rest of the longer one last (RFC 8421, 4)."""
    return [item for pair in zip_longest(preferred, other) for item in pair if item is not None]


@dataclass(slots=True)
class LocalPreferences:
    """Hands out local preferences, distinct among up to 1,024 addresses of a class at a time."""

    # Places of all classes: a preference without what distinguishes the candidates of its base.
    _used: tuple[int, ...] = ()

    def assign(self, bases: Iterable[tuple[str, int, InterfaceKind, bool]]) -> list[tuple[str, int]]:
        """Rank one batch of bases.

        Args:
            bases: (host, interface index, kind of interface, metered), in the system's order; ``host`` canonical.

        Returns:
            (host, local preference of its first candidate), best first; the next ``CANDIDATES_PER_BASE - 1`` values
            below it are the host's too.
        """
        classes: dict[int, list[str]] = {}
        for host, _index, kind, metered in bases:
            rank = min(_CLASS[kind], 2) if metered else _CLASS[kind]
            classes.setdefault(rank, []).append(host)
        result: list[tuple[str, int]] = []
        for rank in sorted(classes, reverse=True):
            hosts = classes[rank]
            ordered = interleave([h for h in hosts if ":" in h], [h for h in hosts if ":" not in h])
            result += zip(ordered, self._preferences(rank, len(ordered)), strict=True)
        return result

    def release(self, preference: int) -> None:
        """The address that was given ``preference`` is gone; others may have its place."""
        gone = preference // CANDIDATES_PER_BASE
        self._used = tuple(place for place in self._used if place != gone)

    def _preferences(self, rank: int, count: int) -> list[int]:
        """``count`` descending preferences of a class, each the highest of its place."""
        first = rank * _PLACES
        used = {place - first for place in self._used if first <= place < first + _PLACES}
        places = [first + place for place in self._places(used, count)]
        self._used = tuple(dict.fromkeys((*self._used, *places)))
        return [place * CANDIDATES_PER_BASE + CANDIDATES_PER_BASE - 1 for place in places]

    @staticmethod
    def _places(used: set[int], count: int) -> list[int]:
        """The first batch from the middle down, each later one above all that is used; then what is free."""
        top = max(used) + count if used else max(_MIDDLE, count - 1)
        if top < _PLACES:
            places = list(range(top, top - count, -1))
        else:
            places = list(islice((place for place in range(_PLACES - 1, -1, -1) if place not in used), count))
            places += [0] * (count - len(places))
        return places
