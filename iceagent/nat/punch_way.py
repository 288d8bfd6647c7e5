"""When does the next request to an address leave, and what is known of that address? See ``punching.py``. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from iceagent.nat.punch_report import Path
from iceagent.net.address import TransportAddress

__all__ = ["KEEPALIVE_TRIES", "Way"]

EARLY_S = (0.1, 0.1, 0.2, 0.4)
"""Between the first requests: a lost one must not cost a second."""

REPEAT_S = 1.0
"""Between all later ones: one packet a second is no load for anybody."""

KEEPALIVE_RETRY_S = 0.5
"""Before the second request of a keepalive; the following ones are a second apart."""

KEEPALIVE_TRIES = 4
"""Requests without an answer after which a path is lost: 3.5 s after the first."""


@dataclass(slots=True, eq=False)
class Way:
    """One of our sockets, and one address of the other end.

    Attributes:
        path: the two.
        is_learned: the address was not given: a request came from there.
        opener_at: when the next opener leaves; ``None``: none does.
        request_at: when the next request does, likewise.
        opened_at: when the last opener left.
        sent_at: when the last request did.
        asked_at: when the other end last asked from there.
        unanswered: requests since the last answer.
        has_answered: one did answer.
        mapped: our address as it was last seen there.
        complaint: why there may be no answer, a clause.
    """

    path: Path
    is_learned: bool = False
    opener_at: float | None = None
    request_at: float | None = None
    opened_at: float | None = None
    sent_at: float = float("-inf")
    asked_at: float = float("-inf")
    unanswered: int = 0
    has_answered: bool = False
    mapped: TransportAddress | None = None
    complaint: str = ""

    def note_request(self, now: float, *, is_path: bool) -> None:
        """A request has left; where the way is the path, it was a keepalive."""
        self.opener_at = None
        self.sent_at = now
        self.unanswered += 1
        if is_path:
            gap_s = KEEPALIVE_RETRY_S if self.unanswered == 1 else REPEAT_S
        else:
            gap_s = EARLY_S[self.unanswered - 1] if self.unanswered <= len(EARLY_S) else REPEAT_S
        self.request_at = now + gap_s

    def note_answer(self, mapped: TransportAddress | None) -> None:
        """One was answered: nothing more leaves by itself."""
        self.mapped = mapped
        self.unanswered, self.has_answered, self.complaint = 0, True, ""
        self.rest()

    def rest(self) -> None:
        """Nothing leaves by itself."""
        self.opener_at = self.request_at = None
