"""How does a whole ``RTCPeerConnection`` run on agents?

:class:`PeerConnection` is aiortc's, with a few of its private methods overridden: who makes the ICE and DTLS
transports, who gathers, and what the states are. Everything else, from SDP to SCTP and RTP, is aiortc's own.
``iceagent/rtc/contract.py`` has the names that this stands on.

Trickle: ``setLocalDescription`` returns at once and candidates follow as ``icecandidate``, where somebody listens to
that; else it gathers first, as aiortc does, because whoever signals then signals once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

from aiortc import (
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError
from aiortc.rtcpeerconnection import add_transport_description
from aiortc.sdp import MediaDescription, SessionDescription
from aiortc.stats import RTCStatsReport, RTCTransportStats

from iceagent.agent import Agent
from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.description import MAX_CANDIDATES
from iceagent.errors import UnsupportedCandidate, UsageError
from iceagent.events import Path
from iceagent.net.host import Host
from iceagent.rtc.candidates import from_aiortc, to_aiortc
from iceagent.rtc.configuration import agent_config
from iceagent.rtc.connection import report
from iceagent.rtc.statistics import ice_statistics
from iceagent.rtc.transports import IceGatherer, IceTransport

__all__ = ["PeerConnection"]

# RFC 8839, 5.5, of the whole session.
_PACING = re.compile(r"^a=ice-pacing:(\d{1,10})\r?$", re.MULTILINE)

# Candidates that came before the description that says where they belong; a browser has about ten.
_MAX_EARLY = 100


class PeerConnection(RTCPeerConnection):
    """An ``RTCPeerConnection`` on agents of ours.

    Events beside aiortc's: ``icecandidate`` with an ``RTCIceCandidate``, whose ``sdpMid`` and ``sdpMLineIndex`` are
    set, or ``None`` after the last one; ``icecandidateerror`` with an :class:`IceCandidateError` where a server, or an
    address of ours, gives none; ``selectedcandidatepairchange`` when data takes another path.
    ``iceconnectionstatechange`` and ``connectionstatechange`` have W3C's states: ``connected``, ``completed`` and
    ``disconnected`` too, and from ``failed`` an ICE restart leads back.

    Args:
        configuration: aiortc's. All ``iceServers`` are used, with all their URLs; without any, none is asked (aiortc
            asks a public one). ``iceTransportPolicy`` and ``bundlePolicy`` as ever.
        trickle: whether ``setLocalDescription`` returns before gathering is done; ``None``: if somebody listens to
            ``icecandidate`` by then.
        host: whose sockets; ``None``: this machine's.
        options: fields of :class:`iceagent.Config`, such as ``port_range``, ``interface_filter`` or ``portmap``,
            instead of :data:`iceagent.rtc.RTC_DEFAULTS`.

    Raises:
        UsageError: a server or an option is wrong.
    """

    def __init__(
        self,
        configuration: RTCConfiguration | None = None,
        *,
        trickle: bool | None = None,
        host: Host | None = None,
        **options: Any,
    ) -> None:
        given: Any = configuration
        if not isinstance(given, RTCConfiguration | None):
            kind = type(given).__name__
            raise UsageError(f"the configuration is of type {kind}, an RTCConfiguration is expected")
        super().__init__(configuration)
        self._trickle = trickle
        self._host = host
        self._options = options
        self._early: deque[RTCIceCandidate | None] = deque(maxlen=_MAX_EARLY)
        self._is_told_complete = False
        self._is_restart_wished = False
        self.on("error", report)
        # In the order in which they were made; those that are closed, as long as their agents are being closed.
        self._made: list[IceTransport] = []
        self._connecting: set[asyncio.Future[None]] = set()
        # What is wrong with it is said here, and not when the first channel is made.
        chosen = self._inner("__configuration")
        agent_config(chosen.iceServers, chosen.iceTransportPolicy, options)

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def agents(self) -> list[Agent]:
        """One for each transport: with BUNDLE, which all browsers do, one from the answer on."""
        return [transport.agent for transport in self._ice_transports()]

    def path(self) -> Path | None:
        """Where data of the first transport goes now: ``path.kind`` says whether it is relayed; ``None``: nowhere."""
        transports = (each for each in self._ice_transports() if each.state != "closed")
        return next((path for each in transports if (path := each.path()) is not None), None)

    @property
    def localDescription(self) -> RTCSessionDescription:
        """The local description, with all candidates found so far; ``None``: there is none yet."""
        description = self._inner("__localDescription")()
        if description is None:
            # As aiortc has it, whose type says no more.
            return None  # type: ignore[return-value]
        for media, transport in self._sections(description):
            add_transport_description(media, transport)
            media.ice_options = _options(self._ice(transport))
        return RTCSessionDescription(sdp=str(description), type=description.type)

    async def getStats(self) -> RTCStatsReport:
        """Aiortc's, and W3C's ``candidate-pair``, ``local-candidate`` and ``remote-candidate``; ``transport`` says
        which pair is selected.
        """
        report = await super().getStats()
        # aiortc's senders go on telling of transports that BUNDLE has made superfluous.
        for gone in [each.id for each in report.values() if isinstance(each, RTCTransportStats)]:
            del report[gone]
        for transport in self._dtls_transports():
            report.update(ice_statistics(transport, self._ice(transport)))
        return report

    # --- signalling ----------------------------------------------------------------------------------------------

    async def createOffer(self) -> RTCSessionDescription:
        """See aiortc. The first one after :meth:`restartIce` asks the peer for an ICE restart."""
        if self._is_restart_wished:
            self._is_restart_wished = False
            for transport in self._ice_transports():
                if transport.state not in ("new", "closed"):
                    transport.gatherer.restart()
        return self._with_options(await super().createOffer())

    async def createAnswer(self) -> RTCSessionDescription:
        """See aiortc."""
        return self._with_options(await super().createAnswer())

    async def setLocalDescription(self, sessionDescription: RTCSessionDescription | None = None) -> None:
        """See aiortc, and :class:`PeerConnection` for when it returns.

        Raises:
            InvalidStateError: it does not fit ``signalingState``, or is a rollback.
        """
        if sessionDescription is not None:
            _check_type(sessionDescription)
        await super().setLocalDescription(sessionDescription)

    async def setRemoteDescription(self, sessionDescription: RTCSessionDescription) -> None:
        """See aiortc; other ICE credentials than before are an ICE restart of the peer's, or its answer to ours.

        Raises:
            InvalidDescription: ICE credentials break the grammar.
            ValueError: so does something else.
            InvalidStateError: it does not fit ``signalingState``, or is a rollback.
        """
        _check_type(sessionDescription)
        try:
            description = SessionDescription.parse(sessionDescription.sdp)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
            # What aiortc's parser stumbles over is the peer's to answer for.
            raise ValueError(f"the description cannot be read: {type(error).__name__} {error}".rstrip()) from error
        description.type = sessionDescription.type
        self._inner("__validate_description")(description, is_local=False)
        for media in description.media:
            if media.ice is not None and media.ice.usernameFragment and media.ice.password:
                Credentials(ufrag=media.ice.usernameFragment, password=media.ice.password)
            for each in media.ice_candidates:
                with contextlib.suppress(UnsupportedCandidate):
                    from_aiortc(each)
        pacing = _PACING.search(sessionDescription.sdp)
        pacing_ms = None if pacing is None else int(pacing[1])
        self._take_parameters(description, pacing_ms)
        self._take_restart(description)
        await super().setRemoteDescription(sessionDescription)
        # Now that all sections have their transports.
        self._take_parameters(description, pacing_ms)
        for media, ice in self._tagged(description):
            _add_candidates(ice, media)
        # One of the transports that BUNDLE made superfluous may have been the last one that gathered.
        self._on_gathering()
        early, self._early = self._early, deque(maxlen=_MAX_EARLY)
        for candidate in early:
            await self.addIceCandidate(candidate)

    async def addIceCandidate(self, candidate: RTCIceCandidate | None) -> None:
        """Take a candidate of the peer's, at any time, also before its description; ``None``: the last one has come.

        Raises:
            InvalidCandidate: it breaks the grammar. Kinds that are not known here are ignored, and so is what belongs
                to a section that is bundled in another one.
            ValueError: it says of no media section where it belongs.
        """
        if candidate is not None and candidate.sdpMid is None and candidate.sdpMLineIndex is None:
            raise ValueError("Candidate must have either sdpMid or sdpMLineIndex")
        description = self._inner("__remoteDescription")()
        if description is None:
            if candidate is not None:
                with contextlib.suppress(UnsupportedCandidate):
                    from_aiortc(candidate)
            self._early.append(candidate)
            return
        for index, media in enumerate(description.media):
            if candidate is None:
                media.ice_candidates_complete = True
            elif candidate.sdpMid == media.rtp.muxId or (candidate.sdpMid is None and candidate.sdpMLineIndex == index):
                if len(media.ice_candidates) < MAX_CANDIDATES:
                    media.ice_candidates.append(candidate)
            else:
                continue
            for ice in [ice for tagged, ice in self._tagged(description) if tagged is media]:
                await ice.addRemoteCandidate(candidate)

    def restartIce(self) -> None:
        """Wish for an ICE restart: the next offer has new credentials, and is to be signalled. Data goes on over the
        present path meanwhile, if there is one. Without an offer, nothing happens.

        Raises:
            InvalidStateError: the connection is closed.
        """
        if self.signalingState == "closed":
            raise InvalidStateError("the connection is closed")
        self._is_restart_wished = True

    async def close(self) -> None:
        """Close. Takes at most a second where relays and mappings are to be given back, else some milliseconds."""
        await super().close()
        if closing := [made.connection.closing for made in self._made if made.connection.closing is not None]:
            await asyncio.wait(closing)

    # --- what aiortc calls (see contract.py) ---------------------------------------------------------------------

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        """A new transport, with a gatherer of ours; all of a connection share one user name fragment."""
        gatherer = self._new_gatherer(next(iter(self._ice_transports()), None))
        gatherer.on("statechange", self._inner("__updateIceGatheringState"))
        ice = IceTransport(gatherer)
        self._made = [made for made in self._made if not made.connection.is_over]
        self._made.append(ice)
        gatherer.on("candidate", partial(self._on_candidate, ice))
        gatherer.on("candidateerror", partial(self.emit, "icecandidateerror"))
        gatherer.on("statechange", self._on_gathering)
        for listener in ("__updateIceConnectionState", "__updateConnectionState"):
            ice.on("statechange", self._inner(listener))
        ice.on("selectedcandidatepairchange", partial(self.emit, "selectedcandidatepairchange"))
        self._inner("__iceTransports").add(ice)
        dtls = RTCDtlsTransport(ice, self._inner("__certificates"))
        dtls.on("statechange", self._inner("__updateConnectionState"))
        self._inner("__dtlsTransports").add(dtls)
        for update in ("__updateIceGatheringState", "__updateIceConnectionState", "__updateConnectionState"):
            self._inner(update)()
        return dtls

    async def _RTCPeerConnection__gather(self) -> None:
        """Begin to gather, and wait for the end where nobody hears of what comes later."""
        transports = self._ice_transports()
        for transport in transports:
            transport.gatherer.start()
        if any(transport.gatherer.state == "gathering" for transport in transports):
            self._is_told_complete = False
        does_trickle = self._trickle if self._trickle is not None else bool(self.listeners("icecandidate"))
        if not does_trickle:
            await asyncio.gather(*(transport.gatherer.gather() for transport in transports))

    async def _RTCPeerConnection__connect(self) -> None:
        """As aiortc has it, but for a transport that was closed while another one connected: nobody waits for that."""
        with contextlib.suppress(InvalidStateError):
            await getattr(super(), "_RTCPeerConnection__connect")()  # noqa: B009

    def _RTCPeerConnection__updateIceConnectionState(self) -> None:
        """W3C's RTCIceConnectionState, of which aiortc leaves three out."""
        states = {transport.state for transport in self._ice_transports()}
        self._set("iceConnectionState", "closed" if self._inner("__isClosed") else _combined(states))

    def _RTCPeerConnection__updateConnectionState(self) -> None:
        """W3C's RTCPeerConnectionState, of which aiortc leaves one out."""
        dtls = {transport.state for transport in self._dtls_transports()}
        ice = {transport.state for transport in self._ice_transports()}
        if self._inner("__isClosed"):
            state = "closed"
        elif "failed" in ice | dtls:
            state = "failed"
        elif "disconnected" in ice:
            state = "disconnected"
        elif ice | dtls <= {"new", "closed"}:
            state = "new"
        elif ice & {"new", "checking"} or dtls & {"new", "connecting"}:
            state = "connecting"
        else:
            state = "connected"
        self._set("connectionState", state)
        if dtls == {"closed"} and not self._inner("__isClosed") and self._inner("__closeTask") is None:
            # The peer has ended DTLS: so do we, as aiortc does.
            self._set_inner("__closeTask", asyncio.ensure_future(self.close()))

    # --- inside --------------------------------------------------------------------------------------------------

    def _inner(self, name: str) -> Any:
        """One of aiortc's private attributes."""
        return getattr(self, f"_RTCPeerConnection{name}")

    def _set_inner(self, name: str, value: object) -> None:
        setattr(self, f"_RTCPeerConnection{name}", value)

    def _set(self, name: str, state: str) -> None:
        if self._inner(f"__{name}") != state:
            self._set_inner(f"__{name}", state)
            self.emit(f"{name.lower()}change")

    def _new_gatherer(self, beside: IceTransport | None) -> IceGatherer:
        configuration = self._inner("__configuration")
        ours = None if beside is None else beside.iceGatherer.getLocalParameters()
        return IceGatherer(
            configuration.iceServers,
            configuration.iceTransportPolicy,
            None if ours is None else ours.usernameFragment,
            None if ours is None else ours.password,
            host=self._host,
            **self._options,
        )

    def _ice_transports(self) -> list[IceTransport]:
        """Those in use, the first one first."""
        used = self._inner("__iceTransports")
        return [made for made in self._made if made in used]

    def _dtls_transports(self) -> list[RTCDtlsTransport]:
        return list(self._inner("__dtlsTransports"))

    @staticmethod
    def _ice(transport: RTCDtlsTransport) -> IceTransport:
        ice = transport.transport
        assert isinstance(ice, IceTransport)
        return ice

    def _members(self) -> Iterator[tuple[str | None, int | None, RTCDtlsTransport]]:
        """What has a media section: its mid, its index, its transport."""
        for transceiver in self.getTransceivers():
            yield transceiver.mid, transceiver._get_mline_index(), transceiver.receiver.transport
        if self.sctp is not None:
            yield self.sctp.mid, self._inner("__sctp_mline_index"), self.sctp.transport

    def _sections(self, description: SessionDescription) -> Iterator[tuple[MediaDescription, RTCDtlsTransport]]:
        """The media sections, and the transport of each."""
        by_mid = {mid: transport for mid, _, transport in self._members() if mid is not None}
        for media in description.media:
            transport = by_mid.get(media.rtp.muxId)
            if transport is not None:
                yield media, transport

    def _tagged(self, description: SessionDescription) -> Iterator[tuple[MediaDescription, IceTransport]]:
        """Each transport once, with the section that speaks for it: the one that others are bundled in (RFC 9143), or
        the first.
        """
        tags = [group.items[0] for group in description.group if group.semantic == "BUNDLE" and group.items]
        found: dict[IceTransport, MediaDescription] = {}
        for media, transport in self._sections(description):
            ice = self._ice(transport)
            if ice not in found or media.rtp.muxId in tags:
                found[ice] = media
        for ice, media in found.items():
            yield media, ice

    def _take_parameters(self, description: SessionDescription, pacing_ms: int | None) -> None:
        """What is to be known of the peer when a transport begins."""
        for media, ice in self._tagged(description):
            ice.connection.remote_pacing_ms = pacing_ms
            if ice.state == "new":
                ice.tagged = media.ice
                ice.connection.remote_options = tuple((media.ice_options or "").split())

    def _take_restart(self, description: SessionDescription) -> None:
        """Other credentials for a transport that has begun: before its candidates, and before the answer is made."""
        for media, ice in self._tagged(description):
            if media.ice is None or ice.state in ("new", "closed"):
                continue
            if description.type == "offer" and ice.connection.is_restart(
                media.ice.usernameFragment, media.ice.password
            ):
                # A wish of ours is met by this.
                self._is_restart_wished = False
                ice.gatherer.restart()
            ice.connection.remote_options = tuple((media.ice_options or "").split())
            # They are part of the new description: that of the section that speaks for the transport, which aiortc may
            # pass over (RFC 8840, 7, has them there alone).
            _add_candidates(ice, media)
            ice.take(media.ice)

    def _with_options(self, description: RTCSessionDescription) -> RTCSessionDescription:
        """The description with ``ice-options``, which aiortc reads and does not write."""
        transport = next(iter(self._ice_transports()), None)
        if transport is None:
            return description
        lines: list[str] = []
        for line in description.sdp.splitlines():
            if not line.startswith("a=ice-options:"):
                lines.append(line)
            if line.startswith("a=ice-pwd:"):
                lines.append(f"a=ice-options:{_options(transport)}")
        return RTCSessionDescription(sdp="\r\n".join(lines) + "\r\n", type=description.type)

    def _on_candidate(self, ice: IceTransport, candidate: Candidate) -> None:
        sections = ((index, mid) for mid, index, transport in self._members() if transport.transport is ice)
        index, mid = min(((i, m) for i, m in sections if i is not None), default=(None, None))
        if mid is not None:
            self.emit("icecandidate", to_aiortc(candidate, mid, index))
        if ice.state == "new":
            # Without a candidate of ours, aiortc did not begin to connect.
            connecting = asyncio.ensure_future(self._inner("__connect")())
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    def _on_gathering(self) -> None:
        states = {transport.gatherer.state for transport in self._ice_transports()}
        if states == {"completed"} and not self._is_told_complete and not self._inner("__isClosed"):
            self._is_told_complete = True
            self.emit("icecandidate", None)


def _add_candidates(ice: IceTransport, media: MediaDescription) -> None:
    """Those of a section; what is known already changes nothing."""
    for candidate in media.ice_candidates:
        with contextlib.suppress(UnsupportedCandidate):
            ice.connection.add_candidate(from_aiortc(candidate))
    if media.ice_candidates_complete:
        ice.connection.end_candidates()


def _check_type(description: RTCSessionDescription) -> None:
    """aiortc takes a rollback, and does nothing."""
    if description.type == "rollback":
        raise InvalidStateError("aiortc cannot roll back an offer")


def _options(transport: IceTransport) -> str:
    return " ".join(transport.agent.local_description.options)


def _combined(states: set[str]) -> str:
    """W3C, 5.6.4 of webrtc-pc: the worst of all transports."""
    for state in ("failed", "disconnected"):
        if state in states:
            return state
    if states <= {"new", "closed"}:
        return "new"
    if states & {"new", "checking"}:
        return "checking"
    return "completed" if states <= {"completed", "closed"} else "connected"
