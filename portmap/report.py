"""What is said of a gateway that was probed? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from iceagent.net.address import TransportAddress
from portmap.values import Gateway, ProtocolName, Trust

__all__ = ["GatewayReport", "ProtocolReport", "Status"]

Status = Literal["ok", "refused", "no-answer", "not-tested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolReport:
    """What a gateway does with one protocol.

    Attributes:
        protocol: which.
        status: ``ok``: it made a mapping, which was deleted again; ``refused``: it speaks the protocol and said no;
            ``no-answer``: it does not speak it.
        external: the mapping's external address; ``None``: there was none, or its host is not known.
        lifetime_s: seconds that it gave of the 120 that were asked for; 0: for ever.
        trust: how far ``external`` may be believed.
        reason: why not, or why it may be of no use; empty: there is nothing to say.
        rtt_ms: of the request that made it; ``None``: none did, or it was repeated.
    """

    protocol: ProtocolName
    status: Status
    external: TransportAddress | None = None
    lifetime_s: int | None = None
    trust: Trust = Trust.UNKNOWN
    reason: str = ""
    rtt_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "status": self.status,
            "external": None if self.external is None else str(self.external),
            "lifetime_s": self.lifetime_s,
            "trust": self.trust.value,
            "reason": self.reason,
            "rtt_ms": None if self.rtt_ms is None else round(self.rtt_ms, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """What a gateway does.

    Attributes:
        gateway: which.
        protocols: a row for each of :data:`portmap.values.PROTOCOLS`, in their order.
    """

    gateway: Gateway
    protocols: tuple[ProtocolReport, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = {row.protocol.replace("-", "_"): row.as_json() for row in self.protocols}
        return {
            "gateway": self.gateway.host,
            "interface": self.gateway.interface,
            "source": self.gateway.source,
            **rows,
        }
