"""How long does a binding live, and what keeps it? Measured in virtual time, behind NATs whose lifetime is known."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.nat.lifetime import PATIENCE_S, LifetimeProbe
from iceagent.nat.lifetime_report import SocketsWanted, Use
from iceagent.nat.lifetime_requests import MAX_OUTSTANDING
from iceagent.nat.responding import FarEnd, binding_request
from iceagent.nat.silences import PROBES
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Transmit
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.nat import Allocation, NatModel
from iceagent.testing.stun_server import StunServerNode
from relay.stun import XOR_MAPPED_ADDRESS, Attribute, is_stun, parse, short_term_key
from relay.stun.values import decode_bytes, encode_bytes
from relay.stun_server import StunServer, discovery_table
from tests.unit.nat.nets import FAR, INSIDE, OUTSIDE, Measurement, OnlyAnswersRefresh

KEY = short_term_key("a secret of both")
UNHEARD_OF: Attribute[bytes] = Attribute(0x7FFE, "UNHEARD-OF", encode_bytes, decode_bytes)


def nat(lifetime_s: float, **options: Any) -> NatModel:
    return NatModel([OUTSIDE], Random(7), lifetime_s=lifetime_s, **{"inbound_refresh": True, **options})


def measured(measurement: Measurement) -> tuple[float | None, float | None, bool | None]:
    measurement.run()
    report = measurement.report
    return report.answered.lifetime_s, report.unanswered.lifetime_s, report.one_way_refresh


# --- the number ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime_s", [2, 7, 10, 30, 37, 60, 120, 133, 250, 299])
def test_it_is_found_within_half_a_second(lifetime_s: float) -> None:
    answered, unanswered, one_way = measured(Measurement(nat(lifetime_s)))
    assert answered == pytest.approx(lifetime_s, abs=0.5)
    assert unanswered == pytest.approx(lifetime_s, abs=0.5)
    assert one_way is True


@pytest.mark.parametrize(
    "options",
    [
        {"inbound_refresh": False},
        {"filtering": Filtering.EIF},
        {"mapping": Mapping.ADM, "allocation": Allocation.RANDOM},
        {"mapping": Mapping.APDM, "allocation": Allocation.RANDOM},
        {"early_packet_trap": True},
        {"allocation": Allocation.RANDOM},
    ],
    ids=["outbound refreshes only", "EIF", "ADM", "APDM", "trap", "random ports"],
)
def test_whatever_the_nat_does_otherwise(options: dict[str, Any]) -> None:
    """RFC 4787, REQ-6 leaves open whether packets that come in refresh."""
    answered, unanswered, one_way = measured(Measurement(nat(30, **options)))
    assert answered == pytest.approx(30, abs=0.5)
    assert unanswered == pytest.approx(30, abs=0.5)
    assert one_way is True


def test_a_firewall_has_one_too() -> None:
    answered, _, one_way = measured(Measurement(FirewallModel(lifetime_s=45)))
    assert answered == pytest.approx(45, abs=0.5) and one_way is True


@pytest.mark.parametrize(("lifetime_s", "limit_s"), [(10, 35), (30, 40), (120, 130), (77, 180), (250, 530)])
def test_it_takes_as_long_as_a_binding_lives_or_twice_that(lifetime_s: float, limit_s: float) -> None:
    measurement = Measurement(nat(lifetime_s))
    measurement.run()
    assert measurement.pair.now < limit_s


def test_at_most_two_rounds_of_sockets_are_open() -> None:
    measurement = Measurement(nat(77))
    measurement.run()
    # Two uses, the two that are kept, and the asker.
    assert measurement.shell.most == 2 * PROBES + 3
    assert measurement.shell.core.counters["sent"] < 700


def test_where_nothing_dies_it_says_so() -> None:
    measurement = Measurement(None, max_s=40.0)
    assert measured(measurement) == (None, None, None)
    report = measurement.report
    assert report.answered.alive_s == pytest.approx(40.0) and report.answered.dead_s is None
    assert report.evidence == "nothing has died in 40 s, so nothing can be said of keepalives"
    assert report.mapped.host == INSIDE


class LinuxNat(NatModel):
    """30 s, and 120 s for a flow that was answered and is older than two seconds."""

    def __init__(self) -> None:
        super().__init__([OUTSIDE], Random(3), lifetime_s=1_000.0, inbound_refresh=True)
        self._ends: dict[tuple[TransportAddress, TransportAddress], tuple[float, bool, float]] = {}

    def outbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        flow = (source, destination)
        began_at, is_answered, ends_at = self._ends.get(flow, (now, False, now))
        if now > ends_at:
            began_at, is_answered = now, False
        self._ends[flow] = began_at, is_answered, now + (120.0 if is_answered and now - began_at > 2.0 else 30.0)
        return super().outbound(source, destination, now)

    def inbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        inside = super().inbound(source, destination, now)
        if inside is None:
            return None
        began_at, _, ends_at = self._ends[inside, source]
        if now >= ends_at:
            return None
        self._ends[inside, source] = began_at, True, now + (120.0 if now - began_at > 2.0 else 30.0)
        return inside


def test_linux_keeps_what_was_answered_longer() -> None:
    answered, unanswered, one_way = measured(Measurement(LinuxNat()))
    assert answered == pytest.approx(120, abs=0.5)
    assert unanswered == pytest.approx(30, abs=0.5)
    assert one_way is True


# --- keepalives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime_s", [3, 10, 30, 120])
def test_a_carrier_that_ignores_one_way_heartbeats_is_found(lifetime_s: float) -> None:
    box = OnlyAnswersRefresh([OUTSIDE], Random(1), answers_s=lifetime_s, lifetime_s=1_000.0)
    measurement = Measurement(box)
    answered, _, one_way = measured(measurement)
    assert answered == pytest.approx(lifetime_s, abs=0.5)
    assert one_way is False
    assert "only ever sent was dead" in measurement.report.evidence
    kept = {look.use: look for look in measurement.looks if look.use in (Use.ONE_WAY, Use.KEPT)}
    assert kept[Use.ONE_WAY].silence_s > lifetime_s and kept[Use.ONE_WAY].is_alive is False
    assert kept[Use.KEPT].is_alive is True and kept[Use.KEPT].bracket is None


def test_a_nat_that_ends_every_binding_is_not_told_from_one_that_ignores_heartbeats() -> None:
    """Its bindings die 20 s after their first packet, whatever is sent or answered."""

    class Mortal(NatModel):
        def __init__(self) -> None:
            super().__init__([OUTSIDE], Random(1), lifetime_s=1_000.0)
            self.began: dict[TransportAddress, float] = {}

        def inbound(
            self, source: TransportAddress, destination: TransportAddress, now: float
        ) -> TransportAddress | None:
            inside = super().inbound(source, destination, now)
            if inside is None or inside.port == 10_000:
                return inside
            return inside if now - self.began.setdefault(inside, now) < 20.0 else None

    measurement = Measurement(Mortal())
    answered, _, one_way = measured(measurement)
    assert answered is not None and one_way is None
    assert measurement.report.evidence == "a binding that is kept by answered requests has died as well"


# --- the far end -----------------------------------------------------------------------------------------------------


def test_a_server_of_rfc_5780_serves_as_well() -> None:
    far = StunServerNode([FAR, TransportAddress("198.51.100.2", 3479)], behaviour_discovery=True)
    assert measured(Measurement(nat(30), far))[0] == pytest.approx(30, abs=0.5)


def test_so_does_ours() -> None:
    far = StunServer(alternatives=discovery_table([(FAR, TransportAddress("198.51.100.2", 3479))]))
    assert measured(Measurement(nat(10), far))[0] == pytest.approx(10, abs=0.5)


def test_with_a_key_everything_is_signed() -> None:
    assert measured(Measurement(nat(10), FarEnd(KEY), key=KEY))[0] == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(
    ("far", "options", "reason"),
    [
        (StunServer(), {}, "it answers 420 Unknown Attribute to RESPONSE-PORT (RFC 5780)"),
        (FarEnd(KEY), {}, "it answers 400 Bad Request"),
        (FarEnd(), {"key": KEY}, "its answer is not signed with our key"),
        (FarEnd(KEY), {"key": short_term_key("another")}, "it answers 401 Unauthenticated"),
    ],
    ids=["a plain STUN server", "no key", "unsigned", "another key"],
)
def test_one_that_cannot_be_used_is_told(far: Any, options: dict[str, Any], reason: str) -> None:
    measurement = Measurement(nat(30), far, **options)
    measurement.run()
    assert measurement.reason == reason
    assert measurement.pair.now < 10.1


class Deaf(FarEnd):
    """Does not know RESPONSE-PORT, and does not say so: servers before RFC 5389."""

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        if is_stun(datagram.data):
            response = parse(datagram.data).success((XOR_MAPPED_ADDRESS, datagram.source)).encode()
            self._transmits.append(Transmit(datagram.base, datagram.source, response))


def test_one_that_ignores_response_port_is_told() -> None:
    measurement = Measurement(nat(30), Deaf())
    measurement.run()
    assert measurement.reason == "it answers to where it was asked from: it does not know RESPONSE-PORT (RFC 5780)"


def test_one_that_never_answers_is_an_error_after_its_time() -> None:
    measurement = Measurement(nat(30), StunServerNode([FAR], is_dead=True), timeout_s=4.0)
    measurement.run()
    assert measurement.reason == "no answer" and measurement.pair.now == 4.0
    assert measurement.shell.core.poll_timeout() is None


def test_one_that_is_not_there_is_told_with_its_reason() -> None:
    measurement = Measurement(nat(30), timeout_s=4.0)
    measurement.far.node.ports = set()
    measurement.run()
    assert measurement.reason == "Connection refused" and measurement.pair.now == 4.0


def test_one_that_goes_away_ends_it() -> None:
    """Nothing of what is not seen then is taken for a death."""
    far = StunServerNode([FAR, TransportAddress("198.51.100.2", 3479)], behaviour_discovery=True)
    measurement = Measurement(nat(100), far)
    measurement.run(50.0, until=lambda: measurement.pair.now >= 40.0)
    far.is_dead = True
    went_at = measurement.pair.now
    assert measurement.pair.run(lambda: measurement.is_over, seconds=PATIENCE_S + 3.0)
    assert measurement.reason == f"it has not answered for {PATIENCE_S:.0f} s"
    assert measurement.pair.now - went_at <= PATIENCE_S + 2.1
    assert [look for look in measurement.looks if look.is_alive is False] == []


def test_two_addresses_outside_are_told() -> None:
    """RFC 4787, 4.1: without paired pooling an answer to our address is another one's."""

    class Unpaired(NatModel):
        def outbound(
            self, source: TransportAddress, destination: TransportAddress, now: float
        ) -> TransportAddress | None:
            found = super().outbound(source, destination, now)
            return None if found is None else TransportAddress(self.external_hosts[source.port % 2], found.port)

        def inbound(
            self, source: TransportAddress, destination: TransportAddress, now: float
        ) -> TransportAddress | None:
            hosts = [TransportAddress(host, destination.port) for host in self.external_hosts]
            found = [inside for each in hosts if (inside := NatModel.inbound(self, source, each, now)) is not None]
            return found[0] if found else None

    measurement = Measurement(Unpaired([OUTSIDE, "20.0.1.2"], Random(1)))
    # The asker's port is even; that of the first binding is made odd.
    measurement.shell.opened = 1
    measurement.run()
    assert measurement.reason == "our sockets have different addresses outside, 20.0.1.1 and 20.0.1.2"


