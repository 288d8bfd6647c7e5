"""Two agents of ours that talk all the time, in this process: how long is nothing heard, what is lost, what is told?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

from bench.survival.record import INTERVAL_S, SETTLE_S, Heard, Look, Record, Talkers, Told
from iceagent import Agent, AgentClosed, Config, IceServer, NoPath
from iceagent.events import Event, LocalCandidateFound, Path, SelectedPathChanged
from iceagent.lab import Machine
from iceagent.logs import describe

__all__ = ["Side", "Talk", "talking"]

CONNECT_LIMIT_S = 10.0
# A datagram that is younger may still be on its way.
LOSS_AGE_S = 0.5


class Side:
    """One end, what it has heard, and what it was told.

    Attributes:
        heard: when each datagram came in, by its number.
        sent_at: when each was sent.
        unsent: how many could not be sent, because there was no path.
        told: the events, each with its time.
    """

    def __init__(self, name: str, agent: Agent) -> None:
        self.name = name
        self.agent = agent
        self.heard: dict[int, float] = {}
        self.sent_at: list[float] = []
        self.unsent = 0
        self.told: list[tuple[float, Event]] = []
        agent.set_data_handler(self._take)

    def _take(self, data: bytes, component: int) -> None:
        self.heard.setdefault(int(data), time.monotonic())

    def say(self) -> None:
        """The next number."""
        try:
            self.agent.send(b"%d" % len(self.sent_at))
        except (NoPath, AgentClosed):
            self.unsent += 1
            return
        self.sent_at.append(time.monotonic())

    @property
    def sent(self) -> int:
        """How many were sent."""
        return len(self.sent_at)

    @property
    def path(self) -> Path:
        path = self.agent.path()
        assert path is not None
        return path

    def longest_gap(self, since: float) -> float:
        """Between two that came in; the last one before ``since`` is the first."""
        times = sorted(self.heard.values())
        before = max((at for at in times if at <= since), default=since)
        return max(b - a for a, b in pairwise([before, *(at for at in times if at > since), time.monotonic()]))

    def times_of(self, kind: type[Event], since: float = 0.0) -> list[float]:
        """When it was told something of this kind."""
        return [at for at, event in self.told if isinstance(event, kind) and at >= since]

    def moves(self, since: float) -> list[tuple[float, str]]:
        """When data took another path since then, and why."""
        found = [(at, event) for at, event in self.told if isinstance(event, SelectedPathChanged) and at >= since]
        return [(at - since, event.reason) for at, event in found]


class Talk(Talkers):
    """Both sides.

    Attributes:
        a: the first one.
        b: the other one.
    """

    def __init__(self, a: Agent, b: Agent) -> None:
        self.a, self.b = Side("a", a), Side("b", b)
        self._changed = asyncio.Event()
        self._is_silent = False

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.a, self.b

    @property
    def is_mirrored(self) -> bool:
        """Whether each side sends to where the other one sends from."""
        mine, theirs = self.a.agent.path(), self.b.agent.path()
        if mine is None or theirs is None:
            return False
        return (mine.local.address, mine.remote.address) == (theirs.remote.address, theirs.local.address)

    async def until(self, fact: Callable[[], bool], limit_s: float) -> float:
        """Until it is true, which is looked at with every event; how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(limit_s):
            while not fact():
                self._changed.clear()
                await self._changed.wait()
        return time.monotonic() - began

    def gap(self, since: float) -> float:
        """The longer one of both sides' longest."""
        return max(side.longest_gap(since) for side in self.sides)

    def lost(self, before: float) -> int:
        """How many of those sent before then never came."""
        return sum(_missing(sender, receiver, before) for sender, receiver in (self.sides, self.sides[::-1]))

    def story(self, since: float) -> str:
        """All that was told since then, for a failing test."""
        rows = [(at - since, side.name, event) for side in self.sides for at, event in side.told if at >= since]
        return "\n".join(f"{after:8.3f} {name} {event}" for after, name, event in sorted(rows, key=lambda row: row[0]))

    async def follow(self, side: Side, other: Side, is_frozen: Callable[[], bool]) -> None:
        """Note what a side is told, and tell the other one of its candidates while signalling lives."""
        async for event in side.agent.events():
            side.told.append((time.monotonic(), event))
            self._changed.set()
            if isinstance(event, LocalCandidateFound) and not is_frozen():
                other.agent.add_remote_candidate(event.candidate)

    async def speak(self, side: Side, interval_s: float) -> None:
        """Say one number after the other."""
        while True:
            if not self._is_silent:
                side.say()
            await asyncio.sleep(interval_s)

    # --- as talkers ----------------------------------------------------------------------------------------------

    async def look(self, name: str) -> Look | None:
        """Where data of an end goes."""
        path = self._side(name).agent.path()
        if path is None:
            return None
        return Look(path.kind, (path.local.address.host, path.remote.address.host), path.base.host)

    async def records(self) -> tuple[Record, Record]:
        """What there is by now, of both."""
        before = time.monotonic() - LOSS_AGE_S
        one, other = (
            Record(
                name=side.name,
                heard=sorted(Heard(at, partner.sent_at[number]) for number, at in side.heard.items()),
                sent=side.sent,
                lost=_missing(partner, side, before) + partner.unsent,
                told=[_told(at, event) for at, event in side.told],
            )
            for side, partner in (self.sides, self.sides[::-1])
        )
        return one, other

    async def close(self, name: str) -> None:
        """The application of an end closes its agent."""
        await self._side(name).agent.aclose()

    async def report_loss(self, name: str) -> None:
        """The application of an end says that data does not arrive."""
        self._side(name).agent.report_loss()

    async def fall_silent(self, is_silent: bool) -> None:
        """Send nothing for a while, or again."""
        self._is_silent = is_silent

    def _side(self, name: str) -> Side:
        return self.a if name == "a" else self.b


@asynccontextmanager
async def talking(
    a: Machine,
    b: Machine,
    servers: Sequence[IceServer] = (),
    *,
    controlling: str = "a",
    settle_s: float = SETTLE_S,
    **options: object,
) -> AsyncIterator[Talk]:
    """Agents on these machines have been talking for a while; from then on signalling is frozen."""
    config = Config(**{"servers": tuple(servers), "portmap": False, **options})  # type: ignore[arg-type]
    one = Agent(config, controlling=controlling == "a", host=a.host)
    two = Agent(config, controlling=controlling == "b", host=b.host)
    async with one, two:
        talk = Talk(one, two)
        frozen = False
        tasks = [
            asyncio.create_task(talk.follow(talk.a, talk.b, lambda: frozen)),
            asyncio.create_task(talk.follow(talk.b, talk.a, lambda: frozen)),
        ]
        try:
            await asyncio.gather(one.gather(), two.gather())
            one.set_remote_description(two.local_description)
            two.set_remote_description(one.local_description)
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await asyncio.gather(one.connect(), two.connect())
            tasks += [asyncio.create_task(talk.speak(side, INTERVAL_S)) for side in talk.sides]
            await asyncio.sleep(settle_s)
            frozen = True
            yield talk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _missing(sender: Side, receiver: Side, before: float) -> int:
    count = sum(at <= before for at in sender.sent_at)
    return count - sum(number < count for number in receiver.heard)


def _told(at: float, event: Event) -> Told:
    line = describe(event)
    return Told(at, line.name, line.fields)
