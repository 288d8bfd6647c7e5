"""Our TURN server against the sentences of RFC 8656 (TURN), 8489 (STUN) and 8016 (mobility) that are the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from iceagent.net.host import Stream
from iceagent.testing import MemoryHost, MemoryInternet
from relay.error_limits import CHALLENGE_BURST
from relay.places import Relaying
from relay.server import Server, ServerOptions
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    LIFETIME,
    MAGIC_COOKIE,
    MOBILITY_TICKET,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressFamily,
    AlgorithmParameters,
    Attribute,
    Message,
    MessageClass,
    Method,
    PasswordAlgorithm,
    SecurityFeature,
    StreamFramer,
    build,
    long_term_key,
    parse,
    security_features,
    userhash,
)
from relay.stun.values import decode_bytes, encode_bytes
from relay.stun.wire import message_type
from relay.stun_server import StreamServer, StunServer
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, TurnOptions, TurnServer
from tests.unit.relay.turn.server_kit import (
    CLIENT,
    OTHER,
    PEER,
    PEER_2,
    PEER_6,
    REALM_NAME,
    RELAY_HOSTS,
    SERVER,
    Client,
    Court,
    Ports,
    code,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

IPV4, IPV6 = int(AddressFamily.IPV4), int(AddressFamily.IPV6)
SERVER_6 = TransportAddress("2001:db8::1", 3478)
ELSEWHERE = TransportAddress("192.0.2.3", 5000)
PRIVATE = TransportAddress("10.0.0.1", 7000)
AT_PEER: Pair = (XOR_PEER_ADDRESS, PEER)
AT_PEER_2: Pair = (XOR_PEER_ADDRESS, PEER_2)
AT_PEER_6: Pair = (XOR_PEER_ADDRESS, PEER_6)
DUAL: Pair = (ADDITIONAL_ADDRESS_FAMILY, IPV6)
UDP: Pair = (REQUESTED_TRANSPORT, 17)
WANTS_TICKET: Pair = (MOBILITY_TICKET, b"")
REQUIRED: Attribute[bytes] = Attribute(0x7F01, "UNKNOWN-REQUIRED", encode_bytes, decode_bytes)
REQUIRED_2: Attribute[bytes] = Attribute(0x7F02, "UNKNOWN-REQUIRED-2", encode_bytes, decode_bytes)
OPTIONAL: Attribute[bytes] = Attribute(0xFF01, "UNKNOWN-OPTIONAL", encode_bytes, decode_bytes)

BOUND: tuple[Pair, ...] = ((CHANNEL_NUMBER, 0x4001), AT_PEER)
# A good request of each method.
GOOD: dict[Method, tuple[Pair, ...]] = {
    Method.ALLOCATE: (UDP,),
    Method.REFRESH: (),
    Method.CREATE_PERMISSION: (AT_PEER,),
    Method.CHANNEL_BIND: BOUND,
}
OF_ALLOCATIONS = tuple(method for method in GOOD if method != Method.ALLOCATE)


class FullPorts(Ports):
    """No port is free of one IP version."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self._full = version

    def open(self, version: int, near: str, *, even: bool = False, pair: bool = False) -> list[TransportAddress]:
        if version == self._full:
            raise OSError("full")
        return super().open(version, near, even=even, pair=pair)


def allocated(court: Court, *pairs: Pair) -> Client:
    """A client with an allocation."""
    client = Client(court)
    assert code(client.allocate(*pairs)) == 0
    return client


def codes(message: Message) -> list[int]:
    return sorted(int(number) for number, _ in message.attributes)


def named(*attributes: Attribute[Any]) -> list[int]:
    return sorted(int(attribute) for attribute in attributes)


def ask_as(client: Client, method: int, *pairs: Pair, key: Any = None, **seal: bool) -> Message:
    """A request with exactly these attributes; the answer, unchecked."""
    message = build(method, MessageClass.REQUEST, client.court.transaction_id(), *pairs)
    (answer,) = client.court.deliver(message.encode(key, **seal), client.source)
    return parse(answer)


def credentials(client: Client) -> list[Pair]:
    if not client.nonce:
        client.challenge()
    return [(USERNAME, client.username), (REALM, REALM_NAME), (NONCE, client.nonce)]


def ask_raw(client: Client, method: int, number: int, value: bytes, *others: Pair) -> list[bytes]:
    """A signed request with one more attribute, whose bytes are as they are; the answers."""
    identity = client.court.transaction_id()
    signed = raw(message_type(method, MessageClass.REQUEST), identity, number, value, *others, *credentials(client))
    signed = signed[:2] + (len(signed) + 4).to_bytes(2, "big") + signed[4:]
    return client.court.deliver(signed + b"\0\x08\0\x14" + client.key.sign(signed), client.source)


def raw(bits: int, identity: bytes, number: int, value: bytes, *others: Pair) -> bytes:
    """A message with an attribute whose bytes are as they are in front of the others."""
    body = number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) & 3)
    for kind, each in others:
        data = kind.encode(each, identity)
        body += int(kind).to_bytes(2, "big") + len(data).to_bytes(2, "big") + data + bytes(-len(data) & 3)
    return bits.to_bytes(2, "big") + len(body).to_bytes(2, "big") + MAGIC_COOKIE.to_bytes(4, "big") + identity + body


def hears(court: Court, peer: TransportAddress, data: bytes = b"x", client: TransportAddress = CLIENT) -> bytes | None:
    """What a client is sent when a peer sends something."""
    return court.turn.from_peer(court.allocation(client), peer, data, court.now)


def is_indication_of(message: bytes | None, peer: TransportAddress, data: bytes = b"x") -> bool:
    if message is None or not message.startswith(b"\0\x17"):
        return False
    found = parse(message)
    return found.get_all(XOR_PEER_ADDRESS) == [peer] and found.get_all(DATA) == [data]


def sends(client: Client, peer: TransportAddress, data: bytes = b"x") -> bool:
    """Whether a Send indication gets through."""
    before = len(client.court.to_peers)
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, peer), (DATA, data))
    return len(client.court.to_peers) > before


# --- Allocate ----------------------------------------------------------------------------------------------------


def test_what_a_success_response_contains() -> None:
    """RFC 8656, 7.2: "The success response contains", and nothing that was not asked for."""
    court = Court()
    client = Client(court)
    answer = client.allocate()
    assert (answer.is_success, answer.method) == (True, Method.ALLOCATE)
    assert codes(answer) == named(XOR_RELAYED_ADDRESS, LIFETIME, XOR_MAPPED_ADDRESS)
    assert answer.get(XOR_MAPPED_ADDRESS) == client.source
    assert court.ports.open_now == {answer.get(XOR_RELAYED_ADDRESS)}
    allocation = court.allocation()
    assert (allocation.permissions, allocation.channels) == ({}, {})


def test_an_allocation_belongs_to_both_ends_of_the_five_tuple() -> None:
    """RFC 8656, 6: the client's and the server's address and port. 8489, 6.3.1.2: "the source IP address and port of
    the response are equal to the destination IP address and port of the received request"."""
    court = Court()
    client = allocated(court)
    base = SERVER._replace(port=3479)
    for at in (base, SERVER_6):
        court.to_peers.clear()
        court.stun.handle_datagram(Datagram(at, CLIENT, client.request(Method.ALLOCATE, UDP)), court.now)
        assert court.drain() == []
        ((source, destination, data),) = court.to_peers
        assert (source, destination, code(parse(data))) == (at, CLIENT, 0)
        # 7.2, 7: "If the REQUESTED-ADDRESS-FAMILY attribute is absent and the server supports the IPv4 address family,
        # the server MUST allocate an IPv4 relayed transport address".
        (relayed,) = parse(data).get_all(XOR_RELAYED_ADDRESS)
        assert relayed.version == 4
    # 6: "The relayed transport address MUST be unique across all allocations".
    assert len(court.turn.allocations) == len(court.ports.open_now) == 3


@pytest.mark.parametrize("pairs", [(UDP,), (), ((REQUESTED_TRANSPORT, 6),), (UDP, (REQUESTED_ADDRESS_FAMILY, 9))])
@pytest.mark.parametrize(("username", "password"), [("user", "secret"), ("other", "password")])
def test_a_five_tuple_has_one_allocation(pairs: tuple[Pair, ...], username: str, password: str) -> None:
    """RFC 8656, 7.2, 2: 437, before all other checks, whoever asks."""
    court = Court()
    allocated(court)
    allocation, relayed = court.allocation(), set(court.ports.open_now)
    asking = Client(court, CLIENT, username, password)
    assert code(asking.ask(Method.ALLOCATE, *pairs)) == 437
    assert court.allocation() is allocation and court.ports.open_now == relayed