def test_too_few_sockets_are_told() -> None:
    measurement = Measurement(nat(30), limit=20)
    measurement.run()
    assert measurement.reason == "64 sockets are needed, and 20 could be opened"


# --- loss, and lies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_tenth_of_all_packets_may_be_lost(seed: int) -> None:
    measurement = Measurement(nat(30), seed=seed)
    measurement.link.up.loss = measurement.link.down.loss = 0.1
    answered, unanswered, _ = measured(measurement)
    assert answered == pytest.approx(30, abs=1.0)
    assert unanswered == pytest.approx(30, abs=1.0)


def test_a_slow_far_end_is_no_dead_binding() -> None:
    answered, _, _ = measured(Measurement(nat(30), latency_s=0.3))
    assert answered == pytest.approx(30, abs=1.0)


def probe() -> tuple[LifetimeProbe, TransportAddress]:
    asker = TransportAddress(INSIDE, 10_000)
    return LifetimeProbe(FAR, asker, Random(1)), asker


def test_what_was_not_asked_for_proves_nothing() -> None:
    """From elsewhere, or with another transaction id: only who received the request knows that."""
    core, asker = probe()
    core.start(0.0)
    sent = core.poll_transmit()
    assert sent is not None
    answer = parse(sent.data).success((XOR_MAPPED_ADDRESS, asker)).encode()
    forged = parse(binding_request(bytes(12), None)).success((XOR_MAPPED_ADDRESS, asker)).encode()
    for source, data in (
        (FAR._replace(port=1), answer),
        (FAR, forged),
        (FAR, answer[:-4]),
        (FAR, b"x"),
        (FAR, sent.data),
    ):
        core.handle_datagram(Datagram(asker, source, data), 0.1)
    assert core.counters == {
        "sent": 1,
        "dropped: response to no request of ours": 2,
        "dropped: no response": 3,
    }
    core.handle_datagram(Datagram(asker, FAR, answer), 0.1)
    assert core.counters["answers"] == 1
    assert [event for event in iter(core.poll_event, None) if isinstance(event, SocketsWanted)] == [
        SocketsWanted(count=1)
    ]
    core.handle_datagram(Datagram(asker, FAR, answer), 0.2)
    assert core.counters["dropped: response to no request of ours"] == 3


