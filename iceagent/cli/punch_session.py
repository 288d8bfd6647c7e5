"""What does ``iceagent punch`` do, once it knows what is wanted?

A :class:`Job` is that. It is done by :func:`serve`, which answers whoever asks, or by one :class:`Session`: ask for our
address, read the other end's, meet, measure, hold the path or pipe lines through it, and sum up.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import click

from iceagent.cli import EXIT_DIRECT, EXIT_INTERRUPTED, EXIT_NO_PATH
from iceagent.cli.options import refuse_unknown_binds
from iceagent.cli.output import Output
from iceagent.cli.punch_lines import Pipe
from iceagent.config import Config
from iceagent.gather.servers import resolve_server
from iceagent.gather.stun_queries import MappedAddress
from iceagent.logs import log_event
from iceagent.nat.lifetime_report import LifetimeReport, SilenceProbed
from iceagent.nat.punch_report import Answered, DataReceived, Lost, PunchOptions, RoundTrips
from iceagent.nat.responding import may_send_to
from iceagent.net.address import TransportAddress, ip_address, parse_address, quoted
from iceagent.net.core import Event, PacketDropped
from iceagent.net.local import local_host
from iceagent.punch.far_end import FarEndServer
from iceagent.punch.lifetime import measure_lifetime
from iceagent.punch.punch import Punch, PunchFailed
from relay.uri import ServerUri

__all__ = ["TIMEOUT_S", "Job", "Session", "parse_target", "serve", "wait_for_peer"]

TIMEOUT_S = 10.0
"""How long an answer is waited for, where nothing else is said."""

MAX_SERVERS = 2
"""Servers that are asked for our address: two that disagree show a NAT with a port for everybody."""

# Addresses of one name.
_MAX_ADDRESSES = 8


def parse_target(text: str) -> tuple[str, int]:
    """Host, a name or an IP address, and port.

    Raises:
        click.UsageError: they are none.
    """
    host, colon, port = text.rpartition(":")
    is_name = bool(colon and host) and ":" not in host and not host.startswith("[") and not _is_ip(host)
    if is_name and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
        return host, int(port)
    try:
        address = parse_address(text)
    except ValueError as error:
        reason = str(error) if ":" in text else f"{quoted(text)}: the port is missing"
        raise click.UsageError(f"{reason}; HOST:PORT is expected, a name or an IP address and a port") from error
    if address.port == 0:
        raise click.UsageError(f"{text}: port 0 cannot be sent to")
    if not may_send_to(address, frozenset()):
        raise click.UsageError(f"{text} is no address of another host; HOST:PORT is expected")
    return address.host, address.port


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the command line asks for.

    Attributes:
        servers: tell our mapped address.
        max_s: the longest lifetime that is looked for; ``None``: none is.
    """

    config: Config
    servers: tuple[ServerUri, ...]
    options: PunchOptions
    is_piping: bool
    duration_s: float | None
    max_s: float | None
    rng: random.Random
    output: Output

    async def refuse_unknown_bind(self) -> None:
        """Every address of 127/8 is one of this host's, whatever its interfaces say."""
        named = tuple(host for host in self.config.bind_hosts if not ip_address(host).is_loopback)
        await refuse_unknown_binds(replace(self.config, bind_hosts=named), local_host())

    async def hold(self) -> None:
        """For as long as was asked for."""
        await asyncio.sleep(self.duration_s) if self.duration_s is not None else await asyncio.Event().wait()


async def serve(job: Job) -> int:
    """Answer whoever asks; returns the exit code."""
    await job.refuse_unknown_bind()

    def tell_addresses() -> None:
        job.output.event("punch.addresses", local=server.bases)

    server = FarEndServer(
        local_host(),
        config=job.config,
        key=job.options.key,
        on_event=log_event,
        on_change=tell_addresses,
        rng=job.rng,
    )
    is_ready = False
    try:
        async with server:
            is_ready = True
            job.output.event("punch.ready", local=server.bases)
            await job.hold()
    except OSError as error:
        if is_ready:
            raise
        raise _cannot_listen(error) from error
    finally:
        if is_ready:
            counters = server.core.counters
            errors = sum(count for name, count in counters.items() if name.startswith("errors: "))
            job.output.event("punch.stopped", requests=counters["requests"], errors=errors)
    return EXIT_DIRECT


async def wait_for_peer(job: Job) -> int:
    """Be the far end of who asks first, and pipe lines; returns the exit code."""
    job = replace(job, options=replace(job.options, timeout_s=None))
    return await Session(job).run(None, is_waiting=True)


