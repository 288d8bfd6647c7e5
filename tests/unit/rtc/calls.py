"""Two connections in a world of memory and virtual time, before and after they have met."""

from __future__ import annotations

import re
from typing import Any

from aiortc import RTCConfiguration, RTCIceCandidate, RTCSessionDescription

from iceagent.rtc import PeerConnection
from iceagent.testing import MemoryHost
from tests.shell.world import World
from tests.unit.rtc.kit import (
    NOBODY,
    on_host,
    states_of,
    until_connected,
    until_ice,
)

# RFC 7675, 5.1: consent ends 30 s after the last answer.
CONSENT_S = 30.0
FAILED_LIMIT_S = 90.0

CANDIDATE = RTCIceCandidate(
    component=1, foundation="1", ip="20.0.0.9", port=9, priority=1, protocol="udp", type="host", sdpMid="0"
)


class Call:
    """Two connections, on a machine each.

    Attributes:
        a, b: the connections; the first one offers.
        machines: theirs.
        ice, overall: the states of both since then.
    """

    def __init__(self, configuration: RTCConfiguration = NOBODY, **options: Any) -> None:
        self.world = World()
        self.machines: list[MemoryHost] = [self.world.host("a", "20.0.0.1"), self.world.host("b", "20.0.0.2")]
        self.a, self.b = (on_host(machine, configuration, **options) for machine in self.machines)
        self.ice = states_of(self.a), states_of(self.b)
        self.overall = states_of(self.a, "connectionState"), states_of(self.b, "connectionState")

    @property
    def both(self) -> tuple[PeerConnection, PeerConnection]:
        return self.a, self.b

    async def completed(self) -> None:
        """Both are."""
        for connection in self.both:
            await until_ice(connection, "completed")
            await until_connected(connection)


def two(configuration: RTCConfiguration = NOBODY, **options: object) -> tuple[World, PeerConnection, PeerConnection]:
    """Two connections, on a machine each, in one network."""
    world = World()
    a, b = (
        on_host(world.host(name, host), configuration, **options)
        for name, host in (("a", "20.0.0.1"), ("b", "20.0.0.2"))
    )
    return world, a, b


def with_everything(connection: PeerConnection) -> None:
    for kind in ("audio", "video"):
        connection.addTransceiver(kind)


def lines(description: RTCSessionDescription | None, start: str) -> list[str]:
    """What follows ``a=<start>:`` in each line that has it."""
    assert description is not None
    return re.findall(rf"^a={start}:?(.*?)\r?$", description.sdp, re.MULTILINE)


def ufrags(connection: PeerConnection) -> set[str]:
    description = connection.localDescription
    assert description is not None
    return set(re.findall(r"a=ice-ufrag:(\S+)", description.sdp))
