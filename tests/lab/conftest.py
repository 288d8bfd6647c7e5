"""What the tests of the laboratory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iceagent.lab import Lab, Machine


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One laboratory for all tests of a file that do not disturb each other."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Machine:
    """On the Internet, with two addresses."""
    return lab.machine("server", addresses=2)
