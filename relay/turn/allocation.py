"""What does a client do to have a server relay for it, from the first request to giving it back?

One :class:`Allocation`, sans-IO (``iceagent/net/core.py``): one five-tuple to one server, RFC 8656, over UDP or a
stream.

    NEW ─allocate─▶ ALLOCATING ─▶ READY ─▶ RELEASING ─▶ OVER
                        │           │ ▲
                        ▼           ▼ └ move (RFC 8016: another five-tuple, the same allocation)
                       OVER        OVER

*Sending.* The application's datagrams do not go through here: :meth:`Allocation.wrap` gives the message that carries
one, while there is a permission; ChannelData once a channel is bound, a Send indication until then. Where there is no
permission yet, :meth:`Allocation.send` asks for it and lets the datagram leave right behind the request. A channel is
bound to every peer that we have sent to and that was heard.

*Living.* Allocation, permissions and channels are refreshed by time, before a strict server would drop them. A server
that has lost the allocation does not say so: it drops what we send. So while we send, there are windows of half a
second; when nothing at all has come from the server in one, it is asked (a Refresh, which does no harm): 437 means that
it is lost, three requests without an answer in two seconds that the server is, or the way there (:class:`ServerSilent`:
another server may be asked meanwhile). That is done at most every five seconds, for a peer may be silent for reasons of
its own. Over a stream the connection itself says when the server is gone. Who
has another reason to think that our NAT has forgotten us, has it asked at once (:meth:`Allocation.verify`). Pure.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from errno import EACCES, EHOSTUNREACH, ENOTCONN
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.account import TurnCredentials
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    DATA,
    DEFAULT_RC,
    DEFAULT_RM,
    DONT_FRAGMENT,
    EVEN_PORT,
    ICMP,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressFamily,
    BadMessage,
    Message,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.turn.asking import PeerAsker, error_of
from relay.turn.credentials import LongTermAuth, Pair
from relay.turn.events import (
    Allocated,
    AllocationConfirmed,
    AllocationLost,
    AllocationMoved,
    AllocationRefused,
    AllocationReleased,
    PeerData,
    PeerUnreachable,
    ServerSilent,
)
from relay.turn.peers import Channel, PeerTable
from relay.turn.requests import Request, Requests
from relay.turn.verifying import Verification, Verified

__all__ = ["CHANNEL_HEAD", "Allocation", "AllocationOptions", "AllocationState", "is_channel_data"]

_UDP = 17
DEFAULT_LIFETIME_S = 600.0
"""RFC 8656, 3.2."""

# RFC 8656, 8: "refresh the allocation roughly 1 minute before it expires"; of a short one, half before.
REFRESH_BEFORE_S = 60.0
# RFC 8656, 7.4: "SHOULD wait at least 1 minute" after 486 and 508, 2 after 437 from several addresses.
WAITS_S = {486: 60.0, 508: 60.0, 437: 120.0}
# When nothing came for so long while we sent, the server is asked whether it is there …
WINDOW_S = 0.5
# … by requests after 0, 0.5 and 1.5 s, and is called silent after 2.
PROBE_RC, PROBE_RM = 3, 1
PROBE_INTERVAL_S = 5.0
# Who suspects something has it asked at 0 and 0.5 s (``verifying.py``).
# DEVIATION: RFC 8489, 6.2.1 sends seven times; pinned by test_silence_is_told_after_a_second_and_loses_nothing.
VERIFY_RC, VERIFY_RM = 2, 1
# After 0, 0.5 and 1.5 s, and until 2.5 s: who asks again soon.
BRIEF_RC, BRIEF_RM = 3, 2
# Giving back is not worth waiting for.
RELEASE_RC, RELEASE_RM = 2, 1
# A move is tried for 3.5 s; then another allocation is quicker.
MOVE_RC, MOVE_RM = 3, 4
# Bytes.
COTURN_RUBBISH = 8
# Peers that we have sent to.
MAX_TARGETS = 4096

CHANNEL_HEAD = struct.Struct(">HH")
"""Of ChannelData: number and length (RFC 8656, 12.4)."""


class AllocationState(Enum):
    """See the module."""

    NEW = "new"
    ALLOCATING = "allocating"
    READY = "ready"
    RELEASING = "releasing"
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationOptions:
    """What is asked of the server.

    Attributes:
        families: 4 and/or 6: which relayed addresses. Both: in one allocation, where the server can.
        mobility: ask for a ticket (RFC 8016); a server that forbids that is asked again without.
        lifetime_s: how long it may live unrefreshed; ``None``: as the server likes, 600 s mostly.
        dont_fragment: what is relayed has the DF bit set (RFC 8656, 14).
        even_port: ``None``: any; else an even one, and whether the next is reserved.
        reservation: the token of a port that was reserved.
        rto_s: RFC 8489, 6.2.1: 0.5 s or more.
        is_brief: give up a silent server after five of that, not after 79 as 6.2.1 has it.
    """

    families: tuple[int, ...] = (4,)
    mobility: bool = True
    lifetime_s: int | None = None
    dont_fragment: bool = False
    even_port: bool | None = None
    reservation: bytes | None = None
    rto_s: float = 0.5
    is_brief: bool = False


class Allocation:
    """The client's end of one allocation.

    Args:
        base: our end of the five-tuple.
        server: the other one.
        credentials: ``None``: there are none.
        system_rng: draws transaction ids: ``random.SystemRandom()`` in production.
        options: see there.
        is_stream: the five-tuple is TCP's or TLS's.

    Raises:
        ValueError: user name or password cannot be sent (RFC 8265).

    Attributes:
        base: our end now.
        state: see :class:`AllocationState`.
        relayed: our relayed addresses, once READY.
        lifetime_s: what the server gave last.
        heard: messages from the server; the data path counts its own.
        counters: datagrams that were of no use, by reason.
    """

    def __init__(
        self,
        base: TransportAddress,
        server: TransportAddress,
        credentials: TurnCredentials | None,
        system_rng: Random,
        options: AllocationOptions | None = None,
        *,
        is_stream: bool = False,
    ) -> None:
        self.base = base
        self.server = server
        self.state = AllocationState.NEW
        self.relayed: tuple[TransportAddress, ...] = ()
        self.lifetime_s = 0.0
        self._options = options or AllocationOptions()
        self._system_rng = system_rng
        self._is_stream = is_stream
        self._auth = LongTermAuth(credentials)
        self._next_credentials: TurnCredentials | None = None
        self._requests = Requests(base, server, self._auth, system_rng, rto_s=self._options.rto_s, is_stream=is_stream)
        self._peers = PeerTable()
        self._asker = PeerAsker(self._peers, self)
        self._ticket: bytes | None = None
        self._is_mobile = self._options.mobility
        self._dont_fragment = self._options.dont_fragment
        self._refresh_at: float | None = None
        self._expires_at = 0.0
        self._targets: set[TransportAddress] = set()
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque()
        # Messages from the server, and datagrams for peers; and how many there were when the window began.
        self.heard = self._sent = 0
        self._heard_before = self._sent_before = 0
        self._watch_until: float | None = None
        self._probed_at = float("-inf")
        self._is_probing = False
        self._is_silent = False
        self._is_moving = False
        self._verification = Verification(is_stream=is_stream)
        self.counters: Counter[str] = Counter()

    # --- commands ------------------------------------------------------------------------------------------------

    def allocate(self, now: float) -> None:
        """Ask for it; :class:`Allocated` or :class:`AllocationRefused` follows."""
        self.state = AllocationState.ALLOCATING
        self._ask_to_allocate(now)

    def permit(self, hosts: Iterable[str], now: float) -> None:
        """These peers may send to us from now on, and of those that were permitted so before no others, once the five
        minutes are over that they have.
        """
        kept = set(hosts)
        self._peers.release(kept)
        for host in sorted(kept):
            self._peers.want(host, now, is_kept=True)
        self._ask_for_due(now)

    def send(self, peer: TransportAddress, data: bytes, now: float) -> int:
        """Send a datagram to a peer, and ask for the permission first where there is none.

        Returns:
            0, or why it was not sent: ENOTCONN (no allocation), EACCES (the server refuses that peer), EHOSTUNREACH (no
            relayed address of its family, or too many peers).
        """
        if self.state is not AllocationState.READY:
            return ENOTCONN
        if self.relayed_for(peer) is None:
            return EHOSTUNREACH
        permission = self._peers.want(peer.host, now, is_kept=False)
        if permission is None:
            return EHOSTUNREACH
        if permission.is_refused:
            return EACCES
        permission.sent += 1
        self._ask_for_due(now)
        message = self.wrap(peer, data)
        self._transmits.append(Transmit(self.base, self.server, message or self._indication(peer, data)))
        return 0

    def watch(self, now: float) -> None:
        """Something was sent: within half a second something has to come, or the server is asked."""
        if self.state is AllocationState.READY and self._watch_until is None and not self._is_stream:
            self._heard_before, self._sent_before = self.heard, self._sent
            self._watch_until = now + WINDOW_S

    def move(self, base: TransportAddress, now: float) -> None:
        """Take the allocation along to another five-tuple (RFC 8016); :class:`AllocationMoved` or
        :class:`AllocationLost` follows. Where the server gave no ticket, it is lost.
        """
        if self.state is not AllocationState.READY:
            return
        if self._ticket is None:
            self._end(AllocationLost(reason="our address changed, and the server knows no mobility", is_local=True))
            return
        self.base = self._requests.base = base
        self._present_ticket(self._ticket, "our address changed", now)

    def verify(self, now: float) -> bool:
        """Something is wrong with the network, perhaps another mapping of our NAT's: ask the server at once whether it
        knows us still. A Refresh, which does no harm; :class:`AllocationConfirmed`, :class:`AllocationMoved`,
        :class:`AllocationLost` or, after a second, :class:`ServerSilent` follows. Over UDP, who is silent is asked
        again every two seconds for half a minute, and one of the others may still follow.

        Returns:
            False: it is not asked: there is no allocation, or it was asked less than two seconds ago.
        """
        if self.state is not AllocationState.READY or self._is_moving or not self._verification.begin(now):
            return False
        self._verify(now)
        return True

    def note_sleep(self, seconds: float, now: float) -> None:
        """We were suspended, and ``now`` stood still: what lives at the server by time is so much older."""
        self._expires_at -= seconds
        if self._refresh_at is not None:
            self._refresh_at -= seconds
        self._peers.note_sleep(seconds)

    def use(self, credentials: TurnCredentials, now: float) -> None:
        """Use these from when the present ones are refused; at once where they differ in the password only: a server
        does not take another user name for an allocation that there is (RFC 8656, 5: 441).

        Raises:
            ValueError: they cannot be sent.
        """
        if credentials.username == self._auth.username or self.state is AllocationState.NEW:
            self._auth.use(credentials)
        else:
            LongTermAuth(credentials)
            self._next_credentials = credentials

    def release(self, now: float) -> None:
        """Give it back; :class:`AllocationReleased` follows, within 1.5 s."""
        if self.state is AllocationState.READY:
            self._release(AllocationReleased(), now)
        elif self.state is AllocationState.ALLOCATING and (self._auth.is_signing or self._auth.username is None):
            # What is on its way may still succeed, and would live for ten minutes.
            self.state = AllocationState.RELEASING
        elif self.state in (AllocationState.NEW, AllocationState.ALLOCATING):
            # A request without our name gives no allocation.
            self._end(AllocationReleased())

    # --- the data path -------------------------------------------------------------------------------------------

    def wrap(self, peer: TransportAddress, data: bytes) -> bytes | None:
        """The message that carries a datagram to a peer.

        Returns:
            ``None``: it takes more than that, see :meth:`send`.
        """
        self._sent += 1
        channel = self._peers.channels.get(peer)
        if channel is not None and channel.is_bound:
            channel.used += 1
            message = CHANNEL_HEAD.pack(channel.number, len(data)) + data
            # RFC 8656, 12.5: padded to a multiple of four over a stream.
            return message + bytes(-len(message) & 3) if self._is_stream else message
        permission = self._peers.permissions.get(peer.host)
        if permission is None or not permission.is_installed or peer not in self._targets:
            return None
        permission.sent += 1
        return self._indication(peer, data)

    def unwrap(self, data: bytes) -> tuple[TransportAddress, bytes] | None:
        """Peer and payload of a ChannelData message from the server; ``None``: it is none, or is dropped."""
        if len(data) < 4:
            return None
        number, length = CHANNEL_HEAD.unpack_from(data)
        channel = self._peers.numbers.get(number)
        # "a client should be prepared to receive ChannelData messages … as soon as it has sent the ChannelBind request"
        if channel is None or len(data) < 4 + length:
            self.counters["channel data that belongs to no channel" if channel is None else "short channel data"] += 1
            return None
        channel.used += 1
        self.heard += 1
        return channel.peer, data[4 : 4 + length]

    @property
    def channels(self) -> dict[int, Channel]:
        """By number: for the data path, which does what :meth:`unwrap` does where a channel has a receiver."""
        return self._peers.numbers

    @property
    def can_move(self) -> bool:
        """Whether there is a ticket for :meth:`move`."""
        return self._ticket is not None

    @property
    def is_mobile(self) -> bool:
        """Whether the server was asked for a ticket and has not forbidden that."""
        return self._is_mobile

    def relayed_for(self, peer: TransportAddress) -> TransportAddress | None:
        """Our relayed address of a peer's family; ``None``: there is none."""
        return next((address for address in self.relayed if address.version == peer.version), None)

    @property
    def is_watched(self) -> bool:
        """Whether a send need not be told with :meth:`watch`."""
        return self._watch_until is not None or self._is_stream

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take a message of the server's: over a stream, a whole one."""
        if datagram.source != self.server or datagram.base != self.base or self.state is AllocationState.OVER:
            self._drop(datagram, "not from the TURN server")
            return
        if is_channel_data(datagram.data):
            found = self.unwrap(datagram.data)
            if found is not None:
                self._on_data(datagram, *found)
            return
        try:
            message = parse(datagram.data)
        except BadMessage:
            self._drop(datagram, "malformed STUN")
            if self._is_moving and len(datagram.data) == COTURN_RUBBISH:
                # coturn 4.6 answers the first request from a new address with eight bytes of no meaning, and the next
                # one as it should.
                self._requests.repeat()
            return
        self.heard += 1
        if message.is_success or message.is_error:
            if not self._requests.handle_answer(message, now):
                self._drop(datagram, "response to no request of ours")
        elif message.is_indication and message.method == Method.DATA:
            self._on_indication(message, datagram, now)
        else:
            self._drop(datagram, "not for a TURN client")

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network said no: over a stream that is the end; ICMP may be forged, and is a reason to ask."""
        if destination != self.server or base != self.base:
            return
        if self.state is AllocationState.ALLOCATING and errno != EHOSTUNREACH:
            self._end(AllocationRefused(code=None, reason=errno_in_words(errno)))
        elif self.state is AllocationState.RELEASING and errno != EHOSTUNREACH:
            self._end(AllocationReleased())
        elif self.state is AllocationState.READY and self._is_stream:
            self._end(AllocationLost(reason="the connection to the server ended"))
        elif self.state is AllocationState.READY:
            self._probe(now)

    def handle_timeout(self, now: float) -> None:
        """Repeat, refresh, ask a silent server."""
        self._requests.handle_timeout(now)
        if self.state is not AllocationState.READY:
            return
        if now >= self._expires_at:
            self._end(AllocationLost(reason="it expired: the server answered no refresh"))
            return
        while (due := self._verification.handle_timeout(now)) is not None:
            if due is Verified.SILENT:
                self._events.append(ServerSilent())
            else:
                self._verify(now)
        if self._refresh_at is not None and now >= self._refresh_at:
            self._refresh_at = None
            self.ask(Method.REFRESH, self._lifetime(), self._on_refreshed, self._on_not_refreshed, now)
        if self._watch_until is not None and now >= self._watch_until:
            self._watch_until = None
            if self.heard == self._heard_before:
                self._probe(now)
            elif self._sent > self._sent_before:
                # What came may have come before that.
                self.watch(now)
        self._ask_for_due(now)

    def poll_timeout(self) -> float | None:
        """The next repetition, refresh, renewal or question."""
        if self.state is not AllocationState.READY:
            return self._requests.poll_timeout()
        times = (self._refresh_at, self._watch_until, self._verification.poll_timeout())
        due = (self._requests.poll_timeout(), self._peers.poll_timeout(), *times)
        return min((at for at in due if at is not None), default=self._expires_at)

    def poll_transmit(self) -> Transmit | None:
        """One message to the server: requests first, as what is sent behind them may need them."""
        transmit = self._requests.poll_transmit()
        if transmit is None and self._transmits:
            return self._transmits.popleft()
        return transmit

    def poll_event(self) -> Event | None:
        """One thing that happened."""
        return self._events.popleft() if self._events else None

    # --- allocating ----------------------------------------------------------------------------------------------

    def _ask_to_allocate(self, now: float) -> None:
        options = self._options
        pairs: list[Pair] = [(REQUESTED_TRANSPORT, _UDP), *self._lifetime()]
        if options.reservation is not None:
            pairs.append((RESERVATION_TOKEN, options.reservation))
        elif set(options.families) == {4, 6} and options.even_port is not True:
            pairs.append((ADDITIONAL_ADDRESS_FAMILY, int(AddressFamily.IPV6)))
        elif options.families[0] == 6:
            pairs.append((REQUESTED_ADDRESS_FAMILY, int(AddressFamily.IPV6)))
        if options.even_port is not None and options.reservation is None:
            pairs.append((EVEN_PORT, options.even_port))
        if self._dont_fragment:
            pairs.append((DONT_FRAGMENT, True))
        if self._is_mobile:
            pairs.append((MOBILITY_TICKET, b""))
        rc, rm = (BRIEF_RC, BRIEF_RM) if options.is_brief else (DEFAULT_RC, DEFAULT_RM)
        self.ask(Method.ALLOCATE, tuple(pairs), self._on_allocated, self._on_not_allocated, now, rc=rc, rm=rm)

    def _on_allocated(self, answer: Message, rtt_s: float | None, now: float) -> None:
        if answer.is_error:
            self._on_allocation_error(answer, now)
            return
        relayed = tuple(answer.get_all(XOR_RELAYED_ADDRESS))
        mapped = answer.get(XOR_MAPPED_ADDRESS)
        lifetime = answer.get(LIFETIME) or 0
        is_wanted = relayed and all(self._is_usable(address) for address in relayed)
        if self.state is AllocationState.RELEASING or not is_wanted or mapped is None or not lifetime:
            # RFC 8656, 7.3: "MUST delete the allocation" of a family that we are not prepared to handle.
            refused = "the server's answer has no address that we asked for, or no lifetime"
            is_ours = self.state is AllocationState.RELEASING
            then = AllocationReleased() if is_ours else AllocationRefused(code=None, reason=refused, wait_s=None)
            self._release(then, now)
            return
        self.state = AllocationState.READY
        self.relayed = relayed
        self._ticket = answer.get(MOBILITY_TICKET) if self._is_mobile else None
        self._set_lifetime(lifetime, now)
        partly = answer.get(ADDRESS_ERROR_CODE)
        self._events.append(
            Allocated(
                relayed=relayed,
                mapped=mapped,
                lifetime_s=self.lifetime_s,
                rtt_s=rtt_s,
                reservation=answer.get(RESERVATION_TOKEN),
                refused="" if partly is None else f"{partly.code} {partly.reason}",
                is_mobile=self._ticket is not None,
            )
        )
        self._ask_for_due(now)

    def _is_usable(self, address: TransportAddress) -> bool:
        ip = address.ip
        is_possible = address.port != 0 and not (ip.is_unspecified or ip.is_multicast)
        return is_possible and address.version in self._options.families

    def _on_allocation_error(self, answer: Message, now: float) -> None:
        code, reason = error_of(answer)
        if self.state is AllocationState.RELEASING:
            self._end(AllocationReleased())
        elif code == 405 and self._is_mobile:
            self._is_mobile = False
            self._ask_to_allocate(now)
        elif code == 420 and self._dont_fragment:
            self._dont_fragment = False
            self._ask_to_allocate(now)
        else:
            self._end(
                AllocationRefused(
                    code=code,
                    reason=reason,
                    alternate=answer.get(ALTERNATE_SERVER) if code == 300 else None,
                    domain=answer.get(ALTERNATE_DOMAIN) if code == 300 else None,
                    wait_s=WAITS_S.get(code, None if code < 500 else 0.0),
                )
            )

    def _on_not_allocated(self, reason: str, is_refused: bool, now: float) -> None:
        if self.state is AllocationState.RELEASING:
            self._end(AllocationReleased())
        else:
            code, wait_s = (401, None) if is_refused else (None, 0.0)
            self._end(AllocationRefused(code=code, reason=reason, wait_s=wait_s))

    # --- living --------------------------------------------------------------------------------------------------

    def _lifetime(self) -> tuple[Pair, ...]:
        return () if self._options.lifetime_s is None else ((LIFETIME, self._options.lifetime_s),)

    def _set_lifetime(self, seconds: float, now: float) -> None:
        self.lifetime_s = seconds
        self._expires_at = now + seconds
        self._refresh_at = now + seconds - min(REFRESH_BEFORE_S, seconds / 2)

    def _on_refreshed(self, answer: Message, rtt_s: float | None, now: float) -> None:
        self._is_probing = False
        if answer.is_error:
            self._on_refresh_error(answer, now)
            return
        lifetime = answer.get(LIFETIME)
        self._set_lifetime(DEFAULT_LIFETIME_S if lifetime is None else float(lifetime), now)
        if lifetime == 0:
            self._end(AllocationLost(reason="the server gave it a lifetime of 0"))
        elif self._is_silent:
            self._is_silent = False
            self._events.append(AllocationConfirmed())
            # What else was lost meanwhile would wait for up to 16 s.
            self._requests.repeat()

    def _on_refresh_error(self, answer: Message, now: float) -> None:
        code, reason = error_of(answer)
        if code == 437:
            self.on_unknown(reason, now)
        elif code in (400, 403, 441):
            # 441: it wants the name that made it, which is not good any more; another one may make another.
            self._end(
                AllocationLost(reason=f"the server refuses to refresh it ({code} {reason})", is_refused=code != 441)
            )
        else:
            # Something passing: there is a minute left.
            self._refresh_at = min(now + REFRESH_BEFORE_S / 4, self._expires_at)

    def _on_not_refreshed(self, reason: str, is_refused: bool, now: float) -> None:
        self._is_probing = False
        if is_refused and self._next_credentials is not None:
            credentials, self._next_credentials = self._next_credentials, None
            self._auth.use(credentials)
            self.ask(Method.REFRESH, self._lifetime(), self._on_refreshed, self._on_not_refreshed, now)
        elif is_refused:
            self._end(AllocationLost(reason=f"it cannot be refreshed: {reason}", is_refused=True))
        else:
            self._on_silent(now)

    def _on_silent(self, now: float) -> None:
        """Nobody knows whether it is the server or the way there, and the server may hold the allocation still."""
        self._is_silent = True
        self._events.append(ServerSilent(is_lasting=True))
        if self._refresh_at is None:
            self._refresh_at = min(now + REFRESH_BEFORE_S / 4, self._expires_at)
        self.verify(now)

    def _verify(self, now: float) -> None:
        def answered(answer: Message, rtt_s: float | None, then: float) -> None:
            self._verification.end()
            self._on_refreshed(answer, rtt_s, then)
            if answer.is_success and self.state is AllocationState.READY:
                self._events.append(AllocationConfirmed())

        def failed(reason: str, is_refused: bool, then: float) -> None:
            if is_refused and self._refresh_at is not None:
                # 401 has no integrity, and may be forged: the regular refresh decides, soon.
                self._refresh_at = min(self._refresh_at, then + REFRESH_BEFORE_S / 4)

        self.ask(Method.REFRESH, self._lifetime(), answered, failed, now, rc=VERIFY_RC, rm=VERIFY_RM)

    def _probe(self, now: float) -> None:
        if self._is_probing or now < self._probed_at + PROBE_INTERVAL_S or self._is_stream:
            return
        self._is_probing = True
        self._probed_at = now
        self.ask(
            Method.REFRESH, self._lifetime(), self._on_refreshed, self._on_not_refreshed, now, rc=PROBE_RC, rm=PROBE_RM
        )

    def _present_ticket(self, ticket: bytes, why: str, now: float) -> None:
        """RFC 8016, 3.2.1: a Refresh with it, from wherever we are now."""
        # It is good for one move.
        self._ticket = None
        self._is_moving = True
        self._watch_until = None
        self._requests.forget()
        self._asker.forget()
        self._is_probing = False
        self._verification.end()

        def answered(answer: Message, rtt_s: float | None, then: float) -> None:
            self._is_moving = False
            if answer.is_error:
                code, reason = error_of(answer)
                reason = f"{why}, and the server does not take it along: {code} {reason}"
                self._end(AllocationLost(reason=reason, is_unknown=True))
            else:
                self._on_moved(answer, rtt_s, then)

        def failed(reason: str, is_refused: bool, then: float) -> None:
            reason = f"{why}, and the server does not take it along: {reason}"
            self._end(AllocationLost(reason=reason, is_refused=is_refused))

        pairs: tuple[Pair, ...] = ((MOBILITY_TICKET, ticket), *self._lifetime())
        self.ask(Method.REFRESH, pairs, answered, failed, now, rc=MOVE_RC, rm=MOVE_RM)

    def _on_moved(self, answer: Message, rtt_s: float | None, now: float) -> None:
        self._ticket = answer.get(MOBILITY_TICKET)
        lifetime = answer.get(LIFETIME)
        self._set_lifetime(DEFAULT_LIFETIME_S if lifetime is None else float(lifetime), now)
        self._events.append(AllocationMoved(mapped=answer.get(XOR_MAPPED_ADDRESS), rtt_s=rtt_s))
        self._ask_for_due(now)

    def _release(self, then: Event, now: float) -> None:
        """Tell the server, and say ``then`` afterwards."""
        self.state = AllocationState.RELEASING
        self._requests.forget()
        self._transmits.clear()

        def over(*_: object) -> None:
            self._end(then)

        self.ask(Method.REFRESH, ((LIFETIME, 0),), over, over, now, rc=RELEASE_RC, rm=RELEASE_RM)

    def _end(self, event: Event) -> None:
        if self.state is AllocationState.OVER:
            return
        self.state = AllocationState.OVER
        self._requests.forget()
        self._transmits.clear()
        self._refresh_at = self._watch_until = None
        self._verification.end()
        self._events.append(event)

    # --- what asks for permissions and channels needs (asking.py) ------------------------------------------------

    def ask(
        self,
        method: Method,
        pairs: tuple[Pair, ...],
        answered: Callable[[Message, float | None, float], None],
        failed: Callable[[str, bool, float], None],
        now: float,
        *,
        rc: int = DEFAULT_RC,
        rm: int = DEFAULT_RM,
    ) -> None:
        """Send a request."""
        request = Request(method=method, pairs=pairs, answered=answered, failed=failed, rc=rc, rm=rm)
        self._requests.send(request, now)

    def on_unknown(self, reason: str, now: float) -> None:
        """437: the server knows no allocation of this five-tuple. Perhaps our NAT gave us another mapping.

        DEVIATION: RFC 8016, 3.2.1 presents a ticket from another address only; pinned by
        test_another_mapping_of_the_nat_is_followed.
        """
        if self._ticket is None or self._is_moving:
            self._end(AllocationLost(reason=f"the server has lost it (437 {reason})", is_unknown=True))
        else:
            self._present_ticket(self._ticket, f"the server does not know us (437 {reason})", now)

    def on_refused(self, reason: str, now: float) -> None:
        """The server refuses our credentials."""
        self._on_not_refreshed(reason, True, now)

    def on_disagreement(self, reason: str) -> None:
        """Client and server disagree about channels."""
        self._end(AllocationLost(reason=f"client and server disagree about channels (400 {reason})"))

    def tell(self, event: Event) -> None:
        """Something happened."""
        self._events.append(event)

    def _ask_for_due(self, now: float) -> None:
        if self.state is AllocationState.READY:
            self._asker.ask_for_due(now)

    # --- messages ------------------------------------------------------------------------------------------------

    def _on_indication(self, message: Message, datagram: Datagram, now: float) -> None:
        peer, data, icmp = message.get(XOR_PEER_ADDRESS), message.get(DATA), message.get(ICMP)
        relayed = None if peer is None else self.relayed_for(peer)
        if message.unknown_required or peer is None or relayed is None or (data is None and icmp is None):
            self._drop(datagram, "malformed Data indication")
        elif not self._peers.is_permitted(peer.host):
            # 11.4: "SHOULD also check that the XOR-PEER-ADDRESS … with which the client believes there is an active
            # permission".
            self._drop(datagram, "Data indication without a permission")
        elif icmp is not None:
            self._events.append(PeerUnreachable(relayed=relayed, peer=peer, icmp=icmp))
        elif data is not None:
            if peer in self._targets and self._peers.bind(peer, now) is not None:
                self._ask_for_due(now)
            self._events.append(PeerData(relayed=relayed, peer=peer, data=data))

    def _on_data(self, datagram: Datagram, peer: TransportAddress, data: bytes) -> None:
        relayed = self.relayed_for(peer)
        if relayed is None:
            self._drop(datagram, "from a peer of another family")
        else:
            self._events.append(PeerData(relayed=relayed, peer=peer, data=data))

    def _indication(self, peer: TransportAddress, data: bytes) -> bytes:
        if len(self._targets) >= MAX_TARGETS:
            # Those that are still sent to come back by themselves.
            self._targets.clear()
        self._targets.add(peer)
        pairs: list[Pair] = [(XOR_PEER_ADDRESS, peer), (DATA, data)]
        if self._dont_fragment:
            pairs.insert(1, (DONT_FRAGMENT, True))
        identity = self._system_rng.getrandbits(96).to_bytes(12, "big")
        return build(Method.SEND, MessageClass.INDICATION, identity, *pairs).encode(fingerprint=False)

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        self._events.append(
            PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=len(datagram.data))
        )


def is_channel_data(data: bytes) -> bool:
    """Whether a message from a TURN server is ChannelData (RFC 8656, 12): its first byte is 64 … 79."""
    return bool(data) and 0x40 <= data[0] <= 0x4F
