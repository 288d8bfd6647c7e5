"""How does a probe run a core on sockets of its own?

A :class:`Workbench` opens sockets, and pumps one core on them; :func:`source_for` says where they have to stand.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from random import Random

from iceagent.config import Config
from iceagent.gather.host import HostAddress, select_addresses
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Core, Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, Interface, InterfaceKind, SocketOptions

__all__ = ["Workbench", "source_for"]

# Ports of a range that are tried for one socket before giving up.
MAX_PORT_TRIES = 100


class Workbench:
    """Sockets, and one core on them; close it after use.

    Args:
        host: where the sockets are.
        config: how sockets are opened.
        rng: chooses ports, where the configuration has a range of them.
    """

    def __init__(self, host: Host, config: Config, rng: Random) -> None:
        self._host = host
        self._config = config
        self._rng = rng
        self._sockets: dict[TransportAddress, DatagramSocket] = {}
        self._driver: Driver | None = None

    def open(self, address: HostAddress) -> TransportAddress:
        """Open a socket, and return what it is bound to.

        Raises:
            OSError: the address cannot be bound, or no free port of the range was found.
        """
        ip, config = ip_address(address.host), self._config
        options = SocketOptions(
            interface=None if ip.is_loopback else config.device,
            egress_index=0 if ip.is_loopback else address.index,
            mark=config.mark,
            dscp=config.dscp,
            scope_id=address.index if ip.is_link_local else 0,
        )
        socket = self._bind(address.host, options)
        self._sockets[socket.address] = socket
        return socket.address

    def run(self, core: Core, on_event: Callable[[Event], None]) -> Driver:
        """Pump ``core`` from now on; ``on_event`` hears what it says. Its commands go through the driver."""
        self._driver = Driver(core, self._host, self._send, on_event)
        return self._driver

    def close(self) -> None:
        """Close the sockets; idempotent."""
        if self._driver is not None:
            self._driver.close()
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """An answer, or noise."""
        if self._driver is not None:
            self._driver.datagram(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """The network said no."""
        if self._driver is not None and destination is not None:
            self._driver.error(socket.address, destination, errno)

    def _bind(self, host: str, options: SocketOptions) -> DatagramSocket:
        if self._config.port_range is None:
            return self._host.socket(TransportAddress(host, 0), self, options)
        low, high = self._config.port_range
        for port in self._rng.sample(range(low, high + 1), min(high - low + 1, MAX_PORT_TRIES)):
            try:
                return self._host.socket(TransportAddress(host, port), self, options)
            except OSError as error:
                # A taken port: the next one. Anything else is about the address, and no other port will help.
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, f"no free port from {low} to {high} on {host}")

    def _send(self, transmit: Transmit) -> int:
        socket = self._sockets.get(transmit.base)
        return 0 if socket is None else socket.send(transmit.data, transmit.destination, transmit.ttl)


def source_for(
    host: Host, interfaces: Sequence[Interface], config: Config, server: TransportAddress, *, is_outside: bool
) -> HostAddress | None:
    """The local address to ask a server from; ``None`` where there is no way.

    Args:
        host: who asks.
        interfaces: its interfaces.
        config: which addresses may be used; a server on this host itself is asked all the same.
        server: who is asked.
        is_outside: it is not an address of this host.
    """
    chosen = host.source_host(server)
    if chosen is None:
        return None
    if not is_outside:
        return HostAddress(host=chosen, interface="lo", index=0, kind=InterfaceKind.LOOPBACK, metered=False)
    usable = [address for address in select_addresses(interfaces, config) if _is_routable(address.host, server)]
    return next((address for address in usable if address.host == chosen), usable[0] if usable else None)


def _is_routable(host: str, server: TransportAddress) -> bool:
    """Whether packets from ``host`` can come back from a server."""
    ip = ip_address(host)
    return ip.version == server.version and not ip.is_loopback and ip.is_link_local == server.ip.is_link_local
