"""``iceagent lab``: real NATs, in network namespaces of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iceagent.cli import EXIT_DIRECT, EXIT_NO_PATH, EXIT_RELAY
from iceagent.cli.options import FiniteFloat, output_file_options, output_options
from iceagent.cli.output import Output
from iceagent.cli.run import GRACE_S, Echo
from iceagent.cli.run import run as run_to_end
from iceagent.events import Event, PacketDropped
from iceagent.lab.contenders import CONTENDERS
from iceagent.lab.errors import LabError
from iceagent.lab.kinds import KINDS, kind_named
from iceagent.lab.lab import Lab
from iceagent.lab.matrix import KIND_NAMES, Result, cells, play, stun_server, summarize, turn_server
from iceagent.lab.owner import sweep
from iceagent.lab.render import LEGEND, svg, table, text
from iceagent.lab.session import LIMIT_S, Side, connect
from iceagent.lab.wire import Impairment
from iceagent.logs import describe, log_event

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["lab"]

# Set for the process that is inside the user namespace, so that it does not go into another one.
_INSIDE = "ICEAGENT_LAB_UNSHARED"
_UNSHARE = ("unshare", "-Urnm")

Body = Callable[..., int]


def _in_laboratory(body: Body) -> Body:
    """For commands that make namespaces: an ordinary user's runs in a user namespace of its own."""

    @wraps(body)
    def wrapper(**options: Any) -> int:
        if os.geteuid() != 0:
            _enter_user_namespace()
        try:
            return body(**options)
        except LabError as error:
            raise click.UsageError(str(error)) from error

    return wrapper


def _enter_user_namespace() -> None:
    """Become root of a user namespace; does not return.

    Raises:
        click.UsageError: this system does not allow it.
    """
    needed = "the laboratory needs root, or user namespaces (unshare -Urnm), which this system refuses"
    if os.environ.get(_INSIDE) or shutil.which(_UNSHARE[0]) is None:
        raise click.UsageError(needed)
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        raise click.UsageError(needed)
    os.environ[_INSIDE] = "1"
    os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, "-P", "-m", "iceagent", *sys.argv[1:]])


class _Kind(click.ParamType[Any]):
    """A kind of router, by its name."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return kind_named(str(value)).name
        except LabError as error:
            self.fail(str(error), param, ctx)


class _Kinds(_Kind):
    """Several, with commas between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        convert = super().convert
        if isinstance(value, tuple):
            return value
        # Each once.
        return tuple(dict.fromkeys(convert(each.strip(), param, ctx) for each in str(value).split(",")))


def _session_options(body: Body) -> Body:
    """Add who plays, and for how long."""
    limit = click.option(
        "--limit",
        "limit_s",
        type=FiniteFloat(0.1, 600),
        default=LIMIT_S,
        show_default=True,
        metavar="S",
        help="For connecting.",
    )
    agent = click.option("--agent", type=click.Choice(list(CONTENDERS)), default="iceagent", show_default=True)
    turn = click.option("--turn", is_flag=True, help="With a TURN server as well.")
    return agent(turn(limit(body)))


@click.group(short_help="Real NATs, to test what runs behind them.")
def lab() -> None:
    """Hosts, routers and servers as network namespaces of this machine, with the kernel's own NATs between them.

    Needs nft(8), and root or user namespaces. Nothing of it touches this machine's network, and nothing is left behind.
    """


@lab.command()
@output_options
def kinds(*, output: Output) -> int:
    """List the kinds of router, and what each does (RFC 4787)."""
    rows = []
    for kind in KINDS.values():
        fields = {
            "name": kind.name,
            "mapping": kind.mapping.value,
            "filtering": kind.filtering.value,
            "keeps_port": kind.keeps_port,
            "hairpin": kind.can_hairpin,
            "early_packet_trap": kind.has_early_packet_trap,
            "summary": kind.summary,
        }
        if output.as_json:
            output.event("lab.kind", **fields)
        rows.append(f"{kind.name:<23}{kind.mapping.value:<9}{kind.filtering.value:<11}{kind.summary}")
    output.text("\n".join([f"{'kind':<23}{'mapping':<9}{'filtering':<11}", *rows]))
    return EXIT_DIRECT


