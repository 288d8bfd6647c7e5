"""Descriptions that nobody should write: too long, forged, or broken."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import hypothesis.strategies as st
from aiortc import RTCSessionDescription
from hypothesis import given, settings

from tests.shell.world import in_virtual_time
from tests.unit.rtc.calls import CANDIDATE, two
from tests.unit.rtc.kit import (
    Line,
    closing,
    connect,
    negotiate,
    until,
    until_ice,
)


@in_virtual_time
async def test_a_description_with_two_thousand_candidates() -> None:
    """What is kept is bounded, and the right one among them works."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        await a.setLocalDescription()
        offer = a.localDescription
        assert offer is not None
        many = "".join(
            f"a=candidate:{number} 1 udp {number + 1} 20.9.{number // 250}.{number % 250} 9 typ host\r\n"
            for number in range(2_000)
        )
        await b.setRemoteDescription(
            RTCSessionDescription(sdp=offer.sdp.replace("a=end-of", many + "a=end-of"), type="offer")
        )
        await b.setLocalDescription()
        await a.setRemoteDescription(b.localDescription)
        await line.opened()
        await line.talk()
        assert len(b.agents[0].pairs()) <= 100
        for number in range(500):
            await b.addIceCandidate(replace(CANDIDATE, ip=f"20.8.{number // 250}.{number % 250}"))
        assert len(b.agents[0].remote_candidates) <= 1_001
        remote = b.remoteDescription
        assert remote.sdp.count("a=candidate") <= 2_001
        await line.talk()


@in_virtual_time
async def test_another_fingerprint_than_was_signalled_is_no_connection() -> None:
    """Whoever sits in between ends here: ``failed``, and closing works."""
    _, a, b = two()
    async with closing(a, b):
        line = Line(a, b)
        await a.setLocalDescription()
        offer = a.localDescription
        assert offer is not None
        forged = re.sub(r"(a=fingerprint:sha-\d+ )..:..", r"\g<1>00:11", offer.sdp)
        assert forged != offer.sdp
        await b.setRemoteDescription(RTCSessionDescription(sdp=forged, type="offer"))
        await b.setLocalDescription()
        await a.setRemoteDescription(b.localDescription)
        await until(b, "connectionstatechange", lambda: b.connectionState == "failed")
        assert not line.is_open


ICE_LINE = re.compile(r"a=(?:ice-ufrag|ice-pwd|ice-options|candidate|end-of-candidates|ice-lite)[^\r\n]*")


WORDS = st.text("abcXYZ019+/: .-", max_size=40)


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(["drop", "double", "replace value", "cut", "append"]),
        WORDS,
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=4,
)


def changed(sdp: str, changes: list[tuple[int, str, str, int]]) -> str:
    """The description, with some of its ICE lines spoilt."""
    for number, how, words, at in changes:
        found = list(ICE_LINE.finditer(sdp))
        if not found:
            return sdp
        match = found[number % len(found)]
        line = match.group()
        name = line.partition(":")[0]
        line = {
            "drop": "a=x",
            "double": f"{line}\r\n{line}",
            "replace value": f"{name}:{words}",
            "cut": line[: 2 + at],
            "append": f"{line} {words}",
        }[how]
        sdp = sdp[: match.start()] + line + sdp[match.end() :]
    return sdp


@given(CHANGES, st.booleans())
@settings(max_examples=30)
def test_a_spoilt_offer_does_not_end_a_living_call(changes: list[tuple[int, str, str, int]], is_restart: bool) -> None:
    """Whatever its ICE lines say: it is refused, or taken; data goes on over the path of before, and a proper restart
    leads on.
    """

    @in_virtual_time
    async def story() -> None:
        _, a, b = two()
        async with closing(a, b):
            line = await connect(a, b)
            await until_ice(a, "completed")
            if is_restart:
                a.restartIce()
            offer = await a.createOffer()
            await a.setLocalDescription(offer)
            spoilt = changed(a.localDescription.sdp, changes)
            try:
                await b.setRemoteDescription(RTCSessionDescription(sdp=spoilt, type="offer"))
            except ValueError:
                assert b.signalingState == "stable"
            line.say(3)
            await asyncio.sleep(20.0)
            # The application asks again.
            if not is_restart:
                a.restartIce()
            await negotiate(a, b)
            line.say(3)
            await line.all_heard(60.0)
            for connection in (a, b):
                await until_ice(connection, "completed")

    story()
