"""How many questions for credentials leave, and to whom. The smaller budget of errors: tests of the STUN server."""

from __future__ import annotations

from relay.error_limits import (
    CHALLENGE_BURST,
    CHALLENGES_IN_ALL,
    CHALLENGES_PER_SECOND,
    ErrorLimiter,
    challenge_limiter,
)


def network(number: int) -> str:
    return f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.9"


def test_a_network_has_a_burst_and_a_rate() -> None:
    limiter = challenge_limiter()
    assert sum(limiter.admits("198.18.0.1", 0.0) for _ in range(1000)) == CHALLENGE_BURST
    assert sum(limiter.admits(f"198.18.0.{step % 250}", step / 500) for step in range(1, 5001)) == (
        CHALLENGES_PER_SECOND * 10
    )
    assert limiter.admits("198.18.1.1", 10.0) and len(limiter) == 2
    assert limiter.admits("198.18.2.1", 10.0 + CHALLENGE_BURST / CHALLENGES_PER_SECOND) and len(limiter) == 1


def test_all_networks_together_have_one_as_well() -> None:
    """Nobody is forgotten for it, and what is remembered is bounded by it."""
    limiter = challenge_limiter()
    for second in range(12):
        first = second * 10_000
        admitted = sum(limiter.admits(network(number), float(second)) for number in range(first, first + 10_000))
        assert admitted == CHALLENGES_IN_ALL
        assert len(limiter) == min(second + 1, 5) * CHALLENGES_IN_ALL
    # Who was refused for the others' sake is none the poorer for it.
    assert sum(limiter.admits("198.18.0.1", 11.0) for _ in range(10)) == 0
    assert sum(limiter.admits("198.18.0.1", 12.0) for _ in range(1000)) == CHALLENGE_BURST


def test_several_at_once_count_as_so_many() -> None:
    """As many as asked one by one, whichever of the two budgets ends first."""
    limiter = ErrorLimiter(10, 100, burst=30, in_all=50, ipv4_bits=32)
    assert limiter.admits_of(20, "198.18.0.1", 0.0) == 20
    assert limiter.admits_of(20, "198.18.0.1", 0.0) == 10
    assert limiter.admits_of(25, "198.18.0.2", 0.0) == 20
    assert limiter.admits_of(25, "198.18.0.3", 0.0) == 0
    assert limiter.admits_of(0, "198.18.0.3", 1.0) == 0 and len(limiter) == 2
    assert limiter.admits_of(100, "198.18.0.1", 1.0) == 10


def test_a_network_may_be_one_address() -> None:
    wide, narrow = ErrorLimiter(1, 100), ErrorLimiter(1, 100, ipv4_bits=32)
    hosts = ["198.18.0.1", "198.18.0.2", "2001:db8::1", "2001:db8:0:ff::1", "2001:db8:0:100::1"]
    assert [wide.admits(host, 0.0) for host in hosts] == [True, False, True, False, True]
    assert [narrow.admits(host, 0.0) for host in hosts] == [True, True, True, False, True]
