"""Which silences are tried, and what is concluded?"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.nat.silences import MAX_ROUNDS, PROBES, RESOLUTION_S, Bracket, Search, plan


def search(lifetime_s: float, max_s: float = 300.0) -> Search:
    """Look until it is known; what lives ``lifetime_s`` is dead then."""
    found = Search(max_s)
    while silences := found.next_round():
        assert len(silences) <= PROBES and silences == sorted(silences)
        for silence_s in silences:
            found.note(silence_s, is_alive=silence_s < lifetime_s)
            if silence_s >= lifetime_s:
                break
    return found


@pytest.mark.parametrize("lifetime_s", [5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240])
def test_a_usual_lifetime_is_known_after_one_round(lifetime_s: int) -> None:
    found = search(lifetime_s)
    assert found.rounds == 1
    assert found.bracket.lifetime_s == pytest.approx(lifetime_s, abs=0.01)


@given(st.floats(1.0, 299.9))
def test_any_other_after_two_and_within_half_a_second(lifetime_s: float) -> None:
    found = search(lifetime_s)
    assert found.rounds <= 2
    assert found.bracket.lifetime_s == pytest.approx(lifetime_s, abs=RESOLUTION_S / 2)


@given(st.floats(1.0, 7_200.0), st.floats(1.0, 7_200.0))
def test_however_long_it_is_it_is_found_or_said_to_be_longer(lifetime_s: float, max_s: float) -> None:
    found = search(lifetime_s, max_s)
    assert found.rounds <= 4
    if lifetime_s > max_s:
        assert found.bracket == Bracket(alive_s=max_s) and found.bracket.lifetime_s is None
    else:
        assert found.bracket.lifetime_s == pytest.approx(lifetime_s, abs=RESOLUTION_S / 2)


@given(st.floats(0.0, 500.0), st.floats(0.01, 3_000.0), st.integers(1, 64))
def test_a_plan_is_in_order_between_its_ends_and_not_too_long(low_s: float, width_s: float, count: int) -> None:
    points = plan(low_s, low_s + width_s, count)
    assert len(points) <= count
    assert all(before < after for before, after in pairwise([low_s, *points, low_s + width_s]))


def test_a_gap_that_is_known_already_is_not_divided() -> None:
    assert plan(119.6, 120.4) == []
    assert plan(31.0, 31.5) == []


def test_life_proves_more_than_death() -> None:
    """A look that found nothing may have been lost; one that found something was not."""
    found = Search(300.0)
    found.note(45.0, is_alive=False)
    found.note(30.0, is_alive=True)
    assert found.bracket == Bracket(alive_s=30.0, dead_s=45.0)
    found.note(60.0, is_alive=True)
    assert found.bracket == Bracket(alive_s=60.0)
    found.note(50.0, is_alive=False)
    assert found.bracket == Bracket(alive_s=60.0)
    found.note(90.0, is_alive=False)
    found.note(80.0, is_alive=False)
    assert found.bracket == Bracket(alive_s=60.0, dead_s=80.0)


def test_who_is_never_told_anything_stops_asking() -> None:
    found = Search(300.0)
    assert sum(1 for _ in iter(found.next_round, [])) == MAX_ROUNDS