class Session:
    """One path, from the first packet to the summary.

    Args:
        job: see there.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipe = Pipe(job.output, is_data_shown=job.is_piping)
        # Where lines are piped, stdout has nothing else.
        self._output = self._pipe.results
        self._answered: Answered | None = None
        self._losses = 0
        self._is_held = False

    @cached_property
    def _punch(self) -> Punch:
        """Belongs to the running loop, which is not there yet when a session is made."""
        job = self._job
        return Punch(local_host(), job.options, config=job.config, on_event=self._on_event, rng=job.rng)

    def sigterm_code(self) -> int:
        """The exit code if SIGTERM came now: the ordinary end of a path that is held, of all else an interruption."""
        if not self._is_held:
            return EXIT_INTERRUPTED
        return EXIT_NO_PATH if self._punch.core.is_lost else EXIT_DIRECT

    async def run(self, target: tuple[str, int] | None, *, is_waiting: bool = False) -> int:
        """Play it.

        Args:
            target: whom to punch to; ``None``: stdin says.
            is_waiting: nobody; who asks first is the other end.

        Returns:
            The exit code.
        """
        await self._job.refuse_unknown_bind()
        self._pipe.start(is_needed=self._job.is_piping or (target is None and not is_waiting))
        try:
            async with self._punch:
                try:
                    remotes = await self._find_remotes(target, is_waiting=is_waiting)
                    await self._punch.meet(remotes)
                    await self._go_on(remotes)
                except OSError as error:
                    self._output.event("punch.failed", reason=_why(error))
                    return EXIT_NO_PATH
        finally:
            self._sum_up()
        return EXIT_NO_PATH if self._punch.core.is_lost else EXIT_DIRECT

    # --- before ------------------------------------------------------------------------------------------------------

    async def _find_remotes(self, target: tuple[str, int] | None, *, is_waiting: bool) -> list[TransportAddress]:
        if is_waiting:
            try:
                await self._punch.listen(self._tell_addresses)
            except OSError as error:
                raise _cannot_listen(error) from error
            self._output.event("punch.ready", local=self._punch.bases)
            return []
        if target is not None:
            remotes = await self._resolve(*target)
            if self._job.servers:
                await self._tell_mapped(remotes[0].version)
            return remotes
        await self._tell_mapped(min(self._versions()))
        return await self._resolve(*await self._read_target())

    def _tell_addresses(self) -> None:
        self._output.event("punch.addresses", local=self._punch.bases)

    async def _tell_mapped(self, version: int) -> None:
        """Where servers see us; without any, where we are."""
        reasons: list[str] = []
        seen: list[MappedAddress] = []
        for uri in self._job.servers[:MAX_SERVERS]:
            try:
                seen.append(await self._ask(uri, version))
            except OSError as error:
                reasons.append(_why(error))
        if seen:
            self._show_mapped(seen[0])
            if {event.mapped for event in seen} != {seen[0].mapped}:
                other = next(event for event in seen if event.mapped != seen[0].mapped)
                words = (
                    f"{other.server} sees {other.mapped} instead: the NAT has another port for everybody, so the other "
                    "end has to follow us; give both ends one --key"
                )
                self._output.change("punch.symmetric", words, mapped=other.mapped, server=other.server)
        elif reasons:
            raise PunchFailed("; ".join(reasons))
        else:
            self._output.event("punch.ready", local=[await self._punch.open(version=version)])

    async def _ask(self, uri: ServerUri, version: int) -> MappedAddress:
        try:
            found = await resolve_server(local_host(), uri)
        except OSError as error:
            raise PunchFailed(f"{uri.host}: {_why(error)}") from error
        for server in self._usable(found, uri.host):
            if server.version == version:
                return await self._punch.ask(server)
        raise PunchFailed(f"{uri.host} has no IPv{version} address")

    def _show_mapped(self, event: MappedAddress) -> None:
        rtt_ms = None if event.rtt_s is None else event.rtt_s * 1000
        fields: dict[str, Any] = {"mapped": event.mapped, "local": event.base, "server": event.server}
        words = f"tell the other end: {event.mapped} ({event.server} sees {event.base} there)"
        self._output.change("punch.mapped", words, **fields, rtt_ms=rtt_ms)

    async def _read_target(self) -> tuple[str, int]:
        self._job.output.prompt("Type or paste the other end's address, HOST:PORT:")
        while (line := await self._pipe.read()) is not None:
            text = line.decode(errors="replace").strip()
            if not text:
                continue
            try:
                return parse_target(text)
            except click.UsageError as error:
                self._job.output.notice("punch.address", f"{error.message}.")
        raise click.UsageError("stdin ended, and had no HOST:PORT of the other end")

    async def _resolve(self, host: str, port: int) -> list[TransportAddress]:
        timeout_s = self._job.options.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                found = await local_host().resolve(host)
        except TimeoutError:
            raise PunchFailed(f"{host}: no address was found for this name in {timeout_s:g} s") from None
        except OSError as error:
            raise PunchFailed(f"{host}: {_why(error)}") from error
        return self._usable([TransportAddress(each, port) for each in found], host)

    def _usable(self, addresses: list[TransportAddress], host: str) -> list[TransportAddress]:
        versions = self._versions()
        found = [address for address in addresses if address.version in versions]
        if not found:
            raise PunchFailed(f"{host} has no address that may be used: only IPv{', IPv'.join(map(str, versions))} may")
        return found[:_MAX_ADDRESSES]

    def _versions(self) -> set[int]:
        """Of IP, that may be used."""
        config = self._job.config
        versions = {version for version, is_wanted in ((4, config.ipv4), (6, config.ipv6)) if is_wanted}
        versions &= {ip_address(bind).version for bind in config.bind_hosts} or versions
        if not versions:
            raise click.UsageError(f"--bind {config.bind_hosts[0]}: its IP version is the one that was excluded")
        return versions

    # --- after -------------------------------------------------------------------------------------------------------

    async def _go_on(self, remotes: list[TransportAddress]) -> None:
        if self._job.max_s is not None:
            await self._measure(self._punch.core.path.remote if self._punch.core.path else remotes[0])
        self._is_held = self._job.options.keepalive_s is not None
        if self._job.is_piping:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._job.duration_s):
                    await self._pipe.run(self._punch)
        elif self._job.options.keepalive_s is not None:
            await self._job.hold()
        else:
            await self._punch.settled()

    async def _measure(self, server: TransportAddress) -> None:
        config = replace(self._job.config, port_range=None)
        assert self._job.max_s is not None
        report = await measure_lifetime(
            local_host(),
            server,
            config=config,
            key=self._job.options.key,
            max_s=self._job.max_s,
            timeout_s=self._job.options.timeout_s or TIMEOUT_S,
            on_event=self._on_event,
            rng=self._job.rng,
        )
        self._output.change("punch.lifetime", _lifetime_words(report), **_lifetime_fields(report))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Answered):
            self._answered = event
            seen = "" if event.mapped is None else f", and sees us at {event.mapped}"
            words = f"{event.path.remote} answers in {event.rtt_s * 1000:.1f} ms{seen}"
            fields: dict[str, Any] = {"address": event.path.remote, "local": event.path.base, "mapped": event.mapped}
            self._output.change("punch.answered", words, **fields, rtt_ms=event.rtt_s * 1000)
        elif isinstance(event, Lost):
            self._losses += 1
            self._output.event("punch.lost", address=event.path.remote, reason=event.reason)
        elif isinstance(event, MappedAddress):
            self._show_mapped(event)
        elif isinstance(event, SilenceProbed):
            self._show_probed(event)
        elif isinstance(event, DataReceived):
            self._pipe.received(event.data)
        elif isinstance(event, PacketDropped):
            log_event(event)

    def _show_probed(self, event: SilenceProbed) -> None:
        verdict = {True: "lives", False: "is dead", None: "cannot be seen: the far end does not answer"}[event.is_alive]
        bracket = event.bracket
        self._output.change(
            "punch.probed",
            f"{event.use.value}: after {event.silence_s:.1f} s a binding {verdict}",
            use=event.use,
            silence_s=event.silence_s,
            is_alive=event.is_alive,
            alive_s=None if bracket is None else bracket.alive_s,
            dead_s=None if bracket is None else bracket.dead_s,
        )

    def _sum_up(self) -> None:
        core, answered = self._punch.core, self._answered
        trips = core.round_trips
        self._output.event(
            "summary",
            address=None if answered is None else answered.path.remote,
            local=None if answered is None else answered.path.base,
            mapped=None if answered is None else answered.mapped,
            rtt_ms={name: None if value is None else value * 1000 for name, value in _trips(trips).items()},
            requests=core.counters["sent"],
            answers=core.counters["answers"],
            losses=self._losses,
            lost=core.is_lost,
            data_sent=self._pipe.sent,
            data_received=self._pipe.count,
        )


def _trips(trips: RoundTrips) -> dict[str, float | None]:
    return {"min": trips.min_s, "mean": trips.mean_s, "max": trips.max_s}


def _cannot_listen(error: OSError) -> click.UsageError:
    return click.UsageError(f"{_why(error)}; choose another with --port or --bind")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _lifetime_fields(report: LifetimeReport) -> dict[str, Any]:
    return {
        "lifetime_s": report.answered.lifetime_s,
        "alive_s": report.answered.alive_s,
        "dead_s": report.answered.dead_s,
        "unanswered": {
            "lifetime_s": report.unanswered.lifetime_s,
            "alive_s": report.unanswered.alive_s,
            "dead_s": report.unanswered.dead_s,
        },
        "one_way_refresh": report.one_way_refresh,
        "evidence": report.evidence,
    }


def _lifetime_words(report: LifetimeReport) -> str:
    def lived(seconds: float | None, alive_s: float) -> str:
        return f"more than {alive_s:.0f} s" if seconds is None else f"{seconds:.1f} s"

    answered = lived(report.answered.lifetime_s, report.answered.alive_s)
    unanswered = lived(report.unanswered.lifetime_s, report.unanswered.alive_s)
    one_way = {
        True: "one-way keepalives keep it",
        False: "ONE-WAY KEEPALIVES DO NOT KEEP IT: send what is answered",
        None: report.evidence,
    }[report.one_way_refresh]
    return f"an unused binding lives for {answered}, one that was never answered for {unanswered}; {one_way}"
