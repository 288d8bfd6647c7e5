"""What do two connected peers send each other to see whether and how well the path works?

A ping is 32 bytes: ``iceping`` and ``?``, the sender's id (8 bytes), the sequence number (8), and the sender's clock in
microseconds (8), big-endian. A peer of ours answers with the same bytes, ``?`` replaced by ``!``; a peer of another
make may echo them verbatim. Both count as the answer, once; more are duplicates. The first byte is neither STUN's nor a
TURN channel's (RFC 7983, 7).

With ``echo``, every other datagram is returned as it came, but the same bytes only once: where the peer echoes too,
they would go round for ever otherwise.

Pure: the clock is ``now`` in seconds, the sender's id comes from the caller.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from iceagent.net.core import Event

__all__ = ["Payload", "PayloadCounts", "PingEchoed", "Reaction"]

_MAGIC = b"iceping"
_ASK = b"?"
_ANSWER = b"!"
_PING = struct.Struct(">7scQQQ")

# Pings whose answer may still come, and answered ones that may come again: 16 s at one per millisecond.
MAX_REMEMBERED = 16_384
# Returned datagrams that would be recognized if they came back.
MAX_RETURNED = 4096
# An answer is awaited for three round trips, but no shorter than a timer's jitter, no longer than a person's patience.
_MIN_PATIENCE_S = 0.1
_MAX_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PingEchoed(Event):
    """A ping of ours was answered for the first time.

    Attributes:
        seq: its number, from 0.
        rtt_ms: from its sending to now.
        kind: the path's at this moment, ``direct`` or ``relay``.
    """

    seq: int
    rtt_ms: float
    kind: str | None


class Reaction(NamedTuple):
    """What a datagram leads to.

    Attributes:
        reply: to be sent, or ``None``.
        seq: the ping of ours that it answers for the first time, or ``None``.
        rtt_ms: of that ping.
    """

    reply: bytes | None = None
    seq: int | None = None
    rtt_ms: float = 0.0


_NOTHING = Reaction()


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadCounts:
    """What became of everything so far.

    Attributes:
        sent: pings of ours.
        received: how many of them were answered.
        lost: those sent while connected whose answer is overdue.
        duplicated: answers beyond the first.
        longest_gap_ms: the longest time without news: without an answer where we ping, else without any datagram;
            ``None`` before there was any.
        answered: the peer's pings that we answered.
        returned: other datagrams that we returned.
        other: other datagrams that we did not.
    """

    sent: int
    received: int
    lost: int
    duplicated: int
    longest_gap_ms: float | None
    answered: int
    returned: int
    other: int


class _Sent(NamedTuple):
    at: float
    while_connected: bool


class Payload:
    """The payload of one peer.

    Args:
        sender: 64 bits that the peer does not have; from a system source.
        echo: return what is no ping.
    """

    def __init__(self, *, sender: int, echo: bool = False) -> None:
        self._sender = sender
        self._echo = echo
        self._next_seq = 0
        self._open: OrderedDict[int, _Sent] = OrderedDict()
        self._answered: OrderedDict[int, None] = OrderedDict()
        self._newest_answered = -1
        self._returned: OrderedDict[bytes, None] = OrderedDict()
        self._rtt_s: float | None = None
        self._heard_at: float | None = None
        self._longest_gap_s: float | None = None
        self._peer_asked_at: float | None = None
        self._overflown = 0
        self._received = 0
        self._duplicates = 0
        self._answers = 0
        self._returns = 0
        self._others = 0

    # --- commands ------------------------------------------------------------------------------------------------

    def ping(self, now: float, *, connected: bool) -> bytes:
        """The next ping, to be sent at once.

        Args:
            now: seconds, monotonic.
            connected: if it is lost, that is the path's doing.
        """
        seq = self._next_seq
        self._next_seq += 1
        self._open[seq] = _Sent(now, connected)
        if len(self._open) > MAX_REMEMBERED:
            _, oldest = self._open.popitem(last=False)
            self._overflown += oldest.while_connected
        if self._heard_at is None:
            self._heard_at = now
        return _PING.pack(_MAGIC, _ASK, self._sender, seq, round(now * 1e6) & (2**64 - 1))

    def handle_data(self, data: bytes, now: float) -> Reaction:
        """Take a datagram of the peer's."""
        if len(data) != _PING.size or not data.startswith(_MAGIC):
            return self._on_other(data, now)
        _, kind, sender, seq, _ = _PING.unpack(data)
        if sender == self._sender:
            return self._on_answer(seq, now)
        if kind != _ASK:
            # An answer to somebody else.
            return _NOTHING
        self._hear(now, is_answer=False)
        self._peer_asked_at = now
        self._answers += 1
        return Reaction(reply=data[:7] + _ANSWER + data[8:])

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """Pings sent."""
        return self._next_seq

    @property
    def rtt_ms(self) -> float | None:
        """The smoothed round trip of pings, milliseconds."""
        return None if self._rtt_s is None else self._rtt_s * 1000

    @property
    def patience_s(self) -> float:
        """How long an answer is awaited."""
        if self._rtt_s is None:
            return _MAX_PATIENCE_S
        return min(_MAX_PATIENCE_S, max(_MIN_PATIENCE_S, 3 * self._rtt_s))

    def is_settled(self, now: float) -> bool:
        """Whether every ping was answered, or is overdue."""
        newest = next(reversed(self._open.values()), None)
        return newest is None or now - newest.at >= self.patience_s

    def quiet_s(self, now: float) -> float | None:
        """Seconds since the peer's last ping; ``None`` if it never sent one."""
        return None if self._peer_asked_at is None else now - self._peer_asked_at

    def counts(self, now: float) -> PayloadCounts:
        """The sum so far."""
        missing = [(seq, sent) for seq, sent in self._open.items() if now - sent.at >= self.patience_s]
        overdue = [sent for _, sent in missing]
        gap_s = self._longest_gap_s
        if missing and missing[-1][0] > self._newest_answered and self._heard_at is not None:
            # Nothing ended this gap but the end.
            gap_s = max(gap_s or 0.0, now - self._heard_at)
        return PayloadCounts(
            sent=self._next_seq,
            received=self._received,
            lost=self._overflown + sum(sent.while_connected for sent in overdue),
            duplicated=self._duplicates,
            longest_gap_ms=None if gap_s is None else gap_s * 1000,
            answered=self._answers,
            returned=self._returns,
            other=self._others,
        )

    # --- inside --------------------------------------------------------------------------------------------------

    def _on_answer(self, seq: int, now: float) -> Reaction:
        sent = self._open.pop(seq, None)
        if sent is None:
            self._duplicates += seq in self._answered
            return _NOTHING
        self._answered[seq] = None
        self._newest_answered = max(self._newest_answered, seq)
        if len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)
        self._received += 1
        self._hear(now, is_answer=True)
        rtt_s = now - sent.at
        # RFC 6298, 2: one part in eight of the new sample.
        self._rtt_s = rtt_s if self._rtt_s is None else self._rtt_s + (rtt_s - self._rtt_s) / 8
        return Reaction(seq=seq, rtt_ms=rtt_s * 1000)

    def _on_other(self, data: bytes, now: float) -> Reaction:
        self._hear(now, is_answer=False)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if not self._echo or digest in self._returned:
            self._others += 1
            return _NOTHING
        self._returned[digest] = None
        if len(self._returned) > MAX_RETURNED:
            self._returned.popitem(last=False)
        self._returns += 1
        return Reaction(reply=data)

    def _hear(self, now: float, *, is_answer: bool) -> None:
        """News of the peer; where we ping, only answers count, because they went both ways."""
        if self._next_seq and not is_answer:
            return
        if self._heard_at is not None:
            self._longest_gap_s = max(self._longest_gap_s or 0.0, now - self._heard_at)
        self._heard_at = now
