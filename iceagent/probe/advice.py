"""What should a person do about what a probe found?

Each rule looks at a report and has one sentence, or none, to say. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from iceagent.nat.kinds import Mapping
from iceagent.net.address import ip_address
from iceagent.net.host import InterfaceKind
from iceagent.probe.portmap import best_rows, mapped_rows
from iceagent.probe.report import NotTested, RelayStatus, Report, ServerRow, ServerStatus
from iceagent.probe.verdict import answering, is_hard, mapping_of, relays_of, working_relay

__all__ = ["advise"]

# RFC 8200, 5: every link must carry packets of so many bytes.
IPV6_MIN_MTU = 1280
# RFC 6598: between a carrier's NAT and its customers.
CARRIER_NETWORK = ipaddress.ip_network("100.64.0.0/10")
# RFC 4193: not routed beyond one's own network.
UNIQUE_LOCAL = ipaddress.ip_network("fc00::/7")

# Relays or servers in one sentence.
MAX_COMPLAINTS = 4


def advise(report: Report) -> tuple[str, ...]:
    """Sentences that a person can act on, the most pressing first; never empty."""
    found = tuple(sentence for rule in _RULES if (sentence := rule(report)))
    return found or ("There is nothing to do.",)


def _no_network(report: Report) -> str | None:
    networks = [row for row in report.interfaces if row.kind != InterfaceKind.LOOPBACK.value and row.is_up]
    if not networks:
        return "No network interface is up besides loopback: bring one up (ip link set NAME up), then probe again."
    if not any(row.addresses for row in networks):
        names = ", ".join(row.name for row in networks)
        return f"No interface that is up has an address ({names}): look at DHCP, or set an address."
    return None


def _only_ourselves(report: Report) -> str | None:
    if not report.is_embedded:
        return None
    outside = "name a server outside with --server stun:HOST, or ask well-known public ones with --public."
    if not report.servers:
        return (
            "Nothing could be tried: our own server has no loopback address to run on. Bring loopback up "
            f"(ip link set lo up), or {outside}"
        )
    return f"Only this host was looked at, with our own STUN and TURN server on loopback: {outside}"


def _our_server_fails(report: Report) -> str | None:
    if not report.is_embedded:
        return None
    complaints = [_complaint(row) for row in report.servers if row.status is ServerStatus.FAILED]
    complaints += [f"{row.name}: {row.reason}" for row in relays_of(report) if row.status is not RelayStatus.OK]
    if not complaints:
        return None
    return (
        f"This host hinders our own server on loopback ({_some(complaints)}): look for a firewall rule or a sandbox "
        "that filters loopback, and at --port-range, if it is given."
    )


def _nobody_answers(report: Report) -> str | None:
    if report.is_embedded or answering(report):
        return None
    relay = working_relay(report)
    if relay is not None:
        return f"No server answered over UDP: peers can be reached by a relay only; {relay.name} works."
    if not report.servers:
        # Relays alone were named; how they fared, _no_relay says.
        return None
    if not any(row.status is ServerStatus.FAILED for row in report.servers):
        return f"No server could be asked ({_complaint(report.servers[0])}): name one with --server stun:HOST."
    return (
        "No server answered over UDP: check the servers' names and ports, and whether a firewall lets UDP out to them; "
        "where it never will, only a TURN server over TCP or TLS on port 443 helps."
    )


def _no_candidate(report: Report) -> str | None:
    if report.is_embedded or report.candidates or not answering(report):
        return None
    return (
        "No interface gave a candidate, so there is no address to tell a peer: bring one up, drop what limits them "
        "(--interface, --bind, --no-ipv4, --no-ipv6, --port-range), or --loopback for peers on this machine."
    )


def _a_server_fails(report: Report) -> str | None:
    answered = {row.uri for row in report.servers if row.status is ServerStatus.ANSWERED}
    # How a TURN server fares, _no_relay and _some_relay_fails say.
    servers = [row for row in report.servers if not row.uri.startswith("turn")]
    failed = [row for row in servers if row.status is ServerStatus.FAILED and row.uri not in answered]
    if not failed or not answered:
        return None
    return f"Mend or drop {', '.join(dict.fromkeys(row.uri for row in failed))}: {failed[0].reason}."


def _ipv4_is_blocked(report: Report) -> str | None:
    if report.udp[4] is False and report.udp[6] is True:
        return "UDP over IPv4 is blocked: let it out, or only peers with IPv6 can be reached without a relay."
    return None


def _ipv6_is_broken(report: Report) -> str | None:
    if report.udp[6] is False and report.udp[4] is True and _has_global_ipv6(report):
        return "There is an IPv6 address here, but no server answered over IPv6: let UDP out, or mend the IPv6 route."
    return None


def _hard_nat(report: Report) -> str | None:
    if not is_hard(report.nat):
        return None
    if mapping_of(report) is not None:
        return None
    kind = "ADM or APDM" if report.nat.mapping is Mapping.UNKNOWN else report.nat.mapping.value
    nature = f"The NAT shows another outside address to other destinations ({kind}): "
    relay = working_relay(report)
    if relay is not None:
        return (
            f"{nature}peers behind a NAT of their own need a relay, and {relay.name} works; for direct paths forward a "
            "UDP port on the router, or use IPv6."
        )
    return (
        f"{nature}have a TURN server for peers behind a NAT of their own, or forward a UDP port on the router, "
        "or use IPv6."
    )


def _no_mapping(report: Report) -> str | None:
    """Where one would help."""
    if isinstance(report.portmap, NotTested) or not is_hard(report.nat) or mapping_of(report) is not None:
        return None
    rows = [f"{row.protocol}: {row.reason}" for _, row in best_rows(report.portmap).values() if row.status != "ok"]
    if not rows:
        return None
    return (
        f"No router maps ports for us ({'; '.join(rows)}): where UPnP, NAT-PMP or PCP can be switched on in its "
        "settings, direct paths become possible."
    )


def _another_nat(report: Report) -> str | None:
    """In front of a router that maps."""
    rows = [] if isinstance(report.portmap, NotTested) else mapped_rows(report.portmap)
    if not rows or mapping_of(report) is not None:
        return None
    gateway, row = rows[0]
    if row.external is None:
        return f"The router at {gateway.gateway.host} maps ports, but does not know its address outside."
    return (
        f"The router at {gateway.gateway.host} maps ports at {row.external.host}, which is not where the outside sees "
        "us: there is another NAT in front of it, and its mappings help nobody outside that one."
    )


def _no_relay(report: Report) -> str | None:
    tested = relays_of(report)
    if report.is_embedded or not tested or working_relay(report) is not None:
        return None
    return f"No relay works; mend or replace {_some([f'{row.name} ({row.reason})' for row in tested])}."


def _some_relay_fails(report: Report) -> str | None:
    """A URL that works over no transport, beside one that does."""
    if report.is_embedded or working_relay(report) is None:
        return None
    working = {row.server for row in relays_of(report) if row.status is RelayStatus.OK}
    failed = [row for row in relays_of(report) if row.server not in working]
    if not failed:
        return None
    return f"Mend or drop {', '.join(dict.fromkeys(row.server for row in failed))}: {failed[0].reason}."


def _unknown_mapping(report: Report) -> str | None:
    if report.nat.version is None or report.nat.mapping is not Mapping.UNKNOWN or report.nat.is_dependent:
        return None
    return (
        "One address cannot tell how the NAT maps: name servers at two addresses, or one that does RFC 5780 "
        "(iceagent serve --behaviour-discovery)."
    )


def _carrier_nat(report: Report) -> str | None:
    hosts = [host for row in report.interfaces for host in row.addresses]
    hosts += [row.address.host for row in report.reflexive]
    inside = [host for host in hosts if ":" not in host and ip_address(host) in CARRIER_NETWORK]
    if not inside:
        return None
    return (
        f"{inside[0]} belongs to a carrier's NAT: a port forwarded on your own router does not help; "
        "ask the provider for a public IPv4 address, or use IPv6."
    )


def _no_ipv6(report: Report) -> str | None:
    if report.layers != 1 or _has_global_ipv6(report):
        return None
    return "This host has no global IPv6 address: with one, peers that have one too need no way through the NAT."


def _small_mtu(report: Report) -> str | None:
    small = [row for row in report.interfaces if row.is_up and row.mtu < IPV6_MIN_MTU and row.addresses]
    if not small:
        return None
    row = small[0]
    return f"The MTU of {row.name} is {row.mtu} bytes: raise it to {IPV6_MIN_MTU} at least, QUIC and IPv6 need that."


_RULES: tuple[Callable[[Report], str | None], ...] = (
    _no_network,
    _our_server_fails,
    _nobody_answers,
    _no_candidate,
    _hard_nat,
    _no_mapping,
    _another_nat,
    _no_relay,
    _ipv4_is_blocked,
    _carrier_nat,
    _a_server_fails,
    _some_relay_fails,
    _ipv6_is_broken,
    _unknown_mapping,
    _no_ipv6,
    _small_mtu,
    _only_ourselves,
)


def _complaint(row: ServerRow) -> str:
    return f"{row.uri}: {row.reason}"


def _some(complaints: list[str]) -> str:
    more = f" and {len(complaints) - MAX_COMPLAINTS} more" if len(complaints) > MAX_COMPLAINTS else ""
    return f"{', '.join(complaints[:MAX_COMPLAINTS])}{more}"


def _has_global_ipv6(report: Report) -> bool:
    hosts = [ip_address(host) for row in report.interfaces if row.is_up for host in row.addresses]
    return any(ip.version == 6 and not (ip.is_loopback or ip.is_link_local or ip in UNIQUE_LOCAL) for ip in hosts)
