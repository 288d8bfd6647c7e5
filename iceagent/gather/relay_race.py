"""Which TURN server is asked when, over which transport, and what happens after it said no?

One :class:`RelayRace` per entry of ``Config.servers`` and component: its URLs are ways to one service, and one
allocation is wanted. Those over UDP are asked at once; those over TCP and TLS a tenth of a second later, if nothing
came over UDP until then. The first that allocates wins, the others are given up.

What a server says is obeyed: another server (300), never one twice within five minutes; another socket (437), three
times; a minute (486, 508); never again (wrong password, 400, 403) until something changes here. When everything was
tried, it begins anew after a pause that doubles up to a minute. When an allocation is lost, it begins anew at once, and
for a minute the pauses stay short, and so do the attempts: somebody has used it, and a server that is restarted or a
network that comes back is to be found within seconds. While the server of an allocation is silent, the other ways are
tried: if one of them allocates, it has won.

A core (``iceagent/net/core.py``) without packets: its events say what to do. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.turn import AllocationRefused

__all__ = ["Abandon", "Attempt", "GaveUp", "RelayRace", "RenewCredentials", "Target", "Transport"]

# RFC 8656, 3.1 prefers UDP; a path that lets UDP through answers within this time mostly.
STREAM_DELAY_S = 0.1
# Something came over UDP, and then nothing any more.
MAX_STREAM_DELAY_S = 1.0
# RFC 8656, 7.4: "SHOULD try three different client transport addresses before giving up".
MAX_SOCKETS = 3
# RFC 8489, 10: "within the last five minutes, it MUST ignore the redirection".
REDIRECTION_S = 300.0
MAX_REDIRECTIONS = 4
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 60.0
# An allocation that lasted this long was a good one: the next begins at once.
GOOD_S = 10.0
# After a good one was lost. An attempt of 2.5 s and a pause of two: a request every three seconds at least.
EAGER_S = 60.0
# Of its lifetime; the rest is for asking.
CREDENTIALS_SHARE = 0.8


class Transport(Enum):
    """Between us and the server."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One way to ask.

    Attributes:
        url: the URI that it comes from.
        transport: see there.
        address: of the server.
        name: the server's, which its certificate has to have.
    """

    url: str
    transport: Transport
    address: TransportAddress
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Event):
    """Ask this target, from a new socket or stream.

    Attributes:
        number: what it is called when something is said of it.
        is_brief: for a few seconds only; another one follows.
    """

    number: int
    target: Target
    is_brief: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon(Event):
    """Another one was quicker: give back what it has."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp(Event):
    """No target gives an allocation; each has been told of.

    Attributes:
        again_in_s: when it begins anew; ``None``: when something changes here.
    """

    again_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewCredentials(Event):
    """The credentials end soon."""


@dataclass(slots=True, eq=False)
class _Runner:
    target: Target
    sockets: int = 1
    redirections: int = 0
    is_heard: bool = False


