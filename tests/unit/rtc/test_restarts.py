"""ICE restarts, from either side, at any moment: what becomes of the channel meanwhile?"""

from __future__ import annotations

import asyncio

import pytest

from tests.shell.world import in_virtual_time
from tests.unit.rtc.calls import FAILED_LIMIT_S, Call, ufrags
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    trickle,
    until_ice,
)


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
async def test_a_restart_does_not_say_that_candidates_have_ended_before_they_have() -> None:
    """RFC 8838, 13: nothing may follow an end-of-candidates. What a restart offers is to be gathered yet."""
    call = Call()
    async with closing(*call.both):
        await connect(call.a, call.b)
        await call.completed()
        call.a.restartIce()
        offer = await call.a.createOffer()
        assert "a=end-of-candidates" not in offer.sdp
        began = call.world.now
        await call.a.setLocalDescription(offer)
        assert "a=end-of-candidates" in call.a.localDescription.sdp and call.world.now > began


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
