"""What do we answer to whom (RFC 8445, 7.3; RFC 8489, 9.1.3)?"""

from __future__ import annotations

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.core.pair import PairState
from iceagent.events import RemoteCandidateAdded, RemoteCandidateRefused, RoleChanged
from iceagent.net.address import TransportAddress
from relay.stun import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    NOMINATION,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    XOR_MAPPED_ADDRESS,
    Message,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from tests.unit.core.kit import BASE, NEXT, OURS, REMOTE, STRANGER, THEIRS, Play, remote_candidate

OUR_KEY = short_term_key(OURS.password)


def test_a_check_is_answered_with_the_address_it_came_from() -> None:
    play = Play(controlling=False)
    answer = play.check()
    assert answer.is_success
    assert answer.get(XOR_MAPPED_ADDRESS) == REMOTE
    assert answer.verify(OUR_KEY) and answer.has_fingerprint


def test_a_check_without_a_fingerprint_is_answered_all_the_same() -> None:
    """DEVIATION from RFC 8445, 7.3 ("MUST utilize the FINGERPRINT mechanism"): the check's integrity is enough."""
    play = Play(controlling=False)
    data = play.request()
    # The integrity covers a length that ends with it, so that the 8 bytes of the attribute can be cut off.
    bare = data[:2] + (len(data) - 20 - 8).to_bytes(2, "big") + data[4:-8]
    assert parse(data).has_fingerprint and not parse(bare).has_fingerprint
    (answer,) = play.deliver(bare)
    assert answer.is_success and answer.verify(OUR_KEY)
    assert answer.has_fingerprint


def test_a_check_with_a_wrong_fingerprint_is_dropped() -> None:
    play = Play(controlling=False)
    data = play.request()
    assert play.deliver(data[:-1] + bytes([data[-1] ^ 1])) == []
    assert play.session.counters["dropped: malformed STUN"] == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"username": False}, 400),
        ({"signed": False}, 400),
        ({"key": short_term_key("wrong" * 8)}, 401),
        ({"credentials": NEXT}, 401),
    ],
)
def test_strangers_are_refused_unsigned(data: dict[str, object], code: int) -> None:
    """RFC 8489, 9.1.3: 400 without USERNAME or integrity, 401 where they are wrong; both without integrity."""
    play = Play(controlling=False)
    (answer,) = play.deliver(play.request(**data), source=STRANGER)  # type: ignore[arg-type]
    assert answer.error is not None and answer.error.code == code
    assert not answer.has_integrity
    assert play.session.counters == {f"dropped: request refused with {code}": 1}
    assert len(play.session.remote_candidates) == 1
    assert not play.events_of(RemoteCandidateAdded)[1:]


def test_an_attribute_that_we_must_know_and_do_not_is_named() -> None:
    """RFC 8489, 6.3.1: 420 with UNKNOWN-ATTRIBUTES, signed: the request was authentic."""
    play = Play(controlling=False)
    request = parse_and_add_unknown(play)
    (answer,) = play.deliver(request)
    assert answer.error is not None and answer.error.code == 420
    assert answer.get(UNKNOWN_ATTRIBUTES) == (0x7777,)
    assert answer.verify(OUR_KEY)


def parse_and_add_unknown(play: Play) -> bytes:
    message = parse(play.request())
    changed = Message(
        message.method, message.message_class, message.transaction_id, [*message.attributes, (0x7777, b"abcd")]
    )
    return changed.encode(OUR_KEY)


@pytest.mark.parametrize("priority", [None, 0, 2**31])
def test_a_check_without_a_usable_priority_is_a_bad_request(priority: int | None) -> None:
    """RFC 8445, 7.1.1; libnice 0.1.23 refuses 0, too (report 26)."""
    play = Play(controlling=False)
    (answer,) = play.deliver(play.request(priority=priority), source=STRANGER)
    assert answer.error is not None and answer.error.code == 400
    assert answer.verify(OUR_KEY)
    assert STRANGER not in [candidate.address for candidate in play.session.remote_candidates]


def test_strangers_get_ten_answers_a_second() -> None:
    """Nobody is amplified through us."""
    play = Play(controlling=False)
    answers = 0
    for _ in range(1000):
        answers += len(play.deliver(play.request(signed=False), source=STRANGER))
        play.pass_time(0.002)
    assert 10 + 2 * 10 - 1 <= answers <= 10 + 2 * 10 + 1
    assert play.session.counters["dropped: request refused with 400"] == 1000
    # The peer is not slowed down by them.
    assert play.check().is_success


def test_another_method_is_not_answered() -> None:
    play = Play(controlling=False)
    assert play.deliver(play.request(method=Method.ALLOCATE)) == []
    assert play.session.counters == {"dropped: request of another method than Binding": 1}


def test_an_indication_keeps_quiet() -> None:
    """RFC 8445, 11: keepalives of others."""
    play = Play(controlling=False)
    indication = build(Method.BINDING, MessageClass.INDICATION, bytes(12)).encode()
    assert play.deliver(indication) == []
    assert play.session.counters == {"indications received": 1}


