"""``iceagent probe`` with coturn behind real NATs: which relays work, what the others say, and what is given back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab import Lab, Machine
from iceagent.lab.services import Service, coturn

pytestmark = pytest.mark.natlab_needs("turnserver")

ROOT = Path(__file__).parents[2]
KEYS = {"server", "transport", "status", "rtt_ms", "relayed", "relayed_all", "reason", "data_rtt_ms", "mobility"}
USER = ("--username", "u", "--credential", "pw")
PATIENCE_S = 30.0


def start(machine: Machine, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "iceagent", "probe", "--json", *arguments]
    return machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def probe(machine: Machine, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and its report."""
    process = start(machine, *arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert err == "", err
    report: dict[str, Any] = json.loads(out)
    assert all(set(row) == KEYS for row in report["relays"])
    return process.returncode, report


def statuses(report: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(row["server"], row["transport"]): row["status"] for row in report["relays"]}


def count(service: Service, text: str) -> int:
    return service.log.read_text(errors="replace").count(text)


def assert_all_was_given_back(service: Service, *, at_least: int) -> None:
    given = count(service, "ALLOCATE processed, success")
    assert given >= at_least
    assert count(service, "lifetime=0") == given, service.log.read_text(errors="replace")


def test_a_relay_over_udp_and_tcp(natlab: Lab) -> None:
    server = natlab.machine("server")
    service = coturn(server, "-v", users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    url = f"turn:{server.address}"
    code, report = probe(client, "--server", url, *USER)
    assert (code, statuses(report)) == (0, {(url, "udp"): "ok", (url, "tcp"): "ok"})
    for row in report["relays"]:
        assert row["relayed"].partition(":")[0] == server.address and 0 < row["rtt_ms"] < 1000
        assert row["relayed_all"] == [row["relayed"]]
    # A TURN server is a STUN server as well.
    assert (report["udp"]["ipv4"], report["nat"]["mapping"], report["layers"]) == (True, "unknown", 1)
    assert {"host", "relay"} <= {line.split()[7] for line in report["candidates"]}
    # The probe's two, and the agent's.
    assert_all_was_given_back(service, at_least=3)


@pytest.mark.parametrize(("options", "mobility"), [((), False), (("--mobility",), True)], ids=["without", "with"])
def test_whether_the_server_knows_mobility(natlab: Lab, options: tuple[str, ...], mobility: bool) -> None:
    server = natlab.machine("server")
    coturn(server, *options, users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    _, report = probe(client, "--server", f"turn:{server.address}", *USER)
    rows = report["relays"]
    assert [(row["status"], row["mobility"], row["data_rtt_ms"]) for row in rows] == [("ok", mobility, None)] * 2


def test_a_wrong_password_is_refused_in_the_servers_words(natlab: Lab) -> None:
    server = natlab.machine("server")
    coturn(server, users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    code, report = probe(client, "--server", f"turn:{server.address}", "--username", "u", "--credential", "no")
    assert code == 0
    for row in report["relays"]:
        assert (row["status"], row["relayed"], row["rtt_ms"], row["mobility"]) == ("refused", None, None, None)
        assert row["reason"] == "401 user name or password are wrong (it says: Unauthorized)"
    assert any(f"turn:{server.address} over UDP (401 user name" in sentence for sentence in report["advice"])


def test_a_user_with_one_allocation(natlab: Lab) -> None:
    """What is tried side by side shares the quota: whoever got none is asked again when the others gave theirs back."""
    server = natlab.machine("server")
    service = coturn(server, "-v", "--user-quota=1", users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    url = f"turn:{server.address}"
    code, report = probe(client, "--server", url, *USER)
    assert (code, statuses(report)) == (0, {(url, "udp"): "ok", (url, "tcp"): "ok"})
    assert count(service, "Allocation Quota Reached") > 0
    assert_all_was_given_back(service, at_least=2)


def test_a_dead_server_does_not_answer(natlab: Lab) -> None:
    server, gone = natlab.machine("server"), natlab.machine("gone")
    coturn(server, users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    living, dead = f"turn:{server.address}?transport=udp", f"turn:{gone.address}:3479"
    nobody = "turn:20.0.250.250"
    arguments = [word for url in (living, dead, nobody) for word in ("--server", url)]
    code, report = probe(client, *arguments, *USER, "--timeout", "2")
    assert code == 0
    assert statuses(report) == {
        (living, "udp"): "ok",
        (dead, "udp"): "no-answer",
        (dead, "tcp"): "no-answer",
        (nobody, "udp"): "no-answer",
        (nobody, "tcp"): "no-answer",
    }
    assert all(row["reason"] for row in report["relays"] if row["status"] != "ok")
    assert report["duration_ms"] < 4000


def test_where_udp_is_shut_the_relay_over_tcp_is_what_will_do(natlab: Lab) -> None:
    server = natlab.machine("server")
    coturn(server, users={"u": "pw"}, port=443)
    client = natlab.machine(behind=natlab.router("no-udp"))
    url = f"turn:{server.address}:443"
    code, report = probe(client, "--server", url, *USER, "--timeout", "2")
    assert (code, statuses(report)) == (3, {(url, "udp"): "no-answer", (url, "tcp"): "ok"})
    assert report["udp"]["ipv4"] is False
    assert report["advice"][0].endswith(f"{url} over TCP works.")


@pytest.mark.parametrize(("password", "code"), [("pw", 3), ("no", 4)])
def test_a_nat_that_needs_a_relay(natlab: Lab, password: str, code: int) -> None:
    server = natlab.machine("server", addresses=2)
    coturn(server, users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("symmetric"))
    url = f"turn:{server.address}?transport=udp"
    found, report = probe(client, "--server", url, "--username", "u", "--credential", password)
    assert (found, report["nat"]["mapping"]) == (code, "APDM")
    (row,) = report["relays"]
    assert row["status"] == ("ok" if code == 3 else "refused")
    words = f"{url} over UDP works" if code == 3 else "No relay works; mend or replace"
    assert any(words in sentence for sentence in report["advice"])


def test_ctrl_c_gives_everything_back(natlab: Lab) -> None:
    server = natlab.machine("server")
    service = coturn(server, "-v", users={"u": "pw"})
    client = natlab.machine(behind=natlab.router("port-restricted"))
    urls = ("--server", f"turn:{server.address}", "--server", "turn:20.0.250.250")
    process = start(client, *urls, *USER, "--timeout", "60")
    client.wait_until(lambda: count(service, "ALLOCATE processed, success") == 3, PATIENCE_S, "no allocation")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (130, "", "")
    assert time.monotonic() - began < 1.0
    assert_all_was_given_back(service, at_least=3)
