"""What is asked of the far end while a lifetime is measured, and which responses count? See ``lifetime.py``.

A response counts when it comes from the far end, to a request of ours that has not been answered, signed where we sign,
and on the socket that it was asked to come to. Pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from enum import Enum
from random import Random
from typing import Any, NamedTuple

from iceagent.nat.lifetime_binding import Binding
from iceagent.nat.responding import binding_indication, binding_request
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from relay.stun import XOR_MAPPED_ADDRESS, Attribute, BadMessage, IntegrityKey, Message, Method, is_stun, parse

__all__ = ["Aim", "Answer", "Outcome", "Request", "Requests"]

MAX_OUTSTANDING = 1_024
"""Requests whose responses are still taken: twice what all bindings of a round are looked at with."""

OUTPUT_LIMIT = 4_096


class Aim(Enum):
    """What a request is for."""

    SETUP = "to make or keep a binding"
    LOOK = "to see whether it is alive"
    CONTROL = "to see whether the far end answers"


class Outcome(Enum):
    """What became of a request."""

    SUCCESS = "it was answered"
    ELSEWHERE = "its answer came to another socket of ours"
    ERROR = "it was refused"


class Request(NamedTuple):
    """What was asked.

    Attributes:
        aim: see there.
        binding: whose; ``None``: nobody's but the asker's.
        arrives_at: the socket of ours that the response is to come to.
    """

    aim: Aim
    binding: Binding | None
    arrives_at: TransportAddress


class Answer(NamedTuple):
    """What a response says.

    Attributes:
        request: what was asked.
        outcome: see there.
        mapped: where the far end saw the socket that asked; ``None``: it does not say, or refused.
        words: what it refused with, a clause.
    """

    request: Request
    outcome: Outcome
    mapped: TransportAddress | None = None
    words: str = ""


class Requests:
    """Requests to one far end.

    Args:
        server: the far end.
        key: signs them, and has to sign what answers them; ``None``: nothing is signed.
        system_rng: for transaction ids.
        counters: ``sent``, ``answers`` and ``dropped: <reason>`` are counted there.
        events: takes a :class:`PacketDropped` of everything that does not count.

    Attributes:
        transmits: what is to be sent.
        complaint: why there may be no answer, a clause; whoever was answered empties it.
    """

    def __init__(
        self,
        server: TransportAddress,
        key: IntegrityKey | None,
        system_rng: Random,
        counters: Counter[str],
        events: deque[Event],
    ) -> None:
        self.transmits: deque[Transmit] = deque(maxlen=OUTPUT_LIMIT)
        self.complaint = ""
        self._server = server
        self._key = key
        self._system_rng = system_rng
        self._counters = counters
        self._events = events
        self._outstanding: OrderedDict[bytes, Request] = OrderedDict()

    def __len__(self) -> int:
        """Of those whose responses are still taken."""
        return len(self._outstanding)

    def ask(self, base: TransportAddress, request: Request, *pairs: tuple[Attribute[Any], Any]) -> None:
        """Send a request from ``base``, with these attributes."""
        identity = self._new_id()
        if len(self._outstanding) >= MAX_OUTSTANDING:
            self._outstanding.popitem(last=False)
        self._outstanding[identity] = request
        self.transmits.append(Transmit(base, self._server, binding_request(identity, self._key, *pairs)))
        self._counters["sent"] += 1

    def indicate(self, base: TransportAddress) -> None:
        """Send what nobody answers."""
        self.transmits.append(Transmit(base, self._server, binding_indication(self._new_id())))

    def receive(self, datagram: Datagram) -> Answer | None:
        """What a datagram says of a request; ``None``: nothing."""
        try:
            message = parse(datagram.data) if is_stun(datagram.data) else None
        except BadMessage:
            message = None
        if message is None or message.method != Method.BINDING or not (message.is_success or message.is_error):
            self._drop(datagram, "no response")
            return None
        request = self._outstanding.get(message.transaction_id)
        if request is None or datagram.source != self._server:
            self._drop(datagram, "response to no request of ours")
            return None
        return self._on_response(message, request, datagram)

    def _on_response(self, message: Message, request: Request, datagram: Datagram) -> Answer | None:
        if message.is_error:
            return self._on_error(message, request, datagram)
        if not self._is_ours(message):
            self.complaint = "its answer is not signed with our key"
            self._drop(datagram, "response without our signature")
            return None
        if message.unknown_required:
            self._drop(datagram, "response that is not understood")
            return None
        if datagram.base != request.arrives_at:
            # RFC 5780, 4.6: on port Y, "it knows that the binding has expired"; or RESPONSE-PORT was ignored.
            self._drop(datagram, "response on another socket")
            return Answer(request, Outcome.ELSEWHERE)
        del self._outstanding[message.transaction_id]
        self._counters["answers"] += 1
        return Answer(request, Outcome.SUCCESS, message.get(XOR_MAPPED_ADDRESS))

    def _on_error(self, message: Message, request: Request, datagram: Datagram) -> Answer | None:
        words = "an error" if message.error is None else f"{message.error.code} {message.error.reason}".rstrip()
        self.complaint = f"it answers {words}"
        self._drop(datagram, "error response")
        # RFC 8489, 9.1.4: one that is not signed "MUST be discarded"; it is a reason for silence, and ends nothing.
        return Answer(request, Outcome.ERROR, words=words) if self._is_ours(message) else None

    def _is_ours(self, message: Message) -> bool:
        """Signed as our requests are: RFC 8489, 9.1.4, "the algorithm in the response has to match"."""
        return self._key is None or message.verify(self._key)

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self._counters[f"dropped: {reason}"] += 1
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))

    def _new_id(self) -> bytes:
        return self._system_rng.getrandbits(96).to_bytes(12, "big")
