"""Stock aiortc against ours: on aioice there, on our agent here, both on one machine that nobody else is near."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aioice
import pytest
from aiortc import AudioStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpReceiver

from iceagent.lab import Lab, Machine
from iceagent.lab.services import serve
from iceagent.lab.session import run_inside
from iceagent.rtc import PeerConnection
from iceagent.rtc.connection import AgentConnection
from tests.unit.rtc.kit import (
    NOBODY,
    Line,
    closing,
    connect,
    negotiate,
    on_host,
    trickle,
    until,
    until_connected,
    until_ice,
)

SIDES = pytest.mark.parametrize("offers", ["ours", "stock"])
FRAMES = 20


def inside(lab: Lab, story: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
    """Tell it in a thread inside a machine's network: whatever aioice opens is there, too."""
    machine = lab.machine()
    run_inside(machine, lambda: story(machine)).result(timeout=50.0)


def ordered(ours: PeerConnection, stock: RTCPeerConnection, offers: str) -> tuple[RTCPeerConnection, RTCPeerConnection]:
    """Who offers, and who answers."""
    return (ours, stock) if offers == "ours" else (stock, ours)


@SIDES
def test_a_channel_both_ways(natlab: Lab, offers: str) -> None:
    async def story(machine: Machine) -> None:
        ours, stock = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            line = await connect(*ordered(ours, stock, offers))
            line.say(200)
            await line.all_heard()
            await until_ice(ours, "completed")
            assert stock.iceConnectionState == "completed"
            for connection in (ours, stock):
                await until_connected(connection)
            assert ours.agents[0].controlling is (offers == "ours")

    inside(natlab, story)


@SIDES
def test_audio_video_and_data(natlab: Lab, offers: str) -> None:
    """Frames are counted at both ends; one transport is left of three."""

    async def story(machine: Machine) -> None:
        ours, stock = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            tracks: list[Any] = []
            for connection in (ours, stock):
                connection.on("track", tracks.append)
            ours.addTrack(AudioStreamTrack())
            stock.addTrack(AudioStreamTrack())
            offerer, answerer = ordered(ours, stock, offers)
            offerer.addTransceiver("video")
            line = await connect(offerer, answerer)
            audio = [track for track in tracks if track.kind == "audio"]
            assert len(audio) == 2
            async with asyncio.timeout(20.0):
                for track in audio:
                    assert len([await track.recv() for _ in range(FRAMES)]) == FRAMES
            line.say(20)
            await line.all_heard()
            assert len(ours.agents) == 1
            received = [stats for stats in (await ours.getStats()).values() if stats.type == "inbound-rtp"]
            assert any(stats.packetsReceived >= FRAMES for stats in received)

    inside(natlab, story)


@SIDES
@pytest.mark.parametrize("closes", ["ours", "stock"])
def test_who_closes_closes_both(natlab: Lab, offers: str, closes: str) -> None:
    async def story(machine: Machine) -> None:
        ours, stock = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            line = await connect(*ordered(ours, stock, offers))
            first, second = (ours, stock) if closes == "ours" else (stock, ours)
            async with asyncio.timeout(5.0):
                await first.close()
            await until(second, "connectionstatechange", lambda: second.connectionState == "closed", 5.0)
            assert line.near.readyState == line.far.readyState == "closed"

    inside(natlab, story)


def test_ours_trickles_to_stock(natlab: Lab) -> None:
    """A server that does not answer holds nothing up; aiortc takes candidates one by one, too."""

    async def story(machine: Machine) -> None:
        nobody = RTCConfiguration(iceServers=[RTCIceServer(urls=f"stun:{machine.address}:9")])
        ours, stock = on_host(machine.host, nobody), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            line = Line(ours, stock)
            told = trickle(ours, stock)
            await ours.setLocalDescription()
            assert ours.iceGatheringState == "gathering"
            await stock.setRemoteDescription(ours.localDescription)
            await stock.setLocalDescription()
            await ours.setRemoteDescription(stock.localDescription)
            await line.opened()
            await line.talk()
            assert any(candidate is not None for candidate in told)

    inside(natlab, story)


@SIDES
def test_negotiating_again_under_a_living_channel(natlab: Lab, offers: str) -> None:
    async def story(machine: Machine) -> None:
        ours, stock = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            offerer, answerer = ordered(ours, stock, offers)
            line = await connect(offerer, answerer)
            line.say(20)
            offerer.addTransceiver("audio")
            await negotiate(offerer, answerer)
            line.say(20)
            await line.all_heard()
            assert len(ours.agents) == 1

    inside(natlab, story)


def test_through_a_relay(natlab: Lab) -> None:
    """All of ours go through the server; stock aiortc sends to the relayed address."""

    async def story(machine: Machine) -> None:
        server = RTCIceServer(urls=f"turn:{relay.address}?transport=udp", username="u", credential="pw")
        ours, stock = on_host(machine.host, RTCConfiguration(iceServers=[server])), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            line = await connect(stock, ours)
            await line.talk()

    relay = natlab.machine("relay")
    serve(relay, "--user", "u:pw")
    inside(natlab, story)


def test_ours_and_stock_in_one_process_leave_each_other_alone(natlab: Lab) -> None:
    async def story(machine: Machine) -> None:
        ours = on_host(machine.host), on_host(machine.host)
        stock = RTCPeerConnection(NOBODY), RTCPeerConnection(NOBODY)
        mixed = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(*ours, *stock, *mixed):
            lines = [await connect(*pair) for pair in (ours, stock, mixed)]
            for line in lines:
                line.say(20)
            for line in lines:
                await line.all_heard()
            for connection, kind in (
                *((each, AgentConnection) for each in (*ours, mixed[0])),
                *((each, aioice.Connection) for each in (*stock, mixed[1])),
            ):
                assert connection.sctp is not None
                assert type(connection.sctp.transport.transport._connection) is kind
            # The stock one asks whom it always asked; ours asks nobody.
            assert RTCPeerConnection is not PeerConnection
            assert type(stock[0].sctp.transport.transport.iceGatherer).__module__ == "aiortc.rtcicetransport"  # type: ignore[union-attr]

    inside(natlab, story)


def test_frames_are_decoded_by_a_receiver_of_aiortc(natlab: Lab) -> None:
    """What plays is aiortc's, whichever ICE carries it."""

    async def story(machine: Machine) -> None:
        ours, stock = on_host(machine.host), RTCPeerConnection(NOBODY)
        async with closing(ours, stock):
            ours.addTrack(AudioStreamTrack())
            tracks: list[Any] = []
            stock.on("track", tracks.append)
            await negotiate(ours, stock)
            (track,) = tracks
            async with asyncio.timeout(20.0):
                frames = [await track.recv() for _ in range(FRAMES)]
            assert {frame.sample_rate for frame in frames} <= {8000, 16000, 48000}
            assert all(isinstance(each, RTCRtpReceiver) for each in stock.getReceivers())

    inside(natlab, story)
