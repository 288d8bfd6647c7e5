"""The pump: what goes out after an input, when the timer is armed, and what does not stop it."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.events import DataReceived
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.driver import LAZY_S, MAX_STEPS, RETRY_S, Driver

BASE = TransportAddress("192.0.2.1", 1)
PEER = TransportAddress("192.0.2.2", 2)


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.time = 100.0
        self.suspended = 0.0

    def now(self) -> float:
        return self.time

    def suspended_s(self) -> float:
        return self.suspended


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


def test_an_earlier_deadline_moves_the_timer_and_a_little_later_one_does_not() -> None:
    async def main(bench: Bench) -> None:
        bench.core.deadline = 103.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.core.deadline = 103.0 + LAZY_S
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [103.0]
        assert len(bench.loop.armed) == 1, "a little later costs nothing"
        bench.core.deadline = 102.0
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [102.0]

    run(main)


def test_a_deadline_that_goes_far_away_wakes_nobody_before() -> None:
    async def main(bench: Bench) -> None:
        bench.core.deadline = 103.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.core.deadline = 108.0
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [108.0]
        bench.core.deadline = None
        bench.driver.datagram(BASE, PEER, b"")
        bench.clock.time = 108.0
        bench.loop.fire()
        assert bench.core.heard[-1] == ("timeout", 108.0)

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


class Reports:
    """What reached the loop's exception handler."""

    def __init__(self, bench: Bench) -> None:
        self.contexts: list[dict[str, Any]] = []
        bench.loop.set_exception_handler(lambda _, context: self.contexts.append(context))

    def messages(self) -> list[str]:
        return [context["message"] for context in self.contexts]


class BuggyCore(ScriptedCore):
    """Raises in one of its methods, as often as told."""

    def __init__(self, method: str, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.bug = ZeroDivisionError("a bug")
        original = getattr(self, method)

        def buggy(*args: Any) -> Any:
            if self.times:
                self.times -= 1
                raise self.bug
            return original(*args)

        setattr(self, method, buggy)


FOREVER = 10**9


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("handle_datagram", "Handling a datagram raised"),
        ("poll_transmit", "Asking for output raised"),
        ("poll_event", "Asking for output raised"),
        ("poll_timeout", "Asking for the deadline raised"),
    ],
)
def test_a_core_that_raises_costs_one_input(method: str, message: str) -> None:
    """The exception goes to the loop's handler, not to the socket; what was to be said is, by the next time."""

    async def main(bench: Bench) -> None:
        reports = Reports(bench)
        core = BuggyCore(method)
        bench.driver = Driver(core, bench.clock, bench._send, bench._take)
        core.transmits.append(transmit(b"waits"))
        core.events.append(event("waits"))
        core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"hello")
        assert reports.messages() == [message]
        assert reports.contexts[0]["exception"] is core.bug
        assert "hello" not in repr(reports.contexts)
        assert bench.loop.due(), "the clock goes on"
        bench.clock.time = 101.0
        bench.loop.fire()
        assert core.heard[-1] == ("timeout", 101.0)
        assert bench.out == [transmit(b"waits"), event("waits")]
        assert len(reports.contexts) == 1

    run(main)


def test_an_error_of_the_network_that_a_core_cannot_take_costs_that_one() -> None:
    async def main(bench: Bench) -> None:
        reports = Reports(bench)
        core = BuggyCore("handle_error", times=2)
        bench.driver = Driver(core, bench.clock, bench._send, bench._take)
        bench.driver.error(BASE, PEER, errno.ECONNREFUSED)
        bench.errno = errno.ENETUNREACH
        bench.driver.command(core.say, b"fails")
        bench.driver.error(BASE, PEER, errno.EPERM)
        assert reports.messages() == ["Handling an error of the network raised"] * 2
        assert core.heard[-1] == ("error", BASE, PEER, errno.EPERM, 100.0)

    run(main)


