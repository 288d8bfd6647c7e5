"""Every attribute that we know: its bytes, there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from relay import stun
from relay.stun import ATTRIBUTES, Attribute, BadMessage, MessageClass, Method, build, parse

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
V4 = TransportAddress("192.0.2.1", 32853)
V6 = TransportAddress("2001:db8:1234:5678:11:2233:4455:6677", 32853)
XORED_V4 = "0001a147e112a643"
XORED_V6 = "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
PLAIN_V4 = "00018055c0000201"
PLAIN_V6 = "0002805520010db8123456780011223344556677"

# Attribute, value, the bytes of the value in hexadecimal.
EXAMPLES: list[tuple[Attribute[Any], Any, str]] = [
    (stun.MAPPED_ADDRESS, V4, PLAIN_V4),
    (stun.MAPPED_ADDRESS, V6, PLAIN_V6),
    (stun.CHANGE_REQUEST, stun.ChangeRequest(change_ip=True, change_port=False), "00000004"),
    (stun.CHANGE_REQUEST, stun.ChangeRequest(change_ip=False, change_port=True), "00000002"),
    (stun.CHANGE_REQUEST, stun.ChangeRequest(change_ip=True, change_port=True), "00000006"),
    (stun.USERNAME, "evtj:h6vY", "6576746a3a68367659"),
    (stun.USERNAME, "", ""),
    (stun.ERROR_CODE, stun.ErrorCode(487, "Role Conflict"), "00000457" + b"Role Conflict".hex()),
    (stun.ERROR_CODE, stun.ErrorCode(300, ""), "00000300"),
    (stun.ERROR_CODE, stun.ErrorCode(699, "ü"), "00000663c3bc"),
    (stun.UNKNOWN_ATTRIBUTES, (0x7001, 0x0030, 0x7002), "700100307002"),
    (stun.UNKNOWN_ATTRIBUTES, (), ""),
    (stun.CHANNEL_NUMBER, 0x4001, "40010000"),
    (stun.LIFETIME, 600, "00000258"),
    (stun.XOR_PEER_ADDRESS, V4, XORED_V4),
    (stun.XOR_PEER_ADDRESS, V6, XORED_V6),
    (stun.DATA, b"\x01\x02\x03", "010203"),
    (stun.DATA, b"", ""),
    (stun.REALM, "example.org", "6578616d706c652e6f7267"),
    (stun.NONCE, "f//499k954d6OL34oL9FSTvy64sA", "662f2f3439396b3935346436" + b"OL34oL9FSTvy64sA".hex()),
    (stun.XOR_RELAYED_ADDRESS, V4, XORED_V4),
    (stun.XOR_RELAYED_ADDRESS, V6, XORED_V6),
    (stun.REQUESTED_ADDRESS_FAMILY, stun.AddressFamily.IPV6, "02000000"),
    (stun.EVEN_PORT, True, "80"),
    (stun.EVEN_PORT, False, "00"),
    (stun.REQUESTED_TRANSPORT, 17, "11000000"),
    (stun.DONT_FRAGMENT, True, ""),
    (stun.PASSWORD_ALGORITHM, stun.AlgorithmParameters(2), "00020000"),
    (stun.PASSWORD_ALGORITHM, stun.AlgorithmParameters(9, b"abcde"), "000900056162636465000000"),
    (stun.USERHASH, bytes(range(32)), bytes(range(32)).hex()),
    (stun.XOR_MAPPED_ADDRESS, V4, XORED_V4),
    (stun.XOR_MAPPED_ADDRESS, V6, XORED_V6),
    (stun.RESERVATION_TOKEN, b"12345678", "3132333435363738"),
    (stun.PRIORITY, 0x6E0001FF, "6e0001ff"),
    (stun.USE_CANDIDATE, True, ""),
    (stun.PADDING, b"x" * 5, "7878787878"),
    (stun.RESPONSE_PORT, 3478, "0d960000"),
    (stun.CONNECTION_ID, 0xDEADBEEF, "deadbeef"),
    (stun.ADDITIONAL_ADDRESS_FAMILY, stun.AddressFamily.IPV6, "02000000"),
    (
        stun.ADDRESS_ERROR_CODE,
        stun.AddressErrorCode(stun.AddressFamily.IPV6, 440, "Address Family not Supported"),
        "02000428" + b"Address Family not Supported".hex(),
    ),
    (stun.PASSWORD_ALGORITHMS, (), ""),
    (
        stun.PASSWORD_ALGORITHMS,
        (stun.AlgorithmParameters(2), stun.AlgorithmParameters(7, b"a"), stun.AlgorithmParameters(1)),
        "00020000" + "0007000161000000" + "00010000",
    ),
    (stun.ALTERNATE_DOMAIN, "turn.example.org", b"turn.example.org".hex()),
    (stun.ICMP, stun.Icmp(3, 4, 1400), "0000030400000578"),
    (stun.SOFTWARE, "test vector", "7465737420766563746f72"),
    (stun.ALTERNATE_SERVER, V4, PLAIN_V4),
    (stun.ALTERNATE_SERVER, V6, PLAIN_V6),
    (stun.ICE_CONTROLLED, 0x932FF9B151263B36, "932ff9b151263b36"),
    (stun.ICE_CONTROLLING, 2**64 - 1, "ffffffffffffffff"),
    (stun.RESPONSE_ORIGIN, V4, PLAIN_V4),
    (stun.OTHER_ADDRESS, V6, PLAIN_V6),
    (stun.MOBILITY_TICKET, b"", ""),
    (stun.MOBILITY_TICKET, b"ticket", "7469636b6574"),
    (stun.NOMINATION, 1, "00000001"),
    (stun.NETWORK_COST, stun.NetworkCost(3, 999), "000303e7"),
    (stun.PATH_MESSAGE, b"anything", "616e797468696e67"),
]

# Attribute and bytes (in hexadecimal) that are no value of it.
MALFORMED: list[tuple[Attribute[Any], str]] = [
    (stun.MAPPED_ADDRESS, ""),
    (stun.MAPPED_ADDRESS, "00"),
    (stun.MAPPED_ADDRESS, "00038055c0000201"),
    (stun.MAPPED_ADDRESS, "00018055c00002"),
    (stun.MAPPED_ADDRESS, "00028055c0000201"),
    (stun.MAPPED_ADDRESS, "00018055" + "00" * 16),
    (stun.XOR_MAPPED_ADDRESS, ""),
    (stun.XOR_MAPPED_ADDRESS, "0002a147e112a643"),
    (stun.XOR_MAPPED_ADDRESS, "0000a147e112a643"),
    (stun.XOR_MAPPED_ADDRESS, XORED_V6 + "00"),
    (stun.XOR_PEER_ADDRESS, "0001a147" + "00" * 16),
    (stun.CHANGE_REQUEST, "0004"),
    (stun.USERNAME, "ff"),
    (stun.USERNAME, "61" * 764),
    (stun.REALM, "c3"),
    (stun.NONCE, "eda080"),
    (stun.NONCE, "61" * 764),
    (stun.SOFTWARE, "80"),
    (stun.ERROR_CODE, ""),
    (stun.ERROR_CODE, "000004"),
    (stun.ERROR_CODE, "00000200"),
    (stun.ERROR_CODE, "00000700"),
    (stun.ERROR_CODE, "00000464"),
    (stun.ERROR_CODE, "00000400ff"),
    (stun.ERROR_CODE, "00000400" + "61" * 764),
    (stun.UNKNOWN_ATTRIBUTES, "7001ff"),
    (stun.CHANNEL_NUMBER, "4001"),
    (stun.LIFETIME, "000258"),
    (stun.LIFETIME, "0000000258"),
    (stun.REQUESTED_ADDRESS_FAMILY, "02"),
    (stun.EVEN_PORT, ""),
    (stun.EVEN_PORT, "80000000"),
    (stun.REQUESTED_TRANSPORT, "11"),
    (stun.DONT_FRAGMENT, "00"),
    (stun.PASSWORD_ALGORITHM, ""),
    (stun.PASSWORD_ALGORITHM, "0002"),
    (stun.PASSWORD_ALGORITHM, "00020004"),
    (stun.PASSWORD_ALGORITHM, "0002000000010000"),
    (stun.PASSWORD_ALGORITHMS, "00020000000100"),
    (stun.PASSWORD_ALGORITHMS, "0002000561"),
    (stun.USERHASH, "00" * 31),
    (stun.RESERVATION_TOKEN, "00" * 9),
    (stun.PRIORITY, "6e0001"),
    (stun.USE_CANDIDATE, "01"),
    (stun.RESPONSE_PORT, "0d"),
    (stun.RESPONSE_PORT, "0d9600"),
    (stun.CONNECTION_ID, "deadbe"),
    (stun.ADDRESS_ERROR_CODE, "020004"),
    (stun.ADDRESS_ERROR_CODE, "02000228"),
    (stun.ALTERNATE_DOMAIN, "61" * 256),
    (stun.ALTERNATE_DOMAIN, "c3bc"),
    (stun.ICMP, "00000304"),
    (stun.ICE_CONTROLLED, "932ff9b1"),
    (stun.ICE_CONTROLLING, "932ff9b151263b3600"),
    (stun.NOMINATION, "000001"),
    (stun.NETWORK_COST, "0003"),
]

# Attribute and value that cannot be written.
UNWRITABLE: list[tuple[Attribute[Any], Any]] = [
    (stun.PRIORITY, 2**32),
    (stun.PRIORITY, -1),
    (stun.ICE_CONTROLLED, 2**64),
    (stun.CHANNEL_NUMBER, 0x10000),
    (stun.USE_CANDIDATE, False),
    (stun.DONT_FRAGMENT, False),
    (stun.USERNAME, "a" * 764),
    (stun.USERNAME, "\ud800"),
    (stun.ALTERNATE_DOMAIN, "a" * 256),
    (stun.ALTERNATE_DOMAIN, "ü.example"),
    (stun.ERROR_CODE, stun.ErrorCode(299, "")),
    (stun.ERROR_CODE, stun.ErrorCode(700, "")),
    (stun.UNKNOWN_ATTRIBUTES, (0x10000,)),
    (stun.XOR_MAPPED_ADDRESS, TransportAddress("192.0.2.1", 65536)),
    (stun.XOR_MAPPED_ADDRESS, TransportAddress("2001:db8::1", 65536)),
    (stun.XOR_MAPPED_ADDRESS, TransportAddress("example.org", 1)),
    (stun.MAPPED_ADDRESS, TransportAddress("2001:db8::1", -1)),
    (stun.USERHASH, b"short"),
    (stun.RESERVATION_TOKEN, b"short"),
    (stun.REQUESTED_TRANSPORT, 256),
    (stun.ICMP, stun.Icmp(256, 0, 0)),
    (stun.NETWORK_COST, stun.NetworkCost(0, 65536)),
    (stun.DATA, bytes(65_536)),
]


def message_with(attribute: Attribute[Any], value: bytes) -> bytes:
    """A Binding indication whose only attribute has these bytes, padded with something else than zero."""
    padded = value + b"\xaa" * (-len(value) % 4)
    body = attribute.to_bytes(2, "big") + len(value).to_bytes(2, "big") + padded
    return b"\0\x11" + len(body).to_bytes(2, "big") + bytes.fromhex("2112a442") + ID + body


@pytest.mark.parametrize(("attribute", "value", "expected"), EXAMPLES)
def test_value_is_written_as_the_rfc_draws_it(attribute: Attribute[Any], value: Any, expected: str) -> None:
    data = build(Method.BINDING, MessageClass.INDICATION, ID, (attribute, value)).encode(fingerprint=False)
    length = len(bytes.fromhex(expected))
    assert data[20:24] == attribute.to_bytes(2, "big") + length.to_bytes(2, "big")
    assert data[24 : 24 + length].hex() == expected
    assert data[24 + length :] == bytes(-length % 4), "RFC 8489, 14: the padding bits MUST be set to zero on sending"


@pytest.mark.parametrize(("attribute", "value", "expected"), EXAMPLES)
def test_value_is_read_whatever_the_padding(attribute: Attribute[Any], value: Any, expected: str) -> None:
    message = parse(message_with(attribute, bytes.fromhex(expected)))
    assert message.attributes == [(attribute, value)]
    found = message.get(attribute)
    assert found == value
    assert type(found) is type(value) or isinstance(value, int)
    assert message.unknown_required == ()


def test_every_attribute_has_an_example_and_a_malformed_one() -> None:
    assert {attribute for attribute, _, _ in EXAMPLES} == set(ATTRIBUTES.values())
    anything_goes = {stun.DATA, stun.PADDING, stun.MOBILITY_TICKET, stun.PATH_MESSAGE}
    like_mapped_address = {stun.XOR_RELAYED_ADDRESS, stun.ALTERNATE_SERVER, stun.RESPONSE_ORIGIN, stun.OTHER_ADDRESS}
    like_others = like_mapped_address | {stun.ADDITIONAL_ADDRESS_FAMILY}
    assert {attribute for attribute, _ in MALFORMED} == set(ATTRIBUTES.values()) - anything_goes - like_others


@pytest.mark.parametrize(("attribute", "value"), MALFORMED)
def test_malformed_value_is_refused_by_name(attribute: Attribute[Any], value: str) -> None:
    with pytest.raises(BadMessage, match=f"^{attribute.name}: "):
        parse(message_with(attribute, bytes.fromhex(value)))


@pytest.mark.parametrize(("attribute", "value"), UNWRITABLE)
def test_value_that_does_not_fit_is_refused_by_name(attribute: Attribute[Any], value: Any) -> None:
    for method in (Method.BINDING, Method.ALLOCATE):
        with pytest.raises(ValueError, match=f"^{attribute.name}: ") as caught:
            build(method, MessageClass.REQUEST, ID, (attribute, value)).encode()
        assert not isinstance(caught.value, BadMessage)


def test_codes_are_those_of_the_registries() -> None:
    """RFC 8489, 18.3; RFC 8445, 20.1; RFC 8656, 18; RFC 6062, 6.2; RFC 8016, 4; RFC 5780, 9.1."""
    assert {attribute.name: attribute.code for attribute in ATTRIBUTES.values()} == {
        "MAPPED-ADDRESS": 0x0001,
        "CHANGE-REQUEST": 0x0003,
        "USERNAME": 0x0006,
        "ERROR-CODE": 0x0009,
        "UNKNOWN-ATTRIBUTES": 0x000A,
        "CHANNEL-NUMBER": 0x000C,
        "LIFETIME": 0x000D,
        "XOR-PEER-ADDRESS": 0x0012,
        "DATA": 0x0013,
        "REALM": 0x0014,
        "NONCE": 0x0015,
        "XOR-RELAYED-ADDRESS": 0x0016,
        "REQUESTED-ADDRESS-FAMILY": 0x0017,
        "EVEN-PORT": 0x0018,
        "REQUESTED-TRANSPORT": 0x0019,
        "DONT-FRAGMENT": 0x001A,
        "PASSWORD-ALGORITHM": 0x001D,
        "USERHASH": 0x001E,
        "XOR-MAPPED-ADDRESS": 0x0020,
        "RESERVATION-TOKEN": 0x0022,
        "PRIORITY": 0x0024,
        "USE-CANDIDATE": 0x0025,
        "PADDING": 0x0026,
        "RESPONSE-PORT": 0x0027,
        "CONNECTION-ID": 0x002A,
        "ADDITIONAL-ADDRESS-FAMILY": 0x8000,
        "ADDRESS-ERROR-CODE": 0x8001,
        "PASSWORD-ALGORITHMS": 0x8002,
        "ALTERNATE-DOMAIN": 0x8003,
        "ICMP": 0x8004,
        "SOFTWARE": 0x8022,
        "ALTERNATE-SERVER": 0x8023,
        "ICE-CONTROLLED": 0x8029,
        "ICE-CONTROLLING": 0x802A,
        "RESPONSE-ORIGIN": 0x802B,
        "OTHER-ADDRESS": 0x802C,
        "MOBILITY-TICKET": 0x8030,
        "NOMINATION": 0xC001,
        "NETWORK-COST": 0xC057,
        "PATH-MESSAGE": 0xC1CE,
    }


def test_reserved_bits_are_ignored() -> None:
    """RFC 8489, 14.1 and 14.8; RFC 8656, 18: MUST be ignored when received."""
    cases: list[tuple[Attribute[Any], str, Any]] = [
        (stun.MAPPED_ADDRESS, "ff018055c0000201", V4),
        (stun.XOR_MAPPED_ADDRESS, "ff01a147e112a643", V4),
        (stun.XOR_MAPPED_ADDRESS, "ff" + XORED_V6[2:], V6),
        (stun.ERROR_CODE, "fffffc57", stun.ErrorCode(487, "")),
        (stun.CHANNEL_NUMBER, "4001ffff", 0x4001),
        (stun.EVEN_PORT, "ff", True),
        (stun.EVEN_PORT, "7f", False),
        (stun.REQUESTED_TRANSPORT, "11ffffff", 17),
        (stun.REQUESTED_ADDRESS_FAMILY, "01ffffff", 1),
        (stun.ADDRESS_ERROR_CODE, "02fffc28", stun.AddressErrorCode(2, 440, "")),
        (stun.ICMP, "ffff030400000578", stun.Icmp(3, 4, 1400)),
        (stun.CHANGE_REQUEST, "fffffff9", stun.ChangeRequest(change_ip=False, change_port=False)),
    ]
    for attribute, value, expected in cases:
        assert parse(message_with(attribute, bytes.fromhex(value))).get(attribute) == expected


def test_ipv4_mapped_address_becomes_ipv4() -> None:
    """Otherwise ::ffff:127.0.0.1 passes where 127.0.0.1 is refused."""
    mapped = message_with(stun.MAPPED_ADDRESS, bytes.fromhex("00020007" + "00" * 10 + "ffff7f000001"))
    assert parse(mapped).get(stun.MAPPED_ADDRESS) == TransportAddress("127.0.0.1", 7)
    xored = bytes(
        a ^ b for a, b in zip(bytes.fromhex("00" * 10 + "ffff7f000001"), b"\x21\x12\xa4\x42" + ID, strict=True)
    )
    peer = message_with(stun.XOR_PEER_ADDRESS, b"\0\2" + (7 ^ 0x2112).to_bytes(2, "big") + xored)
    assert parse(peer).get(stun.XOR_PEER_ADDRESS) == TransportAddress("127.0.0.1", 7)


def test_response_port_may_leave_its_padding_uncounted() -> None:
    """RFC 5780, 7.5: "a 16-bit unsigned integer in network byte order followed by 2 bytes of padding"."""
    assert parse(message_with(stun.RESPONSE_PORT, bytes.fromhex("0d96"))).get(stun.RESPONSE_PORT) == 3478


def test_xored_ipv6_address_depends_on_the_transaction_id() -> None:
    """RFC 8489, 14.2."""
    written = {
        build(Method.BINDING, MessageClass.SUCCESS, bytes([number]) * 12, (stun.XOR_MAPPED_ADDRESS, V6)).encode()[24:44]
        for number in range(3)
    }
    assert len(written) == 3


def test_attribute_is_its_code_and_shows_its_name() -> None:
    assert stun.PRIORITY == 0x0024
    assert repr(stun.PRIORITY) == "PRIORITY"
    assert ATTRIBUTES[0x0024] is stun.PRIORITY
