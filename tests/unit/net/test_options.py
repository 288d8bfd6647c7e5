"""How a socket is made to leave through its interface, where the kernel is too old for the simple way."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any, cast

import pytest

from iceagent.net.sockets import bind_to_interface, send_through, sockaddr

LOOPBACK_INDEX = 1


class OldKernelSocket:
    """Refuses SO_BINDTODEVICE as Linux did before 5.7, and writes down everything else."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, Any]] = []

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option == socket.SO_BINDTODEVICE and level == socket.SOL_SOCKET:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.options.append((level, option, value))


class RefusingSocket:
    """Refuses SO_BINDTOIFINDEX."""

    def __init__(self, number: int) -> None:
        self._number = number

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        assert (level, option) == (socket.SOL_SOCKET, 62)
        raise OSError(self._number, "refused")


def test_an_old_kernel_is_told_the_index_in_network_byte_order() -> None:
    """IP_UNICAST_IF is 50 in <linux/in.h>."""
    sock = OldKernelSocket()
    bind_to_interface(cast(socket.socket, sock), socket.AF_INET, "lo")
    assert sock.options == [(socket.IPPROTO_IP, 50, struct.pack("!I", LOOPBACK_INDEX))]


def test_an_old_kernel_has_no_way_for_ipv6_and_that_is_said() -> None:
    """IPV6_UNICAST_IF does not outrank the routes for a socket bound to an address: what was asked for is refused."""
    with pytest.raises(PermissionError):
        bind_to_interface(cast(socket.socket, OldKernelSocket()), socket.AF_INET6, "lo")


def test_an_egress_that_an_old_kernel_refuses_is_left_to_the_routes() -> None:
    """62 is SO_BINDTOIFINDEX: Linux before 5.7 says EPERM, before 5.0 ENOPROTOOPT; no such interface is an error."""
    for number in (errno.EPERM, errno.ENOPROTOOPT):
        send_through(cast(socket.socket, RefusingSocket(number)), socket.AF_INET6, LOOPBACK_INDEX)
    with pytest.raises(OSError) as caught:
        send_through(cast(socket.socket, RefusingSocket(errno.ENODEV)), socket.AF_INET6, 99)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("host", "scope_id", "expected"),
    [
        ("fe80::1", 7, ("fe80::1", 9, 0, 7)),
        ("fe80::1", 0, ("fe80::1", 9)),
        ("2001:db8::1", 7, ("2001:db8::1", 9)),
        ("169.254.0.1", 7, ("169.254.0.1", 9)),
    ],
)
def test_a_zone_is_put_on_link_local_ipv6_addresses_only(
    host: str, scope_id: int, expected: tuple[str, int] | tuple[str, int, int, int]
) -> None:
    assert sockaddr((host, 9), scope_id) == expected
