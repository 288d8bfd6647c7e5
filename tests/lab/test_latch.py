"""The latching relay between real machines, forwarding in this process and in the kernel: NATs of all kinds, strangers,
clients that are rebound, and what is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab import Lab, Machine
from iceagent.lab.kinds import KINDS
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.backend import Backend
from relay.latch.channel import (
    Channel,
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    ChannelStatistics,
    SideKey,
    SideMoved,
)
from relay.latch.relay import LatchRelay, random_key
from relay.stun import (
    USERNAME,
    XOR_MAPPED_ADDRESS,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from tests.lab.packets import packet, raw, rules_of, sysctls

LEFT, RIGHT = 5000, 5001
SPRAY = 50
GUIDE = Path(__file__).parents[2] / "docs" / "latching.md"
UNPRIVILEGED = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
BACKENDS: tuple[Backend, ...] = ("userspace", "nftables")
on_both_backends = pytest.mark.parametrize("backend", BACKENDS)


class Client:
    """A socket on a machine, which sends to one side of a channel.

    Attributes:
        to: the side's address.
        key: of it; ``None``: it has none.
    """

    def __init__(self, machine: Machine, to: TransportAddress, key: SideKey | None = None) -> None:
        host = machine.hosts_of(to.version)[0]
        self._sock = machine.namespace.socket(socket.AF_INET6 if to.version == 6 else socket.AF_INET)
        self._sock.setblocking(False)
        self._sock.bind((host, 0))
        self.machine = machine
        self.to = to
        self.key = key

    def request(self) -> bytes:
        """A new one, signed."""
        assert self.key is not None
        message = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, self.key.username))
        return message.encode(short_term_key(self.key.password))

    async def latch(self) -> TransportAddress:
        """One request; the mapped address of the answer, which is signed, and the next that comes."""
        self.send(self.request())
        data = await self.receive()
        assert data is not None, "no answer"
        answer = parse(data)
        assert self.key is not None
        assert answer.is_success and answer.verify(short_term_key(self.key.password))
        mapped = answer.get(XOR_MAPPED_ADDRESS)
        assert mapped is not None
        return mapped

    def send(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self._sock.sendto(data, self.to)

    async def receive(self, timeout_s: float = 2.0) -> bytes | None:
        """The next datagram, which has to come from the relay's port; ``None``: nothing comes."""
        try:
            async with asyncio.timeout(timeout_s):
                data, source = await asyncio.get_running_loop().sock_recvfrom(self._sock, 70_000)
        except TimeoutError:
            return None
        assert source[:2] == self.to
        return data

    async def rest(self) -> list[bytes]:
        """Whatever else comes within a while."""
        found = []
        while (data := await self.receive(0.1)) is not None:
            found.append(data)
        return found

    def close(self) -> None:
        self._sock.close()


class Call:
    """Both sides of a channel, and who they are."""

    def __init__(self, relay: Machine, channel: Channel, left: Machine, right: Machine, version: int = 4) -> None:
        ports = [TransportAddress(relay.hosts_of(version)[0], side.port) for side in channel.sides]
        self.left = Client(left, ports[0], channel.options.left)
        self.right = Client(right, ports[1], channel.options.right)

    async def __aenter__(self) -> Call:
        await self.left.latch()
        await self.right.latch()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left.close()
        self.right.close()

    async def passes(self, size: int = 100) -> None:
        """Both ways, unchanged."""
        for sender, receiver in ((self.left, self.right), (self.right, self.left)):
            data = os.urandom(size)
            sender.send(data)
            assert await receiver.receive() == data, f"{sender.machine.name} to {receiver.machine.name}"


@asynccontextmanager
async def relaying(
    machine: Machine, backend: Backend, events: list[Event] | None = None, **options: Any
) -> AsyncIterator[LatchRelay]:
    on_event = None if events is None else events.append
    async with LatchRelay(machine.host, backend=backend, on_event=on_event, **options) as relay:
        assert relay.backend == backend
        yield relay


