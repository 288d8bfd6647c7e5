"""How many datagrams a second does a core relay: our latching relay, in userspace and in nftables, and others?

Client, relay and peer are machines of a laboratory (``iceagent.lab``), joined by two cables; all of the relay's work,
the kernel's included, is done by one core, and who sends and counts has another one (``bench/one_core.py``). Datagrams
of 100 and 1,200 bytes leave the client one by one, and are counted where they come in at the peer. Beside ours
(``LatchRelay`` with both of its back ends, latched by authenticated STUN Binding requests) stand a relay of two sockets
and ``select()`` (``bench/contenders/plain.py``), and coturn, with one allocation and ChannelData.

Ours runs with one channel, and with 1,000 which take turns: after 32 datagrams of a channel, all that the client hands
over in one call, the next one's come. Told beside it: what it costs if every datagram is of another channel than the
one before. Then no two of them can be read, or sent, together.

Each channel has to pass a datagram on unchanged, from the right port, before it is measured. Judged by the time that
the core was not idle, for each datagram that arrived: where nftables forwards, it may have to wait for who
sends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.cases import Options
from bench.contenders import TURN_PASSWORD, TURN_USER
from bench.one_core import COUNT, Passed, Way, join, measure, on_core, pin, rows, two_cores, work_on
from bench.processes import Worker, WorkerFailed
from bench.results import Metric
from bench.turn_channel import TurnChannel
from iceagent.lab import Lab, Machine
from iceagent.lab.services import coturn
from iceagent.net.address import TransportAddress
from relay.stun import USERNAME, BadMessage, MessageClass, Method, build, parse, short_term_key

__all__ = ["run"]

SELECT, COTURN = "select()", "coturn"
USERSPACE, NFTABLES = "userspace", "nftables"
MANY = 1_000
# Contender → back end and channels of ours.
OURS = {
    USERSPACE: (USERSPACE, 1),
    NFTABLES: (NFTABLES, 1),
    f"{USERSPACE}, {MANY:,} channels": (USERSPACE, MANY),
    f"{NFTABLES}, {MANY:,} channels": (NFTABLES, MANY),
}
CONTENDERS = (SELECT, COTURN, *OURS)
TARGETS = {(USERSPACE, SELECT): 1.3, (NFTABLES, SELECT): 4.0, (NFTABLES, COTURN): 2.0}
MANY_TARGET = 0.8
"""Times as many datagrams per second of the core; the last one: as with one channel."""
# Beside a contender's name: every datagram is of another channel.
MIXED = ", one by one"

SIZES = (100, 1200)
CLIENT_PORT, PEER_PORT = 30_000, 7_000
LEFT_PORT, RIGHT_PORT = 10_000, 20_000
TURN_PORT = 3_478
# Of both sides of all channels.
PASSWORD = "a password of both sides"
# One thread that relays, as everybody here.
COTURN_OPTIONS = ("--relay-threads=1",)
READY_LIMIT_S = 20.0
PASS_LIMIT_S = 5.0
ANSWER_TIMEOUT_S = 0.1
SIZE = 2_048

# (contender, bytes) → one of a round, one per round.
Measured = dict[tuple[str, int], Passed]
Found = dict[tuple[str, int], list[Passed]]


class _Running(NamedTuple):
    """A relay that both sides of all channels are latched to.

    Attributes:
        pid: its process.
        lefts: for each channel, what the client sends to.
        rights: for each channel, what arrives at the peer comes from.
        wrap: makes what the client sends of what the peer gets.
    """

    pid: int
    lefts: Sequence[TransportAddress]
    rights: Sequence[TransportAddress]
    wrap: Callable[[bytes], bytes] = bytes


def run(options: Options) -> list[Metric]:
    """All in turn, each time in a process of its own, beginning with another one in every round."""
    theirs, ours = two_cores()
    found: Found = {}
    with Lab() as lab, on_core(ours):
        field = _Field(lab, theirs)
        for number in range(options.rounds):
            options.tell(f"latch: round {number + 1}")
            for i in range(len(CONTENDERS)):
                name = CONTENDERS[(i + number) % len(CONTENDERS)]
                for key, passed in field.measure(name).items():
                    found.setdefault(key, []).append(passed)
    return _metrics(found)


def _metrics(found: Found) -> list[Metric]:
    metrics = []
    for name, peer in ((name, peer) for name in (USERSPACE, NFTABLES) for peer in (SELECT, COTURN)):
        for size in SIZES:
            title, target = f"latched relay in {name}, {size:,} bytes", TARGETS.get((name, peer))
            metrics += rows(title, found[name, size], peer, found[peer, size], target)
    for turns, many_target in (("", MANY_TARGET), (MIXED, None)):
        for name in (name for name, (_, channels) in OURS.items() if channels > 1):
            for size in SIZES:
                title, ours = f"latched relay in {name}{turns}, {size:,} bytes", found[name + turns, size]
                metrics += rows(title, ours, "one channel", found[OURS[name][0], size], many_target)
    return metrics


class _Field:
    """Client, relay and peer.

    Args:
        lab: where.
        core: of the relay.
    """

    def __init__(self, lab: Lab, core: int) -> None:
        self._client, self._relay, self._peer = (lab.machine(name) for name in ("client", "relay", "peer"))
        self._core = core
        for end in (self._client, self._peer):
            join(self._relay, end)
            work_on(self._relay, end.name, core)

    def measure(self, name: str) -> Measured:
        """One process of a contender."""
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(contextlib.closing(_bound(self._peer, PEER_PORT)))
            relay = stack.enter_context(self._coturn(peer) if name == COTURN else self._latched(name, peer))
            pin(relay.pid, self._core)
            ports = [right.port for right in relay.rights]
            expected = (
                f"ip saddr {self._relay.address} udp sport {{ {min(ports)}-{max(ports)} }} "
                f"ip daddr {self._peer.address} udp dport {PEER_PORT}"
            )
            flows = [
                (TransportAddress(self._client.address, CLIENT_PORT + i), left) for i, left in enumerate(relay.lefts)
            ]
            not_by = relay.pid if name in OURS and OURS[name][0] == NFTABLES else None
            found = {}
            for turns, burst in (("", COUNT), (MIXED, 1)) if len(flows) > 1 else (("", COUNT),):
                way = Way(self._client, self._relay, self._peer, flows, expected, burst)
                for size in SIZES:
                    found[name + turns, size] = measure(way, self._core, relay.wrap(bytes(size)), size, not_by=not_by)
            return found

    @contextlib.contextmanager
    def _coturn(self, peer: socket.socket) -> Iterator[_Running]:
        server = TransportAddress(self._relay.address, TURN_PORT)
        service = coturn(self._relay, *COTURN_OPTIONS, users={TURN_USER: TURN_PASSWORD}, port=TURN_PORT)
        with contextlib.closing(_bound(self._client, CLIENT_PORT)) as client:
            try:
                for sock in (client, peer):
                    sock.setblocking(False)
                channel = TurnChannel(client, peer, server)
                for sock in (client, peer):
                    sock.settimeout(ANSWER_TIMEOUT_S)
                relay = _Running(service.pid, [server], [TransportAddress(*peer.getpeername())], channel.wrap)
                _check(relay, 0, client, peer)
                yield relay
            finally:
                service.stop()

    @contextlib.contextmanager
    def _latched(self, name: str, peer: socket.socket) -> Iterator[_Running]:
        host = self._relay.address
        backend, channels = OURS.get(name, ("", 1))
        lefts, rights = (
            [TransportAddress(host, port + i) for i in range(channels)] for port in (LEFT_PORT, RIGHT_PORT)
        )
        latch: Callable[[socket.socket, TransportAddress, str], None]
        if name == SELECT:
            function, latch = "bench.contenders.plain:select_relay", _latch_by_sending
            arguments: dict[str, Any] = {"left": LEFT_PORT, "right": RIGHT_PORT}
        else:
            function, latch = "bench.contenders.latching:relay", _latch_by_key
            ports = [(left.port, right.port) for left, right in zip(lefts, rights, strict=True)]
            arguments = {"backend": backend, "ports": ports, "password": PASSWORD}
        with Worker(self._relay.namespace, function, host=host, **arguments) as worker:
            taken = worker.reply(READY_LIMIT_S)
            if name in OURS and taken != backend:
                raise WorkerFailed(f"the relay took {taken}, and not {backend}")
            relay = _Running(worker.pid, lefts, rights)
            for i, (left, right) in enumerate(zip(lefts, rights, strict=True)):
                with contextlib.closing(_bound(self._client, CLIENT_PORT + i)) as client:
                    latch(peer, right, "right")
                    latch(client, left, "left")
                    _check(relay, i, client, peer)
            yield relay


def _latch_by_sending(sock: socket.socket, address: TransportAddress, side: str) -> None:
    sock.sendto(b"", address)


def _latch_by_key(sock: socket.socket, address: TransportAddress, side: str) -> None:
    """By a STUN Binding request under the key of the side; what comes meanwhile is passed over.

    Raises:
        WorkerFailed: it was not answered under that key, within five seconds.
    """
    key = short_term_key(PASSWORD)
    request = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, side))
    deadline = time.monotonic() + PASS_LIMIT_S
    while time.monotonic() < deadline:
        sock.sendto(request.encode(key), address)
        with contextlib.suppress(TimeoutError, BadMessage):
            answer = parse(sock.recv(SIZE))
            if answer.transaction_id == request.transaction_id and answer.is_success and answer.verify(key):
                return
    raise WorkerFailed("the relay did not let itself be latched")


def _check(relay: _Running, channel: int, client: socket.socket, peer: socket.socket) -> None:
    """See datagrams of all sizes through.

    Raises:
        WorkerFailed: none arrived unchanged, and from the right address, within five seconds.
    """
    for size in SIZES:
        data = os.urandom(size)
        deadline = time.monotonic() + PASS_LIMIT_S
        while not _is_passed(relay, channel, data, client, peer):
            if time.monotonic() > deadline:
                raise WorkerFailed("the relay did not pass on what it was sent")


def _is_passed(relay: _Running, channel: int, data: bytes, client: socket.socket, peer: socket.socket) -> bool:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    client.sendto(relay.wrap(data), relay.lefts[channel])
    with contextlib.suppress(TimeoutError):
        # What was sent to latch may arrive as well.
        while time.monotonic() < deadline:
            if peer.recvfrom(SIZE) == (data, relay.rights[channel]):
                return True
    return False


def _bound(machine: Machine, port: int) -> socket.socket:
    sock = machine.namespace.socket()
    sock.settimeout(ANSWER_TIMEOUT_S)
    sock.bind((machine.address, port))
    return sock
