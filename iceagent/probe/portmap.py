"""What do the routers do with port mapping, as ``iceagent probe`` and ``iceagent map --probe`` tell it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portmap.report import GatewayReport, ProtocolReport, Status
from portmap.values import PROTOCOLS, ProtocolName

__all__ = ["NO_ROUTER", "best_rows", "json_name", "portmap_json"]

NO_ROUTER = "no default route of this host leads through a router"

# Of several routers the one is told that does most.
_ORDER: tuple[Status, ...] = ("ok", "refused", "no-answer", "not-tested")


def json_name(protocol: ProtocolName) -> str:
    """``nat_pmp`` for ``nat-pmp``."""
    return protocol.replace("-", "_")


def best_rows(reports: Sequence[GatewayReport]) -> dict[ProtocolName, tuple[GatewayReport | None, ProtocolReport]]:
    """For each protocol, what the router says that does most with it."""
    best: dict[ProtocolName, tuple[GatewayReport | None, ProtocolReport]] = {}
    for name in PROTOCOLS:
        rows = [(report, row) for report in reports for row in report.protocols if row.protocol == name]
        none = (None, ProtocolReport(protocol=name, status="not-tested", reason=NO_ROUTER))
        best[name] = min(rows, key=lambda each: _ORDER.index(each[1].status), default=none)
    return best


def portmap_json(reports: Sequence[GatewayReport]) -> dict[str, dict[str, Any]]:
    """The ``portmap`` of a report: a row for each protocol."""
    return {
        json_name(name): {**row.as_json(), "gateway": None if report is None else report.gateway.host}
        for name, (report, row) in best_rows(reports).items()
    }
