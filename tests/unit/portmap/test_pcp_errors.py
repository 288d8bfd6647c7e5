"""What does the PCP client do with errors: which hold, for how long, and what do they take away? RFC 6887, 7.4, 8.3, 9
and 11.4.
"""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from portmap.events import GatewayRestarted, Mapped, MappingLost, MappingRefused, NotFound, Unmapped
from portmap.server_link import MAX_KEYS
from tests.unit.portmap.client_kit import ANNOUNCEMENTS, request
from tests.unit.portmap.pcp_kit import NAT_PMP_ONLY, PcpPlay, announcement, error, mapped, success


@pytest.mark.parametrize(
    ("result", "lifetime", "retry_s", "reason"),
    [
        (2, 1800, 1800, "2 NOT_AUTHORIZED"),
        (10, 30, 30, "10 USER_EX_QUOTA"),
        # Nothing that was refused is asked for sooner than after 30 s, or later than after a day.
        (7, 0, 30, "7 NETWORK_FAILURE"),
        (77, 2**32 - 1, 86400, "77 (unknown)"),
        (12, 1800, 1800, "12 ADDRESS_MISMATCH: there is another NAT between us and the gateway"),
    ],
)
def test_an_error_holds_for_its_lifetime(result: int, lifetime: int, retry_s: float, reason: str) -> None:
    """8.3: "the PCP client SHOULD NOT resend the same request for the indicated lifetime of the error"."""
    play = PcpPlay()
    play.answer = lambda data: (error(data, result, lifetime, play.epoch),)
    play.client.map(1, request(), play.now)
    play.run(retry_s)
    assert play.only(MappingRefused) == MappingRefused(
        protocol="pcp", key=1, code=result, reason=reason, retry_s=retry_s
    )
    assert play.times == [0]
    play.client.refresh(play.now)
    play.run(0.01)
    assert play.times == [0]
    play.run(0.1)
    assert play.times == [0, retry_s + 0.02]
    assert play.only(MappingRefused).code == result


def test_an_error_holds_for_whoever_wants_the_port_after_that() -> None:
    """8.3: "the same request"; that another key asks does not make it another one."""
    play = PcpPlay()
    play.answer = lambda data: (error(data, 2, 1800, play.epoch),)
    play.client.map(1, request(), play.now)
    play.run(100)
    assert play.only(MappingRefused).retry_s == 1800
    play.client.abandon(1)
    play.answer = play.obey
    play.client.map(2, request(), play.now)
    play.client.map(3, request(transport="tcp"), play.now)
    play.run(1)
    refused, made = play.take()
    assert isinstance(refused, MappingRefused)
    assert (refused.key, refused.code, refused.reason) == (2, 2, "2 NOT_AUTHORIZED")
    assert refused.retry_s == pytest.approx(1700, abs=0.1)
    assert isinstance(made, Mapped)
    play.client.abandon(2)
    play.run(1700)
    play.take()
    play.client.map(4, request(), play.now)
    play.run(1)
    assert play.only(Mapped).key == 4


def test_only_so_many_errors_are_kept_in_mind() -> None:
    play = PcpPlay()
    play.answer = lambda data: (error(data, 2, 1800, play.epoch),)
    for key in range(MAX_KEYS + 1):
        play.client.map(key, request(1024 + key), play.now)
        play.run(0.1)
        play.client.abandon(key)
    play.take()
    play.sent.clear()
    play.client.map(5000, request(1024), play.now)
    play.client.map(5001, request(1025), play.now)
    play.drain()
    assert len(play.sent) == 1


def test_after_an_error_a_success_maps() -> None:
    play = PcpPlay()
    play.answer = lambda data: (error(data, 7, 30, play.epoch),)
    play.client.map(1, request(), play.now)
    play.run(1)
    play.take()
    play.answer = play.obey
    play.run(30)
    assert play.only(Mapped).rtt_s == pytest.approx(0.02)


def test_an_error_when_a_mapping_is_renewed_loses_it() -> None:
    play = PcpPlay()
    mapped(play, lifetime_s=120)
    play.answer = lambda data: (error(data, 2, 60, play.epoch),)
    play.client.refresh(play.now)
    play.run(10)
    assert play.only(MappingLost).reason == "2 NOT_AUTHORIZED"
    play.run(60)
    assert play.only(MappingRefused).code == 2
    play.answer = play.obey
    play.run(60)
    play.only(Mapped)


