"""Should data stay on its path, or move, and why? When are better ones looked for?

Paths are opaque here: something has been heard there, something was asked and answered, so long is a round trip. Who
knows more (``iceagent/core/liveness.py``) does what is decided. Pure; all times are seconds of one monotonic clock.

Liveness is not consent. Whether the peer still wants our data is asked every five seconds, and may go unanswered for
thirty (RFC 7675, 5.1); a path that has died is to be left in less than two. So a path that carries data is *in doubt*
when something that should have come back did not, or when somebody says so. Then it is asked, and with it those that
stand by::

    trusted ──suspicion──▶ in doubt ──it answers──▶ trusted
                              ├── it does not, another one does ──▶ data moves there
                              └── nobody answers ──▶ lost: data stays, and it is asked on

A suspicion that was wrong makes the next one slower: there are applications that think before they answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

__all__ = ["TIMINGS", "Decision", "Path", "PathWatch", "Search", "Timings", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Every time that decides, and why it is what it is. Seconds, or round trips (``_rtts``)."""

    sent_within_s: float = 2.0
    """Nobody expects an answer to what was sent longer ago: an application that has nothing to say costs nothing."""
    quiet_s: float = 0.3
    """So long nothing comes back before that is suspicious: three datagrams of an application that sends ten a second,
    fifteen of a call."""
    quiet_rtts: float = 3.0
    """The same over long ways."""
    max_quiet_s: float = 4.8
    """What wrong suspicions make of it at most: by then a consent check is due anyway."""
    patience_lasts_s: float = 10.0
    """So long without a wrong suspicion, it halves."""
    answer_s: float = 0.5
    """A check whose answer takes longer is lost: the RTO of RFC 8489, 6.2.1."""
    answer_rtts: float = 4.0
    """The same over long ways."""
    ask_again_s: float = 0.2
    """From the first check of a doubtful path to the second: one alone is lost too often."""
    ask_on_s: float = 0.5
    """From every further one to the next, while data is sent."""
    max_ask_on_s: float = 4.0
    """Where none is, each pause is twice the one before, up to what consent checks have (RFC 7675, 5.1)."""
    urgent_checks: int = 2
    """So many checks without an answer are enough, where data is sent and nothing at all has come since."""
    patient_checks: int = 4
    """So many are, where something still comes in, or nobody sends: one in five is lost where each way loses a tenth,
    and data that wanders between two paths serves nobody."""
    ripe_s: float = 0.2
    """After the last of them, while another path has answered, data moves."""
    ripe_rtts: float = 2.0
    """The same over long ways."""
    lost_s: float = 1.5
    """Nobody answers for so long: the path is lost. Tailscale takes 6.5 s, iroh 15 s."""
    lost_rtts: float = 4.0
    """The same over long ways."""
    elsewhere_s: float = 0.1
    """Data of the peer comes over another path, and for so long none over this one: the peer has left it."""
    hearsay_every_s: float = 4.0
    """What a stranger can pretend (ICMP), and what may be in order (the peer prefers another path), makes us ask so
    often only, as RFC 7675, 5.1, has it for consent checks."""
    rtt_s: float = 0.1
    """Of a path whose round trip is not known."""
    shun_s: float = 5.0
    """A path that was left is not returned to before this; each time twice as long."""
    max_shun_s: float = 60.0
    """Whatever it did: networks change."""
    search_s: float = 2.5
    """Between two looks for a direct path, while data goes over a relay, in the first minute: pion has 3 s, iroh 5."""
    search_eager_s: float = 60.0
    """That minute."""
    search_later_s: float = 10.0
    """After it."""
    search_direct_s: float = 60.0
    """Between two looks for a better path than a direct one."""
    search_again_s: float = 0.5
    """At least, whatever happens: a network that comes up brings many news."""
    search_idle_s: float = 45.0
    """So long after the last datagram nobody looks any more; with the next one, somebody does at once."""
    pathless_s: float = 1.0
    """No path is left: so long another one may take to be found, on a new interface or by the peer."""
    followed_s: float = 2.0
    """Data moved away from a path that died: so long it may take until the peer's comes again."""
    follow_s: float = 0.5
    """So long the peer sends over another path, and nothing over this one, before who nominates follows it."""
    follow_others_s: float = 5.0
    """The same with a peer that knows no path messages: libwebrtc goes to what was nominated only when a check of its
    own is answered there, which may take it three seconds."""
    reported_shun_s: float = 60.0
    """One of which the application says that it eats data is not returned to before this, nor what else leaves from the
    same socket: checks cannot tell when it is over. Each time twice as long."""
    max_reported_shun_s: float = 3600.0
    """At most."""
    keep_s: float = 15.0
    """Between two checks of a path that stands by: Tr of RFC 8445, 11. NATs forget after 20 to 30 s at the earliest,
    but for those below."""
    keep_short_s: tuple[float, ...] = (10.0, 5.0)
    """The same where a binding is seen to die in between; 5 s is what the path in use has (RFC 7675, 5.1)."""
    keep_again_s: float = 2.0
    """One that was not answered may be repeated after this."""
    keep_again_latest_s: float = 6.0
    """And is by then: two lost ones in a row leave what answers the third time its consent."""
    keep_idle_s: float = 300.0
    """So long after the last datagram nothing stands by any more: what falls silent then finds another path first."""
    faster_s: float = 0.005
    """A path of the same standing is left for one whose round trip is shorter by so much: less is noise of the radio or
    the scheduler, and nobody hears it. Tailscale has the same."""
    faster_share: float = 0.1
    """And by so much of it: over long ways, more is noise."""
    as_fast_s: float = 0.001
    """It is gone back to, where its priority is higher, once it is no slower than this: far below what it was left
    for, so that nothing goes to and fro between the two."""
    as_fast_share: float = 0.02
    """The same over long ways."""
    rtt_samples: int = 3
    """Of each path, before round trips say anything: one may have waited behind a lost packet or a sleeping radio."""
    rtt_lasts_s: float = 30.0
    """And the last of them no older: as long as consent lasts."""
    clean: float = 0.05
    """What loses more of its checks than this is not gone to for a round trip or a priority: seven answers after a lost
    one it is forgotten."""
    lossy: float = 0.25
    """What loses so many is left for one that loses none: two in four, or a tenth each way for long. A voice breaks up
    before that."""
    lossy_s: float = 0.1
    """If that is slower by this at most: twice the way is worse than a tenth of it lost."""
    faster_pause_s: float = 30.0
    """After any move, before one for the sake of a round trip or of losses: the samples of both come from after it."""
    max_faster_pause_s: float = 600.0
    """Each such move doubles that pause, up to this: where our own data makes a path slow, the next one becomes slow,
    too."""


