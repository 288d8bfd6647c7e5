"""Does the NAT-PMP client keep its mappings, whatever the gateway forgets? RFC 6886, 3.2.1, 3.3, 3.6 and 3.7."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from portmap.events import GatewayRestarted, Mapped, MappingLost
from portmap.natpmp.messages import parse_response
from portmap.server_link import BadMessage
from tests.unit.portmap.client_kit import ANNOUNCEMENTS, SERVER, request, silent
from tests.unit.portmap.natpmp_kit import EXTERNAL_HOST, NatPmpPlay, external, mapping


def playing(*ports: int, lifetime: int = 7200, seed: int = 1) -> NatPmpPlay:
    """With mappings; the key is the port."""
    play = NatPmpPlay(seed=seed)
    play.lifetime = lifetime
    for port in ports:
        play.client.map(port, request(port), play.now)
    play.run(1)
    assert len(play.take()) == len(ports)
    play.sent.clear()
    return play


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def restart(play: NatPmpPlay) -> None:
    play.epoch_0 = play.now


# --- renewal -----------------------------------------------------------------------------------------------------


def test_a_mapping_is_renewed_halfway_with_the_port_that_there_was() -> None:
    """3.3: "renew the mapping halfway to expiry time"; "set the Suggested External Port to what the NAT gateway
    previously mapped"."""
    play = playing(5000)
    play.run(3600)
    assert play.asked == ["external", "udp 5000"]
    assert play.times[0] == pytest.approx(3600.04)
    assert play.sent[1][1].hex() == "00010000" + "1388" + f"{25000:04x}" + "00000e10"
    event = play.only(Mapped)
    assert (event.external, event.lifetime_s) == (TransportAddress(EXTERNAL_HOST, 25000), 7200)
    assert event.rtt_s == pytest.approx(0.02)


def test_a_renewal_shows_another_external_address() -> None:
    play = playing(5000, 5001)
    play.host = "203.0.113.77"
    play.run(3600)
    events = play.take()
    assert kinds(events) == ["Mapped"] * 4
    assert {event.external.host for event in events if isinstance(event, Mapped)} == {"203.0.113.77"}
    assert [event.lifetime_s for event in events if isinstance(event, Mapped)] == [3600, 3600, 7200, 7200]


def test_a_mapping_that_is_not_renewed_is_lost_and_made_again() -> None:
    play = playing(5000, lifetime=120)
    play.fall_silent()
    play.run(125)
    ((at, event),) = play.events
    assert at == pytest.approx(120.04)
    assert event == MappingLost(protocol="nat-pmp", key=5000, reason="not renewed in its lifetime")
    play.take()
    asked = [at for (at, _), asked in zip(play.sent, play.asked, strict=True) if asked == "udp 5000" and at > 120]
    assert asked[0] <= 120.54
    assert asked[1:] == pytest.approx([asked[0] + after for after in (0.25, 0.75, 1.75, 3.75)], abs=0.5)
    play.answer = play.obey
    play.run(3)
    assert kinds(play.take()) == ["Mapped"]


def test_a_renewal_in_vain_is_repeated_after_half_of_what_remains() -> None:
    play = playing(5000)
    play.fall_silent()
    play.run(7100)
    asked = [at for (at, _), asked in zip(play.sent, play.asked, strict=True) if asked == "udp 5000"]
    series = [later for earlier, later in pairwise([0.0, *asked]) if later - earlier > 70]
    expires_at = 7200.04
    assert series[0] == pytest.approx(3600.79)
    for started, again in pairwise(series[:4]):
        ended = started + 127.75
        assert again - ended == pytest.approx((expires_at - ended) / 2, abs=2)
    assert len(series) >= 5
    assert play.take() == []


@pytest.mark.parametrize("lifetime", [1, 2, 5, 8, 60])
def test_short_lifetimes_are_renewed_no_oftener_than_every_four_seconds(lifetime: int) -> None:
    play = playing(5000, lifetime=lifetime)
    play.run(300)
    renewals = [at for (at, _), asked in zip(play.sent, play.asked, strict=True) if asked == "udp 5000"]
    assert all(later - earlier >= 4 - 1e-6 for earlier, later in pairwise([0.02, *renewals]))
    assert len(renewals) >= 300 / max(lifetime / 2, 4.1) - 2


