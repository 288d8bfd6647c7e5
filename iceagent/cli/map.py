"""``iceagent map``: have a router map a port, for as long as the command runs."""

from __future__ import annotations

from collections.abc import Mapping

import click
from click.core import ParameterSource

from iceagent.cli import EXIT_DIRECT, EXIT_NO_PATH
from iceagent.cli.options import output_options, parse_host
from iceagent.cli.output import Output
from iceagent.cli.run import run
from iceagent.net.address import TransportAddress, ip_address
from iceagent.probe.portmap import portmap_json
from portmap import PROTOCOLS, MappingFailed, PortMapper, ProtocolReport
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
from portmap.values import ProtocolName, Transport, Trust

__all__ = ["map_command"]

_DOUBTS = {
    Trust.PRIVATE: "the external address is private: there is another NAT in front of the router",
    Trust.CARRIER: "the external address is a carrier's: there is another NAT in front of the router",
    Trust.UNKNOWN: "the router does not know its external address",
}


@click.command(name="map")
@click.argument("transport", type=click.Choice(["UDP", "TCP"], case_sensitive=False), required=False)
@click.argument("port", type=click.IntRange(1, 65535), required=False)
@click.option(
    "--external", "external", type=click.IntRange(0, 65535), metavar="P", help="Ask for this port outside; 0: for any."
)
@click.option(
    "--lifetime",
    "lifetime_s",
    type=click.IntRange(120, 86_400),
    default=3600,
    show_default=True,
    metavar="S",
    help="Seconds that are asked for; it is renewed in time.",
)
@click.option("--protocol", type=click.Choice(PROTOCOLS), help="By this one only; else by the first that does.")
@click.option("--gateway", "gateway", metavar="ADDRESS", help="Ask this router, and not that of a default route.")
@click.option("--probe", "is_probe", is_flag=True, help="Tell what the routers do with each protocol, and end.")
@click.option("--list", "is_list", is_flag=True, help="List the mappings that the router has (UPnP), and end.")
@output_options
@click.pass_context
def map_command(
    context: click.Context,
    *,
    transport: str | None,
    port: int | None,
    external: int | None,
    lifetime_s: int,
    protocol: ProtocolName | None,
    gateway: str | None,
    is_probe: bool,
    is_list: bool,
    output: Output,
) -> int:
    """Have the router map UDP or TCP PORT of this host, until Ctrl-C or SIGTERM; then the mapping is deleted.

    PCP, NAT-PMP and UPnP IGD are tried, in this order, at the router of the default route. The port outside is the same
    as inside if the router has it free. Of --gateway's router, an IPv6 one opens a pinhole in its firewall.

    Exit codes: 4 when no protocol gave a mapping, with --probe none works, and with --list there is no list; 0 after
    SIGTERM, 130 after Ctrl-C.
    """
    if is_probe and is_list:
        raise click.UsageError("--probe and --list do not go together")
    if is_probe or is_list:
        _check_alone(context, "--probe" if is_probe else "--list")
    elif transport is None or port is None:
        raise click.UsageError("UDP or TCP and a port are needed, as in: iceagent map UDP 6000")
    if is_list and protocol not in (None, "upnp"):
        raise click.UsageError(f"--list is by UPnP: {protocol} tells nobody what is mapped")
    named = None if gateway is None else _parse_router(gateway)
    mapper = PortMapper(
        protocols=PROTOCOLS if protocol is None else (protocol,), gateways=() if named is None else (named,)
    )
    if is_probe:
        return run(_probe(mapper, named, output))
    if is_list:
        return run(_list(mapper, output))
    assert transport is not None and port is not None
    kind: Transport = "udp" if transport.lower() == "udp" else "tcp"
    internal = TransportAddress("::", port) if named is not None and ":" in named else port
    return run(_hold(mapper, kind, internal, external, lifetime_s, output), sigterm_code=EXIT_DIRECT)


def _check_alone(context: click.Context, option: str) -> None:
    """Whoever gives what has no effect expects one."""
    names = {"transport": "a port", "port": "a port", "external": "--external", "lifetime_s": "--lifetime"}
    for name, shown in names.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and context.params[name] is not None:
            raise click.UsageError(f"{shown} does not go with {option}")


def _parse_router(text: str) -> str:
    host = parse_host(text, "--gateway")
    ip = ip_address(host)
    if ip.is_unspecified or ip.is_multicast:
        raise click.UsageError(f"--gateway {host}: no router has this address")
    return host


