"""Is what the benchmarks print what was measured, and is a missed target told?"""

from __future__ import annotations

import pytest

from bench.cases import CASES
from bench.results import Metric, as_json, as_table


def metric(**options: object) -> Metric:
    """A row of three rounds."""
    values: dict[str, object] = {"name": "connect", "unit": "ms", "ours": [1.0, 2.0, 4.0], "peer": [10.0, 30.0, 20.0]}
    return Metric(**(values | options))  # type: ignore[arg-type]


def test_the_ratio_of_rounds_in_turns_is_the_median_of_their_ratios() -> None:
    """10, 15 and 5 times as much: a slow moment of the machine hits both of a round."""
    assert metric().ratio == 10.0


def test_the_ratio_of_unequal_numbers_of_trials_is_that_of_the_medians() -> None:
    assert metric(peer=[30.0, 50.0]).ratio == 20.0


@pytest.mark.parametrize("options", [{"peer": ()}, {"ours": [-0.1, 1.0, 2.0]}])
def test_without_a_peer_or_a_cost_there_is_no_ratio(options: dict[str, object]) -> None:
    assert metric(**options).ratio is None


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({}, []),
        ({"at_most": 2.0}, [("≤ 2.00", True)]),
        ({"at_most": 1.9}, [("≤ 1.90", False)]),
        ({"worst_at_most": 4.0}, [("worst ≤ 4.00", True)]),
        ({"worst_at_most": 3.9}, [("worst ≤ 3.90", False)]),
        ({"ratio_at_least": 10.0}, [("≥ 10×", True)]),
        ({"ratio_at_least": 10.5}, [("≥ 10.5×", False)]),
        ({"at_most": 300.0, "worst_at_most": 1000.0}, [("≤ 300", True), ("worst ≤ 1,000", True)]),
        ({"ratio_at_least": 2.0, "peer": ()}, [("≥ 2×", False)]),
    ],
)
def test_targets(options: dict[str, object], targets: list[tuple[str, bool]]) -> None:
    found = metric(**options)
    assert found.targets == targets
    assert found.is_short == any(not met for _, met in targets)


def test_the_table_has_median_spread_ratio_target_and_verdict() -> None:
    table = as_table([metric(at_most=1.5, note="on loopback"), metric(name="gather", peer=())])
    assert table.splitlines() == [
        "metric       ours              peer                      ratio  target",
        "-" * 70,
        "connect, ms  2.00 (1.00–4.00)  20.0 (10.0–30.0)  aioice  10.0×  ≤ 1.50  SHORT",
        "gather, ms   2.00 (1.00–4.00)",
        "",
        "connect: on loopback",
    ]


def test_json_has_every_value() -> None:
    assert as_json([metric(ratio_at_least=4.0)]) == [
        {
            "metric": "connect",
            "unit": "ms",
            "ours": [1.0, 2.0, 4.0],
            "ours_median": 2.0,
            "peer": [10.0, 30.0, 20.0],
            "peer_name": "aioice",
            "peer_median": 20.0,
            "ratio": 10.0,
            "targets": [{"target": "≥ 4×", "met": True}],
            "note": "",
        }
    ]


def test_every_case_is_described_in_the_readme(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "bench" / "README.md").read_text()
    assert [name for name in CASES if f"| `{name}` |" not in text] == []
