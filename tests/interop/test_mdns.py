"""``.local`` candidates, on a real multicast network inside of network namespaces (needs root).

draft-ietf-mmusic-mdns-ice-candidates: one agent publishes a name in place of its address, the other one resolves it.
Each machine is a thread inside of a namespace, with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from iceagent import Agent, AgentState, CandidateType, Config, Description
from iceagent.events import Event, RemoteCandidateAdded, RemoteCandidateRefused
from iceagent.eventstream import EventStream
from iceagent.lab.namespace import Namespace
from iceagent.net.interfaces import read_interfaces
from iceagent.net.netlink import open_netlink
from tests.interop.netns import namespace

T = TypeVar("T")
E = TypeVar("E", bound=Event)

PATIENCE_S = 20
LEFT, RIGHT = "10.7.0.1", "10.7.0.2"
LINE = "candidate:1 1 udp 2130706431 {} 9 typ host"
# Names that are resolved at a time, and all that an agent takes on.
NAMES_AT_ONCE = 100


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Namespace, Namespace]]:
    """On one wire, and on nothing else."""
    with namespace() as left, namespace() as right:
        left.ip(f"link add lan type veth peer name lan netns {right.path}")
        for machine, host in ((left, LEFT), (right, RIGHT)):
            machine.ip(f"addr add {host}/24 dev lan", "link set lan up", "route add 224.0.0.0/4 dev lan")
        for machine in (left, right):
            wait_for_link(machine)
        yield left, right


def wait_for_link(machine: Namespace) -> None:
    """The kernel takes up to a second to notice a carrier."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with machine.entered(), open_netlink() as sock:
            if all(link.is_up for link in read_interfaces(sock) if link.name == "lan"):
                return
        time.sleep(0.02)
    raise TimeoutError("the link does not come up")


def run_in(machine: Namespace, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a machine, by the calling thread."""

    async def limited() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await main()

    with machine.entered():
        return asyncio.run(limited())


def run_both(machines: tuple[Namespace, Namespace], *mains: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on each of two machines, side by side."""
    with ThreadPoolExecutor(len(machines)) as pool:
        for done in [pool.submit(run_in, machine, main) for machine, main in zip(machines, mains, strict=True)]:
            done.result()


async def next_of(events: EventStream, kind: type[E]) -> E:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the agent was closed without a {kind.__name__}")


def nameless(description: Description) -> str:
    """Credentials alone: whoever gets this knows no address."""
    return Description(credentials=description.credentials, options=description.options, complete=True).to_sdp()


def test_connecting_by_a_local_name_alone() -> None:
    offer: Future[str] = Future()
    answer: Future[str] = Future()
    goodbye: Future[None] = Future()

    async def hidden() -> None:
        """Says its name, and never hears an address of the other side."""
        async with Agent(Config(mdns=True, ipv6=False), controlling=True) as agent:
            description = await agent.gather()
            (candidate,) = description.candidates
            assert candidate.address.host.endswith(".local") and candidate.type is CandidateType.HOST
            assert LEFT not in description.to_sdp()
            offer.set_result(description.to_sdp())
            theirs: str = await asyncio.wrap_future(answer)
            agent.set_remote_description(theirs)
            path = await agent.connect()
            assert path.remote.type is CandidateType.PEER_REFLEXIVE
            assert path.remote.address.host == RIGHT
            assert await agent.recv() == b"hello"
            agent.send(b"and back")
            await asyncio.wrap_future(goodbye)

    async def resolving() -> None:
        async with Agent(Config(resolve_mdns=True, ipv6=False), controlling=False) as agent:
            events = agent.events()
            answer.set_result(nameless(await agent.gather()))
            theirs: str = await asyncio.wrap_future(offer)
            agent.set_remote_description(theirs)
            added = await next_of(events, RemoteCandidateAdded)
            assert added.candidate.address.host == LEFT
            assert (await agent.connect()).remote.address.host == LEFT
            agent.send(b"hello")
            assert await agent.recv() == b"and back"
            goodbye.set_result(None)

    with two_machines() as machines:
        run_both(machines, hidden, resolving)


def test_two_agents_of_one_machine_know_each_others_names() -> None:
    """Both answer on the one port of multicast DNS; both hide, both resolve."""
    both = Config(mdns=True, resolve_mdns=True, ipv6=False)

    async def main() -> None:
        async with Agent(both, controlling=True) as a, Agent(both, controlling=False) as b:
            mine, theirs = await asyncio.gather(a.gather(), b.gather())
            assert LEFT not in mine.to_sdp() + theirs.to_sdp()
            a.set_remote_description(theirs)
            b.set_remote_description(mine)
            await asyncio.gather(a.connect(), b.connect())
            a.send(b"hello")
            assert await b.recv() == b"hello"

    with two_machines() as (left, _):
        run_in(left, main)


def test_without_multicast_a_name_is_refused_and_says_so() -> None:
    """No route for multicast, no group to join: nothing is published, and gathering is not held up."""

    async def main() -> None:
        everything = Config(mdns=True, resolve_mdns=True, loopback=True, ipv6=False)
        async with Agent(everything, controlling=True) as a, Agent(everything, controlling=False) as b:
            events = a.events()
            theirs = await b.gather()
            assert [c.address.host.endswith(".local") for c in theirs.candidates] == [True]
            a.set_remote_description(theirs)
            refused = await next_of(events, RemoteCandidateRefused)
            assert refused.candidate == theirs.candidates[0]
            assert refused.reason == "its name was not resolved"
            assert a.state is AgentState.CHECKING

    with namespace() as alone:
        run_in(alone, main)


def test_a_name_that_nobody_answers_for() -> None:
    """It is asked for three times, and refused after two seconds."""

    async def main() -> None:
        async with Agent(Config(resolve_mdns=True), controlling=True) as a:
            events = a.events()
            a.set_remote_description(nameless(a.local_description))
            loop = asyncio.get_running_loop()
            start = loop.time()
            a.add_remote_candidate(LINE.format("nobody.local"))
            assert (await next_of(events, RemoteCandidateRefused)).reason == "its name was not resolved"
            assert loop.time() - start >= 1.9

    with two_machines() as (left, _):
        run_in(left, main)


def test_names_beyond_a_bound_are_refused_at_once() -> None:
    """A peer may signal thousands. Closing ends the asking."""

    async def main() -> None:
        async with Agent(Config(resolve_mdns=True), controlling=True) as a:
            events = a.events()
            a.set_remote_description(nameless(a.local_description))
            for number in range(NAMES_AT_ONCE + 3):
                a.add_remote_candidate(LINE.format(f"nobody-{number}.local"))
            refused = [(await next_of(events, RemoteCandidateRefused)).candidate.address.host for _ in range(3)]
            assert refused == [f"nobody-{number}.local" for number in range(NAMES_AT_ONCE, NAMES_AT_ONCE + 3)]

    with two_machines() as (left, _):
        run_in(left, main)
