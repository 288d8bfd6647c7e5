"""Descriptions by copy and paste: where a block ends, and what is shown when."""

from __future__ import annotations

import asyncio
import cProfile
import os
from collections.abc import Callable

import pytest

from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.description import MAX_CANDIDATES, Description
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.paste import Blocks, PasteInbox, PasteOutbox

UFRAG, PWD = "a=ice-ufrag:abcd", "a=ice-pwd:0123456789abcdefghijklmn"
ONE = "a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host"
TWO = "a=candidate:2 1 udp 2130706431 192.0.2.2 5000 typ host"
END = "a=end-of-candidates"


def cut(*lines: str) -> list[Description | Refusal]:
    blocks = Blocks()
    found = [blocks.feed(line) for line in lines] + [blocks.finish()]
    return [each for each in found if each is not None]


def parsed(*lines: str) -> Description:
    return Description.parse("\n".join(lines))


def test_end_of_candidates_ends_a_block() -> None:
    assert cut(UFRAG, PWD, ONE, END) == [parsed(UFRAG, PWD, ONE, END)]


def test_an_empty_line_ends_a_block_once_the_password_is_known() -> None:
    assert cut("", UFRAG, "", PWD, ONE, "  ", "") == [parsed(UFRAG, PWD, ONE)]


def test_the_end_of_input_ends_a_block() -> None:
    assert cut(UFRAG, PWD, ONE) == [parsed(UFRAG, PWD, ONE)]


def test_a_late_candidate_belongs_to_the_block_before() -> None:
    assert cut(UFRAG, PWD, ONE, END, TWO) == [parsed(UFRAG, PWD, ONE, END), parsed(UFRAG, PWD, ONE, END, TWO)]


def test_a_late_candidate_that_is_none_harms_nothing() -> None:
    first, refusal, second = cut(UFRAG, PWD, ONE, END, "a=candidate:bad", TWO)
    assert first == parsed(UFRAG, PWD, ONE, END)
    assert isinstance(refusal, Refusal) and "candidate:bad" in refusal.reason
    assert second == parsed(UFRAG, PWD, ONE, END, TWO)


def test_a_late_candidate_of_another_kind_is_ignored() -> None:
    """RFC 8839, 5.1, as in a block."""
    newer = "a=candidate:3 1 quic 2130706431 192.0.2.3 5000 typ host"
    *_, last = cut(UFRAG, PWD, ONE, END, newer, TWO)
    assert last == parsed(UFRAG, PWD, ONE, END, newer, TWO)


def test_a_late_candidate_after_a_block_that_was_refused() -> None:
    """It belongs to that one, not to the next."""
    refusal, next_one = cut(UFRAG, "a=ice-pwd:short", ONE, END, ONE, UFRAG, PWD, TWO, END)
    assert isinstance(refusal, Refusal)
    assert next_one == parsed(UFRAG, PWD, TWO, END)


def candidate(number: int) -> str:
    return f"a=candidate:{number} 1 udp 2130706431 192.0.2.1 {number % 65536} typ host"


def test_late_candidates_are_bounded() -> None:
    """As many as a description may have; what is more is told once, parsed never, and costs nobody what there is."""
    late = [candidate(number) for number in range(1, 20_001)]
    with cProfile.Profile() as profile:
        found = cut(UFRAG, PWD, ONE, END, *late)
    *taken, full, refusal = found
    assert len(taken) == 1 + 998 and isinstance(full, Description) and len(full.candidates) == MAX_CANDIDATES
    assert isinstance(refusal, Refusal) and "more than 1000 candidates" in refusal.reason
    assert calls(profile, Candidate.parse) == 1 + 999
    assert cut(UFRAG, PWD, ONE, END, *late, UFRAG, PWD, END, TWO)[-1] == parsed(UFRAG, PWD, END, TWO)


def test_the_work_grows_with_the_length_of_the_input() -> None:
    """Not with its square: junk before the password, empty lines in between, candidates that wait for a password."""
    lines = ["x"] * 20_000 + [""] * 20_000 + [ONE] * 2_000
    blocks = Blocks()
    blocks.feed(UFRAG)
    with cProfile.Profile() as profile:
        assert [blocks.feed(line) for line in lines] == [None] * len(lines)
    assert sum(each.callcount for each in profile.getstats()) < 12 * len(lines)


