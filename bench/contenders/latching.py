"""Our latching relay, for ``bench/worker.py``: it goes on until it is ended."""

from __future__ import annotations

import asyncio
import json

from relay.backend import Backend

__all__ = ["relay"]


async def relay(host: str, backend: Backend, ports: list[tuple[int, int]], password: str) -> None:
    """Relay, and say on standard output which back end does.

    Args:
        host: the address of all ports.
        backend: who forwards.
        ports: left and right of each channel.
        password: of both sides of all channels, which are called ``left`` and ``right``.
    """
    from iceagent.net.local import local_host
    from relay.latch.channel import ChannelOptions, SideKey
    from relay.latch.relay import LatchRelay

    left, right = (SideKey(username=side, password=password) for side in ("left", "right"))
    options = ChannelOptions(left=left, right=right)
    async with LatchRelay(local_host(), backend=backend, bind=(host,)) as latch_relay:
        for each in ports:
            latch_relay.open(left=each[0], right=each[1], options=options)
        print(json.dumps(latch_relay.backend), flush=True)
        await asyncio.Event().wait()
