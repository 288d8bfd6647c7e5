"""Does the NAT-PMP client find a gateway, map, delete, and believe only what it may? RFC 6886, 3.1 to 3.5."""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import Discovered, Mapped, MappingLost, MappingRefused, NotFound, Unmapped
from portmap.natpmp import NatPmpClient
from portmap.server_link import MAX_KEYS
from portmap.values import MapRequest
from tests.unit.portmap.client_kit import ANNOUNCEMENTS, BASE, BASE_6, GATEWAY, GATEWAY_6, SERVER, request, silent
from tests.unit.portmap.natpmp_kit import EXTERNAL_HOST, NatPmpPlay, external, mapping

PCP_ONLY = bytes.fromhex("02800001" + "00000708" + "00000064" + "00" * 12)


def mapped(play: NatPmpPlay, key: int = 1, port: int = 5000) -> Mapped:
    """Make one."""
    play.client.map(key, request(port), play.now)
    play.run(0.1)
    return play.only(Mapped)


# --- discovery ---------------------------------------------------------------------------------------------------


def test_the_external_address_is_asked_for_and_told() -> None:
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.client.discover(play.now)
    play.run(10)
    event = play.only(Discovered)
    assert (event.protocol, event.external_host) == ("nat-pmp", EXTERNAL_HOST)
    assert event.rtt_s == pytest.approx(0.02)
    assert play.sent == [(0, b"\0\0")]


def test_a_silent_gateway_is_asked_twice_within_three_quarters_of_a_second() -> None:
    play = NatPmpPlay(silent)
    play.client.discover(play.now)
    play.run(200)
    assert play.times == [0, 0.25]
    assert play.events == [(0.75, NotFound(protocol="nat-pmp", reason="no answer within 0.75 s"))]
    assert play.client.poll_timeout() is None


def test_a_closed_port_ends_discovery_at_once() -> None:
    """3.1: "conclude immediately that the gateway does not support NAT-PMP"."""
    play = NatPmpPlay(silent)
    play.client.discover(play.now)
    play.refuse()
    assert play.only(NotFound).reason == "its port 5351 is closed"
    play.run(200)
    assert play.times == [0]


@pytest.mark.parametrize(("version", "reason"), [(2, "it speaks PCP only"), (3, "it speaks version 3 only")])
def test_a_pcp_gateway_is_not_found(version: int, reason: str) -> None:
    play = NatPmpPlay(lambda data: (bytes([version]) + PCP_ONLY[1:],))
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(NotFound).reason == reason


@pytest.mark.parametrize("data", ["0080000300000064", "008000020000006400000000", "00800005"])
def test_whoever_has_no_address_speaks_nat_pmp(data: str) -> None:
    play = NatPmpPlay(lambda request: (bytes.fromhex(data),))
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(Discovered).external_host is None


@pytest.mark.parametrize(
    ("source", "is_asked"),
    [("10.1.2.3", True), ("172.31.0.1", True), ("100.64.0.7", True), ("169.254.1.1", True), ("9.9.9.9", False)],
)
def test_only_from_a_global_address_nothing_is_asked(source: str, is_asked: bool) -> None:
    """DEVIATION from RFC 6886, 3, which knows the ranges of RFC 1918 only: "This protocol SHOULD only be used when the
    client determines that its primary IPv4 address is in one of the private IPv4 address ranges"."""
    rng = Random(1)
    client = NatPmpClient(replace(GATEWAY, source=source), BASE._replace(host=source), rng, rng)
    client.discover(1000.0)
    assert (client.poll_transmit() is not None) is is_asked
    event = client.poll_event()
    if not is_asked:
        assert event == NotFound(protocol="nat-pmp", reason="our address is a global one, which needs no NAT-PMP")
    assert (client.poll_timeout() is not None) is is_asked


def test_an_hour_is_asked_for_where_nobody_says_otherwise() -> None:
    """DEVIATION from 3.3: "The RECOMMENDED Port Mapping Lifetime is 7200 seconds (two hours)"."""
    play = NatPmpPlay()
    play.client.map(1, MapRequest(transport="udp", internal=BASE, external_port=0), play.now)
    play.run(1)
    assert int.from_bytes(play.sent[-1][1][8:], "big") == 3600


def test_a_gateway_of_ipv6_is_refused() -> None:
    with pytest.raises(ValueError, match="NAT-PMP is for IPv4"):
        NatPmpClient(GATEWAY_6, BASE_6, Random(1), Random(1))


