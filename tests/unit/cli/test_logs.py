"""Events in words: the names and fields that the command line's contract promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from iceagent import events
from iceagent.candidate import Candidate
from iceagent.events import AgentState, Event, Path
from iceagent.logs import Line, describe, log_event, register
from iceagent.net.address import TransportAddress

LOCAL = Candidate.parse("candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host")
REMOTE = Candidate.parse("candidate:2 1 udp 1694498815 2001:db8::2 6000 typ srflx raddr :: rport 0")
PATH = Path(component=1, local=LOCAL, remote=REMOTE, base=LOCAL.address, rtt_ms=1.23456789, nominated=True)
ADDRESS = TransportAddress("192.0.2.1", 5000)

# (event, level, name, fields)
LINES: list[tuple[Event, str, str, dict[str, Any]]] = [
    (
        events.LocalCandidateFound(candidate=LOCAL),
        "debug",
        "candidate.local",
        {"candidate": LOCAL.to_sdp(), "type": "host", "address": "192.0.2.1:5000", "via": ""},
    ),
    (
        events.RemoteCandidateAdded(candidate=REMOTE, via="signalling"),
        "debug",
        "candidate.remote",
        {"candidate": REMOTE.to_sdp(), "type": "srflx", "address": "[2001:db8::2]:6000", "via": "signalling"},
    ),
    (
        events.RemoteCandidateRefused(candidate=REMOTE, reason="no IPv6"),
        "debug",
        "candidate.refused",
        {"candidate": REMOTE.to_sdp(), "type": "srflx", "address": "[2001:db8::2]:6000", "reason": "no IPv6"},
    ),
    (
        events.GatheringDone(count=2, elapsed_ms=5.00049),
        "info",
        "gathering.done",
        {"count": 2, "elapsed_ms": 5.0},
    ),
    (
        events.BaseFailed(host="192.0.2.1", interface="eth0", reason="no port is free"),
        "warning",
        "base.failed",
        {"host": "192.0.2.1", "interface": "eth0", "reason": "no port is free"},
    ),
    (
        events.ServerFailed(server="stun:x", base=None, reason="no answer"),
        "warning",
        "server.failed",
        {"server": "stun:x", "base": None, "reason": "no answer"},
    ),
    (
        events.StateChanged(old=AgentState.CHECKING, new=AgentState.CONNECTED, reason="why"),
        "info",
        "state.changed",
        {"old": "checking", "new": "connected", "reason": "why"},
    ),
    (
        events.StateChanged(old=AgentState.CHECKING, new=AgentState.FAILED, reason="why"),
        "warning",
        "state.changed",
        {"old": "checking", "new": "failed", "reason": "why"},
    ),
    (
        events.SelectedPathChanged(component=1, old=None, new=PATH, reason="the first"),
        "info",
        "path.selected",
        {
            "local": {"type": "host", "address": "192.0.2.1:5000"},
            "remote": {"type": "srflx", "address": "[2001:db8::2]:6000"},
            "kind": "direct",
            "component": 1,
            "reason": "the first",
            "rtt_ms": 1.235,
        },
    ),
    (
        events.SelectedPathChanged(component=1, old=PATH, new=None, reason="gone"),
        "warning",
        "path.lost",
        {"component": 1, "reason": "gone"},
    ),
    (events.BetterPathSought(component=1), "debug", "path.sought", {"component": 1}),
    (
        events.Nominated(path=PATH),
        "debug",
        "path.nominated",
        {"local": str(PATH.local.address), "remote": str(PATH.remote.address)},
    ),
    # The peer's goodbye is in order.
    (
        events.SelectedPathChanged(component=1, old=PATH, new=None, reason="the peer has closed"),
        "info",
        "path.lost",
        {"component": 1, "reason": "the peer has closed"},
    ),
    (
        events.StateChanged(old=AgentState.CONNECTED, new=AgentState.FAILED, reason="the peer has closed"),
        "info",
        "state.changed",
        {"old": "connected", "new": "failed", "reason": "the peer has closed"},
    ),
    (
        events.RoleChanged(controlling=False, reason="conflict"),
        "info",
        "role.changed",
        {"role": "controlled", "reason": "conflict"},
    ),
    (events.IceRestarted(by_peer=True), "info", "ice.restarted", {"by_peer": True}),
    (
        events.NetworkChanged(added=("192.0.2.1",), removed=()),
        "info",
        "network.changed",
        {"added": ["192.0.2.1"], "removed": []},
    ),
    (
        events.RerollDue(component=1, base=ADDRESS),
        "info",
        "base.rerolled",
        {"component": 1, "base": "192.0.2.1:5000"},
    ),
    (
        events.RelaySilent(server="turn:s", relayed=(ADDRESS,)),
        "warning",
        "relay.silent",
        {"server": "turn:s", "relayed": ["192.0.2.1:5000"]},
    ),
    (
        events.RelayLost(server="turn:s", relayed=(ADDRESS,), reason="437"),
        "warning",
        "relay.lost",
        {"server": "turn:s", "relayed": ["192.0.2.1:5000"], "reason": "437"},
    ),
    (
        events.RelayMoved(server="turn:s", relayed=(ADDRESS,), base=ADDRESS),
        "info",
        "relay.moved",
        {"server": "turn:s", "relayed": ["192.0.2.1:5000"], "base": "192.0.2.1:5000"},
    ),
    (
        events.RelayRefused(server="turn:s", host="10.0.0.1", reason="403 Forbidden"),
        "info",
        "relay.refused",
        {"server": "turn:s", "host": "10.0.0.1", "reason": "403 Forbidden"},
    ),
    (
        events.PortMapped(
            internal=ADDRESS,
            external=ADDRESS,
            protocol="pcp",
            gateway="192.0.2.254",
            lifetime_s=3600,
            trust="global",
        ),
        "info",
        "portmap.mapped",
        {
            "protocol": "pcp",
            "internal": "192.0.2.1:5000",
            "external": "192.0.2.1:5000",
            "lifetime_s": 3600,
            "gateway": "192.0.2.254",
            "trust": "global",
        },
    ),
    (
        events.PathDoubted(component=1, path=None, reason="nothing came back for 0.3 s"),
        "info",
        "path.doubted",
        {"component": 1, "reason": "nothing came back for 0.3 s"},
    ),
    (
        events.PathTrusted(component=1, path=PATH, reason="the path answers"),
        "info",
        "path.trusted",
        {
            "local": {"type": "host", "address": "192.0.2.1:5000"},
            "remote": {"type": "srflx", "address": "[2001:db8::2]:6000"},
            "kind": "direct",
            "component": 1,
            "reason": "the path answers",
        },
    ),
    (
        events.PathDiagnosed(component=1, base=ADDRESS, cause=events.Cause.NAT, reason="another address"),
        "info",
        "path.diagnosed",
        {"component": 1, "base": "192.0.2.1:5000", "cause": "nat", "reason": "another address"},
    ),
    (events.PeerClosed(reason="the peer closed"), "info", "peer.closed", {"reason": "the peer closed"}),
    (events.MachineSlept(seconds=7.25), "info", "machine.slept", {"seconds": 7.25}),
    (
        events.RestartAdvised(component=1, reason="no path answers"),
        "warning",
        "restart.advised",
        {"component": 1, "reason": "no path answers"},
    ),
    (
        events.PortMappingLost(internal=ADDRESS, external=ADDRESS, reason="the network changed"),
        "info",
        "portmap.lost",
        {"internal": "192.0.2.1:5000", "external": "192.0.2.1:5000", "reason": "the network changed"},
    ),
    (
        events.PortMappingUnavailable(internal=ADDRESS, reasons={"pcp": "no answer"}),
        "debug",
        "portmap.unavailable",
        {"internal": "192.0.2.1:5000", "reasons": {"pcp": "no answer"}},
    ),
    (
        events.PacketDropped(base=ADDRESS, source=ADDRESS, reason="unknown", size=3),
        "debug",
        "packet.dropped",
        {"base": "192.0.2.1:5000", "source": "192.0.2.1:5000", "reason": "unknown", "size": 3},
    ),
    (
        events.DataReceived(component=1, base=ADDRESS, source=ADDRESS, data=b"secret"),
        "debug",
        "data.received",
        {"component": 1, "source": "192.0.2.1:5000", "size": 6},
    ),
]


@pytest.mark.parametrize(("event", "level", "name", "fields"), LINES)
def test_events_in_words(event: Event, level: str, name: str, fields: dict[str, Any]) -> None:
    assert describe(event) == Line(level, name, fields)


def test_every_event_has_words() -> None:
    """An event that an application can see is no news to the log."""
    classes = {value for value in vars(events).values() if isinstance(value, type) and issubclass(value, Event)}
    assert {type(event) for event, *_ in LINES} == classes - {Event}


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda name, **fields: self.lines.append((level, name, fields))


def test_a_line_is_logged_at_its_level() -> None:
    logger = Logger()
    log_event(events.IceRestarted(by_peer=False), logger)
    assert logger.lines == [("info", "ice.restarted", {"by_peer": False})]


def test_another_packages_events() -> None:
    """Without an entry an event is its class's name; with one, so are the classes derived from it."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Sneezed(Event):
        times: int

    @dataclass(frozen=True, slots=True, kw_only=True)
    class SneezedLoudly(Sneezed):
        pass

    assert describe(Sneezed(times=1)) == Line("debug", "Sneezed", {})
    register({Sneezed: lambda e: Line("info", "nose.sneezed", {"times": e.times})})
    assert describe(SneezedLoudly(times=2)) == Line("info", "nose.sneezed", {"times": 2})
