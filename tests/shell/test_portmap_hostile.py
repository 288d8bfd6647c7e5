"""What a careless application, a hostile gateway and a restless network do to a port mapper, on machines in memory."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from errno import EADDRNOTAVAIL, EAGAIN, EIO, ENETUNREACH, EPERM
from typing import Any

import pytest

from iceagent.gather.mapped import _shared
from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.net.host import DatagramReceiver, Interface, SocketOptions
from iceagent.testing import MemoryHost
from portmap import (
    PROTOCOLS,
    MappingChanged,
    MappingDeleted,
    MappingEvent,
    MappingFailed,
    MappingGone,
    MappingMade,
    MappingUnavailable,
    PortMapper,
    PortMapping,
)
from tests.fakes.gateway import FakeGateway
from tests.fakes.gateway.faults import Delivery
from tests.fakes.gateway.shell import GatewayShell
from tests.fakes.gateway.state import Options
from tests.shell.test_portmap import EXTERNAL, INSIDE, ROUTER, Home, at_home, until
from tests.shell.world import World, in_virtual_time

SECOND = "192.168.1.254"


class Complaints:
    """What the loop's exception handler hears, instead of failing the test."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.errors.append(context.get("exception"))
        )


def contradictions(events: Sequence[MappingEvent]) -> list[str]:
    """What the events of one mapping say that cannot be."""
    found, external, is_over = [], None, False
    for event in events:
        if is_over:
            found.append(f"{event} after the end")
        if isinstance(event, MappingMade):
            if external is not None:
                found.append(f"{event} while there is {external}")
            external = event.external
        elif isinstance(event, MappingGone):
            if external != event.external:
                found.append(f"{event} while there is {external}")
            external = None
        elif isinstance(event, MappingChanged):
            if external != event.old or event.old == event.new:
                found.append(f"{event} while there is {external}")
            external = event.new
        elif isinstance(event, MappingUnavailable) and external is not None:
            found.append(f"{event} while there is {external}")
        is_over |= isinstance(event, MappingDeleted)
    return found


# --- a careless application ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@in_virtual_time
async def test_a_port_that_is_mapped_already_is_refused_and_the_first_mapping_is_kept(protocol: str) -> None:
    """The gateways of PCP and NAT-PMP know one mapping of a port; before they were known, it was an error of nobody's,
    and whoever wanted the second one waited for ever.
    """
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        first, second = mapper.hold("udp", 6000), mapper.hold("udp", 6000)
        await until(first, MappingMade)
        refused = await until(second, MappingUnavailable)
        assert isinstance(refused, MappingUnavailable) and "mapped already" in refused.reasons[protocol]
        with pytest.raises(MappingFailed, match="mapped already"):
            await mapper.map("udp", 6000)
        assert len(home.gateway.mappings) == 1
        (await mapper.map("tcp", 6000)).close()
        await first.aclose()
        # It is asked for again by itself.
        await until(second, MappingMade)
        await second.aclose()
        assert not home.gateway.mappings


@in_virtual_time
async def test_one_who_waits_for_a_mapping_hears_that_the_mapper_was_closed() -> None:
    home = Home(World())
    home.gateway.faults.pcp.is_silent = home.gateway.faults.natpmp.is_silent = True
    home.gateway.faults.ssdp.is_silent = True
    async with home.shell():
        mapper = home.mapper()
        async with mapper:
            waiting: list[asyncio.Task[Any]] = [
                asyncio.ensure_future(mapper.map("udp", 6000)),
                asyncio.ensure_future(mapper.probe()),
                asyncio.ensure_future(mapper.list_mappings()),
            ]
            await asyncio.sleep(0.1)
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, RuntimeError) and "closed" in str(each)


@in_virtual_time
async def test_a_closed_mapper_opens_nothing() -> None:
    async with at_home() as (home, mapper):
        await mapper.map("udp", 6000)
    sockets = len(home.inside._sockets)
    for use in (mapper.probe, mapper.list_mappings):
        with pytest.raises(RuntimeError, match="closed"):
            await use()
    with pytest.raises(RuntimeError, match="closed"):
        mapper.hold("udp", 6000)
    await mapper.ready()
    await mapper.aclose()
    mapper.close()
    assert len(home.inside._sockets) == sockets == 0