@pytest.mark.parametrize("result", [7, 8, 10])
def test_an_error_that_passes_leaves_a_mapping_that_was_to_be_renewed(result: int) -> None:
    """7.3: a request that gets an error "MUST cause no state change in the PCP server"; 11.2.1: "If no SUCCESS response
    is received, then the next renewal request should be sent 3/4 to 3/4 + 1/16 to expiration, and then another"."""
    play = PcpPlay()
    play.lifetime = 1000
    mapped(play)
    play.sent.clear()
    play.answer = lambda data: (error(data, result, 30, play.epoch), error(data, result, 30, play.epoch))
    play.run(100)
    play.client.refresh(play.now)
    play.run(899)
    assert play.take() == []
    assert set(play.dropped) == {"a duplicate"}
    refreshed_at, *times = play.times
    assert refreshed_at == 100.1
    assert 4 <= len(times) <= 6
    for at, earliest in zip(times, (500, 750, 875, 937.5), strict=False):
        assert earliest - 0.1 <= at <= earliest + (1000 - earliest) / 4 + 0.1
    assert all(later - earlier >= 30 for earlier, later in pairwise(play.times))
    play.answer = play.obey
    play.run(1)
    assert play.only(MappingLost).reason == "not renewed in its lifetime"
    play.run(30)
    play.only(Mapped)


def test_an_error_that_passes_is_waited_for_and_then_the_mapping_renewed() -> None:
    """8.3: "SHOULD NOT resend the same request for the indicated lifetime of the error"."""
    play = PcpPlay()
    mapped(play)
    play.run(1700)
    play.answer = lambda data: (error(data, 8, 1200, play.epoch),)
    play.client.refresh(play.now)
    play.run(1)
    play.answer = play.obey
    play.sent.clear()
    play.client.refresh(play.now)
    play.run(1200)
    assert play.only(Mapped).key == 1
    assert play.times[0] >= 1700.12 + 1200 - 0.1


def test_an_error_that_passes_is_waited_for_when_the_gateway_restarts_but_not_when_it_changed_its_mind() -> None:
    play = PcpPlay()
    mapped(play)
    request_data = play.sent[0][1]
    play.run(100)
    play.answer = lambda data: (error(data, 8, 300, play.epoch),)
    play.client.refresh(play.now)
    play.run(1)
    play.answer = play.obey
    play.sent.clear()
    play.epoch_0 = play.now
    play.receive(announcement(play.epoch), base=ANNOUNCEMENTS)
    play.run(200)
    assert play.take() == [GatewayRestarted(protocol="pcp")]
    assert play.sent == []
    play.receive(success(request_data, play.epoch, 3000, ("203.0.113.6", 40001)))
    play.only(Mapped)
    play.client.refresh(play.now)
    play.run(1)
    play.only(Mapped)
    # It is certain again.
    play.run(100)
    play.answer = lambda data: (error(data, 8, 300, play.epoch),)
    play.client.refresh(play.now)
    play.run(1000)
    assert play.take() == []


def test_an_error_that_outlasts_a_mapping_is_waited_for_after_it() -> None:
    play = PcpPlay()
    mapped(play)
    play.run(1700)
    play.answer = lambda data: (error(data, 7, 2400, play.epoch),)
    play.client.refresh(play.now)
    play.run(1)
    play.answer = play.obey
    play.sent.clear()
    play.run(1898)
    assert play.take() == []
    play.run(400)
    assert play.only(MappingLost).reason == "not renewed in its lifetime"
    assert play.sent == []
    play.run(200)
    play.only(Mapped)
    assert play.times[0] == pytest.approx(4100.12)


def test_an_error_that_passes_after_a_restart_loses_what_was_there() -> None:
    """8.5: "it concludes that the PCP server may have lost state"."""
    play = PcpPlay()
    mapped(play, key=1, port=5001)
    mapped(play, key=2, port=5002)
    play.run(100)
    play.epoch_0 = play.now
    play.answer = lambda data: (error(data, 7, 30, play.epoch),)
    play.receive(announcement(play.epoch), base=ANNOUNCEMENTS)
    play.run(6)
    restarted, *lost = play.take()
    assert restarted == GatewayRestarted(protocol="pcp")
    assert [(event.key, event.reason) for event in lost if isinstance(event, MappingLost)] == [
        (1, "7 NETWORK_FAILURE"),
        (2, "7 NETWORK_FAILURE"),
    ]
    play.answer = play.obey
    play.run(31)
    assert len(play.take()) == 2


def test_an_error_that_nobody_waited_for_loses_a_mapping() -> None:
    """8.3: "after a configuration change on the PCP server, later send a NOT_AUTHORIZED response"."""
    play = PcpPlay()
    mapped(play)
    play.receive(error(play.sent[0][1], 2, 1800, play.epoch))
    assert play.only(MappingLost).reason == "2 NOT_AUTHORIZED"
    play.receive(error(play.sent[0][1], 2, 1800, play.epoch))
    assert play.take() == []
    assert play.dropped == ["a duplicate"]


