"""Network namespaces without names: each lives as long as its file descriptor, and nothing is left of a killed run.

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and ip(8).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new network namespace with loopback up and addresses usable at once; close it after use."""

    def __init__(self) -> None:
        self._fd = _made_in_a_thread()
        with self.entered():
            self.set("ipv6/conf/default/accept_dad", 0)
            for version_conf in ("all", "default"):
                self.set(f"ipv4/conf/{version_conf}/rp_filter", 0)
        self.ip("link set lo up")

    @property
    def path(self) -> str:
        """What ip(8) takes as the name of this namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside; sockets made now belong here for good."""
        own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(self._fd)
            yield
        finally:
            _set_namespace(own)
            os.close(own)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) here, in one batch."""
        with self.entered():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=30)

    def set(self, name: str, value: int) -> None:
        """Write ``net/NAME`` under /proc/sys; only inside of :meth:`entered`."""
        Path("/proc/sys/net", name).write_text(str(value))

    def close(self) -> None:
        """Forget it; the kernel takes it down with its last socket."""
        os.close(self._fd)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace for the length of a ``with`` block."""
    made = Namespace()
    try:
        yield made
    finally:
        made.close()


def _made_in_a_thread() -> int:
    """The file descriptor of a new namespace; the calling thread stays where it is."""
    result: list[int] = []

    def make() -> None:
        if _libc.unshare(CLONE_NEWNET) == 0:
            result.append(os.open(OWN, os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not result:
        raise PermissionError("making a network namespace needs root")
    return result[0]


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
