"""What does the kernel's table say, and when does it change?

A :class:`KernelTable` asks the kernel over netlink. While somebody is subscribed it keeps its last reading warm: a
second netlink socket hears that something changed, a burst of changes is awaited for 50 ms, and the whole table is read
again. What the notifications say is not believed, so a lost one (ENOBUFS) is as good as any.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from iceagent.net.host import Subscription
from iceagent.net.netlink import worker

__all__ = ["KernelTable"]

Row = TypeVar("Row")

# How long a burst of changes is awaited before the table is read again.
DEBOUNCE_S = 0.05
# When a reading that failed is tried again.
RETRY_S = 5.0
# Notifications taken per wake-up; what is left wakes the reader again.
MAX_NOTIFICATIONS_PER_WAKEUP = 64
# Both headers: nlmsghdr (16 bytes), and rtmsg (12) or ifaddrmsg or ifinfomsg (16).
NOTIFICATION_SIZE = 32


def _any(notification: bytes) -> bool:
    return True


class KernelTable(Generic[Row]):
    """One table of one network namespace; belongs to the running loop, not thread-safe.

    Args:
        read: asks the kernel over a socket that no one else reads; runs in the worker thread.
        groups: RTMGRP_* that tell of its changes.
        open_netlink: opens a NETLINK_ROUTE socket bound to the given groups.
        concerns: whether a notification, of which the first 32 bytes are given, may be about this table.

    Attributes:
        readings: how often the kernel was asked.
    """

    def __init__(
        self,
        read: Callable[[socket.socket], tuple[Row, ...]],
        groups: int,
        open_netlink: Callable[[int], socket.socket],
        concerns: Callable[[bytes], bool] = _any,
    ) -> None:
        self._read = read
        self._groups = groups
        self._open_netlink = open_netlink
        self._concerns = concerns
        self._callbacks: dict[Subscription, Callable[[tuple[Row, ...]], None]] = {}
        self._table: tuple[Row, ...] | None = None
        self._is_stale = True
        self._reading: asyncio.Future[tuple[Row, ...]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._notifications: socket.socket | None = None
        self._debounce: asyncio.TimerHandle | None = None
        self.readings = 0

    async def read(self) -> tuple[Row, ...]:
        """The table as it is now: at once where it is kept warm and nothing changed.

        Raises:
            OSError: netlink is not allowed here.
        """
        self._on_notification()
        while self._table is None or self._is_stale or self._notifications is None:
            reading = self._start_reading()
            table = await asyncio.shield(reading)
            self._on_read(reading)  # Its callback may have to wait for the loop's next turn.
            if self._notifications is None:
                return table
        return self._table

    def subscribe(self, callback: Callable[[tuple[Row, ...]], None]) -> Subscription:
        """Keep the table warm, and call ``callback`` with it whenever it changed.

        Raises:
            OSError: netlink is not allowed here.
        """
        if self._notifications is None:
            self._watch()
        subscription = _TableSubscription(self)
        self._callbacks[subscription] = callback
        return subscription

    def close(self) -> None:
        """End all subscriptions; idempotent."""
        self._callbacks.clear()
        self._unwatch()

    def unsubscribe(self, subscription: Subscription) -> None:
        """Call nobody for it any more; idempotent."""
        self._callbacks.pop(subscription, None)
        if not self._callbacks:
            self._unwatch()

    def _watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._notifications = self._open_netlink(self._groups)
        self._notifications.setblocking(False)
        self._loop.add_reader(self._notifications.fileno(), self._on_notification)
        self._is_stale = True  # A reading under way began before we listened.
        self._start_reading()

    def _unwatch(self) -> None:
        self._table, self._is_stale = None, True
        if self._debounce is not None:
            self._debounce.cancel()
            self._debounce = None
        if self._notifications is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._notifications.fileno())
            self._notifications.close()
        self._notifications = self._loop = None

    def _on_notification(self) -> None:
        self._take_notifications()
        self._schedule(DEBOUNCE_S)

    def _take_notifications(self) -> None:
        """Note whether there are any. The kernel throws away what is not read of each."""
        sock, loop = self._notifications, self._loop
        if sock is None or loop is None:
            return
        for _ in range(MAX_NOTIFICATIONS_PER_WAKEUP):
            try:
                if not self._concerns(sock.recv(NOTIFICATION_SIZE)):
                    continue
            except BlockingIOError:
                return
            except OSError:
                # ENOBUFS: some were lost. uvloop stops a reader whose socket had an error, so register it anew.
                loop.remove_reader(sock.fileno())
                loop.add_reader(sock.fileno(), self._on_notification)
            self._is_stale = True

    def _schedule(self, delay: float) -> None:
        """Read the table again after ``delay`` seconds, if it needs it then."""
        if self._is_stale and self._debounce is None and self._loop is not None:
            self._debounce = self._loop.call_later(delay, self._on_quiet)

    def _on_quiet(self) -> None:
        self._debounce = None
        if self._is_stale:
            try:
                self._start_reading()
            except OSError:
                self._schedule(RETRY_S)

    def _start_reading(self) -> asyncio.Future[tuple[Row, ...]]:
        """The reading under way, or a new one: what changes from now on makes the table stale again."""
        if self._reading is None:
            sock = self._open_netlink(0)
            self._is_stale = False
            self.readings += 1
            self._reading = asyncio.get_running_loop().run_in_executor(worker(), self._read_and_close, sock)
            self._reading.add_done_callback(self._on_read)
        return self._reading

    def _read_and_close(self, sock: socket.socket) -> tuple[Row, ...]:
        with contextlib.closing(sock):
            return self._read(sock)

    def _on_read(self, reading: asyncio.Future[tuple[Row, ...]]) -> None:
        """Take a reading that is done; a second call does nothing."""
        if reading is not self._reading:
            return
        self._reading = None
        if reading.cancelled() or reading.exception() is not None:
            self._is_stale = True
            self._schedule(RETRY_S)
            return
        if self._notifications is not None:
            before, self._table = self._table, reading.result()
            if before is not None and before != self._table:
                self._tell(self._table)
        self._schedule(DEBOUNCE_S)

    def _tell(self, table: tuple[Row, ...]) -> None:
        for callback in list(self._callbacks.values()):
            try:
                callback(table)
            except Exception as error:  # One subscriber's bug must not cost the others their news.
                context = {"message": "A watcher of interfaces or routes raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)


class _Source(Protocol):
    def unsubscribe(self, subscription: Subscription) -> None: ...


class _TableSubscription(Subscription):
    """There are two for each agent: no closure, no key."""

    __slots__ = ("_table",)

    def __init__(self, table: _Source) -> None:
        self._table = table

    def close(self) -> None:
        self._table.unsubscribe(self)
