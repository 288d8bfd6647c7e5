"""After which silences is a binding looked at, and what do the answers say of its lifetime?

A look ends the silence, so that each needs a binding of its own; a round of them runs side by side. The first round
brackets the lifetimes that are usual (30 s and 120 s on Linux, whole minutes elsewhere) closely enough to be the last
one, and divides the rest evenly; the next divides what the last one left. 32 bindings a round are two rounds for any
lifetime of up to five minutes, and less than one page of the Web opens.

:class:`Search` is one such bisection. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["PROBES", "RESOLUTION_S", "Bracket", "Search", "plan"]

PROBES = 32
"""Bindings of one round."""

RESOLUTION_S = 1.0
"""A lifetime is known when what lived and what died are no farther apart."""

MAX_ROUNDS = 6
"""Two are the rule; more are for networks that lose a lot."""

USUAL_S = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 600, 900, 1_800, 3_600)
"""Lifetimes that routers have."""

# Between two silences, at best: below the resolution, with room for a late timer. On either side of a usual lifetime
# half of it.
_STEP_S = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """What is known of a lifetime.

    Attributes:
        alive_s: the longest silence that a binding was seen to outlive; 0: none.
        dead_s: the shortest one after which it was gone; ``None``: none was too long.
    """

    alive_s: float = 0.0
    dead_s: float | None = None

    @property
    def lifetime_s(self) -> float | None:
        """The middle; ``None``: no end was found."""
        return None if self.dead_s is None else (self.alive_s + self.dead_s) / 2


def plan(low_s: float, high_s: float, count: int = PROBES) -> list[float]:
    """At most ``count`` silences between two, in order; usual lifetimes first, and then wherever the gap is widest."""
    usual = [usual_s + margin_s for usual_s in USUAL_S for margin_s in (-_STEP_S / 2, _STEP_S / 2)]
    edges = [low_s, *[at for at in usual if low_s < at < high_s][:count], high_s]
    widths = [after - before for before, after in pairwise(edges)]
    parts = [1] * len(widths)
    while sum(parts) - 1 < count:
        widest = max(range(len(widths)), key=lambda index: widths[index] / parts[index])
        if widths[widest] / parts[widest] < _STEP_S + 1e-6:
            break
        parts[widest] += 1
    steps = zip(edges, widths, parts, strict=False)
    return [edge + width * part / count for edge, width, count in steps for part in range(count)][1:]


@dataclass(slots=True, eq=False)
class Search:
    """Finds one lifetime.

    Attributes:
        max_s: the longest silence that is tried.
        bracket: what is known by now.
        rounds: how many there were.
    """

    max_s: float
    bracket: Bracket = field(default_factory=Bracket)
    rounds: int = 0

    def next_round(self) -> list[float]:
        """The silences to try; empty: there is nothing more to find out."""
        alive_s, dead_s = self.bracket.alive_s, self.bracket.dead_s
        is_known = dead_s is not None and dead_s - alive_s <= RESOLUTION_S
        is_endless = dead_s is None and alive_s >= self.max_s - _STEP_S / 2
        if is_known or is_endless or self.rounds >= MAX_ROUNDS:
            return []
        self.rounds += 1
        if dead_s is None:
            return [*plan(alive_s, self.max_s, PROBES - 1), self.max_s]
        return plan(alive_s, dead_s)

    def note(self, silence_s: float, *, is_alive: bool) -> None:
        """One binding was looked at. Life proves more than death: a look that finds nothing may have been lost."""
        alive_s, dead_s = self.bracket.alive_s, self.bracket.dead_s
        if is_alive:
            alive_s = max(alive_s, silence_s)
            dead_s = None if dead_s is not None and dead_s <= alive_s else dead_s
        elif silence_s > alive_s:
            dead_s = silence_s if dead_s is None else min(dead_s, silence_s)
        self.bracket = Bracket(alive_s=alive_s, dead_s=dead_s)
