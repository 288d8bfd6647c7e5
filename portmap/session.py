"""Which protocol maps at a gateway, and what happens when it does not?

One :class:`GatewaySession` for each gateway. All protocols are asked at once whether the gateway speaks them, which
changes nothing there. Then *one* maps: PCP before NAT-PMP before UPnP, and a lesser one only once its betters had 50 ms
more. The next one maps when this one was refused or silent: gateways may keep one rule for an inner port whatever the
protocol (miniupnpd does), so that two that map it, or one that takes its own mapping back, would be in each other's
way. For the same reason a mapping that was asked for in vain is abandoned, and not deleted.

Pure; the contract of ``iceagent/net/core.py``. The clients of the protocols are cores as well
(:class:`portmap.events.ProtocolClient`).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from portmap.events import (
    Discovered,
    GatewayRestarted,
    Mapped,
    MappingLost,
    MappingRefused,
    NoMapping,
    NotFound,
    ProtocolClient,
    Unmapped,
)
from portmap.natpmp import NatPmpClient
from portmap.pace import Pace
from portmap.pcp import PCP_PORT, PcpClient, is_for_pcp
from portmap.upnp import MappingsListed, UpnpClient
from portmap.values import PROTOCOLS, Gateway, MapRequest, ProtocolName, Transport

__all__ = ["GRACE_S", "MAX_MAPPINGS", "GatewaySession"]

GRACE_S = 0.05
"""How long a better protocol is waited for once one has answered: as long as Tailscale waits."""

KNOWN_FOR_S = 600.0
"""How long it is believed that a gateway speaks a protocol. That it does not, half a minute: it may be booting."""

UNKNOWN_FOR_S = 30.0

RETRY_S = 30.0
MAX_RETRY_S = 1800.0
"""When all are asked again after none gave a mapping: twice as late each time, unless one is needed badly."""

MAX_MAPPINGS = 256

NEWS = (4, 4.0)
"""News of one mapping: so many in so many seconds, and afterwards the latest. A gateway, or whoever forges its
announcements, may tell another external address with each packet."""

LOSSES = (3, 60.0)
"""A mapping that is lost more often is no mapping: another protocol is tried, or nobody for a while. A gateway may give
a lifetime of a second."""


class _State(Enum):
    UNKNOWN = "unknown"
    ASKING = "asking"
    FOUND = "found"
    MISSING = "missing"


@dataclass(slots=True)
class _Speaker:
    """One protocol at this gateway.

    Attributes:
        since: when ``state`` was learned.
        silent_until: it said that it is not to be asked for a mapping before.
        reason: why it is missing, or what it said then.
    """

    client: ProtocolClient
    state: _State = _State.UNKNOWN
    since: float = -math.inf
    silent_until: float = -math.inf
    reason: str = ""

    def is_known(self, now: float) -> bool:
        """Whether there is no need to ask (again) if the gateway speaks it."""
        age = now - self.since
        known_for = {_State.ASKING: math.inf, _State.FOUND: KNOWN_FOR_S, _State.MISSING: UNKNOWN_FOR_S}
        return age < known_for.get(self.state, -math.inf)

    def forget(self) -> None:
        """What was known does not count any more."""
        if self.state is not _State.ASKING:
            self.state = _State.UNKNOWN
        self.silent_until = -math.inf


@dataclass(slots=True)
class _Wanted:
    """One mapping.

    Attributes:
        active: who maps it, or is asked to.
        client_key: its name there; each attempt has another one.
        failed: who was asked in vain, and why.
        silent: who was asked and did not answer, and may have made it all the same.
        news: when it is told.
        untold: waits for that.
        losses: how often it was lost.
    """

    request: MapRequest
    protocols: tuple[ProtocolName, ...]
    active: ProtocolName | None = None
    client_key: int = 0
    failed: dict[ProtocolName, str] = field(default_factory=dict)
    silent: set[ProtocolName] = field(default_factory=set)
    failed_at: float = -math.inf
    retry_at: float = math.inf
    retries: int = 0
    news: Pace = field(default_factory=lambda: Pace(*NEWS))
    untold: Mapped | None = None
    losses: Pace = field(default_factory=lambda: Pace(*LOSSES))

    def tells_at(self, now: float) -> float:
        """When what is untold is to be told; infinite: nothing is."""
        return math.inf if self.untold is None else self.news.ready_at(now)


class GatewaySession:
    """Mappings at one gateway.

    Args:
        gateway: see there.
        base: our socket there.
        rng: jitter.
        system_rng: nonces and ports.
        protocols: which may be used.

    Attributes:
        gateway: as given.
        upnp: the client of UPnP, which takes the answers to its ``Fetch``; ``None``: not in ``protocols``.
        protocols: as given, but those that do not go with the gateway's IP version.
    """

    def __init__(
        self,
        gateway: Gateway,
        base: TransportAddress,
        rng: Random,
        system_rng: Random,
        protocols: Sequence[ProtocolName] = PROTOCOLS,
    ) -> None:
        self.gateway = gateway
        self.upnp: UpnpClient | None = None
        self._speakers: dict[ProtocolName, _Speaker] = {}
        if "pcp" in protocols:
            self._speakers["pcp"] = _Speaker(PcpClient(gateway, base, rng, system_rng))
        if "nat-pmp" in protocols and gateway.version == 4:
            self._speakers["nat-pmp"] = _Speaker(NatPmpClient(gateway, base, rng, system_rng))
        if "upnp" in protocols:
            self.upnp = UpnpClient(gateway, base, rng, system_rng)
            self._speakers["upnp"] = _Speaker(self.upnp)
        self.protocols = tuple(self._speakers)
        self._wanted: dict[int, _Wanted] = {}
        self._by_client_key: dict[int, int] = {}
        self._ending: dict[int, int] = {}
        self._keys = 0
        self._grace_ends = math.inf
        self._is_grace_over = False
        self._is_collecting = False
        self._is_list_wanted = False
        self._events: deque[Event] = deque()

    # --- commands ------------------------------------------------------------------------------------------------

    def map(self, key: int, request: MapRequest, now: float, protocols: Sequence[ProtocolName] | None = None) -> None:
        """Make a mapping and keep it: :class:`Mapped` or :class:`NoMapping` follows, again and again.

        Args:
            key: names it in events; never used twice.
            request: see there.
            now: the time.
            protocols: only by these; ``None``: by whichever.

        Raises:
            ValueError: there are :data:`MAX_MAPPINGS` already, or one of this port: to PCP and NAT-PMP it would be the
                same one.
        """
        if len(self._wanted) >= MAX_MAPPINGS:
            raise ValueError(f"there are {MAX_MAPPINGS} mappings at {self.gateway} already")
        port = _port_of(request)
        if any(_port_of(other.request) == port for other in self._wanted.values()):
            raise ValueError(f"{request.transport} {request.internal} is mapped already")
        wanted = self.protocols if protocols is None else tuple(name for name in self.protocols if name in protocols)
        self._wanted[key] = _Wanted(request, wanted)
        self._discover(now)
        self._choose(now)
        self._collect(now)

    def unmap(self, key: int, now: float) -> bool:
        """Delete a mapping. True: that takes an exchange, and :class:`Unmapped` follows within half a second.

        Where nobody maps it, what those may have made who did not answer is deleted: it has no other owner then.
        """
        wanted = self._wanted.pop(key, None)
        if wanted is None:
            return False
        if wanted.active is None:
            return self._withdraw(key, wanted, now)
        self._by_client_key.pop(wanted.client_key, None)
        self._ending[wanted.client_key] = key
        self._speakers[wanted.active].client.unmap(wanted.client_key, now)
        self._collect(now)
        return True

    def _withdraw(self, key: int, wanted: _Wanted, now: float) -> bool:
        for name in self.protocols:
            if name in wanted.silent:
                self._keys += 1
                self._ending[self._keys] = key
                if not self._speakers[name].client.withdraw(self._keys, wanted.request, now):
                    del self._ending[self._keys]
        is_asked = key in self._ending.values()
        self._collect(now)
        return is_asked

    def list_mappings(self, now: float) -> None:
        """See :meth:`portmap.upnp.UpnpClient.list_mappings`."""
        self._is_list_wanted = True
        self._discover(now)
        self._list_if_known(now)

    def refresh(self, now: float) -> None:
        """The network changed: nothing that is known of the gateway counts any more."""
        for speaker in self._speakers.values():
            speaker.forget()
            speaker.client.refresh(now)
        for wanted in self._wanted.values():
            if wanted.active is None:
                wanted.failed.clear()
                wanted.retry_at, wanted.retries = math.inf, 0
        if self._wanted:
            self._discover(now)
        self._choose(now)
        self._collect(now)

    def ask_again(self, now: float) -> None:
        """What none of them gave is needed badly: ask once more, half a minute after they failed at the earliest."""
        for wanted in self._wanted.values():
            if wanted.retry_at < math.inf:
                wanted.retry_at = min(wanted.retry_at, max(now, wanted.failed_at + RETRY_S))

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Give it to whom it may be for; they judge where it came from."""
        name: ProtocolName = "upnp"
        if datagram.source.port == PCP_PORT:
            name = "pcp" if is_for_pcp(datagram.data) else "nat-pmp"
        speaker = self._speakers.get(name)
        if speaker is not None:
            speaker.client.handle_datagram(datagram, now)
            self._collect(now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network said no."""
        for speaker in self._speakers.values():
            speaker.client.handle_error(base, destination, errno, now)
        self._collect(now)

    def handle_response(
        self, number: int, status: int, headers: Sequence[tuple[str, str]], body: bytes, now: float
    ) -> None:
        """An HTTP exchange has an answer."""
        if self.upnp is not None:
            self.upnp.handle_response(number, status, headers, body, now)
        self._collect(now)

    def handle_failure(self, number: int, reason: str, now: float) -> None:
        """An HTTP exchange has none."""
        if self.upnp is not None:
            self.upnp.handle_failure(number, reason, now)
        self._collect(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed."""
        for speaker in self._speakers.values():
            speaker.client.handle_timeout(now)
        due = [wanted for wanted in self._wanted.values() if now >= wanted.retry_at]
        for wanted in due:
            wanted.retry_at = math.inf
            wanted.failed.clear()
        if due:
            self._discover(now)
        if now >= self._grace_ends:
            self._is_grace_over = True
        for wanted in self._wanted.values():
            self._tell(wanted, now)
        self._choose(now)
        self._collect(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        due = [at for speaker in self._speakers.values() if (at := speaker.client.poll_timeout()) is not None]
        due += [wanted.retry_at for wanted in self._wanted.values() if wanted.retry_at < math.inf]
        due += [wanted.tells_at(-math.inf) for wanted in self._wanted.values() if wanted.untold is not None]
        if not self._is_grace_over and self._grace_ends < math.inf:
            due.append(self._grace_ends)
        return min(due, default=None)

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send."""
        for speaker in self._speakers.values():
            transmit = speaker.client.poll_transmit()
            if transmit is not None:
                return transmit
        return None

    def poll_event(self) -> Event | None:
        """One thing that happened: of ``portmap/events.py``, with the keys that were given here."""
        return self._events.popleft() if self._events else None

    def speaks(self, name: ProtocolName) -> bool:
        """Whether the gateway has answered in this protocol at last."""
        speaker = self._speakers.get(name)
        return speaker is not None and speaker.state is _State.FOUND

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, by reason."""
        return sum((speaker.client.counters for speaker in self._speakers.values()), Counter())

    # --- inside --------------------------------------------------------------------------------------------------

    def _discover(self, now: float) -> None:
        """Ask what is not known, or not known any more."""
        asked = [speaker for speaker in self._speakers.values() if not speaker.is_known(now)]
        for speaker in asked:
            speaker.state = _State.ASKING
        if asked:
            self._is_grace_over = False
            has_found = any(speaker.state is _State.FOUND for speaker in self._speakers.values())
            self._grace_ends = now + GRACE_S if has_found else math.inf
        for speaker in asked:
            speaker.client.discover(now)
        self._collect(now)

    def _choose(self, now: float) -> None:
        """See who can map what nobody maps yet."""
        for key, wanted in list(self._wanted.items()):
            if wanted.active is None and wanted.retry_at == math.inf:
                self._choose_for(key, wanted, now)

    def _choose_for(self, key: int, wanted: _Wanted, now: float) -> None:
        is_open = False
        for name in wanted.protocols:
            if name in wanted.failed:
                continue
            speaker = self._speakers[name]
            if speaker.state is _State.ASKING:
                if not self._is_grace_over:
                    return
                is_open = True
            elif speaker.state is _State.MISSING or now < speaker.silent_until:
                wanted.failed[name] = speaker.reason
            else:
                self._keys += 1
                wanted.active, wanted.client_key = name, self._keys
                self._by_client_key[self._keys] = key
                try:
                    speaker.client.map(self._keys, wanted.request, now)
                except ValueError as error:
                    # It has too many of them, or cannot have this one.
                    del self._by_client_key[self._keys]
                    wanted.active, wanted.failed[name] = None, str(error)
                    continue
                return
        if not is_open:
            self._give_up(key, wanted, now)

    def _give_up(self, key: int, wanted: _Wanted, now: float) -> None:
        wait_s = min(RETRY_S * 2**wanted.retries, MAX_RETRY_S)
        wanted.retries += 1
        wanted.failed_at, wanted.retry_at = now, now + wait_s
        reasons: dict[str, str] = {name: wanted.failed[name] for name in wanted.protocols}
        self._events.append(NoMapping(key=key, reasons=reasons, retry_s=wait_s))

    def _collect(self, now: float) -> None:
        """Take what the clients have to tell, until they are silent."""
        if self._is_collecting:
            return
        self._is_collecting = True
        try:
            while events := [
                (name, event) for name, speaker in self._speakers.items() if (event := speaker.client.poll_event())
            ]:
                for name, event in events:
                    self._on_event(name, event, now)
        finally:
            self._is_collecting = False

    def _on_event(self, name: ProtocolName, event: Event, now: float) -> None:
        if isinstance(event, Discovered | NotFound):
            self._on_answer(self._speakers[name], event, now)
        elif isinstance(event, Unmapped):
            key = self._ending.pop(event.key, None)
            if key is not None and key not in self._ending.values():
                self._events.append(replace(event, key=key))
        elif isinstance(event, Mapped | MappingRefused | MappingLost):
            self._on_mapping(name, event, now)
        else:
            self._events.append(event)
            if isinstance(event, GatewayRestarted):
                for other, speaker in self._speakers.items():
                    if other != name:
                        speaker.client.refresh(now)

    def _on_answer(self, speaker: _Speaker, event: Discovered | NotFound, now: float) -> None:
        speaker.since = now
        if isinstance(event, NotFound):
            speaker.state, speaker.reason = _State.MISSING, event.reason
        else:
            speaker.state = _State.FOUND
            self._grace_ends = min(self._grace_ends, now + GRACE_S)
        self._list_if_known(now)
        self._choose(now)

    def _list_if_known(self, now: float) -> None:
        if self._is_list_wanted and self.upnp is not None and self._speakers["upnp"].state is not _State.ASKING:
            self._is_list_wanted = False
            speaker = self._speakers["upnp"]
            if speaker.state is _State.MISSING:
                self._events.append(MappingsListed(protocol="upnp", mappings=(), reason=speaker.reason))
            else:
                self.upnp.list_mappings(now)
            self._collect(now)

    def _on_mapping(self, name: ProtocolName, event: Mapped | MappingRefused | MappingLost, now: float) -> None:
        key = self._by_client_key.get(event.key)
        if key is None:
            return
        wanted, speaker = self._wanted[key], self._speakers[name]
        if isinstance(event, Mapped):
            wanted.silent.discard(name)
            if wanted.losses.ready_at(now) <= now:
                wanted.retries = 0
            wanted.untold = replace(event, key=key)
            self._tell(wanted, now)
            return
        speaker.client.abandon(event.key)
        del self._by_client_key[event.key]
        wanted.active = wanted.untold = None
        if isinstance(event, MappingLost):
            self._on_lost(wanted, name, replace(event, key=key), now)
        else:
            wanted.failed[name] = event.reason
            if event.code is None:
                wanted.silent.add(name)
            else:
                wanted.silent.discard(name)
            if event.code is not None and event.retry_s is not None:
                speaker.silent_until, speaker.reason = now + event.retry_s, event.reason
        self._choose(now)

    def _on_lost(self, wanted: _Wanted, name: ProtocolName, event: MappingLost, now: float) -> None:
        self._events.append(event)
        if wanted.losses.ready_at(now) > now:
            wanted.failed[name] = event.reason
            return
        # Nobody knows what is there now: perhaps another gateway.
        wanted.losses.take(now)
        wanted.failed.clear()
        for each in self._speakers.values():
            each.forget()
        self._discover(now)

    def _tell(self, wanted: _Wanted, now: float) -> None:
        if wanted.untold is not None and wanted.tells_at(now) <= now:
            wanted.news.take(now)
            self._events.append(wanted.untold)
            wanted.untold = None


def _port_of(request: MapRequest) -> tuple[Transport, int]:
    return request.transport, request.internal.port
