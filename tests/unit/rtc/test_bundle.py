"""How many transports are there, before the answer, after it, and when it is negotiated again?"""

from __future__ import annotations

import asyncio
import re

import pytest
from aiortc import RTCConfiguration, RTCSessionDescription
from aiortc.rtcconfiguration import RTCBundlePolicy

from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.calls import lines, two, with_everything
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    on_host,
    states_of,
    trickle,
    until,
    until_connected,
    until_ice,
)

POLICIES = list(RTCBundlePolicy)


@pytest.mark.parametrize("theirs", POLICIES)
@pytest.mark.parametrize("ours", POLICIES)
@in_virtual_time
async def test_audio_video_and_data_end_on_one_transport(ours: RTCBundlePolicy, theirs: RTCBundlePolicy) -> None:
    world = World()
    a = on_host(world.host("a", "20.0.0.1"), RTCConfiguration(iceServers=[], bundlePolicy=ours))
    b = on_host(world.host("b", "20.0.0.2"), RTCConfiguration(iceServers=[], bundlePolicy=theirs))
    async with closing(a, b):
        with_everything(a)
        line = Line(a, b)
        await a.setLocalDescription()
        first = a.agents
        assert len(first) == (1 if ours is RTCBundlePolicy.MAX_BUNDLE else 3)
        assert len(set(lines(a.localDescription, "ice-ufrag"))) == 1
        assert len(set(lines(a.localDescription, "ice-pwd"))) == 1
        await b.setRemoteDescription(a.localDescription)
        await b.setLocalDescription()
        assert len(b.agents) == 1
        await a.setRemoteDescription(b.localDescription)
        (kept,) = a.agents
        assert kept in first
        # The surplus ones are closed, and not only forgotten.
        await asyncio.sleep(1.0)
        for agent in first:
            assert (agent.state.value == "closed") is (agent is not kept)
        await line.opened()
        await line.talk()
        for connection in (a, b):
            await until_connected(connection)
            await until_ice(connection, "completed")
            assert len(set(lines(connection.localDescription, "ice-ufrag"))) == 1


@in_virtual_time
async def test_only_the_credentials_of_the_tagged_section_count() -> None:
    """BUNDLE (RFC 9143): an offer may have other credentials in each section; afterwards there is one transport, that
    of the section that the group names first.
    """
    _, a, b = two()
    async with closing(a, b):
        with_everything(a)
        line = Line(a, b)
        await a.setLocalDescription()
        offer = a.localDescription
        assert offer is not None
        head, *sections = re.split(r"(?=^m=)", offer.sdp, flags=re.MULTILINE)
        for number in (1, 2):
            sections[number] = re.sub(r"a=ice-ufrag:.*\r\n", f"a=ice-ufrag:other{number}\r\n", sections[number])
            sections[number] = re.sub(r"a=ice-pwd:.*\r\n", f"a=ice-pwd:{'p' * 22}\r\n", sections[number])
        await b.setRemoteDescription(RTCSessionDescription(sdp=head + "".join(sections), type="offer"))
        await b.setLocalDescription()
        await a.setRemoteDescription(b.localDescription)
        await line.opened()
        for connection in (a, b):
            await until_ice(connection, "completed")
        await asyncio.sleep(60.0)
        assert (a.iceConnectionState, b.iceConnectionState) == ("completed", "completed")
        (transport,) = b._ice_transports()
        assert transport.connection.remote_username == lines(offer, "ice-ufrag")[0]
        await line.talk()


