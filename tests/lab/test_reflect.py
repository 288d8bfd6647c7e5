"""The reflector between real machines, answered by this process and by the kernel: bindings that it holds, forged
sources, and what is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab import Lab, Machine, Router
from iceagent.net.address import TransportAddress
from relay.backend import Backend
from relay.reflect.reflector import Reflector
from relay.reflect.rules import ReflectLimits
from tests.lab.limits import limit
from tests.lab.packets import packet, raw, rules_of, send_frame, sysctls

PORT = 4000
GUIDE = Path(__file__).parents[2] / "docs" / "reflect.md"
SIZES = (0, 1, 100, 101, 1200, 1472, 9000)
LIFETIME_S, INTERVAL_S = 10, 6
HOLD_S = float(os.environ.get("ICEAGENT_REFLECT_HOLD_S", "13"))
"""How long a binding of ten seconds is held; the whole proof is 300."""

UNPRIVILEGED = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
BACKENDS: tuple[Backend, ...] = ("userspace", "nftables")
on_both_backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def office(lab: Lab) -> Router:
    """Routes public addresses; its machines are neighbours."""
    return lab.router("open")


@asynccontextmanager
async def reflecting(machine: Machine, backend: Backend, port: int = PORT, **options: Any) -> AsyncIterator[Reflector]:
    async with Reflector(machine.host, port, backend=backend, **options) as reflector:
        assert reflector.backend == backend
        yield reflector


def udp(machine: Machine, host: str, port: int = 0) -> socket.socket:
    """A socket there."""
    sock = machine.namespace.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


async def ask(sock: socket.socket, data: bytes, host: str, port: int = PORT, timeout_s: float = 2.0) -> bytes | None:
    """The answer, which has to come from where the question went; ``None``: nothing came."""
    sock.sendto(data, (host, port))
    try:
        async with asyncio.timeout(timeout_s):
            answer, source = await asyncio.get_running_loop().sock_recvfrom(sock, 70_000)
    except TimeoutError:
        return None
    assert source[:2] == (host, port)
    return answer


async def until(fact: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Wait until it is true."""
    ends_at = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


async def at_rest(*reflectors: Reflector) -> int:
    """What all of them have answered, when that has not changed for a while."""
    before = -1
    async with asyncio.timeout(20):
        while (now := sum(each.counters["answered"] for each in reflectors)) != before:
            before = now
            await asyncio.sleep(0.5)
    return now


# --- what is answered ------------------------------------------------------------------------------------------------


@on_both_backends
async def test_every_address_and_interface_answers_from_where_it_was_asked(lab: Lab, backend: Backend) -> None:
    """Whatever the size, fragments too; the machine has two interfaces, and three IPv4 addresses."""
    server, client = lab.machine(addresses=2), lab.machine()
    carrier = lab.router("open", is_carrier=True)
    far = server.add_uplink(carrier).host
    inside = lab.machine(behind=carrier)
    assert len(server.hosts_of(4)) == 2
    async with reflecting(server, backend) as reflector:
        for machine, host in [(client, each) for each in server.hosts] + [(inside, far)]:
            version = 6 if ":" in host else 4
            with udp(machine, machine.hosts_of(version)[0]) as sock:
                for size in SIZES:
                    data = os.urandom(size)
                    assert await ask(sock, data, host) == data
        asked = len(SIZES) * (len(server.hosts) + 1)
        assert reflector.counters["answered"] == asked
        assert reflector.counters["answered_bytes"] == sum(SIZES) * (len(server.hosts) + 1)


@on_both_backends
async def test_a_link_local_address_answers_a_neighbour(lab: Lab, office: Router, backend: Backend) -> None:
    server, client = lab.machine(behind=office), lab.machine(behind=office)
    for machine, host in ((server, "fe80::77"), (client, "fe80::78")):
        machine.run(["ip", "address", "add", f"{host}/64", "dev", "eth0", "nodad"])
    async with reflecting(server, backend) as reflector:
        index = client.namespace.do(lambda: socket.if_nametoindex("eth0"))
        with client.namespace.socket(socket.AF_INET6) as sock:
            sock.setblocking(False)
            sock.bind(("fe80::78", 0, 0, index))
            sock.sendto(b"x", ("fe80::77", PORT, 0, index))
            async with asyncio.timeout(2):
                answer, source = await asyncio.get_running_loop().sock_recvfrom(sock, 100)
        assert (answer, source) == (b"x", ("fe80::77", PORT, 0, index))
        assert reflector.counters["answered"] == 1


