"""What the kernel does for the reflector and the latching relay, packet by packet, and what is left of it."""

from __future__ import annotations

import asyncio
import errno
import os
import select
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
from relay.latch.channel import Flow
from relay.latch.kernel import KernelForwarder
from relay.reflect.kernel import KernelReflector
from relay.reflect.rules import ReflectLimits
from tests.lab.packets import packet, raw, rules_of, send_frame, sysctls

PORT = 4000
LEFT, RIGHT = 5000, 5001
LIMITS = ReflectLimits(per_source=1000, burst=1000, total=100_000, sources=1000)
SO_NO_CHECK = 11
IP_RECVTTL = 12
QUIET_S = 0.15


def udp(machine: Machine, version: int = 4, port: int = 0) -> socket.socket:
    """A socket there, bound to the machine's address."""
    sock = machine.namespace.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
    sock.settimeout(2)
    sock.bind((machine.hosts_of(version)[0], port))
    return sock


def is_quiet(sock: socket.socket) -> bool:
    """Nothing comes."""
    return not select.select([sock], [], [], QUIET_S)[0]


@contextmanager
def reflecting(machine: Machine, limits: ReflectLimits = LIMITS, *, port: int = PORT) -> Iterator[Callable[[], Any]]:
    """The kernel of the machine reflects; the block's value tells the counters."""
    with asyncio.Runner() as runner:
        reflector = KernelReflector(runner.run(_host(machine)), port, limits)

        async def start() -> None:
            await reflector.open()
            reflector.follow(await machine.host.interfaces(), machine.hosts)

        runner.run(start())
        with closing(reflector):
            yield reflector.counters


@contextmanager
def forwarding(machine: Machine, *flows: Flow) -> Iterator[KernelForwarder]:
    """The kernel of the machine forwards."""
    with asyncio.Runner() as runner:
        forwarder = KernelForwarder(runner.run(_host(machine)))
        runner.run(forwarder.open())
        with closing(forwarder):
            forwarder.change((), flows)
            yield forwarder


@contextmanager
def calling(alice: Machine, relay: Machine, bob: Machine) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets, between which the relay's kernel forwards."""
    with (
        udp(alice) as one,
        udp(bob) as other,
        forwarding(relay, *both_ways(address_of(one), relay.address, address_of(other))),
    ):
        yield one, other


async def _host(machine: Machine) -> Any:
    return machine.host


def both_ways(one: TransportAddress, relay: str, other: TransportAddress) -> tuple[Flow, Flow]:
    """The two flows of a channel."""
    left, right = TransportAddress(relay, LEFT), TransportAddress(relay, RIGHT)
    return Flow(one, left, right, other), Flow(other, right, left, one)


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


# --- the relay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_forwards_both_ways_and_counts(lab: Lab, server: Machine, version: int) -> None:
    alice, bob = lab.machine(), lab.machine()
    host = server.hosts_of(version)[0]
    with udp(alice, version) as one, udp(bob, version) as other:
        flows = both_ways(address_of(one), host, address_of(other))
        with forwarding(server, *flows) as forwarder:
            sizes = (0, 1, 100, 1200)
            for size in sizes:
                data = os.urandom(size)
                one.sendto(data, (host, LEFT))
                got, source = other.recvfrom(2000)
                assert (got, source[:2]) == (data, (host, RIGHT))
                other.sendto(data, (host, RIGHT))
                got, source = one.recvfrom(2000)
                assert (got, source[:2]) == (data, (host, LEFT))
            assert forwarder.counts() == {flow: (len(sizes), sum(sizes)) for flow in flows}
            assert forwarder.counts(flows[:1]) == {flows[0]: (len(sizes), sum(sizes))}


def address_of(sock: socket.socket) -> TransportAddress:
    return TransportAddress(*sock.getsockname()[:2])


def test_only_the_exact_five_tuple_is_forwarded(lab: Lab, server: Machine) -> None:
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    with calling(alice, server, bob) as (one, other), udp(mallory) as stranger, udp(alice) as second:
        for sock, port in ((stranger, LEFT), (stranger, RIGHT), (second, LEFT), (one, RIGHT)):
            sock.sendto(b"x", (server.address, port))
        second.sendto(b"x", (server.hosts_of(4)[1], LEFT))
        assert is_quiet(other)
        assert is_quiet(one)


def test_binding_requests_fragments_and_what_is_too_long_go_up(lab: Lab, server: Machine) -> None:
    alice, bob = lab.machine(), lab.machine()
    request = bytes.fromhex("000100002112a442") + bytes(12)
    with calling(alice, server, bob) as (one, other), udp(server, port=LEFT) as up:
        one.sendto(request, (server.address, LEFT))
        assert up.recv(100) == request
        one.sendto(bytes(4000), (server.address, LEFT))
        assert up.recv(9000) == bytes(4000)
        # A response is data, and so is what only begins like a request.
        for data in (bytes.fromhex("010100002112a442") + bytes(12), bytes.fromhex("00010000") + bytes(16), b"\0\1"):
            one.sendto(data, (server.address, LEFT))
            assert other.recv(100) == data


