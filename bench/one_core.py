"""How much does one core pass on? A machine under load, all of whose work is done by one core, and who loads it by
another one.

The work of a reflector or a relay is a process's, the kernel's in its name, and, where the kernel forwards by itself,
nobody's: it is done wherever a packet comes in, and through a cable between namespaces that is the sender's core. So on
the machine under load what comes in is handed to its core (RPS). Then everything is that core's, whoever passes a
datagram on: from the ingress of a device to the far end of a cable, where it is counted and dropped at once. How long
the core was not idle is what it cost. Whoever sends in trains has them cut by this core before they leave, as through
a network card that cannot do it.

All contenders get the same load: frames made beforehand (``bench/frames.py``), 32 in a call, and 64 on their way at
most, which the sockets of every contender hold. So next to nothing is lost, and nobody wastes time with what is. Who
loads never sleeps: two cores may be one to the machine below, and then each is slower while the other one is busy.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.frames import Arrivals, FrameSender, frame_header
from bench.mmsg import load
from bench.processes import WorkerFailed, cpu_of
from bench.results import Metric
from iceagent.lab.machines import Machine
from iceagent.net.address import TransportAddress

__all__ = ["COUNT", "Passed", "Way", "idle_ticks", "join", "measure", "on_core", "pin", "rows", "two_cores", "work_on"]

COUNT, WINDOW = 32, 64
WARM_UP_S = 0.1
LOAD_S = 1.0
# Part of the time that a process may run whose work the kernel is said to do.
KERNEL_SHARE = 0.2


def two_cores() -> tuple[int, int]:
    """One for what is measured, and one for us.

    Raises:
        WorkerFailed: there is one only.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise WorkerFailed("the server and who loads it need a core each, and this process may use one only")
    return cores[0], cores[1]


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """The calling thread, and what it starts, is on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, core: int) -> None:
    """All threads of a process, and what they start, are on this core from now on."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def join(server: Machine, end: Machine) -> None:
    """A cable between the two, beside the Internet; each end is called as the other machine."""
    server.namespace.veth(end.name, end.namespace, server.name)
    for here, there in ((server, end), (end, server)):
        here.namespace.up(there.name)
        here.namespace.route_to_link(f"{there.address}/32", there.name)


def work_on(machine: Machine, device: str, core: int) -> None:
    """What comes in through a device is the work of this core, whoever sent it (Receive Packet Steering). What leaves
    through it leaves one by one: a train (UDP_SEGMENT) is cut before, by the core that sends it.
    """
    machine.namespace.ip(f"link set dev {device} gso_max_segs 1")
    file = f"/sys/class/net/{device}/queues/rx-0/rps_cpus"
    # /sys shows the devices of the namespace that it was mounted in.
    shell = f"mount -t sysfs none /sys && echo {1 << core:x} > {file}"
    machine.namespace.run(["unshare", "--mount", "sh", "-ec", shell])


class Way(NamedTuple):
    """How datagrams go through the machine under load.

    Attributes:
        sender: whose datagrams.
        relay: the machine under load.
        receiver: where they arrive; may be the sender.
        flows: source and destination of what is sent, in turn.
        expected: what arrives, in the words of nft(8), but for its length.
        burst: so many datagrams of a flow come after each other.
    """

    sender: Machine
    relay: Machine
    receiver: Machine
    flows: Sequence[tuple[TransportAddress, TransportAddress]]
    expected: str
    burst: int = 1


class Passed(NamedTuple):
    """What a load found.

    Attributes:
        cpu_us: of the core, for each datagram that arrived: it was not idle for so long.
        elapsed_us: the same, on the clock.
        busy: part of the time that the core was not idle.
        lost: part of what was sent.
    """

    cpu_us: float
    elapsed_us: float
    busy: float
    lost: float


def measure(way: Way, core: int, data: bytes, size: int, *, not_by: int | None = None) -> Passed:
    """Load for a second.

    Args:
        core: of the machine under load.
        data: what is sent.
        size: bytes of the payload as it arrives.
        not_by: a process that does not pass them on, because the kernel does.

    Raises:
        WorkerFailed: nothing arrived, or ``not_by`` did it after all.
    """
    sender, receiver = way.sender.namespace, way.receiver.namespace
    macs = sender.mac(way.relay.name), way.relay.namespace.mac(way.sender.name)
    headers = [frame_header(macs, source, destination, len(data)) for source, destination in way.flows]
    with (
        contextlib.closing(FrameSender(sender, way.relay.name, headers, data, COUNT, way.burst)) as sending,
        contextlib.closing(Arrivals(receiver, way.relay.name, f"{way.expected} udp length {size + 8}")) as arrivals,
    ):
        load(sending, arrivals, WINDOW, WARM_UP_S)
        before, cpu = arrivals.expected(), cpu_of(not_by) if not_by is not None else 0.0
        idle, started = _idle(core), time.perf_counter()
        count = load(sending, arrivals, WINDOW, LOAD_S)
        elapsed = time.perf_counter() - started
        busy = max(0.0, elapsed - (_idle(core) - idle))
        received = arrivals.expected() - before
        if received <= 0:
            raise WorkerFailed("nothing arrived")
        if not_by is not None and cpu_of(not_by) - cpu > KERNEL_SHARE * elapsed:
            raise WorkerFailed("the process passes on what the kernel is said to pass on")
    return Passed(busy / received * 1e6, count.seconds / received * 1e6, busy / elapsed, 1 - received / count.sent)


def rows(
    name: str, ours: Sequence[Passed], peer_name: str, peer: Sequence[Passed], target: float | None
) -> list[Metric]:
    """Two: what a datagram costs, which is judged, and how long it took.

    Args:
        target: how many times as many datagrams a second ours has to pass on.
    """
    return [
        Metric(
            name=name,
            unit="µs of the core",
            ours=[passed.cpu_us for passed in ours],
            peer=[passed.cpu_us for passed in peer],
            peer_name=peer_name,
            ratio_at_least=target,
            note=f"{_told(ours)}; {peer_name}: {_told(peer)}",
        ),
        Metric(
            name=name,
            unit="µs elapsed",
            ours=[passed.elapsed_us for passed in ours],
            peer=[passed.elapsed_us for passed in peer],
            peer_name=peer_name,
        ),
    ]


def _told(found: Sequence[Passed]) -> str:
    """Thousands of datagrams a second, and whether there were more to be had."""
    per_core, seen = (1e3 / median(values) for values in ([p.cpu_us for p in found], [p.elapsed_us for p in found]))
    busy, lost = median(passed.busy for passed in found), max(passed.lost for passed in found)
    text = f"{per_core:,.0f} kpps per core, {seen:,.0f} seen, {busy:.0%} busy"
    return f"{text} (lost at worst {lost:.2%})" if lost > 0 else text


def _idle(core: int) -> float:
    """Seconds, in steps of 10 ms."""
    return idle_ticks(Path("/proc/stat").read_text(), core) / os.sysconf("SC_CLK_TCK")


def idle_ticks(text: str, core: int) -> int:
    """How long a core had nothing to do, by /proc/stat."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"cpu{core} "))
    # proc(5): idle and iowait are the 4th and 5th.
    return sum(int(field) for field in line.split()[4:6])
