"""Clients of RFC 3489 (RFC 8489, 12; RFC 5389, 12.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from relay.stun import classic_response
from relay.stun_server import StunServer

SOURCE = TransportAddress("192.0.2.7", 40000)
BASE = TransportAddress("198.51.100.1", 3478)
IDENTITY = bytes(range(0x30, 0x40))
PLAIN = bytes.fromhex("0001 0000") + IDENTITY


def test_it_copies_sixteen_bytes_and_says_the_address_in_clear() -> None:
    answer = classic_response(PLAIN, SOURCE)
    assert answer == bytes.fromhex("0101 000c") + IDENTITY + bytes.fromhex("0001 0008 0001 9c40 c000 0207")


def test_over_ipv6_too() -> None:
    answer = classic_response(PLAIN, TransportAddress("2001:db8::7", 40000))
    assert answer is not None
    assert answer[20:] == bytes.fromhex("0001 0014 0002 9c40 20010db8 00000000 00000000 00000007")


@pytest.mark.parametrize(
    ("attributes", "is_answered"),
    [
        ("0003 0004 00000000", True),
        ("0003 0004 00000006", False),
        ("0002 0008 0001 0035 08080808", False),
        ("8022 0005 61626364 65000000", True),
        ("8022 0009 61626364 65000000", False),
    ],
    ids=["asks for nothing", "answer from elsewhere", "answer to elsewhere", "SOFTWARE", "too long"],
)
def test_what_it_cannot_do_it_does_not_pretend(attributes: str, is_answered: bool) -> None:
    body = bytes.fromhex(attributes)
    request = bytes.fromhex("0001") + len(body).to_bytes(2, "big") + IDENTITY + body
    assert (classic_response(request, SOURCE) is not None) is is_answered


def test_the_server_answers_on_datagram_sockets_only() -> None:
    server, stream = StunServer(), StunServer(is_stream=True)
    for core in (server, stream):
        core.handle_datagram(Datagram(BASE, SOURCE, PLAIN), now=1.0)
    transmit = server.poll_transmit()
    assert transmit is not None and transmit.destination == SOURCE and len(transmit.data) == 32
    assert stream.poll_transmit() is None
    assert stream.counters["dropped: not STUN"] == 1


@given(
    st.binary(max_size=80)
    | st.binary(max_size=60).map(lambda tail: PLAIN[:2] + len(tail).to_bytes(2) + IDENTITY + tail)
)
def test_no_bytes_make_it_raise_or_amplify(data: bytes) -> None:
    answer = classic_response(data, SOURCE)
    assert answer is None or len(answer) <= 1.6 * len(data)
