"""Who moves the datagrams of a reflector or a latching relay: this process, or the kernel? Pure."""

from __future__ import annotations

from typing import Literal

__all__ = ["BACKENDS", "Backend", "KernelUnavailable"]

Backend = Literal["auto", "userspace", "nftables"]
"""``auto``: the kernel where it can be had, else this process."""

BACKENDS: tuple[Backend, ...] = ("auto", "userspace", "nftables")


class KernelUnavailable(Exception):
    """The kernel cannot be given this work; the text is one clause that says why."""