def test_a_send_that_raises_is_a_loss() -> None:
    async def main(bench: Bench) -> None:
        reports = Reports(bench)
        sent = []

        def send(transmit: Transmit) -> int:
            sent.append(transmit.data)
            raise ZeroDivisionError("a bug")

        bench.driver = Driver(bench.core, bench.clock, send, bench._take)
        bench.core.transmits.extend([transmit(b"1"), transmit(b"2")])
        bench.core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"")
        assert sent == [b"1", b"2"]
        assert reports.messages() == ["Sending a datagram raised"] * 2
        assert bench.loop.due() == [101.0]

    run(main)


def test_one_timeout_that_raises_does_not_stop_the_clock() -> None:
    async def main(bench: Bench) -> None:
        reports = Reports(bench)
        core = BuggyCore("handle_timeout")
        bench.driver = Driver(core, bench.clock, bench._send, bench._take)
        core.deadline = 101.0
        bench.driver.datagram(BASE, PEER, b"")
        bench.clock.time = 101.0
        core.transmits.append(transmit(b"before"))
        bench.loop.fire()
        assert reports.messages() == ["Handling a timeout raised"]
        assert bench.out == [transmit(b"before")]
        assert bench.loop.due() == [101.0 + RETRY_S]
        bench.clock.time = 101.0 + RETRY_S
        bench.loop.fire()
        assert core.heard[-1] == ("timeout", 101.0 + RETRY_S)
        core.deadline = 101.0 + RETRY_S + 0.001
        bench.driver.datagram(BASE, PEER, b"")
        assert bench.loop.due() == [core.deadline], "a timeout that went well ends the delay"

    run(main)


@pytest.mark.parametrize("method", ["handle_timeout", "poll_timeout", "poll_event"])
def test_a_core_that_always_raises_does_not_spin(method: str) -> None:
    """Nor do datagrams put off the next attempt: it is counted from the last timer, not from the last exception."""

    async def main(bench: Bench) -> None:
        Reports(bench)
        core = BuggyCore(method, times=FOREVER)
        bench.driver = Driver(core, bench.clock, bench._send, bench._take)
        core.deadline = 100.0
        bench.driver.datagram(BASE, PEER, b"")
        for attempt in range(5):
            bench.loop.fire()
            core.deadline = 100.0
            due = bench.loop.due()
            assert due == [pytest.approx(100.0 + (attempt + 1) * RETRY_S)]
            bench.clock.time = due[0] - RETRY_S / 2
            bench.driver.datagram(BASE, PEER, b"")
            assert bench.loop.due() == due
            bench.clock.time = due[0]

    run(main)


def test_what_is_reported_has_no_payload() -> None:
    async def main(bench: Bench) -> None:
        reports = Reports(bench)

        def fail(_: Event) -> None:
            raise ZeroDivisionError("a bug")

        bench.on_event = fail
        bench.core.events.append(DataReceived(component=1, base=BASE, source=PEER, data=b"secret"))
        bench.driver.datagram(BASE, PEER, b"")
        assert reports.messages() == ["Handling DataReceived raised"]

    run(main)


def test_no_payload_is_in_what_is_printed() -> None:
    data = DataReceived(component=1, base=BASE, source=PEER, data=b"secret")
    printed = [repr(data), repr(Datagram(BASE, PEER, b"secret")), repr(Transmit(BASE, PEER, b"secret"))]
    assert printed == [
        f"DataReceived(component=1, base={BASE!r}, source={PEER!r})",
        "Datagram(192.0.2.1:1 from 192.0.2.2:2, 6 bytes)",
        "Transmit(192.0.2.1:1 to 192.0.2.2:2, 6 bytes, ttl=None)",
    ]


