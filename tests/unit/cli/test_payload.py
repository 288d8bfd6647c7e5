"""The pings of ``iceagent connect``: what is sent, what is answered, and what is counted."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.rendezvous.payload import MAX_REMEMBERED, MAX_RETURNED, Payload, PayloadCounts, Reaction

OURS, THEIRS = 0x0123456789ABCDEF, 0xFEDCBA9876543210


def counts(**differences: object) -> PayloadCounts:
    nothing: dict[str, object] = dict.fromkeys(PayloadCounts.__slots__, 0)
    return PayloadCounts(**{**nothing, "longest_gap_ms": None, **differences})  # type: ignore[arg-type]


def ms(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


def test_a_ping_on_the_wire() -> None:
    """CLI contract: magic, sender id, sequence, time."""
    sender = Payload(sender=OURS)
    sender.ping(1.0, connected=True)
    second = sender.ping(2.5, connected=True)
    assert second[:8] == b"iceping?"
    assert second[8:].hex(" ", 8) == "0123456789abcdef 0000000000000001 00000000002625a0"


def test_a_peer_of_ours_answers() -> None:
    """CLI contract: a peer of ours answers it."""
    we, they = Payload(sender=OURS), Payload(sender=THEIRS)
    reaction = they.handle_data(we.ping(10.0, connected=True), 10.02)
    assert reaction.reply is not None and reaction.seq is None
    assert we.handle_data(reaction.reply, 10.05) == Reaction(reply=None, seq=0, rtt_ms=ms(50.0))  # type: ignore[arg-type]
    assert we.counts(10.05) == counts(sent=1, received=1, longest_gap_ms=ms(50.0))
    assert they.counts(10.05) == counts(answered=1)


def test_a_foreign_peer_echoes_verbatim() -> None:
    """CLI contract: a foreign peer may echo it verbatim, and both count."""
    we = Payload(sender=OURS)
    ping = we.ping(0.0, connected=True)
    assert we.handle_data(ping, 0.25) == Reaction(seq=0, rtt_ms=ms(250.0))  # type: ignore[arg-type]
    assert we.counts(0.25).received == 1


def test_an_answer_counts_once() -> None:
    """Both an answer and a verbatim echo of the same ping, or a copy that the network made: duplicates."""
    we, they = Payload(sender=OURS), Payload(sender=THEIRS)
    ping = we.ping(0.0, connected=True)
    answer = they.handle_data(ping, 0.0).reply
    assert answer is not None
    we.handle_data(answer, 0.1)
    assert we.handle_data(ping, 0.2) == Reaction()
    assert we.handle_data(answer, 0.3) == Reaction()
    assert we.counts(0.3) == counts(sent=1, received=1, duplicated=2, longest_gap_ms=ms(100.0))


@pytest.mark.parametrize(("ours_echo", "theirs_echo"), list(product([False, True], repeat=2)))
def test_nothing_goes_round(ours_echo: bool, theirs_echo: bool) -> None:
    """CLI contract: never one of ours. A ping makes one answer, whoever echoes what."""
    we, they = Payload(sender=OURS, echo=ours_echo), Payload(sender=THEIRS, echo=theirs_echo)
    answer = they.handle_data(we.ping(0.0, connected=True), 0.0).reply
    assert answer is not None
    assert we.handle_data(answer, 0.1).reply is None
    # Their own answer comes back to them from a mirror.
    assert they.handle_data(answer, 0.1) == Reaction()
    assert (we.counts(0.1).returned, they.counts(0.1).returned) == (0, 0)


def test_every_other_datagram_is_returned_once() -> None:
    """CLI contract: --echo returns every other datagram, never twice."""
    echo = Payload(sender=OURS, echo=True)
    first = [echo.handle_data(data, 0.0).reply for data in (b"one", b"two", b"", b"iceping", b"one" * 400)]
    assert first == [b"one", b"two", b"", b"iceping", b"one" * 400]
    assert [echo.handle_data(data, 1.0).reply for data in (b"one", b"two", b"")] == [None, None, None]
    assert (echo.counts(1.0).returned, echo.counts(1.0).other) == (5, 3)


def test_two_echoing_ends_come_to_rest() -> None:
    """What went once through both is not sent again, so that no storm can arise."""
    one, other = Payload(sender=OURS, echo=True), Payload(sender=THEIRS, echo=True)
    ends, data, passes = [one, other], b"from somewhere", 0
    while (reply := ends[passes % 2].handle_data(data, 0.0).reply) is not None and passes < 10:
        data, passes = reply, passes + 1
    assert passes == 2


def test_without_echo_nothing_is_returned() -> None:
    quiet = Payload(sender=OURS)
    assert quiet.handle_data(b"one", 0.0) == Reaction()
    assert quiet.counts(0.0) == counts(other=1)


def test_what_is_remembered_of_returned_datagrams_is_bounded() -> None:
    echo = Payload(sender=OURS, echo=True)
    for number in range(MAX_RETURNED + 1):
        echo.handle_data(b"%d" % number, 0.0)
    assert echo.handle_data(b"1", 0.0).reply is None
    assert echo.handle_data(b"0", 0.0).reply == b"0"


def test_loss_is_of_datagrams_sent_while_connected() -> None:
    """CLI contract. An answer that may still come is no loss yet: 100 ms at least, three round trips."""
    we = Payload(sender=OURS)
    answered = we.ping(0.0, connected=True)
    we.handle_data(answered, 0.05)
    we.ping(1.0, connected=True)
    we.ping(2.0, connected=False)
    assert we.counts(1.1).lost == 0
    assert we.counts(1.2).lost == 1
    assert we.counts(9.0) == counts(sent=3, received=1, lost=1, longest_gap_ms=ms(8950.0))


def test_a_late_answer_is_no_loss_any_more() -> None:
    we = Payload(sender=OURS)
    ping = we.ping(0.0, connected=True)
    assert we.counts(5.0).lost == 1
    assert we.handle_data(ping, 6.0).seq == 0
    assert (we.counts(6.0).lost, we.counts(6.0).received) == (0, 1)


def test_patience() -> None:
    """A second before anything is known, then three round trips, between 100 ms and a second."""
    we = Payload(sender=OURS)
    assert (we.patience_s, we.rtt_ms) == (1.0, None)
    assert we.is_settled(0.0)
    ping = we.ping(0.0, connected=True)
    assert not we.is_settled(0.9)
    assert we.is_settled(1.0)
    we.handle_data(ping, 0.2)
    assert we.patience_s == pytest.approx(0.6)
    assert we.is_settled(0.2)
    for _ in range(100):
        we.handle_data(we.ping(1.0, connected=True), 1.0)
    assert we.patience_s == 0.1
    we.handle_data(we.ping(2.0, connected=True), 32.0)
    assert we.patience_s == 1.0


def test_the_longest_gap_is_between_answers() -> None:
    """Pings every second; 3 and 4 are lost: the service was away from the answer of 2 to that of 5."""
    we, they = Payload(sender=OURS), Payload(sender=THEIRS)
    for second in range(8):
        ping = we.ping(float(second), connected=True)
        # The peer's own pings get through all the time, but that is one direction only.
        we.handle_data(they.ping(float(second), connected=True), second + 0.5)
        if second not in (3, 4):
            we.handle_data(ping, second + 0.1)
    assert we.counts(7.2).longest_gap_ms == ms(3000.0)
    assert we.counts(7.2).lost == 2


def test_a_gap_that_only_the_end_ended() -> None:
    we = Payload(sender=OURS)
    we.handle_data(we.ping(0.0, connected=True), 0.1)
    we.ping(1.0, connected=True)
    assert we.counts(1.05).longest_gap_ms == ms(100.0)
    assert we.counts(11.1).longest_gap_ms == ms(11000.0)


def test_who_does_not_ping_measures_the_gap_between_datagrams() -> None:
    they, we = Payload(sender=THEIRS), Payload(sender=OURS)
    for second in (0.0, 1.0, 4.0, 4.5):
        we.handle_data(they.ping(second, connected=True), second)
    assert we.counts(5.0) == counts(answered=4, longest_gap_ms=ms(3000.0))
    assert we.quiet_s(5.0) == 0.5
    assert they.quiet_s(5.0) is None


def test_what_is_remembered_of_pings_is_bounded() -> None:
    """The oldest of too many open pings is given up as lost; its answer is then nobody's."""
    we = Payload(sender=OURS)
    first = we.ping(0.0, connected=True)
    for _ in range(MAX_REMEMBERED):
        we.ping(0.0, connected=True)
    assert we.counts(0.0).lost == 1
    assert we.handle_data(first, 0.1) == Reaction()
    assert we.counts(0.1).received == 0


