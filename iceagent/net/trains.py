"""How do many datagrams pass the kernel in one call?

A *train* is a run of datagrams to or from one address, all of one size but the last, which may be shorter. Linux takes
one in a single call (UDP_SEGMENT, from 4.18 on), carries it through its stack as one packet as far as the hardware
allows, and hands it over in a single call (UDP_GRO, from 5.0 on). On the wire it is the datagrams it was made of. The
calls are the larger part of what a datagram costs, so that one of a train costs a tenth.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

__all__ = ["MAX_SEGMENT", "MAX_TRAIN", "SOL_UDP", "UDP_GRO", "UDP_SEGMENT", "cut", "segment_size_option", "trains"]

# <linux/udp.h>; not in Python's socket module.
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

# The kernel's UDP_MAX_SEGMENTS, which is 128 in newer ones.
MAX_TRAIN = 64
# All of a train is one IP packet at first, whose length has 16 bits; less the headers of IPv6 (40) and UDP (8).
MAX_TRAIN_BYTES = 65_487
# A jumbo frame's payload. What is longer is fragmented on any network, and no train could be sent.
MAX_SEGMENT = 8_952

_SEGMENT_SIZE = struct.Struct("=H")
_RECEIVED_SIZE = struct.Struct("=i")


def trains(datagrams: Sequence[bytes], max_segment: int) -> Iterator[Sequence[bytes]]:
    """Cut a sequence of datagrams into trains, in order.

    Args:
        datagrams: of any sizes, also empty ones.
        max_segment: datagrams longer than this many bytes travel alone; so do empty ones.
    """
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        end = start + 1
        if 0 < size <= max_segment:
            limit = min(start + MAX_TRAIN, start + MAX_TRAIN_BYTES // size, len(datagrams))
            while end < limit and len(datagrams[end]) == size:
                end += 1
            if end < limit and 0 < len(datagrams[end]) < size:
                end += 1
        yield datagrams[start:end]
        start = end


def segment_size_option(size: int) -> tuple[int, int, bytes]:
    """The control message that says how the bytes of one call are to be cut; ``size``: 1 … 65,535 bytes."""
    return SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(size)


def cut(data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> Sequence[bytes]:
    """The datagrams of one read; where no control message says that it is a train, that is what was read."""
    for level, kind, value in ancillary:
        if level == SOL_UDP and kind == UDP_GRO:
            (size,) = _RECEIVED_SIZE.unpack_from(value)
            return [data[start : start + size] for start in range(0, len(data), size)] if size > 0 else (data,)
    return (data,)
