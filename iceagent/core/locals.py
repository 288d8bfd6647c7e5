"""Which candidates of ours are known, and on which sockets do they stand?

Gathered (RFC 8445, 5.1) and handed in one by one. What is redundant is refused (RFC 8838, 9), and so is what a server
says that sees another address every time: it must not fill the check list. A new interface always finds room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from iceagent.candidate import Candidate, CandidateType
from iceagent.net.address import TransportAddress

__all__ = ["Locals"]

# Our own candidates: bases × servers, far below.
_MAX_LOCAL_CANDIDATES = 1000
# Of one type on one base: every server behind a symmetric NAT sees another address.
_MAX_REFLEXIVE_PER_BASE = 16


# One for all: ``frozenset()`` is 216 bytes each time.
_NO_BASES: frozenset[TransportAddress] = frozenset()


class Locals:
    """Our candidates; contains the addresses of our sockets."""

    __slots__ = ("_candidates", "_component_of", "_mapped")

    def __init__(self) -> None:
        self._candidates: list[Candidate] = []
        self._component_of: dict[TransportAddress, int] = {}
        self._mapped = _NO_BASES

    def add(self, candidate: Candidate) -> Candidate | None:
        """Take a candidate.

        Returns:
            it, with its base; ``None`` if it is redundant (address and base of an earlier one, whatever the priorities)
            or one too many.
        """
        base = candidate.base or candidate.address
        if self.find(candidate.component, base, candidate.address) is not None or self._is_one_too_many(
            candidate, base
        ):
            return None
        candidate = replace(candidate, base=base)
        self._candidates.append(candidate)
        self._component_of[base] = candidate.component
        if candidate.type is CandidateType.SERVER_REFLEXIVE:
            self._mapped |= {base}
        return candidate

    def remove_base(self, base: TransportAddress) -> list[Candidate]:
        """A socket is gone, with its candidates: these."""
        gone = [candidate for candidate in self._candidates if candidate.base == base]
        self._candidates = [candidate for candidate in self._candidates if candidate.base != base]
        self._component_of.pop(base, None)
        if base in self._mapped:
            self._mapped -= {base}
        return gone

    def remove(self, base: TransportAddress, address: TransportAddress) -> list[Candidate]:
        """What a socket has at one address is gone, but the socket is not: these candidates."""
        gone = [c for c in self._candidates if (c.base, c.address) == (base, address)]
        self._candidates = [c for c in self._candidates if (c.base, c.address) != (base, address)]
        return gone

    def find(self, component: int, base: TransportAddress, address: TransportAddress) -> Candidate | None:
        """The candidate at an address, on a base."""
        return next(
            (c for c in self._candidates if c.address == address and c.base == base and c.component == component), None
        )

    def is_mapped(self, base: TransportAddress) -> bool:
        """Whether a server saw another address of a base, so that it is behind a NAT."""
        return base in self._mapped

    def component_of(self, base: TransportAddress) -> int | None:
        """What a socket is for; ``None``: it is not ours, or gone."""
        return self._component_of.get(base)

    def all(self) -> list[Candidate]:
        """In the order they came."""
        return list(self._candidates)

    def __contains__(self, address: object) -> bool:
        return address in self._component_of

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates)

    def _is_one_too_many(self, candidate: Candidate, base: TransportAddress) -> bool:
        if candidate.type is CandidateType.HOST:
            return False
        of_base = sum(c.base == base and c.type is candidate.type for c in self._candidates)
        return of_base >= _MAX_REFLEXIVE_PER_BASE or len(self._candidates) >= _MAX_LOCAL_CANDIDATES
