"""``iceagent connect`` as it is used: two processes on this machine, or one and an agent in this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from iceagent import Agent, Description, IceRestarted
from tests.loopback.agents import config

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0

Events = list[dict[str, Any]]


class Command:
    """A running ``iceagent connect``.

    Attributes:
        lines: what it wrote to stdout so far.
        errors: what it wrote to stderr so far.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._changed = asyncio.Event()
        assert process.stdout is not None and process.stderr is not None
        self.readers = [
            asyncio.ensure_future(self._read(process.stdout, self.lines)),
            asyncio.ensure_future(self._read(process.stderr, self.errors)),
        ]

    @property
    def events(self) -> Events:
        """Of a command with --json."""
        return [json.loads(line) for line in self.lines]

    def of(self, name: str) -> Events:
        return [event for event in self.events if event["event"] == name]

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until ``fact()``, looking at it with every line."""
        async with asyncio.timeout(PATIENCE_S):
            while not fact():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> int:
        """The exit code, once everything is read."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self.readers)
            return await self.process.wait()

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode())
            self._changed.set()


@asynccontextmanager
async def connect(*arguments: str, **variables: str) -> AsyncIterator[Command]:
    """Start the command on the IPv4 loopback address; it is ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "connect", "--bind", "127.0.0.1", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "ICEAGENT_SERVERS": "", **variables},
    )
    command = Command(process)
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*command.readers)
        assert process.stdin is not None
        process.stdin.close()


def ends(folder: Path) -> tuple[list[str], list[str]]:
    """The options that make two commands peers."""
    a, b = str(folder / "a"), str(folder / "b")
    return ["--role", "controlling", "--out", a, "--in", b], ["--role", "controlled", "--out", b, "--in", a]


@asynccontextmanager
async def peer_of(command: Command, folder: Path) -> AsyncIterator[Agent]:
    """An agent in this process, controlled, that connects to a command that uses ``folder``'s files."""
    async with Agent(config(), controlling=False) as agent:
        replace(folder / "b", (await agent.gather()).to_sdp())
        await command.until(lambda: command.of("gathering.done"))
        agent.set_remote_description(await changed(folder / "a", ""))
        await agent.connect()
        yield agent


