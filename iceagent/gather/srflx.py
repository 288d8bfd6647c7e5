"""How do server-reflexive candidates come about?

RFC 8445, 5.1.1.2: every base asks every server of its family. The shell around ``stun_queries.py``: names are
resolved without blocking (RFC 8489, 8: SRV where the URI has no port; RFC 5928's table), a dead name or server delays
nothing but itself. Every mapped address that is seen becomes a candidate, later ones too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from random import Random

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.events import ServerFailed
from iceagent.gather.bases import Base
from iceagent.gather.complaints import Complaints
from iceagent.gather.diagnosis import Diagnosed
from iceagent.gather.servers import is_address, is_asked_over_udp, resolve_server
from iceagent.gather.stun_queries import MappedAddress, QueryFailed, StunQueries
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import Host
from relay.uri import ServerUri

__all__ = ["ServerReflexive"]


class ServerReflexive:
    """Asks STUN servers from every base.

    Args:
        found: called with each candidate.
        lost: called with the base and the address of a candidate that is none any more: the NAT has another one for us.
        tell: called with what went wrong: ServerFailed, PacketDropped.
        diagnosed: called with what a server said about a path in doubt.
        changed: called when ``is_done`` may have changed.
        ceiling: what all transactions of the process share (RFC 8445, 14.2).

    Raises:
        BadUri: a server's URI is wrong.
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        system_rng: Random,
        *,
        found: Callable[[Candidate], object],
        lost: Callable[[TransportAddress, TransportAddress], object],
        tell: Callable[[Event], None],
        diagnosed: Callable[[Diagnosed], object],
        changed: Callable[[], None],
        ceiling: TokenBucket | None = None,
    ) -> None:
        self._host = host
        self._found = found
        self._lost = lost
        self._tell = tell
        self._diagnosed = diagnosed
        self._changed = changed
        uris = [(url, ServerUri.parse(url)) for server in config.servers for url in server.urls]
        # A TURN server is a STUN server too (RFC 8656, 3); what it says of itself otherwise, its client tells.
        self._uris = [(url, uri) for url, uri in uris if not uri.is_turn or is_asked_over_udp(uri)]
        self._bases: dict[TransportAddress, Base] = {}
        self._servers: dict[TransportAddress, str] = {}
        # What each server saw last, by base and server.
        self._seen: dict[tuple[TransportAddress, TransportAddress], TransportAddress] = {}
        self._complaints = Complaints(tell)
        self.queries = StunQueries(
            system_rng,
            ta_s=config.ta_s,
            burst=config.burst,
            rto_s=config.rto_s,
            ceiling=ceiling,
            early_s=config.early_checks_s,
        )
        self._driver = Driver(self.queries, host, self._send, self._on_event)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def is_done(self) -> bool:
        """No name is being resolved, no query is open."""
        return not self._tasks and not self.queries.pending

    def resolve(self) -> None:
        """Find out where the servers are; once."""
        for url, uri in self._uris:
            self._resolve(url, uri)

    def start(self, base: Base) -> None:
        """Ask every known server from a new base."""
        self._bases[base.address] = base
        for server in self._servers:
            self._ask(base, server)

    def stop(self, base: Base) -> None:
        """The base is gone."""
        self._bases.pop(base.address, None)
        self._seen = {key: seen for key, seen in self._seen.items() if key[0] != base.address}
        self._driver.command(self.queries.forget_base, base.address)

    def conclude(self) -> None:
        """ICE has completed: the reflexive addresses need no more refreshing (RFC 8445, 5.1.1.4)."""
        self._driver.command(self.queries.stop_refreshing)

    def begin_again(self) -> None:
        """ICE restarts: ask every known server from every base anew, also who did not answer, and refresh."""
        self._driver.command(self.queries.resume_refreshing)
        self._ask_all()

    def ask_again(self) -> None:
        """Ask every known server from every base once more, also who did not answer."""
        self._driver.command(self.queries.ask_again)
        self._ask_all()

    def question(self, base: Base) -> bool:
        """A path from a base is in doubt: ask what broke; false: it is not asked, see :meth:`StunQueries.question`."""
        return self._driver.command(self.queries.question, base.address)

    def close(self) -> None:
        """Stop everything at once."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._driver.close()

    def takes(self, base: Base, source: tuple[str, int]) -> bool:
        """Whether STUN from ``source`` on ``base`` is a server's."""
        return self.queries.is_server(base.address, source)

    def datagram_received(self, base: Base, data: bytes, source: tuple[str, int]) -> None:
        """A server's answer."""
        self._driver.datagram(base.address, source, data)

    def error_received(self, base: Base, destination: TransportAddress, number: int) -> None:
        """A server cannot be reached."""
        self._driver.error(base.address, destination, number)

    # --- inside --------------------------------------------------------------------------------------------------

    def _resolve(self, url: str, uri: ServerUri) -> None:
        if uri.is_secure:
            reason = "STUN over TLS gives the mapping of a TCP connection, which no candidate can use"
            self._fail(url, None, reason)
        elif is_address(uri.host):
            self._add(url, TransportAddress(uri.host, uri.port or uri.default_port))
        else:
            task = asyncio.get_running_loop().create_task(self._resolve_name(url, uri))
            self._tasks.add(task)
            task.add_done_callback(self._on_resolved)

    async def _resolve_name(self, url: str, uri: ServerUri) -> None:
        try:
            addresses = await resolve_server(self._host, uri)
        except OSError as error:
            self._fail(url, None, f"{uri.host} does not resolve: {error.strerror or error}")
            return
        if not self._is_closed:
            for address in addresses:
                self._add(url, address)

    def _on_resolved(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._is_closed:
            self._changed()

    def _fail(self, url: str, base: TransportAddress | None, reason: str, about: Hashable = None) -> None:
        if not ServerUri.parse(url).is_turn:
            self._complaints.tell(ServerFailed(server=url, base=base, reason=reason), about)

    def _add(self, url: str, server: TransportAddress) -> None:
        if server not in self._servers:
            self._servers[server] = url
            for base in self._bases.values():
                self._ask(base, server)

    def _ask_all(self) -> None:
        for base in self._bases.values():
            for server in self._servers:
                self._ask(base, server)

    def _ask(self, base: Base, server: TransportAddress) -> None:
        ip, server_ip = ip_address(base.address.host), server.ip
        if base.address.version != server.version or ip.is_loopback != server_ip.is_loopback:
            return
        if ip.is_link_local and not server_ip.is_link_local:
            return
        self._driver.command(self.queries.ask, base.address, server)

    def _send(self, transmit: Transmit) -> int:
        base = self._bases.get(transmit.base)
        return 0 if base is None else base.socket.send(transmit.data, transmit.destination)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, MappedAddress):
            base = self._bases.get(event.base)
            if base is not None:
                url = self._servers[event.server]
                self._complaints.forget(url, _about(event))
                self._note(event)
                self._found(base.candidate(CandidateType.SERVER_REFLEXIVE, event.mapped, url, event.server))
        elif isinstance(event, QueryFailed):
            self._fail(self._servers[event.server], event.base, event.reason, _about(event))
        elif isinstance(event, Diagnosed):
            self._diagnosed(event)
        else:
            self._tell(event)
        self._changed()

    def _note(self, event: MappedAddress) -> None:
        """Where no server sees us any more, nobody is to look for us."""
        key = (event.base, event.server)
        former = self._seen.get(key)
        self._seen[key] = event.mapped
        if former is not None and former != event.mapped:
            still_seen = (seen for (base, _), seen in self._seen.items() if base == event.base)
            if former not in still_seen:
                self._lost(event.base, former)


def _about(event: MappedAddress | QueryFailed) -> Hashable:
    """Of a base that is opened anew only the port is another one."""
    return event.server, event.base.host
