"""What else belongs to a call with a browser: a picture, an ICE restart, its end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from aiortc import MediaStreamTrack
from av import VideoFrame

from iceagent.lab import Lab
from iceagent.lab.host import LabHost
from tests.browser.call import BROWSER, OURS, Call, call
from tests.browser.chromium import SECURE, Chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCHED_S = 5.0
FRAMES = 30
CLOSE_S = 1.0
_UFRAG = re.compile(r"a=ice-ufrag:(\S+)")


@dataclass(frozen=True, slots=True)
class Ends:
    """Where both are: on the Internet."""

    browser: Chromium
    host: LabHost


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ends(lab: Lab) -> AsyncIterator[Ends]:
    async with Chromium(lab.machine("laptop")) as browser:
        yield Ends(browser, lab.machine("ours").host)


async def test_a_picture_for_five_seconds(ends: Ends) -> None:
    """Of the browser's camera, decoded here."""
    tracks: list[MediaStreamTrack] = []
    async with call(ends.browser, ends.host, url=SECURE) as made:
        made.ours.on("track", tracks.append)
        await made.page.evaluate("show()")
        await made.open(BROWSER)
        (track,) = tracks
        frames: list[VideoFrame] = []
        first = await asyncio.wait_for(track.recv(), WATCHED_S)
        ends_at = time.monotonic() + WATCHED_S
        while time.monotonic() < ends_at:
            frame = await asyncio.wait_for(track.recv(), WATCHED_S)
            assert isinstance(frame, VideoFrame)
            frames.append(frame)
        assert len(frames) >= FRAMES
        assert isinstance(first, VideoFrame) and first.width >= 320 and first.height >= 240
        stamps = [frame.time for frame in frames]
        assert stamps == sorted(set(stamps))
        # And talk goes on beside it, over the one transport.
        await made.talk("seen")
        assert len(made.ours.agents) == 1


@pytest.mark.parametrize("who", [BROWSER, OURS])
@pytest.mark.parametrize("offerer", [BROWSER, OURS])
async def test_an_ice_restart_below_a_living_channel(ends: Ends, offerer: str, who: str) -> None:
    """Both get other credentials and candidates, and nothing that is said meanwhile is lost."""
    async with call(ends.browser, ends.host) as made:
        await made.open(offerer)
        before = await credentials(made)
        known = len(made.candidates)
        async with made.talking():
            if who == OURS:
                made.ours.restartIce()
            else:
                await made.page.evaluate("pc.restartIce()")
            await made.negotiate(who)
            # The browser's new candidates have other ports than its old ones.
            await made.until(lambda: port_of_peer(made) in [candidate.port for candidate in made.candidates[known:]])
        after = await credentials(made)
        assert not set(before) & set(after)
        await made.talk("and on")
        assert made.our_states == ["connecting", "connected"]


def port_of_peer(made: Call) -> int | None:
    """Where our data goes."""
    path = made.ours.path()
    return None if path is None else path.remote.address.port


async def credentials(made: Call) -> tuple[str, str]:
    """The user name fragments of both."""
    theirs: str = await made.page.evaluate("pc.localDescription.sdp")
    found = [_UFRAG.search(sdp) for sdp in (made.ours.localDescription.sdp, theirs)]
    assert found[0] is not None and found[1] is not None
    return found[0][1], found[1][1]


@pytest.mark.parametrize("offerer", [BROWSER, OURS])
async def test_the_browser_closes_the_connection(ends: Ends, offerer: str) -> None:
    """It says so, and ours closes by itself."""
    async with call(ends.browser, ends.host) as made:
        await made.open(offerer)
        await made.page.evaluate("pc.close()")
        await made.until(lambda: made.ours.connectionState == "closed", CLOSE_S)
        await see_that_it_closes_at_once(made)


async def test_the_page_is_closed(ends: Ends) -> None:
    """Nobody says so; what is sent is not answered any more."""
    async with call(ends.browser, ends.host) as made:
        await made.open(BROWSER)
        await made.page.close()
        await made.until(lambda: made.ours.connectionState in ("disconnected", "failed", "closed"))
        await see_that_it_closes_at_once(made)


async def test_we_close(ends: Ends) -> None:
    """The browser hears of it."""
    async with call(ends.browser, ends.host) as made:
        await made.open(BROWSER)
        await see_that_it_closes_at_once(made)
        await made.until(lambda: not made.is_open_there, CLOSE_S)


async def see_that_it_closes_at_once(made: Call) -> None:
    started = time.monotonic()
    await made.ours.close()
    assert time.monotonic() - started < CLOSE_S
    assert made.ours.connectionState == "closed"
