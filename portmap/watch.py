"""Which gateways are there now? Asked of the host when it starts, and whenever it says that something changed.

Changes come in bursts (a link, then its address, then its route), and an interface with a bad plug changes all day: a
change is looked at after a moment, and no more often than :data:`READS` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Interface, Subscription
from portmap.gateway import find_gateways, named_gateways
from portmap.pace import Pace
from portmap.values import Gateway

__all__ = ["GatewayWatch"]

SETTLE_S = 0.05
READS = (4, 6.0)
"""So often in so many seconds."""
RETRY_S = 5.0
"""When a host that did not tell its tables is asked again."""


class GatewayWatch:
    """Keeps the gateways of a host in mind. Belongs to the running loop.

    Args:
        host: whose.
        named: addresses of gateways instead of those that default routes lead to.
        versions: which IP versions count.
        accepts: which interfaces may be used; ``None``: all.
        then: called with the indices of interfaces that changed, after the gateways were read, or cannot be.

    Attributes:
        gateways: those that there are; ``None``: it is not known.
        trouble: why they cannot be read; empty: they can.

    Raises:
        OSError: this system does not tell its routes.
    """

    def __init__(
        self,
        host: Host,
        named: Sequence[str],
        versions: frozenset[int],
        accepts: Callable[[Interface], bool] | None,
        then: Callable[[frozenset[int]], None],
    ) -> None:
        self.gateways: tuple[Gateway, ...] | None = None
        self.trouble = ""
        self._host = host
        self._named = named
        self._versions = versions
        self._accepts = accepts
        self._then = then
        self._interfaces: dict[int, Interface] = {}
        # Since the gateways were read: what went and came back has changed as well.
        self._changed: set[int] = set()
        self._pace = Pace(*READS)
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stale = False
        self._is_closed = False
        self._subscriptions: list[Subscription] = []
        try:
            self._subscriptions.append(host.watch_interfaces(self._on_interfaces))
            self._subscriptions.append(host.watch_default_routes(self._on_routes))
        except BaseException:
            self.close()
            raise
        self._read_soon(0.0)

    async def ready(self) -> None:
        """Wait until the gateways are known.

        Raises:
            OSError: the host does not tell; it is asked again later.
            Exception: whatever ``accepts`` raised.
        """
        await asyncio.shield(self._first)

    def close(self) -> None:
        """Watch no more; idempotent. Nobody is kept waiting."""
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
        if not self._first.done():
            self._first.set_result(None)

    def _on_interfaces(self, interfaces: Sequence[Interface]) -> None:
        self._note(interfaces)
        self._on_change()

    def _on_routes(self, _: object) -> None:
        self._on_change()

    def _note(self, interfaces: Sequence[Interface]) -> None:
        before, now = self._interfaces, {interface.index: interface for interface in interfaces}
        self._changed.update(index for index in before.keys() | now.keys() if before.get(index) != now.get(index))
        self._interfaces = now

    def _on_change(self) -> None:
        self._is_stale = True
        if self._reading is None:
            self._read_soon(SETTLE_S)

    def _read_soon(self, delay_s: float) -> None:
        if self._is_closed:
            return
        now = self._loop.time()
        at = max(now + delay_s, self._pace.ready_at(now))
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._is_stale = False
        self._pace.take(self._loop.time())
        self._reading = self._loop.create_task(self._read())

    async def _read(self) -> None:
        try:
            interfaces, routes = await self._host.interfaces(), await self._host.default_routes()
            usable = [each for each in interfaces if self._accepts is None or self._accepts(each)]
            found = self._named_here(usable) if self._named else find_gateways(usable, routes)
        except Exception as error:  # Of the host an OSError; of ``accepts`` whatever it likes.
            self._reading = None
            self._fail(error)
        else:
            self._reading = None
            if not self._is_closed:
                self._take(interfaces, tuple(gateway for gateway in found if gateway.version in self._versions))
        if self._is_stale:
            self._read_soon(SETTLE_S)

    def _named_here(self, interfaces: Sequence[Interface]) -> Sequence[Gateway]:
        sources = {host: self._host.source_host(TransportAddress(host, 1)) for host in self._named}
        return named_gateways(self._named, interfaces, {name: at for name, at in sources.items() if at is not None})

    def _take(self, interfaces: Sequence[Interface], gateways: tuple[Gateway, ...]) -> None:
        self._note(interfaces)
        changed = frozenset(self._changed)
        self._changed.clear()
        is_same = not changed and gateways == self.gateways and not self.trouble
        self.gateways, self.trouble = gateways, ""
        if not self._first.done():
            self._first.set_result(None)
        elif self._first.exception() is not None:
            self._first = self._loop.create_future()
            self._first.set_result(None)
        if not is_same:
            self._then(changed)

    def _fail(self, error: Exception) -> None:
        """What was known counts until it is known better."""
        self.trouble = str(error) or type(error).__name__
        if isinstance(error, OSError):
            self._read_soon(RETRY_S)
        if not self._first.done():
            self._first.set_exception(error)
            # Perhaps nobody waits for it.
            self._first.exception()
        elif not isinstance(error, OSError):
            context = {"message": "Finding the gateways raised", "exception": error}
            self._loop.call_exception_handler(context)
        if self.gateways is None and not self._is_closed:
            self._then(frozenset())
