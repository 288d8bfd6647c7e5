"""The STUN server of the simulated network."""

from __future__ import annotations

import pytest

from iceagent.nat.kinds import Filtering
from iceagent.net.address import TransportAddress as Address
from iceagent.net.core import Datagram, PacketDropped, Transmit
from iceagent.testing.links import Fate
from iceagent.testing.nat import NatModel
from iceagent.testing.network import LogEntry, Network
from iceagent.testing.peers import Exchange
from iceagent.testing.stun_server import QUEUE_LIMIT, StunServerNode, add_stun_server
from iceagent.testing.trace import describe, format_log
from relay.stun import (
    CHANGE_REQUEST,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    Message,
    MessageClass,
    Method,
    build,
    parse,
)

ID = bytes(range(12))
PRIMARY, ALTERNATE = Address("198.51.100.1", 3478), Address("198.51.100.2", 3479)
CLIENT = Address("203.0.113.1", 5000)


def request(*pairs: object) -> bytes:
    return build(Method.BINDING, MessageClass.REQUEST, ID, *pairs).encode()  # type: ignore[arg-type]


def ask(server: StunServerNode, data: bytes, base: Address = PRIMARY) -> tuple[Transmit, Message]:
    server.handle_datagram(Datagram(base, CLIENT, data), 0.0)
    transmit = server.poll_transmit()
    assert transmit is not None
    assert server.poll_transmit() is None
    return transmit, parse(transmit.data)


def test_a_binding_request_gets_its_source_back() -> None:
    transmit, response = ask(StunServerNode([PRIMARY]), request())
    assert (transmit.base, transmit.destination) == (PRIMARY, CLIENT)
    assert (response.is_success, response.transaction_id) == (True, ID)
    assert response.get(XOR_MAPPED_ADDRESS) == CLIENT
    assert response.get(OTHER_ADDRESS) is None


@pytest.mark.parametrize(
    ("change", "base", "origin"),
    [
        (None, PRIMARY, PRIMARY),
        (ChangeRequest(False, False), PRIMARY, PRIMARY),
        (ChangeRequest(True, False), PRIMARY, Address(ALTERNATE.host, PRIMARY.port)),
        (ChangeRequest(False, True), PRIMARY, Address(PRIMARY.host, ALTERNATE.port)),
        (ChangeRequest(True, True), PRIMARY, ALTERNATE),
        (ChangeRequest(True, True), ALTERNATE, PRIMARY),
        (ChangeRequest(False, True), ALTERNATE, Address(ALTERNATE.host, PRIMARY.port)),
    ],
)
def test_rfc_5780_table_1(change: ChangeRequest | None, base: Address, origin: Address) -> None:
    server = StunServerNode([PRIMARY, ALTERNATE], behaviour_discovery=True)
    transmit, response = ask(server, request() if change is None else request((CHANGE_REQUEST, change)), base)
    assert (transmit.base, transmit.destination) == (origin, CLIENT)
    assert response.get(RESPONSE_ORIGIN) == origin
    assert response.get(OTHER_ADDRESS) == (PRIMARY if base == ALTERNATE else ALTERNATE)


def test_response_port() -> None:
    server = StunServerNode([PRIMARY, ALTERNATE], behaviour_discovery=True)
    transmit, response = ask(server, request((RESPONSE_PORT, 7000)))
    assert transmit.destination == Address(CLIENT.host, 7000)
    assert response.get(XOR_MAPPED_ADDRESS) == CLIENT


def test_without_behaviour_discovery_its_attributes_are_unknown() -> None:
    _, response = ask(StunServerNode([PRIMARY]), request((CHANGE_REQUEST, ChangeRequest(True, False))))
    assert response.error is not None
    assert response.error.code == 420
    assert response.get(UNKNOWN_ATTRIBUTES) == (CHANGE_REQUEST.code,)


def test_what_is_no_request_is_dropped_with_a_reason() -> None:
    server = StunServerNode([PRIMARY])
    indication = build(Method.BINDING, MessageClass.INDICATION, ID).encode()
    allocate = build(Method.ALLOCATE, MessageClass.REQUEST, ID).encode()
    for data in (b"", b"payload", bytes(20), request()[:-1], indication, allocate):
        server.handle_datagram(Datagram(PRIMARY, CLIENT, data), 0.0)
    server.handle_datagram(Datagram(ALTERNATE, CLIENT, request()), 0.0)
    assert server.poll_transmit() is None
    events = [server.poll_event() for _ in range(8)]
    reasons = [event.reason for event in events if isinstance(event, PacketDropped)]
    assert reasons == 4 * ["not STUN, or not for us"] + 2 * ["not a Binding request"] + ["not STUN, or not for us"]


