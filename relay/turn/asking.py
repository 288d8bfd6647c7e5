"""How does a client get the permissions and channels that it wants?

CreatePermission and ChannelBind requests (RFC 8656, 10 and 12) for what ``peers.py`` says is due, and what becomes of
their answers. A host that is refused is told, and costs no other. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from relay.stun import CHANNEL_NUMBER, XOR_PEER_ADDRESS, ErrorCode, Message, Method
from relay.turn.credentials import Pair
from relay.turn.events import PeerRefused
from relay.turn.peers import Channel, PeerTable, Permission

__all__ = ["PeerAsker", "error_of"]

# Of one CreatePermission request: it has to stay below any path's MTU.
MAX_PEERS = 24
# RFC 8656, 10.2: what is wrong with a peer, whatever else is well.
_REFUSALS = frozenset({400, 403, 443})


class Owner(Protocol):
    """The allocation."""

    def relayed_for(self, peer: TransportAddress) -> TransportAddress | None:
        """Our relayed address of a peer's family."""

    def ask(
        self,
        method: Method,
        pairs: tuple[Pair, ...],
        answered: Callable[[Message, float | None, float], None],
        failed: Callable[[str, bool, float], None],
        now: float,
    ) -> None:
        """Send a request."""

    def on_unknown(self, reason: str, now: float) -> None:
        """The server knows no allocation of ours."""

    def on_refused(self, reason: str, now: float) -> None:
        """The server refuses our credentials."""

    def on_disagreement(self, reason: str) -> None:
        """Client and server disagree about channels: RFC 8656, 12.3, "delete the allocation and start afresh"."""

    def tell(self, event: Event) -> None:
        """Something happened."""


class PeerAsker:
    """See the module.

    Args:
        peers: what is wanted, and what there is.
        owner: see there.
    """

    def __init__(self, peers: PeerTable, owner: Owner) -> None:
        self._peers = peers
        self._owner = owner

    def ask_for_due(self, now: float) -> None:
        """Ask for everything whose time has come."""
        due = self._peers.due_permissions(now)
        for permission in due:
            permission.is_refused = self._owner.relayed_for(TransportAddress(permission.host, 0)) is None
        due = [permission for permission in due if not permission.is_refused]
        for start in range(0, len(due), MAX_PEERS):
            self._ask_for_permissions(due[start : start + MAX_PEERS], now)
        for channel in self._peers.due_channels(now):
            self._ask_for_channel(channel, now)

    def forget(self) -> None:
        """What is under way has no answer any more, and is asked for again."""
        for permission in self._peers.permissions.values():
            permission.is_asked = False
        for channel in self._peers.channels.values():
            channel.is_asked = False

    def _ask_for_permissions(self, permissions: list[Permission], now: float) -> None:
        for permission in permissions:
            permission.is_asked = True
            permission.sent = 0

        def answered(answer: Message, rtt_s: float | None, then: float) -> None:
            self._on_permission_answer(answer, permissions, now, then)

        def failed(reason: str, is_refused: bool, then: float) -> None:
            for permission in permissions:
                self._peers.on_not_permitted(permission, then, is_final=False)
            if is_refused:
                self._owner.on_refused(reason, then)

        pairs: list[Pair] = [(XOR_PEER_ADDRESS, TransportAddress(each.host, 0)) for each in permissions]
        self._owner.ask(Method.CREATE_PERMISSION, tuple(pairs), answered, failed, now)

    def _on_permission_answer(
        self, answer: Message, permissions: list[Permission], asked_at: float, now: float
    ) -> None:
        if answer.is_success:
            for permission in permissions:
                self._peers.on_permitted(permission, asked_at)
            return
        code, reason = error_of(answer)
        if code == 437:
            self._owner.on_unknown(reason, now)
        elif len(permissions) > 1 and code in _REFUSALS:
            # One of them is refused, and nobody says which.
            for permission in permissions:
                self._ask_for_permissions([permission], now)
        else:
            for permission in permissions:
                self._peers.on_not_permitted(permission, now, is_final=code in _REFUSALS)
                self._owner.tell(PeerRefused(host=permission.host, code=code, reason=reason))

    def _ask_for_channel(self, channel: Channel, now: float) -> None:
        self._peers.on_asked(channel, now)

        def answered(answer: Message, rtt_s: float | None, then: float) -> None:
            if answer.is_success:
                self._on_bound(channel, now, then)
                return
            code, reason = error_of(answer)
            if code == 437:
                self._owner.on_unknown(reason, then)
            elif code == 400:
                self._owner.on_disagreement(reason)
            else:
                self._peers.on_not_bound(channel, then)

        def failed(reason: str, is_refused: bool, then: float) -> None:
            self._peers.on_not_bound(channel, then)
            if is_refused:
                self._owner.on_refused(reason, then)

        pairs: tuple[Pair, ...] = ((CHANNEL_NUMBER, channel.number), (XOR_PEER_ADDRESS, channel.peer))
        self._owner.ask(Method.CHANNEL_BIND, pairs, answered, failed, now)

    def _on_bound(self, channel: Channel, asked_at: float, now: float) -> None:
        self._peers.on_bound(channel, asked_at, now)
        # RFC 8656, 12.1: "also creates or refreshes a permission towards the peer".
        permission = self._peers.want(channel.peer.host, now, is_kept=False)
        if permission is not None:
            self._peers.on_permitted(permission, asked_at)


def error_of(answer: Message) -> tuple[int, str]:
    """Code and words of an error response."""
    error = answer.error or ErrorCode(500, "")
    # coturn fills the reason up with NULs.
    return error.code, error.reason.strip("\0 ") or "no reason given"
