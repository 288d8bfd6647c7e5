"""Relayed candidates of ours: signalled before a check leaves from them, and without openers."""

from __future__ import annotations

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.session import IceSession
from iceagent.events import LocalCandidateFound
from iceagent.net.address import TransportAddress
from relay.stun import parse
from tests.sim.world import relayed_candidate
from tests.unit.core.kit import REMOTE, THEIRS, Play, remote_candidate

RELAYED = TransportAddress("203.0.113.50", 50000)


def add(play: Play) -> None:
    session: IceSession = play.session
    assert session.add_local_candidate(relayed_candidate(RELAYED), play.now)
    play.drain()


def from_relay(play: Play) -> list[float]:
    """When requests left from there."""
    return [at for at, transmit, _ in play.requests() if transmit.base == RELAYED]


def test_the_application_hears_of_it_before_a_check_leaves() -> None:
    """A peer that learns a relay from a check takes it for peer-reflexive, which beats server-reflexive."""
    play = Play()
    play.pass_time(1.0)
    add(play)
    assert play.events_of(LocalCandidateFound)[-1].candidate.address == RELAYED
    assert from_relay(play) == []
    play.pass_time(0.009)
    assert from_relay(play) == []
    play.pass_time(0.1)
    assert from_relay(play)[0] >= 1.010


def test_who_checks_it_has_heard_of_it() -> None:
    play = Play(controlling=False)
    play.pass_time(1.0)
    add(play)
    play.check(base=RELAYED)
    assert from_relay(play) == [1.0]


def test_what_was_gathered_before_the_peer_is_known_waits_for_nothing() -> None:
    play = Play(described=False)
    add(play)
    play.describe(THEIRS, [remote_candidate()])
    play.pass_time(0.0)
    assert from_relay(play) == [0.0]


def test_one_that_is_gone_by_then_is_not_checked() -> None:
    play = Play()
    play.pass_time(1.0)
    add(play)
    play.session.remove_base(RELAYED, "gone", play.now)
    play.pass_time(1.0)
    assert from_relay(play) == []


def test_no_opener_leaves_from_it() -> None:
    """The server opens its port by a permission; what dies on its way would never get to the server's NAT."""
    reflexive = remote_candidate(REMOTE)
    line = reflexive.to_sdp().replace("typ host", "typ srflx raddr 10.9.9.9 rport 9")
    play = Play(Config(), remotes=())
    play.session.add_remote_candidate(type(reflexive).parse(line), play.now)
    add(play)
    play.pass_time(1.0)
    indications = [
        transmit for _, transmit in play.sent if parse(transmit.data).is_indication and transmit.base == RELAYED
    ]
    assert from_relay(play) and indications == []


def test_a_peers_relay_at_a_lost_server_has_to_answer_before_it_carries_data() -> None:
    """Both ends use the servers of one service: the path that replaces a lost one must not lead to the same server."""
    dead, alive = TransportAddress("203.0.113.60", 1), TransportAddress("203.0.113.61", 1)
    remotes = [Candidate.parse(relayed_candidate(each).to_sdp()) for each in (dead, alive)]
    play = Play(Config(), remotes=remotes)
    # They have one foundation: the second is checked once the first has answered.
    for _ in range(2):
        play.pass_time(0.2)
        for _, transmit, message in play.requests():
            play.answer(message, source=transmit.destination)
    path = play.session.path()
    assert path is not None
    current = path.remote.address
    # What has been heard a moment ago is asked, and stays.
    play.session.doubt_relays({current.host}, play.now)
    play.drain()
    path = play.session.path()
    assert path is not None and path.remote.address == current
    play.pass_time(1.1)
    since = len(play.sent)
    play.session.doubt_relays({current.host}, play.now)
    play.drain()
    path = play.session.path()
    assert path is not None and path.remote.address == ({dead, alive} - {current}).pop()
    asked = [(transmit, message) for _, transmit, message in play.requests(since) if transmit.destination == current]
    assert len(asked) == 1
    # It answers: it may be used again.
    play.answer(asked[0][1], source=current)
    assert {pair.destination for pair in play.session.pairs if pair.is_valid} == {dead, alive}
