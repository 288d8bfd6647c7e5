"""What of the path messages is believed, when, and of whom? (``tests/shell/test_path_messages.py`` has the rest.)"""

from __future__ import annotations

import pytest

from iceagent.core.pair import CandidatePair
from iceagent.core.path_message import OPTION, PathMessage
from iceagent.events import PeerClosed
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Transmit
from relay.stun import PATH_MESSAGE, is_stun, parse
from tests.sim.interfaces import add_host, add_interface
from tests.sim.world import Side, World, make_world


def talkative() -> World:
    """Both know path messages, and are connected."""
    world = make_world()
    world.a.options = world.b.options = (OPTION,)
    world.gather()
    world.exchange()
    world.settle()
    return world


def messages(world: World, side: Side, since: float = 0.0) -> list[Transmit]:
    """What a side has sent that carries one."""
    found = world.transmits_since(side, since)
    return [each for each in found if is_stun(each.data) and parse(each.data).get(PATH_MESSAGE) is not None]


def hear(world: World, side: Side, transmit: Transmit, source: TransportAddress | None = None) -> None:
    """What the other side has sent arrives, once more."""
    side.session.handle_datagram(Datagram(transmit.destination, source or transmit.base, transmit.data), world.now)
    while side.session.poll_transmit() is not None:
        pass


def restart(world: World) -> None:
    """``a`` does, and both go on with the new generation."""
    world.a.session.restart(world.now)
    world.signal(world.a)
    world.signal(world.b)
    world.settle()


@pytest.mark.parametrize("source", [None, TransportAddress("203.0.113.66", 6)])
def test_a_goodbye_of_a_generation_that_is_over_ends_nothing(source: TransportAddress | None) -> None:
    """Whoever recorded it may say it again, from anywhere."""
    world = talkative()
    world.a.session.say_goodbye(world.now)
    data = []
    while (transmit := world.a.session.poll_transmit()) is not None:
        data.append(transmit)
    assert len(data) == 1
    restart(world)
    world.run(2.0)
    for transmit in data:
        hear(world, world.b, transmit, source)
    world.run(1.0)
    assert world.b.is_connected and not world.b.events(PeerClosed)


def test_a_goodbye_amid_a_restart_is_heard_over_the_old_path() -> None:
    world = talkative()
    world.a.session.restart(world.now)
    world.a.session.say_goodbye(world.now)
    assert world.run_until(lambda: bool(world.b.events(PeerClosed)), 1.0), world


def pair_of(side: Side) -> CandidatePair:
    pair = side.session.current()
    assert pair is not None
    return pair


def test_replays_make_nobody_deaf() -> None:
    world = talkative()
    began = world.now
    world.a.session._talk.announce_search(pair_of(world.a), world.now)
    world.a.session._checker.flush(world.now)
    world.run(0.2)
    (transmit, *_) = messages(world, world.a, began)
    assert PathMessage.decode(parse(transmit.data).get(PATH_MESSAGE) or b"").check_after_s == 0.0
    for _ in range(100):
        hear(world, world.b, transmit, TransportAddress("203.0.113.66", 6))
    world.a.session.say_goodbye(world.now)
    assert world.run_until(lambda: bool(world.b.events(PeerClosed)), 1.0), world


def test_what_is_found_between_a_restart_and_its_first_path_is_told_over_that() -> None:
    """Both networks have just changed, and nothing trickles: descriptions went before the new addresses were known."""
    world = talkative()
    world.a.session.restart(world.now)
    world.signal(world.a)
    world.signal(world.b)
    add_interface(world, world.a, "10.1.0.2")
    add_host(world, world.a, 1)
    late = world.a.bases[1]
    assert late not in [candidate.address for candidate in world.b.session.remote_candidates]
    assert world.run_until(lambda: late in [c.address for c in world.b.session.remote_candidates], 2.0), world
    assert world.b.is_connected


def test_before_a_restart_signalling_alone_tells_of_the_first_candidates() -> None:
    """They trickle; a second time they would cost a message in every session."""
    world = make_world()
    world.a.options = world.b.options = (OPTION,)
    world.gather()
    world.exchange()
    add_interface(world, world.a, "10.1.0.2")
    add_host(world, world.a, 1)
    world.settle()
    assert not messages(world, world.a)
