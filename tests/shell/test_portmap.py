"""A port mapper, and an agent that has one, on machines in memory: what the network does, and what closing costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from iceagent import Agent, CandidateType, Config, IceServer
from iceagent.events import (
    LocalCandidateFound,
    PortMapped,
    PortMappingLost,
    PortMappingUnavailable,
    SelectedPathChanged,
)
from iceagent.gather.mapped import is_mappable
from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, DefaultRoute, SocketOptions
from iceagent.testing import MemoryHost, NatModel, NatNode
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
    Trust,
)
from portmap.values import ProtocolName
from tests.fakes.gateway import FakeGateway
from tests.fakes.gateway.faults import Delivery
from tests.fakes.gateway.shell import GatewayShell
from tests.fakes.gateway.state import Options
from tests.fakes.turn_server import RELAY_HOSTS
from tests.fakes.turn_server import Options as TurnOptions
from tests.shell.world import Diary, World, connected, in_virtual_time
from tests.unit.probe.test_relays import USER, TurnMachine

INSIDE, ROUTER, EXTERNAL = "192.168.1.2", "192.168.1.1", "11.22.33.44"
TURN = "20.0.1.1"


class Home:
    """A network behind a router, a machine there, and what the router says to mappings."""

    def __init__(self, world: World, *, kind: str = "symmetric", **options: object) -> None:
        self.world = world
        self.nat: NatNode = world.nat("home", kind, EXTERNAL)
        self.router: MemoryHost = world.host("router", ROUTER, self.nat)
        self.inside: MemoryHost = world.host("inside", INSIDE, self.nat)
        self.inside.set_router(ROUTER)
        self.gateway = FakeGateway(Options(**options), now=world.now, epoch=5000)  # type: ignore[arg-type]

    def shell(self) -> GatewayShell:
        return GatewayShell(self.gateway, self.router)

    def mapper(self, **options: object) -> PortMapper:
        return PortMapper(self.inside, rng=self.world.rng, system_rng=self.world.rng, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def at_home(**options: object) -> AsyncIterator[tuple[Home, PortMapper]]:
    home = Home(World(), **options)  # type: ignore[arg-type]
    async with home.shell(), home.mapper() as mapper:
        yield home, mapper
    assert not home.gateway.violations


async def until(mapping: PortMapping, kind: type[MappingEvent]) -> MappingEvent:
    async for event in mapping:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


# --- the mapper ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@in_virtual_time
async def test_a_mapping_is_made_by_each_protocol_and_deleted(protocol: str) -> None:
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        mapping = await mapper.map("udp", 6000)
        assert (mapping.protocol, mapping.external) == (protocol, TransportAddress(EXTERNAL, 6000))
        assert (mapping.internal, mapping.trust) == (TransportAddress(INSIDE, 6000), Trust.GLOBAL)
        assert mapping.gateway is not None and mapping.gateway.host == ROUTER
        await mapping.aclose()
        assert mapping.is_deleted and not home.gateway.mappings
        assert isinstance([event async for event in mapping][-1], MappingDeleted)


@in_virtual_time
async def test_leaving_deletes_everything_in_less_than_a_second_whatever_the_gateway_does() -> None:
    for protocol in PROTOCOLS:
        home = Home(World(), protocols=frozenset({protocol}))
        async with home.shell():
            async with home.mapper() as mapper:
                for port in range(6000, 6020):
                    await mapper.map("udp", port)
                home.gateway.faults.pcp.is_silent = home.gateway.faults.natpmp.is_silent = True
                home.gateway.faults.http.control = Delivery.HANG
                started = home.world.now
            assert home.world.now - started <= 1.0


@in_virtual_time
async def test_a_gateway_that_refuses_is_a_failure_with_the_reason_of_each() -> None:
    async with at_home(external_host="") as (_, mapper):
        with pytest.raises(
            MappingFailed, match=r"port 6000 at 192.168.1.1 \(eth0\): pcp: 8 NO_RESOURCES.*; nat-pmp: 3 "
        ) as failed:
            await mapper.map("udp", 6000)
        assert set(failed.value.reasons) == set(PROTOCOLS)


@in_virtual_time
async def test_without_a_router_it_fails_at_once() -> None:
    world = World()
    host = world.host("alone", INSIDE)
    async with PortMapper(host) as mapper:
        with pytest.raises(MappingFailed, match="no default route"):
            await mapper.map("udp", 6000)
        assert await mapper.probe() == () == mapper.gateways
    assert world.now == 0.0


@in_virtual_time
async def test_a_mapping_that_is_held_is_made_when_a_router_comes() -> None:
    home = Home(World())
    home.inside.set_router(None)
    async with home.shell(), home.mapper() as mapper:
        mapping = mapper.hold("udp", 6000)
        assert await until(mapping, MappingUnavailable) == MappingUnavailable(reasons={})
        home.inside.set_router(ROUTER)
        await until(mapping, MappingMade)
        assert [each.external_port for each in home.gateway.mappings] == [6000]


@in_virtual_time
async def test_with_another_default_route_the_mapping_moves_to_that_router() -> None:
    home = Home(World())
    other = FakeGateway(Options(host="192.168.1.254", external_host="44.33.22.11"))
    second = home.world.host("second", "192.168.1.254", home.nat)
    async with home.shell(), GatewayShell(other, second), home.mapper() as mapper:
        mapping = await mapper.map("udp", 6000)
        home.inside.set_router("192.168.1.254")
        gone = await until(mapping, MappingGone)
        assert isinstance(gone, MappingGone) and gone.reason == "the network changed"
        await until(mapping, MappingMade)
        assert mapping.external == TransportAddress("44.33.22.11", 6000)
        assert not home.gateway.mappings, "the first router could still be reached"


@in_virtual_time
async def test_of_two_routers_the_second_one_is_asked_when_the_first_does_not() -> None:
    home = Home(World(), external_host="")
    other = FakeGateway(Options(host="192.168.1.254"))
    second = home.world.host("second", "192.168.1.254", home.nat)
    routes = tuple(DefaultRoute(index=2, router=host, version=4) for host in (ROUTER, "192.168.1.254"))

    async def both() -> tuple[DefaultRoute, ...]:
        return routes

    home.inside.default_routes = both  # type: ignore[method-assign]
    async with home.shell(), GatewayShell(other, second), home.mapper() as mapper:
        mapping = await mapper.map("udp", 6000)
        assert mapping.gateway is not None and mapping.gateway.host == "192.168.1.254"


@in_virtual_time
async def test_a_gateway_that_is_named_is_asked_without_any_route() -> None:
    """A VPN's: its routes have no router."""
    home = Home(World())
    home.inside.set_router(None)
    async with home.shell(), home.mapper(gateways=(ROUTER,)) as mapper:
        mapping = await mapper.map("udp", 6000)
        assert mapping.external == TransportAddress(EXTERNAL, 6000)


