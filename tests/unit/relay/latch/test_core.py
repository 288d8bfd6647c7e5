"""Who latches, who does not, and what ends a channel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from relay.latch.channel import (
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    Flow,
    SecondSource,
    SideKey,
    SideLatched,
    SideMoved,
    SideName,
)
from relay.latch.core import ALARM_EVERY_S, MAX_REQUEST, SEEN_LIMIT
from relay.stun import (
    ICE_CONTROLLING,
    PRIORITY,
    SOFTWARE,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    MessageClass,
    Method,
    build,
    short_term_key,
)
from tests.unit.relay.latch.world import (
    ALICE,
    BOB,
    HOST,
    LEFT,
    LEFT_BASE,
    MALLORY,
    RIGHT,
    RIGHT_BASE,
    FakeKernel,
    World,
)


def test_an_authenticated_request_latches_and_is_told_its_mapped_address() -> None:
    world = World()
    answer = world.latch(ALICE)
    assert answer.is_success
    assert answer.get(XOR_MAPPED_ADDRESS) == ALICE
    assert answer.verify(short_term_key(LEFT.password))
    assert (world.channel.left.peer, world.channel.left.base) == (ALICE, LEFT_BASE)
    assert world.events == [SideLatched(channel=1, side=SideName.LEFT, address=ALICE, how="key")]


def test_a_request_with_both_kinds_of_integrity_is_answered_with_sha256() -> None:
    """RFC 8489, 9.1.3 and 9.1.4: what a client sends that does not know yet what the server has."""
    world = World()
    world.send(ALICE, world.request(LEFT, both=True))
    answer = world.answer(ALICE)
    assert answer.verify_sha256(short_term_key(LEFT.password))
    assert not answer.has_integrity
    assert world.channel.left.peer == ALICE


def test_a_name_is_the_same_however_it_is_composed() -> None:
    """RFC 8489, 14.3."""
    assert SideKey(username="e\u0301", password="p" * 22) == SideKey(username="\u00e9", password="p" * 22)


def test_a_request_with_sha256_is_answered_in_kind() -> None:
    world = World()
    world.send(ALICE, world.request(LEFT, sha256=True))
    answer = world.answer(ALICE)
    assert answer.verify_sha256(short_term_key(LEFT.password))
    assert world.channel.left.peer == ALICE


def test_an_ice_client_latches_with_its_connectivity_check() -> None:
    """RFC 8445, 7.2.2 and 7.1: USERNAME has both fragments; PRIORITY, USE-CANDIDATE and the role are there."""
    world = World()
    pairs = ((PRIORITY, 100), (USE_CANDIDATE, True), (ICE_CONTROLLING, 7))
    world.send(ALICE, world.request(LEFT, suffix=":mine", pairs=pairs))
    assert world.answer(ALICE).is_success
    assert world.channel.left.peer == ALICE


def test_before_the_latch_nothing_is_forwarded_and_after_it_only_what_the_peer_sends() -> None:
    world = World()
    assert not world.send(ALICE, b"early")
    world.latch(ALICE)
    assert world.send(ALICE, b"data")
    assert world.send(ALICE, b"")
    assert not world.send(MALLORY, b"data")
    assert not world.send(ALICE._replace(port=9), b"data")
    assert not world.send(ALICE, b"data", RIGHT_BASE)
    assert world.channel.left.dropped == 3
    assert world.transmits() == []


def test_a_client_that_was_rebound_is_followed_at_once() -> None:
    world = World()
    world.latch(ALICE)
    elsewhere = ALICE._replace(port=40_000)
    assert world.latch(elsewhere).get(XOR_MAPPED_ADDRESS) == elsewhere
    assert world.send(elsewhere, b"data")
    assert not world.send(ALICE, b"data")
    assert world.events[-1] == SideMoved(channel=1, side=SideName.LEFT, old=ALICE, address=elsewhere)
    assert world.channel.left.moves == 1


def test_of_two_authentic_requests_the_later_holds_and_both_are_answered() -> None:
    world = World()
    one, other = world.request(LEFT), world.request(LEFT)
    for source, data in ((ALICE, one), (BOB, other)):
        world.send(source, data)
        assert world.answer(source).get(XOR_MAPPED_ADDRESS) == source
    assert world.channel.left.peer == BOB
    # The retransmission of the first is answered, and moves nothing.
    world.send(ALICE, one)
    assert world.answer(ALICE).is_success
    assert world.channel.left.peer == BOB


def test_a_recorded_request_moves_nothing_and_is_not_answered() -> None:
    world = World()
    data = world.request(LEFT)
    world.send(ALICE, data)
    world.transmits()
    assert not world.send(MALLORY, data)
    assert world.transmits() == []
    assert world.channel.left.peer == ALICE
    assert world.core.counters["replayed"] == 1


def test_a_recorded_request_moves_nothing_at_another_address_of_ours_either() -> None:
    world = World()
    second = TransportAddress("192.0.2.2", 5000)
    world.core.add_base(world.channel, world.channel.left, second)
    data = world.request(LEFT)
    for base in (LEFT_BASE, second):
        world.send(ALICE, data, base)
    assert len(world.transmits()) == 1
    assert world.channel.left.base == LEFT_BASE


def test_channels_with_one_key_have_one_memory_as_long_as_one_of_them_is_open() -> None:
    world = World()
    bases = TransportAddress(HOST, 6000), TransportAddress(HOST, 6001)
    data = world.request(LEFT)
    world.send(ALICE, data)
    for _ in range(2):
        other = world.open(bases)
        world.send(MALLORY, data, bases[0])
        assert other.left.peer is None
        world.core.close(other, "closed", world.now)
    assert world.core.counters["replayed"] == 2
    for _ in range(2 * SEEN_LIMIT):
        world.send(ALICE, world.request(LEFT))
    assert len(world.channel.left.seen) == SEEN_LIMIT
    world.core.close(world.channel, "closed", world.now)
    assert not world.open().left.seen


def test_who_forges_the_peers_address_cannot_have_errors_put_among_its_data() -> None:
    world = World()
    world.latch(ALICE)
    unsigned = build(Method.BINDING, MessageClass.REQUEST, bytes(12), (USERNAME, "left")).encode()
    for data in (unsigned, world.request(SideKey(username="left", password="wrong" * 5))):
        assert not world.send(ALICE, data)
    assert world.transmits() == []
    assert world.core.counters["dropped: forged"] == 2
    assert world.channel.left.peer == ALICE


def test_a_request_of_one_side_means_nothing_on_the_other_or_in_another_channel() -> None:
    world = World()
    assert not world.send(ALICE, world.request(LEFT), RIGHT_BASE)
    assert world.answer(ALICE).error is not None
    same_names = world.open((TransportAddress(HOST, 6000), TransportAddress(HOST, 6001)))
    data = world.request(SideKey(username="left", password="x" * 22))
    world.send(ALICE, data, TransportAddress(HOST, 6000))
    assert same_names.left.peer is None
    assert world.channel.right.peer is None


def test_what_is_remembered_of_requests_has_a_bound() -> None:
    world = World()
    first = world.request(LEFT)
    world.send(ALICE, first)
    for _ in range(SEEN_LIMIT + 50):
        world.send(ALICE, world.request(LEFT))
        world.transmits()
    assert len(world.channel.left.seen) == SEEN_LIMIT


@pytest.mark.parametrize(
    ("code", "make"),
    [
        (401, lambda world: world.request(SideKey(username="left", password="wrong" * 5))),
        (401, lambda world: world.request(SideKey(username="nobody", password="wrong" * 5))),
        (400, lambda world: build(Method.BINDING, MessageClass.REQUEST, bytes(12), (USERNAME, "left")).encode()),
        (400, lambda world: build(Method.BINDING, MessageClass.REQUEST, bytes(12), (USERNAME, "nobody")).encode()),
        (400, lambda world: build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode()),
    ],
)
def test_who_cannot_authenticate_is_told_so_and_latches_nothing(code: int, make) -> None:  # type: ignore[no-untyped-def]
    world = World()
    assert not world.send(MALLORY, make(world))
    error = world.answer(MALLORY).error
    assert error is not None
    assert error.code == code
    assert world.channel.left.peer is None


def test_a_flood_of_wrong_requests_gets_ten_answers() -> None:
    world = World()
    for _ in range(100):
        world.send(MALLORY, world.request(SideKey(username="left", password="wrong" * 5)))
    assert len(world.transmits()) == 10


def test_an_unknown_attribute_that_must_be_understood_is_named_and_latches_nothing() -> None:
    """RFC 8489, 6.3.1: 420."""
    world = World()
    message = build(Method.BINDING, MessageClass.REQUEST, bytes(12), (USERNAME, "left"))
    message.attributes.append((0x7FFE, b"abcd"))
    data = message.encode(short_term_key(LEFT.password))
    world.send(ALICE, data)
    answer = world.answer(ALICE)
    assert answer.error is not None
    assert answer.error.code == 420
    world.send(MALLORY, data)
    assert world.transmits() == []
    assert answer.verify(short_term_key(LEFT.password))
    assert world.channel.left.peer is None


def test_stun_of_others_is_data_of_the_latched_peer() -> None:
    """Two ICE agents check through the channel."""
    world = World()
    world.latch(ALICE)
    foreign = world.request(SideKey(username="bobs", password="b" * 22), suffix=":alices")
    plain = build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode()
    response = build(Method.BINDING, MessageClass.SUCCESS, bytes(12), (XOR_MAPPED_ADDRESS, BOB)).encode()
    indication = build(Method.BINDING, MessageClass.INDICATION, bytes(12)).encode()
    allocate = build(Method.ALLOCATE, MessageClass.REQUEST, bytes(12)).encode()
    for data in (foreign, plain, response, indication, allocate):
        assert world.send(ALICE, data)
    assert world.transmits() == []


def test_a_request_that_no_network_carries_whole_is_not_looked_at() -> None:
    """RFC 8489, 6.1: STUN stays below the path's MTU. Thousands of attributes take long to be taken apart."""
    world = World()
    world.latch(ALICE)
    comment = (SOFTWARE, "x" * 200)
    shorter, longer = (world.request(LEFT, pairs=[comment] * count) for count in (7, 8))
    assert len(shorter) < MAX_REQUEST < len(longer)
    assert not world.send(MALLORY, longer)
    assert world.transmits() == []
    assert world.send(ALICE, longer)
    assert not world.send(BOB, shorter)
    assert world.answer(BOB).get(XOR_MAPPED_ADDRESS) == BOB


