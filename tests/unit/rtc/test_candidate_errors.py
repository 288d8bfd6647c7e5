"""Why are there no candidates, and why does a connection end? What an application hears that knows W3C's events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from iceagent import IceServer, TurnCredentials, UsageError
from iceagent.rtc import IceCandidateError, PeerConnection
from tests.shell.test_relays import TURN, turn_machine
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.calls import Call
from tests.unit.rtc.kit import closing, connect, on_host, until

URL = f"turn:{TURN}?transport=udp"


async def errors_of(connection: PeerConnection) -> list[IceCandidateError]:
    """What an offer gives no candidate for."""
    told: list[IceCandidateError] = []
    connection.on("icecandidateerror", told.append)
    connection.createDataChannel("x")
    await connection.setLocalDescription(await connection.createOffer())
    return told


@pytest.mark.parametrize(
    ("password", "is_deaf", "code", "words"),
    [("wrong", False, 401, "user name or password are wrong"), ("secret", True, 701, "no response so far")],
)
@in_virtual_time
async def test_a_server_that_gives_nothing_is_told(password: str, is_deaf: bool, code: int, words: str) -> None:
    world = World()
    turn = await turn_machine(world)
    turn.is_deaf = is_deaf
    server = RTCIceServer(urls=URL, username="user", credential=password)
    configuration = RTCConfiguration(iceServers=[server], iceTransportPolicy=RTCIceTransportPolicy.RELAY)
    connection = on_host(world.host("a", "20.0.0.1"), configuration)
    async with closing(connection):
        (error,) = await errors_of(connection)
        assert (error.url, error.errorCode, error.address) == (URL, code, "20.0.0.1")
        assert words in error.errorText


@in_virtual_time
async def test_a_port_range_that_is_used_up_is_told() -> None:
    host = World().host("a", "20.0.0.1")
    first, second = (on_host(host, port_range=(40000, 40000)) for _ in range(2))
    async with closing(first, second):
        assert await errors_of(first) == []
        (error,) = await errors_of(second)
        assert (error.url, error.address, error.errorCode) == ("", "20.0.0.1", 701)
        assert "40000" in error.errorText


@in_virtual_time
async def test_a_function_for_credentials_may_be_given() -> None:
    """Time-limited accounts, which W3C's RTCIceServer has no field for."""

    async def credentials() -> TurnCredentials:
        return TurnCredentials(username="user", password="secret")

    world = World()
    await turn_machine(world)
    server = IceServer(urls=(URL,), credentials=credentials)
    connection = on_host(world.host("a", "20.0.0.1"), RTCConfiguration(iceServers=[server]))  # type: ignore[list-item]
    async with closing(connection):
        assert await errors_of(connection) == []
        assert " typ relay " in connection.localDescription.sdp


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: made([RTCIceServer(urls="stun:h")]),
            "the configuration is of type list, an RTCConfiguration",
        ),
        (lambda: made({"iceServers": []}), "the configuration is of type dict, an RTCConfiguration"),
        (lambda: configured(iceServers=[{"urls": "stun:h"}]), "iceServers has a dict in it, RTCIceServer is expected"),
        (lambda: configured(iceServers="stun:h"), "iceServers is of type str, a list of RTCIceServer is expected"),
        (lambda: configured(iceTransportPolicy="relays"), "iceTransportPolicy is 'relays', all or relay is expected"),
        (lambda: configured(iceTransportPolicy="relay"), "iceTransportPolicy relay needs a TURN server in iceServers"),
    ],
)
async def test_a_configuration_that_is_none_is_told_in_its_own_words(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        make()


def made(configuration: Any) -> PeerConnection:
    return PeerConnection(configuration)


def configured(**options: object) -> PeerConnection:
    return PeerConnection(RTCConfiguration(**options))  # type: ignore[arg-type]


@in_virtual_time
async def test_the_policy_may_be_a_text() -> None:
    """Else host addresses would be told to who asked that they be not."""
    world = World()
    await turn_machine(world)
    server = RTCIceServer(urls=URL, username="user", credential="secret")
    policy = RTCConfiguration(iceServers=[server], iceTransportPolicy="relay")  # type: ignore[arg-type]
    connection = on_host(world.host("a", "20.0.0.1"), policy)
    async with closing(connection):
        assert await errors_of(connection) == []
        assert "20.0.0.1" not in connection.localDescription.sdp and " typ relay " in connection.localDescription.sdp


@pytest.mark.parametrize("turns", range(4))
@in_virtual_time
async def test_a_peer_that_hangs_up_is_no_failure(turns: int) -> None:
    """Its goodbye and DTLS's come together, and are read in either order."""
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        line.say()
        for _ in range(turns):
            await asyncio.sleep(0)
        await call.a.close()
        await until(call.b, "connectionstatechange", lambda: call.b.connectionState == "closed")
        assert call.overall[1] == ["connecting", "connected", "closed"]
        assert call.ice[1] == ["checking", "connected", "completed", "closed"]
        assert call.a.path() is None is call.b.path()
