"""Addresses come, go and age: when a gathering acts on it, and what it tells. Without an agent, in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from iceagent import Config
from iceagent.core.pair import Traffic
from iceagent.events import NetworkChanged
from iceagent.gather.gathering import SETTLE_S, Gathering
from iceagent.net.address import TransportAddress
from iceagent.net.host import AddressFlag
from iceagent.testing import MemoryHost
from tests.shell.world import World, in_virtual_time


class Bystander:
    """A gathering without an agent, and what it tells."""

    def __init__(self, world: World, host: MemoryHost, **options: Any) -> None:
        self.deprecated: list[tuple[str, bool]] = []
        self.links: list[tuple[str, bool]] = []
        self.route_changes: list[float] = []
        self.events: list[tuple[float, object]] = []
        self.gathering = Gathering(
            Config(portmap=False, **options),
            host,
            random.Random(1),
            random.Random(2),
            listener=self,  # type: ignore[arg-type]  # nothing is received
            sink=lambda data, component: None,
            session=self,
            inform=lambda method, *args: method(*args, now=world.now),
            found=lambda candidate: True,
            lost=lambda base: None,
            withdrawn=lambda base, address: None,
            tell=lambda event: self.events.append((world.now, event)),
        )
        self.gathering.start()

    # What a session would hear.

    def peers(self, base: TransportAddress) -> dict[TransportAddress, Traffic]:
        return {}

    def deprecate(self, base: TransportAddress, is_deprecated: bool, now: float) -> None:
        self.deprecated.append((base.host, is_deprecated))

    def set_link(self, base: TransportAddress, is_up: bool, now: float) -> None:
        self.links.append((base.host, is_up))

    def doubt_all(self, reason: str, now: float) -> None:
        self.route_changes.append(now)

    @property
    def hosts(self) -> list[str]:
        return sorted(base.host for base in self.gathering.bases)

    @property
    def changes(self) -> list[tuple[float, tuple[str, ...], tuple[str, ...]]]:
        found = [(at, event) for at, event in self.events if isinstance(event, NetworkChanged)]
        return [(at, event.added, event.removed) for at, event in found]


@in_virtual_time
async def test_addresses_that_come_one_after_the_other_are_gathered_together() -> None:
    world = World()
    host = world.host("a", "192.0.2.1")
    bystander = Bystander(world, host)
    await asyncio.sleep(1.0)
    host.add_interface("eth1", ["192.0.2.2"])
    await asyncio.sleep(0.2)
    host.add_address("eth1", "2001:db8::2")
    await asyncio.sleep(0.04)
    assert bystander.hosts == ["192.0.2.1"]
    await asyncio.sleep(1.0)
    assert bystander.changes == [(1.0 + SETTLE_S, ("192.0.2.2", "2001:db8::2"), ())]
    bystander.gathering.close()


@in_virtual_time
async def test_what_is_lost_counts_at_once_and_what_came_only_for_a_moment_never_was() -> None:
    world = World()
    host = world.host("a", ("192.0.2.1", "192.0.2.2"))
    bystander = Bystander(world, host)
    await asyncio.sleep(1.0)
    host.add_interface("eth1", ["192.0.2.3"])
    await asyncio.sleep(0.1)
    host.remove_address("eth0", "192.0.2.2")
    await asyncio.sleep(0.01)
    assert bystander.hosts == ["192.0.2.1"] and bystander.changes == [(1.1, (), ("192.0.2.2",))]
    host.remove_interface("eth1")
    await asyncio.sleep(1.0)
    assert bystander.hosts == ["192.0.2.1"] and len(bystander.changes) == 1
    bystander.gathering.close()


@pytest.mark.parametrize("at_once", [True, False])
@in_virtual_time
async def test_who_has_nothing_else_takes_what_there_is(at_once: bool) -> None:
    """Roaming: the old network is left before the new one is there, or both in one message."""
    world = World()
    host = world.host("a", "192.0.2.1")
    bystander = Bystander(world, host)
    await asyncio.sleep(1.0)
    host.remove_interface("eth0")
    if not at_once:
        await asyncio.sleep(0.5)
    host.add_interface("wlan0", ["192.0.2.2"])
    await asyncio.sleep(0.01)
    assert bystander.hosts == ["192.0.2.2"]
    assert [(added, removed) for _, added, removed in bystander.changes] == (
        [(("192.0.2.2",), ("192.0.2.1",))] if at_once else [((), ("192.0.2.1",)), (("192.0.2.2",), ())]
    )
    bystander.gathering.close()


@in_virtual_time
async def test_closing_forgets_what_was_about_to_be_gathered() -> None:
    world = World()
    host = world.host("a", "192.0.2.1")
    bystander = Bystander(world, host)
    await asyncio.sleep(1.0)
    host.add_interface("eth1", ["192.0.2.2"])
    await asyncio.sleep(0.1)
    bystander.gathering.close()
    await asyncio.sleep(1.0)
    assert bystander.changes == [] and not host.node.ports


@in_virtual_time
async def test_an_address_that_ages_is_told_once_and_so_is_one_that_is_young_again() -> None:
    """RFC 4862, 5.5.4: it "SHOULD NOT be used to initiate new communications"; a router that comes back renews it."""
    world = World()
    host = world.host("a", "192.0.2.1")
    host.add_address("eth0", "2001:db8::1")
    bystander = Bystander(world, host, components=2)
    await asyncio.sleep(1.0)
    for is_deprecated in (True, False):
        bystander.deprecated.clear()
        host.remove_address("eth0", "2001:db8::1")
        host.add_address("eth0", "2001:db8::1", [AddressFlag.DEPRECATED] if is_deprecated else [])
        await asyncio.sleep(0.01)
        assert bystander.deprecated == [("2001:db8::1", is_deprecated)] * 2
        host.add_address("eth0", f"192.0.2.{2 + is_deprecated}")
        await asyncio.sleep(1.0)
        assert len(bystander.deprecated) == 2
        assert "2001:db8::1" in bystander.hosts
    bystander.gathering.close()