def test_a_checksum_that_is_not_there_is_not_made_up_and_others_are_right(lab: Lab, server: Machine) -> None:
    """A receiver drops what has a wrong one."""
    alice, bob = lab.machine(), lab.machine()
    with calling(alice, server, bob) as (one, other):
        one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        one.sendto(b"without", (server.address, LEFT))
        assert other.recv(100) == b"without"
        one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0)
        one.sendto(b"with", (server.address, LEFT))
        assert other.recv(100) == b"with"


def test_the_ttl_is_decremented_and_at_one_a_packet_ends(lab: Lab, server: Machine) -> None:
    alice, bob = lab.machine(), lab.machine()
    with calling(alice, server, bob) as (one, other):
        other.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        arrived = []
        for ttl in (64, 5):
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            one.sendto(b"x", (server.address, LEFT))
            arrived.append(struct.unpack("=i", other.recvmsg(100, 100)[1][0][2])[0])
        # The Internet is a router that is crossed twice.
        assert arrived == [61, 2]
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        one.sendto(b"x", (server.address, LEFT))
        assert is_quiet(other)


def test_a_flow_that_is_taken_out_goes_up_again(lab: Lab, server: Machine) -> None:
    alice, bob = lab.machine(), lab.machine()
    with udp(alice) as one, udp(bob) as other, udp(server, port=LEFT) as up:
        flows = both_ways(address_of(one), server.address, address_of(other))
        with forwarding(server, *flows) as forwarder:
            one.sendto(b"through", (server.address, LEFT))
            assert other.recv(100) == b"through"
            forwarder.change(flows, ())
            one.sendto(b"up", (server.address, LEFT))
            assert up.recv(100) == b"up"
            assert forwarder.flows == 0
            assert forwarder.counts() == {}


def test_what_the_kernel_cannot_forward_is_left_to_the_sockets(lab: Lab, server: Machine) -> None:
    left, right = TransportAddress(server.address, LEFT), TransportAddress(server.address, RIGHT)
    here, nowhere = TransportAddress(server.address, 9), TransportAddress("10.99.0.1", 9)
    other_version = TransportAddress("2001:db8::1", 9)
    peer = TransportAddress(lab.machine().address, 7000)
    server.run(["ip", "route", "add", "unreachable", "10.99.0.0/16"])
    flows = [Flow(peer, left, right, each) for each in (here, nowhere, other_version)]
    with forwarding(server, *flows) as forwarder:
        assert forwarder.flows == 0
        # One that the kernel refuses, since its five-tuple is taken, takes no other along.
        good = [Flow(peer._replace(port=number), left, right, peer) for number in (1, 2, 3)]
        forwarder.change((), [good[0], *good])
        twice = good[0]._replace(leaves_from=left)
        forwarder.change((), [twice, Flow(peer._replace(port=4), left, right, peer)])
        assert forwarder.flows == 4
        forwarder.change([twice, *good], ())
        assert forwarder.flows == 1


def test_a_thousand_channels_are_put_in_counted_and_taken_out(lab: Lab, server: Machine) -> None:
    peer = TransportAddress(lab.machine().address, 7000)
    flows = [
        Flow(TransportAddress("20.0.9.9", port), TransportAddress(server.address, port), right, peer)
        for port in range(10_000, 12_000)
        for right in [TransportAddress(server.address, port + 20_000)]
    ]
    with forwarding(server, *flows) as forwarder:
        assert forwarder.counts() == dict.fromkeys(flows, (0, 0))
        assert forwarder.counts(flows[:600]) == dict.fromkeys(flows[:600], (0, 0))
        forwarder.change(flows[:1000], ())
        assert forwarder.counts() == dict.fromkeys(flows[1000:], (0, 0))


def test_a_flow_follows_the_routes(natlab: Lab) -> None:
    """The default route of a machine with two uplinks changes; what was counted stays."""
    first, second = natlab.router("open"), natlab.router("open")
    server, bob = natlab.machine(behind=first), natlab.machine("bob")
    alice = natlab.machine("alice")
    server.add_uplink(second)
    with udp(alice) as one, udp(bob) as other, asyncio.Runner() as runner:
        flows = both_ways(address_of(one), server.address, address_of(other))

        async def play() -> None:
            forwarder = KernelForwarder(server.host)
            await forwarder.open()
            with closing(forwarder):
                forwarder.change((), flows)
                one.sendto(b"first", (server.address, LEFT))
                assert other.recv(100) == b"first"
                server.run(["ip", "rule", "flush"])
                server.run(["ip", "rule", "add", "from", "all", "lookup", "main", "pref", "32766"])
                server.run(
                    ["ip", "route", "replace", "default", "via", second.lan_address, "dev", "eth1", "metric", "1"]
                )
                await asyncio.sleep(0.3)  # The kernel tells; what comes in a burst is awaited.
                one.sendto(b"second", (server.address, LEFT))
                assert other.recv(100) == b"second"
                assert forwarder.counts()[flows[0]] == (2, len(b"firstsecond"))
                wire = server.run(["ip", "-s", "link", "show", "eth1"]).split()
                assert int(wire[wire.index("TX:") + 8]) > 0

        runner.run(play())


