"""How does a process send more than the kernel of another machine can take, and from as many ports as it likes?

With Ethernet frames made beforehand, several in a call, straight to the device (AF_PACKET): no socket, route or
checksum for each of them. Each of them is a packet of its own, never part of a train. What comes back, or arrives
elsewhere, is counted by nftables where it comes in, and goes no further: the device's own count, which is cheap to read
and counts everything, keeps the load within its window; the rule's tells how many of the expected datagrams there were.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import socket
import struct
from collections.abc import Sequence

from bench.mmsg import call_mmsg, mmsg_headers
from iceagent.lab.namespace import Namespace
from iceagent.net.address import TransportAddress

__all__ = ["Arrivals", "FrameSender", "calls_in_turn", "frame_header", "packets_pattern"]

# <linux/if_packet.h>
SOL_PACKET, PACKET_VNET_HDR, PACKET_QDISC_BYPASS = 263, 15, 20
# <linux/virtio_net.h>
NEEDS_CHECKSUM = 1
ETHER_HEADER, IP_HEADER, UDP_HEADER = 14, 20, 8
# Offset of the checksum in a UDP header.
UDP_CHECKSUM = 6
IPV4, UDP = b"\x08\x00", 17
DONT_FRAGMENT, TTL = 0x4000, 64
BUFFER = 1 << 22
# More than /proc/net/dev has for the few devices of a machine.
DEVICES_SIZE = 8_192


def frame_header(macs: tuple[str, str], source: TransportAddress, destination: TransportAddress, size: int) -> bytes:
    """What stands before the data in a UDP datagram over IPv4, as a local socket would send it: the checksum is said to
    be made on the way, and a cable between namespaces never does so.

    Args:
        macs: Ethernet addresses, of whom it comes from and whom it goes to.
        size: of the data, in bytes.

    Returns:
        What a socket with PACKET_VNET_HDR takes: the headers of Ethernet, IP and UDP behind one of virtio's.
    """
    ends = source.ip.packed + destination.ip.packed
    length = UDP_HEADER + size
    ip = struct.pack("!BBHHHBBH8s", 0x45, 0, IP_HEADER + length, 0, DONT_FRAGMENT, TTL, UDP, 0, ends)
    ip = ip[:10] + struct.pack("!H", 0xFFFF ^ _sum(ip)) + ip[12:]
    # The sum over the pseudo-header (RFC 768) is what the rest is added to.
    udp = struct.pack("!4H", source.port, destination.port, length, _sum(ends + struct.pack("!2H", UDP, length)))
    sender, receiver = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    virtio = struct.pack("=BBHHHH", NEEDS_CHECKSUM, 0, 0, 0, ETHER_HEADER + IP_HEADER, UDP_CHECKSUM)
    return virtio + receiver + sender + IPV4 + ip + udp


def _sum(data: bytes) -> int:
    """The one's complement sum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class FrameSender:
    """Sends frames in turn, so many in a call. All carry the same data, lest their number changes what the caches hold.

    Args:
        namespace: where.
        device: its Ethernet device.
        headers: of each, as :func:`frame_header` makes them.
        data: of all.
        count: of a call.
        burst: so many of each before the next one.

    Raises:
        OSError: it needs CAP_NET_RAW there.
    """

    def __init__(
        self, namespace: Namespace, device: str, headers: Sequence[bytes], data: bytes, count: int, burst: int = 1
    ) -> None:
        self.count = count
        with namespace.entered():
            # Protocol 0: it receives nothing.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self._socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            self._socket.setblocking(False)
            self._socket.bind((device, 0))
        self._data = ctypes.create_string_buffer(data, len(data))
        self._headers = [ctypes.create_string_buffer(header, len(header)) for header in headers]
        # As many calls as it takes until one begins with the first frame again.
        self._calls = [
            mmsg_headers([(self._headers[i], self._data) for i in call])
            for call in calls_in_turn(len(headers), count, burst)
        ]
        self._next = 0

    def close(self) -> None:
        """Close its socket."""
        self._socket.close()

    def send(self) -> int:
        """Returns how many the kernel took. Where these are not all of a call, the rest is passed over."""
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        return max(0, call_mmsg("sendmmsg", self._socket, call, 0))


class Arrivals:
    """Counts datagrams where they come in, and drops them there.

    Args:
        namespace: where.
        device: through which they come. Little else does.
        rule: what they are, in the words of nft(8).
    """

    def __init__(self, namespace: Namespace, device: str, rule: str) -> None:
        self._namespace = namespace
        self._packets = packets_pattern(device)
        # It stays in the namespace that it was opened in.
        self._devices = namespace.do(lambda: os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC))
        chain = f'chain arrivals {{ type filter hook ingress device "{device}" priority 0;'
        namespace.nft(
            f"table netdev bench {{\ncounter expected {{ }}\n{chain}\n{rule} counter name expected drop\n}}\n}}\n"
        )
        self._last = self._read()

    def close(self) -> None:
        """Nothing is dropped any more."""
        self._namespace.nft("delete table netdev bench\n")
        os.close(self._devices)

    def take(self) -> int:
        """Packets that have come since, whatever they are."""
        now = self._read()
        came, self._last = now - self._last, now
        return came

    def expected(self) -> int:
        """Datagrams that the rule fitted, so far; takes some milliseconds."""
        told = json.loads(self._namespace.run(["nft", "-j", "list", "counter", "netdev", "bench", "expected"]))
        (packets,) = (each["counter"]["packets"] for each in told["nftables"] if "counter" in each)
        return int(packets)

    def _read(self) -> int:
        found = self._packets.search(os.pread(self._devices, DEVICES_SIZE, 0))
        assert found is not None, "the device is gone"
        return int(found[1])


def calls_in_turn(frames: int, count: int, burst: int) -> list[list[int]]:
    """Which frames each call sends, ``count`` of them, until a call begins with the first one again.

    Args:
        frames: how many there are.
        count: of a call.
        burst: so many of each before the next one.
    """
    whole = math.lcm(frames * burst, count)
    return [[i // burst % frames for i in range(start, start + count)] for start in range(0, whole, count)]


def packets_pattern(device: str) -> re.Pattern[bytes]:
    """Finds in /proc/net/dev how many packets came in through a device: its first group."""
    return re.compile(rf"^\s*{re.escape(device)}:\s*\d+\s+(\d+)".encode(), re.MULTILINE)
