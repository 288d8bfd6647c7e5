"""A cable that delays, loses, doubles and reorders, for kernels without netem; changed while it is in use.

Two Ethernet devices (TAP), one in each namespace, and a process that carries frames between them. Over a cable without
any impairment that adds less than 0.1 ms each way. Every frame is treated by itself:

- *delay* and *jitter*: it arrives ``delay_s`` later, and up to ``jitter_s`` more; jitter alone does not reorder.
- *loss*, *duplication*, *reordering*: probabilities. A reordered frame overtakes: it is not delayed.
- *rate*: bits per second; what has to wait longer than :data:`MAX_QUEUE_S` is lost.
- *cut*: nothing arrives, in one direction or in both.

This file is also the process: it is run by its path and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import math
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["BOTH", "IN", "OUT", "Impairment", "Wire", "open_tap"]

# Directions: towards the Internet, from it.
OUT, IN = "out", "in"
BOTH = (OUT, IN)

MAX_DELAY_S = 60.0
MAX_FRAME = 65_536
# Frames under way; what comes beyond is lost, as in any router.
MAX_FRAMES = 20_000
MAX_QUEUE_S = 0.5
MAX_FRAMES_PER_WAKEUP = 64
REPLY_TIMEOUT_S = 10.0

# <linux/if_tun.h>: an Ethernet device, frames without a header of their own.
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
IFREQ_SIZE = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What happens to frames in one direction.

    Attributes:
        delay_s: seconds.
        jitter_s: seconds at most on top of it, evenly distributed.
        loss: 0 … 1.
        duplicate: 0 … 1.
        reorder: 0 … 1.
        rate_bps: bits per second; ``None``: no limit.
        is_cut: nothing arrives.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate_bps: float | None = None
    is_cut: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, it can be 0 to 1")
        for name in ("delay_s", "jitter_s"):
            if not 0.0 <= getattr(self, name) <= MAX_DELAY_S:
                raise ValueError(f"{name} is {getattr(self, name)}, it can be 0 to {MAX_DELAY_S:g}")
        if self.rate_bps is not None and not 1.0 <= self.rate_bps < math.inf:
            raise ValueError(f"rate_bps is {self.rate_bps}, it has to be 1 or more")


def open_tap(name: str) -> int:
    """Make an Ethernet device in the calling thread's namespace; frames are read from and written to the descriptor.

    Raises:
        OSError: /dev/net/tun cannot be used.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI).ljust(IFREQ_SIZE, b"\0")
        fcntl.ioctl(fd, TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Wire:
    """The cable's process, seen from the laboratory.

    Args:
        inner: descriptor of the machine's device.
        outer: of the device on the other side. Both are the process's from now on.
        impairment: in both directions, at first.
        seed: of its chances.
        env: the process's environment.
    """

    def __init__(self, inner: int, outer: int, impairment: Impairment, seed: int, env: Mapping[str, str]) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(inner), str(outer), str(seed)],
                pass_fds=(inner, outer),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=env,
            )
        finally:
            os.close(inner)
            os.close(outer)
        try:
            self.set(impairment)
        except BaseException:
            self.process.kill()
            raise

    def set(self, impairment: Impairment, *directions: str) -> None:
        """Treat what is sent from now on like this; ``directions``: :data:`OUT`, :data:`IN`; none: both.

        Raises:
            OSError: the process does not live any more.
            ValueError: there is no such direction.
        """
        if not set(directions) <= set(BOTH):
            raise ValueError(f"a cable's directions are {BOTH}, not {directions}")
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        order = {"directions": directions or BOTH, "impairment": asdict(impairment)}
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        # It says so when it has understood.
        ready, _, _ = select.select([stdout], [], [], REPLY_TIMEOUT_S)
        if not ready or stdout.readline() != b"ok\n":
            raise OSError("the process of a cable does not answer")

    def cut(self, *directions: str) -> None:
        """Nothing arrives any more; :meth:`set` mends it."""
        self.set(Impairment(is_cut=True), *directions)


# --- the process -----------------------------------------------------------------------------------------------------


class _Direction:
    """What happens to frames of one direction, and to what is under way."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.impairment = Impairment()
        self._free_at = 0.0
        self._last_at = 0.0

    def arrivals(self, length: int, now: float, rng: random.Random) -> Iterator[float]:
        """When a frame of so many bytes arrives that is sent now: never, once or twice."""
        how = self.impairment
        if how.is_cut or rng.random() < how.loss:
            return
        at = now
        if how.rate_bps is not None:
            at = max(self._free_at, now) + length * 8 / how.rate_bps
            if at - now > MAX_QUEUE_S:
                return
            self._free_at = at
        if rng.random() < how.reorder:
            yield at
            return
        at += how.delay_s + rng.random() * how.jitter_s
        # In order: later than what was sent before, even where the delay has become shorter.
        at = self._last_at = max(at, self._last_at if how.jitter_s else 0.0)
        yield at
        if rng.random() < how.duplicate:
            yield at


def main(inner: int, outer: int, seed: int) -> None:
    """Carry frames until standard input ends."""
    rng = random.Random(seed)
    ways = {OUT: _Direction(outer), IN: _Direction(inner)}
    sources = {inner: ways[OUT], outer: ways[IN]}
    under_way: list[tuple[float, int, int, bytes]] = []
    orders = sys.stdin.fileno()
    count = 0
    while True:
        timeout = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select((*sources, orders), (), (), timeout)
        if orders in ready and not _obey(ways):
            return
        for source, way in sources.items():
            if source not in ready:
                continue
            for frame in _frames(source):
                now = time.monotonic()
                for at in way.arrivals(len(frame), now, rng):
                    count += 1
                    if len(under_way) < MAX_FRAMES:
                        heapq.heappush(under_way, (at, count, way.target, frame))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, target, frame = heapq.heappop(under_way)
            # A device without room, or not up yet, loses the frame.
            with contextlib.suppress(OSError):
                os.write(target, frame)


def _obey(ways: dict[str, _Direction]) -> bool:
    line = sys.stdin.readline()
    if not line:
        return False
    order: dict[str, Any] = json.loads(line)
    for direction in order["directions"]:
        ways[direction].impairment = Impairment(**order["impairment"])
    sys.stdout.write("ok\n")
    sys.stdout.flush()
    return True


def _frames(source: int) -> Iterator[bytes]:
    for _ in range(MAX_FRAMES_PER_WAKEUP):
        try:
            yield os.read(source, MAX_FRAME)
        except OSError:
            # Nothing there, or the device is down.
            return


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*map(int, sys.argv[1:]))
