"""The table: what breaks, and how soon has the talk to go on?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bench.survival.homes import Homes
from bench.survival.record import SETTLE_S, Talkers
from bench.survival.row import ADVISED, CONNTRACK, DIRECT, FILES, LOST, PARTED, RESUMED, Event, Row
from iceagent.lab import Impairment

__all__ = ["LONG", "ROWS", "row_named"]


def _homes(kind_a: str, kind_b: str, **options: Any) -> dict[str, Any]:
    return {"kind_a": kind_a, "kind_b": kind_b, **options}


def _restricted(**options: Any) -> dict[str, Any]:
    return _homes("port-restricted", "port-restricted", **options)


def _symmetric(**options: Any) -> dict[str, Any]:
    return _homes("symmetric", "symmetric", **options)


# --- events ----------------------------------------------------------------------------------------------------------


def _lifted_after(seconds: float) -> Event:
    async def event(homes: Homes, talk: Talkers) -> float:
        await asyncio.sleep(seconds)
        lifted = time.monotonic()
        homes.unblock()
        return lifted

    return event


def _at_once(change: Callable[[Homes], object]) -> Event:
    """Something that takes no time: agents of this process share its thread, so it has happened when that is free again
    (a busy machine may take half a second to move a link). A gap counts from the last datagram before, whenever it was.
    """

    async def event(homes: Homes, talk: Talkers) -> float:
        change(homes)
        return time.monotonic()

    return event


async def _link_down(homes: Homes, talk: Talkers) -> float:
    look = await talk.look("a")
    assert look is not None
    first_is_used = look.base in homes.a.hosts
    began = time.monotonic()
    homes.a.namespace.set_link(homes.a.device if first_is_used else "eth1", is_up=False)
    return began


async def _uplink_dies(homes: Homes, talk: Talkers) -> float:
    """The link stays up, and the router behind it lets nothing pass to the other home."""
    look = await talk.look("a")
    assert look is not None
    router = homes.routers[0] if look.base in homes.a.hosts else homes.carrier
    other = homes.routers[1].address
    began = time.monotonic()
    router.load(extra=f"ip daddr {other} drop; ip saddr {other} drop")
    return began


async def _server_killed(homes: Homes, talk: Talkers) -> float:
    look = await talk.look("a")
    assert look is not None
    service = homes.serving(look.hosts)
    began = time.monotonic()
    service.kill()
    return began


async def _server_restarted(homes: Homes, talk: Talkers) -> float:
    (service,) = homes.services
    service.kill()
    await asyncio.sleep(3.0)
    # It answers when this returns.
    await asyncio.to_thread(service.start)
    return time.monotonic()


async def _everything_cut(homes: Homes, talk: Talkers) -> float:
    wire = homes.routers[0].wire
    wire.cut()
    await asyncio.sleep(10.0)
    ended = time.monotonic()
    wire.set(Impairment())
    return ended


def _stopped_for(seconds: float) -> Event:
    async def event(homes: Homes, talk: Talkers) -> float:
        talk.stop("a")
        await asyncio.sleep(seconds)
        ended = time.monotonic()
        talk.cont("a")
        return ended

    return event


async def _idle(homes: Homes, talk: Talkers) -> float:
    await talk.fall_silent(True)
    await asyncio.sleep(60.0)
    ended = time.monotonic()
    await talk.fall_silent(False)
    return ended


async def _payload_eaten(homes: Homes, talk: Talkers) -> float:
    homes.eat_payload()
    await asyncio.sleep(2.0)
    reported = time.monotonic()
    look = await talk.look("a")
    # What was mirrored while the path was in doubt may have shown it already; then nobody has anything to report.
    if look is not None and look.kind == "direct":
        await talk.report_loss("a")
    return reported


async def _closed(homes: Homes, talk: Talkers) -> float:
    began = time.monotonic()
    await talk.close("a")
    return began


# --- the table -------------------------------------------------------------------------------------------------------


def _blackholed(name: str, words: str, *directions: str) -> Row:
    return Row(
        name=name,
        title=f"path blackholed {words}, a relay alive",
        homes=_homes("port-restricted", "full-cone"),
        event=_at_once(lambda homes: homes.block(*directions)),
        bound=1.5,
        starts="direct",
        ends="relay",
        keeps_state=True,
    )


def _lifted(name: str, seconds: float, bound: float, not_theirs: str = "") -> Row:
    return Row(
        name=name,
        title=f"firewall lifted after {seconds:.0f} s on a relay",
        homes=_restricted(),
        prepare=Homes.block,
        event=_lifted_after(seconds - SETTLE_S),
        measure=DIRECT,
        bound=bound,
        starts="relay",
        ends="direct",
        keeps_state=True,
        watch_s=bound + 1.0,
        patience_s=20.0,
        not_theirs=not_theirs,
    )


_MOVES: dict[str, tuple[str, Callable[[Homes], object]]] = {
    "address": ("new outside address", lambda homes: homes.routers[0].move()),
    "roam": ("roam to another NAT", Homes.roam),
}


def _moved(name: str) -> list[Row]:
    """One side is somewhere else, three times."""
    words, change = _MOVES[name]
    elsewhere, needs = (1, ()) if name == "roam" else (0, (CONNTRACK,))
    return [
        Row(
            name=name,
            title=f"{words}, TURN on both sides",
            homes=_restricted(elsewhere=elsewhere),
            event=_at_once(change),
            needs=needs,
            bound=2.0,
            starts="direct",
        ),
        Row(
            name=f"{name}-files",
            title=f"{words}, STUN only, files",
            homes=_restricted(relays=0, elsewhere=elsewhere),
            event=_at_once(change),
            needs=needs,
            bound=2.0,
            signalling=FILES,
            by_programs=True,
            starts="direct",
            by_restart=name == "address",
        ),
        Row(
            name=f"{name}-frozen",
            title=f"{words}, STUN only, frozen",
            homes=_restricted(relays=0, elsewhere=elsewhere),
            event=_at_once(change),
            needs=needs,
            measure=ADVISED,
            bound=2.0,
            starts="direct",
            state="disconnected",
        ),
    ]


ROWS: tuple[Row, ...] = (
    _lifted("firewall-3", 3.0, 3.0),
    _lifted("firewall-120", 120.0, 12.0, "as after 3 s: it looks for no other path"),
    Row(
        name="link-down",
        title="selected link down, another up",
        homes=_restricted(relays=0, second_uplink=True),
        event=_link_down,
        bound=0.3,
        starts="direct",
        ends="direct",
    ),
    _blackholed("blackhole-both", "both ways"),
    _blackholed("blackhole-out", "outwards", "out"),
    _blackholed("blackhole-in", "inwards", "in"),
    Row(
        name="blackhole-second",
        title="path blackholed both ways, a second link alive",
        homes=_restricted(relays=0, second_uplink=True),
        event=_uplink_dies,
        bound=1.5,
        starts="direct",
        ends="direct",
        keeps_state=True,
    ),
    Row(
        name="reboot-relay",
        title="NAT reboot, symmetric² over TURN, mobility",
        homes=_symmetric(),
        event=_at_once(lambda homes: homes.routers[0].reboot()),
        needs=(CONNTRACK,),
        bound=2.0,
        starts="relay",
        ends="relay",
    ),
    Row(
        name="reboot-relay-plain",
        title="NAT reboot, symmetric² over TURN, one relay address",
        homes=_symmetric(mobility=False),
        event=_at_once(lambda homes: homes.routers[0].reboot()),
        needs=(CONNTRACK, "turnserver"),
        bound=2.0,
        starts="relay",
        ends="relay",
    ),
    Row(
        name="reboot-direct",
        title="NAT reboot, symmetric → full cone, direct",
        homes=_homes("symmetric", "full-cone", relays=0),
        event=_at_once(lambda homes: homes.routers[0].reboot()),
        needs=(CONNTRACK,),
        bound=2.0,
        starts="direct",
        ends="direct",
    ),
    *_moved("address"),
    *_moved("roam"),
    Row(
        name="server-killed",
        title="one of two TURN servers killed",
        homes=_symmetric(relays=2),
        event=_server_killed,
        bound=1.5,
        starts="relay",
        ends="relay",
    ),
    Row(
        name="server-restarted",
        title="the only TURN server restarted, files",
        homes=_symmetric(),
        event=_server_restarted,
        measure=RESUMED,
        bound=4.0,
        signalling=FILES,
        by_programs=True,
        starts="relay",
        ends="relay",
        outage_s=4.0,
        watch_s=6.0,
    ),
    Row(
        name="blackhole-all",
        title="10 s blackhole of everything",
        homes=_restricted(impairment=Impairment()),
        event=_everything_cut,
        needs=("/dev/net/tun",),
        measure=RESUMED,
        bound=0.5,
        outage_s=10.0,
        watch_s=2.0,
    ),
    Row(
        name="stop-20",
        title="SIGSTOP for 20 s, frozen",
        homes=_restricted(relays=0),
        event=_stopped_for(20.0),
        measure=RESUMED,
        bound=0.5,
        by_programs=True,
        outage_s=20.0,
    ),
    Row(
        name="stop-60",
        title="SIGSTOP for 60 s, files",
        homes=_restricted(relays=0),
        event=_stopped_for(60.0),
        measure=RESUMED,
        bound=2.0,
        signalling=FILES,
        by_programs=True,
        by_restart=True,
        outage_s=60.0,
    ),
    Row(
        name="roam-both",
        title="both roam at once, files",
        homes=_restricted(relays=0, elsewhere=2),
        event=_at_once(Homes.roam),
        bound=3.0,
        watch_s=4.0,
        signalling=FILES,
        by_programs=True,
        starts="direct",
    ),
    Row(
        name="address-both",
        title="new outside addresses of both at once, files",
        homes=_restricted(relays=0),
        event=_at_once(lambda homes: [router.move() for router in homes.routers]),
        needs=(CONNTRACK,),
        bound=3.0,
        watch_s=4.0,
        signalling=FILES,
        by_programs=True,
        starts="direct",
        by_restart=True,
    ),
    Row(
        name="idle",
        title="bindings live 10 s, silent for 60 s, then data",
        homes=_restricted(relays=0, lifetime_s=10),
        event=_idle,
        measure=LOST,
        bound=0.0,
        starts="direct",
        ends="direct",
        watch_s=3.0,
        patience_s=3.0,
    ),
    Row(
        name="payload-eaten",
        title="checks pass, payload eaten, reported",
        homes=_homes("port-restricted", "full-cone"),
        event=_payload_eaten,
        measure=RESUMED,
        bound=1.5,
        starts="direct",
        ends="relay",
        outage_s=2.0,
    ),
    Row(
        name="peer-closes",
        title="the peer closes",
        homes=_restricted(relays=0),
        event=_closed,
        measure=PARTED,
        bound=1.0,
        starts="direct",
        state=None,
        watch_s=2.0,
    ),
)
"""Every row of the table."""

LONG = frozenset({"firewall-120", "stop-20", "stop-60", "idle"})
"""Names of those that take so long that others are to be played beside them."""


def row_named(name: str) -> Row:
    """The row of this name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


_BY_NAME = {row.name: row for row in ROWS}
