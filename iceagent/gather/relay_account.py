"""Who are we to a TURN server, and where is it?

What an entry of ``Config.servers`` needs before anybody can be asked for a relay: credentials, which the application's
function may have to fetch, and the servers' addresses. Both may take their time, and both may fail; nobody else waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iceagent.config import Config, IceServer
from iceagent.events import ServerFailed
from iceagent.gather.relay_race import Target, Transport
from iceagent.gather.servers import resolve_server
from iceagent.net.host import Host
from relay.account import TurnCredentials
from relay.turn import LongTermAuth
from relay.uri import ServerUri

__all__ = ["CREDENTIALS_TIMEOUT_S", "NoCredentials", "credentials_of", "targets_of"]

CREDENTIALS_TIMEOUT_S = 10.0
"""For the application's function: a service is asked by HTTP, and one that needs longer to connect, be looked up and
answer is down. As long as a connection to a server is waited for (``iceagent/net/streams.py``).
"""


class NoCredentials(Exception):
    """The application gave none that can be used; the message says why, and quotes none."""


async def credentials_of(server: IceServer) -> TurnCredentials | None:
    """User name and password for an entry; ``None``: it has none.

    Raises:
        NoCredentials: the application's function raised, gave something else, or nothing in time.
    """
    if server.credentials is None:
        if server.username is None or server.credential is None:
            return None
        return TurnCredentials(username=server.username, password=server.credential)
    try:
        async with asyncio.timeout(CREDENTIALS_TIMEOUT_S) as limit:
            found: object = await server.credentials()
    except Exception as error:  # The application's, whatever it raises: the server cannot be used without.
        why = f"nothing within {CREDENTIALS_TIMEOUT_S:g} s" if limit.expired() else f"{type(error).__name__}: {error}"
        raise NoCredentials(f"the application gave no credentials: {why}") from error
    if not isinstance(found, TurnCredentials):
        what = f"but something of type {type(found).__name__}: its function is to return iceagent.TurnCredentials"
        raise NoCredentials(f"the application gave no credentials, {what}")
    try:
        # Whether they can be sent at all.
        LongTermAuth(found)
    except ValueError as error:
        raise NoCredentials(f"the application gave credentials that cannot be sent: {error}") from error
    return found


async def targets_of(
    url: str, uri: ServerUri, host: Host, config: Config, tell: Callable[[ServerFailed], None]
) -> list[Target]:
    """The ways to a TURN server, by transport and address; what there is not, ``tell`` hears."""
    if uri.is_secure and uri.transport == "udp":
        tell(ServerFailed(server=url, base=None, reason="TURN over DTLS is not supported"))
        return []
    if uri.is_secure:
        transports = [Transport.TLS]
    elif uri.transport is None:
        transports = [Transport.UDP, Transport.TCP]
    else:
        transports = [Transport(uri.transport)]
    found: list[Target] = []
    for transport in transports:
        protocol = "udp" if transport is Transport.UDP else "tcp"
        try:
            addresses = await resolve_server(host, uri, protocol)
        except OSError as error:
            reason = f"{uri.host} does not resolve: {error.strerror or error}"
            tell(ServerFailed(server=url, base=None, reason=reason))
            return found
        found += [
            Target(url=url, transport=transport, address=address, name=uri.host)
            for address in addresses
            if (config.ipv4 if address.version == 4 else config.ipv6)
        ]
    return found
