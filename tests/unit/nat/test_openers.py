"""When does an opener go before a check, and what becomes of it?"""

from __future__ import annotations

import errno

import pytest

from iceagent.candidate import CandidateType
from iceagent.nat.openers import EXPIRY_S, explains, is_wanted, lead_s, opener_ttl, repeat_at


@pytest.mark.parametrize(
    ("remote", "is_mapped", "is_lite", "wanted"),
    [
        (CandidateType.SERVER_REFLEXIVE, True, False, True),
        (CandidateType.PEER_REFLEXIVE, True, False, True),
        (CandidateType.HOST, True, False, False),
        (CandidateType.RELAYED, True, False, False),
        (CandidateType.SERVER_REFLEXIVE, False, False, False),
        (CandidateType.SERVER_REFLEXIVE, True, True, False),
    ],
)
def test_only_between_two_nats(remote: CandidateType, is_mapped: bool, is_lite: bool, wanted: bool) -> None:
    assert is_wanted(remote, is_mapped=is_mapped, is_lite=is_lite) is wanted


def test_each_goes_one_hop_farther_and_the_fourth_is_the_last() -> None:
    """Never 1: that dies in our own router before it is translated, and opens nothing."""
    assert [opener_ttl(sent) for sent in range(6)] == [2, 3, 4, 5, None, None]


def test_the_lead_is_no_longer_than_ta() -> None:
    assert [lead_s(ta_s) for ta_s in (0.005, 0.050, 2.0)] == [0.005, 0.020, 0.020]


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
