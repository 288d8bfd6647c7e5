"""Throw mutated STUN messages at the parser: ``python -m tests.fuzz.run_stun --count 1000000``."""

from __future__ import annotations

import argparse
import time

from tests.fuzz.mutate import run


def main() -> None:
    """Run, and print what became of the mutants. Raises what the parser should not have raised."""
    parser = argparse.ArgumentParser(description="Mutation fuzzing of the STUN parser.")
    parser.add_argument("--count", type=int, default=100_000, help="mutants (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same mutants (default: 0)")
    options = parser.parse_args()
    started = time.perf_counter()
    outcome = run(options.count, options.seed)
    print(f"{options.count} mutants, seed {options.seed}, {time.perf_counter() - started:.0f} s")
    for reason, number in outcome.most_common():
        print(f"{number:>9}  {reason}")


if __name__ == "__main__":
    main()
