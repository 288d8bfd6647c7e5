"""How do the parts of the UPnP client work together? Pure.

A client searches (``discovery.py``), keeps one service, and one :class:`portmap.upnp.upkeep.Upkeep` per mapping. Its
HTTP is done by whoever pumps it: :class:`portmap.events.Fetch` goes out, ``handle_response`` or ``handle_failure``
comes in.

When the service does not answer any more, it may have moved: a gateway that restarts may take another port for its
HTTP. Then the search is repeated, quietly, and what was mapped is renewed where the service is now.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from errno import ECONNREFUSED
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from portmap.events import Discovered, GatewayRestarted, NotFound
from portmap.upnp.desk import Desk, Habits
from portmap.upnp.discovery import Choice, Discovery
from portmap.upnp.exchanges import Exchanges
from portmap.upnp.external import External
from portmap.upnp.listing import Listing, MappingsListed
from portmap.upnp.ssdp import SSDP_PORT
from portmap.upnp.upkeep import Upkeep
from portmap.values import Gateway, MapRequest, ProtocolName

__all__ = ["UpnpClient"]

# A service that does not answer is not searched for more often.
SEARCH_EVERY_S = 10.0
# Mappings that are found missing so shortly after each other are victims of one restart.
ONE_RESTART_S = 10.0


class UpnpClient:
    """UPnP IGD at one gateway; implements :class:`portmap.events.ProtocolClient`.

    Over IPv4 it maps ports, over IPv6 it opens pinholes in the gateway's firewall.

    Args:
        gateway: which.
        base: the address of the socket that searches.
        rng: for jitter.
        system_rng: for ports.

    Attributes:
        counters: ``dropped: <reason>`` for every datagram that was of no use; ``responses nobody waited for``.
    """

    def __init__(self, gateway: Gateway, base: TransportAddress, rng: Random, system_rng: Random) -> None:
        self.counters: Counter[str] = Counter()
        self._gateway = gateway
        self._base = base
        self._events: deque[Event] = deque()
        self._exchanges = Exchanges(self._events)
        self._desk = Desk(
            gateway=gateway,
            exchanges=self._exchanges,
            events=self._events,
            rng=rng,
            system_rng=system_rng,
            on_missing=self._on_missing,
            on_unreachable=self._on_unreachable,
        )
        self._external = External(self._desk, self._on_external)
        self._upkeeps: dict[int, Upkeep] = {}
        self._discovery: Discovery | None = None
        self._is_asked = False
        self._searched_at: float | None = None
        self._restarted_at: float | None = None
        self._is_listing = False

    @property
    def name(self) -> ProtocolName:
        """Which protocol."""
        return "upnp"

    # --- commands ---

    def discover(self, now: float) -> None:
        """Search: :class:`Discovered` or :class:`NotFound` follows. Nothing changes at the gateway.

        Without any answer that takes 1.2 s; a description that does not come takes a second more. A second call while
        one is under way does nothing.
        """
        self._is_asked = True
        self._search(now)

    def map(self, key: int, request: MapRequest, now: float) -> None:
        """Make a mapping, and keep it: :class:`Mapped` or :class:`MappingRefused` follows.

        That takes two round trips to a router that works, 3.5 s to one that never answers, and up to 9 s where it
        refuses port after port. If no service is known yet, one is searched for before.

        Raises:
            ValueError: the internal address is not of the gateway's IP version, has no port, or the external port is
                not in 0 … 65535.
        """
        if request.internal.version != self._gateway.version or not 1 <= request.internal.port <= 65535:
            raise ValueError(f"{request.internal} cannot be mapped by the gateway {self._gateway}")
        if not 0 <= request.external_port <= 65535:
            raise ValueError(f"the external port {request.external_port} is not in 0 … 65535")
        upkeep = self._upkeeps[key] = Upkeep(self._desk, self._external, key, request)
        if self._desk.service is None:
            self._search(now)
        else:
            self._external.freshen(now)
            upkeep.begin(now)

    def unmap(self, key: int, now: float) -> None:
        """Delete a mapping: :class:`Unmapped` follows within half a second. An unknown key does nothing."""
        upkeep = self._upkeeps.get(key)
        if upkeep is not None:
            upkeep.unmap(now)
            self._sweep(now)

    def abandon(self, key: int) -> None:
        """Forget a mapping without deleting it."""
        upkeep = self._upkeeps.pop(key, None)
        if upkeep is not None:
            upkeep.abandon()
            if not self._has_mappings:
                self._external.rest()

    def withdraw(self, key: int, request: MapRequest, now: float) -> bool:
        """See :meth:`ProtocolClient.withdraw`. Nothing: nobody knows which port it was, and who has it now; what there
        may be ends with its lease.
        """
        return False

    def refresh(self, now: float) -> None:
        """Look at and renew all mappings at once, and ask for what was refused."""
        if self._upkeeps:
            self._external.ask(now)
        for upkeep in tuple(self._upkeeps.values()):
            upkeep.hurry(now)

    def list_mappings(self, now: float) -> None:
        """Read the gateway's list of all mappings: :class:`MappingsListed` follows. Nothing changes at the gateway.

        A second call while one is under way does nothing.
        """
        service = self._desk.service
        if self._is_listing:
            return
        if service is None or service.is_firewall:
            reason = "no gateway was found" if service is None else "a firewall does not list its pinholes"
            self._events.append(MappingsListed(protocol="upnp", mappings=(), reason=reason))
            return
        self._is_listing = True
        Listing(self._desk, service, now, self._on_listed)

    # --- what comes in ---

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take an answer to a search."""
        if self._discovery is None:
            reason: str | None = "SSDP message after the search"
        else:
            reason = self._discovery.handle_datagram(datagram, now)
        if reason is not None:
            self.counters[f"dropped: {reason}"] += 1
            dropped = PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=len(datagram.data))
            self._events.append(dropped)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network said no; of interest only if the gateway's own port for searches is closed."""
        is_own = destination == TransportAddress(self._gateway.host, SSDP_PORT)
        if self._discovery is not None and is_own and errno == ECONNREFUSED:
            self._discovery.handle_refusal(now)

    def handle_response(
        self, number: int, status: int, headers: Sequence[tuple[str, str]], body: bytes, now: float
    ) -> None:
        """A :class:`portmap.events.Fetch` has its response. Never raises because of its content.

        Args:
            number: of the exchange.
            status: of HTTP.
            headers: not looked at.
            body: whole.
            now: the time.
        """
        if not self._exchanges.handle_response(number, status, body, now):
            self.counters["responses nobody waited for"] += 1
        self._sweep(now)

    def handle_failure(self, number: int, reason: str, now: float) -> None:
        """A :class:`portmap.events.Fetch` has failed; ``reason``: a sentence's end."""
        if not self._exchanges.handle_failure(number, reason, now):
            self.counters["responses nobody waited for"] += 1
        self._sweep(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed. Idempotent; an early call is harmless."""
        self._exchanges.handle_timeout(now)
        if self._discovery is not None:
            self._discovery.handle_timeout(now)
        for upkeep in tuple(self._upkeeps.values()):
            upkeep.handle_timeout(now)
        self._sweep(now)

    # --- what goes out ---

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``."""
        deadlines = [self._exchanges.poll_timeout(), self._external.poll_timeout()]
        if self._discovery is not None:
            deadlines.append(self._discovery.poll_timeout())
        deadlines += [upkeep.poll_timeout() for upkeep in self._upkeeps.values()]
        return min((at for at in deadlines if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send, or ``None``."""
        if self._discovery is not None and self._discovery.transmits:
            return self._discovery.transmits.popleft()
        return None

    def poll_event(self) -> Event | None:
        """One thing that happened, or ``None``."""
        return self._events.popleft() if self._events else None

    # --- searching ---

    def _search(self, now: float) -> None:
        if self._discovery is None:
            self._searched_at = now
            self._discovery = Discovery(self._gateway, self._base, self._exchanges, now, self._on_searched)

    def _on_searched(self, result: Choice | str, now: float) -> None:
        self._discovery = None
        is_asked, self._is_asked = self._is_asked, False
        if isinstance(result, str):
            if is_asked:
                self._events.append(NotFound(protocol="upnp", reason=result))
            for upkeep in tuple(self._upkeeps.values()):
                upkeep.give_up(result, now)
            return
        has_moved = result.service != self._desk.service
        if has_moved:
            self._desk.service = result.service
            self._desk.habits = Habits()
        if is_asked:
            found = Discovered(protocol="upnp", external_host=result.external_host, rtt_s=result.rtt_s)
            self._events.append(found)
        if result.is_external_told:
            self._external.settle(result.external_host, now)
        for upkeep in tuple(self._upkeeps.values()):
            if upkeep.is_waiting:
                self._external.freshen(now)
                upkeep.begin(now)
            elif has_moved:
                upkeep.hurry(now)

    def _on_unreachable(self, now: float) -> None:
        is_due = self._searched_at is None or now - self._searched_at >= SEARCH_EVERY_S
        if is_due or self._desk.service is None:
            self._search(now)

    # --- what concerns all mappings ---

    def _on_missing(self, now: float) -> None:
        if self._restarted_at is None or now - self._restarted_at > ONE_RESTART_S:
            self._restarted_at = now
            self._events.append(GatewayRestarted(protocol="upnp"))
            self._external.ask(now)
            for upkeep in tuple(self._upkeeps.values()):
                upkeep.hurry(now)

    def _on_external(self, is_new: bool, now: float) -> None:
        for upkeep in tuple(self._upkeeps.values()):
            upkeep.external_told(is_new, now)

    def _on_listed(self, listed: MappingsListed) -> None:
        self._is_listing = False
        self._events.append(listed)

    def _sweep(self, now: float) -> None:
        for key, upkeep in tuple(self._upkeeps.items()):
            if upkeep.is_over:
                del self._upkeeps[key]
        if self._has_mappings:
            self._external.watch(now)
        else:
            self._external.rest()

    @property
    def _has_mappings(self) -> bool:
        return any(upkeep.is_granted for upkeep in self._upkeeps.values())
