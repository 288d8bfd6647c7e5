"""iceagent as a contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.contenders import TURN_PASSWORD, TURN_USER
from iceagent import Agent, Config, GatheringDone, IceServer, LocalCandidateFound

__all__ = ["OurContender", "OurContenderAlone", "OurContenderSingly"]


class OurContender:
    """See :class:`bench.contenders.Contender`."""

    options: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        controlling: bool,
        loopback_hosts: Sequence[str] = (),
        stun: tuple[str, int] | None = None,
        turn: tuple[str, int] | None = None,
    ) -> None:
        servers = [IceServer(urls=(f"stun:{stun[0]}:{stun[1]}",))] if stun is not None else []
        if turn is not None:
            url = f"turn:{turn[0]}:{turn[1]}?transport=udp"
            servers.append(IceServer(urls=(url,), username=TURN_USER, credential=TURN_PASSWORD))
        config = Config(
            loopback=bool(loopback_hosts),
            bind_hosts=tuple(loopback_hosts),
            servers=tuple(servers),
            relay_only=turn is not None,
            ipv6=turn is None,
            **self.options,
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
