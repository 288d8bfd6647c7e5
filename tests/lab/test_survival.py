"""Paths break while data flows, on real kernel NATs: nobody is told, signalling is dead, ten datagrams a second go both
ways. Each side is controlling in turn.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from iceagent import AgentState, IceServer
from iceagent.events import RestartAdvised, SelectedPathChanged, StateChanged
from iceagent.lab import Impairment, Lab
from iceagent.lab.services import Service, serve
from tests.lab.survival import Talk, talking, turn

ROOT = Path(__file__).parents[2]

Story = Callable[[str], Coroutine[Any, Any, None]]


async def both_ways(story: Story) -> None:
    """Tell it twice, side by side: with ``a`` as the controlling side, and with ``b``."""
    async with asyncio.TaskGroup() as group:
        for controlling in ("a", "b"):
            group.create_task(story(controlling))


class Homes:
    """Two machines behind a router each, and servers.

    Attributes:
        stun: the URI of the STUN server.
        servers: that one and TURN servers, for the agents.
        services: the TURN servers' programs.
    """

    def __init__(
        self, lab: Lab, name: str, kind_a: str, kind_b: str, *, relays: int = 1, impairment: Impairment | None = None
    ) -> None:
        self.routers = (
            lab.router(kind_a, f"home-a-{name}", impairment=impairment),
            lab.router(kind_b, f"home-b-{name}", impairment=impairment),
        )
        self.a, self.b = (lab.machine(behind=router) for router in self.routers)
        stun = lab.machine(f"stun-{name}")
        serve(stun)
        machines = [lab.machine(f"turn{number}-{name}") for number in range(relays)]
        self.services: list[Service] = [serve(machine, "--user", "lab:lab") for machine in machines]
        self.stun = f"stun:{stun.address}"
        self.servers = (IceServer(urls=(self.stun,)), *turn(*machines))

    def block(self, *directions: str) -> None:
        """Nothing passes between the two homes any more, or in one direction; servers are reached as before."""
        one, other = self.routers
        rules = {"out": f"ip daddr {other.address} drop", "in": f"ip saddr {other.address} drop"}
        one.load(extra="; ".join(rules[each] for each in directions or rules))

    def unblock(self) -> None:
        """It does again."""
        self.routers[0].load()


def assert_told_the_same(talk: Talk, since: float) -> None:
    """Both ends were told of the path at about the same time, and it is the same one."""
    assert talk.is_mirrored, talk.story(since)
    last = [side.times_of(SelectedPathChanged, since)[-1] for side in talk.sides]
    assert abs(last[0] - last[1]) <= 1.0, talk.story(since)


async def test_a_relay_is_left_as_soon_as_a_direct_path_works(natlab: Lab) -> None:
    """A firewall is lifted three seconds after connecting: direct within three seconds, and nothing is lost."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted")
        homes.block()
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            assert talk.a.path.kind == talk.b.path.kind == "relay"
            lifted = time.monotonic()
            homes.unblock()
            await talk.until(lambda: talk.a.path.kind == talk.b.path.kind == "direct", 3.0)
            await asyncio.sleep(1.0)
            assert_told_the_same(talk, lifted)
            assert talk.lost(before=time.monotonic() - 0.5) == 0, talk.story(lifted)

    await both_ways(story)


@pytest.mark.parametrize("directions", [("out", "in"), ("out",), ("in",)], ids=["both", "out", "in"])
async def test_a_path_is_blackholed_and_a_relay_is_alive(natlab: Lab, directions: tuple[str, ...]) -> None:
    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "full-cone")
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            assert talk.a.path.kind == talk.b.path.kind == "direct"
            began = time.monotonic()
            homes.block(*directions)
            await asyncio.sleep(3.0)
            assert talk.gap(began) <= 1.5, talk.story(began)
            assert talk.a.path.kind == talk.b.path.kind == "relay"
            assert_told_the_same(talk, began)
            assert not any(side.times_of(StateChanged, began) for side in talk.sides)

    await both_ways(story)


async def test_one_of_two_turn_servers_is_killed(natlab: Lab) -> None:
    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "symmetric", "symmetric", relays=2)
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            path = talk.a.path
            hosts = {path.local.address.host, path.remote.address.host}
            began = time.monotonic()
            (used,) = [each for each in homes.services if each.machine.address in hosts][:1]
            used.kill()
            await asyncio.sleep(4.0)
            assert talk.gap(began) <= 1.5, talk.story(began)
            assert_told_the_same(talk, began)

    await both_ways(story)


@pytest.mark.natlab_needs("conntrack")
async def test_the_nat_of_a_direct_path_reboots(natlab: Lab) -> None:
    """The symmetric one: what it lets out comes from another port then."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "symmetric", "full-cone", relays=0)
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            began = time.monotonic()
            homes.routers[0].reboot()
            await asyncio.sleep(4.0)
            assert talk.gap(began) <= 2.0, talk.story(began)
            assert talk.a.agent.state is talk.b.agent.state is AgentState.CONNECTED

    await both_ways(story)


@pytest.mark.natlab_needs("conntrack")
async def test_the_nat_of_a_relayed_path_reboots(natlab: Lab) -> None:
    """Symmetric on both sides: every port that anybody knows is another one then."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "symmetric", "symmetric")
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            assert talk.a.path.kind == talk.b.path.kind == "relay"
            began = time.monotonic()
            homes.routers[0].reboot()
            await asyncio.sleep(4.0)
            assert talk.gap(began) <= 2.0, talk.story(began)
            assert talk.is_mirrored, talk.story(began)

    await both_ways(story)


