"""What happens between two peers, from the first candidate to the last datagram?

:class:`PeerSession` joins an agent, a way to exchange descriptions and a payload: it gathers, publishes our description
whenever it changes, takes the peer's whenever that does (new credentials are an ICE restart, which the agent answers),
pings once there is a path, and restarts ICE when nothing answers any more. It ends when the plan says so, when the peer
says that it closes, when no path was found, when one that was lost has not been replaced for a minute, or when it is
cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from iceagent.agent import Agent
from iceagent.errors import NoPath, PeerError
from iceagent.events import (
    AgentState,
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    Path,
    PeerClosed,
    RestartAdvised,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.eventstream import EventStream
from iceagent.rendezvous.exchange import Inbox, Outbox, Refusal
from iceagent.rendezvous.payload import Payload, PayloadCounts, PingEchoed

__all__ = ["PeerSession", "Plan", "Summary"]

# How long the last answers are waited for, and the peer's last pings are answered.
_SETTLE_S = 1.0
_SETTLE_STEP_S = 0.01
# Answers to what arrived before our side had chosen a path; they leave with the choice.
_MAX_WAITING_REPLIES = 64
# After a restart, whoever began it, before another one of ours: answer and checks had their time.
_RESTART_PAUSE_S = 5.0
# So long there is no path before the session is over. Consent has ended by then, 30 s after the last answer (RFC 7675,
# 5.1): who was away for a minute and a half, with its lid closed, in a lift, or while its router booted, is found again
# by the restart; a program that is gone is not waited for.
_GIVE_UP_S = 60.0
# A peer that pinged a moment ago is given the time for its next ping, by our own interval, and at least this.
_MIN_QUIET_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent, and when it ends.

    Attributes:
        ping_s: seconds between pings; ``None``: none are sent.
        count: end after so many pings.
        duration_s: end so long after the first path.
        restarts: begin an ICE restart when no path answers, and go on when consent has ended; of use where descriptions
            travel by themselves.
    """

    ping_s: float | None = None
    count: int | None = None
    duration_s: float | None = None
    restarts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How it went.

    Attributes:
        connected_ms: from the peer's description to the first usable path; ``None``: there never was one.
        switches: how often the path changed to another one.
        kind: of the last path, ``direct`` or ``relay``; ``None`` if there never was one.
        failed: it ended without a path, and not because the peer closed one that worked.
        payload: what became of the datagrams.
    """

    connected_ms: float | None
    switches: int
    kind: str | None
    failed: bool
    payload: PayloadCounts


class PeerSession:
    """One connection to one peer.

    Args:
        agent: closed when the session ends.
        outbox: where our description goes.
        inbox: where the peer's comes from.
        payload: answers the peer's pings, and counts.
        plan: see there.
        tell: hears every event, those of the agent and :class:`PingEchoed` and :class:`Refusal`.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        outbox: Outbox,
        inbox: Inbox,
        payload: Payload,
        plan: Plan,
        tell: Callable[[Event], None],
        now: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._outbox = outbox
        self._inbox = inbox
        self._payload = payload
        self._plan = plan
        self._tell = tell
        self._now = now
        self._usable = asyncio.Event()
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING_REPLIES)
        self._described_at: float | None = None
        self._usable_at: float | None = None
        self._path: Path | None = None
        self._switches = 0
        self._failed = False
        self._is_lost = False
        self._is_closed_by_peer = False
        self._restarted_at = -math.inf
        self._over = asyncio.Event()
        # While there is no path: the next restart, and the end of patience.
        self._restart_timer: asyncio.TimerHandle | None = None
        self._give_up_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Connect, and stay connected until the plan's end, until the peer closes, or until there is no hope of a path;
        ends at once when the peer's description cannot come any more.
        """
        stream = self._agent.events()
        jobs = [self._follow(stream), self._over.wait(), self._read_descriptions(), self._exchange_payload()]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            self._agent.set_data_handler(self._on_data)
            self._agent.start_gathering()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._stop_waiting()
            await self._agent.aclose()
            # The stream is closed with the agent; what it still holds comes without waiting.
            async for event in stream:
                self._on_event(event)

    @property
    def agent(self) -> Agent:
        """The agent, to look at."""
        return self._agent

    @property
    def path(self) -> Path | None:
        """The last path there was."""
        return self._path

    @property
    def rtt_ms(self) -> float | None:
        """Of pings, else of checks."""
        return self._payload.rtt_ms or (self._path.rtt_ms if self._path is not None else None)

    def summary(self) -> Summary:
        """How it went so far."""
        connected_ms = None
        if self._usable_at is not None and self._described_at is not None:
            connected_ms = max(0.0, self._usable_at - self._described_at) * 1000
        return Summary(
            connected_ms=connected_ms,
            switches=self._switches,
            kind=None if self._path is None else self._path.kind,
            failed=self._path is None or ((self._failed or self._is_lost) and not self._is_closed_by_peer),
            payload=self._payload.counts(self._now()),
        )

    # --- events --------------------------------------------------------------------------------------------------

    async def _follow(self, stream: EventStream) -> None:
        """Tell what happens."""
        async for event in stream:
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, SelectedPathChanged) and event.component == 1:
            self._on_path(event.new)
        elif isinstance(event, IceRestarted):
            self._restarted_at = self._now()
        elif isinstance(event, StateChanged):
            self._on_state(event.new)
        elif isinstance(event, PeerClosed):
            self._is_closed_by_peer = True
            self._stop_waiting()
            self._over.set()
        self._tell(event)
        if isinstance(event, (LocalCandidateFound, GatheringDone, IceRestarted)):
            self._publish()
        elif isinstance(event, RestartAdvised) and self._plan.restarts:
            self._restart()

    def _on_state(self, state: AgentState) -> None:
        # Closing changes nothing of how it went.
        self._failed = state is AgentState.FAILED or (self._failed and state is AgentState.CLOSED)
        if not self._failed:
            return
        if self._is_lost and self._plan.restarts:
            self._restart_soon()
        else:
            self._over.set()

    def _on_path(self, path: Path | None) -> None:
        self._is_lost = path is None
        if path is None:
            self._wait_for_another()
            return
        self._stop_waiting()
        if self._usable_at is None:
            self._usable_at = self._now()
            self._usable.set()
        elif self._path is not None and _ends(path) != _ends(self._path):
            self._switches += 1
        self._path = path
        for _ in range(len(self._waiting)):
            self._send(self._waiting.popleft())

    # --- without a path ------------------------------------------------------------------------------------------

    def _wait_for_another(self) -> None:
        """The last path is gone. Only new credentials can be of use (RFC 7675, 5.1), and only for so long."""
        if self._plan.restarts and self._give_up_timer is None and not self._is_closed_by_peer:
            self._give_up_timer = asyncio.get_running_loop().call_later(_GIVE_UP_S, self._give_up)
            self._restart_soon()

    def _stop_waiting(self) -> None:
        for timer in (self._restart_timer, self._give_up_timer):
            if timer is not None:
                timer.cancel()
        self._restart_timer = self._give_up_timer = None

    def _give_up(self) -> None:
        self._failed = True
        self._over.set()

    def _restart_soon(self) -> None:
        """Not before everything was told that happened at the same time: it may be that the peer has closed."""
        if self._restart_timer is None and self._give_up_timer is not None:
            wait_s = max(0.0, self._restarted_at + _RESTART_PAUSE_S - self._now())
            self._restart_timer = asyncio.get_running_loop().call_later(wait_s, self._restart_at_last)

    def _restart_at_last(self) -> None:
        self._restart_timer = None
        self._restart()

    def _restart(self) -> None:
        """Nothing answers, but the peer may still read what we publish. If both restart, one answers the other."""
        is_time = self._now() >= self._restarted_at + _RESTART_PAUSE_S
        if is_time and self._agent.state is not AgentState.CLOSED:
            self._agent.restart()

    # --- signalling ----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        try:
            self._outbox.publish(self._agent.local_description)
        except OSError as error:
            self._tell(Refusal(reason=f"our description could not be written: {error}"))

    async def _read_descriptions(self) -> None:
        """Take what the peer says, for as long as it may say something; returns when it never will."""
        async for found in self._inbox.descriptions():
            if isinstance(found, Refusal):
                self._tell(found)
                continue
            found_at = self._now()
            try:
                self._agent.set_remote_description(found)
            except PeerError as error:
                self._tell(Refusal(reason=str(error)))
                continue
            if self._described_at is None:
                self._described_at = found_at
            # An ICE restart of the peer's is answered by new credentials of ours.
            self._publish()
        if self._described_at is None:
            self._tell(Refusal(reason="the input has ended without the peer's description"))
            return
        await _for_ever()

    # --- payload -------------------------------------------------------------------------------------------------

    def _on_data(self, data: bytes, component: int) -> None:
        reaction = self._payload.handle_data(data, self._now())
        if reaction.reply is not None:
            self._send(reaction.reply)
        if reaction.seq is not None:
            path = self._agent.path()
            kind = None if path is None else path.kind
            self._tell(PingEchoed(seq=reaction.seq, rtt_ms=reaction.rtt_ms, kind=kind))

    def _send(self, data: bytes) -> None:
        try:
            self._agent.send(data)
        except NoPath:
            self._waiting.append(data)

    async def _exchange_payload(self) -> None:
        """Ping, from the first path to the plan's end."""
        await self._usable.wait()
        try:
            async with asyncio.timeout(self._plan.duration_s):
                await self._ping()
        except TimeoutError:
            pass
        await self._settle()

    async def _ping(self) -> None:
        """Send pings; returns after the plan's count."""
        if self._plan.ping_s is None:
            await _for_ever()
            return
        due_at = self._now()
        while self._plan.count is None or self._payload.sent < self._plan.count:
            now = self._now()
            if self._agent.path() is not None:
                self._send(self._payload.ping(now, connected=self._agent.state is AgentState.CONNECTED))
            # Pings that were missed, by a suspended machine for instance, are not made up for.
            due_at = max(due_at + self._plan.ping_s, now)
            await asyncio.sleep(due_at - now)

    async def _settle(self) -> None:
        """Wait a moment for the last answers, and answer a peer that is still pinging."""
        ends_at = self._now() + _SETTLE_S
        quiet_enough_s = max(_MIN_QUIET_S, 2.5 * (self._plan.ping_s or 0.0), self._payload.patience_s)
        while (now := self._now()) < ends_at:
            quiet_s = self._payload.quiet_s(now)
            if self._payload.is_settled(now) and (quiet_s is None or quiet_s >= quiet_enough_s):
                return
            await asyncio.sleep(_SETTLE_STEP_S)


def _ends(path: Path) -> tuple[object, ...]:
    return path.local.address, path.remote.address, path.base


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
