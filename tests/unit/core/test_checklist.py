"""Which pairs are there, and which one is checked next (RFC 8445, 6.1.2 and 6.1.4)?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.checklist import CheckList
from iceagent.core.pair import TRANSITIONS, CandidatePair, PairState
from iceagent.net.address import TransportAddress
from tests.sim.world import host_candidate, reflexive_candidate, relayed_candidate
from tests.unit.core.kit import BASE, REMOTE, context, remote_candidate

W, F, S = PairState.WAITING, PairState.FROZEN, PairState.SUCCEEDED
ACTIVE = PairState.IN_PROGRESS


def checklist(config: Config | None = None, *, controlling: bool = True, preferred: str | None = None) -> CheckList:
    return CheckList(context(config, controlling=controlling), lambda remote: preferred)


def local(index: int, *, foundation: str | None = None, host: str | None = None) -> Candidate:
    candidate = host_candidate(TransportAddress(host or f"10.1.0.{index + 1}", 5000), index=index)
    return candidate if foundation is None else replace(candidate, foundation=foundation)


def remote(index: int, *, foundation: str | None = None, host: str | None = None) -> Candidate:
    candidate = remote_candidate(TransportAddress(host or f"10.2.0.{index + 1}", 6000), index=index)
    return candidate if foundation is None else replace(candidate, foundation=foundation)


def form(pairs: CheckList, locals_: list[Candidate], remotes: list[Candidate]) -> CheckList:
    for candidate in locals_:
        pairs.add_local(candidate)
    for candidate in remotes:
        pairs.add_remote(candidate)
    return pairs


def keys(pairs: CheckList) -> set[tuple[str, str]]:
    return {(pair.base.host, pair.destination.host) for pair in pairs}


def any_pair(pair: CandidatePair) -> bool:
    return True


@pytest.mark.parametrize("remotes_first", [True, False])
def test_every_base_is_paired_with_every_remote_candidate(remotes_first: bool) -> None:
    pairs = checklist()
    if remotes_first:
        form(pairs, [], [remote(0), remote(1)])
        form(pairs, [local(0), local(1)], [])
    else:
        form(pairs, [local(0), local(1)], [remote(0), remote(1)])
    assert keys(pairs) == {(a, b) for a in ("10.1.0.1", "10.1.0.2") for b in ("10.2.0.1", "10.2.0.2")}


def test_only_the_same_family_and_component_and_kind_of_link() -> None:
    """RFC 8445, 6.1.2.2: link-local IPv6 with link-local only."""
    pairs = form(
        checklist(Config(components=2)),
        [local(0), local(1, host="2001:db8::1"), local(2, host="fe80::1")],
        [remote(0), remote(1, host="2001:db8::2"), remote(2, host="fe80::2")],
    )
    assert keys(pairs) == {("10.1.0.1", "10.2.0.1"), ("2001:db8::1", "2001:db8::2"), ("fe80::1", "fe80::2")}
    pairs.add_remote(remote_candidate(component=2))
    assert len(pairs) == 3


def test_reflexive_candidates_are_pruned_into_their_bases_pairs() -> None:
    """RFC 8445, 6.1.2.4: same base and remote candidate, the lower priority is redundant."""
    base = local(0)
    mapped = reflexive_candidate(base, TransportAddress("20.0.0.1", 5000))
    pairs = form(checklist(), [base, mapped], [remote(0)])
    (pair,) = pairs
    assert pair.local is base
    relay = relayed_candidate(TransportAddress("198.51.100.1", 40000))
    pairs.add_local(relay)
    assert len(pairs) == 2


def test_the_better_candidate_of_a_base_takes_over_its_pairs() -> None:
    """Whatever order they came in."""
    base = local(0)
    mapped = reflexive_candidate(base, TransportAddress("20.0.0.1", 5000))
    late = form(checklist(), [mapped], [remote(0)])
    late.add_local(base)
    (pair,) = late
    assert pair.local is base
    in_order = form(checklist(), [base, mapped], [remote(0)])
    assert pair.priority == next(iter(in_order)).priority
    assert late.local(1, base.address) is base


def test_at_most_a_hundred_pairs_and_the_best_of_them() -> None:
    """RFC 8445, 6.1.2.5."""
    locals_ = [local(i) for i in range(16)]
    remotes = [remote(i) for i in range(128)]
    limited = form(checklist(), locals_, remotes)
    everything = form(checklist(Config(max_pairs=10_000)), locals_, remotes)
    assert len(limited) == 100
    best = sorted((pair.priority for pair in everything), reverse=True)[:100]
    assert sorted((pair.priority for pair in limited), reverse=True) == best
    assert len(everything) == 16 * 128


def test_a_pair_that_a_check_proved_finds_room_at_the_limit() -> None:
    pairs = form(checklist(Config(max_pairs=2)), [local(0)], [remote(0), remote(1), remote(2)])
    stranger = remote(50)
    pair = pairs.form(local(0), stranger)
    assert pair is not None and len(pairs) == 2
    assert pairs.find(pair.base, stranger.address) is pair
    assert keys(pairs) == {("10.1.0.1", "10.2.0.1"), ("10.1.0.1", "10.2.0.51")}


def test_pairs_under_way_do_not_give_way() -> None:
    pairs = form(checklist(Config(max_pairs=2)), [local(0)], [remote(1), remote(2)])
    for pair in pairs:
        pairs.set_state(pair, W)
        pairs.set_state(pair, ACTIVE)
    pairs.add_remote(remote(0))
    assert keys(pairs) == {("10.1.0.1", "10.2.0.2"), ("10.1.0.1", "10.2.0.3")}
    assert pairs.form(local(0), remote(9)) is None


def test_a_pair_that_waits_again_may_give_way_again() -> None:
    """It was under way when the list was full for the first time."""
    pairs = form(checklist(Config(max_pairs=3)), [local(0)], [remote(3), remote(4), remote(5)])
    lowest = pairs.find(local(0).address, remote(5).address)
    assert lowest is not None
    pairs.set_state(lowest, W)
    pairs.set_state(lowest, ACTIVE)
    pairs.add_remote(remote(2))
    assert keys(pairs) == {("10.1.0.1", f"10.2.0.{index + 1}") for index in (5, 3, 2)}
    pairs.set_state(lowest, W)
    pairs.add_remote(remote(1))
    assert keys(pairs) == {("10.1.0.1", f"10.2.0.{index + 1}") for index in (3, 2, 1)}


def test_one_pair_of_each_foundation_waits_and_the_others_are_frozen() -> None:
    """RFC 8445, 6.1.2.6, in the form that RFC 8838, 12 gives it for trickled candidates."""
    pairs = form(checklist(), [local(0)], [remote(0, foundation="x"), remote(1, foundation="x"), remote(2)])
    assert [pair.state for pair in pairs] == [W, F, W]


def test_success_unfreezes_the_foundation() -> None:
    """RFC 8445, 7.2.5.3.3; and a pair that comes after the success starts Waiting."""
    pairs = form(checklist(), [local(0)], [remote(i, foundation="x") for i in range(3)])
    first, *others = pairs
    pairs.set_state(first, ACTIVE)
    assert [pair.state for pair in others] == [F, F]
    pairs.set_state(first, S)
    assert [pair.state for pair in others] == [W, W]
    pairs.add_remote(remote(3, foundation="x"))
    assert list(pairs)[-1].state is W


def test_the_peers_next_address_does_not_wait_for_the_one_before() -> None:
    """Its foundation is the same, and the pair with the former one may go unanswered for 39.5 s."""
    pairs = form(checklist(), [local(0)], [remote(0, foundation="x"), remote(1, foundation="x")])
    first, second = pairs
    pairs.set_state(first, ACTIVE)
    pairs.add_remote(remote(2, foundation="x"))
    assert [pair.state for pair in pairs] == [ACTIVE, F, F]
    pairs.set_state(second, W)
    pairs.set_state(second, ACTIVE)
    (third,) = [pair for pair in pairs if pair.state is F]
    pairs.set_state(third, W)
    pairs.set_state(third, ACTIVE)
    pairs.add_remote(remote(3, foundation="x"))
    assert [pair.state for pair in pairs] == [ACTIVE, ACTIVE, ACTIVE, W]
    # Its opener has left, and its check is about to.
    list(pairs)[-1].openers = 1
    pairs.add_remote(remote(4, foundation="x"))
    assert list(pairs)[-1].state is W


def test_a_pair_that_is_not_answered_holds_its_foundation_back_for_three_transmissions() -> None:
    pairs = form(checklist(), [local(0)], [remote(0, foundation="x"), remote(1, foundation="x")])
    first, second = pairs
    pairs.set_state(first, ACTIVE)
    first.requests_sent = 2
    assert pairs.next_ordinary(any_pair) is None
    first.requests_sent = 3
    assert pairs.next_ordinary(any_pair) is second


def test_a_frozen_pair_is_checked_when_its_foundation_is_idle() -> None:
    """RFC 8445, 6.1.4.2: no pair of the foundation is Waiting or In-Progress."""
    pairs = form(checklist(), [local(0)], [remote(0, foundation="x"), remote(1, foundation="x")])
    first, second = pairs
    pairs.set_state(first, ACTIVE)
    assert pairs.next_ordinary(any_pair) is None
    pairs.set_state(first, PairState.FAILED)
    assert pairs.next_ordinary(any_pair) is second
    assert second.state is W


def test_waiting_pairs_come_in_order_of_priority() -> None:
    pairs = form(checklist(), [local(1), local(0)], [remote(2), remote(0), remote(1)])
    order = []
    while (pair := pairs.next_ordinary(any_pair)) is not None:
        pairs.set_state(pair, ACTIVE)
        order.append(pair.priority)
    assert len(order) == 6
    assert order == sorted(order, reverse=True)


def test_the_base_that_the_kernel_would_use_comes_first() -> None:
    """DEVIATION from 6.1.4.2: one base of sixteen is usually the one; its pairs do not wait for the others."""
    pairs = form(checklist(preferred="10.1.0.3"), [local(i) for i in range(3)], [remote(0), remote(1)])
    order = []
    while (pair := pairs.next_ordinary(any_pair)) is not None:
        pairs.set_state(pair, ACTIVE)
        order.append(pair.base.host)
    assert order[:2] == ["10.1.0.3"] * 2
    assert sorted(order[2:]) == ["10.1.0.1"] * 2 + ["10.1.0.2"] * 2


def test_what_is_not_wanted_is_passed_over() -> None:
    pairs = form(checklist(), [local(0)], [remote(0), remote(1)])
    best, second = sorted(pairs, key=lambda pair: pair.order, reverse=True)
    assert pairs.next_ordinary(lambda pair: pair is not best) is second
    assert pairs.next_ordinary(lambda pair: False) is None


def test_triggered_checks_are_first_in_first_out_and_once_each() -> None:
    """RFC 8445, 6.1.4.1."""
    pairs = form(checklist(), [local(0)], [remote(0), remote(1), remote(2)])
    x, y, _ = pairs
    for pair in (y, x, y):
        pairs.trigger(pair)
    assert pairs.next_triggered() is y
    pairs.untrigger(y)
    assert pairs.next_triggered() is x
    pairs.untrigger(x)
    assert pairs.next_triggered() is None


@pytest.mark.parametrize("state", [S, PairState.FAILED, ACTIVE])
def test_only_waiting_pairs_stay_in_the_triggered_queue(state: PairState) -> None:
    """A pair that succeeds or fails while it is queued needs no check any more."""
    pairs = form(checklist(), [local(0)], [remote(0)])
    (pair,) = pairs
    pairs.trigger(pair)
    pairs.set_state(pair, state)
    assert pairs.next_triggered() is None


def test_a_signalled_candidate_takes_the_place_of_a_learnt_one() -> None:
    """State stays; type, priority and foundation change."""
    pairs = form(checklist(), [local(0)], [])
    learnt = Candidate.parse("candidate:r1 1 udp 1862270975 10.2.0.1 6000 typ prflx")
    pair = pairs.form(local(0), learnt)
    assert pair is not None
    pairs.set_state(pair, ACTIVE)
    before = pair.priority
    pairs.replace_remote(remote(0))
    assert (pair.state, pair.remote) == (ACTIVE, remote(0))
    assert pair.priority > before
    assert pairs.find(BASE, REMOTE) is pair


def test_a_socket_that_goes_takes_its_pairs() -> None:
    pairs = form(checklist(), [local(0), local(1)], [remote(0), remote(1)])
    for pair in pairs:
        pairs.trigger(pair)
    gone = pairs.remove_base(local(0).address)
    assert {pair.base for pair in gone} == {local(0).address} and len(gone) == 2
    assert keys(pairs) == {("10.1.0.2", "10.2.0.1"), ("10.1.0.2", "10.2.0.2")}
    assert pairs.next_triggered() not in gone
    pairs.add_remote(remote(2))
    assert {base for base, _ in keys(pairs)} == {"10.1.0.2"}


def test_no_pair_without_the_peers_credentials() -> None:
    pairs = CheckList(context(), lambda remote: None)
    pairs._context.keys = None
    form(pairs, [local(0)], [remote(0)])
    assert len(pairs) == 0


# --- states --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(PairState), max_size=12))
def test_a_pair_moves_along_the_table_and_nowhere_else(states: list[PairState]) -> None:
    pairs = form(checklist(), [local(0)], [remote(0)])
    (pair,) = pairs
    for state in states:
        old = pair.state
        if state is old or state in TRANSITIONS[old]:
            pairs.set_state(pair, state)
            assert pair.state is state
        else:
            with pytest.raises(AssertionError, match="cannot become"):
                pairs.set_state(pair, state)
            assert pair.state is old


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(PairState)
    assert all(state not in after for state, after in TRANSITIONS.items())
    assert not any(F in after for after in TRANSITIONS.values())
