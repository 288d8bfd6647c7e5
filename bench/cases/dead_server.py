"""A STUN server that never answers: how much later do two agents connect because of it?

Both start at the same moment and connect over loopback; the server is a socket that nobody reads. The difference to the
same without a server, in the same round. Ours sends candidates as it finds them (trickle), which is how it is to be
used; aioice knows its candidates only when gathering is over. What ours takes where the application waits for the end
of gathering is told beside it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

from bench.cases import Options
from bench.contenders import AIOICE, OURS, Contender, pair
from bench.netns import loopback_hosts, loopback_only
from bench.processes import Worker
from bench.results import Metric

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab.namespace import Namespace

__all__ = ["run", "trial"]

TARGET_MS = 5.0

# (contender, whether candidates are sent as they are found)
TRICKLE, OURS_WAITING, PEER_WAITING = (OURS, True), (OURS, False), (AIOICE, False)


def run(options: Options) -> list[Metric]:
    """The waiting ones side by side: they do nothing for five seconds."""
    added: dict[tuple[str, bool], list[float]] = {TRICKLE: [], OURS_WAITING: [], PEER_WAITING: []}
    with loopback_only(1) as namespace:
        for number in range(options.rounds):
            options.tell(f"dead-server: round {number + 1}")
            added[TRICKLE].append(_added(namespace, [TRICKLE])[0])
            both = [OURS_WAITING, PEER_WAITING]
            for way, value in zip(both, _added(namespace, both), strict=True):
                added[way].append(value)
    return [
        Metric(
            name="added by a dead STUN server",
            unit="ms",
            ours=added[TRICKLE],
            peer=added[PEER_WAITING],
            at_most=TARGET_MS,
            note="from the start of gathering to both connected; ours trickles, aioice cannot",
        ),
        Metric(
            name="added by a dead STUN server, gathering awaited",
            unit="ms",
            ours=added[OURS_WAITING],
            peer=added[PEER_WAITING],
        ),
    ]


def _added(namespace: Namespace, ways: list[tuple[str, bool]]) -> list[float]:
    """Milliseconds for each way; the trials without the server first."""
    without, with_it = (_times(namespace, ways, has_server) for has_server in (False, True))
    return [b - a for a, b in zip(without, with_it, strict=True)]


def _times(namespace: Namespace, ways: list[tuple[str, bool]], has_server: bool) -> list[float]:
    workers = [
        Worker(namespace, "bench.cases.dead_server:trial", name=name, trickles=trickles, has_server=has_server)
        for name, trickles in ways
    ]
    try:
        return [float(worker.reply()) for worker in workers]
    finally:
        for worker in workers:
            worker.__exit__()


async def trial(name: str, trickles: bool, has_server: bool) -> float:
    """Milliseconds from the start of gathering until both are connected; the second try of this process."""
    hosts = loopback_hosts(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((hosts[0], 0))
        await _once(pair(name, hosts), trickles)
        return await _once(pair(name, hosts, silent.getsockname() if has_server else None), trickles)


async def _once(agents: tuple[Contender, Contender], trickles: bool) -> float:
    a: Any
    b: Any
    a, b = agents
    started = time.perf_counter()
    if trickles:
        trickling = [asyncio.create_task(a.trickle_to(b)), asyncio.create_task(b.trickle_to(a))]
        await asyncio.gather(a.connect(), b.connect())
    else:
        trickling = []
        await asyncio.gather(a.gather(), b.gather())
        to_a, to_b = b.description(), a.description()
        await a.set_remote(to_a)
        await b.set_remote(to_b)
        await asyncio.gather(a.connect(), b.connect())
    elapsed = time.perf_counter() - started
    for agent in agents:
        await agent.close()
    await asyncio.gather(*trickling)
    return elapsed * 1000
