"""What ``iceagent connect`` does between two peers, on a simulated network in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from iceagent.agent import Agent
from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.description import Description
from iceagent.errors import InvalidCandidate
from iceagent.events import (
    AgentState,
    Event,
    IceRestarted,
    PeerClosed,
    RemoteCandidateAdded,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.logs import describe
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.payload import Payload, PingEchoed
from iceagent.rendezvous.peer_session import PeerSession, Plan
from iceagent.testing.host import MemoryHost
from iceagent.testing.internet import MemoryInternet

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LATENCY_S = 0.01
# Each way through two links.
RTT_MS = 4 * LATENCY_S * 1000


class Mail:
    """One direction of signalling, in memory."""

    def __init__(self) -> None:
        self.published: list[Description] = []
        self.incoming: asyncio.Queue[Description | Refusal] = asyncio.Queue()
        self.failures = 0
        self.is_held = False

    def publish(self, description: Description) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        if not self.published or self.published[-1] != description:
            self.published.append(description)
            if not self.is_held:
                self.incoming.put_nowait(description)

    async def descriptions(self) -> AsyncIterator[Description | Refusal]:
        while True:
            yield await self.incoming.get()


class End:
    """One peer: its session, and what it told."""

    def __init__(self, host: MemoryHost, number: int, out: Mail, into: Mail, plan: Plan, *, echo: bool = False) -> None:
        self.events: list[Event] = []
        self.host = host
        self.agent = Agent(Config(), controlling=number == 0, host=host)
        self.session = PeerSession(
            self.agent,
            outbox=out,
            inbox=into,
            payload=Payload(sender=number + 1, echo=echo),
            plan=plan,
            tell=self.events.append,
            now=host.now,
        )

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def states(self) -> list[AgentState]:
        return [event.new for event in self.of(StateChanged)]


class Two:
    """Two peers, and the mail between them."""

    def __init__(self, internet: MemoryInternet) -> None:
        self.hosts = [
            internet.host(name, [f"192.0.2.{number}"], latency_s=LATENCY_S)
            for number, name in enumerate(("alice", "bob"), start=1)
        ]
        self.mail = [Mail(), Mail()]

    def hold(self) -> None:
        """Nobody reads any more."""
        for mail in self.mail:
            mail.is_held = True

    def release(self) -> None:
        """Both do again, and find the last version, as in a file."""
        for mail in self.mail:
            mail.is_held = False
            mail.incoming.put_nowait(mail.published[-1])

    def end(self, number: int, plan: Plan | None = None, *, echo: bool = False) -> End:
        mine, theirs = self.mail[number], self.mail[1 - number]
        return End(self.hosts[number], number, mine, theirs, plan or Plan(), echo=echo)


@pytest.fixture
def two(iceagent_internet: MemoryInternet) -> Two:
    return Two(iceagent_internet)


async def stop(*tasks: asyncio.Task[None]) -> None:
    """As Ctrl-C does, everywhere at once: who is told that the peer closes ends by itself."""
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
    )


def test_count_ends_it(two: Two, iceagent_run: Run) -> None:
    """CLI contract: --count N ends it, after a moment for the last answers."""

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=0.05, count=5)), two.end(1)
        other = asyncio.create_task(b.session.run())
        await a.session.run()
        assert a.states == [AgentState.CHECKING, AgentState.CONNECTED, AgentState.CLOSED]
        assert [event.seq for event in a.of(PingEchoed)] == [0, 1, 2, 3, 4]
        assert [event.rtt_ms for event in a.of(PingEchoed)[1:]] == pytest.approx([RTT_MS] * 4)
        assert {event.kind for event in a.of(PingEchoed)} == {"direct"}
        summary = a.session.summary()
        counts = summary.payload
        assert (counts.sent, counts.received, counts.lost, counts.duplicated) == (5, 5, 0, 0)
        assert counts.longest_gap_ms == pytest.approx(RTT_MS + 50, abs=50)
        assert (summary.switches, summary.kind, summary.failed) == (0, "direct", False)
        assert summary.connected_ms is not None and summary.connected_ms == pytest.approx(RTT_MS, abs=RTT_MS)
        await other
        assert b.session.summary().payload.answered == 5

    iceagent_run(main())


def test_the_last_answers_are_waited_for(two: Two, iceagent_run: Run) -> None:
    """At most a second: here they never come."""

    async def main() -> float:
        a, b = two.end(0, Plan(ping_s=0.05, count=5)), two.end(1)
        other = asyncio.create_task(b.session.run())
        mine = asyncio.create_task(a.session.run())
        while len(a.of(PingEchoed)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        two.hosts[1].node.link.cut()
        await mine
        counts = a.session.summary().payload
        assert (counts.sent, counts.received, counts.lost) == (5, 2, 3)
        await stop(other)
        return a.host.now()

    # Three pings at 50 ms, and three round trips.
    assert iceagent_run(main()) < 1.0


def test_a_peer_that_still_pings_is_answered_to_its_end(two: Two, iceagent_run: Run) -> None:
    """Both sides count to five, and neither loses the last ones because the other was a little earlier."""

    async def main() -> None:
        ends = [two.end(number, Plan(ping_s=0.05, count=5)) for number in (0, 1)]
        await asyncio.gather(*(end.session.run() for end in ends))
        for end in ends:
            counts = end.session.summary().payload
            assert (counts.sent, counts.received, counts.lost, counts.answered) == (5, 5, 0, 5)

    iceagent_run(main())


def test_a_peer_that_pings_for_ever_is_left_after_a_second(two: Two, iceagent_run: Run) -> None:
    async def main() -> None:
        a, b = two.end(0, Plan(duration_s=2.0)), two.end(1, Plan(ping_s=0.05))
        other = asyncio.create_task(b.session.run())
        await a.session.run()
        assert a.host.now() == pytest.approx(3.0, abs=0.3)
        await other

    iceagent_run(main())


def test_duration_counts_from_the_first_path(two: Two, iceagent_run: Run) -> None:
    """However long the peer's description is awaited."""

    async def main() -> None:
        a = two.end(0, Plan(ping_s=0.5, duration_s=10.0))
        mine = asyncio.create_task(a.session.run())
        await asyncio.sleep(100.0)
        b = two.end(1)
        other = asyncio.create_task(b.session.run())
        await mine
        assert a.host.now() == pytest.approx(110.0, abs=0.5)
        assert a.session.summary().payload.sent == 20
        # From the description, not from the start.
        connected_ms = a.session.summary().connected_ms
        assert connected_ms is not None and connected_ms < 200
        await other

    iceagent_run(main())


