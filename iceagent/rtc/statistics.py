"""What do W3C's statistics say of ICE?

``candidate-pair``, ``local-candidate`` and ``remote-candidate`` of webrtc-stats, from an agent's counts; and what
``transport`` has more there than in aiortc.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from aiortc import RTCDtlsTransport
from aiortc.stats import RTCStats, RTCStatsReport, RTCTransportStats

from iceagent.candidate import Candidate
from iceagent.rtc.transports import IceTransport
from iceagent.statistics import PairStatistics

__all__ = ["IceTransportStats", "RTCIceCandidatePairStats", "RTCIceCandidateStats", "ice_statistics"]


@dataclass
class RTCIceCandidateStats(RTCStats):
    """W3C's ``RTCIceCandidateStats``; ``type`` is ``local-candidate`` or ``remote-candidate``.

    Attributes:
        transportId: of the transport that it belongs to.
        address: IP address, or a ``.local`` name.
        port: 0 … 65535.
        protocol: ``udp``.
        candidateType: ``host``, ``srflx``, ``prflx`` or ``relay``.
        priority: 1 … 2**31 - 1.
        foundation: see RFC 8445, 5.1.1.3.
        relatedAddress, relatedPort: see RFC 8839, 5.1; ``None``: there is none.
        usernameFragment: of the generation, where the candidate says so.
    """

    transportId: str
    address: str
    port: int
    protocol: str
    candidateType: str
    priority: int
    foundation: str
    relatedAddress: str | None
    relatedPort: int | None
    usernameFragment: str | None


@dataclass
class RTCIceCandidatePairStats(RTCStats):
    """W3C's ``RTCIceCandidatePairStats``.

    Attributes:
        transportId, localCandidateId, remoteCandidateId: ids in the report.
        state: ``frozen``, ``waiting``, ``in-progress``, ``succeeded`` or ``failed``.
        nominated: agreed between both ends.
        priority: of the pair (RFC 8445, 6.1.2.3).
        packetsSent, packetsReceived, bytesSent, bytesReceived: data, without checks.
        packetsDiscardedOnSend: that the socket did not take.
        currentRoundTripTime: smoothed over the last checks, seconds; ``None`` before one.
        requestsSent, responsesReceived, requestsReceived, responsesSent: checks, those for consent included.
    """

    transportId: str
    localCandidateId: str
    remoteCandidateId: str
    state: str
    nominated: bool
    priority: int
    packetsSent: int
    packetsReceived: int
    bytesSent: int
    bytesReceived: int
    packetsDiscardedOnSend: int
    currentRoundTripTime: float | None
    requestsSent: int
    responsesReceived: int
    requestsReceived: int
    responsesSent: int


@dataclass
class IceTransportStats(RTCTransportStats):
    """W3C's ``RTCTransportStats``, as far as ICE goes.

    Attributes:
        iceState: see :attr:`iceagent.rtc.IceTransport.state`.
        iceLocalUsernameFragment: of the present generation.
        selectedCandidatePairId: where data goes now; ``None``: nowhere.
        selectedCandidatePairChanges: how often that changed.
    """

    iceState: str
    iceLocalUsernameFragment: str
    selectedCandidatePairId: str | None
    selectedCandidatePairChanges: int


def ice_statistics(transport: RTCDtlsTransport, ice: IceTransport) -> RTCStatsReport:
    """What is known of one transport's ICE."""
    report = RTCStatsReport()
    base = next(stats for stats in transport._get_stats().values() if isinstance(stats, RTCTransportStats))
    now, selected = base.timestamp, None
    # First: these say of which generation they are.
    for kind, candidates in (
        ("local-candidate", ice.agent.local_candidates),
        ("remote-candidate", ice.agent.remote_candidates),
    ):
        for candidate in candidates:
            _add_candidate(report, kind, candidate, base.id, now)
    for pair in ice.agent.pairs():
        local = _add_candidate(report, "local-candidate", pair.local, base.id, now)
        remote = _add_candidate(report, "remote-candidate", pair.remote, base.id, now)
        stats = _pair(pair, local, remote, base.id, now)
        report.add(stats)
        selected = stats.id if pair.selected else selected
    report.add(
        IceTransportStats(
            **vars(base),
            iceState=ice.state,
            iceLocalUsernameFragment=ice.agent.local_description.credentials.ufrag,
            selectedCandidatePairId=selected,
            selectedCandidatePairChanges=ice.selections,
        )
    )
    return report


def _add_candidate(
    report: RTCStatsReport, kind: str, candidate: Candidate, transport: str, now: datetime.datetime
) -> str:
    """Add a candidate once; its id."""
    identity = f"{kind}_{transport}_{candidate.type.value}_{candidate.address}"
    if identity not in report:
        related = candidate.related_address
        report.add(
            RTCIceCandidateStats(
                timestamp=now,
                type=kind,
                id=identity,
                transportId=transport,
                address=candidate.address.host,
                port=candidate.address.port,
                protocol=candidate.transport,
                candidateType=candidate.type.value,
                priority=candidate.priority,
                foundation=candidate.foundation,
                relatedAddress=None if related is None else related.host,
                relatedPort=None if related is None else related.port,
                usernameFragment=candidate.ufrag,
            )
        )
    return identity


def _pair(
    pair: PairStatistics, local: str, remote: str, transport: str, now: datetime.datetime
) -> RTCIceCandidatePairStats:
    return RTCIceCandidatePairStats(
        timestamp=now,
        type="candidate-pair",
        id=f"candidate-pair_{transport}_{pair.base}_{pair.remote.address}",
        transportId=transport,
        localCandidateId=local,
        remoteCandidateId=remote,
        state=pair.state,
        nominated=pair.nominated,
        priority=pair.priority,
        packetsSent=pair.packets_sent,
        packetsReceived=pair.packets_received,
        bytesSent=pair.bytes_sent,
        bytesReceived=pair.bytes_received,
        packetsDiscardedOnSend=pair.packets_discarded,
        currentRoundTripTime=None if pair.rtt_ms is None else pair.rtt_ms / 1000,
        requestsSent=pair.requests_sent,
        responsesReceived=pair.responses_received,
        requestsReceived=pair.requests_received,
        responsesSent=pair.responses_sent,
    )
