"""What does a gateway do? Found out by a real mapping of a port of ours with each protocol, deleted again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from portmap.events import Mapped, NoMapping
from portmap.report import GatewayReport, ProtocolReport
from portmap.site import Site
from portmap.values import PROTOCOLS, Gateway, MapRequest, ProtocolName, Trust, trust_of

__all__ = ["probe"]

PROBE_LIFETIME_S = 120

_PRIVATE = {
    Trust.PRIVATE: "its external address {} is private: there is another NAT in front of it",
    Trust.CARRIER: "its external address {} is a carrier's: there is another NAT in front of it",
    Trust.UNKNOWN: "it does not know its external address",
}


async def probe(
    host: Host, gateway: Gateway, site: Site | None, protocols: tuple[ProtocolName, ...], new_key: Callable[[], int]
) -> GatewayReport:
    """Probe one gateway. Whatever is wrong with it is in the report.

    Args:
        host: ours.
        gateway: which.
        site: of the gateway; ``None``: there can be none.
        protocols: that may be used.
        new_key: makes keys for the site.
    """
    rows: list[ProtocolReport] = []
    reason = f"there can be no socket on {gateway.source}"
    if site is not None:
        # A port that is ours for the time being: a stray packet must not reach another program.
        try:
            socket = host.socket(TransportAddress(gateway.source, 0), _Deaf(), SocketOptions())
        except OSError:
            pass
        else:
            reason = "NAT-PMP is for IPv4 only"
            try:
                rows = [await _probe_by(site, name, socket.address, new_key()) for name in site.session.protocols]
            finally:
                socket.close()
    tested = {row.protocol: row for row in rows}

    def not_tested(name: ProtocolName) -> ProtocolReport:
        why = reason if name in protocols else "it was not asked for"
        return ProtocolReport(protocol=name, status="not-tested", reason=why)

    return GatewayReport(gateway=gateway, protocols=tuple(tested.get(name) or not_tested(name) for name in PROTOCOLS))


async def _probe_by(site: Site, name: ProtocolName, internal: TransportAddress, key: int) -> ProtocolReport:
    request = MapRequest(transport="udp", internal=internal, external_port=internal.port, lifetime_s=PROBE_LIFETIME_S)
    try:
        answer = site.probe(key, request, name)
    except ValueError as error:
        return ProtocolReport(protocol=name, status="not-tested", reason=str(error))
    deleted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_deleted(_: bool) -> None:
        if not deleted.done():
            deleted.set_result(None)

    try:
        event = await answer
    finally:
        site.unmap(key, on_deleted)
    await deleted
    return _row(site, name, event)


def _row(site: Site, name: ProtocolName, event: Mapped | NoMapping) -> ProtocolReport:
    if isinstance(event, NoMapping):
        is_spoken = site.session.speaks(name)
        reason = event.reasons.get(name, "")
        return ProtocolReport(protocol=name, status="refused" if is_spoken else "no-answer", reason=reason)
    trust = trust_of(event.external.host)
    return ProtocolReport(
        protocol=name,
        status="ok",
        external=None if ip_address(event.external.host).is_unspecified else event.external,
        lifetime_s=event.lifetime_s,
        trust=trust,
        reason=_PRIVATE.get(trust, "").format(event.external.host),
        rtt_ms=None if event.rtt_s is None else 1000 * event.rtt_s,
    )


class _Deaf:
    """Keeps a port."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None: ...

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None: ...
