"""A data channel to a browser, through NATs of every kind on either side, with servers of two makes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiortc import RTCIceServer

from iceagent import CandidateType
from iceagent.lab import Lab, Machine, Router
from tests.browser.call import BROWSER, OURS, call
from tests.browser.chromium import Chromium
from tests.browser.conftest import turn

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.natlab_needs("turnserver")]

KINDS = ("full-cone", "port-restricted", "symmetric", "no-udp")
OFFERERS = (BROWSER, OURS)
MAKES = ("coturn", "serve")
GREETINGS = ("Grüße", b"\x00\xff bytes")


@pytest.fixture(scope="module")
def homes(lab: Lab) -> dict[str, Router]:
    return {kind: lab.router(kind, f"theirs-{kind}") for kind in KINDS}


@pytest.fixture(scope="module")
def machines(lab: Lab) -> dict[str, Machine]:
    """Ours, each behind its own router."""
    return {kind: lab.machine(f"ours-{kind}", behind=lab.router(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def laptop(lab: Lab, homes: dict[str, Router]) -> Machine:
    """The browser's; it is carried from one home to another."""
    return lab.machine("laptop", behind=homes["full-cone"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(laptop: Machine) -> AsyncIterator[Chromium]:
    async with Chromium(laptop) as made:
        yield made


@pytest.mark.parametrize("offerer", OFFERERS)
@pytest.mark.parametrize("here", KINDS[:3])
@pytest.mark.parametrize("there", KINDS[:3])
async def test_direct_where_the_nats_allow_it(
    browser: Chromium,
    laptop: Machine,
    homes: dict[str, Router],
    machines: dict[str, Machine],
    servers: dict[str, str],
    there: str,
    here: str,
    offerer: str,
) -> None:
    """And over a relay where they do not: a symmetric one against one that filters by port."""
    laptop.roam(homes[there])
    kind = "direct" if "full-cone" in (here, there) or "symmetric" not in (here, there) else "relay"
    async with call(browser, machines[here].host, servers=[turn(servers[MAKES[OFFERERS.index(offerer)]])]) as made:
        await made.open(offerer)
        await made.talk(*GREETINGS)
        await made.settle(kind)
        if kind == "direct":
            # Nothing is better: it is not left any more.
            assert "relay" not in made.our_paths[made.our_paths.index("direct") :]


@pytest.mark.parametrize("offerer", OFFERERS)
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("who", [BROWSER, OURS])
async def test_one_side_goes_through_relays_only(
    browser: Chromium,
    laptop: Machine,
    homes: dict[str, Router],
    machines: dict[str, Machine],
    servers: dict[str, str],
    who: str,
    make: str,
    offerer: str,
) -> None:
    """Although it could go without."""
    laptop.roam(homes["full-cone"])
    async with call(
        browser,
        machines["full-cone"].host,
        servers=[turn(servers[make])],
        is_relayed_here=who == OURS,
        is_relayed_there=who == BROWSER,
    ) as made:
        await made.open(offerer)
        await made.talk(*GREETINGS)
        selected = await (made.selected_here() if who == OURS else made.selected_there())
        assert selected[0] == "relay"
        if who == OURS:
            (agent,) = made.ours.agents
            assert {candidate.type for candidate in agent.local_candidates} == {CandidateType.RELAYED}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(("there", "here"), [("no-udp", "symmetric"), ("symmetric", "no-udp"), ("no-udp", "no-udp")])
async def test_turn_over_tcp_where_udp_is_blocked(
    browser: Chromium,
    laptop: Machine,
    homes: dict[str, Router],
    machines: dict[str, Machine],
    servers: dict[str, str],
    there: str,
    here: str,
    make: str,
) -> None:
    laptop.roam(homes[there])
    both: list[RTCIceServer] = [turn(servers[make], "?transport=udp", ":443?transport=tcp")]
    async with call(browser, machines[here].host, servers=both) as made:
        await made.open(BROWSER if here == "no-udp" else OURS)
        await made.talk(*GREETINGS)
        assert "relay" in await made.selected_here() and "relay" in await made.selected_there()
        if here == "no-udp":
            assert (await made.selected_here())[0] == "relay"
        if there == "no-udp":
            assert (await made.selected_there())[0] == "relay"
