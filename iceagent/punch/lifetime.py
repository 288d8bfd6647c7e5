"""How does a program measure how long a binding lives, and what keeps it?

The shell around ``nat/lifetime.py``: it opens the sockets that the core wants, and pumps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random, SystemRandom

from iceagent.config import Config
from iceagent.nat.lifetime import LifetimeProbe
from iceagent.nat.lifetime_report import LifetimeFailed, LifetimeMeasured, LifetimeReport, SocketsDone, SocketsWanted
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.driver import Driver
from iceagent.net.host import Host
from iceagent.punch.sockets import DEFAULT_CONFIG, PunchFailed, Sockets, way_to
from relay.stun import IntegrityKey

__all__ = ["measure_lifetime"]


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
    sockets = Sockets(host, config, rng)
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
