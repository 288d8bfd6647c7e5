"""Which options do several commands have, and what becomes of them?

Each decorator adds options to a click command and hands it one finished value in their place:

=======================  ======================================================================================
decorator                keyword argument of the command
=======================  ======================================================================================
:func:`output_options`   ``output``: :class:`~iceagent.cli.output.Output` (logs are configured on the way)
:func:`server_options`   ``servers``: tuple of :class:`~iceagent.config.IceServer`
:func:`listen_options`   ``config``: :class:`~iceagent.config.Config`
:func:`path_options`     changes that ``config``: stands below :func:`listen_options`
:func:`seed_option`      ``rng``: :class:`random.Random`
=======================  ======================================================================================

Whatever cannot be used is refused with :class:`click.UsageError`: one line, exit code 2.
"""

from __future__ import annotations

import functools
import math
import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from iceagent.cli.output import Output, Redactor, configure_logs
from iceagent.cli.text import shortened
from iceagent.config import Config, IceServer
from iceagent.errors import UsageError
from iceagent.ice_servers import parse_ice_servers
from iceagent.net.address import canonical_host, ip_address
from iceagent.net.host import Host, Interface
from relay.uri import BadUri, ServerUri

__all__ = [
    "SERVERS_VARIABLE",
    "FiniteFloat",
    "interface_filter",
    "listen_options",
    "output_file_options",
    "output_options",
    "parse_external_addresses",
    "parse_host",
    "parse_port_range",
    "parse_servers",
    "path_options",
    "refuse_unknown_binds",
    "seed_option",
    "server_options",
]

SERVERS_VARIABLE = "ICEAGENT_SERVERS"
# A list of servers is a few hundred bytes.
_MAX_SERVERS_FILE = 1 << 20
# 65535; what is longer is no port, and of thousands of digits Python makes no number at all.
_MAX_PORT_DIGITS = 5

Command = Callable[..., int]


class FiniteFloat(click.FloatRange):
    """A number within limits. ``nan``, which no limit keeps out, and ``inf`` are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{shortened(str(value))!r} is not a finite number.", param, ctx)
        return number


# --- output ------------------------------------------------------------------------------------------------------


def output_options(command: Command) -> Command:
    """Add ``--json``, ``-v``, ``--log-json``; a command's own ``--redact`` is taken over as well."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON Lines to stdout.")
    @_log_options
    @functools.wraps(command)
    def wrapper(*, as_json: bool, verbosity: int, log_json: bool, redact: bool = False, **kwargs: Any) -> int:
        return command(output=_output(as_json, verbosity, log_json, redact=redact), **kwargs)

    return wrapper


def output_file_options(command: Command) -> Command:
    """As :func:`output_options`, but ``--json`` may name a file: then the command gets its name as ``json_file``."""
    help_text = "Write all results to FILE; without FILE, JSON Lines to stdout."

    @click.option("--json", "json_file", is_flag=False, flag_value="-", metavar="FILE", help=help_text)
    @_log_options
    @functools.wraps(command)
    def wrapper(*, json_file: str | None, verbosity: int, log_json: bool, **kwargs: Any) -> int:
        output = _output(json_file == "-", verbosity, log_json)
        return command(output=output, json_file=None if json_file == "-" else json_file, **kwargs)

    return wrapper


def _log_options(command: Command) -> Command:
    verbose = click.option("-v", "--verbose", "verbosity", count=True, help="More logs on stderr; -vv still more.")
    return verbose(click.option("--log-json", is_flag=True, help="Write the logs as JSON Lines.")(command))


def _output(as_json: bool, verbosity: int, log_json: bool, *, redact: bool = False) -> Output:
    redactor = Redactor() if redact else None
    configure_logs(verbosity=verbosity, as_json=log_json, redactor=redactor)
    return Output(as_json=as_json, logs_as_json=log_json, verbosity=verbosity, redactor=redactor)


def seed_option(command: Command) -> Command:
    """Add ``--seed``. Without it, random choices are the system's."""

    @click.option("--seed", type=int, metavar="N", help="Make our own random choices repeatable.")
    @functools.wraps(command)
    def wrapper(*, seed: int | None, **kwargs: Any) -> int:
        rng = random.SystemRandom() if seed is None else random.Random(seed)
        return command(rng=rng, **kwargs)

    return wrapper


# --- servers -----------------------------------------------------------------------------------------------------