TIMINGS = Timings()


class Path(Protocol):
    """What is known of one path. Times are 0.0 for what never happened."""

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip; ``None``: not known."""

    @property
    def heard_at(self) -> float:
        """When anything of the peer's last came over it: data, a check of its, an answer."""

    @property
    def answered_at(self) -> float:
        """When a check of ours was last answered."""

    @property
    def asked_at(self) -> float:
        """When the first check left that was not answered, nor any after it."""

    @property
    def sent_at(self) -> float:
        """When data last left."""

    @property
    def unanswered_at(self) -> float:
        """When data first left since data last came in."""


class Search:
    """When are better paths than the present one looked for? As long as data flows, and for ever.

    Args:
        now: data takes the present path since then.
        is_relayed: that is the worst kind.
        timings: see there.
    """

    __slots__ = ("_is_relayed", "_looked_at", "_next_at", "_since", "_timings")

    def __init__(self, now: float, *, is_relayed: bool, timings: Timings = TIMINGS) -> None:
        self._timings = timings
        self._is_relayed = is_relayed
        self._since = now
        self._looked_at = now
        self._next_at = math.inf

    def is_due(self, flowed_at: float, now: float) -> bool:
        """Whether to look now.

        Args:
            flowed_at: when data last went either way.
            now: seconds.
        """
        if now < self._next_at:
            return False
        if now >= flowed_at + self._timings.search_idle_s:
            self._next_at = math.inf
            return False
        self._looked_at = now
        self._next_at = now + self._pause_s(now)
        return True

    def wake(self, now: float) -> None:
        """Data flows again: if a look is overdue, it is due now."""
        if self._next_at == math.inf:
            self._next_at = max(now, self._looked_at + self._pause_s(now))

    def looked(self, now: float) -> None:
        """Somebody has looked: as if it had been us."""
        self._looked_at = now
        if self._next_at != math.inf:
            self._next_at = now + self._pause_s(now)

    def hasten(self, now: float) -> None:
        """There may be something new to find: while data goes over a relay, the next look is due at once."""
        if self._is_relayed and self._next_at != math.inf:
            self._next_at = max(now, self._looked_at + self._timings.search_again_s)

    def poll_timeout(self) -> float:
        """When :meth:`is_due` may say yes; infinity: not before :meth:`wake`."""
        return self._next_at

    def _pause_s(self, now: float) -> float:
        timings = self._timings
        if not self._is_relayed:
            return timings.search_direct_s
        return timings.search_s if now < self._since + timings.search_eager_s else timings.search_later_s


