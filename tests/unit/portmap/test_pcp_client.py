"""Does the PCP client find a gateway, map, delete, and believe only what it may? RFC 6887, 8, 9, 11, 15."""

from __future__ import annotations

from errno import EHOSTUNREACH
from itertools import pairwise
from random import Random

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import Discovered, Mapped, MappingRefused, NotFound, Unmapped
from portmap.pcp import PcpClient
from portmap.server_link import MAX_KEYS
from tests.unit.portmap.client_kit import ANNOUNCEMENTS, BASE, GATEWAY, GATEWAY_6, SERVER, Play, request, silent
from tests.unit.portmap.pcp_kit import (
    EXTERNAL,
    NAT_PMP_ONLY,
    PcpPlay,
    announcement,
    error,
    header,
    mapped,
    packed,
    success,
)

# --- discovery ---------------------------------------------------------------------------------------------------


def test_an_announce_is_answered() -> None:
    play = PcpPlay()
    play.client.discover(play.now)
    play.client.discover(play.now)
    play.run(10)
    (event,) = play.take()
    assert isinstance(event, Discovered)
    assert (event.protocol, event.external_host) == ("pcp", None)
    assert event.rtt_s == pytest.approx(0.02)
    assert play.sent == [(0, bytes.fromhex("0200000000000000") + packed(BASE.host))]


def test_a_silent_gateway_is_asked_twice_within_three_quarters_of_a_second() -> None:
    """DEVIATION from RFC 6887, 8.1.1, whose first wait is 3 s: nobody may be there."""
    play = PcpPlay(silent)
    play.client.discover(play.now)
    play.run(10)
    assert play.times == [0, 0.25]
    assert play.events == [(0.75, NotFound(protocol="pcp", reason="no answer within 0.75 s"))]
    assert play.client.poll_timeout() is None


def test_a_closed_port_ends_discovery_at_once() -> None:
    play = PcpPlay(silent)
    play.client.discover(play.now)
    play.refuse(EHOSTUNREACH)
    assert play.take() == []
    play.refuse()
    assert play.only(NotFound).reason == "its port 5351 is closed"


def test_an_icmp_error_of_another_socket_or_port_ends_nothing() -> None:
    play = PcpPlay(silent)
    play.client.discover(play.now)
    for base, destination in ((BASE, SERVER._replace(port=1900)), (BASE._replace(port=1), SERVER)):
        play.client.handle_error(base, destination, 111, play.now)
    assert play.take() == []


def test_a_nat_pmp_gateway_is_not_found() -> None:
    """9: "If the version number in the UNSUPP_VERSION response is zero then that means this is a NAT-PMP server"."""
    play = PcpPlay(lambda data: (NAT_PMP_ONLY,))
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(NotFound).reason == "it speaks NAT-PMP only"


def test_a_server_of_the_future_is_not_found() -> None:
    play = PcpPlay(lambda data: (b"\x03" + header(0, 1)[1:],))
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(NotFound).reason == "it speaks version 3 of PCP only"


def test_a_server_that_refuses_its_own_version_is_not_taken_for_a_silent_one() -> None:
    """9: "If using version 2 fails, … the client SHOULD set a timer to retry its request in 30 minutes or the returned
    Lifetime value, whichever is smaller"."""
    play = PcpPlay()
    play.answer = lambda data: (b"\x02" + bytes([0x80 | data[1]]) + b"\0\x01\0\0\x02\x58" + bytes(4) + data[12:],)
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(NotFound).reason == "it refuses version 2 of PCP, which it speaks"
    play.client.map(1, request(), play.now)
    play.run(600)
    event = play.only(MappingRefused)
    reason = "1 UNSUPP_VERSION: it refuses version 2 of PCP, which it speaks"
    assert (event.code, event.reason) == (1, reason)
    assert event.retry_s == pytest.approx(600)
    assert play.times == [0, 0.1]


def test_an_address_mismatch_is_told_in_words() -> None:
    """8.3: "it indicates the presence of a NAT between the PCP client and PCP server"."""
    play = PcpPlay(lambda data: (error(data, 12, 1800),))
    play.client.discover(play.now)
    play.run(0.1)
    assert play.only(NotFound).reason == "12 ADDRESS_MISMATCH: there is another NAT between us and the gateway"


