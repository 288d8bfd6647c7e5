"""How does a test wait an hour in no time?

:class:`VirtualClock` is a number that only goes up. :class:`VirtualLoop` is an asyncio event loop on such a clock: when
nothing is ready to run, it jumps to the next scheduled timer instead of sleeping. Callbacks run in the order of their
times, so a program sees the same world at every run, whatever the machine does meanwhile.

A virtual loop is for programs whose world is in memory (``iceagent/testing/host.py``). It raises, out of
``run_until_complete``, instead of hanging:

- :class:`Deadlock`: nothing is ready and nothing is scheduled, so nothing will ever happen again;
- :class:`TimeLimit`: the next timer is past the limit of virtual time;
- :class:`Livelock`: callbacks go on and on, and time stands still.

While a job of ``run_in_executor`` is under way the loop waits for it in real time (with a limit) and the clock stands:
how long a thread takes must not be seen in virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

__all__ = [
    "Deadlock",
    "Livelock",
    "TimeLimit",
    "UnhandledError",
    "VirtualClock",
    "VirtualLoop",
    "VirtualTimeError",
    "run",
    "virtual_loop",
]

T = TypeVar("T")

TIME_LIMIT_S = 7 * 24 * 3600.0
"""A week: longer than any lifetime in the RFCs, short enough that an endless periodic timer is found in a second."""

TURNS_AT_ONE_INSTANT = 500_000
"""Turns of the loop without the clock moving; about five seconds of real time."""

THREAD_PATIENCE_S = 20.0
"""Real seconds that the loop waits for an executor job: below the 60 s at which a test run is ended."""

SHOWN_TASKS = 10


class VirtualTimeError(RuntimeError):
    """The virtual world cannot go on."""


class Deadlock(VirtualTimeError):
    """Nothing is ready, nothing is scheduled."""


class TimeLimit(VirtualTimeError):
    """The limit of virtual time is reached."""


class Livelock(VirtualTimeError):
    """The loop turns and turns while its clock stands still."""


class UnhandledError(RuntimeError):
    """A callback or a forgotten task raised; the cause is ``__cause__``."""


class VirtualClock:
    """Seconds that pass only when told to.

    Args:
        start: what the clock shows first, in seconds.
    """

    __slots__ = ("_now",)

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Let ``seconds`` pass and return the new time.

        Raises:
            ValueError: if ``seconds`` is negative: the clock is monotonic.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds
        return self._now

    def advance_to(self, at: float) -> float:
        """Go to the time ``at``; a time that has passed already changes nothing."""
        self._now = max(self._now, at)
        return self._now


class _JumpingSelector(selectors.DefaultSelector):
    """Real file objects (the loop's wake-up pipe among them), virtual waiting.

    Args:
        wait: called when nothing is ready, with the timeout; says how many real seconds to wait for a thread.
    """

    def __init__(self, wait: Callable[[float | None], float]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        patience = self._wait(timeout)
        if not patience:
            return []
        ready = super().select(patience)
        if not ready:
            raise Deadlock(f"a job in an executor has been under way for more than {patience} real seconds")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual.

    Args:
        clock: its clock; ``None``: a new one that starts at 0.
        time_limit_s: how far the clock may go, in seconds from where it is now.
        turn_limit: turns of the loop without the clock moving.

    Attributes:
        clock: the clock. Advancing it by hand makes timers late, as a busy machine does.
        failures: what was given to the exception handler, oldest first. :func:`run` raises the first.
    """

    def __init__(
        self,
        clock: VirtualClock | None = None,
        *,
        time_limit_s: float = TIME_LIMIT_S,
        turn_limit: int = TURNS_AT_ONE_INSTANT,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.failures: list[Mapping[str, Any]] = []
        self._limit_at = self.clock.now() + time_limit_s
        self._turn_limit = turn_limit
        self._turns = 0
        self._threads = 0
        super().__init__(_JumpingSelector(self._wait))
        self.set_exception_handler(self._keep_failure)

    def time(self) -> float:
        return self.clock.now()

    def raise_failures(self) -> None:
        """Raise the first error that no one handled, and forget all.

        Raises:
            UnhandledError: if there was one.
        """
        if not self.failures:
            return
        first, count = self.failures[0], len(self.failures)
        self.failures.clear()
        message = f"{first.get('message', 'unhandled error')}: {first.get('exception')!r} ({count} in all)"
        raise UnhandledError(message) from first.get("exception")

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # typeshed's TypeVarTuple form
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self._threads += 1  # joined by a thread of asyncio's own
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._threads -= 1

    def _thread_done(self, _: asyncio.Future[Any]) -> None:
        self._threads -= 1

    def _keep_failure(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        self.failures.append(dict(context))
        loop.default_exception_handler(dict(context))

    def _wait(self, timeout: float | None) -> float:
        """Nothing is ready: let virtual time pass, or say for how many real seconds to wait for a thread."""
        if timeout is not None and timeout <= 0:
            self._count_turn()
            return 0.0
        if self._threads:
            return THREAD_PATIENCE_S
        if timeout is None:
            raise Deadlock(f"at {self.time():.6f} s: nothing is ready and nothing is scheduled{self._waiting()}")
        if self.time() + timeout > self._limit_at:
            raise TimeLimit(f"at {self.time():.6f} s: the next timer is past the limit of {self._limit_at} s")
        self._turns = 0
        self.clock.advance(timeout)
        return 0.0

    def _count_turn(self) -> None:
        self._turns += 1
        if self._turns > self._turn_limit:
            self._turns = 0
            raise Livelock(f"at {self.time():.6f} s: {self._turn_limit} turns and no time passed{self._waiting()}")

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"\n  {task.get_name()}: {_where(task)}" for task in tasks[:SHOWN_TASKS]]
        if len(tasks) > SHOWN_TASKS:
            lines.append(f"\n  and {len(tasks) - SHOWN_TASKS} more tasks")
        return "".join(lines)


def _where(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return repr(task.get_coro())
    code = frames[0].f_code
    return f"waits in {code.co_qualname} ({code.co_filename}:{frames[0].f_lineno})"


def virtual_loop(*, start: float = 0.0, time_limit_s: float = TIME_LIMIT_S) -> VirtualLoop:
    """Make a :class:`VirtualLoop`; a loop factory for ``asyncio.Runner`` and pytest-asyncio.

    Args:
        start: the time its clock shows first, in seconds.
        time_limit_s: how many virtual seconds it may run.
    """
    return VirtualLoop(VirtualClock(start), time_limit_s=time_limit_s)


def run(main: Coroutine[Any, Any, T], *, start: float = 0.0, time_limit_s: float = TIME_LIMIT_S) -> T:
    """``asyncio.run`` in virtual time.

    Args:
        main: what to run.
        start: the time at its start, in seconds.
        time_limit_s: how many virtual seconds it may take.

    Returns:
        What ``main`` returned.

    Raises:
        VirtualTimeError: the world stopped; see :class:`Deadlock`, :class:`TimeLimit`, :class:`Livelock`.
        UnhandledError: ``main`` returned, but a callback or a forgotten task had raised.
    """
    with asyncio.Runner(loop_factory=lambda: virtual_loop(start=start, time_limit_s=time_limit_s)) as runner:
        result = runner.run(main)
        loop = runner.get_loop()
        if isinstance(loop, VirtualLoop):
            loop.raise_failures()
        return result
