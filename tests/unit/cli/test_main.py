"""How the command ``iceagent`` ends: one exit code per kind of end, and one line for wrong usage."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from iceagent import __version__, cli
from iceagent.cli.connect import exit_code, summary_fields
from iceagent.cli.run import ECHO_S, Supervisor, run
from iceagent.errors import UnsupportedPlatform, UsageError
from iceagent.rendezvous.payload import PayloadCounts
from iceagent.rendezvous.peer_session import Summary

CONNECT = ["connect", "--role", "controlling", "--out", "mine", "--in", "theirs"]


def test_without_a_command_one_line_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    named = ", ".join(sorted(cli.COMMANDS))
    assert "probe, punch, reflect" in named
    assert captured.err == f"iceagent: no command given; one of {named} (see iceagent --help)\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["connect", "--help"]])
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: iceagent ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"iceagent {__version__}\n"


def test_every_command_of_the_table_is_there() -> None:
    ctx = click.Context(cli.cli)
    for name in cli.cli.list_commands(ctx):
        command = cli.cli.get_command(ctx, name)
        assert command is not None and command.name == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["--nothing"], "No such option"),
        (["connect"], "Missing option"),
        ([*CONNECT, "--nothing"], "No such option"),
        ([*CONNECT, "more"], "unexpected extra argument"),
        ([*CONNECT, "--role", "leader"], "'leader' is not one of 'controlling', 'controlled'"),
        ([*CONNECT, "--ping", "0"], "is not in the range"),
        ([*CONNECT, "--ping", "often"], "'often' is not a valid float"),
        ([*CONNECT, "--count", "0", "--ping", "1"], "is not in the range"),
        ([*CONNECT, "--count", "5"], "--count counts pings: add --ping S"),
        ([*CONNECT, "--duration", "-1"], "is not in the range"),
        ([*CONNECT, "--duration", "0"], "is not in the range"),
        *(
            ([*arguments, option, value], f"'{value}' is not a finite number")
            for arguments, options in ((CONNECT, ("--ping", "--duration")), (["probe"], ("--timeout", "--every")))
            for option in options
            for value in ("nan", "NaN", "-nan")
        ),
        ([*CONNECT, "--ping", "inf"], "'inf' is not a finite number"),
        ([*CONNECT, "--duration", "1e999"], "'1e999' is not a finite number"),
        ([*CONNECT, "--duration", "-inf"], "is not in the range"),
        (["probe", "--timeout", "inf"], "is not in the range"),
        (["probe", "--every", "inf"], "is not in the range"),
        ([*CONNECT, "--in", "mine"], "--out and --in are the same file"),
        ([*CONNECT, "--in", "./mine"], "--out and --in are the same file"),
        ([*CONNECT, "--out", "a" * 300], "File name too long"),
        ([*CONNECT, "--port-range", "1-" + "1" * 5000], "1 ≤ LO ≤ HI ≤ 65535"),
        ([*CONNECT, "--server", "stun:" + "a" * 5000], "neither a host name nor an IP address"),
        ([*CONNECT, "--bind", "\x1b[2J"], r"--bind \x1b[2J: an IPv4 or IPv6 address is expected"),
        (["x" * 100_000], "No such command"),
        (["\x1b]0;title\x07\u202e"], "No such command"),
        ([*CONNECT, "--out", "missing/mine"], "the folder of missing/mine does not exist"),
        ([*CONNECT, "--out", "/dev/null"], "/dev/null is no file"),
        ([*CONNECT, "--bind", "here"], "--bind here: an IPv4 or IPv6 address is expected"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CLI contract: 2 wrong usage (one line: what, and how to mend it)."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("iceagent") and words in line
    assert line.isprintable() and len(line) < 700
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_the_same_file(
    link: Callable[[Path, Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each end writes one and reads the other's, whatever the two are called."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.touch()
    link(mine, theirs)
    assert cli.main(["connect", "--role", "controlling", "--out", str(mine), "--in", str(theirs)]) == 2
    assert "are the same file" in capsys.readouterr().err


def test_a_link_to_what_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    theirs.symlink_to(mine)
    assert cli.main(["connect", "--role", "controlling", "--out", str(mine), "--in", str(theirs)]) == 2
    assert "are the same file" in capsys.readouterr().err


def use(monkeypatch: pytest.MonkeyPatch, body: Callable[[], int]) -> None:
    """Put a command of ours in the table's only place."""

    @click.command()
    def command() -> int:
        return body()

    monkeypatch.setattr(cli, "COMMANDS", {"test": ("tests:command", "A test.")})
    monkeypatch.setattr(cli, "import_module", lambda name: type("Module", (), {"command": command}))


