"""The pump: what goes out after an input, when the timer is armed, and what does not stop it."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.driver import MAX_STEPS, Driver

BASE = TransportAddress("192.0.2.1", 1)
PEER = TransportAddress("192.0.2.2", 2)


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


class ManualLoop(asyncio.SelectorEventLoop):
    """Its timers are fired by hand: ``call_at`` only notes them."""

    def __init__(self) -> None:
        super().__init__()
        self.armed: list[tuple[float, asyncio.TimerHandle]] = []

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.armed.append((when, handle))
        return handle

    def due(self) -> list[float]:
        """When the timers that still count would fire."""
        return [when for when, handle in self.armed if not handle.cancelled()]

    def fire(self) -> None:
        """Run the one timer that is armed."""
        ((_, handle),) = [(when, handle) for when, handle in self.armed if not handle.cancelled()]
        self.armed.clear()
        handle._run()


class ScriptedCore:
    """Does what it is told, and writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.transmits: deque[Transmit] = deque()
        self.events: deque[Event] = deque()
        self.deadline: float | None = None
        self.on_error: Callable[[], None] = lambda: None

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        self.heard.append(("datagram", datagram, now))

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        self.heard.append(("error", base, destination, errno, now))
        self.on_error()

    def handle_timeout(self, now: float) -> None:
        self.heard.append(("timeout", now))
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None

    def poll_timeout(self) -> float | None:
        return self.deadline

    def poll_transmit(self) -> Transmit | None:
        return self.transmits.popleft() if self.transmits else None

    def poll_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def say(self, data: bytes, *, now: float) -> int:
        self.heard.append(("say", data, now))
        self.transmits.append(transmit(data))
        return len(data)

    def fail(self, *, now: float) -> None:
        self.transmits.append(transmit(b"before"))
        raise ValueError("called wrongly")


def transmit(data: bytes) -> Transmit:
    return Transmit(BASE, PEER, data)


def event(reason: str) -> PacketDropped:
    return PacketDropped(base=BASE, source=PEER, reason=reason, size=0)


class Bench:
    """A driver with a scripted core; keeps in order what came out."""

    def __init__(self) -> None:
        self.core = ScriptedCore()
        self.clock = Clock()
        self.out: list[Transmit | Event] = []
        self.errno = 0
        self.on_event: Callable[[Event], None] = lambda _: None
        self.driver = Driver(self.core, self.clock, self._send, self._take)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ManualLoop)
        self.loop = loop

    def _send(self, transmit: Transmit) -> int:
        self.out.append(transmit)
        return self.errno

    def _take(self, event: Event) -> None:
        self.out.append(event)
        self.on_event(event)


