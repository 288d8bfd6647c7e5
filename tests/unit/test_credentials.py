"""RFC 8445, 5.3 and RFC 8839, 5.4."""

from __future__ import annotations

import math
from random import SystemRandom

import pytest

from iceagent.credentials import Credentials
from iceagent.errors import InvalidDescription

PASSWORD = "asd88fgpdd777uzjYhagZg"


def test_random_ones_have_the_randomness_that_the_rfc_asks_for() -> None:
    """At least 24 bits of user name fragment and 128 bits of password; 64 characters give 6 bits each."""
    made = [Credentials.random(SystemRandom()) for _ in range(100)]
    assert all(len(c.ufrag) * math.log2(64) >= 24 and len(c.password) * math.log2(64) >= 128 for c in made)
    assert len({c.ufrag for c in made}) == len({c.password for c in made}) == 100
    assert len({character for c in made for character in c.password}) == 64


@pytest.mark.parametrize("ufrag", ["abcd", "a" * 256, "a+/9"])
@pytest.mark.parametrize("password", [PASSWORD, "p" * 22, "p" * 256])
def test_the_limits_are_allowed(ufrag: str, password: str) -> None:
    credentials = Credentials(ufrag=ufrag, password=password)
    assert (credentials.ufrag, credentials.password) == (ufrag, password)


@pytest.mark.parametrize("ufrag", ["", "abc", "a" * 257, "abc:", "ab cd", "abcé", "abcd\n"])
def test_other_fragments_are_refused(ufrag: str) -> None:
    with pytest.raises(InvalidDescription, match="ice-ufrag"):
        Credentials(ufrag=ufrag, password=PASSWORD)


def test_a_long_fragment_is_not_quoted_whole() -> None:
    """A message says what is wrong, whatever the peer sent; what a terminal would obey is escaped."""
    with pytest.raises(InvalidDescription) as caught:
        Credentials(ufrag="\x1b[2J" + "\xff" * 900_000, password=PASSWORD)
    assert len(str(caught.value)) < 140
    assert "\\x1b[2J" in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("password", ["", "p" * 21, "p" * 257, PASSWORD + "\n", PASSWORD + "_"])
def test_other_passwords_are_refused_and_not_shown(password: str) -> None:
    with pytest.raises(InvalidDescription, match="ice-pwd") as caught:
        Credentials(ufrag="abcd", password=password)
    assert not password or password not in str(caught.value)


def test_a_password_is_not_printed() -> None:
    assert PASSWORD not in repr(Credentials(ufrag="abcd", password=PASSWORD))
