"""What does an application hold?

An :class:`Agent`: one ICE data stream over real (or injected) sockets. It gathers, signals through the application,
checks, connects, carries datagrams, and says what happens. The state machine is ``iceagent/core``; sockets and
candidates are ``iceagent/gather``; here they are joined, and here is the data path: a datagram goes from the socket
to the handler, and from ``send`` to the socket, without a task, a timer or the core.

    async with Agent(Config(servers=(IceServer(urls=("stun:stun.example.org",)),)), controlling=True) as agent:
        signal(await agent.gather())
        agent.set_remote_description(await their_description())
        await agent.connect()
        agent.send(b"hello")
        print(await agent.recv())
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from random import Random, SystemRandom
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.core.path_message import OPTION
from iceagent.core.session import IceSession
from iceagent.core.wakeups import WakeUps
from iceagent.credentials import Credentials
from iceagent.datapath import DataPath
from iceagent.description import Description
from iceagent.errors import (
    AgentClosed,
    ConnectFailed,
    ConsentLost,
    UnsupportedPlatform,
    UsageError,
)
from iceagent.events import (
    AgentState,
    BetterPathSought,
    DataReceived,
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    NetworkChanged,
    Nominated,
    Path,
    PathDoubted,
    PathTrusted,
    RelayLost,
    RelayMoved,
    RemoteCandidateAdded,
    RerollDue,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.eventstream import EventStream
from iceagent.gather.bases import Base
from iceagent.gather.gathering import Gathering
from iceagent.gather.mdns import MdnsNames
from iceagent.history import EMPTY, HistoryEntry, Ring, entries, newest_name, noted
from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.net.driver import GAP_S, Driver
from iceagent.net.host import Host
from iceagent.net.local import local_host
from iceagent.net.netlink import preload
from iceagent.outgoing import Outgoing
from iceagent.statistics import AgentStatistics, PairStatistics

__all__ = ["Agent"]

T = TypeVar("T")

# Candidates with names that are being resolved; what comes beyond is refused unresolved.
_MAX_NAMED_CANDIDATES = 100

_system_rng = SystemRandom()
# What all agents of a host share: the ceiling of checks and queries per second, and the moments of consent checks.
_shared: WeakKeyDictionary[Host, tuple[TokenBucket, WakeUps]] = WeakKeyDictionary()


class Agent(DataPath):
    """A full ICE agent. Belongs to the running loop; not thread-safe.

    Args:
        config: see there.
        controlling: our initial role; the side that began signalling is controlling (RFC 8445, 6.1.1).
        host: whose sockets and interfaces; this machine's if not given.
        rng: order and jitter; credentials and ids always come from the system.
        credentials: ours; drawn if not given.

    Raises:
        UnsupportedPlatform: this system is not Linux and no host was given.
        UsageError: a server's URI is wrong.
        RuntimeError: no loop is running.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        controlling: bool,
        host: Host | None = None,
        rng: Random | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        config = config or Config()
        super().__init__(host or _this_machine(), config.components, config.coalesce_s)
        self._thread = threading.get_ident()
        self._config = config
        host = self._host
        rng = rng or _system_rng
        ceiling, wakeups = _shared_by(host, config)
        self._session = IceSession(
            config=config,
            controlling=controlling,
            rng=rng,
            system_rng=_system_rng,
            ceiling=ceiling,
            wakeups=wakeups,
            preferred_host=host.source_host,
            credentials=credentials,
        )
        self._driver = Driver(self._session, host, self._transmit, self._on_core_event, self._on_gap)
        self._mdns = MdnsNames(self._loop) if config.mdns or config.resolve_mdns else None
        # Weakly: a loop over events() that is left early leaves no queue behind. Made for the first one.
        self._streams: WeakSet[EventStream] | None = None
        try:
            self._gathering = Gathering(
                config,
                host,
                rng,
                _system_rng,
                listener=self,
                sink=self._enqueue,
                session=self._session,
                inform=self._inform,
                found=self._on_candidate,
                lost=self._on_base_lost,
                withdrawn=self._on_withdrawn,
                tell=self._tell,
                ceiling=ceiling,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._is_gathering = False
        self._late: list[Candidate] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Future[None] | None = None
        self._goodbye: asyncio.Future[None] | None = None
        self._history: Ring = EMPTY
        self._was_connected = False
        self._is_concluded = False
        self._ended_ufrag: str | None = None

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- signalling ----------------------------------------------------------------------------------------------

    @property
    def local_description(self) -> Description:
        """What is to be signalled to the peer: credentials, options, and the candidates found so far."""
        config = self._config
        options = ["trickle", "ice2"]
        if config.renomination:
            options.append("renomination")
        if config.path_messages and not config.lite:
            options.append(OPTION)
        return Description(
            credentials=self._session.local_credentials,
            options=tuple(options),
            pacing_ms=round(config.ta_s * 1000),
            lite=config.lite,
            candidates=tuple(self.local_candidates),
            complete=self._gathering.is_done,
        )

    def start_gathering(self) -> None:
        """Open sockets and look for candidates; returns at once, the candidates come as events. Idempotent.

        Raises:
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        if not self._is_gathering:
            self._is_gathering = True
            self._gathering.start()

    async def gather(self) -> Description:
        """Gather, wait until that is done (at most ``Config.gather_timeout_s``), and return what to signal."""
        self.start_gathering()
        await self._wait(lambda: self._gathering.is_done)
        return self.local_description

    def set_remote_description(self, description: Description | str) -> None:
        """Take the peer's description, before or after gathering, once or again.

        Other credentials than before are an ICE restart by the peer. Where it asks for new ones of ours, the event
        :class:`iceagent.IceRestarted` says so, and :attr:`local_description` has them.

        Raises:
            InvalidDescription: it breaks the grammar.
            InvalidCandidate: a candidate line does. Those that are merely not known here are ignored (RFC 8839, 5.1).
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        if isinstance(description, str):
            description = Description.parse(description)
        named = [c for c in description.candidates if c.has_name]
        if named and self._config.resolve_mdns:
            description = replace(description, candidates=tuple(c for c in description.candidates if not c.has_name))
        else:
            named = []
        # Relays are told of the peer before it is checked from them.
        self._gathering.permit((*self._session.remote_candidates, *description.candidates))
        self._driver.command(self._session.set_remote_description, description)
        for candidate in named:
            self.add_remote_candidate(candidate)
        if description.credentials.ufrag == self._ended_ufrag:
            self.end_remote_candidates(self._ended_ufrag)

    def add_remote_candidate(self, candidate: Candidate | str) -> None:
        """Take one trickled candidate.

        Raises:
            UnsupportedCandidate: the line may be ignored: its transport, type or kind of address is not known here.
            InvalidCandidate: the line breaks the grammar.
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        if isinstance(candidate, str):
            candidate = Candidate.parse(candidate)
        if candidate.has_name and self._config.resolve_mdns and len(self._tasks) < _MAX_NAMED_CANDIDATES:
            self._start(self._resolve(candidate))
        else:
            self._add_remote(candidate)

    def end_remote_candidates(self, ufrag: str | None = None) -> None:
        """The peer will send no more candidates of this gathering.

        Args:
            ufrag: the generation that this is said of, by its user name fragment; ``None``: the present one. For one
                that is over it says nothing; for one whose description is still to come, it counts then.

        Raises:
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        remote = self._session.remote_credentials
        if ufrag is None or (remote is not None and ufrag == remote.ufrag):
            self._driver.command(self._session.end_remote_candidates)
        else:
            self._ended_ufrag = ufrag

    def restart(self) -> Description:
        """Begin an ICE restart (RFC 8445, 9): new credentials, to be signalled. The present path carries data until
        a new one is found.
        """
        self._check()
        self._driver.command(self._session.restart)
        return self.local_description

    def set_role(self, *, controlling: bool) -> None:
        """Take a role, where it is not known when the agent is made; before the peer's description is, best. A role
        conflict may change it again (RFC 8445, 7.3.1.1).

        Raises:
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        if controlling != self.controlling:
            self._driver.command(self._session.set_role, controlling)

    def report_loss(self, component: int = 1) -> None:
        """Say that what is sent does not arrive, although the path looks well: there are networks that let checks
        through and eat the rest. Data moves as soon as another path answers, and the present one is shunned for a
        while. Without another path, the event :class:`iceagent.RestartAdvised` says so.

        Raises:
            AgentClosed: after :meth:`aclose`.
        """
        self._check()
        self._driver.command(self._session.report_loss, component)

    # --- connecting ----------------------------------------------------------------------------------------------

    async def connect(self) -> Path:
        """Wait until every component has a valid path; gathers if that was not begun. Cancelling leaves the agent
        usable.

        Returns:
            The path of component 1.

        Raises:
            ConnectFailed: no pair works; the message says what failed last.
            AgentClosed: the agent was closed meanwhile.
        """
        self.start_gathering()
        await self._wait(lambda: self._has_failed or self.state in (AgentState.CONNECTED, AgentState.CLOSED))
        if self._has_failed:
            raise ConnectFailed(self._session.state_reason)
        path = self.path()
        if path is None:
            raise AgentClosed("the agent was closed while it connected")
        return path

    async def aclose(self) -> None:
        """Close sockets and end all waiting; idempotent, not to be interrupted by cancellation."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def state(self) -> AgentState:
        """See :class:`iceagent.events.AgentState`."""
        return self._session.state

    @property
    def controlling(self) -> bool:
        """Our role now; a role conflict may have changed it."""
        return self._session.controlling

    @property
    def local_candidates(self) -> list[Candidate]:
        """Found so far, as they are signalled: each with the extension ``ufrag`` of the present generation."""
        return [self._signalled(candidate) for candidate in self._session.local_candidates]

    @property
    def remote_candidates(self) -> list[Candidate]:
        """In use, signalled and learnt."""
        return self._session.remote_candidates

    def path(self, component: int = 1) -> Path | None:
        """Where data goes now."""
        return self._session.path(component)

    def events(self) -> EventStream:
        """All events from now on; each call gives an iterator with a queue of its own."""
        if self._streams is None:
            self._streams = WeakSet()
        stream = EventStream(self._streams.discard)
        self._streams.add(stream)
        if self.state is AgentState.CLOSED:
            stream.close()
        return stream

    def pairs(self) -> list[PairStatistics]:
        """All pairs, in the order they are checked."""
        self._flush()
        return [
            PairStatistics.of(pair, selected=self._session.current(pair.component) is pair)
            for pair in self._session.pairs
        ]

    def statistics(self) -> AgentStatistics:
        """Totals since the agent was made."""
        self._flush()
        traffics = {id(t): t for base in self._gathering.bases.values() for t in base.peers.values()}.values()
        return AgentStatistics(
            packets_sent=sum(t.packets_sent for t in traffics),
            bytes_sent=sum(t.bytes_sent for t in traffics),
            packets_received=sum(t.packets_received for t in traffics),
            bytes_received=sum(t.bytes_received for t in traffics),
            receive_queue_dropped=self._receive_queue_dropped,
            send_dropped=self._send_dropped,
            path_switches=self._path_switches,
            counters=Counter(self._session.counters) + self._gathering.counters + Counter(mirrored=self._mirrored),
        )

    def history(self) -> list[HistoryEntry]:
        """What has changed since the agent was made, the newest last: its state, its paths, its network, its peer. The
        last 64 changes, also after :meth:`aclose`.
        """
        return entries(self._history)

    # --- what the sockets receive (BaseListener) -----------------------------------------------------------------

    def message_received(self, base: Base, data: bytes, source: tuple[str, int]) -> None:
        """STUN: a server's answer, or the session's; and data of strangers, which the session holds."""
        if not self._gathering.datagram_received(base, data, source):
            self._driver.datagram(base.address, source, data)
            self._conclude()
            if self._goodbye is not None and self._session.is_heard and not self._goodbye.done():
                self._goodbye.set_result(None)

    def data_moved(self, base: Base, source: tuple[str, int]) -> None:
        """The peer sends on another path than we do: among several nominated ones, that may decide."""
        self._inform(self._session.note_data, base.address, TransportAddress._make(source))

    def error_received(self, base: Base, destination: TransportAddress, number: int) -> None:
        """ICMP, which may be forged."""
        if not self._gathering.error_received(base, destination, number):
            self._driver.error(base.address, destination, number)

    # --- what the data path needs --------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        self._inform(self._session.handle_timeout)

    def _set_sink(self, sink: Callable[[bytes, int], None]) -> None:
        self._gathering.set_sink(sink)
        # Who waits in recv() has to hear that nothing comes there any more.
        self._wake_receivers()

    def sending_began(self, out: Outgoing) -> None:
        """See :class:`iceagent.outgoing.OutgoingListener`."""
        # A machine that was suspended may not know it yet.
        self._driver.look_for_gap()
        self._inform(self._session.note_sending, out.traffic.component)

    def _on_network_error(self, base: TransportAddress, destination: TransportAddress, number: int) -> None:
        self._driver.error(base, destination, number)

    @property
    def _has_failed(self) -> bool:
        """Not so while a restart of ours waits for the peer's answer."""
        return self.state is AgentState.FAILED and self._session.remote_credentials is not None

    def _end(self) -> Exception | None:
        if not self._has_failed:
            return None
        reason = self._session.state_reason
        return ConsentLost(reason) if self._was_connected else ConnectFailed(reason)

    # --- inside: events ------------------------------------------------------------------------------------------

    def _transmit(self, transmit: Transmit) -> int:
        base = self._gathering.bases.get(transmit.base)
        return 0 if base is None else base.socket.send(transmit.data, transmit.destination, transmit.ttl)

    def _on_core_event(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._gathering.sink(event.data, event.component)
            return
        if isinstance(event, BetterPathSought):
            self._gathering.refresh()
            return
        if isinstance(event, SelectedPathChanged):
            pair = self._session.current(event.component)
            self._gathering.expect(event.component, pair.traffic if pair is not None else None)
            self._set_path(event.component, pair, self._gathering.bases)
        elif isinstance(event, PathDoubted):
            if self._config.mirror and self._session.peer_knows_messages:
                self._begin_mirroring(event.component, self._session.standby_of, self._gathering.bases)
        elif isinstance(event, PathTrusted):
            self._end_mirroring(event.component)
        elif isinstance(event, StateChanged):
            self._on_state(event.new)
        elif isinstance(event, IceRestarted):
            self._is_concluded = False
            self._add_late_candidates()
            self._gathering.begin_again()
        elif isinstance(event, RerollDue):
            self._reroll(event.base)
        elif isinstance(event, RemoteCandidateAdded):
            if event.via == "path message":
                # Of what is signalled, relays know already.
                self._gathering.permit(self._session.remote_candidates)
        elif isinstance(event, LocalCandidateFound):
            event = LocalCandidateFound(candidate=self._signalled(event.candidate))
        self._tell(event)

    def _inform(self, method: Callable[..., object], *args: object) -> None:
        """Tell the session what a socket, a server or the machine did; while we close, nobody wants to know."""
        if not self._driver.is_closed:
            self._driver.command(method, *args)

    def _reroll(self, base: TransportAddress) -> None:
        """Another socket beside a base; its candidate comes when a STUN server has answered."""
        opened = self._gathering.open_beside(base)
        if opened is not None:
            self._driver.command(self._session.use_openers_only, opened)

    def _on_state(self, state: AgentState) -> None:
        if state is AgentState.CONNECTED:
            self._was_connected = True
        if state is AgentState.FAILED:
            self._wake_receivers()

    def _conclude(self) -> None:
        """RFC 8445, 8.3: candidates are needed until every component has a nominated pair, valid ones are not
        enough.
        """
        if self._is_concluded or self._closing:
            return
        if all(self._session.selected(number) for number in range(1, self._config.components + 1)):
            self._is_concluded = True
            self._gathering.conclude()
            self._tell(Nominated(path=self.path()))

    def _tell(self, event: Event) -> None:
        if isinstance(event, GatheringDone):
            self._inform(self._session.end_local_candidates)
        elif isinstance(event, RelayLost) and not event.is_local:
            self._inform(self._session.doubt_relays, {address.host for address in event.relayed})
        elif isinstance(event, RelayMoved):
            # RFC 8016, 3.2.2: the server sends to the new five-tuple once data came from there.
            for address in event.relayed:
                self._inform(self._session.doubt_base, address)
        elif isinstance(event, PathDoubted) and event.path is not None:
            self._gathering.doubt(event.path.base)
        elif isinstance(event, NetworkChanged):
            self._driver.look_for_gap()
        ring = noted(self._history, event, self._host.now())
        if ring is not self._history:
            self._history = ring
            self._session.count(newest_name(ring))
        for stream in self._streams or ():
            stream.push(event)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_gap(self, slept_s: float, late_s: float) -> None:
        """The machine was suspended, or this process held up: what is known of the network is as old."""
        if slept_s > GAP_S:
            self._inform(self._session.note_sleep, slept_s)
            self._gathering.wake_up(slept_s)
        if late_s > GAP_S:
            self._inform(self._session.doubt_all, f"this process was held up for {late_s:.0f} s")

    async def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for an event after which ``condition`` holds."""
        while not condition():
            self._check()
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        self._check()

    # --- inside: candidates --------------------------------------------------------------------------------------

    def _on_candidate(self, candidate: Candidate) -> bool:
        if self._gathering.is_done and not self._config.late_candidates:
            self._late.append(candidate)
            return False
        # DEVIATION: RFC 8838, 13 ends trickling with end-of-candidates; pinned by
        # test_aioice_follows_a_later_better_pair.
        return self._add_candidate(candidate)

    def _add_late_candidates(self) -> None:
        """RFC 8838, 13: what was found after end-of-candidates belongs to the next generation."""
        late, self._late = self._late, []
        for candidate in late:
            self._add_candidate(candidate)

    def _add_candidate(self, candidate: Candidate) -> bool:
        if self._mdns is not None and self._config.mdns:
            self._mdns.publish(candidate)
        return not self._driver.is_closed and self._driver.command(self._session.add_local_candidate, candidate)

    def _on_base_lost(self, base: Base) -> None:
        self._late = [candidate for candidate in self._late if candidate.base != base.address]
        reason = "its relay is gone" if base.is_relayed else "its local address is gone"
        self._inform(self._session.remove_base, base.address, reason)

    def _on_withdrawn(self, base: TransportAddress, address: TransportAddress) -> None:
        self._late = [each for each in self._late if (each.base, each.address) != (base, address)]
        self._inform(self._session.withdraw, base, address)

    def _signalled(self, candidate: Candidate) -> Candidate:
        """What the peer is told: with the generation's fragment, and names for addresses where so configured."""
        if self._mdns is not None and self._config.mdns:
            candidate = self._mdns.hide(candidate)
        ufrag = ("ufrag", self._session.local_credentials.ufrag)
        return replace(candidate, extensions=(*candidate.extensions, ufrag))

    async def _resolve(self, candidate: Candidate) -> None:
        assert self._mdns is not None
        host = await self._mdns.resolve(candidate.address.host)
        # Without an answer the session refuses the candidate, with that reason.
        resolved = candidate if host is None else candidate.with_address(host)
        if self._closing is None:
            self._add_remote(resolved)

    def _add_remote(self, candidate: Candidate) -> None:
        self._gathering.permit((*self._session.remote_candidates, candidate))
        self._driver.command(self._session.add_remote_candidate, candidate)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    # --- inside: life --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._loop.get_debug() and threading.get_ident() != self._thread:
            raise UsageError("an Agent belongs to the thread of its loop")
        if self._closing is not None:
            raise AgentClosed("the agent is closed")

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._flush()
        await self._say_goodbye()
        self._driver.command(self._session.close)
        self._driver.close()
        await self._gathering.give_back()
        self._gathering.close()
        self._clear_paths()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._wake_receivers()
        for stream in list(self._streams or ()):
            stream.close()
        if self._mdns is not None:
            await self._mdns.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_goodbye(self) -> None:
        """Until the peer has heard that we close, or was told in vain."""
        wait_s = self._driver.command(self._session.say_goodbye)
        if wait_s > 0.0:
            self._goodbye = self._loop.create_future()
            await asyncio.wait([self._goodbye], timeout=wait_s)


def _this_machine() -> Host:
    try:
        preload()
        return local_host()
    except OSError as error:
        raise UnsupportedPlatform(str(error)) from error


def _shared_by(host: Host, config: Config) -> tuple[TokenBucket, WakeUps]:
    """The bucket is as the first agent of the host configured it (RFC 8445, 14.2)."""
    shared = _shared.get(host)
    if shared is None:
        rate, burst = config.ceiling
        shared = _shared[host] = (TokenBucket(rate=rate, capacity=burst), WakeUps())
    return shared
