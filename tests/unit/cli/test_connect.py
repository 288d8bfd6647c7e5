"""What ``iceagent connect`` says of what happens: once, and why there is nothing."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.text import Text

from iceagent.cli.connect import Teller
from iceagent.cli.output import Output, configure_logs
from iceagent.events import GatheringDone, PacketDropped, RelayLost, RestartAdvised, ServerFailed
from iceagent.logs import describe
from iceagent.net.address import TransportAddress

SERVER = "turn:192.0.2.1"
FAILED = ServerFailed(server=SERVER, base=None, reason="udp 192.0.2.1:3478: 401 wrong")
DONE = GatheringDone(count=0, elapsed_ms=1.0)
DROPPED = PacketDropped(
    base=TransportAddress("192.0.2.9", 1), source=TransportAddress("192.0.2.8", 2), reason="noise", size=1
)

WARNINGS = (
    FAILED,
    RelayLost(server=SERVER, relayed=(), reason="437 mismatch"),
    RestartAdvised(component=1, reason="no path answers"),
)


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Screen:
    """What a person has before them, and a teller.

    Args:
        out: stdout is a terminal.
        err: stderr is one.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        out: bool = True,
        err: bool = True,
        logs_as_json: bool = False,
        verbosity: int = 0,
        is_relay_only: bool = True,
        as_json: bool = False,
    ) -> None:
        self.out, self.err = Stream(is_terminal=out), Stream(is_terminal=err)
        monkeypatch.setattr(sys, "stderr", self.err)
        configure_logs(verbosity=verbosity, as_json=logs_as_json)
        self.output = Output(stream=self.out, logs_as_json=logs_as_json, verbosity=verbosity, as_json=as_json)
        self.tell = Teller(self.output, is_relay_only=is_relay_only)

    def counts(self, text: str) -> tuple[int, int]:
        """How often it stands on stdout, and on stderr."""
        return self.out.getvalue().count(text), self.err.getvalue().count(text)


@pytest.mark.parametrize("is_live", [False, True])
def test_on_one_terminal_it_is_told_once(is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also below the status line, during which stderr is rich's, which says that it is no terminal."""
    screen = Screen(monkeypatch)
    with screen.output.live(lambda: Text("status")) if is_live else nullcontext():
        for event in WARNINGS:
            screen.tell(event)
        # What is no result is a log line as before.
        screen.tell(DONE)
    shown = screen.out.getvalue() + screen.err.getvalue()
    assert [shown.count(describe(event).name) for event in WARNINGS] == [1] * len(WARNINGS)
    assert shown.count("gathering.empty") == 1 and shown.count("warning") == 1


@pytest.mark.parametrize(("is_one", "count"), [(True, 1), (False, 2)], ids=["2>&1", "2>errors"])
def test_in_one_file_it_is_told_once(is_one: bool, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a pipe, to tee say; who keeps them apart finds all logs in their place."""
    with (tmp_path / "told").open("a") as out, (tmp_path / ("told" if is_one else "errors")).open("a") as err:
        monkeypatch.setattr(sys, "stderr", err)
        configure_logs()
        tell = Teller(Output(stream=out), is_relay_only=True)
        tell(FAILED)
        tell(DONE)
    said = "".join(file.read_text() for file in tmp_path.iterdir())
    assert (said.count("server.failed"), said.count("gathering.empty")) == (count, 1)


@pytest.mark.parametrize("is_live", [False, True])
def test_whoever_asks_for_logs_gets_all_of_them(is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLI contract: "`-v` / `-vv` more logs"."""
    screen = Screen(monkeypatch, verbosity=2)
    with screen.output.live(lambda: Text("status")) if is_live else nullcontext():
        screen.tell(FAILED)
        screen.tell(DROPPED)
    shown = screen.out.getvalue() + screen.err.getvalue()
    assert shown.count("server.failed") == 2 and shown.count("packet.dropped") == 1


def test_beside_json_logs_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLI contract: "Results on stdout, logs on stderr"; stdout is a program's there."""
    screen = Screen(monkeypatch, as_json=True)
    screen.tell(FAILED)
    assert screen.counts("server.failed") == (1, 1)


@pytest.mark.parametrize(
    ("out", "err", "logs_as_json"), [(False, True, False), (True, False, False), (True, True, True)]
)
def test_who_reads_one_of_both_misses_nothing(
    out: bool, err: bool, logs_as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(monkeypatch, out=out, err=err, logs_as_json=logs_as_json)
    screen.tell(FAILED)
    assert screen.counts("server.failed") == (1, 1)


def test_where_relays_alone_are_wanted_the_servers_say_why_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    screen.tell(FAILED)
    screen.tell(FAILED)
    screen.tell(DONE)
    said = screen.err.getvalue()
    assert f"no server gave a relayed address: {SERVER}: udp 192.0.2.1:3478: 401 wrong'" in said
    assert said.count("gathering.empty") == 1 and "--loopback" not in said


def test_a_sentence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    for number in range(100):
        screen.tell(ServerFailed(server=SERVER, base=None, reason=f"reason {number}"))
    screen.tell(DONE)
    said = screen.err.getvalue()
    assert "reason 7" in said and "reason 8" not in said


def test_without_a_word_of_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    screen.tell(DONE)
    assert "no server gave a relayed address: none has answered so far" in screen.err.getvalue()


def test_where_everything_is_wanted_it_is_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, is_relay_only=False)
    screen.tell(FAILED)
    screen.tell(DONE)
    assert "no address to gather on" in screen.err.getvalue()