@in_virtual_time
async def test_another_external_address_is_told() -> None:
    async with at_home(protocols=frozenset({"nat-pmp"})) as (home, mapper):
        mapping = await mapper.map("udp", 6000)
        home.gateway.change_external_host("11.22.33.99", home.world.now)
        changed = await until(mapping, MappingChanged)
        assert isinstance(changed, MappingChanged)
        assert changed.new == mapping.external == TransportAddress("11.22.33.99", 6000)


@in_virtual_time
async def test_probing_uses_a_real_mapping_and_leaves_nothing() -> None:
    async with at_home() as (home, mapper):
        (report,) = await mapper.probe()
        assert [(row.protocol, row.status, row.trust) for row in report.protocols] == [
            (name, "ok", Trust.GLOBAL) for name in PROTOCOLS
        ]
        assert not home.gateway.mappings
        assert home.world.now < 0.6, "six round trips of PCP and NAT-PMP, and five exchanges of UPnP of two each"
        home.gateway.options.external_host = ""
        (report,) = await mapper.probe()
        assert [(row.protocol, row.status) for row in report.protocols] == [(name, "refused") for name in PROTOCOLS]


@in_virtual_time
async def test_a_private_external_address_is_told_as_such() -> None:
    async with at_home(external_host="100.64.0.7", protocols=frozenset({"pcp"})) as (_, mapper):
        (report,) = await mapper.probe()
        row = report.protocols[0]
        assert (row.status, row.trust) == ("ok", Trust.CARRIER) and "another NAT" in row.reason


