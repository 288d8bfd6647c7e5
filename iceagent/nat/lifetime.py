"""How long does a NAT, or a firewall, keep a binding that nobody uses, and what keeps it?

RFC 5780, 4.6: a socket X asks the far end once, is silent for T seconds, and then another socket Y asks for an answer
to the address that X was seen at (RESPONSE-PORT). If that arrives at X, the binding has lived for T. The RFC halves an
interval over and over, with one binding; here a round of bindings of different T is looked at side by side
(``silences.py``), and a round ends with the first binding that is found dead, so that a lifetime of two minutes is
known after two minutes, or after four where it is an unusual one.

Three things are measured at the same time:

- ``answered``: the binding of a conversation. X is answered twice, 2.5 s apart, since Linux keeps a flow longer that is
  answered and older than two seconds ("stream").
- ``unanswered``: X's request asks for its answer to Y, so that nothing ever comes in to X, and Y is told where X is.
- whether a one-way keepalive keeps a binding. One X sends indications, which nobody answers, and another one requests;
  both are looked at when they are older than a binding that nobody uses. Where the first is dead and the second is not,
  somebody on the way ignores one-way heartbeats.

A look is four requests of Y's, 0.4 s apart. Whichever is answered, the binding lived when the first one left: what that
asked for may have refreshed it, and then been lost. Beside it Y asks for an answer to itself: where that does not come
either, the look says nothing. A silence runs from the last packet that X sent to the look, and is too short by less
than a round trip where packets that come in do not refresh (RFC 4787, REQ-6 leaves that open).

The far end has to be on the Internet: Y is a stranger to a NAT. What does not answer RESPONSE-PORT is told apart from
what does not answer. DEVIATION: RFC 8489, 6.2 and 6.2.1: each request is a transaction of its own, and 500 ms and ten
outstanding transactions are no limit; pinned by test_at_most_two_rounds_of_sockets_are_open.

What is asked, and which responses count, is in ``lifetime_requests.py``. Pure: sockets are asked for by
:class:`SocketsWanted`, and given by :meth:`LifetimeProbe.add`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from random import Random

from iceagent.nat.lifetime_binding import Binding, Stage
from iceagent.nat.lifetime_report import (
    LifetimeFailed,
    LifetimeMeasured,
    LifetimeReport,
    SilenceProbed,
    SocketsDone,
    SocketsWanted,
    Use,
    verdict,
)
from iceagent.nat.lifetime_requests import Aim, Answer, Outcome, Request, Requests
from iceagent.nat.silences import Search
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import RESPONSE_PORT, IntegrityKey

__all__ = ["LifetimeProbe"]

TRIES_S = (0.4, 0.4, 0.4, 1.0)
"""Seconds after each request of a look; the last one's answer is waited for longest."""

SETUP_TRIES_S = (0.5, 1.0, 1.0, 1.0)
"""The same of a request that makes or refreshes a binding."""

STREAM_S = 2.5
"""Linux, nf_conntrack_proto_udp.c: a flow is a stream when it is answered and goes on after two seconds."""

PACE_S = 0.02
"""Between two bindings that begin: 50 packets a second."""

HEARTBEAT_S = 5.0
"""Between keepalives; a third of the lifetime where that is less than 15 s."""

MIN_HEARTBEAT_S = 0.2

ASKER_S = 2.0
"""Between requests of Y's for itself, which keep its own binding."""

CONTROL_S = 0.1
"""At least between two requests of Y's for itself, whatever asks for them."""

PATIENCE_S = 20.0
"""The far end is asked every two seconds at least; without an answer for so long, it is not there any more."""

MARGIN_S = 1.0
"""So much older than a dead binding is one that is kept when it is looked at."""

OUTPUT_LIMIT = 4_096
"""Events that wait for the shell, which takes them after every input. The oldest go first."""


