"""How does a command show what happens?

Results go to stdout through :class:`Output`: JSON Lines where that is asked for (``{"t": …, "event": …, …}``), else one
plain line per event, with its values or in words, coloured on a terminal. Logs go to stderr (:func:`configure_logs`).
With ``--redact`` both hide IP addresses behind names that stay the same for one run, so that a report can still be
followed. What a terminal would obey instead of showing is escaped in all of them (``text.py``).
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO, cast

from iceagent.candidate import Candidate
from iceagent.cli.text import escaped, escaped_lines, is_utf8, json_line, tolerate
from iceagent.net.address import TransportAddress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Output", "Redactor", "configure_logs", "plain"]

# What could be an IP address: at least one dot or two colons among digits; ipaddress has the last word.
_MAYBE_ADDRESS = re.compile(
    r"(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4})?|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w])"
)
# By the whole name, or else by the noun.
_COLOURS = {
    "base": "yellow",
    "candidate": "dim",
    "gathering": "dim",
    "ice": "yellow",
    "machine": "yellow",
    "network": "yellow",
    "path": "green",
    "path.diagnosed": "yellow",
    "path.doubted": "yellow",
    "path.lost": "red",
    "peer": "bold",
    "ping": "dim",
    "relay": "yellow",
    "restart": "red",
    "server": "yellow",
    "state": "cyan",
    "summary": "bold",
}


class Redactor:
    """Replaces IP addresses in texts by names such as ``ipv4-1f2e3d``: the same address, the same name, for one run."""

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = os.urandom(16) if salt is None else salt
        self._name = lru_cache(maxsize=4096)(self._make_name)

    def __call__(self, text: str) -> str:
        return _MAYBE_ADDRESS.sub(lambda found: self._name(found[0]), text)

    def _make_name(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text
        digest = hashlib.blake2s(str(address).encode(), key=self._salt, digest_size=3).hexdigest()
        return f"ipv{address.version}-{digest}"


class Output:
    """What a command writes to stdout.

    Args:
        as_json: JSON Lines instead of text.
        logs_as_json: as for :func:`configure_logs`.
        verbosity: the same.
        redactor: goes over every text that is shown.
        stream: instead of stdout.
        clock: seconds; ``t`` counts from the construction on.

    Attributes:
        as_json: JSON Lines were asked for; nothing else may be written to stdout.
        logs_as_json: the same of stderr.
        is_terminal: a person watches, and there may be colour and animation.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        logs_as_json: bool = False,
        verbosity: int = 0,
        redactor: Redactor | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.as_json = as_json
        self.logs_as_json = logs_as_json
        self._stream = sys.stdout if stream is None else stream
        tolerate(self._stream)
        self.is_terminal = not as_json and self._stream.isatty()
        # Now: what rich puts in its place during a live view may know neither.
        self._is_stderr_terminal = sys.stderr.isatty()
        self._is_one_place = (self.is_terminal and self._is_stderr_terminal) or _is_one_file(self._stream, sys.stderr)
        self._verbosity = verbosity
        self._redactor = redactor
        self._clock = clock
        self._started = clock()
        self._console: Console | None = None
        self._start_live: Callable[[], None] | None = None

    @property
    def logs_repeat(self) -> bool:
        """Whether a log line of what is a result as well would only say it twice: both are text, on one terminal or in
        one file (``2>&1 | tee``), and nobody has asked for logs. With ``-v`` they are complete.
        """
        return self._is_one_place and not (self.as_json or self.logs_as_json or self._verbosity)

    @property
    def console(self) -> Console:
        """rich's view of stdout: for tables and live views; not where :attr:`as_json` is set."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        return self._console

    def event(self, event: str, /, **fields: object) -> None:
        """Tell that something happened.

        Args:
            event: ``noun.verb``.
            fields: values that :func:`plain` knows. Times in milliseconds end in ``_ms``.
        """
        self._tell(event, {name: self._redact(plain(value)) for name, value in fields.items()})

    def change(self, event: str, words: str, /, **fields: object) -> None:
        """As :meth:`event`; a person gets the words instead of the fields."""
        values = {name: self._redact(plain(value)) for name, value in fields.items()}
        self._tell(event, values, self.redacted(words))

    def verbatim(self, event: str, /, **fields: object) -> None:
        """As :meth:`event`, for what is useless without its addresses: never redacted."""
        self._tell(event, {name: plain(value) for name, value in fields.items()})

    def text(self, text: str) -> None:
        """Write text for a person, one or several lines; nothing where JSON was asked for. Not redacted."""
        if not self.as_json:
            self._write_styled(escaped_lines(text), "")

    def notice(self, name: str, /, text: str, **fields: object) -> None:
        """Tell a person something on stderr, whatever the verbosity: a log line where logs are JSON, else plain text.

        Args:
            name: ``noun.verb``, of the log line.
            text: the whole of it, one line.
            fields: what else the log line has; values that :func:`plain` knows.
        """
        if self.logs_as_json:
            import structlog

            values = {key: plain(value) for key, value in fields.items()}
            structlog.get_logger("iceagent").warning(name, text=text, **values)
        else:
            print(escaped(self.redacted(text)), file=sys.stderr, flush=True)

    def prompt(self, text: str) -> None:
        """Tell a person at the terminal what to do now: on stderr, and nowhere if that is no terminal or is JSON."""
        if self._is_stderr_terminal and not self.logs_as_json:
            print(escaped(text), file=sys.stderr, flush=True)

    @contextmanager
    def live(self, view: Callable[[], RenderableType], *, is_due: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """While this lasts, keep ``view()`` below the events, redrawn four times a second; only on a terminal.

        Args:
            is_due: asked now and at every event; the view is not shown before it is true.
        """
        if not self.is_terminal:
            yield
            return
        from rich.live import Live

        # What goes to stderr has to pass by the view where both are on the terminal, and only there.
        live = Live(
            console=self.console,
            get_renderable=view,
            refresh_per_second=4,
            transient=True,
            redirect_stderr=self._is_stderr_terminal,
        )

        def start() -> None:
            if is_due():
                live.start()

        self._start_live = start
        try:
            start()
            yield
        finally:
            self._start_live = None
            live.stop()

    def redacted(self, text: str) -> str:
        """``text``, without addresses if that was asked for."""
        return text if self._redactor is None else self._redactor(text)

    def _tell(self, event: str, values: dict[str, Any], words: str | None = None) -> None:
        t = round(self._clock() - self._started, 6)
        if self.as_json:
            self._write(json_line({"t": t, "event": event, **values}, ascii_only=not is_utf8(self._stream)))
        else:
            line = escaped(f"{t:9.3f}  {event}{_as_words(values) if words is None else f'  {words}'}")
            self._write_styled(line, _COLOURS.get(event) or _COLOURS.get(event.partition(".")[0], ""))

    def _redact(self, value: Any) -> Any:
        return value if self._redactor is None else _mapped(self._redactor, value)

    def _write_styled(self, line: str, style: str) -> None:
        if self.is_terminal:
            from rich.text import Text

            self._guarded(lambda: self.console.print(Text(line, style=style)))
            if self._start_live is not None:
                self._start_live()
        else:
            self._write(line)

    def _write(self, line: str) -> None:
        def write() -> None:
            self._stream.write(line + "\n")
            self._stream.flush()

        self._guarded(write)

    def _guarded(self, write: Callable[[], None]) -> None:
        """A reader that went away (``… | head``), or a full disk, interrupts the command, as Ctrl-C would."""
        try:
            write()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                print(f"standard output cannot be written: {error.strerror}", file=sys.stderr, flush=True)
            self._stream = cast(TextIO, _Nowhere())
            self._console = None
            signal.raise_signal(signal.SIGINT)


def plain(value: Any) -> Any:
    """The JSON form of a value: addresses as text, enums by value, milliseconds to the microsecond.

    Raises:
        TypeError: the value has no such form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, TransportAddress):
        return str(value)
    if isinstance(value, Candidate):
        return value.to_sdp()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} has no JSON form here")


