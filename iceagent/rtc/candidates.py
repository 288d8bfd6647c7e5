"""How do candidates look to aiortc, to browsers and to us?

Three spellings of one line (RFC 8839, 5.1): ours, aiortc's ``RTCIceCandidate``, and the object that a browser's
``RTCIceCandidate.toJSON()`` makes, which is what signalling carries mostly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aioice
from aiortc import RTCIceCandidate
from aiortc.rtcicetransport import candidate_from_aioice
from aiortc.sdp import candidate_to_sdp

from iceagent.candidate import Candidate

__all__ = ["candidate_from_json", "candidate_to_json", "from_aioice", "from_aiortc", "to_aioice", "to_aiortc"]


def from_aioice(candidate: aioice.Candidate) -> Candidate:
    """Aioice's as ours.

    Raises:
        UnsupportedCandidate: a transport, type or kind of address that is not known here.
        InvalidCandidate: it breaks the grammar.
    """
    return Candidate.parse(candidate.to_sdp())


def from_aiortc(candidate: RTCIceCandidate) -> Candidate:
    """Aiortc's as ours.

    Raises:
        UnsupportedCandidate: a transport, type or kind of address that is not known here.
        InvalidCandidate: it breaks the grammar.
    """
    return Candidate.parse(_line(candidate))


def to_aioice(candidate: Candidate) -> aioice.Candidate:
    """Ours, as aiortc keeps it."""
    related = candidate.related_address
    return aioice.Candidate(
        foundation=candidate.foundation,
        component=candidate.component,
        transport=candidate.transport,
        priority=candidate.priority,
        host=candidate.address.host,
        port=candidate.address.port,
        type=candidate.type.value,
        related_address=None if related is None else related.host,
        related_port=None if related is None else related.port,
        tcptype=candidate.extension("tcptype"),
    )


def to_aiortc(candidate: Candidate, mid: str | None, index: int | None) -> RTCIceCandidate:
    """Ours, as aiortc's applications get and give it.

    Args:
        candidate: see there.
        mid: of the media section that it belongs to.
        index: of that section in the description, from 0.
    """
    found = candidate_from_aioice(to_aioice(candidate))
    found.sdpMid, found.sdpMLineIndex = mid, index
    return found


def candidate_to_json(candidate: RTCIceCandidate | None) -> dict[str, Any] | None:
    """What a browser's ``addIceCandidate`` takes; ``None``, the end of candidates, is ``None`` there too."""
    if candidate is None:
        return None
    return {"candidate": _line(candidate), "sdpMid": candidate.sdpMid, "sdpMLineIndex": candidate.sdpMLineIndex}


def candidate_from_json(value: Any) -> RTCIceCandidate | None:
    """What a browser's ``icecandidate`` event has, after ``toJSON()``: an object, or ``None``.

    Returns:
        ``None``: the end of candidates, which browsers say by ``null`` or by an empty line.

    Raises:
        UnsupportedCandidate: a transport or type that is not known here; it may be ignored.
        InvalidCandidate: the line breaks the grammar.
        ValueError: there is no line, or it says of no media section where it belongs.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not isinstance(line := value.get("candidate"), str):
        raise ValueError('a candidate is an object with a text under "candidate"')
    if not line:
        return None
    mid, index = value.get("sdpMid"), value.get("sdpMLineIndex")
    if not isinstance(mid, str | None) or not (index is None or _is_index(index)):
        raise ValueError('a candidate\'s "sdpMid" is a text, and its "sdpMLineIndex" a number from 0 to 65535')
    if mid is None and index is None:
        raise ValueError('a candidate has neither "sdpMid" nor "sdpMLineIndex": one of them is expected')
    return to_aiortc(Candidate.parse(line), mid, index)


def _is_index(value: object) -> bool:
    """W3C: an unsigned short."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def _line(candidate: RTCIceCandidate) -> str:
    return f"candidate:{candidate_to_sdp(candidate)}"
