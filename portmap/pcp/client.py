"""What does a client of PCP do at one gateway? RFC 6887.

A gateway is asked with ANNOUNCE, which changes nothing (14.1.2), and mappings are made, renewed and deleted with MAP.
One nonce serves the whole client (11.2: "a different mapping nonce for each PCP server"), so that a port that was given
up can be mapped again while the gateway still remembers it; a response with another one is not for us.

Every response may say that the gateway has forgotten its mappings (8.5); then all are made again: at once, or, where
many clients hear of it together, after a random time of up to 5 s (14.1.3). A response that nobody asked for is an
update (8.3, 14.2).

An error holds for its lifetime (8.3), also for whoever asks for the same port anew. NO_RESOURCES holds for all new
mappings, and after a deletion for everything (11.4). An error that passes takes no mapping away when it is to be
renewed: the request "MUST cause no state change" (7.3), and while "no SUCCESS response is received" (11.2.1) the next
renewal follows. It does once the gateway has restarted: then nobody knows whether there still is one.

DEVIATION: while a gateway is unknown, requests are repeated after 0.25 s and given up after 0.75 s, where 8.1.1 waits
for 3 s: ``test_a_silent_gateway_is_asked_twice_within_three_quarters_of_a_second``. Its own schedule follows
(``mapping.py``).

DEVIATION: an error holds for 30 s at least, where 9 has "30 minutes or the returned Lifetime value, whichever is
smaller", and for a day at most: ``test_an_error_holds_for_its_lifetime``.

Pure; the contract is ``iceagent/net/core.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from portmap.epoch import PcpEpoch
from portmap.events import Discovered, GatewayRestarted, Mapped, MappingLost, MappingRefused, NotFound, Unmapped
from portmap.pcp.mapping import Lease, Mapping, Refusal
from portmap.pcp.messages import (
    NONCE_SIZE,
    VERSION,
    MapData,
    Opcode,
    Response,
    ResultCode,
    announce_request,
    any_host,
    map_request,
    parse_response,
    result_text,
)
from portmap.server_link import (
    DELETION_WAITS,
    IS_CLOSED,
    MAX_KEYS,
    MAX_LIFETIME_S,
    PROBE_WAITS,
    RECREATION_DELAY_S,
    RECREATION_SPACING_S,
    SHORT_ERROR_S,
    WAS_SILENT,
    Attempts,
    BadMessage,
    Origin,
    ServerLink,
)
from portmap.values import Gateway, MapRequest, ProtocolName

__all__ = ["PcpClient"]

_PROTOCOLS = {"tcp": 6, "udp": 17}
# 7.4: those of a short lifetime, but CANNOT_PROVIDE_EXTERNAL, which nobody is told who does not insist on a port.
_PASSING = frozenset({ResultCode.NETWORK_FAILURE, ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA})
# Seconds by which a repeated response may find less of a lease left than we count.
_TOLERANCE_S = 2.0

_LEAVE_ALONE = f"{result_text(ResultCode.NO_RESOURCES)}: it is to be left alone"

# Protocol number and internal port: with the nonce and our address, what a mapping is to a server (11.4).
_Identity = tuple[int, int]


@dataclass(slots=True)
class _Deletion:
    key: int
    attempts: Attempts


class PcpClient:
    """See the module, and :class:`portmap.events.ProtocolClient`.

    Args:
        gateway: whose server it is.
        base: our socket; its address is ``gateway.source``.
        rng: jitter.
        system_rng: the nonce.
        nonce: 12 random bytes that an earlier client had at this gateway, for whoever comes back to it: what is mapped
            there still is not given to another nonce (11.3: "MUST be rejected with a NOT_AUTHORIZED error with the
            lifetime of the error indicating duration of that existing mapping"). ``None``: new ones.

    Attributes:
        nonce: of all its mappings.

    Raises:
        ValueError: ``nonce`` has another length.
    """

    def __init__(
        self,
        gateway: Gateway,
        base: TransportAddress,
        rng: Random,
        system_rng: Random,
        nonce: bytes | None = None,
    ) -> None:
        if nonce is not None and len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce of {len(nonce)} bytes: it has {NONCE_SIZE}")
        self._gateway = gateway
        self._link = ServerLink(gateway, base)
        self._rng = rng
        self.nonce = system_rng.randbytes(NONCE_SIZE) if nonce is None else nonce
        self._epoch = PcpEpoch()
        self._probe: Attempts | None = None
        self._mappings: dict[_Identity, Mapping] = {}
        self._identities: dict[int, _Identity] = {}
        self._deletions: dict[_Identity, _Deletion] = {}
        self._recreated_at = -math.inf
        self._refusals: dict[_Identity, Refusal] = {}
        """Errors that hold for ports that nobody wants now."""
        # 11.4: NO_RESOURCES.
        self._no_new_until = -math.inf
        self._silent_until = -math.inf

    @property
    def name(self) -> ProtocolName:
        """Which protocol."""
        return "pcp"

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, as ``dropped: <reason>``."""
        return self._link.counters

    # --- commands ------------------------------------------------------------------------------------------------

    def discover(self, now: float) -> None:
        """See :meth:`ProtocolClient.discover`."""
        if self._probe is not None:
            return
        if now < self._silent_until:
            self._tell_not_found(_LEAVE_ALONE)
            return
        self._probe = Attempts.start(PROBE_WAITS, now)
        self._send_announce()

    def map(self, key: int, request: MapRequest, now: float) -> None:
        """See :meth:`ProtocolClient.map`.

        Raises:
            ValueError: the key is in use, the port is mapped already, there are 1024 mappings, or the request is for
                another host than ``gateway.source`` or out of range.
        """
        deleting = {deletion.key for deletion in self._deletions.values()}
        self._link.check(key, request, self._identities.keys() | deleting)
        identity = (_PROTOCOLS[request.transport], request.internal.port)
        if identity in self._mappings:
            raise ValueError(f"{request.transport} {request.internal} is mapped already")
        # Another deletion request would delete the new mapping.
        self._end_deletion(identity, is_confirmed=False)
        suggested = TransportAddress(any_host(self._gateway.version), request.external_port)
        mapping = Mapping(key, request, suggested)
        self._mappings[identity] = mapping
        self._identities[key] = identity
        refusal = self._refusals.pop(identity, None)
        if refusal is not None and now < refusal.until:
            mapping.on_refused(refusal)
            self._tell_refused(mapping, refusal.code, refusal.reason, refusal.until - now)
            return
        mapping.start_probe(now)
        self._ask(identity, mapping, now)

    def unmap(self, key: int, now: float) -> None:
        """See :meth:`ProtocolClient.unmap`."""
        mapping = self._forget(key)
        if mapping is None:
            return
        if mapping.sent_at == -math.inf or now < self._silent_until:
            self._link.tell(Unmapped(protocol="pcp", key=key, is_confirmed=False))
            return
        identity = (_PROTOCOLS[mapping.request.transport], mapping.request.internal.port)
        self._deletions[identity] = _Deletion(key, Attempts.start(DELETION_WAITS, now))
        self._send_deletion(identity)

    def abandon(self, key: int) -> None:
        """See :meth:`ProtocolClient.abandon`. One that is being deleted is not known any more."""
        self._forget(key)

    def withdraw(self, key: int, request: MapRequest, now: float) -> bool:
        """See :meth:`ProtocolClient.withdraw`. The nonce sees to it that it is ours."""
        identity = (_PROTOCOLS[request.transport], request.internal.port)
        if identity in self._mappings or identity in self._deletions or now < self._silent_until:
            return False
        self._deletions[identity] = _Deletion(key, Attempts.start(DELETION_WAITS, now))
        self._send_deletion(identity)
        return True

    def refresh(self, now: float) -> None:
        """See :meth:`ProtocolClient.refresh`. An error is waited for, and so is the answer to a first request."""
        for mapping in self._mappings.values():
            if mapping.probe is None and mapping.held_until <= now:
                mapping.ask_at(now)
        self.handle_timeout(now)

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take an answer, an update or an announcement."""
        origin = self._link.origin_of(datagram)
        if origin is None:
            return
        try:
            response = parse_response(datagram.data)
        except BadMessage as error:
            self._link.drop(datagram, str(error))
            return
        if origin is Origin.MULTICAST and (response.opcode != Opcode.ANNOUNCE or response.result):
            self._link.drop(datagram, "not an announcement")
        elif response.result == ResultCode.UNSUPP_VERSION:
            self._on_unsupported_version(response, datagram, now)
        elif response.map is not None:
            self._on_map(response, response.map, datagram, now)
        else:
            self._on_announce(response, origin, datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Nobody listens at the gateway: what nobody has answered yet need not wait; the rest may pass."""
        if not self._link.is_refusal(base, destination, errno):
            return
        if self._probe is not None:
            self._tell_not_found(IS_CLOSED)
        for mapping in self._mappings.values():
            if mapping.probe is not None:
                self._on_silence(mapping, IS_CLOSED, now)
        for identity in list(self._deletions):
            self._end_deletion(identity, is_confirmed=False)

    def handle_timeout(self, now: float) -> None:
        """Send what is due, and tell what is over."""
        if self._probe is not None and now >= self._probe.next_at:
            if self._probe.advance(now):
                self._send_announce()
            else:
                self._tell_not_found(WAS_SILENT)
        for identity, deletion in list(self._deletions.items()):
            if now >= deletion.attempts.next_at:
                if deletion.attempts.advance(now):
                    self._send_deletion(identity)
                else:
                    self._end_deletion(identity, is_confirmed=False)
        for identity, mapping in self._mappings.items():
            if now >= mapping.deadline:
                self._on_deadline(identity, mapping, now)

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``."""
        due = [mapping.deadline for mapping in self._mappings.values()]
        due += [deletion.attempts.next_at for deletion in self._deletions.values()]
        if self._probe is not None:
            due.append(self._probe.next_at)
        earliest = min(due, default=math.inf)
        return None if earliest == math.inf else earliest

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send, or ``None``."""
        return self._link.poll_transmit()

    def poll_event(self) -> Event | None:
        """One thing that happened, or ``None``."""
        return self._link.poll_event()

    # --- answers -------------------------------------------------------------------------------------------------

    def _on_announce(self, response: Response, origin: Origin, datagram: Datagram, now: float) -> None:
        probe = self._probe if origin is Origin.UNICAST else None
        if probe is None and response.result:
            self._link.drop(datagram, "nothing was asked")
            return
        # 14.1.3: "MUST wait a random amount of time between 0 and 5 seconds", but not after an answer to us alone.
        delay_s = self._rng.uniform(0, RECREATION_DELAY_S) if probe is None else 0.0
        self._check_epoch(response, delay_s, now)
        if probe is None:
            return
        if response.result == ResultCode.ADDRESS_MISMATCH:
            self._tell_not_found(result_text(response.result))
            return
        # Whatever else is wrong with ANNOUNCE, it was a PCP server that said so.
        self._probe = None
        self._link.tell(Discovered(protocol="pcp", external_host=None, rtt_s=probe.rtt_s(now)))

    def _on_map(self, response: Response, data: MapData, datagram: Datagram, now: float) -> None:
        identity = (data.protocol, data.internal_port)
        mapping, deletion = self._mappings.get(identity), self._deletions.get(identity)
        if data.nonce != self.nonce:
            self._link.drop(datagram, "another nonce")
        elif deletion is not None:
            self._on_deletion_answer(identity, response, data, datagram, now)
        elif mapping is None or mapping.sent_at == -math.inf:
            self._link.drop(datagram, "no such mapping")
        elif response.result:
            self._on_error(mapping, response, datagram, now)
        elif response.lifetime_s == 0 and data.external.port == 0:
            # 15.1: of a deletion, these are copied into the response.
            self._link.drop(datagram, "late answer to a deletion")
        else:
            self._on_success(mapping, response, data, datagram, now)

    def _on_success(self, mapping: Mapping, response: Response, data: MapData, datagram: Datagram, now: float) -> None:
        lifetime_s = min(response.lifetime_s, MAX_LIFETIME_S)
        if not mapping.unanswered and _is_known(mapping.lease, data.external, now + lifetime_s, lifetime_s):
            self._check_epoch(response, 0.0, now, fresh=mapping if lifetime_s else None)
            self._link.drop(datagram, "a duplicate")
            return
        rtt_s = mapping.rtt_s(now)
        if lifetime_s:
            self._check_epoch(response, 0.0, now, fresh=mapping)
            mapping.on_granted(Lease(data.external, now, lifetime_s), now, self._rng)
            self._link.tell(
                Mapped(protocol="pcp", key=mapping.key, external=data.external, lifetime_s=lifetime_s, rtt_s=rtt_s),
            )
        else:
            self._check_epoch(response, 0.0, now, fresh=mapping)
            self._refuse(mapping, Refusal(now + SHORT_ERROR_S, None, "a lifetime of 0 s"), now)

    def _on_error(self, mapping: Mapping, response: Response, datagram: Datagram, now: float) -> None:
        self._check_epoch(response, 0.0, now)
        if not mapping.unanswered and (mapping.lease is None or now < mapping.held_until):
            self._link.drop(datagram, "a duplicate")
            return
        refusal = Refusal(now + _hold_s(response), response.result, result_text(response.result))
        if response.result == ResultCode.NO_RESOURCES:
            self._no_new_until = refusal.until
        is_asked = mapping.lease is not None and mapping.unanswered
        if is_asked and response.result in _PASSING and not mapping.is_doubtful:
            mapping.on_not_renewed(now, refusal, self._rng)
        else:
            self._refuse(mapping, refusal, now)

    def _on_deletion_answer(
        self, identity: _Identity, response: Response, data: MapData, datagram: Datagram, now: float
    ) -> None:
        if not response.result and response.lifetime_s and data.external.port:
            # It may still keep the mapping while it carries traffic (15), but then the port is 0 as well.
            self._link.drop(datagram, "late answer to a mapping")
            return
        self._check_epoch(response, 0.0, now)
        self._end_deletion(identity, is_confirmed=not response.result)
        if response.result == ResultCode.NO_RESOURCES:
            self._fall_silent(now + _hold_s(response))

    def _on_unsupported_version(self, response: Response, datagram: Datagram, now: float) -> None:
        """9: whatever was asked; the answer does not say what. It has no nonce either, so that anybody may have made
        it: a lease goes on.
        """
        reason = _version_reason(response.version)
        asked = [mapping for mapping in self._mappings.values() if mapping.unanswered]
        if self._probe is None and not asked and not self._deletions:
            self._link.drop(datagram, "nothing was asked")
            return
        if self._probe is not None:
            self._tell_not_found(reason)
        for mapping in asked:
            code = ResultCode.UNSUPP_VERSION
            refusal = Refusal(now + _hold_s(response), code, f"{result_text(code)}: {reason}")
            if mapping.lease is None:
                self._refuse(mapping, refusal, now)
            else:
                mapping.on_not_renewed(now, refusal, self._rng)
        for identity in list(self._deletions):
            self._end_deletion(identity, is_confirmed=False)

    def _check_epoch(self, response: Response, delay_s: float, now: float, fresh: Mapping | None = None) -> None:
        """8.5 and 16.3.1: if the gateway has forgotten its mappings, all but ``fresh`` are made again."""
        if response.epoch_s is None or self._epoch.is_valid(response.epoch_s, now) or now < self._recreated_at:
            return
        self._recreated_at = max(now + delay_s, self._recreated_at + RECREATION_SPACING_S)
        self._link.tell(GatewayRestarted(protocol="pcp"))
        for mapping in self._mappings.values():
            if mapping.lease is not None and mapping is not fresh:
                mapping.is_doubtful = True
                mapping.ask_at(max(self._recreated_at, mapping.held_until))

    def _fall_silent(self, until: float) -> None:
        """11.4: "SHOULD NOT send further requests of *any kind*"; those that are repeated included."""
        self._silent_until = until
        for identity in list(self._deletions):
            self._end_deletion(identity, is_confirmed=False)
        if self._probe is not None:
            self._tell_not_found(_LEAVE_ALONE)

    # --- mappings ------------------------------------------------------------------------------------------------

    def _on_deadline(self, identity: _Identity, mapping: Mapping, now: float) -> None:
        if mapping.lease is not None and now >= mapping.lease.expires_at:
            mapping.on_lost(now)
            self._link.tell(MappingLost(protocol="pcp", key=mapping.key, reason="not renewed in its lifetime"))
        if mapping.next_at is None or now < mapping.next_at:
            return
        if mapping.probe is not None and not mapping.probe.advance(now):
            self._on_silence(mapping, WAS_SILENT, now)
        else:
            self._ask(identity, mapping, now)

    def _ask(self, identity: _Identity, mapping: Mapping, now: float) -> None:
        is_new = mapping.lease is None
        until = max(self._silent_until, self._no_new_until if is_new else -math.inf)
        if now < until:
            if mapping.probe is None:
                mapping.ask_at(until)
            else:
                code = ResultCode.NO_RESOURCES
                self._refuse(mapping, Refusal(until, code, result_text(code)), now)
            return
        data = MapData(nonce=self.nonce, protocol=identity[0], internal_port=identity[1], external=mapping.suggested)
        self._link.send(map_request(self._gateway.source, mapping.request.lifetime_s, data))
        mapping.on_sent(now, self._rng)

    def _on_silence(self, mapping: Mapping, reason: str, now: float) -> None:
        self._tell_refused(mapping, None, reason, mapping.wait(now, self._rng))

    def _refuse(self, mapping: Mapping, refusal: Refusal, now: float) -> None:
        was_mapped = mapping.lease is not None
        mapping.on_refused(refusal)
        if was_mapped:
            self._link.tell(MappingLost(protocol="pcp", key=mapping.key, reason=refusal.reason))
        else:
            self._tell_refused(mapping, refusal.code, refusal.reason, refusal.until - now)

    def _forget(self, key: int) -> Mapping | None:
        identity = self._identities.pop(key, None)
        if identity is None:
            return None
        mapping = self._mappings.pop(identity)
        if mapping.refusal is not None:
            if len(self._refusals) >= MAX_KEYS:
                del self._refusals[next(iter(self._refusals))]
            self._refusals[identity] = mapping.refusal
        return mapping

    def _end_deletion(self, identity: _Identity, *, is_confirmed: bool) -> None:
        deletion = self._deletions.pop(identity, None)
        if deletion is not None:
            self._link.tell(Unmapped(protocol="pcp", key=deletion.key, is_confirmed=is_confirmed))

    # --- out -----------------------------------------------------------------------------------------------------

    def _send_announce(self) -> None:
        self._link.send(announce_request(self._gateway.source))

    def _send_deletion(self, identity: _Identity) -> None:
        # 15.1: "the Suggested External Address and Suggested External Port fields MUST be set to zero".
        nowhere = TransportAddress(any_host(self._gateway.version), 0)
        data = MapData(nonce=self.nonce, protocol=identity[0], internal_port=identity[1], external=nowhere)
        self._link.send(map_request(self._gateway.source, 0, data))

    def _tell_not_found(self, reason: str) -> None:
        self._probe = None
        self._link.tell(NotFound(protocol="pcp", reason=reason))

    def _tell_refused(self, mapping: Mapping, code: int | None, reason: str, retry_s: float) -> None:
        self._link.tell(
            MappingRefused(protocol="pcp", key=mapping.key, code=code, reason=reason, retry_s=retry_s),
        )


def _is_known(lease: Lease | None, external: TransportAddress, expires_at: float, lifetime_s: int) -> bool:
    """Whether a success that was not waited for has no news."""
    if lease is None:
        return lifetime_s == 0
    return lease.external == external and expires_at >= lease.expires_at - _TOLERANCE_S


def _version_reason(version: int) -> str:
    """9: what a server means by UNSUPP_VERSION."""
    if version == 0:
        return "it speaks NAT-PMP only"
    if version == VERSION:
        return f"it refuses version {VERSION} of PCP, which it speaks"
    return f"it speaks version {version} of PCP only"


def _hold_s(response: Response) -> float:
    """8.3: how long it will say the same."""
    return min(max(float(response.lifetime_s), SHORT_ERROR_S), float(MAX_LIFETIME_S))