@lab.command()
@click.option("--a", "kind_a", type=_Kind(), required=True, metavar="KIND", help="Router of the controlling side.")
@click.option("--b", "kind_b", type=_Kind(), required=True, metavar="KIND", help="Router of the controlled side.")
@click.option("--delay", "delay_s", type=FiniteFloat(0, 10), default=0.0, metavar="S", help="Each way, on both cables.")
@click.option("--jitter", "jitter_s", type=FiniteFloat(0, 10), default=0.0, metavar="S", help="On top, at most.")
@click.option("--loss", type=FiniteFloat(0, 1), default=0.0, metavar="P", help="Of each packet on each cable; 0 to 1.")
@click.option("--late", "late_s", type=FiniteFloat(-60, 60), default=0.0, metavar="S", help="B is told later; -: A.")
@_session_options
@output_options
@_in_laboratory
def run(
    *,
    kind_a: str,
    kind_b: str,
    delay_s: float,
    jitter_s: float,
    loss: float,
    late_s: float,
    agent: str,
    turn: bool,
    limit_s: float,
    output: Output,
) -> int:
    """Connect two agents through two routers, with a STUN server, and tell the story.

    Exit codes: 0 a direct path, 3 a relayed one, 4 none.
    """
    is_impaired = bool(delay_s or jitter_s or loss)
    impairment = Impairment(delay_s=delay_s, jitter_s=jitter_s, loss=loss) if is_impaired else None

    def tell(who: str) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            log_event(event)
            if not isinstance(event, PacketDropped):
                line = describe(event)
                output.event(line.name, who=who, **line.fields)

        return on_event

    async def main() -> int:
        with Lab() as built:
            async with stun_server(built) as stun, AsyncExitStack() as stack:
                relay = await stack.enter_async_context(turn_server(built)) if turn else None
                sides = []
                for who, kind, late in (("a", kind_a, max(0.0, -late_s)), ("b", kind_b, max(0.0, late_s))):
                    router = built.router(kind, f"router-{who}", impairment=impairment)
                    machine = built.machine(who, behind=router)
                    output.event("lab.machine", who=who, address=machine.address, router=kind, outside=router.address)
                    sides.append(Side(machine=machine, late_s=late, on_event=tell(who)))
                outcome = await connect(*sides, agent=agent, stun=stun, turn=relay, limit_s=limit_s)
        output.event("lab.result", **outcome.as_json())
        return {"direct": EXIT_DIRECT, "relay": EXIT_RELAY, None: EXIT_NO_PATH}[outcome.kind]

    return run_to_end(main())


@lab.command()
@click.option(
    "--kinds",
    "names",
    type=_Kinds(),
    default=KIND_NAMES,
    metavar="KIND,…",
    help="Rows and columns; without it, eleven.",
)
@click.option("--svg", "svg_file", type=click.Path(dir_okay=False), metavar="FILE", help="Draw a heat map.")
@_session_options
@output_file_options
@_in_laboratory
def matrix(
    *,
    output: Output,
    json_file: str | None,
    names: tuple[str, ...],
    svg_file: str | None,
    agent: str,
    turn: bool,
    limit_s: float,
) -> int:
    """Connect two agents through every pair of kinds, and behind one router; with STUN only, or with TURN too.

    The table says what each side sees of the other (h host, s server-reflexive, p peer-reflexive) and milliseconds.

    Exit codes: 0 every cell has a direct path that theory allows to without guessing ports (and with --turn every other
    one a relayed path), 4 one has not.
    """
    _refuse_unwritable(json_file, svg_file)
    wanted = cells(names, with_places=names == KIND_NAMES)
    results: list[Result] = []

    def view() -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(table(results, names), Text(f"{len(results)} of {len(wanted)} cells"))

    async def main() -> int:
        with output.live(view):
            async for result in play(wanted, agent=agent, limit_s=limit_s, turn=turn):
                results.append(result)
                if not output.is_terminal:
                    output.event("lab.cell", **result.as_json())
        summary = summarize(results)
        if output.is_terminal:
            output.console.print(table(results, names))
        else:
            output.text(f"{text(results, names)}\n{LEGEND}")
        output.event(
            "lab.matrix",
            agent=agent,
            cells=summary.cells,
            possible=summary.possible,
            connected=summary.connected,
            missed=summary.missed,
            relayed=summary.relayed,
            median_ms=None if summary.median_ms is None else round(summary.median_ms, 3),
        )
        return EXIT_NO_PATH if summary.missed or (turn and summary.unconnected) else EXIT_DIRECT

    code = run_to_end(main())
    # Of an interrupted run, what there is.
    if json_file is not None:
        document = {"agent": agent, "kinds": list(names), "cells": [result.as_json() for result in results]}
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n")
    if svg_file is not None:
        Path(svg_file).write_text(svg(results, names))
    return code


