"""How fast is the STUN codec? Runs ``bench/codec.py``, which says how; the sum of its four steps is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bench.cases import Options
from bench.processes import ROOT
from bench.results import Metric

__all__ = ["run"]

TIMEOUT_S = 120.0
ALL = "all four"


def run(options: Options) -> list[Metric]:
    """One process: both codecs take turns every few milliseconds."""
    options.tell("codec")
    command = [sys.executable, str(ROOT / "bench" / "codec.py"), "--json", "--rounds", str(options.rounds)]
    # It exits with 1 where its target is missed; that is judged here.
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT_S)
    result = json.loads(done.stdout)
    return [_metric(step, result) for step in result["ratios"]]


def _metric(step: str, result: dict[str, Any]) -> Metric:
    ours, peer = (result["microseconds"][name][step] for name in ("ours", "aioice"))
    return Metric(
        name=f"STUN, {step}",
        unit="µs",
        ours=[ours],
        peer=[peer],
        ratio_at_least=result["target"] if step == ALL else None,
    )