@pytest.mark.parametrize("code", [0, 3, 4, 130])
def test_a_command_returns_its_exit_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda: code)
    assert cli.main(["test"]) == code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("port 0 is wrong"), 2, "port 0 is wrong"),
        (UnsupportedPlatform("Linux only"), 2, "Linux only"),
        (click.UsageError("not so"), 2, "not so"),
        (click.ClickException("not so"), 2, "not so"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 130, ""),
        (ZeroDivisionError("oh"), 1, "ZeroDivisionError: oh"),
        (OSError("oh"), 1, "OSError: oh"),
    ],
)
def test_errors_and_their_exit_codes(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    use(monkeypatch, fail)
    assert cli.main(["test"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert ("Traceback" in captured.err) is (code == 1)


def test_a_bug_does_not_speak_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback stays in lines; what a stranger put into the message is escaped."""

    def fail() -> int:
        raise ZeroDivisionError("\x1b[2J\u202e")

    use(monkeypatch, fail)
    assert cli.main(["test"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == r"ZeroDivisionError: \x1b[2J\u202e"


@pytest.mark.parametrize(("encoding", "written"), [("latin-1", b"\\u2192 \xf6\n"), ("ascii", b"\\u2192 \\xf6\n")])
def test_a_stdout_that_is_not_utf8(encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONIOENCODING, or an old locale: what cannot be written is written as an escape, and the command goes on."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))

    def speak() -> int:
        print("→ ö")
        return 3

    use(monkeypatch, speak)
    assert cli.main(["test"]) == 3
    assert raw.getvalue() == written


# --- run ---------------------------------------------------------------------------------------------------------


async def interrupted_by(number: signal.Signals, cleaned: list[str]) -> int:
    try:
        os.kill(os.getpid(), number)
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
    finally:
        cleaned.append("cleaned up")


@pytest.mark.parametrize(
    ("number", "options", "code"),
    [
        (signal.SIGINT, {}, 130),
        (signal.SIGTERM, {}, 130),
        (signal.SIGINT, {"sigterm_code": 0}, 130),
        (signal.SIGTERM, {"sigterm_code": 0}, 0),
        (signal.SIGINT, {"sigterm_code": lambda: 4}, 130),
        (signal.SIGTERM, {"sigterm_code": lambda: 4}, 4),
    ],
)
def test_a_signal_cancels(number: signal.Signals, options: dict[str, Any], code: int) -> None:
    """CLI contract: Ctrl-C ends cleanly; 130 interrupted. Also in the background of a script, which ignores SIGINT."""
    cleaned: list[str] = []
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(interrupted_by(number, cleaned), **options) == code
    finally:
        after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGINT, former)
    assert cleaned == ["cleaned up"]
    assert after == (signal.default_int_handler, signal.SIG_DFL)


def test_a_command_that_makes_the_best_of_its_cancellation() -> None:
    """It was interrupted all the same."""

    async def main() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return 0

    assert run(main()) == 130


@pytest.mark.parametrize(
    ("gap_s", "second", "ended"),
    [
        # coreutils' timeout -s INT: to its child, and then to the child's whole group.
        (0.0005, signal.SIGINT, []),
        (ECHO_S - 0.001, signal.SIGINT, []),
        (0.0005, signal.SIGTERM, []),
        (ECHO_S, signal.SIGINT, [130]),
        (ECHO_S, signal.SIGTERM, [130]),
    ],
)
def test_a_second_signal_ends_at_once_when_it_is_no_copy_of_the_first(
    gap_s: float, second: signal.Signals, ended: list[int]
) -> None:
    """The first one's cleaning up is not broken off by a copy of it: there is a goodbye, and a summary."""
    time_s, codes, cleaned = [0.0], list[int](), list[str]()
    supervisor = Supervisor(0, now=lambda: time_s[0], end_now=codes.append)

    async def main() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.get_running_loop().create_future()
        finally:
            time_s[0] += gap_s
            os.kill(os.getpid(), second)
            # Behind the loop's handling of the second one.
            heard = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, heard.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await heard.wait()
            loop.remove_signal_handler(signal.SIGUSR1)
            cleaned.append("summary")
        return 0

    try:
        with asyncio.Runner() as runner:
            assert runner.run(supervisor.run(main())) == 130
    finally:
        supervisor.release()
    assert (cleaned, codes) == (["summary"], ended)


def test_results_and_errors_go_through() -> None:
    async def three() -> int:
        return 3

    async def wrong() -> int:
        raise UsageError("wrong")

    assert run(three()) == 3
    with pytest.raises(UsageError, match="wrong"):
        run(wrong())


# --- the summary -------------------------------------------------------------------------------------------------

COUNTS = PayloadCounts(sent=1, received=2, lost=3, duplicated=4, longest_gap_ms=5.0, answered=6, returned=7, other=8)


@pytest.mark.parametrize(
    ("kind", "failed", "code"), [("direct", False, 0), ("relay", False, 3), ("direct", True, 4), (None, True, 4)]
)
def test_the_exit_code_of_a_connection(kind: str | None, failed: bool, code: int) -> None:
    """CLI contract: 0 on a direct path, 3 only through a relay, 4 no path."""
    assert exit_code(Summary(connected_ms=1.0, switches=0, kind=kind, failed=failed, payload=COUNTS)) == code


def test_the_fields_of_the_summary() -> None:
    """CLI contract: connected_ms, sent, received, lost, duplicated, longest_gap_ms, switches, kind."""
    summary = Summary(connected_ms=1.0, switches=9, kind="direct", failed=False, payload=COUNTS)
    found = summary_fields(summary)
    assert {name: found[name] for name in (field.name for field in fields(COUNTS))} == {
        "sent": 1,
        "received": 2,
        "lost": 3,
        "duplicated": 4,
        "longest_gap_ms": 5.0,
        "answered": 6,
        "returned": 7,
        "other": 8,
    }
    assert (found["connected_ms"], found["switches"], found["kind"]) == (1.0, 9, "direct")
