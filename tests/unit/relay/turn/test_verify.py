"""A client that has a reason to think that its NAT has forgotten it asks the server at once."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from relay.account import TurnCredentials
from relay.stun import Method, parse
from relay.turn import AllocationConfirmed, AllocationLost, AllocationMoved, ServerSilent
from relay.turn.events import AllocationReleased
from relay.turn.verifying import VERIFY_INTERVAL_S
from tests.fakes.turn_server import Options
from tests.unit.relay.turn.kit import CLIENT, Play

USERS = {"user": "secret"}
# What the server sees after the NAT has forgotten the client.
MAPPED = TransportAddress("192.0.2.1", 6001)


def verify(play: Play) -> bool:
    was_asked = play.client.verify(play.now)
    play._drain()
    return was_asked


def remap(play: Play) -> None:
    """The client's NAT gives it another mapping."""
    original = play.server.from_client
    play.server.from_client = (  # type: ignore[method-assign]
        lambda client, data, now: [
            (source, CLIENT if to == MAPPED else to, what) for source, to, what in original(MAPPED, data, now)
        ]
    )


def refreshes(play: Play) -> int:
    return sum(parse(data).method == Method.REFRESH for data in play.sent if data[0] < 4)


def test_who_is_known_hears_so_after_one_round_trip() -> None:
    play = Play()
    play.allocate()
    play.run(30.0)
    assert verify(play)
    play.run(0.11)
    assert play.has(AllocationConfirmed) and refreshes(play) == 1
    # It lives for ten minutes from now on.
    deadline = play.client.poll_timeout()
    assert deadline is not None and deadline - play.now == pytest.approx(540.0, abs=0.2)
    play.run(5.0)
    assert not play.has(ServerSilent) and not play.has(AllocationLost)
    assert not play.server.violations


def test_another_mapping_is_followed_with_the_ticket_within_two_round_trips() -> None:
    """And not after half a second of silence, as where nobody suspects anything."""
    play = Play(Options(users=USERS, mobility=True))
    play.allocate()
    remap(play)
    verify(play)
    play.run(0.21)
    assert play.has(AllocationMoved) and not play.has(AllocationLost) and not play.has(AllocationConfirmed)
    play.send(b"not lost")
    play.run(0.2)
    assert play.at_peers[-1][2] == b"not lost"


def test_another_mapping_without_a_ticket_is_told_within_one_round_trip() -> None:
    play = Play()
    play.allocate()
    remap(play)
    verify(play)
    play.run(0.11)
    lost = play.only(AllocationLost)
    assert lost.is_unknown and "437" in lost.reason


def test_a_server_that_knows_no_ticket_of_ours_is_told_as_one_that_does_not_know_us() -> None:
    play = Play(Options(users=USERS, mobility=True))
    play.allocate()
    play.server.restart()
    verify(play)
    play.run(0.3)
    assert play.only(AllocationLost).is_unknown


def test_silence_is_told_after_a_second_and_loses_nothing() -> None:
    """All of our network may be dead, for a while; the allocation is not."""
    play = Play()
    play.allocate()
    play.loses = lambda data: True
    verify(play)
    play.run(0.99)
    assert not play.has(ServerSilent) and refreshes(play) == 2
    play.run(0.02)
    play.only(ServerSilent)
    play.run(8.9)
    assert not play.has(AllocationLost) and not play.has(AllocationConfirmed)
    play.loses = lambda data: False
    play.run(0.21)
    assert play.has(AllocationConfirmed)
    play.only(ServerSilent)
    asked = refreshes(play)
    play.run(60.0)
    assert refreshes(play) == asked


def test_who_is_silent_is_asked_again_for_half_a_minute() -> None:
    play = Play()
    play.allocate()
    play.loses = lambda data: True
    verify(play)
    play.run(300.0)
    play.only(ServerSilent)
    assert refreshes(play) == 2 * 15


