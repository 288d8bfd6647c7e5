"""Is the fake gateway of the tests one that clients of other makes take for real?"""

from __future__ import annotations

import asyncio
import subprocess
import time

import pytest

from iceagent.lab import Lab, Machine
from portmap import PROTOCOLS, PortMapper
from portmap.values import ProtocolName
from tests.fakes.gateway import FakeGateway
from tests.fakes.gateway.shell import GatewayShell
from tests.fakes.gateway.state import Options


async def said(machine: Machine, *command: str) -> str:
    """What a program says, while the gateway goes on in this process."""
    process = machine.popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = await asyncio.get_running_loop().run_in_executor(None, process.communicate)
    assert isinstance(out, str)
    return out


@pytest.mark.natlab_needs("upnpc")
@pytest.mark.parametrize("version", [1, 2])
async def test_miniupnpc_maps_lists_and_deletes(natlab: Lab, version: int) -> None:
    router = natlab.router(ipv6="firewall")
    inside = natlab.machine("inside", behind=router)
    gateway = FakeGateway(Options(host=router.lan_address, igd_version=version), now=time.monotonic())
    async with GatewayShell(gateway, router.host):
        upnpc = ("upnpc", "-m", "eth0")
        assert "is redirected to" in await said(inside, *upnpc, "-a", inside.address, "6000", "16000", "udp", "600")
        (mapping,) = gateway.mappings
        assert (mapping.internal, mapping.external_port) == ((inside.address, 6000), 16000)
        assert f"UDP 16000->{inside.address}:6000" in await said(inside, *upnpc, "-l")
        assert "UPNP_DeletePortMapping() returned : 0" in await said(inside, *upnpc, "-d", "16000", "udp")
        assert not gateway.mappings


@pytest.mark.natlab_needs("natpmpc")
async def test_libnatpmp_maps_and_deletes(natlab: Lab) -> None:
    router = natlab.router()
    inside = natlab.machine("inside", behind=router)
    gateway = FakeGateway(Options(host=router.lan_address), now=time.monotonic())
    async with GatewayShell(gateway, router.host):
        natpmpc = ("natpmpc", "-g", router.lan_address, "-a", "16000", "6000", "udp")
        shown = await said(inside, *natpmpc, "600")
        assert "Mapped public port 16000 protocol UDP to local port 6000" in shown
        assert f"Public IP address : {gateway.options.external_host}" in shown
        (mapping,) = gateway.mappings
        assert (mapping.internal, mapping.external_port) == ((inside.address, 6000), 16000)
        await said(inside, *natpmpc, "0")
        assert not gateway.mappings


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_ours_maps_over_real_sockets_and_multicast(natlab: Lab, protocol: ProtocolName) -> None:
    router = natlab.router()
    inside = natlab.machine("inside", behind=router)
    options = Options(host=router.lan_address, protocols=frozenset({protocol}))
    gateway = FakeGateway(options, now=time.monotonic())
    gateway.faults.ssdp.ignores_unicast = True
    async with GatewayShell(gateway, router.host), PortMapper(inside.host, protocols=(protocol,)) as mapper:
        mapping = await mapper.map("udp", 6000)
        assert mapping.external == (gateway.options.external_host, 6000)
    assert not gateway.mappings and not gateway.violations
