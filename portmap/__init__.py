"""How do we ask the router to open a port? PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP IGD.

::

    async with PortMapper() as mapper:
        mapping = await mapper.map("udp", 6000)
        print(mapping.external, mapping.protocol)
        async for event in mapping:
            print(event)

Of this project it needs :mod:`iceagent.net` only. The names below are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "PROTOCOLS",
    "Gateway",
    "GatewayForgot",
    "GatewayReport",
    "MappingChanged",
    "MappingDeleted",
    "MappingEvent",
    "MappingFailed",
    "MappingGone",
    "MappingMade",
    "MappingRenewed",
    "MappingUnavailable",
    "PortMapper",
    "PortMapping",
    "PortmapError",
    "ProtocolReport",
    "Trust",
]

_MODULES = {
    "Gateway": "portmap.values",
    "GatewayForgot": "portmap.mapping",
    "GatewayReport": "portmap.report",
    "MappingChanged": "portmap.mapping",
    "MappingDeleted": "portmap.mapping",
    "MappingEvent": "portmap.mapping",
    "MappingFailed": "portmap.errors",
    "MappingGone": "portmap.mapping",
    "MappingMade": "portmap.mapping",
    "MappingRenewed": "portmap.mapping",
    "MappingUnavailable": "portmap.mapping",
    "PROTOCOLS": "portmap.values",
    "PortMapper": "portmap.mapper",
    "PortMapping": "portmap.mapping",
    "PortmapError": "portmap.errors",
    "ProtocolReport": "portmap.report",
    "Trust": "portmap.values",
}

if TYPE_CHECKING:
    from portmap.errors import MappingFailed, PortmapError
    from portmap.mapper import PortMapper
    from portmap.mapping import (
        GatewayForgot,
        MappingChanged,
        MappingDeleted,
        MappingEvent,
        MappingGone,
        MappingMade,
        MappingRenewed,
        MappingUnavailable,
        PortMapping,
    )
    from portmap.report import GatewayReport, ProtocolReport
    from portmap.values import PROTOCOLS, Gateway, Trust
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
