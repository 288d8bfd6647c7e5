"""Rules of whole messages: header, order, what follows integrity, fingerprint, responses."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from relay.stun import (
    DATA,
    ERROR_CODE,
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    LIFETIME,
    PRIORITY,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    Attribute,
    BadAttribute,
    BadMessage,
    ErrorCode,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    build,
    is_stun,
    parse,
)
from relay.stun.layout import LAYOUT_LIMIT, LAYOUTS, SAME_START_LIMIT

ID = bytes(range(12))
KEY = IntegrityKey(b"key")
SHA256_LENGTH = "MESSAGE-INTEGRITY-SHA256: length {}, not a multiple of 4 within 16 to 32"
PEER = TransportAddress("198.51.100.7", 4000)


def request(*pairs: tuple[Attribute[Any], Any]) -> Message:
    return build(Method.BINDING, MessageClass.REQUEST, ID, *pairs)


def attribute(code: int, value: bytes) -> bytes:
    return struct.pack(">HH", code, len(value)) + value + bytes(-len(value) % 4)


def message(body: bytes, message_type: int = 1, length: int | None = None, cookie: int = 0x2112A442) -> bytes:
    return struct.pack(">HHI12s", message_type, len(body) if length is None else length, cookie, ID) + body


def with_fingerprint(data: bytes) -> bytes:
    data = data[:2] + struct.pack(">H", len(data) - 20 + 8) + data[4:]
    return data + struct.pack(">HHI", 0x8028, 4, zlib.crc32(data) ^ 0x5354554E)


def append(data: bytes, more: bytes) -> bytes:
    """Put attributes behind a message, with the header's length following."""
    return data[:2] + struct.pack(">H", len(data) - 20 + len(more)) + data[4:] + more


@pytest.mark.parametrize(
    ("message_type", "method", "message_class"),
    [
        (0x0001, Method.BINDING, MessageClass.REQUEST),
        (0x0011, Method.BINDING, MessageClass.INDICATION),
        (0x0101, Method.BINDING, MessageClass.SUCCESS),
        (0x0111, Method.BINDING, MessageClass.ERROR),
        (0x0003, Method.ALLOCATE, MessageClass.REQUEST),
        (0x0113, Method.ALLOCATE, MessageClass.ERROR),
        (0x0016, Method.SEND, MessageClass.INDICATION),
        (0x0017, Method.DATA, MessageClass.INDICATION),
        (0x0108, Method.CREATE_PERMISSION, MessageClass.SUCCESS),
        (0x0009, Method.CHANNEL_BIND, MessageClass.REQUEST),
        (0x001C, Method.CONNECTION_ATTEMPT, MessageClass.INDICATION),
        (0x3EEF, 0xFFF, MessageClass.REQUEST),
        (0x3FFF, 0xFFF, MessageClass.ERROR),
        (0x2000, 0x800, MessageClass.REQUEST),
        (0x0020, 0x010, MessageClass.REQUEST),
        (0x0200, 0x080, MessageClass.REQUEST),
        (0x0000, 0x000, MessageClass.REQUEST),
    ],
)
def test_class_bits_lie_between_method_bits(message_type: int, method: int, message_class: MessageClass) -> None:
    """RFC 8489, 5, figure 3."""
    found = parse(message(b"", message_type))
    assert (found.method, found.message_class) == (method, message_class)
    assert build(method, message_class, ID).encode(fingerprint=False) == message(b"", message_type)
    kinds = (found.is_request, found.is_indication, found.is_success, found.is_error)
    assert kinds == tuple(each == message_class for each in MessageClass)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes, fewer than the 20 of a header"),
        (message(b"")[:19], "19 bytes, fewer than the 20 of a header"),
        (message(b"", cookie=0x2112A443), "magic cookie 0x2112a443, not 0x2112a442"),
        (message(b"", message_type=0x4001), "message type 0x4001: the two top bits are not zero"),
        (message(b"", message_type=0x8001), "message type 0x8001: the two top bits are not zero"),
        (message(b"", length=4), "length 4 in a message of 20 bytes"),
        (message(b"\0" * 3), "length 3 in a message of 23 bytes"),
        (message(attribute(0x24, b"1234") + b"\0\0"), "length 10 in a message of 30 bytes"),
        (message(attribute(0x24, b"1234")) + b"\0", "length 8 in a message of 29 bytes"),
        (message(b"\0\x24\0\x08\0\0\0\0"), "PRIORITY: 8 bytes announced, 4 there"),
        (message(b"\x7f\0\xff\xff\0\0\0\0"), "attribute 0x7f00: 65535 bytes announced, 4 there"),
        (message(attribute(0x0008, bytes(19))), "MESSAGE-INTEGRITY: length 19, not 20"),
        (message(attribute(0x0008, bytes(24))), "MESSAGE-INTEGRITY: length 24, not 20"),
        (
            message(attribute(0x001C, bytes(12))),
            SHA256_LENGTH.format(12),
        ),
        (
            message(attribute(0x001C, bytes(18))),
            SHA256_LENGTH.format(18),
        ),
        (
            message(attribute(0x001C, bytes(36))),
            SHA256_LENGTH.format(36),
        ),
        (message(attribute(0x8028, bytes(4))), "FINGERPRINT: wrong"),
        (message(attribute(0x8028, bytes(3))), "FINGERPRINT: length 3, not 4"),
        (append(with_fingerprint(message(b"")), attribute(0x8022, b"x")), "FINGERPRINT: not the last attribute"),
        (with_fingerprint(with_fingerprint(message(b""))), "FINGERPRINT: not the last attribute"),
    ],
)
def test_bad_message_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(data)
    assert str(caught.value) == reason


