"""How is a port mapped, whatever the router's quirks? Pure. (WANIPConnection:1 and :2, WANPPPConnection:1.)

A router lets a host take its own port a second time: the mapping then silently leads to the other program. So before
anything is made, the router is asked what it has there, and a port that leads elsewhere is left alone.

Then AddAnyPortMapping where the service is of version 2 (it may give another port), else AddPortMapping, with a lease
of an hour at most. What a refusal is answered with, :attr:`PortAttempt._REMEDIES` says; a refusal that has no remedy
ends the attempt. A renewal is the same, always by AddPortMapping: it is about the port that there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

from portmap.upnp.description import Service
from portmap.upnp.desk import Denial, Desk, Grant, lease_of
from portmap.upnp.entries import NO_SUCH_ENTRY, Sight, ask_entry, number_in, sight_of
from portmap.upnp.exchanges import Answer
from portmap.values import MapRequest

__all__ = ["PERMANENT_S", "PortAttempt", "delete_port", "is_deleted"]

# Some routers take more than 400 ms to open a port.
ADD_TIMEOUT_S = 2.5
DELETE_TIMEOUT_S = 0.5
"""Closing waits no longer."""

LAST_LOOK_S = 0.2
"""How long it is waited for what the gateway has at a port before that is deleted."""

OTHER_PORTS = 4
"""How many other ports are tried after a conflict."""
PERMANENT_S = 2400
"""How long, in seconds, a mapping without a lease is believed in; it is looked for after half of that."""
ATTEMPT_S = 5.0
"""After so long no further request is begun."""

# 0 … 1023 may be reserved.
FIRST_FREE_PORT = 1024

_DESCRIPTION = re.compile(r"[^A-Za-z0-9 ._-]+")
MAX_DESCRIPTION_LENGTH = 64


class PortAttempt:
    """Makes or renews one mapping.

    Args:
        desk: what is shared.
        service: whose.
        request: what is wanted.
        previous: the mapping there is; ``None``: there is none.
        now: the time.
        then: called once, with the result and the time.
        port: to begin with instead of what the request says, as one that it had before; ``None``: no.
    """

    def __init__(
        self,
        desk: Desk,
        service: Service,
        request: MapRequest,
        previous: Grant | None,
        now: float,
        then: Callable[[Grant | Denial, float], None],
        port: int | None = None,
    ) -> None:
        self._desk = desk
        self._service = service
        self._request = request
        self._previous = previous
        self._then = then
        self._deadline = now + ATTEMPT_S
        self._is_stopped = False
        self._is_adding = False
        self._undone: Callable[[bool, float], None] | None = None
        # What has been found out, and what is asked next.
        self._is_missing = False
        self._is_seen = False
        self._other_ports_left = OTHER_PORTS
        self._has_failed_once = False
        self._used_any = False
        self._lease_s = 0 if desk.habits.only_permanent else lease_of(request)
        self._port = self._first_port(port)
        self._check(now)

    def stop(self, undone: Callable[[bool, float], None] | None) -> bool:
        """See :class:`portmap.upnp.desk.Attempt`."""
        self._is_stopped = True
        self._undone = undone
        return self._is_adding

    def _first_port(self, port: int | None) -> int:
        request = self._request
        if self._previous is not None:
            return self._previous.port
        if self._desk.habits.same_port:
            return request.internal.port
        if port or request.external_port:
            return port or request.external_port
        # The same port outside as inside: then the mapped address is the reflexive one, and there is one path fewer.
        is_free = request.internal.port >= FIRST_FREE_PORT and request.internal.port not in self._desk.ports.values()
        return request.internal.port if is_free else self._desk.random_port()

    # --- is the port free? ---

    def _check(self, now: float) -> None:
        ask_entry(self._desk.exchanges, self._service, self._request, self._port, now, self._on_checked)

    def _on_checked(self, answer: Answer, now: float) -> None:
        if self._is_stopped:
            return
        sight, entry = sight_of(answer, self._request)
        self._is_seen = sight is Sight.OURS
        if sight is Sight.FOREIGN and entry is not None:
            self._is_missing = True
            taken_by = f"{entry.internal_host} port {entry.internal_port}" if entry.internal_host else "another"
            if not self._try_other_port(now):
                self._deny(None, f"port {self._port} is taken by {taken_by}", now)
            return
        previous = self._previous
        is_same = previous is not None and previous.port == self._port
        if sight is Sight.ABSENT and previous is not None and previous.is_seen and is_same:
            self._is_missing = True
            self._desk.on_missing(now)
        # IGD:2 makes a week of "for ever" (RFC 6970, 4.1): near its end it is made anew.
        is_lasting = entry is not None and (not entry.lease_s or entry.lease_s > PERMANENT_S)
        if self._is_seen and previous is not None and not self._lease_s and is_lasting:
            self._grant(self._port, answer.rtt_s, now)
        else:
            self._add(now)

    # --- take it ---

    def _add(self, now: float) -> None:
        self._used_any = self._service.version >= 2 and self._previous is None and not self._desk.habits.no_any
        action = "AddAnyPortMapping" if self._used_any else "AddPortMapping"
        description = _DESCRIPTION.sub("", self._request.description)[:MAX_DESCRIPTION_LENGTH].strip()
        arguments = (
            ("NewRemoteHost", ""),
            ("NewExternalPort", str(self._port)),
            ("NewProtocol", self._request.transport.upper()),
            ("NewInternalPort", str(self._request.internal.port)),
            ("NewInternalClient", self._request.internal.host),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", description or "iceagent"),
            ("NewLeaseDuration", str(self._lease_s)),
        )
        self._is_adding = True
        source = self._request.internal.host
        self._desk.exchanges.call(self._service, source, action, arguments, ADD_TIMEOUT_S, now, self._on_added)

    def _on_added(self, answer: Answer, now: float) -> None:
        self._is_adding = False
        port: int | None = self._port
        if answer.values is not None and self._used_any:
            port = number_in(answer.values, "NewReservedPort", 65535) or None
        if self._is_stopped:
            if self._undone is not None:
                self._undo(self._undone, answer, port, now)
            return
        if answer.values is not None and port is not None:
            if not self._lease_s:
                self._desk.habits.only_permanent = True
            self._grant(port, answer.rtt_s, now)
        elif answer.values is not None:
            # It has mapped some port, and does not say which.
            self._desk.habits.no_any = True
            self._add(now)
        else:
            remedy = self._REMEDIES.get(answer.code) if answer.code is not None else None
            if remedy is None or not remedy(self, now):
                self._deny(answer.code, answer.reason, now, is_reached=answer.is_reached)

    def _undo(self, undone: Callable[[bool, float], None], answer: Answer, port: int | None, now: float) -> None:
        if answer.values is None or port is None:
            undone(answer.code is not None, now)
            return

        def on_deleted(deleted: Answer, at: float) -> None:
            undone(is_deleted(deleted), at)

        delete_port(self._desk, self._service, self._request, port, now, on_deleted)

    def _grant(self, port: int, rtt_s: float, now: float) -> None:
        is_seen = self._is_seen and port == self._port
        self._then(Grant(port=port, lease_s=self._lease_s, rtt_s=rtt_s, is_seen=is_seen), now)

    def _deny(self, code: int | None, reason: str, now: float, *, is_reached: bool = True) -> None:
        is_gone = self._is_missing or (self._previous is not None and self._port != self._previous.port)
        self._then(Denial(code=code, reason=reason, is_reached=is_reached, is_gone=is_gone), now)

    # --- quirks: each says whether there is something to try ---

    def _try_for_ever(self, now: float) -> bool:
        """725: it knows no leases. 402 is what some say instead. Who asks for ever must renew and delete himself."""
        if not self._lease_s or now > self._deadline:
            return False
        self._lease_s = 0
        self._add(now)
        return True

    def _try_other_arguments(self, now: float) -> bool:
        """402: perhaps the lease, perhaps that it does not understand AddAnyPortMapping."""
        return self._try_for_ever(now) or self._try_without_any(now)

    def _try_without_any(self, now: float) -> bool:
        """401, 602: it says it is of version 2, and is not."""
        if not self._used_any or now > self._deadline:
            return False
        self._desk.habits.no_any = True
        self._lease_s = 0 if self._desk.habits.only_permanent else lease_of(self._request)
        self._add(now)
        return True

    def _try_other_port(self, now: float) -> bool:
        """718: somebody has the port. Not a mapping of ours that was there a moment ago."""
        is_kept = self._previous is not None and self._is_seen
        if is_kept or not self._other_ports_left or self._desk.habits.same_port or now > self._deadline:
            return False
        self._other_ports_left -= 1
        self._port = self._desk.random_port()
        self._check(now)
        return True

    def _try_other_port_once(self, now: float) -> bool:
        """501: what some say instead of 718; others mean it, so no renewal moves for it."""
        if self._has_failed_once or (self._previous is not None and not self._is_missing):
            return False
        self._has_failed_once = True
        return self._try_other_port(now)

    def _try_higher_port(self, now: float) -> bool:
        """606: perhaps only for the low ports."""
        return self._port < FIRST_FREE_PORT and self._try_other_port(now)

    def _try_same_port(self, now: float) -> bool:
        """724: the same port outside as inside."""
        self._desk.habits.same_port = True
        if self._port == self._request.internal.port or now > self._deadline:
            return False
        self._port = self._request.internal.port
        self._check(now)
        return True

    # Not here, so told as they are: 726 (it takes no remote host, but none was given), 727 (it maps all ports or none,
    # which would expose the whole host), 728 (its table is full), 729, and all others.
    _REMEDIES: ClassVar[Mapping[int, Callable[[PortAttempt, float], bool]]] = {
        401: _try_without_any,
        402: _try_other_arguments,
        501: _try_other_port_once,
        602: _try_without_any,
        606: _try_higher_port,
        718: _try_other_port,
        724: _try_same_port,
        725: _try_for_ever,
    }


def delete_port(
    desk: Desk,
    service: Service,
    request: MapRequest,
    port: int,
    now: float,
    then: Callable[[Answer, float], None],
    *,
    is_ours: bool = True,
) -> None:
    """Delete the mapping of an outside port.

    A gateway lets anybody delete anything, and one that has restarted may have given the port to another host.

    Args:
        desk: what is shared.
        service: whose.
        request: of the mapping.
        port: outside.
        now: the time.
        then: called once, with the answer and the time; of another's mapping: that there is none of ours.
        is_ours: it was a moment ago; else it is looked at first.
    """

    def delete(at: float) -> None:
        arguments = (
            ("NewRemoteHost", ""),
            ("NewExternalPort", str(port)),
            ("NewProtocol", request.transport.upper()),
        )
        source = request.internal.host
        action = "DeletePortMapping"
        desk.exchanges.call(service, source, action, arguments, DELETE_TIMEOUT_S, at, then, is_urgent=True)

    def on_checked(answer: Answer, at: float) -> None:
        sight, _ = sight_of(answer, request)
        if sight is Sight.FOREIGN:
            then(Answer(values=None, code=NO_SUCH_ENTRY, reason="it is another's", rtt_s=answer.rtt_s), at)
        else:
            delete(at)

    if is_ours:
        delete(now)
    else:
        ask_entry(desk.exchanges, service, request, port, now, on_checked, timeout_s=LAST_LOOK_S, is_urgent=True)


def is_deleted(answer: Answer) -> bool:
    """Whether a mapping is gone, by the answer to its deletion: of what is not there, none is left either."""
    return answer.values is not None or answer.code == NO_SUCH_ENTRY
