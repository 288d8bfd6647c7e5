"""``iceagent.punch`` on hosts in memory, in virtual time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from iceagent.config import Config
from iceagent.gather.stun_queries import MappedAddress
from iceagent.nat.lifetime_report import SilenceProbed
from iceagent.nat.punch_report import Answered, DataReceived, Lost, PunchOptions
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import AddressFlag, Host, SocketOptions
from iceagent.punch.far_end import FarEndServer
from iceagent.punch.lifetime import measure_lifetime
from iceagent.punch.punch import Punch, PunchFailed
from iceagent.testing import clock
from iceagent.testing.catalogue import box_of_kind
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.host import MemoryHost
from iceagent.testing.internet import MemoryInternet
from iceagent.testing.network import Network
from relay.stun import short_term_key
from relay.udp_listening import Deaf

FAR = "198.51.100.1"
FAR_6 = "2001:db8:f::1"
PORT = 3478
KEY = short_term_key("a secret of both")


class World:
    """A far end on the Internet, and two homes.

    Attributes:
        boxes: of the homes.
    """

    def __init__(self, kind: str = "port-restricted", lifetime_s: float = 30.0) -> None:
        self.internet = MemoryInternet(Network.seeded(1, icmp_errors=True))
        self.far = self.internet.host("far", [FAR, FAR_6])
        self.boxes = [box_of_kind(kind, [f"20.0.{n}.1"], Random(n), lifetime_s=lifetime_s) for n in (1, 2)]
        self.homes = [self._home(n, box) for n, box in enumerate(self.boxes, 1)]

    def _home(self, number: int, box: Any) -> MemoryHost:
        nat = self.internet.network.add_nat(f"nat {number}", box, ipv6=FirewallModel())
        return self.internet.host(f"home {number}", [f"10.{number}.0.2", f"2001:db8:{number}::2"], nat)


def run(main: Callable[[World], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def inside() -> None:
        world = World(**options)
        async with far_end(world.far):
            await main(world)
        world.internet.close()

    clock.run(inside())


def far_end(host: Host, **options: Any) -> FarEndServer:
    return FarEndServer(host, config=Config(port_range=(PORT, PORT)), **options)


def end(host: Host, on_event: Callable[[Event], None] = lambda event: None, **options: Any) -> Punch:
    return Punch(host, PunchOptions(**options), config=Config(), on_event=on_event)


def test_an_address_is_kept_for_who_has_to_type_it() -> None:
    """The NAT would have forgotten it after 30 s."""

    async def main(world: World) -> None:
        async with end(world.homes[0], lead_s=2.0) as one, end(world.homes[1], lead_s=2.0) as other:
            seen = [(await each.ask(TransportAddress(FAR, PORT))).mapped for each in (one, other)]
            await asyncio.sleep(300.0)
            answers = await asyncio.gather(one.meet([seen[1]]), other.meet([seen[0]]))
            assert [answer.mapped for answer in answers] == seen

    run(main, kind="eim-random-port")


def test_another_address_in_the_meantime_is_told() -> None:
    events: list[Event] = []

    async def main(world: World) -> None:
        async with end(world.homes[0], events.append) as punch:
            first = await punch.ask(TransportAddress(FAR, PORT))
            world.boxes[0].forget()
            await asyncio.sleep(20.0)
            (later,) = [event for event in events if isinstance(event, MappedAddress)]
            assert later.base == first.base and later.mapped != first.mapped

    run(main, kind="eim-random-port")


def test_of_several_addresses_the_first_that_answers_is_taken() -> None:
    async def main(world: World) -> None:
        nobody = TransportAddress("203.0.113.7", 1)
        async with end(world.homes[0]) as punch:
            answered = await punch.meet([nobody, TransportAddress(FAR_6, PORT), TransportAddress(FAR, PORT)])
            assert answered.path.remote in (TransportAddress(FAR_6, PORT), TransportAddress(FAR, PORT))
            assert {base.version for base in punch.bases} == {4, 6}
            await punch.settled()

    run(main)


def test_a_name_for_loopback_and_for_more_has_a_socket_for_each() -> None:
    """Nothing leads from a loopback address to another host; where one socket can serve, one does."""

    async def main(world: World) -> None:
        async with Punch(world.homes[0], config=Config(loopback=True)) as punch:
            nobody, far = TransportAddress("127.0.0.1", 1), TransportAddress(FAR, PORT)
            assert (await punch.meet([nobody, far])).path.remote == far
            assert [base.host for base in punch.bases] == ["127.0.0.1", "10.1.0.2"]
            assert await punch.open(TransportAddress("203.0.113.5", 1)) == punch.bases[1]

    run(main)


def test_a_name_for_what_is_no_host_and_for_one_that_is() -> None:
    async def main(world: World) -> None:
        world.homes[0].names["odd.example"] = ["224.0.0.1", "0.0.0.0", FAR]
        async with end(world.homes[0]) as punch:
            found = await world.homes[0].resolve("odd.example")
            assert (await punch.meet([TransportAddress(host, PORT) for host in found])).path.remote.host == FAR
        async with end(world.homes[0]) as punch:
            with pytest.raises(
                PunchFailed, match=r"^224.0.0.1:1 is no address of another host; 0.0.0.0:1 is no address"
            ):
                await punch.meet([TransportAddress("224.0.0.1", 1), TransportAddress("0.0.0.0", 1)])

    run(main)


def test_two_firewalls_face_each_other() -> None:
    """IPv6: both know where the other is, and nobody lets strangers in."""
    heard: list[bytes] = []

    def hear(event: Event) -> None:
        if isinstance(event, DataReceived):
            heard.append(event.data)

    async def main(world: World) -> None:
        async with end(world.homes[0]) as one, end(world.homes[1], hear) as other:
            addresses = [await each.open(version=6) for each in (one, other)]
            await asyncio.gather(one.meet([addresses[1]]), other.meet([addresses[0]]))
            assert one.send(b"through") == 0
            await asyncio.sleep(1.0)
            assert heard == [b"through"]

    run(main)


def test_a_far_end_behind_nothing_meets_who_asks() -> None:
    async def main(world: World) -> None:
        other = world.internet.host("other", ["203.0.113.5"])
        async with end(other, key=KEY, is_open=True, timeout_s=None) as far, end(world.homes[0], key=KEY) as punch:
            await far.listen()
            waiting = asyncio.create_task(far.meet())
            remote = next(base for base in far.bases if base.host == "203.0.113.5")
            answered = await punch.meet([remote])
            assert (await waiting).path.remote == answered.mapped

    run(main)


def test_a_far_end_follows_its_addresses() -> None:
    """Each answers from itself, on the port of all; also a stable one beside a temporary one (RFC 8981)."""

    async def main(world: World) -> None:
        changes: list[tuple[TransportAddress, ...]] = []
        host = world.internet.host("other", ["203.0.113.5", "2001:db8:5::5"])
        config = Config(loopback=False)
        async with FarEndServer(host, config=config, on_change=lambda: changes.append(server.bases)) as server:
            (port,) = {base.port for base in server.bases}
            before = set(server.bases)
            host.add_address("eth0", "203.0.113.6")
            host.add_address("eth0", "2001:db8:5::6", [AddressFlag.TEMPORARY])
            await asyncio.sleep(1.0)
            came = {TransportAddress(each, port) for each in ("203.0.113.6", "2001:db8:5::6")}
            assert set(server.bases) == server.core.bases == set(changes[-1]) == before | came
            for remote in server.bases:
                async with end(world.homes[0]) as punch:
                    assert (await punch.meet([remote])).path.remote == remote
            host.remove_address("eth0", "203.0.113.5")
            await asyncio.sleep(1.0)
            gone = TransportAddress("203.0.113.5", port)
            assert gone not in server.bases and gone not in server.core.bases and gone not in changes[-1]
            assert len(changes) == 2
            async with end(world.homes[0], timeout_s=1.0) as punch:
                with pytest.raises(PunchFailed):
                    await punch.meet([gone])
            assert server.core.counters["requests"] == len(before | came)
        host.add_address("eth0", "203.0.113.7")
        await asyncio.sleep(1.0)
        assert len(changes) == 2 and server.bases == ()

    run(main)


def test_one_who_waits_follows_them_too() -> None:
    """Who asks at an address that came later is met there; when it has gone, so is the way, and sending says so."""
    events: list[Event] = []

    async def main(world: World) -> None:
        host = world.internet.host("other", ["203.0.113.5"])
        async with end(host, events.append, key=KEY, is_open=True, timeout_s=None, keepalive_s=5.0) as far:
            await far.listen()
            waiting = asyncio.create_task(far.meet())
            await asyncio.sleep(1.0)
            host.add_address("eth0", "203.0.113.6")
            await asyncio.sleep(1.0)
            base = next(each for each in far.bases if each.host == "203.0.113.6")
            async with end(world.homes[0], key=KEY, keepalive_s=5.0) as punch:
                await punch.meet([base])
                assert (await waiting).path.base == base
                host.remove_address("eth0", "203.0.113.6")
                await asyncio.sleep(20.0)
                assert far.send(b"into nothing") == errno.EADDRNOTAVAIL
                lost = [event for event in events if isinstance(event, Lost)]
                assert [event.reason for event in lost] == ["Cannot assign requested address"]
            (left,) = [each for each in far.bases if each.host == "203.0.113.5"]
            async with end(world.homes[1], key=KEY) as punch:
                await punch.meet([left])
                await asyncio.sleep(1.0)
                assert far.core.path is not None and far.core.path.base == left and not far.core.is_lost

    run(main)


@pytest.mark.parametrize("options", [{}, {"port_range": (5_000, 5_001)}])
def test_of_several_ports_one_is_taken_that_is_free_on_every_address(options: dict[str, Any]) -> None:
    async def main(world: World) -> None:
        host = world.internet.host("other", ["203.0.113.5", "203.0.113.6"])
        taken = host.socket(TransportAddress("203.0.113.6", 5_000), Deaf(), SocketOptions())
        async with FarEndServer(host, config=Config(**options)) as server:
            assert {base.host for base in server.bases} == {"203.0.113.5", "203.0.113.6"}
            (port,) = {base.port for base in server.bases}
            assert port != 5_000 and (not options or port == 5_001)
        only = FarEndServer(host, config=Config(port_range=(5_000, 5_000)))
        with pytest.raises(OSError, match=r"cannot listen on 203.0.113.6:5000 \(udp\): the port is in use"):
            await only.__aenter__()
        assert only.bases == ()
        host.socket(TransportAddress("203.0.113.5", 5_000), Deaf(), SocketOptions()).close()
        taken.close()

    run(main)


def test_nobody_has_asked() -> None:
    async def main(world: World) -> None:
        async with end(world.far, is_open=True, timeout_s=5.0) as punch:
            with pytest.raises(PunchFailed, match="nobody has asked"):
                await punch.meet()

    run(main)


def test_a_kept_path_outlives_the_binding() -> None:
    events: list[Event] = []

    async def main(world: World) -> None:
        async with end(world.homes[0], events.append, keepalive_s=15.0) as punch:
            await punch.meet([TransportAddress(FAR, PORT)])
            await asyncio.sleep(3_600.0)
            assert sum(isinstance(event, Answered) for event in events) == 1
            assert not punch.core.is_lost
            assert 235 <= punch.core.counters["sent"] <= 245

    run(main)


@pytest.mark.parametrize("lifetime_s", [10.0, 30.0, 77.0, 120.0])
def test_a_lifetime_is_measured(lifetime_s: float) -> None:
    events: list[Event] = []

    async def main(world: World) -> None:
        report = await measure_lifetime(world.homes[0], TransportAddress(FAR, PORT), on_event=events.append)
        assert report.answered.lifetime_s == pytest.approx(lifetime_s, abs=1.0)
        assert report.unanswered.lifetime_s == pytest.approx(lifetime_s, abs=1.0)
        assert report.one_way_refresh is True
        assert any(isinstance(event, SilenceProbed) for event in events)

    run(main, lifetime_s=lifetime_s)


def test_a_measurement_can_be_broken_off() -> None:
    """What it had open is closed: the same ports can be had again at once."""

    async def main(world: World) -> None:
        config = Config(port_range=(20_000, 20_080))
        for _ in range(3):
            measuring = measure_lifetime(world.homes[0], TransportAddress(FAR, PORT), config=config)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20.0):
                    await measuring

    run(main)


def test_a_range_with_too_few_ports_is_told() -> None:
    async def main(world: World) -> None:
        config = Config(port_range=(20_000, 20_010))
        with pytest.raises(PunchFailed, match="64 sockets are needed, and 8 could be opened"):
            await measure_lifetime(world.homes[0], TransportAddress(FAR, PORT), config=config)

    run(main)
