"""What has happened to an agent, in short?

A ring of the last 64 changes of its state, its paths, its network and its peer: what a person asks for when it is too
late to listen to events. Every agent has one, most never read it, so it is kept small: some 50 bytes a change. The
*ring* is one tuple: all times, packed into bytes, and then three places for each change: its name and its reason, which
agents share, and both ends of its path. A change makes a new tuple, for changes are rare. :func:`entries` makes words
of it.

Pure: a function that takes a ring and gives one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from iceagent.candidate import Candidate
from iceagent.events import (
    Event,
    IceRestarted,
    MachineSlept,
    NetworkChanged,
    Path,
    PathDiagnosed,
    PathDoubted,
    PathTrusted,
    PeerClosed,
    RelayLost,
    RelayMoved,
    RelaySilent,
    RestartAdvised,
    RoleChanged,
    SelectedPathChanged,
    StateChanged,
)

__all__ = ["EMPTY", "MAX_ENTRIES", "HistoryEntry", "Ring", "entries", "newest_name", "noted"]

MAX_ENTRIES = 64

Ring = tuple[Any, ...]
"""See above; opaque to everybody else."""

EMPTY: Ring = (b"",)

_TIME = struct.Struct("=d")
_PLACES = 3
# Reasons have numbers in them: those that were not seen lately are not shared.
_MAX_SHARED = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One change.

    Attributes:
        at: when, in seconds of the host's monotonic clock (``time.monotonic()``, unless a host was given).
        event: its name, ``noun.verb``, as in log lines and in the JSON of ``iceagent connect``.
        reason: why, or what, for a person.
        path: both ends of the path it is about, ours first; empty where it is about none.
    """

    at: float
    event: str
    reason: str
    path: str

    def __str__(self) -> str:
        return f"{self.event}: {self.reason}{f' ({self.path})' if self.path else ''}"


def noted(ring: Ring, event: Event, at: float) -> Ring:
    """A ring with one more change in it; the oldest one goes where there are 64 already.

    Args:
        ring: :data:`EMPTY`, or what this gave before; it stays as it is.
        event: one that is no change leaves the ring as it is.
        at: seconds.
    """
    describer = _TABLE.get(type(event))
    if describer is None:
        return ring
    name, reason, path = describer(event)
    times, *facts = ring
    times += _TIME.pack(at)
    facts += (_shared(name, reason), *(path or (None, None)))
    return times[-MAX_ENTRIES * _TIME.size :], *facts[-MAX_ENTRIES * _PLACES :]


def newest_name(ring: Ring) -> str:
    """What the last change in a ring is called, which has one."""
    name: str = ring[-_PLACES][0]
    return name


def entries(ring: Ring) -> list[HistoryEntry]:
    """The changes in a ring, the newest one last."""
    times, *facts = ring
    found = []
    for number, (at,) in enumerate(_TIME.iter_unpack(times)):
        (name, reason), local, remote = facts[number * _PLACES : (number + 1) * _PLACES]
        path = "" if local is None else f"{_end(local)} → {_end(remote)}"
        found.append(HistoryEntry(at=at, event=name, reason=reason, path=path))
    return found


def _end(candidate: Candidate) -> str:
    return f"{candidate.type.value} {candidate.address}"


@lru_cache(maxsize=_MAX_SHARED)
def _shared(name: str, reason: str) -> tuple[str, str]:
    return name, reason


Ends = tuple[Candidate, Candidate]
Told = tuple[str, str, Ends | None]


def _ends(path: Path | None) -> Ends | None:
    return None if path is None else (path.local, path.remote)


def _selected(event: SelectedPathChanged) -> Told:
    name = "path.lost" if event.new is None else "path.selected"
    return name, event.reason, _ends(event.new or event.old)


def _network(event: NetworkChanged) -> Told:
    changes = [*(f"{host} came" for host in event.added), *(f"{host} went" for host in event.removed)]
    return "network.changed", ", ".join(changes), None


def _restarted(event: IceRestarted) -> Told:
    return "ice.restarted", "begun by the peer" if event.by_peer else "begun by us", None


def _role(event: RoleChanged) -> Told:
    return "role.changed", f"{'controlling' if event.controlling else 'controlled'}: {event.reason}", None


# The names are those of ``logs.py``, which may import more than a core.
_TABLE: Mapping[type[Event], Callable[[Any], Told]] = {
    StateChanged: lambda e: ("state.changed", f"{e.new.value}: {e.reason}", None),
    SelectedPathChanged: _selected,
    PathDoubted: lambda e: ("path.doubted", e.reason, _ends(e.path)),
    PathTrusted: lambda e: ("path.trusted", e.reason, _ends(e.path)),
    PathDiagnosed: lambda e: ("path.diagnosed", f"{e.cause.value}: {e.reason}", None),
    RestartAdvised: lambda e: ("restart.advised", e.reason, None),
    IceRestarted: _restarted,
    NetworkChanged: _network,
    RelaySilent: lambda e: ("relay.silent", f"{e.server} does not answer", None),
    RelayLost: lambda e: ("relay.lost", f"{e.server}: {e.reason}", None),
    RelayMoved: lambda e: ("relay.moved", f"{e.server}: now from {e.base}", None),
    PeerClosed: lambda e: ("peer.closed", e.reason, None),
    MachineSlept: lambda e: ("machine.slept", f"for {e.seconds:.1f} s", None),
    RoleChanged: _role,
}
