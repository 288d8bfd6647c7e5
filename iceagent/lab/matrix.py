"""Which kinds of router can two agents connect through, how fast, and does theory allow better?

A *cell* is two kinds, or two machines behind one router. Cells that theory allows are measured one after the other, so
that none disturbs another's time; those it does not are left to try side by side, until the laboratory's own limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any

from iceagent.config import Config
from iceagent.lab.contenders import CONTENDERS, Relay
from iceagent.lab.errors import LabError
from iceagent.lab.kinds import kind_named
from iceagent.lab.lab import Lab
from iceagent.lab.machines import Machine
from iceagent.lab.session import LIMIT_S, Outcome, Side, connect
from iceagent.nat.theory import can_meet
from iceagent.net.address import TransportAddress
from iceagent.serving import serve
from relay.server import STUN_PORT, Server, ServerOptions

__all__ = [
    "KIND_NAMES",
    "Cell",
    "Place",
    "Result",
    "Summary",
    "cells",
    "play",
    "stun_server",
    "summarize",
    "turn_server",
]

KIND_NAMES = (
    "open",
    "firewall",
    "full-cone",
    "addr-restricted",
    "port-restricted",
    "port-restricted-naive",
    "eim-random",
    "addr-symmetric",
    "symmetric",
    "symmetric-seq",
    "no-udp",
)
"""Rows and columns of the whole matrix."""

# Where even strict firewalls let TCP out.
TLS_PORT = 443
# Cells that are built and torn down together: each has four namespaces and threads.
BATCH = 16
# A cell that theory allows holds up the next one for so long at most; then both go on side by side.
HEAD_START_S = 1.0


class Place(Enum):
    """How the two machines stand to each other."""

    APART = "apart"
    SAME_HOME = "same home"
    SAME_HOME_HAIRPIN = "same home, hairpin"
    SAME_CARRIER = "same carrier"
    SAME_CARRIER_HAIRPIN = "same carrier, hairpin"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is tried.

    Attributes:
        a: kind of the controlling side's router; of the only one, where there is one.
        b: kind of the controlled side's.
        place: where they stand; behind one carrier's NAT the kinds are those of the homes.
        late_s: seconds that a side is told later: positive the controlled one, negative the controlling one.
    """

    a: str
    b: str
    place: Place = Place.APART
    late_s: float = 0.0

    def __str__(self) -> str:
        late = f", {abs(self.late_s) * 1000:g} ms late: {'b' if self.late_s > 0 else 'a'}" if self.late_s else ""
        return f"{self.a} × {self.b}{'' if self.place is Place.APART else f' ({self.place.value})'}{late}"

    @property
    def is_possible(self) -> bool:
        """Whether theory allows a direct path, without guessing ports."""
        if self.place is Place.SAME_CARRIER:
            return False
        if self.place is not Place.APART:
            return True
        a, b = kind_named(self.a), kind_named(self.b)
        return can_meet((a.mapping, a.filtering), (b.mapping, b.filtering))


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of a cell."""

    cell: Cell
    outcome: Outcome

    @property
    def could_be_better(self) -> bool:
        """Theory allows a direct path, and there is none."""
        return self.cell.is_possible and self.outcome.kind != "direct"

    def as_json(self) -> dict[str, Any]:
        """The fields of the event ``lab.cell``."""
        cell = self.cell
        return {
            "a": cell.a,
            "b": cell.b,
            "place": cell.place.value,
            "late_ms": cell.late_s * 1000,
            "possible": cell.is_possible,
            **self.outcome.as_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of all cells.

    Attributes:
        cells: how many.
        possible: of them, theory allows a direct path in.
        connected: of them, connected.
        missed: theory allows a direct path, and there is none.
        median_ms: time to connect of the connected ones; ``None``: there are none.
        relayed: of the connected ones, those that ended on a relay.
        unconnected: not connected at all.
    """

    cells: int
    possible: int
    connected: int
    missed: int
    median_ms: float | None
    relayed: int = 0
    unconnected: int = 0


def cells(kinds: Sequence[str] = KIND_NAMES, *, with_places: bool = True) -> list[Cell]:
    """Every pair of kinds, and two machines behind one router.

    Raises:
        LabError: there is no such kind.
    """
    for name in kinds:
        kind_named(name)
    found = [Cell(a, b) for a in kinds for b in kinds]
    if with_places:
        cone, plain = "port-restricted-strict", "port-restricted"
        found += [
            Cell(plain, plain, Place.SAME_HOME),
            Cell(cone, cone, Place.SAME_HOME_HAIRPIN),
            Cell(plain, plain, Place.SAME_CARRIER_HAIRPIN),
            Cell(plain, plain, Place.SAME_CARRIER),
        ]
    return found


