"""What is a gateway, to the protocols that it speaks? Its make, its clock, its mappings, its journal. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from iceagent.net.address import TransportAddress
from portmap.values import PROTOCOLS, ProtocolName
from tests.fakes.gateway.faults import Faults
from tests.fakes.gateway.journal import Journal
from tests.fakes.gateway.table import Table

__all__ = ["ERROR_LIFETIMES_S", "PCP_PORT", "SSDP_PORT", "EpochClock", "Options", "State"]

PCP_PORT = 5351
SSDP_PORT = 1900

ERROR_LIFETIMES_S = {True: 30, False: 1800}
"""RFC 6887, 7.4: "short lifetime errors use a 30-second lifetime and long lifetime errors use a 30-minute lifetime"."""


@dataclass(kw_only=True)
class Options:
    """Which make of gateway it is. All of them are right.

    Attributes:
        host: its IPv4 address inside.
        host6: its IPv6 address inside.
        http_host6: where its description is, for who searches over IPv6; ``None``: at ``host6``.
        external_host: outside; empty: it has none (yet), so PCP says NO_RESOURCES, NAT-PMP Network Failure and UPnP 501
            to all requests for mappings, as miniupnpd does.
        protocols: what it speaks. Without PCP but with NAT-PMP it is a "NAT-PMP-only" one, and the other way round.
        http_port: of UPnP.
        igd_version: 1 or 2. AddAnyPortMapping and pinholes are of 2.
        claims_v1: it is a 2, but says 1 everywhere in its description and its answers to searches, as a setting of
            miniupnpd makes it do. What a 2 can, it can.
        has_pinholes: an IGD 2 has WANIPv6FirewallControl.
        is_ppp: its WAN connection is a WANPPPConnection.
        max_lifetime_s: more is not given. RFC 6887, 15 has 24 hours; 0 by UPnP is 604,800 s on an IGD 2, and for ever
            on an IGD 1.
        shares_rules: one inner port has one rule, whatever protocols asked for it, and who deletes it deletes it for
            all, as miniupnpd does; else every protocol has rules of its own.
        is_secure: UPnP maps only to who asks (606).
        delete_absent_code: what DeletePortMapping says of a mapping that there is not; 714 by the specification, 0 of
            miniupnpd.
        echoes_opcode: what a NAT-PMP-only gateway answers to another version has the request's opcode, with the bit of
            an answer, as miniupnpd's has. By RFC 6886, 3.5 it is 0 without that bit.
        is_behind_nat: a NAT is between it and its clients, so ADDRESS_MISMATCH is no violation of theirs.
        uuid: of its UPnP device.
    """

    host: str = "192.168.1.1"
    host6: str = "fe80::1"
    http_host6: str | None = None
    external_host: str = "11.22.33.44"
    protocols: frozenset[ProtocolName] = frozenset(PROTOCOLS)
    http_port: int = 5000
    igd_version: int = 2
    claims_v1: bool = False
    has_pinholes: bool = True
    is_ppp: bool = False
    max_lifetime_s: int = 86_400
    shares_rules: bool = True
    is_secure: bool = True
    delete_absent_code: int = 714
    echoes_opcode: bool = False
    is_behind_nat: bool = False
    uuid: str = "5f0b6d2e-0000-4000-8000-000000000001"

    @property
    def told_version(self) -> int:
        """What its description says."""
        return 1 if self.claims_v1 else self.igd_version


@dataclass(slots=True)
class EpochClock:
    """Seconds since the table was empty (RFC 6886, 3.6; RFC 6887, 8.5).

    Attributes:
        value: what it showed.
        at: when that was.
        rate: how many of its seconds pass in one; not 1: it drifts.
    """

    value: int = 0
    at: float = 0.0
    rate: float = 1.0

    def read(self, now: float) -> int:
        """What it shows, 32 bits."""
        return (self.value + int((now - self.at) * self.rate)) & 0xFFFFFFFF


@dataclass(slots=True)
class State:
    """A gateway as it is now.

    Attributes:
        table: IPv4 mappings and IPv6 pinholes.
    """

    options: Options
    faults: Faults
    epoch: EpochClock
    table: Table
    journal: Journal = field(default_factory=Journal)

    def told_external_host(self) -> str:
        """The external IPv4 address as the next answer has it; may be empty."""
        faults = self.faults.mapping
        if faults.external_hosts:
            told = faults.external_hosts.pop(0)
            faults.external_hosts.append(told)
            return told
        return self.options.external_host if faults.external_host is None else faults.external_host

    def host_for(self, client: TransportAddress) -> str:
        """Its address inside, of the client's IP version."""
        return self.options.host6 if client.version == 6 else self.options.host
