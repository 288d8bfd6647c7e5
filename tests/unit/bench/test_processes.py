"""Does a measuring process import the agent that it measures, and nothing else of what the benchmarks need?"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.processes import ROOT

IMPORTED = """
import asyncio, importlib, json, sys
import bench.worker
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps(sorted(sys.modules)))
"""


def imported_with(*modules: str) -> set[str]:
    """The modules that a process has which imported these and the worker's main program."""
    # No timeout: with one, waiting for the process's end may sleep, which conftest.py refuses.
    command = [sys.executable, "-c", IMPORTED, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "where",
    [
        *("bench.side", "bench.cases.connect", "bench.cases.datagrams", "bench.cases.dead_server"),
        *("bench.cases.relay", "bench.cases.rtc", "bench.contenders.plain"),
    ],
)
def test_a_measuring_process_has_one_agent_and_no_laboratory(where: str) -> None:
    assert {"iceagent", "aioice", "pyroute2"}.isdisjoint(imported_with(where))
    theirs = imported_with(where, "bench.contenders.theirs")
    assert "aioice" in theirs and {"iceagent", "pyroute2"}.isdisjoint(theirs)
    ours = imported_with(where, "bench.contenders.ours")
    assert "iceagent.agent" in ours and {"iceagent.lab", "aioice"}.isdisjoint(ours)
