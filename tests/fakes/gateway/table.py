"""Which mappings are there, and who asked for them? One table for all protocols, as miniupnpd has it. Pure.

A mapping is known by its transport and its external port (IPv4), or by its transport and internal address (IPv6, where
inside and outside are the same and it is a pinhole). Strict in time: what lives until T is gone at T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iceagent.net.address import TransportAddress
from portmap.values import ProtocolName, Transport
from tests.fakes.gateway.faults import MappingFaults

__all__ = ["MAX_MAPPINGS", "PORTS", "PortMapping", "Table", "TableFull"]

MAX_MAPPINGS = 256

PORTS = range(1024, 65536)
"""External ports that may be had, but for those of :data:`RESERVED`."""

RESERVED = frozenset({("udp", 5350), ("udp", 5351)})
"""RFC 6887, 11.3: "A PCP server MUST NOT create client mappings for external UDP ports 5350 or 5351"."""

ANY_PORTS = range(49152, 65536)
"""Where a port is taken from if none was suggested."""


class TableFull(Exception):
    """There is room, or there are ports, for no more."""


@dataclass(slots=True, eq=False)
class PortMapping:
    """A mapping.

    Attributes:
        number: never used twice; the UniqueID of a pinhole.
        transport: of what comes in.
        internal: where it goes to.
        external_port: where it comes in.
        protocols: who asked for it.
        expires_at: when it is gone; ``None``: never.
        nonce: of PCP.
        client: who asked for it by PCP, where updates of it go to.
        description: of UPnP.
    """

    number: int
    transport: Transport
    internal: TransportAddress
    external_port: int
    protocols: set[ProtocolName]
    expires_at: float | None
    nonce: bytes | None = None
    client: TransportAddress | None = None
    description: str = ""

    def lifetime_s(self, now: float) -> int:
        """Whole seconds that are left; 0 also where it never ends (as UPnP says that)."""
        # A float a little below the whole number that was given is that number.
        return 0 if self.expires_at is None else max(0, int(self.expires_at - now + 1e-6))


class Table:
    """All mappings.

    Args:
        faults: may change.
        shares_rules: see :class:`tests.fakes.gateway.Options`.
    """

    def __init__(self, faults: MappingFaults, *, shares_rules: bool) -> None:
        self.faults = faults
        self.shares_rules = shares_rules
        self._mappings: list[PortMapping] = []
        self._last_number = 0
        self._next_port = ANY_PORTS.start

    def __iter__(self) -> Iterator[PortMapping]:
        return iter(tuple(self._mappings))

    def __len__(self) -> int:
        return len(self._mappings)

    def expire(self, now: float) -> None:
        """Let go what has lived its time."""
        self._mappings = [each for each in self._mappings if each.expires_at is None or now < each.expires_at]

    def clear(self) -> None:
        """Forget all."""
        self._mappings.clear()

    def of(self, transport: Transport, internal: TransportAddress, protocol: ProtocolName) -> PortMapping | None:
        """The mapping of an inner port that this protocol would find there."""
        for each in self._mappings:
            is_visible = self.shares_rules or protocol in each.protocols
            if (each.transport, each.internal) == (transport, internal) and is_visible:
                return each
        return None

    def at(self, transport: Transport, external_port: int) -> PortMapping | None:
        """The IPv4 mapping of an external port."""
        for each in self._mappings:
            if (each.transport, each.external_port) == (transport, external_port) and each.internal.version == 4:
                return each
        return None

    def numbered(self, number: int) -> PortMapping | None:
        """The one of that number."""
        return next((each for each in self._mappings if each.number == number), None)

    def grant(
        self,
        protocol: ProtocolName,
        transport: Transport,
        internal: TransportAddress,
        suggested: int,
        lifetime_s: int | None,
        now: float,
    ) -> PortMapping:
        """Make a mapping, or renew the one that there is.

        Args:
            protocol: who asks.
            transport: of what is to come in.
            internal: where to.
            suggested: the external port, if it can be had; 0: any.
            lifetime_s: ``None``: for ever.
            now: the time.

        Raises:
            TableFull: it cannot be.
        """
        found = self.of(transport, internal, protocol)
        if found is None:
            port = internal.port if internal.version == 6 else self._free_port(transport, suggested)
            found = self._make(protocol, transport, internal, port)
        elif self.faults.is_renewed_elsewhere and internal.version == 4:
            found.external_port = self._next_free(transport, found.external_port + 1)
        self.renew(found, protocol, lifetime_s, now)
        return found

    def grant_at(
        self,
        transport: Transport,
        internal: TransportAddress,
        external_port: int,
        lifetime_s: int | None,
        now: float,
    ) -> PortMapping | None:
        """Make an IPv4 mapping of exactly this external port, or renew or change it, as UPnP's AddPortMapping does.

        Returns:
            ``None``: the port is another host's.

        Raises:
            TableFull: there is room for no more.
        """
        found = self.at(transport, external_port)
        if found is None:
            found = self._make("upnp", transport, internal, external_port)
        elif found.internal.host != internal.host:
            return None
        # The same client overwrites its own, also with another inner port; on miniupnpd by AddAnyPortMapping too.
        found.internal = internal
        self.renew(found, "upnp", lifetime_s, now)
        return found

    def renew(self, mapping: PortMapping, protocol: ProtocolName, lifetime_s: int | None, now: float) -> None:
        """Let a mapping live so long from now."""
        given = lifetime_s if self.faults.lifetime_s is None else self.faults.lifetime_s
        mapping.protocols.add(protocol)
        mapping.expires_at = None if given is None else now + given
        self.expire(now)

    def delete(self, mapping: PortMapping) -> None:
        """Delete one; with :attr:`shares_rules`, every one of its inner port with it."""
        self._mappings = [
            each
            for each in self._mappings
            if each is not mapping
            and not (self.shares_rules and (each.transport, each.internal) == (mapping.transport, mapping.internal))
        ]

    def is_free(self, transport: Transport, port: int) -> bool:
        """Whether an external port could be had."""
        return port in PORTS and (transport, port) not in RESERVED and self.at(transport, port) is None

    def _make(self, protocol: ProtocolName, transport: Transport, internal: TransportAddress, port: int) -> PortMapping:
        if len(self._mappings) >= MAX_MAPPINGS:
            raise TableFull
        self._last_number += 1
        made = PortMapping(self._last_number, transport, internal, port, {protocol}, None)
        if not self.faults.has_no_effect:
            self._mappings.append(made)
        return made

    def _free_port(self, transport: Transport, suggested: int) -> int:
        if self.faults.external_port is not None:
            return self.faults.external_port
        if suggested:
            return self._next_free(transport, suggested)
        port = self._next_free(transport, self._next_port)
        self._next_port = port + 1 if port + 1 in ANY_PORTS else ANY_PORTS.start
        return port

    def _next_free(self, transport: Transport, port: int) -> int:
        """This one, or the next one that is free, as miniupnpd takes it."""
        start = max(port, PORTS.start) - PORTS.start
        for offset in range(len(PORTS)):
            candidate = PORTS[(start + offset) % len(PORTS)]
            if self.is_free(transport, candidate):
                return candidate
        raise TableFull
