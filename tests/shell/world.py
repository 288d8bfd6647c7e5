"""Agents on machines in memory, in virtual time: no socket, no waiting, and every run is the same.

A test is a coroutine under :func:`in_virtual_time`; it makes a :class:`World`, puts machines, routers and servers into
it, and agents on the machines. Times are virtual seconds since the test began.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from iceagent import Agent, Config, IceServer
from iceagent.events import Event, GatheringDone, IceRestarted, LocalCandidateFound
from iceagent.net.host import Host
from iceagent.testing import (
    MemoryHost,
    MemoryInternet,
    NatNode,
    Network,
    Peer,
    StunServerNode,
    add_stun_server,
    box_of_kind,
    run,
)

# Virtual seconds that a test may take; what waits for ever is found out soon.
TIME_LIMIT_S = 7200.0

P = ParamSpec("P")
E = TypeVar("E", bound=Event)


def in_virtual_time(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine. It must leave no task behind, and no unhandled error."""

    @functools.wraps(story)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await story(*args, **kwargs)
            # Cancelled tasks end.
            for _ in range(10):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(main(), time_limit_s=TIME_LIMIT_S)

    return test


class World:
    """An Internet of one test."""

    def __init__(self, seed: int = 1, *, icmp_errors: bool = False) -> None:
        self.network = Network.seeded(seed, icmp_errors=icmp_errors)
        self.internet = MemoryInternet(self.network)
        self.rng = random.Random(seed)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def host(self, name: str, addresses: tuple[str, ...] | str = (), behind: NatNode | None = None) -> MemoryHost:
        """A machine, with ``eth0`` if it has addresses."""
        return self.internet.host(name, (addresses,) if isinstance(addresses, str) else addresses, behind)

    def nat(self, name: str, kind: str, external: str, **options: Any) -> NatNode:
        """A router of a kind of the catalogue."""
        return self.network.add_nat(name, box_of_kind(kind, [external], self.rng, **options))

    def stun(self, name: str, host: str, **options: Any) -> Peer[StunServerNode]:
        """A STUN server on port 3478."""
        server = add_stun_server(self.network, name, [host], **options)
        self.internet.add_peer(server)
        return server

    def agent(self, host: Host, *servers: str, controlling: bool = True, **options: Any) -> Agent:
        """An agent on a machine that asks these servers (``stun:`` is put in front)."""
        urls = tuple(f"stun:{server}" for server in servers)
        config = Config(servers=tuple(IceServer(urls=(url,)) for url in urls), **options)
        return Agent(config, controlling=controlling, host=host, rng=self.rng)


class Diary:
    """Everything that happens to an agent, with its time; stops with the agent."""

    def __init__(self, world: World, agent: Agent) -> None:
        self.entries: list[tuple[float, Event]] = []
        self._world = world
        self._events = agent.events()
        self._turned = asyncio.Event()
        self._task = asyncio.ensure_future(self._write())

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, in order."""
        return [event for _, event in self.entries if isinstance(event, kind)]

    def at(self, kind: type[Event]) -> list[float]:
        """When they happened."""
        return [at for at, event in self.entries if isinstance(event, kind)]

    async def until(self, kind: type[E], fact: Callable[[E], bool] = lambda event: True) -> E:
        """The first event of a kind of which ``fact`` is true: it may have happened already."""
        while True:
            found = next((event for event in self.of(kind) if fact(event)), None)
            if found is not None:
                return found
            if self._task.done():
                raise AssertionError(f"the agent was closed; no {kind.__name__} in {self.entries}")
            self._turned.clear()
            await self._turned.wait()

    async def _write(self) -> None:
        async for event in self._events:
            self.entries.append((self._world.now, event))
            self._turned.set()
        self._turned.set()


async def signal(sender: Agent, receiver: Agent, delay_s: float = 0.0) -> None:
    """Tell one agent what the other one has to say, now and later (trickle ICE); ends with the sender."""
    events = sender.events()
    await asyncio.sleep(delay_s)
    receiver.set_remote_description(sender.local_description)
    async for event in events:
        await asyncio.sleep(delay_s)
        if isinstance(event, LocalCandidateFound):
            receiver.add_remote_candidate(event.candidate.to_sdp())
        elif isinstance(event, IceRestarted):
            receiver.set_remote_description(sender.local_description.to_sdp())
        elif isinstance(event, GatheringDone):
            receiver.end_remote_candidates()


@asynccontextmanager
async def trickling(a: Agent, b: Agent, delay_s: float = 0.0) -> AsyncIterator[None]:
    """Both agents hear of each other from now on; they are closed afterwards."""
    tasks = [asyncio.ensure_future(signal(x, y, delay_s)) for x, y in ((a, b), (b, a))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(a.aclose(), b.aclose())


@asynccontextmanager
async def connected(a: Agent, b: Agent) -> AsyncIterator[None]:
    """Both agents are connected, and go on hearing of each other."""
    async with trickling(a, b):
        await asyncio.gather(a.connect(), b.connect())
        yield


async def exchange(a: Agent, b: Agent) -> None:
    """Gather on both sides, and then tell each the other's description, once."""
    mine, theirs = await asyncio.gather(a.gather(), b.gather())
    a.set_remote_description(theirs)
    b.set_remote_description(mine)


async def talk(a: Agent, b: Agent) -> None:
    """A datagram each way arrives."""
    a.send(b"to b")
    b.send(b"to a")
    assert (await a.recv(), await b.recv()) == (b"to a", b"to b")
