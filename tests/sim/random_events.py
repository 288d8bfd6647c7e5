"""What must be true of two agents while things happen to them and to the network between them, at random?

A :class:`Story` is one seed: two agents in virtual time, each on a machine with two interfaces behind routers of random
kinds, a STUN server, one or two TURN servers (the real ones of ``relay``), an application that sends ten datagrams a
second each way, and three to eight things that happen to all that (``random_happenings.py``). What is looked at is
what really arrives (``random_sides.py``), not what an agent believes. :func:`tell` runs one and raises
:class:`Broken`, with the whole story, when it must.

The same seed tells the same story: the random numbers of the system are replaced, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import patch

import iceagent.agent
import relay.server
from iceagent import Agent, AgentState, Config, IceServer
from iceagent.events import (
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    PathDoubted,
    PathTrusted,
    RestartAdvised,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.testing import UnhandledError, VirtualLoop, VirtualTimeError
from tests.shell.world import World
from tests.sim.random_happenings import PASSWORD, USER, Happenings, Turn
from tests.sim.random_sides import TRANSIT_S, UNTOLD_S, Home, Side

__all__ = ["Broken", "Story", "tell"]

INTERVAL_S = 0.1
"""Ten datagrams a second, each way."""

UNMIRRORED_S = 3.0
"""So long the two ends may be of different minds, in a network that does not change: doubt (0.3 s or three round trips
of up to 0.6 s), two checks, the move, half a second until who nominates follows, and a nomination that is lost once."""

UNMIRRORED_LOSSY_S = 10.0
"""The same while packets are lost at random: a nomination is repeated after 0.5, 1 and 2 s, and given up after 4 s."""

RECOVERY_S = 60.0
"""Within this time after the last change data flows again. With signalling: the end of consent (30 s), the next attempt
of an application that tries every 8 s, and a gathering where a TURN server is asked that did not answer."""

RECOVERY_FROZEN_S = 6.0
"""The same without signalling, where nothing but time has passed: a check every 0.5 s while data is sent."""

MAX_PACKETS_PER_S = 160
"""Of one machine: ten datagrams, twenty checks of ours at a Ta of 50 ms and a burst, as many answers, and what TURN
and STUN servers are asked, over relays all of it within its indications; a hold-up makes two seconds one."""

TIME_LIMIT_S = 600.0
"""Of one story."""

TURN_LIMIT = 5_000
"""Turns of the loop in which no time passes: who wants to be called in the past is called again and again."""


class Broken(AssertionError):
    """What must be true was not."""


class Story(Happenings):
    """One seed.

    Args:
        seed: everything is drawn from it.
        is_frozen: signalling ends when both are connected.
    """

    a: Side
    b: Side
    repairers: tuple[Side, ...]

    def __init__(self, seed: int, *, is_frozen: bool) -> None:
        super().__init__(seed)
        self.is_frozen = is_frozen
        self.recovered_s: float | None = None
        self._signal_delay_s = self.rng.choice((0.02, 0.1, 0.3))
        self._unmirrored_at: float | None = None
        self._inspected_at = 0.0
        self._both_were_connected = False

    # --- telling -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it.

        Raises:
            Broken: an invariant is.
        """
        async with self._built():
            try:
                await self._happen()
                await self._recover()
                await self._end()
            except Broken:
                raise
            except Exception as error:
                raise self.broken(f"{type(error).__name__}: {error}") from error
        self._look_at_what_is_left()

    def broken(self, what: str) -> Broken:
        frozen = "frozen" if self.is_frozen else "alive"
        return Broken(f"seed {self.seed} ({frozen}): {what}\n" + "\n".join(self.lines))

    def heard(self, side: Side, event: Event) -> None:
        """An agent said something: it is noted, and the applications act on it."""
        self._note_event(side, event)
        if isinstance(event, RestartAdvised):
            self._restart_is_advised(side)
        self._signal(side, event)

    def _note_event(self, side: Side, event: Event) -> None:
        """Those that a person needs to follow the story."""
        if isinstance(event, PathDoubted | PathTrusted | RestartAdvised):
            self.note(f"    {side.name}: {type(event).__name__} {event.reason}")
        elif isinstance(event, StateChanged):
            self.note(f"    {side.name}: {event.new.value}: {event.reason}")
        elif isinstance(event, SelectedPathChanged):
            path = event.new
            where = "nowhere" if path is None else f"{path.base} {path.local.address}>{path.remote.address}"
            self.note(f"    {side.name}: path {where}: {event.reason}")
        elif isinstance(event, IceRestarted):
            self.note(f"    {side.name}: restarted{' by the peer' if event.by_peer else ''}")
        elif type(event).__name__ in ("RelayLost", "RelayMoved", "NetworkChanged", "PathDiagnosed", "PeerClosed"):
            self.note(f"    {side.name}: {type(event).__name__} {getattr(event, 'reason', '')}")

    # --- the world -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _built(self) -> AsyncIterator[None]:
        rng = self.rng
        self.world = World(self.seed, icmp_errors=rng.random() < 0.5)
        self.world.stun("stun", "20.0.0.1")
        self.turns = [Turn(self.world, f"turn{i}", f"20.0.{i}.1", rng) for i in range(1, rng.choice((2, 3)))]
        for turn in self.turns:
            await turn.start()
        self.a = self._side("a")
        self.b = self._side("b")
        self.a.other, self.b.other = self.b, self.a
        self.sides = (self.a, self.b)
        self.reporter = rng.choice(self.sides)
        self.repairers = rng.choice(((self.a,), (self.b,), self.sides))
        controlling = rng.random() < 0.5
        transport = rng.choice(("?transport=udp", "?transport=udp", "?transport=udp", ""))
        servers = (
            IceServer(urls=("stun:20.0.0.1",)),
            *(
                IceServer(urls=(f"turn:{turn.host}{transport}",), username=USER, credential=PASSWORD)
                for turn in self.turns
            ),
        )
        config = Config(servers=servers, portmap=False, ipv6=False)
        for side in self.sides:
            is_controlling = controlling is (side is self.a)
            side.agent = Agent(config, controlling=is_controlling, host=side.machine, rng=self.world.rng)
            side.agent.set_data_handler(side.hear)
            side.task = asyncio.ensure_future(side.listen())
        kinds = ", ".join(f"{s.name} {h.name} {h.host} {h.nat.name}" for s in self.sides for h in s.homes)
        self.lines.append(f"{kinds}; controlling {'a' if controlling else 'b'}; TURN servers {len(self.turns)}")
        try:
            await asyncio.sleep(0)
            yield
        finally:
            for side in self.sides:
                side.is_closed = True
                await side.agent.aclose()
            await asyncio.gather(*(side.task for side in self.sides if side.task), return_exceptions=True)
            await self.stop()

    def _side(self, name: str) -> Side:
        machine = self.world.host(name)
        side = Side(self, name, machine, [])
        for number in range(2):
            if name == "b" and self.rng.random() < 0.05:
                # At home with the other one.
                nat = self.a.homes[number].nat
            else:
                nat = self._nat(name)
            host = self._inside(nat)
            machine.add_interface(f"eth{number}", [host], nat)
            side.homes.append(Home(f"eth{number}", host, nat))
        return side

    # --- signalling ----------------------------------------------------------------------------------------------

    def _signal(self, side: Side, event: Event) -> None:
        """What the application sends to the other one, as long as it can."""
        if not self.signals or side.is_closed:
            return
        ufrag = side.agent.local_description.credentials.ufrag
        if isinstance(event, LocalCandidateFound):
            self._tell_other(side, Agent.add_remote_candidate, event.candidate.to_sdp())
        elif isinstance(event, IceRestarted):
            self._tell_other(side, Agent.set_remote_description, side.agent.local_description.to_sdp())
        elif isinstance(event, GatheringDone):
            self._tell_other(side, Agent.end_remote_candidates, ufrag)

    def _tell_other(self, side: Side, method: Callable[..., None], *args: str) -> None:
        def arrive() -> None:
            if not side.other.is_closed:
                method(side.other.agent, *args)

        self.world.internet.loop.call_later(self._signal_delay_s, arrive)

    def _restart_is_advised(self, side: Side) -> None:
        if self.signals and side in self.repairers and self.now > side.restarted_at + 2.0:
            side.restart()

    def _repair(self) -> None:
        """An application tries again."""
        for side in self.repairers if self.signals else ():
            is_dead = side.agent.state in (AgentState.DISCONNECTED, AgentState.FAILED)
            if is_dead and not side.is_closed and self.now > side.restarted_at + 8.0:
                side.restart()

    # --- time ----------------------------------------------------------------------------------------------------

    async def _pass(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass and look; whether ``until`` came true."""
        end = self.now + seconds
        while self.now < end:
            for side in self.sides:
                side.speak(self.now)
            await asyncio.sleep(min(INTERVAL_S, end - self.now))
            self._inspect()
            if until is not None and until():
                return True
        return False

    def _inspect(self) -> None:
        now = self.now
        for side in self.sides:
            if side.is_untold(now):
                raise self.broken(f"{side.name} has been sending to nobody since {side.pending[0][1]:.1f} s")
        self._look_at_mirroring(now)
        if now >= self._inspected_at + 1.0:
            # Two seconds of a process that was held up are one.
            seconds = max(1.0, (now - self._inspected_at) // 1.0)
            self._inspected_at = now
            self._repair()
            for side in self.sides:
                rate = (side.machine.node.sent - side.packets) / seconds
                side.packets = side.machine.node.sent
                if rate > MAX_PACKETS_PER_S:
                    raise self.broken(f"{side.name} sends {rate:.0f} packets per second")
        if not self._both_were_connected and self.are_connected():
            self._both_were_connected = True
            if self.is_frozen:
                self.world.internet.loop.call_later(1.0, self._freeze)

    def _freeze(self) -> None:
        self.note("signalling freezes")
        self.signals = False

    def are_connected(self) -> bool:
        return all(side.agent.state is AgentState.CONNECTED for side in self.sides)

    def is_mirrored(self) -> bool:
        mine, theirs = self.a.agent.path(), self.b.agent.path()
        if mine is None or theirs is None:
            return False
        return (mine.local.address, mine.remote.address) == (theirs.remote.address, theirs.local.address)

    def _look_at_mirroring(self, now: float) -> None:
        # Who sends to nobody is told, or will be: that is looked at elsewhere.
        is_cut = any(side.pending and side.pending[0][1] < now - TRANSIT_S for side in self.sides)
        if not self.are_connected() or is_cut or self.is_mirrored():
            self._unmirrored_at = None
            return
        if self._unmirrored_at is None:
            self._unmirrored_at = now
        allowed = UNMIRRORED_LOSSY_S if self.is_lossy else UNMIRRORED_S
        if now > max(self._unmirrored_at, self.changed_at) + allowed:
            paths = [side.agent.path() for side in self.sides]
            words = [f"{p.local.address}>{p.remote.address}" if p else "nowhere" for p in paths]
            raise self.broken(f"both are connected, a over {words[0]}, b over {words[1]}")

    # --- what happens --------------------------------------------------------------------------------------------

    async def _happen(self) -> None:
        rng = self.rng
        for side in self.sides:
            self._tell_other(side, Agent.set_remote_description, side.agent.local_description.to_sdp())
            side.agent.start_gathering()
        await self._pass(rng.uniform(0.0, 0.6) if rng.random() < 0.2 else rng.uniform(1.2, 2.5))
        for _ in range(rng.randint(3, 8)):
            self.happen()
            await self._pass(rng.uniform(0.0, 1.5) if rng.random() < 0.5 else rng.uniform(2.0, 7.0))

    # --- the end -------------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        self.heal()
        for side in self.sides:
            side.idle_until = 0.0
        self._changed("the last change")
        since = self.now

        def flows() -> bool:
            return all(side.arrived_at > since + TRANSIT_S and not len(side.pending) > 12 for side in self.sides)

        if self.signals:
            limit_s = RECOVERY_S
        elif self.is_other_network or any(side.has_failed for side in self.sides) or not self._both_were_connected:
            # Only signalling can help; that they are told of it is looked at all the while.
            await self._pass(8.0)
            return
        else:
            limit_s = RECOVERY_FROZEN_S
        if not await self._pass(limit_s, flows):
            raise self.broken(f"no data flows {limit_s:.0f} s after the last change")
        self.note(f"data flows {self.now - since:.1f} s after the last change")
        self.recovered_s = self.now - since
        # Nothing changes any more: they have to agree.
        await self._pass(UNMIRRORED_S + 1.0)

    async def _end(self) -> None:
        closer = self.rng.choice((None, None, self.a, self.b))
        if closer is not None:
            self._changed(f"{closer.name} closes")
            closer.is_closed = True
            await closer.agent.aclose()
            closer.pending.clear()
            await self._pass(UNTOLD_S + 2 * TRANSIT_S)
        for side in self.sides:
            self._look_at_tables(side)

    def _look_at_tables(self, side: Side) -> None:
        """Nothing has grown with what happened."""
        agent = side.agent
        session, gathering = agent._session, agent._gathering
        sizes = {
            "pairs": (len(session.pairs), 100),
            "remote candidates": (len(session.remote_candidates), 64),
            "local candidates": (len(session.local_candidates), 40),
            "bases": (len(gathering.bases), 40),
            "counters": (len(agent.statistics().counters), 60),
            "tasks": (len(agent._tasks), 4),
        }
        for name, (size, limit) in sizes.items():
            if size > limit:
                raise self.broken(f"{side.name} has {size} {name}")

    def _look_at_what_is_left(self) -> None:
        for side in self.sides:
            if side.machine._sockets:
                raise self.broken(f"{side.name} left {len(side.machine._sockets)} sockets open")


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Credentials, ids and ports of relays too."""
    with (
        patch.object(iceagent.agent, "_system_rng", random.Random(seed)),
        patch.object(relay.server, "_system_rng", random.Random(seed)),
    ):
        yield


def _loop() -> VirtualLoop:
    return VirtualLoop(time_limit_s=TIME_LIMIT_S, turn_limit=TURN_LIMIT)


def tell(seed: int, *, is_frozen: bool) -> Story:
    """Run one story.

    Raises:
        Broken: something was not as it must be.
    """
    story = Story(seed, is_frozen=is_frozen)

    async def main() -> None:
        await story.run()
        # What is on its way, and streams that are closing.
        await asyncio.sleep(TRANSIT_S)
        story.world.internet.close()
        for _ in range(10):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        left = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        if left or len(asyncio.all_tasks()) > 1:
            raise story.broken(f"timers or tasks are left: {left[:3]} {asyncio.all_tasks()}")

    with _drawn_from(seed):
        try:
            with asyncio.Runner(loop_factory=_loop) as runner:
                runner.run(main())
                loop = runner.get_loop()
                assert isinstance(loop, VirtualLoop)
                loop.raise_failures()
        except (VirtualTimeError, UnhandledError) as error:
            raise story.broken(f"{type(error).__name__}: {error}") from error
    return story
