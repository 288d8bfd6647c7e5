"""What malformed and hostile input does to our TURN server: nothing, and it leaves nothing behind."""

from __future__ import annotations

import tracemalloc
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from gc import get_referents
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any
from zlib import crc32

import pytest

from iceagent.net.address import TransportAddress
from relay.error_limits import CHALLENGE_BURST, CHALLENGES_IN_ALL, CHALLENGES_PER_SECOND, ERRORS_PER_SECOND
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ATTRIBUTES,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    NONCE,
    PRIORITY,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressFamily,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.stun.wire import MAGIC_COOKIE, message_type
from relay.turn.credentials import Pair
from relay.turn.server import Accounts
from relay.turn.server.allocation import MAX_ANSWERS
from relay.turn.server.core import MAX_PERMISSIONS
from relay.turn.server.service import MAX_RESERVATIONS, MAX_RESERVATIONS_OF_USER, RESERVATION_S
from tests.unit.relay.turn.server_kit import (
    CLIENT,
    OTHER,
    PEER,
    PEER_2,
    PEER_6,
    REALM_NAME,
    USERS,
    Client,
    Court,
    Ports,
    code,
)

CLIENT_6 = TransportAddress("2606:2800:1::5", 5000)
SHA256_HEAD = bytes.fromhex("001c0020")
UDP: Pair = (REQUESTED_TRANSPORT, 17)


def source(number: int) -> TransportAddress:
    """Each in a /24 of its own."""
    return TransportAddress(f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.9", 5000)


def allocate_request(*pairs: Pair) -> bytes:
    return build(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), UDP, *pairs).encode(fingerprint=False)


def client_at(court: Court, address: TransportAddress, username: str = "user") -> Client:
    """One that has a nonce without having asked."""
    client = Client(court, address, username, USERS[username])
    client.nonce = court.service.gate.make_nonce(address, court.now)
    return client


def resized(data: bytes) -> bytes:
    """With the length that it has."""
    return data[:2] + (len(data) - 20).to_bytes(2, "big") + data[4:]


def attribute(number: int, value: bytes, pad: bytes = b"\0") -> bytes:
    return number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + pad * (-len(value) & 3)


def written(identity: bytes, pairs: Iterable[Pair], pad: bytes = b"\0") -> bytes:
    return b"".join(attribute(int(kind), kind.encode(value, identity), pad) for kind, value in pairs)


def head(method: int, message_class: MessageClass, identity: bytes, length: int = 0) -> bytes:
    bits = message_type(method, message_class)
    return bits.to_bytes(2, "big") + length.to_bytes(2, "big") + MAGIC_COOKIE.to_bytes(4, "big") + identity


def sealed(
    client: Client, method: int, body: bytes, *, identity: bytes, tail: bytes = b"", pad: bytes = b"\0"
) -> bytes:
    """A request of these attributes that is signed as it should be, and goes on after that."""
    credentials: list[Pair] = [(USERNAME, client.username), (REALM, REALM_NAME), (NONCE, client.nonce)]
    body += written(identity, credentials, pad)
    signed = head(method, MessageClass.REQUEST, identity, len(body) + 24) + body
    return resized(signed + attribute(0x0008, client.key.sign(signed)) + tail)


def fingerprinted(data: bytes) -> bytes:
    data = resized(data + bytes(8))[:-8]
    return data + attribute(0x8028, (crc32(data) ^ 0x5354554E).to_bytes(4, "big"))


def paddings(message: bytes) -> bytes:
    """The bytes of a message that say nothing."""
    found, position = b"", 20
    while position < len(message):
        stop = position + 4 + int.from_bytes(message[position + 2 : position + 4], "big")
        position = stop + (-stop & 3)
        found += message[stop:position]
    return found


_NO_STATE = (ModuleType, type, FunctionType, BuiltinFunctionType)
_CONTAINERS = (dict, list, set, deque)


def held(court: Court) -> int:
    """Entries of all containers that the server has, however deep."""
    roots = (court.service, court.turn, court.stun, court.limiter, court.policy, court.ports)
    waiting: list[Any] = list(roots)
    seen, count = {id(root) for root in roots}, 0
    while waiting:
        thing = waiting.pop()
        count += len(thing) if isinstance(thing, _CONTAINERS) else 0
        for each in get_referents(thing):
            if id(each) not in seen and not isinstance(each, _NO_STATE):
                seen.add(id(each))
                waiting.append(each)
    return count


# --- lengths and wraps -------------------------------------------------------------------------------------------

_HEAD = head(Method.ALLOCATE, MessageClass.REQUEST, bytes(12))
_FULL = _HEAD[:2] + b"\xff\xff" + _HEAD[4:]
MALFORMED = {
    "nothing": b"",
    "one byte": b"\0",
    "half a header": _HEAD[:10],
    "length 0xFFFF": _FULL,
    "length 0xFFFF, and so long": _FULL + bytes(0xFFFF),
    "length 0xFFFC of 0xFFFF": _HEAD[:2] + b"\xff\xfc" + _HEAD[4:] + bytes(0xFFFF),
    "longer than it says": _HEAD + bytes(4),
    "shorter than it says": _HEAD[:2] + b"\0\x08" + _HEAD[4:] + bytes(4),
    "length that is no multiple of 4": _HEAD[:2] + b"\0\x06" + _HEAD[4:] + bytes(6),
    "attribute longer than the rest": resized(_HEAD + b"\0\x06\0\x05user"),
    "attribute of length 0xFFFF": resized(_HEAD + b"\0\x06\xff\xff" + bytes(8)),
    "attribute that wraps to 0": resized(_HEAD + b"\0\x06\xff\xfc" + bytes(8)),
    "attribute that wraps to itself": resized(_HEAD + b"\0\x06\xff\xe8" + bytes(20)),
    "unknown attribute longer than the rest": resized(_HEAD + b"\x7f\xff\0\x01"),
    "MESSAGE-INTEGRITY of 16 bytes": resized(_HEAD + attribute(0x0008, bytes(16))),
    "MESSAGE-INTEGRITY of no bytes": resized(_HEAD + attribute(0x0008, b"")),
    "MESSAGE-INTEGRITY-SHA256 of 12 bytes": resized(_HEAD + attribute(0x001C, bytes(12))),
    "MESSAGE-INTEGRITY-SHA256 of 36 bytes": resized(_HEAD + attribute(0x001C, bytes(36))),
    "wrong FINGERPRINT": resized(_HEAD + attribute(0x8028, bytes(4))),
    "something after FINGERPRINT": resized(fingerprinted(_HEAD) + attribute(LIFETIME, bytes(4))),
    "the two top bits": b"\xc0" + _HEAD[1:],
    "another cookie": _HEAD[:4] + b"\x21\x12\xa4\x43" + _HEAD[8:],
    "ChannelData from nowhere": b"\x40\x00\x00\x04data",
    "HTTP": b"POST /turn HTTP/1.1\r\nContent-Length: 4294967295\r\n\r\n",
}


