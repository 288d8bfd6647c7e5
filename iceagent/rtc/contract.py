"""What of aiortc and aioice does the bridge stand on, and what if a version has it no more?

Public classes, and besides names that are aiortc's own business: methods of ``RTCPeerConnection`` that
:class:`iceagent.rtc.PeerConnection` overrides or calls (Python mangles ``__gather`` to ``_RTCPeerConnection__gather``,
and finds it in a subclass first), and what ``RTCDtlsTransport`` calls of an ICE transport. They are looked up before
anything else happens, so that a version that changed them is refused by a sentence, and not by a connection that never
opens. ``tests/unit/rtc/test_contract.py`` holds the list against the version that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

__all__ = ["MEMBERS", "SUPPORTED", "check", "missing"]

SUPPORTED = "1.16"
"""Versions of aiortc that the tests were run with."""

MEMBERS: dict[str, tuple[str, ...]] = {
    "aiortc.rtcpeerconnection:RTCPeerConnection": (
        "__connect",
        "__createDtlsTransport",
        "__gather",
        "__localDescription",
        "__remoteDescription",
        "__updateConnectionState",
        "__updateIceConnectionState",
        "__updateIceGatheringState",
        "__validate_description",
        "addIceCandidate",
        "close",
        "createAnswer",
        "createOffer",
        "getStats",
        "getTransceivers",
        "localDescription",
        "sctp",
        "setLocalDescription",
        "setRemoteDescription",
    ),
    "aiortc.rtcicetransport:RTCIceGatherer": ("gather", "getLocalCandidates", "getLocalParameters", "state"),
    "aiortc.rtcicetransport:RTCIceTransport": (
        "addRemoteCandidate",
        "getRemoteCandidates",
        "iceGatherer",
        "role",
        "start",
        "state",
        "stop",
    ),
    "aiortc.rtcdtlstransport:RTCDtlsTransport": ("_get_stats", "start", "state", "stop", "transport"),
    "aiortc.rtcrtptransceiver:RTCRtpTransceiver": ("_get_mline_index", "mid", "receiver"),
    "aiortc.rtcpeerconnection": ("add_transport_description",),
    "aiortc": (
        "RTCConfiguration",
        "RTCDtlsTransport",
        "RTCIceCandidate",
        "RTCIceGatherer",
        "RTCIceParameters",
        "RTCIceServer",
        "RTCIceTransport",
        "RTCPeerConnection",
        "RTCSessionDescription",
    ),
    "aiortc.exceptions": ("InvalidStateError",),
    "aiortc.rtcconfiguration:RTCIceTransportPolicy": ("ALL", "RELAY"),
    "aiortc.rtcicetransport": ("candidate_from_aioice",),
    "aiortc.sdp": ("MediaDescription", "candidate_to_sdp"),
    "aiortc.sdp:SessionDescription": ("parse",),
    "aiortc.stats": ("RTCStats", "RTCStatsReport", "RTCTransportStats"),
    "aioice": ("Candidate", "Connection", "ConnectionClosed"),
}
"""Where, and which names; a name with two underscores in front is mangled by its class."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "aiortc.rtcpeerconnection:RTCPeerConnection": (
        "__certificates",
        "__closeTask",
        "__configuration",
        "__connectionState",
        "__dtlsTransports",
        "__iceConnectionState",
        "__iceTransports",
        "__isClosed",
        "__sctp_mline_index",
    ),
    "aiortc.rtcicetransport:RTCIceTransport": ("_connection", "_recv", "_role_set", "_send"),
    "aiortc.sdp:MediaDescription": ("ice", "ice_candidates", "ice_candidates_complete", "ice_options"),
}
"""What ``__init__`` gives instances."""


def missing() -> list[str]:
    """What is not there, as ``where.name``; empty: all is."""
    return [f"{where.replace(':', '.')}.{name}" for where, name in _absent()]


def check(aiortc: ModuleType) -> None:
    """See that everything is there.

    Raises:
        ImportError: something is not; the message says what, and which versions have it.
    """
    names = missing()
    if names:
        version = getattr(aiortc, "__version__", "of unknown version")
        raise ImportError(
            f"iceagent.rtc does not know aiortc {version}: it has no {', '.join(names)}; supported are {SUPPORTED}"
        )


def _absent() -> Iterator[tuple[str, str]]:
    for where, names in MEMBERS.items():
        holder = _find(where)
        for name in names:
            if holder is None or not hasattr(holder, _mangled(where, name)):
                yield where, name
    for where, names in ATTRIBUTES.items():
        code = getattr(getattr(_find(where), "__init__", None), "__code__", None)
        for name in names:
            if code is None or _mangled(where, name) not in code.co_names:
                yield where, name


def _find(where: str) -> object:
    module, _, name = where.partition(":")
    try:
        found = import_module(module)
    except ImportError:
        return None
    return getattr(found, name, None) if name else found


def _mangled(where: str, name: str) -> str:
    owner = where.partition(":")[2]
    return f"_{owner}{name}" if name.startswith("__") else name
