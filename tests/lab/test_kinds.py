"""Does every kind of router do what it promises? Found by experiment, without knowledge of its rules."""

from __future__ import annotations

import pytest

from iceagent.lab import KINDS, Impairment, Kind, Lab, LabError, Machine
from iceagent.lab.classify import Findings, classify, lifetime_s
from iceagent.lab.kinds import BLOCK_SIZE, FIRST_PORT
from iceagent.nat.kinds import Filtering, Mapping

CONES = [kind for kind in KINDS.values() if kind.can_hairpin]


def promise(kind: Kind, *, hairpin: bool) -> Findings:
    """What shall be found."""
    return Findings(
        mapping=kind.mapping,
        filtering=kind.filtering,
        keeps_port=kind.keeps_port,
        hairpin=hairpin,
        has_early_packet_trap=kind.has_early_packet_trap,
    )


def without_ports(found: Findings) -> Findings:
    return Findings(**{name: getattr(found, name) for name in Findings.__slots__ if name != "ports"})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_kind_does_what_it_promises(lab: Lab, server: Machine, kind: Kind) -> None:
    """Where addresses are not translated, a machine reaches itself at its own."""
    found = classify(lab.machine(behind=lab.router(kind.name)), server)
    assert without_ports(found) == promise(kind, hairpin=not kind.is_translating)


@pytest.mark.parametrize("kind", CONES, ids=lambda kind: kind.name)
def test_a_cone_with_hairpin(lab: Lab, server: Machine, kind: Kind) -> None:
    found = classify(lab.machine(behind=lab.router(kind.name, hairpin=True)), server)
    assert without_ports(found) == promise(kind, hairpin=True)


def test_a_cable_that_doubles_everything_fools_nobody(lab: Lab, server: Machine) -> None:
    router = lab.router("addr-restricted", impairment=Impairment(duplicate=1.0))
    found = classify(lab.machine(behind=router), server)
    assert without_ports(found) == promise(router.kind, hairpin=False)


def test_others_know_no_hairpin(lab: Lab) -> None:
    with pytest.raises(LabError, match="kind symmetric knows no hairpin"):
        lab.router("symmetric", hairpin=True)


def test_a_sequence_counts_and_a_block_is_one(lab: Lab, server: Machine) -> None:
    ports = classify(lab.machine(behind=lab.router("symmetric-seq")), server).ports
    assert ports == tuple(range(ports[0], ports[0] + 3))
    ports = classify(lab.machine(behind=lab.router("symmetric-block")), server).ports
    assert len(set(ports)) == 3 and all(FIRST_PORT <= port < FIRST_PORT + BLOCK_SIZE for port in ports)


@pytest.mark.parametrize("name", ["port-restricted", "full-cone", "symmetric", "firewall"])
def test_a_binding_dies_when_its_time_is_over(lab: Lab, server: Machine, name: str) -> None:
    """RFC 4787, 4.3: outbound refresh, and a timer. Here of two seconds."""
    machine = lab.machine(behind=lab.router(name, lifetime_s=2))
    lived_s = lifetime_s(machine, server, 4.0, step_s=0.8)
    assert lived_s is not None and 2.0 <= lived_s <= 3.3


@pytest.mark.parametrize(
    ("carrier", "home", "mapping", "filtering"),
    [
        ("port-restricted-strict", "full-cone", Mapping.EIM, Filtering.APDF),
        ("full-cone", "addr-restricted", Mapping.EIM, Filtering.ADF),
        ("symmetric", "full-cone", Mapping.APDM, Filtering.APDF),
        ("full-cone", "symmetric", Mapping.APDM, Filtering.APDF),
    ],
)
def test_a_carriers_nat_before_a_homes_is_as_strict_as_the_stricter(
    lab: Lab, server: Machine, carrier: str, home: str, mapping: Mapping, filtering: Filtering
) -> None:
    outer = lab.router(carrier, is_carrier=True)
    inner = lab.router(home, behind=outer)
    assert inner.address.startswith("100.64.0.")
    found = classify(lab.machine(behind=inner), server)
    assert (found.mapping, found.filtering) == (mapping, filtering)
