"""How does a latching relay run on a host?

The shell around ``core.py``: sockets, port pairs, the choice of a back end; the way of a datagram is in
``data_path.py``. Each side of a channel has a socket on every address of the host, since an answer has to come from the
address that was asked, and follows them when they change. Where it may, the kernel forwards (``kernel.py``) what both
sides have latched for; the sockets hold the ports, and hear requests and whatever the kernel does not take.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random, SystemRandom
from types import TracebackType

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Event
from iceagent.net.host import Host, Interface, SocketOptions, Subscription
from relay.backend import BACKENDS, Backend
from relay.kernel import open_as_asked
from relay.latch.channel import (
    Channel,
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    ChannelStatistics,
    SideKey,
    SideLatched,
    SideMoved,
)
from relay.latch.core import LatchCore
from relay.latch.data_path import DataPath
from relay.latch.kernel import KernelForwarder
from relay.turn.server.checks import check_number, check_ports
from relay.udp_listening import bound_hosts, check_interface, each_address, scope_of

__all__ = ["DEFAULT_PORTS", "LatchRelay", "random_key"]

DEFAULT_PORTS = (49_152, 65_535)
"""Where free pairs are taken from: RFC 6335, 6, dynamic ports."""

MAX_CHANNELS = 10_000
PAIR_ATTEMPTS = 64
"""How often a free pair is drawn before the range counts as full."""

RECEIVE_BUFFER = 1 << 20
"""Bytes of each socket's receive buffer, as far as the system allows: media come in bursts."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
USERNAME_LENGTH, PASSWORD_LENGTH = 8, 24
"""143 bits of password; RFC 8445, 5.3 wants 128."""

_system_rng = SystemRandom()


def random_key(rng: Random = _system_rng) -> SideKey:
    """A key that nobody guesses.

    Args:
        rng: a cryptographic source, but in tests.
    """
    return SideKey(
        username="".join(rng.choices(_ALPHABET, k=USERNAME_LENGTH)),
        password="".join(rng.choices(_ALPHABET, k=PASSWORD_LENGTH)),
    )


