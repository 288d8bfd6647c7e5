"""How long a stream of a STUN server lives, and how many there are."""

from __future__ import annotations

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from relay.stun import MessageClass, Method, build
from relay.stun_server import STREAM_IDLE_S, CloseStream, StreamServer, StunServer

BASE = TransportAddress("192.0.2.1", 3478)
REQUEST = build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode(fingerprint=False)


def client(number: int) -> TransportAddress:
    return TransportAddress(f"198.51.100.{number}", 40000)


def new_server(limit: int = 3) -> StreamServer:
    return StreamServer(StunServer(is_stream=True), limit=limit)


def closed(server: StreamServer) -> list[tuple[TransportAddress, str]]:
    """The streams to be closed since the last call, and why."""
    found = []
    while (event := server.poll_event()) is not None:
        assert isinstance(event, CloseStream)
        assert event.base == BASE
        found.append((event.remote, event.reason))
    return found


def test_a_request_is_answered_on_its_stream() -> None:
    server = new_server()
    server.open(BASE, client(1), 0.0)
    server.handle_datagram(Datagram(BASE, client(1), REQUEST), 0.0)
    answer = server.poll_transmit()
    assert answer is not None
    assert (answer.base, answer.destination) == (BASE, client(1))
    assert server.poll_transmit() is None


def test_a_stream_is_closed_a_minute_after_its_last_message() -> None:
    server = new_server()
    assert server.poll_timeout() is None
    server.open(BASE, client(1), 0.0)
    server.open(BASE, client(2), 1.0)
    assert server.poll_timeout() == STREAM_IDLE_S == 60.0
    server.handle_datagram(Datagram(BASE, client(1), REQUEST), 30.0)
    assert server.poll_timeout() == 61.0
    server.handle_timeout(60.999)
    assert closed(server) == []
    server.handle_timeout(61.0)
    assert closed(server) == [(client(2), "idle")]
    server.handle_timeout(90.0)
    assert closed(server) == [(client(1), "idle")]
    assert server.poll_timeout() is None
    assert len(server) == 0


def test_one_stream_too_many_costs_the_one_that_was_silent_longest() -> None:
    server = new_server(limit=3)
    for number in (1, 2, 3):
        server.open(BASE, client(number), float(number))
    server.handle_datagram(Datagram(BASE, client(1), REQUEST), 4.0)
    server.open(BASE, client(4), 5.0)
    assert closed(server) == [(client(2), "too many streams")]
    assert len(server) == 3


def test_a_stream_that_ended_is_forgotten() -> None:
    server = new_server()
    server.open(BASE, client(1), 0.0)
    server.open(BASE, client(2), 0.0)
    server.close(BASE, client(1), 1.0)
    server.close(BASE, client(1), 1.0)
    server.handle_error(BASE, client(2), 104, 1.0)
    assert len(server) == 0
    assert server.poll_timeout() is None
    assert closed(server) == []


def test_what_arrives_on_an_unknown_stream_is_nothing() -> None:
    server = new_server()
    server.handle_datagram(Datagram(BASE, client(1), REQUEST), 0.0)
    assert server.poll_transmit() is None
    assert len(server) == 0
