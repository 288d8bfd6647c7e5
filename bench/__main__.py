"""``python -m bench``: measures, prints a table, and exits with 1 if a target is missed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cases import BY_NAME_ONLY, CASES, Options
from bench.processes import WorkerFailed
from bench.results import Metric, as_json, as_table
from iceagent.lab.errors import LabError

DEFAULT_ROUNDS = 5


def main() -> int:
    """Run what was asked for; 1 if a target is missed or a measurement failed, else 0."""
    arguments = _arguments()
    if arguments.list:
        for name, module in CASES.items():
            print(f"{name:<12} {_question(module)}")
        return 0
    options = Options(
        rounds=arguments.rounds, seed=arguments.seed, rows=tuple(arguments.rows or ()), results=arguments.results
    )
    metrics: list[Metric] = []
    failures = 0
    for name in arguments.only or [name for name in CASES if name not in BY_NAME_ONLY]:
        started = time.monotonic()
        try:
            metrics += importlib.import_module(CASES[name]).run(options)
        except (WorkerFailed, LabError) as error:
            failures += 1
            options.tell(f"{name} failed: {error}")
        options.tell(f"{name}: {time.monotonic() - started:.0f} s")
    print(json.dumps(as_json(metrics), indent=2) if arguments.json else as_table(metrics))
    return 1 if failures or any(metric.is_short for metric in metrics) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="This agent and aioice, side by side.")
    parser.add_argument("--only", action="append", choices=CASES, metavar="NAME", help="measure this alone; repeatable")
    parser.add_argument("--rounds", type=_positive, default=DEFAULT_ROUNDS, help="rounds of each (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn at random (default: 1)")
    parser.add_argument("--rows", action="append", metavar="NAME", help="of survival, this alone; repeatable")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="where survival keeps what it has measured, and goes on from"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, every value included")
    parser.add_argument("--list", action="store_true", help="name the measurements and end")
    arguments = parser.parse_args()
    if (arguments.rows or arguments.results) and "survival" not in (arguments.only or ()):
        parser.error("--rows and --results are for --only survival")
    if arguments.rows:
        _check_rows(parser, arguments.rows)
    return arguments


def _check_rows(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    # The laboratory is loaded for them.
    from bench.survival.rows import ROWS

    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            parser.error(f"--rows {name}: there are {', '.join(known)}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _question(module: str) -> str:
    return (importlib.import_module(module).__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
