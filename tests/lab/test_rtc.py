"""WebRTC on agents of ours while the networks change below it: the channel is the same, and nothing is lost.

Two machines behind real NATs, our STUN and TURN server; each end says a number twenty times a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCIceServer, VideoStreamTrack

from bench.survival.homes import Homes
from iceagent import Agent, NetworkChanged
from iceagent.lab import Lab
from iceagent.rtc import PeerConnection
from tests.unit.rtc.kit import Line, closing, connect, negotiate, on_host, states_of, until

INTERVAL_S = 0.05
# The longest that one change may take: aiortc repeats after 1, 2, 4 … s what was lost.
PATIENCE_S = 15.0


class Call:
    """Two connections that talk all the time.

    Attributes:
        a, b: the connections.
        line: the channel between them.
        overall: what ``connectionState`` of both was since the call began.
        signalled: what ``signalingState`` of both was since then.
    """

    def __init__(self, a: PeerConnection, b: PeerConnection, line: Line) -> None:
        self.a, self.b, self.line = a, b, line
        self.overall = states_of(a, "connectionState"), states_of(b, "connectionState")
        self.signalled = states_of(a, "signalingState"), states_of(b, "signalingState")
        self.ufrags = self.credentials()

    def credentials(self) -> list[str]:
        """The user name fragments of both."""
        descriptions = (self.a.localDescription, self.b.localDescription)
        return re.findall(r"a=ice-ufrag:(\S+)", "".join(each.sdp for each in descriptions))

    @property
    def kinds(self) -> list[str]:
        """Where data of both goes."""
        return [path.kind if (path := connection.path()) else "nowhere" for connection in (self.a, self.b)]

    async def until(self, fact: Callable[[], bool]) -> None:
        """Until it is true; looked at whenever data of one of them takes another path."""
        await until((self.a, self.b), "selectedcandidatepairchange", fact, PATIENCE_S)

    async def speak(self) -> None:
        """For ever."""
        while True:
            self.line.say()
            await asyncio.sleep(INTERVAL_S)

    async def heard(self) -> None:
        """All that was said so far and is said now arrives, once and in order, in the same session."""
        await self.line.all_heard(PATIENCE_S)
        assert self.signalled == ([], [])
        assert self.credentials() == self.ufrags
        assert not {"failed", "closed"} & {*self.overall[0], *self.overall[1]}


def connections(homes: Homes) -> list[PeerConnection]:
    """One on each machine, with all servers."""
    servers = [
        RTCIceServer(urls=list(each.urls), username=each.username, credential=each.credential) for each in homes.servers
    ]
    return [on_host(machine.host, RTCConfiguration(iceServers=servers)) for machine in homes.machines]


@asynccontextmanager
async def talking(homes: Homes) -> AsyncIterator[Call]:
    """A call that has begun to talk."""
    a, b = connections(homes)
    async with closing(a, b):
        call = Call(a, b, await connect(a, b))
        # What is signalled at the beginning does not count.
        for states in (*call.overall, *call.signalled):
            states.clear()
        speaking = asyncio.ensure_future(call.speak())
        try:
            yield call
            speaking.cancel()
            await asyncio.wait([speaking])
            await call.line.all_heard(PATIENCE_S)
        finally:
            speaking.cancel()
            await asyncio.wait([speaking])


async def selected_types(connection: PeerConnection) -> set[str]:
    """The types of the candidates that data goes between, by W3C's statistics."""
    report = await connection.getStats()
    (transport,) = [stats for stats in report.values() if stats.type == "transport"]
    pair = report[transport.selectedCandidatePairId]
    return {report[pair.localCandidateId].candidateType, report[pair.remoteCandidateId].candidateType}


async def test_from_the_relay_to_a_direct_path(natlab: Lab) -> None:
    """A firewall between the NATs is lifted: no negotiation, no restart, no gap that the channel could not fill."""
    homes = Homes(natlab, "upgrade", "port-restricted", "port-restricted")
    homes.block()
    async with talking(homes) as call:
        assert call.kinds == ["relay", "relay"]
        assert "relay" in await selected_types(call.a)
        await call.heard()
        homes.unblock()
        await call.until(lambda: call.kinds == ["direct", "direct"])
        await call.heard()
        assert "relay" not in await selected_types(call.a)
        # And back, when there is no other way.
        homes.block()
        await call.until(lambda: call.kinds == ["relay", "relay"])
        await call.heard()


