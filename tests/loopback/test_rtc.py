"""``iceagent.rtc`` on real sockets of this machine: calls, relays, closing. What time does to it is told in
``tests/unit/rtc``, in virtual time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiortc import AudioStreamTrack, RTCConfiguration, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from aiortc.stats import RTCStatsReport

from iceagent import TransportAddress, serve
from tests.loopback.loops import LoopFactory, on_both_loops, run
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    on_loopback,
    states_of,
    trickle,
    until,
    until_ice,
)

ROOT = Path(__file__).parents[2]
LOOPBACK = TransportAddress("127.0.0.1", 0)
USER = ("me", "secret")


def open_sockets() -> int:
    """Of this process, those of the loop included."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        # The list's own descriptor is closed by now.
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


@asynccontextmanager
async def turn_server() -> AsyncIterator[RTCConfiguration]:
    """Ours, and a configuration that goes through it and no other way."""
    async with serve([LOOPBACK], users=dict([USER]), allow_peers=["127.0.0.0/8"]) as server:
        url = f"turn:127.0.0.1:{server.listeners[0].address.port}?transport=udp"
        ice = RTCIceServer(urls=url, username=USER[0], credential=USER[1])
        yield RTCConfiguration(iceServers=[ice], iceTransportPolicy=RTCIceTransportPolicy.RELAY)
        await asyncio.wait_for(server.drain(), 5.0)


async def test_a_channel_both_ways() -> None:
    a, b = on_loopback(), on_loopback()
    states = states_of(a), states_of(b)
    async with closing(a, b):
        line = await connect(a, b)
        line.say(200)
        await line.all_heard()
        for connection in (a, b):
            await until_ice(connection, "completed")
            path = connection.path()
            assert path is not None and path.kind == "direct"
    assert states[0] == states[1] == ["checking", "connected", "completed", "closed"]


@on_both_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_on_both_loops_and_both_versions(loop_factory: LoopFactory, host: str) -> None:
    async def story() -> None:
        a, b = on_loopback(bind_hosts=(host,)), on_loopback(bind_hosts=(host,))
        async with closing(a, b):
            line = await connect(a, b)
            line.say(20)
            await line.all_heard()
            path = a.path()
            assert path is not None and path.remote.address.host == host

    run(loop_factory, story())


async def test_thirty_calls_at_once() -> None:
    pairs = [(on_loopback(), on_loopback()) for _ in range(30)]
    async with closing(*(each for pair in pairs for each in pair)):
        lines = await asyncio.gather(*(connect(*pair) for pair in pairs))
        for line in lines:
            line.say(5)
        await asyncio.gather(*(line.all_heard() for line in lines))


async def test_a_long_message_and_many_channels() -> None:
    a, b = on_loopback(), on_loopback()
    async with closing(a, b):
        got: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        b.on("datachannel", lambda channel: channel.on("message", lambda data: got.put_nowait((channel.label, data))))
        channels = [a.createDataChannel(str(number)) for number in range(20)]
        await negotiate(a, b)
        for channel in channels:
            await until(channel, "open", lambda c=channel: c.readyState == "open")  # type: ignore[misc]
            channel.send(os.urandom(60_000) if channel.label == "0" else channel.label)
        found = [await asyncio.wait_for(got.get(), 20.0) for _ in channels]
        assert {label for label, _ in found} == {str(number) for number in range(20)}
        assert len(dict(found)["0"]) == 60_000


async def test_trickle_on_real_sockets() -> None:
    a, b = on_loopback(), on_loopback()
    async with closing(a, b):
        line = Line(a, b)
        told = trickle(a, b), trickle(b, a)
        await negotiate(a, b)
        await line.opened()
        await line.talk()
        for each in told:
            await until_ice(a, "completed")
            assert each[-1] is None and len(each) == 2


async def test_audio_and_video_and_data() -> None:
    a, b = on_loopback(), on_loopback()
    async with closing(a, b):
        a.addTrack(AudioStreamTrack())
        a.addTransceiver("video")
        line = Line(a, b)
        tracks: list[Any] = []
        b.on("track", tracks.append)
        await negotiate(a, b)
        await line.opened()
        (audio,) = [track for track in tracks if track.kind == "audio"]
        async with asyncio.timeout(15.0):
            frames = [await audio.recv() for _ in range(10)]
        assert len(frames) == 10
        line.say(20)
        await line.all_heard()
        assert len(a.agents) == len(b.agents) == 1


async def test_a_restart_under_a_living_channel() -> None:
    a, b = on_loopback(), on_loopback()
    async with closing(a, b):
        line = await connect(a, b)
        await until_ice(a, "completed")
        overall = states_of(a, "connectionState"), states_of(b, "connectionState")

        def ufrags() -> list[set[str]]:
            return [set(re.findall(r"a=ice-ufrag:(\S+)", c.localDescription.sdp)) for c in (a, b)]

        before = ufrags()
        for starter, other in ((a, b), (b, a)):
            line.say(50)
            starter.restartIce()
            await negotiate(starter, other)
            line.say(50)
            await line.all_heard()
            for connection in (a, b):
                await until_ice(connection, "completed")
        assert not before[0] & ufrags()[0] and not before[1] & ufrags()[1]
        assert overall == ([], [])


