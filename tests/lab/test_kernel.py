"""What the kernel does for the reflector, packet by packet, and what is left of it, and of the relay's part."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab import Lab, Machine, Router
from iceagent.net.address import TransportAddress
from iceagent.net.host import Interface, InterfaceKind
from iceagent.net.netlink import open_netlink
from iceagent.net.next_hop import Routes
from iceagent.testing.internet import MemoryInternet
from relay.backend import KernelUnavailable
from relay.latch.kernel import KernelForwarder
from relay.reflect.kernel import KernelReflector
from relay.reflect.rules import ReflectLimits
from tests.lab.kernels import IP_RECVTTL, SO_NO_CHECK, host_of, is_quiet, udp
from tests.lab.packets import packet, raw, rules_of, send_frame, sysctls

PORT = 4000
LIMITS = ReflectLimits(per_source=1000, burst=1000, total=100_000, sources=1000)


@contextmanager
def reflecting(machine: Machine, limits: ReflectLimits = LIMITS, *, port: int = PORT) -> Iterator[Callable[[], Any]]:
    """The kernel of the machine reflects; the block's value tells the counters."""
    with asyncio.Runner() as runner:
        reflector = KernelReflector(runner.run(host_of(machine)), port, limits)

        async def start() -> None:
            await reflector.open()
            reflector.follow(await machine.host.interfaces(), machine.hosts)

        runner.run(start())
        with closing(reflector):
            yield reflector.counters


@pytest.fixture(scope="module")
def office(lab: Lab) -> Router:
    """Routes public addresses; its machines are neighbours."""
    return lab.router("open")


# --- the reflector ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_answers_with_what_it_was_sent(lab: Lab, server: Machine, version: int) -> None:
    client = lab.machine()
    with reflecting(server) as counters, udp(client, version) as sock:
        destination = (server.hosts_of(version)[0], PORT)
        sizes = (0, 1, 100, 101, 1200, 1500 - (48 if version == 6 else 28))
        for size in sizes:
            data = os.urandom(size)
            sock.sendto(data, destination)
            assert sock.recvfrom(2000)[:2] == (data, sock_address(destination, version))
        found = counters()
        assert (found["answered"], found["answered_bytes"]) == (len(sizes), sum(sizes))


def sock_address(destination: tuple[str, int], version: int) -> tuple[Any, ...]:
    return destination if version == 4 else (*destination, 0, 0)


def test_each_address_answers_for_itself_and_others_do_not(lab: Lab, server: Machine) -> None:
    client = lab.machine()
    with reflecting(server), udp(client) as sock:
        for host in server.hosts_of(4):
            sock.sendto(b"who", (host, PORT))
            assert sock.recvfrom(100) == (b"who", (host, PORT))
        sock.sendto(b"another port", (server.address, PORT + 1))
        with pytest.raises(ConnectionRefusedError):
            sock.connect((server.address, PORT + 1))
            sock.send(b"another port")
            sock.recv(100)


def test_a_datagram_without_a_checksum_is_answered_without_one(lab: Lab, server: Machine) -> None:
    client = lab.machine()
    with reflecting(server), udp(client) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sock.sendto(b"no sum", (server.address, PORT))
        assert sock.recv(100) == b"no sum"


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("20.0.9.9", PORT),  # its own port
        ("20.0.9.9", 1023),
        ("20.0.9.9", 0),
        ("224.0.0.1", 5000),
        ("255.255.255.255", 5000),
        ("240.0.0.1", 5000),
        ("0.0.0.0", 5000),
        ("127.0.0.1", 5000),
        ("own", 5000),
    ],
)
def test_nothing_unsafe_is_answered(lab: Lab, office: Router, host: str, port: int) -> None:
    """Of a neighbour's: routers do not pass on most of these."""
    server, client = lab.machine(behind=office), lab.machine(behind=office)
    source = TransportAddress(server.address if host == "own" else host, port)
    with reflecting(server) as counters:
        send_frame(client, server, packet(source, TransportAddress(server.address, PORT), b"x"))
        lab.wait_until(lambda: counters()["refused"] == 1, 2, "it was not refused")
        assert counters()["answered"] == 0


def test_a_source_has_its_limit_and_all_together_have_theirs(lab: Lab, server: Machine) -> None:
    one, other = lab.machine(), lab.machine()
    limits = ReflectLimits(per_source=1, burst=5, total=7, sources=1000)
    with reflecting(server, limits) as counters, udp(one) as first, udp(other) as second:
        for sock in (first, second):
            for _ in range(20):
                sock.sendto(b"x", (server.address, PORT))
        lab.wait_until(lambda: sum(counters()[name] for name in ("answered", "limited")) == 40, 2, "some were lost")
        assert counters()["answered"] in (7, 8)  # A second may have begun.


