"""Bases without a machine under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from iceagent.config import Config
from iceagent.gather.bases import Base, open_base
from iceagent.gather.host import HostAddress
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import DatagramReceiver, Host, InterfaceKind, SocketOptions


class Listener:
    """Writes down what a base tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def message_received(self, base: Base, data: bytes, source: tuple[str, int]) -> None:
        self.heard.append(("message", data, source))

    def data_moved(self, base: Base, source: tuple[str, int]) -> None:
        self.heard.append(("moved", source))

    def error_received(self, base: Base, destination: TransportAddress, number: int) -> None:
        self.heard.append(("error", destination, number))


class Socket:
    """Bound, and silent."""

    def __init__(self, address: TransportAddress) -> None:
        self.address = address

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        return 0

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        return len(datagrams), 0

    def close(self) -> None:
        """Nothing is open."""


class Machine:
    """As much of a host as it takes to open a base.

    Args:
        refusal: the errno for an address, 0: it can be bound.
    """

    def __init__(self, refusal: Callable[[TransportAddress], int] = lambda address: 0) -> None:
        self._refusal = refusal
        self.tried: list[tuple[TransportAddress, SocketOptions]] = []

    def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> Socket:
        self.tried.append((local, options))
        number = self._refusal(local)
        if number:
            raise OSError(number, f"{local} is refused")
        return Socket(local if local.port else local._replace(port=40000))


def base_on(host: str, port: int, *, listener: Listener | None = None, component: int = 1) -> Base:
    """An open base at this address."""
    base = new_base(host, listener=listener, component=component)
    base.socket = Socket(TransportAddress(host, port))
    return base


def new_base(host: str, *, listener: Listener | None = None, component: int = 1, index: int = 2) -> Base:
    """A base whose socket is not open yet."""
    kind = InterfaceKind.LOOPBACK if ip_address(host).is_loopback else InterfaceKind.ETHERNET
    address = HostAddress(host=host, interface="eth0", index=index, kind=kind, metered=False)
    return Base(component, address, 60000, listener or Listener(), lambda: 5.0, lambda data, number: None)


def open_on(machine: Machine, base: Base, config: Config) -> None:
    """Open the socket of a base."""
    host: Host = machine  # type: ignore[assignment]  # a part of one
    open_base(base, host, config, Random(1))
