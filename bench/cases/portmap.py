"""How long until a router maps a port, until it is known that none does, and until it is deleted?

miniupnpd on a router of the laboratory, and a machine behind it. Ours is ``portmap.PortMapper`` from its construction
until the mapping is there; the other one is miniupnpc (its Python module) with discovery, choice of the router and
AddPortMapping, all of which is needed for a first mapping, and with the shortest discovery that it has (a second).
Each trial has a process of its own, in which everything is imported before the time begins. Deletion is measured with
the daemon stopped (SIGSTOP), so that it never answers. Beside it stands how long the event loop was held up, and how
much of that was our own computing.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.cases import Options
from bench.processes import Worker
from bench.results import Metric

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab import Machine
    from iceagent.lab.services import Service

__all__ = ["close", "nothing", "ours", "peer", "peer_nothing", "run"]

PORT = 6000
PEER = "miniupnpc"

ALL_RATIO, UPNP_RATIO = 2.5, 2.0
"""At most 0.4 of miniupnpc's time where PCP or NAT-PMP answers, 0.5 with UPnP alone."""

VERDICT_MS, CLOSE_MS, BLOCKED_MS = 1500.0, 1000.0, 20.0
TICK_S = 0.001

# (name, whether the daemon does UPnP, and the others, target)
WORLDS = (
    ("PCP, NAT-PMP and UPnP", True, True, ALL_RATIO),
    ("NAT-PMP and PCP alone", False, True, None),
    ("UPnP alone", True, False, UPNP_RATIO),
)


def run(options: Options) -> list[Metric]:
    """Every world in turn; in each round ours and the other one begin by turns."""
    metrics: list[Metric] = []
    held: list[tuple[float, float]] = []
    for name, has_upnp, has_others, target in WORLDS:
        found: dict[str, list[float]] = {"ours": [], "peer": []}
        with _world(upnp=has_upnp, others=has_others) as (inside, _):
            for number in range(options.rounds):
                options.tell(f"portmap: {name}, round {number + 1}")
                ways = ["ours", "peer"] if has_upnp else ["ours"]
                for way in ways if number % 2 else reversed(ways):
                    took_ms, held_ms, computed_ms = _ask(inside, way)
                    found[way].append(took_ms)
                    if way == "ours":
                        held.append((held_ms, computed_ms))
        metrics.append(
            Metric(
                name=f"first mapping: {name}",
                unit="ms",
                ours=found["ours"],
                peer=found["peer"],
                peer_name=PEER,
                ratio_at_least=target,
            )
        )
    return [*metrics, *_nothing(options, held), *_close(options), *_held(held)]


def _nothing(options: Options, held: list[tuple[float, float]]) -> list[Metric]:
    found: dict[str, list[float]] = {"nothing": [], "peer_nothing": []}
    with _world(upnp=False, others=False) as (inside, _):
        for number in range(options.rounds):
            options.tell(f"portmap: nothing there, round {number + 1}")
            for way, values in found.items():
                took_ms, held_ms, computed_ms = _ask(inside, way)
                values.append(took_ms)
                if way == "nothing":
                    held.append((held_ms, computed_ms))
    return [
        Metric(
            name="known that no router maps",
            unit="ms",
            ours=found["nothing"],
            peer=found["peer_nothing"],
            peer_name=PEER,
            worst_at_most=VERDICT_MS,
        )
    ]


def _close(options: Options) -> list[Metric]:
    found: list[float] = []
    with _world(upnp=True, others=True) as (inside, daemon):
        assert daemon is not None
        for number in range(options.rounds):
            for protocol in ("pcp", "nat-pmp", "upnp"):
                options.tell(f"portmap: leaving a daemon that hangs, {protocol}, round {number + 1}")
                worker = Worker(inside.namespace, "bench.cases.portmap:close", protocol=protocol, pid=daemon.pid)
                try:
                    found.append(float(worker.reply()))
                finally:
                    worker.__exit__()
                    daemon.restart()
    return [Metric(name="closed, with a daemon that hangs", unit="ms", ours=found, worst_at_most=CLOSE_MS)]