@pytest.mark.parametrize("result", [2, 4, 8, 77])
def test_whoever_refuses_an_announce_speaks_pcp(result: int) -> None:
    play = PcpPlay(lambda data: (error(data, result),))
    play.client.discover(play.now)
    play.run(0.1)
    play.only(Discovered)


def test_a_late_answer_to_discovery_is_only_an_announcement() -> None:
    play = PcpPlay(silent)
    play.client.discover(play.now)
    play.run(1)
    play.take()
    play.receive(announcement(100))
    play.receive(announcement(100, result=2))
    assert play.take() == []
    assert play.dropped == ["nothing was asked"]


# --- mapping -----------------------------------------------------------------------------------------------------


def test_a_mapping_is_made_with_a_nonce_and_no_preference() -> None:
    play = PcpPlay()
    event = mapped(play)
    assert event.external == TransportAddress(*EXTERNAL)
    assert (event.key, event.lifetime_s) == (1, 3600)
    assert event.rtt_s == pytest.approx(0.02)
    ((_, data),) = play.sent
    nonce = data[24:36]
    assert nonce != bytes(12)
    plain = "02010000" + "00000e10" + packed(BASE.host).hex() + nonce.hex() + "11000000" + "13880000"
    assert data.hex() == plain + packed("0.0.0.0").hex()


def test_a_port_that_is_wanted_is_suggested() -> None:
    play = PcpPlay()
    play.client.map(1, request(80, transport="tcp", external_port=8080), play.now)
    play.run(0.1)
    assert play.sent[0][1][36:44].hex() == "06000000" + "0050" + "1f90"


def test_a_pinhole_for_ipv6_is_made() -> None:
    play = PcpPlay(gateway=GATEWAY_6)
    play.external = ("2001:db8:1::10", 5000)
    play.client.map(1, request(host=GATEWAY_6.source), play.now)
    play.run(0.1)
    assert play.only(Mapped).external == TransportAddress("2001:db8:1::10", 5000)
    ((_, data),) = play.sent
    assert data[8:24] == packed(GATEWAY_6.source)
    assert data[44:] == packed("::")
    play.client.unmap(1, play.now)
    play.run(0.1)
    assert play.only(Unmapped).is_confirmed
    assert play.sent[1][1] == data[:4] + bytes(4) + data[8:]


def test_a_first_attempt_is_given_up_after_three_quarters_of_a_second_and_goes_on_as_the_rfc_says() -> None:
    """8.1.1: RT = (1 + RAND) * IRT, then (1 + RAND) * MIN (2 * RTprev, MRT), without an end; IRT 3 s, MRT 1024 s."""
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.run(20_000)
    ((at, event),) = play.events
    assert at == 0.75
    assert isinstance(event, MappingRefused)
    assert (event.code, event.reason) == (None, "no answer within 0.75 s")
    times = play.times
    assert times[:2] == [0, 0.25]
    assert event.retry_s == pytest.approx(times[2] - 0.75)
    waits = [times[2] - 0.75] + [later - earlier for earlier, later in pairwise(times[2:])]
    assert 2.7 <= waits[0] <= 3.3
    for previous, wait in pairwise(waits):
        base = min(2 * previous, 1024)
        assert 0.9 * base - 1e-3 <= wait <= 1.1 * base + 1e-3
    assert len({round(wait / 3, 3) for wait in waits[-4:]}) == 4
    assert len({data for _, data in play.sent}) == 1


def test_an_answer_to_a_retransmission_maps_after_all() -> None:
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.run(1)
    play.take()
    play.answer = play.obey
    play.run(5)
    assert play.only(Mapped).rtt_s is None


def test_a_late_answer_maps_after_all() -> None:
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.run(1)
    play.take()
    play.receive(success(play.sent[0][1]))
    assert play.only(Mapped).rtt_s is None


def test_a_closed_port_ends_a_first_attempt_but_not_what_the_rfc_says() -> None:
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.refuse()
    event = play.only(MappingRefused)
    assert (event.code, event.reason) == (None, "its port 5351 is closed")
    assert event.retry_s == pytest.approx(3, abs=0.3)
    play.answer = play.obey
    play.run(4)
    play.only(Mapped)


def test_a_closed_port_takes_no_mapping_away() -> None:
    """A gateway that starts again has nobody at its port for a while."""
    play = PcpPlay()
    mapped(play)
    play.refuse()
    play.run(100)
    assert play.take() == []


