"""Public addresses of a 1:1 NAT, from the configuration."""

from __future__ import annotations

import pytest

from iceagent import Candidate, CandidateType, Config
from iceagent.gather.bases import Base
from iceagent.gather.external import External
from iceagent.net.address import TransportAddress
from tests.unit.gather.kit import base_on


def found(base: Base, **addresses: str | None) -> list[Candidate]:
    result: list[Candidate] = []
    names = {name.replace("_", "."): local for name, local in addresses.items()}
    External(Config(external_addresses=names), result.append).start(base)
    return result


def test_a_public_address_with_the_port_of_the_base() -> None:
    (candidate,) = found(base_on("10.0.0.1", 4000), **{"198_51_100_7": None})
    assert candidate.type is CandidateType.SERVER_REFLEXIVE
    assert candidate.address == ("198.51.100.7", 4000)
    assert candidate.related_address == candidate.base == ("10.0.0.1", 4000)


def test_one_that_belongs_to_a_local_address() -> None:
    assert found(base_on("10.0.0.2", 4000), **{"198_51_100_7": "10.0.0.1"}) == []
    (candidate,) = found(base_on("10.0.0.1", 4000), **{"198_51_100_7": "10.0.0.1"})
    assert candidate.address == TransportAddress("198.51.100.7", 4000)


@pytest.mark.parametrize("host", ["2001:db8::1", "127.0.0.1", "169.254.1.1", "fe80::1", "::1"])
def test_without_a_local_address_it_is_for_bases_of_its_family_that_a_nat_may_serve(host: str) -> None:
    assert found(base_on(host, 4000), **{"198_51_100_7": None}) == []


def test_it_keeps_nobody_waiting() -> None:
    external = External(Config(), lambda candidate: True)
    assert external.is_done
    external.stop(base_on("10.0.0.1", 1))
    external.close()
