"""``iceagent probe`` behind NATs of the Linux kernel, and without any network, in network namespaces.

A client, a router with nftables, and a server with two addresses that runs ``iceagent serve --behaviour-discovery``.
The client's processes see nothing but their namespace. Needs root, ip(8) and nft(8).
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab.namespace import Namespace
from tests.interop.netns import namespace

ROOT = Path(__file__).parents[2]
# The longest a process may take for what it should do within a few seconds.
PATIENCE_S = 30
HOME, ROUTER, SERVER, SERVER_2 = "192.168.1.2", "20.0.1.9", "20.0.1.1", "20.0.1.2"
URI = f"stun:{SERVER}"

FILTER = """
table ip filter {
 chain input {
  type filter hook input priority 0
  iifname wan drop
 }
 chain forward {
  type filter hook forward priority 0; policy drop
  ct state established,related accept
  iifname lan RULE
 }
}
"""
# Ports outside of the range below are always replaced; that of a socket of ours is above it (ip_local_port_range).
FOREIGN_PORTS = "20000-29999"
SOURCE_NAT = """
table ip nat {
 chain postrouting {
  type nat hook postrouting priority srcnat
  oifname wan RULE
 }
}
"""
# Every outside port leads to the inside host that has it, whoever sends.
FULL_CONE = """
table ip cone {
 map eim {
  type inet_service : ipv4_addr . inet_service
  flags dynamic,timeout
  timeout 30s
 }
 chain prerouting {
  type nat hook prerouting priority dstnat
  iifname wan dnat to udp dport map @eim
 }
 chain remember {
  type filter hook postrouting priority srcnat + 5
  oifname wan ct direction original update @eim { udp sport : ct original ip saddr . ct original proto-src }
 }
}
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str
    took_s: float

    @property
    def report(self) -> dict[str, Any]:
        """The one line of JSON."""
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        assert found["event"] == "probe.report"
        return found


