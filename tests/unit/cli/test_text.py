"""Texts of strangers on our terminal: shown, not obeyed; and streams that cannot write every character."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.cli.text import escaped, escaped_lines, is_utf8, json_line, shortened, tolerate

# Any code point, surrogates included: what surrogateescape makes of a file's name.
ANY = st.text(st.characters())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain → ö 漢", "plain → ö 漢"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x00\x07\x7f", r"\x00\x07\x7f"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202egpj\u2066\u200f", r"\u202egpj\u2066\u200f"),
        ("\u2028\ufeff\u00a0", r"\u2028\ufeff\xa0"),
        ("\udcff\U000e0001", r"\udcff\U000e0001"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    """C0, C1, bidirectional controls, other ends of lines, invisible ones, surrogates."""
    assert escaped(text) == shown


def test_lines_stay_lines() -> None:
    assert escaped_lines("one\n\x1btwo\r\n") == "one\n\\x1btwo\\r\n"


@given(ANY)
def test_whatever_comes_is_one_printable_line(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped(text) == text or not text.isprintable()


@given(st.dictionaries(ANY, st.lists(ANY)), st.booleans())
def test_json_is_one_printable_line_and_reads_back(value: dict[str, list[str]], ascii_only: bool) -> None:
    line = json_line(value, ascii_only=ascii_only)
    assert line.isprintable() and (line.isascii() or not ascii_only)
    # Two surrogates that happen to be neighbours are one character in JSON.
    assert json.loads(line) == json.loads(json.dumps(value))


def test_json_keeps_what_can_be_printed() -> None:
    assert json_line({"a": "→ \x1b\x9b\u202e\U000e0001"}) == '{"a": "→ \\u001b\\u009b\\u202e\\udb40\\udc01"}'
    assert json_line({"a": "→"}, ascii_only=True) == '{"a": "\\u2192"}'


def test_shortened() -> None:
    assert shortened("x" * 40) == "x" * 40
    assert shortened("x" * 41) == "x" * 40 + "…"
    assert shortened("abc", 2) == "ab…"


@pytest.mark.parametrize(
    ("encoding", "answer"), [("utf-8", True), ("UTF8", True), ("latin-1", False), ("ascii", False), ("cp1252", False)]
)
def test_is_utf8(encoding: str, answer: bool) -> None:
    assert is_utf8(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is answer


def test_a_stream_without_an_encoding_takes_all() -> None:
    assert is_utf8(io.StringIO())
    tolerate(io.StringIO())
    tolerate(None)


@pytest.mark.parametrize(("encoding", "written"), [("latin-1", b"\\u2192 \xf6"), ("ascii", b"\\u2192 \\xf6")])
def test_a_stream_writes_what_it_can(encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    tolerate(stream)
    stream.write("→ ö")
    stream.flush()
    assert raw.getvalue() == written
