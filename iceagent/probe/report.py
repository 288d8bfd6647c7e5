"""What does a probe report?

One value, :class:`Report`, schema 1. :meth:`Report.as_json` has every key always: what was not tested is an object with
``"status": "not-tested"`` and a reason.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress
from iceagent.probe.portmap import json_name, portmap_json
from portmap.report import GatewayReport, ProtocolReport
from portmap.values import PROTOCOLS

__all__ = [
    "SCHEMA",
    "Allocation",
    "InterfaceRow",
    "NatReport",
    "NotTested",
    "Reflexive",
    "RelayRow",
    "RelayStatus",
    "Report",
    "ServerRow",
    "ServerStatus",
]

SCHEMA = 1
"""Raised when a key goes away or changes its meaning; new keys do not raise it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTested:
    """Stands where a result would stand.

    Attributes:
        reason: why there is none, a phrase for a person.
    """

    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"status": "not-tested", "reason": self.reason}


class Allocation(Enum):
    """How the NAT chooses outside ports, as far as a handful of new sockets shows.

    Attributes:
        PRESERVED: the inside port is kept.
        SEQUENTIAL: each is a little above the last, so the next one can be guessed.
        RANDOM: neither.
    """

    PRESERVED = "preserved"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


class ServerStatus(Enum):
    """What became of a server that was named.

    Attributes:
        ANSWERED: it told us our address.
        FAILED: it was asked, or its name was, and nothing useful came back.
        NOT_ASKED: it cannot be asked by this probe, or not from this host.
    """

    ANSWERED = "answered"
    FAILED = "failed"
    NOT_ASKED = "not-asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """One server at one IP version.

    Attributes:
        uri: as it was named.
        version: 4 or 6; ``None``: it did not come to that.
        is_outside: not an address of this host.
        reason: why it is not :attr:`ServerStatus.ANSWERED`; empty if it is.
    """

    uri: str
    version: int | None
    status: ServerStatus
    is_outside: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRow:
    """A network interface.

    Attributes:
        addresses: IP addresses in the kernel's order.
        mtu: bytes.
        kind: a value of :class:`iceagent.net.host.InterfaceKind`.
        is_up: administratively up and with carrier; not part of the JSON.
    """

    name: str
    addresses: tuple[str, ...]
    mtu: int
    kind: str
    is_up: bool = True

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "addresses": list(self.addresses), "mtu": self.mtu, "kind": self.kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflexive:
    """An address of ours as a server saw it.

    Attributes:
        server: its URI.
        rtt_ms: milliseconds; ``None`` where the request had to be repeated.
        seen: in how many answers of this probe, of any server, this address was.
    """

    address: TransportAddress
    server: str
    rtt_ms: float | None
    seen: int

    def as_json(self) -> dict[str, Any]:
        rtt_ms = _rounded(self.rtt_ms)
        return {"address": str(self.address), "server": self.server, "rtt_ms": rtt_ms, "seen": self.seen}


class RelayStatus(Enum):
    """What became of a way to a TURN server.

    Attributes:
        OK: it gave us a relayed address; that was given back. Where data was sent through, that came back, too.
        REFUSED: it (or a proxy before it) answered, and gave none; or the way cannot be used.
        NO_ANSWER: nothing came that answers us, or data that was sent through did not come back.
        NOT_TESTED: it was not asked.
    """

    OK = "ok"
    REFUSED = "refused"
    NO_ANSWER = "no-answer"
    NOT_TESTED = "not-tested"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRow:
    """One URL of a TURN server over one transport.

    Attributes:
        server: the URL, as it was named.
        transport: between us and the server: ``udp``, ``tcp``, ``tls`` or ``dtls``.
        rtt_ms: milliseconds from the last Allocate request to its answer; ``None``: there is none, or it was repeated.
        relayed: one address, or one of each family.
        reason: why there is none, or why it is of no use; or, if there is one, what else was refused; may be empty.
        data_rtt_ms: milliseconds of a datagram through the relay and back; ``None``: none was sent, or none came. One
            is sent through our own server only.
        mobility: whether the server gives a ticket, with which the relayed address stays ours when our own one changes
            (RFC 8016); ``None``: it gave no relayed address.
    """

    server: str
    transport: str
    status: RelayStatus
    rtt_ms: float | None = None
    relayed: tuple[TransportAddress, ...] = ()
    reason: str = ""
    data_rtt_ms: float | None = None
    mobility: bool | None = None

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{self.server} over {self.transport.upper()}"

    def as_json(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "transport": self.transport,
            "status": self.status.value,
            "rtt_ms": _rounded(self.rtt_ms),
            # Of two, IPv4's: it comes first.
            "relayed": str(self.relayed[0]) if self.relayed else None,
            "relayed_all": [str(address) for address in self.relayed],
            "reason": self.reason or None,
            "data_rtt_ms": _rounded(self.data_rtt_ms),
            "mobility": self.mobility,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NatReport:
    """The NAT or firewall in front of us, in the words of RFC 4787.

    Attributes:
        version: 4 or 6, the IP version that was looked at; ``None``: neither.
        is_dependent: the outside address depends on the destination (ADM or APDM, also where it is unknown which).
        port_preservation: whether the outside port is the inside one (RFC 4787, 4.2.1).
        allocation: how outside ports are chosen.
        evidence: a sentence for each observation that the other values rest on.
    """

    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    port_preservation: bool | NotTested
    allocation: Allocation | NotTested
    evidence: tuple[str, ...] = ()
    version: int | None = None
    is_dependent: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "mapping": self.mapping.value,
            "filtering": self.filtering.value,
            "port_preservation": _json(self.port_preservation),
            "allocation": _json(self.allocation),
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one probe found out.

    Attributes:
        interfaces: in the system's order.
        candidates: SDP lines, from ``candidate:`` on.
        udp: by IP version, 4 and 6: whether a server answered over UDP.
        reflexive: fastest first.
        nat: see :class:`NatReport`.
        layers: NATs in front of us: at least so many.
        portmap: of each router that a default route leads to.
        nat64: by this version, always :class:`NotTested`.
        relays: in the order of the servers that were named; of our own one, where it was asked.
        duration_ms: milliseconds.
        servers: what became of each server; not part of the JSON, where ``nat.evidence`` has the failures.
        is_embedded: no server was named, our own on loopback was asked.
        advice: sentences that a person can act on (``advice.py``).
    """

    interfaces: tuple[InterfaceRow, ...]
    candidates: tuple[str, ...]
    udp: MappingType[int, bool | NotTested]
    reflexive: tuple[Reflexive, ...]
    nat: NatReport
    layers: int | NotTested
    portmap: tuple[GatewayReport, ...] | NotTested = field(default=NotTested(reason="no router was asked"))
    relays: tuple[RelayRow, ...] | NotTested = field(default=NotTested(reason="no TURN server was given"))
    nat64: NotTested = field(default=NotTested(reason="NAT64 discovery is not part of this version"))
    duration_ms: float = 0.0
    servers: tuple[ServerRow, ...] = ()
    is_embedded: bool = False
    advice: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All keys of schema 1, JSON types only."""
        return {
            "schema": SCHEMA,
            "interfaces": [row.as_json() for row in self.interfaces],
            "candidates": list(self.candidates),
            "udp": {"ipv4": _json(self.udp[4]), "ipv6": _json(self.udp[6])},
            "reflexive": [row.as_json() for row in self.reflexive],
            "nat": self.nat.as_json(),
            "portmap": _portmap(self.portmap),
            "relays": _relays(self.relays),
            "nat64": {"prefix": None, "how": None, **self.nat64.as_json()},
            "layers": _json(self.layers),
            "advice": list(self.advice),
            "duration_ms": round(self.duration_ms, 1),
        }


def _relays(relays: tuple[RelayRow, ...] | NotTested) -> list[dict[str, Any]]:
    if isinstance(relays, NotTested):
        nobody = RelayRow(server="", transport="", status=RelayStatus.NOT_TESTED)
        return [{**nobody.as_json(), "server": None, "transport": None, **relays.as_json()}]
    return [row.as_json() for row in relays]


def _rounded(time_ms: float | None) -> float | None:
    """To the microsecond."""
    return None if time_ms is None else round(time_ms, 3)


def _portmap(portmap: tuple[GatewayReport, ...] | NotTested) -> dict[str, Any]:
    if isinstance(portmap, NotTested):
        rows = [ProtocolReport(protocol=name, status="not-tested", reason=portmap.reason) for name in PROTOCOLS]
        return {json_name(row.protocol): {**row.as_json(), "gateway": None} for row in rows}
    return portmap_json(portmap)


def _json(value: bool | int | Enum | NotTested) -> Any:
    if isinstance(value, NotTested):
        return value.as_json()
    return value.value if isinstance(value, Enum) else value
