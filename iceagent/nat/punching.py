"""How do two hosts meet through the firewalls and NATs between them, when each knows the other's address?

Each sends until it is answered. What is sent is a Binding request (RFC 8489), so every STUN server is an answerer, and
two of these cores answer each other (``responding.py``). A response proves both directions: its transaction id is known
only to who received the request, and it has to come from exactly where that went. An echo of the request proves the
same (a reflector), where no key is asked for.

- First an *opener* leaves, with TTL 2: it makes the entry in our own NAT before the other end's first packet arrives at
  it, which on some routers would spoil the port for good (``openers.py``). Requests follow ``lead_s`` later. Whoever is
  started by hand begins seconds before the other end; with a lead as long as that, nothing of ours knocks at a NAT that
  is not open yet. A request that comes in ends the lead: the other end has begun.
- Requests leave 0, 0.1, 0.2, 0.4 and 0.8 s after the first, then every second (``punch_way.py``). Each has a
  transaction id of its own, so that every response tells a round-trip time. An ICMP error ends nothing, since the other
  end may not be up yet: it is told as the reason when time is up. DEVIATION: RFC 8489, 6.2 and 6.2.1: retransmissions
  after 500 ms, doubled each time, at most 7; ten outstanding transactions; "considered failed if there has been a hard
  ICMP error"; pinned by test_an_opener_goes_first_and_requests_follow.
- A request that comes in is answered, and asks back at once.

Who counts as the other end: without a key, who answers from exactly an address that was given. With a key everything is
signed (MESSAGE-INTEGRITY), and then a request from elsewhere is followed: behind a NAT with address-dependent mapping,
or after a rebinding, the other end is at an address that nobody was told. A request of ours that comes back as if it
were the other end's is not answered: the response would be signed with the key, and could be played back to us.

The socket then carries data: what is not STUN, from an address that was met. Data that is a round trip early is held:
16 datagrams, a second. :attr:`Puncher.path` is where to send.

A path is kept by requests, since some carriers forget a binding that nobody answers through. After four of them without
an answer it is lost; so it is when the other end sees us at another address. What does not end: trying again. Pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from random import Random
from typing import NamedTuple

from iceagent.nat.openers import FIRST_TTL, explains
from iceagent.nat.punch_report import (
    Answered,
    DataReceived,
    Failed,
    Lost,
    Path,
    PunchOptions,
    RoundTrips,
    Settled,
)
from iceagent.nat.punch_way import KEEPALIVE_TRIES, Way
from iceagent.nat.responding import Responder, binding_indication, binding_request, may_send_to
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import XOR_MAPPED_ADDRESS, BadMessage, Message, Method, is_stun, parse

__all__ = ["Puncher"]

OPENER_S = 1.0
"""Between openers, where the lead is longer than that: one may be lost, and a NAT forgets."""

SAMPLES, SAMPLE_S = 3, 0.2
"""Requests after the first answer, for the round-trip time, and how far apart they are."""

SETTLE_S, LINGER_S, MAX_LINGER_S = 0.7, 2.0, 10.0
"""How long answers are given after ours came, at least, and after each request of the other end; and at most."""

TRIGGER_S = 0.05
"""At least between two requests to one address, whatever asks for them."""

MAX_WAYS = 16
"""Addresses that are given: both ends of a name with some addresses of each IP version."""

MAX_LEARNED, LEARNED_TRIES = 4, 8
"""Addresses learned from signed requests, of which the oldest goes, and requests that are sent to one in vain."""

OPEN_TRIES = 1
"""The latter where nothing is signed: the source may be forged, so what is sent there is a request for a request."""

MAX_OUTSTANDING = 64
"""Requests whose responses are still taken: 16 addresses, four each."""

MAX_HELD, HOLD_S = 16, 1.0
"""Datagrams that came before their sender was met, and seconds that one is kept."""

OUTPUT_LIMIT = 1_024
"""Datagrams and events that wait for the shell, which takes them after every input. The oldest go first."""


class _Request(NamedTuple):
    way: Way
    sent_at: float
    data: bytes


class Puncher:
    """One end of a path that is being made, and kept. A core (``iceagent/net/core.py``).

    Args:
        options: see there.
        system_rng: for transaction ids.

    Attributes:
        path: where data goes; ``None``: nobody has been met.
        is_lost: the path does not answer at the moment.
        round_trips: of all answers on paths.
        counters: ``requests`` (of others, answered), ``errors: <code>``, ``indications``, ``network errors``,
            ``sent`` (our requests), ``answers``, and ``dropped: <reason>``.
    """

    def __init__(self, options: PunchOptions, system_rng: Random) -> None:
        self.path: Path | None = None
        self.is_lost = False
        self.round_trips = RoundTrips()
        self.counters: Counter[str] = Counter()
        self._options = options
        self._key = options.key
        self._system_rng = system_rng
        self._responder = Responder(options.key, self.counters)
        self._bases: set[TransportAddress] = set()
        self._ways: dict[Path, Way] = {}
        self._outstanding: OrderedDict[bytes, _Request] = OrderedDict()
        self._held: deque[tuple[float, Datagram]] = deque()
        self._give_up_at: float | None = None
        self._samples = SAMPLES
        self._settle_at: float | None = None
        self._settle_by = 0.0
        self._has_failed = False
        self._transmits: deque[Transmit] = deque(maxlen=OUTPUT_LIMIT)
        self._events: deque[Event] = deque(maxlen=OUTPUT_LIMIT)

    # --- commands ----------------------------------------------------------------------------------------------------

    def start(self, bases: set[TransportAddress], now: float) -> None:
        """Begin: time runs from here, and requests are answered.

        Args:
            bases: our sockets; nothing is ever sent to one.
            now: seconds.
        """
        self._bases |= bases
        if self._options.timeout_s is not None and self.path is None:
            self._give_up_at = now + self._options.timeout_s

    def follow(self, bases: set[TransportAddress], now: float) -> None:
        """Our sockets are these now. What was asked from one that has gone is not asked again; a path from there is
        lost, as its requests say.
        """
        self._bases = set(bases)
        for path in [path for path in self._ways if path.base not in bases and path != self.path]:
            del self._ways[path]

    def punch(self, base: TransportAddress, remote: TransportAddress, now: float) -> None:
        """Send from ``base`` until an answer comes from ``remote``; one that is known already is left as it is.

        Raises:
            ValueError: nothing can be sent there, or these are more than 16 addresses.
        """
        if not may_send_to(remote, self._bases):
            raise ValueError(f"{remote} is no address of another host")
        path = Path(base, remote)
        if path in self._ways:
            return
        if len(self._ways) >= MAX_WAYS:
            raise ValueError(f"more than {MAX_WAYS} addresses to punch to")
        way = self._ways[path] = Way(path)
        lead_s = self._options.lead_s
        if ip_address(remote.host).is_loopback:
            # There is no router between us.
            lead_s = 0.0
        else:
            self._send_opener(way, now)
            way.opener_at = now + OPENER_S
        way.request_at = now + lead_s
        self.handle_timeout(now)

    # --- the contract ------------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """STUN, or data."""
        if not is_stun(datagram.data):
            self._on_data(datagram, now)
            return
        try:
            message = parse(datagram.data)
        except BadMessage:
            self._drop(datagram, "malformed STUN")
            return
        if message.method != Method.BINDING:
            self._drop(datagram, "method not supported")
        elif message.is_indication:
            self.counters["indications"] += 1
        elif message.is_request:
            self._on_request(message, datagram, now)
        else:
            self._on_response(message, datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The other end may not be up yet, or an opener has died: remembered, for who asks in the end."""
        self.counters["network errors"] += 1
        way = self._ways.get(Path(base, destination))
        if way is not None and not explains(errno, way.opened_at, now):
            way.complaint = errno_in_words(errno)

    def handle_timeout(self, now: float) -> None:
        """Send what is due; give up; say that one may leave."""
        while self._held and now >= self._held[0][0]:
            self._drop(self._held.popleft()[1], "data from an address that was not met")
        if self._has_failed:
            return
        for way in list(self._ways.values()):
            if way.request_at is not None and now >= way.request_at:
                self._request_due(way, now)
            elif way.opener_at is not None and now >= way.opener_at:
                self._send_opener(way, now)
                way.opener_at = now + OPENER_S
        if self._give_up_at is not None and now >= self._give_up_at:
            self._fail()
        if self._settle_at is not None and now >= self._settle_at:
            self._settle_at = None
            self._events.append(Settled())

    def poll_timeout(self) -> float | None:
        """The next request or opener, the end of patience, or of what is held."""
        due = [self._held[0][0]] if self._held else []
        if not self._has_failed:
            due += [at for way in self._ways.values() for at in (way.request_at, way.opener_at) if at is not None]
            due += [at for at in (self._give_up_at, self._settle_at) if at is not None]
        return min(due, default=None)

    def poll_transmit(self) -> Transmit | None:
        """An opener, a request or a response."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One of those above, or :class:`PacketDropped`."""
        return self._events.popleft() if self._events else None

    # --- what we send ------------------------------------------------------------------------------------------------

    def _send_opener(self, way: Way, now: float) -> None:
        way.opened_at = now
        data = binding_indication(self._new_id())
        self._transmits.append(Transmit(way.path.base, way.path.remote, data, FIRST_TTL))

    def _request_due(self, way: Way, now: float) -> None:
        if way.path == self.path and way.unanswered >= KEEPALIVE_TRIES and not self.is_lost:
            self.is_lost = True
            reason = way.complaint or f"{way.unanswered} requests without an answer"
            self._events.append(Lost(path=way.path, reason=reason))
        tries = OPEN_TRIES if self._key is None else LEARNED_TRIES
        if way.is_learned and way.path != self.path and way.unanswered >= tries:
            del self._ways[way.path]
            return
        self._send_request(way, now)

    def _send_request(self, way: Way, now: float) -> None:
        identity = self._new_id()
        data = binding_request(identity, self._key, username=self._options.username)
        if len(self._outstanding) >= MAX_OUTSTANDING:
            self._outstanding.popitem(last=False)
        self._outstanding[identity] = _Request(way, now, data)
        self._transmits.append(Transmit(way.path.base, way.path.remote, data))
        self.counters["sent"] += 1
        way.note_request(now, is_path=way.path == self.path)

    def _new_id(self) -> bytes:
        return self._system_rng.getrandbits(96).to_bytes(12, "big")

    def _fail(self) -> None:
        self._has_failed = True
        self._give_up_at = None
        reasons = [f"{way.path.remote}: {way.complaint or 'no answer'}" for way in self._ways.values()]
        self._events.append(Failed(reason="; ".join(reasons) or "nobody has asked"))

    # --- what comes in -----------------------------------------------------------------------------------------------

    def _on_request(self, message: Message, datagram: Datagram, now: float) -> None:
        path = Path(datagram.base, datagram.source)
        way = self._ways.get(path)
        ours = self._outstanding.get(message.transaction_id)
        if ours is not None:
            self._on_echo(ours, path, datagram, now)
        elif not may_send_to(datagram.source, self._bases):
            self._drop(datagram, "source not answered")
        elif way is None and self._key is None and not self._options.is_open:
            self._drop(datagram, "a stranger's request")
        else:
            reply = self._responder.answer(message, datagram, now)
            if reply is None:
                self._drop(datagram, "too many errors")
                return
            self._transmits.append(reply.transmit)
            if reply.is_success and not self._has_failed and (way is not None or self._may_learn()):
                self._ask_back(way or self._learn(path), now)

    def _on_echo(self, ours: _Request, path: Path, datagram: Datagram, now: float) -> None:
        """Our own request came back."""
        if self._key is not None or ours.way.path != path or ours.data != datagram.data:
            ours.way.complaint = ours.way.complaint or "what we send comes back"
            self._drop(datagram, "our own request")
            return
        del self._outstanding[datagram.data[8:20]]
        self._on_answer(ours, None, now)

    def _may_learn(self) -> bool:
        """Where nothing is signed, the first one who was met stays the other end."""
        return self._key is not None or self.path is None

    def _learn(self, path: Path) -> Way:
        """One more address; the oldest one that is neither the path nor was given makes room."""
        learned = [way for way in self._ways.values() if way.is_learned and way.path != self.path]
        if len(learned) >= MAX_LEARNED:
            del self._ways[learned[0].path]
        way = self._ways[path] = Way(path, is_learned=True)
        return way

    def _ask_back(self, way: Way, now: float) -> None:
        """Who asks is up, and our NAT has let it in. It has to show that it hears us, too, unless it just did."""
        way.asked_at = now
        if self._settle_at is not None:
            self._settle_at = max(self._settle_at, min(now + LINGER_S, self._settle_by))
        is_path = way.path == self.path and not self.is_lost
        if not is_path and now - way.sent_at >= TRIGGER_S:
            self._send_request(way, now)

    def _on_response(self, message: Message, datagram: Datagram, now: float) -> None:
        request = self._outstanding.get(message.transaction_id)
        path = Path(datagram.base, datagram.source)
        if request is None or request.way.path != path:
            self._drop(datagram, "response to no request of ours")
            return
        way = request.way
        if message.is_error:
            words = "an error" if message.error is None else f"{message.error.code} {message.error.reason}".rstrip()
            way.complaint = f"it answers {words}"
            self._drop(datagram, "error response")
        elif self._key is not None and not message.verify(self._key):
            way.complaint = "its answer is not signed with our key"
            self._drop(datagram, "response without our signature")
        elif message.unknown_required:
            self._drop(datagram, "response that is not understood")
        elif (mapped := message.get(XOR_MAPPED_ADDRESS)) is None:
            # RFC 8489, 6.3.3: "the client checks that the XOR-MAPPED-ADDRESS attribute is present".
            way.complaint = "its answer has no mapped address"
            self._drop(datagram, "response without our address")
        else:
            del self._outstanding[message.transaction_id]
            self._on_answer(request, mapped, now)

    def _on_answer(self, request: _Request, mapped: TransportAddress | None, now: float) -> None:
        way, rtt_s = request.way, now - request.sent_at
        if self._has_failed or self._ways.get(way.path) is not way:
            return
        self.counters["answers"] += 1
        old = way.mapped
        way.note_answer(mapped)
        if self._is_better(way):
            self._take(way, rtt_s, now)
        elif way.path == self.path:
            self.round_trips.add(rtt_s)
            if None not in (old, mapped) and old != mapped:
                self._events.append(Lost(path=way.path, reason=f"it saw us at {old}, and now at {mapped}"))
                self._events.append(Answered(path=way.path, mapped=mapped, rtt_s=rtt_s))
        if way.path == self.path:
            self._schedule_next(way, now)
        if self._is_met(way):
            self._release(way.path)

    def _is_better(self, way: Way) -> bool:
        """Whether data is to go to an address that has just answered."""
        if self.path is None or way.path == self.path:
            return self.path is None or self.is_lost
        # The other end asks from there now.
        return way.is_learned and (self.is_lost or way.asked_at > self._ways[self.path].asked_at)

    def _take(self, way: Way, rtt_s: float, now: float) -> None:
        if self.path is None:
            self._settle_at, self._settle_by = now + max(SETTLE_S, 2 * rtt_s), now + MAX_LINGER_S
            if way.asked_at > float("-inf"):
                self._settle_at = max(self._settle_at, way.asked_at + LINGER_S)
        self.path, self.is_lost, self._give_up_at = way.path, False, None
        self.round_trips.add(rtt_s)
        for other in self._ways.values():
            if other is not way:
                other.rest()
        self._events.append(Answered(path=way.path, mapped=way.mapped, rtt_s=rtt_s))

    def _schedule_next(self, way: Way, now: float) -> None:
        if self._samples > 0:
            self._samples -= 1
            way.request_at = now + SAMPLE_S
        elif self._options.keepalive_s is not None:
            way.request_at = now + self._options.keepalive_s

    # --- data --------------------------------------------------------------------------------------------------------

    def _on_data(self, datagram: Datagram, now: float) -> None:
        way = self._ways.get(Path(datagram.base, datagram.source))
        if way is not None and self._is_met(way):
            self._events.append(DataReceived(data=datagram.data))
        elif way is not None and len(self._held) < MAX_HELD:
            self._held.append((now + HOLD_S, datagram))
        else:
            self._drop(datagram, "data from an address that was not met")

    def _is_met(self, way: Way) -> bool:
        """Whether it has answered; of those who ask unsigned, the first one."""
        is_known = self._key is not None or not way.is_learned
        return way.has_answered and (is_known or way.path == self.path)

    def _release(self, path: Path) -> None:
        """What has waited for its sender to be met."""
        if self._held:
            for _, datagram in self._held:
                if (datagram.base, datagram.source) == path:
                    self._events.append(DataReceived(data=datagram.data))
            self._held = deque(item for item in self._held if (item[1].base, item[1].source) != path)

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))
