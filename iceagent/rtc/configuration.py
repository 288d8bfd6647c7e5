"""What does an agent under aiortc do by default, and what do W3C's names set of it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from aiortc import RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from iceagent.config import Config, IceServer
from iceagent.errors import UsageError

__all__ = ["RTC_DEFAULTS", "agent_config"]

RTC_DEFAULTS = Config(portmap=False, mirror=False, resolve_mdns=True)
"""What differs from :class:`iceagent.Config`: routers are asked for nothing, no datagram leaves twice (media has its
own repair), and the names that browsers give for their addresses are resolved.
"""

# What W3C's configuration says; and what aiortc rules out.
_GIVEN = {"servers": "iceServers", "relay_only": "iceTransportPolicy"}
_FIXED = {
    "components": "aiortc multiplexes RTP and RTCP",
    "lite": "browsers expect a full agent",
    "mdns": "aiortc writes an IP address into every description",
    "ta_s": "aiortc writes no ice-pacing, without which the peer would not know of it",
}


def agent_config(
    servers: Sequence[RTCIceServer | IceServer] | None, policy: RTCIceTransportPolicy | str, options: dict[str, Any]
) -> Config:
    """The agent's configuration.

    Args:
        servers: W3C's ``iceServers``, or ours, which may have a function for credentials; none: no server is asked.
            (aiortc would ask a public one of Google's.)
        policy: W3C's ``iceTransportPolicy``, be it as a text.
        options: fields of :class:`iceagent.Config`, as they are to be instead of :data:`RTC_DEFAULTS`.

    Raises:
        UsageError: a server's URL or account is wrong, an option is out of its range, is none, or is W3C's to say;
            ``relay`` without a TURN server.
    """
    names = {each.name for each in fields(Config)}
    for name in options:
        if name in _GIVEN:
            raise UsageError(f"{name} is not set here: RTCConfiguration.{_GIVEN[name]} says it")
        if name in _FIXED:
            raise UsageError(f"{name} is not set here: {_FIXED[name]}")
        if name not in names:
            raise UsageError(f"{name} is no field of iceagent.Config")
    try:
        is_relay = RTCIceTransportPolicy(policy) is RTCIceTransportPolicy.RELAY
    except ValueError:
        raise UsageError(f"iceTransportPolicy is {policy!r}, all or relay is expected") from None
    given: Any = servers
    if not isinstance(given, list | tuple | None):
        raise UsageError(f"iceServers is of type {type(given).__name__}, a list of RTCIceServer is expected")
    found = tuple(_server(server) for server in given or ())
    if is_relay and not any(server.is_turn for server in found):
        raise UsageError("iceTransportPolicy relay needs a TURN server in iceServers")
    return replace(RTC_DEFAULTS, **options, servers=found, relay_only=is_relay)


def _server(server: Any) -> IceServer:
    if isinstance(server, IceServer):
        return server
    if not isinstance(server, RTCIceServer):
        kind = type(server).__name__
        raise UsageError(f"iceServers has a {kind} in it, RTCIceServer is expected; see iceagent.parse_ice_servers")
    if server.credentialType != "password":
        raise UsageError(f"credentialType {server.credentialType!r}: only password is known")
    urls: Any = (server.urls,) if isinstance(server.urls, str) else server.urls
    several = urls if isinstance(urls, list | tuple) else ()
    is_turn = any(isinstance(url, str) and url.lower().startswith("turn") for url in several)
    # W3C: user name and credential are of no account with STUN.
    account = (server.username, server.credential) if is_turn else (None, None)
    return IceServer(urls=urls, username=account[0], credential=account[1])
