"""Two peer connections and what is said between them, on any host: in memory, on loopback, in the laboratory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCIceCandidate, RTCPeerConnection
from pyee.base import EventEmitter

from iceagent.net.host import Host
from iceagent.rtc import PeerConnection, candidate_from_json, candidate_to_json

NOBODY = RTCConfiguration(iceServers=[])
"""No server is asked. (Stock aiortc asks a public one by default.)"""

PATIENCE_S = 20.0
"""The longest that one thing may take; in the virtual world, virtual seconds."""


def on_loopback(configuration: RTCConfiguration = NOBODY, **options: Any) -> PeerConnection:
    """One on 127.0.0.1 alone."""
    return PeerConnection(configuration, **{"loopback": True, "bind_hosts": ("127.0.0.1",), **options})


def on_host(host: Host, configuration: RTCConfiguration = NOBODY, **options: Any) -> PeerConnection:
    """One on a machine in memory, or of the laboratory."""
    return PeerConnection(configuration, host=host, **options)


@asynccontextmanager
async def closing(*connections: RTCPeerConnection) -> AsyncIterator[None]:
    """They are closed at the end, side by side."""
    try:
        yield
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


async def until(
    emitters: EventEmitter | tuple[EventEmitter, ...], event: str, fact: Callable[[], bool], limit_s: float = PATIENCE_S
) -> None:
    """Until it is true; looked at now and at each such event of one of these.

    Raises:
        TimeoutError: it is not within so many seconds.
    """
    emitters = emitters if isinstance(emitters, tuple) else (emitters,)
    changed = asyncio.Event()

    def on_event(*_: object) -> None:
        changed.set()

    for emitter in emitters:
        emitter.on(event, on_event)
    try:
        async with asyncio.timeout(limit_s):
            while not fact():
                changed.clear()
                await changed.wait()
    finally:
        for emitter in emitters:
            # Who has closed has forgotten its listeners.
            with suppress(KeyError):
                emitter.remove_listener(event, on_event)


async def until_ice(connection: PeerConnection, *states: str, limit_s: float = PATIENCE_S) -> None:
    """Until ``iceConnectionState`` is one of these."""
    await until(connection, "iceconnectionstatechange", lambda: connection.iceConnectionState in states, limit_s)


async def until_connected(*connections: RTCPeerConnection) -> None:
    """Until ``connectionState`` of each says so."""
    for connection in connections:
        await until(connection, "connectionstatechange", partial(_is_connected, connection))


def _is_connected(connection: RTCPeerConnection) -> bool:
    return connection.connectionState == "connected"


async def negotiate(offerer: RTCPeerConnection, answerer: RTCPeerConnection) -> None:
    """Offer and answer, with the candidates known by then."""
    await offerer.setLocalDescription()
    await answerer.setRemoteDescription(offerer.localDescription)
    await answerer.setLocalDescription()
    await offerer.setRemoteDescription(answerer.localDescription)


def trickle(sender: PeerConnection, receiver: RTCPeerConnection) -> list[RTCIceCandidate | None]:
    """Signal each candidate as browsers do, by way of JSON; what was signalled, in order."""
    told: list[RTCIceCandidate | None] = []

    async def on_candidate(candidate: RTCIceCandidate | None) -> None:
        told.append(candidate)
        await receiver.addIceCandidate(candidate_from_json(candidate_to_json(candidate)))

    sender.on("icecandidate", on_candidate)
    return told


def states_of(connection: RTCPeerConnection, name: str = "iceConnectionState") -> list[str]:
    """What a state becomes, from now on."""
    found: list[str] = []
    connection.on(f"{name.lower()}change", lambda: found.append(getattr(connection, name)))
    return found


class Line:
    """A reliable, ordered channel, whose ends number what they say and note what they hear.

    Attributes:
        here, there: what each end has heard.
    """

    def __init__(self, first: RTCPeerConnection, second: RTCPeerConnection) -> None:
        self.here: list[int] = []
        self.there: list[int] = []
        self._said = {"here": 0, "there": 0}
        self._heard = asyncio.Event()
        self._far: RTCDataChannel | None = None
        self._near = first.createDataChannel("line")
        self._near.on("open", self._heard.set)
        self._near.on("message", lambda data: self._note(self.here, data))
        second.on("datachannel", self._take)

    @property
    def near(self) -> RTCDataChannel:
        """The end that made it."""
        return self._near

    @property
    def far(self) -> RTCDataChannel:
        """The other one."""
        assert self._far is not None
        return self._far

    @property
    def is_open(self) -> bool:
        """On both ends."""
        return self._near.readyState == "open" and self._far is not None and self._far.readyState == "open"

    async def opened(self, limit_s: float = PATIENCE_S) -> None:
        """Until it is."""
        await self._until(lambda: self.is_open, limit_s)

    def say(self, count: int = 1) -> None:
        """So many more messages, each way."""
        for name, channel in (("here", self._near), ("there", self.far)):
            for _ in range(count):
                channel.send(str(self._said[name]))
                self._said[name] += 1

    async def all_heard(self, limit_s: float = PATIENCE_S) -> None:
        """Until both ends have heard all that was said; nothing is lost, doubled or out of order.

        Raises:
            AssertionError: something is.
        """
        await self._until(
            lambda: len(self.there) >= self._said["here"] and len(self.here) >= self._said["there"], limit_s
        )
        assert self.there == list(range(self._said["here"]))
        assert self.here == list(range(self._said["there"]))

    async def talk(self, limit_s: float = PATIENCE_S) -> None:
        """One message each way arrives."""
        self.say()
        await self.all_heard(limit_s)

    def _take(self, channel: RTCDataChannel) -> None:
        self._far = channel
        channel.on("message", lambda data: self._note(self.there, data))
        self._heard.set()

    def _note(self, heard: list[int], data: str | bytes) -> None:
        heard.append(int(data))
        self._heard.set()

    async def _until(self, fact: Callable[[], bool], limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            while not fact():
                self._heard.clear()
                await self._heard.wait()


async def connect(first: RTCPeerConnection, second: RTCPeerConnection) -> Line:
    """A channel between them, open; the first one offers."""
    line = Line(first, second)
    await negotiate(first, second)
    await line.opened()
    return line
