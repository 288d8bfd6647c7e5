"""README, "Connect two hosts": two people behind two NATs know a server and the name of a room."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from iceagent.lab import Lab, Machine

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def start(machine: Machine, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "iceagent", *arguments, "--json"]
    return machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events; nothing on stderr."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert err == ""
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in out.splitlines()]


def test_two_people_behind_two_nats_meet_in_a_room(natlab: Lab) -> None:
    """STUN and the room come from one server; the path does not."""
    server = natlab.machine("server")
    alice = natlab.machine("alice", behind=natlab.router("port-restricted"))
    bob = natlab.machine("bob", behind=natlab.router("port-restricted"))
    serving = start(server, "serve", "--listen", server.address, "--rendezvous", f"{server.address}:8080")
    assert serving.stdout is not None
    assert json.loads(serving.stdout.readline())["event"] == "server.ready"
    options = ["--rendezvous", f"http://{server.address}:8080/our-secret.room_1", "--server", f"stun:{server.address}"]
    options += ["--ping", "0.05", "--count", "5"]
    ends = [
        start(machine, "connect", "--role", role, *options)
        for machine, role in ((alice, "controlling"), (bob, "controlled"))
    ]
    for process in ends:
        code, events = ended(process)
        assert code == 0, events
        summary = events[-1]
        assert (summary["kind"], summary["received"], summary["lost"]) == ("direct", 5, 0)
        (first, *_) = [event for event in events if event["event"] == "path.selected"]
        assert first["remote"]["type"] in ("srflx", "prflx")
    serving.send_signal(signal.SIGTERM)
    code, events = ended(serving)
    assert (code, events[-1]["event"]) == (0, "server.stopped")
