"""What do two peers tell each other before checks can begin?

Lines of RFC 8839 attributes without m= lines: ``a=ice-ufrag:``, ``a=ice-pwd:``, ``a=ice-options:``, ``a=ice-pacing:``,
``a=ice-lite``, ``a=candidate:…`` and ``a=end-of-candidates``. The candidates that stand after ``end-of-candidates`` are
late ones. Unknown lines are ignored (RFC 8866, 5), and so are candidates of a transport, type or kind of address that
is not known here (RFC 8839, 5.1); what is known and wrong is refused with the line and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.errors import InvalidDescription, UnsupportedCandidate

__all__ = ["Description"]

# A description with more candidates than this is an attack or a mistake; checks use 100 pairs.
MAX_CANDIDATES = 1000
# RFC 8839, 5.5: pacing-value = 1*10DIGIT, in milliseconds.
_MAX_PACING_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One side of the exchange.

    Attributes:
        credentials: this side's.
        options: ``ice-options`` tokens, e.g. ``trickle``, ``ice2``, ``renomination``.
        pacing_ms: the Ta this side wishes, milliseconds; ``None``: the default of 50 (RFC 8839, 5.5).
        lite: this side is a lite agent.
        candidates: in order.
        complete: no more candidates of this gathering will come (``end-of-candidates``).
        ignored: candidate lines that were read and cannot be used, in order; with ``candidates`` at most
            ``MAX_CANDIDATES``. They are not written.
    """

    credentials: Credentials
    options: tuple[str, ...] = ()
    pacing_ms: int | None = None
    lite: bool = False
    candidates: tuple[Candidate, ...] = ()
    complete: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def trickles(self) -> bool:
        """Whether this side takes and sends candidates later (RFC 8838, 3)."""
        return "trickle" in self.options

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read a description.

        Raises:
            InvalidDescription: credentials are missing, repeated with another value, or a line is wrong.
            InvalidCandidate: a candidate line is malformed.
        """
        values: dict[str, str] = {}
        lines: list[str] = []
        for line in text.splitlines():
            name, _, value = line.strip().removeprefix("a=").partition(":")
            if name == "candidate":
                if len(lines) == MAX_CANDIDATES:
                    raise InvalidDescription(f"more than {MAX_CANDIDATES} candidates")
                lines.append(line.strip())
            elif name in _KNOWN and values.setdefault(name, value) != value:
                raise InvalidDescription(f"{name} stands twice, with different values")
        for name in ("ice-ufrag", "ice-pwd"):
            if name not in values:
                raise InvalidDescription(f"the line a={name}: is missing")
        candidates, ignored = _candidates(lines)
        return cls(
            credentials=Credentials(ufrag=values["ice-ufrag"], password=values["ice-pwd"]),
            options=tuple(values.get("ice-options", "").split()),
            pacing_ms=_pacing(values.get("ice-pacing")),
            lite="ice-lite" in values,
            candidates=candidates,
            complete="end-of-candidates" in values,
            ignored=ignored,
        )

    def to_sdp(self) -> str:
        """The lines, each ended by a newline."""
        lines = [f"a=ice-ufrag:{self.credentials.ufrag}", f"a=ice-pwd:{self.credentials.password}"]
        if self.options:
            lines.append("a=ice-options:" + " ".join(self.options))
        if self.pacing_ms is not None:
            lines.append(f"a=ice-pacing:{self.pacing_ms}")
        if self.lite:
            lines.append("a=ice-lite")
        lines += ["a=" + candidate.to_sdp() for candidate in self.candidates]
        if self.complete:
            lines.append("a=end-of-candidates")
        return "\n".join(lines) + "\n"


_KNOWN = frozenset({"ice-ufrag", "ice-pwd", "ice-options", "ice-pacing", "ice-lite", "end-of-candidates"})


def _candidates(lines: list[str]) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidates, and the lines of those that are not supported here: one newer line costs nobody the session."""
    candidates: list[Candidate] = []
    ignored: list[str] = []
    for line in lines:
        try:
            candidates.append(Candidate.parse(line))
        except UnsupportedCandidate:
            ignored.append(line)
    return tuple(candidates), tuple(ignored)


def _pacing(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_PACING_DIGITS):
        raise InvalidDescription(f"ice-pacing {text[:20]!r} is not a number of milliseconds")
    return int(text)
