"""Which kinds of NAT are there, by name?

The kinds of the NAT laboratory, as models: what a real Linux router of that kind does to three flows of one socket, to
A:1, A:2 and B:1, is what the model does (ports of random kinds aside). Pure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from typing import Any

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.testing.allocation import Allocation
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.nat import LIFETIME_S, NatModel

__all__ = ["FIREWALL_KINDS", "NAT_KINDS", "box_of_kind"]

NAT_KINDS: MappingType[str, MappingType[str, Any]] = {
    "full-cone": {"filtering": Filtering.EIF},
    "addr-restricted": {"filtering": Filtering.ADF},
    "port-restricted-strict": {"filtering": Filtering.APDF},
    "port-restricted": {"filtering": Filtering.APDF},
    "port-restricted-naive": {"filtering": Filtering.APDF, "early_packet_trap": True},
    "eim-random-port": {"allocation": Allocation.RANDOM, "ports": range(40000, 60000)},
    "addr-symmetric": {"mapping": Mapping.ADM, "allocation": Allocation.HASHED, "ports": range(20000, 22000)},
    "symmetric": {"mapping": Mapping.APDM, "allocation": Allocation.RANDOM},
    "symmetric-seq": {"mapping": Mapping.APDM, "allocation": Allocation.SEQUENTIAL, "ports": range(20000, 22000)},
    "symmetric-fixed": {"mapping": Mapping.APDM, "allocation": Allocation.HASHED, "ports": range(20000, 22000)},
    "carrier": {"allocation": Allocation.BLOCK},
}
"""Arguments of :class:`NatModel` by kind."""

FIREWALL_KINDS: MappingType[str, MappingType[str, Any]] = {
    "open": {"is_open": True},
    "firewall": {"filtering": Filtering.APDF},
}
"""Arguments of :class:`FirewallModel` by kind."""

_CAN_HAIRPIN = ("full-cone", "addr-restricted", "port-restricted-strict")


def box_of_kind(
    kind: str,
    external: Sequence[str],
    rng: random.Random,
    *,
    lifetime_s: float = LIFETIME_S,
    hairpin: bool = False,
) -> NatModel | FirewallModel:
    """Make a middlebox.

    Args:
        kind: a key of :data:`NAT_KINDS` or :data:`FIREWALL_KINDS`.
        external: addresses of a NAT; a firewall has none.
        rng: for random ports.
        lifetime_s: of its flows, in seconds. Packets of both directions refresh, as on Linux.
        hairpin: whether it does that; the kinds of the ``snat`` rule cannot.

    Raises:
        ValueError: no such kind, or one that cannot do that.
    """
    if kind in FIREWALL_KINDS:
        return FirewallModel(lifetime_s=lifetime_s, **FIREWALL_KINDS[kind])
    if kind not in NAT_KINDS:
        raise ValueError(f"no NAT kind {kind!r}; there are {', '.join((*FIREWALL_KINDS, *NAT_KINDS))}")
    if hairpin and kind not in _CAN_HAIRPIN:
        raise ValueError(f"a NAT of kind {kind!r} does not hairpin; {', '.join(_CAN_HAIRPIN)} can")
    return NatModel(external, rng, lifetime_s=lifetime_s, inbound_refresh=True, hairpin=hairpin, **NAT_KINDS[kind])
