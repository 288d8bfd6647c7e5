"""What do the actions of a UPnP Internet gateway do? Pure.

WANIPConnection and WANPPPConnection: status, external address, port mappings. WANIPv6FirewallControl: pinholes.
Besides what the specifications forbid, this judges what no client of ours should do although it may: a wildcard port,
a mapping for another host, a description with characters that routers stumble over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from iceagent.net.address import TransportAddress, canonical_host
from portmap.values import Transport
from tests.fakes.gateway.description import Service
from tests.fakes.gateway.state import State
from tests.fakes.gateway.table import PortMapping, TableFull

__all__ = ["MAX_LEASE_S", "UpnpError", "perform"]

INVALID_ARGS, ACTION_FAILED, NOT_AUTHORIZED = 402, 501, 606
INDEX_INVALID, NO_SUCH_ENTRY, WILDCARD_PORT = 713, 714, 716
CONFLICT, SAME_PORTS, PORT_WILDCARD_ONLY, NO_PORTS = 718, 724, 727, 728
PINHOLES_FULL, NO_SUCH_PINHOLE, PINHOLE_PROTOCOL = 701, 704, 705

MAX_LEASE_S = 604_800
"""What an IGD 2 makes of lease 0, and its longest. (RFC 6970, 4.1, of IGD 2.)"""

MAX_PINHOLE_S = 86_400
TRANSPORTS: dict[str, Transport] = {"UDP": "udp", "TCP": "tcp"}
PINHOLE_TRANSPORTS: dict[str, Transport] = {"17": "udp", "6": "tcp"}

_DESCRIPTION = re.compile(r"[A-Za-z0-9 ._-]{1,64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")

Arguments = dict[str, str]


class UpnpError(Exception):
    """An action fails.

    Attributes:
        code: of the error.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Call(NamedTuple):
    """One call of an action."""

    state: State
    service: Service
    arguments: Arguments
    source: TransportAddress | None
    now: float

    def blame(self, what: str) -> None:
        self.state.journal.blame("upnp", what)

    def number(self, name: str, highest: int) -> int:
        """A number as the client should write it."""
        text = self.arguments[name]
        if _NUMBER.fullmatch(text) is None or int(text) > highest:
            self.blame(f"{name} is {text!r}: it is a number of 0 to {highest}")
            raise UpnpError(INVALID_ARGS)
        return int(text)


def perform(
    state: State, service: Service, name: str, arguments: Arguments, source: TransportAddress | None, now: float
) -> Arguments:
    """Do it; the output arguments.

    Args:
        state: of the gateway; mappings change.
        service: whose action it is.
        name: of the action: one of the service's.
        arguments: all of the action's.
        source: who asks; ``None``: nobody knows.
        now: the time.

    Raises:
        UpnpError: it fails.
    """
    return _ACTIONS[name](_Call(state, service, arguments, source, now))


def _status_info(call: _Call) -> Arguments:
    status = call.state.faults.soap.status if call.service.is_connected else "Disconnected"
    uptime = str(call.state.epoch.read(call.now))
    return {"NewConnectionStatus": status, "NewLastConnectionError": "ERROR_NONE", "NewUptime": uptime}


def _external_address(call: _Call) -> Arguments:
    told = call.state.told_external_host() if call.service.is_connected else ""
    return {"NewExternalIPAddress": told}


def _add_port_mapping(call: _Call) -> Arguments:
    wanted = _wanted(call)
    if wanted.external_port == 0:
        call.blame("external port 0, which would be all of them")
        raise UpnpError(WILDCARD_PORT)
    mapping = _grant_at(call, wanted, wanted.external_port)
    if mapping is None:
        raise UpnpError(CONFLICT)
    mapping.description = wanted.description
    return {}