# Malformed, too, but of one value alone.
WRONG_VALUES = {
    "empty XOR-PEER-ADDRESS": resized(_HEAD + attribute(XOR_PEER_ADDRESS, b"")),
    "XOR-PEER-ADDRESS of family 3": resized(_HEAD + attribute(XOR_PEER_ADDRESS, b"\0\x03" + bytes(6))),
    "XOR-PEER-ADDRESS of IPv6 in 8 bytes": resized(_HEAD + attribute(XOR_PEER_ADDRESS, b"\0\x02" + bytes(6))),
    "XOR-PEER-ADDRESS of IPv4 in 20 bytes": resized(_HEAD + attribute(XOR_PEER_ADDRESS, b"\0\x01" + bytes(18))),
    "short ERROR-CODE": resized(_HEAD + attribute(ERROR_CODE, b"\0\0\4")),
    "odd UNKNOWN-ATTRIBUTES": resized(_HEAD + attribute(UNKNOWN_ATTRIBUTES, b"\0\1\0")),
    "LIFETIME of 5 bytes": resized(_HEAD + attribute(LIFETIME, bytes(5))),
    "EVEN-PORT of 4 bytes": resized(_HEAD + attribute(EVEN_PORT, bytes(4))),
    "RESERVATION-TOKEN of 7 bytes": resized(_HEAD + attribute(RESERVATION_TOKEN, bytes(7))),
    "REQUESTED-TRANSPORT of 1 byte": resized(_HEAD + attribute(REQUESTED_TRANSPORT, b"\x11")),
    "USERNAME that is no UTF-8": resized(_HEAD + attribute(USERNAME, b"\xff\xfe\xfd\xfc")),
    "USERNAME of 764 bytes": resized(_HEAD + attribute(USERNAME, b"u" * 764)),
}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_dropped(data: bytes, is_known: bool) -> None:
    court = Court()
    client = Client(court)
    if is_known:
        client.allocate()
    court.deliver(b"")
    before = held(court)
    for _ in range(20):
        assert court.deliver(data) == []
    assert court.to_peers == []
    assert held(court) <= before + 1  # the counter of its kind
    if is_known:
        assert code(client.ask(Method.REFRESH)) == 0


@pytest.mark.parametrize("data", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_stranger_hears_no_more_of_a_wrong_value_than_of_a_right_one(data: bytes) -> None:
    """A question for credentials, no longer than to the shortest request, so often, and nothing is kept."""
    court = Court()
    (usual,) = court.deliver(allocate_request(), source(2))
    court.pass_time(10.0)
    answers = [answer for _ in range(CHALLENGE_BURST + 50) for answer in court.deliver(data, source(1))]
    assert len(answers) == CHALLENGE_BURST
    assert {code(parse(answer)) for answer in answers} == {401} and {len(answer) for answer in answers} == {len(usual)}
    assert not court.turn.allocations
    court.pass_time(10.0)
    before = held(court)
    court.deliver(data, source(1))
    assert held(court) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40",
        b"\x40\x01\0",
        b"\x40\x01\0\x01",
        b"\x40\x01\0\x05data",
        b"\x40\x01\xff\xff" + bytes(0xFFFE),
        b"\x40\x02\0\x04data",
        b"\x7f\xff\0\x04data",
        b"\x3f\xff\0\x04data",
        b"\0\x01\0\x04data",
        b"\xff\xff\0\x04data",
    ],
)
def test_channel_data_that_does_not_fit_is_dropped(data: bytes) -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    assert court.allocation().to_peer(data, court.now) is None
    assert court.allocation().packets == [0, 0]
    # What follows the announced length is padding, and not relayed.
    found = court.allocation().to_peer(b"\x40\x01\0\x02data", court.now)
    assert found is not None and found[2] == b"da"


@pytest.mark.parametrize("size", [0, 1, 65_507, 65_531, 65_535])
def test_what_a_peer_sends_fits_or_is_dropped(size: int) -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))
    message = court.turn.from_peer(court.allocation(), PEER, bytes(size), court.now)
    if size > 65_507:
        assert message is None
    else:
        assert message is not None and parse(message).get(DATA) == bytes(size)
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    message = court.turn.from_peer(court.allocation(), PEER, bytes(size), court.now)
    assert message == b"\x40\x01" + size.to_bytes(2, "big") + bytes(size)


def test_only_requests_and_send_indications_are_taken() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))
    before = held(court)
    for method in (*Method, 0, 2, 5, 0xFFF):
        for message_class in MessageClass:
            wanted = (Method.SEND, MessageClass.INDICATION), (Method.BINDING, MessageClass.REQUEST)
            is_ours = message_class == MessageClass.REQUEST and method in (3, 4, 8, 9, 10, 11)
            if is_ours or (method, message_class) in wanted:
                continue
            message = build(method, message_class, bytes(12), (XOR_PEER_ADDRESS, PEER), (DATA, b"x"), UDP)
            assert court.deliver(message.encode(fingerprint=False)) == []
    assert court.to_peers == []
    assert held(court) <= before + 6  # counters


# --- what is not signed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_fingerprinted", [False, True])
def test_attributes_after_message_integrity_are_ignored(is_fingerprinted: bool) -> None:
    """coturn ab762f33."""
    court = Court()
    client = client_at(court, CLIENT)

    def ask(method: int, body: Sequence[Pair], tail: Sequence[Pair], more: bytes = b"") -> Any:
        identity = court.transaction_id()
        after = written(identity, tail) + more
        data = sealed(client, method, written(identity, body), identity=identity, tail=after)
        (answer,) = court.deliver(fingerprinted(data) if is_fingerprinted else data)
        return parse(answer)

    answer = ask(Method.ALLOCATE, [UDP], [(LIFETIME, 3000), (EVEN_PORT, True), (MOBILITY_TICKET, b"")])
    assert (code(answer), answer.get(LIFETIME)) == (0, 600)
    assert answer.get(RESERVATION_TOKEN) is None and answer.get(MOBILITY_TICKET) is None
    assert code(ask(Method.CREATE_PERMISSION, [(XOR_PEER_ADDRESS, PEER)], [(XOR_PEER_ADDRESS, PEER_2)])) == 0
    assert set(court.allocation().permissions) == {PEER.host}
    assert code(ask(Method.CREATE_PERMISSION, [], [(XOR_PEER_ADDRESS, PEER_2)])) == 400
    assert code(ask(Method.CHANNEL_BIND, [(CHANNEL_NUMBER, 0x4001)], [(XOR_PEER_ADDRESS, PEER_2)])) == 400
    assert not court.allocation().channels and set(court.allocation().permissions) == {PEER.host}
    # Neither unknown ones, which would be a 420, nor a deletion.
    answer = ask(Method.REFRESH, [], [(LIFETIME, 0), (DONT_FRAGMENT, True)], attribute(0x7FFE, b"x"))
    assert (code(answer), answer.get(LIFETIME)) == (0, 600)


