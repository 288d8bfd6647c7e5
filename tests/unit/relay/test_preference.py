"""Which path should carry data? A path is a row of numbers here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from relay.preference import Rated, Rival, Standing, rival
from relay.upgrade import TIMINGS

NOW = 1000.0
LONG_AGO = (0, NOW - 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of a path."""

    rank: int = 10
    rtt_s: float | None = 0.040
    rtt_count: int = 3
    loss: float = 0.0
    answered_at: float = NOW - 1.0


def rated(row: Row, **standing: Any) -> Rated:
    return Rated(Standing()._replace(**standing), row)


def better(
    current: Rated, *others: Rated, moves: tuple[int, float] | None = LONG_AGO, now: float = NOW
) -> Rival | None:
    return rival(current, others, now, moves=moves)


# From the best to the worst; each row differs from the one before in one thing.
LADDER = (
    Standing(),
    Standing(nearness=1),
    Standing(is_direct=False, nearness=0),
    Standing(is_free=False),
    Standing(is_free=False, is_direct=False, nearness=0),
    Standing(is_staying=False),
    Standing(is_trusted=False),
)


@pytest.mark.parametrize("step", range(len(LADDER) - 1))
def test_standing_decides_at_once_whatever_round_trips_and_priorities_say(step: int) -> None:
    """A LAN path wins even if the relay is as fast; what costs money comes behind a relay."""
    upper = Rated(LADDER[step], Row(rank=1, rtt_s=0.200, rtt_count=1))
    lower = Rated(LADDER[step + 1], Row(rank=99, rtt_s=0.001, rtt_count=99))
    just_now = (9, NOW)
    found = better(lower, upper, moves=just_now)
    assert found is not None and found.path is upper.path and not found.is_measured
    assert better(upper, lower, moves=LONG_AGO) is None


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"is_trusted": False}, "the other one works"),
        ({"is_staying": False}, "the address of the other one is about to go"),
        ({"is_free": False}, "the other one's network costs"),
        ({"is_direct": False}, "no relay is needed"),
        ({"nearness": 1}, "it is nearer"),
    ],
)
def test_a_move_says_why(worse: dict[str, bool | int], reason: str) -> None:
    found = better(rated(Row(), **worse), rated(Row()))
    assert found is not None and found.reason == reason


def test_what_has_just_come_has_its_priority_alone() -> None:
    """No round trip is known well enough: higher priority wins at once, lower never."""
    new = Row(rank=20, rtt_s=0.300, rtt_count=1)
    found = better(rated(Row()), rated(new), moves=(5, NOW))
    assert found == Rival(new, "it has the higher priority")
    assert better(rated(Row()), rated(Row(rank=5, rtt_s=0.001, rtt_count=2))) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        (0.040, 0.034, True),
        # 5 ms.
        (0.040, 0.036, False),
        (0.012, 0.008, False),
        # A tenth.
        (0.200, 0.192, False),
        (0.200, 0.181, False),
        (0.200, 0.179, True),
    ],
)
def test_a_faster_one_must_be_so_by_five_milliseconds_and_a_tenth(ours: float, theirs: float, wins: bool) -> None:
    found = better(rated(Row(rtt_s=ours)), rated(Row(rank=5, rtt_s=theirs)))
    assert (found is not None) is wins
    assert found is None or found == Rival(found.path, "it is faster", is_measured=True)


@pytest.mark.parametrize("slow", [{"rtt_count": 2}, {"answered_at": NOW - 31.0}, {"rtt_s": None, "rtt_count": 0}])
def test_of_each_there_are_three_samples_and_the_last_is_not_old(slow: dict[str, float]) -> None:
    fast = Row(rank=5, rtt_s=0.010)
    assert better(rated(Row()), rated(fast)) is not None
    assert better(rated(Row(**slow)), rated(fast)) is None  # type: ignore[arg-type]
    assert better(rated(Row()), rated(Row(rank=5, **{"rtt_s": 0.010, **slow}))) is None  # type: ignore[arg-type]


def test_the_way_back_to_the_higher_priority_is_open_once_it_is_no_slower() -> None:
    current = rated(Row(rank=5, rtt_s=0.030))
    assert better(current, rated(Row(rtt_s=0.040))) is None
    assert better(current, rated(Row(rtt_s=0.032))) is None
    found = better(current, rated(Row(rtt_s=0.0305)))
    assert found == Rival(found.path, "it has the higher priority", is_measured=True)  # type: ignore[union-attr]


