"""What does a rendezvous server keep for two peers, and for whom?

Rooms. Two people agree on a room's name, which is the secret between them, and each of their programs writes one side,
``controlling`` or ``controlled``, and reads the other:

- ``PUT /ROOM/SIDE`` replaces that side's description. The first one takes the side: who wants to replace it later shows
  the token of the first (header ``Room-Token``), which the writer chooses, or gets with the answer. Others get 409.
- ``GET /ROOM/SIDE`` answers with the description and its version (``ETag``), or 404 with the version of nothing,
  ``"none"``. With ``If-None-Match`` and the version that is there, it waits up to 25 s for another one; then 304.
- ``DELETE /ROOM/SIDE``, with the token, empties a side.

A side whose writer also reads (a ``GET`` in the same room with the same token) is empty again when that has stopped for
10 s: its program was killed, and may come back. Everything else is gone ten minutes after its room was last asked for.
A request that carries the token of a side of the room is told so by the same header in the answer.

A version is a digest of the text, so a reader that knows one need not care whether the server was started anew.

Guessing names is slow: naming a room that is not there costs a guess, of which each source network (/24, /56) has few.
Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from iceagent.net.address import ip_address
from iceagent.rendezvous.waits import Waits
from relay.error_limits import IPV4_SOURCE_BITS, IPV6_SOURCE_BITS, ErrorLimiter

__all__ = ["MAX_TEXT", "NOTHING", "ROOM_NAME", "SIDES", "TOKEN", "WAIT_S", "Answer", "Mailbox", "Request", "network_of"]

SIDES = ("controlling", "controlled")
ROOM_NAME = re.compile(r"[A-Za-z0-9._-]{8,64}")
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")

MAX_TEXT = 64 * 1024
"""Bytes of a description: some seven hundred candidates. Agents check a hundred pairs."""

NOTHING = "none"
"""The version of a side that is empty; no digest has four characters."""

WAIT_S = 25.0
"""How long a reader waits. NATs and proxies give up what is silent for 30 s, some of them."""

LEFT_AFTER_S = 10.0
"""How long a writer that reads may be away; it comes back within 5 s if it can."""

ROOM_LIFETIME_S = 600.0
MAX_ROOMS = 1000
MAX_ROOMS_OF_SOURCE = 50
"""Rooms that one source network may have made: nobody fills the house alone."""

GUESSES_PER_SECOND, GUESS_BURST = 1, 30
"""Requests of one source network that name a room which is not there. A session needs one or two."""

REQUESTS_PER_SECOND, REQUEST_BURST = 20, 100
"""Requests of one source network; a session needs a few at its beginning, and then one in 25 s."""

_ETAG = re.compile(r'(?:W/)?"([^"]*)"|(\*)')

Slot = tuple[str, str]
"""A room's name, and a side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants.

    Attributes:
        method: of HTTP.
        target: as it came.
        source: the IP address it came from.
        if_none_match: the header's value, as it came; ``None``: there is none.
        token: of the header ``Room-Token``, as it came.
        body: at most ``MAX_TEXT`` bytes.
    """

    method: str
    target: str
    source: str
    if_none_match: str | None = None
    token: str | None = field(default=None, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What becomes of it.

    Attributes:
        status: of HTTP.
        body: a description, or a sentence; none with 204 and 304.
        version: of the side that was asked for.
        token: of the request, or made for it; told where it holds a side of the room.
        retry_after_s: when to ask again.
        is_last: the connection is to be closed.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    version: str | None = None
    token: str | None = field(default=None, repr=False)
    retry_after_s: int | None = None
    is_last: bool = False


@dataclass(slots=True)
class _Side:
    text: bytes
    token: str
    version: str


@dataclass(slots=True)
class _Room:
    source: tuple[int, int]
    sides: dict[str, _Side] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Waiting:
    slot: Slot
    token: str | None


class Mailbox:
    """The rooms. Requests go in, answers come out, at once or later.

    Args:
        system_rng: makes tokens.
    """

    def __init__(self, *, system_rng: Random) -> None:
        self._system_rng = system_rng
        self._rooms: dict[str, _Room] = {}
        self._rooms_of: Counter[tuple[int, int]] = Counter()
        self._room_ends: Waits[str] = Waits(ROOM_LIFETIME_S)
        self._left: Waits[Slot] = Waits(LEFT_AFTER_S)
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_at: dict[Slot, dict[int, None]] = {}
        self._wait_ends: Waits[int] = Waits(WAIT_S)
        # Requests that wait, by room and token: the holder of that token is there.
        self._readers: Counter[tuple[str, str]] = Counter()
        self._requests = ErrorLimiter(REQUESTS_PER_SECOND, burst=REQUEST_BURST)
        self._guesses = ErrorLimiter(GUESSES_PER_SECOND, burst=GUESS_BURST)
        self._answers: deque[tuple[int, Answer]] = deque()

    # --- input ---------------------------------------------------------------------------------------------------

    def handle_request(self, key: int, request: Request, now: float) -> None:
        """Take a request; its answer has the same key. A key has one request at a time."""
        assert key not in self._waiting, "one request at a time"
        self.handle_timeout(now)
        answer = self._answer(key, request, now)
        if answer is not None:
            self._answers.append((key, answer))

    def handle_closed(self, key: int, now: float) -> None:
        """Nobody waits for this request's answer any more."""
        if key in self._waiting:
            self._stop_waiting(key, now)

    def handle_timeout(self, now: float) -> None:
        """Time passed; idempotent."""
        for key in self._wait_ends.due(now):
            slot, token = self._waiting[key].slot, self._waiting[key].token
            self._stop_waiting(key, now)
            answer = Answer(status=304, version=self._version(slot), token=self._told_token(slot[0], token))
            self._answers.append((key, answer))
        for slot in self._left.due(now):
            self._empty(slot, now)
        for name in self._room_ends.due(now):
            for side in tuple(self._rooms[name].sides):
                self._empty((name, side), now)

    # --- output --------------------------------------------------------------------------------------------------

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``."""
        ends = (self._wait_ends.next_at, self._left.next_at, self._room_ends.next_at)
        return min((at for at in ends if at is not None), default=None)

    def poll_answer(self) -> tuple[int, Answer] | None:
        """One answer, with its request's key, or ``None``."""
        return self._answers.popleft() if self._answers else None

    @property
    def rooms(self) -> int:
        """How many there are."""
        return len(self._rooms)

    @property
    def waiting(self) -> int:
        """Requests that wait for a change."""
        return len(self._waiting)

    # --- requests ------------------------------------------------------------------------------------------------

    def _answer(self, key: int, request: Request, now: float) -> Answer | None:
        """The answer; ``None``: the request waits."""
        if not self._requests.admits(request.source, now):
            return _refused(429, "too many requests from your network", retry_after_s=1, is_last=True)
        slot = _slot(request.target)
        if slot is None:
            return _refused(404, "here are /ROOM/controlling and /ROOM/controlled; a ROOM has 8 to 64 characters")
        if request.method not in ("GET", "PUT", "DELETE"):
            return _refused(405, "GET, PUT and DELETE are known here")
        if request.token is not None and not TOKEN.fullmatch(request.token):
            return _refused(400, "Room-Token: 16 to 128 characters of A-Z, a-z, 0-9, - and _")
        if slot[0] not in self._rooms and not self._guesses.admits(request.source, now):
            return _refused(429, "too many rooms that are not there were asked for", retry_after_s=2)
        if request.method == "PUT":
            return self._put(slot, request, now)
        return self._get(key, slot, request, now) if request.method == "GET" else self._delete(slot, request, now)

    def _put(self, slot: Slot, request: Request, now: float) -> Answer:
        if not _is_description(request.body):
            return _refused(400, "this is no description: the lines a=ice-ufrag: and a=ice-pwd: are missing")
        name, side_name = slot
        room = self._rooms.get(name)
        side = None if room is None else room.sides.get(side_name)
        if side is not None and not _is_same(side.token, request.token):
            return _refused(409, f"somebody else is {side_name} in this room")
        if room is None and (room := self._new_room(name, request.source)) is None:
            return _refused(503, "there are too many rooms", retry_after_s=60)
        self._room_ends.set(name, now)
        version = hashlib.blake2b(request.body, digest_size=16).hexdigest()
        if side is None:
            token = request.token or f"{self._system_rng.getrandbits(128):032x}"
            room.sides[side_name] = _Side(request.body, token, version)
            self._wake(slot, now)
            return Answer(status=201, version=version, token=token)
        if slot in self._left:
            self._left.set(slot, now)
        if side.version != version:
            side.text, side.version = request.body, version
            self._wake(slot, now)
        return Answer(status=204, version=version, token=side.token)

    def _get(self, key: int, slot: Slot, request: Request, now: float) -> Answer | None:
        name = slot[0]
        if name in self._rooms:
            self._room_ends.set(name, now)
        if not _is_known(request.if_none_match, self._version(slot)):
            self._read(name, request.token, now)
            return self._found(slot, request.token)
        self._waiting[key] = _Waiting(slot, request.token)
        self._waiting_at.setdefault(slot, {})[key] = None
        self._wait_ends.set(key, now)
        if request.token is not None:
            self._readers[name, request.token] += 1
            for held in self._held(name, request.token):
                self._left.drop(held)
        return None

    def _delete(self, slot: Slot, request: Request, now: float) -> Answer:
        side = self._side(slot)
        if side is None:
            return _refused(404, "nothing is here", version=NOTHING)
        if not _is_same(side.token, request.token):
            return _refused(409, f"somebody else is {slot[1]} in this room")
        self._empty(slot, now)
        return Answer(status=204, version=NOTHING)

    def _found(self, slot: Slot, token: str | None) -> Answer:
        side, told = self._side(slot), self._told_token(slot[0], token)
        if side is None:
            return _refused(404, "nothing is here", version=NOTHING, token=told)
        return Answer(status=200, body=side.text, version=side.version, token=told)

    # --- who waits, and who is there -----------------------------------------------------------------------------

    def _wake(self, slot: Slot, now: float) -> None:
        """Another version is there: whoever waits for one gets it."""
        for key in tuple(self._waiting_at.get(slot, ())):
            token = self._waiting[key].token
            self._stop_waiting(key, now)
            self._answers.append((key, self._found(slot, token)))

    def _stop_waiting(self, key: int, now: float) -> None:
        waiting = self._waiting.pop(key)
        self._wait_ends.drop(key)
        there = self._waiting_at[waiting.slot]
        del there[key]
        if not there:
            del self._waiting_at[waiting.slot]
        if waiting.token is not None:
            reader = (waiting.slot[0], waiting.token)
            self._readers[reader] -= 1
            if not self._readers[reader]:
                del self._readers[reader]
        self._read(waiting.slot[0], waiting.token, now)

    def _read(self, name: str, token: str | None, now: float) -> None:
        """A reader has its answer; if it is a writer too, it is expected back."""
        if token is not None and (name, token) not in self._readers:
            for slot in self._held(name, token):
                self._left.set(slot, now)

    def _held(self, name: str, token: str) -> Iterator[Slot]:
        """The sides of a room that this token holds."""
        room = self._rooms.get(name)
        if room is not None:
            yield from ((name, each) for each, side in room.sides.items() if _is_same(side.token, token))

    def _told_token(self, name: str, token: str | None) -> str | None:
        return token if token is not None and any(self._held(name, token)) else None

    # --- rooms ---------------------------------------------------------------------------------------------------

    def _new_room(self, name: str, source: str) -> _Room | None:
        network = network_of(source)
        if len(self._rooms) >= MAX_ROOMS or self._rooms_of[network] >= MAX_ROOMS_OF_SOURCE:
            return None
        self._rooms_of[network] += 1
        room = self._rooms[name] = _Room(network)
        return room

    def _empty(self, slot: Slot, now: float) -> None:
        """Empty a side; a room without any is gone."""
        name, side_name = slot
        room = self._rooms[name]
        del room.sides[side_name]
        self._left.drop(slot)
        if not room.sides:
            del self._rooms[name]
            self._room_ends.drop(name)
            self._rooms_of[room.source] -= 1
            if not self._rooms_of[room.source]:
                del self._rooms_of[room.source]
        self._wake(slot, now)

    def _side(self, slot: Slot) -> _Side | None:
        room = self._rooms.get(slot[0])
        return None if room is None else room.sides.get(slot[1])

    def _version(self, slot: Slot) -> str:
        side = self._side(slot)
        return NOTHING if side is None else side.version


