"""Two agents on loopback, for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from iceagent import Agent, Config

IPV4 = ("127.0.0.1",)


def config(*, hosts: tuple[str, ...] = IPV4, **options: object) -> Config:
    """A configuration that gathers on loopback addresses only."""
    return Config(loopback=True, bind_hosts=hosts, **options)  # type: ignore[arg-type]


async def exchange(a: Agent, b: Agent) -> None:
    """Gather on both sides, and tell each the other's description."""
    mine, theirs = await asyncio.gather(a.gather(), b.gather())
    a.set_remote_description(theirs)
    b.set_remote_description(mine)


@asynccontextmanager
async def connected(first: Config | None = None, second: Config | None = None) -> AsyncIterator[tuple[Agent, Agent]]:
    """Two agents with a path between them; the first is controlling."""
    async with Agent(first or config(), controlling=True) as a, Agent(second or config(), controlling=False) as b:
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        yield a, b
