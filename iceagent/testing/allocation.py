"""Which outside port does a new mapping of a NAT get?

Pure.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from enum import Enum

from iceagent.net.address import TransportAddress

__all__ = ["BLOCK_SIZE", "PORTS", "Allocation", "PortAllocator"]

PORTS = range(1024, 65536)
"""All but the well-known ports (RFC 4787, REQ-3)."""

BLOCK_SIZE = 2048
"""Ports of one internal host where a carrier NAT allocates by blocks (RFC 7422)."""

RANDOM_DRAWS = 16
"""Draws before a crowded pool is searched in order."""


class Allocation(Enum):
    """Which outside port a new mapping gets (RFC 4787, 4.2.1; RFC 7422 for blocks).

    Attributes:
        PRESERVING: the internal port; where it is taken, a random one.
        SEQUENTIAL: the last one plus ``step``.
        RANDOM: any free one of the pool.
        BLOCK: a random one of the block that belongs to the internal host, as carrier NATs do.
        HASHED: a function of the internal endpoint and the mapping's key: the same after a reboot.
    """

    PRESERVING = "preserving"
    SEQUENTIAL = "sequential"
    RANDOM = "random"
    BLOCK = "block"
    HASHED = "hashed"


class PortAllocator:
    """Proposes outside ports for a new mapping.

    Args:
        allocation: how.
        ports: the pool.
        step: of a sequential allocation.
        block_size: ports of one internal host, where allocation is by block.
        rng: where it is random.

    Attributes:
        candidates: called with the external host, the internal endpoint and the mapping's key; yields ports, best
            first. Exhausted, so is the pool.
    """

    def __init__(self, allocation: Allocation, ports: range, step: int, block_size: int, rng: random.Random) -> None:
        self._ports = ports
        self._step = step
        self._block_size = block_size
        self._rng = rng
        self._next = 0
        self._blocks: dict[tuple[str, str], range] = {}
        self.candidates = {
            Allocation.PRESERVING: self._preserving,
            Allocation.SEQUENTIAL: self._sequential,
            Allocation.RANDOM: self._random,
            Allocation.BLOCK: self._block,
            Allocation.HASHED: self._hashed,
        }[allocation]

    def forget(self) -> None:
        """Start again; the blocks of internal hosts are configuration and stay."""
        self._next = 0

    def _preserving(self, host: str, inside: TransportAddress, key: object) -> Iterator[int]:
        yield inside.port
        yield from self._drawn(self._ports)

    def _sequential(self, host: str, inside: TransportAddress, key: object) -> Iterator[int]:
        for _ in self._ports:
            port = self._ports[self._next % len(self._ports)]
            self._next += self._step
            yield port

    def _random(self, host: str, inside: TransportAddress, key: object) -> Iterator[int]:
        return self._drawn(self._ports)

    def _block(self, host: str, inside: TransportAddress, key: object) -> Iterator[int]:
        first = self._block_size * sum(1 for external, _ in self._blocks if external == host)
        block = self._blocks.setdefault((host, inside.host), self._ports[first : first + self._block_size])
        return self._drawn(block)

    def _hashed(self, host: str, inside: TransportAddress, key: object) -> Iterator[int]:
        start = zlib.crc32(f"{inside} {key}".encode())
        return (self._ports[(start + offset) % len(self._ports)] for offset in range(len(self._ports)))

    def _drawn(self, ports: range) -> Iterator[int]:
        if not ports:
            return
        for _ in range(RANDOM_DRAWS):
            yield self._rng.choice(ports)
        start = self._rng.randrange(len(ports))
        for offset in range(len(ports)):
            yield ports[(start + offset) % len(ports)]
