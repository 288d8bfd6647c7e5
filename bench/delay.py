"""A cable with a delay: two Ethernet devices in two namespaces, and this process, which carries frames between them.

For kernels without netem. Run as ``python -m bench.delay FD FD SECONDS`` with the descriptors of two TAP devices.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

from bench.netns import Namespace
from bench.processes import ROOT, end

__all__ = ["ADDRESSES", "link_by_delay"]

MAX_FRAME = 65_536
# Frames under way in one direction; what comes beyond is lost, as in any router.
MAX_FRAMES = 10_000
MAX_FRAMES_PER_WAKEUP = 64

ADDRESSES = ("10.77.0.1", "10.77.0.2")
MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")
DEVICE = "uplink"


@contextlib.contextmanager
def link_by_delay(first: Namespace, second: Namespace, rtt_s: float) -> Iterator[None]:
    """Join two namespaces with :data:`ADDRESSES`. Neighbours are known: no ARP delays the first packet."""
    fds = [namespace.tap(DEVICE) for namespace in (first, second)]
    try:
        for i, namespace in enumerate((first, second)):
            other = 1 - i
            namespace.ip(
                f"link set {DEVICE} address {MACS[i]} up",
                f"address add {ADDRESSES[i]}/24 dev {DEVICE}",
                f"neighbor replace {ADDRESSES[other]} lladdr {MACS[other]} dev {DEVICE} nud permanent",
            )
        command = [sys.executable, "-m", "bench.delay", *map(str, fds), str(rtt_s / 2)]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=fds, stdin=subprocess.DEVNULL)
    finally:
        for fd in fds:
            os.close(fd)
    try:
        yield
    finally:
        end(process)


def main() -> None:
    """Carry frames until ended."""
    first, second = int(sys.argv[1]), int(sys.argv[2])
    delay_s = float(sys.argv[3])
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        timeout = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select((first, second), (), (), timeout)
        for source in ready:
            _take(source, second if source == first else first, delay_s, under_way)
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, target, frame = under_way.popleft()
            # A device without room, or not up yet, loses the frame.
            with contextlib.suppress(OSError):
                os.write(target, frame)


def _take(source: int, target: int, delay_s: float, under_way: deque[tuple[float, int, bytes]]) -> None:
    for _ in range(MAX_FRAMES_PER_WAKEUP):
        try:
            frame = os.read(source, MAX_FRAME)
        except BlockingIOError:
            return
        if len(under_way) < MAX_FRAMES:
            under_way.append((time.monotonic() + delay_s, target, frame))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
