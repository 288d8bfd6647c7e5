"""Priorities: the figures that other implementations pin, and the order of local addresses."""

from __future__ import annotations

from itertools import pairwise

import aioice
import aioice.ice
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.candidate import CandidateType
from iceagent.net.host import InterfaceKind
from iceagent.priority import CANDIDATES_PER_BASE, LocalPreferences, candidate_priority, interleave, pair_priority

Base = tuple[str, int, InterfaceKind, bool]


@pytest.mark.parametrize(
    ("candidate_type", "priority"),
    [
        (CandidateType.HOST, 2130706431),
        (CandidateType.PEER_REFLEXIVE, 1862270975),
        (CandidateType.SERVER_REFLEXIVE, 1694498815),
        (CandidateType.RELAYED, 16777215),
    ],
)
def test_the_figures_of_component_one(candidate_type: CandidateType, priority: int) -> None:
    assert candidate_priority(candidate_type, 1) == priority


def test_pairs() -> None:
    """RFC 8445, 6.1.2.3: 2^32*MIN(G,D) + 2*MAX(G,D) + (G>D?1:0)."""
    assert pair_priority(1, 5000) == 4294977296
    assert pair_priority(5000, 1) == 4294977297
    # Two host candidates. Who multiplies by 2^32 - 1 instead (a slip of operator precedence) gets 9151314440652587007.
    assert pair_priority(2130706431, 2130706431) == 9151314442783293438 == 9151314440652587007 + 2130706431


@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_both_ends_compute_the_same_pair_priority(g: int, d: int) -> None:
    """And it tells which side has the greater candidate."""
    assert pair_priority(g, d) == aioice.ice.candidate_pair_priority(host(g), host(d), ice_controlling=True)
    assert pair_priority(g, d) - pair_priority(d, g) == (g > d) - (d > g)


def host(priority: int) -> aioice.Candidate:
    return aioice.Candidate("1", 1, "udp", priority, "192.0.2.1", 5000, "host")


@given(st.sampled_from(CandidateType), st.sampled_from(CandidateType), st.integers(0, 65535), st.integers(1, 256))
def test_the_type_outranks_everything(a: CandidateType, b: CandidateType, preference: int, component: int) -> None:
    order = [CandidateType.RELAYED, CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE, CandidateType.HOST]
    mine, theirs = candidate_priority(a, component, preference), candidate_priority(b, 1, 65535 - preference)
    if a is not b:
        assert (mine > theirs) == (order.index(a) > order.index(b))
    assert 0 <= mine < 2**31


def base(host: str, kind: InterfaceKind = InterfaceKind.ETHERNET, *, metered: bool = False) -> Base:
    return (host, 1, kind, metered)


def order_of(result: list[tuple[str, int]]) -> list[str]:
    return [host for host, _ in sorted(result, key=lambda item: item[1], reverse=True)]


def test_families_alternate_ipv6_first() -> None:
    """RFC 8421, 4: a broken family costs one check, not all of them."""
    found = LocalPreferences().assign(
        [base(h) for h in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "10.0.0.3")]
    )
    assert order_of(found) == ["2001:db8::1", "10.0.0.1", "2001:db8::2", "10.0.0.2", "10.0.0.3"]


def test_tunnels_and_containers_come_last() -> None:
    found = LocalPreferences().assign(
        [
            base("172.17.0.1", InterfaceKind.CONTAINER),
            base("10.8.0.1", InterfaceKind.VPN),
            base("100.64.0.9", InterfaceKind.CELLULAR),
            base("192.168.1.2", InterfaceKind.WIFI),
            base("192.168.1.3", metered=True),
        ]
    )
    assert order_of(found) == ["192.168.1.2", "100.64.0.9", "192.168.1.3", "10.8.0.1", "172.17.0.1"]
    assert found == sorted(found, key=lambda item: item[1], reverse=True)


def test_what_comes_later_stands_above_what_was_there_in_its_class() -> None:
    """What just came up is what the user just plugged in; a tunnel stays a tunnel."""
    preferences = LocalPreferences()
    first = preferences.assign([base("10.0.0.1"), base("10.8.0.1", InterfaceKind.VPN)])
    second = preferences.assign([base("10.0.0.2"), base("10.0.0.3")])
    third = preferences.assign([base("10.8.0.2", InterfaceKind.VPN)])
    assert order_of(first + second + third) == ["10.0.0.2", "10.0.0.3", "10.0.0.1", "10.8.0.2", "10.8.0.1"]


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(InterfaceKind), st.booleans(), st.booleans()), max_size=20), max_size=10
    )
)
def test_all_preferences_are_distinct_and_fit(batches: list[list[tuple[InterfaceKind, bool, bool]]]) -> None:
    """RFC 8445, 5.1.2: unique for each candidate; every base has sixteen of its own."""
    preferences = LocalPreferences()
    given_out: list[int] = []
    count = 0
    for batch in batches:
        bases = []
        for kind, is_ipv6, metered in batch:
            count += 1
            bases.append(base(f"2001:db8::{count:x}" if is_ipv6 else f"10.0.0.{count}", kind, metered=metered))
        result = preferences.assign(bases)
        assert sorted(host for host, _ in result) == sorted(host for host, _, _, _ in bases)
        assert all(x > y for (_, x), (_, y) in pairwise(result))
        given_out += [preference - nth for _, preference in result for nth in range(CANDIDATES_PER_BASE)]
    assert len(set(given_out)) == len(given_out)
    assert all(0 <= preference <= 65535 for preference in given_out)


def test_an_address_that_comes_and_goes_uses_nothing_up() -> None:
    """A roaming machine: the new one stands above the one that stays, ten thousand times."""
    preferences = LocalPreferences()
    ((_, stays),) = preferences.assign([base("10.0.0.1")])
    seen = set()
    for _ in range(10_000):
        ((_, comes),) = preferences.assign([base("10.0.0.2")])
        assert comes > stays
        seen.add(comes)
        preferences.release(comes)
    assert len(seen) == 1


def test_a_class_that_is_used_up_to_the_top_gives_what_is_free() -> None:
    """Each new one comes before the old one goes: in the end there is no place above, but there is always one."""
    preferences = LocalPreferences()
    ((_, last),) = preferences.assign([base("10.0.0.1")])
    for _ in range(2000):
        ((_, comes),) = preferences.assign([base("10.0.0.2")])
        assert abs(comes - last) >= CANDIDATES_PER_BASE and 49152 <= comes - 15 < comes <= 65535
        preferences.release(last)
        last = comes


def test_a_thousand_addresses_of_a_class_are_distinct_and_the_next_class_is_not_touched() -> None:
    preferences = LocalPreferences()
    many = [base(f"10.0.{index // 256}.{index % 256}", InterfaceKind.VPN) for index in range(1100)]
    first, second, third = many[:600], many[600:1024], many[1024:]
    found = preferences.assign(first) + preferences.assign(second)
    assert len({preference for _, preference in found}) == 1024
    assert {preference // 16384 for _, preference in found} == {1}
    # Beyond that they share the last one.
    assert {preference for _, preference in preferences.assign(third)} == {16384 + 15}
    preferences.release(99999)
    preferences.release(0)


def test_interleave() -> None:
    assert interleave([1, 2, 3], [10]) == [1, 10, 2, 3]
    assert interleave([], [10, 20]) == [10, 20]
