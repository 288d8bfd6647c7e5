"""What would a TURN server that knows every MUST answer to this datagram?

RFC 8656 over UDP with the long-term credentials of RFC 8489, 9.2 and the mobility of RFC 8016: bytes and the time in,
datagrams out; no socket, no clock. :attr:`TurnServer.counters` says what was refused or dropped,
:attr:`TurnServer.violations` what a client must not do although many a server lets it pass; a test of a client wants
the second to be empty.

Order of work for a request: an answer that was given already; 300; authentication (400, 401, 438, all unsigned); 420;
437 and 441; what the method asks for. Everything after authentication is signed.

Strict in time: what lives until T is gone at T, and no data refreshes anything. Where the RFCs leave a choice:

- a nonce is valid for ``nonce_lifetime_s``, wherever the request comes from;
- ChannelData on a bound channel is relayed without a permission (RFC 8656, 12.6, asks for none), but counted;
- after a move, peers' data goes to the old five-tuple until the client sends data on the new one (RFC 8016, 3.2.2);
- the ticket of an allocation that is gone gives 437, one from before a restart 400: its key is lost.

What it does not do: TCP, ICMP, third-party authorization, limits on its own memory.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from iceagent.net.address import TransportAddress
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_SERVER,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    LIFETIME,
    MAPPED_ADDRESS,
    MOBILITY_TICKET,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressErrorCode,
    AddressFamily,
    AlgorithmParameters,
    Attribute,
    BadMessage,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    PasswordAlgorithm,
    SecurityFeature,
    build,
    is_stun,
    long_term_key,
    nonce_cookie,
    opaque_string,
    parse,
    security_features,
    userhash,
)

__all__ = ["Allocation", "Channel", "Options", "TurnServer"]

RELAY_HOSTS = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
"""Where relayed addresses are, by IP version."""

RELAY_PORTS = range(49152, 65536)
"""RFC 8656, 7.2."""

MAX_LIFETIME_S = 3600
"""RFC 8656, 7.2: "a maximum allowed lifetime value of no more than 3600 seconds"."""

PERMISSION_S = 300.0
"""RFC 8656, 9."""

CHANNEL_S = 600.0
"""RFC 8656, 12: "A channel binding lasts for 10 minutes unless refreshed"."""

CHANNEL_PAUSE_S = 300.0
"""RFC 8656, 12: "the client MUST wait 5 minutes after the channel binding expires"."""

RESERVATION_S = 30.0
"""RFC 8656, 7.2: "at least 30 seconds"."""

ANSWER_S = 40.0
"""RFC 8489, 6.3.1: how long requests and their responses are remembered."""

CHANNEL_NUMBERS = range(0x4000, 0x5000)
UDP = 17
VERSIONS: dict[int, int] = {AddressFamily.IPV4: 4, AddressFamily.IPV6: 6}
ALGORITHMS = (AlgorithmParameters(PasswordAlgorithm.SHA256), AlgorithmParameters(PasswordAlgorithm.MD5))
CREDENTIALS: tuple[Attribute[Any], ...] = (USERNAME, USERHASH, REALM, NONCE, PASSWORD_ALGORITHM, PASSWORD_ALGORITHMS)

REASONS = {
    300: "Try Alternate",
    400: "Bad Request",
    401: "Unauthenticated",
    403: "Forbidden",
    405: "Mobility Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    486: "Allocation Quota Reached",
    508: "Insufficient Capacity",
}

# Of the comprehension-required ones. Others that the codec knows (PRIORITY, CHANGE-REQUEST …) are none of TURN's.
_UNDERSTOOD: frozenset[int] = frozenset(
    (
        MAPPED_ADDRESS,
        USERNAME,
        ERROR_CODE,
        UNKNOWN_ATTRIBUTES,
        CHANNEL_NUMBER,
        LIFETIME,
        XOR_PEER_ADDRESS,
        DATA,
        REALM,
        NONCE,
        XOR_RELAYED_ADDRESS,
        REQUESTED_ADDRESS_FAMILY,
        EVEN_PORT,
        REQUESTED_TRANSPORT,
        DONT_FRAGMENT,
        PASSWORD_ALGORITHM,
        USERHASH,
        XOR_MAPPED_ADDRESS,
        RESERVATION_TOKEN,
    )
)
_CHANNEL_HEAD = struct.Struct("!HH")

Outgoing = tuple[TransportAddress, TransportAddress, bytes]
Pair = tuple[Attribute[Any], Any]


@dataclass(kw_only=True)
class Options:
    """How the server behaves. May be changed while it runs.

    Attributes:
        users: name to password.
        lifetime_s: what an allocation gets at least; at most it gets 3600, or this if it is more.
        nonce_lifetime_s: after that a nonce is answered with 438 and a new one.
        mobility: ``True`` gives tickets, ``False`` ignores MOBILITY-TICKET, ``None`` answers it with 405.
        sha256: offer password algorithms.
        userhash: demand USERHASH.
        ipv6_relay: whether there are IPv6 relayed addresses.
        forbidden: peer hosts that are refused with 403.
        quota: allocations at once per user; beyond it 486.
        alternate: where every Allocate request is sent with 300.
    """

    users: Mapping[str, str]
    realm: str = "example.org"
    lifetime_s: int = 600
    nonce_lifetime_s: float = 3600.0
    mobility: bool | None = False
    sha256: bool = False
    userhash: bool = False
    ipv6_relay: bool = True
    forbidden: frozenset[str] = frozenset()
    quota: int | None = None
    alternate: TransportAddress | None = None


class Channel(NamedTuple):
    """A channel binding: the peer, and when it ends."""

    peer: TransportAddress
    expires_at: float


@dataclass(eq=False, kw_only=True)
class Allocation:
    """What the server knows of an allocation: RFC 8656, 6.

    Attributes:
        clients: its five-tuples. Data goes to the first; a move appends one, data from there drops those before it.
        relayed: each relayed address and when it ends.
        permissions: each permitted host and until when.
        channels: each bound channel number.
        lapsed: number and binding of channels that ended within the last five minutes.
        ticket: the MOBILITY-TICKET that moves it, if it has one.
    """

    username: str
    clients: list[TransportAddress]
    relayed: dict[TransportAddress, float]
    permissions: dict[str, float] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    lapsed: list[tuple[int, Channel]] = field(default_factory=list)
    ticket: bytes | None = None

    def relayed_for(self, peer: TransportAddress) -> TransportAddress | None:
        """The relayed address of the peer's family."""
        return next((address for address in self.relayed if address.version == peer.version), None)

    def permit(self, peer: TransportAddress, now: float) -> None:
        self.permissions[peer.host] = now + PERMISSION_S

    def channel_of(self, peer: TransportAddress) -> int | None:
        return next((number for number, channel in self.channels.items() if channel.peer == peer), None)

    def move(self, client: TransportAddress) -> None:
        """Add a five-tuple; going back to an older one drops those that came after it."""
        if client in self.clients:
            del self.clients[self.clients.index(client) + 1 :]
        else:
            self.clients.append(client)

    def confirm(self, client: TransportAddress) -> None:
        """Data came from this five-tuple: the older ones are void (RFC 8016, 3.2.2)."""
        del self.clients[: self.clients.index(client)]

    def expire(self, now: float) -> list[TransportAddress]:
        """Drop what has ended; gives the relayed addresses among it."""
        for number, channel in list(self.channels.items()):
            if now >= channel.expires_at:
                self.lapsed.append((number, self.channels.pop(number)))
        self.lapsed = [entry for entry in self.lapsed if now < entry[1].expires_at + CHANNEL_PAUSE_S]
        self.permissions = {host: until for host, until in self.permissions.items() if now < until}
        ended = [address for address, until in self.relayed.items() if now >= until]
        for address in ended:
            self.drop(address)
        return ended

    def drop(self, relayed: TransportAddress) -> None:
        """RFC 8656, 8.1: "Deleting a single allocation destroys any permissions or channels" of it, and no others."""
        version = relayed.version
        del self.relayed[relayed]
        self.permissions = {
            host: until for host, until in self.permissions.items() if TransportAddress(host, 0).version != version
        }
        self.channels = {
            number: channel for number, channel in self.channels.items() if channel.peer.version != version
        }
        self.lapsed = [entry for entry in self.lapsed if entry[1].peer.version != version]


