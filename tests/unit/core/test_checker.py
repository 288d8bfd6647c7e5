"""What do our checks look like, when are they repeated, and what makes a pair valid or failed (RFC 8445, 7.2)?

The deviation of early new checks (6.1.4.2 and 14.3) is pinned here.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.core.pair import PairState
from iceagent.events import AgentState, LocalCandidateFound, RoleChanged, SelectedPathChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import PacketDropped
from iceagent.priority import candidate_priority
from relay.stun import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    NOMINATION,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Message,
    parse,
    short_term_key,
)
from tests.sim.world import host_candidate
from tests.unit.core.kit import BASE, OURS, REMOTE, STRANGER, THEIRS, Play, remote_candidate

MAPPED = TransportAddress("20.0.0.1", 5000)
NO_EARLY = Config(early_checks_s=())


def remotes(count: int) -> list[TransportAddress]:
    return [TransportAddress(f"10.2.0.{i + 1}", 6000) for i in range(count)]


def first(play: Play) -> Message:
    return play.requests()[0][2]


# --- the request ---------------------------------------------------------------------------------------------------


def test_what_a_check_says() -> None:
    """RFC 8445, 7.1 and 7.2.2: USERNAME remote:local, the peer's password, PRIORITY as peer-reflexive, our role."""
    play = Play()
    ((at, transmit, message),) = play.requests()
    assert (at, transmit.base, transmit.destination, transmit.ttl) == (0.0, BASE, REMOTE, None)
    assert message.get(USERNAME) == f"{THEIRS.ufrag}:{OURS.ufrag}"
    assert message.verify(short_term_key(THEIRS.password))
    assert message.has_fingerprint
    assert message.get(PRIORITY) == candidate_priority(CandidateType.PEER_REFLEXIVE, 1, 65535)
    assert message.get(ICE_CONTROLLING) is not None and message.get(ICE_CONTROLLED) is None
    assert message.get(USE_CANDIDATE) is None


def test_a_candidate_is_paired_before_the_peer_was_told() -> None:
    """DEVIATION from RFC 8838, 10: nobody says when it was signalled, and an early check is one like any other."""
    play = Play(bases=())
    assert play.requests() == []
    play.session.add_local_candidate(host_candidate(BASE), play.now)
    play.drain()
    ((at, transmit, _),) = play.requests()
    assert (at, transmit.base, transmit.destination) == (0.0, BASE, REMOTE)
    assert [event.candidate.address for event in play.events_of(LocalCandidateFound)] == [BASE]


def test_a_controlled_agent_says_so_and_never_nominates() -> None:
    play = Play(controlling=False)
    play.answer(first(play))
    play.pass_time(20.0)
    assert all(m.get(ICE_CONTROLLED) is not None and not m.get(USE_CANDIDATE) for _, _, m in play.requests())


def test_the_nomination_is_a_new_check_with_use_candidate_and_nomination() -> None:
    """RFC 8445, 8.1.1: regular nomination; the attribute of ours and of others, 0xC001, stands beside USE-CANDIDATE."""
    play = Play()
    play.now = 0.030
    play.answer(first(play))
    check, nomination = (message for _, _, message in play.requests())
    assert nomination.get(USE_CANDIDATE) is True and nomination.get(NOMINATION) == 1
    assert nomination.transaction_id != check.transaction_id
    play.answer(nomination)
    assert [event.reason for event in play.events_of(SelectedPathChanged)] == ["the first valid pair"]
    selected = play.session.selected()
    assert selected is not None and selected is play.session.current() and selected.nominated


# --- repetition ----------------------------------------------------------------------------------------------------


def test_one_check_alone_follows_the_schedule_of_stun() -> None:
    """RFC 8489, 6.2.1 with 500 ms: 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 s; failed at 39.5 s."""
    play = Play(NO_EARLY)
    play.pass_time(60.0)
    assert [at for at, _, _ in play.requests()] == pytest.approx([0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5])
    assert len({message.transaction_id for _, _, message in play.requests()}) == 1
    (pair,) = play.session.pairs
    assert pair.state is PairState.FAILED
    assert play.state() is AgentState.FAILED
    assert play.session.state_reason == f"{BASE} → {REMOTE}: no response"


def test_the_rto_grows_with_the_checks_under_way() -> None:
    """RFC 8445, 14.3: MAX(500 ms, Ta * checks), so that repetitions do not outpace the pacing."""
    addresses = remotes(40)
    play = Play(NO_EARLY, remotes=[remote_candidate(a, index=i) for i, a in enumerate(addresses)])
    play.pass_time(6.0)
    times: dict[TransportAddress, list[float]] = {}
    for at, transmit, _ in play.requests():
        times.setdefault(transmit.destination, []).append(at)
    assert len(times) == 40
    gaps = [sent[1] - sent[0] for sent in times.values() if len(sent) > 1]
    assert max(gaps) == pytest.approx(40 * 0.050, abs=0.001)
    assert min(gaps) >= 0.5