def summarize(results: Iterable[Result]) -> Summary:
    """Count."""
    results = list(results)
    times = [result.outcome.elapsed_s for result in results if result.outcome.elapsed_s is not None]
    return Summary(
        cells=len(results),
        possible=sum(result.cell.is_possible for result in results),
        connected=len(times),
        missed=sum(result.could_be_better for result in results),
        median_ms=median(times) * 1000 if times else None,
        relayed=sum(result.outcome.kind == "relay" for result in results),
        unconnected=len(results) - len(times),
    )


async def play(
    wanted: Iterable[Cell],
    *,
    agent: str = "iceagent",
    config: Config | None = None,
    limit_s: float = LIMIT_S,
    turn: bool = False,
) -> AsyncIterator[Result]:
    """Try all cells, and give each result when it is there.

    Args:
        wanted: what to try.
        agent: who plays both sides; a name of :data:`CONTENDERS`.
        config: of our agents.
        limit_s: of one cell.
        turn: there is a TURN server as well.

    Raises:
        LabError: there is no such agent, or the laboratory cannot be built.
    """
    if agent not in CONTENDERS:
        raise LabError(f"there is no agent called {agent!r}; there are {', '.join(CONTENDERS)}")
    possible: list[Cell] = []
    others: list[Cell] = []
    for cell in wanted:
        (possible if cell.is_possible else others).append(cell)
    batches = [possible[i : i + BATCH] for i in range(0, len(possible), BATCH)]
    # Nothing is measured here: all that wait for the limit may wait together.
    batches += [others[i : i + 2 * BATCH] for i in range(0, len(others), 2 * BATCH)]
    for batch in batches:
        with Lab() as lab:
            async with stun_server(lab) as stun, AsyncExitStack() as stack:
                relay = await stack.enter_async_context(turn_server(lab)) if turn else None

                def play_one(a: Side, b: Side, stun: TransportAddress = stun, relay: Relay | None = relay) -> _Playing:
                    return connect(a, b, agent=agent, stun=stun, turn=relay, config=config, limit_s=limit_s)

                async for result in _play_batch(lab, batch, play_one):
                    yield result


@asynccontextmanager
async def stun_server(lab: Lab) -> AsyncIterator[TransportAddress]:
    """Our own server, on a machine ``stun``, with behaviour discovery; gives its first address, which is IPv4."""
    machine = lab.machine("stun", addresses=2)
    listen = [TransportAddress(host, STUN_PORT) for host in machine.hosts]
    async with Server(machine.host, listen, options=ServerOptions(behaviour_discovery=True)):
        yield listen[0]


@asynccontextmanager
async def turn_server(lab: Lab) -> AsyncIterator[Relay]:
    """Our own, on a machine ``turn``, which also listens on port 443."""
    machine = lab.machine("turn")
    relay = Relay(udp=TransportAddress(machine.address, STUN_PORT), tcp=TransportAddress(machine.address, TLS_PORT))
    async with serve((relay.udp, relay.tcp), users={relay.username: relay.password}, host=machine.host):
        yield relay


_Playing = Coroutine[Any, Any, Outcome]


async def _play_batch(
    lab: Lab, batch: Sequence[Cell], play_one: Callable[[Side, Side], _Playing]
) -> AsyncIterator[Result]:
    machines = []
    for cell in batch:
        machines.append(_build(lab, cell))
        # So that Ctrl-C is heard.
        await asyncio.sleep(0)
    running: set[asyncio.Task[Result]] = set()
    try:
        for cell, (a, b) in zip(batch, machines, strict=True):

            async def run(cell: Cell = cell, a: Machine = a, b: Machine = b) -> Result:
                sides = Side(machine=a, late_s=max(0.0, -cell.late_s)), Side(machine=b, late_s=max(0.0, cell.late_s))
                return Result(cell, await play_one(*sides))

            task = asyncio.ensure_future(run())
            running.add(task)
            if cell.is_possible:
                await asyncio.wait([task], timeout=HEAD_START_S)
            for done in [task for task in running if task.done()]:
                running.remove(done)
                yield done.result()
        while running:
            finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for done in finished:
                yield done.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _build(lab: Lab, cell: Cell) -> tuple[Machine, Machine]:
    if cell.place is Place.APART:
        return lab.machine(behind=lab.router(cell.a)), lab.machine(behind=lab.router(cell.b))
    if cell.place in (Place.SAME_HOME, Place.SAME_HOME_HAIRPIN):
        home = lab.router(cell.a, hairpin=cell.place is Place.SAME_HOME_HAIRPIN)
        return lab.machine(behind=home), lab.machine(behind=home)
    hairpin = cell.place is Place.SAME_CARRIER_HAIRPIN
    carrier = lab.router("port-restricted-strict", is_carrier=True, hairpin=hairpin)
    homes = lab.router(cell.a, behind=carrier), lab.router(cell.b, behind=carrier)
    return lab.machine(behind=homes[0]), lab.machine(behind=homes[1])
