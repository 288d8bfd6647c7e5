"""The judge of our clients of PCP and NAT-PMP, judged by bytes written by hand from RFC 6886 and RFC 6887."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress as Address
from tests.fakes.gateway import FakeGateway, Options, PortClosed
from tests.fakes.gateway.journal import MAX_REQUESTS, MAX_VIOLATIONS

CLIENT = Address("192.168.1.2", 40000)
CLIENT6 = Address("2a0f:77::1", 40000)
SERVER = Address("192.168.1.1", 5351)
NONCE = bytes(range(1, 13))
V4 = bytes(10) + b"\xff\xff"
OURS = V4 + bytes([192, 168, 1, 2])
EXTERNAL = bytes([11, 22, 33, 44])

# RFC 6886, 3.3: version, opcode, reserved, internal port 5000, suggested port 6000, lifetime 3600.
MAP_UDP = bytes.fromhex("0001 0000 1388 1770 00000e10")
DELETE_UDP = bytes.fromhex("0001 0000 1388 0000 00000000")


def pcp_map(
    lifetime_s: int = 3600,
    *,
    nonce: bytes = NONCE,
    client: bytes = OURS,
    inner: int = 5000,
    outer: int = 0,
    outer_host: bytes = V4 + bytes(4),
    protocol: int = 17,
    options: bytes = b"",
) -> bytes:
    """RFC 6887, 7.1 and 11.1."""
    header = b"\x02\x01\x00\x00" + lifetime_s.to_bytes(4, "big") + client
    ports = inner.to_bytes(2, "big") + outer.to_bytes(2, "big")
    return header + nonce + bytes([protocol, 0, 0, 0]) + ports + outer_host + options


ANNOUNCE = b"\x02\x00\x00\x00" + bytes(4) + OURS


def ask(gateway: FakeGateway, data: bytes, now: float = 100.0, source: Address = CLIENT) -> bytes:
    """The one answer that comes at once from where it should."""
    (reply,) = gateway.answer_udp(data, source, now)
    assert reply.delay_s == 0.0
    assert reply.source == Address("fe80::1" if source.version == 6 else "192.168.1.1", 5351)
    return reply.data


# --- NAT-PMP ---------------------------------------------------------------------------------------------------------


def test_natpmp_tells_the_external_address() -> None:
    """RFC 6886, 3.2: 12 bytes."""
    gateway = FakeGateway()
    assert ask(gateway, b"\x00\x00") == bytes.fromhex("0080 0000 00000064") + EXTERNAL
    assert gateway.kinds() == ["external address"]
    assert gateway.violations == []


def test_natpmp_maps_renews_expires_and_deletes() -> None:
    gateway = FakeGateway()
    assert ask(gateway, MAP_UDP) == bytes.fromhex("0081 0000 00000064 1388 1770 00000e10")
    assert ask(gateway, MAP_UDP, 200.0) == bytes.fromhex("0081 0000 000000c8 1388 1770 00000e10")
    gateway.expire(3799.9)
    (mapping,) = gateway.mappings
    assert (mapping.transport, mapping.internal, mapping.external_port) == ("udp", Address(CLIENT.host, 5000), 6000)
    gateway.expire(3800.0)
    assert gateway.mappings == []
    ask(gateway, MAP_UDP, 4000.0)
    # 3.4: the second deletion "MUST return the same response packet as the first".
    for _ in range(2):
        assert ask(gateway, DELETE_UDP, 4001.0) == bytes.fromhex("0081 0000 00000fa1 1388 0000 00000000")
        assert gateway.mappings == []
    assert gateway.violations == []


def test_a_port_that_is_taken_becomes_the_next_one() -> None:
    gateway = FakeGateway()
    ask(gateway, MAP_UDP)
    assert ask(gateway, MAP_UDP, source=Address("192.168.1.3", 1))[8:12] == bytes.fromhex("1388 1771")


def test_natpmp_errors_say_which_request_failed() -> None:
    """RFC 6886, 3.5: "The Internal Port MUST be set to the client's requested Internal Port"."""
    gateway = FakeGateway()
    gateway.faults.natpmp.results = [2, 0]
    gateway.faults.natpmp.result = 4
    assert ask(gateway, MAP_UDP) == bytes.fromhex("0081 0002 00000064 1388 0000 00000000")
    assert ask(gateway, MAP_UDP)[2:4] == b"\x00\x00"
    assert ask(gateway, MAP_UDP)[2:4] == b"\x00\x04"
    gateway.faults.natpmp.is_error_short = True
    assert ask(gateway, MAP_UDP) == bytes.fromhex("0081 0004 00000064")


@pytest.mark.parametrize("echoes", [False, True])
def test_a_natpmp_only_gateway_answers_pcp_with_version_0(echoes: bool) -> None:
    """RFC 6886, 3.5 has opcode 0 in its picture; miniupnpd's has the request's, as an answer's."""
    options = Options(protocols=frozenset({"nat-pmp"}), echoes_opcode=echoes)
    expected = bytes([0, 0x81 if echoes else 0, 0, 1, 0, 0, 0, 100])
    assert ask(FakeGateway(options), pcp_map()) == expected


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x00", "nat-pmp: a datagram of 1 bytes"),
        (b"\x00\x80", "nat-pmp: an answer (opcode 128) was sent to the gateway"),
        (b"\x00\x00\x00", "nat-pmp: a question for the external address has 3 bytes, and not 2"),
        (b"\x00\x03", "nat-pmp: opcode 3, which is none"),
        (MAP_UDP[:-1], "nat-pmp: a request for a mapping has 11 bytes, and not 12"),
        (MAP_UDP[:2] + b"\x00\x01" + MAP_UDP[4:], "nat-pmp: reserved bits are 0x0001"),
        (DELETE_UDP[:6] + b"\x17\x70" + DELETE_UDP[8:], "nat-pmp: a deletion suggests port 6000"),
        (bytes([0, 1]) + bytes(10), "nat-pmp: all mappings of the host are deleted"),
        (pcp_map()[:23], "pcp: a request of 23 bytes"),
        (pcp_map() + b"\x00", "pcp: a request has 61 bytes"),
        (pcp_map()[:56], "pcp: a MAP request has 56 bytes, and not 60"),
        (pcp_map(client=V4 + bytes([192, 168, 1, 9])), "pcp: client's IP address is"),
        (pcp_map(nonce=bytes(12)), "pcp: a nonce of zeros"),
        (pcp_map(protocol=132), "pcp: protocol 132"),
        (pcp_map(inner=0), "pcp: all ports of the host are asked for"),
        (pcp_map(outer_host=bytes(16)), "pcp: the suggested address :: is of another family"),
        (pcp_map(0, outer=6000), "pcp: a deletion suggests an external address"),
        (pcp_map(options=bytes.fromhex("02000000")), "pcp: PREFER_FAILURE twice, in a deletion, or without"),
        (pcp_map(options=bytes.fromhex("01000010") + OURS), "pcp: option 1, which we have no use for"),
        (pcp_map(options=bytes.fromhex("01000020") + OURS), "pcp: option 1 says it has 32 bytes"),
        (b"\x02\x02" + pcp_map()[2:], "pcp: opcode 2, which we have no use for"),
        (b"\x02\x81" + pcp_map()[2:], "pcp: an answer (R bit, opcode 1) was sent to the server"),
        (b"\x01" + pcp_map()[1:], "pcp: version 1, which is none"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x01" + OURS, "pcp: an ANNOUNCE has lifetime 1"),
        (ANNOUNCE + bytes(4), "pcp: an ANNOUNCE has 28 bytes, and not 24"),
    ],
)
def test_what_a_client_must_not_send_is_a_violation(data: bytes, sentence: str) -> None:
    gateway = FakeGateway()
    gateway.answer_udp(data, CLIENT, 100.0)
    assert len(gateway.violations) == 1
    assert gateway.violations[0].startswith(sentence)


