"""When a request leaves, leaves again, is answered, and fails: RFC 8489, 6.2."""

from __future__ import annotations

import random
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from relay.stun import RELIABLE_TIMEOUT, TooManyTransactions, Transaction, TransactionTable

BASE = TransportAddress("192.0.2.1", 5000)
SERVER = TransportAddress("198.51.100.1", 3478)
ID = bytes(12)
DATA = b"request"


def start(table: TransactionTable, now: float = 0.0, *, id: bytes = ID, **options: Any) -> Transaction:
    return table.start(id, BASE, SERVER, DATA, now, **options)


def drain(table: TransactionTable) -> list[Transmit]:
    found = []
    while (transmit := table.poll_transmit()) is not None:
        found.append(transmit)
    return found


def run(table: TransactionTable, now: float, until: float = 1000.0) -> tuple[list[float], list[tuple[float, bytes]]]:
    """Wake at every deadline; give the times of the sends and of the failures."""
    sent = [now for _ in drain(table)]
    failed: list[tuple[float, bytes]] = []
    while (deadline := table.poll_timeout()) is not None and deadline <= until:
        assert deadline > now, "time has to go on"
        now = deadline
        failed += [(now, each.id) for each in table.handle_timeout(now)]
        sent += [now for _ in drain(table)]
    return sent, failed


def test_default_schedule_is_that_of_the_rfc() -> None:
    """RFC 8489, 6.2.1: at 0, 500, 1500, 3500, 7500, 15500 and 31500 ms; timed out after 39500 ms."""
    table = TransactionTable()
    transaction = start(table)
    assert drain(table) == [Transmit(BASE, SERVER, DATA)]
    start_again = TransactionTable()
    start(start_again)
    assert run(start_again, 0.0) == ([0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5], [(39.5, ID)])
    assert (len(start_again), start_again.poll_timeout()) == (0, None)
    assert (transaction.sent, transaction.next_at, transaction.expires_at) == (1, 0.5, 39.5)


def test_schedule_starts_at_the_time_of_the_request() -> None:
    table = TransactionTable()
    start(table, 1000.25)
    assert run(table, 1000.25, 2000.0) == (
        [1000.25, 1000.75, 1001.75, 1003.75, 1007.75, 1015.75, 1031.75],
        [(1039.75, ID)],
    )


@pytest.mark.parametrize(
    ("options", "sent", "failed"),
    [
        ({"rto": 0.25, "rc": 3, "rm": 4}, [0.0, 0.25, 0.75], 1.75),
        ({"rto": 2.0, "rc": 1}, [0.0], 32.0),
        ({"rc": 2, "rm": 0}, [0.0], 0.5),
        ({"reliable": True}, [0.0], RELIABLE_TIMEOUT),
        ({"reliable": True, "rto": 0.1, "rc": 3}, [0.0], 39.5),
    ],
)
def test_schedule_follows_its_parameters(options: dict[str, Any], sent: list[float], failed: float) -> None:
    """RFC 8489, 6.2.1 (RTO, Rc, Rm) and 6.2.2 (once, and 39.5 s, over a reliable transport)."""
    table = TransactionTable()
    start(table, **options)
    assert run(table, 0.0) == (sent, [(failed, ID)])


def test_late_wake_up_neither_bursts_nor_shifts_what_follows() -> None:
    table = TransactionTable()
    transaction = start(table)
    drain(table)
    assert table.handle_timeout(4.0) == []
    assert len(drain(table)) == 1, "one request for the three that were missed"
    assert (transaction.sent, table.poll_timeout()) == (2, 7.5)


def test_early_and_repeated_calls_are_harmless() -> None:
    table = TransactionTable()
    start(table)
    drain(table)
    assert table.handle_timeout(0.499) == []
    assert drain(table) == []
    for _ in range(2):
        assert table.handle_timeout(0.5) == []
    assert len(drain(table)) == 1
    assert table.poll_timeout() == 1.5


def test_wake_up_after_the_end_only_fails() -> None:
    table = TransactionTable()
    transaction = start(table)
    drain(table)
    assert table.handle_timeout(100.0) == [transaction]
    assert drain(table) == []
    assert table.poll_timeout() is None


