"""What would a NAT-PMP gateway answer to this datagram? RFC 6886, sections 3.2 to 3.6. Pure."""

from __future__ import annotations

import struct

from iceagent.net.address import TransportAddress, ip_address
from portmap.values import Transport
from tests.fakes.gateway.state import State
from tests.fakes.gateway.table import TableFull

__all__ = ["announcement", "answer"]

TRANSPORTS: dict[int, Transport] = {1: "udp", 2: "tcp"}
EXTERNAL_ADDRESS = 0
ANSWER = 0x80

SUCCESS, UNSUPPORTED_VERSION, REFUSED, NETWORK_FAILURE, OUT_OF_RESOURCES, UNSUPPORTED_OPCODE = range(6)

_HEAD = struct.Struct("!BBHI")
_REQUEST = struct.Struct("!BBHHHI")
_PORTS = struct.Struct("!HHI")


def answer(state: State, data: bytes, source: TransportAddress, now: float) -> bytes | None:
    """What comes back, before any fault of the network; ``None``: nothing.

    Args:
        state: of the gateway; mappings change.
        data: of any version: a gateway that speaks NAT-PMP only gets PCP's as well.
        source: who asked.
        now: the time.
    """
    blame = _Blame(state)
    if len(data) < 2:
        blame(f"a datagram of {len(data)} bytes")
        return None
    version, opcode = data[0], data[1]
    if opcode & ANSWER:
        blame(f"an answer (opcode {opcode}) was sent to the gateway")
        return None
    if version != 0:
        # 3.5: "the NAT-PMP server MUST return the following "Unsupported Version" error response".
        shown = opcode | ANSWER if state.options.echoes_opcode else 0
        return _head(state, shown, UNSUPPORTED_VERSION, now)
    if source.version == 6:
        blame("a request over IPv6, for which there is no NAT-PMP")
        return None
    if opcode == EXTERNAL_ADDRESS:
        return _external_address(state, data, source, now)
    if opcode in TRANSPORTS:
        return _map(state, data, source, now)
    # 3.5: "the entire request MUST be returned to the sender, with the top bit of the opcode set".
    blame(f"opcode {opcode}, which is none")
    returned = bytes((0, opcode | ANSWER)) + UNSUPPORTED_OPCODE.to_bytes(2, "big")
    return returned + data[4:]


def announcement(state: State, now: float) -> bytes:
    """3.2.1. Announcing Address Changes: an answer to a question for the external address that nobody asked."""
    return _head(state, ANSWER, SUCCESS, now) + _external(state)


def _external_address(state: State, data: bytes, source: TransportAddress, now: float) -> bytes:
    state.journal.note(now, "nat-pmp", "external address", source)
    if len(data) != 2:
        _Blame(state)(f"a question for the external address has {len(data)} bytes, and not 2")
    result = state.faults.natpmp.discovery_result
    external = _external(state)
    if not result and not state.options.external_host:
        result = NETWORK_FAILURE
    if result:
        # 3.2: "MUST be set to zero on transmission".
        return _error(state, ANSWER, result, bytes(4), now)
    return _head(state, ANSWER, SUCCESS, now) + external


def _map(state: State, data: bytes, source: TransportAddress, now: float) -> bytes | None:
    blame = _Blame(state)
    if len(data) != _REQUEST.size:
        blame(f"a request for a mapping has {len(data)} bytes, and not 12")
        if len(data) < _REQUEST.size:
            return None
    _, opcode, reserved, internal_port, suggested, lifetime_s = _REQUEST.unpack_from(data)
    transport = TRANSPORTS[opcode]
    state.journal.note(
        now,
        "nat-pmp",
        f"map {transport}",
        source,
        internal_port=internal_port,
        suggested_port=suggested,
        lifetime_s=lifetime_s,
    )
    if reserved:
        blame(f"reserved bits are 0x{reserved:04x}: they MUST be zero (RFC 6886, 3.3)")
    faults = state.faults.natpmp
    internal = TransportAddress(source.host, internal_port)
    result = faults.next_result(is_deletion=lifetime_s == 0)
    if lifetime_s == 0:
        return _delete(state, opcode, internal, suggested, result, now)
    if internal_port == 0:
        blame("a mapping of port 0")
        result = result or REFUSED
    if not result and not state.options.external_host:
        result = NETWORK_FAILURE
    if result:
        return _error(state, opcode | ANSWER, result, _PORTS.pack(internal_port, 0, 0), now)
    try:
        given_s = min(lifetime_s, state.options.max_lifetime_s)
        mapping = state.table.grant("nat-pmp", transport, internal, suggested, given_s, now)
    except TableFull:
        return _error(state, opcode | ANSWER, OUT_OF_RESOURCES, _PORTS.pack(internal_port, 0, 0), now)
    told = state.faults.mapping.told_lifetime_s
    told_s = mapping.lifetime_s(now) if told is None else told
    return _head(state, opcode | ANSWER, SUCCESS, now) + _PORTS.pack(internal_port, mapping.external_port, told_s)


def _delete(state: State, opcode: int, internal: TransportAddress, suggested: int, result: int, now: float) -> bytes:
    # 3.4. Destroying a Mapping
    blame = _Blame(state)
    if suggested:
        blame(f"a deletion suggests port {suggested}: it MUST be zero (RFC 6886, 3.4)")
    if result:
        return _error(state, opcode | ANSWER, result, _PORTS.pack(internal.port, 0, 0), now)
    transport = TRANSPORTS[opcode]
    if internal.port == 0:
        blame("all mappings of the host are deleted, other programs' as well")
        for each in state.table:
            if each.internal.host == internal.host and each.transport == transport and "nat-pmp" in each.protocols:
                state.table.delete(each)
    else:
        mapping = state.table.of(transport, internal, "nat-pmp")
        if mapping is not None:
            state.table.delete(mapping)
    # "The NAT gateway MUST respond to a request to destroy a mapping that does not exist as if … successful".
    return _head(state, opcode | ANSWER, SUCCESS, now) + _PORTS.pack(internal.port, 0, 0)


def _head(state: State, opcode: int, result: int, now: float) -> bytes:
    return _HEAD.pack(0, opcode, result, state.epoch.read(now))


def _error(state: State, opcode: int, result: int, rest: bytes, now: float) -> bytes:
    return _head(state, opcode, result, now) + (b"" if state.faults.natpmp.is_error_short else rest)


def _external(state: State) -> bytes:
    host = state.told_external_host()
    return ip_address(host or "0.0.0.0").packed


class _Blame:
    def __init__(self, state: State) -> None:
        self._journal = state.journal

    def __call__(self, what: str) -> None:
        self._journal.blame("nat-pmp", what)
