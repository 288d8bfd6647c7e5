"""What was said already of a server that gives nothing?

Servers are asked again and again: after pauses, when a link comes or goes, from every base, for every component. What
becomes of it is told once, until it is another reason, or the server has worked in between.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from iceagent.events import Event, ServerFailed

__all__ = ["MAX_COMPLAINTS", "Complaints"]

# As many as there are open STUN queries at most (``stun_queries.py``). Servers may name others (300 Try Alternate).
MAX_COMPLAINTS = 1000


class Complaints:
    """Passes on what is new.

    Args:
        tell: called with events for the application.
    """

    __slots__ = ("_said", "_tell")

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        # URI and part of it → gist; the oldest first. ``None``: mostly there is none, and an agent is to be small.
        self._said: dict[tuple[str, Hashable], str] | None = None

    def tell(self, event: ServerFailed, about: Hashable, gist: str = "") -> None:
        """Say it, unless it was said.

        Args:
            event: whose port of ours may be another one each time.
            about: which part of the server it is about: a transport and an address, say.
            gist: what is compared; empty: the reason.
        """
        said = self._said = {} if self._said is None else self._said
        key, gist = (event.server, about), gist or event.reason
        if said.get(key) == gist:
            return
        if key not in said and len(said) >= MAX_COMPLAINTS:
            del said[next(iter(said))]
        said[key] = gist
        self._tell(event)

    def forget(self, server: str, about: Hashable = None) -> None:
        """It works: its next failure is news.

        Args:
            server: its URI.
            about: which part of it; ``None``: all.
        """
        if self._said is None:
            return
        if about is not None:
            self._said.pop((server, about), None)
        else:
            for key in [key for key in self._said if key[0] == server]:
                del self._said[key]