# --- mapping -----------------------------------------------------------------------------------------------------


def test_a_mapping_is_made_after_the_external_address_is_known() -> None:
    play = NatPmpPlay()
    event = mapped(play)
    assert event == Mapped(
        protocol="nat-pmp",
        key=1,
        external=TransportAddress(EXTERNAL_HOST, 25000),
        lifetime_s=7200,
        rtt_s=pytest.approx(0.02),  # type: ignore[arg-type]
    )
    assert play.asked == ["external", "udp 5000"]
    assert play.sent[1][1].hex() == "00010000" + "1388" + "0000" + "00000e10"


def test_an_external_address_that_is_known_is_not_asked_for_again() -> None:
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.run(1)
    play.take()
    play.client.map(1, request(80, transport="tcp", external_port=8080), play.now)
    play.run(1)
    assert play.only(Mapped).external == TransportAddress(EXTERNAL_HOST, 8080)
    assert play.asked == ["external", "tcp 80"]
    assert play.sent[1][1][4:8].hex() == "00501f90"


def test_requests_are_sent_one_at_a_time() -> None:
    """3.1: "Once the NAT gateway responds to one request the client machine may issue the next"."""
    play = NatPmpPlay()
    for key in range(5):
        play.client.map(key, request(5000 + key), play.now)
    play.run(1)
    assert play.asked == ["external"] + [f"udp {5000 + key}" for key in range(5)]
    assert play.times == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert [event.key for event in play.take() if isinstance(event, Mapped)] == [0, 1, 2, 3, 4]


def test_silence_is_told_after_three_quarters_of_a_second_and_nine_requests_are_sent() -> None:
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.run(10)
    play.take()
    play.fall_silent()
    play.client.map(1, request(), play.now)
    play.run(500)
    assert play.times == [10, 10.25, 10.75, 11.75, 13.75, 17.75, 25.75, 41.75, 73.75]
    (first, second) = play.events
    assert first == (
        10.75,
        MappingRefused(protocol="nat-pmp", key=1, code=None, reason="no answer within 0.75 s", retry_s=0.0),
    )
    assert second == (
        137.75,
        MappingRefused(protocol="nat-pmp", key=1, code=None, reason="no answer to 9 requests", retry_s=1024.0),
    )
    play.take()
    play.answer = play.obey
    play.run(137.75 + 1024 + 1 - 510)
    play.only(Mapped)


def test_all_that_wait_for_a_silent_gateway_are_told_within_three_quarters_of_a_second() -> None:
    play = NatPmpPlay(silent)
    for key in range(20):
        play.client.map(key, request(5000 + key), play.now)
    play.run(0.75)
    assert len(play.take()) == 20
    assert play.asked == ["external", "external", "udp 5000"]


def test_a_gateway_that_takes_its_time_is_not_silent() -> None:
    """3.1: "a slow NAT gateway that takes perhaps half a second to respond"."""
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.run(1)
    play.take()
    play.fall_silent()
    for key in range(5):
        play.client.map(key, request(5000 + key), play.now)
    for key in range(5):
        play.run(0.5)
        play.receive(mapping(struct.pack("!BBHH", 0, 1, 0, 5000 + key), play.epoch, 6000, 7200))
    events = play.take()
    assert [event.key for event in events if isinstance(event, Mapped)] == [0, 1, 2, 3, 4]
    assert len(events) == 5
    assert play.times == [1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25]


def test_a_closed_port_ends_a_first_attempt() -> None:
    play = NatPmpPlay(silent)
    play.client.map(1, request(), play.now)
    play.refuse()
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (None, "its port 5351 is closed", 1024)
    play.answer = play.obey
    play.client.refresh(play.now)
    play.run(1)
    play.only(Mapped)


def test_a_closed_port_takes_no_mapping_away() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.refuse()
    play.run(100)
    assert play.take() == []


