"""What does a server know of one allocation?

RFC 8656, 6: its five-tuple, who made it, its relayed addresses, whom they let in and which channels there are. Times
are deadlines that are looked at when something is to be relayed: nothing is woken up for a permission that ends. Pure.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from iceagent.net.address import TransportAddress

__all__ = ["CHANNELS", "OVER_FROM_PEERS", "OVER_TO_PEERS", "ServedAllocation", "TokenMeter"]

PERMISSION_S = 300.0
CHANNEL_S = 600.0
CHANNELS = range(0x4000, 0x8000)
"""DEVIATION: RFC 8656, 12.2 refuses what is above 0x4FFF; pinned by test_channels_of_rfc_5766_are_served."""
# RFC 8489, 6.3.1: "remember all requests … for 40 seconds"; of one allocation so many.
ANSWER_S = 40.0
MAX_ANSWERS = 16
OVER_TO_PEERS, OVER_FROM_PEERS = "over the bandwidth, to peers", "over the bandwidth, from peers"
"""Why something is dropped that its meter does not admit."""

_HEAD = struct.Struct(">HH")


class TokenMeter:
    """How much may pass: bytes per second, and a burst of as much as a second's.

    Args:
        bytes_per_s: above 0.
    """

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, bytes_per_s: float, now: float) -> None:
        self._rate = bytes_per_s
        self._tokens = bytes_per_s
        self._at = now

    def admits(self, size: int, now: float) -> bool:
        """Whether so many bytes more may pass; if so, they count."""
        tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        is_admitted = size <= tokens
        self._tokens = tokens - size if is_admitted else tokens
        return is_admitted

    def delay(self, size: int, now: float) -> float:
        """Count bytes of a stream, which are not dropped; seconds until it may go on."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - size
        self._at = now
        return max(0.0, -self._tokens / self._rate)


