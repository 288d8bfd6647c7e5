"""How do relayed candidates come about, and how do they stay?

The shell around ``relay_race.py`` (who is asked when) and ``relay_link.py`` (how). For every entry of
``Config.servers`` with TURN URLs, and every component, one allocation is kept: made, followed when our address changes
(RFC 8016 where the server can), made again when it is lost. Names and credentials are asked for side by side with
everything else; a dead server delays nothing.

Sockets to servers stand on the addresses that the agent gathers on: the one that the routes choose, if it is among
them, or another one of the server's family.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol
from weakref import WeakKeyDictionary

from iceagent.config import Config, IceServer
from iceagent.events import RelayLost, RelayMoved, RelayRefused, RelaySilent, ServerFailed
from iceagent.gather.bases import open_socket
from iceagent.gather.complaints import Complaints
from iceagent.gather.diagnosis import Diagnosed, of_relay
from iceagent.gather.host import HostAddress
from iceagent.gather.relay_account import NoCredentials, credentials_of, targets_of
from iceagent.gather.relay_link import NO_ANSWER, RelayedBase, RelayedSocket, RelayLink
from iceagent.gather.relay_race import Abandon, Attempt, GaveUp, RelayRace, RenewCredentials, Target, Transport
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Event
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramReceiver, DatagramSocket, Host, Stream
from iceagent.net.proxy import from_environment
from relay.account import TurnCredentials
from relay.turn import (
    Allocated,
    AllocationConfirmed,
    AllocationLost,
    AllocationMoved,
    AllocationOptions,
    AllocationRefused,
    AllocationReleased,
    AllocationState,
    PeerData,
    PeerRefused,
    PeerUnreachable,
    ServerSilent,
)
from relay.uri import ServerUri

__all__ = ["Relayed", "RelayedAddress"]

# A server that does not answer a goodbye is not waited for any longer.
GOODBYE_S = 0.5
# An application that gave no credentials is asked again after this share of it (``relay_race.py``).
CREDENTIALS_RETRY_S = 30.0
# Of a peer's candidates; a server may refuse the 1,025th permission.
MAX_HOSTS = 256
ALPN = "stun.turn"
"""RFC 7443."""
# Servers.
MAX_REMEMBERED = 100

# What all agents of a host know: servers that forbid mobility, in the order they said so.
_immobile: WeakKeyDictionary[Host, dict[TransportAddress, None]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedAddress:
    """A relayed address of ours.

    Attributes:
        socket: sends and is known by it.
        component: 1 … 256.
        place: the local address that the server is reached from.
        url: the server's URI.
        server: its address.
        mapped: where it sees us.
        again: so many were there before it, of that server and at that host.
        protocol: ``udp`` or ``tcp``, between us and the server.
    """

    socket: RelayedSocket
    component: int
    place: HostAddress
    url: str
    server: TransportAddress
    mapped: TransportAddress
    again: int
    protocol: str


class RelayListener(Protocol):
    """Who opens and closes the bases of relayed addresses: the gathering."""

    def relay_opened(self, address: RelayedAddress) -> RelayedBase:
        """There is one; what is sent to it goes to the base that is returned."""

    def has_base(self, address: TransportAddress) -> bool:
        """Whether there is a base at this address already."""

    def relay_closed(self, address: TransportAddress) -> None:
        """It is gone."""

    def relay_link(self, address: TransportAddress, *, is_up: bool) -> None:
        """The interface that its server is reached through has lost its carrier, or has it again."""

    def relay_error(self, address: TransportAddress, peer: TransportAddress) -> None:
        """What it sent to a peer came back as an ICMP error."""


class Relayed:
    """All allocations of an agent.

    Args:
        listener: see there.
        tell: called with events for the application.
        diagnosed: called with what a server said about a path in doubt.
        changed: called when ``is_done`` may have changed.

    Raises:
        BadUri: a server's URI is wrong.
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        rng: Random,
        system_rng: Random,
        *,
        listener: RelayListener,
        tell: Callable[[Event], None],
        diagnosed: Callable[[Diagnosed], None],
        changed: Callable[[], None],
    ) -> None:
        self.config = config
        self.host = host
        self.rng = rng
        self.system_rng = system_rng
        self.listener = listener
        self.tell = tell
        self.complaints = Complaints(tell)
        self.diagnosed = diagnosed
        self.answered_at = float("-inf")
        self.changed = changed
        self.places: dict[str, HostAddress] = {}
        self.dormant: frozenset[str] = frozenset()
        self.hosts: frozenset[str] = frozenset()
        self.is_closed = False
        self.immobile = _immobile.setdefault(host, {})
        self._relays = [
            _Relay(self, server, component)
            for server in config.servers
            if any(ServerUri.parse(url).is_turn for url in server.urls)
            for component in range(1, config.components + 1)
        ]

    @property
    def is_done(self) -> bool:
        """Nothing is being waited for."""
        return not any(relay.is_pending for relay in self._relays)

    def use(self, places: Sequence[HostAddress], dormant: Collection[str] = ()) -> None:
        """These are our local addresses now; ``dormant``: of interfaces that have lost their carrier, and may have it
        again in a moment.
        """
        self.places = {place.host: place for place in places}
        self.dormant = frozenset(dormant)
        for relay in self._relays:
            relay.on_places()

    def permit(self, hosts: Sequence[str]) -> None:
        """The peer's candidates are at these IP addresses: they may send to our relayed ones."""
        self.hosts = frozenset(hosts[:MAX_HOSTS])
        for relay in self._relays:
            relay.permit()

    def verify(self, doubted: TransportAddress | None) -> None:
        """Ask all servers at once whether they know us still.

        Args:
            doubted: the relayed address that a path in doubt begins at: what its server says is told; ``None``: none.
        """
        for relay in self._relays:
            relay.verify(doubted)

    def note_sleep(self, seconds: float) -> None:
        """We were suspended: servers counted on."""
        for relay in self._relays:
            relay.note_sleep(seconds)

    def tell_silent(self) -> None:
        """Gathering ends: name those that are still waited for. An answer may come later."""
        for relay in self._relays:
            relay.tell_silent()

    def begin_again(self) -> None:
        """ICE restarts: servers that gave nothing are asked anew."""
        for relay in self._relays:
            relay.begin_again()

    async def give_back(self) -> None:
        """Release every allocation; half a second at most."""
        self.is_closed = True
        try:
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*(relay.give_back() for relay in self._relays))
        except TimeoutError:
            pass
        finally:
            self.close()

    def remember_immobile(self, server: TransportAddress) -> None:
        """It forbids mobility: RFC 8016, 3.1.4, "SHOULD NOT retry"."""
        if server not in self.immobile and len(self.immobile) >= MAX_REMEMBERED:
            self.immobile.pop(next(iter(self.immobile)))
        self.immobile[server] = None

    def close(self) -> None:
        """Stop everything at once; idempotent."""
        self.is_closed = True
        for relay in self._relays:
            relay.close()

    def place_for(self, server: TransportAddress) -> HostAddress:
        """The local address to reach a server from.

        Raises:
            OSError: there is none of its family.
        """
        preferred = self.places.get(self.host.source_host(server) or "")
        is_loopback = server.ip.is_loopback
        fitting = [
            place
            for place in self.places.values()
            if (":" in place.host) == (server.version == 6) and ip_address(place.host).is_loopback == is_loopback
        ]
        if preferred is not None and preferred in fitting:
            return preferred
        if not fitting:
            raise OSError(f"there is no local IPv{server.version} address for it")
        return fitting[0]


