"""What observations mean: RFC 5780, 4.3 and 4.4, and common sense where no server does that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.probe.report import Allocation, NatReport, NotTested, RelayRow, RelayStatus, ServerRow, ServerStatus
from iceagent.probe.verdict import (
    Behaviour,
    Findings,
    Observation,
    Outlook,
    is_own,
    layers,
    nat,
    outlook,
    reflexive,
    udp,
    working_relay,
)
from tests.unit.probe.samples import (
    ANSWERED,
    EASY,
    GOOD,
    HERE,
    HOME,
    LOOPBACK,
    NAT,
    NO_RELAY,
    RELAY,
    SILENT,
    URI,
    sight,
)

A1, A2, B1 = "198.51.100.1:3478", "198.51.100.1:3479", "198.51.100.2:3478"


def findings(*observations: Observation, **others: object) -> Findings:
    return replace(Findings(interfaces=(LOOPBACK, HOME)), observations=observations, **others)  # type: ignore[arg-type]


def behaviour(mapping: Mapping, filtering: Filtering, *observations: Observation, version: int = 4) -> Behaviour:
    return Behaviour(
        version=version,
        mapping=mapping,
        filtering=filtering,
        observations=observations,
        how_mapping=f"because {mapping.value}",
        how_filtering=f"because {filtering.value}",
    )


# --- mapping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observations", "mapping", "is_dependent"),
    [
        ([sight(A1, HERE), sight(B1, HERE)], Mapping.NONE, False),
        ([sight(A1, HERE)], Mapping.NONE, False),
        ([sight(A1, f"{NAT}:5000"), sight(B1, f"{NAT}:5000")], Mapping.EIM, False),
        ([sight(A1, f"{NAT}:5000"), sight(A2, f"{NAT}:6000")], Mapping.APDM, True),
        ([sight(A1, f"{NAT}:5000"), sight(B1, f"{NAT}:6000")], Mapping.UNKNOWN, True),
        ([sight(A1, f"{NAT}:5000"), sight(A2, f"{NAT}:5000")], Mapping.UNKNOWN, False),
        ([sight(A1, f"{NAT}:5000")], Mapping.UNKNOWN, False),
    ],
    ids=["untranslated", "untranslated-one", "same", "by-port", "by-host", "same-host-only", "one-server"],
)
def test_mapping_from_what_servers_saw_of_one_socket(
    observations: list[Observation], mapping: Mapping, is_dependent: bool
) -> None:
    report = nat(findings(*observations))
    assert (report.mapping, report.is_dependent, report.version) == (mapping, is_dependent, 4)


def test_sockets_are_not_compared_with_each_other() -> None:
    """Two servers asked from two sockets (other routes) say nothing about one mapping."""
    report = nat(findings(sight(A1, f"{NAT}:5000"), sight(B1, f"{NAT}:6000", base="192.168.1.2:6000")))
    assert (report.mapping, report.is_dependent) == (Mapping.UNKNOWN, False)


@pytest.mark.parametrize("mapping", [Mapping.EIM, Mapping.ADM, Mapping.APDM])
def test_the_tests_of_rfc_5780_outrank_the_comparison(mapping: Mapping) -> None:
    report = nat(findings(sight(A1, f"{NAT}:5000"), behaviours=(behaviour(mapping, Filtering.ADF),)))
    assert (report.mapping, report.is_dependent) == (mapping, mapping is not Mapping.EIM)
    assert report.evidence == (
        f"stun:{A1} sees {HERE} as {NAT}:5000",
        f"because {mapping.value}",
        "because ADF",
    )


def test_eim_towards_one_server_is_no_eim_if_another_sees_something_else() -> None:
    seen = (sight(A1, f"{NAT}:5000"), sight(B1, f"{NAT}:6000"))
    report = nat(findings(*seen, behaviours=(behaviour(Mapping.EIM, Filtering.APDF),)))
    assert (report.mapping, report.is_dependent) == (Mapping.UNKNOWN, True)


def test_the_strictest_mapping_and_the_most_permissive_filtering_count() -> None:
    """An answer that came through is proof; one that did not may have been lost by its server."""
    two = (behaviour(Mapping.EIM, Filtering.ADF), behaviour(Mapping.ADM, Filtering.APDF))
    report = nat(findings(sight(A1, f"{NAT}:5000"), behaviours=two))
    assert (report.mapping, report.filtering) == (Mapping.ADM, Filtering.ADF)


def test_a_half_finished_test_still_shows_that_the_mapping_depends() -> None:
    """ADM or APDM, where the second address answered at one port only."""
    seen = (sight(A1, f"{NAT}:5000"), sight(B1, f"{NAT}:6000"))
    half = behaviour(Mapping.UNKNOWN, Filtering.UNKNOWN, *seen)
    report = nat(findings(sight(A1, f"{NAT}:4999", base="192.168.1.2:4000"), behaviours=(half,)))
    assert (report.mapping, report.is_dependent) == (Mapping.UNKNOWN, True)


def test_ipv4_is_looked_at_before_ipv6() -> None:
    home_6, server_6 = "[2001:db8::2]:5000", "[2001:db8:5::1]:3478"
    seen = (sight(server_6, home_6, base=home_6), sight(A1, f"{NAT}:5000"))
    both = nat(findings(*seen))
    only_6 = nat(findings(*seen[:1], behaviours=(behaviour(Mapping.NONE, Filtering.APDF, version=6),)))
    assert (both.version, both.mapping) == (4, Mapping.UNKNOWN)
    assert (only_6.version, only_6.mapping, only_6.filtering) == (6, Mapping.NONE, Filtering.APDF)


# --- ports -------------------------------------------------------------------------------------------------------


def samples(ports: list[int]) -> tuple[Observation, ...]:
    return tuple(sight(A1, f"{NAT}:{port}", base=f"192.168.1.2:{5000 + i}") for i, port in enumerate(ports))


@pytest.mark.parametrize(
    ("ports", "allocation"),
    [
        ([5000, 5001, 5002, 5003, 5004], Allocation.PRESERVED),
        ([20000, 20001, 20003, 20004, 20010], Allocation.SEQUENTIAL),
        ([20000, 20001, 20003, 20002, 20004], Allocation.RANDOM),
        ([20000, 20001, 20034, 20035, 20036], Allocation.RANDOM),
        ([40000, 1234, 59999], Allocation.RANDOM),
    ],
)
def test_allocation_from_new_sockets(ports: list[int], allocation: Allocation) -> None:
    report = nat(findings(sight(A1, f"{NAT}:4999", base="192.168.1.2:4999"), samples=samples(ports)))
    assert report.allocation is allocation
    assert report.port_preservation is (allocation is Allocation.PRESERVED)


def test_two_sockets_show_no_pattern() -> None:
    report = nat(findings(sight(A1, f"{NAT}:5000"), samples=samples([20000, 20001])))
    assert report.allocation == NotTested(reason="2 new sockets got an answer, 3 are needed")


# --- no server outside -------------------------------------------------------------------------------------------


def test_a_server_on_this_host_says_nothing_about_nats() -> None:
    inside = (sight("127.0.0.1:3478", "127.0.0.1:5000", base="127.0.0.1:5000"), sight("192.168.1.2:3478", HERE))
    report = nat(findings(*inside))
    assert (report.mapping, report.filtering, report.version) == (Mapping.UNKNOWN, Filtering.UNKNOWN, None)
    assert report.evidence == ("no server outside this host",)
    assert layers(findings(*inside), NOBODY) == NotTested(reason="no server outside this host")


def test_our_own_server_is_told() -> None:
    row = replace(ANSWERED, uri="stun:127.0.0.1:9", is_outside=False)
    assert nat(findings(is_embedded=True, servers=(row,))).evidence == (
        "no server outside this host",
        "none was named: our own server on loopback was asked",
    )
    assert nat(findings(is_embedded=True)).evidence[1].startswith("none was named, and loopback is down")


def test_failures_are_evidence() -> None:
    report = nat(findings(servers=(SILENT,)))
    assert report.evidence == ("no server outside this host answered", f"{URI} over IPv4: no response")


def test_own_addresses() -> None:
    table = (LOOPBACK, HOME)
    assert [is_own(host, table) for host in ("127.0.0.7", "::1", "192.168.1.2", "192.168.1.3")] == [
        True,
        True,
        True,
        False,
    ]


# --- layers, udp, reflexive --------------------------------------------------------------------------------------


def test_no_layer_where_the_outside_sees_an_address_of_ours() -> None:
    assert layers(findings(sight(A1, HERE)), NOBODY) == 0
    assert layers(findings(sight(A1, f"{NAT}:5000")), NOBODY) == 1
    assert layers(findings(sight(A1, HERE), sight(B1, f"{NAT}:5000")), NOBODY) == 1


def test_udp_is_yes_no_or_not_tested() -> None:
    not_asked = ServerRow(uri=URI, version=6, status=ServerStatus.NOT_ASKED, reason="IPv6 is switched off")
    assert udp(4, findings(servers=(SILENT, replace(ANSWERED, uri="stun:other")))) is True
    assert udp(4, findings(servers=(SILENT,))) is False
    assert udp(6, findings(servers=(ANSWERED, not_asked))) == NotTested(reason="IPv6 is switched off")
    assert udp(6, findings(servers=(ANSWERED,))) == NotTested(reason="no server has an IPv6 address")
    assert udp(4, findings(is_embedded=True, servers=(ANSWERED,))) == NotTested(reason="no server outside this host")


def test_reflexive_addresses_are_counted_over_all_servers_fastest_first() -> None:
    rows = reflexive(
        [
            sight(A1, f"{NAT}:5000", rtt_ms=30.0),
            sight(B1, f"{NAT}:5000", rtt_ms=10.0),
            sight(A2, f"{NAT}:6000", rtt_ms=None),
            sight(A1, f"{NAT}:5000", rtt_ms=30.0),
        ]
    )
    assert [(str(row.address), row.server, row.rtt_ms, row.seen) for row in rows] == [
        (f"{NAT}:5000", f"stun:{B1}", 10.0, 2),
        (f"{NAT}:5000", f"stun:{A1}", 30.0, 2),
        (f"{NAT}:6000", f"stun:{A2}", None, 1),
    ]


# --- outlook -----------------------------------------------------------------------------------------------------

ANSWERED_6 = replace(ANSWERED, version=6)
SILENT_6 = replace(SILENT, version=6)
INSIDE = replace(ANSWERED, is_outside=False)
NOT_ASKED = replace(ANSWERED, status=ServerStatus.NOT_ASKED)
NOBODY = NotTested(reason="no router was asked")
HARD = replace(EASY, mapping=Mapping.APDM, is_dependent=True)
OPEN_HARD = replace(HARD, filtering=Filtering.EIF)
UNKNOWN = replace(EASY, mapping=Mapping.UNKNOWN)
UNKNOWN_HARD = replace(UNKNOWN, is_dependent=True)


@pytest.mark.parametrize(
    ("report", "servers", "expected"),
    [
        (EASY, (ANSWERED,), Outlook.DIRECT),
        (UNKNOWN, (ANSWERED,), Outlook.DIRECT),
        (HARD, (ANSWERED,), Outlook.RELAY),
        (UNKNOWN_HARD, (ANSWERED,), Outlook.RELAY),
        (OPEN_HARD, (ANSWERED,), Outlook.DIRECT),
        (EASY, (SILENT, ANSWERED_6), Outlook.RELAY),
        (EASY, (ANSWERED_6,), Outlook.DIRECT),
        (EASY, (ANSWERED, SILENT_6), Outlook.DIRECT),
        (EASY, (SILENT, SILENT_6), Outlook.NOTHING),
        (EASY, (SILENT, INSIDE), Outlook.NOTHING),
        (EASY, (INSIDE,), Outlook.DIRECT),
        (EASY, (NOT_ASKED,), Outlook.NOTHING),
        (EASY, (NOT_ASKED, ANSWERED_6), Outlook.DIRECT),
    ],
)
def test_outlook_towards_a_typical_peer(report: NatReport, servers: tuple[ServerRow, ...], expected: Outlook) -> None:
    """CLI.md: 0 when a direct path to a peer behind an EIM, APDF NAT can be expected, 3 only a relay, 4 nothing."""
    assert outlook(replace(GOOD, nat=report, servers=servers)) is expected


UNTRIED = replace(NO_RELAY, status=RelayStatus.NOT_TESTED)


@pytest.mark.parametrize(
    ("report", "servers", "relays", "expected"),
    [
        (EASY, (ANSWERED,), (NO_RELAY,), Outlook.DIRECT),
        (HARD, (ANSWERED,), (NO_RELAY, RELAY), Outlook.RELAY),
        (HARD, (ANSWERED,), (NO_RELAY,), Outlook.NOTHING),
        (HARD, (ANSWERED,), (UNTRIED,), Outlook.RELAY),
        (EASY, (SILENT,), (RELAY,), Outlook.RELAY),
        (EASY, (SILENT,), (NO_RELAY,), Outlook.NOTHING),
        (EASY, (), (replace(RELAY, transport="tls"),), Outlook.RELAY),
    ],
)
def test_relays_count_where_no_direct_path_is_expected(
    report: NatReport, servers: tuple[ServerRow, ...], relays: tuple[RelayRow, ...], expected: Outlook
) -> None:
    """CLI.md: 3 when only a relay will do; and one that was tried in vain will not."""
    assert outlook(replace(GOOD, nat=report, servers=servers, relays=relays)) is expected


def test_a_relay_takes_a_candidate_too() -> None:
    assert outlook(replace(GOOD, servers=(SILENT,), relays=(RELAY,), candidates=())) is Outlook.NOTHING


def test_the_relay_that_is_named_is_one_over_udp_if_there_is_one() -> None:
    tcp = replace(RELAY, transport="tcp")
    assert working_relay(replace(GOOD, relays=(NO_RELAY, tcp, RELAY))) == RELAY
    assert working_relay(replace(GOOD, relays=(NO_RELAY, tcp))) == tcp
    assert working_relay(GOOD) is None


@pytest.mark.parametrize("servers", [(ANSWERED,), (INSIDE,), (ANSWERED, ANSWERED_6)])
def test_a_server_that_answers_is_no_path_by_itself(servers: tuple[ServerRow, ...]) -> None:
    """A direct path takes an address that a peer can be told."""
    assert outlook(replace(GOOD, servers=servers, candidates=())) is Outlook.NOTHING
    assert outlook(replace(GOOD, servers=servers, reflexive=())) is Outlook.NOTHING


def test_with_our_own_server_alone_all_that_was_tried_must_work() -> None:
    """CLI.md: "or, with the embedded server alone, when everything that was tried worked"."""
    silent = replace(SILENT, is_outside=False)
    assert outlook(replace(GOOD, is_embedded=True, servers=(INSIDE,))) is Outlook.DIRECT
    assert outlook(replace(GOOD, is_embedded=True, servers=(INSIDE,), candidates=())) is Outlook.DIRECT
    assert outlook(replace(GOOD, is_embedded=True, servers=())) is Outlook.NOTHING
    assert outlook(replace(GOOD, is_embedded=True, servers=(NOT_ASKED,))) is Outlook.NOTHING
    assert outlook(replace(GOOD, is_embedded=True, servers=(silent,))) is Outlook.NOTHING
    assert outlook(replace(GOOD, is_embedded=True, servers=(INSIDE, replace(silent, version=6)))) is Outlook.NOTHING


@pytest.mark.parametrize(
    ("relays", "expected"),
    [
        ((RELAY, RELAY), Outlook.DIRECT),
        # What was not tried did not fail.
        ((RELAY, replace(NO_RELAY, status=RelayStatus.NOT_TESTED)), Outlook.DIRECT),
        ((RELAY, NO_RELAY), Outlook.NOTHING),
        ((replace(NO_RELAY, status=RelayStatus.NO_ANSWER),), Outlook.NOTHING),
    ],
)
def test_our_own_relays_are_tried_too_and_are_no_way_to_a_peer(relays: tuple[RelayRow, ...], expected: Outlook) -> None:
    report = replace(GOOD, is_embedded=True, servers=(INSIDE,), relays=relays)
    assert outlook(report) is expected
    assert outlook(replace(report, candidates=())) is expected