def replace(path: Path, text: str) -> None:
    """As a careful tool does it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


async def changed(path: Path, before: str) -> Description:
    """What a file says, once it says something else than ``before``."""
    async with asyncio.timeout(PATIENCE_S):
        while (text := read(path)) in ("", before):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
    return Description.parse(text)


def read(path: Path) -> str:
    """The text of a file; empty if there is none."""
    return path.read_text() if path.exists() else ""


# --- two commands ------------------------------------------------------------------------------------------------


async def test_two_ends_connect(tmp_path: Path) -> None:
    """CLI contract: the events in their order, the summary last, exit code 0 on a direct path."""
    first, second = ends(tmp_path)
    common = ["--ping", "0.05", "--count", "5", "--json"]
    async with connect(*first, *common) as a, connect(*second, *common) as b:
        assert [await a.ended(), await b.ended()] == [0, 0]
    for command in (a, b):
        assert command.errors == []
        assert [event["t"] for event in command.events] == sorted(event["t"] for event in command.events)
        states = [event["new"] for event in command.of("state.changed")]
        # Who hears the other one's goodbye has no path any more.
        assert states in (["checking", "connected", "closed"], ["checking", "connected", "failed", "closed"])
        assert ("failed" in states) == bool(command.of("peer.closed"))
        (local,) = command.of("candidate.local")
        assert local["type"] == "host" and local["address"].startswith("127.0.0.1:")
        assert " typ host ufrag " in local["candidate"]
        (done,) = command.of("gathering.done")
        assert done["count"] == 1 and done["elapsed_ms"] > 0
        assert {event["via"] for event in command.of("candidate.remote")} <= {"signalling", "check"}
        selected = command.of("path.selected")[0]
        assert selected["local"] == {"type": "host", "address": local["address"]}
        assert selected["kind"] == "direct" and selected["reason"]
        assert [event["seq"] for event in command.of("ping.echoed")] == [0, 1, 2, 3, 4]
        assert {event["kind"] for event in command.of("ping.echoed")} == {"direct"}
        summary = command.events[-1]
        assert summary["event"] == "summary"
        assert {name: summary[name] for name in ("sent", "received", "lost", "duplicated", "switches", "kind")} == {
            "sent": 5,
            "received": 5,
            "lost": 0,
            "duplicated": 0,
            "switches": 0,
            "kind": "direct",
        }
        assert summary["connected_ms"] >= 0
        assert summary["longest_gap_ms"] >= 40
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


async def test_copy_and_paste(tmp_path: Path) -> None:
    """CLI contract: --out - / --in - for copy and paste; here the terminals are pipes."""
    first = ["--role", "controlling", "--out", "-", "--in", "-", "--ping", "0.05", "--count", "2"]
    second = ["--role", "controlled", "--out", "-", "--in", "-"]
    async with connect(*first) as a, connect(*second, "--json") as b:
        await a.until(lambda: "a=end-of-candidates\n" in a.lines)
        await b.until(lambda: b.of("description.local"))
        assert a.process.stdin is not None and b.process.stdin is not None
        block = [line for line in a.lines if line.startswith("a=")]
        assert block[0].startswith("a=ice-ufrag:") and block[-1] == "a=end-of-candidates\n"
        # Without the last line, but an empty one after it.
        b.process.stdin.write(("".join(block[:-1]) + "\n").encode())
        a.process.stdin.write(b.of("description.local")[0]["sdp"].encode())
        assert await a.ended() == 0
        # It is told so.
        assert await b.ended() == 0
        assert len(b.of("peer.closed")) == 1
    assert "received=2" in a.lines[-1]


async def test_an_input_that_ends_without_a_description() -> None:
    """There is nothing left to wait for."""
    async with connect("--role", "controlled", "--out", "-", "--in", "-", "--json") as command:
        assert command.process.stdin is not None
        command.process.stdin.write(b"a=ice-ufrag:abcd\n")
        command.process.stdin.close()
        assert await command.ended() == 4
        reasons = [event["reason"] for event in command.of("description.refused")]
    assert "ice-pwd" in reasons[0]
    assert reasons[1:] == ["the input has ended without the peer's description"]


async def test_lines_for_a_person(tmp_path: Path) -> None:
    """CLI contract: without a terminal there is no colour and no animation. Logs on stderr."""
    first, second = ends(tmp_path)
    async with connect(*first, "--ping", "0.05", "--count", "2", "-v") as a, connect(*second) as b:
        assert await a.ended() == 0
    assert b.errors == []
    assert "\x1b" not in "".join(a.lines + a.errors)
    assert " summary connected_ms=" in a.lines[-1]
    assert any("path.selected" in line for line in a.errors)


async def test_on_a_terminal(tmp_path: Path) -> None:
    """A person sees colour, and a line that says how it goes instead of one per ping."""
    first, second = ends(tmp_path)
    reader, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "iceagent",
            "connect",
            "--bind",
            "127.0.0.1",
            *first,
            "--ping",
            "0.05",
            "--count",
            "10",
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=terminal,
        cwd=ROOT,
        env={**os.environ, "ICEAGENT_SERVERS": "", "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(terminal)
    reading = asyncio.get_running_loop().run_in_executor(None, read_terminal, reader)
    async with connect(*second), asyncio.timeout(PATIENCE_S):
        shown = await reading
        assert await process.wait() == 0
    assert "path.selected" in shown and "ping.echoed" not in shown
    assert " sent, " in shown and "\x1b[" in shown
    assert "received=10 lost=0" in shown


def read_terminal(fd: int) -> str:
    """Everything that a program writes to its terminal, until it ends."""
    found = b""
    # At the end of the other side Linux says EIO.
    with suppress(OSError):
        while chunk := os.read(fd, 4096):
            found += chunk
    os.close(fd)
    return found.decode()


async def test_copy_and_paste_on_a_terminal() -> None:
    """The block stands on lines of its own, with a word on what to do before it, and one after it."""
    reader, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "connect", "--bind", "127.0.0.1"),
        *("--role", "controlling", "--out", "-", "--in", "-", "--duration", "0.3"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env={**os.environ, "ICEAGENT_SERVERS": "", "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    second = ["--role", "controlled", "--out", "-", "--in", "-", "--json"]
    loop = asyncio.get_running_loop()
    async with connect(*second) as b, asyncio.timeout(PATIENCE_S):
        shown = ""
        while "Paste the peer's lines, then an empty line:" not in shown:
            shown += (await loop.run_in_executor(None, os.read, reader, 4096)).decode()
        await b.until(lambda: b.of("description.local"))
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n").split("\n")
        start = lines.index("Copy these lines to the peer:") + 1
        end = lines.index("Paste the peer's lines, then an empty line:")
        block = [line for line in lines[start:end] if line]
        assert block[0].startswith("a=ice-ufrag:") and block[-1] == "a=end-of-candidates"
        # No status line is redrawn while its reader pastes.
        assert "\x1b[2K" not in shown and "\r\x1b" not in shown
        assert b.process.stdin is not None
        b.process.stdin.write(("\n".join(block) + "\n").encode())
        os.write(reader, b.of("description.local")[0]["sdp"].encode())
        rest = await loop.run_in_executor(None, read_terminal, reader)
        assert await process.wait() == 0
    assert "path.selected" in rest and "\x1b[2K" in rest


async def test_why_there_is_no_candidate(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "connect", "--interface", "lo", *ends(tmp_path)[0], "--log-json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "ICEAGENT_SERVERS": ""},
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        told = json.loads(await process.stderr.readline())
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert (told["event"], told["level"], process.returncode) == ("gathering.empty", "warning", 130)
    assert "no address to gather on" in told["reason"] and "--loopback" in told["reason"]


async def test_an_address_that_no_interface_has(tmp_path: Path) -> None:
    async with connect("--bind", "192.0.2.99", *ends(tmp_path)[0]) as command:
        assert await command.ended() == 2
    (line,) = command.errors
    assert "--bind 192.0.2.99: no interface has this address; there are " in line and "127.0.0.1" in line
    assert os.listdir(tmp_path) == []


async def test_redacted(tmp_path: Path) -> None:
    """CLI contract: --redact hides addresses in what is shown, logs included; the peer is told them."""
    first, second = ends(tmp_path)
    options = ["--ping", "0.05", "--count", "2", "-vv", "--log-json", "--redact", "--json"]
    async with connect(*first, *options) as a, connect(*second) as b:
        assert await a.ended() == 0
    assert not b.errors
    assert "127.0.0.1" not in "".join(a.lines + a.errors)
    assert "path.selected" in {json.loads(line)["event"] for line in a.errors}
    assert "127.0.0.1" in (tmp_path / "a").read_text()


async def test_a_turn_server_that_does_not_answer_is_told_of_and_delays_nothing(tmp_path: Path) -> None:
    first, second = ends(tmp_path)
    servers = '[{"urls": ["turn:127.0.0.1:9?transport=udp"], "username": "u", "credential": "secret"}]'
    options = ["--ping", "0.05", "--count", "2", "--json"]
    async with connect(*first, *options, ICEAGENT_SERVERS=servers) as a, connect(*second):
        assert await a.ended() == 0
    assert "127.0.0.1:9" in a.errors[0] and "server.failed" in a.errors[0]
    assert "secret" not in "".join(a.lines + a.errors)


async def test_a_relay_is_needed_for_relays_only(tmp_path: Path) -> None:
    first, _ = ends(tmp_path)
    async with connect(*first, "--policy", "relay", "--server", "stun:127.0.0.1:9") as a:
        assert await a.ended() == 2
    assert "--policy relay needs a TURN server" in a.errors[0]


# --- one command and an agent ------------------------------------------------------------------------------------


async def test_a_restart_by_rewriting(tmp_path: Path) -> None:
    """CLI contract: new credentials in THEIRS are an ICE restart, answered once by new ones of ours, within 50 ms."""
    async with connect(*ends(tmp_path)[0], "--json", "--echo") as command, peer_of(command, tmp_path) as agent:
        before = (tmp_path / "a").read_text()
        events = agent.events()
        replace(tmp_path / "b", agent.restart().to_sdp())
        answer = await changed(tmp_path / "a", before)
        assert answer.credentials != Description.parse(before).credentials
        agent.set_remote_description(answer)
        await command.until(lambda: len(command.of("path.selected")) >= 2)
        assert [event["by_peer"] for event in command.of("ice.restarted")] == [True]
        await agent.connect()
        agent.send(b"over the new path")
        async with asyncio.timeout(PATIENCE_S):
            assert await agent.recv() == b"over the new path"
        events.close()
        restarts = [event async for event in events if isinstance(event, IceRestarted)]
        assert [event.by_peer for event in restarts] == [False]
        # Nothing more is answered: there is no ping-pong of restarts.
        assert (tmp_path / "a").read_text() == answer.to_sdp()
        command.process.send_signal(signal.SIGINT)
        assert await command.ended() == 130


async def test_late_candidates(tmp_path: Path) -> None:
    """CLI contract: later candidates are appended after end-of-candidates; in place, as a shell's >> does it."""
    async with connect(*ends(tmp_path)[0], "--json") as command, peer_of(command, tmp_path):
        with (tmp_path / "b").open("a") as file:
            file.write("a=candidate:99 1 udp 1694498815 127.0.0.99 6000 typ srflx raddr 127.0.0.1 rport 6000\n")
        await command.until(lambda: "127.0.0.99:6000" in {event["address"] for event in command.of("candidate.remote")})
        assert command.of("ice.restarted") == []
    assert command.errors == []