def server_options(command: Command) -> Command:
    """Add ``--server``, ``--username``, ``--credential``, ``--servers-file`` (or the variable ``ICEAGENT_SERVERS``)."""

    @click.option("--server", "uris", multiple=True, metavar="URI", help="stun: or turn(s):HOST[:PORT]; repeatable.")
    @click.option("--username", metavar="NAME", help="For the turn: servers of --server.")
    @click.option("--credential", metavar="PASSWORD", help="For the same.")
    @click.option("--servers-file", metavar="FILE", help="A W3C iceServers list (JSON); also in ICEAGENT_SERVERS.")
    @functools.wraps(command)
    def wrapper(
        *,
        uris: tuple[str, ...],
        username: str | None,
        credential: str | None,
        servers_file: str | None,
        **kwargs: Any,
    ) -> int:
        return command(servers=_named_servers(uris, username, credential) + _listed_servers(servers_file), **kwargs)

    return wrapper


def _named_servers(uris: tuple[str, ...], username: str | None, credential: str | None) -> tuple[IceServer, ...]:
    """Those that are TURN's are ways to one service: the first that works is used."""
    turn = tuple(uri for uri in uris if _parsed(uri).is_turn)
    found = [IceServer(urls=(uri,)) for uri in uris if uri not in turn]
    if (username is None) != (credential is None):
        raise click.UsageError("--username and --credential belong together")
    if turn and username is None:
        raise click.UsageError(f"--server {shortened(turn[0])}: add --username and --credential")
    if turn:
        try:
            found.append(IceServer(urls=turn, username=username, credential=credential))
        except UsageError as error:
            raise click.UsageError(f"--server {shortened(turn[0])}: {error}") from error
    elif username is not None:
        raise click.UsageError("--username and --credential are for turn: servers, and there is none")
    return tuple(found)


def _parsed(uri: str) -> ServerUri:
    try:
        return ServerUri.parse(uri)
    except BadUri as error:
        raise click.UsageError(f"--server: {error}") from error


def _listed_servers(file: str | None) -> tuple[IceServer, ...]:
    if file is not None:
        return parse_servers(_read_servers_file(file, "--servers-file"), f"--servers-file {file}")
    value = os.environ.get(SERVERS_VARIABLE, "").strip()
    if not value:
        return ()
    text = value if value[0] in "[{" else _read_servers_file(value, SERVERS_VARIABLE)
    return parse_servers(text, SERVERS_VARIABLE)


