"""How does a host answer those who punch to it, without expecting anybody?

The shell around :class:`iceagent.nat.responding.FarEnd`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random, SystemRandom
from types import TracebackType

from iceagent.config import Config
from iceagent.nat.responding import FarEnd
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.driver import Driver
from iceagent.net.host import Host
from iceagent.punch.sockets import DEFAULT_CONFIG, Sockets
from relay.stun import IntegrityKey

__all__ = ["FarEndServer"]


class FarEndServer:
    """A far end on every address of a host, or on some; all on one port. An async context manager that answers while it
    is open.

    Args:
        host: whose sockets.
        config: which addresses, and which port.
        key: requests have to be signed with it; ``None``: anybody is answered.
        on_event: is told every event of the core.
        on_change: is called when addresses came or went.
        rng: chooses ports, where there is a range of them.
    """

    def __init__(
        self,
        host: Host,
        *,
        config: Config = DEFAULT_CONFIG,
        key: IntegrityKey | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        on_change: Callable[[], None] = lambda: None,
        rng: Random | None = None,
    ) -> None:
        self.core = FarEnd(key)
        self._sockets = Sockets(host, config, SystemRandom() if rng is None else rng)
        self._on_event = on_event
        self._on_change = on_change
        self._driver: Driver | None = None

    async def __aenter__(self) -> FarEndServer:
        """Open the sockets.

        Raises:
            PunchFailed: the host has no address that may be used.
            OSError: a port cannot be had; the text says which.
        """
        self._driver = self._sockets.pump(self.core, self._on_event)
        try:
            await self._sockets.listen(self._follow)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self.core.bases.update(self.bases)
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

    def _follow(self) -> None:
        self.core.bases = set(self.bases)
        self._on_change()
