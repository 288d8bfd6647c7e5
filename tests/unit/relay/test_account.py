"""User names and passwords of TURN, and what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest

from relay.account import TurnCredentials


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"username": 5}, "username is no text (str), but of type int"),
        ({"username": ""}, "username is empty"),
        ({"password": b"secret"}, "password is no text (str), but of type bytes"),
        ({"password": ""}, "password is empty"),
        ({"lifetime_s": 0}, "lifetime_s is 0, a number above 0 or None is expected"),
        ({"lifetime_s": float("nan")}, "lifetime_s is nan"),
        ({"lifetime_s": "600"}, "lifetime_s is '600'"),
    ],
)
def test_what_is_none(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        TurnCredentials(**{"username": "me", "password": "secret", **changed})
    assert complaint in str(caught.value) and "secret" not in str(caught.value)


def test_the_password_is_not_printed() -> None:
    assert "secret" not in repr(TurnCredentials(username="me", password="secret", lifetime_s=600))