def test_half_a_minute_lies_before_each_such_move_and_twice_as_long_after_each() -> None:
    slow, fast = rated(Row()), rated(Row(rank=5, rtt_s=0.010))
    for count, pause in ((0, 30.0), (1, 60.0), (2, 120.0), (4, 480.0), (5, 600.0), (1000, 600.0)):
        assert better(slow, fast, moves=(count, NOW - pause + 0.1)) is None
        assert better(slow, fast, moves=(count, NOW - pause)) is not None
    higher = rated(Row(rank=20))
    assert better(slow, higher, moves=(0, NOW - 29.9)) is None
    assert better(slow, higher, moves=(0, NOW - 30.0)) is not None


def test_where_round_trips_are_not_looked_at_priority_decides() -> None:
    assert better(rated(Row()), rated(Row(rank=5, rtt_s=0.001)), moves=None) is None
    assert better(rated(Row()), rated(Row(rank=20, rtt_s=1.0)), moves=None) is not None


def test_what_loses_checks_is_gone_to_neither_for_a_round_trip_nor_for_a_priority() -> None:
    lossy = Row(rank=5, rtt_s=0.010, loss=0.06)
    assert better(rated(Row()), rated(lossy)) is None
    assert better(rated(Row()), rated(Row(rank=20, loss=0.06))) is None
    assert better(rated(Row()), rated(Row(rank=5, rtt_s=0.010, loss=0.04))) is not None
    # What stands better carries data all the same: it works.
    assert better(rated(Row(), nearness=1), rated(lossy)) is not None


def test_what_loses_a_quarter_is_left_for_one_that_loses_none_and_is_not_much_slower() -> None:
    lossy = rated(Row(loss=0.25))
    found = better(lossy, rated(Row(rank=5, rtt_s=0.139)))
    assert found is not None and (found.reason, found.is_measured) == ("it loses less", True)
    assert better(lossy, rated(Row(rank=5, rtt_s=0.141))) is None
    assert better(lossy, rated(Row(rank=5, loss=0.06))) is None
    assert better(rated(Row(loss=0.24)), rated(Row(rank=5))) is None
    assert better(lossy, rated(Row(rank=5, rtt_count=2))) is None
    # Neither is it gone back to before it loses none.
    assert better(rated(Row(rank=5)), lossy) is None


def test_of_several_faster_ones_the_fastest() -> None:
    rows = [Row(rank=rank, rtt_s=rtt_s) for rank, rtt_s in ((9, 0.030), (5, 0.010), (7, 0.020))]
    found = better(rated(Row()), *[rated(row) for row in rows])
    assert found is not None and found.path is rows[1]


def test_round_trips_decide_between_two_relays_too() -> None:
    slow = rated(Row(), is_direct=False, nearness=0)
    fast = rated(Row(rank=5, rtt_s=0.010), is_direct=False, nearness=0)
    found = better(slow, fast)
    assert found is not None and found.reason == "it is faster"


@pytest.mark.parametrize("seed", range(200))
def test_data_comes_to_rest_wherever_it_begins(seed: int) -> None:
    """Whatever is known of up to eight paths, as long as it stays so: no path is taken twice."""
    random = Random(seed)
    paths = [
        Rated(
            random.choice(LADDER),
            Row(
                rank=rank,
                rtt_s=random.uniform(0.001, 0.3),
                rtt_count=random.choice((0, 1, 3, 9)),
                loss=random.choice((0.0, 0.04, 0.06, 0.2, 0.3)),
            ),
        )
        for rank in random.sample(range(1000), random.randint(2, 8))
    ]
    current, visited = random.choice(paths), [None]
    for _ in paths:
        found = better(current, *(path for path in paths if path is not current))
        if found is None:
            break
        assert found.path not in visited
        visited.append(current.path)  # type: ignore[arg-type]
        current = next(path for path in paths if path.path is found.path)
    assert settles(current, paths)


def settles(current: Rated, paths: Sequence[Rated]) -> bool:
    """Whether nothing stands better."""
    return better(current, *paths) is None and all(path.standing <= current.standing for path in paths)


def test_the_figures_leave_room_between_leaving_and_coming_back() -> None:
    assert 0 < TIMINGS.as_fast_s < TIMINGS.faster_s
    assert 0 < TIMINGS.as_fast_share < TIMINGS.faster_share
    assert 0 < TIMINGS.clean < TIMINGS.lossy
