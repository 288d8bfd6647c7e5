"""What does a change say to a person?

The words that an agent remembers it by (``iceagent/history.py``), and of a path whether it is direct, and how long a
round trip takes. Events that change nothing have no words here: they are shown with their values.
"""

from __future__ import annotations

from iceagent.events import Event, Path, PathDoubted, PathTrusted, SelectedPathChanged
from iceagent.history import EMPTY, entries, noted

__all__ = ["words"]


def words(event: Event) -> str | None:
    """The reason of a change, and the path that it is about; ``None``: it is no change."""
    found = entries(noted(EMPTY, event, 0.0))
    if not found:
        return None
    (entry,) = found
    path = _path_of(event)
    if path is None:
        return entry.reason
    rtt = "" if path.rtt_ms is None else f", {path.rtt_ms:.1f} ms"
    return f"{entry.reason} ({path.kind}, {entry.path}{rtt})"


def _path_of(event: Event) -> Path | None:
    if isinstance(event, SelectedPathChanged):
        return event.new or event.old
    return event.path if isinstance(event, PathDoubted | PathTrusted) else None