@pytest.mark.parametrize(("transport", "expected"), [(None, 400), (6, 400), (0, 442), (255, 442)])
def test_only_udp_is_relayed_for_who_asks_over_udp(transport: int | None, expected: int) -> None:
    """RFC 8656, 7.2, 3: 400 without REQUESTED-TRANSPORT, 442 with another one; RFC 6062, 5.1, 2: 400 with TCP."""
    court = Court()
    pairs: list[Pair] = [] if transport is None else [(REQUESTED_TRANSPORT, transport)]
    assert code(Client(court).ask(Method.ALLOCATE, *pairs)) == expected
    assert not court.turn.allocations and not court.ports.open_now


def test_a_malformed_attribute_is_a_bad_request() -> None:
    """RFC 8656, 7.2, 3, "or is malformed", and 10.2, "any of these attributes are invalid": 400, signed like others."""
    court = Court()
    client, newcomer = allocated(court), Client(court, OTHER)
    wrong: list[tuple[Client, Method, Attribute[Any], bytes, tuple[Pair, ...]]] = [
        (newcomer, Method.ALLOCATE, REQUESTED_TRANSPORT, b"\x11", ()),
        (newcomer, Method.ALLOCATE, LIFETIME, bytes(5), (UDP,)),
        (newcomer, Method.ALLOCATE, RESERVATION_TOKEN, bytes(7), (UDP,)),
        (client, Method.REFRESH, LIFETIME, b"", ()),
        (client, Method.CHANNEL_BIND, CHANNEL_NUMBER, b"\x40\x01", (AT_PEER,)),
    ]
    for value in (b"\0\x03" + bytes(6), b"\0\x02" + bytes(6), b""):
        # A good one beside it does not help: "all or none".
        wrong.append((client, Method.CREATE_PERMISSION, XOR_PEER_ADDRESS, value, (AT_PEER,)))
    for who, method, kind, value, more in wrong:
        (answer,) = ask_raw(who, method, kind, value, *more)
        assert code(parse(answer)) == 400 and parse(answer).verify(who.key)
    allocation = court.allocation()
    assert not allocation.permissions and not allocation.channels and allocation.until[4] == court.now + 600
    assert len(court.turn.allocations) == 1


def test_who_sends_malformed_attributes_is_asked_for_credentials_first() -> None:
    """RFC 8489, 9.2.4: 401 and 438, which are limited, as for any other request; nothing else is told to strangers."""
    court = Court()
    bits = message_type(Method.ALLOCATE, MessageClass.REQUEST)
    unsigned = raw(bits, bytes(12), REQUESTED_TRANSPORT, b"\x11")
    codes = [code(parse(answer)) for _ in range(CHALLENGE_BURST + 50) for answer in court.deliver(unsigned)]
    assert codes == [401] * CHALLENGE_BURST
    court.pass_time(2.0)
    (answer,) = ask_raw(Client(court, OTHER, password="guess"), Method.ALLOCATE, REQUESTED_TRANSPORT, b"\x11")
    assert code(parse(answer)) == 401


def test_malformed_indications_and_other_methods_are_not_answered() -> None:
    """RFC 8489, 6.3: what is no request of TURN's is "silently discarded"."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    for method, message_class in ((Method.SEND, MessageClass.INDICATION), (Method.BINDING, MessageClass.REQUEST)):
        bits = message_type(method, message_class)
        assert court.deliver(raw(bits, bytes(12), REQUESTED_TRANSPORT, b"\x11", AT_PEER, (DATA, b"x"))) == []
    assert court.to_peers == [] and court.stun.counters["dropped: malformed"] == 2


def test_reserved_bits_are_ignored() -> None:
    """RFC 8656, 18.1, 18.6, 18.7 and 18.8: RFFU "MUST be ignored on reception"."""
    court = Court()
    client = Client(court)
    (answer,) = ask_raw(client, Method.ALLOCATE, REQUESTED_TRANSPORT, b"\x11\xff\xff\xff")
    assert code(parse(answer)) == 0
    (answer,) = ask_raw(client, Method.REFRESH, REQUESTED_ADDRESS_FAMILY, b"\x01\xff\xff\xff")
    assert code(parse(answer)) == 0
    (answer,) = ask_raw(client, Method.CHANNEL_BIND, CHANNEL_NUMBER, b"\x40\x01\xff\xff", AT_PEER)
    assert code(parse(answer)) == 0 and hears(court, PEER) == b"\x40\x01\0\x01x"
    (answer,) = ask_raw(Client(court, OTHER), Method.ALLOCATE, EVEN_PORT, b"\x7f", UDP)
    assert code(parse(answer)) == 0 and parse(answer).get(RESERVATION_TOKEN) is None


def test_dont_fragment_is_unknown() -> None:
    """RFC 8656, 7.2, 4: "treats the DONT-FRAGMENT attribute in the Allocate request as an unknown
    comprehension-required attribute"."""
    court = Court()
    answer = Client(court).allocate((DONT_FRAGMENT, True))
    assert (code(answer), answer.get_all(UNKNOWN_ATTRIBUTES)) == (420, [(int(DONT_FRAGMENT),)])
    assert not court.turn.allocations


@pytest.mark.parametrize(
    "pair",
    [(EVEN_PORT, False), (EVEN_PORT, True), (REQUESTED_ADDRESS_FAMILY, IPV4), DUAL],
    ids=lambda pair: pair[0].name,
)
def test_a_token_goes_with_no_other_wish(pair: Pair) -> None:
    """RFC 8656, 7.2, 5: 400; the reservation is still good."""
    court = Court()
    token = Client(court).allocate((EVEN_PORT, True)).get(RESERVATION_TOKEN)
    client = Client(court, OTHER)
    assert code(client.allocate((RESERVATION_TOKEN, token), pair)) == 400
    assert code(client.allocate((RESERVATION_TOKEN, token))) == 0


def test_a_token_that_is_not_valid_is_508() -> None:
    """RFC 8656, 7.2, 5: "in range and has not expired"."""
    court = Court()
    token = Client(court).allocate((EVEN_PORT, True)).get(RESERVATION_TOKEN)
    client = Client(court, OTHER)
    assert code(client.allocate((RESERVATION_TOKEN, b"no token"))) == 508
    court.pass_time(100.0)
    assert code(client.allocate((RESERVATION_TOKEN, token))) == 508
    assert len(court.turn.allocations) == len(court.ports.open_now) == 1


def test_a_reservation_is_held_for_thirty_seconds() -> None:
    """RFC 8656, 7.2: N is even, N+1 is reserved "on the same IP address"; "The server MUST hold this reservation for at
    least 30 seconds", whatever becomes of N."""
    court = Court()
    client = Client(court)
    answer = client.allocate((EVEN_PORT, True))
    relayed, token = answer.get(XOR_RELAYED_ADDRESS), answer.get(RESERVATION_TOKEN)
    assert relayed is not None and relayed.port % 2 == 0 and token is not None
    assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    court.pass_time(29.9)
    claimed = Client(court, OTHER).allocate((RESERVATION_TOKEN, token))
    assert claimed.get_all(XOR_RELAYED_ADDRESS) == [relayed._replace(port=relayed.port + 1)]
    assert codes(claimed) == named(XOR_RELAYED_ADDRESS, LIFETIME, XOR_MAPPED_ADDRESS)


def test_a_reservation_is_server_wide() -> None:
    """RFC 8656, 7.2: "it can use a different client IP address and port, a different transport protocol"."""
    court = Court()
    token = Client(court).allocate((EVEN_PORT, True)).get(RESERVATION_TOKEN)
    streams = Court(is_stream=True)
    streams.service = court.service
    streams.turn = TurnServer(court.service, is_stream=True)
    streams.stun = StunServer(limiter=court.limiter, turn=streams.turn, is_stream=True)
    other = Client(streams, ELSEWHERE, "other", "password")
    assert code(other.allocate((RESERVATION_TOKEN, token))) == 0
    assert (len(court.turn.allocations), len(streams.turn.allocations)) == (1, 1)


def test_an_even_port_without_a_reservation() -> None:
    """RFC 8656, 7.2: R is 0: an even port, and no token."""
    court = Court()
    for number in range(3):
        answer = Client(court, CLIENT._replace(port=6000 + number)).allocate((EVEN_PORT, False))
        relayed = answer.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None and relayed.port % 2 == 0 and answer.get(RESERVATION_TOKEN) is None
    assert len(court.ports.open_now) == 3


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(REQUESTED_ADDRESS_FAMILY, IPV4), DUAL], 400),
        ([(REQUESTED_ADDRESS_FAMILY, IPV6), DUAL], 400),
        ([(EVEN_PORT, True), DUAL], 400),
        ([(ADDITIONAL_ADDRESS_FAMILY, IPV4)], 400),
        ([(REQUESTED_ADDRESS_FAMILY, 3)], 440),
        ([(REQUESTED_ADDRESS_FAMILY, 0)], 440),
    ],
)
def test_wishes_that_do_not_go_together(pairs: list[Pair], expected: int) -> None:
    """RFC 8656, 7.2, 6 to 9."""
    court = Court()
    assert code(Client(court).allocate(*pairs)) == expected
    assert not court.turn.allocations and not court.ports.open_now


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_the_family_that_is_asked_for(family: int) -> None:
    """RFC 8656, 7.2, 7: allocated where it is there, else 440; without a wish it is IPv4, or 440."""
    version = 4 if family == IPV4 else 6
    wish: Pair = (REQUESTED_ADDRESS_FAMILY, family)
    court = Court()
    (relayed,) = Client(court).allocate(wish).get_all(XOR_RELAYED_ADDRESS)
    assert relayed.version == version
    less = Court(ports=Ports({10 - version: RELAY_HOSTS[10 - version]}))
    assert code(Client(less).allocate(wish)) == 440
    assert code(Client(less).allocate()) == (440 if version == 4 else 0)


