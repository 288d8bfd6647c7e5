"""A STUN and TURN server in an application."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host
from iceagent.net.local import local_host
from relay.relays import DEFAULT_PORTS, Relaying
from relay.server import STUN_PORT, Server, ServerOptions
from relay.turn.server import Accounts, TurnOptions

__all__ = ["serve"]


def serve(
    listen: Iterable[TransportAddress] = (TransportAddress("0.0.0.0", STUN_PORT), TransportAddress("::", STUN_PORT)),
    *,
    users: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    realm: str = "iceagent",
    relay_hosts: Sequence[str] = (),
    relay_ports: tuple[int, int] = DEFAULT_PORTS,
    allow_peers: Sequence[str] = (),
    deny_peers: Sequence[str] = (),
    max_allocations: int = 1000,
    user_quota: int | None = None,
    max_bps: int | None = None,
    options: ServerOptions | None = None,
    host: Host | None = None,
) -> Server:
    """A server, to be entered: ``async with iceagent.serve(users={"me": "secret"}) as server``.

    Args:
        listen: where, over UDP and TCP; port 0 takes a free one.
        users: name → password, for TURN.
        secrets: of time-limited names (coturn's ``use-auth-secret``), the newest first. Without either, it is a STUN
            server only: never an open relay.
        realm: of the users.
        relay_hosts: where relayed addresses are; empty: on the address that the client speaks to.
        relay_ports: first and last port of relayed addresses.
        allow_peers: networks that may be relayed to although they are private or special, as ``127.0.0.0/8`` for tests.
        deny_peers: networks that may not.
        max_allocations: in total.
        user_quota: of one user; ``None``: no limit.
        max_bps: bits per second of one allocation, both directions together; ``None``: no limit.
        options: everything else: TLS, behaviour discovery, limits of streams. Its ``relaying`` is not used.
        host: whose sockets; this machine's if not given.

    Raises:
        ValueError: a network, a name or a password is none; nothing to listen on.
        OSError: this system is not Linux and no host was given.
        RuntimeError: no loop is running, and no host was given.
    """
    given = options or ServerOptions()
    relaying = None
    if users or secrets:
        turn = TurnOptions(
            accounts=Accounts(realm=realm, users=dict(users or {}), secrets=tuple(secrets)),
            max_allocations=max_allocations,
            user_quota=user_quota,
            max_bytes_per_s=None if max_bps is None else max_bps / 8,
        )
        relaying = Relaying(
            turn=turn,
            hosts=tuple(relay_hosts),
            ports=relay_ports,
            allow=tuple(allow_peers),
            deny=tuple(deny_peers),
        )
    whole = ServerOptions(
        behaviour_discovery=given.behaviour_discovery,
        tls=given.tls,
        tls_port=given.tls_port,
        max_streams=given.max_streams,
        stream_idle_s=given.stream_idle_s,
        relaying=relaying,
    )
    return Server(local_host() if host is None else host, tuple(listen), options=whole)
