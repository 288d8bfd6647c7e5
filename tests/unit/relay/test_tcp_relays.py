"""Listening and connecting for TCP allocations: what is tried again, and what is not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import Stream, StreamListener
from relay.places import Places, Relaying
from relay.relays import MAX_TRIES
from relay.tcp_relays import TcpRelays
from relay.turn.server import Accounts, ClosePeer, ConnectPeer, Opening, OpenListeners, Refused, TurnOptions
from tests.unit.relay.turn.server_kit import PEER, RELAY_HOSTS, Client
from tests.unit.relay.turn.test_server_tcp import TCP, TcpCourt, allocated, connect

PORTS = (50_000, 50_999)


class Plug:
    """A stream or a listener that does nothing."""

    remote_address = PEER

    def __init__(self, local: TransportAddress) -> None:
        self.address = self.local_address = local
        self.is_open = True

    def write(self, data: bytes) -> None:
        raise AssertionError("nobody has anything to say")

    def close(self) -> None:
        self.is_open = False


class ScriptedHost:
    """Its calls have the outcomes that it is told; ``None``: they succeed.

    Attributes:
        locals: where was listened, or connected from.
    """

    def __init__(self, *outcomes: OSError | None) -> None:
        self._outcomes = list(outcomes)
        self.locals: list[TransportAddress] = []
        self.plugs: list[Plug] = []

    def now(self) -> float:
        return 0.0

    def _next(self, local: TransportAddress) -> Plug:
        self.locals.append(local)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome
        self.plugs.append(Plug(local))
        return self.plugs[-1]

    async def connect_tcp(
        self, remote: TransportAddress, listener: StreamListener, *, local: TransportAddress
    ) -> Stream:
        return self._next(local)

    async def listen_tcp(self, local: TransportAddress, accept: Callable[[Stream], StreamListener]) -> Plug:
        return self._next(local)


class Told:
    """What the core is told."""

    def __init__(self, host: ScriptedHost, court: TcpCourt, ports: tuple[int, int] = PORTS) -> None:
        self.court = court
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        relaying = Relaying(turn=TurnOptions(accounts=Accounts(realm="x")), hosts=(RELAY_HOSTS[4],), ports=ports)
        places = Places(relaying, list)
        self.relays = TcpRelays(host, places, Random(1), court.turn, self._command, lambda stream: None)  # type: ignore[arg-type]

    def _command(self, method: Callable[..., Any], *args: Any) -> Any:
        self.calls.append((method.__name__, args))
        return method(*args, now=self.court.now)

    async def obey(self, event: Event, turns: int = 1000) -> None:
        assert self.relays.obey(event)
        for _ in range(turns):
            await asyncio.sleep(0)


def opening(court: TcpCourt) -> Opening:
    court.deliver(Client(court).request(3, TCP))
    return court.openings.pop()


async def test_a_port_that_is_taken_is_none_for_a_relay() -> None:
    taken = OSError(errno.EADDRINUSE, "taken")
    host, court = ScriptedHost(taken, taken, None), TcpCourt(listens=False)
    told = Told(host, court)
    await told.obey(OpenListeners(opening=opening(court)))
    assert len(set(host.locals)) == 3 and all(PORTS[0] <= local.port <= PORTS[1] for local in host.locals)
    assert court.policy.relayed_tcp == {host.locals[-1]}
    told.relays.close_all()
    assert not host.plugs[0].is_open


async def test_where_all_ports_are_taken_there_is_an_end() -> None:
    host, court = ScriptedHost(OSError(errno.EADDRINUSE, "taken")), TcpCourt(listens=False)
    told = Told(host, court)
    await told.obey(OpenListeners(opening=opening(court)))
    ((name, (_, found)),) = told.calls
    assert name == "opened" and isinstance(found[4], Refused) and found[4].code == 508
    assert len(host.locals) == MAX_TRIES and court.service.allocations == 0


async def test_where_there_is_no_address_of_a_family_it_is_440() -> None:
    host, court = ScriptedHost(None), TcpCourt(listens=False)
    told = Told(host, court)
    made = opening(court)
    made.versions = (6,)
    await told.obey(OpenListeners(opening=made))
    assert told.calls[0][1][1][6].code == 440 and host.locals == []


async def test_silence_is_no_answer() -> None:
    """RFC 6062, 5.2: "at least 30 seconds": an attempt of the host's ends sooner, and is made again."""
    host, court = ScriptedHost(TimeoutError(), TimeoutError(), OSError(errno.ETIMEDOUT, "late"), None), TcpCourt()
    told = Told(host, court)
    connection = connect(court, allocated(court))
    await told.obey(ConnectPeer(connection=connection))
    assert host.locals == [connection.relayed] * 4
    assert [name for name, _ in told.calls] == ["connected"] and host.plugs[0].is_open


async def test_a_refusal_is_one() -> None:
    host, court = ScriptedHost(ConnectionRefusedError(errno.ECONNREFUSED, "no")), TcpCourt()
    told = Told(host, court)
    await told.obey(ConnectPeer(connection=connect(court, allocated(court))))
    assert [name for name, _ in told.calls] == ["failed"] and len(host.locals) == 1
    assert told.relays.counters == {"network errors": 1}


async def test_connecting_ends_when_the_core_says_so() -> None:
    host, court = ScriptedHost(TimeoutError()), TcpCourt()
    told = Told(host, court)
    connection = connect(court, allocated(court))
    await told.obey(ConnectPeer(connection=connection), turns=20)
    tries = len(host.locals)
    assert tries > 2
    await told.obey(ClosePeer(connection=connection))
    assert len(host.locals) <= tries + 1 and told.calls == [] and not told.relays._tasks


async def test_a_connection_that_comes_too_late_is_closed() -> None:
    host, court = ScriptedHost(None), TcpCourt()
    told = Told(host, court)
    connection = connect(court, allocated(court))
    court.turn.tcp.failed(connection, court.now)
    await told.obey(ConnectPeer(connection=connection))
    assert not host.plugs[0].is_open and not told.relays._links
