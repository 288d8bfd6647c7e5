"""How is one mapping kept? Pure.

Made, looked at, renewed at half its lease, lost and made again, deleted. UPnP announces nothing that could be relied
on, so what has become of a mapping is found out by looking:

- once right after it was made (some routers say yes and do nothing), when it has been told to the application already;
- before every renewal; a mapping without a lease is looked for every 20 minutes instead;
- when another mapping was found missing, or the external address is another one: the gateway may have restarted.

A gateway that does not let us look is believed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from iceagent.net.address import TransportAddress
from portmap.events import Mapped, MappingLost, MappingRefused, Unmapped
from portmap.upnp.description import Service
from portmap.upnp.desk import Attempt, Denial, Desk, Grant
from portmap.upnp.entries import Sight, ask_entry, sight_of
from portmap.upnp.exchanges import Answer
from portmap.upnp.external import External
from portmap.upnp.pinholes import PinholeAttempt, delete_pinhole, is_closed
from portmap.upnp.ports import PERMANENT_S, PortAttempt, delete_port, is_deleted
from portmap.values import MapRequest

__all__ = ["UNKNOWN_HOST", "Upkeep"]

UNKNOWN_HOST = "0.0.0.0"
"""The external host of a mapping whose gateway does not know its address."""

# A new mapping waits so long for the external address, if that is being asked for.
EXTERNAL_WAIT_S = 0.2
# Some routers list a mapping a moment after they have made it.
SECOND_LOOK_S = 1.0
UNMAP_S = 0.5
# So long after it was made, or seen, a mapping is taken for ours without another look.
FRESH_S = 60.0
# Renewals of one mapping are never nearer to each other, whatever lease the gateway tells.
MIN_RENEWAL_S = 10.0
# What was refused is asked for again after 30 s, then after twice as long each time.
RETRY_S = 30.0
MAX_RETRY_S = 600.0
# A lease that is shorter by no more than this is the one that was asked for.
SLACK_S = 10.0

# 501: there may be no external address yet. 603, 701, 718, 728: there is no room now. None: no answer.
_PASSING = frozenset({None, 501, 603, 701, 718, 728})


class Upkeep:
    """One mapping of a client, from ``map`` to the end of ``unmap``.

    Args:
        desk: what is shared.
        external: tells the gateway's external address.
        key: of the mapping.
        request: what is wanted.

    Attributes:
        is_over: it has ended, and may be forgotten.
        is_waiting: it waits for a service to be found.
    """

    def __init__(self, desk: Desk, external: External, key: int, request: MapRequest) -> None:
        self.is_over = False
        self.is_waiting = True
        self._desk = desk
        self._external = external
        self._key = key
        self._request = request
        self._attempt: Attempt | None = None
        self._grant: Grant | None = None
        self._last_port: int | None = None
        self._is_told = False
        # It was granted once without effect: what is granted is told only after it was seen.
        self._is_doubtful = False
        self._cannot_look = False
        self._looks = 0
        self._seen_at = -math.inf
        # Longer ones than this are not given, whatever is said.
        self._longest_lease_s: int | None = None
        self._failures = 0
        self._reason = ""
        self._tell_at: float | None = None
        self._look_at: float | None = None
        self._renew_at: float | None = None
        self._expires_at: float | None = None
        self._retry_at: float | None = None
        self._unmapped_by: float | None = None

    # --- commands ---

    def begin(self, now: float) -> None:
        """Make it, if a service is known; else wait for one."""
        service = self._desk.service
        self._retry_at = None
        if service is None:
            self.is_waiting = True
            self._desk.on_unreachable(now)
        elif self._attempt is None and self._unmapped_by is None:
            self.is_waiting = False
            self._try(service, now)

    def give_up(self, reason: str, now: float) -> None:
        """No service was found."""
        if self.is_waiting and self._unmapped_by is None:
            self._on_denial(Denial(code=None, reason=reason), now)

    def hurry(self, now: float) -> None:
        """Renew it at once; or make it, if it was refused."""
        if self._grant is not None:
            self._renew(now)
        elif self._retry_at is not None:
            self.begin(now)

    def unmap(self, now: float) -> None:
        """Delete it; :class:`Unmapped` follows within half a second."""
        if self._unmapped_by is not None:
            return
        self._unmapped_by = now + UNMAP_S
        grant, service = self._grant, self._desk.service
        is_adding = self._attempt is not None and self._attempt.stop(self._end)
        self.is_waiting = False
        self._forget()
        if service is not None and grant is not None:
            self._delete(service, grant, now)
        elif not is_adding:
            # There is nothing to delete.
            self._end(True, now)

    def abandon(self) -> None:
        """Forget it."""
        if self._attempt is not None:
            self._attempt.stop(None)
        self._forget()
        self.is_over = True

    # --- what it hears ---

    def external_told(self, is_new: bool, now: float) -> None:
        """The gateway has said its external address, or said nothing; ``is_new``: it is another one than before."""
        if self._tell_at is not None:
            self._tell(now)
        elif is_new and self._is_told and self._grant is not None:
            self._tell(now)
            self._look(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed."""
        if self._unmapped_by is not None:
            if now >= self._unmapped_by:
                self._end(False, now)
            return
        if self._tell_at is not None and now >= self._tell_at:
            self._tell(now)
        if self._look_at is not None and now >= self._look_at:
            self._look(now)
        if self._expires_at is not None and now >= self._expires_at:
            why = f": {self._reason}" if self._reason else ""
            self._lose(f"not renewed within its lifetime{why}", None, now)
        if self._renew_at is not None and now >= self._renew_at:
            self._renew(now)
        if self._retry_at is not None and now >= self._retry_at:
            self.begin(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        if self.is_over:
            return None
        if self._unmapped_by is not None:
            return self._unmapped_by
        deadlines = (self._tell_at, self._look_at, self._renew_at, self._expires_at, self._retry_at)
        return min((at for at in deadlines if at is not None), default=None)

    @property
    def is_granted(self) -> bool:
        """There is a mapping."""
        return self._grant is not None

    # --- making and renewing ---

    def _try(self, service: Service, now: float) -> None:
        if service.is_firewall:
            self._attempt = PinholeAttempt(self._desk, service, self._request, self._grant, now, self._on_result)
        else:
            self._attempt = PortAttempt(
                self._desk, service, self._request, self._grant, now, self._on_result, port=self._last_port
            )

    def _renew(self, now: float) -> None:
        self._renew_at = None
        service = self._desk.service
        if self._attempt is None and self._grant is not None and service is not None:
            self._try(service, now)

    def _on_result(self, result: Grant | Denial, now: float) -> None:
        self._attempt = None
        if isinstance(result, Grant):
            self._on_grant(result, now)
        else:
            self._on_denial(result, now)

    def _on_grant(self, grant: Grant, now: float) -> None:
        if self._longest_lease_s is not None and grant.lease_s > self._longest_lease_s:
            grant = replace(grant, lease_s=self._longest_lease_s)
        self._keep(grant)
        self._seen_at = now
        self._reason = ""
        self._retry_at = None
        self._schedule(grant.lease_s, now)
        if grant.is_seen:
            self._failures = 0
            self._is_doubtful = False
        if not self._is_doubtful:
            self._tell_soon(now)
        if not grant.is_seen and not self._cannot_look:
            self._looks = 0
            self._look(now)

    def _on_denial(self, denial: Denial, now: float) -> None:
        if self._grant is None:
            self.is_waiting = False
            retry_s = self._retry(denial.code, now)
            refused = MappingRefused(
                protocol="upnp", key=self._key, code=denial.code, reason=denial.reason, retry_s=retry_s
            )
            self._desk.events.append(refused)
        elif denial.is_gone:
            self._lose(denial.reason, denial.code, now)
        elif self._expires_at is not None:
            # Tried again at half of what is left, like RFC 6886, 3.3.
            self._reason = denial.reason
            left_s = (self._expires_at - now) / 2
            self._renew_at = now + left_s if left_s >= MIN_RENEWAL_S else None
        if not denial.is_reached:
            self._desk.on_unreachable(now)

    def _schedule(self, lease_s: float, now: float) -> None:
        lasts_s = max(lease_s or PERMANENT_S, 2 * MIN_RENEWAL_S)
        self._renew_at = now + lasts_s / 2
        self._expires_at = now + lasts_s

    def _retry(self, code: int | None, now: float) -> float | None:
        """When it is asked for again, in seconds; ``None``: no more, as nothing would change the answer."""
        if code not in _PASSING:
            self._retry_at = None
            return None
        delay_s: float = min(RETRY_S * 2**self._failures, MAX_RETRY_S) * self._desk.rng.uniform(0.9, 1.1)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = now + delay_s
        return delay_s

    def _lose(self, reason: str, code: int | None, now: float) -> None:
        was_told = self._is_told
        self._forget()
        if self._attempt is None:
            self._retry(code, now)
        if was_told:
            self._desk.events.append(MappingLost(protocol="upnp", key=self._key, reason=reason))

    def _keep(self, grant: Grant) -> None:
        self._grant = grant
        self._last_port = grant.port
        self._desk.ports[self._key] = grant.port

    def _forget(self) -> None:
        self._grant = None
        self._is_told = False
        self._desk.ports.pop(self._key, None)
        self._tell_at = self._look_at = self._renew_at = self._expires_at = self._retry_at = None

    # --- telling ---

    def _tell_soon(self, now: float) -> None:
        if self._external.is_asking:
            self._tell_at = now + EXTERNAL_WAIT_S
        else:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self._tell_at = None
        grant = self._grant
        if grant is None:
            return
        self._is_told = True
        host = self._request.internal.host if grant.unique_id is not None else self._external.host or UNKNOWN_HOST
        mapped = Mapped(
            protocol="upnp",
            key=self._key,
            external=TransportAddress(host, grant.port),
            lifetime_s=grant.lease_s,
            rtt_s=grant.rtt_s,
        )
        self._desk.events.append(mapped)

    # --- looking ---

    def _look(self, now: float) -> None:
        self._look_at = None
        grant, service = self._grant, self._desk.service
        if grant is None or service is None or service.is_firewall or self._cannot_look:
            return

        def on_answer(answer: Answer, at: float) -> None:
            # A renewal looks for itself.
            if self._grant is grant and self._attempt is None:
                self._on_look(answer, grant, at)

        self._looks += 1
        ask_entry(self._desk.exchanges, service, self._request, grant.port, now, on_answer)

    def _on_look(self, answer: Answer, grant: Grant, now: float) -> None:
        sight, entry = sight_of(answer, self._request)
        if sight is Sight.UNCLEAR:
            # No answer at all says nothing of the next one.
            self._cannot_look = answer.is_reached and not grant.is_seen
            self._is_doubtful = False
            self._tell_if_untold(now)
        elif sight is Sight.OURS and entry is not None:
            self._on_seen(replace(grant, is_seen=True), entry.lease_s, now)
        elif grant.is_seen:
            self._renew(now)
        elif sight is Sight.ABSENT and self._looks < 2:
            self._look_at = now + SECOND_LOOK_S
        else:
            self._is_doubtful = True
            has = "has no such mapping" if sight is Sight.ABSENT else "the mapping is not as it should be"
            self._lose(f"the gateway said yes, and {has}", None, now)

    def _on_seen(self, grant: Grant, lease_s: int, now: float) -> None:
        self._failures = 0
        self._seen_at = now
        self._is_doubtful = False
        is_shorter = self._expires_at is not None and 0 < lease_s < self._expires_at - now - SLACK_S
        if is_shorter:
            self._longest_lease_s = lease_s
            grant = replace(grant, lease_s=lease_s)
            self._schedule(lease_s, now)
        self._keep(grant)
        if is_shorter and self._is_told:
            self._tell(now)
        self._tell_if_untold(now)

    def _tell_if_untold(self, now: float) -> None:
        if not self._is_told and self._tell_at is None:
            self._tell_soon(now)

    # --- the end ---

    def _delete(self, service: Service, grant: Grant, now: float) -> None:
        if grant.unique_id is not None:
            delete_pinhole(
                self._desk,
                service,
                self._request,
                grant.unique_id,
                now,
                lambda answer, at: self._end(is_closed(answer), at),
            )
        else:
            delete_port(
                self._desk,
                service,
                self._request,
                grant.port,
                now,
                lambda answer, at: self._end(is_deleted(answer), at),
                is_ours=self._cannot_look or now - self._seen_at < FRESH_S,
            )

    def _end(self, is_confirmed: bool, _: float) -> None:
        if not self.is_over:
            self.is_over = True
            self._desk.events.append(Unmapped(protocol="upnp", key=self._key, is_confirmed=is_confirmed))
