"""When does an opener go before a check, and what becomes of it?"""

from __future__ import annotations

import errno

import pytest

from iceagent.candidate import Candidate, CandidateType
from iceagent.nat.openers import EXPIRY_S, explains, is_outside, is_wanted, lead_s, opener_ttl, repeat_at
from iceagent.net.address import TransportAddress


@pytest.mark.parametrize(
    ("base", "remote", "wanted"),
    [
        ("192.168.1.2", CandidateType.SERVER_REFLEXIVE, True),
        ("192.168.1.2", CandidateType.PEER_REFLEXIVE, True),
        ("192.168.1.2", CandidateType.HOST, False),
        ("192.168.1.2", CandidateType.RELAYED, False),
        ("20.0.0.1", CandidateType.SERVER_REFLEXIVE, True),
        ("127.0.0.1", CandidateType.SERVER_REFLEXIVE, False),
        ("::1", CandidateType.SERVER_REFLEXIVE, False),
    ],
)
def test_only_to_reflexive_addresses_and_not_from_loopback(base: str, remote: CandidateType, wanted: bool) -> None:
    assert is_wanted(TransportAddress(base, 5000), remote) is wanted


@pytest.mark.parametrize(
    ("remote", "outside"),
    [
        ("192.168.1.2 5000 typ host", False),
        ("100.64.0.2 5000 typ host", False),
        ("20.0.0.1 5000 typ host", True),
        ("2620:1::1 5000 typ host", True),
        ("fe80::1 5000 typ host", False),
        ("name.local 5000 typ host", False),
        ("100.64.0.2 5000 typ srflx raddr 192.168.1.2 rport 5000", True),
        ("20.0.0.1 5000 typ relay raddr 0.0.0.0 rport 9", False),
    ],
)
def test_what_passes_our_nat(remote: str, outside: bool) -> None:
    assert is_outside(Candidate.parse(f"candidate:1 1 udp 1 {remote}")) is outside


def test_each_goes_one_hop_farther_and_the_fourth_is_the_last() -> None:
    """Never 1: that dies in our own router before it is translated, and opens nothing."""
    assert [opener_ttl(sent) for sent in range(6)] == [2, 3, 4, 5, None, None]


def test_the_lead_is_no_longer_than_ta() -> None:
    assert [lead_s(ta_s) for ta_s in (0.005, 0.050, 2.0)] == [0.005, 0.010, 0.010]


def test_where_no_check_follows_the_second_is_the_last() -> None:
    """100 ms after the first, with TTL 3; farther ones could knock at the NAT of a peer that has not opened it yet."""
    delays = (0.1, 0.2, 0.4)
    assert repeat_at(1, 10.0, delays) == 10.1
    assert repeat_at(2, 10.1, delays) is None
    assert repeat_at(1, 10.0, ()) is None


def test_host_unreachable_is_an_openers_end_for_a_second() -> None:
    assert explains(errno.EHOSTUNREACH, 10.0, 10.0 + EXPIRY_S - 0.001)
    assert not explains(errno.EHOSTUNREACH, 10.0, 10.0 + EXPIRY_S)
    assert not explains(errno.EHOSTUNREACH, None, 10.0)
    assert not explains(errno.ECONNREFUSED, 10.0, 10.0)