async def _probe(mapper: PortMapper, named: str | None, output: Output) -> int:
    async with mapper:
        reports = await mapper.probe()
    rows = portmap_json(reports)
    if output.as_json:
        output.event("portmap.report", **rows, gateways=[report.as_json() for report in reports])
    for report in reports:
        output.text(f"{report.gateway}, for {report.gateway.source}")
        for row in report.protocols:
            output.text(f"  {row.protocol:8}  {_in_words(row)}")
    if not reports:
        why = "No default route of this host leads through a router" if named is None else f"No route leads to {named}"
        output.notice("portmap.none", f"{why}.")
    return EXIT_DIRECT if any(row["status"] == "ok" for row in rows.values()) else EXIT_NO_PATH


async def _list(mapper: PortMapper, output: Output) -> int:
    async with mapper:
        try:
            listed = await mapper.list_mappings()
        except MappingFailed as error:
            if output.as_json:
                output.event("portmap.failed", reasons=error.reasons)
            output.notice("portmap.failed", f"{error}.")
            return EXIT_NO_PATH
    if not listed:
        output.notice("portmap.empty", "The router has no mappings.")
    for each in listed:
        output.event(
            "portmap.entry",
            protocol=each.transport,
            external=each.external_port,
            internal=f"{each.entry.internal_host}:{each.entry.internal_port}",
            description=each.entry.description,
            lifetime_s=each.entry.lease_s,
            enabled=each.entry.is_enabled,
        )
    return EXIT_DIRECT


async def _hold(
    mapper: PortMapper,
    transport: Transport,
    internal: TransportAddress | int,
    external: int | None,
    lifetime_s: int,
    output: Output,
) -> int:
    async with mapper:
        try:
            mapping = await mapper.map(transport, internal, external_port=external, lifetime_s=lifetime_s)
        except MappingFailed as error:
            if output.as_json:
                port = internal if isinstance(internal, int) else internal.port
                _tell_failure(output, transport, port, error.reasons)
            output.notice("portmap.failed", f"{error}.")
            return EXIT_NO_PATH
        try:
            async for event in mapping:
                _tell(output, mapping, event)
        finally:
            await mapping.aclose()
            output.event("portmap.deleted", internal=mapping.internal, confirmed=mapping.is_deleted)
            if mapping.external is not None and not mapping.is_deleted:
                ends = f"within {mapping.granted_s} s" if mapping.granted_s else "when the router restarts, perhaps"
                text = f"The router did not confirm that. If it still has the mapping, that ends {ends}."
                output.notice("portmap.unconfirmed", text)
    return EXIT_DIRECT


def _in_words(row: ProtocolReport) -> str:
    if row.status != "ok":
        return f"{row.status.replace('-', ' ')}: {row.reason}"
    where = "" if row.external is None else f", external address {row.external.host}"
    return f"ok{where}" + (f"; {row.reason}" if row.reason else "")


def _tell_failure(output: Output, transport: Transport, port: int, reasons: Mapping[str, str]) -> None:
    named = {name.replace("-", "_"): reason for name, reason in reasons.items()}
    output.event("portmap.failed", transport=transport, port=port, reasons=named)


def _tell(output: Output, mapping: PortMapping, event: MappingEvent) -> None:
    if isinstance(event, MappingMade):
        output.event(
            "portmap.mapped",
            protocol=event.protocol,
            internal=mapping.internal,
            external=event.external,
            lifetime_s=event.lifetime_s,
            gateway=event.gateway.host,
            trust=event.trust.value,
        )
        _doubt(output, event.trust)
        if mapping.external_port not in (0, event.external.port):
            text = f"The router gave port {event.external.port} outside, and not {mapping.external_port}."
            output.notice("portmap.port", text)
    elif isinstance(event, MappingRenewed):
        output.event("portmap.renewed", external=mapping.external, lifetime_s=event.lifetime_s)
    elif isinstance(event, MappingChanged):
        output.event("portmap.changed", old=event.old, external=event.new, trust=event.trust.value)
        _doubt(output, event.trust)
    elif isinstance(event, MappingGone):
        output.event("portmap.lost", external=event.external, reason=event.reason)
    elif isinstance(event, MappingUnavailable):
        _tell_failure(output, mapping.transport, mapping.internal.port, event.reasons)
    elif isinstance(event, GatewayForgot):
        output.event("portmap.restarted", protocol=event.protocol)
    else:
        assert isinstance(event, MappingDeleted)


def _doubt(output: Output, trust: Trust) -> None:
    if trust in _DOUBTS:
        output.notice("portmap.doubtful", f"Nobody outside may reach it: {_DOUBTS[trust]}.")