def test_no_resources_holds_for_all_new_mappings_and_for_no_other() -> None:
    """11.4: "SHOULD NOT send further requests for any new mappings to that PCP server"."""
    play = PcpPlay()
    mapped(play, key=1, port=5001)
    play.run(5)
    play.answer = lambda data: (error(data, 8, 60, play.epoch),)
    play.client.map(2, request(5002), play.now)
    play.run(1)
    assert play.only(MappingRefused).key == 2
    play.answer = play.obey
    play.sent.clear()
    play.client.map(3, request(5003), play.now)
    play.run(1)
    event = play.only(MappingRefused)
    assert (event.key, event.code, event.reason) == (3, 8, "8 NO_RESOURCES")
    assert event.retry_s == pytest.approx(59, abs=0.1)
    assert play.sent == []
    play.client.refresh(play.now)
    play.run(1)
    assert play.only(Mapped).key == 1
    play.run(60)
    assert sorted(event.key for event in play.take() if isinstance(event, Mapped)) == [2, 3]


def test_no_resources_ends_other_first_attempts() -> None:
    play = PcpPlay(lambda data: (error(data, 8, 60),) if data[40:42] == b"\x13\x88" else ())
    play.client.map(1, request(5000), play.now)
    play.client.map(2, request(5001), play.now)
    play.run(1)
    refused = [event for event in play.take() if isinstance(event, MappingRefused)]
    assert [(event.key, event.code) for event in refused] == [(1, 8), (2, 8)]
    assert play.times == [0, 0]


def test_no_resources_for_a_deletion_holds_for_everything() -> None:
    """11.4: "SHOULD NOT send further requests of *any kind*"."""
    play = PcpPlay()
    mapped(play, key=1, port=5001)
    mapped(play, key=2, port=5002)
    play.answer = lambda data: (error(data, 8, 60, play.epoch),)
    play.client.unmap(1, play.now)
    play.run(1)
    assert not play.only(Unmapped).is_confirmed
    play.answer = play.obey
    play.sent.clear()
    play.run(5)
    play.client.refresh(play.now)
    play.client.discover(play.now)
    play.client.unmap(2, play.now)
    play.client.map(3, request(5003), play.now)
    play.run(50)
    assert play.sent == []
    assert {type(event).__name__ for event in play.take()} == {"NotFound", "Unmapped", "MappingRefused"}
    play.run(10)
    assert play.only(Mapped).key == 3


def test_no_resources_for_a_deletion_ends_what_is_repeated() -> None:
    """11.4: "SHOULD NOT send further requests of *any kind*"; a repeated one is one as well."""
    play = PcpPlay()
    mapped(play, key=1, port=5001)
    mapped(play, key=2, port=5002)
    play.answer = lambda data: (error(data, 8, 60, play.epoch),) if data[40:42] == struct.pack("!H", 5001) else ()
    play.sent.clear()
    play.client.discover(play.now)
    play.client.unmap(2, play.now)
    play.client.unmap(1, play.now)
    play.run(50)
    assert play.times == [0.2, 0.2, 0.2]
    first, second, found = play.take()
    assert [first, second] == [
        Unmapped(protocol="pcp", key=1, is_confirmed=False),
        Unmapped(protocol="pcp", key=2, is_confirmed=False),
    ]
    assert found == NotFound(protocol="pcp", reason="8 NO_RESOURCES: it is to be left alone")
    assert play.client.poll_timeout() is None


def test_a_nat_pmp_gateway_maps_nothing_and_is_asked_again_after_half_an_hour() -> None:
    """9: "the client SHOULD set a timer to retry its request in 30 minutes"."""
    play = PcpPlay(lambda data: (NAT_PMP_ONLY,))
    play.client.map(1, request(), play.now)
    play.run(1)
    event = play.only(MappingRefused)
    assert (event.code, event.reason, event.retry_s) == (1, "1 UNSUPP_VERSION: it speaks NAT-PMP only", 1800)
    play.answer = play.obey
    play.run(1801)
    play.only(Mapped)
    play.receive(NAT_PMP_ONLY)
    assert play.take() == []
    assert play.dropped == ["nothing was asked"]


def test_a_version_that_somebody_claims_is_not_spoken_takes_no_living_mapping_away() -> None:
    """That answer has no nonce: anybody on the network can make one."""
    play = PcpPlay()
    mapped(play, lifetime_s=3600)
    play.answer = lambda data: ()
    play.run(2300)
    assert play.take() == []
    for _ in range(100):
        play.receive(NAT_PMP_ONLY)
        play.run(0.1)
    assert play.take() == []