def ended(relay: LatchRelay, channel: Channel) -> ChannelStatistics:
    """End a channel; its last statistics, with all that the kernel has forwarded."""
    relay.close_channel(channel)
    return relay.statistics(channel)


def keys(**limits: Any) -> ChannelOptions:
    return ChannelOptions(left=random_key(), right=random_key(), **limits)


async def until(fact: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Wait until it is true."""
    ends_at = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


# --- who reaches whom ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def homes(lab: Lab) -> dict[str, Machine]:
    """A machine behind a router of every kind that lets UDP out."""
    return {name: lab.machine(behind=lab.router(name)) for name in KINDS if name != "no-udp"}


@on_both_backends
async def test_clients_behind_nats_of_all_kinds_talk(
    lab: Lab, server: Machine, homes: dict[str, Machine], backend: Backend
) -> None:
    """Each with each, and with its like: one request each, whatever both are behind."""
    async with relaying(server, backend) as relay:

        async def call(left: str, right: str) -> None:
            channel = relay.open()
            async with Call(server, channel, homes[left], homes[right]) as made:
                for _ in range(3):
                    await made.passes()
                # A train, and what only looks like the relay's business.
                stun = build(Method.BINDING, MessageClass.REQUEST, os.urandom(12), (USERNAME, "another")).encode()
                made.left.send(b"one", b"two", stun)
                assert [await made.right.receive() for _ in range(3)] == [b"one", b"two", stun]
            statistics = ended(relay, channel)
            assert (statistics.left.packets, statistics.right.packets) == (6, 3)
            # All but what begins like a Binding request.
            assert statistics.left.in_kernel == (5 if backend == "nftables" else 0)

        for left, right in combinations_with_replacement(homes, 2):
            await call(left, right)


async def test_nothing_passes_where_udp_does_not(lab: Lab, server: Machine) -> None:
    inside = lab.machine(behind=lab.router("no-udp"))
    async with relaying(server, "userspace") as relay:
        channel = relay.open()
        client = Client(inside, TransportAddress(server.address, channel.left.port), channel.options.left)
        client.send(client.request())
        assert await client.receive(0.5) is None
        client.close()


@on_both_backends
async def test_ipv6_and_both_versions_in_one_channel(lab: Lab, server: Machine, backend: Backend) -> None:
    """What changes its IP version is forwarded by this process."""
    alice, bob = lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob, version=6) as call:
            await call.passes()
            await call.passes(1200)
        assert ended(relay, channel).left.in_kernel == (2 if backend == "nftables" else 0)
        channel = relay.open()
        call = Call(server, channel, alice, bob)
        call.right.close()
        call.right = Client(bob, TransportAddress(server.hosts_of(6)[0], channel.right.port), channel.options.right)
        async with call:
            await call.passes()
            await call.passes(1200)
        assert ended(relay, channel).left.in_kernel == 0


@on_both_backends
async def test_every_size_comes_whole(lab: Lab, server: Machine, backend: Backend) -> None:
    """Empty ones, up to the longest there is, in fragments."""
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, lab.machine(), lab.machine()) as call:
            for size in (0, 1, 100, 1200, 1472, 1473, 9000, 65_507):
                await call.passes(size)
        assert ended(relay, channel).packets == 16


# --- strangers -------------------------------------------------------------------------------------------------------


@on_both_backends
async def test_who_sprays_every_port_gets_nothing_and_says_nothing(lab: Lab, server: Machine, backend: Backend) -> None:
    """Fifty datagrams to each port before the call, and during it; then from ports of the peers' own machines."""
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channels = [relay.open() for _ in range(4)]
        ports = [TransportAddress(server.address, side.port) for channel in channels for side in channel.sides]
        liars = [Client(machine, port) for port in ports for machine in (mallory, alice, bob)]

        async def spray() -> None:
            for liar in liars:
                liar.send(*[b"injected"] * SPRAY)
                await asyncio.sleep(0)

        await spray()
        async with contextlib.AsyncExitStack() as stack:
            calls = [await stack.enter_async_context(Call(server, each, alice, bob)) for each in channels]
            spraying = asyncio.create_task(spray())
            for _ in range(10):
                for call in calls:
                    await call.passes()
            await spraying
            for call in calls:
                assert await call.left.rest() + await call.right.rest() == []
        for liar in liars:
            assert await liar.receive(0.01) is None
            liar.close()
        for channel in channels:
            statistics = ended(relay, channel)
            assert statistics.packets == 20
            assert 2 * 2 * 3 * SPRAY - SPRAY < statistics.left.dropped + statistics.right.dropped <= 2 * 2 * 3 * SPRAY


@on_both_backends
async def test_recorded_and_truncated_requests_move_nothing(lab: Lab, server: Machine, backend: Backend) -> None:
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            recorded = call.left.request()
            call.left.send(recorded)
            assert await call.left.receive() is not None
            liar = Client(mallory, call.left.to)
            liar.send(*[recorded[:size] for size in range(len(recorded))], *[recorded] * 10)
            await until(lambda: relay.counters["replayed"] == 10)
            assert await liar.rest() == []
            liar.close()
            await call.passes()
            assert relay.counters["moves"] == 0
            # A retransmission of its own is answered.
            call.left.send(recorded)
            assert await call.left.receive() is not None


@on_both_backends
async def test_wrong_keys_are_answered_ten_times_and_a_forged_source_not_at_all(
    lab: Lab, server: Machine, backend: Backend
) -> None:
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            assert call.left.key is not None
            liar = Client(mallory, call.left.to, SideKey(username=call.left.key.username, password="x" * 22))
            liar.send(*[liar.request() for _ in range(40)])
            answers = [parse(data) for data in await liar.rest()]
            assert 10 <= len(answers) <= 13
            assert {answer.error.code for answer in answers if answer.error} == {401}
            peer = relay.statistics(channel).left.peer
            assert peer is not None
            with raw(mallory) as sender:
                sender.sendto(packet(peer, call.left.to, liar.request()), (server.address, 0))
            await until(lambda: relay.counters["dropped: forged"] == 1)
            assert await call.left.rest() == []
            await call.passes()
            liar.close()


@on_both_backends
async def test_of_two_that_know_the_key_the_later_holds(lab: Lab, server: Machine, backend: Backend) -> None:
    alice, bob, other = lab.machine(), lab.machine(), lab.machine()
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            later = Client(other, call.left.to, call.left.key)
            for client in (later, call.left, later):
                assert (await client.latch()).host == client.machine.address
            call.right.send(b"to whom?")
            assert await later.receive() == b"to whom?"
            assert await call.left.rest() == []
            call.left.send(b"no more")
            assert await call.right.rest() == []
            later.close()
        assert len([event for event in events if isinstance(event, SideMoved)]) == 3


@on_both_backends
async def test_the_first_source_is_locked_and_the_second_is_told_of(
    lab: Lab, server: Machine, backend: Backend
) -> None:
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open(options=ChannelOptions(first_source=True, learning_s=1.0))
        call = Call(server, channel, alice, bob)
        liar = Client(mallory, call.left.to)
        call.left.send(b"first")
        call.right.send(b"first")
        assert await call.left.receive() == b"first"
        await call.passes()
        liar.send(*[b"second"] * 20)
        await until(lambda: relay.counters["alarms"] == 20)
        assert await liar.rest() + await call.right.rest() == []
        late = relay.open(options=ChannelOptions(first_source=True, learning_s=0.05))
        await asyncio.sleep(0.1)
        liar.to = TransportAddress(server.address, late.left.port)
        liar.send(b"late")
        await until(lambda: late.left.dropped == 1)
        assert late.left.peer is None
        await call.__aexit__()
        liar.close()


# --- what changes ----------------------------------------------------------------------------------------------------


@on_both_backends
async def test_a_client_whose_router_forgets_it_goes_on_after_one_round_trip(
    lab: Lab, server: Machine, homes: dict[str, Machine], backend: Backend
) -> None:
    """Its router gives it another port. What is sent until then is lost; nobody else gets it."""
    alice, bob = homes["symmetric"], homes["addr-symmetric"]
    router = lab.router("symmetric")
    moving = lab.machine(behind=router)
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open()
        for left, right in ((moving, bob), (alice, moving)):
            async with Call(server, channel, left, right) as call:
                await call.passes()
                old = relay.statistics(channel)
                router.reboot()
                mover, stayer = (call.left, call.right) if left is moving else (call.right, call.left)
                stayer.send(b"lost")
                mover.send(b"not from the latched peer")
                assert await stayer.rest() == []
                mapped = await mover.latch()
                new = relay.statistics(channel)
                side, before = (new.left, old.left) if left is moving else (new.right, old.right)
                assert side.peer == mapped != before.peer
                for _ in range(3):
                    await call.passes()
                assert events[-1] == SideMoved(
                    channel=channel.number,
                    side=channel.left.name if left is moving else channel.right.name,
                    old=before.peer or mapped,
                    address=mapped,
                )


@on_both_backends
async def test_a_channel_ends_when_it_is_idle_and_not_before(lab: Lab, server: Machine, backend: Backend) -> None:
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open(options=keys(idle_s=1.0))
        async with Call(server, channel, lab.machine(), lab.machine()) as call:
            for _ in range(8):
                await asyncio.sleep(0.2)
                call.left.send(b"x")
                assert await call.right.receive() == b"x"
            assert channel.is_open
            ended_at = time.monotonic()
            await until(lambda: not channel.is_open, 4)
            assert time.monotonic() - ended_at > 0.5
            closed = events[-1]
            assert isinstance(closed, ChannelClosed)
            assert (closed.reason, closed.statistics.left.packets, closed.statistics.left.octets) == ("idle", 8, 8)
            assert closed.statistics.left.in_kernel == (8 if backend == "nftables" else 0)
            call.left.send(b"too late")
            assert await call.right.receive(0.3) is None


@on_both_backends
async def test_a_channel_that_is_kept_is_latched_anew(lab: Lab, server: Machine, backend: Backend) -> None:
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open(options=keys(idle_s=0.5, is_kept=True))
        async with Call(server, channel, alice, bob) as call:
            recorded = call.left.request()
            call.left.send(recorded)
            assert await call.left.receive() is not None
            await until(lambda: isinstance(events[-1], ChannelIdle), 4)
            call.right.send(b"nobody is latched")
            liar = Client(mallory, call.left.to)
            liar.send(recorded)
            assert await liar.rest() + await call.left.rest() == []
            await call.left.latch()
            await call.right.latch()
            await call.passes()
            liar.close()


@on_both_backends
@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_packets": 10}, "packet cap"), ({"max_bytes": 1000}, "byte cap")],
    ids=["packets", "bytes"],
)
async def test_a_cap_ends_a_channel(
    lab: Lab, server: Machine, backend: Backend, limits: dict[str, int], reason: str
) -> None:
    """Exactly, or, in the kernel, at the next look."""
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open(options=keys(**limits))
        async with Call(server, channel, lab.machine(), lab.machine()) as call:
            call.left.send(*[bytes(100)] * 15)
            await until(lambda: not channel.is_open)
            closed = events[-1]
            assert isinstance(closed, ChannelClosed)
            assert (closed.reason, closed.statistics.packets) == (reason, 10 if backend == "userspace" else 15)
            assert len(await call.right.rest()) == closed.statistics.packets


