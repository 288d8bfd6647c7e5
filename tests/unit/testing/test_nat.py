"""NAT models against RFC 4787, and against what Linux routers were seen to do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress as Address
from iceagent.testing.allocation import Allocation
from iceagent.testing.catalogue import FIREWALL_KINDS, NAT_KINDS, box_of_kind
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.nat import STRANGER_LIMIT, NatModel, Pooling

W = "203.0.113.1"
W2 = "203.0.113.2"
X = Address("192.168.1.2", 5000)
X2 = Address("192.168.1.3", 5000)
A1 = Address("198.51.100.1", 1001)
A2 = Address("198.51.100.1", 1002)
B1 = Address("198.51.100.2", 1001)


def nat(
    mapping: Mapping = Mapping.EIM,
    filtering: Filtering = Filtering.APDF,
    allocation: Allocation = Allocation.PRESERVING,
    **options: object,
) -> NatModel:
    return NatModel(
        [W],
        random.Random(1),
        mapping=mapping,
        filtering=filtering,
        allocation=allocation,
        **options,  # type: ignore[arg-type]
    )


def ports(box: NatModel | FirewallModel, *remotes: Address, inside: Address = X, now: float = 0.0) -> list[int]:
    """Outside ports of flows to ``remotes``, in this order."""
    seen = [box.outbound(inside, remote, now) for remote in remotes]
    assert None not in seen
    return [address.port for address in seen if address is not None]


# --- mapping: RFC 4787, 4.1


def test_eim_reuses_the_mapping_for_any_external_endpoint() -> None:
    box = nat(Mapping.EIM, allocation=Allocation.RANDOM)
    first, second, third = ports(box, A1, A2, B1)
    assert first == second == third


def test_adm_reuses_the_mapping_if_and_only_if_the_address_is_the_same() -> None:
    first, second, third = ports(nat(Mapping.ADM, allocation=Allocation.RANDOM), A1, A2, B1)
    assert first == second != third


def test_apdm_reuses_the_mapping_for_the_same_endpoint_only() -> None:
    first, second, third, again = ports(nat(Mapping.APDM, allocation=Allocation.RANDOM), A1, A2, B1, A1)
    assert len({first, second, third}) == 3
    assert again == first


def test_two_internal_ports_have_two_mappings() -> None:
    box = nat(allocation=Allocation.RANDOM)
    assert ports(box, A1) != ports(box, A1, inside=Address(X.host, 5001))


@pytest.mark.parametrize("mapping", [Mapping.NONE, Mapping.UNKNOWN])
def test_a_nat_has_a_mapping(mapping: Mapping) -> None:
    with pytest.raises(ValueError, match=f"cannot have mapping '{mapping.value}'"):
        nat(mapping)


@pytest.mark.parametrize("external", [[], ["192.0.2.1", "2001:db8::1"]])
def test_a_nat_has_external_addresses_of_one_version(external: list[str]) -> None:
    with pytest.raises(ValueError, match="external addresses of one IP version"):
        NatModel(external, random.Random(1))


# --- filtering: RFC 4787, 5


@pytest.mark.parametrize(
    ("filtering", "admitted"),
    [
        (Filtering.EIF, {A1, A2, B1}),
        (Filtering.ADF, {A1, A2}),
        (Filtering.APDF, {A1}),
    ],
)
@pytest.mark.parametrize("mapping", [Mapping.EIM, Mapping.ADM, Mapping.APDM])
def test_filtering(mapping: Mapping, filtering: Filtering, admitted: set[Address]) -> None:
    box = nat(mapping, filtering)
    external = box.outbound(X, A1, 0.0)
    assert external is not None
    for remote in (A1, A2, B1):
        assert box.inbound(remote, external, 0.0) == (X if remote in admitted else None)


def test_nothing_comes_in_without_a_mapping() -> None:
    box = nat(filtering=Filtering.EIF)
    assert box.inbound(A1, Address(W, 5000), 0.0) is None


def test_sending_opens_the_filter_for_one_more_peer() -> None:
    box = nat()
    assert ports(box, A1) == [5000]
    assert box.inbound(B1, Address(W, 5000), 0.0) is None
    assert ports(box, B1) == [5000]
    assert box.inbound(B1, Address(W, 5000), 0.0) == X


def test_permission_on_one_mapping_is_none_on_another() -> None:
    box = nat(Mapping.APDM, Filtering.ADF, Allocation.SEQUENTIAL, ports=range(20000, 20100))
    assert ports(box, A1, B1) == [20000, 20001]
    assert box.inbound(B1, Address(W, 20000), 0.0) is None
    assert box.inbound(B1, Address(W, 20001), 0.0) == X


# --- which port: RFC 4787, 4.2.1


def test_preserving_keeps_the_port_and_gives_a_random_one_on_collision() -> None:
    box = nat()
    assert ports(box, A1, inside=X) == [5000]
    (other,) = ports(box, A1, inside=X2)
    assert other != 5000
    assert ports(box, B1, inside=X2) == [other]


def test_sequential_counts_on_and_skips_what_is_taken() -> None:
    box = nat(Mapping.APDM, allocation=Allocation.SEQUENTIAL, ports=range(20000, 20004))
    assert ports(box, A1, A2, B1) == [20000, 20001, 20002]
    assert ports(box, Address("198.51.100.9", 1), now=60.0) == [20003]
    assert ports(box, A1, A2, now=60.0) == [20000, 20001]
    # B1's mapping has expired at 120 s; the others live until 180 s.
    assert ports(box, Address("198.51.100.9", 2), now=120.0) == [20002]


def test_sequential_with_a_step() -> None:
    box = nat(Mapping.APDM, allocation=Allocation.SEQUENTIAL, ports=range(20000, 22000), step=2)
    assert ports(box, A1, A2, B1) == [20000, 20002, 20004]


def test_random_ports_are_of_the_pool_and_spread_over_it() -> None:
    box = nat(Mapping.APDM, allocation=Allocation.RANDOM, ports=range(40000, 60000))
    seen = ports(box, *(Address("198.51.100.7", port) for port in range(1, 401)))
    assert len(set(seen)) == 400
    assert all(40000 <= port < 60000 for port in seen)
    assert min(seen) < 41000 and max(seen) > 59000


def test_a_full_pool_gives_every_port_once_and_then_drops() -> None:
    box = nat(Mapping.APDM, allocation=Allocation.RANDOM, ports=range(40000, 40064))
    remotes = [Address("198.51.100.7", port) for port in range(1, 66)]
    assert sorted(ports(box, *remotes[:64])) == list(range(40000, 40064))
    assert box.outbound(X, remotes[64], 0.0) is None


def test_block_allocation_gives_each_internal_host_2048_ports() -> None:
    box = nat(Mapping.APDM, allocation=Allocation.BLOCK, ports=range(10000, 10000 + 2 * 2048))
    remotes = [Address("198.51.100.7", port) for port in range(1, 2050)]
    assert sorted(ports(box, *remotes[:2048])) == list(range(10000, 12048))
    assert box.outbound(X, remotes[2048], 0.0) is None
    (other,) = ports(box, A1, inside=X2)
    assert 12048 <= other < 14096
    assert box.outbound(Address("192.168.1.4", 5000), A1, 0.0) is None, "there is no third block"


def test_hashed_ports_come_back_after_a_reboot_and_random_ones_do_not() -> None:
    fixed = nat(Mapping.APDM, allocation=Allocation.HASHED)
    drawn = nat(Mapping.APDM, allocation=Allocation.RANDOM)
    before = ports(fixed, A1, A2, B1), ports(drawn, A1, A2, B1)
    fixed.forget()
    drawn.forget()
    assert ports(fixed, A1, A2, B1) == before[0]
    assert ports(drawn, A1, A2, B1) != before[1]


def test_pooling_paired_gives_a_host_one_address_for_all_its_ports() -> None:
    box = NatModel([W, W2], random.Random(1))
    first = [box.outbound(Address(X.host, port), A1, 0.0) for port in range(5000, 5020)]
    second = [box.outbound(Address(X2.host, port), A1, 0.0) for port in range(6000, 6020)]
    assert {address.host for address in first if address} == {W}
    assert {address.host for address in second if address} == {W2}


def test_pooling_arbitrary_uses_all_addresses() -> None:
    box = NatModel([W, W2], random.Random(1), pooling=Pooling.ARBITRARY)
    seen = [box.outbound(Address(X.host, port), A1, 0.0) for port in range(5000, 5020)]
    assert {address.host for address in seen if address} == {W, W2}


# --- lifetime: RFC 4787, 4.3


def test_a_mapping_dies_exactly_one_lifetime_after_the_last_outbound_packet() -> None:
    box = nat(lifetime_s=30.0)
    external = Address(W, ports(box, A1, now=0.0)[0])
    ports(box, A1, now=20.0)
    assert box.inbound(A1, external, 49.999) == X
    assert box.inbound(A1, external, 50.0) is None
    assert box.session_count(50.0) == 0


def test_a_random_nat_gives_another_port_after_the_lifetime_only() -> None:
    box = nat(allocation=Allocation.RANDOM, lifetime_s=30.0)
    (first,) = ports(box, A1, now=0.0)
    assert ports(box, B1, now=29.5) == [first]
    assert ports(box, B1, now=59.5) != [first]


def test_req_6_outbound_refresh_for_one_peer_keeps_the_mapping_but_not_the_permission_of_another() -> None:
    box = nat(lifetime_s=30.0)
    ports(box, A1, B1, now=0.0)
    ports(box, A1, now=20.0)
    assert box.inbound(B1, Address(W, 5000), 30.0) is None
    assert box.inbound(A1, Address(W, 5000), 30.0) == X


@pytest.mark.parametrize(("inbound_refresh", "survives"), [(False, False), (True, True)])
@pytest.mark.parametrize("filtering", [Filtering.EIF, Filtering.ADF, Filtering.APDF])
def test_inbound_packets_refresh_only_where_the_nat_does_that(
    filtering: Filtering, inbound_refresh: bool, survives: bool
) -> None:
    box = nat(filtering=filtering, allocation=Allocation.RANDOM, lifetime_s=30.0, inbound_refresh=inbound_refresh)
    (port,) = ports(box, A1, now=0.0)
    for now in (10.0, 20.0, 25.0):
        assert box.inbound(A1, Address(W, port), now) == X
    assert (box.inbound(A1, Address(W, port), 40.0) == X) is survives
    assert (box.external_of(X, A1, 40.0) == Address(W, port)) is survives


def test_a_filtered_packet_refreshes_nothing() -> None:
    box = nat(lifetime_s=30.0, inbound_refresh=True)
    ports(box, A1, now=0.0)
    assert box.inbound(B1, Address(W, 5000), 20.0) is None
    assert box.inbound(A1, Address(W, 5000), 30.0) is None


def test_readdress_forgets_and_uses_the_new_address() -> None:
    box = nat(filtering=Filtering.EIF)
    ports(box, A1)
    box.readdress([W2])
    assert box.inbound(A1, Address(W, 5000), 0.0) is None
    assert box.outbound(X, A1, 0.0) == Address(W2, 5000)


# --- bounds


def test_the_session_table_is_bounded_and_frees_itself() -> None:
    box = nat(session_limit=3, lifetime_s=30.0)
    ports(box, A1, now=0.0)
    ports(box, A2, B1, now=10.0)
    extra = Address("198.51.100.9", 9)
    assert box.outbound(X, extra, 20.0) is None
    assert ports(box, A2, now=20.0) == [5000], "a known flow goes on"
    assert box.session_count(29.9) == 3
    assert box.outbound(X, extra, 30.0) == Address(W, 5000)


def test_strangers_are_bounded() -> None:
    box = nat(early_packet_trap=True)
    for port in range(1, STRANGER_LIMIT + 1):
        box.inbound(Address("198.51.100.9", port), Address(W, 5000), 0.0)
    box.inbound(A1, Address(W, 5000), 0.0)
    assert ports(box, A1) == [5000], "the table was full: nothing was remembered of A1"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 5), st.integers(0, 40)), max_size=60))
def test_translation_is_consistent(steps: list[tuple[bool, int, int, int]]) -> None:
    """Whatever was let in goes to the endpoint whose mapping it is; two endpoints never share an outside port."""
    for mapping in (Mapping.EIM, Mapping.ADM, Mapping.APDM):
        box = nat(mapping, Filtering.EIF, Allocation.RANDOM, ports=range(40000, 40008), lifetime_s=30.0)
        owners: dict[Address, Address] = {}
        now = 0.0
        for is_outbound, inside_index, remote_index, wait_s in steps:
            now += wait_s
            inside = Address("192.168.1.2", 5000 + inside_index)
            remote = Address(f"198.51.100.{remote_index // 2}", 1000 + remote_index)
            if is_outbound:
                external = box.outbound(inside, remote, now)
                if external is not None:
                    owners[external] = inside
            else:
                external = Address(W, 40000 + remote_index)
                assert box.inbound(remote, external, now) in (None, owners.get(external))


# --- forwarded ports


def test_a_forwarded_port_lets_anyone_in_and_answers_from_it() -> None:
    """A mapping does not move the socket's own source port: replies leave from the mapped one, own flows do not."""
    box = nat()
    external = Address(W, 16000)
    box.forward(external, X)
    assert box.inbound(A1, external, 0.0) == X
    assert box.outbound(X, A1, 0.0) == external
    assert box.outbound(X, B1, 0.0) == Address(W, 5000)
    box.withdraw(external)
    assert box.inbound(A2, external, 0.0) is None


