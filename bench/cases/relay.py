"""What does a datagram cost over a TURN relay, and how many of them get there in a second?

Both agents are relay-only, on machines of a laboratory (``iceagent.lab``), and so is the server, which handles every
datagram twice, as the sender's relay and as the receiver's. Datagrams of 1,200 and of 100 bytes leave in bursts of 24,
at most two of which are unanswered (``bench/stream.py``), so that no buffer loses any; what is lost all the same does
not count. Each agent has a process of its own. Ours receives with a callback; aioice with ``send`` and ``recv``, as it
is, and with ``max_size`` of the socket to the server set to 2,048 (see ``datagrams``).

The rate is that of the three processes together, on what cores there are: time elapsed per datagram that arrived. The
processor time of sender and receiver is that of their processes; the server's is told beside it. There are two servers:
``iceagent serve``, by which the rates are judged, and coturn, which takes the same time for every datagram, whoever
sends: most of the time elapsed is its own there, and the rates tell of it more than of the agents.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.cases import Options
from bench.contenders import AIOICE, AIOICE_FIXED, OURS, TURN_PASSWORD, TURN_USER
from bench.processes import Worker, WorkerFailed, cpu_of
from bench.results import Metric
from bench.sessions import session
from bench.side import Side, obey
from bench.stream import BURST, Inflow, Outflow

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab import Machine

__all__ = ["run", "serve"]

SIZES = (1200, 100)
WARM_UP_BURSTS = 100
BURSTS = 800
CONNECT_LIMIT_S = 15.0
PORT = 3478

WAYS = (OURS, AIOICE, AIOICE_FIXED)
TARGET = 4.0
"""Times aioice's rate."""

RATE, SENDER, RECEIVER, BOTH, SERVER, LOST = "rate", "sender", "receiver", "both", "server", "lost"

SERVE, COTURN = "iceagent serve", "coturn"

# (server, way, bytes, what) → one value per round.
Found = dict[tuple[str, str, int, str], list[float]]


def run(options: Options) -> list[Metric]:
    """All ways in turn, each time in processes of their own, beginning with another one in every round."""
    from iceagent.lab import Lab, services

    found: Found = {}
    with Lab() as lab:
        a, b = lab.machine("a"), lab.machine("b")
        servers = {}
        for name, start in ((SERVE, _start_ours), (COTURN, _start_coturn)):
            machine = lab.machine()
            servers[name] = ((machine.address, PORT), start(services, machine).pid)
        for number in range(options.rounds):
            options.tell(f"relay: round {number + 1}")
            for i in range(len(WAYS)):
                way = WAYS[(i + number) % len(WAYS)]
                for name, (turn, pid) in servers.items():
                    for (size, what), value in _session(a, b, turn, pid, way).items():
                        found.setdefault((name, way, size, what), []).append(value)
    return [metric for name in servers for size in SIZES for metric in _metrics(found, name, size)]


def _start_ours(services: Any, machine: Machine) -> Any:
    return services.serve(machine, "--user", f"{TURN_USER}:{TURN_PASSWORD}")


def _start_coturn(services: Any, machine: Machine) -> Any:
    return services.coturn(machine, users={TURN_USER: TURN_PASSWORD}, port=PORT)


def _metrics(found: Found, server: str, size: int) -> list[Metric]:
    name = f"by {server}, {size:,} bytes"
    metrics = []
    for what, label, unit in (
        (RATE, "each that arrives", "µs elapsed"),
        (SENDER, "sender", "µs of CPU"),
        (RECEIVER, "receiver", "µs of CPU"),
        (BOTH, "sender and receiver", "µs of CPU"),
    ):
        for peer in (AIOICE, AIOICE_FIXED):
            metrics.append(
                Metric(
                    name=f"{name}, {label}",
                    unit=unit,
                    ours=found[server, OURS, size, what],
                    peer=found[server, peer, size, what],
                    peer_name=peer,
                    ratio_at_least=TARGET if (server, what, peer) == (SERVE, RATE, AIOICE) else None,
                    note=_note(found, server, size) if (what, peer) == (RATE, AIOICE) else "",
                )
            )
    return metrics


