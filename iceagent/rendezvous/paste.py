"""How are descriptions exchanged by copy and paste?

Ours is shown as a block when its gathering is done, so that one paste is enough; candidates found later are shown as
single lines. Theirs is read line by line: a block ends with ``end-of-candidates``, with an empty line once the password
is known, or with the end of input. A candidate line between blocks belongs to the block before, and is parsed alone:
whatever is pasted, the work grows with its length only.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from iceagent.description import MAX_CANDIDATES, Description
from iceagent.errors import PeerError
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.lines import lines

__all__ = ["Blocks", "PasteInbox", "PasteOutbox"]

# As files.py: the most candidates a description may have, at the length a line may have.
_MAX_BLOCK = 1 << 20


class Blocks:
    """Cuts lines into descriptions, and parses them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        # Those of _NEEDED that stand in the lines.
        self._names: set[str] = set()
        self._before: Description | Refusal | None = None
        self._is_full = False

    def feed(self, line: str) -> Description | Refusal | None:
        """Take a line.

        Returns:
            The whole description, where the line completes one or adds to the one before; why not, where it should.
        """
        name, colon, _ = line.strip().removeprefix("a=").partition(":")
        if name == "candidate" and self._before is not None and "ice-ufrag" not in self._names:
            return self._add(line, self._before)
        if not line.strip():
            return self.finish() if "ice-pwd" in self._names else None
        if self._size + len(line) > _MAX_BLOCK:
            self._clear()
        self._lines.append(line)
        self._size += len(line)
        if colon and name in _NEEDED:
            self._names.add(name)
        return self.finish() if name == "end-of-candidates" else None

    def finish(self) -> Description | Refusal | None:
        """The input ended: what there is, is the description."""
        if not self._lines:
            return None
        self._before, self._is_full = _parse("\n".join(self._lines)), False
        self._clear()
        return self._before

    def _add(self, line: str, before: Description | Refusal) -> Description | Refusal | None:
        """Add a candidate line to a description; to one that was refused, and to one that is full, nothing is added."""
        if isinstance(before, Refusal) or self._is_full:
            return None
        if len(before.candidates) + len(before.ignored) >= MAX_CANDIDATES:
            self._is_full = True
            return Refusal(reason=f"more than {MAX_CANDIDATES} candidates")
        found = _parse_late(line, before)
        if isinstance(found, Refusal):
            return found
        candidates, ignored = before.candidates + found.candidates, before.ignored + found.ignored
        self._before = replace(before, candidates=candidates, ignored=ignored)
        return self._before

    def _clear(self) -> None:
        self._lines.clear()
        self._names.clear()
        self._size = 0


# What a description is nothing without.
_NEEDED = frozenset({"ice-ufrag", "ice-pwd"})


class PasteOutbox:
    """Shows our description.

    Args:
        show: takes the text, one or several lines, to be shown to a person.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown: Description | None = None

    def publish(self, description: Description) -> None:
        """Show it once it is complete; after that, what is new."""
        if not description.complete:
            return
        shown, self._shown = self._shown, description
        if shown is None or shown.credentials != description.credentials:
            self._show(description.to_sdp())
            return
        late = [c for c in description.candidates if c not in shown.candidates]
        if late:
            self._show("".join(f"a={candidate.to_sdp()}\n" for candidate in late))


class PasteInbox:
    """Reads the peer's descriptions from a file descriptor.

    Args:
        fd: 0 is stdin.

    Attributes:
        is_waiting: no description has come yet, and there may be one.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self.is_waiting = True

    @property
    def is_terminal(self) -> bool:
        """Whether a person pastes."""
        return os.isatty(self._fd)

    async def descriptions(self) -> AsyncIterator[Description | Refusal]:
        """Every block; ends with the input."""
        blocks = Blocks()
        async for line in lines(self._fd, _MAX_BLOCK):
            found = blocks.feed(line.decode(errors="replace"))
            if found is not None:
                self.is_waiting = self.is_waiting and isinstance(found, Refusal)
                yield found
        found = blocks.finish()
        self.is_waiting = False
        if found is not None:
            yield found


def _parse(text: str) -> Description | Refusal:
    try:
        return Description.parse(text)
    except PeerError as error:
        return Refusal(reason=str(error))


def _parse_late(line: str, before: Description) -> Description | Refusal:
    """A description with the credentials of the one before, and one candidate line."""
    mine = before.credentials
    return _parse(f"a=ice-ufrag:{mine.ufrag}\na=ice-pwd:{mine.password}\n{line}")