@pytest.mark.parametrize(
    ("internal", "options"),
    [
        (TransportAddress("router.example", 6000), {}),
        (TransportAddress("", 6000), {}),
        (6000.5, {}),
        (True, {}),
        ("6000", {}),
        (6000, {"external_port": 6000.0}),
        (6000, {"lifetime_s": 600.5}),
        (6000, {"lifetime_s": float("nan")}),
        (6000, {"description": None}),
    ],
)
@in_virtual_time
async def test_what_is_no_port_address_or_lifetime_is_refused_at_once(internal: Any, options: Any) -> None:
    async with at_home() as (_, mapper):
        with pytest.raises((ValueError, TypeError)):
            mapper.hold("udp", internal, **options)
        assert not mapper._held


@in_virtual_time
async def test_an_address_may_be_spelled_as_one_likes() -> None:
    async with at_home(protocols=frozenset({"pcp"})) as (_, mapper):
        mapping = await mapper.map("udp", TransportAddress(f"::ffff:{INSIDE}", 6000))
        assert mapping.internal == TransportAddress(INSIDE, 6000)


@in_virtual_time
async def test_an_application_that_raises_costs_nobody_else_his_events() -> None:
    """It is told to the loop's exception handler, like every callback's error."""
    complaints = Complaints()

    def fail(mapping: PortMapping, event: MappingEvent) -> None:
        raise ZeroDivisionError(str(event))

    home = Home(World())
    async with home.shell(), home.mapper() as mapper:
        bad = [mapper.hold("udp", port, on_event=fail) for port in range(6000, 6003)]
        good = mapper.hold("udp", 7000)
        await until(good, MappingMade)
        home.inside.set_router(None)
        await until(good, MappingGone)
        home.inside.set_router(ROUTER)
        await until(good, MappingMade)
        for mapping in (*bad, good):
            await mapping.aclose()
    assert not home.gateway.mappings and not home.inside._sockets
    assert complaints.errors and all(isinstance(error, ZeroDivisionError) for error in complaints.errors)


@in_virtual_time
async def test_an_application_may_close_anything_in_a_callback() -> None:
    for event_kind in (MappingMade, MappingGone):
        home = Home(World())
        heard: dict[PortMapping, list[MappingEvent]] = {}
        async with home.shell(), home.mapper() as mapper:

            def close_all(
                mapping: PortMapping,
                event: MappingEvent,
                heard: dict[PortMapping, list[MappingEvent]] = heard,
                mapper: PortMapper = mapper,
                kind: type = event_kind,
            ) -> None:
                heard.setdefault(mapping, []).append(event)
                if isinstance(event, kind):
                    mapper.close()

            for port in range(6000, 6005):
                mapper.hold("udp", port, on_event=close_all)
            await asyncio.sleep(1.0)
            home.inside.set_router(SECOND)
            await asyncio.sleep(1.0)
            assert len(heard) == 5
            for events in heard.values():
                assert not contradictions(events) and isinstance(events[-1], MappingDeleted)
        assert not home.inside._sockets


@in_virtual_time
async def test_two_who_iterate_over_one_mapping_share_its_events_and_both_end() -> None:
    async with at_home() as (_, mapper):
        mapping = mapper.hold("udp", 6000)
        heard: list[MappingEvent] = []

        async def read() -> None:
            async for event in mapping:
                heard.append(event)

        readers = [asyncio.ensure_future(read()) for _ in range(3)]
        await asyncio.sleep(1.0)
        readers.pop().cancel()
        await mapping.aclose()
        await asyncio.wait_for(asyncio.gather(*readers), 1.0)
        assert [type(event) for event in heard] == [MappingMade, MappingDeleted]
        assert [event async for event in mapping] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@in_virtual_time
