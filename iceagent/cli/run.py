"""How does a command run, and how does it end when it is told to?

Ctrl-C and SIGTERM cancel the command's task, which cleans up (``finally``, ``async with``) and may still write its
summary. Cleaning up has one second; a second signal, or the end of that second, ends the process at once. What comes
right behind the first is no second one: timeout(1) sends it to its child, and then to the child's whole group.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from iceagent.cli import EXIT_INTERRUPTED

__all__ = ["ECHO_S", "GRACE_S", "Echo", "Supervisor", "run"]

# CLI contract: "Ctrl-C ends cleanly … within 1 s".
GRACE_S = 1.0
# Two copies of one signal are less than a millisecond apart, two by hand at least a tenth of a second.
ECHO_S = 0.3

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, int], *, sigterm_code: int | Callable[[], int] = EXIT_INTERRUPTED) -> int:
    """Run a command to its end.

    Args:
        main: returns the exit code; cancelled at a signal.
        sigterm_code: the exit code after SIGTERM; 0 where that is the ordinary way to end, as for a server. What
            depends on how far the command has come is a function, which is asked when the signal comes.

    Returns:
        What ``main`` returned; after a signal, 130 (or ``sigterm_code``), whatever ``main`` made of its cancellation.
        Every other exception of ``main`` goes through.
    """
    supervisor = Supervisor(sigterm_code)
    try:
        with asyncio.Runner() as runner:
            return runner.run(supervisor.run(main))
    finally:
        supervisor.release()


class Echo:
    """Is a signal a new one, or the last one's second copy?

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._came_at = float("-inf")

    def is_echo(self) -> bool:
        """Of the signal that has just come; asked once for each."""
        now = self._now()
        if now - self._came_at < ECHO_S:
            return True
        self._came_at = now
        return False


class Supervisor:
    """Cancels the command's task at the first signal, and sees to it that the process ends.

    Args:
        sigterm_code: see :func:`run`.
        now: seconds, monotonic.
        end_now: ends the process with an exit code; called when somebody has no patience, or time is up.
    """

    def __init__(
        self,
        sigterm_code: int | Callable[[], int],
        *,
        now: Callable[[], float] = time.monotonic,
        end_now: Callable[[int], None] | None = None,
    ) -> None:
        self._echo = Echo(now)
        self._end_now = _end_now if end_now is None else end_now
        self._sigterm_code = sigterm_code
        self._interrupted_code: int | None = None
        self._watchdog: threading.Timer | None = None

    async def run(self, main: Coroutine[Any, Any, int]) -> int:
        """Run it to its end; the exit code. Called once."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number, task)
        try:
            code = await task
        except asyncio.CancelledError:
            if self._interrupted_code is None:
                raise
            code = EXIT_INTERRUPTED
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        code = code if self._interrupted_code is None else self._interrupted_code
        # What is left, a thread that waits for a name server for instance, does not hold up the end either.
        self._watch(code)
        return code

    def release(self) -> None:
        """The loop is closed: nothing can be stuck any more."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _on_signal(self, number: signal.Signals, task: asyncio.Future[int]) -> None:
        if self._echo.is_echo():
            return
        if self._interrupted_code is not None:
            self._end_now(self._interrupted_code)
            return
        self._interrupted_code = self._code_after(number)
        self._watch(self._interrupted_code)
        task.cancel()

    def _code_after(self, number: signal.Signals) -> int:
        if number is not signal.SIGTERM:
            return EXIT_INTERRUPTED
        return self._sigterm_code if isinstance(self._sigterm_code, int) else self._sigterm_code()

    def _watch(self, code: int) -> None:
        """Unless it ends by itself, the process ends ``GRACE_S`` from the first call."""
        if self._watchdog is None:
            self._watchdog = threading.Timer(GRACE_S, self._end_now, (code,))
            self._watchdog.daemon = True
            self._watchdog.start()


def _end_now(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # Nobody reads it any more; there is nothing left to do for this stream.
            continue
    os._exit(code)
