"""What goes between a browser and us goes on while paths come and go: a better one appears, the one in use dies."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from iceagent.lab import Lab, Machine, Router
from iceagent.rtc import RTCIceCandidatePairStats
from tests.browser.call import BROWSER, OURS, Call, call
from tests.browser.chromium import SECURE, Chromium
from tests.browser.conftest import turn

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.natlab_needs("turnserver")]

MEGABYTE = 2**20
FILE_SIZE = 10 * MEGABYTE
CHUNK = 16_384
MANY = 16 * CHUNK
PAUSE_S = 0.010
FAILOVER_S = 5.0
PHRASE_S = 0.1


@dataclass(frozen=True, slots=True)
class Homes:
    """One of a browser, and one of ours; NATs that let each other in once both have sent."""

    browser: Chromium
    there: Router
    here: Router
    machine: Machine

    def part(self) -> None:
        """Nothing passes between the two homes any more; servers are reached as before."""
        self.here.load(extra=f"ip daddr {self.there.address} drop; ip saddr {self.there.address} drop")

    def join(self) -> None:
        """It does again."""
        self.here.load()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def homes(lab: Lab) -> AsyncIterator[Homes]:
    there, here = (lab.router("port-restricted", name) for name in ("there", "here"))
    laptop, machine = lab.machine(behind=there), lab.machine(behind=here)
    async with Chromium(laptop) as browser:
        yield Homes(browser, there, here, machine)


@pytest.mark.parametrize("sender", [BROWSER, OURS])
async def test_ten_megabytes_while_the_path_becomes_direct(homes: Homes, servers: dict[str, str], sender: str) -> None:
    """A firewall between the two is lifted in mid-transfer. Not a byte is lost."""
    homes.part()
    async with call(homes.browser, homes.machine.host, servers=[turn(servers["coturn"])], url=SECURE) as made:
        await made.open(sender)
        await made.until(lambda: made.kinds == ("relay", "relay"))
        assert "relay" in await made.selected_here() and "relay" in await made.selected_there()
        hurries = asyncio.Event()
        sending = asyncio.create_task(send_from_here(made, hurries) if sender == OURS else send_from_there(made))
        await made.until(lambda: progress(made, sender) > MEGABYTE)
        homes.join()
        await made.until(lambda: made.kinds == ("direct", "direct"))
        assert progress(made, sender) < FILE_SIZE
        hurries.set()
        await made.page.evaluate("hurries = true")
        async with asyncio.timeout(30):
            sent, received = await sending
        assert sent == received
        assert "relay" not in await made.selected_here() and "relay" not in await made.selected_there()
        await see_that_both_carried_data(made)


async def see_that_both_carried_data(made: Call) -> None:
    report = await made.ours.getStats()
    carried = {"relay": 0, "direct": 0}
    for pair in report.values():
        if isinstance(pair, RTCIceCandidatePairStats):
            types = report[pair.localCandidateId].candidateType, report[pair.remoteCandidateId].candidateType
            carried["relay" if "relay" in types else "direct"] += pair.bytesSent + pair.bytesReceived
    assert min(carried.values()) > MEGABYTE and sum(carried.values()) > FILE_SIZE, carried


def progress(made: Call, sender: str) -> int:
    """Bytes that have arrived."""
    return made.progress_there if sender == OURS else sum(map(len, made.here))


async def send_from_there(made: Call) -> tuple[str, str]:
    """Digests: of what was sent, and of what came."""
    sent: str = await made.page.evaluate("send", FILE_SIZE)
    await made.until(lambda: progress(made, BROWSER) >= FILE_SIZE)
    received = b"".join(each for each in made.here if isinstance(each, bytes))
    return sent, hashlib.sha256(received).hexdigest()


async def send_from_here(made: Call, hurries: asyncio.Event) -> tuple[str, str]:
    file = random.randbytes(FILE_SIZE)
    receiving = asyncio.create_task(made.page.evaluate("receive", FILE_SIZE))
    channel = made.channel
    assert channel is not None
    has_room = asyncio.Event()
    channel.on("bufferedamountlow", has_room.set)
    channel.bufferedAmountLowThreshold = MANY // 2
    for at in range(0, FILE_SIZE, CHUNK):
        has_room.clear()
        channel.send(file[at : at + CHUNK])
        if channel.bufferedAmount > MANY:
            await has_room.wait()
        if not hurries.is_set():
            await asyncio.sleep(PAUSE_S)
    return hashlib.sha256(file).hexdigest(), await receiving


@pytest.mark.parametrize("offerer", [BROWSER, OURS])
async def test_the_path_in_use_dies_and_a_relay_takes_over(homes: Homes, servers: dict[str, str], offerer: str) -> None:
    """Whoever nominates: what is said again and again, as in a call, comes through within five seconds, both ways.

    What is sent once may take longer: SCTP doubles its pauses, and a browser only leaves the path after 2.5 s.
    """
    async with call(homes.browser, homes.machine.host, servers=[turn(servers["coturn"])]) as made:
        await made.open(offerer, is_reliable=False)
        await made.settle("direct")
        await made.talk("before")
        homes.part()
        talking = asyncio.create_task(talk_on(made, "after"))
        try:
            await made.until(lambda: "after" in made.here and "after" in made.there, FAILOVER_S)
            await made.settle("relay")
            assert made.ours.connectionState == "connected" and made.states[-1] == "connected"
        finally:
            talking.cancel()
            homes.join()


async def talk_on(made: Call, message: str) -> None:
    """Without an end, both ways."""
    while True:
        made.say(message)
        await made.let_say(message)
        await asyncio.sleep(PHRASE_S)
