"""``iceagent probe`` as a process, kept to loopback by ``--interface lo``: options, output, exit codes, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.local import local_host
from relay.server import Server

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
KEYS = {"t", "event", "schema", "interfaces", "candidates", "udp", "reflexive", "nat", "portmap", "relays", "nat64"}
KEYS |= {"layers", "advice", "duration_ms"}


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int | None
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The one line of JSON."""
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """``iceagent probe --interface lo ARGUMENTS``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ICEAGENT_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "probe", "--interface", "lo", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=clean | environment,
    )


async def probe(*arguments: str, **environment: str) -> Ended:
    """The same, to its end."""
    process = await start(*arguments, **environment)
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return Ended(process.returncode, out.decode(), err.decode())


async def test_without_a_server_it_asks_its_own_and_says_so() -> None:
    ended = await probe("--json")
    report = ended.report
    assert ended.code == 0
    assert (set(report), report["event"], report["schema"]) == (KEYS, "probe.report", 1)
    assert {each["address"].rpartition(":")[0] for each in report["reflexive"]} <= {"127.0.0.1", "[::1]"}
    assert report["reflexive"]
    assert report["nat"]["mapping"] == "unknown"
    assert report["nat"]["evidence"][:2] == [
        "no server outside this host",
        "none was named: our own server on loopback was asked",
    ]
    assert report["duration_ms"] < 2000
    assert ended.err == "No server given: asking a STUN and TURN server of our own on loopback, nobody else.\n"


async def test_its_own_server_relays_and_no_proxy_is_on_the_way() -> None:
    ended = await probe("--json", "--no-ipv6", "-vv", ALL_PROXY="http://127.0.0.1:1")
    assert ended.code == 0
    rows = ended.report["relays"]
    assert [(row["transport"], row["status"], row["mobility"]) for row in rows] == [
        ("udp", "ok", True),
        ("tcp", "ok", True),
    ]
    for row in rows:
        assert row["server"].startswith("turn:127.0.0.1:") and row["relayed"].startswith("127.0.0.1:")
        assert 0 < row["rtt_ms"] < 1000 and 0 < row["data_rtt_ms"] < 1000
    # User and password are hexadecimal, and nobody's business.
    assert not re.search("[0-9a-f]{32}", ended.out + ended.err)


async def test_a_server_that_is_named_is_asked() -> None:
    async with Server(local_host(), [TransportAddress("127.0.0.1", 0)]) as server:
        uri = f"stun:{server.listeners[0].address}"
        ended = await probe("--json", "--loopback", "--server", uri)
        again = await probe("--json", "--loopback", ICEAGENT_SERVERS=json.dumps([{"urls": uri}]))
        # Each run asks from its own socket, and once more when it gathers candidates.
        assert server.counters["requests"] == 4
    for each in (ended, again):
        (row,) = each.report["reflexive"]
        assert (each.code, each.err, row["server"], row["seen"]) == (0, "", uri, 1)
        assert (each.report["udp"]["ipv4"], 0 < row["rtt_ms"] < 1000) == (True, True)


async def test_an_answer_without_a_candidate_is_no_path() -> None:
    async with Server(local_host(), [TransportAddress("127.0.0.1", 0)]) as server:
        ended = await probe("--json", "--server", f"stun:{server.listeners[0].address}")
    assert (ended.code, ended.report["candidates"], len(ended.report["reflexive"])) == (4, [], 1)
    assert any(sentence.startswith("No interface gave a candidate") for sentence in ended.report["advice"])


async def test_all_of_stderr_is_json() -> None:
    """--log-json: what else is a plain line, too."""
    ended = await probe("--log-json")
    (told,) = [json.loads(line) for line in ended.err.splitlines()]
    assert told["event"] == "server.none"
    assert told["text"].startswith("No server given: ")


async def test_a_relay_that_is_not_there_is_no_answer_at_once() -> None:
    """The kernel says that the ports are closed; and what was not asked is a row of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"turn:127.0.0.1:{closed.getsockname()[1]}"
    servers = json.dumps([{"urls": [url, "turns:127.0.0.1?transport=udp"], "username": "u", "credential": "secret"}])
    ended = await probe("--json", "--loopback", "--timeout", "10", ICEAGENT_SERVERS=servers)
    assert (ended.code, ended.err) == (4, "")
    assert [(row["transport"], row["status"]) for row in ended.report["relays"]] == [
        ("udp", "no-answer"),
        ("tcp", "no-answer"),
        ("dtls", "refused"),
    ]
    assert ended.report["relays"][1]["reason"] == "Connection refused"
    assert "secret" not in ended.out
    assert ended.report["duration_ms"] < 5000
    stun = ("--json", "--server", url.replace("turn:", "stun:"))
    (nobody,) = (await probe(*stun)).report["relays"]
    assert (nobody["status"], nobody["reason"]) == ("not-tested", "no TURN server was given")


async def test_plain_text_where_nobody_watches() -> None:
    ended = await probe("--no-ipv6")
    assert ended.code == 0
    assert ended.out.startswith("Interfaces\n  name ")
    assert "Only this host was looked at" in ended.out
    assert "\x1b" not in ended.out + ended.err
    assert "::1]" not in ended.out


async def test_a_silent_server_is_no_path_after_the_timeout() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        ended = await probe("--json", "--timeout", "0.5", "--server", f"stun:127.0.0.1:{deaf.getsockname()[1]}")
    assert (ended.code, ended.report["udp"]["ipv4"]) == (4, False)
    assert 500 <= ended.report["duration_ms"] < 2000
    assert "no response" in ended.report["nat"]["evidence"][-1]


async def test_a_closed_port_is_no_path_at_once() -> None:
    """The kernel says so (ICMP), and nobody waits for the timeout."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    ended = await probe("--json", "--timeout", "10", "--server", f"stun:127.0.0.1:{port}")
    assert (ended.code, ended.report["udp"]["ipv4"], ended.report["duration_ms"] < 5000) == (4, False, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--timeout", "0"), "'--timeout'"),
        (("--every", "0"), "'--every'"),
        (("--server", "http://stun.example"), "http://stun.example"),
        (("--no-ipv4", "--no-ipv6"), "--no-ipv4"),
        (("--deep",), "--deep"),
        (("--bind", "192.0.2.99"), "--bind 192.0.2.99: no interface has this address; there are 127.0.0.1"),
    ],
)
async def test_wrong_usage_is_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    ended = await probe(*arguments)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert complaint in ended.err


async def test_ctrl_c_ends_it_within_a_second() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.setblocking(False)
        process = await start("--timeout", "60", "--server", f"stun:127.0.0.1:{deaf.getsockname()[1]}")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_recv(deaf, 100)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert time.monotonic() - began < 1.5


async def test_a_terminal_gets_tables_and_progress() -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "probe", "--interface", "lo"),
        stdout=theirs,
        stderr=theirs,
        stdin=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    text = await asyncio.get_running_loop().run_in_executor(None, _read_to_the_end, ours)
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    assert "Interfaces" in text
    assert "Only this host was looked at" in text
    assert "│" in text
    assert "reading the interfaces" in text or "asking stun:" in text or "probing" in text
    assert text.index("No server given") < text.index("Interfaces")


def _read_to_the_end(terminal: int) -> str:
    """What was written to a terminal until its last user closed it."""
    parts: list[bytes] = []
    with os.fdopen(terminal, "rb", buffering=0) as stream:
        while True:
            try:
                part = stream.read(65536)
            except OSError:  # EIO: the other side is closed.
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts).decode()
