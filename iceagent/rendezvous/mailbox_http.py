"""How does HTTP/1.1 get at the rooms, and what can a client do to us?

:class:`HttpMailbox` holds every connection of a rendezvous server, from its first byte to its last: h11 reads requests
and writes answers, :class:`~iceagent.rendezvous.mailbox.Mailbox` makes them, and here everything has an end:

- a request is whole 10 s after its first byte, and a new connection has 10 s for its first request; an open connection
  without one is closed after 30 s, or for a new one when there are too many;
- a client that does not take its answers is closed after 10 s, and until then nothing more of it is looked at;
- headers have 16 KiB, bodies 64 KiB and a Content-Length (chunks would be work without end: 411);
- requests are answered one after the other, and of what a client sends meanwhile 80 KiB are kept.

Pure. Each method that takes input may have caused output; :meth:`HttpMailbox.poll_output` has it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import h11

from iceagent.rendezvous.mailbox import MAX_TEXT, Answer, Mailbox, Request, network_of
from iceagent.rendezvous.waits import Waits

__all__ = ["MAX_CONNECTIONS", "MAX_CONNECTIONS_OF_SOURCE", "MAX_HEADER_BYTES", "Close", "HttpMailbox", "Write"]

MAX_CONNECTIONS = 2500
"""Each end of a thousand rooms has one that waits, and now and then another one that writes."""

MAX_CONNECTIONS_OF_SOURCE = 128
"""Of one source network."""

MAX_HEADER_BYTES = 16 * 1024
MAX_UNREAD = MAX_TEXT + MAX_HEADER_BYTES
# h11 measures headers that are not whole. Given more at once, it would take a quarter of a megabyte of them to pieces.
PIECE_BYTES = 4 * 1024
REQUEST_S = 10.0
IDLE_S = 30.0
BLOCKED_S = 10.0

_MISTAKES = {400: "this is not HTTP/1.1", 431: "the headers are too long"}


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a connection."""

    key: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Close:
    """A connection is to be closed, once what was written is out; nothing more is heard of it."""

    key: int


