"""How many datagrams a second does a core send back: our reflector, in userspace and in nftables, and plain echoes?

Client and reflector are machines of a laboratory (``iceagent.lab``), joined by a cable; all of the reflector's work,
the kernel's included, is done by one core, and who sends and counts has another one (``bench/one_core.py``). Datagrams
of 100 and 1,200 bytes leave one by one. Beside ours, ``iceagent reflect`` with both back ends, stand a loop of
``recvfrom`` and ``sendto``, and a protocol of asyncio's (``bench/contenders/plain.py``).

Each of them has to return some datagrams unchanged, from the address that was asked, before it is measured. Judged by
the time that the core was not idle, for each datagram that came back: where nftables reflects, it may have to wait for
who sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cases import Options
from bench.one_core import Passed, Way, join, measure, on_core, pin, rows, two_cores, work_on
from bench.processes import Worker, WorkerFailed
from bench.results import Metric
from iceagent.lab import Lab, Machine
from iceagent.lab.services import Service
from iceagent.net.address import TransportAddress

__all__ = ["run"]

LOOP, ASYNCIO = "recvfrom/sendto", "asyncio"
USERSPACE, NFTABLES = "userspace", "nftables"
CONTENDERS = (LOOP, ASYNCIO, USERSPACE, NFTABLES)
ECHOES = {LOOP: "blocking_echo", ASYNCIO: "asyncio_echo"}
TARGETS = {(NFTABLES, LOOP): 2.5, (NFTABLES, ASYNCIO): 10.0}
"""Times as many datagrams per second of the core."""

SIZES = (100, 1200)
PORT, CLIENT_PORT = 9_999, 6_000
# Datagrams a second that nothing here reaches.
UNLIMITED = "100000000"
ANSWER_TIMEOUT_S = 0.1
READY_LIMIT_S = 10.0

# (contender, bytes) → one per round.
Found = dict[tuple[str, int], list[Passed]]


def run(options: Options) -> list[Metric]:
    """All in turn, each time in a process of its own, beginning with another one in every round."""
    theirs, ours = two_cores()
    found: Found = {}
    with Lab() as lab, on_core(ours):
        client, reflector = lab.machine("client"), lab.machine("reflector")
        join(reflector, client)
        work_on(reflector, client.name, theirs)
        for number in range(options.rounds):
            options.tell(f"reflect: round {number + 1}")
            for i in range(len(CONTENDERS)):
                name = CONTENDERS[(i + number) % len(CONTENDERS)]
                for size, passed in _measure(client, reflector, name, theirs).items():
                    found.setdefault((name, size), []).append(passed)
    return _metrics(found)


def _metrics(found: Found) -> list[Metric]:
    metrics = []
    for name, peer in ((name, peer) for name in (NFTABLES, USERSPACE) for peer in (LOOP, ASYNCIO)):
        for size in SIZES:
            title, target = f"reflector in {name}, {size:,} bytes", TARGETS.get((name, peer))
            metrics += rows(title, found[name, size], peer, found[peer, size], target)
    return metrics


def _measure(client: Machine, reflector: Machine, name: str, core: int) -> dict[int, Passed]:
    """One process of a contender, both sizes."""
    here, there = TransportAddress(client.address, CLIENT_PORT), TransportAddress(reflector.address, PORT)
    expected = f"ip saddr {there.host} udp sport {there.port} ip daddr {here.host} udp dport {here.port}"
    way = Way(client, reflector, client, [(here, there)], expected)
    with contextlib.closing(client.namespace.socket()) as sock, _started(reflector, name, sock) as pid:
        pin(pid, core)
        for size in SIZES:
            if not _is_echoed(sock, there, os.urandom(size)):
                raise WorkerFailed(f"{name} did not send back what it was sent")
        not_by = pid if name == NFTABLES else None
        return {size: measure(way, core, bytes(size), size, not_by=not_by) for size in SIZES}


@contextlib.contextmanager
def _started(machine: Machine, name: str, sock: socket.socket) -> Iterator[int]:
    """A contender that answers; its process."""
    sock.settimeout(ANSWER_TIMEOUT_S)
    sock.bind(("", CLIENT_PORT))
    if name in ECHOES:
        function = f"bench.contenders.plain:{ECHOES[name]}"
        with Worker(machine.namespace, function, host=machine.address, port=PORT) as worker:
            worker.reply(READY_LIMIT_S)
            yield worker.pid
        return
    command = [
        *(sys.executable, "-P", "-m", "iceagent", "reflect", "--port", str(PORT), "--backend", name, "--json"),
        *("--per-source", UNLIMITED, "--total", UNLIMITED),
    ]
    log = machine.folder / "reflect.log"
    service = Service(machine, "reflect", command, lambda: _backend_told(log) is not None)
    try:
        if (taken := _backend_told(log)) != name:
            raise WorkerFailed(f"the reflector took {taken}, and not {name}")
        yield service.pid
    finally:
        service.stop()
        log.unlink()


def _backend_told(log: Path) -> str | None:
    """The back end that a reflector took, once it is ready."""
    for line in log.read_text().splitlines(keepends=True):
        # The last one may not be whole yet.
        if line.endswith("}\n") and (event := json.loads(line)).get("event") == "reflect.ready":
            return str(event["backend"])
    return None


def _is_echoed(sock: socket.socket, address: TransportAddress, data: bytes) -> bool:
    """Whether a datagram comes back unchanged from where it was sent to; older ones are passed over."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    try:
        sock.sendto(data, address)
        while time.monotonic() < deadline:
            if sock.recvfrom(len(data) + 1) == (data, address):
                return True
    except (TimeoutError, ConnectionRefusedError):
        pass
    return False
