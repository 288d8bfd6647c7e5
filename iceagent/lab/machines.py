"""What stands in a laboratory? Machines, routers between them, and the Internet that joins those.

The Internet is one router with a network of its own for every *site*: whatever travels from one site to another
crosses it, so that a packet can die between two NATs. Its addresses look public (20.0.N.0/24, 2620:1:N::/48 for site
N), because some router software refuses to work with the documentation networks of RFC 5737; they exist in the
laboratory only.

Every home has the same inside network, 192.168.1.0/24, as homes do; behind a carrier's NAT the homes are in
100.64.0.0/24 (RFC 6598).
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from iceagent.lab.errors import LabError
from iceagent.lab.host import LabHost
from iceagent.lab.kinds import EVERYTHING, Egress, Kind, Setting, rules
from iceagent.lab.namespace import Namespace
from iceagent.lab.wire import Impairment, Wire

if TYPE_CHECKING:
    from iceagent.lab.lab import Lab

__all__ = ["Internet", "Machine", "Network", "Router", "Uplink", "check_network"]

HOME_LAN = "192.168.1"
CARRIER_LAN = "100.64.0"
# The highest number of a site, and of a host in a network.
MAX_SITES = 250
MAX_HOSTS = 120
# Linux looks once a second at links that are in no hurry.
LINK_TIMEOUT_S = 5.0
# Of the routes through a machine's second uplink: worse than the first one's, and a table of their own.
SECOND_METRIC, SECOND_TABLE = 100, 100
# What nf_conntrack_udp_timeout takes is in ticks of the kernel, and has 32 bits.
MAX_LIFETIME_S = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """How a machine is reached and what it reaches others through.

    Attributes:
        addresses: of the link, with prefix lengths; IPv4 first.
        gateways: next hops of the default routes.
        lan: an IPv4 network that is routed to this machine, as its first three numbers and the number of its first
            host (``("20.0.1", 129)``); ``None``: there is none.
        lan6: an IPv6 /64 that is routed to this machine, without its ``::``; ``None``: there is none.
        wire: the cable, where it can be impaired.
    """

    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    wire: Wire | None = None
    lan: tuple[str, int] | None = None
    lan6: str | None = None

    @property
    def host(self) -> str:
        """The first address."""
        return self.addresses[0].split("/")[0]


class Network(Protocol):
    """What a machine can be plugged into."""

    def plug(self, namespace: Namespace, device: str, addresses: int, impairment: Impairment | None) -> Uplink:
        """Lay a cable to ``device`` of a machine, with so many IPv4 addresses; it is up afterwards, with routes.

        Args:
            namespace: the machine's.
            device: what the machine's end is called.
            addresses: how many IPv4 addresses the machine gets.
            impairment: of the cable; ``None``: it has none, ever, and is faster.
        """


class Machine:
    """A computer in the laboratory.

    Attributes:
        name: unique in its laboratory.
        namespace: its network; for what is not offered here.
        uplink: how it is connected.
    """

    device = "eth0"

    def __init__(
        self, lab: Lab, name: str, network: Network, *, addresses: int = 1, impairment: Impairment | None = None
    ) -> None:
        self._lab = lab
        self._addresses = addresses
        self.name = name
        self.namespace = lab.add_namespace(name)
        self.uplink = network.plug(self.namespace, self.device, addresses, impairment)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.address}>"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its IP addresses, IPv4 first."""
        return tuple(address.split("/")[0] for address in self.uplink.addresses)

    @property
    def address(self) -> str:
        """Its first address, IPv4 where it has any."""
        return self.uplink.host

    @property
    def folder(self) -> Path:
        """Its own, for logs and configurations; removed with the laboratory."""
        folder = self._lab.folder / self.name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def lab_names(self) -> Mapping[str, Sequence[str]]:
        """What the laboratory's names stand for by now."""
        return self._lab.names

    def wait_until(self, fact: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        """Look at ``fact`` until it is true.

        Raises:
            LabError: it is not, after so many seconds.
        """
        self._lab.wait_until(fact, timeout_s, complaint)

    @property
    def wire(self) -> Wire:
        """Its cable, to be impaired.

        Raises:
            LabError: it was not made for that.
        """
        if self.uplink.wire is None:
            raise LabError(f"the cable of {self.name} was made without an impairment, and cannot get one")
        return self.uplink.wire

    @property
    def host(self) -> LabHost:
        """What an :class:`iceagent.Agent` takes as its host; belongs to the running loop."""
        return self._lab.host_of(self)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on this machine; the laboratory ends it, and what it starts, at the latest when it closes.

        Args:
            command: the program and its arguments.
            options: as :class:`subprocess.Popen` takes them.

        Raises:
            LabError: it is not installed.
        """
        return self._lab.popen(self.namespace, command, **options)

    def use_name_server(self, host: str) -> None:
        """Programs on this machine ask the name server at this IP address from now on; before, they have none.

        Raises:
            LabError: it is no IP address.
        """
        _check_address(host)
        self._lab.resolv_conf(self.name).write_text(f"nameserver {host}\n")

    def run(self, command: Sequence[str], text: str = "") -> str:
        """Run a program to its end, with ``text`` as its input, and return its output.

        Raises:
            LabError: it failed, with its own words; it is not installed; or it took longer than 30 s.
        """
        return self.namespace.run(command, text)

    def set_link(self, *, is_up: bool) -> None:
        """Pull the cable, or plug it in again; its routes come back with it."""
        self.namespace.set_link(self.device, is_up=is_up)
        if is_up:
            for address in self.uplink.addresses:
                self.namespace.add_address(self.device, address)
            _route_all(self.namespace, self.uplink.gateways)

    def add_uplink(self, network: Network, device: str = "eth1") -> Uplink:
        """Plug it into one more network, which is used where the first one has no route, and for what is sent from an
        address that it gives.

        Args:
            network: where the same addresses are not in use as in the others; a carrier's, say (``is_carrier``).
            device: what the machine's end is called.

        Raises:
            LabError: the machine has such an address already, or such a device.
        """
        check_network(network)
        uplink = network.plug(self.namespace, device, 1, None)
        if any(_is_same_network(new, old) for new in uplink.addresses for old in self.uplink.addresses):
            self.namespace.delete_link(device)
            raise LabError(f"{self.name} is in {uplink.addresses[0]}'s network already: both would have one address")
        # What was plugged in last has the default route now.
        _route_all(self.namespace, self.uplink.gateways)
        self.namespace.ip(
            *(f"route add default via {gateway} dev {device} metric {SECOND_METRIC}" for gateway in uplink.gateways),
            *(f"route add default via {gateway} dev {device} table {SECOND_TABLE}" for gateway in uplink.gateways),
            *(f"rule add from {address.split('/')[0]} table {SECOND_TABLE}" for address in uplink.addresses),
        )
        return uplink

    def roam(self, network: Network) -> None:
        """Leave the network, and join another one: other addresses, another router. Sockets stay open."""
        check_network(network)
        self.namespace.delete_link(self.device)
        self.uplink = network.plug(self.namespace, self.device, self._addresses, None)
        self._lab.tell_names(self)

    def hosts_of(self, version: int) -> tuple[str, ...]:
        """Its addresses of one IP version."""
        return tuple(host for host in self.hosts if (":" in host) == (version == 6))

    def deprecate(self, host: str) -> None:
        """One of its IPv6 addresses is to be used no more for what is new (RFC 4862, 5.5.4)."""
        address = next((each for each in self.uplink.addresses if each.split("/")[0] == host), None)
        if address is None or ":" not in host:
            raise LabError(f"{host} is no IPv6 address of {self.name}")
        self.namespace.add_address(self.device, address, is_deprecated=True)


class Router(Machine):
    """A router with a NAT, a firewall, or nothing.

    Attributes:
        kind: see :data:`iceagent.lab.kinds.KINDS`.
        setting: what its rules depend on.
    """

    device = "wan"

    def __init__(
        self,
        lab: Lab,
        name: str,
        kind: Kind,
        network: Network,
        *,
        hairpin: bool = False,
        lifetime_s: int = 30,
        unanswered_lifetime_s: int | None = None,
        needs_answers: bool = False,
        egress: Egress = EVERYTHING,
        ipv6: str | None = None,
        is_carrier: bool = False,
        is_ipv6_only: bool = False,
        impairment: Impairment | None = None,
    ) -> None:
        _check_lifetime(lifetime_s)
        if unanswered_lifetime_s is not None and kind.can_hairpin:
            raise LabError(f"a router of the kind {kind.name} has one lifetime, whether somebody answers or not")
        if hairpin and not kind.can_hairpin:
            raise LabError(f"a router of the kind {kind.name} knows no hairpin")
        if ipv6 not in (None, "firewall", "open"):
            raise LabError(f"ipv6 is {ipv6!r}, it can be None, 'firewall' or 'open'")
        if is_ipv6_only and ipv6 is None:
            raise LabError("a router for IPv6 only needs IPv6: 'firewall' or 'open'")
        super().__init__(lab, name, network, impairment=impairment)
        self.kind = kind
        self._egress = egress
        self._is_carrier = is_carrier
        self._is_ipv6_only = is_ipv6_only
        self._has_ipv6 = ipv6 is not None and self.uplink.lan6 is not None
        self._ports = 0
        self._prefix, self._first, length = self._inside()
        self.setting = Setting(
            wan=self.address,
            lan=f"{self._prefix}.{self._first - 1}/{length}",
            hairpin=hairpin,
            lifetime_s=lifetime_s,
            ipv6_open=ipv6 == "open",
            needs_answers=needs_answers,
        )
        self.namespace.bridge("lan")
        inside = [f"{self._prefix}.{self._first}/{length}"]
        if self._has_ipv6:
            inside.append(f"{self.uplink.lan6}::1/64")
        self.namespace.up("lan", *inside)
        self._length = length
        self.namespace.sysctl("ipv4/ip_forward", 1)
        if self._has_ipv6:
            self.namespace.sysctl("ipv6/conf/all/forwarding", 1)
        self.set_lifetime(lifetime_s, unanswered_lifetime_s)

    @property
    def lan_address(self) -> str:
        """Its inside IPv4 address."""
        return f"{self._prefix}.{self._first}"

    @property
    def inside_host6(self) -> str | None:
        """Its inside IPv6 address; ``None``: there is no IPv6 behind it."""
        return f"{self.uplink.lan6}::1" if self._has_ipv6 else None

    def plug(self, namespace: Namespace, device: str, addresses: int, impairment: Impairment | None) -> Uplink:
        """Lay a cable to one of the inside machines."""
        if self._ports + addresses > MAX_HOSTS:
            raise LabError(f"{self.name} has no address left for {addresses} more, it has {MAX_HOSTS}")
        first = self._first + 1 + self._ports
        self._ports += addresses
        port = f"p{first}"
        found: list[str] = []
        gateways: list[str] = []
        if not self._is_ipv6_only:
            found += [f"{self._prefix}.{first + i}/{self._length}" for i in range(addresses)]
            gateways.append(self.lan_address)
        if self._has_ipv6:
            found += [f"{self.uplink.lan6}::{first + i:x}/64" for i in range(addresses)]
            gateways.append(f"{self.uplink.lan6}::1")
        wire = self._lab.lay(namespace, device, self.namespace, port, impairment)
        namespace.up(device, *found)
        self.namespace.up(port, master="lan")
        _wait_for_links(self._lab, (self.namespace, port), (self.namespace, "lan"), (namespace, device))
        self._lab.wait_until(
            lambda: self.namespace.is_forwarding(port),
            LINK_TIMEOUT_S,
            f"port {port} of {self.name} does not forward",
        )
        _route_all(namespace, gateways)
        return Uplink(addresses=tuple(found), gateways=tuple(gateways), wire=wire)

    # --- events --------------------------------------------------------------------------------------------------

    def set_lifetime(self, seconds: int, unanswered_s: int | None = None) -> None:
        """How long a binding lives unused, 1 s or more, from now on. Bindings that exist are lost.

        Args:
            seconds: of one that was answered, and is older than two seconds.
            unanswered_s: of all others, where Linux's own connection tracking decides; ``None``: the same.
        """
        unanswered_s = seconds if unanswered_s is None else unanswered_s
        for name, value in (("udp_timeout", unanswered_s), ("udp_timeout_stream", seconds)):
            _check_lifetime(value)
            self.namespace.sysctl(f"netfilter/nf_conntrack_{name}", value)
        self.setting = replace(self.setting, lifetime_s=seconds)
        self.load()

    def open_firewall(self, *, is_open: bool) -> None:
        """Let everything be forwarded, or what the kind says. A router that translates still lets in only what its
        mappings say; a cone forgets its own.
        """
        self.load(extra="meta nfproto { ipv4, ipv6 } accept" if is_open else "")

    def reboot(self) -> None:
        """Forget all bindings, as a router does that was switched off and on again. Needs conntrack(8)."""
        self.namespace.run(["conntrack", "-F"])
        self.load()

    def move(self, number: int = 1) -> str:
        """Get another outside IPv4 address, ``number`` above the one it has, as after a reconnection; returns it.

        Raises:
            LabError: the router does not translate: what is behind it would be lost. Or there is no such address.
        """
        if not 1 <= number <= MAX_HOSTS - int(self.address.rpartition(".")[2]):
            raise LabError(f"{self.name} has {self.address}; there is no address {number} above that for it")
        if not self.kind.is_translating:
            raise LabError(f"a router of the kind {self.kind.name} cannot move: the addresses behind it are its site's")
        old, length = self.uplink.addresses[0].split("/")
        prefix, _, last = old.rpartition(".")
        new = f"{prefix}.{int(last) + number}"
        self.namespace.add_address(self.device, f"{new}/{length}")
        self.namespace.delete_address(self.device, f"{old}/{length}")
        self.uplink = replace(self.uplink, addresses=(f"{new}/{length}", *self.uplink.addresses[1:]))
        # Deleting an address takes the routes along that used it.
        _route_all(self.namespace, self.uplink.gateways)
        self.setting = replace(self.setting, wan=new)
        # Before bindings are forgotten: a packet that came in between would have a new one with the old address.
        self.load()
        self.reboot()
        return new

    def load(self, extra: str = "") -> None:
        """Load the rules anew, with one more rule for what is forwarded. The cones forget their bindings."""
        self.namespace.nft(rules(self.kind, self.setting, self._egress, extra))

    def _inside(self) -> tuple[str, int, int]:
        """The first three numbers of the inside network, the router's own, and the length of its prefix."""
        if self.kind.is_translating:
            return (CARRIER_LAN if self._is_carrier else HOME_LAN), 1, 24
        if self.uplink.lan is None:
            raise LabError(f"a router of the kind {self.kind.name} needs public addresses: not behind another router")
        prefix, first = self.uplink.lan
        return prefix, first, 25


class Internet:
    """The router that joins all sites; implements :class:`Network`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.namespace = lab.add_namespace("internet")
        self._sites = 0
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.namespace.sysctl(name, 1)

    def plug(self, namespace: Namespace, device: str, addresses: int, impairment: Impairment | None) -> Uplink:
        """A new site: the lower half of its IPv4 network is the cable's, the upper one is routed to the machine."""
        if self._sites == MAX_SITES:
            raise LabError(f"the Internet has {MAX_SITES} sites, and no more")
        self._sites += 1
        number = self._sites
        site = f"site{number}"
        prefix, prefix6 = f"20.0.{number}", f"2620:1:{number:x}"
        found = [f"{prefix}.{2 + i}/25" for i in range(addresses)]
        found += [f"{prefix6}::{2 + i:x}/64" for i in range(addresses)]
        wire = self._lab.lay(namespace, device, self.namespace, site, impairment)
        self.namespace.up(site, f"{prefix}.1/25", f"{prefix6}::1/64")
        namespace.up(device, *found)
        _wait_for_links(self._lab, (self.namespace, site), (namespace, device))
        gateways = (f"{prefix}.1", f"{prefix6}::1")
        _route_all(namespace, gateways)
        self.namespace.route(f"{prefix}.128/25", f"{prefix}.2")
        self.namespace.route(f"{prefix6}:1::/64", f"{prefix6}::2")
        # Nobody has to ask who is where: a lost ARP request would be part of every measurement, and for a second after
        # a link came up a router has no address to ask from in IPv6 (the kernel tells it late that the link is there).
        hosts = [address.split("/")[0] for address in found]
        self.namespace.know_neighbours(site, namespace.mac(device), hosts)
        namespace.know_neighbours(device, self.namespace.mac(site), gateways)
        return Uplink(addresses=tuple(found), gateways=gateways, lan=(prefix, 129), lan6=f"{prefix6}:1", wire=wire)


def check_network(network: object) -> None:
    """Raises LabError: nothing can be plugged into it."""
    if not isinstance(network, Router | Internet):
        raise LabError(f"a machine is plugged into a router, or into the laboratory's internet, not into {network!r}")


def _wait_for_links(lab: Lab, *links: tuple[Namespace, str]) -> None:
    """What is sent into them leaves them, from the first packet on."""
    for namespace, name in links:

        def is_usable(namespace: Namespace = namespace, name: str = name) -> bool:
            return namespace.is_usable(name)

        lab.wait_until(is_usable, LINK_TIMEOUT_S, f"{name} of {namespace.name} does not come up")


def _check_lifetime(seconds: int) -> None:
    if seconds not in range(1, MAX_LIFETIME_S + 1):
        raise LabError(f"a binding lives for a whole number of seconds, 1 to {MAX_LIFETIME_S}, not {seconds}")


def _check_address(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise LabError(f"{host!r} is no IP address") from None


def _is_same_network(one: str, other: str) -> bool:
    """Whether two addresses with prefix lengths are of networks that overlap."""
    first, second = (ipaddress.ip_interface(each).network for each in (one, other))
    return first.version == second.version and first.overlaps(second)


def _route_all(namespace: Namespace, gateways: Sequence[str]) -> None:
    for gateway in gateways:
        namespace.route("default", gateway)
