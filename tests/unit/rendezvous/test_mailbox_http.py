"""What the connections of a rendezvous server do, and what a client can do to them, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.rendezvous.mailbox import MAX_TEXT, WAIT_S, Mailbox
from iceagent.rendezvous.mailbox_http import (
    BLOCKED_S,
    IDLE_S,
    MAX_CONNECTIONS_OF_SOURCE,
    MAX_HEADER_BYTES,
    MAX_UNREAD,
    REQUEST_S,
    Close,
    HttpMailbox,
    Write,
)

ROOM = "our-secret.room_1"
TEXT = b"a=ice-ufrag:alice\na=ice-pwd:0123456789012345678901\n"
PATH = f"/{ROOM}/controlling"


def put(body: bytes = TEXT, *headers: str, path: str = PATH) -> bytes:
    lines = [f"PUT {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(*headers: str, path: str = PATH) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers]).encode() + b"\r\n\r\n"


class Wire:
    """A server's connections, a clock, and what was written to each."""

    def __init__(self, max_connections: int = 100) -> None:
        self.core = HttpMailbox(Mailbox(system_rng=random.Random(1)), max_connections=max_connections)
        self.now = 50.0
        self.written: dict[int, bytes] = {}
        self.closed: set[int] = set()
        self._key = 0

    def open(self, source: str = "192.0.2.1") -> int:
        self._key += 1
        self.core.handle_open(self._key, source, self.now)
        self._drain()
        return self._key

    def send(self, key: int, data: bytes) -> bytes:
        """Send, until everything is answered that does not wait; what came back."""
        before = len(self.written.get(key, b""))
        self.core.handle_data(key, data, self.now)
        self._drain()
        self.wait(0)
        return self.written.get(key, b"")[before:]

    def block(self, key: int, is_blocked: bool) -> None:
        self.core.handle_blocked(key, is_blocked, self.now)
        self._drain()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.core.poll_timeout()) is not None and at <= end:
            self.now = max(at, self.now)
            self.core.handle_timeout(self.now)
            self._drain()
        self.now = end

    def _drain(self) -> None:
        while (output := self.core.poll_output()) is not None:
            assert output.key not in self.closed, "nothing more is heard of it"
            if isinstance(output, Write):
                self.written[output.key] = self.written.get(output.key, b"") + output.data
            else:
                assert isinstance(output, Close)
                self.closed.add(output.key)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def status(answer: bytes) -> int:
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


# --- requests ----------------------------------------------------------------------------------------------------


def test_a_description_goes_in_and_comes_out(wire: Wire) -> None:
    alice, bob = wire.open(), wire.open()
    written = wire.send(alice, put())
    assert status(written) == 201
    assert b'\r\nETag: "' in written and b"\r\nRoom-Token: " in written and b"no-store" in written
    found = wire.send(bob, get())
    assert status(found) == 200 and found.endswith(b"\r\n\r\n" + TEXT)
    assert b"Content-Type: text/plain" in found and b"nosniff" in found and b"Room-Token" not in found
    # Both go on.
    assert status(wire.send(alice, get())) == 200
    assert wire.closed == set()


def test_byte_by_byte(wire: Wire) -> None:
    key = wire.open()
    answer = b"".join(wire.send(key, bytes([byte])) for byte in put() + get())
    assert answer.count(b"HTTP/1.1 ") == 2 and answer.endswith(TEXT)


def test_a_change_reaches_whoever_waits(wire: Wire) -> None:
    reader = wire.open()
    assert wire.send(reader, get('If-None-Match: "none"')) == b""
    wire.wait(20)
    writer = wire.open()
    wire.send(writer, put())
    assert wire.written[reader].endswith(TEXT)
    version = wire.written[reader].split(b'ETag: "')[1].partition(b'"')[0].decode()
    assert wire.send(reader, get(f'If-None-Match: "{version}"')) == b""
    wire.wait(WAIT_S)
    answer = wire.written[reader].split(TEXT)[1]
    assert status(answer) == 304 and answer.endswith(b"\r\n\r\n") and b"Content-Length" not in answer
    assert wire.closed == set()


