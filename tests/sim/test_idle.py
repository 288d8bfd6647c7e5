"""What do sessions do that are connected and carry no data? Packets and wake-ups are counted, not time."""

from __future__ import annotations

from itertools import pairwise

from iceagent.config import Config
from iceagent.core.session import IceSession
from iceagent.core.wakeups import WakeUps
from iceagent.description import Description
from iceagent.events import AgentState
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from relay.stun import parse
from tests.sim.world import host_candidate, make_session

COUNT = 50
MINUTES = 10


class Idle:
    """Sessions of one process, each with a peer of its own that answers at once.

    Attributes:
        woken_at: when a timer of ours was due.
        awake_at: when our process had anything to do: a timer, or a datagram of a peer's.
        sent_at: our requests, per session.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.now = 0.0
        self.woken_at: set[float] = set()
        self.awake_at: set[float] = set()
        self.sent_at: list[list[float]] = [[] for _ in range(COUNT)]
        wakeups = WakeUps()
        self.ours = [make_session(True, seed, config, name="ours", wakeups=wakeups) for seed in range(COUNT)]
        self.theirs = [make_session(False, seed, config, name="theirs") for seed in range(COUNT)]
        for number in range(COUNT):
            sides = (self.ours[number], self.theirs[number])
            for i, side in enumerate(sides):
                base = TransportAddress(f"10.{i + 1}.0.1", 5000 + number)
                side.add_local_candidate(host_candidate(base), 0.0)
            for mine, other in (sides, sides[::-1]):
                candidates = tuple(other.local_candidates)
                mine.set_remote_description(
                    Description(credentials=other.local_credentials, candidates=candidates, complete=True), 0.0
                )
        for number in range(COUNT):
            self._exchange(number)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            deadlines = [(at, n) for n in range(COUNT) if (at := self._deadline(n)) is not None]
            at, number = min(deadlines)
            if at > end:
                break
            self.now = max(self.now, at)
            mine = self.ours[number].poll_timeout()
            if mine is not None and mine <= self.now:
                self.woken_at.add(self.now)
            self.ours[number].handle_timeout(self.now)
            self.theirs[number].handle_timeout(self.now)
            self._exchange(number)
        self.now = end

    def _deadline(self, number: int) -> float | None:
        times = (self.ours[number].poll_timeout(), self.theirs[number].poll_timeout())
        return min((at for at in times if at is not None), default=None)

    def _exchange(self, number: int) -> None:
        ours, theirs = self.ours[number], self.theirs[number]
        for _ in range(100):
            moved = self._move(ours, theirs, number) + self._move(theirs, ours, None)
            if not moved:
                return
        raise AssertionError(f"sessions {number} do not come to rest")

    def _move(self, sender: IceSession, receiver: IceSession, number: int | None) -> int:
        moved = 0
        while (transmit := sender.poll_transmit()) is not None:
            if number is not None and parse(transmit.data).is_request:
                self.sent_at[number].append(self.now)
            self.awake_at.add(self.now)
            receiver.handle_datagram(Datagram(transmit.destination, transmit.base, transmit.data), self.now)
            moved += 1
        while sender.poll_event() is not None:
            pass
        return moved


def connected(config: Config | None = None) -> Idle:
    idle = Idle(config)
    # Past the PAC timer and whatever else belongs to connecting.
    idle.run(60.0)
    assert {session.state for session in (*idle.ours, *idle.theirs)} == {AgentState.CONNECTED}
    idle.woken_at.clear()
    idle.awake_at.clear()
    for times in idle.sent_at:
        times.clear()
    return idle


def test_agents_of_one_process_share_wake_ups() -> None:
    """Fifty sessions wake their process twice a second at most, and each keeps RFC 7675's 4 to 6 s."""
    idle = connected(Config(consent_follows=False))
    idle.run(MINUTES * 60.0)
    assert len(idle.woken_at) <= 2 * MINUTES * 60
    for times in idle.sent_at:
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert min(gaps) >= 4.0 and max(gaps) <= 6.0
        assert MINUTES * 10 - 2 <= len(times) <= MINUTES * 15 + 2


def test_without_slack_every_session_wakes_the_process_by_itself() -> None:
    """``Config.consent_slack_s`` 0: RFC 7675, 5.1, "To prevent synchronization of consent checks"."""
    idle = connected(Config(consent_slack_s=0.0, consent_follows=False))
    idle.run(60.0)
    assert len(idle.woken_at) == sum(len(times) for times in idle.sent_at) >= COUNT * 9


def test_an_idle_session_wakes_up_for_consent_alone() -> None:
    """One wake-up per check of ours: no timer of another part comes between them."""
    idle = connected(Config(consent_follows=False))
    idle.run(60.0)
    sent = sorted({at for times in idle.sent_at for at in times})
    assert sorted(idle.woken_at) == sent


def test_with_the_defaults_half_of_the_wake_ups_are_saved_that_peers_cause() -> None:
    """Fifty peers of other processes wake ours ten times a second; what follows them needs no wake-up of its own."""
    awake = {}
    for follows in (True, False):
        idle = connected(Config(consent_follows=follows))
        idle.run(MINUTES * 60.0)
        awake[follows] = len(idle.awake_at) / (MINUTES * 60.0)
        for times in idle.sent_at:
            gaps = [later - sooner for sooner, later in pairwise(times)]
            assert min(gaps) >= 4.0 and max(gaps) <= 6.0
    assert awake[True] <= 7.0 and awake[True] <= 0.65 * awake[False], awake