@contextlib.contextmanager
def started(space: Namespace, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``iceagent ARGUMENTS`` in a namespace; killed at the end of the block if it is still there."""
    command = [sys.executable, "-m", "iceagent", *arguments]
    with space.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def probe(space: Namespace, *arguments: str) -> Ended:
    """``iceagent probe ARGUMENTS`` in a namespace, to its end."""
    began = time.monotonic()
    with started(space, "probe", *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return Ended(process.returncode, out, err, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class World:
    """Client, router and server."""

    home: Namespace
    router: Namespace

    def install(self, *tables: str) -> None:
        """Have these tables in the router, and no others."""
        self.router.nft("flush ruleset\n" + "".join(tables))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with namespace() as home, namespace() as router, namespace() as internet:
        _connect(home, router, internet)
        with _server(internet):
            yield World(home, router)


def _connect(home: Namespace, router: Namespace, internet: Namespace) -> None:
    home.ip(
        f"link add eth0 type veth peer name lan netns {router.path}",
        f"addr add {HOME}/24 dev eth0",
        "link set eth0 up",
    )
    router.ip(
        f"link add wan type veth peer name eth0 netns {internet.path}",
        "addr add 192.168.1.1/24 dev lan",
        f"addr add {ROUTER}/24 dev wan",
        "link set lan up",
        "link set wan up",
    )
    router.sysctl("ipv4/ip_forward", 1)
    internet.ip(
        f"addr add {SERVER}/24 dev eth0",
        f"addr add {SERVER_2}/24 dev eth0",
        "link set eth0 up",
        # Where the router does not translate, answers find their way.
        f"route add 192.168.1.0/24 via {ROUTER}",
    )
    home.ip("route add 0.0.0.0/0 via 192.168.1.1")


@contextlib.contextmanager
def _server(internet: Namespace) -> Iterator[None]:
    arguments = ("serve", "--listen", SERVER, "--listen", SERVER_2, "--behaviour-discovery", "--json")
    with started(internet, *arguments) as process:
        assert process.stdout is not None
        assert '"server.ready"' in process.stdout.readline()
        yield


@pytest.mark.parametrize(
    ("tables", "mapping", "filtering", "allocation", "code"),
    [
        ((SOURCE_NAT.replace("RULE", "masquerade"),), "EIM", "APDF", "preserved", 0),
        ((SOURCE_NAT.replace("RULE", "masquerade fully-random"),), "APDM", "APDF", "random", 3),
        (
            (SOURCE_NAT.replace("RULE", f"ip protocol udp snat to {ROUTER}:{FOREIGN_PORTS}"),),
            "EIM",
            "APDF",
            "random",
            0,
        ),
    ],
    ids=["masquerade", "fully-random", "port-range"],
)
def test_kernel_nats_are_told(
    world: World, tables: tuple[str, ...], mapping: str, filtering: str, allocation: str, code: int
) -> None:
    world.install(FILTER.replace("RULE", "accept"), *tables)
    ended = probe(world.home, "--json", "--server", URI)
    report = ended.report
    nat = report["nat"]
    assert (nat["mapping"], nat["filtering"], nat["allocation"]) == (mapping, filtering, allocation), report
    assert nat["port_preservation"] is (allocation == "preserved")
    assert (report["layers"], report["udp"]["ipv4"], ended.code) == (1, True, code)
    (seen,) = report["reflexive"]
    assert (seen["address"].partition(":")[0], seen["server"], seen["seen"]) == (ROUTER, URI, 1)
    candidates = [line.split() for line in report["candidates"]]
    assert [(words[7], words[4]) for words in candidates if ":" not in words[4]] == [("host", HOME), ("srflx", ROUTER)]


def test_a_full_cone_is_told(world: World) -> None:
    world.install(SOURCE_NAT.replace("RULE", f"ip protocol udp snat to {ROUTER}"), FULL_CONE)
    ended = probe(world.home, "--json", "--server", URI)
    assert (ended.report["nat"]["mapping"], ended.report["nat"]["filtering"], ended.code) == ("EIM", "EIF", 0)


@pytest.mark.parametrize(
    ("tables", "filtering"), [((), "EIF"), ((FILTER.replace("RULE", "accept"),), "APDF")], ids=["router", "firewall"]
)
def test_without_translation_there_is_no_nat(world: World, tables: tuple[str, ...], filtering: str) -> None:
    world.install(*tables)
    ended = probe(world.home, "--json", "--server", URI)
    report = ended.report
    found = (report["nat"]["mapping"], report["nat"]["filtering"], report["layers"])
    assert found == ("none", filtering, 0), (report, ended.err)
    assert report["reflexive"][0]["address"].startswith(f"{HOME}:")
    assert ended.code == 0


def test_where_udp_is_blocked_nothing_works(world: World) -> None:
    world.install(FILTER.replace("RULE", "meta l4proto tcp accept"))
    ended = probe(world.home, "--json", "--server", URI, "--timeout", "1")
    assert (ended.report["udp"]["ipv4"], ended.report["reflexive"], ended.code) == (False, [], 4)
    assert ended.report["advice"][0].startswith("No server answered over UDP")


def test_two_servers_agree_on_a_symmetric_nat(world: World) -> None:
    """The server's two addresses, named as if they were two servers."""
    world.install(FILTER.replace("RULE", "accept"), SOURCE_NAT.replace("RULE", "masquerade fully-random"))
    ended = probe(world.home, "--json", "--server", URI, "--server", f"stun:{SERVER_2}:3479")
    assert (ended.report["nat"]["mapping"], ended.code) == ("APDM", 3)
    assert {each["seen"] for each in ended.report["reflexive"]} == {1}


# --- without a network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loopback", "code"), [("up", 0), ("down", 4)])
def test_without_any_network_it_ends_within_two_seconds(loopback: str, code: int) -> None:
    """What can be tried with our own server works; without loopback there is nothing to try."""
    with namespace() as lonely:
        lonely.ip(f"link set lo {loopback}")
        ended = probe(lonely, "--json")
    report = ended.report
    assert (ended.code, ended.took_s < 2) == (code, True), ended
    assert any("Nothing could be tried" in each for each in report["advice"]) is (loopback == "down")
    assert report["nat"]["mapping"] == "unknown"
    assert report["nat"]["evidence"][0] == "no server outside this host"
    addresses = {each["address"].rpartition(":")[0] for each in report["reflexive"]}
    assert addresses == ({"127.0.0.1", "[::1]"} if loopback == "up" else set())
    assert ended.err.startswith("No server given: asking a STUN and TURN server of our own on loopback")
    if loopback == "down":
        (nobody,) = report["relays"]
        assert (nobody["status"], nobody["reason"]) == ("not-tested", "our own server does not run")


@pytest.mark.parametrize(
    ("options", "hosts"),
    [((), ["127.0.0.1", "[::1]"]), (("--no-ipv6",), ["127.0.0.1"]), (("--no-ipv4",), ["[::1]"])],
    ids=["both", "ipv4", "ipv6"],
)
def test_without_any_network_its_own_server_relays(options: tuple[str, ...], hosts: list[str]) -> None:
    """Over every transport and IP version, and data goes through."""
    with namespace() as lonely:
        ended = probe(lonely, "--json", *options)
    assert (ended.code, ended.took_s < 2) == (0, True), ended
    rows = ended.report["relays"]
    ways = [(row["server"].rpartition(":")[0], row["transport"], row["status"], row["mobility"]) for row in rows]
    assert ways == [(f"turn:{host}", transport, "ok", True) for host in hosts for transport in ("udp", "tcp")]
    for row in rows:
        assert row["relayed"].rpartition(":")[0] == hosts[0]
        assert 0 < row["rtt_ms"] < 1000 and 0 < row["data_rtt_ms"] < 1000


# Nothing gets from one relayed address to another: both ports are of the range of RFC 8656, 7.2; no client's is.
LOW_PORTS = "20000-40000"
HINDRANCE = """
table inet hindrance {
 chain input {
  type filter hook input priority 0
  udp sport 49152-65535 udp dport 49152-65535 RULE
 }
}
"""


def test_a_firewall_that_hinders_loopback_is_told() -> None:
    with namespace() as lonely:
        lonely.nft(HINDRANCE.replace("RULE", "drop"))
        ended = probe(lonely, "--json", "--no-ipv6", "--port-range", LOW_PORTS)
    assert (ended.code, ended.took_s < 4) == (4, True), ended
    for row in ended.report["relays"]:
        assert (row["status"], row["data_rtt_ms"]) == ("no-answer", None)
        assert row["reason"] == f"a datagram through {row['relayed']} does not come back"
    assert any("This host hinders our own server on loopback" in each for each in ended.report["advice"])


def test_ctrl_c_ends_the_own_server_too() -> None:
    """While it waits for a datagram that the firewall drops."""
    with namespace() as lonely:
        lonely.nft(HINDRANCE.replace("RULE", "counter drop"))
        with started(lonely, "probe", "--json", "--no-ipv6", "--port-range", LOW_PORTS) as process:
            deadline = time.monotonic() + PATIENCE_S
            while "packets 0 " in lonely.run(["nft", "list", "ruleset"]):
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            interrupted = time.monotonic()
            out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err.count("\n")) == (130, "", 1)
    assert time.monotonic() - interrupted < 1.0


def test_a_server_that_cannot_be_reached_without_a_network_is_no_path() -> None:
    with namespace() as lonely:
        ended = probe(lonely, "--json", "--server", URI)
    assert (ended.code, ended.took_s < 2) == (4, True), ended
    assert ended.report["udp"]["ipv4"]["reason"] == "this host has no IPv4 route to it"


def test_repeated_probes_print_what_changed_until_interrupted() -> None:
    with namespace() as lonely, started(lonely, "probe", "--every", "1") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Took"):
                break
        changed = []
        for command in ("add", "del"):
            lonely.ip(f"addr {command} 10.9.8.7/32 dev lo")
            changed.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        process.communicate(timeout=PATIENCE_S)
        assert time.monotonic() - interrupted < 1.5
    before, after = "loopback, up, mtu 65536, 127.0.0.1 ::1", "loopback, up, mtu 65536, 127.0.0.1 10.9.8.7 ::1"
    assert [line.split("  ", 1)[1] for line in changed] == [
        f"interface lo: {before} → {after}\n",
        f"interface lo: {after} → {before}\n",
    ]
    assert process.returncode == 130
