"""Which requests are waiting for a response, when is each sent again, and when has it failed?

The schedule of RFC 8489, 6.2.1: a request is sent Rc times, RTO apart at first and twice as far after each, and has
failed Rm times RTO after the last; with 0.5 s, 7 and 16, it leaves after 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s and
fails after 39.5 s. Over a reliable transport it is sent once and fails after 39.5 s (6.2.2).

Deadlines lie in a heap; an entry is void when the transaction has another deadline by now. Each deadline is computed
from the start of the transaction, so that late wake-ups do not add up; after a long pause one request is sent for all
that were missed, not a burst.

What it does not do: choose an RTO, make ids, look into responses. Pure.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit

__all__ = ["RELIABLE_TIMEOUT", "TooManyTransactions", "Transaction", "TransactionTable"]

DEFAULT_LIMIT = 4096
"""Transactions at once: 100 pairs whose checks are all unanswered, forty times over."""

DEFAULT_RTO = 0.5
"""Seconds: RFC 8489, 6.2.1, "a value of 500 ms is RECOMMENDED"."""

DEFAULT_RC = 7
DEFAULT_RM = 16
"""RFC 8489, 6.2.1: the defaults of Rc and Rm."""

RELIABLE_TIMEOUT = 39.5
"""Seconds, Ti of RFC 8489, 6.2.2."""

_SPARE_ENTRIES = 64


class TooManyTransactions(RuntimeError):
    """The table is full: too many requests are waiting for a response."""


@dataclass(slots=True, eq=False, kw_only=True)
class Transaction:
    """A request that waits for its response.

    Attributes:
        id: the transaction id, 12 bytes.
        base: the local socket it is sent from.
        destination: where it is sent to.
        data: the whole request.
        context: whatever the owner wants to find again with the response.
        started_at: when it was first sent, in seconds.
        rto: the first interval between two sends, in seconds.
        sent: how often it was sent, 1 … Rc.
        next_at: when something happens next; infinite when the transaction is over.
        expires_at: when it fails without a response.
        is_cancelled: no longer sent, but a response is still taken; its end is no failure (RFC 8445, 7.3.1.4).
    """

    id: bytes
    base: TransportAddress
    destination: TransportAddress
    data: bytes = field(repr=False)
    context: Any
    started_at: float
    rto: float
    next_at: float
    expires_at: float
    sent: int = 1
    is_cancelled: bool = False
    _step: int = 1
    _steps: int = 1

    def rtt(self, now: float) -> float | None:
        """Seconds from request to response, or ``None`` if it was sent more than once.

        Karn's algorithm, RFC 8489, 6.2.1: nobody knows which of the requests a response answers.
        """
        return now - self.started_at if self.sent == 1 else None


class TransactionTable:
    """The requests of one core that wait for their responses.

    Args:
        limit: how many there can be at once.
    """

    __slots__ = (
        "_by_id",
        "_heap",
        "_outgoing",
        "_sequence",
        "limit",
    )

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self._by_id: dict[bytes, Transaction] = {}
        self._heap: list[tuple[float, int, Transaction]] = []
        self._outgoing: dict[bytes, Transaction] = {}
        self._sequence = 0

    def start(
        self,
        id: bytes,
        base: TransportAddress,
        destination: TransportAddress,
        data: bytes,
        now: float,
        *,
        rto: float = DEFAULT_RTO,
        rc: int = DEFAULT_RC,
        rm: int = DEFAULT_RM,
        context: Any = None,
        reliable: bool = False,
    ) -> Transaction:
        """Send a request at once, and again until it is answered.

        Args:
            id: the transaction id in ``data``, 12 bytes.
            base: the local socket to send from.
            destination: where to.
            data: the whole request.
            now: seconds.
            rto: the first interval, in seconds, above 0.
            rc: how often it is sent at most, 1 or more.
            rm: how many times ``rto`` to wait after the last.
            context: kept in the transaction.
            reliable: over a stream: sent once, ``rto``, ``rc`` and ``rm`` do not count.

        Raises:
            TooManyTransactions: if the table is full.
            ValueError: if the id is in use, or ``rto`` or ``rc`` is too small.
        """
        if len(self._by_id) >= self.limit:
            raise TooManyTransactions(f"{self.limit} transactions are waiting for a response")
        if id in self._by_id:
            raise ValueError(f"transaction id {id.hex()} is in use")
        if rto <= 0 or rc < 1:
            raise ValueError(f"rto {rto} and rc {rc}: the first has to be above 0, the second at least 1")
        steps = 1 if reliable else rc
        wait = RELIABLE_TIMEOUT if reliable else rto * (2 ** (rc - 1) - 1 + rm)
        transaction = Transaction(
            id=id,
            base=base,
            destination=destination,
            data=data,
            context=context,
            started_at=now,
            rto=rto,
            next_at=now,
            expires_at=now + wait,
            _steps=steps,
        )
        self._by_id[id] = transaction
        self._outgoing[id] = transaction
        self._schedule(transaction)
        return transaction

    def repeat(self, transaction: Transaction) -> None:
        """Send it once more, at once; its schedule stays as it is. Does nothing if it is over."""
        if self._by_id.get(transaction.id) is transaction:
            transaction.sent += 1
            self._outgoing[transaction.id] = transaction

    def cancel_retransmissions(self, transaction: Transaction) -> None:
        """Send it no more, but take a response until the time at which it would have failed: RFC 8445, 7.3.1.4."""
        if self._by_id.get(transaction.id) is not transaction or transaction.is_cancelled:
            return
        transaction.is_cancelled = True
        transaction._step = transaction._steps
        self._outgoing.pop(transaction.id, None)
        self._schedule(transaction)
        self._drop_void_entries()

    def remove(self, transaction: Transaction) -> None:
        """Forget it: neither sent again nor matched. Does nothing if it is over."""
        if self._by_id.get(transaction.id) is not transaction:
            return
        del self._by_id[transaction.id]
        self._outgoing.pop(transaction.id, None)
        if not self._by_id:
            # A dict that was not empty keeps its table; most sessions wait for nothing most of the time.
            self._by_id.clear()
            self._outgoing.clear()
        transaction.next_at = math.inf
        self._drop_void_entries()

    def find(self, id: bytes) -> Transaction | None:
        """The transaction of that id, wherever a response came from."""
        return self._by_id.get(id)

    def match(self, id: bytes, base: TransportAddress, source: TransportAddress) -> Transaction | None:
        """Take the transaction that a response from ``source`` to ``base`` ends, or ``None``.

        A response from elsewhere than where the request went to leaves the transaction as it was.
        """
        transaction = self._by_id.get(id)
        if transaction is None or transaction.base != base or transaction.destination != source:
            return None
        self.remove(transaction)
        return transaction

    def pending(self, base: TransportAddress, destination: TransportAddress) -> list[Transaction]:
        """The transactions between two addresses, oldest first: those that a hard ICMP error ends."""
        return [each for each in self._by_id.values() if each.base == base and each.destination == destination]

    def handle_timeout(self, now: float) -> list[Transaction]:
        """Time passed: queue what has to be sent again.

        Returns:
            Those that have now failed, earliest first; they are no longer in the table. Cancelled ones are among them.
        """
        expired: list[Transaction] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, _, transaction = heapq.heappop(heap)
            if deadline != transaction.next_at:
                continue
            if transaction.expires_at <= now:
                expired.append(transaction)
                self.remove(transaction)
            else:
                self._send_again(transaction, now)
        self._drop_void_entries()
        return expired

    def poll_timeout(self) -> float | None:
        """When :meth:`handle_timeout` has something to do, in seconds, or ``None``."""
        return self._heap[0][0] if self._heap else None

    def poll_transmit(self) -> Transmit | None:
        """The next request to send, or ``None``."""
        transaction = next(iter(self._outgoing.values()), None)
        if transaction is None:
            return None
        del self._outgoing[transaction.id]
        return Transmit(transaction.base, transaction.destination, transaction.data)

    @property
    def is_full(self) -> bool:
        """Whether :meth:`start` would raise :class:`TooManyTransactions`."""
        return len(self._by_id) >= self.limit

    def __len__(self) -> int:
        return len(self._by_id)

    def _send_again(self, transaction: Transaction, now: float) -> None:
        transaction.sent += 1
        self._outgoing[transaction.id] = transaction
        while transaction.next_at <= now:
            transaction._step += 1
            self._set_next(transaction)
        self._push(transaction)

    def _schedule(self, transaction: Transaction) -> None:
        self._set_next(transaction)
        self._push(transaction)

    def _set_next(self, transaction: Transaction) -> None:
        step = transaction._step
        if step < transaction._steps:
            transaction.next_at = transaction.started_at + transaction.rto * (2**step - 1)
        else:
            transaction.next_at = transaction.expires_at

    def _push(self, transaction: Transaction) -> None:
        # The sequence number keeps the order of arrival and keeps the heap from comparing transactions.
        self._sequence += 1
        heapq.heappush(self._heap, (transaction.next_at, self._sequence, transaction))

    def _drop_void_entries(self) -> None:
        # The top is always in force, so that poll_timeout is exact and a pure read.
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].next_at:
            heapq.heappop(heap)
        if len(heap) > 2 * len(self._by_id) + _SPARE_ENTRIES:
            heap[:] = [entry for entry in heap if entry[0] == entry[2].next_at]
            heapq.heapify(heap)