@on_both_backends
async def test_a_peer_that_cannot_be_reached_stays_latched(lab: Lab, server: Machine, backend: Backend) -> None:
    alice, bob = lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            await call.passes()
            port = call.right._sock.getsockname()
            call.right.close()
            for _ in range(5):
                call.left.send(b"to a closed port")
                await asyncio.sleep(0.05)
            if backend == "userspace":
                await until(lambda: relay.counters["network errors"] >= 1)
            call.right = Client(bob, call.right.to, call.right.key)
            call.right.close()
            call.right._sock = bob.namespace.socket()
            call.right._sock.setblocking(False)
            call.right._sock.bind(port)
            await call.passes()


async def test_the_kernels_table_shrinks_with_the_channels(lab: Lab) -> None:
    """One entry for each side, and none for a channel that has ended."""
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()

    def entries() -> int:
        return rules_of(server).count("counter packets")

    async with relaying(server, "nftables") as relay:
        before = entries()
        channels = [relay.open() for _ in range(3)]
        for channel in channels:
            async with Call(server, channel, alice, bob) as call:
                await call.passes()
        assert entries() == before + 6
        for channel in channels:
            relay.close_channel(channel)
        assert entries() == before


# --- the command -----------------------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "iceagent", "relay", f"{LEFT}:{RIGHT}", *words]