def test_forward_and_own_flows_coincide_when_the_ports_do() -> None:
    box = nat()
    box.forward(Address(W, 5000), X)
    assert ports(box, A1, inside=X) == [5000]
    assert ports(box, A1, inside=X2) != [5000], "it belongs to another host"


def test_a_port_is_forwarded_once() -> None:
    box = nat()
    box.forward(Address(W, 16000), X)
    with pytest.raises(ValueError, match="open already"):
        box.forward(Address(W, 16000), X2)
    with pytest.raises(ValueError, match="not an address of this NAT"):
        box.forward(Address(W2, 16000), X2)


# --- the early-packet trap


def test_the_trap_gives_a_poisoned_flow_another_port_and_the_flows_after_it_too() -> None:
    """Seen on Linux: outside ports to (A:1, A:2, B:1) with a knock of A:2 after the first: 5000 18690 18690."""
    box = nat(early_packet_trap=True)
    assert ports(box, A1) == [5000]
    assert box.inbound(A2, Address(W, 5000), 0.0) is None
    second, third = ports(box, A2, B1)
    assert second == third != 5000
    assert ports(box, A1) == [5000], "the flow that is there already stays"
    assert ports(box, Address("198.51.100.3", 1)) == [second], "and does not become the one that new flows share"


def test_the_trap_needs_no_mapping_to_strike() -> None:
    box = nat(early_packet_trap=True)
    assert box.inbound(A1, Address(W, 5000), 0.0) is None
    assert ports(box, A1) != [5000]


