"""What does a TURN server answer, and what does it relay?

RFC 8656 and 8016, sans-IO: requests and Send indications through the contract of ``iceagent/net/core.py``; ChannelData
and what peers send goes by the shell's data path (``relay/relays.py``) through :class:`ServedAllocation` alone. One
:class:`TurnServer` serves the five-tuples of one kind of transport; what several share is a :class:`TurnService`.

Everything is bounded: allocations (in total and of one user), permissions and channels of each, answers that are kept,
reservations. Before a request is authenticated nothing is kept of it. Pure: relayed addresses are opened by
:class:`RelayPorts`, which the shell gives.
"""

from __future__ import annotations

import heapq
import hmac
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressErrorCode,
    AddressFamily,
    Message,
    MessageClass,
    Method,
    build,
)
from relay.stun_server import ErrorLimiter
from relay.turn.credentials import Pair
from relay.turn.server.allocation import CHANNELS, ServedAllocation, TokenMeter
from relay.turn.server.auth import Accounts, Gate, Identity, Refused, Silence
from relay.turn.server.policy import PeerPolicy

__all__ = ["AllocationEnded", "AllocationMade", "RelayPorts", "TurnOptions", "TurnServer", "TurnService"]

_UDP = 17
MAX_LIFETIME_S = 3600
DEFAULT_LIFETIME_S = 600
"""RFC 8656, 3.2 and 7.2."""

RESERVATION_S = 30.0
MAX_RESERVATIONS = 1024
SPARE_ENTRIES = 8
MAX_UNKNOWN = 16
"""Attributes that a 420 names: a request with thousands would else be answered, and remembered, at that length."""
MAX_PERMISSIONS = 1024
"""Of one allocation: as many as coturn allows."""

_VERSIONS = {int(AddressFamily.IPV4): 4, int(AddressFamily.IPV6): 6}
# Comprehension-required attributes that the codec knows and TURN does not.
_NOT_OURS = frozenset({0x0003, 0x0024, 0x0025, 0x0026, 0x0027, 0x002A})


class RelayPorts(Protocol):
    """Opens relayed addresses, at once."""

    def open(self, version: int, near: str, *, even: bool = False, pair: bool = False) -> list[TransportAddress]:
        """Open one; with ``pair``, the next port as well.

        Args:
            version: 4 or 6.
            near: the host that the client speaks to.
            even: an even port.
            pair: two addresses, the second one port higher.

        Raises:
            LookupError: there are no addresses of this version.
            OSError: no port is free.
        """

    def close(self, address: TransportAddress) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """How a TURN server behaves.

    Attributes:
        accounts: who may.
        max_allocations: in total; beyond it 508.
        user_quota: of one user; beyond it 486. ``None``: no limit.
        max_bytes_per_s: of one allocation, both directions together; ``None``: no limit.
        mobility: RFC 8016; else 405.
        max_lifetime_s: 600 … 3600.
    """

    accounts: Accounts
    max_allocations: int = 1000
    user_quota: int | None = None
    max_bytes_per_s: float | None = None
    mobility: bool = True
    max_lifetime_s: int = MAX_LIFETIME_S


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationMade(Event):
    """A client has relayed addresses from now on."""

    allocation: ServedAllocation


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationEnded(Event):
    """It has none any more; they are closed.

    Attributes:
        allocation: what it was.
        reason: ``deleted``, ``expired``, ``stream closed``.
    """

    allocation: ServedAllocation
    reason: str


