"""Two ICE sessions on a simulated network: how every test of this folder begins.

A :class:`World` has two hosts, ``a`` (controlling) and ``b``, each with any number of addresses and behind any
middlebox, and a STUN server on the Internet between them. :meth:`World.gather` finds the candidates as a gatherer
would: host addresses, and what the STUN server sees of them. :meth:`World.signal` is the signalling channel: instant,
or later where a test says so.

``assert condition, world`` prints the seed and the last packets when the condition does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.core.pair import CandidatePair
from iceagent.core.session import IceSession
from iceagent.core.wakeups import WakeUps
from iceagent.description import Description
from iceagent.events import AgentState, SelectedPathChanged, StateChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.priority import candidate_priority
from iceagent.testing.nat import Middlebox
from iceagent.testing.network import Network, Node
from iceagent.testing.peers import Peer, SessionPair
from iceagent.testing.stun_server import StunServerNode, add_stun_server
from relay.stun import XOR_MAPPED_ADDRESS, Message, MessageClass, Method, build, is_stun, parse

SERVER = TransportAddress("198.51.100.1", 3478)
HOSTS_A = ("10.1.0.1",)
HOSTS_B = ("10.2.0.1",)
EXTERNAL_A = "20.0.1.1"
EXTERNAL_B = "20.0.2.1"
PORT = 5000
TRACE_LINES = 60
# Attempts of one STUN question; with 10 % loss each way and link, a fifth one is never needed in practice.
MAX_QUESTIONS = 10
QUESTION_S = 0.5

EventT = TypeVar("EventT", bound=Event)


@dataclass(eq=False)
class Side:
    """One end.

    Attributes:
        bases: its sockets.
        options: more ice-options of its description.
    """

    peer: Peer[IceSession]
    node: Node
    bases: list[TransportAddress]
    options: tuple[str, ...] = ()

    @property
    def session(self) -> IceSession:
        return self.peer.core

    def state(self) -> AgentState:
        """Its state now."""
        return self.session.state

    def events(self, kind: type[EventT]) -> list[EventT]:
        """Events of one kind, in order."""
        return [event for event in self.peer.events if isinstance(event, kind)]

    def states(self) -> list[AgentState]:
        """Every state it moved to, in order."""
        return [event.new for event in self.events(StateChanged)]

    def path_reasons(self, component: int = 1) -> list[str]:
        """Why data moved, each time."""
        return [event.reason for event in self.events(SelectedPathChanged) if event.component == component]

    def description(self, *, complete: bool = True, candidates: bool = True) -> Description:
        """What this side signals now."""
        session = self.session
        return Description(
            credentials=session.local_credentials,
            options=("trickle", "ice2", "renomination", *self.options),
            pacing_ms=round(session.config.ta_s * 1000),
            lite=session.config.lite,
            candidates=tuple(_signalled(c) for c in session.local_candidates) if candidates else (),
            complete=complete,
        )

    @property
    def is_connected(self) -> bool:
        return self.session.state is AgentState.CONNECTED

    @property
    def is_settled(self) -> bool:
        """Connected, and every component's nominated pair is the one in use."""
        session = self.session
        numbers = range(1, session.config.components + 1)
        return self.is_connected and all(
            session.selected(n) is not None and session.selected(n) is session.current(n) for n in numbers
        )


