"""Two hundred and fifty random stories with signalling alive; those without it are in ``test_random_events_frozen.py``.

What happens and what must hold is in ``random_events.py``. A story that breaks prints its seed, everything that
happened, and what the agents said of it. To see one again, whether it breaks or not::

    ICEAGENT_STORY=135 pytest -s tests/sim/test_random_events.py
"""

from __future__ import annotations

import os

import pytest

from tests.sim.random_events import tell

STORIES = [range(first, first + 25) for first in range(0, 250, 25)]
ASKED = os.environ.get("ICEAGENT_STORY")


@pytest.mark.parametrize("seeds", STORIES if ASKED is None else [[int(ASKED)]], ids=lambda seeds: str(seeds[0]))
def test_nobody_sends_to_nobody_and_both_agree_while_signalling_works(seeds: range) -> None:
    for seed in seeds:
        story = tell(seed, is_frozen=False)
        if ASKED is not None:
            print("\n" + "\n".join(story.lines))
