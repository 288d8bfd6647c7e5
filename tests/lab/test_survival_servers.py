"""Paths break while data flows, and a server can tell what broke, or take a relay along: on real kernel NATs,
signalling is dead, ten datagrams a second go both ways. Each side is controlling in turn.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from iceagent import IceServer
from iceagent.events import Cause, PathDiagnosed
from iceagent.lab import Lab
from iceagent.lab.services import coturn
from tests.lab.survival import Homes, assert_told_the_same, both_ways, talking, turn

LIMIT_S = 2.0
"""A gap, where the relay of one side has to be moved or made anew."""


async def test_a_new_outside_address_takes_the_relay_along(natlab: Lab) -> None:
    """The path was direct; the standby is a relay whose server has to hear of the new address first."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted")
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            assert talk.a.path.kind == talk.b.path.kind == "direct"
            began = time.monotonic()
            homes.routers[0].move()
            await asyncio.sleep(4.0)
            print(f"GAP {controlling}: {talk.gap(began):.2f}")
            assert talk.gap(began) <= LIMIT_S, talk.story(began)
            assert_told_the_same(talk, began)
            assert Cause.NAT in [event.cause for _, event in talk.a.told if isinstance(event, PathDiagnosed)]
            assert Cause.PATH in [event.cause for _, event in talk.b.told if isinstance(event, PathDiagnosed)]

    await both_ways(story)


@pytest.mark.natlab_needs("turnserver", "conntrack")
async def test_the_nat_of_a_relayed_path_reboots_and_the_server_knows_no_mobility(natlab: Lab) -> None:
    """Symmetric on both sides, one relay address: the new relay is another port of a host that the peer's lets in."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "symmetric", "symmetric", relays=0)
        machine = natlab.machine(f"coturn-{controlling}")
        coturn(machine, "--allow-loopback-peers", users={"lab": "lab"})
        servers = (IceServer(urls=(homes.stun,)), *turn(machine))
        async with talking(homes.a, homes.b, servers, controlling=controlling) as talk:
            assert talk.a.path.kind == talk.b.path.kind == "relay"
            began = time.monotonic()
            homes.routers[0].reboot()
            await asyncio.sleep(4.0)
            print(f"GAP {controlling}: {talk.gap(began):.2f}")
            assert talk.gap(began) <= LIMIT_S, talk.story(began)
            assert_told_the_same(talk, began)

    await both_ways(story)
