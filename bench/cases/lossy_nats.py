"""Port-restricted NATs on both sides, 25 ms each way and 10 % loss on both cables: how surely and how fast?

Real NATs (``iceagent.lab``) and a STUN server; every session gathers anew. A packet from one agent to the other, or to
the server and back, crosses two lossy cables. aioice plays in a thread that is inside its machine's network. A session
that is not connected within 12 s counts with 12 s, and is counted.
"""

from __future__ import annotations

import asyncio

from bench.cases import Options
from bench.results import Metric
from iceagent.lab import Impairment, Lab, Machine
from iceagent.lab.matrix import stun_server
from iceagent.lab.session import LIMIT_S, Side, connect
from iceagent.net.address import TransportAddress

__all__ = ["run"]

KIND = "port-restricted"
CABLE = Impairment(delay_s=0.025, loss=0.1)
# Of each contender per round: ours has to show a percentile, the other one is there for comparison.
SESSIONS = {"iceagent": 20, "aioice": 5}
MEDIAN_MS, P95_MS = 250.0, 900.0


def run(options: Options) -> list[Metric]:
    """Rounds of both contenders through the same routers."""
    found = asyncio.run(_run(options))
    failed = {name: [float(ms is None) for ms in values] for name, values in found.items()}
    times = {name: [LIMIT_S * 1000 if ms is None else ms for ms in values] for name, values in found.items()}
    counts = ", ".join(f"{name} {int(sum(each))} of {len(each)}" for name, each in failed.items())
    return [
        Metric(
            name="two port-restricted NATs, 25 ms and 10 % loss each way",
            unit="ms",
            ours=times["iceagent"],
            peer=times["aioice"],
            at_most=MEDIAN_MS,
            p95_at_most=P95_MS,
            note=f"not connected within {LIMIT_S:.0f} s: {counts}",
        ),
        Metric(
            name="the same, sessions that failed",
            unit="share",
            ours=[sum(failed["iceagent"]) / len(failed["iceagent"])],
            peer=[sum(failed["aioice"]) / len(failed["aioice"])],
            at_most=0.0,
        ),
    ]


async def _run(options: Options) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {name: [] for name in SESSIONS}
    with Lab() as lab:
        routers = [lab.router(KIND, impairment=CABLE) for _ in range(2)]
        a, b = (lab.machine(behind=router) for router in routers)
        async with stun_server(lab) as stun:
            for number in range(options.rounds):
                for name, count in SESSIONS.items():
                    options.tell(f"lossy NATs: {name}, round {number + 1}")
                    found[name] += [await _session_ms(a, b, name, stun) for _ in range(count)]
    return found


async def _session_ms(a: Machine, b: Machine, name: str, stun: TransportAddress) -> float | None:
    outcome = await connect(Side(machine=a), Side(machine=b), agent=name, stun=stun)
    return None if outcome.elapsed_s is None else outcome.elapsed_s * 1000
