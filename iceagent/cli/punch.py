"""``iceagent punch``: get through to a known host, keep the way open, and find out how long it stays open by itself."""

from __future__ import annotations

import random
from pathlib import Path

import click
from click.core import ParameterSource

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import FiniteFloat, interface_filter, output_options, parse_host, seed_option
from iceagent.cli.output import Output
from iceagent.cli.punch_session import TIMEOUT_S, Job, Session, parse_target, serve, wait_for_peer
from iceagent.cli.run import run
from iceagent.cli.text import shortened
from iceagent.config import Config
from iceagent.nat.openers import LEAD_S
from iceagent.nat.punch_report import PunchOptions
from iceagent.nat.responding import USER
from relay.stun import IntegrityKey, opaque_string, short_term_key
from relay.uri import BadUri, ServerUri

__all__ = ["punch"]

PORT = 3478
"""Of a far end: STUN's (RFC 8489, 18.6)."""

PASTE_TIMEOUT_S, PASTE_LEAD_S = 60.0, 2.0
"""Two people paste an address at about the same time; the first one must not knock before the other has begun."""

KEEPALIVE_S = 15.0
"""Where data goes, and nothing else is said: half of what Linux keeps a binding for where little was said."""

_PASTE = "-"
_MAX_KEY = 4_096
# RFC 8489, 14.3: "fewer than 509 bytes".
_MAX_USERNAME = 508

_HELP = {
    "serve": "Be the far end: answer whoever asks, at exactly the address that it asks from.",
    "port": f"Our own port; 0: a free one. Default: a free one; with --serve, {PORT}.",
    "server": "Have this STUN server tell our mapped address first; repeatable: a second one shows whether it holds.",
    "key": "A secret of both ends: everything is signed with it, and nobody else is met. Others see a command line; "
    "--key-file does not show it.",
    "username": "The NAME of a latching relay's side (iceagent relay shows NAME:PASSWORD); --key is the PASSWORD.",
    "timeout": f"Give up after so many seconds without an answer. Default: {TIMEOUT_S:g}, with - {PASTE_TIMEOUT_S:g}.",
    "lead": "Nothing but openers, which end behind our NAT, for so many seconds, so that the other end can begin. "
    f"Default: {LEAD_S:g}, with - {PASTE_LEAD_S:g}.",
    "keepalive": "Then hold the path with a request every so many seconds, and tell when it was lost.",
    "stdio": f"Send the lines of stdin, and write what comes; keeps the path (--keepalive, {KEEPALIVE_S:g} s).",
    "duration": "End when the path was held, or --serve has served, for so many seconds.",
    "lifetime": "Measure how long a binding lives unused, and what keeps it.",
    "max": "The longest lifetime that is looked for, in seconds.",
}


