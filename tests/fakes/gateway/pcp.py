"""What would a PCP server answer to this datagram? RFC 6887 (7, 8.2, 9, 11, 13.2, 14, 15) without PEER. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from portmap.values import Transport
from tests.fakes.gateway.state import ERROR_LIFETIMES_S, State
from tests.fakes.gateway.table import PortMapping, TableFull

__all__ = ["INTERNAL_PORT_AT", "NONCE_AT", "TRANSPORT_AT", "announcement", "answer", "mapping_update"]

VERSION = 2
ANNOUNCE, MAP = 0, 1
ANSWER = 0x80
MAX_SIZE = 1100
HEADER_SIZE = 24
TRANSPORTS: dict[int, Transport] = {17: "udp", 6: "tcp"}
PREFER_FAILURE = 2

NONCE_AT, TRANSPORT_AT, INTERNAL_PORT_AT = 24, 36, 40
"""Offsets in a MAP request and its answer (11.1)."""

# fmt: off
(
    SUCCESS, UNSUPP_VERSION, NOT_AUTHORIZED, MALFORMED_REQUEST, UNSUPP_OPCODE, UNSUPP_OPTION, MALFORMED_OPTION,
    NETWORK_FAILURE, NO_RESOURCES, UNSUPP_PROTOCOL, USER_EX_QUOTA, CANNOT_PROVIDE_EXTERNAL, ADDRESS_MISMATCH,
    EXCESSIVE_REMOTE_PEERS,
) = range(14)
# fmt: on

SHORT_ERRORS = frozenset({NETWORK_FAILURE, NO_RESOURCES, USER_EX_QUOTA, CANNOT_PROVIDE_EXTERNAL})
"""7.4; of CANNOT_PROVIDE_EXTERNAL it "depends on the reason"."""

_REQUEST = struct.Struct("!BBHI16s")
_ANSWER = struct.Struct("!BBBBII12s")
_MAP = struct.Struct("!12sB3sHH16s")
_OPTION = struct.Struct("!BBH")
_ALL_ZEROS_4 = ip_address("::ffff:0:0").packed
_ALL_ZEROS_6 = bytes(16)


class _Refused(Exception):
    """A request gets an error.

    Attributes:
        code: of 7.4.
        lifetime_s: ``None``: what 7.4 recommends.
    """

    def __init__(self, code: int, lifetime_s: int | None = None) -> None:
        super().__init__(code)
        self.code, self.lifetime_s = code, lifetime_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _MapRequest:
    lifetime_s: int
    nonce: bytes
    protocol: int
    internal_port: int
    suggested_port: int
    suggested_host: bytes
    prefers_failure: bool


def answer(state: State, data: bytes, source: TransportAddress, now: float) -> bytes | None:
    """What comes back, before any fault of the network; ``None``: nothing.

    Args:
        state: of the gateway; mappings change.
        data: of any version: a gateway that speaks PCP only gets NAT-PMP's as well.
        source: who asked.
        now: the time.
    """
    # 8.2. General PCP Server: Processing a Request, in its order
    blame = _Blame(state)
    if len(data) < 2:
        blame(f"a datagram of {len(data)} bytes")
        return None
    if data[1] & ANSWER:
        blame(f"an answer (R bit, opcode {data[1] & 0x7F}) was sent to the server")
        return None
    if data[0] != VERSION:
        if data[0] != 0:
            blame(f"version {data[0]}, which is none")
        return _error(state, data, UNSUPP_VERSION, None, now, is_parsed=False)
    if len(data) < HEADER_SIZE:
        blame(f"a request of {len(data)} bytes")
        return None
    try:
        return _process(state, data, source, now)
    except _Refused as refused:
        is_parsed = refused.code not in (MALFORMED_REQUEST, MALFORMED_OPTION)
        return _error(state, data, refused.code, refused.lifetime_s, now, is_parsed=is_parsed)


def announcement(state: State, now: float) -> bytes:
    """14.1.3. Generating an Unsolicited ANNOUNCE Message."""
    return _head(state, ANNOUNCE, SUCCESS, 0, now)


def mapping_update(state: State, mapping: PortMapping, now: float) -> bytes:
    """14.2. PCP Mapping Update: the answer that a request would get now.

    Raises:
        ValueError: the mapping is none of PCP's.
    """
    if mapping.nonce is None:
        raise ValueError(f"mapping {mapping.number} was not asked for by PCP")
    protocol = next(number for number, name in TRANSPORTS.items() if name == mapping.transport)
    return _success(state, mapping.nonce, protocol, mapping, now)


def _process(state: State, data: bytes, source: TransportAddress, now: float) -> bytes:
    blame = _Blame(state)
    _, opcode, reserved, lifetime_s, client = _REQUEST.unpack_from(data)
    if len(data) > MAX_SIZE or len(data) % 4:
        blame(f"a request has {len(data)} bytes: at most 1100 it may, and a multiple of 4")
        raise _Refused(MALFORMED_REQUEST)
    if reserved:
        blame(f"reserved bits are 0x{reserved:04x}: they MUST be zero (RFC 6887, 7.1)")
    if client != _packed(source.host):
        if not state.options.is_behind_nat:
            blame(f"client's IP address is {IPv6Address(client)}, but the request comes from {source.host}")
        raise _Refused(ADDRESS_MISMATCH)
    if opcode == ANNOUNCE:
        return _announce(state, data, source, lifetime_s, now)
    if opcode != MAP:
        blame(f"opcode {opcode}, which we have no use for")
        raise _Refused(UNSUPP_OPCODE)
    request = _parse_map(state, data, lifetime_s)
    state.journal.note(
        now,
        "pcp",
        "MAP",
        source,
        lifetime_s=lifetime_s,
        nonce=request.nonce,
        transport=TRANSPORTS.get(request.protocol, str(request.protocol)),
        internal_port=request.internal_port,
        suggested_port=request.suggested_port,
        suggested_host=canonical_host(str(IPv6Address(request.suggested_host))),
        prefers_failure=request.prefers_failure,
    )
    _judge_map(state, request, source)
    result = state.faults.pcp.next_result(is_deletion=lifetime_s == 0)
    if result:
        raise _Refused(result)
    mapped = _delete(state, request, source, now) if lifetime_s == 0 else _map(state, request, source, now)
    # 7.3: "In success responses, all processed options are included".
    return mapped + (_OPTION.pack(PREFER_FAILURE, 0, 0) if request.prefers_failure else b"")


def _announce(state: State, data: bytes, source: TransportAddress, lifetime_s: int, now: float) -> bytes:
    # 14.1.2. Generating and Processing a Solicited ANNOUNCE Message
    state.journal.note(now, "pcp", "ANNOUNCE", source)
    blame = _Blame(state)
    if lifetime_s:
        blame(f"an ANNOUNCE has lifetime {lifetime_s}: it MUST be zero (RFC 6887, 14.1.2)")
    if len(data) != HEADER_SIZE:
        blame(f"an ANNOUNCE has {len(data)} bytes, and not 24")
    if state.faults.pcp.discovery_result:
        raise _Refused(state.faults.pcp.discovery_result)
    return _head(state, ANNOUNCE, SUCCESS, 0, now)


def _parse_map(state: State, data: bytes, lifetime_s: int) -> _MapRequest:
    blame = _Blame(state)
    if len(data) < HEADER_SIZE + _MAP.size:
        blame(f"a MAP request has {len(data)} bytes, and not 60")
        raise _Refused(MALFORMED_REQUEST)
    nonce, protocol, reserved, internal_port, suggested_port, suggested_host = _MAP.unpack_from(data, HEADER_SIZE)
    if any(reserved):
        blame(f"reserved bits are 0x{reserved.hex()}: they MUST be sent as 0 (RFC 6887, 11.1)")
    options = _parse_options(state, data[HEADER_SIZE + _MAP.size :])
    for code in options:
        if code != PREFER_FAILURE:
            blame(f"option {code}, which we have no use for")
            if code < 128:
                raise _Refused(UNSUPP_OPTION)
    prefers_failure = PREFER_FAILURE in options
    # 13.2, and 11.3: "the PREFER_FAILURE option is included in a request with lifetime=0".
    if prefers_failure and (suggested_port == 0 or lifetime_s == 0 or options.count(PREFER_FAILURE) > 1):
        blame("PREFER_FAILURE twice, in a deletion, or without a suggested port")
        raise _Refused(MALFORMED_OPTION)
    return _MapRequest(
        lifetime_s=lifetime_s,
        nonce=nonce,
        protocol=protocol,
        internal_port=internal_port,
        suggested_port=suggested_port,
        suggested_host=suggested_host,
        prefers_failure=prefers_failure,
    )


def _parse_options(state: State, data: bytes) -> list[int]:
    """7.3. Options: their codes."""
    blame = _Blame(state)
    codes = []
    while data:
        # What is left has at least 4 bytes: all of it is a multiple of 4.
        code, reserved, length = _OPTION.unpack_from(data)
        end = _OPTION.size + length + -length % 4
        if end > len(data) or (code == PREFER_FAILURE and length):
            blame(f"option {code} says it has {length} bytes")
            raise _Refused(MALFORMED_OPTION)
        if reserved or any(data[_OPTION.size + length : end]):
            blame(f"reserved or padding bits of option {code} are not 0")
        codes.append(code)
        data = data[end:]
    return codes


def _judge_map(state: State, request: _MapRequest, source: TransportAddress) -> None:
    """What 11.2 and 15.1 forbid the client, whether a server minds or not.

    Raises:
        _Refused: it minds.
    """
    blame = _Blame(state)
    if not any(request.nonce):
        blame("a nonce of zeros")
    if request.protocol not in TRANSPORTS:
        blame(f"protocol {request.protocol}")
        raise _Refused(MALFORMED_REQUEST if request.protocol == 0 and request.internal_port else UNSUPP_PROTOCOL)
    if request.internal_port == 0:
        blame("all ports of the host are asked for, other programs' as well")
        raise _Refused(UNSUPP_PROTOCOL)
    zeros = (_ALL_ZEROS_6,) if source.version == 6 else (_ALL_ZEROS_4,)
    if request.lifetime_s == 0:
        # Of an all-zeros address of one family, 15.1 says nothing.
        if request.suggested_port or request.suggested_host not in (_ALL_ZEROS_4, _ALL_ZEROS_6):
            blame("a deletion suggests an external address: it MUST be zero (RFC 6887, 15.1)")
    elif (IPv6Address(request.suggested_host).ipv4_mapped is None) is not (source.version == 6):
        # 11.1: "MUST use the address-family-specific all-zeros address"; NAT64 is none of ours.
        blame(f"the suggested address {IPv6Address(request.suggested_host)} is of another family")
    elif request.suggested_host not in zeros and request.suggested_port == 0:
        blame("an external address is suggested without a port")


def _map(state: State, request: _MapRequest, source: TransportAddress, now: float) -> bytes:
    # 11.3. Processing a MAP Request
    transport = TRANSPORTS[request.protocol]
    internal = TransportAddress(source.host, request.internal_port)
    found = state.table.of(transport, internal, "pcp")
    _check_nonce(found, request, now)
    if source.version == 4 and not state.options.external_host:
        raise _Refused(NO_RESOURCES)
    if request.prefers_failure and not _can_provide(state, request, found, transport, source):
        raise _Refused(CANNOT_PROVIDE_EXTERNAL)
    given_s = min(request.lifetime_s, state.options.max_lifetime_s)
    try:
        mapping = state.table.grant("pcp", transport, internal, request.suggested_port, given_s, now)
    except TableFull:
        raise _Refused(NO_RESOURCES) from None
    mapping.nonce, mapping.client = request.nonce, source
    return _success(state, request.nonce, request.protocol, mapping, now)


def _delete(state: State, request: _MapRequest, source: TransportAddress, now: float) -> bytes:
    # 15.1. Lifetime Processing for the MAP Opcode
    internal = TransportAddress(source.host, request.internal_port)
    found = state.table.of(TRANSPORTS[request.protocol], internal, "pcp")
    _check_nonce(found, request, now)
    if found is not None:
        state.table.delete(found)
    # "these fields MUST be copied into the assigned external IP address and assigned external port of the response".
    return _head(state, MAP, SUCCESS, 0, now) + _MAP.pack(
        request.nonce,
        request.protocol,
        bytes(3),
        request.internal_port,
        request.suggested_port,
        request.suggested_host,
    )


def _check_nonce(found: PortMapping | None, request: _MapRequest, now: float) -> None:
    """11.3: "rejected with a NOT_AUTHORIZED error with the lifetime … indicating duration of that existing mapping"."""
    if found is not None and found.nonce is not None and found.nonce != request.nonce:
        raise _Refused(NOT_AUTHORIZED, found.lifetime_s(now))


def _can_provide(
    state: State, request: _MapRequest, found: PortMapping | None, transport: Transport, source: TransportAddress
) -> bool:
    if source.version == 6:
        return request.suggested_port == request.internal_port
    hosts = (_ALL_ZEROS_4, _packed(state.options.external_host))
    if request.suggested_host not in hosts:
        return False
    if found is not None:
        return found.external_port == request.suggested_port
    return state.table.is_free(transport, request.suggested_port)


def _success(state: State, nonce: bytes, protocol: int, mapping: PortMapping, now: float) -> bytes:
    told = state.faults.mapping.told_lifetime_s
    lifetime_s = mapping.lifetime_s(now) if told is None else told
    # A firewall's external address is the internal one (11.1).
    external = mapping.internal.host if mapping.internal.version == 6 else state.told_external_host() or "0.0.0.0"
    return _head(state, MAP, SUCCESS, lifetime_s, now) + _MAP.pack(
        nonce, protocol, bytes(3), mapping.internal.port, mapping.external_port, _packed(external)
    )


def _head(state: State, opcode: int, result: int, lifetime_s: int, now: float) -> bytes:
    return _ANSWER.pack(VERSION, opcode | ANSWER, 0, result, lifetime_s, state.epoch.read(now), bytes(12))


def _error(state: State, data: bytes, code: int, lifetime_s: int | None, now: float, *, is_parsed: bool) -> bytes:
    """8.2: "Copying the entire UDP payload, or 1100 octets, whichever is less, and zero-padding …"."""
    faults = state.faults.pcp
    if lifetime_s is None:
        lifetime_s = ERROR_LIFETIMES_S[code in SHORT_ERRORS]
    if faults.result_lifetime_s is not None:
        lifetime_s = faults.result_lifetime_s
    copied = data[:MAX_SIZE]
    copied += bytes(max(-len(copied) % 4, HEADER_SIZE - len(copied)))
    # 7.2: what could not be parsed gets back "the last 96 bits of the PCP Client's IP Address field".
    reserved = bytes(12) if is_parsed else copied[12:HEADER_SIZE]
    opcode = copied[1] & 0x7F
    head = _ANSWER.pack(VERSION, opcode | ANSWER, 0, code, lifetime_s, state.epoch.read(now), reserved)
    return head if faults.is_error_short else head + copied[HEADER_SIZE:]


def _packed(host: str) -> bytes:
    """5. Note on Fixed-Size Addresses: an IPv4 address as an IPv4-mapped IPv6 address."""
    ip = ip_address(host)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


class _Blame:
    def __init__(self, state: State) -> None:
        self._journal = state.journal

    def __call__(self, what: str) -> None:
        self._journal.blame("pcp", what)