def test_an_indication_is_cut_at_its_integrity_too() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))
    identity = court.transaction_id()
    start = head(Method.SEND, MessageClass.INDICATION, identity)
    peer, data = written(identity, [(XOR_PEER_ADDRESS, PEER)]), written(identity, [(DATA, b"x")])
    seal = attribute(0x0008, bytes(20))
    assert court.deliver(resized(start + data + seal + peer)) == [] == court.to_peers
    assert court.deliver(resized(start + peer + seal + data)) == [] == court.to_peers
    assert court.deliver(resized(start + peer + data + seal)) == [] != court.to_peers


def test_sha256_after_message_integrity_is_no_unknown_attribute() -> None:
    court = Court()
    client = client_at(court, CLIENT)
    credentials: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, client.nonce)]
    message = build(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), UDP, *credentials)
    (answer,) = court.deliver(message.encode(client.key, both=True))
    assert code(parse(answer)) == 0
    # One that is forged is a wrong one, and does not pass for the sake of the other.
    for tail in (SHA256_HEAD + bytes(32), bytes.fromhex("001c0010") + bytes(16)):
        identity = court.transaction_id()
        (answer,) = court.deliver(sealed(client, Method.REFRESH, b"", identity=identity, tail=tail))
        assert code(parse(answer)) == 401


def test_of_two_peers_the_first_is_judged_and_the_first_is_used() -> None:
    """coturn #2016."""
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))
    evil = PEER._replace(host="127.0.0.1")
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (XOR_PEER_ADDRESS, evil), (DATA, b"x"), (DATA, b"y"))
    assert [(peer, data) for _, peer, data in court.to_peers] == [(PEER, b"x")]
    for first in (evil, PEER_2):
        client.indicate(Method.SEND, (XOR_PEER_ADDRESS, first), (XOR_PEER_ADDRESS, PEER), (DATA, b"x"))
    assert len(court.to_peers) == 1
    bind, number = Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001)
    assert code(client.ask(bind, number, (XOR_PEER_ADDRESS, evil), (XOR_PEER_ADDRESS, PEER))) == 403
    assert code(client.ask(bind, number, (XOR_PEER_ADDRESS, PEER), (XOR_PEER_ADDRESS, evil))) == 0
    found = court.allocation().to_peer(b"\x40\x01\0\x01x", court.now)
    assert found is not None and found[1] == PEER
    assert set(court.allocation().permissions) == {PEER.host}


# --- padding -----------------------------------------------------------------------------------------------------


