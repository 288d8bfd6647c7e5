"""Do two hosts meet, and nobody else?"""

from __future__ import annotations

import errno
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.nat.punch_report import Answered, DataReceived, Failed, Lost, Path, PunchOptions, Settled
from iceagent.nat.punching import MAX_HELD, MAX_LEARNED, MAX_OUTSTANDING, MAX_WAYS, SETTLE_S, Puncher
from iceagent.nat.responding import FarEnd, binding_request
from iceagent.nat.theory import can_meet
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.testing.catalogue import FIREWALL_KINDS, NAT_KINDS, box_of_kind
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.nat import Middlebox
from iceagent.testing.network import Network
from iceagent.testing.peers import Peer, SessionPair
from relay.stun import XOR_MAPPED_ADDRESS, MessageClass, Method, build, is_stun, parse, short_term_key

KEY = short_term_key("a secret of both")
OTHER_KEY = short_term_key("another secret")
SERVER = TransportAddress("198.51.100.1", 3478)
A, B = TransportAddress("10.1.0.2", 5000), TransportAddress("10.2.0.2", 5000)
OURS, THEIRS = TransportAddress("192.0.2.1", 5000), TransportAddress("198.51.100.7", 6000)

EventT = TypeVar("EventT", bound=Event)


# --- one end, by hand ------------------------------------------------------------------------------------------------


class End:
    """A puncher, and everything that it says."""

    def __init__(
        self, *remotes: TransportAddress, now: float = 0.0, base: TransportAddress = OURS, **options: Any
    ) -> None:
        self.core = Puncher(PunchOptions(**options), Random(1))
        self.base = base
        self.events: list[Event] = []
        self.sent: list[tuple[float, Transmit]] = []
        self.core.start({base}, now)
        for remote in remotes:
            self.core.punch(base, remote, now)
        self.drain(now)

    def drain(self, now: float) -> list[Transmit]:
        new = list(iter(self.core.poll_transmit, None))
        self.sent += [(now, transmit) for transmit in new]
        self.events += iter(self.core.poll_event, None)
        return new

    def receive(self, data: bytes, source: TransportAddress = THEIRS, now: float = 0.0) -> list[Transmit]:
        self.core.handle_datagram(Datagram(self.base, source, data), now)
        return self.drain(now)

    def run(self, until: float) -> None:
        """Let time pass; nothing comes in."""
        while (at := self.core.poll_timeout()) is not None and at <= until:
            self.core.handle_timeout(at)
            self.drain(at)

    def requests(self) -> list[tuple[float, Transmit]]:
        return [(at, each) for at, each in self.sent if is_stun(each.data) and parse(each.data).is_request]

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    def answer(self, now: float, source: TransportAddress = THEIRS, mapped: TransportAddress = OURS) -> None:
        """The last request is answered."""
        request = parse(self.requests()[-1][1].data)
        key = self.core._key
        self.receive(request.success((XOR_MAPPED_ADDRESS, mapped)).encode(key), source, now)

    @property
    def reason(self) -> str:
        (event,) = self.of(Failed)
        return event.reason


def ask(key: Any = None, number: int = 7) -> bytes:
    """The other end's request."""
    return binding_request(number.to_bytes(12, "big"), key)


def test_an_opener_goes_first_and_requests_follow() -> None:
    """It opens our NAT and dies behind it; the rest is repeated fast at first, then every second."""
    end = End(THEIRS, timeout_s=4.0)
    end.run(10.0)
    (at, opener), *rest = end.sent
    assert (at, opener.ttl, parse(opener.data).is_indication) == (0.0, 2, True)
    assert [round(at, 3) for at, _ in rest] == [0.01, 0.11, 0.21, 0.41, 0.81, 1.81, 2.81, 3.81]
    assert all(each.ttl is None and parse(each.data).is_request for _, each in rest)
    assert len({parse(each.data).transaction_id for _, each in rest}) == len(rest)