async def test_bad_files_are_no_crash(tmp_path: Path) -> None:
    """What cannot be parsed is told on stderr, once, and the next text connects."""
    (tmp_path / "b").write_text("a=ice-ufrag:abcd\na=ice-pwd:short\n")
    async with connect(*ends(tmp_path)[0], "--json", "--log-json") as command:
        await command.until(lambda: command.errors)
        async with peer_of(command, tmp_path):
            await command.until(lambda: command.of("path.selected"))
            (tmp_path / "b").write_bytes(os.urandom(1000))
            await command.until(lambda: len(command.errors) == 2)
            command.process.send_signal(signal.SIGTERM)
            assert await command.ended() == 130
    told = [json.loads(line) for line in command.errors]
    assert [line["event"] for line in told] == ["description.refused", "description.refused"]
    assert "ice-pwd of 5 characters" in told[0]["reason"]
    assert [event["reason"] for event in command.of("description.refused")] == [line["reason"] for line in told]


async def test_foreign_data_is_echoed_once(tmp_path: Path) -> None:
    """CLI contract: --echo returns every other datagram, never one of ours and never twice."""
    async with (
        connect(*ends(tmp_path)[0], "--json", "--echo", "--ping", "0.05") as command,
        peer_of(command, tmp_path) as agent,
    ):
        received: list[bytes] = []
        heard = asyncio.Event()

        def mirror(data: bytes, component: int) -> None:
            # A foreign peer that echoes everything verbatim, pings included.
            received.append(data)
            agent.send(data)
            heard.set()

        agent.set_data_handler(mirror)
        agent.send(b"hello")
        async with asyncio.timeout(PATIENCE_S):
            while sum(data != b"hello" for data in received) < 5:
                heard.clear()
                await heard.wait()
        command.process.send_signal(signal.SIGINT)
        await command.ended()
    summary = command.events[-1]
    assert received.count(b"hello") == 1
    assert (summary["returned"], summary["other"], summary["answered"]) == (1, 1, 0)
    assert summary["received"] >= 4
    assert len(set(received)) == len(received)


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_connected", [False, True])
async def test_interrupted(tmp_path: Path, number: signal.Signals, is_connected: bool) -> None:
    """CLI contract: Ctrl-C ends cleanly within 1 s, with the summary; 130 interrupted."""
    first, second = ends(tmp_path)
    async with connect(*first, "--json", "--ping", "0.05") as a, connect(*second, "--json") as b:
        awaited = "ping.echoed" if is_connected else "gathering.done"
        if not is_connected:
            b.process.kill()
        await a.until(lambda: a.of(awaited))
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        a.process.send_signal(number)
        assert await a.ended() == 130
        # A second for the command, and half of one for a busy machine.
        assert loop.time() - told_at < 1.5
    summary = a.events[-1]
    assert summary["event"] == "summary"
    assert summary["kind"] == ("direct" if is_connected else None)
    assert (summary["connected_ms"] is None) is not is_connected
    assert a.errors == []