def test_a_server_that_is_restarted_meanwhile_is_noticed_soon() -> None:
    """Although nothing is sent over the relay."""
    play = Play()
    play.allocate()
    play.loses = lambda data: True
    verify(play)
    play.run(12.0)
    play.server.restart()
    play.loses = lambda data: False
    play.run(2.2)
    assert play.only(AllocationLost).is_unknown


def test_one_that_is_lost_is_repeated_and_still_answered() -> None:
    play = Play()
    play.allocate()
    lost: list[bytes] = []

    def lose(data: bytes) -> bool:
        lost.append(data)
        return len(lost) == 1

    play.loses = lose
    verify(play)
    play.run(0.62)
    assert play.has(AllocationConfirmed) and not play.has(ServerSilent)


def test_not_more_often_than_every_two_seconds() -> None:
    play = Play()
    play.allocate()
    asked = 0
    for _ in range(100):
        asked += verify(play)
        play.run(0.1)
    assert asked == refreshes(play) == 10.0 / VERIFY_INTERVAL_S


def test_not_while_there_is_none_or_it_moves() -> None:
    play = Play(Options(users=USERS, mobility=True))
    assert not play.client.verify(play.now)
    play.allocate()
    play.act(play.client.move, MAPPED)
    assert not play.client.verify(play.now)
    play.run(1.0)
    assert play.has(AllocationMoved) and refreshes(play) == 1


def test_what_a_move_interrupts_is_not_told_as_silence() -> None:
    play = Play(Options(users=USERS, mobility=True))
    play.allocate()
    verify(play)
    play.act(play.client.move, MAPPED)
    play.run(5.0)
    assert play.has(AllocationMoved) and not play.has(ServerSilent)


def test_who_gives_it_back_hears_nothing_of_silence() -> None:
    play = Play()
    play.allocate()
    play.loses = lambda data: True
    verify(play)
    play.act(play.client.release)
    play.run(5.0)
    assert play.has(AllocationReleased) and not play.has(ServerSilent)


def test_a_refusal_is_the_end() -> None:
    """The password was changed at the server. A 401 may be forged: the next regular refresh decides, soon."""
    play = Play()
    play.allocate()
    play.server.options.users = {"user": "another"}
    verify(play)
    play.run(0.5)
    assert not play.has(AllocationLost)
    play.run(15.0)
    assert play.only(AllocationLost).is_refused


def test_new_credentials_are_tried_where_the_present_ones_are_refused() -> None:
    play = Play()
    play.allocate()
    play.server.options.users = {"user": "another", "next": "secret"}
    play.act(play.client.use, TurnCredentials(username="next", password="secret"))
    verify(play)
    play.run(16.0)
    # 441: the server does not take another name for an allocation that there is.
    assert not play.only(AllocationLost).is_refused


# --- sleep -----------------------------------------------------------------------------------------------------------


def test_after_a_sleep_permissions_and_channels_are_asked_for_again() -> None:
    """The server's five and ten minutes went on while our clock stood still."""
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer()
    play.run(0.2)
    skew = 400.0
    original = play.server.from_client
    play.server.from_client = lambda client, data, now: original(client, data, now + skew)  # type: ignore[method-assign]
    before = len(play.at_peers)
    play.act(lambda now: play.client.note_sleep(skew, now))
    play.run(0.2)
    play.send(b"awake")
    play.run(0.2)
    assert play.at_peers[before:][-1][2] == b"awake"
    assert not play.has(AllocationLost)


def test_after_a_sleep_that_was_longer_than_its_life_it_is_lost_at_once() -> None:
    play = Play()
    play.allocate()
    play.act(lambda now: play.client.note_sleep(700.0, now))
    play.run(0.01)
    assert "expired" in play.only(AllocationLost).reason


def test_a_short_sleep_brings_the_refresh_nearer() -> None:
    play = Play()
    play.allocate()
    before = play.client.poll_timeout()
    play.act(lambda now: play.client.note_sleep(100.0, now))
    after = play.client.poll_timeout()
    assert before is not None and after == pytest.approx(before - 100.0)
