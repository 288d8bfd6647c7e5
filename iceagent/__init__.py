"""A full ICE agent for Python: finds the best working path to a peer, keeps it alive, and goes on looking.

In four lines, where ``exchange`` carries our description to the peer and brings back the peer's::

    async with iceagent.Agent(controlling=True) as agent:
        agent.set_remote_description(await exchange(await agent.gather()))
        await agent.connect()
        agent.send(b"hello"); print(await agent.recv())

The names below are loaded when they are first used (PEP 562), so that ``import relay`` or ``import portmap``, which
need :mod:`iceagent.net` only, load the ground floor and nothing else of ICE.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Agent",
    "AgentClosed",
    "AgentState",
    "Candidate",
    "CandidateType",
    "Cause",
    "Config",
    "ConnectFailed",
    "ConsentLost",
    "DataReceived",
    "Description",
    "Event",
    "GatheringDone",
    "HistoryEntry",
    "IceAgentError",
    "IceRestarted",
    "IceServer",
    "InvalidCandidate",
    "InvalidDescription",
    "LocalCandidateFound",
    "MachineSlept",
    "NetworkChanged",
    "NoPath",
    "Nominated",
    "PacketDropped",
    "Path",
    "PathDiagnosed",
    "PathDoubted",
    "PathTrusted",
    "PeerClosed",
    "PeerError",
    "PortMapped",
    "PortMappingLost",
    "PortMappingUnavailable",
    "Proxy",
    "RelayLost",
    "RelayMoved",
    "RelayRefused",
    "RelaySilent",
    "RemoteCandidateAdded",
    "RemoteCandidateRefused",
    "RestartAdvised",
    "RoleChanged",
    "SelectedPathChanged",
    "ServerFailed",
    "ServerOptions",
    "ServerUnusable",
    "StateChanged",
    "TransportAddress",
    "TurnCredentials",
    "UnsupportedCandidate",
    "UnsupportedPlatform",
    "UsageError",
    "__version__",
    "create_datagram_endpoint",
    "parse_ice_servers",
    "serve",
    "server_ssl_context",
]

__version__ = "0.1.0"

# Public name → the module that it is loaded from. Type checkers read the imports below instead; a test compares both.
_MODULES = {
    "Agent": "iceagent.agent",
    "AgentClosed": "iceagent.errors",
    "AgentState": "iceagent.events",
    "Candidate": "iceagent.candidate",
    "CandidateType": "iceagent.candidate",
    "Cause": "iceagent.events",
    "Config": "iceagent.config",
    "ConnectFailed": "iceagent.errors",
    "ConsentLost": "iceagent.errors",
    "DataReceived": "iceagent.events",
    "Description": "iceagent.description",
    "Event": "iceagent.events",
    "GatheringDone": "iceagent.events",
    "HistoryEntry": "iceagent.history",
    "IceAgentError": "iceagent.errors",
    "IceRestarted": "iceagent.events",
    "IceServer": "iceagent.config",
    "InvalidCandidate": "iceagent.errors",
    "InvalidDescription": "iceagent.errors",
    "LocalCandidateFound": "iceagent.events",
    "MachineSlept": "iceagent.events",
    "NetworkChanged": "iceagent.events",
    "Nominated": "iceagent.events",
    "NoPath": "iceagent.errors",
    "PacketDropped": "iceagent.events",
    "Path": "iceagent.events",
    "PathDiagnosed": "iceagent.events",
    "PathDoubted": "iceagent.events",
    "PathTrusted": "iceagent.events",
    "PeerClosed": "iceagent.events",
    "PortMapped": "iceagent.events",
    "PortMappingLost": "iceagent.events",
    "PortMappingUnavailable": "iceagent.events",
    "PeerError": "iceagent.errors",
    "Proxy": "iceagent.net.host",
    "RelayLost": "iceagent.events",
    "RelayMoved": "iceagent.events",
    "RelayRefused": "iceagent.events",
    "RelaySilent": "iceagent.events",
    "RemoteCandidateAdded": "iceagent.events",
    "RemoteCandidateRefused": "iceagent.events",
    "RestartAdvised": "iceagent.events",
    "RoleChanged": "iceagent.events",
    "SelectedPathChanged": "iceagent.events",
    "ServerFailed": "iceagent.events",
    "ServerOptions": "relay.server",
    "ServerUnusable": "iceagent.errors",
    "StateChanged": "iceagent.events",
    "TransportAddress": "iceagent.net.address",
    "TurnCredentials": "relay.account",
    "UnsupportedCandidate": "iceagent.errors",
    "UnsupportedPlatform": "iceagent.errors",
    "UsageError": "iceagent.errors",
    "create_datagram_endpoint": "iceagent.endpoint",
    "parse_ice_servers": "iceagent.ice_servers",
    "serve": "iceagent.serving",
    "server_ssl_context": "relay.server",
}

if TYPE_CHECKING:
    from iceagent.agent import Agent
    from iceagent.candidate import Candidate, CandidateType
    from iceagent.config import Config, IceServer
    from iceagent.description import Description
    from iceagent.endpoint import create_datagram_endpoint
    from iceagent.errors import (
        AgentClosed,
        ConnectFailed,
        ConsentLost,
        IceAgentError,
        InvalidCandidate,
        InvalidDescription,
        NoPath,
        PeerError,
        ServerUnusable,
        UnsupportedCandidate,
        UnsupportedPlatform,
        UsageError,
    )
    from iceagent.events import (
        AgentState,
        Cause,
        DataReceived,
        Event,
        GatheringDone,
        IceRestarted,
        LocalCandidateFound,
        MachineSlept,
        NetworkChanged,
        Nominated,
        PacketDropped,
        Path,
        PathDiagnosed,
        PathDoubted,
        PathTrusted,
        PeerClosed,
        PortMapped,
        PortMappingLost,
        PortMappingUnavailable,
        RelayLost,
        RelayMoved,
        RelayRefused,
        RelaySilent,
        RemoteCandidateAdded,
        RemoteCandidateRefused,
        RestartAdvised,
        RoleChanged,
        SelectedPathChanged,
        ServerFailed,
        StateChanged,
    )
    from iceagent.history import HistoryEntry
    from iceagent.ice_servers import parse_ice_servers
    from iceagent.net.address import TransportAddress
    from iceagent.net.host import Proxy
    from iceagent.serving import serve
    from relay.account import TurnCredentials
    from relay.server import ServerOptions, server_ssl_context
else:

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