class _Relay:
    """One allocation that is kept: of one entry of the configuration, for one component."""

    def __init__(self, owner: Relayed, server: IceServer, component: int) -> None:
        self._owner = owner
        self._server = server
        self._component = component
        self._uris = [(url, uri) for url in server.urls if (uri := ServerUri.parse(url)).is_turn]
        self._race = RelayRace()
        self._driver = Driver(self._race, owner.host, lambda transmit: 0, self._on_race)
        self._links: dict[int, RelayLink] = {}
        self._places: dict[int, HostAddress] = {}
        self._relayed: dict[int, tuple[TransportAddress, ...]] = {}
        self._credentials: TurnCredentials | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # How many there were, by host of the relayed address and server.
        self._made: dict[tuple[str, TransportAddress], int] = {}
        # What is waited for before anybody can be asked.
        self._missing = ""
        # Those whose interface is down.
        self._asleep: set[int] = set()
        self._has_begun = False
        self._is_stopped = False
        self._emptied: asyncio.Event | None = None

    @property
    def is_pending(self) -> bool:
        """Whether its first answer is still to come."""
        return not self._has_begun or (self._race.winner is None and (bool(self._tasks) or self._race.is_open))

    def on_places(self) -> None:
        """Local addresses came or went."""
        if not self._has_begun:
            self._has_begun = True
            self._start(self._begin())
            return
        for number, place in list(self._places.items()):
            now = self._owner.places.get(place.host)
            if now is not None and now.index == place.index:
                self._wake(self._links[number])
            elif place.host in self._owner.dormant and self._may_sleep(self._links[number]):
                self._put_to_sleep(self._links[number])
            else:
                self._leave(self._links[number])
        self.begin_again()

    def tell_silent(self) -> None:
        """Whoever has not answered so far."""
        if not self.is_pending:
            return
        if self._tasks:
            self._complain(self._uris[0][0], self._missing, about="so far")
        for link in self._links.values():
            words = "no relayed address so far" if link.is_heard else "no response so far"
            # When its time is over, that is no news.
            self._complain_of(link, words, gist=NO_ANSWER)

    def begin_again(self) -> None:
        """Ask anew, if nothing is there."""
        if not self._has_begun or self._tasks:
            return
        if self._race.has_targets:
            self._tell_race(self._race.begin)
        else:
            # No name was resolved, or there were no credentials.
            self._start(self._begin())

    def permit(self) -> None:
        """The peer's hosts are others now."""
        for link in self._links.values():
            if link.allocation is not None:
                link.command(link.allocation.permit, self._owner.hosts)

    def verify(self, doubted: TransportAddress | None) -> None:
        """See :meth:`Relayed.verify`."""
        for link in list(self._links.values()):
            if link.allocation is not None and link.command(link.allocation.verify) and doubted in link.bases:
                link.doubted = doubted

    def note_sleep(self, seconds: float) -> None:
        """See :meth:`Relayed.note_sleep`."""
        for link in list(self._links.values()):
            if link.allocation is not None:
                link.command(link.allocation.note_sleep, seconds)

    async def give_back(self) -> None:
        """Release what there is, and wait for that."""
        self._stop()
        for link in list(self._links.values()):
            self._release(link)
        while self._links:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    def close(self) -> None:
        """At once."""
        self._stop()
        for link in list(self._links.values()):
            self._forget(link)

    # --- who is asked --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._missing = "the application has given no credentials so far"
        if not await self._ask_for_credentials():
            return
        self._missing = "its name has not resolved so far"
        owner = self._owner
        targets = await asyncio.gather(
            *(targets_of(url, uri, owner.host, owner.config, self._on_no_target) for url, uri in self._uris)
        )
        # In one go, and in the order of the configuration.
        self._tell_race(self._race.add_targets, [target for found in targets for target in found])
        self._tell_race(self._race.begin)

    async def _ask_for_credentials(self) -> bool:
        try:
            self._credentials = await credentials_of(self._server)
        except NoCredentials as error:
            self._complain(self._uris[0][0], str(error), about="credentials")
            self._tell_race(self._race.given_credentials, CREDENTIALS_RETRY_S)
            return False
        self._owner.complaints.forget(self._uris[0][0], "credentials")
        if self._server.credentials is not None and self._credentials is not None:
            self._tell_race(self._race.given_credentials, self._credentials.lifetime_s)
        return True

    async def _renew_credentials(self) -> None:
        if not self._race.has_targets:
            await self._begin()
        elif await self._ask_for_credentials() and self._credentials is not None:
            for link in self._links.values():
                if link.allocation is not None:
                    link.command(link.allocation.use, self._credentials)
            self._tell_race(self._race.begin)

    def _on_race(self, event: Event) -> None:
        if isinstance(event, Attempt):
            self._try(event.number, event.target, is_brief=event.is_brief)
        elif isinstance(event, Abandon):
            link = self._links.get(event.number)
            if link is not None:
                self._tell_lost(link, "its server is silent, and another way was found")
                self._release(link)
        elif isinstance(event, RenewCredentials):
            self._start(self._renew_credentials())
        elif isinstance(event, GaveUp):
            self._owner.changed()

    def _try(self, number: int, target: Target, *, is_brief: bool) -> None:
        config = self._owner.config
        families = [version for version, wanted in ((4, config.ipv4), (6, config.ipv6)) if wanted]
        link = self._links[number] = RelayLink(
            number,
            target,
            host=self._owner.host,
            open_socket=lambda receiver: self._open_socket(number, receiver),
            connect=lambda listener: self._connect(number, listener),
            credentials=self._credentials,
            system_rng=self._owner.system_rng,
            options=AllocationOptions(
                families=tuple(families),
                rto_s=config.rto_s,
                mobility=target.address not in self._owner.immobile,
                is_brief=is_brief,
            ),
            on_event=self._on_event,
            on_heard=self._on_heard,
        )
        try:
            self._places[number] = self._owner.place_for(target.address)
            link.start()
        except OSError as error:
            self._on_event(link, AllocationRefused(code=None, reason=error.strerror or str(error)))
        except ValueError as error:
            # Credentials that cannot be sent do not become better by themselves.
            self._on_event(link, AllocationRefused(code=None, reason=str(error), wait_s=None))

    def _open_socket(self, number: int, receiver: DatagramReceiver) -> DatagramSocket:
        owner = self._owner
        return open_socket(owner.host, self._places[number], receiver, owner.config, owner.rng)

    async def _connect(self, number: int, link: RelayLink) -> Stream:
        target = link.target
        proxy = self._owner.config.proxy or from_environment(os.environ, target.name)
        local = None if proxy is not None else TransportAddress(self._places[number].host, 0)
        return await self._owner.host.connect_tcp(
            target.address,
            link,
            local=local,
            tls_server_name=target.name if target.transport is Transport.TLS else None,
            ssl_context=self._owner.config.ssl_context,
            alpn=(ALPN,),
            proxy=proxy,
        )

    # --- what becomes of it --------------------------------------------------------------------------------------

    def _on_heard(self, link: RelayLink) -> None:
        self._tell_race(self._race.heard, link.number)

    def _tell_race(self, method: Callable[..., None], *args: object, **options: object) -> None:
        if not self._is_stopped:
            self._driver.command(method, *args, **options)

    def _on_event(self, link: RelayLink, event: Event) -> None:
        if link.number not in self._links:
            return
        if isinstance(event, PeerData):
            base = link.bases.get(event.relayed)
            if base is not None:
                base.datagram_received(RelayedSocket(link, event.relayed), event.data, event.peer)
        elif isinstance(event, Allocated):
            self._on_allocated(link, event)
        elif isinstance(event, AllocationRefused):
            self._forget(link)
            self._refuse(link, event)
        elif isinstance(event, AllocationLost):
            if event.is_unknown:
                self._diagnose(link, event)
            self._on_lost(link, event)
        elif isinstance(event, (AllocationConfirmed, ServerSilent)):
            self._diagnose(link, event)
            if isinstance(event, AllocationConfirmed):
                self._tell_race(self._race.confirmed, link.number)
            elif event.is_lasting:
                relayed = self._relayed.get(link.number, ())
                self._owner.tell(RelaySilent(server=link.target.url, relayed=relayed))
                self._tell_race(self._race.challenged, link.number)
        elif isinstance(event, AllocationMoved):
            assert link.base is not None
            self._diagnose(link, event)
            relayed = self._relayed[link.number]
            self._owner.tell(RelayMoved(server=link.target.url, relayed=relayed, base=link.base))
        elif isinstance(event, AllocationReleased):
            self._forget(link)
        elif isinstance(event, PeerRefused):
            reason = f"{event.code} {event.reason}"
            self._owner.tell(RelayRefused(server=link.target.url, host=event.host, reason=reason))
        elif isinstance(event, PeerUnreachable):
            self._owner.listener.relay_error(event.relayed, event.peer)
        else:
            self._owner.tell(event)

    def _on_allocated(self, link: RelayLink, event: Allocated) -> None:
        if link.allocation is not None and not link.allocation.is_mobile:
            self._owner.remember_immobile(link.target.address)
        if any(self._owner.listener.has_base(address) for address in event.relayed):
            # One of our sockets: it would take what is sent from there, and end it with itself.
            self._on_event(link, AllocationLost(reason="the server gave an address of ours", is_refused=True))
            return
        self._tell_race(self._race.won, link.number)
        for url, _ in self._uris:
            self._owner.complaints.forget(url)
        self._relayed[link.number] = event.relayed
        assert link.allocation is not None
        # Before the candidates are known: the permissions' requests leave before the first check.
        link.command(link.allocation.permit, self._owner.hosts)
        for address in event.relayed:
            link.bases[address] = self._owner.listener.relay_opened(
                RelayedAddress(
                    socket=RelayedSocket(link, address),
                    component=self._component,
                    place=self._places[link.number],
                    url=link.target.url,
                    server=link.target.address,
                    mapped=event.mapped,
                    again=self._count_again(address.host, link.target.address),
                    protocol="udp" if link.target.transport is Transport.UDP else "tcp",
                )
            )
        self._owner.changed()

    def _diagnose(self, link: RelayLink, event: Event) -> None:
        """The server's answer, or its silence, may say what broke."""
        if not isinstance(event, ServerSilent):
            self._owner.answered_at = self._owner.host.now()
        doubted, link.doubted = link.doubted, None
        if doubted is not None and (found := of_relay(event, doubted, link.target.address)) is not None:
            self._owner.diagnosed(found)

    def _count_again(self, host: str, server: TransportAddress) -> int:
        if len(self._made) >= MAX_REMEMBERED:
            self._made.pop(next(iter(self._made)))
        count = self._made.get((host, server), 0)
        self._made[host, server] = count + 1
        return count

    def _refuse(self, link: RelayLink, event: AllocationRefused) -> None:
        code = "" if event.code is None else f"{event.code} "
        if event.code != 300:
            self._complain_of(link, f"{code}{event.reason}", code=event.code)
        self._tell_race(self._race.refused, link.number, event)
        self._owner.changed()

    def _complain_of(self, link: RelayLink, words: str, gist: str = "", code: int | None = None) -> None:
        target = link.target
        reason = f"{target.transport.value} {target.address}: {words}"
        event = ServerFailed(server=target.url, base=link.base, reason=reason, code=code)
        self._owner.complaints.tell(event, (target.transport, target.address), gist or words)

    def _complain(self, url: str, reason: str, *, about: str) -> None:
        self._owner.complaints.tell(ServerFailed(server=url, base=None, reason=reason), about)

    def _on_no_target(self, event: ServerFailed) -> None:
        self._owner.complaints.tell(event, "targets")

    def _on_lost(self, link: RelayLink, event: AllocationLost) -> None:
        self._tell_lost(link, event.reason, is_local=event.is_local)
        self._forget(link)
        self._tell_race(self._race.lost, link.number, is_refused=event.is_refused)

    @staticmethod
    def _may_sleep(link: RelayLink) -> bool:
        """Whether a link has an allocation that cannot be taken along, and stays at the server meanwhile."""
        allocation = link.allocation
        is_there = allocation is not None and allocation.state is AllocationState.READY and not link.is_stream
        return is_there and allocation is not None and not allocation.can_move

    def _put_to_sleep(self, link: RelayLink) -> None:
        """Its interface is down: others are tried for, from elsewhere; who is there first stays."""
        if link.number not in self._asleep:
            self._asleep.add(link.number)
            for address in link.bases:
                self._owner.listener.relay_link(address, is_up=False)
            self._tell_race(self._race.challenged, link.number, is_elsewhere=True)

    def _wake(self, link: RelayLink) -> None:
        if link.number in self._asleep:
            self._asleep.discard(link.number)
            if link.allocation is not None:
                link.command(link.allocation.verify)
            for address in link.bases:
                self._owner.listener.relay_link(address, is_up=True)

    def _tell_lost(self, link: RelayLink, reason: str, *, is_local: bool = False) -> None:
        """Before its candidates go: another path must not lead to the same server."""
        relayed = self._relayed.pop(link.number, ())
        if relayed:
            self._owner.tell(RelayLost(server=link.target.url, relayed=relayed, reason=reason, is_local=is_local))

    def _leave(self, link: RelayLink) -> None:
        """The local address of a link is gone."""
        allocation = link.allocation
        is_live = allocation is not None and allocation.state is AllocationState.READY and not link.is_stream
        try:
            self._places[link.number] = self._owner.place_for(link.target.address)
            if is_live:
                link.move()
                return
        except OSError:
            pass
        self._on_event(link, AllocationLost(reason="its local address is gone", is_local=True))

    def _release(self, link: RelayLink) -> None:
        self._close_bases(link)
        if link.allocation is None:
            self._forget(link)
        else:
            link.command(link.allocation.release)

    def _forget(self, link: RelayLink) -> None:
        self._close_bases(link)
        self._links.pop(link.number, None)
        self._places.pop(link.number, None)
        self._relayed.pop(link.number, None)
        self._asleep.discard(link.number)
        link.close()
        if self._emptied is not None:
            self._emptied.set()

    def _close_bases(self, link: RelayLink) -> None:
        for address in link.close_bases():
            if not self._owner.is_closed:
                self._owner.listener.relay_closed(address)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._owner.is_closed:
            if not task.cancelled() and (error := task.exception()) is not None:
                context = {"message": "Asking for a relay raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
            self._owner.changed()

    def _stop(self) -> None:
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()
        self._driver.close()
