"""How long until a WebRTC data channel is open, on our agents and on aiortc as it comes?

From ``createDataChannel`` and ``createOffer`` to the channel's ``open`` at the offerer; both connections exist by then,
for their certificates are the same work. One program for both makes: it signals the descriptions, and candidates as
``icecandidate`` brings them, which aiortc's own connection does not do: it gathers first.

Locally both ends are in one process, which signals to itself. Behind NATs (``iceagent.lab``; a STUN server of ours)
each end is a process on its machine, and this one carries what they signal. What a megabyte through an open channel
costs stands beside it: DTLS and SCTP are aiortc's with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bench.cases import Options
from bench.netns import link_by_veth, namespaces
from bench.processes import Worker, call
from bench.results import Metric

if TYPE_CHECKING:
    # See netns.py: not in a measuring process; nor the other contender.
    from aiortc import RTCDataChannel, RTCPeerConnection

    from iceagent.lab.namespace import Namespace

__all__ = ["described", "local", "megabytes", "run", "side"]

MAKES = {"ours": ("iceagent.rtc", "PeerConnection"), "aiortc": ("aiortc", "RTCPeerConnection")}
TRIALS = 6
# Our agents of one process may send 200 checks a second together: each trial finds that bucket full.
PAUSE_S = 0.15

KIND = "port-restricted"
CABLE_S = 0.025
SESSIONS = 3
LIMIT_S = 20.0

# "At most half": the goal.
TARGET_RATIO = 2.0
# And so long setLocalDescription may take.
DESCRIBED_MS = 20.0
# Nobody is there.
SILENT = "stun:20.0.0.9"

MEGABYTE, MEGABYTES = 10**6, 8
MESSAGE = bytes(16 * 1024)
BUFFER = 1 << 20


def run(options: Options) -> list[Metric]:
    """Locally, and through NATs without and with a delay."""
    metrics = []
    with _one_address() as namespace:
        metrics += _locally(namespace, options)
        metrics.append(_described(namespace, options))
        metrics.append(_cost(namespace, options))
    return [*metrics, _behind_nats(0.0, options), _behind_nats(CABLE_S, options)]


@contextlib.contextmanager
def _one_address() -> Iterator[Namespace]:
    """A namespace with an address that is no loopback address, at a cable to nobody."""
    with namespaces(2) as (here, there):
        link_by_veth(here, there, "cable")
        here.ip("address add 20.0.0.1/24 dev cable")
        yield here


def _in_turns(number: int) -> list[str]:
    """Who comes first changes from round to round."""
    return list(MAKES) if number % 2 else list(reversed(MAKES))


# --- locally ----------------------------------------------------------------------------------------------------------


def _locally(namespace: Namespace, options: Options) -> list[Metric]:
    first: dict[str, list[float]] = {make: [] for make in MAKES}
    later: dict[str, list[float]] = {make: [] for make in MAKES}
    for number in range(options.rounds):
        options.tell(f"rtc: locally, round {number + 1}")
        for make in _in_turns(number):
            times = call(namespace, "bench.cases.rtc:local", make=make)
            first[make].append(times[0])
            later[make].append(statistics.median(times[1:]))
    name = "data channel open, two local peers"
    return [
        _metric(name, "ms", later, ratio_at_least=TARGET_RATIO),
        _metric(f"{name}, first of a process", "ms", first),
    ]


async def local(make: str) -> list[float]:
    """Milliseconds until a channel is open, once per trial and once before."""
    found = []
    for _ in range(1 + TRIALS):
        async with _opened(make) as (_, _, elapsed_ms):
            found.append(elapsed_ms)
        await asyncio.sleep(PAUSE_S)
    return found


@contextlib.asynccontextmanager
async def _opened(make: str) -> AsyncIterator[tuple[RTCDataChannel, RTCDataChannel, float]]:
    """Both ends of a channel between two connections of this process, the offerer's first, and how long that took."""
    offerer, answerer = _connection(make), _connection(make)
    opened = asyncio.Event()
    theirs: list[RTCDataChannel] = []
    answerer.on("datachannel", theirs.append)
    # aiortc's own tells none.
    offerer.on("icecandidate", answerer.addIceCandidate)
    answerer.on("icecandidate", offerer.addIceCandidate)
    begun = time.perf_counter()
    channel = offerer.createDataChannel("bench")
    channel.on("open", opened.set)
    await offerer.setLocalDescription(await offerer.createOffer())
    await answerer.setRemoteDescription(offerer.localDescription)
    await answerer.setLocalDescription(await answerer.createAnswer())
    await offerer.setRemoteDescription(answerer.localDescription)
    await opened.wait()
    yield channel, theirs[0], (time.perf_counter() - begun) * 1000
    await asyncio.gather(offerer.close(), answerer.close())


