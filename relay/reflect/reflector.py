"""How does a reflector run on a host?

A socket on each address of the host answers from exactly there (``relay/udp_listening.py``); bursts come and leave as
trains. Where it may, the kernel answers before them (``kernel.py``); the sockets are there all the same: they hold the
port, and answer what the kernel lets pass. Which datagrams are answered is decided in ``rules.py``.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, cast

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import DatagramSocket, Host, Interface, SocketOptions, TtlSocket
from relay.backend import BACKENDS, Backend
from relay.kernel import open_as_asked
from relay.reflect.kernel import KernelReflector
from relay.reflect.rules import Reflection, ReflectLimits, own_and_broadcast
from relay.udp_listening import (
    UdpHooks,
    UdpSockets,
    bound_hosts,
    check_interface,
    each_address,
    scope_of,
    with_free_port,
)

__all__ = ["Reflector"]

PORT_ATTEMPTS = 8
"""How often a free port is looked for where port 0 is asked for: one found on one address may be taken on another."""

RECEIVE_BUFFER = 1 << 20
"""Bytes of each socket's receive buffer, as far as the system allows: heartbeats of thousands come in bursts."""

MAX_WAITING = 128
"""Datagrams that wait for the end of a turn of the loop: what a socket reads in one of its turns, twice."""

_WILDCARDS = {4: "0.0.0.0", 6: "::"}


