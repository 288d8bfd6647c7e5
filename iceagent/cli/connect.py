"""``iceagent connect``: connects two hosts, and keeps them connected."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

import click

from iceagent.agent import Agent
from iceagent.cli import EXIT_DIRECT, EXIT_NO_PATH, EXIT_RELAY
from iceagent.cli.options import (
    FiniteFloat,
    listen_options,
    output_options,
    path_options,
    refuse_unknown_binds,
    seed_option,
    server_options,
)
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.cli.story import words
from iceagent.config import Config, IceServer
from iceagent.errors import UsageError
from iceagent.events import AgentState, DataReceived, Event, GatheringDone, PacketDropped, ServerFailed
from iceagent.logs import Line, describe, log_event, register
from iceagent.net.local import local_host
from iceagent.rendezvous.exchange import Inbox, Outbox, Refusal
from iceagent.rendezvous.files import FileInbox, FileOutbox
from iceagent.rendezvous.mailbox_client import MailboxExchange, RoomUrl
from iceagent.rendezvous.paste import PasteInbox, PasteOutbox
from iceagent.rendezvous.payload import Payload, PingEchoed
from iceagent.rendezvous.peer_session import PeerSession, Plan, Summary

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Teller", "connect", "exit_code", "summary_fields"]

_PASTE = "-"
# What servers said, in one sentence.
_MAX_FAILURES = 8


_RENDEZVOUS_HELP = "Instead of both: meet in http(s)://HOST[:PORT]/ROOM, of iceagent serve --rendezvous."
_NO_ADDRESS = "no address to gather on: bring an interface up, or add --loopback for tests on one machine"


@dataclass(frozen=True, slots=True)
class NothingGathered(Event):
    """Gathering is done, and there is no candidate.

    Attributes:
        reason: why, and what to do.
    """

    reason: str


def _echoed(event: PingEchoed) -> Line:
    return Line("debug", "ping.echoed", {"seq": event.seq, "rtt_ms": round(event.rtt_ms, 3), "kind": event.kind})


register(
    {
        NothingGathered: lambda e: Line("warning", "gathering.empty", {"reason": e.reason}),
        PingEchoed: _echoed,
        Refusal: lambda e: Line("warning", "description.refused", {"reason": e.reason}),
    }
)


@click.command(short_help="Connect two hosts, and keep them connected.")
@click.option("--role", type=click.Choice(["controlling", "controlled"]), required=True, help="One end each.")
@click.option("--out", "mine", metavar="MINE", help="Where our description is written; - to copy it.")
@click.option("--in", "theirs", metavar="THEIRS", help="Where the peer's appears; - to paste it.")
@click.option("--rendezvous", "room_text", metavar="URL", help=_RENDEZVOUS_HELP)
@click.option("--ping", "ping_s", type=FiniteFloat(min=0.001), metavar="S", help="Send a ping every S seconds.")
@click.option("--echo", is_flag=True, help="Return every datagram that is no ping; the same bytes once.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N pings.")
@click.option(
    "--duration",
    "duration_s",
    type=FiniteFloat(min=0, min_open=True),
    metavar="S",
    help="End S seconds after connecting.",
)
@click.option("--policy", type=click.Choice(["all", "relay"]), default="all", help="relay: through a TURN server only.")
@server_options
@listen_options
@path_options
@click.option("--redact", is_flag=True, help="Hide addresses in what is shown.")
@seed_option
@output_options
def connect(
    *,
    role: str,
    mine: str | None,
    theirs: str | None,
    room_text: str | None,
    ping_s: float | None,
    echo: bool,
    count: int | None,
    duration_s: float | None,
    policy: str,
    servers: tuple[IceServer, ...],
    config: Config,
    rng: Random,
    output: Output,
) -> int:
    """Connect to a peer that runs the same, or any ICE agent, on another host.

    Descriptions are exchanged by two files that both ends can read: each writes MINE whenever it changes, and watches
    THEIRS. New credentials in THEIRS are an ICE restart; one is begun when no path answers any more. After a minute
    without any path it ends; and at once when the peer says that it closes.

    Or, with --rendezvous, through a server: both name the same room, 8 to 64 characters, and whoever knows the name can
    read the descriptions, passwords included. So can whoever listens on the way, unless it is https.

    Without --count and --duration it stays connected until Ctrl-C.
    """
    if count is not None and ping_s is None:
        raise click.UsageError("--count counts pings: add --ping S")
    room = _room(room_text, mine, theirs)
    if policy == "relay" and not any(server.is_turn for server in servers):
        raise click.UsageError("--policy relay needs a TURN server: add --server turn:…, or --servers-file")
    wanted = replace(config, servers=servers, relay_only=policy == "relay")
    files = None if mine is None or theirs is None else _files(mine, theirs, output)
    is_by_hand = _PASTE in (mine, theirs)
    plan = Plan(ping_s=ping_s, count=count, duration_s=duration_s, restarts=not is_by_hand)
    # Two ends with the same seed must not take each other's pings for their own.
    payload = Payload(sender=SystemRandom().getrandbits(64), echo=echo)

    async def main() -> int:
        await refuse_unknown_binds(config, local_host())
        async with contextlib.AsyncExitStack() as stack:
            if room is not None:
                mailbox = MailboxExchange(room, role=role, host=local_host(), rng=rng, system_rng=SystemRandom())
                exchange: tuple[Outbox, Inbox] = (await stack.enter_async_context(mailbox), mailbox)
            else:
                assert files is not None
                exchange = files
            outbox, inbox = exchange
            if mine != _PASTE:
                _prompt_paste(output, inbox)
            agent = Agent(wanted, controlling=role == "controlling", rng=rng)
            session = PeerSession(
                agent,
                outbox=outbox,
                inbox=inbox,
                payload=payload,
                plan=plan,
                tell=Teller(output, is_relay_only=wanted.relay_only),
                now=time.monotonic,
            )
            return await _run_session(session, output, is_pasted=theirs == _PASTE)

    return run(main())


def _room(text: str | None, mine: str | None, theirs: str | None) -> RoomUrl | None:
    """Where to meet; ``None``: in two files, or by copy and paste."""
    if text is None:
        if mine is None or theirs is None:
            raise click.UsageError("how do descriptions travel? Give --out MINE and --in THEIRS, or --rendezvous URL")
        return None
    if mine is not None or theirs is not None:
        raise click.UsageError("--rendezvous URL stands in the place of --out and --in: drop these, or that")
    try:
        return RoomUrl.parse(text)
    except UsageError as error:
        raise click.UsageError(f"--rendezvous {error}") from error


def _files(mine: str, theirs: str, output: Output) -> tuple[Outbox, Inbox]:
    """The two files, one of which or both may be a terminal."""
    if _PASTE not in (mine, theirs) and _is_same_file(mine, theirs):
        raise click.UsageError("--out and --in are the same file: each end writes one and reads the other's")
    inbox: Inbox = PasteInbox() if theirs == _PASTE else FileInbox(theirs, time.monotonic)
    outbox: Outbox = PasteOutbox(lambda text: _show_block(output, text, inbox)) if mine == _PASTE else FileOutbox(mine)
    return outbox, inbox


def _is_same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file, by links of either kind or another spelling; it need not exist yet."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        # One of them is missing, or cannot be looked at; who opens it says why.
        return False


async def _run_session(session: PeerSession, output: Output, *, is_pasted: bool) -> int:
    """Run to the end, whatever that is, and sum up."""

    def is_due() -> bool:
        # Redrawn while the peer's description is being pasted, the line would wipe it away.
        return not is_pasted or session.agent.state is not AgentState.NEW

    try:
        with output.live(lambda: _status_line(session), is_due=is_due):
            await session.run()
    finally:
        summary = session.summary()
        output.event("summary", **summary_fields(summary))
    return exit_code(summary)


def summary_fields(summary: Summary) -> dict[str, Any]:
    """The fields of the event ``summary``: the contract's, and what was done for the peer."""
    fields: Mapping[str, Any] = asdict(summary.payload)
    return {"connected_ms": summary.connected_ms, **fields, "switches": summary.switches, "kind": summary.kind}