def test_a_long_lead_has_an_opener_every_second_and_nothing_else() -> None:
    end = End(THEIRS, lead_s=2.5, timeout_s=3.0)
    end.run(10.0)
    assert [(round(at, 3), each.ttl) for at, each in end.sent] == [
        (0.0, 2), (1.0, 2), (2.0, 2), (2.5, None), (2.6, None), (2.7, None), (2.9, None),
    ]  # fmt: skip


def test_who_is_asked_need_not_wait() -> None:
    """The other end has begun, and our NAT let it in."""
    end = End(THEIRS, lead_s=60.0)
    response, request = end.receive(ask(), now=0.3)
    assert parse(response.data).is_success and parse(response.data).get(XOR_MAPPED_ADDRESS) == THEIRS
    assert (parse(request.data).is_request, request.ttl, request.destination) == (True, None, THEIRS)


def test_on_loopback_there_is_nothing_to_open() -> None:
    end = End(TransportAddress("127.0.0.1", 1), base=TransportAddress("127.0.0.1", 5000))
    assert [(at, each.ttl) for at, each in end.sent] == [(0.0, None)]


def test_an_answer_tells_the_round_trip_and_where_we_are() -> None:
    end = End(THEIRS)
    end.run(0.05)
    end.answer(0.075, mapped=TransportAddress("203.0.113.9", 1024))
    (event,) = end.of(Answered)
    assert event.path == Path(OURS, THEIRS) and event.mapped == TransportAddress("203.0.113.9", 1024)
    assert event.rtt_s == pytest.approx(0.065)
    assert end.core.path == Path(OURS, THEIRS)


def test_a_later_answer_is_to_its_own_request() -> None:
    """Each has a transaction id of its own: a slow answer tells the true time."""
    end = End(THEIRS)
    end.run(0.5)
    first = parse(end.requests()[0][1].data)
    end.receive(first.success((XOR_MAPPED_ADDRESS, OURS)).encode(), now=0.51)
    assert [event.rtt_s for event in end.of(Answered)] == [pytest.approx(0.5)]


def test_three_more_requests_measure_and_then_one_may_leave() -> None:
    end = End(THEIRS)
    end.run(0.05)
    for number in range(4):
        end.answer(0.05 + 0.2 * number)
        end.run(0.05 + 0.2 * (number + 1))
    end.run(60.0)
    assert len(end.requests()) == 4 and end.core.round_trips.count == 4
    assert len(end.of(Settled)) == 1 and end.of(Lost) == []
    assert end.core.poll_timeout() is None


def test_who_still_asks_is_answered_for_two_seconds_more() -> None:
    """Its answer may have been lost: who leaves at once leaves it alone."""
    end = End(THEIRS)
    end.run(0.05)
    end.answer(0.05)
    end.receive(ask(), now=0.5)
    end.run(SETTLE_S + 1.0)
    assert end.of(Settled) == []
    assert parse(end.receive(ask(number=8), now=2.0)[0].data).is_success
    end.run(3.99)
    assert end.of(Settled) == []
    end.run(4.0)
    assert len(end.of(Settled)) == 1


def test_who_never_stops_asking_holds_nobody() -> None:
    end = End(THEIRS)
    end.run(0.05)
    end.answer(0.05)
    for number in range(30):
        end.receive(ask(number=number), now=0.1 + number)
        end.run(0.1 + number)
    assert len(end.of(Settled)) == 1


# --- no answer -------------------------------------------------------------------------------------------------------


def test_nobody_who_answers_is_an_error_after_its_time_and_nothing_is_sent_then() -> None:
    end = End(THEIRS, timeout_s=4.0)
    end.run(3.99)
    assert end.of(Failed) == []
    end.run(100.0)
    assert end.reason == "198.51.100.7:6000: no answer"
    assert end.core.poll_timeout() is None and end.sent[-1][0] < 4.0


def test_an_icmp_error_ends_nothing_and_is_the_reason_in_the_end() -> None:
    """The other end may not be up yet."""
    end = End(THEIRS, TransportAddress("203.0.113.1", 1), timeout_s=4.0)
    end.run(0.05)
    end.core.handle_error(OURS, THEIRS, errno.ECONNREFUSED, 0.06)
    end.run(1.0)
    assert len([each for _, each in end.requests() if each.destination == THEIRS]) == 5
    end.run(4.0)
    assert end.reason == "198.51.100.7:6000: Connection refused; 203.0.113.1:1: no answer"
    assert end.core.counters["network errors"] == 1


