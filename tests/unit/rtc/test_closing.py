"""Does closing end everything, whenever it comes?"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest
from aiortc import RTCConfiguration, RTCIceServer

from iceagent.testing import MemoryHost
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.calls import FAILED_LIMIT_S, Call, two
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    on_host,
    until,
    until_ice,
)


def moments() -> list[tuple[str, Callable[[Call], object]]]:
    """When one may close, as what has to be done before."""

    async def nothing(call: Call) -> None:
        pass

    async def channel(call: Call) -> None:
        Line(call.a, call.b)

    async def described(call: Call) -> None:
        Line(call.a, call.b)
        await call.a.setLocalDescription()

    async def offered(call: Call) -> None:
        await described(call)
        await call.b.setRemoteDescription(call.a.localDescription)

    async def checking(call: Call) -> None:
        Line(call.a, call.b)
        await negotiate(call.a, call.b)

    async def shaking(call: Call) -> None:
        await checking(call)
        await until_ice(call.a, "connected", "completed")

    async def opened(call: Call) -> None:
        await connect(call.a, call.b)

    async def restarting(call: Call) -> None:
        await connect(call.a, call.b)
        call.a.restartIce()
        await call.a.setLocalDescription()
        await call.b.setRemoteDescription(call.a.localDescription)

    async def failed(call: Call) -> None:
        await connect(call.a, call.b)
        call.machines[1].link().cut()
        await until_ice(call.a, "failed", limit_s=FAILED_LIMIT_S)

    steps = (nothing, channel, described, offered, checking, shaking, opened, restarting, failed)
    return [(step.__name__, step) for step in steps]


@pytest.mark.parametrize("who", ["a", "b", "both", "twice"])
@pytest.mark.parametrize(("name", "before"), moments(), ids=[name for name, _ in moments()])
@in_virtual_time
async def test_closing_at_any_moment_ends(name: str, before: Callable[[Call], object], who: str) -> None:
    """No task, no unhandled error and no socket are left; it takes a second at most."""
    call = Call()
    await before(call)  # type: ignore[misc]
    began = call.world.now
    if who == "both":
        await asyncio.gather(call.a.close(), call.b.close())
    elif who == "twice":
        await asyncio.gather(call.a.close(), call.a.close())
        await call.a.close()
    else:
        await getattr(call, who).close()
    assert call.world.now - began <= 1.0
    for connection in call.both:
        await connection.close()
        assert (connection.connectionState, connection.iceConnectionState, connection.signalingState) == (
            ("closed",) * 3
        )
        with pytest.raises(Exception, match="closed"):
            connection.restartIce()
    for machine in call.machines:
        assert open_sockets(machine) == 0


def open_sockets(machine: MemoryHost) -> int:
    return len(machine._sockets)


@pytest.mark.parametrize(
    "event", ["icecandidate", "iceconnectionstatechange", "connectionstatechange", "signalingstatechange"]
)
@in_virtual_time
async def test_closing_from_a_listener(event: str) -> None:
    call = Call()
    async with closing(*call.both):
        Line(call.a, call.b)
        call.a.on(event, lambda *_: asyncio.ensure_future(call.a.close()))

        async def close(*_: object) -> None:
            await call.a.close()

        call.a.on(event, close)
        try:
            await negotiate(call.a, call.b)
        except Exception as error:  # Whatever a description says to a connection that is closed.
            assert "closed" in str(error)
        await until(call.a, "connectionstatechange", lambda: call.a.connectionState == "closed")


@in_virtual_time
async def test_closing_while_candidates_are_gathered() -> None:
    """``setLocalDescription`` waits for a server that does not answer: it ends, and says why or nothing."""
    world = World()
    configuration = RTCConfiguration(iceServers=[RTCIceServer(urls="stun:20.0.0.77")])
    a = on_host(world.host("a", "20.0.0.1"), configuration)
    a.createDataChannel("x")
    waiting = asyncio.ensure_future(a.setLocalDescription())
    await asyncio.sleep(1.0)
    assert not waiting.done()
    await a.close()
    assert world.now < 2.5
    (result,) = await asyncio.gather(waiting, return_exceptions=True)
    assert result is None or "closed" in str(result)
    assert world.now < 2.5


@in_virtual_time
async def test_an_answer_to_a_closed_connection_is_refused() -> None:
    call = Call()
    async with closing(*call.both):
        Line(call.a, call.b)
        await call.a.setLocalDescription()
        await call.b.setRemoteDescription(call.a.localDescription)
        await call.b.setLocalDescription()
        answer = call.b.localDescription
        await call.a.close()
        with pytest.raises(Exception, match="closed"):
            await call.a.setRemoteDescription(answer)
        with pytest.raises(Exception, match="closed"):
            await call.a.createOffer()


@in_virtual_time
async def test_who_is_closed_is_forgotten() -> None:
    """Nothing keeps a connection that was closed: no task, no listener, no host."""
    _, a, b = two()
    await connect(a, b)
    await asyncio.gather(a.close(), b.close())
    await asyncio.sleep(1.0)
    known = weakref.ref(a), weakref.ref(a.sctp), weakref.ref(b)
    del a, b
    gc.collect()
    assert [each() for each in known] == [None, None, None]