async def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """As with ``| head -1``: no traceback, no endless run for nobody."""
    first, second = ends(tmp_path)
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "connect", "--bind", "127.0.0.1", *first, "--ping", "0.05"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writer)
    os.close(reader)
    async with asyncio.timeout(PATIENCE_S):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
    assert second


async def test_wrong_usage(tmp_path: Path) -> None:
    """CLI contract: 2 wrong usage, one line."""
    first, _ = ends(tmp_path / "missing")
    async with connect(*first, "--json") as command:
        assert await command.ended() == 2
    assert command.lines == []
    (line,) = command.errors
    assert "does not exist" in line


@pytest.mark.parametrize("option", ["--ping", "--duration"])
async def test_a_number_that_is_none(tmp_path: Path, option: str) -> None:
    """NaN is neither below nor above any limit: with it, pings would leave as fast as the machine can."""
    async with connect(*ends(tmp_path)[0], option, "nan") as command:
        assert await command.ended() == 2
    (line,) = command.errors
    assert "'nan' is not a finite number" in line


async def test_a_name_of_250_characters(tmp_path: Path) -> None:
    """The file that is written before the rename has room beside it."""
    mine = tmp_path / ("a" * 250)
    async with connect("--role", "controlled", "--out", str(mine), "--in", str(tmp_path / "b"), "--json") as command:
        await command.until(lambda: command.of("gathering.done"))
        await changed(mine, "")
    assert command.errors == []


