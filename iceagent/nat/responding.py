"""Who is answered on a socket that punches, or is punched to, and with what?

A Binding request gets a success response with XOR-MAPPED-ADDRESS (RFC 8489, 6.3.1.1), to exactly the address that it
came from. With a key both are signed (short-term credentials, RFC 8489, 9.1.3), the response by the algorithm of the
request: one without a signature is refused with 400, one with another signature with 401, so that who mistyped the key
is told. Any USERNAME is valid; the key alone decides. Errors are limited per source network
(``relay/error_limits.py``); nothing that leaves is much longer than what came.

A far end may offer RESPONSE-PORT (RFC 5780, 7.5): the response goes to another port of the same address, for those who
measure how long a binding lives (``lifetime.py``). It has one address only, and is no server of RFC 5780 otherwise:
CHANGE-REQUEST and PADDING are answered with 420. DEVIATION: RFC 5780, 6.1, "The server MUST include both MAPPED-ADDRESS
and XOR-MAPPED-ADDRESS in its Response", and "MUST add a RESPONSE-ORIGIN attribute"; pinned by
test_the_answer_to_another_port_is_as_short_as_any. DEVIATION: RFC 8489, 6.1, "it SHOULD add a SOFTWARE attribute to the
request"; pinned by test_twenty_bytes_get_thirty_two_and_signed_ones_fewer_than_they_are_times_two.

:class:`Responder` answers one request; :class:`FarEnd` is a core that does nothing else. Pure.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, NamedTuple

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from relay.error_limits import ErrorLimiter
from relay.stun import (
    CHANGE_REQUEST,
    PADDING,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    BadMessage,
    ErrorCode,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    build,
    is_stun,
    parse,
)

__all__ = ["USER", "FarEnd", "Reply", "Responder", "binding_request", "may_send_to"]

USER = "punch"
"""USERNAME of signed requests: the short-term mechanism asks for one (RFC 8489, 9.1.2)."""

OUTPUT_LIMIT = 256
"""Responses that wait for the shell, and events; it takes them after every input. The oldest go first."""

_BROADCAST = "255.255.255.255"
_UNAVAILABLE = (CHANGE_REQUEST.code, PADDING.code)


def binding_request(
    transaction_id: bytes, key: IntegrityKey | None, *pairs: tuple[Attribute[Any], Any], username: str = USER
) -> bytes:
    """A Binding request with FINGERPRINT: it shares its socket with data (RFC 8489, 7).

    A signed one has MESSAGE-INTEGRITY alone, as in ICE: both ends know of that as they know of the key (9.1.2, "unless
    the agent knows from an external mechanism which message integrity algorithm is supported by both agents").

    Args:
        transaction_id: 12 bytes, from a cryptographic source.
        key: signs it.
        pairs: more attributes.
        username: stands in a signed one.
    """
    user = () if key is None else ((USERNAME, username),)
    return build(Method.BINDING, MessageClass.REQUEST, transaction_id, *user, *pairs).encode(key)


def binding_indication(transaction_id: bytes) -> bytes:
    """A Binding indication, likewise: nobody answers it."""
    return build(Method.BINDING, MessageClass.INDICATION, transaction_id).encode()


def may_send_to(address: TransportAddress, ours: frozenset[TransportAddress] | set[TransportAddress]) -> bool:
    """Whether an address can be another host's: unicast, with a port, and none of ``ours``."""
    if address.port == 0 or address in ours or address.host == _BROADCAST:
        return False
    ip = ip_address(address.host)
    return not (ip.is_multicast or ip.is_unspecified)


class Reply(NamedTuple):
    """What a request is answered with.

    Attributes:
        transmit: the response.
        is_success: else it is an error response.
    """

    transmit: Transmit
    is_success: bool


class Responder:
    """Answers Binding requests.

    Args:
        key: what requests have to be signed with; ``None``: anybody is answered, unsigned.
        offers_response_port: see the module.
        counters: what happened is counted there: ``requests`` (answered), ``errors: <code>``.
    """

    def __init__(self, key: IntegrityKey | None, counters: Counter[str], *, offers_response_port: bool = False) -> None:
        self._key = key
        self._counters = counters
        self._offers_response_port = offers_response_port
        self._limiter = ErrorLimiter()

    def answer(self, request: Message, datagram: Datagram, now: float) -> Reply | None:
        """The reply to a Binding request whose source :func:`may_send_to`; ``None``: too many errors."""
        # RFC 8489, 6.3: authentication comes first. Who has no key is told nothing else.
        if self._key is not None and not self._is_authentic(request, self._key):
            is_signed = request.has_integrity or request.has_integrity_sha256
            is_complete = is_signed and request.get(USERNAME) is not None
            error = ErrorCode(401, "Unauthenticated") if is_complete else ErrorCode(400, "Bad Request")
            return self._refuse(request, datagram, now, error, is_authentic=False)
        unknown = self._not_understood(request)
        if unknown:
            error = ErrorCode(420, "Unknown Attribute")
            return self._refuse(request, datagram, now, error, (UNKNOWN_ATTRIBUTES, unknown))
        port = request.get(RESPONSE_PORT)
        destination = datagram.source if port is None else TransportAddress(datagram.source.host, port)
        if not may_send_to(destination, frozenset()):
            return self._refuse(request, datagram, now, ErrorCode(400, "Bad Request"))
        self._counters["requests"] += 1
        data = self._encode(request, request.success((XOR_MAPPED_ADDRESS, datagram.source)))
        return Reply(Transmit(datagram.base, destination, data), is_success=True)

    def _is_authentic(self, request: Message, key: IntegrityKey) -> bool:
        """RFC 8489, 9.1.3: where MESSAGE-INTEGRITY-SHA256 is present, it alone counts."""
        if request.get(USERNAME) is None:
            return False
        return request.verify_sha256(key) if request.has_integrity_sha256 else request.verify(key)

    def _encode(self, request: Message, response: Message, *, is_signed: bool = True) -> bytes:
        """RFC 8489, 9.1.3: "only one of these attributes can appear in a response"."""
        key = self._key if is_signed else None
        is_sha256 = key is not None and request.has_integrity_sha256
        return response.encode(key, sha256=is_sha256, fingerprint=request.has_fingerprint)

    def _not_understood(self, request: Message) -> tuple[int, ...]:
        """Codes for a 420: RFC 5780, 6.1, "does not have an alternate address and port"."""
        refused = _UNAVAILABLE if self._offers_response_port else (*_UNAVAILABLE, RESPONSE_PORT.code)
        found = [code for code, _ in request.attributes if code in refused]
        return tuple(dict.fromkeys((*request.unknown_required, *found)))

    def _refuse(
        self,
        request: Message,
        datagram: Datagram,
        now: float,
        error: ErrorCode,
        *pairs: tuple[Attribute[Any], Any],
        is_authentic: bool = True,
    ) -> Reply | None:
        if not self._limiter.admits(datagram.source.host, now):
            return None
        self._counters[f"errors: {error.code}"] += 1
        response = request.error_response(error.code, error.reason, *pairs)
        # RFC 8489, 9.1.3: "If any of the checks fail, a server MUST NOT include" a signature, else it MUST.
        data = self._encode(request, response, is_signed=is_authentic)
        return Reply(Transmit(datagram.base, datagram.source, data), is_success=False)


class FarEnd:
    """A host that is punched to: answers whoever asks, on any number of sockets, and remembers nobody.

    Args:
        key: see :class:`Responder`.

    Attributes:
        bases: our own addresses, kept up to date by the shell: nothing is ever sent to one.
        counters: ``requests`` (answered), ``errors: <code>``, ``indications``, ``network errors``, and
            ``dropped: <reason>``.
    """

    def __init__(self, key: IntegrityKey | None = None) -> None:
        self.bases: set[TransportAddress] = set()
        self.counters: Counter[str] = Counter()
        self._responder = Responder(key, self.counters, offers_response_port=True)
        self._transmits: deque[Transmit] = deque(maxlen=OUTPUT_LIMIT)
        self._events: deque[Event] = deque(maxlen=OUTPUT_LIMIT)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Answer a Binding request; drop everything else."""
        if not is_stun(datagram.data):
            self._drop(datagram, "not STUN")
            return
        try:
            message = parse(datagram.data)
        except BadMessage:
            self._drop(datagram, "malformed")
            return
        if message.method != Method.BINDING:
            self._drop(datagram, "method not supported")
        elif message.is_indication:
            self.counters["indications"] += 1
        elif not message.is_request:
            self._drop(datagram, "response")
        elif not may_send_to(datagram.source, self.bases):
            self._drop(datagram, "source not answered")
        else:
            reply = self._responder.answer(message, datagram, now)
            if reply is None:
                self._drop(datagram, "too many errors")
            elif reply.transmit.destination in self.bases:
                self._drop(datagram, "source not answered")
            else:
                self._transmits.append(reply.transmit)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """A client has gone; the next request is answered all the same."""
        self.counters["network errors"] += 1

    def handle_timeout(self, now: float) -> None:
        """Nothing is waited for."""

    def poll_timeout(self) -> float | None:
        """``None``: nothing is waited for."""
        return None

    def poll_transmit(self) -> Transmit | None:
        """One response."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One :class:`PacketDropped`."""
        return self._events.popleft() if self._events else None

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))
