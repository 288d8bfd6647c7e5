"""Which path carries data, which pair is nominated, and why?

Data flows on the first valid pair at once ("connected"); nomination settles it. Controlling (RFC 8445, 8.1.1, regular
nomination): the best valid pair is nominated when nothing better can still arrive, or after a short wait by type
(``Config.nomination_wait_s``). A better pair that becomes valid later is nominated again, with USE-CANDIDATE and a
rising NOMINATION value together (DEVIATION from 8.1.1, pinned by
test_a_better_pair_that_becomes_valid_later_is_nominated_again).

Controlled: the highest NOMINATION wins. From a peer that sends none, USE-CANDIDATE counts once per pair, and among
several nominated pairs the one that last carried the peer's data wins, else the one of highest priority (aggressive
nomination; DEVIATION from 8.1.1, which knows the priority only, pinned by
test_report_03_a_renomination_without_value_is_followed_with_the_data).

When the selected pair is lost, data goes on over the best valid pair whose consent is fresh, before that is nominated
(DEVIATION from 12.1, pinned by
test_a_socket_that_goes_takes_its_pairs_and_the_next_one_takes_over_at_once).

Carries out; which of two working paths is better is the question of ``preference.py`` and ``relay/preference.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from iceagent.candidate import CandidateType
from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.preference import Preference
from iceagent.events import Path, SelectedPathChanged
from relay.preference import Rival
from relay.upgrade import TIMINGS, Decision

__all__ = ["Selection", "SelectionListener"]

# A nomination that is not answered by then gives way to another valid pair, where there is one: three transmissions
# and an RTO.
_NOMINATION_PATIENCE_S = 4.0
# NOMINATION counts below 2**24; a session that nominates ten times a second lives 19 days.
_MAX_NOMINATION = 2**24 - 1

# Data may come over the path that the peer has just left for so long.
_ON_ITS_WAY_S = 0.5

# More do not make the time any longer that a pair is shunned.
_MAX_TIMES_LEFT = 10

_UNFINISHED = frozenset({PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS})


@dataclass(slots=True)
class _Component:
    """What is settled for one component.

    Attributes:
        current: carries data.
        selected: agreed by nomination.
        nominating: our nomination that is not answered yet, for this reason.
        due: it has not been sent yet.
        valid_since: when the first valid pair appeared.
        is_concluded: a pair was agreed by nomination once.
        moved_at: when data last moved.
        measured_moves: how often we nominated another pair because of round trips.
        answered: the highest NOMINATION of ours that the peer accepted; one without a value counts as -1.
        highest_seen: the highest NOMINATION of the peer's; 0: none.
    """

    current: CandidatePair | None = None
    selected: CandidatePair | None = None
    nominating: CandidatePair | None = None
    nominating_because: str = ""
    nominated_at: float = 0.0
    due: bool = False
    valid_since: float | None = None
    is_concluded: bool = False
    moved_at: float = 0.0
    measured_moves: int = 0
    answered: int = -1
    highest_seen: int = 0


class SelectionListener(Protocol):
    """Who carries out what was chosen."""

    def path_moved(self, old: CandidatePair | None, new: CandidatePair | None, now: float) -> None:
        """Data takes another path."""

    def pair_selected(self, selected: CandidatePair) -> None:
        """A pair was agreed by nomination."""

    def nomination_unanswered(self, pair: CandidatePair, now: float) -> None:
        """A nomination was not answered in time."""

    def nomination_superseded(self, pair: CandidatePair) -> None:
        """A nomination must not be repeated: a peer without NOMINATION would obey it."""


class Selection:
    """Chooses the path of each component.

    Attributes:
        preference: which pair is better.
    """

    __slots__ = (
        "_checklist",
        "_components",
        "_context",
        "_counter",
        "_listener",
        "_looked_at",
        "_shunned",
        "preference",
    )

    def __init__(
        self,
        context: Context,
        listener: SelectionListener,
    ) -> None:
        self._context = context
        self._listener = listener
        self._checklist: CheckList | None = None
        self._components: dict[int, _Component] = {}
        self._counter = 0
        # What is decided next is decided by what was the best then, or sooner if a shunned pair comes back.
        self._looked_at = 0.0
        self.preference = Preference()
        # Pairs that were left for another one, a moment ago.
        self._shunned: tuple[CandidatePair, ...] = ()

    def use(self, checklist: CheckList) -> None:
        """A new generation begins; the paths in use stay until it has found one (RFC 8445, 9)."""
        self._checklist = checklist
        self._counter = 0
        self._shunned = ()
        self._components = {number: _Component(current=c.current) for number, c in self._components.items()}

    # --- what happened -------------------------------------------------------------------------------------------

    def on_valid(self, pair: CandidatePair, now: float) -> None:
        """A pair answered."""
        component = self._component(pair)
        if component.valid_since is None:
            component.valid_since = now
        if pair.nominate_with is not None and not self._context.controlling:
            value, pair.nominate_with = pair.nominate_with, None
            self._accept(pair, value, now)
        current = component.current
        if current is None:
            self._move(component, pair, "the first valid pair", now)
        elif current.keys is not pair.keys:
            self._move(component, pair, "the first valid pair after the restart", now)
        elif component.selected is None and self.preference.rival(current, [pair], now):
            self._move(component, pair, "a better valid pair, before nomination", now)

    def on_nomination_answered(self, pair: CandidatePair, value: int, now: float) -> None:
        """Controlling: the peer accepted."""
        component = self._component(pair)
        if not self._context.controlling or value < component.answered or component.nominating not in (pair, None):
            # The peer has seen a later nomination, or will: it is that one's answer which counts.
            return
        component.nominating = None
        component.answered = max(value, component.answered)
        why = component.nominating_because
        self._select(component, pair, f"nominated: {why}" if why else "nominated", now)

    def on_nominated(self, pair: CandidatePair, value: int, now: float) -> bool:
        """Controlled: a check of the peer's nominates (7.3.1.5); -1: USE-CANDIDATE alone.

        Returns:
            Whether the pair needs a check of ours first: data may not go where consent is stale (RFC 7675, 5.1).
        """
        if self._context.controlling:
            return False
        if pair.state is PairState.SUCCEEDED and self._has_consent(pair, now):
            self._accept(pair, value, now)
            return False
        if pair.nominate_with is None or value > pair.nominate_with:
            pair.nominate_with = value
        return True

    def on_failed(self, pair: CandidatePair, now: float) -> None:
        """A check of this pair failed: it is valid no more; of the pair in use, only a failed nomination says so."""
        component = self._component(pair)
        was_nominating = component.nominating is pair
        if component.current is pair and not was_nominating:
            return
        self.on_lost(pair, "its nomination failed", now)
        selected = component.selected
        if was_nominating and selected is not None and selected is not pair and self._context.controlling:
            # The peer may have moved although its answer never came: call it back with a higher value.
            self._nominate(component, selected, "", now)

    def on_lost(self, pair: CandidatePair, reason: str, now: float) -> None:
        """The pair cannot carry data any more."""
        component = self._component(pair)
        # What is told of it knows its address that the peer saw, as before.
        if component.current is pair:
            self._move(component, next(iter(self.alternatives(pair, now)), None), reason, now)
        self._invalidate(component, pair, now)

    def leave(self, pair: CandidatePair, decision: Decision, now: float) -> list[CandidatePair]:
        """Data moves to another valid pair, because this one does not work; it is shunned for a while.

        Returns:
            Pairs that were valid, and are to be checked: they have not answered since the one that is left was doubted,
            and share an end or a relay with it, or would be nominated before the one that has answered. Where the
            application says that its data is eaten, answers prove nothing: what leaves from the same socket is shunned
            instead.
        """
        to = decision.to
        assert isinstance(to, CandidatePair)
        component = self._component(pair)
        unproven: list[CandidatePair] = []
        if decision.is_reported:
            beside = [p for p in self.valid_pairs(pair.component) if p.base == pair.base != to.base]
            seconds = self._note_reported(pair, beside, now)
        else:
            seconds = min(TIMINGS.shun_s * 2**pair.times_left, TIMINGS.max_shun_s)
        for each in self.valid_pairs(pair.component):
            if each in (pair, to) or each.answered_at > decision.since:
                continue
            is_shared = not decision.is_reported and each.shares_with(pair)
            if is_shared:
                self._shun(each, seconds, now)
            if is_shared or self.preference.key(each, now) > self.preference.key(to, now):
                self._invalidate(component, each, now)
                unproven.append(each)
        self._shun(pair, seconds, now)
        pair.times_left = min(pair.times_left + 1, _MAX_TIMES_LEFT)
        self._move(component, to, decision.reason, now)
        self._invalidate(component, pair, now)
        config = self._context.config
        if self._context.controlling and (config.renomination or not component.is_concluded):
            self._nominate(component, to, "", now)
        return unproven

    def oblige(self, pair: CandidatePair, reason: str, now: float, *, is_eaten: bool = False) -> bool:
        """Controlling: the peer asks for this pair, in place of whatever we prefer to it, which is shunned; data moves
        there at once. But not to one that we have left a moment ago: where both know better, ours is the last word.

        Args:
            pair, reason, now: see above.
            is_eaten: the peer's application says that its data is lost on the one in use, so that answers prove nothing
                there, nor on what else goes to the same socket of the peer's.

        Returns:
            Whether it may be nominated: it works, and nomination is not over.
        """
        component = self._component(pair)
        config = self._context.config
        if not self._context.controlling or not self._has_consent(pair, now):
            return False
        if now < pair.shunned_until:
            current = component.current
            if current is not None and current is not pair and (config.renomination or not component.is_concluded):
                # It has left what we chose; a higher value calls it back.
                self._nominate(component, current, reason, now)
            return False
        if component.is_concluded and not config.renomination:
            return False
        current = component.current
        if current is not pair:
            if is_eaten and current is not None:
                valid = self.valid_pairs(pair.component)
                beside = [p for p in valid if p.destination == current.destination != pair.destination]
                self._note_reported(current, beside, now)
                current.times_left = min(current.times_left + 1, _MAX_TIMES_LEFT)
            mine = self.preference.key(pair, now)
            for other in self.valid_pairs(pair.component):
                if self.preference.key(other, now) > mine:
                    seconds = min(TIMINGS.shun_s * 2**other.times_left, TIMINGS.max_shun_s)
                    self._shun(other, seconds, now)
                    other.times_left = min(other.times_left + 1, _MAX_TIMES_LEFT)
            self._move(component, pair, reason, now)
        if component.selected is not pair and component.nominating is not pair:
            self._nominate(component, pair, reason, now)
        return True

    def on_data(self, pair: CandidatePair, now: float) -> bool:
        """Data came in on another path than ours goes out on; whether that counts. Called for every such datagram."""
        component = self._component(pair)
        if self._context.controlling or component.highest_seen or not pair.nominated:
            return False
        self._follow(component, now)
        return True

    def on_role(self) -> None:
        """Our role changed: what we were about to nominate is the peer's business now, or ours anew."""
        for component in self._components.values():
            component.nominating = None
            component.due = False

    # --- what to do ----------------------------------------------------------------------------------------------

    def evaluate(self, now: float) -> None:
        """Decide about nominations, if that is our role."""
        self._looked_at = now
        if self._shunned:
            self._shunned = tuple(pair for pair in self._shunned if now < pair.shunned_until)
        if not self._context.controlling or self._context.config.lite or self._context.keys is None:
            return
        for number, component in self._components.items():
            self._evaluate(number, component, now)

    def next_nomination(self) -> CandidatePair | None:
        """A pair whose nomination waits to be sent."""
        return next((c.nominating for c in self._components.values() if c.due and c.nominating), None)

    def take_nomination(self, pair: CandidatePair, now: float) -> int:
        """The nomination leaves: its value, -1 for USE-CANDIDATE alone."""
        component = self._component(pair)
        component.due = False
        component.nominated_at = now
        if not self._context.config.renomination:
            return -1
        self._counter = min(self._counter + 1, _MAX_NOMINATION)
        return self._counter

    def poll_timeout(self) -> float | None:
        """When a wait for something better ends, or patience with an unanswered nomination, or a pair may come back."""
        times = [at for c in self._components.values() if (at := self._deadline(c)) is not None]
        times += [pair.shunned_until for pair in self._shunned if pair.is_valid]
        return min(times, default=None)

    # --- questions -----------------------------------------------------------------------------------------------

    def current(self, component: int) -> CandidatePair | None:
        """The pair that data goes out on."""
        found = self._components.get(component)
        return found.current if found else None

    def currents(self) -> list[CandidatePair]:
        """Every pair in use."""
        return [c.current for c in self._components.values() if c.current is not None]

    def selected(self, component: int) -> CandidatePair | None:
        """The nominated pair."""
        found = self._components.get(component)
        return found.selected if found else None

    def is_settled_on(self, pair: CandidatePair) -> bool:
        """Whether this pair is nominated and in use, so that another answer on it decides nothing."""
        found = self._components.get(pair.component)
        return found is not None and found.selected is pair and found.current is pair and pair.nominate_with is None

    def wished(self, component: int, now: float) -> CandidatePair | None:
        """Controlled: the pair that the peer had better nominate; ``None``: we are content.

        Data moved by itself, because the nominated one was lost; or the nominated one leaves from an address that is
        about to go. What both ends know is the peer's to judge: it may know more.
        """
        found = self._components.get(component)
        if found is None or self._context.controlling or not found.is_concluded or found.current is None:
            return None
        if found.selected is None:
            return found.current if self._has_consent(found.current, now) else None
        best = self.preference.best((p for p in self.valid_pairs(component) if self._has_consent(p, now)), now)
        is_ours = best is not None and self.preference.is_known_to_us_alone(best, found.selected, now)
        return best if is_ours else None

    def is_any_reported(self, component: int, now: float) -> bool:
        """Whether an application has said a moment ago that a pair of this component eats its data."""
        return any(p.component == component and now < p.reported_until for p in self._checklist or ())

    def has_rival(self, pair: CandidatePair, now: float) -> bool:
        """Whether this pair should carry data instead of the nominated one; asked whenever it has answered."""
        found = self._components.get(pair.component)
        if found is None or found.selected is None or found.selected is pair or not pair.is_valid:
            return False
        return self._rival(found, found.selected, [pair], now) is not None

    def valid_pairs(self, component: int) -> list[CandidatePair]:
        """Every valid pair of this generation, in no order."""
        return [p for p in self._checklist or () if p.component == component and p.is_valid]

    def alternatives(self, pair: CandidatePair, now: float) -> list[CandidatePair]:
        """The other pairs that may carry data at once, for their last answer is no older than consent may be (RFC 7675,
        5.1); best first: of those that stand alike, the ones that share no socket with this one.
        """
        others = [p for p in self.valid_pairs(pair.component) if p is not pair and self._has_consent(p, now)]
        return self.preference.substitutes(pair, others, now)

    def wants(self, pair: CandidatePair) -> bool:
        """Whether a check of this pair can still improve something (8.1.2 stops the others): be better than the
        selected one, or the first relay that stands by.
        """
        selected = self.selected(pair.component)
        if selected is None or self.preference.might_better(pair, selected):
            return True
        if not (pair.is_relayed and self._context.config.keep_pairs and pair.is_beside(selected)):
            return False
        return not any(p.is_beside(selected) for p in self.valid_pairs(pair.component))

    # --- inside --------------------------------------------------------------------------------------------------

    def _evaluate(self, number: int, component: _Component, now: float) -> None:
        nominating = component.nominating
        if nominating is not None and not component.due and now >= component.nominated_at + _NOMINATION_PATIENCE_S:
            gone, other = nominating, self._best(number, now, but=nominating)
            if other is not None:
                component.nominating = nominating = None
                self._listener.nomination_unanswered(gone, now)
        settled = nominating or component.selected
        if settled is None:
            best = self._best(number, now)
            is_over = component.is_concluded and not self._context.config.renomination
            if best is not None and not is_over and self._is_time(number, component, best, now):
                self._nominate(component, best, "", now)
        elif nominating is not None or self._context.config.renomination:
            rival = self._rival(component, settled, self.valid_pairs(number), now)
            if rival is not None and isinstance(rival.path, CandidatePair):
                component.measured_moves += rival.is_measured
                self._nominate(component, rival.path, rival.reason, now)

    def _rival(
        self, component: _Component, pair: CandidatePair, others: Iterable[CandidatePair], now: float
    ) -> Rival | None:
        """What should be nominated instead of this pair, where it works."""
        config = self._context.config
        by_rtt = config.liveness and config.renomination
        moves = (component.measured_moves, component.moved_at) if by_rtt else None
        return self.preference.rival(pair, others, now, moves)

    def _is_time(self, number: int, component: _Component, best: CandidatePair, now: float) -> bool:
        wait = self._wait_s(best)
        return now >= (component.valid_since or 0.0) + wait or not self._better_may_come(number, best)

    def _wait_s(self, best: CandidatePair) -> float:
        """What is metered is worth to wait for something else as long as a relay is."""
        waits = self._context.config.nomination_wait_s
        wait = waits[best.slower_type]
        return max(wait, waits[CandidateType.RELAYED]) if best.is_metered else wait

    def _better_may_come(self, number: int, best: CandidatePair) -> bool:
        return any(
            pair.component == number and pair.state in _UNFINISHED and self.preference.might_better(pair, best)
            for pair in self._checklist or ()
        )

    def _nominate(self, component: _Component, pair: CandidatePair, reason: str, now: float) -> None:
        if component.nominating is not None and component.nominating is not pair:
            self._listener.nomination_superseded(component.nominating)
        component.nominating = pair
        component.nominating_because = reason
        component.due = True
        component.nominated_at = now

    def _deadline(self, component: _Component) -> float | None:
        if not self._context.controlling or self._context.config.lite:
            return None
        if component.nominating is not None:
            nominating = component.nominating
            alternative = not component.due and self._best(nominating.component, self._looked_at, but=nominating)
            return component.nominated_at + _NOMINATION_PATIENCE_S if alternative else None
        if component.is_concluded and not self._context.config.renomination:
            # One nomination is all there is (8.1.1).
            return None
        if component.selected is None and component.valid_since is not None and component.current is not None:
            best = self._best(component.current.component, self._looked_at)
            if best is not None:
                return component.valid_since + self._wait_s(best)
        return None

    def _accept(self, pair: CandidatePair, value: int, now: float) -> None:
        """7.3.1.5, with and without NOMINATION."""
        component = self._component(pair)
        if value >= 0:
            if value > component.highest_seen:
                component.highest_seen = value
                self._select(component, pair, "nominated by the peer", now)
        elif not component.highest_seen and not pair.nominated:
            pair.nominated = True
            pair.nominated_at = now
            self._follow(component, now)

    def _follow(self, component: _Component, now: float) -> None:
        """Among several pairs nominated without NOMINATION, go where the peer's data comes from; but what comes over
        another one within half a second after the best was nominated may have left before: libwebrtc nominates a relay,
        begins DTLS there, and nominates a direct pair 10 ms later.
        """
        nominated = [
            pair
            for pair in self._checklist or ()
            if pair.nominated and self._component(pair) is component and self._has_consent(pair, now)
        ]
        if nominated:
            latest = max(nominated, key=lambda p: (p.traffic.received_at, p.rank))
            best = max(nominated, key=lambda p: p.rank)
            # What was nominated later still has no such data.
            waits_s = _ON_ITS_WAY_S if latest.nominated_at <= best.nominated_at else 0.0
            is_meant = latest.traffic.received_at > best.nominated_at + waits_s
            self._select(component, latest if is_meant else best, "nominated by the peer", now)

    def _select(self, component: _Component, pair: CandidatePair, reason: str, now: float) -> None:
        pair.nominated = True
        component.is_concluded = True
        if component.selected is pair and component.current is pair:
            return
        component.selected = pair
        if not self._context.config.lite:
            self._move(component, pair, reason, now)
        elif all(self.selected(number) for number in range(1, self._context.config.components + 1)):
            # 12.1.1: a lite agent sends once its valid list has a pair for each component.
            for each in self._components.values():
                self._move(each, each.selected, reason, now)
        self._listener.pair_selected(pair)

    def _move(self, component: _Component, pair: CandidatePair | None, reason: str, now: float) -> None:
        old, either = component.current, pair or component.current
        if old is pair or either is None:
            return
        component.current = pair
        component.moved_at = now
        self._listener.path_moved(old, pair, now)
        self._context.emit(
            SelectedPathChanged(component=either.component, old=as_path(old), new=as_path(pair), reason=reason)
        )

    def _note_reported(self, pair: CandidatePair, beside: Iterable[CandidatePair], now: float) -> float:
        """An application says that a pair eats its data, and those that leave from the same socket may as well; for how
        many seconds they are shunned.
        """
        seconds: float = min(TIMINGS.reported_shun_s * 2**pair.times_left, TIMINGS.max_reported_shun_s)
        for each in (pair, *beside):
            each.reported_until = now + seconds
            self._shun(each, seconds, now)
        return seconds

    def _shun(self, pair: CandidatePair, seconds: float, now: float) -> None:
        pair.shunned_until = now + seconds
        if pair not in self._shunned:
            self._shunned = (*self._shunned, pair)

    def _invalidate(self, component: _Component, pair: CandidatePair, now: float) -> None:
        pair.valid_local = None
        pair.nominated = False
        pair.forget_samples()
        if component.nominating is pair:
            component.nominating = None
        if component.selected is pair:
            component.selected = None
            component.valid_since = now

    def _best(self, number: int, now: float, but: CandidatePair | None = None) -> CandidatePair | None:
        return self.preference.best((p for p in self.valid_pairs(number) if p is not but), now)

    def _has_consent(self, pair: CandidatePair, now: float) -> bool:
        # Written as consent.py writes it: the two must not round differently at the instant of expiry.
        timeout_s = self._context.config.consent_timeout_s
        return pair.is_valid and pair.responded_at is not None and now < pair.responded_at + timeout_s

    def _component(self, pair: CandidatePair) -> _Component:
        found = self._components.get(pair.component)
        if found is None:
            found = self._components[pair.component] = _Component()
        return found


def as_path(pair: CandidatePair | None) -> Path | None:
    """A pair as the application sees it."""
    if pair is None:
        return None
    return Path(
        component=pair.component,
        local=pair.valid_local or pair.local,
        remote=pair.remote,
        base=pair.base,
        rtt_ms=None if pair.rtt_s is None else pair.rtt_s * 1000,
        nominated=pair.nominated,
    )