class HearingCourt(Court):
    """Keeps what it answers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: list[bytes] = []

    def drain(self) -> list[bytes]:
        found = super().drain()
        self.heard += found
        return found


def ask_everything(court: Court) -> None:
    """Requests of all kinds, whose own padding is full of ones."""
    clients = {name: client_at(court, source(number), name) for number, name in enumerate(USERS)}

    def ask(client: Client, method: int, *pairs: Pair, more: bytes = b"") -> int:
        identity = court.transaction_id()
        body = written(identity, pairs, b"\xff") + more
        (answer,) = court.deliver(sealed(client, method, body, identity=identity, pad=b"\xff"), client.source)
        return code(parse(answer))

    one, two = clients.values()
    unknown = b"".join(attribute(0x7F00 + number, b"x" * number, b"\xff") for number in range(1, 6))
    court.deliver(resized(allocate_request() + unknown), source(9))
    ask(Client(court, source(10), password="guess"), Method.ALLOCATE, UDP)
    for count in range(1, 4):
        data = resized(head(Method.BINDING, MessageClass.REQUEST, bytes(12)) + unknown[: 4 * 2 * count])
        court.deliver(data, source(11))
        ask(one, Method.ALLOCATE, UDP, more=unknown[: 8 * count])
    ask(one, Method.ALLOCATE, (REQUESTED_TRANSPORT, 6))
    ask(one, Method.ALLOCATE, (REQUESTED_TRANSPORT, 7))
    ask(one, Method.ALLOCATE)
    ask(one, Method.ALLOCATE, UDP, (REQUESTED_ADDRESS_FAMILY, 7))
    ask(one, Method.ALLOCATE, UDP, (RESERVATION_TOKEN, bytes(8)))
    ask(one, Method.ALLOCATE, UDP, (DONT_FRAGMENT, True))
    ask(one, Method.REFRESH)
    assert ask(one, Method.ALLOCATE, UDP, (EVEN_PORT, True), (MOBILITY_TICKET, b"")) == 0
    assert ask(two, Method.ALLOCATE, UDP, (ADDITIONAL_ADDRESS_FAMILY, 2)) == 0
    ask(client_at(court, source(12)), Method.ALLOCATE, UDP)
    ask(one, Method.ALLOCATE, UDP)
    ask(client_at(court, one.source, "other"), Method.REFRESH)
    ask(one, Method.REFRESH, (MOBILITY_TICKET, b"xyz"))
    ask(one, Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, 2))
    ask(one, Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER._replace(host="10.0.0.1")))
    ask(one, Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))
    ask(one, Method.CHANNEL_BIND, (XOR_PEER_ADDRESS, PEER))
    ask(one, Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    one.nonce = "stale"
    ask(one, Method.REFRESH)
    court.deliver(build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode())


def test_padding_is_zero_in_every_response() -> None:
    """CVE-2020-4067."""
    codes: set[int] = set()
    pads = b""
    for options in ({"user_quota": 1}, {"mobility": False, "max_allocations": 2, "ports": Ports({4: "93.184.216.1"})}):
        court = HearingCourt(**options)
        if "ports" in options:
            identity = court.transaction_id()
            body = written(identity, [UDP, (MOBILITY_TICKET, b"")])
            court.deliver(sealed(client_at(court, CLIENT), Method.ALLOCATE, body, identity=identity))
            two = client_at(court, CLIENT)
            two.allocate((ADDITIONAL_ADDRESS_FAMILY, AddressFamily.IPV6))
            two.ask(Method.REFRESH, (LIFETIME, 0))
        else:
            ask_everything(court)
        for message in court.heard:
            codes.add(code(parse(message)))
            pads += paddings(message)
    assert codes >= {0, 400, 401, 403, 405, 420, 437, 438, 440, 441, 442, 443, 486, 508}
    assert len(pads) > 50 and set(pads) == {0}


@pytest.mark.parametrize("is_stream", [False, True])
def test_padding_is_zero_in_what_peers_send(is_stream: bool) -> None:
    court = Court(is_stream=is_stream)
    client = Client(court)
    client.allocate()
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER_2))
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    for size in range(9):
        data = b"\xff" * size
        indication = court.turn.from_peer(court.allocation(), PEER_2, data, court.now)
        assert indication is not None and paddings(indication) == bytes(-size & 3)
        message = court.turn.from_peer(court.allocation(), PEER, data, court.now)
        assert message == bytes((0x40, 1, 0, size)) + data + (bytes(-size & 3) if is_stream else b"")


# --- who only asks -----------------------------------------------------------------------------------------------


def flood(court: Court, request: bytes, numbers: Iterable[int]) -> int:
    """From a network each; the number of answers."""
    return sum(len(court.deliver(request, source(number))) for number in numbers)


def forged() -> bytes:
    """A signed Allocate with a nonce that is none."""
    client = Client(Court())
    return client.request(Method.ALLOCATE, UDP, nonce="obMatJos2gAAA00000000" + "0" * 16)


def test_a_million_spoofed_allocates_leave_nothing_behind() -> None:
    """coturn #1999: unsigned ones and such with a forged signature, in ten seconds, each from a /24 of its own."""
    court, requests = Court(), (allocate_request(), forged())
    remembered_s = CHALLENGE_BURST // CHALLENGES_PER_SECOND
    for request in requests:
        assert flood(court, request, [1] * 20) == 20
    court.pass_time(remembered_s + 1.0)
    flood(court, requests[0], [1_500_000])
    before, buckets = held(court), len(court.service.challenges)
    answers = 0
    for second in range(10):
        first = second * 100_000
        for number, request in enumerate(requests):
            answers += flood(court, request, range(first + number, first + 100_000, len(requests)))
        # That is all there is, however many they are: who was answered in the last five seconds.
        # One of them is that of the request just before.
        assert len(court.service.challenges) == min(second + 1, remembered_s) * CHALLENGES_IN_ALL
        assert held(court) - before == len(court.service.challenges) - buckets + 1  # the counter of what is dropped
        assert len(court.limiter) == len(court.service.gate.attempts._buckets) == len(court.service.gate._keys) == 0
        court.pass_time(1.0)
    # Each network was answered at most once, of all networks together so many in a second; nobody else was.
    assert answers == 10 * CHALLENGES_IN_ALL - 1
    assert court.turn.counters["requests"] == 1_000_000 + 41
    assert court.turn.counters["dropped: too many challenges"] == 1_000_000 - answers
    assert court.turn.counters["errors"] == answers + 41
    assert not court.turn.allocations and not court.ports.open_now and not court.service.by_user
    assert court.turn.poll_timeout() is None and court.turn.poll_transmit() is None
    court.pass_time(remembered_s + 1.0)
    assert flood(court, requests[0], [1_500_000]) == 1
    assert held(court) == before + 1  # the counter of what was dropped


def test_spoofed_allocates_take_no_memory() -> None:
    court, request = Court(), allocate_request()

    def seconds(first: int, last: int) -> None:
        for second in range(first, last):
            flood(court, request, range(second * 8_000, second * 8_000 + 8_000))
            court.pass_time(1.0)

    seconds(0, 7)  # what is bounded is full then
    tracemalloc.start()
    try:
        seconds(7, 9)
        before, _ = tracemalloc.get_traced_memory()
        seconds(9, 12)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What was allocated before it was traced is not counted when it goes: three seconds' worth of 25,000 networks.
    assert (after - before) / (3 * CHALLENGES_IN_ALL) < 700
    assert len(court.service.challenges) == 25_000


@pytest.mark.parametrize("request_of", [allocate_request, forged])
def test_questions_for_credentials_are_limited_for_a_source_network(request_of: Any) -> None:
    court, request = Court(), request_of()

    def answers(hosts: Iterable[str]) -> int:
        return sum(len(court.deliver(request, TransportAddress(host, 5000))) for host in hosts)

    def everywhere(prefix: str) -> Iterable[str]:
        return (f"{prefix}{number % 250}" for number in range(CHALLENGE_BURST + 100))

    assert answers(everywhere("198.18.0.")) == CHALLENGE_BURST
    assert answers(everywhere("2a00:1:2:3::")) == CHALLENGE_BURST
    # Others are served: the next /24, and another /56.
    assert answers(["198.18.1.1", "2a00:1:2:1003::1"]) == 2
    court.pass_time(1.0)
    assert answers(everywhere("198.18.0.")) == CHALLENGES_PER_SECOND
    assert court.turn.counters["dropped: too many challenges"] == 200 + CHALLENGE_BURST + 100 - CHALLENGES_PER_SECOND


def test_sixty_clients_of_one_address_begin_at_once() -> None:
    """An office behind one address, after a power cut."""
    court = Court()
    clients = [Client(court, TransportAddress("198.18.0.1", 5000 + number)) for number in range(60)]
    assert [code(client.allocate()) for client in clients] == [0] * 60


def test_other_errors_to_who_may_be_forged_are_ten_a_second() -> None:
    """Wrong passwords, and requests that are signed but lack something; questions are still answered beside them."""
    for wrong in ("password", "realm"):
        court = Court()
        client = Client(court, password="guess")
        client.challenge()
        signed = build(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), UDP, (USERNAME, "user")).encode(client.key)
        request = client.request(Method.ALLOCATE, UDP) if wrong == "password" else signed
        assert sum(len(court.deliver(request, client.source)) for _ in range(50)) == ERRORS_PER_SECOND
        assert code(client.challenge()) == 401
        assert court.turn.counters["errors"] == ERRORS_PER_SECOND + 2
        expected = {"errors: 401": 12} if wrong == "password" else {"errors: 401": 2, "errors: 400": 10}
        assert {key: court.turn.counters[key] for key in expected} == expected
        assert court.turn.counters["wrong passwords"] == (50 if wrong == "password" else 0)