def test_without_a_path_it_fails(two: Two, iceagent_run: Run) -> None:
    """After the time that RFC 8863 asks to wait."""

    async def main() -> None:
        two.hosts[1].node.link.cut()
        ends = [two.end(0, Plan(ping_s=0.05, count=5)), two.end(1)]
        await asyncio.gather(*(end.session.run() for end in ends))
        for end in ends:
            assert end.states == [AgentState.CHECKING, AgentState.FAILED, AgentState.CLOSED]
            summary = end.session.summary()
            assert (summary.failed, summary.kind, summary.connected_ms) == (True, None, None)
            assert summary.payload.sent == 0

    iceagent_run(main())


def test_a_lost_path_fails_too(two: Two, iceagent_run: Run) -> None:
    """RFC 7675: consent expires. What was sent while still connected is lost, what was sent later is not counted so.
    By copy and paste, nobody restarts.
    """

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=1.0, restarts=False)), two.end(1, Plan(restarts=False))
        other = asyncio.create_task(b.session.run())
        mine = asyncio.create_task(a.session.run())
        await asyncio.sleep(20.5)
        two.hosts[1].node.link.cut()
        await mine
        assert a.host.now() < 20.5 + 31 + 10
        summary = a.session.summary()
        counts = summary.payload
        assert summary.failed and summary.kind == "direct"
        assert a.states[-3:] == [AgentState.DISCONNECTED, AgentState.FAILED, AgentState.CLOSED]
        assert a.of(IceRestarted) == []
        assert counts.received == 21
        assert 0 < counts.lost < counts.sent - counts.received
        assert counts.longest_gap_ms is not None and counts.longest_gap_ms > 10_000
        await asyncio.gather(other)

    iceagent_run(main())


def test_where_signalling_lives_a_lost_path_is_waited_for_and_not_for_ever(two: Two, iceagent_run: Run) -> None:
    """Consent ends after 30 s; 60 s later it is over."""

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=1.0)), two.end(1)
        other = asyncio.create_task(b.session.run())
        mine = asyncio.create_task(a.session.run())
        await asyncio.sleep(20.5)
        two.hosts[1].node.link.cut()
        await asyncio.gather(mine, other)
        assert a.host.now() == pytest.approx(20.5 + 30.0 + 60.0, abs=6.0)
        for end in (a, b):
            assert end.session.summary().failed
            assert end.of(SelectedPathChanged)[-1].new is None
            # At once, and when consent has ended; each is answered by the other one's.
            assert 2 <= len(end.of(IceRestarted)) <= 5

    iceagent_run(main())


