"""Reports and findings to change one thing of."""

from __future__ import annotations

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress, parse_address
from iceagent.net.host import Interface, InterfaceAddress, InterfaceKind
from iceagent.probe.report import (
    Allocation,
    InterfaceRow,
    NatReport,
    NotTested,
    Reflexive,
    RelayRow,
    RelayStatus,
    Report,
    ServerRow,
    ServerStatus,
)
from iceagent.probe.verdict import Observation

HERE = "192.168.1.2:5000"
NAT = "203.0.113.9"
URI = "stun:198.51.100.1:3478"

LOOPBACK_ROW = InterfaceRow(name="lo", addresses=("127.0.0.1", "::1"), mtu=65536, kind="loopback")
HOME_ROW = InterfaceRow(name="eth0", addresses=("192.168.1.2", "2001:db8::2"), mtu=1500, kind="ethernet")
ANSWERED = ServerRow(uri=URI, version=4, status=ServerStatus.ANSWERED)
SILENT = ServerRow(uri=URI, version=4, status=ServerStatus.FAILED, reason="no response")
TURN = "turn:198.51.100.9"
RELAY = RelayRow(
    server=TURN,
    transport="udp",
    status=RelayStatus.OK,
    rtt_ms=20.1234,
    relayed=(TransportAddress("198.51.100.9", 49152), TransportAddress("2001:db8::9", 49153)),
)
NO_RELAY = RelayRow(server=TURN, transport="tcp", status=RelayStatus.REFUSED, reason="486 Allocation Quota Reached")
EASY = NatReport(
    mapping=Mapping.EIM,
    filtering=Filtering.APDF,
    port_preservation=True,
    allocation=Allocation.PRESERVED,
    evidence=(f"{URI} sees {HERE} as {NAT}:5000",),
    version=4,
)
GOOD = Report(
    interfaces=(LOOPBACK_ROW, HOME_ROW),
    candidates=(
        "candidate:1a 1 udp 2128609535 192.168.1.2 5001 typ host",
        f"candidate:2b 1 udp 1692401919 {NAT} 5001 typ srflx raddr 192.168.1.2 rport 5001",
    ),
    udp={4: True, 6: NotTested(reason="no server has an IPv6 address")},
    reflexive=(Reflexive(address=TransportAddress(NAT, 5000), server=URI, rtt_ms=12.3456, seen=1),),
    nat=EASY,
    layers=1,
    duration_ms=2850.04,
    servers=(ANSWERED,),
)

LOOPBACK = Interface(
    name="lo",
    index=1,
    kind=InterfaceKind.LOOPBACK,
    addresses=(InterfaceAddress(host="127.0.0.1", prefix_length=8), InterfaceAddress(host="::1", prefix_length=128)),
)
HOME = Interface(
    name="eth0",
    index=2,
    kind=InterfaceKind.ETHERNET,
    addresses=(
        InterfaceAddress(host="192.168.1.2", prefix_length=24),
        InterfaceAddress(host="2001:db8::2", prefix_length=64),
    ),
)


def sight(server: str, mapped: str, base: str = HERE, rtt_ms: float | None = 10.0) -> Observation:
    """``server`` saw ``base`` as ``mapped``."""
    return Observation(
        base=parse_address(base),
        server=parse_address(server),
        uri=f"stun:{server}",
        mapped=parse_address(mapped),
        rtt_ms=rtt_ms,
    )
