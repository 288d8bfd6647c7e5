"""What is a channel of a latching relay: its two sides, who may latch them, what is counted, when does it end?

What comes in on a side's port from the peer that is latched there goes out of the other side's port, to the peer that
is latched there. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.latch.replays import Seen
from relay.stun import IntegrityKey, opaque_string, short_term_key
from relay.turn.server.checks import check_number

__all__ = [
    "Channel",
    "ChannelClosed",
    "ChannelIdle",
    "ChannelOptions",
    "ChannelStatistics",
    "Flow",
    "SecondSource",
    "Side",
    "SideKey",
    "SideLatched",
    "SideMoved",
    "SideName",
    "SideStatistics",
]

IDLE_S = 120.0
"""A channel on which neither side sends for so long ends. Who keeps a binding alive sends every 15 to 25 seconds."""

LEARNING_S = 10.0
"""How long a side that latches to the first source waits for it: as long as a call takes to be set up."""

MAX_TEXT = 508
"""Bytes of a USERNAME: RFC 8489, 14.3, "fewer than 509 bytes"."""


class SideName(Enum):
    """Which side of a channel."""

    LEFT = "left"
    RIGHT = "right"


class Flow(NamedTuple):
    """One direction of a channel whose sides are both latched.

    Attributes:
        source: the peer that sends.
        arrives_at: our address and port that it sends to.
        leaves_from: our address and port on the other side.
        destination: the peer that is latched there.
    """

    source: TransportAddress
    arrives_at: TransportAddress
    leaves_from: TransportAddress
    destination: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SideKey:
    """Who may latch a side: the short-term credential of a STUN Binding request (RFC 8489, 9.1).

    Attributes:
        username: stands in USERNAME, alone or, as ICE has it (RFC 8445, 7.2.2), before a colon and the client's own
            user name fragment; so it has no colon itself. 1 … 508 bytes in UTF-8.
        password: the key of MESSAGE-INTEGRITY. At least 22 characters that nobody guesses, as ICE has it (RFC 8445,
            5.3), where it is drawn by a machine. Not in the ``repr``.

    Raises:
        ValueError: one is empty, too long, or has characters that neither may have.
    """

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        for name, value in (("username", self.username), ("password", self.password)):
            if not isinstance(value, str):
                raise ValueError(f"the {name} of a side is of type {type(value).__name__}, a text is expected")
            # RFC 8489, 14.3: it "MUST have been processed using the OpaqueString profile".
            processed = opaque_string(value)
            object.__setattr__(self, name, processed)
            if len(processed.encode()) > MAX_TEXT:
                raise ValueError(f"the {name} of a side has {len(processed.encode())} bytes, allowed are {MAX_TEXT}")
        if ":" in self.username:
            raise ValueError("the username of a side may have no colon")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How a channel behaves.

    Attributes:
        left: who may latch the left side; ``None``: nobody by a key.
        right: likewise.
        first_source: a side without a key takes the first source that sends to it within ``learning_s``, whoever that
            is. For programs that cannot do STUN; whoever finds the port first gets the other side's data.
        learning_s: seconds from the opening, above 0.
        idle_s: seconds without a datagram of either peer after which the channel ends, above 0.
        is_kept: it does not end then: whoever was latched has to latch anew. Its ports stay open, and what was recorded
            of its requests is still of no use.
        max_bytes: payload bytes, both directions together, after which it ends; ``None``: no limit.
        max_packets: datagrams, likewise.

    Raises:
        ValueError: a value is out of its range or of another type; or nobody could ever latch a side, or could anew.
    """

    left: SideKey | None = None
    right: SideKey | None = None
    first_source: bool = False
    learning_s: float = LEARNING_S
    idle_s: float = IDLE_S
    is_kept: bool = False
    max_bytes: int | None = None
    max_packets: int | None = None

    def __post_init__(self) -> None:
        for name in ("learning_s", "idle_s"):
            check_number(name, getattr(self, name), 0.001)
        for name in ("max_bytes", "max_packets"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1)
        is_keyless = self.left is None or self.right is None
        if is_keyless and not self.first_source:
            raise ValueError("a side without a key can only be latched by its first source: say first_source=True")
        if is_keyless and self.is_kept:
            raise ValueError("a side without a key is latched once: is_kept needs keys on both sides")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStatistics:
    """What a side has been through.

    Attributes:
        port: ours.
        peer: the one that is latched; ``None``: nobody.
        packets: datagrams of its peer's that were forwarded to the other side.
        octets: their payload bytes.
        in_kernel: datagrams of those that the kernel forwarded.
        dropped: datagrams that came to the port and were neither forwarded nor answered.
        moves: how often the latch moved to another source.
    """

    port: int
    peer: TransportAddress | None
    packets: int
    octets: int
    in_kernel: int
    dropped: int
    moves: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """What a channel has been through.

    Attributes:
        channel: its number.
        left: see there.
        right: see there.
        open_s: seconds since it was opened.
    """

    channel: int
    left: SideStatistics
    right: SideStatistics
    open_s: float

    @property
    def octets(self) -> int:
        """Payload bytes forwarded, both directions together."""
        return self.left.octets + self.right.octets

    @property
    def packets(self) -> int:
        """Datagrams forwarded, both directions together."""
        return self.left.packets + self.right.packets


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLatched(Event):
    """A side has its peer.

    Attributes:
        channel: number of the channel.
        side: of it.
        address: the peer, as the relay sees it.
        how: ``key`` or ``first source``.
    """

    channel: int
    side: SideName
    address: TransportAddress
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SideMoved(Event):
    """A side's peer has authenticated itself from another address.

    Attributes:
        channel: number of the channel.
        side: of it.
        old: where it was.
        address: where it is.
    """

    channel: int
    side: SideName
    old: TransportAddress
    address: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondSource(Event):
    """Somebody else sends to a side that took its first source for the peer: the first may have been the wrong one.

    Attributes:
        channel: number of the channel.
        side: of it.
        latched: who was first.
        address: the other.
        datagrams: that came from others than the first, so far.
    """

    channel: int
    side: SideName
    latched: TransportAddress
    address: TransportAddress
    datagrams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelClosed(Event):
    """A channel has ended.

    Attributes:
        reason: ``closed``, ``idle``, ``byte cap``, ``packet cap``.
        statistics: its last.
    """

    reason: str
    statistics: ChannelStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelIdle(Event):
    """A channel that is kept was idle: nobody is latched any more.

    Attributes:
        statistics: with the peers that were.
    """

    statistics: ChannelStatistics


