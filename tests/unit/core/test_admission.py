"""Which remote candidates are used, and why are the others refused?"""

from __future__ import annotations

import pytest

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.admission import refusal
from iceagent.description import Description
from iceagent.events import RemoteCandidateAdded, RemoteCandidateRefused
from iceagent.net.address import TransportAddress
from tests.unit.core.kit import BASE, Play, remote_candidate


def candidate(host: str = "192.0.2.1", port: int = 5000, *, transport: str = "udp", component: int = 1) -> Candidate:
    return Candidate.parse(f"candidate:1 {component} {transport} 1000 {host} {port} typ host")


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "10.0.0.1", "169.254.0.1", "100.64.0.1", "2001:db8::1", "fe80::1", "fd00::1"]
)
def test_ordinary_addresses_are_used(host: str) -> None:
    assert refusal(candidate(host), Config(), (), 1) is None


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (candidate(transport="tcp", port=9), "TCP candidates are not supported (RFC 6544)"),
        (candidate(component=2), "component 2 of a session with 1"),
        (candidate("a.local"), "its name was not resolved"),
        (candidate(port=0), "its port is 0"),
        (candidate(*BASE), "it is one of our own sockets"),
        (candidate("0.0.0.0"), "its address is unspecified"),
        (candidate("::"), "its address is unspecified"),
        (candidate("224.0.0.251"), "its address is multicast"),
        (candidate("ff02::fb"), "its address is multicast"),
        (candidate("255.255.255.255"), "its address is broadcast"),
        (candidate("0.1.2.3"), "its address is reserved"),
        (candidate("240.0.0.1"), "its address is reserved"),
        (candidate("::127.0.0.1"), "the IPv4 address in it cannot be a peer's"),
        (candidate("64:ff9b::7f00:1"), "the IPv4 address in it cannot be a peer's"),
        (candidate("127.0.0.1"), "its address is loopback, which was not asked for"),
        (candidate("::1"), "its address is loopback, which was not asked for"),
        (candidate("::ffff:127.0.0.1"), "its address is loopback, which was not asked for"),
    ],
)
def test_what_no_peer_can_have_is_refused(refused: Candidate, reason: str) -> None:
    assert refusal(refused, Config(), (BASE,), 1) == reason


def test_the_configuration_decides_about_the_rest() -> None:
    assert refusal(candidate("127.0.0.1"), Config(loopback=True), (), 1) is None
    assert refusal(candidate("::1"), Config(loopback=True), (), 1) is None
    assert refusal(candidate(), Config(ipv4=False), (), 1) == "IPv4 is switched off"
    assert refusal(candidate("2001:db8::1"), Config(ipv6=False), (), 1) == "IPv6 is switched off"
    only_private = Config(remote_filter=lambda c: c.address.ip.is_private)
    assert refusal(candidate("8.8.8.8"), only_private, (), 1) == "the remote filter refuses it"
    assert refusal(candidate("10.0.0.1"), only_private, (), 1) is None


def test_a_session_tells_what_it_refused_and_sends_nothing_there() -> None:
    refused = [candidate("224.0.0.251"), candidate("127.0.0.1"), candidate(transport="tcp", port=9)]
    play = Play(remotes=[*refused, remote_candidate()])
    assert [event.candidate for event in play.events_of(RemoteCandidateRefused)] == refused
    assert [event.via for event in play.events_of(RemoteCandidateAdded)] == ["signalling"]
    assert play.session.counters["remote candidates refused"] == 3
    play.pass_time(3.0)
    assert {transmit.destination for _, transmit in play.sent} == {remote_candidate().address}


def test_a_candidate_counts_once() -> None:
    play = Play(remotes=[remote_candidate(), remote_candidate()])
    play.session.add_remote_candidate(remote_candidate(), play.now)
    assert len(play.session.remote_candidates) == 1
    assert len(play.events_of(RemoteCandidateAdded)) == 1


def test_a_thousand_candidates_are_taken_and_no_more() -> None:
    play = Play(remotes=())
    for i in range(1200):
        play.session.add_remote_candidate(remote_candidate(TransportAddress("10.2.0.1", 1000 + i)), play.now)
        play.drain()
    assert len(play.session.remote_candidates) == 1000
    assert play.events_of(RemoteCandidateRefused)[-1].reason == "there are 1000 already"
    assert len(play.session.pairs) == 100


def test_lines_of_an_unknown_kind_are_counted() -> None:
    """RFC 8839, 5.1: they are ignored, not refused; somebody may wonder where they went."""
    play = Play(described=False)
    lines = "a=ice-ufrag:abcd\na=ice-pwd:0123456789012345678901\na=candidate:1 1 ssltcp 1 192.0.2.1 9 typ host\n"
    play.session.set_remote_description(Description.parse(lines), play.now)
    assert play.session.counters["candidate lines of an unknown kind"] == 1
