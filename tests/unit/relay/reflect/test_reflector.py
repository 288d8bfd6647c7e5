"""A reflector on a host in memory: addresses come and go, and there is no kernel that could answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from errno import EAGAIN
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramReceiver, DatagramSocket, SocketOptions
from iceagent.testing import MemoryHost, MemoryInternet
from relay.backend import KernelUnavailable
from relay.reflect.reflector import MAX_WAITING, Reflector
from relay.reflect.rules import ReflectLimits

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PORT = 4000
HERE, HERE_2, HERE_6 = "93.184.216.1", "93.184.216.2", "2606:2800:220:1::1"
ALICE, ALICE_6 = "93.184.217.1", "2606:2800:220:2::1"


class Client:
    """A socket of a host's, and what it heard."""

    def __init__(self, host: MemoryHost, address: str, port: int = 0) -> None:
        self.heard: list[tuple[bytes, tuple[str, int]]] = []
        self._socket = host.socket(TransportAddress(address, port), self, SocketOptions())

    async def ask(self, data: bytes, host: str, port: int = PORT) -> bytes | None:
        """The answer, which has to come from where the question went; ``None``: nothing came."""
        self.heard.clear()
        self._socket.send(data, (host, port))
        await asyncio.sleep(1)
        if not self.heard:
            return None
        ((answer, source),) = self.heard
        assert source == (host, port)
        return answer

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.heard.append((data, source))

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """Nobody listens there."""


@pytest.fixture
def server(iceagent_internet: MemoryInternet) -> MemoryHost:
    return iceagent_internet.host("server", [HERE, HERE_2, HERE_6])


@pytest.fixture
def alice(iceagent_internet: MemoryInternet) -> MemoryHost:
    return iceagent_internet.host("alice", [ALICE, ALICE_6])


