"""What do the parts of a session share?

One mutable :class:`Context` per session: the role, both sides' credentials, the queues that the contract drains, and
the counters. A part changes only what its own file is about; everything else it reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from iceagent.config import Config
from iceagent.credentials import Credentials
from iceagent.events import PacketDropped
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.stun import IntegrityKey, short_term_key

__all__ = ["Context", "Keys"]

# Events that nobody drains must not pile up; the driver drains after every input, so this is never met in order.
_MAX_EVENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The two credentials that one generation of checks uses, with their HMAC keys prepared.

    A request carries ``remote:local`` and is keyed by the remote password (RFC 8445, 7.2.2).
    """

    local: Credentials
    remote: Credentials
    username: str
    remote_key: IntegrityKey

    @classmethod
    def of(cls, local: Credentials, remote: Credentials) -> Keys:
        return cls(
            local=local,
            remote=remote,
            username=f"{remote.ufrag}:{local.ufrag}",
            remote_key=short_term_key(remote.password),
        )


@dataclass(slots=True, kw_only=True)
class Context:
    """State that several parts of one session need.

    Attributes:
        rng: order and jitter; may be seeded.
        system_rng: transaction ids and credentials; never seeded in production.
        controlling: our role now (RFC 8445, 6.1.1).
        tie_breaker: 0 … 2**64 - 1.
        keys: the current generation's, once the peer's credentials are known.
        ta_s: pacing interval in force: the larger of both sides'.
        remote_lite: the peer is a lite agent.
        remote_trickles: the peer takes candidates later (RFC 8838, 3).
        remote_knows_messages: the peer understands path messages, and so do we.
    """

    config: Config
    rng: Random
    system_rng: Random
    controlling: bool
    tie_breaker: int
    keys: Keys | None = None
    ta_s: float = 0.050
    remote_lite: bool = False
    remote_trickles: bool = False
    remote_knows_messages: bool = False
    # Queues. They are empty almost always, and an empty deque takes 760 bytes.
    events: list[Event] = field(default_factory=list)
    transmits: list[Transmit] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)

    def emit(self, event: Event) -> None:
        """Tell the application."""
        if len(self.events) >= _MAX_EVENTS:
            del self.events[0]
        self.events.append(event)

    def drop(self, datagram: Datagram, reason: str) -> None:
        """Count a datagram that is not used, and say so."""
        self.counters[f"dropped: {reason}"] += 1
        self.emit(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=len(datagram.data)))

    def transmit(
        self, base: TransportAddress, destination: TransportAddress, data: bytes, ttl: int | None = None
    ) -> None:
        """Queue a datagram."""
        self.transmits.append(Transmit(base, destination, data, ttl))

    def transaction_id(self) -> bytes:
        """96 random bits, never used before (RFC 8489, 5)."""
        return self.system_rng.getrandbits(96).to_bytes(12, "big")
