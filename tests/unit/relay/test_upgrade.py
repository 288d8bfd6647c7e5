"""When is a path doubted, asked, left and trusted again? A path is a row of numbers here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import pytest

from relay.upgrade import TIMINGS, Decision, PathWatch, Verdict


@dataclass(slots=True, kw_only=True)
class Row:
    """What is known of a path."""

    key: str = "path"
    rtt_s: float | None = 0.04
    received_at: float = 0.0
    answered_at: float = 99.9
    asked_at: float = 0.0
    sent_at: float = 0.0
    unanswered_at: float = 0.0

    @property
    def heard_at(self) -> float:
        return max(self.received_at, self.answered_at)


class Story:
    """A watch, the path and what stands by, and a clock that stops where the watch wants to look."""

    def __init__(self, *, rtt_s: float | None = 0.04) -> None:
        self.now = 100.0
        self.path = Row(rtt_s=rtt_s)
        self.other = Row(key="other", rtt_s=rtt_s)
        self.watch = PathWatch(self.path, self.now)
        self.told: list[tuple[float, Decision]] = []
        # So long after it was asked, it answers.
        self.answers: dict[str, float] = {}
        self._due: list[tuple[float, Row]] = []
        self.has_moved = False

    def send(self) -> None:
        """The application sends a datagram."""
        self.path.sent_at = self.now
        if self.path.unanswered_at <= self.path.received_at:
            self.path.unanswered_at = self.now
        if not self.watch.is_awake:
            self.watch.wake(self.now)

    def look(self) -> None:
        for _ in range(10):
            decision = self.watch.look([self.other], self.now)
            if decision.verdict is Verdict.STAY:
                return
            self.told.append((round(self.now, 3), decision))
            if decision.verdict is Verdict.ASK:
                for row in (self.path, self.other):
                    if row.asked_at <= row.answered_at:
                        row.asked_at = self.now
                    if row.key in self.answers:
                        self._due.append((self.now + self.answers[row.key], row))
            if decision.verdict is Verdict.MOVE:
                self.has_moved = True
                return
        raise AssertionError("it does not come to rest")

    def run(self, seconds: float, *, every: float | None = None) -> None:
        """Let time pass; ``every``: the application sends so often."""
        end = self.now + seconds
        next_send = math.inf if every is None else self.now
        for _ in range(100_000):
            self._due.sort(key=lambda entry: entry[0])
            arrival = self._due[0][0] if self._due else math.inf
            at = min(self.watch.poll_timeout(), arrival, next_send)
            if at > end or self.has_moved:
                break
            self.now = max(self.now, at)
            if next_send <= self.now:
                self.send()
                next_send = self.now + (every or math.inf)
            while self._due and self._due[0][0] <= self.now:
                _, row = self._due.pop(0)
                row.answered_at = self.now
            self.look()
        else:
            raise AssertionError("time stands still")
        self.now = end

    @property
    def verdicts(self) -> list[tuple[float, Verdict]]:
        return [(round(at - 100.0, 3), decision.verdict) for at, decision in self.told]


def test_a_path_that_falls_silent_is_asked_twice_and_left_within_a_second() -> None:
    story = Story()
    story.answers["other"] = 0.04
    story.run(3.0, every=0.1)
    assert story.verdicts == [(0.3, Verdict.ASK), (0.5, Verdict.ASK), (0.7, Verdict.MOVE)]
    assert story.told[-1][1].to is story.other
    assert story.told[-1][1].reason == "nothing came back for 0.3 s; another path answers"
    assert not story.watch.in_doubt


def test_what_answers_is_trusted_and_doubted_later_the_next_time() -> None:
    """An application that sends and hears nothing back costs few checks: each answer counts as something heard."""
    story = Story()
    story.answers["path"] = story.answers["other"] = 0.04
    story.run(60.0, every=0.1)
    assert story.verdicts == [(0.3, Verdict.ASK), (0.34, Verdict.TRUST)]


def test_who_thinks_before_it_answers_is_doubted_ever_less() -> None:
    """Request and response with half a second between: the first doubts show that it is no failure."""
    story = Story()
    story.answers["path"] = story.answers["other"] = 0.04
    for _ in range(60):
        story.send()
        story.run(0.5)
        story.path.received_at = story.now
        story.run(0.5)
    doubts = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert doubts[0] == 0.3
    # Each ten seconds or so one that is in vain.
    assert len(doubts) <= 7


def test_nobody_answers() -> None:
    """The path is lost after 1.5 s, which is told once; it is asked on, twice a second while data is sent."""
    story = Story()
    story.run(4.0, every=0.1)
    kinds = [verdict for _, verdict in story.verdicts]
    assert kinds.count(Verdict.LOST) == 1
    assert story.verdicts[3] == (1.5, Verdict.LOST)
    assert story.watch.is_lost
    asked = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert asked == [0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    story.path.answered_at = story.now
    story.look()
    assert story.told[-1][1].verdict is Verdict.TRUST


def test_without_data_it_is_asked_ever_more_rarely() -> None:
    story = Story()
    story.path.asked_at = 100.5
    story.run(30.0)
    asked = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert asked == [1.0, 1.2, 1.7, 2.7, 4.7, 8.7, 12.7, 16.7, 20.7, 24.7, 28.7]
    assert (2.9, Verdict.LOST) in story.verdicts


def test_without_data_more_checks_are_needed_than_with_it() -> None:
    """One in five is lost where each way loses a tenth; data that wanders serves nobody."""
    story = Story()
    story.answers["other"] = 0.04
    story.path.asked_at = 100.5
    story.run(5.0)
    asked = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert (asked, story.verdicts[-1]) == ([1.0, 1.2, 1.7, 2.7], (2.9, Verdict.MOVE))


def test_what_still_comes_in_asks_for_patience_too() -> None:
    """The peer is heard, our checks are not answered: our way there is broken, or checks were lost."""
    story = Story()
    story.answers["other"] = 0.04
    story.path.asked_at = 100.5
    for _ in range(60):
        story.path.received_at = story.now
        story.run(0.1, every=0.1)
        if story.has_moved:
            break
    asked = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert len(asked) == 4 and story.verdicts[-1][1] is Verdict.MOVE
    assert story.verdicts[-1][0] <= asked[-1] + 0.31


def test_long_ways_have_more_time() -> None:
    story = Story(rtt_s=0.5)
    story.answers["other"] = 0.5
    story.run(5.0, every=0.1)
    assert (story.verdicts[:2], story.verdicts[-1]) == ([(1.5, Verdict.ASK), (1.7, Verdict.ASK)], (2.7, Verdict.MOVE))


def test_an_idle_path_is_not_looked_at() -> None:
    story = Story()
    story.run(1.0, every=0.1)
    story.answers["path"] = 0.04
    story.run(10.0)
    assert not story.watch.is_awake
    assert story.watch.poll_timeout() == math.inf


def test_a_reported_loss_moves_whatever_the_path_answers() -> None:
    story = Story()
    story.answers["path"] = story.answers["other"] = 0.04
    story.watch.report_loss(story.now)
    story.run(1.0)
    assert story.verdicts == [(0.0, Verdict.ASK), (0.04, Verdict.MOVE)]
    assert story.told[-1][1].reason == "the application reports loss; another path answers"


def test_a_reported_loss_with_nowhere_to_go() -> None:
    story = Story()
    story.answers["path"] = 0.04
    story.watch.report_loss(story.now)
    story.run(2.0)
    assert story.verdicts[-1] == (1.5, Verdict.STUCK)
    assert not story.watch.in_doubt


def test_hearsay_counts_every_four_seconds() -> None:
    """RFC 7675, 5.1: whoever can forge ICMP errors makes us ask no more often than consent does."""
    story = Story()
    story.answers["path"] = 0.01
    began = []
    for number in range(100):
        story.now = 100.0 + number / 8
        if story.watch.doubt("ICMP", story.now, is_hearsay=True):
            began.append(story.now - 100.0)
        story.look()
        story.run(0.1)
    assert began == [0.0, 4.0, 8.0, 12.0]
    assert story.watch.doubt("our end moved", story.now)
    assert not story.watch.doubt("again", story.now)


def test_an_answer_from_before_proves_nothing() -> None:
    story = Story()
    story.path.answered_at = story.now
    story.now += 0.001
    story.watch.doubt("our end moved", story.now)
    story.look()
    assert story.watch.in_doubt


@pytest.mark.parametrize("seed", range(50))
def test_time_never_stands_still_and_every_wait_has_an_end(seed: int) -> None:
    """Whatever comes in whatever order, a look changes when the next one is due."""
    rng = Random(seed)
    story = Story(rtt_s=rng.choice([None, 0.001, 0.04, 0.7]))
    for _ in range(300):
        if story.has_moved:
            story.has_moved, story.watch = False, PathWatch(story.path, story.now)
        story.answers = {key: rng.uniform(0.001, 1.0) for key in ("path", "other") if rng.random() < 0.5}
        act = rng.randrange(5)
        if act == 0:
            story.watch.report_loss(story.now)
        elif act == 1:
            story.watch.doubt("something", story.now, is_hearsay=rng.random() < 0.5)
        elif act == 2:
            story.path.received_at = story.now
        story.look()
        story.run(rng.uniform(0.0, 3.0), every=rng.choice([None, 0.02, 0.5]))
        assert story.has_moved or story.watch.poll_timeout() > story.now
    asked = [at for at, verdict in story.verdicts if verdict is Verdict.ASK]
    assert len(asked) <= 2 + (story.now - 100.0) / TIMINGS.ask_again_s