def test_every_address_answers_from_itself(server: MemoryHost, alice: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        async with Reflector(server, PORT) as reflector:
            one, other = Client(alice, ALICE), Client(alice, ALICE_6)
            for size in (0, 1, 1200):
                assert await one.ask(bytes(size), HERE) == bytes(size)
                assert await one.ask(bytes(size), HERE_2) == bytes(size)
                assert await other.ask(bytes(size), HERE_6) == bytes(size)
            assert reflector.counters == {"answered": 9, "answered_bytes": 3603}
            assert (reflector.backend, reflector.reason) == ("userspace", "this host has no kernel of its own")
        assert reflector.addresses == ()
        assert reflector.counters["answered"] == 9
        assert await one.ask(b"x", HERE) is None

    iceagent_run(main())


class BurstSocket:
    """A socket that reads up to eight datagrams in a turn of the loop."""

    def __init__(self, address: TransportAddress, receiver: DatagramReceiver) -> None:
        self.address = address
        self.budget = 8
        self.receiver = receiver
        self.sent: list[list[bytes]] = []

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        self.sent.append([data])
        return 0

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        """The system takes no more than five."""
        self.sent.append(list(datagrams[:5]))
        return (len(datagrams), 0) if len(datagrams) <= 5 else (5, EAGAIN)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def bursts(server: MemoryHost, monkeypatch: pytest.MonkeyPatch) -> list[BurstSocket]:
    """The sockets that the server opens, of this kind."""
    opened: list[BurstSocket] = []

    def open_socket(local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> BurstSocket:
        opened.append(BurstSocket(local, receiver))
        return opened[-1]

    monkeypatch.setattr(server, "socket", open_socket)
    return opened


def test_what_one_source_sends_in_a_turn_is_answered_together(
    server: MemoryHost, bursts: list[BurstSocket], iceagent_run: Run
) -> None:
    async def main() -> None:
        async with Reflector(server, PORT, bind=[HERE], limits=ReflectLimits(per_source=1, burst=8)) as reflector:
            (sock,) = bursts
            for number in range(4):
                sock.receiver.datagram_received(sock, bytes([number]), (ALICE, 5000))
                sock.receiver.datagram_received(sock, bytes([number]), ("93.184.217.2", 5000))
            assert sock.sent == []
            await asyncio.sleep(0)
            assert sock.sent == [[b"\0", b"\1", b"\2", b"\3"]] * 2
            # Of eight that are allowed at once, four are left.
            for number in range(6):
                sock.receiver.datagram_received(sock, bytes([number]), (ALICE, 5000))
            await asyncio.sleep(0)
            assert sock.sent[2:] == [[b"\0", b"\1", b"\2", b"\3"]]
            for number in range(7):
                sock.receiver.datagram_received(sock, bytes([number]), ("93.184.217.3", 5000))
            await asyncio.sleep(0)
            assert [len(sent) for sent in sock.sent[3:]] == [5]
            assert reflector.counters == {"answered": 17, "answered_bytes": 17, "limited": 2, "unsent": 2}
            sock.receiver.datagram_received(sock, b"x", ("93.184.217.4", 5000))
        await asyncio.sleep(0)
        assert len(sock.sent) == 4 and reflector.counters["answered"] == 17

    iceagent_run(main())


def test_no_more_waits_than_there_is_room_for(server: MemoryHost, bursts: list[BurstSocket], iceagent_run: Run) -> None:
    async def main() -> None:
        async with Reflector(server, PORT, bind=[HERE]):
            (sock,) = bursts
            for number in range(MAX_WAITING):
                assert sock.sent == []
                sock.receiver.datagram_received(sock, b"x", (f"93.184.{number}.1", 5000))
            assert len(sock.sent) == MAX_WAITING

    iceagent_run(main())


def test_what_is_refused_is_counted(server: MemoryHost, alice: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        limits = ReflectLimits(per_source=1, burst=2)
        async with Reflector(server, PORT, backend="userspace", limits=limits) as reflector:
            assert reflector.reason is None
            assert await Client(alice, ALICE, PORT).ask(b"x", HERE) is None
            assert await Client(alice, ALICE, 1023).ask(b"x", HERE) is None
            own = Client(server, HERE_2)
            assert await own.ask(b"x", HERE) is None
            many = Client(alice, ALICE)
            for _ in range(5):
                many._socket.send(b"x", (HERE, PORT))
            await asyncio.sleep(0.5)
            assert len(many.heard) == 2
            assert reflector.counters == {
                "refused": 3,
                "refused: own port": 1,
                "refused: low port": 1,
                "refused: own address": 1,
                "limited": 3,
                "answered": 2,
                "answered_bytes": 2,
            }

    iceagent_run(main())


def test_addresses_come_and_go(server: MemoryHost, alice: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        changes: list[int] = []
        async with Reflector(server, PORT, on_change=lambda: changes.append(len(reflector.addresses))) as reflector:
            client = Client(alice, ALICE)
            assert await client.ask(b"x", "93.184.216.3") is None
            server.add_address("eth0", "93.184.216.3")
            assert await client.ask(b"x", "93.184.216.3") == b"x"
            server.remove_address("eth0", HERE_2)
            assert await client.ask(b"x", HERE_2) is None
            assert await client.ask(b"x", HERE) == b"x"
            count = len(reflector.addresses)
        assert changes == [count + 1, count]

    iceagent_run(main())


def test_it_may_be_limited_to_addresses_interfaces_and_ip_versions(
    server: MemoryHost, alice: MemoryHost, iceagent_run: Run
) -> None:
    async def hosts(**options: Any) -> list[str]:
        async with Reflector(server, PORT, **options) as reflector:
            return [address.host for address in reflector.addresses]

    async def main() -> None:
        server.add_interface("eth1", ["10.1.0.1"])
        assert set(await hosts()) == {"127.0.0.1", "::1", HERE, HERE_2, HERE_6, "10.1.0.1"}
        assert await hosts(interface="eth1") == ["10.1.0.1"]
        assert await hosts(interface="eth0", ipv4=False) == [HERE_6]
        assert set(await hosts(ipv6=False)) == {"127.0.0.1", HERE, HERE_2, "10.1.0.1"}
        assert await hosts(bind=[HERE_2, "2606:2800:0220:1::1"]) == [HERE_2, HERE_6]
        assert set(await hosts(bind=["::"])) == {"::1", HERE_6}
        assert set(await hosts(bind=["::", HERE])) == {"::1", HERE_6, HERE}
        with pytest.raises(OSError, match="there is no interface eth7; there are lo, eth0, eth1"):
            await hosts(interface="eth7")
        with pytest.raises(OSError, match="interface eth1 has no address to answer at"):
            await hosts(interface="eth1", ipv4=False)
        with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:4000 \(udp\)"):
            await hosts(bind=["192.0.2.1"])

    iceagent_run(main())


def test_a_free_port_is_the_same_on_every_address(server: MemoryHost, alice: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        async with Reflector(server, 0) as reflector:
            assert {address.port for address in reflector.addresses} == {reflector.port} != {0}
            assert await Client(alice, ALICE).ask(b"x", HERE_2, reflector.port) == b"x"

    iceagent_run(main())


def test_a_port_in_use_is_told_and_nothing_stays_open(server: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        Client(server, HERE_2, PORT)
        reflector = Reflector(server, PORT)
        with pytest.raises(OSError, match=rf"cannot listen on {HERE_2}:{PORT} \(udp\): the port is in use"):
            await reflector.__aenter__()
        assert reflector.addresses == ()
        Client(server, HERE, PORT)
        async with Reflector(server, PORT, bind=[HERE_6]):
            pass

    iceagent_run(main())


def test_a_broadcast_address_is_no_address_to_answer_at(server: MemoryHost, iceagent_run: Run) -> None:
    """Linux binds a socket to it; one datagram would be answered by every reflector of the network."""

    async def play() -> None:
        with pytest.raises(OSError, match="is a broadcast address"):
            await Reflector(server, PORT, bind=["93.184.216.255"]).__aenter__()

    iceagent_run(play())


def test_it_is_opened_once_and_closed_any_number_of_times(server: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        async with Reflector(server, PORT) as reflector:
            with pytest.raises(ValueError, match="open already"):
                await reflector.__aenter__()
        reflector.close()
        async with reflector:
            assert reflector.addresses

    iceagent_run(main())


def test_the_kernel_is_an_error_where_it_was_asked_for_and_is_not_there(server: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        reflector = Reflector(server, PORT, backend="nftables")
        with pytest.raises(KernelUnavailable, match="no kernel of its own"):
            await reflector.__aenter__()
        assert reflector.addresses == ()
        async with Reflector(server, PORT):
            pass

    iceagent_run(main())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"port": -1}, "port is -1, allowed are 0, for a free one, to 65535"),
        ({"port": 65536}, "port is 65536"),
        ({"port": "4000"}, "port is '4000'"),
        ({"port": True}, "port is True"),
        ({"backend": "ebpf"}, "backend is 'ebpf', allowed are auto, userspace, nftables"),
        ({"limits": 5}, "limits is of type int; ReflectLimits"),
        ({"interface": ""}, "interface is '', a name like eth0"),
        ({"interface": 2}, "interface is 2, a name like eth0"),
        ({"bind": "192.0.2.1"}, "several addresses are expected"),
        ({"bind": 5}, "several addresses are expected"),
        ({"bind": ["here"]}, "'here' is not an IP address"),
        ({"bind": [None]}, "None is not an IP address"),
        ({"bind": ["224.0.0.1"]}, "224.0.0.1 is a multicast or broadcast address"),
        ({"bind": ["255.255.255.255"]}, "multicast or broadcast"),
        ({"bind": ["::1"], "ipv6": False}, "::1 is of an IP version that is not to be used"),
        ({"ipv4": False, "ipv6": False}, "nothing is left to answer at"),
    ],
)
def test_bad_arguments_are_told(server: MemoryHost, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Reflector(server, **{"port": PORT, **options})