def _note(found: Found, server: str, size: int) -> str:
    texts = []
    for way in WAYS:
        rate = 1e6 / median(found[server, way, size, RATE])
        spent = median(found[server, way, size, SERVER])
        lost = max(found[server, way, size, LOST])
        texts.append(f"{way} {rate:,.0f}/s (server {spent:.1f} µs of CPU each; lost at worst {lost:.2%})")
    return ", ".join(texts)


def _session(a: Machine, b: Machine, turn: tuple[str, int], pid: int, way: str) -> dict[tuple[int, str], float]:
    """One connection, both sizes over it; microseconds per datagram that arrived."""
    with session(a.namespace, b.namespace, way, function="bench.cases.relay:serve", turn=turn) as connection:
        if connection.connect(CONNECT_LIMIT_S) is None:
            raise WorkerFailed(f"{way} did not connect over the relay within {CONNECT_LIMIT_S:.0f} s")
        sender, receiver = connection.sides
        receiver.ask("receive")
        found = {}
        for size in SIZES:
            sender.ask("stream", size=size, bursts=WARM_UP_BURSTS)
            for what, value in _measure(sender, receiver, pid, size).items():
                found[size, what] = value
        return found


def _measure(sender: Worker, receiver: Worker, server_pid: int, size: int) -> dict[str, float]:
    receiver_cpu, server_cpu = receiver.ask("cpu"), cpu_of(server_pid)
    sent = sender.ask("stream", size=size, bursts=BURSTS)
    receiver_cpu, server_cpu = receiver.ask("cpu") - receiver_cpu, cpu_of(server_pid) - server_cpu
    received = sent["received"]
    both = sent["cpu"] + receiver_cpu
    spent = {RATE: sent["wall"], SENDER: sent["cpu"], RECEIVER: receiver_cpu, BOTH: both, SERVER: server_cpu}
    return {what: seconds / received * 1e6 for what, seconds in spent.items()} | {LOST: 1 - received / BURSTS / BURST}


# --- in the measuring processes --------------------------------------------------------------------------------------


async def serve(name: str, controlling: bool, loopback_hosts: list[str], turn: tuple[str, int]) -> None:
    """Obey until standard input ends, as :func:`bench.side.serve`, and beside that:

    - ``receive``: take a stream from now on, and answer.
    - ``stream`` (size, bursts): send one; replies with the datagrams that arrived, and with the seconds that it took:
      elapsed (``wall``), and of this process (``cpu``).
    """
    await obey(_End(name, controlling, tuple(loopback_hosts), (turn[0], turn[1])))


class _End(Side):
    """One end of the stream."""

    _outflow: Outflow | None = None
    _reading: asyncio.Future[None] | None = None

    async def receive(self) -> None:
        self._read(Inflow().take)

    async def stream(self, size: int, bursts: int) -> dict[str, float]:
        outflow = self._outflow
        if outflow is None:
            outflow = self._outflow = Outflow(self._sending())
            self._read(outflow.take)
        received = outflow.received
        wall, cpu = time.perf_counter(), time.process_time()
        await outflow.run(size, bursts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"received": outflow.received - received, "wall": wall, "cpu": cpu}

    def _sending(self) -> Callable[[Sequence[bytes]], Awaitable[None]]:
        """As each make is used best: no coroutine of ours in between."""
        agent: Any = self._agents[0]

        async def ours(datagrams: Sequence[bytes]) -> None:
            send = agent.agent.send
            for data in datagrams:
                send(data)

        async def theirs(datagrams: Sequence[bytes]) -> None:
            send = agent.connection.send
            for data in datagrams:
                await send(data)

        return ours if self._name == OURS else theirs

    def _read(self, take: Callable[[bytes], bytes | None]) -> None:
        """Hand everything that comes to ``take``, and send what it returns."""
        agent: Any = self._agents[0]
        if self._name == OURS:
            send = agent.agent.send

            def on_data(data: bytes, component: int) -> None:
                answer = take(data)
                if answer is not None:
                    send(answer)

            agent.agent.set_data_handler(on_data)
        else:
            self._reading = asyncio.ensure_future(_read_on(agent.connection, take))


async def _read_on(connection: Any, take: Callable[[bytes], bytes | None]) -> None:
    recv, send = connection.recv, connection.send
    while True:
        answer = take(await recv())
        if answer is not None:
            await send(answer)
