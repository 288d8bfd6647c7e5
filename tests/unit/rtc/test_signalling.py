"""Offers, answers and candidates, in every order that signalling brings them in."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from aiortc import RTCConfiguration, RTCIceCandidate, RTCIceServer, RTCSessionDescription
from aiortc.exceptions import InvalidStateError

from iceagent import InvalidCandidate
from iceagent.rtc import candidate_from_json, candidate_to_json
from tests.shell.world import World, in_virtual_time
from tests.unit.rtc.calls import CANDIDATE, lines, two, with_everything
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    on_host,
    trickle,
    until,
    until_ice,
)

# --- who waits for gathering -----------------------------------------------------------------------------------------


@in_virtual_time
async def test_without_a_listener_the_description_is_complete() -> None:
    _, a, b = two()
    async with closing(a, b):
        a.createDataChannel("x")
        await a.setLocalDescription()
        assert a.iceGatheringState == "complete"
        assert len(lines(a.localDescription, "candidate")) == 1
        assert lines(a.localDescription, "end-of-candidates") == [""]


@in_virtual_time
async def test_with_a_listener_the_description_is_there_at_once() -> None:
    """A server that does not answer would hold gathering up for five seconds."""
    world, a, b = two(RTCConfiguration(iceServers=[RTCIceServer(urls="stun:20.0.0.77")]))
    async with closing(a, b):
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        a.createDataChannel("x")
        await a.setLocalDescription()
        assert (world.now, a.iceGatheringState, a.signalingState) == (0.0, "gathering", "have-local-offer")
        assert lines(a.localDescription, "end-of-candidates") == []
        await until(a, "icegatheringstatechange", lambda: a.iceGatheringState == "complete")
        assert world.now == pytest.approx(5.0, abs=0.1)
        assert [(c.sdpMid, c.sdpMLineIndex, c.ip, c.type) for c in told if c is not None] == [
            ("0", 0, "20.0.0.1", "host")
        ]
        assert told[-1] is None and told.count(None) == 1
        assert lines(a.localDescription, "end-of-candidates") == [""]


@pytest.mark.parametrize("does", [True, False])
@in_virtual_time
async def test_who_trickles_is_said_in_so_many_words(does: bool) -> None:
    _, a, b = two(RTCConfiguration(iceServers=[RTCIceServer(urls="stun:20.0.0.77")]), trickle=does)
    async with closing(a, b):
        if not does:
            a.on("icecandidate", lambda candidate: None)
        a.createDataChannel("x")
        await a.setLocalDescription()
        assert a.iceGatheringState == ("gathering" if does else "complete")


@in_virtual_time
async def test_candidates_found_before_anybody_could_listen_are_told() -> None:
    """The listener came first, the loop turned only later: no candidate is lost in between."""
    _, a, b = two()
    async with closing(a, b):
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        a.createDataChannel("x")
        await a.setLocalDescription()
        await until(a, "icecandidate", lambda: None in told)
        assert len(told) == 2


@in_virtual_time
async def test_reflexive_candidates_come_as_they_are_found() -> None:
    world = World()
    world.stun("stun", "20.0.0.77")
    nat = world.nat("nat", "port-restricted", "20.0.0.50")
    a = on_host(world.host("a", "192.168.1.2", nat), RTCConfiguration(iceServers=[RTCIceServer(urls="stun:20.0.0.77")]))
    async with closing(a):
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        a.createDataChannel("x")
        await a.setLocalDescription()
        await until(a, "icecandidate", lambda: None in told)
        host, reflexive, end = told
        assert host is not None and reflexive is not None and end is None
        assert (host.type, host.ip) == ("host", "192.168.1.2")
        assert (reflexive.type, reflexive.ip, reflexive.relatedAddress) == ("srflx", "20.0.0.50", "192.168.1.2")


@in_virtual_time
async def test_two_that_trickle_by_json() -> None:
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        told = trickle(a, b), trickle(b, a)
        await negotiate(a, b)
        await line.opened()
        await line.talk()
        await until_ice(a, "completed")
        await until_ice(b, "completed")
        for each in told:
            assert each[-1] is None and each.count(None) == 1 and len(each) == 2


@in_virtual_time
async def test_two_whose_descriptions_have_no_candidates() -> None:
    """As browsers signal: the description first, all candidates after it, one by one."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        trickle(a, b)
        trickle(b, a)

        def bare(description: RTCSessionDescription) -> RTCSessionDescription:
            kept = [each for each in description.sdp.splitlines() if not each.startswith(("a=candidate", "a=end-of"))]
            return RTCSessionDescription(sdp="\r\n".join(kept) + "\r\n", type=description.type)

        offer = await a.createOffer()
        await a.setLocalDescription(offer)
        await b.setRemoteDescription(bare(offer))
        answer = await b.createAnswer()
        await b.setLocalDescription(answer)
        await a.setRemoteDescription(bare(answer))
        await line.opened()
        await line.talk()


