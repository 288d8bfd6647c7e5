"""What is asked of STUN servers, when, and what counts as an answer."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.core.pacing import TokenBucket
from iceagent.gather.stun_queries import MAX_QUERIES, MappedAddress, QueryFailed, StunQueries
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from relay.stun import (
    MAPPED_ADDRESS,
    REALM,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    MessageClass,
    Method,
    build,
    parse,
)

BASE = TransportAddress("192.0.2.1", 1000)
SERVER = TransportAddress("198.51.100.1", 3478)
OTHER = TransportAddress("198.51.100.2", 3478)
MAPPED = TransportAddress("203.0.113.7", 4000)
# As MAPPED-ADDRESS has it.
V4_ADDRESS = struct.pack("!BBH4B", 0, 1, MAPPED.port, 203, 0, 113, 7)
STEPS = 2000


class Client:
    """A core and its clock; keeps what comes out."""

    def __init__(
        self,
        *,
        burst: int = 5,
        ta_s: float = 0.05,
        rto_s: float = 0.5,
        ceiling: TokenBucket | None = None,
        **more: Any,
    ) -> None:
        self.core = StunQueries(Random(1), ta_s=ta_s, burst=burst, rto_s=rto_s, ceiling=ceiling, **more)
        self.now = 100.0
        self.sent: list[tuple[float, Transmit]] = []
        self.events: list[Event] = []

    def drain(self) -> None:
        while (transmit := self.core.poll_transmit()) is not None:
            self.sent.append((self.now - 100, transmit))
        while (event := self.core.poll_event()) is not None:
            self.events.append(event)

    def ask(self, base: TransportAddress = BASE, server: TransportAddress = SERVER) -> None:
        self.core.ask(base, server, self.now)
        self.drain()

    def run(self, seconds: float) -> None:
        """Let time pass, one deadline after the other."""
        end = self.now + seconds
        for _ in range(STEPS):
            deadline = self.core.poll_timeout()
            if deadline is None or deadline > end:
                self.now = end
                return
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            self.drain()
            after = self.core.poll_timeout()
            assert after is None or after > self.now, "it would spin"
        raise AssertionError(f"{STEPS} deadlines within {seconds} s")

    def receive(self, data: bytes, source: TransportAddress = SERVER, base: TransportAddress = BASE) -> None:
        self.core.handle_datagram(Datagram(base, source, data), self.now)
        self.drain()

    def answer(self, mapped: TransportAddress = MAPPED, source: TransportAddress = SERVER, index: int = -1) -> None:
        """The server's answer to one of the requests, the last if not said."""
        self.receive(parse(self.sent[index][1].data).success((XOR_MAPPED_ADDRESS, mapped)).encode(), source)

    @property
    def times(self) -> list[float]:
        """When requests left."""
        return [round(at, 4) for at, _ in self.sent]

    @property
    def reasons(self) -> list[str]:
        """Why packets were dropped and queries failed, in order."""
        return [event.reason for event in self.events if isinstance(event, (PacketDropped, QueryFailed))]


def mapped(
    address: TransportAddress = MAPPED, *, rtt_s: float | None = 0.02, is_refresh: bool = False
) -> MappedAddress:
    return MappedAddress(base=BASE, server=SERVER, mapped=address, rtt_s=rtt_s, is_refresh=is_refresh)


def servers(count: int) -> list[TransportAddress]:
    return [TransportAddress("198.51.100.1", 1 + index) for index in range(count)]


