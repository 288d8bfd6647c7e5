"""How are descriptions exchanged through a rendezvous server?

:class:`MailboxExchange` is both ends of a way to signal. Ours is written to our side of a room whenever it changes, the
newest one only; the peer's side is read by requests that wait, one after the other on a connection that is kept, so
that a change is here half a round trip after the server has it. A server that is away is asked again, at intervals that
grow to 5 s, for as long as the session lasts, which does not need it once both ends are connected. Each answer says
whether the server still has our side: one that was started anew, or that has not heard of us for a while, gets it
again. When the interfaces change, a connection from an address that is gone is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from iceagent.description import Description
from iceagent.errors import PeerError, UsageError
from iceagent.net.address import canonical_host, quoted
from iceagent.net.host import Host, Interface, Subscription
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.http_client import HttpClient, Response
from iceagent.rendezvous.mailbox import MAX_TEXT, NOTHING, ROOM_NAME, SIDES, WAIT_S

__all__ = ["MailboxExchange", "RoomUrl"]

# How much longer than the server waits an answer may take, connecting included.
ANSWER_S = 10.0
# What closing may take: Ctrl-C ends within 1 s.
LEAVE_S = 0.4
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 5.0
# A server that does not wait, or has a new version every time, is not asked more often: a hundred changes come as they
# are, as late candidates do, and then one a second.
MIN_INTERVAL_S, SLOW_INTERVAL_S = 0.01, 1.0
CHANGE_BURST = 100
# An answer that there is nothing new was not waited for if it came so soon.
PROMPT_S = 1.0
# What was found and not yet taken.
MAX_FOUND = 16

_SCHEMES = {"http": 80, "https": 443}
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
# RFC 9110, 8.8.3, but for what is not ASCII: it is sent back.
_ETAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e]{1,128})"')
_EXPECTED = "http://HOST[:PORT]/ROOM or https://HOST[:PORT]/ROOM is expected"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomUrl:
    """Where two peers meet.

    Attributes:
        is_tls: HTTPS.
        host: a name (ASCII), or an IP address without brackets.
        port: 1 … 65535.
        room: its name: 8 to 64 of ``A-Z a-z 0-9 . _ -``.
    """

    is_tls: bool
    host: str
    port: int
    room: str

    @classmethod
    def parse(cls, text: str) -> RoomUrl:
        """Read ``http[s]://HOST[:PORT]/ROOM``.

        Raises:
            UsageError: it is something else; the text says what is expected.
        """
        if not text.isprintable():
            # urlsplit leaves line ends out without a word.
            raise UsageError(f"{quoted(text)}: {_EXPECTED}")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"{quoted(text)}: {error}") from error
        if parts.scheme not in _SCHEMES or not host:
            raise UsageError(f"{quoted(text)}: {_EXPECTED}")
        if parts.username is not None or parts.query or parts.fragment:
            raise UsageError(f"{quoted(text)}: a user, a query or a fragment has no meaning here; {_EXPECTED}")
        if port == 0:
            raise UsageError(f"{quoted(text)}: a port is 1 to 65535")
        room = parts.path.removeprefix("/")
        if not ROOM_NAME.fullmatch(room):
            raise UsageError(
                f"{quoted(text)}: the room {quoted(room)} is not 8 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'"
            )
        return cls(
            is_tls=parts.scheme == "https",
            host=_ascii_host(host, text),
            port=_SCHEMES[parts.scheme] if port is None else port,
            room=room,
        )

    @property
    def server(self) -> str:
        """Without the room, which is a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}"


def _ascii_host(host: str, text: str) -> str:
    with contextlib.suppress(ValueError):
        return canonical_host(host)
    with contextlib.suppress(UnicodeError):
        name = host.encode("idna").decode("ascii")
        if _NAME.fullmatch(name):
            return name
    raise UsageError(f"{quoted(text)}: {quoted(host)} is neither a host name nor an IP address")


