"""How does a router's port mapping become a candidate of ours?

A base on a private IPv4 address gets a mapping of its port (:mod:`portmap`) at the router that its interface's default
route leads to, for as long as it lives. What the router says is outside becomes a server-reflexive candidate with the
base as related address (RFC 8445, 5.1.1.2, knows no other kind), above those that STUN servers saw: whoever the peer is
and whatever its NAT does, what it sends there arrives. It comes when it comes; nobody waits for it.

All agents of a host share one :class:`portmap.PortMapper`: a router is asked once what it speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from weakref import WeakKeyDictionary

from iceagent.candidate import Candidate, CandidateType
from iceagent.events import Event, PortMapped, PortMappingLost, PortMappingUnavailable
from iceagent.gather.bases import Base
from iceagent.net.address import TransportAddress
from iceagent.net.host import Host
from portmap.mapper import PortMapper
from portmap.mapping import (
    MappingChanged,
    MappingEvent,
    MappingGone,
    MappingMade,
    MappingUnavailable,
    PortMapping,
)
from portmap.values import Trust

__all__ = ["Mapped", "is_mappable"]


class _Shared:
    """The mapper of a host, and how many agents use it."""

    __slots__ = ("mapper", "users")

    def __init__(self, host: Host) -> None:
        self.mapper = PortMapper(host, versions=(4,))
        self.users = 0


_shared: WeakKeyDictionary[Host, _Shared] = WeakKeyDictionary()


def is_mappable(base: TransportAddress) -> bool:
    """Whether a port mapping could be of use: not where the address is global already, nor where no router is asked.

    With IPv6, both sides' checks open both firewalls: there a pinhole brings nothing.
    """
    ip = base.ip
    return ip.version == 4 and not (ip.is_global or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


class Mapped:
    """Asks routers for mappings.

    Args:
        host: whose routers.
        found: called with every candidate.
        lost: called with the base and the address of a candidate that is none any more.
        tell: called with events for the application.
    """

    __slots__ = ("_complaints", "_found", "_host", "_lost", "_mappings", "_shared", "_tell")

    is_done = True

    def __init__(
        self,
        host: Host,
        *,
        found: Callable[[Candidate], object],
        lost: Callable[[TransportAddress, TransportAddress], object],
        tell: Callable[[Event], None],
    ) -> None:
        self._host = host
        self._found = found
        self._lost = lost
        self._tell = tell
        self._mappings: dict[TransportAddress, PortMapping] = {}
        self._complaints: dict[TransportAddress, Mapping[str, str]] = {}
        self._shared: _Shared | None = None

    def start(self, base: Base) -> None:
        """A base came up."""
        if not is_mappable(base.address):
            return
        if self._shared is None:
            self._shared = _shared.get(self._host)
            if self._shared is None:
                self._shared = _shared[self._host] = _Shared(self._host)
            self._shared.users += 1
        self.stop(base)
        try:
            mapping = self._shared.mapper.hold("udp", base.address, on_event=partial(self._on_event, base))
        except OSError as error:
            reasons = {name: str(error) for name in ("pcp", "nat-pmp", "upnp")}
            self._complain(base, reasons)
        else:
            self._mappings[base.address] = mapping

    def stop(self, base: Base) -> None:
        """A base is gone, and its mapping with it."""
        self._complaints.pop(base.address, None)
        mapping = self._mappings.pop(base.address, None)
        if mapping is not None:
            mapping.close()

    def ask_again(self) -> None:
        """Data goes over a relay: ask routers that gave no mapping once more, each twice a minute at most."""
        if self._shared is not None:
            self._shared.mapper.ask_again()

    async def give_back(self) -> None:
        """Delete all mappings, and wait until the routers say so, at most a second."""
        closing = [mapping.aclose() for mapping in self._mappings.values()]
        self._mappings.clear()
        try:
            await asyncio.gather(*closing)
        finally:
            shared = self._leave()
            if shared is not None:
                await shared.mapper.aclose()

    def close(self) -> None:
        """Stop everything at once; idempotent. What deletes the mappings is sent, and its answer not awaited."""
        for mapping in self._mappings.values():
            mapping.close()
        self._mappings.clear()
        shared = self._leave()
        if shared is not None:
            shared.mapper.close()

    def _leave(self) -> _Shared | None:
        """The mapper, if nobody uses it any more."""
        shared, self._shared = self._shared, None
        if shared is None:
            return None
        shared.users -= 1
        if shared.users:
            return None
        _shared.pop(self._host, None)
        return shared

    def _on_event(self, base: Base, mapping: PortMapping, event: MappingEvent) -> None:
        if self._mappings.get(base.address) is not mapping:
            # It was closed; another one may be there.
            return
        if isinstance(event, MappingMade):
            self._complaints.pop(base.address, None)
            self._announce(base, mapping)
        elif isinstance(event, MappingChanged):
            self._lost(base.address, event.old)
            self._announce(base, mapping)
        elif isinstance(event, MappingGone):
            self._lost(base.address, event.external)
            lost = PortMappingLost(internal=base.address, external=event.external, reason=event.reason)
            self._tell(lost)
        elif isinstance(event, MappingUnavailable) and event.reasons:
            self._complain(base, event.reasons)

    def _complain(self, base: Base, reasons: Mapping[str, str]) -> None:
        """Routers are asked again and again; what they say is told when it is new."""
        if self._complaints.get(base.address) != reasons:
            self._complaints[base.address] = reasons
            self._tell(PortMappingUnavailable(internal=base.address, reasons=reasons))

    def _announce(self, base: Base, mapping: PortMapping) -> None:
        external, protocol, gateway = mapping.external, mapping.protocol, mapping.gateway
        assert external is not None and protocol is not None and gateway is not None
        mapped = PortMapped(
            internal=base.address,
            external=external,
            protocol=protocol,
            gateway=gateway.host,
            lifetime_s=mapping.granted_s,
            trust=mapping.trust.value,
        )
        self._tell(mapped)
        if mapping.trust is Trust.GLOBAL:
            origin = f"port mapping ({protocol} at {gateway.host})"
            self._found(base.candidate(CandidateType.SERVER_REFLEXIVE, external, origin, is_mapped=True))