class Side:
    """One side of a channel.

    Attributes:
        name: which.
        port: ours.
        credential: who may latch it; ``None``: nobody by a key.
        key: of its password.
        base: our address that the peer latched at; ``None``: it has not.
        peer: who is latched; ``None``: nobody.
        packets, octets: of the peer's, forwarded by this process; the shell counts.
        kernel_packets, kernel_octets: the same, by the kernel.
        dropped: see :class:`SideStatistics`; ``unheard``: those of the peer's, which nobody was there to get.
        moves: likewise.
        seen: the requests that were authenticated with its key.
        strangers: datagrams of others than the first source.
        alarm_at: when another :class:`SecondSource` may be told.
    """

    __slots__ = (
        "alarm_at",
        "base",
        "credential",
        "dropped",
        "kernel_octets",
        "kernel_packets",
        "key",
        "moves",
        "name",
        "octets",
        "packets",
        "peer",
        "port",
        "seen",
        "strangers",
        "unheard",
    )

    def __init__(self, name: SideName, port: int, credential: SideKey | None) -> None:
        self.name = name
        self.port = port
        self.credential = credential
        self.key: IntegrityKey | None = None if credential is None else short_term_key(credential.password)
        self.base: TransportAddress | None = None
        self.peer: TransportAddress | None = None
        self.packets = self.octets = 0
        self.kernel_packets = self.kernel_octets = 0
        self.dropped = self.unheard = self.moves = self.strangers = 0
        self.seen = Seen()
        self.alarm_at = -math.inf

    def is_named(self, username: str) -> bool:
        """Whether this USERNAME is this side's, alone or as ICE writes it."""
        return self.credential is not None and username.partition(":")[0] == self.credential.username

    def statistics(self) -> SideStatistics:
        return SideStatistics(
            port=self.port,
            peer=self.peer,
            packets=self.packets + self.kernel_packets,
            octets=self.octets + self.kernel_octets,
            in_kernel=self.kernel_packets,
            dropped=self.dropped + self.unheard,
            moves=self.moves,
        )


class Channel:
    """Two sides.

    Args:
        number: unlike any other's of the relay.
        ports: of left and right.
        options: see there.
        now: it is opened.

    Attributes:
        left: see :class:`Side`.
        right: likewise.
        packets_left: datagrams that may still be forwarded; infinite where there is no cap.
        octets_left: payload bytes, likewise. The shell counts both down.
        opened_at: when it was.
        active_at: when a datagram of a peer's, or a request, was last known to have come.
        activity: how many of the peers' had come then.
        is_open: it has not ended.
        bases: our addresses, of both sides.
        flows: what somebody else forwards, by the side whose peer sends.
    """

    __slots__ = (
        "active_at",
        "activity",
        "bases",
        "flows",
        "is_open",
        "left",
        "number",
        "octets_left",
        "opened_at",
        "options",
        "packets_left",
        "right",
    )

    def __init__(self, number: int, ports: tuple[int, int], options: ChannelOptions, now: float) -> None:
        self.number = number
        self.options = options
        self.left = Side(SideName.LEFT, ports[0], options.left)
        self.right = Side(SideName.RIGHT, ports[1], options.right)
        self.packets_left: float = math.inf if options.max_packets is None else options.max_packets
        self.octets_left: float = math.inf if options.max_bytes is None else options.max_bytes
        self.opened_at = self.active_at = now
        self.activity = 0
        self.is_open = True
        self.bases: list[TransportAddress] = []
        self.flows: dict[Flow, Side] = {}

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.left, self.right

    def other(self, side: Side) -> Side:
        """The one across."""
        return self.right if side is self.left else self.left

    def directions(self) -> Iterator[tuple[Flow, Side]]:
        """Both, with the side whose peer sends; nothing while a side is not latched."""
        for side in self.sides:
            across = self.other(side)
            if side.peer and side.base and across.peer and across.base:
                yield Flow(side.peer, side.base, across.base, across.peer), side

    def statistics(self, now: float) -> ChannelStatistics:
        left, right = self.left.statistics(), self.right.statistics()
        return ChannelStatistics(channel=self.number, left=left, right=right, open_s=now - self.opened_at)
