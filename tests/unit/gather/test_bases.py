"""One socket of ours: how it is opened, what arrives on it, and which candidates it makes."""

from __future__ import annotations

import errno
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent import CandidateType, Config
from iceagent.core.pair import Traffic
from iceagent.gather.bases import foundation
from iceagent.net.address import TransportAddress
from iceagent.net.host import InterfaceKind, SocketOptions
from iceagent.priority import CANDIDATES_PER_BASE, candidate_priority
from relay.stun import MessageClass, Method, build
from tests.unit.gather.kit import Listener, Machine, base_on, new_base, open_on

PEER = TransportAddress("198.51.100.1", 9)
STUN = build(Method.BINDING, MessageClass.REQUEST, bytes(12)).encode()


class Ear:
    """An open base of component 2, with a peer, and everybody who hears of what arrives on it."""

    def __init__(self) -> None:
        self.listener = Listener()
        self.data: list[tuple[bytes, int]] = []
        self.base = base_on("192.0.2.1", 1000, listener=self.listener, component=2)
        self.base.sink = lambda data, component: self.data.append((data, component))
        self.traffic = Traffic(2)
        self.base.peers = {PEER: self.traffic}
        self.base.expected = self.traffic

    def receive(self, data: bytes, source: tuple[str, int] = ("198.51.100.1", 9)) -> None:
        self.base.datagram_received(self.base.socket, data, source)


class TestWhatArrives:
    def test_the_peers_data_goes_to_the_sink_and_is_counted(self) -> None:
        ear = Ear()
        for data in (b"hello", b"", b"\x00not STUN", STUN[:19], b"\xff" * 1200):
            ear.receive(data)
        assert [data for data, _ in ear.data] == [b"hello", b"", b"\x00not STUN", STUN[:19], b"\xff" * 1200]
        assert {component for _, component in ear.data} == {2}
        assert (ear.traffic.packets_received, ear.traffic.bytes_received) == (5, 5 + 0 + 9 + 19 + 1200)
        assert ear.traffic.received_at == 5.0
        assert ear.listener.heard == []

    def test_stun_is_ours_even_from_the_peer(self) -> None:
        ear = Ear()
        ear.receive(STUN)
        assert (ear.listener.heard, ear.data) == ([("message", STUN, PEER)], [])
        assert ear.traffic.packets_received == 0

    def test_a_strangers_data_is_the_sessions_business(self) -> None:
        ear = Ear()
        ear.receive(b"hello", ("198.51.100.1", 10))
        assert (ear.listener.heard, ear.data) == ([("message", b"hello", ("198.51.100.1", 10))], [])

    def test_data_on_another_five_tuple_than_ours_is_told_and_delivered(self) -> None:
        ear = Ear()
        ear.base.expected = Traffic(2)
        ear.receive(b"hello")
        assert (ear.listener.heard, ear.data) == ([("moved", PEER)], [(b"hello", 2)])

    def test_errors_with_and_without_a_destination(self) -> None:
        """Without one, it says nothing about any path."""
        ear = Ear()
        ear.base.error_received(ear.base.socket, None, errno.ECONNREFUSED)
        ear.base.error_received(ear.base.socket, PEER, errno.EHOSTUNREACH)
        assert ear.listener.heard == [("error", PEER, errno.EHOSTUNREACH)]


class TestCandidates:
    def test_a_host_candidate(self) -> None:
        base = base_on("192.0.2.1", 1000, component=2)
        candidate = base.candidate(CandidateType.HOST, base.address, "interface eth0")
        assert (candidate.address, candidate.base, candidate.related_address) == (base.address, base.address, None)
        assert (candidate.component, candidate.origin) == (2, "interface eth0")
        assert candidate.priority == candidate_priority(CandidateType.HOST, 2, 60000)

    @pytest.mark.parametrize(("metered", "cost"), [(False, 10), (True, 900)])
    def test_every_candidate_knows_what_its_network_costs(self, metered: bool, cost: int) -> None:
        """And the interface's index as that network's id, as far as 16 bits hold it."""
        base = base_on("192.0.2.1", 1000)
        base.host_address = replace(base.host_address, kind=InterfaceKind.WIFI, metered=metered, index=0x10005)
        for kind in CandidateType:
            candidate = base.candidate(kind, PEER, "here")
            assert (candidate.network_id, candidate.network_cost) == (5, cost)

    def test_a_reflexive_candidate_is_related_to_its_base(self) -> None:
        """RFC 8839, 5.1: the related address of a server-reflexive candidate is its base."""
        base = base_on("10.0.0.1", 1000)
        candidate = base.candidate(CandidateType.SERVER_REFLEXIVE, PEER, "stun:x", TransportAddress("192.0.2.9", 3478))
        assert (candidate.address, candidate.base, candidate.related_address) == (PEER, base.address, base.address)
        assert candidate.priority == candidate_priority(CandidateType.SERVER_REFLEXIVE, 1, 59999)

    def test_what_a_router_maps_stands_above_what_servers_saw_whenever_it_comes(self) -> None:
        base, reflexive = base_on("10.0.0.1", 1000), CandidateType.SERVER_REFLEXIVE
        seen = base.candidate(reflexive, PEER, "stun:x")
        mapped = base.candidate(reflexive, PEER._replace(port=9), "port mapping", is_mapped=True)
        assert mapped.priority == candidate_priority(reflexive, 1, 60000) > seen.priority
        assert mapped.related_address == base.address and mapped.foundation != seen.foundation

    def test_every_candidate_of_a_type_has_a_priority_of_its_own(self) -> None:
        """RFC 8445, 5.1.2; what is found again is the same candidate."""
        base, reflexive = base_on("10.0.0.1", 1000), CandidateType.SERVER_REFLEXIVE
        addresses = [PEER._replace(port=1 + index) for index in range(CANDIDATES_PER_BASE)]
        first, again = ([base.candidate(reflexive, address, "x").priority for address in addresses] for _ in range(2))
        assert first == again == [candidate_priority(reflexive, 1, 59999 - min(index, 14)) for index in range(16)]
        assert base.candidate(CandidateType.HOST, base.address, "x").priority == candidate_priority(
            CandidateType.HOST, 1, 60000
        )

    def test_a_mapping_that_never_rests_does_not_reach_the_next_base(self) -> None:
        base, reflexive = base_on("10.0.0.1", 1000), CandidateType.SERVER_REFLEXIVE
        found = [base.candidate(reflexive, PEER._replace(port=port), "x").priority for port in range(1, 1000)]
        assert min(found) == candidate_priority(reflexive, 1, 60000 - 15)


