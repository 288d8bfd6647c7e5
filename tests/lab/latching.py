"""Calls over a latching relay in the laboratory, which its tests share."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from iceagent.lab import Machine
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.backend import Backend
from relay.latch.channel import (
    Channel,
    ChannelOptions,
    ChannelStatistics,
    SideKey,
)
from relay.latch.relay import LatchRelay, random_key
from relay.stun import (
    USERNAME,
    XOR_MAPPED_ADDRESS,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)

BACKENDS: tuple[Backend, ...] = ("userspace", "nftables")
on_both_backends = pytest.mark.parametrize("backend", BACKENDS)


class Client:
    """A socket on a machine, which sends to one side of a channel.

    Attributes:
        to: the side's address.
        key: of it; ``None``: it has none.
    """

    def __init__(self, machine: Machine, to: TransportAddress, key: SideKey | None = None) -> None:
        host = machine.hosts_of(to.version)[0]
        self._sock = machine.namespace.socket(socket.AF_INET6 if to.version == 6 else socket.AF_INET)
        self._sock.setblocking(False)
        self._sock.bind((host, 0))
        self.machine = machine
        self.to = to
        self.key = key

    def request(self) -> bytes:
        """A new one, signed."""
        assert self.key is not None
        message = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, self.key.username))
        return message.encode(short_term_key(self.key.password))

    async def latch(self) -> TransportAddress:
        """One request; the mapped address of the answer, which is signed, and the next that comes."""
        self.send(self.request())
        data = await self.receive()
        assert data is not None, "no answer"
        answer = parse(data)
        assert self.key is not None
        assert answer.is_success and answer.verify(short_term_key(self.key.password))
        mapped = answer.get(XOR_MAPPED_ADDRESS)
        assert mapped is not None
        return mapped

    def send(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self._sock.sendto(data, self.to)

    async def receive(self, timeout_s: float = 2.0) -> bytes | None:
        """The next datagram, which has to come from the relay's port; ``None``: nothing comes."""
        try:
            async with asyncio.timeout(timeout_s):
                data, source = await asyncio.get_running_loop().sock_recvfrom(self._sock, 70_000)
        except TimeoutError:
            return None
        assert source[:2] == self.to
        return data

    async def rest(self) -> list[bytes]:
        """Whatever else comes within a while."""
        found = []
        while (data := await self.receive(0.1)) is not None:
            found.append(data)
        return found

    def close(self) -> None:
        self._sock.close()


class Call:
    """Both sides of a channel, and who they are.

    Attributes:
        mapped: what each was told, left first.
    """

    def __init__(self, relay: Machine, channel: Channel, left: Machine, right: Machine, version: int = 4) -> None:
        ports = [TransportAddress(relay.hosts_of(version)[0], side.port) for side in channel.sides]
        self.left = Client(left, ports[0], channel.options.left)
        self.right = Client(right, ports[1], channel.options.right)
        self.mapped: list[TransportAddress] = []

    async def __aenter__(self) -> Call:
        self.mapped = [await client.latch() for client in (self.left, self.right)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left.close()
        self.right.close()

    async def passes(self, size: int = 100) -> None:
        """Both ways, unchanged."""
        for sender, receiver in ((self.left, self.right), (self.right, self.left)):
            data = os.urandom(size)
            sender.send(data)
            assert await receiver.receive() == data, f"{sender.machine.name} to {receiver.machine.name}"


@asynccontextmanager
async def relaying(
    machine: Machine, backend: Backend, events: list[Event] | None = None, **options: Any
) -> AsyncIterator[LatchRelay]:
    on_event = None if events is None else events.append
    async with LatchRelay(machine.host, backend=backend, on_event=on_event, **options) as relay:
        assert relay.backend == backend
        yield relay


def ended(relay: LatchRelay, channel: Channel) -> ChannelStatistics:
    """End a channel; its last statistics, with all that the kernel has forwarded."""
    relay.close_channel(channel)
    return relay.statistics(channel)


def keys(**limits: Any) -> ChannelOptions:
    return ChannelOptions(left=random_key(), right=random_key(), **limits)


async def until(fact: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Wait until it is true."""
    ends_at = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)