def test_it_may_come_up_later() -> None:
    end = End(THEIRS)
    end.run(3.0)
    end.core.handle_error(OURS, THEIRS, errno.ECONNREFUSED, 3.0)
    end.run(5.0)
    end.answer(5.1)
    assert len(end.of(Answered)) == 1
    end.run(60.0)
    assert end.of(Failed) == []


def test_the_end_of_an_opener_is_no_complaint() -> None:
    end = End(THEIRS, timeout_s=1.0)
    end.core.handle_error(OURS, THEIRS, errno.EHOSTUNREACH, 0.02)
    end.core.handle_error(OURS, TransportAddress("203.0.113.1", 9), errno.ECONNREFUSED, 0.02)
    end.run(1.0)
    assert end.reason == "198.51.100.7:6000: no answer"


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (None, KEY, "it answers 400 Bad Request"),
        (KEY, OTHER_KEY, "it answers 401 Unauthenticated"),
        (KEY, None, "its answer is not signed with our key"),
    ],
)
def test_who_has_another_key_is_not_met_and_told_why(ours: Any, theirs: Any, reason: str) -> None:
    end, far = End(THEIRS, key=ours, timeout_s=1.0), FarEnd(theirs)
    end.run(0.05)
    far.handle_datagram(Datagram(THEIRS, OURS, end.requests()[0][1].data), 0.05)
    answer = far.poll_transmit()
    assert answer is not None
    end.receive(answer.data, now=0.06)
    end.run(1.0)
    assert end.of(Answered) == [] and end.reason == f"198.51.100.7:6000: {reason}"


# --- forgers ---------------------------------------------------------------------------------------------------------


def test_an_answer_from_elsewhere_or_to_nothing_is_none() -> None:
    end = End(THEIRS)
    end.run(0.05)
    request = parse(end.requests()[0][1].data)
    good = request.success((XOR_MAPPED_ADDRESS, OURS)).encode()
    other = build(Method.BINDING, MessageClass.SUCCESS, bytes(12), (XOR_MAPPED_ADDRESS, OURS)).encode()
    for source, data in (
        (THEIRS._replace(port=6001), good),
        (TransportAddress("203.0.113.1", 6000), good),
        (THEIRS, other),
        (THEIRS, good[:-1]),
        (THEIRS, good[:24]),
        (THEIRS, build(Method.ALLOCATE, MessageClass.SUCCESS, request.transaction_id).encode()),
    ):
        assert end.receive(data, source, 0.06) == []
    assert end.of(Answered) == [] and end.core.path is None
    assert end.core.counters["dropped: response to no request of ours"] == 3
    end.receive(good, now=0.07)
    assert len(end.of(Answered)) == 1
    end.receive(good, now=0.08)
    assert end.core.counters["dropped: response to no request of ours"] == 4


def test_an_answer_without_our_address_is_none() -> None:
    """RFC 8489, 6.3.3: "the client checks that the XOR-MAPPED-ADDRESS attribute is present in the response"."""
    end = End(THEIRS, timeout_s=1.0)
    end.run(0.05)
    end.receive(parse(end.requests()[0][1].data).success().encode(), now=0.06)
    end.run(1.0)
    assert end.of(Answered) == [] and end.reason == "198.51.100.7:6000: its answer has no mapped address"


def test_a_strangers_request_is_not_answered() -> None:
    end = End(THEIRS)
    assert end.receive(ask(), THEIRS._replace(port=6001)) == []
    assert end.receive(ask(KEY), TransportAddress("203.0.113.1", 6000)) == []
    assert end.core.counters["dropped: a stranger's request"] == 2


def test_an_echo_is_an_answer_where_nothing_is_signed() -> None:
    """A reflector: it does not know what STUN is, and does not say where we are."""
    end = End(THEIRS)
    end.run(0.05)
    end.receive(end.requests()[0][1].data, now=0.07)
    (event,) = end.of(Answered)
    assert event.mapped is None and event.rtt_s == pytest.approx(0.06)