def test_refresh_renews_all_at_once_one_at_a_time() -> None:
    play = playing(5000, 5001)
    play.run(9)
    play.client.refresh(play.now)
    play.run(1)
    assert play.asked == ["external", "udp 5000", "udp 5001"]
    assert play.times == [10.0, 10.02, 10.04]
    assert kinds(play.take()) == ["Mapped", "Mapped"]


def test_refresh_does_not_wait_for_a_request_that_nobody_answers() -> None:
    play = playing(5000)
    play.fall_silent()
    play.client.refresh(play.now)
    play.run(40)
    play.sent.clear()
    play.answer = play.obey
    play.client.refresh(play.now)
    play.run(1)
    assert play.sent[0][0] == 41.0
    assert kinds(play.take()) == ["Mapped"]


# --- announcements -----------------------------------------------------------------------------------------------


def test_another_external_address_is_told_of_all_mappings_at_once() -> None:
    """3.2.1: "subsequent change of the external IPv4 address"."""
    play = playing(5000, 5001)
    play.run(99)
    play.sent.clear()
    play.host = "203.0.113.9"
    for _ in range(10):
        play.receive(external(play.epoch, "203.0.113.9"), base=ANNOUNCEMENTS)
    play.run(0.5)
    assert play.asked == ["external"]
    play.sent.clear()
    events = play.take()
    assert [(event.key, event.external, event.rtt_s) for event in events if isinstance(event, Mapped)] == [
        (5000, TransportAddress("203.0.113.9", 25000), None),
        (5001, TransportAddress("203.0.113.9", 25001), None),
    ]
    assert len(events) == 2
    assert {event.lifetime_s for event in events if isinstance(event, Mapped)} == {7101}
    play.run(10)
    assert play.sent == []


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (external(0, "6.6.6.6"), TransportAddress("192.168.1.2", 5351)),
        (external(0, "6.6.6.6", result=3), TransportAddress("192.168.1.1", 1024)),
        (external(0, "6.6.6.6")[:8], SERVER),
        (b"\0\x81\0\x03" + bytes(12), SERVER),
        (mapping(b"\0\1\0\0\x13\x88", 0, 1, 1), SERVER),
    ],
)
def test_a_forged_or_broken_announcement_changes_nothing(data: bytes, source: TransportAddress) -> None:
    """3.2.1: "silently discard the packet if the address is not the address of the client's current configured
    gateway"."""
    play = playing(5000)
    play.run(100)
    play.receive(data, base=ANNOUNCEMENTS, source=source)
    play.run(10)
    assert (play.take(), play.sent) == ([], [])
    assert len(play.dropped) == 1


def test_a_restart_makes_all_mappings_again_after_a_random_time_one_at_a_time() -> None:
    """3.7: "MUST first delay by a random amount of time selected with uniform random distribution in the range 0 to 5
    seconds"; "issued serially, one at a time"."""
    delays = set()
    for seed in range(10):
        play = playing(5000, 5001, seed=seed)
        play.run(99)
        restart(play)
        for _ in range(10):
            play.receive(external(play.epoch), base=ANNOUNCEMENTS)
        assert play.take() == [GatewayRestarted(protocol="nat-pmp")]
        play.run(5.1)
        assert kinds(play.take()) == ["Mapped", "Mapped"]
        assert [asked for asked in play.asked if asked != "external"] == ["udp 5000", "udp 5001"]
        assert all(later - earlier == pytest.approx(0.02) for earlier, later in pairwise(play.times))
        assert f"{25000:04x}" == play.sent[-2][1][6:8].hex()
        delays.add(play.times[0] - 100)
    assert len(delays) == 10
    assert max(delays) - min(delays) > 2


def test_a_restart_that_an_answer_shows_makes_the_others_again() -> None:
    """3.6: "any packet from the NAT gateway, either unsolicited or in response to a client request"."""
    play = playing(5000, 5001)
    play.run(100)
    restart(play)
    play.client.map(1, request(1), play.now)
    play.run(0.1)
    assert kinds(play.take()) == ["GatewayRestarted", "Mapped"]
    play.run(5)
    assert [event.key for event in play.take() if isinstance(event, Mapped)] == [5000, 5001]


