"""Does anything from the network raise, or make a session grow?"""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.config import Config
from iceagent.core.session import IceSession
from iceagent.events import AgentState
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from relay.stun import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    NOMINATION,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from tests.unit.core.kit import BASE, NEXT, OURS, REMOTE, STRANGER, THEIRS, Play, remote_candidate

SOURCES = (REMOTE, STRANGER, TransportAddress("10.2.0.2", 6000), TransportAddress("2001:db8::9", 1), BASE)
OTHER_BASE = TransportAddress("10.1.0.2", 5000)
KEYS = (None, short_term_key(OURS.password), short_term_key(THEIRS.password), short_term_key(NEXT.password))

addresses = st.sampled_from(SOURCES)
values: list[Any] = [
    st.tuples(st.just(USERNAME), st.sampled_from(["oursours:theirsxx", "oursours", ":", "x:y", "nextnext:theirsxx"])),
    st.tuples(st.just(PRIORITY), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(ICE_CONTROLLING), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(ICE_CONTROLLED), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(NOMINATION), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(USE_CANDIDATE), st.just(True)),
    st.tuples(st.just(XOR_MAPPED_ADDRESS), addresses),
]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A STUN message of any class with any of our attributes, signed by anyone, perhaps damaged."""
    message = build(
        draw(st.sampled_from([Method.BINDING, Method.BINDING, Method.BINDING, Method.ALLOCATE])),
        draw(st.sampled_from(MessageClass)),
        draw(st.integers(0, 9)).to_bytes(12, "big"),
        *draw(st.lists(st.one_of(values), max_size=7)),
    )
    data = message.encode(draw(st.sampled_from(KEYS)), fingerprint=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        position = draw(st.integers(0, len(data) - 1))
        data = data[:position] + draw(st.binary(max_size=4)) + data[position + 1 :]
    return data


class Answered:
    """Stands for: answer the n-th request that the session has sent, as the peer would."""

    def __init__(self, index: int, kind: str) -> None:
        self.index = index
        self.kind = kind

    def __repr__(self) -> str:
        return f"answer #{self.index}: {self.kind}"


answers = st.builds(Answered, st.integers(0, 40), st.sampled_from(["ok", "mapped", "487", "400", "403", "empty"]))
inputs = st.lists(
    st.tuples(
        st.one_of(messages(), answers, answers, st.binary(max_size=60), st.sampled_from(["error", "wait", "restart"])),
        addresses,
        st.sampled_from([BASE, BASE, BASE, OTHER_BASE, STRANGER]),
        st.sampled_from([0.0, 0.001, 0.05, 0.5, 5.0, 31.0]),
    ),
    max_size=60,
)


def feed(play: Play, what: object, source: TransportAddress, base: TransportAddress) -> None:
    if isinstance(what, bytes):
        play.session.handle_datagram(Datagram(base, source, what), play.now)
    elif isinstance(what, Answered):
        answer(play, what)
    elif what == "error":
        play.session.handle_error(base, source, 111, play.now)
    elif what == "restart":
        play.session.restart(play.now)
        play.describe(NEXT if play.session.remote_credentials != NEXT else THEIRS, [remote_candidate()])


def answer(play: Play, what: Answered) -> None:
    sent = play.requests()
    if not sent:
        return
    _, transmit, request = sent[what.index % len(sent)]
    if what.kind in ("487", "400", "403"):
        response = request.error_response(int(what.kind), "Reason")
    elif what.kind == "empty":
        response = request.success()
    else:
        response = request.success((XOR_MAPPED_ADDRESS, STRANGER if what.kind == "mapped" else transmit.base))
    remote = play.session.remote_credentials or THEIRS
    data = response.encode(short_term_key(remote.password))
    play.session.handle_datagram(Datagram(transmit.base, transmit.destination, data), play.now)


@given(inputs, st.booleans(), st.sampled_from([Config(), Config(lite=True), Config(keep_pairs=False, max_pairs=3)]))
@settings(max_examples=150)
def test_no_input_raises_and_the_contract_holds(
    steps: list[tuple[object, TransportAddress, TransportAddress, float]], controlling: bool, config: Config
) -> None:
    """Whatever comes: no exception, no deadline in the past, bounded tables."""
    candidates = [remote_candidate(), remote_candidate(SOURCES[2], index=1)]
    play = Play(config, controlling=controlling, bases=(BASE, OTHER_BASE), remotes=candidates)
    for what, source, base, pause in steps:
        feed(play, what, source, base)
        play.drain()
        # Also drives the session through the pause; a session that is woken over and over fails here.
        play.pass_time(pause)
        at = play.session.poll_timeout()
        assert at is None or at > play.now
        assert_bounded(play.session)


def assert_bounded(session: IceSession) -> None:
    assert len(session.pairs) <= session.config.max_pairs
    assert len(session.remote_candidates) <= 2 + session.config.max_peer_reflexive
    assert len(session._checker._table) <= 16 * (session.config.max_pairs + 1)
    for pair in session.pairs:
        assert pair.main is None or pair.main in pair.transactions
        assert not (pair.dead and pair.is_valid)
    current = session.current()
    assert current is None or not current.dead


@given(st.binary(max_size=100), addresses)
def test_bytes_never_raise(data: bytes, source: TransportAddress) -> None:
    play = Play(controlling=False)
    play.session.handle_datagram(Datagram(BASE, source, data), 0.0)
    play.session.handle_datagram(Datagram(BASE, source, b"\x00\x01" + data[2:]), 0.0)
    play.drain()


@pytest.mark.parametrize("seed", range(5))
def test_damaged_checks_never_raise_and_change_nothing(seed: int) -> None:
    """A signed request with flipped bytes is a stranger's."""
    rng = Random(seed)
    play = Play(controlling=False)
    good = bytearray(play.request((USE_CANDIDATE, True)))
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if bytes(data) != bytes(good) and not _is_equivalent(bytes(data), bytes(good)):
            play.session.handle_datagram(Datagram(BASE, STRANGER, bytes(data)), play.now)
    play.drain()
    assert all(pair.destination != STRANGER for pair in play.session.pairs)
    assert play.session.state is AgentState.CHECKING