def test_both_families_at_once() -> None:
    """RFC 8656, 7.2, 9: "two XOR-RELAYED-ADDRESS attributes"; with EVEN-PORT, but for its R bit, too."""
    court = Court()
    answer = Client(court).allocate(DUAL)
    assert sorted(relayed.version for relayed in answer.get_all(XOR_RELAYED_ADDRESS)) == [4, 6]
    assert codes(answer) == named(XOR_RELAYED_ADDRESS, XOR_RELAYED_ADDRESS, LIFETIME, XOR_MAPPED_ADDRESS)
    answer = Client(court, OTHER).allocate(DUAL, (EVEN_PORT, False))
    by_version = {relayed.version: relayed for relayed in answer.get_all(XOR_RELAYED_ADDRESS)}
    assert sorted(by_version) == [4, 6] and by_version[4].port % 2 == 0


@pytest.mark.parametrize(
    ("ports", "expected"), [(Ports({4: RELAY_HOSTS[4]}), 440), (FullPorts(6), 508)], ids=["none", "full"]
)
def test_ipv4_alone_where_both_were_asked_for(ports: Ports, expected: int) -> None:
    """RFC 8656, 7.2, 9: "includes ADDRESS-ERROR-CODE attribute in the success response"; the allocation is a single
    one (8.2: 443 for what is not there)."""
    court = Court(ports=ports)
    client = Client(court)
    answer = client.allocate(DUAL)
    assert [relayed.version for relayed in answer.get_all(XOR_RELAYED_ADDRESS)] == [4]
    error = answer.get(ADDRESS_ERROR_CODE)
    assert error is not None and (error.family, error.code) == (IPV6, expected)
    assert code(client.ask(Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, IPV6))) == 443
    assert code(client.ask(Method.CREATE_PERMISSION, AT_PEER_6)) == 443


def test_ipv6_alone_where_both_were_asked_for() -> None:
    """RFC 8656, 7.2, 9: "if it can only allocate one relayed transport address of a specific address type": either."""
    court = Court(ports=FullPorts(4))
    answer = Client(court).allocate(DUAL)
    assert [relayed.version for relayed in answer.get_all(XOR_RELAYED_ADDRESS)] == [6]
    error = answer.get(ADDRESS_ERROR_CODE)
    assert error is not None and (error.family, error.code) == (IPV4, 508)


def test_neither_family() -> None:
    """RFC 8656, 7.2, 9: "If the server cannot satisfy the request": 508."""
    court = Court(ports=Ports(limit=0))
    assert code(Client(court).allocate(DUAL)) == 508
    assert code(Client(court).allocate()) == 508
    assert code(Client(court).allocate((EVEN_PORT, True))) == 508
    assert not court.turn.allocations


def test_a_quota_is_of_a_user_and_not_of_an_address() -> None:
    """RFC 8656, 7.2, 10: 486; "it SHOULD define it based on the username"."""
    court = Court(user_quota=2)
    clients = [Client(court, CLIENT._replace(host=f"192.0.{number}.1")) for number in range(3)]
    assert [code(client.allocate()) for client in clients] == [0, 0, 486]
    assert code(Client(court, clients[2].source, "other", "password").allocate()) == 0
    assert code(clients[0].ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert code(Client(court, ELSEWHERE).allocate()) == 0
    assert code(Client(court, OTHER).allocate()) == 486


def test_all_allocations_are_taken() -> None:
    """RFC 8656, 7.2, 8: 508."""
    court = Court(max_allocations=1)
    client = allocated(court)
    assert code(Client(court, OTHER).allocate()) == 508
    assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert code(Client(court, OTHER).allocate()) == 0


LIFETIMES = [(None, 600), (0, 600), (1, 600), (600, 600), (601, 601), (3600, 3600), (3601, 3600), (2**32 - 1, 3600)]


@pytest.mark.parametrize(("wanted", "expected"), LIFETIMES)
def test_the_lifetime_of_an_allocation(wanted: int | None, expected: int) -> None:
    """RFC 8656, 7.2: not less than the default, not more than the maximum, and the timer is what was told."""
    court = Court()
    pairs: list[Pair] = [] if wanted is None else [(LIFETIME, wanted)]
    assert Client(court).allocate(*pairs).get(LIFETIME) == expected
    court.pass_time(expected - 0.1)
    assert len(court.turn.allocations) == 1
    court.pass_time(0.1)
    assert not court.turn.allocations and not court.ports.open_now


def test_a_smaller_maximum() -> None:
    """RFC 8656, 7.2: "Servers … may wish to use a smaller maximum allowed lifetime"."""
    court = Court(max_lifetime_s=900)
    client = Client(court)
    assert client.allocate((LIFETIME, 3600)).get(LIFETIME) == 900
    assert client.ask(Method.REFRESH, (LIFETIME, 3600)).get(LIFETIME) == 900


# --- Refresh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "expected"), [each for each in LIFETIMES if each[0] != 0])
def test_a_refresh_sets_the_timer(wanted: int | None, expected: int) -> None:
    """RFC 8656, 8.2: the answer has "the current value of the time-to-expiry timer", which may be less than before."""
    court = Court()
    client = allocated(court, (LIFETIME, 3600))
    court.pass_time(500.0)
    pairs: list[Pair] = [] if wanted is None else [(LIFETIME, wanted)]
    answer = client.ask(Method.REFRESH, *pairs)
    assert (code(answer), answer.get(LIFETIME)) == (0, expected)
    court.pass_time(expected - 0.1)
    assert len(court.turn.allocations) == 1
    court.pass_time(0.1)
    assert not court.turn.allocations


def test_a_lifetime_of_zero_deletes() -> None:
    """RFC 8656, 8.2: "the request succeeds and the allocation is deleted"; 9 and 12: with its permissions and channels;
    5: 437 for whatever follows."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    answer = client.ask(Method.REFRESH, (LIFETIME, 0))
    assert (answer.is_success, answer.get(LIFETIME)) == (True, 0)
    assert not court.turn.allocations and not court.ports.open_now
    assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 437
    assert not sends(client, PEER)
    assert code(client.allocate()) == 0
    assert not sends(client, PEER) and hears(court, PEER) is None
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), AT_PEER_2)) == 0


@pytest.mark.parametrize("pairs", [[], [(LIFETIME, 0)]])
@pytest.mark.parametrize("family", [IPV6, 0, 3])
def test_a_family_that_is_not_there_is_443(family: int, pairs: list[Pair]) -> None:
    """RFC 8656, 8.2: "the server MUST reply with a 443", and nothing else happens."""
    court = Court()
    client = allocated(court)
    expires_at = court.allocation().expires_at
    court.pass_time(10.0)
    assert code(client.ask(Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, family), *pairs)) == 443
    assert court.allocation().expires_at == expires_at


@pytest.mark.parametrize(
    ("family", "gone", "left"), [(IPV4, (PEER, 0x4001), (PEER_6, 0x4002)), (IPV6, (PEER_6, 0x4002), (PEER, 0x4001))]
)
def test_one_family_is_deleted(
    family: int, gone: tuple[TransportAddress, int], left: tuple[TransportAddress, int]
) -> None:
    """RFC 8656, 8.1: it "destroys any permissions or channels associated with that particular allocation; it MUST NOT
    affect any permissions or channels associated with allocations for the other address family"."""
    court = Court()
    client = allocated(court, DUAL)
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), AT_PEER)
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4002), AT_PEER_6)
    assert sends(client, PEER) and sends(client, PEER_6)
    answer = client.ask(Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, family), (LIFETIME, 0))
    assert (code(answer), answer.get(LIFETIME)) == (0, 0)
    (relayed,) = court.ports.open_now
    assert relayed.version != (4 if family == IPV4 else 6)
    assert not sends(client, gone[0]) and hears(court, gone[0]) is None
    assert list(court.allocation().channels) == [left[1]] and list(court.allocation().permissions) == [left[0].host]
    assert court.allocation().to_peer(gone[1].to_bytes(2, "big") + b"\0\0", court.now) is None
    assert sends(client, left[0])
    assert hears(court, left[0]) == left[1].to_bytes(2, "big") + b"\0\x01x"
    assert court.allocation().to_peer(left[1].to_bytes(2, "big") + b"\0\0", court.now) == (relayed, left[0], b"")
    for lifetime in (600, 0):
        again = client.ask(Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, family), (LIFETIME, lifetime))
        assert code(again) == 443
    assert code(client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, gone[0]))) == 443
    assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, gone[1]), (XOR_PEER_ADDRESS, gone[0]))) == 443
    # 8.1: "If no REQUESTED-ADDRESS-FAMILY attribute is included, … all current allocations".
    assert code(client.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert not court.turn.allocations and not court.ports.open_now


def test_a_refresh_without_a_family_is_for_both() -> None:
    """RFC 8656, 8.1: "then the request should be treated as applying to all current allocations"."""
    court = Court()
    client = allocated(court, DUAL)
    court.pass_time(500.0)
    assert client.ask(Method.REFRESH, (LIFETIME, 1000)).get(LIFETIME) == 1000
    court.pass_time(999.9)
    assert len(court.ports.open_now) == 2
    court.pass_time(0.1)
    assert not court.ports.open_now


def test_a_refresh_with_a_family_is_for_that_one() -> None:
    """RFC 8656, 6: "the time-to-expiry for each relayed transport address"; 8.1: "the address family type that should
    be refreshed"."""
    court = Court()
    client = allocated(court, DUAL)
    court.pass_time(500.0)
    assert client.ask(Method.REFRESH, (REQUESTED_ADDRESS_FAMILY, IPV4), (LIFETIME, 1000)).get(LIFETIME) == 1000
    court.pass_time(100.0)
    assert [relayed.version for relayed in court.ports.open_now] == [4]


def test_nothing_else_refreshes() -> None:
    """RFC 8656, 6: "Allocations can only be refreshed using the Refresh request; sending data to a peer does not"."""
    court = Court()
    client = allocated(court)
    for _ in range(6):
        court.pass_time(99.9)
        assert code(client.ask(Method.CREATE_PERMISSION, AT_PEER_2)) == 0
        assert code(client.ask(Method.CHANNEL_BIND, *BOUND)) == 0
        assert sends(client, PEER) and hears(court, PEER) is not None
    court.pass_time(0.7)
    assert not court.turn.allocations


# --- permissions -------------------------------------------------------------------------------------------------


def test_a_permission_is_needed_and_installed() -> None:
    """RFC 8656, 10.2: "a permission for the IP address contained in each XOR-PEER-ADDRESS attribute … The port portion
    of each attribute is ignored"; 10.2 has no attributes for the success response."""
    court = Court()
    client = allocated(court)
    peers: list[Pair] = [(XOR_PEER_ADDRESS, PEER._replace(port=0)), (XOR_PEER_ADDRESS, PEER_2._replace(port=1))]
    answer = client.ask(Method.CREATE_PERMISSION, *peers)
    assert answer.is_success and codes(answer) == []
    for peer in (PEER, PEER_2, PEER._replace(port=9)):
        assert sends(client, peer) and is_indication_of(hears(court, peer), peer)
    assert hears(court, TransportAddress("93.184.216.36", 7000)) is None


def test_permissions_of_both_families() -> None:
    """RFC 8656, 10.1: "For dual allocations … IPv4 and IPv6 address families"."""
    court = Court()
    client = allocated(court, DUAL)
    assert code(client.ask(Method.CREATE_PERMISSION, AT_PEER_6, AT_PEER)) == 0
    assert sends(client, PEER) and sends(client, PEER_6)
    assert [(relayed.version, peer) for relayed, peer, _ in court.to_peers] == [(4, PEER), (6, PEER_6)]
    assert is_indication_of(hears(court, PEER_6), PEER_6)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], 400),
        ([AT_PEER, AT_PEER_6], 443),
        ([AT_PEER_6, AT_PEER], 443),
        ([AT_PEER, (XOR_PEER_ADDRESS, PRIVATE)], 403),
        ([(XOR_PEER_ADDRESS, PRIVATE), AT_PEER], 403),
    ],
)
def test_all_permissions_or_none(pairs: list[Pair], expected: int) -> None:
    """RFC 8656, 10.2: 400 without any; 443 and 403 for the whole request."""
    court = Court()
    client = allocated(court)
    assert code(client.ask(Method.CREATE_PERMISSION, *pairs)) == expected
    assert not sends(client, PEER) and hears(court, PEER) is None


