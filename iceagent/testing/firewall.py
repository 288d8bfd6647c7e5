"""How does a stateful packet filter treat a packet? As a NAT's filter does, without the translation. Pure."""

from __future__ import annotations

from iceagent.nat.kinds import Filtering
from iceagent.net.address import TransportAddress
from iceagent.testing.expiring import Expiring
from iceagent.testing.nat import FILTER_KEY, LIFETIME_S, SESSION_LIMIT

__all__ = ["FirewallModel"]


class FirewallModel:
    """A stateful firewall that does not translate: IPv6 at home, or public addresses behind a packet filter.

    Args:
        filtering: which external endpoints may answer; EIF lets in any packet to an endpoint that has sent.
        is_open: let everything in: a plain router.
        lifetime_s: seconds from the last packet of a flow to its end.
        inbound_refresh: whether packets that come in refresh too.
        session_limit: flows it remembers; further ones are dropped.

    Raises:
        ValueError: filtering is unknown.
    """

    hairpin = False
    external_hosts: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        filtering: Filtering = Filtering.APDF,
        is_open: bool = False,
        lifetime_s: float = LIFETIME_S,
        inbound_refresh: bool = True,
        session_limit: int = SESSION_LIMIT,
    ) -> None:
        if filtering not in FILTER_KEY:
            raise ValueError(f"a firewall cannot have filtering {filtering.value!r}")
        self.filtering = filtering
        self.is_open = is_open
        self._key = FILTER_KEY[filtering]
        self._inbound_refresh = inbound_refresh
        self._pinholes: set[TransportAddress] = set()
        self._flows: Expiring[tuple[TransportAddress, object], None] = Expiring(lifetime_s, session_limit)

    def outbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """Remember the flow; ``None``: the session table is full."""
        self._flows.expire(now)
        return source if self._flows.touch((source, self._key(destination)), None, now) else None

    def inbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        """Let answers in; ``None``: nobody asked."""
        self._flows.expire(now)
        flow = (destination, self._key(source))
        if flow in self._flows:
            if self._inbound_refresh:
                self._flows.touch(flow, None, now)
            return destination
        return destination if self.is_open or destination in self._pinholes else None

    def open_pinhole(self, inside: TransportAddress) -> None:
        """Let any packet to ``inside`` in, as a PCP MAP request does (RFC 6887, 11)."""
        self._pinholes.add(inside)

    def close_pinhole(self, inside: TransportAddress) -> None:
        """Undo :meth:`open_pinhole`; unknown addresses are fine."""
        self._pinholes.discard(inside)

    def session_count(self, now: float) -> int:
        """Live flows."""
        self._flows.expire(now)
        return len(self._flows)

    def forget(self) -> None:
        self._flows.clear()
