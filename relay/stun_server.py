"""What does a STUN server answer, and to whom?

RFC 8489, 12 (basic server) and 6.3; RFC 5780, 6 (behaviour discovery) where it is switched on. A Binding request gets
a success response with XOR-MAPPED-ADDRESS: 32 bytes for 20 over IPv4, so that a forged source gains an attacker next
to nothing. For the same reason there is no SOFTWARE and no MAPPED-ADDRESS; RFC 5780 asks for three more addresses,
which is why it has to be switched on. DEVIATION: RFC 8489, 6.3.1.1, "the server SHOULD add a SOFTWARE attribute";
pinned by test_twenty_bytes_get_thirty_two.

Nobody can make two servers talk to each other: only requests are answered, never one from port 0, from one of our own
addresses, or from an address that is not unicast. A message that is no request, or of a method other than Binding, is
discarded in silence (6.3: "the method value is a supported method … If any errors are detected, the message is silently
discarded"). Error responses are limited per source network (``error_limits.py``).

:class:`StunServer` answers on datagram sockets; :class:`StreamServer` does on TCP and TLS, and closes streams that are
idle or too many. Both are cores (``iceagent/net/core.py``); ``relay/server.py`` is their shell.

TURN's messages go to a :class:`relay.turn.server.TurnServer`, if there is one. What it does not do itself: credentials
(12: "SHOULD NOT utilize" them). Pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from relay.error_limits import ErrorLimiter
from relay.stun import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    Attribute,
    BadAttribute,
    BadMessage,
    ChangeRequest,
    Message,
    Method,
    classic_response,
    is_stun,
    parse,
)

__all__ = ["CloseStream", "StreamServer", "StunServer", "discovery_table"]

OUTPUT_LIMIT = 1_024
"""Responses that wait for the shell, and events; it takes them after every input. The oldest go first."""

MAX_PADDING = 1_500
"""Bytes of PADDING in a response (RFC 5780, 6.1: the MTU of the outgoing interface); never more than in the request.
DEVIATION: from the first; pinned by test_padding_is_no_longer_than_what_was_sent."""

STREAM_LIMIT = 512
"""Streams at once: half of the 1,024 descriptors that a process has by default."""

STREAM_IDLE_S = 60.0
"""Seconds without a message after which a stream is closed. RFC 8489, 6.2.2: the server "SHOULD keep the connection
open and let the client close it", but "SHOULD follow best practices regarding connection management".
DEVIATION: from the first; pinned by test_a_stream_is_closed_a_minute_after_its_last_message."""

BROADCAST = "255.255.255.255"
_KEEP = ChangeRequest(False, False)

Alternatives = Mapping[TransportAddress, Mapping[ChangeRequest, TransportAddress]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStream(Event):
    """The shell is to close a stream; the core has forgotten it.

    Attributes:
        base: our end.
        remote: the other end.
        reason: one short stable phrase.
    """

    base: TransportAddress
    remote: TransportAddress
    reason: str


def discovery_table(pairs: Iterable[tuple[TransportAddress, TransportAddress]]) -> Alternatives:
    """Where a response comes from: RFC 5780, 6.1, table 1.

    Args:
        pairs: A1:P1 and A2:P2 of a server, at most one pair of each IP version: hosts and ports differ.

    Returns:
        For each of the four addresses of a pair on which requests arrive, the source of the response to each
        CHANGE-REQUEST.

    Raises:
        ValueError: the two of a pair do not differ as they must.
    """
    table: dict[TransportAddress, Mapping[ChangeRequest, TransportAddress]] = {}
    for primary, alternate in pairs:
        if primary.host == alternate.host or primary.port == alternate.port or primary.version != alternate.version:
            raise ValueError(
                "behaviour discovery needs two addresses of one IP version that differ in host and port "
                f"(RFC 5780, 6), not {primary} and {alternate}"
            )
        table |= _four(primary, alternate)
    return table


class Extension(Protocol):
    """A core beside the STUN server: takes messages of other methods, and answers on the same sockets."""

    def handle_message(self, message: Message, datagram: Datagram, now: float, *, is_whole: bool) -> bool:
        """Take it, or what could be read of it; false: it is none of ours."""

    def handle_timeout(self, now: float) -> None: ...

    def poll_timeout(self) -> float | None: ...

    def poll_transmit(self) -> Transmit | None: ...

    def poll_event(self) -> Event | None: ...


class StunServer:
    """A STUN server on datagram sockets.

    Args:
        alternatives: where behaviour discovery is switched on, see :func:`discovery_table`; bases that are not in it do
            not offer it.
        is_stream: requests come over TCP or TLS: nothing can be answered from elsewhere, and sources are not forged.
        limiter: how many error responses may be sent; ``None``: one of its own.
        turn: takes the messages of TURN; ``None``: they are dropped.

    Attributes:
        bases: our own addresses, to be kept up to date by the shell: nothing is ever sent to one.
        counters: ``requests`` (Binding requests that were answered), ``errors`` (of them, with an error response),
            ``errors: <code>`` for each of its codes, ``indications``, ``network errors``, and ``dropped: <reason>`` for
            everything else.
    """

    def __init__(
        self,
        *,
        alternatives: Alternatives | None = None,
        is_stream: bool = False,
        limiter: ErrorLimiter | None = None,
        turn: Extension | None = None,
    ) -> None:
        self._turn = turn
        self.bases: set[TransportAddress] = set()
        self.counters: Counter[str] = Counter()
        self._alternatives: Alternatives = {} if alternatives is None else alternatives
        self._is_stream = is_stream
        self._limiter = ErrorLimiter() if limiter is None else limiter
        self._transmits: deque[Transmit] = deque(maxlen=OUTPUT_LIMIT)
        self._events: deque[Event] = deque(maxlen=OUTPUT_LIMIT)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Answer a Binding request; drop everything else."""
        if not is_stun(datagram.data):
            self._on_other(datagram)
            return
        is_whole = True
        try:
            message = parse(datagram.data)
        except BadAttribute as error:
            message, is_whole = error.message, False
        except BadMessage:
            self._drop(datagram, "malformed")
            return
        if message.method != Method.BINDING:
            turn = self._turn if self._may_send_to(datagram.source) else None
            if turn is None or not turn.handle_message(message, datagram, now, is_whole=is_whole):
                self._drop(datagram, "method not supported" if is_whole else "malformed")
        elif not is_whole:
            self._drop(datagram, "malformed")
        elif message.is_indication:
            # 6.3.2: "The mere receipt of the message by the agent has refreshed the bindings".
            self.counters["indications"] += 1
        elif not message.is_request:
            self._drop(datagram, "response")
        elif not self._may_send_to(datagram.source):
            self._drop(datagram, "source not answered")
        else:
            self._on_binding_request(message, datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """A client has gone; the next request is answered all the same."""
        self.counters["network errors"] += 1

    def handle_timeout(self, now: float) -> None:
        """Nothing is waited for here, but for TURN."""
        if self._turn is not None:
            self._turn.handle_timeout(now)

    def poll_timeout(self) -> float | None:
        """``None``: there is nothing to wait for."""
        return None if self._turn is None else self._turn.poll_timeout()

    def poll_transmit(self) -> Transmit | None:
        """One response to send, or ``None``."""
        if self._transmits:
            return self._transmits.popleft()
        return None if self._turn is None else self._turn.poll_transmit()

    def poll_event(self) -> Event | None:
        """One :class:`PacketDropped`, or an event of TURN's, or ``None``."""
        if self._events:
            return self._events.popleft()
        return None if self._turn is None else self._turn.poll_event()

    def _on_other(self, datagram: Datagram) -> None:
        """Clients of RFC 3489 are answered (RFC 8489, 12), on datagram sockets: that is where they are."""
        answer = None if self._is_stream else classic_response(datagram.data, datagram.source)
        if answer is None:
            self._drop(datagram, "not STUN")
        elif not self._may_send_to(datagram.source):
            self._drop(datagram, "source not answered")
        else:
            self.counters["requests"] += 1
            self._transmits.append(Transmit(datagram.base, datagram.source, answer))

    def _may_send_to(self, address: TransportAddress) -> bool:
        if address.port == 0 or address in self.bases or address.host == BROADCAST:
            return False
        ip = ip_address(address.host)
        return not (ip.is_multicast or ip.is_unspecified)

    def _on_binding_request(self, request: Message, datagram: Datagram, now: float) -> None:
        others = self._alternatives.get(datagram.base)
        # 6.3.1. Processing a Request
        unknown = self._not_understood(request, has_alternate=others is not None)
        if unknown:
            self._refuse(request, datagram, now, 420, "Unknown Attribute", (UNKNOWN_ATTRIBUTES, unknown))
        elif others is None:
            response = request.success((XOR_MAPPED_ADDRESS, datagram.source))
            self._respond(response, request, datagram.base, datagram.source)
        else:
            self._answer_discovery(request, datagram, others, now)

    def _not_understood(self, request: Message, *, has_alternate: bool) -> tuple[int, ...]:
        """Codes for a 420: RFC 5780, 6.1, "does not have an alternate address and port as described above"."""
        unknown = list(request.unknown_required)
        if not has_alternate or self._is_stream:
            unknown += [code for code in (CHANGE_REQUEST.code, RESPONSE_PORT.code) if _has(request, code)]
        if not has_alternate and _has(request, PADDING.code):
            unknown.append(PADDING.code)
        return tuple(unknown)

    def _answer_discovery(
        self, request: Message, datagram: Datagram, others: Mapping[ChangeRequest, TransportAddress], now: float
    ) -> None:
        """RFC 5780, 6.1. Preparing the Response."""
        source, port, padding = datagram.source, request.get(RESPONSE_PORT), request.get(PADDING)
        destination = source if port is None else TransportAddress(source.host, port)
        if (port is not None and padding is not None) or not self._may_send_to(destination):
            self._refuse(request, datagram, now, 400, "Bad Request")
            return
        origin = others[request.get(CHANGE_REQUEST) or _KEEP]
        pairs: list[tuple[Attribute[Any], Any]] = [
            (XOR_MAPPED_ADDRESS, source),
            (MAPPED_ADDRESS, source),
            (RESPONSE_ORIGIN, origin),
            (OTHER_ADDRESS, others[ChangeRequest(True, True)]),
        ]
        if padding is not None:
            pairs.append((PADDING, bytes(min(len(padding), MAX_PADDING))))
        self._respond(request.success(*pairs), request, origin, destination)

    def _refuse(
        self,
        request: Message,
        datagram: Datagram,
        now: float,
        code: int,
        reason: str,
        *pairs: tuple[Attribute[Any], Any],
    ) -> None:
        if not self._limiter.admits(datagram.source.host, now):
            self._drop(datagram, "too many errors")
            return
        self.counters["errors"] += 1
        self.counters[f"errors: {code}"] += 1
        self._respond(request.error_response(code, reason, *pairs), request, datagram.base, datagram.source)

    def _respond(
        self, response: Message, request: Message, base: TransportAddress, destination: TransportAddress
    ) -> None:
        self.counters["requests"] += 1
        data = response.encode(fingerprint=request.has_fingerprint)
        self._transmits.append(Transmit(base, destination, data))

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))


