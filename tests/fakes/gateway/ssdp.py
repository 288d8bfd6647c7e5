"""What would an Internet gateway answer to this M-SEARCH? UPnP Device Architecture 1.1, 1.3. Pure."""

from __future__ import annotations

import re

from iceagent.net.address import TransportAddress
from tests.fakes.gateway.description import DESCRIPTION_PATH, device_types, service_types
from tests.fakes.gateway.state import State

__all__ = ["GROUPS", "answer"]

GROUPS = {4: "239.255.255.250", 6: "ff02::c"}
"""Where searches are multicast to, on port 1900."""

_KNOWN_HOSTS = frozenset(
    {"239.255.255.250:1900", "[ff02::c]:1900"},
)
_TARGET = re.compile(r"ssdp:all|upnp:rootdevice|uuid:\S+|urn:[A-Za-z0-9.-]+:(device|service):[A-Za-z0-9]+:[1-9]")
_FIELD = re.compile(r"([A-Za-z0-9.-]+):[ \t]*(.*?)[ \t]*")


def answer(
    state: State, data: bytes, source: TransportAddress, destination: TransportAddress, now: float
) -> list[bytes]:
    """What comes back, an answer for each device or service that fits, before any fault of the network.

    Args:
        state: of the gateway.
        data: what came to port 1900.
        source: who searches.
        destination: where it was sent to: the gateway itself, or a group.
        now: the time.
    """
    is_multicast = destination.ip.is_multicast
    fields = _parse(state, data)
    if fields is None:
        return []
    target = fields.get("ST", "")
    state.journal.note(now, "upnp", "M-SEARCH", source, target=target, is_multicast=is_multicast)
    _judge(state, fields, destination, is_multicast)
    faults = state.faults.ssdp
    if faults.ignores_multicast if is_multicast else faults.ignores_unicast:
        return []
    host = state.host_for(source)
    if source.version == 6 and state.options.http_host6 is not None:
        host = state.options.http_host6
    ours = [_answer(state, host, searched, usn) for searched, usn in _matches(state, target)]
    if not ours:
        return []
    others = [_other(state, host, target, number) for number in range(faults.others)]
    return [*others, *ours] if faults.are_others_first else [*ours, *others]


def _parse(state: State, data: bytes) -> dict[str, str] | None:
    """The header fields, by their names in capitals; ``None``: it is no search."""

    def blame(what: str) -> None:
        state.journal.blame("upnp", f"M-SEARCH: {what}")

    text = data.decode("latin-1")
    if not text.isascii():
        blame("bytes beyond ASCII")
    lines = text.split("\r\n")
    if lines[0] != "M-SEARCH * HTTP/1.1":
        blame(f"the first line is {lines[0][:40]!r}")
        return None
    if lines[-2:] != ["", ""] or "" in lines[:-2]:
        blame("it does not end with one empty line")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        match = _FIELD.fullmatch(line)
        if match is None:
            if line:
                blame(f"{line[:40]!r} is no header field")
        elif match[1].upper() in fields:
            blame(f"{match[1].upper()} twice")
        else:
            fields[match[1].upper()] = match[2]
    return fields


def _judge(state: State, fields: dict[str, str], destination: TransportAddress, is_multicast: bool) -> None:
    # 1.3.2 and 1.3.3; in version 1.0 there is no unicast search, and the group is the only HOST.
    def blame(what: str) -> None:
        state.journal.blame("upnp", f"M-SEARCH: {what}")

    hosts = {f"{destination}".lower()} if is_multicast else {*_KNOWN_HOSTS, str(destination)}
    if fields.get("HOST", "").lower() not in hosts:
        blame(f"HOST is {fields.get('HOST')!r}")
    if fields.get("MAN") != '"ssdp:discover"':
        blame(f"MAN is {fields.get('MAN')!r}")
    wait = fields.get("MX")
    # "REQUIRED" of multicast, and "should be between 1 and 5".
    if (wait is None and is_multicast) or (wait is not None and re.fullmatch("[1-5]", wait) is None):
        blame(f"MX is {wait!r}")
    if _TARGET.fullmatch(fields.get("ST", "")) is None:
        blame(f"ST is {fields.get('ST')!r}")


def _matches(state: State, target: str) -> list[tuple[str, str]]:
    """What fits: ST and USN. A device answers to a search for an older version of its type, with that version."""
    uuid = f"uuid:{state.options.uuid}"
    types = [*device_types(state), *service_types(state)]
    if target == "ssdp:all":
        plain = [("upnp:rootdevice", f"{uuid}::upnp:rootdevice"), (uuid, uuid)]
        return [*plain, *((each, f"{uuid}::{each}") for each in types)]
    if target == "upnp:rootdevice":
        return [(target, f"{uuid}::upnp:rootdevice")]
    if target == uuid:
        return [(uuid, uuid)]
    name, _, version = target.rpartition(":")
    for each in types:
        own_name, _, own_version = each.rpartition(":")
        if name == own_name and version.isdigit() and 1 <= int(version) <= int(own_version):
            return [(target, f"{uuid}::{target}")]
    return []


def _answer(state: State, host: str, target: str, usn: str) -> bytes:
    faults = state.faults.ssdp
    location = f"http://{TransportAddress(host, state.options.http_port)}{DESCRIPTION_PATH}"
    return _datagram(
        state,
        location if faults.location is None else faults.location,
        target if faults.st is None else faults.st,
        usn if faults.usn is None else faults.usn,
    )


def _other(state: State, host: str, target: str, number: int) -> bytes:
    """Of a device of which there is nothing but this, on a port that nobody listens on."""
    location = f"http://{TransportAddress(host, 40_000 + number % 20_000)}/device{number}.xml"
    uuid = f"5f0b6d2e-0000-4000-8000-1{number:011d}"
    return _datagram(state, location, target, f"uuid:{uuid}::{target}")


def _datagram(state: State, location: str, target: str, usn: str) -> bytes:
    faults = state.faults.ssdp
    fields = {
        "CACHE-CONTROL": "max-age=120",
        "EXT": "",
        "LOCATION": location,
        "SERVER": "Linux/5.10 UPnP/1.1 a-model/1.0",
        "ST": target,
        "USN": usn,
        "BOOTID.UPNP.ORG": "1",
        "CONFIGID.UPNP.ORG": "1",
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if name not in faults.without]
    return "\r\n".join([faults.status_line, *lines, "", ""]).encode("latin-1")
