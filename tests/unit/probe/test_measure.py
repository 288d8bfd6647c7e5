"""A whole probe, on an Internet in memory and in virtual time: what it reports of every kind of NAT, and how soon."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import pytest

from iceagent.config import Config, IceServer
from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.host import Host
from iceagent.probe.measure import ProbeOptions, measure
from iceagent.probe.report import Allocation, NotTested, Report, ServerStatus
from iceagent.probe.verdict import Outlook, outlook
from iceagent.testing import MemoryHost, MemoryInternet, Network, add_stun_server, box_of_kind, run
from iceagent.testing.nat import Middlebox

HOME = "192.168.1.2"
NAT = "30.0.0.1"
FULL, FULL_2 = "20.0.1.1", "20.0.1.2"
PLAIN, OTHER = "20.0.2.1", "20.0.3.1"
DEAD = "20.0.9.9"
SERVERS = {"full": [FULL, FULL_2], "plain": [PLAIN], "other": [OTHER], "six": ["2001:db8:5::1"]}
# No longer than this after the last answer: a probe does not wait for nothing.
SLACK_MS = 100

Prepare = Callable[[MemoryInternet, MemoryHost], None]


def uri(host: str) -> str:
    return f"stun:[{host}]:3478" if ":" in host else f"stun:{host}:3478"


def probe(
    servers: Sequence[str],
    *,
    box: str | None = None,
    addresses: Sequence[str] = (HOME,),
    config: Config | None = None,
    prepare: Prepare | None = None,
    timeout_s: float = 5.0,
    told: list[str] | None = None,
) -> Report:
    """Probe from a host behind a box of that kind, with one server of RFC 5780 and two plain ones outside."""

    async def main() -> Report:
        internet = MemoryInternet(Network(random.Random(1)))
        for name, hosts in SERVERS.items():
            internet.add_peer(add_stun_server(internet.network, name, hosts))
        model: Middlebox | None = None
        if box is not None:
            model = box_of_kind(box, [] if box in ("open", "firewall") else [NAT], random.Random(2))
        router = None if model is None else internet.network.add_nat("router", model)
        host = internet.host("me", addresses, router)
        if prepare is not None:
            prepare(internet, host)
        options = ProbeOptions(
            servers=tuple(IceServer(urls=(url,)) for url in servers), config=config or Config(), timeout_s=timeout_s
        )
        tell = (told if told is not None else []).append
        return await measure(options, host, system_rng=random.Random(3), tell=tell)

    return run(main())


@pytest.mark.parametrize(
    ("box", "mapping", "filtering", "allocation", "expected"),
    [
        ("open", Mapping.NONE, Filtering.EIF, Allocation.PRESERVED, Outlook.DIRECT),
        ("firewall", Mapping.NONE, Filtering.APDF, Allocation.PRESERVED, Outlook.DIRECT),
        ("full-cone", Mapping.EIM, Filtering.EIF, Allocation.PRESERVED, Outlook.DIRECT),
        ("addr-restricted", Mapping.EIM, Filtering.ADF, Allocation.PRESERVED, Outlook.DIRECT),
        ("port-restricted", Mapping.EIM, Filtering.APDF, Allocation.PRESERVED, Outlook.DIRECT),
        ("eim-random-port", Mapping.EIM, Filtering.APDF, Allocation.RANDOM, Outlook.DIRECT),
        ("addr-symmetric", Mapping.ADM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
        ("symmetric", Mapping.APDM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
        ("symmetric-seq", Mapping.APDM, Filtering.APDF, Allocation.SEQUENTIAL, Outlook.RELAY),
        ("symmetric-fixed", Mapping.APDM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
    ],
)
def test_every_kind_of_box_is_told_by_a_server_of_rfc_5780(
    box: str, mapping: Mapping, filtering: Filtering, allocation: Allocation, expected: Outlook
) -> None:
    report = probe([uri(FULL)], box=box)
    nat = report.nat
    assert (nat.mapping, nat.filtering, nat.allocation, outlook(report)) == (mapping, filtering, allocation, expected)
    assert nat.port_preservation is (allocation is Allocation.PRESERVED)
    assert report.layers == (0 if mapping is Mapping.NONE else 1)
    assert (report.udp[4], report.udp[6]) == (True, NotTested(reason="no server has an IPv6 address"))
    assert report.duration_ms < 3_500


@pytest.mark.parametrize(
    ("box", "mapping", "expected"),
    [
        ("open", Mapping.NONE, Outlook.DIRECT),
        ("port-restricted", Mapping.EIM, Outlook.DIRECT),
        ("symmetric", Mapping.UNKNOWN, Outlook.RELAY),
    ],
)
def test_two_plain_servers_show_the_mapping_and_nothing_of_the_filtering(
    box: str, mapping: Mapping, expected: Outlook
) -> None:
    report = probe([uri(PLAIN), uri(OTHER)], box=box)
    assert (report.nat.mapping, report.nat.filtering, outlook(report)) == (mapping, Filtering.UNKNOWN, expected)
    assert {row.seen for row in report.reflexive} == ({1} if box == "symmetric" else {2})
    assert report.duration_ms < 80 + SLACK_MS


def test_one_plain_server_is_not_enough_and_says_so() -> None:
    report = probe([uri(PLAIN)], box="port-restricted")
    assert (report.nat.mapping, outlook(report)) == (Mapping.UNKNOWN, Outlook.DIRECT)
    assert any("name servers at two addresses" in sentence for sentence in report.advice)
    (row,) = report.reflexive
    assert (row.address.host, row.server, row.seen) == (NAT, uri(PLAIN), 1)
    assert row.rtt_ms == pytest.approx(40)


def test_candidates_are_those_of_an_agent() -> None:
    report = probe([uri(PLAIN)], box="port-restricted")
    assert [line.split()[7] for line in report.candidates] == ["host", "srflx"]
    assert [line.split()[4] for line in report.candidates] == [HOME, NAT]


# --- servers that fail -------------------------------------------------------------------------------------------


def test_a_silent_server_costs_two_seconds_where_another_one_answers() -> None:
    report = probe([uri(PLAIN), uri(DEAD)], box="port-restricted")
    assert [(row.uri, row.status) for row in report.servers] == [
        (uri(PLAIN), ServerStatus.ANSWERED),
        (uri(DEAD), ServerStatus.FAILED),
    ]
    assert 2_000 <= report.duration_ms < 2_500 + SLACK_MS
    assert outlook(report) is Outlook.DIRECT
    assert f"{uri(DEAD)} over IPv4: no response" in report.nat.evidence


def test_where_nobody_answers_it_ends_with_the_timeout() -> None:
    report = probe([uri(DEAD)], box="port-restricted", timeout_s=3.0)
    assert (report.udp[4], report.reflexive, outlook(report)) == (False, (), Outlook.NOTHING)
    assert 3_000 <= report.duration_ms < 3_500 + SLACK_MS
    assert report.nat.evidence[0] == "no server outside this host answered"


def test_the_timeout_cuts_the_tests_short_and_keeps_what_they_know() -> None:
    """The mapping takes two round trips; that nothing comes through the filter takes nearly 3 s."""
    report = probe([uri(FULL)], box="symmetric", timeout_s=1.0)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.APDM, Filtering.UNKNOWN)
    assert 1_000 <= report.duration_ms < 1_500 + SLACK_MS


def test_a_network_without_udp() -> None:
    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        host.node.link.realm.gateway.udp_ports = frozenset()  # type: ignore[union-attr]

    report = probe([uri(FULL), uri(PLAIN)], box="port-restricted", prepare=prepare)
    assert (report.udp[4], outlook(report)) == (False, Outlook.NOTHING)
    assert report.advice[0].startswith("No server answered over UDP")


def test_names_are_resolved_and_those_that_do_not_exist_are_told() -> None:
    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        internet.names["stun.example"] = [PLAIN, "2001:db8:5::1"]

    report = probe(["stun:stun.example", "stun:nowhere.example"], box="port-restricted", prepare=prepare)
    rows = {(row.uri, row.version): row for row in report.servers}
    assert rows["stun:stun.example", 4].status is ServerStatus.ANSWERED
    assert rows["stun:stun.example", 6].reason == "this host has no IPv6 route to it"
    assert rows["stun:nowhere.example", None].reason.startswith("its name does not resolve")
    assert report.udp[6] == NotTested(reason="this host has no IPv6 route to it")


def test_a_loss_of_a_fifth_deceives_nobody() -> None:
    """RFC 5780's tests are repeated: one lost packet is no verdict."""

    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        host.link().up.loss = host.link().down.loss = 0.2

    report = probe([uri(FULL)], box="full-cone", prepare=prepare)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.EIM, Filtering.EIF)