class StreamServer:
    """A STUN server on TCP and TLS streams: whole messages in and out, and an end for streams that are no longer used.

    When one stream more than the limit is opened, the one that has been silent longest is closed for it.

    Args:
        server: answers; made with ``is_stream=True``.
        limit: streams at once, at least 1.
        idle_s: seconds without a message after which a stream is closed.
        is_busy: whether a stream, by its two ends, is used although nothing comes: it has an allocation.
    """

    def __init__(
        self,
        server: StunServer,
        *,
        limit: int = STREAM_LIMIT,
        idle_s: float = STREAM_IDLE_S,
        is_busy: Callable[[tuple[TransportAddress, TransportAddress]], bool] = lambda stream: False,
    ) -> None:
        self._server = server
        self._is_busy = is_busy
        self._limit = limit
        self._idle_s = idle_s
        # In the order of the last message, hence of the deadlines.
        self._used_at: OrderedDict[tuple[TransportAddress, TransportAddress], float] = OrderedDict()
        self._events: deque[Event] = deque()

    def open(self, base: TransportAddress, remote: TransportAddress, now: float) -> None:
        """A stream was accepted."""
        while len(self._used_at) >= self._limit:
            self._pass_over_busy(now, lambda at: True)
            self._close_oldest("too many streams")
        self._used_at[base, remote] = now
        self._used_at.move_to_end((base, remote))

    def close(self, base: TransportAddress, remote: TransportAddress, now: float) -> None:
        """A stream ended. One that is forgotten already is fine."""
        self._used_at.pop((base, remote), None)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """One message arrived on a stream."""
        stream = (datagram.base, datagram.source)
        if stream not in self._used_at:
            return
        self._used_at[stream] = now
        self._used_at.move_to_end(stream)
        self._server.handle_datagram(datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """A stream broke."""
        self.close(base, destination, now)
        self._server.handle_error(base, destination, errno, now)

    def handle_timeout(self, now: float) -> None:
        """Close what is idle."""
        self._server.handle_timeout(now)
        self._pass_over_busy(now, lambda at: at + self._idle_s <= now)
        while self._used_at and next(iter(self._used_at.values())) + self._idle_s <= now:
            self._close_oldest("idle")
            self._pass_over_busy(now, lambda at: at + self._idle_s <= now)

    def poll_timeout(self) -> float | None:
        """When the next stream has been idle for too long, or an allocation may end."""
        idle_at = next(iter(self._used_at.values())) + self._idle_s if self._used_at else None
        due = (idle_at, self._server.poll_timeout())
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """One response to write to the stream between ``base`` and ``destination``, or ``None``."""
        return self._server.poll_transmit()

    def poll_event(self) -> Event | None:
        """One :class:`CloseStream` or :class:`PacketDropped`, or ``None``."""
        return self._events.popleft() if self._events else self._server.poll_event()

    def __len__(self) -> int:
        return len(self._used_at)

    def _pass_over_busy(self, now: float, is_due: Callable[[float], bool]) -> None:
        """Those at the front that have an allocation are used as of now; if all are, the oldest stays in front."""
        for _ in range(len(self._used_at)):
            stream, at = next(iter(self._used_at.items()))
            if not is_due(at) or not self._is_busy(stream):
                return
            self._used_at[stream] = now
            self._used_at.move_to_end(stream)

    def _close_oldest(self, reason: str) -> None:
        # At most `limit` events can wait: each stands for a stream that was open.
        (base, remote), _ = self._used_at.popitem(last=False)
        self._server.counters[f"closed: {reason}"] += 1
        self._events.append(CloseStream(base=base, remote=remote, reason=reason))


def _has(message: Message, code: int) -> bool:
    return any(code == each for each, _ in message.attributes)


def _four(
    primary: TransportAddress, alternate: TransportAddress
) -> dict[TransportAddress, Mapping[ChangeRequest, TransportAddress]]:
    hosts, ports = (primary.host, alternate.host), (primary.port, alternate.port)
    flags = [ChangeRequest(change_ip, change_port) for change_ip in (False, True) for change_port in (False, True)]
    return {
        TransportAddress(hosts[i], ports[j]): {
            change: TransportAddress(hosts[i ^ change.change_ip], ports[j ^ change.change_port]) for change in flags
        }
        for i in (0, 1)
        for j in (0, 1)
    }
