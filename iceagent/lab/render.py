"""How is a matrix shown: as a table for a terminal, as plain text, and as a heat map (SVG)?

A cell says what each side sees of the other (``h`` host, ``s`` server-reflexive, ``p`` peer-reflexive, ``R`` relayed;
controlling side first) and the milliseconds to connect; ``–`` where there is no path: expected, or, marked with ``!``,
though theory allows a direct one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from iceagent.candidate import CandidateType
from iceagent.lab.matrix import Cell, Place, Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LEGEND", "svg", "table", "text"]

LEGEND = "what each side sees of the other (h host, s server-reflexive, p peer-reflexive, R relayed), milliseconds"
"""Of a table, in a line."""

_LETTERS = {
    CandidateType.HOST: "h",
    CandidateType.SERVER_REFLEXIVE: "s",
    CandidateType.PEER_REFLEXIVE: "p",
    CandidateType.RELAYED: "R",
}
_NOT_YET = "·"

# The heat map: from the fastest to the slowest direct path, and everything else.
_FAST, _SLOW = (0x1A, 0x98, 0x50), (0xD9, 0xEF, 0x8B)
_FAST_MS, _SLOW_MS = 1.0, 3_000.0
_RELAYED, _MISSED, _EXPECTED, _OPEN = "#fdae61", "#d73027", "#e0e0e0", "#ffffff"
_CELL_WIDTH, _CELL_HEIGHT, _LABEL_WIDTH = 64, 26, 190


def text(results: Iterable[Result], kinds: Sequence[str]) -> str:
    """The table in plain text: a row for each kind of the controlling side."""
    found = _by_cell(results)
    widths = [max(6, *(len(_word(found.get(Cell(a, b)))) for a in kinds)) for b in kinds]
    names = [f"{number:2} {kind}" for number, kind in enumerate(kinds, 1)]
    margin = max(map(len, names))
    lines = [" " * margin + "".join(f"  {number:>{width}}" for number, width in enumerate(widths, 1))]
    for name, a in zip(names, kinds, strict=True):
        words = (_word(found.get(Cell(a, b))) for b in kinds)
        lines.append(
            f"{name:<{margin}}" + "".join(f"  {word:>{width}}" for word, width in zip(words, widths, strict=True))
        )
    lines += [f"{result.cell.place.value}: {_word(result)}" for result in _elsewhere(found)]
    return "\n".join(lines)


def table(results: Iterable[Result], kinds: Sequence[str]) -> Table:
    """The table in colour."""
    from rich.table import Table
    from rich.text import Text

    found = _by_cell(results)
    shown = Table(caption=", ".join(f"{result.cell.place.value} {_word(result)}" for result in _elsewhere(found)))
    shown.add_column("controlling ↓  controlled →")
    for number in range(1, len(kinds) + 1):
        shown.add_column(str(number), justify="right", no_wrap=True)
    for number, a in enumerate(kinds, 1):
        cells = [found.get(Cell(a, b)) for b in kinds]
        shown.add_row(f"{number:2} {a}", *(Text(_word(result), style=_style(result)) for result in cells))
    return shown


def svg(results: Iterable[Result], kinds: Sequence[str]) -> str:
    """A heat map: the greener the faster, orange over a relay, red where theory allows more."""
    found = _by_cell(results)
    elsewhere = _elsewhere(found)
    width = _LABEL_WIDTH + len(kinds) * _CELL_WIDTH + 10
    height = (len(kinds) + len(elsewhere) + 3) * _CELL_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="11">',
        "<title>Time to connect, milliseconds: controlling side by rows, controlled side by columns</title>",
    ]
    for column in range(len(kinds)):
        x = _LABEL_WIDTH + (column + 0.5) * _CELL_WIDTH
        parts.append(f'<text x="{x:g}" y="{_CELL_HEIGHT * 0.7:g}" text-anchor="middle">{column + 1}</text>')
    for row, a in enumerate(kinds, 1):
        parts.append(_label(row, f"{row} {a}"))
        parts += [_square(row, column, found.get(Cell(a, b)), f"{a} × {b}") for column, b in enumerate(kinds)]
    for row, result in enumerate(elsewhere, len(kinds) + 2):
        parts.append(_label(row, result.cell.place.value))
        parts.append(_square(row, 0, result, str(result.cell)))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _by_cell(results: Iterable[Result]) -> dict[Cell, Result]:
    return {result.cell: result for result in results}


def _elsewhere(found: Mapping[Cell, Result]) -> list[Result]:
    """Results of two machines behind one router, which are not in the table."""
    order = list(Place)
    there = [result for cell, result in found.items() if cell.place is not Place.APART]
    return sorted(there, key=lambda result: order.index(result.cell.place))


def _word(result: Result | None) -> str:
    if result is None:
        return _NOT_YET
    outcome = result.outcome
    if outcome.remotes is None or outcome.elapsed_s is None:
        return "–!" if result.could_be_better else "–"
    ends = "/".join(_LETTERS[each] for each in outcome.remotes)
    ms = outcome.elapsed_s * 1000
    return f"{ends} {ms:.1f}" if ms < 100 else f"{ends} {ms:.0f}"


def _style(result: Result | None) -> str:
    if result is None or (result.outcome.kind is None and not result.could_be_better):
        return "dim"
    return {"direct": "green", "relay": "yellow", None: "bold red"}[result.outcome.kind]


def _label(row: int, words: str) -> str:
    y = (row + 0.65) * _CELL_HEIGHT
    return f'<text x="4" y="{y:g}">{escape(words)}</text>'


def _square(row: int, column: int, result: Result | None, what: str) -> str:
    x, y = _LABEL_WIDTH + column * _CELL_WIDTH, row * _CELL_HEIGHT
    middle, line = x + _CELL_WIDTH / 2 - 1, y + _CELL_HEIGHT * 0.65
    word = escape(_word(result))
    return (
        f"<g><title>{escape(what)}: {word}</title>"
        f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" fill="{_colour(result)}"/>'
        f'<text x="{middle:g}" y="{line:g}" text-anchor="middle">{word}</text></g>'
    )


def _colour(result: Result | None) -> str:
    if result is None:
        return _OPEN
    if result.outcome.kind == "relay":
        return _RELAYED
    if result.outcome.elapsed_s is None:
        return _MISSED if result.could_be_better else _EXPECTED
    ms = min(max(result.outcome.elapsed_s * 1000, _FAST_MS), _SLOW_MS)
    share = math.log(ms / _FAST_MS) / math.log(_SLOW_MS / _FAST_MS)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_FAST, _SLOW, strict=True))
