"""What is a way to exchange descriptions?

An :class:`Outbox` for ours and an :class:`Inbox` for the peer's. Both are told or tell the whole description each time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from iceagent.description import Description
from iceagent.net.core import Event

__all__ = ["Inbox", "Outbox", "Refusal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Event):
    """What was found in the place of a description is none, or ours could not be put in its place."""

    reason: str


class Outbox(Protocol):
    """Where our description goes."""

    def publish(self, description: Description) -> None:
        """Tell the peer, if there is something new to tell.

        Raises:
            OSError: it could not be told now; the next call may.
        """


class Inbox(Protocol):
    """Where the peer's description comes from."""

    def descriptions(self) -> AsyncIterator[Description | Refusal]:
        """Every new version of it, and why something was not taken for one."""
