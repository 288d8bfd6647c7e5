"""What are the states, what makes them change, and what becomes of the channel meanwhile?"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCIceServer

from iceagent.rtc import PeerConnection
from iceagent.testing import MemoryHost
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.kit import (
    NOBODY,
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

# RFC 7675, 5.1: consent ends 30 s after the last answer.
CONSENT_S = 30.0
FAILED_LIMIT_S = 90.0


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


def ufrags(connection: PeerConnection) -> set[str]:
    description = connection.localDescription
    assert description is not None
    return set(re.findall(r"a=ice-ufrag:(\S+)", description.sdp))


# --- from new to closed ------------------------------------------------------------------------------------------


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


# --- restarts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["offerer", "answerer"])
@in_virtual_time
async def test_a_restart_under_a_living_channel(who: str) -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        starter, other = call.both if who == "offerer" else (call.b, call.a)
        before = ufrags(call.a), ufrags(call.b)
        agents = call.a.agents + call.b.agents
        near, far = line.near, line.far
        for _ in range(3):
            line.say(20)
            starter.restartIce()
            line.say(20)
            await negotiate(starter, other)
            line.say(20)
            await line.all_heard()
            await call.completed()
            after = ufrags(call.a), ufrags(call.b)
            assert len(after[0]) == len(after[1]) == 1
            assert not (after[0] & before[0]) and not (after[1] & before[1])
            before = after
        assert call.a.agents + call.b.agents == agents
        assert (line.near, line.far) == (near, far)
        for overall in call.overall:
            assert not {"failed", "disconnected", "closed"} & set(overall)
        await asyncio.sleep(300.0)
        await line.talk()


@pytest.mark.parametrize("who", ["offerer", "answerer", "in turn"])
@in_virtual_time
async def test_restarts_in_quick_succession(who: str) -> None:
    """The next one begins before the one before has found its path. RFC 8839, 4.4.2.1: each answer to one has
    credentials that were not used before.
    """
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        used = [ufrags(call.a), ufrags(call.b)]
        for number in range(4):
            is_first = who == "offerer" or (who == "in turn" and number % 2 == 0)
            starter, other = (call.a, call.b) if is_first else (call.b, call.a)
            starter.restartIce()
            await negotiate(starter, other)
            for seen, connection in zip(used, call.both, strict=True):
                assert not seen & ufrags(connection)
                seen |= ufrags(connection)
        for connection, other in ((call.a, call.b), (call.b, call.a)):
            (agent,), (peer,) = connection.agents, other.agents
            assert agent.remote_candidates, "the agent knows nothing of its peer"
            assert agent.remote_candidates[0].address.host == peer.local_candidates[0].address.host
        # Without the path of before, only the new generation is left.
        call.machines[0].remove_interface("eth0")
        call.machines[0].add_interface("eth0", ["20.0.0.9"])
        line.say(5)
        await line.all_heard(60.0)
        await call.completed()
        await asyncio.sleep(300.0)
        await line.talk()


@in_virtual_time
async def test_a_restart_that_trickles() -> None:
    call = Call(trickle=True)
    async with closing(*call.both):
        line = Line(call.a, call.b)
        trickle(call.a, call.b)
        trickle(call.b, call.a)
        await negotiate(call.a, call.b)
        await line.opened()
        await call.completed()
        call.machines[0].link().cut()
        await until_ice(call.a, "failed", limit_s=FAILED_LIMIT_S)
        call.machines[0].link().restore()
        call.a.restartIce()
        await negotiate(call.a, call.b)
        await call.completed()
        line.say(10)
        await line.all_heard(120.0)


@in_virtual_time
async def test_both_wish_a_restart_and_one_offers_it() -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        before = ufrags(call.a) | ufrags(call.b)
        line.say(20)
        call.a.restartIce()
        call.b.restartIce()
        line.say(20)
        await negotiate(call.b, call.a)
        await line.all_heard()
        await call.completed()
        after = ufrags(call.a), ufrags(call.b)
        assert not (after[0] | after[1]) & before
        await asyncio.sleep(300.0)
        await line.talk()
        # The wish of the other one is met by the same restart.
        await negotiate(call.a, call.b)
        await line.talk()
        assert (ufrags(call.a), ufrags(call.b)) == after


@in_virtual_time
async def test_a_wish_for_a_restart_outlives_the_peers_ordinary_offer() -> None:
    """RFC 8839, 4.4.2.1: new credentials belong into answers to offers that restart, and into no others. The channel
    lives, and the next offer of ours restarts.
    """
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        before = ufrags(call.a), ufrags(call.b)
        call.b.restartIce()
        call.a.addTransceiver("audio")
        line.say(20)
        await negotiate(call.a, call.b)
        assert (ufrags(call.a), ufrags(call.b)) == before
        await line.all_heard()
        await asyncio.sleep(120.0)
        await line.talk()
        await call.completed()
        await negotiate(call.b, call.a)
        await line.talk()
        await call.completed()
        assert not ufrags(call.b) & before[1]
        assert {agent.state.value for agent in (*call.a.agents, *call.b.agents)} == {"connected"}
        await asyncio.sleep(120.0)
        await line.talk()


@in_virtual_time
async def test_wishing_twice_restarts_once_and_without_an_offer_nothing_happens() -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        call.a.restartIce()
        call.a.restartIce()
        # The peer hears nothing of it: data goes on over the present path.
        line.say(10)
        await line.all_heard()
        await asyncio.sleep(300.0)
        await line.talk()
        assert "failed" not in call.ice[0] + call.ice[1]
        await negotiate(call.a, call.b)
        await call.completed()
        await line.talk()


@in_virtual_time
async def test_offers_that_are_made_and_not_used_break_nothing() -> None:
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        for _ in range(5):
            call.a.restartIce()
            await call.a.createOffer()
            line.say(5)
        await asyncio.sleep(300.0)
        await line.talk()
        await negotiate(call.b, call.a)
        await line.talk()
        await asyncio.sleep(300.0)
        await line.talk()
        for found in call.ice:
            assert not {"disconnected", "failed"} & set(found)


@in_virtual_time
async def test_five_offers_that_are_lost_break_nothing() -> None:
    """Signalling is down for five minutes; data is not."""
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        for _ in range(5):
            call.a.restartIce()
            await call.a.setLocalDescription()
            line.say(5)
            await asyncio.sleep(60.0)
        await line.all_heard()
        for found in call.ice:
            assert not {"disconnected", "failed"} & set(found)
        await negotiate(call.a, call.b)
        await call.completed()
        await line.talk()


@in_virtual_time
async def test_an_answer_that_is_lost_is_made_again() -> None:
    """One side has restarted, the other one does not know it yet."""
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        call.a.restartIce()
        for _ in range(2):
            await call.a.setLocalDescription()
            await call.b.setRemoteDescription(call.a.localDescription)
            await call.b.setLocalDescription()
            line.say(5)
            await asyncio.sleep(60.0)
        await call.a.setRemoteDescription(call.b.localDescription)
        await call.completed()
        line.say(5)
        await line.all_heard()
        for overall in call.overall:
            assert "failed" not in overall


@in_virtual_time
async def test_a_restart_before_anything_is_no_error() -> None:
    """W3C, 4.4.2: on a connection that has negotiated nothing, the next offer is new anyhow."""
    call = Call()
    async with closing(*call.both):
        call.a.restartIce()
        line = Line(call.a, call.b)
        call.a.restartIce()
        await negotiate(call.a, call.b)
        await line.opened()
        await line.talk()


@pytest.mark.parametrize("who", ["offerer", "answerer"])
@in_virtual_time
async def test_a_restart_leads_back_from_failed(who: str) -> None:
    """And the channel is the same one: DTLS and SCTP have waited."""
    call = Call()
    async with closing(*call.both):
        line = await connect(call.a, call.b)
        await call.completed()
        call.machines[0].link().cut()
        line.say(5)
        for connection in call.both:
            await until_ice(connection, "failed", limit_s=FAILED_LIMIT_S)
        call.machines[0].link().restore()
        starter, other = call.both if who == "offerer" else (call.b, call.a)
        starter.restartIce()
        await negotiate(starter, other)
        await call.completed()
        await line.all_heard(120.0)
        for found in call.ice:
            assert found[-1] == "completed"
        for overall in call.overall:
            assert overall[-1] == "connected" and "closed" not in overall


@in_virtual_time
async def test_a_restart_leads_back_from_a_failure_before_the_first_path() -> None:
    call = Call()
    async with closing(*call.both):
        Line(call.a, call.b)
        call.machines[1].link().cut()
        await negotiate(call.a, call.b)
        for connection in call.both:
            await until_ice(connection, "failed", limit_s=FAILED_LIMIT_S)
        call.machines[1].link().restore()
        call.a.restartIce()
        await negotiate(call.a, call.b)
        for connection in call.both:
            await until_ice(connection, "completed")


# --- listeners ---------------------------------------------------------------------------------------------------

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


# --- closing -----------------------------------------------------------------------------------------------------


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
