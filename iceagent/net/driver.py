"""How is a core pumped in production?

One input goes in (a datagram, an error, a command, the time), then everything the core has to say comes out, then one
timer is armed. There is no task and one timer per core; the timer is only moved when the deadline comes nearer, or
goes far away, because a core does not mind being called early. The timer that comes early then finds the later
deadline.

A core that raises has a bug. It costs that one input: the loop's exception handler is told, whoever received the input
hears nothing, what the core has to say comes out, and the timer goes on.

A timer that comes much too late, or after the machine was suspended, is told before the core hears of it: what is known
of the network is old then.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol, TypeVar

from iceagent.net.address import TransportAddress
from iceagent.net.core import Core, Datagram, Event, Transmit

__all__ = ["GAP_S", "Clock", "Driver"]

T = TypeVar("T")

# Outputs taken in one go before other work of the loop gets its turn.
MAX_STEPS = 1_000
# uvloop keeps time in whole milliseconds and may call up to half of one early; waiting for the rest takes this long.
TIMER_GRAIN_S = 0.0005
# A deadline that goes farther away than this moves the timer: waking a process that sleeps costs more.
LAZY_S = 0.25
# After a core raised, its timer fires this long after the last time at the earliest: one that raises every time, and so
# never moves its deadline, must not spin.
RETRY_S = 0.01
# A program that is busy, or a machine under load, is held up for less; who was away for longer has missed what others
# repeat.
GAP_S = 2.0


class Clock(Protocol):
    """The part of a :class:`iceagent.net.host.Host` that is needed here."""

    def now(self) -> float:
        """Seconds of the monotonic clock that the running loop's timers use."""

    def suspended_s(self) -> float:
        """Seconds of being suspended so far, while :meth:`now` stood still."""


