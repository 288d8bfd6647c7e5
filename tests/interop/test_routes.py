"""Default routes and shared sockets against a real kernel, in network namespaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest

from iceagent.lab.namespace import Namespace
from iceagent.net.host import DefaultRoute
from iceagent.net.local import LocalHost
from iceagent.net.netlink import open_netlink
from tests.interop.netns import namespace
from tests.loopback.loops import LoopFactory, News, on_both_loops, run


@pytest.fixture
def home() -> Iterator[Namespace]:
    with namespace() as made:
        made.ip(
            "link add e0 type veth peer name e1",
            "addr add 10.0.0.2/24 dev e0",
            "addr add 2a00:77::2/64 dev e0 nodad",
            "link set e0 up",
            "link set e1 up",
        )
        yield made


def host_in(home: Namespace) -> LocalHost:
    def open_there(groups: int) -> socket.socket:
        with home.entered():
            return open_netlink(groups)

    return LocalHost(open_netlink=open_there)


class Watcher(News):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Sequence[DefaultRoute]] = []

    def __call__(self, table: Sequence[DefaultRoute]) -> None:
        self.tables.append(table)
        self.tell()

    @property
    def routers(self) -> list[str | None]:
        return [route.router for route in self.tables[-1]] if self.tables else []


@on_both_loops
def test_default_routes_of_every_table_and_metric_are_told(home: Namespace, loop_factory: LoopFactory) -> None:
    home.ip(
        "link add t0 type veth peer name t1",
        "link set t0 up",
        "link set t1 up",
        "route add default via 10.0.0.1 metric 100",
        "route add default via 10.0.0.9 metric 50",
        "route add default via 10.0.0.7 table 7 metric 200",
        "route add default dev t0 metric 300",
        "route add 10.9.0.0/16 via 10.0.0.1",
        "route add unreachable default metric 4000",
        "route add ::/0 via fe80::1 dev e0 metric 60",
    )

    async def main() -> None:
        found = await host_in(home).default_routes()
        assert [(route.version, route.router) for route in found] == [
            (4, "10.0.0.9"),
            (6, "fe80::1"),
            (4, "10.0.0.1"),
            (4, "10.0.0.7"),
            (4, None),
        ]

    run(loop_factory, main())


@on_both_loops
def test_next_hops_of_one_route_are_told_each(home: Namespace, loop_factory: LoopFactory) -> None:
    home.ip("route add default nexthop via 10.0.0.1 dev e0 nexthop via 10.0.0.3 dev e0")

    async def main() -> None:
        assert {route.router for route in await host_in(home).default_routes()} == {"10.0.0.1", "10.0.0.3"}

    run(loop_factory, main())


@on_both_loops
def test_changes_of_default_routes_are_told_and_those_of_others_cost_no_reading(
    home: Namespace, loop_factory: LoopFactory
) -> None:
    async def main() -> None:
        host, watcher = host_in(home), Watcher()
        subscription = host.watch_default_routes(watcher)
        assert not await host.default_routes()
        home.ip("route add default via 10.0.0.1")
        await watcher.until(lambda: watcher.routers == ["10.0.0.1"])
        readings = host._routes.readings
        home.ip(*(f"route add 10.{n}.0.0/16 via 10.0.0.1" for n in range(1, 50)))
        assert [route.router for route in await host.default_routes()] == ["10.0.0.1"]
        assert host._routes.readings == readings
        home.ip("route replace default via 10.0.0.9")
        await watcher.until(lambda: watcher.routers == ["10.0.0.9"])
        home.ip("link set e0 down")
        await watcher.until(lambda: watcher.tables[-1] == ())
        subscription.close()
        host.close()

    run(loop_factory, main())
