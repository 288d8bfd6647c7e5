"""Whom may the server relay from and to, and over which channels?

The client's copy of the lists of RFC 8656, 9 and 12. A permission lives for 300 s, a channel for 600 s, whatever is
sent: so they are renewed by time, a minute before that, for as long as they are wanted: a permission that ICE asked for
until it says otherwise, any other one while something is sent there, a channel while something goes over it in either
direction. A channel that was let go keeps its number and its peer for five more minutes (12: "MUST wait 5 minutes
after the channel binding expires"). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from iceagent.net.address import TransportAddress

__all__ = ["Channel", "PeerTable", "Permission"]

PERMISSION_S = 300.0
CHANNEL_S = 600.0
# Before that, counted from when the request left; a request that has to be repeated takes 39.5 s at worst.
RENEW_BEFORE_S = 60.0
COOLING_S = 300.0
# A request that the server had no room for (508), or gave no answer to, is repeated after this.
RETRY_S = 60.0

# RFC 8656, 7.4 of 403: "SHOULD NOT retry the same request … until it believes the problem has been fixed"; so late it
# may have been.
REFUSAL_S = 600.0

FIRST_CHANNEL, LAST_CHANNEL = 0x4000, 0x4FFF
# Hosts; coturn refuses the 1,025th.
MAX_PERMISSIONS = 1000


@dataclass(slots=True, eq=False)
class Permission:
    """Of one IP address.

    Attributes:
        is_kept: renewed until told otherwise; else only while something is sent.
        is_asked: a request for it is under way.
        is_installed: the server has it.
        is_refused: the server will not have it.
        due_at: when it is to be asked for (again).
        expires_at: when the server forgets it, if it is not renewed.
        sent: datagrams since it was last asked for.
    """

    host: str
    is_kept: bool
    due_at: float
    is_asked: bool = False
    is_installed: bool = False
    is_refused: bool = False
    expires_at: float = 0.0
    sent: int = 0


@dataclass(slots=True, eq=False)
class Channel:
    """A number that stands for a peer.

    Attributes:
        is_bound: the server has said so; what is sent may go over it.
        is_asked: a request for it is under way.
        due_at: when it is to be asked for (again), if it is used.
        expires_at: when it ends, if it is not renewed.
        free_at: when number and peer may be used otherwise.
        used: datagrams in either direction since it was last asked for.
        receive: who gets what comes over it; the shell's, for the data path.
    """

    number: int
    peer: TransportAddress
    due_at: float
    expires_at: float = 0.0
    free_at: float = 0.0
    is_bound: bool = False
    is_asked: bool = False
    used: int = 0
    receive: Callable[[Any, bytes, tuple[str, int]], None] | None = None


class PeerTable:
    """Permissions and channels of one allocation.

    Attributes:
        permissions: by IP address.
        channels: by peer.
        numbers: the same by number.
    """

    def __init__(self) -> None:
        self.permissions: dict[str, Permission] = {}
        self.channels: dict[TransportAddress, Channel] = {}
        self.numbers: dict[int, Channel] = {}
        self._next_number = FIRST_CHANNEL

    # --- permissions ---------------------------------------------------------------------------------------------

    def want(self, host: str, now: float, *, is_kept: bool) -> Permission | None:
        """The permission of a host, to be asked for at once if it is new; ``None``: there are too many."""
        found = self.permissions.get(host)
        if found is None:
            if len(self.permissions) >= MAX_PERMISSIONS and not self._make_room():
                return None
            found = self.permissions[host] = Permission(host, is_kept, now)
        found.is_kept |= is_kept
        return found

    def release(self, keep: set[str]) -> None:
        """Of the kept ones, keep these only; the others go when nothing is sent there any more."""
        for permission in self.permissions.values():
            permission.is_kept &= permission.host in keep

    def due_permissions(self, now: float) -> list[Permission]:
        """Those to be asked for now; forgets those that nobody uses."""
        found = []
        for permission in [p for p in self.permissions.values() if p.due_at <= now and not p.is_asked]:
            permission.is_installed &= now < permission.expires_at
            if permission.is_kept or permission.sent or self._has_channel(permission.host):
                if not permission.is_refused:
                    found.append(permission)
            elif now < permission.expires_at:
                permission.due_at = permission.expires_at
            else:
                del self.permissions[permission.host]
        return found

    def is_permitted(self, host: str) -> bool:
        """Whether the server may have a permission for it."""
        permission = self.permissions.get(host)
        return permission is not None and not permission.is_refused

    def on_permitted(self, permission: Permission, asked_at: float) -> None:
        """The server has it."""
        permission.is_asked = False
        permission.is_installed = True
        permission.expires_at = asked_at + PERMISSION_S
        permission.due_at = permission.expires_at - RENEW_BEFORE_S

    def on_not_permitted(self, permission: Permission, now: float, *, is_final: bool) -> None:
        """The server has refused it, or not answered."""
        permission.is_asked = False
        permission.is_refused = is_final
        permission.is_installed &= not is_final and now < permission.expires_at
        permission.due_at = now + (REFUSAL_S if is_final else RETRY_S)

    def _make_room(self) -> bool:
        """Forget one that nobody keeps; the server does so in its time."""
        victim = next((p for p in self.permissions.values() if not p.is_kept and not p.is_asked), None)
        if victim is not None:
            del self.permissions[victim.host]
        return victim is not None

    def _has_channel(self, host: str) -> bool:
        return any(channel.peer.host == host for channel in self.channels.values() if channel.is_bound)

    # --- channels ------------------------------------------------------------------------------------------------

    def bind(self, peer: TransportAddress, now: float) -> Channel | None:
        """The channel of a peer, to be asked for at once if it is new; ``None``: every number is taken."""
        found = self.channels.get(peer)
        if found is None:
            number = self._free_number(now)
            if number is None:
                return None
            found = Channel(number, peer, now)
            self.channels[peer] = self.numbers[number] = found
        found.used += 1
        return found

    def due_channels(self, now: float) -> list[Channel]:
        """Those to be asked for now. One that nobody uses any more ends."""
        for channel in self.channels.values():
            channel.is_bound &= now < channel.expires_at
        return [c for c in self.channels.values() if c.used and c.due_at <= now and not c.is_asked]

    def on_asked(self, channel: Channel, now: float) -> None:
        """A request for it leaves."""
        channel.is_asked = True
        channel.used = 0

    def on_bound(self, channel: Channel, asked_at: float, now: float) -> None:
        """The server has it."""
        self._on_answer(channel, now)
        channel.is_bound = True
        channel.expires_at = asked_at + CHANNEL_S
        channel.due_at = channel.expires_at - RENEW_BEFORE_S

    def on_not_bound(self, channel: Channel, now: float) -> None:
        """The server has refused it, or not answered: indications go on, and it is tried again in a minute."""
        self._on_answer(channel, now)
        channel.due_at = now + RETRY_S

    @staticmethod
    def _on_answer(channel: Channel, now: float) -> None:
        channel.is_asked = False
        # The server may have bound it as late as now, whatever it answered.
        channel.free_at = now + CHANNEL_S + COOLING_S

    def _free_number(self, now: float) -> int | None:
        if self._next_number <= LAST_CHANNEL:
            self._next_number += 1
            return self._next_number - 1
        free = next((c for c in self.channels.values() if now >= c.free_at and not c.is_asked), None)
        if free is None:
            return None
        del self.channels[free.peer], self.numbers[free.number]
        return free.number

    # --- time ----------------------------------------------------------------------------------------------------

    def note_sleep(self, seconds: float) -> None:
        """We were suspended while our clock stood still, and the server's went on."""
        for permission in self.permissions.values():
            permission.expires_at -= seconds
            permission.due_at -= seconds
        for channel in self.channels.values():
            channel.expires_at -= seconds
            channel.due_at -= seconds
            channel.free_at -= seconds

    def poll_timeout(self) -> float | None:
        """When something is due next."""
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        for permission in self.permissions.values():
            if not permission.is_asked and not permission.is_refused:
                yield permission.due_at
        for channel in self.channels.values():
            if channel.used and not channel.is_asked:
                yield channel.due_at
            if channel.is_bound:
                yield channel.expires_at
