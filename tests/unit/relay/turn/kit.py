"""A client and a strict server (``tests/fakes/turn_server.py``) in virtual time, with a delay between them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event
from relay.account import TurnCredentials
from relay.turn import Allocated, Allocation, AllocationOptions, PeerData
from tests.fakes.turn_server import Options, TurnServer

E = TypeVar("E", bound=Event)

CLIENT = TransportAddress("192.0.2.1", 5000)
SERVER = TransportAddress("203.0.113.1", 3478)
PEER = TransportAddress("203.0.113.9", 7000)
USER = TurnCredentials(username="user", password="secret")
DELAY_S = 0.05

Item = tuple[float, int, Callable[[], None]]


class Play:
    """What is sent arrives after ``DELAY_S``, unless ``loses`` says otherwise.

    Attributes:
        at_peers: what peers got: (relayed, peer, data).
        events: of the client's.
        sent: what the client sent.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        credentials: TurnCredentials | None = USER,
        asked: AllocationOptions | None = None,
        seed: int = 1,
    ) -> None:
        self.now = 1000.0
        self.server = TurnServer(SERVER, options or Options(users={"user": "secret"}), Random(seed))
        self.client = Allocation(CLIENT, SERVER, credentials, Random(seed), asked)
        self.events: list[Event] = []
        self.at_peers: list[tuple[TransportAddress, TransportAddress, bytes]] = []
        self.sent: list[bytes] = []
        self.loses: Callable[[bytes], bool] = lambda data: False
        self.changes: Callable[[bytes], bytes] = lambda data: data
        self._queue: list[Item] = []
        self._count = 0

    def allocate(self) -> Allocated:
        """Until it is there."""
        self.client.allocate(self.now)
        self.run(1.0)
        return self.only(Allocated)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self._drain()
        while True:
            deadline = self.client.poll_timeout()
            arrival = self._queue[0][0] if self._queue else None
            due = [at for at in (deadline, arrival) if at is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            if arrival is not None and arrival <= self.now:
                heapq.heappop(self._queue)[2]()
            else:
                self.client.handle_timeout(self.now)
            self._drain()
        self.now = end

    def send(self, data: bytes = b"hello", peer: TransportAddress = PEER) -> int:
        """As a socket does."""
        message = self.client.wrap(peer, data)
        number = 0
        if message is None:
            number = self.client.send(peer, data, self.now)
        else:
            self._leave(message)
        self.client.watch(self.now)
        self._drain()
        return number

    def from_peer(self, data: bytes = b"hi", peer: TransportAddress = PEER) -> None:
        """A peer sends to our relayed address."""
        relayed = self.client.relayed_for(peer)
        assert relayed is not None
        self._take(self.server.from_peer(relayed, peer, data, self.now))

    def to_client(self, data: bytes) -> None:
        """The server, or who pretends to be, sends this now."""
        self.client.handle_datagram(Datagram(self.client.base, SERVER, data), self.now)
        self._drain()

    def received(self) -> list[tuple[TransportAddress, bytes]]:
        """What peers have sent, in order."""
        return [(event.peer, event.data) for event in self.events if isinstance(event, PeerData)]

    def only(self, kind: type[E]) -> E:
        """The one event of a kind."""
        found = [event for event in self.events if isinstance(event, kind)]
        assert len(found) == 1, self.events
        return found[0]

    def has(self, kind: type[Any]) -> bool:
        """Whether there was one."""
        return any(isinstance(event, kind) for event in self.events)

    def act(self, method: Callable[..., None], *args: object) -> None:
        """Call a command of the client's."""
        method(*args, self.now)
        self._drain()

    def _drain(self) -> None:
        while (transmit := self.client.poll_transmit()) is not None:
            self._leave(transmit.data, transmit.base)
        while (event := self.client.poll_event()) is not None:
            self.events.append(event)

    def _leave(self, data: bytes, base: TransportAddress | None = None) -> None:
        self.sent.append(data)
        client = base or self.client.base
        if not self.loses(data):
            self._later(lambda: self._take(self.server.from_client(client, data, self.now)))

    def _take(self, outgoing: list[tuple[TransportAddress, TransportAddress, bytes]]) -> None:
        for source, destination, data in outgoing:
            if source == SERVER:
                changed = self.changes(data)
                self._later(lambda to=destination, what=changed: self._arrive(to, what))  # type: ignore[misc]
            else:
                self.at_peers.append((source, destination, data))

    def _arrive(self, destination: TransportAddress, data: bytes) -> None:
        if destination == self.client.base:
            self.client.handle_datagram(Datagram(destination, SERVER, data), self.now)

    def _later(self, work: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + DELAY_S, self._count, work))
