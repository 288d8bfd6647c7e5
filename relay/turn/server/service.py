"""What do the transports of one TURN server have in common?

Options, accounts, quotas, relayed addresses and reservations. One :class:`TurnService` for all
:class:`relay.turn.server.TurnServer` of a server. Pure: relayed addresses are opened by :class:`RelayPorts`, which the
shell gives.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

from iceagent.net.address import TransportAddress
from relay.error_limits import ErrorLimiter, challenge_limiter
from relay.turn.server.allocation import ServedAllocation
from relay.turn.server.auth import Accounts, Gate, Refused
from relay.turn.server.checks import check_number
from relay.turn.server.policy import PeerPolicy

__all__ = ["RelayPorts", "TurnOptions", "TurnService"]

MAX_LIFETIME_S = 3600
DEFAULT_LIFETIME_S = 600
"""RFC 8656, 3.2 and 7.2."""

MIN_BYTES_PER_S = 125
"""A kilobit in a second: below it, no datagram of ordinary length would ever pass."""

RESERVATION_S = 30.0
MAX_RESERVATIONS = 1024
MAX_RESERVATIONS_OF_USER = 16
"""A reservation counts for no quota of allocations: without a limit of its own, one user could take all of them."""


class RelayPorts(Protocol):
    """Opens relayed addresses, at once."""

    def open(self, version: int, near: str, *, even: bool = False, pair: bool = False) -> list[TransportAddress]:
        """Open one; with ``pair``, the next port as well.

        Args:
            version: 4 or 6.
            near: the host that the client speaks to.
            even: an even port.
            pair: two addresses, the second one port higher.

        Raises:
            LookupError: there are no addresses of this version.
            OSError: no port is free.
        """

    def close(self, address: TransportAddress) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """How a TURN server behaves.

    Attributes:
        accounts: who may.
        max_allocations: in total; beyond it 508.
        user_quota: of one user; beyond it 486. ``None``: no limit.
        max_bytes_per_s: of one allocation, both directions together, at least 125; ``None``: no limit.
        mobility: RFC 8016; else 405.
        max_lifetime_s: 600 … 3600.
        max_connections: with peers, of one TCP allocation (RFC 6062), at least 1; beyond it 508, and who comes is
            closed.

    Raises:
        ValueError: a number is out of its limits.
    """

    accounts: Accounts
    max_allocations: int = 1000
    user_quota: int | None = None
    max_bytes_per_s: float | None = None
    mobility: bool = True
    max_lifetime_s: int = MAX_LIFETIME_S
    max_connections: int = 64

    def __post_init__(self) -> None:
        check_number("max_allocations", self.max_allocations, 1)
        if self.user_quota is not None:
            check_number("user_quota", self.user_quota, 1)
        if self.max_bytes_per_s is not None:
            check_number("max_bytes_per_s", self.max_bytes_per_s, MIN_BYTES_PER_S)
        check_number("max_lifetime_s", self.max_lifetime_s, DEFAULT_LIFETIME_S, MAX_LIFETIME_S)
        check_number("max_connections", self.max_connections, 1)


class Reservation(NamedTuple):
    """A relayed address that is kept for who has its token."""

    address: TransportAddress
    account: str
    until: float


class TurnService:
    """What the transports of one server have in common: accounts, quotas, ports.

    Args:
        options: see there.
        policy: which peers are admitted.
        ports: opens relayed addresses.
        system_rng: draws keys, tickets, tokens.
        wall_now: seconds since 1970, for time-limited names.
        limiter: of error responses.

    Attributes:
        challenges: limits questions for credentials: every client begins with one.
        allocations: how many there are.
        relayed: packets and payload bytes to peers, and from them, of those that have ended.
        is_draining: no new ones are made.
    """

    def __init__(
        self,
        options: TurnOptions,
        policy: PeerPolicy,
        ports: RelayPorts,
        system_rng: Random,
        wall_now: Callable[[], float],
        limiter: ErrorLimiter,
    ) -> None:
        self.options = options
        self.policy = policy
        self.ports = ports
        self.system_rng = system_rng
        self.wall_now = wall_now
        self.limiter = limiter
        self.challenges = challenge_limiter()
        self.gate = Gate(options.accounts, system_rng)
        self.by_user: Counter[str] = Counter()
        self.allocations = 0
        self.relayed = [[0, 0], [0, 0]]
        self.is_draining = False
        self._ticket_key = system_rng.randbytes(32)
        self._reserved: dict[bytes, Reservation] = {}
        self._reserved_by: Counter[str] = Counter()
        self._bound: dict[TransportAddress, set[ServedAllocation]] = {}

    def check_room(self, account: str) -> None:
        """Whether this account may have one more allocation.

        Raises:
            Refused: 486 or 508.
        """
        options = self.options
        if options.user_quota is not None and self.by_user[account] >= options.user_quota:
            raise Refused(486, "Allocation Quota Reached")
        if self.is_draining or self.allocations >= options.max_allocations:
            raise Refused(508, "Insufficient Capacity")

    def count(self, account: str) -> None:
        """There is one more."""
        self.by_user[account] += 1
        self.allocations += 1

    def discount(self, account: str) -> None:
        """There is one less."""
        self.allocations -= 1
        _take_one(self.by_user, account)

    def add_up(self, allocation: ServedAllocation) -> None:
        """It has ended: what it relayed stays counted."""
        for direction in (0, 1):
            self.relayed[direction][0] += allocation.packets[direction]
            self.relayed[direction][1] += allocation.octets[direction]

    def check_reservations(self, account: str) -> None:
        """Whether this account may reserve one more address.

        Raises:
            Refused: 486 or 508.
        """
        if self._reserved_by[account] >= MAX_RESERVATIONS_OF_USER:
            raise Refused(486, "Allocation Quota Reached")
        if len(self._reserved) >= MAX_RESERVATIONS:
            raise Refused(508, "Insufficient Capacity")

    def reserve(self, address: TransportAddress, account: str, now: float) -> bytes:
        """Keep an open address for who has the token, for 30 s."""
        token = self.system_rng.randbytes(8)
        self._reserved[token] = Reservation(address, account, now + RESERVATION_S)
        self._reserved_by[account] += 1
        return token

    def claim(self, token: bytes, now: float) -> TransportAddress:
        """The address of a token.

        Raises:
            Refused: 508: there is none (any more).
        """
        self.expire(now)
        if token not in self._reserved:
            raise Refused(508, "Insufficient Capacity")
        return self._give_up(token)

    def expire(self, now: float) -> None:
        """Close what was reserved and not claimed."""
        # In the order in which they end.
        while self._reserved:
            token = next(iter(self._reserved))
            if now < self._reserved[token].until:
                return
            self.ports.close(self._give_up(token))

    def _give_up(self, token: bytes) -> TransportAddress:
        reservation = self._reserved.pop(token)
        _take_one(self._reserved_by, reservation.account)
        return reservation.address

    def note_bound(self, allocation: ServedAllocation, relayed: TransportAddress) -> None:
        """A channel leads to a relayed address of this server: it ends with that."""
        self._bound.setdefault(relayed, set()).add(allocation)

    def make_ticket(self) -> bytes:
        """What moves an allocation (RFC 8016); it can be told from one that somebody made up."""
        number = self.system_rng.randbytes(16)
        return number + self._sign(number)

    def knows_ticket(self, ticket: bytes) -> bool:
        """Whether it is one of ours, however old."""
        return hmac.compare_digest(ticket[16:], self._sign(ticket[:16]))

    def _sign(self, number: bytes) -> bytes:
        return hmac.digest(self._ticket_key, number, "sha256")[:16]

    def forget_bound(self, allocation: ServedAllocation) -> None:
        """An allocation has ended, with its channels."""
        for peer in allocation.numbers:
            self._bound.get(peer, set()).discard(allocation)

    def close(self, address: TransportAddress) -> None:
        """A relayed address has ended: nothing is sent there any more, whoever has its port next."""
        self.policy.relayed.discard(address)
        for allocation in self._bound.pop(address, ()):
            allocation.unbind(address)
        self.ports.close(address)

    @property
    def reserves_until(self) -> float | None:
        """When the next reservation ends."""
        return next(iter(self._reserved.values())).until if self._reserved else None


def _take_one(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
