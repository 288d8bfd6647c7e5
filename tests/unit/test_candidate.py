"""The candidate line of RFC 8839, 5.1."""

from __future__ import annotations

from random import Random

import aioice
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.candidate import Candidate, CandidateType
from iceagent.errors import InvalidCandidate, UnsupportedCandidate
from iceagent.net.address import TransportAddress, canonical_host

HOST = "candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host"
CHROMIUM = (
    "candidate:2530 1 udp 1677729535 203.0.113.7 60769 typ srflx raddr 0.0.0.0 rport 0 "
    "generation 0 ufrag EsAw network-cost 999"
)
TCP = "candidate:3 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active"
MDNS = "candidate:4 1 UDP 2113937151 9b36eaac-bb2e-49bb-bb78-21c41c499900.LOCAL 5000 typ host"

ice_chars = st.text("ABCXYZabcxyz0189+/", min_size=1, max_size=32)
hosts = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)).map(canonical_host)
addresses = st.builds(TransportAddress, hosts, st.integers(0, 65535))
tokens = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
# RFC 8839, 5.1: extension-att-value = *VCHAR.
extensions = st.lists(
    st.tuples(tokens.filter(lambda name: name not in ("raddr", "rport")), tokens | st.just("")), max_size=4
)
candidates = st.builds(
    Candidate,
    foundation=ice_chars,
    component=st.integers(1, 256),
    priority=st.integers(1, 2**31 - 1),
    address=addresses,
    type=st.sampled_from(CandidateType),
    transport=st.sampled_from(["udp", "tcp"]),
    related_address=st.none() | addresses,
    extensions=extensions.map(tuple),
)


def test_a_host_candidate() -> None:
    candidate = Candidate.parse(HOST)
    assert candidate == Candidate(
        foundation="1",
        component=1,
        priority=2130706431,
        address=TransportAddress("192.0.2.1", 5000),
        type=CandidateType.HOST,
    )
    assert candidate.to_sdp() == HOST
    assert not candidate.has_name
    assert candidate.ufrag is None


@pytest.mark.parametrize("prefix", ["", "a=", "  a="])
def test_the_prefix_may_be_there(prefix: str) -> None:
    assert Candidate.parse(prefix + HOST) == Candidate.parse(HOST.removeprefix("candidate:")) == Candidate.parse(HOST)


def test_extensions_survive_in_their_order() -> None:
    candidate = Candidate.parse(CHROMIUM)
    assert candidate.extensions == (("generation", "0"), ("ufrag", "EsAw"), ("network-cost", "999"))
    assert candidate.related_address == TransportAddress("0.0.0.0", 0)
    assert candidate.ufrag == "EsAw"
    assert candidate.extension("network-cost") == "999"
    assert candidate.extension("tcptype") is None
    assert candidate.to_sdp() == CHROMIUM


def test_a_tcp_candidate_is_read() -> None:
    """RFC 6544: who adds it is told that it is ignored; the line itself is no error."""
    candidate = Candidate.parse(TCP)
    assert (candidate.transport, candidate.extension("tcptype")) == ("tcp", "active")
    assert candidate.to_sdp() == TCP


def test_a_name_is_kept_in_lower_case_until_it_is_resolved() -> None:
    candidate = Candidate.parse(MDNS)
    assert candidate.has_name
    assert candidate.address.host == "9b36eaac-bb2e-49bb-bb78-21c41c499900.local"
    resolved = candidate.with_address("192.0.2.9")
    assert (resolved.address, resolved.has_name) == (TransportAddress("192.0.2.9", 5000), False)


