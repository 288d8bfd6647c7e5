"""What is raised when bytes are no STUN message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.stun.message import Message

__all__ = ["BadAttribute", "BadMessage"]


class BadMessage(ValueError):
    """The bytes are not a well-formed STUN message (or, on a stream, not ChannelData either).

    The only exception that parsing raises, whatever the bytes are. The text says what is wrong.
    """


class BadAttribute(BadMessage):
    """The value of an attribute is malformed, but where the message and its attributes begin and end is clear.

    Attributes:
        message: without that attribute, and without any other that is malformed: a server can see who asks, and refuse.
    """

    def __init__(self, text: str, message: Message) -> None:
        super().__init__(text)
        self.message = message
