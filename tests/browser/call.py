"""How does a test have a browser and a connection of ours talk to each other?

A :class:`Call` has both, and is the signalling between them: descriptions go over when the test says so, candidates
whenever either side finds one. ``peer.js`` is the browser's end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from aiortc import RTCConfiguration, RTCDataChannel, RTCIceCandidate, RTCIceServer, RTCSessionDescription
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from playwright.async_api import Page

from iceagent.net.host import Host
from iceagent.rtc import (
    PeerConnection,
    RTCIceCandidatePairStats,
    RTCIceCandidateStats,
    candidate_from_json,
    candidate_to_json,
)
from iceagent.rtc.statistics import IceTransportStats
from tests.browser.chromium import Chromium

__all__ = ["BROWSER", "LIMIT_S", "OURS", "Call", "call", "types_of"]

Message: TypeAlias = str | bytes

BROWSER, OURS = "the browser", "we"
"""Who does something: offers, say."""

LIMIT_S = 20.0
PHRASE_S = 0.1
_OF_CANDIDATES = ("a=candidate:", "a=end-of-candidates")
PEER = Path(__file__).with_name("peer.js")


class Call:
    """A connection of ours and one of a browser's.

    Args:
        ours: one end.
        page: of the other, with ``peer.js`` and a connection.
        is_silent: the browser is told none of our candidates.

    Attributes:
        ours, page: see there.
        candidates: that the browser has signalled.
        here, there: messages that came here, and to the page.
        states, our_states: of the browser's connection and of ours, in order.
        our_paths: kinds of the paths that our data took, in order.
        pairs: types of the candidates that the browser has selected, its own first, in order.
        is_open_there: the data channel is, at the page's end.
        progress_there: bytes of a file that the page has.
        channel: our end of the data channel, once there is one.
    """

    def __init__(self, ours: PeerConnection, page: Page, *, is_silent: bool = False) -> None:
        self.ours = ours
        self.page = page
        self.candidates: list[RTCIceCandidate] = []
        self._is_silent = is_silent
        self.here: list[Message] = []
        self.there: list[Message] = []
        self.states: list[str] = []
        self.our_states: list[str] = []
        self.our_paths: list[str] = []
        self.pairs: list[tuple[str, str]] = []
        self.progress_there = 0
        self.channel: RTCDataChannel | None = None
        self.is_open_there = False
        self._is_over = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        ours.on("icecandidate", self._on_our_candidate)
        ours.on("datachannel", self._use)
        ours.on("connectionstatechange", self._on_our_state)
        ours.on("iceconnectionstatechange", self._changed.set)
        ours.on("selectedcandidatepairchange", self._on_our_path)

    def __str__(self) -> str:
        ours = [f"{each.state} {each.local} → {each.remote}" for agent in self.ours.agents for each in agent.pairs()]
        return (
            f"we: {self.our_states}, path {self.ours.path()}, pairs {ours}; "
            f"the browser: {self.states}, pairs {self.pairs}"
        )

    # --- signalling ----------------------------------------------------------------------------------------------

    async def open(self, offerer: str, *, is_reliable: bool = True) -> None:
        """Connect, with a data channel that the offerer makes; returns when it is open at both ends.

        Args:
            offerer: who.
            is_reliable: what is lost is sent again, and all comes in order.
        """
        again = None if is_reliable else 0
        if offerer == OURS:
            self._use(self.ours.createDataChannel("data", ordered=is_reliable, maxRetransmits=again))
        else:
            options = {} if is_reliable else {"ordered": False, "maxRetransmits": again}
            await self.page.evaluate("options => use(pc.createDataChannel('data', options))", options)
        await self.negotiate(offerer)
        await self.until(lambda: self.is_open)

    async def negotiate(self, offerer: str) -> None:
        """Offer and answer."""
        if offerer == OURS:
            await self.ours.setLocalDescription(await self.ours.createOffer())
            await self._take(await self.page.evaluate("answer", self._told()))
        else:
            await self._take(await self.page.evaluate("offer()"))
            await self.ours.setLocalDescription(await self.ours.createAnswer())
            await self.page.evaluate("take", self._told())

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """The data channel is, at both ends."""
        return self.is_open_there and self.channel is not None and self.channel.readyState == "open"

    @property
    def kinds(self) -> tuple[str | None, str | None]:
        """``direct``, ``relay`` or ``None``: where data goes from here, and from the browser, as it has told last."""
        path = self.ours.path()
        there = ("relay" if "relay" in self.pairs[-1] else "direct") if self.pairs else None
        return None if path is None else path.kind, there

    async def until(self, fact: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Until it is true; looked at whenever something happens.

        Raises:
            AssertionError: it is not, after so many seconds; the message says how things are.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not fact():
                    if self._error is not None:
                        raise self._error
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise AssertionError(f"not after {limit_s:g} s: {self}") from error

    async def settle(self, kind: str) -> None:
        """Until data goes over paths of this kind from both ends, whatever it began on, and that is agreed."""
        await self.until(lambda: self.kinds == (kind, kind) and self.ours.iceConnectionState == "completed")

    async def selected_there(self) -> tuple[str, str]:
        """Types of the candidates of the browser's selected pair, its own first."""
        local, remote = await self.page.evaluate("selected()")
        return local, remote

    async def selected_here(self) -> tuple[str, str]:
        """The same of ours."""
        return types_of(await self.ours.getStats())

    # --- data ----------------------------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """From here to the page."""
        assert self.channel is not None
        self.channel.send(message)

    async def let_say(self, message: Message) -> None:
        """From the page to here."""
        if isinstance(message, str):
            await self.page.evaluate("text => channel.send(text)", message)
        else:
            await self.page.evaluate("bytes => channel.send(new Uint8Array(bytes))", list(message))

    async def talk(self, *messages: Message) -> None:
        """Each of them goes both ways, and arrives as it was."""
        self.here.clear()
        self.there.clear()
        for message in messages:
            self.say(message)
            await self.let_say(message)
        await self._hear(list(messages))

    @contextlib.asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """While the block runs, numbers go both ways, ten a second; afterwards all have come, in order.

        Needs a reliable channel.
        """
        self.here.clear()
        self.there.clear()
        said: list[Message] = []
        is_over = asyncio.Event()

        async def talk() -> None:
            while not is_over.is_set():
                said.append(str(len(said)))
                self.say(said[-1])
                await self.let_say(said[-1])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PHRASE_S):
                        await is_over.wait()

        talking = asyncio.create_task(talk())
        try:
            yield
        finally:
            is_over.set()
            await talking
        await self._hear(said)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _hear(self, said: list[Message]) -> None:
        await self.until(lambda: min(len(self.here), len(self.there)) >= len(said))
        assert (self.here, self.there) == (said, said)

    def _told(self) -> dict[str, str]:
        """Our description, as the browser gets it."""
        description = asdict(self.ours.localDescription)
        if self._is_silent:
            lines = description["sdp"].splitlines(keepends=True)
            description["sdp"] = "".join(line for line in lines if not line.startswith(_OF_CANDIDATES))
        return description

    async def _take(self, description: dict[str, str]) -> None:
        await self.ours.setRemoteDescription(RTCSessionDescription(**description))

    def _use(self, channel: RTCDataChannel) -> None:
        self.channel = channel
        channel.on("open", self._changed.set)
        channel.on("close", self._changed.set)

        @channel.on("message")
        def on_message(message: Message) -> None:
            self.here.append(message)
            self._changed.set()

        # A channel of the browser's may be open already, and known to be so there.
        self._changed.set()

    def _on_our_state(self) -> None:
        self.our_states.append(self.ours.connectionState)
        self._changed.set()

    def _on_our_path(self) -> None:
        path = self.ours.path()
        if path is not None:
            self.our_paths.append(path.kind)
        self._changed.set()

    def _on_our_candidate(self, candidate: RTCIceCandidate | None) -> None:
        if not self._is_silent:
            self._start(self.page.evaluate("add", candidate_to_json(candidate)))

    def _on_their_candidate(self, value: dict[str, Any] | None) -> None:
        candidate = candidate_from_json(value)
        if candidate is not None:
            self.candidates.append(candidate)
        self._start(self.ours.addIceCandidate(candidate))

    def on_told(self, kind: str, value: Any) -> None:
        """The page says something."""
        match kind:
            case "candidate":
                self._on_their_candidate(value)
            case "state":
                self.states.append(value)
            case "pair" if value is not None:
                self.pairs.append((value[0], value[1]))
            case "open" | "closed":
                self.is_open_there = kind == "open"
            case "progress":
                self.progress_there = value
            case "message":
                self.there.append(value if isinstance(value, str) else bytes(value))
        self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._is_over:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
            self._changed.set()

    async def end(self) -> None:
        """Close both ends.

        Raises:
            Exception: a candidate was not taken, at either end.
        """
        self._is_over = True
        await self.ours.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.page.close()
        if self._error is not None:
            raise self._error


