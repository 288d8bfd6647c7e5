"""What is in a STUN message, and how is it written?

RFC 8489, 5 and 14. Attributes keep their order; repeated ones stay, unknown ones stay as bytes. MESSAGE-INTEGRITY,
MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are not among them: :meth:`Message.encode` adds them, :meth:`Message.verify`
checks them over the bytes that arrived. :mod:`relay.stun.parsing` reads messages.

Pure: transaction ids are made elsewhere (12 bytes, from a cryptographic source).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from hmac import compare_digest
from typing import Any, TypeVar
from zlib import crc32

from relay.stun.attributes import ATTRIBUTES, ERROR_CODE, UNKNOWN_ATTRIBUTES, Attribute
from relay.stun.integrity import IntegrityKey
from relay.stun.layout import Envelope, learn, signed_head
from relay.stun.values import ErrorCode
from relay.stun.wire import (
    ATTRIBUTE_HEAD,
    FINGERPRINT,
    FINGERPRINT_MASK,
    HEADER,
    MAGIC_COOKIE,
    MAX_BODY_LENGTH,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    TRANSACTION_ID_LENGTH,
    MessageClass,
    Method,
    message_type,
)
from relay.stun.writing import WRITERS, write_attribute

__all__ = ["Message", "build"]

T = TypeVar("T")

MAX_REASON_LENGTH = 127
"""Characters of a reason phrase that we write: RFC 8489, 14.8, "fewer than 128 characters"."""

REPEATED_CACHE_SIZE = 512
"""Attributes of Binding messages that are remembered as written. Those that a stranger can fill it with are the
answers that tell it its address."""

MAX_REPEATED_LENGTH = 512
"""Bytes of attributes worth remembering."""

_BINDING = Method.BINDING  # looking up a member of an enumeration takes as long as parsing an attribute
_pack_header = HEADER.pack
_pack_start = struct.Struct(">HHI").pack
_pack_fingerprint = struct.Struct(">II").pack
_FINGERPRINT_HEAD = FINGERPRINT << 16 | 4
_INTEGRITY_HEAD = ATTRIBUTE_HEAD.pack(MESSAGE_INTEGRITY, 20)
_INTEGRITY_SHA256_HEAD = ATTRIBUTE_HEAD.pack(MESSAGE_INTEGRITY_SHA256, 32)
_SEALS = {
    MESSAGE_INTEGRITY: "MESSAGE-INTEGRITY",
    MESSAGE_INTEGRITY_SHA256: "MESSAGE-INTEGRITY-SHA256",
    FINGERPRINT: "FINGERPRINT",
}
_BUILT_HERE = Envelope()


class Message:
    """A STUN message.

    Args:
        method: 0 … 0xFFF, a :class:`Method` where we know it.
        message_class: request, indication, success or error response.
        transaction_id: 12 bytes.
        attributes: code and value of each attribute in order; the value has the type that the :class:`Attribute` of
            that code asks for, and is bytes where we do not know the code. See :func:`build` for the usual way.

    Raises:
        ValueError: if the transaction id has not 12 bytes.
    """

    __slots__ = ("_codes", "_envelope", "_pairs", "_raw", "_values", "message_class", "method", "transaction_id")
    # parsing fills in _codes and _values where it can; pairs are made of them when somebody asks for all attributes.
    _pairs: Sequence[tuple[int, Any]] | None
    _codes: tuple[int, ...]
    _values: list[Any]

    def __init__(
        self,
        method: int,
        message_class: MessageClass,
        transaction_id: bytes,
        attributes: list[tuple[int, Any]] | None = None,
    ) -> None:
        if len(transaction_id) != TRANSACTION_ID_LENGTH:
            raise ValueError(f"a transaction id of {len(transaction_id)} bytes, not {TRANSACTION_ID_LENGTH}")
        self.method = method
        self.message_class = message_class
        self.transaction_id = transaction_id
        self._pairs = [] if attributes is None else attributes
        self._raw = b""
        self._envelope = _BUILT_HERE

    def success(self, *pairs: tuple[Attribute[Any], Any]) -> Message:
        """The success response to this request."""
        return build(self.method, MessageClass.SUCCESS, self.transaction_id, *pairs)

    def error_response(self, code: int, reason: str, *pairs: tuple[Attribute[Any], Any]) -> Message:
        """The error response to this request.

        Args:
            code: 300 … 699.
            reason: for people, at most 127 characters.
            pairs: further attributes and their values.

        Raises:
            ValueError: if the reason is too long.
        """
        if len(reason) > MAX_REASON_LENGTH:
            raise ValueError(f"a reason of {len(reason)} characters, more than {MAX_REASON_LENGTH}")
        error = (ERROR_CODE, ErrorCode(code, reason))
        return build(self.method, MessageClass.ERROR, self.transaction_id, error, *pairs)

    def unknown_attributes_response(self) -> Message:
        """The error response 420 that names what we did not understand: RFC 8489, 6.3.1."""
        return self.error_response(420, "Unknown Attribute", (UNKNOWN_ATTRIBUTES, self.unknown_required))

    def get(self, attribute: Attribute[T]) -> T | None:
        """The first value of an attribute, or ``None``. RFC 8489, 14: only the first occurrence need be processed."""
        value: T
        if self._pairs is None:
            if attribute not in self._codes:
                return None
            value = self._values[self._codes.index(attribute)]
            return value
        for code, value in self._pairs:
            if code == attribute:
                return value
        return None

    def get_all(self, attribute: Attribute[T]) -> list[T]:
        """Every value of an attribute, in order."""
        return [value for code, value in self.attributes if code == attribute]

    def verify(self, key: IntegrityKey) -> bool:
        """Whether the message arrived with the MESSAGE-INTEGRITY that ``key`` gives. Takes constant time."""
        raw, head = self._raw, self._envelope.signed_head
        if head:
            # Of a known layout, which ends with MESSAGE-INTEGRITY (24 bytes) and FINGERPRINT (8 bytes).
            return compare_digest(raw[-28:-8], key.sign(head + raw[4:-32]))
        at = self._envelope.integrity_at
        if at == 0 or not compare_digest(raw[at + 4 : at + 24], key.sign(signed_head(raw, at, 24) + raw[4:at])):
            return False
        learn(raw, self._envelope, self.method, self.message_class)
        return True

    def verify_sha256(self, key: IntegrityKey) -> bool:
        """Whether the message arrived with the MESSAGE-INTEGRITY-SHA256 that ``key`` gives. Takes constant time.

        A truncated one never verifies: RFC 8489, 14.6, "must be the full 32 bytes unless the STUN Usage explicitly
        specifies that truncation is allowed".
        """
        raw, at = self._raw, self._envelope.integrity_sha256_at
        if at == 0 or raw[at + 3] != 32:
            return False
        return compare_digest(raw[at + 4 : at + 36], key.sign_sha256(signed_head(raw, at, 36) + raw[4:at]))

    def encode(
        self, key: IntegrityKey | None = None, *, sha256: bool = False, both: bool = False, fingerprint: bool = True
    ) -> bytes:
        """The message as bytes.

        Args:
            key: signs the message with MESSAGE-INTEGRITY; ``None`` leaves it unsigned.
            sha256: sign with MESSAGE-INTEGRITY-SHA256 instead.
            both: sign with both.
            fingerprint: end with FINGERPRINT.

        Raises:
            ValueError: if a value does not fit its attribute, the whole has more than 65,552 bytes, or a kind of
                integrity is asked for without a key.
        """
        if key is not None and self.method == _BINDING and fingerprint and not (sha256 or both):
            # What every check and its answer needs, without the detours.
            try:
                (signed_head, sealed_head), body = _write_repeated(self.message_class, self._pairs)
            except (LookupError, TypeError, ValueError, OverflowError, struct.error):
                pass
            else:
                transaction_id = self.transaction_id
                mac = key.sign(signed_head + transaction_id + body)
                message = b"".join((sealed_head, transaction_id, body, _INTEGRITY_HEAD, mac))
                return message + _pack_fingerprint(_FINGERPRINT_HEAD, crc32(message) ^ FINGERPRINT_MASK)
        return self._seal(message_type(self.method, self.message_class), self._body(), key, sha256, both, fingerprint)

    @property
    def attributes(self) -> list[tuple[int, Any]]:
        """Code and value of each attribute in order; the list may be changed before :meth:`encode`."""
        if self._pairs is None:
            self._pairs = list(zip(self._codes, self._values, strict=True))
        elif not isinstance(self._pairs, list):
            self._pairs = list(self._pairs)
        return self._pairs

    @property
    def is_request(self) -> bool:
        return self.message_class == MessageClass.REQUEST

    @property
    def is_indication(self) -> bool:
        return self.message_class == MessageClass.INDICATION

    @property
    def is_success(self) -> bool:
        return self.message_class == MessageClass.SUCCESS

    @property
    def is_error(self) -> bool:
        return self.message_class == MessageClass.ERROR

    @property
    def error(self) -> ErrorCode | None:
        """The value of ERROR-CODE."""
        return self.get(ERROR_CODE)

    @property
    def has_integrity(self) -> bool:
        """Whether the message arrived with a MESSAGE-INTEGRITY, right or wrong."""
        return self._envelope.integrity_at > 0

    @property
    def has_integrity_sha256(self) -> bool:
        """Whether the message arrived with a MESSAGE-INTEGRITY-SHA256, right or wrong, truncated or not."""
        return self._envelope.integrity_sha256_at > 0

    @property
    def has_fingerprint(self) -> bool:
        """Whether the message arrived with a FINGERPRINT (it is correct then)."""
        return self._envelope.has_fingerprint

    @property
    def unknown_required(self) -> tuple[int, ...]:
        """The comprehension-required codes that arrived and that we do not know, in order, each once."""
        return self._envelope.unknown_required

    def __repr__(self) -> str:
        values = ", ".join([f"{attribute_name(code)}={value!r}" for code, value in self.attributes])
        return f"<{self.method!r} {self.message_class.name} {self.transaction_id.hex()} {values}>"

    def _seal(
        self, bits: int, body: bytes, key: IntegrityKey | None, sha256: bool, both: bool, fingerprint: bool
    ) -> bytes:
        if key is None:
            if sha256 or both:
                raise ValueError("message integrity needs a key")
        else:
            if both or not sha256:
                body += _INTEGRITY_HEAD + key.sign(self._head(bits, len(body) + 24) + body)
            if both or sha256:
                body += _INTEGRITY_SHA256_HEAD + key.sign_sha256(self._head(bits, len(body) + 36) + body)
        if not fingerprint:
            return self._head(bits, len(body)) + body
        message = self._head(bits, len(body) + 8) + body
        return message + _pack_fingerprint(_FINGERPRINT_HEAD, crc32(message) ^ FINGERPRINT_MASK)

    def _head(self, bits: int, length: int) -> bytes:
        if length > MAX_BODY_LENGTH:
            raise ValueError(f"{length} bytes of attributes, more than {MAX_BODY_LENGTH}")
        return _pack_header(bits, length, MAGIC_COOKIE, self.transaction_id)

    def _body(self) -> bytes:
        try:
            return _write(self.attributes)
        except (LookupError, TypeError, ValueError, OverflowError, struct.error):
            # One of the rarer kinds is there, or a value that does not fit.
            return self._write_rare()

    def _write_rare(self) -> bytes:
        parts: list[bytes] = []
        for code, value in self.attributes:
            try:
                parts.append(write_attribute(code, value, self.transaction_id))
            except (ValueError, OverflowError, struct.error) as error:
                raise ValueError(f"{attribute_name(code)}: {error}") from error
        return b"".join(parts)


_new = Message.__new__


def build(
    method: int, message_class: MessageClass, transaction_id: bytes, *pairs: tuple[Attribute[Any], Any]
) -> Message:
    """A message from attributes and their values: ``build(method, REQUEST, id, (PRIORITY, 5), (USE_CANDIDATE, True))``.

    Raises:
        ValueError: if the transaction id has not 12 bytes.
    """
    if len(transaction_id) != TRANSACTION_ID_LENGTH:
        raise ValueError(f"a transaction id of {len(transaction_id)} bytes, not {TRANSACTION_ID_LENGTH}")
    message = _new(Message)
    message.method, message.message_class, message.transaction_id = method, message_class, transaction_id
    message._pairs, message._raw, message._envelope = pairs, b"", _BUILT_HERE
    return message


def _write(pairs: Sequence[tuple[int, Any]]) -> bytes:
    return b"".join([WRITERS[code](value) for code, value in pairs])


@lru_cache(maxsize=REPEATED_CACHE_SIZE)
def _write_repeated(
    message_class: MessageClass, pairs: tuple[tuple[int, Any], ...]
) -> tuple[tuple[bytes, bytes], bytes]:
    """A Binding message but for its transaction id: the checks of a pair, and the answers to them, differ in nothing
    else. What comes before the transaction id, see :func:`_starts`, and the attributes.
    """
    body = _write(pairs)
    if len(body) > MAX_REPEATED_LENGTH:
        raise LookupError("too long to be remembered")
    return _starts(message_type(_BINDING, message_class), len(body)), body


@lru_cache(maxsize=REPEATED_CACHE_SIZE)
def _starts(bits: int, length: int) -> tuple[bytes, bytes]:
    """Type, length and cookie as MESSAGE-INTEGRITY covers them, and as they are sent. Most messages share a few."""
    return _pack_start(bits, length + 24, MAGIC_COOKIE), _pack_start(bits, length + 32, MAGIC_COOKIE)


def attribute_name(code: int) -> str:
    """The name of an attribute as the RFC writes it, or its number in hexadecimal."""
    attribute = ATTRIBUTES.get(code)
    return _SEALS.get(code, f"attribute 0x{code:04x}") if attribute is None else attribute.name