def test_too_many_permissions_are_none() -> None:
    """RFC 8656, 10.2: "unable to satisfy the request due to some capacity limit": 508."""
    court = Court()
    client = allocated(court)
    many: list[Pair] = [(XOR_PEER_ADDRESS, TransportAddress(f"93.185.{n >> 8}.{n & 255}", 1)) for n in range(4000)]
    assert code(client.ask(Method.CREATE_PERMISSION, *many)) == 508
    assert not court.allocation().permissions


@pytest.mark.parametrize("first", [Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
@pytest.mark.parametrize("second", [Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_a_permission_lasts_five_minutes(first: Method, second: Method) -> None:
    """RFC 8656, 9: "The Permission Lifetime MUST be 300 seconds", and both requests reset it; "CreatePermission and
    ChannelBind requests may be freely intermixed"."""
    court = Court()
    client = allocated(court, (LIFETIME, 3600))
    assert code(client.ask(first, *GOOD[first])) == 0
    court.pass_time(299.9)
    assert hears(court, PEER) is not None and sends(client, PEER)
    assert code(client.ask(second, *GOOD[second])) == 0
    court.pass_time(299.9)
    assert hears(court, PEER) is not None and sends(client, PEER)
    court.pass_time(0.2)
    assert hears(court, PEER) is None and not sends(client, PEER)


def test_traffic_refreshes_neither_permission_nor_channel() -> None:
    """RFC 8656, 11.2: "a Send indication never causes the server to refresh the permission"; 12.6: ChannelData "MUST
    NOT refresh either the channel binding or the permission"."""
    court = Court()
    client = allocated(court, (LIFETIME, 3600))
    client.ask(Method.CHANNEL_BIND, *BOUND)
    allocation = court.allocation()
    for _ in range(2):
        court.pass_time(149.9)
        assert sends(client, PEER) and hears(court, PEER) == b"\x40\x01\0\x01x"
        assert allocation.to_peer(b"\x40\x01\0\0", court.now) is not None
    court.pass_time(0.3)
    assert not sends(client, PEER) and hears(court, PEER) is None
    assert allocation.to_peer(b"\x40\x01\0\0", court.now) is None
    # The channel has 300 s more, and no longer.
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    court.pass_time(299.8)
    assert hears(court, PEER) == b"\x40\x01\0\x01x"
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    court.pass_time(0.2)
    assert is_indication_of(hears(court, PEER), PEER)


def test_permissions_and_channels_are_of_one_allocation() -> None:
    """RFC 8656, 9: "totally unrelated to the permissions for a different allocation"; 12: "has no impact on their use
    in a different allocation"."""
    court = Court()
    one = allocated(court)
    two = Client(court, OTHER)
    two.allocate()
    one.ask(Method.CHANNEL_BIND, *BOUND)
    assert not sends(two, PEER) and hears(court, PEER, client=OTHER) is None
    assert court.allocation(OTHER).to_peer(b"\x40\x01\0\0", court.now) is None
    assert code(two.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), AT_PEER_2)) == 0
    assert code(two.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4002), AT_PEER)) == 0
    assert hears(court, PEER) == b"\x40\x01\0\x01x" and hears(court, PEER, client=OTHER) == b"\x40\x02\0\x01x"


# --- Send --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [
        (AT_PEER,),
        ((DATA, b"x"),),
        (),
        (AT_PEER, (DATA, b"x"), (DONT_FRAGMENT, True)),
        (AT_PEER, (DATA, b"x"), (REQUIRED, b"")),
        (AT_PEER_2, (DATA, b"x")),
        (AT_PEER_6, (DATA, b"x")),
        ((XOR_PEER_ADDRESS, PEER._replace(port=0)), (DATA, b"x")),
    ],
)
def test_send_indications_that_are_discarded(pairs: tuple[Pair, ...]) -> None:
    """RFC 8656, 11.2: without peer or data, with DONT-FRAGMENT, without permission; 8489, 6.3.2: with an unknown
    comprehension-required attribute. Nothing is answered."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    client.indicate(Method.SEND, *pairs)
    assert court.to_peers == []
    assert sends(client, PEER)


def test_send_indications_of_nobody_are_ignored() -> None:
    """RFC 8656, 5: without an allocation "silently ignored (if it is an indication or a ChannelData message)"."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    assert not sends(Client(court, OTHER), PEER)
    assert court.deliver(b"\x40\x01\0\x01x", OTHER) == [] and court.to_peers == []


def test_what_a_send_indication_sends() -> None:
    """RFC 8656, 11.2: from the relayed address to the peer, the value of DATA, which may be empty; 8489, 6.3: unknown
    comprehension-optional attributes "MUST be ignored"; 12.5: also where there is a channel."""
    court = Court()
    client = Client(court)
    relayed = client.allocate().get(XOR_RELAYED_ADDRESS)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    client.indicate(Method.SEND, AT_PEER, (DATA, b""))
    client.indicate(Method.SEND, (OPTIONAL, b"?"), (SOFTWARE, "test"), (DATA, b"abc"), AT_PEER)
    assert court.to_peers == [(relayed, PEER, b""), (relayed, PEER, b"abc")]


