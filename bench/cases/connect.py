"""How long do two agents in one process take to connect over loopback?

From "remote description set" on both to both connected; gathering is told beside it. The first connection of a process
and the later ones are two metrics: the first pays for code that never ran before.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from bench.cases import Options
from bench.contenders import CONTENDERS, Contender, pair
from bench.netns import loopback_hosts, loopback_only
from bench.processes import call
from bench.results import Metric

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab.namespace import Namespace

__all__ = ["run", "trials"]

ADDRESSES = (1, 16)
TRIALS = 6
# Our agents of one process may send 200 checks a second together, and 20 at once: each trial finds that bucket full.
PAUSE_S = 0.15

# With one address each; with more, forming the pairs takes its time, and the ratio judges.
TARGET_MS = {1: 2.0}
TARGET_RATIO = 4.0


def run(options: Options) -> list[Metric]:
    """Every contender connects a few times in a process of its own, per round."""
    metrics = []
    for count in ADDRESSES:
        with loopback_only(count) as namespace:
            metrics += _measure(namespace, count, options)
    return metrics


def _measure(namespace: Namespace, count: int, options: Options) -> list[Metric]:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        options.tell(f"connect: {count} address(es), round {number + 1}")
        for name in CONTENDERS:
            times = call(namespace, "bench.cases.connect:trials", name=name, hosts=loopback_hosts(count))
            later = times[1:]
            median = [statistics.median(each[i] for each in later) for i in (0, 1)]
            found[name].append((median[0], median[1], times[0][1]))
    ours, peer = ([list(column) for column in zip(*found[name], strict=True)] for name in CONTENDERS)
    label = f"{count} address{'es' if count > 1 else ''} each"
    return [
        Metric(
            name=f"connect, {label}",
            unit="ms",
            ours=ours[1],
            peer=peer[1],
            at_most=TARGET_MS.get(count),
            ratio_at_least=TARGET_RATIO,
        ),
        Metric(name=f"connect, {label}, first of a process", unit="ms", ours=ours[2], peer=peer[2]),
        Metric(name=f"gather, {label}", unit="ms", ours=ours[0], peer=peer[0]),
    ]


async def trials(name: str, hosts: list[str]) -> list[tuple[float, float]]:
    """Milliseconds of gathering and of connecting, once per trial and once before."""
    found = []
    for _ in range(1 + TRIALS):
        agents = pair(name, hosts)
        found.append(await _trial(*agents))
        await asyncio.gather(*(agent.close() for agent in agents))
        await asyncio.sleep(PAUSE_S)
    return found


async def _trial(a: Contender, b: Contender) -> tuple[float, float]:
    begun = time.perf_counter()
    await asyncio.gather(a.gather(), b.gather())
    to_a, to_b = b.description(), a.description()
    gathered = time.perf_counter()
    await a.set_remote(to_a)
    await b.set_remote(to_b)
    await asyncio.gather(a.connect(), b.connect())
    connected = time.perf_counter()
    return (gathered - begun) * 1000, (connected - gathered) * 1000