async def test_mappings_that_are_closed_at_any_moment_leave_nothing_behind(protocol: str) -> None:
    rng = random.Random(protocol)
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        for faults in (home.gateway.faults.pcp, home.gateway.faults.natpmp):
            faults.delay_s = 0.02
        for _ in range(300):
            heard: list[MappingEvent] = []

            def hear(_: PortMapping, event: MappingEvent, heard: list[MappingEvent] = heard) -> None:
                heard.append(event)

            mapping = mapper.hold("udp", rng.randrange(6000, 6010), on_event=hear)
            await asyncio.sleep(rng.choice((0.0, rng.random() * 0.05, rng.random())))
            if rng.random() < 0.5:
                await mapping.aclose()
            else:
                mapping.close()
            assert not contradictions(heard)
        await asyncio.sleep(1.0)
        assert not home.gateway.mappings and not mapper._held and not mapper._by_key
        assert mapper._sites is not None
        (site,) = mapper._sites
        assert (
            not site._deletions
            and not site.session._ending
            and not site.session._wanted
            and not site.session._by_client_key
        )


@in_virtual_time
async def test_thousands_that_are_held_at_once_are_bounded_and_none_is_forgotten() -> None:
    async with at_home(protocols=frozenset({"pcp"})) as (home, mapper):
        heard: Counter[type] = Counter()
        mappings = [
            mapper.hold("udp", port, on_event=lambda _, event: heard.update((type(event),)))
            for port in range(6000, 9000)
        ]
        await asyncio.sleep(5.0)
        assert len(home.gateway.mappings) == heard[MappingMade] == 256
        assert heard[MappingUnavailable] == 3000 - 256
        for mapping in mappings[:2900]:
            mapping.close()
        await asyncio.sleep(65.0)
        assert len(home.gateway.mappings) == 100
    assert not home.gateway.mappings


@in_virtual_time
async def test_more_mappings_than_a_router_has_connections_are_made_and_deleted() -> None:
    """256 exchanges at once were too many for it: half of the mappings failed, and most were left behind."""
    home = Home(World(), protocols=frozenset({"upnp"}))
    for machine in (home.inside, home.router):
        link = machine.link()
        link.up.latency_s = link.down.latency_s = 0.0005
    async with home.shell():
        async with home.mapper() as mapper:
            heard: Counter[type] = Counter()

            def count(_: PortMapping, event: MappingEvent) -> None:
                heard[type(event)] += 1

            for port in range(6000, 6256):
                mapper.hold("udp", port, on_event=count)
            await asyncio.sleep(120.0)
            assert heard == {MappingMade: 256} and len(home.gateway.mappings) == 256
        assert not home.gateway.mappings


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.01, 0.3, 0.799])
@in_virtual_time
async def test_closing_that_is_cancelled_closes_all_the_same(after_s: float) -> None:
    home = Home(World())
    async with home.shell():
        mapper = home.mapper()
        mapper.start()
        await mapper.map("udp", 6000)
        home.gateway.faults.pcp.is_silent = True
        closing = asyncio.ensure_future(mapper.aclose())
        await asyncio.sleep(after_s)
        closing.cancel()
        await asyncio.wait([closing])
        assert mapper._sites is not None and not list(mapper._sites) and not home.inside._sockets


@in_virtual_time
async def test_all_who_wait_may_be_cancelled_at_any_time() -> None:
    for steps in range(40):
        home = Home(World(seed=steps))
        async with home.shell():
            mapper = home.mapper()
            tasks: list[asyncio.Task[Any]] = [
                asyncio.ensure_future(mapper.__aenter__()),
                asyncio.ensure_future(mapper.map("udp", 6000)),
                asyncio.ensure_future(mapper.map("tcp", 6000)),
                asyncio.ensure_future(mapper.probe()),
                asyncio.ensure_future(mapper.list_mappings()),
            ]
            await asyncio.sleep(0.003 * steps)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for mapped in tasks[1:3]:
                if not mapped.cancelled():
                    mapped.result().close()
            await asyncio.sleep(0.6)
            assert not home.gateway.mappings, f"after {steps} steps"
            await mapper.aclose()
            assert not home.inside._sockets


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.03, 0.2])
@in_virtual_time
async def test_agents_that_are_closed_in_a_hurry_leave_the_mapper_to_the_others(after_s: float) -> None:
    home = Home(World(), protocols=frozenset({"pcp"}))
    async with home.shell():
        agents = [home.world.agent(home.inside) for _ in range(3)]
        await asyncio.gather(*(agent.gather() for agent in agents))
        await asyncio.sleep(1.0)
        assert len(home.gateway.mappings) == 3
        closing = [asyncio.ensure_future(agent.aclose()) for agent in agents[:2]]
        await asyncio.sleep(after_s)
        for each in closing:
            each.cancel()
        await asyncio.wait(closing)
        for agent in agents[:2]:
            await agent.aclose()
        assert len(home.gateway.mappings) == 1 and _shared[home.inside].users == 1
        await agents[2].aclose()
        assert not home.gateway.mappings and home.inside not in _shared and not home.inside._sockets