def _described(namespace: Namespace, options: Options) -> Metric:
    found: dict[str, list[float]] = {make: [] for make in MAKES}
    for number in range(options.rounds):
        options.tell(f"rtc: setLocalDescription, round {number + 1}")
        for make in _in_turns(number):
            found[make].append(call(namespace, "bench.cases.rtc:described", make=make))
    metric = _metric("setLocalDescription with a STUN server that is silent, the slowest of six", "ms", found)
    return replace(metric, worst_at_most=DESCRIBED_MS)


async def described(make: str) -> float:
    """Milliseconds until ``setLocalDescription`` returns, at worst; the first of a process is one of them. aiortc's,
    which takes five seconds each time, is asked once.
    """
    found = []
    for _ in range(TRIALS if make == "ours" else 1):
        connection = _connection(make, SILENT)
        connection.on("icecandidate", lambda _: None)
        connection.createDataChannel("bench")
        offer = await connection.createOffer()
        begun = time.perf_counter()
        await connection.setLocalDescription(offer)
        found.append((time.perf_counter() - begun) * 1000)
        await connection.close()
    return max(found)


def _cost(namespace: Namespace, options: Options) -> Metric:
    found: dict[str, list[float]] = {make: [] for make in MAKES}
    for number in range(options.rounds):
        options.tell(f"rtc: megabytes, round {number + 1}")
        for make in _in_turns(number):
            found[make].append(call(namespace, "bench.cases.rtc:megabytes", make=make))
    return _metric("data channel, a megabyte in messages of 16 KiB, both ends", "ms of CPU", found)


