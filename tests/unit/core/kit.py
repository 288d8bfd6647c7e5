"""One session, and a peer played by hand: every packet of the peer is built in the test."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.context import Context, Keys
from iceagent.core.pacing import TokenBucket
from iceagent.core.session import IceSession
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.events import AgentState
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.stun import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    PRIORITY,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from tests.sim.world import host_candidate

BASE = TransportAddress("10.1.0.1", 5000)
REMOTE = TransportAddress("10.2.0.1", 6000)
STRANGER = TransportAddress("203.0.113.66", 666)
OURS = Credentials(ufrag="oursours", password="o" * 32)
THEIRS = Credentials(ufrag="theirsxx", password="t" * 32)
NEXT = Credentials(ufrag="nextnext", password="n" * 32)

Pair = tuple[Attribute[Any], Any]


def remote_candidate(address: TransportAddress = REMOTE, *, index: int = 0, component: int = 1) -> Candidate:
    return Candidate.parse(host_candidate(address, index=index, component=component).to_sdp())


def context(config: Config | None = None, *, controlling: bool = True, tie_breaker: int = 1000) -> Context:
    """A context whose both credentials are known."""
    return Context(
        config=config or Config(),
        rng=Random(1),
        system_rng=Random(2),
        controlling=controlling,
        tie_breaker=tie_breaker,
        keys=Keys.of(OURS, THEIRS),
    )


class Play:
    """A session and its hand-played peer.

    Attributes:
        session: under test.
        sent: what it sent so far, with its time.
        events: what it said so far.
        now: seconds.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        controlling: bool = True,
        remotes: Sequence[Candidate] | None = None,
        bases: Sequence[TransportAddress] = (BASE,),
        described: bool = True,
        ceiling: TokenBucket | None = None,
    ) -> None:
        self.session = IceSession(
            config=config or Config(),
            controlling=controlling,
            rng=Random(1),
            system_rng=Random(2),
            ceiling=ceiling,
            credentials=OURS,
        )
        self.now = 0.0
        self.sent: list[tuple[float, Transmit]] = []
        self.events: list[Event] = []
        self._count = 0
        for index, base in enumerate(bases):
            self.session.add_local_candidate(host_candidate(base, index=index), self.now)
        self.session.end_local_candidates(self.now)
        if described:
            self.describe(THEIRS, (remote_candidate(),) if remotes is None else remotes)
        self.drain()

    def describe(self, credentials: Credentials, remotes: Sequence[Candidate] = (), **more: Any) -> None:
        description = Description(credentials=credentials, candidates=tuple(remotes), complete=True, **more)
        self.session.set_remote_description(description, self.now)
        self.drain()

    def drain(self) -> None:
        while (transmit := self.session.poll_transmit()) is not None:
            self.sent.append((self.now, transmit))
        while (event := self.session.poll_event()) is not None:
            self.events.append(event)

    def pass_time(self, seconds: float) -> None:
        """Wake the session whenever it asks to be woken, until so much time has passed."""
        end = self.now + seconds
        for _ in range(100_000):
            at = self.session.poll_timeout()
            if at is None or at > end:
                self.now = end
                return
            self.now = max(self.now, at)
            self.session.handle_timeout(self.now)
            self.drain()
        raise AssertionError(f"the session is woken over and over at {self.now}")

    def requests(self, since: int = 0) -> list[tuple[float, Transmit, Message]]:
        """The requests among what was sent: time, datagram, message."""
        parsed = [(at, transmit, parse(transmit.data)) for at, transmit in self.sent[since:]]
        return [(at, transmit, message) for at, transmit, message in parsed if message.is_request]

    def deliver(
        self, data: bytes, *, source: TransportAddress = REMOTE, base: TransportAddress = BASE
    ) -> list[Message]:
        """Give the session a datagram, and return the responses it sent because of it."""
        since = len(self.sent)
        self.session.handle_datagram(Datagram(base, source, data), self.now)
        self.drain()
        messages = [parse(transmit.data) for _, transmit in self.sent[since:]]
        return [message for message in messages if not message.is_request]

    def answer(
        self,
        request: Message,
        *,
        mapped: TransportAddress | None = BASE,
        source: TransportAddress = REMOTE,
        base: TransportAddress = BASE,
        password: str = THEIRS.password,
        error: tuple[int, str] | None = None,
    ) -> None:
        """Answer a request of the session."""
        if error is not None:
            response = request.error_response(*error)
        else:
            response = request.success(*([] if mapped is None else [(XOR_MAPPED_ADDRESS, mapped)]))
        self.deliver(response.encode(short_term_key(password)), source=source, base=base)

    def check(
        self,
        *extra: Pair,
        source: TransportAddress = REMOTE,
        base: TransportAddress = BASE,
        credentials: Credentials = OURS,
        ufrag: str = THEIRS.ufrag,
    ) -> Message:
        """Send a check as the peer would, in the opposite role, and return the answer."""
        answers = self.deliver(self.request(*extra, credentials=credentials, ufrag=ufrag), source=source, base=base)
        (answer,) = answers
        return answer

    def request(
        self,
        *extra: Pair,
        credentials: Credentials = OURS,
        ufrag: str = THEIRS.ufrag,
        priority: int | None = 1862270975,
        role: bool = True,
        username: bool = True,
        key: IntegrityKey | None = None,
        signed: bool = True,
        method: int = Method.BINDING,
    ) -> bytes:
        """The bytes of a check; every part can be left out."""
        self._count += 1
        pairs: list[Pair] = []
        if username:
            pairs.append((USERNAME, f"{credentials.ufrag}:{ufrag}"))
        if priority is not None:
            pairs.append((PRIORITY, priority))
        if role:
            pairs.append((ICE_CONTROLLED if self.session.controlling else ICE_CONTROLLING, 7))
        identity = self._count.to_bytes(12, "big")
        message = build(method, MessageClass.REQUEST, identity, *pairs, *extra)
        return message.encode((key or short_term_key(credentials.password)) if signed else None)

    def state(self) -> AgentState:
        """The session's state now."""
        return self.session.state

    def events_of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