@given(st.data())
def test_a_truncated_or_mutated_request_never_latches(data: st.DataObject) -> None:
    world = World()
    request = bytearray(world.request(LEFT))
    if data.draw(st.booleans()):
        del request[data.draw(st.integers(0, len(request) - 1)) :]
    else:
        # FINGERPRINT, the last 8 bytes, is not signed, and need not be there.
        position = data.draw(st.integers(0, len(request) - 9))
        request[position] ^= data.draw(st.integers(1, 255))
    world.send(MALLORY, bytes(request))
    assert world.channel.left.peer is None


@given(st.binary(max_size=100))
def test_whatever_a_stranger_sends_is_dropped_or_refused(data: bytes) -> None:
    world = World()
    world.latch(ALICE)
    assert not world.send(MALLORY, data)
    assert not world.send(MALLORY, b"\x00\x01" + data)
    assert world.channel.left.peer == ALICE


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_what_is_no_single_host_cannot_be_a_peer(host: str) -> None:
    world = World(first_source=True)
    source = TransportAddress(host, 5000)
    assert not world.send(source, world.request(LEFT))
    assert not world.send(source, b"data")
    assert not world.send(ALICE._replace(port=0), world.request(LEFT))
    assert world.channel.left.peer is None
    assert world.transmits() == []