def test_is_stun_looks_at_first_byte_cookie_and_length() -> None:
    """RFC 7983, 7: the first byte of STUN is 0 to 3."""
    good = message(attribute(0x24, b"1234"))
    assert is_stun(good)
    assert is_stun(message(b"", message_type=0x03FF))
    assert not is_stun(message(b"", message_type=0x0400))
    assert not is_stun(good[:-4])
    assert not is_stun(good + b"\0\0\0\0")
    assert not is_stun(message(b"\0" * 3))
    assert not is_stun(message(b"", cookie=0))
    assert not is_stun(good[:19])
    assert not is_stun(b"")


def test_order_repeated_and_unknown_attributes_survive() -> None:
    """RFC 8489, 14: any attribute type MAY appear more than once; only the first occurrence needs to be processed."""
    body = (
        attribute(0xC0DE, b"abc")
        + attribute(PRIORITY, b"\0\0\0\1")
        + attribute(0x7001, b"")
        + attribute(PRIORITY, b"\0\0\0\2")
        + attribute(0xC0DE, b"")
    )
    found = parse(message(body))
    assert found.attributes == [(0xC0DE, b"abc"), (PRIORITY, 1), (0x7001, b""), (PRIORITY, 2), (0xC0DE, b"")]
    assert found.get(PRIORITY) == 1
    assert found.get_all(PRIORITY) == [1, 2]
    assert found.get(SOFTWARE) is None
    assert found.get_all(SOFTWARE) == []
    assert found.encode(fingerprint=False) == message(body)


def test_unknown_comprehension_required_attributes_are_named_once_and_answered_with_420() -> None:
    """RFC 8489, 6.3.1 and 14.13; comprehension-optional ones (0x8000 and above) are ignored."""
    codes = (0x7002, 0x8FFF, 0x0030, 0x7002, 0x7FFF, 0x8000 + 0x7000)
    found = parse(message(b"".join([attribute(code, b"") for code in codes])))
    assert found.unknown_required == (0x7002, 0x0030, 0x7FFF)
    response = parse(found.unknown_attributes_response().encode())
    assert response.is_error
    assert (response.method, response.transaction_id) == (Method.BINDING, ID)
    assert response.attributes == [
        (ERROR_CODE, ErrorCode(420, "Unknown Attribute")),
        (UNKNOWN_ATTRIBUTES, (0x7002, 0x0030, 0x7FFF)),
    ]


def test_what_follows_message_integrity_is_ignored() -> None:
    """RFC 8489, 9: "agents MUST ignore all attributes that follow MESSAGE-INTEGRITY"."""
    signed = request((USERNAME, "a:b")).encode(KEY, fingerprint=False)
    appended = (
        attribute(LIFETIME, b"\0\0\0\1")
        + attribute(LIFETIME, b"malformed")
        + attribute(0x7001, b"unknown")
        + attribute(0x0008, bytes(20))
        + attribute(0x0008, b"another")
    )
    found = parse(with_fingerprint(append(signed, appended)))
    assert found.attributes == [(USERNAME, "a:b")]
    assert found.unknown_required == ()
    assert found.has_fingerprint
    assert found.verify(KEY)


