"""One connection between two processes, step by step: what the cases with two namespaces have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.processes import Worker

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab.namespace import Namespace

__all__ = ["Session", "session"]


@dataclass(frozen=True, slots=True)
class Session:
    """Two processes with an agent each, that have gathered; ``descriptions`` are what each told."""

    sides: tuple[Worker, Worker]
    descriptions: tuple[list[str], list[str]]

    def connect(self, limit_s: float, head_start_s: float = 0.0) -> float | None:
        """Tell both the other's description, the second one ``head_start_s`` later than the first.

        Returns:
            seconds from the later one's start until both were connected; ``None``: not within ``limit_s``. Time
            counts only if data went both ways afterwards.
        """
        for side, theirs in zip(self.sides, reversed(self.descriptions), strict=True):
            side.send("connect", descriptions=theirs, limit_s=limit_s)
            if side is self.sides[0]:
                time.sleep(head_start_s)
        replies = [side.reply(limit_s + 10) for side in self.sides]
        if any(reply["connected"] is None for reply in replies):
            return None
        for side in self.sides:
            side.send("exchange")
        works = [side.reply() for side in self.sides]
        if not all(works):
            return None
        return float(max(r["connected"] for r in replies) - max(r["started"] for r in replies))


@contextlib.contextmanager
def session(
    first: Namespace,
    second: Namespace,
    name: str,
    *,
    first_controls: bool = True,
    function: str = "bench.side:serve",
    **arguments: Any,
) -> Iterator[Session]:
    """Agents of one make on both sides, gathered on every address there is.

    Args:
        first: where one is.
        second: where the other is.
        name: of the make.
        first_controls: their roles.
        function: what each process runs; obeys as :func:`bench.side.serve` does.
        arguments: more of that function's.
    """
    common = {"name": name, "loopback_hosts": [], **arguments}
    with (
        Worker(first, function, controlling=first_controls, **common) as a,
        Worker(second, function, controlling=not first_controls, **common) as b,
    ):
        for side in (a, b):
            side.send("gather", count=1)
        yield Session((a, b), (a.reply(), b.reply()))
