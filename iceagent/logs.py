"""How does an event become a log line, or a line of JSON?

One table, class → :class:`Line`: the level, the name ``noun.verb``, and the values as keywords. No passwords, no
payload. debug: per packet and per candidate; info: at most ten lines per session; warning: someone should act. Only the
command line configures structlog; an application that wants these lines calls :func:`log_event` with what
``Agent.events`` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog

from iceagent.candidate import Candidate
from iceagent.events import (
    AgentState,
    BaseFailed,
    BetterPathSought,
    DataReceived,
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    MachineSlept,
    NetworkChanged,
    Nominated,
    PacketDropped,
    Path,
    PathDiagnosed,
    PathDoubted,
    PathTrusted,
    PeerClosed,
    PortMapped,
    PortMappingLost,
    PortMappingUnavailable,
    RelayLost,
    RelayMoved,
    RelayRefused,
    RelaySilent,
    RemoteCandidateAdded,
    RemoteCandidateRefused,
    RerollDue,
    RestartAdvised,
    RoleChanged,
    SelectedPathChanged,
    ServerFailed,
    StateChanged,
)
from iceagent.net.address import TransportAddress

__all__ = ["Line", "describe", "log_event", "register"]


class Line(NamedTuple):
    """An event in words.

    Attributes:
        level: ``debug``, ``info`` or ``warning``.
        name: ``noun.verb``.
        fields: values that JSON knows; addresses as ``host:port``, milliseconds in fields that end in ``_ms``.
    """

    level: str
    name: str
    fields: dict[str, Any]


Describer = Callable[[Any], Line]

_IN_ORDER = frozenset({"the peer has closed"})


def describe(event: Event) -> Line:
    """The line for an event; a class without one is its own name, at debug."""
    for kind in type(event).__mro__:
        describer = _TABLE.get(kind)
        if describer is not None:
            return describer(event)
    return Line("debug", type(event).__name__, {})


def log_event(event: Event, logger: Any = None) -> None:
    """Write the line for an event to ``logger``, by default structlog's ``iceagent``."""
    line = describe(event)
    target = structlog.get_logger("iceagent") if logger is None else logger
    getattr(target, line.level)(line.name, **line.fields)


def register(table: Mapping[type[Event], Describer]) -> None:
    """Add the lines for another package's events."""
    _TABLE.update(table)


def _candidate(candidate: Candidate, **more: Any) -> dict[str, Any]:
    return {
        "candidate": candidate.to_sdp(),
        "type": candidate.type.value,
        "address": str(candidate.address),
        **more,
    }


def _selected(event: SelectedPathChanged) -> Line:
    path = event.new
    if path is None:
        return Line(_level(event.reason), "path.lost", {"component": event.component, "reason": event.reason})
    return Line("info", "path.selected", {**_path(path), "reason": event.reason, "rtt_ms": _ms(path.rtt_ms)})


def _of_path(event: PathDoubted | PathTrusted) -> dict[str, Any]:
    path = {} if event.path is None else _path(event.path)
    return {**path, "component": event.component, "reason": event.reason}


def _path(path: Path) -> dict[str, Any]:
    return {
        "local": _end(path.local),
        "remote": _end(path.remote),
        "kind": path.kind,
        "component": path.component,
    }


def _end(candidate: Candidate) -> dict[str, str]:
    return {"type": candidate.type.value, "address": str(candidate.address)}


def _state(event: StateChanged) -> Line:
    level = _level(event.reason) if event.new in (AgentState.FAILED, AgentState.DISCONNECTED) else "info"
    return Line(level, "state.changed", {"old": event.old.value, "new": event.new.value, "reason": event.reason})


def _level(reason: str) -> str:
    """Of a loss: nobody has to act because the peer says goodbye."""
    return "info" if reason in _IN_ORDER else "warning"


def _dropped(event: PacketDropped) -> Line:
    fields = {"base": str(event.base), "source": str(event.source), "reason": event.reason, "size": event.size}
    return Line("debug", "packet.dropped", fields)


def _data(event: DataReceived) -> Line:
    fields = {"component": event.component, "source": str(event.source), "size": len(event.data)}
    return Line("debug", "data.received", fields)