def test_what_a_gateway_gives_is_told_as_it_is() -> None:
    for external in (("0.0.0.0", 0), ("10.0.0.1", 5), ("203.0.113.5", 0)):
        play = PcpPlay()
        play.external = external
        assert mapped(play).external == TransportAddress(*external)


def test_an_absurd_lifetime_counts_as_a_day() -> None:
    """15: "SHOULD behave as if it received a more sane value (e.g., 24 hours), and renew the mapping accordingly"."""
    play = PcpPlay()
    play.lifetime = 2**32 - 1
    assert mapped(play).lifetime_s == 86400
    play.sent.clear()
    play.run(86400 * 5 / 8)
    assert 86400 / 2 - 1 <= play.times[0] <= 86400 * 5 / 8


def test_a_lifetime_of_nothing_is_no_mapping() -> None:
    play = PcpPlay()
    play.lifetime = 0
    play.client.map(1, request(), play.now)
    play.run(29)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (None, "a lifetime of 0 s", 30)
    play.receive(success(play.sent[0][1], play.epoch, 0))
    assert play.dropped == ["a duplicate"]
    play.lifetime = 60
    play.run(2)
    play.only(Mapped)


# --- deletion ----------------------------------------------------------------------------------------------------


def test_a_mapping_is_deleted_with_its_nonce_lifetime_0_and_nothing_suggested() -> None:
    """15.1: "the Suggested External Address and Suggested External Port fields MUST be set to zero"."""
    play = PcpPlay()
    mapped(play)
    first = play.sent[0][1]
    play.client.unmap(1, play.now)
    play.run(1)
    assert play.only(Unmapped).is_confirmed
    assert play.sent[1:] == [(0.1, first[:4] + bytes(4) + first[8:42] + bytes(2) + packed("0.0.0.0"))]
    assert play.client.poll_timeout() is None


def test_a_deletion_without_an_answer_ends_after_half_a_second() -> None:
    play = PcpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.client.unmap(1, play.now)
    play.run(10)
    assert play.times == [0.1, 0.35]
    assert play.events == [(0.6, Unmapped(protocol="pcp", key=1, is_confirmed=False))]


def test_a_refused_deletion_is_not_confirmed() -> None:
    play = PcpPlay()
    mapped(play)
    play.answer = lambda data: (error(data, 2, 1800, play.epoch),)
    play.client.unmap(1, play.now)
    play.run(0.1)
    assert not play.only(Unmapped).is_confirmed


def test_a_mapping_that_stays_while_it_carries_traffic_counts_as_deleted() -> None:
    """15: "otherwise the assigned lifetime will be the remaining idle-timeout time"."""
    play = PcpPlay()
    mapped(play)
    play.answer = lambda data: (header(1, 0, 110, play.epoch) + data[24:],)
    play.client.unmap(1, play.now)
    play.run(0.1)
    assert play.only(Unmapped).is_confirmed


def test_a_late_success_is_no_answer_to_a_deletion() -> None:
    play = PcpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.drain()
    play.receive(success(play.sent[0][1][:4] + b"\0\0\x0e\x10" + play.sent[0][1][8:], play.epoch))
    assert play.take() == []
    assert play.dropped == ["late answer to a mapping"]


def test_a_port_is_mapped_again_at_once_with_the_nonce_that_the_gateway_knows() -> None:
    play = PcpPlay()
    mapped(play)
    play.fall_silent()
    play.client.unmap(1, play.now)
    play.client.map(2, request(), play.now)
    play.run(0.3)
    deletion, first, second = (data for _, data in play.sent)
    assert deletion[4:8] == bytes(4)
    assert first == second
    assert deletion[24:42] == first[24:42]
    assert not play.only(Unmapped).is_confirmed
    play.receive(success(deletion, play.epoch))
    assert play.dropped == ["late answer to a deletion"]


def test_whoever_comes_back_to_a_gateway_has_the_nonce_that_it_knows() -> None:
    """11.3: "the mapping nonce does not match, the request MUST be rejected with a NOT_AUTHORIZED error"."""
    play = PcpPlay()
    mapped(play)
    assert isinstance(play.client, PcpClient)
    rng = Random(2)
    again = Play(PcpClient(GATEWAY, BASE, rng, rng, nonce=play.client.nonce))
    again.client.map(1, request(), again.now)
    again.drain()
    assert again.sent[0][1] == play.sent[0][1]
    other = PcpClient(GATEWAY, BASE, rng, rng)
    assert other.nonce != play.client.nonce
    with pytest.raises(ValueError, match="a nonce of 5 bytes: it has 12"):
        PcpClient(GATEWAY, BASE, rng, rng, nonce=b"short")


