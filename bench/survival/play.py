"""How is a row played, and how is it judged?"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bench.survival.homes import Homes
from bench.survival.programs import pinging
from bench.survival.record import CLOSED, Record, Talkers, first, gap, is_mirrored, story
from bench.survival.row import FROZEN, Row
from bench.survival.rows import row_named
from bench.survival.talk import talking
from bench.survival.theirs import aioice_talking
from iceagent.lab import Lab

__all__ = ["AIOICE", "OURS", "Result", "Scene", "build", "judge", "measure", "play", "play_together"]

OURS, AIOICE = "iceagent", "aioice"
# Whether both have ended is looked at this often.
LOOK_EVERY_S = 0.5
# Both ends are told of one path within this.
TOGETHER_S = 1.0


class Scene(NamedTuple):
    """A row and where it is played.

    Attributes:
        row: see there.
        homes: for two talkers, built, with nobody in them.
        controlling: ``a`` or ``b``.
    """

    row: Row
    homes: Homes
    controlling: str


def build(lab: Lab, *rows: Row, roles: str = "ab") -> list[Scene]:
    """Homes for rows, in one laboratory: one after the other, and before anybody talks, for that holds up the loop.

    Args:
        lab: where.
        rows: different ones.
        roles: which side is controlling; ``ab``: either, in homes of its own.
    """
    return [Scene(row, row.build(lab, f"{row.name}-{role}"), role) for row in rows for role in roles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a row went, once.

    Attributes:
        row: its name.
        contender: :data:`OURS` or :data:`AIOICE`.
        controlling: ``a`` or ``b``; the event is ``a``'s.
        value: what the row measures, in its unit; ``None``: it never came.
        gap_s: the longest time that one of both heard nothing, from the event on.
        watched_s: how long it was watched, from the moment that is measured from.
        closed_s: of each side, when it had ended by itself, after the event; ``None``: it had not.
        sent: datagrams, both sides' together.
        lost: those of them that never came.
        complaints: what is not as it has to be, a line each; of ours only.
        story: what both were told, if there are complaints.
    """

    row: str
    contender: str
    controlling: str
    value: float | None
    gap_s: float
    watched_s: float
    closed_s: tuple[float | None, float | None]
    sent: int
    lost: int
    complaints: tuple[str, ...] = ()
    story: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


async def play_together(scenes: Sequence[Scene], contender: str = OURS) -> list[Result]:
    """Play them side by side."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(play(scene, contender)) for scene in scenes]
    return [task.result() for task in tasks]


async def play(scene: Scene, contender: str) -> Result:
    """Let two talk, break what the row breaks, watch what happens, and judge it."""
    row, homes, controlling = scene.row, scene.homes, scene.controlling
    async with _talkers(row, homes, contender, controlling) as talk:
        kinds = [None if look is None else look.kind for look in [await talk.look("a"), await talk.look("b")]]
        began = time.monotonic()
        since = await row.event(homes, talk)
        if contender == OURS:
            await asyncio.sleep(max(0.0, since + row.watch_s - time.monotonic()))
        else:
            await _until_closed(talk, since + row.patience_s)
        now = time.monotonic()
        records = await talk.records()
    complaints: tuple[str, ...] = ()
    if contender == OURS:
        complaints = tuple(judge(row, records, kinds, began, since, now))
    value = row.measure.of(records, since, now)
    return Result(
        row=row.name,
        contender=contender,
        controlling=controlling,
        value=value if math.isfinite(value) else None,
        gap_s=max(gap(record, began, now) for record in records),
        watched_s=now - since,
        closed_s=(_closed_s(records[0], began), _closed_s(records[1], began)),
        sent=sum(record.sent for record in records),
        lost=sum(record.lost for record in records),
        complaints=complaints,
        story=story(records, began) if complaints else "",
    )


def _talkers(row: Row, homes: Homes, contender: str, controlling: str) -> AbstractAsyncContextManager[Talkers]:
    if contender == AIOICE:
        return aioice_talking(homes, controlling=controlling)
    if row.by_programs:
        return pinging(homes, controlling=controlling, is_frozen=row.signalling == FROZEN)
    return talking(homes.a, homes.b, homes.servers, controlling=controlling)


async def _until_closed(talk: Talkers, ends_at: float) -> None:
    """Until both have ended by themselves, or so long."""
    while time.monotonic() < ends_at:
        if all(record.times_of(CLOSED) for record in await talk.records()):
            return
        await asyncio.sleep(LOOK_EVERY_S)


def _closed_s(record: Record, began: float) -> float | None:
    seconds = first(record.times_of(CLOSED), began)
    return seconds if math.isfinite(seconds) else None


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(
    row: Row, records: Sequence[Record], kinds: Sequence[str | None], began: float, since: float, now: float
) -> Iterator[str]:
    """What is not as the row says; a sentence each.

    Args:
        row: see there.
        records: of both ends, as of now.
        kinds: of both paths before the event.
        began: when the event began.
        since: the moment that is measured from.
        now: seconds, as all these.
    """
    value = row.measure.of(records, since, now)
    if not value <= row.bound:
        yield f"{row.measure.name}: {value:.3g} {row.measure.unit}, at most {row.bound:g} is allowed"
    for record, kind in zip(records, kinds, strict=True):
        if row.starts is not None and kind != row.starts:
            yield f"{record.name} began on the path {kind}, not {row.starts}"
    if row.state is None:
        return
    for record in records:
        yield from _end(row, record, began)
        lost = record.lost
        if row.state == "connected" and lost > row.most_lost:
            yield f"{record.name} has not got {lost} datagrams, at most {row.most_lost} may be lost"
    if row.state == "connected":
        yield from _agreed(records, began)
    if row.by_restart:
        for record in records:
            if not record.times_of("ice.restarted", began):
                yield f"{record.name} was not told of a restart"
        if not any(record.times_of("restart.advised", began) for record in records):
            yield "nobody was told to restart"


def _end(row: Row, record: Record, began: float) -> Iterator[str]:
    """What one end was told, and where it is now."""
    if record.has_ended:
        yield f"{record.name} has ended"
    if record.state != row.state:
        yield f"{record.name} is {record.state}, not {row.state}"
    if row.ends is not None and record.kind != row.ends:
        yield f"{record.name} ends on the path {record.kind}, not {row.ends}"
    states = [str(told.fields["new"]) for told in record.told if told.name == "state.changed" and told.at >= began]
    if row.keeps_state and states:
        yield f"{record.name} was told: {', '.join(states)}"


def _agreed(records: Sequence[Record], began: float) -> Iterator[str]:
    """Both ends have the same path, and were told of it at about the same time."""
    if not is_mirrored(records):
        yield "the paths of both are not each other's mirror"
    last = [times[-1] for record in records if (times := record.times_of("path.selected", began))]
    if len(last) == len(records) and abs(last[0] - last[1]) > TOGETHER_S:
        yield f"both were told of their path {abs(last[0] - last[1]):.2f} s apart"


# --- in a process of its own -----------------------------------------------------------------------------------------


async def measure(row: str, contender: str, roles: str) -> list[dict[str, Any]]:
    """Play a row in a laboratory of its own.

    Args:
        row: its name.
        contender: :data:`OURS` or :data:`AIOICE`.
        roles: which side is controlling, ``a``, ``b``, or ``ab``: both, side by side.
    """
    with Lab() as lab:
        return [result.as_json() for result in await play_together(build(lab, row_named(row), roles=roles), contender)]
