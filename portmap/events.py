"""What can be heard from the client of one protocol at one gateway? All events of its cores, and their contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from iceagent.net.address import TransportAddress
from iceagent.net.core import Core, Event
from portmap.values import MapRequest, ProtocolName

__all__ = [
    "Discovered",
    "Fetch",
    "GatewayRestarted",
    "Mapped",
    "MappingLost",
    "MappingRefused",
    "NoMapping",
    "NotFound",
    "ProtocolClient",
    "Unmapped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered(Event):
    """The gateway speaks this protocol. Whether it maps anything, only a mapping shows.

    Attributes:
        protocol: which.
        external_host: the external address, where it was told.
        rtt_s: from the first question to the answer.
    """

    protocol: ProtocolName
    external_host: str | None
    rtt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound(Event):
    """It does not, or says nothing.

    Attributes:
        protocol: which.
        reason: a sentence's end: ``no answer within 0.75 s``, ``its port 5351 is closed``, ``it speaks NAT-PMP only``.
    """

    protocol: ProtocolName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped(Event):
    """There is a mapping: for the first time, again, renewed, or with another external address.

    Attributes:
        protocol: by which.
        key: of the mapping, as given to ``map``.
        external: where it is reached from outside; its host is ``0.0.0.0`` where the gateway does not know it.
        lifetime_s: seconds it lasts unless it is renewed, which the client does; 0: until it is deleted.
        rtt_s: of the request; ``None``: it was repeated, so nobody knows.
    """

    protocol: ProtocolName
    key: int
    external: TransportAddress
    lifetime_s: int
    rtt_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingRefused(Event):
    """There is no mapping, and there was none: the gateway said no, or nothing. The client goes on by itself where the
    protocol says when to ask again; ``abandon`` ends that.

    Attributes:
        protocol: by which.
        key: of the mapping.
        code: the protocol's result or error code; ``None``: silence, or no sensible answer.
        reason: in words: ``8 NO_RESOURCES``, ``718 ConflictInMappingEntry``, ``no answer within 0.75 s``.
        retry_s: when it is asked again, in seconds; ``None``: not by itself.
    """

    protocol: ProtocolName
    key: int
    code: int | None
    reason: str
    retry_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingLost(Event):
    """A mapping that there was is gone: not renewed in its lifetime, or refused when it was renewed.

    The client goes on asking where it makes sense; then :class:`Mapped` follows.
    """

    protocol: ProtocolName
    key: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMapping(Event):
    """No protocol of this gateway gives a mapping (``session.py``).

    Attributes:
        key: of the mapping.
        reasons: what each protocol said, or why it was not asked.
        retry_s: when all are asked again, in seconds.
    """

    key: int
    reasons: Mapping[str, str]
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmapped(Event):
    """``unmap`` has ended.

    Attributes:
        protocol: by which.
        key: of the mapping.
        is_confirmed: the gateway said so; else it was silent, or said no.
    """

    protocol: ProtocolName
    key: int
    is_confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRestarted(Event):
    """Its epoch says that it forgot its mappings; they are being made again.

    Attributes:
        protocol: by which this was noticed.
    """

    protocol: ProtocolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Event):
    """An HTTP exchange is wanted; whoever does it calls ``handle_response`` or ``handle_failure`` with its number.

    Attributes:
        number: of this exchange, never used twice.
        server: where to connect to; never anywhere else (no redirect is followed).
        source: the address to connect from.
        method: ``GET`` or ``POST``.
        target: path and query, as in the request line.
        headers: but ``Host``, ``Content-Length`` and ``Connection``.
        body: of the request.
        timeout_s: for all of it: connecting, sending, and reading to the end.
        max_bytes: of the answer's body; a longer one is a failure.
    """

    number: int
    server: TransportAddress
    source: str
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout_s: float
    max_bytes: int


class ProtocolClient(Core, Protocol):
    """The client of one protocol at one gateway, sans-IO.

    All of them use the one socket that speaks to the gateway; what arrives is given to whom it may be for.
    """

    @property
    def name(self) -> ProtocolName:
        """Which protocol."""

    @property
    def counters(self) -> Counter[str]:
        """``dropped: <reason>``."""

    def discover(self, now: float) -> None:
        """Ask, without any effect on the gateway, whether it speaks this: :class:`Discovered` or :class:`NotFound`
        follows within the protocol's probe time. A second call while one is under way does nothing.
        """

    def map(self, key: int, request: MapRequest, now: float) -> None:
        """Make a mapping, and keep it: :class:`Mapped` or :class:`MappingRefused` follows within the probe time.

        Args:
            key: names it in events; never used twice.
            request: see there.
            now: the time.
        """

    def unmap(self, key: int, now: float) -> None:
        """Delete a mapping: :class:`Unmapped` follows within half a second. An unknown key does nothing."""

    def abandon(self, key: int) -> None:
        """Forget a mapping without deleting it: its rule is somebody else's now."""

    def withdraw(self, key: int, request: MapRequest, now: float) -> bool:
        """Delete what an abandoned request that had no answer may have made all the same.

        Args:
            key: names it in ``Unmapped``; never used twice, but it may be that of the abandoned mapping.
            request: as it was given to ``map``.
            now: the time.

        Returns:
            Whether that takes an exchange; then :class:`Unmapped` follows within half a second.
        """

    def refresh(self, now: float) -> None:
        """The network changed, or another protocol noticed a restart: renew all mappings at once."""
