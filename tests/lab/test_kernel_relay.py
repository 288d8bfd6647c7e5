"""What the kernel does for the latching relay, packet by packet."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import struct
from contextlib import closing
from typing import Any

import pytest

from iceagent.lab import Lab, Machine
from iceagent.net.address import TransportAddress
from relay.latch.channel import Flow
from relay.latch.kernel import KernelForwarder
from relay.latch.relay import LatchRelay
from tests.lab.kernels import (
    IP_RECVTTL,
    LEFT,
    RIGHT,
    SO_NO_CHECK,
    address_of,
    both_ways,
    calling,
    forwarding,
    is_quiet,
    udp,
)
from tests.lab.packets import packet, rules_of


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
            async with LatchRelay(server.host, backend="nftables", interface="eth1"):
                assert re.findall(r'device "(.*)"', rules_of(server)) == ["eth1"]

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
