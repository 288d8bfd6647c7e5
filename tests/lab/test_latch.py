"""The latching relay between real machines, forwarding in this process and in the kernel: NATs of all kinds, strangers,
and clients that are rebound.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from itertools import product

import pytest

from iceagent.lab import Lab, Machine, Router
from iceagent.lab.kinds import KINDS
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.backend import Backend
from relay.latch.channel import (
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    SideKey,
    SideMoved,
)
from relay.stun import (
    USERNAME,
    MessageClass,
    Method,
    build,
    parse,
)
from tests.lab.latching import Call, Client, ended, keys, on_both_backends, relaying, until
from tests.lab.packets import packet, raw, rules_of

SPRAY = 50


# --- who reaches whom ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routers(lab: Lab) -> dict[str, Router]:
    """One of every kind that lets UDP out."""
    return {name: lab.router(name) for name in KINDS if name != "no-udp"}


@pytest.fixture(scope="module")
def homes(lab: Lab, routers: dict[str, Router]) -> dict[str, Machine]:
    """A machine behind each."""
    return {name: lab.machine(behind=router) for name, router in routers.items()}


@on_both_backends
async def test_clients_behind_nats_of_all_kinds_talk(
    server: Machine, routers: dict[str, Router], homes: dict[str, Machine], backend: Backend
) -> None:
    """Each on the left with each on the right, its like too: one request each, whatever both are behind."""
    outside = {
        name: router.address if KINDS[name].is_translating else homes[name].address for name, router in routers.items()
    }
    async with relaying(server, backend) as relay:

        async def call(left: str, right: str) -> None:
            channel = relay.open()
            async with Call(server, channel, homes[left], homes[right]) as made:
                assert [each.host for each in made.mapped] == [outside[left], outside[right]]
                assert made.mapped == [side.peer for side in channel.sides]
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

        for left, right in product(homes, repeat=2):
            await call(left, right)


async def test_nothing_passes_where_udp_does_not(lab: Lab, server: Machine) -> None:
    inside = lab.machine(behind=lab.router("no-udp"))
    async with relaying(server, "userspace") as relay:
        channel = relay.open()
        client = Client(inside, TransportAddress(server.address, channel.left.port), channel.options.left)
        client.send(client.request())
        assert await client.receive(0.3) is None
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
    """Fifty datagrams to each port and its neighbours before the calls, and during them; from ports of the peers' own
    machines, too.
    """
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channels = [relay.open() for _ in range(4)]
        ours = {side.port for channel in channels for side in channel.sides}
        ports = sorted(ours | {port + step for port in ours for step in (-1, 1) if port + step < 65_536})
        addresses = [TransportAddress(server.address, port) for port in ports]
        liars = [Client(machine, address) for address in addresses for machine in (mallory, alice, bob)]

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
            clients = [client for call in calls for client in (call.left, call.right)]
            assert await asyncio.gather(*(client.rest() for client in clients)) == [[]] * len(clients)
        assert set(await asyncio.gather(*(liar.receive(0.1) for liar in liars))) == {None}
        for liar in liars:
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
async def test_who_is_faster_with_a_clients_request_holds_the_side_until_the_next(
    lab: Lab, server: Machine, backend: Backend
) -> None:
    """The client's own comes second, and counts as recorded: it is not answered, and so the client asks anew."""
    alice, bob, mallory = lab.machine(), lab.machine(), lab.machine()
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            caught = call.left.request()
            liar = Client(mallory, call.left.to)
            liar.send(caught)
            assert await liar.receive() is not None
            call.left.send(caught)
            await until(lambda: relay.counters["replayed"] == 1)
            call.right.send(b"to whom?")
            assert await liar.receive() == b"to whom?"
            assert await call.left.rest() == []
            await call.left.latch()
            await call.passes()
            assert await liar.rest() == []
            assert relay.counters["moves"] == 2
            liar.close()


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
async def test_an_address_that_comes_later_relays_and_takes_its_latch_along(lab: Lab, backend: Backend) -> None:
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    later = "20.77.0.2"
    async with relaying(server, backend) as relay:
        channel = relay.open()
        async with Call(server, channel, alice, bob) as call:
            await call.passes()
            server.namespace.add_address("eth0", f"{later}/32")
            lab.internet.namespace.ip(f"route replace {later}/32 via {server.address}")
            await until(lambda: later in relay.hosts)
            there = Client(alice, call.left.to._replace(host=later), call.left.key)
            await there.latch()
            for sender, receiver in ((there, call.right), (call.right, there)):
                sender.send(b"over the new one")
                assert await receiver.receive() == b"over the new one"
            server.namespace.delete_address("eth0", f"{later}/32")
            await until(lambda: relay.statistics(channel).left.peer is None)
            assert later not in relay.hosts
            await call.left.latch()
            await call.passes()
            there.close()
        assert ended(relay, channel).left.in_kernel == (3 if backend == "nftables" else 0)


@on_both_backends
async def test_a_channel_ends_when_it_is_idle_and_not_before(lab: Lab, server: Machine, backend: Backend) -> None:
    events: list[Event] = []
    async with relaying(server, backend, events) as relay:
        channel = relay.open(options=keys(idle_s=0.6))
        async with Call(server, channel, lab.machine(), lab.machine()) as call:
            for _ in range(8):
                await asyncio.sleep(0.1)
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
