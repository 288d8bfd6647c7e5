"""What do a probe's observations mean?

Pure. Mapping and filtering come from tests by RFC 5780, 4.3 and 4.4, where a server offers them; else the mapping alone
from what several servers saw of one socket. A server on this host itself says nothing about what is in front of it.

What can be expected is said towards a typical peer, one behind a NAT with endpoint-independent mapping and
address-and-port-dependent filtering (EIM, APDF).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import Interface
from iceagent.probe.portmap import mapped_rows, working_mapping
from iceagent.probe.report import (
    Allocation,
    InterfaceRow,
    NatReport,
    NotTested,
    Reflexive,
    RelayRow,
    RelayStatus,
    Report,
    ServerRow,
    ServerStatus,
)
from portmap.report import GatewayReport, ProtocolReport
from portmap.values import Trust

__all__ = [
    "Behaviour",
    "Findings",
    "Observation",
    "Outlook",
    "answering",
    "interface_rows",
    "is_own",
    "layers",
    "mapping_of",
    "nat",
    "outlook",
    "reflexive",
    "relays_of",
    "udp",
    "working_relay",
]

# Fewer new sockets than this show no pattern.
MIN_SAMPLES = 3
# A NAT that counts up gives ports to its other clients too while we look; a random one comes this near in one of 2,000
# pairs, and there are at least two pairs.
MAX_SEQUENTIAL_STEP = 32

_STRICTNESS = (Mapping.UNKNOWN, Mapping.NONE, Mapping.EIM, Mapping.ADM, Mapping.APDM)
_PERMISSIVENESS = (Filtering.UNKNOWN, Filtering.EIF, Filtering.ADF, Filtering.APDF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A server's answer.

    Attributes:
        base: our socket.
        server: who was asked.
        uri: the same, as it was named.
        mapped: what the server saw.
        rtt_ms: milliseconds; ``None`` where the request had to be repeated.
    """

    base: TransportAddress
    server: TransportAddress
    uri: str
    mapped: TransportAddress
    rtt_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the tests of RFC 5780 with one server gave.

    Attributes:
        version: 4 or 6.
        observations: what the server's addresses saw of one socket.
        how_mapping: what the mapping rests on, or why it is unknown; a sentence.
        how_filtering: the same of the filtering.
    """

    version: int
    mapping: Mapping
    filtering: Filtering
    observations: tuple[Observation, ...] = ()
    how_mapping: str = ""
    how_filtering: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that was observed.

    Attributes:
        interfaces: the host's.
        observations: answers of all servers, one socket per route.
        samples: answers of one server to new sockets, in the order of asking.
        behaviours: results of RFC 5780.
        servers: what became of each.
        is_embedded: no server was named.
    """

    interfaces: Sequence[Interface]
    observations: Sequence[Observation] = ()
    samples: Sequence[Observation] = ()
    behaviours: Sequence[Behaviour] = ()
    servers: Sequence[ServerRow] = ()
    is_embedded: bool = False


class Outlook(Enum):
    """What to expect towards a typical peer.

    Attributes:
        DIRECT: a direct path; with our own server alone: all that was tried worked.
        RELAY: a path, but only through a relay.
        NOTHING: no server could be reached over UDP, or there is no candidate to tell a peer; with our own server
            alone: something that was tried failed, or there was nothing to try.
    """

    DIRECT = "direct"
    RELAY = "relay"
    NOTHING = "nothing"


def is_own(host: str, interfaces: Iterable[Interface]) -> bool:
    """Whether an address is this host's: a loopback one, or one of its interfaces'."""
    if ip_address(host).is_loopback:
        return True
    return any(address.host == host for interface in interfaces for address in interface.addresses)


