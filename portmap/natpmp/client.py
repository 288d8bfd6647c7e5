"""What does a client of NAT-PMP do at one gateway? RFC 6886.

It asks for the external address, which changes nothing (3.2), and makes, renews and deletes mappings (3.3, 3.4), one
request at a time (``queue.py``). The answer about a mapping does not have the external address, so that it is asked for
before the first one and with every renewal; when it changes, all mappings are told again.

Every packet, also one that nobody asked for, may say that the gateway has forgotten its mappings (3.6); then all are
made again after a random time of up to 5 s (3.7).

An error has no lifetime here. Of its own words (3.5), "has not obtained a DHCP lease" and "at this time" pass: 3 and 4
are asked again after 30 s, like such errors of PCP, and a mapping that was to be renewed then stays for its lifetime,
unless the gateway has restarted. All others are "fatal errors of the request": it is asked for again
only when the gateway has restarted or has another address, or by ``refresh`` (3.1: such events "should cause the client
to discard its previous information").

Silence is told after 0.75 s; the nine requests of 3.1 go on, if somebody still wants the mapping.

DEVIATION: 3 would have it used from "private IPv4 address ranges" only. Whoever has another address that is not global,
as behind a carrier's NAT, is behind a NAT as well, and asks: ``test_only_from_a_global_address_nothing_is_asked``.

Pure; the contract is ``iceagent/net/core.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Datagram, Event, Transmit
from portmap.epoch import NatPmpEpoch
from portmap.events import Discovered, GatewayRestarted, Mapped, MappingLost, MappingRefused, NotFound, Unmapped
from portmap.natpmp.mapping import REST_S, Lease, Mapping
from portmap.natpmp.messages import (
    EXTERNAL_REQUEST,
    ErrorResponse,
    ExternalAddress,
    MapResponse,
    Opcode,
    Response,
    ResultCode,
    UnsupportedVersion,
    map_request,
    parse_response,
    result_text,
)
from portmap.natpmp.queue import WAITS, Job, RequestQueue
from portmap.server_link import (
    DELETION_WAITS,
    IS_CLOSED,
    MAX_LIFETIME_S,
    MIN_SPACING_S,
    PROBE_S,
    RECREATION_DELAY_S,
    RECREATION_SPACING_S,
    SHORT_ERROR_S,
    WAS_SILENT,
    BadMessage,
    Origin,
    ServerLink,
)
from portmap.values import Gateway, MapRequest, ProtocolName

__all__ = ["NatPmpClient"]

_OPCODES = {"udp": Opcode.MAP_UDP, "tcp": Opcode.MAP_TCP}
_PASSING = frozenset({ResultCode.NETWORK_FAILURE, ResultCode.OUT_OF_RESOURCES})
_UNKNOWN_HOST = "0.0.0.0"
_IS_GLOBAL = "our address is a global one, which needs no NAT-PMP"
_EXTERNAL = (int(Opcode.EXTERNAL_ADDRESS), 0)

# Opcode and internal port: what an answer has of its request.
_Identity = tuple[int, int]


@dataclass(slots=True)
class _Deletion:
    key: int
    job: Job
    ends_at: float


class NatPmpClient:
    """See the module, and :class:`portmap.events.ProtocolClient`.

    Args:
        gateway: an IPv4 one.
        base: our socket; its address is ``gateway.source``.
        rng: jitter.
        system_rng: not used; NAT-PMP has no secrets.

    Raises:
        ValueError: it is not an IPv4 gateway.
    """

    def __init__(self, gateway: Gateway, base: TransportAddress, rng: Random, system_rng: Random) -> None:
        if gateway.version != 4:
            raise ValueError(f"{gateway}: NAT-PMP is for IPv4")
        self._link = ServerLink(gateway, base)
        self._source = ip_address(gateway.source)
        self._rng = rng
        self._epoch = NatPmpEpoch()
        self._queue = RequestQueue()
        self._mappings: dict[_Identity, Mapping] = {}
        self._identities: dict[int, _Identity] = {}
        self._deletions: dict[_Identity, _Deletion] = {}
        self._probing_since: float | None = None
        self._external_job: Job | None = None
        self._external_host: str | None = None
        self._asked_at = -math.inf
        self._external_at = -math.inf
        self._heard_at = -math.inf
        self._recreated_at = -math.inf

    @property
    def name(self) -> ProtocolName:
        """Which protocol."""
        return "nat-pmp"

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, as ``dropped: <reason>``."""
        return self._link.counters

    # --- commands ------------------------------------------------------------------------------------------------

    def discover(self, now: float) -> None:
        """See :meth:`ProtocolClient.discover`."""
        if self._probing_since is not None:
            return
        if self._source.is_global:
            self._tell_not_found(_IS_GLOBAL)
            return
        self._probing_since = now
        self._ask_external(now)
        self._send_next(now)

    def map(self, key: int, request: MapRequest, now: float) -> None:
        """See :meth:`ProtocolClient.map`.

        Raises:
            ValueError: the key is in use, the port is mapped already, there are 1024 mappings, or the request is for
                another host than ``gateway.source`` or out of range.
        """
        deleting = {deletion.key for deletion in self._deletions.values()}
        self._link.check(key, request, self._identities.keys() | deleting)
        identity = (int(_OPCODES[request.transport]), request.internal.port)
        if identity in self._mappings:
            raise ValueError(f"{request.transport} {request.internal} is mapped already")
        # Another deletion request would delete the new mapping.
        self._end_deletion(identity, is_confirmed=False)
        mapping = Mapping(key, request, identity, request.external_port, probing_since=now)
        self._mappings[identity] = mapping
        self._identities[key] = identity
        if self._external_host is None:
            self._ask_external(now)
        self._ask(mapping, now)
        self._send_next(now)

    def unmap(self, key: int, now: float) -> None:
        """See :meth:`ProtocolClient.unmap`. What had no turn within half a second is sent then, without waiting."""
        mapping = self._forget(key)
        if mapping is not None:
            self._delete(key, mapping.identity, now)

    def abandon(self, key: int) -> None:
        """See :meth:`ProtocolClient.abandon`. One that is being deleted is not known any more."""
        self._forget(key)

    def withdraw(self, key: int, request: MapRequest, now: float) -> bool:
        """See :meth:`ProtocolClient.withdraw`."""
        identity = (int(_OPCODES[request.transport]), request.internal.port)
        if identity in self._mappings or identity in self._deletions:
            return False
        self._delete(key, identity, now)
        return True

    def refresh(self, now: float) -> None:
        """See :meth:`ProtocolClient.refresh`. An error is waited for, and so is the answer to a first request."""
        self._external_at = -math.inf
        for mapping in self._mappings.values():
            if mapping.probing_since is None and mapping.held_until <= now:
                self._drop_job(mapping)
                mapping.next_at = now
        self.handle_timeout(now)

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take an answer or an announcement."""
        origin = self._link.origin_of(datagram)
        if origin is None:
            return
        try:
            response = parse_response(datagram.data)
        except BadMessage as error:
            self._link.drop(datagram, str(error))
            return
        if origin is Origin.MULTICAST:
            self._on_announcement(response, datagram, now)
            self._send_next(now)
            return
        if not isinstance(response, UnsupportedVersion):
            # 3.6: "any packet from the NAT gateway, either unsolicited or in response to a client request".
            self._check_epoch(response.epoch_s, now)
        if isinstance(response, ExternalAddress):
            self._on_external(response, datagram, now)
        elif isinstance(response, MapResponse):
            self._on_map(response, datagram, now)
        elif isinstance(response, ErrorResponse):
            self._on_error(response, datagram, now)
        else:
            self._on_unsupported_version(response, datagram, now)
        self._send_next(now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Nobody listens at the gateway: what nobody has answered yet need not wait; the rest may pass.

        3.1: "skip any remaining retransmissions and conclude immediately that the gateway does not support NAT-PMP".
        """
        if not self._link.is_refusal(base, destination, errno):
            return
        if self._probing_since is not None:
            self._tell_not_found(IS_CLOSED)
        for mapping in self._mappings.values():
            if mapping.probing_since is not None:
                self._refuse(mapping, None, IS_CLOSED, REST_S, now)
                # It is no error of the gateway's: ``refresh`` need not wait.
                mapping.held_until = -math.inf
        for identity in list(self._deletions):
            self._end_deletion(identity, is_confirmed=False)
        self._send_next(now)

    def handle_timeout(self, now: float) -> None:
        """Send what is due, and tell what is over."""
        for failed in self._queue.handle_timeout(now):
            self._on_unanswered(failed, now)
        if self._probing_since is not None and now >= self._silent_at(self._probing_since):
            self._tell_not_found(WAS_SILENT)
        for identity, deletion in list(self._deletions.items()):
            if now >= deletion.ends_at:
                if not deletion.job.sent:
                    # 3.1: "SHOULD always send at least one deletion request whenever possible".
                    self._link.send(deletion.job.data)
                self._end_deletion(identity, is_confirmed=False)
        for mapping in self._mappings.values():
            self._on_deadline(mapping, now)
        self._send_next(now)

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``."""
        due = [mapping.deadline for mapping in self._mappings.values()]
        due += [
            self._silent_at(mapping.probing_since)
            for mapping in self._mappings.values()
            if mapping.probing_since is not None
        ]
        due += [deletion.ends_at for deletion in self._deletions.values()]
        due.append(self._queue.poll_timeout())
        if self._probing_since is not None:
            due.append(self._silent_at(self._probing_since))
        earliest = min(due)
        return None if earliest == math.inf else earliest

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send, or ``None``."""
        return self._link.poll_transmit()

    def poll_event(self) -> Event | None:
        """One thing that happened, or ``None``."""
        return self._link.poll_event()

    # --- answers -------------------------------------------------------------------------------------------------

    def _on_announcement(self, response: Response, datagram: Datagram, now: float) -> None:
        """3.2.1. One with an error comes from a gateway that has no address (yet).

        Anybody on the network can send one: another address is not believed but asked for, and not more often than
        renewals are. A gateway repeats what it announces for two minutes.
        """
        if isinstance(response, ExternalAddress):
            self._check_epoch(response.epoch_s, now)
            is_news = bool(self._mappings) and response.host != self._external_host
            if is_news and now - self._asked_at >= MIN_SPACING_S:
                self._ask_external(now)
        elif isinstance(response, ErrorResponse) and response.opcode == Opcode.EXTERNAL_ADDRESS:
            self._check_epoch(response.epoch_s, now)
        else:
            self._link.drop(datagram, "not an announcement")

    def _on_external(self, response: ExternalAddress, datagram: Datagram, now: float) -> None:
        job = self._external_job
        if job is None or not job.sent:
            self._link.drop(datagram, "nothing was asked")
            return
        self._on_external_answer(job, response.host, now)
        self._learn_external(response.host, now)

    def _on_external_answer(self, job: Job, host: str | None, now: float) -> None:
        self._external_job = None
        self._on_answer(job, now)
        if self._probing_since is not None:
            self._probing_since = None
            self._link.tell(
                Discovered(protocol="nat-pmp", external_host=host, rtt_s=now - job.first_sent_at),
            )

    def _on_map(self, response: MapResponse, datagram: Datagram, now: float) -> None:
        identity = (response.opcode, response.internal_port)
        if identity in self._deletions:
            if response.lifetime_s or not self._deletions[identity].job.sent:
                self._link.drop(datagram, "late answer to a mapping")
                return
            self._on_answer(self._deletions[identity].job, now)
            self._end_deletion(identity, is_confirmed=True)
            return
        mapping = self._mapping_asked(identity, datagram)
        if mapping is None or mapping.job is None:
            return
        if not response.lifetime_s and not response.external_port:
            # 3.4: what a deletion is answered with.
            self._link.drop(datagram, "late answer to a deletion")
            return
        self._on_answer(mapping.job, now)
        if not response.lifetime_s:
            self._refuse(mapping, None, "a lifetime of 0 s", SHORT_ERROR_S, now)
            return
        rtt_s = mapping.job.rtt_s(now)
        lifetime_s = min(response.lifetime_s, MAX_LIFETIME_S)
        mapping.on_granted(Lease(response.external_port, now, lifetime_s))
        self._tell_mapped(mapping, response.external_port, lifetime_s, rtt_s)

    def _on_error(self, response: ErrorResponse, datagram: Datagram, now: float) -> None:
        outstanding = self._queue.outstanding
        if response.opcode == Opcode.EXTERNAL_ADDRESS:
            job = self._external_job
            if job is None or not job.sent:
                self._link.drop(datagram, "nothing was asked")
            else:
                # Whatever is wrong, it was a NAT-PMP gateway that said so.
                self._on_external_answer(job, None, now)
            return
        if response.internal_port is not None:
            identity = (response.opcode, response.internal_port)
        elif outstanding is not None and outstanding.identity[0] == response.opcode:
            identity = outstanding.identity
        else:
            self._link.drop(datagram, "nothing was asked")
            return
        if identity in self._deletions:
            self._on_answer(self._deletions[identity].job, now)
            self._end_deletion(identity, is_confirmed=False)
            return
        mapping = self._mapping_asked(identity, datagram)
        if mapping is None or mapping.job is None:
            return
        self._on_answer(mapping.job, now)
        if response.code not in _PASSING:
            self._refuse(mapping, response.code, result_text(response.code), None, now)
        elif mapping.lease is None or mapping.is_doubtful:
            self._refuse(mapping, response.code, result_text(response.code), SHORT_ERROR_S, now)
        else:
            mapping.on_not_renewed(now, SHORT_ERROR_S)

    def _on_unsupported_version(self, response: UnsupportedVersion, datagram: Datagram, now: float) -> None:
        """Whatever is outstanding; the answer does not say what."""
        job = self._queue.outstanding
        if job is None:
            self._link.drop(datagram, "nothing was asked")
            return
        reason = "it speaks PCP only" if response.version == 2 else f"it speaks version {response.version} only"
        code = ResultCode.UNSUPPORTED_VERSION
        self._on_answer(job, now)
        if job is self._external_job:
            self._external_job = None
            if self._probing_since is not None:
                self._tell_not_found(reason)
        elif job.is_deletion:
            self._end_deletion(job.identity, is_confirmed=False)
        else:
            self._refuse(self._mappings[job.identity], code, f"{result_text(code)}: {reason}", None, now)

    def _mapping_asked(self, identity: _Identity, datagram: Datagram) -> Mapping | None:
        """The mapping that an answer is for."""
        mapping = self._mappings.get(identity)
        if mapping is None:
            self._link.drop(datagram, "no such mapping")
            return None
        if mapping.job is None or not mapping.job.sent:
            self._link.drop(datagram, "nothing was asked")
            return None
        return mapping

    def _on_answer(self, job: Job, now: float) -> None:
        """It is one to this request."""
        self._queue.on_answer(job)
        self._heard_at = now

    def _check_epoch(self, epoch_s: int | None, now: float) -> None:
        """3.6 and 3.7: if the gateway has forgotten its mappings, all are made again but what is under way."""
        if epoch_s is None or self._epoch.is_valid(epoch_s, now) or now < self._recreated_at:
            return
        delay_s = self._rng.uniform(0, RECREATION_DELAY_S)
        self._recreated_at = max(now + delay_s, self._recreated_at + RECREATION_SPACING_S)
        self._link.tell(GatewayRestarted(protocol="nat-pmp"))
        for mapping in self._mappings.values():
            mapping.is_doubtful = True
            if mapping.job is None:
                mapping.next_at = self._recreated_at

    def _learn_external(self, host: str, now: float) -> None:
        is_news = host != self._external_host
        self._external_host, self._external_at = host, now
        if not is_news:
            return
        for mapping in self._mappings.values():
            if mapping.lease is not None:
                remaining_s = max(1, math.ceil(mapping.lease.expires_at - now))
                self._tell_mapped(mapping, mapping.lease.external_port, remaining_s, None)
            elif mapping.job is None:
                # It was refused by a gateway that is not the same any more.
                at = now + self._rng.uniform(0, RECREATION_DELAY_S)
                mapping.next_at = at if mapping.next_at is None else min(at, mapping.next_at)

    # --- mappings ------------------------------------------------------------------------------------------------

    def _on_deadline(self, mapping: Mapping, now: float) -> None:
        if mapping.lease is not None and now >= mapping.lease.expires_at:
            # A request that has been waiting for long makes room for new ones.
            was_asked = mapping.job is not None
            self._drop_job(mapping)
            mapping.on_lost(now, was_asked=was_asked)
            self._link.tell(MappingLost(protocol="nat-pmp", key=mapping.key, reason="not renewed in its lifetime"))
        if mapping.probing_since is not None and now >= self._silent_at(mapping.probing_since):
            mapping.probing_since = None
            self._tell_refused(mapping, None, WAS_SILENT, 0.0)
        if mapping.next_at is not None and now >= mapping.next_at:
            if now - self._external_at >= MIN_SPACING_S:
                self._ask_external(now)
            self._ask(mapping, now)

    def _on_unanswered(self, job: Job, now: float) -> None:
        if job is self._external_job:
            self._external_job = None
            if self._probing_since is not None:
                self._tell_not_found(WAS_SILENT)
        elif job.is_deletion:
            self._end_deletion(job.identity, is_confirmed=False)
        else:
            mapping = self._mappings[job.identity]
            mapping.on_unanswered(now)
            if mapping.lease is None:
                mapping.probing_since = None
                self._tell_refused(mapping, None, f"no answer to {len(WAITS)} requests", REST_S)

    def _ask(self, mapping: Mapping, now: float) -> None:
        opcode, port = mapping.identity
        mapping.next_at = None
        data = map_request(opcode, port, mapping.suggested, mapping.request.lifetime_s)
        mapping.job = Job(data, mapping.identity, now)
        self._queue.add(mapping.job)

    def _ask_external(self, now: float) -> None:
        if self._external_job is None:
            self._asked_at = now
            self._external_job = Job(EXTERNAL_REQUEST, _EXTERNAL, now)
            self._queue.add(self._external_job)

    def _refuse(self, mapping: Mapping, code: int | None, reason: str, hold_s: float | None, now: float) -> None:
        was_mapped = mapping.lease is not None
        self._drop_job(mapping)
        mapping.on_refused(now, hold_s)
        if was_mapped:
            self._link.tell(MappingLost(protocol="nat-pmp", key=mapping.key, reason=reason))
        else:
            self._tell_refused(mapping, code, reason, hold_s)

    def _delete(self, key: int, identity: _Identity, now: float) -> None:
        opcode, port = identity
        job = Job(map_request(opcode, port, 0, 0), identity, now, waits=DELETION_WAITS, is_deletion=True)
        self._deletions[identity] = _Deletion(key, job, now + sum(DELETION_WAITS))
        self._queue.add(job)
        self._send_next(now)

    def _forget(self, key: int) -> Mapping | None:
        identity = self._identities.pop(key, None)
        if identity is None:
            return None
        mapping = self._mappings.pop(identity)
        self._drop_job(mapping)
        if not self._mappings and self._probing_since is None:
            self._drop_external_job()
        return mapping

    def _drop_job(self, mapping: Mapping) -> None:
        if mapping.job is not None:
            self._queue.remove(mapping.job)
            mapping.job = None

    def _drop_external_job(self) -> None:
        if self._external_job is not None:
            self._queue.remove(self._external_job)
            self._external_job = None

    def _end_deletion(self, identity: _Identity, *, is_confirmed: bool) -> None:
        deletion = self._deletions.pop(identity, None)
        if deletion is not None:
            self._queue.remove(deletion.job)
            self._link.tell(Unmapped(protocol="nat-pmp", key=deletion.key, is_confirmed=is_confirmed))

    def _silent_at(self, since: float) -> float:
        """When silence is told: others' answers show that the gateway speaks NAT-PMP, and takes its time."""
        return max(since, self._heard_at) + PROBE_S

    # --- out -----------------------------------------------------------------------------------------------------

    def _send_next(self, now: float) -> None:
        job = self._queue.next_request(now)
        if job is not None:
            self._link.send(job.data)

    def _tell_not_found(self, reason: str) -> None:
        self._probing_since = None
        self._drop_external_job()
        self._link.tell(NotFound(protocol="nat-pmp", reason=reason))

    def _tell_mapped(self, mapping: Mapping, port: int, lifetime_s: int, rtt_s: float | None) -> None:
        external = TransportAddress(self._external_host or _UNKNOWN_HOST, port)
        self._link.tell(
            Mapped(protocol="nat-pmp", key=mapping.key, external=external, lifetime_s=lifetime_s, rtt_s=rtt_s),
        )

    def _tell_refused(self, mapping: Mapping, code: int | None, reason: str, retry_s: float | None) -> None:
        self._link.tell(
            MappingRefused(protocol="nat-pmp", key=mapping.key, code=code, reason=reason, retry_s=retry_s),
        )
