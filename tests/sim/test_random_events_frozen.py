"""Two hundred and fifty random stories in which signalling ends when both are connected.

See ``test_random_events.py``. To see one again::

    ICEAGENT_STORY=1135 pytest -s tests/sim/test_random_events_frozen.py
"""

from __future__ import annotations

import os

import pytest

from tests.sim.random_events import tell

STORIES = [range(first, first + 25) for first in range(1000, 1250, 25)]
ASKED = os.environ.get("ICEAGENT_STORY")


@pytest.mark.parametrize("seeds", STORIES if ASKED is None else [[int(ASKED)]], ids=lambda seeds: str(seeds[0]))
def test_nobody_sends_to_nobody_and_both_agree_without_signalling(seeds: range) -> None:
    for seed in seeds:
        story = tell(seed, is_frozen=True)
        if ASKED is not None:
            print("\n" + "\n".join(story.lines))
