"""Are the two rules for a gateway's epoch those of RFC 6887, 8.5, and RFC 6886, 3.6?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portmap.epoch import NatPmpEpoch, PcpEpoch


@pytest.mark.parametrize(
    ("elapsed", "server_delta", "is_valid"),
    [
        # "going backwards by up to one second is not deemed invalid".
        (0, -1, True),
        (0, -2, False),
        (0, 0, True),
        (0, 2, True),
        (0, 3, False),
        # client_delta + 2 < server_delta - server_delta / 16.
        (1000, 1066, True),
        (1000, 1068, True),
        (1000, 1069, False),
        # server_delta + 2 < client_delta - client_delta / 16.
        (1000, 936, True),
        (1000, 935, False),
        (1000, 0, False),
        (3, 0, False),
        (2, 0, True),
    ],
)
def test_pcp_compares_both_clocks_with_a_sixteenth_and_two_seconds(
    elapsed: int, server_delta: int, is_valid: bool
) -> None:
    epoch = PcpEpoch()
    assert epoch.is_valid(5000, 100.0)
    assert epoch.is_valid(5000 + server_delta, 100.0 + elapsed) is is_valid


def test_pcp_calculates_with_integers() -> None:
    """ "using integer arithmetic": 31/16 is 1; both clocks are cut to whole seconds."""
    epoch = PcpEpoch()
    epoch.is_valid(0, 0.9)
    # client_delta is 31, less 1; server_delta + 2 is 30.
    assert epoch.is_valid(28, 31.0)
    epoch = PcpEpoch()
    epoch.is_valid(0, 0.9)
    assert not epoch.is_valid(27, 31.0)


def test_pcp_believes_the_first_epoch_whatever_it_is() -> None:
    assert PcpEpoch().is_valid(2**32 - 1, 0.0)


def test_pcp_records_an_invalid_epoch_for_the_next_comparison() -> None:
    epoch = PcpEpoch()
    epoch.is_valid(5000, 100.0)
    assert not epoch.is_valid(0, 110.0)
    assert epoch.is_valid(10, 120.0)


@pytest.mark.parametrize(
    ("elapsed", "server_delta", "is_valid"),
    [
        (0.0, 0, True),
        (0.0, -2, True),
        (0.0, -3, False),
        # 7/8 of 800 s is 700 s.
        (800.0, 698, True),
        (800.0, 697, False),
        (800.0, 5000, True),
    ],
)
def test_nat_pmp_wants_seven_eighths_of_the_time_less_two_seconds(
    elapsed: float, server_delta: int, is_valid: bool
) -> None:
    epoch = NatPmpEpoch()
    assert epoch.is_valid(5000, 100.0)
    assert epoch.is_valid(5000 + server_delta, 100.0 + elapsed) is is_valid


def test_nat_pmp_compares_with_the_last_packet_not_with_the_first() -> None:
    epoch = NatPmpEpoch()
    epoch.is_valid(5000, 100.0)
    assert not epoch.is_valid(0, 200.0)
    assert epoch.is_valid(88, 300.0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-0.03, 0.03)), min_size=1, max_size=50), st.floats(0, 1e6))
def test_a_gateway_that_was_not_restarted_is_never_suspected(steps: list[tuple[float, float]], start: float) -> None:
    """RFC 6887, 8.5: "if one clock were to run too fast by 3% while the other clock ran too slow by 3%"."""
    pcp, nat_pmp = PcpEpoch(), NatPmpEpoch()
    now, server = start, 0.0
    for elapsed, drift in steps:
        now, server = now + elapsed, server + elapsed * (1 + drift)
        assert pcp.is_valid(int(server), now)
        assert nat_pmp.is_valid(int(server), now)


@given(st.floats(20, 1e6), st.floats(0, 1e6), st.floats(0, 3))
def test_a_restart_is_always_noticed_at_once(uptime: float, start: float, later: float) -> None:
    pcp, nat_pmp = PcpEpoch(), NatPmpEpoch()
    for epoch in (pcp, nat_pmp):
        assert epoch.is_valid(int(uptime), start)
        assert not epoch.is_valid(int(later), start + later + 5)
