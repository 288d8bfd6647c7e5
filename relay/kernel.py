"""How do the reflector and the latching relay have the kernel work for them?

Each has a table of nftables (``iceagent/net/nftables.py``) with a chain that every device's ingress jumps to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from iceagent.net.host import Host, Interface
from iceagent.net.nft_messages import Verdict, verdict
from iceagent.net.nftables import NetlinkHost, Table, explained
from relay.backend import Backend, KernelUnavailable

__all__ = ["Devices", "Kernel", "open_as_asked", "open_table"]

# Before the rules of others at the same place, which have 0 as a rule.
PRIORITY = -100


def open_table(host: Host, name: str, fill: Callable[[Table], None]) -> Table:
    """A table with what ``fill`` adds; ``name`` is the beginning of its name.

    Raises:
        KernelUnavailable: this process may not, or the kernel cannot.
    """
    if not isinstance(host, NetlinkHost):
        raise KernelUnavailable("this host has no kernel of its own")
    try:
        table = Table(host, name)
    except OSError as error:
        raise KernelUnavailable(explained(error)) from error
    try:
        fill(table)
        table.commit()
    except OSError as error:
        table.close()
        raise KernelUnavailable(explained(error)) from error
    return table


class Kernel(Protocol):
    """A table for one of the two."""

    async def open(self) -> None:
        """Install it.

        Raises:
            KernelUnavailable: this process may not, or the kernel cannot.
        """


async def open_as_asked(kernel: Kernel, backend: Backend) -> str | None:
    """Have the kernel work, as far as that is asked for.

    Returns:
        ``None`` where it does; else why not, which is empty where it was not to.

    Raises:
        KernelUnavailable: it cannot be had, and nothing else is wanted.
    """
    if backend == "userspace":
        return ""
    try:
        await kernel.open()
    except KernelUnavailable as error:
        if backend == "nftables":
            raise
        return str(error)
    return None


class Devices:
    """The devices whose ingress jumps to one chain of a table.

    Args:
        table: installed.
        chain: of it.

    Attributes:
        names: of those that there are.
    """

    def __init__(self, table: Table, chain: str) -> None:
        self._table = table
        self._chain = chain
        self._indices: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._indices)

    def follow(self, interfaces: Iterable[Interface]) -> None:
        """Have these from now on. A device that cannot be had, because it has just gone, is left out."""
        wanted = {each.name: each.index for each in interfaces}
        for name, index in list(self._indices.items()):
            # One that comes back under its name is another device.
            if wanted.get(name) != index:
                del self._indices[name]
                self._try(partial(self._table.remove_ingress, _chain_of(name)))
        for name, index in wanted.items():
            if name not in self._indices and self._try(partial(self._add, name)):
                self._indices[name] = index

    def _add(self, name: str) -> None:
        chain = _chain_of(name)
        self._table.add_ingress(chain, name, PRIORITY)
        self._table.add_rule(chain, verdict(Verdict.JUMP, self._chain))

    def _try(self, change: Callable[[], None]) -> bool:
        try:
            change()
            self._table.commit()
        except OSError:
            return False
        return True


def _chain_of(device: str) -> str:
    return f"in-{device}"
