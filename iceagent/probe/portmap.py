"""What do the routers do with port mapping, as ``iceagent probe`` and ``iceagent map --probe`` tell it?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

from iceagent.config import Config
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import Host, Interface
from portmap.mapper import PortMapper
from portmap.report import GatewayReport, ProtocolReport, Status
from portmap.values import PROTOCOLS, ProtocolName, Trust

__all__ = ["NO_ROUTER", "ask_routers", "best_rows", "json_name", "mapped_rows", "portmap_json", "working_mapping"]

NO_ROUTER = "no default route of this host leads through a router"

# Of several routers the one is told that does most.
_ORDER: tuple[Status, ...] = ("ok", "refused", "no-answer", "not-tested")


async def ask_routers(
    host: Host, config: Config, timeout_s: float, *, rng: random.Random, system_rng: random.Random
) -> tuple[GatewayReport, ...] | str:
    """Probe the routers that the configuration allows; a text says why not."""
    if not config.portmap:
        return "port mapping is switched off"

    def accepts(interface: Interface) -> bool:
        is_bound = not config.bind_hosts or any(each.host in config.bind_hosts for each in interface.addresses)
        return is_bound and (config.interface_filter is None or config.interface_filter(interface))

    versions = tuple(version for version, wanted in ((4, config.ipv4), (6, config.ipv6)) if wanted)
    try:
        async with PortMapper(host, versions=versions, accepts=accepts, rng=rng, system_rng=system_rng) as mapper:
            async with asyncio.timeout(timeout_s):
                return await mapper.probe()
    except TimeoutError:
        return f"the routers took longer than {timeout_s:g} s"
    except OSError as error:
        return f"the routes cannot be read: {error.strerror or error}"


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


def mapped_rows(reports: Iterable[GatewayReport]) -> list[tuple[GatewayReport, ProtocolReport]]:
    """What worked over IPv4, in the order of preference."""
    return [
        (report, row)
        for report in reports
        if report.gateway.version == 4
        for row in report.protocols
        if row.status == "ok"
    ]


def working_mapping(
    reports: Iterable[GatewayReport], reflexive: Sequence[TransportAddress]
) -> tuple[GatewayReport, ProtocolReport] | None:
    """A mapping over IPv4 that a stranger can be expected to get through: its external address is global and, where
    servers saw us, the one that they saw.
    """
    # A server on loopback sees nothing of what the router does.
    seen = {each.host for each in reflexive if each.version == 4 and not ip_address(each.host).is_loopback}
    for report, row in mapped_rows(reports):
        if row.trust is Trust.GLOBAL and row.external is not None and (not seen or row.external.host in seen):
            return report, row
    return None