class MailboxExchange:
    """Both an outbox and an inbox (``exchange.py``), open while it is entered.

    Args:
        url: the room.
        role: our side, ``controlling`` or ``controlled``; the peer's is the other one.
        host: whose network is used.
        rng: spreads pauses.
        system_rng: makes our token; not to be predictable.
        ssl_context: how a server is verified, instead of the host's own way.
    """

    def __init__(
        self,
        url: RoomUrl,
        *,
        role: str,
        host: Host,
        rng: Random,
        system_rng: Random,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url
        self._host = host
        self._rng = rng
        self._role = role
        (peer,) = (side for side in SIDES if side != role)
        self._mine, self._theirs = f"/{url.room}/{role}", f"/{url.room}/{peer}"
        self._token = ("Room-Token", f"{system_rng.getrandbits(128):032x}")
        self._writer, self._reader = (
            HttpClient(host, url.host, url.port, is_tls=url.is_tls, ssl_context=ssl_context) for _ in range(2)
        )
        self._text = ""
        self._is_written = False
        self._to_write = asyncio.Event()
        self._found: asyncio.Queue[Description | Refusal | Exception] = asyncio.Queue(MAX_FOUND)
        self._taken: bytes | None = None
        # What is wrong now, by who found it.
        self._troubles: dict[HttpClient, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._subscription = Subscription()

    async def __aenter__(self) -> Self:
        self._subscription = self._host.watch_interfaces(self._on_interfaces)
        self._tasks = [asyncio.create_task(self._run(job)) for job in (self._write, self._read)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._subscription.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if self._is_written:
                # The next session in this room is not to take us for there. If it cannot be said, the server forgets.
                with contextlib.suppress(OSError):
                    await self._writer.ask("DELETE", self._mine, [self._token], timeout_s=LEAVE_S)
        finally:
            self._writer.close()
            self._reader.close()

    def publish(self, description: Description) -> None:
        """Tell the peer soon, if there is something new and something to connect to in it.

        Raises:
            OSError: it is longer than a server takes.
        """
        text = description.to_sdp()
        if text == self._text or not (description.candidates or description.complete):
            return
        if len(text) > MAX_TEXT:
            raise OSError(f"it has {len(text)} bytes, and a rendezvous server takes {MAX_TEXT}")
        self._text = text
        self._to_write.set()

    async def descriptions(self) -> AsyncIterator[Description | Refusal]:
        """The peer's, whenever it is another one, and what is wrong with the server or with us; never ends."""
        while True:
            found = await self._found.get()
            if isinstance(found, Exception):
                raise found
            yield found

    # --- writing -------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Keep our side what it is to be."""
        pauses = _Pauses(self._rng)
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            # It may have arrived though its answer does not.
            self._is_written = True
            try:
                response = await self._writer.ask(
                    "PUT", self._mine, [self._token], self._text.encode(), timeout_s=ANSWER_S
                )
            except OSError as error:
                await self._on_trouble(self._writer, _words(error), pauses)
                self._to_write.set()
                continue
            if response.status in (200, 201, 204):
                self._on_success(self._writer, pauses)
                continue
            reason = f"somebody else is {self._role} in this room" if response.status == 409 else _complaint(response)
            await self._on_trouble(self._writer, reason, pauses, response)
            self._to_write.set()

    # --- reading -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Wait for the peer's side to change, again and again."""
        pauses = _Pauses(self._rng)
        version = NOTHING
        # Changes that may come at once; they come back with time.
        credit, credited_at = float(CHANGE_BURST), self._host.now()
        while True:
            asked_at = self._host.now()
            credit = min(float(CHANGE_BURST), credit + (asked_at - credited_at) / SLOW_INTERVAL_S)
            credited_at = asked_at
            headers = [self._token, ("If-None-Match", f'"{version}"')]
            try:
                response = await self._reader.ask("GET", self._theirs, headers, timeout_s=WAIT_S + ANSWER_S)
            except OSError as error:
                await self._on_trouble(self._reader, _words(error), pauses)
                continue
            found = version if response.status == 304 else _version(response)
            if response.status not in (200, 304, 404) or found is None:
                await self._on_trouble(self._reader, _complaint(response), pauses, response)
                continue
            if found == version and self._host.now() - asked_at < PROMPT_S:
                await self._on_trouble(self._reader, "it does not wait for changes", pauses, response)
                continue
            version = found
            self._on_success(self._reader, pauses)
            if self._text and "room-token" not in response.headers:
                # It is another server than it was, or has not heard of us for too long.
                self._to_write.set()
            if response.status == 200:
                await self._take(response.body)
            credit = max(0.0, credit - 1.0)
            await asyncio.sleep(MIN_INTERVAL_S if credit >= 1.0 else SLOW_INTERVAL_S)

    async def _take(self, text: bytes) -> None:
        if text == self._taken:
            return
        self._taken = text
        try:
            found: Description | Refusal = Description.parse(text.decode("utf-8-sig", errors="replace"))
        except PeerError as error:
            found = Refusal(reason=f"the peer's description: {error}")
        await self._found.put(found)

    # --- what goes wrong -----------------------------------------------------------------------------------------

    async def _on_trouble(
        self, client: HttpClient, reason: str, pauses: _Pauses, response: Response | None = None
    ) -> None:
        """Tell it once, and wait before the next attempt."""
        is_told = reason in self._troubles.values()
        self._troubles[client] = reason
        if not is_told:
            await self._found.put(Refusal(reason=f"{self._url.server}: {reason}; asking again"))
        await asyncio.sleep(pauses.next_s(response))

    def _on_success(self, client: HttpClient, pauses: _Pauses) -> None:
        self._troubles.pop(client, None)
        pauses.reset()

    async def _run(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await job()
        except Exception as error:  # A bug of ours: who reads the descriptions is told.
            await self._found.put(error)

    def _on_interfaces(self, interfaces: Sequence[Interface]) -> None:
        hosts = {address.host for interface in interfaces for address in interface.addresses}
        for client in (self._writer, self._reader):
            if client.local_host is not None and client.local_host not in hosts:
                client.interrupt("our address is gone")


class _Pauses:
    """How long to wait before the next attempt: twice as long each time, and never two programs in step."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._pause_s = FIRST_PAUSE_S

    def reset(self) -> None:
        self._pause_s = FIRST_PAUSE_S

    def next_s(self, response: Response | None) -> float:
        """Seconds; what the server asks for counts, but not for ever."""
        pause_s, self._pause_s = self._pause_s, min(MAX_PAUSE_S, 2 * self._pause_s)
        asked = "" if response is None else response.headers.get("retry-after", "")
        if asked.isascii() and asked.isdigit() and len(asked) < 4:
            pause_s = max(pause_s, min(MAX_PAUSE_S, float(asked)))
        return pause_s * self._rng.uniform(0.5, 1.0)


def _version(response: Response) -> str | None:
    found = _ETAG.fullmatch(response.headers.get("etag", ""))
    return None if found is None else found[1]


def _complaint(response: Response) -> str:
    if response.status in (200, 304, 404) and _version(response) is None:
        return f"it answers {response.status} and no version: is this a server of iceagent serve --rendezvous?"
    sentence = response.body[:200].decode("utf-8", errors="replace").strip().partition("\n")[0]
    is_ours = response.headers.get("content-type", "").startswith("text/plain") and sentence
    return f"it answers {response.status}" + (f" ({sentence})" if is_ours else "")


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (
            f"there is no TLS ({(error.reason or str(error)).replace('_', ' ').lower()}): is this a port for http://?"
        )
    if (error.strerror or "").startswith("Connect call failed"):
        # asyncio's words, which have the address again, and not what is wrong.
        return os.strerror(error.errno or errno.EIO)
    return error.strerror or str(error) or type(error).__name__
