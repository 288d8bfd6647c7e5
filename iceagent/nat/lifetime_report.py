"""What is told of the lifetime of a binding, while it is measured and in the end? See ``lifetime.py``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from iceagent.nat.silences import Bracket
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event

__all__ = [
    "LifetimeFailed",
    "LifetimeMeasured",
    "LifetimeReport",
    "SilenceProbed",
    "SocketsDone",
    "SocketsWanted",
    "Use",
    "verdict",
]


class Use(Enum):
    """What happens on a binding before its silence, or instead of one."""

    ANSWERED = "answered"
    UNANSWERED = "unanswered"
    ONE_WAY = "one-way keepalive"
    KEPT = "answered keepalive"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeReport:
    """What was measured.

    Attributes:
        answered: lifetime after a conversation.
        unanswered: lifetime where nothing ever came in.
        one_way_refresh: whether packets that nobody answers keep a binding; ``None``: not known.
        evidence: why so, a clause.
        mapped: where the far end saw the second socket.
    """

    answered: Bracket
    unanswered: Bracket
    one_way_refresh: bool | None
    evidence: str
    mapped: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketsWanted(Event):
    """The shell is to open so many fresh sockets, and to give them to :meth:`LifetimeProbe.add`."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketsDone(Event):
    """These sockets are not needed any more."""

    bases: tuple[TransportAddress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceProbed(Event):
    """A binding was looked at.

    Attributes:
        use: what it was used for.
        silence_s: seconds since its last packet; for those that are kept, since the last one that came in.
        is_alive: ``None``: the far end did not answer at all.
        bracket: what is known of a lifetime of this use by now; of keepalives nothing.
    """

    use: Use
    silence_s: float
    is_alive: bool | None
    bracket: Bracket | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeMeasured(Event):
    """The end."""

    report: LifetimeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeFailed(Event):
    """The end: it cannot be measured; ``reason``: a clause."""

    reason: str


def verdict(is_one_way_alive: bool | None, is_kept_alive: bool | None, dead_s: float) -> tuple[bool | None, str]:
    """What two bindings that were kept say, when they were older than ``dead_s``: ``one_way_refresh`` and why."""
    if is_one_way_alive is None or is_kept_alive is None:
        return None, "the far end did not answer when the bindings that were kept were looked at"
    if not is_kept_alive:
        return None, "a binding that is kept by answered requests has died as well"
    if is_one_way_alive:
        return True, f"a binding that only ever sent has lived for more than {dead_s:.0f} s"
    return False, f"a binding that only ever sent was dead after {dead_s:.0f} s, one that was answered was not"
