"""What a base asks STUN servers while a path is in doubt, and what their answers mean."""

from __future__ import annotations

from iceagent.events import Cause
from iceagent.gather.diagnosis import Diagnosed, of_relay
from iceagent.gather.stun_queries import MappedAddress
from iceagent.net.address import TransportAddress
from relay.stun import XOR_MAPPED_ADDRESS, parse
from relay.turn import AllocationConfirmed, AllocationLost, AllocationMoved, ServerSilent
from tests.unit.gather.test_stun_queries import BASE, MAPPED, OTHER, SERVER, Client, mapped

OTHER_BASE = TransportAddress("192.0.2.1", 1001)
# The same NAT with another port, and another NAT.
MOVED = MAPPED._replace(port=4001)
ELSEWHERE = TransportAddress("203.0.113.99", 4000)


def asked(*servers: TransportAddress) -> Client:
    """A client that these servers have seen, one after the other; ICE has completed."""
    client = Client()
    for server in servers or (SERVER,):
        client.ask(server=server)
        client.run(0.02)
        client.answer(source=server)
    client.core.stop_refreshing(client.now)
    client.sent.clear()
    client.events.clear()
    client.now = 100.0
    return client


def question(client: Client, base: TransportAddress = BASE) -> bool:
    was_asked = client.core.question(base, client.now)
    client.drain()
    return was_asked


def causes(client: Client) -> list[Cause]:
    return [event.cause for event in client.events if isinstance(event, Diagnosed)]


def destinations(client: Client) -> list[TransportAddress]:
    return [transmit.destination for _, transmit in client.sent]


def test_the_same_mapping_means_the_path() -> None:
    client = asked()
    assert question(client)
    client.run(0.03)
    client.answer()
    client.run(5.0)
    reason = f"the STUN server {SERVER} sees us at {MAPPED} as before"
    assert client.events == [
        Diagnosed(base=BASE, cause=Cause.PATH, reason=reason),
        mapped(rtt_s=client.events[1].rtt_s, is_refresh=True),  # type: ignore[attr-defined]
    ]
    # Also after ICE has completed: no refresh follows.
    assert client.times == [0.0]


def test_another_mapping_means_the_nat_and_everybody_is_asked_anew() -> None:
    client = asked(OTHER, SERVER)
    question(client)
    assert destinations(client) == [SERVER]
    client.answer(ELSEWHERE)
    assert causes(client) == [Cause.NAT]
    assert [e.mapped for e in client.events if isinstance(e, MappedAddress)] == [ELSEWHERE]
    assert destinations(client) == [SERVER, OTHER]
    client.answer(ELSEWHERE, OTHER)
    client.run(60.0)
    assert destinations(client) == [SERVER, OTHER] and causes(client) == [Cause.NAT]


def test_silence_means_the_uplink_after_a_second_and_two_requests() -> None:
    client = asked()
    question(client)
    client.run(0.999)
    assert client.events == [] and client.times == [0.0, 0.3]
    client.run(0.002)
    reason = "no STUN server has answered for 1 s"
    assert client.events == [Diagnosed(base=BASE, cause=Cause.UPLINK, reason=reason)]
    client.run(60.0)
    assert client.times == [0.0, 0.3] and len(client.events) == 1
    assert client.core.poll_timeout() is None


def test_the_second_request_goes_to_another_server_and_its_answer_counts() -> None:
    """One server may be dead by itself."""
    client = asked(OTHER, SERVER)
    question(client)
    client.run(0.4)
    assert destinations(client) == [SERVER, OTHER]
    client.answer(source=OTHER)
    client.run(5.0)
    assert causes(client) == [Cause.PATH]


def test_each_server_is_compared_with_what_it_saw_itself() -> None:
    """A symmetric NAT has another mapping for each."""
    client = Client()
    for server, address in ((OTHER, MOVED), (SERVER, MAPPED)):
        client.ask(server=server)
        client.answer(address, server)
        client.run(0.01)
    client.events.clear()
    client.sent.clear()
    question(client)
    client.run(0.4)
    assert destinations(client) == [SERVER, OTHER]
    client.answer(MOVED, OTHER)
    assert causes(client) == [Cause.PATH]


def test_one_question_has_one_answer() -> None:
    client = asked(OTHER, SERVER)
    question(client)
    client.run(0.4)
    client.answer(index=0)
    client.answer(ELSEWHERE, OTHER, index=1)
    assert causes(client) == [Cause.PATH]
    # But the address is news all the same.
    assert [e.mapped for e in client.events if isinstance(e, MappedAddress)] == [MAPPED, ELSEWHERE]


