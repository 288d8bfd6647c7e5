"""What has one end of a talk heard, and what was it told, whoever it is?

Times are seconds of the machine's monotonic clock, which all processes share. What is told has the names of
``iceagent/logs.py``; aioice tells one thing only, :data:`CLOSED`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = [
    "CLOSED",
    "INTERVAL_S",
    "SETTLE_S",
    "Heard",
    "Look",
    "Record",
    "Talkers",
    "Told",
    "first",
    "gap",
    "is_mirrored",
    "story",
]

INTERVAL_S = 0.1
"""Ten datagrams a second, each way."""

SETTLE_S = 1.5
"""So long have both been talking when the event comes."""

CLOSED = "closed"
"""An agent has ended by itself."""


class Heard(NamedTuple):
    """A datagram that came, the first copy of it.

    Attributes:
        at: when.
        sent_at: when it had been sent; where it is the answer to a ping, when that had been.
    """

    at: float
    sent_at: float


class Told(NamedTuple):
    """Something that the application was told.

    Attributes:
        at: when.
        name: ``noun.verb``.
        fields: more.
    """

    at: float
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One end.

    Attributes:
        name: ``a`` or ``b``.
        heard: what came, in order. A program hears the answers to its pings: both ways worked.
        sent: how many it sent.
        lost: how many of those that were meant for it, and old enough, never came.
        told: what the application was told, in order.
        has_ended: its process is not there any more.
    """

    name: str
    heard: Sequence[Heard] = ()
    sent: int = 0
    lost: int = 0
    told: Sequence[Told] = field(default_factory=list)
    has_ended: bool = False

    def times_of(self, name: str, since: float = 0.0) -> list[float]:
        """When it was told this."""
        return [told.at for told in self.told if told.name == name and told.at >= since]

    def fresh(self, since: float) -> list[float]:
        """When something came that was sent since then: what waited in a socket's buffer does not show that a path
        works.
        """
        return [heard.at for heard in self.heard if heard.sent_at >= since]

    def last(self, name: str) -> Told | None:
        """The last thing of this name."""
        return next((told for told in reversed(self.told) if told.name == name), None)

    @property
    def state(self) -> str:
        """What the agent last said that it is; empty if it said nothing."""
        told = self.last("state.changed")
        return "" if told is None else str(told.fields["new"])

    @property
    def path(self) -> Mapping[str, Any] | None:
        """The last path, as it was told; ``None``: there is none, or not any more."""
        told = next((told for told in reversed(self.told) if told.name in ("path.selected", "path.lost")), None)
        return None if told is None or told.name == "path.lost" else told.fields

    @property
    def kind(self) -> str | None:
        """Of the last path, ``direct`` or ``relay``."""
        return None if self.path is None else str(self.path["kind"])


class Look(NamedTuple):
    """Where an end's data goes now.

    Attributes:
        kind: ``direct`` or ``relay``.
        hosts: IP addresses of both candidates.
        base: IP address of the socket that it leaves from; empty: not known.
    """

    kind: str
    hosts: tuple[str, str]
    base: str


class Talkers(ABC):
    """Two ends that talk; the first is ``a``, the other one ``b``.

    What a kind of talkers cannot do raises TypeError: not every row is for everybody.
    """

    @abstractmethod
    async def look(self, name: str) -> Look | None:
        """Where data of an end goes; ``None``: nowhere."""

    @abstractmethod
    async def records(self) -> tuple[Record, Record]:
        """What there is by now, of both."""

    async def close(self, name: str) -> None:
        """The application of an end closes its agent."""
        raise TypeError(f"{type(self).__name__} cannot be closed one by one")

    async def report_loss(self, name: str) -> None:
        """The application of an end says that data does not arrive."""
        raise TypeError(f"{type(self).__name__} cannot be told of a loss")

    async def fall_silent(self, is_silent: bool) -> None:
        """Send nothing for a while, or again."""
        raise TypeError(f"{type(self).__name__} cannot be silent")

    def stop(self, name: str) -> None:
        """SIGSTOP an end's process."""
        raise TypeError(f"{type(self).__name__} have no process of their own")

    def cont(self, name: str) -> None:
        """SIGCONT it."""
        raise TypeError(f"{type(self).__name__} have no process of their own")


def gap(record: Record, since: float, until: float) -> float:
    """The longest time without anything heard; it begins with the last thing heard before ``since`` at the earliest."""
    times = [heard.at for heard in record.heard if heard.at < until]
    before = max((at for at in times if at <= since), default=since)
    return max(b - a for a, b in pairwise([before, *(at for at in times if at > since), until]))


def first(times: Sequence[float], after: float) -> float:
    """How long after that the first of these is; infinite: there is none."""
    return min((at - after for at in times if at > after), default=math.inf)


def is_mirrored(records: Sequence[Record]) -> bool:
    """Whether each end was last told to send to where the other one sends from."""
    mine, theirs = (record.path for record in records)
    if mine is None or theirs is None:
        return False
    one, other = ((path["local"]["address"], path["remote"]["address"]) for path in (mine, theirs))
    return bool(one == other[::-1])


def story(records: Sequence[Record], since: float) -> str:
    """All that was told since then, but for single packets and candidates, for a person."""
    rows = [(told.at - since, record.name, told) for record in records for told in record.told if told.at >= since]
    rows = [row for row in rows if not row[2].name.startswith(("ping.", "candidate.", "packet.", "data."))]
    return "\n".join(f"{at:8.3f} {name} {told.name} {_words(told.fields)}" for at, name, told in sorted(rows)[:200])


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in fields.items())


def _word(value: Any) -> str:
    if isinstance(value, dict) and {"type", "address"} <= value.keys():
        return f"{value['type']}/{value['address']}"
    return str(value)