@on_both_backends
async def test_the_longest_datagram_comes_back_whole(lab: Lab, server: Machine, backend: Backend) -> None:
    client = lab.machine()
    data = os.urandom(65_507)
    async with reflecting(server, backend):
        with udp(client, client.address) as sock:
            assert await ask(sock, data, server.address) == data


@on_both_backends
async def test_an_address_that_comes_later_answers_too(lab: Lab, backend: Backend) -> None:
    server, client = lab.machine(), lab.machine()
    changed = asyncio.Event()
    async with reflecting(server, backend, on_change=changed.set) as reflector:
        later = "20.77.0.1"
        server.namespace.add_address("eth0", f"{later}/32")
        lab.internet.namespace.ip(f"route replace {later}/32 via {server.address}")
        async with asyncio.timeout(3):
            await changed.wait()
        with udp(client, client.address) as sock:
            assert await ask(sock, b"x", later) == b"x"
            server.namespace.delete_address("eth0", f"{later}/32")
            await until(lambda: all(each.host != later for each in reflector.addresses))
            assert await ask(sock, b"x", later, timeout_s=0.3) is None
            assert await ask(sock, b"x", server.address) == b"x"


@on_both_backends
async def test_only_the_interface_that_was_named_answers(lab: Lab, backend: Backend) -> None:
    server, client = lab.machine(), lab.machine()
    carrier = lab.router("open", is_carrier=True)
    far = server.add_uplink(carrier).host
    inside = lab.machine(behind=carrier)
    async with reflecting(server, backend, interface="eth1"):
        with udp(client, client.address) as sock, udp(inside, inside.address) as other:
            assert await ask(sock, b"x", server.address, timeout_s=0.3) is None
            assert await ask(other, b"x", far) == b"x"


async def test_a_binding_of_ten_seconds_is_held(lab: Lab) -> None:
    """By both back ends, at the same time."""
    await asyncio.gather(*(hold(lab, lab.machine(), backend) for backend in BACKENDS))


async def hold(lab: Lab, server: Machine, backend: Backend) -> None:
    """Behind a carrier that ignores heartbeats which nobody answers: what the server sends comes in at the end. A
    second binding has the same heartbeats, and one answer at its beginning: that one is lost.
    """
    router = lab.router("port-restricted", lifetime_s=LIFETIME_S, needs_answers=True)
    client = lab.machine(behind=router)
    asked, silent = (TransportAddress(server.address, port) for port in (PORT, PORT + 1))
    with limit(HOLD_S + 60):
        async with reflecting(server, backend) as reflector:
            with udp(client, client.address) as sock, udp(server, *silent) as once, raw(server) as sender:
                sock.sendto(b"heartbeat", silent)
                loop = asyncio.get_running_loop()
                _, outside = await loop.sock_recvfrom(once, 100)
                once.sendto(b"the only answer", outside)
                assert await loop.sock_recv(sock, 100) == b"the only answer"

                async def arrives(source: TransportAddress) -> bool:
                    """What a server says unasked, to where the client was first seen."""
                    unasked = packet(source, TransportAddress(*outside), b"news")
                    sender.sendto(unasked, outside)
                    try:
                        async with asyncio.timeout(0.5):
                            return await loop.sock_recv(sock, 100) == b"news"
                    except TimeoutError:
                        return False

                ends_at = time.monotonic() + HOLD_S
                count = 0
                while time.monotonic() < ends_at:
                    assert await ask(sock, b"heartbeat", server.address) == b"heartbeat"
                    sock.sendto(b"heartbeat", silent)
                    count += 1
                    await asyncio.sleep(INTERVAL_S)
                assert reflector.counters["answered"] == count
                assert await arrives(asked)
                assert not await arrives(silent)
                await asyncio.sleep(LIFETIME_S + 2)
                assert not await arrives(asked)


# --- forged sources --------------------------------------------------------------------------------------------------


