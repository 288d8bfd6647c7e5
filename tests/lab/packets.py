"""Packets that no socket would send, and what a machine's kernel is set to."""

from __future__ import annotations

import socket
import struct

from iceagent.lab import Machine
from iceagent.net.address import TransportAddress

ETH_P_IP = 0x0800


def raw(machine: Machine) -> socket.socket:
    """For packets with an IPv4 header of one's own."""
    with machine.namespace.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def packet(
    source: TransportAddress, destination: TransportAddress, data: bytes, *, options: bytes = b"", ttl: int = 64
) -> bytes:
    """UDP without a checksum."""
    words = 5 + len(options) // 4
    datagram = struct.pack("!HHHH", source.port, destination.port, 8 + len(data), 0) + data
    size = words * 4 + len(datagram)
    header = bytearray(struct.pack("!BBHHHBBH", 0x40 | words, 0, size, 1, 0, ttl, socket.IPPROTO_UDP, 0))
    header += socket.inet_aton(source.host) + socket.inet_aton(destination.host) + options
    total = sum(struct.unpack(f"!{words * 2}H", header))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    struct.pack_into("!H", header, 10, total ^ 0xFFFF)
    return bytes(header) + datagram


def send_frame(sender: Machine, neighbour: Machine, data: bytes) -> None:
    """An IPv4 packet, to a neighbour, past the sender's own routes."""
    mac = bytes.fromhex(neighbour.namespace.mac("eth0").replace(":", ""))
    with sender.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, ("eth0", ETH_P_IP, 0, 0, mac))


def rules_of(machine: Machine) -> str:
    """All rules of nftables."""
    return machine.run(["nft", "list", "ruleset"])


def sysctls(machine: Machine) -> str:
    """All settings of the network, but what only counts."""
    text = machine.run(["sh", "-c", "find /proc/sys/net -type f -readable | sort | xargs grep -s ''; true"])
    return "\n".join(line for line in text.splitlines() if "nf_conntrack_count" not in line)