@click.command(short_help="Get through to a known host, through firewalls and NATs.")
@click.argument("target", metavar="HOST:PORT", required=False)
@click.option("--serve", "is_serving", is_flag=True, help=_HELP["serve"])
@click.option("--bind", "bind", metavar="ADDRESS", help="Only this local address.")
@click.option("--interface", "interface", metavar="NAME", help="Only this interface.")
@click.option("--port", "port", type=click.IntRange(0, 65535), metavar="P", help=_HELP["port"])
@click.option("--no-ipv4", is_flag=True, help="No IPv4.")
@click.option("--no-ipv6", is_flag=True, help="No IPv6.")
@click.option("--server", "uris", multiple=True, metavar="URI", help=_HELP["server"])
@click.option("--key", "key", metavar="SECRET", help=_HELP["key"])
@click.option("--key-file", "key_file", metavar="FILE", help="The secret is the first line of this file.")
@click.option("--username", "username", metavar="NAME", help=_HELP["username"])
@click.option("--timeout", "timeout_s", type=FiniteFloat(0.1, 86_400), metavar="S", help=_HELP["timeout"])
@click.option("--lead", "lead_s", type=FiniteFloat(0, 600), metavar="S", help=_HELP["lead"])
@click.option("--keepalive", "keepalive_s", type=FiniteFloat(0.5, 86_400), metavar="S", help=_HELP["keepalive"])
@click.option("--stdio", "is_piping", is_flag=True, help=_HELP["stdio"])
@click.option("--duration", "duration_s", type=FiniteFloat(0.1), metavar="S", help=_HELP["duration"])
@click.option("--lifetime", "is_measuring", is_flag=True, help=_HELP["lifetime"])
@click.option(
    "--max",
    "max_s",
    type=FiniteFloat(1, 86_400),
    default=300.0,
    show_default=True,
    metavar="S",
    help=_HELP["max"],
)
@seed_option
@output_options
def punch(
    *,
    target: str | None,
    is_serving: bool,
    bind: str | None,
    interface: str | None,
    port: int | None,
    no_ipv4: bool,
    no_ipv6: bool,
    uris: tuple[str, ...],
    key: str | None,
    key_file: str | None,
    username: str | None,
    timeout_s: float | None,
    lead_s: float | None,
    keepalive_s: float | None,
    is_piping: bool,
    duration_s: float | None,
    is_measuring: bool,
    max_s: float,
    rng: random.Random,
    output: Output,
) -> int:
    """Send to HOST:PORT until it answers: a STUN server, a far end (--serve), or another punch that sends to us.

    Two hosts behind NATs meet when each punches to the other's mapped address. With - in the place of HOST:PORT, ours
    is told first (--server), and the other end's is read from stdin.

    Exit codes: 4 when nobody answered in time, or the path is lost at the end; 130 when interrupted. SIGTERM is the
    ordinary end of --serve, and of a path that is held (--keepalive, --stdio): 0, or 4 if it is lost then.
    """
    _check(target, is_serving, is_piping)
    if no_ipv4 and no_ipv6:
        raise click.UsageError("--no-ipv4 and --no-ipv6 together leave no address to use: drop one of them")
    if is_serving and port is None:
        port = PORT
    config = Config(
        ipv4=not no_ipv4,
        ipv6=not no_ipv6,
        portmap=False,
        loopback=True,
        bind_hosts=() if bind is None else (parse_host(bind, "--bind"),),
        interface_filter=interface_filter(() if interface is None else (interface,)),
        port_range=(port, port) if port else None,
    )
    is_pasted = target == _PASTE
    job = Job(
        config=config,
        servers=tuple(_server(uri) for uri in uris),
        options=PunchOptions(
            key=_key(key, key_file),
            username=_username(username, has_key=key is not None or key_file is not None),
            lead_s=(PASTE_LEAD_S if is_pasted else LEAD_S) if lead_s is None else lead_s,
            timeout_s=(PASTE_TIMEOUT_S if is_pasted else TIMEOUT_S) if timeout_s is None else timeout_s,
            keepalive_s=KEEPALIVE_S if keepalive_s is None and is_piping else keepalive_s,
            is_open=is_serving,
        ),
        is_piping=is_piping,
        duration_s=duration_s,
        max_s=max_s if is_measuring else None,
        rng=rng,
        output=output,
    )
    if is_serving:
        # Nothing else ends it: that is the ordinary way to.
        return run(wait_for_peer(job) if is_piping else serve(job), sigterm_code=EXIT_DIRECT)
    assert target is not None
    session = Session(job)
    return run(session.run(None if is_pasted else parse_target(target)), sigterm_code=session.sigterm_code)


def _check(target: str | None, is_serving: bool, is_piping: bool) -> None:
    """What does not go together."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if is_serving:
        if target is not None:
            raise click.UsageError("--serve waits for who asks: drop HOST:PORT")
        useless = {"uris": "--server", "lead_s": "--lead", "timeout_s": "--timeout", "is_measuring": "--lifetime"}
        for name in (each for each in useless if each in given):
            raise click.UsageError(f"{useless[name]} does not go with --serve")
        if "keepalive_s" in given and not is_piping:
            raise click.UsageError("--keepalive holds one path, and --serve has none: add --stdio")
    elif target is None:
        raise click.UsageError("to whom? Give HOST:PORT, or - to read it from stdin, or --serve")
    if "max_s" in given and "is_measuring" not in given:
        raise click.UsageError("--max is about --lifetime: add that")
    if "duration_s" in given and not is_serving and not is_piping and "keepalive_s" not in given:
        raise click.UsageError("--duration says how long a path is held: add --keepalive or --stdio")


def _key(key: str | None, file: str | None) -> IntegrityKey | None:
    if file is not None:
        if key is not None:
            raise click.UsageError("--key and --key-file: give one of them")
        try:
            with Path(file).open(encoding="utf-8") as stream:
                key = stream.readline(_MAX_KEY).rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise click.UsageError(f"--key-file {file} cannot be read: {reason}") from error
    if key is None:
        return None
    try:
        return short_term_key(key)
    except ValueError as error:
        raise click.UsageError(f"--key: {error}") from error


def _username(text: str | None, *, has_key: bool) -> str:
    if text is None:
        return USER
    if not has_key:
        raise click.UsageError("--username goes with --key: it stands in what is signed")
    try:
        username = opaque_string(text)
    except ValueError as error:
        raise click.UsageError(f"--username: {error}") from error
    if len(username.encode()) > _MAX_USERNAME:
        raise click.UsageError(f"--username: {len(username.encode())} bytes, allowed are {_MAX_USERNAME}")
    return username


def _server(text: str) -> ServerUri:
    try:
        uri = ServerUri.parse(text)
    except BadUri as error:
        raise click.UsageError(f"--server: {error}") from error
    if uri.is_secure or uri.transport == "tcp":
        raise click.UsageError(f"--server {shortened(text)}: a server over UDP is needed, as in stun:{uri.host}")
    return uri
