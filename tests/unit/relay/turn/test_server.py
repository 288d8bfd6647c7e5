"""What our TURN server answers and relays."""

from __future__ import annotations

from iceagent.net.address import TransportAddress
from relay.stun import (
    CHANNEL_NUMBER,
    DATA,
    LIFETIME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Method,
    parse,
)
from tests.unit.relay.turn.server_kit import CLIENT, PEER, PEER_2, RELAY_HOSTS, Client, Court, code


def test_an_allocation_and_what_goes_through_it() -> None:
    court = Court()
    client = Client(court)
    answer = client.allocate()
    relayed = answer.get(XOR_RELAYED_ADDRESS)
    assert relayed is not None and relayed.host == RELAY_HOSTS[4] and relayed in court.ports.open_now
    assert (answer.get(XOR_MAPPED_ADDRESS), answer.get(LIFETIME)) == (CLIENT, 600)
    # Nobody may send yet, nor be sent to.
    allocation = court.allocation()
    assert court.turn.from_peer(allocation, PEER, b"x", court.now) is None
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (DATA, b"too early"))
    assert court.to_peers == []
    assert code(client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))) == 0
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (DATA, b"hello"))
    assert court.to_peers == [(relayed, PEER, b"hello")]
    message = court.turn.from_peer(allocation, PEER, b"hi", court.now)
    assert message is not None
    indication = parse(message)
    assert (indication.method, indication.get(XOR_PEER_ADDRESS), indication.get(DATA)) == (Method.DATA, PEER, b"hi")
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))) == 0
    assert court.turn.from_peer(allocation, PEER, b"hi", court.now) == b"\x40\x01\x00\x02hi"
    assert allocation.to_peer(b"\x40\x01\x00\x02yo", court.now) == (relayed, PEER, b"yo")
    # A permission is for a host, a channel for a port of it.
    neighbour = PEER._replace(port=1)
    assert court.turn.from_peer(allocation, neighbour, b"hi", court.now) is not None
    assert court.turn.from_peer(allocation, PEER_2, b"hi", court.now) is None


def test_everything_ends_in_its_time() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    allocation = court.allocation()
    court.pass_time(299.9)
    assert allocation.to_peer(b"\x40\x01\x00\x00", court.now) is not None
    court.pass_time(0.1)
    assert allocation.to_peer(b"\x40\x01\x00\x00", court.now) is None
    court.pass_time(300.0)
    assert not court.turn.allocations and not court.ports.open_now and court.service.allocations == 0
    assert code(client.ask(Method.REFRESH)) == 437


def test_channels_of_rfc_5766_are_served() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    for number, expected in ((0x3FFF, 400), (0x4FFF, 0), (0x5000, 0), (0x7FFF, 0), (0x8000, 400)):
        peer = TransportAddress(PEER.host, number)
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == expected


def test_a_repeated_request_gets_the_same_answer() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    request = client.last
    first = court.deliver(request)
    court.pass_time(30.0)
    assert court.deliver(request) == first and len(court.turn.allocations) == 1
    court.pass_time(20.0)
    (late,) = court.deliver(request)
    assert code(parse(late)) == 437