def test_an_unanswered_pair_gets_new_checks_after_100_200_and_400_ms() -> None:
    """DEVIATION from RFC 8445, 6.1.4.2 and 14.3: at most three, each a transaction of its own, each sent once."""
    play = Play()
    play.pass_time(10.0)
    by_id: dict[bytes, list[float]] = {}
    for at, _, message in play.requests():
        by_id.setdefault(message.transaction_id, []).append(at)
    main, *early = by_id.values()
    assert main == pytest.approx([0.0, 0.5, 1.5, 3.5, 7.5])
    assert early == [pytest.approx([at], abs=1e-4) for at in (0.1, 0.2, 0.4)]
    play.pass_time(60.0)
    assert len({message.transaction_id for _, _, message in play.requests()}) == 4


def test_early_checks_can_be_switched_off() -> None:
    play = Play(NO_EARLY)
    play.pass_time(0.45)
    assert len(play.requests()) == 1


def test_an_answer_ends_the_early_checks() -> None:
    play = Play(controlling=False)
    play.pass_time(0.150)
    assert len(play.requests()) == 2
    play.answer(first(play))
    play.pass_time(3.0)
    assert len(play.requests()) == 2


def test_an_answer_to_any_of_the_checks_counts_however_late() -> None:
    play = Play(controlling=False)
    play.pass_time(20.0)
    early = play.requests()[2][2]
    assert early.transaction_id != first(play).transaction_id
    play.answer(early)
    assert play.state() is AgentState.CONNECTED
    before = len(play.requests())
    play.pass_time(3.9)
    assert len(play.requests()) == before


def test_early_checks_give_way_to_pairs_that_were_never_checked() -> None:
    """They take spare tokens only."""
    play = Play(remotes=[remote_candidate(a, index=i) for i, a in enumerate(remotes(20))])
    play.pass_time(0.8)
    destinations = [transmit.destination for _, transmit, _ in play.requests()]
    assert len(set(destinations[:17])) == 17


def test_every_interval_of_early_checks_is_paced() -> None:
    """A pair that waited 300 ms for a spare token gets none any more, and no token is borrowed."""
    play = Play(remotes=[remote_candidate(a, index=i) for i, a in enumerate(remotes(12))])
    play.pass_time(3.0)
    starts: dict[bytes, float] = {}
    for at, _, message in play.requests():
        starts.setdefault(message.transaction_id, at)
    times = sorted(starts.values())
    assert len(times) > 12
    # Three leave at once; from then on the bucket refills at one per Ta.
    assert all(later - sooner >= 0.0499 for sooner, later in pairwise(times[2:]))


# --- responses -----------------------------------------------------------------------------------------------------


def test_the_mapped_address_is_the_valid_local_candidate() -> None:
    """RFC 8445, 7.2.5.3.1: peer-reflexive, with the priority that the request carried."""
    play = Play()
    play.answer(first(play), mapped=MAPPED)
    path = play.session.path()
    assert path is not None
    assert (path.local.type, path.local.address, path.base) == (CandidateType.PEER_REFLEXIVE, MAPPED, BASE)
    assert path.local.priority == first(play).get(PRIORITY)
    assert path.local.related_address == BASE


def test_a_round_trip_is_measured_and_not_on_repeated_requests() -> None:
    """Karn's algorithm: nobody knows which of two requests a response answers."""
    play = Play(NO_EARLY, controlling=False)
    play.pass_time(0.040)
    play.answer(first(play))
    assert play.session.path().rtt_ms == pytest.approx(40.0)  # type: ignore[union-attr]
    repeated = Play(NO_EARLY, controlling=False)
    repeated.pass_time(0.600)
    repeated.answer(first(repeated))
    assert repeated.session.path().rtt_ms is None  # type: ignore[union-attr]


def test_a_response_with_another_password_is_as_good_as_none() -> None:
    """RFC 8489, 9.1.4: discarded, "as if it had never been received"."""
    play = Play()
    play.answer(first(play), password="w" * 32)
    assert play.state() is AgentState.CHECKING
    assert play.session.counters == {"dropped: response with wrong integrity": 1}
    play.answer(first(play))
    assert play.state() is AgentState.CONNECTED


