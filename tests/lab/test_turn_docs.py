"""The Python of docs/turn.md runs as it stands there: in a laboratory, where ``turn.example.org`` is a machine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iceagent.lab import Lab, Machine
from tests.certificates import make_certificate

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "turn.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
# What each of them is told by, in their order.
SERVER = ("iceagent.serve(", "Event().wait()")
LARGE_SERVER = ("iceagent.serve(", "server_ssl_context")
PATIENCE_S = 30.0


def block(*words: str) -> str:
    """The one with all these words."""
    found: list[str] = [text for text in BLOCKS if all(word in text for word in words)]
    assert len(found) == 1, words
    return found[0]


def start(machine: Machine, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def run(machine: Machine, text: str) -> str:
    """What it prints; nothing on stderr, and exit code 0."""
    process = start(machine, "-c", text)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, ""), err
    return out


@pytest.fixture
def server(natlab: Lab) -> Machine:
    machine = natlab.machine("server")
    natlab.names["turn.example.org"] = machine.hosts
    natlab.tell_names(machine)
    return machine


@pytest.fixture
def client(natlab: Lab, server: Machine) -> Machine:
    return natlab.machine(behind=natlab.router("symmetric"))


def listening(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_server_and_an_application(server: Machine, client: Machine) -> None:
    """The one gives the other a relay."""
    process = start(server, "-c", block(*SERVER))
    assert "udp 0.0.0.0:3478" in listening(process)
    sdp = run(client, block("turns:turn.example.org:443", "main()"))
    assert f" {server.address} " in sdp and " typ relay " in sdp
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)


def test_a_server_for_others(server: Machine, client: Machine, tmp_path: Path) -> None:
    """With TLS, and an orderly end; certificate and key lie where it is started."""
    certificate, _ = make_certificate(tmp_path, "turn.example.org")
    assert certificate == tmp_path / "cert.pem"
    text = block(*LARGE_SERVER)
    process = start(server, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{text}")
    assert server.address in listening(process)
    sdp = run(client, block("turns:turn.example.org:443", "main()"))
    assert f" {server.address} " in sdp and " typ relay " in sdp
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert re.fullmatch(r"\d+ requests, 0 bytes to peers, 0 from peers\n", out)


def test_time_limited_credentials(server: Machine, client: Machine) -> None:
    process = start(server, "-m", "iceagent", "serve", "--secret", "north", "--json")
    listening(process)
    sdp = run(client, block("made_by_the_service", "main()"))
    assert f" {server.address} " in sdp and " typ relay " in sdp
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)


def test_two_ways_to_know_two_servers() -> None:
    """``tests/lab/test_fleet.py`` lets one of them die."""
    values: dict[str, object] = {}
    exec(compile(block("one_entry", "two_entries"), "turn.md", "exec"), values)
    one, two = values["one_entry"], values["two_entries"]
    assert isinstance(one, tuple) and isinstance(two, tuple) and (len(one), len(two)) == (1, 2)
    assert one[0].urls == two[0].urls + two[1].urls


def test_no_block_is_left_out() -> None:
    used = [
        block(*SERVER),
        block(*LARGE_SERVER),
        block("turns:turn.example.org:443", "main()"),
        block("made_by_the_service", "main()"),
    ]
    assert sorted([*used, block("one_entry", "two_entries")]) == sorted(BLOCKS)
