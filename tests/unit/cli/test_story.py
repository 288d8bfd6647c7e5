"""What ``iceagent connect --ping 0.05`` says to a person whose path dies: a line per change, with its reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from iceagent import events
from iceagent.candidate import Candidate
from iceagent.cli.connect import Teller, summary_fields
from iceagent.cli.output import Output, Redactor
from iceagent.cli.story import words
from iceagent.events import AgentState, Cause, Event, Path
from iceagent.net.address import TransportAddress
from iceagent.rendezvous.payload import Payload, PingEchoed
from iceagent.rendezvous.peer_session import Summary

HOME = Candidate.parse("candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host")
RELAY = Candidate.parse("candidate:3 1 udp 16777215 203.0.113.9 7000 typ relay raddr 0.0.0.0 rport 9")
PEER = Candidate.parse("candidate:2 1 udp 1694498815 198.51.100.2 6000 typ srflx raddr 0.0.0.0 rport 0")
ADDRESS = TransportAddress("192.0.2.1", 5000)


def path(local: Candidate, rtt_ms: float | None = None) -> Path:
    return Path(component=1, local=local, remote=PEER, base=local.address, rtt_ms=rtt_ms, nominated=True)


DIRECT, RELAYED = path(HOME, 20.04), path(RELAY, 41.0)
CONNECTED = events.StateChanged(old=AgentState.CHECKING, new=AgentState.CONNECTED, reason="every component has one")
LOST = events.StateChanged(old=AgentState.CONNECTED, new=AgentState.DISCONNECTED, reason="nobody answers")

STORY: list[tuple[float, Event]] = [
    (0.11, events.SelectedPathChanged(component=1, old=None, new=path(HOME), reason="the first valid pair")),
    (0.11, CONNECTED),
    (0.15, PingEchoed(seq=0, rtt_ms=20.1, kind="direct")),
    (12.3, events.PathDoubted(component=1, path=DIRECT, reason="nothing came back for 0.3 s")),
    (12.4, events.PathDiagnosed(component=1, base=ADDRESS, cause=Cause.PATH, reason="a server sees us as before")),
    (13.0, events.SelectedPathChanged(component=1, old=DIRECT, new=RELAYED, reason="another path answers")),
    (20.0, events.PathDoubted(component=1, path=RELAYED, reason="a check was not answered")),
    (20.1, events.PathTrusted(component=1, path=RELAYED, reason="the path answers")),
    (31.0, events.NetworkChanged(added=("192.0.2.7",), removed=("192.0.2.1",))),
    (31.1, events.RelayMoved(server="turn:relay", relayed=(RELAY.address,), base=ADDRESS)),
    (31.5, events.RelayLost(server="turn:relay", relayed=(RELAY.address,), reason="437 mismatch")),
    (32.0, LOST),
    (32.0, events.RestartAdvised(component=1, reason="no path answers")),
    (32.0, events.IceRestarted(by_peer=False)),
    (62.0, events.SelectedPathChanged(component=1, old=RELAYED, new=None, reason="consent expired")),
    (95.0, events.MachineSlept(seconds=33.333)),
    (99.0, events.PeerClosed(reason="the peer has closed")),
]
TOLD = """\
    0.110  path.selected  the first valid pair (direct, host 192.0.2.1:5000 → srflx 198.51.100.2:6000)
    0.110  state.changed  connected: every component has one
   12.300  path.doubted  nothing came back for 0.3 s (direct, host 192.0.2.1:5000 → srflx 198.51.100.2:6000, 20.0 ms)
   12.400  path.diagnosed  path: a server sees us as before
   13.000  path.selected  another path answers (relay, relay 203.0.113.9:7000 → srflx 198.51.100.2:6000, 41.0 ms)
   20.000  path.doubted  a check was not answered (relay, relay 203.0.113.9:7000 → srflx 198.51.100.2:6000, 41.0 ms)
   20.100  path.trusted  the path answers (relay, relay 203.0.113.9:7000 → srflx 198.51.100.2:6000, 41.0 ms)
   31.000  network.changed  192.0.2.7 came, 192.0.2.1 went
   31.100  relay.moved  turn:relay: now from 192.0.2.1:5000
   31.500  relay.lost  turn:relay: 437 mismatch
   32.000  state.changed  disconnected: nobody answers
   32.000  restart.advised  no path answers
   32.000  ice.restarted  begun by us
   62.000  path.lost  consent expired (relay, relay 203.0.113.9:7000 → srflx 198.51.100.2:6000, 41.0 ms)
   95.000  machine.slept  for 33.3 s
   99.000  peer.closed  the peer has closed
