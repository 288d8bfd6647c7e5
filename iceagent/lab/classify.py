"""What does a router do? Found by experiment, between a machine behind it and a server with two addresses.

Nothing here knows the rules of ``kinds.py``: the tests hold the one against the other.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

from iceagent.lab.errors import LabError
from iceagent.lab.machines import Machine
from iceagent.nat.kinds import Filtering, Mapping

__all__ = ["Findings", "classify", "lifetime_s"]

SERVER_PORTS = (3478, 3479)
FIRST_PORT = 5000
# A datagram that did not come in this time does not come; one crosses the laboratory in a tenth of a millisecond.
SILENCE_S = 0.15

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a router does, in the words of RFC 4787.

    Attributes:
        mapping: ``UNKNOWN``: not all datagrams passed.
        filtering: as above.
        keeps_port: the outside port was the inside one.
        hairpin: two sockets of one machine reached each other through the router's outside address.
        has_early_packet_trap: after a stranger's datagram to a port, our own to him left from another one.
        ports: outside ports of one socket towards (A, 1), (A, 2) and (B, 1), where A and B are the server's addresses.
    """

    mapping: Mapping
    filtering: Filtering
    keeps_port: bool
    hairpin: bool
    has_early_packet_trap: bool
    ports: tuple[int, ...] = ()


NOTHING = Findings(
    mapping=Mapping.UNKNOWN, filtering=Filtering.UNKNOWN, keeps_port=False, hairpin=False, has_early_packet_trap=False
)


def classify(machine: Machine, server: Machine) -> Findings:
    """Experiment for a second at most, on UDP ports from 5000 on.

    Args:
        machine: behind the router.
        server: on the Internet, with two IPv4 addresses; its ports 3478 and 3479 are free.
    """
    with _Bench(machine, server) as bench:
        ours = bench.client()
        seen = [bench.seen(ours, at) for at in (bench.a1, bench.a2, bench.b1)]
        mapped = [endpoint for endpoint in seen if endpoint is not None]
        if len(mapped) < len(seen):
            return NOTHING
        return Findings(
            mapping=_mapping(mapped),
            filtering=_filtering(bench),
            keeps_port=all(port == _port(ours) for _, port in mapped),
            hairpin=_hairpin(bench),
            has_early_packet_trap=_trap(bench, mapped[0][0]),
            ports=tuple(port for _, port in mapped),
        )


def lifetime_s(machine: Machine, server: Machine, at_most_s: float, step_s: float = 0.5) -> float | None:
    """Seconds after which a binding that nobody used was dead, to ``step_s``; ``None``: it lived for ``at_most_s``.

    Each age is tried with a binding of its own, because a try prolongs its life; all of them side by side.
    """
    with _Bench(machine, server) as bench:
        started = time.monotonic()
        steps = range(1, round(at_most_s / step_s) + 1)
        bindings = [(step * step_s, bench.client()) for step in steps]
        mapped = [bench.seen(ours, bench.a1) for _, ours in bindings]
        for (age, ours), outside in zip(bindings, mapped, strict=True):
            if outside is None:
                raise LabError("no datagram passed")
            time.sleep(max(0.0, started + age - time.monotonic()))
            bench.a1.sendto(b"alive?", outside)
            if not bench.arrives(ours):
                return age
    return None


class _Bench:
    """Sockets on both ends; use it in a ``with`` block."""

    def __init__(self, machine: Machine, server: Machine) -> None:
        a, b = server.hosts_of(4)[:2]
        self._machine = machine
        self._server = server
        self._stack = ExitStack()
        self._next_port = FIRST_PORT
        self.a1, self.a2, self.b1, self.b2 = (
            self._open(server, host, port) for host in (a, b) for port in SERVER_PORTS
        )

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self) -> socket.socket:
        """A new socket behind the router."""
        self._next_port += 1
        return self._open(self._machine, self._machine.address, self._next_port)

    def seen(self, ours: socket.socket, at: socket.socket) -> Endpoint | None:
        """As whom one of the server's sockets sees ours; ``None``: nothing arrived."""
        question = secrets.token_bytes(8)
        ours.sendto(question, at.getsockname())
        return self._receive(at, question)

    def arrives(self, at: socket.socket) -> bool:
        """Whether a datagram comes."""
        return self._receive(at) is not None

    def _receive(self, at: socket.socket, wanted: bytes | None = None) -> Endpoint | None:
        """Where a datagram came from; with ``wanted``, that one: a cable may double what was asked before."""
        while select.select([at], [], [], SILENCE_S)[0]:
            source: Endpoint
            data, source = at.recvfrom(100)
            if wanted is None or data == wanted:
                return source
        return None

    def _open(self, machine: Machine, host: str, port: int) -> socket.socket:
        sock = self._stack.enter_context(machine.namespace.socket())
        sock.bind((host, port))
        return sock


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def _mapping(mapped: list[Endpoint]) -> Mapping:
    to_a1, to_a2, to_b1 = mapped
    if to_a1 != to_a2:
        return Mapping.APDM
    return Mapping.EIM if to_a1 == to_b1 else Mapping.ADM


def _filtering(bench: _Bench) -> Filtering:
    """The server answers from elsewhere."""
    ours = bench.client()
    outside = bench.seen(ours, bench.a1)
    if outside is None:
        return Filtering.UNKNOWN
    bench.b1.sendto(b"from another host", outside)
    if bench.arrives(ours):
        return Filtering.EIF
    bench.a2.sendto(b"from another port", outside)
    return Filtering.ADF if bench.arrives(ours) else Filtering.APDF


def _hairpin(bench: _Bench) -> bool:
    """Both send, twice: the first one may have been what opens the other's filter."""
    sockets = bench.client(), bench.client()
    outside = [bench.seen(ours, bench.a1) for ours in sockets]
    for _ in range(2):
        for ours, other in zip(sockets, reversed(outside), strict=True):
            if other is not None:
                ours.sendto(b"it is me", other)
    return any(bench.arrives(ours) for ours in sockets)


def _trap(bench: _Bench, outside_host: str) -> bool:
    """A stranger knocks where our own flow to him is about to come out."""
    ours = bench.client()
    bench.b2.sendto(b"knock", (outside_host, _port(ours)))
    if bench.arrives(ours):
        return False
    before = bench.seen(ours, bench.a1)
    after = bench.seen(ours, bench.b2)
    return before is not None and after is not None and before[1] == _port(ours) != after[1]
