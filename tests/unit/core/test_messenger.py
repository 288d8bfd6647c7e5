"""When is a path message said, and said again, and what of the peer's is believed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.checker import Purpose
from iceagent.core.context import Context, Keys
from iceagent.core.messenger import Messenger
from iceagent.core.pair import CandidatePair
from iceagent.core.path_message import PathMessage
from iceagent.credentials import Credentials
from iceagent.net.address import TransportAddress

BASE, PEER = TransportAddress("192.0.2.1", 5000), TransportAddress("198.51.100.1", 6000)
KEYS = Keys.of(
    Credentials(ufrag="aaaa", password="a" * 22),
    Credentials(ufrag="bbbb", password="b" * 22),
)


def candidate(number: int) -> Candidate:
    return Candidate(
        foundation=f"f{number}",
        component=1,
        priority=1000 + number,
        address=TransportAddress("203.0.113.1", 1000 + number),
        type=CandidateType.HOST,
    )


def pair(number: int = 1, rtt_s: float | None = 0.02) -> CandidatePair:
    """A valid one."""
    local = Candidate(foundation="l", component=1, priority=number, address=BASE, type=CandidateType.HOST, base=BASE)
    made = CandidatePair(number=number, local=local, remote=candidate(number), keys=KEYS)
    made.rtt_s = rtt_s
    made.valid_local = local
    return made


@dataclass
class Wire:
    """Both the checker and the listener: what was sent, and what was believed."""

    ways: list[CandidatePair]
    context: Context
    sent: list[tuple[float, CandidatePair, PathMessage]] = field(default_factory=list)
    told: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messenger = Messenger(self.context, self, self, self.ways_now)  # type: ignore[arg-type]

    def ways_now(self, everywhere: bool, now: float) -> list[CandidatePair]:
        return self.ways if everywhere else self.ways[:1]

    def check(self, over: CandidatePair, purpose: Purpose, now: float, *, message: tuple[int, bytes]) -> None:
        assert purpose is Purpose.MESSAGE
        serial, data = message
        found = PathMessage.decode(data)
        assert found.serial == serial
        self.sent.append((now, over, found))

    def peer_told_candidates(self, added: Sequence[Candidate], withdrawn: Sequence[Candidate], now: float) -> None:
        self.told.append(("candidates", [c.foundation for c in added], [c.foundation for c in withdrawn]))

    def peer_checks(self, after_s: float, now: float) -> None:
        self.told.append(("check", after_s))

    def peer_wishes(self, base: TransportAddress, source: TransportAddress, now: float, *, is_eaten: bool) -> None:
        self.told.append(("wish", base, source, is_eaten))

    def peer_closed(self, now: float) -> None:
        self.told.append(("closed",))

    def hear(self, message: PathMessage | bytes, now: float = 0.0) -> None:
        data = message if isinstance(message, bytes) else message.encode()
        self.messenger.handle_message(data, BASE, PEER, now)

    def run(self, until: float) -> None:
        """Let time pass."""
        for _ in range(10_000):
            at = self.messenger.poll_timeout()
            if at is None or at > until:
                return
            self.messenger.handle_timeout(at)
        raise AssertionError("it spins")

    def times(self) -> list[float]:
        return [round(at, 3) for at, _, _ in self.sent]


@pytest.fixture
def wire() -> Wire:
    rng = Random(1)
    context = Context(config=Config(), rng=rng, system_rng=rng, controlling=True, tie_breaker=1, keys=KEYS)
    return Wire([pair(1), pair(2), pair(3)], context)


def test_what_is_not_answered_is_said_again_over_more_ways_with_the_same_serial(wire: Wire) -> None:
    wire.messenger.tell_candidate(candidate(1), withdrawn=False, now=0.0)
    wire.run(3.5)
    # Five in any second: at 0.3 s one is left, at 0.7 s none.
    assert wire.times() == [0.0, 0.1, 0.1, 0.1, 0.3, 1.0, 1.8, 1.8, 1.8, 3.4, 3.4, 3.4]
    assert {message.serial for _, _, message in wire.sent} == {1}
    assert [over.number for _, over, _ in wire.sent][:4] == [1, 1, 2, 3]
    wire.messenger.handle_answer(1, 3.5)
    wire.run(100.0)
    assert len(wire.sent) == 12 and wire.messenger.poll_timeout() is None


def test_after_half_a_minute_nobody_is_told_any_more(wire: Wire) -> None:
    wire.messenger.tell_candidate(candidate(1), withdrawn=False, now=0.0)
    wire.run(1000.0)
    assert wire.times()[-1] <= 30.0 and not wire.messenger.is_open
    assert wire.context.counters["path messages not answered"] == 1


def test_never_more_than_five_requests_a_second(wire: Wire) -> None:
    for number in range(60):
        wire.messenger.tell_candidate(candidate(number), withdrawn=False, now=0.0)
        wire.messenger.wish(wire.ways[number % 3], 0.0)
    for step in range(100):
        wire.run(step / 10)
        for _, _, message in wire.sent[-3:]:
            wire.messenger.handle_answer(message.serial, step / 10)
    for at in wire.times():
        assert sum(at <= other < at + 0.999 for other in wire.times()) <= 5
    assert len(wire.sent) >= 20


def test_one_message_of_candidates_is_under_way_at_a_time_and_holds_eight(wire: Wire) -> None:
    for number in range(20):
        wire.messenger.tell_candidate(candidate(number), withdrawn=False, now=0.0)
    assert [len(message.added) for _, _, message in wire.sent] == [1]
    wire.messenger.handle_answer(1, 0.01)
    wire.messenger.handle_answer(2, 0.02)
    wire.messenger.handle_answer(3, 0.03)
    assert [len(message.added) for _, _, message in wire.sent] == [1, 8, 8, 3]


def test_what_came_and_went_is_told_once_as_it_is_now(wire: Wire) -> None:
    wire.messenger.tell_candidate(candidate(0), withdrawn=False, now=0.0)
    for withdrawn in (False, True, False, True):
        wire.messenger.tell_candidate(candidate(1), withdrawn=withdrawn, now=0.0)
    wire.messenger.handle_answer(1, 0.01)
    (_, _, message) = wire.sent[-1]
    assert not message.added and [c.foundation for c in message.withdrawn] == ["f1"]


def test_what_waits_does_not_grow_without_bound(wire: Wire) -> None:
    wire.ways.clear()
    for number in range(1000):
        wire.messenger.tell_candidate(candidate(number), withdrawn=False, now=0.0)
    assert wire.context.counters["candidates the peer was not told of"] == 1000 - 1 - 64
    wire.ways.append(pair(1))
    wire.messenger.handle_way(1.0)
    assert len(wire.sent) == 1


def test_a_wish_takes_the_place_of_the_one_before_and_is_said_once(wire: Wire) -> None:
    first, second = wire.ways[:2]
    for _ in range(10):
        wire.messenger.wish(first, 0.0)
    wire.messenger.wish(second, 0.05)
    wire.run(10.0)
    assert [over for _, over, _ in wire.sent] == [first] + [second] * 5
    assert not wire.messenger.is_open


def test_a_goodbye_is_said_three_times_and_over_all_ways_when_it_is_repeated(wire: Wire) -> None:
    assert wire.messenger.say_goodbye(0.0) == pytest.approx(0.12)
    wire.run(10.0)
    assert wire.times() == [0.0] + [0.04] * 3 + [0.08] * 3
    assert not wire.messenger.is_open


def test_a_pair_that_is_none_any_more_is_not_wished(wire: Wire) -> None:
    wire.messenger.wish(wire.ways[0], 0.0)
    wire.ways[0].valid_local = None
    wire.run(10.0)
    assert len(wire.sent) == 1


def test_a_look_is_announced_once(wire: Wire) -> None:
    assert wire.messenger.ask_for_checks(wire.ways[0], 5.0) == pytest.approx(5.01)
    wire.run(10.0)
    ((at, _, message),) = wire.sent
    assert (at, message.check_after_s) == (5.0, 0.0)


def test_everything_that_a_message_says_is_believed_once(wire: Wire) -> None:
    message = PathMessage(
        serial=5,
        nominate=True,
        is_eaten=True,
        check_after_s=0.25,
        added=(candidate(1),),
        withdrawn=(candidate(2),),
    )
    for _ in range(3):
        wire.hear(message)
    assert wire.told == [("candidates", ["f1"], ["f2"]), ("wish", BASE, PEER, True), ("check", 0.25)]
    assert wire.context.counters["path messages repeated"] == 2


def test_messages_may_overtake_each_other_but_none_is_replayed(wire: Wire) -> None:
    for serial in (3, 1, 2, 1, 3, 70, 6, 7, 5):
        wire.hear(PathMessage(serial=serial, check_after_s=serial / 1000), now=serial * 10.0)
    assert [told[1] for told in wire.told] == [0.003, 0.001, 0.002, 0.070, 0.007]


def test_a_replay_takes_no_turn_of_what_is_new(wire: Wire) -> None:
    for _ in range(1000):
        wire.hear(PathMessage(serial=1, check_after_s=0.0), now=1.0)
    wire.hear(PathMessage(serial=2, check_after_s=0.5), now=1.0)
    assert [told[1] for told in wire.told] == [0.0, 0.5]


def test_who_closes_says_nothing_else(wire: Wire) -> None:
    wire.hear(PathMessage(serial=1, closing=True, nominate=True, added=(candidate(1),)))
    assert wire.told == [("closed",)]


def test_a_peer_that_talks_too_much_is_not_heard(wire: Wire) -> None:
    for serial in range(1000):
        wire.hear(PathMessage(serial=serial, check_after_s=0.0), now=1.0)
    assert len(wire.told) == 20
    assert wire.context.counters["path messages over the limit"] == 980
    wire.hear(PathMessage(serial=2000, check_after_s=0.0), now=3.0)
    assert len(wire.told) == 21


def test_what_is_malformed_is_counted(wire: Wire) -> None:
    wire.hear(b"")
    wire.hear(b"\x07" * 40)
    assert wire.told == [] and wire.context.counters["path messages malformed"] == 2


@pytest.mark.parametrize(("component", "sent"), [(1, 2), (2, 5)])
def test_a_wish_that_is_none_any_more_is_not_said_again(wire: Wire, component: int, sent: int) -> None:
    """The peer has nominated something else meanwhile; a wish that comes late would undo that."""
    wire.messenger.wish(wire.ways[0], 0.0)
    wire.run(0.15)
    wire.messenger.wish_no_more(component)
    wire.run(10.0)
    assert len(wire.sent) == sent


def test_over_a_path_of_the_generation_before_nothing_is_said_but_a_goodbye(wire: Wire) -> None:
    """The peer would answer it, and believe nothing."""
    wire.context.keys = None
    wire.messenger.tell_candidate(candidate(1), withdrawn=False, now=0.0)
    wire.run(5.0)
    assert not wire.sent
    wire.context.keys = KEYS
    wire.messenger.handle_way(5.0)
    assert [message.added for _, _, message in wire.sent] == [(candidate(1),)]
    wire.context.keys = None
    wire.messenger.say_goodbye(6.0)
    assert wire.sent[-1][2].closing
