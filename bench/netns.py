"""Where are things measured? In network namespaces of the laboratory (``iceagent/lab/namespace.py``), set up by hand.

Needs ip(8), nft(8) and root; ``unshare -Urnm`` gives the latter to an ordinary user for all but the delay link, which
needs ``/dev/net/tun``.

Measuring processes import this too, by way of the cases. The laboratory is loaded with the first namespace, so only
into the process that makes them: what is imported beside a contender changes what is measured.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iceagent.lab.namespace import Namespace

__all__ = ["accept_only", "link_by_veth", "loopback_hosts", "loopback_only", "namespaces", "udp_sent"]


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many new namespaces, without IPv6, with loopback up, for the length of a ``with`` block."""
    from iceagent.lab.namespace import Namespace

    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(Namespace("bench", os.environ))) for _ in range(count)]
        for namespace in made:
            # Both agents shall find the same addresses: none that come by themselves.
            for scope in ("all", "default"):
                namespace.sysctl(f"ipv6/conf/{scope}/disable_ipv6", 1)
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

    By ip(8): pyroute2 does not tell the kernel the number of the far end.

    Args:
        indices: numbers of the ends' interfaces; ``None``: the kernel's choice.
    """
    own, other = ("", "") if indices is None else (f" index {index}" for index in indices)
    first.ip(f"link add {name}{own} type veth peer name {name}{other} netns {second.path}")
    for namespace in (first, second):
        namespace.set_link(name, is_up=True)


def accept_only(namespace: Namespace, rule: str) -> None:
    """Drop every incoming datagram, silently, but those that the nftables ``rule`` fits."""
    chain = "chain input { type filter hook input priority 0; policy drop;"
    namespace.nft(f"table inet bench {{\n{chain}\niif lo accept\n{rule} accept\n}}\n}}\n")


def udp_sent(namespace: Namespace) -> int:
    """UDP datagrams sent by everybody in a namespace since it was made."""
    lines = namespace.do(lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    return int(values[names.index("OutDatagrams")])
