"""How does a program punch its way to another host?

The shell around ``nat/punching.py``: it opens sockets, and pumps the core. :class:`Punch` is one end of a path (``async
with Punch(host) as punch: await punch.meet([remote])``). Who answers anybody is in ``far_end.py``, and how a
lifetime is measured in ``lifetime.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from types import TracebackType

from iceagent.config import Config
from iceagent.gather.stun_queries import MappedAddress, QueryFailed, StunQueries
from iceagent.nat.punch_report import Answered, Failed, PunchOptions, Settled
from iceagent.nat.punching import Puncher
from iceagent.nat.responding import may_send_to
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import Host
from iceagent.punch.sockets import DEFAULT_CONFIG, PunchFailed, Sockets, fits, way_out, way_to

__all__ = ["Punch", "PunchFailed"]


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
        self._sockets = Sockets(host, config, self._system_rng if rng is None else rng)
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
        """What our sockets are bound to."""
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
            if base.version == version and (remote is None or fits(base.host, remote)):
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

    async def listen(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Have a socket on every address, now and whenever addresses come and go, to be asked on.

        Args:
            on_change: is called when addresses came or went.

        Raises:
            PunchFailed: the host has no address that may be used.
            OSError: a port cannot be had; the text says which.
        """

        def follow() -> None:
            if self._is_meeting and self._driver is not None:
                self._driver.command(self.core.follow, set(self.bases))
            on_change()

        await self._sockets.listen(follow)

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
            ValueError: they are more than 16.
        """
        assert self._driver is not None and self._met is not None
        pairs, reasons = await self._find_ways(remotes)
        if remotes and not pairs:
            raise PunchFailed("; ".join(reasons))
        self._is_meeting = True
        if self._queries is not None:
            self._queries[1].close()
        self._driver.command(self.core.start, set(self.bases))
        for base, remote in pairs:
            self._driver.command(self.core.punch, base, remote)
        return await asyncio.shield(self._met)

    async def _find_ways(
        self, remotes: Sequence[TransportAddress]
    ) -> tuple[list[tuple[TransportAddress, TransportAddress]], list[str]]:
        """A socket for each of these addresses, and why there is none for the others, each reason once."""
        pairs: list[tuple[TransportAddress, TransportAddress]] = []
        reasons: dict[str, None] = {}
        for remote in remotes:
            try:
                # Our own sockets are known when they are open.
                base = await self.open(remote) if may_send_to(remote, set(self.bases)) else None
            except OSError as error:
                reasons[str(error.strerror or error)] = None
            else:
                if base is not None and may_send_to(remote, set(self.bases)):
                    pairs.append((base, remote))
                else:
                    reasons[f"{remote} is no address of another host"] = None
        return pairs, list(reasons)

    async def settled(self) -> None:
        """Wait until the other end has been answered, too, and the round trip is measured: a second or two."""
        assert self._settled is not None
        await asyncio.shield(self._settled)

    def send(self, data: bytes) -> int:
        """Send data to who was met; returns 0, or the errno (``EAGAIN``: the socket is full, the datagram is lost;
        ``EADDRNOTAVAIL``: our address has gone).

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
