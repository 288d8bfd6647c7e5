"""Keys, OpaqueString, USERHASH and the nonce cookie."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from relay.stun import (
    IntegrityKey,
    PasswordAlgorithm,
    SecurityFeature,
    long_term_key,
    nonce_cookie,
    opaque_string,
    security_features,
    short_term_key,
    userhash,
)


@pytest.mark.parametrize("length", [0, 1, 16, 20, 32, 63, 64, 65, 200])
def test_signatures_are_those_of_the_standard_library(length: int) -> None:
    """RFC 2104; a key longer than a block of 64 bytes is hashed first."""
    raw = bytes(range(256))[:length]
    key = IntegrityKey(raw)
    for data in (b"", b"x", bytes(1000)):
        for _ in range(2):
            assert key.sign(data) == hmac.digest(raw, data, "sha1")
            assert key.sign_sha256(data) == hmac.digest(raw, data, "sha256")


def test_key_does_not_show_itself() -> None:
    assert "secret" not in repr(IntegrityKey(b"secret"))


def test_short_term_key_is_the_password() -> None:
    """RFC 8489, 9.1.1."""
    assert short_term_key("VOkJxbRl1RmTxUk/WvJxBt").sign(b"m") == hmac.digest(b"VOkJxbRl1RmTxUk/WvJxBt", b"m", "sha1")
    assert short_term_key("n\u0303").sign(b"m") == hmac.digest("ñ".encode(), b"m", "sha1")


def test_long_term_key_is_the_hash_of_three_fields() -> None:
    """RFC 8489, 9.2.2: the hash of user:realm:pass is 8493fbc53ba582fb4c044c456bdc40eb."""
    md5 = bytes.fromhex("8493fbc53ba582fb4c044c456bdc40eb")
    assert long_term_key("user", "realm", "pass").sign(b"m") == hmac.digest(md5, b"m", "sha1")
    sha256 = hashlib.sha256(b"user:realm:pass").digest()
    key = long_term_key("user", "realm", "pass", PasswordAlgorithm.SHA256)
    assert key.sign_sha256(b"m") == hmac.digest(sha256, b"m", "sha256")


def test_long_term_key_leaves_quotes_and_trailing_nulls_out() -> None:
    """RFC 8489, 9.2.2: "with any quotes and trailing nulls removed"."""
    plain = long_term_key("user", "realm", "pass").sign(b"m")
    assert long_term_key('"user"', '"realm"\0', "pass\0\0").sign(b"m") == plain
    assert long_term_key("user\0", "realm", "pass").sign(b"m") == plain
    assert long_term_key('us"er', "realm", "pass").sign(b"m") != plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("correct horse battery staple", "correct horse battery staple"),
        ("Correct Horse Battery Staple", "Correct Horse Battery Staple"),
        ("πßå", "πßå"),
        ("Jack of ♦s", "Jack of ♦s"),
        ("foo\u1680bar", "foo bar"),
        ("a\u00a0b\u3000c", "a b c"),
        ("n\u0303", "\u00f1"),
        ("\u2168", "\u2168"),
        (" ", " "),
    ],
)
def test_opaque_string(text: str, expected: str) -> None:
    """RFC 8265, 4.3 has most of these examples: no case folding, no compatibility mapping."""
    assert opaque_string(text) == expected
    assert opaque_string(expected) == expected


@pytest.mark.parametrize("text", ["", "my cat is a \tby", "a\x7f", "a\0", "\u0085", "\ud800", "\ue000", "\u0378"])
def test_opaque_string_refuses(text: str) -> None:
    """RFC 8265, 4.2.2 and 4.3: the empty string and control characters are not allowed. The text is not quoted."""
    with pytest.raises(ValueError) as caught:
        opaque_string(text)
    assert not text or text not in str(caught.value)


def test_userhash_of_the_rfc() -> None:
    """RFC 8489, B.1."""
    expected = "4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"
    assert userhash("\u30de\u30c8\u30ea\u30c3\u30af\u30b9", "example.org").hex() == expected


@pytest.mark.parametrize(
    ("features", "cookie"),
    [
        (SecurityFeature(0), "obMatJos2AAAA"),
        (SecurityFeature.PASSWORD_ALGORITHMS, "obMatJos2gAAA"),
        (SecurityFeature.USERNAME_ANONYMITY, "obMatJos2QAAA"),
        (SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY, "obMatJos2wAAA"),
        (SecurityFeature(1), "obMatJos2AAAB"),
    ],
)
def test_nonce_cookie_there_and_back(features: SecurityFeature, cookie: str) -> None:
    """RFC 8489, 9.2 and 18.1: bit 0 is the most significant bit of the first byte."""
    assert nonce_cookie(features) == cookie
    assert security_features(cookie) == features
    assert security_features(cookie + "f//499k954d6OL34oL9FSTvy64sA") == features


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "f//499k954d6OL34oL9FSTvy64sA",
        "obMatJos2",
        "obMatJos2gAA",
        "obmatjos2gAAA",
        "obMatJos2g*AA",
        "obMatJos2gA==",
        "obMatJos2\u00e9AAA",
        "xobMatJos2gAAA",
    ],
)
def test_nonce_without_a_cookie(nonce: str) -> None:
    assert security_features(nonce) is None
