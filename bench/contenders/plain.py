"""The reflectors and the relay that people write by hand: what ours stand beside.

Each is for ``bench/worker.py``: it says on standard output that it is ready, and goes on until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket

__all__ = ["asyncio_echo", "blocking_echo", "select_relay"]

SIZE = 2_048


async def blocking_echo(host: str, port: int) -> None:
    """Send back whatever comes, in a loop."""
    sock = _bound(host, port)
    _say_ready()
    while True:
        data, address = sock.recvfrom(SIZE)
        sock.sendto(data, address)


async def asyncio_echo(host: str, port: int) -> None:
    """Send back whatever comes, with a protocol of asyncio's."""
    await asyncio.get_running_loop().create_datagram_endpoint(_Echo, local_addr=(host, port))
    _say_ready()
    await asyncio.Event().wait()


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def select_relay(host: str, left: int, right: int) -> None:
    """What comes to one port leaves the other one, to whoever was the first to send there."""
    left_socket, right_socket = _bound(host, left), _bound(host, right)
    left_address: tuple[str, int] | None = None
    right_address: tuple[str, int] | None = None
    _say_ready()
    while True:
        ready, _, _ = select.select([left_socket, right_socket], [], [])
        for sock in ready:
            data, address = sock.recvfrom(SIZE)
            if sock is left_socket:
                left_address = left_address or address
                if address == left_address and right_address:
                    right_socket.sendto(data, right_address)
            else:
                right_address = right_address or address
                if address == right_address and left_address:
                    left_socket.sendto(data, left_address)


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def _say_ready() -> None:
    print(json.dumps("ready"), flush=True)
