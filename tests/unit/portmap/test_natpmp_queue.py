"""Are NAT-PMP's requests sent one at a time, at the times of RFC 6886, 3.1?"""

from __future__ import annotations

import math

from portmap.natpmp.queue import WAITS, Job, RequestQueue


class Script:
    """A queue in virtual time.

    Attributes:
        sent: when which was sent.
        failed: when which was given up.
    """

    def __init__(self) -> None:
        self.queue = RequestQueue()
        self.now = 0.0
        self.sent: list[tuple[float, str]] = []
        self.failed: list[tuple[float, str]] = []

    def add(self, name: str, *, is_deletion: bool = False) -> Job:
        waits = (0.25, 0.25) if is_deletion else WAITS
        job = Job(name.encode(), (0, 0), self.now, waits=waits, is_deletion=is_deletion)
        self.queue.add(job)
        self.send()
        return job

    def answer(self, job: Job) -> None:
        self.queue.on_answer(job)
        self.send()

    def send(self) -> None:
        job = self.queue.next_request(self.now)
        if job is not None:
            self.sent.append((self.now, job.data.decode()))

    def run(self, until: float) -> None:
        while (at := self.queue.poll_timeout()) <= until:
            self.now = max(self.now, at)
            self.failed += [(self.now, job.data.decode()) for job in self.queue.handle_timeout(self.now)]
            self.send()
        self.now = until


def test_a_request_is_sent_nine_times_and_given_up_64_seconds_after_the_last() -> None:
    script = Script()
    script.add("a")
    script.run(1000)
    assert [at for at, _ in script.sent] == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75]
    assert script.failed == [(127.75, "a")]
    assert script.queue.poll_timeout() == math.inf


def test_the_next_one_leaves_when_the_one_before_is_answered() -> None:
    script = Script()
    first, second = script.add("a"), script.add("b")
    script.add("c")
    script.run(0.1)
    assert script.sent == [(0, "a")]
    script.answer(first)
    script.answer(second)
    assert script.sent == [(0, "a"), (0.1, "b"), (0.1, "c")]


def test_one_that_is_not_answered_has_two_attempts_before_others_have_their_turn() -> None:
    script = Script()
    script.add("a")
    script.add("b")
    script.run(2.4)
    assert script.sent == [(0, "a"), (0.25, "a"), (0.75, "b"), (1.0, "b"), (1.5, "a"), (2.0, "b")]


def test_the_long_wait_of_one_keeps_others_for_half_a_second() -> None:
    script = Script()
    script.add("a")
    script.run(63.8)
    script.sent.clear()
    script.add("b")
    script.run(64.3)
    assert script.sent == [(64.25, "b")]
    script.sent.clear()
    script.run(127.75)
    script.add("c")
    assert script.failed == [(127.75, "a")]


def test_a_deletion_goes_first_and_waits_250_ms_for_others() -> None:
    script = Script()
    script.add("a")
    script.run(0.3)
    script.add("b")
    script.add("delete c", is_deletion=True)
    script.add("delete d", is_deletion=True)
    script.run(1.6)
    assert script.sent == [
        (0, "a"),
        (0.25, "a"),
        (0.5, "delete c"),
        (0.75, "delete c"),
        (1.0, "delete d"),
        (1.25, "delete d"),
        (1.5, "b"),
    ]
    assert script.failed == [(1.0, "delete c"), (1.5, "delete d")]


def test_what_is_not_wanted_any_more_is_not_sent() -> None:
    script = Script()
    first, second = script.add("a"), script.add("b")
    script.queue.remove(second)
    script.queue.remove(second)
    script.queue.remove(first)
    assert script.queue.outstanding is None
    assert len(script.queue) == 0
    script.run(100)
    assert script.sent == [(0, "a")]


def test_a_request_that_is_not_wanted_any_more_is_still_given_its_time() -> None:
    """3.1: "allow the NAT gateway to operate at the pace it can manage"."""
    script = Script()
    first = script.add("a")
    script.queue.remove(first)
    script.run(0.1)
    script.add("b")
    script.run(0.4)
    assert script.sent == [(0, "a"), (0.25, "b")]


def test_the_time_of_an_answer_is_known_only_if_it_was_asked_for_once() -> None:
    script = Script()
    job = script.add("a")
    assert job.rtt_s(0.1) == 0.1
    script.run(0.25)
    assert job.rtt_s(0.3) is None