def test_who_is_signed_in_is_not_limited() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    codes = Counter(code(client.ask(Method.CREATE_PERMISSION)) for _ in range(50))
    assert codes == {400: 50}


@pytest.mark.parametrize(
    ("address", "limit"), [(TransportAddress("198.18.0.1", 5000), 1.6), (CLIENT_6, 2.2)], ids=["IPv4", "IPv6"]
)
def test_a_binding_response_is_hardly_longer_than_its_request(address: TransportAddress, limit: float) -> None:
    court = Court()
    bare = build(Method.BINDING, MessageClass.REQUEST, bytes(12))
    classic = b"\0\x01\0\0" + bytes(16)
    unknown = resized(bare.encode(fingerprint=False) + attribute(0x7FFE, b""))
    for request in (bare.encode(fingerprint=False), bare.encode(), classic):
        (answer,) = court.deliver(request, address)
        assert len(answer) / len(request) <= limit
    # One that is refused is limited as well.
    assert sum(len(court.deliver(unknown, address)) for _ in range(50)) == ERRORS_PER_SECOND


def test_nobody_is_answered_who_cannot_have_asked() -> None:
    court = Court()
    requests = allocate_request(), forged(), build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode()
    for host, port in [("0.0.0.0", 5000), ("::", 5000), ("224.0.0.1", 5000), ("ff02::1", 5000)]:
        for request in requests:
            assert court.deliver(request, TransportAddress(host, port)) == []
    for host, port in [("255.255.255.255", 5000), ("198.18.0.1", 0), ("203.0.113.1", 3478)]:
        for request in requests:
            assert court.deliver(request, TransportAddress(host, port)) == []
    assert all(len(court.deliver(request, source(1))) == 1 for request in requests)


# --- who has an account ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reserves", [False, True])
def test_even_ports_are_given_back(reserves: bool) -> None:
    """coturn 4adbd82e."""
    court = Court(user_quota=1)
    # Of somebody else, and not among those that are given out next.
    court.ports.open_now.add(PEER)
    for number in range(10_000):
        if number % MAX_RESERVATIONS_OF_USER == 0:
            court.pass_time(RESERVATION_S)
            assert court.ports.open_now == {PEER}
            client = client_at(court, CLIENT)
        answer = client.allocate((EVEN_PORT, reserves))
        relayed = answer.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None and relayed.port % 2 == 0
        assert (answer.get(RESERVATION_TOKEN) is not None) == reserves
        assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert len(court.ports.open_now) == (1 + MAX_RESERVATIONS_OF_USER if reserves else 1)
    court.pass_time(RESERVATION_S)
    assert court.ports.open_now == {PEER}
    assert court.service.reserves_until is None and not court.service.by_user


def test_reservations_are_limited() -> None:
    users = {f"user{number}": "secret" for number in range(MAX_RESERVATIONS // MAX_RESERVATIONS_OF_USER + 1)}
    court = Court(ports=Ports(limit=100_000), accounts=Accounts(realm=REALM_NAME, users=users))
    codes: Counter[int] = Counter()
    for name in users:
        client = Client(court, username=name)
        client.nonce = court.service.gate.make_nonce(CLIENT, court.now)
        for _ in range(MAX_RESERVATIONS_OF_USER):
            codes[code(client.allocate((EVEN_PORT, True)))] += 1
            client.ask(Method.REFRESH, (LIFETIME, 0))
    assert codes == {0: MAX_RESERVATIONS, 508: MAX_RESERVATIONS_OF_USER}
    # What could not be reserved was not opened either.
    assert len(court.ports.open_now) == MAX_RESERVATIONS
    court.pass_time(RESERVATION_S)
    assert not court.ports.open_now and code(client.allocate((EVEN_PORT, True))) == 0


def test_one_user_reserves_no_more_than_some() -> None:
    """A reservation counts for no quota of allocations: it has one of its own, and leaves others theirs."""
    court = Court(user_quota=1)
    mine, theirs = Client(court), Client(court, OTHER, "other", "password")
    tokens = []
    for _ in range(MAX_RESERVATIONS_OF_USER):
        tokens.append(mine.allocate((EVEN_PORT, True)).get(RESERVATION_TOKEN))
        mine.ask(Method.REFRESH, (LIFETIME, 0))
    before = len(court.ports.open_now)
    assert code(mine.allocate((EVEN_PORT, True))) == 486
    assert len(court.ports.open_now) == before == MAX_RESERVATIONS_OF_USER
    # Without one it may allocate, and others may reserve.
    assert code(mine.allocate((EVEN_PORT, False))) == 0
    mine.ask(Method.REFRESH, (LIFETIME, 0))
    assert code(theirs.allocate((EVEN_PORT, True))) == 0
    # One that is claimed, whoever does so, or that ends, makes room.
    theirs.ask(Method.REFRESH, (LIFETIME, 0))
    assert code(theirs.allocate((RESERVATION_TOKEN, tokens[0]))) == 0
    assert code(mine.allocate((EVEN_PORT, True))) == 0
    mine.ask(Method.REFRESH, (LIFETIME, 0))
    assert code(mine.allocate((EVEN_PORT, True))) == 486
    court.pass_time(RESERVATION_S)
    assert code(mine.allocate((EVEN_PORT, True))) == 0


def test_a_reservation_is_claimed_once_and_in_time() -> None:
    court = Court()
    client = Client(court)
    tokens = []
    for _ in range(2):
        tokens.append((RESERVATION_TOKEN, client.allocate((EVEN_PORT, True)).get(RESERVATION_TOKEN)))
        client.ask(Method.REFRESH, (LIFETIME, 0))
    assert code(client.allocate(tokens[0])) == 0
    client.ask(Method.REFRESH, (LIFETIME, 0))
    assert not court.policy.relayed and len(court.ports.open_now) == 1
    assert code(client.allocate(tokens[0])) == 508
    court.pass_time(RESERVATION_S)
    assert code(client.allocate(tokens[1])) == 508
    assert not court.ports.open_now and not court.turn.allocations


def peers(numbers: Iterable[int]) -> list[Pair]:
    return [(XOR_PEER_ADDRESS, TransportAddress(f"94.0.{number >> 8}.{number & 255}", 7000)) for number in numbers]


def filled(court: Court) -> Client:
    """An allocation with as many permissions as there may be."""
    client = Client(court)
    client.allocate((LIFETIME, 3600))
    for first in range(0, MAX_PERMISSIONS, 64):
        assert code(client.ask(Method.CREATE_PERMISSION, *peers(range(first, first + 64)))) == 0
    return client


def test_permissions_are_limited() -> None:
    court = Court()
    client = filled(court)
    for number in range(5000, 5300):
        court.policy.admits(peers([number])[0][1])  # which is remembered, of so many
    before = held(court)
    for number in range(5000, 5300):
        assert code(client.ask(Method.CREATE_PERMISSION, *peers([number]))) == 508
        bind = ((CHANNEL_NUMBER, 0x4000 + number - 5000), *peers([number]))
        assert code(client.ask(Method.CHANNEL_BIND, *bind)) == 508
    assert code(client.ask(Method.CREATE_PERMISSION, *peers(range(1000, 1030)))) == 508
    assert len(court.allocation().permissions) == MAX_PERMISSIONS and not court.allocation().channels
    assert held(court) - before <= 2 * MAX_ANSWERS
    # Those that there are can be renewed.
    court.pass_time(200.0)
    assert code(client.ask(Method.CREATE_PERMISSION, *peers(range(64)))) == 0
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), *peers([3]))) == 0


