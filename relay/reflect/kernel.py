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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from iceagent.net.address import ip_address
from iceagent.net.host import Host, Interface, InterfaceKind
from iceagent.net.nft_messages import (
    Base,
    Checksum,
    Cmp,
    FibAddress,
    Meta,
    Verdict,
    bitwise,
    compare,
    fib_type,
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
from relay.reflect.rules import FIRST_SAFE_PORT, ReflectLimits

__all__ = ["KernelReflector"]

# The counters of the table.
ANSWERED, REFUSED, LIMITED = "answered", "refused", "limited"
# How long a source is remembered that sends no more.
SOURCE_TIMEOUT_S = 60
# Addresses of this host that are answered for.
MAX_ADDRESSES = 4_096
UDP, UDP_HEADER = 17, 8


class _Header:
    """Of one IP version: where its fields are.

    Attributes:
        ether_type: of the packets.
        own, sources, fewer: names of sets, and of the map that decrements.
        source, destination: offsets of addresses.
        size: of an address.
        counted: bytes of an address that limits count by.
        protocol: offset of the next header's number.
        hops: offset of TTL and protocol, or of next header and hop limit, 2 bytes; of the first of them is ``ttl``.
        length: of the header.
    """

    def __init__(self, version: int) -> None:
        is_ipv6 = version == 6
        self.version = version
        self.ether_type = b"\x86\xdd" if is_ipv6 else b"\x08\x00"
        self.own, self.sources, self.fewer = f"own{version}", f"sources{version}", f"fewer{version}"
        self.source, self.destination, self.size = (8, 24, 16) if is_ipv6 else (12, 16, 4)
        self.counted = 8 if is_ipv6 else 4
        self.protocol = 6 if is_ipv6 else 9
        self.length = 40 if is_ipv6 else 20
        self.hops, self.ttl = (6, 7) if is_ipv6 else (8, 8)

    def hops_of(self, ttl: int) -> bytes:
        """The two bytes with this TTL."""
        return bytes((UDP, ttl) if self.version == 6 else (ttl, UDP))


_HEADERS = (_Header(4), _Header(6))


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
        self._own: set[tuple[int, bytes]] = set()
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
        wanted: set[tuple[int, bytes]] = {(ip.version, ip.packed) for ip in map(ip_address, hosts)}
        for header in _HEADERS:
            gone = [packed for version, packed in self._own - wanted if version == header.version]
            new = [packed for version, packed in wanted - self._own if version == header.version]
            self._table.remove_keys(header.own, gone)
            self._table.add_keys(header.own, new)
        with contextlib.suppress(OSError):
            self._table.commit()
            self._own = wanted
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
        for name in (REFUSED, LIMITED, *(f"{ANSWERED}{header.version}" for header in _HEADERS)):
            table.add_counter(name)
        for name in ("main", "asked4", "asked6", "answer4", "answer6", "send"):
            table.add_chain(name)
        for header in _HEADERS:
            table.add_set(header.own, header.size, MAX_ADDRESSES)
            table.add_set(header.sources, header.counted, self._limits.sources, timeout_s=SOURCE_TIMEOUT_S)
            table.add_map(header.fewer, 2, 2, 256)
            table.add_values(header.fewer, {header.hops_of(ttl): header.hops_of(ttl - 1) for ttl in range(2, 256)})
            self._add_rules(table, header)
        # Whatever carries no Ethernet header, a tunnel, is sent as it is.
        table.add_rule(
            "send",
            load_meta(Meta.INPUT_TYPE, 0),
            compare(0, host_order(1, 2)),  # ARPHRD_ETHER
            load_payload(Base.LINK, 0, 6, 0),
            load_payload(Base.LINK, 6, 6, 2),
            store_payload(Base.LINK, 0, 6, 2),
            store_payload(Base.LINK, 6, 6, 0),
        )
        table.add_rule("send", load_meta(Meta.INPUT_INDEX, 0), forward(0))

    def _add_rules(self, table: Table, header: _Header) -> None:
        version = header.version
        is_ours = [
            load_meta(Meta.PROTOCOL, 0),
            compare(0, header.ether_type),
            load_payload(Base.NETWORK, header.protocol, 1, 0),
            compare(0, b"\x11"),
            load_payload(Base.TRANSPORT, 2, 2, 0),
            compare(0, self._port),
            load_payload(Base.NETWORK, header.destination, header.size, 0),
            lookup(header.own, 0),
        ]
        if version == 4:
            is_ours += [load_payload(Base.NETWORK, 0, 1, 0), compare(0, b"\x45")]  # No options.
            is_ours += [load_payload(Base.NETWORK, 6, 2, 0), bitwise(0, b"\x3f\xff"), compare(0, bytes(2))]  # Whole.
        # To this host's own MAC address (PACKET_HOST).
        is_ours += [load_meta(Meta.PACKET_TYPE, 0), compare(0, b"\0")]
        asked, answer = f"asked{version}", f"answer{version}"
        table.add_rule("main", *is_ours, verdict(Verdict.GOTO, asked))

        port = load_payload(Base.TRANSPORT, 0, 2, 0)
        refuse = [reference_counter(REFUSED), verdict(Verdict.DROP)]
        unicast = host_order(FibAddress.UNICAST, 4)
        table.add_rule(asked, port, compare(0, self._port), *refuse)
        table.add_rule(asked, port, compare(0, FIRST_SAFE_PORT.to_bytes(2, "big"), Cmp.LT), *refuse)
        table.add_rule(asked, fib_type(0, is_source=True), compare(0, unicast, Cmp.NEQ), *refuse)
        if version == 4:
            first = load_payload(Base.NETWORK, header.source, 1, 0)
            table.add_rule(asked, first, compare(0, b"\xf0", Cmp.GTE), *refuse)  # Reserved: 240.0.0.0/4.
        ttl = load_payload(Base.NETWORK, header.ttl, 1, 0)
        table.add_rule(asked, ttl, compare(0, b"\1", Cmp.LTE), *refuse)
        source = [load_payload(Base.NETWORK, header.source, header.counted, 0)]
        if version == 6:
            source.append(bitwise(0, b"\xff" * 7 + b"\0"))
        table.add_rule(
            asked,
            *source,
            update_set(header.sources, 0, limit(self._limits.per_source, self._limits.burst)),
            limit(self._limits.total, self._limits.total),
            verdict(Verdict.GOTO, answer),
        )
        # Too many, or too many sources.
        table.add_rule(asked, reference_counter(LIMITED), verdict(Verdict.DROP))

        one, other = 0, header.size // 4
        table.add_rule(
            answer,
            reference_counter(f"{ANSWERED}{version}"),
            load_payload(Base.NETWORK, header.hops, 2, one),
            lookup(header.fewer, one, into=one),
            store_payload(Base.NETWORK, header.hops, 2, one, *((Checksum.INET, 10) if version == 4 else ())),
            load_payload(Base.NETWORK, header.source, header.size, one),
            load_payload(Base.NETWORK, header.destination, header.size, other),
            store_payload(Base.NETWORK, header.source, header.size, other),
            store_payload(Base.NETWORK, header.destination, header.size, one),
            load_payload(Base.TRANSPORT, 0, 2, one),
            load_payload(Base.TRANSPORT, 2, 2, other),
            store_payload(Base.TRANSPORT, 0, 2, other),
            store_payload(Base.TRANSPORT, 2, 2, one),
            verdict(Verdict.GOTO, "send"),
        )


def _summed(found: Mapping[str, Counts]) -> Counter[str]:
    total = Counter(refused=found[REFUSED].packets, limited=found[LIMITED].packets)
    for header in _HEADERS:
        answered = found[f"{ANSWERED}{header.version}"]
        total["answered"] += answered.packets
        total["answered_bytes"] += answered.octets - answered.packets * (header.length + UDP_HEADER)
    return total