def _as_words(values: Mapping[str, Any]) -> str:
    return "".join(f" {name}={_as_word(value)}" for name, value in values.items())


def _as_word(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "(" + _as_words(value).strip() + ")"
    if isinstance(value, list):
        return "[" + ", ".join(_as_word(item) for item in value) + "]"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) and (not text or " " in text) else text


def _is_one_file(one: TextIO, other: TextIO) -> bool:
    """Whether two streams write to one terminal, file or pipe."""
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):
        # One of them is none of the system's, or is closed.
        return False


class _Nowhere(io.TextIOBase):
    """Takes what nobody reads any more."""

    def write(self, text: str) -> int:
        return len(text)


class _Stderr:
    """stderr as it is at the moment: a live view takes its place for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logs(*, verbosity: int = 0, as_json: bool = False, redactor: Redactor | None = None) -> None:
    """Say where the log lines of ``iceagent/logs.py`` go: stderr, as text or JSON Lines.

    Args:
        verbosity: 0 warnings, 1 (``-v``) what happens, 2 (``-vv``) every packet that matters.
        as_json: JSON Lines.
        redactor: goes over every text.
    """
    import structlog

    def redact(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return line if redactor is None else {key: _mapped(redactor, value) for key, value in line.items()}

    def escape(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {key: _mapped(escaped, value) for key, value in line.items()}

    def as_text(line: Mapping[str, Any], **options: Any) -> str:
        return json_line(line, ascii_only=not is_utf8(sys.stderr), **options)

    last: list[Any] = [structlog.processors.JSONRenderer(as_text)]
    if not as_json:
        last = [escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[min(verbosity, len(_LEVELS) - 1)]),
        logger_factory=structlog.WriteLoggerFactory(_Stderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    """``value`` with every text in it changed; of the forms that :func:`plain` makes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(change, item) for item in value]
    return value