def test_sha256_integrity_after_message_integrity_counts() -> None:
    """RFC 8489, 9: "with the exception of the MESSAGE-INTEGRITY-SHA256 and FINGERPRINT attributes"."""
    found = parse(request((USERNAME, "a:b")).encode(KEY, both=True))
    assert found.has_integrity
    assert found.has_integrity_sha256
    assert found.has_fingerprint
    assert found.verify(KEY)
    assert found.verify_sha256(KEY)
    other = IntegrityKey(b"other")
    assert not found.verify(other)
    assert not found.verify_sha256(other)
    assert found.attributes == [(USERNAME, "a:b")]


def test_what_follows_sha256_integrity_alone_is_ignored() -> None:
    """RFC 8489, 9: with the exception of FINGERPRINT; so a MESSAGE-INTEGRITY there does not count."""
    signed = request((USERNAME, "a:b")).encode(KEY, sha256=True, fingerprint=False)
    appended = attribute(LIFETIME, b"\0\0\0\1") + attribute(0x0008, bytes(20)) + attribute(0x001C, bytes(32))
    found = parse(with_fingerprint(append(signed, appended)))
    assert found.attributes == [(USERNAME, "a:b")]
    assert found.verify_sha256(KEY)
    assert not found.has_integrity
    assert not found.verify(KEY)


def test_truncated_sha256_integrity_is_read_but_never_verifies() -> None:
    """RFC 8489, 14.6: the full 32 bytes unless the usage specifies that truncation is allowed."""
    head = message(b"", length=4 + 16)
    found = parse(message(attribute(0x001C, KEY.sign_sha256(head)[:16])))
    assert found.has_integrity_sha256
    assert not found.verify_sha256(KEY)


def test_integrity_is_absent_wrong_or_right() -> None:
    unsigned = parse(request().encode())
    assert not unsigned.has_integrity
    assert not unsigned.verify(KEY)
    assert not unsigned.has_integrity_sha256
    assert not unsigned.verify_sha256(KEY)
    signed = request().encode(KEY, fingerprint=False)
    assert parse(signed).verify(KEY)
    wrong = parse(signed[:-1] + bytes([signed[-1] ^ 1]))
    assert wrong.has_integrity
    assert not wrong.verify(KEY)
    assert not request().verify(KEY), "a message that did not arrive has no integrity to verify"


def test_fingerprint_is_written_unless_unwanted() -> None:
    assert parse(request().encode()).has_fingerprint
    assert request().encode() == with_fingerprint(request().encode(fingerprint=False))
    assert not parse(request().encode(fingerprint=False)).has_fingerprint
    assert not parse(request().encode(KEY, both=True, fingerprint=False)).has_fingerprint


def test_success_and_error_responses_echo_method_and_transaction_id() -> None:
    """RFC 8489, 6.3.1.1."""
    asked = parse(build(Method.ALLOCATE, MessageClass.REQUEST, ID).encode())
    success = parse(asked.success((XOR_MAPPED_ADDRESS, PEER), (LIFETIME, 600)).encode(KEY))
    assert (success.method, success.message_class) == (Method.ALLOCATE, MessageClass.SUCCESS)
    assert success.transaction_id == ID
    assert success.attributes == [(XOR_MAPPED_ADDRESS, PEER), (LIFETIME, 600)]
    assert success.error is None
    error = parse(asked.error_response(487, "Role Conflict", (SOFTWARE, "x")).encode(KEY))
    assert (error.method, error.message_class) == (Method.ALLOCATE, MessageClass.ERROR)
    assert error.transaction_id == ID
    assert error.error == ErrorCode(487, "Role Conflict")
    assert error.get(SOFTWARE) == "x"


def test_reason_phrase_has_fewer_than_128_characters() -> None:
    """RFC 8489, 14.8."""
    assert request().error_response(400, "é" * 127).encode()
    with pytest.raises(ValueError, match="128 characters, more than 127"):
        request().error_response(400, "a" * 128)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="11 bytes, not 12"):
        build(Method.BINDING, MessageClass.REQUEST, ID[:11])
    with pytest.raises(ValueError, match="13 bytes, not 12"):
        Message(Method.BINDING, MessageClass.REQUEST, ID + b"x")
    with pytest.raises(ValueError, match="integrity needs a key"):
        request().encode(sha256=True)
    with pytest.raises(ValueError, match="integrity needs a key"):
        request().encode(both=True)
    with pytest.raises(ValueError, match="method 4096"):
        build(0x1000, MessageClass.REQUEST, ID).encode()