class Reflector:
    """Sends back whatever comes to a UDP port of a host: an async context manager that answers while it is open.

    Args:
        host: whose sockets it uses.
        port: 1 … 65535 on every address; 0 takes a free one.
        backend: who answers: see :data:`relay.backend.Backend`.
        limits: how many are answered; see :class:`ReflectLimits`.
        interface: answer on this one only.
        bind: answer at these addresses only; 0.0.0.0 and :: stand for all of their IP version.
        ipv4: answer over IPv4.
        ipv6: answer over IPv6.
        on_change: called when :attr:`addresses` changed while it was open.

    Raises:
        ValueError: a value is out of its range or of another type, or nothing is left to answer at.
    """

    def __init__(
        self,
        host: Host,
        port: int,
        *,
        backend: Backend = "auto",
        limits: ReflectLimits | None = None,
        interface: str | None = None,
        bind: Iterable[str] = (),
        ipv4: bool = True,
        ipv6: bool = True,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._host = host
        self._asked_port = _port(port)
        self._backend = _backend(backend)
        self._limits = _limits(limits)
        self._interface = _name(interface)
        self._versions = frozenset(version for version, is_wanted in ((4, ipv4), (6, ipv6)) if is_wanted)
        if not self._versions:
            raise ValueError("neither IPv4 nor IPv6 is to be used: nothing is left to answer at")
        self._bind = bound_hosts(bind, self._versions)
        self._on_change = on_change
        self._sockets = UdpSockets(host)
        self._kernel: KernelReflector | None = None
        self._rules = Reflection(self._asked_port, self._limits)
        self._refused_kernel: str | None = None
        self._inbox: _Inbox | None = None
        self._told: tuple[TransportAddress, ...] = ()
        self._is_open = False

    @property
    def port(self) -> int:
        """The one that it answers at; before it was open, the one that was asked for."""
        return self._rules.port

    @property
    def addresses(self) -> tuple[TransportAddress, ...]:
        """What it answers at now; empty while it is closed."""
        return tuple(self._sockets.by_address)

    @property
    def backend(self) -> Backend:
        """Who answers: ``nftables`` or ``userspace``."""
        return "userspace" if self._kernel is None else "nftables"

    @property
    def reason(self) -> str | None:
        """Why the kernel does not answer although it might have: one clause; ``None`` where it does or should not."""
        return self._refused_kernel

    @property
    def counters(self) -> Counter[str]:
        """What was answered and what was not, by the kernel and by this process together, since it was opened; see
        :class:`relay.reflect.rules.Reflection`. ``unsent`` are answers that the system did not take.
        """
        total = Counter(self._rules.counters)
        if self._kernel is not None:
            total.update(self._kernel.counters())
        return total

    async def __aenter__(self) -> Reflector:
        """Open everything.

        Raises:
            OSError: an address or the interface cannot be used; the text says which one, and why.
            KernelUnavailable: ``backend`` is ``nftables``, and the kernel cannot be had.
            ValueError: this is open already.
        """
        if self._is_open:
            raise ValueError("this reflector is open already; another one is made by another call")
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._is_open = True
            try:
                await self._open()
            except BaseException as error:
                self.close()
                is_clash = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                if not is_clash or attempt == PORT_ATTEMPTS or self._asked_port:
                    raise
            else:
                break
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; idempotent. The counters stay."""
        self._is_open = False
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        self._sockets.close()
        if self._kernel is not None:
            self._rules.counters.update(self._kernel.counters())
            self._kernel.close()
            self._kernel = None

    async def _open(self) -> None:
        interfaces = await self._host.interfaces()
        check_interface(interfaces, self._interface)
        self._check_bind(interfaces)
        wanted = {**self._fixed(interfaces), **self._wanted(interfaces)}
        if not wanted:
            where = "this host" if self._interface is None else f"interface {self._interface}"
            raise OSError(errno.EADDRNOTAVAIL, f"{where} has no address to answer at")
        port = self._asked_port
        if not port:
            address, options = next(iter(wanted.items()))
            port = with_free_port(self._host, address, options).port
        self._rules = Reflection(port, self._limits)
        await self._open_kernel(port)
        self._inbox = inbox = _Inbox(self._rules, self._host.now, asyncio.get_running_loop())
        hooks = UdpHooks(inbox=lambda: inbox, opened=_ignore, closed=_ignore, not_opened=self._on_not_opened)
        for address, options in self._fixed(interfaces).items():
            self._sockets.open(address, hooks, options)
        await self._sockets.follow(self._wanted, hooks, self._on_followed)

    def _check_bind(self, interfaces: Sequence[Interface]) -> None:
        """Linux would bind to a broadcast address; but one datagram to it, and every reflector there answers."""
        own, broadcast = own_and_broadcast(interfaces)
        for host in self._bind:
            if host in broadcast - own:
                raise OSError(errno.EADDRNOTAVAIL, f"bind: {host} is a broadcast address, which belongs to no host")

    async def _open_kernel(self, port: int) -> None:
        kernel = KernelReflector(self._host, port, self._limits, interface=self._interface)
        refused = await open_as_asked(kernel, self._backend)
        self._kernel = kernel if refused is None else None
        self._refused_kernel = refused or None

    def _fixed(self, interfaces: Sequence[Interface]) -> dict[TransportAddress, SocketOptions]:
        """The sockets on addresses that were asked for."""
        scopes = {address.host: scope_of(interface, address.host) for interface, address in each_address(interfaces)}
        return {
            TransportAddress(host, self.port): self._options(scopes.get(host, 0))
            for host in self._bind
            if host not in _WILDCARDS.values()
        }

    def _wanted(self, interfaces: Sequence[Interface]) -> dict[TransportAddress, SocketOptions]:
        """The sockets on what the wildcards stand for."""
        return {
            TransportAddress(address.host, self.port): self._options(scope_of(interface, address.host))
            for interface, address in each_address(interfaces)
            if self._interface in (None, interface.name) and self._is_wanted(ip_address(address.host).version)
        }

    def _is_wanted(self, version: int) -> bool:
        return version in self._versions and (not self._bind or _WILDCARDS[version] in self._bind)

    def _options(self, scope_id: int) -> SocketOptions:
        return SocketOptions(
            interface=self._interface, receive_buffer=RECEIVE_BUFFER, scope_id=scope_id, tells_ttl=True
        )

    def _on_not_opened(self) -> None:
        self._rules.counters["addresses not opened"] += 1

    def _on_followed(self, interfaces: Sequence[Interface]) -> None:
        self._rules.follow(interfaces)
        hosts = [each.host for each in self._sockets.by_address]
        if self._kernel is not None:
            # What comes to a loopback address from outside has no business here.
            self._kernel.follow(interfaces, [each for each in hosts if not ip_address(each).is_loopback])
        is_first, before = not self._told, self._told
        self._told = self.addresses
        if self._on_change is not None and not is_first and self._told != before:
            self._on_change()


class _Inbox:
    """Answers what the sockets receive; where they read more than one datagram in a turn of the loop, all that one
    source sent in it together, as trains.
    """

    def __init__(self, rules: Reflection, now: Callable[[], float], loop: asyncio.AbstractEventLoop) -> None:
        self._rules = rules
        self._now = now
        self._loop = loop
        self._waiting: dict[tuple[DatagramSocket, tuple[str, int], int], list[bytes]] = {}
        self._count = 0

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        waiting = self._waiting
        ttl = getattr(socket, "received_ttl", 0)
        if not waiting:
            # Sockets that know how many they may read in this turn; see iceagent/net/sockets.py.
            if getattr(socket, "budget", 1) == 1:
                self._answer(socket, (data,), source, ttl)
                return
            self._loop.call_soon(self._answer_all)
        found = waiting.get((socket, source, ttl))
        if found is None:
            waiting[socket, source, ttl] = [data]
        else:
            found.append(data)
        self._count += 1
        if self._count >= MAX_WAITING:
            self._answer_all()

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        """Several of one source: behind what it sent before."""
        if self._waiting:
            self._answer_all()
        self._answer(socket, datagrams, source, getattr(socket, "received_ttl", 0))

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """Whoever asked is not there any more."""

    def close(self) -> None:
        """Answer no more."""
        self._waiting.clear()

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._count = 0
        for (socket, source, ttl), datagrams in waiting.items():
            self._answer(socket, datagrams, source, ttl)

    def _answer(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int], ttl: int) -> None:
        """``ttl``: what they came with; 0: unknown. Answers leave with one less, as if they were forwarded, and at its
        end there are none: what circles between two reflectors ends that way.
        """
        rules = self._rules
        admitted = rules.admits(len(datagrams), source, socket.address.host, self._now())
        if not admitted:
            return
        if ttl == 1:
            rules.note_refused(admitted, "TTL")
            return
        if ttl:
            cast(TtlSocket, socket).set_ttl(ttl - 1)
        if admitted == 1:
            sent = 0 if socket.send(datagrams[0], source) else 1
        else:
            sent, _ = socket.send_many(datagrams[:admitted], source)
        if sent < admitted:
            rules.counters["unsent"] += admitted - sent
        if sent:
            rules.note_answered(sent, sum(map(len, datagrams[:sent])))


def _ignore(address: TransportAddress) -> None:
    """Told once all have changed."""


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"port is {value!r}, allowed are 0, for a free one, to 65535")
    return value


def _backend(value: Any) -> Backend:
    for each in BACKENDS:
        if value == each:
            return each
    raise ValueError(f"backend is {value!r}, allowed are {', '.join(BACKENDS)}")


def _limits(value: Any) -> ReflectLimits:
    if value is None:
        return ReflectLimits()
    if not isinstance(value, ReflectLimits):
        raise ValueError(f"limits is of type {type(value).__name__}; ReflectLimits(per_source=100) makes one")
    return value


def _name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"interface is {value!r}, a name like eth0 is expected")
    return value
