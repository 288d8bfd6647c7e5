"""Is there a gateway that speaks UPnP, and which of its services is the one? Pure.

The search goes to the gateway's own address first, and to the multicast group 100 ms later, unless the gateway has
answered by then:

- a stateful firewall of this machine knows a unicast search, so it lets the answer in; that to a multicast it may drop;
- so the multicast, which wakes every device of a radio network and brings answers of others, is mostly not sent at
  all: most gateways answer within a few milliseconds, miniupnpd, which is in very many, after 50.

At 0.4 s, if nothing usable has answered, everything is sent once more, with the names of services as well. At 1.2 s
(MX is 1 s) a search without an answer has failed.

Every LOCATION is vetted and fetched at once, side by side: a dead device costs nobody else time. Of what is described,
the external address is asked at once too; where one description has several services, also which is connected. 50 ms
after the first answer the best is taken: on the gateway itself rather than on a neighbour; connected; with a public
external address; of version 2; first in the document.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from iceagent.net.address import TransportAddress, canonical_host
from iceagent.net.core import Datagram, Transmit
from portmap.upnp.description import Service, services_of
from portmap.upnp.elements import BadDocument
from portmap.upnp.exchanges import Answer, Exchanges, Page
from portmap.upnp.ssdp import GROUPS, SEARCH_TARGETS, SERVICE_TARGETS, SSDP_PORT, BadReply, parse_reply, search
from portmap.upnp.urls import BadUrl, Url, is_neighbour, vet_location
from portmap.values import Gateway, Trust, trust_of

__all__ = ["Choice", "Discovery", "host_in"]

MULTICAST_AFTER_S = 0.1
REPEAT_AFTER_S = 0.4
SEARCH_S = 1.2
"""A search that nobody answered has failed then."""
GRACE_S = 0.05
"""From the first answer until the best one is taken."""
DESCRIPTION_TIMEOUT_S = 1.0
# How long the external address is waited for once a description is there: it is only good to know.
EXTERNAL_WAIT_S = 0.2
ASK_TIMEOUT_S = 1.0

# A gateway has one or two; more is a flood.
MAX_LOCATIONS = 10
# Those that others than the gateway told leave it this many.
KEPT_FOR_GATEWAY = 4
MAX_DESCRIPTION_BYTES = 128 * 1024

# WANIPConnection:1, 2.2.2: ConnectionStatus. A word that is not of these says nothing.
_DOWN = frozenset({"unconfigured", "connecting", "disconnecting", "disconnected"})
_TRUST_ORDER = {Trust.GLOBAL: 0, Trust.CARRIER: 1, Trust.PRIVATE: 1, Trust.UNKNOWN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was found.

    Attributes:
        service: which makes mappings.
        external_host: the gateway's external address, where it was told in time.
        is_external_told: the gateway was asked for that, and has answered.
        rtt_s: from the first search to the description.
    """

    service: Service
    external_host: str | None
    is_external_told: bool
    rtt_s: float


@dataclass(slots=True)
class _Candidate:
    """A service that was described."""

    service: Service
    url: Url
    found_at: float
    waiting: int = 0
    is_down: bool = False
    is_told: bool = False
    external: str | None = None

    def is_ready(self, now: float) -> bool:
        return not self.waiting or now >= self.found_at + EXTERNAL_WAIT_S


