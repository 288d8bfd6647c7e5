"""What tests of the kernel's part of reflector and relay share."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from iceagent.lab import Machine
from iceagent.net.address import TransportAddress
from relay.latch.channel import Flow
from relay.latch.kernel import KernelForwarder

LEFT, RIGHT = 5000, 5001
SO_NO_CHECK = 11
IP_RECVTTL = 12
QUIET_S = 0.15


def udp(machine: Machine, version: int = 4, port: int = 0) -> socket.socket:
    """A socket there, bound to the machine's address."""
    sock = machine.namespace.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
    sock.settimeout(2)
    sock.bind((machine.hosts_of(version)[0], port))
    return sock


def is_quiet(sock: socket.socket) -> bool:
    """Nothing comes."""
    return not select.select([sock], [], [], QUIET_S)[0]


def address_of(sock: socket.socket) -> TransportAddress:
    return TransportAddress(*sock.getsockname()[:2])


@contextmanager
def forwarding(machine: Machine, *flows: Flow) -> Iterator[KernelForwarder]:
    """The kernel of the machine forwards."""
    with asyncio.Runner() as runner:
        forwarder = KernelForwarder(runner.run(host_of(machine)))
        runner.run(forwarder.open())
        with closing(forwarder):
            forwarder.change((), flows)
            yield forwarder


@contextmanager
def calling(alice: Machine, relay: Machine, bob: Machine) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets, between which the relay's kernel forwards."""
    with (
        udp(alice) as one,
        udp(bob) as other,
        forwarding(relay, *both_ways(address_of(one), relay.address, address_of(other))),
    ):
        yield one, other


async def host_of(machine: Machine) -> Any:
    return machine.host


def both_ways(one: TransportAddress, relay: str, other: TransportAddress) -> tuple[Flow, Flow]:
    """The two flows of a channel."""
    left, right = TransportAddress(relay, LEFT), TransportAddress(relay, RIGHT)
    return Flow(one, left, right, other), Flow(other, right, left, one)