# --- a network that does not rest ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_mapping_of_a_port_alone_follows_the_machine_to_another_network() -> None:
    """It was for the address of the first network for ever."""
    home = Home(World())
    other = FakeGateway(Options(host="10.9.9.1", external_host="44.33.22.11"))
    nat = home.world.nat("cafe", "symmetric", "44.33.22.11")
    router = home.world.host("cafe router", "10.9.9.1", nat)
    async with home.shell(), GatewayShell(other, router), home.mapper() as mapper:
        mapping = await mapper.map("udp", 6000)
        home.inside.remove_interface("eth0")
        home.inside.set_router(None, "eth0")
        await until(mapping, MappingGone)
        assert mapping.internal == TransportAddress("0.0.0.0", 6000) and mapping.gateway is None
        home.inside.add_interface("wlan0", ["10.9.9.2"], nat)
        home.inside.set_router("10.9.9.1", "wlan0")
        await until(mapping, MappingMade)
        assert mapping.internal == TransportAddress("10.9.9.2", 6000)
        assert mapping.external == TransportAddress("44.33.22.11", 6000)


@in_virtual_time
async def test_a_gateway_that_goes_while_it_is_asked_ends_the_asking() -> None:
    home = Home(World())
    home.gateway.faults.pcp.is_silent = home.gateway.faults.natpmp.is_silent = True
    home.gateway.faults.http.control = Delivery.HANG
    async with home.shell(), home.mapper() as mapper:
        probing, listing = asyncio.ensure_future(mapper.probe()), asyncio.ensure_future(mapper.list_mappings())
        await asyncio.sleep(0.5)
        home.inside.set_router(None)
        (report,) = await asyncio.wait_for(probing, 3.0)
        assert {row.reason for row in report.protocols if row.status != "ok"} >= {"the network changed"}
        with pytest.raises(MappingFailed, match="the network changed"):
            await asyncio.wait_for(listing, 3.0)


@in_virtual_time
async def test_what_a_gateway_that_went_still_has_to_do_ends_with_the_mapper() -> None:
    home = Home(World())
    async with home.shell():
        async with home.mapper() as mapper:
            await mapper.map("udp", 6000)
            home.inside.set_router(SECOND)
            await asyncio.sleep(0.06)
            assert mapper.gateways[0].host == SECOND and home.gateway.mappings
        assert not home.gateway.mappings, "leaving waited for the deletion at the first router"
        assert not home.inside._sockets


@pytest.mark.parametrize("step_s", [0.0, 0.001, 0.01])
@in_virtual_time
async def test_interfaces_that_flap_cost_a_bounded_number_of_packets(step_s: float) -> None:
    home = Home(World())
    async with home.shell(), home.mapper() as mapper:
        heard: list[MappingEvent] = []
        mapping = mapper.hold("udp", 6000, on_event=lambda _, event: heard.append(event))
        await until(mapping, MappingMade)
        before, started, most = len(home.gateway.requests), home.world.now, 0
        for turn in range(2000):
            home.inside.set_up("eth0", turn % 2 == 1)
            most = max(most, len(home.inside._sockets))
            await asyncio.sleep(step_s)
        spent = home.world.now - started
        assert len(home.gateway.requests) - before < 30 * (3 + spent), "a few questions each second"
        assert most <= 12
        home.inside.set_up("eth0", True)
        await asyncio.sleep(8.0)
        assert mapping.external == TransportAddress(EXTERNAL, 6000)
        assert not contradictions(heard)
    assert not home.gateway.mappings and not home.inside._sockets


