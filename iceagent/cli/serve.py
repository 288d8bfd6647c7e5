"""``iceagent serve``: runs a STUN and TURN server until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import (
    FiniteFloat,
    output_options,
    parse_external_addresses,
    parse_host,
    parse_port_range,
)
from iceagent.cli.output import Output
from iceagent.cli.run import Echo, run
from iceagent.cli.serve_files import AccountOptions, Tls, TlsOptions
from iceagent.logs import Line, log_event, register
from iceagent.net.address import TransportAddress, ip_address, parse_address
from iceagent.net.local import local_host
from iceagent.net.streams import descriptor_limit, raise_descriptor_limit
from iceagent.rendezvous.mailbox_http import MAX_CONNECTIONS
from iceagent.rendezvous.mailbox_server import MailboxServer
from relay.listening import NoAddressOfOurs
from relay.places import DEFAULT_PORTS, Relaying
from relay.server import STUN_PORT, TLS_PORT, Listening, Server, ServerOptions
from relay.stun_server import BROADCAST, STREAM_LIMIT, CloseStream
from relay.turn.server import (
    Accounts,
    AllocationEnded,
    AllocationMade,
    PeerPolicy,
    ServedAllocation,
    TurnOptions,
    checks,
)

if TYPE_CHECKING:
    from iceagent.cli.metrics import Exporter

__all__ = ["serve"]

DRAIN_S = 5.0
"""How long SIGTERM waits for allocations, where ``--drain`` does not say. The contract has it drain; whoever stops a
service gives it ten seconds (Docker) or ninety (systemd) before he kills it."""

DEFAULT_LISTEN = (TransportAddress("0.0.0.0", STUN_PORT), TransportAddress("::", STUN_PORT))

# What is about relaying, by parameter: refused where nobody may relay.
_TURN_ONLY = {
    "realm": "--realm",
    "relay_hosts": "--relay-address",
    "port_range": "--port-range",
    "externals": "--external-address",
    "allowed": "--allow-peer",
    "denied": "--deny-peer",
    "max_allocations": "--max-allocations",
    "user_quota": "--user-quota",
    "max_bps": "--max-bps",
    "drain_s": "--drain",
}

_HELP = {
    "listen": f"Answer here over UDP and TCP; repeatable. Default: every address of this host, port {STUN_PORT}.",
    "tls-cert": f"Answer over TLS as well, port {TLS_PORT}: certificate chain, PEM.",
    "tls-key": "The certificate's key, PEM. Both are read again at SIGHUP.",
    "user": "Who may relay (TURN); repeatable. Others see a command line: --users-file does not show it.",
    "users-file": "More of them, NAME:PASSWORD in a line each; read again at SIGHUP.",
    "secret": "Who has a time-limited name made with this secret may relay, as coturn's use-auth-secret has it; "
    "repeatable, while one secret replaces another.",
    "secrets-file": "More of them, one in a line each; read again at SIGHUP.",
    "realm": "What clients are told that users belong to.",
    "relay-address": "Relay from this address of this host; repeatable, one of each IP version. Default: the one that "
    "the client has reached, and of the other IP version one of the same interface.",
    "port-range": "Ports of relayed addresses, UDP and TCP. Default: 49152-65535.",
    "external-address": "Tell clients PUBLIC in place of LOCAL, an address of this host (of each, without LOCAL), "
    "where a 1:1 NAT stands in front of it; repeatable.",
    "allow-peer": "Relay to this network although it is private or special; repeatable.",
    "deny-peer": "Do not relay to this network, whatever is allowed; repeatable.",
    "max-allocations": "Allocations in all, of all users.",
    "user-quota": "Allocations of one user. Default: no limit but that of all.",
    "max-bps": "Bits per second of one allocation, both directions together. Default: no limit.",
    "rendezvous": "Have rooms here where two peers exchange descriptions (connect --rendezvous): over HTTPS with "
    "--tls-cert, else over HTTP, which shows passwords to whoever listens.",
    "metrics": "Answer Prometheus here, over HTTP, to whoever gets there.",
    "drain": "At SIGTERM, wait so many seconds for allocations to end; 0: do not wait.",
}


def _closed(event: CloseStream) -> Line:
    fields = {"base": str(event.base), "remote": str(event.remote), "reason": event.reason}
    return Line("debug", "stream.closed", fields)


def _allocation(allocation: ServedAllocation) -> dict[str, Any]:
    relayed = [str(address) for address in allocation.relayed.values()]
    return {"client": str(allocation.client), "user": allocation.username, "relayed": relayed}


def _ended(event: AllocationEnded) -> Line:
    sent, received = event.allocation.octets
    fields = {**_allocation(event.allocation), "reason": event.reason}
    return Line("info", "allocation.ended", {**fields, "bytes_to_peers": sent, "bytes_from_peers": received})


register(
    {
        CloseStream: _closed,
        AllocationMade: lambda e: Line("info", "allocation.made", _allocation(e.allocation)),
        AllocationEnded: _ended,
    }
)


@click.command(short_help="Run a STUN and TURN server.")
@click.option("--listen", "listen_texts", multiple=True, metavar="ADDRESS[:PORT]", help=_HELP["listen"])
@click.option("--tls-cert", metavar="FILE", help=_HELP["tls-cert"])
@click.option("--tls-key", metavar="FILE", help=_HELP["tls-key"])
@click.option("--behaviour-discovery", is_flag=True, help="RFC 5780: two --listen addresses of each IP version.")
@click.option("--user", "users", multiple=True, metavar="NAME:PASSWORD", help=_HELP["user"])
@click.option("--users-file", metavar="FILE", help=_HELP["users-file"])
@click.option("--secret", "secrets", multiple=True, metavar="SECRET", help=_HELP["secret"])
@click.option("--secrets-file", metavar="FILE", help=_HELP["secrets-file"])
@click.option("--realm", default="iceagent", show_default=True, metavar="NAME", help=_HELP["realm"])
@click.option("--relay-address", "relay_hosts", multiple=True, metavar="ADDRESS", help=_HELP["relay-address"])
@click.option("--port-range", metavar="LO-HI", help=_HELP["port-range"])
@click.option(
    "--external-address", "externals", multiple=True, metavar="PUBLIC[=LOCAL]", help=_HELP["external-address"]
)
@click.option("--allow-peer", "allowed", multiple=True, metavar="CIDR", help=_HELP["allow-peer"])
@click.option("--deny-peer", "denied", multiple=True, metavar="CIDR", help=_HELP["deny-peer"])
@click.option(
    "--max-allocations",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help=_HELP["max-allocations"],
)
@click.option("--user-quota", type=click.IntRange(1), metavar="N", help=_HELP["user-quota"])
@click.option("--max-bps", type=click.IntRange(1000), metavar="N", help=_HELP["max-bps"])
@click.option("--rendezvous", "rendezvous_text", metavar="ADDRESS:PORT", help=_HELP["rendezvous"])
@click.option("--metrics", "metrics_text", metavar="ADDRESS:PORT", help=_HELP["metrics"])
@click.option(
    "--drain",
    "drain_s",
    type=FiniteFloat(0, 86_400),
    default=DRAIN_S,
    show_default=True,
    metavar="S",
    help=_HELP["drain"],
)
@output_options
def serve(
    *,
    listen_texts: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    behaviour_discovery: bool,
    users: tuple[str, ...],
    users_file: str | None,
    secrets: tuple[str, ...],
    secrets_file: str | None,
    realm: str,
    relay_hosts: tuple[str, ...],
    port_range: str | None,
    externals: tuple[str, ...],
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    max_allocations: int,
    user_quota: int | None,
    max_bps: int | None,
    rendezvous_text: str | None,
    metrics_text: str | None,
    drain_s: float,
    output: Output,
) -> int:
    """Tell STUN clients which address they are seen from (RFC 8489), and relay for users (TURN, RFC 8656).

    Without a user or a secret nothing is relayed, and the options of relaying are refused. Peers in private and special
    networks, and on this host, are refused, but for those of --allow-peer.

    With --behaviour-discovery (RFC 5780) clients can also find out how their NAT maps and filters. That makes answers
    several times as long as requests, which invites those who forge sources, so it is off by default.

    SIGTERM drains: no new allocations are made, and those that there are have the time of --drain; without any, it ends
    at once. A second SIGTERM, or Ctrl-C, ends it before that time is over. SIGHUP reads certificate, key, users and
    secrets again; what is connected stays.
    """
    listen = tuple(_address(text, "--listen", STUN_PORT) for text in listen_texts) or DEFAULT_LISTEN
    tls_options = TlsOptions.of(tls_cert, tls_key)
    tls = None if tls_options is None else Tls(tls_options)
    accounts = AccountOptions(
        realm=realm, users=users, secrets=secrets, users_file=users_file, secrets_file=secrets_file
    )
    relaying = None
    if accounts.are_given:
        turn = TurnOptions(
            accounts=accounts.read(),
            max_allocations=max_allocations,
            user_quota=user_quota,
            max_bytes_per_s=None if max_bps is None else max_bps / 8,
        )
        relaying = _relaying(turn, relay_hosts, port_range, externals, allowed, denied)
    else:
        _refuse_relaying()
    options = ServerOptions(
        behaviour_discovery=behaviour_discovery,
        tls=None if tls is None else tls.context,
        max_streams=_max_streams(),
        relaying=relaying,
    )
    metrics = None if metrics_text is None else _address(metrics_text, "--metrics", None)
    rendezvous = None if rendezvous_text is None else _address(rendezvous_text, "--rendezvous", None)
    renewal = Renewal(tls=tls, accounts=accounts if accounts.have_files else None)
    return run(_serve(listen, options, rendezvous, metrics, drain_s, renewal, output), sigterm_code=EXIT_DIRECT)


def _relaying(
    turn: TurnOptions,
    relay_hosts: tuple[str, ...],
    port_range: str | None,
    externals: tuple[str, ...],
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
) -> Relaying:
    for option, networks in (("--allow-peer", allowed), ("--deny-peer", denied)):
        try:
            PeerPolicy(networks)
        except ValueError as error:
            raise click.UsageError(f"{option}: {error}") from error
    external = parse_external_addresses(externals)
    try:
        hosts = checks.hosts("--relay-address", [parse_host(text, "--relay-address") for text in relay_hosts])
        external = checks.public_hosts("--external-address", external)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    ports = DEFAULT_PORTS if port_range is None else parse_port_range(port_range)
    return Relaying(turn=turn, hosts=hosts, ports=ports, external=external, allow=allowed, deny=denied)


def _refuse_relaying() -> None:
    """Nobody may relay: see that nothing says how."""
    context = click.get_current_context()
    for name, option in _TURN_ONLY.items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option} is about relaying, and nobody may relay: add --user or --secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What is read again at SIGHUP.

    Attributes:
        tls: certificate and key.
        accounts: those of files.
    """

    tls: Tls | None
    accounts: AccountOptions | None

    def renew(self, server: Server, output: Output) -> None:
        """Read it; what cannot be used leaves everything as it was."""
        try:
            accounts: Accounts | None = None if self.accounts is None else self.accounts.read(again=True)
            if self.tls is not None:
                self.tls.renew()
        except click.UsageError as error:
            output.event("server.reload_failed", reason=error.message)
            return
        if accounts is not None:
            server.change_accounts(users=accounts.users, secrets=accounts.secrets)
        counts = (0, 0) if accounts is None else (len(accounts.users), len(accounts.secrets))
        output.event("server.reloaded", tls=self.tls is not None, users=counts[0], secrets=counts[1])


