"""One side of a session whose other side is another process: agents that do what the lines on standard input say."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from pathlib import Path

from bench.contenders import Contender, contender

__all__ = ["Side", "obey", "serve"]

# A description of 16 addresses has 2 KiB, and 200 agents stand in one line.
LINE_LIMIT = 1 << 24
DATA_TIMEOUT_S = 2.0
DATA_INTERVAL_S = 0.1


async def serve(name: str, controlling: bool, loopback_hosts: list[str]) -> None:
    """Obey until standard input ends. Every request has a reply; times are seconds of the system's monotonic clock.

    - ``gather`` (count): that many more agents; replies with their descriptions.
    - ``connect`` (descriptions): of the peers of those; replies with ``started`` and ``connected``, the time when the
      last
      of them was; ``null`` if it was not within ``limit_s``.
    - ``exchange``: the first agent sends and receives data; replies whether that worked.
    - ``cpu``: seconds of processor time of this process. ``memory``: its resident bytes, after a garbage collection.
    """
    await obey(Side(name, controlling, tuple(loopback_hosts)))


async def obey(side: object) -> None:
    """Do what the lines on standard input say, each of which names a coroutine method of ``side`` and has its
    arguments.
    """
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while line := await reader.readline():
        request = json.loads(line)
        reply = await getattr(side, request.pop("do"))(**request)
        print(json.dumps(reply), flush=True)


class Side:
    """The agents, and what can be asked of them: see :func:`serve`."""

    def __init__(
        self, name: str, controlling: bool, loopback_hosts: tuple[str, ...] = (), turn: tuple[str, int] | None = None
    ) -> None:
        self._name = name
        self._controlling = controlling
        self._loopback_hosts = loopback_hosts
        self._turn = turn
        self._agents: list[Contender] = []
        self._new: list[Contender] = []

    async def gather(self, count: int) -> list[str]:
        self._new = [
            contender(self._name, controlling=self._controlling, loopback_hosts=self._loopback_hosts, turn=self._turn)
            for _ in range(count)
        ]
        self._agents += self._new
        await asyncio.gather(*(agent.gather() for agent in self._new))
        return [agent.description() for agent in self._new]

    async def connect(self, descriptions: list[str], limit_s: float) -> dict[str, float | None]:
        started = time.monotonic()
        agents = list(zip(self._new, descriptions, strict=True))
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(_connect(agent, description) for agent, description in agents))
        except TimeoutError:
            return {"started": started, "connected": None}
        return {"started": started, "connected": time.monotonic()}

    async def exchange(self) -> bool:
        agent = self._agents[0]
        receiving = asyncio.ensure_future(agent.recv())
        deadline = time.monotonic() + DATA_TIMEOUT_S
        # Until the end even if the other side's arrived: it may not have got ours yet.
        while time.monotonic() < deadline and not receiving.done():
            await agent.send(b"\xc0 data")
            await asyncio.wait([receiving], timeout=DATA_INTERVAL_S)
        await agent.send(b"\xc0 data")
        receiving.cancel()
        return receiving.done() and not receiving.cancelled()

    async def cpu(self) -> float:
        return time.process_time()

    async def memory(self) -> int:
        gc.collect()
        return _resident()


async def _connect(agent: Contender, description: str) -> None:
    await agent.set_remote(description)
    await agent.connect()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
