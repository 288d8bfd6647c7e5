"""What is measured: one file per question, each with ``run(options)`` for this process and what its workers do.

To add one: a file with ``run``, and a row in :data:`CASES`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BY_NAME_ONLY", "CASES", "Options"]

CASES = {
    "connect": "bench.cases.connect",
    "unanswered": "bench.cases.unanswered",
    "firewalls": "bench.cases.firewalls",
    "lossy-nats": "bench.cases.lossy_nats",
    "dead-server": "bench.cases.dead_server",
    "datagrams": "bench.cases.datagrams",
    "relay": "bench.cases.relay",
    "turn-server": "bench.cases.turn_server",
    "reflect": "bench.cases.reflect",
    "latch": "bench.cases.latch",
    "portmap": "bench.cases.portmap",
    "codec": "bench.cases.stun_codec",
    "rtc": "bench.cases.rtc",
    "idle": "bench.cases.idle",
    "survival": "bench.cases.survival",
}
"""Name on the command line → module."""

BY_NAME_ONLY = frozenset({"survival"})
"""Those that take much longer than all others, and are measured when they are asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: of everything that takes turns, 1 or more.
        seed: of what is drawn at random.
        rows: of ``survival``, these alone; empty: all.
        results: where ``survival`` keeps what it has measured, and goes on from; ``None``: in the folder for temporary
            files.
    """

    rounds: int
    seed: int
    rows: tuple[str, ...] = ()
    results: Path | None = None

    def tell(self, text: str) -> None:
        """Say on standard error how far it is."""
        print(text, file=sys.stderr, flush=True)
