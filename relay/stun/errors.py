"""What is raised when bytes are no STUN message."""

from __future__ import annotations

__all__ = ["BadMessage"]


class BadMessage(ValueError):
    """The bytes are not a well-formed STUN message (or, on a stream, not ChannelData either).

    The only exception that parsing raises, whatever the bytes are. The text says what is wrong.
    """
