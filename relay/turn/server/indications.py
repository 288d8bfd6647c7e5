"""What does a TURN server tell a client of its peers, without being asked?

Data indications (RFC 8656, 11.3 and 11.5): a peer's datagram where there is no channel, or the ICMP error that came
back for a datagram of the client's. Pure.
"""

from __future__ import annotations

from random import Random

from iceagent.net.address import TransportAddress
from relay.stun import DATA, ICMP, XOR_PEER_ADDRESS, Icmp, MessageClass, Method, build
from relay.turn.credentials import Pair
from relay.turn.server.allocation import ServedAllocation, TokenMeter

__all__ = ["data_indication", "icmp_indication"]

ICMP_PER_S = 10
"""Errors that a client is told in a second, and the burst of them: whoever forges them does not get more through."""

# RFC 8656, 11.5, by IP version; and those whose data is the MTU (18.13).
_TOLD = {4: (3, 11), 6: (1, 2, 3)}
_ABOUT_MTU = ((4, 3, 4), (6, 2, 0))


def data_indication(system_rng: Random, peer: tuple[str, int], data: bytes) -> bytes | None:
    """A peer's datagram; ``None``: with its attributes it is longer than a message can be."""
    try:
        return _indication(system_rng, peer, (DATA, data))
    except ValueError:
        return None


def icmp_indication(
    system_rng: Random, allocation: ServedAllocation, peer: TransportAddress, icmp: Icmp, now: float
) -> bytes | None:
    """An ICMP error about a datagram to ``peer``.

    Args:
        system_rng: draws the transaction id.
        allocation: whose relayed address the datagram left from.
        peer: where it was to go.
        icmp: what the message said; its data counts where that is the MTU.
        now: seconds.

    Returns:
        The indication; ``None``: it is not told, for its kind, for want of a permission, or because there are too many.
    """
    version = peer.version
    if icmp.type not in _TOLD[version] or now >= allocation.permissions.get(peer.host, 0.0):
        return None
    if allocation.icmp_meter is None:
        allocation.icmp_meter = TokenMeter(ICMP_PER_S, now)
    if not allocation.icmp_meter.admits(1, now):
        return None
    is_about_mtu = (version, icmp.type, icmp.code) in _ABOUT_MTU
    return _indication(system_rng, peer, (ICMP, icmp if is_about_mtu else icmp._replace(data=0)))


def _indication(system_rng: Random, peer: tuple[str, int], pair: Pair) -> bytes:
    at_peer: Pair = (XOR_PEER_ADDRESS, TransportAddress._make(peer))
    message = build(Method.DATA, MessageClass.INDICATION, system_rng.randbytes(12), at_peer, pair)
    return message.encode(fingerprint=False)
