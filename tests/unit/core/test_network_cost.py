"""NETWORK-COST: what our network costs is told, and what the peer's costs is kept on the pair.

An extension of libwebrtc: 0xC057, the network's id and its cost, 16 bits each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from iceagent.net.host import InterfaceKind
from iceagent.priority import network_cost
from relay.stun import NETWORK_COST, PRIORITY, NetworkCost
from tests.sim.world import host_candidate
from tests.unit.core.kit import BASE, REMOTE, THEIRS, Play, remote_candidate


def play(cost: int = 0, number: int = 0, *, controlling: bool = True) -> Play:
    """A session whose only base has this cost."""
    story = Play(controlling=controlling, bases=(), described=False)
    candidate = replace(host_candidate(BASE), network_id=number, network_cost=cost)
    assert story.session.add_local_candidate(candidate, story.now)
    story.describe(THEIRS, (remote_candidate(),))
    story.pass_time(0.0)
    return story


def costs(story: Play) -> Sequence[NetworkCost | None]:
    return [message.get(NETWORK_COST) for _, _, message in story.requests()]


@pytest.mark.parametrize(("cost", "number"), [(10, 3), (50, 0), (900, 65535)])
def test_every_check_says_what_its_network_costs(cost: int, number: int) -> None:
    story = play(cost, number)
    story.pass_time(1.0)
    assert len(costs(story)) >= 3
    assert set(costs(story)) == {NetworkCost(number, cost)}
    attribute = story.sent[0][1].data.partition(b"\xc0\x57\x00\x04")[2][:4]
    assert attribute == number.to_bytes(2, "big") + cost.to_bytes(2, "big")


def test_what_costs_nothing_says_nothing() -> None:
    """It is what the peer takes it for, and eight bytes less."""
    story = play(0, 7)
    story.pass_time(1.0)
    assert set(costs(story)) == {None}


def test_it_is_not_signalled() -> None:
    candidate = replace(host_candidate(BASE), network_id=5, network_cost=900)
    assert candidate.to_sdp() == host_candidate(BASE).to_sdp()


@pytest.mark.parametrize(
    ("told", "kept"),
    [(NetworkCost(1, 900), 900), (NetworkCost(1, 10), 10), (NetworkCost(9, 65535), 999), (None, 0)],
)
def test_the_peers_cost_is_kept_on_the_pair(told: NetworkCost | None, kept: int) -> None:
    story = play(controlling=False)
    story.check(*([] if told is None else [(NETWORK_COST, told)]))
    (pair,) = story.session.pairs
    assert pair.remote_cost == kept
    # What is not known says nothing.
    assert pair.is_metered is (900 <= kept < 999)


def test_the_last_check_counts_even_when_it_is_routine_otherwise() -> None:
    story = play()
    (_, _, request), *_ = story.requests()
    story.answer(request)
    (pair,) = story.session.pairs
    for told, kept in ((900, 900), (900, 900), (50, 50), (None, 0)):
        story.check(*([] if told is None else [(NETWORK_COST, NetworkCost(1, told))]))
        assert pair.remote_cost == kept


def test_a_stranger_tells_nothing() -> None:
    story = play()
    data = story.request((NETWORK_COST, NetworkCost(1, 900)), signed=False)
    story.deliver(data, source=REMOTE)
    (pair,) = story.session.pairs
    assert pair.remote_cost == 0


@pytest.mark.parametrize(
    ("kind", "metered", "cost"),
    [
        (InterfaceKind.ETHERNET, False, 0),
        (InterfaceKind.LOOPBACK, False, 0),
        (InterfaceKind.WIFI, False, 10),
        (InterfaceKind.VPN, False, 50),
        (InterfaceKind.CONTAINER, False, 50),
        (InterfaceKind.OTHER, False, 50),
        (InterfaceKind.CELLULAR, False, 900),
        (InterfaceKind.WIFI, True, 900),
        (InterfaceKind.ETHERNET, True, 900),
    ],
)
def test_costs_are_those_of_libwebrtc(kind: InterfaceKind, metered: bool, cost: int) -> None:
    """0 is the least, 10 low, 50 unknown, 900 high."""
    assert network_cost(kind, metered) == cost


def test_every_kind_of_interface_has_a_cost() -> None:
    assert all(0 <= network_cost(kind, metered) <= 999 for kind in InterfaceKind for metered in (True, False))


def test_the_priority_is_still_there() -> None:
    """RFC 8445, 7.1.1: "The PRIORITY attribute MUST be included"."""
    assert all(message.get(PRIORITY) is not None for _, _, message in play(900).requests())