def test_more_permissions_than_the_limit_in_one_request() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    assert code(client.ask(Method.CREATE_PERMISSION, *peers(range(MAX_PERMISSIONS + 1)))) == 508
    assert not court.allocation().permissions
    # Of one host there is one, however often it is named.
    assert code(client.ask(Method.CREATE_PERMISSION, *peers([7] * (MAX_PERMISSIONS + 1)))) == 0
    assert len(court.allocation().permissions) == 1


def test_permissions_that_have_ended_do_not_count() -> None:
    """RFC 8656, 9: they last five minutes; an allocation may last for days, and its peers change."""
    court = Court()
    client = filled(court)
    court.pass_time(301.0)
    assert code(client.ask(Method.CREATE_PERMISSION, *peers([5000]))) == 0


def test_channels_are_limited_by_their_numbers() -> None:
    court = Court()
    client = client_at(court, CLIENT)
    client.allocate((LIFETIME, 3600))
    for number in range(0x4000, 0x4100):
        peer = TransportAddress(PEER.host, number)
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == 0
    for number in (0, 0x3FFF, 0x8000, 0xFFFF):
        peer = TransportAddress(PEER.host, 9)
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == 400
    allocation = court.allocation()
    assert len(allocation.channels) == len(allocation.numbers) == 0x100
    # Other peers at the same numbers, once they have ended: nothing of the old ones stays.
    court.pass_time(601.0)
    client = client_at(court, CLIENT)
    for number in range(0x4000, 0x4100):
        peer = TransportAddress(PEER_2.host, number)
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == 0
    assert len(allocation.channels) == len(allocation.numbers) == 0x100


def test_a_refused_channel_leaves_no_permission() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER_2))) == 400
    assert set(court.allocation().permissions) == {PEER.host}


def test_a_channel_cannot_be_turned_to_somebody_else() -> None:
    court = Court()
    client = Client(court)
    client.allocate((LIFETIME, 3600))
    other = Client(court, OTHER, "other", "password")
    other.allocate()

    def bind(number: int, peer: TransportAddress) -> int:
        client.nonce = court.service.gate.make_nonce(CLIENT, court.now)
        return code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer)))

    data = b"\x40\x01\0\x01x"
    assert bind(0x4001, PEER) == 0
    assert bind(0x4001, PEER_2) == bind(0x4001, PEER._replace(port=1)) == bind(0x4002, PEER) == 400
    assert bind(0x4001, PEER) == 0
    found = court.allocation().to_peer(data, court.now)
    assert found is not None and found[1] == PEER
    # A channel that was not bound, and the channel of somebody else's five-tuple.
    assert court.allocation().to_peer(b"\x40\x02\0\x01x", court.now) is None
    assert court.allocation(OTHER).to_peer(data, court.now) is None
    assert court.deliver(data, OTHER) == court.deliver(data, source(1)) == []
    assert court.turn.from_peer(court.allocation(OTHER), PEER, b"x", court.now) is None
    # With its end, both are free.
    court.pass_time(601.0)
    assert court.allocation().to_peer(data, court.now) is None
    assert bind(0x4001, PEER_2) == bind(0x4002, PEER) == 0
    found = court.allocation().to_peer(data, court.now)
    assert found is not None and found[1] == PEER_2


def test_nobody_uses_an_allocation_of_another_user() -> None:
    court = Court()
    client = Client(court)
    client.allocate()
    before = held(court)
    thief = client_at(court, CLIENT, "other")
    assert code(thief.ask(Method.REFRESH, (LIFETIME, 0))) == 441
    assert code(thief.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER))) == 441
    assert code(thief.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))) == 441
    assert code(thief.allocate()) == 437
    assert not court.allocation().permissions and not court.allocation().channels
    assert held(court) - before <= 10
    assert code(client.ask(Method.REFRESH)) == 0


# --- what ends ---------------------------------------------------------------------------------------------------


def test_allocations_that_were_deleted_take_no_memory() -> None:
    """Memory is "given back": one account with a quota of one can do this all day."""
    court = Court(user_quota=1)
    client = Client(court)

    def once() -> None:
        assert code(client.allocate((LIFETIME, 3600))) == 0
        assert code(client.ask(Method.CREATE_PERMISSION, *peers(range(100)))) == 0
        assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 0

    once()
    before = held(court)
    for _ in range(200):
        once()
    assert held(court) - before < 50


def test_a_shorter_lifetime_is_kept() -> None:
    """RFC 8656, 8.2: "the time-to-expiry timer" is set to what the answer says."""
    court = Court()
    client = Client(court)
    client.allocate((LIFETIME, 3600))
    assert client.ask(Method.REFRESH, (LIFETIME, 600)).get(LIFETIME) == 600
    court.pass_time(601.0)
    assert not court.turn.allocations and not court.ports.open_now


@pytest.mark.parametrize("wanted", [1, 599, 3601, 2**31, 2**32 - 1])
def test_a_lifetime_is_bounded(wanted: int) -> None:
    court = Court()
    client = Client(court)
    lifetime = client.allocate((LIFETIME, wanted)).get(LIFETIME)
    assert lifetime == (600 if wanted < 600 else 3600)
    court.pass_time(lifetime)
    assert not court.turn.allocations


# --- mobility ----------------------------------------------------------------------------------------------------


def mobile(court: Court) -> bytes:
    ticket = client_at(court, CLIENT).allocate((MOBILITY_TICKET, b"")).get(MOBILITY_TICKET)
    assert ticket is not None
    return ticket