@pytest.mark.parametrize("is_restart", [False, True])
@in_virtual_time
async def test_candidates_may_stand_in_the_tagged_section_alone(is_restart: bool) -> None:
    """RFC 8840, 7: "contains a candidate attribute only for the m= line with the suggested Offerer BUNDLE address".
    Where several sections share a transport, aiortc takes those of the last.
    """

    def sparing(description: RTCSessionDescription) -> RTCSessionDescription:
        head, *sections = re.split(r"(?=^m=)", description.sdp, flags=re.MULTILINE)
        others = [re.sub(r"a=(candidate:.*|end-of-candidates)\r\n", "", section) for section in sections[1:]]
        return RTCSessionDescription(sdp=head + sections[0] + "".join(others), type=description.type)

    _, a, b = two(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
    async with closing(a, b):
        a.addTransceiver("audio")
        a.addTransceiver("video")
        line = Line(a, b)
        for _ in range(1 + is_restart):
            await a.setLocalDescription(await a.createOffer())
            await b.setRemoteDescription(sparing(a.localDescription))
            await b.setLocalDescription()
            await a.setRemoteDescription(sparing(b.localDescription))
            await line.opened()
            await asyncio.sleep(1.0)
            for one, other in ((a, b), (b, a)):
                theirs = [(each.type, each.address) for each in other.agents[0].local_candidates]
                assert [(each.type, each.address) for each in one.agents[0].remote_candidates] == theirs
            a.restartIce()


@in_virtual_time
async def test_the_peers_pacing_is_obeyed() -> None:
    """RFC 8445, 14.2: "Both agents MUST use the higher value of the proposed values"."""
    _, a, b = two()
    async with closing(a, b):
        Line(a, b)
        await a.setLocalDescription(await a.createOffer())
        slow = a.localDescription.sdp.replace("t=0 0\r\n", "t=0 0\r\na=ice-pacing:120\r\n")
        await b.setRemoteDescription(RTCSessionDescription(sdp=slow, type="offer"))
        await b.setLocalDescription()
        await a.setRemoteDescription(b.localDescription)
        await until_ice(b, "completed")
        assert b.agents[0]._session._context.ta_s == 0.120


@in_virtual_time
async def test_a_peer_without_bundle_gets_a_transport_for_each_section() -> None:
    _, a, b = two()
    async with closing(a, b):
        with_everything(a)
        line = Line(a, b)

        def without(description: RTCSessionDescription | None) -> RTCSessionDescription:
            assert description is not None
            return RTCSessionDescription(
                sdp=re.sub(r"a=group:BUNDLE.*\r\n", "", description.sdp), type=description.type
            )

        await a.setLocalDescription()
        await b.setRemoteDescription(without(a.localDescription))
        await b.setLocalDescription()
        await a.setRemoteDescription(without(b.localDescription))
        await line.opened()
        await line.talk()
        for connection in (a, b):
            assert len(connection.agents) == 3
            await until_connected(connection)
            await until_ice(connection, "completed")
            assert len({agent.path().local.address for agent in connection.agents}) == 3  # type: ignore[union-attr]
        # All restart, and all come back.
        a.restartIce()
        await a.setLocalDescription()
        await b.setRemoteDescription(without(a.localDescription))
        await b.setLocalDescription()
        await a.setRemoteDescription(without(b.localDescription))
        await line.talk()
        for connection in (a, b):
            await until_ice(connection, "completed")


# --- negotiated again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offers", ["same side", "other side"])
@in_virtual_time
async def test_media_is_added_under_a_living_channel(offers: str) -> None:
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        await until_ice(a, "completed")
        ufrags = lines(a.localDescription, "ice-ufrag")
        offerer, answerer = (a, b) if offers == "same side" else (b, a)
        with_everything(offerer)
        line.say(20)
        await negotiate(offerer, answerer)
        await line.all_heard()
        for connection in (a, b):
            assert len(connection.agents) == 1
            await until_ice(connection, "completed")
            await until_connected(connection)
        assert set(lines(a.localDescription, "ice-ufrag")) == set(ufrags)
        await line.talk()


@in_virtual_time
async def test_each_gathering_has_an_end() -> None:
    """A section that is added gathers anew, and who trickles has to hear when that is over."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        told = trickle(a, b)
        trickle(b, a)
        await negotiate(a, b)
        await line.opened()
        assert told.count(None) == 1
        states = states_of(a, "iceGatheringState")
        a.addTransceiver("audio")
        await negotiate(a, b)
        await until(a, "icegatheringstatechange", lambda: a.iceGatheringState == "complete")
        await asyncio.sleep(1.0)
        assert states[-1] == "complete"
        assert told[-1] is None
        # The candidates of the added section came in between, or were never found since its transport was not needed.
        assert told.count(None) == 1 + ("gathering" in states)


@in_virtual_time
async def test_negotiating_fifty_times_keeps_nothing() -> None:
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        with_everything(a)
        for number in range(50):
            await negotiate(*((b, a) if number % 2 else (a, b)))
        await line.talk()
        assert len(a.agents) == len(b.agents) == 1
        assert len(a._made) <= 3