def network_of(source: str) -> tuple[int, int]:
    """The source network of an IP address: its IP version, and its prefix as a number."""
    ip = ip_address(source)
    bits = IPV6_SOURCE_BITS if ip.version == 6 else IPV4_SOURCE_BITS
    return ip.version, int(ip) >> (ip.max_prefixlen - bits)


def _slot(target: str) -> Slot | None:
    """Room and side of a request's target: a path, or a URI (RFC 9112, 3.2.2); ``None``: it names none."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    name, _, side = target[1:].partition("/")
    return (name, side) if side in SIDES and ROOM_NAME.fullmatch(name) else None


def _is_description(body: bytes) -> bool:
    """Whether it can be one. Its reader looks closer."""
    return b"ice-ufrag:" in body and b"ice-pwd:" in body


def _is_known(if_none_match: str | None, version: str) -> bool:
    """RFC 9110, 13.1.2: "*" stands for anything that is there."""
    if if_none_match is None:
        return False
    return any(version != NOTHING if star else tag == version for tag, star in _ETAG.findall(if_none_match))


def _is_same(token: str, shown: str | None) -> bool:
    return shown is not None and hmac.compare_digest(token, shown)


def _refused(
    status: int,
    sentence: str,
    *,
    version: str | None = None,
    token: str | None = None,
    retry_after_s: int | None = None,
    is_last: bool = False,
) -> Answer:
    return Answer(
        status=status,
        body=f"{sentence}\n".encode(),
        version=version,
        token=token,
        retry_after_s=retry_after_s,
        is_last=is_last,
    )