def test_requests_that_come_at_once_are_answered_in_their_order(wire: Wire) -> None:
    key = wire.open()
    answer = wire.send(key, put() + get() + get(path=f"/{ROOM}/controlled") + get())
    assert [status(b"HTTP/1.1 " + each) for each in answer.split(b"HTTP/1.1 ")[1:]] == [201, 200, 404, 200]


def test_what_stands_behind_a_request_is_for_the_next_turn(wire: Wire) -> None:
    """So that a client with many requests keeps nobody else waiting."""
    key = wire.open()
    wire.core.handle_data(key, put() + get() + get(), wire.now)
    for _ in range(3):
        assert isinstance(wire.core.poll_output(), Write)
        assert wire.core.poll_output() is None
        assert (wire.core.poll_timeout() or 0) <= wire.now or wire.core.connections
        wire.core.handle_timeout(wire.now)
    assert wire.core.poll_output() is None
    assert wire.core.poll_timeout() == wire.now + IDLE_S


def test_the_token_is_for_later(wire: Wire) -> None:
    alice, eve = wire.open(), wire.open("203.0.113.1")
    token = wire.send(alice, put()).split(b"Room-Token: ")[1].partition(b"\r\n")[0].decode()
    refused = wire.send(eve, put(TEXT + b"a=x\n"))
    assert status(refused) == 409 and token.encode() not in refused
    assert status(wire.send(alice, put(TEXT + b"a=x\n", f"Room-Token: {token}"))) == 204


def test_curl_waits_for_a_100(wire: Wire) -> None:
    """RFC 9110, 10.1.1: "Expect: 100-continue"."""
    key = wire.open()
    request = put(TEXT, "Expect: 100-continue")
    head, body = request[: -len(TEXT)], request[-len(TEXT) :]
    assert wire.send(key, head) == b"HTTP/1.1 100 \r\n\r\n"
    assert status(wire.send(key, body)) == 201