def test_an_external_address_that_comes_late_is_told_then() -> None:
    play = NatPmpPlay()
    play.answer = lambda data: () if data[1] == 0 else play.obey(data)
    play.client.map(1, request(), play.now)
    play.run(1)
    silence, event = play.take()
    assert isinstance(silence, MappingRefused)
    assert isinstance(event, Mapped)
    assert event.external == TransportAddress("0.0.0.0", 25000)
    play.answer = play.obey
    play.run(2)
    event = play.only(Mapped)
    assert (event.external, event.rtt_s) == (TransportAddress(EXTERNAL_HOST, 25000), None)
    assert 7197 <= event.lifetime_s <= 7199


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "127.0.0.1"])
def test_what_a_gateway_gives_is_told_as_it_is(host: str) -> None:
    play = NatPmpPlay()
    play.host = host
    play.answer = lambda data: play.obey(data) if data[1] == 0 else (mapping(data, play.epoch, 0, 7200),)
    assert mapped(play).external == TransportAddress(host, 0)


def test_an_absurd_lifetime_counts_as_a_day() -> None:
    play = NatPmpPlay()
    play.lifetime = 2**32 - 1
    assert mapped(play).lifetime_s == 86400


def test_a_lifetime_of_nothing_is_no_mapping() -> None:
    play = NatPmpPlay()
    play.lifetime = 0
    play.client.map(1, request(), play.now)
    play.run(29)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (None, "a lifetime of 0 s", 30)
    play.lifetime = 60
    play.run(2)
    play.only(Mapped)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("result", "reason"), [(3, "3 Network Failure"), (4, "4 Out of resources")])
def test_what_passes_is_asked_again_after_half_a_minute(result: int, reason: str) -> None:
    """3.5: "NAT box itself has not obtained a DHCP lease"; "cannot create any more mappings at this time"."""
    play = NatPmpPlay()
    play.refuse_mappings(result)
    play.client.map(1, request(), play.now)
    play.run(20)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (result, reason, 30)
    play.client.refresh(play.now)
    play.run(5)
    assert play.asked == ["external", "udp 5000"]
    play.run(10)
    assert play.only(MappingRefused).code == result
    play.answer = play.obey
    play.run(30)
    play.only(Mapped)


@pytest.mark.parametrize(
    ("result", "reason"), [(2, "2 Not Authorized/Refused"), (5, "5 Unsupported opcode"), (77, "77 (unknown)")]
)
def test_other_errors_are_fatal_until_something_changes(result: int, reason: str) -> None:
    """3.5: "Undefined results codes MUST be treated as fatal errors of the request"."""
    play = NatPmpPlay()
    play.refuse_mappings(result)
    play.client.map(1, request(), play.now)
    play.run(100_000)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (result, reason, None)
    assert play.asked == ["external", "udp 5000"]
    play.answer = play.obey
    play.client.refresh(play.now)
    play.run(1)
    play.only(Mapped)


def test_an_error_of_8_bytes_is_about_what_is_outstanding() -> None:
    play = NatPmpPlay()
    play.answer = lambda data: play.obey(data) if data[1] == 0 else (bytes([0, 128 | data[1], 0, 2]) + bytes(4),)
    play.epoch_0 = play.now
    play.client.map(1, request(), play.now)
    play.client.map(2, request(80, transport="tcp"), play.now)
    play.run(0.1)
    refused = [event for event in play.take() if isinstance(event, MappingRefused)]
    assert [(event.key, event.code) for event in refused] == [(1, 2), (2, 2)]


def test_an_unsupported_opcode_comes_back_as_the_whole_request() -> None:
    play = NatPmpPlay()
    play.answer = lambda data: play.obey(data) if data[1] == 0 else (bytes([0, 128 | data[1], 0, 5]) + data[4:],)
    play.client.map(1, request(), play.now)
    play.run(0.1)
    assert play.only(MappingRefused).reason == "5 Unsupported opcode"


def test_a_fatal_error_when_a_mapping_is_renewed_loses_it() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.refuse_mappings(2)
    play.run(3600)
    assert play.only(MappingLost).reason == "2 Not Authorized/Refused"
    play.answer = play.obey
    play.run(100)
    assert play.take() == []
    play.client.refresh(play.now)
    play.run(1)
    play.only(Mapped)


@pytest.mark.parametrize("result", [3, 4])
def test_an_error_that_passes_leaves_a_mapping_that_was_to_be_renewed(result: int) -> None:
    """3.4: "at the time its lifetime expires, the mapping MUST be automatically deleted"; 3.3: "begin trying to renew
    the mapping halfway to expiry time, like DHCP"."""
    play = NatPmpPlay()
    play.lifetime = 600
    mapped(play)
    play.sent.clear()
    play.refuse_mappings(result)
    play.run(320)
    play.client.refresh(play.now)
    play.run(270)
    assert play.take() == []
    assert [at for (at, _), asked in zip(play.sent, play.asked, strict=True) if asked != "external"] == pytest.approx(
        [300.08, 450.11, 525.14, 585.17], abs=0.1
    )
    play.run(20)
    assert play.only(MappingLost).reason == "not renewed in its lifetime"