@in_virtual_time
async def test_other_interfaces_that_come_and_go_do_not_bother_the_gateway() -> None:
    """Containers and virtual machines start and stop."""
    async with at_home() as (home, mapper):
        await mapper.map("udp", 6000)
        before = len(home.gateway.requests)
        for turn in range(500):
            home.inside.add_interface(f"veth{turn}", [])
            await asyncio.sleep(0.01)
        await asyncio.sleep(3.0)
        assert len(home.gateway.requests) - before <= 60


@in_virtual_time
async def test_routes_that_change_at_any_moment_contradict_nothing_and_leave_nothing() -> None:
    for seed in range(15):
        rng = random.Random(seed)
        home = Home(World(seed))
        other = FakeGateway(Options(host=SECOND, external_host="44.33.22.11"))
        second = home.world.host("second", SECOND, home.nat)
        heard: dict[PortMapping, list[MappingEvent]] = {}
        async with home.shell(), GatewayShell(other, second):
            async with home.mapper() as mapper:

                def hear(mapping: PortMapping, event: MappingEvent, to: Any = heard) -> None:
                    to.setdefault(mapping, []).append(event)

                held = [mapper.hold("udp", port, on_event=hear) for port in range(6000, 6006)]
                for _ in range(40):
                    home.inside.set_router(rng.choice((None, ROUTER, SECOND)))
                    await asyncio.sleep(rng.choice((0.0, 0.01, 0.1, 1.0)) * rng.random())
                    if rng.random() < 0.2:
                        held.pop(0).close()
                        held.append(mapper.hold("tcp", rng.randrange(7000, 60000), on_event=hear))
            for events in heard.values():
                assert not contradictions(events), f"seed {seed}"
            assert not home.gateway.mappings and not other.mappings, f"seed {seed}"
            assert not home.inside._sockets


@pytest.mark.parametrize("code", [EAGAIN, ENETUNREACH, EPERM])
@in_virtual_time
async def test_a_socket_that_cannot_send_is_silence(code: int) -> None:
    home = Home(World())
    send = home.inside.send
    is_broken = True

    def broken(transmit: Transmit) -> int:
        return code if is_broken and transmit.base.host == INSIDE else send(transmit)

    home.inside.send = broken  # type: ignore[method-assign]
    async with home.shell(), home.mapper() as mapper:
        with pytest.raises(MappingFailed, match="no answer within"):
            await mapper.map("udp", 6000)
        mapping = mapper.hold("udp", 6000)
        await until(mapping, MappingUnavailable)
        is_broken = False
        await until(mapping, MappingMade)


