"""Descriptions by files: replaced as a whole, believed when whole, and never a reason to crash."""

from __future__ import annotations

import cProfile
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.errors import UsageError
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.files import LOOK_EVERY_S, FileInbox, FileOutbox

HOST = Candidate.parse("candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host")
LATE = Candidate.parse("candidate:2 1 udp 1694498815 203.0.113.1 6000 typ srflx raddr 192.0.2.1 rport 5000")
MINE = Description(
    credentials=Credentials(ufrag="abcd", password="0123456789abcdefghijklmn"),
    options=("trickle", "ice2"),
    pacing_ms=50,
    candidates=(HOST,),
    complete=True,
)
TEXT = MINE.to_sdp()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


@pytest.fixture
def inbox(path: Path, clock: Clock) -> FileInbox:
    return FileInbox(path, clock)


def looks(inbox: FileInbox, clock: Clock, seconds: float) -> list[Description | Refusal]:
    """Everything found in so many seconds of looking."""
    found = []
    for _ in range(round(seconds / LOOK_EVERY_S)):
        found.append(inbox.look())
        clock.now += LOOK_EVERY_S
    return [item for item in found if item is not None]


# --- ours --------------------------------------------------------------------------------------------------------


def test_ours_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """CLI contract: MINE is replaced by rename whenever it changes. Who has the old one open keeps the old text."""
    path = tmp_path / "mine"
    outbox = FileOutbox(path)
    outbox.publish(MINE)
    with path.open() as before:
        changed = Description(credentials=MINE.credentials, candidates=(HOST, LATE), complete=True)
        outbox.publish(changed)
        assert before.read() == TEXT
    assert path.read_text() == changed.to_sdp()
    assert os.listdir(tmp_path) == ["mine"]


def test_ours_is_for_our_eyes_only(tmp_path: Path) -> None:
    """There is a password in it."""
    FileOutbox(tmp_path / "mine").publish(MINE)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600


def test_ours_is_not_touched_without_news(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    outbox = FileOutbox(path)
    outbox.publish(MINE)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    outbox.publish(MINE)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_credentials_alone_are_not_published(tmp_path: Path) -> None:
    """A tool that reads once would find nothing to connect to; candidates are milliseconds away."""
    path = tmp_path / "mine"
    outbox = FileOutbox(path)
    outbox.publish(Description(credentials=MINE.credentials))
    assert not path.exists()
    outbox.publish(Description(credentials=MINE.credentials, complete=True))
    assert path.exists()


def test_a_failure_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine"
    outbox = FileOutbox(path)
    outbox.publish(MINE)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        outbox.publish(Description(credentials=MINE.credentials, candidates=(LATE,)))
    assert os.listdir(tmp_path) == ["mine"]
    path.rmdir()
    outbox.publish(Description(credentials=MINE.credentials, candidates=(LATE,)))
    assert path.is_file()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    FileOutbox(tmp_path / "link").publish(MINE)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == TEXT


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing" / "mine", "does not exist"),
        (lambda folder: folder, "is no file"),
        (lambda folder: "/dev/null", "is no file"),
    ],
)
def test_what_cannot_be_a_file_of_ours_is_refused(
    tmp_path: Path, make: Callable[[Path], str | Path], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        FileOutbox(make(tmp_path))


@pytest.mark.parametrize("length", [250, 255])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path, length: int) -> None:
    """What is written before the rename has a name of its own."""
    path = tmp_path / ("a" * length)
    FileOutbox(path).publish(MINE)
    assert path.read_text() == TEXT
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("name", ["a" * 256, "a" * 300, "é" * 128, "a/" * 3000])
def test_a_name_that_is_too_long_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="File name too long") as caught:
        FileOutbox(tmp_path / name)
    assert len(str(caught.value)) < 120


# --- theirs ------------------------------------------------------------------------------------------------------


