"""What commands write: JSON Lines and plain lines on stdout, logs on stderr, and no address where none is wanted."""

from __future__ import annotations

import io
import json
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


def test_a_reader_that_went_away_interrupts(tmp_path: Path) -> None:
    """As ``iceagent connect … | head -1`` does."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    out = Output(as_json=True, stream=Gone())
    with pytest.raises(KeyboardInterrupt):
        out.event("x.y")
    out.event("x.y")
