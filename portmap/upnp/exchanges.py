"""Which HTTP exchanges are under way, and who waits for their answers? Pure.

A core cannot fetch: it says what it wants (:class:`portmap.events.Fetch`), and whoever does it answers by number. Here
a number finds the one who waits. Nobody waits for ever: what is not answered in its time, and a little more, counts as
failed.

A gateway's HTTP server has few connections, and those that it has no room for it drops: beyond :data:`MAX_AT_ONCE`
exchanges, the next one waits for its turn, deletions first, and its time begins then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iceagent.net.core import Event
from portmap.events import Fetch
from portmap.upnp.description import Service
from portmap.upnp.soap import BadAnswer, Fault, encode_call, headers_of_call, parse_answer
from portmap.upnp.urls import Url

__all__ = ["MAX_AT_ONCE", "Answer", "Exchanges", "Page"]

# Whoever fetches has a timer of its own, which ends first.
GRACE_S = 0.25
# More than a search has, so that dead devices keep nobody waiting.
MAX_AT_ONCE = 16
# An answer to an action has some 500 bytes.
MAX_ANSWER_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """How an exchange ended.

    Attributes:
        status: of the response; ``None``: there was none.
        body: of the response.
        reason: why there was none.
        rtt_s: since it began.
    """

    status: int | None
    body: bytes = b""
    reason: str = ""
    rtt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service said to an action.

    Attributes:
        values: its output arguments; ``None``: it did not do it.
        code: its error code; ``None``: it said none.
        reason: why not, in words: ``718 ConflictInMappingEntry``.
        is_reached: there was an HTTP response of some kind.
        rtt_s: since the exchange began.
    """

    values: dict[str, str] | None
    code: int | None = None
    reason: str = ""
    is_reached: bool = True
    rtt_s: float


@dataclass(slots=True)
class _Waiting:
    """Of one exchange."""

    fetch: Fetch
    then: Callable[[Page, float], None]
    begun_at: float = 0.0

    @property
    def overdue_at(self) -> float:
        return self.begun_at + self.fetch.timeout_s + GRACE_S


class Exchanges:
    """All exchanges of one client.

    Args:
        events: where :class:`Fetch` events go.
    """

    def __init__(self, events: deque[Event]) -> None:
        self._events = events
        self._waiting: dict[int, _Waiting] = {}
        self._queue: deque[_Waiting] = deque()
        self._last = 0

    def get(
        self, url: Url, source: str, timeout_s: float, max_bytes: int, now: float, then: Callable[[Page, float], None]
    ) -> None:
        """Fetch a document; ``then`` is called once, with how that ended and the time."""
        self._want(url, source, "GET", (("User-Agent", "UPnP/1.1 iceagent"),), b"", timeout_s, max_bytes, now, then)

    def call(
        self,
        service: Service,
        source: str,
        action: str,
        arguments: Sequence[tuple[str, str]],
        timeout_s: float,
        now: float,
        then: Callable[[Answer, float], None],
        *,
        is_urgent: bool = False,
    ) -> None:
        """Call an action; ``then`` is called once, with the answer and the time.

        Args:
            service: whose action it is.
            source: the address to connect from.
            action: its name.
            arguments: in the order of the specification.
            timeout_s: for all of it, once it is its turn.
            now: the time.
            then: who waits.
            is_urgent: it is the next one's turn.
        """
        body = encode_call(service.type, action, arguments)
        headers = headers_of_call(service.type, action)

        def read(page: Page, at: float) -> None:
            then(_answer_of(page, action), at)

        self._want(
            service.control,
            source,
            "POST",
            headers,
            body,
            timeout_s,
            MAX_ANSWER_BYTES,
            now,
            read,
            is_urgent=is_urgent,
        )

    def handle_response(self, number: int, status: int, body: bytes, now: float) -> bool:
        """The exchange has a response. Returns whether anybody waited for it."""
        return self._end(number, status, body, "", now)

    def handle_failure(self, number: int, reason: str, now: float) -> bool:
        """The exchange has none. Returns whether anybody waited for it."""
        return self._end(number, None, b"", reason, now)

    def handle_timeout(self, now: float) -> None:
        """Exchanges that nobody answered have failed."""
        for number, waiting in list(self._waiting.items()):
            if now >= waiting.overdue_at:
                self.handle_failure(number, f"no answer within {waiting.fetch.timeout_s:g} s", now)

    def poll_timeout(self) -> float | None:
        """When the next one is overdue."""
        return min((waiting.overdue_at for waiting in self._waiting.values()), default=None)

    def _want(
        self,
        url: Url,
        source: str,
        method: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
        timeout_s: float,
        max_bytes: int,
        now: float,
        then: Callable[[Page, float], None],
        *,
        is_urgent: bool = False,
    ) -> None:
        self._last += 1
        fetch = Fetch(
            number=self._last,
            server=url.server,
            source=source,
            method=method,
            target=url.target,
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
        )
        waiting = _Waiting(fetch, then)
        if is_urgent:
            self._queue.appendleft(waiting)
        else:
            self._queue.append(waiting)
        self._begin(now)

    def _begin(self, now: float) -> None:
        while self._queue and len(self._waiting) < MAX_AT_ONCE:
            waiting = self._queue.popleft()
            waiting.begun_at = now
            self._waiting[waiting.fetch.number] = waiting
            self._events.append(waiting.fetch)

    def _end(self, number: int, status: int | None, body: bytes, reason: str, now: float) -> bool:
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return False
        waiting.then(Page(status=status, body=body, reason=reason, rtt_s=now - waiting.begun_at), now)
        self._begin(now)
        return True


def _answer_of(page: Page, action: str) -> Answer:
    if page.status is None:
        return Answer(values=None, reason=page.reason, is_reached=False, rtt_s=page.rtt_s)
    try:
        return Answer(values=parse_answer(page.status, page.body, action), rtt_s=page.rtt_s)
    except Fault as fault:
        return Answer(values=None, code=fault.code, reason=str(fault), rtt_s=page.rtt_s)
    except BadAnswer as error:
        return Answer(values=None, reason=str(error), rtt_s=page.rtt_s)