def test_two_channels_cannot_be_made_to_feed_each_other() -> None:
    world = World(first_source=True)
    other = world.open((TransportAddress(HOST, 6000), TransportAddress(HOST, 6001)), first_source=True)
    assert not world.send(TransportAddress(HOST, 6000), b"circle")
    assert not world.send(RIGHT_BASE, world.request(LEFT))
    assert not world.send(LEFT_BASE, b"circle", TransportAddress(HOST, 6000))
    assert [side.peer for channel in (world.channel, other) for side in channel.sides] == [None] * 4


# --- the first source ------------------------------------------------------------------------------------------------


def test_the_first_source_is_locked_and_others_raise_an_alarm_now_and_then() -> None:
    world = World(first_source=True, left=None, right=None)
    assert world.send(ALICE, b"first")
    for _ in range(50):
        assert not world.send(MALLORY, b"second")
    world.now += ALARM_EVERY_S
    assert not world.send(MALLORY, b"second")
    latched, *alarms = world.events
    assert latched == SideLatched(channel=1, side=SideName.LEFT, address=ALICE, how="first source")
    assert [(each.latched, each.address, each.datagrams) for each in alarms if isinstance(each, SecondSource)] == [
        (ALICE, MALLORY, 1),
        (ALICE, MALLORY, 51),
    ]
    assert len(alarms) == 2


