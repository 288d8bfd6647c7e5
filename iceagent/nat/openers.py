"""When does an opener leave, and how far does it go?

The early-packet trap. A Linux router that accepts a stranger's packet for itself, before our own first one to that
stranger went out, confirms an entry for it: our flow then gets another port than the one we signalled, the peer's NAT
does not know that port, and the pair is dead for as long as either side repeats (each repetition refreshes the entry).
Measured: 0 packets in 4 s; with our own packet first, 105 … 157 ms.

So a packet of ours goes first that opens our NAT and does not knock at the peer's: an *opener*, a Binding indication
(RFC 8489, 2) whose TTL or hop limit ends between the two. The check follows :func:`lead_s` later. Without that lead an
opener would be worth nothing, for the check opens our NAT as well; it is the check that is held back, by less than
Ta, until a peer that begins a moment after us has sent its own opener. A router is one hop: 2 opens the home router
and dies behind it; 3, 4 and 5 reach carrier NATs behind it. They go before the early new checks. Where nothing but
openers may leave (``core/reroll.py``), 2 and 3 go alone.

Where none goes:

- to host candidates: there is no NAT that our check could knock at (from a socket that may send nothing but openers,
  they go to hosts on the Internet too); to relayed ones: the server opened its port;
- from loopback. From a host that is on the Internet itself one goes all the same: the NAT at the other end has the
  same time, and it opens our firewall, if there is one, to what comes from there;
- to a lite peer, which sends nothing before our check;
- to reflexive addresses of one socket that differ in nothing but the port: the peer's NAT takes another one for every
  destination (RFC 4787, 4.1), and what it sends us comes from none of these;
- before a triggered check, also to a peer-reflexive address: the peer's packet came in, so our NAT is open to it and
  no trap was sprung on that flow. Only a peer-reflexive address that the peer *signalled* gets one;
- before later checks: the first one opened all that there is to open.

It guards the sender's own NAT, and cannot help a side that begins after the peer's check arrived.

Nobody answers an opener. The routers that it dies on say so (ICMP time exceeded, which Linux reports as EHOSTUNREACH):
that is no word against the pair, nor one that ends a mapping (RFC 4787, REQ-12: it "MUST NOT terminate the NAT
mapping"). It takes a token like a check (``core/pacing.py``); where tokens are short, three of a session may delay the
checks behind them. It does not count as one of the packets for an address that never answered: it mostly dies before
it gets there, a pair has four at most, and an address twenty. Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from iceagent.candidate import Candidate, CandidateType
from iceagent.net.address import TransportAddress, ip_address

__all__ = ["explains", "has_many_ports", "is_outside", "is_wanted", "lead_s", "opener_ttl", "repeat_at"]

FIRST_TTL = 2
"""Dies behind the first router: it makes the mapping there. 1 would die in that router, before it is translated."""

LAST_TTL = 5
"""Home router and carrier NAT are within 4 hops; the peer's NAT is mostly farther (n2n uses 4, hyperdht 5, frp 7)."""

LAST_LONE_TTL = 3
"""Where no check follows, the peer may not have opened its NAT before the last opener reaches that: 4 does where there
are but two routers between the two homes. What springs the trap are home routers, and 3 opens two of them."""

LEAD_S = 0.010
"""The peer's NAT is safe if the peer begins within this time and the way from us to it, and two ends that hear of each
other over a signalling server begin about as far apart as that way is long. Every connection over reflexive addresses
pays for it, so it is little: for who begins later there is ``core/reroll.py``."""

EXPIRY_S = 1.0
"""So long after an opener, "host unreachable" is taken for its end: a round trip to the fifth router is below."""

# What stands in the place of a related port that is not told (RFC 8839, 5.1).
_NO_PORTS = (0, 9)

_REFLEXIVE = frozenset({CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE})


def is_wanted(base: TransportAddress, remote: CandidateType) -> bool:
    """Whether the first check of a pair with a peer that is not lite has an opener.

    Args:
        base: ours.
        remote: type of the remote candidate.
    """
    return remote in _REFLEXIVE and not ip_address(base.host).is_loopback


def is_outside(remote: Candidate) -> bool:
    """Whether what we send there passes our NAT, if we have one: a reflexive address, or a host on the Internet."""
    is_host = remote.type is CandidateType.HOST and not remote.has_name
    return remote.type in _REFLEXIVE or (is_host and ip_address(remote.address.host).is_global)


def has_many_ports(remote: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether servers saw the peer's socket at several ports of one address.

    Args:
        remote: a candidate of the peer.
        others: all of its component; ``remote`` may be among them.
    """
    related = remote.related_address
    if remote.type is not CandidateType.SERVER_REFLEXIVE or related is None or related.port in _NO_PORTS:
        return False
    return any(
        each.type is CandidateType.SERVER_REFLEXIVE
        and each.related_address == related
        and each.address.host == remote.address.host
        and each.address.port != remote.address.port
        for each in others
    )


def opener_ttl(sent: int) -> int | None:
    """TTL (IPv6: hop limit) of the next opener of a pair that had so many: 2, 3, 4, 5, then ``None``: no more."""
    ttl = FIRST_TTL + sent
    return ttl if ttl <= LAST_TTL else None


def lead_s(ta_s: float) -> float:
    """How long before its check an opener leaves, in seconds; never longer than Ta."""
    return min(LEAD_S, ta_s)


def repeat_at(sent: int, opened_at: float, delays: Sequence[float]) -> float | None:
    """When the next opener leaves where no check may, in seconds; ``None``: that was the last, with TTL 3.

    Args:
        sent: 1 or more.
        opened_at: when the last one left.
        delays: of early checks, in seconds after the first: ``Config.early_checks_s``.
    """
    ttl = opener_ttl(sent)
    if sent > len(delays) or ttl is None or ttl > LAST_LONE_TTL:
        return None
    return opened_at + delays[sent - 1] - (delays[sent - 2] if sent > 1 else 0.0)


def explains(error: int, opened_at: float | None, now: float) -> bool:
    """Whether an error (an errno) is what becomes of an opener.

    Args:
        opened_at: when the last opener of that pair left; ``None``: there was none.
    """
    return error == errno.EHOSTUNREACH and opened_at is not None and now - opened_at < EXPIRY_S
