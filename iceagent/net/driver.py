"""How is a core pumped in production?

One input goes in (a datagram, an error, a command, the time), then everything the core has to say comes out, then one
timer is armed. There is no task and one timer per core; the timer is only moved when the deadline comes nearer, because
a core does not mind being called early. The timer that comes early then finds the later deadline.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol, TypeVar

from iceagent.net.address import TransportAddress
from iceagent.net.core import Core, Datagram, Event, Transmit

__all__ = ["Clock", "Driver"]

T = TypeVar("T")

# Outputs taken in one go before other work of the loop gets its turn.
MAX_STEPS = 1_000
# uvloop keeps time in whole milliseconds and may call up to half of one early; waiting for the rest takes this long.
TIMER_GRAIN_S = 0.0005


class Clock(Protocol):
    """The part of a :class:`iceagent.net.host.Host` that is needed here."""

    def now(self) -> float:
        """Seconds of the monotonic clock that the running loop's timers use."""


class Driver:
    """Pumps one core on the running loop; not thread-safe.

    Calls that come from inside ``send`` and ``on_event`` are welcome: what they cause is put out after the rest.

    Args:
        core: the state machine.
        clock: whose ``now`` it hears: the host.
        send: sends one datagram at once; returns 0 or an errno. ``EAGAIN`` is a loss like any other, everything else is
            told to the core.
        on_event: takes one event. If it raises, the loop's exception handler is told, and the pump goes on.
    """

    def __init__(
        self, core: Core, clock: Clock, send: Callable[[Transmit], int], on_event: Callable[[Event], None]
    ) -> None:
        self._core = core
        self._clock = clock
        self._send = send
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0
        self._is_draining = False
        self._is_closed = False

    def datagram(self, base: TransportAddress, source: tuple[str, int], data: bytes) -> None:
        """A datagram arrived on ``base``."""
        if self._is_closed:
            return
        address = source if isinstance(source, TransportAddress) else TransportAddress._make(source)
        now = self._clock.now()
        self._core.handle_datagram(Datagram(base, address, data), now)
        self._drain(now)

    def error(self, base: TransportAddress, destination: TransportAddress, number: int) -> None:
        """The network said no (``number``: an errno) to a datagram from ``base`` to ``destination``."""
        if self._is_closed:
            return
        now = self._clock.now()
        self._core.handle_error(base, destination, number, now)
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
        try:
            is_empty = self._take_outputs(now)
        finally:
            self._is_draining = False
        if self._is_closed:
            return
        if is_empty:
            self._arm()
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
                number = self._send(transmit)
                if number and number != errno.EAGAIN:
                    core.handle_error(transmit.base, transmit.destination, number, now)
                continue
            event = core.poll_event()
            if event is None:
                return True
            self._tell(event)
        return False

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # The shell's or the application's bug must not stop the core's clock.
            self._loop.call_exception_handler({"message": f"Handling {event!r} raised", "exception": error})

    def _arm(self, grain: float = 0.0) -> None:
        deadline = self._core.poll_timeout()
        if deadline is None or (self._timer is not None and self._armed_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = deadline + grain
        self._timer = self._loop.call_at(self._armed_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.now()
        deadline = self._core.poll_timeout()
        if deadline is not None and now < min(deadline, self._armed_at):
            self._arm(TIMER_GRAIN_S)
            return
        self._core.handle_timeout(now)
        self._drain(now)
