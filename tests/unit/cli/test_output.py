"""What commands write: JSON Lines and plain lines on stdout, logs on stderr, and no address where none is wanted."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from iceagent.candidate import Candidate, CandidateType
from iceagent.cli.output import Output, Redactor, configure_logs, plain
from iceagent.net.address import TransportAddress


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def output(*, as_json: bool, redactor: Redactor | None = None) -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    ticks = iter([100.0, 101.25, 102.5])
    return Output(as_json=as_json, redactor=redactor, stream=stream, clock=lambda: next(ticks)), stream


def test_json_lines() -> None:
    """CLI contract: one object a line, each {"t": seconds since start, "event": "noun.verb", …}."""
    out, stream = output(as_json=True)
    out.event("path.selected", local=TransportAddress("2001:db8::1", 5), rtt_ms=1.23456789, old=None)
    out.event("summary", kinds=[CandidateType.HOST], text="ö\n")
    out.text("for a person")
    lines = stream.getvalue().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"t": 1.25, "event": "path.selected", "local": "[2001:db8::1]:5", "rtt_ms": 1.235, "old": None},
        {"t": 2.5, "event": "summary", "kinds": ["host"], "text": "ö\n"},
    ]


def test_plain_lines() -> None:
    """Without a terminal there is no colour and no animation."""
    out, stream = output(as_json=False)
    out.event("path.selected", local={"type": "host", "address": "192.0.2.1:5"}, reason="a better one", rtt_ms=None)
    with out.live(lambda: pytest.fail("no terminal, no view")):
        out.text("words")
    assert not out.is_terminal
    assert stream.getvalue() == (
        '    1.250  path.selected local=(type=host address=192.0.2.1:5) reason="a better one" rtt_ms=-\nwords\n'
    )


def test_what_has_no_json_form_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        plain({"socket": object()})


def test_a_candidate_is_its_line() -> None:
    line = "candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host"
    assert plain((Candidate.parse(line),)) == [line]


HOSTILE = "\x1b[2J\x9b\u202e\n\udcff"


def test_nothing_speaks_to_the_terminal() -> None:
    """Names of interfaces and servers, reasons of peers: what cannot be printed is escaped, and one line stays one."""
    out, stream = output(as_json=False)
    out.event("x.y", bare=HOSTILE, spaced=f"a {HOSTILE}", deep=[{HOSTILE: HOSTILE}])
    out.text(f"one {HOSTILE}two")
    event, *lines = stream.getvalue().splitlines()
    assert event.isprintable() and r"bare=\x1b[2J\x9b\u202e\n\udcff" in event and "a " in event
    assert lines == [r"one \x1b[2J\x9b\u202e", r"\udcfftwo"]


def test_json_says_the_same_without_speaking_to_the_terminal() -> None:
    out, stream = output(as_json=True)
    out.event("x.y", text=HOSTILE)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable() and json.loads(line)["text"] == HOSTILE


def test_nothing_speaks_to_a_real_terminal_either() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    out = Output(stream=stream)
    assert out.is_terminal
    out.event("x.y", bare=HOSTILE)
    assert r"bare=\x1b[2J\x9b\u202e\n\udcff" in stream.getvalue()
    assert not any(each in stream.getvalue() for each in ("\x1b[2J", "\x9b", "\u202e"))


@pytest.mark.parametrize(
    ("encoding", "plainly"), [("latin-1", b'text="\\u2192 \xf6"\n'), ("ascii", b'text="\\u2192 \\xf6"\n')]
)
def test_a_stream_that_is_not_utf8(encoding: str, plainly: bytes) -> None:
    """Our own reasons have arrows in them. JSON is ASCII then, so that it stays JSON."""
    for as_json in (False, True):
        raw = io.BytesIO()
        out = Output(as_json=as_json, stream=io.TextIOWrapper(raw, encoding=encoding))
        out.event("x.y", text="→ ö")
        if as_json:
            assert json.loads(raw.getvalue().decode("ascii"))["text"] == "→ ö"
        else:
            assert raw.getvalue().endswith(plainly)


# --- redaction ---------------------------------------------------------------------------------------------------

ADDRESSES = ["192.0.2.1", "2001:db8::1", "fe80::1", "::1", "64:ff9b::192.0.2.33", "1:2:3:4:5:6:7:8", "2001:DB8::"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "from {}.",
        "({}, {})",
        "[{}]:5000",
        "stun:[{}]:3478",
        "candidate:1 1 udp 1 {} 5000 typ srflx raddr {} rport 9",
        '"{}"',
        "{}, or so",
    ],
)
def test_no_address_remains(address: str, text: str) -> None:
    shown = Redactor(b"salt")(text.replace("{}", address))
    assert address not in shown
    assert "db8" not in shown and "192" not in shown


def test_an_ipv4_address_with_a_port() -> None:
    shown = Redactor(b"salt")("stun:192.0.2.1:3478")
    assert shown.startswith("stun:ipv4-") and shown.endswith(":3478")


@pytest.mark.parametrize("text", ["12:30:45", "1.2.3", "version 0.1.0", "a=ice-pwd:Ab+/", "300.0.0.1", "12.5 ms"])
def test_what_is_no_address_stays(text: str) -> None:
    assert Redactor(b"salt")(text) == text


def test_the_same_address_has_the_same_name_for_one_run() -> None:
    one, other = Redactor(), Redactor()
    assert one("2001:db8::1") == one("2001:0db8:0::1") != one("2001:db8::2")
    assert one("192.0.2.1").startswith("ipv4-")
    assert one("192.0.2.1") != other("192.0.2.1")


def test_an_event_is_redacted_all_through() -> None:
    out, stream = output(as_json=True, redactor=Redactor(b"salt"))
    out.event("x.y", address=TransportAddress("192.0.2.1", 5), deep=[{"at": "2001:db8::1"}], count=3)
    out.verbatim("x.z", sdp="192.0.2.1")
    first, second = stream.getvalue().splitlines()
    assert "192.0.2.1" not in first and "db8" not in first
    assert json.loads(first)["address"].endswith(":5")
    assert json.loads(second)["sdp"] == "192.0.2.1"


# --- logs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verbosity", "names"),
    [(0, ["warn"]), (1, ["happen", "warn"]), (2, ["look", "happen", "warn"]), (9, ["look", "happen", "warn"])],
)
def test_logs_go_to_stderr(verbosity: int, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(verbosity=verbosity, as_json=True)
    log = structlog.get_logger("iceagent")
    log.debug("look")
    log.info("happen", size=3)
    log.warning("warn")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(line)["event"] for line in captured.err.splitlines()] == names


def test_logs_are_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(redactor=Redactor(b"salt"))
    structlog.get_logger("iceagent").warning("server.failed", server="stun:192.0.2.1", ends={"at": ["192.0.2.2"]})
    captured = capsys.readouterr()
    assert "server.failed" in captured.err
    assert "192.0.2" not in captured.err


@pytest.mark.parametrize("as_json", [False, True])
def test_logs_do_not_speak_to_the_terminal(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(as_json=as_json)
    structlog.get_logger("iceagent").warning("server.failed", server="\x1b[2J", reason=f"a {HOSTILE}", ends=[HOSTILE])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert not as_json or json.loads(line)["ends"] == [HOSTILE]


def test_logs_on_a_stream_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace"))
    configure_logs(as_json=True)
    structlog.get_logger("iceagent").warning("x.y", reason="→ ö")
    sys.stderr.flush()
    assert json.loads(raw.getvalue().decode("ascii"))["reason"] == "→ ö"


def test_a_reader_that_went_away_interrupts(tmp_path: Path) -> None:
    """As ``iceagent connect … | head -1`` does."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    out = Output(as_json=True, stream=Gone())
    with pytest.raises(KeyboardInterrupt):
        out.event("x.y")
    out.event("x.y")