# --- PCP -------------------------------------------------------------------------------------------------------------


def test_pcp_answers_announce() -> None:
    """RFC 6887, 14.1.2."""
    gateway = FakeGateway()
    assert ask(gateway, ANNOUNCE) == bytes.fromhex("02800000 00000000 00000064") + bytes(12)
    assert gateway.violations == []


def test_pcp_maps_and_deletes() -> None:
    gateway = FakeGateway()
    expected = bytes.fromhex("02810000 00000e10 00000064") + bytes(12) + NONCE
    expected += bytes.fromhex("11000000 1388 1770") + V4 + EXTERNAL
    assert ask(gateway, pcp_map(outer=6000)) == expected
    deleted = bytes.fromhex("02810000 00000000 00000065") + bytes(12) + NONCE
    deleted += bytes.fromhex("11000000 1388 0000") + V4 + bytes(4)
    assert ask(gateway, pcp_map(0), 101.0) == deleted
    assert ask(gateway, pcp_map(0), 101.0) == deleted
    assert gateway.mappings == []
    assert gateway.violations == []


def test_pcp_opens_a_pinhole_over_ipv6() -> None:
    """RFC 6887, 11.1: of a firewall, the external address is the internal one."""
    gateway = FakeGateway()
    answer = ask(gateway, pcp_map(client=CLIENT6.ip.packed, outer_host=bytes(16)), source=CLIENT6)
    assert answer[40:] == bytes.fromhex("1388 1388") + CLIENT6.ip.packed
    assert gateway.violations == []