def test_without_the_trap_a_knock_does_no_harm() -> None:
    box = nat()
    assert box.inbound(A1, Address(W, 5000), 0.0) is None
    assert ports(box, A1) == [5000]


def test_an_own_packet_first_defuses_the_trap() -> None:
    """A low-TTL opener: our entry exists before the peer's packet arrives."""
    box = nat(early_packet_trap=True)
    assert ports(box, A1) == [5000]
    assert box.inbound(A1, Address(W, 5000), 0.0) == X
    assert ports(box, A1) == [5000]


def test_every_retry_of_the_stranger_refreshes_the_poison_and_silence_heals() -> None:
    box = nat(early_packet_trap=True, lifetime_s=30.0)
    for now in (0.0, 20.0, 40.0):
        assert box.inbound(A1, Address(W, 5000), now) is None
    assert ports(box, A1, now=69.999) != [5000]
    healed = nat(early_packet_trap=True, lifetime_s=30.0)
    assert healed.inbound(A1, Address(W, 5000), 40.0) is None
    assert ports(healed, A1, now=70.0) == [5000]


def test_a_new_socket_escapes_the_poison() -> None:
    box = nat(early_packet_trap=True)
    assert box.inbound(A1, Address(W, 5000), 0.0) is None
    assert ports(box, A1, inside=Address(X.host, 5001)) == [5001]


