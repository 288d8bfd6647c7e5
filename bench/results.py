"""What came out: metrics of two contenders, their medians, spreads and ratio, and whether a target is met.

All values are costs (milliseconds, microseconds, bytes): less is better, and a ratio is how many times as much the
other one needs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Metric", "as_json", "as_table"]

PEER = "aioice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row.

    Attributes:
        ours: one value per round or trial.
        peer: the other contender's; as many as ours where both took turns, and then the ratio is the median of the
            rounds' ratios, else the ratio of the medians. Empty: nothing to compare with.
        peer_name: who that is.
        at_most: target: our median.
        p95_at_most: target: what 95 % of our values do not exceed.
        worst_at_most: target: our greatest value.
        ratio_at_least: target.
        note: what a reader must know.
    """

    name: str
    unit: str
    ours: Sequence[float] = field(default_factory=list)
    peer: Sequence[float] = ()
    peer_name: str = PEER
    at_most: float | None = None
    p95_at_most: float | None = None
    worst_at_most: float | None = None
    ratio_at_least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Peer's cost over ours; ``None`` where there is no peer, or ours cost nothing that could be measured."""
        if not self.peer or min(self.ours) <= 0:
            return None
        if len(self.ours) == len(self.peer):
            return statistics.median(theirs / ours for ours, theirs in zip(self.ours, self.peer, strict=True))
        return statistics.median(self.peer) / statistics.median(self.ours)

    @property
    def targets(self) -> list[tuple[str, bool]]:
        """Each target as text, and whether it is met."""
        found = []
        if self.at_most is not None:
            found.append((f"≤ {_number(self.at_most)}", statistics.median(self.ours) <= self.at_most))
        if self.p95_at_most is not None:
            found.append((f"p95 ≤ {_number(self.p95_at_most)}", _p95(self.ours) <= self.p95_at_most))
        if self.worst_at_most is not None:
            found.append((f"worst ≤ {_number(self.worst_at_most)}", max(self.ours) <= self.worst_at_most))
        if self.ratio_at_least is not None:
            found.append((f"≥ {self.ratio_at_least:g}×", (self.ratio or 0.0) >= self.ratio_at_least))
        return found

    @property
    def is_short(self) -> bool:
        """Whether a target is missed."""
        return not all(met for _, met in self.targets)


def _p95(values: Sequence[float]) -> float:
    """The value that 95 % of all do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def as_json(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Everything, every value included."""
    return [
        {
            "metric": m.name,
            "unit": m.unit,
            "ours": list(m.ours),
            "ours_median": statistics.median(m.ours),
            "peer": list(m.peer),
            "peer_name": m.peer_name if m.peer else None,
            "peer_median": statistics.median(m.peer) if m.peer else None,
            "ratio": m.ratio,
            "targets": [{"target": text, "met": met} for text, met in m.targets],
            "note": m.note,
        }
        for m in metrics
    ]


HEADER = ("metric", "ours", "peer", "", "ratio", "target", "")


def as_table(metrics: Sequence[Metric]) -> str:
    """For people: the median, and in brackets the least and the greatest value."""
    rows = [HEADER, *(_row(metric) for metric in metrics)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{metric.name}: {metric.note}" for metric in metrics if metric.note]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *notes])


def _row(metric: Metric) -> tuple[str, ...]:
    ratio = metric.ratio
    return (
        f"{metric.name}, {metric.unit}",
        _summary(metric.ours),
        _summary(metric.peer) if metric.peer else "",
        metric.peer_name if metric.peer else "",
        f"{_number(ratio)}×" if ratio is not None else "",
        ", ".join(text for text, _ in metric.targets),
        "" if not metric.targets else "SHORT" if metric.is_short else "ok",
    )


def _summary(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