class TestGaps:
    """A machine that was suspended, a process that was held up: told before the core hears of the time."""

    @staticmethod
    def bench_of(bench: Bench) -> list[tuple[float, float]]:
        gaps: list[tuple[float, float]] = []

        def on_gap(slept_s: float, late_s: float) -> None:
            gaps.append((slept_s, late_s))
            bench.core.heard.append(("gap",))

        bench.driver = Driver(bench.core, bench.clock, bench._send, bench._take, on_gap)
        return gaps

    @staticmethod
    def fire(bench: Bench, *, late_s: float = 0.0) -> None:
        bench.core.deadline = bench.clock.time + 1.0
        bench.driver.command(bench.core.say, b"")
        bench.clock.time += 1.0 + late_s
        bench.loop.fire()

    def test_a_timer_in_time_is_none(self) -> None:
        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            self.fire(bench)
            self.fire(bench, late_s=1.9)
            assert gaps == []

        run(main)

    def test_a_late_timer_is_told_before_the_core_hears_of_it(self) -> None:
        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            self.fire(bench, late_s=20.0)
            assert [slept_s for slept_s, _ in gaps] == [0.0] and gaps[0][1] == pytest.approx(20.0)
            assert [heard[0] for heard in bench.core.heard] == ["say", "gap", "timeout"]

        run(main)

    def test_a_core_that_should_have_looked_long_ago_does_not_make_the_timer_late(self) -> None:
        """What a datagram says may make something due that was not before, since a time that is past."""

        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            bench.core.deadline = bench.clock.time - 5.0
            bench.driver.command(bench.core.say, b"")
            bench.loop.fire()
            bench.core.deadline = bench.clock.time + 1.0
            bench.driver.command(bench.core.say, b"")
            bench.core.deadline = bench.clock.time - 5.0
            bench.driver.command(bench.core.say, b"")
            bench.loop.fire()
            assert gaps == [] and [heard[0] for heard in bench.core.heard].count("timeout") == 2

        run(main)

    def test_a_late_timer_is_late_though_a_datagram_comes_before_it(self) -> None:
        """And it is not put off by it: under load, one comes always."""

        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            bench.core.deadline = bench.clock.time + 1.0
            bench.driver.command(bench.core.say, b"")
            bench.clock.time += 21.0
            for earlier_s in (0.0, 0.5, 30.0):
                bench.core.deadline -= earlier_s
                bench.driver.datagram(BASE, PEER, b"")
                assert len(bench.loop.armed) == 1
            bench.loop.fire()
            assert [late_s for _, late_s in gaps] == [pytest.approx(20.0)]

        run(main)

    def test_a_sleep_is_told_once(self) -> None:
        """What the machine slept before the driver was made is none."""

        async def main(bench: Bench) -> None:
            bench.clock.suspended = 3600.0
            gaps = self.bench_of(bench)
            self.fire(bench)
            bench.clock.suspended += 30.0
            self.fire(bench)
            self.fire(bench)
            assert gaps == [(30.0, 0.0)]

        run(main)

    def test_naps_do_not_add_up(self) -> None:
        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            for _ in range(10):
                bench.clock.suspended += 1.0
                self.fire(bench)
            assert gaps == []

        run(main)

    def test_it_can_be_looked_for_at_any_time(self) -> None:
        async def main(bench: Bench) -> None:
            gaps = self.bench_of(bench)
            bench.clock.suspended += 5.0
            bench.driver.look_for_gap()
            bench.driver.look_for_gap()
            assert gaps == [(5.0, 0.0)]
            bench.driver.close()
            bench.clock.suspended += 5.0
            bench.driver.look_for_gap()
            assert len(gaps) == 1

        run(main)

    def test_who_does_not_want_to_know_is_not_told(self) -> None:
        async def main(bench: Bench) -> None:
            bench.clock.suspended = 3600.0
            self.fire(bench, late_s=20.0)
            assert [heard[0] for heard in bench.core.heard] == ["say", "timeout"]

        run(main)

    def test_whoever_is_told_and_raises_does_not_stop_the_clock(self) -> None:
        async def main(bench: Bench) -> None:
            reports = Reports(bench)

            def on_gap(slept_s: float, late_s: float) -> None:
                raise ZeroDivisionError("a bug")

            bench.driver = Driver(bench.core, bench.clock, bench._send, bench._take, on_gap)
            self.fire(bench, late_s=20.0)
            assert reports.messages() == ["Handling a gap in time raised"]
            assert bench.core.heard[-1][0] == "timeout"

        run(main)

    def test_whoever_is_told_may_close_it(self) -> None:
        async def main(bench: Bench) -> None:
            bench.driver = Driver(
                bench.core, bench.clock, bench._send, bench._take, lambda slept_s, late_s: bench.driver.close()
            )
            self.fire(bench, late_s=20.0)
            assert [heard[0] for heard in bench.core.heard] == ["say"]

        run(main)
