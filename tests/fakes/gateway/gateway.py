"""What does a gateway answer, when, and from where?

:class:`FakeGateway` gives a datagram or an HTTP request to the protocol that it is for, and does to the answer what
the faults of the network say. Pure: the time comes in as an argument, and nothing is random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from iceagent.net.address import TransportAddress
from tests.fakes.gateway import natpmp, pcp, ssdp, upnp
from tests.fakes.gateway.faults import Faults, ProtocolFaults, ReplyFaults
from tests.fakes.gateway.http import HttpReply
from tests.fakes.gateway.journal import Journal, Outgoing, PortClosed, Reply, Request
from tests.fakes.gateway.state import PCP_PORT, SSDP_PORT, EpochClock, Options, State
from tests.fakes.gateway.table import PortMapping, Table

__all__ = ["ANNOUNCEMENT_GROUPS", "ANNOUNCEMENT_PORT", "MAX_ANSWERS", "FakeGateway"]

ANNOUNCEMENT_GROUPS = {4: "224.0.0.1", 6: "ff02::1"}
"""RFC 6887, 14.1.3; the first one of RFC 6886, 3.2.1 too."""

ANNOUNCEMENT_PORT = 5350

MAX_ANSWERS = 2000
"""Datagrams for one request, copies included."""

_NATPMP_SIZE_WITH_PORT = 16
_PCP_SIZE_WITH_PORT = 60


class FakeGateway:
    """A gateway.

    Args:
        options: of which make; its own copy of the default ones otherwise. May be changed while it runs.
        now: when it was switched on, with an empty table.
        epoch: what its clock showed then.

    Attributes:
        options: as given.
        faults: all off.
    """

    def __init__(self, options: Options | None = None, *, now: float = 0.0, epoch: int = 0) -> None:
        self.options = Options() if options is None else options
        self.faults = Faults()
        table = Table(self.faults.mapping, shares_rules=self.options.shares_rules)
        self._state = State(self.options, self.faults, EpochClock(epoch, now), table)
        self._odd_answers: Counter[int] = Counter()

    # --- questions and answers ---------------------------------------------------------------------------------------

    def answer_udp(
        self, data: bytes, source: TransportAddress, now: float, *, destination: TransportAddress | None = None
    ) -> list[Reply]:
        """What comes back for a datagram.

        Args:
            data: the payload.
            source: who sent it, as the gateway sees it.
            now: the time.
            destination: where it was sent to: the gateway's address or a multicast group, with the port; ``None``: the
                gateway's own, port 1900 for what looks like a search and else 5351.

        Raises:
            PortClosed: nothing listens there.
        """
        if destination is None:
            port = SSDP_PORT if data.startswith(b"M-SEARCH") else PCP_PORT
            destination = TransportAddress(self._state.host_for(source), port)
        self._state.table.expire(now)
        if self.is_closed(destination.port):
            if destination.ip.is_multicast:
                return []
            self.counters["refused"] += 1
            raise PortClosed(f"nothing listens at {destination}")
        if destination.port == SSDP_PORT:
            if self.faults.ssdp.is_silent:
                return self._silence()
            found = ssdp.answer(self._state, data, source, destination, now)
            return self._spoil(found, self.faults.ssdp, source, SSDP_PORT)
        return self._answer_5351(data, source, now)

    def answer_http(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes,
        now: float,
        *,
        source: TransportAddress | None = None,
        server: TransportAddress | None = None,
    ) -> HttpReply:
        """What comes back for an HTTP request at the HTTP port.

        Args:
            method: ``GET`` or ``POST``.
            target: path and query.
            headers: of the request; Host, Content-Length and Connection need not be among them.
            body: of the request.
            now: the time.
            source: who asks; ``None``: nobody knows, so that mappings for any host are right.
            server: who is asked; ``None``: the gateway.

        Raises:
            PortClosed: nothing listens there.
        """
        self._state.table.expire(now)
        options = self.options
        own = [
            TransportAddress(host, options.http_port) for host in (options.host, options.http_host6 or options.host6)
        ]
        server = own[0] if server is None else server
        if server not in own or self.is_closed(server.port):
            self.counters["refused"] += 1
            raise PortClosed(f"nothing listens at {server}")
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        fields: dict[str, str] = {}
        for name, value in pairs:
            if name.upper() in fields:
                self._state.journal.blame("upnp", f"{name} twice")
            fields[name.upper()] = value
        return upnp.answer(self._state, method, target, fields, body, now, source)

    # --- what happens at one moment ----------------------------------------------------------------------------------

    def restart(self, now: float, *, keeps_mappings: bool = False, epoch: int = 0) -> None:
        """Be switched off and on: the clock starts anew, and the mappings are gone, unless they were written down.

        Nothing is announced; :meth:`announce` does that.
        """
        if not keeps_mappings:
            self._state.table.clear()
        self.set_epoch(epoch, now)

    def set_epoch(self, value: int, now: float, *, rate: float = 1.0) -> None:
        """Let the clock show this: a jump, a time just before it wraps; or, with a rate other than 1, drift from now
        on. The mappings stay.
        """
        self._state.epoch = EpochClock(value & 0xFFFFFFFF, now, rate)

    def change_external_host(self, host: str, now: float) -> None:
        """Get another external address; empty: lose it. RFC 6887, 8.5: "the Epoch time MUST be reset". The mappings
        stay.

        Nothing is announced; :meth:`announce` and :meth:`update_mapping` do that.
        """
        self.options.external_host = host
        self.set_epoch(0, now)

    def replace(self, options: Options, now: float, *, epoch: int = 0) -> None:
        """Become another gateway, that knows nothing of this one's mappings. Faults stay, and so does the journal."""
        self.options = options
        table = Table(self.faults.mapping, shares_rules=options.shares_rules)
        self._state = State(options, self.faults, EpochClock(epoch, now), table, self._state.journal)

    def announce(
        self,
        now: float,
        *,
        protocols: Iterable[str] = ("pcp", "nat-pmp"),
        versions: Sequence[int] = (4,),
        times: int = 1,
        destinations: Sequence[TransportAddress] = (),
    ) -> list[Outgoing]:
        """What a gateway sends when it was restarted, or its address changed.

        Args:
            now: the time.
            protocols: whose announcements; only those that it speaks.
            versions: of IP; NAT-PMP has 4 alone.
            times: how often, 1 … 10: after 250 ms, then twice as late each time, with the clock as it is then.
            destinations: these instead of the multicast groups, for a network that has none.
        """
        sent = []
        for index in range(times):
            delay_s = 0.25 * (2**index - 1)
            for name in protocols:
                data = self._announcement(name, now + delay_s)
                for version in versions:
                    if data is None or (name == "nat-pmp" and version == 6):
                        continue
                    source = TransportAddress(self.options.host6 if version == 6 else self.options.host, PCP_PORT)
                    group = TransportAddress(ANNOUNCEMENT_GROUPS[version], ANNOUNCEMENT_PORT)
                    own = [each for each in destinations if each.version == version]
                    targets = own if destinations else [group]
                    sent += [Outgoing(delay_s, source, target, data) for target in targets]
        return sent

    def update_mapping(self, mapping: PortMapping, now: float, *, times: int = 3) -> list[Outgoing]:
        """RFC 6887, 14.2: tell the client of a mapping of PCP what it is now, unasked: three times, after 250 ms and
        then 500 ms.

        Raises:
            ValueError: the mapping is none of PCP's.
        """
        sent = []
        for index in range(times):
            delay_s = 0.25 * (2**index - 1)
            data = pcp.mapping_update(self._state, mapping, now + delay_s)
            client = mapping.client
            if client is not None:
                source = TransportAddress(self._state.host_for(client), PCP_PORT)
                sent.append(Outgoing(delay_s, source, client, data))
        return sent

    # --- how it is ---------------------------------------------------------------------------------------------------

    @property
    def mappings(self) -> list[PortMapping]:
        """All that there are as of the last input, oldest first: IPv4 mappings and IPv6 pinholes."""
        return list(self._state.table)

    @property
    def journal(self) -> Journal:
        """What was asked."""
        return self._state.journal

    @property
    def requests(self) -> list[Request]:
        """The last ones, oldest first."""
        return list(self._state.journal.requests)

    @property
    def violations(self) -> list[str]:
        """What a client must not do, a sentence each."""
        return self._state.journal.violations

    @property
    def counters(self) -> Counter[str]:
        """See :class:`Journal`."""
        return self._state.journal.counters

    def kinds(self) -> list[str]:
        """Of the last requests, oldest first."""
        return [request.kind for request in self._state.journal.requests]

    def epoch(self, now: float) -> int:
        """What the clock shows."""
        return self._state.epoch.read(now)

    def expire(self, now: float) -> None:
        """Let go of mappings whose time has come; every input does so by itself."""
        self._state.table.expire(now)

    def is_closed(self, port: int) -> bool:
        """Whether nothing listens at a port: by a fault, or because the gateway does not speak what is spoken there."""
        spoken = {
            PCP_PORT: not self.options.protocols.isdisjoint(("pcp", "nat-pmp")),
            SSDP_PORT: "upnp" in self.options.protocols,
            self.options.http_port: "upnp" in self.options.protocols,
        }
        return port in self.faults.closed_ports or not spoken.get(port, False)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _answer_5351(self, data: bytes, source: TransportAddress, now: float) -> list[Reply]:
        protocols = self.options.protocols
        # RFC 6887, A: "The first octet of the packet indicates if it is NAT-PMP (first octet zero) or PCP".
        is_natpmp = not data or data[0] == 0
        if "pcp" not in protocols or (is_natpmp and "nat-pmp" in protocols):
            if self.faults.natpmp.is_silent:
                return self._silence()
            found = natpmp.answer(self._state, data, source, now)
            faults, length, port_at = self.faults.natpmp, _NATPMP_SIZE_WITH_PORT, 8
        else:
            if self.faults.pcp.is_silent:
                return self._silence()
            found = pcp.answer(self._state, data, source, now)
            faults, length, port_at = self.faults.pcp, _PCP_SIZE_WITH_PORT, pcp.INTERNAL_PORT_AT
        if found is None:
            return []
        altered = _alter(found, faults, port_at if len(found) >= length else None)
        return self._spoil([altered], faults, source, PCP_PORT)

    def _silence(self) -> list[Reply]:
        self.counters["silent"] += 1
        return []

    def _spoil(self, found: list[bytes], faults: ReplyFaults, source: TransportAddress, port: int) -> list[Reply]:
        """What the network makes of answers."""
        host = self._state.host_for(source)
        address = TransportAddress(faults.from_host or host, port if faults.from_port is None else faults.from_port)
        replies = []
        for data in found:
            if faults.lose > 0:
                faults.lose -= 1
                self.counters["lost"] += 1
                continue
            delay_s = faults.delay_s + (faults.delays_s.pop(0) if faults.delays_s else 0.0)
            self._odd_answers[port] += 1
            if self._odd_answers[port] % 2:
                delay_s += faults.reorder_s
            self.counters["answered"] += 1
            payload = data if faults.garbage is None else faults.garbage
            if faults.length is not None:
                payload = payload[: faults.length].ljust(faults.length, b"\0")
            replies += [Reply(delay_s, address, payload)] * faults.copies
        return replies[:MAX_ANSWERS]

    def _announcement(self, protocol: str, now: float) -> bytes | None:
        if protocol not in self.options.protocols:
            return None
        if protocol == "pcp":
            return pcp.announcement(self._state, now)
        return natpmp.announcement(self._state, now)


def _alter(data: bytes, faults: ProtocolFaults, port_at: int | None) -> bytes:
    """Put wrong values into an answer; ``port_at``: where its internal port is, if it has one."""
    altered = bytearray(data)
    if faults.version is not None:
        altered[0] = faults.version
    if faults.opcode is not None:
        altered[1] = faults.opcode
    if port_at is not None and faults.internal_port is not None:
        altered[port_at : port_at + 2] = faults.internal_port.to_bytes(2, "big")
    if port_at == pcp.INTERNAL_PORT_AT:
        if faults.is_nonce_wrong:
            altered[pcp.NONCE_AT] ^= 0xFF
        if faults.transport is not None:
            altered[pcp.TRANSPORT_AT] = faults.transport
    return bytes(altered)
