"""What an agent remembers of its life: everything that changed, in order, and no more than 64 of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from iceagent import events
from iceagent.candidate import Candidate
from iceagent.events import AgentState, Cause, Event, Path
from iceagent.history import EMPTY, MAX_ENTRIES, HistoryEntry, Ring, entries, noted
from iceagent.logs import describe
from iceagent.net.address import TransportAddress

LOCAL = Candidate.parse("candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host")
REMOTE = Candidate.parse("candidate:2 1 udp 1694498815 2001:db8::2 6000 typ srflx raddr :: rport 0")
PATH = Path(component=1, local=LOCAL, remote=REMOTE, base=LOCAL.address, rtt_ms=1.5, nominated=True)
ENDS = "host 192.0.2.1:5000 → srflx [2001:db8::2]:6000"
ADDRESS = TransportAddress("192.0.2.1", 5000)

CHANGES: list[tuple[Event, str, str]] = [
    (events.StateChanged(old=AgentState.NEW, new=AgentState.CHECKING, reason="why"), "checking: why", ""),
    (events.SelectedPathChanged(component=1, old=None, new=PATH, reason="the first"), "the first", ENDS),
    (events.SelectedPathChanged(component=1, old=PATH, new=None, reason="gone"), "gone", ENDS),
    (events.PathDoubted(component=1, path=PATH, reason="silence"), "silence", ENDS),
    (events.PathDoubted(component=1, path=None, reason="silence"), "silence", ""),
    (events.PathTrusted(component=1, path=PATH, reason="it answers"), "it answers", ENDS),
    (events.PathDiagnosed(component=1, base=ADDRESS, cause=Cause.NAT, reason="it forgot us"), "nat: it forgot us", ""),
    (events.RestartAdvised(component=1, reason="nobody"), "nobody", ""),
    (events.IceRestarted(by_peer=True), "begun by the peer", ""),
    (events.IceRestarted(by_peer=False), "begun by us", ""),
    (events.NetworkChanged(added=("a", "b"), removed=("c",)), "a came, b came, c went", ""),
    (events.RelayLost(server="turn:s", relayed=(ADDRESS,), reason="437"), "turn:s: 437", ""),
    (
        events.RelayMoved(server="turn:s", relayed=(ADDRESS,), base=ADDRESS),
        "turn:s: now from 192.0.2.1:5000",
        "",
    ),
    (events.PeerClosed(reason="it says so"), "it says so", ""),
    (events.MachineSlept(seconds=61.23), "for 61.2 s", ""),
    (events.RoleChanged(controlling=True, reason="conflict"), "controlling: conflict", ""),
    (events.RoleChanged(controlling=False, reason="conflict"), "controlled: conflict", ""),
]
NO_CHANGES: list[Event] = [
    events.RemoteCandidateRefused(candidate=REMOTE, reason="no"),
    events.LocalCandidateFound(candidate=LOCAL),
    events.PacketDropped(base=ADDRESS, source=ADDRESS, reason="noise", size=1),
    events.GatheringDone(count=1, elapsed_ms=1.0),
]


def after(*told: Event) -> Ring:
    """What is remembered of these, one a second from 100 s on."""
    ring = EMPTY
    for number, event in enumerate(told):
        ring = noted(ring, event, 100.0 + number)
    return ring


@pytest.mark.parametrize(("event", "reason", "path"), CHANGES)
def test_a_change_is_remembered_with_its_reason(event: Event, reason: str, path: str) -> None:
    """By the name that it has in the log."""
    assert entries(after(event)) == [
        HistoryEntry(at=100.0, event=describe(event).name, reason=reason, path=path),
    ]


@pytest.mark.parametrize("event", NO_CHANGES)
def test_what_changes_nothing_is_not(event: Event) -> None:
    assert after(event) is EMPTY


def test_the_newest_is_the_last() -> None:
    told = [event for event, _, _ in CHANGES]
    found = entries(after(*told))
    assert [entry.at for entry in found] == [100.0 + number for number in range(len(told))]
    assert [(entry.reason, entry.path) for entry in found] == [(reason, path) for _, reason, path in CHANGES]


def test_nothing_is_remembered_at_first() -> None:
    assert entries(EMPTY) == []


def test_the_sixty_fifth_takes_the_place_of_the_first() -> None:
    told = [events.MachineSlept(seconds=float(number)) for number in range(MAX_ENTRIES + 3)]
    before = entries(after(*told[:MAX_ENTRIES]))
    assert len(before) == MAX_ENTRIES and before[0].reason == "for 0.0 s"
    found = entries(after(*told))
    assert len(found) == MAX_ENTRIES
    assert (found[0].at, found[0].reason, found[-1].reason) == (103.0, "for 3.0 s", "for 66.0 s")


def test_a_ring_does_not_change_under_who_reads_it() -> None:
    ring = after(*[event for event, _, _ in CHANGES])
    before = entries(ring)
    noted(ring, events.IceRestarted(by_peer=True), 500.0)
    assert entries(ring) == before


def test_the_same_reason_of_two_agents_is_kept_once() -> None:
    """Nor is the path copied: candidates live as long as their agent anyway."""

    @dataclass
    class Agent:
        ring: Ring

    told = [event for event, _, _ in CHANGES[:3]]
    one, other = Agent(after(*told)), Agent(after(*told))
    for mine, theirs in zip(one.ring[1:], other.ring[1:], strict=True):
        assert mine is theirs
    # A connected agent that is idle: three changes.
    assert sys.getsizeof(one.ring) + sys.getsizeof(one.ring[0]) <= 250


def test_an_entry_is_a_line() -> None:
    found = entries(after(CHANGES[3][0], CHANGES[0][0]))
    assert [str(entry) for entry in found] == [f"path.doubted: silence ({ENDS})", "state.changed: checking: why"]
