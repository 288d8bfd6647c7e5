"""``iceagent serve``: runs a STUN server until it is told to stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
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
