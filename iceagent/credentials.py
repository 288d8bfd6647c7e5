"""What are ICE credentials, and how are they made?

A user name fragment of 4 … 256 and a password of 22 … 256 ``ice-char`` (RFC 8839, 5.4), with at least 24 and 128 bits
of randomness (RFC 8445, 5.3). Randomness comes in as an argument and must be a system source: a seeded generator may
steer order and jitter, never credentials.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from iceagent.errors import InvalidDescription
from iceagent.net.address import quoted

__all__ = ["Credentials"]

_ICE_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """One side's user name fragment and password.

    Raises:
        InvalidDescription: if one of them breaks RFC 8839, 5.4.
    """

    ufrag: str
    password: str

    def __post_init__(self) -> None:
        if not _UFRAG.fullmatch(self.ufrag):
            raise InvalidDescription(
                f"ice-ufrag {quoted(self.ufrag)}: 4 to 256 of letters, digits, '+' and '/' are allowed"
            )
        if not _PASSWORD.fullmatch(self.password):
            raise InvalidDescription(
                f"ice-pwd of {len(self.password)} characters: 22 to 256 of letters, digits, '+' and '/' are allowed"
            )

    def __repr__(self) -> str:
        return f"Credentials(ufrag={self.ufrag!r}, password=…)"

    @classmethod
    def random(cls, system_rng: Random) -> Credentials:
        """New credentials: 48 bits of user name fragment, 192 bits of password."""
        return cls(
            ufrag="".join(system_rng.choice(_ICE_CHARS) for _ in range(8)),
            password="".join(system_rng.choice(_ICE_CHARS) for _ in range(32)),
        )
