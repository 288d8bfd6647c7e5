"""Which authenticated requests have there been?

A request that somebody has recorded can be sent again, from anywhere, and is still authentic; only that its transaction
identifier has been there before gives it away. Of each, 8 bytes are kept in a ring: nobody without the key can choose
them, and a client that chose them would fool itself. So a thousand cost 8 kB, and finding one, which is done for
authentic requests alone, costs three microseconds. A client may send its own again when the answer was lost; where from
and where to a request came is kept of the latest. Pure.
"""

from __future__ import annotations

from iceagent.net.address import TransportAddress

__all__ = ["Seen", "Way"]

Way = tuple[TransportAddress, TransportAddress]
"""Where a request came from, and which address of ours it came to."""

KEPT = 8
"""Bytes of a transaction identifier."""

LATEST_OF = 64
"""Of so many, one is known with its way. A client that repeats its request does so within 40 s (RFC 8489, 6.2.1)."""


class Seen:
    """The latest transaction identifiers of requests under one key."""

    __slots__ = ("_latest", "_ring", "_ring_at")

    def __init__(self) -> None:
        self._ring = bytearray()
        self._ring_at = 0
        self._latest: dict[bytes, Way] = {}

    def __len__(self) -> int:
        return len(self._ring) // KEPT

    def __contains__(self, transaction_id: bytes) -> bool:
        at = self._ring.find(transaction_id[:KEPT])
        while at > 0 and at % KEPT:  # Parts of two of them.
            at = self._ring.find(transaction_id[:KEPT], at + 1)
        return at >= 0

    def way(self, transaction_id: bytes) -> Way | None:
        """Of the first request with this identifier; ``None``: it is not among the latest."""
        return self._latest.get(transaction_id)

    def add(self, transaction_id: bytes, way: Way, limit: int) -> None:
        """Remember one that is new; with ``limit``, 64 or more, the oldest is forgotten."""
        if len(self) < limit:
            self._ring += transaction_id[:KEPT]
        else:
            self._ring[self._ring_at : self._ring_at + KEPT] = transaction_id[:KEPT]
            self._ring_at = (self._ring_at + KEPT) % len(self._ring)
        self._latest[transaction_id] = way
        while len(self._latest) > limit // LATEST_OF:
            del self._latest[next(iter(self._latest))]
