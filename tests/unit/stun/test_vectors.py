"""The test vectors of RFC 5769 and RFC 8489, appendix B: read, verified, and written again byte by byte."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from relay.stun import (
    ICE_CONTROLLED,
    NONCE,
    PASSWORD_ALGORITHM,
    PRIORITY,
    REALM,
    SOFTWARE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    AlgorithmParameters,
    BadMessage,
    MessageClass,
    Method,
    PasswordAlgorithm,
    build,
    is_stun,
    long_term_key,
    parse,
    short_term_key,
    userhash,
)

PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
SHORT_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
LONG_ID = bytes.fromhex("78ad3433c6ad72c029da412e")
MATRIX = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"

REQUEST = bytes.fromhex(
    "00010058 2112a442 b7e7a701 bc34d686 fa87dfae"
    "80220010 5354554e 20746573 7420636c 69656e74"
    "00240004 6e0001ff"
    "80290008 932ff9b1 51263b36"
    "00060009 6576746a 3a683676 59202020"
    "00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2"
    "80280004 e57a3bcf"
)
RESPONSE_4 = bytes.fromhex(
    "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"
    "00200008 0001a147 e112a643"
    "00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7"
    "80280004 c07d4c96"
)
RESPONSE_6 = bytes.fromhex(
    "01010048 2112a442 b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"
    "00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9"
    "00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41"
    "80280004 c8fb0b4c"
)
LONG_TERM_REQUEST = bytes.fromhex(
    "00010060 2112a442 78ad3433 c6ad72c0 29da412e"
    "00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000"
    "0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341"
    "0014000b 6578616d 706c652e 6f726700"
    "00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666"
)
# RFC 8489, B.1 prints a message of 156 bytes whose header says 156 instead of 136, so that it is no STUN message, and
# leaves PASSWORD-ALGORITHM out, without which a server would take the MD5 key. Its HMAC is the one of that header with
# the SHA-256 key. This is the message with the attribute and the right length.
PRINTED_B1 = bytes.fromhex(
    "0001009c 2112a442 78ad3433 c6ad72c0 29da412e"
    "001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704"
    "00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000"
    "0014000b 6578616d 706c652e 6f726700"
    "001c0020 e4686c8f 0edeb590 13e07090 010a93ef ccbccc54 4c0a45d9 f830aa6d 6f735a01"
)
SHA256_REQUEST = (
    PRINTED_B1[:2]
    + bytes.fromhex("0090")
    + PRINTED_B1[4:-36]
    + bytes.fromhex("001d0004 00020000 001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65")
)
VECTORS = [REQUEST, RESPONSE_4, RESPONSE_6, LONG_TERM_REQUEST, SHA256_REQUEST]


def test_sample_request_is_read_and_verified() -> None:
    """RFC 5769, 2.1."""
    message = parse(REQUEST)
    assert (message.method, message.message_class) == (Method.BINDING, MessageClass.REQUEST)
    assert message.transaction_id == SHORT_ID
    assert message.attributes == [
        (SOFTWARE, "STUN test client"),
        (PRIORITY, 0x6E0001FF),
        (ICE_CONTROLLED, 0x932FF9B151263B36),
        (USERNAME, "evtj:h6vY"),
    ]
    assert message.has_fingerprint
    assert message.has_integrity
    assert message.verify(short_term_key(PASSWORD))
    assert not message.verify(short_term_key("VOkJxbRl1RmTxUk/WvJxBu"))


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (RESPONSE_4, TransportAddress("192.0.2.1", 32853)),
        (RESPONSE_6, TransportAddress("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
    ],
)
def test_sample_response_is_read_and_verified(data: bytes, address: TransportAddress) -> None:
    """RFC 5769, 2.2 and 2.3."""
    message = parse(data)
    assert (message.method, message.message_class) == (Method.BINDING, MessageClass.SUCCESS)
    assert message.attributes == [(SOFTWARE, "test vector"), (XOR_MAPPED_ADDRESS, address)]
    assert message.verify(short_term_key(PASSWORD))
    assert not message.verify(short_term_key("other"))


def test_sample_long_term_request_is_read_and_verified() -> None:
    """RFC 5769, 2.4. It has no FINGERPRINT."""
    message = parse(LONG_TERM_REQUEST)
    assert message.attributes == [(USERNAME, MATRIX), (NONCE, "f//499k954d6OL34oL9FSTvy64sA"), (REALM, "example.org")]
    assert not message.has_fingerprint
    assert message.verify(long_term_key(MATRIX, "example.org", "TheMatrIX"))
    assert not message.verify(long_term_key(MATRIX, "example.org", "TheMatrix"))


def test_sample_sha256_request_is_read_and_verified() -> None:
    """RFC 8489, B.1, with its two slips mended."""
    message = parse(SHA256_REQUEST)
    assert message.attributes == [
        (USERHASH, userhash(MATRIX, "example.org")),
        (NONCE, "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"),
        (REALM, "example.org"),
        (PASSWORD_ALGORITHM, AlgorithmParameters(PasswordAlgorithm.SHA256)),
    ]
    assert message.has_integrity_sha256
    assert not message.has_integrity
    assert not message.has_fingerprint
    key = long_term_key(MATRIX, "example.org", "TheMatrIX", PasswordAlgorithm.SHA256)
    assert message.verify_sha256(key)
    assert not message.verify_sha256(long_term_key(MATRIX, "example.org", "TheMatrIX"))
    assert message.encode(key, sha256=True, fingerprint=False) == SHA256_REQUEST


def test_the_printed_sha256_request_is_no_message_but_its_hmac_is_ours() -> None:
    """RFC 8489, B.1 as printed: 156 bytes that claim to be 176."""
    with pytest.raises(BadMessage, match="length 156 in a message of 156 bytes"):
        parse(PRINTED_B1)
    key = long_term_key(MATRIX, "example.org", "TheMatrIX", PasswordAlgorithm.SHA256)
    assert key.sign_sha256(PRINTED_B1[:-36]) == PRINTED_B1[-32:]


def test_long_term_request_is_written_as_printed() -> None:
    """RFC 5769, 2.4: padding with zeroes, as we write it."""
    message = build(
        Method.BINDING,
        MessageClass.REQUEST,
        LONG_ID,
        (USERNAME, MATRIX),
        (NONCE, "f//499k954d6OL34oL9FSTvy64sA"),
        (REALM, "example.org"),
    )
    key = long_term_key(MATRIX, "example.org", "TheMatrIX")
    assert message.encode(key, fingerprint=False) == LONG_TERM_REQUEST


def test_request_with_padding_of_spaces_is_written_with_zeroes() -> None:
    """RFC 8489, 14: the padding MUST be zero on sending, and MUST be ignored by the receiver."""
    written = parse(REQUEST).encode(short_term_key(PASSWORD))
    assert written[: len(REQUEST) - 35] == REQUEST[:-35]
    assert written[-35:-32] == b"\0\0\0"
    assert REQUEST[-35:-32] == b"   "
    assert parse(written).attributes == parse(REQUEST).attributes


@pytest.mark.parametrize("data", VECTORS)
def test_every_vector_looks_like_stun_and_breaks_when_a_byte_is_lost(data: bytes) -> None:
    assert is_stun(data)
    assert not is_stun(data[:-1])
    with pytest.raises(BadMessage):
        parse(data[:-1])


@pytest.mark.parametrize("data", [REQUEST, RESPONSE_4, RESPONSE_6])
def test_any_changed_bit_breaks_the_fingerprint_or_the_message(data: bytes) -> None:
    """RFC 8489, 14.7. A change in the last 8 bytes is one of FINGERPRINT itself, which may become another attribute."""
    for index in range(len(data) - 8):
        broken = data[:index] + bytes((data[index] ^ 0x10,)) + data[index + 1 :]
        with pytest.raises(BadMessage):
            parse(broken)