def test_a_slow_server_answers_later_and_a_dead_one_never() -> None:
    server = StunServerNode([PRIMARY], delay_s=1.5)
    server.handle_datagram(Datagram(PRIMARY, CLIENT, request()), 10.0)
    assert (server.poll_transmit(), server.poll_timeout()) == (None, 11.5)
    server.handle_timeout(11.4)
    assert server.poll_transmit() is None
    server.handle_timeout(11.5)
    assert server.poll_transmit() is not None
    assert server.poll_timeout() is None
    server.is_dead = True
    server.handle_datagram(Datagram(PRIMARY, CLIENT, request()), 12.0)
    assert (server.poll_transmit(), server.poll_timeout(), server.poll_event()) == (None, None, None)


def test_waiting_answers_are_bounded() -> None:
    server = StunServerNode([PRIMARY], delay_s=60.0)
    for _ in range(QUEUE_LIMIT + 1):
        server.handle_datagram(Datagram(PRIMARY, CLIENT, request()), 0.0)
    event = server.poll_event()
    assert isinstance(event, PacketDropped)
    assert event.reason == "busy"
    server.handle_timeout(60.0)
    assert sum(1 for _ in iter(server.poll_transmit, None)) == QUEUE_LIMIT


@pytest.mark.parametrize(
    "addresses", [[PRIMARY], [PRIMARY, Address(PRIMARY.host, 3479)], [PRIMARY, Address(ALTERNATE.host, 3478)]]
)
def test_behaviour_discovery_needs_two_hosts_and_two_ports(addresses: list[Address]) -> None:
    with pytest.raises(ValueError, match="differ in host and port"):
        StunServerNode(addresses, behaviour_discovery=True)


@pytest.mark.parametrize(("filtering", "heard"), [(Filtering.EIF, 3), (Filtering.ADF, 2), (Filtering.APDF, 1)])
def test_filtering_of_a_nat_seen_through_rfc_5780(filtering: Filtering, heard: int) -> None:
    """Test I, then answers from the other port and from the other address and port (RFC 5780, 4.4)."""
    network = Network.seeded(1)
    server = add_stun_server(network, "stun", [PRIMARY.host, ALTERNATE.host])
    nat = network.add_nat("nat", NatModel([CLIENT.host], network.rng, filtering=filtering))
    client = network.add_node("client", ["192.168.1.2"], nat)
    arrived: list[Datagram] = []
    exchange = Exchange(network, [server], on_datagram=lambda node, datagram: arrived.append(datagram))
    base = Address("192.168.1.2", 5000)
    for change in (ChangeRequest(False, False), ChangeRequest(False, True), ChangeRequest(True, True)):
        network.send(client, Transmit(base, PRIMARY, request((CHANGE_REQUEST, change))), 0.0)
    while (deadline := exchange.poll_timeout()) is not None:
        exchange.advance(deadline)
    assert len(arrived) == heard
    assert {parse(datagram.data).get(XOR_MAPPED_ADDRESS) for datagram in arrived} == {CLIENT}
    assert network.counters[Fate.FILTERED] == 3 - heard


def test_descriptions() -> None:
    server = StunServerNode([PRIMARY])
    assert describe(request((USE_CANDIDATE, True))) == "Binding request 00010203 USE-CANDIDATE"
    assert describe(ask(server, request())[0].data) == "Binding success 00010203"
    error = ask(server, request((RESPONSE_PORT, 1)))[0].data
    assert describe(error) == "Binding error 00010203 420 Unknown Attribute"
    assert describe(build(0x7F, MessageClass.INDICATION, ID).encode()) == "method 0x7f indication 00010203"
    assert describe(b"\x40\x00\x00\x00") == "channel data or payload, 4 bytes"
    assert describe(b"") == "payload, 0 bytes"
    damaged = bytearray(request())
    damaged[-1] ^= 1
    assert describe(bytes(damaged)).startswith("STUN? (")


def test_the_log_can_be_narrowed_to_fates() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", ["192.0.2.1"])
    network.send(a, Transmit(Address("192.0.2.1", 1), Address("192.0.2.9", 1), request(), 5), 0.0)
    network.deliver(1.0)
    assert all(isinstance(entry, LogEntry) for entry in network.log)
    (line,) = format_log(network.log, [Fate.UNROUTABLE]).splitlines()
    words = ["0.0100", "unroutable", "internet", "192.0.2.1:1", ">", "192.0.2.9:1", "Binding", "request", "00010203"]
    assert line.split() == [*words, "ttl", "4"]