def interface_rows(interfaces: Iterable[Interface]) -> tuple[InterfaceRow, ...]:
    """The interfaces as they are reported."""
    return tuple(
        InterfaceRow(
            name=interface.name,
            addresses=tuple(address.host for address in interface.addresses),
            mtu=interface.mtu,
            kind=interface.kind.value,
            is_up=interface.is_up,
        )
        for interface in interfaces
    )


def reflexive(observations: Sequence[Observation]) -> tuple[Reflexive, ...]:
    """One row per address and server, fastest first."""
    seen = Counter(mapped for _, _, mapped in {(each.base, each.server, each.mapped) for each in observations})
    best: dict[tuple[TransportAddress, str], float | None] = {}
    for each in sorted(observations, key=lambda each: _or_infinite(each.rtt_ms)):
        best.setdefault((each.mapped, each.uri), each.rtt_ms)
    return tuple(
        Reflexive(address=address, server=uri, rtt_ms=rtt_ms, seen=seen[address])
        for (address, uri), rtt_ms in best.items()
    )


def udp(version: int, findings: Findings) -> bool | NotTested:
    """Whether a server answered over UDP and this IP version."""
    if findings.is_embedded:
        return NotTested(reason="no server outside this host")
    rows = [row for row in findings.servers if row.version == version]
    if any(row.status is ServerStatus.ANSWERED for row in rows):
        return True
    if any(row.status is ServerStatus.FAILED for row in rows):
        return False
    reasons = [row.reason for row in rows if row.reason]
    if not findings.servers:
        return NotTested(reason="no server was given that is asked over UDP")
    return NotTested(reason=reasons[0] if reasons else f"no server has an IPv{version} address")


def nat(findings: Findings) -> NatReport:
    """The NAT in front of us: of IPv4 where a server outside saw us over IPv4, else of IPv6."""
    evidence = list(_failures(findings.servers))
    outside = [each for each in findings.observations if not is_own(each.server.host, findings.interfaces)]
    version = min((each.server.version for each in outside), default=None)
    if version is None:
        reason = _why_nothing_outside(findings.servers)
        untested = NotTested(reason=reason)
        return NatReport(
            port_preservation=untested, allocation=untested, evidence=(reason, *_embedded(findings), *evidence)
        )
    sight = [each for each in outside if each.server.version == version]
    behaviours = [each for each in findings.behaviours if each.version == version]
    samples = [each for each in findings.samples if each.server.version == version]
    mapping, is_dependent, how_mapping = _mapping(sight, behaviours)
    filtering, how_filtering = _filtering(behaviours)
    return NatReport(
        mapping=mapping,
        filtering=filtering,
        port_preservation=all(each.mapped.port == each.base.port for each in (*sight, *samples)),
        allocation=_allocation(samples),
        evidence=(*_sightings(outside), *how_mapping, *how_filtering, *evidence),
        version=version,
        is_dependent=is_dependent,
    )


def layers(findings: Findings, portmap: tuple[GatewayReport, ...] | NotTested) -> int | NotTested:
    """How many NATs are in front of us: none where the outside sees an address of ours, else one at least. Two at least
    where a router says that its own outside is not what the outside sees, or is private.
    """
    mapped = [] if isinstance(portmap, NotTested) else [row for _, row in mapped_rows(portmap)]
    is_inner = any(row.trust in (Trust.PRIVATE, Trust.CARRIER) for row in mapped)
    outside = [each for each in findings.observations if not is_own(each.server.host, findings.interfaces)]
    if not outside:
        return 2 if is_inner else NotTested(reason=_why_nothing_outside(findings.servers))
    version = min(each.server.version for each in outside)
    sight = [each for each in outside if each.server.version == version]
    if all(is_own(each.mapped.host, findings.interfaces) for each in sight):
        return 0
    seen = {each.mapped.host for each in sight}
    told = {row.external.host for row in mapped if row.external is not None}
    return 2 if is_inner or (version == 4 and told and not told & seen) else 1


