"""How is the value of each kind of STUN attribute written and read?

One pair of functions per wire format: ``encode_<format>(value, transaction_id)`` gives the value without header and
padding, ``decode_<format>(data, transaction_id)`` is its inverse. Only XORed IPv6 addresses need the transaction id.

Decoders raise :class:`BadMessage` and nothing else. What a decoder accepted, the encoder accepts. Reserved bits are
written as zero and ignored when read. Encoders raise ``ValueError``, ``OverflowError`` or ``struct.error`` where a
value does not fit; :meth:`relay.stun.Message.encode` turns all three into ``ValueError``.

Formats: RFC 8489, 14; RFC 8656, 18; RFC 5780, 7. Pure.
"""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from relay.stun.errors import BadMessage
from relay.stun.wire import MAGIC_COOKIE, padding

MAX_TEXT_LENGTH = 763
"""Bytes of a text. RFC 8489, 14.3 and 14.8 to 14.14: 763 must be readable, although only 509 should be written. One
limit for both directions, since a client has to echo the REALM and NONCE that it was given."""

MAX_DOMAIN_LENGTH = 255
"""Characters of ALTERNATE-DOMAIN: RFC 8489, 14.16."""

ADDRESS_CACHE_SIZE = 4096
"""Addresses that are remembered, each way. A peer can fill it with noise, which costs time but no more memory."""

_COOKIE_HIGH = MAGIC_COOKIE >> 16
_COOKIE_ABOVE_ID = MAGIC_COOKIE << 96
_ADDRESS_4 = struct.Struct(">BBHI")
_ADDRESS_6 = struct.Struct(">BBH16s")
_TWO_SHORTS = struct.Struct(">HH")
_ERROR_HEAD = struct.Struct(">BxBB")
_ICMP = struct.Struct(">xxBBI")


class AddressFamily(IntEnum):
    """The family field of addresses and of REQUESTED-ADDRESS-FAMILY: RFC 8489, 14.1."""

    IPV4 = 1
    IPV6 = 2


class ErrorCode(NamedTuple):
    """ERROR-CODE: RFC 8489, 14.8.

    Attributes:
        code: 300 … 699.
        reason: for people, at most 763 bytes of UTF-8.
    """

    code: int
    reason: str


class AddressErrorCode(NamedTuple):
    """ADDRESS-ERROR-CODE: why an address of one family was not allocated. RFC 8656, 18.12.

    Attributes:
        family: see :class:`AddressFamily`.
        code: 300 … 699; 440 and 508 are used.
        reason: for people, at most 763 bytes of UTF-8.
    """

    family: int
    code: int
    reason: str


class Icmp(NamedTuple):
    """ICMP: what came back for a datagram to a peer. RFC 8656, 18.13.

    Attributes:
        type: 0 … 255, of ICMP or ICMPv6, as the peer's address has it.
        code: 0 … 255.
        data: the MTU of the next hop in bytes where type and code say "too big", else 0.
    """

    type: int
    code: int
    data: int


class ChangeRequest(NamedTuple):
    """CHANGE-REQUEST: where the answer should come from. RFC 5780, 7.2."""

    change_ip: bool
    change_port: bool


class NetworkCost(NamedTuple):
    """NETWORK-COST: what the network that a check leaves through costs its owner (an extension of libwebrtc).

    Attributes:
        id: 0 … 65535, names the network within the agent.
        cost: 0 (cheapest) … 65535; 999 is the highest in use.
    """

    id: int
    cost: int


class AlgorithmParameters(NamedTuple):
    """One entry of PASSWORD-ALGORITHMS: RFC 8489, 14.11.

    Attributes:
        algorithm: 0 … 65535, see :class:`relay.stun.PasswordAlgorithm`.
        parameters: up to 65535 bytes, none for the algorithms defined so far.
    """

    algorithm: int
    parameters: bytes = b""


