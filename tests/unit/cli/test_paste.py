"""Descriptions by copy and paste: where a block ends, and what is shown when."""

from __future__ import annotations

import asyncio
import os

import pytest

from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.paste import Blocks, PasteInbox, PasteOutbox

UFRAG, PWD = "a=ice-ufrag:abcd", "a=ice-pwd:0123456789abcdefghijklmn"
ONE = "a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host"
TWO = "a=candidate:2 1 udp 2130706431 192.0.2.2 5000 typ host"
END = "a=end-of-candidates"


def cut(*lines: str) -> list[list[str]]:
    blocks = Blocks()
    found = [blocks.feed(line) for line in lines] + [blocks.finish()]
    return [text.splitlines() for text in found if text is not None]


def test_end_of_candidates_ends_a_block() -> None:
    assert cut(UFRAG, PWD, ONE, END) == [[UFRAG, PWD, ONE, END]]


def test_an_empty_line_ends_a_block_once_the_password_is_known() -> None:
    assert cut("", UFRAG, "", PWD, ONE, "  ", "") == [[UFRAG, PWD, ONE]]


def test_the_end_of_input_ends_a_block() -> None:
    assert cut(UFRAG, PWD, ONE) == [[UFRAG, PWD, ONE]]


def test_a_late_candidate_belongs_to_the_block_before() -> None:
    assert cut(UFRAG, PWD, ONE, END, TWO) == [[UFRAG, PWD, ONE, END], [UFRAG, PWD, ONE, END, TWO]]


def test_a_second_block_is_a_new_description() -> None:
    again = "a=ice-ufrag:wxyz"
    assert cut(UFRAG, PWD, ONE, END, again, PWD, TWO, END) == [[UFRAG, PWD, ONE, END], [again, PWD, TWO, END]]


def test_a_block_is_bounded() -> None:
    """What never ends is thrown away, a mebibyte at a time."""
    blocks = Blocks()
    for _ in range(1100):
        assert blocks.feed("x" * 1024) is None
    text = blocks.finish()
    assert text is not None and len(text) < 1 << 20


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


async def test_a_closed_input_is_an_empty_one(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(writer)
    os.close(reader)
    assert await read_all(reader) == []
