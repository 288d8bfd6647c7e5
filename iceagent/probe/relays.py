"""Which TURN servers relay for us, over which transport, and what do the others say?

Every URL is tried over every transport that it names (``turn:`` without one: UDP and TCP), all side by side, at one
address of each IP version. The first address that allocates is the row's; it is given back at once. A server that
sends us to another one (300) is followed. Through our own server on loopback a datagram is sent, too (``echo.py``).

Ways to one service hold an allocation each for a moment, and so does the agent that gathers beside: whoever is told
that this is too many (486, 508) is asked again, one after the other, when all the others have been given back.

The end comes with the deadline. Whoever was heard gets a goodbye then, and half a second to answer it, also after
Ctrl-C: a server that is asked every minute would else hold ten minutes of allocations.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import TracebackType

from iceagent.config import Config, IceServer
from iceagent.gather.bases import open_socket
from iceagent.gather.host import HostAddress
from iceagent.gather.relay_link import NO_ANSWER, RelayLink
from iceagent.gather.relay_race import Target, Transport
from iceagent.gather.servers import resolve_server
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import DatagramReceiver, DatagramSocket, Host, Interface, Proxy, Stream, StreamListener
from iceagent.net.proxy import ProxyRefused, from_environment
from iceagent.probe.echo import Echo, NoEcho
from iceagent.probe.report import RelayRow, RelayStatus
from iceagent.probe.sockets import source_for
from iceagent.probe.verdict import Observation, is_own
from relay.account import TurnCredentials
from relay.turn import (
    Allocated,
    AllocationOptions,
    AllocationRefused,
    AllocationReleased,
    AllocationState,
    LongTermAuth,
)
from relay.uri import ServerUri

__all__ = ["RelayInquiry"]

# A server that does not answer a goodbye is not waited for any longer.
GOODBYE_S = 0.5
# From one server to another; as an agent does it.
MAX_REDIRECTIONS = 4
ALPN = "stun.turn"
"""RFC 7443."""
STUN_ONLY = "it answers STUN, but not TURN: does it relay at all?"
# Before one that has too many allocations is asked again: coturn counts what was given back for a second more.
PAUSES_S = (0.0, 1.2)
CROWDED = frozenset({486, 508})
"""RFC 8656, 19: Allocation Quota Reached, Insufficient Capacity."""

# Of a row's attempts, the one that says most.
_WEIGHTS = {RelayStatus.NOT_TESTED: 0, RelayStatus.NO_ANSWER: 0, RelayStatus.REFUSED: 1, RelayStatus.OK: 2}

Answer = Allocated | AllocationRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A row of the report."""

    server: IceServer
    url: str
    transport: Transport | None  # None: DTLS

    def row(self, status: RelayStatus, reason: str = "") -> RelayRow:
        transport = "dtls" if self.transport is None else self.transport.value
        return RelayRow(server=self.url, transport=transport, status=status, reason=reason)