@pytest.mark.parametrize("dead_s", [40.0, 60.0, 80.0])
def test_a_minute_of_silence_is_survived_by_a_restart(two: Two, iceagent_run: Run, dead_s: float) -> None:
    """Consent has ended by then. What both published meanwhile arrives when the peer is back, as from files."""

    async def main() -> None:
        ends = [two.end(number, Plan(ping_s=0.1)) for number in (0, 1)]
        tasks = [asyncio.create_task(end.session.run()) for end in ends]
        await asyncio.sleep(5.0)
        two.hold()
        two.hosts[1].node.link.cut()
        await asyncio.sleep(dead_s)
        two.hosts[1].node.link.restore()
        two.release()
        began = ends[0].host.now()
        await asyncio.sleep(2.0)
        for end in ends:
            assert end.agent.state is AgentState.CONNECTED
            assert end.of(PingEchoed)[-1].seq == end.session.summary().payload.sent - 1
        await asyncio.sleep(100.0)
        for end in ends:
            assert end.agent.state is AgentState.CONNECTED and end.host.now() > began + 100
            assert not end.session.summary().failed
        await stop(*tasks)

    iceagent_run(main())


def test_duration_ends_it_also_without_a_path(two: Two, iceagent_run: Run) -> None:
    """With the exit code that says so."""

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=0.1, duration_s=50.0)), two.end(1)
        other = asyncio.create_task(b.session.run())
        mine = asyncio.create_task(a.session.run())
        await asyncio.sleep(5.0)
        two.hosts[1].node.link.cut()
        await mine
        assert a.host.now() == pytest.approx(50.0, abs=1.5)
        assert a.session.summary().failed
        await stop(other)

    iceagent_run(main())


def test_a_peer_that_closes_ends_it_in_order(two: Two, iceagent_run: Run) -> None:
    """At once, instead of 30 s later, and that is no failure."""

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=0.1)), two.end(1, Plan(ping_s=0.1))
        tasks = [asyncio.create_task(end.session.run()) for end in (a, b)]
        await asyncio.sleep(5.0)
        await stop(tasks[1])
        began = a.host.now()
        await tasks[0]
        assert a.host.now() - began < 0.5
        assert len(a.of(PeerClosed)) == 1 and a.of(IceRestarted) == []
        assert "warning" not in {describe(event).level for event in a.events}
        summary = a.session.summary()
        assert not summary.failed and summary.kind == "direct"
        assert summary.payload.lost <= 1

    iceagent_run(main())


def test_a_restart_of_the_peers_is_answered_once(two: Two, iceagent_run: Run) -> None:
    """CLI contract: new credentials in THEIRS are an ICE restart, answered once by new ones of ours."""

    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=0.1)), two.end(1)
        tasks = [asyncio.create_task(end.session.run()) for end in (a, b)]
        await asyncio.sleep(2.0)
        before = [mail.published[-1].credentials for mail in two.mail]
        two.mail[1].publish(b.agent.restart())
        await asyncio.sleep(5.0)
        assert [event.by_peer for event in a.of(IceRestarted)] == [True]
        assert [event.by_peer for event in b.of(IceRestarted)] == [False]
        for mail, old in zip(two.mail, before, strict=True):
            generations = list(dict.fromkeys(description.credentials.ufrag for description in mail.published))
            assert generations[0] == old.ufrag and len(generations) == 2
        assert a.agent.state is AgentState.CONNECTED
        await stop(*tasks)
        counts = a.session.summary().payload
        # The old path carries data until there is a new one.
        assert counts.lost == 0 and counts.sent - counts.received <= 1

    iceagent_run(main())


