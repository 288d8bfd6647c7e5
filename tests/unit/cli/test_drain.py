"""``iceagent serve``: SIGTERM drains, and a second one ends that; in virtual time."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Sequence
from typing import Any, cast

import pytest

from iceagent.cli.output import Output
from iceagent.cli.run import ECHO_S
from iceagent.cli.serve import _until_told
from iceagent.testing import run
from relay.server import Server

DRAIN_S = 5.0


class Busy:
    """As much of a server as drains: its one allocation does not end."""

    allocations = 1

    async def drain(self) -> None:
        await asyncio.get_running_loop().create_future()


def ended_at(signals_at: Sequence[float]) -> float:
    """When a server ends that gets SIGTERM at these times."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        for at in signals_at:
            loop.call_at(at, os.kill, os.getpid(), signal.SIGTERM)
        try:
            await _until_told(cast(Server, cast(Any, Busy())), DRAIN_S, Output(stream=io.StringIO()))
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
        return loop.time()

    return run(main())


@pytest.mark.parametrize(
    ("signals_at", "end"),
    [
        ((1.0,), 1.0 + DRAIN_S),
        # timeout(1): two of them, less than a millisecond apart.
        ((1.0, 1.0005), 1.0 + DRAIN_S),
        ((1.0, 1.0005, 2.0), 2.0),
        ((1.0, 1.01 + ECHO_S), 1.01 + ECHO_S),
    ],
)
def test_a_second_sigterm_ends_it_when_it_is_no_copy_of_the_first(signals_at: tuple[float, ...], end: float) -> None:
    """Allocations have the time of --drain all the same."""
    assert ended_at(signals_at) == pytest.approx(end)