async def test_the_peer_closes() -> None:
    a, b = on_loopback(), on_loopback()
    async with closing(a, b):
        line = await connect(a, b)
        await a.close()
        await until(b, "connectionstatechange", lambda: b.connectionState == "closed")
        assert line.far.readyState == "closed"


@pytest.mark.parametrize("when", ["new", "described", "checking", "open"])
async def test_closing_leaves_no_socket_and_no_task(when: str) -> None:
    await asyncio.sleep(0)
    sockets, tasks = open_sockets(), len(asyncio.all_tasks())
    a, b = on_loopback(), on_loopback()
    if when != "new":
        line = Line(a, b)
        a.addTransceiver("audio")
        if when == "described":
            await a.setLocalDescription()
        else:
            await negotiate(a, b)
        if when == "open":
            await line.opened()
    async with asyncio.timeout(5.0):
        await asyncio.gather(a.close(), b.close(), a.close())
        while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110 (nobody tells when a task has gone)
            await asyncio.sleep(0)
    # What the machine's own host holds for all of its agents stays.
    assert open_sockets() - sockets <= 1
    del a, b
    gc.collect()


async def test_hundred_connections_one_after_the_other_keep_nothing() -> None:
    async def one() -> None:
        a = on_loopback()
        async with closing(a):
            a.createDataChannel("x")
            await a.setLocalDescription()

    await one()
    sockets = open_sockets()
    for _ in range(100):
        await one()
    # One of the machine's own host, perhaps; none of each connection.
    assert open_sockets() <= sockets + 1


# --- relays ------------------------------------------------------------------------------------------------------


def of(report: RTCStatsReport, kind: str) -> list[Any]:
    return [stats for stats in report.values() if stats.type == kind]


async def test_policy_relay_through_our_own_server() -> None:
    async with turn_server() as configuration:
        a, b = on_loopback(configuration), on_loopback(configuration)
        async with closing(a, b):
            line = await connect(a, b)
            line.say(50)
            await line.all_heard()
            for connection in (a, b):
                await until_ice(connection, "completed")
                path = connection.path()
                assert path is not None and path.kind == "relay"
                report = await connection.getStats()
                (transport,) = of(report, "transport")
                pair = report[transport.selectedCandidatePairId]
                assert (pair.nominated, pair.state) == (True, "succeeded")
                # Seconds, and not milliseconds.
                assert 0.0 < pair.currentRoundTripTime < 1.0
                assert {stats.candidateType for stats in of(report, "local-candidate")} == {"relay"}
                assert report[pair.localCandidateId].candidateType == "relay"
                sdp = connection.localDescription.sdp
                assert re.findall(r"a=candidate:.* typ (\w+)", sdp) == ["relay"]
                # RFC 8839, 5.1: our address is nobody's business.
                assert re.findall(r"raddr (\S+) rport (\d+)", sdp) == [("0.0.0.0", "9")]


async def test_a_relay_that_comes_late_is_trickled() -> None:
    """Policy relay: without any candidate, the connection begins when the first one is there."""
    async with turn_server() as configuration:
        a, b = on_loopback(configuration), on_loopback(configuration)
        async with closing(a, b):
            line = Line(a, b)
            told = trickle(a, b)
            trickle(b, a)
            await negotiate(a, b)
            await line.opened()
            await line.talk()
            assert [candidate.type for candidate in told if candidate is not None] == ["relay"]


async def test_a_wrong_password_fails_without_hanging() -> None:
    async with turn_server() as configuration:
        assert configuration.iceServers
        configuration.iceServers[0].credential = "wrong"
        a = on_loopback(configuration)
        async with closing(a):
            a.createDataChannel("x")
            async with asyncio.timeout(8.0):
                await a.setLocalDescription()
            assert a.iceGatheringState == "complete"
            assert "a=candidate" not in a.localDescription.sdp


async def test_all_servers_are_asked() -> None:
    """The first one is dead; aiortc would have no other."""
    async with turn_server() as configuration:
        assert configuration.iceServers
        dead = RTCIceServer(urls="turn:127.0.0.1:9?transport=udp", username="x", credential="y")
        configuration.iceServers.insert(0, dead)
        a, b = on_loopback(configuration), on_loopback(configuration)
        async with closing(a, b):
            line = await connect(a, b)
            await line.talk()


# --- a program of its own ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
from tests.unit.rtc.kit import connect, negotiate, on_loopback

async def main():
    a, b = on_loopback(), on_loopback()
    line = await connect(a, b)
    line.say(10)
    await line.all_heard()
    a.restartIce()
    await negotiate(a, b)
    await line.talk()
    await asyncio.gather(a.close(), b.close())
    assert asyncio.all_tasks() == {asyncio.current_task()}

asyncio.run(main(), debug=True)
"""


def test_a_whole_program_ends_without_a_warning() -> None:
    """``python -X dev -W error``: no socket, no task, no coroutine is left behind."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    errors = [line for line in done.stderr.splitlines() if not re.match(r"Executing <.*> took \d", line)]
    assert (done.returncode, errors) == (0, [])
