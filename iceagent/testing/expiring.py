"""How is something forgotten after a while, without a timer?

All entries of an :class:`Expiring` live equally long, so a dict in the order of the last touch is in the order of death
too: forgetting looks at the front only. Pure.
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Expiring"]

K = TypeVar("K")
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """A bounded map whose entries die one lifetime after they were last touched."""

    __slots__ = ("_entries", "_lifetime_s", "_limit")

    def __init__(self, lifetime_s: float, limit: int) -> None:
        self._entries: dict[K, tuple[V, float]] = {}
        self._lifetime_s = lifetime_s
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def touch(self, key: K, value: V, now: float) -> bool:
        """Write or refresh an entry; false: it is new and the table is full."""
        if self._entries.pop(key, None) is None and len(self._entries) >= self._limit:
            return False
        self._entries[key] = (value, now + self._lifetime_s)
        return True

    def expire(self, now: float) -> None:
        while self._entries:
            key = next(iter(self._entries))
            if now < self._entries[key][1]:
                return
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()