def _add_any_port_mapping(call: _Call) -> Arguments:
    wanted = _wanted(call)
    if wanted.external_port == 0:
        call.blame("external port 0, which would be all of them")
        raise UpnpError(WILDCARD_PORT)
    table = call.state.table
    faults = table.faults
    found = table.at(wanted.transport, wanted.external_port)
    is_ours = found is not None and found.internal.host == wanted.internal.host
    is_moved = faults.external_port is not None or (is_ours and faults.is_renewed_elsewhere)
    mapping = None if is_moved else _grant_at(call, wanted, wanted.external_port)
    if mapping is None:
        if found is not None and is_ours:
            table.delete(found)
        try:
            mapping = table.grant(
                "upnp", wanted.transport, wanted.internal, wanted.external_port + is_moved, wanted.lease_s, call.now
            )
        except TableFull:
            raise UpnpError(NO_PORTS) from None
    mapping.description = wanted.description
    return {"NewReservedPort": str(mapping.external_port)}


class _Wanted(NamedTuple):
    """What is asked for. ``lease_s``: ``None`` is for ever."""

    transport: Transport
    external_port: int
    internal: TransportAddress
    description: str
    lease_s: int | None


def _wanted(call: _Call) -> _Wanted:
    """Read and judge what the two actions that map have in common.

    Raises:
        UpnpError: by it, or by a fault.
    """
    arguments, state = call.arguments, call.state
    faults = state.faults.soap
    transport = _transport(call)
    external_port = call.number("NewExternalPort", 65535)
    internal = _internal(call, "NewInternalClient", call.number("NewInternalPort", 65535), version=4)
    lease_s = call.number("NewLeaseDuration", 0xFFFFFFFF)
    if arguments["NewEnabled"] != "1":
        call.blame(f"NewEnabled is {arguments['NewEnabled']!r}")
    if _DESCRIPTION.fullmatch(arguments["NewPortMappingDescription"]) is None:
        call.blame(f"the description is {arguments['NewPortMappingDescription'][:80]!r}")
    if not call.service.is_connected or not state.options.external_host:
        raise UpnpError(ACTION_FAILED)
    if faults.permanent_only is not None and lease_s:
        raise UpnpError(faults.permanent_only)
    if faults.same_ports_only and external_port != internal.port:
        raise UpnpError(SAME_PORTS)
    if faults.wildcard_only:
        raise UpnpError(PORT_WILDCARD_ONLY)
    description = arguments["NewPortMappingDescription"]
    return _Wanted(transport, external_port, internal, description, _given(state, lease_s))


def _given(state: State, lease_s: int) -> int | None:
    if state.options.igd_version == 1:
        return lease_s or None
    return min(lease_s or MAX_LEASE_S, MAX_LEASE_S)


def _transport(call: _Call) -> Transport:
    text = call.arguments["NewProtocol"]
    if call.arguments["NewRemoteHost"]:
        call.blame(f"NewRemoteHost is {call.arguments['NewRemoteHost']!r}: peers may come from anywhere")
    if text not in TRANSPORTS:
        call.blame(f"NewProtocol is {text!r}")
        raise UpnpError(INVALID_ARGS)
    return TRANSPORTS[text]


def _internal(call: _Call, name: str, port: int, *, version: int) -> TransportAddress:
    text = call.arguments[name]
    try:
        internal = TransportAddress(canonical_host(text), port)
    except ValueError:
        internal = TransportAddress("0.0.0.0", port)
    if internal.host != text or internal.version != version or port == 0:
        call.blame(f"the internal client is {text!r} with port {port}")
        raise UpnpError(INVALID_ARGS)
    if call.source is not None and call.source.host != internal.host:
        call.blame(f"{call.source.host} asks for a mapping to {internal.host}")
        if call.state.options.is_secure:
            raise UpnpError(NOT_AUTHORIZED)
    return internal


def _grant_at(call: _Call, wanted: _Wanted, external_port: int) -> PortMapping | None:
    try:
        return call.state.table.grant_at(wanted.transport, wanted.internal, external_port, wanted.lease_s, call.now)
    except TableFull:
        raise UpnpError(NO_PORTS) from None


def _delete_port_mapping(call: _Call) -> Arguments:
    state = call.state
    found = state.table.at(_transport(call), call.number("NewExternalPort", 65535))
    if found is None:
        if state.options.delete_absent_code:
            raise UpnpError(state.options.delete_absent_code)
        return {}
    if call.source is not None and found.internal.host != call.source.host:
        call.blame(f"{call.source.host} deletes a mapping to {found.internal.host}")
        raise UpnpError(NOT_AUTHORIZED)
    if not state.faults.soap.forgets_delete:
        state.table.delete(found)
    return {}


