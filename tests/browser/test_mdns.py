"""A browser that hides its addresses: what it signals is a name in ``.local``, as it is with everybody's browser."""

from __future__ import annotations

import asyncio

import pytest

from iceagent.lab import Lab
from iceagent.lab.session import run_inside
from tests.browser.call import BROWSER, OURS, call
from tests.browser.chromium import Chromium

LIMIT_S = 50.0


@pytest.mark.parametrize("offerer", [BROWSER, OURS])
def test_a_name_in_local_is_enough_on_one_network(lab: Lab, offerer: str) -> None:
    """Both behind one router, without a server, and the browser learns none of our candidates: it is we who find it, by
    its name, on real multicast.
    """
    router = lab.router()
    laptop, machine = lab.machine(behind=router), lab.machine(behind=router)

    async def main() -> None:
        async with (
            asyncio.timeout(LIMIT_S),
            Chromium(laptop, hides_addresses=True) as browser,
            call(browser, None, is_silent=True, ipv6=False) as made,
        ):
            await made.open(offerer)
            await made.talk("hello")
            hosts = [candidate.ip for candidate in made.candidates]
            assert hosts and all(host.endswith(".local") for host in hosts)
            path = made.ours.path()
            assert path is not None
            assert (path.remote.type.value, path.remote.address.host) == ("host", laptop.address)

    run_inside(machine, main).result()
