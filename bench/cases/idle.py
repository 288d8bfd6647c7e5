"""What do 200 connected agents cost that carry no data?

Two processes per contender: one has the 200 agents, the other one their peers, and descriptions go through pipes. All
that happens is consent (RFC 7675): a check every 4 to 6 s per agent, with both makes. Processor time is that of one
side, the mean of both, over 15 s; memory is the growth from 50 to 200 agents, per agent. The contenders run at the same
time, each in a namespace of its own: 5 % of a core is all they need. Ours runs a second time with
``Config.consent_slack_s`` 0, where no two agents wake their process together: what a process with one agent pays.

Agents of ours in one process share a ceiling of 200 checks a second, so that 150 of them need some seconds to
connect. It
is left as it is, and what is measured begins afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bench.cases import Options
from bench.contenders import CONTENDERS, OURS_ALONE
from bench.netns import loopback_hosts, loopback_only, udp_sent
from bench.processes import Worker, WorkerFailed
from bench.results import Metric
from iceagent.lab.namespace import Namespace

__all__ = ["run"]

FEW, MANY = 50, 200
NAMES = (*CONTENDERS, OURS_ALONE)
CONNECT_LIMIT_S = 40.0
SETTLE_S = 1.0
WINDOW_S = 15.0

TARGET_CPU_RATIO = 4.0
TARGET_MEMORY_RATIO = 1.0

Sides = tuple[Namespace, Worker, Worker]


def run(options: Options) -> list[Metric]:
    """Both contenders side by side, in new processes every round."""
    cpu: dict[str, list[float]] = {name: [] for name in NAMES}
    memory: dict[str, list[float]] = {name: [] for name in NAMES}
    sent: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(options.rounds):
        options.tell(f"idle: round {number + 1}")
        with contextlib.ExitStack() as stack:
            running = {name: stack.enter_context(_start(name)) for name in NAMES}
            for name in NAMES:
                memory[name].append(_fill(running[name]))
            for name, values in _watch(running).items():
                cpu[name].append(values[0])
                sent[name].append(values[1])
    packets = ", ".join(f"{name} {sum(values) / len(values):.0f}" for name, values in sent.items())
    return [
        Metric(
            name=f"{MANY} idle agents, CPU",
            unit="% of a core",
            ours=cpu["ours"],
            peer=cpu["aioice"],
            ratio_at_least=TARGET_CPU_RATIO,
            note=f"datagrams per second, both sides: {packets}",
        ),
        Metric(
            name=f"{MANY} idle agents without shared wake-ups, CPU",
            unit="% of a core",
            ours=cpu[OURS_ALONE],
            peer=cpu["aioice"],
        ),
        Metric(
            name="memory per connected agent",
            unit="KiB",
            ours=memory["ours"],
            peer=memory["aioice"],
            ratio_at_least=TARGET_MEMORY_RATIO,
        ),
    ]


@contextlib.contextmanager
def _start(name: str) -> Iterator[Sides]:
    arguments = {"name": name, "loopback_hosts": loopback_hosts(1)}
    with (
        loopback_only(1) as namespace,
        Worker(namespace, "bench.side:serve", controlling=True, **arguments) as first,
        Worker(namespace, "bench.side:serve", controlling=False, **arguments) as second,
    ):
        yield namespace, first, second


def _fill(sides: Sides) -> float:
    """Connect a few, then many; KiB per agent of the later ones, the mean of both sides."""
    _connect(sides, FEW)
    few = _memory(sides)
    _connect(sides, MANY - FEW)
    return (_memory(sides) - few) / (MANY - FEW) / 1024


def _connect(sides: Sides, count: int) -> None:
    workers = sides[1:]
    for worker in workers:
        worker.send("gather", count=count)
    descriptions = [worker.reply() for worker in workers]
    for worker, theirs in zip(workers, reversed(descriptions), strict=True):
        worker.send("connect", descriptions=theirs, limit_s=CONNECT_LIMIT_S)
    if any(worker.reply()["connected"] is None for worker in workers):
        raise WorkerFailed(f"{count} agents did not connect within {CONNECT_LIMIT_S:.0f} s")
    time.sleep(SETTLE_S)


def _memory(sides: Sides) -> float:
    values = [worker.ask("memory") for worker in sides[1:]]
    return float(sum(values)) / len(values)


def _watch(running: dict[str, Sides]) -> dict[str, tuple[float, float]]:
    """Per contender: per cent of a core that one side takes, and datagrams per second."""
    before = {name: _reading(sides) for name, sides in running.items()}
    time.sleep(WINDOW_S)
    after = {name: _reading(sides) for name, sides in running.items()}
    found = {}
    for name in running:
        at, cpu, sent = (b - a for a, b in zip(before[name], after[name], strict=True))
        found[name] = (cpu / 2 / at * 100, sent / at)
    return found


def _reading(sides: Sides) -> tuple[float, float, int]:
    namespace, *workers = sides
    return time.monotonic(), sum(worker.ask("cpu") for worker in workers), udp_sent(namespace)
