"""What a rendezvous server's rooms do, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.rendezvous.mailbox import (
    GUESS_BURST,
    LEFT_AFTER_S,
    MAX_ROOMS,
    MAX_ROOMS_OF_SOURCE,
    NOTHING,
    REQUEST_BURST,
    ROOM_LIFETIME_S,
    SIDES,
    WAIT_S,
    Answer,
    Mailbox,
    Request,
)

ROOM = "our-secret.room_1"
ALICE, BOB, EVE = "192.0.2.1", "198.51.100.2", "203.0.113.3"
A_TOKEN, B_TOKEN = "alices-own-token", "bobs-secret-token"


def text(name: str) -> bytes:
    return f"a=ice-ufrag:{name}\na=ice-pwd:0123456789012345678901\n".encode()


class House:
    """A mailbox, a clock, and the answers by request."""

    def __init__(self) -> None:
        self.mailbox = Mailbox(system_rng=random.Random(1))
        self.now = 1000.0
        self.answers: dict[int, Answer] = {}
        self._key = 0

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        token: str | None = None,
        known: str | None = None,
        source: str = ALICE,
    ) -> int:
        """Make a request; its number."""
        self._key += 1
        tag = None if known is None else f'"{known}"'
        request = Request(method=method, target=target, source=source, if_none_match=tag, token=token, body=body)
        self.mailbox.handle_request(self._key, request, self.now)
        self._drain()
        return self._key

    def answer(self, method: str, target: str, body: bytes = b"", **options: str | None) -> Answer:
        """The answer to a request that does not wait."""
        key = self.ask(method, target, body, **options)  # type: ignore[arg-type]
        assert key in self.answers, "it waits"
        return self.answers[key]

    def put(self, side: str, name: str, token: str | None = None, room: str = ROOM, source: str = ALICE) -> Answer:
        return self.answer("PUT", f"/{room}/{side}", text(name), token=token, source=source)

    def hang_up(self, key: int) -> None:
        self.mailbox.handle_closed(key, self.now)
        self._drain()

    def wait(self, seconds: float) -> None:
        """Let time pass, from deadline to deadline."""
        end = self.now + seconds
        while (at := self.mailbox.poll_timeout()) is not None and at <= end:
            self.now = max(at, self.now)
            self.mailbox.handle_timeout(self.now)
            later = self.mailbox.poll_timeout()
            assert later is None or later > self.now
            self._drain()
        self.now = end

    def _drain(self) -> None:
        while (found := self.mailbox.poll_answer()) is not None:
            assert found[0] not in self.answers, "answered twice"
            self.answers[found[0]] = found[1]


@pytest.fixture
def house() -> House:
    return House()


# --- exchange ----------------------------------------------------------------------------------------------------


def test_what_one_side_writes_the_other_reads(house: House) -> None:
    written = house.put("controlling", "alice")
    assert (written.status, written.body) == (201, b"")
    found = house.answer("GET", f"/{ROOM}/controlling", source=BOB)
    assert (found.status, found.body, found.version) == (200, text("alice"), written.version)
    assert house.answer("GET", f"/{ROOM}/controlled").status == 404


def test_a_reader_waits_for_the_first_description_and_for_each_change(house: House) -> None:
    key = house.ask("GET", f"/{ROOM}/controlling", known=NOTHING, source=BOB)
    house.wait(5)
    assert key not in house.answers
    house.put("controlling", "one", A_TOKEN)
    first = house.answers[key]
    assert (first.status, first.body) == (200, text("one"))
    key = house.ask("GET", f"/{ROOM}/controlling", known=first.version, source=BOB)
    assert key not in house.answers
    # The same once more is no change.
    assert house.put("controlling", "one", A_TOKEN).status == 204
    assert key not in house.answers
    assert house.put("controlling", "two", A_TOKEN).status == 204
    assert (house.answers[key].status, house.answers[key].body) == (200, text("two"))
    assert house.mailbox.waiting == 0


def test_nothing_new_within_25_s_is_304(house: House) -> None:
    version = house.put("controlling", "alice").version
    key = house.ask("GET", f"/{ROOM}/controlling", known=version)
    house.wait(WAIT_S - 0.1)
    assert key not in house.answers
    house.wait(0.2)
    assert (house.answers[key].status, house.answers[key].version) == (304, version)
    key = house.ask("GET", f"/{ROOM}/controlled", known=NOTHING)
    house.wait(WAIT_S)
    assert (house.answers[key].status, house.answers[key].version) == (304, NOTHING)


def test_who_knows_an_older_version_does_not_wait(house: House) -> None:
    old = house.put("controlling", "one", A_TOKEN).version
    house.put("controlling", "two", A_TOKEN)
    found = house.answer("GET", f"/{ROOM}/controlling", known=old)
    assert (found.status, found.body) == (200, text("two"))


def test_a_version_survives_the_server(house: House) -> None:
    """A digest: a server that was started anew has the same for the same text, and no other text has it."""
    assert house.put("controlling", "x").version == House().put("controlling", "x").version
    assert house.put("controlled", "y").version != House().put("controlled", "x").version


@pytest.mark.parametrize(
    ("header", "waits"),
    [('"{}"', True), ('W/"{}"', True), ('"a", "{}"', True), ("*", True), ('"a"', False), ("{}", False), ("", False)],
)
def test_if_none_match_is_read_as_rfc_9110_says(house: House, header: str, waits: bool) -> None:
    """RFC 9110, 13.1.2: a list of entity tags, compared weakly, or "*"."""
    version = house.put("controlling", "alice").version
    request = Request(
        method="GET", target=f"/{ROOM}/controlling", source=BOB, if_none_match=header.format(version), token=None
    )
    house.mailbox.handle_request(99, request, house.now)
    assert (house.mailbox.poll_answer() is None) is waits


def test_who_hung_up_is_not_answered(house: House) -> None:
    key = house.ask("GET", f"/{ROOM}/controlling", known=NOTHING)
    house.hang_up(key)
    house.put("controlling", "alice")
    house.wait(WAIT_S)
    assert key not in house.answers and house.mailbox.waiting == 0


# --- whose side it is --------------------------------------------------------------------------------------------


def test_nobody_replaces_a_description_without_its_token(house: House) -> None:
    token = house.put("controlling", "alice").token
    assert token is not None
    for shown in (None, "not-the-token-at-all"):
        assert house.put("controlling", "eve", shown, source=EVE).status == 409
        assert house.answer("DELETE", f"/{ROOM}/controlling", token=shown, source=EVE).status == 409
    assert house.answer("GET", f"/{ROOM}/controlling").body == text("alice")
    again = house.put("controlling", "alice2", token)
    assert (again.status, again.token) == (204, token)
    # Not even the description itself.
    assert house.put("controlling", "alice2", source=EVE).status == 409


def test_a_writer_may_bring_its_token_so_a_lost_answer_costs_nothing(house: House) -> None:
    assert house.put("controlling", "alice", A_TOKEN).token == A_TOKEN
    assert house.put("controlling", "alice", A_TOKEN).status == 204


def test_tokens_differ_and_are_told_to_their_holder_alone(house: House) -> None:
    mine, theirs = house.put("controlling", "alice").token, house.put("controlled", "bob").token
    assert mine != theirs and mine is not None and len(mine) == 32
    for side in SIDES:
        assert house.answer("GET", f"/{ROOM}/{side}", token=mine).token == mine
        assert house.answer("GET", f"/{ROOM}/{side}", token="some-other-token").token is None
        assert house.answer("GET", f"/{ROOM}/{side}").token is None


def test_a_side_is_emptied_by_its_writer(house: House) -> None:
    house.put("controlling", "alice", A_TOKEN)
    house.put("controlled", "bob", B_TOKEN)
    version = house.answer("GET", f"/{ROOM}/controlling").version
    key = house.ask("GET", f"/{ROOM}/controlling", known=version, source=BOB)
    assert house.answer("DELETE", f"/{ROOM}/controlling", token=A_TOKEN).status == 204
    assert (house.answers[key].status, house.answers[key].version) == (404, NOTHING)
    assert house.put("controlling", "next").status == 201
    assert house.answer("DELETE", f"/{ROOM}/controlling", token=A_TOKEN).status == 409


def test_a_writer_that_reads_and_stops_is_forgotten_after_ten_seconds(house: House) -> None:
    """A program that was killed can come back to its side, and its old description misleads nobody."""
    version = house.put("controlled", "bob", B_TOKEN).version
    key = house.ask("GET", f"/{ROOM}/controlled", known=version, token=A_TOKEN)
    # It is there before it writes.
    house.put("controlling", "alice", A_TOKEN)
    house.wait(20)
    assert house.put("controlling", "eve", source=EVE).status == 409
    house.hang_up(key)
    house.wait(LEFT_AFTER_S - 0.1)
    assert house.put("controlling", "eve", source=EVE).status == 409
    house.wait(0.2)
    assert house.answer("GET", f"/{ROOM}/controlling").status == 404
    assert house.put("controlling", "alice again").status == 201


def test_a_writer_that_reads_again_is_not_forgotten(house: House) -> None:
    house.put("controlling", "alice", A_TOKEN)
    for _ in range(10):
        key = house.ask("GET", f"/{ROOM}/controlled", known=NOTHING, token=A_TOKEN)
        house.wait(WAIT_S + LEFT_AFTER_S / 2)
        assert house.answers[key].status == 304 and house.answers[key].token == A_TOKEN
    house.wait(LEFT_AFTER_S)
    assert house.mailbox.rooms == 0


def test_a_writer_that_never_reads_keeps_its_side(house: House) -> None:
    """A script that writes once; its side is nobody else's for as long as the room is there."""
    house.put("controlling", "alice", A_TOKEN)
    house.wait(ROOM_LIFETIME_S - 1)
    assert house.put("controlling", "eve", source=EVE).status == 409


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_room_is_gone_ten_minutes_after_it_was_asked_for(house: House) -> None:
    house.put("controlling", "alice", A_TOKEN)
    house.wait(ROOM_LIFETIME_S - 1)
    assert house.answer("GET", f"/{ROOM}/controlling").status == 200
    house.wait(ROOM_LIFETIME_S - 1)
    key = house.ask("GET", f"/{ROOM}/controlling", known=house.answer("GET", f"/{ROOM}/controlling").version)
    house.wait(WAIT_S)
    assert house.answers[key].status == 304
    house.wait(ROOM_LIFETIME_S)
    assert house.mailbox.rooms == 0 and house.mailbox.poll_timeout() is None
    assert house.answer("GET", f"/{ROOM}/controlling").status == 404


