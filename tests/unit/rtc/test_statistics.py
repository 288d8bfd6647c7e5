"""Are the statistics what W3C's "Identifiers for WebRTC's Statistics API" says?"""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from aiortc.stats import RTCStatsReport

from iceagent.rtc import PeerConnection, RTCIceCandidatePairStats, RTCIceCandidateStats
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.kit import Line, closing, connect, negotiate, on_host, until_ice


def of(report: RTCStatsReport, kind: str) -> list[Any]:
    return [stats for stats in report.values() if stats.type == kind]


def two() -> tuple[World, PeerConnection, PeerConnection]:
    world = World()
    return world, on_host(world.host("a", "20.0.0.1")), on_host(world.host("b", ("20.0.0.2", "20.0.7.2")))


@in_virtual_time
async def test_before_anything_there_is_nothing() -> None:
    _, a, b = two()
    async with closing(a, b):
        assert await a.getStats() == {}
        a.createDataChannel("x")
        report = await a.getStats()
        (transport,) = of(report, "transport")
        assert (transport.iceState, transport.selectedCandidatePairId) == ("new", None)
        assert transport.selectedCandidatePairChanges == 0
        assert of(report, "candidate-pair") == []


@in_virtual_time
async def test_a_call_that_goes_well() -> None:
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        await until_ice(a, "completed")
        line.say(50)
        await line.all_heard()
        report = await a.getStats()
        for identity, stats in report.items():
            assert stats.id == identity
            assert isinstance(stats.timestamp, datetime.datetime)
        (transport,) = of(report, "transport")
        pair = report[transport.selectedCandidatePairId]
        assert isinstance(pair, RTCIceCandidatePairStats)
        assert (pair.type, pair.state, pair.nominated) == ("candidate-pair", "succeeded", True)
        assert pair.transportId == transport.id
        # The network of the tests takes 20 ms each way.
        assert pair.currentRoundTripTime == pytest.approx(0.04, abs=0.001)
        assert pair.packetsSent >= 50 and pair.bytesSent > 50 * 20
        assert pair.packetsReceived >= 50 and pair.bytesReceived > 50 * 20
        assert pair.requestsSent >= 1 and pair.responsesReceived >= 1 and pair.packetsDiscardedOnSend == 0
        local, remote = report[pair.localCandidateId], report[pair.remoteCandidateId]
        assert isinstance(local, RTCIceCandidateStats) and isinstance(remote, RTCIceCandidateStats)
        assert (local.type, remote.type) == ("local-candidate", "remote-candidate")
        assert (local.address, local.protocol, local.candidateType) == ("20.0.0.1", "udp", "host")
        assert remote.address in ("20.0.0.2", "20.0.7.2")
        assert local.usernameFragment == transport.iceLocalUsernameFragment
        assert transport.iceState == "completed" and transport.iceRole == "controlling"
        assert transport.selectedCandidatePairChanges >= 1
        assert len(of(report, "local-candidate")) == 1
        assert {stats.address for stats in of(report, "remote-candidate")} == {"20.0.0.2", "20.0.7.2"}
        # Every pair is of candidates that are in the report.
        for each in of(report, "candidate-pair"):
            assert report[each.localCandidateId].type == "local-candidate"
            assert report[each.remoteCandidateId].type == "remote-candidate"
        # Aiortc's own are there still.
        assert of(report, "peer-connection") or of(report, "data-channel") or transport.dtlsState == "connected"


@in_virtual_time
async def test_counters_only_go_up_and_the_selected_pair_follows_the_path() -> None:
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        await until_ice(a, "completed")
        seen = 0
        for host in ("20.0.0.2", "20.0.7.2"):
            b._host.remove_address("eth0", host)  # type: ignore[union-attr]
            line.say(10)
            if host == "20.0.0.2":
                await line.all_heard(60.0)
            report = await a.getStats()
            (transport,) = of(report, "transport")
            assert transport.selectedCandidatePairChanges >= seen
            seen = transport.selectedCandidatePairChanges
            path = a.path()
            if path is None:
                continue
            remote = report[report[transport.selectedCandidatePairId].remoteCandidateId]
            assert (remote.address, remote.port) == path.remote.address
        await until_ice(a, "failed", limit_s=90.0)
        (transport,) = of(await a.getStats(), "transport")
        assert (transport.iceState, transport.selectedCandidatePairId) == ("failed", None)
        assert transport.selectedCandidatePairChanges >= seen


@in_virtual_time
async def test_a_transport_for_each_section() -> None:
    """Before the answer bundles them: ids do not collide."""
    _, a, b = two()
    async with closing(a, b):
        a.addTransceiver("audio")
        a.addTransceiver("video")
        Line(a, b)
        await a.setLocalDescription()
        report = await a.getStats()
        assert len(of(report, "transport")) == 3
        assert len(of(report, "local-candidate")) == 3
        assert len({stats.transportId for stats in of(report, "local-candidate")}) == 3
        await b.setRemoteDescription(a.localDescription)
        await b.setLocalDescription()
        await a.setRemoteDescription(b.localDescription)
        await until_ice(a, "completed")
        assert len(of(await a.getStats(), "transport")) == 1


@in_virtual_time
async def test_statistics_are_there_through_a_restart_and_after_the_end() -> None:
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        (before,) = of(await a.getStats(), "transport")
        a.restartIce()
        await a.getStats()
        await negotiate(a, b)
        await until_ice(a, "completed")
        await line.talk()
        (after,) = of(await a.getStats(), "transport")
        assert after.id == before.id
        assert after.iceLocalUsernameFragment != before.iceLocalUsernameFragment
    (closed,) = of(await a.getStats(), "transport")
    assert (closed.iceState, closed.selectedCandidatePairId) == ("closed", None)