def _specific_entry(call: _Call) -> Arguments:
    found = call.state.table.at(_transport(call), call.number("NewExternalPort", 65535))
    if found is None:
        raise UpnpError(NO_SUCH_ENTRY)
    return _entry(found, call.now)


def _generic_entry(call: _Call) -> Arguments:
    index = call.number("NewPortMappingIndex", 65535)
    listed = [each for each in call.state.table if each.internal.version == 4]
    if index >= len(listed):
        raise UpnpError(INDEX_INVALID)
    found = listed[index]
    key = {"NewRemoteHost": "", "NewExternalPort": str(found.external_port), "NewProtocol": found.transport.upper()}
    return key | _entry(found, call.now)


def _entry(found: PortMapping, now: float) -> Arguments:
    return {
        "NewInternalPort": str(found.internal.port),
        "NewInternalClient": found.internal.host,
        "NewEnabled": "1",
        "NewPortMappingDescription": found.description,
        "NewLeaseDuration": str(found.lifetime_s(now)),
    }


def _firewall_status(call: _Call) -> Arguments:
    return {"FirewallEnabled": "1", "InboundPinholeAllowed": "1"}


def _add_pinhole(call: _Call) -> Arguments:
    arguments = call.arguments
    if arguments["RemoteHost"] or call.number("RemotePort", 65535):
        call.blame(f"the remote peer is {arguments['RemoteHost']!r}: peers may come from anywhere")
    transport = PINHOLE_TRANSPORTS.get(arguments["Protocol"])
    if transport is None:
        call.blame(f"Protocol is {arguments['Protocol']!r}: of a pinhole, it is IANA's number")
        raise UpnpError(PINHOLE_PROTOCOL)
    internal = _internal(call, "InternalClient", call.number("InternalPort", 65535), version=6)
    lease_s = _pinhole_lease(call, "LeaseTime")
    try:
        pinhole = call.state.table.grant("upnp", transport, internal, internal.port, lease_s, call.now)
    except TableFull:
        raise UpnpError(PINHOLES_FULL) from None
    return {"UniqueID": str(pinhole.number)}


def _update_pinhole(call: _Call) -> Arguments:
    pinhole = _pinhole(call)
    call.state.table.renew(pinhole, "upnp", _pinhole_lease(call, "NewLeaseTime"), call.now)
    return {}


def _delete_pinhole(call: _Call) -> Arguments:
    pinhole = _pinhole(call)
    if not call.state.faults.soap.forgets_delete:
        call.state.table.delete(pinhole)
    return {}


def _pinhole(call: _Call) -> PortMapping:
    found = call.state.table.numbered(call.number("UniqueID", 65535))
    if found is None or found.internal.version == 4:
        raise UpnpError(NO_SUCH_PINHOLE)
    if call.source is not None and found.internal.host != call.source.host:
        call.blame(f"{call.source.host} changes a pinhole to {found.internal.host}")
        raise UpnpError(NOT_AUTHORIZED)
    return found


def _pinhole_lease(call: _Call, name: str) -> int:
    lease_s = call.number(name, 0xFFFFFFFF)
    if not 1 <= lease_s <= MAX_PINHOLE_S:
        call.blame(f"{name} is {lease_s}: of a pinhole, it is 1 to 86,400")
        raise UpnpError(INVALID_ARGS)
    return lease_s


_ACTIONS: dict[str, Callable[[_Call], Arguments]] = {
    "GetStatusInfo": _status_info,
    "GetExternalIPAddress": _external_address,
    "AddPortMapping": _add_port_mapping,
    "AddAnyPortMapping": _add_any_port_mapping,
    "DeletePortMapping": _delete_port_mapping,
    "GetSpecificPortMappingEntry": _specific_entry,
    "GetGenericPortMappingEntry": _generic_entry,
    "GetFirewallStatus": _firewall_status,
    "AddPinhole": _add_pinhole,
    "UpdatePinhole": _update_pinhole,
    "DeletePinhole": _delete_pinhole,
}
