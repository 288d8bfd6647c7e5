"""What an agent gathers, and when: servers that answer, are dead, have no name; interfaces of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from iceagent import Agent, Candidate, CandidateType, Config, ConnectFailed, Description, IceServer, UsageError
from iceagent.events import (
    BaseFailed,
    GatheringDone,
    LocalCandidateFound,
    PacketDropped,
    ServerFailed,
)
from iceagent.net.core import Transmit
from iceagent.net.host import AddressFlag, Interface, InterfaceKind, SrvRecord
from iceagent.priority import CANDIDATES_PER_BASE
from iceagent.testing import MemoryHost
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time, talk

REFLEXIVE = CandidateType.SERVER_REFLEXIVE
STUN_1, STUN_2 = "198.51.100.1", "198.51.100.2"


def lines(candidates: Sequence[Candidate], kind: CandidateType) -> list[str]:
    return [str(candidate.address) for candidate in candidates if candidate.type is kind]


def failures(diary: Diary) -> list[tuple[str, str]]:
    return [(event.server, event.reason) for event in diary.of(ServerFailed)]


class HostWithHabits:
    """A machine that differs in one thing; all else is the machine's in memory."""

    def __init__(self, host: MemoryHost, **habits: Any) -> None:
        self._host = host
        self.__dict__.update(habits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


async def never(*_: object) -> Any:
    await asyncio.get_running_loop().create_future()


class TestReflexive:
    @in_virtual_time
    async def test_two_homes_connect_by_reflexive_candidates(self) -> None:
        world = World()
        world.stun("stun", STUN_1)
        left = world.host("a", "192.168.1.2", world.nat("left", "port-restricted", "203.0.113.1"))
        right = world.host("b", "10.0.0.2", world.nat("right", "addr-restricted", "203.0.113.2"))
        async with (
            world.agent(left, STUN_1) as a,
            world.agent(right, STUN_1, controlling=False) as b,
            connected(a, b),
        ):
            await talk(a, b)
            path, back = a.path(), b.path()
            assert path is not None and back is not None
            assert path.local.type is path.remote.type is REFLEXIVE
            assert (path.local.address.host, path.remote.address.host) == ("203.0.113.1", "203.0.113.2")
            assert (path.local.address, path.remote.address) == (back.remote.address, back.local.address)

    @in_virtual_time
    async def test_a_dead_server_among_several(self) -> None:
        """Report 20 (janus#2982, aioice#4): host candidates at once, the living server's soon, all done within 5 s."""
        world = World()
        world.stun("living", STUN_1)
        world.stun("dead", STUN_2).core.is_dead = True
        home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
        async with world.agent(home, STUN_2, STUN_1, "198.51.100.77") as agent:
            diary = Diary(world, agent)
            await agent.gather()
            host, reflexive = diary.of(LocalCandidateFound)
            assert (host.candidate.type, reflexive.candidate.type) == (CandidateType.HOST, REFLEXIVE)
            assert diary.at(LocalCandidateFound) == [0.0, pytest.approx(0.04)]
            (done,) = diary.of(GatheringDone)
            assert done.count == 2 and 4900 <= done.elapsed_ms <= 5000
            assert diary.at(ServerFailed) == [pytest.approx(5.0)] * 2

    @in_virtual_time
    async def test_gathering_is_done_in_time_although_a_server_is_slower(self) -> None:
        """... and what it says in the end is a candidate all the same."""
        world = World()
        world.stun("slow", STUN_1, delay_s=2.0)
        home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
        async with world.agent(home, STUN_1, gather_timeout_s=1.5) as agent:
            diary = Diary(world, agent)
            description = await agent.gather()
            assert world.now == 1.5 and lines(description.candidates, REFLEXIVE) == []
            late = await diary.until(LocalCandidateFound, lambda event: event.candidate.type is REFLEXIVE)
            assert world.now == pytest.approx(2.04)
            assert late.candidate in agent.local_candidates
            assert len(diary.of(GatheringDone)) == 1

    @in_virtual_time
    async def test_every_mapping_that_is_seen_is_a_candidate(self) -> None:
        """Behind a symmetric NAT each server sees another one."""
        world = World()
        for name, host in (("one", STUN_1), ("two", STUN_2)):
            world.stun(name, host)
        home = world.host("a", "192.168.1.2", world.nat("nat", "symmetric", "203.0.113.1"))
        async with world.agent(home, STUN_1, STUN_2) as agent:
            description = await agent.gather()
            reflexive = [c for c in description.candidates if c.type is REFLEXIVE]
            assert len({c.address for c in reflexive}) == 2
            assert {c.address.host for c in reflexive} == {"203.0.113.1"}
            # RFC 8445, 5.1.1.3: other servers, other foundations.
            assert len({c.foundation for c in description.candidates}) == 3

    @in_virtual_time
    async def test_without_a_nat_the_mapped_address_is_nothing_new(self) -> None:
        """RFC 8445, 5.1.3: redundant; and what is not told is not counted."""
        world = World()
        world.stun("one", STUN_1)
        world.stun("two", STUN_2)
        async with world.agent(world.host("a", "192.0.2.1"), STUN_1, STUN_2) as agent:
            diary = Diary(world, agent)
            assert len((await agent.gather()).candidates) == 1
            assert (await diary.until(GatheringDone)).count == 1

    @in_virtual_time
    async def test_a_mapping_that_changes_while_we_wait_for_the_peer(self) -> None:
        """RFC 8445, 5.1.1.4: kept alive every 15 s until ICE concludes, which is how a new one is seen. The former one
        is not signalled any more: nobody is there.
        """
        world = World()
        server = world.stun("stun", STUN_1)
        nat = world.nat("nat", "port-restricted", "203.0.113.1")
        async with world.agent(world.host("a", "192.168.1.2", nat), STUN_1) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            await asyncio.sleep(20)
            world.network.readdress(nat, ["203.0.113.9"])
            await asyncio.sleep(30)
            assert [host.partition(":")[0] for host in lines(agent.local_candidates, REFLEXIVE)] == ["203.0.113.9"]
            assert diary.at(LocalCandidateFound)[1:] == [pytest.approx(0.04), pytest.approx(30.12)]
            assert len(server.core.requests) == 4

    @in_virtual_time
    async def test_once_connected_the_server_is_left_alone(self) -> None:
        world = World()
        server = world.stun("stun", STUN_1)
        first, second = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.2")
        async with world.agent(first, STUN_1) as a, world.agent(second, controlling=False) as b, connected(a, b):
            await asyncio.sleep(3600)
            assert len(server.core.requests) == 1

    @in_virtual_time
    async def test_report_9_the_interface_filter_holds_for_every_socket(self) -> None:
        """pion#899: reflexive candidates ignored it. No packet of any kind leaves from elsewhere."""
        world = World()
        server = world.stun("stun", STUN_1)
        host = world.host("a", "192.0.2.1")
        host.add_interface("eth1", ["192.0.2.2"])
        async with world.agent(host, STUN_1, interface_filter=lambda interface: interface.name == "eth1") as agent:
            await agent.gather()
            host.add_address("eth0", "192.0.2.3")
            await asyncio.sleep(30)
            assert {c.address.host for c in agent.local_candidates} == {"192.0.2.2"}
            assert {source.host for source in server.core.requests} == {"192.0.2.2"}
            assert {entry.packet.base.host for entry in world.network.log if entry.packet.origin is host.node} == {
                "192.0.2.2"
            }

    @in_virtual_time
    async def test_forged_answers_are_dropped_told_and_counted(self) -> None:
        """Whoever can use the server's address but did not see the request cannot make a candidate."""
        world = World()
        server = world.stun("stun", STUN_1, delay_s=1.0)
        host = world.host("a", "192.168.1.2", world.nat("nat", "full-cone", "203.0.113.1"))
        async with world.agent(host, STUN_1) as agent:
            diary = Diary(world, agent)
            agent.start_gathering()
            await asyncio.sleep(0.1)
            (address,) = server.core.addresses
            junk = Transmit(address, server.core.requests[0], b"junk")
            world.network.send(server.node, junk, world.now)
            world.internet.wake()
            drop = await diary.until(PacketDropped)
            assert (drop.source, drop.reason, drop.size) == (address, "malformed STUN", 4)
            await agent.gather()
            assert agent.statistics().counters["dropped: malformed STUN"] == 1
            assert len(lines(agent.local_candidates, REFLEXIVE)) == 1


class TestNames:
    @in_virtual_time
    async def test_names_services_and_ports(self) -> None:
        world = World()
        for name, host, port in (("one", STUN_1, 3478), ("two", STUN_2, 5000), ("three", "198.51.100.3", 19302)):
            world.stun(name, host, port=port)
        world.internet.names = {"one.example": [STUN_1], "two.example": [STUN_2], "three.example": ["198.51.100.3"]}
        world.internet.services = {
            "_stun._udp.srv.example": [SrvRecord(host="two.example", port=5000)],
            "_stun._udp.three.example": [SrvRecord(host="one.example", port=3478)],
        }
        home = world.host("a", "192.168.1.2", world.nat("nat", "symmetric", "203.0.113.1"))
        # The port of the third rules out its service.
        async with world.agent(home, "one.example", "srv.example", "three.example:19302") as agent:
            await agent.gather()
            assert len(lines(agent.local_candidates, REFLEXIVE)) == 3

    @in_virtual_time
    async def test_a_name_that_does_not_resolve_is_told(self) -> None:
        world = World()
        world.stun("stun", STUN_1)
        home = world.host("a", "192.168.1.2", world.nat("nat", "symmetric", "203.0.113.1"))
        async with world.agent(home, "nobody.example", STUN_1) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            assert len(agent.local_candidates) == 2
            ((server, reason),) = failures(diary)
            assert server == "stun:nobody.example"
            assert reason.startswith("nobody.example does not resolve: ")
            assert diary.at(GatheringDone) == [pytest.approx(0.04)]

    @in_virtual_time
    async def test_a_dead_resolver_delays_nothing(self) -> None:
        world = World()
        world.stun("stun", STUN_1)
        host = world.host("a", "192.168.1.2", world.nat("nat", "symmetric", "203.0.113.1"))
        deaf = HostWithHabits(host, resolve=never, resolve_srv=never)
        async with world.agent(deaf, "s.example", STUN_1) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            assert diary.at(LocalCandidateFound) == [0.0, pytest.approx(0.04)]
            assert diary.at(GatheringDone) == [5.0]

    @in_virtual_time
    async def test_servers_that_cannot_be_used_say_so(self) -> None:
        """To whoever listens before gathering begins: not lost in the constructor."""
        world = World()
        urls = ("turns:turn.example?transport=udp", "turn:turn.example", "stuns:stun.example")
        host = world.host("a", "192.0.2.1")
        config = Config(servers=(IceServer(urls=urls, username="u", credential="p"),))
        async with Agent(config, controlling=True, host=host) as agent:
            diary = Diary(world, agent)
            assert len((await agent.gather()).candidates) == 1
            await diary.until(GatheringDone)
            assert dict(failures(diary)) == {
                urls[0]: "TURN over DTLS is not supported",
                urls[1]: "turn.example does not resolve: no address for 'turn.example'",
                urls[2]: "STUN over TLS gives the mapping of a TCP connection, which no candidate can use",
            }
            assert world.now == 0.0

    @in_virtual_time
    async def test_a_wrong_uri_is_a_usage_error(self) -> None:
        world = World()
        with pytest.raises(UsageError, match="is not a port"):
            world.agent(world.host("a", "192.0.2.1"), "stun.example:99999")

    @in_virtual_time
    async def test_nobody_is_asked_before_gathering_begins(self) -> None:
        world = World()
        asked: list[str] = []

        async def resolve(name: str) -> Sequence[str]:
            asked.append(name)
            return [STUN_1]

        host = HostWithHabits(world.host("a", "192.0.2.1"), resolve=resolve)
        async with world.agent(host, "s.example:1") as agent:
            await asyncio.sleep(10)
            assert asked == []
            agent.start_gathering()
            agent.start_gathering()
            await asyncio.sleep(1)
            assert asked == ["s.example"]

    @in_virtual_time
    async def test_a_lite_agent_asks_nobody(self) -> None:
        """RFC 8445, 2.5: host candidates only."""
        world = World()
        server = world.stun("stun", STUN_1)
        async with world.agent(world.host("a", "192.0.2.1"), STUN_1, "s.example", lite=True) as agent:
            assert len((await agent.gather()).candidates) == 1
            assert world.now == 0.0
            await asyncio.sleep(10)
            assert not server.core.requests


class TestInterfaces:
    @in_virtual_time
    async def test_order_of_preference(self) -> None:
        """Metered and tunnelled ones come last, whatever order the system has them in."""
        world = World()
        host = world.host("a")
        host.add_interface("docker0", ["172.17.0.1"], kind=InterfaceKind.CONTAINER)
        host.add_interface("wg0", ["10.9.0.1"], kind=InterfaceKind.VPN)
        host.add_interface("wwan0", ["100.64.0.1"], kind=InterfaceKind.CELLULAR)
        host.add_interface("wlan0", ["192.0.2.1"], kind=InterfaceKind.WIFI, is_metered=True)
        host.add_interface("eth0", ["192.0.2.2", "2001:db8::2"])
        async with world.agent(host) as agent:
            best_first = sorted((await agent.gather()).candidates, key=lambda c: c.priority, reverse=True)
            order = [candidate.address.host for candidate in best_first]
            assert order[:2] == ["2001:db8::2", "192.0.2.2"]
            assert set(order[2:4]) == {"192.0.2.1", "100.64.0.1"}
            assert order[4:] == ["10.9.0.1", "172.17.0.1"]
            assert len({candidate.priority for candidate in best_first}) == 6

    @in_virtual_time
    async def test_the_better_interface_is_the_one_used(self) -> None:
        world = World()
        host = world.host("a")
        host.add_interface("wwan0", ["192.0.2.9"], kind=InterfaceKind.CELLULAR, is_metered=True)
        host.add_interface("eth0", ["192.0.2.1"])
        peer = world.host("b", "192.0.2.2")
        async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            await asyncio.sleep(2)
            path = a.path()
            assert path is not None and path.nominated and path.base.host == "192.0.2.1"

    @pytest.mark.parametrize(
        ("kind", "on_both_sides"), [(InterfaceKind.CONTAINER, True), (InterfaceKind.ETHERNET, False)]
    )
    @in_virtual_time
    async def test_report_21_thirty_junk_interfaces(self, kind: InterfaceKind, on_both_sides: bool) -> None:
        """floe#150, pjproject#2686: 20 to 30 s. Here within twice the time of a clean host, in virtual time.

        Bridges and tunnels stand last by their kind; where junk looks like an ordinary interface, the route decides.
        """
        clean = await connecting_time(junk=0, kind=kind)
        crowded = await connecting_time(junk=30, kind=kind, on_both_sides=on_both_sides)
        assert clean > 0
        assert crowded <= 2 * clean, f"clean {clean * 1000:.1f} ms, with junk {crowded * 1000:.1f} ms"

    @in_virtual_time
    async def test_an_address_that_cannot_be_bound_costs_only_itself(self) -> None:
        world = World()
        host = world.host("a", ("192.0.2.1", "192.0.2.2"))

        class Refusing:
            def __call__(self, local: Any, receiver: Any, options: Any) -> Any:
                if local.host == "192.0.2.1":
                    raise OSError(99, "cannot assign")
                return host.socket(local, receiver, options)

        picky = HostWithHabits(host, socket=Refusing())
        async with world.agent(picky) as agent:
            diary = Diary(world, agent)
            assert [c.address.host for c in (await agent.gather()).candidates] == ["192.0.2.2"]
            host.add_address("eth0", "192.0.2.3")
            await asyncio.sleep(1)
            # Not again with every change.
            assert [(event.host, event.interface) for event in diary.of(BaseFailed)] == [("192.0.2.1", "eth0")]
            first, second = agent.local_candidates
            # Nor does it hold a place: 192.0.2.3 stands right above 192.0.2.2, where 192.0.2.1 would have stood.
            assert (second.priority - first.priority) >> 8 == CANDIDATES_PER_BASE

    @in_virtual_time
    async def test_a_table_that_cannot_be_read(self) -> None:
        world = World()

        async def unreadable() -> Sequence[Interface]:
            raise OSError("no netlink here")

        host = HostWithHabits(world.host("a", "192.0.2.1"), interfaces=unreadable)
        async with world.agent(host) as agent:
            diary = Diary(world, agent)
            assert (await agent.gather()).candidates == ()
            assert "no netlink here" in (await diary.until(BaseFailed)).reason

    @in_virtual_time
    async def test_a_filter_that_raises_is_heard_of(self) -> None:
        """A mistake of the application's: the loop's exception handler has it, and nobody waits for ever."""
        world = World()
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

        def broken(interface: Interface) -> bool:
            raise ZeroDivisionError

        host = world.host("a", "192.0.2.1")
        await asyncio.sleep(1)
        async with world.agent(host, interface_filter=broken) as agent:
            assert (await agent.gather()).candidates == ()
            assert world.now == 1.0
        assert [type(context["exception"]) for context in problems] == [ZeroDivisionError]

    @in_virtual_time
    async def test_tentative_addresses_come_when_they_are_ready(self) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        host.add_address("eth0", "2001:db8::1", [AddressFlag.TENTATIVE])
        async with world.agent(host) as agent:
            assert [c.address.host for c in (await agent.gather()).candidates] == ["192.0.2.1"]
            host.remove_address("eth0", "2001:db8::1")
            host.add_address("eth0", "2001:db8::1")
            await asyncio.sleep(0.3)
            assert [c.address.host for c in agent.local_candidates] == ["192.0.2.1", "2001:db8::1"]


async def connecting_time(*, junk: int, kind: InterfaceKind, on_both_sides: bool = True) -> float:
    """Virtual seconds from the exchange of descriptions to both being connected."""
    world = World()
    hosts = []
    for side in (1, 2):
        host = world.host(f"host {side}")
        for index in range(junk if on_both_sides or side == 1 else 0):
            # A network of its own each, from which there is no way out: docker bridges and the like.
            island = world.nat(f"island {side} {index}", "port-restricted", f"203.0.{100 + side}.{index + 1}")
            island.udp_ports = frozenset()
            host.add_interface(f"br{index}", [f"172.{16 + side}.{index}.1"], island, kind=kind)
        host.add_interface("eth0", [f"192.0.2.{side}"])
        # The default route.
        hosts.append(HostWithHabits(host, source_host=lambda destination, side=side: f"192.0.2.{side}"))
    async with world.agent(hosts[0]) as a, world.agent(hosts[1], controlling=False) as b:
        start = world.now
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        return world.now - start


@in_virtual_time
async def test_no_address_at_all_is_said_to_be_the_reason() -> None:
    world = World()
    async with world.agent(world.host("a"), pac_timeout_s=1.0) as a, world.agent(world.host("b", "192.0.2.1")) as b:
        await asyncio.gather(a.gather(), b.gather())
        a.set_remote_description(Description(credentials=b.local_description.credentials, complete=True))
        with pytest.raises(ConnectFailed, match="no pair was formed"):
            await a.connect()
