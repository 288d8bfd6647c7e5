"""What is due when everything waits equally long?

A dict in the order in which the waits began is in the order of their ends too: only its front is ever looked at. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["Waits"]

K = TypeVar("K", bound=Hashable)


class Waits(Generic[K]):
    """Keys, each of which is due the same time after it was set.

    Args:
        after_s: seconds.
    """

    __slots__ = ("_after_s", "_ends")

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._ends: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, key: K) -> bool:
        return key in self._ends

    def set(self, key: K, now: float) -> None:
        """Begin to wait, or begin anew."""
        self._ends.pop(key, None)
        self._ends[key] = now + self._after_s

    def drop(self, key: K) -> None:
        """Wait no more; nothing happens if it does not wait."""
        self._ends.pop(key, None)

    @property
    def oldest(self) -> K | None:
        """What has waited longest; ``None``: nothing waits."""
        return next(iter(self._ends), None)

    @property
    def next_at(self) -> float | None:
        """When the first one is due; ``None``: nothing waits."""
        return next(iter(self._ends.values()), None)

    def due(self, now: float) -> Iterator[K]:
        """Those that are due; they wait no more."""
        while (at := self.next_at) is not None and at <= now:
            key = next(iter(self._ends))
            del self._ends[key]
            yield key
