"""Whose turn is it? RFC 6886, 3.1: "queue them and issue them serially, one at a time".

A request is sent nine times, and waited for 250 ms first and twice as long each time. It has two attempts in a row, so
0.75 s. One that is silent after that is likely to stay so, be it that the gateway does not know its opcode; its later
attempts keep others waiting for half a second each, the time that the RFC grants to a slow gateway, and not for their
whole wait of up to 64 s. An answer ends a turn at once; that nobody wants it any more does not. Deletions go first, and
let others have 250 ms only. Pure.

DEVIATION: so a request that is silent for its turn and the next one are outstanding together:
``test_the_long_wait_of_one_keeps_others_for_half_a_second``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WAITS", "Job", "RequestQueue"]

WAITS = tuple(0.25 * 2**attempt for attempt in range(9))
"""RFC 6886, 3.1: seconds; after "its ninth attempt (and then waiting for 64 seconds)" there is no server."""

# RFC 6886, 3.1: "a slow NAT gateway that takes perhaps half a second to respond".
_TURN_S = 0.5


@dataclass(slots=True, eq=False)
class Job:
    """A request that waits for its answer.

    Attributes:
        data: the request.
        identity: opcode and internal port, which an answer has again; port 0: of the external address.
        next_at: when it may be sent, or has failed.
        waits: how long to wait after each time it was sent.
        is_deletion: it goes first.
        sent: how often it was sent.
        first_sent_at: when first.
        sent_at: when last.
    """

    data: bytes
    identity: tuple[int, int]
    next_at: float
    waits: Sequence[float] = WAITS
    is_deletion: bool = False
    sent: int = 0
    first_sent_at: float = -math.inf
    sent_at: float = -math.inf

    def rtt_s(self, now: float) -> float | None:
        """From the request to its answer; ``None``: it was repeated, or never sent."""
        return now - self.first_sent_at if self.sent == 1 else None

    @property
    def rank(self) -> int:
        """Those of a lower one go first."""
        return 0 if self.is_deletion else 1 if self.sent < 2 else 2

    @property
    def is_over(self) -> bool:
        """Whether it is not sent any more, but only waited for."""
        return self.sent >= len(self.waits)


class RequestQueue:
    """See the module. Its size is its owner's, who has one mapping, at most, for each job."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        """In the order of their turns: deletions, those that had no turn yet, all others."""
        self._turn: Job | None = None
        """The one that was sent last, unless it was answered."""

    def add(self, job: Job) -> None:
        """It waits for its turn; see :meth:`next_request`."""
        index = sum(each.rank <= job.rank for each in self._jobs)
        self._jobs.insert(index, job)

    def on_answer(self, job: Job) -> None:
        """It was answered: the next one may have its turn."""
        self.remove(job)
        if self._turn is job:
            self._turn = None

    def remove(self, job: Job) -> None:
        """Nobody waits for it any more. The gateway may still be at work on it: its turn goes on."""
        if job in self._jobs:
            self._jobs.remove(job)

    def next_request(self, now: float) -> Job | None:
        """The request that is to be sent now; it has its turn then. ``None``: not now."""
        if now < self._turn_ends_at():
            return None
        job = next((job for job in self._jobs if job.next_at <= now and not job.is_over), None)
        if job is None:
            return None
        if not job.sent:
            job.first_sent_at = now
        job.sent_at, job.next_at = now, now + job.waits[job.sent]
        job.sent += 1
        if job.sent > 1:
            # The first time it keeps its place, and is the next one again.
            self._jobs.remove(job)
            self.add(job)
        self._turn = job
        return job

    def handle_timeout(self, now: float) -> list[Job]:
        """Time passed. What is returned had no answer, and is not here any more."""
        failed = [job for job in self._jobs if job.is_over and now >= job.next_at]
        for job in failed:
            self.remove(job)
        return failed

    def poll_timeout(self) -> float:
        """When there is something to do; infinite: never."""
        turn_ends_at = self._turn_ends_at()
        return min(
            (job.next_at if job.is_over else max(job.next_at, turn_ends_at) for job in self._jobs), default=math.inf
        )

    @property
    def outstanding(self) -> Job | None:
        """The request that an answer is most likely for: the last one that was sent, if it is still waited for."""
        return self._turn if self._turn in self._jobs else None

    def _turn_ends_at(self) -> float:
        job = self._turn
        if job is None:
            return -math.inf
        turn_s = min(job.waits[job.sent - 1], _TURN_S)
        if not job.is_deletion and any(each.is_deletion for each in self._jobs):
            turn_s = min(turn_s, WAITS[0])
        return job.sent_at + turn_s

    def __len__(self) -> int:
        return len(self._jobs)
