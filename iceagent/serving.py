"""How does an application have a STUN and TURN server of its own?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host
from iceagent.net.local import local_host
from relay.places import DEFAULT_PORTS, Relaying
from relay.server import STUN_PORT, Server, ServerOptions
from relay.turn.server import Accounts, PeerPolicy, TurnOptions
from relay.turn.server.checks import check_number, check_ports, hosts, public_hosts, texts, type_name

__all__ = ["serve"]

MAX_ALLOCATIONS = 1000
MIN_BPS = 1000


def serve(
    listen: Iterable[TransportAddress] = (TransportAddress("0.0.0.0", STUN_PORT), TransportAddress("::", STUN_PORT)),
    *,
    users: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    realm: str = "iceagent",
    relay_hosts: Sequence[str] = (),
    relay_ports: tuple[int, int] = DEFAULT_PORTS,
    external_addresses: Mapping[str, str | None] | None = None,
    allow_peers: Sequence[str] = (),
    deny_peers: Sequence[str] = (),
    max_allocations: int = MAX_ALLOCATIONS,
    user_quota: int | None = None,
    max_bps: int | None = None,
    options: ServerOptions | None = None,
    host: Host | None = None,
) -> Server:
    """A server, to be entered: ``async with iceagent.serve(users={"me": "secret"}) as server``.

    Without ``users`` and ``secrets`` it is a STUN server only, never an open relay, and nothing that is about relaying
    may be given.

    Args:
        listen: where, over UDP and TCP; port 0 takes a free one. A wildcard (0.0.0.0, ::) stands for every address.
        users: name → password, for TURN.
        secrets: of time-limited names (coturn's ``use-auth-secret``), the newest first.
        realm: of the users; a key of coturn's user database is made with it.
        relay_hosts: addresses of this host where relayed addresses are, the first of each IP version; empty: on the one
            that the client speaks to, and for the other IP version on one of the same interface.
        relay_ports: first and last port of relayed addresses.
        external_addresses: behind a 1:1 NAT, public address → address of this host (``None``: every one of its IP
            version): clients are told the public one. The NAT is to pass on the relayed ports as they are.
        allow_peers: networks that may be relayed to although they are private or special, as ``127.0.0.0/8`` for tests;
            addresses of this host among them, but for what the server itself listens on.
        deny_peers: networks that may not; they count more than ``allow_peers``.
        max_allocations: in total, at least 1.
        user_quota: of one user, at least 1; ``None``: no limit.
        max_bps: bits per second of one allocation, both directions together, at least 1,000; ``None``: no limit.
        options: everything else: TLS, behaviour discovery, limits of streams. Its ``relaying`` is not used.
        host: whose sockets; this machine's if not given.

    Returns:
        What is entered with ``async with``, once at a time. Entering it raises :class:`OSError` where a port is in use
        or an address is none of this host; the text says which one.

    Raises:
        ValueError: a value cannot be meant; the text has its name, and what is expected.
        OSError: this system is not Linux and no host was given.
        RuntimeError: no loop is running, and no host was given.
    """
    turn_only = {
        "relay_hosts": hosts("relay_hosts", relay_hosts),
        "external_addresses": public_hosts("external_addresses", external_addresses or {}),
        "allow_peers": _networks("allow_peers", allow_peers),
        "deny_peers": _networks("deny_peers", deny_peers),
        "user_quota": user_quota,
        "max_bps": max_bps,
        "relay_ports": check_ports("relay_ports", relay_ports) != DEFAULT_PORTS,
        "max_allocations": max_allocations != MAX_ALLOCATIONS,
    }
    check_number("max_allocations", max_allocations, 1)
    if user_quota is not None:
        check_number("user_quota", user_quota, 1)
    if max_bps is not None:
        check_number("max_bps", max_bps, MIN_BPS)
    accounts = Accounts(realm=realm, users={} if users is None else users, secrets=secrets)
    relaying = None
    if accounts.users or accounts.secrets:
        relaying = Relaying(
            turn=TurnOptions(
                accounts=accounts,
                max_allocations=max_allocations,
                user_quota=user_quota,
                max_bytes_per_s=None if max_bps is None else max_bps / 8,
            ),
            hosts=tuple(relay_hosts),
            ports=relay_ports,
            external=external_addresses or {},
            allow=tuple(allow_peers),
            deny=tuple(deny_peers),
        )
    else:
        given = [name for name, value in turn_only.items() if value]
        if given:
            raise ValueError(f"{given[0]} is about relaying, and nobody may relay: give users or secrets as well")
    if not isinstance(options, ServerOptions | None):
        raise ValueError(f"options is of type {type_name(options)}, ServerOptions(…) is expected")
    whole = replace(ServerOptions() if options is None else options, relaying=relaying)
    return Server(local_host() if host is None else host, listen, options=whole)


def _networks(name: str, value: Sequence[str]) -> tuple[str, ...]:
    found = texts(name, value, '["10.0.0.0/8"]')
    try:
        PeerPolicy(found)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return found