def test_late_candidates_are_added(two: Two, iceagent_run: Run) -> None:
    """CLI contract: later candidates are appended after end-of-candidates."""
    late = Candidate.parse("candidate:77 1 udp 1694498815 203.0.113.7 6000 typ srflx raddr 0.0.0.0 rport 0")

    async def main() -> None:
        a, b = two.end(0), two.end(1)
        tasks = [asyncio.create_task(end.session.run()) for end in (a, b)]
        await asyncio.sleep(2.0)
        last = two.mail[1].published[-1]
        assert last.complete
        two.mail[1].incoming.put_nowait(Description.parse(last.to_sdp() + f"a={late.to_sdp()}\n"))
        await asyncio.sleep(0.1)
        assert late.address in [event.candidate.address for event in a.of(RemoteCandidateAdded)]
        assert a.of(IceRestarted) == []
        await stop(*tasks)

    iceagent_run(main())


def test_another_path_is_a_switch(two: Two, iceagent_run: Run) -> None:
    async def main() -> None:
        a, b = two.end(0, Plan(ping_s=0.1)), two.end(1)
        two.hosts[0].add_interface("eth1", ["192.0.2.101"], latency_s=LATENCY_S)
        tasks = [asyncio.create_task(end.session.run()) for end in (a, b)]
        await asyncio.sleep(2.0)
        assert a.session.summary().switches == 0
        path = a.agent.path()
        assert path is not None
        two.hosts[0].remove_interface("eth0" if path.base.host == "192.0.2.1" else "eth1")
        await asyncio.sleep(5.0)
        assert len(a.of(SelectedPathChanged)) >= 2
        assert a.session.summary().switches == 1
        assert a.session.summary().kind == "direct"
        await stop(*tasks)

    iceagent_run(main())


def test_what_cannot_be_read_or_written_is_told(two: Two, iceagent_run: Run) -> None:
    """A refusal is no end: the peer's next description connects."""

    async def main() -> None:
        two.mail[0].failures = 1
        two.mail[1].incoming.put_nowait(Refusal(reason="nonsense"))
        a, b = two.end(0, Plan(ping_s=0.1, count=1)), two.end(1)
        other = asyncio.create_task(b.session.run())
        await a.session.run()
        assert {event.reason for event in a.of(Refusal)} == {
            "nonsense",
            "our description could not be written: the disk is full",
        }
        assert a.session.summary().payload.received == 1
        await other

    iceagent_run(main())


def test_foreign_data_is_echoed(two: Two, iceagent_run: Run) -> None:
    """CLI contract: --echo returns every other datagram."""

    async def main() -> None:
        a, b = two.end(0), two.end(1, echo=True)
        other = asyncio.create_task(b.session.run())
        await asyncio.sleep(0)
        stream = a.agent.events()
        two.mail[0].publish(await a.agent.gather())
        a.agent.set_remote_description(await anext(description_of(two.mail[1])))
        await a.agent.connect()
        received: list[bytes] = []
        a.agent.set_data_handler(lambda data, component: received.append(data))
        for data in (b"one", b"two", b"one"):
            a.agent.send(data)
        await asyncio.sleep(1.0)
        assert received == [b"one", b"two"]
        assert (b.session.summary().payload.returned, b.session.summary().payload.other) == (2, 1)
        stream.close()
        await a.agent.aclose()
        await other

    iceagent_run(main())


async def description_of(mail: Mail) -> AsyncIterator[Description]:
    async for found in mail.descriptions():
        if isinstance(found, Description) and found.complete:
            yield found


def test_an_agent_that_refuses_a_description_is_no_crash(two: Two, iceagent_run: Run) -> None:
    """Whatever the agent finds wrong is told like what the file's reader finds wrong."""

    async def main() -> None:
        a = two.end(0)

        def refuse(description: Description | str) -> None:
            raise InvalidCandidate("no such thing")

        a.agent.set_remote_description = refuse  # type: ignore[method-assign]
        mine = asyncio.create_task(a.session.run())
        two.mail[1].incoming.put_nowait(a.agent.local_description)
        await asyncio.sleep(1.0)
        assert [event.reason for event in a.of(Refusal)] == ["no such thing"]
        await stop(mine)

    iceagent_run(main())


def test_ctrl_c_closes_the_agent_and_tells_the_rest(two: Two, iceagent_run: Run) -> None:
    async def main() -> None:
        a = two.end(0)
        mine = asyncio.create_task(a.session.run())
        await asyncio.sleep(1.0)
        await stop(mine)
        assert a.states == [AgentState.CLOSED]
        summary = a.session.summary()
        assert (summary.failed, summary.connected_ms, summary.kind) == (True, None, None)
        assert len(asyncio.all_tasks()) == 1

    iceagent_run(main())
