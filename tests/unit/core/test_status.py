"""Is the agent connected, and when has it failed?"""

from __future__ import annotations

from itertools import product

import pytest

from iceagent.config import Config
from iceagent.core.status import TRANSITIONS
from iceagent.description import Description
from iceagent.events import AgentState, StateChanged
from iceagent.net.address import TransportAddress
from tests.unit.core.kit import BASE, REMOTE, THEIRS, Play, remote_candidate

STATES = list(AgentState)


def test_every_state_is_in_the_table_and_closed_is_final() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert TRANSITIONS[AgentState.CLOSED] == frozenset()
    assert all(AgentState.CLOSED in after for state, after in TRANSITIONS.items() if state is not AgentState.CLOSED)
    assert not any(AgentState.NEW in after for after in TRANSITIONS.values())


@pytest.mark.parametrize(("old", "new"), list(product(STATES, STATES)), ids=str)
def test_the_state_moves_along_the_table_only_and_says_so_once(old: AgentState, new: AgentState) -> None:
    play = Play(described=False)
    status = play.session._status
    status.state = old
    status.move(new, "because")
    play.drain()
    moved = new in TRANSITIONS[old]
    assert status.state is (new if moved else old)
    events = [(event.old, event.new, event.reason) for event in play.events_of(StateChanged)]
    assert events == ([(old, new, "because")] if moved else [])


def test_the_life_of_a_session() -> None:
    play = Play(controlling=False, described=False)
    assert play.state() is AgentState.NEW
    play.describe(THEIRS, [remote_candidate()])
    play.answer(play.requests()[0][2])
    play.pass_time(9.0)
    assert [(event.new, event.reason) for event in play.events_of(StateChanged)] == [
        (AgentState.CHECKING, "the peer's description is known"),
        (AgentState.CONNECTED, "every component has a valid pair"),
        (AgentState.DISCONNECTED, "a check was not answered; no path answers"),
    ]
    play.answer(play.requests()[-1][2])
    assert play.events[-1] == StateChanged(
        old=AgentState.DISCONNECTED, new=AgentState.CONNECTED, reason="the peer answers again"
    )
    play.pass_time(60.0)
    assert play.state() is AgentState.FAILED
    assert play.session.state_reason == f"{BASE} → {REMOTE}: consent expired"


def test_it_does_not_fail_before_our_own_gathering_is_done() -> None:
    play = Play(described=False)
    play.session._status.local_done = False
    play.describe(THEIRS, [remote_candidate()])
    play.pass_time(120.0)
    assert play.state() is AgentState.CHECKING
    play.session.end_local_candidates(play.now)
    assert play.state() is AgentState.FAILED


def test_it_does_not_fail_before_the_peer_is_done() -> None:
    play = Play(described=False)
    trickling = Description(credentials=THEIRS, options=("trickle",), candidates=(remote_candidate(),))
    play.session.set_remote_description(trickling, play.now)
    play.pass_time(120.0)
    assert play.state() is AgentState.CHECKING
    play.session.end_remote_candidates(play.now)
    assert play.state() is AgentState.FAILED


def test_the_pac_timer_starts_with_the_peers_credentials() -> None:
    """RFC 8863, 4: 39.5 s from then, however early every pair has failed."""
    play = Play(described=False)
    play.pass_time(100.0)
    play.describe(THEIRS, [remote_candidate()])
    play.answer(play.requests()[0][2], error=(500, "Server Error"))
    play.pass_time(39.4)
    assert play.state() is AgentState.CHECKING
    play.pass_time(0.2)
    assert play.state() is AgentState.FAILED
    assert play.now == pytest.approx(139.6)


def test_a_late_candidate_or_check_brings_a_failed_session_back() -> None:
    """Also a good one after all others failed: networks change."""
    play = Play(controlling=False)
    play.pass_time(60.0)
    assert play.state() is AgentState.FAILED
    play.session.add_remote_candidate(remote_candidate(TransportAddress("10.2.0.9", 9)), play.now)
    assert play.state() is AgentState.CHECKING
    play.drain()
    play.pass_time(60.0)
    assert play.state() is AgentState.FAILED
    play.check()
    assert play.state() is AgentState.CHECKING
    play.answer(play.requests()[-1][2])
    assert play.state() is AgentState.CONNECTED


def test_two_components_are_connected_when_both_are() -> None:
    config = Config(components=2)
    play = Play(config, controlling=False, remotes=())
    second = TransportAddress("10.1.0.1", 5001)
    play.session.add_local_candidate(remote_candidate(second, component=2), play.now)
    play.session.add_remote_candidate(remote_candidate(), play.now)
    play.session.add_remote_candidate(remote_candidate(REMOTE._replace(port=6001), component=2), play.now)
    play.drain()
    # The second component's pair has the same foundation, and is frozen until the first one succeeds (RFC 8445,
    # 6.1.2.6).
    ((_, _, one),) = play.requests()
    play.answer(one)
    assert play.state() is AgentState.CHECKING
    two = play.requests()[-1][2]
    play.answer(two, mapped=second, source=REMOTE._replace(port=6001), base=second)
    assert play.state() is AgentState.CONNECTED


def test_a_closed_session_says_and_does_nothing() -> None:
    play = Play(controlling=False)
    play.session.close(play.now)
    play.drain()
    before = len(play.sent)
    assert play.state() is AgentState.CLOSED
    assert play.session.poll_timeout() is None
    assert play.deliver(play.request()) == []
    play.session.handle_timeout(100.0)
    play.session.add_remote_candidate(remote_candidate(TransportAddress("10.2.0.9", 9)), 100.0)
    play.session.close(100.0)
    play.drain()
    assert len(play.sent) == before
    assert play.session.poll_timeout() is None
    assert play.state() is AgentState.CLOSED
