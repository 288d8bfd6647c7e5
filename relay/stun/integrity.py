"""Which key signs a STUN message, and how is it derived from a password?

HMAC-SHA1 and HMAC-SHA256 (RFC 8489, 14.5 and 14.6) with the key absorbed once: an HMAC hashes the key's two pads
before the message, which for a message of 100 bytes is half of the work. :class:`IntegrityKey` keeps both hash states
and copies them for each message.

Keys: short-term, RFC 8489, 9.1.1; long-term, 9.2.2 and 18.5.1; the nonce cookie against bid-down attacks, 9.2 and
18.1. Pure: nonces and passwords are made elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "IntegrityKey",
    "PasswordAlgorithm",
    "SecurityFeature",
    "long_term_key",
    "nonce_cookie",
    "opaque_string",
    "security_features",
    "short_term_key",
    "userhash",
]

NONCE_COOKIE_PREFIX = "obMatJos2"
"""RFC 8489, 9.2."""

_BLOCK_LENGTH = 64  # bytes, of SHA-1 and of SHA-256
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_COOKIE_END = len(NONCE_COOKIE_PREFIX) + 4
_FORBIDDEN_CATEGORIES = frozenset(("Cc", "Cn", "Co", "Cs"))


class PasswordAlgorithm(IntEnum):
    """How a long-term password becomes a key: RFC 8489, 18.5.1."""

    MD5 = 1
    SHA256 = 2


class SecurityFeature(IntFlag):
    """The 24 bits of the nonce cookie: RFC 8489, 18.1. Bit 0 of the RFC is the leftmost; unknown bits survive.

    The example nonce of RFC 8489, B.1 sets the second bit from the right instead, against the text of 9.2 and 18.1.
    """

    PASSWORD_ALGORITHMS = 1 << 23
    USERNAME_ANONYMITY = 1 << 22


class IntegrityKey:
    """A key that signs messages.

    Args:
        key: the key of the HMAC, any number of bytes.
    """

    __slots__ = ("_block", "_inner", "_outer", "_sha256")

    def __init__(self, key: bytes) -> None:
        # RFC 2104: a key longer than a block is hashed, which the two algorithms do differently.
        is_short = len(key) <= _BLOCK_LENGTH
        self._inner, self._outer = _absorb(hashlib.sha1, key if is_short else hashlib.sha1(key).digest())
        self._block = key if is_short else hashlib.sha256(key).digest()
        self._sha256: tuple[_Hash, _Hash] | None = None

    def sign(self, data: bytes) -> bytes:
        """Give the HMAC-SHA1 of a message, 20 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()

    def sign_sha256(self, data: bytes) -> bytes:
        """Give the HMAC-SHA256 of a message, 32 bytes. The key is absorbed at the first call."""
        if self._sha256 is None:
            self._sha256 = _absorb(hashlib.sha256, self._block)
        inner, outer = (each.copy() for each in self._sha256)
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


def short_term_key(password: str) -> IntegrityKey:
    """The key of the short-term mechanism, which ICE uses: RFC 8489, 9.1.1.

    Raises:
        ValueError: see :func:`opaque_string`.
    """
    return IntegrityKey(opaque_string(password).encode())


def long_term_key(
    username: str, realm: str, password: str, algorithm: PasswordAlgorithm = PasswordAlgorithm.MD5
) -> IntegrityKey:
    """The key of the long-term mechanism, which TURN uses: RFC 8489, 9.2.2 and 18.5.1.

    Args:
        username: as it stands in USERNAME, that is, after :func:`opaque_string`.
        realm: as it stands in REALM.
        password: as the user typed it.
        algorithm: what PASSWORD-ALGORITHM says; MD5 where there is none.

    Raises:
        ValueError: if realm or password is refused by :func:`opaque_string`.
    """
    name, realm = _unquoted(username), opaque_string(_unquoted(realm))
    text = f"{name}:{realm}:{opaque_string(password.rstrip(chr(0)))}".encode()
    if algorithm == PasswordAlgorithm.SHA256:
        return IntegrityKey(hashlib.sha256(text).digest())
    return IntegrityKey(hashlib.md5(text, usedforsecurity=False).digest())


def userhash(username: str, realm: str) -> bytes:
    """The value of USERHASH, 32 bytes: RFC 8489, 14.4.

    Raises:
        ValueError: see :func:`opaque_string`.
    """
    return hashlib.sha256(f"{opaque_string(username)}:{opaque_string(realm)}".encode()).digest()


def opaque_string(text: str) -> str:
    """Prepare a username, realm or password as the OpaqueString profile asks: RFC 8265, 4.2.

    Spaces beyond ASCII become U+0020, then the text is normalised to NFC. Format characters (soft hyphen, joiners) are
    passed as they are: judging them takes tables that the standard library does not have.

    Raises:
        ValueError: if the text is empty, or has control characters, surrogates, private-use or unassigned code points.
            The message does not quote the text, which may be a password.
    """
    if not text:
        raise ValueError("an empty string where a username, realm or password is needed")
    if text.isascii() and text.isprintable():
        return text
    for character in text:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
            raise ValueError(f"U+{ord(character):04X} is not allowed in a username, realm or password")
    spaced = "".join([" " if unicodedata.category(character) == "Zs" else character for character in text])
    return unicodedata.normalize("NFC", spaced)


def nonce_cookie(features: SecurityFeature) -> str:
    """The 13 characters that a server begins its nonces with, to say what it supports: RFC 8489, 9.2."""
    return NONCE_COOKIE_PREFIX + base64.b64encode(int(features).to_bytes(3, "big")).decode("ascii")


def security_features(nonce: str) -> SecurityFeature | None:
    """What a server says in its nonce that it supports, or ``None`` where the nonce has no (valid) cookie."""
    if not nonce.startswith(NONCE_COOKIE_PREFIX) or len(nonce) < _COOKIE_END:
        return None
    try:
        bits = base64.b64decode(nonce[len(NONCE_COOKIE_PREFIX) : _COOKIE_END], validate=True)
    except (binascii.Error, ValueError):
        return None
    return SecurityFeature(int.from_bytes(bits, "big")) if len(bits) == 3 else None


def _absorb(algorithm: Callable[[bytes], _Hash], key: bytes) -> tuple[_Hash, _Hash]:
    """RFC 2104, 2: the two hashes, each of which has taken its block; a message then costs two copies less work."""
    block = key.ljust(_BLOCK_LENGTH, b"\0")
    return algorithm(block.translate(_INNER_PAD)), algorithm(block.translate(_OUTER_PAD))


def _unquoted(text: str) -> str:
    # RFC 8489, 9.2.2: "with any quotes and trailing nulls removed".
    text = text.rstrip("\0")
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text
