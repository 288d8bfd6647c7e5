"""What are the states, and what makes them change?"""

from __future__ import annotations

import asyncio

import pytest

from tests.shell.world import in_virtual_time
from tests.unit.rtc.calls import CONSENT_S, FAILED_LIMIT_S, Call
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    until,
    until_ice,
)


@in_virtual_time
async def test_the_states_of_a_call_that_goes_well() -> None:
    """W3C, 5.6.4: ``connected`` with the first valid pair, ``completed`` once all is decided."""
    call = Call()
    async with closing(*call.both):
        for connection in call.both:
            assert (connection.iceConnectionState, connection.connectionState) == ("new", "new")
        line = await connect(call.a, call.b)
        await call.completed()
        await line.talk()
        await asyncio.sleep(300.0)
        await line.talk()
    for found in call.ice:
        assert found == ["checking", "connected", "completed", "closed"]
    for found in call.overall:
        assert found == ["connecting", "connected", "closed"]


@in_virtual_time
async def test_the_roles_are_those_of_offer_and_answer() -> None:
    call = Call()
    async with closing(*call.both):
        await connect(call.a, call.b)
        assert [agent.controlling for agent in (*call.a.agents, *call.b.agents)] == [True, False]
        call.b.restartIce()
        await negotiate(call.b, call.a)
        await call.completed()
        # RFC 8445, 9: agents MUST NOT redetermine the roles as part of an ICE restart.
        assert [agent.controlling for agent in (*call.a.agents, *call.b.agents)] == [True, False]


@in_virtual_time
async def test_a_peer_that_closes_is_heard_and_closes_us() -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        began = call.world.now
        await call.a.close()
        await until(call.b, "connectionstatechange", lambda: call.b.connectionState == "closed")
        assert call.world.now - began < 1.0
        assert line.far.readyState == "closed"


@in_virtual_time
async def test_a_peer_that_vanishes() -> None:
    """``disconnected`` first, ``failed`` when consent ends, and nothing hangs."""
    call = Call()
    async with closing(*call.both):
        await connect(call.a, call.b)
        await call.completed()
        began = call.world.now
        call.machines[1].link().cut()
        await until_ice(call.a, "disconnected", limit_s=CONSENT_S)
        assert call.a.connectionState == "disconnected"
        await until_ice(call.a, "failed", limit_s=FAILED_LIMIT_S)
        assert call.world.now - began <= 2 * CONSENT_S
        await until(call.a, "connectionstatechange", lambda: call.a.connectionState == "failed")
        assert call.ice[0] == ["checking", "connected", "completed", "disconnected", "failed"]
        assert call.overall[0] == ["connecting", "connected", "disconnected", "failed"]
        assert call.a.path() is None


@in_virtual_time
async def test_a_peer_that_comes_back_before_consent_ends() -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        call.machines[1].link().cut()
        line.say(10)
        await until_ice(call.a, "disconnected", limit_s=CONSENT_S)
        call.machines[1].link().restore()
        await call.completed()
        await line.all_heard(60.0)
        assert call.ice[0][3:] in (["disconnected", "completed"], ["disconnected", "connected", "completed"])
        assert call.overall[0] == ["connecting", "connected", "disconnected", "connected"]


@in_virtual_time
async def test_who_never_gets_through_fails() -> None:
    """And says ``failed`` once: no state goes back and forth."""
    call = Call()
    async with closing(*call.both):
        Line(call.a, call.b)
        call.machines[1].link().cut()
        await negotiate(call.a, call.b)
        await until_ice(call.a, "failed", limit_s=FAILED_LIMIT_S)
        await asyncio.sleep(120.0)
        assert call.ice[0] == ["checking", "failed"]
        assert call.overall[0] == ["connecting", "failed"]


@in_virtual_time
async def test_a_peer_on_another_network_is_followed() -> None:
    """It roams: no signalling, no restart; the channel is the same, nothing is lost."""
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        changes: list[str] = []
        call.a.on("selectedcandidatepairchange", lambda: changes.append(str(call.a.path())))
        line.say(50)
        call.machines[1].remove_interface("eth0")
        line.say(50)
        call.machines[1].add_interface("wlan0", ["20.0.7.2"])
        await line.all_heard(60.0)
        path = call.a.path()
        assert path is not None and path.remote.address.host == "20.0.7.2"
        assert changes
        await call.completed()
        assert call.overall[0][-1] == "connected"


# --- listeners -------------------------------------------------------------------------------------------------------


EVENTS = ["icecandidate", "iceconnectionstatechange", "connectionstatechange", "icegatheringstatechange"]


@pytest.mark.parametrize("event", [*EVENTS, "selectedcandidatepairchange"])
def test_a_listener_that_raises_stops_nobody(event: str) -> None:
    """Neither the other listeners, nor the connection; the loop's exception handler is told."""
    problems: list[dict[str, object]] = []
    heard: list[str] = []

    @in_virtual_time
    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        call = Call()
        async with closing(*call.both):

            def fail(*_: object) -> None:
                raise KeyError("the application's own")

            call.a.on(event, fail)
            call.a.on(event, lambda *_: heard.append(event))
            line = await connect(call.a, call.b)
            await call.completed()
            await line.talk()
        assert call.a.connectionState == "closed"

    story()
    assert heard
    assert len(problems) == len(heard)
    assert {repr(problem.get("exception")) for problem in problems} == {'KeyError("the application\'s own")'}


@in_virtual_time
async def test_listeners_may_be_coroutines() -> None:
    call = Call()
    async with closing(*call.both):
        found: list[str] = []

        async def note() -> None:
            await asyncio.sleep(0.0)
            found.append(call.a.iceConnectionState)

        call.a.on("iceconnectionstatechange", note)
        await connect(call.a, call.b)
        await call.completed()
        await asyncio.sleep(0.1)
        assert found[-1] == "completed"
