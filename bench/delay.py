"""A cable with a delay between two namespaces, as the laboratory has it (``iceagent/lab/wire.py``)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

from bench.processes import end
from iceagent.lab.namespace import Namespace
from iceagent.lab.wire import Impairment, Wire, open_tap

__all__ = ["ADDRESSES", "link_by_delay"]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
DEVICE = "uplink"


@contextlib.contextmanager
def link_by_delay(first: Namespace, second: Namespace, rtt_s: float) -> Iterator[None]:
    """Join two namespaces with :data:`ADDRESSES`. Neighbours are known: no ARP delays the first packet."""
    sides = (first, second)
    inner, outer = (side.do(partial(open_tap, DEVICE)) for side in sides)
    wire = Wire(inner, outer, Impairment(delay_s=rtt_s / 2), 0, os.environ)
    try:
        for side, host in zip(sides, ADDRESSES, strict=True):
            side.up(DEVICE, f"{host}/24")
        for i, side in enumerate(sides):
            side.know_neighbours(DEVICE, sides[1 - i].mac(DEVICE), [ADDRESSES[1 - i]])
        yield
    finally:
        end(wire.process)
