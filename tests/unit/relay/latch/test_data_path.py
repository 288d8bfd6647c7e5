"""The way of a datagram from one socket of a channel to the other, without any socket."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, cast

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.trains import MAX_TRAIN
from relay.latch.channel import Channel, ChannelOptions
from relay.latch.data_path import Inbox
from tests.unit.relay.latch.world import ALICE, BOB, LEFT, MALLORY, RIGHT

REQUEST = b"\x00\x01 and so on"


class Out:
    """A socket that takes so many datagrams."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.sent: list[bytes] = []
        self.calls = 0

    def send(self, data: bytes, destination: tuple[str, int]) -> int:
        assert destination == BOB
        self.calls += 1
        if self.room == 0:
            return errno.EAGAIN
        self.room -= 1
        self.sent.append(data)
        return 0

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        assert destination == BOB
        self.calls += 1
        count = min(self.room, len(datagrams))
        self.room -= count
        self.sent += datagrams[:count]
        return count, 0 if count == len(datagrams) else errno.EAGAIN


class Relay:
    """What an inbox asks."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.leaving: list[Inbox] = []
        self.used_up = 0
        self.is_data = True

    def admits(self, inbox: Inbox, data: bytes, source: tuple[str, int]) -> bool:
        self.shown.append(data)
        return self.is_data and source == ALICE

    def leave_soon(self, inbox: Inbox) -> None:
        self.leaving.append(inbox)

    def is_used_up(self, channel: Channel) -> None:
        self.used_up += 1

    def refused(self, base: TransportAddress, destination: TransportAddress, errno: int) -> None:
        raise AssertionError


class World:
    """An inbox whose peer is Alice; the other side's is Bob."""

    def __init__(self, out: Out | None = None, **limits: Any) -> None:
        self.out = Out() if out is None else out
        self.relay = Relay()
        self.channel = Channel(1, (5000, 5001), ChannelOptions(left=LEFT, right=RIGHT, **limits), 0.0)
        self.side = self.channel.left
        self.inbox = Inbox(self.relay, self.channel, self.side)
        self.inbox.peer, self.inbox.way = ALICE, (cast(Any, self.out), BOB)

    def hear(self, *datagrams: bytes, source: tuple[str, int] = ALICE) -> None:
        """One by one."""
        for data in datagrams:
            self.inbox.datagram_received(cast(Any, None), data, source)

    def hear_train(self, *datagrams: bytes, source: tuple[str, int] = ALICE) -> None:
        self.inbox.train_received(cast(Any, None), datagrams, source)


def test_what_comes_in_one_turn_leaves_in_one_call_and_is_counted() -> None:
    world = World()
    world.hear(b"one", b"", b"three")
    world.hear_train(b"four", b"five")
    assert world.out.sent == []
    assert world.relay.leaving == [world.inbox]
    world.inbox.flush()
    assert world.out.sent == [b"one", b"", b"three", b"four", b"five"]
    assert world.out.calls == 1
    assert (world.side.packets, world.side.octets) == (5, 16)
    assert world.relay.shown == []
    world.inbox.flush()
    assert world.out.calls == 1


def test_a_train_full_does_not_wait() -> None:
    world = World()
    world.hear(*[b"x"] * MAX_TRAIN)
    assert len(world.out.sent) == MAX_TRAIN
    world.hear_train(*[b"x"] * MAX_TRAIN)
    assert len(world.out.sent) == 2 * MAX_TRAIN


def test_only_strangers_and_binding_requests_are_shown_to_the_core() -> None:
    world = World()
    world.hear(b"data", b"\x01\x01 a response", b"\x00\x03 allocate", b"\x00", b"")
    world.hear_train(b"data", b"\x00\x11 an indication")
    assert world.relay.shown == []
    world.hear(REQUEST)
    world.hear_train(b"before", REQUEST, b"after")
    world.hear(b"stranger", source=MALLORY)
    world.hear_train(b"strange", b"train", source=MALLORY)
    assert world.relay.shown == [REQUEST, REQUEST, b"stranger", b"strange", b"train"]
    world.inbox.flush()
    # The core said of both that they were data; their order stays.
    assert world.out.sent[7:] == [REQUEST, b"before", REQUEST, b"after"]
    world.relay.is_data = False
    world.hear_train(b"before", REQUEST, b"after")
    world.inbox.flush()
    assert world.out.sent[11:] == [b"before", b"after"]


@pytest.mark.parametrize("count", [1, 5])
def test_what_a_full_socket_does_not_take_is_dropped_and_counted(count: int) -> None:
    world = World(Out(room=0))
    world.hear(*[b"1234"] * count)
    world.inbox.flush()
    assert (world.side.packets, world.side.octets, world.side.dropped) == (0, 0, count)
    world.out.room = 3
    world.hear(*[b"1234"] * 5)
    world.inbox.flush()
    assert (world.side.packets, world.side.octets, world.side.dropped) == (3, 12, count + 2)


def test_while_nobody_is_on_the_other_side_nothing_is_kept() -> None:
    world = World()
    world.inbox.way = None
    world.hear(b"early", b"early")
    world.inbox.flush()
    world.inbox.way = cast(Any, world.out), BOB
    world.inbox.flush()
    assert world.out.sent == []
    assert world.side.statistics().dropped == 2


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({"max_packets": 2}, [b"four", b"four"]),
        ({"max_bytes": 8}, [b"four", b"four"]),
        ({"max_bytes": 11}, [b"four", b"four"]),
        ({"max_packets": 2, "max_bytes": 4}, [b"four"]),
        ({"max_bytes": 3}, []),
    ],
)
def test_a_cap_is_exact_within_a_train(limits: dict[str, Any], passes: list[bytes]) -> None:
    world = World(**limits)
    world.hear(b"four", b"four", b"four", b"x")
    world.inbox.flush()
    assert world.out.sent == passes
    assert world.relay.used_up == 1
    assert (world.side.packets, world.side.dropped) == (len(passes), 4 - len(passes))


def test_a_cap_that_is_not_reached_ends_nothing() -> None:
    world = World(max_packets=3, max_bytes=9)
    world.hear(b"four", b"four")
    world.inbox.flush()
    assert world.relay.used_up == 0
    world.hear(b"")
    world.inbox.flush()
    assert world.relay.used_up == 1