def encode_address(address: TransportAddress, _transaction_id: bytes) -> bytes:
    version, number = _number(address[0])
    if version == 4:
        return _ADDRESS_4.pack(0, 1, address[1], number)
    return _ADDRESS_6.pack(0, 2, address[1], number.to_bytes(16, "big"))


def decode_address(data: bytes, _transaction_id: bytes) -> TransportAddress:
    if len(data) == 8 and data[1] == 1:
        _, _, port, number = _ADDRESS_4.unpack(data)
        return TransportAddress(_host_4(number), port)
    if len(data) == 20 and data[1] == 2:
        return TransportAddress(_host_6(int.from_bytes(data[4:], "big")), data[2] << 8 | data[3])
    raise _bad_address(data)


def encode_xor_address(address: TransportAddress, transaction_id: bytes) -> bytes:
    version, number = _number(address[0])
    if version == 4:
        return _ADDRESS_4.pack(0, 1, address[1] ^ _COOKIE_HIGH, number ^ MAGIC_COOKIE)
    number ^= _COOKIE_ABOVE_ID | int.from_bytes(transaction_id, "big")
    return _ADDRESS_6.pack(0, 2, address[1] ^ _COOKIE_HIGH, number.to_bytes(16, "big"))


def decode_xor_address(data: bytes, transaction_id: bytes) -> TransportAddress:
    if len(data) == 8:
        return decode_xored_4(data)
    if len(data) == 20 and data[1] == 2:
        number = int.from_bytes(data[4:], "big") ^ (_COOKIE_ABOVE_ID | int.from_bytes(transaction_id, "big"))
        return TransportAddress(_host_6(number), (data[2] << 8 | data[3]) ^ _COOKIE_HIGH)
    raise _bad_address(data)


@lru_cache(maxsize=ADDRESS_CACHE_SIZE)
def decode_xored_4(data: bytes) -> TransportAddress:
    """An XORed IPv4 address, 8 bytes. It is the same in every message: the transaction id has no part in it."""
    _, family, port, number = _ADDRESS_4.unpack(data)
    if family != AddressFamily.IPV4:
        raise _bad_address(data)
    return TransportAddress(_host_4(number ^ MAGIC_COOKIE), port ^ _COOKIE_HIGH)


def encode_text(text: str, _transaction_id: bytes) -> bytes:
    data = text.encode()
    if len(data) > MAX_TEXT_LENGTH:
        raise ValueError(f"{len(data)} bytes of text, more than {MAX_TEXT_LENGTH}")
    return data