# --- channels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((), 400),
        ((AT_PEER,), 400),
        (((CHANNEL_NUMBER, 0x4000),), 400),
        (((CHANNEL_NUMBER, 0), AT_PEER), 400),
        (((CHANNEL_NUMBER, 0x3FFF), AT_PEER), 400),
        (((CHANNEL_NUMBER, 0x8000), AT_PEER), 400),
        (((CHANNEL_NUMBER, 0xFFFF), AT_PEER), 400),
        (((CHANNEL_NUMBER, 0x4000), AT_PEER_6), 443),
        (((CHANNEL_NUMBER, 0x4000), (XOR_PEER_ADDRESS, PRIVATE)), 403),
        (((CHANNEL_NUMBER, 0x4000), (XOR_PEER_ADDRESS, PEER._replace(port=0))), 403),
    ],
)
def test_channels_that_are_refused(pairs: tuple[Pair, ...], expected: int) -> None:
    """RFC 8656, 12.2. Refused: neither a channel nor a permission."""
    court = Court()
    client = allocated(court)
    assert code(client.ask(Method.CHANNEL_BIND, *pairs)) == expected
    assert not court.allocation().channels and not court.allocation().permissions


def test_a_channel_is_bound_once() -> None:
    """RFC 8656, 12: "the same channel cannot be bound to two different transport addresses, nor can the same transport
    address be bound to two different channels"; 12.2: 400. A port is part of a transport address."""
    court = Court()
    client = allocated(court)
    for number in (0x4000, 0x4FFF):
        peer = PEER._replace(port=number)
        answer = client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))
        assert answer.is_success and codes(answer) == []
    before = court.allocation().to_peer(b"\x40\0\0\0", court.now)
    for number, port in ((0x4000, 0x4FFF), (0x4000, 9), (0x4001, 0x4000)):
        peer = PEER._replace(port=port)
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == 400
    assert court.allocation().to_peer(b"\x40\0\0\0", court.now) == before
    assert hears(court, PEER._replace(port=0x4000)) == b"\x40\0\0\x01x"
    assert is_indication_of(hears(court, PEER._replace(port=9)), PEER._replace(port=9))


def test_a_channel_is_renewed_for_ten_minutes() -> None:
    """RFC 8656, 12: "Refreshing the binding … resets the time-to-expiry timer back to 10 minutes"; once unbound, number
    and transport address are free."""
    court = Court()
    client = allocated(court, (LIFETIME, 3600))
    assert code(client.ask(Method.CHANNEL_BIND, *BOUND)) == 0
    court.pass_time(500.0)
    assert code(client.ask(Method.CHANNEL_BIND, *BOUND)) == 0
    court.pass_time(599.9)
    client.challenge()
    assert code(client.ask(Method.CREATE_PERMISSION, AT_PEER)) == 0
    assert hears(court, PEER) == b"\x40\x01\0\x01x"
    for pairs in (((CHANNEL_NUMBER, 0x4001), AT_PEER_2), ((CHANNEL_NUMBER, 0x4002), AT_PEER)):
        assert code(client.ask(Method.CHANNEL_BIND, *pairs)) == 400
    court.pass_time(0.1)
    assert is_indication_of(hears(court, PEER), PEER)
    assert court.allocation().to_peer(b"\x40\x01\0\0", court.now) is None
    for pairs in (((CHANNEL_NUMBER, 0x4001), AT_PEER_2), ((CHANNEL_NUMBER, 0x4002), AT_PEER)):
        assert code(client.ask(Method.CHANNEL_BIND, *pairs)) == 0
    assert hears(court, PEER) == b"\x40\x02\0\x01x" and hears(court, PEER_2) == b"\x40\x01\0\x01x"


def test_channels_of_both_families() -> None:
    """RFC 8656, 12.1: "the same address family as that of a relayed transport address"; 12.6: from that address."""
    court = Court()
    client = allocated(court, DUAL)
    allocation = court.allocation()
    for number, peer in ((0x4001, PEER), (0x4002, PEER_6)):
        assert code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer))) == 0
        head = number.to_bytes(2, "big")
        assert allocation.to_peer(head + b"\0\x01x", court.now) == (allocation.relayed[peer.version], peer, b"x")
        assert hears(court, peer) == head + b"\0\x01x"


def test_what_channel_data_sends() -> None:
    """RFC 8656, 12.4: "0 is a valid length"; 12.5: over UDP padding "MAY be included"; 12.6: too short, or not bound:
    "silently discarded"."""
    court = Court()
    client = Client(court)
    relayed = client.allocate().get(XOR_RELAYED_ADDRESS)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    to_peer = court.allocation().to_peer
    assert to_peer(b"\x40\x01\0\0", court.now) == (relayed, PEER, b"")
    assert to_peer(b"\x40\x01\0\x01x\0\0\0", court.now) == (relayed, PEER, b"x")
    assert to_peer(b"\x40\x01\0\x02x", court.now) is None
    assert to_peer(b"\x40\x02\0\x01x", court.now) is None


# --- from peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 1200])
def test_what_a_peer_sends(size: int, is_stream: bool) -> None:
    """RFC 8656, 11.3: XOR-PEER-ADDRESS and DATA, and nothing else that the client would have to understand; 12.5:
    ChannelData where there is a channel, padded "Over TCP and TLS-over-TCP", which "is not reflected in the length"."""
    court = Court(is_stream=is_stream)
    client = allocated(court)
    data = bytes(range(256)) * 5
    data = data[:size]
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    message = hears(court, PEER, data)
    assert message is not None and is_indication_of(message, PEER, data)
    assert codes(parse(message)) == named(XOR_PEER_ADDRESS, DATA) and len(message) % 4 == 0
    client.ask(Method.CHANNEL_BIND, *BOUND)
    padding = bytes(-size % 4) if is_stream else b""
    assert hears(court, PEER, data) == b"\x40\x01" + size.to_bytes(2, "big") + data + padding


def test_data_indications_have_ids_of_their_own() -> None:
    """RFC 8489, 5: "the transaction ID MUST be uniformly and randomly chosen from the interval 0 .. 2**96-1"."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    found = {parse(hears(court, PEER) or b"").transaction_id for _ in range(100)}
    assert len(found) == 100


@pytest.mark.parametrize("is_outward", [False, True])
def test_too_much_is_discarded(is_outward: bool) -> None:
    """RFC 8656, 5: "it should discard application data traffic that exceeds the bandwidth quota"."""
    court = Court(max_bytes_per_s=1000.0)
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)

    def passes() -> bool:
        return sends(client, PEER, bytes(400)) if is_outward else hears(court, PEER, bytes(400)) is not None

    assert [passes() for _ in range(4)] == [True, True, False, False]
    court.pass_time(1.0)
    assert passes()


# --- authentication ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GOOD)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_request_without_integrity_is_a_question_for_credentials(method: Method, is_known: bool) -> None:
    """RFC 8489, 9.2.4: 401 with REALM, NONCE and PASSWORD-ALGORITHMS; neither name nor integrity; 9.2: the nonce begins
    with the cookie, and 9.2.4: its "Password algorithms" bit is set. Before anything else is looked at (6.3)."""
    court = Court()
    client = allocated(court) if is_known else Client(court)
    before = len(court.ports.open_now)
    for pairs in (GOOD[method], (), ((REQUIRED, b""),), (*GOOD[method], *credentials(client))):
        answer = ask_as(client, method, *pairs)
        assert answer.is_error and code(answer) == 401
        assert codes(answer) == named(ERROR_CODE, REALM, NONCE, PASSWORD_ALGORITHMS)
        assert not answer.has_integrity and not answer.has_integrity_sha256
        assert answer.get(REALM) == REALM_NAME
        features = security_features(answer.get(NONCE) or "")
        assert features is not None and features & SecurityFeature.PASSWORD_ALGORITHMS
        offered = {each.algorithm for each in answer.get(PASSWORD_ALGORITHMS) or ()}
        assert offered == {PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256}
    assert len(court.ports.open_now) == before


@pytest.mark.parametrize("method", GOOD)
@pytest.mark.parametrize("missing", [USERNAME, REALM, NONCE])
@pytest.mark.parametrize("sha256", [False, True])
def test_a_signed_request_without_the_rest_is_a_bad_request(
    method: Method, missing: Attribute[str], sha256: bool
) -> None:
    """RFC 8489, 9.2.4: 400, which "SHOULD NOT include a USERNAME, USERHASH, NONCE, or REALM" and has no integrity."""
    client = allocated(Court())
    pairs = [pair for pair in credentials(client) if pair[0] != missing]
    answer = ask_as(client, method, *GOOD[method], *pairs, key=client.key, sha256=sha256)
    assert code(answer) == 400 and codes(answer) == named(ERROR_CODE)
    assert not answer.has_integrity and not answer.has_integrity_sha256


@pytest.mark.parametrize("method", GOOD)
@pytest.mark.parametrize(("username", "password"), [("user", "wrong"), ("nobody", "secret")])
def test_a_wrong_name_or_password_is_401(method: Method, username: str, password: str) -> None:
    """RFC 8489, 9.2.4: 401 with REALM, NONCE and PASSWORD-ALGORITHMS."""
    court = Court()
    allocated(court)
    client = Client(court, CLIENT, username, password)
    answer = client.ask(method, *GOOD[method])
    assert code(answer) == 401
    assert codes(answer) == named(ERROR_CODE, REALM, NONCE, PASSWORD_ALGORITHMS)
    assert not court.allocation().permissions and len(court.turn.allocations) == 1


@pytest.mark.parametrize("method", GOOD)
def test_a_stale_nonce_is_438_and_the_new_one_is_good(method: Method) -> None:
    """RFC 8489, 9.2.4: "MUST include NONCE, REALM, and PASSWORD-ALGORITHMS attributes … The NONCE attribute value MUST
    be valid"; RFC 8656, 5: "SHOULD expire the nonce at least once every hour"."""
    court = Court()
    client = Client(court)
    if method == Method.ALLOCATE:
        client.challenge()
    else:
        client.allocate((LIFETIME, 3600))
        court.pass_time(3000.0)
        client.challenge()
        assert code(client.ask(Method.REFRESH, (LIFETIME, 3600))) == 0
        court.pass_time(500.0)
    court.pass_time(3000.0)
    answer = client.ask(method, *GOOD[method])
    assert code(answer) == 438
    assert codes(answer) == named(ERROR_CODE, REALM, NONCE, PASSWORD_ALGORITHMS)
    client.nonce = answer.get(NONCE) or ""
    assert code(client.ask(method, *GOOD[method])) == 0