@on_both_backends
async def test_two_reflectors_and_one_spoofed_packet_stop_at_two(lab: Lab, server: Machine, backend: Backend) -> None:
    """From one's port to the other's, which is the same: it is not answered once."""
    other, liar = lab.machine(), lab.machine()
    async with reflecting(server, backend) as one, reflecting(other, backend) as two:
        with raw(liar) as sender:
            source = TransportAddress(other.address, PORT)
            sender.sendto(packet(source, TransportAddress(server.address, PORT), b"x"), (server.address, 0))
        await until(lambda: one.counters["refused"] >= 1)
        assert await at_rest(one, two) == 0
        assert one.counters["refused"] + two.counters["refused"] == 1


@on_both_backends
async def test_two_reflectors_with_different_ports_stop_too(lab: Lab, server: Machine, backend: Backend) -> None:
    """Later: neither can know that the other is one. The TTL ends it, whatever the limits are."""
    limits = ReflectLimits(per_source=100_000, total=1_000_000)
    other, liar = lab.machine(), lab.machine()
    async with (
        reflecting(server, backend, limits=limits) as one,
        reflecting(other, backend, PORT + 1, limits=limits) as two,
    ):
        with raw(liar) as sender:
            source = TransportAddress(other.address, PORT + 1)
            sender.sendto(packet(source, TransportAddress(server.address, PORT), b"x"), (server.address, 0))
        await until(lambda: one.counters["answered"] >= 1)
        count = await at_rest(one, two)
        # They are two hops apart, and a packet begins with a TTL of 64.
        assert 2 <= count <= 64
        assert one.counters["limited"] + two.counters["limited"] == 0


@on_both_backends
@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("20.0.9.9", PORT),
        ("20.0.9.9", 1023),
        ("20.0.9.9", 0),
        ("224.0.0.1", 5000),
        ("255.255.255.255", 5000),
        ("240.0.0.1", 5000),
        ("0.0.0.0", 5000),
        ("127.0.0.1", 5000),
        ("own", 5000),
        ("network", 5000),
    ],
)
async def test_unsafe_sources_get_nothing(lab: Lab, office: Router, backend: Backend, host: str, port: int) -> None:
    """Of a neighbour's: routers do not pass on most of these. What this process answers is refused by the kernel's own
    rules for sources already, as far as it knows them.
    """
    server, liar = lab.machine(behind=office), lab.machine(behind=office)
    address, _, prefix = next(each for each in server.uplink.addresses if ":" not in each).partition("/")
    hosts = {"own": address, "network": _broadcast(address, int(prefix))}
    source = TransportAddress(hosts.get(host, host), port)
    async with reflecting(server, backend) as reflector:
        with _capture(server) as leaving:
            send_frame(liar, server, packet(source, TransportAddress(server.address, PORT), b"x"))
            with udp(liar, liar.address) as sock:
                assert await ask(sock, b"after it", server.address) == b"after it"
            assert leaving() == [liar.address]
        assert reflector.counters["answered"] == 1
        assert backend == "userspace" or reflector.counters["refused"] == 1


def _broadcast(host: str, prefix: int) -> str:
    (number,) = struct.unpack("!I", socket.inet_aton(host))
    return socket.inet_ntoa(struct.pack("!I", number | (0xFFFFFFFF >> prefix)))


@contextmanager
def _capture(machine: Machine) -> Iterator[Any]:
    """What leaves the machine's port: where it goes."""
    with machine.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.bind(("eth0", 0x0003))

        def destinations() -> list[str]:
            found = []
            while select.select([sock], [], [], 0.2)[0]:
                data, (_, protocol, kind, *_) = sock.recvfrom(2000)
                is_leaving = kind == socket.PACKET_OUTGOING and protocol == 0x0800 and data[9] == 17
                if is_leaving and data[20:22] == PORT.to_bytes(2, "big"):
                    found.append(socket.inet_ntoa(data[16:20]))
            return found

        yield destinations