def test_an_unsigned_response_is_as_good_as_none() -> None:
    play = Play()
    play.deliver(first(play).success((XOR_MAPPED_ADDRESS, BASE)).encode())
    play.deliver(first(play).error_response(487, "Role Conflict").encode())
    assert play.state() is AgentState.CHECKING and play.session.controlling
    assert play.session.counters == {"dropped: response with wrong integrity": 2}


def test_a_response_from_elsewhere_fails_the_pair() -> None:
    """RFC 8445, 7.2.5.2.1: non-symmetric transport addresses."""
    play = Play()
    play.answer(first(play), source=STRANGER)
    (pair,) = play.session.pairs
    assert pair.state is PairState.FAILED and not pair.is_valid
    assert play.session.current() is None
    # And it stays so, until something is heard from the right address.
    play.answer(first(play))
    assert play.session.current() is None


def test_a_response_to_nobody_is_counted() -> None:
    play = Play()
    other = parse(Play(controlling=False).request())
    play.answer(other)
    assert play.session.counters == {"dropped: response to no request of ours": 1}
    assert [event.reason for event in play.events_of(PacketDropped)] == ["response to no request of ours"]


def test_a_response_counts_once() -> None:
    play = Play(controlling=False)
    play.answer(first(play))
    play.answer(first(play))
    assert play.session.counters == {"dropped: response to no request of ours": 1}
    (pair,) = play.session.pairs
    assert pair.responses_received == 1


def test_a_response_without_a_mapped_address_fails_the_pair() -> None:
    play = Play()
    play.answer(first(play), mapped=None)
    (pair,) = play.session.pairs
    assert pair.state is PairState.FAILED


@pytest.mark.parametrize("error", [(400, "Bad Request"), (401, "Unauthenticated"), (500, "Server Error")])
def test_an_error_response_fails_the_pair_and_says_which(error: tuple[int, str]) -> None:
    """RFC 8445, 7.2.5.2.4."""
    play = Play()
    play.answer(first(play), error=error)
    play.pass_time(60.0)
    assert play.state() is AgentState.FAILED
    assert play.session.state_reason.endswith(f"the peer answered {error[0]} {error[1]}")
    assert len(play.requests()) == 1


def test_a_role_conflict_changes_our_role_and_repeats_the_check() -> None:
    """RFC 8445, 7.2.5.1: other role, other tie-breaker, the pair into the triggered-check queue."""
    play = Play()
    tie_breaker = first(play).get(ICE_CONTROLLING)
    play.answer(first(play), error=(487, "Role Conflict"))
    assert not play.session.controlling
    assert [event.controlling for event in play.events_of(RoleChanged)] == [False]
    _, again = (message for _, _, message in play.requests())
    assert again.get(ICE_CONTROLLED) not in (None, tie_breaker)
    # A second 487 to a check of the former role changes nothing back.
    play.answer(again)
    assert play.state() is AgentState.CONNECTED


def test_a_second_role_conflict_of_the_old_role_does_not_switch_back() -> None:
    play = Play(remotes=[remote_candidate(a, index=i) for i, a in enumerate(remotes(2))])
    (_, _, x), (_, _, y) = play.requests()
    play.answer(x, error=(487, "Role Conflict"), source=remotes(2)[0])
    play.answer(y, error=(487, "Role Conflict"), source=remotes(2)[1])
    assert not play.session.controlling
    assert len(play.events_of(RoleChanged)) == 1


def test_a_triggered_check_replaces_the_one_under_way_and_both_may_be_answered() -> None:
    """RFC 8445, 7.3.1.4: repeat the old one no more, take its response still."""
    play = Play(NO_EARLY, controlling=False)
    play.pass_time(0.300)
    play.check()
    old, new = (message for _, _, message in play.requests())
    assert old.transaction_id != new.transaction_id
    play.pass_time(0.6)
    assert [message.transaction_id for _, _, message in play.requests()[2:]] == [new.transaction_id]
    play.answer(old)
    assert play.state() is AgentState.CONNECTED


def test_checks_of_the_peer_that_come_at_once_trigger_one_check_per_ta() -> None:
    """Two ends that answer each other's checks with checks must not go on at the rate of the round trip."""
    play = Play(NO_EARLY, controlling=False)
    for _ in range(100):
        play.check()
        play.pass_time(0.002)
    assert len(play.requests()) <= 2 + 0.2 / 0.050


def test_the_first_triggered_check_of_a_pair_comes_soon() -> None:
    """Ours was eaten by the peer's firewall, or its relay, because it had not sent yet."""
    play = Play(NO_EARLY, controlling=False)
    play.check()
    play.pass_time(0.009)
    assert len(play.requests()) == 1
    play.pass_time(0.002)
    assert len(play.requests()) == 2
    play.check()
    play.pass_time(0.048)
    assert len(play.requests()) == 2
    play.pass_time(0.003)
    assert len(play.requests()) == 3