_hosts = st.ip_addresses().map(str)
_servers = st.none() | st.builds(TransportAddress, _hosts, st.integers(1, 65535))
_keys = st.tuples(st.sampled_from(CandidateType), _hosts, _servers)


@given(one=_keys, other=_keys)
def test_foundations_are_equal_iff_type_base_and_server_are(
    one: tuple[CandidateType, str, TransportAddress | None], other: tuple[CandidateType, str, TransportAddress | None]
) -> None:
    """RFC 8445, 5.1.1.3: same type, same IP address of the base, same IP address of the server, same protocol."""

    def key(each: tuple[CandidateType, str, TransportAddress | None]) -> tuple[object, ...]:
        return each[0], each[1], each[2] and each[2].host

    assert (foundation(*one) == foundation(*other)) == (key(one) == key(other))


def test_the_port_of_a_server_does_not_count() -> None:
    ports = (3478, 3479)
    first, second = (foundation(CandidateType.SERVER_REFLEXIVE, "::1", TransportAddress("::2", port)) for port in ports)
    assert first == second
    # RFC 8839, 5.1: foundation = 1*32ice-char.
    assert len(first) == 8 and first.isalnum()


class TestOpening:
    def test_any_free_port(self) -> None:
        machine, base = Machine(), new_base("192.0.2.1")
        open_on(machine, base, Config())
        assert [address for address, _ in machine.tried] == [("192.0.2.1", 0)]
        assert base.address == ("192.0.2.1", 40000)

    def test_a_taken_port_leads_to_the_next(self) -> None:
        free = TransportAddress("192.0.2.1", 5003)
        machine, base = Machine(lambda address: 0 if address == free else errno.EADDRINUSE), new_base("192.0.2.1")
        open_on(machine, base, Config(port_range=(5000, 5004)))
        tried = [address.port for address, _ in machine.tried]
        assert base.address == free and tried[-1] == 5003
        assert len(set(tried)) == len(tried) and set(tried) <= set(range(5000, 5005))

    @pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM])
    def test_report_9_an_address_that_cannot_be_bound_fails_once(self, number: int) -> None:
        """pion#896: no port of the range will help."""
        machine = Machine(lambda address: number)
        with pytest.raises(OSError) as failure:
            open_on(machine, new_base("192.0.2.1"), Config(port_range=(5000, 6000)))
        assert failure.value.errno == number and len(machine.tried) == 1

    def test_a_full_range_says_so(self) -> None:
        machine = Machine(lambda address: errno.EADDRINUSE)
        with pytest.raises(OSError, match="every port from 5000 to 5004 is in use") as failure:
            open_on(machine, new_base("192.0.2.1"), Config(port_range=(5000, 5004)))
        assert failure.value.errno == errno.EADDRINUSE and len(machine.tried) == 5

    def test_a_thousand_ports_are_tried_at_most(self) -> None:
        machine = Machine(lambda address: errno.EADDRINUSE)
        with pytest.raises(OSError):
            open_on(machine, new_base("192.0.2.1"), Config(port_range=(1, 65535)))
        assert len({address for address, _ in machine.tried}) == len(machine.tried) == 1000

    @pytest.mark.parametrize(
        ("host", "egress_index", "scope_id"),
        [("192.0.2.1", 7, 0), ("2001:db8::1", 7, 0), ("fe80::1", 7, 7), ("127.0.0.1", 0, 0), ("::1", 0, 0)],
    )
    def test_options(self, host: str, egress_index: int, scope_id: int) -> None:
        """What a socket sends leaves through its own interface (the weak host model), loopback excepted."""
        machine = Machine()
        config = Config(dscp=46, mark=3, device="eth0", receive_buffer=None)
        open_on(machine, new_base(host, index=7), config)
        expected = SocketOptions(interface="eth0", mark=3, dscp=46, egress_index=egress_index, scope_id=scope_id)
        assert machine.tried == [(TransportAddress(host, 0), expected)]


def test_ports_are_drawn_from_the_rng_that_is_given() -> None:
    def ports() -> list[int]:
        machine = Machine(lambda address: errno.EADDRINUSE)
        with pytest.raises(OSError):
            open_on(machine, new_base("192.0.2.1"), Config(port_range=(5000, 5009)))
        return [address.port for address, _ in machine.tried]

    assert ports() == ports() == Random(1).sample(range(5000, 5010), 10)
