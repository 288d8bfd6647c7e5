"""What is remembered of one binding whose lifetime is measured? See ``lifetime.py``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from iceagent.nat.lifetime_report import Use
from iceagent.net.address import TransportAddress

__all__ = ["Binding", "Stage"]


class Stage(Enum):
    FIRST = "the request that makes the binding"
    PAUSE = "until it can be a stream"
    SECOND = "the request that makes it one"
    WAIT = "silence, or keepalives"
    LOOK = "is it alive?"
    DONE = "looked at, or given up"


@dataclass(slots=True, eq=False)
class Binding:
    """X."""

    use: Use
    base: TransportAddress
    due_at: float | None
    silence_s: float = 0.0
    stage: Stage = Stage.FIRST
    tries: int = 0
    began_at: float = 0.0
    mapped: TransportAddress | None = None
    refreshed_at: float = 0.0
    heard_at: float = 0.0
    looked_at: float = 0.0

    @property
    def is_kept(self) -> bool:
        return self.use in (Use.ONE_WAY, Use.KEPT)

    @property
    def is_first(self) -> bool:
        """Whether it only shows that the far end does what is needed."""
        return self.silence_s == 0.0 and not self.is_kept