def test_another_user_cannot_move_an_allocation() -> None:
    court = Court()
    ticket = (MOBILITY_TICKET, mobile(court))
    thief = client_at(court, OTHER, "other")
    assert code(thief.ask(Method.REFRESH, ticket)) == 441
    assert code(thief.ask(Method.REFRESH, ticket, (LIFETIME, 0))) == 441
    assert list(court.turn.allocations) == [court.allocation().key]
    assert code(client_at(court, source(1)).ask(Method.REFRESH, ticket)) == 0


def test_a_ticket_is_good_once() -> None:
    court = Court()
    old = mobile(court)
    mover = client_at(court, source(1))
    answer = mover.ask(Method.REFRESH, (MOBILITY_TICKET, old))
    new = answer.get(MOBILITY_TICKET)
    assert code(answer) == 0 and new not in (None, old)
    for number in (1, 2):
        assert code(client_at(court, source(number)).ask(Method.REFRESH, (MOBILITY_TICKET, old))) == 437
    # The former five-tuple is served until data comes from the new one (RFC 8016, 3.2.2).
    assert code(client_at(court, CLIENT).ask(Method.REFRESH)) == 0
    mover.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (DATA, b"here"))
    assert code(client_at(court, CLIENT).ask(Method.REFRESH)) == 437
    # Nor is one of an allocation that has ended.
    assert code(mover.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert code(client_at(court, source(3)).ask(Method.REFRESH, (MOBILITY_TICKET, new))) == 437


@pytest.mark.parametrize("ticket", [b"", b"x", bytes(24), bytes(65_000)])
def test_a_ticket_that_was_never_given_moves_nothing(ticket: bytes) -> None:
    court = Court()
    mobile(court)
    assert code(client_at(court, OTHER).ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 400
    assert code(client_at(court, OTHER, "other").ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 400
    assert list(court.turn.allocations) == [court.allocation().key]


def test_nothing_is_moved_onto_an_allocation() -> None:
    court = Court()
    ticket = (MOBILITY_TICKET, mobile(court))
    assert code(client_at(court, CLIENT).ask(Method.REFRESH, ticket)) == 400
    two = client_at(court, OTHER)
    two.allocate()
    assert code(two.ask(Method.REFRESH, ticket)) == 437
    assert len(court.turn.allocations) == 2 == court.service.allocations


def chain(court: Court, ticket: bytes, numbers: Iterable[int]) -> bytes:
    """Moves from one address to the next, each of which sends something; the last ticket."""
    for number in numbers:
        client = client_at(court, source(number))
        answer = client.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))
        assert code(answer) == 0
        client.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (DATA, b"here"))
        ticket = answer.get(MOBILITY_TICKET) or b""
    return ticket


def test_ten_thousand_moves_take_no_memory() -> None:
    """coturn #1969."""
    court = Court()
    ticket = chain(court, mobile(court), range(100))
    before = held(court)
    chain(court, ticket, range(100, 10_000))
    assert len(court.turn.allocations) == court.service.allocations == 1
    assert held(court) - before < 50


def test_moves_are_forgotten_when_the_allocation_is_refreshed() -> None:
    court = Court()
    chain(court, mobile(court), range(1, 100))
    for _ in range(3):
        court.pass_time(500.0)
        assert code(client_at(court, source(99)).ask(Method.REFRESH)) == 0
    before = held(court)
    fresh = Court()
    mobile(fresh)
    assert before - held(fresh) < 50