class TurnServer:
    """A TURN server.

    Args:
        address: where clients reach it.
        rng: source of ports, nonces, tickets, tokens and transaction ids.

    Attributes:
        counters: "requests", "retransmissions" (answered as before), each error code sent ("437"), and a phrase for
            each kind of thing that was dropped.
        violations: sentences on what a client must not do, in order.
    """

    def __init__(self, address: TransportAddress, options: Options, rng: random.Random) -> None:
        self.address, self.options = address, options
        self.counters: Counter[str] = Counter()
        self.violations: list[str] = []
        self._rng = rng
        self._gate = _Gate(options, rng, self.violations)
        self._ports = _Ports(rng)
        self._allocations: list[Allocation] = []
        self._tickets: dict[bytes, Allocation] = {}
        self._tickets_ever: set[bytes] = set()
        self._answers: dict[tuple[TransportAddress, bytes], tuple[float, bytes]] = {}
        self._requests_ever: dict[bytes, bytes] = {}
        self._without_ipv6: set[TransportAddress] = set()

    def from_client(self, client: TransportAddress, data: bytes, now: float) -> list[Outgoing]:
        """Take a datagram that arrived at :attr:`address`.

        Returns:
            source, destination and payload of each datagram that the server sends: to the client from
            :attr:`address`, to a peer from a relayed address.
        """
        self._expire(now)
        if data and 0x40 <= data[0] <= 0x4F:
            return self._on_channel_data(client, data)
        if not is_stun(data):
            return self._drop("neither STUN nor channel data")
        try:
            message = parse(data)
        except BadMessage as error:
            self.violations.append(f"a malformed message: {error}")
            return self._drop("malformed message")
        if message.is_indication:
            return self._on_indication(client, message)
        if not message.is_request:
            return self._drop("response from a client")
        answer = self._answer(client, message, data, now)
        return [] if answer is None else [(self.address, client, answer)]

    def from_peer(self, relayed: TransportAddress, peer: TransportAddress, data: bytes, now: float) -> list[Outgoing]:
        """Take a datagram from a peer that arrived at a relayed address: RFC 8656, 11.3."""
        self._expire(now)
        allocation = next((one for one in self._allocations if relayed in one.relayed), None)
        if allocation is None:
            return self._drop("peer data without allocation")
        if peer.host not in allocation.permissions:
            return self._drop("peer data without permission")
        number = allocation.channel_of(peer)
        if number is None:
            pairs: tuple[Pair, ...] = ((XOR_PEER_ADDRESS, peer), (DATA, data))
            payload = build(Method.DATA, MessageClass.INDICATION, self._rng.randbytes(12), *pairs).encode(
                fingerprint=False
            )
        else:
            payload = _CHANNEL_HEAD.pack(number, len(data)) + data
        return [(self.address, allocation.clients[0], payload)]

    def restart(self) -> None:
        """Forget every allocation, reservation, nonce, ticket and answer, as a crash does."""
        self._gate.forget()
        self._ports = _Ports(self._rng)
        self._allocations.clear()
        self._tickets.clear()
        self._answers.clear()
        self._without_ipv6.clear()

    def allocations(self, now: float) -> list[Allocation]:
        """The allocations that live, the oldest first. They change with the next call of anything."""
        self._expire(now)
        return list(self._allocations)

    def _expire(self, now: float) -> None:
        self._ports.expire(now)
        for allocation in self._allocations:
            self._ports.used.difference_update(allocation.expire(now))
        self._allocations = [allocation for allocation in self._allocations if allocation.relayed]

    def _drop(self, what: str) -> list[Outgoing]:
        self.counters[what] += 1
        return []

    def _find(self, client: TransportAddress) -> Allocation | None:
        return next((allocation for allocation in self._allocations if client in allocation.clients), None)

    def _on_channel_data(self, client: TransportAddress, data: bytes) -> list[Outgoing]:
        # 12.6. Receiving a ChannelData Message
        allocation = self._find(client)
        if allocation is None:
            return self._drop("channel data without allocation")
        allocation.confirm(client)
        if len(data) < _CHANNEL_HEAD.size:
            return self._drop("channel data cut short")
        number, length = _CHANNEL_HEAD.unpack_from(data)
        payload = data[_CHANNEL_HEAD.size : _CHANNEL_HEAD.size + length]
        if len(payload) < length:
            return self._drop("channel data cut short")
        if len(data) - _CHANNEL_HEAD.size - length > 3:
            self.violations.append("channel data with more than padding behind it")
        channel = allocation.channels.get(number)
        if channel is None:
            return self._drop("channel data on an unbound channel")
        if channel.peer.host not in allocation.permissions:
            self.counters["channel data without permission"] += 1
        return self._relay(allocation, channel.peer, payload)

    def _on_indication(self, client: TransportAddress, message: Message) -> list[Outgoing]:
        # 11.2. Receiving a Send Indication
        if message.method == Method.BINDING:
            return self._drop("binding indication")
        if message.method != Method.SEND:
            return self._drop("indication of another method")
        allocation = self._find(client)
        if allocation is None:
            return self._drop("indication without allocation")
        allocation.confirm(client)
        if _not_understood(message):
            return self._drop("indication with unknown attributes")
        peer, data = message.get(XOR_PEER_ADDRESS), message.get(DATA)
        if peer is None or data is None:
            return self._drop("indication without peer or data")
        if peer.host not in allocation.permissions:
            return self._drop("indication without permission")
        return self._relay(allocation, peer, data)

    def _relay(self, allocation: Allocation, peer: TransportAddress, data: bytes) -> list[Outgoing]:
        relayed = allocation.relayed_for(peer)
        assert relayed is not None, "permissions and channels go with their relayed address"
        return [(relayed, peer, data)]

    def _answer(self, client: TransportAddress, request: Message, data: bytes, now: float) -> bytes | None:
        """The response to a request, as bytes; ``None`` where RFC 8489, 6.3 asks for silence."""
        self.counters["requests"] += 1
        name = _name(request)
        if self._requests_ever.setdefault(request.transaction_id, data) != data:
            self.violations.append(f"{name}: the transaction id of another request")
        answered_at, answer = self._answers.get((client, request.transaction_id), (0.0, b""))
        if answer and now < answered_at + ANSWER_S:
            self.counters["retransmissions"] += 1
            return answer
        if request.method != Method.BINDING and request.method not in _HANDLERS:
            self._drop("request of an unknown method")
            return None
        if request.method == Method.ALLOCATE:
            self._judge_allocate(request)
        identity: _Identity | None = None
        try:
            if request.method == Method.ALLOCATE and self.options.alternate is not None:
                raise _Refused(300, (ALTERNATE_SERVER, self.options.alternate))
            if request.method != Method.BINDING:
                identity = self._gate.authenticate(request, now)
            if unknown := _not_understood(request):
                raise _Refused(420, (UNKNOWN_ATTRIBUTES, unknown))
            if identity is None:
                pairs: list[Pair] = [(XOR_MAPPED_ADDRESS, client)]
            else:
                pairs = _HANDLERS[request.method](self, request, client, identity.username, now)
            response = request.success(*pairs, *_software(request))
        except _Refused as refused:
            self.counters[str(refused.code)] += 1
            response = request.error_response(refused.code, REASONS[refused.code], *refused.pairs, *_software(request))
        answer = _encode(response, identity, request.has_fingerprint)
        self._answers[client, request.transaction_id] = now, answer
        return answer

    def _on_allocate(self, request: Message, client: TransportAddress, username: str, now: float) -> list[Pair]:
        # 7.2. Receiving an Allocate Request
        if self._find(client) is not None:
            raise _Refused(437)
        transport = request.get(REQUESTED_TRANSPORT)
        if transport != UDP:
            raise _Refused(400 if transport is None else 442)
        token, even_port = request.get(RESERVATION_TOKEN), request.get(EVEN_PORT)
        family, additional = request.get(REQUESTED_ADDRESS_FAMILY), request.get(ADDITIONAL_ADDRESS_FAMILY)
        if token is not None:
            if even_port is not None or family is not None or additional is not None:
                raise _Refused(400)
            self._ports.check(token)
        if family is not None and additional is not None:
            raise _Refused(400)
        versions = self._versions(client, family, additional, token)
        if additional is not None and (even_port or additional != AddressFamily.IPV6):
            raise _Refused(400)
        ticket = self._asks_for_ticket(request)
        if self.options.quota is not None:
            owned = sum(allocation.username == username for allocation in self._allocations)
            if owned >= self.options.quota:
                raise _Refused(486)
        if token is not None:
            addresses = [self._ports.claim(token)]
        else:
            addresses = [self._ports.allocate(version, even_port) for version in versions]
        lifetime = self._lifetime(request)
        allocation = Allocation(username=username, clients=[client], relayed=dict.fromkeys(addresses, now + lifetime))
        self._allocations.append(allocation)
        pairs: list[Pair] = [(XOR_RELAYED_ADDRESS, address) for address in addresses]
        pairs += [(LIFETIME, lifetime), (XOR_MAPPED_ADDRESS, client)]
        if even_port:
            pairs.append((RESERVATION_TOKEN, self._ports.reserve(addresses[0], now)))
        if additional is not None and len(addresses) == 1:
            pairs.append((ADDRESS_ERROR_CODE, AddressErrorCode(AddressFamily.IPV6, 440, REASONS[440])))
        if ticket:
            pairs.append((MOBILITY_TICKET, self._new_ticket(allocation)))
        return pairs

    def _judge_allocate(self, request: Message) -> None:
        """What 7.1 forbids the client, whether or not it is answered with 400."""
        family, additional = request.get(REQUESTED_ADDRESS_FAMILY), request.get(ADDITIONAL_ADDRESS_FAMILY)
        token, even_port = request.get(RESERVATION_TOKEN), request.get(EVEN_PORT)
        ticket = request.get(MOBILITY_TICKET)
        wrong = {
            "no REQUESTED-TRANSPORT": request.get(REQUESTED_TRANSPORT) is None,
            "REQUESTED-ADDRESS-FAMILY twice": len(request.get_all(REQUESTED_ADDRESS_FAMILY)) > 1,
            "REQUESTED- and ADDITIONAL-ADDRESS-FAMILY": family is not None and additional is not None,
            "ADDITIONAL-ADDRESS-FAMILY that is not IPv6": additional not in (None, AddressFamily.IPV6),
            "ADDITIONAL-ADDRESS-FAMILY and EVEN-PORT with R": additional is not None and even_port is True,
            "RESERVATION-TOKEN and an address family": token is not None and (family, additional) != (None, None),
            "RESERVATION-TOKEN and EVEN-PORT": token is not None and even_port is not None,
            "MOBILITY-TICKET that is not empty": bool(ticket),
        }
        self.violations += [f"Allocate: {what}" for what, is_so in wrong.items() if is_so]

    def _versions(
        self, client: TransportAddress, family: int | None, additional: int | None, token: bytes | None
    ) -> list[int]:
        """The IP versions of the relayed addresses to allocate."""
        if additional is None and family is None:
            return [] if token is not None else [4]
        wants_ipv6 = AddressFamily.IPV6 in (family, additional)
        if wants_ipv6 and not self.options.ipv6_relay:
            if client in self._without_ipv6:
                self.violations.append("Allocate: an IPv6 address once more, after 440")
            self._without_ipv6.add(client)
        if additional is not None:
            return [4, 6] if self.options.ipv6_relay else [4]
        if family not in VERSIONS or (wants_ipv6 and not self.options.ipv6_relay):
            raise _Refused(440)
        return [VERSIONS[family]]

    def _lifetime(self, request: Message) -> int:
        """Seconds: RFC 8656, 7.2 and 8.2, but for the zero of the latter."""
        requested, default = request.get(LIFETIME), self.options.lifetime_s
        return default if requested is None else max(default, min(requested, MAX_LIFETIME_S))

    def _asks_for_ticket(self, request: Message) -> bool:
        # RFC 8016, 3.1.2. Receiving an Allocate Request
        ticket = request.get(MOBILITY_TICKET)
        if ticket is None or self.options.mobility is False:
            return False
        if ticket:
            raise _Refused(400)
        if self.options.mobility is None:
            raise _Refused(405)
        return True

    def _new_ticket(self, allocation: Allocation) -> bytes:
        allocation.ticket = ticket = self._rng.randbytes(24)
        self._tickets[ticket] = allocation
        self._tickets_ever.add(ticket)
        return ticket

    def _on_refresh(self, request: Message, client: TransportAddress, username: str, now: float) -> list[Pair]:
        # 8.2. Receiving a Refresh Request
        ticket = request.get(MOBILITY_TICKET)
        if ticket is not None and ticket not in self._tickets_ever:
            self.violations.append("Refresh: a MOBILITY-TICKET that this server never gave")
        moves = ticket is not None and self.options.mobility is not False
        if ticket is not None and moves:
            allocation = self._by_ticket(ticket, client, username)
        else:
            allocation = self._owned(client, username)
        family = request.get(REQUESTED_ADDRESS_FAMILY)
        concerned = [
            address for address in allocation.relayed if family is None or address.version == VERSIONS.get(family)
        ]
        if not concerned:
            raise _Refused(443)
        if request.get(LIFETIME) == 0:
            for address in concerned:
                allocation.drop(address)
                self._ports.used.discard(address)
            self._expire(now)
            lifetime = 0
        else:
            lifetime = self._lifetime(request)
            allocation.relayed.update(dict.fromkeys(concerned, now + lifetime))
        if not moves or not allocation.relayed:
            return [(LIFETIME, lifetime)]
        allocation.move(client)
        return [(LIFETIME, lifetime), (MOBILITY_TICKET, self._new_ticket(allocation))]

    def _by_ticket(self, ticket: bytes, client: TransportAddress, username: str) -> Allocation:
        # RFC 8016, 3.2.2. Receiving a Refresh Request
        if self.options.mobility is None:
            raise _Refused(405)
        allocation = self._tickets.get(ticket)
        if allocation is None:
            raise _Refused(400)
        if not allocation.relayed:
            raise _Refused(437)
        if ticket != allocation.ticket:
            # "The old ticket can only be used for the purposes of retransmission." A client whose data came from the
            # new five-tuple has the new one; another may never have got it.
            if len(allocation.clients) == 1:
                self.violations.append("Refresh: an old MOBILITY-TICKET")
            raise _Refused(400)
        if client == allocation.clients[-1]:
            self.violations.append("Refresh: a MOBILITY-TICKET from the allocation's own five-tuple")
            raise _Refused(400)
        if username != allocation.username:
            raise _Refused(441)
        if self._find(client) not in (None, allocation):
            raise _Refused(437)
        return allocation

    def _owned(self, client: TransportAddress, username: str) -> Allocation:
        """The allocation of a five-tuple, for any request but Allocate: RFC 8656, 5."""
        allocation = self._find(client)
        if allocation is None:
            raise _Refused(437)
        if allocation.username != username:
            raise _Refused(441)
        return allocation

    def _on_create_permission(
        self, request: Message, client: TransportAddress, username: str, now: float
    ) -> list[Pair]:
        # 10.2. Receiving a CreatePermission Request
        allocation = self._owned(client, username)
        peers = request.get_all(XOR_PEER_ADDRESS)
        if not peers:
            raise _Refused(400)
        self._check_peers(allocation, peers)
        for peer in peers:
            allocation.permit(peer, now)
        return []

    def _on_channel_bind(self, request: Message, client: TransportAddress, username: str, now: float) -> list[Pair]:
        # 12.2. Receiving a ChannelBind Request
        allocation = self._owned(client, username)
        number, peer = request.get(CHANNEL_NUMBER), request.get(XOR_PEER_ADDRESS)
        if peer is None or number is None or number not in CHANNEL_NUMBERS:
            raise _Refused(400)
        if any((other == number) != (bound.peer == peer) for other, bound in allocation.channels.items()):
            raise _Refused(400)
        self._check_peers(allocation, [peer])
        if any((other == number) != (bound.peer == peer) for other, bound in allocation.lapsed):
            self.violations.append(
                f"ChannelBind: 0x{number:x} to {peer}, one of which was bound otherwise until lately"
            )
        allocation.channels[number] = Channel(peer, now + CHANNEL_S)
        allocation.permit(peer, now)
        return []

    def _check_peers(self, allocation: Allocation, peers: list[TransportAddress]) -> None:
        if any(allocation.relayed_for(peer) is None for peer in peers):
            raise _Refused(443)
        if any(peer.host in self.options.forbidden for peer in peers):
            raise _Refused(403)


