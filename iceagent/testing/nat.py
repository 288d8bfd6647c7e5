"""How does a NAT treat a packet?

A NAT is a key function and a filter (RFC 4787). The key function says which flows share a mapping: all of an internal
endpoint (EIM), those to one address (ADM), those to one endpoint (APDM). The filter says which external endpoints may
use the mapping: all (EIF), those of an address sent to before (ADF), those sent to before (APDF). The rest is which
outside port a new mapping gets (:class:`Allocation`), and when it dies (``lifetime_s``).

:class:`NatModel` translates, ``FirewallModel`` (``iceagent/testing/firewall.py``) only filters; both are a
:class:`Middlebox`. They know nothing of links, hops or queues: ``iceagent/testing/network.py`` carries packets through
them. An entry of any table lives while ``now < last use + lifetime_s``.

What Linux does and the RFC has no word for: port overloading is not modelled (an outside port belongs to one internal
endpoint); the early-packet trap is (``early_packet_trap``). Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.testing.allocation import BLOCK_SIZE, PORTS, Allocation, PortAllocator
from iceagent.testing.expiring import Expiring

__all__ = ["Allocation", "Middlebox", "NatModel", "Pooling"]

LIFETIME_S = 120.0
"""RFC 4787, REQ-5: "A NAT UDP mapping timer MUST NOT expire in less than two minutes"."""

SESSION_LIMIT = 65_536
"""Flows a middlebox remembers; a home router's table is of this order."""

STRANGER_LIMIT = 4_096
"""Unsolicited flows that a NAT with the early-packet trap remembers."""


class Pooling(Enum):
    """Which of several external addresses an internal host gets (RFC 4787, 4.1): always the same, or any."""

    PAIRED = "paired"
    ARBITRARY = "arbitrary"


class Middlebox(Protocol):
    """What stands between an inside and an outside."""

    @property
    def external_hosts(self) -> tuple[str, ...]:
        """Addresses it translates to; empty: it does not translate, and inside addresses are known outside."""

    @property
    def hairpin(self) -> bool:
        """Whether inside hosts reach each other through external addresses (RFC 4787, 6)."""

    def outbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """A packet leaves: its source as seen outside, or ``None``: dropped."""

    def inbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """A packet arrives: the internal endpoint it is for, or ``None``: dropped."""

    def forget(self) -> None:
        """Lose all state, as a reboot does."""


@dataclass(slots=True, eq=False)
class _Binding:
    """One mapping: X:x is X':x' outside, for every flow that has the same key."""

    inside: TransportAddress
    external: TransportAddress
    key: object
    is_forward: bool = False


def _any(remote: TransportAddress) -> object:
    return None


def _host(remote: TransportAddress) -> object:
    return remote.host


def _endpoint(remote: TransportAddress) -> object:
    return remote


_MAPPING_KEY = {Mapping.EIM: _any, Mapping.ADM: _host, Mapping.APDM: _endpoint}
FILTER_KEY = {Filtering.EIF: _any, Filtering.ADF: _host, Filtering.APDF: _endpoint}


