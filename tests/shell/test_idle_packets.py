"""How many packets does an idle agent send whose path is relayed, with all that its TURN server wants?"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from iceagent import Agent, Config, IceServer, TransportAddress, serve
from iceagent.testing.links import Fate
from relay.stun import Method, is_stun, parse
from relay.turn.allocation import PROBE_INTERVAL_S
from tests.shell.world import World, connected, in_virtual_time

MINUTES = 30
TURN = "20.0.1.1"


@in_virtual_time
async def test_idle_a_relayed_path_costs_its_checks_and_a_few_refreshes() -> None:
    world = World()
    machine, peer = world.host("turn", TURN), world.host("peer", "20.0.2.1")
    me = world.host("me", "192.168.1.2", world.nat("router", "port-restricted", "30.0.0.1"))
    account = IceServer(urls=(f"turn:{TURN}?transport=udp",), username="me", credential="secret")
    async with serve([TransportAddress(TURN, 3478)], users={"me": "secret"}, host=machine):
        a = Agent(Config(servers=(account,), relay_only=True), controlling=True, host=me, rng=random.Random(1))
        b = world.agent(peer, controlling=False)
        async with connected(a, b):
            await asyncio.sleep(60.0)
            path = a.path()
            assert path is not None and path.base.host == TURN
            sent: Counter[str] = Counter()
            for _ in range(MINUTES):
                since = world.now
                await asyncio.sleep(60.0)
                for entry in world.network.log:
                    if entry.at > since and entry.fate is Fate.DELIVERED and entry.packet.origin.name == "me":
                        data = entry.packet.data
                        sent[str(Method(parse(data).method).name) if is_stun(data) else "channel data"] += 1
    # Its own checks, every 4 to 6 s, and answers to the peer's.
    assert 2 * 10 * MINUTES - 2 <= sent.pop("channel data") <= 2 * 15 * MINUTES + 2
    # RFC 8656: permissions live 5 minutes, channels 10; both are renewed a while before.
    assert MINUTES / 5 <= sent.pop("CREATE_PERMISSION") <= MINUTES / 4 + 1
    assert MINUTES / 10 <= sent.pop("CHANNEL_BIND") <= MINUTES / 9 + 1
    # Where the last packet is ours, the server is asked whether it is there: every 5 s at most.
    assert MINUTES / 9 - 1 <= sent.pop("REFRESH") <= MINUTES * 60 / PROBE_INTERVAL_S + MINUTES / 9 + 1
    assert not sent