class LifetimeProbe:
    """Measures through one far end. A core (``iceagent/net/core.py``).

    Args:
        server: the far end.
        asker: Y, a socket of ours.
        system_rng: for transaction ids.
        key: signs requests; responses have to be signed with it, too.
        max_s: the longest silence that is tried, 1 or more.
        timeout_s: seconds that the far end has for its first answer.

    Attributes:
        counters: ``sent``, ``answers``, ``network errors``, and ``dropped: <reason>``.
    """

    def __init__(
        self,
        server: TransportAddress,
        asker: TransportAddress,
        system_rng: Random,
        *,
        key: IntegrityKey | None = None,
        max_s: float = 300.0,
        timeout_s: float = 10.0,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._asker = asker
        self._timeout_s = timeout_s
        self._searches = {use: Search(max_s) for use in (Use.ANSWERED, Use.UNANSWERED)}
        self._mapped: TransportAddress | None = None
        self._give_up_at: float | None = None
        self._control_at: float | None = None
        self._control_sent_at = float("-inf")
        self._heard_at = float("-inf")
        self._bindings: list[Binding] = []
        # What the sockets are for that were asked for: in the order of the events.
        self._planned: deque[list[tuple[Use, float]]] = deque()
        self._period_s = HEARTBEAT_S
        self._kept: dict[Use, bool | None] = {}
        self._is_checked = False
        self._is_over = False
        self._events: deque[Event] = deque(maxlen=OUTPUT_LIMIT)
        self._requests = Requests(server, key, system_rng, self.counters, self._events)

    # --- commands ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Ask the far end, from Y, where it sees us; everything else follows."""
        self._give_up_at = now + self._timeout_s
        self._control(now)

    def add(self, bases: Sequence[TransportAddress], now: float) -> None:
        """Sockets that were asked for; fewer than that are fine, but no measurement is without any.

        Args:
            bases: fresh ones.
            now: seconds.
        """
        planned = self._planned.popleft()
        if len(bases) < len(planned):
            self._fail(f"{len(planned)} sockets are needed, and {len(bases)} could be opened")
            return
        for number, ((use, silence_s), base) in enumerate(zip(planned, bases, strict=False)):
            self._bindings.append(Binding(use, base, now + number * PACE_S, silence_s))
        self.handle_timeout(now)

    # --- the contract ------------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """A response, to where it was asked for or not."""
        answer = self._requests.receive(datagram)
        if answer is not None and answer.outcome is Outcome.SUCCESS:
            self._on_success(answer, now)
        elif answer is not None and not self._is_checked:
            self._on_refusal(answer)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Remembered, for who asks why nothing came."""
        self.counters["network errors"] += 1
        self._requests.complaint = errno_in_words(errno)

    def handle_timeout(self, now: float) -> None:
        """Go on with every binding, and with what they show."""
        if self._is_over:
            return
        if self._give_up_at is not None and now >= self._give_up_at:
            self._fail(self._requests.complaint or "no answer")
            return
        if self._control_at is not None and now >= self._control_at:
            self._control(now)
        if self._mapped is not None and now - self._heard_at > PATIENCE_S:
            why = f" ({self._requests.complaint})" if self._requests.complaint else ""
            self._fail(f"it has not answered for {PATIENCE_S:.0f} s{why}")
            return
        for binding in self._bindings:
            while binding.due_at is not None and now >= binding.due_at and not self._is_over:
                self._go_on(binding, now)
        if not self._is_over:
            self._clear(now)

    def poll_timeout(self) -> float | None:
        """The next request of any binding."""
        if self._is_over:
            return None
        due = [binding.due_at for binding in self._bindings]
        return min((at for at in (*due, self._give_up_at, self._control_at) if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """A request, or an indication."""
        return self._requests.transmits.popleft() if self._requests.transmits else None

    def poll_event(self) -> Event | None:
        """One of those above, or :class:`PacketDropped`."""
        return self._events.popleft() if self._events else None

    # --- one binding -------------------------------------------------------------------------------------------------

    def _go_on(self, binding: Binding, now: float) -> None:
        if binding.stage is Stage.PAUSE:
            binding.stage, binding.tries = Stage.SECOND, 0
        elif binding.stage is Stage.WAIT and not binding.is_kept:
            binding.stage, binding.tries, binding.looked_at = Stage.LOOK, 0, now
        if binding.stage in (Stage.FIRST, Stage.SECOND):
            self._set_up(binding, now)
        elif binding.stage is Stage.WAIT:
            self._beat(binding, now)
        elif binding.stage is Stage.LOOK:
            self._look(binding, now)

    def _set_up(self, binding: Binding, now: float) -> None:
        if binding.tries == len(SETUP_TRIES_S):
            self._finish(binding, None, now)
            return
        if not binding.tries:
            binding.began_at = now
        binding.due_at = now + SETUP_TRIES_S[binding.tries]
        binding.tries += 1
        binding.refreshed_at = now
        if binding.use is Use.UNANSWERED:
            assert self._mapped is not None
            # Y is to be where it was, if its own binding is short-lived; a repetition uses what this one finds out.
            self._control(now)
            request = Request(Aim.SETUP, binding, self._asker)
            self._requests.ask(binding.base, request, (RESPONSE_PORT, self._mapped.port))
        else:
            self._requests.ask(binding.base, Request(Aim.SETUP, binding, binding.base))

    def _on_set_up(self, binding: Binding, mapped: TransportAddress, now: float) -> None:
        binding.heard_at = now
        if binding.stage not in (Stage.FIRST, Stage.SECOND):
            return
        binding.mapped = mapped
        if not self._is_checked and self._mapped is not None and mapped.host != self._mapped.host:
            self._fail(f"our sockets have different addresses outside, {self._mapped.host} and {mapped.host}")
        elif binding.stage is Stage.FIRST and binding.use is not Use.UNANSWERED and not binding.is_first:
            binding.stage, binding.due_at = Stage.PAUSE, max(now, binding.began_at + STREAM_S)
        else:
            binding.stage = Stage.WAIT
            binding.due_at = now if binding.is_kept else binding.refreshed_at + binding.silence_s

    def _beat(self, binding: Binding, now: float) -> None:
        """Of a binding that is kept: the next keepalive."""
        binding.due_at = now + self._period_s
        binding.refreshed_at = now
        if binding.use is Use.KEPT:
            self._requests.ask(binding.base, Request(Aim.SETUP, binding, binding.base))
        else:
            self._requests.indicate(binding.base)

    def _look(self, binding: Binding, now: float) -> None:
        if binding.tries == len(TRIES_S):
            # Where the far end has answered nothing since, it has said nothing.
            self._finish(binding, False if self._heard_at >= binding.looked_at else None, now)
            return
        assert binding.mapped is not None
        self._control(now)
        request = Request(Aim.LOOK, binding, binding.base)
        self._requests.ask(self._asker, request, (RESPONSE_PORT, binding.mapped.port))
        binding.due_at = now + TRIES_S[binding.tries]
        binding.tries += 1

    def _finish(self, binding: Binding, is_alive: bool | None, now: float) -> None:
        """A binding was looked at, or could not be made."""
        is_seen = binding.stage is Stage.LOOK
        binding.stage, binding.due_at = Stage.DONE, None
        if binding.is_first:
            self._on_first_look(is_alive)
            return
        since = min(binding.heard_at, binding.looked_at) if binding.is_kept else binding.refreshed_at
        silence_s = binding.looked_at - since
        search = self._searches.get(binding.use)
        if search is None:
            self._kept[binding.use] = is_alive
        elif is_alive is not None:
            search.note(silence_s, is_alive=is_alive)
        if is_seen:
            bracket = None if search is None else search.bracket
            event = SilenceProbed(use=binding.use, silence_s=silence_s, is_alive=is_alive, bracket=bracket)
            self._events.append(event)

    # --- all of them -------------------------------------------------------------------------------------------------

    def _clear(self, now: float) -> None:
        """Let go of what has served, and see what is next."""
        for use, search in self._searches.items():
            dead_s = search.bracket.dead_s
            if dead_s is not None:
                # What is to be silent for longer would show nothing more.
                for binding in self._bindings:
                    if binding.use is use and binding.silence_s > dead_s:
                        binding.stage, binding.due_at = Stage.DONE, None
        done = tuple(binding.base for binding in self._bindings if binding.stage is Stage.DONE)
        if done:
            self._bindings = [binding for binding in self._bindings if binding.stage is not Stage.DONE]
            self._events.append(SocketsDone(bases=done))
        if self._is_checked and not self._planned:
            self._next_rounds(now)

    def _next_rounds(self, now: float) -> None:
        busy = {binding.use for binding in self._bindings}
        wanted = [
            (use, silence_s)
            for use, search in self._searches.items()
            if use not in busy
            for silence_s in search.next_round()
        ]
        if wanted:
            self._want(wanted)
        elif not busy - {Use.ONE_WAY, Use.KEPT}:
            self._compare(now)

    def _compare(self, now: float) -> None:
        """Both lifetimes are known: what of those that were kept?"""
        bracket = self._searches[Use.ANSWERED].bracket
        if bracket.dead_s is None:
            self._report(None, f"nothing has died in {bracket.alive_s:.0f} s, so nothing can be said of keepalives")
        elif self._period_s > (period_s := max(MIN_HEARTBEAT_S, bracket.alive_s / 3)):
            # They were too slow for a binding that lives so short.
            self._period_s = period_s
            self._kept.clear()
            for binding in self._bindings:
                binding.stage, binding.due_at = Stage.DONE, None
            self._want([(Use.ONE_WAY, 0.0), (Use.KEPT, 0.0)])
            self._clear(now)
        elif len(self._kept) == 2:
            self._report(*verdict(self._kept[Use.ONE_WAY], self._kept[Use.KEPT], bracket.dead_s))
        else:
            self._look_at_kept(bracket.dead_s, now)

    def _look_at_kept(self, dead_s: float, now: float) -> None:
        for binding in self._bindings:
            if binding.stage is not Stage.WAIT:
                continue
            # Of both, the same age: that of the one that has heard nothing.
            old = [each.heard_at for each in self._bindings if each.use is Use.ONE_WAY]
            old_at = max(old, default=0.0) + dead_s + MARGIN_S
            if now >= old_at:
                binding.stage, binding.tries, binding.looked_at, binding.due_at = Stage.LOOK, 0, now, now
            else:
                binding.due_at = old_at if binding.due_at is None else min(binding.due_at, old_at)

    def _want(self, wanted: list[tuple[Use, float]]) -> None:
        self._planned.append(wanted)
        self._events.append(SocketsWanted(count=len(wanted)))

    def _on_first_look(self, is_alive: bool | None) -> None:
        """Of a binding that was looked at without any silence: does the far end do what is needed?"""
        if not is_alive:
            self._fail(
                "no answer comes to another port: it does not offer RESPONSE-PORT (RFC 5780), or something on the way "
                "lets nothing in"
                if is_alive is False
                else self._requests.complaint or "no answer"
            )
            return
        self._is_checked = True
        self._want([(Use.ONE_WAY, 0.0), (Use.KEPT, 0.0)])

    def _report(self, one_way_refresh: bool | None, evidence: str) -> None:
        assert self._mapped is not None
        self._is_over = True
        report = LifetimeReport(
            answered=self._searches[Use.ANSWERED].bracket,
            unanswered=self._searches[Use.UNANSWERED].bracket,
            one_way_refresh=one_way_refresh,
            evidence=evidence,
            mapped=self._mapped,
        )
        self._events.append(LifetimeMeasured(report=report))

    def _fail(self, reason: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._events.append(LifetimeFailed(reason=reason))

    # --- the far end -------------------------------------------------------------------------------------------------

    def _control(self, now: float) -> None:
        """Y asks for itself: does the far end answer, and where does it see us?"""
        if now - self._control_sent_at < CONTROL_S:
            return
        self._control_sent_at = now
        self._control_at = now + (TRIES_S[0] if self._mapped is None else ASKER_S)
        self._requests.ask(self._asker, Request(Aim.CONTROL, None, self._asker))

    def _on_success(self, answer: Answer, now: float) -> None:
        binding, mapped = answer.request.binding, answer.mapped
        if answer.request.aim is Aim.LOOK:
            assert binding is not None
            if binding.stage is Stage.LOOK:
                self._finish(binding, True, now)
        elif mapped is None:
            self._requests.complaint = "its answer has no mapped address"
        elif binding is None:
            self._on_control(mapped, now)
        else:
            self._on_set_up(binding, mapped, now)
        if not self._is_over:
            self._clear(now)

    def _on_control(self, mapped: TransportAddress, now: float) -> None:
        self._heard_at, self._requests.complaint = now, ""
        is_first = self._mapped is None
        self._mapped = mapped
        if is_first:
            self._give_up_at = None
            self._want([(Use.ANSWERED, 0.0)])

    def _on_refusal(self, answer: Answer) -> None:
        """Before anything was measured: the far end does not do what is needed."""
        if answer.outcome is Outcome.ELSEWHERE and answer.request.aim is not Aim.CONTROL:
            self._fail("it answers to where it was asked from: it does not know RESPONSE-PORT (RFC 5780)")
        elif answer.outcome is Outcome.ERROR and answer.request.aim is Aim.LOOK:
            self._fail(f"it answers {answer.words} to RESPONSE-PORT (RFC 5780)")