@in_virtual_time
async def test_json_of_our_own_candidates_is_what_a_browser_takes() -> None:
    _, a, b = two()
    async with closing(a, b):
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        a.createDataChannel("x")
        await a.setLocalDescription()
        await until(a, "icecandidate", lambda: None in told)
        written = candidate_to_json(told[0])
        assert written is not None
        assert set(written) >= {"candidate", "sdpMid", "sdpMLineIndex"}
        assert re.fullmatch(r"candidate:\w+ 1 udp \d+ 20\.0\.0\.1 \d+ typ host", written["candidate"])
        assert candidate_from_json(written) == told[0]


@in_virtual_time
async def test_ports_are_of_the_range_that_is_given() -> None:
    _, a, b = two(port_range=(50000, 50002))
    async with closing(a, b):
        with_everything(a)
        line = Line(a, b)
        await negotiate(a, b)
        await line.opened()
        await line.talk()
        for connection in (a, b):
            candidates = lines(connection.localDescription, "candidate")
            assert candidates
            assert all(50000 <= int(candidate.split()[5]) <= 50002 for candidate in candidates)


# --- candidates out of turn ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_candidates_that_come_before_the_description() -> None:
    """Signalling that does not keep order: the spec forbids it, applications do it."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        await a.setLocalDescription()
        offer = a.localDescription
        assert lines(offer, "candidate") == []
        await until(a, "icecandidate", lambda: None in told)
        for candidate in told:
            await b.addIceCandidate(candidate)
        await b.setRemoteDescription(offer)
        # B tells nothing of its own: A has to learn it from a check that went to the early candidate.
        await b.setLocalDescription()
        answer = b.localDescription
        assert answer is not None
        await a.setRemoteDescription(
            RTCSessionDescription(sdp=re.sub(r"a=candidate.*\r\n", "", answer.sdp), type=answer.type)
        )
        await line.opened()
        await line.talk()


@in_virtual_time
async def test_candidates_after_the_last_one_are_taken() -> None:
    """Networks change; ours finds candidates later (RFC 8838, 14 forbids it, aiortc drops them in silence)."""
    _, a, b = two(trickle=True)
    async with closing(a, b):
        line = Line(a, b)
        told: list[RTCIceCandidate | None] = []
        a.on("icecandidate", told.append)
        await negotiate(a, b)
        await b.addIceCandidate(None)
        await until(a, "icecandidate", lambda: None in told)
        for candidate in told:
            if candidate is not None:
                await b.addIceCandidate(candidate)
        await b.addIceCandidate(None)
        await line.opened()
        await line.talk()


@in_virtual_time
async def test_unknown_kinds_are_ignored() -> None:
    """RFC 8839, 5.1; and other components than the one of an RTP and RTCP multiplex."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        strange = [
            replace(CANDIDATE, protocol="tcp", tcpType="active"),
            replace(CANDIDATE, protocol="sctp"),
            replace(CANDIDATE, type="newer"),
            replace(CANDIDATE, component=2),
            replace(CANDIDATE, ip="fe80::1%eth0"),
        ]
        for each in strange:
            await b.addIceCandidate(each)
        await negotiate(a, b)
        for each in strange:
            await b.addIceCandidate(each)
        await line.opened()
        await line.talk()


