"""20,000 mutated messages; ``python -m tests.fuzz.run_stun --count 1000000`` does the long run."""

from __future__ import annotations

import random

import pytest

from relay.stun import ATTRIBUTES, parse
from tests.fuzz.mutate import KEY, check, corpus, mutate, run


def test_corpus_is_well_formed_and_has_every_attribute() -> None:
    messages = [parse(data) for data in corpus()]
    assert len(messages) == 63
    assert {code for message in messages for code, _ in message.attributes} == set(ATTRIBUTES)
    assert {check(data) for data in corpus()} == {"accepted"}
    assert sum(message.verify(KEY) for message in messages) == 42
    assert sum(message.verify_sha256(KEY) for message in messages) == 21


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_refused_by_name_or_accepted_and_written_again(seed: int) -> None:
    """Nothing but BadMessage comes out of the parser, and what it accepts can be written."""
    outcome = run(5000, seed)
    assert outcome.total() == 5000
    assert outcome["accepted"] > 250, "mutants that reach the inside are the point of it"
    assert outcome["header"] > 250
    refusing = set(outcome) - {"accepted", "header", "unknown attribute"}
    assert len(refusing) > 25, "attributes that refused something"


def test_mutants_are_repeatable() -> None:
    seeds = corpus()

    def some(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutate(rng.choice(seeds), seeds, rng) for _ in range(100)]

    assert some(1) == some(1)
    assert some(1) != some(2)
