"""What do two of ours tell each other over a path that works, and how is it written?

One :class:`PathMessage` is the value of the attribute PATH-MESSAGE in a Binding request with MESSAGE-INTEGRITY.
``docs/path-messages.md`` has the format, byte by byte, and a test vector. Addresses are masked as in RFC 8489, 14.2,
for there are NATs that rewrite whatever looks like an address. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address as ip_address_of

from iceagent.candidate import Candidate, CandidateType
from iceagent.net.address import TransportAddress, canonical_host
from relay.stun import BadMessage

__all__ = ["MAX_CANDIDATES", "MAX_DELAY_S", "OPTION", "PathMessage", "is_goodbye"]

OPTION = "pathmessages"
"""The ice-option (RFC 8839, 5.6) of an agent that knows them."""

MAX_CANDIDATES = 8
"""New and withdrawn ones of one message, together: with IPv6 addresses and the longest foundations, 480 bytes."""

MAX_DELAY_S = 5.0
"""A peer that asks for a check any later means something else."""

_VERSION = 1
_NOMINATE, _CLOSING, _CHECK, _EATEN = 0x01, 0x02, 0x04, 0x08
_WITHDRAWN = 0x80
_HEAD = struct.Struct("!BBHI")
_CANDIDATE = struct.Struct("!BBHHIB")
_TYPES = (
    CandidateType.HOST,
    CandidateType.SERVER_REFLEXIVE,
    CandidateType.PEER_REFLEXIVE,
    CandidateType.RELAYED,
)
# RFC 8489, 5: the magic cookie, as often as an address needs it.
_MASK = bytes.fromhex("2112a442") * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMessage:
    """A message.

    Attributes:
        serial: 0 … 2**32 - 1, one more with each message of a generation; a repetition has the same one.
        nominate: the controlled side asks for the pair that this request came over.
        is_eaten: with ``nominate``: the sender's application says that what goes over the other one is lost, whatever
            its checks say.
        closing: the sender closes.
        check_after_s: check everything that may be better so long after this arrives, 0 … 5 s, in whole
            milliseconds; ``None``: nothing is asked.
        added: new candidates of the sender.
        withdrawn: candidates that are none any more; their component and address count.
    """

    serial: int
    nominate: bool = False
    is_eaten: bool = False
    closing: bool = False
    check_after_s: float | None = None
    added: tuple[Candidate, ...] = ()
    withdrawn: tuple[Candidate, ...] = ()

    def encode(self) -> bytes:
        """The attribute's value.

        Raises:
            ValueError: more than 8 candidates.
        """
        if len(self.added) + len(self.withdrawn) > MAX_CANDIDATES:
            raise ValueError(f"more than {MAX_CANDIDATES} candidates in one message")
        flags = self.nominate * _NOMINATE | self.closing * _CLOSING | (self.check_after_s is not None) * _CHECK
        flags |= self.is_eaten * _EATEN
        delay = round((self.check_after_s or 0.0) * 1000)
        parts = [_HEAD.pack(_VERSION, flags, delay, self.serial)]
        parts += [_encode(candidate, 0) for candidate in self.added]
        parts += [_encode(candidate, _WITHDRAWN) for candidate in self.withdrawn]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> PathMessage:
        """The inverse. Flags and bits that are not known here are ignored.

        Raises:
            BadMessage: another version, too short, too many candidates, or something in one is out of range.
        """
        if len(data) < _HEAD.size:
            raise BadMessage("a path message is too short")
        version, flags, delay, serial = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise BadMessage(f"a path message of version {version}")
        if flags & _CHECK and delay > MAX_DELAY_S * 1000:
            raise BadMessage("a path message asks for a check too late")
        added: list[Candidate] = []
        withdrawn: list[Candidate] = []
        at = _HEAD.size
        while at < len(data):
            if len(added) + len(withdrawn) == MAX_CANDIDATES:
                raise BadMessage("a path message has too many candidates")
            candidate, is_withdrawn, at = _decode(data, at)
            (withdrawn if is_withdrawn else added).append(candidate)
        return cls(
            serial=serial,
            nominate=bool(flags & _NOMINATE),
            is_eaten=bool(flags & _EATEN),
            closing=bool(flags & _CLOSING),
            check_after_s=delay / 1000 if flags & _CHECK else None,
            added=tuple(added),
            withdrawn=tuple(withdrawn),
        )


def is_goodbye(data: bytes) -> bool:
    """Whether this is a message that says that its sender closes."""
    try:
        return PathMessage.decode(data).closing
    except BadMessage:
        return False


def _encode(candidate: Candidate, flags: int) -> bytes:
    address = candidate.address
    packed = address.ip.packed
    foundation = candidate.foundation.encode("ascii")
    head = _CANDIDATE.pack(
        flags | _TYPES.index(candidate.type),
        address.version,
        candidate.component,
        address.port ^ 0x2112,
        candidate.priority,
        len(foundation),
    )
    return head + _masked(packed) + foundation


def _decode(data: bytes, at: int) -> tuple[Candidate, bool, int]:
    if len(data) < at + _CANDIDATE.size:
        raise BadMessage("a candidate of a path message is too short")
    flags, version, component, port, priority, length = _CANDIDATE.unpack_from(data, at)
    at += _CANDIDATE.size
    size = {4: 4, 6: 16}.get(version)
    kind = flags & 0x7F
    if size is None or kind >= len(_TYPES) or not 1 <= component <= 256 or not 1 <= length <= 32:
        raise BadMessage("a candidate of a path message is out of range")
    if not 0 < priority < 2**31 or len(data) < at + size + length:
        raise BadMessage("a candidate of a path message is out of range")
    host = canonical_host(str(ip_address_of(_masked(data[at : at + size]))))
    address = TransportAddress(host, port ^ 0x2112)
    foundation = data[at + size : at + size + length]
    if not all(byte in _ICE_CHARS for byte in foundation):
        raise BadMessage("a foundation in a path message is none")
    candidate = Candidate(
        foundation=foundation.decode("ascii"),
        component=component,
        priority=priority,
        address=address,
        type=_TYPES[kind],
    )
    return candidate, bool(flags & _WITHDRAWN), at + size + length


def _masked(packed: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(packed, _MASK, strict=False))


# RFC 8839, 5.1: ice-char.
_ICE_CHARS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