def test_with_a_key_our_own_request_is_never_answered() -> None:
    """Whoever sent it back would be given a response that the key has signed, and send that back, too."""
    end = End(THEIRS, key=KEY, timeout_s=1.0)
    end.run(0.05)
    ours = end.requests()[0][1].data
    for source in (THEIRS, THEIRS._replace(port=6001)):
        assert end.receive(ours, source, 0.07) == []
    end.run(1.0)
    assert end.of(Answered) == [] and end.reason == "198.51.100.7:6000: what we send comes back"
    assert end.core.counters["dropped: our own request"] == 2


def test_without_a_key_a_changed_echo_is_nothing() -> None:
    end = End(THEIRS)
    end.run(0.05)
    identity = parse(end.requests()[0][1].data).transaction_id
    assert end.receive(binding_request(identity, None, (XOR_MAPPED_ADDRESS, OURS)), now=0.07) == []
    assert end.of(Answered) == []


def test_a_flood_fills_nothing() -> None:
    end = End(THEIRS, key=KEY, timeout_s=None)
    end.run(0.05)
    for number in range(5_000):
        source = TransportAddress(f"203.0.113.{number % 200 + 1}", 1_024 + number)
        end.core.handle_datagram(Datagram(OURS, source, ask(KEY, number)), 0.06)
        end.core.handle_datagram(Datagram(OURS, source, ask(OTHER_KEY, number)), 0.06)
        end.core.handle_datagram(Datagram(OURS, source, bytes(200)), 0.06)
    core = end.core
    assert len(core._ways) == 1 + MAX_LEARNED
    assert len(core._outstanding) <= MAX_OUTSTANDING
    assert len(core._transmits) <= 1_024 and len(core._events) <= 1_024
    assert len(core._held) <= MAX_HELD
    end.drain(0.06)
    end.run(60.0)
    # The learned ones were asked in vain, and are forgotten.
    assert len(core._ways) == 1
    assert core.counters["errors: 401"] <= 10 * 200


def test_at_most_sixteen_addresses_are_punched_to() -> None:
    end = End(*(THEIRS._replace(port=1 + number) for number in range(MAX_WAYS)))
    end.core.punch(OURS, THEIRS._replace(port=1), 0.0)
    with pytest.raises(ValueError, match="more than 16 addresses"):
        end.core.punch(OURS, THEIRS, 0.0)


