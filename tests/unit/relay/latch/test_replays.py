"""What is remembered of requests."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from relay.latch.replays import Seen, Way
from tests.unit.relay.latch.world import ALICE, LEFT_BASE

WAY: Way = (ALICE, LEFT_BASE)
LIMIT = 128


def test_the_latest_are_known_and_where_they_came_from_of_the_very_latest() -> None:
    rng, seen = Random(1), Seen()
    ids = [rng.randbytes(12) for _ in range(3 * LIMIT + 5)]
    for number, each in enumerate(ids):
        assert each not in seen
        seen.add(each, WAY, LIMIT)
        assert [each in seen for each in ids[: number + 1]][-LIMIT:] == [True] * min(number + 1, LIMIT)
    assert [each in seen for each in ids[:-LIMIT]] == [False] * (2 * LIMIT + 5)
    assert [seen.way(each) for each in ids[-3:]] == [None, WAY, WAY]
    assert len(seen) == LIMIT


def test_parts_of_two_identifiers_are_none() -> None:
    seen = Seen()
    for each in (b"abcdefgh1234", b"ijklmnop1234", b"ijklmnop5678"):
        seen.add(each, WAY, LIMIT)
    assert b"efghijkl0000" not in seen
    assert b"bcdefghi0000" not in seen
    assert b"ijklmnop1234" in seen


@given(st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.sampled_from([64, 128, 192])), max_size=400))
def test_however_the_limit_changes_the_latest_of_the_smallest_stay(steps: list[tuple[bytes, int]]) -> None:
    """Sides with the same key come and go."""
    seen, added = Seen(), []
    for start, limit in steps:
        if start + b"1234" in seen:
            continue
        seen.add(start + b"1234", WAY, limit)
        added.append(start + b"1234")
        assert len(seen) <= 192
    smallest = min((limit for _, limit in steps), default=64)
    assert all(each in seen for each in added[-smallest:])
