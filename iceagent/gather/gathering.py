"""Who opens sockets when, and when is gathering done?

:class:`Gathering` keeps one base per selected address and component, in step with the interface table: new addresses
are gathered a moment after they appear, and a base goes when its address does (not when it is merely deprecated: that
is only told). Each base is handed to every gatherer. Gathering is done once per agent: when all gatherers are for the
first time, or after ``Config.gather_timeout_s``. What comes later, of a new interface, after an ICE restart or on a
second socket beside a base whose flows may be spoilt (``core/reroll.py``), is reported all the same.

While a path is in doubt, servers are asked what broke, and whether they know us still (:meth:`Gathering.doubt`).
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress
from random import Random
from typing import Protocol

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.core.pair import Traffic
from iceagent.events import BaseFailed, Cause, Event, GatheringDone, NetworkChanged, PathDiagnosed
from iceagent.gather import Gatherer
from iceagent.gather.bases import Base, BaseListener, open_base
from iceagent.gather.diagnosis import Diagnosed
from iceagent.gather.external import External
from iceagent.gather.host import HostAddress, select_addresses
from iceagent.gather.mapped import Mapped
from iceagent.gather.relayed import Relayed, RelayedAddress
from iceagent.gather.servers import is_asked_over_udp
from iceagent.gather.srflx import ServerReflexive
from iceagent.net.address import TransportAddress
from iceagent.net.host import AddressFlag, DefaultRoute, Host, Interface, Subscription
from iceagent.priority import LocalPreferences
from relay.uri import ServerUri

__all__ = ["Gathering"]

NOWHERE = {4: TransportAddress("0.0.0.0", 9), 6: TransportAddress("::", 9)}
"""The related address of who does not want to tell, by family of the candidate. RFC 8839, 5.1: "the address MUST be
set to "0.0.0.0" (for IPv4 candidates) or "::" (for IPv6 candidates) and the port to "9"".
"""

# An address that comes with a link usually brings others (IPv6 after IPv4, a global one after a link-local one), and
# some go again at once; whoever has another way waits this long to gather on all of them together.
SETTLE_S = 0.25
# While a relay carries data: a NAT or firewall that was changed is found out soon, and no server is burdened.
REFRESH_S = 10.0
# Who has answered so long ago at most was alive when another one was silent: as long as that is waited for.
ALIVE_S = 1.05


class SessionSide(Protocol):
    """What the gathering needs of a session."""

    def peers(self, base: TransportAddress) -> dict[TransportAddress, Traffic]:
        """The table of addresses that authenticated themselves on a base."""

    def deprecate(self, base: TransportAddress, is_deprecated: bool, now: float) -> None:
        """The IPv6 address of a base is deprecated (RFC 4862, 5.5.4), or not any more."""

    def set_link(self, base: TransportAddress, is_up: bool, now: float) -> None:
        """The interface of a base lost its carrier, or has it again."""

    def doubt_all(self, reason: str, now: float) -> None:
        """Whatever is in use may not work any more."""


class Gathering:
    """All sockets of an agent, and what is found on them.

    Args:
        listener: who hears what the sockets receive.
        sink: called with (data, component) for the peer's data.
        session: whose tables of authenticated addresses the bases read, and who is told what the network does.
        inform: called with one of its methods, and the arguments.
        found: called with every candidate; false: it adds nothing to those there are.
        lost: called with a base whose address is gone.
        withdrawn: called with a base's address and the address of a candidate there that is none any more.
        tell: called with events for the application.
        ceiling: what all transactions of the process share (RFC 8445, 14.2).

    Attributes:
        is_done: the first round is over; never false again.
    """

    __slots__ = (
        "_answered_at",
        "_config",
        "_count",
        "_failed_hosts",
        "_found",
        "_gatherers",
        "_host",
        "_inform",
        "_interfaces",
        "_is_ready",
        "_listener",
        "_lost",
        "_mapped",
        "_preferences",
        "_reflexive",
        "_refreshed_at",
        "_relayed",
        "_rng",
        "_routes",
        "_session",
        "_settling",
        "_started_at",
        "_subscription",
        "_task",
        "_tell",
        "_timer",
        "_witness",
        "bases",
        "is_done",
        "sink",
    )

    def __init__(
        self,
        config: Config,
        host: Host,
        rng: Random,
        system_rng: Random,
        *,
        listener: BaseListener,
        sink: Callable[[bytes, int], None],
        session: SessionSide,
        inform: Callable[..., None],
        found: Callable[[Candidate], bool],
        lost: Callable[[Base], None],
        withdrawn: Callable[[TransportAddress, TransportAddress], None],
        tell: Callable[[Event], None],
        ceiling: TokenBucket | None = None,
    ) -> None:
        self._config = config
        self._host = host
        self._rng = rng
        self._listener = listener
        self.sink = sink
        self._session = session
        self._inform = inform
        self._found = found
        self._lost = lost
        self._tell = tell
        self._preferences = LocalPreferences()
        self._failed_hosts: tuple[str, ...] = ()
        self._count = 0
        self._started_at = host.now()
        self._is_ready = False
        self._refreshed_at = self._answered_at = float("-inf")
        # The base that a STUN server is asked from because of a relay's path: nothing is told of it.
        self._witness: TransportAddress | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The last table of interfaces, and when what is new in it is gathered.
        self._interfaces: Sequence[Interface] = ()
        self._settling: asyncio.TimerHandle | None = None
        self.bases: dict[TransportAddress, Base] = {}
        self.is_done = False
        # Most agents of a process that has many are configured alike: what is not configured is not made.
        self._reflexive: ServerReflexive | None = None
        gatherers: list[Gatherer] = []
        if config.external_addresses:
            gatherers.append(External(config, self._on_found))
        uris = [ServerUri.parse(url) for server in config.servers for url in server.urls]
        if not (config.relay_only or config.lite) and any(is_asked_over_udp(uri) or not uri.is_turn for uri in uris):
            self._reflexive = ServerReflexive(
                config,
                host,
                system_rng,
                found=self._on_found,
                lost=withdrawn,
                tell=tell,
                diagnosed=self._on_diagnosed,
                changed=self._check_done,
                ceiling=ceiling,
            )
            gatherers.append(self._reflexive)
        self._mapped: Mapped | None = None
        if config.portmap and not (config.relay_only or config.lite):
            self._mapped = Mapped(host, found=self._on_found, lost=withdrawn, tell=tell)
            gatherers.append(self._mapped)
        self._gatherers = tuple(gatherers)
        self._relayed: Relayed | None = None
        if not config.lite and any(uri.is_turn for uri in uris):
            self._relayed = Relayed(
                config,
                host,
                rng,
                system_rng,
                listener=self,
                tell=tell,
                diagnosed=self._on_diagnosed,
                changed=self._check_done,
            )
        self._subscription: Subscription | None = None
        self._routes: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        loop = asyncio.get_running_loop()
        self._started_at = self._host.now()
        self._subscription = self._host.watch_interfaces(self._on_change)
        self._routes = self._host.watch_default_routes(self._on_routes)
        self._timer = loop.call_later(self._config.gather_timeout_s, self._finish)
        self._task = loop.create_task(self._read_interfaces())
        if self._reflexive is not None:
            self._reflexive.resolve()

    def close(self) -> None:
        """Close every socket; idempotent."""
        self._stop()
        if self._mapped is not None:
            self._mapped.close()
        if self._relayed is not None:
            self._relayed.close()
        for base in self.bases.values():
            base.socket.close()

    async def give_back(self) -> None:
        """Release what servers and routers hold for us; a second at most. Then :meth:`close`."""
        self._stop()
        holders = [holder for holder in (self._relayed, self._mapped) if holder is not None]
        await asyncio.gather(*(holder.give_back() for holder in holders))

    def _stop(self) -> None:
        """Find nothing more; idempotent."""
        if self._task is not None:
            self._task.cancel()
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        for subscription in (self._subscription, self._routes):
            if subscription is not None:
                subscription.close()
        for gatherer in self._gatherers:
            if gatherer is not self._mapped:
                gatherer.close()

    def permit(self, remotes: Sequence[Candidate]) -> None:
        """These are the peer's candidates: relays let them in."""
        if self._relayed is not None:
            self._relayed.permit(list(dict.fromkeys(c.address.host for c in remotes if not c.has_name)))

    def conclude(self) -> None:
        """ICE has completed: nothing that gatherers keep alive for it is needed any more (RFC 8445, 8.3)."""
        if self._reflexive is not None:
            self._reflexive.conclude()

    def begin_again(self) -> None:
        """ICE restarts: servers are asked anew."""
        if self._reflexive is not None:
            self._reflexive.begin_again()
        if self._relayed is not None:
            self._relayed.begin_again()

    def refresh(self) -> None:
        """Data goes over a relay: ask the STUN servers once more from every base, and routers that gave no mapping, for
        a way past it; at most every ten seconds.
        """
        now = self._host.now()
        if not self._is_ready or now < self._refreshed_at + REFRESH_S:
            return
        self._refreshed_at = now
        if self._reflexive is not None:
            self._reflexive.ask_again()
        if self._mapped is not None:
            self._mapped.ask_again()

    def doubt(self, address: TransportAddress) -> None:
        """The path from a base is in doubt: TURN servers are asked whether they know us still, and a server that has
        answered there before is asked what broke; :class:`iceagent.events.PathDiagnosed` says what it said.
        """
        base = self.bases.get(address)
        if base is None:
            return
        if self._relayed is not None:
            self._relayed.verify(address if base.is_relayed else None)
        if self._reflexive is None:
            return
        if not base.is_relayed:
            self._witness = None if self._witness == address else self._witness
            self._reflexive.question(base)
            return
        for own in self._own():
            if own.address.host == base.host_address.host and self._reflexive.question(own):
                self._witness = own.address
                return

    def wake_up(self, seconds: float) -> None:
        """The machine was suspended for so long: whatever servers and NATs knew of us may be over."""
        if self._relayed is not None:
            self._relayed.note_sleep(seconds)
            self._relayed.verify(None)
            self._relayed.begin_again()
        if self._reflexive is not None:
            self._reflexive.ask_again()

    def open_beside(self, address: TransportAddress) -> TransportAddress | None:
        """Open one more socket beside a base, and ask the STUN servers from it; there is no host candidate of it.

        Returns:
            what it is bound to; ``None``: there is no such base any more, no server, or no free port.
        """
        old = self.bases.get(address)
        if old is None or self._reflexive is None:
            return None
        place = old.host_address
        ((_, preference),) = self._preferences.assign([(place.host, place.index, place.kind, place.metered)])
        base = self._open(place, old.component, preference, again=1)
        if base is None:
            self._preferences.release(preference)
            return None
        self._reflexive.start(base)
        return base.address

    @property
    def counters(self) -> Counter[str]:
        """Datagrams of servers that were of no use, by reason."""
        return Counter() if self._reflexive is None else self._reflexive.queries.counters

    # --- what servers send ---------------------------------------------------------------------------------------

    def datagram_received(self, base: Base, data: bytes, source: tuple[str, int]) -> bool:
        """Take a server's answer; false: nobody asked ``source`` from this base."""
        if self._reflexive is None or not self._reflexive.takes(base, source):
            return False
        self._reflexive.datagram_received(base, data, source)
        return True

    def error_received(self, base: Base, destination: TransportAddress, number: int) -> bool:
        """A server cannot be reached; false: ``destination`` is none."""
        if self._reflexive is None or not self._reflexive.takes(base, destination):
            return False
        self._reflexive.error_received(base, destination, number)
        return True

    # --- the data path -------------------------------------------------------------------------------------------

    def set_sink(self, sink: Callable[[bytes, int], None]) -> None:
        """Send the peer's data elsewhere from now on."""
        self.sink = sink
        for base in self.bases.values():
            base.sink = sink

    def expect(self, component: int, traffic: Traffic | None) -> None:
        """Data of a component goes out on this five-tuple now."""
        for base in self.bases.values():
            if base.component == component:
                base.expected = traffic

    # --- interfaces ----------------------------------------------------------------------------------------------

    async def _read_interfaces(self) -> None:
        try:
            interfaces = await self._host.interfaces()
        except OSError as error:
            self._tell(BaseFailed(host="", interface="", reason=f"the interfaces cannot be read: {error}"))
            interfaces = ()
        try:
            self._on_interfaces(interfaces)
        except Exception as error:  # A filter of the application's that raises must not keep it waiting, nor hide.
            context = {"message": "Choosing addresses raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        self._is_ready = True
        self._task = None
        self._check_done()

    def _on_change(self, interfaces: Sequence[Interface]) -> None:
        """What is lost counts at once, what is new a moment later; but who has nothing else takes what there is."""
        if not self._is_ready:
            self._on_interfaces(interfaces)
            return
        self._interfaces = interfaces
        places = () if self._relayed is None else self._relayed.places.values()
        known = {(base.address.host, base.host_address.index) for base in self._own()}
        known |= {(place.host, place.index) for place in places}
        selected = select_addresses(interfaces, self._config)
        usable = {(address.host, address.index) for address in selected}
        if not known & usable:
            self._on_interfaces(interfaces)
            return
        removed = self._lose(interfaces)
        if self._relayed is not None and not usable.issuperset((place.host, place.index) for place in places):
            self._relayed.use(selected, _dormant(interfaces))
        if removed:
            self._tell_change((), removed)
        if self._settling is None and not usable <= known:
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _on_routes(self, routes: Sequence[DefaultRoute]) -> None:
        """What leaves may take another way now, through another NAT."""
        if self._is_ready:
            if self._relayed is not None:
                self._relayed.verify(None)
            self.refresh()
            self._inform(self._session.doubt_all, "the default route changed")

    def _settle(self) -> None:
        self._on_interfaces(self._interfaces)

    def _on_interfaces(self, interfaces: Sequence[Interface]) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        removed = self._lose(interfaces)
        open_hosts = {base.address.host for base in self._own()}
        hosts = {address.host for interface in interfaces for address in interface.addresses}
        self._failed_hosts = tuple(host for host in self._failed_hosts if host in hosts)
        selected = select_addresses(interfaces, self._config)
        is_new = (address.host not in open_hosts and address.host not in self._failed_hosts for address in selected)
        added = [] if self._config.relay_only else self._add(list(compress(selected, is_new)))
        if self._relayed is not None:
            self._relayed.use(selected, _dormant(interfaces))
        if self._is_ready and (added or removed):
            self._tell_change(added, removed)

    def _own(self) -> list[Base]:
        return [base for base in self.bases.values() if not base.is_relayed]

    def _lose(self, interfaces: Sequence[Interface]) -> list[str]:
        """Close the bases whose addresses are gone; their hosts. And tell of those that have aged."""
        # The same address on another interface is another one: a socket stays with its interface.
        present = {(a.host, each.index): (a, each) for each in interfaces for a in each.addresses}
        removed = set()
        for base in self._own():
            found = present.get((base.address.host, base.host_address.index))
            if found is None:
                removed.add(base.address.host)
                self._remove(base)
                continue
            address, interface = found
            if base.is_deprecated is not (AddressFlag.DEPRECATED in address.flags):
                base.is_deprecated = not base.is_deprecated
                self._inform(self._session.deprecate, base.address, base.is_deprecated)
            if base.is_up is not interface.is_up:
                # Linux keeps the IPv4 address of an interface without carrier.
                base.is_up = interface.is_up
                self._inform(self._session.set_link, base.address, base.is_up)
        return sorted(removed)

    def _tell_change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        self._tell(NetworkChanged(added=tuple(added), removed=tuple(removed)))
        # The last query that was waited for may have gone with its base.
        self._check_done()

    def _add(self, addresses: Sequence[HostAddress]) -> list[str]:
        by_host = {address.host: address for address in addresses}
        ranked = self._preferences.assign((a.host, a.index, a.kind, a.metered) for a in addresses)
        bases = [
            base
            for host, preference in ranked
            for component in range(1, self._config.components + 1)
            if (base := self._open(by_host[host], component, preference)) is not None
        ]
        opened = {base.local_preference for base in bases}
        for _host, preference in ranked:
            if preference not in opened:
                self._preferences.release(preference)
        # All host candidates first: they need nobody's answer.
        for base in bases:
            origin = f"interface {base.host_address.interface}"
            self._on_found(base.candidate(CandidateType.HOST, base.address, origin))
        if not self._config.lite:
            for base in bases:
                for gatherer in self._gatherers:
                    gatherer.start(base)
        return sorted({base.address.host for base in bases})

    def _open(self, address: HostAddress, component: int, preference: int, *, again: int = 0) -> Base | None:
        base = Base(component, address, preference, self._listener, self._host.now, self.sink, again)
        try:
            open_base(base, self._host, self._config, self._rng)
        except OSError as error:
            self._failed_hosts = (*self._failed_hosts, address.host)
            self._tell(BaseFailed(host=address.host, interface=address.interface, reason=str(error)))
            return None
        base.peers = self._session.peers(base.address)
        self.bases[base.address] = base
        return base

    def _remove(self, base: Base) -> None:
        del self.bases[base.address]
        self._preferences.release(base.local_preference)
        for gatherer in self._gatherers:
            gatherer.stop(base)
        self._lost(base)
        base.socket.close()

    # --- relays (RelayListener) ----------------------------------------------------------------------------------

    def relay_opened(self, address: RelayedAddress) -> Base:
        """A relayed address is a base of its own (RFC 8445, 5.1.1.2)."""
        place = address.place
        ((_, preference),) = self._preferences.assign([(place.host, place.index, place.kind, place.metered)])
        base = Base(
            address.component, place, preference, self._listener, self._host.now, self.sink, address.again, True
        )
        base.socket = address.socket
        base.peers = self._session.peers(base.address)
        self.bases[base.address] = base
        related = NOWHERE[base.address.version] if self._config.relay_only else address.mapped
        relayed = CandidateType.RELAYED
        found = base.candidate(relayed, base.address, address.url, address.server, related, protocol=address.protocol)
        self._on_found(found)
        return base

    def has_base(self, address: TransportAddress) -> bool:
        """See :class:`iceagent.gather.relayed.RelayListener`."""
        return address in self.bases

    def relay_closed(self, address: TransportAddress) -> None:
        """Its allocation is gone."""
        base = self.bases.get(address)
        if base is not None:
            self._remove(base)

    def relay_link(self, address: TransportAddress, *, is_up: bool) -> None:
        """See :class:`iceagent.gather.relayed.RelayListener`."""
        self._inform(self._session.set_link, address, is_up)

    def relay_error(self, address: TransportAddress, peer: TransportAddress) -> None:
        """The server got an ICMP error."""
        base = self.bases.get(address)
        if base is not None:
            self._listener.error_received(base, peer, errno.EHOSTUNREACH)

    # --- what broke ----------------------------------------------------------------------------------------------

    def _on_diagnosed(self, found: Diagnosed) -> None:
        now, cause, reason = self._host.now(), found.cause, found.reason
        if cause is not Cause.UPLINK:
            self._answered_at = now
        if self._witness == found.base:
            self._witness = None
            return
        base = self.bases.get(found.base)
        if base is None:
            return
        relays_at = float("-inf") if self._relayed is None else self._relayed.answered_at
        if cause is Cause.UPLINK and now <= max(self._answered_at, relays_at) + ALIVE_S:
            cause, reason = Cause.PATH, f"{reason}, but another server does"
        self._tell(PathDiagnosed(component=base.component, base=found.base, cause=cause, reason=reason))

    # --- done ----------------------------------------------------------------------------------------------------

    def _on_found(self, candidate: Candidate) -> None:
        self._count += self._found(candidate)

    def _check_done(self) -> None:
        waits = all(gatherer.is_done for gatherer in self._gatherers)
        if self._is_ready and not self.is_done and waits and (self._relayed is None or self._relayed.is_done):
            self._finish()

    def _finish(self) -> None:
        if self.is_done:
            return
        self.is_done = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._relayed is not None:
            self._relayed.tell_silent()
        elapsed_ms = (self._host.now() - self._started_at) * 1000
        self._tell(GatheringDone(count=self._count, elapsed_ms=elapsed_ms))


def _dormant(interfaces: Sequence[Interface]) -> list[str]:
    """Addresses that are still there, though their interface has lost its carrier."""
    return [address.host for interface in interfaces if not interface.is_up for address in interface.addresses]
