"""Where are things measured? In network namespaces of the laboratory (``iceagent/lab/namespace.py``), set up by hand.

Needs ip(8), nft(8) and root; ``unshare -Urnm`` gives the latter to an ordinary user for all but the delay link, which
needs ``/dev/net/tun``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from iceagent.lab.namespace import Namespace as LabNamespace

__all__ = ["Namespace", "link_by_veth", "loopback_hosts", "loopback_only", "namespaces"]


class Namespace(LabNamespace):
    """A new network namespace, without IPv6, with loopback up. Close it after use."""

    def __init__(self) -> None:
        super().__init__("bench", os.environ)
        # Both agents shall find the same addresses: none that come by themselves.
        for scope in ("all", "default"):
            self.sysctl(f"ipv6/conf/{scope}/disable_ipv6", 1)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) here, in one batch."""
        self.run(["ip", "-batch", "-"], "\n".join(commands))

    def accept_only(self, rule: str) -> None:
        """Drop every incoming datagram, silently, but those that the nftables ``rule`` fits."""
        chain = "chain input { type filter hook input priority 0; policy drop;"
        self.nft(f"table inet bench {{\n{chain}\niif lo accept\n{rule} accept\n}}\n}}\n")

    def udp_sent(self) -> int:
        """UDP datagrams sent by everybody in this namespace since it was made."""
        lines = self.do(lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("OutDatagrams")])


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