@pytest.mark.parametrize(
    "data",
    [
        external(0),
        external(0, result=3),
        mapping(b"\0\1\0\0\x13\x88", 0, 25000, 7200),
        mapping(b"\0\2\0\0\x99\x99", 0, 0, 0),
        mapping(b"\0\1\0\0\x13\x88", 0, 0, 0, 4),
    ],
)
def test_a_restart_that_an_answer_shows_that_nobody_waits_for_makes_all_again(data: bytes) -> None:
    """3.6: "Whenever a client receives any packet from the NAT gateway, either unsolicited or in response to a client
    request"."""
    play = playing(5000)
    play.run(100)
    restart(play)
    play.receive(data)
    assert play.take() == [GatewayRestarted(protocol="nat-pmp")]
    assert len(play.dropped) == 1
    play.run(5.1)
    assert kinds(play.take()) == ["Mapped"]


def test_an_announcement_of_a_gateway_without_an_address_is_one_of_a_restart() -> None:
    """3.2.1: "Upon boot, acquisition of an external IPv4 address, …"; 3.2: "If the result code is non-zero, the value
    of the External IPv4 Address field is undefined (… MUST be ignored on reception)"."""
    play = playing(5000)
    play.run(100)
    restart(play)
    play.receive(external(play.epoch, "6.6.6.6", result=3), base=ANNOUNCEMENTS)
    assert play.take() == [GatewayRestarted(protocol="nat-pmp")]
    play.run(5.1)
    assert play.only(Mapped).external.host == EXTERNAL_HOST


def test_an_announced_address_is_asked_for_and_not_believed() -> None:
    """3.2.1 checks the source, which anybody on the network can forge."""
    play = playing(5000)
    play.run(100)
    play.sent.clear()
    for number in range(100):
        play.receive(external(play.epoch, f"203.0.113.{100 + number}"), base=ANNOUNCEMENTS)
        play.run(0.01)
    assert play.asked == ["external"] and play.take() == []


@pytest.mark.parametrize("result", [2, 3])
def test_what_was_refused_is_asked_again_when_the_gateway_has_another_address(result: int) -> None:
    """3.1: "receipt of NAT-PMP announcement packet from gateway" discards what was known."""
    play = NatPmpPlay()
    play.host = "0.0.0.0"
    play.refuse_mappings(result)
    play.client.map(1, request(), play.now)
    play.run(5)
    play.take()
    play.answer, play.host = play.obey, EXTERNAL_HOST
    play.receive(external(play.epoch), base=ANNOUNCEMENTS)
    play.run(5.1)
    assert play.only(Mapped).external == TransportAddress(EXTERNAL_HOST, 25000)


def test_a_gateway_whose_epoch_makes_no_sense_does_not_keep_us_busy() -> None:
    play = playing(5000, 5001)
    epochs = count(10**6, -100)
    play.answer = lambda data: (external(next(epochs)),) if data[1] == 0 else (mapping(data, next(epochs), 1, 7200),)
    for key in (1, 2):
        play.client.map(key, request(key), play.now)
        play.run(1)
    play.run(600)
    assert 600 / 20 <= len(play.sent) <= 3 * (600 / 15 + 2)
    restarts = [event for event in play.take() if isinstance(event, GatewayRestarted)]
    assert 600 / 20 <= len(restarts) <= 600 / 15 + 2


def test_a_restart_while_a_mapping_is_asked_for_adds_no_request() -> None:
    play = playing(5000)
    play.run(99)
    play.fall_silent()
    play.client.refresh(play.now)
    restart(play)
    play.receive(external(play.epoch), base=ANNOUNCEMENTS)
    play.run(9)
    assert play.asked.count("udp 5000") == play.asked.count("external") == 6


def test_restarts_that_follow_each_other_are_one_as_long_as_nothing_was_made_again() -> None:
    play = playing(5000)
    play.run(99)
    for _ in range(20):
        play.receive(external(10**6), base=ANNOUNCEMENTS)
        play.receive(external(0), base=ANNOUNCEMENTS)
    restart(play)
    assert kinds(play.take()) == ["GatewayRestarted"]
    play.run(5.1)
    assert kinds(play.take()) == ["Mapped"]