def _refuse_unwritable(*files: str | None) -> None:
    """Minutes of measuring shall not end with a file that cannot be written.

    Raises:
        click.UsageError: one cannot.
    """
    for file in files:
        if file is not None:
            try:
                Path(file).open("a").close()
            except OSError as error:
                raise click.UsageError(f"{file} cannot be written: {error.strerror}") from error


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--nat", "kind", type=_Kind(), required=True, metavar="KIND", help="The router it is behind.")
@click.option("--hairpin", is_flag=True, help="The router has hairpin.")
@click.option("--ipv6", type=click.Choice(["firewall", "open"]), help="IPv6 behind the router, and what it lets in.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_in_laboratory
def exec_(*, kind: str, hairpin: bool, ipv6: str | None, command: tuple[str, ...]) -> int:
    """Run a program behind a router, with a STUN server that it can reach.

    The server's address is in STUN_SERVER (host:port), and as a list of servers in ICEAGENT_SERVERS.

    Exit code: the program's own. Ctrl-C on a terminal is the program's. A signal that is sent to this command is sent
    on, and the program has a second to end by itself.
    """

    async def main() -> int:
        with Lab() as built:
            async with stun_server(built) as stun:
                machine = built.machine(behind=built.router(kind, hairpin=hairpin, ipv6=ipv6))
                servers = [f"stun:{stun}"]
                if ipv6 is not None:
                    servers.append(f"stun:[{built.names['stun.lab'][-1]}]:{stun.port}")
                env = {"STUN_SERVER": str(stun), "ICEAGENT_SERVERS": json.dumps([{"urls": servers}])}
                return await _ended(machine.popen(command, env=env))

    return run_to_end(main())


async def _ended(process: subprocess.Popen[Any]) -> int:
    """Wait for a program without holding up the loop; what a shell would return. It gets the signals that we get."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    echoes = {number: Echo(loop.time) for number in (signal.SIGINT, signal.SIGTERM)}

    def send_on(number: signal.Signals) -> None:
        if echoes[number].is_echo():
            return
        if number == signal.SIGINT and _is_in_foreground():
            return  # The terminal has sent it to both of us.
        process.send_signal(number)
        loop.call_later(GRACE_S, process.kill)

    # From here on they are no reason for us to end: the program's end is.
    for each in echoes:
        loop.add_signal_handler(each, send_on, each)
    with _pidfd(process.pid) as fd:
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
    code = process.wait()
    return 128 - code if code < 0 else code


def _is_in_foreground() -> bool:
    """Whether what is typed on a terminal, Ctrl-C for one, goes to us."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


@lab.command()
@output_options
def clean(*, output: Output) -> int:
    """End the programs, and remove the folders, that killed laboratories left. The next laboratory does it as well."""
    swept = sweep()
    output.event("lab.cleaned", processes=swept.processes, folders=swept.folders)
    return EXIT_DIRECT
