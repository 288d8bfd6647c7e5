"""What do PCP messages look like? RFC 6887, 7, 11.1, 13 and 14.1: requests are written, responses read. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from portmap.server_link import BadMessage, is_for_pcp

__all__ = [
    "MAX_SIZE",
    "NONCE_SIZE",
    "PREFER_FAILURE",
    "VERSION",
    "Filter",
    "MapData",
    "Opcode",
    "Option",
    "PreferFailure",
    "Response",
    "ResultCode",
    "announce_request",
    "any_host",
    "map_request",
    "parse_response",
    "result_text",
]

VERSION = 2
NONCE_SIZE = 12
MAX_SIZE = 1100
"""RFC 6887, 7: "a maximum UDP payload length of 1100 octets"."""

_HEADER_SIZE = 24
_IS_RESPONSE = 0x80
_REQUEST_HEADER = struct.Struct("!BBxxI16s")
_RESPONSE_HEADER = struct.Struct("!BBxBII12x")
_MAP = struct.Struct("!12sB3xHH16s")
_OPTION = struct.Struct("!BxH")
_FILTER = struct.Struct("!xBH16s")
# RFC 6887, 9: "set a timer to retry its request in 30 minutes".
_VERSION_RETRY_S = 1800


class Opcode(IntEnum):
    """RFC 6887, 19.2."""

    ANNOUNCE = 0
    MAP = 1
    PEER = 2


class ResultCode(IntEnum):
    """RFC 6887, 7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


class _OptionCode(IntEnum):
    PREFER_FAILURE = 2
    FILTER = 3


@dataclass(frozen=True, slots=True)
class PreferFailure:
    """RFC 6887, 13.2: no mapping rather than another external port; "PCP clients … SHOULD NOT use this option"."""


PREFER_FAILURE = PreferFailure()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """RFC 6887, 13.3: who may send to the mapping.

    Attributes:
        prefix_length: how many bits of the peer's 128-bit address count: of an IPv4 address 96 … 128; 0: no filter any
            more.
        peer: the address, and the port; port 0: all ports.
    """

    prefix_length: int
    peer: TransportAddress