def _ms(value: float | None) -> float | None:
    """Milliseconds, to the microsecond."""
    return None if value is None else round(value, 3)


def _text(address: TransportAddress | None) -> str | None:
    return None if address is None else str(address)


# fmt: off
_TABLE: dict[type, Describer] = {
    LocalCandidateFound: lambda e: Line("debug", "candidate.local", _candidate(e.candidate, via=e.candidate.origin)),
    RemoteCandidateAdded: lambda e: Line("debug", "candidate.remote", _candidate(e.candidate, via=e.via)),
    RemoteCandidateRefused: lambda e: Line("debug", "candidate.refused", _candidate(e.candidate, reason=e.reason)),
    GatheringDone: lambda e: Line("info", "gathering.done", {"count": e.count, "elapsed_ms": _ms(e.elapsed_ms)}),
    BaseFailed: lambda e: Line(
        "warning", "base.failed", {"host": e.host, "interface": e.interface, "reason": e.reason}
    ),
    ServerFailed: lambda e: Line(
        "warning", "server.failed", {"server": e.server, "base": _text(e.base), "reason": e.reason}
    ),
    RelayLost: lambda e: Line(
        "warning", "relay.lost", {"server": e.server, "relayed": list(map(str, e.relayed)), "reason": e.reason}
    ),
    RelayMoved: lambda e: Line(
        "info", "relay.moved", {"server": e.server, "relayed": list(map(str, e.relayed)), "base": str(e.base)}
    ),
    RelaySilent: lambda e: Line(
        "warning", "relay.silent", {"server": e.server, "relayed": list(map(str, e.relayed))}
    ),
    RelayRefused: lambda e: Line(
        "info", "relay.refused", {"server": e.server, "host": e.host, "reason": e.reason}
    ),
    StateChanged: _state,
    SelectedPathChanged: _selected,
    Nominated: lambda e: Line(
        "debug",
        "path.nominated",
        {} if e.path is None else {"local": str(e.path.local.address), "remote": str(e.path.remote.address)},
    ),
    BetterPathSought: lambda e: Line("debug", "path.sought", {"component": e.component}),
    PathDoubted: lambda e: Line("info", "path.doubted", _of_path(e)),
    PathTrusted: lambda e: Line("info", "path.trusted", _of_path(e)),
    PathDiagnosed: lambda e: Line(
        "info",
        "path.diagnosed",
        {"component": e.component, "base": str(e.base), "cause": e.cause.value, "reason": e.reason},
    ),
    PeerClosed: lambda e: Line("info", "peer.closed", {"reason": e.reason}),
    MachineSlept: lambda e: Line("info", "machine.slept", {"seconds": round(e.seconds, 3)}),
    RestartAdvised: lambda e: Line("warning", "restart.advised", {"component": e.component, "reason": e.reason}),
    RoleChanged: lambda e: Line(
        "info", "role.changed", {"role": "controlling" if e.controlling else "controlled", "reason": e.reason}
    ),
    IceRestarted: lambda e: Line("info", "ice.restarted", {"by_peer": e.by_peer}),
    RerollDue: lambda e: Line("info", "base.rerolled", {"component": e.component, "base": str(e.base)}),
    PortMapped: lambda e: Line(
        "info",
        "portmap.mapped",
        {
            "protocol": e.protocol,
            "internal": str(e.internal),
            "external": str(e.external),
            "lifetime_s": e.lifetime_s,
            "gateway": e.gateway,
            "trust": e.trust,
        },
    ),
    PortMappingLost: lambda e: Line(
        "info", "portmap.lost", {"internal": str(e.internal), "external": str(e.external), "reason": e.reason}
    ),
    PortMappingUnavailable: lambda e: Line(
        "debug", "portmap.unavailable", {"internal": str(e.internal), "reasons": dict(e.reasons)}
    ),
    NetworkChanged: lambda e: Line("info", "network.changed", {"added": list(e.added), "removed": list(e.removed)}),
    PacketDropped: _dropped,
    DataReceived: _data,
}
# fmt: on