def test_more_sources_than_are_remembered_get_nothing_until_some_are_forgotten(lab: Lab, server: Machine) -> None:
    """Whoever forges sources does not lock others out for longer than a burst takes to be whole again: a second."""
    client = lab.machine()
    limits = ReflectLimits(per_source=10, burst=10, total=1000, sources=16)
    with reflecting(server, limits) as counters, raw(client) as sender, udp(client) as sock:
        destination = TransportAddress(server.address, PORT)
        for number in range(1, 41):
            source = TransportAddress(f"20.9.9.{number}", 5000)
            sender.sendto(packet(source, destination, b"x"), (server.address, 0))
        lab.wait_until(lambda: counters()["limited"] >= 24, 2, "the set has no bound")
        assert counters()["answered"] <= 16

        def is_answered() -> bool:
            sock.sendto(b"y", destination)
            return not is_quiet(sock)

        assert not is_answered()
        lab.wait_until(is_answered, 4, "sources are not forgotten")


def test_a_packet_with_ip_options_goes_up_and_so_does_a_fragment(lab: Lab, server: Machine) -> None:
    client = lab.machine()
    with reflecting(server) as counters, raw(client) as sender, udp(server, port=PORT) as up, udp(client) as sock:
        source = TransportAddress(client.address, 5000)
        with_options = packet(source, TransportAddress(server.address, PORT), b"options", options=b"\x01\x01\x01\x00")
        sender.sendto(with_options, (server.address, 0))
        assert up.recv(100) == b"options"
        sock.sendto(bytes(5000), (server.address, PORT))
        assert up.recv(9000) == bytes(5000)
        assert counters()["answered"] == 0


def test_two_reflectors_and_one_spoofed_packet_stop_at_two(lab: Lab, server: Machine) -> None:
    """One of them answers the source that was forged; its answer comes from the port that is never answered."""
    other, liar = lab.machine(), lab.machine()
    with reflecting(server) as first, reflecting(other) as second, raw(liar) as sender:
        source = TransportAddress(other.address, PORT)
        sender.sendto(packet(source, TransportAddress(server.address, PORT), b"x"), (server.address, 0))
        lab.wait_until(lambda: first()["refused"] == 1, 2, "nothing came")
        assert sum(count for counters in (first, second) for count in counters().values()) <= 2


def test_what_circles_between_two_reflectors_ends_with_its_ttl(lab: Lab, office: Router) -> None:
    """They have different ports, no router is between them, and no limit is reached."""
    one, other = lab.machine(behind=office), lab.machine(behind=office)
    limits = ReflectLimits(per_source=1_000_000, burst=1_000_000, total=1_000_000, sources=16)
    with reflecting(one, limits) as first, reflecting(other, limits, port=PORT + 1) as second:
        source = TransportAddress(other.address, PORT + 1)
        send_frame(other, one, packet(source, TransportAddress(one.address, PORT), b"x", ttl=40))
        lab.wait_until(lambda: first()["refused"] + second()["refused"] == 1, 2, "it goes on")
        assert first()["answered"] + second()["answered"] == 39


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_has_one_hop_less(lab: Lab, server: Machine, version: int) -> None:
    client = lab.machine()
    option = (socket.IPPROTO_IP, IP_RECVTTL) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT)
    with reflecting(server), udp(client, version) as sock:
        sock.setsockopt(*option, 1)
        sock.sendto(b"x", (server.hosts_of(version)[0], PORT))
        # The Internet is a router, crossed both ways.
        assert struct.unpack("=i", sock.recvmsg(100, 100)[1][0][2]) == (64 - 3,)


def test_no_connection_is_tracked(lab: Lab, server: Machine) -> None:
    """As soon as a rule asks for the state of connections, all of them are tracked, but these."""
    client = lab.machine()
    server.run(["nft", "-f", "-"], "table ip t {\nchain c {\ntype filter hook input priority 0;\nct state new\n}\n}\n")
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    tracked = server.namespace.do(count.read_text)
    with reflecting(server), udp(client) as sock:
        for _ in range(10):
            sock.sendto(b"x", (server.address, PORT))
            sock.recv(100)
        assert server.namespace.do(count.read_text) == tracked
    server.run(["nft", "delete", "table", "ip", "t"])


# --- what both have --------------------------------------------------------------------------------------------------