def outlook(report: Report) -> Outlook:
    """What can be expected towards a typical peer.

    IPv4 decides where it was tried, since a typical peer is behind an IPv4 NAT. An unknown mapping counts as a usual
    one: nothing speaks against it. A relay that works will do where nothing else does; where relays were tried in vain,
    there is none to fall back on.
    """
    if report.is_embedded:
        return _on_this_host(report)
    expected = _without_relays(report)
    if expected is Outlook.DIRECT or not report.candidates:
        return expected
    if working_relay(report) is not None:
        return Outlook.RELAY
    return Outlook.NOTHING if relays_of(report) else expected


def _on_this_host(report: Report) -> Outlook:
    asked = _asked(report)
    has_answered = bool(asked) and all(row.status is ServerStatus.ANSWERED for row in asked)
    has_relayed = all(row.status is RelayStatus.OK for row in relays_of(report))
    return Outlook.DIRECT if has_answered and has_relayed else Outlook.NOTHING


def _without_relays(report: Report) -> Outlook:
    asked, answered = _asked(report), answering(report)
    if not answered or not report.reflexive or not report.candidates:
        return Outlook.NOTHING
    is_ipv4_tried = any(row.version == 4 and row.is_outside for row in asked)
    is_ipv4_silent = is_ipv4_tried and all(row.version != 4 for row in answered)
    is_hard_to_reach = is_hard(report.nat) and mapping_of(report) is None
    return Outlook.RELAY if is_ipv4_silent or is_hard_to_reach else Outlook.DIRECT


def mapping_of(report: Report) -> tuple[GatewayReport, ProtocolReport] | None:
    """What lets strangers in whatever the NAT does: a router's mapping at an address that the outside sees."""
    if isinstance(report.portmap, NotTested):
        return None
    return working_mapping(report.portmap, [row.address for row in report.reflexive])


def relays_of(report: Report) -> list[RelayRow]:
    """Those that were tested."""
    rows = () if isinstance(report.relays, NotTested) else report.relays
    return [row for row in rows if row.status is not RelayStatus.NOT_TESTED]


def working_relay(report: Report) -> RelayRow | None:
    """The first that gave us an address, UDP's before the others (RFC 8656, 3.1 prefers it)."""
    rows = [row for row in relays_of(report) if row.status is RelayStatus.OK]
    return min(rows, key=lambda row: row.transport != "udp", default=None)


def answering(report: Report) -> list[ServerRow]:
    """The servers that answered: those outside this host where any was asked, else those on it."""
    asked = _asked(report)
    outside = [row for row in asked if row.is_outside]
    return [row for row in outside or asked if row.status is ServerStatus.ANSWERED]


def _asked(report: Report) -> list[ServerRow]:
    return [row for row in report.servers if row.status is not ServerStatus.NOT_ASKED]


def is_hard(report: NatReport) -> bool:
    """Whether a typical peer cannot be reached through this NAT.

    The peer lets in only what comes from the address it was told. A mapping that depends on the destination sends from
    another one, unless the peer's packet comes in first, which takes endpoint-independent filtering.
    """
    return report.is_dependent and report.filtering is not Filtering.EIF


def _or_infinite(rtt_ms: float | None) -> float:
    return float("inf") if rtt_ms is None else rtt_ms


def _why_nothing_outside(servers: Sequence[ServerRow]) -> str:
    if any(row.is_outside and row.status is ServerStatus.FAILED for row in servers):
        return "no server outside this host answered"
    return "no server outside this host"


def _embedded(findings: Findings) -> tuple[str, ...]:
    if not findings.is_embedded:
        return ()
    if not findings.servers:
        return ("none was named, and loopback is down: our own server has no address to run on",)
    return ("none was named: our own server on loopback was asked",)


def _failures(servers: Iterable[ServerRow]) -> list[str]:
    rows = [row for row in servers if row.status is not ServerStatus.ANSWERED]
    return [f"{row.uri}{'' if row.version is None else f' over IPv{row.version}'}: {row.reason}" for row in rows]


