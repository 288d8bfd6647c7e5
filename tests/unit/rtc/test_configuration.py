"""What do W3C's names and ours make of an agent, and what is refused, in which words?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from iceagent import Config, IceServer, UsageError
from iceagent.rtc import RTC_DEFAULTS, PeerConnection
from iceagent.rtc.configuration import agent_config

ALL, RELAY = RTCIceTransportPolicy.ALL, RTCIceTransportPolicy.RELAY
TURN = RTCIceServer(urls="turn:turn.example", username="me", credential="secret")


def made(*servers: RTCIceServer, policy: RTCIceTransportPolicy = ALL, **options: Any) -> Config:
    return agent_config(servers, policy, options)


def test_the_defaults_are_ours_but_for_three() -> None:
    assert agent_config(None, ALL, {}) == agent_config([], ALL, {}) == RTC_DEFAULTS
    assert replace(Config(), portmap=False, mirror=False, resolve_mdns=True) == RTC_DEFAULTS


def test_all_servers_are_used_with_all_their_urls() -> None:
    """Aiortc keeps the first STUN and the first TURN server, of one URL each."""
    config = made(
        RTCIceServer(urls=["stun:one.example", "stun:two.example:3479"]),
        RTCIceServer(
            urls=["turn:three.example?transport=udp", "turns:three.example:443?transport=tcp"],
            username="me",
            credential="secret",
        ),
        RTCIceServer(urls="stun:[2001:db8::1]"),
        TURN,
    )
    assert config.servers == (
        IceServer(urls=("stun:one.example", "stun:two.example:3479")),
        IceServer(
            urls=("turn:three.example?transport=udp", "turns:three.example:443?transport=tcp"),
            username="me",
            credential="secret",
        ),
        IceServer(urls=("stun:[2001:db8::1]",)),
        IceServer(urls=("turn:turn.example",), username="me", credential="secret"),
    )


def test_urls_may_be_any_sequence_of_texts() -> None:
    assert made(RTCIceServer(urls=("stun:a.example", "stun:b.example"))).servers[0].urls == (  # type: ignore[arg-type]
        "stun:a.example",
        "stun:b.example",
    )


def test_an_account_is_of_no_account_with_stun() -> None:
    """W3C, 4.2.4: username and credential are for TURN; applications give all servers the same."""
    config = made(RTCIceServer(urls="stun:stun.example", username="me", credential="secret"))
    assert config.servers == (IceServer(urls=("stun:stun.example",)),)
    # Alone, too.
    assert made(RTCIceServer(urls="stun:stun.example", username="me")).servers == config.servers


def test_an_account_is_kept_where_one_of_several_urls_is_a_turn_servers() -> None:
    (server,) = made(
        RTCIceServer(urls=["stun:a.example", "turn:a.example"], username="me", credential="secret")
    ).servers
    assert (server.username, server.credential) == ("me", "secret")


@pytest.mark.parametrize("url", ["TURN:turn.example", "Turns:turn.example", "STUN:stun.example"])
def test_a_scheme_is_written_as_one_likes(url: str) -> None:
    """RFC 3986, 3.1: schemes are case-insensitive."""
    (server,) = made(RTCIceServer(urls=url, username="me", credential="secret")).servers
    assert server.is_turn is (not url.startswith("STUN"))
    assert server.username == (None if url.startswith("STUN") else "me")


def test_policy_relay_opens_no_other_way() -> None:
    assert not made(TURN).relay_only
    assert made(TURN, policy=RELAY).relay_only


def test_policy_relay_needs_a_turn_server() -> None:
    for servers in ((), (RTCIceServer(urls="stun:stun.example"),)):
        with pytest.raises(UsageError, match="TURN"):
            made(*servers, policy=RELAY)


def test_options_are_fields_of_the_agents_configuration() -> None:
    def is_wired(interface: object) -> bool:
        return True

    config = made(portmap=True, port_range=(50000, 50010), interface_filter=is_wired, resolve_mdns=False)
    assert (config.portmap, config.port_range, config.resolve_mdns, config.mirror) == (
        True,
        (50000, 50010),
        False,
        False,
    )
    assert config.interface_filter is is_wired


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"servers": ()}, "servers is not set here: RTCConfiguration.iceServers says it"),
        ({"relay_only": True}, "relay_only is not set here: RTCConfiguration.iceTransportPolicy says it"),
        ({"components": 2}, "components is not set here: aiortc multiplexes RTP and RTCP"),
        ({"lite": True}, "lite is not set here: browsers expect a full agent"),
        ({"portRange": (1, 2)}, "portRange is no field of iceagent.Config"),
        ({"": 1}, " is no field of iceagent.Config"),
        ({"port_range": (0, 5)}, "port_range is 0, allowed is 1 to 65535"),
        ({"port_range": (60000, 70000)}, "port_range is 70000, allowed is 1 to 65535"),
        ({"port_range": (6000, 5000)}, "port_range"),
        ({"bind_hosts": ("nowhere",)}, "'nowhere' is not an IP address"),
        ({"ta_s": 0.001}, "ta_s is not set here: aiortc writes no ice-pacing"),
    ],
)
def test_wrong_options_are_refused_by_the_connection_itself(options: dict[str, Any], complaint: str) -> None:
    """And not by its first channel."""
    with pytest.raises(UsageError) as caught:
        PeerConnection(RTCConfiguration(iceServers=[]), **options)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        (RTCIceServer(urls=[]), '"urls" is empty'),
        (RTCIceServer(urls=""), "a server begins with stun:, stuns:, turn: or turns:"),
        (RTCIceServer(urls="http://turn.example"), "a server begins with stun:, stuns:, turn: or turns:"),
        (RTCIceServer(urls="turn:"), "turn:"),
        (RTCIceServer(urls="stun:stun.example:99999"), "99999"),
        (RTCIceServer(urls="turn:turn.example"), "has no username and credential"),
        (RTCIceServer(urls="turn:turn.example", username="me"), '"username" is given alone'),
        (RTCIceServer(urls="turn:turn.example", credential="secret"), '"credential" is given alone'),
        (RTCIceServer(urls="turn:turn.example", username="", credential="secret"), "username"),
        (RTCIceServer(urls="turn:t.example", username="me", credential="x", credentialType="oauth"), "only password"),
        (RTCIceServer(urls=7), "urls"),  # type: ignore[arg-type]
        (RTCIceServer(urls=None), "urls"),  # type: ignore[arg-type]
        (RTCIceServer(urls=[None]), "urls"),  # type: ignore[list-item]
        (RTCIceServer(urls=["turn:t.example", 7], username="me", credential="x"), "urls"),  # type: ignore[list-item]
    ],
)
def test_wrong_servers_are_refused_by_the_connection_itself(server: RTCIceServer, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        PeerConnection(RTCConfiguration(iceServers=[RTCIceServer(urls="stun:fine.example"), server]))
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_connection_without_a_configuration_asks_nobody() -> None:
    """Aiortc would ask a public server. Nothing of it runs yet: this is said before there is a loop."""
    for connection in (
        PeerConnection(),
        PeerConnection(RTCConfiguration()),
        PeerConnection(RTCConfiguration(iceServers=[])),
    ):
        assert connection.agents == []
        assert connection.path() is None
        assert connection.localDescription is None
    assert agent_config(RTCConfiguration().iceServers, ALL, {}).servers == ()
