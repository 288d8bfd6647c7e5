"""Interfaces and addresses come, go and age while an agent is at work."""

from __future__ import annotations

import asyncio

import pytest

from iceagent import AgentState, CandidateType
from iceagent.events import (
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    NetworkChanged,
    PathDoubted,
    PathTrusted,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.net.host import AddressFlag, InterfaceKind
from iceagent.testing.links import Fate
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time, talk, trickling

STUN = "198.51.100.1"


def hosts_of(path: object) -> str:
    return path.base.host if path is not None else ""  # type: ignore[attr-defined]


class TestComing:
    @in_virtual_time
    async def test_a_better_interface_is_used(self) -> None:
        world = World()
        roaming, peer = world.host("a"), world.host("b", "192.0.2.9")
        roaming.add_interface("wwan0", ["192.0.2.1"], kind=InterfaceKind.CELLULAR, is_metered=True)
        async with (
            world.agent(roaming) as a,
            world.agent(peer, controlling=False) as b,
            connected(a, b),
        ):
            diary, theirs = Diary(world, a), Diary(world, b)
            await asyncio.sleep(5)
            roaming.add_interface("eth0", ["192.0.2.2"])
            change = await diary.until(NetworkChanged)
            assert (change.added, change.removed) == (("192.0.2.2",), ())
            moved = await diary.until(SelectedPathChanged, lambda event: hosts_of(event.new) == "192.0.2.2")
            assert hosts_of(moved.old) == "192.0.2.1"
            # A quarter of a second for others that come with it; one check there, one nomination there: two round trips
            # of 40 ms, and what signalling takes.
            assert world.now - 5 < 0.25 + 0.2
            await theirs.until(SelectedPathChanged, lambda event: event.new is not None)
            await asyncio.sleep(1)
            await talk(a, b)
            path = b.path()
            assert path is not None and path.remote.address.host == "192.0.2.2"
            assert diary.of(StateChanged) == []
            assert a.statistics().path_switches == 1

    @in_virtual_time
    async def test_a_first_interface_for_an_agent_that_had_none(self) -> None:
        world = World()
        server = world.stun("stun", STUN)
        nat = world.nat("nat", "port-restricted", "203.0.113.1")
        late, peer = world.host("a"), world.host("b", "192.0.2.9")
        async with world.agent(late, STUN) as a, world.agent(peer, controlling=False) as b, trickling(a, b):
            await a.gather()
            await b.gather()
            await asyncio.sleep(10)
            late.add_interface("eth0", ["192.168.1.2"], nat)
            await asyncio.gather(a.connect(), b.connect())
            await talk(a, b)
            await asyncio.sleep(1)
            found = [candidate.type for candidate in a.local_candidates]
            assert found == [CandidateType.HOST, CandidateType.SERVER_REFLEXIVE]
            assert len(server.core.requests) == 1

    @in_virtual_time
    async def test_gathering_is_not_done_again(self) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        async with world.agent(host) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            host.add_address("eth0", "192.0.2.2")
            await diary.until(NetworkChanged)
            await asyncio.sleep(1)
            assert len(diary.of(GatheringDone)) == 1
            assert [event.candidate.address.host for event in diary.of(LocalCandidateFound)] == [
                "192.0.2.1",
                "192.0.2.2",
            ]

    @in_virtual_time
    async def test_an_interface_that_comes_and_goes_keeps_its_place(self) -> None:
        """Above the one that stays (RFC 8445, 5.1.2: unique priorities), and never out of places."""
        world = World()
        host = world.host("a", "192.0.2.1")
        async with world.agent(host) as agent:
            diary = Diary(world, agent)
            (stays,) = (await agent.gather()).candidates
            for _ in range(5):
                host.add_interface("eth1", ["192.0.2.2"])
                await asyncio.sleep(1)
                host.remove_interface("eth1")
                await asyncio.sleep(1)
            priorities = [event.candidate.priority for event in diary.of(LocalCandidateFound)]
            assert priorities[0] == stays.priority < priorities[1] and priorities[1:] == priorities[1:2] * 5

    @in_virtual_time
    async def test_a_change_that_changes_nothing_is_not_told(self) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        async with world.agent(host) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            host.add_interface("eth1", [])
            host.add_address("eth1", "2001:db8::1", [AddressFlag.TENTATIVE])
            await asyncio.sleep(1)
            assert diary.of(NetworkChanged) == []

    @pytest.mark.parametrize("by_peer", [False, True])
    @in_virtual_time
    async def test_without_late_candidates_they_belong_to_the_next_generation(self, by_peer: bool) -> None:
        """RFC 8838, 13: after end-of-candidates, new candidates need an ICE restart; with it, they are used."""
        world = World()
        roaming, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        async with (
            world.agent(roaming, late_candidates=False) as a,
            world.agent(peer, controlling=False) as b,
            connected(a, b),
        ):
            diary = Diary(world, a)
            roaming.add_interface("eth1", ["192.0.2.2"])
            roaming.add_interface("eth2", ["192.0.2.3"])
            await diary.until(NetworkChanged)
            await asyncio.sleep(1)
            roaming.remove_interface("eth2")
            await asyncio.sleep(1)
            assert diary.of(LocalCandidateFound) == []
            assert [c.address.host for c in a.local_candidates] == ["192.0.2.1"]
            (b if by_peer else a).restart()
            await diary.until(IceRestarted)
            assert [c.address.host for c in a.local_candidates] == ["192.0.2.1", "192.0.2.2"]
            await diary.until(SelectedPathChanged)
            roaming.remove_interface("eth0")
            await asyncio.sleep(1)
            assert hosts_of(a.path()) == "192.0.2.2"
            await talk(a, b)


class TestGoing:
    @pytest.mark.parametrize("controlling", [True, False])
    @in_virtual_time
    async def test_the_path_moves_to_another_interface(self, controlling: bool) -> None:
        """str0m#405 (report 22): not by a timeout. The other pair is known to work, so our data moves at once."""
        world = World()
        roaming, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        roaming.add_interface("eth1", ["192.0.2.2"])
        async with (
            world.agent(roaming, controlling=controlling) as a,
            world.agent(peer, controlling=not controlling) as b,
            connected(a, b),
        ):
            await asyncio.sleep(10)
            diary = Diary(world, a)
            old = hosts_of(a.path())
            other = {"192.0.2.1": "192.0.2.2", "192.0.2.2": "192.0.2.1"}[old]
            roaming.remove_interface({"192.0.2.1": "eth0", "192.0.2.2": "eth1"}[old])
            moved = await diary.until(SelectedPathChanged)
            assert world.now == pytest.approx(10.04)
            assert (hosts_of(moved.old), hosts_of(moved.new)) == (old, other)
            assert moved.reason == "its local address is gone"
            change = await diary.until(NetworkChanged)
            assert (change.added, change.removed) == ((), (old,))
            assert {c.address.host for c in a.local_candidates} == {other}
            a.send(b"still here")
            assert await b.recv() == b"still here"
            assert diary.of(StateChanged) == []

    @in_virtual_time
    async def test_the_last_one_goes_and_another_comes(self) -> None:
        """Roaming from one network to the next: the agent is disconnected in between, and recovers by itself."""
        world = World()
        roaming, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        async with world.agent(roaming) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            diary = Diary(world, a)
            await asyncio.sleep(5)
            roaming.remove_interface("eth0")
            await diary.until(StateChanged, lambda event: event.new is AgentState.DISCONNECTED)
            assert a.path() is None
            await asyncio.sleep(3)
            roaming.add_interface("wlan0", ["203.0.113.5"], kind=InterfaceKind.WIFI)
            await diary.until(StateChanged, lambda event: event.new is AgentState.CONNECTED)
            assert world.now < 5 + 3 + 0.3
            await asyncio.sleep(1)
            await talk(a, b)

    @in_virtual_time
    async def test_its_socket_is_closed_and_nothing_more_leaves_from_it(self) -> None:
        world = World()
        server = world.stun("dead", STUN)
        server.core.is_dead = True
        host = world.host("a", ("192.0.2.1", "192.0.2.2"))
        async with world.agent(host, STUN) as agent:
            diary = Diary(world, agent)
            agent.start_gathering()
            await asyncio.sleep(0.1)
            ports = set(host.node.ports or ())
            host.remove_address("eth0", "192.0.2.2")
            await diary.until(NetworkChanged)
            assert {address.host for address in ports} == {"192.0.2.1", "192.0.2.2"}
            assert {address.host for address in host.node.ports or ()} == {"192.0.2.1"}
            sent = len(world.network.log)
            await asyncio.sleep(10)
            log = list(world.network.log)[sent:]
            later = [entry.packet.base.host for entry in log if entry.fate is Fate.SENT]
            assert set(later) == {"192.0.2.1"}

    @in_virtual_time
    async def test_gathering_does_not_wait_for_a_base_that_is_gone(self) -> None:
        world = World()
        world.stun("living", STUN)
        nowhere = world.nat("nowhere", "port-restricted", "203.0.113.1")
        nowhere.udp_ports = frozenset()
        host = world.host("a", "192.0.2.1")
        host.add_interface("eth1", ["192.168.1.2"], nowhere)
        async with world.agent(host, STUN) as agent:
            diary = Diary(world, agent)
            agent.start_gathering()
            await asyncio.sleep(1)
            assert diary.of(GatheringDone) == []
            host.remove_interface("eth1")
            await diary.until(GatheringDone)
            assert world.now == 1.0

    @in_virtual_time
    async def test_an_address_that_comes_back_gets_a_new_socket(self) -> None:
        world = World()
        host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            (old,) = a.local_candidates
            for _ in range(50):
                host.remove_address("eth0", "192.0.2.1")
                await asyncio.sleep(0.1)
                host.add_address("eth0", "192.0.2.1")
                await asyncio.sleep(0.1)
            (new,) = a.local_candidates
            assert new.address.host == old.address.host and new.address != old.address
            assert host.node.ports == {new.address}
            await asyncio.sleep(1)
            await talk(a, b)


class TestAgeing:
    @in_virtual_time
    async def test_report_17_a_deprecated_address_keeps_its_socket_and_its_path(self) -> None:
        """libjuice#360: the kernel changed the source under the agent. What works is left alone, the new one added."""
        world = World()
        host, peer = world.host("a"), world.host("b", "2001:db8:9::9")
        host.add_interface("eth0", [])
        host.add_address("eth0", "2001:db8::a", [AddressFlag.TEMPORARY])
        async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            diary = Diary(world, a)
            await asyncio.sleep(5)
            (old,) = a.local_candidates
            # A temporary address ages: the kernel makes a new one first.
            host.remove_address("eth0", "2001:db8::a")
            host.add_address("eth0", "2001:db8::a", [AddressFlag.TEMPORARY, AddressFlag.DEPRECATED])
            host.add_address("eth0", "2001:db8::b", [AddressFlag.TEMPORARY])
            change = await diary.until(NetworkChanged)
            assert (change.added, change.removed) == (("2001:db8::b",), ())
            await asyncio.sleep(1)
            assert old in a.local_candidates
            assert old.address in (host.node.ports or ())
            await talk(a, b)
            assert diary.of(StateChanged) == []
            # A month later it is gone.
            host.remove_address("eth0", "2001:db8::a")
            await asyncio.sleep(1)
            assert hosts_of(a.path()) == "2001:db8::b"
            await talk(a, b)

    @in_virtual_time
    async def test_a_lost_carrier_leaves_the_socket(self) -> None:
        """The cable may be back in a second: consent decides, not the plug."""
        world = World()
        host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            diary = Diary(world, a)
            host.set_up("eth0", False)
            await asyncio.sleep(8)
            host.set_up("eth0", True)
            await asyncio.sleep(8)
            assert diary.of(NetworkChanged) == []
            await talk(a, b)


@in_virtual_time
async def test_new_sockets_deliver_to_the_handler_that_is_set() -> None:
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    async with world.agent(host) as a, world.agent(peer, controlling=False) as b, connected(a, b):
        got: list[bytes] = []
        a.set_data_handler(lambda data, component: got.append(data))
        host.add_interface("eth1", ["192.0.2.2"])
        await asyncio.sleep(1)
        host.remove_interface("eth0")
        await asyncio.sleep(1)
        assert hosts_of(a.path()) == "192.0.2.2"
        b.send(b"still here")
        await asyncio.sleep(1)
        assert got == [b"still here"]


@in_virtual_time
async def test_without_trickling_a_late_interface_still_helps() -> None:
    """The peer learns the new address from our checks (RFC 8445, 7.3.1.3)."""
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    async with world.agent(host, path_messages=False) as a, world.agent(peer, controlling=False) as b:
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        host.add_interface("eth1", ["192.0.2.2"])
        await asyncio.sleep(1)
        host.remove_interface("eth0")
        await asyncio.sleep(1)
        await talk(a, b)
        path = b.path()
        assert path is not None and path.remote.type is CandidateType.PEER_REFLEXIVE


@in_virtual_time
async def test_another_default_route_has_the_path_asked() -> None:
    """The path works still, and is trusted; what leaves might have taken another NAT."""
    world = World()
    host, peer = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
    async with world.agent(host) as a, world.agent(peer, controlling=False) as b:
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        diary = Diary(world, a)
        host.set_router("192.0.2.254")
        doubt = await diary.until(PathDoubted)
        assert doubt.reason == "the default route changed"
        await diary.until(PathTrusted)
        await a.aclose()
        host.set_router("192.0.2.253")
        await asyncio.sleep(1.0)
        assert len(diary.of(PathDoubted)) == 1