async def _serve(
    listen: Sequence[TransportAddress],
    options: ServerOptions,
    rendezvous: TransportAddress | None,
    metrics: TransportAddress | None,
    drain_s: float,
    renewal: Renewal,
    output: Output,
) -> int:
    loop = asyncio.get_running_loop()
    # Until there is something to renew, it is heard and does nothing.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    server = await _open(listen, options)
    mailbox, exporter, is_ready = None, None, False
    try:
        listeners = [_listener(each) for each in server.listeners]
        if rendezvous is not None:
            mailbox = await _open_mailbox(rendezvous, options)
            server.protect(mailbox.address)
            listeners.append({"transport": mailbox.transport, "address": mailbox.address})
        if metrics is not None:
            exporter = _export(server, metrics)
            server.protect(exporter.address)
            listeners.append({"transport": "http", "address": exporter.address})
        output.event("server.ready", listeners=listeners, relay_addresses=server.relay_hosts)
        is_ready = True
        loop.add_signal_handler(signal.SIGHUP, renewal.renew, server, output)
        await _until_told(server, drain_s, output)
    finally:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        if exporter is not None:
            exporter.close()
        if mailbox is not None:
            mailbox.close()
        relayed = server.turn_counters
        await server.aclose()
        if is_ready:
            total = server.counters + server.stream_counters + relayed
            output.event("server.stopped", requests=total["requests"], errors=total["errors"])
    return EXIT_DIRECT