def exit_code(summary: Summary) -> int:
    """0 direct, 3 through a relay, 4 without a path at the end."""
    if summary.failed:
        return EXIT_NO_PATH
    return EXIT_RELAY if summary.kind == "relay" else EXIT_DIRECT


class Teller:
    """Shows what happens: a line of results for everything but single packets, and log lines. A person is told of every
    change in words (``story.py``), and of pings by what they come to: the status line of a terminal, and the summary.

    Where both are for one terminal, what is a result is no log line as well, unless logs were asked for (``-v``): it
    would stand there twice.

    Args:
        output: the results.
        is_relay_only: there are relayed candidates or none.
    """

    def __init__(self, output: Output, *, is_relay_only: bool) -> None:
        self._output = output
        self._is_relay_only = is_relay_only
        # What servers said until gathering was done: it may be why there is no candidate.
        self._failures: dict[str, None] = {}
        self._is_gathering = True

    def __call__(self, event: Event) -> None:
        if self._is_gathering and isinstance(event, ServerFailed) and len(self._failures) < _MAX_FAILURES:
            self._failures[f"{event.server}: {event.reason}"] = None
        is_ping = isinstance(event, PingEchoed) and not self._output.as_json
        is_shown = not (is_ping or isinstance(event, PacketDropped | DataReceived))
        if not (is_shown and self._output.logs_repeat):
            log_event(event)
        if isinstance(event, GatheringDone):
            self._is_gathering = False
            if not event.count:
                log_event(NothingGathered(self._why_nothing()))
        if is_shown:
            self._show(event)

    def _show(self, event: Event) -> None:
        line, told = describe(event), words(event)
        if told is None:
            self._output.event(line.name, **line.fields)
        else:
            self._output.change(line.name, told, **line.fields)

    def _why_nothing(self) -> str:
        if not self._is_relay_only:
            return _NO_ADDRESS
        return f"no server gave a relayed address: {'; '.join(self._failures) or 'none has answered so far'}"


def _show_block(output: Output, text: str, inbox: Inbox) -> None:
    """Our description, to be copied; never redacted, or it would be of no use."""
    if output.as_json:
        output.verbatim("description.local", sdp=text)
    else:
        if output.is_terminal:
            output.prompt("Copy these lines to the peer:")
        output.text(text)
    _prompt_paste(output, inbox)


def _prompt_paste(output: Output, inbox: Inbox) -> None:
    if isinstance(inbox, PasteInbox) and inbox.is_terminal and inbox.is_waiting:
        output.prompt("Paste the peer's lines, then an empty line:")


def _status_line(session: PeerSession) -> Text:
    from rich.text import Text

    counts = session.summary().payload
    path, rtt_ms = session.path, session.rtt_ms
    words = [session.agent.state.value]
    if path is not None:
        words.append(f"{path.kind}, {path.local.type.value} to {path.remote.type.value}")
    if rtt_ms is not None:
        words.append(f"{rtt_ms:.1f} ms")
    if counts.sent:
        words.append(f"{counts.sent} sent, {counts.received} received, {counts.lost} lost")
    return Text(" · ".join(words), style="bold cyan")