class TurnService:
    """What the transports of one server have in common: accounts, quotas, ports.

    Args:
        options: see there.
        policy: which peers are admitted.
        ports: opens relayed addresses.
        system_rng: draws keys, tickets, tokens.
        wall_now: seconds since 1970, for time-limited names.
        limiter: of error responses.

    Attributes:
        allocations: how many there are.
        relayed: packets and payload bytes to peers, and from them, of those that have ended.
        is_draining: no new ones are made.
    """

    def __init__(
        self,
        options: TurnOptions,
        policy: PeerPolicy,
        ports: RelayPorts,
        system_rng: Random,
        wall_now: Callable[[], float],
        limiter: ErrorLimiter,
    ) -> None:
        self.options = options
        self.policy = policy
        self.ports = ports
        self.system_rng = system_rng
        self.wall_now = wall_now
        self.limiter = limiter
        self.gate = Gate(options.accounts, system_rng)
        self.by_user: Counter[str] = Counter()
        self.allocations = 0
        self.relayed = [[0, 0], [0, 0]]
        self.is_draining = False
        self._ticket_key = system_rng.randbytes(32)
        self._reserved: dict[bytes, tuple[TransportAddress, float]] = {}
        self._bound: dict[TransportAddress, set[ServedAllocation]] = {}

    def reserve(self, address: TransportAddress, now: float) -> bytes:
        """Keep an open address for who has the token, for 30 s."""
        token = self.system_rng.randbytes(8)
        self._reserved[token] = (address, now + RESERVATION_S)
        return token

    def claim(self, token: bytes, now: float) -> TransportAddress:
        """The address of a token.

        Raises:
            Refused: 508: there is none (any more).
        """
        self.expire(now)
        found = self._reserved.pop(token, None)
        if found is None:
            raise Refused(508, "Insufficient Capacity")
        return found[0]

    def expire(self, now: float) -> None:
        """Close what was reserved and not claimed."""
        for token, (address, until) in list(self._reserved.items()):
            if now >= until:
                del self._reserved[token]
                self.ports.close(address)

    def note_bound(self, allocation: ServedAllocation, relayed: TransportAddress) -> None:
        """A channel leads to a relayed address of this server: it ends with that."""
        self._bound.setdefault(relayed, set()).add(allocation)

    def make_ticket(self) -> bytes:
        """What moves an allocation (RFC 8016); it can be told from one that somebody made up."""
        number = self.system_rng.randbytes(16)
        return number + self._sign(number)

    def knows_ticket(self, ticket: bytes) -> bool:
        """Whether it is one of ours, however old."""
        return hmac.compare_digest(ticket[16:], self._sign(ticket[:16]))

    def _sign(self, number: bytes) -> bytes:
        return hmac.digest(self._ticket_key, number, "sha256")[:16]

    def forget_bound(self, allocation: ServedAllocation) -> None:
        """An allocation has ended, with its channels."""
        for peer in allocation.numbers:
            self._bound.get(peer, set()).discard(allocation)

    def close(self, address: TransportAddress) -> None:
        """A relayed address has ended: nothing is sent there any more, whoever has its port next."""
        self.policy.relayed.discard(address)
        for allocation in self._bound.pop(address, ()):
            allocation.unbind(address)
        self.ports.close(address)

    @property
    def reserves_until(self) -> float | None:
        """When the next reservation ends."""
        return min((until for _, until in self._reserved.values()), default=None)

    @property
    def may_reserve(self) -> bool:
        """Whether there is room for one more."""
        return len(self._reserved) < MAX_RESERVATIONS