_HANDLERS: dict[int, Callable[[TurnServer, Message, TransportAddress, str, float], list[Pair]]] = {
    Method.ALLOCATE: TurnServer._on_allocate,
    Method.REFRESH: TurnServer._on_refresh,
    Method.CREATE_PERMISSION: TurnServer._on_create_permission,
    Method.CHANNEL_BIND: TurnServer._on_channel_bind,
}


class _Refused(Exception):
    """A request gets an error response."""

    def __init__(self, code: int, *pairs: Pair) -> None:
        super().__init__(code)
        self.code, self.pairs = code, pairs


class _Identity(NamedTuple):
    """Who sent a request, and how the response is signed."""

    username: str
    key: IntegrityKey
    sha256: bool


class _Gate:
    """Who may come in: RFC 8489, 9.2.4."""

    def __init__(self, options: Options, rng: random.Random, violations: list[str]) -> None:
        self._options, self._rng, self._violations = options, rng, violations
        self._nonces: dict[str, float] = {}
        self._nonces_ever: set[str] = set()

    def forget(self) -> None:
        self._nonces.clear()

    def authenticate(self, request: Message, now: float) -> _Identity:
        """The checks of 9.2.4, in its order.

        Raises:
            _Refused: with 400, 401 or 438.
        """
        if not (request.has_integrity or request.has_integrity_sha256):
            if offered := [attribute.name for attribute in CREDENTIALS if request.get_all(attribute)]:
                self._blame(request, f"{', '.join(offered)} without message integrity")
            raise self._challenge(401, now)
        nonce, realm = request.get(NONCE), request.get(REALM)
        if nonce is None or realm is None or (request.get(USERNAME) is None and request.get(USERHASH) is None):
            self._blame(request, "message integrity without USERNAME or USERHASH, REALM and NONCE")
            raise _Refused(400)
        self._judge(request, nonce, realm)
        algorithm = self._algorithm(request, nonce)
        username = self._username(request)
        if username is None:
            raise self._challenge(401, now)
        key = long_term_key(
            opaque_string(username),
            self._options.realm,
            self._options.users[username],
            PasswordAlgorithm.MD5 if algorithm is None else algorithm,
        )
        if not (request.verify_sha256(key) if request.has_integrity_sha256 else request.verify(key)):
            raise self._challenge(401, now)
        if nonce not in self._nonces or now >= self._nonces[nonce] + self._options.nonce_lifetime_s:
            raise self._challenge(438, now)
        return _Identity(username, key, algorithm is not None)

    def _challenge(self, code: int, now: float) -> _Refused:
        features = SecurityFeature(0)
        if self._options.sha256:
            features |= SecurityFeature.PASSWORD_ALGORITHMS
        if self._options.userhash:
            features |= SecurityFeature.USERNAME_ANONYMITY
        nonce = nonce_cookie(features) + self._rng.randbytes(12).hex()
        self._nonces[nonce] = now
        self._nonces_ever.add(nonce)
        pairs: list[Pair] = [(REALM, self._options.realm), (NONCE, nonce)]
        if self._options.sha256:
            pairs.append((PASSWORD_ALGORITHMS, ALGORITHMS))
        return _Refused(code, *pairs)

    def _judge(self, request: Message, nonce: str, realm: str) -> None:
        """What 9.2.5 forbids the client; the cookie of the nonce says what it was asked for."""
        features = security_features(nonce) or SecurityFeature(0)
        has_algorithms = SecurityFeature.PASSWORD_ALGORITHMS in features
        is_anonymous = SecurityFeature.USERNAME_ANONYMITY in features
        algorithm, algorithms = request.get(PASSWORD_ALGORITHM), request.get(PASSWORD_ALGORITHMS)
        wrong = {
            "a NONCE that this server never gave": nonce not in self._nonces_ever,
            "another REALM than the server's": realm != self._options.realm,
            "USERNAME where USERHASH is demanded": is_anonymous and request.get(USERNAME) is not None,
            "USERHASH where USERNAME is demanded": not is_anonymous and request.get(USERHASH) is not None,
            "no PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS, which the server offered": has_algorithms
            and None in (algorithm, algorithms),
            "PASSWORD-ALGORITHM or PASSWORD-ALGORITHMS, which the server did not offer": not has_algorithms
            and (algorithm, algorithms) != (None, None),
            "not the first PASSWORD-ALGORITHM of the list": has_algorithms and algorithm not in (None, ALGORITHMS[0]),
            "MESSAGE-INTEGRITY where only MESSAGE-INTEGRITY-SHA256 is allowed": has_algorithms
            and request.has_integrity,
        }
        for what, is_so in wrong.items():
            if is_so:
                self._blame(request, what)

    def _algorithm(self, request: Message, nonce: str) -> PasswordAlgorithm | None:
        """How the key is made; ``None`` for a request that is "processed as though PASSWORD-ALGORITHM were MD5"."""
        algorithm, algorithms = request.get(PASSWORD_ALGORITHM), request.get(PASSWORD_ALGORITHMS)
        features = security_features(nonce) or SecurityFeature(0)
        if SecurityFeature.PASSWORD_ALGORITHMS not in features or (algorithm is None and algorithms is None):
            return None
        if algorithm is None or algorithms != ALGORITHMS or algorithm not in ALGORITHMS:
            raise _Refused(400)
        return PasswordAlgorithm(algorithm.algorithm)

    def _username(self, request: Message) -> str | None:
        """The user, as :attr:`Options.users` spells it; ``None`` if there is none like this."""
        name, hashed = request.get(USERNAME), request.get(USERHASH)
        for user in self._options.users:
            if hashed is not None:
                if self._options.userhash and hashed == userhash(user, self._options.realm):
                    return user
            elif name == opaque_string(user):
                return user
        return None

    def _blame(self, request: Message, what: str) -> None:
        self._violations.append(f"{_name(request)}: {what}")


