"""Sessions through real NATs that are neither quick nor sure, and two commands that find each other through two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from iceagent.config import Config
from iceagent.lab import Impairment, Lab, Machine
from iceagent.lab.matrix import Cell, play, stun_server
from iceagent.lab.services import serve
from iceagent.lab.session import Side, connect

ROOT = Path(__file__).parents[2]
SESSIONS = 10
PINGS = 5


async def test_ten_of_ten_with_delay_and_ten_percent_loss(natlab: Lab) -> None:
    """``python -m bench --only lossy-nats`` does a hundred, and says how fast."""
    cable = Impairment(delay_s=0.025, loss=0.1)
    routers = [natlab.router("port-restricted", impairment=cable) for _ in range(2)]
    a, b = (natlab.machine(behind=router) for router in routers)
    async with stun_server(natlab) as stun:
        outcomes = [await connect(Side(machine=a), Side(machine=b), stun=stun) for _ in range(SESSIONS)]
    assert [outcome.kind for outcome in outcomes] == ["direct"] * SESSIONS, outcomes


async def test_the_trap_is_real() -> None:
    """Without its remedies the early-packet trap keeps two of ours apart; each of them alone is not enough, or is."""
    late = Cell("port-restricted", "port-restricted-naive", late_s=0.1)
    found = {}
    for openers, reroll in ((False, False), (True, False), (True, True)):
        config = Config(openers=openers, reroll=reroll)
        (result,) = [result async for result in play([late], config=config, limit_s=3.0)]
        found[openers, reroll] = result.outcome.connected
    assert found == {(False, False): False, (True, False): False, (True, True): True}


def start(machine: Machine, folder: Path, mine: str, theirs: str, *arguments: str) -> subprocess.Popen[str]:
    files = ["--out", str(folder / mine), "--in", str(folder / theirs)]
    command = [sys.executable, "-m", "iceagent", "connect", *files, "--json", *arguments]
    pipe = subprocess.PIPE
    return machine.popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def events_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_two_commands_behind_different_nats(natlab: Lab, tmp_path: Path) -> None:
    """CLI contract: descriptions by files, events, summary, exit code 0 on a direct path."""
    server = natlab.machine("server", addresses=2)
    serve(server)
    a = natlab.machine("a", behind=natlab.router("symmetric"))
    b = natlab.machine("b", behind=natlab.router("addr-restricted"))
    asking = ["--server", f"stun:{server.address}"]
    pinging = ["--ping", "0.05", "--count", str(PINGS)]
    one = start(a, tmp_path, "a.sdp", "b.sdp", "--role", "controlling", *asking, *pinging)
    other = start(b, tmp_path, "b.sdp", "a.sdp", "--role", "controlled", *asking, *pinging)
    found = events_of(one), events_of(other)
    assert (one.returncode, other.returncode) == (0, 0)
    for events, types in zip(found, (("prflx", "srflx"), ("srflx", "prflx")), strict=True):
        names = [event["event"] for event in events]
        assert names.index("gathering.done") < names.index("path.selected") < names.index("summary")
        assert {event["type"] for event in events if event["event"] == "candidate.local"} >= {"host", "srflx"}
        path = next(event for event in reversed(events) if event["event"] == "path.selected")
        assert (path["kind"], path["local"]["type"], path["remote"]["type"]) == ("direct", *types)
        summary = events[-1]
        assert summary["event"] == "summary" and summary["kind"] == "direct"
        assert (summary["sent"], summary["received"], summary["lost"]) == (PINGS, PINGS, 0)
        assert summary["connected_ms"] > 0
