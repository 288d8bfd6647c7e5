"""Every rule of the advice, by its own report; each sentence names something that a person can do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress
from iceagent.probe.advice import advise
from iceagent.probe.report import NotTested, Reflexive, Report, ServerStatus
from tests.unit.probe.samples import ANSWERED, EASY, GOOD, HOME_ROW, LOOPBACK_ROW, NO_RELAY, RELAY, SILENT, TURN, URI

HARD = replace(EASY, mapping=Mapping.APDM, is_dependent=True)
UNKNOWN = replace(EASY, mapping=Mapping.UNKNOWN, filtering=Filtering.UNKNOWN)
HOME_4 = replace(HOME_ROW, addresses=("192.168.1.2",))
ULA = replace(HOME_ROW, addresses=("192.168.1.2", "fd00::2", "fe80::2"))
CARRIER = Reflexive(address=TransportAddress("100.64.0.9", 1), server=URI, rtt_ms=None, seen=1)
OFFLINE = replace(GOOD, layers=NotTested(reason="no server outside this host"))
SILENT_6 = replace(SILENT, version=6)


def test_where_all_is_well_there_is_nothing_to_do() -> None:
    assert advise(GOOD) == ("There is nothing to do.",)


@pytest.mark.parametrize(
    ("report", "beginning"),
    [
        (replace(OFFLINE, interfaces=(LOOPBACK_ROW,)), "No network interface is up besides loopback"),
        (replace(OFFLINE, interfaces=(replace(HOME_ROW, is_up=False),)), "No network interface is up besides loopback"),
        (
            replace(OFFLINE, interfaces=(replace(HOME_ROW, addresses=()),)),
            "No interface that is up has an address (eth0)",
        ),
        (replace(GOOD, servers=(SILENT,)), "No server answered over UDP"),
        (
            replace(GOOD, servers=(replace(SILENT, status=ServerStatus.NOT_ASKED, reason="no route"),)),
            f"No server could be asked ({URI}: no route)",
        ),
        (replace(GOOD, nat=HARD), "The NAT shows another outside address to other destinations (APDM)"),
        (
            replace(GOOD, nat=replace(HARD, mapping=Mapping.UNKNOWN)),
            "The NAT shows another outside address to other destinations (ADM or APDM)",
        ),
        (replace(GOOD, udp={4: False, 6: True}), "UDP over IPv4 is blocked"),
        (replace(GOOD, udp={4: True, 6: False}), "There is an IPv6 address here, but no server answered over IPv6"),
        (replace(GOOD, reflexive=(CARRIER,)), "100.64.0.9 belongs to a carrier's NAT"),
        (
            replace(GOOD, interfaces=(replace(HOME_ROW, addresses=("100.127.255.1", "2001:db8::2")),)),
            "100.127.255.1 belongs to a carrier's NAT",
        ),
        (
            replace(GOOD, servers=(ANSWERED, replace(SILENT, uri="stun:dead.example"))),
            "Mend or drop stun:dead.example: no response.",
        ),
        (replace(GOOD, nat=UNKNOWN), "One address cannot tell how the NAT maps"),
        (replace(GOOD, interfaces=(HOME_4,)), "This host has no global IPv6 address"),
        (replace(GOOD, interfaces=(ULA,)), "This host has no global IPv6 address"),
        (replace(GOOD, interfaces=(replace(HOME_ROW, mtu=1279),)), "The MTU of eth0 is 1279 bytes"),
        (
            replace(GOOD, is_embedded=True, servers=(ANSWERED,)),
            "Only this host was looked at, with our own STUN and TURN",
        ),
        (replace(GOOD, is_embedded=True, servers=()), "Nothing could be tried: our own server has no loopback address"),
        (
            replace(GOOD, nat=HARD, relays=(NO_RELAY, RELAY)),
            "The NAT shows another outside address to other destinations (APDM): peers behind a NAT of their own need "
            f"a relay, and {TURN} over UDP works;",
        ),
        (
            replace(GOOD, servers=(SILENT,), relays=(replace(RELAY, transport="tls"),)),
            f"No server answered over UDP: peers can be reached by a relay only; {TURN} over TLS works.",
        ),
        (
            replace(GOOD, relays=(NO_RELAY,)),
            f"No relay works; mend or replace {TURN} over TCP (486 Allocation Quota Reached).",
        ),
        (replace(GOOD, relays=(NO_RELAY,) * 6), "No relay works; mend or replace turn:198.51.100.9 over TCP (486"),
        (
            replace(GOOD, servers=(), udp={4: False, 6: False}, relays=(NO_RELAY,)),
            f"No relay works; mend or replace {TURN} over TCP",
        ),
        (
            replace(GOOD, relays=(RELAY, replace(NO_RELAY, server="turn:other.example"))),
            "Mend or drop turn:other.example: 486 Allocation Quota Reached.",
        ),
        (replace(GOOD, candidates=()), "No interface gave a candidate, so there is no address to tell a peer"),
    ],
)
def test_one_thing_is_wrong_and_one_sentence_says_what_to_do(report: Report, beginning: str) -> None:
    (sentence,) = advise(report)
    assert sentence.startswith(beginning)


@pytest.mark.parametrize(
    "report",
    [
        # A server silent over one IP version answers over the other: nothing about it needs mending.
        replace(GOOD, servers=(ANSWERED, SILENT_6), interfaces=(HOME_ROW,)),
        # Whoever may send first gets through a mapping that depends on the destination.
        replace(GOOD, nat=replace(HARD, filtering=Filtering.EIF)),
        # No NAT: IPv6 would not help.
        replace(GOOD, interfaces=(HOME_4,), layers=0),
        replace(GOOD, interfaces=(HOME_4,), layers=NotTested(reason="no server outside this host")),
        # A relay that works over one transport works.
        replace(GOOD, relays=(RELAY, NO_RELAY)),
        # A TURN server that is none of STUN's.
        replace(GOOD, servers=(ANSWERED, replace(SILENT, uri=TURN)), relays=(RELAY,)),
        # An interface without carrier may be as it likes.
        replace(GOOD, interfaces=(HOME_ROW, replace(HOME_ROW, mtu=576, is_up=False))),
        # 1280 bytes are enough (RFC 8200, 5).
        replace(GOOD, interfaces=(replace(HOME_ROW, mtu=1280),)),
        # IPv6 was not there to be tested.
        replace(GOOD, interfaces=(HOME_4,), layers=0, udp={4: True, 6: False}),
    ],
)
def test_what_is_no_problem_is_not_mentioned(report: Report) -> None:
    assert advise(report) == advise(GOOD)


def test_what_hinders_our_own_server_is_named_and_nothing_is_said_about_mending_it() -> None:
    silent = replace(SILENT, uri="stun:127.0.0.1:9", is_outside=False)
    report = replace(GOOD, is_embedded=True, servers=(silent,), relays=(RELAY, replace(NO_RELAY, reason="no answer")))
    first, second = advise(report)
    assert first.startswith(
        f"This host hinders our own server on loopback (stun:127.0.0.1:9: no response, {TURN} over TCP: no answer): "
    )
    assert second.startswith("Only this host was looked at")


def test_the_most_pressing_comes_first() -> None:
    report = replace(GOOD, nat=HARD, interfaces=(replace(HOME_4, mtu=576),))
    assert [sentence.split(" ")[1] for sentence in advise(report)] == ["NAT", "host", "MTU"]