@dataclass(slots=True, eq=False, kw_only=True)
class ServedAllocation:
    """See the module.

    Attributes:
        base: our end of the five-tuple.
        client: the other one.
        username: who made it: nobody else may use it (441).
        relayed: by IP version.
        until: when each relayed address ends, by IP version.
        moving: the five-tuple that it is about to have (RFC 8016, 3.2.2): from the first data that comes from there.
        account: whose quota it counts for.
        scheduled_at: when the server looks at it next.
        permissions: IP address → until when.
        channels: number → peer and until when.
        numbers: peer → number.
        meter: what may pass; ``None``: everything.
        icmp_meter: how many ICMP errors may be told; ``None``: there were none yet.
        ticket: moves it (RFC 8016); ``None``: none was asked for.
        answers: transaction id → when, and the response, for repeated requests.
        packets: relayed to peers, and from them.
        octets: the same.
        is_tcp: its relayed addresses take connections (RFC 6062, ``tcp.py``); it has no channels then, and what was
            read of a connection at once is a packet.
    """

    base: TransportAddress
    client: TransportAddress
    username: str
    relayed: dict[int, TransportAddress]
    until: dict[int, float]
    moving: tuple[TransportAddress, TransportAddress] | None = None
    account: str = ""
    scheduled_at: float = math.inf
    meter: TokenMeter | None = field(default=None, repr=False)
    icmp_meter: TokenMeter | None = field(default=None, repr=False)
    ticket: bytes | None = field(default=None, repr=False)
    permissions: dict[str, float] = field(default_factory=dict, repr=False)
    channels: dict[int, tuple[TransportAddress, float]] = field(default_factory=dict, repr=False)
    numbers: dict[TransportAddress, int] = field(default_factory=dict, repr=False)
    answers: OrderedDict[bytes, tuple[float, bytes]] = field(default_factory=OrderedDict, repr=False)
    packets: list[int] = field(default_factory=lambda: [0, 0])
    octets: list[int] = field(default_factory=lambda: [0, 0])
    is_tcp: bool = False

    @property
    def expires_at(self) -> float:
        """When the first of its addresses ends."""
        return min(self.until.values())

    @property
    def key(self) -> tuple[TransportAddress, TransportAddress]:
        """Its five-tuple."""
        return self.base, self.client

    def has_room(self, hosts: Collection[str], now: float, limit: int) -> bool:
        """Whether so many permissions can be; those that have ended do not count."""
        if len(self.permissions.keys() | hosts) > limit:
            self.permissions = {each: until for each, until in self.permissions.items() if now < until}
        return len(self.permissions.keys() | hosts) <= limit

    def permit(self, host: str, now: float) -> None:
        """Let a host in for five minutes."""
        self.permissions[host] = now + PERMISSION_S

    def unbind(self, peer: TransportAddress) -> None:
        """Its channel ends."""
        number = self.numbers.pop(peer, None)
        if number is not None:
            del self.channels[number]

    def bind(self, number: int, peer: TransportAddress, now: float) -> bool:
        """Bind a channel for ten minutes, or renew it; false: number or peer is bound otherwise."""
        bound = self.channels.get(number)
        if bound is not None and bound[0] != peer and now < bound[1]:
            return False
        other = self.numbers.get(peer)
        if other is not None and other != number and now < self.channels[other][1]:
            return False
        if bound is not None:
            self.numbers.pop(bound[0], None)
        if other is not None:
            self.channels.pop(other, None)
        self.channels[number] = (peer, now + CHANNEL_S)
        self.numbers[peer] = number
        return True

    def remember(self, transaction_id: bytes, answer: bytes, now: float) -> None:
        """For who did not get it."""
        self.answers[transaction_id] = (now, answer)
        if len(self.answers) > MAX_ANSWERS:
            self.answers.popitem(last=False)

    def remembered(self, transaction_id: bytes, now: float) -> bytes | None:
        """What was answered to this very request."""
        at, answer = self.answers.get(transaction_id, (0.0, b""))
        return answer if answer and now < at + ANSWER_S else None

    # --- the data path -------------------------------------------------------------------------------------------

    def to_peer(self, message: bytes, now: float) -> tuple[TransportAddress, TransportAddress, bytes] | None:
        """ChannelData from the client: our relayed address, the peer, and the payload; ``None``: it is dropped."""
        if len(message) < 4:
            return None
        number, length = _HEAD.unpack_from(message)
        bound = self.channels.get(number)
        if bound is None or len(message) < 4 + length or now >= bound[1]:
            return None
        peer = bound[0]
        # RFC 8656, 9: the permission counts, and it ends sooner than the channel.
        if now >= self.permissions.get(peer.host, 0.0):
            return None
        if self.meter is not None and not self.meter.admits(length, now):
            return None
        self.packets[0] += 1
        self.octets[0] += length
        return self.relayed[peer.version], peer, message[4 : 4 + length]

    def why_dropped(self, message: bytes, now: float) -> str:
        """Why :meth:`to_peer` has just not relayed this."""
        number, length = _HEAD.unpack_from(message) if len(message) >= 4 else (0, 0)
        bound = self.channels.get(number)
        if len(message) < 4 + length:
            return "channel data that is too short"
        if bound is None or now >= bound[1]:
            return "channel data without a channel"
        is_permitted = now < self.permissions.get(bound[0].host, 0.0)
        return OVER_TO_PEERS if is_permitted else "channel data without permission"

    def train_to_peer(
        self, messages: Sequence[bytes], now: float
    ) -> tuple[TransportAddress, TransportAddress, list[bytes]] | None:
        """What :meth:`to_peer` does, for messages that go to one peer and are of one size; ``None``: they are not, or
        not all of them may pass.
        """
        first = messages[0]
        head = first[:4]
        if len(head) < 4:
            return None
        number, length = _HEAD.unpack(head)
        bound = self.channels.get(number)
        if bound is None or len(first) < 4 + length or now >= bound[1]:
            return None
        peer = bound[0]
        if now >= self.permissions.get(peer.host, 0.0):
            return None
        size = len(first)
        if not all(message[:4] == head and len(message) == size for message in messages):
            return None
        if self.meter is not None and not self.meter.admits(length * len(messages), now):
            return None
        self.packets[0] += len(messages)
        self.octets[0] += length * len(messages)
        end = 4 + length
        return self.relayed[peer.version], peer, [message[4:end] for message in messages]

    def channel_head(self, peer: tuple[str, int], size: int, now: float) -> bytes | None:
        """What stands in front of a peer's datagram to the client; ``None``: there is no channel."""
        number = self.numbers.get(peer)  # type: ignore[call-overload]
        if number is None or now >= self.channels[number][1]:
            return None
        return _HEAD.pack(number, size)

    def admits(self, peer: tuple[str, int], size: int, now: float) -> bool:
        """Whether a peer's datagram is relayed; if so, it counts."""
        if now >= self.permissions.get(peer[0], 0.0):
            return False
        if self.meter is not None and not self.meter.admits(size, now):
            return False
        self.packets[1] += 1
        self.octets[1] += size
        return True