def _held(held: list[tuple[float, float]]) -> list[Metric]:
    waited, computed = zip(*held, strict=True)
    return [
        Metric(name="event loop held up by us meanwhile, of CPU", unit="ms", ours=computed, worst_at_most=BLOCKED_MS),
        Metric(name="event loop held up meanwhile, by whatever runs", unit="ms", ours=waited),
    ]


@contextmanager
def _world(*, upnp: bool, others: bool) -> Iterator[tuple[Machine, Service | None]]:
    from iceagent.lab import Lab
    from iceagent.lab.services import miniupnpd

    with Lab() as lab:
        router = lab.router()
        daemon = miniupnpd(router, upnp=upnp, nat_pmp=others) if upnp or others else None
        yield lab.machine("inside", behind=router), daemon


def _ask(machine: Machine, way: str) -> tuple[float, float, float]:
    worker = Worker(machine.namespace, f"bench.cases.portmap:{way}")
    try:
        took_ms, held_ms, computed_ms = worker.reply()
        return float(took_ms), float(held_ms), float(computed_ms)
    finally:
        worker.__exit__()


# --- in processes of their own ---------------------------------------------------------------------------------------


async def ours() -> tuple[float, float, float]:
    """Milliseconds until there is a mapping, and the longest that the loop was held up, and computed."""
    from portmap import PortMapper

    await _import_all()
    async with _Ticker() as ticker:
        started = time.perf_counter()
        async with PortMapper(versions=(4,)) as mapper:
            await mapper.map("udp", PORT)
            took = time.perf_counter() - started
    return took * 1000, *ticker.worst_ms


async def nothing() -> tuple[float, float, float]:
    """Milliseconds until it is known that there is none, and the longest that the loop was held up, and computed."""
    from portmap import MappingFailed, PortMapper

    await _import_all()
    async with _Ticker() as ticker:
        started = time.perf_counter()
        async with PortMapper(versions=(4,)) as mapper:
            try:
                await mapper.map("udp", PORT)
            except MappingFailed:
                took = time.perf_counter() - started
    return took * 1000, *ticker.worst_ms


async def close(protocol: str, pid: int) -> float:
    """Milliseconds until the mapper is closed, though the daemon does not answer any more."""
    from portmap import PortMapper

    await _import_all()
    async with PortMapper(protocols=(protocol,), versions=(4,)) as mapper:  # type: ignore[arg-type]
        await mapper.map("udp", PORT)
        os.kill(pid, signal.SIGSTOP)
        started = time.perf_counter()
    return (time.perf_counter() - started) * 1000


async def peer() -> tuple[float, float, float]:
    """The same with miniupnpc; it blocks all the time, which is not told."""
    import miniupnpc

    started = time.perf_counter()
    upnp = miniupnpc.UPnP()
    upnp.discover()
    upnp.selectigd()
    upnp.addportmapping(PORT + 1, "UDP", upnp.lanaddr, PORT + 1, "bench", "", 3600)
    took = time.perf_counter() - started
    upnp.deleteportmapping(PORT + 1, "UDP")
    return took * 1000, 0.0, 0.0


async def peer_nothing() -> tuple[float, float, float]:
    """The same where no router answers."""
    import miniupnpc

    started = time.perf_counter()
    try:
        miniupnpc.UPnP().discover()
    except Exception:  # It raises nothing more special.
        return (time.perf_counter() - started) * 1000, 0.0, 0.0
    return (time.perf_counter() - started) * 1000, 0.0, 0.0


async def _import_all() -> None:
    """What is imported when it is first needed, is imported now."""
    from iceagent.net.local import local_host

    importlib.import_module("portmap.http")
    await local_host().interfaces()


class _Ticker:
    """Looks at the clocks every millisecond.

    Attributes:
        worst_s: the longest that it came too late, for whatever reason: the router's daemon and the kernel's work for
            both share two cores with it.
        worst_cpu_s: the most that this thread computed between two looks.
    """

    def __init__(self) -> None:
        self.worst_s = self.worst_cpu_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            before, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            self.worst_s = max(self.worst_s, time.perf_counter() - before - TICK_S)
            self.worst_cpu_s = max(self.worst_cpu_s, time.thread_time() - computed)

    @property
    def worst_ms(self) -> tuple[float, float]:
        """Both, in milliseconds."""
        return self.worst_s * 1000, self.worst_cpu_s * 1000