def test_an_error_that_passes_after_a_restart_loses_what_was_there() -> None:
    """3.6: the gateway "has undergone a reboot or other loss of port mapping state"."""
    play = NatPmpPlay()
    mapped(play)
    play.run(100)
    play.refuse_mappings(3)
    play.epoch_0 = play.now
    play.receive(external(play.epoch, "0.0.0.0", result=3), base=ANNOUNCEMENTS)
    play.run(5.1)
    events = play.take()
    assert [type(event).__name__ for event in events] == ["GatewayRestarted", "MappingLost"]
    play.answer = play.obey
    play.run(31)
    play.only(Mapped)
    play.refuse_mappings(3)
    play.run(3600)
    assert play.take() == []


def test_a_pcp_gateway_maps_nothing() -> None:
    play = NatPmpPlay(lambda data: (PCP_ONLY,))
    play.client.map(1, request(), play.now)
    play.run(1)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (1, "1 Unsupported Version: it speaks PCP only", None)
    play.receive(PCP_ONLY)
    assert play.dropped == ["nothing was asked"]


# --- deletion ----------------------------------------------------------------------------------------------------


def test_a_mapping_is_deleted_with_its_internal_port_and_two_zeros() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.client.unmap(1, play.now)
    play.run(1)
    assert play.only(Unmapped).is_confirmed
    assert play.sent[-1][1].hex() == "00010000" + "1388" + "0000" + "00000000"
    assert play.client.poll_timeout() is None


def test_a_deletion_without_an_answer_ends_after_half_a_second() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.client.unmap(1, play.now)
    play.run(10)
    assert play.times == [0.1, 0.35]
    assert play.events == [(0.6, Unmapped(protocol="nat-pmp", key=1, is_confirmed=False))]


def test_each_of_many_deletions_leaves_once_and_all_end_after_half_a_second() -> None:
    """3.1: "SHOULD always send at least one deletion request whenever possible"."""
    play = NatPmpPlay()
    for key in range(4):
        mapped(play, key, 5000 + key)
    play.fall_silent()
    started = play.now
    for key in range(4):
        play.client.unmap(key, play.now)
    play.run(10)
    assert [type(event) for _, event in play.events] == [Unmapped] * 4
    assert all(at <= started - 1000 + 0.5 + 1e-6 for at, _ in play.events)
    assert set(play.asked) == {f"delete udp {5000 + key}" for key in range(4)}


def test_a_refused_deletion_is_not_confirmed() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.refuse_mappings(2)
    play.client.unmap(1, play.now)
    play.run(0.1)
    assert not play.only(Unmapped).is_confirmed


def test_a_late_success_is_no_answer_to_a_deletion() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.drain()
    play.receive(mapping(play.sent[0][1], play.epoch, 25000, 7200))
    assert play.take() == []
    assert play.dropped == ["late answer to a mapping"]


def test_a_port_is_mapped_again_at_once_and_not_deleted_after_that() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.drain()
    play.client.map(2, request(), play.now)
    play.run(0.7)
    assert not play.only(Unmapped).is_confirmed
    assert play.asked == ["delete udp 5000", "udp 5000", "udp 5000"]
    play.receive(mapping(play.sent[1][1], play.epoch, 0, 0))
    assert play.dropped == ["late answer to a deletion"]
    play.receive(mapping(play.sent[1][1], play.epoch, 25000, 7200))
    play.only(Mapped)


def test_an_abandoned_mapping_is_neither_deleted_nor_renewed_nor_answered() -> None:
    play = NatPmpPlay()
    mapped(play)
    play.client.map(2, request(5001), play.now)
    play.drain()
    play.client.abandon(1)
    play.client.abandon(2)
    play.client.unmap(1, play.now)
    play.run(10_000)
    assert play.asked == ["external", "udp 5000", "udp 5001"]
    assert play.take() == []
    assert play.dropped == ["no such mapping"]


