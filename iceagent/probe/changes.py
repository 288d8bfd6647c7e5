"""What is different from the last probe?

A report becomes a table of facts, name → value, without what differs every time: ports, times, evidence. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from iceagent.candidate import Candidate
from iceagent.probe.report import NotTested, Report

__all__ = ["changes"]


def changes(old: Report, new: Report) -> tuple[str, ...]:
    """A line for each fact that came, went or changed; empty where nothing did."""
    before, after = dict(_facts(old)), dict(_facts(new))
    lines: list[str] = []
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            lines.append(f"- {name} {before[name]}".rstrip())
        elif name not in before:
            lines.append(f"+ {name} {after[name]}".rstrip())
        elif before[name] != after[name]:
            lines.append(f"{name}: {before[name]} → {after[name]}")
    return tuple(lines)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    for row in report.interfaces:
        state = "up" if row.is_up else "down"
        yield f"interface {row.name}", f"{row.kind}, {state}, mtu {row.mtu}, {' '.join(row.addresses) or 'no address'}"
    for line in report.candidates:
        candidate = Candidate.parse(line)
        yield f"candidate {candidate.type.value} {candidate.address.host}", ""
    for version in (4, 6):
        yield f"udp ipv{version}", _text(report.udp[version])
    for each in report.reflexive:
        yield f"reflexive {each.address.host} by {_server(report, each.server)}", ""
    for server in report.servers:
        name = f"server {_server(report, server.uri)} ipv{server.version or '?'}"
        yield name, f"{server.status.value} {server.reason}".rstrip()
    for relay in () if isinstance(report.relays, NotTested) else report.relays:
        hosts = " ".join(address.host for address in relay.relayed)
        yield (
            f"relay {_server(report, relay.server)} over {relay.transport.upper()}",
            " ".join(filter(None, (relay.status.value, hosts, relay.reason))),
        )
    for router in () if isinstance(report.portmap, NotTested) else report.portmap:
        for said in router.protocols:
            outside = said.reason if said.external is None else said.external.host
            yield f"port mapping {said.protocol} at {router.gateway.host}", f"{said.status} {outside}".rstrip()
    yield "nat mapping", report.nat.mapping.value
    yield "nat filtering", report.nat.filtering.value
    yield "nat port preservation", _text(report.nat.port_preservation)
    allocation = report.nat.allocation
    yield "nat allocation", _text(allocation) if isinstance(allocation, NotTested) else allocation.value
    yield "layers", _text(report.layers)


def _server(report: Report, uri: str) -> str:
    """Our own server has another port every time, and where it did not start none at all."""
    if not report.is_embedded:
        return uri
    host = uri.partition(":")[2].rpartition(":")[0]
    return f"ours at {host}" if host else "ours"


def _text(value: bool | int | NotTested) -> str:
    if isinstance(value, NotTested):
        return "not tested"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