def test_what_is_remembered_of_answers_is_bounded() -> None:
    we = Payload(sender=OURS)
    pings = [we.ping(0.0, connected=True) for _ in range(MAX_REMEMBERED)]
    pings.append(we.ping(0.0, connected=True))
    for ping in pings[1:]:
        we.handle_data(ping, 0.1)
    we.handle_data(we.ping(0.2, connected=True), 0.3)
    for ping in pings:
        we.handle_data(ping, 0.4)
    # The first was given up before, and the answer of the second was forgotten when the last came.
    assert we.counts(0.4).duplicated == MAX_REMEMBERED - 1


def test_a_forged_answer_counts_for_nothing() -> None:
    we = Payload(sender=OURS)
    we.ping(0.0, connected=True)
    other = Payload(sender=OURS)
    forged = [other.ping(0.0, connected=True) for _ in range(2)][1]
    assert we.handle_data(forged, 0.1) == Reaction()
    assert we.counts(0.1) == counts(sent=1)


def test_the_first_byte_is_neither_stun_nor_a_channel() -> None:
    """RFC 7983, 7: 0 to 3 is STUN, 64 to 79 a TURN channel."""
    first = Payload(sender=OURS).ping(0.0, connected=True)[0]
    assert first > 79


@given(st.lists(st.binary(max_size=40) | st.binary(min_size=25, max_size=25).map(lambda b: b"iceping" + b)))
def test_any_bytes_are_taken(datagrams: list[bytes]) -> None:
    """Whatever arrives, nothing is raised, and no reply is longer than what it answers."""
    echo = Payload(sender=OURS, echo=True)
    for data in datagrams:
        reply = echo.handle_data(data, 0.0).reply
        assert reply is None or len(reply) == len(data)
    total = echo.counts(0.0)
    assert total.answered + total.returned + total.other <= len(datagrams)


def test_pings_that_were_lost_on_the_way_leave_no_gap_at_the_end() -> None:
    """The last one was answered: what comes after that is the end, and no gap."""
    payload = Payload(sender=1)
    for number in range(10):
        data = payload.ping(number * 0.1, connected=True)
        if not 3 <= number <= 5:
            payload.handle_data(data.replace(b"?", b"!", 1), number * 0.1 + 0.02)
    counts = payload.counts(5.0)
    assert counts.lost == 3
    assert counts.longest_gap_ms == pytest.approx(400.0)