def test_addresses_become_canonical() -> None:
    line = "candidate:1 1 udp 1 2001:DB8:0:0:0:0:0:1 5000 typ host"
    assert Candidate.parse(line).address.host == "2001:db8::1"
    mapped = "candidate:1 1 udp 1 ::ffff:192.0.2.1 5000 typ host"
    assert Candidate.parse(mapped).address.host == "192.0.2.1"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "1 fields, at least 8 are needed"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ", "7 fields"),
        ("candidate:1  1 udp 1 192.0.2.1 5000 typ host", "separated by one space"),
        ("candidate:ü 1 udp 1 192.0.2.1 5000 typ host", "printable ASCII"),
        ("candidate:_ 1 udp 1 192.0.2.1 5000 typ host", "foundation '_'"),
        ("candidate:" + "f" * 33 + " 1 udp 1 192.0.2.1 5000 typ host", "1 to 32"),
        ("candidate:1 0 udp 1 192.0.2.1 5000 typ host", "component '0' is not a number from 1 to 256"),
        ("candidate:1 257 udp 1 192.0.2.1 5000 typ host", "component '257'"),
        ("candidate:1 1 s(p 1 192.0.2.1 5000 typ host", "transport 's(p'"),
        ("candidate:1 1 sctp 0 192.0.2.1 5000 typ host", "priority '0'"),
        # libnice 0.1.23 refuses it too: a pair of priority 0 could never be told from none.
        ("candidate:1 1 udp 0 192.0.2.1 5000 typ host", "priority '0' is not a number from 1 to 2147483647"),
        ("candidate:1 1 udp 2147483648 192.0.2.1 5000 typ host", "priority '2147483648'"),
        ("candidate:1 1 udp -1 192.0.2.1 5000 typ host", "priority '-1'"),
        ("candidate:1 1 udp ١ 192.0.2.1 5000 typ host", "printable ASCII"),
        ("candidate:1 1 udp 1 192.0.2.256 5000 typ host", "is no IP address"),
        ("candidate:1 1 udp 1 192.0.2 5000 typ host", "is no IP address"),
        ("candidate:1 1 udp 1 192.0.2.1 65536 typ host", "port '65536' is not a number from 0 to 65535"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 is host", "'is' where 'typ' belongs"),
        ('candidate:1 1 udp 1 192.0.2.1 5000 typ "host"', "type '\"host\"'"),
        ("candidate:1 1 udp 1 fe80::1%eth0 65536 typ mapped", "port '65536'"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ host  generation", "separated by one space"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ srflx raddr", "raddr has no address"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ srflx raddr 10.0.0.1 rport x", "rport 'x'"),
        ("candidate:1 1 sctp 1 192.0.2.1 5000 typ srflx raddr 10.0.0.1 rport", "rport ''"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ host x " + "y" * 1000, "at most 1024 are read"),
    ],
)
def test_what_breaks_the_grammar_is_refused_with_line_and_reason(line: str, complaint: str) -> None:
    with pytest.raises(InvalidCandidate) as caught:
        Candidate.parse(line)
    assert type(caught.value) is InvalidCandidate
    assert complaint in str(caught.value)
    assert repr(line[:200]) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("candidate:1 1 sctp 1 192.0.2.1 5000 typ host", "transport 'sctp'"),
        ("candidate:1 1 TLS-TCP 1 192.0.2.1 9 typ host tcptype active", "transport 'TLS-TCP'"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ mapped", "type 'mapped'"),
        ("candidate:1 1 udp 1 fe80::1%eth0 5000 typ host", "a zone has no meaning"),
        ("candidate:1 1 udp 1 no_{name} 5000 typ host", "neither an IP address nor a host name"),
        ("candidate:1 1 udp 1 192.0.2.1 5000 typ srflx raddr x! rport 1", "'x!'"),
    ],
)
def test_what_the_grammar_leaves_open_is_told_apart(line: str, complaint: str) -> None:
    """RFC 8839, 5.1: "transport-extension = token", 'candidate-types = "host" / … / token'; others may know them."""
    with pytest.raises(UnsupportedCandidate) as caught:
        Candidate.parse(line)
    assert complaint in str(caught.value)
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize(
    ("end", "extensions"),
    [
        ("generation", (("generation", ""),)),
        ("generation ", (("generation", ""),)),
        ("ufrag EsAw generation", (("ufrag", "EsAw"), ("generation", ""))),
        ("generation  ufrag EsAw", (("generation", ""), ("ufrag", "EsAw"))),
    ],
)
def test_an_extension_may_have_an_empty_value(end: str, extensions: tuple[tuple[str, str], ...]) -> None:
    """RFC 8839, 5.1: extension-att-value = *VCHAR."""
    assert Candidate.parse(f"{HOST} {end}").extensions == extensions


@given(candidates)
def test_whatever_we_write_we_read(candidate: Candidate) -> None:
    assert Candidate.parse(candidate.to_sdp()) == candidate


@given(st.text(max_size=200))
def test_text_gives_a_candidate_or_invalid_candidate(text: str) -> None:
    try:
        candidate = Candidate.parse(text)
    except InvalidCandidate:
        return
    assert Candidate.parse(candidate.to_sdp()) == candidate


@given(
    st.lists(st.sampled_from(["1", "0", "udp", "tcp", "192.0.2.1", "::1", "typ", "host", "a.local", "raddr", "%", "-"]))
)
def test_words_in_any_order_give_a_candidate_or_invalid_candidate(words: list[str]) -> None:
    try:
        Candidate.parse("candidate:" + " ".join(words))
    except InvalidCandidate:
        return


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_damaged_lines_give_a_candidate_or_invalid_candidate(seed: int, count: int) -> None:
    rng = Random(seed)
    line = list(CHROMIUM)
    for _ in range(count):
        line[rng.randrange(len(line))] = chr(rng.choice([0x20, 0x2E, 0x3A, 0x25, 0x00, 0x39, 0xE9, 0x2028]))
    try:
        Candidate.parse("".join(line))
    except InvalidCandidate:
        return


@pytest.mark.parametrize("line", [HOST, CHROMIUM, TCP])
def test_an_independent_implementation_reads_what_we_write(line: str) -> None:
    ours = Candidate.parse(line)
    theirs = aioice.Candidate.from_sdp(ours.to_sdp().removeprefix("candidate:"))
    assert (theirs.host, theirs.port, theirs.priority, theirs.type) == (*ours.address, ours.priority, ours.type.value)
    assert Candidate.parse(theirs.to_sdp()).address == ours.address