# --- firewalls


def test_a_firewall_translates_nothing_and_lets_answers_in() -> None:
    box = FirewallModel()
    assert box.inbound(A1, X, 0.0) is None
    assert ports(box, A1) == [5000]
    assert box.inbound(A1, X, 0.0) == X
    assert box.inbound(A2, X, 0.0) is None


@pytest.mark.parametrize(
    ("filtering", "admitted"), [(Filtering.EIF, {A2, B1}), (Filtering.ADF, {A2}), (Filtering.APDF, set())]
)
def test_firewall_filtering(filtering: Filtering, admitted: set[Address]) -> None:
    box = FirewallModel(filtering=filtering)
    ports(box, A1)
    assert {remote for remote in (A2, B1) if box.inbound(remote, X, 0.0) == X} == admitted


def test_a_firewall_flow_lives_a_lifetime_from_its_last_packet() -> None:
    box = FirewallModel(lifetime_s=30.0)
    ports(box, A1, now=0.0)
    assert box.inbound(A1, X, 20.0) == X
    assert box.inbound(A1, X, 49.9) == X
    assert box.inbound(A1, X, 79.9) is None


def test_an_open_router_lets_everything_in() -> None:
    assert FirewallModel(is_open=True).inbound(A1, X, 0.0) == X


def test_a_pinhole_opens_one_endpoint() -> None:
    box = FirewallModel()
    box.open_pinhole(X)
    assert (box.inbound(A1, X, 0.0), box.inbound(A1, X2, 0.0)) == (X, None)
    box.close_pinhole(X)
    assert box.inbound(A1, X, 0.0) is None


