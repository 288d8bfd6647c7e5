"""What is in a STUN message, and how is it written and read?

RFC 8489, 5 (structure) and 14 (attributes). :func:`parse` checks all that can be checked without a key: header,
lengths, the value of every known attribute, FINGERPRINT; it raises :class:`BadMessage` and nothing else. Integrity is
checked by :meth:`Message.verify` over the bytes that arrived. Attributes keep their order; repeated ones stay, unknown
ones stay as bytes. MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are not among them:
:meth:`Message.encode` adds them.

What follows MESSAGE-INTEGRITY is not protected by it, so it is ignored, but for MESSAGE-INTEGRITY-SHA256 and
FINGERPRINT (RFC 8489, 9): an attacker on the path could append to a signed message otherwise.

Pure: transaction ids are made elsewhere (12 bytes, from a cryptographic source).
"""

from __future__ import annotations

import hmac
import struct
import zlib
from enum import IntEnum
from typing import Any, TypeVar

from relay.stun.attributes import ATTRIBUTES, ERROR_CODE, UNKNOWN_ATTRIBUTES, Attribute
from relay.stun.errors import BadMessage
from relay.stun.integrity import IntegrityKey
from relay.stun.values import MAGIC_COOKIE, ErrorCode, padding

__all__ = ["HEADER_LENGTH", "Message", "MessageClass", "Method", "build", "is_stun", "parse"]

T = TypeVar("T")

HEADER_LENGTH = 20
"""Bytes before the attributes."""

TRANSACTION_ID_LENGTH = 12
"""Bytes of a transaction id."""

MAX_BODY_LENGTH = 0xFFFC
"""Bytes of attributes: what the 16-bit length of the header can say in steps of four."""

MAX_REASON_LENGTH = 127
"""Characters of a reason phrase that we write: RFC 8489, 14.8, "fewer than 128 characters"."""

_MESSAGE_INTEGRITY = 0x0008
_MESSAGE_INTEGRITY_SHA256 = 0x001C
_FINGERPRINT = 0x8028
_COMPREHENSION_OPTIONAL = 0x8000
_FINGERPRINT_MASK = 0x5354554E

_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")
_HEADER = struct.Struct(">HHI12s")
_ATTRIBUTE_HEAD = struct.Struct(">HH")
_LENGTH = struct.Struct(">H")
_INTEGRITY_HEAD = _ATTRIBUTE_HEAD.pack(_MESSAGE_INTEGRITY, 20)
_INTEGRITY_SHA256_HEAD = _ATTRIBUTE_HEAD.pack(_MESSAGE_INTEGRITY_SHA256, 32)
_FINGERPRINT_ATTRIBUTE = struct.Struct(">HHI")


class Method(IntEnum):
    """What a message is about: RFC 8489, 18.2; RFC 8656, 17; RFC 6062, 6.1."""

    BINDING = 1
    ALLOCATE = 3
    REFRESH = 4
    SEND = 6
    DATA = 7
    CREATE_PERMISSION = 8
    CHANNEL_BIND = 9
    CONNECT = 10
    CONNECTION_BIND = 11
    CONNECTION_ATTEMPT = 12


