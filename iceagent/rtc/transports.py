"""How do ORTC's gatherer and transport run on an agent?

:class:`IceGatherer` and :class:`IceTransport` stand where aiortc's ``RTCIceGatherer`` and ``RTCIceTransport`` do. Their
states are W3C's: where aiortc goes from ``checking`` to ``completed`` and knows nothing between that and ``failed``,
there are ``connected``, ``completed``, ``disconnected`` and back, and ``failed`` is left by an ICE restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import aioice
from aiortc import RTCIceCandidate, RTCIceGatherer, RTCIceParameters, RTCIceServer, RTCIceTransport
from aiortc.exceptions import InvalidStateError
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from iceagent.agent import Agent
from iceagent.config import IceServer
from iceagent.credentials import Credentials
from iceagent.errors import UnsupportedCandidate
from iceagent.events import (
    AgentState,
    BaseFailed,
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    Nominated,
    Path,
    PeerClosed,
    SelectedPathChanged,
    ServerFailed,
    StateChanged,
)
from iceagent.net.address import TransportAddress
from iceagent.net.host import Host
from iceagent.rtc.candidates import from_aiortc
from iceagent.rtc.configuration import agent_config
from iceagent.rtc.connection import AgentConnection, report

__all__ = ["DISCONNECTED_S", "REGATHER_S", "UNREACHABLE", "IceCandidateError", "IceGatherer", "IceTransport"]

UNREACHABLE = 701
"""W3C: the error code where no STUN error response was received."""

REGATHER_S = 0.5
"""After a restart the sockets and their candidates are there already, and are told in the next description; servers are
asked again, and an interface that has just come up settles (0.25 s): what that gives is waited for as long as this.
"""

DISCONNECTED_S = 30.0
"""So long a transport is ``disconnected`` before it is called ``failed``: stock aiortc closes after as long, as consent
ends (RFC 7675, 5.1). The agent goes on trying what there is, and what answers after all makes it ``connected``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IceCandidateError:
    """Why a server, or an address of ours, gives no candidate: W3C's ``RTCPeerConnectionIceErrorEvent``.

    Attributes:
        url: the server's; empty: no socket could be had on an address of ours.
        address, port: from where it was asked; ``None``: it was not, or no port could be had.
        errorCode: of its STUN error response (RFC 8489, 14.8), such as 401; 701: there was none.
        errorText: for a person.
    """

    url: str
    address: str | None
    port: int | None
    errorCode: int
    errorText: str


