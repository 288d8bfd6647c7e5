"""Which kinds of router are there, what does each promise, and by which rules of nftables does it keep that?

Every kind is one entry of :data:`KINDS`: what it does in the words of RFC 4787, and its rules. A classifier
(``classify.py``) measures each of them in the tests and has to find what stands here.

How Linux makes a NAT of each kind:

- Plain ``snat`` keeps the inside port where it is free and remembers it by source: endpoint-independent mapping. Its
  connection tracking lets in what belongs to a known flow: address-and-port-dependent filtering.
- A *cone* adds a dynamic map, outside port → inside endpoint, and where it filters by address a set of whom the port
  has sent to. Both are written behind the source NAT, where the outside port is known, and read before the destination
  NAT of what arrives.
- A mapping that depends on the destination is a hash over it that chooses the port; ``fully-random`` chooses a new one
  for every flow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iceagent.lab.errors import LabError
from iceagent.nat.kinds import Filtering, Mapping

__all__ = ["BLOCK_SIZE", "KINDS", "Egress", "Kind", "Setting", "kind_named", "rules"]

# RFC 7422: a carrier's NAT may give each customer a block of ports of this size, say.
BLOCK_SIZE = 2_048
MAX_PORT = 65_535
# Where kinds that do not keep the port take theirs from; a block begins here too.
FIRST_PORT, LAST_PORT = 40_000, 59_999
SEQUENCE_PORTS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One router: what its rules depend on.

    Attributes:
        wan: its outside IPv4 address.
        lan: its inside IPv4 network, ``192.168.1.0/24``.
        hairpin: inside hosts reach each other through outside addresses.
        lifetime_s: seconds that a binding lives unused.
        ipv6_open: let IPv6 in from outside; else only what belongs to a flow from inside.
        needs_answers: a UDP flow over IPv4 that was answered once lives for ``lifetime_s`` after the last packet that
            came in, whatever it sends: as behind carriers that ignore heartbeats which nobody answers.
    """

    wan: str
    lan: str
    hairpin: bool = False
    lifetime_s: int = 30
    ipv6_open: bool = False
    needs_answers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What a router lets out.

    Attributes:
        udp_ports: destination ports; ``None``: all.
        tcp_ports: destination ports; ``None``: all.
        blocked: IPv4 addresses that nothing reaches.

    Raises:
        LabError: a port or an address is none.
    """

    udp_ports: tuple[int, ...] | None = None
    tcp_ports: tuple[int, ...] | None = None
    blocked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for ports in (self.udp_ports, self.tcp_ports):
            for port in ports or ():
                if port not in range(1, MAX_PORT + 1):
                    raise LabError(f"a port is a number from 1 to {MAX_PORT}, not {port!r}")
        for host in self.blocked:
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise LabError(f"what is blocked is an IPv4 address, not {host!r}") from None

    def rules(self) -> list[str]:
        """Rules of a forward chain that drop the rest."""
        found = [f"ip daddr {{ {', '.join(self.blocked)} }} drop"] if self.blocked else []
        for protocol, ports in (("udp", self.udp_ports), ("tcp", self.tcp_ports)):
            if ports is not None:
                some = f" {protocol} dport != {{ {', '.join(map(str, ports))} }}" if ports else ""
                found.append(f'iifname "lan" meta l4proto {protocol}{some} drop')
        return found


EVERYTHING = Egress()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of router.

    Attributes:
        name: as it is chosen by.
        summary: a line for people.
        mapping: which flows share an outside port; ``UNKNOWN``: no UDP passes.
        filtering: who may answer.
        keeps_port: the outside port is the inside one where that is free.
        is_translating: inside addresses are private; else they are known outside.
        can_hairpin: knows ``Setting.hairpin``.
        has_early_packet_trap: a stranger's packet that comes before our own gives our flow to him another port.
        egress: what it lets out.
        nat: the rules of its table ``ip nat``.
    """

    name: str
    summary: str
    mapping: Mapping
    filtering: Filtering
    keeps_port: bool = True
    is_translating: bool = True
    can_hairpin: bool = False
    has_early_packet_trap: bool = False
    egress: Egress = EVERYTHING
    nat: Callable[[Setting], Sequence[str]] = field(repr=False)


def kind_named(name: str) -> Kind:
    """The kind of this name.

    Raises:
        LabError: there is none.
    """
    found = KINDS.get(name)
    if found is None:
        raise LabError(f"there is no kind of router called {name!r}; there are {', '.join(KINDS)}")
    return found


# miniupnpd writes into the first three.
_FOR_MINIUPNPD = (
    *("chain miniupnpd {", "}", "chain prerouting_miniupnpd {", "}", "chain postrouting_miniupnpd {", "}"),
    "chain mapped_in {",
    "type nat hook prerouting priority dstnat - 1;",
    "jump prerouting_miniupnpd",
    "}",
    "chain mapped_out {",
    "type nat hook postrouting priority srcnat - 1;",
    "jump postrouting_miniupnpd",
    "}",
)