async def _open(listen: Sequence[TransportAddress], options: ServerOptions) -> Server:
    try:
        server = Server(local_host(), listen, options=options, on_event=log_event)
        await server.__aenter__()
    except ValueError as error:
        raise click.UsageError(f"--behaviour-discovery: {error}") from error
    except NoAddressOfOurs as error:
        is_relay = options.relaying is not None and error.filename in options.relaying.hosts
        option = "--relay-address" if is_relay else "--external-address"
        raise click.UsageError(f"{option}: {error.strerror}") from error
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}; choose another with --listen") from error
    return server


async def _until_told(server: Server, drain_s: float, output: Output) -> None:
    """Until SIGTERM, and then until nobody relays any more, or so long, or a second one."""
    echo = Echo(asyncio.get_running_loop().time)
    await _signalled(signal.SIGTERM, echo)
    again = asyncio.ensure_future(_signalled(signal.SIGTERM, echo))
    drained = asyncio.ensure_future(server.drain())
    try:
        if server.allocations and drain_s:
            output.event("server.draining", allocations=server.allocations, limit_s=drain_s)
            await asyncio.wait((drained, again), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        again.cancel()


async def _signalled(number: signal.Signals, echo: Echo) -> None:
    told = asyncio.Event()

    def on_signal() -> None:
        if not echo.is_echo():
            told.set()

    asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await told.wait()


async def _open_mailbox(address: TransportAddress, options: ServerOptions) -> MailboxServer:
    """Rooms for descriptions, with at most half of the connections that STUN and TURN may have."""
    mailbox = MailboxServer(
        local_host(),
        address,
        system_rng=SystemRandom(),
        ssl_context=options.tls,
        max_connections=max(1, min(MAX_CONNECTIONS, descriptor_limit() // 4)),
    )
    try:
        return await mailbox.__aenter__()
    except OSError as error:
        raise click.UsageError(f"--rendezvous {address}: {error.strerror or error}") from error


def _export(server: Server, address: TransportAddress) -> Exporter:
    from iceagent.cli.metrics import Exporter, ServerCounters

    try:
        return Exporter(ServerCounters(server), address)
    except OSError as error:
        raise click.UsageError(f"--metrics {address}: {error.strerror or error}") from error


def _listener(listening: Listening) -> dict[str, Any]:
    return {"transport": listening.transport, "address": listening.address}


def _address(text: str, option: str, default_port: int | None) -> TransportAddress:
    try:
        address = parse_address(text, default_port)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from error
    if ip_address(address.host).is_multicast or address.host == BROADCAST:
        raise click.UsageError(f"{option} {address.host}: a multicast or broadcast address belongs to no host")
    return address


def _max_streams() -> int:
    """As many as the process has descriptors for: half of them, for handshakes and streams that close need some too."""
    raise_descriptor_limit()
    return max(1, min(STREAM_LIMIT, descriptor_limit() // 2))
