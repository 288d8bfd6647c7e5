"""What does a TURN server answer, and what does it relay?

RFC 8656, 8016 and 6062, sans-IO: requests and Send indications through the contract of ``iceagent/net/core.py``;
ChannelData and what peers send goes by the shell's data path (``relay/relays.py``) through :class:`ServedAllocation`
alone. One :class:`TurnServer` serves the five-tuples of one kind of transport; what several share is a
:class:`TurnService`.

Everything is bounded: allocations (in total and of one user), permissions, channels and connections of each, answers
that are kept, reservations. Before a request is authenticated nothing is kept of it. Pure: relayed addresses are opened
by :class:`RelayPorts`, which the shell gives, those over TCP by the shell itself (``tcp.py``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.stun import (
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    Icmp,
    Message,
    Method,
)
from relay.turn.credentials import Pair
from relay.turn.server.allocate import TCP, VERSIONS, open_udp, tell_relayed, wanted
from relay.turn.server.allocation import CHANNELS, OVER_FROM_PEERS, OVER_TO_PEERS, ServedAllocation, TokenMeter
from relay.turn.server.asked import Asked, FiveTuple
from relay.turn.server.auth import Challenge, Identity, Refused, Silence
from relay.turn.server.events import AllocationEnded, AllocationMade
from relay.turn.server.expiry import Expiry
from relay.turn.server.indications import data_indication, icmp_indication
from relay.turn.server.service import DEFAULT_LIFETIME_S, TurnService
from relay.turn.server.tcp import Opening, OpenListeners, TcpRelaying

__all__ = ["TurnServer"]

MAX_UNKNOWN = 16
"""Attributes that a 420 names: a request with thousands would else be answered, and remembered, at that length."""
MAX_PERMISSIONS = 1024
"""Of one allocation: as many as coturn allows."""

# Comprehension-required attributes that the codec knows and TURN does not.
_NOT_OURS = frozenset({0x0003, 0x0024, 0x0025, 0x0026, 0x0027})


class TurnServer:
    """The five-tuples of one kind of transport.

    Args:
        service: shared.
        is_stream: over TCP or TLS.

    Attributes:
        allocations: by our end and the client's.
        tcp: the connections of TCP allocations.
        counters: ``requests``, ``errors`` (those that were answered with one), ``errors: <code>`` for each code,
            ``wrong passwords``, and ``dropped: <reason>``.
    """

    def __init__(self, service: TurnService, *, is_stream: bool = False) -> None:
        self._service = service
        self._is_stream = is_stream
        self._by_ticket: dict[bytes, ServedAllocation] = {}
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque()
        self._openings: dict[FiveTuple, Opening] = {}
        self.allocations: dict[FiveTuple, ServedAllocation] = {}
        self._expiry = Expiry(self.allocations)
        self.counters: Counter[str] = Counter()
        self.tcp = TcpRelaying(service, self.allocations, self._transmits, self._events, self.counters, self._answer)

    # --- messages ------------------------------------------------------------------------------------------------

    def handle_message(self, message: Message, datagram: Datagram, now: float, *, is_whole: bool = True) -> bool:
        """Take a STUN message of a TURN method; false: it is none.

        Args:
            message: what could be read of it.
            datagram: how it came.
            now: seconds.
            is_whole: all of it could be; else a request is refused with 400 (RFC 8656, 7.2 and 10.2).
        """
        if message.is_request and message.method in _HANDLERS:
            self._on_request(message, datagram, now, is_whole)
        elif message.is_indication and message.method == Method.SEND and is_whole:
            self._on_send(message, datagram, now)
        else:
            return False
        return True

    def confirm(self, allocation: ServedAllocation, stream: tuple[TransportAddress, tuple[str, int]]) -> None:
        """Data came on this five-tuple: if it is the one that an allocation moves to, it has moved."""
        moving = allocation.moving
        if moving is not None and moving == stream:
            del self.allocations[allocation.key]
            allocation.base, allocation.client = moving
            allocation.moving = None

    def forget_stream(self, base: TransportAddress, client: TransportAddress, now: float) -> None:
        """A stream was closed: its allocation ends with it, for nothing could reach the client any more."""
        opening = self._openings.get((base, client))
        if opening is not None:
            opening.is_given_up = True
        allocation = self.allocations.get((base, client))
        if allocation is None:
            return
        if allocation.moving is None:
            self._end(allocation, "stream closed", now)
        elif allocation.moving == (base, client):
            del self.allocations[allocation.moving]
            allocation.moving = None
        else:
            self.confirm(allocation, allocation.moving)

    def from_peer(self, allocation: ServedAllocation, peer: tuple[str, int], data: bytes, now: float) -> bytes | None:
        """What a peer's datagram becomes for the client; ``None``: it is dropped."""
        if not allocation.admits(peer, len(data), now):
            is_over = now < allocation.permissions.get(peer[0], 0.0)
            self._drop(OVER_FROM_PEERS if is_over else "peer without permission")
            return None
        head = allocation.channel_head(peer, len(data), now)
        if head is not None:
            return head + data + bytes(-len(data) & 3) if self._is_stream else head + data
        message = data_indication(self._service.system_rng, peer, data)
        if message is None:
            self.counters["dropped: too long for an indication"] += 1
        return message

    def note_dropped(self, allocation: ServedAllocation, message: bytes, now: float) -> None:
        """ChannelData of a client's was not relayed; see :meth:`ServedAllocation.to_peer`."""
        self._drop(allocation.why_dropped(message, now))

    def icmp_from_peer(
        self, allocation: ServedAllocation, peer: TransportAddress, icmp: Icmp, now: float
    ) -> bytes | None:
        """What an ICMP error about a datagram to a peer becomes for the client: RFC 8656, 11.5."""
        message = icmp_indication(self._service.system_rng, allocation, peer, icmp, now)
        if message is None:
            self.counters["dropped: ICMP error"] += 1
        return message

    def train_from_peer(
        self, allocation: ServedAllocation, peer: tuple[str, int], datagrams: Sequence[bytes], now: float
    ) -> list[bytes]:
        """What a peer's datagrams, which came together, become for the client."""
        size = len(datagrams[0])
        head = allocation.channel_head(peer, size, now)
        is_even = all(len(data) == size for data in datagrams)
        if head is None or not is_even or self._is_stream or not allocation.admits(peer, size * len(datagrams), now):
            each = (self.from_peer(allocation, peer, data, now) for data in datagrams)
            return [message for message in each if message is not None]
        allocation.packets[1] += len(datagrams) - 1
        return [head + data for data in datagrams]

    def opened(self, opening: Opening, found: Mapping[int, TransportAddress | Refused], now: float) -> None:
        """What was to listen does, or does not.

        Args:
            opening: of :class:`relay.turn.server.OpenListeners`.
            found: by IP version, the address, or why there is none.
            now: seconds.
        """
        allocation = opening.allocation
        del self._openings[allocation.key]
        try:
            pairs, relayed = tell_relayed(found)
        except Refused as refused:
            self._service.discount(allocation.account)
            self._answer(opening.asked, refused, now)
            return
        allocation.relayed = {address.version: address for address in relayed}
        allocation.until = {address.version: now + opening.lifetime for address in relayed}
        self.tcp.begin(allocation)
        self._begin(allocation)
        if opening.is_given_up:
            self._end(allocation, "stream closed", now)
        else:
            self._answer(opening.asked, [*pairs, *self._more_of(allocation, opening.asked, opening.lifetime)], now)

    # --- time ----------------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """End what has expired."""
        self._service.expire(now)
        self.tcp.handle_timeout(now)
        for allocation in self._expiry.due(now):
            if all(now >= until for until in allocation.until.values()):
                self._end(allocation, "expired", now)
                continue
            for version in [version for version, until in allocation.until.items() if now >= until]:
                self._delete(allocation, version, now)
            self._expiry.schedule(allocation)

    def poll_timeout(self) -> float | None:
        """When the next one may have expired."""
        due = (self._expiry.next_at, self._service.reserves_until, self.tcp.poll_timeout())
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """A response to a client, from ``base``; or a datagram to a peer, from a relayed address."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One thing that happened."""
        return self._events.popleft() if self._events else None

    # --- requests ------------------------------------------------------------------------------------------------

    def _on_request(self, request: Message, datagram: Datagram, now: float, is_whole: bool) -> None:
        service, client = self._service, datagram.source
        self.counters["requests"] += 1
        known = self.allocations.get((datagram.base, client))
        again = None if known is None else known.remembered(request.transaction_id, now)
        if again is not None:
            self._transmits.append(Transmit(datagram.base, client, again))
            return
        identity: Identity | None = None
        try:
            wall_now = service.wall_now()
            identity = service.gate.authenticate(
                request, client, now, wall_now, is_known=known is not None, sibling=self.tcp.control_of(request)
            )
            if not is_whole:
                raise Refused(400, "Bad Request")
            unknown = _not_understood(request)
            if unknown:
                raise Refused(420, "Unknown Attribute", (UNKNOWN_ATTRIBUTES, unknown[:MAX_UNKNOWN]))
            asked = Asked(request, datagram.base, client, identity)
            pairs = _HANDLERS[request.method](self, asked, now)
        except Silence as silence:
            if silence.is_wrong:
                self.counters["wrong passwords"] += 1
            self._drop("too many wrong passwords")
        except Refused as refused:
            if identity is not None:
                self._answer(Asked(request, datagram.base, client, identity), refused, now)
            else:
                self._challenge(request, datagram, refused, now)
        else:
            if pairs is not None:
                self._answer(asked, pairs, now)

    def _challenge(self, request: Message, datagram: Datagram, refused: Refused, now: float) -> None:
        """Refuse somebody whose source may be forged: an answer could be aimed at somebody else."""
        service, client = self._service, datagram.source
        is_question = isinstance(refused, Challenge)
        is_wrong = isinstance(refused, Challenge) and refused.is_wrong
        if is_wrong:
            self.counters["wrong passwords"] += 1
        limiter = service.challenges if is_question and not is_wrong else service.limiter
        if not self._is_stream and not limiter.admits(client.host, now):
            self._drop("too many errors" if limiter is service.limiter else "too many challenges")
            return
        self._count_error(refused)
        pairs = service.gate.challenge(client, now) if is_question else refused.pairs
        response = request.error_response(refused.code, refused.reason, *pairs)
        self._transmits.append(Transmit(datagram.base, client, response.encode(fingerprint=request.has_fingerprint)))

    def _answer(self, asked: Asked, outcome: Sequence[Pair] | Refused, now: float) -> None:
        request, identity = asked.request, asked.identity
        if isinstance(outcome, Refused):
            self._count_error(outcome)
            response = request.error_response(outcome.code, outcome.reason, *outcome.pairs)
        else:
            response = request.success(*outcome)
        answer = response.encode(identity.key, sha256=identity.sha256, fingerprint=request.has_fingerprint)
        allocation = self.allocations.get(asked.five_tuple)
        if allocation is not None:
            allocation.remember(request.transaction_id, answer, now)
        self._transmits.append(Transmit(asked.base, asked.client, answer))

    # --- the methods ---------------------------------------------------------------------------------------------

    def _on_allocate(self, asked: Asked, now: float) -> Sequence[Pair] | None:
        """RFC 8656, 7.2; RFC 6062, 5.1: over TCP, the answer comes when the addresses listen."""
        service, options = self._service, self._service.options
        if asked.five_tuple in self.allocations or asked.five_tuple in self._openings:
            raise Refused(437, "Allocation Mismatch")
        wants = wanted(asked.request, is_stream=self._is_stream, mobility=options.mobility)
        account = asked.identity.account
        service.check_room(account)
        pairs: list[Pair] = []
        relayed: list[TransportAddress] = []
        if not wants.is_tcp:
            pairs, relayed = open_udp(service, wants, asked.base.host, account, now)
        service.count(account)
        lifetime = self._lifetime(asked.request)
        allocation = ServedAllocation(
            base=asked.base,
            client=asked.client,
            username=asked.identity.username,
            account=account,
            relayed={address.version: address for address in relayed},
            until={address.version: now + lifetime for address in relayed},
            meter=None if options.max_bytes_per_s is None else TokenMeter(options.max_bytes_per_s, now),
            is_tcp=wants.is_tcp,
        )
        if wants.is_tcp:
            opening = Opening(asked=asked, allocation=allocation, versions=wants.versions, lifetime=lifetime)
            self._openings[allocation.key] = opening
            self._events.append(OpenListeners(opening=opening))
            return None
        service.policy.relayed.update(relayed)
        self._begin(allocation)
        return [*pairs, *self._more_of(allocation, asked, lifetime)]

    def _begin(self, allocation: ServedAllocation) -> None:
        self.allocations[allocation.key] = allocation
        self._expiry.schedule(allocation)
        self._events.append(AllocationMade(allocation=allocation))

    def _more_of(self, allocation: ServedAllocation, asked: Asked, lifetime: int) -> list[Pair]:
        """What else an answer to Allocate says."""
        pairs: list[Pair] = [(LIFETIME, lifetime), (XOR_MAPPED_ADDRESS, asked.client)]
        if asked.request.get(MOBILITY_TICKET) is not None:
            pairs.append((MOBILITY_TICKET, self._new_ticket(allocation)))
        return pairs

    def _on_refresh(self, asked: Asked, now: float) -> Sequence[Pair]:
        """RFC 8656, 8.2; RFC 8016, 3.2.2."""
        ticket = asked.request.get(MOBILITY_TICKET)
        if ticket is None:
            allocation = self._owned(asked)
        else:
            allocation = self._moved(ticket, asked)
        family = asked.request.get(REQUESTED_ADDRESS_FAMILY)
        version = None if family is None else VERSIONS.get(family)
        if family is not None and version not in allocation.relayed:
            raise Refused(443, "Peer Address Family Mismatch")
        if asked.request.get(LIFETIME) == 0:
            self._delete(allocation, version, now)
            return [(LIFETIME, 0)]
        lifetime = self._lifetime(asked.request)
        for each in allocation.relayed if version is None else (version,):
            allocation.until[each] = now + lifetime
        self._expiry.schedule(allocation)
        pairs: list[Pair] = [(LIFETIME, lifetime)]
        if ticket is not None:
            # RFC 8016, 3.2.2: the former five-tuple is served until data comes from this one.
            if allocation.moving is not None:
                del self.allocations[allocation.moving]
            allocation.moving = asked.five_tuple
            self.allocations[allocation.moving] = allocation
            self._by_ticket.pop(ticket, None)
            pairs.append((MOBILITY_TICKET, self._new_ticket(allocation)))
        return pairs

    def _moved(self, ticket: bytes, asked: Asked) -> ServedAllocation:
        if not self._service.options.mobility:
            raise Refused(405, "Mobility Forbidden")
        allocation = self._by_ticket.get(ticket)
        if allocation is None:
            # One that we gave is known by its signature; what it was for has ended, or has a newer one.
            is_ours = self._service.knows_ticket(ticket)
            raise Refused(437, "Allocation Mismatch") if is_ours else Refused(400, "Bad Request")
        if allocation.key == asked.five_tuple:
            raise Refused(400, "Bad Request")
        if asked.identity.username != allocation.username:
            raise Refused(441, "Wrong Credentials")
        if asked.five_tuple in self.allocations:
            raise Refused(437, "Allocation Mismatch")
        return allocation

    def _delete(self, allocation: ServedAllocation, version: int | None, now: float) -> None:
        if version is None or len(allocation.relayed) == 1:
            self._end(allocation, "deleted", now)
            return
        # RFC 8656, 8.1: "MUST NOT affect any permissions or channels associated with allocations for the other
        # address family".
        address = allocation.relayed.pop(version)
        del allocation.until[version]
        allocation.permissions = {
            host: until for host, until in allocation.permissions.items() if (6 if ":" in host else 4) != version
        }
        for number, (peer, _) in list(allocation.channels.items()):
            if peer.version == version:
                del allocation.channels[number], allocation.numbers[peer]
        self._close(allocation, address, now)

    def _on_create_permission(self, asked: Asked, now: float) -> Sequence[Pair]:
        """RFC 8656, 10.2: all of them or none."""
        allocation = self._owned(asked)
        peers = asked.request.get_all(XOR_PEER_ADDRESS)
        if not peers:
            raise Refused(400, "Bad Request")
        for peer in peers:
            self._check_family(allocation, peer)
            if not self._service.policy.admits_host(peer.host):
                raise Refused(403, "Forbidden")
        if not allocation.has_room({peer.host for peer in peers}, now, MAX_PERMISSIONS):
            raise Refused(508, "Insufficient Capacity")
        for peer in peers:
            allocation.permit(peer.host, now)
        return []

    def _on_channel_bind(self, asked: Asked, now: float) -> Sequence[Pair]:
        """RFC 8656, 12.2. What is sent to a peer over TCP has no channels."""
        allocation = self._owned(asked)
        if allocation.is_tcp:
            raise Refused(403, "Forbidden")
        number, peer = asked.request.get(CHANNEL_NUMBER), asked.request.get(XOR_PEER_ADDRESS)
        if number is None or peer is None or number not in CHANNELS:
            raise Refused(400, "Bad Request")
        self._check_family(allocation, peer)
        if not self._service.policy.admits(peer):
            raise Refused(403, "Forbidden")
        if not allocation.has_room({peer.host}, now, MAX_PERMISSIONS):
            raise Refused(508, "Insufficient Capacity")
        if not allocation.bind(number, peer, now):
            raise Refused(400, "Bad Request")
        allocation.permit(peer.host, now)
        if peer in self._service.policy.relayed:
            self._service.note_bound(allocation, peer)
        return []

    def _on_connect(self, asked: Asked, now: float) -> None:
        """RFC 6062, 5.2."""
        self.tcp.connect(asked, self._owned(asked), now)

    def _on_connection_bind(self, asked: Asked, now: float) -> Sequence[Pair]:
        """RFC 6062, 5.4."""
        if not self._is_stream or asked.five_tuple in self._openings:
            raise Refused(400, "Bad Request")
        return self.tcp.bind(asked, now)

    def _on_send(self, message: Message, datagram: Datagram, now: float) -> None:
        """RFC 8656, 11.2. Of two peers in one message, the first is judged and the first is sent to."""
        allocation = self.allocations.get((datagram.base, datagram.source))
        peer, data = message.get(XOR_PEER_ADDRESS), message.get(DATA)
        if allocation is not None and allocation.moving is not None:
            self.confirm(allocation, (datagram.base, datagram.source))
        if allocation is None or allocation.is_tcp or peer is None or data is None or _not_understood(message):
            self._drop("indication that makes no sense")
        elif peer.version not in allocation.relayed or now >= allocation.permissions.get(peer.host, 0.0):
            self._drop("indication without permission")
        elif not self._service.policy.admits(peer):
            self._drop("peer that is not admitted")
        elif allocation.meter is not None and not allocation.meter.admits(len(data), now):
            self._drop(OVER_TO_PEERS)
        else:
            allocation.packets[0] += 1
            allocation.octets[0] += len(data)
            self._transmits.append(Transmit(allocation.relayed[peer.version], peer, data))

    # --- inside --------------------------------------------------------------------------------------------------

    def _owned(self, asked: Asked) -> ServedAllocation:
        allocation = self.allocations.get(asked.five_tuple)
        if allocation is None:
            raise Refused(437, "Allocation Mismatch")
        if allocation.username != asked.identity.username:
            raise Refused(441, "Wrong Credentials")
        return allocation

    @staticmethod
    def _check_family(allocation: ServedAllocation, peer: TransportAddress) -> None:
        if peer.version not in allocation.relayed:
            raise Refused(443, "Peer Address Family Mismatch")

    def _lifetime(self, request: Message) -> int:
        wanted = request.get(LIFETIME)
        limit = self._service.options.max_lifetime_s
        return DEFAULT_LIFETIME_S if wanted is None else max(DEFAULT_LIFETIME_S, min(wanted, limit))

    def _new_ticket(self, allocation: ServedAllocation) -> bytes:
        if allocation.ticket is not None:
            self._by_ticket.pop(allocation.ticket, None)
        allocation.ticket = self._service.make_ticket()
        self._by_ticket[allocation.ticket] = allocation
        return allocation.ticket

    def _end(self, allocation: ServedAllocation, reason: str, now: float) -> None:
        del self.allocations[allocation.key]
        if allocation.moving is not None:
            del self.allocations[allocation.moving]
        if allocation.ticket is not None:
            self._by_ticket.pop(allocation.ticket, None)
        service = self._service
        service.discount(allocation.account)
        service.add_up(allocation)
        service.forget_bound(allocation)
        for address in allocation.relayed.values():
            self._close(allocation, address, now)
        self._events.append(AllocationEnded(allocation=allocation, reason=reason))

    def _close(self, allocation: ServedAllocation, address: TransportAddress, now: float) -> None:
        if allocation.is_tcp:
            self.tcp.end(allocation, address, now)
        else:
            self._service.close(address)

    def _count_error(self, refused: Refused) -> None:
        self.counters["errors"] += 1
        self.counters[f"errors: {refused.code}"] += 1

    def _drop(self, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1


# ``None``: it is answered later.
_Handler = Callable[[TurnServer, Asked, float], Sequence[Pair] | None]

_HANDLERS: dict[int, _Handler] = {
    Method.ALLOCATE: TurnServer._on_allocate,
    Method.REFRESH: TurnServer._on_refresh,
    Method.CREATE_PERMISSION: TurnServer._on_create_permission,
    Method.CHANNEL_BIND: TurnServer._on_channel_bind,
    Method.CONNECT: TurnServer._on_connect,
    Method.CONNECTION_BIND: TurnServer._on_connection_bind,
}


def _not_understood(message: Message) -> tuple[int, ...]:
    """Comprehension-required attributes that TURN does not know; DONT-FRAGMENT among them: what is relayed may be
    fragmented. Where TCP is asked for, RFC 6062, 5.1 has an error of its own for that.
    """
    is_fragmenting = message.get(REQUESTED_TRANSPORT) != TCP
    known = [
        int(code)
        for code, _ in message.attributes
        if int(code) in _NOT_OURS or (code == DONT_FRAGMENT and is_fragmenting)
    ]
    return (*message.unknown_required, *dict.fromkeys(known))
