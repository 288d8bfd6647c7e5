"""How does a program punch its way to another host, answer those who do, or measure how long a binding lives?

The shells around ``nat/punching.py``, ``nat/responding.py`` and ``nat/lifetime.py``: they open sockets, and pump the
cores. :class:`Punch` is one end of a path (``async with Punch(host) as punch: await punch.meet([remote])``);
:class:`FarEndServer` answers anybody; :func:`measure_lifetime` asks such a far end, or a server of RFC 5780.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from random import Random, SystemRandom
from types import TracebackType

from iceagent.config import Config
from iceagent.errors import ConnectFailed
from iceagent.gather.bases import open_socket
from iceagent.gather.host import HostAddress, select_addresses
from iceagent.gather.stun_queries import MappedAddress, QueryFailed, StunQueries
from iceagent.nat.lifetime import LifetimeProbe
from iceagent.nat.lifetime_report import LifetimeFailed, LifetimeMeasured, LifetimeReport, SocketsDone, SocketsWanted
from iceagent.nat.punch_report import Answered, Failed, PunchOptions, Settled
from iceagent.nat.punching import Puncher
from iceagent.nat.responding import FarEnd
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Core, Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, Interface, InterfaceKind
from relay.stun import IntegrityKey

__all__ = ["FarEndServer", "Punch", "PunchFailed", "measure_lifetime"]

DEFAULT_CONFIG = Config(loopback=True)

# Port 9 is discard: nothing is sent, the routes are asked.
_SOMEWHERE = {4: TransportAddress("192.0.2.1", 9), 6: TransportAddress("2001:db8::1", 9)}


class PunchFailed(ConnectFailed):
    """Nobody has answered in time, or there is no way to the other end; the text says why, address by address."""


class _Sockets:
    """Sockets of one core; a receiver of theirs.

    Args:
        host: where they are.
        config: how they are opened.
        rng: chooses ports, where the configuration has a range of them.
    """

    def __init__(self, host: Host, config: Config, rng: Random) -> None:
        self.host = host
        self.config = config
        self.rng = rng
        self.by_base: dict[TransportAddress, DatagramSocket] = {}
        self.receive: Callable[[TransportAddress, tuple[str, int], bytes], None] | None = None
        self.report: Callable[[TransportAddress, TransportAddress, int], None] | None = None

    def open(self, address: HostAddress) -> TransportAddress:
        """A new one.

        Raises:
            OSError: the address cannot be bound, or no port is free.
        """
        socket = open_socket(self.host, address, self, self.config, self.rng)
        self.by_base[socket.address] = socket
        return socket.address

    def close(self, bases: Iterable[TransportAddress] | None = None) -> None:
        """Close these, or all; those that are closed already are fine."""
        for base in list(self.by_base if bases is None else bases):
            socket = self.by_base.pop(base, None)
            if socket is not None:
                socket.close()

    def send(self, transmit: Transmit) -> int:
        """For a driver."""
        socket = self.by_base.get(transmit.base)
        return 0 if socket is None else socket.send(transmit.data, transmit.destination, transmit.ttl)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """Something came in."""
        if self.receive is not None:
            self.receive(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """The network said no."""
        if self.report is not None and destination is not None:
            self.report(socket.address, destination, errno)

    def pump(self, core: Core, on_event: Callable[[Event], None]) -> Driver:
        """Give all that comes in to ``core``."""
        driver = Driver(core, self.host, self.send, on_event)
        self.receive, self.report = driver.datagram, driver.error
        return driver


class Punch:
    """One end of a path through firewalls and NATs. An async context manager: at its end the sockets are closed.

    Args:
        host: whose sockets.
        options: see :class:`iceagent.nat.punch_report.PunchOptions`.
        config: which addresses may be used (``bind_hosts``, ``interface_filter``, ``ipv4``, ``ipv6``), and which ports.
        on_event: is told every event of the core, received data among them.
        rng: chooses ports, where there is a range of them.
        system_rng: for transaction ids.

    Attributes:
        core: what happens, and what is counted.
    """

    def __init__(
        self,
        host: Host,
        options: PunchOptions | None = None,
        *,
        config: Config = DEFAULT_CONFIG,
        on_event: Callable[[Event], None] = lambda event: None,
        rng: Random | None = None,
        system_rng: Random | None = None,
    ) -> None:
        self._system_rng = SystemRandom() if system_rng is None else system_rng
        self.core = Puncher(PunchOptions() if options is None else options, self._system_rng)
        self._sockets = _Sockets(host, config, self._system_rng if rng is None else rng)
        self._on_event = on_event
        self._driver: Driver | None = None
        self._queries: tuple[StunQueries, Driver] | None = None
        self._asked: dict[tuple[TransportAddress, TransportAddress], asyncio.Future[MappedAddress]] = {}
        self._mapped: dict[TransportAddress, TransportAddress] = {}
        self._is_meeting = False
        self._met: asyncio.Future[Answered] | None = None
        self._settled: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Punch:
        loop = asyncio.get_running_loop()
        self._met, self._settled = loop.create_future(), loop.create_future()
        self._driver = self._sockets.pump(self.core, self._tell)
        self._sockets.receive, self._sockets.report = self._route, self._report
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for driver in (self._driver, None if self._queries is None else self._queries[1]):
            if driver is not None:
                driver.close()
        self._sockets.close()
        for future in (self._met, self._settled, *self._asked.values()):
            if future is not None and not future.cancel() and not future.cancelled():
                # Nobody may have waited for it.
                future.exception()

    # --- sockets -----------------------------------------------------------------------------------------------------

    @property
    def bases(self) -> tuple[TransportAddress, ...]:
        """What our sockets are bound to; at most one of each IP version, but after :meth:`listen`."""
        return tuple(self._sockets.by_base)

    async def open(self, remote: TransportAddress | None = None, *, version: int = 4) -> TransportAddress:
        """Have a socket, one that is there already if it can be, and return what it is bound to.

        Args:
            remote: it is to reach this; ``None``: anybody of the IP version.
            version: without a ``remote``.

        Raises:
            PunchFailed: no usable address of this host leads there.
            OSError: it cannot be opened.
        """
        version = version if remote is None else remote.version
        for base in self._sockets.by_base:
            if base.version == version:
                return base
        host, config = self._sockets.host, self._sockets.config
        interfaces = await host.interfaces()
        if remote is not None:
            address, where = way_to(host, interfaces, config, remote), remote.host
        else:
            address, where = way_out(host, interfaces, config, version), "others"
        if address is None:
            raise PunchFailed(f"no address of this host that may be used leads to {where}")
        return self._sockets.open(address)

    async def listen(self) -> None:
        """Have a socket on every usable address, to be asked on.

        Raises:
            PunchFailed: there is none.
            OSError: one cannot be opened.
        """
        for address in own_addresses(await self._sockets.host.interfaces(), self._sockets.config):
            self._sockets.open(address)
        if not self.bases:
            raise PunchFailed("this host has no address that may be used")

    # --- our address -------------------------------------------------------------------------------------------------

    async def ask(self, server: TransportAddress, timeout_s: float = 5.0) -> MappedAddress:
        """What a STUN server says that our socket's address is.

        Until :meth:`meet` it is asked again every 15 s, so that our NAT does not forget it; another address later is
        told as a :class:`MappedAddress`.

        Raises:
            PunchFailed: it does not answer, or not usefully.
            OSError: no socket can be opened.
        """
        base = await self.open(server)
        if self._queries is None:
            core = StunQueries(self._system_rng, ta_s=0.05, burst=10, rto_s=0.5, early_s=(0.1, 0.3))
            self._queries = core, Driver(core, self._sockets.host, self._sockets.send, self._on_query)
        queries, driver = self._queries
        asked = self._asked.setdefault((base, server), asyncio.get_running_loop().create_future())
        driver.command(queries.ask, base, server)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(asked)
        except TimeoutError:
            raise PunchFailed(f"{server} has not told us our address in {timeout_s:g} s") from None

    def _on_query(self, event: Event) -> None:
        if not isinstance(event, MappedAddress | QueryFailed):
            return
        asked = self._asked[event.base, event.server]
        if isinstance(event, QueryFailed):
            if not asked.done():
                asked.set_exception(PunchFailed(f"{event.server} has not told us our address: {event.reason}"))
        elif not asked.done():
            asked.set_result(event)
        elif self._mapped.get(event.base) not in (None, event.mapped):
            self._on_event(event)
        if isinstance(event, MappedAddress):
            self._mapped[event.base] = event.mapped

    # --- the path ----------------------------------------------------------------------------------------------------

    async def meet(self, remotes: Sequence[TransportAddress] = ()) -> Answered:
        """Send to these addresses until one answers; with none, wait for who asks.

        Raises:
            PunchFailed: nobody has answered in time, or there is no way to any of them.
            ValueError: nothing can be sent to one of them.
        """
        assert self._driver is not None and self._met is not None
        reasons: dict[str, None] = {}
        pairs: list[tuple[TransportAddress, TransportAddress]] = []
        for remote in remotes:
            try:
                pairs.append((await self.open(remote), remote))
            except OSError as error:
                reasons[str(error.strerror or error)] = None
        if remotes and not pairs:
            raise PunchFailed("; ".join(reasons))
        self._is_meeting = True
        if self._queries is not None:
            self._queries[1].close()
        self._driver.command(self.core.start, set(self.bases))
        for base, remote in pairs:
            self._driver.command(self.core.punch, base, remote)
        return await asyncio.shield(self._met)

    async def settled(self) -> None:
        """Wait until the other end has been answered, too, and the round trip is measured: a second or two."""
        assert self._settled is not None
        await asyncio.shield(self._settled)

    def send(self, data: bytes) -> int:
        """Send data to who was met; returns 0, or the errno (``EAGAIN``: the socket is full, the datagram is lost).

        Raises:
            RuntimeError: nobody was met.
        """
        path = self.core.path
        if path is None:
            raise RuntimeError("nobody was met yet: await meet() first")
        return self._sockets.send(Transmit(path.base, path.remote, data))

    def _route(self, base: TransportAddress, source: tuple[str, int], data: bytes) -> None:
        """What a server that was asked says is for who has asked it; later it may be the other end as well."""
        assert self._driver is not None
        is_asked = not self._is_meeting and (base, TransportAddress._make(source)) in self._asked
        driver = self._queries[1] if is_asked and self._queries is not None else self._driver
        driver.datagram(base, source, data)

    def _report(self, base: TransportAddress, destination: TransportAddress, errno: int) -> None:
        assert self._driver is not None
        is_asked = not self._is_meeting and (base, destination) in self._asked
        driver = self._queries[1] if is_asked and self._queries is not None else self._driver
        driver.error(base, destination, errno)

    def _tell(self, event: Event) -> None:
        assert self._met is not None and self._settled is not None
        if isinstance(event, Answered) and not self._met.done():
            self._met.set_result(event)
        elif isinstance(event, Failed) and not self._met.done():
            self._met.set_exception(PunchFailed(event.reason))
        elif isinstance(event, Settled) and not self._settled.done():
            self._settled.set_result(None)
        self._on_event(event)


class FarEndServer:
    """A far end on every usable address of a host, or on some. An async context manager that answers while it is open.

    Args:
        host: whose sockets.
        config: which addresses, and which port.
        key: requests have to be signed with it; ``None``: anybody is answered.
        on_event: is told every event of the core.
        rng: chooses ports, where there is a range of them.
    """

    def __init__(
        self,
        host: Host,
        *,
        config: Config = DEFAULT_CONFIG,
        key: IntegrityKey | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        rng: Random | None = None,
    ) -> None:
        self.core = FarEnd(key)
        self._sockets = _Sockets(host, config, SystemRandom() if rng is None else rng)
        self._on_event = on_event
        self._driver: Driver | None = None

    async def __aenter__(self) -> FarEndServer:
        sockets = self._sockets
        self._driver = sockets.pump(self.core, self._on_event)
        try:
            for address in own_addresses(await sockets.host.interfaces(), sockets.config):
                sockets.open(address)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self.core.bases.update(sockets.by_base)
        if not self.bases:
            raise PunchFailed("this host has no address that may be used")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._driver is not None:
            self._driver.close()
        self._sockets.close()

    @property
    def bases(self) -> tuple[TransportAddress, ...]:
        """Where it answers."""
        return tuple(self._sockets.by_base)


async def measure_lifetime(
    host: Host,
    server: TransportAddress,
    *,
    config: Config = DEFAULT_CONFIG,
    key: IntegrityKey | None = None,
    max_s: float = 300.0,
    timeout_s: float = 10.0,
    on_event: Callable[[Event], None] = lambda event: None,
    rng: Random | None = None,
    system_rng: Random | None = None,
) -> LifetimeReport:
    """How long a binding towards ``server`` lives, and what keeps it; takes as long as it lives, or twice that.

    Args:
        host: where we ask from.
        server: a far end of ours, or a server of RFC 5780 that answers RESPONSE-PORT.
        config: which addresses may be used; a range of ports has to have 70 free ones.
        key: the far end's.
        max_s: the longest silence that is tried, in seconds.
        timeout_s: for its first answer.
        on_event: is told of every binding that was looked at.
        rng: chooses ports, where there is a range of them.
        system_rng: for transaction ids.

    Raises:
        PunchFailed: it does not answer, or cannot be used for this; the text says why.
        OSError: a socket cannot be opened.
    """
    rng = SystemRandom() if rng is None else rng
    sockets = _Sockets(host, config, rng)
    over: asyncio.Future[LifetimeReport] = asyncio.get_running_loop().create_future()
    address = way_to(host, await host.interfaces(), config, server)
    if address is None:
        raise PunchFailed(f"no address of this host that may be used leads to {server.host}")

    def tell(event: Event) -> None:
        if isinstance(event, SocketsWanted):
            bases: list[TransportAddress] = []
            with suppress(OSError):  # The core says how many are missing.
                for _ in range(event.count):
                    bases.append(sockets.open(address))
            assert driver is not None
            driver.command(core.add, bases)
        elif isinstance(event, SocketsDone):
            sockets.close(event.bases)
        elif isinstance(event, LifetimeMeasured) and not over.done():
            over.set_result(event.report)
        elif isinstance(event, LifetimeFailed) and not over.done():
            over.set_exception(PunchFailed(f"{server}: {event.reason}"))
        on_event(event)

    driver: Driver | None = None
    try:
        asker = sockets.open(address)
        core = LifetimeProbe(
            server,
            asker,
            SystemRandom() if system_rng is None else system_rng,
            key=key,
            max_s=max_s,
            timeout_s=timeout_s,
        )
        driver = sockets.pump(core, tell)
        driver.command(core.start)
        return await over
    finally:
        if driver is not None:
            driver.close()
        sockets.close()


def own_addresses(interfaces: Sequence[Interface], config: Config) -> list[HostAddress]:
    """Addresses of ours that may be used; any of 127/8 that is named is one."""
    found = select_addresses(interfaces, config)
    known = {address.host for address in found}
    for host in config.bind_hosts:
        if ip_address(host).is_loopback and host not in known:
            found.append(HostAddress(host=host, interface="lo", index=0, kind=InterfaceKind.LOOPBACK, metered=False))
    return found


def way_to(host: Host, interfaces: Sequence[Interface], config: Config, remote: TransportAddress) -> HostAddress | None:
    """The address of ours to speak to ``remote`` from: the one that the routes choose, if it may be used."""
    chosen = host.source_host(remote)
    usable = [address for address in own_addresses(interfaces, config) if _fits(address.host, remote)]
    return next((address for address in usable if address.host == chosen), usable[0] if usable else None)


def way_out(host: Host, interfaces: Sequence[Interface], config: Config, version: int) -> HostAddress | None:
    """The address of ours for whoever is not known yet: as if it were far away; loopback is for who has named it."""
    usable = [each for each in own_addresses(interfaces, config) if ip_address(each.host).version == version]
    if not config.bind_hosts:
        usable = [address for address in usable if not ip_address(address.host).is_loopback]
    chosen = host.source_host(_SOMEWHERE[version])
    return next((address for address in usable if address.host == chosen), usable[0] if usable else None)


def _fits(ours: str, remote: TransportAddress) -> bool:
    """Whether packets between the two can go both ways."""
    ip, other = ip_address(ours), ip_address(remote.host)
    if ip.version != other.version:
        return False
    return ip.is_loopback == other.is_loopback and ip.is_link_local == other.is_link_local
