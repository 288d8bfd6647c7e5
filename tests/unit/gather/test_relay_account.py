"""Credentials for a TURN server: what an application's function may do, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iceagent.config import IceServer
from iceagent.gather.relay_account import NoCredentials, credentials_of
from iceagent.testing import run
from relay.account import TurnCredentials

GOOD = TurnCredentials(username="me", password="secret", lifetime_s=600)


def asked(function: Any) -> tuple[TurnCredentials | str | None, float]:
    """What an entry with this function gives, or why nothing; and when."""

    async def main() -> tuple[TurnCredentials | str | None, float]:
        found: TurnCredentials | str | None
        try:
            found = await credentials_of(IceServer(urls=("turn:h",), credentials=function))
        except NoCredentials as error:
            found = str(error)
        return found, asyncio.get_running_loop().time()

    return run(main())


def giving(value: Any) -> Any:
    async def function() -> Any:
        return value

    return function


def test_what_it_gives_is_used() -> None:
    assert asked(giving(GOOD)) == (GOOD, 0.0)


@pytest.mark.parametrize("value", [None, ("me", "secret"), {"username": "me"}, "secret", b"secret"])
def test_what_is_no_credentials(value: Any) -> None:
    reason, _ = asked(giving(value))
    kind = type(value).__name__
    assert reason == (
        f"the application gave no credentials, but something of type {kind}: its function is to return "
        "iceagent.TurnCredentials"
    )


def test_what_cannot_be_sent() -> None:
    """RFC 8265, 4.2."""
    reason, _ = asked(giving(TurnCredentials(username="me", password="secret\0")))
    assert (
        reason == "the application gave credentials that cannot be sent: U+0000 is not allowed in a username, realm "
        "or password"
    )


def test_a_function_that_never_returns_is_given_up() -> None:
    async def function() -> TurnCredentials:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("it goes on")

    assert asked(function) == ("the application gave no credentials: nothing within 10 s", 10.0)


def test_a_function_that_raises() -> None:
    async def function() -> TurnCredentials:
        raise TimeoutError("the service is slow")

    assert asked(function) == ("the application gave no credentials: TimeoutError: the service is slow", 0.0)


def test_a_function_that_is_not_async() -> None:
    reason, _ = asked(lambda: GOOD)
    assert isinstance(reason, str) and "TypeError: object TurnCredentials can't be used in 'await'" in reason


def test_without_a_function_the_entrys_own() -> None:
    server = IceServer(urls=("turn:h",), username="me", credential="secret")
    assert run(credentials_of(server)) == TurnCredentials(username="me", password="secret")