def test_after_the_learning_window_nobody_latches_without_a_key() -> None:
    world = World(first_source=True, learning_s=5.0, left=None)
    world.now = 5.0
    assert not world.send(ALICE, b"late")
    assert world.channel.left.peer is None
    assert world.latch(BOB, "right").is_success


def test_a_side_with_a_key_wants_it_also_where_the_other_takes_the_first_source() -> None:
    world = World(first_source=True, right=None)
    assert not world.send(MALLORY, b"first")
    assert world.send(BOB, b"first", RIGHT_BASE)
    world.latch(ALICE)
    assert [side.peer for side in world.channel.sides] == [ALICE, BOB]
    for _ in range(3):
        world.send(MALLORY, b"stranger")
    assert not any(isinstance(event, SecondSource) for event in world.events)


def test_without_a_key_and_without_the_first_source_no_channel_makes_sense() -> None:
    with pytest.raises(ValueError, match="first_source=True"):
        ChannelOptions(left=LEFT)
    with pytest.raises(ValueError, match="is_kept needs keys"):
        ChannelOptions(left=LEFT, first_source=True, is_kept=True)


# --- how a channel ends ----------------------------------------------------------------------------------------------


def test_a_channel_on_which_nothing_is_forwarded_ends() -> None:
    world = World(idle_s=30.0)
    world.latch(ALICE)
    world.wait(20)
    world.channel.left.packets += 1
    world.wait(29)
    assert list(world.core.channels) == [1]
    world.wait(3)
    closed = world.events[-1]
    assert isinstance(closed, ChannelClosed)
    assert closed.reason == "idle"
    assert closed.statistics.left.peer == ALICE
    assert not world.channel.is_open
    assert world.core.poll_timeout() is None
    assert not world.send(ALICE, world.request(LEFT))
    assert world.core.counters["dropped: no channel"] == 1


def test_a_channel_that_is_kept_wants_new_requests_after_it_was_idle() -> None:
    """And takes none that was recorded before."""
    kernel = FakeKernel()
    world = World(kernel=kernel, idle_s=30.0, is_kept=True)
    data = world.request(LEFT)
    world.send(ALICE, data)
    world.transmits()
    world.latch(BOB, "right")
    world.wait(32)
    idle = world.events[-1]
    assert isinstance(idle, ChannelIdle)
    assert (idle.statistics.left.peer, idle.statistics.right.peer) == (ALICE, BOB)
    assert [side.peer for side in world.channel.sides] == [None, None]
    assert kernel.flows == {}
    assert not world.send(ALICE, b"data")
    assert not world.send(MALLORY, data)
    assert not world.send(MALLORY, b"data")
    world.latch(ALICE)
    assert [side.peer for side in world.channel.sides] == [ALICE, None]
    # While nobody is latched, there is nothing to tell.
    world.wait(32)
    count = len(world.events)
    world.wait(100)
    assert len(world.events) == count


def test_who_waits_for_the_other_side_keeps_the_channel_with_whatever_it_sends() -> None:
    world = World(idle_s=30.0)
    world.latch(ALICE)
    for _ in range(4):
        world.channel.left.unheard += 1
        world.wait(20)
    assert world.channel.is_open
    assert world.channel.left.statistics().dropped == 4


def test_any_number_of_channels_may_end_at_once() -> None:
    world = World(idle_s=30.0)
    for number in range(3_000):
        world.open((TransportAddress(HOST, 10_000 + number), TransportAddress(HOST, 20_000 + number)), idle_s=30.0)
    world.wait(32)
    assert [event.reason for event in world.events if isinstance(event, ChannelClosed)] == ["idle"] * 3_001
    assert world.core.channels == {}


def test_requests_keep_a_channel() -> None:
    world = World(idle_s=30.0)
    for _ in range(4):
        world.wait(20)
        world.latch(ALICE)
    assert world.channel.is_open