def test_a_device_that_goes_and_comes_back_is_served_again(lab: Lab) -> None:
    machine = lab.machine()
    with asyncio.Runner() as runner:

        async def play() -> None:
            reflector = KernelReflector(machine.host, PORT, LIMITS)
            await reflector.open()
            with closing(reflector):
                for _ in range(2):
                    machine.run(["ip", "link", "add", "extra", "type", "veth", "peer", "name", "other"])
                    interfaces = await machine.host.interfaces()
                    reflector.follow(interfaces, machine.hosts)
                    assert '"extra"' in rules_of(machine)
                    machine.run(["ip", "link", "del", "extra"])
                reflector.follow(await machine.host.interfaces(), machine.hosts)
                assert '"extra"' not in rules_of(machine)
                # One that has gone by the time that it is asked for.
                gone = Interface(name="gone", index=999, kind=InterfaceKind.ETHERNET)
                reflector.follow([*await machine.host.interfaces(), gone], machine.hosts)
                assert '"eth0"' in rules_of(machine)

        runner.run(play())


def test_a_device_may_have_any_name(lab: Lab) -> None:
    """The kernel takes all bytes but a slash, a colon, spaces and NUL."""
    machine = lab.machine()
    for name in (b"x\xff", b'"{};$(a)'):
        machine.run(["ip", "link", "add", os.fsdecode(name), "type", "veth", "peer", "name", f"y{len(name)}"])
    with asyncio.Runner() as runner:

        async def play() -> None:
            interfaces = await machine.host.interfaces()
            assert {"x\ufffd", '"{};$(a)'} < {each.name for each in interfaces}
            for kernel in (KernelReflector(machine.host, PORT, LIMITS), KernelForwarder(machine.host)):
                await kernel.open()
                with closing(kernel):
                    if isinstance(kernel, KernelReflector):
                        kernel.follow(interfaces, machine.hosts)
                    assert all(f'"{name}"' in rules_of(machine) for name in ("eth0", "y2", '"{};$(a)'))

        runner.run(play())


_HOLD = """
import asyncio, sys
from iceagent.net.local import local_host
from relay.latch.kernel import KernelForwarder
from relay.reflect.kernel import KernelReflector
from relay.reflect.rules import ReflectLimits
from tests.lab.packets import packet, raw, rules_of, send_frame, sysctls
async def main():
    reflector = KernelReflector(local_host(), 4000, ReflectLimits())
    await reflector.open()
    forwarder = KernelForwarder(local_host())
    await forwarder.open()
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_process_that_is_killed(lab: Lab, number: signal.Signals) -> None:
    machine = lab.machine()
    before = (rules_of(machine), sysctls(machine))
    process = machine.popen([sys.executable, "-c", _HOLD], stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert rules_of(machine).count("flags owner") == 2
    assert sysctls(machine) == before[1]
    # Nobody else takes the rules away, or adds to them.
    machine.run(["nft", "flush", "ruleset"])
    assert rules_of(machine).count("flags owner") == 2
    process.send_signal(number)
    process.wait(5)
    lab.wait_until(lambda: rules_of(machine) == before[0], 2, "rules are left")
    assert sysctls(machine) == before[1]


def test_who_may_not_is_told_in_a_clause(lab: Lab) -> None:
    machine = lab.machine()
    script = _HOLD.replace("async def main():", "import os\nos.setgid(65534)\nos.setuid(65534)\nasync def main():")
    process = machine.popen([sys.executable, "-c", script], stderr=-1, text=True)
    assert process.stderr is not None
    assert process.stderr.read().rstrip().endswith("KernelUnavailable: it needs CAP_NET_ADMIN (root)")
    process.wait(5)


def test_a_host_in_memory_has_no_kernel(iceagent_internet: MemoryInternet) -> None:
    forwarder = KernelForwarder(iceagent_internet.host("alice", ["20.0.1.10"]))
    with asyncio.Runner() as runner, pytest.raises(KernelUnavailable, match="no kernel of its own"):
        runner.run(forwarder.open())


def test_a_next_hop_is_a_router_or_the_neighbour_itself(natlab: Lab) -> None:
    router = natlab.router("open")
    machine = natlab.machine(behind=router)
    far = natlab.machine()
    with closing(Routes(machine.namespace.do(open_netlink))) as routes:
        index = int(machine.run(["ip", "-o", "link", "show", "eth0"]).split(":")[0])
        hop = routes.next_hop(machine.address, far.address)
        assert hop == (index, socket.inet_aton(router.lan_address))
        assert routes.next_hop(machine.address, router.lan_address) == (index, socket.inet_aton(router.lan_address))
        assert routes.next_hop(machine.address, machine.address) is None
        assert routes.next_hop(machine.address, "127.0.0.1") is None
    far.run(["ip", "-6", "route", "add", "2001:db8::/32", "via", "fe80::1", "dev", "eth0"])
    with closing(Routes(far.namespace.do(open_netlink))) as routes:
        hop = routes.next_hop(far.hosts_of(6)[0], "2001:db8::1")
        assert hop is not None
        assert hop.neighbour == socket.inet_pton(socket.AF_INET6, "fe80::1")
