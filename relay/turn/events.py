"""What can a client hear from its allocation? All events of ``allocation.py``."""

from __future__ import annotations

from dataclasses import dataclass, field

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.stun import Icmp

__all__ = [
    "Allocated",
    "AllocationConfirmed",
    "AllocationLost",
    "AllocationMoved",
    "AllocationRefused",
    "AllocationReleased",
    "PeerData",
    "PeerRefused",
    "PeerUnreachable",
    "ServerSilent",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated(Event):
    """The server relays for us from now on.

    Attributes:
        relayed: our relayed addresses: one, or one of each family.
        mapped: where the server sees us.
        lifetime_s: seconds, before it is refreshed for the first time.
        rtt_s: of the last request; ``None``: it was repeated.
        reservation: a token for the next port, where one was asked for (RFC 8656, 18.10).
        refused: what is said of an address family that was asked for and is not there; empty: nothing.
        is_mobile: the server keeps it when our address changes (RFC 8016).
    """

    relayed: tuple[TransportAddress, ...]
    mapped: TransportAddress
    lifetime_s: float
    rtt_s: float | None
    reservation: bytes | None = field(default=None, repr=False)
    refused: str = ""
    is_mobile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRefused(Event):
    """There is no allocation, and there never was.

    Attributes:
        code: of the server's error response; ``None``: it gave none.
        reason: in its words, or in ours.
        alternate: which server to ask instead (300).
        domain: its name, for TLS; ``None``: the same as this one's.
        wait_s: the server SHOULD NOT be asked again for so long; ``None``: as long as nothing has been mended.
    """

    code: int | None
    reason: str
    alternate: TransportAddress | None = None
    domain: str | None = None
    wait_s: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationLost(Event):
    """There was an allocation, and it is not there any more, or cannot be used.

    Attributes:
        reason: for people.
        is_refused: the server refuses us: the same credentials will not do for another one.
        is_unknown: the server says that it knows no allocation of ours: it has lost it, or sees us elsewhere.
        is_local: our own end is gone, which says nothing about the server.
    """

    reason: str
    is_refused: bool = False
    is_unknown: bool = False
    is_local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationMoved(Event):
    """The allocation belongs to another five-tuple of ours now (RFC 8016), with its permissions and channels.

    Attributes:
        mapped: where the server sees us, if it says so.
        rtt_s: of the request; ``None``: it was repeated.
    """

    mapped: TransportAddress | None
    rtt_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationConfirmed(Event):
    """The server was asked (:meth:`relay.turn.Allocation.verify`), and knows us where we are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSilent(Event):
    """The server was asked, and says nothing. The allocation stays, until it expires: it may be the network.

    Attributes:
        is_lasting: for two seconds, to three requests; else for one (:meth:`relay.turn.Allocation.verify`).
    """

    is_lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReleased(Event):
    """It was given back, or the server does not answer that: nothing more is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerData(Event):
    """A peer's datagram came, without a channel.

    Attributes:
        relayed: which of our addresses it was sent to.
        peer: who sent it.
        data: its payload.
    """

    relayed: TransportAddress
    peer: TransportAddress
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused(Event):
    """The server does not relay to this peer; all others are none the worse.

    Attributes:
        host: the peer's IP address.
        code: of the error response.
        reason: in the server's words.
    """

    host: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUnreachable(Event):
    """The server got an ICMP error for what it relayed (RFC 8656, 11.5)."""

    relayed: TransportAddress
    peer: TransportAddress
    icmp: Icmp
