"""How does a program open ports at its routers, and keep them open?

A :class:`PortMapper` speaks to the gateways of a host that mappings are wanted at (``sites.py``), and follows when the
network changes (``watch.py``): mappings are made again at the gateway that there is then. Everything that decides about
one gateway is in ``session.py`` and below.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from types import TracebackType

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.core import Event
from iceagent.net.host import Host, Interface
from portmap.errors import MappingFailed
from portmap.events import GatewayRestarted, Mapped, MappingLost, NoMapping
from portmap.mapping import (
    GatewayForgot,
    MappingChanged,
    MappingDeleted,
    MappingEvent,
    MappingGone,
    MappingMade,
    MappingRenewed,
    MappingUnavailable,
    PortMapping,
)
from portmap.probe import probe
from portmap.report import GatewayReport
from portmap.site import CHANGED, Site
from portmap.sites import Sites
from portmap.upnp import ListedMapping
from portmap.values import PROTOCOLS, Gateway, MapRequest, ProtocolName, Transport, trust_of
from portmap.watch import GatewayWatch

__all__ = ["DEFAULT_LIFETIME_S", "PortMapper"]

DEFAULT_LIFETIME_S = 3600
"""After a crash nothing is left after an hour. RFC 6886, 3.3, recommends two for NAT-PMP."""

CLOSE_S = 0.8
"""How long closing waits for gateways; their protocols give up after half a second."""
END_S = 0.1
"""How long closing waits for what was cancelled."""

RETRY_S = 30.0
"""When a gateway that could not even be asked is tried again: there was no socket, or the port is mapped already."""

_ANY_HOST = "0.0.0.0"
_CLOSED = "the port mapper is closed"
_system_rng = SystemRandom()


@dataclass(slots=True, eq=False)
class _Held:
    """A mapping and where it is wanted.

    Attributes:
        internal: as it was asked for.
        key: at the site; another one at each.
        failed: gateways that gave none, and what they said.
        retry: of one that no gateway could be asked for.
    """

    mapping: PortMapping
    internal: TransportAddress
    description: str
    site: Site | None = None
    key: int = 0
    failed: dict[Gateway, dict[str, str]] = field(default_factory=dict)
    retry: asyncio.TimerHandle | None = None


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
        ValueError: a protocol or version that there is not, no protocol, or a gateway that is not an IP address.
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
        if isinstance(protocols, str) or isinstance(gateways, str):
            raise ValueError("protocols and gateways are several: a tuple or a list, and no text")
        if unknown := set(protocols) - set(PROTOCOLS):
            raise ValueError(f"{sorted(unknown)[0]!r} is not one of {', '.join(PROTOCOLS)}")
        if not set(versions) <= {4, 6}:
            raise ValueError("IP versions are 4 and 6")
        if not protocols:
            raise ValueError("at least one protocol is needed")
        self._host = host
        self._protocols = tuple(name for name in PROTOCOLS if name in protocols)
        self._named = tuple(canonical_host(host) for host in gateways)
        self._versions = frozenset(versions)
        self._accepts = accepts
        self._rng = rng
        self._system_rng = system_rng
        self._watch: GatewayWatch | None = None
        self._sites: Sites | None = None
        self._held: dict[PortMapping, _Held] = {}
        self._by_key: dict[int, _Held] = {}
        self._keys = 0
        # For which all that is held was assigned.
        self._assigned: tuple[Gateway, ...] | None = None
        self._is_closed = False

    async def __aenter__(self) -> PortMapper:
        """Find the gateways.

        Raises:
            OSError: this system does not tell its routes.
            RuntimeError: the mapper is closed.
        """
        self._check_open()
        try:
            self.start()
            await self.ready()
        except BaseException:
            self.close()
            raise
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
        if self._watch is not None or self._is_closed:
            return
        if self._host is None:
            from iceagent.net.local import local_host

            self._host = local_host()
        self._sites = Sites(self._host, self._protocols, self._rng, self._system_rng, self._on_event)
        self._watch = GatewayWatch(self._host, self._named, self._versions, self._accepts, self._on_change)

    async def ready(self) -> None:
        """Wait until the gateways are known.

        Raises:
            OSError: this system does not tell its routes; it is asked again later.
        """
        if self._watch is not None:
            await self._watch.ready()

    @property
    def gateways(self) -> tuple[Gateway, ...]:
        """Those that there are now; empty as long as they are not known."""
        return () if self._watch is None else self._watch.gateways or ()

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
            ValueError: a port, address or lifetime that cannot be.
            RuntimeError: the mapper is closed.
            OSError: this system does not tell its routes, or is not Linux.
        """
        decided: asyncio.Future[MappingEvent] = asyncio.get_running_loop().create_future()

        def on_event(_: PortMapping, event: MappingEvent) -> None:
            if isinstance(event, MappingMade | MappingUnavailable | MappingDeleted) and not decided.done():
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
        if isinstance(outcome, MappingDeleted):
            raise RuntimeError(_CLOSED)
        if isinstance(outcome, MappingUnavailable):
            mapping.close()
            raise MappingFailed(self._no_mapping(transport, mapping.internal, outcome.reasons), outcome.reasons)
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
            on_event: called with the mapping and everything that happens to it; what it raises, the loop's exception
                handler is told.

        Raises:
            ValueError, RuntimeError, OSError: see :meth:`map`.
        """
        self._check_open()
        wanted = _internal(internal)
        outer = wanted.port if external_port is None else external_port
        if transport not in ("udp", "tcp"):
            raise ValueError(f"{transport!r} is not udp or tcp")
        if not (_is_in(wanted.port, 1, 65535) and _is_in(outer, 0, 65535)):
            raise ValueError("ports are 1 to 65535 inside, and 0 (any) to 65535 outside")
        if not _is_in(lifetime_s, 120, 86400):
            raise ValueError("a lifetime is 120 to 86400 seconds")
        if not isinstance(description, str):
            raise ValueError(f"{description!r} is no description")
        self.start()
        mapping = PortMapping(transport, wanted, outer, lifetime_s, on_event=on_event, release=self._release)
        held = self._held[mapping] = _Held(mapping, wanted, description)
        if self._is_known:
            asyncio.get_running_loop().call_soon(self._assign, held)
        return mapping

    def ask_again(self) -> None:
        """Mappings that no gateway gave are needed badly: ask once more, though half a minute after the last time at
        the earliest. By themselves, gateways that refuse are asked ever less, up to every half hour.
        """
        if self._sites is not None:
            for site in self._sites:
                site.ask_again()

    async def probe(self) -> tuple[GatewayReport, ...]:
        """Find out what each gateway does, by a real mapping of a port of ours with each protocol, deleted again.

        Raises:
            RuntimeError: the mapper is closed, or was meanwhile.
            OSError: this system does not tell its routes, or is not Linux.
        """
        await self._begin()
        assert self._host is not None
        probes = [
            probe(self._host, gateway, self._site_if_any(gateway), self._protocols, self._new_key)
            for gateway in self.gateways
        ]
        reports = tuple(await asyncio.gather(*probes))
        self._check_open()
        return reports

    async def list_mappings(self) -> tuple[ListedMapping, ...]:
        """All mappings that the first IPv4 gateway has, of all its hosts, by UPnP: the other protocols tell nobody.

        Raises:
            MappingFailed: it does not speak UPnP, or did not tell them all.
            RuntimeError: the mapper is closed, or was meanwhile.
            OSError: this system does not tell its routes, or is not Linux.
        """
        await self._begin()
        site = next(
            (site for gateway in self.gateways if gateway.version == 4 and (site := self._site_if_any(gateway))), None
        )
        if site is None or "upnp" not in site.session.protocols:
            raise MappingFailed("no mappings can be listed: there is no router to ask by UPnP", {})
        listed = await asyncio.shield(site.list_mappings())
        self._check_open()
        if listed.reason:
            text = f"{site.gateway} does not list its mappings: {listed.reason}"
            raise MappingFailed(text, {"upnp": listed.reason})
        return listed.mappings

    async def aclose(self) -> None:
        """Delete everything, and close; idempotent. Takes at most a second, whatever the gateways do."""
        ending: list[asyncio.Task[None]] = []
        try:
            self._begin_to_close()
            if self._sites is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await self._sites.settle()
        finally:
            if self._sites is not None:
                ending = self._sites.close()
        if ending:
            await asyncio.wait(ending, timeout=END_S)

    def close(self) -> None:
        """Close at once; idempotent.

        What a datagram can delete is deleted, though no answer is awaited, and with NAT-PMP that is one mapping; what
        is left ends with its lifetime. :meth:`aclose` deletes everything.
        """
        self._begin_to_close()
        if self._sites is not None:
            self._sites.close()

    def _begin_to_close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.close()
        for mapping in list(self._held):
            mapping.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(_CLOSED)

    async def _begin(self) -> None:
        self._check_open()
        self.start()
        await self.ready()
        self._check_open()

    def _new_key(self) -> int:
        self._keys += 1
        return self._keys

    # --- the network ---------------------------------------------------------------------------------------------

    @property
    def _is_known(self) -> bool:
        """Whether there is any sense in looking for a gateway."""
        return self._watch is not None and (self._watch.gateways is not None or bool(self._watch.trouble))

    def _on_change(self, changed: frozenset[int]) -> None:
        """The gateways are known, or others, or the interfaces with these indices are not what they were."""
        assert self._sites is not None
        gateways = self.gateways
        for site in self._sites:
            if site.gateway not in gateways:
                self._leave(site)
            elif site.gateway.index in changed:
                site.refresh()
        if gateways == self._assigned:
            return
        self._assigned = gateways
        for held in list(self._held.values()):
            held.failed.clear()
            if held.site is None:
                self._assign(held)

    def _leave(self, site: Site) -> None:
        """Its gateway is not ours any more. It is told so, as far as it can be reached."""
        assert self._sites is not None
        self._sites.leave(site)
        for held in [held for held in self._held.values() if held.site is site]:
            # Whoever heard of another one may have closed it.
            if held.site is site:
                self._detach(held)
                self._lose(held, CHANGED)

    def _site_if_any(self, gateway: Gateway) -> Site | None:
        assert self._sites is not None
        try:
            return self._sites.open(gateway)
        except OSError:
            return None

    # --- what is wanted ------------------------------------------------------------------------------------------

    def _assign(self, held: _Held) -> None:
        """Ask the next gateway that may map it."""
        if held.mapping.is_closed or held.site is not None or not self._is_known:
            return
        for gateway in self.gateways:
            if gateway in held.failed or not _fits(gateway, held.internal):
                continue
            reason = self._ask(held, gateway)
            if reason is None:
                return
            held.failed[gateway] = dict.fromkeys(self._protocols, reason)
        if held.failed:
            if held.retry is not None:
                held.retry.cancel()
            held.retry = asyncio.get_running_loop().call_later(RETRY_S, self._assign_again, held)
        self._tell_unavailable(held)

    def _assign_again(self, held: _Held) -> None:
        held.failed.clear()
        self._assign(held)

    def _ask(self, held: _Held, gateway: Gateway) -> str | None:
        """Ask one gateway; why that cannot be, or ``None``."""
        assert self._sites is not None
        mapping = held.mapping
        try:
            site = self._sites.open(gateway)
        except OSError as error:
            return f"there can be no socket on {gateway.source}: {error.strerror or error}"
        request = MapRequest(
            transport=mapping.transport,
            internal=TransportAddress(gateway.source, held.internal.port),
            external_port=mapping.external_port,
            lifetime_s=mapping.lifetime_s,
            description=held.description,
        )
        held.site, held.key, mapping.gateway = site, self._new_key(), gateway
        self._by_key[held.key] = held
        try:
            site.map(held.key, request)
        except ValueError as error:
            del self._by_key[held.key]
            held.site = mapping.gateway = None
            return str(error)
        return None

    def _detach(self, held: _Held) -> None:
        """Want it of its gateway no more."""
        site, held.site = held.site, None
        held.mapping.gateway, held.mapping.internal = None, held.internal
        self._by_key.pop(held.key, None)
        if site is not None:
            site.unmap(held.key)

    def _release(self, mapping: PortMapping) -> None:
        held = self._held.pop(mapping)
        if held.retry is not None:
            held.retry.cancel()
        self._by_key.pop(held.key, None)
        if held.site is None:
            mapping.end(is_confirmed=False)
        else:
            held.site.unmap(held.key, lambda is_confirmed: mapping.end(is_confirmed=is_confirmed))

    def _on_event(self, site: Site, event: Event) -> None:
        if isinstance(event, GatewayRestarted):
            for held in [held for held in self._held.values() if held.site is site]:
                held.mapping.tell(GatewayForgot(protocol=event.protocol))
        elif isinstance(event, Mapped | MappingLost | NoMapping):
            held_there = self._by_key.get(event.key)
            if held_there is not None:
                self._on_mapping(held_there, site, event)

    def _on_mapping(self, held: _Held, site: Site, event: Mapped | MappingLost | NoMapping) -> None:
        if isinstance(event, Mapped):
            self._on_mapped(held.mapping, site.gateway, event)
        elif isinstance(event, MappingLost):
            self._lose(held, event.reason)
        else:
            held.failed[site.gateway] = dict(event.reasons)
            others = [gateway for gateway in self.gateways if gateway not in held.failed]
            if any(_fits(gateway, held.internal) for gateway in others):
                self._detach(held)
                self._assign(held)
            else:
                # This one asks again by itself.
                self._tell_unavailable(held)

    def _no_mapping(self, transport: Transport, internal: TransportAddress, reasons: Mapping[str, str]) -> str:
        """Why there is none, as a sentence."""
        why, where = _in_words(reasons), ""
        if why:
            asked = dict.fromkeys(str(gateway) for gateway in self.gateways if _fits(gateway, internal))
            where = f" at {', '.join(asked)}" if asked else ""
        elif self.gateways:
            if ip_address(internal.host).is_unspecified:
                why = f"there is no router for IPv{internal.version}"
            else:
                mapped = ", ".join(dict.fromkeys(gateway.source for gateway in self.gateways))
                why = f"{internal.host} is no address that a router maps for this host; those are {mapped}"
        elif self._named:
            why = f"no route of this host leads to {', '.join(self._named)}"
        else:
            why = "no default route of this host leads through a router that could make one"
        return f"no mapping for {transport} port {internal.port}{where}: {why}"

    def _tell_unavailable(self, held: _Held) -> None:
        reasons = _merged(held.failed)
        if held.retry is None:
            held.failed.clear()
        if not reasons and self._watch is not None and self._watch.trouble:
            reasons = dict.fromkeys(self._protocols, self._watch.trouble)
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
        if external is not None:
            mapping.tell(MappingGone(external=external, reason=reason))


def _internal(internal: TransportAddress | int) -> TransportAddress:
    """Where what comes in is to arrive, in the one spelling.

    Raises:
        ValueError: it is no address.
    """
    if isinstance(internal, int):
        return TransportAddress(_ANY_HOST, internal)
    given: object = internal
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)):
        raise ValueError(f"{internal!r} is neither an address nor a port")
    return TransportAddress(canonical_host(internal[0]), internal[1])


def _is_in(number: object, lowest: int, highest: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and lowest <= number <= highest


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


def _in_words(reasons: Mapping[str, str]) -> str:
    """What all said, or who said what."""
    if len(said := set(reasons.values())) == 1:
        return said.pop()
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
