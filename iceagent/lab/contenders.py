"""Which ICE agents can play in a laboratory, and how is each spoken to?

Ours, and aioice as a baseline that people know. Each is made on the running loop and plays one side of a session
(``session.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from iceagent.agent import Agent
from iceagent.candidate import CandidateType
from iceagent.config import Config, IceServer
from iceagent.description import Description
from iceagent.errors import AgentClosed
from iceagent.events import Event, LocalCandidateFound, Path, SelectedPathChanged
from iceagent.lab.errors import LabError
from iceagent.lab.machines import Machine
from iceagent.net.address import TransportAddress

__all__ = ["CONTENDERS", "Contender", "Ours", "Relay", "Theirs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A TURN server that both sides may use.

    Attributes:
        udp: where it listens over UDP.
        tcp: where it listens over TCP: port 443, for who gets nowhere else.
        username: of its only user.
        password: see there.
    """

    udp: TransportAddress
    tcp: TransportAddress
    username: str = "lab"
    password: str = field(default="lab", repr=False)


class Contender(Protocol):
    """One side of a session.

    Attributes:
        types: of the selected pair: the local candidate's and the remote one's; ``None`` before one is selected.
    """

    @property
    def types(self) -> tuple[CandidateType, CandidateType] | None: ...

    async def gather(self) -> Any:
        """Gather, and return what is to be told to the peer."""

    def on_late(self, tell: Callable[[Any], None]) -> None:
        """Call ``tell`` with every candidate that is found after :meth:`gather` returned."""

    def take_late(self, candidate: Any) -> None:
        """Take such a candidate of the peer."""

    async def connect(self, told: Any) -> None:
        """Connect to a peer that told this.

        Raises:
            Exception: it cannot be connected to.
        """

    async def send(self, data: bytes) -> None: ...

    async def recv(self) -> bytes: ...

    async def close(self) -> None: ...


class Ours:
    """An :class:`iceagent.Agent`.

    Args:
        machine: where.
        controlling: its role.
        stun: a server to ask; ``None``: none.
        turn: a server to relay; ``None``: none.
        config: of the agent, but for its servers.
        on_event: hears every event of it.
    """

    is_threaded = False

    def __init__(
        self,
        machine: Machine,
        *,
        controlling: bool,
        stun: TransportAddress | None,
        turn: Relay | None = None,
        config: Config | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        config = config or Config()
        if stun is not None:
            config = _with_servers(config, stun, turn)
        self.agent = Agent(config, controlling=controlling, host=machine.host)
        self._on_event = on_event
        self._tell: Callable[[Any], None] | None = None
        # The other side may close first.
        self._last_path: Path | None = None
        self._following = asyncio.ensure_future(self._follow())

    @property
    def types(self) -> tuple[CandidateType, CandidateType] | None:
        path = self.agent.path() or self._last_path
        return None if path is None else (path.local.type, path.remote.type)

    async def gather(self) -> Description:
        return await self.agent.gather()

    def on_late(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def take_late(self, candidate: Any) -> None:
        # It may come when this side has just seen all that it wanted to see.
        with contextlib.suppress(AgentClosed):
            self.agent.add_remote_candidate(candidate)

    async def connect(self, told: Any) -> None:
        self.agent.set_remote_description(told)
        await self.agent.connect()

    async def send(self, data: bytes) -> None:
        self.agent.send(data)

    async def recv(self) -> bytes:
        return await self.agent.recv()

    async def close(self) -> None:
        await self.agent.aclose()
        await self._following

    async def _follow(self) -> None:
        async for event in self.agent.events():
            if self._on_event is not None:
                self._on_event(event)
            if isinstance(event, SelectedPathChanged):
                self._last_path = event.new or event.old
            elif isinstance(event, LocalCandidateFound) and self._tell is not None:
                self._tell(event.candidate)


class Theirs:
    """An ``aioice.Connection``. It opens its sockets where the running thread is, so that has to be inside."""

    is_threaded = True

    def __init__(
        self,
        machine: Machine,
        *,
        controlling: bool,
        stun: TransportAddress | None,
        turn: Relay | None = None,
        config: Config | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        from aioice import Connection

        # It takes one TURN server over one transport: the one that gets through everywhere.
        self._connection = Connection(
            ice_controlling=controlling,
            stun_server=None if stun is None else (stun.host, stun.port),
            turn_server=None if turn is None else (turn.tcp.host, turn.tcp.port),
            turn_username=None if turn is None else turn.username,
            turn_password=None if turn is None else turn.password,
            turn_transport="tcp",
            use_ipv6=False,
        )

    @property
    def types(self) -> tuple[CandidateType, CandidateType] | None:
        pair = self._connection._nominated.get(1)
        if pair is None:
            return None
        return CandidateType(pair.local_candidate.type), CandidateType(pair.remote_candidate.type)

    async def gather(self) -> Any:
        await self._connection.gather_candidates()
        mine = self._connection
        return mine.local_username, mine.local_password, mine.local_candidates

    def on_late(self, tell: Callable[[Any], None]) -> None:
        """It finds none."""

    def take_late(self, candidate: Any) -> None:
        """It takes none."""

    async def connect(self, told: Any) -> None:
        self._connection.remote_username, self._connection.remote_password, candidates = told
        for candidate in candidates:
            await self._connection.add_remote_candidate(candidate)
        await self._connection.add_remote_candidate(None)
        await self._connection.connect()

    async def send(self, data: bytes) -> None:
        await self._connection.send(data)

    async def recv(self) -> bytes:
        data: bytes = await self._connection.recv()
        return data

    async def close(self) -> None:
        # It raises what its checks raised, long after those.
        with contextlib.suppress(ConnectionError):
            await self._connection.close()


CONTENDERS: dict[str, type[Ours] | type[Theirs]] = {"iceagent": Ours, "aioice": Theirs}


def _with_servers(config: Config, stun: TransportAddress, turn: Relay | None) -> Config:
    if config.servers:
        raise LabError("a session has one STUN server: the laboratory's")
    servers = [IceServer(urls=(f"stun:{stun}",))]
    if turn is not None:
        urls = (f"turn:{turn.udp}?transport=udp", f"turn:{turn.tcp}?transport=tcp")
        servers.append(IceServer(urls=urls, username=turn.username, credential=turn.password))
    return replace(config, servers=tuple(servers))