def test_theirs_is_awaited(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """CLI contract: THEIRS is awaited."""
    assert looks(inbox, clock, 5.0) == []
    path.write_text(TEXT)
    assert inbox.look() == MINE
    assert looks(inbox, clock, 5.0) == []


def test_theirs_is_watched(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """CLI contract: then watched; later candidates are appended after end-of-candidates."""
    path.write_text(TEXT)
    looks(inbox, clock, 5.0)
    with path.open("a") as file:
        file.write(f"a={LATE.to_sdp()}\n")
    found = inbox.look()
    assert isinstance(found, Description)
    assert (found.candidates, found.complete) == ((HOST, LATE), True)


def test_changes_within_one_tick_of_the_file_systems_clock(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """Same file, same size, and often the same times: written again within the 4 ms that a tick lasts."""
    path.write_text(TEXT)
    assert inbox.look() == MINE
    for number in range(1000, 1100):
        path.write_text(TEXT.replace("abcd", str(number)))
        found = inbox.look()
        assert isinstance(found, Description) and found.credentials.ufrag == str(number)


def test_other_credentials_come_through_too(inbox: FileInbox, path: Path, clock: Clock, tmp_path: Path) -> None:
    """New credentials in THEIRS are an ICE restart; by rename, as we do it ourselves."""
    path.write_text(TEXT)
    looks(inbox, clock, 5.0)
    (tmp_path / "new").write_text(TEXT.replace("abcd", "wxyz"))
    (tmp_path / "new").rename(path)
    found = inbox.look()
    assert isinstance(found, Description) and found.credentials.ufrag == "wxyz"


def test_half_a_line_is_not_believed(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """A password that is cut after 22 characters would be a password, and its other half a restart."""
    path.write_text(TEXT[: TEXT.index("lmn")])
    assert inbox.look() is None
    path.write_text(TEXT)
    assert inbox.look() == MINE


def test_credentials_without_the_rest_are_not_believed_at_once(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """The options stand behind them, and count from the first time on."""
    path.write_text("".join(TEXT.splitlines(keepends=True)[:2]))
    assert inbox.look() is None
    path.write_text(TEXT)
    assert inbox.look() == MINE


@pytest.mark.parametrize("text", [TEXT.rstrip("\n"), "".join(TEXT.splitlines(keepends=True)[:3])])
def test_a_tool_may_leave_it_at_that(inbox: FileInbox, path: Path, clock: Clock, text: str) -> None:
    """No newline at the end, or no candidate yet: believed a look later, within the 50 ms of the contract."""
    path.write_text(text)
    assert looks(inbox, clock, 2 * LOOK_EVERY_S) == [Description.parse(text)]
    assert 2 * LOOK_EVERY_S <= 0.050


def test_nonsense_is_told_once_and_forgiven(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """An unparsable file is looked at again for half a second, then told of, and then still watched."""
    path.write_text("a=ice-ufrag:abcd\n")
    assert looks(inbox, clock, 0.45) == []
    (refusal,) = looks(inbox, clock, 5.0)
    assert isinstance(refusal, Refusal) and "ice-pwd" in refusal.reason and str(path) in refusal.reason
    path.write_text("a=ice-ufrag:abcd\na=ice-pwd:short\n")
    (other,) = looks(inbox, clock, 5.0)
    assert isinstance(other, Refusal) and other.reason != refusal.reason
    path.write_text(TEXT)
    assert inbox.look() == MINE


def test_nonsense_for_a_moment_is_not_told(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """A tool that writes line by line."""
    lines = TEXT.splitlines(keepends=True)
    for end in range(1, 3):
        path.write_text("".join(lines[:end])[:-12])
        assert looks(inbox, clock, 0.2) == []
    path.write_text(TEXT)
    assert looks(inbox, clock, 5.0) == [MINE]


def test_old_nonsense_does_not_count_against_new(inbox: FileInbox, path: Path, clock: Clock) -> None:
    path.write_text("a=ice-ufrag:abcd\n")
    assert looks(inbox, clock, 0.3) == []
    path.unlink()
    assert looks(inbox, clock, 5.0) == []
    path.write_text("a=ice-ufrag:abcd\n")
    assert looks(inbox, clock, 0.3) == []


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe\x00\x01" * 100, b"\x00", b"a=candidate:", b"a=ice-ufrag:\xe4\xf6\n", b"x" * (1 << 20) + b"x\n"],
    ids=["binary", "null", "no credentials", "not ASCII", "too long"],
)
def test_any_bytes_are_refused_in_words(inbox: FileInbox, path: Path, clock: Clock, text: bytes) -> None:
    path.write_bytes(text)
    (refusal,) = looks(inbox, clock, 2.0)
    assert isinstance(refusal, Refusal) and str(path) in refusal.reason


def calls(profile: cProfile.Profile, name: str) -> int:
    """How often something of this name was called."""
    found = [(each.code, each.callcount) for each in profile.getstats()]
    return sum(count for code, count in found if name in (code if isinstance(code, str) else code.co_qualname))


@pytest.mark.parametrize(
    "text",
    [
        b"a=ice-ufrag:abcd\n",
        b"a=ice-ufrag:" + b"\xff" * 900_000 + b"\na=ice-pwd:0123456789abcdefghijklmn\n",
        TEXT.encode() + b"a=candidate:bad\n",
        b"x" * (2 << 20),
    ],
    ids=["no password", "bad user name", "bad candidate", "too long"],
)
def test_nonsense_is_parsed_once(inbox: FileInbox, path: Path, clock: Clock, text: bytes) -> None:
    """Whoever can write the file cannot keep us busy with one text; the next one is seen as fast as ever."""
    path.write_bytes(text)
    with cProfile.Profile() as profile:
        (refusal,) = looks(inbox, clock, 5.0)
    assert isinstance(refusal, Refusal) and len(refusal.reason) < 400 + len(str(path))
    assert calls(profile, "Description.parse") <= 1
    with cProfile.Profile() as profile:
        assert looks(inbox, clock, 60.0) == []
    assert calls(profile, "posix.open") == 0 and calls(profile, "posix.stat") == 4000
    path.write_text(TEXT)
    assert inbox.look() == MINE


def test_nonsense_is_told_of_by_those_who_look_rarely(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """A program that was held up for seconds between two looks."""
    path.write_text("a=ice-ufrag:abcd\n")
    found = []
    for _ in range(5):
        found.append(inbox.look())
        clock.now += 10.0
    (refusal,) = [each for each in found if each is not None]
    assert isinstance(refusal, Refusal) and "ice-pwd" in refusal.reason


def test_old_nonsense_is_forgotten_once_the_text_makes_sense_again(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """The text that was taken needs not be taken again, and what comes after it has its own half second."""
    path.write_text(TEXT)
    assert inbox.look() == MINE
    path.write_text("a=ice-ufrag:abcd\n")
    assert looks(inbox, clock, 0.3) == []
    path.write_text(TEXT)
    assert looks(inbox, clock, 5.0) == []
    path.write_text("a=ice-ufrag:abcd\n")
    assert looks(inbox, clock, 0.3) == []
    assert len(looks(inbox, clock, 5.0)) == 1


def test_an_empty_file_is_refused_after_a_moment(inbox: FileInbox, path: Path, clock: Clock) -> None:
    path.touch()
    (refusal,) = looks(inbox, clock, 2.0)
    assert isinstance(refusal, Refusal)


def test_foreign_spellings(inbox: FileInbox, path: Path) -> None:
    """A byte order mark, CRLF, and lines of SDP that say nothing to us."""
    path.write_bytes(b"\xef\xbb\xbfv=0\r\n" + TEXT.replace("\n", "\r\n").encode())
    assert inbox.look() == MINE


def test_what_is_no_file(inbox: FileInbox, path: Path, clock: Clock) -> None:
    """A folder, and a pipe that nobody writes to: told of, and not waited for."""
    path.mkdir()
    (refusal,) = looks(inbox, clock, 2.0)
    assert isinstance(refusal, Refusal) and "it is no file" in refusal.reason
    path.rmdir()
    os.mkfifo(path)
    assert looks(inbox, clock, 2.0) == []
    path.unlink()
    path.write_text(TEXT)
    assert inbox.look() == MINE


def test_a_file_that_vanishes_takes_nothing_back(inbox: FileInbox, path: Path, clock: Clock) -> None:
    path.write_text(TEXT)
    assert inbox.look() == MINE
    path.unlink()
    assert looks(inbox, clock, 5.0) == []
    path.write_text(TEXT)
    assert looks(inbox, clock, 5.0) == []