def test_there_are_a_thousand_rooms(house: House) -> None:
    for number in range(MAX_ROOMS):
        answer = house.put("controlling", "x", room=f"room-{number:04}", source=f"10.0.{number % 250}.1")
        assert answer.status == 201
    refused = house.put("controlling", "x", room="one-more-room", source=ALICE)
    assert (refused.status, refused.retry_after_s, house.mailbox.rooms) == (503, 60, MAX_ROOMS)
    # Those that are there go on.
    assert house.put("controlled", "y", room="room-0000").status == 201
    house.wait(ROOM_LIFETIME_S)
    assert house.mailbox.rooms == 0
    assert house.put("controlling", "x", room="one-more-room").status == 201


def test_one_network_does_not_fill_the_house(house: House) -> None:
    statuses = []
    for number in range(MAX_ROOMS_OF_SOURCE + 5):
        statuses.append(house.put("controlling", "x", room=f"room-{number:04}", source=f"10.0.0.{number}").status)
        house.wait(1)
    assert statuses == [201] * MAX_ROOMS_OF_SOURCE + [503] * 5
    assert house.put("controlling", "x", room="another-room", source="10.0.1.1").status == 201


@pytest.mark.parametrize("neighbours", [("192.0.2.7", "192.0.2.250"), ("2001:db8::1", "2001:db8:0:ff::9")])
def test_guessing_is_slow_for_a_whole_network(house: House, neighbours: tuple[str, str]) -> None:
    house.put("controlling", "alice", source=EVE)
    statuses = [
        house.answer("GET", f"/guess-{number:04}/controlling", source=neighbours[number % 2]).status
        for number in range(GUESS_BURST + 10)
    ]
    assert statuses == [404] * GUESS_BURST + [429] * 10
    # Neither does waiting for it help, nor writing.
    assert house.answer("GET", "/guess-more/controlling", known=NOTHING, source=neighbours[0]).status == 429
    assert house.put("controlling", "x", room="guess-more", source=neighbours[1]).status == 429
    # Others are not concerned, nor is who knows a room.
    assert house.answer("GET", "/guess-more/controlling", source=BOB).status == 404
    assert house.answer("GET", f"/{ROOM}/controlling", source=neighbours[0]).status == 200
    house.wait(1.0)
    assert house.answer("GET", "/guess-more/controlling", source=neighbours[0]).status == 404
    assert house.answer("GET", "/guess-more/controlling", source=neighbours[0]).status == 429


