"""What does a datagram cost our TURN server, and what coturn?

Client, server and peer are machines of a laboratory (``iceagent.lab``), and from every server two cables lead straight
to the other two. Each server is a process of its own with all its threads on one core; whoever sends and counts
(``bench/mmsg.py``) has another one. A client of ours allocates, binds a channel and sends ChannelData through it, as
fast as it arrives at the peer: never more than a window is on its way, so that next to nothing is lost. Then the same
in the other direction. Datagrams of 100 and of 1,200 bytes leave

- *singly*, one by one without UDP_SEGMENT. Nothing on the way puts them together: a veth has no GRO by default. Up to
  48 are on their way, so the server always has some to read.
- *in trains* of 32 (UDP_SEGMENT), two at most. The receiver takes trains (UDP_GRO), so that nothing but the server cuts
  or joins them. (Of our trains each datagram costs more than twice as much where the receiver's kernel cuts them.)
- *one at a time*: the next one leaves when the last one has arrived, so the server falls asleep between them.

Judged by the processor time of the server per datagram that arrived at the peer, all its threads and what the kernel
does in its name: on this way also the delivery of what it sends. Told beside it: the time elapsed, and what a quota of
allocations and a cap of bandwidth that is never reached cost ours.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from statistics import median

from bench.cases import Options
from bench.contenders import OURS, TURN_PASSWORD, TURN_USER
from bench.mmsg import Counter, Sender, load
from bench.one_core import join, on_core, pin, two_cores
from bench.processes import WorkerFailed, cpu_of
from bench.results import Metric
from bench.turn_channel import TurnChannel
from iceagent.lab import Lab, Machine
from iceagent.lab.services import coturn, serve
from iceagent.net.address import TransportAddress

__all__ = ["run"]

COTURN, QUOTA, CAPPED = "coturn", "with a quota", "with a cap"
SERVERS = (OURS, COTURN, QUOTA, CAPPED)
PORT = 3478
# One thread that relays, as ours. 0 (no thread but the first) and the default, one for each core, cost the same.
COTURN_OPTIONS = ("--relay-threads=1",)
OPTIONS = {QUOTA: ("--user-quota=10",), CAPPED: ("--max-bps=1000000000000",)}

SIZES = (100, 1200)
SINGLY, TRAINS, ALONE = "singly", "in trains", "one at a time"
TO_PEER, TO_CLIENT = "to the peer", "to the client"
# Way → datagrams of a call, and how many may be on their way: coturn's sockets for relayed addresses hold 128 KiB, and
# lose some of 128 datagrams of 1,200 bytes.
CALLS = {SINGLY: (16, 48), TRAINS: (32, 64), ALONE: (1, 1)}
TARGETS = {SINGLY: 0.4, TRAINS: 1.5}
"""Times as many datagrams per second of processor time as coturn."""

WARM_UP_S = 0.05
LOAD_S = 0.5
# The receiver's buffer, in bytes: a train is one packet in it, but a large one.
BUFFER = 1 << 22

CPU, ELAPSED, LOST = "cpu", "elapsed", "lost"

# (server, bytes, way, direction, what) → one value per round.
Found = dict[tuple[str, int, str, str, str], list[float]]


def run(options: Options) -> list[Metric]:
    """All servers in turn, beginning with another one in every round; their processes stay."""
    theirs, ours = two_cores()
    found: Found = {}
    with Lab() as lab, on_core(ours):
        field = _Field(lab, theirs)
        for number in range(options.rounds):
            options.tell(f"turn-server: round {number + 1}")
            for i in range(len(SERVERS)):
                server = SERVERS[(i + number) % len(SERVERS)]
                for (size, way, direction, what), value in field.measure(server).items():
                    found.setdefault((server, size, way, direction, what), []).append(value)
    return _metrics(found)


def _metrics(found: Found) -> list[Metric]:
    metrics = []
    for way in CALLS:
        for size in SIZES:
            for direction in (TO_PEER, TO_CLIENT):
                name = f"TURN server, {size:,} bytes {way}, {direction}"
                target = TARGETS.get(way) if direction == TO_PEER else None
                for what, unit in ((CPU, "µs of CPU"), (ELAPSED, "µs elapsed")):
                    metrics.append(
                        Metric(
                            name=name,
                            unit=unit,
                            ours=found[OURS, size, way, direction, what],
                            peer=found[COTURN, size, way, direction, what],
                            peer_name=COTURN,
                            ratio_at_least=target if what == CPU else None,
                            note=_note(found, size, way, direction) if what == CPU else "",
                        )
                    )
    for server in (QUOTA, CAPPED):
        for way in (SINGLY, TRAINS):
            for size in SIZES:
                metrics.append(
                    Metric(
                        name=f"TURN server {server}, {size:,} bytes {way}, {TO_PEER}",
                        unit="µs of CPU",
                        ours=found[server, size, way, TO_PEER, CPU],
                        peer=found[OURS, size, way, TO_PEER, CPU],
                        peer_name="without",
                    )
                )
    return metrics


def _note(found: Found, size: int, way: str, direction: str) -> str:
    texts = []
    for server in (OURS, COTURN):
        per_cpu, per_second = (1e3 / median(found[server, size, way, direction, what]) for what in (CPU, ELAPSED))
        lost = max(found[server, size, way, direction, LOST])
        texts.append(f"{server} {per_cpu:,.0f} kpps per core, {per_second:,.0f} seen (lost at worst {lost:.2%})")
    return ", ".join(texts)


# --- where -----------------------------------------------------------------------------------------------------------


class _Field:
    """Client, peer and the servers, each on a machine of its own.

    Args:
        lab: where.
        core: of the servers.
    """

    def __init__(self, lab: Lab, core: int) -> None:
        self._client, self._peer = lab.machine("client"), lab.machine("peer")
        self._servers: dict[str, tuple[Machine, int]] = {}
        for number, name in enumerate(SERVERS):
            machine = lab.machine(f"server{number}")
            for end in (self._client, self._peer):
                join(machine, end)
            pid = _start(machine, name)
            pin(pid, core)
            self._servers[name] = machine, pid

    def measure(self, name: str) -> dict[tuple[int, str, str, str], float]:
        """One allocation, everything over it; microseconds per datagram that arrived, and the share of the lost."""
        machine, pid = self._servers[name]
        found = {}
        with (
            contextlib.closing(self._client.namespace.socket()) as client,
            contextlib.closing(self._peer.namespace.socket()) as peer,
        ):
            for sock, end in ((client, self._client), (peer, self._peer)):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                sock.bind((end.address, 0))
                sock.setblocking(False)
            channel = TurnChannel(client, peer, TransportAddress(machine.address, PORT))
            for size in SIZES:
                data = bytes(size)
                message = channel.wrap(data)
                for way, (count, window) in CALLS.items():
                    for direction in (TO_PEER, TO_CLIENT):
                        if name in OPTIONS and (direction == TO_CLIENT or way == ALONE):
                            continue
                        if direction == TO_PEER:
                            sender = Sender(client, message, count, is_train=way == TRAINS)
                            counter = Counter(peer, size)
                        else:
                            sender = Sender(peer, data, count, is_train=way == TRAINS)
                            counter = Counter(client, len(message))
                        for what, value in _measure(sender, counter, window, pid).items():
                            found[size, way, direction, what] = value
                        sender.close()
            channel.release()
        return found


def _measure(sender: Sender, counter: Counter, window: int, pid: int) -> dict[str, float]:
    load(sender, counter, window, WARM_UP_S)
    cpu = cpu_of(pid)
    count = load(sender, counter, window, LOAD_S)
    cpu = cpu_of(pid) - cpu
    if not count.received:
        raise WorkerFailed("the server relayed nothing")
    return {
        CPU: cpu / count.received * 1e6,
        ELAPSED: count.seconds / count.received * 1e6,
        LOST: 1 - count.received / count.sent,
    }


def _start(machine: Machine, name: str) -> int:
    """Start a server, and return its process."""
    if name == COTURN:
        coturn(machine, *COTURN_OPTIONS, users={TURN_USER: TURN_PASSWORD}, port=PORT)
    else:
        serve(machine, f"--user={TURN_USER}:{TURN_PASSWORD}", "--realm=lab", *OPTIONS.get(name, ()))
    inode = machine.namespace.inode
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                if (process / "ns" / "net").stat().st_ino == inode:
                    return int(process.name)
    raise WorkerFailed(f"{name} does not run")
