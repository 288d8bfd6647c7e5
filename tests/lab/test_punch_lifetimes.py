"""Lifetimes that routers are set to, measured; in a file of its own, because pytest runs files side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from iceagent.config import Config
from iceagent.lab import Lab, Machine
from iceagent.lab.services import Service, coturn, serve
from iceagent.net.address import TransportAddress
from iceagent.punch.far_end import FarEndServer
from iceagent.punch.lifetime import measure_lifetime
from tests.lab.limits import limit
from tests.lab.test_punch import Process

# The longest lifetime, what comes before it, and the look at what was kept; a third more.
LIMIT_S = 180.0
PORT = 3478


@pytest.mark.natlab_needs("turnserver")
async def test_lifetimes_are_found_within_a_second(natlab: Lab) -> None:
    """All at the same time: it takes as long as the longest."""
    server = natlab.machine("server")
    routers: dict[str, tuple[dict[str, Any], float, float, bool]] = {
        "10 s": ({"kind": "port-restricted", "lifetime_s": 10}, 10, 10, True),
        "30 s": ({"kind": "symmetric", "lifetime_s": 30}, 30, 30, True),
        "30 s, a cone": ({"kind": "full-cone", "lifetime_s": 30}, 30, 30, True),
        "37 s, a firewall": ({"kind": "firewall", "lifetime_s": 37}, 37, 37, True),
        "120 s": ({"kind": "eim-random", "lifetime_s": 120}, 120, 120, True),
        "as Linux is": ({"kind": "port-restricted", "lifetime_s": 120, "unanswered_lifetime_s": 30}, 120, 30, True),
        "only answers, 10 s": ({"kind": "port-restricted", "lifetime_s": 10, "needs_answers": True}, 10, 10, False),
        "only answers, 30 s": ({"kind": "addr-restricted", "lifetime_s": 30, "needs_answers": True}, 30, 30, False),
    }

    async def judge(name: str) -> str | None:
        options, answered_s, unanswered_s, one_way = routers[name]
        machine = natlab.machine(behind=natlab.router(**options))
        report = await measure_lifetime(machine.host, TransportAddress(server.address, PORT))
        is_right = (
            report.answered.lifetime_s == pytest.approx(answered_s, abs=1.0)
            and report.unanswered.lifetime_s == pytest.approx(unanswered_s, abs=1.0)
            and report.one_way_refresh is one_way
        )
        return None if is_right else f"{name}: {report}"

    async def judge_command(start: Callable[[Machine], Service]) -> str | None:
        """With servers of RFC 5780, ours and coturn's."""
        machine = natlab.machine(behind=natlab.router("port-restricted", lifetime_s=5))
        far = natlab.machine(addresses=2)
        await asyncio.to_thread(start, far)
        end = Process(machine, f"{far.address}:{PORT}", "--lifetime", "--max", "8")
        found = await end.event("punch.lifetime")
        is_right = (
            found["lifetime_s"] == pytest.approx(5, abs=1.0)
            and found["unanswered"]["lifetime_s"] == pytest.approx(5, abs=1.0)
            and found["one_way_refresh"] is True
            and await end.end() == 0
        )
        return None if is_right else f"{start}: {found}"

    config = Config(port_range=(PORT, PORT), loopback=True)
    with limit(LIMIT_S):
        async with FarEndServer(server.host, config=config):
            commands = (judge_command(start) for start in (lambda far: serve(far, "--behaviour-discovery"), coturn))
            wrong = await asyncio.gather(*(judge(name) for name in routers), *commands)
    assert [line for line in wrong if line is not None] == []