def test_response_from_the_right_address_ends_the_transaction() -> None:
    table = TransactionTable()
    transaction = start(table, context="pair 7")
    assert found(table, ID) is transaction
    assert table.match(ID, BASE, SERVER) is transaction
    assert transaction.context == "pair 7"
    assert table.match(ID, BASE, SERVER) is None
    assert table.find(ID) is None
    assert (len(table), table.poll_timeout(), table.poll_transmit()) == (0, None, None)
    assert table.handle_timeout(1000.0) == []


@pytest.mark.parametrize(
    ("id", "base", "source"),
    [
        (b"x" * 12, BASE, SERVER),
        (ID, TransportAddress("192.0.2.1", 5001), SERVER),
        (ID, BASE, TransportAddress("198.51.100.1", 3479)),
        (ID, BASE, TransportAddress("198.51.100.2", 3478)),
    ],
)
def test_response_from_elsewhere_changes_nothing(id: bytes, base: TransportAddress, source: TransportAddress) -> None:
    table = TransactionTable()
    transaction = start(table)
    assert table.match(id, base, source) is None
    assert found(table, ID) is transaction
    assert run(table, 0.0)[1] == [(39.5, ID)]


def test_rtt_is_known_only_where_the_request_was_sent_once() -> None:
    """Karn's algorithm: RFC 8489, 6.2.1, and RFC 6298."""
    table = TransactionTable()
    transaction = start(table, 10.0)
    drain(table)
    assert transaction.rtt(10.125) == 0.125
    table.handle_timeout(10.5)
    assert transaction.sent == 2
    assert transaction.rtt(10.625) is None


def test_cancelled_request_is_sent_no_more_but_its_response_is_taken() -> None:
    """RFC 8445, 7.3.1.4: not retransmitted, waits the duration of the transaction timeout for a response."""
    table = TransactionTable()
    transaction = start(table)
    drain(table)
    table.handle_timeout(0.5)
    drain(table)
    table.cancel_retransmissions(transaction)
    table.cancel_retransmissions(transaction)
    assert transaction.is_cancelled
    assert table.poll_timeout() == 39.5
    assert table.handle_timeout(31.5) == []
    assert drain(table) == []
    assert table.match(ID, BASE, SERVER) is transaction
    assert table.poll_timeout() is None


def test_cancelled_request_expires_with_the_full_schedule() -> None:
    table = TransactionTable()
    transaction = start(table)
    table.cancel_retransmissions(transaction)
    assert run(table, 0.0) == ([], [(39.5, ID)])
    assert transaction.is_cancelled
    table.cancel_retransmissions(transaction)
    assert (len(table), table.poll_timeout()) == (0, None)


def test_removed_request_is_sent_no_more() -> None:
    table = TransactionTable()
    transaction = start(table)
    table.remove(transaction)
    table.remove(transaction)
    assert (drain(table), table.poll_timeout(), len(table)) == ([], None, 0)
    again = start(table, 1.0)
    table.remove(transaction)
    assert found(table, ID) is again, "the id may be used again, and the old transaction has no say"


def test_requests_leave_in_the_order_of_their_start_and_fail_in_the_order_of_their_ends() -> None:
    table = TransactionTable()
    slow, quick = b"slow".ljust(12), b"quick".ljust(12)
    table.start(slow, BASE, SERVER, b"slow", 0.0)
    table.start(quick, BASE, SERVER, b"quick", 0.0, rto=0.1, rc=1)
    assert [transmit.data for transmit in drain(table)] == [b"slow", b"quick"]
    assert run(table, 0.0)[1] == [(1.6, quick), (39.5, slow)]


def test_pending_gives_the_requests_between_two_addresses() -> None:
    """A hard ICMP error ends them: RFC 8489, 6.2.1."""
    table = TransactionTable()
    here = [start(table, id=bytes([number]) * 12) for number in range(2)]
    table.start(b"e" * 12, BASE, BASE, DATA, 0.0)
    assert table.pending(BASE, SERVER) == here
    assert table.pending(SERVER, BASE) == []


