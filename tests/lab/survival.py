"""Two agents that talk all the time in a laboratory: how long is nothing heard, what is lost, what is told?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

from iceagent import Agent, Config, IceServer
from iceagent.events import Event, LocalCandidateFound, Path, SelectedPathChanged
from iceagent.lab import Machine

__all__ = ["INTERVAL_S", "Side", "Talk", "talking", "turn"]

INTERVAL_S = 0.1
"""Ten datagrams a second, each way."""


def turn(*machines: Machine, transport: str = "udp") -> tuple[IceServer, ...]:
    """TURN servers on these machines, with the user ``lab``."""
    return tuple(
        IceServer(urls=(f"turn:{each.address}?transport={transport}",), username="lab", credential="lab")
        for each in machines
    )


class Side:
    """One end, what it has heard, and what it was told.

    Attributes:
        heard: when each datagram came in, by its number.
        sent: how many were sent.
        told: the events, each with its time.
    """

    def __init__(self, name: str, agent: Agent) -> None:
        self.name = name
        self.agent = agent
        self.heard: dict[int, float] = {}
        self.sent = 0
        self.told: list[tuple[float, Event]] = []
        agent.set_data_handler(self._take)

    def _take(self, data: bytes, component: int) -> None:
        self.heard.setdefault(int(data), time.monotonic())

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


class Talk:
    """Both sides.

    Attributes:
        a: the first one.
        b: the other one.
    """

    def __init__(self, a: Agent, b: Agent) -> None:
        self.a, self.b = Side("a", a), Side("b", b)
        self._changed = asyncio.Event()
        self._sent_at: dict[str, list[float]] = {"a": [], "b": []}

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
        missing = 0
        for sender, receiver in ((self.a, self.b), (self.b, self.a)):
            count = sum(at <= before for at in self._sent_at[sender.name])
            missing += count - sum(number < count for number in receiver.heard)
        return missing

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
            self._sent_at[side.name].append(time.monotonic())
            side.agent.send(b"%d" % side.sent)
            side.sent += 1
            await asyncio.sleep(interval_s)


@asynccontextmanager
async def talking(
    a: Machine,
    b: Machine,
    servers: Sequence[IceServer] = (),
    *,
    controlling: str = "a",
    settle_s: float = 1.5,
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
            async with asyncio.timeout(10.0):
                await asyncio.gather(one.connect(), two.connect())
            tasks += [asyncio.create_task(talk.speak(side, INTERVAL_S)) for side in talk.sides]
            await asyncio.sleep(settle_s)
            frozen = True
            yield talk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