def test_a_firewall_is_bounded() -> None:
    box = FirewallModel(session_limit=1)
    assert box.outbound(X, A1, 0.0) == X
    assert box.outbound(X, B1, 0.0) is None
    assert box.session_count(0.0) == 1


def test_a_firewall_has_a_filter() -> None:
    with pytest.raises(ValueError, match="cannot have filtering 'unknown'"):
        FirewallModel(filtering=Filtering.UNKNOWN)


# --- the kinds of the laboratory, as its real routers were seen

SEEN = {
    "open": (5000, 5000, 5000),
    "firewall": (5000, 5000, 5000),
    "full-cone": (5000, 5000, 5000),
    "addr-restricted": (5000, 5000, 5000),
    "port-restricted-strict": (5000, 5000, 5000),
    "port-restricted": (5000, 5000, 5000),
    "port-restricted-naive": (5000, 5000, 5000),
    "eim-random-port": ("a", "a", "a"),
    "addr-symmetric": ("a", "a", "b"),
    "symmetric": ("a", "b", "c"),
    "symmetric-seq": (20000, 20001, 20002),
    "symmetric-fixed": ("a", "b", "c"),
    "carrier": ("a", "a", "a"),
}
ADMITTED = {"open": {A1, A2, B1}, "full-cone": {A1, A2, B1}, "addr-restricted": {A1, A2}}


@pytest.mark.parametrize("kind", [*FIREWALL_KINDS, *NAT_KINDS])
def test_kinds_treat_ports_as_the_real_ones(kind: str) -> None:
    seen = ports(box_of_kind(kind, [W], random.Random(3)), A1, A2, B1)
    expected = SEEN[kind]
    if isinstance(expected[0], int):
        assert tuple(seen) == expected
    else:
        distinct = [*dict.fromkeys(seen)]
        assert tuple("abc"[distinct.index(port)] for port in seen) == expected
        assert 5000 not in seen


@pytest.mark.parametrize("kind", [*FIREWALL_KINDS, *NAT_KINDS])
def test_kinds_filter_as_the_real_ones(kind: str) -> None:
    box = box_of_kind(kind, [W], random.Random(3))
    external = box.outbound(X, A1, 0.0)
    assert external is not None
    admitted = {remote for remote in (A1, A2, B1) if box.inbound(remote, external, 0.0) == X}
    assert admitted == ADMITTED.get(kind, {A1})


def test_unknown_kinds_and_impossible_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match="no NAT kind 'cubic'; there are open, firewall, full-cone"):
        box_of_kind("cubic", [W], random.Random(1))
    with pytest.raises(ValueError, match="does not hairpin"):
        box_of_kind("symmetric", [W], random.Random(1), hairpin=True)
    assert box_of_kind("full-cone", [W], random.Random(1), hairpin=True).hairpin is True