class Forged(FarEnd):
    """Beside each response, from its address: a refusal that is not signed, and one that nobody understands."""

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        request = parse(datagram.data)
        for response in (
            request.error_response(420, "Unknown Attribute").encode(),
            request.success((XOR_MAPPED_ADDRESS, datagram.source), (UNHEARD_OF, b"what")).encode(KEY),
        ):
            self._transmits.append(Transmit(datagram.base, datagram.source, response))
        super().handle_datagram(datagram, now)


def test_with_a_key_an_unsigned_refusal_ends_nothing() -> None:
    """RFC 8489, 9.1.4: it "MUST be discarded"; so is what is not understood (6.3.3)."""
    measurement = Measurement(nat(10), Forged(KEY), key=KEY)
    assert measured(measurement)[0] == pytest.approx(10, abs=0.5)
    counters = measurement.shell.core.counters
    assert counters["dropped: error response"] > 0 and counters["dropped: response that is not understood"] > 0


def test_requests_that_are_never_answered_are_bounded() -> None:
    core, _ = probe()
    core.start(0.0)
    for number in range(2 * MAX_OUTSTANDING):
        core._control(float(number))
    assert len(core._requests) == MAX_OUTSTANDING


@settings(max_examples=30)
@given(st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 3)), max_size=20), st.integers(0, 2**31))
def test_no_bytes_raise(noise: list[tuple[bytes, int]], seed: int) -> None:
    core, asker = probe()
    core.start(0.0)
    for number, (data, kind) in enumerate(noise):
        sent = core.poll_transmit()
        if sent is not None and kind:
            whole = bytearray(parse(sent.data).success((XOR_MAPPED_ADDRESS, asker)).encode())
            if kind > 1:
                whole[seed % len(whole)] ^= 1 << seed % 8
            data = bytes(whole[: len(whole) - 4 * (kind == 3)])
        core.handle_datagram(Datagram(asker, FAR, data), number * 0.1)
        for event in iter(core.poll_event, None):
            if isinstance(event, SocketsWanted):
                core.add([TransportAddress(INSIDE, 20_000 + port) for port in range(event.count)], number * 0.1)
        core.handle_error(asker, FAR, 111, number * 0.1)
        core.handle_timeout(number * 0.1)


def test_progress_is_told() -> None:
    measurement = Measurement(nat(10))
    measurement.run()
    looks = [look for look in measurement.looks if look.use is Use.ANSWERED]
    assert [round(look.silence_s, 1) for look in looks] == [4.6, 5.4, 9.6, 10.4]
    assert [look.is_alive for look in looks] == [True, True, True, False]
    last = looks[-1].bracket
    assert last is not None and last == measurement.report.answered
