"""Both agents behind one face, as thin as it can be.

A process imports the agent it measures and not the other one: what an import leaves behind in the memory allocator
changes what aioice's datagrams cost by a factor of two (``cases/datagrams.py``).

Descriptions are text on both sides: parsing them is part of connecting. Each agent is used with its defaults; what
differs is written where it does. Connected means what the agent itself calls so: ours has a valid pair and sends on it;
aioice has nominated one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

__all__ = [
    "AIOICE",
    "AIOICE_FIXED",
    "CONTENDERS",
    "OURS",
    "OURS_ALONE",
    "OURS_SINGLY",
    "TURN_PASSWORD",
    "TURN_USER",
    "Contender",
    "contender",
    "pair",
]

OURS, AIOICE = "ours", "aioice"
# Without the wake-ups that agents of one process share: see ``OurContenderAlone``.
OURS_ALONE = "ours alone"
# Every datagram leaves by itself.
OURS_SINGLY = "ours singly"
# With a repair of what makes receiving slow in asyncio: see ``AioiceContender``.
AIOICE_FIXED = "aioice fixed"
CONTENDERS = (OURS, AIOICE)

TURN_USER, TURN_PASSWORD = "bench", "secret"

_CLASSES = {
    OURS: ("bench.contenders.ours", "OurContender"),
    OURS_ALONE: ("bench.contenders.ours", "OurContenderAlone"),
    OURS_SINGLY: ("bench.contenders.ours", "OurContenderSingly"),
    AIOICE: ("bench.contenders.theirs", "AioiceContender"),
    AIOICE_FIXED: ("bench.contenders.theirs", "FixedAioiceContender"),
}


class Contender(Protocol):
    """An ICE agent under measurement.

    Args:
        controlling: its role.
        loopback_hosts: gather on these loopback addresses; empty: on all that are no loopback addresses.
        stun: host and port of a STUN server.
        turn: host and port of a TURN server that knows :data:`TURN_USER`: connect through it, and no other way.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        loopback_hosts: Sequence[str] = (),
        stun: tuple[str, int] | None = None,
        turn: tuple[str, int] | None = None,
    ) -> None: ...

    async def gather(self) -> None:
        """Find candidates, and wait until that is done."""

    def description(self) -> str:
        """What the other side is to be told."""

    async def set_remote(self, description: str) -> None:
        """Take what the other side's :meth:`description` gave, as all there is."""

    async def connect(self) -> None:
        """Wait until connected."""

    async def send(self, data: bytes) -> None:
        """Send one datagram."""

    async def recv(self) -> bytes:
        """The next datagram."""

    async def close(self) -> None:
        """Close."""


def contender(
    name: str,
    *,
    controlling: bool,
    loopback_hosts: Sequence[str] = (),
    stun: tuple[str, int] | None = None,
    turn: tuple[str, int] | None = None,
) -> Contender:
    """An agent by the name of its make."""
    module, class_name = _CLASSES[name]
    make = cast(type[Contender], getattr(importlib.import_module(module), class_name))
    return make(controlling=controlling, loopback_hosts=loopback_hosts, stun=stun, turn=turn)


def pair(name: str, loopback_hosts: Sequence[str], stun: tuple[str, int] | None = None) -> tuple[Contender, Contender]:
    """Two agents on loopback; the first is controlling."""
    first, second = (
        contender(name, controlling=controlling, loopback_hosts=loopback_hosts, stun=stun)
        for controlling in (True, False)
    )
    return first, second