@in_virtual_time
async def test_one_who_waits_and_gives_up_leaves_no_mapping_behind() -> None:
    async with at_home(protocols=frozenset({"pcp"})) as (home, mapper):
        home.gateway.faults.pcp.delay_s = 0.1
        waiting = asyncio.ensure_future(mapper.map("udp", 6000))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if home.gateway.mappings:
                break
        assert not waiting.done(), "it is made, and its answer is on its way"
        waiting.cancel()
        await asyncio.sleep(5.0)
        assert not home.gateway.mappings


@in_virtual_time
async def test_wrong_use_is_refused() -> None:
    async with at_home() as (_, mapper):
        for wrong in ({"external_port": 70000}, {"lifetime_s": 5}, {"lifetime_s": 10**6}):
            with pytest.raises(ValueError, match=r"ports are|a lifetime is"):
                await mapper.map("udp", 6000, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ports are"):
            await mapper.map("udp", 0)
        with pytest.raises(ValueError, match="'sctp' is not"):
            await mapper.map("sctp", 6000)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="neither an address nor a port"):
            await mapper.map("udp", (INSIDE,))  # type: ignore[arg-type]
    for options in ({"protocols": "upnp"}, {"gateways": ROUTER}, {"protocols": ()}):
        with pytest.raises(ValueError, match=r"several|at least one"):
            PortMapper(**options)


@in_virtual_time
async def test_what_no_router_can_map_is_told_apart_from_there_being_no_router() -> None:
    async with at_home() as (home, mapper):
        with pytest.raises(MappingFailed, match=r"127.0.0.1 is no address that a router maps .* those are 192.168.1.2"):
            await mapper.map("udp", TransportAddress("127.0.0.1", 6000))
        with pytest.raises(MappingFailed, match="there is no router for IPv6"):
            await mapper.map("udp", TransportAddress("::", 6000))
        async with home.mapper(gateways=("2001:db8::1",)) as other:
            with pytest.raises(MappingFailed, match="no route of this host leads to 2001:db8::1"):
                await other.map("udp", 6000)


@in_virtual_time
@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_a_mapping_that_was_made_without_an_answer_is_not_left_behind_by_who_was_told_that_there_is_none(
    protocol: ProtocolName,
) -> None:
    async with at_home(protocols=frozenset({protocol})) as (home, mapper):
        faults = home.gateway.faults
        (faults.pcp if protocol == "pcp" else faults.natpmp).delay_s = 1.2
        with pytest.raises(MappingFailed, match="no answer within"):
            await mapper.map("udp", 6000)
        await asyncio.sleep(3.0)
        assert not home.gateway.mappings
    with pytest.raises(RuntimeError, match="closed"):
        await mapper.map("udp", 6000)
    with pytest.raises(ValueError, match="'igd' is not one of"):
        PortMapper(protocols=("igd",))  # type: ignore[arg-type]


# --- the agent -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_agent_offers_what_a_router_maps_and_waits_for_nothing() -> None:
    home = Home(World())
    home.gateway.faults.pcp.delay_s = home.gateway.faults.natpmp.delay_s = 0.2
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        assert home.world.now == 0.0, "gathering waits for no router"
        mapped = await diary.until(PortMapped)
        found = await diary.until(LocalCandidateFound, lambda event: event.candidate.is_mapped)
        (host,) = [each for each in agent.local_candidates if each.type is CandidateType.HOST]
        assert mapped.external == found.candidate.address == TransportAddress(EXTERNAL, host.address.port)
        assert found.candidate.type is CandidateType.SERVER_REFLEXIVE
        assert found.candidate.related_address == found.candidate.base == host.address
        assert found.candidate.origin.startswith("port mapping (")
    assert not home.gateway.mappings and not home.gateway.violations