class Driver:
    """Pumps one core on the running loop; not thread-safe.

    Calls that come from inside ``send`` and ``on_event`` are welcome: what they cause is put out after the rest.

    Args:
        core: the state machine.
        clock: whose ``now`` it hears: the host.
        send: sends one datagram at once; returns 0 or an errno. ``EAGAIN`` is a loss like any other, everything else is
            told to the core. If it raises, the loop's exception handler is told; the datagram counts as lost.
        on_event: takes one event. If it raises, the loop's exception handler is told, and the pump goes on.
        on_gap: called with (seconds that the machine was suspended, seconds that the timer came late), when either is
            above two. If it raises, likewise. ``None``: nobody looks.
    """

    __slots__ = (
        "_armed_at",
        "_clock",
        "_core",
        "_fired_at",
        "_has_failed",
        "_is_closed",
        "_is_draining",
        "_loop",
        "_on_event",
        "_on_gap",
        "_send",
        "_suspended_s",
        "_timer",
    )

    def __init__(
        self,
        core: Core,
        clock: Clock,
        send: Callable[[Transmit], int],
        on_event: Callable[[Event], None],
        on_gap: Callable[[float, float], None] | None = None,
    ) -> None:
        self._core = core
        self._clock = clock
        self._send = send
        self._on_event = on_event
        self._on_gap = on_gap
        self._suspended_s = 0.0 if on_gap is None else clock.suspended_s()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0
        self._fired_at = float("-inf")
        self._has_failed = False
        self._is_draining = False
        self._is_closed = False

    def datagram(self, base: TransportAddress, source: tuple[str, int], data: bytes) -> None:
        """A datagram arrived on ``base``."""
        if self._is_closed:
            return
        address = source if isinstance(source, TransportAddress) else TransportAddress._make(source)
        now = self._clock.now()
        try:
            self._core.handle_datagram(Datagram(base, address, data), now)
        except Exception as error:  # A bug of the core, whatever it raises: the socket's reader is not to blame.
            self._report("Handling a datagram", error)
        self._drain(now)

    def error(self, base: TransportAddress, destination: TransportAddress, number: int) -> None:
        """The network said no (``number``: an errno) to a datagram from ``base`` to ``destination``."""
        if self._is_closed:
            return
        now = self._clock.now()
        self._refuse(base, destination, number, now)
        self._drain(now)

    def command(self, method: Callable[..., T], *args: object, **options: object) -> T:
        """Call ``method(*args, **options, now=now)`` of the core, put out what it caused, and return its result.

        Raises:
            RuntimeError: the driver is closed.
            Exception: whatever ``method`` raises; what it caused before is put out all the same.
        """
        if self._is_closed:
            raise RuntimeError("the driver is closed")
        now = self._clock.now()
        try:
            return method(*args, **options, now=now)
        finally:
            self._drain(now)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is put in any more."""
        return self._is_closed

    def look_for_gap(self, late_s: float = 0.0) -> None:
        """See whether the machine was suspended.

        Args:
            late_s: so much too late is it noticed that time has passed.
        """
        if self._on_gap is None or self._is_closed:
            return
        suspended_s = self._clock.suspended_s()
        slept_s, self._suspended_s = suspended_s - self._suspended_s, suspended_s
        if slept_s > GAP_S or late_s > GAP_S:
            try:
                self._on_gap(slept_s, late_s)
            except Exception as error:  # The shell's bug must not stop the core's clock.
                self._report("Handling a gap in time", error, is_core=False)

    def close(self) -> None:
        """Stop: no timer, no output; idempotent. What the core has queued stays in it."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drain(self, now: float) -> None:
        if self._is_draining:
            return
        self._is_draining = True
        is_stuck, is_empty = False, True
        try:
            is_empty = self._take_outputs(now)
        except Exception as error:  # A bug of the core, whatever it raises: its clock must not stop.
            self._report("Asking for output", error)
            is_stuck = True
        finally:
            self._is_draining = False
        if self._is_closed:
            return
        if is_empty:
            self._arm(self._deadline(now, is_stuck=is_stuck), now)
        else:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._is_closed:
            self._drain(self._clock.now())

    def _take_outputs(self, now: float) -> bool:
        """Put out what the core has, at most MAX_STEPS; returns whether that was all."""
        core = self._core
        for _ in range(MAX_STEPS):
            if self._is_closed:
                return True
            transmit = core.poll_transmit()
            if transmit is not None:
                self._put(transmit, now)
                continue
            event = core.poll_event()
            if event is None:
                return True
            self._tell(event)
        return False

    def _put(self, transmit: Transmit, now: float) -> None:
        try:
            number = self._send(transmit)
        except Exception as error:  # The shell's bug must not stop the core's clock.
            self._report("Sending a datagram", error)
            return
        if number and number != errno.EAGAIN:
            self._refuse(transmit.base, transmit.destination, number, now)

    def _refuse(self, base: TransportAddress, destination: TransportAddress, number: int, now: float) -> None:
        try:
            self._core.handle_error(base, destination, number, now)
        except Exception as error:  # A bug of the core, whatever it raises: its clock must not stop.
            self._report("Handling an error of the network", error)

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # The shell's or the application's bug must not stop the core's clock.
            # The type alone: an event may hold what the peer sent.
            self._report(f"Handling {type(event).__name__}", error, is_core=False)

    def _report(self, what: str, error: Exception, *, is_core: bool = True) -> None:
        self._has_failed |= is_core
        self._loop.call_exception_handler({"message": f"{what} raised", "exception": error})

    def _deadline(self, now: float, *, is_stuck: bool = False) -> float | None:
        """When the core wants to be called; where it cannot say, or has output that it did not give, soon."""
        try:
            deadline = self._core.poll_timeout()
        except Exception as error:  # A bug of the core, whatever it raises: its clock must not stop.
            self._report("Asking for the deadline", error)
            return now
        if is_stuck:
            return now if deadline is None else min(deadline, now)
        return deadline

    def _arm(self, deadline: float | None, now: float) -> None:
        if deadline is None:
            return
        # A core may find that it should have looked long ago: nobody was late, it is due now.
        deadline = max(deadline, now)
        if self._has_failed:
            deadline = max(deadline, self._fired_at + RETRY_S)
        if self._timer is not None:
            # One that should have fired already is left: it comes next, and how late that is tells of the process.
            if self._armed_at <= deadline <= max(self._armed_at + LAZY_S, now):
                return
            self._timer.cancel()
        self._armed_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.now()
        deadline = self._deadline(now)
        if deadline is not None and now < min(deadline, self._armed_at):
            self._arm(deadline + TIMER_GRAIN_S, now)
            return
        self._fired_at = now
        self._has_failed = False
        self.look_for_gap(now - self._armed_at)
        if self._is_closed:
            return
        try:
            self._core.handle_timeout(now)
        except Exception as error:  # A bug of the core, whatever it raises: its clock must not stop.
            self._report("Handling a timeout", error)
        self._drain(now)