class TurnServer:
    """The five-tuples of one kind of transport.

    Args:
        service: shared.
        is_stream: over TCP or TLS.

    Attributes:
        allocations: by our end and the client's.
        counters: ``requests``, ``errors``, ``dropped: <reason>``, and each method's name.
    """

    def __init__(self, service: TurnService, *, is_stream: bool = False) -> None:
        self._service = service
        self._is_stream = is_stream
        self._by_ticket: dict[bytes, ServedAllocation] = {}
        self._heap: list[tuple[float, int, ServedAllocation]] = []
        self._sequence = 0
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque()
        self.allocations: dict[tuple[TransportAddress, TransportAddress], ServedAllocation] = {}
        self.counters: Counter[str] = Counter()

    # --- messages ------------------------------------------------------------------------------------------------

    def handle_message(self, message: Message, datagram: Datagram, now: float) -> bool:
        """Take a STUN message of a TURN method; false: it is none."""
        if message.is_indication and message.method == Method.SEND:
            self._on_send(message, datagram, now)
        elif message.is_request and message.method in _HANDLERS:
            self._on_request(message, datagram, now)
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
        allocation = self.allocations.get((base, client))
        if allocation is None:
            return
        if allocation.moving is None:
            self._end(allocation, "stream closed")
        elif allocation.moving == (base, client):
            del self.allocations[allocation.moving]
            allocation.moving = None
        else:
            self.confirm(allocation, allocation.moving)

    def from_peer(self, allocation: ServedAllocation, peer: tuple[str, int], data: bytes, now: float) -> bytes | None:
        """What a peer's datagram becomes for the client; ``None``: it is dropped."""
        if not allocation.admits(peer, len(data), now):
            self.counters["dropped: peer without permission, or too much"] += 1
            return None
        head = allocation.channel_head(peer, len(data), now)
        if head is not None:
            return head + data + bytes(-len(data) & 3) if self._is_stream else head + data
        pairs: tuple[Pair, ...] = ((XOR_PEER_ADDRESS, TransportAddress._make(peer)), (DATA, data))
        identity = self._service.system_rng.randbytes(12)
        try:
            return build(Method.DATA, MessageClass.INDICATION, identity, *pairs).encode(fingerprint=False)
        except ValueError:
            # With its attributes it is longer than a message can be.
            self.counters["dropped: too long for an indication"] += 1
            return None

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

    # --- time ----------------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """End what has expired."""
        self._service.expire(now)
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if not self._is_in_force(entry):
                continue
            allocation = entry[2]
            allocation.scheduled_at = math.inf
            if all(now >= until for until in allocation.until.values()):
                self._end(allocation, "expired")
                continue
            for version in [version for version, until in allocation.until.items() if now >= until]:
                self._delete(allocation, version)
            self._schedule(allocation)

    def poll_timeout(self) -> float | None:
        """When the next one may have expired."""
        due = (self._heap[0][0] if self._heap else None, self._service.reserves_until)
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """A response to a client, from ``base``; or a datagram to a peer, from a relayed address."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One thing that happened."""
        return self._events.popleft() if self._events else None

    # --- requests ------------------------------------------------------------------------------------------------

    def _on_request(self, request: Message, datagram: Datagram, now: float) -> None:
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
            identity = service.gate.authenticate(request, client, now, wall_now, is_known=known is not None)
            unknown = _not_understood(request)
            if unknown:
                raise Refused(420, "Unknown Attribute", (UNKNOWN_ATTRIBUTES, unknown[:MAX_UNKNOWN]))
            pairs = _HANDLERS[request.method](self, request, datagram, identity, now)
            response = request.success(*pairs)
        except Silence:
            self.counters["dropped: too many wrong passwords"] += 1
            return
        except Refused as refused:
            self.counters["errors"] += 1
            if identity is None and not self._is_stream and not service.limiter.admits(client.host, now):
                # Whose source may be forged: an answer could be aimed at somebody.
                self.counters["dropped: too many errors"] += 1
                return
            response = request.error_response(refused.code, refused.reason, *refused.pairs)
        if identity is None:
            answer = response.encode(fingerprint=request.has_fingerprint)
        else:
            answer = response.encode(identity.key, sha256=identity.sha256, fingerprint=request.has_fingerprint)
            allocation = self.allocations.get((datagram.base, client))
            if allocation is not None:
                allocation.remember(request.transaction_id, answer, now)
        self._transmits.append(Transmit(datagram.base, client, answer))

    def _on_allocate(self, request: Message, datagram: Datagram, identity: Identity, now: float) -> list[Pair]:
        """RFC 8656, 7.2."""
        service, options = self._service, self._service.options
        if (datagram.base, datagram.source) in self.allocations:
            raise Refused(437, "Allocation Mismatch")
        transport = request.get(REQUESTED_TRANSPORT)
        if transport is None:
            raise Refused(400, "Bad Request")
        if transport != _UDP:
            raise Refused(442, "Unsupported Transport Protocol")
        token, even = request.get(RESERVATION_TOKEN), request.get(EVEN_PORT)
        family, additional = request.get(REQUESTED_ADDRESS_FAMILY), request.get(ADDITIONAL_ADDRESS_FAMILY)
        if token is not None and (even is not None or family is not None or additional is not None):
            raise Refused(400, "Bad Request")
        if additional is not None and (family is not None or even or additional != AddressFamily.IPV6):
            raise Refused(400, "Bad Request")
        if family is not None and family not in _VERSIONS:
            raise Refused(440, "Address Family not Supported")
        ticket = request.get(MOBILITY_TICKET)
        if ticket:
            raise Refused(400, "Bad Request")
        if ticket is not None and not options.mobility:
            raise Refused(405, "Mobility Forbidden")
        if options.user_quota is not None and service.by_user[identity.account] >= options.user_quota:
            raise Refused(486, "Allocation Quota Reached")
        if service.is_draining or service.allocations >= options.max_allocations:
            raise Refused(508, "Insufficient Capacity")
        pairs, relayed = self._open(datagram.base.host, token, even, family, additional, now)
        lifetime = self._lifetime(request)
        allocation = ServedAllocation(
            base=datagram.base,
            client=datagram.source,
            username=identity.username,
            account=identity.account,
            relayed={address.version: address for address in relayed},
            until={address.version: now + lifetime for address in relayed},
            meter=None if options.max_bytes_per_s is None else TokenMeter(options.max_bytes_per_s, now),
        )
        self.allocations[allocation.key] = allocation
        service.by_user[identity.account] += 1
        service.allocations += 1
        service.policy.relayed.update(relayed)
        self._schedule(allocation)
        self._events.append(AllocationMade(allocation=allocation))
        pairs += [(LIFETIME, lifetime), (XOR_MAPPED_ADDRESS, datagram.source)]
        if ticket is not None:
            pairs.append((MOBILITY_TICKET, self._new_ticket(allocation)))
        return pairs

    def _open(
        self,
        near: str,
        token: bytes | None,
        even: bool | None,
        family: int | None,
        additional: int | None,
        now: float,
    ) -> tuple[list[Pair], list[TransportAddress]]:
        """Open what is asked for; gives what the answer says of it."""
        service = self._service
        if token is not None:
            claimed = service.claim(token, now)
            return [(XOR_RELAYED_ADDRESS, claimed)], [claimed]
        pair = bool(even) and service.may_reserve
        if even and not pair:
            raise Refused(508, "Insufficient Capacity")
        versions = [4 if family is None else _VERSIONS[family]] if additional is None else [4, 6]
        relayed: list[TransportAddress] = []
        pairs: list[Pair] = []
        refused: list[tuple[int, Refused]] = []
        for version in versions:
            try:
                opened = service.ports.open(version, near, even=even is not None and version == versions[0], pair=pair)
            except LookupError:
                refused.append((version, Refused(440, "Address Family not Supported")))
            except OSError:
                refused.append((version, Refused(508, "Insufficient Capacity")))
            else:
                relayed.append(opened[0])
                if pair:
                    pairs.append((RESERVATION_TOKEN, service.reserve(opened[1], now)))
        if not relayed:
            raise refused[0][1]
        for version, why in refused:
            number = AddressFamily.IPV6 if version == 6 else AddressFamily.IPV4
            pairs.append((ADDRESS_ERROR_CODE, AddressErrorCode(number, why.code, why.reason)))
        return [*((XOR_RELAYED_ADDRESS, address) for address in relayed), *pairs], relayed

    def _on_refresh(self, request: Message, datagram: Datagram, identity: Identity, now: float) -> list[Pair]:
        """RFC 8656, 8.2; RFC 8016, 3.2.2."""
        ticket = request.get(MOBILITY_TICKET)
        if ticket is None:
            allocation = self._owned(datagram, identity)
        else:
            allocation = self._moved(ticket, datagram, identity)
        family = request.get(REQUESTED_ADDRESS_FAMILY)
        version = None if family is None else _VERSIONS.get(family)
        if family is not None and version not in allocation.relayed:
            raise Refused(443, "Peer Address Family Mismatch")
        if request.get(LIFETIME) == 0:
            self._delete(allocation, version)
            return [(LIFETIME, 0)]
        lifetime = self._lifetime(request)
        for each in allocation.relayed if version is None else (version,):
            allocation.until[each] = now + lifetime
        self._schedule(allocation)
        pairs: list[Pair] = [(LIFETIME, lifetime)]
        if ticket is not None:
            # RFC 8016, 3.2.2: the former five-tuple is served until data comes from this one.
            if allocation.moving is not None:
                del self.allocations[allocation.moving]
            allocation.moving = (datagram.base, datagram.source)
            self.allocations[allocation.moving] = allocation
            self._by_ticket.pop(ticket, None)
            pairs.append((MOBILITY_TICKET, self._new_ticket(allocation)))
        return pairs

    def _moved(self, ticket: bytes, datagram: Datagram, identity: Identity) -> ServedAllocation:
        if not self._service.options.mobility:
            raise Refused(405, "Mobility Forbidden")
        allocation = self._by_ticket.get(ticket)
        if allocation is None:
            # One that we gave is known by its signature; what it was for has ended, or has a newer one.
            is_ours = self._service.knows_ticket(ticket)
            raise Refused(437, "Allocation Mismatch") if is_ours else Refused(400, "Bad Request")
        if allocation.key == (datagram.base, datagram.source):
            raise Refused(400, "Bad Request")
        if identity.username != allocation.username:
            raise Refused(441, "Wrong Credentials")
        if (datagram.base, datagram.source) in self.allocations:
            raise Refused(437, "Allocation Mismatch")
        return allocation

    def _delete(self, allocation: ServedAllocation, version: int | None) -> None:
        if version is None or len(allocation.relayed) == 1:
            self._end(allocation, "deleted")
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
        self._close(address)

    def _on_create_permission(self, request: Message, datagram: Datagram, identity: Identity, now: float) -> list[Pair]:
        """RFC 8656, 10.2: all of them or none."""
        allocation = self._owned(datagram, identity)
        peers = request.get_all(XOR_PEER_ADDRESS)
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

    def _on_channel_bind(self, request: Message, datagram: Datagram, identity: Identity, now: float) -> list[Pair]:
        """RFC 8656, 12.2."""
        allocation = self._owned(datagram, identity)
        number, peer = request.get(CHANNEL_NUMBER), request.get(XOR_PEER_ADDRESS)
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

    def _on_send(self, message: Message, datagram: Datagram, now: float) -> None:
        """RFC 8656, 11.2. Of two peers in one message, the first is judged and the first is sent to."""
        allocation = self.allocations.get((datagram.base, datagram.source))
        peer, data = message.get(XOR_PEER_ADDRESS), message.get(DATA)
        if allocation is not None and allocation.moving is not None:
            self.confirm(allocation, (datagram.base, datagram.source))
        if allocation is None or peer is None or data is None or _not_understood(message):
            self._drop("indication that makes no sense")
        elif peer.version not in allocation.relayed or now >= allocation.permissions.get(peer.host, 0.0):
            self._drop("indication without permission")
        elif not self._service.policy.admits(peer):
            self._drop("peer that is not admitted")
        elif allocation.meter is not None and not allocation.meter.admits(len(data), now):
            self._drop("too much")
        else:
            allocation.packets[0] += 1
            allocation.octets[0] += len(data)
            self._transmits.append(Transmit(allocation.relayed[peer.version], peer, data))

    # --- inside --------------------------------------------------------------------------------------------------

    def _owned(self, datagram: Datagram, identity: Identity) -> ServedAllocation:
        allocation = self.allocations.get((datagram.base, datagram.source))
        if allocation is None:
            raise Refused(437, "Allocation Mismatch")
        if allocation.username != identity.username:
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

    def _schedule(self, allocation: ServedAllocation) -> None:
        """Look at it when it may have expired; what is looked at too early is looked at again."""
        if allocation.expires_at >= allocation.scheduled_at:
            return
        allocation.scheduled_at = allocation.expires_at
        self._sequence += 1
        heapq.heappush(self._heap, (allocation.expires_at, self._sequence, allocation))
        if len(self._heap) > 2 * len(self.allocations) + SPARE_ENTRIES:
            # Of those that were deleted, or scheduled anew.
            self._heap = [entry for entry in self._heap if self._is_in_force(entry)]
            heapq.heapify(self._heap)

    def _is_in_force(self, entry: tuple[float, int, ServedAllocation]) -> bool:
        at, _, allocation = entry
        return self.allocations.get(allocation.key) is allocation and at == allocation.scheduled_at

    def _end(self, allocation: ServedAllocation, reason: str) -> None:
        del self.allocations[allocation.key]
        if allocation.moving is not None:
            del self.allocations[allocation.moving]
        if allocation.ticket is not None:
            self._by_ticket.pop(allocation.ticket, None)
        service = self._service
        service.allocations -= 1
        service.by_user[allocation.account] -= 1
        if not service.by_user[allocation.account]:
            del service.by_user[allocation.account]
        for direction in (0, 1):
            service.relayed[direction][0] += allocation.packets[direction]
            service.relayed[direction][1] += allocation.octets[direction]
        service.forget_bound(allocation)
        for address in allocation.relayed.values():
            self._close(address)
        self._events.append(AllocationEnded(allocation=allocation, reason=reason))

    def _close(self, address: TransportAddress) -> None:
        self._service.close(address)

    def _drop(self, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1


_Handler = Callable[[TurnServer, Message, Datagram, Identity, float], list[Pair]]

_HANDLERS: dict[int, _Handler] = {
    Method.ALLOCATE: TurnServer._on_allocate,
    Method.REFRESH: TurnServer._on_refresh,
    Method.CREATE_PERMISSION: TurnServer._on_create_permission,
    Method.CHANNEL_BIND: TurnServer._on_channel_bind,
}


def _not_understood(message: Message) -> tuple[int, ...]:
    """Comprehension-required attributes that TURN does not know; DONT-FRAGMENT among them: what is relayed may be
    fragmented.
    """
    known = [int(code) for code, _ in message.attributes if int(code) in _NOT_OURS or code == DONT_FRAGMENT]
    return (*message.unknown_required, *dict.fromkeys(known))