"""


class Clock:
    """Shows what a test sets."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def shown(tell_all: Callable[[Output, Clock], None], *, as_json: bool = False, redactor: Redactor | None = None) -> str:
    stream, clock = io.StringIO(), Clock()
    tell_all(Output(stream=stream, clock=clock, as_json=as_json, redactor=redactor), clock)
    return stream.getvalue()


def the_story(output: Output, clock: Clock) -> None:
    tell = Teller(output, is_relay_only=False)
    for clock.time, event in STORY:
        tell(event)


def test_a_person_is_told_a_story() -> None:
    assert shown(the_story) == TOLD


def test_a_program_is_told_the_same_in_values() -> None:
    """CLI contract: each change has its fields, and each ping its line."""
    lines = [json.loads(line) for line in shown(the_story, as_json=True).splitlines()]
    assert [(line["t"], line["event"]) for line in lines if line["event"] != "ping.echoed"] == [
        (float(line.split()[0]), line.split()[1]) for line in TOLD.splitlines()
    ]
    assert [line["seq"] for line in lines if line["event"] == "ping.echoed"] == [0]
    assert lines[0]["local"] == {"type": "host", "address": "192.0.2.1:5000"} and lines[0]["kind"] == "direct"
    assert not any("words" in line for line in lines)


def test_a_story_without_addresses() -> None:
    told = shown(the_story, redactor=Redactor(b"salt"))
    assert "192.0.2" not in told and "198.51.100" not in told and "203.0.113" not in told
    assert "(direct, host ipv4-" in told and told.count("\n") == TOLD.count("\n")


def test_what_a_server_says_does_not_speak_to_the_terminal() -> None:
    def one(output: Output, clock: Clock) -> None:
        Teller(output, is_relay_only=False)(events.RelayLost(server="turn:x", relayed=(), reason="\x1b[2J\n"))

    assert shown(one) == "    0.000  relay.lost  turn:x: \\x1b[2J\\n\n"


def test_what_changes_nothing_is_shown_with_its_values() -> None:
    assert words(events.LocalCandidateFound(candidate=HOME)) is None

    def one(output: Output, clock: Clock) -> None:
        Teller(output, is_relay_only=False)(events.GatheringDone(count=2, elapsed_ms=5.0))

    assert shown(one) == "    0.000  gathering.done count=2 elapsed_ms=5.0\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_the_end_of_the_story_has_the_longest_gap(as_json: bool) -> None:
    """A ping every 50 ms, for 2 s; 0.8 s of them are lost."""
    payload = Payload(sender=1)
    for number in range(40):
        sent_at = number * 0.05
        data = payload.ping(sent_at, connected=True)
        if not 0.5 < sent_at < 1.3:
            payload.handle_data(data.replace(b"?", b"!", 1), sent_at + 0.02)
    summary = Summary(connected_ms=1.0, switches=1, kind="relay", failed=False, payload=payload.counts(3.0))

    def end(output: Output, clock: Clock) -> None:
        output.event("summary", **summary_fields(summary))

    told = shown(end, as_json=as_json)
    gap_ms = json.loads(told)["longest_gap_ms"] if as_json else float(told.split("longest_gap_ms=")[1].split()[0])
    assert gap_ms == pytest.approx(800.0, abs=60.0)