def test_longest_message_is_written_and_one_step_more_is_refused() -> None:
    """The length of the header has 16 bits and is a multiple of four: RFC 8489, 5."""

    def send(size: int) -> Message:
        return build(Method.SEND, MessageClass.INDICATION, ID, (DATA, bytes(size)))

    options: list[tuple[dict[str, Any], int]] = [
        ({"fingerprint": False}, 0),
        ({}, 8),
        ({"key": KEY}, 32),
        ({"key": KEY, "sha256": True}, 44),
        ({"key": KEY, "both": True}, 68),
    ]
    for wanted, seals in options:
        room = 0xFFFC - 4 - seals
        longest = send(room).encode(**wanted)
        assert len(longest) == 65_552
        assert parse(longest).get(DATA) == bytes(room)
        with pytest.raises(ValueError, match="bytes of attributes, more than"):
            send(room + 1).encode(**wanted)


def test_message_may_be_changed_before_it_is_written() -> None:
    """Whether it was built here, parsed the first time, or parsed along a known layout."""
    data = request((PRIORITY, 1)).encode(KEY)
    assert parse(data).verify(KEY)
    for each in (
        request((PRIORITY, 1)),
        parse(data),
        Message(Method.BINDING, MessageClass.REQUEST, ID, [(PRIORITY, 1)]),
    ):
        each.attributes.append((USE_CANDIDATE, True))
        each.attributes[0] = (PRIORITY, 2)
        assert parse(each.encode()).attributes == [(PRIORITY, 2), (USE_CANDIDATE, True)]
        assert each.get(PRIORITY) == 2


def test_what_is_remembered_as_written_is_the_same_with_every_transaction_id() -> None:
    """Caches must not carry one message's id, integrity or IPv6 address into the next."""
    for address in (PEER, TransportAddress("2001:db8::7", 4000)):
        for number in range(4):
            transaction_id = bytes([number]) * 12
            built = build(Method.BINDING, MessageClass.SUCCESS, transaction_id, (XOR_MAPPED_ADDRESS, address))
            found = parse(built.encode(KEY))
            assert found.transaction_id == transaction_id
            assert found.get(XOR_MAPPED_ADDRESS) == address
            assert found.verify(KEY)


def test_learned_layout_gives_what_reading_attribute_by_attribute_gives() -> None:
    """``relay/stun/layout.py``: a short cut for verified messages, and nothing else."""
    pairs = (
        (USERNAME, "abcd:efgh"),
        (PRIORITY, 7),
        (ICE_CONTROLLING, 2**63),
        (USE_CANDIDATE, True),
        (XOR_PEER_ADDRESS, PEER),
        (XOR_MAPPED_ADDRESS, TransportAddress("2001:db8::9", 9)),
        (DATA, b"xyz"),
        (SOFTWARE, "s"),
        (PRIORITY, 8),
        (ERROR_CODE, ErrorCode(400, "no")),
    )
    first = request(*pairs).encode(KEY)
    before = parse(first)
    assert before.verify(KEY)
    for number in range(1, 4):
        data = build(Method.BINDING, MessageClass.REQUEST, bytes([number]) * 12, *pairs).encode(KEY)
        found = parse(data)
        assert found.get(PRIORITY) == 7
        assert found.get_all(PRIORITY) == [7, 8]
        assert found.attributes == before.attributes == list(pairs)
        assert found.transaction_id == bytes([number]) * 12
        assert found.has_fingerprint
        assert found.verify(KEY)
        assert not found.verify(IntegrityKey(b"other"))
        assert found.get(LIFETIME) is None


def test_learned_layout_refuses_what_the_long_way_refuses() -> None:
    data = request((USERNAME, "learned:one"), (USE_CANDIDATE, True)).encode(KEY)
    assert parse(data).verify(KEY)
    position = data.index(b"learned:one")
    not_utf8 = data[:position] + b"\xff" + data[position + 1 : -8]
    with pytest.raises(BadMessage, match="USERNAME: text that is not UTF-8"):
        parse(with_fingerprint(not_utf8))
    with pytest.raises(BadMessage, match="FINGERPRINT: wrong"):
        parse(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BadMessage, match="length"):
        parse(data + b"\0\0\0\0")
    with pytest.raises(BadMessage, match="magic cookie"):
        parse(data[:4] + b"\0" + data[5:])
    renamed = with_fingerprint(data[:20] + b"\x80\x22" + data[22:-8])
    assert parse(renamed).get(SOFTWARE) == "learned:one"
    assert parse(renamed).get(USERNAME) is None


