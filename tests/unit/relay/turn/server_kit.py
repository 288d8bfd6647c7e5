"""Our server, with ports that are only counted, and clients whose requests are written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event
from relay.error_limits import ErrorLimiter
from relay.stun import (
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
)
from relay.stun_server import StunServer
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, PeerPolicy, ServedAllocation, TurnOptions, TurnServer, TurnService

SERVER = TransportAddress("203.0.113.1", 3478)
CLIENT = TransportAddress("192.0.2.1", 5000)
OTHER = TransportAddress("192.0.2.2", 5000)
# 198.51.100.0/24 and its like are for documentation, and refused: peers are where they could be.
PEER = TransportAddress("93.184.216.34", 7000)
PEER_2 = TransportAddress("93.184.216.35", 7000)
PEER_6 = TransportAddress("2606:2800:220:1::1", 7000)
REALM_NAME = "example.org"
USERS = {"user": "secret", "other": "password"}
RELAY_HOSTS = {4: "93.184.216.1", 6: "2606:2800:220:1::2"}
WALL = 1_700_000_000.0


class Ports:
    """Relayed addresses that are open."""

    def __init__(self, hosts: dict[int, str] | None = None, limit: int = 10_000) -> None:
        self.hosts = RELAY_HOSTS if hosts is None else hosts
        self.open_now: set[TransportAddress] = set()
        self._next = 49152
        self._limit = limit

    def open(self, version: int, near: str, *, even: bool = False, pair: bool = False) -> list[TransportAddress]:
        host = self.hosts[version]
        if len(self.open_now) >= self._limit:
            raise OSError("full")
        if (even or pair) and self._next % 2:
            self._next += 1
        found = [TransportAddress(host, self._next + offset) for offset in range(2 if pair else 1)]
        self._next = 49152 + (self._next - 49152 + len(found)) % 16000
        self.open_now.update(found)
        return found

    def close(self, address: TransportAddress) -> None:
        self.open_now.discard(address)


class Court:
    """A server and the time.

    Attributes:
        to_peers: what was relayed by Send indications: (relayed, peer, data).
        events: of the server's.
    """

    def __init__(self, *, is_stream: bool = False, ports: Ports | None = None, **options: Any) -> None:
        accounts = options.pop("accounts", Accounts(realm=REALM_NAME, users=USERS))
        allow, deny = options.pop("allow", ()), options.pop("deny", ())
        self.now = 1000.0
        self.ports = ports or Ports()
        self.policy = PeerPolicy(allow, deny)
        self.policy.own.update((SERVER.host, *RELAY_HOSTS.values()))
        self.limiter = ErrorLimiter()
        self.wall = WALL
        options_of = TurnOptions(accounts=accounts, **options)
        self.service = TurnService(options_of, self.policy, self.ports, Random(1), lambda: self.wall, self.limiter)
        self.turn = TurnServer(self.service, is_stream=is_stream)
        self.stun = StunServer(limiter=self.limiter, turn=self.turn, is_stream=is_stream)
        self.stun.bases.add(SERVER)
        self.to_peers: list[tuple[TransportAddress, TransportAddress, bytes]] = []
        self.events: list[Event] = []
        self._count = 0

    def deliver(self, data: bytes, source: TransportAddress = CLIENT) -> list[bytes]:
        """Give the server a datagram; what it sends back to whoever, but peers."""
        self.stun.handle_datagram(Datagram(SERVER, source, data), self.now)
        return self.drain()

    def drain(self) -> list[bytes]:
        answers = []
        while (transmit := self.stun.poll_transmit()) is not None:
            if transmit.base == SERVER:
                answers.append(transmit.data)
            else:
                self.to_peers.append((transmit.base, transmit.destination, transmit.data))
        while (event := self.stun.poll_event()) is not None:
            self.events.append(event)
        return answers

    def pass_time(self, seconds: float) -> None:
        """Wake the server whenever it asks for it."""
        end = self.now + seconds
        while (at := self.stun.poll_timeout()) is not None and at <= end:
            self.now = max(self.now, at)
            self.stun.handle_timeout(self.now)
            self.drain()
        self.now = end
        self.wall += seconds

    def transaction_id(self) -> bytes:
        self._count += 1
        return self._count.to_bytes(12, "big")

    def allocation(self, client: TransportAddress = CLIENT) -> ServedAllocation:
        return self.turn.allocations[SERVER, client]


class Client:
    """One five-tuple that signs as it is told to."""

    def __init__(
        self, court: Court, source: TransportAddress = CLIENT, username: str = "user", password: str = "secret"
    ) -> None:
        self.court = court
        self.source = source
        self.username = username
        self.key: IntegrityKey = long_term_key(username, REALM_NAME, password)
        self.nonce = ""
        self.last = b""

    def challenge(self) -> Message:
        """Ask without a name, and keep the nonce."""
        message = build(Method.ALLOCATE, MessageClass.REQUEST, self.court.transaction_id(), (REQUESTED_TRANSPORT, 17))
        (answer,) = self.court.deliver(message.encode(), self.source)
        found = parse(answer)
        self.nonce = found.get(NONCE) or ""
        return found

    def request(self, method: int, *pairs: Pair, nonce: str | None = None, sign: bool = True) -> bytes:
        """The bytes of a signed request."""
        if not self.nonce and nonce is None:
            self.challenge()
        credentials: Sequence[Pair] = (
            (USERNAME, self.username),
            (REALM, REALM_NAME),
            (NONCE, self.nonce if nonce is None else nonce),
        )
        message = build(method, MessageClass.REQUEST, self.court.transaction_id(), *pairs, *credentials)
        self.last = message.encode(self.key if sign else None)
        return self.last

    def ask(self, method: int, *pairs: Pair, **options: Any) -> Message:
        """Send a signed request; the answer, which has to be signed if it is no question for credentials."""
        (answer,) = self.court.deliver(self.request(method, *pairs, **options), self.source)
        found = parse(answer)
        if found.error is None or found.error.code not in (401, 438):
            assert found.verify(self.key)
        return found

    def allocate(self, *pairs: Pair) -> Message:
        return self.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17), *pairs)

    def indicate(self, method: int, *pairs: Pair) -> None:
        message = build(method, MessageClass.INDICATION, self.court.transaction_id(), *pairs)
        assert self.court.deliver(message.encode(fingerprint=False), self.source) == []


def code(answer: Message) -> int:
    """Of an error response; 0: it is none."""
    return 0 if answer.error is None else answer.error.code