def test_a_late_answer_is_no_second_one() -> None:
    client = asked()
    question(client)
    client.run(1.5)
    client.answer()
    assert causes(client) == [Cause.UPLINK]
    assert client.reasons == ["response to no request of ours"]


def test_at_most_one_in_two_seconds_for_each_base() -> None:
    client = asked()
    client.ask(OTHER_BASE)
    request = parse(client.sent[-1][1].data)
    client.receive(request.success((XOR_MAPPED_ADDRESS, MAPPED)).encode(), base=OTHER_BASE)
    assert question(client) and question(client, OTHER_BASE)
    for _ in range(19):
        client.run(0.1)
        assert not question(client) and not question(client, OTHER_BASE)
    client.run(0.11)
    assert question(client)


def test_without_a_server_that_has_answered_nothing_is_asked() -> None:
    client = Client()
    assert not question(client)
    client.ask()
    assert not question(client)
    client.run(2.0)
    assert causes(client) == []


def test_a_base_that_goes_has_no_answer() -> None:
    client = asked()
    question(client)
    client.core.forget_base(BASE, client.now)
    client.run(5.0)
    assert client.events == [] and client.times == [0.0]
    assert client.core.poll_timeout() is None


def test_an_error_response_ends_it_without_a_word() -> None:
    """Our network lives, and that is all: the server is not given up either."""
    client = asked()
    question(client)
    client.receive(parse(client.sent[-1][1].data).error_response(500, "Server Error").encode())
    client.run(1.9)
    assert client.events == []
    assert not question(client)
    client.run(0.2)
    assert question(client)
    client.answer()
    assert causes(client) == [Cause.PATH]


def test_a_mapping_that_ended_by_itself_is_not_blamed_on_the_nat() -> None:
    """A symmetric one has a mapping for the server alone, and nothing was sent there for a minute."""
    client = asked()
    client.run(60.0)
    question(client)
    client.answer(MOVED)
    assert causes(client) == []
    assert [e.mapped for e in client.events if isinstance(e, MappedAddress)] == [MOVED]


def test_another_host_is_news_at_any_time() -> None:
    client = asked()
    client.run(3600.0)
    question(client)
    client.answer(ELSEWHERE)
    assert causes(client) == [Cause.NAT]


def test_another_port_is_news_where_the_mapping_is_one_for_all() -> None:
    """What data keeps alive would still be there."""
    client = asked(OTHER, SERVER)
    client.run(60.0)
    question(client)
    client.answer(MOVED)
    assert causes(client) == [Cause.NAT]


def test_a_question_does_not_wait_for_tokens_and_holds_up_nobody_for_long() -> None:
    client = Client(burst=1, ta_s=0.05)
    client.ask()
    client.answer()
    client.ask(server=OTHER)
    assert question(client)
    assert destinations(client) == [SERVER, SERVER]
    client.run(0.2)
    assert destinations(client) == [SERVER, SERVER, OTHER]


def test_whoever_is_late_tells_of_silence_at_once() -> None:
    """The process was held up: both times have passed."""
    client = asked()
    question(client)
    client.now += 30.0
    client.core.handle_timeout(client.now)
    client.drain()
    assert causes(client) == [Cause.UPLINK] and len(client.sent) == 1


def test_asking_again_leaves_no_refreshing_behind() -> None:
    client = asked(OTHER, SERVER)
    client.core.ask_again(client.now)
    client.drain()
    assert destinations(client) == [OTHER, SERVER]
    client.core.ask_again(client.now)
    client.drain()
    assert len(client.sent) == 2
    for server, index in ((OTHER, 0), (SERVER, 1)):
        client.answer(source=server, index=index)
    client.run(60.0)
    assert len(client.sent) == 2


def test_what_a_turn_server_says() -> None:
    def cause(event: AllocationConfirmed | AllocationMoved | AllocationLost | ServerSilent) -> Cause | None:
        found = of_relay(event, MAPPED, SERVER)
        assert found is None or (found.base == MAPPED and str(SERVER) in found.reason)
        return None if found is None else found.cause

    assert cause(AllocationConfirmed()) is Cause.PATH
    assert cause(AllocationMoved(mapped=None, rtt_s=None)) is Cause.NAT
    assert cause(AllocationLost(reason="437", is_unknown=True)) is Cause.NAT
    assert cause(AllocationLost(reason="403")) is None
    assert cause(ServerSilent()) is Cause.UPLINK