@pytest.mark.parametrize("text", ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "198.51.100.7:0", "192.0.2.1:5000"])
def test_to_what_is_no_other_host_nothing_is_sent(text: str) -> None:
    host, _, port = text.partition(":")
    with pytest.raises(ValueError, match="no address of another host"):
        End(TransportAddress(host, int(port)))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=60), st.integers(0, 2**20)), max_size=30), st.booleans()
)
def test_no_bytes_raise(steps: list[tuple[int, bytes, int]], is_signed: bool) -> None:
    key = KEY if is_signed else None
    end = End(THEIRS, key=key, keepalive_s=1.0)
    for number, (kind, data, bit) in enumerate(steps):
        now = 0.1 * number
        end.run(now)
        whole = bytearray(ask(key, number))
        if kind > 2:
            whole = bytearray(parse(end.sent[-1][1].data).success((XOR_MAPPED_ADDRESS, OURS)).encode(key))
        if kind in (2, 4):
            whole[bit // 8 % len(whole)] ^= 1 << bit % 8
        end.receive(data if kind == 0 else bytes(whole), THEIRS if bit % 3 else OURS, now)
        end.core.handle_error(OURS, THEIRS, 111, now)


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_of_who_was_met_is_given_and_nobody_elses() -> None:
    end = End(THEIRS)
    end.run(0.05)
    end.answer(0.06)
    end.receive(b"hello", now=0.07)
    end.receive(b"from another port", THEIRS._replace(port=1), 0.07)
    end.receive(b"", now=0.07)
    assert [event.data for event in end.of(DataReceived)] == [b"hello", b""]
    assert end.core.counters["dropped: data from an address that was not met"] == 1


def test_data_that_is_early_is_held_for_a_second() -> None:
    """The other end was answered one round trip before us."""
    end = End(THEIRS)
    for number in range(MAX_HELD + 2):
        end.receive(b"%d" % number, now=0.02)
    end.receive(b"a stranger's", THEIRS._replace(port=1), 0.02)
    end.run(0.05)
    assert end.of(DataReceived) == []
    end.answer(0.06)
    assert [event.data for event in end.of(DataReceived)] == [b"%d" % number for number in range(MAX_HELD)]
    assert end.core.counters["dropped: data from an address that was not met"] == 3


def test_what_is_held_too_long_is_dropped() -> None:
    end = End(THEIRS)
    end.receive(b"early", now=0.02)
    end.run(1.02)
    end.answer(1.03)
    assert end.of(DataReceived) == []
    assert end.core.counters["dropped: data from an address that was not met"] == 1


@given(st.binary(max_size=300).filter(lambda data: not is_stun(data)))
def test_whatever_is_not_stun_is_data(data: bytes) -> None:
    end = End(THEIRS)
    end.run(0.05)
    end.answer(0.06)
    end.receive(data, now=0.07)
    assert [event.data for event in end.of(DataReceived)] == [data]


# --- keeping it ------------------------------------------------------------------------------------------------------


def kept(**options: Any) -> End:
    """Met, measured, and kept every 10 s from 0.65 s on."""
    end = End(THEIRS, keepalive_s=10.0, **options)
    end.run(0.05)
    for number in range(4):
        end.answer(0.05 + 0.2 * number)
        end.run(0.05 + 0.2 * (number + 1))
    return end


def test_a_path_is_kept_by_requests() -> None:
    end = kept()
    for number in range(3):
        end.run(10.66 + 10.0 * number)
        assert end.requests()[-1][0] == pytest.approx(10.65 + 10.0 * number)
        end.answer(10.65 + 10.0 * number)
    assert end.of(Lost) == [] and len(end.of(Answered)) == 1


def test_four_requests_without_an_answer_and_it_is_lost() -> None:
    end = kept()
    end.run(14.14)
    assert [round(at, 2) for at, _ in end.requests()[4:]] == [10.65, 11.15, 12.15, 13.15]
    assert end.of(Lost) == []
    end.run(14.16)
    assert end.of(Lost) == [Lost(path=Path(OURS, THEIRS), reason="4 requests without an answer")]
    assert end.core.is_lost
    end.run(20.0)
    assert len(end.of(Lost)) == 1
    # It is tried again, and found again.
    end.answer(20.0)
    assert len(end.of(Answered)) == 2 and not end.core.is_lost


def test_why_it_was_lost_is_told() -> None:
    end = kept()
    end.run(11.0)
    end.core.handle_error(OURS, THEIRS, errno.ECONNREFUSED, 11.0)
    end.run(15.0)
    assert [event.reason for event in end.of(Lost)] == ["Connection refused"]


def test_another_address_is_a_loss_as_well() -> None:
    """The NAT forgot the binding and made another one: nobody reaches us at the first any more."""
    end = kept()
    end.run(10.66)
    moved = TransportAddress("192.0.2.1", 7777)
    end.answer(10.7, mapped=moved)
    assert end.of(Lost) == [Lost(path=Path(OURS, THEIRS), reason=f"it saw us at {OURS}, and now at {moved}")]
    assert end.of(Answered)[-1].mapped == moved and not end.core.is_lost


def test_with_a_key_the_other_end_may_move() -> None:
    end = kept(key=KEY)
    moved = TransportAddress("203.0.113.50", 1)
    response, request = end.receive(ask(KEY), moved, 5.0)
    assert response.destination == request.destination == moved
    # Whoever replays its request cannot answer ours.
    assert end.core.path == Path(OURS, THEIRS)
    end.answer(5.1, moved)
    assert end.core.path == Path(OURS, moved)
    end.receive(b"from there", moved, 5.2)
    assert [event.data for event in end.of(DataReceived)] == [b"from there"]


def test_without_one_it_may_not() -> None:
    end = kept()
    assert end.receive(ask(), TransportAddress("203.0.113.50", 1), 5.0) == []
    assert end.core.path == Path(OURS, THEIRS)


# --- a far end that is told nobody's address -------------------------------------------------------------------------


def test_the_first_who_answers_back_is_the_other_end() -> None:
    end = End(is_open=True, timeout_s=None)
    response, request = end.receive(ask(), now=1.0)
    assert parse(response.data).is_success and parse(request.data).is_request
    end.answer(1.1)
    assert end.core.path == Path(OURS, THEIRS)
    # Others are answered, and that is all.
    (response,) = end.receive(ask(number=9), THEIRS._replace(port=6001), 1.2)
    assert parse(response.data).is_success
    end.receive(b"data", THEIRS._replace(port=6001), 1.3)
    assert end.of(DataReceived) == []


def test_of_two_who_ask_at_once_one_is_the_other_end() -> None:
    """Also while it is lost: nothing is signed, and whoever comes then is nobody."""
    end, stranger = End(is_open=True, timeout_s=None, keepalive_s=1.0), THEIRS._replace(port=6001)
    end.receive(ask(), now=1.0)
    end.receive(ask(number=9), stranger, 1.0)
    for (_, request), source in zip(end.requests(), (THEIRS, stranger), strict=True):
        end.receive(parse(request.data).success((XOR_MAPPED_ADDRESS, OURS)).encode(), source, 1.1)
        end.receive(source.port.to_bytes(2, "big"), source, 1.2)
    assert end.core.path == Path(OURS, THEIRS)
    assert [event.data for event in end.of(DataReceived)] == [(6000).to_bytes(2, "big")]
    end.run(20.0)
    assert end.core.is_lost
    (response,) = end.receive(ask(number=10), stranger._replace(port=6002), 20.0)
    assert parse(response.data).is_success


def test_a_forged_source_is_sent_one_request_beside_the_answer() -> None:
    end = End(is_open=True, timeout_s=None)
    end.receive(ask(), now=1.0)
    end.run(600.0)
    assert [each.destination for _, each in end.sent] == [THEIRS, THEIRS]
    assert end.core._ways == {}


def test_nothing_is_asked_from_a_socket_that_has_gone_but_for_the_path() -> None:
    """That one is lost as its requests say, and is the other end's until then."""
    other_base = OURS._replace(host="192.0.2.2")
    end = End(THEIRS, keepalive_s=1.0)
    end.core.follow({OURS, other_base}, 0.0)
    end.core.punch(other_base, THEIRS._replace(port=6001), 0.0)
    with pytest.raises(ValueError, match="no address of another host"):
        end.core.punch(OURS, other_base, 0.0)
    end.run(0.05)
    path = Path(OURS, THEIRS)
    end.receive(parse(end.requests()[0][1].data).success((XOR_MAPPED_ADDRESS, OURS)).encode(), now=0.06)
    assert end.core.path == path
    end.core.follow({other_base._replace(port=1)}, 0.1)
    end.drain(0.1)
    assert list(end.core._ways) == [path]
    end.core.handle_error(OURS, THEIRS, errno.EADDRNOTAVAIL, 1.0)
    end.run(10.0)
    assert [event.reason for event in end.of(Lost)] == ["Cannot assign requested address"]


# --- two ends, and what is between them ------------------------------------------------------------------------------


class Two:
    """A and B behind middleboxes; each is told where the other is seen.

    Args:
        boxes: by kind; or made already.
        late_s: so much later B begins.
        options: of both.
    """

    def __init__(self, *boxes: str | Middlebox, late_s: float = 0.0, seed: int = 1, **options: Any) -> None:
        self.network = Network.seeded(seed, icmp_errors=True)
        self.late_s = late_s
        made = [
            box_of_kind(box, [f"20.0.{number}.1"], Random(seed + number)) if isinstance(box, str) else box
            for number, box in enumerate(boxes)
        ]
        self.mapped = [self._seen(box, base) for box, base in zip(made, (A, B), strict=True)]
        self.peers = []
        for name, box, base in zip("ab", made, (A, B), strict=True):
            nat = self.network.add_nat(f"nat {name}", box)
            node = self.network.add_node(name, [base.host], nat, latency_s=0.01)
            core = Puncher(PunchOptions(**options), Random(ord(name)))
            self.peers.append(Peer(name, core, node))
        self.pair = SessionPair(self.network, *self.peers)

    def _seen(self, box: Middlebox, base: TransportAddress) -> TransportAddress:
        found = box.outbound(base, SERVER, 0.0)
        assert found is not None
        return found

    def meet(self, seconds: float = 30.0) -> bool:
        """Whether both were answered before they gave up."""
        ends = list(zip(self.peers, (A, B), (self.mapped[1], self.mapped[0]), strict=True))
        for number, (peer, base, remote) in enumerate(ends):
            if number:
                self.pair.run(seconds=self.late_s)
            peer.core.start({base}, self.pair.now)
            peer.core.punch(base, remote, self.pair.now)
        return self.pair.run(lambda: all(peer.core.path is not None for peer in self.peers), seconds=seconds)


KINDS = [*FIREWALL_KINDS, *NAT_KINDS]


def behaviour(kind: str) -> tuple[Mapping, Filtering]:
    box = box_of_kind(kind, ["20.0.0.1"], Random(1))
    if isinstance(box, FirewallModel):
        return Mapping.NONE, Filtering.EIF if box.is_open else box.filtering
    return box.mapping, box.filtering


@pytest.mark.parametrize("a", KINDS)
def test_with_a_key_whoever_can_meet_does(a: str) -> None:
    """``nat/theory.py``, both ways round."""
    for b in KINDS:
        two = Two(a, b, key=KEY, timeout_s=5.0)
        assert two.meet() is can_meet(behaviour(a), behaviour(b)), f"{a} and {b}\n{two.pair.trace(last=40)}"


@pytest.mark.parametrize("a", KINDS)
def test_without_one_those_whose_addresses_are_known(a: str) -> None:
    known = (Mapping.EIM, Mapping.NONE)
    for b in KINDS:
        two = Two(a, b, timeout_s=5.0)
        is_known = behaviour(a)[0] in known and behaviour(b)[0] in known
        assert two.meet() is is_known, f"{a} and {b}\n{two.pair.trace(last=40)}"


@pytest.mark.parametrize("late_s", [0.005, 0.5, 1.9])
def test_the_early_packet_trap_is_not_sprung_within_the_lead(late_s: float) -> None:
    trap = "port-restricted-naive"
    assert Two(trap, trap, late_s=late_s, lead_s=2.0).meet()


def test_behind_it_it_is() -> None:
    """What the lead is for; and why the address is not to be told to one end long before the other."""
    trap = "port-restricted-naive"
    assert not Two(trap, trap, late_s=0.5, lead_s=0.01).meet()
    assert Two("port-restricted", "port-restricted", late_s=0.5, lead_s=0.01).meet()


@pytest.mark.parametrize("late_s", [1.0, 5.0, 9.0])
def test_one_may_be_late(late_s: float) -> None:
    assert Two("port-restricted", "full-cone", late_s=late_s).meet()


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_of_all_packets_may_be_lost(seed: int) -> None:
    two = Two("port-restricted", "addr-restricted", seed=seed)
    for peer in two.peers:
        peer.node.link.up.loss = peer.node.link.down.loss = 0.2
    assert two.meet()
    # Whoever was first stays until the other has been answered.
    for peer in two.peers:
        assert two.pair.run(lambda peer=peer: any(isinstance(e, Settled) for e in peer.events), seconds=30.0)  # type: ignore[misc]


def test_a_way_that_breaks_is_told_and_taken_again() -> None:
    two = Two("port-restricted", "open", keepalive_s=8.0)
    assert two.meet()
    first, second = two.peers
    two.pair.run(seconds=60.0)
    assert not any(isinstance(event, Lost) for peer in two.peers for event in peer.events)
    second.node.link.cut()
    two.pair.run(seconds=20.0)
    assert sum(isinstance(event, Lost) for event in first.events) == 1
    second.node.link.restore()
    assert two.pair.run(lambda: not first.core.is_lost, seconds=20.0)