def _is_equivalent(data: bytes, good: bytes) -> bool:
    """Whether the damage is in the fingerprint's place only and turned it into something else that is ignored."""
    with contextlib.suppress(Exception):  # what cannot be parsed is not equivalent
        return parse(data).verify(short_term_key(OURS.password)) and data[:-8] == good[:-8]
    return False


def test_a_flood_of_authentic_checks_leaves_bounded_tables() -> None:
    """The credentials leaked, or the peer is mad: 20,000 requests from 20,000 addresses."""
    play = Play(controlling=False)
    for number in range(20_000):
        source = TransportAddress(f"203.0.{number >> 8}.{number & 255}", 1)
        play.session.handle_datagram(Datagram(BASE, source, play.request()), number / 1000)
        if number % 100 == 0:
            play.now = number / 1000
            play.drain()
            play.sent.clear()
            play.events.clear()
    session = play.session
    assert len(session.pairs) <= 100
    assert len(session.peers(BASE)) <= 1024
    assert len(session.remote_candidates) == 1 + 32
    assert len(session._checker._table) <= 16 * 101
    assert len(session._scheduler._early) <= 100
    assert len(session._scheduler._deferred) <= 100
    assert len(session._budget._answered) <= 2048


def test_events_that_nobody_takes_are_bounded() -> None:
    play = Play(controlling=False)
    for _ in range(12_000):
        play.session.handle_datagram(Datagram(BASE, STRANGER, b"\x00\x01garbage"), 0.0)
    count = 0
    while play.session.poll_event() is not None:
        count += 1
    assert count <= 10_000


def test_the_phrases_of_dropped_packets_are_a_fixed_set() -> None:
    """Counters are keyed by them; a key made of network input would grow."""
    rng = Random(7)
    play = Play(controlling=False)
    for _ in range(3000):
        data = bytearray(play.request(signed=rng.random() < 0.5))
        if rng.random() < 0.7:
            data[rng.randrange(len(data))] = rng.randrange(256)
        play.session.handle_datagram(Datagram(BASE, rng.choice(SOURCES), bytes(data)), rng.random() * 100)
        play.drain()
        play.sent.clear()
    assert len(play.session.counters) <= 12, play.session.counters
