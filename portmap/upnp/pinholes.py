"""How is a pinhole of an IPv6 firewall opened? Pure. (WANIPv6FirewallControl:1.)

There is no translation: outside port and address are those inside. Requests must come from the address that the pinhole
is for (else 606), which is why a LOCATION over IPv4 is of no use here. A pinhole has a number, by which it is renewed
and closed; a gateway that does not know the number any more has restarted, and a new one is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from portmap.upnp.description import Service
from portmap.upnp.desk import Denial, Desk, Grant, lease_of
from portmap.upnp.entries import number_in
from portmap.upnp.exchanges import Answer
from portmap.upnp.ports import ADD_TIMEOUT_S, DELETE_TIMEOUT_S
from portmap.values import MapRequest

__all__ = ["PinholeAttempt", "delete_pinhole", "is_closed"]

NO_SUCH_ENTRY = 704
# By IANA.
PROTOCOL_NUMBERS = {"udp": 17, "tcp": 6}


class PinholeAttempt:
    """Opens or renews one pinhole; see :class:`portmap.upnp.ports.PortAttempt` for the arguments."""

    def __init__(
        self,
        desk: Desk,
        service: Service,
        request: MapRequest,
        previous: Grant | None,
        now: float,
        then: Callable[[Grant | Denial, float], None],
    ) -> None:
        self._desk = desk
        self._service = service
        self._request = request
        self._then = then
        self._lease_s = lease_of(request)
        self._is_stopped = False
        self._is_adding = False
        self._undone: Callable[[bool, float], None] | None = None
        self._is_missing = False
        self._unique_id = previous.unique_id if previous is not None else None
        if self._unique_id is None:
            self._add(now)
        else:
            arguments = (("UniqueID", str(self._unique_id)), ("NewLeaseTime", str(self._lease_s)))
            self._call("UpdatePinhole", arguments, now, self._on_updated)

    def stop(self, undone: Callable[[bool, float], None] | None) -> bool:
        """See :class:`portmap.upnp.desk.Attempt`."""
        self._is_stopped = True
        self._undone = undone
        return self._is_adding

    def _call(
        self, action: str, arguments: tuple[tuple[str, str], ...], now: float, then: Callable[[Answer, float], None]
    ) -> None:
        source = self._request.internal.host
        self._desk.exchanges.call(self._service, source, action, arguments, ADD_TIMEOUT_S, now, then)

    def _on_updated(self, answer: Answer, now: float) -> None:
        if self._is_stopped:
            return
        if answer.values is not None:
            self._grant(answer, now)
        elif answer.code == NO_SUCH_ENTRY:
            self._is_missing = True
            self._desk.on_missing(now)
            self._add(now)
        else:
            self._deny(answer, now)

    def _add(self, now: float) -> None:
        arguments = (
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", self._request.internal.host),
            ("InternalPort", str(self._request.internal.port)),
            ("Protocol", str(PROTOCOL_NUMBERS[self._request.transport])),
            ("LeaseTime", str(self._lease_s)),
        )
        self._is_adding = True
        self._call("AddPinhole", arguments, now, self._on_added)

    def _on_added(self, answer: Answer, now: float) -> None:
        self._is_adding = False
        self._unique_id = number_in(answer.values or {}, "UniqueID", 65535)
        if self._is_stopped:
            if self._undone is not None:
                self._undo(self._undone, answer, now)
            return
        if answer.values is None:
            self._deny(answer, now)
        elif self._unique_id is None:
            # It could neither be renewed nor closed: its lease ends it.
            self._deny(Answer(values=None, reason="a pinhole without a UniqueID", rtt_s=answer.rtt_s), now)
        else:
            self._grant(answer, now)

    def _undo(self, undone: Callable[[bool, float], None], answer: Answer, now: float) -> None:
        if self._unique_id is None:
            undone(answer.code is not None, now)
            return

        def on_closed(closed: Answer, at: float) -> None:
            undone(is_closed(closed), at)

        delete_pinhole(self._desk, self._service, self._request, self._unique_id, now, on_closed)

    def _grant(self, answer: Answer, now: float) -> None:
        port, lease_s = self._request.internal.port, self._lease_s
        grant = Grant(port=port, lease_s=lease_s, rtt_s=answer.rtt_s, is_seen=True, unique_id=self._unique_id)
        self._then(grant, now)

    def _deny(self, answer: Answer, now: float) -> None:
        is_reached, is_gone = answer.is_reached, self._is_missing
        self._then(Denial(code=answer.code, reason=answer.reason, is_reached=is_reached, is_gone=is_gone), now)


def delete_pinhole(
    desk: Desk, service: Service, request: MapRequest, unique_id: int, now: float, then: Callable[[Answer, float], None]
) -> None:
    """Close a pinhole."""
    arguments = (("UniqueID", str(unique_id)),)
    source = request.internal.host
    desk.exchanges.call(service, source, "DeletePinhole", arguments, DELETE_TIMEOUT_S, now, then, is_urgent=True)


def is_closed(answer: Answer) -> bool:
    """Whether a pinhole is gone, by the answer to its deletion."""
    return answer.values is not None or answer.code == NO_SUCH_ENTRY