def _sightings(observations: Iterable[Observation]) -> list[str]:
    return [
        f"{each.uri} sees {each.base} as {'it is' if each.mapped == each.base else each.mapped}"
        for each in observations
    ]


Verdict = tuple[Mapping, bool, tuple[str, ...]]


def _mapping(sight: Sequence[Observation], behaviours: Sequence[Behaviour]) -> Verdict:
    """The mapping, whether it depends on the destination, and what that rests on.

    Of several tests' verdicts the strictest counts: behind several NATs, or several addresses of one, a server may not
    see what another one does.
    """
    if all(each.mapped == each.base for each in sight):
        return Mapping.NONE, False, ()
    compared = _compared([*sight, *(seen for each in behaviours for seen in each.observations)])
    tested = max((each.mapping for each in behaviours), key=_STRICTNESS.index, default=Mapping.UNKNOWN)
    if _STRICTNESS.index(tested) < _STRICTNESS.index(Mapping.EIM) or (tested is Mapping.EIM and compared[1]):
        return compared
    is_dependent = tested is not Mapping.EIM
    return tested, is_dependent, tuple(each.how_mapping for each in behaviours if each.mapping is tested)


def _compared(sight: Sequence[Observation]) -> Verdict:
    """The mapping from what several servers saw of one socket."""
    by_base: dict[TransportAddress, list[Observation]] = {}
    for each in sight:
        by_base.setdefault(each.base, []).append(each)
    verdicts = [_of_one_base(each) for each in by_base.values()]
    for wanted in ("port", "host", "same"):
        if wanted in verdicts:
            return _VERDICTS[wanted]
    return _VERDICTS["one"]


# From the comparison to mapping, dependence and evidence.
_VERDICTS: dict[str, Verdict] = {
    "port": (Mapping.APDM, True, ("two ports of one server see one socket at different addresses",)),
    "host": (
        Mapping.UNKNOWN,
        True,
        ("servers at different hosts see one socket at different addresses: the mapping is ADM or APDM",),
    ),
    "same": (Mapping.EIM, False, ("servers at different hosts see one socket at the same address",)),
    "one": (Mapping.UNKNOWN, False, ("the mapping shows only to two servers at different hosts, or by RFC 5780",)),
}


def _of_one_base(sight: Sequence[Observation]) -> str:
    mapped_by_host: dict[str, set[TransportAddress]] = {}
    for each in sight:
        mapped_by_host.setdefault(each.server.host, set()).add(each.mapped)
    if any(len(mapped) > 1 for mapped in mapped_by_host.values()):
        return "port"
    if len(mapped_by_host) < 2:
        return "one"
    return "same" if len({each.mapped for each in sight}) == 1 else "host"


def _filtering(behaviours: Sequence[Behaviour]) -> tuple[Filtering, tuple[str, ...]]:
    """The most permissive that was seen: what came through is proof, what did not may be the server's fault."""
    known = [each.filtering for each in behaviours if each.filtering is not Filtering.UNKNOWN]
    filtering = min(known, key=_PERMISSIVENESS.index, default=Filtering.UNKNOWN)
    return filtering, tuple(each.how_filtering for each in behaviours if each.filtering is filtering)


def _allocation(samples: Sequence[Observation]) -> Allocation | NotTested:
    if len(samples) < MIN_SAMPLES:
        return NotTested(reason=f"{len(samples)} new sockets got an answer, {MIN_SAMPLES} are needed")
    if all(each.mapped.port == each.base.port for each in samples):
        return Allocation.PRESERVED
    ports = [each.mapped.port for each in samples]
    steps = [later - earlier for earlier, later in pairwise(ports)]
    is_counting = all(0 < step <= MAX_SEQUENTIAL_STEP for step in steps)
    return Allocation.SEQUENTIAL if is_counting else Allocation.RANDOM
