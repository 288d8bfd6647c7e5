"""``iceagent serve``: runs a STUN server until it is told to stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import click

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import output_options
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.logs import Line, log_event, register
from iceagent.net.address import TransportAddress, ip_address, parse_address
from iceagent.net.local import local_host
from iceagent.net.streams import descriptor_limit, raise_descriptor_limit
from relay.server import STUN_PORT, TLS_PORT, Listening, Server, ServerOptions, server_ssl_context
from relay.stun_server import BROADCAST, STREAM_LIMIT, CloseStream

__all__ = ["serve"]

DEFAULT_LISTEN = (TransportAddress("0.0.0.0", STUN_PORT), TransportAddress("::", STUN_PORT))


def _closed(event: CloseStream) -> Line:
    fields = {"base": str(event.base), "remote": str(event.remote), "reason": event.reason}
    return Line("debug", "stream.closed", fields)


register({CloseStream: _closed})


@click.command(short_help="Run a STUN server.")
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
@output_options
def serve(
    *,
    listen_texts: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    behaviour_discovery: bool,
    output: Output,
) -> int:
    """Tell STUN clients which address they are seen from (RFC 8489).

    With --behaviour-discovery (RFC 5780) clients can also find out how their NAT maps and filters. That makes answers
    several times as long as requests, which invites those who forge sources, so it is off by default.

    Ends at Ctrl-C or SIGTERM.
    """
    listen = tuple(_address(text) for text in listen_texts) or DEFAULT_LISTEN
    tls = _tls(tls_cert, tls_key)
    options = ServerOptions(behaviour_discovery=behaviour_discovery, tls=tls, max_streams=_max_streams())
    return run(_serve(listen, options, output), sigterm_code=EXIT_DIRECT)


async def _serve(listen: Sequence[TransportAddress], options: ServerOptions, output: Output) -> int:
    try:
        server = Server(local_host(), listen, options=options, on_event=log_event)
        await server.__aenter__()
    except ValueError as error:
        raise click.UsageError(f"--behaviour-discovery: {error}") from error
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}; choose another with --listen") from error
    try:
        output.event("server.ready", listeners=[_listener(each) for each in server.listeners])
        await asyncio.Event().wait()
    finally:
        await server.aclose()
        total = server.counters + server.stream_counters
        output.event("server.stopped", requests=total["requests"], errors=total["errors"])
    return EXIT_DIRECT


def _listener(listening: Listening) -> dict[str, Any]:
    return {"transport": listening.transport, "address": listening.address}


def _address(text: str) -> TransportAddress:
    try:
        address = parse_address(text, STUN_PORT)
    except ValueError as error:
        raise click.UsageError(f"--listen {error}") from error
    if ip_address(address.host).is_multicast or address.host == BROADCAST:
        raise click.UsageError(f"--listen {address.host}: a multicast or broadcast address belongs to no host")
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
        reason = error.strerror or str(error)
        raise click.UsageError(f"--tls-cert {certificate}, --tls-key {key}: {reason}") from error
