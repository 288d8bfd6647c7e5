"""Relayed candidates, through real servers and real NATs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iceagent import (
    Agent,
    CandidateType,
    Config,
    ConnectFailed,
    IceServer,
    Proxy,
    RelayLost,
    RelayMoved,
    RelayRefused,
    ServerFailed,
    TurnCredentials,
)
from iceagent import (
    Path as IcePath,
)
from iceagent.events import Event, LocalCandidateFound
from iceagent.lab import Egress, Lab, Machine
from iceagent.lab.services import PROXY_PORT, coturn, tinyproxy
from tests.certificates import make_certificate

pytestmark = pytest.mark.natlab_needs("turnserver")

USERS = {"u": "pw"}
LIMIT_S = 10.0


def relay(machine: Machine, *urls: str, **options: Any) -> Config:
    """Through this server and no other way."""
    found = tuple(url.format(machine.address) for url in urls or ("turn:{}?transport=udp",))
    server = IceServer(urls=found, username="u", credential="pw")
    return Config(**{"servers": (server,), "relay_only": True, "ipv6": False, **options})


class Call:
    """Two agents that tell each other of everything, as soon as they know it."""

    def __init__(self, a: Agent, b: Agent) -> None:
        self.a, self.b = a, b
        self.events: list[tuple[str, Event]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def connect(self, limit_s: float = LIMIT_S) -> tuple[IcePath, IcePath]:
        for name, mine, other in (("a", self.a, self.b), ("b", self.b, self.a)):
            self._tasks.append(asyncio.create_task(self._listen(name, mine, other)))
        self.a.start_gathering()
        self.b.start_gathering()
        for mine, other in ((self.a, self.b), (self.b, self.a)):
            description = replace(mine.local_description, candidates=(), complete=False)
            other.set_remote_description(description)
        async with asyncio.timeout(limit_s):
            return await self.a.connect(), await self.b.connect()

    async def until(self, fact: Callable[[], bool]) -> None:
        """Until it is true; looked at with every event."""
        async with asyncio.timeout(LIMIT_S):
            while not fact():
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind: type[Any], name: str = "ab") -> list[Any]:
        """Events of a kind, of one side or both."""
        return [event for who, event in self.events if isinstance(event, kind) and who in name]

    async def talk(self, until: Callable[[], bool] = lambda: True) -> None:
        """Datagrams both ways, until that is so and both sides heard."""
        heard = {"a": 0, "b": 0}

        def count(name: str) -> Callable[[bytes, int], None]:
            def on_data(data: bytes, component: int) -> None:
                heard[name] += 1
                self._changed.set()

            return on_data

        self.a.set_data_handler(count("a"))
        self.b.set_data_handler(count("b"))
        started = dict(heard)
        async with asyncio.timeout(LIMIT_S):
            while not until() or any(heard[name] == started[name] for name in heard):
                if not until():
                    started = dict(heard)
                for agent in (self.a, self.b):
                    if agent.path() is not None:
                        agent.send(b"data")
                await asyncio.sleep(0.02)

    async def _listen(self, name: str, mine: Agent, other: Agent) -> None:
        async for event in mine.events():
            self.events.append((name, event))
            self._changed.set()
            if isinstance(event, LocalCandidateFound):
                other.add_remote_candidate(event.candidate)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def call(a: Machine, b: Machine, config: Config, other: Config | None = None) -> AsyncIterator[Call]:
    first = Agent(config, controlling=True, host=a.host)
    second = Agent(other or config, controlling=False, host=b.host)
    async with first, second:
        made = Call(first, second)
        try:
            yield made
        finally:
            await made.close()


def home(lab: Lab, kind: str, **options: Any) -> Machine:
    return lab.machine(behind=lab.router(kind, **options))


@pytest.fixture
def server(natlab: Lab) -> Machine:
    return natlab.machine("server")


# --- getting through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--mobility",)], ids=["plain", "mobility"])
@pytest.mark.parametrize("addresses", [1, 2])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_through_coturn_alone(natlab: Lab, options: tuple[str, ...], addresses: int, transport: str) -> None:
    server = natlab.machine("server", addresses=addresses)
    coturn(server, *options, users=USERS)
    config = relay(server, f"turn:{{}}?transport={transport}")
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), config) as made:
        paths = await made.connect()
        assert [path.kind for path in paths] == ["relay", "relay"]
        assert {path.local.type for path in paths} == {CandidateType.RELAYED}
        await made.talk()
        # Our addresses are nobody's business.
        assert {str(candidate.related_address) for candidate in made.a.local_candidates} == {"0.0.0.0:9"}
    # Given back.
    assert allocations(server) == 0


@pytest.mark.parametrize("urls", [("turn:{}:443",), ("turn:{}:443?transport=tcp",)])
async def test_where_only_tcp_443_passes(natlab: Lab, server: Machine, urls: tuple[str, ...]) -> None:
    coturn(server, users=USERS, port=443)
    config = relay(server, *urls, relay_only=False)
    async with call(home(natlab, "no-udp"), home(natlab, "no-udp"), config) as made:
        began = time.monotonic()
        paths = await made.connect()
        assert [path.kind for path in paths] == ["relay", "relay"]
        assert time.monotonic() - began < 5
        await made.talk()


async def test_over_tls_with_its_name(natlab: Lab, server: Machine, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server.lab")
    coturn(server, users=USERS, tls=(certificate, key, 443))
    trusting = ssl.create_default_context(cafile=str(certificate))
    config = relay(server, "turns:server.lab:443", ssl_context=trusting)
    async with call(home(natlab, "no-udp"), home(natlab, "no-udp"), config) as made:
        await made.connect()
        await made.talk()
    # Who does not know the authority does not get that far.
    async with call(home(natlab, "no-udp"), home(natlab, "no-udp"), replace(config, ssl_context=None)) as made:
        made.a.start_gathering()
        events = made.a.events()
        reason = await asyncio.wait_for(anext(e.reason async for e in events if isinstance(e, ServerFailed)), LIMIT_S)
        assert "certificate is not valid" in reason


@pytest.mark.natlab_needs("tinyproxy")
async def test_where_only_a_proxy_leads_out(natlab: Lab, server: Machine) -> None:
    coturn(server, users=USERS, port=443)
    routers = [natlab.router("symmetric", egress=Egress(udp_ports=(), tcp_ports=())) for _ in range(2)]
    for router in routers:
        tinyproxy(router)
    proxy = Proxy(host=routers[0].lan_address, port=PROXY_PORT)
    config = relay(server, "turn:{}:443?transport=tcp", proxy=proxy)
    async with call(natlab.machine(behind=routers[0]), natlab.machine(behind=routers[1]), config) as made:
        await made.connect()
        await made.talk()


async def test_ipv6_relays(natlab: Lab, server: Machine) -> None:
    (six,) = server.hosts_of(6)
    coturn(server, f"--listening-ip={six}", f"--relay-ip={six}", users=USERS)
    config = relay(server, f"turn:[{six}]?transport=udp", ipv4=False, ipv6=True)
    async with call(natlab.machine(), natlab.machine(), config) as made:
        await made.connect()
        assert {candidate.address.host for candidate in made.a.local_candidates} == {six}
        await made.talk()


@pytest.mark.parametrize(("kind_a", "kind_b"), [("full-cone", "symmetric"), ("port-restricted", "port-restricted")])
async def test_a_direct_path_is_preferred(natlab: Lab, server: Machine, kind_a: str, kind_b: str) -> None:
    coturn(server, users=USERS)
    config = relay(server, "stun:{}", "turn:{}", relay_only=False)
    async with call(home(natlab, kind_a), home(natlab, kind_b), config) as made:
        await made.connect()
        # What works first may be the relay.
        await made.until(lambda: all(path and path.kind == "direct" for path in (made.a.path(), made.b.path())))
        await made.talk()


async def test_an_agent_with_a_relay_and_one_that_has_none(natlab: Lab, server: Machine) -> None:
    coturn(server, users=USERS)
    config = relay(server, relay_only=False)
    async with call(home(natlab, "no-udp"), home(natlab, "symmetric"), config, Config(ipv6=False)) as made:
        with pytest.raises((ConnectFailed, TimeoutError)):
            await made.connect(1.0)
    # A relay lets in whom it was told of: the other side's outside address.
    config = relay(server, "turn:{}?transport=udp", relay_only=False)
    other = relay(server, "stun:{}", relay_only=False)
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), config, other) as made:
        paths = await made.connect()
        assert [path.kind for path in paths] == ["relay", "relay"]
        await made.talk()


# --- staying ---------------------------------------------------------------------------------------------------------


async def test_a_server_that_restarts(natlab: Lab, server: Machine) -> None:
    """Report 12: the relay is lost within 3 s, re-made, and the call goes on."""
    service = coturn(server, users=USERS)
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), relay(server)) as made:
        await made.connect()
        await made.talk()
        service.restart()
        began = time.monotonic()
        await made.talk(lambda: len(made.of(RelayLost, "a")) > 0 and len(made.of(RelayLost, "b")) > 0)
        assert time.monotonic() - began < LIMIT_S
        (lost, *_) = made.of(RelayLost, "a")
        assert "437" in lost.reason
        await made.talk()


async def test_a_machine_that_moves_keeps_its_relay(natlab: Lab, server: Machine) -> None:
    """RFC 8016: no other candidate, no signalling."""
    coturn(server, "--mobility", users=USERS)
    a, b = home(natlab, "symmetric"), home(natlab, "symmetric")
    async with call(a, b, relay(server)) as made:
        paths = await made.connect()
        await made.talk()
        before = len(made.of(LocalCandidateFound))
        a.roam(natlab.router("port-restricted"))
        await made.talk(lambda: len(made.of(RelayMoved, "a")) > 0)
        assert not made.of(RelayLost) and len(made.of(LocalCandidateFound)) == before
        path = made.a.path()
        assert path is not None and path.local.address == paths[0].local.address


async def test_a_machine_that_moves_without_mobility_gets_another(natlab: Lab, server: Machine) -> None:
    coturn(server, users=USERS)
    a, b = home(natlab, "symmetric"), home(natlab, "symmetric")
    async with call(a, b, relay(server)) as made:
        await made.connect()
        await made.talk()
        a.roam(natlab.router("port-restricted"))
        await made.talk(lambda: len(made.of(RelayLost, "a")) > 0)
        await made.talk()


# --- what servers say ------------------------------------------------------------------------------------------------


async def failures(machine: Machine, config: Config) -> list[str]:
    """What an agent is told of its servers."""
    async with Agent(config, controlling=True, host=machine.host) as agent:
        events = agent.events()
        await agent.gather()
    return [event.reason async for event in events if isinstance(event, ServerFailed)]


async def test_a_wrong_password_is_told_in_the_servers_words(natlab: Lab, server: Machine) -> None:
    coturn(server, users={"u": "another"})
    (reason,) = await failures(natlab.machine(), relay(server))
    assert "user name or password are wrong (it says: Unauthorized)" in reason


async def test_a_quota_is_told(natlab: Lab, server: Machine) -> None:
    coturn(server, "--user-quota=1", users=USERS)
    config = relay(server)
    async with Agent(config, controlling=True, host=natlab.machine().host) as first:
        assert len((await first.gather()).candidates) == 1
        (reason,) = await failures(natlab.machine(), config)
    assert "486" in reason


async def test_a_peer_that_is_refused_leaves_the_others_alone(natlab: Lab, server: Machine) -> None:
    """Report 14 (werift#667)."""
    coturn(server, "--denied-peer-ip=10.0.0.0-10.255.255.255", users=USERS)
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), relay(server)) as made:
        made.a.start_gathering()
        await made.connect()
        made.a.add_remote_candidate("candidate:1 1 udp 1 10.0.0.1 9 typ host")
        await made.until(lambda: bool(made.of(RelayRefused, "a")))
        (refused,) = made.of(RelayRefused, "a")
        assert refused.host == "10.0.0.1" and refused.reason.startswith("403")
        await made.talk()