def test_a_quota_holds_across_moves() -> None:
    court = Court(user_quota=1)
    ticket = mobile(court)
    for number in range(1, 10):
        ticket = chain(court, ticket, [number])
        for address in (CLIENT, source(number - 1), source(0)):
            if (answer := code(client_at(court, address).allocate())) != 486:
                raise AssertionError(answer)
        assert court.service.by_user == {"user": 1}
    assert code(client_at(court, source(9)).ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert code(client_at(court, CLIENT).allocate()) == 0


# --- fuzzing -----------------------------------------------------------------------------------------------------

INPUTS = 20_000


class Fuzzer:
    """Makes and delivers hostile input, always the same."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        accounts = Accounts(realm=REALM_NAME, users=USERS, secrets=("s3cret",))
        self.court = Court(accounts=accounts, max_allocations=6, max_bytes_per_s=100_000.0)
        self.answers: Counter[int] = Counter()
        self.tickets = [b""]
        self.tokens = [bytes(8)]

    def pair(self) -> Pair:
        """One that makes sense somewhere."""
        rng = self.rng
        hosts = ["127.0.0.1", "::1", PEER.host, PEER.host, PEER_2.host, PEER_6.host, "203.0.113.1", "::ffff:10.0.0.1"]
        relayed = [address for each in self.court.turn.allocations.values() for address in each.relayed.values()]
        peer = TransportAddress(rng.choice(hosts), rng.choice([0, 1, 7000, 65535]))
        choices: list[Pair] = [
            (XOR_PEER_ADDRESS, peer),
            (XOR_PEER_ADDRESS, PEER),
            (XOR_PEER_ADDRESS, rng.choice([*relayed, PEER])),
            (CHANNEL_NUMBER, rng.choice([0, 0x3FFF, 0x4000, 0x4001, 0x4FFF, 0x7FFF, 0x8000])),
            (LIFETIME, rng.choice([0, 0, 1, 600, 3600, 2**32 - 1])),
            (REQUESTED_TRANSPORT, rng.choice([17, 6, 0])),
            (EVEN_PORT, rng.random() < 0.5),
            (REQUESTED_ADDRESS_FAMILY, rng.choice([1, 2, 0])),
            (ADDITIONAL_ADDRESS_FAMILY, rng.choice([1, 2])),
            (RESERVATION_TOKEN, rng.choice(self.tokens)),
            (MOBILITY_TICKET, rng.choice(self.tickets)),
            (DATA, rng.randbytes(rng.randrange(1300))),
            (PRIORITY, 1),
            (CONNECTION_ID, 1),
            (DONT_FRAGMENT, True),
        ]
        return rng.choices(choices, [6, 6, 6, 6, 4, 6, 3, 3, 3, 2, 4, 6, 0.2, 0.2, 0.2])[0]

    def attributes(self, identity: bytes, method: int) -> bytes:
        """Those of a valid request, and then something done to them."""
        rng = self.rng
        peer = rng.choice([PEER, PEER, PEER_2, PEER_6])
        usual: dict[int, list[Pair]] = {
            Method.ALLOCATE: [UDP],
            Method.CREATE_PERMISSION: [(XOR_PEER_ADDRESS, peer)],
            Method.CHANNEL_BIND: [(CHANNEL_NUMBER, rng.randrange(0x4000, 0x4010)), (XOR_PEER_ADDRESS, peer)],
            Method.SEND: [(XOR_PEER_ADDRESS, peer), (DATA, b"data")],
        }
        pairs = usual.get(method, [])
        pairs += [self.pair() for _ in range(rng.choice([0, 0, 1, 1, 2, 5]))]
        rng.shuffle(pairs)
        parts = [attribute(int(kind), kind.encode(value, identity), b"\xff") for kind, value in pairs]
        if rng.random() < 0.1:
            value = rng.randbytes(rng.choice([0, 1, 2, 4, 8, 20, 32]))
            parts.insert(rng.randrange(len(parts) + 1), attribute(rng.choice([*ATTRIBUTES, 0x7FFE, 0xFFFE]), value))
        return b"".join(parts)

    def signed(self) -> None:
        """From one of a few that know the password."""
        rng, court = self.rng, self.court
        number = rng.randrange(12)
        client = client_at(court, source(number), "other" if (number < 3) ^ (rng.random() < 0.05) else "user")
        method = rng.choice([3, 3, 3, 4, 8, 8, 9, 9])
        identity = court.transaction_id() if rng.random() < 0.95 else bytes(12)
        data = sealed(client, method, self.attributes(identity, method), identity=identity)
        self.deliver(fingerprinted(data) if rng.random() < 0.5 else data, client.source)

    def indication(self) -> None:
        identity = self.court.transaction_id()
        data = head(Method.SEND, MessageClass.INDICATION, identity) + self.attributes(identity, Method.SEND)
        self.deliver(resized(data), source(self.rng.randrange(12)))

    def broken(self) -> None:
        """From elsewhere: its password is wrong now, and not to be counted against the others."""
        rng, court = self.rng, self.court
        client = client_at(court, source(1000 + rng.randrange(60_000)))
        method = rng.choice([1, 3, 4, 6, 8, 9, 10])
        identity = court.transaction_id()
        data = bytearray(sealed(client, method, self.attributes(identity, method), identity=identity))
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.choice([1, 4, 8])]
                case 2:
                    data[at:at] = rng.randbytes(rng.choice([1, 4, 8]))
                case _:
                    data[at] ^= 1 << rng.randrange(8)
        whole = bytes(data).ljust(20, b"\0")
        self.deliver(resized(whole) if rng.random() < 0.7 else whole, client.source)

    def noise(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(200))
        if self.rng.random() < 0.7:
            data = resized(
                head(self.rng.choice([1, 3, 4, 6, 8, 9]), MessageClass(0), bytes(12)) + data[len(data) & 3 :]
            )
        self.deliver(data, source(70_000 + self.rng.randrange(30_000)))

    def relayed(self) -> None:
        """The data path, both ways."""
        rng, court = self.rng, self.court
        for allocation in list(court.turn.allocations.values()):
            number, data = rng.choice([0x4000, 0x4001, rng.randrange(0x10000)]), rng.randbytes(rng.randrange(64))
            length = rng.choice([len(data), rng.randrange(80), 0xFFFF])
            message = number.to_bytes(2, "big") + length.to_bytes(2, "big") + data
            found = allocation.to_peer(message[: rng.choice([1, 4, 99, 99])], court.now)
            if found is not None:
                self.judge(*found)
            peer = (rng.choice([PEER.host, PEER_2.host, PEER_6.host, "127.0.0.1"]), rng.choice([0, 1, 7000, 65535]))
            message_back = court.turn.from_peer(allocation, peer, data, court.now)
            if message_back is not None and message_back[0] < 0x40:
                assert parse(message_back).get(XOR_PEER_ADDRESS) == peer

    def deliver(self, data: bytes, address: TransportAddress) -> None:
        answers = self.court.deliver(data, address)
        assert len(answers) <= 1
        for each in answers:
            answer = parse(each) if each[4:8] == MAGIC_COOKIE.to_bytes(4, "big") else None
            if answer is not None:
                assert not any(paddings(each))
                self.answers[code(answer)] += 1
                self.tickets = [*self.tickets, answer.get(MOBILITY_TICKET) or b""][-8:]
                self.tokens = [*self.tokens, answer.get(RESERVATION_TOKEN) or bytes(8)][-8:]
        for sent in self.court.to_peers:
            self.judge(*sent)
        self.court.to_peers.clear()

    def judge(self, relayed: TransportAddress, peer: TransportAddress, data: bytes) -> None:
        """Nothing may be sent to whom the policy refuses, nor from an address that is closed."""
        court = self.court
        assert relayed in court.ports.open_now and relayed in court.policy.relayed
        assert relayed.version == peer.version and peer.port != 0
        is_global = peer.host in (PEER.host, PEER_2.host, PEER_6.host)
        assert is_global or peer in court.policy.relayed
        self.answers[-1] += 1

    def check(self) -> None:
        """What is counted twice agrees."""
        court = self.court
        allocations = court.turn.allocations
        assert len(allocations) == court.service.allocations == court.service.by_user.total() <= 6
        relayed = {address for each in allocations.values() for address in each.relayed.values()}
        assert relayed == court.policy.relayed <= court.ports.open_now
        assert len(court.ports.open_now - relayed) <= MAX_RESERVATIONS
        for key, each in allocations.items():
            assert each.key == key and len(each.answers) <= MAX_ANSWERS
            assert {number: peer for peer, number in each.numbers.items()} == {
                number: peer for number, (peer, _) in each.channels.items()
            }
            assert "127.0.0.1" not in each.permissions and "10.0.0.1" not in each.permissions


def test_no_input_upsets_the_server() -> None:
    fuzzer = Fuzzer(20260727)
    kinds = (fuzzer.signed, fuzzer.indication, fuzzer.broken, fuzzer.noise, fuzzer.relayed)
    for number in range(INPUTS):
        fuzzer.rng.choices(kinds, [8, 3, 5, 3, 1])[0]()
        if number % 50 == 0:
            fuzzer.court.pass_time(fuzzer.rng.choice([0.1, 1.0, 1.0, 40.0]))
            fuzzer.check()
    # It did get somewhere.
    seen = fuzzer.answers
    assert seen[0] > 1000 and seen[401] > 100 and seen[-1] > 200
    assert set(seen) >= {0, 400, 401, 403, 420, 437, 440, 441, 442, 443, 508}
    fuzzer.court.pass_time(3601.0)
    assert not fuzzer.court.turn.allocations and not fuzzer.court.ports.open_now
    assert code(client_at(fuzzer.court, source(1)).allocate()) == 0
