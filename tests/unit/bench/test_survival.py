"""Is a row of the table judged by what both ends heard and were told, and is nothing measured twice?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.cases.survival import Job, Store
from bench.survival.play import judge
from bench.survival.record import Heard, Record, Told, first, gap, is_mirrored
from bench.survival.row import Row
from bench.survival.rows import LONG, ROWS, row_named

BEGAN, NOW = 100.0, 104.0
HERE, THERE = "20.0.1.2:1", "20.0.2.2:2"


def heard(*spans: tuple[float, float]) -> list[Heard]:
    """Ten datagrams a second in these spans of time, each a millisecond on its way."""
    counts = [(start, round((end - start) * 10)) for start, end in spans]
    return [Heard(start + i / 10, start + i / 10 - 0.001) for start, count in counts for i in range(count)]


def selected(at: float, local: str, remote: str, kind: str = "direct") -> Told:
    ends = {name: {"type": "host", "address": address} for name, address in (("local", local), ("remote", remote))}
    return Told(at, "path.selected", {**ends, "kind": kind})


def state(at: float, new: str) -> Told:
    return Told(at, "state.changed", {"old": "", "new": new, "reason": ""})


def records(
    *, spans: Sequence[tuple[float, float]] = ((98.0, 100.0), (101.0, 104.0)), lost: int = 0, **told: Sequence[Told]
) -> tuple[Record, Record]:
    """Two that are connected by a direct path, hear each other in these spans, and were told more than that."""
    one, other = (
        Record(
            name=name,
            heard=heard(*spans),
            sent=60,
            lost=lost,
            told=[selected(97.0, *ends), state(97.0, "connected"), *told.get(name, ())],
        )
        for name, ends in (("a", (HERE, THERE)), ("b", (THERE, HERE)))
    )
    return one, other


def complaints(row: Row, both: Sequence[Record], since: float = BEGAN) -> list[str]:
    return list(judge(row, both, ["direct", "direct"], BEGAN, since, NOW))


def test_a_gap_begins_with_the_last_datagram_before_the_event_and_ends_with_the_watching() -> None:
    record = Record(name="a", heard=heard((98.0, 99.5), (101.0, 102.0)))
    assert gap(record, 100.0, 102.0) == pytest.approx(1.6)
    assert gap(record, 100.0, 105.0) == pytest.approx(3.1)
    assert gap(Record(name="a"), 100.0, 105.0) == 5.0


def test_what_was_sent_before_is_not_fresh() -> None:
    """A process that was stopped finds it in its socket's buffer."""
    record = Record(name="a", heard=[Heard(100.01, 95.0), Heard(100.02, 96.0), Heard(100.5, 100.4)])
    assert record.fresh(100.0) == [100.5]
    assert first(record.fresh(101.0), 101.0) == math.inf


def test_a_row_that_holds_is_not_complained_of() -> None:
    assert complaints(row_named("reboot-direct"), records()) == []


def test_a_gap_that_is_too_long_is() -> None:
    both = records(spans=[(98.0, 100.0), (102.2, 104.0)])
    assert complaints(row_named("reboot-direct"), both) == ["longest gap: 2.3 s, at most 2 is allowed"]


def test_more_lost_than_fits_into_the_gap_is() -> None:
    row = row_named("reboot-direct")
    assert row.most_lost == 21
    assert complaints(row, records(lost=21)) == []
    assert complaints(row, records(lost=22)) == [
        f"{name} has not got 22 datagrams, at most 21 may be lost" for name in ("a", "b")
    ]


def test_a_path_that_ends_elsewhere_than_the_other_ones_is() -> None:
    both = records(b=[selected(101.0, THERE, "20.0.3.2:3")])
    assert not is_mirrored(both)
    assert complaints(row_named("reboot-direct"), both) == ["the paths of both are not each other's mirror"]


def test_being_told_of_it_much_later_than_the_other_end_is() -> None:
    moved = "20.0.3.2:3"
    both = records(a=[selected(101.0, moved, THERE)], b=[selected(102.5, THERE, moved)])
    assert complaints(row_named("reboot-direct"), both) == ["both were told of their path 1.50 s apart"]


def test_a_path_that_was_lost_has_no_mirror() -> None:
    both = records(b=[Told(101.0, "path.lost", {"component": 1, "reason": ""})])
    assert not is_mirrored(both)


def test_another_state_is() -> None:
    both = records(a=[state(101.5, "disconnected")])
    assert complaints(row_named("reboot-direct"), both) == ["a is disconnected, not connected"]


def test_where_only_signalling_helps_both_have_to_be_told() -> None:
    row = row_named("address-frozen")
    told = [Told(101.6, "restart.advised", {}), state(101.6, "disconnected")]
    silent = [(98.0, 100.0)]
    assert complaints(row, records(spans=silent, a=told, b=told)) == []
    assert complaints(row, records(spans=silent, a=told, b=told[1:])) == [
        "until both are told to restart: inf s, at most 2 is allowed"
    ]


def test_a_restart_that_nobody_was_asked_for_is_missed() -> None:
    row = row_named("address-files")
    restarted = [Told(101.6, "ice.restarted", {"by_peer": False})]
    advised = [Told(101.5, "restart.advised", {})]
    assert complaints(row, records(a=[*advised, *restarted], b=restarted)) == []
    assert complaints(row, records(a=restarted)) == ["b was not told of a restart", "nobody was told to restart"]


def test_every_row_can_fail() -> None:
    """Two that hear nothing any more, and are told nothing, do not hold."""
    dead = records(spans=[(98.0, 100.0)], lost=40)
    for row in ROWS:
        assert list(judge(row, dead, [row.starts, row.starts], BEGAN, BEGAN, NOW)), row.name


def test_names_are_unique_and_what_is_watched_is_longer_than_what_is_allowed() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.name for row in ROWS} > LONG
    for row in ROWS:
        assert row.watch_s > row.bound, row.name


def test_what_is_in_the_file_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results"
    job = Job("idle", "aioice", 2)
    results: list[dict[str, Any]] = [{"value": 0.0}]
    Store(path, "abc").add(job, 0.25, results)
    again = Store(path, "abc")
    assert list(again.found) == [job]
    assert again.found[job]["results"] == results
    assert Store(path, "abd").found == {}, "of other source code"


def test_half_a_line_is_no_result_and_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "results"
    Store(path, "abc").add(Job("idle", "iceagent", 1), 0.25, [])
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    Store(path, "abc").add(Job("idle", "iceagent", 2), 0.25, [])
    assert [job.number for job in Store(path, "abc").found] == [1, 2]
    assert json.loads(path.read_text().splitlines()[-1])["round"] == 2


def test_aioice_plays_either_role_in_turn_and_ours_both_at_once() -> None:
    assert [Job("idle", "aioice", number).roles for number in (1, 2, 3)] == ["a", "b", "a"]
    assert Job("idle", "iceagent", 1).roles == "ab"
