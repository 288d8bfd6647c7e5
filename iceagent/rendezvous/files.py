"""How are descriptions exchanged by files?

Ours is replaced by rename, so that a reader sees the old text or the new one and never a half. Theirs may not exist
yet, may be replaced, appended to or overwritten by any tool at any time, and is looked at every 15 ms: its status, and
while that is new, its text. A text that may be half of one (no newline at its end, or no candidate yet) is believed
when it is the same a look later; one that cannot be parsed has half a second to become another before anybody is told,
and is not read again before the status changes.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from iceagent.description import Description
from iceagent.errors import InvalidDescription, PeerError, UsageError
from iceagent.net.address import quoted
from iceagent.rendezvous.exchange import Refusal

__all__ = ["LOOK_EVERY_S", "FileInbox", "FileOutbox"]

# CLI contract: a change is seen within 50 ms; a text without a newline at its end needs a second look.
LOOK_EVERY_S = 0.015
# A file that was written twice within one tick of the file system's clock (4 ms, a second on some) has the same status.
_RACY_S = 1.1
# How long a text may make no sense before it is an error.
_PATIENCE_S = 0.5
# The most candidates a description may have, at the length a line may have.
_MAX_FILE = 1 << 20

Signature = tuple[int, int, int, int]


class FileOutbox:
    """Writes our description to a file.

    Args:
        path: replaced whenever the description changes; a link is followed.

    Raises:
        UsageError: it cannot be a file of ours: its folder is missing, its name is too long, or it is something else
            than a file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(os.path.realpath(path))
        self._text = ""
        try:
            # ENAMETOOLONG is what exists() does not take for a no.
            is_there = self._path.exists()
        except OSError as error:
            raise UsageError(f"{quoted(str(path))} cannot be written: {error.strerror}") from error
        if is_there and not self._path.is_file():
            raise UsageError(f"{path} is no file, and is not going to be replaced by one")
        if not self._path.parent.is_dir():
            raise UsageError(f"the folder of {path} does not exist")
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise UsageError(f"the folder of {path} cannot be written to")

    def publish(self, description: Description) -> None:
        """Replace the file, if there is something new and something to connect to in it.

        Raises:
            OSError: it could not be written; the old one is untouched.
        """
        text = description.to_sdp()
        if text == self._text or not (description.candidates or description.complete):
            return
        _replace(self._path, text)
        self._text = text


def _replace(path: Path, text: str) -> None:
    # mkstemp makes it readable for its owner only: there is a password in it.
    # The name does not contain the file's own, which may be as long as names can be.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".ice-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class FileInbox:
    """Reads the peer's description from a file, again whenever it changes.

    Args:
        path: need not exist yet.
        now: seconds, monotonic.
    """

    def __init__(self, path: str | Path, now: Callable[[], float]) -> None:
        self._path = Path(path)
        self._now = now
        self._signature: Signature | None = None
        self._changed_at = 0.0
        self._text: bytes | None = None
        self._taken: bytes | None = None
        # The last text that made no sense, and why.
        self._refused: bytes | None = None
        self._why = ""
        self._wrong_since: float | None = None
        self._told: str | None = None

    async def descriptions(self) -> AsyncIterator[Description | Refusal]:
        """What the file says, whenever that is something new; never ends."""
        while True:
            found = self.look()
            if found is not None:
                yield found
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> Description | Refusal | None:
        """Look once; ``None`` where there is nothing new (yet)."""
        now = self._now()
        try:
            is_stable = not self._is_to_be_read(now) or not self._has_changed(_read(self._path))
        except FileNotFoundError:
            self._signature = self._wrong_since = None
            return None
        except OSError as error:
            # Whatever the status says, its text is not known: to be read at the next look.
            self._signature = None
            return self._doubt(f"{self._path} cannot be read: {error.strerror or error}", now)
        return None if self._text is None else self._judge(self._text, is_stable, now)

    def _judge(self, text: bytes, is_stable: bool, now: float) -> Description | Refusal | None:
        if text == self._taken:
            self._wrong_since = self._told = None
            return None
        if text == self._refused:
            return self._doubt(self._why, now)
        return self._parse(text, now) if is_stable or _is_whole(text) else None

    def _has_changed(self, text: bytes) -> bool:
        """Remember what was read; whether it is something else than before."""
        if text == self._text:
            return False
        self._text = text
        return True

    def _is_to_be_read(self, now: float) -> bool:
        """Whether the file's status is new, or too new to be trusted, or its text is still to be judged."""
        status = os.stat(self._path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no file")
        signature = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if signature != self._signature:
            self._signature, self._changed_at = signature, now
        return self._text not in (self._taken, self._refused) or now - self._changed_at < _RACY_S

    def _parse(self, text: bytes, now: float) -> Description | Refusal | None:
        try:
            description = _description(text)
        except PeerError as error:
            self._refused, self._why = text, f"{self._path}: {error}"
            return self._doubt(self._why, now)
        self._taken, self._refused, self._wrong_since, self._told = text, None, None, None
        return description

    def _doubt(self, reason: str, now: float) -> Refusal | None:
        """Something is wrong: tell it once, if it stays so."""
        if self._wrong_since is None:
            self._wrong_since = now
        if now - self._wrong_since < _PATIENCE_S or reason == self._told:
            return None
        self._told = reason
        return Refusal(reason=reason)


def _is_whole(text: bytes) -> bool:
    """Whether no line is cut, and what stands before the candidates is there."""
    return text.endswith(b"\n") and (b"candidate:" in text or b"end-of-candidates" in text)


def _read(path: Path) -> bytes:
    """The text of a file; of one that is too long, one byte more than may be.

    Raises:
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK, a pipe that took the file's place since it was looked at would hold us for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MAX_FILE + 1)


def _description(text: bytes) -> Description:
    if len(text) > _MAX_FILE:
        raise InvalidDescription(f"it has more than {_MAX_FILE} bytes")
    return Description.parse(text.decode("utf-8-sig", errors="replace"))
