"""What the tests of surviving paths share: it is the benchmark's too, ``bench/survival/``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from bench.survival.homes import Homes, turn
from bench.survival.play import Result
from bench.survival.record import INTERVAL_S
from bench.survival.talk import Side, Talk, talking
from iceagent.events import SelectedPathChanged

__all__ = [
    "INTERVAL_S",
    "Homes",
    "Side",
    "Story",
    "Talk",
    "assert_held",
    "assert_told_the_same",
    "both_ways",
    "talking",
    "turn",
]

Story = Callable[[str], Coroutine[Any, Any, None]]


async def both_ways(story: Story) -> None:
    """Tell it twice, side by side: with ``a`` as the controlling side, and with ``b``."""
    async with asyncio.TaskGroup() as group:
        for controlling in ("a", "b"):
            group.create_task(story(controlling))


def assert_told_the_same(talk: Talk, since: float) -> None:
    """Both ends were told of the path at about the same time, and it is the same one."""
    assert talk.is_mirrored, talk.story(since)
    last = [side.times_of(SelectedPathChanged, since)[-1] for side in talk.sides]
    assert abs(last[0] - last[1]) <= 1.0, talk.story(since)


def assert_held(results: Sequence[Result]) -> None:
    """Nothing is to be complained of; all that is, is told at once."""
    texts = [
        "\n".join([f"{result.row}, {result.controlling} controlling:", *result.complaints, result.story])
        for result in results
        if result.complaints
    ]
    if texts:
        pytest.fail("\n\n".join(texts), pytrace=False)