class Discovery:
    """One search.

    Args:
        gateway: whose services are wanted.
        base: the socket that searches.
        exchanges: fetches.
        now: the time.
        then: called once, with what was found, or the reason why nothing was; and the time.
    """

    def __init__(
        self,
        gateway: Gateway,
        base: TransportAddress,
        exchanges: Exchanges,
        now: float,
        then: Callable[[Choice | str, float], None],
    ) -> None:
        self.transmits: deque[Transmit] = deque()
        self._gateway = gateway
        self._base = base
        self._exchanges = exchanges
        self._begun_at = now
        self._then = then
        self._is_over = False
        # What is still to be sent, and when.
        self._rounds: deque[tuple[float, Callable[[], None]]] = deque(
            [(now + MULTICAST_AFTER_S, self._search_all), (now + REPEAT_AFTER_S, self._repeat)]
        )
        self._first_answer_at: float | None = None
        self._locations: set[Url] = set()
        self._fetching: set[Url] = set()
        # Of the LOCATIONs, those that the gateway itself told.
        self._own: set[Url] = set()
        self._candidates: list[_Candidate] = []
        self._reason = ""
        self._settled_at = now
        self._send(self._own_address, SEARCH_TARGETS)

    def handle_datagram(self, datagram: Datagram, now: float) -> str | None:
        """Take an answer. Returns why it was of no use; ``None``: it was, or is known already."""
        if not is_neighbour(datagram.source.host, self._gateway):
            return "SSDP message from another network"
        try:
            reply = parse_reply(datagram.data)
        except BadReply as error:
            return str(error)
        is_gateway = datagram.source.host == self._gateway.host
        if not reply.names_gateway and not is_gateway:
            return "SSDP answer that names nothing"
        try:
            url = vet_location(reply.location, datagram.source.host, self._gateway)
        except BadUrl as error:
            self._reason = f"the LOCATION of {datagram.source.host} is refused: {error}"
            return "LOCATION refused"
        if is_gateway and len(self._own) < MAX_LOCATIONS:
            self._own.add(url)
        if url in self._locations:
            return None
        if len(self._locations) >= MAX_LOCATIONS - (0 if is_gateway else KEPT_FOR_GATEWAY):
            return "too many LOCATIONs"
        self._locations.add(url)
        self._fetching.add(url)
        if self._first_answer_at is None:
            self._first_answer_at = now

        def take(page: Page, at: float) -> None:
            self._on_description(url, page, at)

        source = self._gateway.source
        self._exchanges.get(url, source, DESCRIPTION_TIMEOUT_S, MAX_DESCRIPTION_BYTES, now, take)
        return None

    def handle_refusal(self, now: float) -> None:
        """The gateway's own port for searches is closed. Some listen to the group only, so it is asked at once."""
        if self._rounds and self._rounds[0][1] == self._search_all:
            self._rounds[0] = (now, self._search_all)
            self.handle_timeout(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed."""
        if self._is_over:
            return
        while self._rounds and now >= self._rounds[0][0]:
            self._rounds.popleft()[1]()
        self._decide(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        if self._is_over:
            return None
        deadlines = [self._begun_at + SEARCH_S] if not self._fetching and not self._candidates else []
        deadlines += [at for at, _ in self._rounds]
        if self._first_answer_at is not None and self._candidates:
            deadlines.append(self._first_answer_at + GRACE_S)
            waits = [each.found_at + EXTERNAL_WAIT_S for each in self._candidates if each.waiting]
            deadlines += waits
        # What is past waits for something else: a description, which has a deadline of its own.
        return min((at for at in deadlines if at > self._settled_at), default=None)

    # --- what is sent ---

    @property
    def _own_address(self) -> TransportAddress:
        return TransportAddress(self._gateway.host, SSDP_PORT)

    @property
    def _has_hope(self) -> bool:
        return bool(self._fetching or self._candidates)

    def _search_all(self) -> None:
        if not (self._own and self._has_hope):
            self._send(GROUPS[self._gateway.version], SEARCH_TARGETS)

    def _repeat(self) -> None:
        if not self._has_hope:
            targets = (*SEARCH_TARGETS, *SERVICE_TARGETS[self._gateway.version])
            self._send(self._own_address, targets)
            self._send(GROUPS[self._gateway.version], targets)

    def _send(self, destination: TransportAddress, targets: tuple[str, ...]) -> None:
        for target in targets:
            self.transmits.append(Transmit(self._base, destination, search(target, self._gateway.version)))

    # --- what is heard ---

    def _on_description(self, url: Url, page: Page, now: float) -> None:
        if self._is_over:
            return
        self._fetching.discard(url)
        try:
            self._take_services(url, page, now)
        except BadDocument as error:
            self._reason = f"the description at {url.server} is of no use: {error}"
        self._decide(now)

    def _take_services(self, url: Url, page: Page, now: float) -> None:
        if page.status is None:
            raise BadDocument(page.reason)
        if page.status != 200:
            raise BadDocument(f"HTTP {page.status}")
        is_firewall = self._gateway.version == 6
        found = [each for each in services_of(page.body, url) if each.is_firewall is is_firewall]
        if not found:
            kind = "WANIPv6FirewallControl" if is_firewall else "WANIPConnection"
            raise BadDocument(f"it has no {kind}")
        for service in found:
            candidate = _Candidate(service, url, now)
            self._candidates.append(candidate)
            if not is_firewall:
                self._ask(candidate, "GetExternalIPAddress", self._on_external, now)
                if len(found) > 1:
                    self._ask(candidate, "GetStatusInfo", self._on_status, now)

    def _ask(self, candidate: _Candidate, action: str, take: Callable[[_Candidate, Answer], None], now: float) -> None:
        candidate.waiting += 1

        def on_answer(answer: Answer, at: float) -> None:
            candidate.waiting -= 1
            take(candidate, answer)
            self._decide(at)

        self._exchanges.call(candidate.service, self._gateway.source, action, (), ASK_TIMEOUT_S, now, on_answer)

    def _on_external(self, candidate: _Candidate, answer: Answer) -> None:
        candidate.is_told = answer.values is not None
        candidate.external = host_in(answer)

    def _on_status(self, candidate: _Candidate, answer: Answer) -> None:
        status = (answer.values or {}).get("NewConnectionStatus", "")
        candidate.is_down = status.lower() in _DOWN

    # --- what is taken ---

    def _decide(self, now: float) -> None:
        """End, if it is time."""
        self._settled_at = now
        if self._is_over:
            return
        if not self._candidates:
            if not self._fetching and now >= self._begun_at + SEARCH_S:
                self._end(self._reason or f"no answer within {SEARCH_S:g} s", now)
            return
        if self._first_answer_at is not None and now < self._first_answer_at + GRACE_S:
            return
        candidates = [each for each in self._candidates if each.url in self._own]
        if not candidates:
            # The gateway itself may be slower than a neighbour that answers for it.
            if self._fetching & self._own:
                return
            candidates = self._candidates
        if not all(each.is_ready(now) for each in candidates):
            return
        best = min(candidates, key=_rank)
        rtt_s = best.found_at - self._begun_at
        choice = Choice(service=best.service, external_host=best.external, is_external_told=best.is_told, rtt_s=rtt_s)
        self._end(choice, now)

    def _end(self, result: Choice | str, now: float) -> None:
        self._is_over = True
        self.transmits.clear()
        self._then(result, now)


def _rank(candidate: _Candidate) -> tuple[bool, int, bool]:
    """The lowest is the best, and of equal ones the first."""
    return candidate.is_down, _TRUST_ORDER[trust_of(candidate.external)], candidate.service.version < 2


def host_in(answer: Answer) -> str | None:
    """The external address in an answer to GetExternalIPAddress; ``None``: it knows none, or said nothing sensible."""
    text = (answer.values or {}).get("NewExternalIPAddress", "").strip()
    try:
        host = canonical_host(text)
    except ValueError:
        return None
    return None if ":" in host or host == "0.0.0.0" else host