class RelayRace:
    """See the module.

    Attributes:
        winner: the number of the attempt that has allocated; ``None``: none has.
    """

    def __init__(self) -> None:
        self._targets: list[Target] = []
        self._running: dict[int, _Runner] = {}
        self._count = 0
        self._streams_at: float | None = None
        self._again_at: float | None = None
        self._renew_at: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._won_at = 0.0
        self._began_at = 0.0
        self._wait_s: list[float | None] = []
        self._visited: dict[TransportAddress, float] = {}
        self._quick_losses = 0
        self._eager_until = float("-inf")
        self._tried: set[Target] = set()
        self._has_begun = False
        self._winner_target: Target | None = None
        self._events: deque[Event] = deque()
        self.winner: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the first answer is still to come."""
        return self._has_begun and self.winner is None and (bool(self._running) or self._streams_at is not None)

    @property
    def has_targets(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self._targets)

    # --- commands ------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Ask. What is known by now of targets; later ones join in."""
        self._has_begun = True
        self._again_at = None
        if self.winner is not None or self._running:
            return
        self._start(now)

    def add_targets(self, targets: Sequence[Target], now: float) -> None:
        """A name was resolved."""
        new = [target for target in targets if target not in self._targets]
        self._targets += new
        if not self._has_begun or self.winner is not None or not new:
            return
        if self._again_at is None and not self._running and self._streams_at is None:
            self._start(now)
            return
        for target in new:
            if target.transport is Transport.UDP:
                self._run(_Runner(target), now)
        if self._streams_at is None and any(target.transport is not Transport.UDP for target in new):
            # A UDP target that was just asked has its time.
            self._streams_at = max(now, self._began_at + STREAM_DELAY_S)
            self.handle_timeout(now)

    def heard(self, number: int, now: float) -> None:
        """Something came from the server."""
        runner = self._running.get(number)
        if runner is not None:
            runner.is_heard = True

    def won(self, number: int, now: float) -> None:
        """It has allocated."""
        if self.winner is not None and self.winner != number:
            self._events.append(Abandon(number=self.winner))
        runner = self._running.get(number)
        self._winner_target = None if runner is None else runner.target
        self.winner = number
        self._won_at = now
        self._end_others(number)

    def challenged(self, number: int, now: float, *, is_elsewhere: bool = False) -> None:
        """The server of what it has allocated is silent: the others may do better; and so may itself, if it is asked
        from elsewhere.
        """
        if self.winner == number and self._running.keys() <= {number} and self._streams_at is None:
            self._start(now, but=None if is_elsewhere else self._winner_target)

    def confirmed(self, number: int, now: float) -> None:
        """It is not silent any more."""
        if self.winner == number:
            self._end_others(number)

    def refused(self, number: int, refusal: AllocationRefused, now: float) -> None:
        """The server has said no, or nothing."""
        runner = self._running.pop(number, None)
        if runner is None or number == self.winner:
            return
        if refusal.code == 300 and refusal.alternate is not None and self._follow(runner, refusal, now):
            return
        if refusal.code == 437 and runner.sockets < MAX_SOCKETS:
            runner.sockets += 1
            self._run(runner, now)
            return
        # A redirection in a circle is no word on whether to ask again.
        self._wait_s.append(0.0 if refusal.code == 300 else refusal.wait_s)
        if self._running.keys() - {self.winner}:
            return
        if self._streams_at is not None:
            self._start_streams(now)
        if not self._running and self.winner is None:
            self._give_up(now)

    def lost(self, number: int, now: float, *, is_refused: bool = False) -> None:
        """What it had allocated is gone."""
        self._running.pop(number, None)
        if self.winner != number:
            return
        self.winner = self._winner_target = None
        if self._running or self._streams_at is not None:
            # The others are being asked.
            return
        if is_refused:
            self._wait_s = [None]
            self._give_up(now)
            return
        if now - self._won_at >= GOOD_S:
            self._pause_s = FIRST_PAUSE_S
            self._quick_losses = 0
            self._eager_until = now + EAGER_S
        else:
            self._quick_losses += 1
        if self._quick_losses <= 1:
            self._start(now)
        else:
            self._wait_s = [0.0]
            self._give_up(now)

    def given_credentials(self, lifetime_s: float | None, now: float) -> None:
        """They are good for so long."""
        self._renew_at = None if lifetime_s is None else now + lifetime_s * CREDENTIALS_SHARE

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """There are none."""

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """There are none."""

    def handle_timeout(self, now: float) -> None:
        """The streams' turn; the next round; new credentials."""
        if self._streams_at is not None and now >= self._streams_at:
            if any(runner.is_heard for runner in self._running.values()) and now < self._began_at + MAX_STREAM_DELAY_S:
                # UDP works: whatever it says, says the server.
                self._streams_at = min(now + STREAM_DELAY_S, self._began_at + MAX_STREAM_DELAY_S)
            else:
                self._start_streams(now)
        if self._again_at is not None and now >= self._again_at:
            self.begin(now)
        if self._renew_at is not None and now >= self._renew_at:
            self._renew_at = None
            self._events.append(RenewCredentials())

    def poll_timeout(self) -> float | None:
        """When one of them is due."""
        due = (self._streams_at, self._again_at, self._renew_at)
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """There are none."""
        return None

    def poll_event(self) -> Event | None:
        """What is to be done."""
        return self._events.popleft() if self._events else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _start(self, now: float, but: Target | None = None) -> None:
        self._again_at = None
        self._wait_s = []
        self._began_at = now
        self._tried = set() if but is None else {but}
        targets = [target for target in self._targets if target != but]
        datagrams = [target for target in targets if target.transport is Transport.UDP]
        if not targets:
            return
        for target in datagrams:
            self._run(_Runner(target), now)
        if len(datagrams) == len(targets):
            self._streams_at = None
        elif datagrams:
            self._streams_at = now + STREAM_DELAY_S
        else:
            self._start_streams(now)

    def _start_streams(self, now: float) -> None:
        self._streams_at = None
        for target in self._targets:
            if target.transport is not Transport.UDP and target not in self._tried:
                self._run(_Runner(target), now)

    def _run(self, runner: _Runner, now: float) -> None:
        self._count += 1
        self._running[self._count] = runner
        runner.is_heard = False
        self._tried.add(runner.target)
        self._visited = {server: at for server, at in self._visited.items() if now - at < REDIRECTION_S}
        self._visited[runner.target.address] = now
        is_brief = now < self._eager_until
        self._events.append(Attempt(number=self._count, target=runner.target, is_brief=is_brief))

    def _follow(self, runner: _Runner, refusal: AllocationRefused, now: float) -> bool:
        """RFC 8489, 10: "using the same transport protocol", and a guard against going round in circles."""
        alternate = refusal.alternate
        assert alternate is not None
        visited_at = self._visited.get(alternate)
        is_loop = visited_at is not None and now - visited_at < REDIRECTION_S
        if is_loop or runner.redirections >= MAX_REDIRECTIONS:
            return False
        old = runner.target
        name = refusal.domain or old.name
        target = Target(url=old.url, transport=old.transport, address=alternate, name=name)
        self._run(_Runner(target, redirections=runner.redirections + 1), now)
        return True

    def _end_others(self, number: int) -> None:
        self._streams_at = self._again_at = None
        for other in list(self._running):
            if other != number:
                del self._running[other]
                self._events.append(Abandon(number=other))

    def _give_up(self, now: float) -> None:
        waits = [wait for wait in self._wait_s if wait is not None]
        again_in = max(min(waits), self._pause_s) if waits else None
        if again_in is not None:
            self._again_at = now + again_in
            if now >= self._eager_until:
                self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        self._events.append(GaveUp(again_in_s=again_in))
