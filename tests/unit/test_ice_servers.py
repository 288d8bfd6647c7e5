"""What services hand out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from iceagent.config import IceServer
from iceagent.errors import UsageError
from iceagent.ice_servers import parse_ice_servers

STUN = "stun:stun.example:3478"
TURN = ["turn:turn.example:3478?transport=udp", "turns:turn.example:5349?transport=tcp"]
RELAY = IceServer(urls=tuple(TURN), username="1700000000:me", credential="c2VjcmV0")
ENTRY = {"urls": TURN, "username": "1700000000:me", "credential": "c2VjcmV0"}


@pytest.mark.parametrize(
    "value",
    [
        [{"urls": STUN}, ENTRY],
        {"iceServers": [{"urls": [STUN]}, {**ENTRY, "credentialType": "password"}], "iceTransportPolicy": "relay"},
        {"ice_servers": [{"url": STUN}, ENTRY], "ttl": "86400", "account_sid": "x"},
    ],
    ids=["W3C", "RTCConfiguration", "Twilio"],
)
def test_lists(value: Any) -> None:
    assert parse_ice_servers(value) == (IceServer(urls=(STUN,)), RELAY)
    assert parse_ice_servers(json.dumps(value)) == parse_ice_servers(value)


@pytest.mark.parametrize(
    "value",
    [
        {"username": "1700000000:me", "password": "c2VjcmV0", "ttl": 86400, "uris": TURN},
        {"iceServers": ENTRY},
        ENTRY,
    ],
    ids=["REST draft, Matrix", "Cloudflare, formerly", "one entry"],
)
def test_one_entry(value: Any) -> None:
    assert parse_ice_servers(value) == (RELAY,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "no JSON"),
        (5, "a list like"),
        ([5], "a list like"),
        ([{}], 'no "urls"'),
        ([{"urls": []}], 'no "urls"'),
        ([{"urls": [STUN] * 65}], "at most 64"),
        ([{"urls": STUN}] * 65, "at most 64"),
        ([{"urls": "http://x"}], "begins with stun:"),
        ([{"urls": TURN}], "no username and credential"),
        ([{"urls": TURN, "username": "secret", "credential": 5}], '"credential" is no text'),
        ([{"urls": TURN, "username": "me", "credential": ""}], '"credential" is empty'),
        ([{"urls": TURN, "username": "", "credential": "secret"}], '"username" is empty'),
        ([{"urls": "turn://h", "username": "me", "credential": "secret"}], "RFC 7065, 3.1"),
        (b"\xff", "no JSON"),
        ([{"urls": STUN}, {"urls": TURN}], "^entry 2: turn:turn.example:3478.transport=udp has no username"),
        ({"iceServers": [{"urls": STUN}, ENTRY, 5]}, "^entry 3: a list like"),
        (ENTRY | {"credential": None}, '^"username" is given alone'),
    ],
)
def test_what_is_none(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_ice_servers(value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_body_of_an_http_response(kind: type[bytes]) -> None:
    assert parse_ice_servers(kind(json.dumps([ENTRY]).encode())) == (RELAY,)


@pytest.mark.parametrize("account", [{"username": "", "credential": ""}, {"username": "me"}, {"credential": 5}])
def test_of_a_stun_server_no_user_is_taken(account: dict[str, Any]) -> None:
    """Providers fill in all fields of all entries."""
    assert parse_ice_servers([{"urls": STUN, **account}]) == (IceServer(urls=(STUN,)),)