def test_pcp_errors_are_copies_of_the_request() -> None:
    """RFC 6887, 8.2; 7.4: 30 s for NO_RESOURCES, 30 min for NOT_AUTHORIZED."""
    gateway = FakeGateway()
    gateway.faults.pcp.results = [8, 2]
    assert ask(gateway, pcp_map()) == bytes.fromhex("02810008 0000001e 00000064") + bytes(12) + pcp_map()[24:]
    assert ask(gateway, pcp_map())[:8] == bytes.fromhex("02810002 00000708")
    gateway.faults.pcp.result, gateway.faults.pcp.result_lifetime_s = 8, 7
    assert ask(gateway, pcp_map())[:8] == bytes.fromhex("02810008 00000007")


def test_another_nonce_is_not_authorized_for_as_long_as_the_mapping_lives() -> None:
    """RFC 6887, 11.3."""
    gateway = FakeGateway()
    ask(gateway, pcp_map())
    assert ask(gateway, pcp_map(0, nonce=NONCE[::-1]), 200.0)[:8] == bytes.fromhex("02810002 00000dac")
    assert len(gateway.mappings) == 1


def test_prefer_failure_fails_where_the_port_is_taken() -> None:
    """RFC 6887, 13.2: CANNOT_PROVIDE_EXTERNAL; in a success "all processed options are included" (7.3)."""
    gateway = FakeGateway()
    option = bytes.fromhex("02000000")
    assert ask(gateway, pcp_map(outer=6000, options=option))[60:] == option
    assert ask(gateway, pcp_map(inner=5001, outer=6000, options=option))[3] == 11


def test_a_pcp_only_gateway_answers_natpmp_with_version_2() -> None:
    """RFC 6887, A: "a PCP response that is compatible with NAT-PMP"."""
    gateway = FakeGateway(Options(protocols=frozenset({"pcp"})))
    assert ask(gateway, b"\x00\x00") == bytes.fromhex("02800001 00000708 00000064") + bytes(12)
    # What could not be parsed gets back the last 12 bytes of where the client's address would have been.
    assert ask(gateway, MAP_UDP) == bytes.fromhex("02810001 00000708 00000064") + bytes(12)


def test_a_nat_between_is_an_address_mismatch() -> None:
    gateway = FakeGateway(Options(is_behind_nat=True))
    assert ask(gateway, ANNOUNCE[:-1] + b"\x09")[3] == 12
    assert gateway.violations == []


# --- one table for all protocols -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [True, False])
def test_who_deletes_a_shared_rule_deletes_it_for_all(shares: bool) -> None:
    """As miniupnpd 2.3.1 does."""
    gateway = FakeGateway(Options(shares_rules=shares))
    ask(gateway, MAP_UDP)
    ask(gateway, pcp_map(outer=6000))
    assert len(gateway.mappings) == (1 if shares else 2)
    ask(gateway, DELETE_UDP)
    assert [each.protocols for each in gateway.mappings] == ([] if shares else [{"pcp"}])