# --- IP versions and addresses -----------------------------------------------------------------------------------


def test_ipv6_is_asked_beside_ipv4() -> None:
    report = probe([uri(PLAIN), uri("2001:db8:5::1")], addresses=["20.0.8.1", "2001:db8:8::1"])
    assert (report.udp[4], report.udp[6], report.layers) == (True, True, 0)
    assert {row.address.host for row in report.reflexive} == {"20.0.8.1", "2001:db8:8::1"}
    assert report.nat.version == 4


def test_what_is_switched_off_is_not_asked() -> None:
    both = ["20.0.8.1", "2001:db8:8::1"]
    report = probe([uri(PLAIN), uri("2001:db8:5::1")], addresses=both, config=Config(ipv4=False))
    assert (report.udp[4], report.udp[6]) == (NotTested(reason="IPv4 is switched off"), True)
    assert {row.address.version for row in report.reflexive} == {6}
    assert (report.nat.version, report.nat.mapping, outlook(report)) == (6, Mapping.NONE, Outlook.DIRECT)


def test_it_asks_from_the_address_it_is_bound_to_and_from_its_port_range() -> None:
    config = Config(bind_hosts=("20.0.8.2",), port_range=(40000, 40100))
    report = probe([uri(FULL)], addresses=["20.0.8.1", "20.0.8.2"], config=config)
    (row,) = report.reflexive
    assert (row.address.host, 40000 <= row.address.port <= 40100) == ("20.0.8.2", True)


