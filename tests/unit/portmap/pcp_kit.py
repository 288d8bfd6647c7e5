"""A PCP gateway made of bytes: what it answers, and a client that plays with it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv6Address
from random import Random

from portmap.events import Mapped
from portmap.pcp import PcpClient
from portmap.values import Gateway
from tests.unit.portmap.client_kit import BASE, GATEWAY, START, Answer, Play, request, silent

EXTERNAL = ("203.0.113.5", 40000)
NAT_PMP_ONLY = bytes.fromhex("0080000100000064")


def packed(host: str) -> bytes:
    """16 bytes."""
    return IPv6Address(host if ":" in host else f"::ffff:{host}").packed


def header(opcode: int, result: int = 0, lifetime: int = 0, epoch: int = 0) -> bytes:
    """Of a response."""
    return struct.pack("!BBBBII12x", 2, 0x80 | opcode, 0, result, lifetime, epoch)


def announcement(epoch: int, result: int = 0) -> bytes:
    """Of a server, asked or not."""
    return header(0, result, 0, epoch)


def success(request: bytes, epoch: int = 0, lifetime: int = 3600, external: tuple[str, int] = EXTERNAL) -> bytes:
    """A mapping was made; or deleted, if that is what was asked for."""
    if request[4:8] == bytes(4):
        return header(1, 0, 0, epoch) + request[24:]
    host, port = external
    return header(1, 0, lifetime, epoch) + request[24:42] + struct.pack("!H", port) + packed(host)


def error(request: bytes, result: int, lifetime: int = 30, epoch: int = 0) -> bytes:
    """8.2: "copying the entire UDP payload"."""
    return header(request[1], result, lifetime, epoch) + request[24:]


class PcpPlay(Play):
    """With a gateway that answers everything, until ``answer`` is changed.

    Attributes:
        epoch_0: when its table began.
        lifetime, external: what it gives.
    """

    def __init__(self, answer: Answer | None = None, *, gateway: Gateway = GATEWAY, seed: int = 1) -> None:
        rng = Random(seed)
        super().__init__(PcpClient(gateway, BASE._replace(host=gateway.source), rng, rng))
        self.base = BASE._replace(host=gateway.source)
        self.server = self.server._replace(host=gateway.host)
        self.answer = answer or self.obey
        self.epoch_0 = START - 500
        self.lifetime = 3600
        self.external = EXTERNAL

    @property
    def epoch(self) -> int:
        """Seconds since the gateway's table began."""
        return int(self.now - self.epoch_0)

    def obey(self, data: bytes) -> Sequence[bytes]:
        """Say yes."""
        if data[1] == 0:
            return (announcement(self.epoch),)
        return (success(data, self.epoch, self.lifetime, self.external),)

    def fall_silent(self) -> None:
        """From now on."""
        self.answer = silent
        self.sent.clear()


def mapped(play: PcpPlay, key: int = 1, port: int = 5000, lifetime_s: int = 3600) -> Mapped:
    """Make one."""
    play.client.map(key, request(port, lifetime_s=lifetime_s), play.now)
    play.run(0.1)
    return play.only(Mapped)
