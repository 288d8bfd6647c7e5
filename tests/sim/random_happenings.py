"""What may happen to the two ends of a random story, and to the network between them?

:data:`EVENTS` names it all. Most of it is over after a while, and all of it with :meth:`Happenings.heal`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.testing import NatNode, VirtualLoop, box_of_kind
from iceagent.testing.catalogue import NAT_KINDS
from iceagent.testing.links import Pipe
from relay.places import Relaying
from relay.server import Server, ServerOptions
from relay.turn.server import Accounts, TurnOptions
from tests.shell.world import World
from tests.sim.random_sides import Home, Side

__all__ = ["EVENTS", "PASSWORD", "USER", "Happenings", "Turn"]

SERVER = 3478
USER, PASSWORD = "user", "secret"
KINDS = (*NAT_KINDS, "open", "firewall")

EVENTS = {
    "carrier_lost": 3,
    "address_lost": 3,
    "roams": 2,
    "nat_reboots": 3,
    "nat_readdressed": 2,
    "path_blackholed": 5,
    "peer_blocked": 2,
    "everything_blackholed": 2,
    "turn_killed": 2,
    "turn_unreachable": 2,
    "delay_changes": 3,
    "loss": 2,
    "restart": 4,
    "idle": 2,
    "loss_reported": 2,
    "held_up": 2,
}
"""What may happen, and how often: methods of :class:`Story`."""


class Turn:
    """A TURN server that can be killed, and started again without a memory."""

    def __init__(self, world: World, name: str, host: str, rng: random.Random) -> None:
        self.machine = world.host(name, host)
        self.host = host
        self._server: Server | None = None
        # RFC 8016: an allocation follows its client to another address.
        self._mobility = rng.random() < 0.5

    @property
    def is_running(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        if self._server is None:
            turn = TurnOptions(accounts=Accounts(realm="example.org", users={USER: PASSWORD}), mobility=self._mobility)
            options = ServerOptions(relaying=Relaying(turn=turn))
            self._server = Server(self.machine, [TransportAddress(self.host, SERVER)], options=options)
            await self._server.__aenter__()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()


@dataclass(eq=False)
class _Holds:
    """Pipes that are cut, each by as many as hold it."""

    counts: Counter[int] = field(default_factory=Counter)

    def cut(self, pipe: Pipe) -> None:
        self.counts[id(pipe)] += 1
        pipe.is_cut = True

    def restore(self, pipe: Pipe) -> None:
        self.counts[id(pipe)] -= 1
        pipe.is_cut = self.counts[id(pipe)] > 0


class Happenings:
    """A network, and what happens to it.

    Args:
        seed: everything is drawn from it.

    Attributes:
        lines: what happened, with its time.
        changed_at: when the network last changed.
        is_other_network: something is not as it was when they connected, whatever heals: a mapping, an address, an
            allocation.
        is_lossy: packets were lost at random.
        signals: what an application signals arrives.
    """

    world: World
    sides: tuple[Side, Side]
    turns: list[Turn]
    reporter: Side

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.signals = True
        self.lines: list[str] = []
        self.changed_at = 0.0
        self.is_other_network = False
        self.is_lossy = False
        self._next_octet = 1
        self._holds = _Holds()
        self._undo: dict[asyncio.TimerHandle, Callable[[], None]] = {}
        self._work: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        return self.world.now

    def note(self, text: str) -> None:
        self.lines.append(f"{self.now:8.3f} {text}")

    def happen(self) -> None:
        """One thing, drawn from :data:`EVENTS`."""
        names = list(EVENTS)
        name = self.rng.choices(names, [EVENTS[each] for each in names])[0]
        getattr(self, name)()

    def heal(self) -> None:
        """Whatever is to be over some time is over now."""
        for handle, expire in list(self._undo.items()):
            handle.cancel()
            expire()

    async def stop(self) -> None:
        """Nothing more happens."""
        for handle in self._undo:
            handle.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for turn in self.turns:
            await turn.stop()

    # --- the world -----------------------------------------------------------------------------------------------

    def _nat(self, name: str) -> NatNode:
        kind = self.rng.choice(KINDS)
        number = self._octet()
        return self.world.network.add_nat(
            f"{name}{number}:{kind}", box_of_kind(kind, [f"30.0.{number}.1"], self.world.rng), latency_s=0.005
        )

    def _inside(self, nat: NatNode) -> str:
        number = self._octet()
        return f"192.168.{number}.2" if nat.hosts else f"40.0.{number}.2"

    def _octet(self) -> int:
        self._next_octet += 1
        return self._next_octet

    # --- what happens --------------------------------------------------------------------------------------------

    def _changed(self, text: str) -> None:
        self.note(text)
        self.changed_at = self.now

    def _for_a_while(self, seconds: float, undo: Callable[[], None], text: str) -> None:
        def expire() -> None:
            del self._undo[handle]
            undo()
            self._changed(f"{text} is over")

        self._changed(f"{text} for {seconds:.1f} s")
        handle = self.world.internet.loop.call_later(seconds, expire)
        self._undo[handle] = expire

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _any_home(self) -> tuple[Side, Home]:
        side = self.rng.choice(self.sides)
        return side, self.rng.choice(side.homes)

    def _used_home(self) -> tuple[Side, Home]:
        """Of the path in use, mostly."""
        side, home = self._any_home()
        path = side.agent.path() if not side.is_closed else None
        if path is not None and self.rng.random() < 0.7:
            place = (
                side.agent._gathering.bases[path.base].host_address
                if path.base in side.agent._gathering.bases
                else None
            )
            home = next((each for each in side.homes if place is not None and each.host == place.host), home)
        return side, home

    def carrier_lost(self) -> None:
        side, home = self._used_home()
        if home.is_there and home.is_up:
            home.is_up = False
            side.machine.set_up(home.name, False)

            def undo() -> None:
                home.is_up = True
                side.machine.set_up(home.name, True)

            self._for_a_while(self.rng.uniform(0.2, 15.0), undo, f"{side.name} {home.name} has no carrier")

    def address_lost(self) -> None:
        side, home = self._used_home()
        if home.is_there and home.is_up:
            home.is_there = False
            self.is_other_network = True
            side.machine.remove_address(home.name, home.host)

            def undo() -> None:
                home.is_there = True
                side.machine.add_address(home.name, home.host)

            self._for_a_while(self.rng.uniform(0.2, 15.0), undo, f"{side.name} {home.name} has no address")

    def roams(self) -> None:
        side, home = self._used_home()
        if home.is_there and home.is_up:
            home.is_there = False
            self.is_other_network = True
            side.machine.remove_interface(home.name)

            def undo() -> None:
                home.is_there = True
                home.nat = self._nat(side.name)
                home.host = self._inside(home.nat)
                side.machine.add_interface(home.name, [home.host], home.nat)
                self.note(f"{side.name} {home.name} is {home.host} behind {home.nat.name}")

            self._for_a_while(self.rng.uniform(0.0, 5.0), undo, f"{side.name} roams with {home.name}, which is away")

    def nat_reboots(self) -> None:
        side, home = self._used_home()
        nat = home.nat
        nat.model.forget()
        self.is_other_network = True
        self._cut_for(
            self.rng.choice((0.1, 2.0, 10.0)), [nat], "both", f"the router of {side.name} {home.name} reboots"
        )

    def nat_readdressed(self) -> None:
        side, home = self._used_home()
        if home.nat.hosts:
            self.is_other_network = True
            host = f"30.0.{self._octet()}.1"
            self.world.network.readdress(home.nat, [host])
            self._changed(f"the router of {side.name} {home.name} is {host} now")

    def path_blackholed(self) -> None:
        side, home = self._used_home()
        ways = self.rng.choice(("both", "both", "up", "down"))
        self._cut_for(self.rng.uniform(0.3, 20.0), [home.nat], ways, f"{side.name} {home.name}: nothing passes {ways}")

    def peer_blocked(self) -> None:
        """The way to the peer's end of the path alone, in one direction."""
        side = self.rng.choice(self.sides)
        path = side.agent.path() if not side.is_closed else None
        if path is not None:
            host = path.remote.address.host
            nats = [home.nat for home in side.homes]
            for nat in nats:
                nat.blocked_hosts.add(host)

            def undo() -> None:
                for nat in nats:
                    nat.blocked_hosts.discard(host)

            self._for_a_while(self.rng.uniform(0.3, 20.0), undo, f"nothing passes from {side.name} to {host}")

    def everything_blackholed(self) -> None:
        side = self.rng.choice(self.sides)
        nats = [home.nat for home in side.homes]
        self._cut_for(self.rng.choice((1.0, 5.0, 10.0, 40.0)), nats, "both", f"{side.name} is cut off")

    def _cut_for(self, seconds: float, nats: list[NatNode], ways: str, text: str) -> None:
        pipes = [nat.link.up for nat in nats if ways != "down"] + [nat.link.down for nat in nats if ways != "up"]
        for pipe in pipes:
            self._holds.cut(pipe)

        def undo() -> None:
            for pipe in pipes:
                self._holds.restore(pipe)

        self._for_a_while(seconds, undo, text)

    def turn_killed(self) -> None:
        turn = self.rng.choice(self.turns)
        if turn.is_running:
            self.is_other_network = True
            self._do(turn.stop())
            self._for_a_while(
                self.rng.uniform(0.0, 15.0), lambda: self._do(turn.start()), f"{turn.machine.node.name} is dead"
            )

    def turn_unreachable(self) -> None:
        turn = self.rng.choice(self.turns)
        link = turn.machine.link()
        for pipe in (link.up, link.down):
            self._holds.cut(pipe)

        def undo() -> None:
            for pipe in (link.up, link.down):
                self._holds.restore(pipe)

        self._for_a_while(self.rng.uniform(1.0, 20.0), undo, f"{turn.machine.node.name} is not reached")

    def delay_changes(self) -> None:
        side, home = self._used_home()
        latency_s = self.rng.uniform(0.005, 0.150)
        home.nat.link.up.latency_s = home.nat.link.down.latency_s = latency_s
        self._changed(f"{side.name} {home.name}: {latency_s * 1000:.0f} ms")

    def loss(self) -> None:
        side, home = self._used_home()
        link = home.nat.link
        link.up.loss, link.down.loss = (self.rng.uniform(0.05, 0.2) for _ in range(2))
        self.is_lossy = True

        def undo() -> None:
            link.up.loss = link.down.loss = 0.0

        self._for_a_while(self.rng.uniform(3.0, 20.0), undo, f"{side.name} {home.name} loses {link.up.loss:.0%}")

    def restart(self) -> None:
        if self.signals or self.rng.random() < 0.2:
            sides = self.rng.choice((self.sides[:1], self.sides[1:], self.sides))
            self.note(f"restart by {' and '.join(side.name for side in sides)}")
            for side in sides:
                side.restart()

    def idle(self) -> None:
        sides = self.rng.choice((self.sides[:1], self.sides[1:], self.sides, self.sides))
        seconds = self.rng.uniform(2.0, 20.0)
        self.note(f"{' and '.join(side.name for side in sides)} say nothing for {seconds:.1f} s")
        for side in sides:
            side.idle_until = self.now + seconds

    def loss_reported(self) -> None:
        """By one side or both at once: where each shuns what the other one wants, there is nothing to agree on."""
        sides = self.rng.choice(((self.reporter,), (self.reporter,), self.sides))
        self.note(f"{' and '.join(side.name for side in sides)} report loss")
        for side in sides:
            side.agent.report_loss()

    def held_up(self) -> None:
        """The process gets no time: both agents, and what is on its way to them."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seconds = self.rng.choice((0.2, 1.0, 3.0, 8.0))
        self._changed(f"the process is held up for {seconds:.1f} s")
        loop.clock.advance(seconds)
        self.changed_at = self.now
