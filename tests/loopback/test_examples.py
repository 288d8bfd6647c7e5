"""The examples run as they are, as scripts of a user's."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 50

# What each of them prints, line by line.
EXPECTED = {
    "quic_over_ice.py": ["ICE connected: 127.0.0.1:", "QUIC delivered 1,000,000 bytes in "],
}
# What becomes of a file that goes from one to the other.
FILES = "file_transfer.py"
# By tests/lab/test_examples.py, and by tests/browser/test_examples.py.
RUN_ELSEWHERE = {"hole_punching.py", "test_hole_punching.py", "browser_files.py"}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example(name: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=EXAMPLES.parent)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(EXPECTED[name])
    for line, start in zip(lines, EXPECTED[name], strict=True):
        assert line.startswith(start)


@contextmanager
def transfer(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One of the two programs that a file goes between."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / FILES), *map(str, arguments), "--loopback"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """How it ended: its exit code, the lines that it printed, and its complaints."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out.splitlines(), err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "received"
    made.mkdir()
    return made


def by_files(tmp_path: Path, *, is_sender: bool) -> list[str | Path]:
    offer, answer = tmp_path / "offer.sdp", tmp_path / "answer.sdp"
    return ["--out", offer, "--in", answer] if is_sender else ["--in", offer, "--out", answer]


@pytest.mark.parametrize(("size", "steps"), [(0, []), (1, [100]), (3_000_000, range(10, 110, 10))])
def test_a_file_goes_from_one_program_to_the_other(
    tmp_path: Path, folder: Path, size: int, steps: Sequence[int]
) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with (
        transfer("receive", folder, *by_files(tmp_path, is_sender=False)) as receiver,
        transfer("send", file, *by_files(tmp_path, is_sender=True)) as sender,
    ):
        sent, received = ended(sender), ended(receiver)
    assert (sent[0], sent[2], received[0], received[2]) == (0, "", 0, "")
    for verb, lines in (("sent", sent[1]), ("received", received[1])):
        assert lines[0].startswith("connected: 127.0.0.1:") and lines[0].endswith("(direct)")
        assert [line for line in lines if "%" in line] == [f"{verb} {step} % of {size:,} bytes" for step in steps]
        assert lines[-1].startswith(verb) and lines[-1].endswith(digest)
    assert (folder / "film.bin").read_bytes() == file.read_bytes()
    # Nothing is left: no part of a file, and no description that another session could take for its own.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["film.bin", "film.bin", "received"]


def test_the_descriptions_can_be_copied_and_pasted(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("hello")
    pasted = ("--in", "-", "--out", "-")
    with transfer("send", file, *pasted) as sender, transfer("receive", folder, *pasted) as receiver:
        for shows, takes in ((sender, receiver), (receiver, sender)):
            assert shows.stdout is not None and takes.stdin is not None
            lines = iter(shows.stdout.readline, "v=0\n")
            assert "For the other side, the empty line included:\n" in list(lines)
            takes.stdin.write("v=0\n" + "".join(iter(shows.stdout.readline, "\n")) + "\n")
            takes.stdin.flush()
        sent, received = ended(sender), ended(receiver)
    assert (sent[0], sent[2], received[0], received[2]) == (0, "", 0, "")
    assert (folder / "note.txt").read_text() == "hello"


def test_a_file_that_is_there_already_is_not_replaced(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("new")
    (folder / "note.txt").write_text("old")
    with (
        transfer("receive", folder, *by_files(tmp_path, is_sender=False)) as receiver,
        transfer("send", file, *by_files(tmp_path, is_sender=True)) as sender,
    ):
        ends = ended(sender), ended(receiver)
    assert [(end[0], end[2]) for end in ends] == [(1, "there is a file note.txt already\n")] * 2
    assert [path.read_text() for path in folder.iterdir()] == ["old"]


def test_a_receiver_that_is_interrupted_tells_the_sender_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "film.bin"
    with file.open("wb") as handle:
        handle.truncate(100_000_000)
    with (
        transfer("receive", folder, *by_files(tmp_path, is_sender=False)) as receiver,
        transfer("send", file, *by_files(tmp_path, is_sender=True)) as sender,
    ):
        assert sender.stdout is not None
        assert sender.stdout.readline().startswith("connected")
        # It is well on its way before a tenth of it has come.
        while not any(folder.glob(".part-*")):
            assert receiver.poll() is None
            time.sleep(0.02)
        receiver.send_signal(signal.SIGINT)
        received, sent = ended(receiver), ended(sender)
    assert (received[0], received[2]) == (130, "")
    assert (sent[0], sent[2]) == (1, "the receiver is gone\n")
    assert list(folder.iterdir()) == []


def test_a_server_that_does_not_answer_is_told_of_and_the_file_goes_all_the_same(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("hello")
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"stun:127.0.0.1:{silent.getsockname()[1]}"
        with (
            transfer("receive", folder, *by_files(tmp_path, is_sender=False)) as receiver,
            transfer("send", file, *by_files(tmp_path, is_sender=True), "--server", url) as sender,
        ):
            sent, received = ended(sender), ended(receiver)
    assert (sent[0], received[0], received[2]) == (0, 0, "")
    assert sent[2].startswith(f"{url}: ") and len(sent[2].splitlines()) == 1
    assert (folder / "note.txt").read_text() == "hello"


def test_a_text_that_is_no_offer_is_refused_with_a_sentence(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "offer.sdp").write_text("hello\n")
    with transfer("receive", folder, *by_files(tmp_path, is_sender=False)) as receiver:
        assert ended(receiver) == (1, [], "the text is no offer of a data channel\n")


def test_all_examples_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED) | {FILES} | RUN_ELSEWHERE