async def test_a_redirection_is_followed(natlab: Lab, server: Machine) -> None:
    other = natlab.machine("other")
    coturn(other, users=USERS)
    coturn(server, f"--alternate-server={other.address}:3478", users=USERS)
    async with Agent(relay(server), controlling=True, host=natlab.machine().host) as agent:
        (candidate,) = (await agent.gather()).candidates
        assert candidate.address.host == other.address


async def test_a_dead_server_delays_nothing(natlab: Lab, server: Machine) -> None:
    dead = natlab.machine("dead")
    coturn(server, users=USERS)
    servers = (
        IceServer(urls=(f"turn:{dead.address}?transport=udp",), username="u", credential="pw"),
        IceServer(urls=(f"turn:{server.address}",), username="u", credential="pw"),
    )
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), relay(server, servers=servers)) as made:
        began = time.monotonic()
        await made.connect()
        assert time.monotonic() - began < 2.0


async def test_time_limited_credentials(natlab: Lab, server: Machine) -> None:
    """As coturn's ``use-auth-secret`` wants them, from the application's callback."""
    coturn(server, "--use-auth-secret", "--static-auth-secret=north")
    asked: list[str] = []

    async def credentials() -> TurnCredentials:
        username = f"{int(time.time()) + 600}:me"
        asked.append(username)
        digest = hmac.new(b"north", username.encode(), hashlib.sha1).digest()
        return TurnCredentials(username=username, password=base64.b64encode(digest).decode(), lifetime_s=1.0)

    renewing = IceServer(urls=(f"turn:{server.address}?transport=udp",), credentials=credentials)
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), relay(server, servers=(renewing,))) as made:
        await made.connect()
        # Others are there before the present ones end, and the allocation stays.
        await made.talk(lambda: len(asked) >= 4)
        assert not made.of(RelayLost)


