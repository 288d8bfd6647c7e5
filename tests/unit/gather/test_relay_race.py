"""Who is asked when, and what a server's no means."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from iceagent.gather.relay_race import (
    EAGER_S,
    FIRST_PAUSE_S,
    GOOD_S,
    Abandon,
    Attempt,
    GaveUp,
    RelayRace,
    RenewCredentials,
    Target,
    Transport,
)
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event
from relay.turn import AllocationRefused

START = 1000.0


def target(number: int, transport: Transport = Transport.UDP) -> Target:
    """Of one server each."""
    address = TransportAddress(f"192.0.2.{number}", 3478)
    return Target(url=f"turn:{number}.example", transport=transport, address=address, name=f"{number}.example")


UDP, UDP_2 = target(1), target(2)
TCP, TLS = target(1, Transport.TCP), target(1, Transport.TLS)


def refusal(
    code: int | None = None, *, wait_s: float | None = 0.0, to: int | None = None, domain: str | None = None
) -> AllocationRefused:
    """``to``: the server that is named instead."""
    alternate = None if to is None else target(to).address
    return AllocationRefused(code=code, reason="for a test", alternate=alternate, domain=domain, wait_s=wait_s)


class Course:
    """A race in virtual time.

    Attributes:
        events: when, and what.
    """

    def __init__(self, *targets: Target, now: float = START) -> None:
        self.now = self.start = now
        self.race = RelayRace()
        self.events: list[tuple[float, Event]] = []
        if targets:
            self.act(self.race.add_targets, targets)
            self.act(self.race.begin)

    def act(self, method: Callable[..., None], *args: object, **options: object) -> None:
        """Call a command; the time is added."""
        method(*args, self.now, **options)
        self._drain()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        for _ in range(100_000):
            deadline = self.race.poll_timeout()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.race.handle_timeout(self.now)
            self._drain()
        else:
            raise AssertionError("it never rests")
        self.now = end

    def is_open(self) -> bool:
        """Whether the first answer is still to come."""
        return self.race.is_open

    def asked(self) -> list[Target]:
        """In order."""
        return [event.target for _, event in self.events if isinstance(event, Attempt)]

    def asked_at(self) -> list[tuple[float, Target]]:
        """The same, with the seconds since the start."""
        return [(round(at - self.start, 3), event.target) for at, event in self.events if isinstance(event, Attempt)]

    def last(self) -> int:
        """The number of the last attempt."""
        return [event.number for _, event in self.events if isinstance(event, Attempt)][-1]

    def abandoned(self) -> list[int]:
        """The numbers of those."""
        return [event.number for _, event in self.events if isinstance(event, Abandon)]

    def pauses(self) -> list[float | None]:
        """Of every time that it gave up."""
        return [event.again_in_s for _, event in self.events if isinstance(event, GaveUp)]

    def refuse(self, number: int, what: AllocationRefused | None = None) -> None:
        """The server has said no."""
        self.act(self.race.refused, number, what or refusal())

    def _drain(self) -> None:
        while (event := self.race.poll_event()) is not None:
            self.events.append((self.now, event))


# --- the order -------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_before_it_begins() -> None:
    course = Course()
    course.act(course.race.add_targets, [UDP, TCP])
    course.run(10.0)
    assert not course.events and course.race.has_targets and not course.is_open()
    course.act(course.race.begin)
    assert course.asked() == [UDP]


def test_udp_at_once_and_streams_a_tenth_of_a_second_later() -> None:
    course = Course(TCP, UDP, TLS, UDP_2)
    assert [event for _, event in course.events] == [Attempt(number=1, target=UDP), Attempt(number=2, target=UDP_2)]
    course.run(10.0)
    assert course.asked_at() == [(0, UDP), (0, UDP_2), (0.1, TCP), (0.1, TLS)]
    assert course.race.poll_timeout() is None


def test_streams_are_asked_at_once_where_there_is_no_udp_target() -> None:
    assert Course(TLS, TCP).asked_at() == [(0, TLS), (0, TCP)]


def test_no_stream_is_asked_while_udp_is_answering() -> None:
    course = Course(UDP, TCP)
    course.run(0.05)
    course.act(course.race.heard, 1)
    course.run(0.5)
    course.act(course.race.won, 1)
    course.run(100.0)
    assert course.asked() == [UDP] and course.race.winner == 1


@pytest.mark.parametrize("start", [0.0, 1.0, 1000.0, 12345.678])
def test_a_udp_server_that_said_one_thing_holds_the_streams_up_for_a_second_at_most(start: float) -> None:
    course = Course(UDP, TCP, now=start)
    course.run(0.05)
    course.act(course.race.heard, 1)
    course.run(0.85)
    assert course.asked() == [UDP]
    course.run(10.0)
    assert course.asked_at() == [(0, UDP), (1.0, TCP)]


def test_streams_are_asked_at_once_when_udp_was_refused() -> None:
    course = Course(UDP, TCP)
    course.run(0.02)
    course.refuse(1)
    assert course.asked_at() == [(0, UDP), (0.02, TCP)] and not course.pauses()
    course.run(10.0)
    assert course.asked() == [UDP, TCP]


def test_streams_wait_until_all_udp_targets_were_refused() -> None:
    """One of them may have no route, which is known at once: IPv6, on many a machine. The other one has its tenth of a
    second.
    """
    course = Course(UDP, UDP_2, TCP)
    course.refuse(1)
    course.run(0.02)
    assert course.asked() == [UDP, UDP_2]
    course.refuse(2)
    assert course.asked_at() == [(0, UDP), (0, UDP_2), (0.02, TCP)]


def test_a_refusal_by_one_udp_server_starts_no_stream_while_another_answers() -> None:
    course = Course(UDP, UDP_2, TCP)
    course.act(course.race.heard, 2)
    course.refuse(1)
    course.run(0.5)
    assert course.asked() == [UDP, UDP_2]
    course.refuse(2)
    assert course.asked_at()[2:] == [(0.5, TCP)]


def test_the_first_that_allocates_wins_and_the_others_are_given_up() -> None:
    course = Course(UDP, UDP_2, TCP, TLS)
    course.run(0.2)
    course.act(course.race.won, 3)
    assert course.abandoned() == [1, 2, 4] and course.race.winner == 3
    # Whatever they say now.
    for number in (1, 2, 4):
        course.act(course.race.heard, number)
        course.refuse(number, refusal(300, to=9))
    course.run(1000.0)
    assert course.asked() == [UDP, UDP_2, TCP, TLS] and not course.pauses() and course.race.winner == 3


def test_who_wins_before_the_streams_turn_has_no_streams() -> None:
    course = Course(UDP, TCP)
    course.run(0.05)
    course.act(course.race.won, 1)
    assert course.race.poll_timeout() is None and not course.abandoned()


# --- beginning, and targets that come later --------------------------------------------------------------------------


def test_begun_twice_it_asks_once() -> None:
    course = Course(UDP, TCP)
    course.act(course.race.begin)
    course.run(10.0)
    course.act(course.race.begin)
    assert course.asked() == [UDP, TCP]
    course.act(course.race.won, 1)
    course.act(course.race.begin)
    course.run(10.0)
    assert course.asked() == [UDP, TCP] and course.race.winner == 1


def test_begun_without_targets_it_asks_the_first_that_comes() -> None:
    course = Course()
    course.act(course.race.begin)
    course.act(course.race.begin)
    assert not course.events and not course.is_open() and not course.race.has_targets
    course.act(course.race.add_targets, [UDP, TCP])
    course.run(0.2)
    assert course.asked_at() == [(0, UDP), (0.1, TCP)]


def test_targets_that_are_resolved_late_join_in() -> None:
    course = Course(UDP, TCP)
    course.run(0.05)
    course.act(course.race.add_targets, [TLS, UDP_2, UDP])
    course.run(10.0)
    assert course.asked_at() == [(0, UDP), (0.05, UDP_2), (0.1, TCP), (0.1, TLS)]
    late = target(3, Transport.TCP)
    course.act(course.race.add_targets, [late])
    assert course.asked_at()[4:] == [(10.05, late)]


def test_a_stream_that_is_resolved_late_waits_for_udp_like_any_other() -> None:
    """ "Those over TCP and TLS are asked a tenth of a second later, if nothing came over UDP until then": although
    there was none when it began.
    """
    course = Course(UDP)
    course.run(0.01)
    course.act(course.race.add_targets, [TCP])
    course.act(course.race.heard, 1)
    course.run(0.05)
    assert course.asked() == [UDP]


def test_a_target_that_comes_during_a_pause_is_asked_at_once() -> None:
    course = Course(UDP)
    course.refuse(1, refusal(486, wait_s=60.0))
    course.run(1.0)
    course.act(course.race.add_targets, [UDP_2])
    assert course.asked() == [UDP, UDP_2]
    course.act(course.race.won, 2)
    course.run(1000.0)
    assert course.asked() == [UDP, UDP_2]


def test_a_target_that_comes_while_there_is_a_winner_is_kept_for_later() -> None:
    course = Course(UDP)
    course.act(course.race.won, 1)
    course.act(course.race.add_targets, [UDP_2])
    course.run(20.0)
    assert course.asked() == [UDP]
    course.act(course.race.lost, 1)
    assert course.asked() == [UDP, UDP, UDP_2]


def test_whether_the_first_answer_is_still_to_come() -> None:
    course = Course(UDP, TCP)
    assert course.is_open()
    course.refuse(1)
    assert course.is_open()
    course.refuse(2)
    assert not course.is_open() and course.pauses() == [2.0]
    course.run(2.0)
    assert course.is_open()
    course.act(course.race.won, 3)
    assert not course.is_open()
    course.run(20.0)
    course.act(course.race.lost, 3)
    assert course.is_open()


# --- what a server says ----------------------------------------------------------------------------------------------


def test_another_server_is_followed_with_the_same_transport() -> None:
    """RFC 8489, 10: "using the same transport protocol"; and its certificate has to have the name of ALTERNATE-DOMAIN,
    or else the name that the first one's had to have.
    """
    course = Course(TLS)
    course.refuse(1, refusal(300, wait_s=None, to=2))
    course.refuse(2, refusal(300, wait_s=None, to=3, domain="other.example"))
    two, three = course.asked()[1:]
    assert two == Target(url=TLS.url, transport=Transport.TLS, address=UDP_2.address, name=TLS.name)
    assert (three.address, three.name, three.transport) == (target(3).address, "other.example", Transport.TLS)
    course.act(course.race.won, 3)
    assert course.race.winner == 3 and not course.pauses()


def test_a_redirection_that_names_nobody_is_a_refusal() -> None:
    course = Course(UDP)
    course.refuse(1, refusal(300))
    assert course.asked() == [UDP] and course.pauses() == [2.0]


@pytest.mark.parametrize("to", [1, 2])
def test_nobody_is_sent_round_in_circles(to: int) -> None:
    """RFC 8489, 10: "If the client has been redirected to a server to which it has already sent this request within the
    last five minutes, it MUST ignore the redirection and consider the transaction to have failed".
    """
    course = Course(UDP, UDP_2)
    course.refuse(1, refusal(300, to=to))
    assert course.asked() == [UDP, UDP_2] and not course.pauses()
    course.refuse(2)
    assert len(course.pauses()) == 1


@pytest.mark.parametrize(("later_s", "is_followed"), [(299.9, False), (300.1, True)])
def test_a_redirection_is_followed_again_after_five_minutes(later_s: float, is_followed: bool) -> None:
    course = Course(UDP)
    course.refuse(1, refusal(300, to=2))
    course.act(course.race.won, 2)
    course.run(later_s)
    course.act(course.race.lost, 2)
    course.refuse(3, refusal(300, wait_s=None, to=2))
    assert [each.address for each in course.asked()[3:]] == ([UDP_2.address] if is_followed else [])


def test_a_server_that_redirects_is_asked_again_once_its_redirection_may_be_followed() -> None:
    """A balancer sends everybody on. Within five minutes that must not be followed twice, but it is no wrong password:
    whoever loses an allocation then must not be without a relay for the rest of the session.
    """
    course = Course(UDP)
    course.refuse(1, refusal(300, wait_s=None, to=2))
    course.act(course.race.won, 2)
    course.run(60.0)
    course.act(course.race.lost, 2)
    course.refuse(3, refusal(300, wait_s=None, to=2))
    course.run(301.0)
    assert len(course.asked()) > 3


def test_four_redirections_in_a_row_are_enough() -> None:
    course = Course(UDP)
    for number in range(1, 10):
        course.refuse(number, refusal(300, to=number + 1))
    assert [each.address for each in course.asked()] == [target(number).address for number in range(1, 6)]
    assert course.pauses() == [2.0]


def test_another_server_is_asked_before_the_streams_are() -> None:
    course = Course(UDP, TCP)
    course.act(course.race.heard, 1)
    course.refuse(1, refusal(300, to=2))
    assert [each.transport for each in course.asked()] == [Transport.UDP, Transport.UDP]
    course.run(0.2)
    assert course.asked_at()[2:] == [(0.1, TCP)]


def test_three_sockets() -> None:
    """RFC 8656, 7.4: 437, "SHOULD try three different client transport addresses before giving up"."""
    course = Course(UDP)
    for number in (1, 2, 3):
        course.refuse(number, refusal(437, wait_s=120.0))
    assert course.asked() == [UDP, UDP, UDP] and course.pauses() == [120.0]
    course.run(119.9)
    assert len(course.asked()) == 3
    course.run(0.2)
    assert course.asked() == [UDP] * 4
    # And three again.
    for number in (4, 5, 6):
        course.refuse(number, refusal(437, wait_s=120.0))
    assert course.asked() == [UDP] * 6


@pytest.mark.parametrize("code", [486, 508])
def test_a_full_server_has_a_minute(code: int) -> None:
    """RFC 8656, 7.4: "SHOULD wait at least 1 minute before trying to create any more allocations"."""
    course = Course(UDP, UDP_2)
    course.refuse(1, refusal(code, wait_s=60.0))
    assert not course.pauses()
    course.refuse(2, refusal(code, wait_s=60.0))
    assert course.pauses() == [60.0]
    course.run(59.9)
    assert course.asked() == [UDP, UDP_2]
    course.run(0.2)
    assert course.asked() == [UDP, UDP_2] * 2


def test_after_a_wrong_password_there_is_no_next_round_until_somebody_says_so() -> None:
    course = Course(UDP)
    course.refuse(1, refusal(401, wait_s=None))
    assert course.pauses() == [None] and course.race.poll_timeout() is None and not course.is_open()
    course.run(10_000.0)
    assert course.asked() == [UDP]
    course.act(course.race.begin)
    assert course.asked() == [UDP, UDP]


def test_a_wrong_password_at_one_server_leaves_the_other_its_next_round() -> None:
    course = Course(UDP, UDP_2)
    course.refuse(1, refusal(401, wait_s=None))
    course.refuse(2)
    assert course.pauses() == [2.0]


def test_the_refusals_of_a_round_are_not_forgotten_when_somebody_says_begin() -> None:
    """It asks nobody anew while somebody is being asked: what the others have said still counts."""
    course = Course(UDP, UDP_2)
    course.refuse(1, refusal(None))
    course.act(course.race.begin)
    course.refuse(2, refusal(401, wait_s=None))
    assert course.asked() == [UDP, UDP_2] and course.pauses() == [2.0]


def test_one_no_is_counted_once() -> None:
    course = Course(UDP)
    course.refuse(1)
    course.refuse(1)
    course.refuse(77)
    assert course.pauses() == [2.0]


# --- pauses ----------------------------------------------------------------------------------------------------------


def fail(course: Course, rounds: int) -> None:
    """Of one target: each time it is asked, it is not there."""
    for _ in range(rounds):
        course.refuse(course.last())
        course.run(course.pauses()[-1] or 0.0)


def test_pauses_double_up_to_a_minute() -> None:
    course = Course(UDP)
    fail(course, 8)
    assert course.pauses() == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert [at for at, _ in course.asked_at()] == [0, 2, 6, 14, 30, 62, 122, 182, 242]


def test_every_round_begins_with_udp_again() -> None:
    course = Course(UDP, TCP)
    course.run(0.1)
    course.refuse(1)
    course.refuse(2)
    course.run(2.2)
    assert course.asked_at() == [(0, UDP), (0.1, TCP), (2.1, UDP), (2.2, TCP)]


def test_pauses_are_short_again_after_a_good_allocation() -> None:
    course = Course(UDP)
    fail(course, 6)
    course.act(course.race.won, course.last())
    course.run(10.0)
    lost_at = course.now
    course.act(course.race.lost, course.last())
    assert course.asked_at()[-1] == (lost_at - START, UDP)
    fail(course, 2)
    assert course.pauses()[-2:] == [2.0, 2.0]


def test_for_a_minute_after_a_good_one_was_lost_pauses_and_attempts_are_short() -> None:
    """A server that is restarted is found within seconds."""
    course = Course(UDP)
    course.act(course.race.won, 1)
    course.run(GOOD_S)
    course.events.clear()
    lost = course.now
    course.act(course.race.lost, 1)
    while course.now < lost + 130.0:
        if course.race.is_open:
            number = max(event.number for _, event in course.events if isinstance(event, Attempt))
            course.run(2.5)
            course.act(course.race.refused, number, refusal())
        course.run(0.5)
    attempts = [(at - lost, event.is_brief) for at, event in course.events if isinstance(event, Attempt)]
    early = [at for at, is_brief in attempts if is_brief]
    assert early[0] == 0.0 and early[-1] > EAGER_S - 5.0
    assert all(later - sooner <= 2.5 + FIRST_PAUSE_S + 0.5 for sooner, later in pairwise(early))
    late = [at for at, is_brief in attempts if not is_brief]
    assert late and late[0] >= EAGER_S and all(later - sooner > 5.0 for sooner, later in pairwise(late[1:]))


def test_lost_at_once_it_begins_at_once_and_lost_again_after_a_pause() -> None:
    course = Course(UDP)
    course.act(course.race.won, 1)
    course.run(1.0)
    course.act(course.race.lost, 1)
    assert course.asked_at() == [(0, UDP), (1.0, UDP)] and not course.pauses()
    course.act(course.race.won, 2)
    course.run(1.0)
    course.act(course.race.lost, 2)
    assert len(course.asked()) == 2 and len(course.pauses()) == 1
    course.run(60.0)
    assert len(course.asked()) == 3


def test_pauses_between_allocations_that_do_not_last_double_as_well() -> None:
    course = Course(UDP)
    for _ in range(9):
        course.act(course.race.won, course.last())
        course.run(1.0)
        course.act(course.race.lost, course.last())
        course.run(60.0)
    pauses = [pause or 0.0 for pause in course.pauses()]
    assert len(pauses) == 8 and pauses[-1] == 60.0
    assert pauses[1:] == [min(2 * pause, 60.0) for pause in pauses[:-1]]


def test_an_allocation_that_is_refused_its_refresh_is_not_asked_for_again() -> None:
    course = Course(UDP)
    course.act(course.race.won, 1)
    course.run(600.0)
    course.act(course.race.lost, 1, is_refused=True)
    assert course.pauses() == [None] and course.race.winner is None
    course.run(10_000.0)
    assert course.asked() == [UDP]


def test_a_loss_of_another_than_the_winner_is_none() -> None:
    course = Course(UDP, UDP_2)
    course.act(course.race.won, 2)
    course.act(course.race.lost, 1)
    course.act(course.race.lost, 77)
    assert course.race.winner == 2 and course.asked() == [UDP, UDP_2]


# --- credentials -----------------------------------------------------------------------------------------------------


def renewals(course: Course) -> list[float]:
    return [round(at - START, 3) for at, event in course.events if isinstance(event, RenewCredentials)]


def test_credentials_are_renewed_at_four_fifths_of_their_lifetime() -> None:
    course = Course(UDP)
    course.act(course.race.won, 1)
    course.act(course.race.given_credentials, 3600.0)
    assert course.race.poll_timeout() == START + 2880.0
    course.run(10_000.0)
    assert renewals(course) == [2880.0] and course.race.poll_timeout() is None


def test_new_credentials_have_a_time_of_their_own() -> None:
    course = Course(UDP)
    course.act(course.race.given_credentials, 100.0)
    course.run(50.0)
    course.act(course.race.given_credentials, 1000.0)
    course.run(500.0)
    assert not renewals(course)
    course.run(400.0)
    assert renewals(course) == [850.0]
    course.act(course.race.given_credentials, 1000.0)
    course.act(course.race.given_credentials, None)
    course.run(10_000.0)
    assert renewals(course) == [850.0]


# --- the contract ----------------------------------------------------------------------------------------------------


def test_nothing_is_due_when_there_is_nothing_to_wait_for() -> None:
    assert Course().race.poll_timeout() is None
    course = Course(UDP)
    assert course.race.poll_timeout() is None
    course.act(course.race.won, 1)
    assert course.race.poll_timeout() is None


def test_the_deadline_is_that_of_the_streams_and_then_of_the_next_round() -> None:
    course = Course(UDP, TCP)
    assert course.race.poll_timeout() == START + 0.1
    course.run(0.1)
    course.refuse(1)
    course.refuse(2)
    assert course.race.poll_timeout() == START + 0.1 + 2.0


def test_it_has_no_packets() -> None:
    course = Course(UDP)
    course.race.handle_datagram(Datagram(UDP.address, UDP.address, b"x"), course.now)
    course.race.handle_error(UDP.address, UDP.address, 111, course.now)
    assert course.race.poll_transmit() is None and course.race.poll_event() is None
    assert course.asked() == [UDP] and course.is_open()


def test_a_thousand_rounds_leave_nothing_behind() -> None:
    """A server that names another one every time: those of the last five minutes are remembered, which are 5 of every
    round, and a round is a minute long.
    """
    course = Course(UDP)
    count = 10
    for _ in range(1000):
        for _ in range(5):
            count += 1
            alternate = TransportAddress(f"10.{count // 60000}.{count // 250 % 240}.{count % 250}", 3478)
            what = AllocationRefused(code=300, reason="elsewhere", alternate=alternate)
            course.refuse(course.last(), what)
        course.run(course.pauses()[-1] or 0.0)
    assert len(course.asked()) == 5001 and len(course.pauses()) == 1000
    # The first rounds are shorter.
    assert len(course.race._visited) <= 6 * 5 and len(course.race._running) == 1