@dataclass(eq=False)
class World:
    """Two sides and what is between them."""

    pair: SessionPair[IceSession, IceSession]
    a: Side
    b: Side
    server: Peer[StunServerNode]
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def network(self) -> Network:
        return self.pair.network

    @property
    def now(self) -> float:
        return self.pair.now

    def __repr__(self) -> str:
        lines = [*self.notes, self.pair.trace(last=TRACE_LINES)]
        for side in (self.a, self.b):
            session = side.session
            lines.append(f"{side.peer.name}: {session.state.value} ({session.state_reason}) on {session.current()}")
            lines += [f"    {pair}" for pair in session.pairs[:20]]
        return "\n".join([f"seed {self.seed}, {self.now:.4f} s", *lines])

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    # --- candidates and signalling ---------------------------------------------------------------------------------

    def gather(self, *, reflexive: bool = True, sides: Sequence[Side] = ()) -> None:
        """Find candidates on both sides, as two gatherers would, and say that there are no more."""
        for side in sides or (self.a, self.b):
            found = [self._host_candidates(side, n) for n in range(1, side.session.config.components + 1)]
            candidates = [candidate for component in found for candidate in component]
            if reflexive and side.node.link.realm is not self.network.internet:
                candidates += [c for each in list(candidates) if (c := self._reflexive(side, each)) is not None]
            for candidate in candidates:
                side.session.add_local_candidate(candidate, self.now)
            side.session.end_local_candidates(self.now)

    def _host_candidates(self, side: Side, component: int) -> list[Candidate]:
        bases = [base for base in side.bases if base.port == PORT + component - 1]
        return [host_candidate(base, component=component, index=i) for i, base in enumerate(bases)]

    def _reflexive(self, side: Side, candidate: Candidate) -> Candidate | None:
        mapped = self._ask_server(side.node, candidate.address)
        return None if mapped is None or mapped == candidate.address else reflexive_candidate(candidate, mapped)

    def _ask_server(self, node: Node, base: TransportAddress) -> TransportAddress | None:
        """One Binding request through whatever NATs there are, repeated until it is answered."""
        for attempt in range(MAX_QUESTIONS):
            identity = bytes([attempt, *base.port.to_bytes(2, "big"), *self.seed.to_bytes(9, "big")])
            request = build(Method.BINDING, MessageClass.REQUEST, identity).encode()
            self.network.send(node, Transmit(base, SERVER, request), self.now)
            end = self.now + QUESTION_S
            while (at := self.network.poll_timeout()) is not None and at <= end:
                self.pair.now = max(self.now, at)
                for receiver, datagram in self.network.deliver(self.now):
                    answer = self._on_gathering(receiver, datagram, node)
                    if answer is not None:
                        return answer
            self.pair.now = end
        return None

    def _on_gathering(self, receiver: Node, datagram: Datagram, asker: Node) -> TransportAddress | None:
        if receiver is self.server.node:
            self.server.handle_datagram(datagram, self.network, self.now)
        elif receiver is asker and is_stun(datagram.data):
            return parse(datagram.data).get(XOR_MAPPED_ADDRESS)
        return None

    def signal(self, sender: Side, *, complete: bool = True, candidates: bool = True) -> None:
        """Carry the sender's description to the other side, at once."""
        description = sender.description(complete=complete, candidates=candidates)
        self.other(sender).session.set_remote_description(description, self.now)

    def exchange(self) -> None:
        """Carry both descriptions, at once."""
        self.signal(self.a)
        self.signal(self.b)

    # --- time ------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.pair.run(seconds=seconds)

    def run_until(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Let time pass until something is so; false: it did not become so."""
        return self.pair.run(until, seconds=seconds)

    def connect(self, seconds: float = 60.0) -> float:
        """Run until both ends are connected and return how long it took, in seconds."""
        start = self.now
        assert self.run_until(lambda: self.a.is_connected and self.b.is_connected, seconds), self
        return self.now - start

    def settle(self, seconds: float = 60.0) -> float:
        """Run until both ends have agreed on a pair by nomination, and return how long it took, in seconds."""
        start = self.now
        assert self.run_until(lambda: self.a.is_settled and self.b.is_settled, seconds), self
        return self.now - start

    # --- questions -------------------------------------------------------------------------------------------------

    def transmits_since(self, side: Side, since: float) -> list[Transmit]:
        return [transmit for at, transmit in side.peer.transmits if at >= since]

    def is_mirrored(self, component: int = 1) -> bool:
        """Whether both ends use the same path: what one sends arrives at the other's base of its own path."""
        return all(self._leads_to(s, self.other(s), component) for s in (self.a, self.b))

    def _leads_to(self, side: Side, other: Side, component: int) -> bool:
        mine, theirs = side.session.path(component), other.session.path(component)
        if mine is None or theirs is None:
            return False
        return mine.local.address == theirs.remote.address and mine.remote.address == theirs.local.address


def is_confirmed(pair: CandidatePair | None) -> bool:
    """Whether a pair is valid and nominated."""
    return pair is not None and pair.is_valid and pair.nominated


def host_candidate(base: TransportAddress, *, component: int = 1, index: int = 0) -> Candidate:
    """A host candidate as the gatherer makes it; ``index`` counts the bases, best first."""
    return Candidate(
        foundation=f"h{base.host.replace('.', '').replace(':', '')}"[:32],
        component=component,
        priority=candidate_priority(CandidateType.HOST, component, 65535 - index),
        address=base,
        type=CandidateType.HOST,
        base=base,
    )


def reflexive_candidate(host: Candidate, mapped: TransportAddress) -> Candidate:
    """The server-reflexive candidate that belongs to a host candidate."""
    local_preference = host.priority >> 8 & 0xFFFF
    return Candidate(
        foundation=f"s{host.foundation}"[:32],
        component=host.component,
        priority=candidate_priority(CandidateType.SERVER_REFLEXIVE, host.component, local_preference),
        address=mapped,
        type=CandidateType.SERVER_REFLEXIVE,
        related_address=host.address,
        base=host.address,
    )


def relayed_candidate(address: TransportAddress, *, component: int = 1) -> Candidate:
    """A relayed candidate, whose base is the relayed address itself (RFC 8445, 5.1.1.2)."""
    return Candidate(
        foundation="relay",
        component=component,
        priority=candidate_priority(CandidateType.RELAYED, component),
        address=address,
        type=CandidateType.RELAYED,
        base=address,
    )


def _signalled(candidate: Candidate) -> Candidate:
    """What the peer reads: the line, which has no base."""
    return Candidate.parse(candidate.to_sdp())


def make_session(
    controlling: bool,
    seed: int,
    config: Config | None = None,
    *,
    name: str = "",
    ceiling: TokenBucket | None = None,
    wakeups: WakeUps | None = None,
    route: str | None = None,
) -> IceSession:
    """A session whose every choice follows from seed and name."""
    return IceSession(
        config=config or Config(),
        controlling=controlling,
        rng=Random(f"{seed} {name} order"),
        system_rng=Random(f"{seed} {name} secrets"),
        ceiling=ceiling,
        wakeups=wakeups,
        preferred_host=lambda remote: route,
    )


def make_world(
    seed: int = 1,
    *,
    hosts_a: Sequence[str] = HOSTS_A,
    hosts_b: Sequence[str] = HOSTS_B,
    box_a: Middlebox | None = None,
    box_b: Middlebox | None = None,
    config_a: Config | None = None,
    config_b: Config | None = None,
    controlling: tuple[bool, bool] = (True, False),
    routes: tuple[str | None, str | None] = (None, None),
    rtt_s: float = 0.040,
    loss: float = 0.0,
    icmp_errors: bool = False,
) -> World:
    """Build a world.

    Args:
        seed: everything follows from it.
        hosts_a: addresses of a; without a box they are on the Internet.
        box_a: what stands between a and the Internet.
        controlling: initial roles of a and b.
        routes: the host that each side's kernel would send from.
        rtt_s: between the two hosts, seconds.
        loss: probability per link and direction.
        icmp_errors: whether senders hear of what does not arrive.
    """
    network = Network.seeded(seed, icmp_errors=icmp_errors)
    sides = []
    configs = (config_a or Config(), config_b or Config())
    for i, (name, hosts, box) in enumerate((("a", hosts_a, box_a), ("b", hosts_b, box_b))):
        nat = None if box is None else network.add_nat(f"nat-{name}", box)
        node = network.add_node(name, hosts, nat, latency_s=rtt_s / 4)
        for link in node.links:
            link.up.loss = link.down.loss = loss
        bases = [TransportAddress(host, PORT + n) for n in range(configs[i].components) for host in hosts]
        # Nothing but the session's sockets is open on a host.
        node.ports = set(bases)
        session = make_session(controlling[i], seed, configs[i], name=name, route=routes[i])
        peer = Peer(name, session, node)
        sides.append(Side(peer=peer, node=node, bases=bases))
    server = add_stun_server(network, "server", [SERVER.host], latency_s=rtt_s / 4)
    pair = SessionPair(network, sides[0].peer, sides[1].peer, server)
    return World(pair=pair, a=sides[0], b=sides[1], server=server, seed=seed)


def parsed(transmits: Sequence[Transmit]) -> list[Message]:
    """The STUN messages among what was sent."""
    return [parse(transmit.data) for transmit in transmits if is_stun(transmit.data)]
