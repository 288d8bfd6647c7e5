"""How does a program open ports at its routers, and keep them open?

A :class:`PortMapper` knows the gateways of a host, speaks to those that mappings are wanted at, and follows when the
network changes: mappings are made again at the gateway that there is then. Everything that decides is in
``portmap/session.py`` and below.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from types import TracebackType
from typing import Any

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.core import Event
from iceagent.net.host import DatagramSocket, Host, Interface, SocketOptions, Subscription
from portmap.errors import MappingFailed
from portmap.events import GatewayRestarted, Mapped, MappingLost, NoMapping, Unmapped
from portmap.gateway import find_gateways, named_gateways
from portmap.mapping import (
    GatewayForgot,
    MappingChanged,
    MappingEvent,
    MappingGone,
    MappingMade,
    MappingRenewed,
    MappingUnavailable,
    PortMapping,
)
from portmap.report import GatewayReport, ProtocolReport, Status
from portmap.site import Site
from portmap.upnp import ListedMapping, MappingsListed
from portmap.values import PROTOCOLS, Gateway, MapRequest, ProtocolName, Transport, Trust, trust_of

__all__ = ["DEFAULT_LIFETIME_S", "PortMapper"]

DEFAULT_LIFETIME_S = 3600
"""After a crash nothing is left after an hour. RFC 6886, 3.3, recommends two for NAT-PMP."""

PROBE_LIFETIME_S = 120
CLOSE_S = 0.8
"""How long closing waits for gateways; their protocols give up after half a second."""

ANNOUNCEMENT_PORT = 5350
"""RFC 6886, 3.2.1, and RFC 6887, 14.1.3 (19.1): where gateways announce that they restarted."""

_WILDCARDS = {4: "0.0.0.0", 6: "::"}
_PRIVATE = {
    Trust.PRIVATE: "its external address {} is private: there is another NAT in front of it",
    Trust.CARRIER: "its external address {} is a carrier's: there is another NAT in front of it",
    Trust.UNKNOWN: "it does not know its external address",
}
_system_rng = SystemRandom()


@dataclass(slots=True)
class _Held:
    """A mapping and where it is wanted.

    Attributes:
        key: at the site; another one at each.
        failed: gateways that gave none, and what they said.
    """

    mapping: PortMapping
    description: str
    site: Site | None = None
    key: int = 0
    failed: dict[Gateway, dict[str, str]] = field(default_factory=dict)


class PortMapper:
    """Opens ports at the routers of a host. An async context manager; everything it opened is deleted when it ends,
    within a second.

    Args:
        host: whose routers; ``None``: this machine.
        protocols: that may be used.
        gateways: addresses of gateways that are asked instead of those that default routes lead to, for tunnels.
        versions: IP versions: 4, 6 or both.
        accepts: which interfaces may be used; ``None``: all.
        rng: jitter.
        system_rng: nonces and ports.

    Raises:
        ValueError: a protocol or version that there is not, or a gateway that is not an IP address.
    """

    def __init__(
        self,
        host: Host | None = None,
        *,
        protocols: Sequence[ProtocolName] = PROTOCOLS,
        gateways: Iterable[str] = (),
        versions: Sequence[int] = (4, 6),
        accepts: Callable[[Interface], bool] | None = None,
        rng: Random = _system_rng,
        system_rng: Random = _system_rng,
    ) -> None:
        if unknown := set(protocols) - set(PROTOCOLS):
            raise ValueError(f"{sorted(unknown)[0]!r} is not one of {', '.join(PROTOCOLS)}")
        if not set(versions) <= {4, 6}:
            raise ValueError("IP versions are 4 and 6")
        self._host = host
        self._protocols = tuple(name for name in PROTOCOLS if name in protocols)
        self._named = tuple(canonical_host(host) for host in gateways)
        self._versions = frozenset(versions)
        self._accepts = accepts
        self._rng = rng
        self._system_rng = system_rng
        self._gateways: tuple[Gateway, ...] | None = None
        self._interfaces: Sequence[Interface] = ()
        self._sites: dict[Gateway, Site] = {}
        self._multicast: dict[int, DatagramSocket | None] = {}
        self._held: dict[PortMapping, _Held] = {}
        self._by_key: dict[int, _Held] = {}
        self._ending: dict[int, PortMapping] = {}
        self._probed: dict[int, asyncio.Future[Mapped | NoMapping]] = {}
        self._unmapped: dict[int, asyncio.Future[Unmapped]] = {}
        self._listing: dict[Site, asyncio.Future[MappingsListed]] = {}
        self._keys = 0
        self._subscriptions: list[Subscription] = []
        self._reading: asyncio.Task[None] | None = None
        self._is_stale = False
        self._ready: asyncio.Future[None] | None = None
        self._is_closed = False

    async def __aenter__(self) -> PortMapper:
        """Find the gateways.

        Raises:
            OSError: this system does not tell its routes.
        """
        self.start()
        await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def start(self) -> None:
        """Begin to find the gateways, for those who do not wait for that. Idempotent.

        Raises:
            OSError: this system does not tell its routes, or is not Linux.
        """
        if self._subscriptions or self._is_closed:
            return
        if self._host is None:
            from iceagent.net.local import local_host

            self._host = local_host()
        self._ready = asyncio.get_running_loop().create_future()
        self._subscriptions = [
            self._host.watch_interfaces(self._on_change),
            self._host.watch_default_routes(self._on_change),
        ]
        self._on_change(())

    async def ready(self) -> None:
        """Wait until the gateways are known."""
        if self._ready is not None:
            await asyncio.shield(self._ready)

    @property
    def gateways(self) -> tuple[Gateway, ...]:
        """Those that there are now; empty as long as they are not known."""
        return self._gateways or ()

    # --- mappings ------------------------------------------------------------------------------------------------

    async def map(
        self,
        transport: Transport,
        internal: TransportAddress | int,
        *,
        external_port: int | None = None,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        description: str = "iceagent",
    ) -> PortMapping:
        """Open a port, and keep it open until the mapping or the mapper is closed.

        Args:
            transport: ``udp`` or ``tcp``.
            internal: where what comes in is to arrive: an address of ours, or a port, for which the first gateway
                decides the address.
            external_port: that is asked for; ``None``: the same as inside; 0: any. Another one may be given.
            lifetime_s: seconds, 120 … 86400; it is renewed in time.
            description: for the gateway's own list.

        Raises:
            MappingFailed: no gateway gave one.
            ValueError: a port or lifetime that cannot be.
            RuntimeError: the mapper is closed.
        """
        decided: asyncio.Future[MappingMade | MappingUnavailable] = asyncio.get_running_loop().create_future()

        def on_event(_: PortMapping, event: MappingEvent) -> None:
            if isinstance(event, MappingMade | MappingUnavailable) and not decided.done():
                decided.set_result(event)

        mapping = self.hold(
            transport,
            internal,
            external_port=external_port,
            lifetime_s=lifetime_s,
            description=description,
            on_event=on_event,
        )
        try:
            outcome = await decided
        except BaseException:
            mapping.close()
            raise
        if isinstance(outcome, MappingUnavailable):
            mapping.close()
            raise MappingFailed(_no_mapping(transport, mapping.internal, outcome.reasons), outcome.reasons)
        return mapping

    def hold(
        self,
        transport: Transport,
        internal: TransportAddress | int,
        *,
        external_port: int | None = None,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        description: str = "iceagent",
        on_event: Callable[[PortMapping, MappingEvent], None] | None = None,
    ) -> PortMapping:
        """Want a mapping from now on, whenever a gateway gives one. Returns at once.

        Args:
            transport, internal, external_port, lifetime_s, description: see :meth:`map`.
            on_event: called with the mapping and everything that happens to it; must not raise.

        Raises:
            ValueError, RuntimeError: see :meth:`map`.
        """
        if self._is_closed:
            raise RuntimeError("the port mapper is closed")
        wanted = TransportAddress(_WILDCARDS[4], internal) if isinstance(internal, int) else internal
        outer = wanted.port if external_port is None else external_port
        if transport not in ("udp", "tcp"):
            raise ValueError(f"{transport!r} is not udp or tcp")
        if not (0 < wanted.port < 65536 and 0 <= outer < 65536):
            raise ValueError("ports are 1 to 65535 inside, and 0 (any) to 65535 outside")
        if not 120 <= lifetime_s <= 86400:
            raise ValueError("a lifetime is 120 to 86400 seconds")
        mapping = PortMapping(transport, wanted, outer, lifetime_s, on_event=on_event, release=self._release)
        held = self._held[mapping] = _Held(mapping, description)
        self.start()
        if self._gateways is not None:
            asyncio.get_running_loop().call_soon(self._assign, held)
        return mapping

    async def probe(self) -> tuple[GatewayReport, ...]:
        """Find out what each gateway does, by a real mapping of a port of ours with each protocol, deleted again."""
        self.start()
        await self.ready()
        return tuple(await asyncio.gather(*(self._probe(gateway) for gateway in self.gateways)))

    async def list_mappings(self) -> tuple[ListedMapping, ...]:
        """All mappings that the first IPv4 gateway has, of all its hosts, by UPnP: the other protocols tell nobody.

        Raises:
            MappingFailed: it does not speak UPnP, or did not tell them all.
        """
        self.start()
        await self.ready()
        site = next((site for gateway in self.gateways if gateway.version == 4 and (site := self._site(gateway))), None)
        if site is None or "upnp" not in site.session.protocols:
            raise MappingFailed("no mappings can be listed: there is no router to ask by UPnP", {})
        future = self._listing.get(site)
        if future is None:
            future = self._listing[site] = asyncio.get_running_loop().create_future()
            site.list_mappings()
        listed = await asyncio.shield(future)
        if listed.reason:
            text = f"{site.gateway} does not list its mappings: {listed.reason}"
            raise MappingFailed(text, {"upnp": listed.reason})
        return listed.mappings

    async def aclose(self) -> None:
        """Delete everything, and close; idempotent. Takes at most a second, whatever the gateways do."""
        self._begin_to_close()
        if self._ending:
            waiting = [asyncio.ensure_future(mapping.aclose()) for mapping in self._ending.values()]
            await asyncio.wait(waiting, timeout=CLOSE_S)
        self.close()

    def close(self) -> None:
        """Close at once; idempotent. What deletes the mappings is sent, but nobody waits for the answers."""
        self._begin_to_close()
        for mapping in list(self._ending.values()):
            mapping.end(is_confirmed=False)
        waiting: tuple[asyncio.Future[Any], ...] = (
            *self._probed.values(),
            *self._unmapped.values(),
            *self._listing.values(),
        )
        for future in waiting:
            future.cancel()
        for site in self._sites.values():
            site.close()
        for socket in self._multicast.values():
            if socket is not None:
                socket.close()
        self._ending.clear()
        self._sites.clear()
        self._multicast.clear()

    def _begin_to_close(self) -> None:
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.close()
        if self._reading is not None:
            self._reading.cancel()
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        for mapping in list(self._held):
            mapping.close()

    # --- the network ---------------------------------------------------------------------------------------------

    def _on_change(self, _: object) -> None:
        """Interfaces or routes changed, or are not known yet."""
        self._is_stale = True
        if self._reading is None and not self._is_closed:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        assert self._host is not None
        try:
            while self._is_stale:
                self._is_stale = False
                interfaces, routes = await self._host.interfaces(), await self._host.default_routes()
                if self._accepts is not None:
                    interfaces = tuple(interface for interface in interfaces if self._accepts(interface))
                found = self._named_here(interfaces) if self._named else find_gateways(interfaces, routes)
                self._use(interfaces, tuple(each for each in found if each.version in self._versions))
        except OSError as error:
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._reading = None

    def _named_here(self, interfaces: Sequence[Interface]) -> Sequence[Gateway]:
        assert self._host is not None
        sources = {host: self._host.source_host(TransportAddress(host, 1)) for host in self._named}
        return named_gateways(self._named, interfaces, {name: at for name, at in sources.items() if at is not None})

    def _use(self, interfaces: Sequence[Interface], gateways: tuple[Gateway, ...]) -> None:
        """These are the gateways now."""
        is_same = interfaces == self._interfaces and gateways == self._gateways
        self._interfaces, before, self._gateways = interfaces, self._gateways, gateways
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        if is_same:
            return
        for gateway in set(self._sites) - set(gateways):
            self._leave(self._sites.pop(gateway))
        if before is not None:
            for site in self._sites.values():
                site.refresh()
        for held in list(self._held.values()):
            held.failed.clear()
            if held.site is None:
                self._assign(held)

    def _leave(self, site: Site) -> None:
        """Its gateway is not ours any more. It is told so, as far as it can be reached."""
        for held in [held for held in self._held.values() if held.site is site]:
            self._by_key.pop(held.key, None)
            site.unmap(held.key)
            held.site = None
            self._lose(held, "the network changed")
        asyncio.get_running_loop().call_later(CLOSE_S, site.close)

    def _site(self, gateway: Gateway) -> Site | None:
        site = self._sites.get(gateway)
        if site is None:
            assert self._host is not None
            try:
                site = Site(self._host, gateway, self._protocols, self._rng, self._system_rng, self._on_event)
            except OSError:
                return None
            self._sites[gateway] = site
            self._listen(gateway.version)
        return site

    def _listen(self, version: int) -> None:
        """Hear what gateways announce; where that is not possible, restarts are noticed when mappings are renewed."""
        if version not in self._multicast:
            assert self._host is not None
            self._multicast[version] = None
            everywhere = TransportAddress(_WILDCARDS[version], ANNOUNCEMENT_PORT)
            with contextlib.suppress(OSError):
                self._multicast[version] = self._host.socket(everywhere, self, SocketOptions(is_shared=True))

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """A gateway, or somebody else, announces something."""
        for site in self._sites.values():
            if site.gateway.host == source[0]:
                site.announced(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """Nothing is sent from there."""

    # --- what is wanted ------------------------------------------------------------------------------------------

    def _assign(self, held: _Held) -> None:
        """Ask the next gateway that may map it."""
        if held.mapping.is_closed or held.site is not None or self._gateways is None:
            return
        mapping = held.mapping
        for gateway in self._gateways:
            if gateway in held.failed or not _fits(gateway, mapping.internal):
                continue
            site = self._site(gateway)
            if site is None:
                continue
            self._keys += 1
            request = MapRequest(
                transport=mapping.transport,
                internal=TransportAddress(gateway.source, mapping.internal.port),
                external_port=mapping.external_port,
                lifetime_s=mapping.lifetime_s,
                description=held.description,
            )
            try:
                self._by_key[self._keys] = held
                held.site, held.key = site, self._keys
                mapping.gateway = gateway
                site.map(held.key, request)
            except ValueError as error:
                del self._by_key[held.key]
                held.site = mapping.gateway = None
                held.failed[gateway] = dict.fromkeys(site.session.protocols, str(error))
                continue
            return
        mapping.tell(MappingUnavailable(reasons=_merged(held.failed)))

    def _release(self, mapping: PortMapping) -> None:
        held = self._held.pop(mapping)
        self._by_key.pop(held.key, None)
        if held.site is not None and held.site.unmap(held.key):
            self._ending[held.key] = mapping
        else:
            mapping.end(is_confirmed=False)

    def _on_event(self, site: Site, event: Event) -> None:
        if isinstance(event, Unmapped):
            self._on_unmapped(event)
        elif isinstance(event, MappingsListed):
            listing = self._listing.pop(site, None)
            if listing is not None and not listing.done():
                listing.set_result(event)
        elif isinstance(event, GatewayRestarted):
            for held in [held for held in self._held.values() if held.site is site]:
                held.mapping.tell(GatewayForgot(protocol=event.protocol))
        elif isinstance(event, Mapped | NoMapping) and event.key in self._probed:
            future = self._probed.pop(event.key)
            if not future.done():
                future.set_result(event)
        elif isinstance(event, Mapped | MappingLost | NoMapping):
            held_there = self._by_key.get(event.key)
            if held_there is not None:
                self._on_mapping(held_there, site, event)

    def _on_unmapped(self, event: Unmapped) -> None:
        mapping = self._ending.pop(event.key, None)
        if mapping is not None:
            mapping.end(is_confirmed=event.is_confirmed)
        future = self._unmapped.pop(event.key, None)
        if future is not None and not future.done():
            future.set_result(event)

    def _on_mapping(self, held: _Held, site: Site, event: Mapped | MappingLost | NoMapping) -> None:
        if isinstance(event, Mapped):
            self._on_mapped(held.mapping, site.gateway, event)
        elif isinstance(event, MappingLost):
            self._lose(held, event.reason)
        else:
            held.failed[site.gateway] = dict(event.reasons)
            others = [gateway for gateway in self.gateways if gateway not in held.failed]
            if any(_fits(gateway, held.mapping.internal) for gateway in others):
                del self._by_key[held.key]
                site.unmap(held.key)
                held.site = None
                self._assign(held)
            else:
                # This one asks again by itself.
                reasons = _merged(held.failed)
                held.failed.clear()
                held.mapping.tell(MappingUnavailable(reasons=reasons))

    def _on_mapped(self, mapping: PortMapping, gateway: Gateway, event: Mapped) -> None:
        old = mapping.external
        mapping.protocol, mapping.external, mapping.granted_s = event.protocol, event.external, event.lifetime_s
        mapping.internal = TransportAddress(gateway.source, mapping.internal.port)
        trust = trust_of(event.external.host)
        if old is None:
            made = MappingMade(
                protocol=event.protocol,
                gateway=gateway,
                external=event.external,
                lifetime_s=event.lifetime_s,
                trust=trust,
                rtt_s=event.rtt_s,
            )
            mapping.tell(made)
            return
        if old != event.external:
            mapping.tell(MappingChanged(old=old, new=event.external, trust=trust))
        if not mapping.is_closed:
            mapping.tell(MappingRenewed(lifetime_s=event.lifetime_s))

    def _lose(self, held: _Held, reason: str) -> None:
        mapping = held.mapping
        external, mapping.external, mapping.protocol = mapping.external, None, None
        if held.site is None:
            mapping.gateway = None
        if external is not None:
            mapping.tell(MappingGone(external=external, reason=reason))

    # --- probing -------------------------------------------------------------------------------------------------

    async def _probe(self, gateway: Gateway) -> GatewayReport:
        assert self._host is not None
        site = self._site(gateway)
        rows = []
        if site is not None:
            # A port that is ours for the time being: a stray packet must not reach another program.
            socket = self._host.socket(TransportAddress(gateway.source, 0), _Deaf(), SocketOptions())
            try:
                rows = [await self._probe_by(site, name, socket.address) for name in site.session.protocols]
            finally:
                socket.close()
        tested = {row.protocol: row for row in rows}
        return GatewayReport(
            gateway=gateway,
            protocols=tuple(tested.get(name) or self._not_tested(name, gateway, site) for name in PROTOCOLS),
        )

    async def _probe_by(self, site: Site, name: ProtocolName, internal: TransportAddress) -> ProtocolReport:
        loop = asyncio.get_running_loop()
        self._keys += 1
        key = self._keys
        self._probed[key] = decided = loop.create_future()
        request = MapRequest(
            transport="udp", internal=internal, external_port=internal.port, lifetime_s=PROBE_LIFETIME_S
        )
        try:
            site.map(key, request, (name,))
            event = await decided
        finally:
            self._probed.pop(key, None)
            self._unmapped[key] = deleted = loop.create_future()
            if site.unmap(key):
                await deleted
            self._unmapped.pop(key, None)
        if isinstance(event, NoMapping):
            status: Status = "refused" if site.session.speaks(name) else "no-answer"
            return ProtocolReport(protocol=name, status=status, reason=event.reasons.get(name, ""))
        trust = trust_of(event.external.host)
        return ProtocolReport(
            protocol=name,
            status="ok",
            external=None if ip_address(event.external.host).is_unspecified else event.external,
            lifetime_s=event.lifetime_s,
            trust=trust,
            reason=_PRIVATE.get(trust, "").format(event.external.host),
            rtt_ms=None if event.rtt_s is None else 1000 * event.rtt_s,
        )

    def _not_tested(self, name: ProtocolName, gateway: Gateway, site: Site | None) -> ProtocolReport:
        if name not in self._protocols:
            reason = "it was not asked for"
        elif site is None:
            reason = f"there can be no socket on {gateway.source}"
        else:
            reason = "NAT-PMP is for IPv4 only"
        return ProtocolReport(protocol=name, status="not-tested", reason=reason)


class _Deaf:
    """Keeps a port."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None: ...

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None: ...


def _fits(gateway: Gateway, internal: TransportAddress) -> bool:
    """Whether a mapping for this address is this gateway's."""
    is_wildcard = ip_address(internal.host).is_unspecified and internal.version == gateway.version
    return is_wildcard or internal.host == gateway.source


def _merged(failed: dict[Gateway, dict[str, str]]) -> dict[str, str]:
    """What several gateways said; of each protocol the first that said anything counts."""
    merged: dict[str, str] = {}
    for reasons in failed.values():
        for name, reason in reasons.items():
            merged.setdefault(name, reason)
    return merged


def _no_mapping(transport: Transport, internal: TransportAddress, reasons: Mapping[str, str]) -> str:
    what = f"no mapping for {transport} port {internal.port}"
    if not reasons:
        return f"{what}: no default route of this host leads through a router that could make one"
    return f"{what}: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
