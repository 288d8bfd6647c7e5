"""Calls of the kernel that Python 3.11 has no names for: namespaces and mounts, of the calling thread."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

__all__ = ["Kind", "bind", "keep_mounts_private", "open_own", "set_namespace", "unshare"]

_libc = ctypes.CDLL(None, use_errno=True)

# <linux/mount.h>
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


class Kind(IntFlag):
    """What a thread has of its own: the flags of <linux/sched.h>."""

    NETWORK = 0x40000000
    MOUNTS = 0x00020000
    ROOT_AND_FOLDER = 0x00000200
    """Not to be shared with other threads by who goes into another namespace of mounts."""


_NAMES = {Kind.NETWORK: "net", Kind.MOUNTS: "mnt"}


def unshare(kind: Kind) -> None:
    """The calling thread gets new ones.

    Raises:
        OSError: it may not.
    """
    _check(_libc.unshare(kind))


def open_own(kind: Kind) -> int:
    """A descriptor of the one that the calling thread is in."""
    return os.open(f"/proc/thread-self/ns/{_NAMES[kind]}", os.O_RDONLY | os.O_CLOEXEC)


def set_namespace(fd: int, kind: Kind) -> None:
    """The calling thread goes into it.

    Raises:
        OSError: it may not.
    """
    _check(_libc.setns(fd, kind))


def keep_mounts_private() -> None:
    """What is mounted here from now on is seen here only."""
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


def bind(source: str, target: str) -> None:
    """``target`` is ``source``, a file, for who is in the calling thread's namespace of mounts.

    Raises:
        FileNotFoundError: there is no such target.
        OSError: it may not.
    """
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
