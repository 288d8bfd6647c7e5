"""What is measured: one file per question, each with ``run(options)`` for this process and what its workers do.

To add one: a file with ``run``, and a row in :data:`CASES`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["CASES", "Options"]

CASES = {
    "connect": "bench.cases.connect",
    "unanswered": "bench.cases.unanswered",
    "firewalls": "bench.cases.firewalls",
    "lossy-nats": "bench.cases.lossy_nats",
    "dead-server": "bench.cases.dead_server",
    "datagrams": "bench.cases.datagrams",
    "relay": "bench.cases.relay",
    "turn-server": "bench.cases.turn_server",
    "portmap": "bench.cases.portmap",
    "codec": "bench.cases.stun_codec",
    "idle": "bench.cases.idle",
}
"""Name on the command line → module."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: of everything that takes turns, 1 or more.
        seed: of what is drawn at random.
    """

    rounds: int
    seed: int

    def tell(self, text: str) -> None:
        """Say on standard error how far it is."""
        print(text, file=sys.stderr, flush=True)
