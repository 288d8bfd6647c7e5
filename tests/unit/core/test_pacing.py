"""When may a check leave? The deviations from RFC 8445, 6.1.4.2 and 14.2 are pinned here."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.config import Config
from iceagent.core.pacing import CheckPacer, RemoteBudget, TokenBucket
from iceagent.net.address import TransportAddress
from tests.unit.core.kit import REMOTE, THEIRS, Play, remote_candidate

TA_S = 0.050


def pacer(*, burst: int = 5, ta_s: float = TA_S, ceiling: TokenBucket | None = None) -> CheckPacer:
    return CheckPacer(ceiling or TokenBucket(rate=1000, capacity=1000), burst=burst, ta_s=ta_s)


def sent_within(pacer: CheckPacer, seconds: float, *, urgent: bool = False, start: float = 0.0) -> list[float]:
    """When checks leave if there are always some to send."""
    now, times = start, []
    while now <= start + seconds:
        if pacer.may_send(now, urgent=urgent):
            pacer.take(now)
            times.append(now)
        else:
            now = pacer.ready_at(now, urgent=urgent)
    return times


def test_a_burst_of_five_may_leave_at_once_and_then_one_per_ta() -> None:
    """DEVIATION from RFC 8445, 6.1.4.2: the bucket holds five; the rate stays one per Ta."""
    times = sent_within(pacer(), 1.0, urgent=True)
    assert times[:5] == [0.0] * 5
    assert times[5:8] == pytest.approx([0.050, 0.100, 0.150], abs=1e-4)
    assert len(times) == 5 + 19


def test_an_ordinary_check_leaves_two_tokens_for_urgent_ones() -> None:
    """So that a triggered check or a nomination never waits behind ordinary ones."""
    bucket = pacer()
    assert sent_within(bucket, 0.0) == [0.0] * 3
    assert not bucket.may_send(0.0, urgent=False)
    assert sent_within(bucket, 0.0, urgent=True) == [0.0] * 2


def test_an_opener_leaves_a_token_to_every_check_that_waits_and_to_a_triggered_one() -> None:
    bucket = pacer()
    assert bucket.may_open(0.0, waiting=3) and not bucket.may_open(0.0, waiting=4)
    bucket.take(0.0)
    assert bucket.may_open(0.0, waiting=2) and not bucket.may_open(0.0, waiting=3)
    assert not pacer(burst=2).may_open(0.0, waiting=1)


def test_an_opener_that_cannot_wait_overdraws_the_bucket_once() -> None:
    """What it held is lent at most, and given back before anything else leaves."""
    bucket = pacer()
    count = 0
    while bucket.may_lend(0.0):
        bucket.take(0.0)
        count += 1
    assert count == 5 + 5
    assert bucket.ready_at(0.0, urgent=True) == pytest.approx(6 * TA_S, abs=1e-4)
    assert not pacer(ceiling=TokenBucket(rate=200, capacity=0.5)).may_lend(0.0)


def test_an_opener_keeps_the_ceiling_too() -> None:
    bucket = pacer(ceiling=TokenBucket(rate=200, capacity=2))
    assert bucket.may_open(0.0, waiting=1) and not bucket.may_open(0.0, waiting=2)


def test_a_burst_of_one_is_the_rfc_to_the_letter() -> None:
    """RFC 8445, 6.1.4.2: one check whenever Ta fires. There is nothing to reserve then."""
    times = sent_within(pacer(burst=1), 0.5)
    assert times == pytest.approx([TA_S * i for i in range(10)], abs=1e-4)


@given(
    st.lists(st.tuples(st.floats(0.0, 0.3), st.booleans()), max_size=200),
    st.integers(1, 5),
    st.sampled_from([0.005, 0.020, 0.050, 0.5]),
)
def test_no_window_ever_has_more_than_the_bucket_and_its_refill(
    wishes: list[tuple[float, bool]], burst: int, ta_s: float
) -> None:
    bucket = pacer(burst=burst, ta_s=ta_s)
    now, times = 0.0, []
    for pause, urgent in wishes:
        now += pause
        if bucket.may_send(now, urgent=urgent):
            bucket.take(now)
            times.append(now)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - start) / ta_s + 0.001


@given(st.floats(0.0, 10.0), st.booleans())
def test_what_is_ready_at_a_time_may_leave_then(start: float, urgent: bool) -> None:
    """Or the session would be woken for nothing, over and over."""
    bucket = pacer()
    for _ in range(20):
        if not bucket.may_send(start, urgent=urgent):
            start = bucket.ready_at(start, urgent=urgent)
            assert bucket.may_send(start, urgent=urgent)
        bucket.take(start)


def test_the_peers_slower_pace_counts() -> None:
    """RFC 8445, 14.2: the larger of both sides' Ta; RFC 8839, 5.5 writes it as ice-pacing."""
    remotes = [remote_candidate(TransportAddress(f"10.2.0.{i}", 6000), index=i) for i in range(1, 20)]
    play = Play(remotes=(), described=False)
    play.describe(THEIRS, remotes, pacing_ms=200)
    play.pass_time(1.0)
    first = [at for at, transmit, _ in play.requests() if transmit.destination.port == 6000]
    assert first[:3] == [0.0] * 3
    assert first[3:6] == pytest.approx([0.2, 0.4, 0.6], abs=1e-3)


