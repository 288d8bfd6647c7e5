"""Where is a STUN or TURN server?

RFC 8489, 8 and RFC 5928: a URI without a port is looked up by SRV first. Names are resolved without blocking.
"""

from __future__ import annotations

import asyncio

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import Host
from relay.uri import ServerUri

__all__ = ["is_address", "is_asked_over_udp", "resolve_server"]

# A URI without a port waits this long for SRV records before the default port is used.
_SRV_PATIENCE_S = 0.5
# Addresses of one name that are asked.
_MAX_ADDRESSES = 8


async def resolve_server(host: Host, uri: ServerUri, protocol: str = "udp") -> list[TransportAddress]:
    """Addresses of a server, in the order to be tried (RFC 8489, 8).

    Args:
        host: who looks names up.
        uri: which server.
        protocol: ``udp`` or ``tcp``, for SRV records.

    Raises:
        OSError: the name has no address.
    """
    if is_address(uri.host):
        return [TransportAddress(uri.host, uri.port or uri.default_port)]
    addresses = asyncio.ensure_future(host.resolve(uri.host))
    try:
        if uri.port is None:
            found = await _by_srv(host, uri, protocol)
            if found:
                return found
        hosts = await addresses
    finally:
        if not addresses.done():
            addresses.cancel()
        elif not addresses.cancelled():
            addresses.exception()
    return [TransportAddress(address, uri.port or uri.default_port) for address in hosts][:_MAX_ADDRESSES]


async def _by_srv(host: Host, uri: ServerUri, protocol: str) -> list[TransportAddress]:
    try:
        # Not wait_for(): in Python 3.11 it forgets that it was cancelled when the answer comes in the same moment.
        async with asyncio.timeout(_SRV_PATIENCE_S):
            records = await host.resolve_srv(f"_{uri.scheme}._{protocol}.{uri.host}")
    except TimeoutError:
        return []
    found: list[TransportAddress] = []
    for record in list(records)[:_MAX_ADDRESSES]:
        try:
            found += [TransportAddress(address, record.port) for address in await host.resolve(record.host)]
        except OSError:
            continue
    return found[:_MAX_ADDRESSES]


def is_address(host: str) -> bool:
    """Whether a server is named by its IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_asked_over_udp(uri: ServerUri) -> bool:
    """Whether it is a server over UDP, or may be one (RFC 7065, 3.1 leaves the transport out)."""
    return not uri.is_secure and uri.transport != "tcp"
