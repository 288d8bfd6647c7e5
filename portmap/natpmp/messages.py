"""What do NAT-PMP messages look like? RFC 6886, 3.2 to 3.5: requests are written, responses read. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from portmap.server_link import BadMessage, is_for_pcp

__all__ = [
    "EXTERNAL_REQUEST",
    "VERSION",
    "ErrorResponse",
    "ExternalAddress",
    "MapResponse",
    "Opcode",
    "Response",
    "ResultCode",
    "UnsupportedVersion",
    "map_request",
    "parse_response",
    "result_text",
]

VERSION = 0

_IS_RESPONSE = 0x80
_MAP_REQUEST = struct.Struct("!BBxxHHI")
_HEADER = struct.Struct("!BBH")
_EXTERNAL = struct.Struct("!4xI4s")
_MAP = struct.Struct("!4xIHHI")


class Opcode(IntEnum):
    """RFC 6886, 3.2 and 3.3."""

    EXTERNAL_ADDRESS = 0
    MAP_UDP = 1
    MAP_TCP = 2


class ResultCode(IntEnum):
    """RFC 6886, 3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


_TEXTS = {
    ResultCode.UNSUPPORTED_VERSION: "Unsupported Version",
    ResultCode.NOT_AUTHORIZED: "Not Authorized/Refused",
    ResultCode.NETWORK_FAILURE: "Network Failure",
    ResultCode.OUT_OF_RESOURCES: "Out of resources",
    ResultCode.UNSUPPORTED_OPCODE: "Unsupported opcode",
}

EXTERNAL_REQUEST = bytes([VERSION, Opcode.EXTERNAL_ADDRESS])
"""RFC 6886, 3.2: what is the external address?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAddress:
    """An answer, or an announcement (3.2.1).

    Attributes:
        epoch_s: seconds since the gateway's table began.
        host: the external IPv4 address; ``0.0.0.0``: there is none.
    """

    epoch_s: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapResponse:
    """A mapping was made, renewed or deleted.

    Attributes:
        opcode: MAP_UDP or MAP_TCP.
        epoch_s: seconds since the gateway's table began.
        internal_port: as in the request.
        external_port: 0: it was deleted.
        lifetime_s: seconds, 0 … 2³² - 1.
    """

    opcode: int
    epoch_s: int
    internal_port: int
    external_port: int
    lifetime_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """The gateway said no.

    Attributes:
        opcode: of the request.
        code: not 0; see :class:`ResultCode`, but there may be others.
        epoch_s: seconds since the gateway's table began; ``None``: not told.
        internal_port: of the request; ``None``: not told.
    """

    opcode: int
    code: int
    epoch_s: int | None
    internal_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedVersion:
    """The gateway does not speak NAT-PMP, but PCP or something of that kind.

    Attributes:
        version: the one it speaks, 1 … 255.
    """

    version: int


Response = ExternalAddress | MapResponse | ErrorResponse | UnsupportedVersion


def map_request(opcode: int, internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    """RFC 6886, 3.3 and 3.4: 12 bytes.

    Args:
        opcode: MAP_UDP or MAP_TCP.
        internal_port: 1 … 65535.
        external_port: suggested; 0: any.
        lifetime_s: seconds; 0 deletes.

    Raises:
        ValueError: the internal port is 0, which would delete the mappings of all programs of this host; or it is to be
            deleted and has an external port, which "MUST be set to zero".
    """
    if internal_port == 0:
        raise ValueError("the internal port is 0")
    if lifetime_s == 0 and external_port != 0:
        raise ValueError(f"a deletion with external port {external_port}")
    return _MAP_REQUEST.pack(VERSION, opcode, internal_port, external_port, lifetime_s)


def parse_response(data: bytes) -> Response:
    """Read what a gateway sent.

    Raises:
        BadMessage: it is no response, or not to a request of NAT-PMP.
    """
    if len(data) < _HEADER.size:
        raise BadMessage("shorter than 4 bytes")
    version, opcode, code = _HEADER.unpack_from(data)
    if version == VERSION and code == ResultCode.UNSUPPORTED_VERSION:
        raise BadMessage("an answer to PCP")
    if not opcode & _IS_RESPONSE:
        raise BadMessage("a request")
    opcode &= ~_IS_RESPONSE
    if version != VERSION:
        # RFC 6887, 7.2: the result code is one byte there.
        if data[3] == ResultCode.UNSUPPORTED_VERSION:
            if version == 2 and is_for_pcp(data):
                raise BadMessage("an answer to PCP")
            return UnsupportedVersion(version=version)
        raise BadMessage("another version")
    if opcode not in tuple(Opcode):
        raise BadMessage("another opcode")
    if code:
        return _parse_error(opcode, code, data)
    if opcode == Opcode.EXTERNAL_ADDRESS:
        if len(data) != _EXTERNAL.size:
            raise BadMessage("a length that no answer has")
        epoch_s, host = _EXTERNAL.unpack(data)
        return ExternalAddress(epoch_s=epoch_s, host=str(IPv4Address(host)))
    if len(data) != _MAP.size:
        raise BadMessage("a length that no answer has")
    epoch_s, internal_port, external_port, lifetime_s = _MAP.unpack(data)
    return MapResponse(
        opcode=opcode,
        epoch_s=epoch_s,
        internal_port=internal_port,
        external_port=external_port,
        lifetime_s=lifetime_s,
    )


def result_text(code: int) -> str:
    """A result code as number and words."""
    try:
        return f"{code} {_TEXTS[ResultCode(code)]}"
    except (ValueError, KeyError):
        return f"{code} (unknown)"


def _parse_error(opcode: int, code: int, data: bytes) -> ErrorResponse:
    """RFC 6886, 3.5: like a success; or "the entire request", with the code in its reserved bytes, and no epoch in it;
    gateways also send the first 8 bytes only.
    """
    epoch_s, internal_port = None, None
    if len(data) == _MAP_REQUEST.size and opcode != Opcode.EXTERNAL_ADDRESS:
        internal_port = int.from_bytes(data[4:6], "big")
    elif len(data) == _MAP.size and opcode != Opcode.EXTERNAL_ADDRESS:
        epoch_s, internal_port = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:10], "big")
    elif len(data) in (8, _EXTERNAL.size):
        epoch_s = int.from_bytes(data[4:8], "big")
    elif len(data) != _HEADER.size:
        raise BadMessage("a length that no answer has")
    return ErrorResponse(opcode=opcode, code=code, epoch_s=epoch_s, internal_port=internal_port)