def test_a_peer_that_says_nothing_is_paced_by_the_default() -> None:
    """RFC 8839, 5.5: without the attribute, 50 ms; asking for less than that needs both sides."""
    remotes = [remote_candidate(TransportAddress(f"10.2.0.{i}", 6000), index=i) for i in range(1, 20)]
    play = Play(Config(ta_s=0.005), remotes=remotes)
    play.pass_time(0.21)
    assert len(play.requests()) == 3 + 4


def test_all_sessions_of_a_process_share_two_hundred_a_second() -> None:
    """DEVIATION from RFC 8445, 14.2: the average is one per 5 ms, but up to 20 may leave closer together."""
    ceiling = TokenBucket(rate=200, capacity=20)
    remotes = [remote_candidate(TransportAddress(f"10.2.0.{i}", 6000), index=i) for i in range(1, 60)]
    config = Config(early_checks_s=())
    plays = [Play(config, remotes=remotes, ceiling=ceiling) for _ in range(40)]
    for step in range(1, 500):
        for play in plays:
            play.now = step / 1000
            play.session.handle_timeout(play.now)
            play.drain()
    times = [at for play in plays for at, _, _ in play.requests()]
    assert times.count(0.0) == 20
    # Half a second of 40 sessions that could send 20/s each and 3 at once.
    assert 20 + 0.49 * 200 - 2 <= len(times) <= 20 + 0.5 * 200
    assert max(Counter(int(at * 10) for at in times if at > 0).values()) <= 22


# --- limit 3: addresses that never answered ------------------------------------------------------------------------


def test_twenty_packets_in_the_first_minute_then_thirty_an_hour() -> None:
    """RFC 8445, 19.5.1: signalling somebody's address must not make us a cannon."""
    budget = RemoteBudget()
    times = []
    for step in range(36_000):
        now = step / 10
        if budget.allows(REMOTE, now):
            budget.spend(REMOTE, now)
            times.append(now)
    assert len([at for at in times if at < 60.0]) == 20
    later = [at for at in times if at >= 60.0]
    assert len(later) == 30
    assert [y - x for x, y in pairwise(later)] == pytest.approx([120.0] * 29)


def test_four_a_second_may_look_for_a_peer_that_talks_to_us_whatever_it_named() -> None:
    """It named a hundred addresses, all used up, and has us look for it at each of them ten times a second."""
    budget = RemoteBudget()
    named = [TransportAddress("192.0.2.1", port) for port in range(1000, 1100)]
    for remote in named:
        for _ in range(20):
            budget.spend(remote, 0.0)
    sent = 0
    for step in range(550):
        now = 1.0 + step / 10
        for remote in named:
            budget.grant(remote, now)
            if budget.allows(remote, now):
                budget.spend(remote, now)
                sent += 1
    assert 20 + 4 * 54.9 - 2 <= sent <= 20 + 4 * 54.9 + 2


def test_who_answers_is_free_of_it() -> None:
    budget = RemoteBudget()
    for _ in range(20):
        budget.spend(REMOTE, 0.0)
    assert not budget.allows(REMOTE, 1.0)
    budget.answered(REMOTE)
    for _ in range(100):
        assert budget.allows(REMOTE, 1.0)
        budget.spend(REMOTE, 1.0)


def test_early_checks_leave_half_of_it_for_repetitions() -> None:
    budget = RemoteBudget()
    for _ in range(10):
        assert budget.allows(REMOTE, 0.0, early=True)
        budget.spend(REMOTE, 0.0)
    assert not budget.allows(REMOTE, 0.0, early=True)
    assert budget.allows(REMOTE, 0.0)


def test_when_it_may_go_on_is_told() -> None:
    budget = RemoteBudget()
    for _ in range(20):
        budget.spend(REMOTE, 5.0)
    assert budget.next_at(REMOTE, 10.0) == 65.0
    budget.spend(REMOTE, 65.0)
    assert budget.next_at(REMOTE, 70.0) == 185.0
    assert budget.allows(REMOTE, 185.0)


def test_the_addresses_remembered_are_bounded_and_new_ones_are_still_served() -> None:
    budget = RemoteBudget()
    for i in range(10_000):
        address = TransportAddress(f"10.{i >> 8}.{i & 255}.1", 1)
        assert budget.allows(address, 0.0)
        budget.spend(address, 0.0)
        budget.answered(address._replace(port=2))
    assert len(budget._remotes) == len(budget._answered) == 2048