class RelayInquiry:
    """Asks TURN servers for a relayed address, once. An async context manager: its end waits for the goodbyes.

    Args:
        host: where we ask from.
        interfaces: its interfaces.
        config: which addresses may be used, and how sockets and streams are opened.
        timeout_s: seconds for everything but the goodbyes.
        rng: chooses ports, where the configuration has a range of them.
        system_rng: for transaction ids.
        tell: hears what is being done, a phrase for a person.

    Attributes:
        observations: where servers see us over UDP.
    """

    def __init__(
        self,
        host: Host,
        interfaces: Sequence[Interface],
        config: Config,
        *,
        timeout_s: float,
        rng: Random,
        system_rng: Random,
        tell: Callable[[str], None],
    ) -> None:
        self.host = host
        self.config = config
        self.rng = rng
        self.system_rng = system_rng
        self.observations: list[Observation] = []
        self._interfaces = interfaces
        self._timeout_s = timeout_s
        self._is_ours = False
        self._tell = tell
        self._rows: dict[_Way, RelayRow] = {}
        self._refusals: dict[_Way, int | None] = {}
        self._attempts: set[_Attempt] = set()
        self._changed = asyncio.Event()
        self._goodbye_ends_at = 0.0

    async def __aenter__(self) -> RelayInquiry:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end_goodbye()

    async def run(self, servers: Sequence[IceServer], *, are_ours: bool = False) -> None:
        """Ask all that are TURN servers; :attr:`rows` has the results, also where this was cancelled.

        Args:
            servers: who.
            are_ours: they are this process's own, on loopback. Then data has to go through, there is no proxy on the
                way, and what they see says nothing about the network.
        """
        self._is_ours = are_ours
        ways = dict.fromkeys(way for server in servers for way in _ways(server))
        self._rows = {way: way.row(RelayStatus.NO_ANSWER) for way in ways}
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*(self._examine(way) for way in ways))
        except TimeoutError:
            # What is still silent stays noted as such.
            pass
        finally:
            self._say_goodbye()

    async def run_again(self, *, have_others: bool) -> None:
        """Ask those once more that were refused because there were too many allocations, where one of them was ours:
        one after the other, and each has given its own back before the next one is asked. Whoever is silent until the
        timeout keeps its refusal.

        Args:
            have_others: this host had other allocations of theirs, which have been given back by now.
        """
        working = {way.server for way, row in self._rows.items() if row.status is RelayStatus.OK}
        crowded = [way for way in self._rows if self._is_crowded(way) and (have_others or way.server in working)]
        if not crowded:
            return
        await self._end_goodbye()
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        for way in crowded:
            for pause_s in PAUSES_S:
                if self._is_crowded(way):
                    await self._ask_again(way, pause_s, deadline)

    def _is_crowded(self, way: _Way) -> bool:
        return self._rows[way].status is RelayStatus.REFUSED and self._refusals.get(way) in CROWDED

    async def _ask_again(self, way: _Way, pause_s: float, deadline: float) -> None:
        refused = self._rows[way]
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(pause_s)
                await self._examine(way)
        except TimeoutError:
            pass
        finally:
            # A second silence says less than the refusal.
            if self._rows[way].status is RelayStatus.NO_ANSWER:
                self._rows[way] = refused
            self._goodbye_ends_at = 0.0
            self._say_goodbye()
        await self._end_goodbye()

    @property
    def rows(self) -> tuple[RelayRow, ...]:
        """One for each URL and transport, in the order of the servers; empty: there is no TURN server."""
        return tuple(self._rows.values())

    def note_stun(self, urls: Collection[str]) -> None:
        """These servers answered over UDP as STUN servers do: one that is silent as a TURN server may be none."""
        for way, row in self._rows.items():
            if row.status is RelayStatus.NO_ANSWER and row.reason == NO_ANSWER and way.transport is Transport.UDP:
                self._rows[way] = replace(row, reason=STUN_ONLY) if way.url in urls else row

    def forget(self, attempt: _Attempt) -> None:
        """Nothing more comes of it."""
        self._attempts.discard(attempt)
        self._changed.set()

    def _say_goodbye(self) -> None:
        """Release everything, once; whoever is slow to answer has half a second from now."""
        if not self._goodbye_ends_at:
            self._goodbye_ends_at = asyncio.get_running_loop().time() + GOODBYE_S
        for attempt in list(self._attempts):
            attempt.release()

    async def _end_goodbye(self) -> None:
        """Wait for the answers to the goodbyes, and close what is left."""
        self._say_goodbye()
        try:
            async with asyncio.timeout_at(self._goodbye_ends_at):
                while self._attempts:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            for attempt in list(self._attempts):
                attempt.close()

    # --- one row -------------------------------------------------------------------------------------------------

    async def _examine(self, way: _Way) -> None:
        credentials = _credentials(way.server)
        if way.transport is None:
            self._rows[way] = way.row(RelayStatus.REFUSED, "TURN over DTLS is not supported")
            return
        self._rows[way] = way.row(RelayStatus.NO_ANSWER, f"its name did not resolve within {self._timeout_s:g} s")
        uri = ServerUri.parse(way.url)
        try:
            # Whether they can be sent at all.
            LongTermAuth(credentials)
            proxy = self._proxy_for(way, uri)
            addresses = await resolve_server(self.host, uri, "udp" if way.transport is Transport.UDP else "tcp")
        except ValueError as error:
            self._rows[way] = way.row(RelayStatus.NOT_TESTED, str(error))
            return
        except OSError as error:
            reason = f"its name does not resolve ({error.strerror or error})"
            self._rows[way] = way.row(RelayStatus.NO_ANSWER, reason)
            return
        found = [self._attempt_at(way, uri, addresses, version, credentials, proxy) for version in (4, 6)]
        attempts = [attempt for attempt in found if attempt is not None]
        if attempts:
            self._tell(f"asking {way.url} over {way.transport.value.upper()}")
            self._rows[way] = way.row(RelayStatus.NO_ANSWER, NO_ANSWER)
            await self._race(way, attempts)

    def _proxy_for(self, way: _Way, uri: ServerUri) -> Proxy | None:
        if self._is_ours or way.transport is Transport.UDP:
            return None
        return self.config.proxy or from_environment(os.environ, uri.host)

    def _attempt_at(
        self,
        way: _Way,
        uri: ServerUri,
        addresses: Sequence[TransportAddress],
        version: int,
        credentials: TurnCredentials | None,
        proxy: Proxy | None,
    ) -> _Attempt | None:
        """The server's first address of an IP version; ``None``, and a note, where it cannot be asked."""
        address = next((each for each in addresses if each.version == version), None)
        if address is None or way.transport is None:
            return None
        is_wanted = self.config.ipv6 if version == 6 else self.config.ipv4
        if not is_wanted:
            self._rows[way] = way.row(RelayStatus.NOT_TESTED, f"IPv{version} is switched off")
            return None
        place = self.place_for(address)
        if place is None and proxy is None:
            self._rows[way] = way.row(RelayStatus.NOT_TESTED, f"this host has no IPv{version} route to it")
            return None
        target = Target(url=way.url, transport=way.transport, address=address, name=uri.host)
        return _Attempt(self, target, place, credentials, proxy)

    async def _race(self, way: _Way, attempts: Sequence[_Attempt]) -> None:
        """Until one of them has a relayed address, or none will."""
        tasks = [asyncio.ensure_future(self._follow(way, attempt)) for attempt in attempts]
        try:
            for each in asyncio.as_completed(tasks):
                if await each:
                    return
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, way: _Way, attempt: _Attempt) -> bool:
        """Ask, and go where it sends us; whether there is a relayed address."""
        visited = {attempt.target.address}
        while True:
            row, answer = await self._ask(way, attempt)
            self._refusals[way] = answer.code if isinstance(answer, AllocationRefused) else None
            if _WEIGHTS[row.status] >= _WEIGHTS[self._rows[way].status]:
                self._rows[way] = row
            alternate = answer.alternate if isinstance(answer, AllocationRefused) else None
            if answer is None or alternate is None or alternate in visited or len(visited) > MAX_REDIRECTIONS:
                return row.status is RelayStatus.OK
            visited.add(alternate)
            name = answer.domain if isinstance(answer, AllocationRefused) and answer.domain else attempt.target.name
            attempt = attempt.elsewhere(replace(attempt.target, address=alternate, name=name))

    async def _ask(self, way: _Way, attempt: _Attempt) -> tuple[RelayRow, Answer | None]:
        self._attempts.add(attempt)
        try:
            attempt.start()
            answer = await attempt.answer
            if isinstance(answer, AllocationRefused):
                return attempt.refusal(way, answer), answer
            row = _ok(way, answer)
            if self._is_ours:
                return await self._send_through(way, row, attempt), answer
            self._observe(attempt, answer)
            return row, answer
        except OSError as error:
            return way.row(RelayStatus.NOT_TESTED, f"no socket ({error.strerror or error})"), None
        except asyncio.CancelledError:
            if attempt.answer.cancelled() and attempt.is_connected and self._rows[way].status is RelayStatus.NO_ANSWER:
                self._rows[way] = way.row(RelayStatus.NO_ANSWER, "it takes the connection, but does not answer")
            raise
        finally:
            attempt.release()

    async def _send_through(self, way: _Way, row: RelayRow, attempt: _Attempt) -> RelayRow:
        """Whether a datagram comes back through every relayed address: the row says so."""
        # If that is interrupted, it did not.
        self._rows[way] = replace(row, status=RelayStatus.NO_ANSWER, reason="no datagram came through in time")
        try:
            rtts_s = [await attempt.echo(address) for address in row.relayed]
        except NoEcho as error:
            return replace(row, status=error.status, reason=str(error))
        return replace(row, data_rtt_ms=rtts_s[0] * 1000)

    def _observe(self, attempt: _Attempt, answer: Allocated) -> None:
        base, target = attempt.base, attempt.target
        if base is not None and target.transport is Transport.UDP:
            rtt_ms = None if answer.rtt_s is None else answer.rtt_s * 1000
            seen = Observation(base=base, server=target.address, uri=target.url, mapped=answer.mapped, rtt_ms=rtt_ms)
            self.observations.append(seen)

    def place_for(self, server: TransportAddress) -> HostAddress | None:
        """The local address to ask a server from."""
        is_outside = not is_own(server.host, self._interfaces)
        return source_for(self.host, self._interfaces, self.config, server, is_outside=is_outside)


