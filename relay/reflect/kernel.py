"""How does the kernel answer for the reflector?

At the ingress of every device, before connection tracking and routing: what is safe to answer (``rules.py``) has the
two addresses of its IP header, the two ports of its UDP header and the two MAC addresses changed for each other, and
leaves through the device and to the neighbour that it came from. A sum is the same whichever way round, so UDP's
checksum stays; nothing is routed, so no sysctl is needed, and no address stands in a rule. The TTL is one less than it
was, so that what circles between two reflectors ends; nftables cannot subtract, so a map has the 254 results.

What the kernel lets pass goes on to the reflector's sockets: fragments, packets with IP options or IPv6 extension
headers, what came to loopback. A train of datagrams that a device has put together (GRO) counts as one.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from iceagent.net.address import ip_address
from iceagent.net.host import Host, Interface, InterfaceKind
from iceagent.net.nft_messages import (
    Base,
    Checksum,
    Cmp,
    Meta,
    Verdict,
    bitwise,
    compare,
    forward,
    host_order,
    limit,
    load_meta,
    load_payload,
    lookup,
    reference_counter,
    store_payload,
    update_set,
    verdict,
)
from iceagent.net.nftables import Counts, Table
from relay.kernel import Devices, open_table
from relay.reflect.rules import FIRST_SAFE_PORT, ReflectLimits, own_and_broadcast

__all__ = ["KernelReflector"]

# The counters of the table.
ANSWERED, REFUSED, LIMITED = "answered", "refused", "limited"
# Addresses of this host, and of broadcast.
MAX_ADDRESSES = 4_096
UDP, UDP_HEADER = 17, 8

# Which register has what: they have 4 bytes each, so an IPv6 address takes four. The first nine have the new header's
# addresses and ports, which are one run, and are written at once; see ``_Header``.
_HOPS, _NETWORK = 12, 13


class _Header:
    """Of one IP version: where its fields are.

    Attributes:
        ether_type: of the packets.
        own: name of the set of addresses that are answered for.
        never: name of the set of sources that are never answered.
        sources: name of the set of those that are, with what they may still send.
        fewer: name of the map that decrements.
        source, destination: offsets of addresses.
        size: of an address.
        counted: bytes of an address that limits count by.
        protocol: offset of the next header's number.
        hops: offset of TTL and protocol, or of next header and hop limit, 2 bytes; ``ttl``: of the one of them.
        length: of the header.
        new_source, new_destination, new_ports: their registers.
        unicast: how a host's address begins: all of this holds.
        special: how one begins that is a multicast, loopback or reserved one: any of this does.
    """

    def __init__(self, version: int) -> None:
        is_ipv6 = version == 6
        self.version = version
        self.ether_type = b"\x86\xdd" if is_ipv6 else b"\x08\x00"
        self.own, self.never = f"own{version}", f"never{version}"
        self.sources, self.fewer = f"sources{version}", f"fewer{version}"
        self.source, self.destination, self.size = (8, 24, 16) if is_ipv6 else (12, 16, 4)
        self.counted = 8 if is_ipv6 else 4
        self.protocol = 6 if is_ipv6 else 9
        self.length = 40 if is_ipv6 else 20
        self.hops, self.ttl = (6, 7) if is_ipv6 else (8, 8)
        self.new_source, self.new_destination = 0, self.size // 4
        self.new_ports = 2 * self.new_destination
        if is_ipv6:
            self.unicast, self.special = [(b"\xff", Cmp.NEQ)], [(b"\xff", Cmp.EQ)]
        else:
            # 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4, 240.0.0.0/4
            self.unicast = [(b"\x00", Cmp.NEQ), (b"\x7f", Cmp.NEQ), (b"\xe0", Cmp.LT)]
            self.special = [(b"\x00", Cmp.EQ), (b"\x7f", Cmp.EQ), (b"\xe0", Cmp.GTE)]

    def hops_of(self, ttl: int) -> bytes:
        """The two bytes with this TTL."""
        return bytes((UDP, ttl) if self.version == 6 else (ttl, UDP))

    def of(self, hosts: Iterable[str]) -> frozenset[bytes]:
        """Those of this version, packed."""
        return frozenset(ip.packed for ip in map(ip_address, hosts) if ip.version == self.version)


_HEADERS = (_Header(4), _Header(6))
_NEVER = ("::", "::1")
"""Beside this host's own addresses and broadcast: what ``_Header.unicast`` does not know of."""