def test_a_gateway_without_an_external_address_maps_nothing() -> None:
    """What miniupnpd says: Network Failure, NO_RESOURCES."""
    gateway = FakeGateway(Options(external_host=""))
    assert ask(gateway, b"\x00\x00") == bytes.fromhex("0080 0003 00000064 00000000")
    assert ask(gateway, MAP_UDP)[2:4] == b"\x00\x03"
    assert ask(gateway, pcp_map())[3] == 8


def test_mapping_faults_hold_for_every_protocol() -> None:
    gateway = FakeGateway()
    faults = gateway.faults.mapping
    faults.external_port, faults.external_host, faults.lifetime_s = 7000, "100.64.0.1", 60
    assert ask(gateway, MAP_UDP)[8:] == bytes.fromhex("1388 1b58 0000003c")
    assert ask(gateway, pcp_map())[4:8] == bytes.fromhex("0000003c")
    assert ask(gateway, b"\x00\x00")[8:] == bytes([100, 64, 0, 1])
    faults.is_renewed_elsewhere = True
    assert ask(gateway, MAP_UDP)[10:12] == bytes.fromhex("1b59")
    faults.has_no_effect = True
    assert ask(gateway, pcp_map(inner=5001))[3] == 0
    assert len(gateway.mappings) == 1
    faults.external_hosts = ["11.0.0.1", "11.0.0.2"]
    assert [ask(gateway, b"\x00\x00")[11] for _ in range(3)] == [1, 2, 1]


# --- time ------------------------------------------------------------------------------------------------------------


def test_the_epoch_restarts_jumps_wraps_and_drifts() -> None:
    gateway = FakeGateway(now=50.0)
    ask(gateway, MAP_UDP)
    assert gateway.epoch(100.0) == 50
    gateway.restart(110.0, keeps_mappings=True)
    assert (gateway.epoch(115.0), len(gateway.mappings)) == (5, 1)
    gateway.restart(120.0)
    assert gateway.mappings == []
    gateway.set_epoch(2**32 - 1, 130.0)
    assert (gateway.epoch(130.0), gateway.epoch(131.0)) == (2**32 - 1, 0)
    gateway.set_epoch(0, 140.0, rate=0.5)
    assert gateway.epoch(150.0) == 5


def test_announcements_go_to_the_group_with_the_clock_as_it_is_then() -> None:
    """RFC 6886, 3.2.1; RFC 6887, 14.1.3: 250 ms, then twice as long."""
    gateway = FakeGateway()
    sent = gateway.announce(10.9, times=3, versions=(4, 6))
    assert [(each.delay_s, str(each.destination), each.data[0]) for each in sent] == [
        (delay_s, destination, version)
        for delay_s in (0.0, 0.25, 0.75)
        for destination, version in (("224.0.0.1:5350", 2), ("[ff02::1]:5350", 2), ("224.0.0.1:5350", 0))
    ]
    assert sent[0].data == bytes.fromhex("02800000 00000000 0000000a") + bytes(12)
    assert sent[5].data == bytes.fromhex("0080 0000 0000000b") + EXTERNAL
    assert {each.source.port for each in sent} == {5351}


def test_an_update_tells_the_client_of_a_mapping() -> None:
    """RFC 6887, 14.2: "identical to the MAP or PEER responses normally returned"."""
    gateway = FakeGateway()
    ask(gateway, pcp_map(outer=6000))
    gateway.change_external_host("11.22.33.55", 100.0)
    sent = gateway.update_mapping(gateway.mappings[0], 100.0)
    assert [(each.delay_s, each.source, each.destination) for each in sent] == [
        (delay_s, SERVER, CLIENT) for delay_s in (0.0, 0.25, 0.75)
    ]
    assert sent[0].data[8:12] == bytes(4)
    assert sent[0].data[-4:] == bytes([11, 22, 33, 55])


