"""What a person sees: plain text in pipes, tables on a terminal, and the changes from one probe to the next."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress
from iceagent.probe.changes import changes
from iceagent.probe.render import lines, tables
from iceagent.probe.report import NotTested, RelayStatus, Report
from tests.unit.probe.samples import ANSWERED, GOOD, HOME_ROW, LOOPBACK_ROW, NAT, NO_RELAY, RELAY, SILENT, TURN, URI

REPORT = replace(GOOD, advice=("Do this.",))


def test_plain_text() -> None:
    assert lines(REPORT) == [
        "Interfaces",
        "  name  kind      mtu    addresses",
        "  lo    loopback  65536  127.0.0.1, ::1",
        "  eth0  ethernet  1500   192.168.1.2, 2001:db8::2",
        "Candidates",
        "  type   address           priority",
        "  host   192.168.1.2:5001  2128609535",
        "  srflx  203.0.113.9:5001  1692401919",
        "Servers",
        "  server                  answers  rtt      sees us as",
        "  stun:198.51.100.1:3478  yes      12.3 ms  203.0.113.9:5000",
        "NAT",
        "  UDP over IPv4        yes",
        "  UDP over IPv6        not tested: no server has an IPv6 address",
        "  mapping              EIM (one outside address towards everybody)",
        "  filtering            APDF (lets in addresses and ports that we have sent to)",
        "  port preserved       yes",
        "  port allocation      preserved",
        "  NATs in front of us  1",
        "Evidence",
        "  stun:198.51.100.1:3478 sees 192.168.1.2:5000 as 203.0.113.9:5000",
        "Not tested",
        "  port mapping  no router was asked",
        "  relays        no TURN server was given",
        "  NAT64         NAT64 discovery is not part of this version",
        "Outlook",
        "  A direct path to most peers can be expected.",
        "Advice",
        "  Do this.",
        "Took 2850 ms",
    ]


def test_empty_parts_are_left_out() -> None:
    bare = replace(REPORT, candidates=(), reflexive=(), servers=(), interfaces=(), nat=replace(REPORT.nat, evidence=()))
    titles = [line for line in lines(bare) if not line.startswith(" ")]
    assert titles == ["NAT", "Not tested", "Outlook", "Advice", "Took 2850 ms"]


def test_interfaces_that_are_down_and_servers_that_are_silent_are_shown() -> None:
    down = replace(HOME_ROW, is_up=False, addresses=())
    text = lines(replace(REPORT, interfaces=(down,), reflexive=(), servers=(SILENT,)))
    assert "  eth0  ethernet, down  1500  none" in text
    assert f"  {URI}  no       -    -" in text


def test_relays_have_rows_of_their_own() -> None:
    text = lines(replace(REPORT, relays=(RELAY, NO_RELAY)))
    start = text.index("Relays")
    relayed = "198.51.100.9:49152, [2001:db8::9]:49153"
    assert text[start + 1 : start + 4] == [
        f"  server             transport  status   rtt      {'relayed':39}  reason",
        f"  {TURN}  udp        ok       20.1 ms  {relayed}",
        f"  {TURN}  tcp        refused  -        {'-':39}  486 Allocation Quota Reached",
    ]
    assert "no TURN server was given" not in "".join(text)


def test_relays_show_mobility_and_data_where_something_is_known_of_them() -> None:
    here = (TransportAddress("127.0.0.1", 49152),)
    through = replace(RELAY, server="turn:127.0.0.1:9", relayed=here, data_rtt_ms=0.31, mobility=True)
    text = lines(replace(REPORT, relays=(through, replace(through, transport="tcp", data_rtt_ms=None, mobility=False))))
    start = text.index("Relays")
    assert text[start + 1 : start + 4] == [
        "  server            transport  status  rtt      through it  mobility  relayed",
        "  turn:127.0.0.1:9  udp        ok      20.1 ms  0.3 ms      yes       127.0.0.1:49152",
        "  turn:127.0.0.1:9  tcp        ok      20.1 ms  -           no        127.0.0.1:49152",
    ]


def test_with_our_own_server_alone_nothing_is_said_about_peers_and_nats() -> None:
    text = lines(replace(REPORT, is_embedded=True))
    assert "NAT" not in text
    assert "  UDP and NAT   no server outside this host was asked" in text
    assert text[text.index("Outlook") + 1] == "  Everything that was tried on this host works."
    failed = lines(replace(REPORT, is_embedded=True, relays=(NO_RELAY,)))
    assert failed[failed.index("Outlook") + 1] == "  Not everything that was tried on this host works."


@pytest.mark.parametrize("kind", [each for kinds in (Mapping, Filtering) for each in kinds if each.value != "unknown"])
def test_the_words_of_rfc_4787_are_explained(kind: Mapping | Filtering) -> None:
    nat = replace(REPORT.nat, mapping=kind) if isinstance(kind, Mapping) else replace(REPORT.nat, filtering=kind)
    assert any(line.split()[1:2] == [kind.value] and "(" in line for line in lines(replace(REPORT, nat=nat)))


def test_a_terminal_gets_the_same_words_in_tables() -> None:
    """Nothing that plain text has is missing, and no markup of ours or of a server's name is interpreted."""
    named = replace(REPORT, advice=("Look at [red]this[/red].",))
    screen = io.StringIO()
    Console(file=screen, width=200, force_terminal=True, color_system=None).print(tables(named))
    words = {word for line in lines(named) for word in line.split()}
    assert words <= set(screen.getvalue().split())