class _Attempt:
    """One address of one row: a link, until what it has is given back.

    Attributes:
        answer: what the server said.
    """

    def __init__(
        self,
        owner: RelayInquiry,
        target: Target,
        place: HostAddress | None,
        credentials: TurnCredentials | None,
        proxy: Proxy | None,
    ) -> None:
        self.target = target
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._place = place
        self._credentials = credentials
        self._proxy = proxy
        self._is_heard = False
        self._error: OSError | None = None
        self._echo: Echo | None = None
        config = owner.config
        families = tuple(version for version, wanted in ((4, config.ipv4), (6, config.ipv6)) if wanted)
        self._link = RelayLink(
            0,
            target,
            host=owner.host,
            open_socket=self._open_socket,
            connect=self._connect,
            credentials=credentials,
            system_rng=owner.system_rng,
            options=AllocationOptions(families=families, rto_s=config.rto_s),
            on_event=self._on_event,
            on_heard=self._on_heard,
        )

    def elsewhere(self, target: Target) -> _Attempt:
        """The same at another server."""
        return _Attempt(self._owner, target, self._owner.place_for(target.address), self._credentials, self._proxy)

    def start(self) -> None:
        """Ask.

        Raises:
            OSError: no socket can be opened.
        """
        self._link.start()

    async def echo(self, relayed: TransportAddress) -> float:
        """Send a datagram through; returns seconds.

        Raises:
            NoEcho: it did not come back.
        """
        self._echo = Echo(self._link, relayed, self._owner.host, self._owner.system_rng)
        return await self._echo.run()

    def release(self) -> None:
        """Give back what there is or may come; idempotent.

        Of a server that was not heard, nothing can come: it has not even asked for credentials.
        """
        allocation = self._link.allocation
        if allocation is None or not self._is_heard or allocation.state is AllocationState.OVER:
            self.close()
        else:
            self._link.command(allocation.release)

    def close(self) -> None:
        """At once; idempotent."""
        self._link.close()
        self._owner.forget(self)

    def refusal(self, way: _Way, answer: AllocationRefused) -> RelayRow:
        """Who refused what, if anybody did?"""
        is_answered = answer.code is not None or self._is_heard or isinstance(self._error, ssl.SSLError | ProxyRefused)
        return way.row(RelayStatus.REFUSED if is_answered else RelayStatus.NO_ANSWER, _words(answer))

    @property
    def base(self) -> TransportAddress | None:
        return self._link.base

    @property
    def is_connected(self) -> bool:
        """Whether there is a stream."""
        return self._link.is_stream and self._link.allocation is not None

    def _open_socket(self, receiver: DatagramReceiver) -> DatagramSocket:
        if self._place is None:
            raise OSError("there is no route to it")
        return open_socket(self._owner.host, self._place, receiver, self._owner.config, self._owner.rng)

    async def _connect(self, link: StreamListener) -> Stream:
        is_direct = self._proxy is None and self._place is not None
        try:
            return await self._owner.host.connect_tcp(
                self.target.address,
                link,
                local=TransportAddress(self._place.host, 0) if is_direct and self._place is not None else None,
                tls_server_name=self.target.name if self.target.transport is Transport.TLS else None,
                alpn=(ALPN,),
                proxy=self._proxy,
            )
        except OSError as error:
            self._error = error
            raise

    def _on_event(self, link: object, event: Event) -> None:
        if isinstance(event, Allocated | AllocationRefused):
            if not self.answer.done():
                self.answer.set_result(event)
        elif isinstance(event, AllocationReleased):
            self.close()
        elif self._echo is not None:
            self._echo.on_event(event)

    def _on_heard(self, link: object) -> None:
        self._is_heard = True


