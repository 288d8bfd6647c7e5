"""What does a datagram cost, sent and received?

Both ends in one process over loopback, 1,200 bytes, bursts of 32: all of a burst is sent, then received. Ours with a
callback (``set_data_handler``) and with ``send`` and ``recv``; aioice with ``send`` and ``recv``, all it has: as it is,
and with its transports' ``max_size`` set to 2,048. As it is, asyncio allocates 256 KiB for every datagram it receives,
whose price depends on the state of the memory allocator: fast in one process, slow in the next. A process that
imported nothing but aioice is in the slow state, one that imported enough else in the fast one, where the repair gains
little: so both are judged.

Ours hands the datagrams of a burst to the kernel in one call, and takes them from it in one (``iceagent/net/trains``).
What that alone gives is seen beside it: the same with ``coalesce_s=0``, where each leaves by itself, and one datagram
back and forth, where there is nothing to put together.

Judged is processor time, which is what limits the rate: the process never waits, and what else the machine does counts
less than in the time elapsed, which is told beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.cases import Options
from bench.contenders import AIOICE, AIOICE_FIXED, OURS, OURS_SINGLY, Contender, pair
from bench.netns import loopback_hosts, loopback_only
from bench.processes import call
from bench.results import Metric

__all__ = ["run", "trial"]

PAYLOAD = b"\xc0" + bytes(1199)
BURST = 32
WARM_UP_BURSTS = 100
BURSTS = 600
LIMIT_S = 60.0

CALLBACK, CALLBACK_SINGLY = "ours, callback", "ours, callback, one by one"
BACK_AND_FORTH = ", back and forth"
WAYS = (
    CALLBACK,
    AIOICE,
    OURS,
    AIOICE_FIXED,
    CALLBACK_SINGLY,
    *(name + BACK_AND_FORTH for name in (OURS, AIOICE, AIOICE_FIXED)),
)

Burst = Callable[[], Awaitable[None]]

# (what, our way, the peer's, times at least), as datagrams per second.
TARGETS = (
    ("callback", CALLBACK, AIOICE, 6.0),
    ("callback", CALLBACK, AIOICE_FIXED, 3.0),
    ("send/recv", OURS, AIOICE, 5.5),
    ("send/recv", OURS, AIOICE_FIXED, None),
    ("callback, each leaves by itself", CALLBACK_SINGLY, AIOICE, None),
    ("callback, each leaves by itself", CALLBACK_SINGLY, AIOICE_FIXED, None),
    ("send/recv, one back and forth", OURS + BACK_AND_FORTH, AIOICE + BACK_AND_FORTH, None),
    ("send/recv, one back and forth", OURS + BACK_AND_FORTH, AIOICE_FIXED + BACK_AND_FORTH, None),
)


def run(options: Options) -> list[Metric]:
    """All ways in turn, each time in a process of its own, beginning with another one in every round."""
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    with loopback_only(1) as namespace:
        for number in range(options.rounds):
            options.tell(f"datagrams: round {number + 1}")
            for i in range(len(WAYS)):
                way = WAYS[(i + number) % len(WAYS)]
                result = call(namespace, "bench.cases.datagrams:trial", way=way)
                wall[way].append(result["wall"])
                cpu[way].append(result["cpu"])
    return [
        Metric(
            name=f"datagram, {what}",
            unit=f"µs {'of CPU' if values is cpu else 'elapsed'}",
            ours=values[ours],
            peer=values[peer],
            peer_name=peer.removesuffix(BACK_AND_FORTH),
            ratio_at_least=target if values is cpu else None,
        )
        for what, ours, peer, target in TARGETS
        for values in ((wall, cpu) if target is not None else (cpu,))
    ]


async def trial(way: str) -> dict[str, float]:
    """Microseconds per datagram."""
    a: Any
    b: Any
    make = {CALLBACK: OURS, CALLBACK_SINGLY: OURS_SINGLY}.get(way, way.removesuffix(BACK_AND_FORTH))
    a, b = pair(make, loopback_hosts(1))
    await asyncio.gather(a.gather(), b.gather())
    to_a, to_b = b.description(), a.description()
    await a.set_remote(to_a)
    await b.set_remote(to_b)
    await asyncio.gather(a.connect(), b.connect())
    per_burst = BURST
    if way.endswith(BACK_AND_FORTH):
        burst, per_burst = _back_and_forth(a, b), 2
    elif way in (CALLBACK, CALLBACK_SINGLY):
        burst = _callback(a.agent.send, b.agent.set_data_handler)
    elif way == OURS:
        burst = _ours(a.agent.send, b.agent.recv)
    else:
        burst = _aioice(a.connection.send, b.connection.recv)
    async with asyncio.timeout(LIMIT_S):
        result = await _measure(burst, per_burst)
    for agent in (a, b):
        await agent.close()
    return result


async def _measure(burst: Burst, per_burst: int) -> dict[str, float]:
    for _ in range(WARM_UP_BURSTS):
        await burst()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BURSTS):
        await burst()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / BURSTS / per_burst * 1e6, "cpu": cpu / BURSTS / per_burst * 1e6}


def _callback(send: Callable[[bytes], None], set_data_handler: Callable[[Any], None]) -> Burst:
    loop = asyncio.get_running_loop()
    received = 0
    all_received = loop.create_future()

    def on_data(data: bytes, component: int) -> None:
        nonlocal received
        received += 1
        if received == BURST:
            all_received.set_result(None)

    async def burst() -> None:
        nonlocal received, all_received
        received, all_received = 0, loop.create_future()
        for _ in range(BURST):
            send(PAYLOAD)
        await all_received

    set_data_handler(on_data)
    return burst


def _ours(send: Callable[[bytes], None], recv: Callable[[], Awaitable[bytes]]) -> Burst:
    async def burst() -> None:
        for _ in range(BURST):
            send(PAYLOAD)
        for _ in range(BURST):
            await recv()

    return burst


def _aioice(send: Callable[[bytes], Awaitable[None]], recv: Callable[[], Awaitable[bytes]]) -> Burst:
    async def burst() -> None:
        for _ in range(BURST):
            await send(PAYLOAD)
        for _ in range(BURST):
            await recv()

    return burst


def _back_and_forth(a: Contender, b: Contender) -> Burst:
    async def burst() -> None:
        await a.send(PAYLOAD)
        await b.send(await b.recv())
        await a.recv()

    return burst