class _Ports:
    """Which relayed addresses are free."""

    def __init__(self, rng: random.Random) -> None:
        self.used: set[TransportAddress] = set()
        self._rng = rng
        self._reservations: dict[bytes, tuple[TransportAddress, float]] = {}

    def allocate(self, version: int, even_port: bool | None) -> TransportAddress:
        """Take a free address; an even port unless ``even_port`` is ``None``, with a free one above if it is true.

        Raises:
            _Refused: with 508 if there is none.
        """
        ports = RELAY_PORTS if even_port is None else RELAY_PORTS[::2]
        start = self._rng.randrange(len(ports))
        for index in range(len(ports)):
            port = ports[(start + index) % len(ports)]
            address = TransportAddress(RELAY_HOSTS[version], port)
            if address not in self.used and not (even_port and address._replace(port=port + 1) in self.used):
                self.used.add(address)
                return address
        raise _Refused(508)

    def reserve(self, address: TransportAddress, now: float) -> bytes:
        """Reserve the port above an even one, which :meth:`allocate` found free; gives the token."""
        token, above = self._rng.randbytes(8), address._replace(port=address.port + 1)
        self.used.add(above)
        self._reservations[token] = above, now + RESERVATION_S
        return token

    def check(self, token: bytes) -> None:
        if token not in self._reservations:
            raise _Refused(508)

    def claim(self, token: bytes) -> TransportAddress:
        address, _ = self._reservations.pop(token)
        return address

    def expire(self, now: float) -> None:
        for token, (address, until) in list(self._reservations.items()):
            if now >= until:
                del self._reservations[token]
                self.used.discard(address)


def _not_understood(message: Message) -> tuple[int, ...]:
    codes = [int(code) for code, _ in message.attributes if code < 0x8000 and code not in _UNDERSTOOD]
    return tuple(dict.fromkeys(codes))


def _software(request: Message) -> list[Pair]:
    """RFC 8656, 5: SOFTWARE "in all Allocate and Refresh responses (either success or failure)"."""
    return [(SOFTWARE, "a model")] if request.method in (Method.ALLOCATE, Method.REFRESH) else []


def _encode(response: Message, identity: _Identity | None, fingerprint: bool) -> bytes:
    if identity is None:
        return response.encode(fingerprint=fingerprint)
    return response.encode(identity.key, sha256=identity.sha256, fingerprint=fingerprint)


def _name(request: Message) -> str:
    """The method as the RFC writes it."""
    try:
        return Method(request.method).name.title().replace("_", "")
    except ValueError:
        return f"method 0x{request.method:03x}"