@in_virtual_time
async def test_two_symmetric_nats_connect_directly_by_a_mapping_on_one_side() -> None:
    home = Home(World())
    other = home.world.host("other", "10.0.0.2", home.world.nat("theirs", "symmetric", "44.33.22.11"))
    async with (
        home.shell(),
        home.world.agent(home.inside) as a,
        home.world.agent(other, controlling=False) as b,
    ):
        diary = Diary(home.world, a)
        await a.gather()
        mapped = await diary.until(PortMapped)
        assert isinstance(home.nat.model, NatModel)
        home.nat.model.forward(mapped.external, mapped.internal)
        b.set_remote_description(a.local_description)
        a.set_remote_description(await b.gather())
        path, _ = await asyncio.gather(a.connect(), b.connect())
        assert path.kind == "direct"


class RelayMachine(TurnMachine):
    """A TURN server over UDP whose relayed addresses are on the Internet."""

    def __init__(self, world: World) -> None:
        self._machine = world.host("turn", (TURN, *RELAY_HOSTS.values()))
        self._relays: dict[TransportAddress, DatagramSocket] = {}
        super().__init__(self._machine, TURN, TurnOptions(users=USER))

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        address, now = TransportAddress._make(source), self._machine.now()
        outgoing = (
            self.by_udp.from_peer(socket.address, address, data, now)
            if socket.address in self._relays
            else self.by_udp.from_client(address, data, now)
        )
        for allocation in self.by_udp.allocations(now):
            for relayed in allocation.relayed:
                if relayed not in self._relays:
                    self._relays[relayed] = self._machine.socket(relayed, self, SocketOptions())
        for origin, destination, payload in outgoing:
            self._relays.get(origin, self._socket).send(payload, destination)


@pytest.mark.parametrize("talks", [True, False])
@in_virtual_time
async def test_a_router_that_gave_none_is_asked_twice_a_minute_while_data_goes_over_a_relay(talks: bool) -> None:
    """Where nobody talks, data does not suffer: it is asked ever less, as elsewhere."""
    home = Home(World(), external_host="")
    world = home.world
    RelayMachine(world)
    other = world.host("other", "10.0.0.2", world.nat("theirs", "symmetric", "44.33.22.11"))
    servers = (IceServer(urls=(f"turn:{TURN}?transport=udp",), username="user", credential="secret"),)
    async with (
        home.shell(),
        Agent(Config(servers=servers), controlling=True, host=home.inside, rng=Random(1)) as a,
        Agent(Config(servers=servers), controlling=False, host=other, rng=Random(2)) as b,
        connected(a, b),
    ):
        diary = Diary(world, a)
        before = a.path()
        assert before is not None and before.kind == "relay"

        async def speak() -> None:
            while talks:
                a.send(b"?")
                b.send(b"!")
                await asyncio.sleep(0.5)

        talking = asyncio.create_task(speak())
        await asyncio.sleep(600.0)
        home.gateway.change_external_host(EXTERNAL, world.now)
        switched_on = world.now
        mapped = await diary.until(PortMapped)
        assert (world.now - switched_on <= 41.0) is talks
        assert isinstance(home.nat.model, NatModel)
        home.nat.model.forward(mapped.external, mapped.internal)
        if talks:
            await diary.until(SelectedPathChanged, lambda event: event.new is not None and event.new.kind == "direct")
        talking.cancel()


@in_virtual_time
async def test_a_mapping_that_is_lost_is_signalled_no_more() -> None:
    home = Home(World(), protocols=frozenset({"pcp"}))
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        await diary.until(PortMapped)
        home.gateway.faults.pcp.is_silent = True
        await diary.until(PortMappingLost)
        assert not [each for each in agent.local_candidates if each.is_mapped]


@in_virtual_time
async def test_one_that_is_what_a_stun_server_sees_anyway_is_offered_once() -> None:
    """RFC 8445, 5.1.3: the same address and base."""
    home = Home(World(), kind="full-cone")
    home.world.stun("stun", "198.51.100.1")
    async with home.shell(), home.world.agent(home.inside, "198.51.100.1") as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        await diary.until(PortMapped)
        await asyncio.sleep(1.0)
        reflexive = [each for each in agent.local_candidates if each.type is CandidateType.SERVER_REFLEXIVE]
        (host,) = [each for each in agent.local_candidates if each.type is CandidateType.HOST]
        assert [each.address for each in reflexive] == [TransportAddress(EXTERNAL, host.address.port)]