async def test_one_side_roams_to_another_network(natlab: Lab) -> None:
    """Another NAT, another subnet; a relay is known on both sides."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted")
        cafe = natlab.router("port-restricted", f"cafe-{controlling}")
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            began = time.monotonic()
            homes.a.roam(cafe)
            await asyncio.sleep(4.0)
            assert talk.gap(began) <= 2.0, talk.story(began)
            assert_told_the_same(talk, began)

    await both_ways(story)


async def test_everything_is_blackholed_for_ten_seconds(natlab: Lab) -> None:
    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted", impairment=Impairment())
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            began = time.monotonic()
            homes.routers[0].wire.cut()
            await asyncio.sleep(2.0)
            for side in talk.sides:
                assert side.agent.state is AgentState.DISCONNECTED, talk.story(began)
                assert side.agent.path() is not None
            await asyncio.sleep(8.0)
            ended = time.monotonic()
            homes.routers[0].wire.set(Impairment())
            await asyncio.sleep(1.5)
            for side in talk.sides:
                first = min(at for at in side.heard.values() if at > ended)
                assert first - ended <= 0.5, talk.story(began)
                assert side.agent.state is AgentState.CONNECTED

    await both_ways(story)


async def test_without_a_relay_a_new_outside_address_asks_for_a_restart(natlab: Lab) -> None:
    """Nobody can be told where we are: on both sides the application knows within two seconds."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted", relays=0)
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            began = time.monotonic()
            homes.routers[0].move()
            await talk.until(lambda: all(side.times_of(RestartAdvised, began) for side in talk.sides), 3.0)
            for side in talk.sides:
                assert side.times_of(RestartAdvised, began)[0] - began <= 2.0, talk.story(began)
                assert side.agent.state is AgentState.DISCONNECTED

    await both_ways(story)


async def test_payload_is_eaten_and_the_application_says_so(natlab: Lab) -> None:
    """Checks pass on the direct path, data does not; one side says so, the other one follows it."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "full-cone")
        async with talking(homes.a, homes.b, homes.servers, controlling=controlling) as talk:
            one, other = homes.routers
            # The first byte behind the UDP header; STUN begins with 0 … 3.
            eaten = "meta l4proto udp @th,64,8 > 3"
            one.load(extra=f"ip daddr {other.address} {eaten} drop; ip saddr {other.address} {eaten} drop")
            await asyncio.sleep(2.0)
            assert talk.a.path.kind == talk.b.path.kind == "direct"
            reported = time.monotonic()
            talk.a.agent.report_loss()
            await asyncio.sleep(2.5)
            for side in talk.sides:
                first = min(at for at in side.heard.values() if at > reported)
                assert first - reported <= 1.5, talk.story(reported)
            assert_told_the_same(talk, reported)

    await both_ways(story)


@pytest.mark.parametrize("event", ["address", "both roam"])
async def test_connect_restarts_where_only_signalling_can_help(natlab: Lab, tmp_path: Path, event: str) -> None:
    """``iceagent connect`` without a relay, descriptions in files: nobody can be told where we are but by them."""

    async def story(controlling: str) -> None:
        homes = Homes(natlab, controlling, "port-restricted", "port-restricted", relays=0)
        folder = tmp_path / controlling
        folder.mkdir()
        programs = []
        for machine, role, mine, theirs in (
            (homes.a, "controlling" if controlling == "a" else "controlled", "a", "b"),
            (homes.b, "controlled" if controlling == "a" else "controlling", "b", "a"),
        ):
            command = [sys.executable, "-m", "iceagent", "connect", "--json", "--role", role, "--no-portmap"]
            command += ["--out", str(folder / mine), "--in", str(folder / theirs), "--server", homes.stun]
            command += ["--ping", "0.1", "--duration", "8"]
            programs.append(machine.popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        await asyncio.sleep(3.0)
        homes.routers[0].move()
        if event == "both roam":
            homes.routers[1].move()
        outputs = await asyncio.gather(*(asyncio.to_thread(each.communicate, timeout=20.0) for each in programs))
        advised = 0
        for (out, _), program in zip(outputs, programs, strict=True):
            lines = [json.loads(line) for line in out.splitlines()]
            story_told = "\n".join(str(line)[:300] for line in lines if line["event"] != "ping.echoed")
            assert program.returncode == 0, story_told
            assert lines[-1]["longest_gap_ms"] <= 3000, story_told
            names = [line["event"] for line in lines]
            assert "ice.restarted" in names, story_told
            advised += "restart.advised" in names
        # The one that restarts first may be ahead of what the other one would have noticed.
        assert advised

    await both_ways(story)