async def megabytes(make: str) -> float:
    """Milliseconds of processor time, of both ends, for each megabyte that arrived."""
    arrived, drained, is_over = 0, asyncio.Event(), asyncio.Event()

    def on_message(message: bytes) -> None:
        nonlocal arrived
        arrived += len(message)
        if arrived >= MEGABYTES * MEGABYTE:
            is_over.set()

    async with _opened(make) as (channel, theirs, _):
        channel.bufferedAmountLowThreshold = BUFFER // 2
        channel.on("bufferedamountlow", drained.set)
        theirs.on("message", on_message)
        begun = time.process_time()
        for _ in range(-(-MEGABYTES * MEGABYTE // len(MESSAGE))):
            channel.send(MESSAGE)
            if channel.bufferedAmount > BUFFER:
                drained.clear()
                await drained.wait()
        await is_over.wait()
        return (time.process_time() - begun) * 1000 / (arrived / MEGABYTE)


# --- behind NATs ------------------------------------------------------------------------------------------------------


def _behind_nats(delay_s: float, options: Options) -> Metric:
    from iceagent.lab import Impairment, Lab
    from iceagent.lab.services import serve

    found: dict[str, list[float]] = {make: [] for make in MAKES}
    label = f", {delay_s * 1000:.0f} ms each way" if delay_s else ""
    with Lab() as lab:
        stun = lab.machine()
        serve(stun)
        cable = Impairment(delay_s=delay_s) if delay_s else None
        ends = [lab.machine(behind=lab.router(KIND, impairment=cable)).namespace for _ in range(2)]
        for number in range(options.rounds):
            options.tell(f"rtc: behind NATs{label}, round {number + 1}")
            for make in _in_turns(number):
                found[make].append(_sessions_ms(ends, make, f"stun:{stun.address}"))
    return _metric(
        f"data channel open, two {KIND} NATs{label}", "ms", found, ratio_at_least=None if delay_s else TARGET_RATIO
    )


def _sessions_ms(ends: list[Namespace], make: str, stun: str) -> float:
    """The median of a few sessions between the same two processes, after one that is not counted."""
    with (
        Worker(ends[0], "bench.cases.rtc:side", make=make, offers=True, stun=stun) as offerer,
        Worker(ends[1], "bench.cases.rtc:side", make=make, offers=False, stun=stun) as answerer,
        ThreadPoolExecutor() as threads,
    ):
        times = []
        for _ in range(1 + SESSIONS):
            for worker in (answerer, offerer):
                worker.send("begin")
            ways = ((offerer, answerer), (answerer, offerer))
            opened = [threads.submit(_carry, source, target) for source, target in ways]
            times.append(next(ms for each in opened if (ms := each.result()) is not None))
    return statistics.median(times[1:])


def _carry(source: Worker, target: Worker) -> float | None:
    """Carry what one end signals to the other, until the session has ended; when it was open, if this end saw it."""
    opened_ms = None
    while "ended" not in (said := source.reply(LIMIT_S)):
        if "opened_ms" in said:
            opened_ms = said["opened_ms"]
            for worker in (source, target):
                worker.send("end")
        else:
            target.send("take", signal=said)
    return opened_ms


async def side(make: str, offers: bool, stun: str) -> None:
    """One end, session after session: what it signals goes to standard output, what the other signals comes in."""
    from aiortc import RTCIceCandidate, RTCSessionDescription

    async def begin() -> RTCPeerConnection:
        connection = _connection(make, stun)
        connection.on("icecandidate", lambda found: _say(candidate=None if found is None else asdict(found)))
        if offers:
            begun = time.perf_counter()
            channel = connection.createDataChannel("bench")
            channel.on("open", lambda: _say(opened_ms=(time.perf_counter() - begun) * 1000))
            await connection.setLocalDescription(await connection.createOffer())
            _say(description=asdict(connection.localDescription))
        return connection

    async def take(connection: RTCPeerConnection, signal: dict[str, Any]) -> None:
        if "candidate" in signal:
            found = signal["candidate"]
            await connection.addIceCandidate(None if found is None else RTCIceCandidate(**found))
            return
        await connection.setRemoteDescription(RTCSessionDescription(**signal["description"]))
        if not offers:
            await connection.setLocalDescription(await connection.createAnswer())
            _say(description=asdict(connection.localDescription))

    connection: RTCPeerConnection | None = None
    async for request in _requests():
        if request["do"] == "begin":
            connection = await begin()
        elif connection is not None and request["do"] == "take":
            await take(connection, request["signal"])
        elif connection is not None:
            await connection.close()
            connection = None
            _say(ended=True)


async def _requests() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while line := await reader.readline():
        yield json.loads(line)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


# --- both -------------------------------------------------------------------------------------------------------------


def _connection(make: str, stun: str | None = None) -> RTCPeerConnection:
    """Of one make, with its defaults, and a list of servers: without one, aiortc would ask a public server."""
    from aiortc import RTCConfiguration, RTCIceServer

    module, name = MAKES[make]
    servers = [] if stun is None else [RTCIceServer(urls=stun)]
    made: RTCPeerConnection = getattr(importlib.import_module(module), name)(RTCConfiguration(iceServers=servers))
    return made


def _metric(name: str, unit: str, found: dict[str, list[float]], *, ratio_at_least: float | None = None) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        ours=found["ours"],
        peer=found["aiortc"],
        peer_name="aiortc",
        ratio_at_least=ratio_at_least,
    )
