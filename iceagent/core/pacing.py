"""When may a check leave?

Three limits, all token buckets:

1. per agent: one check per Ta (RFC 8445, 14.2), but up to ``Config.burst`` may leave at once after a pause.
   DEVIATION from 6.1.4.2, pinned by test_a_burst_of_five_may_leave_at_once_and_then_one_per_ta. An ordinary check
   leaves two tokens behind, so that a triggered check or a nomination never has to wait for one. An opener
   (``nat/openers.py``) leaves if there are tokens for all checks that wait and one of these two: it delays none.
2. per process: all agents together, 200 checks/s with a burst of 20. DEVIATION: RFC 8445, 14.2, "MUST NOT be sent more
   often than once every 5 ms", is kept on average; pinned by test_a_process_with_many_sessions_keeps_one_ceiling.
3. per remote address that never answered: 20 packets in its first minute, then 30 an hour (RFC 8445, 19.5.1: nobody
   can make us a cannon by signalling somebody else's address). DEVIATION: RFC 8489, 6.2.1 repeats Rc times; pinned by
   test_twenty_packets_in_the_first_minute_then_thirty_an_hour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iceagent.net.address import TransportAddress

__all__ = ["CheckPacer", "RemoteBudget", "TokenBucket"]

# Tokens that an ordinary check leaves for triggered checks and nominations.
ORDINARY_RESERVE = 2
# Added to a deadline, so that the token is really there when it fires.
_EPSILON = 1e-6
_FIRST_MINUTE_S = 60.0
_FIRST_MINUTE_PACKETS = 20
# Of these, so many in the first two seconds, whatever the number of our bases: the rest is for repetitions that come
# later,
# because our firewalls' entries live 30 s and the peer may not have begun yet.
_START_S = 2.0
_START_PACKETS = 12
_LATER_INTERVAL_S = 3600.0 / 30
# New early checks stop here, so that the spaced repetitions of ordinary ones fit in the first minute's packets.
_EARLY_PACKETS = 10
# Openers towards an address that never answered, from all our sockets and of all generations.
_MAX_OPENERS = 20
# Single checks in search of better paths to addresses that never answered, per second; and at once: ten pairs, twice.
_GRANTS = 4.0
_GRANTS_AT_ONCE = 20.0
# Packets that an address can save up by sending authenticated requests.
_MAX_CREDIT = 20
# Remote addresses that are remembered; more than all candidates of a session.
_MAX_REMOTES = 2048


class TokenBucket:
    """``capacity`` tokens, refilled at ``rate`` per second."""

    __slots__ = ("_at", "_capacity", "_rate", "_tokens")

    def __init__(self, *, rate: float, capacity: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._tokens = capacity
        self._at: float | None = None

    def tokens(self, now: float) -> float:
        """How many are there now."""
        if self._at is not None and now > self._at:
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(now, self._at)
        return self._tokens

    def take(self, now: float) -> None:
        """Take one; the caller looked whether it is there."""
        self.tokens(now)
        self._tokens -= 1.0

    def set_rate(self, rate: float) -> None:
        """So many per second from the next look on; what is there stays."""
        self._rate = rate

    def ready_at(self, needed: float, now: float) -> float:
        """When there will be ``needed`` tokens."""
        missing = needed - self.tokens(now)
        return now if missing <= 0 else now + missing / self._rate + _EPSILON


class CheckPacer:
    """Limits 1 and 2 for one agent.

    Args:
        ceiling: the bucket that all agents of the process share.
        burst: 1 … 5.
        ta_s: seconds.
    """

    __slots__ = (
        "_burst",
        "_ceiling",
        "_own",
        "_reserve",
    )

    def __init__(self, ceiling: TokenBucket, *, burst: int, ta_s: float) -> None:
        self._ceiling = ceiling
        self._burst = burst
        self._own = TokenBucket(rate=1 / ta_s, capacity=burst)
        self._reserve = min(ORDINARY_RESERVE, burst - 1)

    def set_ta(self, ta_s: float) -> None:
        """The peer asked for a slower pace (RFC 8839, 5.5)."""
        self._own.set_rate(1 / ta_s)

    def may_send(self, now: float, *, urgent: bool) -> bool:
        """Whether a check may leave now; ``urgent``: triggered, nominating, or one whose opener has left."""
        return self._own.tokens(now) >= self._needed(urgent) - _EPSILON and self._ceiling.tokens(now) >= 1 - _EPSILON

    def may_open(self, now: float, waiting: int) -> bool:
        """Whether an opener may leave now, before its own check and any others that wait, ``waiting`` in all."""
        # Each of those has its token then, and a triggered check has one.
        own, ceiling = self._own.tokens(now), self._ceiling.tokens(now)
        return own >= 1 + waiting + 1 - _EPSILON and ceiling >= 1 + waiting - _EPSILON

    def may_lend(self, now: float) -> bool:
        """Whether an opener may leave that should not wait: our own bucket may be overdrawn by what it holds, once."""
        return self._own.tokens(now) >= 1 - self._burst - _EPSILON and self._ceiling.tokens(now) >= 1 - _EPSILON

    def take(self, now: float) -> None:
        """A check or an opener leaves."""
        self._own.take(now)
        self._ceiling.take(now)

    def ready_at(self, now: float, *, urgent: bool) -> float:
        """When the next check may leave."""
        return max(self._own.ready_at(self._needed(urgent), now), self._ceiling.ready_at(1, now))

    def _needed(self, urgent: bool) -> float:
        return 1 if urgent else 1 + self._reserve


@dataclass(slots=True)
class _Remote:
    first_at: float
    packets: int = 0
    later_at: float = 0.0
    credit: int = 0
    openers: int = 0


@dataclass(slots=True)
class RemoteBudget:
    """Limit 3. An address that answered a check is free of it; an authenticated request earns one packet."""

    _remotes: dict[TransportAddress, _Remote] = field(default_factory=dict)
    _answered: dict[TransportAddress, None] = field(default_factory=dict)
    # Made for the first one that is needed.
    _grants: TokenBucket | None = None

    def asked(self, remote: TransportAddress, now: float) -> None:
        """An authenticated request came from there: it may be a replay with a forged source, but one for one is no
        cannon.
        """
        if remote in self._answered:
            return
        if remote not in self._remotes:
            _make_room(self._remotes)
        entry = self._remotes.setdefault(remote, _Remote(now))
        entry.credit = min(entry.credit + 1, _MAX_CREDIT)

    def grant(self, remote: TransportAddress, now: float) -> None:
        """One more may go there: a peer that we are connected with, and that is talking to us, is looked for
        (``relay/upgrade.py`` says how often). But not at any rate the peer likes, who may have named others' addresses.
        """
        if self._grants is None:
            self._grants = TokenBucket(rate=_GRANTS, capacity=_GRANTS_AT_ONCE)
        if self._grants.tokens(now) >= 1:
            self._grants.take(now)
            self.asked(remote, now)

    def has_answered(self, remote: TransportAddress) -> bool:
        """Whether a check of ours was ever answered from there."""
        return remote in self._answered

    def answered(self, remote: TransportAddress) -> None:
        """It is a peer of ours: no limit any more."""
        if remote not in self._answered:
            _make_room(self._answered)
            self._answered[remote] = None
        self._remotes.pop(remote, None)
        if not self._remotes:
            # An emptied dict keeps its table until it is cleared.
            self._remotes.clear()

    def allows(self, remote: TransportAddress, now: float, *, early: bool = False) -> bool:
        """Whether one more packet may go there."""
        if remote in self._answered:
            return True
        entry = self._remotes.get(remote)
        if entry is None or (entry.credit and not early):
            return True
        if now - entry.first_at < _FIRST_MINUTE_S:
            if now - entry.first_at < _START_S:
                return entry.packets < (_EARLY_PACKETS if early else _START_PACKETS)
            return not early and entry.packets < _FIRST_MINUTE_PACKETS
        return not early and now >= entry.later_at

    def spend(self, remote: TransportAddress, now: float) -> None:
        """A packet goes there."""
        if remote in self._answered:
            return
        if remote not in self._remotes:
            _make_room(self._remotes)
        entry = self._remotes.setdefault(remote, _Remote(now))
        if entry.credit:
            entry.credit -= 1
            return
        entry.packets += 1
        if now - entry.first_at >= _FIRST_MINUTE_S:
            entry.later_at = now + _LATER_INTERVAL_S

    def may_open(self, remote: TransportAddress) -> bool:
        """Whether an opener may go towards it: it dies on the way, but a peer may signal anew without end."""
        entry = self._remotes.get(remote)
        return remote in self._answered or entry is None or entry.openers < _MAX_OPENERS

    def opened(self, remote: TransportAddress, now: float) -> None:
        """An opener goes towards it."""
        if remote in self._answered:
            return
        if remote not in self._remotes:
            _make_room(self._remotes)
        self._remotes.setdefault(remote, _Remote(now)).openers += 1

    def next_at(self, remote: TransportAddress, now: float) -> float:
        """When :meth:`allows` will say yes."""
        if self.allows(remote, now):
            return now
        entry = self._remotes[remote]
        if now - entry.first_at < _START_S and entry.packets < _FIRST_MINUTE_PACKETS:
            return entry.first_at + _START_S
        return max(entry.first_at + _FIRST_MINUTE_S, entry.later_at)


def _make_room(remotes: dict[TransportAddress, Any]) -> None:
    """Forget the oldest of too many: to come back to it, somebody has to signal 2,048 others, checked one per Ta."""
    if len(remotes) >= _MAX_REMOTES:
        del remotes[next(iter(remotes))]