class Verdict(Enum):
    """What is to be done."""

    STAY = "stay"
    ASK = "ask"
    MOVE = "move"
    LOST = "lost"
    STUCK = "stuck"
    TRUST = "trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done, and why.

    Attributes:
        verdict: ``STAY``: nothing. ``ASK``: send a check over the path and one over each that stands by. ``MOVE``: data
            goes over ``to`` from now on. ``LOST``: nobody answers; told once in an episode, whose checks go on.
            ``STUCK``: the application reports loss, the path answers, and no other one does; the doubt is over.
            ``TRUST``: the doubt is over.
        reason: for people.
        to: a path.
        since: of ``MOVE``: who has not answered since then, was not asked, or does not.
        is_reported: the application said it.
    """

    verdict: Verdict
    reason: str = ""
    to: Path | None = None
    since: float = 0.0
    is_reported: bool = False


_STAY = Decision(verdict=Verdict.STAY)


@dataclass(slots=True)
class _Doubt:
    """An episode.

    Attributes:
        reason: what is suspicious.
        began_at: since then answers count.
        silent_since: since when the path may have been dead.
        is_reported: the application says that its data is lost: an answer to a check proves nothing.
        is_silence: it was our own suspicion.
        asked: when the first checks left, and how many there were; the next one leaves at ``next_at``.
        is_lost: that was told.
    """

    reason: str
    began_at: float
    silent_since: float
    is_reported: bool = False
    is_silence: bool = False
    asked: list[float] = field(default_factory=list)
    count: int = 0
    next_at: float = 0.0
    is_lost: bool = False


class PathWatch:
    """Watches the path that carries data, one component's, as long as it is the same one.

    Args:
        path: see :class:`Path`; it is read whenever something is decided.
        now: data goes there since then.
        timings: see there.
    """

    __slots__ = ("_alarm_at", "_doubt", "_hearsay_at", "_is_awake", "_looked_at", "_patience", "_timings", "path")

    def __init__(self, path: Path, now: float, timings: Timings = TIMINGS) -> None:
        self.path = path
        self._timings = timings
        self._doubt: _Doubt | None = None
        self._is_awake = False
        self._looked_at = now
        self._patience = 1.0
        self._alarm_at = -math.inf
        self._hearsay_at = -math.inf

    @property
    def in_doubt(self) -> bool:
        """Whether it has to prove that it works."""
        return self._doubt is not None

    @property
    def is_reported(self) -> bool:
        """Whether the application reports that its data does not arrive here."""
        return self._doubt is not None and self._doubt.is_reported

    @property
    def is_lost(self) -> bool:
        """Whether nobody answers, here or elsewhere."""
        return self._doubt is not None and self._doubt.is_lost

    @property
    def is_awake(self) -> bool:
        """Whether data is being sent; where it is not, :meth:`wake` is to be called with the next datagram."""
        return self._is_awake

    def wake(self, now: float) -> None:
        """Data leaves again, after a pause."""
        self._is_awake = True
        self._looked_at = now

    def doubt(self, reason: str, now: float, *, is_hearsay: bool = False) -> bool:
        """Somebody says that the path does not work. Nothing follows while it is in doubt already.

        Args:
            reason: for people.
            now: seconds.
            is_hearsay: it may be untrue, or in order.

        Returns:
            Whether an episode began.
        """
        if self._doubt is not None:
            return False
        if is_hearsay:
            if now < self._hearsay_at + self._timings.hearsay_every_s:
                return False
            self._hearsay_at = now
        self._doubt = _Doubt(reason, now, now, next_at=now)
        return True

    def report_loss(self, now: float) -> None:
        """The application says that its data does not arrive, whatever is answered."""
        if self._doubt is None or not self._doubt.is_reported:
            self._doubt = _Doubt("the application reports loss", now, now, is_reported=True, next_at=now)

    def look(self, others: Sequence[Path], now: float) -> Decision:
        """Decide; to be called when :meth:`poll_timeout` says so, after an answer, and again until it says ``STAY``.

        Args:
            others: the paths that stand by, best first.
            now: seconds.
        """
        self._looked_at = now
        timings, path = self._timings, self.path
        self._is_awake = now < path.sent_at + timings.sent_within_s
        if self._doubt is None:
            self._doubt = self._suspicion(now)
            if self._doubt is None:
                return _STAY
        doubt = self._doubt
        if path.answered_at > doubt.began_at and not doubt.is_reported:
            self._doubt = None
            if doubt.is_silence and not doubt.is_lost:
                self._patience = min(2 * self._current_patience(now), timings.max_quiet_s / timings.quiet_s)
                self._alarm_at = now
            return Decision(verdict=Verdict.TRUST, reason="the path answers")
        other = next((each for each in others if each.answered_at > doubt.began_at), None)
        if other is not None and (doubt.is_lost or doubt.is_reported or now >= self._ripe_at(doubt)):
            self._doubt = None
            return Decision(
                verdict=Verdict.MOVE,
                reason=f"{doubt.reason}; another path answers",
                to=other,
                since=doubt.began_at,
                is_reported=doubt.is_reported,
            )
        if now >= self._lost_at(doubt) and not doubt.is_lost:
            if path.answered_at > doubt.began_at:
                self._doubt = None
                return Decision(verdict=Verdict.STUCK, reason=f"{doubt.reason}; no other path answers")
            doubt.is_lost = True
            return Decision(verdict=Verdict.LOST, reason=f"{doubt.reason}; no path answers")
        if now >= doubt.next_at:
            doubt.count += 1
            if doubt.count <= timings.patient_checks:
                doubt.asked.append(now)
            doubt.next_at = now + self._pause_s(doubt)
            return Decision(verdict=Verdict.ASK, reason=doubt.reason)
        return _STAY

    def poll_timeout(self) -> float:
        """When to look again; infinity: only when something happens."""
        doubt, path = self._doubt, self.path
        if doubt is not None:
            ends = math.inf if doubt.is_lost else self._lost_at(doubt)
            ripe = self._ripe_at(doubt)
            return min(doubt.next_at, ends, ripe if ripe > self._looked_at else math.inf)
        at = math.inf
        if path.asked_at > path.answered_at:
            at = path.asked_at + self._answer_s()
        if self._is_awake:
            quiet = self._quiet_s(self._looked_at)
            silent = path.unanswered_at if path.unanswered_at > path.heard_at else self._looked_at
            at = min(at, silent + quiet)
        return at

    # --- inside --------------------------------------------------------------------------------------------------

    def _suspicion(self, now: float) -> _Doubt | None:
        path = self.path
        silent = path.unanswered_at
        if self._is_awake and silent > path.heard_at and now >= silent + self._quiet_s(now):
            reason = f"nothing came back for {now - silent:.1f} s"
            return _Doubt(reason, now, silent, is_silence=True, next_at=now)
        if path.asked_at > path.answered_at and now >= path.asked_at + self._answer_s():
            return _Doubt("a check was not answered", now, path.asked_at, next_at=now)
        return None

    def _pause_s(self, doubt: _Doubt) -> float:
        timings = self._timings
        if doubt.count == 1:
            return timings.ask_again_s
        if self._is_awake:
            return timings.ask_on_s
        return min(timings.ask_on_s * 2.0 ** min(doubt.count - 2, 10), timings.max_ask_on_s)

    def _rtt_s(self) -> float:
        rtt_s = self.path.rtt_s
        return self._timings.rtt_s if rtt_s is None else rtt_s

    def _current_patience(self, now: float) -> float:
        halvings = min((now - self._alarm_at) // self._timings.patience_lasts_s, 10)
        return max(1.0, self._patience / 2**halvings)

    def _quiet_s(self, now: float) -> float:
        timings = self._timings
        least = max(timings.quiet_s, timings.quiet_rtts * self._rtt_s())
        return max(least, min(least * self._current_patience(now), timings.max_quiet_s))

    def _answer_s(self) -> float:
        return max(self._timings.answer_s, self._timings.answer_rtts * self._rtt_s())

    def _ripe_at(self, doubt: _Doubt) -> float:
        timings = self._timings
        is_urgent = doubt.is_reported or (self._is_awake and self.path.heard_at <= doubt.began_at)
        needed = timings.urgent_checks if is_urgent else timings.patient_checks
        if len(doubt.asked) < needed:
            return math.inf
        return doubt.asked[needed - 1] + max(timings.ripe_s, timings.ripe_rtts * self._rtt_s())

    def _lost_at(self, doubt: _Doubt) -> float:
        timings = self._timings
        silent_for = max(timings.lost_s, timings.lost_rtts * self._rtt_s())
        return max(doubt.silent_since + silent_for, self._ripe_at(doubt))
