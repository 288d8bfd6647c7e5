"""The example of docs/lab.md, as a user runs it; and what the plugin gives and demands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OUTCOMES = """
import pytest

@pytest.mark.natlab_needs("sh")
def test_has_what_it_needs(natlab):
    assert natlab.machine().address == "20.0.1.2"

@pytest.mark.natlab_needs("turnserver-of-nobody")
def test_lacks_a_program(natlab):
    raise AssertionError("it runs")

@pytest.mark.natlab_needs("/dev/nothing")
def test_lacks_a_device(natlab):
    raise AssertionError("it runs")
"""


def run_pytest(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_hole_punching_example() -> None:
    """Also as an ordinary user does: in a user namespace."""
    for before in ((), ("unshare", "-Urnm")):
        done = run_pytest("examples", before=before)
        assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("option", "expected"), [((), "1 passed, 2 errors"), (("--natlab-skip",), "1 passed, 2 skipped")]
)
def test_what_is_missing_fails_or_skips(tmp_path: Path, option: tuple[str, ...], expected: str) -> None:
    (tmp_path / "test_needs.py").write_text(OUTCOMES)
    done = run_pytest(str(tmp_path), *option)
    assert expected in done.stdout and "turnserver-of-nobody is not installed" in done.stdout, done.stdout
    assert "/dev/nothing cannot be used: No such file" in done.stdout


def test_without_the_privilege_it_fails_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_needs.py").write_text("def test_a(natlab):\n    pass\n")
    for option, word in (((), "1 error"), (("--natlab-skip",), "1 skipped")):
        done = run_pytest(str(tmp_path), *option, before=("unshare", "-Ur"))
        assert word in done.stdout and "unshare -Urnm, around the whole program" in done.stdout, done.stdout
