"""What the tests of the laboratory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iceagent.lab import Lab, Machine

# Files whose tests wait most; they begin first, so that what is short fills the other workers' time.
LONG = ("test_punch_lifetimes", "test_survival_long", "test_survival", "test_survival_servers", "test_reflect")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In this order; with ``--no-loadscope-reorder``, since else files with few tests come last."""
    places = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One laboratory for all tests of a file that do not disturb each other."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Machine:
    """On the Internet, with two addresses."""
    return lab.machine("server", addresses=2)
