"""TCP allocations (RFC 6062) of our TURN server: the core, with streams that are only talked about."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressFamily,
    Message,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.turn.credentials import Pair
from relay.turn.server import (
    AllocationEnded,
    AllocationMade,
    BindStreams,
    ClosePeer,
    ConnectPeer,
    Opening,
    OpenListeners,
    PeerConnection,
    Refused,
    StopListening,
)
from relay.turn.server.tcp import MAX_CONNECTIONS, PATIENCE_S
from tests.unit.relay.turn.server_kit import (
    CLIENT,
    OTHER,
    PEER,
    PEER_2,
    PEER_6,
    RELAY_HOSTS,
    SERVER,
    Client,
    Court,
    code,
)
from tests.unit.relay.turn.test_server_policy import MAPPED, SPECIAL_4, SPECIAL_6

TCP: Pair = (REQUESTED_TRANSPORT, 6)
DUAL: Pair = (ADDITIONAL_ADDRESS_FAMILY, int(AddressFamily.IPV6))
AT_PEER: Pair = (XOR_PEER_ADDRESS, PEER)
# The client's data connections: other ports of its host.
DATA_STREAM = TransportAddress(CLIENT.host, 5001)
DATA_STREAM_2 = TransportAddress(CLIENT.host, 5002)


class TcpCourt(Court):
    """A server on streams that listens as soon as it is to.

    Attributes:
        refusals: of listeners, by IP version.
        openings: those that are yet to be answered, where ``listens`` is false.
    """

    def __init__(self, *, listens: bool = True, **options: Any) -> None:
        super().__init__(is_stream=True, **options)
        self.refusals: dict[int, Refused] = {}
        self.openings: list[Opening] = []
        self._listens = listens
        self._port = 60_000

    def drain(self) -> list[bytes]:
        answers = super().drain()
        new = [event.opening for event in self.events if isinstance(event, OpenListeners)]
        self.events = [event for event in self.events if not isinstance(event, OpenListeners)]
        self.openings += new
        while self.openings and self._listens:
            self.open(self.openings.pop(0))
            answers += super().drain()
        return answers

    def open(self, opening: Opening) -> None:
        """What the shell would do."""
        found: dict[int, TransportAddress | Refused] = {}
        for version in opening.versions:
            self._port += 1
            address = TransportAddress(RELAY_HOSTS[version], self._port)
            found[version] = self.refusals.get(version, address)
        self.turn.opened(opening, found, self.now)

    def take(self, kind: type[Event]) -> list[Any]:
        """The events of one kind so far, which are not given again."""
        found = [event for event in self.events if isinstance(event, kind)]
        self.events = [event for event in self.events if not isinstance(event, kind)]
        return found

    def arrive(self, relayed: TransportAddress, peer: TransportAddress) -> tuple[PeerConnection | None, list[Message]]:
        """A peer connects; what the client hears of it."""
        connection = self.turn.tcp.accepted(relayed, peer, self.now)
        return connection, [parse(data) for data in self.drain()]


def allocated(court: TcpCourt, *pairs: Pair, source: TransportAddress = CLIENT, **who: str) -> Client:
    """A client with a TCP allocation."""
    client = Client(court, source, **who)
    assert code(client.ask(Method.ALLOCATE, TCP, *pairs)) == 0
    return client


def relayed_of(court: TcpCourt, version: int = 4, source: TransportAddress = CLIENT) -> TransportAddress:
    return court.turn.allocations[SERVER, source].relayed[version]


def connect(court: TcpCourt, client: Client, peer: TransportAddress = PEER) -> PeerConnection:
    """A Connect request that is under way."""
    assert court.deliver(client.request(Method.CONNECT, (XOR_PEER_ADDRESS, peer)), client.source) == []
    (event,) = court.take(ConnectPeer)
    connection: PeerConnection = event.connection
    return connection


def connected(court: TcpCourt, client: Client, peer: TransportAddress = PEER) -> tuple[PeerConnection, int]:
    """A connection that waits to be bound, and its number."""
    connection = connect(court, client, peer)
    assert court.turn.tcp.connected(connection, court.now)
    (answer,) = [parse(data) for data in court.drain()]
    assert (answer.method, code(answer)) == (Method.CONNECT, 0) and answer.verify(client.key)
    number = answer.get(CONNECTION_ID)
    assert number is not None
    return connection, number


def bind(court: TcpCourt, number: int, source: TransportAddress = DATA_STREAM, **who: str) -> Message:
    """A ConnectionBind on a new stream."""
    return Client(court, source, **who).ask(Method.CONNECTION_BIND, (CONNECTION_ID, number))


def bound(court: TcpCourt, client: Client, peer: TransportAddress = PEER) -> PeerConnection:
    """A connection that data passes."""
    connection, number = connected(court, client, peer)
    assert code(bind(court, number)) == 0
    court.take(BindStreams)
    return connection


def left(court: TcpCourt) -> tuple[int, int, int]:
    """Allocations, connections and TCP addresses that there are."""
    return court.service.allocations, len(court.turn.tcp), len(court.policy.relayed_tcp)


# --- Allocate --------------------------------------------------------------------------------------------------------


def test_a_tcp_allocation_listens_before_it_is_answered() -> None:
    """RFC 6062, 5.1: "MUST start accepting incoming TCP connections on the relayed transport address"."""
    court = TcpCourt(listens=False)
    client = Client(court)
    assert court.deliver(client.request(Method.ALLOCATE, TCP)) == []
    assert not court.turn.allocations and court.service.allocations == 1
    # It is in use from now on.
    assert code(client.ask(Method.ALLOCATE, TCP)) == 437
    (opening,) = court.openings
    court.open(opening)
    (data,) = court.drain()
    answer = parse(data)
    relayed = answer.get(XOR_RELAYED_ADDRESS)
    assert answer.verify(client.key) and (answer.get(LIFETIME), answer.get(XOR_MAPPED_ADDRESS)) == (600, CLIENT)
    assert relayed == relayed_of(court) and court.policy.relayed_tcp == {relayed}
    # Nothing of UDP's.
    assert answer.get(RESERVATION_TOKEN) is None and not court.ports.open_now and not court.policy.relayed
    (made,) = court.take(AllocationMade)
    assert made.allocation.is_tcp
    assert code(client.ask(Method.REFRESH, (LIFETIME, 700))) == 0


@pytest.mark.parametrize(
    "pairs", [(DONT_FRAGMENT, True), (EVEN_PORT, False), (EVEN_PORT, True), (RESERVATION_TOKEN, bytes(8))]
)
def test_what_is_of_udp_is_a_bad_request(pairs: Pair) -> None:
    """RFC 6062, 5.1, 3."""
    court = TcpCourt()
    assert code(Client(court).ask(Method.ALLOCATE, TCP, pairs)) == 400
    assert left(court) == (0, 0, 0)


@pytest.mark.parametrize(("transport", "expected"), [(0, 442), (7, 442), (255, 442), (17, 0)])
def test_other_transports_over_a_stream(transport: int, expected: int) -> None:
    """RFC 6062, 5.1, 1."""
    court = TcpCourt()
    assert code(Client(court).ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, transport))) == expected


def test_tcp_relays_are_not_for_who_asks_over_udp() -> None:
    """RFC 6062, 5.1, 2 and 5.4."""
    court = Court()
    client = Client(court)
    assert code(client.ask(Method.ALLOCATE, TCP)) == 400
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 437
    assert code(client.ask(Method.CONNECTION_BIND, (CONNECTION_ID, 1))) == 400
    client.allocate()
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 403
    assert court.service.allocations == 1


def test_families_of_tcp_allocations() -> None:
    court = TcpCourt()
    client = allocated(court, (REQUESTED_ADDRESS_FAMILY, int(AddressFamily.IPV6)))
    assert list(court.allocation().relayed) == [6]
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 443
    both = allocated(court, DUAL, source=OTHER)
    assert list(court.allocation(OTHER).relayed) == [4, 6]
    four, six = connect(court, both, PEER), connect(court, both, PEER_6)
    assert (four.relayed.version, six.relayed.version) == (4, 6)
    # RFC 8656, 8.1: the other family is not affected.
    address = relayed_of(court, 6, OTHER)
    answers = court.deliver(
        both.request(Method.REFRESH, (LIFETIME, 0), (REQUESTED_ADDRESS_FAMILY, int(AddressFamily.IPV6))), OTHER
    )
    assert sorted(code(parse(answer)) for answer in answers) == [0, 447]
    assert [event.connection for event in court.take(ClosePeer)] == [six]
    assert [event.address for event in court.take(StopListening)] == [address]
    assert court.turn.tcp.connected(four, court.now) and not court.turn.tcp.connected(six, court.now)


@pytest.mark.parametrize("refusal", [440, 508])
def test_an_allocation_that_cannot_listen_leaves_nothing(refusal: int) -> None:
    court = TcpCourt(user_quota=1)
    court.refusals = {4: Refused(refusal, "No")}
    client = Client(court)
    for _ in range(3):
        assert code(client.ask(Method.ALLOCATE, TCP)) == refusal
    assert left(court) == (0, 0, 0) and not court.service.by_user
    # One of two is enough.
    assert code(client.ask(Method.ALLOCATE, TCP, DUAL)) == 0
    assert list(court.allocation().relayed) == [6]


def test_a_stream_that_ends_while_its_allocation_is_made_takes_it_along() -> None:
    court = TcpCourt(listens=False)
    court.deliver(Client(court).request(Method.ALLOCATE, TCP))
    court.turn.forget_stream(SERVER, CLIENT, court.now)
    court.open(court.openings.pop())
    assert court.drain() == [] and left(court) == (0, 0, 0)
    assert len(court.take(StopListening)) == len(court.take(AllocationEnded)) == 1
    # The five-tuple can be used again.
    court.deliver(Client(court).request(Method.ALLOCATE, TCP))
    court.open(court.openings.pop())
    assert left(court) == (1, 0, 1)


def test_quotas_count_tcp_allocations_that_are_being_made() -> None:
    court = TcpCourt(listens=False, user_quota=1, max_allocations=2)
    court.deliver(Client(court).request(Method.ALLOCATE, TCP))
    assert code(Client(court, DATA_STREAM).ask(Method.ALLOCATE, TCP)) == 486
    court.deliver(Client(court, OTHER, "other", "password").request(Method.ALLOCATE, TCP), OTHER)
    assert len(court.openings) == 2
    court.service.is_draining = True
    assert code(Client(court, DATA_STREAM_2).ask(Method.ALLOCATE, TCP)) in (486, 508)


def test_a_tcp_allocation_has_no_datagrams() -> None:
    court = TcpCourt()
    client = allocated(court)
    assert code(client.ask(Method.CREATE_PERMISSION, AT_PEER)) == 0
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), AT_PEER)) == 403
    client.indicate(Method.SEND, AT_PEER, (DATA, b"x"))
    assert court.to_peers == [] and not court.allocation().channels


# --- Connect ---------------------------------------------------------------------------------------------------------


def test_a_connection_is_made_bound_and_counted() -> None:
    """RFC 6062, 5.2 and 5.4."""
    court = TcpCourt()
    client = allocated(court)
    connection = connect(court, client)
    assert (connection.relayed, connection.peer) == (relayed_of(court), PEER)
    court.pass_time(20.0)
    assert court.turn.tcp.connected(connection, court.now)
    (data,) = court.drain()
    answer = parse(data)
    number = answer.get(CONNECTION_ID)
    assert answer.verify(client.key) and number is not None
    assert code(bind(court, number)) == 0
    (event,) = court.take(BindStreams)
    assert (event.connection, event.stream) == (connection, (SERVER, DATA_STREAM))
    assert connection.count(0, 100, court.now) == 0.0 and connection.count(1, 5, court.now) == 0.0
    assert (court.allocation().packets, court.allocation().octets) == ([1, 1], [100, 5])
    # It lives as long as the allocation.
    court.pass_time(500.0)
    assert court.take(ClosePeer) == [] and left(court) == (1, 1, 1)
    client.ask(Method.REFRESH, (LIFETIME, 0))
    assert court.service.relayed == [[1, 100], [1, 5]]


def test_connects_that_are_refused() -> None:
    """RFC 6062, 5.2: 437, 400, 403; RFC 8656: 443, 441."""
    court = TcpCourt()
    assert code(Client(court).ask(Method.CONNECT, AT_PEER)) == 437
    client = allocated(court)
    assert code(client.ask(Method.CONNECT)) == 400
    assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, PEER_6))) == 443
    assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, PEER._replace(port=0)))) == 403
    assert code(Client(court, CLIENT, "other", "password").ask(Method.CONNECT, AT_PEER)) == 441
    assert court.take(ConnectPeer) == [] and left(court) == (1, 0, 1)


@pytest.mark.parametrize("host", [*SPECIAL_4, *MAPPED, *SPECIAL_6])
def test_nobody_is_connected_with_a_special_address(host: str) -> None:
    """facts/turn.md, table 2.2: CVE-2020-26262 and its like over Connect."""
    court = TcpCourt()
    client = allocated(court, DUAL)
    for port in (80, 7000):
        assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, TransportAddress(host, port)))) == 403
    assert court.take(ConnectPeer) == []


def test_of_our_own_addresses_only_tcp_relays_that_live_are_peers() -> None:
    """Two clients behind firewalls meet there; whatever else listens on this host is none of theirs."""
    court = TcpCourt()
    client = allocated(court)
    other = allocated(court, source=OTHER, username="other", password="password")
    mine, theirs = relayed_of(court), relayed_of(court, source=OTHER)
    datagrams = Client(court, DATA_STREAM)
    datagrams.allocate()
    (udp,) = court.policy.relayed
    for peer in (mine, udp, theirs._replace(port=22), SERVER):
        assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, peer))) == 403
    # And TCP relays are nothing to who relays datagrams.
    assert code(datagrams.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, theirs))) == 403
    assert connect(court, client, theirs).peer == theirs
    other.ask(Method.REFRESH, (LIFETIME, 0))
    allocated(court, source=DATA_STREAM_2)
    assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, relayed_of(court)._replace(port=theirs.port)))) == 446
    court.pass_time(PATIENCE_S)
    assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, theirs))) == 403


def test_a_peer_has_one_connection() -> None:
    """RFC 6062, 5.2: 446 while it is processed, and while it is "pending or active"."""
    court = TcpCourt()
    client = allocated(court)
    connection = connect(court, client)
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 446
    court.turn.tcp.connected(connection, court.now)
    (data,) = court.drain()
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 446
    bind(court, parse(data).get(CONNECTION_ID) or 0)
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 446
    # Another port is another peer, and another allocation has its own.
    connect(court, client, PEER._replace(port=1))
    connect(court, allocated(court, source=OTHER))
    court.turn.tcp.closed(connection, court.now)
    connect(court, client)


def test_a_connection_that_fails_is_447() -> None:
    """RFC 6062, 5.2."""
    court = TcpCourt()
    client = allocated(court)
    connection = connect(court, client)
    court.turn.tcp.failed(connection, court.now)
    (data,) = court.drain()
    assert code(parse(data)) == 447 and parse(data).verify(client.key)
    court.turn.tcp.failed(connection, court.now)
    assert court.drain() == [] and not court.turn.tcp.connected(connection, court.now)
    assert left(court) == (1, 0, 1)


def test_connecting_has_thirty_seconds() -> None:
    """RFC 6062, 5.2: "The timeout value MUST be at least 30 seconds"."""
    court = TcpCourt()
    client = allocated(court)
    connection = connect(court, client)
    court.now += PATIENCE_S - 0.001
    court.turn.handle_timeout(court.now)
    assert court.drain() == [] and court.take(ClosePeer) == []
    court.now += 0.001
    assert court.turn.poll_timeout() == court.now
    court.turn.handle_timeout(court.now)
    (data,) = court.drain()
    assert code(parse(data)) == 447
    assert [event.connection for event in court.take(ClosePeer)] == [connection]
    assert not court.turn.tcp.connected(connection, court.now) and court.drain() == []


def test_connections_are_limited() -> None:
    court = TcpCourt(max_connections=3)
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    made = [connect(court, client, PEER_2._replace(port=port)) for port in (1, 2)]
    assert court.arrive(relayed_of(court), PEER)[0] is not None
    assert code(client.ask(Method.CONNECT, (XOR_PEER_ADDRESS, PEER_2))) == 508
    assert court.arrive(relayed_of(court), PEER._replace(port=9)) == (None, [])
    assert court.turn.counters["dropped: too many connections"] == 1
    court.turn.tcp.failed(made[0], court.now)
    court.drain()
    connect(court, client, PEER_2)


def test_connections_of_all_allocations_are_limited() -> None:
    court = TcpCourt(max_connections=MAX_CONNECTIONS)
    client, other = allocated(court), allocated(court, source=OTHER)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    for port in range(1, MAX_CONNECTIONS + 1):
        assert court.turn.tcp.accepted(relayed_of(court), PEER._replace(port=port), court.now) is not None
    assert len(court.drain()) == MAX_CONNECTIONS
    assert code(other.ask(Method.CONNECT, AT_PEER)) == 508
    court.pass_time(PATIENCE_S)
    assert len(court.take(ClosePeer)) == MAX_CONNECTIONS and left(court) == (2, 0, 2)
    connect(court, other)


# --- peers that connect ----------------------------------------------------------------------------------------------


def test_a_peer_with_permission_is_told_to_the_client() -> None:
    """RFC 6062, 5.3: a ConnectionAttempt with XOR-PEER-ADDRESS and CONNECTION-ID; without permission it is closed."""
    court = TcpCourt()
    client = allocated(court)
    relayed = relayed_of(court)
    assert court.arrive(relayed, PEER) == (None, [])
    assert court.turn.counters["dropped: connection without permission"] == 1
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    # A permission is for a host.
    for peer in (PEER, PEER._replace(port=1)):
        connection, (attempt,) = court.arrive(relayed, peer)
        assert connection is not None
        assert (attempt.method, attempt.message_class) == (Method.CONNECTION_ATTEMPT, MessageClass.INDICATION)
        assert (attempt.get(XOR_PEER_ADDRESS), attempt.get(CONNECTION_ID)) == (peer, connection.number)
    assert court.arrive(relayed, PEER) == (None, [])
    assert code(client.ask(Method.CONNECT, AT_PEER)) == 446
    assert court.arrive(relayed, PEER_2) == (None, [])
    assert court.arrive(relayed._replace(port=1), PEER) == (None, [])
    court.pass_time(300.0)
    assert court.arrive(relayed, PEER) == (None, [])


def test_connection_numbers_cannot_be_guessed() -> None:
    court = TcpCourt(max_connections=1000)
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    numbers = []
    for port in range(1, 1001):
        connection = court.turn.tcp.accepted(relayed_of(court), PEER._replace(port=port), court.now)
        assert connection is not None
        numbers.append(connection.number)
    assert len(set(numbers)) == 1000 and all(0 <= number < 1 << 32 for number in numbers)
    # All of the range, in no order.
    assert all(180 < count < 320 for count in Counter(number >> 30 for number in numbers).values())
    assert sum(a < b for a, b in pairwise(numbers)) in range(400, 600)


# --- ConnectionBind --------------------------------------------------------------------------------------------------


def test_binds_that_are_refused() -> None:
    """RFC 6062, 5.4: 400 without a number, or with one of no pending connection; RFC 8656, 5: 441 of another user."""
    court = TcpCourt()
    client = allocated(court)
    connection = connect(court, client)
    # Not while it is being made.
    assert code(bind(court, connection.number)) == 400
    court.turn.tcp.connected(connection, court.now)
    court.drain()
    number = connection.number
    assert code(Client(court, DATA_STREAM).ask(Method.CONNECTION_BIND)) == 400
    assert code(bind(court, number ^ 1)) == 400
    assert code(bind(court, number, DATA_STREAM, username="other", password="password")) == 441
    assert code(bind(court, number, DATA_STREAM, password="guess")) == 401
    # RFC 6062, 4.3: "using a different local transport address".
    assert code(client.ask(Method.CONNECTION_BIND, (CONNECTION_ID, number))) == 400
    assert court.take(BindStreams) == []
    assert code(bind(court, number)) == 0
    assert len(court.take(BindStreams)) == 1
    assert code(bind(court, number, DATA_STREAM_2)) == 400


def test_a_bind_is_signed() -> None:
    court = TcpCourt()
    _, number = connected(court, allocated(court))
    message = build(Method.CONNECTION_BIND, MessageClass.REQUEST, bytes(12), (CONNECTION_ID, number))
    (answer,) = court.deliver(message.encode(), DATA_STREAM)
    assert code(parse(answer)) == 401 and court.take(BindStreams) == []


def test_the_nonce_of_the_control_connection_is_good_for_its_data_connections() -> None:
    """RFC 6062, 4.3: "the same method and credentials as for the control connection"; but from nowhere else."""
    court = TcpCourt()
    client = allocated(court)
    _, number = connected(court, client)
    pair: Pair = (CONNECTION_ID, number)
    assert code(Client(court, OTHER).ask(Method.CONNECTION_BIND, pair, nonce=client.nonce)) == 438
    elsewhere = TransportAddress(CLIENT.host, 4999)
    for method, wrong in ((Method.ALLOCATE, TCP), (Method.CONNECTION_BIND, (CONNECTION_ID, number ^ 1))):
        assert code(Client(court, elsewhere).ask(method, wrong, nonce=client.nonce)) == 438
    assert code(Client(court, DATA_STREAM).ask(Method.CONNECTION_BIND, pair, nonce=client.nonce)) == 0


@pytest.mark.parametrize("is_incoming", [False, True])
def test_what_is_not_bound_is_closed_after_thirty_seconds(is_incoming: bool) -> None:
    """RFC 6062, 5.2 and 5.3."""
    court = TcpCourt()
    client = allocated(court)
    if is_incoming:
        client.ask(Method.CREATE_PERMISSION, AT_PEER)
        connection, _ = court.arrive(relayed_of(court), PEER)
        assert connection is not None
    else:
        connection = connect(court, client)
        court.pass_time(29.0)
        court.turn.tcp.connected(connection, court.now)
        court.drain()
    court.pass_time(PATIENCE_S - 0.001)
    assert court.take(ClosePeer) == []
    court.pass_time(0.001)
    assert [event.connection for event in court.take(ClosePeer)] == [connection]
    assert code(bind(court, connection.number)) == 400
    assert left(court) == (1, 0, 1)


# --- data, and ends --------------------------------------------------------------------------------------------------


def test_too_much_is_read_later() -> None:
    """Bytes of a stream are not dropped: who sends them has to wait."""
    court = TcpCourt(max_bytes_per_s=1000.0)
    connection = bound(court, allocated(court))
    assert connection.count(0, 600, court.now) == 0.0
    # Both directions count together.
    assert connection.count(1, 600, court.now) == pytest.approx(0.2)
    assert connection.count(0, 1000, court.now + 0.2) == pytest.approx(1.0)
    assert connection.count(0, 1000, court.now + 101.2) == 0.0
    assert court.allocation().octets == [2600, 600]


def test_half_a_connection_stays_while_it_is_used() -> None:
    court = TcpCourt()
    client = allocated(court, (LIFETIME, 3600))
    connection = bound(court, client)
    court.turn.tcp.half_closed(connection, court.now)
    for _ in range(4):
        court.pass_time(PATIENCE_S - 1.0)
        connection.count(1, 10, court.now)
    court.pass_time(1.0)
    assert court.take(ClosePeer) == []
    court.pass_time(2 * PATIENCE_S)
    assert [event.connection for event in court.take(ClosePeer)] == [connection]
    connect(court, client)


@pytest.mark.parametrize("reason", ["deleted", "expired", "stream closed"])
def test_connections_end_with_their_allocation(reason: str) -> None:
    """RFC 6062, 5.5; what is asked for and cannot come any more is 447."""
    court = TcpCourt()
    client = allocated(court)
    relayed = relayed_of(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    through = bound(court, client)
    court.pass_time(580.0)
    client.challenge()
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    arrived, _ = court.arrive(relayed, PEER._replace(port=1))
    asked = connect(court, client, PEER_2)
    if reason == "deleted":
        answers = court.deliver(client.request(Method.REFRESH, (LIFETIME, 0)))
        assert sorted(code(parse(answer)) for answer in answers) == [0, 447]
    elif reason == "expired":
        court.pass_time(20.0)
    else:
        court.turn.forget_stream(SERVER, CLIENT, court.now)
        court.drain()
    (ended,) = court.take(AllocationEnded)
    assert ended.reason == reason
    assert {event.connection for event in court.take(ClosePeer)} == {through, arrived, asked}
    assert [event.address for event in court.take(StopListening)] == [relayed]
    assert left(court) == (0, 0, 0) and court.turn.tcp.poll_timeout() is None
    # What the shell says of them afterwards changes nothing.
    court.turn.tcp.closed(through, court.now)
    court.turn.tcp.failed(asked, court.now)
    court.turn.tcp.half_closed(through, court.now)
    assert court.arrive(relayed, PEER) == (None, [])
    assert court.drain() == [] and court.turn.tcp.poll_timeout() is None


def test_a_control_connection_that_moves_keeps_its_data_connections() -> None:
    """RFC 8016: the allocation stays, and what belongs to it; attempts are told to where the client is now."""
    court = TcpCourt()
    client = Client(court)
    ticket = client.ask(Method.ALLOCATE, TCP, (MOBILITY_TICKET, b"")).get(MOBILITY_TICKET)
    assert ticket is not None
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    connection = bound(court, client)
    moved = Client(court, OTHER)
    assert code(moved.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 0
    court.turn.forget_stream(SERVER, CLIENT, court.now)
    assert court.take(ClosePeer) == [] and left(court) == (1, 1, 1)
    assert court.turn.tcp.accepted(relayed_of(court, source=OTHER), PEER._replace(port=1), court.now) is not None
    transmit = court.stun.poll_transmit()
    assert transmit is not None and transmit.destination == OTHER
    assert code(moved.ask(Method.CONNECT, AT_PEER)) == 446
    moved.ask(Method.REFRESH, (LIFETIME, 0))
    assert connection in [event.connection for event in court.take(ClosePeer)]


def test_thousands_of_connections_one_after_the_other_leave_nothing() -> None:
    court = TcpCourt()
    client = allocated(court, (LIFETIME, 3600))
    for number in range(5000):
        connection = connect(court, client, PEER._replace(port=1 + number % 60_000))
        if number % 3:
            court.turn.tcp.connected(connection, court.now)
        court.turn.tcp.failed(connection, court.now)
        court.drain()
    assert left(court) == (1, 0, 1)
    tcp = court.turn.tcp
    assert not tcp._due and not tcp._by_number and not any(tcp._connections.values())


def test_whatever_happens_what_is_counted_twice_agrees() -> None:
    """Requests of three clients, and what a shell could say, in any order."""
    rng = Random(6062)
    court = TcpCourt(max_connections=2, user_quota=2)
    sources = [TransportAddress(f"192.0.2.{number}", 5000) for number in range(3)]
    known: list[PeerConnection] = []
    seen: Counter[int] = Counter()

    def note(answers: list[bytes]) -> None:
        for answer in map(parse, answers):
            seen[-1 if answer.is_indication else code(answer)] += 1

    def ask(client: Client, method: int, *pairs: Pair) -> None:
        client.nonce = court.service.gate.make_nonce(client.source, court.now)
        note(court.deliver(client.request(method, *pairs), client.source))

    for _ in range(6000):
        client = Client(court, rng.choice(sources), *rng.choice([("user", "secret"), ("other", "password")]))
        peers = [PEER, PEER_2, PEER_6, PEER._replace(port=1), *court.policy.relayed_tcp]
        peer: Pair = (XOR_PEER_ADDRESS, rng.choice(peers))
        tcp = court.turn.tcp
        one = rng.choice(known) if known else None
        match rng.randrange(11):
            case 0 | 1:
                more = rng.choice([(), (DUAL,), ((REQUESTED_ADDRESS_FAMILY, 2),)])
                ask(client, Method.ALLOCATE, (REQUESTED_TRANSPORT, rng.choice([6, 6, 17])), *more)
            case 2:
                ask(client, Method.CREATE_PERMISSION, peer)
            case 3 | 4:
                ask(client, Method.CONNECT, peer)
            case 5 if one is not None:
                client.source = TransportAddress("192.0.2.9", rng.randrange(1, 65536))
                ask(client, Method.CONNECTION_BIND, (CONNECTION_ID, one.number))
            case 6 if court.policy.relayed_tcp:
                arrived = tcp.accepted(rng.choice(sorted(court.policy.relayed_tcp)), rng.choice(peers), court.now)
                known += [] if arrived is None else [arrived]
            case 7 if one is not None:
                rng.choice([tcp.closed, tcp.failed, tcp.half_closed, tcp.connected])(one, court.now)
            case 8:
                court.pass_time(rng.choice([0.1, 5.0, 31.0]))
            case 9 if rng.random() < 0.2:
                ask(client, Method.REFRESH, (LIFETIME, 0), *rng.choice([(), ((REQUESTED_ADDRESS_FAMILY, 2),)]))
            case 10 if rng.random() < 0.1:
                court.turn.forget_stream(SERVER, client.source, court.now)
        note(court.drain())
        known = [*known, *(event.connection for event in court.take(ConnectPeer))][-12:]
        court.events.clear()
        allocations = list(court.turn.allocations.values())
        listening = {address for each in allocations if each.is_tcp for address in each.relayed.values()}
        assert listening == court.policy.relayed_tcp == set(tcp._listening)
        assert set(tcp._connections) == {each for each in allocations if each.is_tcp}
        listed = [each for group in tcp._connections.values() for each in group.values()]
        assert {each.number for each in listed} == set(tcp._by_number) and len(listed) == len(tcp)
        assert all(len(group) <= 2 for group in tcp._connections.values()) and set(tcp._due) <= set(listed)
        assert court.service.allocations == len(allocations) == court.service.by_user.total()
    assert set(seen) >= {-1, 0, 400, 403, 437, 441, 443, 446, 447, 486, 508}
    court.pass_time(601.0)
    assert left(court) == (0, 0, 0) and not court.turn.tcp._due


def test_indications_of_the_server_do_nothing_when_clients_send_them() -> None:
    court = TcpCourt()
    client = allocated(court)
    for method in (Method.CONNECT, Method.CONNECTION_BIND, Method.CONNECTION_ATTEMPT):
        for message_class in (MessageClass.INDICATION, MessageClass.SUCCESS, MessageClass.ERROR):
            message = build(method, message_class, bytes(12), AT_PEER, (CONNECTION_ID, 1))
            court.stun.handle_datagram(Datagram(SERVER, client.source, message.encode()), court.now)
    request = build(Method.CONNECTION_ATTEMPT, MessageClass.REQUEST, bytes(12), AT_PEER)
    court.stun.handle_datagram(Datagram(SERVER, client.source, request.encode()), court.now)
    assert court.drain() == [] and left(court) == (1, 0, 1)