def test_a_network_that_asks_too_much_is_cut_off(house: House) -> None:
    house.put("controlling", "alice", source=BOB)
    answers = [house.answer("GET", f"/{ROOM}/controlling", source=ALICE) for _ in range(REQUEST_BURST + 1)]
    assert [each.status for each in answers] == [200] * REQUEST_BURST + [429]
    assert answers[-1].is_last and answers[-1].retry_after_s == 1
    house.wait(1)
    assert house.answer("GET", f"/{ROOM}/controlling").status == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "*", 404),
        ("GET", "/short/controlling", 404),
        ("GET", f"/{'x' * 65}/controlling", 404),
        ("GET", f"/{ROOM}/third", 404),
        ("GET", f"/{ROOM}/controlling/", 404),
        ("GET", f"/{ROOM}/controlling?x", 404),
        ("GET", f"/{ROOM}%2e/controlling", 404),
        ("GET", f"/öööööööö{ROOM}/controlling", 404),
        ("POST", f"/{ROOM}/controlling", 405),
        ("HEAD", f"/{ROOM}/controlling", 405),
        ("PUT", f"/{ROOM}/controlling", 400),
        ("GET", f"http://rendezvous.example:80/{ROOM}/controlling", 404),
        ("GET", f"http://rendezvous.example:80/{ROOM}/controlled", 200),
        ("DELETE", f"/{ROOM}/controlling", 404),
    ],
)
def test_what_makes_no_sense_is_told(house: House, method: str, target: str, status: int) -> None:
    house.put("controlled", "bob")
    answer = house.answer(method, target, b"no description" if method == "PUT" else b"")
    assert answer.status == status
    assert answer.body.endswith(b"\n")


