"""``iceagent probe``: what can reach this host, and what can it reach?"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from iceagent.cli import EXIT_DIRECT, EXIT_NO_PATH, EXIT_RELAY
from iceagent.cli.options import (
    FiniteFloat,
    listen_options,
    output_options,
    refuse_unknown_binds,
    seed_option,
    server_options,
)
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.cli.text import escaped
from iceagent.config import Config, IceServer
from iceagent.net.local import local_host
from iceagent.probe.changes import changes
from iceagent.probe.measure import PUBLIC_SERVERS, ProbeOptions, measure
from iceagent.probe.render import lines, tables
from iceagent.probe.report import Report
from iceagent.probe.verdict import Outlook, outlook

__all__ = ["probe"]

NO_SERVER = "No server given: asking a STUN and TURN server of our own on loopback, nobody else."
EXIT_CODES = {Outlook.DIRECT: EXIT_DIRECT, Outlook.RELAY: EXIT_RELAY, Outlook.NOTHING: EXIT_NO_PATH}


@click.command()
@server_options
@click.option("--public", is_flag=True, help="Ask well-known public STUN servers.")
@click.option(
    "--timeout",
    "timeout_s",
    type=FiniteFloat(0.1, 600),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds for all questions to the network.",
)
@click.option(
    "--every",
    "every_s",
    type=FiniteFloat(1, 86_400),
    metavar="S",
    help="Probe again every S seconds, and print what changed, until Ctrl-C.",
)
@listen_options
@seed_option
@output_options
def probe(
    *,
    output: Output,
    servers: tuple[IceServer, ...],
    public: bool,
    timeout_s: float,
    every_s: float | None,
    config: Config,
    rng: random.Random,
) -> int:
    """What can reach this host, and what can it reach?

    Without a server it starts its own STUN and TURN server on loopback, and reports what needs no Internet. Of a TURN
    server it takes a relayed address over every transport, and gives it back; through its own, it sends data too.

    Exit codes: 0 when a direct path to a typical peer, behind an EIM, APDF NAT, can be expected (or, with our own
    server alone, when everything that was tried worked); 3 when only a relay will do (and one works, if TURN servers
    are named); 4 when nothing works.
    """
    asked = servers + ((IceServer(urls=PUBLIC_SERVERS),) if public else ())
    prober = _Prober(output, ProbeOptions(servers=asked, config=config, timeout_s=timeout_s), rng)

    async def main() -> int:
        await refuse_unknown_binds(config, local_host())
        if not asked:
            output.notice("server.none", NO_SERVER)
        return await (prober.once() if every_s is None else prober.repeatedly(every_s))

    return run(main())


@dataclass(frozen=True, slots=True)
class _Prober:
    """Measures, and shows what came out."""

    output: Output
    options: ProbeOptions
    rng: random.Random

    async def once(self) -> int:
        """Probe, show, and return the exit code."""
        report = await self._measure()
        self._show(report)
        return EXIT_CODES[outlook(report)]

    async def repeatedly(self, every_s: float) -> int:
        """Probe every so many seconds; shows the first report, and then what changed. Ends when cancelled."""
        last: Report | None = None
        while True:
            started = time.monotonic()
            report = await self._measure()
            if last is None:
                self._show(report)
            else:
                self._show_changes(last, report)
            last = report
            await asyncio.sleep(max(0.0, started + every_s - time.monotonic()))

    async def _measure(self) -> Report:
        with _progress(self.output) as tell:
            return await measure(self.options, local_host(), rng=self.rng, tell=tell)

    def _show(self, report: Report) -> None:
        if self.output.is_terminal:
            self.output.console.print(tables(report, escaped), soft_wrap=False)
        elif self.output.as_json:
            self.output.event("probe.report", **report.as_json())
        else:
            self.output.text("\n".join(lines(report)))

    def _show_changes(self, last: Report, report: Report) -> None:
        changed = changes(last, report)
        if changed and self.output.as_json:
            self.output.event("probe.report", **report.as_json())
        elif changed:
            stamp = time.strftime("%H:%M:%S")
            self.output.text("\n".join(f"{stamp}  {line}" for line in changed))


@contextmanager
def _progress(output: Output) -> Iterator[Callable[[str], None]]:
    """Where a person watches stderr, what is given to the function stands there until the end of the block."""
    if output.logs_as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("probing") as status:
        # As a Text: the brackets of an IPv6 address in a plain one would be taken for markup.
        yield lambda text: status.update(Text(escaped(text)))