def rules(kind: Kind, setting: Setting, egress: Egress = EVERYTHING, extra: str = "") -> str:
    """All rules of a router, to be loaded in the place of what it had.

    Args:
        kind: of router.
        setting: see there.
        egress: what it lets out, beside what its kind says.
        extra: one more rule for what is forwarded, before all others.
    """
    forward = [
        *([extra] if extra else []),
        *(_ONLY_ANSWERED if setting.needs_answers else ()),
        "ct state established,related accept",
        "jump miniupnpd",
        *kind.egress.rules(),
        *egress.rules(),
        'iifname { "lan", "nat64" } accept',
        "ct status dnat accept",
    ]
    if not kind.is_translating and kind.filtering is Filtering.EIF:
        forward.append("meta nfproto ipv4 accept")
    if setting.ipv6_open:
        forward.append("meta nfproto ipv6 accept")
    accepting = ['iifname "wan" accept'] if kind.has_early_packet_trap else []
    lines = [
        "table inet filter",
        "delete table inet filter",
        "table ip nat",
        "delete table ip nat",
        "table inet filter {",
        *_answered(setting),
        *_FOR_MINIUPNPD,
        "chain input {",
        "type filter hook input priority filter; policy drop;",
        'iifname { "lo", "lan", "nat64" } accept',
        "ct state established,related accept",
        "meta l4proto { icmp, ipv6-icmp } accept",
        *accepting,
        "}",
        "chain forward {",
        "type filter hook forward priority filter; policy drop;",
        *forward,
        "}",
        "}",
        "table ip nat {",
        *kind.nat(setting),
        "}",
    ]
    return "\n".join(lines) + "\n"


# --- who has to be answered -------------------------------------------------------------------------------------------

# In the forward chain both directions show the inside endpoint: what leaves is translated behind it, what comes in
# before it. Connection tracking itself is refreshed by what is dropped here, too: a flow that was answered, and is no
# more, is blocked until it has been silent for as long as a binding lives. One that was never answered begins anew.
_OUT = "ip saddr . udp sport . ip daddr . udp dport"
_IN = "ip daddr . udp dport . ip saddr . udp sport"
_ONLY_ANSWERED = (
    f'iifname "lan" ct state new add @answered {{ {_OUT} }}',
    f'iifname "lan" meta l4proto udp {_OUT} != @answered drop',
    f'iifname "wan" meta l4proto udp ct direction reply {_IN} != @answered drop',
    f'iifname "wan" ct direction reply update @answered {{ {_IN} }}',
)


def _answered(setting: Setting) -> list[str]:
    if not setting.needs_answers:
        return []
    timeout = f"flags dynamic,timeout; timeout {setting.lifetime_s}s;"
    return [f"set answered {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; {timeout}", "}"]


# --- rules of table ip nat -------------------------------------------------------------------------------------------


def _none(_: Setting) -> list[str]:
    return []


def _source_nat(*statements: str) -> Callable[[Setting], list[str]]:
    """A NAT whose every flow is its own: what comes in belongs to one."""

    def make(setting: Setting) -> list[str]:
        return _postrouting(*(f'oifname "wan" {statement.format(wan=setting.wan)}' for statement in statements))

    return make


def _from_a_list(choice: str, count: int) -> Callable[[Setting], list[str]]:
    """The outside port of a UDP flow is the entry of a list of ``count`` ports that the expression ``choice`` names."""

    def make(setting: Setting) -> list[str]:
        ports = ", ".join(f"{number} : {FIRST_PORT + number}" for number in range(count))
        return [
            "map ports {",
            "typeof numgen inc mod 1 : udp dport",
            f"elements = {{ {ports} }}",
            "}",
            *_postrouting(
                f'oifname "wan" meta l4proto udp snat to {setting.wan} : {choice} mod {count} map @ports',
                f'oifname "wan" snat to {setting.wan}',
            ),
        ]

    return make


def _postrouting(*lines: str) -> list[str]:
    return ["chain postrouting {", "type nat hook postrouting priority srcnat;", *lines, "}"]


def _cone(known: tuple[str, ...]) -> Callable[[Setting], list[str]]:
    """A cone whose port is open to whom it has sent to, as far as ``known`` goes: not at all, address, and port."""

    def make(setting: Setting) -> list[str]:
        timeout = f"flags dynamic,timeout; timeout {setting.lifetime_s}s;"
        contacted = " . ".join(("inet_service", *(_TYPES[field] for field in known)))
        lines = [f"map eim {{ type inet_service : ipv4_addr . inet_service; {timeout}", "}"]
        if known:
            lines += [f"set contacted {{ type {contacted}; {timeout}", "}"]
        arriving = " . ".join(("udp dport", *(_SOURCES[field] for field in known))) + " @contacted" if known else ""
        lines += [
            "chain prerouting {",
            "type nat hook prerouting priority dstnat;",
            f'iifname "wan" meta l4proto udp {arriving} dnat to udp dport map @eim',
        ]
        if setting.hairpin:
            lines.append(f'iifname "lan" ip daddr {setting.wan} meta l4proto udp dnat to udp dport map @eim')
        lines.append("}")
        sources = [f'oifname "wan" snat to {setting.wan}']
        if setting.hairpin:
            sources.append(f'oifname "lan" ip saddr {setting.lan} ct status dnat snat to {setting.wan}')
        lines += _postrouting(*sources)
        # Behind the source NAT: udp sport is the outside port, what is inside stands in the flow's first packet.
        lines += ["chain bindings {", "type filter hook postrouting priority srcnat + 5;"]
        lines += [f'oifname "wan" {rule}' for rule in _note(known, "ip daddr", "udp dport")]
        if setting.hairpin:
            hairpinned = f'oifname "lan" ip saddr {setting.wan} ct status dnat'
            lines += [f"{hairpinned} {rule}" for rule in _note(known, "ct original ip daddr", "ct original proto-dst")]
            if known:
                asking = " . ".join(("ct original proto-dst", *(_SOURCES[field] for field in known)))
                lines.append(f"{hairpinned} meta l4proto udp ct direction original {asking} != @contacted drop")
        return [*lines, "}"]

    return make