def test_what_has_a_vlan_tag_is_left_to_the_sockets(lab: Lab) -> None:
    """It would leave with the tag, into another network's VLAN of that number, or nowhere."""
    server, bob = lab.machine(), lab.machine()
    alice = cabled(lab, server)
    one, left = TransportAddress("10.9.0.2", 7000), TransportAddress("10.9.0.1", LEFT)
    with udp(bob) as other, alice.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth1", 0))
        flow = Flow(one, left, TransportAddress(server.address, RIGHT), address_of(other))
        macs = b"".join(bytes.fromhex(each.namespace.mac("eth1").replace(":", "")) for each in (server, alice))
        with forwarding(server, flow) as forwarder:
            for tag in (b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05", b""):
                sock.send(macs + tag + b"\x08\x00" + packet(one, left, b"with" + tag))
            assert other.recv(100) == b"with"
            assert forwarder.counts() == {flow: (1, 4)}


def test_link_local_addresses_are_left_to_the_sockets(lab: Lab, server: Machine) -> None:
    """On each link there may be another host of that address, and the routes know but one of them."""
    peer, far = TransportAddress("fe80::99", 7000), TransportAddress("2001:db8::1", 7000)
    ours, left = TransportAddress("fe80::1", RIGHT), TransportAddress(server.hosts_of(6)[0], LEFT)
    with forwarding(server, Flow(far, left, ours, peer), Flow(peer, ours, left, far)) as forwarder:
        assert forwarder.flows == 0
        forwarder.change((), [Flow(far, left, left._replace(port=RIGHT), far)])
        assert forwarder.flows == 1


def test_one_interface_is_the_only_one(lab: Lab) -> None:
    """What is to go through a tunnel does not leave beside it, as the default route would have it; and nothing comes
    in beside it."""
    server, bob = lab.machine(), lab.machine()
    alice = cabled(lab, server)
    with alice.namespace.socket(socket.AF_INET) as one, udp(bob) as other, asyncio.Runner() as runner:
        one.settimeout(2)
        one.bind(("10.9.0.2", 7000))
        left, right = TransportAddress("10.9.0.1", LEFT), TransportAddress(server.address, RIGHT)
        flows = (
            Flow(address_of(one), left, right, address_of(other)),
            Flow(address_of(other), right, left, address_of(one)),
        )

        def send() -> None:
            one.sendto(b"to bob", left)
            other.sendto(b"to alice", right)

        async def play() -> None:
            forwarder = KernelForwarder(server.host)
            await forwarder.open()
            with closing(forwarder):
                forwarder.change((), flows)
                send()
                assert (other.recv(100), one.recv(100)) == (b"to bob", b"to alice")
            forwarder = KernelForwarder(server.host, interface="eth1")
            await forwarder.open()
            with closing(forwarder):
                forwarder.change((), flows)
                send()
                assert is_quiet(other)
                assert is_quiet(one)
                assert forwarder.counts() == {flows[0]: (1, 6), flows[1]: (0, 0)}

        runner.run(play())


def test_what_cannot_be_taken_out_ends_all_of_it(lab: Lab, server: Machine) -> None:
    """It would go on to somebody who is not latched any more."""
    alice, bob = lab.machine(), lab.machine()
    with udp(alice) as one, udp(bob) as other, udp(server, port=LEFT) as up, asyncio.Runner() as runner:
        flows = both_ways(address_of(one), server.address, address_of(other))

        async def play() -> None:
            host = _Forgetful(server.host)
            forwarder = KernelForwarder(host)
            await forwarder.open()
            with closing(forwarder):
                forwarder.change((), flows)
                host.is_full = True
                forwarder.change(flows, ())
                one.sendto(b"up", (server.address, LEFT))
                assert up.recv(100) == b"up"
                assert (forwarder.flows, forwarder.counts()) == (0, {})
                forwarder.change((), flows)
                assert forwarder.flows == 0

        runner.run(play())


class _Forgetful:
    """A host whose kernel has no memory left for what it is told over netlink."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def netlink(self, protocol: int) -> Any:
        return _FullSocket(self, self._host.netlink(protocol))


class _FullSocket:
    def __init__(self, host: _Forgetful, sock: socket.socket) -> None:
        self._host = host
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def send(self, data: bytes) -> int:
        if self._host.is_full:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return self._socket.send(data)


def cabled(lab: Lab, machine: Machine) -> Machine:
    """Another machine at the other end of a cable of its own, eth1: 10.9.0.2, to this one's 10.9.0.1."""
    other = lab.machine()
    machine.namespace.veth("eth1", other.namespace, "eth1")
    machine.namespace.up("eth1", "10.9.0.1/24")
    other.namespace.up("eth1", "10.9.0.2/24")
    return other


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