def start(machine: Machine, backend: Backend) -> tuple[subprocess.Popen[str], list[SideKey]]:
    """``iceagent relay`` on it; returns when it is ready, with the keys that it has drawn."""
    process = machine.popen(command("--backend", backend, "--json"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["event"], ready["backend"]) == ("relay.ready", backend)
    assert "reason" not in ready
    (channel,) = ready["channels"]
    assert (channel["left"], channel["right"]) == (LEFT, RIGHT)
    texts = (channel[f"{side}_key"].partition(":") for side in ("left", "right"))
    return process, [SideKey(username=name, password=password) for name, _, password in texts]


@asynccontextmanager
async def calling(server: Machine, left: Machine, right: Machine, found: list[SideKey]) -> AsyncIterator[Call]:
    """Over the command's channel."""
    channel = Channel(1, (LEFT, RIGHT), ChannelOptions(left=found[0], right=found[1]), 0.0)
    async with Call(server, channel, left, right) as call:
        yield call


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
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    before = state(server)
    for _ in range(2):
        process, found = start(server, backend)
        async with calling(server, alice, bob, found) as call:
            await call.passes()
            rules, settings = state(server)
            assert settings == before[1]
            assert (rules == before[0]) == (backend == "userspace")
            process.send_signal(number)
            assert process.wait(1.5) == code
        if number != signal.SIGKILL:
            assert process.stdout is not None
            told = [json.loads(line) for line in process.stdout.read().splitlines()]
            assert [each["event"] for each in told] == ["side.latched"] * 2 + ["channel.closed", "relay.stopped"]
            assert (told[2]["reason"], told[2]["left_packets"], told[2]["right_bytes"]) == ("closed", 1, 100)
            assert (told[3]["packets"], told[3]["in_kernel"]) == (2, 2 if backend == "nftables" else 0)
        lab.wait_until(lambda: state(server) == before, 2, "something is left")


async def test_without_privileges_this_process_forwards_and_says_what_root_would_bring(lab: Lab) -> None:
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    words = [*UNPRIVILEGED, *command("--json", "--key", f"{LEFT}=l:{'l' * 22}", "--key", f"{RIGHT}=r:{'r' * 22}")]
    process = server.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["backend"], ready["reason"]) == ("userspace", "it needs CAP_NET_ADMIN (root)")
    assert ready["channels"] == [{"channel": 1, "left": LEFT, "right": RIGHT}]
    async with calling(server, alice, bob, [SideKey(username=each, password=each * 22) for each in "lr"]) as call:
        await call.passes()
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


async def test_the_programs_of_the_guide_relay(lab: Lab) -> None:
    """One relays, and tells its keys; the other latches, from two machines."""
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    relay_text, client_text = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    process = server.popen([sys.executable, "-W", "error", "-c", relay_text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    sides = [process.stdout.readline().split() for _ in range(2)]
    clients = []
    for machine, (port, name, password) in zip((alice, bob), sides, strict=True):
        words = [sys.executable, "-W", "error", "-c", client_text, server.address, port, name, password]
        client = machine.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline().startswith(f"latched as {machine.address}:")
        clients.append(client)
    for client, data in zip(clients, ("from alice\n", "from bob\n"), strict=True):
        assert client.stdin is not None
        client.stdin.write(data)
        client.stdin.close()
    for client, data in zip(clients, ("from bob\n", "from alice\n"), strict=True):
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == data
        assert client.wait(2) == 0
    process.kill()
    process.wait(2)
