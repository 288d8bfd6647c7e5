"""An agent of ours and one of another make, in a laboratory, that talk all the time: which way does whose data go?

The peers are held alike: :class:`Aioice` runs a connection in a thread inside its machine's network, :class:`Libnice` a
child process. Neither is told anything by ours once both are connected: signalling is frozen.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aioice

from iceagent import Agent, Config, IceServer
from iceagent.events import Event, SelectedPathChanged
from iceagent.lab import Lab, Machine
from iceagent.lab.services import serve
from iceagent.lab.session import run_inside
from iceagent.net.address import TransportAddress
from relay.server import STUN_PORT
from tests.interop.libnice import LibnicePeer

__all__ = ["INTERVAL_S", "Aioice", "Homes", "Libnice", "Peer", "Talk", "Wiretap", "talking"]

T = TypeVar("T")

INTERVAL_S = 0.05
"""Twenty datagrams a second, each way."""
CONNECT_LIMIT_S = 15.0
USER = ("lab", "lab")
# Where a datagram's payload begins, without IP options: IPv4, IPv6.
PAYLOAD_AT = (28, 48)
MAGIC_COOKIE = b"\x21\x12\xa4\x42"
# RFC 8489, 5: the bits of the method, without those of the class; and the method Binding.
METHOD_BITS, BINDING = 0xFEEF, 0x0001
# <linux/if_ether.h>
ETH_P_ALL = 0x0003


class Homes:
    """Two machines behind a router each, and a STUN and TURN server.

    Args:
        lab: where.
        name: unique in it.
        theirs: the kind of the other router; ours is port-restricted.
        lifetime_s: seconds that a binding of the other router lives unused.

    Attributes:
        ours: our agent's machine.
        theirs: the other one's.
        server: the server's address.
    """

    def __init__(self, lab: Lab, name: str, *, theirs: str = "port-restricted", lifetime_s: int = 30) -> None:
        self._routers = (
            lab.router(name=f"our-home-{name}"),
            lab.router(theirs, f"their-home-{name}", lifetime_s=lifetime_s),
        )
        self.ours, self.theirs = (lab.machine(behind=router) for router in self._routers)
        machine = lab.machine(f"server-{name}")
        serve(machine, "--user", ":".join(USER))
        self.server = TransportAddress(machine.address, STUN_PORT)
        self._blocked_at: int | None = None
        self._is_narrow = False

    def block(self, *, at_theirs: bool = False) -> None:
        """Nothing passes between the two homes any more; the server is reached as before.

        Args:
            at_theirs: their router drops it, instead of ours: then nothing that the peer sends opens its own NAT.
        """
        self._blocked_at = int(at_theirs)
        self._load()

    def unblock(self) -> None:
        """It does again."""
        self._blocked_at = None
        self._load()

    def narrow(self) -> None:
        """Of the server's machine, nobody reaches any port but the server's own: relayed addresses only from relayed
        ones.
        """
        self._is_narrow = True
        self._load()

    def _load(self) -> None:
        host, port = self.server
        narrow = [f"ip saddr {host} udp sport != {port} drop", f"ip daddr {host} udp dport != {port} drop"]
        for number, router in enumerate(self._routers):
            rules = narrow if self._is_narrow else []
            if number == self._blocked_at:
                other = self._routers[1 - number].address
                rules = [*rules, f"ip daddr {other} drop", f"ip saddr {other} drop"]
            router.load(extra="; ".join(rules))


class Peer(Protocol):
    """An agent of another make.

    Attributes:
        heard: when each datagram came, in order: (time, number).
    """

    heard: list[tuple[float, int]]

    @property
    def path(self) -> tuple[TransportAddress, TransportAddress] | None:
        """Where it sends: its own candidate or base, and ours."""

    async def describe(self) -> list[str]:
        """Gather; what is to be told to us, in lines of SDP."""

    async def connect(self, lines: list[str]) -> None:
        """Connect to whom these lines are of."""

    async def send(self, data: bytes) -> None:
        """Send a datagram over the path."""


class Libnice:
    """libnice, in a process inside a machine's network; for use in ``async with``."""

    def __init__(self, program: Path, machine: Machine, server: TransportAddress, **options: Any) -> None:
        self._start = partial(
            LibnicePeer.start,
            program,
            addresses=(),
            stun=server,
            turn=server,
            account=USER,
            prefix=("nsenter", f"--net={machine.namespace.path}"),
            **options,
        )
        self.heard: list[tuple[float, int]] = []

    async def __aenter__(self) -> Libnice:
        self.process = await self._start()
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await self.process.close()

    @property
    def path(self) -> tuple[TransportAddress, TransportAddress] | None:
        return self.process.selected

    async def describe(self) -> list[str]:
        return await self.process.local_lines()

    async def connect(self, lines: list[str]) -> None:
        await self.process.add_remote(lines)
        await self.process.wait_state("ready", CONNECT_LIMIT_S)

    async def send(self, data: bytes) -> None:
        await self.process.send(data)

    async def _listen(self) -> None:
        while True:
            number = int(await self.process.recv(timeout_s=3600.0))
            self.heard.append((time.monotonic(), number))