class MessageClass(IntEnum):
    """The two class bits of a message type: RFC 8489, 5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Message:
    """A STUN message.

    Args:
        method: 0 … 0xFFF, a :class:`Method` where we know it.
        message_class: request, indication, success or error response.
        transaction_id: 12 bytes.
        attributes: code and value of each attribute in order; the value has the type that the :class:`Attribute` of
            that code asks for, and is bytes where we do not know the code. See :func:`build` for the usual way.

    Attributes:
        unknown_required: the comprehension-required codes that we do not know, in order, each once (when parsed).
        has_fingerprint: whether the message arrived with a (correct) FINGERPRINT.

    Raises:
        ValueError: if the transaction id has not 12 bytes.
    """

    __slots__ = (
        "_integrity_at",
        "_integrity_sha256_at",
        "_raw",
        "attributes",
        "has_fingerprint",
        "message_class",
        "method",
        "transaction_id",
        "unknown_required",
    )

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
        self.attributes: list[tuple[int, Any]] = [] if attributes is None else attributes
        self.unknown_required: tuple[int, ...] = ()
        self.has_fingerprint = False
        self._raw = b""
        self._integrity_at = 0
        self._integrity_sha256_at = 0

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
        wanted = attribute.code
        for code, value in self.attributes:
            if code == wanted:
                first: T = value
                return first
        return None

    def get_all(self, attribute: Attribute[T]) -> list[T]:
        """Every value of an attribute, in order."""
        return [value for code, value in self.attributes if code == attribute.code]

    def verify(self, key: IntegrityKey) -> bool:
        """Whether the message arrived with the MESSAGE-INTEGRITY that ``key`` gives. Takes constant time."""
        at = self._integrity_at
        return at > 0 and hmac.compare_digest(self._raw[at + 4 : at + 24], key.sign(self._covered(at, 24)))

    def verify_sha256(self, key: IntegrityKey) -> bool:
        """Whether the message arrived with the MESSAGE-INTEGRITY-SHA256 that ``key`` gives. Takes constant time.

        A truncated one never verifies: RFC 8489, 14.6, "must be the full 32 bytes unless the STUN Usage explicitly
        specifies that truncation is allowed".
        """
        at = self._integrity_sha256_at
        if at == 0 or self._raw[at + 3] != 32:
            return False
        return hmac.compare_digest(self._raw[at + 4 : at + 36], key.sign_sha256(self._covered(at, 36)))

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
        if key is None and (sha256 or both):
            raise ValueError("message integrity needs a key")
        body = self._encode_attributes()
        message_type = _message_type(self.method, self.message_class)
        if key is not None and (both or not sha256):
            body += _INTEGRITY_HEAD + key.sign(self._head(message_type, len(body) + 24) + body)
        if key is not None and (both or sha256):
            body += _INTEGRITY_SHA256_HEAD + key.sign_sha256(self._head(message_type, len(body) + 36) + body)
        if not fingerprint:
            return self._head(message_type, len(body)) + body
        message = self._head(message_type, len(body) + 8) + body
        return message + _FINGERPRINT_ATTRIBUTE.pack(_FINGERPRINT, 4, zlib.crc32(message) ^ _FINGERPRINT_MASK)

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
        return self._integrity_at > 0

    @property
    def has_integrity_sha256(self) -> bool:
        """Whether the message arrived with a MESSAGE-INTEGRITY-SHA256, right or wrong, truncated or not."""
        return self._integrity_sha256_at > 0

    def __repr__(self) -> str:
        values = ", ".join([f"{_name(code)}={value!r}" for code, value in self.attributes])
        return f"<{self.method!r} {self.message_class.name} {self.transaction_id.hex()} {values}>"

    def _covered(self, at: int, length: int) -> bytes:
        # What the integrity attribute at `at` covers: all before it, under a header whose length ends with it.
        raw = self._raw
        return raw[:2] + _LENGTH.pack(at + length - HEADER_LENGTH) + raw[4:at]

    def _head(self, message_type: int, length: int) -> bytes:
        if length > MAX_BODY_LENGTH:
            raise ValueError(f"{length} bytes of attributes, more than {MAX_BODY_LENGTH}")
        return _HEADER.pack(message_type, length, MAGIC_COOKIE, self.transaction_id)

    def _encode_attributes(self) -> bytes:
        parts: list[bytes] = []
        for code, value in self.attributes:
            attribute = ATTRIBUTES.get(code)
            try:
                data = value if attribute is None else attribute.encode(value, self.transaction_id)
                length = len(data)
                parts += _ATTRIBUTE_HEAD.pack(code, length), data, padding(length)
            except (ValueError, OverflowError, struct.error) as error:
                raise ValueError(f"{_name(code)}: {error}") from error
        return b"".join(parts)


def build(
    method: int, message_class: MessageClass, transaction_id: bytes, *pairs: tuple[Attribute[Any], Any]
) -> Message:
    """A message from attributes and their values: ``build(method, REQUEST, id, (PRIORITY, 5), (USE_CANDIDATE, True))``.

    Raises:
        ValueError: if the transaction id has not 12 bytes.
    """
    return Message(method, message_class, transaction_id, [(attribute.code, value) for attribute, value in pairs])


def is_stun(data: bytes) -> bool:
    """Whether a datagram has a STUN header whose cookie and length fit: the test to make before any parsing.

    The first byte has to be below 4 (RFC 7983, 7), which all methods in use satisfy. Raises nothing.
    """
    size = len(data)
    return (
        size >= HEADER_LENGTH
        and data[0] < 4
        and data[4:8] == _COOKIE_BYTES
        and (data[2] << 8 | data[3]) == size - HEADER_LENGTH
        and not size & 3
    )


def parse(data: bytes) -> Message:
    """Read a message.

    Args:
        data: one whole message and nothing else.

    Raises:
        BadMessage: if the bytes are not a well-formed message, a known attribute has a malformed value, or FINGERPRINT
            is wrong or not the last attribute. Nothing else is raised, whatever the bytes are.
    """
    size = len(data)
    if size < HEADER_LENGTH:
        raise BadMessage(f"{size} bytes, fewer than the {HEADER_LENGTH} of a header")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if cookie != MAGIC_COOKIE:
        raise BadMessage(f"magic cookie 0x{cookie:08x}, not 0x{MAGIC_COOKIE:08x}")
    if message_type > 0x3FFF:
        raise BadMessage(f"message type 0x{message_type:04x}: the two top bits are not zero")
    if length & 3 or length != size - HEADER_LENGTH:
        raise BadMessage(f"length {length} in a message of {size} bytes")
    method, message_class = _TYPES.get(message_type) or _split_type(message_type)
    message = Message(method, message_class, transaction_id)
    message._raw = data
    _parse_attributes(message, data)
    return message


def _parse_attributes(message: Message, data: bytes) -> None:
    # Every attribute starts on a multiple of four and the length is one, so a header of four bytes is always there.
    attributes, transaction_id = message.attributes, message.transaction_id
    unpack, known = _ATTRIBUTE_HEAD.unpack_from, ATTRIBUTES
    position, end = HEADER_LENGTH, len(data)
    while position < end:
        code, length = unpack(data, position)
        start = position + 4
        stop = start + length
        if stop > end:
            raise BadMessage(f"{_name(code)}: {length} bytes announced, {end - start} there")
        if code in _PROPERTIES:
            _PROPERTIES[code](message, data, position, length)
        elif not message._integrity_at and not message._integrity_sha256_at:
            attribute = known.get(code)
            value = data[start:stop]
            attributes.append((code, value if attribute is None else _decode(attribute, value, transaction_id)))
        position = stop + (-length & 3)
    _note_unknown(message)


def _decode(attribute: Attribute[T], value: bytes, transaction_id: bytes) -> T:
    try:
        return attribute.decode(value, transaction_id)
    except BadMessage as error:
        raise BadMessage(f"{attribute.name}: {error}") from error


def _note_unknown(message: Message) -> None:
    codes = [code for code, _ in message.attributes if code < _COMPREHENSION_OPTIONAL and code not in ATTRIBUTES]
    if codes:
        message.unknown_required = tuple(dict.fromkeys(codes))


def _on_integrity(message: Message, _data: bytes, position: int, length: int) -> None:
    if message._integrity_at or message._integrity_sha256_at:
        return  # it follows another: RFC 8489, 9
    if length != 20:
        raise BadMessage(f"MESSAGE-INTEGRITY: length {length}, not 20")
    message._integrity_at = position


def _on_integrity_sha256(message: Message, _data: bytes, position: int, length: int) -> None:
    if message._integrity_sha256_at:
        return
    if length & 3 or not 16 <= length <= 32:
        raise BadMessage(f"MESSAGE-INTEGRITY-SHA256: length {length}, not a multiple of 4 within 16 to 32")
    message._integrity_sha256_at = position


def _on_fingerprint(message: Message, data: bytes, position: int, length: int) -> None:
    if length != 4:
        raise BadMessage(f"FINGERPRINT: length {length}, not 4")
    if position + 8 != len(data):
        raise BadMessage("FINGERPRINT: not the last attribute")
    if int.from_bytes(data[position + 4 :], "big") != zlib.crc32(data[:position]) ^ _FINGERPRINT_MASK:
        raise BadMessage("FINGERPRINT: wrong")
    message.has_fingerprint = True


_PROPERTIES = {
    _MESSAGE_INTEGRITY: _on_integrity,
    _MESSAGE_INTEGRITY_SHA256: _on_integrity_sha256,
    _FINGERPRINT: _on_fingerprint,
}

_PROPERTY_NAMES = {
    _MESSAGE_INTEGRITY: "MESSAGE-INTEGRITY",
    _MESSAGE_INTEGRITY_SHA256: "MESSAGE-INTEGRITY-SHA256",
    _FINGERPRINT: "FINGERPRINT",
}


def _name(code: int) -> str:
    attribute = ATTRIBUTES.get(code)
    return _PROPERTY_NAMES.get(code, f"attribute 0x{code:04x}") if attribute is None else attribute.name


def _message_type(method: int, message_class: int) -> int:
    # RFC 8489, 5, figure 3: the class bits stand between bits of the method.
    if not 0 <= method <= 0xFFF:
        raise ValueError(f"method {method}, not within 0 to 4095")
    bits = (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF
    return bits | (message_class & 2) << 7 | (message_class & 1) << 4


def _split_type(message_type: int) -> tuple[int, MessageClass]:
    method = (message_type & 0x3E00) >> 2 | (message_type & 0xE0) >> 1 | message_type & 0xF
    return method, MessageClass((message_type & 0x100) >> 7 | (message_type & 0x10) >> 4)


_TYPES: dict[int, tuple[int, MessageClass]] = {
    _message_type(method, message_class): (method, message_class) for method in Method for message_class in MessageClass
}