@in_virtual_time
async def test_a_socket_that_cannot_be_opened_is_tried_again() -> None:
    """Its address is tentative, or there are too many open files; no change of the network need follow."""
    home = Home(World())
    open_socket, failures = home.inside.socket, 3

    def failing(local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> Any:
        nonlocal failures
        if local.port == 0 and failures:
            failures -= 1
            raise OSError(EADDRNOTAVAIL, "Cannot assign requested address")
        return open_socket(local, receiver, options)

    home.inside.socket = failing  # type: ignore[method-assign]
    async with home.shell(), home.mapper() as mapper:
        with pytest.raises(MappingFailed, match="Cannot assign requested address"):
            await mapper.map("udp", 6000)
        (report,) = await mapper.probe()
        assert {row.status for row in report.protocols} == {"not-tested"}
        mapping = mapper.hold("udp", 6000)
        await until(mapping, MappingUnavailable)
        await until(mapping, MappingMade)


@in_virtual_time
async def test_a_port_of_ours_that_cannot_be_opened_is_no_error_of_a_probe() -> None:
    home = Home(World())
    open_socket, opened = home.inside.socket, 0

    def failing(local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> Any:
        nonlocal opened
        opened += local.port == 0
        if local.port == 0 and opened > 1:
            raise OSError(EADDRNOTAVAIL, "Cannot assign requested address")
        return open_socket(local, receiver, options)

    home.inside.socket = failing  # type: ignore[method-assign]
    async with home.shell(), home.mapper() as mapper:
        (report,) = await mapper.probe()
        assert {row.reason for row in report.protocols} == {f"there can be no socket on {INSIDE}"}


class Restless(MemoryHost):
    """Does not always tell its tables."""

    failures: list[BaseException]

    async def interfaces(self) -> Sequence[Interface]:
        if self.failures:
            raise self.failures.pop(0)
        return await super().interfaces()


def restless(home: Home, *failures: BaseException) -> None:
    home.inside.__class__ = Restless
    home.inside.failures = list(failures)  # type: ignore[attr-defined]


@in_virtual_time
async def test_a_system_that_tells_nothing_fails_those_who_wait_and_is_asked_again() -> None:
    home = Home(World())
    async with home.shell():
        restless(home, OSError(EIO, "no table"))
        with pytest.raises(OSError, match="no table"):
            async with home.mapper():
                raise AssertionError("it cannot be entered")
        assert not home.inside._watchers and not home.inside._route_watchers
        # One who does not wait for the gateways.
        restless(home, OSError(EIO, "no table"))
        mapper = home.mapper()
        mapping = mapper.hold("udp", 6000)
        refused = await until(mapping, MappingUnavailable)
        assert isinstance(refused, MappingUnavailable) and "no table" in refused.reasons["pcp"]
        await until(mapping, MappingMade)
        # Once more, later: what was known counts until it is known better.
        restless(home, OSError(EIO, "no table"))
        home.inside.set_router(SECOND)
        await until(mapping, MappingGone)
        await mapper.aclose()


@in_virtual_time
async def test_one_who_accepts_interfaces_and_raises_is_told_so() -> None:
    def fail(interface: Interface) -> bool:
        raise ZeroDivisionError(interface.name)

    home = Home(World())
    with pytest.raises(ZeroDivisionError):
        async with home.mapper(accepts=fail):
            raise AssertionError("it cannot be entered")
    assert not home.inside._watchers


# --- a gateway that does what it likes -------------------------------------------------------------------------------


@in_virtual_time
async def test_an_http_server_that_hangs_up_is_known_at_once() -> None:
    """It was waited for until the exchange was overdue, and the error was nobody's."""
    async with at_home(protocols=frozenset({"upnp"})) as (home, mapper):
        home.gateway.faults.http.description = Delivery.RESET
        started = home.world.now
        with pytest.raises(MappingFailed, match="ends early"):
            await mapper.map("udp", 6000)
        assert home.world.now - started < 1.25, "a search takes 1.2 s"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("lifetime_s", [1, 5, 2**32 - 1])
@in_virtual_time
async def test_absurd_lifetimes_keep_nobody_busy(protocol: str, lifetime_s: int) -> None:
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        home.gateway.faults.mapping.lifetime_s = lifetime_s
        heard: list[MappingEvent] = []
        mapper.hold("udp", 6000, on_event=lambda _, event: heard.append(event))
        await asyncio.sleep(600.0)
        assert not contradictions(heard)
        assert len(home.gateway.requests) < 600, "less than one each second, of whatever kind"
        assert len(heard) < 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
@in_virtual_time
async def test_another_external_address_in_each_answer_is_told_once_a_second_at_most(protocol: str) -> None:
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        home.gateway.faults.mapping.external_hosts = [f"11.22.{n // 250}.{n % 250 + 1}" for n in range(50_000)]
        home.gateway.faults.mapping.is_renewed_elsewhere = True
        home.gateway.faults.mapping.lifetime_s = 10
        heard: list[MappingEvent] = []
        mapping = mapper.hold("udp", 6000, on_event=lambda _, event: heard.append(event))
        await asyncio.sleep(300.0)
        assert not contradictions(heard) and len(heard) < 300
        await mapping.aclose()
        await asyncio.sleep(11.0)
        assert not home.gateway.mappings
