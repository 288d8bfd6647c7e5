"""What does a core's second of load say about a relay, and which bounds are judged by it?"""

from __future__ import annotations

import pytest

from bench.cases import latch, reflect
from bench.one_core import Passed, idle_ticks, rows

STAT = """\
cpu  100 1 50 1000 20 0 7 0 0 0
cpu0 60 1 30 400 15 0 7 0 0 0
cpu1 40 0 20 600 5 0 0 0 0 0
cpu10 1 2 3 4 5 6 7 8 9 10
intr 12345
"""


LATCH_RESULTS = (*latch.CONTENDERS, *(f"{name}{latch.MIXED}" for name in latch.OURS if "channels" in name))


def passed(cpu_us: float, busy: float = 1.0, lost: float = 0.0) -> Passed:
    """A round in which a datagram took so much of a core that was so busy."""
    return Passed(cpu_us, cpu_us / busy, busy, lost)


@pytest.mark.parametrize(("core", "ticks"), [(0, 415), (1, 605), (10, 9)])
def test_a_core_is_idle_while_it_waits_for_disks_too(core: int, ticks: int) -> None:
    """proc(5): the 4th and 5th number."""
    assert idle_ticks(STAT, core) == ticks


def test_the_cost_is_judged_and_the_time_is_told() -> None:
    ours, theirs = [passed(2.0, busy=0.5), passed(2.0, busy=0.8)], [passed(10.0), passed(10.0)]
    judged, beside = rows("relay", ours, "select()", theirs, 4.0)
    assert judged.ratio == 5.0 and judged.targets == [("≥ 4×", True)]
    assert beside.ratio == pytest.approx((2.5 + 4.0) / 2) and beside.targets == []


def test_the_note_tells_datagrams_a_second_and_what_was_lost() -> None:
    ours, theirs = [passed(2.0, busy=0.5)], [passed(10.0, lost=0.01)]
    judged, beside = rows("relay", ours, "coturn", theirs, None)
    assert judged.note == (
        "500 kpps per core, 250 seen, 50% busy; coturn: 100 kpps per core, 100 seen, 100% busy (lost at worst 1.00%)"
    )
    assert beside.note == ""


def test_the_bounds_of_the_reflector() -> None:
    """In nftables 2.5 times a plain echo and 10 times one of asyncio's, at both sizes."""
    found = {(name, size): [passed(1.0)] for name in reflect.CONTENDERS for size in reflect.SIZES}
    judged = [(metric.name, metric.peer_name, text) for metric in reflect._metrics(found) for text, _ in metric.targets]
    assert judged == [
        ("reflector in nftables, 100 bytes", "recvfrom/sendto", "≥ 2.5×"),
        ("reflector in nftables, 1,200 bytes", "recvfrom/sendto", "≥ 2.5×"),
        ("reflector in nftables, 100 bytes", "asyncio", "≥ 10×"),
        ("reflector in nftables, 1,200 bytes", "asyncio", "≥ 10×"),
    ]


def test_the_bounds_of_the_latching_relay() -> None:
    """Userspace 1.3 times select(); nftables 4 times it and 2 times coturn; 1,000 channels 0.8 of one."""
    found = {(name, size): [passed(1.0)] for name in LATCH_RESULTS for size in latch.SIZES}
    judged = [(metric.name, metric.peer_name, text) for metric in latch._metrics(found) for text, _ in metric.targets]
    assert judged == [
        (f"latched relay in {name}, {size} bytes", peer, text)
        for name, peer, text in (
            ("userspace", "select()", "≥ 1.3×"),
            ("nftables", "select()", "≥ 4×"),
            ("nftables", "coturn", "≥ 2×"),
            ("userspace, 1,000 channels", "one channel", "≥ 0.8×"),
            ("nftables, 1,000 channels", "one channel", "≥ 0.8×"),
        )
        for size in ("100", "1,200")
    ]


def test_a_thousand_channels_are_compared_with_one_of_the_same_back_end() -> None:
    costs = {"userspace": 8.0, "nftables": 1.0, "userspace, 1,000 channels": 10.0, "nftables, 1,000 channels": 2.0}
    found = {(name, size): [passed(costs.get(name, 5.0))] for name in LATCH_RESULTS for size in latch.SIZES}
    many = {metric.name: metric for metric in latch._metrics(found) if metric.peer_name == "one channel"}
    assert many["latched relay in userspace, 1,000 channels, one by one, 100 bytes"].ratio == pytest.approx(1.6)
    assert many["latched relay in userspace, 1,000 channels, 100 bytes"].ratio == pytest.approx(0.8)
    assert many["latched relay in nftables, 1,000 channels, 100 bytes"].ratio == pytest.approx(0.5)
