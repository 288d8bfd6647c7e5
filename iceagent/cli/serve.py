"""``iceagent serve``: runs a STUN and TURN server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import FiniteFloat, output_options, parse_host, parse_port_range
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.logs import Line, log_event, register
from iceagent.net.address import TransportAddress, ip_address, parse_address
from iceagent.net.local import local_host
from iceagent.net.streams import descriptor_limit, raise_descriptor_limit
from relay.relays import DEFAULT_PORTS, Relaying
from relay.server import STUN_PORT, TLS_PORT, Listening, Server, ServerOptions, server_ssl_context
from relay.stun_server import BROADCAST, STREAM_LIMIT, CloseStream
from relay.turn.server import Accounts, AllocationEnded, AllocationMade, PeerPolicy, ServedAllocation, TurnOptions

if TYPE_CHECKING:
    from iceagent.cli.metrics import Exporter

__all__ = ["serve"]

_DRAIN_HELP = "At SIGTERM, wait so long for allocations to end."
DEFAULT_LISTEN = (TransportAddress("0.0.0.0", STUN_PORT), TransportAddress("::", STUN_PORT))


# A certificate chain is a few kilobytes.
_MAX_PEM = 1 << 20
# RFC 7468, 5, 10 and 11, and what came before it: "BEGIN RSA PRIVATE KEY" with "Proc-Type: 4,ENCRYPTED" (RFC 1421).
_PEM_MARKS = {
    "CERTIFICATE": (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----"),
    "KEY": (b"PRIVATE KEY-----",),
    "ENCRYPTED": (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"),
}


def _closed(event: CloseStream) -> Line:
    fields = {"base": str(event.base), "remote": str(event.remote), "reason": event.reason}
    return Line("debug", "stream.closed", fields)


def _allocation(allocation: ServedAllocation) -> dict[str, Any]:
    relayed = [str(address) for address in allocation.relayed.values()]
    return {"client": str(allocation.client), "user": allocation.username, "relayed": relayed}


def _ended(event: AllocationEnded) -> Line:
    sent, received = event.allocation.octets
    fields = {**_allocation(event.allocation), "reason": event.reason, "to_peers": sent, "from_peers": received}
    return Line("info", "allocation.ended", fields)


register(
    {
        CloseStream: _closed,
        AllocationMade: lambda e: Line("info", "allocation.made", _allocation(e.allocation)),
        AllocationEnded: _ended,
    }
)


@click.command(short_help="Run a STUN and TURN server.")
@click.option(
    "--listen",
    "listen_texts",
    multiple=True,
    metavar="ADDRESS[:PORT]",
    help=f"Answer here over UDP and TCP; repeatable. Default: every address of this host, port {STUN_PORT}.",
)
@click.option("--tls-cert", metavar="FILE", help=f"Answer over TLS as well, port {TLS_PORT}: certificate chain, PEM.")
@click.option("--tls-key", metavar="FILE", help="The certificate's key, PEM.")
@click.option("--behaviour-discovery", is_flag=True, help="RFC 5780: two --listen addresses of each IP version.")
@click.option("--user", "users", multiple=True, metavar="NAME:PASSWORD", help="May relay (TURN); repeatable.")
@click.option(
    "--secret", "secrets", multiple=True, metavar="SECRET", help="Of time-limited names, as coturn's; the newest first."
)
@click.option("--realm", default="iceagent", show_default=True, metavar="NAME", help="Of the users.")
@click.option(
    "--relay-address", "relay_hosts", multiple=True, metavar="ADDRESS", help="Relayed addresses are here; repeatable."
)
@click.option("--port-range", metavar="LO-HI", help="Of relayed addresses. Default: 49152-65535.")
@click.option("--allow-peer", "allowed", multiple=True, metavar="CIDR", help="Relay to this network, though private.")
@click.option("--deny-peer", "denied", multiple=True, metavar="CIDR", help="Do not relay to this network.")
@click.option("--max-allocations", type=click.IntRange(1), default=1000, show_default=True, metavar="N")
@click.option("--user-quota", type=click.IntRange(1), metavar="N", help="Allocations of one user.")
@click.option("--max-bps", type=click.IntRange(1000), metavar="N", help="Bits per second of one allocation.")
@click.option("--metrics", "metrics_text", metavar="ADDRESS:PORT", help="Answer Prometheus here, over HTTP.")
@click.option("--drain", "drain_s", type=FiniteFloat(0, 86_400), default=0.0, metavar="S", help=_DRAIN_HELP)
@output_options
def serve(
    *,
    listen_texts: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    behaviour_discovery: bool,
    users: tuple[str, ...],
    secrets: tuple[str, ...],
    realm: str,
    relay_hosts: tuple[str, ...],
    port_range: str | None,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    max_allocations: int,
    user_quota: int | None,
    max_bps: int | None,
    metrics_text: str | None,
    drain_s: float,
    output: Output,
) -> int:
    """Tell STUN clients which address they are seen from (RFC 8489), and relay for users (TURN, RFC 8656).

    Without --user or --secret nothing is relayed. Peers in private and special networks are refused, but for those of
    --allow-peer.

    With --behaviour-discovery (RFC 5780) clients can also find out how their NAT maps and filters. That makes answers
    several times as long as requests, which invites those who forge sources, so it is off by default.

    Ends at Ctrl-C or SIGTERM; with --drain, SIGTERM first waits for the allocations that there are, and makes no new
    ones.
    """
    listen = tuple(_address(text) for text in listen_texts) or DEFAULT_LISTEN
    tls = _tls(tls_cert, tls_key)
    accounts = _accounts(realm, users, secrets)
    relaying = None
    if accounts is not None:
        turn = TurnOptions(
            accounts=accounts,
            max_allocations=max_allocations,
            user_quota=user_quota,
            max_bytes_per_s=None if max_bps is None else max_bps / 8,
        )
        ports = DEFAULT_PORTS if port_range is None else parse_port_range(port_range)
        hosts = tuple(parse_host(text, "--relay-address") for text in relay_hosts)
        relaying = Relaying(turn=turn, hosts=hosts, ports=ports, allow=allowed, deny=denied)
        _check_networks(allowed, denied)
    options = ServerOptions(
        behaviour_discovery=behaviour_discovery, tls=tls, max_streams=_max_streams(), relaying=relaying
    )
    metrics = None if metrics_text is None else _address(metrics_text, "--metrics")
    return run(_serve(listen, options, metrics, drain_s, output), sigterm_code=EXIT_DIRECT)


def _accounts(realm: str, users: tuple[str, ...], secrets: tuple[str, ...]) -> Accounts | None:
    """Who may relay; ``None``: nobody."""
    if not users and not secrets:
        return None
    found: dict[str, str] = {}
    for text in users:
        name, colon, password = text.partition(":")
        if not (name and colon and password):
            raise click.UsageError("--user: NAME:PASSWORD is expected")
        found[name] = password
    try:
        return Accounts(realm=realm, users=found, secrets=secrets)
    except ValueError as error:
        raise click.UsageError(f"--realm, --user, --secret: {error}") from error


def _check_networks(allowed: tuple[str, ...], denied: tuple[str, ...]) -> None:
    for option, networks in (("--allow-peer", allowed), ("--deny-peer", denied)):
        try:
            PeerPolicy(networks)
        except ValueError as error:
            raise click.UsageError(f"{option}: {error}") from error


async def _serve(
    listen: Sequence[TransportAddress],
    options: ServerOptions,
    metrics: TransportAddress | None,
    drain_s: float,
    output: Output,
) -> int:
    try:
        server = Server(local_host(), listen, options=options, on_event=log_event)
        await server.__aenter__()
    except ValueError as error:
        raise click.UsageError(f"--behaviour-discovery: {error}") from error
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}; choose another with --listen") from error
    exporter = None
    try:
        listeners = [_listener(each) for each in server.listeners]
        if metrics is not None:
            exporter = _export(server, metrics)
            listeners.append({"transport": "http", "address": exporter.address})
        output.event("server.ready", listeners=listeners)
        await _until_drained(server, drain_s)
    finally:
        if exporter is not None:
            exporter.close()
        relayed = server.turn_counters
        await server.aclose()
        total = server.counters + server.stream_counters + relayed
        output.event("server.stopped", requests=total["requests"], errors=total["errors"])
    return EXIT_DIRECT


async def _until_drained(server: Server, drain_s: float) -> None:
    """Until SIGTERM, and then until nobody relays any more, or so long; without, whoever runs us cancels."""
    told = asyncio.Event()
    if drain_s:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, told.set)
        await told.wait()
        # A second one ends it.
        loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await server.drain()
        return
    await told.wait()


def _export(server: Server, address: TransportAddress) -> Exporter:
    from iceagent.cli.metrics import Exporter

    try:
        return Exporter(server, address)
    except OSError as error:
        raise click.UsageError(f"--metrics {address}: {error.strerror or error}") from error


def _listener(listening: Listening) -> dict[str, Any]:
    return {"transport": listening.transport, "address": listening.address}


def _address(text: str, option: str = "--listen") -> TransportAddress:
    try:
        address = parse_address(text, STUN_PORT)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from error
    if ip_address(address.host).is_multicast or address.host == BROADCAST:
        raise click.UsageError(f"{option} {address.host}: a multicast or broadcast address belongs to no host")
    return address


def _max_streams() -> int:
    """As many as the process has descriptors for: half of them, for handshakes and streams that close need some too."""
    raise_descriptor_limit()
    return max(1, min(STREAM_LIMIT, descriptor_limit() // 2))


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key are given together or not at all")
    try:
        return server_ssl_context(certificate, key)
    except OSError as error:
        raise click.UsageError(_why_no_tls(certificate, key, error)) from error


def _why_no_tls(certificate: str, key: str, error: OSError) -> str:
    """What is wrong with which file; of a certificate and a key that could not be used."""
    one, other = _pem_kinds(certificate, "--tls-cert"), _pem_kinds(key, "--tls-key")
    if one is None or other is None:
        return f"--tls-cert {certificate}, --tls-key {key}: {error.strerror or error}"
    if "CERTIFICATE" in other and "CERTIFICATE" not in one:
        return f"--tls-cert {certificate} has no certificate, but --tls-key {key} has: swap the two"
    if "CERTIFICATE" not in one:
        return f"--tls-cert {certificate}: no certificate (BEGIN CERTIFICATE) is in this file; PEM is expected"
    if "KEY" not in other:
        return f"--tls-key {key}: no private key (BEGIN PRIVATE KEY) is in this file; PEM is expected"
    if "ENCRYPTED" in other:
        return f"--tls-key {key}: the key is encrypted; decrypt it first (openssl pkey)"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key} is not the key of the certificate in --tls-cert {certificate}"
    if isinstance(error, ssl.SSLError) and error.reason:
        # The cause in OpenSSL's words, such as EE_KEY_TOO_SMALL.
        return f"--tls-cert {certificate}, --tls-key {key}: {error.reason.replace('_', ' ').lower()}"
    return f"--tls-key {key}: the key is damaged" if _is_sound(certificate) else f"--tls-cert {certificate}: damaged"


def _is_sound(certificate: str) -> bool:
    """Whether a file's certificates can be read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except OSError:
        return False
    return True


def _pem_kinds(file: str, option: str) -> frozenset[str] | None:
    """Which of ``CERTIFICATE``, ``KEY``, ``ENCRYPTED`` a file holds; ``None`` of a pipe, which reads only once.

    Raises:
        click.UsageError: it cannot be read.
    """
    path = Path(file)
    try:
        if path.is_fifo():
            return None
        with path.open("rb") as stream:
            text = stream.read(_MAX_PEM)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"{option} {file} cannot be read: {reason}") from error
    return frozenset(kind for kind, marks in _PEM_MARKS.items() if any(mark in text for mark in marks))
