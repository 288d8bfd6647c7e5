"""Sixteen addresses on both sides, of which one pair works: how long until it is found?

256 pairs, 255 of them lost without a word: no ICMP, no answer. Two namespaces, joined by a cable; the place of the
good address among a side's sixteen is drawn anew for every trial.

- *other interfaces*: the fifteen others stand on interfaces of their own that lead nowhere (ifb devices, which lose
  what is sent through them), as those of containers and tunnels do; the default route is the cable. What is sent from
  or to one of the fifteen and reaches the other side over the cable nevertheless is dropped there by nftables. So the
  kernel's routes know which address of one's own is good, and nobody knows which one of the peer's.
- *same interface*: all sixteen stand on the cable, and nftables on both sides drops all but one pair. Nobody knows
  anything: any of the 256 pairs may be the one. Our check list holds 100 of them (RFC 8445, 6.1.2.5).

Both contenders order candidates of equal worth as the system lists them, which is as they were made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from bench.cases import Options
from bench.netns import accept_only, link_by_veth, namespaces
from bench.results import Metric
from bench.sessions import session
from iceagent.lab.namespace import Namespace

__all__ = ["run"]

ADDRESSES = 16
CABLE = "cable"

OUR_TRIALS = 50
PEER_TRIALS = 7
# Without routes to go by there is nothing to be promised.
SAME_INTERFACE_TRIALS = 5
LIMIT_S = 8.0

TARGET_MEDIAN_MS = 300.0
TARGET_WORST_MS = 1000.0

Layout = Callable[[tuple[Namespace, Namespace], tuple[int, int]], None]


def run(options: Options) -> list[Metric]:
    """Trials of both layouts."""
    ours, ours_lost = _trials("ours", other_interfaces, OUR_TRIALS, options)
    peer, peer_lost = _trials("aioice", other_interfaces, PEER_TRIALS, options)
    ours_same, ours_same_lost = _trials("ours", same_interface, SAME_INTERFACE_TRIALS, options)
    peer_same, peer_same_lost = _trials("aioice", same_interface, SAME_INTERFACE_TRIALS, options)
    return [
        Metric(
            name="15 of 16 addresses dead, on other interfaces",
            unit="ms",
            ours=ours,
            peer=peer,
            at_most=TARGET_MEDIAN_MS,
            worst_at_most=TARGET_WORST_MS,
            note=_note(ours_lost, len(ours), peer_lost, len(peer)),
        ),
        Metric(
            name="15 of 16 addresses dead, on the same interface",
            unit="ms",
            ours=ours_same,
            peer=peer_same,
            note=_note(ours_same_lost, len(ours_same), peer_same_lost, len(peer_same)),
        ),
    ]


def _note(ours_lost: int, ours: int, peer_lost: int, peer: int) -> str:
    return f"not connected within {LIMIT_S:.0f} s: ours {ours_lost} of {ours}, aioice {peer_lost} of {peer}"


def _trials(name: str, layout: Layout, count: int, options: Options) -> tuple[list[float], int]:
    """Milliseconds per trial, those that did not connect counting as the limit; and how many did not."""
    rng = Random(options.seed)
    found = []
    for number in range(count):
        places = rng.randrange(ADDRESSES), rng.randrange(ADDRESSES)
        if number % 10 == 0:
            options.tell(f"unanswered: {name}, {layout.__name__}, trial {number + 1} of {count}")
        found.append(_trial(name, layout, places))
    lost = found.count(math.inf)
    return [min(value, LIMIT_S * 1000) for value in found], lost


def _trial(name: str, layout: Layout, places: tuple[int, int]) -> float:
    with namespaces(2) as (first, second):
        layout((first, second), places)
        with session(first, second, name) as connection:
            elapsed = connection.connect(LIMIT_S)
    return math.inf if elapsed is None else elapsed * 1000


def other_interfaces(sides: tuple[Namespace, Namespace], places: tuple[int, int]) -> None:
    """The good address on the cable, the others on ifb devices; ``places`` say where in the interfaces' order."""
    link_by_veth(*sides, CABLE, indices=(10 + places[0], 10 + places[1]))
    good = ("10.78.0.1", "10.78.0.2")
    for side, (namespace, place) in enumerate(zip(sides, places, strict=True)):
        others = [i for i in range(ADDRESSES) if i != place]
        namespace.ip(
            *(f"link add nowhere{i} index {10 + i} type ifb" for i in others),
            *(f"address add 10.{80 + side}.{i}.1/24 dev nowhere{i}" for i in others),
            *(f"link set nowhere{i} up" for i in others),
            f"address add {good[side]}/24 dev {CABLE}",
            f"route add default via {good[1 - side]} dev {CABLE}",
        )
        accept_only(namespace, f"ip saddr {good[1 - side]} ip daddr {good[side]}")


def same_interface(sides: tuple[Namespace, Namespace], places: tuple[int, int]) -> None:
    """All addresses on the cable, one pair let through."""
    link_by_veth(*sides, CABLE)
    hosts = [[f"10.78.{side}.{1 + i}" for i in range(ADDRESSES)] for side in (0, 1)]
    good = [hosts[side][places[side]] for side in (0, 1)]
    for side, namespace in enumerate(sides):
        namespace.ip(*(f"address add {host}/16 dev {CABLE}" for host in hosts[side]))
        accept_only(namespace, f"ip saddr {good[1 - side]} ip daddr {good[side]}")
