"""What holds for every message and for every string of bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress, canonical_host
from relay import stun
from relay.stun import ATTRIBUTES, BadMessage, IntegrityKey, Message, MessageClass, Method, is_stun, parse, values

KEY = IntegrityKey(b"key")
ID = bytes(range(12))

hosts = st.ip_addresses().map(lambda ip: canonical_host(str(ip)))
addresses = st.builds(TransportAddress, hosts, st.integers(0, 0xFFFF))
texts = st.text(max_size=190).filter(lambda text: len(text.encode()) <= values.MAX_TEXT_LENGTH)
u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
codes = st.integers(300, 699)
algorithms = st.builds(stun.AlgorithmParameters, u16, st.binary(max_size=9))

BY_ENCODER: dict[Any, st.SearchStrategy[Any]] = {
    values.encode_address: addresses,
    values.encode_xor_address: addresses,
    values.encode_text: texts,
    values.encode_domain: st.text(st.characters(max_codepoint=127), max_size=255),
    values.encode_bytes: st.binary(max_size=100),
    values.encode_token: st.binary(min_size=8, max_size=8),
    values.encode_hash: st.binary(min_size=32, max_size=32),
    values.encode_u32: u32,
    values.encode_u64: st.integers(0, 2**64 - 1),
    values.encode_high_u16: u16,
    values.encode_high_u8: u8,
    values.encode_flag: st.just(True),
    values.encode_even_port: st.booleans(),
    values.encode_error_code: st.builds(stun.ErrorCode, codes, texts),
    values.encode_address_error_code: st.builds(stun.AddressErrorCode, u8, codes, texts),
    values.encode_codes: st.lists(u16, max_size=20).map(tuple),
    values.encode_icmp: st.builds(stun.Icmp, u8, u8, u32),
    values.encode_change_request: st.builds(stun.ChangeRequest, st.booleans(), st.booleans()),
    values.encode_network_cost: st.builds(stun.NetworkCost, u16, u16),
    values.encode_algorithm: algorithms,
    values.encode_algorithms: st.lists(algorithms, max_size=4).map(tuple),
}
SEALS = {0x0008, 0x001C, 0x8028}


@st.composite
def known_pairs(draw: st.DrawFn) -> tuple[int, Any]:
    attribute = draw(st.sampled_from(sorted(ATTRIBUTES.values())))
    return attribute, draw(BY_ENCODER[attribute.encode])


unknown_pairs = st.tuples(u16.filter(lambda code: code not in ATTRIBUTES and code not in SEALS), st.binary(max_size=20))
messages = st.builds(
    Message,
    st.one_of(st.sampled_from(Method), st.integers(0, 0xFFF)),
    st.sampled_from(MessageClass),
    st.binary(min_size=12, max_size=12),
    st.lists(st.one_of(known_pairs(), unknown_pairs), max_size=6),
)


def same(one: Message, other: Message) -> bool:
    def parts(message: Message) -> tuple[Any, ...]:
        return message.method, message.message_class, message.transaction_id, message.attributes

    return parts(one) == parts(other)


@given(messages, st.booleans(), st.booleans(), st.booleans())
def test_what_is_written_is_read_as_it_was(message: Message, sha256: bool, both: bool, fingerprint: bool) -> None:
    data = message.encode(KEY, sha256=sha256, both=both, fingerprint=fingerprint)
    found = parse(data)
    assert same(found, message)
    assert found.has_fingerprint == fingerprint
    assert (found.has_integrity, found.has_integrity_sha256) == (both or not sha256, both or sha256)
    assert found.verify(KEY) == found.has_integrity
    assert found.verify_sha256(KEY) == found.has_integrity_sha256
    assert found.encode(KEY, sha256=sha256, both=both, fingerprint=fingerprint) == data
    again = parse(data)
    assert same(again, message), "a learned layout reads the same"
    assert again.verify(KEY) == found.has_integrity
    required = [code for code, _ in message.attributes if code < 0x8000 and code not in ATTRIBUTES]
    assert found.unknown_required == again.unknown_required == tuple(dict.fromkeys(required))


@given(messages)
def test_length_is_a_multiple_of_four_and_padding_is_zero(message: Message) -> None:
    data = message.encode()
    assert len(data) % 4 == 0
    position = 20
    while position < len(data):
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 4 + length
        padding = data[position : position + -length % 4]
        assert padding == bytes(-length % 4)
        position += len(padding)
    assert position == len(data)


@given(st.binary(max_size=200))
@example(b"")
@example(bytes(20))
def test_arbitrary_bytes_raise_bad_message_only(data: bytes) -> None:
    accepts(data)


@given(st.integers(0, 0xFFFF), st.binary(max_size=120))
def test_arbitrary_attributes_raise_bad_message_only(message_type: int, body: bytes) -> None:
    body = body[: len(body) & ~3]
    accepts(message_type.to_bytes(2, "big") + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + ID + body)


@given(u16, st.binary(max_size=60))
def test_arbitrary_value_of_one_attribute_raises_bad_message_only(code: int, value: bytes) -> None:
    accepts(single(code, value))


@given(st.sampled_from(sorted(ATTRIBUTES)), st.binary(max_size=60))
def test_arbitrary_value_of_a_known_attribute_raises_bad_message_only(code: int, value: bytes) -> None:
    accepts(single(code, value))


@given(messages, st.data())
def test_mutated_message_raises_bad_message_only(message: Message, data: st.DataObject) -> None:
    raw = bytearray(message.encode(KEY, fingerprint=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(u8)
    accepts(bytes(raw))


def single(code: int, value: bytes) -> bytes:
    body = code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + b"\x55" * (-len(value) % 4)
    return b"\0\1" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + ID + body


def accepts(data: bytes) -> None:
    """Either BadMessage, or a message that can be written, shown, verified, answered, and read again as it was."""
    try:
        message = parse(data)
    except BadMessage as error:
        assert str(error)
        return
    assert is_stun(data) == (data[0] < 4)
    assert same(parse(message.encode()), message)
    assert repr(message)
    message.verify(KEY)
    message.verify_sha256(KEY)
    assert parse(message.unknown_attributes_response().encode(KEY)).is_error
