"""A machine of the laboratory, as the host of an agent, a server or any other part that takes one."""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Mapping, Sequence

from iceagent.lab.namespace import Namespace
from iceagent.net.address import TransportAddress
from iceagent.net.host import (
    DatagramReceiver,
    DatagramSocket,
    SocketOptions,
    SrvRecord,
)
from iceagent.net.local import LocalHost
from iceagent.net.netlink import open_netlink

__all__ = ["LabHost"]


class LabHost(LocalHost):
    """Sockets, streams and interfaces of one network namespace, on the running loop of this process.

    Args:
        namespace: where.
        names: what the laboratory's names stand for; there are no others.
    """

    def __init__(self, namespace: Namespace, names: Mapping[str, Sequence[str]]) -> None:
        self._namespace = namespace
        self._names = names
        super().__init__(open_netlink=self._open_netlink, open_socket=namespace.socket)

    def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
        """Open and bind a UDP socket there."""
        with self._namespace.entered():
            return super().socket(local, receiver, options)

    async def resolve(self, name: str) -> Sequence[str]:
        """Addresses of a name of the laboratory."""
        found = self._names.get(name.rstrip(".").lower())
        if found is None:
            raise OSError(f"there is no machine {name!r} in this laboratory")
        return found

    async def resolve_srv(self, name: str) -> Sequence[SrvRecord]:
        """There are none."""
        return ()

    def source_host(self, destination: TransportAddress) -> str | None:
        """The local address that the routes there choose for ``destination``."""
        with self._namespace.entered():
            return super().source_host(destination)

    def netlink(self, protocol: int) -> stdlib_socket.socket:
        """Open a netlink socket there."""
        with self._namespace.entered():
            return super().netlink(protocol)

    def _open_netlink(self, groups: int) -> stdlib_socket.socket:
        with self._namespace.entered():
            return open_netlink(groups)
