"""aioice as a contender.

It gathers every address but 127.0.0.1 by itself, so that loopback addresses need no mention.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import aioice

from bench.contenders import TURN_PASSWORD, TURN_USER

__all__ = ["AioiceContender", "FixedAioiceContender"]

# Any datagram fits; the 256 KiB that asyncio allocates for each one are gone.
MAX_SIZE = 2048


class AioiceContender:
    """See :class:`bench.contenders.Contender`."""

    def __init__(
        self,
        *,
        controlling: bool,
        loopback_hosts: Sequence[str] = (),
        stun: tuple[str, int] | None = None,
        turn: tuple[str, int] | None = None,
    ) -> None:
        self.connection = aioice.Connection(
            controlling,
            stun_server=stun,
            turn_server=turn,
            turn_username=TURN_USER,
            turn_password=TURN_PASSWORD,
            use_ipv6=False,
            transport_policy=aioice.TransportPolicy.ALL if turn is None else aioice.TransportPolicy.RELAY,
        )

    async def gather(self) -> None:
        await self.connection.gather_candidates()

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


class FixedAioiceContender(AioiceContender):
    """Its transports allocate 2,048 bytes per datagram."""

    async def gather(self) -> None:
        await super().gather()
        for protocol in self.connection._protocols:
            relayed = getattr(protocol.transport, "_TurnTransport__inner_protocol", None)
            transport = protocol.transport if relayed is None else relayed.transport
            transport.max_size = MAX_SIZE  # type: ignore[union-attr]
