"""Relayed candidates of an agent, with a strict model of a TURN server: who is silent, who is told of it, and when."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from iceagent import Agent, Config, IceServer, TurnCredentials
from iceagent.events import GatheringDone, LocalCandidateFound, ServerFailed
from tests.fakes.turn_server import Options
from tests.shell.world import Diary, World, in_virtual_time
from tests.unit.probe.test_relays import USER, TurnMachine

TURN, DEAD, HOME = "20.0.1.1", "20.0.9.9", "192.168.1.2"
HOME_6 = "2001:db8::2"


def config(*urls: str, **options: Any) -> Config:
    server = IceServer(urls=urls, username="user", credential="secret")
    return Config(**{"servers": (server,), "relay_only": True, "ipv6": False, **options})


async def turn_machine(world: World, **options: Any) -> TurnMachine:
    machine = TurnMachine(world.host("turn", TURN), TURN, Options(users=USER, **options))
    await machine.listen()
    return machine


def home(world: World) -> Any:
    return world.host("me", HOME, world.nat("router", "port-restricted", "30.0.0.1"))


def told(diary: Diary) -> list[tuple[float, str]]:
    return [(round(at, 3), e.reason) for at, e in diary.entries if isinstance(e, ServerFailed)]


class TestSilence:
    @in_virtual_time
    async def test_a_silent_server_is_told_of_when_gathering_ends_and_not_again(self) -> None:
        """Over UDP, and over a stream that is accepted and stays silent; the last repetition ends at 39.5 s."""
        world = World()
        turn = await turn_machine(world)
        turn.is_deaf = True
        async with Agent(config(f"turn:{TURN}"), controlling=True, host=home(world), rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            assert (await agent.gather()).candidates == ()
            await diary.until(GatheringDone)
            assert told(diary) == [
                (5.0, f"udp {TURN}:3478: no response so far"),
                (5.0, f"tcp {TURN}:3478: no response so far"),
            ]
            # Who waits for the end of gathering knows it by then.
            assert isinstance(diary.entries[-1][1], GatheringDone)
            await asyncio.sleep(37.0)
            assert len(told(diary)) == 2

    @in_virtual_time
    async def test_it_may_still_come(self) -> None:
        world = World()
        turn = await turn_machine(world)
        turn.is_deaf = True
        url = f"turn:{TURN}?transport=udp"
        async with Agent(config(url), controlling=True, host=home(world), rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            turn.is_deaf = False
            await diary.until(LocalCandidateFound)
            assert told(diary) == [(5.0, f"udp {TURN}:3478: no response so far")]

    @in_virtual_time
    async def test_a_stream_that_is_not_accepted_is_told_of_once(self) -> None:
        """Its SYN is lost: the connection is given up after 10 s."""
        world = World()
        await turn_machine(world)
        host = home(world)

        async def connect(*_: object, **__: object) -> Any:
            async with asyncio.timeout(10.0):
                await asyncio.get_running_loop().create_future()

        host.connect_tcp = connect
        async with Agent(config(f"turn:{DEAD}?transport=tcp"), controlling=True, host=host) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            await asyncio.sleep(6.0)
            assert told(diary) == [(5.0, f"tcp {DEAD}:3478: no response so far")]

    @in_virtual_time
    async def test_who_has_said_why_is_not_told_of_again(self) -> None:
        world = World()
        turn = await turn_machine(world, quota=0)
        url = f"turn:{TURN}?transport=udp"
        async with Agent(config(url), controlling=True, host=home(world), rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            await diary.until(GatheringDone)
            assert [reason for _, reason in told(diary)] == [f"udp {TURN}:3478: 486 Allocation Quota Reached"]
            assert world.now < 1.0
        turn.assert_nothing_is_left()


class TestRepetition:
    """A server is asked again and again; what becomes of it is told once, until it has worked in between."""

    @in_virtual_time
    async def test_without_a_local_address_each_way_is_told_of_once(self) -> None:
        """The link goes down for two minutes, comes back, and goes down again; two components ask."""
        world = World()
        await turn_machine(world)
        host = home(world)
        given = config(f"turn:{TURN}", components=2)
        missing = [f"{way} {TURN}:3478: there is no local IPv4 address for it" for way in ("udp", "tcp")]
        async with Agent(given, controlling=True, host=host, rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            assert told(diary) == []
            for _ in range(2):
                await asyncio.sleep(20.0)
                before = len(told(diary))
                host.remove_address("eth0", HOME)
                await asyncio.sleep(120.0)
                # Restarts, and other changes of the network, bring nothing new.
                host.add_address("eth0", "fe80::9")
                await asyncio.sleep(5.0)
                agent.restart()
                await asyncio.sleep(15.0)
                assert [reason for _, reason in told(diary)[before:]] == missing
                host.remove_address("eth0", "fe80::9")
                host.add_address("eth0", HOME)
                await asyncio.sleep(70.0)
                assert any(c.type.value == "relay" for c in agent.local_candidates)

    @in_virtual_time
    async def test_who_says_no_each_time_is_told_of_once(self) -> None:
        world = World()
        turn = await turn_machine(world, quota=0)
        url = f"turn:{TURN}?transport=udp"
        async with Agent(config(url), controlling=True, host=home(world), rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            await asyncio.sleep(600.0)
            assert [reason for _, reason in told(diary)] == [f"udp {TURN}:3478: 486 Allocation Quota Reached"]
        turn.assert_nothing_is_left()

    @in_virtual_time
    async def test_a_stun_server_that_is_silent_still_is_no_news_from_a_new_port(self) -> None:
        world = World()
        server = world.stun("stun", DEAD)
        server.core.is_dead = True
        host = home(world)
        given = Config(servers=(IceServer(urls=(f"stun:{DEAD}",)),), ipv6=False, portmap=False)
        async with Agent(given, controlling=True, host=host, rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            for _ in range(3):
                await asyncio.sleep(20.0)
                host.remove_address("eth0", HOME)
                await asyncio.sleep(20.0)
                host.add_address("eth0", HOME)
            await asyncio.sleep(20.0)
            assert [reason for _, reason in told(diary)] == ["no response"]
            # It works, and then it does no more: that is news.
            server.core.is_dead = False
            agent.restart()
            await diary.until(LocalCandidateFound, lambda event: event.candidate.type.value == "srflx")
            server.core.is_dead = True
            host.remove_address("eth0", HOME)
            await asyncio.sleep(20.0)
            host.add_address("eth0", HOME)
            await asyncio.sleep(20.0)
            assert [reason for _, reason in told(diary)] == ["no response"] * 2


class TestCredentials:
    @in_virtual_time
    async def test_a_function_that_hangs_holds_up_nothing_else(self) -> None:
        """And is asked again half a minute later."""
        world = World()
        await turn_machine(world)
        calls: list[float] = []

        async def credentials() -> TurnCredentials:
            calls.append(world.now)
            if len(calls) == 1:
                await asyncio.get_running_loop().create_future()
            return TurnCredentials(username="user", password="secret")

        server = IceServer(urls=f"turn:{TURN}?transport=udp", credentials=credentials)  # type: ignore[arg-type]
        given = Config(servers=(server,), ipv6=False, portmap=False)
        async with Agent(given, controlling=True, host=home(world), rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            assert [c.type.value for c in (await agent.gather()).candidates] == ["host", "srflx"]
            await diary.until(LocalCandidateFound, lambda event: event.candidate.type.value == "relay")
            assert told(diary) == [
                (5.0, "the application has given no credentials so far"),
                (10.0, "the application gave no credentials: nothing within 10 s"),
            ]
            assert calls == [0.0, pytest.approx(34.0)]

    @in_virtual_time
    @pytest.mark.parametrize("value", [None, ("user", "secret")])
    async def test_what_is_none_is_told(self, value: Any) -> None:
        world = World()

        async def credentials() -> Any:
            return value

        server = IceServer(urls=(f"turn:{TURN}",), credentials=credentials)
        given = Config(servers=(server,), relay_only=True)
        async with Agent(given, controlling=True, host=home(world)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            failed = await diary.until(ServerFailed)
            assert failed.reason.startswith("the application gave no credentials, but something of type ")
            assert world.now == 0.0

    @in_virtual_time
    async def test_those_that_cannot_be_sent_are_not_tried_again(self) -> None:
        world = World()
        server = IceServer(urls=(f"turn:{TURN}?transport=udp",), username="user", credential="a\0b")
        given = Config(servers=(server,), relay_only=True, ipv6=False)
        async with Agent(given, controlling=True, host=home(world)) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            await asyncio.sleep(300.0)
            (only,) = told(diary)
            assert only[1].endswith("U+0000 is not allowed in a username, realm or password")


class TestRelatedAddresses:
    @in_virtual_time
    async def test_who_hides_gives_the_unspecified_address_of_the_candidates_family(self) -> None:
        """RFC 8839, 5.1: "the address MUST be set to "0.0.0.0" (for IPv4 candidates) or "::" (for IPv6 candidates)"."""
        world = World()
        await turn_machine(world)
        given = config(f"turn:{TURN}?transport=udp", ipv6=True)
        async with Agent(given, controlling=True, host=home(world), rng=random.Random(1)) as agent:
            found = (await agent.gather()).candidates
            related = {c.address.version: str(c.related_address) for c in found}
            assert related == {4: "0.0.0.0:9", 6: "[::]:9"}
            (six,) = [c.to_sdp() for c in found if c.address.version == 6]
            assert " typ relay raddr :: rport 9 " in six
