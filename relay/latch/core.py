"""Who latches a side of a channel, when does a latch move, and when does a channel end?

A side latches by a STUN Binding request with MESSAGE-INTEGRITY under the side's key (RFC 8489, 9.1.3), and is answered
with the mapped address. From then on its source is locked: whatever anybody else sends is dropped. A new authenticated
request moves the lock, at once: a client whose NAT has given it another port is followed within a round trip. Of two
authentic requests from two sources the later one holds.

A request that was recorded and is sent again, from another source or to another address of ours, moves nothing: its
transaction identifier is known. The :data:`SEEN_LIMIT` latest of a side are, which a client that sends one every
fifteen seconds fills in four hours; sides with one key have one memory. The same one again from its first source is a
retransmission: it is answered, and moves nothing either.

A side without a key (``first_source``) is locked to the first source that sends while the channel is being learnt; when
others send too, that is told, for nobody can say which of them was meant.

What looks like STUN and is not about this is data: a Binding request whose USERNAME is not the side's, or that is
longer than :data:`MAX_REQUEST`, a response, an indication, any other method. So two ICE agents can run their checks
through a channel. DEVIATION: RFC 8489, 9.1.3 would have the first one refused; pinned by
test_stun_of_others_is_data_of_the_latched_peer.

:class:`LatchCore` is all channels of a relay, a core (``iceagent/net/core.py``); data does not pass through it, and the
shell (``relay.py``) counts. Pure.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Datagram, Event, Transmit
from relay.error_limits import ErrorLimiter
from relay.latch.channel import (
    Channel,
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    Flow,
    SecondSource,
    Side,
    SideKey,
    SideLatched,
    SideMoved,
)
from relay.stun import USERNAME, XOR_MAPPED_ADDRESS, BadMessage, Message, Method, is_stun, parse

__all__ = ["BINDING_REQUEST", "LatchCore", "Offload"]

BINDING_REQUEST = b"\x00\x01"
"""How a Binding request begins."""

MAX_REQUEST = 1_500
"""Bytes of one; RFC 8489, 6.1 keeps STUN below the path's MTU. What is longer is not even looked at: 65 kB of
attributes are 17 ms of nothing else."""

SEEN_LIMIT = 1_024
"""Of a side; of several with one key, so many times their number."""

SHARED_LIMIT = 64
"""That number, at most: with more of them it would take long to find one."""

ALARM_EVERY_S = 10.0
CHECK_EVERY_S = 1.0
FLOWS_PER_CHECK_S = 2_000
"""To read what the kernel has counted of so many flows takes it and us 10 ms: of more it is read less often."""

ANSWER_LIMIT = 1_024
"""Answers that wait for the shell, which takes them after every input. The oldest go first. Events wait too, and are
never lost: there is one for each channel at most."""


class Offload(Protocol):
    """Somebody else who forwards flows: the kernel."""

    def change(self, remove: Iterable[Flow], add: Iterable[Flow]) -> None:
        """Forward those of ``add`` from now on, and those of ``remove`` no more."""

    def counts(self, flows: Sequence[Flow] | None = None) -> dict[Flow, tuple[int, int]]:
        """Packets and payload bytes of each flow, or of these, since it was added."""


class LatchCore:
    """Decides who is latched.

    Args:
        offload: forwards flows whose sides are both latched; ``None``: nobody but the shell does.

    Attributes:
        channels: those that are open, by number.
        closed: those that have ended, until the shell, at :class:`ChannelClosed`, has taken them.
        counters: ``requests`` (authenticated, answered), ``errors: <code>``, ``replayed``, ``dropped: <reason>``,
            ``latches``, ``moves``, ``alarms``.
    """

    def __init__(self, offload: Offload | None = None) -> None:
        self.channels: dict[int, Channel] = {}
        self.closed: dict[int, Channel] = {}
        self.counters: Counter[str] = Counter()
        self._offload = offload
        self._sides: dict[TransportAddress, tuple[Channel, Side]] = {}
        self._flows: dict[Flow, Channel] = {}
        self._counted: dict[Flow, tuple[int, int]] = {}
        self._with_key: dict[SideKey, list[Side]] = {}
        self._limiter = ErrorLimiter()
        self._check_at: float | None = None
        self._next_number = 1
        self._transmits: deque[Transmit] = deque(maxlen=ANSWER_LIMIT)
        self._events: deque[Event] = deque()

    # --- commands ---------------------------------------------------------------------------------------------------

    def open(self, ports: tuple[int, int], options: ChannelOptions, now: float) -> Channel:
        """A channel on these ports, of which :meth:`add_base` says the addresses."""
        channel = Channel(self._next_number, ports, options, now)
        self._next_number += 1
        self.channels[channel.number] = channel
        for side in channel.sides:
            if side.credential is not None:
                same = self._with_key.setdefault(side.credential, [])
                side.seen = same[0].seen if same else side.seen
                same.append(side)
        if self._check_at is None:
            self._check_at = now + CHECK_EVERY_S
        return channel

    def add_base(self, channel: Channel, side: Side, base: TransportAddress) -> None:
        """Whatever comes to this address of ours is that side's."""
        self._sides[base] = channel, side
        channel.bases.append(base)

    def remove_base(self, channel: Channel, base: TransportAddress, now: float) -> None:
        """This address of ours has gone; whoever is latched there has to latch anew."""
        if self._sides.pop(base, None) is None:
            return
        channel.bases.remove(base)
        for side in channel.sides:
            if side.base == base:
                side.base = side.peer = None
                self._replace(channel, dict(channel.directions()))

    def forget(self, channel: Channel) -> None:
        """A channel whose sockets could not be had: it never was."""
        channel.is_open = False
        del self.channels[channel.number]
        for base in channel.bases:
            del self._sides[base]
        for side in channel.sides:
            if side.credential is not None:
                same = self._with_key[side.credential]
                same.remove(side)
                if not same:
                    del self._with_key[side.credential]
        if not self.channels:
            self._check_at = None

    def close(self, channel: Channel, reason: str, now: float) -> None:
        """End a channel; idempotent. Its sockets are the shell's to close, at :class:`ChannelClosed`."""
        if not channel.is_open:
            return
        self._replace(channel, {})
        self.forget(channel)
        self.closed[channel.number] = channel
        self._events.append(ChannelClosed(reason=reason, statistics=channel.statistics(now)))

    # --- the contract -----------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """As :meth:`admits`, for whoever forwards nothing."""
        self.admits(datagram, now)

    def admits(self, datagram: Datagram, now: float) -> bool:
        """Take a datagram that may be a request, or does not come from the latched peer; true: it is data of the peer,
        to be forwarded.
        """
        found = self._sides.get(datagram.base)
        if found is None:
            self.counters["dropped: no channel"] += 1
            return False
        channel, side = found
        is_peer = datagram.source == side.peer and datagram.base == side.base
        message = _request(datagram.data)
        username = None if message is None else message.get(USERNAME)
        if message is not None and username is not None and side.is_named(username):
            self._on_request(channel, side, message, datagram, now)
            return False
        if is_peer:
            return True
        if self._is_first(channel, side, datagram, now):
            self._latch(channel, side, datagram, "first source", now)
            return True
        side.dropped += 1
        self.counters["dropped: not from the latched peer" if side.peer else "dropped: nobody is latched"] += 1
        if side.key is None:
            if side.peer is not None:
                self._alarm(channel, side, datagram, now)
        elif message is not None:
            self._refuse(message, datagram, now)
        return False

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """A peer cannot be reached just now; it stays latched."""
        self.counters["network errors"] += 1

    def handle_timeout(self, now: float) -> None:
        """Look which channels are idle, or have used up what they may."""
        if self._check_at is None or now < self._check_at:
            return
        self._check_at = now + max(CHECK_EVERY_S, len(self._flows) / FLOWS_PER_CHECK_S)
        self._read_counts()
        for channel in list(self.channels.values()):
            activity = sum(side.packets + side.kernel_packets + side.unheard for side in channel.sides)
            if activity != channel.activity:
                channel.activity, channel.active_at = activity, now
            self.check_caps(channel, now)
            if not channel.is_open or now < channel.active_at + channel.options.idle_s:
                continue
            if channel.options.is_kept:
                self._unlatch(channel, now)
            else:
                self.close(channel, "idle", now)

    def check_caps(self, channel: Channel, now: float) -> None:
        """End a channel that has used up what it may."""
        if channel.packets_left <= 0:
            self.close(channel, "packet cap", now)
        elif channel.octets_left <= 0:
            self.close(channel, "byte cap", now)

    def poll_timeout(self) -> float | None:
        """When :meth:`handle_timeout` looks again; ``None``: there is no channel."""
        return self._check_at

    def poll_transmit(self) -> Transmit | None:
        """One answer, or ``None``."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One event of ``channel.py``, or ``None``."""
        return self._events.popleft() if self._events else None

    # --- requests ---------------------------------------------------------------------------------------------------

    def _on_request(self, channel: Channel, side: Side, message: Message, datagram: Datagram, now: float) -> None:
        """RFC 8489, 9.1.3. Receiving a Request."""
        key, is_sha256 = side.key, message.has_integrity_sha256
        assert key is not None
        is_signed = message.has_integrity or is_sha256
        if not is_signed or not (message.verify_sha256(key) if is_sha256 else message.verify(key)):
            side.dropped += 1
            if datagram.source == side.peer:
                # It knows the key: somebody has forged its address, and it would get the answer among its data.
                self.counters["dropped: forged"] += 1
            else:
                self._refuse(message, datagram, now)
            return
        if not self._may_latch(datagram.source):
            side.dropped += 1
            self.counters["dropped: source cannot be a peer"] += 1
            return
        way, is_new = (datagram.source, datagram.base), message.transaction_id not in side.seen
        if not is_new and way != side.seen.way(message.transaction_id):
            side.dropped += 1
            self.counters["replayed"] += 1
            return
        if is_new:
            assert side.credential is not None
            users = min(len(self._with_key[side.credential]), SHARED_LIMIT)
            side.seen.add(message.transaction_id, way, SEEN_LIMIT * users)
        if message.unknown_required:
            self._answer(datagram, message.unknown_attributes_response().encode(key, sha256=is_sha256))
            self.counters["errors: 420"] += 1
            return
        if is_new:
            channel.active_at = now
            if (side.base, side.peer) != (datagram.base, datagram.source):
                self._latch(channel, side, datagram, "key", now)
        self.counters["requests"] += 1
        self._answer(datagram, message.success((XOR_MAPPED_ADDRESS, datagram.source)).encode(key, sha256=is_sha256))

    def _refuse(self, message: Message, datagram: Datagram, now: float) -> None:
        """It lacks USERNAME or integrity, or has the wrong one."""
        if not self._may_latch(datagram.source) or not self._limiter.admits(datagram.source.host, now):
            self.counters["dropped: too many errors"] += 1
            return
        is_signed = message.has_integrity or message.has_integrity_sha256
        is_complete = is_signed and message.get(USERNAME) is not None
        code, reason = (401, "Unauthenticated") if is_complete else (400, "Bad Request")
        self.counters[f"errors: {code}"] += 1
        self._answer(datagram, message.error_response(code, reason).encode(fingerprint=message.has_fingerprint))

    def _answer(self, datagram: Datagram, data: bytes) -> None:
        self._transmits.append(Transmit(datagram.base, datagram.source, data))

    # --- latching ---------------------------------------------------------------------------------------------------

    def _is_first(self, channel: Channel, side: Side, datagram: Datagram, now: float) -> bool:
        is_learning = side.key is None and now < channel.opened_at + channel.options.learning_s
        return is_learning and side.peer is None and self._may_latch(datagram.source)

    def _may_latch(self, address: TransportAddress) -> bool:
        """Whether it can be one other host. Between two channels of ours, datagrams would circle for ever."""
        ip = ip_address(address.host)
        is_host = not (ip.is_multicast or ip.is_unspecified or address.host == "255.255.255.255")
        return is_host and address.port != 0 and address not in self._sides

    def _latch(self, channel: Channel, side: Side, datagram: Datagram, how: str, now: float) -> None:
        old = side.peer
        side.base, side.peer = datagram.base, datagram.source
        channel.active_at = now
        if old is None:
            self.counters["latches"] += 1
            event: Event = SideLatched(channel=channel.number, side=side.name, address=side.peer, how=how)
        else:
            side.moves += 1
            self.counters["moves"] += 1
            event = SideMoved(channel=channel.number, side=side.name, old=old, address=side.peer)
        self._events.append(event)
        self._replace(channel, dict(channel.directions()))

    def _unlatch(self, channel: Channel, now: float) -> None:
        """Whoever is latched has to latch anew."""
        channel.active_at = now
        if channel.left.peer is None and channel.right.peer is None:
            return
        self._replace(channel, {})
        self._events.append(ChannelIdle(statistics=channel.statistics(now)))
        for side in channel.sides:
            side.base = side.peer = None

    def _alarm(self, channel: Channel, side: Side, datagram: Datagram, now: float) -> None:
        assert side.peer is not None
        side.strangers += 1
        self.counters["alarms"] += 1
        if now < side.alarm_at:
            return
        side.alarm_at = now + ALARM_EVERY_S
        self._events.append(
            SecondSource(
                channel=channel.number,
                side=side.name,
                latched=side.peer,
                address=datagram.source,
                datagrams=side.strangers,
            )
        )

    # --- what the kernel does ---------------------------------------------------------------------------------------

    def _replace(self, channel: Channel, flows: Mapping[Flow, Side]) -> None:
        """The channel has these flows now."""
        if self._offload is None:
            return
        old = [flow for flow in channel.flows if flow not in flows]
        new = [flow for flow in flows if flow not in channel.flows]
        if old:
            self._read_counts(old)
        for flow in old:
            del self._flows[flow]
            self._counted.pop(flow, None)
        channel.flows = dict(flows)
        self._flows.update(dict.fromkeys(new, channel))
        if old or new:
            self._offload.change(old, new)

    def _read_counts(self, flows: Sequence[Flow] | None = None) -> None:
        """Add what the kernel has forwarded since; of all flows, or of these."""
        if self._offload is None or not self._flows:
            return
        for flow, (packets, octets) in self._offload.counts(flows).items():
            channel = self._flows.get(flow)
            if channel is None:
                continue
            before = self._counted.get(flow, (0, 0))
            new_packets, new_octets = max(0, packets - before[0]), max(0, octets - before[1])
            self._counted[flow] = packets, octets
            side = channel.flows[flow]
            side.kernel_packets += new_packets
            side.kernel_octets += new_octets
            channel.packets_left -= new_packets
            channel.octets_left -= new_octets


def _request(data: bytes) -> Message | None:
    """A Binding request; ``None``: anything else, malformed ones too, and those that are too long."""
    if data[:2] != BINDING_REQUEST or len(data) > MAX_REQUEST or not is_stun(data):
        return None
    try:
        message = parse(data)
    except BadMessage:
        return None
    return message if message.method == Method.BINDING and message.is_request else None