class KernelReflector:
    """Answers in the kernel, as long as it is open.

    Args:
        host: where; one without a kernel of its own (a host in memory) has none.
        port: the reflector's.
        limits: see there.
        interface: answer on this one only.
    """

    def __init__(self, host: Host, port: int, limits: ReflectLimits, *, interface: str | None = None) -> None:
        self._host = host
        self._port = port.to_bytes(2, "big")
        self._limits = limits
        self._name = f"iceagent-reflect-{port}"
        self._interface = interface
        self._table: Table | None = None
        self._devices: Devices | None = None
        self._keys: dict[str, frozenset[bytes]] = {
            name: frozenset() for header in _HEADERS for name in (header.own, header.never)
        }
        self._last: Counter[str] = Counter()

    async def open(self) -> None:
        """Install the table; it answers nothing before :meth:`follow`.

        Raises:
            KernelUnavailable: this process may not, or the kernel cannot.
        """
        self._table = open_table(self._host, self._name, self._fill)
        self._devices = Devices(self._table, "main")

    def follow(self, interfaces: Sequence[Interface], hosts: Iterable[str]) -> None:
        """Answer on these interfaces, for these addresses of this host, from now on. What the kernel refuses is left to
        the sockets.
        """
        if self._table is None or self._devices is None:
            return
        never = frozenset.union(*own_and_broadcast(interfaces), _NEVER)
        wanted: dict[str, frozenset[bytes]] = {}
        for header in _HEADERS:
            wanted |= {header.own: header.of(hosts), header.never: header.of(never)}
        for name, keys in wanted.items():
            self._table.remove_keys(name, self._keys[name] - keys)
            self._table.add_keys(name, keys - self._keys[name])
        with contextlib.suppress(OSError):
            self._table.commit()
            self._keys = wanted
        self._devices.follow(
            each
            for each in interfaces
            if each.kind is not InterfaceKind.LOOPBACK and self._interface in (None, each.name)
        )

    def counters(self) -> Counter[str]:
        """What was answered (datagrams and payload bytes), refused and limited since :meth:`open`."""
        if self._table is not None:
            with contextlib.suppress(OSError):  # It did not answer in time: what was known last.
                self._last = _summed(self._table.counters())
        return Counter(self._last)

    def close(self) -> None:
        """Remove the table; idempotent."""
        table, self._table = self._table, None
        if table is not None:
            table.close()

    def _fill(self, table: Table) -> None:
        # Silent for so long, a source has its burst whole again, and need not be remembered: while the set is full,
        # nobody else is answered, and whoever forges sources can fill it.
        timeout_s = math.ceil(self._limits.burst / self._limits.per_source)
        for name in (REFUSED, LIMITED, *(f"{ANSWERED}{header.version}" for header in _HEADERS)):
            table.add_counter(name)
        for name in ("main", "asked4", "asked6", "send"):
            table.add_chain(name)
        for header in _HEADERS:
            for name in (header.own, header.never):
                table.add_set(name, header.size, MAX_ADDRESSES)
            table.add_set(header.sources, header.counted, self._limits.sources, timeout_s=timeout_s)
            table.add_map(header.fewer, 2, 2, 256)
            table.add_values(header.fewer, {header.hops_of(ttl): header.hops_of(ttl - 1) for ttl in range(2, 256)})
            table.add_rule("main", *self._is_ours(header), verdict(Verdict.GOTO, f"asked{header.version}"))
            # What can be answered is decided and done in one rule; the others only say what was the matter.
            table.add_rule(f"asked{header.version}", *self._answer(header))
            for expressions in self._refusals(header):
                refuse = [reference_counter(REFUSED), verdict(Verdict.DROP)]
                table.add_rule(f"asked{header.version}", *expressions, *refuse)
            # Too many, or too many sources.
            table.add_rule(f"asked{header.version}", reference_counter(LIMITED), verdict(Verdict.DROP))
        table.add_rule(
            "send",
            load_meta(Meta.INPUT_TYPE, 0),
            compare(0, host_order(1, 2)),  # ARPHRD_ETHER
            load_payload(Base.LINK, 0, 6, 0),
            load_payload(Base.LINK, 6, 6, 2),
            store_payload(Base.LINK, 0, 6, 2),
            store_payload(Base.LINK, 6, 6, 0),
            load_meta(Meta.INPUT_INDEX, 4),
            forward(4),
        )
        # Whatever carries no Ethernet header, a tunnel, is sent as it is.
        table.add_rule("send", load_meta(Meta.INPUT_INDEX, 0), forward(0))

    def _is_ours(self, header: _Header) -> list[bytes]:
        """It is UDP, to our port at an address that we answer for, whole, and for this machine."""
        found = [
            load_meta(Meta.PROTOCOL, 0),
            compare(0, header.ether_type),
            load_payload(Base.NETWORK, header.protocol, 1, 0),
            compare(0, bytes((UDP,))),
            load_payload(Base.TRANSPORT, 2, 2, 0),
            compare(0, self._port),
            load_payload(Base.NETWORK, header.destination, header.size, 0),
            lookup(header.own, 0),
        ]
        if header.version == 4:
            found += [load_payload(Base.NETWORK, 0, 1, 0), compare(0, b"\x45")]  # No options.
            found += [
                load_payload(Base.NETWORK, 6, 2, 0),
                bitwise(0, b"\x3f\xff"),
                compare(0, bytes(2)),
            ]  # Whole.
        # To this host's own MAC address (PACKET_HOST).
        return [*found, load_meta(Meta.PACKET_TYPE, 0), compare(0, b"\0")]

    def _answer(self, header: _Header) -> list[bytes]:
        """What is safe to answer, and within the limits, is turned round."""
        source, own, ports = header.new_destination, header.new_source, header.new_ports
        network = [load_payload(Base.NETWORK, header.source, header.counted, _NETWORK)]
        if header.version == 6:
            network.append(bitwise(_NETWORK, b"\xff" * 7 + b"\0"))
        ip_checksum = (Checksum.INET, 10) if header.version == 4 else ()
        return [
            # Two bytes before the UDP header, and its source port: our own port takes the place of the former.
            load_payload(Base.NETWORK, header.length - 2, 4, ports),
            bitwise(ports, b"\0\0\xff\xff", self._port + b"\0\0"),
            compare(ports, self._port + FIRST_SAFE_PORT.to_bytes(2, "big"), Cmp.GTE),
            compare(ports, self._port + self._port, Cmp.NEQ),
            load_payload(Base.NETWORK, header.source, header.size, source),
            *(compare(source, value, how) for value, how in header.unicast),
            lookup(header.never, source, is_inverted=True),
            load_payload(Base.NETWORK, header.hops, 2, _HOPS),
            lookup(header.fewer, _HOPS, into=_HOPS),
            *network,
            update_set(header.sources, _NETWORK, limit(self._limits.per_source, self._limits.burst)),
            limit(self._limits.total, self._limits.total),
            reference_counter(f"{ANSWERED}{header.version}"),
            load_payload(Base.NETWORK, header.destination, header.size, own),
            store_payload(Base.NETWORK, header.source, 2 * header.size + 4, own),
            store_payload(Base.NETWORK, header.hops, 2, _HOPS, *ip_checksum),
            verdict(Verdict.GOTO, "send"),
        ]

    def _refusals(self, header: _Header) -> list[list[bytes]]:
        """What is never answered, a rule each: the opposites of what :meth:`_answer` asks for."""
        port = load_payload(Base.TRANSPORT, 0, 2, 0)
        source = load_payload(Base.NETWORK, header.source, header.size, 0)
        return [
            [port, compare(0, FIRST_SAFE_PORT.to_bytes(2, "big"), Cmp.LT)],
            [port, compare(0, self._port)],
            [source, lookup(header.never, 0)],
            [load_payload(Base.NETWORK, header.ttl, 1, 0), compare(0, b"\x01", Cmp.LTE)],
            *([source, compare(0, value, how)] for value, how in header.special),
        ]


def _summed(found: Mapping[str, Counts]) -> Counter[str]:
    total = Counter(refused=found[REFUSED].packets, limited=found[LIMITED].packets)
    for header in _HEADERS:
        answered = found[f"{ANSWERED}{header.version}"]
        total["answered"] += answered.packets
        total["answered_bytes"] += answered.octets - answered.packets * (header.length + UDP_HEADER)
    return total