async def test_a_cable_is_pulled_and_the_second_uplink_takes_over(natlab: Lab) -> None:
    homes = Homes(natlab, "uplinks", "port-restricted", "port-restricted", second_uplink=True)
    async with talking(homes) as call:
        await call.until(lambda: call.kinds == ["direct", "direct"])
        path = call.a.path()
        assert path is not None
        before = path.base
        homes.a.set_link(is_up=False)

        def has_moved() -> bool:
            path = call.a.path()
            return path is not None and path.base.host != before.host and "nowhere" not in call.kinds

        await call.until(has_moved)
        await call.heard()
        await call.until(lambda: call.kinds == ["direct", "direct"])
        await call.heard()


async def test_who_roams_is_followed(natlab: Lab) -> None:
    homes = Homes(natlab, "roam", "port-restricted", "port-restricted", elsewhere=1)
    async with talking(homes) as call:
        await call.until(lambda: call.kinds == ["direct", "direct"])
        homes.roam()
        # On whatever way first, and directly then.
        await call.until(lambda: is_from(call.b, homes.elsewhere[0].address))
        await call.heard()
        await call.until(lambda: call.kinds == ["direct", "direct"])
        await call.heard()


async def test_media_go_on_below_a_change(natlab: Lab) -> None:
    """A camera's frames arrive before and after the selected link goes down, on one transport with the channel."""
    homes = Homes(natlab, "camera", "port-restricted", "port-restricted", second_uplink=True)
    a, b = connections(homes)
    tracks: list[MediaStreamTrack] = []
    b.on("track", tracks.append)
    async with closing(a, b):
        a.addTrack(VideoStreamTrack())
        await connect(a, b)
        async with asyncio.timeout(PATIENCE_S):
            await frames(tracks[0], 15)
        path = a.path()
        assert path is not None and len(a.agents) == 1
        homes.a.set_link(is_up=False)
        moved = until(a, "selectedcandidatepairchange", lambda: a.path() not in (None, path), PATIENCE_S)
        await asyncio.gather(moved, frames(tracks[0], 60))
        after = a.path()
        assert after is not None and after.base.host != path.base.host
        assert a.connectionState == b.connectionState == "connected"


async def frames(track: MediaStreamTrack, count: int) -> None:
    """So many more of a video."""
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(count):
            await track.recv()


def is_from(connection: PeerConnection, host: str) -> bool:
    """Whether its data goes to this address."""
    path = connection.path()
    return path is not None and path.remote.address.host == host


@pytest.mark.parametrize("when", ["at once", "when both know"])
async def test_both_roam_and_a_restart_brings_them_together(natlab: Lab, when: str) -> None:
    """Signalling is what is left: new credentials, new candidates, the same channel. Applications may hear of the
    network before the agents do.
    """
    homes = Homes(natlab, "both", "port-restricted", "port-restricted", elsewhere=2)
    async with talking(homes) as call:
        await call.until(lambda: call.kinds == ["direct", "direct"])
        knowing = [knows_of_its_network(agent) for connection in (call.a, call.b) for agent in connection.agents]
        homes.roam()
        if when == "when both know":
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*knowing)
        call.a.restartIce()
        await negotiate(call.a, call.b)
        cafes = [router.address for router in homes.elsewhere]
        await call.until(lambda: is_from(call.b, cafes[0]) and is_from(call.a, cafes[1]))
        await call.until(lambda: call.kinds == ["direct", "direct"])
        await call.line.all_heard(PATIENCE_S)
        assert not set(call.credentials()) & set(call.ufrags)
        assert not {"failed", "closed"} & {*call.overall[0], *call.overall[1]}


def knows_of_its_network(agent: Agent) -> asyncio.Future[None]:
    """Done when it has been told that it changed."""

    async def listen() -> None:
        async for event in agent.events():
            if isinstance(event, NetworkChanged):
                return

    return asyncio.ensure_future(listen())