MALFORMED = [
    replace(CANDIDATE, foundation="!!"),
    replace(CANDIDATE, foundation="x" * 1_000_000),
    replace(CANDIDATE, component=0),
    replace(CANDIDATE, priority=-1),
    replace(CANDIDATE, ip="20.0.0.999"),
    replace(CANDIDATE, ip=""),
    replace(CANDIDATE, ip="1.1.1.1 9 typ host\r\na=x"),
    replace(CANDIDATE, port=70000),
    replace(CANDIDATE, type=""),
]


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda each: repr(each)[:60])
@in_virtual_time
async def test_a_malformed_candidate_is_refused_at_once_and_harms_nothing(malformed: RTCIceCandidate) -> None:
    """Before the description as after it."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        with pytest.raises(InvalidCandidate):
            await b.addIceCandidate(malformed)
        await negotiate(a, b)
        with pytest.raises(InvalidCandidate):
            await b.addIceCandidate(malformed)
        await line.opened()
        await line.talk()


@in_virtual_time
async def test_a_candidate_of_no_section_is_a_value_error() -> None:
    _, a, b = two()
    async with closing(a, b):
        for connection in (a, b):
            with pytest.raises(ValueError):
                await connection.addIceCandidate(replace(CANDIDATE, sdpMid=None))
        await connect(a, b)
        with pytest.raises(ValueError):
            await b.addIceCandidate(replace(CANDIDATE, sdpMid=None))
        # Of one that is not there: whoever signals knows more, or less.
        await b.addIceCandidate(replace(CANDIDATE, sdpMid="7"))
        await b.addIceCandidate(replace(CANDIDATE, sdpMid=None, sdpMLineIndex=7))


@in_virtual_time
async def test_candidates_are_taken_in_silence_after_the_end() -> None:
    """Signalling is slower than closing."""
    _, a, b = two()
    async with closing(a, b):
        await connect(a, b)
    await a.addIceCandidate(CANDIDATE)
    await a.addIceCandidate(None)
    fresh = two()[1]
    await fresh.close()
    await fresh.addIceCandidate(CANDIDATE)
    await fresh.addIceCandidate(None)


# --- descriptions out of turn ----------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_description_that_does_not_fit_the_state_changes_nothing() -> None:
    """Both offered at once (glare), or signalling repeated an old answer: an error says so, and ICE goes on."""
    _, a, b = two()
    async with closing(a, b):
        line = await connect(a, b)
        old = b.localDescription
        a.restartIce()
        await negotiate(a, b)
        known = [transport.connection.remote_username for transport in a._ice_transports()]
        assert known == lines(b.localDescription, "ice-ufrag")
        with pytest.raises(InvalidStateError):
            await a.setRemoteDescription(old)
        assert [transport.connection.remote_username for transport in a._ice_transports()] == known
        for connection in (a, b):
            connection.restartIce()
            await connection.setLocalDescription()
        told = a.agents[0].history()
        with pytest.raises(InvalidStateError):
            await a.setRemoteDescription(b.localDescription)
        assert [transport.connection.remote_username for transport in a._ice_transports()] == known
        assert a.agents[0].history() == told
        await line.talk()


@pytest.mark.parametrize(
    ("ufrag", "password"),
    [("abc", "p" * 22), ("a" * 257, "p" * 22), ("ab?d", "p" * 22), ("abcd", "p" * 21), ("abcd", "p" * 257)],
)
@in_virtual_time
async def test_ice_credentials_that_break_the_grammar_are_a_value_error(ufrag: str, password: str) -> None:
    """RFC 8839, 5.4: 4 to 256 and 22 to 256 of letters, digits, + and /."""
    _, a, b = two()
    async with closing(a, b):
        a.createDataChannel("x")
        await a.setLocalDescription()
        offer = a.localDescription
        assert offer is not None
        sdp = re.sub(r"a=ice-ufrag:.*\r\n", f"a=ice-ufrag:{ufrag}\r\n", offer.sdp)
        sdp = re.sub(r"a=ice-pwd:.*\r\n", f"a=ice-pwd:{password}\r\n", sdp)
        with pytest.raises(ValueError) as caught:
            await b.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
        assert password not in str(caught.value)
        assert (b.signalingState, b.agents) == ("stable", [])
        # The right one may still come.
        await b.setRemoteDescription(offer)


@pytest.mark.parametrize("line", ["ice-ufrag", "ice-pwd"])
@in_virtual_time
async def test_no_ice_credentials_are_a_value_error(line: str) -> None:
    _, a, b = two()
    async with closing(a, b):
        a.createDataChannel("x")
        await a.setLocalDescription()
        offer = a.localDescription
        assert offer is not None
        sdp = re.sub(rf"a={line}:.*\r\n", "", offer.sdp)
        with pytest.raises(ValueError):
            await b.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
        assert b.agents == []


@in_virtual_time
async def test_a_peer_is_told_what_our_ice_can_do() -> None:
    """RFC 8839, 5.6: ``ice-options``, which aiortc does not write; and each side uses what the other has said."""
    _, a, b = two()
    async with closing(a, b):
        await connect(a, b)
        for connection in (a, b):
            (options,) = lines(connection.localDescription, "ice-options")
            assert {"trickle", "ice2", "renomination"} <= set(options.split())
            # A session that knows nothing of its peer assumes nothing.
            (transport,) = connection._ice_transports()
            assert set(transport.connection.remote_options) == set(options.split())
        for description in (await a.createOffer(), a.remoteDescription, a.localDescription):
            assert len(lines(description, "ice-options")) == 1


@in_virtual_time
async def test_a_rollback_is_refused_and_changes_nothing() -> None:
    """aiortc takes it, and stays in have-local-offer for good."""
    _, a, b = two()
    async with closing(a, b):
        a.createDataChannel("x")
        await a.setLocalDescription(await a.createOffer())
        rollback = RTCSessionDescription(sdp="", type="rollback")
        for refuse in (a.setLocalDescription, a.setRemoteDescription, b.setRemoteDescription):
            with pytest.raises(InvalidStateError, match="roll back"):
                await refuse(rollback)
        assert (a.signalingState, b.signalingState) == ("have-local-offer", "stable")
