"""The rows of ``bench/survival/rows.py`` that take a minute or two; in a file of their own, because pytest runs files
side by side.
"""

from __future__ import annotations

from bench.survival.play import build, play_together
from bench.survival.rows import LONG, ROWS
from iceagent.lab import Lab
from tests.lab.limits import limit
from tests.lab.survival import assert_held

# The longest of them, and what comes before and after it.
LIMIT_S = 170.0


async def test_paths_survive_what_takes_long(natlab: Lab) -> None:
    """All of them together: they mostly wait."""
    with limit(LIMIT_S):
        assert_held(await play_together(build(natlab, *(row for row in ROWS if row.name in LONG))))
