"""Who are we to a TURN server? Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TurnCredentials"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCredentials:
    """A user name and a password.

    Attributes:
        username: as configured; 1 to 508 bytes of UTF-8 (RFC 8489, 14.3).
        password: of any length; never logged.
        lifetime_s: so long, from when they were given, they can be used, above 0; ``None``: for ever.

    Raises:
        ValueError: one of them is empty, or of another type; the message quotes neither.
    """

    username: str
    password: str = field(repr=False)
    lifetime_s: float | None = None

    def __post_init__(self) -> None:
        text: Any
        for name, text in (("username", self.username), ("password", self.password)):
            if not isinstance(text, str):
                raise ValueError(f"{name} is no text (str), but of type {type(text).__name__}")
            if not text:
                raise ValueError(f"{name} is empty")
        lifetime_s: Any = self.lifetime_s
        if lifetime_s is not None and not (isinstance(lifetime_s, int | float) and lifetime_s > 0):
            raise ValueError(f"lifetime_s is {lifetime_s!r}, a number above 0 or None is expected")