def test_nonces_are_for_one_address_and_port() -> None:
    """RFC 8489, 9.2.4: "The server MUST NOT choose the same NONCE for two requests unless they have the same source IP
    address and port"."""
    court = Court()
    sources = [CLIENT, CLIENT._replace(port=5001), OTHER, TransportAddress("2606:2800:1::5", 5000)]
    assert len({Client(court, source).challenge().get(NONCE) for source in sources}) == 4


def test_a_userhash_instead_of_a_username() -> None:
    """RFC 8489, 9.2.4: "The server MAY support anonymous username, in which case it MUST set the STUN Security Feature
    "Username anonymity" bit set to 1"."""
    court = Court()
    client = Client(court)
    features = security_features(client.challenge().get(NONCE) or "") or SecurityFeature(0)
    pairs: list[Pair] = [(USERHASH, userhash("user", REALM_NAME)), (REALM, REALM_NAME), (NONCE, client.nonce)]
    answer = ask_as(client, Method.ALLOCATE, UDP, *pairs, key=client.key)
    assert (code(answer) == 0) == bool(features & SecurityFeature.USERNAME_ANONYMITY)


def test_a_userhash_of_nobody() -> None:
    """RFC 8489, 9.2.4: "If the value of the USERNAME or USERHASH attribute is not valid": 401."""
    client = Client(Court())
    client.challenge()
    pairs: list[Pair] = [(USERHASH, bytes(32)), (REALM, REALM_NAME), (NONCE, client.nonce)]
    assert code(ask_as(client, Method.ALLOCATE, UDP, *pairs, key=client.key)) == 401


def test_names_are_compared_as_opaque_strings() -> None:
    """RFC 8489, 14.3: USERNAME is what the OpaqueString profile makes of a name (here: NFC), however it was written
    in the server's configuration."""
    court = Court(accounts=Accounts(realm=REALM_NAME, users={"jose\u0301": "secret"}))
    assert code(Client(court, CLIENT, "jos\u00e9", "secret").allocate()) == 0


@pytest.mark.parametrize("algorithm", [PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256])
@pytest.mark.parametrize("seal", [{"sha256": True}, {"both": True}, {}], ids=["sha256", "both", "sha1"])
@pytest.mark.parametrize("is_refused", [False, True])
def test_an_answer_to_password_algorithms_is_signed_with_sha256(
    algorithm: PasswordAlgorithm, seal: dict[str, bool], is_refused: bool
) -> None:
    """RFC 8489, 9.2.4: "Any response generated by the server MUST include the MESSAGE-INTEGRITY-SHA256 attribute, …
    unless the request was processed as though PASSWORD-ALGORITHM was MD5 (because the request contained neither
    PASSWORD-ALGORITHMS nor PASSWORD-ALGORITHM)", and no REALM, NONCE or name."""
    client = Client(Court())
    offered = client.challenge().get(PASSWORD_ALGORITHMS)
    pairs = [*credentials(client), (PASSWORD_ALGORITHMS, offered), (PASSWORD_ALGORITHM, AlgorithmParameters(algorithm))]
    key = long_term_key("user", REALM_NAME, "secret", algorithm)
    if not is_refused:
        pairs.append(UDP)
    answer = ask_as(client, Method.ALLOCATE, *pairs, key=key, **seal)
    assert code(answer) == (400 if is_refused else 0)
    assert answer.verify_sha256(key)
    assert not {REALM, NONCE, USERNAME, USERHASH} & set(codes(answer))


@pytest.mark.parametrize("seal", [{"sha256": True}, {"both": True}, {}], ids=["sha256", "both", "sha1"])
@pytest.mark.parametrize("is_refused", [False, True])
def test_an_answer_without_password_algorithms_is_signed_with_sha1(seal: dict[str, bool], is_refused: bool) -> None:
    """RFC 8489, 9.2.4: "In that case, the MESSAGE-INTEGRITY attribute MUST be used instead of the
    MESSAGE-INTEGRITY-SHA256 attribute, and the REALM, NONCE, USERNAME, and USERHASH attributes SHOULD NOT be
    included"."""
    client = Client(Court())
    pairs = credentials(client)
    if not is_refused:
        pairs.append(UDP)
    answer = ask_as(client, Method.ALLOCATE, *pairs, key=client.key, **seal)
    assert code(answer) == (400 if is_refused else 0)
    assert answer.verify(client.key)
    assert not {REALM, NONCE, USERNAME, USERHASH} & set(codes(answer))


def test_of_two_integrities_sha256_counts() -> None:
    """RFC 8489, 9.2.4: "If the MESSAGE-INTEGRITY-SHA256 attribute is present, compute" that, "Otherwise" the other."""
    client = Client(Court())
    wrong = long_term_key("user", REALM_NAME, "wrong")
    message = build(Method.ALLOCATE, MessageClass.REQUEST, client.court.transaction_id(), UDP, *credentials(client))
    data = message.encode(client.key, both=True, fingerprint=False)
    as_if = data[:-36] + b"\0\x1c\0\x20" + wrong.sign_sha256(data[:-36])
    (answer,) = client.court.deliver(as_if)
    assert code(parse(answer)) == 401
    (answer,) = client.court.deliver(data)
    assert code(parse(answer)) == 0


def test_algorithms_are_judged_before_the_name() -> None:
    """RFC 8489, 9.2.4, "in the order specified": 400 for a list that was not offered comes before 401."""
    client = Client(Court(), CLIENT, "nobody", "secret")
    md5 = AlgorithmParameters(PasswordAlgorithm.MD5)
    pairs = [*credentials(client), (PASSWORD_ALGORITHMS, (md5,)), (PASSWORD_ALGORITHM, md5)]
    assert code(ask_as(client, Method.ALLOCATE, UDP, *pairs, key=client.key)) == 400


@pytest.mark.parametrize("method", OF_ALLOCATIONS)
def test_an_allocation_is_used_under_one_name(method: Method) -> None:
    """RFC 8656, 5: "MUST be rejected with a 441 (Wrong Credentials) error"; 437 where there is no allocation; in
    either case whatever else is wrong with the request, and nothing happens."""
    court = Court()
    for pairs in (GOOD[method], ((LIFETIME, 0),)):
        assert code(Client(court).ask(method, *pairs)) == 437
    allocated(court)
    for pairs in (GOOD[method], ((LIFETIME, 0),)):
        assert code(Client(court, CLIENT, "other", "password").ask(method, *pairs)) == 441
    assert len(court.turn.allocations) == 1 and not court.allocation().permissions


