"""Events reach a slow reader: what is lost, what never is, and how it ends."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from iceagent import AgentState, Candidate, UsageError
from iceagent.events import (
    Event,
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    PacketDropped,
    Path,
    RemoteCandidateAdded,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.eventstream import MAX_EVENTS, EventStream
from iceagent.net.address import TransportAddress

ADDRESS = TransportAddress("192.0.2.1", 1)
BOUNCE = itertools.cycle((AgentState.CONNECTED, AgentState.DISCONNECTED))


def candidate(number: int) -> LocalCandidateFound:
    line = f"candidate:{number} 1 udp {number + 1} 192.0.2.1 9 typ host"
    return LocalCandidateFound(candidate=Candidate.parse(line))


def dropped(size: int = 1) -> PacketDropped:
    return PacketDropped(base=ADDRESS, source=ADDRESS, reason="malformed STUN", size=size)


def state(old: AgentState, new: AgentState) -> StateChanged:
    return StateChanged(old=old, new=new, reason="a test")


def path(number: int, component: int = 1) -> Path:
    found = Candidate.parse(f"candidate:1 {component} udp 1 192.0.2.1 {number} typ host")
    return Path(component=component, local=found, remote=found, base=ADDRESS, rtt_ms=None, nominated=False)


def moved(old: Path | None, new: Path | None, component: int = 1) -> SelectedPathChanged:
    return SelectedPathChanged(component=component, old=old, new=new, reason="a test")


def stream_of(*events: Event) -> EventStream:
    stream = EventStream(lambda stream: None)
    for event in events:
        stream.push(event)
    return stream


async def rest(stream: EventStream) -> list[Event]:
    """Everything that is still to be read."""
    stream.close()
    return [event async for event in stream]


async def test_events_come_in_the_order_they_happened() -> None:
    events = [candidate(1), state(AgentState.NEW, AgentState.CHECKING), dropped(), candidate(2), moved(None, path(1))]
    events += [GatheringDone(count=2, elapsed_ms=1.0), dropped(2), state(AgentState.CHECKING, AgentState.CONNECTED)]
    assert await rest(stream_of(*events)) == events


async def test_a_reader_waits_for_the_next() -> None:
    stream = stream_of()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not reading.done()
    stream.push(candidate(1))
    assert await reading == candidate(1)


async def test_two_readers_are_independent() -> None:
    slow, fast = stream_of(), stream_of()
    for number in range(MAX_EVENTS + 1):
        for stream in (slow, fast):
            stream.push(candidate(number))
        assert await anext(fast) == candidate(number)
    assert (slow.dropped, fast.dropped) == (1, 0)
    assert await anext(slow) == candidate(1)


async def test_one_stream_has_one_reader() -> None:
    stream = stream_of()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="two tasks"):
        await anext(stream)
    stream.push(candidate(1))
    assert await first == candidate(1)


async def test_a_reader_that_was_cancelled_loses_nothing() -> None:
    stream = stream_of()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reading.cancel()
    stream.push(candidate(1))
    assert await anext(stream) == candidate(1)
    with pytest.raises(asyncio.CancelledError):
        await reading


class TestBound:
    async def test_the_oldest_candidate_goes_and_is_counted(self) -> None:
        stream = stream_of(*(candidate(number) for number in range(MAX_EVENTS + 3)))
        assert stream.dropped == 3
        assert await rest(stream) == [candidate(number) for number in range(3, MAX_EVENTS + 3)]

    async def test_state_and_path_outlive_any_number_of_candidates(self) -> None:
        kept = [state(AgentState.NEW, AgentState.CHECKING), moved(None, path(1))]
        stream = stream_of(*kept, *(candidate(number) for number in range(2 * MAX_EVENTS)))
        events = await rest(stream)
        assert events[:2] == kept and len(events) == MAX_EVENTS
        assert stream.dropped == MAX_EVENTS + 2

    async def test_a_flood_of_packets_costs_nothing_but_packets(self) -> None:
        """Anybody can send junk: it must not keep our candidates from the peer."""
        story = [candidate(1), GatheringDone(count=1, elapsed_ms=1.0), IceRestarted(by_peer=True)]
        stream = stream_of(dropped(0), *story, *(dropped(number) for number in range(1, 5 * MAX_EVENTS)), candidate(2))
        events = await rest(stream)
        assert len(events) == MAX_EVENTS
        assert [event for event in events if not isinstance(event, PacketDropped)] == [*story, candidate(2)]
        last = 5 * MAX_EVENTS - 1
        sizes = [event.size for event in events if isinstance(event, PacketDropped)]
        assert sizes == list(range(last - len(sizes) + 1, last + 1))

    async def test_a_packet_does_not_push_out_what_matters_more(self) -> None:
        stream = stream_of(*(candidate(number) for number in range(MAX_EVENTS)), dropped())
        assert stream.dropped == 1
        assert await rest(stream) == [candidate(number) for number in range(MAX_EVENTS)]

    async def test_nor_does_a_candidate(self) -> None:
        restarts = [IceRestarted(by_peer=True)] * MAX_EVENTS
        stream = stream_of(*restarts, RemoteCandidateAdded(candidate=candidate(1).candidate, via="check"))
        assert await rest(stream) == restarts


class TestNeverLost:
    """A queue full of state and path events: later ones are merged into earlier ones of their kind."""

    async def test_states(self) -> None:
        states = [AgentState.NEW, AgentState.CHECKING, *itertools.islice(BOUNCE, MAX_EVENTS + 9), AgentState.FAILED]
        stream = stream_of(*itertools.starmap(state, itertools.pairwise(states)))
        events = await rest(stream)
        assert stream.dropped == 0 and len(events) == MAX_EVENTS
        changes = [event for event in events if isinstance(event, StateChanged)]
        # Nothing is missing in the chain from the first to the last state.
        assert all(one.new is other.old for one, other in itertools.pairwise(changes))
        assert (changes[0].old, changes[-1].new) == (AgentState.NEW, AgentState.FAILED)

    async def test_paths_by_component(self) -> None:
        last: dict[int, Path | None] = {1: None, 2: None}
        stream = stream_of()
        for number in range(1, 2 * MAX_EVENTS):
            component = 1 + number % 2
            new = path(number, component)
            stream.push(moved(last[component], new, component))
            last[component] = new
        events = [event for event in await rest(stream) if isinstance(event, SelectedPathChanged)]
        assert len(events) == MAX_EVENTS
        for component in (1, 2):
            mine = [event for event in events if event.component == component]
            assert all(one.new == other.old for one, other in itertools.pairwise(mine))
            assert (mine[0].old, mine[-1].new) == (None, last[component])

    async def test_the_first_of_its_kind_finds_no_earlier_one_and_still_gets_in(self) -> None:
        stream = stream_of(*(moved(path(number), path(number + 1)) for number in range(1, MAX_EVENTS + 1)))
        stream.push(state(AgentState.CONNECTED, AgentState.DISCONNECTED))
        stream.push(state(AgentState.DISCONNECTED, AgentState.FAILED))
        events = await rest(stream)
        assert len(events) == MAX_EVENTS + 1
        assert events[-1] == state(AgentState.CONNECTED, AgentState.FAILED)


class TestClosing:
    async def test_what_is_queued_can_still_be_read(self) -> None:
        stream = stream_of(candidate(1), candidate(2))
        stream.close()
        stream.push(candidate(3))
        assert [event async for event in stream] == [candidate(1), candidate(2)]

    async def test_it_ends_a_reader_that_waits(self) -> None:
        stream = stream_of()
        reading = asyncio.ensure_future(rest_of(stream))
        await asyncio.sleep(0)
        stream.close()
        assert await reading == []

    async def test_it_is_released_once(self) -> None:
        released: list[EventStream] = []
        stream = EventStream(released.append)
        stream.close()
        stream.close()
        assert released == [stream]


async def rest_of(stream: EventStream) -> list[Event]:
    return [event async for event in stream]
