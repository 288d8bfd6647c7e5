"""How does WebRTC run on this agent? A bridge under aiortc, which keeps DTLS, SCTP, RTP and the API.

::

    from iceagent.rtc import PeerConnection

    connection = PeerConnection(RTCConfiguration(iceServers=[RTCIceServer(urls="turn:…", username=…, credential=…)]))

:class:`PeerConnection` is an ``aiortc.RTCPeerConnection`` whose ICE is an :class:`iceagent.Agent`: candidates trickle,
all servers with all their URLs are used, the path changes below a live connection, ICE restarts. Which connection has
it is chosen by its class; nothing of aiortc or aioice is patched.

:class:`IceGatherer` and :class:`IceTransport` are the same in the style of ORTC, for programs that build on
``RTCDtlsTransport`` and ``RTCSctpTransport`` themselves.

Needs the extra ``iceagent[webrtc]``.
"""

import sys

try:
    import aiortc as _aiortc
except ImportError as error:
    raise ImportError("iceagent.rtc needs aiortc: pip install 'iceagent[webrtc]'") from error

from iceagent.rtc import contract as _contract

_contract.check(_aiortc)

if sys.platform == "linux":
    # The first setLocalDescription() returns as soon as the others.
    from iceagent.net.netlink import load as _load

    _load()

from iceagent.rtc.candidates import candidate_from_json, candidate_to_json  # noqa: E402
from iceagent.rtc.configuration import RTC_DEFAULTS  # noqa: E402
from iceagent.rtc.peer_connection import PeerConnection  # noqa: E402
from iceagent.rtc.statistics import (  # noqa: E402
    RTCIceCandidatePairStats,
    RTCIceCandidateStats,
)
from iceagent.rtc.transports import IceCandidateError, IceGatherer, IceTransport  # noqa: E402

__all__ = [
    "RTC_DEFAULTS",
    "IceCandidateError",
    "IceGatherer",
    "IceTransport",
    "PeerConnection",
    "RTCIceCandidatePairStats",
    "RTCIceCandidateStats",
    "candidate_from_json",
    "candidate_to_json",
]
