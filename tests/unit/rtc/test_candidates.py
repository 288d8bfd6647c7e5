"""How are candidates written for aiortc and for browsers, and read back?"""

from __future__ import annotations

import json
from typing import Any

import aioice
import hypothesis.strategies as st
import pytest
from aiortc import RTCIceCandidate
from hypothesis import given

from iceagent import Candidate, CandidateType, InvalidCandidate, TransportAddress, UnsupportedCandidate
from iceagent.rtc import candidate_from_json, candidate_to_json
from iceagent.rtc.candidates import from_aioice, to_aioice, to_aiortc

# As Chromium, Firefox and Safari write them.
CHROMIUM = {
    "candidate": "candidate:2999745851 1 udp 2113937151 6b2e4c8e-3d67-4c5b-9f7a-0c1e5a7b9d21.local 51556 typ host "
    "generation 0 ufrag 4ZcD network-cost 999",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
    "usernameFragment": "4ZcD",
}
CHROMIUM_SRFLX = {
    "candidate": "candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 0.0.0.0 rport 0 generation 0 "
    "ufrag 4ZcD network-id 1 network-cost 10",
    "sdpMid": "audio",
    "sdpMLineIndex": 1,
    "usernameFragment": "4ZcD",
}
CHROMIUM_TCP = {
    "candidate": "candidate:3471623853 1 tcp 1518280447 192.168.1.5 9 typ host tcptype active generation 0 ufrag 4ZcD",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
}
FIREFOX = {
    "candidate": "candidate:0 1 UDP 2122252543 2001:db8::5 58812 typ host",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
    "usernameFragment": "0a1b2c3d",
}
FIREFOX_RELAY = {
    "candidate": "candidate:3 1 UDP 92086015 198.51.100.9 60999 typ relay raddr 203.0.113.7 rport 52000",
    "sdpMid": "1",
    "sdpMLineIndex": None,
}


def read(value: dict[str, Any]) -> RTCIceCandidate:
    candidate = candidate_from_json(value)
    assert candidate is not None
    return candidate


def test_a_host_candidate_of_chromium_with_a_name_for_its_address() -> None:
    assert read(CHROMIUM) == RTCIceCandidate(
        foundation="2999745851",
        component=1,
        protocol="udp",
        priority=2113937151,
        ip="6b2e4c8e-3d67-4c5b-9f7a-0c1e5a7b9d21.local",
        port=51556,
        type="host",
        sdpMid="0",
        sdpMLineIndex=0,
    )


def test_a_reflexive_candidate_that_hides_its_base() -> None:
    candidate = read(CHROMIUM_SRFLX)
    assert (candidate.type, candidate.ip, candidate.port) == ("srflx", "203.0.113.7", 46154)
    assert (candidate.relatedAddress, candidate.relatedPort) == ("0.0.0.0", 0)
    assert (candidate.sdpMid, candidate.sdpMLineIndex) == ("audio", 1)


def test_candidates_of_firefox() -> None:
    candidate = read(FIREFOX)
    assert (candidate.protocol, candidate.ip) == ("udp", "2001:db8::5")
    candidate = read(FIREFOX_RELAY)
    assert (candidate.type, candidate.relatedAddress, candidate.relatedPort) == ("relay", "203.0.113.7", 52000)
    assert (candidate.sdpMid, candidate.sdpMLineIndex) == ("1", None)


def test_a_tcp_candidate_is_read_and_written_whole() -> None:
    """RFC 6544, 4.5: ``tcptype`` MUST be there."""
    candidate = read(CHROMIUM_TCP)
    assert (candidate.protocol, candidate.tcpType) == ("tcp", "active")
    written = candidate_to_json(candidate)
    assert written is not None
    assert written["candidate"].endswith("192.168.1.5 9 typ host tcptype active")


@pytest.mark.parametrize("value", [None, {"candidate": "", "sdpMid": "0", "sdpMLineIndex": 0}, {"candidate": ""}])
def test_the_end_of_candidates(value: dict[str, Any] | None) -> None:
    """W3C, 4.8.1.3: an empty line; some applications send ``null``."""
    assert candidate_from_json(value) is None
    assert candidate_to_json(None) is None


