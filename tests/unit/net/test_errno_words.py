"""An errno in words."""

from __future__ import annotations

import errno
import os

from iceagent.net.errno_words import _WORDS, errno_in_words


def test_the_words_are_the_systems() -> None:
    assert {number: os.strerror(number) for number in _WORDS} == _WORDS


def test_what_is_not_in_the_table_has_its_number() -> None:
    assert errno_in_words(errno.ECONNREFUSED) == "Connection refused"
    assert (errno_in_words(12345), errno_in_words(0)) == ("error 12345", "it closed the connection")