# --- unknown things ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GOOD)
def test_unknown_attributes(method: Method) -> None:
    """RFC 8489, 6.3 and 6.3.1: 420 with UNKNOWN-ATTRIBUTES for the comprehension-required ones; optional ones "MUST be
    ignored", known but unexpected ones "SHOULD be ignored"."""
    court = Court()
    client = Client(court) if method == Method.ALLOCATE else allocated(court)
    unknown: list[Pair] = [(REQUIRED, b"abc"), (REQUIRED_2, b""), (REQUIRED, b"")]
    answer = client.ask(method, *unknown, *GOOD[method])
    assert code(answer) == 420
    (listed,) = answer.get_all(UNKNOWN_ATTRIBUTES)
    assert sorted(listed) == named(REQUIRED, REQUIRED_2)
    assert len(court.turn.allocations) == (0 if method == Method.ALLOCATE else 1)
    assert all(not allocation.permissions for allocation in court.turn.allocations.values())
    ignored: list[Pair] = [(OPTIONAL, b"abc"), (SOFTWARE, "test"), (DATA, b"x"), (XOR_RELAYED_ADDRESS, PEER)]
    assert code(client.ask(method, *ignored, *GOOD[method])) == 0


@pytest.mark.parametrize("method", [0, 2, 5, Method.SEND, Method.DATA, 0x0FF, 0xFFF])
def test_requests_of_unknown_methods(method: int) -> None:
    """RFC 8489, 6.3: "that the method value is a supported method … that the message class is allowed for the
    particular method. … If any errors are detected, the message is silently discarded"."""
    court = Court()
    client = allocated(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    assert court.deliver(client.request(method, AT_PEER, (DATA, b"x"))) == []
    assert court.to_peers == []


@pytest.mark.parametrize("method", [*GOOD, Method.DATA, Method.BINDING, 0xFFF])
def test_indications_get_no_answers(method: int) -> None:
    """RFC 8489, 6.3.2: "no response is generated", and what is no indication of a client's does nothing."""
    court = Court()
    client = Client(court)
    client.indicate(method, UDP, AT_PEER, (DATA, b"x"))
    client.allocate()
    client.indicate(method, (LIFETIME, 0), AT_PEER, (CHANNEL_NUMBER, 0x4000), (DATA, b"x"))
    assert court.to_peers == [] and not court.allocation().permissions


def test_a_fingerprint_is_checked_and_answered() -> None:
    """RFC 8489, 6.3 and 7: a wrong one: not STUN. RFC 8656, 5: "MAY include the FINGERPRINT attribute"."""
    court = Court()
    client = Client(court)
    request = client.request(Method.ALLOCATE, UDP)
    assert court.deliver(request[:-1] + bytes([request[-1] ^ 1])) == []
    (answer,) = court.deliver(request)
    assert parse(answer).has_fingerprint and code(parse(answer)) == 0


# --- retransmissions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GOOD)
def test_a_request_that_is_repeated(method: Method) -> None:
    """RFC 8489, 6.3.1: "the server MUST respond to retransmissions such that …", in 40 seconds: the same answer, and
    the same state."""
    court = Court(user_quota=1)
    client = Client(court) if method == Method.ALLOCATE else allocated(court)
    request = client.request(method, *GOOD[method])
    first = court.deliver(request)
    assert code(parse(first[0])) == 0
    before = set(court.ports.open_now), list(court.turn.allocations.values())
    court.pass_time(39.0)
    assert court.deliver(request) == first
    assert (set(court.ports.open_now), list(court.turn.allocations.values())) == before


def test_a_repeated_allocate_reserves_once() -> None:
    """RFC 8656, 7.2: "any reservation token returned in the original response so that this may be returned in any
    retransmitted responses"."""
    court = Court()
    client = Client(court)
    request = client.request(Method.ALLOCATE, UDP, (EVEN_PORT, True), WANTS_TICKET)
    first = court.deliver(request)
    assert court.deliver(request) == first and len(court.ports.open_now) == 2
    # Another transaction is another request (7.2, 2), and the same one from elsewhere is not ours.
    assert code(client.allocate((EVEN_PORT, True))) == 437
    (answer,) = court.deliver(request, OTHER)
    assert code(parse(answer)) == 438 and len(court.turn.allocations) == 1


def test_a_repeated_deletion() -> None:
    """RFC 8656, 8.2: "will cause a 437 (Allocation Mismatch) response if the allocation has already been deleted, but
    the client will treat this as equivalent to a success response"."""
    court = Court()
    client = allocated(court)
    request = client.request(Method.REFRESH, (LIFETIME, 0))
    for _ in range(2):
        (answer,) = court.deliver(request)
        found = parse(answer)
        assert found.verify(client.key) and code(found) in (0, 437)
    assert not court.turn.allocations and not court.ports.open_now


# --- mobility ----------------------------------------------------------------------------------------------------


def mobile(court: Court) -> tuple[Client, bytes]:
    """A client with a ticket."""
    client = Client(court)
    ticket = client.allocate(WANTS_TICKET).get(MOBILITY_TICKET)
    assert ticket
    return client, ticket


def test_a_ticket_is_given_on_request() -> None:
    """RFC 8016, 3.1.2: "a success response that includes a STUN MOBILITY-TICKET attribute"; its length "in accordance
    with the published guidance on STUN UDP fragmentation" (8489, 6.1: 548 bytes over IPv4)."""
    court = Court()
    client = Client(court)
    (answer,) = court.deliver(client.request(Method.ALLOCATE, UDP, DUAL, WANTS_TICKET))
    assert parse(answer).get(MOBILITY_TICKET) and len(answer) <= 548
    assert Client(court, OTHER).allocate().get(MOBILITY_TICKET) is None


@pytest.mark.parametrize(("mobility", "ticket", "expected"), [(False, b"", 405), (True, b"x", 400), (False, b"x", 400)])
def test_an_allocate_with_a_wrong_ticket(mobility: bool, ticket: bytes, expected: int) -> None:
    """RFC 8016, 3.1.2: 405 for "a length of zero, but TURN session mobility is forbidden", 400 for another length."""
    court = Court(mobility=mobility)
    assert code(Client(court).allocate((MOBILITY_TICKET, ticket))) == expected
    assert not court.turn.allocations


def test_a_refresh_where_mobility_is_forbidden() -> None:
    """RFC 8016, 3.2.2: 405."""
    court = Court(mobility=False)
    client = allocated(court)
    for who in (client, Client(court, OTHER)):
        assert code(who.ask(Method.REFRESH, (MOBILITY_TICKET, bytes(24)))) == 405
    assert code(client.ask(Method.REFRESH)) == 0


def test_a_ticket_of_an_allocation_that_has_ended() -> None:
    """RFC 8016, 3.2.2: "does not identify an existing allocation, then the server MUST reject the request with a
    437"."""
    court = Court()
    client, ticket = mobile(court)
    client.ask(Method.REFRESH, (LIFETIME, 0))
    assert code(Client(court, OTHER).ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 437


@pytest.mark.parametrize("ticket", [b"", b"x", bytes(24), bytes(400)], ids=len)
def test_a_ticket_that_is_invalid(ticket: bytes) -> None:
    """RFC 8016, 3.2.2: "If the ticket is invalid, then the server MUST reject the request with a 400"."""
    court = Court()
    mobile(court)
    assert code(Client(court, OTHER).ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 400


def test_who_has_not_moved_or_is_somebody_else() -> None:
    """RFC 8016, 3.2.2: 400 where the five-tuple is the same, 441 for another user; the allocation stays."""
    court = Court()
    client, ticket = mobile(court)
    expires_at = court.allocation().expires_at
    court.pass_time(10.0)
    assert code(client.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 400
    thief = Client(court, OTHER, "other", "password")
    assert code(thief.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 441
    # Without a ticket, the five-tuple says which allocation: none.
    assert code(Client(court, OTHER).ask(Method.REFRESH)) == 437
    assert court.allocation().expires_at == expires_at
    assert code(Client(court, OTHER).ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 0


def test_a_move_keeps_everything() -> None:
    """RFC 8016, 3: "retain the same relayed address/port", "continue using previous channel bindings"; 3.2.2: "The new
    ticket sent in the refresh response MUST be different", "Data sent by the client to the peer is accepted on the new
    5-tuple and data received from the peer is forwarded to the new 5-tuple"."""
    court = Court()
    client, ticket = mobile(court)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    client.ask(Method.CREATE_PERMISSION, AT_PEER_2)
    relayed = set(court.ports.open_now)
    moved = Client(court, OTHER)
    answer = moved.ask(Method.REFRESH, (MOBILITY_TICKET, ticket), (LIFETIME, 1000))
    assert (code(answer), answer.get(LIFETIME)) == (0, 1000)
    new = answer.get(MOBILITY_TICKET)
    assert new and new != ticket
    assert sends(moved, PEER) and sends(moved, PEER_2)
    assert hears(court, PEER, client=OTHER) == b"\x40\x01\0\x01x"
    assert court.allocation(OTHER).client == OTHER and court.ports.open_now == relayed
    assert code(moved.ask(Method.REFRESH)) == 0
    assert code(Client(court, ELSEWHERE).ask(Method.REFRESH, (MOBILITY_TICKET, new))) == 0
    assert court.service.allocations == 1


def test_a_repeated_move_gets_the_same_answer() -> None:
    """RFC 8016, 3.2.2: "retain the old STUN MOBILITY-TICKET attribute for a period of at least 30 seconds to be able to
    recognize a retransmission of the Refresh request with the old" one."""
    court = Court()
    _, ticket = mobile(court)
    moved = Client(court, OTHER)
    request = moved.request(Method.REFRESH, (MOBILITY_TICKET, ticket))
    first = court.deliver(request, OTHER)
    assert sends(moved, PEER) is False
    court.pass_time(30.0)
    assert court.deliver(request, OTHER) == first and code(parse(first[0])) == 0


def test_the_old_five_tuple_is_served_until_the_new_one_is_used() -> None:
    """RFC 8016, 3.2.2: "The TURN server MUST continue receiving and processing data on the old 5-tuple and MUST
    continue transmitting data on the old-5 tuple until it receives a Send Indication or ChannelData message from the
    client on the new 5-tuple"."""
    court = Court()
    client, ticket = mobile(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    moved = Client(court, OTHER)
    assert code(moved.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 0
    assert sends(client, PEER)
    assert court.allocation(OTHER).client == CLIENT
    assert sends(moved, PEER)
    assert court.allocation(OTHER).client == OTHER


def test_the_old_five_tuple_ends_when_the_new_one_is_used() -> None:
    """RFC 8016, 3.2.2: then it "discards the old ticket and the old 5-tuple"."""
    court = Court()
    client, ticket = mobile(court)
    client.ask(Method.CREATE_PERMISSION, AT_PEER)
    moved = Client(court, OTHER)
    assert code(moved.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 0
    assert sends(moved, PEER) and not sends(client, PEER)
    assert code(client.ask(Method.REFRESH)) == 437
    # Its address may be somebody else's now.
    assert code(Client(court, CLIENT, "other", "password").allocate()) == 0


# --- streams -----------------------------------------------------------------------------------------------------


def test_messages_of_a_stream_can_be_told_apart() -> None:
    """RFC 8656, 12.5: "MUST be padded to a multiple of four bytes in order to ensure the alignment of subsequent
    messages"."""
    court = Court(is_stream=True)
    client = allocated(court)
    client.ask(Method.CHANNEL_BIND, *BOUND)
    client.ask(Method.CREATE_PERMISSION, AT_PEER_2)
    peers = [PEER, PEER_2, PEER, PEER, PEER_2]
    stream = b"".join(hears(court, peer, bytes(size)) or b"" for size, peer in enumerate(peers, 1))
    messages = StreamFramer().feed(stream)
    assert [message[:2] for message in messages] == [b"\x40\x01", b"\0\x17", b"\x40\x01", b"\x40\x01", b"\0\x17"]
    trained = b"".join(court.turn.train_from_peer(court.allocation(), PEER, [b"abc", b"def"], court.now))
    assert StreamFramer().feed(trained) == [b"\x40\x01\0\x03abc", b"\x40\x01\0\x03def"]


def test_an_allocation_ends_with_its_stream() -> None:
    """RFC 8656, 6: an allocation is of a five-tuple; with the stream that is gone for good. No other one ends."""
    court = Court(is_stream=True, user_quota=2)
    allocated(court)
    other = Client(court, OTHER)
    other.allocate()
    court.turn.forget_stream(SERVER, CLIENT, court.now)
    court.turn.forget_stream(SERVER, ELSEWHERE, court.now)
    assert list(court.turn.allocations) == [(SERVER, OTHER)] and len(court.ports.open_now) == 1
    assert code(other.ask(Method.REFRESH)) == 0 and code(Client(court, CLIENT).allocate()) == 0


def test_an_allocation_that_has_moved_survives_its_first_stream() -> None:
    """RFC 8016, 3.2.2: "a message from the client to close the old connection" ends the old five-tuple, not more."""
    court = Court(is_stream=True)
    _, ticket = mobile(court)
    moved = Client(court, OTHER)
    assert code(moved.ask(Method.REFRESH, (MOBILITY_TICKET, ticket))) == 0
    court.turn.forget_stream(SERVER, CLIENT, court.now)
    assert code(moved.ask(Method.REFRESH)) == 0


def wake(court: Court, streams: StreamServer, seconds: float) -> None:
    """Let time pass, as the shell does."""
    end = court.now + seconds
    for _ in range(1000):
        at = streams.poll_timeout()
        if at is None or at > end:
            break
        court.now = max(court.now, at)
        streams.handle_timeout(court.now)


def test_allocations_of_streams_expire() -> None:
    """RFC 8656, 6: "time-to-expiry", whatever the transport; the shell looks at nothing but :class:`StreamServer`."""
    court = Court(is_stream=True)
    streams = StreamServer(court.stun, is_busy=lambda stream: stream in court.turn.allocations)
    streams.open(SERVER, CLIENT, court.now)
    allocated(court)
    wake(court, streams, 700.0)
    assert not court.turn.allocations and not court.ports.open_now


def test_reservations_of_streams_expire() -> None:
    """RFC 8656, 7.2: what is not claimed is free again, here as well."""
    court = Court(is_stream=True)
    streams = StreamServer(court.stun, is_busy=lambda stream: stream in court.turn.allocations)
    streams.open(SERVER, CLIENT, court.now)
    allocated(court, (EVEN_PORT, True))
    assert len(court.ports.open_now) == 2
    wake(court, streams, 100.0)
    assert len(court.ports.open_now) == 1


class StreamClient:
    """A client of a whole server, over TCP."""

    def __init__(self) -> None:
        self._framer = StreamFramer()
        self._count = 0
        self.heard: list[bytes] = []
        self.is_open = True
        self.nonce = ""

    async def connect(self, machine: MemoryHost, to: TransportAddress) -> StreamClient:
        self._stream = await machine.connect_tcp(to, self)
        return self

    async def ask(self, method: int, *pairs: Pair) -> int:
        """The code of the answer; -1: there is none."""
        self._count += 1
        identity = self._count.to_bytes(12, "big")
        who: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, self.nonce)]
        message = build(method, MessageClass.REQUEST, identity, *pairs, *who)
        self.write(message.encode(long_term_key("user", REALM_NAME, "secret")))
        await asyncio.sleep(1.0)
        if not self.heard or self.heard[-1][8:20] != identity:
            return -1
        answer = parse(self.heard[-1])
        self.nonce = answer.get(NONCE) or self.nonce
        return code(answer)

    def close(self) -> None:
        self._stream.close()

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.heard += self._framer.feed(data)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        self.is_open = False


def on_a_stream(
    internet: MemoryInternet, run: Run, story: Callable[[StreamClient, Server], Coroutine[Any, Any, None]]
) -> None:
    """Run it with a client that has an allocation over TCP; all seconds are virtual."""
    listen = TransportAddress("93.184.217.1", 3478)
    machine, alice = internet.host("server", [listen.host]), internet.host("alice", ["93.184.218.1"])
    turn = TurnOptions(accounts=Accounts(realm=REALM_NAME, users={"user": "secret"}))

    async def main() -> None:
        async with Server(machine, [listen], options=ServerOptions(relaying=Relaying(turn=turn))) as server:
            client = await StreamClient().connect(alice, listen)
            assert await client.ask(Method.ALLOCATE, UDP) == 438
            assert await client.ask(Method.ALLOCATE, UDP) == 0
            assert server.allocations == 1
            try:
                await story(client, server)
            finally:
                client.close()
                await asyncio.sleep(1.0)

    run(main())


def test_a_server_closes_while_a_stream_is_open(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    """No sentence of an RFC's, found by the tests here: what is open is closed, relayed addresses with it."""

    async def story(client: StreamClient, server: Server) -> None:
        await server.aclose()
        await asyncio.sleep(1.0)
        assert not client.is_open

    on_a_stream(iceagent_internet, iceagent_run, story)


def test_channel_data_without_an_allocation_costs_no_stream(
    iceagent_internet: MemoryInternet, iceagent_run: Run
) -> None:
    """RFC 8656, 5: "silently ignored (if it is an indication or a ChannelData message)": it may have been on its way
    when the allocation was deleted."""

    async def story(client: StreamClient, server: Server) -> None:
        assert await client.ask(Method.REFRESH, (LIFETIME, 0)) == 0
        client.write(b"\x40\x01\0\x04data")
        assert await client.ask(Method.ALLOCATE, UDP) == 0
        assert client.is_open and server.allocations == 1

    on_a_stream(iceagent_internet, iceagent_run, story)


def test_an_allocation_over_tcp_expires(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    """RFC 8656, 6, in the whole server: whoever does not refresh has no allocation after ten minutes."""

    async def story(client: StreamClient, server: Server) -> None:
        await asyncio.sleep(590.0)
        assert server.allocations == 1
        await asyncio.sleep(15.0)
        assert server.allocations == 0

    on_a_stream(iceagent_internet, iceagent_run, story)


def test_a_closed_stream_takes_its_allocation_along(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    """RFC 8656, 6, in the whole server."""

    async def story(client: StreamClient, server: Server) -> None:
        client.close()
        await asyncio.sleep(1.0)
        assert server.allocations == 0

    on_a_stream(iceagent_internet, iceagent_run, story)
