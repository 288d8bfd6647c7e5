"""How does a TURN server connect its clients with peers over TCP?

RFC 6062, 5, sans-IO. A TCP allocation has listening relayed addresses. A connection with a peer is made by a Connect
request, or by a peer that has a permission; it has a number that cannot be guessed, and waits until the client, on a
new stream, sends a ConnectionBind with that number. From then on whatever comes on either stream goes to the other, by
the shell's data path (``relay/tcp_relays.py``); what is counted here is counted through :class:`PeerConnection`.

Listening and connecting take time. The core says what is to be done (:class:`OpenListeners`, :class:`ConnectPeer`), the
shell does it and calls back; the request is answered then. One connection for each peer address and allocation, so many
of one allocation and of all; 30 s to connect, 30 s to be bound, and 30 s without data where one end has finished.
DEVIATION: RFC 6062, 5.5 closes both ends then; but protocols that end a request in this way should work. Pinned by
test_half_a_connection_stays_while_it_is_used. Pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, Transmit
from relay.stun import CONNECTION_ID, XOR_PEER_ADDRESS, Message, MessageClass, Method, build
from relay.turn.credentials import Pair
from relay.turn.server.allocation import ServedAllocation
from relay.turn.server.asked import Asked, FiveTuple
from relay.turn.server.auth import Refused
from relay.turn.server.service import TurnService

__all__ = [
    "BindStreams",
    "ClosePeer",
    "ConnectPeer",
    "ConnectionState",
    "OpenListeners",
    "Opening",
    "PeerConnection",
    "StopListening",
    "TcpRelaying",
]

PATIENCE_S = 30.0
"""RFC 6062, 5.2 and 5.3: to connect "at least 30 seconds", and 30 for a ConnectionBind; the third is ours."""

MAX_CONNECTIONS = 4096
"""With peers, of all allocations."""

_NUMBERS = 1 << 32


class ConnectionState(Enum):
    """Of a connection with a peer."""

    CONNECTING = "connecting"
    UNBOUND = "unbound"
    BOUND = "bound"
    HALF_CLOSED = "half-closed"


@dataclass(slots=True, eq=False, kw_only=True)
class PeerConnection:
    """A connection between a relayed address and a peer: RFC 6062's peer data connection.

    Attributes:
        allocation: whose.
        relayed: our end.
        peer: the other one.
        number: its CONNECTION-ID.
        state: see :class:`ConnectionState`.
        asked: the Connect request that is yet to be answered.
        octets: payload bytes so far, both ways.
        octets_seen: of them, those that there were when it was last looked after.
    """

    allocation: ServedAllocation
    relayed: TransportAddress
    peer: TransportAddress
    number: int = field(repr=False)
    state: ConnectionState
    asked: Asked | None = field(default=None, repr=False)
    octets: int = 0
    octets_seen: int = 0

    def count(self, direction: int, size: int, now: float) -> float:
        """Something passes; seconds until more of it may be read.

        Args:
            direction: 0 to the peer, 1 from it.
            size: bytes.
            now: seconds.
        """
        allocation = self.allocation
        allocation.packets[direction] += 1
        allocation.octets[direction] += size
        self.octets += size
        return 0.0 if allocation.meter is None else allocation.meter.delay(size, now)


@dataclass(slots=True, eq=False, kw_only=True)
class Opening:
    """A TCP allocation whose relayed addresses are being opened.

    Attributes:
        asked: the Allocate request, answered when they are open.
        allocation: what becomes of it; without addresses yet.
        versions: of the addresses.
        lifetime: seconds, from then on.
        is_given_up: the client's stream has ended meanwhile.
    """

    asked: Asked
    allocation: ServedAllocation
    versions: tuple[int, ...]
    lifetime: int
    is_given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenListeners(Event):
    """The shell is to listen on a relayed address of each version, and then to call ``TurnServer.opened``."""

    opening: Opening


@dataclass(frozen=True, slots=True, kw_only=True)
class StopListening(Event):
    """The shell is to close a listener."""

    address: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectPeer(Event):
    """The shell is to connect from the relayed address to the peer, and then to call ``connected`` or ``failed``."""

    connection: PeerConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class BindStreams(Event):
    """The shell is to pass on what comes from a peer to a client's stream, and the other way round, as it is."""

    connection: PeerConnection
    stream: FiveTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosePeer(Event):
    """The shell is to close a connection, with the client's stream if it has one, or to stop connecting."""

    connection: PeerConnection


