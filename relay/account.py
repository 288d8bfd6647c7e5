"""Who are we to a TURN server? Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TurnCredentials"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCredentials:
    """A user name and a password.

    Attributes:
        username: as configured; 1 to 508 bytes of UTF-8 (RFC 8489, 14.3).
        password: of any length; never logged.
        lifetime_s: so long, from when they were given, they can be used; ``None``: for ever.
    """

    username: str
    password: str = field(repr=False)
    lifetime_s: float | None = None