def test_table_is_bounded() -> None:
    table = TransactionTable(limit=3)
    started = [start(table, id=bytes([number]) * 12) for number in range(3)]
    was_full = table.is_full
    with pytest.raises(TooManyTransactions, match="3 transactions"):
        start(table, id=b"x" * 12)
    assert len(table) == 3
    table.remove(started[0])
    assert (was_full, table.is_full) == (True, False)
    start(table, id=b"x" * 12)


@pytest.mark.parametrize("options", [{"rto": 0.0}, {"rto": -1.0}, {"rc": 0}])
def test_impossible_schedules_are_refused(options: dict[str, Any]) -> None:
    table = TransactionTable()
    with pytest.raises(ValueError, match="rto"):
        start(table, **options)
    assert len(table) == 0


def test_id_in_use_is_refused() -> None:
    table = TransactionTable()
    start(table)
    with pytest.raises(ValueError, match="000000000000000000000000 is in use"):
        start(table)


def test_queue_and_heap_stay_small_under_churn() -> None:
    """Void heap entries and undrained sends must not pile up: each has a bound in the live transactions."""
    table = TransactionTable()
    keeper = start(table, id=b"k" * 12, rto=1000.0)
    for number in range(5000):
        transaction = start(table, float(number) / 1000, id=number.to_bytes(12, "big"))
        table.cancel_retransmissions(transaction)
        table.remove(transaction)
    assert len(table) == 1
    assert len(table._heap) <= 2 * len(table) + 64 + 2
    assert len(table._outgoing) == 1
    assert table.poll_timeout() == keeper.next_at == 1000.0


def test_random_histories_agree_with_a_plain_list() -> None:
    """The heap with void entries against an obvious model: same deadline, sends and failures at every step."""
    for seed in range(30):
        rng = random.Random(seed)
        table, model, now = TransactionTable(), Model(), 0.0
        for step in range(200):
            action = rng.random()
            alive = sorted(model.entries)
            if action < 0.4 or not alive:
                id = step.to_bytes(12, "big")
                rto = rng.choice([0.25, 0.5, 1.0])
                model.start(id, now, rto)
                start(table, now, id=id, rto=rto)
            elif action < 0.5:
                id = rng.choice(alive)
                model.cancel(id)
                table.cancel_retransmissions(found(table, id))
            elif action < 0.6:
                id = rng.choice(alive)
                del model.entries[id]
                assert table.match(id, BASE, SERVER) is not None
            else:
                deadline = model.deadline()
                assert deadline is not None
                now = max(now, deadline + rng.choice([-0.1, 0.0, 0.0, 0.1, 5.0]))
                assert {each.id for each in table.handle_timeout(now)} == model.advance(now), f"seed {seed}"
            assert table.poll_timeout() == model.deadline(), f"seed {seed} step {step}"
            assert len(table) == len(model.entries)
            drain(table)
            assert {id: found(table, id).sent for id in model.entries} == model.sent(), f"seed {seed} step {step}"


def found(table: TransactionTable, id: bytes) -> Transaction:
    transaction = table.find(id)
    assert transaction is not None
    return transaction


class Model:
    """Every transaction with the whole list of its coming deadlines; the last one is its end."""

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[list[float], int]] = {}

    def start(self, id: bytes, now: float, rto: float) -> None:
        self.entries[id] = ([now + rto * factor for factor in (1, 3, 7, 15, 31, 63, 79)], 1)

    def cancel(self, id: bytes) -> None:
        deadlines, sent = self.entries[id]
        self.entries[id] = (deadlines[-1:], sent)

    def advance(self, now: float) -> set[bytes]:
        expired = {id for id, (deadlines, _) in self.entries.items() if deadlines[-1] <= now}
        for id in expired:
            del self.entries[id]
        for id, (deadlines, sent) in self.entries.items():
            left = [deadline for deadline in deadlines if deadline > now]
            self.entries[id] = (left, sent + (len(left) < len(deadlines)))
        return expired

    def deadline(self) -> float | None:
        return min((deadlines[0] for deadlines, _ in self.entries.values()), default=None)

    def sent(self) -> dict[bytes, int]:
        return {id: sent for id, (_, sent) in self.entries.items()}
