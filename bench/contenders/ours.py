"""iceagent as a contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iceagent import Agent, Config, GatheringDone, IceServer, LocalCandidateFound

__all__ = ["OurContender", "OurContenderAlone", "OurContenderSingly"]


class OurContender:
    """See :class:`bench.contenders.Contender`."""

    options: Mapping[str, Any] = {}

    def __init__(
        self, *, controlling: bool, loopback_hosts: Sequence[str] = (), stun: tuple[str, int] | None = None
    ) -> None:
        servers = () if stun is None else (IceServer(urls=(f"stun:{stun[0]}:{stun[1]}",)),)
        config = Config(
            loopback=bool(loopback_hosts), bind_hosts=tuple(loopback_hosts), servers=servers, **self.options
        )
        self.agent = Agent(config, controlling=controlling)

    async def gather(self) -> None:
        await self.agent.gather()

    def description(self) -> str:
        return self.agent.local_description.to_sdp()

    async def set_remote(self, description: str) -> None:
        self.agent.set_remote_description(description)

    async def connect(self) -> None:
        await self.agent.connect()

    async def trickle_to(self, other: OurContender) -> None:
        """Gather, and signal every candidate to the other side when it is found; ends when this agent is closed."""
        events = self.agent.events()
        other.agent.set_remote_description(self.description())
        self.agent.start_gathering()
        async for event in events:
            if isinstance(event, LocalCandidateFound):
                other.agent.add_remote_candidate(event.candidate.to_sdp())
            elif isinstance(event, GatheringDone):
                other.agent.end_remote_candidates()

    async def send(self, data: bytes) -> None:
        self.agent.send(data)

    async def recv(self) -> bytes:
        return await self.agent.recv()

    async def close(self) -> None:
        await self.agent.aclose()


class OurContenderAlone(OurContender):
    """Shares no wake-ups with the other agents of its process."""

    options: Mapping[str, Any] = {"consent_slack_s": 0.0}


class OurContenderSingly(OurContender):
    """Puts no datagrams together."""

    options: Mapping[str, Any] = {"coalesce_s": 0.0}
