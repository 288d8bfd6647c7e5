"""How many questions for credentials leave, and to whom. The smaller budget of errors: tests of the STUN server."""

from __future__ import annotations

from relay.error_limits import CHALLENGE_BURST, CHALLENGES_IN_ALL, CHALLENGES_PER_SECOND, challenge_limiter


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