def test_what_waited_for_an_abandoned_one_has_its_turn_after_it() -> None:
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.run(1)
    play.fall_silent()
    play.client.map(1, request(5000), play.now)
    play.client.map(2, request(5001), play.now)
    play.run(0.1)
    play.client.abandon(1)
    play.run(0.2)
    assert play.times == [1.0, 1.25]
    assert play.asked == ["udp 5000", "udp 5001"]


# --- what is not believed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("00820000" + "000001f4" + "1388" + "61a8" + "00001c20", "no such mapping"),
        ("00810000" + "000001f4" + "1389" + "61a8" + "00001c20", "no such mapping"),
        ("00810003" + "000001f4" + "1389" + "0000" + "00000000", "no such mapping"),
        ("00820003" + "000001f4", "nothing was asked"),
        ("00800000" + "000001f4" + "cb007105", "nothing was asked"),
        ("00800003000001f4", "nothing was asked"),
        ("00010000" + "1388" + "0000" + "00000e10", "a request"),
        ("00810000" + "00000001" + "1388" + "61a8", "a length that no answer has"),
        ("02810000" + "00" * 56, "another version"),
        ("0081000100000000", "an answer to PCP"),
        ("02810001" + "00" * 16 + "c0a8010a" + "00" * 36, "an answer to PCP"),
    ],
)
def test_an_answer_that_does_not_fit_is_dropped(data: str, reason: str) -> None:
    play = NatPmpPlay()
    mapped(play, 7, 6000)
    play.fall_silent()
    play.client.map(1, request(), play.now)
    play.drain()
    play.receive(bytes.fromhex(data))
    assert play.take() == []
    assert play.dropped == [reason]
    assert play.client.counters == {f"dropped: {reason}": 1}


@pytest.mark.parametrize(
    ("base", "source", "reason"),
    [
        (BASE, TransportAddress("192.168.1.2", 5351), "not from the gateway"),
        (BASE, TransportAddress("192.168.1.1", 5352), "not from the gateway"),
        (BASE._replace(port=41000), SERVER, "another socket"),
        (ANNOUNCEMENTS, SERVER, "not an announcement"),
    ],
)
def test_answers_from_elsewhere_or_to_elsewhere_are_dropped(
    base: TransportAddress, source: TransportAddress, reason: str
) -> None:
    """3.2: "the client MUST check the source IP address, and silently discard the packet"."""
    play = NatPmpPlay()
    play.client.discover(play.now)
    play.run(1)
    play.take()
    play.fall_silent()
    play.client.map(1, request(), play.now)
    play.drain()
    play.receive(mapping(play.sent[0][1], play.epoch, 25000, 7200), base=base, source=source)
    assert play.take() == []
    assert play.dropped == [reason]


def test_an_answer_to_what_was_not_sent_yet_is_dropped() -> None:
    play = NatPmpPlay(silent)
    play.client.map(1, request(), play.now)
    play.drain()
    assert play.asked == ["external"]
    play.receive(mapping(b"\0\1\0\0\x13\x88", play.epoch, 25000, 7200))
    assert play.take() == []
    assert play.dropped == ["nothing was asked"]


def test_a_duplicate_is_told_once() -> None:
    play = NatPmpPlay()
    play.answer = lambda data: tuple(play.obey(data)) * 2
    mapped(play)
    assert play.dropped == ["nothing was asked", "nothing was asked"]


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_key_a_port_and_a_host_are_checked() -> None:
    play = NatPmpPlay(silent)
    play.client.map(1, request(), play.now)
    with pytest.raises(ValueError, match="key 1 is in use"):
        play.client.map(1, request(5001), play.now)
    with pytest.raises(ValueError, match="is mapped already"):
        play.client.map(2, request(), play.now)
    with pytest.raises(ValueError, match=r"can only be for 192\.168\.1\.10"):
        play.client.map(2, request(host="192.168.1.11"), play.now)
    play.client.map(2, request(transport="tcp"), play.now)


def test_there_are_1024_mappings_at_most() -> None:
    play = NatPmpPlay()
    for key in range(MAX_KEYS):
        play.client.map(key, request(1024 + key), play.now)
    with pytest.raises(ValueError, match="there are 1024 mappings"):
        play.client.map(5000, request(5000), play.now)
    play.run(30)
    assert sum(isinstance(event, Mapped) for event in play.take()) == MAX_KEYS