def _read_servers_file(file: str, where: str) -> str:
    try:
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(_MAX_SERVERS_FILE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise click.UsageError(f"{where}: {file} cannot be read: {reason}") from error


def parse_servers(text: str, where: str) -> tuple[IceServer, ...]:
    """Read a list of servers, in any shape of :mod:`iceagent.ice_servers`.

    Args:
        text: JSON.
        where: for messages.

    Raises:
        click.UsageError: it is something else.
    """
    try:
        return parse_ice_servers(text)
    except UsageError as error:
        raise click.UsageError(f"{where}: {error}") from error


# --- where we listen ---------------------------------------------------------------------------------------------


def listen_options(command: Command) -> Command:
    """Add what limits where we listen: interfaces, addresses, ports, families."""

    @click.option("--interface", "interfaces", multiple=True, metavar="NAME", help="Only this interface; repeatable.")
    @click.option("--bind", "binds", multiple=True, metavar="ADDRESS", help="Only this local address; repeatable.")
    @click.option("--port-range", metavar="LO-HI", help="Local ports, e.g. 40000-40100.")
    @click.option("--no-ipv4", is_flag=True, help="No IPv4.")
    @click.option("--no-ipv6", is_flag=True, help="No IPv6.")
    @click.option("--no-portmap", is_flag=True, help="Have no router map our ports.")
    @click.option("--loopback", is_flag=True, help="Use loopback addresses too, to reach peers on this machine.")
    @click.option(
        "--external-address",
        "externals",
        multiple=True,
        metavar="PUBLIC[=LOCAL]",
        help="Our public address, where a 1:1 NAT stands in front of us; repeatable.",
    )
    @functools.wraps(command)
    def wrapper(
        *,
        interfaces: tuple[str, ...],
        binds: tuple[str, ...],
        port_range: str | None,
        no_ipv4: bool,
        no_ipv6: bool,
        no_portmap: bool,
        loopback: bool,
        externals: tuple[str, ...],
        **kwargs: Any,
    ) -> int:
        if no_ipv4 and no_ipv6:
            raise click.UsageError("--no-ipv4 and --no-ipv6 together leave no address to use: drop one of them")
        hosts = tuple(parse_host(text, "--bind") for text in binds)
        config = Config(
            ipv4=not no_ipv4,
            ipv6=not no_ipv6,
            portmap=not no_portmap,
            # Who binds to a loopback address by name wants it.
            loopback=loopback or any(ip_address(host).is_loopback for host in hosts),
            bind_hosts=hosts,
            interface_filter=interface_filter(interfaces),
            port_range=None if port_range is None else parse_port_range(port_range),
            external_addresses=parse_external_addresses(externals),
        )
        return command(config=config, **kwargs)

    return wrapper


def path_options(command: Command) -> Command:
    """Add what is done to have a path, and to keep one."""

    @click.option("--relay-first", is_flag=True, help="Begin on a relay, and move to a direct path when one works.")
    @click.option("--no-standby", is_flag=True, help="Keep no second path warm.")
    @click.option("--no-mirror", is_flag=True, help="Send nothing twice while a path is in doubt.")
    @functools.wraps(command)
    def wrapper(*, config: Config, relay_first: bool, no_standby: bool, no_mirror: bool, **kwargs: Any) -> int:
        changed = replace(config, relay_first=relay_first, standby=not no_standby, mirror=not no_mirror)
        return command(config=changed, **kwargs)

    return wrapper


def interface_filter(names: Iterable[str]) -> Callable[[Interface], bool] | None:
    """What ``--interface`` says, for a configuration; ``None``: nothing.

    Raises:
        click.UsageError: there is no interface of this name.
    """
    wanted = frozenset(names)
    if not wanted:
        return None
    present = [name for _, name in socket.if_nameindex()]
    for name in sorted(wanted.difference(present)):
        raise click.UsageError(
            f"--interface {shortened(name)}: there is none of this name; there are {', '.join(present)}"
        )
    return lambda interface: interface.name in wanted


async def refuse_unknown_binds(config: Config, host: Host) -> None:
    """See that every address of ``--bind`` is one of an interface's; it may come and go later.

    Raises:
        click.UsageError: no interface has this address.
        OSError: the interfaces cannot be read.
    """
    if not config.bind_hosts:
        return
    present = [address.host for interface in await host.interfaces() for address in interface.addresses]
    for wanted in config.bind_hosts:
        if wanted not in present:
            raise click.UsageError(f"--bind {wanted}: no interface has this address; there are {', '.join(present)}")


def parse_host(text: str, where: str) -> str:
    """An IP address of an option, canonical.

    Raises:
        click.UsageError: it is none.
    """
    try:
        return canonical_host(text)
    except ValueError:
        raise click.UsageError(f"{where} {shortened(text)}: an IPv4 or IPv6 address is expected") from None


def parse_port_range(text: str) -> tuple[int, int]:
    """Two ports of ``--port-range``.

    Raises:
        click.UsageError: they are none.
    """
    low, dash, high = text.partition("-")
    if not (dash and low.isascii() and low.isdigit() and high.isascii() and high.isdigit()):
        raise click.UsageError(f"--port-range {shortened(text)}: two ports like 40000-40100 are expected")
    if max(len(low), len(high)) > _MAX_PORT_DIGITS or not 1 <= int(low) <= int(high) <= 65535:
        raise click.UsageError(f"--port-range {shortened(text)}: 1 ≤ LO ≤ HI ≤ 65535 is expected")
    return int(low), int(high)


def parse_external_addresses(texts: Iterable[str]) -> dict[str, str | None]:
    """What several ``--external-address`` say: public address → local one, ``None``: every one of its IP version.

    Raises:
        click.UsageError: one is none, or they contradict each other.
    """
    found: dict[str, str | None] = {}
    for text in texts:
        public_text, equals, local_text = text.partition("=")
        public = parse_host(public_text, "--external-address")
        local = parse_host(local_text, "--external-address") if equals else None
        if local is not None and ip_address(local).version != ip_address(public).version:
            raise click.UsageError(f"--external-address {shortened(text)}: both must be IPv4, or both IPv6")
        if found.setdefault(public, local) != local:
            raise click.UsageError(
                f"--external-address {shortened(text)}: {public} was given with another local address before"
            )
    return found
