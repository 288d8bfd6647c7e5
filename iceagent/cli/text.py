"""What becomes of a text before it is shown?

Names of interfaces and servers, a peer's lines and what a router calls itself come from elsewhere. A terminal would
obey the control characters in them (C0, C1) and draw what it is told backwards (bidirectional controls), so everything
that is not printable in the sense of :meth:`str.isprintable` is shown as an escape. A stream that is not UTF-8 gets
escapes for what it cannot write, never an exception.
"""

from __future__ import annotations

import codecs
import io
import json
from typing import Any

__all__ = ["escaped", "escaped_lines", "is_utf8", "json_line", "shortened", "tolerate"]


def escaped(text: str) -> str:
    r"""``text`` on one line: ``\n``, ``\x1b`` or ``\u202e`` in the place of what cannot be printed."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def escaped_lines(text: str) -> str:
    """As :func:`escaped`, but the ends of lines stay."""
    return "\n".join(map(escaped, text.split("\n")))


def json_line(value: Any, *, ascii_only: bool = False, **options: Any) -> str:
    """JSON on one line, nothing in it that cannot be printed; it reads back as ``value``.

    Args:
        ascii_only: for a stream that is not UTF-8.
        options: further ones of :func:`json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=ascii_only, **options)
    if text.isprintable():
        return text
    # json.dumps itself escapes C0 only. All that is left stands inside of strings.
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def shortened(text: str, limit: int = 40) -> str:
    """At most ``limit`` characters of a text, and ``…`` where more are left out."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def is_utf8(stream: object) -> bool:
    """Whether a stream writes every character as it is; so does one without an encoding, which keeps text."""
    encoding = getattr(stream, "encoding", None)
    return encoding is None or codecs.lookup(encoding).name == "utf-8"


def tolerate(stream: object) -> None:
    """Have a stream write an escape for what its encoding lacks, instead of raising :class:`UnicodeEncodeError`."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
