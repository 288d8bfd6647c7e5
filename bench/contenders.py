"""Both agents behind one face, as thin as it can be.

Descriptions are text on both sides: parsing them is part of connecting. Each agent is used with its defaults; what
differs is written where it does. Connected means what the agent itself calls so: ours has a valid pair and sends on it;
aioice has nominated one.
"""

from __future__ import annotations

import json
from typing import Protocol

import aioice

from iceagent import Agent, Config, IceServer

__all__ = ["CONTENDERS", "AioiceContender", "Contender", "OurContender", "contender"]

# aioice allocates 256 KiB for every datagram it receives, as asyncio's transports do; this is what the fix would be.
FIXED_MAX_SIZE = 2048


class Contender(Protocol):
    """An ICE agent under measurement."""

    async def gather(self) -> None:
        """Find candidates, and wait until that is done."""

    def description(self) -> str:
        """What the other side is to be told."""

    async def set_remote(self, description: str) -> None:
        """Take what the other side's :meth:`description` gave, as all there is."""

    async def connect(self) -> None:
        """Wait until connected."""

    async def send(self, data: bytes) -> None:
        """Send one datagram."""

    async def recv(self) -> bytes:
        """The next datagram."""

    async def close(self) -> None:
        """Close."""


class OurContender:
    """iceagent."""

    def __init__(
        self, *, controlling: bool, loopback_hosts: tuple[str, ...] = (), stun: tuple[str, int] | None = None
    ) -> None:
        servers = () if stun is None else (IceServer(urls=(f"stun:{stun[0]}:{stun[1]}",)),)
        config = Config(loopback=bool(loopback_hosts), bind_hosts=loopback_hosts, servers=servers)
        self.agent = Agent(config, controlling=controlling)

    async def gather(self) -> None:
        await self.agent.gather()

    def description(self) -> str:
        return self.agent.local_description.to_sdp()

    async def set_remote(self, description: str) -> None:
        self.agent.set_remote_description(description)

    async def connect(self) -> None:
        await self.agent.connect()

    async def send(self, data: bytes) -> None:
        self.agent.send(data)

    async def recv(self) -> bytes:
        return await self.agent.recv()

    async def close(self) -> None:
        await self.agent.aclose()


class AioiceContender:
    """aioice 0.13.

    It gathers every address but 127.0.0.1 by itself. ``fixed``: its transports allocate 2,048 bytes per datagram.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        loopback_hosts: tuple[str, ...] = (),
        stun: tuple[str, int] | None = None,
        fixed: bool = False,
    ) -> None:
        self._fixed = fixed
        self.connection = aioice.Connection(controlling, stun_server=stun, use_ipv6=False)

    async def gather(self) -> None:
        await self.connection.gather_candidates()
        if self._fixed:
            for protocol in self.connection._protocols:
                protocol.transport.max_size = FIXED_MAX_SIZE  # type: ignore[attr-defined]

    def description(self) -> str:
        candidates = [candidate.to_sdp() for candidate in self.connection.local_candidates]
        return json.dumps([self.connection.local_username, self.connection.local_password, candidates])

    async def set_remote(self, description: str) -> None:
        connection = self.connection
        connection.remote_username, connection.remote_password, candidates = json.loads(description)
        for candidate in candidates:
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
        await connection.add_remote_candidate(None)

    async def connect(self) -> None:
        await self.connection.connect()

    async def send(self, data: bytes) -> None:
        await self.connection.send(data)

    async def recv(self) -> bytes:
        return await self.connection.recv()

    async def close(self) -> None:
        await self.connection.close()


CONTENDERS = ("ours", "aioice")


def contender(
    name: str,
    *,
    controlling: bool,
    loopback_hosts: tuple[str, ...] = (),
    stun: tuple[str, int] | None = None,
) -> Contender:
    """An agent by the name of its make: ``ours``, ``aioice`` or ``aioice fixed``."""
    if name == "ours":
        return OurContender(controlling=controlling, loopback_hosts=loopback_hosts, stun=stun)
    fixed = name == "aioice fixed"
    return AioiceContender(controlling=controlling, loopback_hosts=loopback_hosts, stun=stun, fixed=fixed)