class TcpRelaying:
    """The connections of all TCP allocations of one :class:`relay.turn.server.TurnServer`.

    Args:
        service: shared.
        allocations: the server's, by five-tuple.
        transmits: where indications go.
        events: where commands to the shell go.
        counters: ``dropped: <reason>``.
        answer: called with (asked, outcome, now): the answer to a request that had to wait.
    """

    def __init__(
        self,
        service: TurnService,
        allocations: Mapping[FiveTuple, ServedAllocation],
        transmits: deque[Transmit],
        events: deque[Event],
        counters: Counter[str],
        answer: Callable[[Asked, list[Pair] | Refused, float], None],
    ) -> None:
        self._service = service
        self._allocations = allocations
        self._transmits = transmits
        self._events = events
        self._counters = counters
        self._answer = answer
        self._listening: dict[TransportAddress, ServedAllocation] = {}
        self._connections: dict[ServedAllocation, dict[TransportAddress, PeerConnection]] = {}
        self._by_number: dict[int, PeerConnection] = {}
        # In the order of their deadlines: every one is PATIENCE_S after it was set.
        self._due: OrderedDict[PeerConnection, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_number)

    # --- of the server -------------------------------------------------------------------------------------------

    def begin(self, allocation: ServedAllocation) -> None:
        """Its addresses listen."""
        self._connections[allocation] = {}
        for address in allocation.relayed.values():
            self._listening[address] = allocation
            self._service.policy.relayed_tcp.add(address)

    def end(self, allocation: ServedAllocation, address: TransportAddress, now: float) -> None:
        """One of its addresses has ended; RFC 6062, 5.5: what was connected with it is closed."""
        self._listening.pop(address, None)
        self._service.policy.relayed_tcp.discard(address)
        self._events.append(StopListening(address=address))
        for connection in list(self._connections.get(allocation, {}).values()):
            if connection.relayed == address:
                self._close(connection, now)
        if not any(each in self._listening for each in allocation.relayed.values()):
            self._connections.pop(allocation, None)

    def connect(self, asked: Asked, allocation: ServedAllocation, now: float) -> None:
        """RFC 6062, 5.2. The answer comes later.

        Raises:
            Refused: 400, 403, 443, 446, 508.
        """
        if not allocation.is_tcp:
            raise Refused(403, "Forbidden")
        peer = asked.request.get(XOR_PEER_ADDRESS)
        if peer is None:
            raise Refused(400, "Bad Request")
        relayed = allocation.relayed.get(peer.version)
        if relayed is None:
            raise Refused(443, "Peer Address Family Mismatch")
        if peer in self._connections[allocation]:
            raise Refused(446, "Connection Already Exists")
        # A connection of an address with itself would be one.
        if peer == relayed or not self._service.policy.admits(peer, is_tcp=True):
            raise Refused(403, "Forbidden")
        if self._is_full(allocation):
            raise Refused(508, "Insufficient Capacity")
        connection = self._make(allocation, relayed, peer, ConnectionState.CONNECTING, now)
        connection.asked = asked
        self._events.append(ConnectPeer(connection=connection))

    def control_of(self, request: Message) -> TransportAddress | None:
        """Where the client of a ConnectionBind has its control connection; ``None``: it is none, or of nothing."""
        number = request.get(CONNECTION_ID) if request.method == Method.CONNECTION_BIND else None
        connection = None if number is None else self._by_number.get(number)
        return None if connection is None else connection.allocation.client

    def bind(self, asked: Asked, now: float) -> list[Pair]:
        """RFC 6062, 5.4.

        Raises:
            Refused: 400, 441.
        """
        number = asked.request.get(CONNECTION_ID)
        connection = None if number is None else self._by_number.get(number)
        # What has an allocation is a control connection.
        if (
            connection is None
            or connection.state is not ConnectionState.UNBOUND
            or asked.five_tuple in self._allocations
        ):
            raise Refused(400, "Bad Request")
        if connection.allocation.username != asked.identity.username:
            raise Refused(441, "Wrong Credentials")
        connection.state = ConnectionState.BOUND
        del self._due[connection]
        self._events.append(BindStreams(connection=connection, stream=asked.five_tuple))
        return []

    # --- of the shell --------------------------------------------------------------------------------------------

    def accepted(self, relayed: TransportAddress, peer: TransportAddress, now: float) -> PeerConnection | None:
        """A peer has connected to a relayed address: RFC 6062, 5.3. ``None``: it is to be closed at once."""
        allocation = self._listening.get(relayed)
        if allocation is None or now >= allocation.permissions.get(peer.host, 0.0):
            self._counters["dropped: connection without permission"] += 1
            return None
        if self._is_full(allocation) or peer in self._connections[allocation]:
            self._counters["dropped: too many connections"] += 1
            return None
        connection = self._make(allocation, relayed, peer, ConnectionState.UNBOUND, now)
        identity = self._service.system_rng.randbytes(12)
        pairs: tuple[Pair, ...] = ((XOR_PEER_ADDRESS, peer), (CONNECTION_ID, connection.number))
        attempt = build(Method.CONNECTION_ATTEMPT, MessageClass.INDICATION, identity, *pairs)
        self._transmits.append(Transmit(*allocation.key, attempt.encode(fingerprint=False)))
        return connection

    def connected(self, connection: PeerConnection, now: float) -> bool:
        """It has come about; false: it is not wanted any more, and to be closed."""
        if connection.state is not ConnectionState.CONNECTING or connection.number not in self._by_number:
            return False
        connection.state = ConnectionState.UNBOUND
        self._wait(connection, now)
        self._answer_connect(connection, [(CONNECTION_ID, connection.number)], now)
        return True

    def failed(self, connection: PeerConnection, now: float) -> None:
        """It has not."""
        self._forget(connection, now)

    def half_closed(self, connection: PeerConnection, now: float) -> None:
        """One end will send no more; the other one may, as long as it goes on doing so."""
        if connection.state is ConnectionState.BOUND and connection.number in self._by_number:
            connection.state = ConnectionState.HALF_CLOSED
            self._wait(connection, now)

    def closed(self, connection: PeerConnection, now: float) -> None:
        """Both ends are, or the peer's before it was bound."""
        self._forget(connection, now)

    # --- time ----------------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Close what has waited too long."""
        while self._due:
            connection, due_at = next(iter(self._due.items()))
            if now < due_at:
                return
            if connection.state is ConnectionState.HALF_CLOSED and connection.octets != connection.octets_seen:
                self._wait(connection, now)
            else:
                self._close(connection, now)

    def poll_timeout(self) -> float | None:
        """When one has waited too long."""
        return next(iter(self._due.values())) if self._due else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _is_full(self, allocation: ServedAllocation) -> bool:
        limit = self._service.options.max_connections
        return len(self._connections[allocation]) >= limit or len(self._by_number) >= MAX_CONNECTIONS

    def _make(
        self,
        allocation: ServedAllocation,
        relayed: TransportAddress,
        peer: TransportAddress,
        state: ConnectionState,
        now: float,
    ) -> PeerConnection:
        rng = self._service.system_rng
        number = rng.randrange(_NUMBERS)
        while number in self._by_number:
            number = rng.randrange(_NUMBERS)
        made = PeerConnection(allocation=allocation, relayed=relayed, peer=peer, number=number, state=state)
        self._connections[allocation][peer] = self._by_number[number] = made
        self._wait(made, now)
        return made

    def _wait(self, connection: PeerConnection, now: float) -> None:
        connection.octets_seen = connection.octets
        self._due[connection] = now + PATIENCE_S
        self._due.move_to_end(connection)

    def _close(self, connection: PeerConnection, now: float) -> None:
        self._events.append(ClosePeer(connection=connection))
        self._forget(connection, now)

    def _forget(self, connection: PeerConnection, now: float) -> None:
        if self._by_number.pop(connection.number, None) is None:
            return
        self._due.pop(connection, None)
        del self._connections[connection.allocation][connection.peer]
        self._answer_connect(connection, Refused(447, "Connection Timeout or Failure"), now)

    def _answer_connect(self, connection: PeerConnection, outcome: list[Pair] | Refused, now: float) -> None:
        asked, connection.asked = connection.asked, None
        if asked is not None:
            self._answer(asked, outcome, now)
