"""What does a datagram cost, sent and received?

Both ends in one process over loopback, 1,200 bytes, bursts of 32: all of a burst is sent, then received. Ours with a
callback (``set_data_handler``) and with ``send`` and ``recv``; aioice with ``send`` and ``recv``, all it has: as it is,
and with its transports' ``max_size`` set to 2,048. As it is, asyncio allocates 256 KiB for every datagram it receives,
whose price depends on the state of the memory allocator: fast in one process, slow in the next. A process that
imported nothing but aioice is in the slow state, one that imported enough else in the fast one, where the repair gains
little: so both are judged.

Beside them the two system calls alone, in a loop without anything around them: they are the larger part of what ours
costs, and their price is the machine's, which the ratios depend on. What each adds to them is told too.

Judged is processor time, which is what limits the rate: the process never waits, and what else the machine does counts
less than in the time elapsed, which is told beside it.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.cases import Options
from bench.contenders import AIOICE, AIOICE_FIXED, OURS, pair
from bench.netns import loopback_hosts, loopback_only
from bench.processes import call
from bench.results import Metric

__all__ = ["run", "trial"]

PAYLOAD = b"\xc0" + bytes(1199)
BURST = 32
WARM_UP_BURSTS = 100
BURSTS = 600
LIMIT_S = 60.0

CALLBACK = "ours, callback"
KERNEL = "kernel"
WAYS = (CALLBACK, AIOICE, OURS, AIOICE_FIXED, KERNEL)

Burst = Callable[[], Awaitable[None]]

# (our way, the peer's, times at least), as datagrams per second.
TARGETS = ((CALLBACK, AIOICE, 6.0), (CALLBACK, AIOICE_FIXED, 3.0), (OURS, AIOICE, 5.5), (OURS, AIOICE_FIXED, None))


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
    above = Metric(
        name="datagram, callback, above the two system calls",
        unit="µs of CPU",
        ours=_above(cpu[CALLBACK], cpu[KERNEL]),
        peer=_above(cpu[AIOICE_FIXED], cpu[KERNEL]),
        peer_name=AIOICE_FIXED,
        note=f"sendto and recvfrom alone take {statistics.median(cpu[KERNEL]):.2f} µs here",
    )
    judged = [
        Metric(
            name=f"datagram, {'callback' if ours == CALLBACK else 'send/recv'}",
            unit=f"µs {'of CPU' if values is cpu else 'elapsed'}",
            ours=values[ours],
            peer=values[peer],
            peer_name=peer,
            ratio_at_least=target if values is cpu else None,
        )
        for ours, peer, target in TARGETS
        for values in (wall, cpu)
    ]
    return [*judged, above]


def _above(values: list[float], floor: list[float]) -> list[float]:
    return [value - least for value, least in zip(values, floor, strict=True)]


async def trial(way: str) -> dict[str, float]:
    """Microseconds per datagram."""
    if way == KERNEL:
        return await _measure_kernel()
    a: Any
    b: Any
    a, b = pair(OURS if way == CALLBACK else way, loopback_hosts(1))
    await asyncio.gather(a.gather(), b.gather())
    to_a, to_b = b.description(), a.description()
    await a.set_remote(to_a)
    await b.set_remote(to_b)
    await asyncio.gather(a.connect(), b.connect())
    if way == CALLBACK:
        burst = _callback(a.agent.send, b.agent.set_data_handler)
    elif way == OURS:
        burst = _ours(a.agent.send, b.agent.recv)
    else:
        burst = _aioice(a.connection.send, b.connection.recv)
    async with asyncio.timeout(LIMIT_S):
        result = await _measure(burst)
    for agent in (a, b):
        await agent.close()
    return result


async def _measure(burst: Burst) -> dict[str, float]:
    for _ in range(WARM_UP_BURSTS):
        await burst()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BURSTS):
        await burst()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / BURSTS / BURST * 1e6, "cpu": cpu / BURSTS / BURST * 1e6}


async def _measure_kernel() -> dict[str, float]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as b,
    ):
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        destination = b.getsockname()

        async def burst() -> None:
            for _ in range(BURST):
                a.sendto(PAYLOAD, destination)
            for _ in range(BURST):
                b.recvfrom(65_536)

        return await _measure(burst)


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
