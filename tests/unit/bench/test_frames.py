"""Are the frames that load a relay what a UDP socket would send, and is what arrives read from the right device?"""

from __future__ import annotations

import ctypes
import struct

import pytest

from bench.frames import calls_in_turn, frame_header, packets_pattern
from bench.mmsg import mmsg_headers
from iceagent.net.address import TransportAddress

CLIENT, RELAY = TransportAddress("198.51.100.1", 30_000), TransportAddress("203.0.113.9", 10_000)
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
VIRTIO = 10

DEVICES = b"""\
Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame |bytes    packets errs drop
    lo:     840      10    0    0    0     0      840      10    0    0
 relay: 1234567    8901    0    0    0     0    12345      67    0    0
relay2:     100       1    0    0    0     0      100       1    0    0
"""


def ones_complement(data: bytes) -> int:
    """RFC 1071, byte by byte."""
    total = sum(byte << (8 if i % 2 == 0 else 0) for i, byte in enumerate(data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("size", [1, 100, 1200])
def test_the_headers_have_the_addresses_and_ports_and_lengths(size: int) -> None:
    header = frame_header(MACS, CLIENT, RELAY, size)
    ethernet, ip, udp = (header[VIRTIO:][start:end] for start, end in ((0, 14), (14, 34), (34, 42)))
    assert ethernet.hex() == "020000000002" + "020000000001" + "0800"
    assert ip[:1] == b"\x45" and struct.unpack("!H", ip[2:4]) == (28 + size,)
    assert (ip[9], ip[12:16], ip[16:20]) == (17, CLIENT.ip.packed, RELAY.ip.packed)
    assert struct.unpack("!3H", udp[:6]) == (CLIENT.port, RELAY.port, 8 + size)
    assert len(header) == VIRTIO + 42


def test_the_checksum_of_the_ip_header_is_right() -> None:
    """RFC 1071, 1: the sum over the header with its checksum is all ones."""
    assert ones_complement(frame_header(MACS, CLIENT, RELAY, 100)[VIRTIO + 14 : VIRTIO + 34]) == 0xFFFF


def test_the_udp_checksum_is_left_to_the_device() -> None:
    """virtio 1.1, 5.1.6.2: what is there is the sum over the pseudo-header, and where the rest begins is told."""
    header = frame_header(MACS, CLIENT, RELAY, 100)
    flags, gso, _, _, start, offset = struct.unpack("=BBHHHH", header[:VIRTIO])
    assert (flags, gso, start, offset) == (1, 0, 34, 6)
    pseudo = CLIENT.ip.packed + RELAY.ip.packed + struct.pack("!HH", 17, 108)
    assert struct.unpack("!H", header[VIRTIO + 40 :]) == (ones_complement(pseudo),)


def test_a_message_is_made_of_its_buffers() -> None:
    data = ctypes.create_string_buffer(b"data", 4)
    firsts = [ctypes.create_string_buffer(text, len(text)) for text in (b"first ", b"next ")]
    headers = mmsg_headers([(first, data) for first in firsts])
    texts = []
    for header in headers:
        vectors = [header.message.vectors[i] for i in range(header.message.vectors_length)]
        texts.append(b"".join(ctypes.string_at(vector.base, vector.length) for vector in vectors))
    assert texts == [b"first data", b"next data"]


@pytest.mark.parametrize(
    ("frames", "count", "burst", "calls"),
    [
        (1, 4, 1, [[0, 0, 0, 0]]),
        (3, 2, 1, [[0, 1], [2, 0], [1, 2]]),
        (2, 2, 2, [[0, 0], [1, 1]]),
        (2, 4, 2, [[0, 0, 1, 1]]),
        (2, 2, 3, [[0, 0], [0, 1], [1, 1]]),
    ],
)
def test_frames_take_turns(frames: int, count: int, burst: int, calls: list[list[int]]) -> None:
    assert calls_in_turn(frames, count, burst) == calls


@pytest.mark.parametrize(("device", "packets"), [("lo", 10), ("relay", 8901), ("relay2", 1)])
def test_packets_are_those_of_the_device(device: str, packets: int) -> None:
    found = packets_pattern(device).search(DEVICES)
    assert found is not None and int(found[1]) == packets


def test_a_device_that_is_not_there_has_no_packets() -> None:
    assert packets_pattern("rela").search(DEVICES) is None
