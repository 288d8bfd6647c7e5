"""What does aiortc hold in place of aioice's ``Connection``?

An :class:`AgentConnection`: the fifteen names that aiortc uses of that class, on an :class:`iceagent.Agent`. It lives
as long as its transport, whatever becomes of the paths below: in ``disconnected`` and ``failed``, what is sent is
dropped and who receives waits, because both may end, by a better path or an ICE restart; DTLS and SCTP repeat what they
need. Only closing ends it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

import aioice

from iceagent.agent import Agent
from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.credentials import Credentials
from iceagent.datapath import MAX_RECEIVE_BYTES, MAX_RECEIVE_QUEUE
from iceagent.description import MAX_CANDIDATES, Description
from iceagent.errors import AgentClosed, NoPath, UnsupportedCandidate
from iceagent.events import AgentState, Event, PeerClosed
from iceagent.net.host import Host
from iceagent.rtc.candidates import from_aioice, to_aioice

__all__ = ["AgentConnection", "report"]


class AgentConnection:
    """An ICE connection as aiortc uses it.

    Args:
        config: the agent's.
        host: see :class:`iceagent.Agent`.
        credentials: ours; ``None``: drawn.
        on_event: called with what the agent tells, in order.

    Attributes:
        agent: that does it all.
        remote_is_lite, remote_username, remote_password: of the peer's description.
        remote_options: its ice-options.
        remote_pacing_ms: the Ta that it proposes, milliseconds (RFC 8839, 5.5); ``None``: it does not.
        counters: what was dropped, by reason in words.
        closing: the agent's end, once that has begun.
    """

    def __init__(
        self, config: Config, host: Host | None, credentials: Credentials | None, on_event: Callable[[Event], None]
    ) -> None:
        self.agent = Agent(config, controlling=False, host=host, credentials=credentials)
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None
        self.remote_options: tuple[str, ...] = ()
        self.remote_pacing_ms: int | None = None
        self.counters: Counter[str] = Counter()
        self.closing: asyncio.Future[None] | None = None
        # Candidates that came before the peer's credentials did.
        self._early: list[Candidate] = []
        self._is_early_complete = False
        self._known: Credentials | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._receiver: asyncio.Future[None] | None = None
        self._has_ended = asyncio.Event()
        self._is_closed = False
        self._is_peer_gone = False
        self._was_connected = False
        self._on_event = on_event
        self.agent.set_data_handler(self._on_data)
        # Now: what is gathered may be there before the task runs.
        self._events = self.agent.events()
        self._pump = asyncio.ensure_future(self._hear())

    @property
    def is_over(self) -> bool:
        """Whether everything is closed, behind it too."""
        return self.closing is not None and self.closing.done()

    # --- what aiortc reads and sets ------------------------------------------------------------------------------

    @property
    def ice_controlling(self) -> bool:
        """Our role."""
        return self.agent.controlling

    @ice_controlling.setter
    def ice_controlling(self, value: bool) -> None:
        self.agent.set_role(controlling=value)

    @property
    def local_username(self) -> str:
        """Our user name fragment, of the present generation."""
        return self.agent.local_description.credentials.ufrag

    @property
    def local_password(self) -> str:
        """And its password."""
        return self.agent.local_description.credentials.password

    @property
    def local_candidates(self) -> list[aioice.Candidate]:
        """Found so far."""
        return [to_aioice(candidate) for candidate in self.agent.local_candidates]

    @property
    def remote_candidates(self) -> list[aioice.Candidate]:
        """The peer's, known so far."""
        return [to_aioice(candidate) for candidate in (*self._early, *self.agent.remote_candidates)]

    # --- what aiortc calls ---------------------------------------------------------------------------------------

    async def gather_candidates(self) -> None:
        """Gather, and wait until that is done, at most ``Config.gather_timeout_s``."""
        await self.agent.gather()

    async def add_remote_candidate(self, candidate: aioice.Candidate | None) -> None:
        """Take one of the peer's; ``None``: the last one has come. What is not known here is dropped and counted.

        Raises:
            InvalidCandidate: it breaks the grammar.
        """
        if candidate is None:
            self.end_candidates()
            return
        try:
            ours = from_aioice(candidate)
        except UnsupportedCandidate:
            self.counters["remote candidates of an unknown kind"] += 1
        else:
            self.add_candidate(ours)

    def add_candidate(self, candidate: Candidate) -> None:
        """Take one of the peer's."""
        if self._is_closed:
            return
        if self._known is not None:
            self.agent.add_remote_candidate(candidate)
        elif len(self._early) < MAX_CANDIDATES:
            self._early.append(candidate)
        else:
            self.counters["remote candidates over the limit"] += 1

    def end_candidates(self) -> None:
        """The last one of this generation has come."""
        if self._is_closed:
            return
        if self._known is None:
            self._is_early_complete = True
        else:
            self.agent.end_remote_candidates()

    async def connect(self) -> None:
        """Check, and wait until there is a path.

        Raises:
            ConnectionError: there is none, or the connection was closed.
            InvalidDescription: the peer's credentials break the grammar.
        """
        self.begin()
        try:
            await self.agent.connect()
        except AgentClosed as error:
            raise ConnectionError(str(error)) from error

    def begin(self) -> None:
        """Take the peer's credentials as they are set; others than before are an ICE restart (RFC 8445, 9).

        Raises:
            ConnectionError: the connection was closed, or there are no credentials.
            InvalidDescription: they break the grammar.
        """
        if self._is_closed:
            raise ConnectionError("the connection is closed")
        if self.remote_username is None or self.remote_password is None:
            raise ConnectionError("the peer's ICE credentials are not known")
        credentials = Credentials(ufrag=self.remote_username, password=self.remote_password)
        if credentials == self._known:
            return
        early, self._early = self._early, []
        description = Description(
            credentials=credentials,
            options=self.remote_options,
            pacing_ms=self.remote_pacing_ms,
            lite=self.remote_is_lite,
            candidates=tuple(early),
            complete=self._is_early_complete,
        )
        self._known, self._is_early_complete = credentials, False
        self.agent.set_remote_description(description)

    def is_restart(self, ufrag: str | None, password: str | None) -> bool:
        """Whether the peer's description asks for an ICE restart: it had other credentials before."""
        return self._known is not None and (ufrag, password) != (self._known.ufrag, self._known.password)

    def restart(self) -> None:
        """Draw new credentials of ours (RFC 8445, 9); the peer's come with its description, be they the same."""
        self.agent.restart()
        self._known = None

    async def recv(self) -> bytes:
        """The next datagram; waits as long as the connection lives. Cancelling loses none.

        Raises:
            ConnectionError: it is closed, or the peer has closed, and all that came before that was taken.
        """
        while not self._waiting:
            if self._is_closed or self._is_peer_gone:
                raise ConnectionError("the connection is closed")
            receiver = self._receiver = asyncio.get_running_loop().create_future()
            try:
                await receiver
            finally:
                self._receiver = None
        data = self._waiting.popleft()
        self._waiting_bytes -= len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Send a datagram; without a path it is lost, as on any network.

        Raises:
            ConnectionError: the connection is closed.
        """
        try:
            self.agent.send(data)
        except NoPath:
            self.counters["datagrams without a path"] += 1
        except AgentClosed:
            raise ConnectionError("the connection is closed") from None

    async def get_event(self) -> aioice.ConnectionClosed:
        """Waits for the end, of the last path or of the connection."""
        await self._has_ended.wait()
        return aioice.ConnectionClosed()

    async def close(self) -> None:
        """Close; idempotent. At most a second where there is something to give back; at once where no path ever was,
        and :attr:`closing` says when that is over.
        """
        self._is_closed = True
        self._has_ended.set()
        self._wake()
        if self.closing is None:
            self.closing = asyncio.ensure_future(self._close_agent())
        if self._was_connected:
            await asyncio.shield(self.closing)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _close_agent(self) -> None:
        await self.agent.aclose()
        await asyncio.gather(self._pump, return_exceptions=True)

    def _on_data(self, data: bytes, component: int) -> None:
        if not data:
            # aiortc reads the first byte of whatever comes.
            self.counters["empty datagrams"] += 1
        elif len(self._waiting) >= MAX_RECEIVE_QUEUE or self._waiting_bytes + len(data) > MAX_RECEIVE_BYTES:
            self.counters["datagrams nobody took"] += 1
        else:
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._wake()

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    async def _hear(self) -> None:
        async for event in self._events:
            if self.agent.state is AgentState.CONNECTED:
                self._was_connected = True
            elif self.agent.state is AgentState.FAILED and self._was_connected:
                self._has_ended.set()
            if isinstance(event, PeerClosed):
                # What it said last, DTLS's goodbye among it, may not be taken yet.
                self._is_peer_gone = True
                self._wake()
            try:
                self._on_event(event)
            except Exception as error:  # A bug of ours must not end the story.
                report(error)


def report(error: Exception) -> None:
    """A listener of the application's raised; the others hear all the same. (An emitter without a listener to ``error``
    raises that where it was about to tell the next one.)
    """
    asyncio.get_running_loop().call_exception_handler({"message": "a listener raised", "exception": error})
