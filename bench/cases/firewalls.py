"""Stateful firewalls on both sides, and the second side comes late: how long after it came are both connected?

Two namespaces, each with `ct state established,related accept` and nothing else let in, joined by a cable with a delay.
The first side checks for 300 ms into the second one's firewall, which has not sent anything yet. Then the second one
begins; the time runs from there until both are connected. The least possible is 1.5 round trips: its first check, and
the answer to what that triggers. Each round is the slower one of two sessions: the early side controlling, and the
late.
"""

from __future__ import annotations

import socket
import threading
import time

from bench.cases import Options
from bench.contenders import CONTENDERS
from bench.delay import ADDRESSES, link_by_delay
from bench.netns import accept_only, namespaces
from bench.processes import WorkerFailed
from bench.results import Metric
from bench.sessions import session

__all__ = ["run"]

RTTS_MS = (1, 100)
HEAD_START_S = 0.3
LIMIT_S = 10.0
SLACK_MS = 50.0
PROBES = 5
PROBE_TIMEOUT_S = 2.0


def run(options: Options) -> list[Metric]:
    """Rounds at every delay; both contenders over the same cable."""
    return [_measure(rtt_ms, options) for rtt_ms in RTTS_MS]


def _measure(rtt_ms: int, options: Options) -> Metric:
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        options.tell(f"firewalls: RTT {rtt_ms} ms, round {number + 1}")
        for name in CONTENDERS:
            found[name].append(max(_session_ms(name, rtt_ms, early_controls) for early_controls in (True, False)))
    return Metric(
        name=f"both behind firewalls, late start, RTT {rtt_ms} ms",
        unit="ms",
        ours=found["ours"],
        peer=found["aioice"],
        at_most=1.5 * rtt_ms + SLACK_MS,
        note=f"the cable's round trip was measured as {_rtt_ms(rtt_ms):.2f} ms",
    )


def _session_ms(name: str, rtt_ms: int, early_controls: bool) -> float:
    with namespaces(2) as (early, late), link_by_delay(early, late, rtt_ms / 1000):
        for side in (early, late):
            accept_only(side, "ct state established,related")
        with session(early, late, name, first_controls=early_controls) as connection:
            elapsed = connection.connect(LIMIT_S, HEAD_START_S)
    if elapsed is None:
        raise WorkerFailed(f"{name} did not connect within {LIMIT_S:.0f} s")
    return elapsed * 1000


def _rtt_ms(rtt_ms: int) -> float:
    """What a datagram and its echo need over such a cable: the least of a few."""
    with (
        namespaces(2) as (near, far),
        link_by_delay(near, far, rtt_ms / 1000),
        near.do(lambda: _bound(ADDRESSES[0])) as here,
        far.do(lambda: _bound(ADDRESSES[1])) as there,
    ):
        echoing = threading.Thread(target=_echo, args=(there,))
        echoing.start()
        found = [_probe(here) for _ in range(PROBES)]
        echoing.join()
    return min(found) * 1000


def _bound(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 5000))
    sock.settimeout(PROBE_TIMEOUT_S)
    return sock


def _probe(sock: socket.socket) -> float:
    started = time.perf_counter()
    sock.sendto(b"echo", (ADDRESSES[1], 5000))
    sock.recvfrom(100)
    return time.perf_counter() - started


def _echo(sock: socket.socket) -> None:
    for _ in range(PROBES):
        data, source = sock.recvfrom(100)
        sock.sendto(data, source)