def test_transactions_are_bounded_whatever_the_peer_does() -> None:
    """A peer whose requests come in and whose responses do not: each triggered check is one more that could be
    answered.
    """
    play = Play(Config(ta_s=0.005), controlling=False, remotes=())
    play.describe(THEIRS, [remote_candidate()], pacing_ms=5)
    for _ in range(4000):
        play.check()
        play.pass_time(0.006)
    checker = play.session._checker
    assert len(checker._table) <= 16
    assert sum(len(pair.transactions) for pair in play.session.pairs) <= 16
    play.answer(play.requests()[-1][2])
    assert play.state() is AgentState.CONNECTED


def test_a_late_response_for_a_pair_that_gave_way_moves_nothing() -> None:
    """RFC 8445, 6.1.2.5: a pair over the limit is gone; its response must not put data on a pair nobody keeps."""
    play = Play(Config(max_pairs=1), controlling=False)
    request = first(play)
    play.answer(request, error=(500, "Server Error"))
    early = Play(Config(max_pairs=1), controlling=False)
    early.pass_time(0.15)
    main, second = (message for _, _, message in early.requests())
    early.answer(main, error=(500, "Server Error"))
    early.session.add_remote_candidate(remote_candidate(TransportAddress("10.2.0.9", 1), index=0), early.now)
    assert [pair.destination.host for pair in early.session.pairs] == ["10.2.0.9"]
    early.answer(second)
    assert early.session.current() is None
    assert early.state() is AgentState.CHECKING


def test_a_dead_five_tuple_is_refused_and_never_checked_again() -> None:
    """RFC 7675, 5.1 and 5.2: the peer is told that consent is over, and its requests trigger nothing."""
    play = Play(controlling=False)
    play.answer(first(play))
    play.pass_time(31.0)
    assert play.session.current() is None
    before = len(play.requests())
    for _ in range(20):
        error = play.check((USE_CANDIDATE, True), (NOMINATION, 1)).error
        assert error is not None and error.code == 403
        play.pass_time(1.0)
    assert len(play.requests()) == before
    assert play.session.current() is None and play.session.selected() is None


# --- nominations ---------------------------------------------------------------------------------------------------


def nominating(play: Play) -> list[tuple[float, TransportAddress, Message]]:
    return [(at, transmit.destination, m) for at, transmit, m in play.requests() if m.get(USE_CANDIDATE)]


def test_a_nomination_is_repeated_after_500_ms_however_many_checks_are_under_way() -> None:
    """Both ends wait for it; the RTO of RFC 8445, 14.3 would make it seconds here."""
    play = Play(NO_EARLY, remotes=[remote_candidate(a, index=i) for i, a in enumerate(remotes(40))])
    play.answer(first(play), source=remotes(1)[0])
    play.pass_time(4.0)
    assert [at for at, _, _ in nominating(play)] == pytest.approx([0.0, 0.5, 1.5, 3.5])


def two_nominations() -> tuple[Play, Message, Message]:
    """The second pair answers first and is nominated, then the first one, which is better."""
    good, better = remotes(2)[1], remotes(2)[0]
    play = Play(NO_EARLY, remotes=[remote_candidate(better, index=0), remote_candidate(good, index=1)])
    checks = {transmit.destination: message for _, transmit, message in play.requests()}
    play.answer(checks[good], source=good)
    play.answer(checks[better], source=better)
    (_, old_to, old), (_, new_to, new) = nominating(play)
    assert (old_to, new_to) == (good, better)
    assert (old.get(NOMINATION), new.get(NOMINATION)) == (1, 2)
    return play, old, new


def test_a_superseded_nomination_is_not_repeated() -> None:
    """A peer that knows USE-CANDIDATE alone would go back to where the last one came from."""
    play, old, _ = two_nominations()
    play.pass_time(5.0)
    repeated = [m.transaction_id for _, _, m in nominating(play)[2:]]
    assert repeated and old.transaction_id not in repeated


def test_the_answer_to_a_superseded_nomination_selects_nothing() -> None:
    """The peer has seen the later one already, or will: the ends must not stay on different pairs."""
    play, old, new = two_nominations()
    play.answer(old, source=remotes(2)[1])
    assert play.session.selected() is None
    play.answer(new, source=remotes(2)[0])
    selected = play.session.selected()
    assert selected is not None and selected.destination == remotes(2)[0]
