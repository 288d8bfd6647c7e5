"""Which mappings has the gateway, of all its hosts? Pure. (WANIPConnection:1, 2.4.14.)

They are asked for one by one, by index, until the gateway says that there is no further one. It changes the list
meanwhile if it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iceagent.net.core import Event
from portmap.upnp.description import Service
from portmap.upnp.desk import Desk
from portmap.upnp.entries import Entry, entry_of, number_in, transport_in
from portmap.upnp.exchanges import Answer
from portmap.values import ProtocolName, Transport

__all__ = ["MAX_LISTED", "ListedMapping", "Listing", "MappingsListed"]

MAX_LISTED = 256
"""More are not asked for."""
LIST_S = 10.0
"""After so long no further one is asked for."""
ASK_TIMEOUT_S = 1.0

# SpecifiedArrayIndexInvalid; some say NoSuchEntryInArray.
_THE_END = (713, 714)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedMapping:
    """A mapping of whichever host.

    Attributes:
        transport: of what it lets in; ``None``: neither of the two.
        external_port: outside; 0: all ports that no other mapping has.
        remote_host: whom it lets in; empty: everybody.
        entry: the rest.
    """

    transport: Transport | None
    external_port: int
    remote_host: str
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingsListed(Event):
    """``list_mappings`` has ended.

    Attributes:
        protocol: by which.
        mappings: in the gateway's order.
        reason: why there may be more: a sentence's end; ``None``: these are all.
    """

    protocol: ProtocolName
    mappings: tuple[ListedMapping, ...]
    reason: str | None


class Listing:
    """One run through the list.

    Args:
        desk: what is shared.
        service: whose list.
        now: the time.
        then: called once, with the result.
    """

    def __init__(self, desk: Desk, service: Service, now: float, then: Callable[[MappingsListed], None]) -> None:
        self._desk = desk
        self._service = service
        self._then = then
        self._end_at = now + LIST_S
        self._found: list[ListedMapping] = []
        self._ask(now)

    def _ask(self, now: float) -> None:
        arguments = (("NewPortMappingIndex", str(len(self._found))),)
        source = self._desk.gateway.source
        self._desk.exchanges.call(
            self._service, source, "GetGenericPortMappingEntry", arguments, ASK_TIMEOUT_S, now, self._on_answer
        )

    def _on_answer(self, answer: Answer, now: float) -> None:
        if answer.values is None:
            # Some say another code at the end; whether it was one, nobody knows.
            self._finish(None if answer.code in _THE_END else answer.reason)
            return
        values = answer.values
        mapping = ListedMapping(
            transport=transport_in(values),
            external_port=number_in(values, "NewExternalPort", 65535) or 0,
            remote_host=values.get("NewRemoteHost", ""),
            entry=entry_of(values),
        )
        self._found.append(mapping)
        if len(self._found) == MAX_LISTED:
            self._finish(f"more than {MAX_LISTED} mappings")
        elif now >= self._end_at:
            self._finish(f"not done within {LIST_S:g} s")
        else:
            self._ask(now)

    def _finish(self, reason: str | None) -> None:
        self._then(MappingsListed(protocol="upnp", mappings=tuple(self._found), reason=reason))