async def test_an_application_without_credentials(natlab: Lab, server: Machine) -> None:
    coturn(server, users=USERS)

    async def credentials() -> TurnCredentials:
        raise KeyError("no service")

    broken = IceServer(urls=(f"turn:{server.address}",), credentials=credentials)
    (reason,) = await failures(natlab.machine(), relay(server, servers=(broken,)))
    assert "the application gave no credentials: KeyError" in reason


# --- relay only ------------------------------------------------------------------------------------------------------


async def test_relay_only_opens_no_other_socket(natlab: Lab, server: Machine) -> None:
    """No STUN query, no host socket that answers: there is one socket, and it talks to the TURN server."""
    coturn(server, users=USERS)
    machine = home(natlab, "full-cone")
    config = relay(server, "stun:{}", "turn:{}?transport=udp")
    async with Agent(config, controlling=True, host=machine.host) as agent:
        description = await agent.gather()
        assert [candidate.type for candidate in description.candidates] == [CandidateType.RELAYED]
        assert len(udp_sockets(machine)) == 1


def udp_sockets(machine: Machine) -> list[str]:
    """Lines of the kernel's table, without its head."""
    return machine.run(["cat", "/proc/net/udp"]).splitlines()[1:]


def allocations(server: Machine) -> int:
    """UDP sockets of coturn's on relay ports; it is given a moment to close them."""

    def count() -> int:
        ports = [int(line.split()[1].rpartition(":")[2], 16) for line in udp_sockets(server)]
        return sum(port >= 49152 for port in ports)

    server.wait_until(lambda: count() == 0, 2.0, "coturn holds an allocation")
    return count()
