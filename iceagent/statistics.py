"""What has an agent counted? Pure values, a snapshot each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iceagent.candidate import Candidate
from iceagent.core.pair import CandidatePair, Traffic
from iceagent.net.address import TransportAddress

__all__ = ["AgentStatistics", "PairStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """One candidate pair.

    Attributes:
        state: ``frozen``, ``waiting``, ``in-progress``, ``succeeded`` or ``failed`` (RFC 8445, 6.1.2.6).
        priority: of the pair (6.1.2.3).
        selected: data goes out here.
        nominated: agreed between both ends.
        rtt_ms: smoothed round trip of checks; ``None`` before one.
        requests_sent: checks, repetitions and consent checks.
    """

    component: int
    base: TransportAddress
    local: Candidate
    remote: Candidate
    state: str
    priority: int
    selected: bool
    nominated: bool
    rtt_ms: float | None
    requests_sent: int
    responses_received: int
    requests_received: int
    responses_sent: int
    packets_sent: int
    bytes_sent: int
    packets_received: int
    bytes_received: int
    packets_discarded: int

    @classmethod
    def of(cls, pair: CandidatePair, *, selected: bool) -> PairStatistics:
        """A snapshot."""
        traffic: Traffic = pair.traffic
        return cls(
            component=pair.component,
            base=pair.base,
            local=pair.valid_local or pair.local,
            remote=pair.remote,
            state=pair.state.value,
            priority=pair.priority,
            selected=selected,
            nominated=pair.nominated,
            rtt_ms=None if pair.rtt_s is None else pair.rtt_s * 1000,
            requests_sent=pair.requests_sent,
            responses_received=pair.responses_received,
            requests_received=pair.requests_received,
            responses_sent=pair.responses_sent,
            packets_sent=traffic.packets_sent,
            bytes_sent=traffic.bytes_sent,
            packets_received=traffic.packets_received,
            bytes_received=traffic.bytes_received,
            packets_discarded=traffic.packets_discarded,
        )

    def __str__(self) -> str:
        marks = ("*" if self.selected else " ") + ("n" if self.nominated else " ")
        rtt = "" if self.rtt_ms is None else f" {self.rtt_ms:.1f} ms"
        return (
            f"{marks} {self.component} {self.local.type.value} {self.local.address} → "
            f"{self.remote.type.value} {self.remote.address} {self.state}{rtt}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatistics:
    """The whole agent.

    Attributes:
        counters: what was dropped, refused or held back, by reason in words.
        receive_queue_dropped: datagrams that nobody received in time.
        send_dropped: datagrams that did not fit into the socket, or whose path went while they waited for their burst.
    """

    packets_sent: int
    bytes_sent: int
    packets_received: int
    bytes_received: int
    receive_queue_dropped: int
    send_dropped: int
    path_switches: int
    counters: Mapping[str, int]
