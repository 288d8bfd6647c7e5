"""Which sockets does an agent hold, and what arrives on them?

One socket per address and component: a base (RFC 8445, 4). Here a datagram is told apart before anything is parsed:
what begins with a byte of 4 or more is the application's at once; the rest is STUN if cookie and length say so (RFC
7983, 7).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.pair import Traffic
from iceagent.gather.host import HostAddress
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import DatagramReceiver, DatagramSocket, Host, SocketOptions
from iceagent.priority import CANDIDATES_PER_BASE, candidate_priority, network_cost
from relay.stun import is_stun

__all__ = ["Base", "BaseListener", "foundation", "open_base", "open_socket", "socket_options"]

# Ports of a range that are tried for one address before giving up; ranges are usually smaller.
_MAX_PORT_TRIES = 1000


class BaseListener(Protocol):
    """Who hears what a base receives, but for the peer's data."""

    def message_received(self, base: Base, data: bytes, source: tuple[str, int]) -> None:
        """STUN, or data of a stranger."""

    def data_moved(self, base: Base, source: tuple[str, int]) -> None:
        """The peer's data came in on another five-tuple than ours goes out on."""

    def error_received(self, base: Base, destination: TransportAddress, number: int) -> None:
        """The network said no."""


@dataclass(slots=True, eq=False)
class Base:
    """One socket of ours.

    Attributes:
        component: 1 … 256.
        host_address: the interface's address it stands on.
        local_preference: 15 … 65535, of the first candidate of each type; the 15 values below are this base's too.
        sink: called with (data, component) for the peer's data.
        peers: authenticated addresses, whose data is the peer's; the session's own table.
        again: so many were there before it in its place: another socket of the address, whose flows may be spoilt; an
            allocation of the server's that was lost.
        is_relayed: it is a relayed address, and its socket the way to a TURN server.
        expected: the five-tuple that our data goes out on.
        is_deprecated: its IPv6 address is to be used for nothing new (RFC 4862, 5.5.4).
        is_up: its interface is administratively up, and has a carrier.
    """

    component: int
    host_address: HostAddress
    local_preference: int
    listener: BaseListener
    now: Callable[[], float]
    sink: Callable[[bytes, int], None]
    again: int = 0
    is_relayed: bool = False
    peers: dict[TransportAddress, Traffic] = field(default_factory=dict)
    expected: Traffic | None = None
    is_deprecated: bool = False
    is_up: bool = True
    socket: DatagramSocket = field(init=False)
    _found: dict[CandidateType, list[TransportAddress]] = field(init=False, default_factory=dict)

    @property
    def address(self) -> TransportAddress:
        return self.socket.address

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """The data path: from the socket to the application without leaving this function."""
        if data and data[0] < 4 and is_stun(data):
            self.listener.message_received(self, data, source)
            return
        traffic = self.peers.get(source)  # type: ignore[call-overload]
        if traffic is None:
            self.listener.message_received(self, data, source)
            return
        traffic.packets_received += 1
        traffic.bytes_received += len(data)
        traffic.received_at = self.now()
        if traffic is not self.expected:
            self.listener.data_moved(self, source)
        self.sink(data, self.component)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """An ICMP error; without a destination it says nothing about any path."""
        if destination is not None:
            self.listener.error_received(self, destination, errno)

    def candidate(
        self,
        candidate_type: CandidateType,
        address: TransportAddress,
        origin: str,
        server: TransportAddress | None = None,
        related: TransportAddress | None = None,
        *,
        is_mapped: bool = False,
        protocol: str = "udp",
    ) -> Candidate:
        """A candidate of this base; the same for the same address, whoever found it.

        Args:
            candidate_type: see there.
            address: the candidate's.
            origin: who found it, for people.
            server: which STUN or TURN server.
            related: the related address (RFC 8839, 5.1), where it is not the base.
            is_mapped: a router maps it for us.
            protocol: ``udp`` or ``tcp``, by which the server was asked.
        """
        is_host = candidate_type is CandidateType.HOST
        preference = self._preference(candidate_type, address, is_mapped)
        return Candidate(
            foundation=foundation(
                candidate_type, self.address.host, server, again=self.again, is_mapped=is_mapped, protocol=protocol
            ),
            component=self.component,
            priority=candidate_priority(candidate_type, self.component, preference),
            address=address,
            type=candidate_type,
            related_address=None if is_host else related or self.address,
            base=self.address,
            origin=origin,
            is_mapped=is_mapped,
            network_id=self.host_address.index & 0xFFFF,
            network_cost=network_cost(self.host_address.kind, self.host_address.metered),
        )

    def _preference(self, candidate_type: CandidateType, address: TransportAddress, is_mapped: bool) -> int:
        """RFC 8445, 5.1.2: unique; but from the fifteenth on, they share one.

        The first place is kept for what a router maps, whenever it comes: once for all, for a new one takes the place
        of the old.
        """
        if is_mapped:
            return self.local_preference
        found = self._found.setdefault(candidate_type, [])
        last = CANDIDATES_PER_BASE - 2
        if address not in found and len(found) < last:
            found.append(address)
        place = found.index(address) if address in found else last
        return self.local_preference - place - (candidate_type is CandidateType.SERVER_REFLEXIVE)


def foundation(
    candidate_type: CandidateType,
    base_host: str,
    server: TransportAddress | None = None,
    *,
    again: int = 0,
    is_mapped: bool = False,
    protocol: str = "udp",
) -> str:
    """RFC 8445, 5.1.1.3: the same for candidates of the same type, base IP, protocol and server; 8 characters.

    DEVIATION: those of a second socket, and of a relay that was made again, have another one, or the peer would leave
    their pairs Frozen behind the very pair that does not work; pinned by
    test_a_rerolled_base_has_a_foundation_of_its_own.
    """
    # Any function of the four will do; this one is stable across components, restarts and processes.
    whose = "router" if is_mapped else server.host if server else ""
    text = f"{candidate_type.value} {base_host} {protocol} {whose}{f' {again}' if again else ''}"
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value & 0xFFFFFFFF:08x}"


def open_base(base: Base, host: Host, config: Config, rng: Random) -> None:
    """Open the socket of a base.

    Raises:
        OSError: the address cannot be bound, or every port of the range is taken.
    """
    base.socket = open_socket(host, base.host_address, base, config, rng)


def open_socket(
    host: Host, address: HostAddress, receiver: DatagramReceiver, config: Config, rng: Random
) -> DatagramSocket:
    """Open a socket on one of our addresses, as it is configured.

    Raises:
        OSError: the address cannot be bound, or every port of the range is taken.
    """
    options = socket_options(address, config)
    if config.port_range is None:
        return host.socket(TransportAddress(address.host, 0), receiver, options)
    low, high = config.port_range
    ports = rng.sample(range(low, high + 1), min(high - low + 1, _MAX_PORT_TRIES))
    for port in ports:
        try:
            return host.socket(TransportAddress(address.host, port), receiver, options)
        except OSError as error:
            # A taken port: the next one. Anything else is about the address, and no other port will help.
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"every port from {low} to {high} is in use on {address.host}")


def socket_options(address: HostAddress, config: Config) -> SocketOptions:
    """How a socket on one of our addresses is opened, as it is configured."""
    ip = ip_address(address.host)
    return SocketOptions(
        interface=config.device,
        egress_index=0 if ip.is_loopback else address.index,
        mark=config.mark,
        dscp=config.dscp,
        receive_buffer=config.receive_buffer,
        scope_id=address.index if ip.is_link_local else 0,
    )