def test_http_1_0_has_one_request(wire: Wire) -> None:
    key = wire.open()
    assert status(wire.send(key, f"GET {PATH} HTTP/1.0\r\n\r\n".encode())) == 404
    assert key in wire.closed


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PATCH"])
def test_other_methods(wire: Wire, method: str) -> None:
    key = wire.open()
    answer = wire.send(key, f"{method} {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status(answer) == 405 and b"Allow: GET, PUT, DELETE" in answer
    assert answer.endswith(b"\r\n\r\n") is (method == "HEAD")
    assert status(wire.send(key, get())) == 404


def test_an_upgrade_is_not_taken_up(wire: Wire) -> None:
    key = wire.open()
    assert (
        status(wire.send(key, get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"))) == 404
    )
    assert status(wire.send(key, get())) == 404


# --- what is refused ---------------------------------------------------------------------------------------------


def test_sizes(wire: Wire) -> None:
    key = wire.open()
    longest = TEXT + b"a=" + b"x" * (MAX_TEXT - len(TEXT) - 2)
    assert status(wire.send(key, put(longest))) == 201
    assert status(wire.send(key, put(longest + b"x")[:200])) == 413
    assert key in wire.closed
    key = wire.open()
    assert status(wire.send(key, get("X: " + "x" * MAX_HEADER_BYTES))) == 431
    assert key in wire.closed
    key = wire.open()
    long = get("X: " + "x" * MAX_HEADER_BYTES)
    assert wire.send(key, long[:10_000]) == b""
    assert status(wire.send(key, long[10_000:-2])) == 431
    assert key in wire.closed
    key = wire.open()
    assert status(wire.send(key, put().replace(b"Content-Length: 51", b"Transfer-Encoding: chunked"))) == 411
    assert key in wire.closed


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PUT " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"PUT " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"PUT " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_not_http_is_closed(wire: Wire, data: bytes) -> None:
    key = wire.open()
    assert status(wire.send(key, data)) in (0, 400, 404)
    wire.wait(REQUEST_S)
    assert key in wire.closed or status(wire.written[key]) == 404


# --- time --------------------------------------------------------------------------------------------------------


def test_a_connection_without_a_request_is_closed(wire: Wire) -> None:
    silent = wire.open()
    wire.wait(REQUEST_S - 0.1)
    assert silent not in wire.closed
    wire.wait(0.2)
    assert silent in wire.closed and silent not in wire.written
    served = wire.open()
    wire.send(served, get())
    wire.wait(IDLE_S - 0.1)
    assert served not in wire.closed
    wire.wait(0.2)
    assert served in wire.closed
    assert wire.core.connections == 0 and wire.core.poll_timeout() is None


def test_a_request_that_comes_drop_by_drop_is_cut_off(wire: Wire) -> None:
    """Ten seconds for the whole of it, however many pieces come."""
    key = wire.open()
    wire.send(key, get())
    wire.wait(20)
    for byte in put()[:19]:
        wire.send(key, bytes([byte]))
        wire.wait(0.5)
    assert key not in wire.closed
    wire.wait(0.6)
    assert key in wire.closed
    assert wire.written[key].count(b"HTTP/1.1 408 ") == 1
    assert wire.core.counters["closed: slow"] == 1


def test_a_body_that_does_not_come_is_cut_off(wire: Wire) -> None:
    key = wire.open()
    wire.send(key, put()[:-1])
    wire.wait(REQUEST_S)
    assert key in wire.closed and status(wire.written[key]) == 408


def test_a_client_that_takes_no_answers_is_cut_off(wire: Wire) -> None:
    key = wire.open()
    wire.send(key, put())
    wire.block(key, True)
    assert wire.send(key, get()) == b""
    wire.wait(1)
    wire.block(key, False)
    assert wire.written[key].endswith(TEXT)
    wire.block(key, True)
    wire.wait(BLOCKED_S)
    assert key in wire.closed and wire.core.counters["closed: blocked"] == 1


def test_waiting_is_not_idling(wire: Wire) -> None:
    key = wire.open()
    for _ in range(4):
        wire.send(key, get('If-None-Match: "none"'))
        wire.wait(WAIT_S)
    assert wire.written[key].count(b"HTTP/1.1 304 ") == 4 and key not in wire.closed


# --- how much ----------------------------------------------------------------------------------------------------


def test_a_client_that_goes_on_sending_while_it_waits_is_cut_off(wire: Wire) -> None:
    key = wire.open()
    wire.send(key, get('If-None-Match: "none"'))
    wire.send(key, b"x" * MAX_UNREAD)
    assert key not in wire.closed
    wire.send(key, b"x")
    assert key in wire.closed and wire.core.counters["closed: unread"] == 1


def test_headers_that_come_in_one_piece_are_not_read_to_their_end(wire: Wire) -> None:
    """Else a quarter of a megabyte of them would hold up everybody for a tenth of a second."""
    key = wire.open()
    many = get().removesuffix(b"\r\n") + b"a: b\r\n" * 40_000 + b"\x00 is no header\r\n\r\n"
    assert status(wire.send(key, many)) == 431 and key in wire.closed


def test_a_client_that_sends_more_than_is_answered_is_cut_off(wire: Wire) -> None:
    key = wire.open()
    many = get() * (3 * MAX_UNREAD // len(get()))
    wire.core.handle_data(key, many, wire.now)
    wire.wait(0)
    assert key in wire.closed and wire.core.counters["closed: unread"] == 1
    assert wire.written[key].count(b"HTTP/1.1 ") == 1


def test_what_is_kept_of_a_client_does_not_grow_from_request_to_request(wire: Wire) -> None:
    key = wire.open()
    long_wait = get('If-None-Match: "none"', "X: " + "x" * 5000)
    wire.send(key, long_wait)
    for _ in range(20):
        for _ in range(3):
            wire.send(key, long_wait)
        wire.wait(WAIT_S)
        if key in wire.closed:
            break
    assert wire.core.counters["closed: unread"] == 1
    assert wire.written[key].count(b"304") < 10


def test_connections_have_a_bound_and_idle_ones_make_room() -> None:
    wire = Wire(max_connections=3)
    waiting, idle, busy = (wire.open(f"192.0.{number}.1") for number in range(3))
    wire.send(waiting, get('If-None-Match: "none"', path=f"/{ROOM}/controlled"))
    wire.send(idle, get())
    wire.send(busy, put()[:10])
    newer = wire.open("192.0.9.1")
    assert wire.closed == {idle} and wire.core.connections == 3
    assert status(wire.send(newer, put())) == 201
    # Now that one is idle.
    assert wire.open("192.0.9.2") not in wire.closed and newer in wire.closed
    refused = wire.open("192.0.9.3")
    assert refused in wire.closed
    # Who waits is not idle.
    wire.send(5, put(path=f"/{ROOM}/controlled"))
    assert wire.written[waiting].endswith(TEXT)


def test_one_network_has_so_many() -> None:
    wire = Wire(max_connections=1000)
    keys = [wire.open(f"2001:db8::{number:x}") for number in range(MAX_CONNECTIONS_OF_SOURCE + 1)]
    assert wire.closed == {keys[-1]}
    assert wire.open("2001:db8:1::1") not in wire.closed
    wire.core.handle_closed(keys[0], wire.now)
    assert wire.open("2001:db8::1") not in wire.closed


# --- whatever comes ----------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            put(),
            put()[:60],
            put(b""),
            put(TEXT, "Expect: 100-continue"),
            get(),
            get('If-None-Match: "none"'),
            get("If-None-Match: *"),
            get("Connection: close"),
            b"\r\n",
            b"0\r\n\r\n",
            b"Connection: close\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            f"HEAD {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            f"DELETE {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        ]
    ),
)
STEPS = st.one_of(
    st.tuples(st.just("data"), st.integers(1, 6), PIECES),
    st.tuples(st.just("open"), st.just(0), st.just(b"")),
    st.tuples(st.sampled_from(["close", "block", "unblock"]), st.integers(1, 6), st.just(b"")),
    st.tuples(st.just("wait"), st.integers(0, 40), st.just(b"")),
)


@given(st.lists(STEPS, max_size=50))
def test_whatever_comes_over_whatever_connections(steps: list[tuple[str, int, bytes]]) -> None:
    """Nothing raises, what is written is HTTP, and when all have gone nothing is kept."""
    wire = Wire(max_connections=4)
    wire.open()
    opened = 1
    for kind, number, data in steps:
        if kind == "open":
            wire.open()
            opened += 1
        elif kind == "wait":
            wire.wait(number / 2)
        elif number > opened:
            continue
        elif kind == "data":
            wire.send(number, data)
        elif kind == "close":
            wire.core.handle_closed(number, wire.now)
            wire.closed.add(number)
        else:
            wire.block(number, kind == "block")
        assert wire.core.connections <= 4
    for written in wire.written.values():
        assert written.startswith(b"HTTP/1.1 ")
    wire.wait(1000)
    core = wire.core
    assert (core.connections, core.poll_timeout()) == (0, None)
    assert not core._of_network and core._mailbox.rooms == 0 and core._mailbox.waiting == 0


@given(st.binary(max_size=300), st.integers(1, 20))
def test_any_bytes_in_any_pieces(data: bytes, size: int) -> None:
    wire = Wire()
    key = wire.open()
    for start in range(0, len(data), size):
        if key not in wire.closed:
            wire.send(key, data[start : start + size])
    wire.wait(REQUEST_S + IDLE_S)
    assert wire.core.connections == 0