_TYPES = {"address": "ipv4_addr", "port": "inet_service"}
_SOURCES = {"address": "ip saddr", "port": "udp sport"}


def _note(known: tuple[str, ...], address: str, port: str) -> list[str]:
    """Keep the binding alive, and note whom it sends to."""
    ours = "meta l4proto udp ct direction original"
    found = [f"{ours} update @eim {{ udp sport : ct original ip saddr . ct original proto-src }}"]
    if known:
        fields = " . ".join(("udp sport", *({"address": address, "port": port}[field] for field in known)))
        found.append(f"{ours} update @contacted {{ {fields} }}")
    return found


_RANGE = f"snat to {{wan}}:{FIRST_PORT}-{LAST_PORT}"
_BLOCK = f"snat to {{wan}}:{FIRST_PORT}-{FIRST_PORT + BLOCK_SIZE - 1}"

_ALL = (
    Kind(
        name="open",
        summary="routes public addresses, filters nothing",
        mapping=Mapping.EIM,
        filtering=Filtering.EIF,
        is_translating=False,
        nat=_none,
    ),
    Kind(
        name="firewall",
        summary="routes public addresses, lets in answers only",
        mapping=Mapping.EIM,
        filtering=Filtering.APDF,
        is_translating=False,
        nat=_none,
    ),
    Kind(
        name="full-cone",
        summary="a port is open to everybody",
        mapping=Mapping.EIM,
        filtering=Filtering.EIF,
        can_hairpin=True,
        nat=_cone(()),
    ),
    Kind(
        name="addr-restricted",
        summary="a port is open to every host it has sent to",
        mapping=Mapping.EIM,
        filtering=Filtering.ADF,
        can_hairpin=True,
        nat=_cone(("address",)),
    ),
    Kind(
        name="port-restricted-strict",
        summary="a port is open to every endpoint it has sent to; a stranger's packet changes nothing",
        mapping=Mapping.EIM,
        filtering=Filtering.APDF,
        can_hairpin=True,
        nat=_cone(("address", "port")),
    ),
    Kind(
        name="port-restricted",
        summary="Linux's ordinary NAT; drops what strangers send to the router",
        mapping=Mapping.EIM,
        filtering=Filtering.APDF,
        nat=_source_nat("snat to {wan}"),
    ),
    Kind(
        name="port-restricted-naive",
        summary="the same, but takes what strangers send: the early-packet trap",
        mapping=Mapping.EIM,
        filtering=Filtering.APDF,
        has_early_packet_trap=True,
        nat=_source_nat("snat to {wan}"),
    ),
    Kind(
        name="eim-random",
        summary="one random outside port for each inside port",
        mapping=Mapping.EIM,
        filtering=Filtering.APDF,
        keeps_port=False,
        nat=_source_nat(f"meta l4proto udp {_RANGE}", "snat to {wan}"),
    ),
    Kind(
        name="addr-symmetric",
        summary="another outside port for each host",
        mapping=Mapping.ADM,
        filtering=Filtering.APDF,
        keeps_port=False,
        nat=_from_a_list("jhash ip daddr . ip saddr . udp sport", SEQUENCE_PORTS),
    ),
    Kind(
        name="symmetric",
        summary="another random outside port for each endpoint",
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        keeps_port=False,
        nat=_source_nat("masquerade fully-random"),
    ),
    Kind(
        name="symmetric-seq",
        summary="the next outside port for each endpoint",
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        keeps_port=False,
        nat=_from_a_list("numgen inc", SEQUENCE_PORTS),
    ),
    Kind(
        name="symmetric-block",
        summary=f"another random outside port for each endpoint, out of a block of {BLOCK_SIZE:,}",
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        keeps_port=False,
        nat=_source_nat(f"meta l4proto udp {_BLOCK} fully-random", "snat to {wan}"),
    ),
    Kind(
        name="no-udp",
        summary="lets out TCP to ports 80 and 443 only",
        mapping=Mapping.UNKNOWN,
        filtering=Filtering.UNKNOWN,
        egress=Egress(udp_ports=(), tcp_ports=(80, 443)),
        keeps_port=False,
        nat=_source_nat("snat to {wan}"),
    ),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
