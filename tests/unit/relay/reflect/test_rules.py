"""Which datagrams a reflector answers, and how many."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import canonical_host, ip_address
from iceagent.net.host import Interface, InterfaceAddress, InterfaceKind
from relay.reflect.rules import FIRST_SAFE_PORT, MAX_LIMIT, MAX_SOURCES, Reflection, ReflectLimits

PORT = 4000
HERE, HERE_6 = "93.184.216.1", "2606:2800:220:1::1"
THERE, THERE_6 = "93.184.217.1", "2606:2800:220:2::1"
INTERFACES = (
    Interface(
        name="lo",
        index=1,
        kind=InterfaceKind.LOOPBACK,
        addresses=(
            InterfaceAddress(host="127.0.0.1", prefix_length=8),
            InterfaceAddress(host="::1", prefix_length=128),
        ),
    ),
    Interface(
        name="eth0",
        index=2,
        kind=InterfaceKind.ETHERNET,
        addresses=(
            InterfaceAddress(host=HERE, prefix_length=24),
            InterfaceAddress(host=HERE_6, prefix_length=64),
            InterfaceAddress(host="10.0.0.1", prefix_length=30),
            InterfaceAddress(host="10.0.1.0", prefix_length=31),
            InterfaceAddress(host="10.0.2.1", prefix_length=32),
        ),
    ),
)


def reflection(**limits: int) -> Reflection:
    made = Reflection(PORT, ReflectLimits(**limits))
    made.follow(INTERFACES)
    return made


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        (THERE, PORT, "own port"),
        (THERE_6, PORT, "own port"),
        ("127.0.0.1", PORT, "own port"),
        (THERE, 0, "low port"),
        (THERE, 7, "low port"),
        (THERE_6, 1023, "low port"),
        ("127.0.0.1", 53, "low port"),
        ("224.0.0.1", 5000, "multicast"),
        ("239.255.255.255", 5000, "multicast"),
        ("ff02::1", 5000, "multicast"),
        ("255.255.255.255", 5000, "broadcast"),
        ("93.184.216.255", 5000, "broadcast"),
        ("93.184.216.0", 5000, "broadcast"),
        ("10.0.0.3", 5000, "broadcast"),
        ("0.0.0.0", 5000, "unspecified"),
        ("::", 5000, "unspecified"),
        ("0.1.2.3", 5000, "reserved"),
        ("240.0.0.1", 5000, "reserved"),
        ("127.0.0.1", 5000, "loopback"),
        ("127.9.9.9", 5000, "loopback"),
        ("::1", 5000, "loopback"),
        (HERE, 5000, "own address"),
        (HERE_6, 5000, "own address"),
        ("10.0.2.1", 5000, "own address"),
    ],
)
def test_what_is_never_answered(host: str, port: int, reason: str) -> None:
    rules = reflection()
    assert rules.admits(3, (host, port), HERE, 0.0) == 0
    assert rules.counters == {"refused": 3, f"refused: {reason}": 3}


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (THERE, FIRST_SAFE_PORT),
        (THERE, 65535),
        (THERE, PORT + 1),
        (THERE_6, 5000),
        ("93.184.216.254", 5000),
        ("fe80::5", 5000),
        # Carriers' and homes' own addresses: a reflector may be within.
        ("10.0.1.1", 5000),
        ("100.64.0.1", 5000),
        ("fd00::1", 5000),
    ],
)
def test_what_is_answered(host: str, port: int) -> None:
    rules = reflection()
    assert rules.admits(2, (host, port), HERE, 0.0) == 2
    rules.note_answered(2, 300)
    assert rules.counters == {"answered": 2, "answered_bytes": 300}


@pytest.mark.parametrize(
    ("source", "local", "is_answered"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.9.9.9", "127.0.0.1", True),
        ("::1", "::1", True),
        ("127.0.0.1", HERE, False),
        ("::1", HERE_6, False),
        (HERE, "127.0.0.1", False),
        (HERE, HERE, False),
    ],
)
def test_loopback_is_answered_on_loopback_alone(source: str, local: str, is_answered: bool) -> None:
    assert (reflection().refusal((source, 5000), local) is None) == is_answered


def test_an_address_that_has_gone_is_no_longer_our_own() -> None:
    rules = reflection()
    rules.follow(INTERFACES[:1])
    assert rules.refusal((HERE, 5000), HERE_6) is None
    assert rules.refusal(("93.184.216.255", 5000), HERE_6) is None


def test_a_source_has_a_rate_and_a_burst() -> None:
    rules = reflection(per_source=10, burst=30)
    assert rules.admits(100, (THERE, 5000), HERE, 0.0) == 30
    # Its other ports, and the other hosts of an IPv6 household, are the same source; another IPv4 address is not.
    assert rules.admits(100, (THERE, 5001), HERE, 0.0) == 0
    assert rules.admits(100, ("93.184.217.2", 5000), HERE, 0.0) == 30
    assert rules.admits(100, (THERE_6, 5000), HERE_6, 0.0) == 30
    assert rules.admits(100, ("2606:2800:220:ff::9", 5000), HERE_6, 0.0) == 0
    assert rules.admits(100, ("2606:2800:220:100::9", 5000), HERE_6, 0.0) == 30
    assert rules.admits(100, (THERE, 5000), HERE, 1.0) == 10
    assert rules.counters["limited"] == 7 * 100 - 4 * 30 - 10


def test_all_sources_together_have_a_rate() -> None:
    rules = reflection(per_source=10, burst=10, total=25)
    assert [rules.admits(10, (f"93.184.217.{number}", 5000), HERE, 0.0) for number in range(4)] == [10, 10, 5, 0]
    assert rules.counters == {"limited": 15}
    assert rules.admits(10, ("93.184.217.9", 5000), HERE, 0.2) == 5


def test_sources_are_remembered_up_to_a_limit_and_forgotten_in_time() -> None:
    rules = reflection(per_source=1, burst=1, sources=4)
    sources = [(f"93.184.217.{number}", 5000) for number in range(10)]
    assert [rules.admits(1, source, HERE, 0.0) for source in sources] == [1] * 4 + [0] * 6
    assert [rules.admits(1, source, HERE, 1.0) for source in sources[4:]] == [1] * 4 + [0] * 2


@given(
    st.lists(
        st.tuples(
            st.integers(1, 200),
            st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
            st.integers(0, 65535),
            st.floats(0, 5),
        ),
        max_size=40,
    )
)
def test_whatever_comes_nothing_is_lost_count_of_and_no_limit_is_passed(datagrams: list[Any]) -> None:
    limits = ReflectLimits(per_source=10, burst=20, total=100)
    rules = Reflection(PORT, limits)
    rules.follow(INTERFACES)
    now, admitted, asked = 0.0, 0, 0
    by_source: Counter[object] = Counter()
    for count, ip, port, pause in datagrams:
        now += pause
        asked += count
        host = canonical_host(str(ip))
        some = rules.admits(count, (host, port), HERE, now)
        assert 0 <= some <= count
        admitted += some
        by_source[host if ip_address(host).version == 4 else int(ip_address(host)) >> 72] += some
    assert rules.counters["refused"] + rules.counters["limited"] + admitted == asked
    assert rules.counters["refused"] == sum(
        count for name, count in rules.counters.items() if name.startswith("refused:")
    )
    assert admitted <= 100 + now * 100 + 1e-6
    assert all(some <= 20 + now * 10 + 1e-6 for some in by_source.values())


# --- two reflectors, and one packet whose source is the other one ----------------------------------------------------


def circle(one: Reflection, other: Reflection, rtt_s: float) -> int:
    """How many answers there are before it ends; 10,000 at most."""
    hosts, now = (HERE, THERE), 0.0
    reflectors = (one, other)
    for count in range(10_000):
        here, there = count % 2, 1 - count % 2
        if not reflectors[here].admits(1, (hosts[there], reflectors[there].port), hosts[here], now):
            return count
        reflectors[here].note_answered(1, 100)
        now += rtt_s / 2
    return 10_000


def test_with_one_port_number_nothing_is_answered() -> None:
    """The packet says that it comes from the other's port, which is ours as well."""
    assert circle(Reflection(PORT, ReflectLimits()), Reflection(PORT, ReflectLimits()), 0.05) == 0