@contextlib.asynccontextmanager
async def call(
    browser: Chromium,
    host: Host | None,
    *,
    servers: Sequence[RTCIceServer] = (),
    is_relayed_here: bool = False,
    is_relayed_there: bool = False,
    url: str = "about:blank",
    is_silent: bool = False,
    **options: Any,
) -> AsyncIterator[Call]:
    """A call that ends with the block.

    Args:
        browser: one end, in a page of its own.
        host: of ours.
        servers: of both.
        is_relayed_here, is_relayed_there: nothing leaves one of them but to TURN servers.
        url: of the page.
        is_silent: the browser is told none of our candidates.
        options: of :class:`PeerConnection`.
    """
    page = await browser.page(url)
    policy = RTCIceTransportPolicy.RELAY if is_relayed_here else RTCIceTransportPolicy.ALL
    configuration = RTCConfiguration(iceServers=list(servers), iceTransportPolicy=policy)
    made = Call(PeerConnection(configuration, host=host, **options), page, is_silent=is_silent)
    try:
        await page.expose_function("tell", made.on_told)
        await page.add_script_tag(path=PEER)
        known = [{"urls": s.urls, "username": s.username, "credential": s.credential} for s in servers]
        policies = {"iceTransportPolicy": "relay" if is_relayed_there else "all"}
        await page.evaluate("begin", {"iceServers": known, **policies})
        yield made
    finally:
        await made.end()


def types_of(report: dict[str, Any]) -> tuple[str, str]:
    """Types of the candidates of the selected pair, in statistics of ours."""
    transport = next(entry for entry in report.values() if isinstance(entry, IceTransportStats))
    assert transport.selectedCandidatePairId is not None, "there is no selected pair"
    pair = report[transport.selectedCandidatePairId]
    assert isinstance(pair, RTCIceCandidatePairStats)
    local, remote = report[pair.localCandidateId], report[pair.remoteCandidateId]
    assert isinstance(local, RTCIceCandidateStats) and isinstance(remote, RTCIceCandidateStats)
    return local.candidateType, remote.candidateType
