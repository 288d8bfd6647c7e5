"""Which moments are shared, and which are not?"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from iceagent.core.wakeups import MAX_SHARED, WakeUps


def join(wakeups: WakeUps, at: float, *, slack_s: float = 0.5, now: float = 100.0) -> float:
    return wakeups.join(at, earliest=now + 4.0, latest=now + 6.0, slack_s=slack_s, now=now)


def test_the_first_one_keeps_its_time() -> None:
    assert join(WakeUps(), 104.7) == 104.7


def test_what_is_near_a_known_moment_moves_to_the_nearest_one() -> None:
    wakeups = WakeUps()
    assert [join(wakeups, at) for at in (104.5, 105.3, 105.0, 104.8, 104.1)] == [104.5, 105.3, 105.3, 104.5, 104.5]


def test_what_is_further_away_becomes_a_moment_itself() -> None:
    wakeups = WakeUps()
    join(wakeups, 104.5)
    assert join(wakeups, 105.01) == 105.01
    assert join(wakeups, 105.2) == 105.01


def test_nothing_moves_out_of_its_limits() -> None:
    """RFC 7675, 5.1: "between 0.8 and 1.2 times the basic period", wherever the moments of others are."""
    wakeups = WakeUps()
    wakeups.join(103.9, earliest=100.0, latest=110.0, slack_s=0.5, now=99.0)
    wakeups.join(106.1, earliest=100.0, latest=110.0, slack_s=0.5, now=99.0)
    assert join(wakeups, 104.0) == 104.0
    assert join(wakeups, 106.0) == 106.0


def test_without_slack_nothing_moves_and_nobody_joins() -> None:
    wakeups = WakeUps()
    assert join(wakeups, 105.0, slack_s=0.0) == 105.0
    assert join(wakeups, 105.1) == 105.1


def test_moments_that_are_over_are_forgotten() -> None:
    """However many sessions there are, the moments to come are few."""
    wakeups, rng = WakeUps(), Random(1)
    for step in range(10_000):
        now = step * 0.01
        at = join(wakeups, rng.uniform(now + 4.0, now + 6.0), now=now)
        assert now + 4.0 <= at <= now + 6.0
        assert len(wakeups) <= 2 * 6.0 / 0.5


def test_moments_stay_random() -> None:
    """Two a second at most for 200 sessions, and no grid: there are as many distances as there are moments."""
    wakeups, rng = WakeUps(), Random(2)
    due = {number: rng.uniform(0.0, 5.0) for number in range(200)}
    times: set[float] = set()
    for _ in range(20_000):
        number = min(due, key=due.__getitem__)
        now = due[number]
        times.add(now)
        due[number] = join(wakeups, rng.uniform(now + 4.0, now + 6.0), now=now)
    settled = sorted(at for at in times if at > 20.0)
    gaps = [later - sooner for sooner, later in pairwise(settled)]
    assert len(gaps) <= 2 * (settled[-1] - settled[0])
    assert len({round(gap, 6) for gap in gaps}) > 0.95 * len(gaps)


def test_a_full_moment_takes_nobody_more() -> None:
    """A process of thousands of agents must not be held up by all of them at once."""
    wakeups = WakeUps()
    assert {join(wakeups, 105.0) for _ in range(MAX_SHARED)} == {105.0}
    assert join(wakeups, 105.1) == 105.1
    assert join(wakeups, 105.2) == 105.1
    assert join(wakeups, 104.9) == 104.9
    assert len(wakeups) == 3


def test_who_draws_a_full_moment_exactly_keeps_it() -> None:
    wakeups = WakeUps()
    for _ in range(MAX_SHARED + 1):
        assert join(wakeups, 105.0) == 105.0
    assert len(wakeups) == 1
    assert join(wakeups, 110.0, now=106.0) == 110.0
    assert len(wakeups) == 1