# --- roles (RFC 8445, 7.3.1.1) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("theirs", ["smaller", "equal", "larger"])
def test_the_table_of_role_conflicts(controlling: bool, theirs: str) -> None:
    """ "If the agent's tie-breaker value is larger than or equal to" theirs, a controlling agent answers 487 and a
    controlled one
    switches; if smaller, the other way round."""
    play = Play(controlling=controlling)
    ours = play.session._context.tie_breaker
    value = {"smaller": ours - 1, "equal": ours, "larger": ours + 1}[theirs]
    role = ICE_CONTROLLING if controlling else ICE_CONTROLLED
    data = play.request((role, value), role=False)
    (answer,) = play.deliver(data)
    we_win = theirs != "larger"
    if controlling == we_win:
        assert answer.error is not None and answer.error.code == 487
        assert answer.verify(OUR_KEY)
        assert play.session.controlling == controlling
        assert not play.events_of(RoleChanged)
    else:
        assert answer.is_success
        assert play.session.controlling is not controlling
        assert [event.controlling for event in play.events_of(RoleChanged)] == [not controlling]


@pytest.mark.parametrize("controlling", [True, False])
def test_the_opposite_role_is_no_conflict(controlling: bool) -> None:
    play = Play(controlling=controlling)
    assert play.check().is_success
    assert play.session.controlling == controlling


def test_a_lite_agent_stays_controlled() -> None:
    play = Play(Config(lite=True), controlling=False)
    (answer,) = play.deliver(play.request((ICE_CONTROLLED, 0), role=False))
    assert answer.is_success and not play.session.controlling


# --- learning and triggering ---------------------------------------------------------------------------------------


def test_a_new_address_is_learnt_with_the_priority_of_its_check() -> None:
    """RFC 8445, 7.3.1.3: type, priority, component, a foundation unlike any other; not paired with other bases
    (7.3.1.4).
    """
    other = TransportAddress("10.1.0.2", 5000)
    play = Play(controlling=False, bases=(BASE, other))
    assert play.check(source=STRANGER).is_success
    (learnt,) = [event.candidate for event in play.events_of(RemoteCandidateAdded) if event.via == "check"]
    assert (learnt.type, learnt.address, learnt.priority) == (CandidateType.PEER_REFLEXIVE, STRANGER, 1862270975)
    assert [pair.base for pair in play.session.pairs if pair.destination == STRANGER] == [BASE]
    assert play.requests()[-1][1].destination == STRANGER


def test_learnt_addresses_are_bounded() -> None:
    """Each costs a pair; the credentials may have leaked."""
    play = Play(Config(max_peer_reflexive=32), controlling=False)
    for port in range(1000, 1100):
        assert play.check(source=TransportAddress("203.0.113.66", port)).is_success
    assert len(play.session.remote_candidates) == 1 + 32
    # Those that never answered give way to newer ones, but not without end.
    assert play.session.counters["peer-reflexive candidates over the limit"] == 68 - 32
    assert len(play.session.pairs) == 1 + 32


def test_the_remote_filter_holds_for_learnt_addresses_too() -> None:
    config = Config(remote_filter=lambda candidate: candidate.address.host != STRANGER.host)
    play = Play(config, controlling=False)
    play.check(source=STRANGER)
    assert [event.reason for event in play.events_of(RemoteCandidateRefused)] == ["the remote filter refuses it"]
    assert all(pair.destination != STRANGER for pair in play.session.pairs)


def test_a_check_on_a_succeeded_pair_triggers_nothing() -> None:
    """RFC 8445, 7.3.1.4."""
    play = Play(controlling=False)
    play.answer(play.requests()[0][2])
    before = len(play.requests())
    play.check()
    play.pass_time(1.0)
    assert len(play.requests()) == before


def test_a_check_on_a_failed_pair_triggers_a_new_one() -> None:
    play = Play(controlling=False)
    play.answer(play.requests()[0][2], error=(500, "Server Error"))
    (pair,) = play.session.pairs
    assert pair.state is PairState.FAILED
    play.check()
    assert pair.state.value == "in-progress"
    assert len(play.requests()) == 2


def test_a_check_before_the_description_is_answered_and_not_forgotten() -> None:
    """RFC 8445, 7.3: an early check; its triggered check leaves as soon as the credentials are known."""
    play = Play(controlling=False, described=False)
    assert play.check(source=STRANGER).is_success
    assert play.requests() == []
    play.describe(THEIRS)
    ((_, transmit, _),) = play.requests()
    assert transmit.destination == STRANGER


def test_an_early_nomination_is_kept_with_its_check() -> None:
    play = Play(controlling=False, described=False)
    play.check((USE_CANDIDATE, True), (NOMINATION, 3))
    play.check()
    play.describe(THEIRS, [remote_candidate()])
    play.answer(play.requests()[0][2])
    selected = play.session.selected()
    assert selected is not None and selected.nominated


def test_checks_to_an_unknown_base_are_answered_and_ignored() -> None:
    """A socket that was just removed."""
    play = Play(controlling=False)
    play.session.remove_base(BASE, "gone", play.now)
    assert play.check().is_success
    assert play.session.pairs == []


def test_after_a_restart_old_credentials_get_no_answer_where_no_path_is_in_use() -> None:
    """RFC 8445, 9: the old path carries data until the new one is found; here there is none, and an answer would make
    the peer think that there is. ``tests/sim/test_restart.py`` has those that are in use.
    """
    play = Play(controlling=False)
    for number in range(20):
        ours = play.session.local_credentials
        play.session.restart(play.now)
        assert play.check(credentials=play.session.local_credentials).is_success
        assert not play.deliver(play.request(credentials=ours))
        assert play.session.counters["dropped: check of a generation that is over"] == number + 1
    # After so many, the first are strangers'.
    (answer,) = play.deliver(play.request(credentials=OURS))
    assert answer.error is not None and answer.error.code == 401