class NatModel:
    """A NAT of RFC 4787.

    Args:
        external: its external addresses, at least one, all of one IP version.
        rng: for random ports and arbitrary pooling.
        mapping: EIM, ADM or APDM.
        filtering: EIF, ADF or APDF.
        allocation: which port a new mapping gets.
        ports: the pool it gets it from.
        step: of a sequential allocation.
        block_size: ports of one internal host, where allocation is by block.
        pooling: which of several external addresses.
        lifetime_s: seconds from the last packet that refreshes to the end of a mapping, a permission or a poisoning.
        inbound_refresh: whether packets that come in refresh too (RFC 4787, REQ-6: outbound MUST, inbound MAY).
        hairpin: whether internal hosts reach each other through it, with external source addresses (REQ-9).
        early_packet_trap: a stranger's packet that is not let in still occupies its flow, as it does on a Linux router
            that accepts it for itself: when the internal endpoint then sends to that stranger, the flow gets another
            outside port, and so do the new flows after it.
        session_limit: flows it remembers; further ones are dropped.

    Raises:
        ValueError: no or mixed external addresses, or a mapping or filtering that is no behaviour of a NAT.
    """

    def __init__(
        self,
        external: Sequence[str],
        rng: random.Random,
        *,
        mapping: Mapping = Mapping.EIM,
        filtering: Filtering = Filtering.APDF,
        allocation: Allocation = Allocation.PRESERVING,
        ports: range = PORTS,
        step: int = 1,
        block_size: int = BLOCK_SIZE,
        pooling: Pooling = Pooling.PAIRED,
        lifetime_s: float = LIFETIME_S,
        inbound_refresh: bool = False,
        hairpin: bool = False,
        early_packet_trap: bool = False,
        session_limit: int = SESSION_LIMIT,
    ) -> None:
        if mapping not in _MAPPING_KEY or filtering not in FILTER_KEY:
            raise ValueError(f"a NAT cannot have mapping {mapping.value!r} and filtering {filtering.value!r}")
        self.external_hosts = _checked_hosts(external)
        self.mapping = mapping
        self.filtering = filtering
        self.hairpin = hairpin
        self.early_packet_trap = early_packet_trap
        self._key = _MAPPING_KEY[mapping]
        self._inbound_refresh = inbound_refresh
        self._pooling = pooling
        self._rng = rng
        self._allocator = PortAllocator(allocation, ports, step, block_size, rng)
        self._paired: dict[str, str] = {}
        self._forwards: dict[TransportAddress, _Binding] = {}
        self._flows: Expiring[tuple[TransportAddress, TransportAddress], _Binding] = Expiring(lifetime_s, session_limit)
        self._by_key: Expiring[tuple[TransportAddress, object], _Binding] = Expiring(lifetime_s, session_limit)
        self._by_external: Expiring[TransportAddress, _Binding] = Expiring(lifetime_s, session_limit)
        self._permitted: Expiring[tuple[TransportAddress, str], None] = Expiring(lifetime_s, session_limit)
        self._strangers: Expiring[tuple[TransportAddress, TransportAddress], None] = Expiring(
            lifetime_s, STRANGER_LIMIT
        )

    def outbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """Translate; ``None``: no port is free or the session table is full."""
        self._expire(now)
        flow = (source, destination)
        binding = self._flows.get(flow) or self._shared(source, destination) or self._bind(source, destination, now)
        if binding is None or not self._flows.touch(flow, binding, now):
            return None
        self._refresh(binding, destination, now)
        return binding.external

    def inbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """Translate back; ``None``: no mapping, or the filter says no."""
        self._expire(now)
        binding = self._forwards.get(destination) or self._by_external.get(destination)
        if binding is None or not self._admits(binding, source):
            if self.early_packet_trap:
                self._strangers.touch((destination, source), None, now)
            return None
        flow = (binding.inside, source)
        if binding.is_forward and flow not in self._flows:
            self._flows.touch(flow, binding, now)
        if self._inbound_refresh:
            if self._flows.get(flow) is binding:
                self._flows.touch(flow, binding, now)
            self._refresh(binding, source, now)
        return binding.inside

    def forward(self, external: TransportAddress, inside: TransportAddress) -> None:
        """Open a port for good, as UPnP, NAT-PMP and PCP do: any stranger's packet to ``external`` reaches ``inside``.

        Flows that come in through it are answered from ``external``; flows that ``inside`` starts are mapped as ever.

        Raises:
            ValueError: ``external`` is not of this NAT, or taken.
        """
        if external.host not in self.external_hosts or external in self._forwards:
            raise ValueError(f"{external} cannot be opened: not an address of this NAT, or open already")
        self._forwards[external] = _Binding(inside, external, None, is_forward=True)

    def withdraw(self, external: TransportAddress) -> None:
        """Undo :meth:`forward`; unknown addresses are fine."""
        self._forwards.pop(external, None)

    def readdress(self, external: Sequence[str]) -> None:
        """Take other external addresses and forget everything, as after a new DHCP lease or PPP session."""
        self.external_hosts = _checked_hosts(external)
        self._paired.clear()
        self._forwards.clear()
        self.forget()

    def forget(self) -> None:
        for table in (self._flows, self._by_key, self._by_external, self._permitted, self._strangers):
            table.clear()
        self._allocator.forget()

    def session_count(self, now: float) -> int:
        """Live flows."""
        self._expire(now)
        return len(self._flows)

    def external_of(self, inside: TransportAddress, remote: TransportAddress, now: float) -> TransportAddress | None:
        """The live mapping that a packet from ``inside`` to ``remote`` would use, if any. Refreshes nothing."""
        self._expire(now)
        binding = self._flows.get((inside, remote)) or self._shared(inside, remote)
        return None if binding is None else binding.external

    def _expire(self, now: float) -> None:
        self._flows.expire(now)
        self._by_key.expire(now)
        self._by_external.expire(now)
        self._permitted.expire(now)
        self._strangers.expire(now)

    def _shared(self, inside: TransportAddress, remote: TransportAddress) -> _Binding | None:
        """The mapping that the key function gives to a new flow, unless a stranger occupies that flow."""
        binding = self._by_key.get((inside, self._key(remote)))
        if binding is None or (binding.external, remote) in self._strangers:
            return None
        return binding

    def _bind(self, inside: TransportAddress, remote: TransportAddress, now: float) -> _Binding | None:
        """A new mapping; it is the one that later flows with the same key share."""
        external = self._free_external(inside, remote)
        if external is None:
            return None
        binding = _Binding(inside, external, self._key(remote))
        is_stored = self._by_external.touch(external, binding, now)
        return binding if is_stored and self._by_key.touch((inside, binding.key), binding, now) else None

    def _refresh(self, binding: _Binding, remote: TransportAddress, now: float) -> None:
        if binding.is_forward:
            return
        self._by_external.touch(binding.external, binding, now)
        key = (binding.inside, binding.key)
        if self._by_key.get(key) in (None, binding):
            self._by_key.touch(key, binding, now)
        if self.filtering is Filtering.ADF:
            self._permitted.touch((binding.external, remote.host), None, now)

    def _admits(self, binding: _Binding, remote: TransportAddress) -> bool:
        if binding.is_forward or self.filtering is Filtering.EIF:
            return True
        if self.filtering is Filtering.ADF:
            return (binding.external, remote.host) in self._permitted
        return self._flows.get((binding.inside, remote)) is binding

    def _free_external(self, inside: TransportAddress, remote: TransportAddress) -> TransportAddress | None:
        host = self._external_host(inside.host)
        for port in self._allocator.candidates(host, inside, self._key(remote)):
            external = TransportAddress(host, port)
            forward = self._forwards.get(external)
            is_taken = external in self._by_external or (forward is not None and forward.inside != inside)
            if not is_taken and (external, remote) not in self._strangers:
                return external
        return None

    def _external_host(self, inside_host: str) -> str:
        if self._pooling is Pooling.ARBITRARY:
            return self._rng.choice(self.external_hosts)
        index = len(self._paired) % len(self.external_hosts)
        return self._paired.setdefault(inside_host, self.external_hosts[index])


def _checked_hosts(external: Sequence[str]) -> tuple[str, ...]:
    hosts = tuple(canonical_host(host) for host in external)
    if len({ip_address(host).version for host in hosts}) != 1:
        raise ValueError(f"a NAT has external addresses of one IP version, not {list(external)!r}")
    return hosts