class TestSchedule:
    def test_a_request_and_its_answer(self) -> None:
        client = Client()
        client.ask()
        ((_, transmit),) = client.sent
        request = parse(transmit.data)
        assert (transmit.base, transmit.destination) == (BASE, SERVER)
        assert (request.method, request.is_request, len(transmit.data)) == (Method.BINDING, True, 20)
        client.run(0.02)
        client.answer()
        assert client.events == [mapped(rtt_s=pytest.approx(0.02))]  # type: ignore[arg-type]  # compares like a float
        assert client.core.pending == 0

    def test_an_unanswered_one_has_failed_after_five_seconds_and_goes_on_for_39_5(self) -> None:
        """RFC 8489, 6.2.1; nobody waits for it any more, but an answer gives a candidate all the same."""
        client = Client()
        client.ask()
        client.run(4.99)
        assert client.events == [] and client.core.pending == 1
        client.run(0.02)
        failure = QueryFailed(base=BASE, server=SERVER, reason="no response")
        assert client.events == [failure] and client.core.pending == 0
        client.run(34.4)
        assert client.times == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
        client.answer()
        assert client.events == [failure, mapped(rtt_s=None)]

    def test_an_error_of_one_that_has_failed_is_not_told_again(self) -> None:
        client = Client()
        client.ask()
        client.run(6.0)
        client.receive(parse(client.sent[-1][1].data).error_response(400, "Bad Request").encode())
        assert client.events == [QueryFailed(base=BASE, server=SERVER, reason="no response")]

    def test_a_host_that_is_said_to_be_unreachable_is_asked_again(self) -> None:
        """An opener to the same address, that a peer signalled, dies on the way and causes that very error."""
        client = Client()
        client.ask()
        client.core.handle_error(BASE, SERVER, errno.EHOSTUNREACH, client.now)
        client.run(0.6)
        client.answer()
        assert client.events == [mapped(rtt_s=None)]

    def test_the_end_of_one_that_has_failed_is_told_once(self) -> None:
        client = Client()
        client.ask()
        client.run(40.0)
        assert client.events == [QueryFailed(base=BASE, server=SERVER, reason="no response")]
        assert client.core.poll_timeout() is None

    def test_one_that_has_failed_is_asked_at_once_when_ice_begins_anew(self) -> None:
        client = Client()
        client.ask()
        client.run(6.0)
        client.core.resume_refreshing(client.now)
        client.drain()
        assert client.times == [0, 0.5, 1.5, 3.5, 6.0] and client.core.pending == 1

    def test_a_lost_first_request_does_not_cost_500_ms(self) -> None:
        """Nor the two behind it: new transactions, each with a request of its own."""
        client = Client(early_s=(0.1, 0.2, 0.4))
        client.ask()
        client.run(0.45)
        assert client.times == [0, 0.1, 0.2, 0.4]
        assert len({transmit.data for _, transmit in client.sent}) == 4
        client.answer(index=1)
        assert client.events == [mapped(rtt_s=pytest.approx(0.35))]  # type: ignore[arg-type]
        client.answer(index=0)
        client.answer(index=3)
        assert client.reasons == ["response to no request of ours"] * 2
        client.run(14.0)
        assert len(client.sent) == 4

    def test_early_ones_wait_for_tokens_and_end_with_the_query(self) -> None:
        client = Client(early_s=(0.1, 0.2, 0.4), burst=1, ta_s=0.3)
        client.ask()
        client.run(0.45)
        assert client.times == [0, 0.3]
        client.core.handle_error(BASE, SERVER, errno.ECONNREFUSED, client.now)
        client.drain()
        assert client.reasons == ["Connection refused"]
        client.run(60.0)
        assert client.times == [0, 0.3] and client.core.poll_timeout() is None

    def test_who_waits_for_a_first_request_comes_before_early_ones(self) -> None:
        """``run`` asserts that no deadline lies in the past meanwhile."""
        client = Client(early_s=(0.1,), burst=1, ta_s=0.3, rto_s=5.0)
        for server in servers(3):
            client.ask(server=server)
        client.run(1.3)
        assert client.times == [0, 0.3, 0.6, 0.9, 1.2]
        assert [transmit.destination.port for _, transmit in client.sent] == [1, 2, 3, 1, 2]

    def test_an_early_one_that_is_lost_is_not_the_end(self) -> None:
        client = Client(early_s=(0.1,))
        client.ask()
        client.run(39.4)
        assert client.times == [0, 0.1, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
        client.answer(index=0)
        assert client.events[1:] == [mapped(rtt_s=None)]

    def test_where_four_have_to_be_enough(self) -> None:
        """Within five seconds, for whoever waits for the verdict."""
        client = Client(rc=4, rm=3)
        client.ask()
        client.run(4.99)
        assert client.times == [0, 0.5, 1.5, 3.5]
        assert len({transmit.data for _, transmit in client.sent}) == 1
        assert client.events == [] and client.core.pending == 1
        client.run(0.02)
        assert client.events == [QueryFailed(base=BASE, server=SERVER, reason="no response")]
        assert client.core.pending == 0 and client.core.poll_timeout() is None

    def test_the_answer_to_a_repeated_request_says_nothing_about_the_round_trip(self) -> None:
        """Karn's rule."""
        client = Client()
        client.ask()
        client.run(0.6)
        client.answer()
        assert client.events == [mapped(rtt_s=None)]

    def test_the_same_is_asked_once(self) -> None:
        client = Client()
        client.ask()
        client.ask()
        assert client.times == [0]

    @pytest.mark.parametrize("burst", [1, 5])
    def test_pacing(self, burst: int) -> None:
        """RFC 8445, 14.2: one transaction per Ta; a burst of up to five may leave at once."""
        client = Client(burst=burst)
        for server in servers(8):
            client.ask(server=server)
        client.run(0.45)
        assert client.times == [0.0] * burst + [round(0.05 * (1 + index), 4) for index in range(8 - burst)]

    def test_the_ceiling_of_the_process_counts_too(self) -> None:
        """RFC 8445, 14.2: all transactions of all agents together; what others take is not there for us."""
        ceiling = TokenBucket(rate=10, capacity=3)
        ceiling.take(100.0)
        client = Client(ceiling=ceiling)
        for server in servers(5):
            client.ask(server=server)
        client.run(0.45)
        assert client.times == [0.0, 0.0, 0.1, 0.2, 0.3]
        assert ceiling.tokens(client.now) == pytest.approx(1.5, abs=0.01)

    def test_two_askers_share_the_ceiling(self) -> None:
        ceiling = TokenBucket(rate=200, capacity=1)
        clients = [Client(burst=1, ta_s=0.005, ceiling=ceiling) for _ in range(2)]
        for client in clients:
            for server in servers(3):
                client.ask(server=server)
        for _ in range(STEPS):
            deadlines = [at for client in clients if (at := client.core.poll_timeout()) is not None]
            if min(deadlines) > 100.1:
                break
            for client in clients:
                client.now = min(deadlines)
                client.core.handle_timeout(client.now)
                client.drain()
        times = sorted(at for client in clients for at in client.times)
        assert len(times) == 6
        assert all(after - before >= 0.005 - 1e-6 for before, after in pairwise(times))

    def test_the_rto_grows_with_what_waits(self) -> None:
        """RFC 8445, 14.3: RTO = MAX (500 ms, Ta * number of candidates to be gathered)."""
        client = Client()
        for server in servers(35):
            client.ask(server=server)
        client.run(10)
        sixth = [at for at, transmit in client.sent if transmit.destination == servers(35)[5]]
        first = [at for at, transmit in client.sent if transmit.destination == servers(35)[0]]
        assert first[1] - first[0] == pytest.approx(0.5)
        assert sixth[1] - sixth[0] == pytest.approx(0.05 * 30)

    def test_after_a_long_pause_one_request_is_sent_for_all_that_were_missed(self) -> None:
        client = Client()
        client.ask()
        client.now += 3.0
        client.core.handle_timeout(client.now)
        client.drain()
        assert client.times == [0, 3.0]

    def test_an_early_call_is_harmless(self) -> None:
        client = Client()
        client.ask()
        deadline = client.core.poll_timeout()
        for _ in range(3):
            client.core.handle_timeout(client.now + 0.1)
            client.drain()
        assert client.times == [0] and client.core.poll_timeout() == deadline


class TestNetworkErrors:
    def test_an_icmp_error_fails_at_once(self) -> None:
        client = Client()
        client.ask()
        client.ask(server=OTHER)
        client.core.handle_error(BASE, SERVER, errno.ECONNREFUSED, client.now)
        client.drain()
        assert client.events == [QueryFailed(base=BASE, server=SERVER, reason="Connection refused")]
        assert client.core.pending == 1
        client.run(4.0)
        assert [transmit.destination for _, transmit in client.sent] == [SERVER, OTHER, OTHER, OTHER, OTHER]

    def test_it_fails_once(self) -> None:
        client = Client()
        client.ask()
        for _ in range(3):
            client.core.handle_error(BASE, SERVER, errno.ECONNREFUSED, client.now)
            client.drain()
        client.run(60)
        assert client.reasons == ["Connection refused"]

    def test_one_for_a_query_that_waits_or_for_none_changes_nothing(self) -> None:
        client = Client(burst=1)
        client.ask()
        client.ask(server=OTHER)
        client.core.handle_error(BASE, OTHER, errno.ECONNREFUSED, client.now)
        client.core.handle_error(OTHER, BASE, errno.ECONNREFUSED, client.now)
        client.run(0.1)
        assert [transmit.destination for _, transmit in client.sent] == [SERVER, OTHER]

    def test_a_refresh_that_meets_one_is_tried_again_15_s_later(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.run(15)
        client.core.handle_error(BASE, SERVER, errno.ENETUNREACH, client.now)
        client.run(15)
        assert client.times == [0, 15, 30]
        assert client.reasons == []


class TestRefreshing:
    """RFC 8445, 5.1.1.4: candidates are kept alive until ICE concludes; 11: not more often than every 15 s."""

    def test_every_15_seconds_until_stopped(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        for _ in range(4):
            client.run(15)
            client.answer()
        assert client.times == [0, 15, 30, 45, 60]
        assert client.events[1:] == [mapped(rtt_s=0.0, is_refresh=True)] * 4
        client.core.stop_refreshing(client.now)
        assert client.core.poll_timeout() is None
        client.run(3600)
        assert len(client.sent) == 5

    def test_every_refresh_is_a_transaction_of_its_own(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.run(15)
        assert len({transmit.data for _, transmit in client.sent}) == 2

    def test_a_changed_mapping_is_told(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.run(15)
        client.answer(OTHER)
        assert client.events == [mapped(rtt_s=0.0), mapped(OTHER, rtt_s=0.0, is_refresh=True)]

    def test_a_lost_one_is_no_failure(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.run(15 + 5 + 15)
        assert client.reasons == []
        assert client.times == [0, 15, 15.5, 16.5, 18.5, 35]
        client.answer()
        assert client.events[-1] == mapped(rtt_s=0.0, is_refresh=True)

    def test_one_that_waits_for_its_turn_when_refreshing_stops_does_not_leave(self) -> None:
        client = Client(burst=1)
        for server in (SERVER, OTHER):
            client.ask(server=server)
        client.run(0.1)
        for index, server in enumerate((SERVER, OTHER)):
            client.answer(source=server, index=index)
        # Both are due, and one may leave.
        client.run(15)
        assert client.times[2:] == [15.1]
        client.core.stop_refreshing(client.now)
        client.run(60)
        # The one that has left is a transaction like any other.
        assert {transmit.destination for _, transmit in client.sent[2:]} == {SERVER}

    def test_beginning_again_asks_at_once_and_goes_on(self) -> None:
        """RFC 8445, 9 flushes all state: the bindings may be gone, and new ones are to be kept."""
        client = Client()
        client.ask()
        client.answer()
        client.core.stop_refreshing(client.now)
        client.run(100)
        client.core.resume_refreshing(client.now)
        client.core.resume_refreshing(client.now)
        client.drain()
        assert client.times == [0, 100]
        client.answer(OTHER)
        assert client.events[1:] == [mapped(OTHER, rtt_s=0.0, is_refresh=True)]
        client.run(15)
        assert client.times == [0, 100, 115]

    def test_beginning_again_asks_nobody_twice(self) -> None:
        """One has not answered yet, one waits for its turn, one is being refreshed."""
        client = Client(burst=1, ta_s=1.0)
        client.ask()
        client.answer()
        client.run(15)
        client.ask(server=OTHER)
        client.ask(server=servers(1)[0])
        client.core.resume_refreshing(client.now)
        client.run(3)
        identities = [(transmit.destination, transmit.data[8:20]) for _, transmit in client.sent[1:]]
        assert sorted(Counter(destination for destination, _ in set(identities)).values()) == [1, 1, 1]

    def test_who_was_not_asked_yet_is_asked_all_the_same(self) -> None:
        """An interface that comes up while the agent is connected gets its candidates."""
        client = Client()
        client.core.stop_refreshing(client.now)
        client.ask()
        client.answer()
        assert client.events == [mapped(rtt_s=0.0)]
        assert client.core.poll_timeout() is None


class TestAnswers:
    def test_mapped_address_of_servers_of_rfc_3489(self) -> None:
        client = Client()
        client.ask()
        client.receive(parse(client.sent[0][1].data).success((MAPPED_ADDRESS, MAPPED)).encode())
        assert client.events == [mapped(rtt_s=0.0)]

    @pytest.mark.parametrize("code", [0x0002, 0x0004, 0x0005, 0x0007, 0x000B])
    def test_what_else_such_servers_send_is_no_obstacle(self, code: int) -> None:
        """RFC 3489, 11.2: mandatory there (SOURCE-ADDRESS, CHANGED-ADDRESS), unknown to RFC 8489, 18.3.1."""
        client = Client()
        client.ask()
        client.receive(self.answered(client, (0x0001, V4_ADDRESS), (code, V4_ADDRESS), (0x8020, V4_ADDRESS)))
        assert client.events == [mapped(rtt_s=0.0)]

    def test_all_of_an_rfc_3489_answer(self) -> None:
        client = Client()
        client.ask()
        client.receive(self.answered(client, (0x0001, V4_ADDRESS), (0x0004, V4_ADDRESS), (0x0005, V4_ADDRESS)))
        assert client.events == [mapped(rtt_s=0.0)]

    @pytest.mark.parametrize("address", [0x0001, 0x0020])
    def test_other_unknown_attributes_and_such_ones_of_a_modern_server_are(self, address: int) -> None:
        """RFC 8489, 6.3.3."""
        client = Client()
        client.ask()
        strange = 0x0005 if address == 0x0020 else 0x7FFE
        client.receive(self.answered(client, (address, V4_ADDRESS), (strange, V4_ADDRESS)))
        assert client.reasons == ["the answer has no usable mapped address"]

    def answered(self, client: Client, *parts: tuple[int, bytes]) -> bytes:
        return raw_message(MessageClass.SUCCESS, parse(client.sent[0][1].data).transaction_id, list(parts))

    def test_xor_mapped_address_is_preferred(self) -> None:
        """A NAT with an "application layer gateway" rewrites the plain one."""
        client = Client()
        client.ask()
        both = ((MAPPED_ADDRESS, BASE), (XOR_MAPPED_ADDRESS, MAPPED))
        client.receive(parse(client.sent[0][1].data).success(*both).encode())
        assert client.events == [mapped(rtt_s=0.0)]

    @pytest.mark.parametrize(
        "useless",
        [
            (),
            ((SOFTWARE, "x"),),
            ((XOR_MAPPED_ADDRESS, MAPPED._replace(port=0)),),
            ((XOR_MAPPED_ADDRESS, TransportAddress("0.0.0.0", 1)),),
            ((XOR_MAPPED_ADDRESS, TransportAddress("::", 1)),),
            # RFC 8489, 6.3.3: with an unknown comprehension-required attribute, the transaction has failed.
            ((XOR_MAPPED_ADDRESS, MAPPED), (0x7FFE, b"")),
        ],
        ids=["empty", "no address", "port 0", "unspecified", "unspecified IPv6", "unknown attribute"],
    )
    def test_a_success_without_a_usable_address(self, useless: tuple[tuple[object, object], ...]) -> None:
        client = Client()
        client.ask()
        client.receive(parse(client.sent[0][1].data).success(*useless).encode())  # type: ignore[arg-type]
        assert client.reasons == ["the answer has no usable mapped address"]
        assert client.core.pending == 0

    @pytest.mark.parametrize(("code", "text"), [(420, "Unknown Attribute"), (401, "Unauthenticated"), (500, "")])
    def test_an_error_response(self, code: int, text: str) -> None:
        client = Client()
        client.ask()
        request = parse(client.sent[0][1].data)
        client.receive(request.error_response(code, text, (UNKNOWN_ATTRIBUTES, [0x7FFE]), (REALM, "x")).encode())
        assert client.reasons == [f"the server answered {code} {text}"]
        client.run(60)
        assert client.times == [0] and len(client.events) == 1

    def test_a_refresh_that_is_refused_is_tried_again(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.run(15)
        client.receive(parse(client.sent[1][1].data).error_response(500, "Server Error").encode())
        client.run(15)
        assert client.times == [0, 15, 30] and client.reasons == []


class TestDroppedPackets:
    def drops(self, data: bytes, reason: str, **where: TransportAddress) -> None:
        """It is dropped, told and counted, and the answer is still taken."""
        client = Client()
        client.ask()
        client.receive(data, **where)
        assert client.reasons == [reason]
        assert client.core.counters == {f"dropped: {reason}": 1}
        client.answer()
        assert client.events[1:] == [mapped(rtt_s=0.0)]

    def sent(self) -> bytes:
        client = Client()
        client.ask()
        return client.sent[0][1].data

    @pytest.mark.parametrize("data", [b"", b"\x01\x01\x00\x00", b"junk" * 10, bytes(20)])
    def test_no_stun(self, data: bytes) -> None:
        self.drops(data, "malformed STUN")

    @pytest.mark.parametrize("code", [MessageClass.REQUEST, MessageClass.INDICATION])
    def test_what_is_no_response_although_it_has_our_id(self, code: MessageClass) -> None:
        """A mirror sends our own request back; it answers nothing."""
        data = build(Method.BINDING, code, parse(self.sent()).transaction_id).encode()
        self.drops(data, "response to no request of ours")

    def test_another_transaction(self) -> None:
        strange = build(Method.BINDING, MessageClass.SUCCESS, bytes(12), (XOR_MAPPED_ADDRESS, OTHER)).encode()
        self.drops(strange, "response to no request of ours")

    def test_another_source(self) -> None:
        """Whoever sees a request on its way may forge an answer; from elsewhere it is not taken."""
        forged = parse(self.sent()).success((XOR_MAPPED_ADDRESS, OTHER)).encode()
        self.drops(forged, "response to no request of ours", source=OTHER)
        self.drops(forged, "response to no request of ours", source=SERVER._replace(port=3479))

    def test_another_base(self) -> None:
        forged = parse(self.sent()).success((XOR_MAPPED_ADDRESS, OTHER)).encode()
        self.drops(forged, "response to no request of ours", base=BASE._replace(port=1001))

    def test_a_duplicate(self) -> None:
        client = Client()
        client.ask()
        client.answer()
        client.answer()
        assert client.events[:1] == [mapped(rtt_s=0.0)] and client.reasons == ["response to no request of ours"]


class TestForgetting:
    def test_nothing_more_is_asked_from_a_base_that_is_gone(self) -> None:
        client = Client(burst=1)
        client.ask()
        client.ask(server=OTHER)
        client.core.forget_base(BASE, client.now)
        assert client.core.pending == 0
        client.run(60)
        assert client.times == [0] and client.events == []
        client.answer()
        assert client.reasons == ["response to no request of ours"]

    def test_other_bases_stay(self) -> None:
        client = Client()
        second = BASE._replace(port=1001)
        client.ask()
        client.ask(second)
        client.core.forget_base(BASE, client.now)
        assert not client.core.is_server(BASE, SERVER) and client.core.is_server(second, SERVER)
        client.run(1)
        assert [transmit.base for _, transmit in client.sent] == [BASE, second, second]

    def test_a_base_that_comes_back_asks_anew(self) -> None:
        client = Client()
        client.ask()
        client.core.forget_base(BASE, client.now)
        client.ask()
        assert len({transmit.data for _, transmit in client.sent}) == 2
        client.answer()
        assert client.events == [mapped(rtt_s=0.0)]

    def test_an_interface_that_comes_and_goes_fills_nothing(self) -> None:
        client = Client(ta_s=0.005)
        for _ in range(MAX_QUERIES + 100):
            client.ask()
            client.core.forget_base(BASE, client.now)
            client.run(0.01)
        assert len(client.sent) == MAX_QUERIES + 100 and client.core.poll_timeout() is None


def test_there_is_a_bound_and_who_is_beyond_it_is_told() -> None:
    client = Client()
    for server in servers(MAX_QUERIES + 2):
        client.ask(server=server)
    assert client.core.pending == MAX_QUERIES
    assert client.reasons == [f"{MAX_QUERIES} queries are open already"] * 2
    client.core.forget_base(BASE, client.now)
    client.ask()
    assert client.core.pending == 1


_addresses = st.sampled_from([BASE, SERVER, OTHER])


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), _addresses, _addresses),
            st.tuples(st.just("forget"), _addresses),
            st.tuples(st.just("error"), _addresses, _addresses),
            st.tuples(st.just("stop")),
            st.tuples(st.just("pass"), st.floats(0, 40)),
            st.tuples(st.just("answer"), st.integers(0, 20), st.sampled_from(["success", "error", "empty"])),
        ),
        max_size=40,
    ),
    burst=st.integers(1, 5),
)
@settings(max_examples=200)
def test_it_never_spins_and_every_query_ends(steps: list[tuple[object, ...]], burst: int) -> None:
    """``run`` asserts after every deadline that the next one lies ahead."""
    client = Client(burst=burst)
    for step in steps:
        perform(client, *step)
        client.drain()
    client.core.stop_refreshing(client.now)
    client.run(60)
    assert client.core.pending == 0
    assert client.core.poll_timeout() is None


def perform(client: Client, kind: object, *values: object) -> None:
    match kind, *values:
        case "ask", TransportAddress() as base, TransportAddress() as server:
            client.ask(base, server)
        case "forget", TransportAddress() as base:
            client.core.forget_base(base, client.now)
        case "error", TransportAddress() as base, TransportAddress() as server:
            client.core.handle_error(base, server, errno.ECONNREFUSED, client.now)
        case "stop", *_:
            client.core.stop_refreshing(client.now)
        case "pass", float() as seconds:
            client.run(seconds)
        case "answer", int() as index, str() as how if client.sent:
            transmit = client.sent[index % len(client.sent)][1]
            request = parse(transmit.data)
            data = {
                "success": request.success((XOR_MAPPED_ADDRESS, MAPPED)),
                "error": request.error_response(400, "Bad Request"),
                "empty": request.success(),
            }[how].encode()
            client.receive(data, transmit.destination, transmit.base)


def raw_message(code: MessageClass, identity: bytes, parts: list[tuple[int, bytes]]) -> bytes:
    """Any bytes in any attribute; what is wrong is in them, and not in the frame."""
    written = [struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4) for kind, value in parts]
    header = build(Method.BINDING, code, identity).encode(fingerprint=False)
    return header[:2] + struct.pack("!H", sum(map(len, written))) + header[4:] + b"".join(written)


_kinds = st.sampled_from([0x0001, 0x0009, 0x0020, 0x8022, 0x8028]) | st.integers(0, 0xFFFF)
_parts = st.lists(st.tuples(_kinds, st.binary(max_size=40)), max_size=6)


@given(data=st.binary(max_size=80), code=st.sampled_from(MessageClass), parts=_parts, is_own=st.booleans())
@settings(max_examples=500)
def test_no_datagram_raises(data: bytes, code: MessageClass, parts: list[tuple[int, bytes]], is_own: bool) -> None:
    client = Client()
    client.ask()
    client.receive(data)
    identity = parse(client.sent[0][1].data).transaction_id if is_own else bytes(12)
    client.receive(raw_message(code, identity, parts))
    assert 1 <= len(client.events) <= 2
    client.run(20)