def test_with_two_port_numbers_the_limit_of_a_source_ends_it() -> None:
    """As long as a round trip is shorter than the limit's pause."""
    limits = ReflectLimits()
    count = circle(Reflection(PORT, limits), Reflection(PORT + 1, limits), 0.5 / limits.per_source)
    assert count <= 4 * limits.burst + 2


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_burst_is_five_seconds_worth_unless_it_is_said() -> None:
    assert (ReflectLimits().per_source, ReflectLimits().burst) == (100, 500)
    assert ReflectLimits(per_source=7).burst == 35
    assert ReflectLimits(per_source=7, burst=1).burst == 1
    assert ReflectLimits(per_source=MAX_LIMIT).burst == MAX_LIMIT


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("per_source", 0, "per_source is 0, allowed is 1 to 1000000000"),
        ("per_source", MAX_LIMIT + 1, "per_source is 1000000001, allowed is"),
        ("burst", -1, "burst is -1, allowed is 0 to"),
        ("total", 0, "total is 0, allowed is 1 to"),
        ("sources", 0, "sources is 0, allowed is 1 to"),
        ("sources", MAX_SOURCES + 1, "allowed is 1 to 1048576"),
        ("total", 1.5, "total is of type float, a whole number is expected"),
        ("total", True, "total is of type bool"),
        ("per_source", "9", "per_source is of type str"),
        ("sources", None, "sources is of type NoneType"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ReflectLimits(**{name: value})