Option = PreferFailure | Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class MapData:
    """What MAP says, in a request and in its response.

    Attributes:
        nonce: 12 bytes.
        protocol: the IANA number: 6 is TCP, 17 UDP.
        internal_port: 0 … 65535.
        external: suggested, or assigned.
        options: those that we know; of a response, others are left out.
    """

    nonce: bytes
    protocol: int
    internal_port: int
    external: TransportAddress
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a server says.

    Attributes:
        opcode: as in the request.
        result: 0: success; see :class:`ResultCode`, but there may be others.
        lifetime_s: of the mapping, or of the error; seconds, 0 … 2³² - 1.
        epoch_s: seconds since the server's table began; ``None``: not told.
        map: what MAP says; ``None`` for other opcodes.
        version: which the server speaks: 2, unless ``result`` is UNSUPP_VERSION (and mostly not then).
    """

    opcode: int
    result: int
    lifetime_s: int
    epoch_s: int | None
    map: MapData | None = None
    version: int = VERSION


def any_host(version: int) -> str:
    """The "address-family-specific all-zeros address" (RFC 6887, 5): no preference."""
    return "0.0.0.0" if version == 4 else "::"


def announce_request(client_host: str) -> bytes:
    """RFC 6887, 14.1: is there a server? 24 bytes.

    Args:
        client_host: the source address of the datagram.
    """
    return _REQUEST_HEADER.pack(VERSION, Opcode.ANNOUNCE, 0, _pack_host(client_host))


def map_request(client_host: str, lifetime_s: int, data: MapData) -> bytes:
    """RFC 6887, 11.1: 60 bytes, and the options.

    Args:
        client_host: the source address of the datagram.
        lifetime_s: 0 deletes.
        data: see there.

    Raises:
        ValueError: it is longer than 1100 bytes, the nonce is not of 12 bytes, or a filter's prefix is out of range.
    """
    if len(data.nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce of {len(data.nonce)} bytes: it has {NONCE_SIZE}")
    header = _REQUEST_HEADER.pack(VERSION, Opcode.MAP, lifetime_s, _pack_host(client_host))
    external = data.external
    body = _MAP.pack(data.nonce, data.protocol, data.internal_port, external.port, _pack_host(external.host))
    message = header + body + b"".join(_pack_option(option) for option in data.options)
    if len(message) > MAX_SIZE:
        raise ValueError(f"a message of {len(message)} bytes: {MAX_SIZE} are allowed")
    return message


def parse_response(data: bytes) -> Response:
    """Read what a server sent, in the order of RFC 6887, 8.3.

    Raises:
        BadMessage: it is no response, or not to a request of PCP.
    """
    if len(data) < 4:
        raise BadMessage("shorter than 4 bytes")
    version, opcode, result = data[0], data[1], data[3]
    if version == 0 and not is_for_pcp(data):
        raise BadMessage("an answer to NAT-PMP")
    # DEVIATION from "If the R bit is clear, the message is silently dropped" (8.3): RFC 6886, 3.5, draws NAT-PMP's
    # Unsupported Version answer with "OP = 0": test_a_server_of_another_version_says_so.
    if not opcode & _IS_RESPONSE and version != 0:
        raise BadMessage("R bit missing")
    if result == ResultCode.UNSUPP_VERSION:
        if version == VERSION and not is_for_pcp(data):
            raise BadMessage("an answer to NAT-PMP")
        return _unsupported_version(version, opcode & ~_IS_RESPONSE, data)
    if version != VERSION:
        raise BadMessage("another version")
    if len(data) < _HEADER_SIZE or len(data) > MAX_SIZE or len(data) % 4:
        raise BadMessage("a length that no answer has")
    _, _, _, lifetime_s, epoch_s = _RESPONSE_HEADER.unpack_from(data)
    opcode &= ~_IS_RESPONSE
    map_data = None
    if opcode == Opcode.MAP:
        map_data = _parse_map(data)
    elif opcode != Opcode.ANNOUNCE:
        raise BadMessage("another opcode")
    return Response(opcode=opcode, result=result, lifetime_s=lifetime_s, epoch_s=epoch_s, map=map_data)


def result_text(code: int) -> str:
    """A result code as number and name, and what it means where that is not plain."""
    try:
        name = ResultCode(code).name
    except ValueError:
        return f"{code} (unknown)"
    if code == ResultCode.ADDRESS_MISMATCH:
        return f"{code} {name}: there is another NAT between us and the gateway"
    return f"{code} {name}"


def _unsupported_version(version: int, opcode: int, data: bytes) -> Response:
    lifetime_s = _VERSION_RETRY_S
    # In version 0 the epoch stands there.
    if version != 0 and len(data) >= 8:
        lifetime_s = min(int.from_bytes(data[4:8], "big"), _VERSION_RETRY_S)
    return Response(
        opcode=opcode, result=ResultCode.UNSUPP_VERSION, lifetime_s=lifetime_s, epoch_s=None, version=version
    )


def _parse_map(data: bytes) -> MapData:
    if len(data) < _HEADER_SIZE + _MAP.size:
        raise BadMessage("too short for MAP")
    nonce, protocol, internal_port, external_port, host = _MAP.unpack_from(data, _HEADER_SIZE)
    return MapData(
        nonce=nonce,
        protocol=protocol,
        internal_port=internal_port,
        external=TransportAddress(_unpack_host(host), external_port),
        options=_parse_options(data, _HEADER_SIZE + _MAP.size),
    )


def _pack_option(option: Option) -> bytes:
    if isinstance(option, PreferFailure):
        return _OPTION.pack(_OptionCode.PREFER_FAILURE, 0)
    lowest = 96 if option.peer.version == 4 else 0
    if option.prefix_length != 0 and not lowest <= option.prefix_length <= 128:
        raise ValueError(f"a prefix of {option.prefix_length} bits: it has {lowest} to 128, or 0")
    body = _FILTER.pack(option.prefix_length, option.peer.port, _pack_host(option.peer.host))
    return _OPTION.pack(_OptionCode.FILTER, len(body)) + body


def _parse_options(data: bytes, offset: int) -> tuple[Option, ...]:
    """RFC 6887, 7.3: options that are not understood are ignored."""
    options: list[Option] = []
    while offset < len(data):
        code, length = _OPTION.unpack_from(data, offset)
        offset += _OPTION.size
        if length > len(data) - offset:
            raise BadMessage("an option is longer than its message")
        if code == _OptionCode.PREFER_FAILURE and length == 0:
            options.append(PREFER_FAILURE)
        elif code == _OptionCode.FILTER and length == _FILTER.size:
            prefix_length, port, host = _FILTER.unpack_from(data, offset)
            options.append(Filter(prefix_length=prefix_length, peer=TransportAddress(_unpack_host(host), port)))
        offset += (length + 3) & ~3
    return tuple(options)


def _pack_host(host: str) -> bytes:
    """RFC 6887, 5: 16 bytes; an IPv4 address is mapped."""
    ip = ip_address(host)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def _unpack_host(packed: bytes) -> str:
    return canonical_host(str(IPv6Address(packed)))
