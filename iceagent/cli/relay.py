"""``iceagent relay``: forward between pairs of ports, to whoever has latched there, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from iceagent.cli import EXIT_DIRECT
from iceagent.cli.options import FiniteFloat, output_options, parse_host, parse_port_range
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.cli.serve_files import lines_of
from iceagent.cli.text import shortened
from iceagent.net.address import TransportAddress, parse_address
from iceagent.net.core import Event
from iceagent.net.local import local_host
from iceagent.net.streams import raise_descriptor_limit
from relay.backend import BACKENDS, Backend, KernelUnavailable
from relay.latch.channel import (
    IDLE_S,
    LEARNING_S,
    Channel,
    ChannelClosed,
    ChannelIdle,
    ChannelOptions,
    ChannelStatistics,
    SecondSource,
    Side,
    SideKey,
    SideLatched,
    SideMoved,
)
from relay.latch.relay import DEFAULT_PORTS, LatchRelay, random_key

if TYPE_CHECKING:
    from rich.text import Text

    from iceagent.cli.metrics import Exporter

__all__ = ["relay"]

MAX_CHANNELS = 10_000
SAMPLE_S = 1.0

_COUNTERS = {
    "packets": "Datagrams forwarded",
    "bytes": "Of their payload",
    "in_kernel": "Datagrams of those that the kernel forwarded",
    "dropped": "Datagrams neither forwarded nor answered",
    "latches": "Sides that found their peer",
    "moves": "Latches that followed their peer to another address",
    "alarms": "Datagrams of others than the first source",
    "replayed": "Requests that somebody had recorded",
}

_HELP = {
    "channels": "Open so many more, each on a random pair of free ports.",
    "port-range": f"Where random pairs are taken from. Default: {DEFAULT_PORTS[0]}-{DEFAULT_PORTS[1]}.",
    "key": "Who may latch the side on this port: STUN's USERNAME and password. Repeatable. Sides without one get a "
    "random one, which is shown. Others see a command line: --keys-file does not show it.",
    "keys-file": "More of them, PORT=NAME:PASSWORD in a line each.",
    "first-source": "UNSAFE: a side without a key latches to whoever sends first.",
    "learning": "So long after the start does a side wait for its first source.",
    "backend": "Who forwards: the kernel (nftables, needs root), this process (userspace), or the kernel where it may.",
    "bind": "Relay at this address of this host only; repeatable.",
    "interface": "Relay on this interface only.",
    "idle": "When neither side of a channel has sent for so long, both have to latch anew.",
    "max-bytes": "A channel ends when it has forwarded so many bytes of payload.",
    "max-packets": "A channel ends when it has forwarded so many datagrams.",
    "metrics": "Answer Prometheus here, over HTTP, to whoever gets there.",
}

_WARNING = (
    "--first-source: whoever finds a port first gets what the other side sends, and nobody can tell. "
    "Keys (STUN) prevent that."
)


@click.command(short_help="Forward between pairs of ports, to whoever has latched there.")
@click.argument("pairs", nargs=-1, metavar="[LEFT:RIGHT]...")
@click.option(
    "--channels", "random", type=click.IntRange(0, MAX_CHANNELS), default=0, metavar="N", help=_HELP["channels"]
)
@click.option("--port-range", metavar="LO-HI", help=_HELP["port-range"])
@click.option("--key", "key_texts", multiple=True, metavar="PORT=NAME:PASSWORD", help=_HELP["key"])
@click.option("--keys-file", metavar="FILE", help=_HELP["keys-file"])
@click.option("--first-source", is_flag=True, help=_HELP["first-source"])
@click.option(
    "--learning",
    "learning_s",
    type=FiniteFloat(0.1, 86_400),
    default=LEARNING_S,
    show_default=True,
    metavar="S",
    help=_HELP["learning"],
)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help=_HELP["backend"])
@click.option("--bind", "binds", multiple=True, metavar="ADDRESS", help=_HELP["bind"])
@click.option("--interface", metavar="NAME", help=_HELP["interface"])
@click.option(
    "--idle",
    "idle_s",
    type=FiniteFloat(1, 86_400),
    default=IDLE_S,
    show_default=True,
    metavar="S",
    help=_HELP["idle"],
)
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help=_HELP["max-bytes"])
@click.option("--max-packets", type=click.IntRange(1), metavar="N", help=_HELP["max-packets"])
@click.option("--metrics", "metrics_text", metavar="ADDRESS:PORT", help=_HELP["metrics"])
@output_options
def relay(
    *,
    pairs: tuple[str, ...],
    random: int,
    port_range: str | None,
    key_texts: tuple[str, ...],
    keys_file: str | None,
    first_source: bool,
    learning_s: float,
    backend: Backend,
    binds: tuple[str, ...],
    interface: str | None,
    idle_s: float,
    max_bytes: int | None,
    max_packets: int | None,
    metrics_text: str | None,
    output: Output,
) -> int:
    """Relay over UDP: what comes in on port LEFT goes out of port RIGHT, to the peer that is latched there, and back.

    A peer latches by a STUN Binding request with the side's USERNAME and MESSAGE-INTEGRITY under its password, is told
    its mapped address, and is locked; only the next such request moves the lock. Until then nothing is forwarded.

    Exit codes: 0 after SIGTERM and when the last channel has ended, 130 after Ctrl-C; 2 when a port, an address or the
    back end cannot be had.
    """
    wanted = [_pair(text) for text in pairs]
    if not wanted and not random:
        raise click.UsageError("a channel is needed, as in: iceagent relay 5000:5001; or --channels N")
    keys = _keys(key_texts, keys_file)
    ports = [port for pair in wanted for port in pair]
    _check_ports(ports, keys)
    limits: dict[str, Any] = {"idle_s": idle_s, "max_bytes": max_bytes, "max_packets": max_packets}
    limits |= {"first_source": first_source, "learning_s": learning_s}
    plan: list[tuple[tuple[int, int] | None, ChannelOptions]]
    plan = [(pair, _options(keys, pair, limits)) for pair in wanted]
    plan += [(None, _options(keys, None, limits)) for _ in range(random)]
    hosts = tuple(parse_host(text, "--bind") for text in binds)
    metrics = None if metrics_text is None else _address(metrics_text)
    range_ = DEFAULT_PORTS if port_range is None else parse_port_range(port_range)

    async def main() -> int:
        raise_descriptor_limit()
        session = _Session(output, keys)
        latching = LatchRelay(
            local_host(),
            backend=backend,
            bind=hosts,
            interface=interface,
            ports=range_,
            max_channels=max(MAX_CHANNELS, len(plan)),
            on_event=session.on_event,
        )
        return await session.run(latching, plan, metrics)

    return run(main(), sigterm_code=EXIT_DIRECT)


def _pair(text: str) -> tuple[int, int]:
    left, colon, right = text.partition(":")
    if not colon or not _is_number(left) or not _is_number(right):
        raise click.UsageError(f"{shortened(text)!r} is no channel: two ports are expected, as in 5000:5001")
    return int(left), int(right)


def _is_number(text: str) -> bool:
    """Of five digits at most; whether a port has it is another matter."""
    return text.isascii() and text.isdigit() and len(text) <= 5


def _check_ports(ports: Sequence[int], keys: Mapping[int, SideKey]) -> None:
    for port in ports:
        if not 1 <= port <= 65535:
            raise click.UsageError(f"port {port} is none; allowed are 1 to 65535")
    twice = [port for port, count in Counter(ports).items() if count > 1]
    if twice:
        raise click.UsageError(f"port {twice[0]} is named twice; each side of each channel has its own")
    unknown = [port for port in keys if port not in ports]
    if unknown:
        raise click.UsageError(f"--key {unknown[0]}=…: no channel has this port")


def _keys(texts: Sequence[str], file: str | None) -> dict[int, SideKey]:
    found: dict[int, SideKey] = {}
    for where, text in _each_key(texts, file):
        port, equals, key = text.partition("=")
        name, colon, password = key.partition(":")
        if not equals or not colon or not _is_number(port):
            raise click.UsageError(f"{where}: PORT=NAME:PASSWORD is expected")
        if int(port) in found:
            raise click.UsageError(f"{where}: port {int(port)} has a key already")
        try:
            found[int(port)] = SideKey(username=name, password=password)
        except ValueError as error:
            raise click.UsageError(f"{where}: {error}") from None
    return found


def _each_key(texts: Sequence[str], file: str | None) -> Iterator[tuple[str, str]]:
    yield from (("--key", text) for text in texts)
    yield from lines_of("--keys-file", file)


def _options(keys: Mapping[int, SideKey], pair: tuple[int, int] | None, limits: Mapping[str, Any]) -> ChannelOptions:
    left, right = (None, None) if pair is None else (keys.get(pair[0]), keys.get(pair[1]))
    if not limits["first_source"]:
        left, right = left or random_key(), right or random_key()
    return ChannelOptions(left=left, right=right, is_kept=None not in (left, right), **limits)


def _address(text: str) -> TransportAddress:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.UsageError(f"--metrics {error}") from error


@dataclass(slots=True)
class _Ended:
    """What channels that have ended had forwarded."""

    packets: int = 0
    octets: int = 0
    in_kernel: int = 0
    dropped: int = 0

    def add(self, statistics: ChannelStatistics) -> None:
        for side in (statistics.left, statistics.right):
            self.packets += side.packets
            self.octets += side.octets
            self.in_kernel += side.in_kernel
            self.dropped += side.dropped


class _Session:
    """One run of the command."""

    def __init__(self, output: Output, keys: Mapping[int, SideKey]) -> None:
        self._output = output
        self._keys = keys
        self._relay: LatchRelay | None = None
        self._channels: dict[int, Channel] = {}
        self._ended = _Ended()
        self._all_ended = asyncio.Event()
        self._is_ready = False
        self._totals: dict[str, int] = dict.fromkeys(_COUNTERS, 0)

    async def run(
        self,
        latching: LatchRelay,
        plan: Sequence[tuple[tuple[int, int] | None, ChannelOptions]],
        metrics: TransportAddress | None,
    ) -> int:
        exporter = None
        await _enter(latching)
        self._relay = latching
        try:
            if metrics is not None:
                exporter = self._export(metrics)
            for pair, options in plan:
                self._open(pair, options)
            self._tell_ready(exporter)
            self._is_ready = True
            with self._output.live(self._line):
                await self._until_all_ended()
        finally:
            if exporter is not None:
                exporter.close()
            await latching.aclose()
            if self._is_ready:
                self._output.event("relay.stopped", **self._total())
        return EXIT_DIRECT

    def on_event(self, event: Event) -> None:
        """Tell it; when the last channel has ended, so does this."""
        if isinstance(event, SideLatched):
            self._tell("side.latched", event.channel, side=event.side, address=event.address, how=event.how)
        elif isinstance(event, SideMoved):
            self._tell("side.moved", event.channel, side=event.side, old=event.old, address=event.address)
        elif isinstance(event, SecondSource):
            fields = {"latched": event.latched, "address": event.address, "datagrams": event.datagrams}
            self._tell("side.alarm", event.channel, side=event.side, **fields)
            text = f"Somebody else, {event.address}, sends to the {event.side.value} side of channel {event.channel}."
            self._output.notice("side.alarm", text)
        elif isinstance(event, ChannelIdle):
            channel = self._channels[event.statistics.channel]
            self._output.event("channel.idle", **_told(channel), **_figures(event.statistics))
        elif isinstance(event, ChannelClosed):
            channel = self._channels.pop(event.statistics.channel)
            self._ended.add(event.statistics)
            if self._is_ready:
                figures = _figures(event.statistics)
                self._output.event("channel.closed", **_told(channel), reason=event.reason, **figures)
            if not self._channels:
                self._all_ended.set()

    def _open(self, pair: tuple[int, int] | None, options: ChannelOptions) -> None:
        assert self._relay is not None
        left, right = (None, None) if pair is None else pair
        try:
            channel = self._relay.open(left, right, options=options)
        except OSError as error:
            text = error.strerror or str(error)
            if error.errno == errno.EMFILE:
                count = len(self._relay.hosts)
                text += f"; a channel takes {2 * count}, two for each address: --bind to fewer, or see ulimit -n"
            raise click.UsageError(text) from error
        self._channels[channel.number] = channel

    def _tell_ready(self, exporter: Exporter | None) -> None:
        latching, output = self._relay, self._output
        assert latching is not None
        fields: dict[str, Any] = {} if latching.reason is None else {"reason": latching.reason}
        if exporter is not None:
            fields["metrics"] = exporter.address
        channels = [self._with_keys(channel) for channel in self._channels.values()]
        if output.as_json:
            output.event("relay.ready", channels=channels, backend=latching.backend, addresses=latching.hosts, **fields)
        else:
            output.event("relay.ready", backend=latching.backend, addresses=latching.hosts, **fields)
            for each in channels:
                output.event("channel.opened", **each)
        if any(channel.options.first_source for channel in self._channels.values()):
            output.notice("relay.unsafe", _WARNING)
        if latching.reason is not None:
            text = (
                f"This process forwards, and not the kernel, which could forward several times as much: "
                f"{latching.reason}. --backend userspace says that it is meant so."
            )
            output.notice("relay.userspace", text, reason=latching.reason)

    def _with_keys(self, channel: Channel) -> dict[str, Any]:
        """A channel, and those of its keys that nobody but us knows yet."""
        found = _told(channel)
        sides = ((channel.left, channel.options.left), (channel.right, channel.options.right))
        for side, key in sides:
            if key is not None and side.port not in self._keys:
                found[f"{side.name.value}_key"] = f"{key.username}:{key.password}"
        return found

    def _tell(self, name: str, number: int, *, side: Any, **fields: Any) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return
        ours: Side = channel.left if side is channel.left.name else channel.right
        self._output.event(name, channel=number, side=side, port=ours.port, **fields)

    async def _until_all_ended(self) -> None:
        while not self._all_ended.is_set():
            self._totals = self._total()
            try:
                async with asyncio.timeout(SAMPLE_S):
                    await self._all_ended.wait()
            except TimeoutError:
                continue

    def _total(self) -> dict[str, int]:
        assert self._relay is not None
        total = _Ended(self._ended.packets, self._ended.octets, self._ended.in_kernel, self._ended.dropped)
        for channel in self._channels.values():
            total.add(self._relay.statistics(channel))
        counters = self._relay.counters
        found = {"packets": total.packets, "bytes": total.octets, "in_kernel": total.in_kernel}
        found["dropped"] = total.dropped
        return found | {name: counters[name] for name in ("latches", "moves", "alarms", "replayed")}

    def _line(self) -> Text:
        from rich.text import Text

        assert self._relay is not None
        latched = sum(side.peer is not None for channel in self._channels.values() for side in channel.sides)
        totals = self._totals
        words = [
            self._relay.backend,
            f"{len(self._channels):,} channels, {latched:,} sides latched",
            f"{totals['packets']:,} forwarded ({totals['bytes']:,} bytes)",
            f"{totals['dropped']:,} dropped",
        ]
        return Text(" · ".join(words), style="bold cyan")

    def _export(self, address: TransportAddress) -> Exporter:
        from iceagent.cli.metrics import Exporter, Totals

        try:
            return Exporter(Totals("latch", _COUNTERS, lambda: self._totals), address)
        except OSError as error:
            raise click.UsageError(f"--metrics {address}: {error.strerror or error}") from error


async def _enter(latching: LatchRelay) -> None:
    try:
        await latching.__aenter__()
    except KernelUnavailable as error:
        raise click.UsageError(f"--backend nftables: {error}; userspace works without") from error
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}") from error


def _told(channel: Channel) -> dict[str, Any]:
    return {"channel": channel.number, "left": channel.left.port, "right": channel.right.port}


def _figures(statistics: ChannelStatistics) -> dict[str, Any]:
    sides = {"left": statistics.left, "right": statistics.right}
    found: dict[str, Any] = {}
    for name, side in sides.items():
        found |= {f"{name}_packets": side.packets, f"{name}_bytes": side.octets, f"{name}_dropped": side.dropped}
    return found | {"open_ms": statistics.open_s * 1000}