# --- whatever happens --------------------------------------------------------------------------------------------


class Fuzzed(NatPmpPlay):
    """A play that watches: between two requests there is an answer, or a quarter of a second.

    Attributes:
        ports: of all mappings that were wanted, by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[int] = []
        self._busy_until = 0.0
        self._watched = 0

    def drain(self) -> None:
        super().drain()
        requests = [(at, data) for at, data in self.sent[self._watched :] if not is_deletion(data)]
        self._watched = len(self.sent)
        assert len(requests) <= 1
        for at, _ in requests:
            assert at + 1e-5 >= self._busy_until
            self._busy_until = at + 0.25

    def receive(
        self, data: bytes, *, base: TransportAddress | None = None, source: TransportAddress | None = None
    ) -> None:
        self._busy_until = 0.0
        super().receive(data, base=base, source=source)


def is_deletion(data: bytes) -> bool:
    return len(data) == 12 and data[8:] == bytes(4)


Step = Callable[[Fuzzed], None]


def map_one(play: Fuzzed, port: int) -> None:
    play.client.map(len(play.ports), request(port), play.now)
    play.ports.append(port)


def behave(play: Fuzzed, mode: str) -> None:
    play.answer = silent if mode == "silent" else lambda data: () if data[1] == 1 else play.obey(data)


def replay(play: Fuzzed, index: int, result: int) -> None:
    asked = [data for _, data in play.sent if len(data) == 12]
    if asked:
        play.receive(mapping(asked[index % len(asked)], play.epoch, index, play.lifetime % 5000, result))


def disturb(play: Fuzzed, data: bytes) -> None:
    """What is no answer ends no turn."""
    try:
        parse_response(data)
    except BadMessage:
        NatPmpPlay.receive(play, data)


orders: st.SearchStrategy[Step] = st.one_of(
    st.integers(1, 6).map(lambda port: lambda play: map_one(play, port)),
    st.integers(0, 20).map(lambda key: lambda play: play.client.unmap(key, play.now)),
    st.integers(0, 20).map(lambda key: lambda play: play.client.abandon(key)),
    st.just(lambda play: play.client.discover(play.now)),
    st.just(lambda play: play.client.refresh(play.now)),
    st.just(lambda play: play.refuse()),
)
steps: st.SearchStrategy[Step] = st.one_of(
    orders,
    st.floats(0, 5000).map(lambda seconds: lambda play: play.run(seconds)),
    st.floats(0, 1).map(lambda seconds: lambda play: play.run(seconds)),
    st.just(restart),
    st.just(lambda play: play.receive(external(play.epoch), base=ANNOUNCEMENTS)),
    st.just(lambda play: play.receive(external(play.epoch))),
    st.sampled_from(["silent", "deaf to udp"]).map(lambda mode: lambda play: behave(play, mode)),
    st.integers(0, 2**32 - 1).map(lambda lifetime: lambda play: setattr(play, "lifetime", lifetime)),
    st.tuples(st.integers(0, 65535), st.sampled_from([0, 0, 2, 3])).map(lambda two: lambda play: replay(play, *two)),
    st.binary(max_size=20).map(lambda data: lambda play: disturb(play, data)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=25))
def test_whatever_happens_one_request_is_outstanding_time_goes_on_and_nothing_grows(sequence: list[Step]) -> None:
    play = Fuzzed()
    play.answer = silent
    for step in sequence:
        try:
            step(play)
        except ValueError as error:
            assert "is mapped already" in str(error)
        play.drain()
        play.client.handle_timeout(play.now)
        play.drain()
        deadline = play.client.poll_timeout()
        assert deadline is None or deadline > play.now
    unmapped = [event for _, event in play.events if type(event).__name__ == "Unmapped"]
    assert len({getattr(event, "key", None) for event in unmapped}) == len(unmapped)
    for key in range(len(play.ports)):
        play.client.unmap(key, play.now)
    play.run(1)
    assert play.client.poll_timeout() is None
    assert len(play.client.counters) <= 16