def test_an_unknown_key_is_not_deleted() -> None:
    play = PcpPlay()
    play.client.unmap(7, play.now)
    play.client.abandon(7)
    play.run(1)
    assert (play.sent, play.take()) == ([], [])


def test_an_abandoned_mapping_is_neither_deleted_nor_renewed_nor_answered() -> None:
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.run(0.1)
    play.client.abandon(1)
    play.receive(success(play.sent[0][1]))
    play.client.unmap(1, play.now)
    play.run(10_000)
    assert play.times == [0]
    assert play.take() == []
    assert play.dropped == ["no such mapping"]


# --- what is not believed ----------------------------------------------------------------------------------------


def changed(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ value]) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("offset", "reason"),
    [(24, "another nonce"), (35, "another nonce"), (36, "no such mapping"), (41, "no such mapping")],
)
def test_another_nonce_protocol_or_internal_port_is_not_for_us(offset: int, reason: str) -> None:
    """11.4: "comparing the internal IP address …, the protocol, the internal port, and the mapping nonce"."""
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.drain()
    play.receive(changed(success(play.sent[0][1]), offset, 1))
    assert play.take() == []
    assert play.dropped == [reason]
    assert play.client.counters == {f"dropped: {reason}": 1}


@pytest.mark.parametrize(
    ("base", "source", "reason"),
    [
        (BASE, TransportAddress("192.168.1.2", 5351), "not from the gateway"),
        (BASE, TransportAddress("192.168.1.1", 5352), "not from the gateway"),
        (BASE._replace(port=41000), SERVER, "another socket"),
        (ANNOUNCEMENTS, TransportAddress("192.168.1.2", 5351), "not from the gateway"),
        (ANNOUNCEMENTS, SERVER, "not an announcement"),
    ],
)
def test_answers_from_elsewhere_or_to_elsewhere_are_dropped(
    base: TransportAddress, source: TransportAddress, reason: str
) -> None:
    """8.3: "verifies that the source IP address and port belong to the PCP server"."""
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    play.drain()
    play.receive(success(play.sent[0][1]), base=base, source=source)
    assert play.take() == []
    assert play.dropped == [reason]


def test_a_duplicate_is_told_once() -> None:
    play = PcpPlay(lambda data: (success(data), success(data)))
    play.client.map(1, request(), play.now)
    play.run(1)
    play.only(Mapped)
    assert play.dropped == ["a duplicate"]


def test_a_reflected_request_is_no_answer() -> None:
    play = PcpPlay(lambda data: (data,))
    play.client.map(1, request(), play.now)
    play.run(0.1)
    assert play.take() == []
    assert play.dropped == ["R bit missing"]


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_key_a_port_and_a_host_are_checked() -> None:
    play = PcpPlay(silent)
    play.client.map(1, request(), play.now)
    with pytest.raises(ValueError, match="key 1 is in use"):
        play.client.map(1, request(5001), play.now)
    with pytest.raises(ValueError, match="is mapped already"):
        play.client.map(2, request(), play.now)
    with pytest.raises(ValueError, match=r"can only be for 192\.168\.1\.10"):
        play.client.map(2, request(host="192.168.1.11"), play.now)
    with pytest.raises(ValueError, match="ports are 1 to 65535"):
        play.client.map(2, request(0), play.now)
    with pytest.raises(ValueError, match="a lifetime of 0 s"):
        play.client.map(2, request(5001, lifetime_s=0), play.now)
    play.client.map(2, request(transport="tcp"), play.now)


def test_there_are_1024_mappings_at_most_those_that_are_being_deleted_included() -> None:
    play = PcpPlay()
    for key in range(MAX_KEYS):
        play.client.map(key, request(1024 + key), play.now)
    with pytest.raises(ValueError, match="there are 1024 mappings"):
        play.client.map(5000, request(5000), play.now)
    play.run(1)
    assert len(play.take()) == MAX_KEYS
    play.fall_silent()
    play.client.unmap(0, play.now)
    with pytest.raises(ValueError, match="there are 1024 mappings"):
        play.client.map(5000, request(5000), play.now)
    play.run(1)
    play.client.map(5000, request(5000), play.now)