class Aioice:
    """aioice, in a thread inside a machine's network; for use in ``async with``."""

    def __init__(self, machine: Machine, server: TransportAddress, *, controlling: bool) -> None:
        self._machine = machine
        self._options: dict[str, Any] = {
            "ice_controlling": controlling,
            "stun_server": tuple(server),
            "turn_server": tuple(server),
            "turn_username": USER[0],
            "turn_password": USER[1],
            "use_ipv6": False,
        }
        self.heard: list[tuple[float, int]] = []

    async def __aenter__(self) -> Aioice:
        began: Future[None] = Future()
        self._thread = asyncio.wrap_future(run_inside(self._machine, lambda: self._run(began)))
        await asyncio.wrap_future(began)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        await self._thread

    @property
    def path(self) -> tuple[TransportAddress, TransportAddress] | None:
        pair = self.connection._nominated.get(1)
        if pair is None:
            return None
        return TransportAddress(*pair.local_addr), TransportAddress(*pair.remote_addr)

    async def describe(self) -> list[str]:
        await self._there(self.connection.gather_candidates())
        mine = self.connection
        return [
            f"a=ice-ufrag:{mine.local_username}",
            f"a=ice-pwd:{mine.local_password}",
            *(f"a=candidate:{candidate.to_sdp()}" for candidate in mine.local_candidates),
            "a=end-of-candidates",
        ]

    async def connect(self, lines: list[str]) -> None:
        await self._there(self._connect(dict(line.split(":", 1) for line in lines if ":" in line), lines))

    async def send(self, data: bytes) -> None:
        await self._there(self.connection.send(data))

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _run(self, began: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self.connection = aioice.Connection(**self._options)
        began.set_result(None)
        await self._ending.wait()
        await self.connection.close()

    async def _connect(self, attributes: dict[str, str], lines: list[str]) -> None:
        mine = self.connection
        mine.remote_username, mine.remote_password = attributes["a=ice-ufrag"], attributes["a=ice-pwd"]
        for line in lines:
            if line.startswith("a=candidate:"):
                await mine.add_remote_candidate(aioice.Candidate.from_sdp(line.removeprefix("a=candidate:")))
        await mine.add_remote_candidate(None)
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await mine.connect()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            try:
                number = int(await self.connection.recv())
            except ConnectionError:
                return
            self.heard.append((time.monotonic(), number))


class Wiretap:
    """What our machine sends: STUN messages, also those inside of what goes to a TURN server.

    Attributes:
        attributes: how many Binding requests, responses and indications had each attribute, by its type.
        relayed: how many of these messages went to a peer by way of our TURN server.
    """

    def __init__(self, machine: Machine) -> None:
        self.attributes: Counter[int] = Counter()
        self.relayed = 0
        self._sock = machine.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind((machine.device, ETH_P_ALL))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        data, (_, _, direction, *_) = self._sock.recvfrom(65_536)
        if direction == socket.PACKET_OUTGOING:
            at = data.find(MAGIC_COOKIE)
            while at >= 4:
                self._note(data[at - 4 :], is_relayed=at - 4 not in PAYLOAD_AT)
                at = data.find(MAGIC_COOKIE, at + 4)

    def _note(self, message: bytes, *, is_relayed: bool) -> None:
        kind, length = struct.unpack_from("!HH", message)
        if kind & METHOD_BITS != BINDING:
            return
        self.relayed += is_relayed
        at = 20
        while at + 4 <= min(20 + length, len(message)):
            attribute, size = struct.unpack_from("!HH", message, at)
            self.attributes[attribute] += 1
            at += 4 + (size + 3) // 4 * 4


class Talk:
    """Both sides.

    Attributes:
        agent: ours.
        peer: the other one.
        wiretap: what our machine sends.
        told: the events of ours, each with its time.
        heard: what ours heard: (time, number).
    """

    def __init__(self, homes: Homes, agent: Agent, peer: Peer, wiretap: Wiretap) -> None:
        self.agent = agent
        self.peer = peer
        self.wiretap = wiretap
        self.told: list[tuple[float, Event]] = []
        self.heard: list[tuple[float, int]] = []
        self._server = homes.server.host
        self._sent: dict[str, list[float]] = {"ours": [], "theirs": []}
        self._changed = asyncio.Event()
        agent.set_data_handler(lambda data, component: self.heard.append((time.monotonic(), int(data))))

    @property
    def our_path(self) -> str:
        """``direct`` or ``relay``: where ours sends."""
        path = self.agent.path()
        assert path is not None
        return path.kind

    @property
    def their_path(self) -> str:
        """The same of the peer."""
        path = self.peer.path
        assert path is not None
        return "relay" if self._server in (path[0].host, path[1].host) else "direct"

    @property
    def counts(self) -> Counter[str]:
        """How many datagrams of the peer have come to ours over each kind of path."""
        found: Counter[str] = Counter()
        for pair in self.agent.pairs():
            is_relayed = self._server in (pair.local.address.host, pair.remote.address.host)
            found["relay" if is_relayed else "direct"] += pair.packets_received
        return found

    def moves(self, since: float = 0.0) -> list[str]:
        """Where data of ours went, each time that it took another path since then."""
        found = [event for at, event in self.told if isinstance(event, SelectedPathChanged) and at >= since]
        return [event.new.kind if event.new else "nowhere" for event in found]

    def times_of(self, kind: type[Event], since: float = 0.0) -> list[float]:
        """When ours was told something of this kind."""
        return [at for at, event in self.told if isinstance(event, kind) and at >= since]

    def lost(self, of: str, before: float, since: float = 0.0) -> int:
        """How many that one side (``ours``, ``theirs``) sent between these times never came."""
        heard = {number for _, number in (self.peer.heard if of == "ours" else self.heard)}
        numbers = [number for number, at in enumerate(self._sent[of]) if since <= at <= before]
        return sum(number not in heard for number in numbers)

    @property
    def doubled(self) -> int:
        """How many came twice, on either side."""
        return sum(len(heard) - len({number for _, number in heard}) for heard in (self.heard, self.peer.heard))

    async def until(self, fact: Callable[[], bool], limit_s: float) -> float:
        """Until it is true; how long that took.

        Raises:
            AssertionError: it is not in so many seconds.
        """
        began = time.monotonic()
        while not fact():
            assert time.monotonic() < began + limit_s, f"not within {limit_s} s\n{self.story(began)}"
            await asyncio.sleep(INTERVAL_S / 2)
        return time.monotonic() - began

    def story(self, since: float) -> str:
        """All that was told since then, for a failing test."""
        rows = [f"{at - since:8.3f} {_words(event)}" for at, event in self.told if at >= since]
        return "\n".join([*rows, *(str(pair) for pair in self.agent.pairs()), f"peer: {self.peer.path}"])

    async def follow(self) -> None:
        """Note what ours is told."""
        async for event in self.agent.events():
            self.told.append((time.monotonic(), event))

    async def speak(self, of: str) -> None:
        """Say one number after the other."""
        times = self._sent[of]
        while True:
            data = b"%d" % len(times)
            times.append(time.monotonic())
            if of == "ours":
                self.agent.send(data)
            else:
                await self.peer.send(data)
            await asyncio.sleep(INTERVAL_S)


def _words(event: Event) -> str:
    if isinstance(event, SelectedPathChanged) and event.new is not None:
        return f"moved to {event.new.local.address} → {event.new.remote.address}: {event.reason}"
    reason = getattr(event, "reason", None)
    return str(event) if reason is None else f"{type(event).__name__}: {reason}"


@asynccontextmanager
async def talking(
    homes: Homes,
    peer: Aioice | Libnice,
    *,
    controlling: bool = True,
    tells: Callable[[str], bool] = lambda line: True,
    settle_s: float = 1.5,
) -> AsyncIterator[Talk]:
    """An agent of ours and this one have been talking for a while.

    Args:
        homes: where.
        peer: the other one; not entered yet.
        controlling: our role.
        tells: which lines of our description it is told.
        settle_s: how long they have talked.
    """
    urls = (f"turn:{homes.server}?transport=udp",)
    servers = (
        IceServer(urls=(f"stun:{homes.server}",)),
        IceServer(urls=urls, username=USER[0], credential=USER[1]),
    )
    agent = Agent(Config(servers=servers, portmap=False), controlling=controlling, host=homes.ours.host)
    async with agent, peer:
        wiretap = Wiretap(homes.ours)
        talk = Talk(homes, agent, peer, wiretap)
        tasks = [asyncio.create_task(talk.follow())]
        try:
            _, lines = await asyncio.gather(agent.gather(), peer.describe())
            agent.set_remote_description("\n".join(lines))
            told = [line for line in agent.local_description.to_sdp().splitlines() if tells(line)]
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await asyncio.gather(agent.connect(), peer.connect(told))
            tasks += [asyncio.create_task(talk.speak(of)) for of in ("ours", "theirs")]
            await asyncio.sleep(settle_s)
            yield talk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            wiretap.close()
