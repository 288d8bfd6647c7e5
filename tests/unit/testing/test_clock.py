"""Virtual time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from iceagent.testing.clock import (
    Deadlock,
    Livelock,
    TimeLimit,
    UnhandledError,
    VirtualClock,
    VirtualLoop,
    run,
    virtual_loop,
)


def test_a_clock_goes_forward_only() -> None:
    clock = VirtualClock(5.0)
    assert clock.advance(2.5) == 7.5
    assert clock.advance_to(7.0) == 7.5
    assert clock.advance_to(9.0) == clock.now() == 9.0
    with pytest.raises(ValueError, match="cannot go back by 1"):
        clock.advance(-1)


def test_an_hour_of_sleep_is_exactly_an_hour_of_virtual_time() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(3600)
        return before, loop.time()

    assert run(main(), start=100.0) == (100.0, 3700.0)


def test_callbacks_run_in_the_order_of_their_times() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []
        note: Callable[[str], None] = lambda name: seen.append((name, loop.time()))  # noqa: E731
        for name, delay_s in (("c", 3.0), ("a", 0.25), ("d", 90_000.0), ("b", 0.5)):
            loop.call_later(delay_s, note, name)
        cancelled = loop.call_later(1.0, note, "never")
        cancelled.cancel()
        loop.call_soon(note, "first")
        await asyncio.sleep(100_000)
        return seen

    expected = [("first", 0.0), ("a", 0.25), ("b", 0.5), ("c", 3.0), ("d", 90_000.0)]
    assert run(main()) == expected


def test_a_timeout_strikes_at_its_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12.5):
                await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    assert run(main()) == 12.5


def test_a_deadlock_is_an_error_that_says_who_waits() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"at 0\.000000 s: nothing is ready.*\n.*waits in .*waits_for_ever"):
        run(waits_for_ever())


def test_an_endless_timer_meets_the_time_limit() -> None:
    async def ticks_for_ever() -> None:
        for _ in itertools.count():
            await asyncio.sleep(10)

    with pytest.raises(TimeLimit, match=r"at 55\.0+ s: .*limit of 64\.0 s"):
        run(ticks_for_ever(), start=5.0, time_limit_s=59)


@pytest.fixture
def short_loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop(turn_limit=100)
    yield loop
    loop.close()


def test_turns_without_time_are_a_livelock(short_loop: VirtualLoop) -> None:
    def spin() -> None:
        short_loop.call_soon(spin)

    spin()
    with pytest.raises(Livelock, match="100 turns and no time passed"):
        short_loop.run_forever()


def test_many_turns_are_fine_as_long_as_time_passes(short_loop: VirtualLoop) -> None:
    async def main() -> None:
        for _ in range(50):
            for _ in range(90):
                await asyncio.sleep(0)
            await asyncio.sleep(1)

    short_loop.run_until_complete(main())
    assert short_loop.time() == 50.0


def test_the_clock_stands_while_a_thread_works() -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        loop.call_later(10, lambda: None)
        started = threading.Event()
        go_on = threading.Event()

        def work() -> str:
            started.set()
            assert go_on.wait(10)
            return "done"

        job = loop.run_in_executor(None, work)
        await loop.run_in_executor(None, started.wait, 10)
        go_on.set()
        return await job, loop.time()

    assert run(main()) == ("done", 0.0)


def test_call_soon_threadsafe_wakes_the_loop() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        await loop.run_in_executor(None, loop.call_soon_threadsafe, woken.set)
        await woken.wait()
        return loop.time()

    assert run(main()) == 0.0


def test_an_error_in_a_callback_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1, lambda: [][0])
        await asyncio.sleep(2)

    with pytest.raises(UnhandledError, match=r"list index out of range.*1 in all") as caught:
        run(main())
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_of_the_program_is_raised_as_it_is() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: [][0])
        await asyncio.sleep(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(main())


def test_a_late_machine_can_be_played_by_moving_the_clock() -> None:
    loop = virtual_loop()
    try:
        seen: list[float] = []
        loop.call_later(1.0, lambda: seen.append(loop.time()))
        loop.clock.advance(5.0)
        loop.run_until_complete(asyncio.sleep(0.5))
        assert isinstance(loop, VirtualLoop)
        assert seen == [5.0]
        assert loop.time() == 5.5
    finally:
        loop.close()