def test_layouts_are_learned_from_verified_messages_only_and_are_bounded() -> None:
    LAYOUTS.clear()
    data = request((USERNAME, "stranger")).encode(KEY)
    assert not parse(data).verify(IntegrityKey(b"other"))
    assert LAYOUTS == {}
    for number in range(LAYOUT_LIMIT + 10):
        assert parse(build(number, MessageClass.REQUEST, ID).encode(KEY)).verify(KEY)
        assert len(LAYOUTS) <= LAYOUT_LIMIT
    assert len(LAYOUTS) == 10


def test_kinds_of_one_length_are_learned_side_by_side_and_are_bounded() -> None:
    """The checks of a controlling and of a controlled agent differ in one attribute's code."""
    LAYOUTS.clear()
    roles = (ICE_CONTROLLING, ICE_CONTROLLED)
    kinds = [request((USERNAME, "a:b"), (role, 5)).encode(KEY) for role in roles]
    assert len({data[:4] for data in kinds}) == 1
    for _ in range(3):
        for role, data in zip(roles, kinds, strict=True):
            found = parse(data)
            assert found.verify(KEY)
            assert found.attributes == [(USERNAME, "a:b"), (role, 5)]
    (layout,) = LAYOUTS.values()
    assert layout.depth == 2
    for code in range(0x8100, 0x8100 + 2 * SAME_START_LIMIT):
        message = request((USERNAME, "a:b"))
        message.attributes.append((code, b"8 bytes!"))
        data = message.encode(KEY)
        for _ in range(2):
            assert parse(data).verify(KEY)
            assert parse(data).attributes == [(USERNAME, "a:b"), (code, b"8 bytes!")]
    (layout,) = LAYOUTS.values()
    assert layout.depth == SAME_START_LIMIT


def test_message_shows_its_attributes_by_name() -> None:
    data = request((PRIORITY, 5)).encode(fingerprint=False)
    assert repr(parse(append(data, attribute(0x7001, b"x")))) == (
        "<<Method.BINDING: 1> REQUEST 000102030405060708090a0b PRIORITY=5, attribute 0x7001=b'x'>"
    )


def test_a_message_with_a_malformed_value_is_known_but_for_that_value() -> None:
    """RFC 8656, 7.2: such a request is refused, not dropped; so whose it is must be known."""
    pairs = attribute(0x000D, b"abc") + attribute(0x0006, b"me") + attribute(0x0024, b"") + attribute(0x7FFF, b"?")
    body = pairs + attribute(0x0008, bytes(20))
    signed = message(pairs, length=len(body))
    data = message(pairs + attribute(0x0008, KEY.sign(signed)))
    for whole in (data, with_fingerprint(data)):
        with pytest.raises(BadAttribute, match=r"^LIFETIME: length 3, not 4$") as caught:
            parse(whole)
        found = caught.value.message
        assert found.attributes == [(USERNAME, "me"), (0x7FFF, b"?")] and found.unknown_required == (0x7FFF,)
        assert (found.is_request, found.transaction_id) == (True, ID)
        assert found.verify(KEY) and not found.verify(IntegrityKey(b"another"))


@pytest.mark.parametrize(
    "body",
    [
        attribute(0x0006, b"\xff") + b"\0\x06\0\x05user",
        attribute(0x0006, b"\xff") + attribute(0x0008, bytes(16)),
        attribute(0x0006, b"\xff") + attribute(0x8028, bytes(4)),
        attribute(0x0006, b"\xff") * 9,
    ],
    ids=["longer than the rest", "integrity of 16 bytes", "wrong fingerprint", "many malformed values"],
)
def test_what_is_malformed_as_a_whole_is_no_message_at_all(body: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(message(body))
    assert not isinstance(caught.value, BadAttribute)


def test_malformed_values_behind_the_integrity_are_ignored() -> None:
    """RFC 8489, 9: as everything is that follows it."""
    signed = message(attribute(0x0006, b"me"), length=8 + 24)
    whole = message(attribute(0x0006, b"me") + attribute(0x0008, KEY.sign(signed)) + attribute(0x000D, b"abc"))
    assert parse(whole).get(LIFETIME) is None and parse(whole).verify(KEY)
