"""``iceagent reflect``: send back what comes to a UDP port, until it is told to stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import click

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import FiniteFloat, output_options, parse_host
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.net.address import TransportAddress, parse_address
from iceagent.net.local import local_host
from relay.backend import BACKENDS, Backend, KernelUnavailable
from relay.reflect.reflector import Reflector
from relay.reflect.rules import MAX_LIMIT, ReflectLimits

if TYPE_CHECKING:
    from rich.text import Text

    from iceagent.cli.metrics import Exporter

__all__ = ["reflect"]

SAMPLE_S = 1.0
"""How often the counters are read."""

_COUNTERS = {
    "answered": "Datagrams sent back",
    "answered_bytes": "Of their payload",
    "refused": "Datagrams of sources that are never answered",
    "limited": "Datagrams beyond the limits",
    "unsent": "Answers that the system did not take",
}

_DEFAULTS = ReflectLimits()

_HELP = {
    "port": "Answer here, on every address of this host; 0: on a free one.",
    "backend": "Who answers: the kernel (nftables, needs root), this process (userspace), or the kernel where it may.",
    "interface": "Answer on this interface only.",
    "bind": "Answer at this address of this host only; repeatable.",
    "per-source": "Datagrams a second to one IPv4 address or IPv6 /56; five times as many at once.",
    "total": "Datagrams a second to all sources together.",
    "every": "Tell the counters so often, if they have changed.",
    "metrics": "Answer Prometheus here, over HTTP, to whoever gets there.",
}


@click.command(short_help="Send back what comes to a UDP port, so that NATs keep bindings.")
@click.option("--port", type=click.IntRange(0, 65535), required=True, metavar="P", help=_HELP["port"])
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help=_HELP["backend"])
@click.option("--interface", metavar="NAME", help=_HELP["interface"])
@click.option("--bind", "binds", multiple=True, metavar="ADDRESS", help=_HELP["bind"])
@click.option("--no-ipv4", is_flag=True, help="No IPv4.")
@click.option("--no-ipv6", is_flag=True, help="No IPv6.")
@click.option(
    "--per-source",
    type=click.IntRange(1, MAX_LIMIT),
    default=_DEFAULTS.per_source,
    show_default=True,
    metavar="N",
    help=_HELP["per-source"],
)
@click.option(
    "--total",
    type=click.IntRange(1, MAX_LIMIT),
    default=_DEFAULTS.total,
    show_default=True,
    metavar="N",
    help=_HELP["total"],
)
@click.option(
    "--every",
    "every_s",
    type=FiniteFloat(SAMPLE_S, 86_400),
    default=10.0,
    show_default=True,
    metavar="S",
    help=_HELP["every"],
)
@click.option("--metrics", "metrics_text", metavar="ADDRESS:PORT", help=_HELP["metrics"])
@output_options
def reflect(
    *,
    port: int,
    backend: Backend,
    interface: str | None,
    binds: tuple[str, ...],
    no_ipv4: bool,
    no_ipv6: bool,
    per_source: int,
    total: int,
    every_s: float,
    metrics_text: str | None,
    output: Output,
) -> int:
    """Send back every datagram that comes to a UDP port: the same bytes, from the address and port that it came to.

    Some NATs and carriers forget a binding whose heartbeats nobody answers. As root, the kernel answers (nftables).

    Never answered are sources that could make two services answer each other for ever, or reach more than one host:
    the same port, ports below 1024, multicast, broadcast and this host's own addresses. Others are limited.

    Exit codes: 0 after SIGTERM, 130 after Ctrl-C; 2 when the port, an address or the back end cannot be had.
    """
    if no_ipv4 and no_ipv6:
        raise click.UsageError("--no-ipv4 and --no-ipv6 together leave no address to answer at: drop one of them")
    hosts = tuple(parse_host(text, "--bind") for text in binds)
    metrics = None if metrics_text is None else _address(metrics_text)
    limits = ReflectLimits(per_source=per_source, total=total)

    async def main() -> int:
        try:
            reflector = Reflector(
                local_host(),
                port,
                backend=backend,
                limits=limits,
                interface=interface,
                bind=hosts,
                ipv4=not no_ipv4,
                ipv6=not no_ipv6,
                on_change=lambda: output.event("reflect.addresses", addresses=reflector.addresses),
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        return await _reflect(reflector, every_s, metrics, output)

    return run(main(), sigterm_code=EXIT_DIRECT)


async def _reflect(reflector: Reflector, every_s: float, metrics: TransportAddress | None, output: Output) -> int:
    await _open(reflector)
    view = _View(reflector, output)
    exporter, is_ready = None, False
    try:
        if metrics is not None:
            exporter = _export(view, metrics)
        _tell_ready(reflector, exporter, output)
        is_ready = True
        with output.live(view.line):
            await view.follow(every_s)
    finally:
        if exporter is not None:
            exporter.close()
        reflector.close()
        if is_ready:
            output.event("reflect.stopped", **_fields(reflector.counters))
    return EXIT_DIRECT


async def _open(reflector: Reflector) -> None:
    try:
        await reflector.__aenter__()
    except KernelUnavailable as error:
        raise click.UsageError(f"--backend nftables: {error}; userspace works without") from error
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}") from error


def _tell_ready(reflector: Reflector, exporter: Exporter | None, output: Output) -> None:
    fields = {} if reflector.reason is None else {"reason": reflector.reason}
    if exporter is not None:
        fields["metrics"] = str(exporter.address)
    output.event(
        "reflect.ready", port=reflector.port, backend=reflector.backend, addresses=reflector.addresses, **fields
    )
    if reflector.reason is not None:
        text = (
            f"This process answers; the kernel could answer several times as many, but {reflector.reason}. "
            "--backend userspace asks for this process, and says nothing."
        )
        output.notice("reflect.userspace", text, reason=reflector.reason)


class _View:
    """Reads the counters of a reflector, and shows them.

    Attributes:
        counters: as they were when they were last read.
    """

    def __init__(self, reflector: Reflector, output: Output) -> None:
        self._reflector = reflector
        self._output = output
        self._rate = 0.0
        self.counters: Counter[str] = Counter()

    async def follow(self, every_s: float) -> None:
        """For ever."""
        now = asyncio.get_running_loop().time
        told, told_at, read_at = self.counters, now(), now()
        while True:
            await asyncio.sleep(SAMPLE_S)
            counters = self._reflector.counters
            self._rate = (counters["answered"] - self.counters["answered"]) / max(1e-3, now() - read_at)
            self.counters, read_at = counters, now()
            # Whoever watches sees them all the time.
            if not self._output.is_terminal and counters != told and read_at - told_at > every_s - SAMPLE_S / 2:
                self._output.event("reflect.counters", **_fields(counters))
                told, told_at = counters, read_at

    def line(self) -> Text:
        from rich.text import Text

        counters = self.counters
        words = [
            f"{self._reflector.backend}, port {self._reflector.port}",
            f"{counters['answered']:,} answered ({self._rate:,.0f}/s, {counters['answered_bytes']:,} bytes)",
            f"{counters['refused']:,} refused",
            f"{counters['limited']:,} limited",
        ]
        if counters["unsent"]:
            words.append(f"{counters['unsent']:,} unsent")
        return Text(" · ".join(words), style="bold cyan")


def _fields(counters: Counter[str]) -> dict[str, int]:
    return {name: counters[name] for name in _COUNTERS}


def _export(view: _View, address: TransportAddress) -> Exporter:
    from iceagent.cli.metrics import Exporter, Totals

    try:
        return Exporter(Totals("reflect", _COUNTERS, lambda: view.counters), address)
    except OSError as error:
        raise click.UsageError(f"--metrics {address}: {error.strerror or error}") from error


def _address(text: str) -> TransportAddress:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.UsageError(f"--metrics {error}") from error
