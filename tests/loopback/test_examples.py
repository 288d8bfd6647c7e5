"""The examples run as they are, as scripts of a user's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 50

# What each of them prints, line by line.
EXPECTED = {
    "quic_over_ice.py": ["ICE connected: 127.0.0.1:", "QUIC delivered 1,000,000 bytes in "],
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example(name: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=EXAMPLES.parent)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(EXPECTED[name])
    for line, start in zip(lines, EXPECTED[name], strict=True):
        assert line.startswith(start)


def test_all_examples_are_run() -> None:
    # The hole punching is run by tests/lab/test_examples.py.
    others = {"hole_punching.py", "test_hole_punching.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED) | others