def test_another_gateway_knows_nothing() -> None:
    gateway = FakeGateway()
    ask(gateway, pcp_map())
    gateway.replace(Options(external_host="11.22.33.99"), 100.0, epoch=9)
    assert gateway.mappings == []
    assert ask(gateway, b"\x00\x00") == bytes.fromhex("0080 0000 00000009 0b162163")


# --- faults of the network -------------------------------------------------------------------------------------------


def test_answers_are_lost_delayed_copied_and_come_from_elsewhere() -> None:
    gateway = FakeGateway()
    faults = gateway.faults.natpmp
    faults.lose = 1
    assert gateway.answer_udp(MAP_UDP, CLIENT, 1.0) == []
    assert len(gateway.mappings) == 1
    faults.delay_s, faults.delays_s, faults.copies = 0.5, [1.0], 2
    assert [reply.delay_s for reply in gateway.answer_udp(MAP_UDP, CLIENT, 1.0)] == [1.5, 1.5]
    assert [reply.delay_s for reply in gateway.answer_udp(MAP_UDP, CLIENT, 1.0)] == [0.5, 0.5]
    faults.delay_s, faults.copies, faults.reorder_s = 0.0, 1, 0.2
    delays = [gateway.answer_udp(MAP_UDP, CLIENT, 1.0)[0].delay_s for _ in range(4)]
    assert sorted(delays) == [0.0, 0.0, 0.2, 0.2]
    assert delays[0] != delays[1]
    faults.from_host, faults.from_port = "192.168.1.77", 5352
    assert gateway.answer_udp(MAP_UDP, CLIENT, 1.0)[0].source == Address("192.168.1.77", 5352)
    faults.is_silent = True
    gateway.restart(2.0)
    assert gateway.answer_udp(MAP_UDP, CLIENT, 2.0) == []
    assert gateway.mappings == []


def test_answers_are_altered() -> None:
    gateway = FakeGateway()
    pcp = gateway.faults.pcp
    good = ask(gateway, pcp_map())
    pcp.version, pcp.opcode, pcp.is_nonce_wrong, pcp.internal_port, pcp.transport = 3, 0x82, True, 9, 6
    bad = ask(gateway, pcp_map())
    assert [index for index in range(60) if good[index] != bad[index]] == [0, 1, 24, 36, 40, 41]
    pcp.length = 61
    assert ask(gateway, pcp_map()) == bad + b"\x00"
    pcp.length = 5
    assert ask(gateway, pcp_map()) == bad[:5]
    pcp.length, pcp.garbage = None, b"?"
    assert ask(gateway, pcp_map()) == b"?"


def test_a_closed_port_refuses() -> None:
    gateway = FakeGateway()
    gateway.faults.closed_ports = {5351, 5000}
    with pytest.raises(PortClosed):
        gateway.answer_udp(MAP_UDP, CLIENT, 1.0)
    with pytest.raises(PortClosed):
        gateway.answer_http("GET", "/rootDesc.xml", {}, b"", 1.0)
    with pytest.raises(PortClosed):
        FakeGateway().answer_http("GET", "/rootDesc.xml", {}, b"", 1.0, server=Address("192.168.1.1", 40000))
    with pytest.raises(PortClosed):
        FakeGateway(Options(protocols=frozenset({"pcp"}))).answer_udp(b"M-SEARCH", CLIENT, 1.0)


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x02\x01", b"\x00\x01", b"M-SEARCH * HTTP/1.1\r\n"]))
def test_no_datagram_breaks_the_gateway(data: bytes, start: bytes) -> None:
    gateway = FakeGateway()
    gateway.faults.pcp.length = 7
    for _ in range(2):
        for reply in gateway.answer_udp(start + data, CLIENT, 1.0):
            assert reply.data


def test_the_journal_is_bounded() -> None:
    gateway = FakeGateway()
    for _ in range(MAX_REQUESTS + 1):
        ask(gateway, b"\x00\x00\x00")
    assert (len(gateway.requests), len(gateway.violations)) == (MAX_REQUESTS, MAX_VIOLATIONS)
