"""What is said of a server that gives nothing: once, until it is another reason, or it has worked in between."""

from __future__ import annotations

from iceagent.events import Event, ServerFailed
from iceagent.gather.complaints import MAX_COMPLAINTS, Complaints
from iceagent.net.address import TransportAddress

URL = "turn:turn.example"


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.complaints = Complaints(self.events.append)

    def fail(self, reason: str, *, about: str = "udp", gist: str = "", server: str = URL, port: int = 1) -> bool:
        """Whether it was passed on."""
        before = len(self.events)
        event = ServerFailed(server=server, base=TransportAddress("192.0.2.1", port), reason=reason)
        self.complaints.tell(event, about, gist)
        return len(self.events) > before


def test_the_same_reason_is_told_once_whatever_the_port() -> None:
    told = Told()
    assert told.fail("no address", port=1)
    assert not told.fail("no address", port=2)


def test_transports_that_take_turns_are_each_told_once() -> None:
    told = Told()
    assert [told.fail(f"{about}: no address", about=about) for about in ("udp", "tcp") * 3] == [
        True,
        True,
        *[False] * 4,
    ]


def test_another_reason_is_news_and_so_is_the_first_one_after_it() -> None:
    told = Told()
    assert [told.fail(reason) for reason in ("silent", "401", "silent", "silent")] == [True, True, True, False]


def test_two_wordings_of_one_fact_are_told_once() -> None:
    told = Told()
    assert told.fail("no response so far", gist="no response")
    assert not told.fail("no response")


def test_who_has_worked_in_between_is_told_of_again() -> None:
    told = Told()
    told.complaints.forget(URL)
    for about in ("udp", "tcp"):
        told.fail("silent", about=about)
    told.fail("silent", server="turn:other.example")
    told.complaints.forget(URL, "udp")
    assert [told.fail("silent", about=about) for about in ("udp", "tcp")] == [True, False]
    told.complaints.forget(URL)
    assert [told.fail("silent", about=about) for about in ("udp", "tcp")] == [True, True]
    assert not told.fail("silent", server="turn:other.example")


def test_the_oldest_of_a_thousand_is_forgotten() -> None:
    """Servers name others, and networks come and go: nothing grows with them."""
    told = Told()
    for number in range(MAX_COMPLAINTS + 1):
        assert told.fail("silent", about=str(number))
    assert not told.fail("silent", about=str(MAX_COMPLAINTS))
    assert not told.fail("silent", about="1")
    assert told.fail("silent", about="0")
    assert not told.fail("silent", about="0")
