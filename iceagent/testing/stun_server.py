"""What does a STUN server in a simulated network answer?

:class:`StunServerNode` is a core like any other: Binding requests get XOR-MAPPED-ADDRESS (RFC 8489), and with two
addresses and two ports it is a server of RFC 5780, which answers from elsewhere if asked (CHANGE-REQUEST). It may be
slow or dead. Pure.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence

from iceagent.net.address import TransportAddress, canonical_host
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.testing.links import DEFAULT_LATENCY_S
from iceagent.testing.network import Network
from iceagent.testing.peers import Peer
from relay.stun import (
    CHANGE_REQUEST,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    BadMessage,
    ChangeRequest,
    Message,
    Method,
    is_stun,
    parse,
)

__all__ = ["StunServerNode", "add_stun_server"]

QUEUE_LIMIT = 4_096
"""Answers waiting to leave, and drops waiting to be told."""

STUN_PORT = 3478


class StunServerNode:
    """A STUN server.

    Args:
        addresses: what it listens on. With behaviour discovery: the primary address first, and the alternate one with
            another host and another port (RFC 5780, 6); the two mixed addresses follow from them.
        behaviour_discovery: whether it does RFC 5780.
        delay_s: seconds from request to answer.
        is_dead: it answers nothing.

    Attributes:
        delay_s: may be changed.
        is_dead: may be changed.
        requests: sources of the Binding requests it has answered.

    Raises:
        ValueError: behaviour discovery with other than two addresses that differ in host and port.
    """

    def __init__(
        self,
        addresses: Sequence[TransportAddress],
        *,
        behaviour_discovery: bool = False,
        delay_s: float = 0.0,
        is_dead: bool = False,
    ) -> None:
        self.addresses = frozenset(addresses)
        self.delay_s = delay_s
        self.is_dead = is_dead
        self.requests: deque[TransportAddress] = deque(maxlen=QUEUE_LIMIT)
        self._others: dict[TransportAddress, dict[ChangeRequest, TransportAddress]] = {}
        if behaviour_discovery:
            self._others = _alternatives(addresses)
            self.addresses = frozenset(self._others)
        self._order = itertools.count()
        self._answers: list[tuple[float, int, Transmit]] = []
        self._due: deque[Transmit] = deque()
        self._events: deque[Event] = deque(maxlen=QUEUE_LIMIT)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        if self.is_dead:
            return
        try:
            message = parse(datagram.data) if is_stun(datagram.data) else None
        except BadMessage:
            message = None
        if datagram.base not in self.addresses or message is None:
            self._drop(datagram, "not STUN, or not for us")
        elif not message.is_request or message.method != Method.BINDING:
            self._drop(datagram, "not a Binding request")
        elif len(self._answers) + len(self._due) >= QUEUE_LIMIT:
            self._drop(datagram, "busy")
        else:
            self._answer(message, datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Clients that went away are not our concern."""

    def handle_timeout(self, now: float) -> None:
        while self._answers and self._answers[0][0] <= now:
            self._due.append(heapq.heappop(self._answers)[2])

    def poll_timeout(self) -> float | None:
        return self._answers[0][0] if self._answers else None

    def poll_transmit(self) -> Transmit | None:
        return self._due.popleft() if self._due else None

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def _answer(self, request: Message, datagram: Datagram, now: float) -> None:
        self.requests.append(datagram.source)
        unknown = request.unknown_required if self._others else (*request.unknown_required, *_discovery_codes(request))
        if unknown:
            response = request.error_response(420, "Unknown Attribute", (UNKNOWN_ATTRIBUTES, unknown))
            self._send(Transmit(datagram.base, datagram.source, response.encode()), now)
        elif self._others:
            self._answer_from_elsewhere(request, datagram, now)
        else:
            response = request.success((XOR_MAPPED_ADDRESS, datagram.source))
            self._send(Transmit(datagram.base, datagram.source, response.encode()), now)

    def _answer_from_elsewhere(self, request: Message, datagram: Datagram, now: float) -> None:
        """RFC 5780, 6.1, table 1."""
        others = self._others[datagram.base]
        change = request.get(CHANGE_REQUEST)
        origin = others[change or ChangeRequest(False, False)]
        port = request.get(RESPONSE_PORT)
        destination = TransportAddress(datagram.source.host, datagram.source.port if port is None else port)
        response = request.success(
            (XOR_MAPPED_ADDRESS, datagram.source),
            (RESPONSE_ORIGIN, origin),
            (OTHER_ADDRESS, others[ChangeRequest(True, True)]),
        )
        self._send(Transmit(origin, destination, response.encode()), now)

    def _send(self, transmit: Transmit, now: float) -> None:
        if self.delay_s > 0:
            heapq.heappush(self._answers, (now + self.delay_s, next(self._order), transmit))
        else:
            self._due.append(transmit)

    def _drop(self, datagram: Datagram, reason: str) -> None:
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))


def add_stun_server(
    network: Network,
    name: str,
    hosts: Sequence[str],
    *,
    port: int = STUN_PORT,
    delay_s: float = 0.0,
    latency_s: float = DEFAULT_LATENCY_S,
) -> Peer[StunServerNode]:
    """Put a STUN server on the simulated Internet.

    Args:
        network: where.
        name: of its node.
        hosts: one address, or two for behaviour discovery (RFC 5780), whose alternate port is ``port + 1``.
        port: the primary port.
        delay_s: seconds from request to answer.
        latency_s: of its link, each way.

    Returns:
        The server, to be pumped with a :class:`SessionPair` or a ``MemoryInternet``.

    Raises:
        ValueError: the name or an address is taken, or there are more than two addresses.
    """
    addresses = [TransportAddress(canonical_host(host), port + index) for index, host in enumerate(hosts)]
    server = StunServerNode(addresses, behaviour_discovery=len(addresses) > 1, delay_s=delay_s)
    node = network.add_node(name, hosts, latency_s=latency_s)
    node.ports = set(server.addresses)
    return Peer(name, server, node)


def _discovery_codes(request: Message) -> list[int]:
    """What a server without RFC 5780 does not understand, although it must (comprehension-required)."""
    known_nowhere_else = (CHANGE_REQUEST.code, RESPONSE_PORT.code)
    return [code for code, _ in request.attributes if code in known_nowhere_else]


def _alternatives(
    addresses: Sequence[TransportAddress],
) -> dict[TransportAddress, dict[ChangeRequest, TransportAddress]]:
    """For each of the four addresses: what (change IP, change port) leads to."""
    if len(addresses) != 2 or addresses[0].host == addresses[1].host or addresses[0].port == addresses[1].port:
        raise ValueError(f"RFC 5780 needs two addresses that differ in host and port, not {[*map(str, addresses)]}")
    hosts = (addresses[0].host, addresses[1].host)
    ports = (addresses[0].port, addresses[1].port)
    return {
        TransportAddress(hosts[i], ports[j]): {
            ChangeRequest(change_ip, change_port): TransportAddress(hosts[i ^ change_ip], ports[j ^ change_port])
            for change_ip in (False, True)
            for change_port in (False, True)
        }
        for i in (0, 1)
        for j in (0, 1)
    }