def run(main: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def with_bench() -> None:
        await main(Bench())

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(with_bench())


def test_after_an_input_everything_comes_out_and_one_timer_is_armed() -> None:
    async def main(bench: Bench) -> None:
        bench.core.transmits.extend([transmit(b"1"), transmit(b"2")])
        bench.core.events.append(event("x"))
        bench.core.deadline = 101.5
        bench.driver.datagram(BASE, ("192.0.2.2", 2), b"in")
        assert bench.core.heard == [("datagram", Datagram(BASE, PEER, b"in"), 100.0)]
        assert isinstance(bench.core.heard[0][1].source, TransportAddress)
        assert bench.out == [transmit(b"1"), transmit(b"2"), event("x")]
        assert bench.loop.due() == [101.5]

    run(main)


def test_an_error_of_the_network_reaches_the_core() -> None:
    async def main(bench: Bench) -> None:
        bench.driver.error(BASE, PEER, errno.ECONNREFUSED)
        assert bench.core.heard == [("error", BASE, PEER, errno.ECONNREFUSED, 100.0)]

    run(main)


def test_a_command_gets_the_time_and_gives_its_result() -> None:
    async def main(bench: Bench) -> None:
        assert bench.driver.command(bench.core.say, b"hello") == 5
        assert bench.core.heard == [("say", b"hello", 100.0)]
        assert bench.out == [transmit(b"hello")]

    run(main)


def test_a_command_that_raises_does_so_after_its_output() -> None:
    async def main(bench: Bench) -> None:
        with pytest.raises(ValueError, match="called wrongly"):
            bench.driver.command(bench.core.fail)
        assert bench.out == [transmit(b"before")]

    run(main)


@pytest.mark.parametrize(
    ("number", "is_told"), [(errno.ENETUNREACH, True), (errno.EPERM, True), (errno.EAGAIN, False), (0, False)]
)
def test_a_failed_send_is_told_but_a_full_socket_is_a_loss_like_any_other(number: int, is_told: bool) -> None:
    async def main(bench: Bench) -> None:
        bench.errno = number
        bench.driver.command(bench.core.say, b"x")
        errors = [heard for heard in bench.core.heard if heard[0] == "error"]
        assert errors == ([("error", BASE, PEER, number, 100.0)] if is_told else [])

    run(main)


def test_what_an_error_causes_is_sent_in_the_same_go_without_recursion() -> None:
    """A core that answers every failed send with another is stopped at a bound, and goes on in the loop's next turn."""

    async def main(bench: Bench) -> None:
        bench.errno = errno.ENETUNREACH
        bench.core.on_error = lambda: bench.core.transmits.append(transmit(b"again"))
        bench.driver.command(bench.core.say, b"first")
        assert len(bench.out) == MAX_STEPS
        bench.core.on_error = lambda: None
        bench.core.deadline = 105.0
        await asyncio.sleep(0)
        assert len(bench.out) == MAX_STEPS + 1
        assert bench.loop.due() == [105.0]

    run(main)


def test_an_earlier_deadline_moves_the_timer_and_a_later_one_does_not() -> None:
    async def main(bench: Bench) -> None:
        bench.core.deadline = 103.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.core.deadline = 104.0
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [103.0]
        assert len(bench.loop.armed) == 1, "a later deadline costs nothing"
        bench.core.deadline = 102.0
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [102.0]

    run(main)


def test_a_timer_that_fires_for_an_old_deadline_finds_the_new_one() -> None:
    async def main(bench: Bench) -> None:
        bench.core.deadline = 103.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.core.deadline = 104.0
        bench.clock.time = 103.0
        bench.loop.fire()
        assert bench.core.heard[-1] == ("timeout", 103.0)
        assert bench.loop.due() == [104.0]
        bench.clock.time = 104.0
        bench.loop.fire()
        assert bench.core.heard[-1] == ("timeout", 104.0)
        assert bench.loop.due() == []

    run(main)


def test_a_loop_with_a_coarse_clock_is_not_asked_over_and_over() -> None:
    """uvloop counts whole milliseconds and may fire up to half of one early; the rest is waited for in one go."""

    async def main(bench: Bench) -> None:
        bench.core.deadline = 103.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.clock.time = 102.9996
        bench.loop.fire()
        assert [heard[0] for heard in bench.core.heard] == ["datagram"]
        assert bench.loop.due() == [103.0005]
        bench.clock.time = 103.0002
        bench.loop.fire()
        assert bench.core.heard[-1] == ("timeout", 103.0002), "due, though before what was armed"
        assert bench.loop.due() == []

    run(main)


def test_what_a_callback_causes_is_put_out_after_the_rest() -> None:
    """A command from inside ``on_event`` runs at once; its output waits for its turn, and nothing recurses."""

    async def main(bench: Bench) -> None:
        def react(happened: Event) -> None:
            if happened == event("first"):
                assert bench.driver.command(bench.core.say, b"reaction") == 8
                assert bench.out[-1] == event("first")

        bench.on_event = react
        bench.core.events.extend([event("first"), event("second")])
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.out == [event("first"), transmit(b"reaction"), event("second")]

    run(main)


def test_a_bug_in_a_callback_is_reported_and_the_pump_goes_on() -> None:
    async def main(bench: Bench) -> None:
        reported = []
        bench.loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        bug = ValueError("a bug")

        def fail(_: Event) -> None:
            raise bug

        bench.on_event = fail
        bench.core.events.extend([event("1"), event("2")])
        bench.core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"")
        assert reported == [bug, bug]
        assert bench.out == [event("1"), event("2")]
        assert bench.loop.due() == [101.0]

    run(main)


def test_a_closed_driver_is_silent() -> None:
    async def main(bench: Bench) -> None:
        bench.core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.driver.close()
        bench.driver.close()
        assert bench.loop.due() == []
        bench.driver.datagram(BASE, PEER, b"")
        bench.driver.error(BASE, PEER, 1)
        with pytest.raises(RuntimeError, match="closed"):
            bench.driver.command(bench.core.say, b"x")
        assert len(bench.core.heard) == 1

    run(main)


def test_closing_in_a_callback_ends_the_output() -> None:
    async def main(bench: Bench) -> None:
        bench.on_event = lambda _: bench.driver.close()
        bench.core.events.extend([event("1"), event("2")])
        bench.core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.out == [event("1")]
        assert bench.loop.due() == []

    run(main)