class LatchRelay:
    """Relays between the two sides of each of its channels: an async context manager that does so while it is open.

    Args:
        host: whose sockets it uses.
        backend: who forwards: see :data:`relay.backend.Backend`.
        bind: only at these addresses of the host; 0.0.0.0 and :: stand for all of their IP version.
        interface: only on this one.
        ports: the range of which free pairs are taken, both ends included.
        max_channels: at once, at least 1.
        on_event: is told every event of ``channel.py``.

    Raises:
        ValueError: a value is out of its range or of another type.
    """

    def __init__(
        self,
        host: Host,
        *,
        backend: Backend = "auto",
        bind: Iterable[str] = (),
        interface: str | None = None,
        ports: tuple[int, int] = DEFAULT_PORTS,
        max_channels: int = MAX_CHANNELS,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}, allowed are {', '.join(BACKENDS)}")
        check_number("max_channels", max_channels, 1)
        check_ports("ports", ports)
        self._host = host
        self._backend: Backend = backend
        self._bind = frozenset(bound_hosts(bind))
        self._interface = interface
        self._ports = ports
        self._max_channels = max_channels
        self._tell = on_event
        self._kernel: KernelForwarder | None = None
        self._refused_kernel: str | None = None
        self._core = LatchCore()
        self._path: DataPath | None = None
        self._interfaces = Subscription()
        self._places: dict[str, SocketOptions] = {}
        self._taken: set[int] = set()

    @property
    def backend(self) -> Backend:
        """Who forwards: ``nftables`` or ``userspace``."""
        return "userspace" if self._kernel is None else "nftables"

    @property
    def reason(self) -> str | None:
        """Why the kernel does not forward although it might have: one clause; ``None`` where it does or should not."""
        return self._refused_kernel

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses that channels have sockets on; empty while it is closed."""
        return tuple(self._places)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Those that are open."""
        return tuple(self._core.channels.values())

    @property
    def counters(self) -> Counter[str]:
        """See :class:`relay.latch.core.LatchCore`; of all channels that there have been."""
        return self._core.counters

    def statistics(self, channel: Channel) -> ChannelStatistics:
        """What a channel has been through; what the kernel forwarded is up to date within a second or so."""
        return channel.statistics(self._host.now())

    def open(
        self, left: int | None = None, right: int | None = None, *, options: ChannelOptions | None = None
    ) -> Channel:
        """Open a channel.

        Args:
            left: port of the left side, 1 … 65535; ``None`` on both sides: a random pair that is free.
            right: likewise.
            options: see there; ``None``: with random keys, which ``channel.options`` has.

        Raises:
            OSError: a port cannot be had on an address of ours; the text says which. EMFILE: the process has no
                descriptors left. EAGAIN: there are ``max_channels``; EADDRINUSE: the range of ports has no free pair.
            ValueError: a port is out of its range, or is both sides'; or only one is given; or this is closed.
        """
        if self._path is None:
            raise ValueError("the relay is not open: async with LatchRelay(…) as relay opens it")
        if len(self._core.channels) >= self._max_channels:
            raise OSError(errno.EAGAIN, f"there are {self._max_channels} channels, and no more are allowed")
        options = options or ChannelOptions(left=random_key(), right=random_key())
        if left is None and right is None:
            return self._open_random(options)
        if left is None or right is None:
            raise ValueError("a channel has two ports: give both, or none for a random pair")
        for port in (left, right):
            check_number("a port", port, 1, 65535)
        if left == right:
            raise ValueError(f"port {left} cannot be both sides of a channel")
        return self._open((left, right), options)

    def close_channel(self, channel: Channel, reason: str = "closed") -> None:
        """End a channel; idempotent."""
        if self._path is not None:
            self._path.driver.command(self._core.close, channel, reason)

    async def __aenter__(self) -> LatchRelay:
        """Open it; there is no channel yet.

        Raises:
            OSError: an address or the interface is not there; the text says which.
            KernelUnavailable: ``backend`` is ``nftables``, and the kernel cannot be had.
            ValueError: this is open already.
        """
        if self._path is not None:
            raise ValueError("this relay is open already; another one is made by another call")
        try:
            interfaces = await self._host.interfaces()
            self._check(interfaces)
            await self._open_kernel()
            self._core = LatchCore(self._kernel)
            self._path = DataPath(self._host, self._core, self._on_event)
            self._interfaces = self._host.watch_interfaces(self._follow)
            self._follow(await self._host.interfaces())
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all channels, and close everything; idempotent."""
        self._interfaces.close()
        for channel in self.channels:
            self.close_channel(channel)
        path, self._path = self._path, None
        if path is not None:
            path.driver.close()
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close()
        self._places.clear()

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def _open_kernel(self) -> None:
        kernel = KernelForwarder(self._host, interface=self._interface)
        refused = await open_as_asked(kernel, self._backend)
        self._kernel = kernel if refused is None else None
        self._refused_kernel = refused or None

    def _check(self, interfaces: Sequence[Interface]) -> None:
        check_interface(interfaces, self._interface)
        present = [address.host for _, address in each_address(interfaces)]
        for host in sorted(self._bind.difference(present)):
            ip = ip_address(host)
            if not (ip.is_unspecified or ip.is_loopback):
                text = f"no interface has the address {host}; there are {', '.join(present)}"
                raise OSError(errno.EADDRNOTAVAIL, text, host)
        if not self._wanted(interfaces):
            raise OSError(errno.EADDRNOTAVAIL, "there is no address to relay at")

    def _wanted(self, interfaces: Sequence[Interface]) -> dict[str, SocketOptions]:
        # All of 127.0.0.0/8 is there, as far as it is asked for.
        options = SocketOptions(receive_buffer=RECEIVE_BUFFER)
        asked = () if self._interface else sorted(self._bind)
        found = {host: options for host in asked if ip_address(host).is_loopback}
        return found | {
            address.host: SocketOptions(
                interface=self._interface, receive_buffer=RECEIVE_BUFFER, scope_id=scope_of(interface, address.host)
            )
            for interface, address in each_address(interfaces)
            if self._interface in (None, interface.name) and self._is_wanted(address.host)
        }

    def _is_wanted(self, host: str) -> bool:
        wildcard = "::" if ":" in host else "0.0.0.0"
        return not self._bind or host in self._bind or wildcard in self._bind

    def _follow(self, interfaces: Sequence[Interface]) -> None:
        """Have sockets on these addresses, and on no others."""
        path = self._path
        if path is None:
            return
        wanted = self._wanted(interfaces)
        gone = [host for host in self._places if host not in wanted]
        new = {host: options for host, options in wanted.items() if host not in self._places}
        self._places = wanted
        for channel in self.channels:
            for side in channel.sides:
                for host in gone:
                    path.close_socket(channel, TransportAddress(host, side.port))
                for host, options in new.items():
                    try:
                        path.open_socket(channel, side, TransportAddress(host, side.port), options)
                    except OSError:
                        self._core.counters["addresses not opened"] += 1
            path.connect(channel)

    def _open_random(self, options: ChannelOptions) -> Channel:
        low, high = self._ports
        free: Sequence[int] = range(low, high + 1)
        if 2 * len(self._taken) > len(free):
            free = [port for port in free if port not in self._taken]
        for _ in range(PAIR_ATTEMPTS if len(free) > 1 else 0):
            left, right = _system_rng.sample(free, 2)
            if left in self._taken or right in self._taken:
                continue
            try:
                return self._open((left, right), options)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise OSError(errno.EADDRINUSE, f"no two ports are free in {low}-{high}")

    def _open(self, ports: tuple[int, int], options: ChannelOptions) -> Channel:
        path = self._path
        assert path is not None
        channel = path.driver.command(self._core.open, ports, options)
        try:
            for side in channel.sides:
                for host, socket_options in self._places.items():
                    path.open_socket(channel, side, TransportAddress(host, side.port), socket_options)
        except OSError:
            self._core.forget(channel)
            path.close_sockets(channel)
            raise
        self._taken.update(ports)
        return channel

    def _on_event(self, event: Event) -> None:
        path = self._path
        assert path is not None
        if isinstance(event, SideLatched | SideMoved):
            channel = self._core.channels.get(event.channel)
            if channel is not None:
                path.connect(channel)
        elif isinstance(event, ChannelIdle):
            path.connect(self._core.channels[event.statistics.channel])
        elif isinstance(event, ChannelClosed):
            channel = self._core.closed.pop(event.statistics.channel)
            path.close_sockets(channel)
            self._taken.difference_update(side.port for side in channel.sides)
        if self._tell is not None:
            self._tell(event)
