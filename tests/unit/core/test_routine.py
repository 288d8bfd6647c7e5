"""Consent traffic that changes nothing is passed by quickly; what must not be missed all the same?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.events import RemoteCandidateAdded
from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from relay.stun import NOMINATION, USE_CANDIDATE
from tests.unit.core.kit import BASE, REMOTE, Play, remote_candidate

SECOND_BASE = TransportAddress("10.1.0.2", 5001)
SECOND_REMOTE = TransportAddress("10.2.0.1", 6001)


class Answering(Play):
    """A peer that answers what ``hears`` says."""

    def __init__(
        self, config: Config | None = None, *, controlling: bool, bases: Sequence[TransportAddress] = (BASE,)
    ) -> None:
        remotes: list[Candidate] = [remote_candidate(), remote_candidate(SECOND_REMOTE, index=1)]
        super().__init__(config, controlling=controlling, remotes=remotes, bases=bases)
        self._seen = 0

    def run(self, seconds: float, hears: Callable[[Transmit], bool] = lambda transmit: True) -> None:
        for _ in range(round(seconds / 0.1)):
            new, self._seen = self.requests(self._seen), len(self.sent)
            for _, transmit, message in new:
                if hears(transmit):
                    self.answer(message, source=transmit.destination, base=transmit.base, mapped=transmit.base)
            self.pass_time(0.1)


def test_with_one_nomination_only_the_loss_of_the_selected_pair_does_not_spin() -> None:
    """``Config.renomination`` off (RFC 8445, 8.1.1): the standby carries on, and nothing is left to be decided."""
    play = Answering(Config(renomination=False), controlling=True)
    play.run(2.0)
    lost = play.session.current()
    assert lost is not None and play.session.selected() is lost
    play.run(40.0, lambda transmit: transmit.destination != lost.destination)
    assert play.session.selected() is None
    current = play.session.current()
    assert current is not None and current is not lost
    # pass_time has already failed if the session asked to be woken over and over.
    assert play.session.poll_timeout() is not None


def test_a_better_pair_that_is_heard_again_is_taken_while_nothing_is_selected() -> None:
    """Its state never changed: its answers look like routine."""
    play = Answering(controlling=False, bases=(BASE, SECOND_BASE))
    play.run(2.0)
    play.check((USE_CANDIDATE, True), (NOMINATION, 1), base=SECOND_BASE)
    play.run(1.0)
    selected = play.session.selected()
    assert selected is not None and selected.key == (SECOND_BASE, REMOTE)
    play.run(40.0, lambda transmit: (transmit.base, transmit.destination) != (BASE, REMOTE))
    play.session.remove_base(SECOND_BASE, "gone", play.now)
    play.drain()
    current = play.session.current()
    assert current is not None and current.key == (BASE, SECOND_REMOTE)
    # One that has not answered for so long is asked as often as others that stand by.
    play.run(20.0)
    current = play.session.current()
    assert current is not None and current.key == (BASE, REMOTE)


def test_a_signalled_peer_reflexive_candidate_is_taken_once() -> None:
    """It was not learnt from a check: said again, it is redundant, and counts for no limit of those that were."""
    play = Play(remotes=())
    line = remote_candidate(SECOND_REMOTE).to_sdp().replace("typ host", "typ prflx raddr 0.0.0.0 rport 9")
    for _ in range(5):
        play.session.add_remote_candidate(Candidate.parse(line), play.now)
    play.drain()
    assert [candidate.address for candidate in play.session.remote_candidates] == [SECOND_REMOTE]
    assert len(play.events_of(RemoteCandidateAdded)) == 1


def test_a_standby_that_answered_in_the_same_instant_expires_with_the_pair_in_use() -> None:
    """Adding and subtracting 30 s round differently: it took over for no time at all, and died of it."""
    play = Answering(controlling=True)
    play.run(3.0)
    current = play.session.current()
    assert current is not None
    (standby,) = [pair for pair in play.session.pairs if pair is not current]
    since = len(play.sent)
    play.pass_time(7.0)
    answered_at = next(at for i in range(10_000) if (at := play.now + i / 997) > (at + 30.0) - 30.0)
    play.pass_time(answered_at - play.now)
    play.now = answered_at
    for _, transmit, message in play.requests(since):
        play.answer(message, source=transmit.destination)
    assert current.responded_at == standby.responded_at == answered_at
    play.pass_time(30.0)
    assert play.session.current() is None
    assert (current.dead, standby.dead) == (True, False)
