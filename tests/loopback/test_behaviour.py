"""RFC 5780, both ends of it ours, on real sockets."""

from __future__ import annotations

import random

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.net.local import LocalHost
from relay.behaviour import BehaviourMeasured, BehaviourProbe, BehaviourReport, Filtering, Mapping
from relay.server import Server, ServerOptions
from tests.loopback.loops import LoopFactory, News, on_both_loops, run


class Client(News):
    """A behaviour probe on two sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: dict[TransportAddress, DatagramSocket] = {}
        self.driver: Driver | None = None
        self.report: BehaviourReport | None = None

    async def measure(self, host: LocalHost, server: TransportAddress, local: TransportAddress) -> BehaviourReport:
        for _ in range(2):
            socket = host.socket(local, self, SocketOptions())
            self.sockets[socket.address] = socket
        core = BehaviourProbe([server], *self.sockets, system_rng=random.SystemRandom())
        self.driver = Driver(core, host, self.send, self.on_event)
        try:
            self.driver.command(core.start)
            await self.until(lambda: self.report is not None)
        finally:
            self.driver.close()
            for socket in self.sockets.values():
                socket.close()
        assert self.report is not None
        return self.report

    def send(self, transmit: Transmit) -> int:
        return self.sockets[transmit.base].send(transmit.data, transmit.destination)

    def on_event(self, event: Event) -> None:
        if isinstance(event, BehaviourMeasured):
            self.report = event.report
            self.tell()

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        assert self.driver is not None
        self.driver.datagram(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        assert self.driver is not None
        if destination is not None:
            self.driver.error(socket.address, destination, errno)


@on_both_loops
def test_loopback_neither_maps_nor_filters(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        listen = [TransportAddress("127.0.0.1", 0), TransportAddress("127.0.0.2", 0)]
        async with Server(host, listen, options=ServerOptions(behaviour_discovery=True)) as server:
            report = await Client().measure(host, server.listeners[0].address, TransportAddress("127.0.0.1", 0))
            assert (report.mapping, report.filtering) == (Mapping.NONE, Filtering.EIF), report.evidence
            assert {seen.mapped for seen in report.observations} == {seen.base for seen in report.observations}

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("is_open", [True, False])
def test_a_plain_server_or_none_says_less(loop_factory: LoopFactory, is_open: bool) -> None:
    async def main() -> None:
        host = LocalHost()
        local = TransportAddress("127.0.0.1", 0)
        async with Server(host, [local]) as server:
            address = server.listeners[0].address
            if not is_open:
                await server.aclose()
            report = await Client().measure(host, address, local)
        assert report.mapping is (Mapping.NONE if is_open else Mapping.UNKNOWN)
        assert report.filtering is Filtering.UNKNOWN

    run(loop_factory, main())