def calls(profile: cProfile.Profile, function: Callable[..., object]) -> int:
    code = function.__code__
    return sum(each.callcount for each in profile.getstats() if each.code is code)


def test_a_second_block_is_a_new_description() -> None:
    again = "a=ice-ufrag:wxyz"
    assert cut(UFRAG, PWD, ONE, END, again, PWD, TWO, END) == [
        parsed(UFRAG, PWD, ONE, END),
        parsed(again, PWD, TWO, END),
    ]


def test_a_block_is_bounded() -> None:
    """What never ends is thrown away, a mebibyte at a time."""
    refusal, next_one = cut(UFRAG, PWD, *["x" * 1024] * 1100, END, UFRAG, PWD, ONE, END)
    assert isinstance(refusal, Refusal) and "ice-ufrag" in refusal.reason
    assert next_one == parsed(UFRAG, PWD, ONE, END)


CREDENTIALS = Credentials(ufrag="abcd", password="0123456789abcdefghijklmn")


def described(*lines: str, complete: bool = True, credentials: Credentials = CREDENTIALS) -> Description:
    candidates = tuple(Candidate.parse(line) for line in lines)
    return Description(credentials=credentials, candidates=candidates, complete=complete)


def test_ours_is_shown_when_it_is_complete_and_then_what_is_new() -> None:
    shown: list[str] = []
    outbox = PasteOutbox(shown.append)
    outbox.publish(described(ONE, complete=False))
    assert shown == []
    outbox.publish(described(ONE))
    outbox.publish(described(ONE))
    assert [text.splitlines() for text in shown] == [[UFRAG, PWD, ONE, END]]
    outbox.publish(described(ONE, TWO))
    assert shown[1:] == [TWO + "\n"]


def test_a_restart_is_shown_as_a_whole() -> None:
    shown: list[str] = []
    outbox = PasteOutbox(shown.append)
    outbox.publish(described(ONE))
    outbox.publish(described(ONE, credentials=Credentials(ufrag="wxyz", password=CREDENTIALS.password)))
    assert shown[1].splitlines() == ["a=ice-ufrag:wxyz", PWD, ONE, END]


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


async def read_all(fd: int) -> list[Description | Refusal]:
    return [found async for found in PasteInbox(fd).descriptions()]


async def test_lines_are_read_from_a_pipe(pipe: tuple[int, int]) -> None:
    """In pieces, the last line without a newline, nonsense in between."""
    reader, writer = pipe
    reading = asyncio.ensure_future(read_all(reader))
    for piece in (f"{UFRAG}\n{PWD}\n{ONE}\n{EN}".encode() for EN in ("a=end-of-",)):
        os.write(writer, piece)
    os.write(writer, b"candidates\r\n")
    os.write(writer, f"a=ice-pwd:short\n\n{UFRAG}\n{PWD}\n{TWO}".encode())
    os.close(writer)
    first, refusal, second = await reading
    os.close(reader)
    assert first == described(ONE)
    assert isinstance(refusal, Refusal)
    assert second == described(TWO, complete=False)


async def test_a_person_is_waited_for_until_a_description_comes(pipe: tuple[int, int]) -> None:
    """Not only until a block that is refused."""
    reader, writer = pipe
    inbox = PasteInbox(reader)
    assert inbox.is_waiting and not inbox.is_terminal
    os.write(writer, f"{UFRAG}\na=ice-pwd:short\n\n{UFRAG}\n{PWD}\n{ONE}\na=end-of-candidates\n".encode())
    os.close(writer)
    waiting = [inbox.is_waiting async for _ in inbox.descriptions()]
    os.close(reader)
    assert waiting == [True, False]


async def test_a_line_without_an_end_is_cut(pipe: tuple[int, int]) -> None:
    """Three mebibytes of it; what stands on the next line is read."""
    reader, writer = pipe
    reading = asyncio.ensure_future(read_all(reader))
    text = b"x" * (3 << 20) + f"\n{END}\n{UFRAG}\n{PWD}\n{TWO}\n{END}\n".encode()
    await asyncio.to_thread(write_all, writer, text)
    refusal, description = await reading
    os.close(reader)
    assert isinstance(refusal, Refusal) and len(refusal.reason) < 200
    assert description == described(TWO)


def write_all(fd: int, text: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        file.write(text)


async def test_a_closed_input_is_an_empty_one(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(writer)
    os.close(reader)
    assert await read_all(reader) == []