@pytest.mark.parametrize(("options", "reason"), [({"max_packets": 3}, "packet cap"), ({"max_bytes": 300}, "byte cap")])
def test_a_cap_ends_a_channel(options: dict[str, Any], reason: str) -> None:
    world = World(**options)
    world.channel.packets_left -= 3
    world.channel.octets_left -= 300
    world.core.check_caps(world.channel, world.now)
    world.wait(0)
    event = world.core.poll_event() or world.events[-1]
    assert isinstance(event, ChannelClosed)
    assert event.reason == reason


def test_closing_twice_closes_once_and_other_channels_stay() -> None:
    world = World()
    other = world.open((TransportAddress(HOST, 6000), TransportAddress(HOST, 6001)))
    for _ in range(2):
        world.core.close(world.channel, "closed", 5.0)
    assert world.core.poll_event() is not None
    assert world.core.poll_event() is None
    assert list(world.core.channels.values()) == [other]
    assert world.core.poll_timeout() is not None


def test_an_address_of_ours_that_goes_takes_its_latch_along() -> None:
    kernel = FakeKernel()
    world = World(kernel=kernel)
    second = TransportAddress("192.0.2.2", 5000)
    world.core.add_base(world.channel, world.channel.left, second)
    world.latch(ALICE)
    world.latch(BOB, "right")
    world.core.remove_base(world.channel, second, world.now)
    assert [side.peer for side in world.channel.sides] == [ALICE, BOB]
    world.core.remove_base(world.channel, LEFT_BASE, world.now)
    assert [side.peer for side in world.channel.sides] == [None, BOB]
    assert kernel.flows == {}
    assert not world.send(ALICE, b"data")


# --- the kernel ------------------------------------------------------------------------------------------------------

THERE = Flow(ALICE, LEFT_BASE, RIGHT_BASE, BOB)
BACK = Flow(BOB, RIGHT_BASE, LEFT_BASE, ALICE)


def test_the_kernel_forwards_once_both_sides_are_latched_and_follows_a_move() -> None:
    kernel = FakeKernel()
    world = World(kernel=kernel)
    world.latch(ALICE)
    assert kernel.flows == {}
    world.latch(BOB, "right")
    assert set(kernel.flows) == {THERE, BACK}
    world.latch(MALLORY)
    assert set(kernel.flows) == {THERE._replace(source=MALLORY), BACK._replace(destination=MALLORY)}
    world.core.close(world.channel, "closed", world.now)
    assert kernel.flows == {}


def test_what_the_kernel_forwards_is_counted_once_and_keeps_the_channel() -> None:
    kernel = FakeKernel()
    world = World(kernel=kernel, idle_s=10.0)
    world.latch(ALICE)
    world.latch(BOB, "right")
    for count in range(1, 30):
        kernel.flows[THERE] = (count, count * 100)
        world.wait(5)
    world.latch(ALICE)  # A keepalive, which changes nothing.
    kernel.flows[THERE] = (30, 3000)
    world.core.close(world.channel, "closed", world.now)
    left = world.channel.left.statistics()
    assert (left.packets, left.octets, left.in_kernel) == (30, 3000, 30)
    assert world.channel.right.statistics().packets == 0


def test_the_caps_hold_for_what_the_kernel_forwards() -> None:
    kernel = FakeKernel()
    world = World(kernel=kernel, max_bytes=1000)
    world.latch(ALICE)
    world.latch(BOB, "right")
    kernel.flows[BACK] = (10, 1000)
    world.wait(1)
    assert not world.channel.is_open
    assert kernel.flows == {}


def test_a_latch_asks_for_no_counts_but_those_of_its_channel() -> None:
    """Of a thousand channels, that would be a thousand times all of them."""
    kernel = FakeKernel()
    world = World(kernel=kernel)
    world.latch(ALICE)
    world.latch(BOB, "right")
    assert kernel.asked == []
    world.latch(MALLORY)
    assert kernel.asked == [[THERE, BACK]]


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "password"),
    [("", "p" * 22), ("a:b", "p" * 22), ("a" * 509, "p" * 22), ("a", ""), ("a\n", "p" * 22), ("a", 5)],
)
def test_a_key_that_cannot_be_is_refused_and_no_password_is_quoted(username: str, password: str) -> None:
    with pytest.raises(ValueError, match=r"username|password|string|allowed") as caught:
        SideKey(username=username, password=password)
    assert "ppp" not in str(caught.value)
    assert RIGHT.password not in repr(RIGHT)