def test_a_range_of_ports_that_is_too_small_costs_only_what_needs_more() -> None:
    """Two ports: one for the agent, one for the question; none is left for new sockets or RFC 5780."""
    config = Config(port_range=(40000, 40001))
    report = probe([uri(FULL), uri(PLAIN)], box="port-restricted", config=config)
    assert (report.udp[4], report.nat.mapping, report.nat.filtering) == (True, Mapping.EIM, Filtering.UNKNOWN)
    assert report.nat.allocation == NotTested(reason="0 new sockets got an answer, 3 are needed")


def test_no_free_port_at_all_is_told() -> None:
    report = probe([uri(PLAIN)], box="port-restricted", config=Config(port_range=(40000, 40000)))
    (row,) = report.servers
    assert (row.status, row.reason[:9], outlook(report)) == (ServerStatus.FAILED, "no socket", Outlook.NOTHING)


# --- no server named ---------------------------------------------------------------------------------------------


def test_without_a_server_it_asks_its_own_and_nobody_else() -> None:
    networks: list[Network] = []
    report = probe([], box="port-restricted", prepare=lambda internet, host: networks.append(internet.network))
    assert {entry.packet.destination.host for entry in networks[0].log} == {"127.0.0.1", "::1"}
    assert report.is_embedded
    assert [row.address.host for row in report.reflexive] == ["127.0.0.1", "::1"]
    assert all(row.status is ServerStatus.ANSWERED and not row.is_outside for row in report.servers)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.UNKNOWN, Filtering.UNKNOWN)
    assert report.nat.evidence[0] == "no server outside this host"
    assert report.layers == NotTested(reason="no server outside this host")
    assert [line.split()[4] for line in report.candidates] == [HOME]
    assert outlook(report) is Outlook.DIRECT
    assert report.duration_ms < SLACK_MS


def test_without_a_server_and_without_ipv6() -> None:
    report = probe([], config=Config(ipv6=False))
    assert [row.address.host for row in report.reflexive] == ["127.0.0.1"]


class WithoutTcp:
    """A host whose sandbox refuses listening TCP sockets."""

    def __init__(self, host: MemoryHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def listen_tcp(self, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_server_of_ours_that_cannot_start_is_told_and_nothing_else_fails() -> None:
    async def main() -> Report:
        host = MemoryInternet(Network(random.Random(1))).host("me", [HOME])
        return await measure(ProbeOptions(), cast(Host, WithoutTcp(host)))

    report = run(main())
    (row,) = report.servers
    assert (row.uri, row.status, outlook(report)) == ("our own server", ServerStatus.FAILED, Outlook.NOTHING)
    assert report.nat.evidence[-1] == f"our own server: {row.reason}"
    assert "Operation not permitted" in row.reason
    assert [line.split()[4] for line in report.candidates] == [HOME]


def test_only_the_servers_that_were_named_are_asked() -> None:
    """And the second address that one of them offers (RFC 5780): no gateway, no name server, no peer."""
    networks: list[Network] = []
    probe([uri(FULL)], box="symmetric", prepare=lambda internet, host: networks.append(internet.network))
    asked = {entry.packet.destination.host for entry in networks[0].log if entry.packet.source.host == NAT}
    assert asked == {FULL, FULL_2}


def test_what_is_done_is_told() -> None:
    told: list[str] = []
    probe([uri(FULL)], box="symmetric", told=told)
    assert told == ["reading the interfaces", f"asking {uri(FULL)}", f"testing the NAT with {uri(FULL)}"]