def _ways(server: IceServer) -> list[_Way]:
    found: list[_Way] = []
    for url in server.urls:
        uri = ServerUri.parse(url)
        transports: tuple[Transport | None, ...] = ()
        if uri.is_turn and uri.is_secure:
            transports = (None,) if uri.transport == "udp" else (Transport.TLS,)
        elif uri.is_turn:
            transports = (Transport.UDP, Transport.TCP) if uri.transport is None else (Transport(uri.transport),)
        found += [_Way(server=server, url=url, transport=transport) for transport in transports]
    return found


def _credentials(server: IceServer) -> TurnCredentials | None:
    if server.username is None or server.credential is None:
        return None
    return TurnCredentials(username=server.username, password=server.credential)


def _ok(way: _Way, answer: Allocated) -> RelayRow:
    reason = f"no address of the other family: {answer.refused}" if answer.refused else ""
    rtt_ms = None if answer.rtt_s is None else answer.rtt_s * 1000
    relayed = tuple(sorted(answer.relayed, key=lambda address: address.version))
    return replace(way.row(RelayStatus.OK, reason), rtt_ms=rtt_ms, relayed=relayed, mobility=answer.is_mobile)


def _words(answer: AllocationRefused) -> str:
    sent_to = "" if answer.alternate is None else f" (to {answer.alternate})"
    return f"{'' if answer.code is None else f'{answer.code} '}{answer.reason}{sent_to}"