@in_virtual_time
async def test_an_ice_restart_keeps_the_socket_and_so_the_mapping() -> None:
    home = Home(World())
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        mapped = await diary.until(PortMapped)
        description = agent.restart()
        assert str(mapped.external.port) in description.to_sdp() and EXTERNAL in description.to_sdp()
        await asyncio.sleep(5.0)
        assert len(home.gateway.mappings) == 1


@in_virtual_time
async def test_roaming_deletes_the_mapping_of_the_old_address_and_makes_one_of_the_new() -> None:
    home = Home(World())
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        old = await diary.until(PortMapped)
        home.inside.add_address("eth0", "192.168.1.3")
        new = await diary.until(PortMapped, lambda event: event.internal.host == "192.168.1.3")
        home.inside.remove_address("eth0", INSIDE)
        await asyncio.sleep(5.0)
        assert [each.is_mapped for each in agent.local_candidates if each.base == old.internal] == []
        assert new.external in [each.address for each in agent.local_candidates]


@in_virtual_time
async def test_a_router_behind_a_carriers_nat_gives_no_candidate() -> None:
    home = Home(World(), external_host="100.64.0.7")
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        assert (await diary.until(PortMapped)).trust == "carrier"
        assert [each.type for each in agent.local_candidates] == [CandidateType.HOST]


@in_virtual_time
async def test_a_refusal_is_told_and_hinders_nothing() -> None:
    home = Home(World(), external_host="")
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        told = await diary.until(PortMappingUnavailable)
        assert set(told.reasons) == set(PROTOCOLS)


@in_virtual_time
async def test_a_router_that_goes_on_refusing_is_told_once() -> None:
    home = Home(World(), external_host="")
    async with home.shell(), home.world.agent(home.inside) as agent:
        diary = Diary(home.world, agent)
        await agent.gather()
        await diary.until(PortMappingUnavailable)
        asked = len(home.gateway.requests)
        await asyncio.sleep(5400.0)
        assert len(home.gateway.requests) > asked
        assert len(diary.of(PortMappingUnavailable)) == 1


RELAY = IceServer(urls=("turn:198.51.100.7",), username="u", credential="p")


@pytest.mark.parametrize(
    "config",
    [Config(portmap=False), Config(relay_only=True, servers=(RELAY,)), Config(lite=True)],
    ids=("off", "relay only", "lite"),
)
@in_virtual_time
async def test_where_it_is_off_no_router_is_asked(config: Config) -> None:
    home = Home(World())
    async with home.shell(), Agent(config, controlling=True, host=home.inside, rng=home.world.rng) as agent:
        agent.start_gathering()
        await asyncio.sleep(5.0)
        assert not home.gateway.requests


@in_virtual_time
async def test_agents_of_one_host_ask_the_router_what_it_speaks_once() -> None:
    home = Home(World())
    async with home.shell():
        agents = [home.world.agent(home.inside) for _ in range(5)]
        await asyncio.gather(*(agent.gather() for agent in agents))
        await asyncio.sleep(3.0)
        kinds = [each.kind for each in home.gateway.requests]
        assert kinds.count("ANNOUNCE") == 1 and kinds.count("MAP") == 5
        await asyncio.gather(*(agent.aclose() for agent in agents))
        assert not home.gateway.mappings
        # The last one to leave closed the mapper; a new one begins anew.
        async with home.world.agent(home.inside) as late:
            await late.gather()
            await asyncio.sleep(1.0)
            assert len(home.gateway.mappings) == 1


def test_only_private_ipv4_addresses_are_mapped() -> None:
    mappable = ("10.0.0.1", "192.168.1.2", "172.16.0.1", "100.64.0.5")
    others = ("8.8.8.8", "127.0.0.1", "169.254.1.1", "0.0.0.0", "2a00::1", "fd00::1", "fe80::1")
    assert all(is_mappable(TransportAddress(host, 1)) for host in mappable)
    assert not any(is_mappable(TransportAddress(host, 1)) for host in others)