@pytest.mark.parametrize("token", ["short", "x" * 129, "with space and more", "ümlaut-ümlaut-ümlaut", ""])
def test_a_token_that_is_none(house: House, token: str) -> None:
    assert house.put("controlling", "alice", token).status == 400


def test_secrets_are_not_in_a_repr(house: House) -> None:
    request = Request(method="PUT", target="/x", source=ALICE, token=A_TOKEN, body=text("alice"))
    assert A_TOKEN not in repr(request) and "ice-pwd" not in repr(request)
    assert "ice-pwd" not in repr(Answer(status=200, body=text("alice"), token=A_TOKEN))


# --- whatever comes ----------------------------------------------------------------------------------------------

ROOMS = st.sampled_from(["room-one", "room-two", "room-three"])
TOKENS = st.sampled_from([None, A_TOKEN, B_TOKEN, "broken"])
STEPS = st.one_of(
    st.tuples(st.just("PUT"), ROOMS, st.sampled_from(SIDES), TOKENS, st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("GET"), ROOMS, st.sampled_from(SIDES), TOKENS, st.sampled_from(["", NOTHING, "*"])),
    st.tuples(st.just("DELETE"), ROOMS, st.sampled_from(SIDES), TOKENS, st.just("")),
    st.tuples(st.just("wait"), st.floats(0, 40)),
    st.tuples(st.just("close"), st.integers(0, 50)),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_is_asked_in_whatever_order(steps: list[tuple[str, ...]]) -> None:
    """Every request has one answer, or hung up; and when all is over, nothing is kept."""
    house = House()
    asked: set[int] = set()
    for step in steps:
        if step[0] == "wait":
            house.wait(float(step[1]))
        elif step[0] == "close":
            house.hang_up(int(step[1]))
            if int(step[1]) not in house.answers:
                asked.discard(int(step[1]))
        else:
            method, room, side, token, extra = step
            body = text(extra) if method == "PUT" else b""
            asked.add(house.ask(method, f"/{room}/{side}", body, token=token, known=extra or None))
        assert house.mailbox.rooms <= 3
    house.wait(ROOM_LIFETIME_S + WAIT_S)
    assert asked <= set(house.answers)
    mailbox = house.mailbox
    assert (mailbox.rooms, mailbox.waiting, mailbox.poll_timeout()) == (0, 0, None)
    assert not (mailbox._readers or mailbox._rooms_of or mailbox._waiting_at)


@given(
    st.text(st.characters(max_codepoint=255), max_size=200),
    st.text(max_size=200),
    st.text(st.characters(max_codepoint=255), max_size=200),
)
def test_whatever_a_request_says(target: str, header: str, token: str) -> None:
    mailbox = Mailbox(system_rng=random.Random(1))
    for number, method in enumerate(("GET", "PUT", "DELETE", target[:10])):
        request = Request(
            method=method,
            target=target,
            source=ALICE,
            if_none_match=header,
            token=token,
            body=b"a=ice-ufrag:x\na=ice-pwd:y",
        )
        mailbox.handle_request(number, request, 0.0)
        found = mailbox.poll_answer()
        assert found is not None and found[1].status in (400, 404, 405)
    assert mailbox.rooms == 0