class IceGatherer(RTCIceGatherer):
    """Gathers candidates with an agent of its own.

    Events: ``statechange``, ``candidate`` with each :class:`iceagent.Candidate` that is found, and ``candidateerror``
    with an :class:`IceCandidateError`.

    Args:
        iceServers: all of them are used, with all their URLs; none: no server is asked.
        iceTransportPolicy: ``RELAY``: nothing leaves but to TURN servers.
        local_username, local_password: our credentials; ``None``: drawn.
        host: whose sockets; ``None``: this machine's.
        options: fields of :class:`iceagent.Config`, such as ``port_range`` or ``interface_filter``, instead of
            :data:`iceagent.rtc.RTC_DEFAULTS`.

    Raises:
        UsageError: see :class:`iceagent.Config`.

    Attributes:
        connection: what stands in place of aioice's.
    """

    def __init__(
        self,
        iceServers: Sequence[RTCIceServer | IceServer] | None = None,
        iceTransportPolicy: RTCIceTransportPolicy = RTCIceTransportPolicy.ALL,
        local_username: str | None = None,
        local_password: str | None = None,
        *,
        host: Host | None = None,
        **options: Any,
    ) -> None:
        # Not aiortc's own constructor, which makes a connection of aioice's.
        super(RTCIceGatherer, self).__init__()
        credentials = None
        if local_username is not None and local_password is not None:
            credentials = Credentials(ufrag=local_username, password=local_password)
        config = agent_config(iceServers, iceTransportPolicy, options)
        self.connection = AgentConnection(config, host, credentials, self._on_event)
        # Where aiortc looks for it.
        self._connection = cast(aioice.Connection, self.connection)
        self._remote_candidates_end = False
        self._state = "new"
        self._completed = asyncio.Event()
        self._is_to_gather_again = False
        self._regathering: asyncio.TimerHandle | None = None
        self.on("error", report)

    @property
    def agent(self) -> Agent:
        """That does it."""
        return self.connection.agent

    @property
    def state(self) -> str:
        """``new``, ``gathering`` or ``completed``."""
        return self._state

    def start(self) -> None:
        """Begin, for the first time or after a restart; candidates come as events. Idempotent."""
        if self._state == "new":
            self._set_state("gathering")
            self.agent.start_gathering()
        elif self._is_to_gather_again:
            self._is_to_gather_again = False
            if self._regathering is not None:
                self._regathering.cancel()
            self._regathering = asyncio.get_running_loop().call_later(REGATHER_S, self._end_regathering)

    async def gather(self) -> None:
        """Gather, and wait until that is done: ``Config.gather_timeout_s`` at most."""
        self.start()
        await self._completed.wait()

    def restart(self) -> None:
        """Take new credentials: an ICE restart of ours, or what an offer of the peer's that asks for one is answered by
        (RFC 8839, 4.4.2.1). What the network has become by now is gathered with the next :meth:`start`.
        """
        self.connection.restart()
        self._is_to_gather_again = True
        self._set_state("gathering")

    def _end_regathering(self) -> None:
        """Unless the first gathering goes on, whose end is told."""
        if self.agent.local_description.complete:
            self._set_state("completed")

    def end(self) -> None:
        """The transport was closed: nobody waits any longer."""
        if self._regathering is not None:
            self._regathering.cancel()
        self._completed.set()

    @classmethod
    def getDefaultIceServers(cls) -> list[RTCIceServer]:
        """None: nobody is asked who was not named."""
        return []

    def _on_event(self, event: Event) -> None:
        if isinstance(event, LocalCandidateFound):
            self.emit("candidate", event.candidate)
        elif isinstance(event, GatheringDone):
            self._set_state("completed")
        elif isinstance(event, ServerFailed):
            at = event.base
            code = UNREACHABLE if event.code is None else event.code
            error = IceCandidateError(
                url=event.server,
                address=None if at is None else at.host,
                port=None if at is None else at.port,
                errorCode=code,
                errorText=event.reason,
            )
            self.emit("candidateerror", error)
        elif isinstance(event, BaseFailed):
            error = IceCandidateError(
                url="", address=event.host, port=None, errorCode=UNREACHABLE, errorText=event.reason
            )
            self.emit("candidateerror", error)
        self.emit("event", event)

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            if state == "completed":
                self._completed.set()
            else:
                self._completed.clear()
            self.emit("statechange")