def decode_text(data: bytes, _transaction_id: bytes) -> str:
    if len(data) > MAX_TEXT_LENGTH:
        raise BadMessage(f"{len(data)} bytes of text, more than {MAX_TEXT_LENGTH}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadMessage("text that is not UTF-8") from error


def encode_domain(name: str, _transaction_id: bytes) -> bytes:
    if len(name) > MAX_DOMAIN_LENGTH:
        raise ValueError(f"a domain name of {len(name)} characters, more than {MAX_DOMAIN_LENGTH}")
    return name.encode("ascii")


def decode_domain(data: bytes, _transaction_id: bytes) -> str:
    if len(data) > MAX_DOMAIN_LENGTH or not data.isascii():
        raise BadMessage(f"{len(data)} bytes that are no domain name of at most {MAX_DOMAIN_LENGTH} ASCII characters")
    return data.decode("ascii")


def encode_bytes(value: bytes, _transaction_id: bytes) -> bytes:
    return value


def decode_bytes(data: bytes, _transaction_id: bytes) -> bytes:
    return data


def encode_token(value: bytes, _transaction_id: bytes) -> bytes:
    """RESERVATION-TOKEN: exactly 8 bytes."""
    return _exactly(value, 8)


def decode_token(data: bytes, _transaction_id: bytes) -> bytes:
    _check_length(data, 8)
    return data


def encode_hash(value: bytes, _transaction_id: bytes) -> bytes:
    """USERHASH: exactly 32 bytes."""
    return _exactly(value, 32)


def decode_hash(data: bytes, _transaction_id: bytes) -> bytes:
    _check_length(data, 32)
    return data


def encode_u32(value: int, _transaction_id: bytes) -> bytes:
    return value.to_bytes(4, "big")


def decode_u32(data: bytes, _transaction_id: bytes) -> int:
    _check_length(data, 4)
    return int.from_bytes(data, "big")


def encode_u64(value: int, _transaction_id: bytes) -> bytes:
    return value.to_bytes(8, "big")


def decode_u64(data: bytes, _transaction_id: bytes) -> int:
    _check_length(data, 8)
    return int.from_bytes(data, "big")


def encode_high_u16(value: int, _transaction_id: bytes) -> bytes:
    """A 16-bit number in a field of 32 bits: CHANNEL-NUMBER, RESPONSE-PORT."""
    return value.to_bytes(2, "big") + b"\0\0"


def decode_high_u16(data: bytes, _transaction_id: bytes) -> int:
    _check_length(data, 4)
    return data[0] << 8 | data[1]


def decode_port(data: bytes, _transaction_id: bytes) -> int:
    """RESPONSE-PORT: "2 bytes of padding" (RFC 5780, 7.5) are counted in the length by some and not by others."""
    if len(data) not in (2, 4):
        raise BadMessage(f"length {len(data)}, neither 2 nor 4")
    return data[0] << 8 | data[1]


def encode_high_u8(value: int, _transaction_id: bytes) -> bytes:
    """An 8-bit number in a field of 32 bits: the address families, REQUESTED-TRANSPORT."""
    return value.to_bytes(1, "big") + b"\0\0\0"


def decode_high_u8(data: bytes, _transaction_id: bytes) -> int:
    _check_length(data, 4)
    return data[0]


def encode_flag(value: bool, _transaction_id: bytes) -> bytes:
    """A flag says yes by being there: ``False`` cannot be written."""
    if value is not True:
        raise ValueError(f"a flag is True or left out, not {value!r}")
    return b""


def decode_flag(data: bytes, _transaction_id: bytes) -> bool:
    if data:
        raise BadMessage(f"length {len(data)}, not 0")
    return True


def encode_even_port(reserve_next: bool, _transaction_id: bytes) -> bytes:
    return b"\x80" if reserve_next else b"\0"


def decode_even_port(data: bytes, _transaction_id: bytes) -> bool:
    _check_length(data, 1)
    return data[0] >= 0x80


def encode_error_code(value: ErrorCode, _transaction_id: bytes) -> bytes:
    return _encode_error(0, value[0], value[1])


def decode_error_code(data: bytes, _transaction_id: bytes) -> ErrorCode:
    _, code, reason = _decode_error(data)
    return ErrorCode(code, reason)


def encode_address_error_code(value: AddressErrorCode, _transaction_id: bytes) -> bytes:
    return _encode_error(*value)


def decode_address_error_code(data: bytes, _transaction_id: bytes) -> AddressErrorCode:
    return AddressErrorCode(*_decode_error(data))


def encode_codes(codes: tuple[int, ...], _transaction_id: bytes) -> bytes:
    return struct.pack(f">{len(codes)}H", *codes)


def decode_codes(data: bytes, _transaction_id: bytes) -> tuple[int, ...]:
    if len(data) & 1:
        raise BadMessage(f"length {len(data)}, not a list of 16-bit numbers")
    return struct.unpack(f">{len(data) // 2}H", data)


def encode_icmp(value: Icmp, _transaction_id: bytes) -> bytes:
    # Figure 11 of RFC 8656 draws 7 bits of type and 9 of code; both are fields of 8 bits in ICMP, which we follow.
    return _ICMP.pack(*value)


def decode_icmp(data: bytes, _transaction_id: bytes) -> Icmp:
    _check_length(data, 8)
    return Icmp(*_ICMP.unpack(data))


def encode_change_request(value: ChangeRequest, _transaction_id: bytes) -> bytes:
    return bytes((0, 0, 0, (4 if value[0] else 0) | (2 if value[1] else 0)))


def decode_change_request(data: bytes, _transaction_id: bytes) -> ChangeRequest:
    _check_length(data, 4)
    return ChangeRequest(data[3] & 4 != 0, data[3] & 2 != 0)


def encode_network_cost(value: NetworkCost, _transaction_id: bytes) -> bytes:
    return _TWO_SHORTS.pack(*value)


def decode_network_cost(data: bytes, _transaction_id: bytes) -> NetworkCost:
    _check_length(data, 4)
    return NetworkCost(*_TWO_SHORTS.unpack(data))


def encode_algorithm(value: AlgorithmParameters, _transaction_id: bytes) -> bytes:
    algorithm, parameters = value
    return _TWO_SHORTS.pack(algorithm, len(parameters)) + parameters + padding(len(parameters))


def decode_algorithm(data: bytes, _transaction_id: bytes) -> AlgorithmParameters:
    algorithms = decode_algorithms(data, _transaction_id)
    if len(algorithms) != 1:
        raise BadMessage(f"{len(algorithms)} algorithms instead of one")
    return algorithms[0]


def encode_algorithms(value: tuple[AlgorithmParameters, ...], transaction_id: bytes) -> bytes:
    return b"".join([encode_algorithm(entry, transaction_id) for entry in value])


def decode_algorithms(data: bytes, _transaction_id: bytes) -> tuple[AlgorithmParameters, ...]:
    algorithms = []
    position, end = 0, len(data)
    while position < end:
        if end - position < 4:
            raise BadMessage("an algorithm is cut short")
        algorithm, length = _TWO_SHORTS.unpack_from(data, position)
        start, stop = position + 4, position + 4 + length
        if stop > end:
            raise BadMessage("the parameters of an algorithm are cut short")
        algorithms.append(AlgorithmParameters(algorithm, data[start:stop]))
        position = stop + (-length & 3)
    return tuple(algorithms)


@lru_cache(maxsize=ADDRESS_CACHE_SIZE)
def _number(host: str) -> tuple[int, int]:
    ip = ip_address(host)
    return ip.version, int(ip)


@lru_cache(maxsize=ADDRESS_CACHE_SIZE)
def _host_4(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


@lru_cache(maxsize=ADDRESS_CACHE_SIZE)
def _host_6(number: int) -> str:
    return canonical_host(str(ipaddress.IPv6Address(number)))


def _bad_address(data: bytes) -> BadMessage:
    if len(data) < 2 or data[1] not in (1, 2):
        return BadMessage("an address of no known family")
    return BadMessage(f"an address of family {data[1]} in {len(data)} bytes")


def _encode_error(family: int, code: int, reason: str) -> bytes:
    if not 300 <= code <= 699:
        raise ValueError(f"error code {code}, not within 300 to 699")
    return _ERROR_HEAD.pack(family, code // 100, code % 100) + encode_text(reason, b"")


def _decode_error(data: bytes) -> tuple[int, int, str]:
    if len(data) < 4:
        raise BadMessage(f"length {len(data)}, shorter than an error code")
    family, hundreds, rest = _ERROR_HEAD.unpack_from(data)
    hundreds &= 7
    if not 3 <= hundreds <= 6 or rest > 99:
        raise BadMessage(f"error class {hundreds} and number {rest}, not within 3 to 6 and 0 to 99")
    return family, hundreds * 100 + rest, decode_text(data[4:], b"")


def _check_length(data: bytes, length: int) -> None:
    if len(data) != length:
        raise BadMessage(f"length {len(data)}, not {length}")


def _exactly(value: bytes, length: int) -> bytes:
    if len(value) != length:
        raise ValueError(f"{len(value)} bytes, not {length}")
    return value
