"""Do two agents of ours connect through every pair of kinds that theory allows, and through no other?

The whole matrix, with real NATs and a STUN server, against the table below: a row for each kind of the controlling
side's router, a column for each of the controlled side's, in the same order; ``+``: a direct path without guessing
ports, ``-``: none. It was derived from RFC 4787's words for each kind, not measured (``iceagent/nat/theory.py``).
"""

from __future__ import annotations

import pytest

from iceagent.candidate import CandidateType
from iceagent.lab.matrix import KIND_NAMES, Cell, Place, Result, cells, play

TABLE = {
    "open": "++++++++++-",
    "firewall": "+++++++----",
    "full-cone": "++++++++++-",
    "addr-restricted": "++++++++++-",
    "port-restricted": "+++++++----",
    "port-restricted-naive": "+++++++----",
    "eim-random": "+++++++----",
    "addr-symmetric": "+-++-------",
    "symmetric": "+-++-------",
    "symmetric-seq": "+-++-------",
    "no-udp": "-----------",
}
PLACES = {
    Place.SAME_HOME: True,
    Place.SAME_HOME_HAIRPIN: True,
    Place.SAME_CARRIER_HAIRPIN: True,
    Place.SAME_CARRIER: False,
}
LATE_LIMIT_S = 2.5

NAIVE = "port-restricted-naive"


def expected(cell: Cell) -> bool:
    if cell.place is not Place.APART:
        return PLACES[cell.place]
    return TABLE[cell.a][KIND_NAMES.index(cell.b)] == "+"


async def results_of(wanted: list[Cell], limit_s: float) -> list[Result]:
    return [result async for result in play(wanted, limit_s=limit_s)]


def told(results: list[Result]) -> str:
    return "\n".join(f"{result.cell}: {result.outcome}" for result in results)


def test_theory_says_the_same() -> None:
    assert tuple(TABLE) == KIND_NAMES
    assert all(cell.is_possible is expected(cell) for cell in cells())
    assert sum(map(expected, cells())) == 70


async def test_every_cell_is_as_the_table_says() -> None:
    """Those that must not connect get four seconds here; ``iceagent lab matrix`` gives them twelve."""
    results = await results_of(cells(), 4.0)
    assert len(results) == 125
    wrong = [result for result in results if result.outcome.connected is not expected(result.cell)]
    assert not wrong, told(wrong)
    connected = [result.outcome for result in results if result.outcome.connected]
    assert {outcome.kind for outcome in connected} == {"direct"}
    at_home = next(result for result in results if result.cell.place is Place.SAME_HOME)
    assert at_home.outcome.remotes == (CandidateType.HOST, CandidateType.HOST)
    failed = [result.outcome.reason for result in results if not result.outcome.connected]
    assert all(failed), failed


@pytest.mark.parametrize("late_s", [0.0, 0.1, 0.5])
async def test_the_early_packet_trap(late_s: float) -> None:
    """Each partner that theory allows, in both roles, with either side late."""
    wanted = [
        Cell(a, b, late_s=late)
        for partner in KIND_NAMES
        for a, b in {(NAIVE, partner), (partner, NAIVE)}
        for late in {late_s, -late_s}
        if expected(Cell(a, b))
    ]
    results = await results_of(wanted, LATE_LIMIT_S)
    wrong = [result for result in results if not result.outcome.connected]
    assert not wrong, told(wrong)


async def test_with_a_relay_every_cell_connects() -> None:
    """And none ends on it that theory allows a direct path."""
    results = [result async for result in play(cells(), turn=True)]
    assert len(results) == 125
    lost = [result for result in results if not result.outcome.connected]
    assert not lost, told(lost)
    wrong = [result for result in results if (result.outcome.kind == "direct") is not expected(result.cell)]
    assert not wrong, told(wrong)