@pytest.mark.parametrize("prefix", ["", "candidate:", "a=candidate:"])
def test_the_prefix_is_optional(prefix: str) -> None:
    line = str(FIREFOX["candidate"]).removeprefix("candidate:")
    assert read({**FIREFOX, "candidate": prefix + line}) == read(FIREFOX)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"candidate": None, "sdpMid": "0"},
        {"candidate": 7, "sdpMid": "0"},
        {"candidate": ["candidate:"], "sdpMid": "0"},
        {**FIREFOX, "sdpMid": None, "sdpMLineIndex": None},
        {"candidate": FIREFOX["candidate"]},
        {**FIREFOX, "sdpMid": 0},
        {**FIREFOX, "sdpMLineIndex": "0"},
        {**FIREFOX, "sdpMLineIndex": 0.5},
        {**FIREFOX, "sdpMid": None, "sdpMLineIndex": -1},
        {**FIREFOX, "sdpMid": None, "sdpMLineIndex": True},
    ],
)
def test_an_object_that_is_none_is_a_value_error(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        candidate_from_json(value)


@pytest.mark.parametrize(
    "line",
    [
        "candidate:",
        "nonsense",
        "candidate:1 1 udp 1 192.0.2.1 9 typ",
        "candidate:1 0 udp 1 192.0.2.1 9 typ host",
        "candidate:1 1 udp 0 192.0.2.1 9 typ host",
        "candidate:1 1 udp 1 192.0.2.1 65536 typ host",
        "candidate:1 1 udp 1 192.0.2.256 9 typ host",
        "candidate:1 1 udp 1  192.0.2.1 9 typ host",
        "candidate:!! 1 udp 1 192.0.2.1 9 typ host",
        "candidate:1 1 udp 1 192.0.2.1 9 typ host\r\na=candidate:2 1 udp 1 192.0.2.1 9 typ host",
        "candidate:" + "1" * 100_000 + " 1 udp 1 192.0.2.1 9 typ host",
    ],
)
def test_a_malformed_line_is_refused_in_few_words(line: str) -> None:
    with pytest.raises(InvalidCandidate) as caught:
        candidate_from_json({"candidate": line, "sdpMid": "0"})
    assert len(str(caught.value)) < 400
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("words", ["sctp 1 192.0.2.1 9 typ host", "udp 1 192.0.2.1 9 typ newer"])
def test_a_line_of_an_unknown_kind_may_be_ignored(words: str) -> None:
    """RFC 8839, 5.1."""
    with pytest.raises(UnsupportedCandidate):
        candidate_from_json({"candidate": f"candidate:1 1 {words}", "sdpMid": "0"})


# --- round trips -------------------------------------------------------------------------------------------------

HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str), st.uuids().map(lambda name: f"{name}.local")
)
ADDRESSES = st.builds(TransportAddress, HOSTS, st.integers(0, 65535))
CANDIDATES = st.builds(
    Candidate,
    foundation=st.text("abcXYZ019+/", min_size=1, max_size=32),
    component=st.integers(1, 256),
    priority=st.integers(1, 2**31 - 1),
    address=ADDRESSES,
    type=st.sampled_from(CandidateType),
    related_address=st.none() | ADDRESSES,
)


@given(CANDIDATES)
def test_ours_to_aioices_and_back(candidate: Candidate) -> None:
    # An IPv6 address has one spelling in what is read.
    candidate = Candidate.parse(candidate.to_sdp())
    theirs = to_aioice(candidate)
    assert from_aioice(theirs) == candidate
    assert to_aioice(from_aioice(aioice.Candidate.from_sdp(theirs.to_sdp()))).to_sdp() == theirs.to_sdp()


@given(CANDIDATES, st.none() | st.text(max_size=8), st.integers(0, 20))
def test_ours_to_json_and_back(candidate: Candidate, mid: str | None, index: int) -> None:
    candidate = Candidate.parse(candidate.to_sdp())
    theirs = to_aiortc(candidate, mid, index)
    assert candidate_from_json(json.loads(json.dumps(candidate_to_json(theirs)))) == theirs
    written = candidate_to_json(theirs)
    assert written == {"candidate": candidate.to_sdp(), "sdpMid": mid, "sdpMLineIndex": index}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.lists(
    st.sampled_from(
        ["candidate:1", "1", "udp", "tcp", "99", "192.0.2.1", "::1", "x.local", "typ", "host", "raddr", ""]
    ),
    max_size=14,
).map(" ".join)


@given(st.fixed_dictionaries({}, optional={"candidate": WORDS | JSON, "sdpMid": JSON, "sdpMLineIndex": JSON}))
def test_whatever_comes_is_a_candidate_an_end_or_a_value_error(value: dict[str, Any]) -> None:
    try:
        candidate = candidate_from_json(value)
    except ValueError:
        return
    assert candidate is None or candidate_from_json(candidate_to_json(candidate)) == candidate