async def test_a_peer_that_closes_ends_it_in_order(tmp_path: Path) -> None:
    """Told within a second, not after thirty: exit code and summary are those of a session that worked."""
    first, second = ends(tmp_path)
    async with connect(*first, "--json", "--ping", "0.05") as a, connect(*second, "--no-standby", "--no-mirror") as b:
        await a.until(lambda: len(a.of("ping.echoed")) >= 5)
        b.process.send_signal(signal.SIGINT)
        assert await b.ended() == 130
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await a.ended() == 0
        assert loop.time() - began < 1.0
    (closed,) = a.of("peer.closed")
    assert closed["reason"] and a.errors == []
    assert a.events[-1]["event"] == "summary" and a.events[-1]["kind"] == "direct"
    assert a.events[-1]["t"] - closed["t"] < 0.5
    # A person is told the changes, and not the pings.
    told = [line.split()[1] for line in b.lines]
    assert "path.selected" in told and "ping.echoed" not in told and told[-1] == "summary"


async def test_a_peer_that_hangs_is_found_again(tmp_path: Path) -> None:
    """Nobody answers, so credentials are published; they are those of the peer's next life as well."""
    first, second = ends(tmp_path)
    async with connect(*first, "--json", "--ping", "0.05") as a, connect(*second, "--json") as b:
        await a.until(lambda: len(a.of("ping.echoed")) >= 5)
        b.process.send_signal(signal.SIGSTOP)
        await a.until(lambda: a.of("ice.restarted"))
        assert a.of("path.doubted") and a.of("restart.advised") and not a.of("ice.restarted")[0]["by_peer"]
        b.process.send_signal(signal.SIGCONT)
        seen = len(a.of("ping.echoed"))
        await a.until(lambda: len(a.of("ping.echoed")) > seen + 5)
        await b.until(lambda: b.of("ice.restarted"))
        for command in (a, b):
            await command.until(lambda: command.of("path.selected")[-1]["t"] > command.of("ice.restarted")[-1]["t"])  # noqa: B023
        assert [event["new"] for event in a.of("state.changed")][-1] == "connected"
        a.process.send_signal(signal.SIGINT)
        assert await a.ended() == 130
        assert await b.ended() == 0
    assert a.events[-1]["longest_gap_ms"] >= 1000
