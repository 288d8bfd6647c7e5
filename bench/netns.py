"""Where are things measured? In network namespaces of their own.

A namespace here has no name: it lives as long as its file descriptor and the processes in it, so a killed run leaves
nothing behind. Needs ip(8) and CAP_SYS_ADMIN; ``unshare -Urn`` gives the latter to an ordinary user for all but the
delay link, which needs ``/dev/net/tun``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Namespace", "link_by_veth", "loopback_hosts", "loopback_only", "namespaces"]

T = TypeVar("T")

COMMAND_TIMEOUT_S = 30

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
# <linux/if_tun.h>: an Ethernet device, frames without a header of their own.
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
IFREQ_SIZE = 40

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new network namespace, without IPv6, with loopback up. Close it after use."""

    def __init__(self) -> None:
        self._fd = _in_a_thread(_new)
        self.do(self._prepare)

    @property
    def path(self) -> str:
        """What ip(8) takes as the name of this namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def do(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread that is inside; sockets and processes it makes belong here for good."""

        def inside() -> T:
            _check(_libc.setns(self._fd, CLONE_NEWNET))
            return work()

        return _in_a_thread(inside)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) here, in one batch."""
        self.run(["ip", "-batch", "-"], "\n".join(commands))

    def accept_only(self, rule: str) -> None:
        """Drop every incoming datagram, silently, but those that the nftables ``rule`` fits."""
        chain = "chain input { type filter hook input priority 0; policy drop;"
        self.run(["nft", "-f", "-"], f"table inet bench {{\n{chain}\niif lo accept\n{rule} accept\n}}\n}}\n")

    def run(self, command: Sequence[str], text: str) -> None:
        """Run a command here, with ``text`` as its input.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        self.do(lambda: subprocess.run(command, input=text, text=True, check=True, timeout=COMMAND_TIMEOUT_S))

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process here."""
        return self.do(lambda: subprocess.Popen(command, **options))

    def tap(self, name: str) -> int:
        """Make an Ethernet device whose frames are read from and written to the file descriptor returned."""

        def make() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI).ljust(IFREQ_SIZE, b"\0")
            fcntl.ioctl(fd, TUNSETIFF, request)
            return fd

        return self.do(make)

    def udp_sent(self) -> int:
        """UDP datagrams sent by everybody in this namespace since it was made."""
        lines = self.do(lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("OutDatagrams")])

    def close(self) -> None:
        """Forget it; the kernel takes it down with the last process in it."""
        os.close(self._fd)

    def _prepare(self) -> None:
        # Both agents shall find the same addresses: none that come by themselves.
        for scope in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=COMMAND_TIMEOUT_S)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many namespaces for the length of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            namespace = Namespace()
            stack.callback(namespace.close)
            made.append(namespace)
        yield made


@contextlib.contextmanager
def loopback_only(count: int) -> Iterator[Namespace]:
    """A namespace with ``count`` loopback addresses beside 127.0.0.1, which aioice never gathers."""
    with namespaces(1) as (namespace,):
        namespace.ip(*(f"address add {host}/8 dev lo" for host in loopback_hosts(count)))
        yield namespace


def loopback_hosts(count: int) -> list[str]:
    """The addresses that :func:`loopback_only` adds."""
    return [f"127.0.0.{2 + i}" for i in range(count)]


def link_by_veth(first: Namespace, second: Namespace, name: str, indices: tuple[int, int] | None = None) -> None:
    """Join two namespaces by a cable; both of its ends are called ``name``, and are up.

    Args:
        indices: numbers of the ends' interfaces; ``None``: the kernel's choice.
    """
    own, other = ("", "") if indices is None else (f" index {index}" for index in indices)
    first.ip(f"link add {name}{own} type veth peer name {name}{other} netns {second.path}")
    for namespace in (first, second):
        namespace.ip(f"link set {name} up")


def _new() -> int:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise PermissionError("making a network namespace needs root, or an `unshare -Urn` around this program")
    return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_a_thread(work: Callable[[], T]) -> T:
    """A thread of its own for every piece of work: which namespace it is in ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