class _Connection:
    """One connection; where it is in its cycle is h11's affair, but for what is ours."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.head: h11.Request | None = None
        self.body = bytearray()
        self.is_waiting = False
        self.is_blocked = False
        # What h11 has not been given yet; it holds at most one piece of what is behind a request.
        self.unread = bytearray()

    @property
    def has_more(self) -> bool:
        """Whether something came that was not read."""
        return bool(self.unread or self.http.trailing_data[0])


class HttpMailbox:
    """The connections.

    Args:
        mailbox: answers the requests.
        max_connections: open at once.

    Attributes:
        counters: ``connections``; answers by status (``answered: 200``); connections that were closed, and why
            (``closed: too many``, ``closed: from one network``, ``closed: slow``, ``closed: blocked``,
            ``closed: unread``).
    """

    def __init__(self, mailbox: Mailbox, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self.counters: Counter[str] = Counter()
        self._mailbox = mailbox
        self._max_connections = max_connections
        self._connections: dict[int, _Connection] = {}
        self._of_network: Counter[tuple[int, int]] = Counter()
        self._reading: Waits[int] = Waits(REQUEST_S)
        self._idle: Waits[int] = Waits(IDLE_S)
        self._blocked: Waits[int] = Waits(BLOCKED_S)
        # Connections that may have something to read. What stands behind a request is for the next turn: others, and
        # what this process does besides, come first.
        self._ready: dict[int, None] = {}
        self._ready_at = 0.0
        self._outputs: deque[Write | Close] = deque()

    # --- input ---------------------------------------------------------------------------------------------------

    def handle_open(self, key: int, source: str, now: float) -> None:
        """There is a new connection, from this IP address. ``key`` is not used again after it."""
        self.counters["connections"] += 1
        network = network_of(source)
        if self._of_network[network] >= MAX_CONNECTIONS_OF_SOURCE:
            self._outputs.append(Close(key))
            self.counters["closed: from one network"] += 1
            return
        if len(self._connections) >= self._max_connections:
            self.counters["closed: too many"] += 1
            if (idle := self._idle.oldest) is None:
                self._outputs.append(Close(key))
                return
            self._close(idle, now)
        self._connections[key] = _Connection(source)
        self._of_network[network] += 1
        self._reading.set(key, now)

    def handle_data(self, key: int, data: bytes, now: float) -> None:
        """It sent this. Never raises because of its content."""
        connection = self._connections.get(key)
        if connection is None or not data:
            return
        if key in self._idle:
            self._idle.drop(key)
            self._reading.set(key, now)
        connection.unread += data
        self._ready[key] = None
        self._run(now)
        if key in self._connections and len(connection.unread) > MAX_UNREAD:
            self.counters["closed: unread"] += 1
            self._close(key, now)

    def handle_closed(self, key: int, now: float) -> None:
        """The other side ended it."""
        if key in self._connections:
            self._forget(key, now)
            self._run(now)

    def handle_blocked(self, key: int, is_blocked: bool, now: float) -> None:
        """Much waits to be written to it, because it reads nothing; or no longer."""
        connection = self._connections.get(key)
        if connection is None or connection.is_blocked is is_blocked:
            return
        connection.is_blocked = is_blocked
        if is_blocked:
            self._blocked.set(key, now)
        else:
            self._blocked.drop(key)
            self._ready[key] = None
            self._run(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed; idempotent."""
        for key in self._reading.due(now):
            self.counters["closed: slow"] += 1
            if self._connections[key].http.their_state is not h11.IDLE or self._connections[key].has_more:
                self._refuse(key, 408, "a request is to be whole within 10 s", now)
            else:
                self._close(key, now)
        for key in self._idle.due(now):
            self._close(key, now)
        for key in self._blocked.due(now):
            self.counters["closed: blocked"] += 1
            self._close(key, now)
        self._mailbox.handle_timeout(now)
        self._run(now)

    # --- output --------------------------------------------------------------------------------------------------

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``. It is past while there is more to read."""
        if self._ready:
            return self._ready_at
        ends = (self._reading.next_at, self._idle.next_at, self._blocked.next_at, self._mailbox.poll_timeout())
        return min((at for at in ends if at is not None), default=None)

    def poll_output(self) -> Write | Close | None:
        """One thing to do, or ``None``."""
        return self._outputs.popleft() if self._outputs else None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    # --- reading -------------------------------------------------------------------------------------------------

    def _run(self, now: float) -> None:
        """Read at most one request of each connection, and send what answers there are."""
        turn, self._ready = self._ready, {}
        for key in turn:
            connection = self._connections.get(key)
            if connection is not None and not (connection.is_waiting or connection.is_blocked):
                self._read(key, connection, now)
        while (answer := self._mailbox.poll_answer()) is not None:
            self._respond(*answer, now)
        self._ready_at = now

    def _read(self, key: int, connection: _Connection, now: float) -> None:
        """Take what there is, up to the end of one request."""
        while key in self._connections and not connection.is_waiting:
            try:
                event = connection.http.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint if error.error_status_hint in _MISTAKES else 400
                self._refuse(key, status, _MISTAKES[status], now)
                return
            if isinstance(event, h11.Request):
                self._begin(key, connection, event, now)
            elif isinstance(event, h11.Data):
                connection.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._ask(key, connection, now)
            elif event is h11.NEED_DATA and connection.unread:
                connection.http.receive_data(bytes(connection.unread[:PIECE_BYTES]))
                del connection.unread[:PIECE_BYTES]
            else:
                # NEED_DATA; PAUSED, where something else than HTTP follows a request that was refused.
                if event is h11.NEED_DATA and connection.http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._outputs.append(Write(key, connection.http.send(go_on) or b""))
                return

    def _begin(self, key: int, connection: _Connection, head: h11.Request, now: float) -> None:
        """See that it is not too long, and that its body, if it has one, has a length that will do."""
        connection.head = head
        # What ends within a piece is not measured by h11.
        if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > MAX_HEADER_BYTES:
            self._refuse(key, 431, _MISTAKES[431], now)
        elif _header(head, b"transfer-encoding") is not None:
            self._refuse(key, 411, "a body needs a Content-Length", now)
        # h11 has seen to it that it is a number, though it may be one of twenty digits.
        elif int(_header(head, b"content-length") or "0") > MAX_TEXT:
            self._refuse(key, 413, f"a description has {MAX_TEXT} bytes at most", now)

    def _ask(self, key: int, connection: _Connection, now: float) -> None:
        assert connection.head is not None
        self._reading.drop(key)
        connection.is_waiting = True
        request = Request(
            method=connection.head.method.decode("latin-1"),
            target=connection.head.target.decode("latin-1"),
            source=connection.source,
            if_none_match=_header(connection.head, b"if-none-match"),
            token=_header(connection.head, b"room-token"),
            body=bytes(connection.body),
        )
        connection.body.clear()
        self._mailbox.handle_request(key, request, now)

    # --- writing -------------------------------------------------------------------------------------------------

    def _respond(self, key: int, answer: Answer, now: float) -> None:
        """Send an answer, and go on to the next request, or close."""
        connection = self._connections[key]
        self.counters[f"answered: {answer.status}"] += 1
        is_head = connection.head is not None and connection.head.method == b"HEAD"
        http, connection.head, connection.is_waiting = connection.http, None, False
        try:
            data = http.send(h11.Response(status_code=answer.status, headers=_headers(answer))) or b""
            if answer.body and not is_head:
                data += http.send(h11.Data(data=answer.body)) or b""
            data += http.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:
            # What came was so broken that nothing can be said to it any more.
            self._close(key, now)
            return
        self._outputs.append(Write(key, data))
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            self._close(key, now)
            return
        http.start_next_cycle()
        if connection.has_more:
            self._reading.set(key, now)
            self._ready[key] = None
        else:
            self._idle.set(key, now)

    def _refuse(self, key: int, status: int, sentence: str, now: float) -> None:
        """Answer what is no request of ours to begin with, and close."""
        self._respond(key, Answer(status=status, body=f"{sentence}\n".encode(), is_last=True), now)

    # --- the end -------------------------------------------------------------------------------------------------

    def _close(self, key: int, now: float) -> None:
        self._outputs.append(Close(key))
        self._forget(key, now)

    def _forget(self, key: int, now: float) -> None:
        network = network_of(self._connections.pop(key).source)
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]
        for waits in (self._reading, self._idle, self._blocked):
            waits.drop(key)
        self._mailbox.handle_closed(key, now)


def _header(head: h11.Request, name: bytes) -> str | None:
    """All values of a header, as one (RFC 9110, 5.2)."""
    values = [value for each, value in head.headers if each == name]
    return b", ".join(values).decode("latin-1") if values else None


def _headers(answer: Answer) -> list[tuple[str, str]]:
    # Passwords are not for caches, nor is a stranger's text for a browser to make something of.
    headers = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    if answer.status not in (204, 304):
        headers += [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(answer.body)))]
    if answer.version is not None:
        headers.append(("ETag", f'"{answer.version}"'))
    if answer.token is not None:
        headers.append(("Room-Token", answer.token))
    if answer.retry_after_s is not None:
        headers.append(("Retry-After", str(answer.retry_after_s)))
    if answer.status == 405:
        headers.append(("Allow", "GET, PUT, DELETE"))
    if answer.is_last:
        headers.append(("Connection", "close"))
    return headers
