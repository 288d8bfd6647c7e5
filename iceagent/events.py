"""What can an application see?

Every event of an agent, in the order of an agent's life. Pure values: ``iceagent/logs.py`` makes lines of them, the
command line makes JSON of them. ``reason`` is always a short sentence for a person, made of a fixed set of phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from iceagent.candidate import Candidate, CandidateType
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, PacketDropped

__all__ = [
    "AgentState",
    "BaseFailed",
    "BetterPathSought",
    "Cause",
    "DataReceived",
    "Event",
    "GatheringDone",
    "IceRestarted",
    "LocalCandidateFound",
    "MachineSlept",
    "NetworkChanged",
    "Nominated",
    "PacketDropped",
    "Path",
    "PathDiagnosed",
    "PathDoubted",
    "PathTrusted",
    "PeerClosed",
    "PortMapped",
    "PortMappingLost",
    "PortMappingUnavailable",
    "RelayLost",
    "RelayMoved",
    "RelayRefused",
    "RelaySilent",
    "RemoteCandidateAdded",
    "RemoteCandidateRefused",
    "RerollDue",
    "RestartAdvised",
    "RoleChanged",
    "SelectedPathChanged",
    "ServerFailed",
    "StateChanged",
]


class AgentState(Enum):
    """The states that ``iceagent connect`` reports too."""

    NEW = "new"
    CHECKING = "checking"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Where data goes: the selected pair, as the application sees it.

    Attributes:
        component: 1 … 256.
        local: our candidate (the address the peer sees: mapped or relayed, where it is).
        remote: the peer's candidate.
        base: the socket (or relayed address) that data leaves from.
        rtt_ms: the last round trip measured, milliseconds; ``None`` before one.
        nominated: settled between both ends, as opposed to merely valid.
    """

    component: int
    local: Candidate
    remote: Candidate
    base: TransportAddress
    rtt_ms: float | None
    nominated: bool

    @property
    def is_relayed(self) -> bool:
        """Whether a relay of either side carries the data."""
        return CandidateType.RELAYED in (self.local.type, self.remote.type)

    @property
    def kind(self) -> str:
        """``direct`` or ``relay``."""
        return "relay" if self.is_relayed else "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidateFound(Event):
    """A candidate of ours, to be signalled to the peer."""

    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringDone(Event):
    """Every gatherer answered or gave up; the peer is to be told end-of-candidates.

    Attributes:
        count: candidates found.
        elapsed_ms: since gathering began.
    """

    count: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFailed(Event):
    """No socket could be opened on a local address, which therefore gives no candidates.

    Attributes:
        host: the address.
        interface: its interface's name.
    """

    host: str
    interface: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFailed(Event):
    """A STUN or TURN server gave no candidate.

    Attributes:
        server: its URI.
        base: from where it was asked; ``None`` when it was never reached (its name did not resolve).
        code: of its error response (RFC 8489, 14.8); ``None``: there was none.
    """

    server: str
    base: TransportAddress | None
    reason: str
    code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLost(Event):
    """An allocation is gone, with its relayed candidates. Another one is tried for at once.

    Attributes:
        server: its URI.
        relayed: the addresses that are gone.
        reason: the server's words, or ours.
        is_local: our own end is gone, which says nothing about the server.
    """

    server: str
    relayed: tuple[TransportAddress, ...]
    reason: str
    is_local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySilent(Event):
    """A TURN server has not answered for two seconds: it is gone, or the way there is. The allocation is kept until it
    expires, for that may be over in a moment; other ways to the server are tried meanwhile.

    Attributes:
        server: its URI.
        relayed: our addresses there.
    """

    server: str
    relayed: tuple[TransportAddress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayMoved(Event):
    """Our address changed, and the server took the allocation along (RFC 8016): the candidates stay.

    Attributes:
        server: its URI.
        relayed: the addresses that stay.
        base: the new local end.
    """

    server: str
    relayed: tuple[TransportAddress, ...]
    base: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRefused(Event):
    """A TURN server does not relay to one peer; to all others it does.

    Attributes:
        server: its URI.
        host: the peer's IP address.
        reason: code and words of the server.
    """

    server: str
    host: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCandidateAdded(Event):
    """A candidate of the peer is in use.

    Attributes:
        via: ``signalling`` or ``check`` (peer-reflexive).
    """

    candidate: Candidate
    via: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCandidateRefused(Event):
    """A candidate of the peer is not used, and why."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The agent's state moved."""

    old: AgentState
    new: AgentState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedPathChanged(Event):
    """Data of a component takes another path from now on; ``new`` is ``None`` when none is left."""

    component: int
    old: Path | None
    new: Path | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nominated(Event):
    """Both ends have agreed on a pair for every component (RFC 8445, 8.1.2): once in each generation. Others may take
    their place later.

    Attributes:
        path: of component 1; ``None``: it was lost in the same moment.
    """

    path: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDoubted(Event):
    """Data of a component may not arrive any more: its path, and those that stand by, are asked (``relay/upgrade.py``).

    Attributes:
        path: which one.
        reason: what is suspicious.
    """

    component: int
    path: Path | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTrusted(Event):
    """A path that was in doubt works.

    Attributes:
        path: which one.
        reason: why.
    """

    component: int
    path: Path | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAdvised(Event):
    """No path answers any more, and none that is known can be expected to: an ICE restart
    (:meth:`iceagent.Agent.restart`) finds others, if signalling still works. Whatever there is is tried meanwhile.

    Attributes:
        reason: what was seen.
    """

    component: int
    reason: str


class Cause(Enum):
    """What a server that is asked while a path is in doubt says about it."""

    PATH = "path"
    NAT = "nat"
    UPLINK = "uplink"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDiagnosed(Event):
    """A server was asked what broke while a path was in doubt.

    Attributes:
        component: whose path.
        base: the socket that asked.
        cause: ``PATH``: it sees us where it saw us before, so it is the peer, or the way there. ``NAT``: it sees
            another address of ours, our NAT has forgotten us. ``UPLINK``: no server answers, our own network is dead.
        reason: in words.
    """

    component: int
    base: TransportAddress
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerClosed(Event):
    """The peer says that it has closed: nothing it had answers any more. Only a new description of its begins anew."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSlept(Event):
    """This machine was suspended; whatever it knew of the network may be over.

    Attributes:
        seconds: how long.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(Event):
    """Both sides had the same role, and ours gave way (RFC 8445, 7.3.1.1)."""

    controlling: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IceRestarted(Event):
    """New credentials are in force; the old path carries data until a new one is selected (RFC 8445, 9).

    Attributes:
        by_peer: the peer began it.
    """

    by_peer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RerollDue(Event):
    """Nothing outside our NAT answers: a new socket is opened beside this one, and its candidate told to
    the peer (``iceagent/core/reroll.py``).

    Attributes:
        base: the socket whose flows may be spoilt; it stays.
    """

    component: int
    base: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class BetterPathSought(Event):
    """Data goes over a relay, and direct paths are looked for: fresh addresses may help. The agent's own business."""

    component: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChanged(Event):
    """Local addresses came or went.

    Attributes:
        added: hosts that are new.
        removed: hosts that are gone.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapped(Event):
    """A router maps a port of ours (``portmap/``): for the first time, again, or with another external address.

    Attributes:
        internal: our socket.
        external: where it is reached from outside, as far as the router knows.
        protocol: ``pcp``, ``nat-pmp`` or ``upnp``.
        gateway: the router.
        lifetime_s: seconds it lasts unless it is renewed, which happens by itself; 0: until it is deleted.
        trust: ``global``; else there is no candidate of it: ``private`` and ``carrier`` mean another NAT in front of
            the router, ``unknown`` that it does not know its own address.
    """

    internal: TransportAddress
    external: TransportAddress
    protocol: str
    gateway: str
    lifetime_s: int
    trust: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMappingLost(Event):
    """A router does not map a port of ours any more; another mapping is tried for.

    Attributes:
        internal: our socket.
        external: where it was reached.
        reason: why.
    """

    internal: TransportAddress
    external: TransportAddress
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMappingUnavailable(Event):
    """No router maps a port of ours; they are asked again later.

    Attributes:
        internal: our socket.
        reasons: what each protocol said.
    """

    internal: TransportAddress
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReceived(Event):
    """Data that was held until its sender was known, or that did not take the fast way; not in its ``repr``."""

    component: int
    base: TransportAddress
    source: TransportAddress
    data: bytes = field(repr=False)
