"""What a STUN server answers, to whom, and how often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, PacketDropped, Transmit
from relay.error_limits import ErrorLimiter
from relay.stun import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    PRIORITY,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    Message,
    MessageClass,
    Method,
    build,
    is_stun,
    parse,
    short_term_key,
)
from relay.stun.values import decode_bytes, encode_bytes
from relay.stun_server import MAX_PADDING, StunServer, discovery_table

BASE = TransportAddress("192.0.2.1", 3478)
BASE_6 = TransportAddress("2001:db8::1", 3478)
CLIENT = TransportAddress("198.51.100.7", 40000)
CLIENT_6 = TransportAddress("2001:db8:7::7", 40000)
ID = bytes(range(12))
UNHEARD_OF: Attribute[bytes] = Attribute(0x7FFE, "UNHEARD-OF", encode_bytes, decode_bytes)

A1_P1, A1_P2 = TransportAddress("192.0.2.1", 3478), TransportAddress("192.0.2.1", 3479)
A2_P1, A2_P2 = TransportAddress("192.0.2.2", 3478), TransportAddress("192.0.2.2", 3479)


def request(*pairs: tuple[Attribute[Any], Any], fingerprint: bool = False) -> bytes:
    return build(Method.BINDING, MessageClass.REQUEST, ID, *pairs).encode(fingerprint=fingerprint)


def new_server(bases: Iterable[TransportAddress] = (BASE, BASE_6)) -> StunServer:
    server = StunServer()
    server.bases.update(bases)
    return server


def discovery_server(*, is_stream: bool = False) -> StunServer:
    server = StunServer(alternatives=discovery_table([(A1_P1, A2_P2)]), is_stream=is_stream)
    server.bases.update((A1_P1, A1_P2, A2_P1, A2_P2))
    return server


def ask(
    server: StunServer,
    data: bytes,
    *,
    source: TransportAddress = CLIENT,
    base: TransportAddress = BASE,
    now: float = 0.0,
) -> Transmit | None:
    """One datagram in; the one answer, if any."""
    server.handle_datagram(Datagram(base, source, data), now)
    answer = server.poll_transmit()
    assert server.poll_transmit() is None
    return answer


def answered(server: StunServer, data: bytes, **how: Any) -> tuple[Transmit, Message]:
    answer = ask(server, data, **how)
    assert answer is not None
    return answer, parse(answer.data)


def dropped(server: StunServer) -> list[str]:
    """The reasons of the packets dropped since the last call."""
    reasons = []
    while (event := server.poll_event()) is not None:
        assert isinstance(event, PacketDropped)
        reasons.append(event.reason)
    return reasons


# --- RFC 8489 ----------------------------------------------------------------------------------------------------


def test_twenty_bytes_get_thirty_two() -> None:
    """A forged source gains an attacker a factor of 1.6, and no more: XOR-MAPPED-ADDRESS and nothing else."""
    server = new_server()
    assert len(request()) == 20
    answer = ask(server, request())
    assert answer == Transmit(
        BASE, CLIENT, bytes.fromhex("0101000c2112a442") + ID + bytes.fromhex("002000080001bd52e721c045")
    )
    assert len(answer.data) / 20 <= 1.6
    assert server.counters == {"requests": 1}
    assert dropped(server) == []


def test_ipv6_works_alike() -> None:
    answer, message = answered(new_server(), request(), source=CLIENT_6, base=BASE_6)
    assert (answer.base, answer.destination) == (BASE_6, CLIENT_6)
    assert message.attributes == [(XOR_MAPPED_ADDRESS.code, CLIENT_6)]
    assert len(answer.data) == 44


@pytest.mark.parametrize("fingerprint", [True, False])
def test_a_fingerprint_is_answered_with_one(fingerprint: bool) -> None:
    """RFC 8489, 12: "It MAY utilize the FINGERPRINT mechanism but MUST NOT require it"."""
    _, message = answered(new_server(), request(fingerprint=fingerprint))
    assert message.is_success
    assert message.has_fingerprint is fingerprint


def test_attributes_of_other_usages_are_ignored() -> None:
    """RFC 8489, 6.3: "Known-but-unexpected attributes SHOULD be ignored by the agent"."""
    data = build(Method.BINDING, MessageClass.REQUEST, ID, (USERNAME, "a:b"), (PRIORITY, 1), (SOFTWARE, "x")).encode(
        short_term_key("secret")
    )
    _, message = answered(new_server(), data)
    assert message.is_success
    assert not message.has_integrity


def test_unknown_required_attributes_are_named_in_a_420() -> None:
    """RFC 8489, 6.3.1: 420 (Unknown Attribute) "includes an UNKNOWN-ATTRIBUTES attribute"."""
    server = new_server()
    _, message = answered(server, request((UNHEARD_OF, b"")))
    assert message.is_error
    assert message.error is not None
    assert message.error.code == 420
    assert message.get(UNKNOWN_ATTRIBUTES) == (0x7FFE,)
    assert server.counters == {"requests": 1, "errors": 1, "errors: 420": 1}


@pytest.mark.parametrize(
    "pair", [(CHANGE_REQUEST, ChangeRequest(True, True)), (RESPONSE_PORT, 5000), (PADDING, b"1234")]
)
def test_behaviour_discovery_is_unknown_unless_switched_on(pair: tuple[Attribute[Any], Any]) -> None:
    """RFC 5780, 6: "MUST NOT include an OTHER-ADDRESS attribute in any Response and MUST respond with a 420"."""
    _, message = answered(new_server(), request(pair))
    assert message.error is not None
    assert message.error.code == 420
    assert message.get(UNKNOWN_ATTRIBUTES) == (pair[0].code,)
    assert message.get(OTHER_ADDRESS) is None


@pytest.mark.parametrize("method", [method for method in Method if method is not Method.BINDING])
@pytest.mark.parametrize("message_class", list(MessageClass))
def test_other_methods_are_discarded_in_silence(method: Method, message_class: MessageClass) -> None:
    """RFC 8489, 6.3: "the method value is a supported method … If any errors are detected, the message is silently
    discarded". This server relays nothing, whoever asks.
    """
    server = new_server()
    assert ask(server, build(method, message_class, ID).encode()) is None
    assert dropped(server) == ["method not supported"]


def test_an_indication_is_not_answered() -> None:
    server = new_server()
    assert ask(server, build(Method.BINDING, MessageClass.INDICATION, ID).encode()) is None
    assert server.counters == {"indications": 1}
    assert dropped(server) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not STUN"),
        (b"GET / HTTP/1.1\r\n\r\n", "not STUN"),
        (bytes.fromhex("40000004") + b"data", "not STUN"),
        (request()[:-1], "not STUN"),
        (bytes.fromhex("000100082112a442") + ID + bytes.fromhex("0020000400000000"), "malformed"),
        (request(fingerprint=True)[:-1] + b"\0", "malformed"),
    ],
)
def test_what_is_no_stun_is_dropped(data: bytes, reason: str) -> None:
    server = new_server()
    assert ask(server, data) is None
    assert dropped(server) == [reason]
    assert server.counters == {f"dropped: {reason}": 1}


# --- loops and floods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_class", [MessageClass.SUCCESS, MessageClass.ERROR])
def test_a_response_is_never_answered(message_class: MessageClass) -> None:
    server = new_server()
    assert ask(server, build(Method.BINDING, message_class, ID).encode()) is None
    assert dropped(server) == ["response"]


@pytest.mark.parametrize("first", [request(), request((UNHEARD_OF, b""))])
def test_two_servers_do_not_talk_to_each_other(first: bytes) -> None:
    """One forged packet from A's port to B's: B answers, A does not."""
    a, b = TransportAddress("192.0.2.1", 3478), TransportAddress("192.0.2.2", 3478)
    servers = {a: new_server([a]), b: new_server([b])}
    packets = [Transmit(a, b, first)]
    for carried, packet in enumerate(packets, 1):
        assert carried <= 2
        answer = ask(servers[packet.destination], packet.data, source=packet.base, base=packet.destination)
        packets += [] if answer is None else [answer]
    assert len(packets) == 2


@pytest.mark.parametrize(
    "source",
    [
        TransportAddress("198.51.100.7", 0),
        BASE,
        BASE_6,
        TransportAddress("224.0.0.1", 40000),
        TransportAddress("255.255.255.255", 40000),
        TransportAddress("0.0.0.0", 40000),
        TransportAddress("ff02::1", 40000),
        TransportAddress("::", 40000),
    ],
    ids=str,
)
@pytest.mark.parametrize("data", [request(), request((UNHEARD_OF, b""))], ids=["good", "bad"])
def test_sources_that_cannot_be_clients_are_not_answered(source: TransportAddress, data: bytes) -> None:
    server = new_server()
    assert ask(server, data, source=source) is None
    assert dropped(server) == ["source not answered"]


def test_a_client_on_our_host_is_answered() -> None:
    assert ask(new_server(), request(), source=BASE._replace(port=40000)) is not None


def errors_sent(server: StunServer, count: int, host: str, now: float) -> int:
    bad = request((UNHEARD_OF, b""))
    source = TransportAddress(host, 40000)
    return sum(ask(server, bad, source=source, now=now) is not None for _ in range(count))


def test_errors_are_limited_per_source_network_and_answers_are_not() -> None:
    server = new_server()
    assert errors_sent(server, 12, "198.51.100.7", 0.0) == 10
    assert dropped(server) == ["too many errors"] * 2
    assert errors_sent(server, 1, "198.51.100.200", 0.0) == 0, "the same /24"
    assert errors_sent(server, 1, "198.51.101.7", 0.0) == 1, "another /24"
    assert ask(server, request(), now=0.0) is not None
    assert errors_sent(server, 5, "198.51.100.7", 0.25) == 2, "ten a second"


def test_ipv6_networks_have_56_bits() -> None:
    server = new_server()
    assert errors_sent(server, 11, "2001:db8:0:100::1", 0.0) == 10
    assert errors_sent(server, 1, "2001:db8:0:1ff::1", 0.0) == 0
    assert errors_sent(server, 1, "2001:db8:0:200::1", 0.0) == 1


def test_a_flood_gets_ten_errors_a_second() -> None:
    """The bucket fills while it is asked, however often that is."""
    limiter = ErrorLimiter()
    admitted = sum(limiter.admits("198.51.100.7", step / 1000) for step in range(5000))
    assert admitted == 10 + 49


def test_the_limiter_is_bounded_and_forgets_only_what_is_full_again() -> None:
    limiter = ErrorLimiter(per_second=2, limit=3)
    assert [limiter.admits(f"10.0.{third}.1", 0.0) for third in range(4)] == [True, True, True, False]
    assert len(limiter) == 3
    assert limiter.admits("10.0.0.1", 0.5)
    assert not limiter.admits("10.0.9.1", 0.99)
    assert limiter.admits("10.0.9.1", 1.0), "two networks have been idle for a second"
    assert len(limiter) == 2


@given(st.binary(max_size=100))
def test_nothing_on_the_network_raises(data: bytes) -> None:
    assert ask(discovery_server(), data) is None or len(data) >= 20


@given(
    st.sampled_from([request(), request((PADDING, b"1234"), (CHANGE_REQUEST, ChangeRequest(True, False)))]),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
)
def test_mutated_requests_get_one_answer_or_none(data: bytes, changes: list[tuple[int, int]]) -> None:
    mutant = bytearray(data)
    for position, value in changes:
        mutant[position % len(mutant)] = value
    answer = ask(discovery_server(), bytes(mutant))
    if answer is not None:
        # Without the cookie it is RFC 3489's, and so is the answer.
        answered = answer.data if is_stun(bytes(mutant)) else answer.data[:4] + data[4:8] + answer.data[8:]
        assert parse(answered).message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
        assert answer.destination.host == CLIENT.host


# --- RFC 5780 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "change", "origin", "other"),
    [
        (A1_P1, None, A1_P1, A2_P2),
        (A1_P1, ChangeRequest(False, False), A1_P1, A2_P2),
        (A1_P1, ChangeRequest(True, False), A2_P1, A2_P2),
        (A1_P1, ChangeRequest(False, True), A1_P2, A2_P2),
        (A1_P1, ChangeRequest(True, True), A2_P2, A2_P2),
        (A2_P1, ChangeRequest(True, False), A1_P1, A1_P2),
        (A2_P1, ChangeRequest(False, True), A2_P2, A1_P2),
        (A1_P2, ChangeRequest(True, True), A2_P1, A2_P1),
        (A2_P2, ChangeRequest(True, True), A1_P1, A1_P1),
        (A2_P2, None, A2_P2, A1_P1),
    ],
)
def test_answers_come_from_where_table_1_says(
    base: TransportAddress, change: ChangeRequest | None, origin: TransportAddress, other: TransportAddress
) -> None:
    """RFC 5780, 6.1, table 1; "The server MUST include both MAPPED-ADDRESS and XOR-MAPPED-ADDRESS"."""
    pairs = () if change is None else ((CHANGE_REQUEST, change),)
    answer, message = answered(discovery_server(), request(*pairs), base=base)
    assert (answer.base, answer.destination) == (origin, CLIENT)
    assert message.attributes == [
        (XOR_MAPPED_ADDRESS.code, CLIENT),
        (MAPPED_ADDRESS.code, CLIENT),
        (RESPONSE_ORIGIN.code, origin),
        (OTHER_ADDRESS.code, other),
    ]


def test_response_port_sends_the_answer_there() -> None:
    answer, message = answered(discovery_server(), request((RESPONSE_PORT, 5000)))
    assert answer.destination == CLIENT._replace(port=5000)
    assert message.get(XOR_MAPPED_ADDRESS) == CLIENT


@pytest.mark.parametrize("pairs", [[(RESPONSE_PORT, 0)], [(RESPONSE_PORT, 5000), (PADDING, b"1234")]])
def test_impossible_wishes_get_a_400(pairs: list[tuple[Attribute[Any], Any]]) -> None:
    """RFC 5780, 6.1: PADDING with RESPONSE-PORT: "the server MUST return an error response of type 400"."""
    answer, message = answered(discovery_server(), request(*pairs))
    assert answer.destination == CLIENT
    assert message.error is not None
    assert message.error.code == 400


def test_response_port_cannot_point_at_ourselves() -> None:
    source = A2_P1._replace(port=40000)
    _, message = answered(discovery_server(), request((RESPONSE_PORT, 3478)), source=source)
    assert message.is_error


@pytest.mark.parametrize(("asked", "given_back"), [(4, 4), (1400, 1400), (9000, MAX_PADDING)])
def test_padding_is_no_longer_than_what_was_sent(asked: int, given_back: int) -> None:
    _, message = answered(discovery_server(), request((PADDING, b"x" * asked)))
    assert message.get(PADDING) == bytes(given_back)


def test_a_stream_cannot_be_answered_from_elsewhere() -> None:
    server = discovery_server(is_stream=True)
    _, message = answered(server, request((CHANGE_REQUEST, ChangeRequest(True, True))), base=A1_P1)
    assert message.error is not None
    assert message.error.code == 420
    _, message = answered(server, request(), base=A1_P1)
    assert message.get(OTHER_ADDRESS) == A2_P2


@pytest.mark.parametrize("alternate", [A1_P2, A2_P1, A1_P1, TransportAddress("2001:db8::2", 3479)], ids=str)
def test_both_addresses_differ_in_host_and_port(alternate: TransportAddress) -> None:
    with pytest.raises(ValueError, match="differ in host and port"):
        discovery_table([(A1_P1, alternate)])


def test_errors_of_the_network_are_counted() -> None:
    server = new_server()
    server.handle_error(BASE, CLIENT, 111, 0.0)
    server.handle_timeout(0.0)
    assert server.counters == {"network errors": 1}
    assert server.poll_timeout() is None
