"""Which candidates of ours are taken?"""

from __future__ import annotations

from dataclasses import replace

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.locals import Locals
from iceagent.net.address import TransportAddress
from tests.sim.world import host_candidate

BASE = TransportAddress("10.1.0.1", 5000)


def reflexive(number: int, base: TransportAddress = BASE) -> Candidate:
    return replace(
        host_candidate(base),
        type=CandidateType.SERVER_REFLEXIVE,
        address=TransportAddress("203.0.113.1", number),
        base=base,
    )


def test_an_address_and_base_that_are_known_are_redundant() -> None:
    """RFC 8838, 9; also with another priority."""
    known = Locals()
    assert known.add(host_candidate(BASE)) is not None
    assert known.add(replace(host_candidate(BASE), priority=1)) is None
    assert len(known.all()) == 1


def test_a_candidate_without_a_base_is_its_own() -> None:
    known = Locals()
    added = known.add(replace(host_candidate(BASE), base=None))
    assert added is not None and added.base == BASE
    assert BASE in known and known.component_of(BASE) == 1


def test_a_base_has_sixteen_reflexive_candidates_at_most_and_a_new_one_finds_room() -> None:
    """A symmetric NAT shows another address to every server."""
    known = Locals()
    known.add(host_candidate(BASE))
    assert [known.add(reflexive(port)) is not None for port in range(1, 18)] == [True] * 16 + [False]
    other = TransportAddress("10.1.0.2", 5000)
    assert known.add(host_candidate(other)) is not None
    assert known.add(reflexive(1, other)) is not None


def test_a_base_goes_with_its_candidates() -> None:
    known = Locals()
    known.add(host_candidate(BASE))
    known.add(reflexive(1))
    known.remove_base(BASE)
    assert known.all() == []
    assert BASE not in known and known.component_of(BASE) is None


def test_a_base_is_mapped_once_a_server_saw_another_address_of_it() -> None:
    known = Locals()
    known.add(host_candidate(BASE))
    assert not known.is_mapped(BASE)
    known.add(reflexive(1))
    assert known.is_mapped(BASE)
    known.remove_base(BASE)
    assert not known.is_mapped(BASE)
