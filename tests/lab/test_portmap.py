"""Port mapping at real routers: miniupnpd on kernel NATs."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent import Agent, Config
from iceagent.events import PortMapped
from iceagent.lab import Lab, Machine, Router
from iceagent.lab.services import miniupnpd, serve
from iceagent.net.address import TransportAddress
from portmap import (
    GatewayForgot,
    GatewayReport,
    MappingEvent,
    MappingFailed,
    MappingRenewed,
    PortMapper,
    ProtocolReport,
    Trust,
)
from portmap.values import PROTOCOLS, ProtocolName

pytestmark = pytest.mark.natlab_needs("miniupnpd")

ROOT = Path(__file__).parents[2]
PORT = 6000


class Home:
    """A router with miniupnpd, a machine behind it, and a stranger on the Internet."""

    def __init__(self, natlab: Lab, kind: str = "port-restricted", **options: object) -> None:
        self.lab = natlab
        self.router: Router = natlab.router(kind, ipv6="firewall")
        self.inside: Machine = natlab.machine("inside", behind=self.router)
        self.stranger: Machine = natlab.machine("stranger")
        self.daemon = miniupnpd(self.router, **options)  # type: ignore[arg-type]

    def gets_in(self, external: TransportAddress | None, internal: TransportAddress) -> bool:
        """Whether a datagram of the stranger arrives."""
        assert external is not None
        family = socket.AF_INET6 if external.version == 6 else socket.AF_INET
        with self.inside.namespace.socket(family) as ours, self.stranger.namespace.socket(family) as theirs:
            ours.bind(internal)
            theirs.sendto(b"x", external)
            return bool(select.select([ours], [], [], 0.3)[0])

    def mapper(self, *protocols: ProtocolName, **options: object) -> PortMapper:
        return PortMapper(self.inside.host, protocols=protocols or PROTOCOLS, **options)  # type: ignore[arg-type]


@pytest.fixture
def home(natlab: Lab) -> Home:
    return Home(natlab)


def row_of(reports: tuple[GatewayReport, ...], name: ProtocolName) -> ProtocolReport:
    (report,) = (report for report in reports if report.gateway.version == 4)
    return report.protocols[PROTOCOLS.index(name)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_each_protocol_alone_lets_packets_in_until_it_is_closed(home: Home, protocol: ProtocolName) -> None:
    async with home.mapper(protocol, versions=(4,)) as mapper:
        mapping = await mapper.map("udp", PORT)
        assert (mapping.protocol, mapping.external, mapping.trust) == (
            protocol,
            TransportAddress(home.router.address, PORT),
            Trust.GLOBAL,
        )
        assert mapping.internal == TransportAddress(home.inside.address, PORT)
        assert home.gets_in(mapping.external, mapping.internal)
        await mapping.aclose()
        assert mapping.is_deleted
        assert not home.gets_in(mapping.external, mapping.internal)


async def test_of_all_three_one_maps_and_leaving_the_mapper_deletes_it(home: Home) -> None:
    async with home.mapper(versions=(4,)) as mapper:
        mapping = await mapper.map("udp", PORT)
        external = mapping.external
        assert mapping.protocol == "pcp" and external is not None
        assert home.gets_in(external, mapping.internal)
    assert not home.gets_in(external, mapping.internal)


async def test_tcp_ports_are_mapped_too(home: Home) -> None:
    for protocol in PROTOCOLS:
        async with home.mapper(protocol, versions=(4,)) as mapper:
            mapping = await mapper.map("tcp", PORT)
            with home.inside.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as ours:
                ours.bind(mapping.internal)
                ours.listen()
                with home.stranger.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as theirs:
                    theirs.settimeout(1.0)
                    assert mapping.external is not None
                    theirs.connect(mapping.external)


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
async def test_a_pinhole_in_an_ipv6_firewall_opens_and_closes(home: Home, protocol: ProtocolName) -> None:
    async with home.mapper(protocol, versions=(6,)) as mapper:
        (host6,) = home.inside.hosts_of(6)
        internal = TransportAddress(host6, PORT)
        assert not home.gets_in(internal, internal)
        mapping = await mapper.map("udp", internal)
        assert mapping.external == internal
        assert home.gets_in(internal, internal)
        await mapping.aclose()
        assert not home.gets_in(internal, internal)


async def test_probe_tells_what_each_protocol_does_and_leaves_nothing_behind(home: Home) -> None:
    async with home.mapper() as mapper:
        started = time.monotonic()
        reports = await mapper.probe()
        assert time.monotonic() - started < 1.5
    assert [row_of(reports, name).status for name in PROTOCOLS] == ["ok"] * 3
    assert {row_of(reports, name).trust for name in PROTOCOLS} == {Trust.GLOBAL}
    assert [row.external and row.external.host for row in reports[0].protocols] == [home.router.address] * 3
    assert "udp" not in home.router.run(["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"])


async def test_nothing_here_is_known_within_a_second_and_a_half(natlab: Lab) -> None:
    inside = natlab.machine(behind=natlab.router())
    async with PortMapper(inside.host) as mapper:
        started = time.monotonic()
        with pytest.raises(MappingFailed) as failed:
            await mapper.map("udp", PORT)
        assert time.monotonic() - started < 1.5
    assert set(failed.value.reasons) == set(PROTOCOLS)


async def test_without_a_default_route_there_is_nobody_to_ask(natlab: Lab) -> None:
    inside = natlab.machine(behind=natlab.router())
    inside.run(["ip", "route", "del", "default"])
    async with PortMapper(inside.host) as mapper:
        with pytest.raises(MappingFailed, match="no default route"):
            await mapper.map("udp", PORT)
        assert await mapper.probe() == ()


async def test_a_router_behind_a_carriers_nat_refuses_and_says_why(natlab: Lab) -> None:
    carrier = natlab.router("port-restricted", "carrier", is_carrier=True)
    router = natlab.router(behind=carrier)
    inside = natlab.machine(behind=router)
    miniupnpd(router)
    async with PortMapper(inside.host) as mapper:
        reports = await mapper.probe()
    assert [row_of(reports, name).status for name in PROTOCOLS] == ["refused"] * 3
    assert "NO_RESOURCES" in row_of(reports, "pcp").reason
    assert row_of(reports, "nat-pmp").reason.startswith("3 ")
    assert "501" in row_of(reports, "upnp").reason


async def test_a_restart_of_the_router_is_noticed_and_the_mapping_made_again(home: Home) -> None:
    async with home.mapper("pcp", "nat-pmp", versions=(4,)) as mapper:
        mapping = await mapper.map("udp", PORT)
        # RFC 6887, 8.5, takes two seconds for the clocks' fault: the epoch must have come farther than that.
        await asyncio.sleep(3.0)
        home.daemon.stop()
        home.router.run(["nft", "flush", "chain", "inet", "filter", "prerouting_miniupnpd"])
        home.router.run(["nft", "flush", "chain", "inet", "filter", "miniupnpd"])
        assert mapping.external is not None and not home.gets_in(mapping.external, mapping.internal)
        home.daemon.start()
        seen: list[type[MappingEvent]] = []
        async with asyncio.timeout(10.0):
            async for event in mapping:
                seen.append(type(event))
                if seen[-1] is MappingRenewed and GatewayForgot in seen:
                    break
        assert home.gets_in(mapping.external, mapping.internal)


async def test_two_machines_that_want_one_port_get_two(home: Home) -> None:
    other = home.lab.machine("other", behind=home.router)
    for protocol in PROTOCOLS:
        async with (
            home.mapper(protocol, versions=(4,)) as ours,
            PortMapper(other.host, protocols=(protocol,), versions=(4,)) as theirs,
        ):
            first, second = await ours.map("udp", PORT), await theirs.map("udp", PORT)
            assert first.external is not None and second.external is not None
            assert first.external.port == PORT != second.external.port
            assert home.gets_in(first.external, first.internal)


async def test_two_programs_of_one_machine_do_not_take_each_others_ports(home: Home) -> None:
    async with home.mapper("upnp", versions=(4,)) as ours, home.mapper("upnp", versions=(4,)) as others:
        first = await ours.map("udp", PORT, external_port=7000)
        second = await others.map("udp", PORT + 1, external_port=7000)
        assert first.external is not None and second.external is not None
        assert first.external.port == 7000 != second.external.port
        assert home.gets_in(first.external, first.internal) and home.gets_in(second.external, second.internal)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_leaving_takes_a_second_at_most_though_the_daemon_hangs(home: Home, protocol: ProtocolName) -> None:
    async with home.mapper(protocol, versions=(4,)) as mapper:
        await mapper.map("udp", PORT)
        os.kill(home.daemon.pid, signal.SIGSTOP)
        started = time.monotonic()
    assert time.monotonic() - started <= 1.0
    os.kill(home.daemon.pid, signal.SIGCONT)


@pytest.mark.natlab_needs("upnpc", "natpmpc")
async def test_what_we_open_others_list_and_the_reverse(home: Home) -> None:
    home.inside.run(["upnpc", "-m", "eth0", "-e", "theirs", "-a", home.inside.address, "6005", "16005", "udp"])
    async with home.mapper("upnp", versions=(4,)) as mapper:
        await mapper.map("udp", PORT)
        listed = await mapper.list_mappings()
        assert {(each.transport, each.external_port, each.entry.description) for each in listed} >= {
            ("udp", 16005, "theirs"),
            ("udp", PORT, "iceagent"),
        }
        shown = home.inside.run(["upnpc", "-m", "eth0", "-l"])
        assert f"UDP  {PORT}->{home.inside.address}:{PORT}" in shown and "iceagent" in shown
    assert str(PORT) not in home.inside.run(["upnpc", "-m", "eth0", "-l"]).replace("16005", "")
    assert "Mapped public port 16007" in home.inside.run(
        ["natpmpc", "-g", home.router.lan_address, "-a", "16007", "6007", "udp", "120"]
    )


# --- the agent -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def gathered(machine: Machine, **options: object) -> AsyncIterator[Agent]:
    agent = Agent(Config(ipv6=False, **options), controlling=True, host=machine.host)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(5.0):
            await agent.gather()
            yield agent
    finally:
        await agent.aclose()


async def test_an_agent_signals_a_mapped_address_and_deletes_it_when_it_closes(home: Home) -> None:
    async with gathered(home.inside) as agent:
        events = agent.events()
        (host,) = [each for each in agent.local_candidates if each.type.value == "host"]
        while not (mapped := [each for each in agent.local_candidates if each.is_mapped]):
            await anext(events)
        (candidate,) = mapped
        assert candidate.address == TransportAddress(home.router.address, host.address.port)
        assert candidate.related_address == candidate.base == host.address
        assert " typ srflx raddr " in candidate.to_sdp()
        await agent.aclose()
    assert not home.gets_in(candidate.address, host.address)


async def test_a_mapping_on_one_side_connects_two_symmetric_nats_directly(natlab: Lab) -> None:
    home = Home(natlab, "symmetric")
    other = natlab.machine(behind=natlab.router("symmetric"))
    a = Agent(Config(ipv6=False), controlling=True, host=home.inside.host)
    b = Agent(Config(ipv6=False), controlling=False, host=other.host)
    try:
        async with asyncio.timeout(8.0):
            events = a.events()
            a.start_gathering()
            async for event in events:
                if isinstance(event, PortMapped):
                    break
            b.set_remote_description(await a.gather())
            a.set_remote_description(await b.gather())
            path, _ = await asyncio.gather(a.connect(), b.connect())
        assert path.kind == "direct"
        a.send(b"hello")
        assert await asyncio.wait_for(b.recv(), 1.0) == b"hello"
    finally:
        await asyncio.gather(a.aclose(), b.aclose())


# --- the command -----------------------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "iceagent", "map", "--json", *words]


def run(machine: Machine, *words: str) -> tuple[int, list[dict[str, object]], str]:
    process = machine.popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    out, err = process.communicate(timeout=20.0)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def test_the_command_holds_a_mapping_until_it_is_told_to_end(home: Home) -> None:
    process = home.inside.popen(command("UDP", str(PORT)), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    mapped = json.loads(process.stdout.readline())
    external = TransportAddress(home.router.address, PORT)
    assert (mapped["event"], mapped["protocol"], mapped["external"]) == ("portmap.mapped", "pcp", str(external))
    internal = TransportAddress(home.inside.address, PORT)
    assert home.gets_in(external, internal)
    process.send_signal(signal.SIGTERM)
    rest = [json.loads(line)["event"] for line in process.stdout]
    assert (process.wait(2.0), rest) == (0, ["portmap.deleted"])
    assert not home.gets_in(external, internal)


def test_the_command_says_what_each_protocol_said(natlab: Lab) -> None:
    inside = natlab.machine(behind=natlab.router())
    code, lines, err = run(inside, "UDP", str(PORT))
    assert (code, [line["event"] for line in lines]) == (4, ["portmap.failed"])
    assert set(lines[0]["reasons"]) == {"pcp", "nat_pmp", "upnp"}  # type: ignore[call-overload]
    assert (
        err.startswith("no mapping for udp port 6000 at 192.168.1.1 (eth0): pcp: its port 5351 is closed; ")
        and err.count("\n") == 1
    )


def test_the_command_probes_and_lists(home: Home) -> None:
    code, (report,), _ = run(home.inside, "--probe")
    assert code == 0 and report["event"] == "portmap.report"
    assert {name: report[name]["status"] for name in ("pcp", "nat_pmp", "upnp")} == {  # type: ignore[index]
        "pcp": "ok",
        "nat_pmp": "ok",
        "upnp": "ok",
    }
    assert run(home.inside, "--list") == (0, [], "The router has no mappings.\n")
    home.inside.run(["upnpc", "-m", "eth0", "-a", home.inside.address, "6005", "16005", "udp"])
    code, (entry,), _ = run(home.inside, "--list")
    assert (code, entry["external"], entry["internal"]) == (0, 16005, f"{home.inside.address}:6005")


def test_one_protocol_alone_may_be_asked_for(home: Home) -> None:
    process = home.inside.popen(
        command("TCP", str(PORT), "--protocol", "nat-pmp", "--external", "16000"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    mapped = json.loads(process.stdout.readline())
    assert (mapped["protocol"], mapped["external"]) == ("nat-pmp", f"{home.router.address}:16000")
    process.send_signal(signal.SIGINT)
    assert [json.loads(line)["event"] for line in process.stdout] == ["portmap.deleted"]
    assert process.wait(2.0) == 130


def test_a_port_that_the_router_is_slow_to_refuse_is_not_left_open(home: Home) -> None:
    """miniupnpd gives nobody a port below 1024 here, and looks for another one for longer than we wait."""
    code, _, err = run(home.inside, "UDP", str(PORT), "--external", "80", "--protocol", "pcp")
    if code == 4:
        assert "no answer within" in err
    else:
        pytest.fail("it has become fast: ask for something that takes longer")
    home.lab.wait_until(lambda: "dport 1024" not in rules(home), 3.0, "the port that was refused stays open")


def rules(home: Home) -> str:
    return home.router.run(["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"])


def test_a_port_other_than_the_one_that_was_asked_for_is_told(home: Home) -> None:
    other = home.lab.machine("other", behind=home.router)
    other.run(["upnpc", "-m", "eth0", "-a", other.address, "6005", "16005", "udp"])
    process = home.inside.popen(
        command("UDP", str(PORT), "--external", "16005"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stderr is not None
    port = json.loads(process.stdout.readline())["external"].rpartition(":")[2]
    assert process.stderr.readline() == f"The router gave port {port} outside, and not 16005.\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(2.0) == 0


def test_an_ipv6_router_that_is_named_opens_a_pinhole(home: Home) -> None:
    (host6,) = home.inside.hosts_of(6)
    process = home.inside.popen(
        command("UDP", str(PORT), "--gateway", str(home.router.inside_host6)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    internal = TransportAddress(host6, PORT)
    assert json.loads(process.stdout.readline())["external"] == str(internal)
    assert home.gets_in(internal, internal)
    process.send_signal(signal.SIGTERM)
    assert process.wait(2.0) == 0
    assert not home.gets_in(internal, internal)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "UDP or TCP and a port are needed, as in: iceagent map UDP 6000"),
        ("UDP 6000 --probe", "a port does not go with --probe"),
        ("--list --lifetime 300", "--lifetime does not go with --list"),
        ("--list --protocol pcp", "--list is by UPnP: pcp tells nobody what is mapped"),
        ("--list --probe", "--probe and --list do not go together"),
        ("UDP 6000 --gateway 224.0.0.1", "--gateway 224.0.0.1: no router has this address"),
        ("UDP 70000", "70000 is not in the range 1<=x<=65535"),
    ],
)
def test_wrong_usage_is_one_line_and_asks_nobody(natlab: Lab, words: str, complaint: str) -> None:
    code, lines, err = run(natlab.machine(), *words.split())
    assert (code, lines) == (2, []) and complaint in err and err.count("\n") == 1


def probe(machine: Machine, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "iceagent", "probe", "--json", *words]
    out, _ = machine.popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT).communicate(timeout=20.0)
    report = json.loads(out)
    assert isinstance(report, dict)
    return report


def test_a_probe_tells_what_the_router_maps_and_how_many_nats_there_are(natlab: Lab) -> None:
    home = Home(natlab, "symmetric")
    server = natlab.machine("server", addresses=2)
    serve(server, "--behaviour-discovery")
    report = probe(home.inside, "--server", f"stun:{server.address}")
    assert [report["portmap"][name]["status"] for name in ("pcp", "nat_pmp", "upnp")] == ["ok"] * 3
    assert str(report["portmap"]["pcp"]["external"]).startswith(f"{home.router.address}:")
    assert (report["nat"]["mapping"], report["layers"]) == ("APDM", 1)
    assert f" {home.router.address} " in " ".join(map(str, report["candidates"]))
    alone = " ".join(probe(home.inside)["advice"])
    assert "another NAT" not in alone, "our own server on loopback does not see the router's address"
    off = probe(home.inside, "--no-portmap")
    assert off["portmap"]["pcp"]["reason"] == "port mapping is switched off"


def test_a_probe_behind_a_carriers_nat_knows_that_there_are_two(natlab: Lab) -> None:
    carrier = natlab.router("symmetric", "carrier", is_carrier=True)
    router = natlab.router(behind=carrier)
    inside = natlab.machine(behind=router)
    server = natlab.machine("server")
    serve(server)
    # A router that was told the carrier's address says yes, and it helps nobody.
    miniupnpd(router, extra={"ext_ip": carrier.address})
    report = probe(inside, "--server", f"stun:{server.address}")
    assert report["portmap"]["pcp"]["status"] == "ok"
    assert report["layers"] == 1, "its lie fits what the outside sees"
