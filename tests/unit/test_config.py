"""Is every value of a configuration checked, and told with its limit?"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import ssl
from typing import Any

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import NOMINATION_WAIT_S, Config, IceServer
from iceagent.errors import UsageError
from iceagent.net.host import Proxy
from relay.account import TurnCredentials


def test_the_defaults_are_those_of_the_rfcs() -> None:
    config = Config()
    assert (config.ta_s, config.rto_s, config.max_pairs) == (0.050, 0.500, 100)
    assert (config.consent_interval_s, config.consent_timeout_s, config.pac_timeout_s) == (5.0, 30.0, 39.5)
    assert (config.components, config.loopback, config.lite) == (1, False, False)
    assert (config.burst, config.early_checks_s) == (5, (0.100, 0.200, 0.400))
    assert (config.openers, config.reroll, config.late_candidates) == (True, True, True)
    assert config.nomination_wait_s == NOMINATION_WAIT_S
    assert set(NOMINATION_WAIT_S) == set(CandidateType)


@pytest.mark.parametrize(
    ("name", "low", "high", "step"),
    [
        ("components", 1, 256, 1),
        ("ta_s", 0.005, 60.0, 0.001),
        ("burst", 1, 5, 1),
        ("rto_s", 0.5, 60.0, 0.01),
        ("max_pairs", 1, 10_000, 1),
        ("max_peer_reflexive", 0, 10_000, 1),
        ("dscp", 0, 63, 1),
        ("consent_timeout_s", 8.0, 30.0, 0.1),
    ],
)
def test_a_range_is_kept_to_its_ends(name: str, low: float, high: float, step: float) -> None:
    for value in (low, high):
        changed: dict[str, Any] = {name: value}
        assert getattr(Config(**changed), name) == value
    for value in (low - step, high + step):
        changed = {name: value}
        with pytest.raises(UsageError) as caught:
            Config(**changed)
        assert name in str(caught.value) and str(value) in str(caught.value) and f"to {high:g}" in str(caught.value)


@pytest.mark.parametrize(
    ("interval_s", "timeout_s", "complaint"),
    [
        (5.0, 8.0, None),
        (23.0, 30.0, None),
        (23.3, 29.9, "consent_timeout_s is 29.9, allowed is 29.96 to 30"),
        (23.4, 30.0, "consent_interval_s is 23.4, allowed is 5 to 23.3"),
        (4.9, 30.0, "consent_interval_s is 4.9, allowed is 5 to 23.3"),
    ],
)
def test_the_slowest_consent_check_has_time_to_be_answered(
    interval_s: float, timeout_s: float, complaint: str | None
) -> None:
    """RFC 7675, 5.1: the interval varies by 0.8 … 1.2; here even the longest leaves two seconds."""
    if complaint is None:
        assert Config(consent_interval_s=interval_s, consent_timeout_s=timeout_s).consent_interval_s == interval_s
    else:
        with pytest.raises(UsageError, match=complaint):
            Config(consent_interval_s=interval_s, consent_timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"early_checks_s": (0.1, 0.2, 0.3, 0.4)}, "4 times, at most 3"),
        ({"port_range": (0, 100)}, "port_range is 0"),
        ({"port_range": (5000, 4999)}, "port_range is 5000 to 4999: the last port is below the first"),
        ({"port_range": (5000, 65536)}, "65536"),
        ({"bind_hosts": ("localhost",)}, "'localhost' is not an IP address"),
        ({"external_addresses": {"x": None}}, "'x' is not an IP address"),
        ({"external_addresses": {"192.0.2.1": "y"}}, "'y' is not an IP address"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config(**changed)
    assert complaint in str(caught.value)


TURN = IceServer(urls=("turn:192.0.2.1",), username="u", credential="secret")


async def credentials() -> TurnCredentials:
    raise AssertionError("it is called")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"urls": ()}, '"urls" is empty'),
        ({"urls": b"turn:h"}, '"urls" is of type bytes, a tuple of texts is expected'),
        ({"urls": None}, '"urls" is of type NoneType'),
        ({"urls": ("stun:h", 5)}, '"urls" has something of type int in it'),
        ({"urls": ("stun:h", "http://h")}, "a server begins with stun:"),
        ({"urls": ("turn://h",)}, "no // after turn: (RFC 7065, 3.1)"),
        ({"urls": ("stun://h",)}, "no // after stun: (RFC 7064, 3.1)"),
        ({"urls": ("stun:h", "turn:h")}, "turn:h has no username and credential"),
        ({"urls": ("turn:h",), "username": "u"}, '"username" is given alone'),
        ({"urls": ("turn:h",), "credential": "secret"}, '"credential" is given alone'),
        ({"urls": ("stun:h",), "username": "u"}, '"username" is given alone'),
        ({"urls": ("turn:h",), "username": "u", "credential": ""}, '"credential" is empty'),
        ({"urls": ("turn:h",), "username": "", "credential": "secret"}, '"username" is empty'),
        ({"urls": ("turn:h",), "username": "u", "credential": 5}, '"credential" is no text (str), but of type int'),
        ({"urls": ("turn:h",), "username": "u", "credential": b"secret"}, '"credential" is no text (str)'),
        ({"urls": ("turn:h",), "username": 5, "credential": "secret"}, '"username" is no text (str)'),
        ({"urls": ("turn:h",), "credentials": "secret"}, '"credentials" is no async function, but of type str'),
        (
            {"urls": ("turn:h",), "username": "u", "credential": "secret", "credentials": credentials},
            '"credentials" gives user name and password: leave "username" out',
        ),
    ],
)
def test_a_server_that_cannot_be(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        IceServer(**values)
    assert complaint in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("urls", ["turn:h", ["turn:h"], ("turn:h",)])
def test_the_urls_of_a_server_become_a_tuple(urls: Any) -> None:
    """W3C, RTCIceServer: ``(DOMString or sequence<DOMString>) urls``."""
    assert IceServer(urls=urls, credentials=credentials).urls == ("turn:h",)


def test_what_relays_is_a_turn_server() -> None:
    assert TURN.is_turn and not IceServer(urls=("stun:h",)).is_turn
    assert IceServer(urls=("stun:h", "turns:h"), credentials=credentials).is_turn


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"servers": TURN}, "servers is one IceServer, a tuple of them is expected: servers=(server,)"),
        ({"servers": "turn:h"}, "servers is of type str"),
        ({"servers": (TURN, "turn:h")}, "servers, entry 2: of type str, no IceServer; IceServer(urls=('turn:h',))"),
        ({"servers": ({"urls": "turn:h"},)}, "servers, entry 1: of type dict, no IceServer; see parse_ice_servers"),
        ({"relay_only": True}, "relay_only needs a TURN server: servers has none"),
        ({"relay_only": True, "servers": (IceServer(urls=("stun:h",)),)}, "relay_only needs a TURN server"),
        ({"relay_only": True, "lite": True, "servers": (TURN,)}, "relay_only and lite contradict each other"),
        ({"proxy": "http://user:secret@h"}, "proxy is of type str; Proxy.parse(text) reads a URL"),
        ({"ssl_context": "x"}, "ssl_context is of type str, an ssl.SSLContext is expected"),
    ],
)
def test_a_wrong_type_or_a_contradiction(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config(**values)
    assert complaint in str(caught.value) and "secret" not in str(caught.value)


def test_what_turn_needs_is_taken() -> None:
    context = ssl.create_default_context()
    given: Any = [TURN]
    config = Config(servers=given, relay_only=True, proxy=Proxy.parse("http://h:3128"), ssl_context=context)
    assert (config.servers, config.ssl_context) == ((TURN,), context)


def test_a_servers_credential_is_not_printed() -> None:
    server = IceServer(urls=("turn:192.0.2.1",), username="u", credential="secret")
    assert "secret" not in repr(server) and "secret" not in repr(Config(servers=(server,)))


def test_it_can_be_copied_and_pickled() -> None:
    """Applications send a configuration to their worker processes."""
    config = Config()
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.asdict(config)["components"] == 1


@pytest.mark.parametrize(("value", "is_good"), [(0.0, True), (0.5, True), (1e-9, False), (-1.0, False), (6.0, False)])
def test_consent_slack_is_nothing_or_worth_it(value: float, is_good: bool) -> None:
    if is_good:
        assert Config(consent_slack_s=value).consent_slack_s == value
    else:
        with pytest.raises(UsageError, match="consent_slack_s"):
            Config(consent_slack_s=value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("portmap", "no", "portmap is of type str, True or False is expected"),
        ("mirror", 1, "mirror is of type int, True or False is expected"),
        ("ta_s", "0.05", "ta_s is of type str, a number is expected"),
        ("components", True, "components is of type bool, a number is expected"),
        ("port_range", "6000", r"port_range is '6000', two ports are expected: \(first, last\)"),
        ("port_range", (6000,), r"port_range is \(6000,\), two ports are expected"),
        ("gather_timeout_s", -1, "gather_timeout_s is -1, allowed is 0 to 3600"),
        ("pac_timeout_s", -0.1, "pac_timeout_s is -0.1, allowed is 0 to 3600"),
    ],
)
def test_a_value_of_another_type_is_told_with_what_is_expected(name: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        Config(**{name: value})  # type: ignore[arg-type]
