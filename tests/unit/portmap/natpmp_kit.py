"""A NAT-PMP gateway made of bytes: what it answers, and a client that plays with it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from random import Random

from portmap.natpmp import NatPmpClient
from tests.unit.portmap.client_kit import BASE, GATEWAY, START, Answer, Play, silent

EXTERNAL_HOST = "203.0.113.5"


def external(epoch: int, host: str = EXTERNAL_HOST, result: int = 0) -> bytes:
    """An answer about the external address, or an announcement."""
    return struct.pack("!BBHI4s", 0, 128, result, epoch, IPv4Address(host).packed)


def mapping(request: bytes, epoch: int, port: int, lifetime: int, result: int = 0) -> bytes:
    """An answer to a mapping request."""
    internal = int.from_bytes(request[4:6], "big")
    return struct.pack("!BBHIHHI", 0, 128 | request[1], result, epoch, internal, port, lifetime)


class NatPmpPlay(Play):
    """With a gateway that answers everything, until ``answer`` is changed.

    Attributes:
        epoch_0: when its table began.
        host: its external address.
        lifetime: what it gives.
    """

    def __init__(self, answer: Answer | None = None, *, seed: int = 1) -> None:
        rng = Random(seed)
        super().__init__(NatPmpClient(GATEWAY, BASE, rng, rng))
        self.answer = answer or self.obey
        self.epoch_0 = START - 500
        self.host = EXTERNAL_HOST
        self.lifetime = 7200

    @property
    def epoch(self) -> int:
        """Seconds since the gateway's table began."""
        return int(self.now - self.epoch_0)

    def obey(self, data: bytes) -> Sequence[bytes]:
        """Say yes: the external port is the suggested one, or 20000 more than the internal one."""
        if data[1] == 0:
            return (external(self.epoch, self.host),)
        internal, suggested, lifetime = struct.unpack("!HHI", data[4:])
        if lifetime == 0:
            return (mapping(data, self.epoch, 0, 0),)
        return (mapping(data, self.epoch, suggested or internal + 20000, self.lifetime),)

    def refuse_mappings(self, result: int) -> None:
        """From now on, with the whole of an answer."""
        self.answer = lambda data: self.obey(data) if data[1] == 0 else (mapping(data, self.epoch, 0, 0, result),)

    def fall_silent(self) -> None:
        """From now on."""
        self.answer = silent
        self.sent.clear()

    @property
    def asked(self) -> list[str]:
        """What was sent, in words: ``external``, ``udp 5000``, ``delete tcp 80``."""
        return [described(data) for _, data in self.sent]


def described(data: bytes) -> str:
    """A request, in words."""
    if data == b"\0\0":
        return "external"
    internal, _, lifetime = struct.unpack("!HHI", data[4:])
    return f"{'' if lifetime else 'delete '}{ {1: 'udp', 2: 'tcp'}[data[1]] } {internal}"