class IceTransport(RTCIceTransport):
    """Carries datagrams over whatever path is best.

    Events: ``statechange``, and ``selectedcandidatepairchange`` when data takes another path.

    Args:
        gatherer: one of ours.

    Attributes:
        gatherer, connection: that it was made of.
        tagged: the peer's parameters in the section that all are bundled in (BUNDLE, RFC 9143): the others' may differ,
            and say nothing. ``None``: not known.
        selections: how often data took another path, the first one included.
    """

    def __init__(self, gatherer: IceGatherer) -> None:
        super().__init__(gatherer)
        self.gatherer = gatherer
        self.connection = gatherer.connection
        self.tagged: RTCIceParameters | None = None
        self.selections = 0
        self._ends: tuple[TransportAddress, TransportAddress, TransportAddress] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self.on("error", report)
        self._ice_state = "new"
        self._is_nominated = False
        self._is_peer_gone = False
        self._started: asyncio.Future[None] | None = None
        gatherer.on("event", self._on_event)

    @property
    def agent(self) -> Agent:
        """That does it."""
        return self.connection.agent

    def path(self) -> Path | None:
        """Where data goes now; ``path.kind`` is ``direct`` or ``relay``."""
        return self.agent.path()

    @property
    def state(self) -> str:
        """W3C's: ``new``, ``checking``, ``connected``, ``completed``, ``disconnected``, ``failed`` or ``closed``."""
        return self._ice_state

    async def addRemoteCandidate(self, candidate: RTCIceCandidate | None) -> None:
        """Take one of the peer's candidates, at any time; ``None``: the last one has come.

        Raises:
            InvalidCandidate: it breaks the grammar. Kinds that are not known here are ignored.
        """
        if candidate is None:
            self.connection.end_candidates()
            return
        try:
            self.connection.add_candidate(from_aiortc(candidate))
        except UnsupportedCandidate:
            self.connection.counters["remote candidates of an unknown kind"] += 1

    async def start(self, remoteParameters: RTCIceParameters, role: str | None = None) -> None:
        """Check, and wait until there is a path, or none. Called again, it waits for that, too; other parameters are
        for :meth:`take`.

        Args:
            remoteParameters: the peer's, where :attr:`tagged` does not say better.
            role: ``controlling`` or ``controlled``, as in ORTC; ``None``: as it is.

        Raises:
            InvalidStateError: the transport is closed.
            InvalidDescription: the parameters break the grammar.
        """
        if self._ice_state == "closed":
            raise InvalidStateError("RTCIceTransport is closed")
        if self._started is not None:
            await asyncio.shield(self._started)
            return
        if role is not None:
            self.agent.set_role(controlling=role == "controlling")
        self.take(self.tagged or remoteParameters)
        started = self._started = asyncio.get_running_loop().create_future()
        self._set_state("checking")
        try:
            await self.connection.connect()
        except ConnectionError:
            self._set_state("failed")
        finally:
            started.set_result(None)

    def take(self, remoteParameters: RTCIceParameters) -> None:
        """Take the peer's parameters, without waiting for anything. Others than before are an ICE restart of the
        peer's, or its answer to ours.

        Raises:
            InvalidDescription: they break the grammar.
        """
        connection = self.connection
        connection.remote_is_lite = remoteParameters.iceLite
        connection.remote_username = remoteParameters.usernameFragment
        connection.remote_password = remoteParameters.password
        connection.begin()

    async def stop(self) -> None:
        """Close, for good."""
        if self._ice_state == "closed":
            return
        self._set_state("closed")
        self.gatherer.end()
        await self.connection.close()
        # Nothing is told any more: whoever listens may be forgotten.
        self.gatherer.remove_all_listeners()
        self.remove_all_listeners()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._on_agent_state(event.new)
        elif isinstance(event, Nominated):
            self._is_nominated = True
            if self._ice_state == "connected":
                self._set_state("completed")
        elif isinstance(event, IceRestarted):
            self._is_nominated = False
        elif isinstance(event, PeerClosed):
            self._is_peer_gone = True
        elif isinstance(event, SelectedPathChanged):
            self._on_path(event.new)

    def _on_path(self, path: Path | None) -> None:
        ends = None if path is None else (path.base, path.local.address, path.remote.address)
        if ends != self._ends:
            self._ends = ends
            self.selections += ends is not None
            self.emit("selectedcandidatepairchange")

    def _on_agent_state(self, state: AgentState) -> None:
        if state is AgentState.CONNECTED:
            self._set_state("connected")
            if self._is_nominated:
                self._set_state("completed")
        elif state is AgentState.CHECKING:
            self._set_state("checking")
        elif state in (AgentState.DISCONNECTED, AgentState.FAILED) and not self._is_peer_gone:
            # A peer that has closed is no failure: DTLS ends, and everything with it.
            self._set_state(state.value)

    def _set_state(self, state: str) -> None:
        if self._ice_state in (state, "closed"):
            return
        self._ice_state = state
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if state == "disconnected":
            self._patience = asyncio.get_running_loop().call_later(DISCONNECTED_S, self._set_state, "failed")
        self.emit("statechange")
