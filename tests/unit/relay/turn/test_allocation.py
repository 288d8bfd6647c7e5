"""The life of an allocation, against a server that knows every MUST."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from relay.account import TurnCredentials
from relay.stun import (
    DATA,
    MOBILITY_TICKET,
    XOR_PEER_ADDRESS,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.turn import (
    AllocationConfirmed,
    AllocationLost,
    AllocationMoved,
    AllocationOptions,
    AllocationRefused,
    AllocationReleased,
    AllocationState,
    PeerRefused,
    ServerSilent,
)
from tests.fakes.turn_server import Options
from tests.unit.relay.turn.kit import CLIENT, PEER, Play

USERS = {"user": "secret"}
OTHER = TransportAddress("198.51.100.77", 8000)


def methods(play: Play) -> list[str]:
    """What the client has sent, requests only, repetitions once."""
    found = {}
    for data in play.sent:
        if data[0] < 4:
            message = parse(data)
            if message.is_request:
                found[message.transaction_id] = Method(message.method).name
    return list(found.values())


def is_method(method: Method) -> object:
    """For ``Play.loses``: requests of this method."""
    return lambda data: data[0] < 4 and parse(data).method == method


# --- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [False, True])
@pytest.mark.parametrize("userhash", [False, True])
def test_an_allocation_takes_two_round_trips(sha256: bool, userhash: bool) -> None:
    play = Play(Options(users=USERS, sha256=sha256, userhash=userhash))
    play.client.allocate(play.now)
    play.run(0.201)
    assert play.client.state is AllocationState.READY
    assert play.client.relayed[0].host == "198.51.100.1" and play.client.lifetime_s == 600
    assert methods(play) == ["ALLOCATE", "ALLOCATE"]
    assert not play.server.violations


def test_nothing_of_the_user_is_said_unasked() -> None:
    play = Play()
    play.client.allocate(play.now)
    play.run(0.01)
    assert b"user" not in play.sent[0]


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        (TurnCredentials(username="user", password="wrong"), "user name or password are wrong"),
        (TurnCredentials(username="nobody", password="secret"), "user name or password are wrong"),
        (None, "asks for a user name and a password"),
    ],
)
def test_wrong_credentials_are_told_and_not_repeated(credentials: TurnCredentials | None, reason: str) -> None:
    play = Play(credentials=credentials)
    play.client.allocate(play.now)
    play.run(100.0)
    refused = play.only(AllocationRefused)
    assert refused.code == 401 and reason in refused.reason and refused.wait_s is None
    assert len(methods(play)) <= 2


@pytest.mark.parametrize(
    ("options", "code", "wait_s"),
    [
        ({"quota": 0}, 486, 60.0),
        ({"alternate": OTHER}, 300, None),
    ],
)
def test_what_the_server_says_is_told(options: dict[str, object], code: int, wait_s: float | None) -> None:
    play = Play(Options(users=USERS, **options))  # type: ignore[arg-type]
    play.client.allocate(play.now)
    play.run(1.0)
    refused = play.only(AllocationRefused)
    assert (refused.code, refused.wait_s) == (code, wait_s) and refused.reason
    assert refused.alternate == options.get("alternate")


def test_a_five_tuple_that_the_server_knows_is_told() -> None:
    """Report 16 (libjuice#165): 437 means another socket."""
    play = Play()
    play.allocate()
    again = Play(seed=2)
    again.server = play.server
    again.client.allocate(again.now)
    again.run(1.0)
    assert again.only(AllocationRefused).code == 437


def test_a_silent_server() -> None:
    play = Play()
    play.loses = lambda data: True
    play.client.allocate(play.now)
    play.run(39.4)
    assert not play.events and len(play.sent) == 7
    play.run(0.2)
    assert play.only(AllocationRefused).reason == "no answer"


def test_a_silent_server_is_given_up_soon_where_it_is_asked_again_soon() -> None:
    play = Play(asked=AllocationOptions(is_brief=True))
    play.loses = lambda data: True
    play.client.allocate(play.now)
    play.run(2.49)
    assert len(play.sent) == 3 and not play.has(AllocationRefused)
    play.run(0.02)
    assert (play.only(AllocationRefused).reason, play.only(AllocationRefused).wait_s) == ("no answer", 0.0)


def test_both_families_in_one_allocation() -> None:
    play = Play(asked=AllocationOptions(families=(4, 6)))
    allocated = play.allocate()
    assert [address.version for address in allocated.relayed] == [4, 6]
    six = TransportAddress("2001:db8::9", 7000)
    assert play.send(b"4") == play.send(b"6", six) == 0
    play.run(0.2)
    assert [(peer, data) for _, peer, data in play.at_peers] == [(PEER, b"4"), (six, b"6")]
    play.run(3600)
    assert len(play.server.allocations(play.now)) == 1 and not play.server.violations


def test_a_family_that_the_server_has_not_is_told() -> None:
    play = Play(Options(users=USERS, ipv6_relay=False), asked=AllocationOptions(families=(4, 6)))
    allocated = play.allocate()
    assert [address.version for address in allocated.relayed] == [4] and "440" in allocated.refused
    assert play.send(b"6", TransportAddress("2001:db8::9", 7000)) != 0


def test_ipv6_alone() -> None:
    assert Play(asked=AllocationOptions(families=(6,))).allocate().relayed[0].version == 6


def test_a_server_that_forbids_mobility_is_asked_again_without() -> None:
    play = Play(Options(users=USERS, mobility=None))
    play.allocate()
    assert MOBILITY_TICKET in dict(parse(play.sent[-2]).attributes)
    assert MOBILITY_TICKET not in dict(parse(play.sent[-1]).attributes)


def test_an_even_port_and_the_one_behind_it() -> None:
    first = Play(asked=AllocationOptions(even_port=True))
    allocated = first.allocate()
    assert allocated.relayed[0].port % 2 == 0 and allocated.reservation is not None
    second = Play(asked=AllocationOptions(reservation=allocated.reservation), seed=2)
    second.server = first.server
    second.client.base = second.client._requests.base = TransportAddress("192.0.2.1", 5001)
    assert second.allocate().relayed[0].port == allocated.relayed[0].port + 1
    assert not first.server.violations


# --- who answers -----------------------------------------------------------------------------------------------------


def test_a_response_without_a_valid_signature_is_none() -> None:
    """An attacker on the path must not choose our relayed address."""
    play = Play()
    play.changes = lambda data: data[:-10] + bytes(10) if parse(data).is_success else data
    play.client.allocate(play.now)
    play.run(60.0)
    assert play.only(AllocationRefused).reason == "the server's answers have no valid signature"


def test_a_bid_down_is_refused() -> None:
    """RFC 8489, 9.2.1."""
    play = Play(Options(users=USERS, sha256=True))

    def without_algorithms(data: bytes) -> bytes:
        message = parse(data)
        kept = [(code, value) for code, value in message.attributes if code != 0x8002]
        message.attributes[:] = kept
        return message.encode(fingerprint=False) if message.error is not None else data

    play.changes = without_algorithms
    play.client.allocate(play.now)
    play.run(60.0)
    assert "announces password algorithms" in play.only(AllocationRefused).reason
    assert len(methods(play)) == 1


def test_a_stale_nonce_is_no_refusal() -> None:
    """As often as it takes."""
    play = Play(Options(users=USERS, nonce_lifetime_s=1.0))
    play.allocate()
    play.send()
    play.run(4 * 3600)
    assert len(play.server.allocations(play.now)) == 1
    assert play.server.counters["438"] > 20 and not play.has(AllocationLost)


def test_a_server_that_calls_every_nonce_stale() -> None:
    play = Play(Options(users=USERS, nonce_lifetime_s=0.0))
    play.client.allocate(play.now)
    play.run(60.0)
    assert "calls every nonce stale" in play.only(AllocationRefused).reason
    assert len(methods(play)) < 20


def test_an_unsigned_437_is_believed() -> None:
    """coturn with mobility cannot sign that it has lost an allocation."""
    play = Play()
    play.allocate()

    def unsigned(data: bytes) -> bytes:
        message = parse(data)
        return message.encode(fingerprint=False) if message.error is not None and message.error.code == 437 else data

    play.changes = unsigned
    play.server.restart()
    play.run(600.0)
    assert "437" in play.only(AllocationLost).reason


def test_any_other_unsigned_error_is_not() -> None:
    play = Play(Options(users=USERS, forbidden=frozenset({PEER.host})))
    play.allocate()

    def unsigned(data: bytes) -> bytes:
        message = parse(data)
        return message.encode(fingerprint=False) if message.error is not None and message.error.code == 403 else data

    play.changes = unsigned
    play.send()
    play.run(10.0)
    assert not play.has(PeerRefused)


# --- living ----------------------------------------------------------------------------------------------------------


def test_a_day() -> None:
    """Reports 13 (pion/turn#146): dead at 5 or 10 minutes. A peer that only sends, one that is only sent to, one that
    does neither and is permitted: nothing is lost in 24 h, whatever is sent or not.
    """
    play = Play(Options(users=USERS, nonce_lifetime_s=3600.0))
    play.allocate()
    silent, listening = TransportAddress("203.0.113.20", 1), TransportAddress("203.0.113.21", 1)
    play.act(play.client.permit, [PEER.host, silent.host])
    play.send(b"once")
    play.run(0.2)
    for minute in range(24 * 60):
        play.from_peer(str(minute).encode())
        if minute % 4 == 0:
            play.send(b"x", listening)
        play.run(60.0)
    play.from_peer(b"late", silent)
    play.run(1.0)
    received = play.received()
    assert [data for peer, data in received if peer == PEER] == [str(minute).encode() for minute in range(24 * 60)]
    assert received[-1] == (silent, b"late")
    assert len([data for _, peer, data in play.at_peers if peer == listening]) == 24 * 15
    assert not play.server.violations and not play.has(AllocationLost)
    # Every 9 minutes the allocation and a channel, every 4 two permissions, and a question whether the server is there.
    assert len(methods(play)) < 24 * 60 / 9 * 2 + 24 * 60 / 4 * 3 + 30


def test_what_nobody_uses_is_not_renewed() -> None:
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer()
    play.run(0.2)
    play.run(1800)
    (allocation,) = play.server.allocations(play.now)
    assert not allocation.permissions and not allocation.channels
    assert play.client.poll_timeout() is not None
    # It can be used again.
    play.send(b"again")
    play.run(1.0)
    assert play.at_peers[-1][2] == b"again"


def test_a_server_that_restarts_is_noticed_within_three_seconds() -> None:
    """Report 12 (pion/turn#144)."""
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer()
    play.run(30.0)
    play.server.restart()
    play.send()
    play.run(3.0)
    assert "437" in play.only(AllocationLost).reason


def test_a_server_that_is_gone_is_noticed_within_three_seconds_and_expires() -> None:
    """It may be the network: nothing is given up before that."""
    play = Play()
    play.allocate()
    play.run(30.0)
    play.loses = lambda data: True
    play.send()
    play.run(2.4)
    assert not play.has(ServerSilent)
    play.run(0.2)
    assert play.only(ServerSilent).is_lasting
    play.run(560.0)
    assert not play.has(AllocationLost)
    play.run(10.0)
    assert "expired" in play.only(AllocationLost).reason


def test_an_outage_that_is_over_costs_no_allocation() -> None:
    play = Play()
    play.allocate()
    play.run(30.0)
    play.loses = lambda data: True
    for _ in range(100):
        play.send()
        play.run(0.1)
    assert play.has(ServerSilent) and not play.has(AllocationLost)
    play.loses = lambda data: False
    play.run(2.1)
    assert play.has(AllocationConfirmed)
    play.send()
    play.run(0.2)
    assert play.at_peers
    play.run(1200.0)
    assert not play.has(AllocationLost)


def test_a_silent_peer_is_no_lost_server() -> None:
    """It is asked, not more often than every five seconds, and it answers."""
    play = Play()
    play.allocate()
    before = len(methods(play))
    for _ in range(600):
        play.send()
        play.run(0.1)
    assert not play.has(AllocationLost)
    assert len(methods(play)) - before <= 1 + 60 / 5 + 1


def test_an_idle_allocation_wakes_up_only_to_refresh() -> None:
    play = Play()
    play.allocate()
    deadline = play.client.poll_timeout()
    assert deadline is not None and deadline - play.now > 530


def test_released_with_one_request() -> None:
    play = Play()
    play.allocate()
    play.act(play.client.release)
    play.run(0.11)
    assert play.has(AllocationReleased) and not play.server.allocations(play.now)
    assert play.client.poll_timeout() is None


def test_released_while_it_is_being_made() -> None:
    """Or it would live for ten minutes."""
    play = Play()
    play.client.allocate(play.now)
    play.run(0.12)
    play.act(play.client.release)
    play.run(1.0)
    assert play.has(AllocationReleased) and not play.server.allocations(play.now)


def test_released_from_a_server_that_is_gone() -> None:
    play = Play()
    play.allocate()
    play.loses = lambda data: True
    play.act(play.client.release)
    play.run(1.6)
    assert play.has(AllocationReleased) and play.client.state is AllocationState.OVER


# --- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_told", [True, False])
def test_another_password_is_used_at_once(is_told: bool) -> None:
    users = {"user": "secret"}
    play = Play(Options(users=users))
    play.allocate()
    users["user"] = "new"
    if is_told:
        play.client.use(TurnCredentials(username="user", password="new"), play.now)
    play.run(1200)
    assert play.has(AllocationLost) is not is_told


def test_another_name_is_tried_where_the_present_one_is_refused() -> None:
    users = {"user": "secret", "next": "new"}
    play = Play(Options(users=users))
    play.allocate()
    play.client.use(TurnCredentials(username="next", password="new"), play.now)
    del users["user"]
    play.run(1200)
    # A strict server refuses that as well.
    assert "441" in play.only(AllocationLost).reason


def test_another_name_waits_until_the_present_one_is_refused() -> None:
    """A server takes no other user name for an allocation that there is (441): as long as it takes the old one, that
    is used.
    """
    play = Play()
    play.allocate()
    play.client.use(TurnCredentials(username="next", password="new"), play.now)
    play.run(3600)
    assert len(play.server.allocations(play.now)) == 1 and not play.has(AllocationLost)


@pytest.mark.parametrize("name", ["", "a\n", "\ud800"])
def test_credentials_that_cannot_be_sent(name: str) -> None:
    with pytest.raises(ValueError):
        Play(credentials=TurnCredentials(username=name, password="x"))
    play = Play()
    play.allocate()
    with pytest.raises(ValueError):
        play.client.use(TurnCredentials(username="user2", password=name), play.now)


# --- mobility --------------------------------------------------------------------------------------------------------

ELSEWHERE = TransportAddress("192.0.2.99", 6000)


def moved(play: Play) -> None:
    play.act(play.client.move, ELSEWHERE)
    play.run(0.11)


def test_it_moves_in_one_round_trip_with_its_channels() -> None:
    play = Play(Options(users=USERS, mobility=True))
    allocated = play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer()
    play.run(0.2)
    moved(play)
    assert play.has(AllocationMoved)
    play.send(b"from here")
    play.run(0.2)
    play.from_peer(b"to there")
    play.run(0.2)
    assert play.at_peers[-1] == (allocated.relayed[0], PEER, b"from here")
    assert play.received()[-1] == (PEER, b"to there")
    # And on: with the next ticket, refreshes without any.
    play.run(3600)
    assert not play.server.violations and len(play.server.allocations(play.now)) == 1


def test_without_a_ticket_it_is_lost() -> None:
    play = Play()
    play.allocate()
    play.act(play.client.move, ELSEWHERE)
    assert "no mobility" in play.only(AllocationLost).reason


def test_another_mapping_of_the_nat_is_followed() -> None:
    """The server sees another five-tuple than before: it answers 437, and knows the ticket."""
    play = Play(Options(users=USERS, mobility=True))
    play.allocate()
    play.send()
    play.run(0.2)
    other = TransportAddress("192.0.2.1", 6001)
    original = play.server.from_client
    play.server.from_client = (  # type: ignore[method-assign]
        lambda client, data, now: [
            (source, CLIENT if to == other else to, what) for source, to, what in original(other, data, now)
        ]
    )
    play.send(b"lost")
    play.run(3.0)
    assert play.has(AllocationMoved) and not play.has(AllocationLost)
    play.send(b"not lost")
    play.run(0.2)
    assert play.at_peers[-1][2] == b"not lost"


def test_a_server_that_lost_everything_does_not_know_the_ticket() -> None:
    play = Play(Options(users=USERS, mobility=True))
    play.allocate()
    play.server.restart()
    play.send()
    play.run(3.0)
    assert play.only(AllocationLost).reason == (
        "the server does not know us (437 Allocation Mismatch), and the server does not take it along: 400 Bad Request"
    )


# --- malformed and hostile -------------------------------------------------------------------------------------------


def test_what_is_no_answer_is_dropped_and_counted() -> None:
    play = Play()
    play.allocate()
    peer = (XOR_PEER_ADDRESS, PEER)
    unknown = bytes(12)
    for data in (
        b"",
        b"\x40",
        b"\x40\x00\x00\x09abc",
        b"\x4f\xff\x00\x00",
        b"\x80rubbish",
        bytes(20),
        build(Method.DATA, MessageClass.INDICATION, unknown, peer, (DATA, b"x")).encode(),
        build(Method.DATA, MessageClass.INDICATION, unknown, peer).encode(),
        build(Method.DATA, MessageClass.INDICATION, unknown, (DATA, b"x")).encode(),
        build(Method.SEND, MessageClass.INDICATION, unknown, peer, (DATA, b"x")).encode(),
        build(Method.ALLOCATE, MessageClass.SUCCESS, unknown).encode(),
        build(Method.REFRESH, MessageClass.REQUEST, unknown).encode(),
    ):
        play.to_client(data)
    assert not play.received() and play.client.state is AllocationState.READY
    assert sum(play.client.counters.values()) >= 11


def test_a_redirection_names_the_server() -> None:
    play = Play(Options(users=USERS, alternate=OTHER))
    play.client.allocate(play.now)
    play.run(1.0)
    assert play.only(AllocationRefused).alternate == OTHER
