"""How are our candidates found, and how is a gatherer added?

``bases.py`` opens one socket per address and component and keeps it in step with the interfaces; each base is a host
candidate (``host.py`` decides which addresses). Every further gatherer turns bases into candidates::

    class Gatherer(Protocol):
        def start(self, base: Base) -> None:      # a base came up: ask for it
        def stop(self, base: Base) -> None:       # it went: forget it
        def close(self) -> None: ...
        is_done: bool                             # nothing more is expected for now

It reports through the callbacks it was made with: ``found(candidate)``, ``tell(event)`` and ``changed()``. To add one:
write its file here, and make it in ``Gathering`` (``gathering.py``), which calls it done when all gatherers are or
after ``Config.gather_timeout_s``. None may hold up another: host candidates are out before anything was asked of the
network.
"""

from __future__ import annotations

from typing import Protocol

from iceagent.gather.bases import Base

__all__ = ["Gatherer"]


class Gatherer(Protocol):
    """Turns bases into candidates."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more is expected for the bases known so far."""

    def start(self, base: Base) -> None:
        """A base came up."""

    def stop(self, base: Base) -> None:
        """A base is gone."""

    def close(self) -> None:
        """Stop everything at once; idempotent."""
