"""Which NATs meet without a relay, and do we connect whenever theory says so, and only then?

Each side has one host candidate behind one NAT and the server-reflexive candidate that a STUN server saw. The
expectation is derived from RFC 4787's two words for a NAT, mapping and filtering (``iceagent/nat/theory.py``); nothing
in it was measured.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from iceagent.events import AgentState
from iceagent.nat.kinds import Filtering, Mapping
from iceagent.nat.theory import can_meet
from iceagent.testing.nat import NatModel
from tests.sim.world import EXTERNAL_A, EXTERNAL_B, World, make_world

MAPPINGS = (Mapping.EIM, Mapping.ADM, Mapping.APDM)
FILTERINGS = (Filtering.EIF, Filtering.ADF, Filtering.APDF)


class Kind(NamedTuple):
    """A NAT of RFC 4787."""

    mapping: Mapping
    filtering: Filtering

    def __str__(self) -> str:
        return f"{self.mapping.value}-{self.filtering.value}"


KINDS = tuple(Kind(mapping, filtering) for mapping in MAPPINGS for filtering in FILTERINGS)
CELLS = [(a, b) for a in KINDS for b in KINDS]


def connects(a: Kind, b: Kind) -> bool:
    """Whether two NATs meet, from theory."""
    return can_meet((a.mapping, a.filtering), (b.mapping, b.filtering))


def world_of(a: Kind, b: Kind, *, seed: int = 1, loss: float = 0.0) -> World:
    boxes = [
        NatModel((external,), Random(seed * 2 + i), mapping=kind.mapping, filtering=kind.filtering)
        for i, (kind, external) in enumerate(((a, EXTERNAL_A), (b, EXTERNAL_B)))
    ]
    world = make_world(
        seed, hosts_a=("192.168.1.2",), hosts_b=("192.168.2.2",), box_a=boxes[0], box_b=boxes[1], loss=loss
    )
    world.notes.append(f"a behind {a}, b behind {b}, {loss:.0%} loss on each link")
    world.gather()
    world.exchange()
    return world


def test_the_derivation_agrees_with_the_summary_of_the_laboratory() -> None:
    """EIM sides with EIF or ADF meet everybody; APDF and symmetric, and symmetric twice, need a relay."""
    symmetric = Kind(Mapping.APDM, Filtering.APDF)
    assert all(connects(Kind(Mapping.EIM, f), b) for f in (Filtering.EIF, Filtering.ADF) for b in KINDS)
    assert not any(connects(symmetric, b) for b in KINDS if b.filtering is Filtering.APDF)
    assert not connects(symmetric, symmetric)
    assert all(connects(a, b) == connects(b, a) for a, b in CELLS)


@pytest.mark.parametrize(("a", "b"), [c for c in CELLS if connects(*c)], ids=str)
def test_what_can_connect_does(a: Kind, b: Kind) -> None:
    """Within five round trips of 40 ms (each filter and each address that was not known costs one at most)."""
    world = world_of(a, b)
    assert world.connect() <= 0.2, world
    world.settle()
    assert world.is_mirrored(), world


@pytest.mark.parametrize(("a", "b"), [c for c in CELLS if not connects(*c)], ids=str)
def test_what_cannot_connect_fails_and_says_why(a: Kind, b: Kind) -> None:
    """Once the PAC timer has run out (RFC 8863) and the last check has failed."""
    world = world_of(a, b)
    sides = (world.a, world.b)
    assert world.run_until(lambda: all(s.session.state is AgentState.FAILED for s in sides), 180.0), world
    for side in sides:
        assert AgentState.CONNECTED not in side.states(), world
        assert "no response" in side.session.state_reason, world


LOSSY = [
    (Kind(Mapping.EIM, Filtering.APDF), Kind(Mapping.EIM, Filtering.APDF)),
    (Kind(Mapping.EIM, Filtering.ADF), Kind(Mapping.APDM, Filtering.APDF)),
    (Kind(Mapping.APDM, Filtering.APDF), Kind(Mapping.EIM, Filtering.EIF)),
    (Kind(Mapping.ADM, Filtering.EIF), Kind(Mapping.ADM, Filtering.ADF)),
    (Kind(Mapping.EIM, Filtering.EIF), Kind(Mapping.EIM, Filtering.APDF)),
]


@pytest.mark.parametrize(("a", "b"), LOSSY, ids=str)
def test_ten_percent_loss_on_each_link_stops_nobody(a: Kind, b: Kind) -> None:
    """200 seeds over a representative subset; a packet from host to host survives with 81 %."""
    slow = 0
    for seed in range(40):
        world = world_of(a, b, seed=seed, loss=0.1)
        took = world.connect(10.0)
        slow += took > 1.0
        world.settle(20.0)
        assert world.is_mirrored(), world
    assert slow <= 4, f"{slow} of 40 seeds took more than a second"