def test_a_narrow_terminal_loses_nothing() -> None:
    screen = io.StringIO()
    Console(file=screen, width=40, force_terminal=True, color_system=None).print(tables(REPORT))
    shown = "".join(character for character in screen.getvalue() if character.isalnum())
    assert "NAT64discoveryisnotpartofthisversion" in shown
    assert max(map(len, screen.getvalue().splitlines())) <= 40


def test_addresses_are_redacted_where_that_is_asked_for() -> None:
    screen = io.StringIO()
    hidden = tables(REPORT, lambda text: text.replace(NAT, "ipv4-1f2e3d"))
    Console(file=screen, width=200).print(hidden)
    assert NAT not in screen.getvalue()
    assert "ipv4-1f2e3d:5000" in screen.getvalue()


# --- changes -----------------------------------------------------------------------------------------------------


def test_ports_and_times_are_no_changes() -> None:
    later = replace(
        REPORT,
        candidates=tuple(line.replace("5001", "6001") for line in REPORT.candidates),
        reflexive=tuple(
            replace(row, address=row.address._replace(port=6000), rtt_ms=99.0, seen=2) for row in REPORT.reflexive
        ),
        nat=replace(REPORT.nat, evidence=("other sockets",)),
        duration_ms=1.0,
    )
    assert changes(REPORT, later) == ()


def test_our_own_server_is_the_same_on_another_port() -> None:
    def embedded(port: int) -> Report:
        uri = f"stun:127.0.0.1:{port}"
        row = replace(REPORT.reflexive[0], server=uri)
        relays = tuple(replace(RELAY, server=f"turn:{host}:{port}") for host in ("127.0.0.1", "[::1]"))
        servers = (replace(ANSWERED, uri=uri),)
        return replace(REPORT, is_embedded=True, servers=servers, reflexive=(row,), relays=relays)

    before, after = embedded(40000), embedded(50000)
    assert changes(before, after) == ()
    assert isinstance(after.relays, tuple)
    silent = replace(after.relays[1], status=RelayStatus.NO_ANSWER, relayed=(), reason="no answer")
    assert changes(before, replace(after, relays=(after.relays[0], silent))) == (
        "relay ours at [::1] over UDP: ok 198.51.100.9 2001:db8::9 → no-answer no answer",
    )
    assert changes(before, replace(after, servers=(replace(SILENT, uri="our own server", version=None),))) == (
        "- server ours at 127.0.0.1 ipv4 answered",
        "+ server ours ipv? failed no response",
    )


def test_changes_are_told_fact_by_fact() -> None:
    later = replace(
        REPORT,
        interfaces=(LOOPBACK_ROW, replace(HOME_ROW, addresses=("192.168.1.7",))),
        candidates=REPORT.candidates[:1],
        udp={4: False, 6: NotTested(reason="no server has an IPv6 address")},
        reflexive=(),
        nat=replace(REPORT.nat, mapping=Mapping.UNKNOWN),
        layers=0,
        servers=(ANSWERED, replace(SILENT, version=6)),
    )
    assert changes(REPORT, later) == (
        "interface eth0: ethernet, up, mtu 1500, 192.168.1.2 2001:db8::2 → ethernet, up, mtu 1500, 192.168.1.7",
        f"- candidate srflx {NAT}",
        "udp ipv4: yes → no",
        f"- reflexive {NAT} by {URI}",
        "nat mapping: EIM → unknown",
        "layers: 1 → 0",
        f"+ server {URI} ipv6 failed no response",
    )


def test_a_relay_that_comes_or_goes_is_a_change_and_its_port_is_none() -> None:
    working = replace(REPORT, relays=(RELAY,))
    elsewhere = tuple(address._replace(port=50000) for address in RELAY.relayed)
    assert changes(working, replace(REPORT, relays=(replace(RELAY, relayed=elsewhere, rtt_ms=1.0),))) == ()
    refused = replace(NO_RELAY, transport="udp")
    assert changes(working, replace(REPORT, relays=(refused,))) == (
        f"relay {TURN} over UDP: ok 198.51.100.9 2001:db8::9 → refused 486 Allocation Quota Reached",
    )


def test_what_is_not_tested_any_more_is_a_change() -> None:
    untested = NotTested(reason="no server outside this host")
    later = replace(REPORT, layers=untested, nat=replace(REPORT.nat, allocation=untested, port_preservation=untested))
    assert changes(REPORT, later) == (
        "nat port preservation: yes → not tested",
        "nat allocation: preserved → not tested",
        "layers: 1 → not tested",
    )