@on_both_backends
async def test_a_source_has_a_limit(lab: Lab, server: Machine, backend: Backend) -> None:
    one, other = lab.machine(), lab.machine()
    limits = ReflectLimits(per_source=1, burst=5)
    async with reflecting(server, backend, limits=limits) as reflector:
        with udp(one, one.address) as sock, udp(other, other.address) as second:
            for _ in range(50):
                sock.sendto(b"x", (server.address, PORT))
            await until(lambda: reflector.counters["limited"] >= 44)
            assert reflector.counters["answered"] in (5, 6)
            assert await ask(second, b"x", server.address) == b"x"


# --- the guide -------------------------------------------------------------------------------------------------------


async def test_the_program_of_the_guide_answers(lab: Lab) -> None:
    server, client = lab.machine(), lab.machine()
    (text,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    process = server.popen([sys.executable, "-W", "error", "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("nftables ")
    with udp(client, client.address) as sock:
        assert await ask(sock, b"x", server.address) == b"x"
    process.kill()
    process.wait(2)


# --- what is left ----------------------------------------------------------------------------------------------------


async def test_the_kernel_tracks_no_connection_of_what_it_answers(lab: Lab, server: Machine) -> None:
    """Where connections are tracked at all: as soon as a rule asks for their state."""
    client = lab.machine()
    server.run(["nft", "-f", "-"], "table ip t {\nchain c {\ntype filter hook input priority 0;\nct state new\n}\n}\n")
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    try:
        async with reflecting(server, "nftables"):
            before = server.namespace.do(count.read_text)
            for _ in range(20):
                with udp(client, client.address) as sock:
                    assert await ask(sock, b"x", server.address) == b"x"
            assert server.namespace.do(count.read_text) == before
    finally:
        server.run(["nft", "delete", "table", "ip", "t"])


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "iceagent", "reflect", "--port", str(PORT), *words]


def start(machine: Machine, backend: Backend) -> subprocess.Popen[str]:
    """``iceagent reflect`` on it; returns when it is ready."""
    process = machine.popen(command("--backend", backend, "--json"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["event"], ready["backend"], ready["port"]) == ("reflect.ready", backend, PORT)
    assert f"{machine.address}:{PORT}" in ready["addresses"] and "reason" not in ready
    return process


def state(machine: Machine) -> tuple[str, str]:
    """Rules and settings."""
    return rules_of(machine), sysctls(machine)


@on_both_backends
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["TERM", "INT", "KILL"]
)
async def test_nothing_is_left_after_the_end_and_a_start_after_it_works(
    lab: Lab, backend: Backend, number: signal.Signals, code: int
) -> None:
    server, client = lab.machine(), lab.machine()
    before = state(server)
    for _ in range(2):
        process = start(server, backend)
        with udp(client, client.address) as sock:
            assert await ask(sock, b"x", server.address) == b"x"
        rules, settings = state(server)
        assert settings == before[1]
        assert (rules == before[0]) == (backend == "userspace")
        process.send_signal(number)
        assert process.wait(1.5) == code
        if number != signal.SIGKILL:
            assert process.stdout is not None
            last = json.loads(process.stdout.read().splitlines()[-1])
            assert (last["event"], last["answered"], last["answered_bytes"]) == ("reflect.stopped", 1, 1)
        lab.wait_until(lambda: state(server) == before, 2, "something is left")


async def test_without_privileges_this_process_answers_and_says_what_root_would_bring(lab: Lab) -> None:
    server, client = lab.machine(), lab.machine()
    words = [*UNPRIVILEGED, *command("--json")]
    process = server.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["backend"], ready["reason"]) == ("userspace", "it needs CAP_NET_ADMIN (root)")
    with udp(client, client.address) as sock:
        assert await ask(sock, b"x", server.address) == b"x"
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.to_thread(process.communicate, timeout=2)
    assert process.returncode == 0
    assert said.count("\n") == 1 and "it needs CAP_NET_ADMIN (root)" in said


async def test_the_kernel_is_an_error_where_it_was_asked_for_without_privileges(lab: Lab, server: Machine) -> None:
    words = [*UNPRIVILEGED, *command("--backend", "nftables")]
    process = server.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown, said = await asyncio.to_thread(process.communicate, timeout=10)
    assert (process.returncode, shown) == (2, "")
    assert said.count("\n") == 1 and "--backend nftables: it needs CAP_NET_ADMIN (root)" in said
    with contextlib.suppress(ProcessLookupError):
        process.kill()
