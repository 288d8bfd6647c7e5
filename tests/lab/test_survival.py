"""Paths break while data flows, on real kernel NATs, ten datagrams a second go both ways: does every row of
``bench/survival/rows.py`` hold? Each side is controlling in turn.
"""

from __future__ import annotations

import pytest

from bench.survival.play import build, play_together
from bench.survival.row import Row
from bench.survival.rows import LONG, ROWS
from iceagent.lab import Lab
from tests.lab.survival import Homes, assert_held, assert_told_the_same, both_ways

__all__ = ["Homes", "assert_told_the_same", "both_ways"]


SHORT = [row for row in ROWS if row.name not in LONG]
PARAMETERS = [pytest.param(row, id=row.name, marks=pytest.mark.natlab_needs(*row.needs)) for row in SHORT]


@pytest.mark.parametrize("row", PARAMETERS)
async def test_a_path_survives(natlab: Lab, row: Row) -> None:
    assert_held(await play_together(build(natlab, row)))
