"""How does the kernel forward for the latching relay?

One map for each IP version: the five-tuple that comes in, to the five-tuple that goes out, the device and the neighbour
to send to. A packet at the ingress of a device that is found there has its addresses and ports replaced, its TTL
decremented, and is gone, before connection tracking and routing; so no sysctl is needed. A channel costs two entries,
and no rule.

What goes up to the relay's sockets: STUN Binding requests, so that a side can latch; fragments; packets with IP options
or extension headers, or with a VLAN tag, which would leave with it (the VLAN's own device sees them without one); what
is longer than the smallest MTU here; and whatever is not in the map. Link-local addresses are not in it: which link
they are on is known to the sockets alone.

A next hop is what the routes say when a flow is added, and again whenever interfaces or default routes change, and
every :data:`ROUTES_AGAIN_S`.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Sequence
from socket import NETLINK_ROUTE
from typing import Any

from iceagent.net.address import ip_address
from iceagent.net.host import Host, Interface, InterfaceKind, Subscription
from iceagent.net.next_hop import Routes
from iceagent.net.nft_messages import (
    Base,
    Checksum,
    Cmp,
    Meta,
    Verdict,
    bitwise,
    compare,
    counter,
    forward,
    host_order,
    load_meta,
    load_payload,
    lookup,
    store_payload,
    verdict,
)
from iceagent.net.nftables import Counts, Table
from relay.kernel import Devices, open_table
from relay.latch.channel import Flow

__all__ = ["KernelForwarder"]

TABLE = "iceagent-relay"
MAX_FLOWS = 65_536
"""Of each IP version."""

ROUTES_AGAIN_S = 30.0
"""A route that is none of the defaults may change without a word to us."""

BINDING_REQUEST = b"\x00\x01"
MAGIC_COOKIE = b"\x21\x12\xa4\x42"
ETHERNET = host_order(1, 2)
"""ARPHRD_ETHER."""

UDP_HEADER = 8

GONE = 0x7FFFFFFF
"""Index that no interface has."""


class _Version:
    """Of one IP version: where its fields are.

    Attributes:
        flows: the map's name.
        ether_type: of the packets.
        addresses: offset of the source address; the destination's, and the UDP header, follow it.
        size: of an address.
        protocol: offset of the next header's number.
        length: offset of the length, 2 bytes; ``uncounted`` bytes of the packet are not in it.
        header: bytes of the IP header.
        key_size: both addresses and both ports.
    """

    def __init__(self, version: int) -> None:
        is_ipv6 = version == 6
        self.version = version
        self.flows = f"flows{version}"
        self.ether_type = b"\x86\xdd" if is_ipv6 else b"\x08\x00"
        self.addresses, self.size, self.header = (8, 16, 40) if is_ipv6 else (12, 4, 20)
        self.protocol = 6 if is_ipv6 else 9
        self.length, self.uncounted = (4, 40) if is_ipv6 else (2, 0)
        self.key_size = 2 * self.size + 4

    def key(self, flow: Flow) -> bytes:
        """The five-tuple that comes in."""
        return _tuple(flow.source, flow.arrives_at)

    def value(self, flow: Flow, index: int, neighbour: bytes) -> bytes:
        """The five-tuple that goes out, and where."""
        return _tuple(flow.leaves_from, flow.destination) + struct.pack("=I", index) + neighbour


_VERSIONS = {4: _Version(4), 6: _Version(6)}


class KernelForwarder:
    """Forwards flows in the kernel, as long as it is open. Belongs to the running loop.

    Args:
        host: where; one without a kernel of its own (a host in memory) has none.
        interface: come in and go out through this one only.
        on_change: called when flows may have moved to the sockets, or back, because interfaces or routes changed.

    Attributes:
        flows: how many are forwarded in the kernel.
    """

    def __init__(
        self, host: Host, *, interface: str | None = None, on_change: Callable[[], None] | None = None
    ) -> None:
        self._host = host
        self._interface = interface
        self._egress = 0  # Its index; 0: whichever the routes say.
        self._on_change = on_change
        self._table: Table | None = None
        self._routes: Routes | None = None
        self._devices: Devices | None = None
        self._interfaces, self._default_routes = Subscription(), Subscription()
        self._mtu: int | None = None
        self._values: dict[Flow, bytes | None] = {}  # None: the sockets forward it.
        self._flows: dict[bytes, Flow] = {}
        self._before: dict[Flow, Counts] = {}  # Of the entries that the present one replaces.
        self._resolved_at = 0.0

    @property
    def flows(self) -> int:
        return len(self._flows)

    async def open(self) -> None:
        """Install the table.

        Raises:
            KernelUnavailable: this process may not, or the kernel cannot.
        """
        host: Any = self._host
        self._table = open_table(self._host, TABLE, self._fill)
        try:
            self._routes = Routes(host.netlink(NETLINK_ROUTE))
            self._devices = Devices(self._table, "main")
            # Watched first, read then: no change falls between the two.
            self._interfaces = self._host.watch_interfaces(self._follow)
            self._default_routes = self._host.watch_default_routes(lambda routes: self._resolve())
            self._follow(await self._host.interfaces())
        except BaseException:
            self.close()
            raise

    def change(self, remove: Iterable[Flow], add: Iterable[Flow]) -> None:
        """Forward the flows of ``add`` from now on, and those of ``remove`` no more, in one transaction. What cannot be
        forwarded here (one that changes the IP version, or stays on this machine, or has no route) is left to the
        sockets, and so is everything that the kernel refuses.
        """
        if self._table is None:
            return
        gone = [flow for flow in remove if flow in self._values]
        old = [flow for flow in gone if self._values.pop(flow) is not None]
        for flow in gone:
            self._before.pop(flow, None)
        new = {flow: self._value(flow) for flow in add}
        self._values.update(new)
        self._write(old, [flow for flow, value in new.items() if value is not None])

    def counts(self, flows: Sequence[Flow] | None = None) -> dict[Flow, tuple[int, int]]:
        """Packets and payload bytes of each flow, or of these, that were forwarded here since it was added. Of a flow
        that the kernel does not tell of in time, nothing is told.
        """
        if self._table is None:
            return {}
        try:
            if flows is not None:
                return self._read(flows)
            if self._host.now() > self._resolved_at + ROUTES_AGAIN_S:
                self._resolve()
            return self._read()
        except OSError:
            return {}

    def close(self) -> None:
        """Remove the table; idempotent."""
        self._interfaces.close()
        self._default_routes.close()
        table, self._table = self._table, None
        if table is not None:
            table.close()
        self._flows.clear()
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.close()

    def _read(self, flows: Sequence[Flow] | None = None) -> dict[Flow, tuple[int, int]]:
        assert self._table is not None
        found: dict[Flow, tuple[int, int]] = dict(self._before)
        for version in _VERSIONS.values():
            keys = None
            if flows is not None:
                same = [flow for flow in flows if flow.source.version == version.version]
                keys = [version.key(flow) for flow in same if self._values.get(flow) is not None]
            for key, (packets, octets) in self._table.values(version.flows, keys):
                flow = self._flows.get(key)
                if flow is None:
                    continue
                octets -= packets * (version.header + UDP_HEADER)
                before = self._before.get(flow, Counts(0, 0))
                found[flow] = (before.packets + packets, before.octets + octets)
        return found

    def _value(self, flow: Flow) -> bytes | None:
        """The map's value for a flow; ``None``: it has none."""
        version = _VERSIONS[flow.source.version]
        if flow.destination.version != version.version or self._routes is None:
            return None
        if any(ip_address(address.host).is_link_local for address in flow):
            return None
        try:
            hop = self._routes.next_hop(flow.leaves_from.host, flow.destination.host, self._egress)
        except OSError:
            return None
        if hop is None or len(hop.neighbour) != version.size:
            return None
        return version.value(flow, hop.device, hop.neighbour)

    def _write(self, old: Sequence[Flow], new: Sequence[Flow]) -> None:
        """Take old ones out and put new ones in; at once, or, where the kernel refuses that, each by itself. One that
        stayed would go on to somebody who is not latched any more: rather than that, all of them end.
        """
        if self._attempt(old, new):
            return
        if not all(self._attempt([flow], ()) for flow in old):
            self.close()
            return
        for flow in new:
            if not self._attempt((), [flow]):
                self._values[flow] = None

    def _attempt(self, old: Sequence[Flow], new: Sequence[Flow]) -> bool:
        assert self._table is not None
        for version in _VERSIONS.values():
            gone = [version.key(flow) for flow in old if flow.source.version == version.version]
            self._table.remove_keys(version.flows, gone)
            values = {
                version.key(flow): value
                for flow in new
                if flow.source.version == version.version and (value := self._values[flow]) is not None
            }
            self._table.add_values(version.flows, values)
        try:
            self._table.commit()
        except OSError:
            return False
        for flow in old:
            self._flows.pop(_tuple(flow.source, flow.arrives_at), None)
        for flow in new:
            self._flows[_tuple(flow.source, flow.arrives_at)] = flow
        return True

    def _follow(self, interfaces: Sequence[Interface]) -> None:
        """Interfaces have changed."""
        if self._table is None or self._devices is None:
            return
        outer = [
            each
            for each in interfaces
            if each.kind is not InterfaceKind.LOOPBACK and self._interface in (None, each.name)
        ]
        if self._interface is not None:
            # One that has gone leads nowhere; the number of none does neither.
            self._egress = next((each.index for each in outer), GONE)
        self._limit_lengths(min((each.mtu for each in outer if each.is_up), default=1280))
        # Nothing is forwarded before its length is looked at.
        self._devices.follow(() if self._mtu is None else outer)
        self._resolve()

    def _resolve(self) -> None:
        """Ask for every next hop again."""
        if self._table is None:
            return
        self._resolved_at = self._host.now()
        found = {flow: self._value(flow) for flow in self._values}
        changed = [flow for flow, value in found.items() if value != self._values[flow]]
        if not changed:
            return
        old = [flow for flow in changed if self._values[flow] is not None]
        with contextlib.suppress(OSError):
            self._before.update({flow: Counts(*each) for flow, each in self._read(old).items()})
        self._values.update({flow: found[flow] for flow in changed})
        self._write(old, [flow for flow in changed if found[flow] is not None])
        if self._on_change is not None:
            self._on_change()

    def _fill(self, table: Table) -> None:
        for name in ("main", *(f"udp{each}" for each in _VERSIONS)):
            table.add_chain(name)
        for version in _VERSIONS.values():
            value_size = version.key_size + 4 + version.size
            table.add_map(version.flows, version.key_size, value_size, MAX_FLOWS, expression=counter())
            self._add_rules(table, version)

    def _add_rules(self, table: Table, version: _Version) -> None:
        # With a VLAN tag, that stands where the EtherType is looked for; a tunnel has neither.
        on_ethernet = [load_payload(Base.LINK, 12, 2, 0), compare(0, version.ether_type)]
        in_a_tunnel = [
            *(load_meta(Meta.INPUT_TYPE, 0), compare(0, ETHERNET, Cmp.NEQ)),
            *(load_meta(Meta.PROTOCOL, 0), compare(0, version.ether_type)),
        ]
        is_udp = [
            load_payload(Base.NETWORK, version.protocol, 1, 0),
            compare(0, b"\x11"),
        ]
        if version.version == 4:
            is_udp += [load_payload(Base.NETWORK, 0, 1, 0), compare(0, b"\x45")]  # No options.
            is_udp += [load_payload(Base.NETWORK, 6, 2, 0), bitwise(0, b"\x3f\xff"), compare(0, bytes(2))]  # Whole.
        # To this host's own MAC address (PACKET_HOST).
        is_udp += [load_meta(Meta.PACKET_TYPE, 0), compare(0, b"\0")]
        for link in (on_ethernet, in_a_tunnel):
            table.add_rule("main", *link, *is_udp, verdict(Verdict.GOTO, f"udp{version.version}"))

    def _limit_lengths(self, mtu: int) -> None:
        assert self._table is not None
        if mtu == self._mtu:
            return
        for version in _VERSIONS.values():
            self._table.remove_rules(f"udp{version.version}")
            self._add_forwarding(self._table, version, mtu)
        try:
            self._table.commit()
        except OSError:
            return  # At the next change again.
        self._mtu = mtu

    def _add_forwarding(self, table: Table, version: _Version, mtu: int) -> None:
        udp = f"udp{version.version}"
        table.add_rule(
            udp,
            load_payload(Base.TRANSPORT, UDP_HEADER, 2, 0),
            compare(0, BINDING_REQUEST),
            load_payload(Base.TRANSPORT, UDP_HEADER + 4, 4, 0),
            compare(0, MAGIC_COOKIE),
            verdict(Verdict.ACCEPT),
        )
        longest = max(0, min(mtu, 65_535) - version.uncounted)
        fits = [load_payload(Base.NETWORK, version.length, 2, 0), compare(0, longest.to_bytes(2, "big"), Cmp.LTE)]
        # A UDP checksum of 0, which IPv4 allows, means that there is none, and stays 0.
        has_checksum = [load_payload(Base.TRANSPORT, 6, 2, 0), compare(0, bytes(2), Cmp.NEQ)]
        table.add_rule(udp, *fits, *has_checksum, *_send(version, Checksum.INET))
        if version.version == 4:
            table.add_rule(udp, *fits, *_send(version, Checksum.NONE))


def _send(version: _Version, port_checksum: Checksum) -> list[bytes]:
    """Find the flow, and send the packet its way; IP header and UDP header lie behind each other."""
    words = version.size // 4
    header = Checksum.BOTH if version.version == 4 else Checksum.PSEUDO_HEADER
    ports, device = 2 * words, 2 * words + 1
    return [
        load_payload(Base.NETWORK, version.addresses, version.key_size, 0),
        lookup(version.flows, 0, into=0),
        store_payload(Base.NETWORK, version.addresses, 2 * version.size, 0, header, 10),
        store_payload(Base.TRANSPORT, 0, 4, ports, port_checksum, 6),
        forward(device, device + 1, version.version),
    ]


def _tuple(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    addresses = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return addresses + struct.pack("!HH", source[1], destination[1])
