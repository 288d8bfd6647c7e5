"""What is a row of the table?

Two homes, an event, and a bound. Its event is a coroutine that breaks something and returns the moment that is measured
from. *Frozen* signalling ended when both had connected; *files* live on. Rows with files, and those that stop a
process, are played by ``iceagent connect``, the others by agents in this process.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.survival.homes import Homes
from bench.survival.record import Record, Talkers, first, gap

__all__ = [
    "ADVISED",
    "CONNTRACK",
    "DIRECT",
    "FILES",
    "FROZEN",
    "GAP",
    "LOST",
    "PARTED",
    "RESUMED",
    "Event",
    "Measure",
    "Row",
]

FILES, FROZEN = "files", "frozen"
CONNTRACK = "conntrack"

Event = Callable[[Homes, Talkers], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a bound is about.

    Attributes:
        name: in words.
        of: both records, the moment that is measured from, and now → the value; infinite: it never came.
        unit: of the value.
    """

    name: str
    of: Callable[[Sequence[Record], float, float], float]
    unit: str = "s"


def _each_first(name: str) -> Callable[[Sequence[Record], float, float], float]:
    """Until the later one of both was told this."""

    def of(records: Sequence[Record], since: float, now: float) -> float:
        return max(first(record.times_of(name), since) for record in records)

    return of


def _direct(records: Sequence[Record], since: float, now: float) -> float:
    """Until both had a direct path, for good."""
    selected = [told for record in records for told in record.told if told.name == "path.selected" and told.at > since]
    is_there = all(record.kind == "direct" for record in records)
    return max((told.at - since for told in selected), default=math.inf) if is_there else math.inf


GAP = Measure("longest gap", lambda records, since, now: max(gap(record, since, now) for record in records))
RESUMED = Measure(
    "until both hear again", lambda records, since, now: max(first(record.fresh(since), since) for record in records)
)
DIRECT = Measure("until both are direct", _direct)
ADVISED = Measure("until both are told to restart", _each_first("restart.advised"))
PARTED = Measure(
    "until the other one is told", lambda records, since, now: first(records[1].times_of("peer.closed"), since)
)
LOST = Measure("lost", lambda records, since, now: float(sum(record.lost for record in records)), "datagrams")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An event.

    Attributes:
        name: on the command line.
        title: in words.
        homes: how :class:`Homes` are built, beside their place and name.
        event: what happens to them.
        measure: what the bound is about.
        bound: the most that it may be.
        signalling: ``frozen`` once both had connected, or ``files``.
        by_programs: played by ``iceagent connect``.
        prepare: done to the homes before anybody connects.
        starts: the kind of path before the event, ``direct`` or ``relay``; ``None``: either.
        ends: the kind of path in the end; ``None``: either.
        state: of both in the end; ``None``: ``b`` is closed.
        keeps_state: nobody is ever told of another state.
        by_restart: both restart, and one of them was asked to.
        outage_s: seconds between event and the moment that is measured from, when nothing can pass.
        watch_s: seconds that it is watched from that moment on.
        patience_s: the same of another make, or less, if both its ends are closed earlier.
        not_theirs: why another make is not measured; empty: it is.
        needs: programs, or ``/dev/net/tun``, that it needs beside nft(8).
    """

    name: str
    title: str
    homes: Mapping[str, Any]
    event: Event
    measure: Measure = GAP
    bound: float
    signalling: str = FROZEN
    by_programs: bool = False
    prepare: Callable[[Homes], None] | None = None
    starts: str | None = None
    ends: str | None = None
    state: str | None = "connected"
    keeps_state: bool = False
    by_restart: bool = False
    outage_s: float = 0.0
    watch_s: float = 3.0
    patience_s: float = 45.0
    not_theirs: str = ""
    needs: tuple[str, ...] = ()

    @property
    def longest_s(self) -> float:
        """How long it takes at most, from the event on, with whoever."""
        return 125.0 + self.outage_s + max(self.watch_s, self.patience_s)

    @property
    def is_about_being_told(self) -> bool:
        """Whether nothing is heard again, and what counts is that the application knows."""
        return self.measure in (ADVISED, PARTED)

    @property
    def most_lost(self) -> int:
        """Datagrams that may be lost, of either direction: those of the outage and of the longest gap allowed."""
        if self.measure in (DIRECT, LOST):
            return 0
        return math.ceil((self.outage_s + self.bound) * 10) + 1

    def build(self, lab: Any, name: str) -> Homes:
        """Its homes, ready for two talkers; ``name`` is unique in the laboratory."""
        homes = Homes(lab, name, **self.homes)
        if self.prepare is not None:
            self.prepare(homes)
        return homes
