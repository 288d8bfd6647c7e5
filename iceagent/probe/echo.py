"""Does data go through a relay?

An :class:`Echo` is a datagram to a relayed address from that same address. It goes to the server, out of the relayed
socket and in there again, and back: both directions of the data path, and no peer is needed. That a relayed address is
a peer like any other holds for our own server (``relay/turn/server/policy.py``); one behind a NAT may not reach itself,
which says nothing about other peers.
"""

from __future__ import annotations

import asyncio
import os
from random import Random

from iceagent.gather.relay_link import RelayLink
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import Host
from iceagent.probe.report import RelayStatus
from relay.turn import PeerData, PeerRefused

__all__ = ["Echo", "NoEcho"]

# How long an answer is waited for before the datagram is sent again, and at the end: 1.5 s in all.
WAITS_S = (0.1, 0.2, 0.4, 0.8)
# Bytes: what nobody can guess, and in one more the number of the datagram.
TOKEN_LENGTH = 12


class NoEcho(Exception):
    """It did not come back.

    Args:
        reason: why, a phrase for a person.

    Attributes:
        status: REFUSED: the server said so; NO_ANSWER: nothing came.
    """

    def __init__(self, reason: str, status: RelayStatus) -> None:
        super().__init__(reason)
        self.status = status


class Echo:
    """A datagram that goes from a relayed address to itself.

    Args:
        link: has the allocation.
        relayed: one of its relayed addresses.
        host: whose clock.
        system_rng: for what is in the datagram.
    """

    def __init__(self, link: RelayLink, relayed: TransportAddress, host: Host, system_rng: Random) -> None:
        self._link = link
        self._relayed = relayed
        self._host = host
        self._token = system_rng.getrandbits(8 * TOKEN_LENGTH).to_bytes(TOKEN_LENGTH, "big")
        self._sent_at: list[float] = []
        self._outcome: asyncio.Future[float | NoEcho] = asyncio.get_running_loop().create_future()

    async def run(self) -> float:
        """Send it, again where it does not come; returns the seconds that it took, 1.5 at most.

        Raises:
            NoEcho: it did not come back.
        """
        for number, wait_s in enumerate(WAITS_S):
            self._sent_at.append(self._host.now())
            error = self._link.send(self._token + bytes([number]), self._relayed)
            if error:
                raise NoEcho(f"{self._relayed} does not send ({os.strerror(error)})", RelayStatus.NO_ANSWER)
            await asyncio.wait([self._outcome], timeout=wait_s)
            if self._outcome.done():
                outcome = self._outcome.result()
                if isinstance(outcome, NoEcho):
                    raise outcome
                return outcome
        raise NoEcho(f"a datagram through {self._relayed} does not come back", RelayStatus.NO_ANSWER)

    def on_event(self, event: Event) -> None:
        """Something happened to the allocation."""
        if self._outcome.done():
            return
        if isinstance(event, PeerData) and event.relayed == event.peer == self._relayed:
            token, number = event.data[:TOKEN_LENGTH], event.data[TOKEN_LENGTH:]
            if token == self._token and len(number) == 1 and number[0] < len(self._sent_at):
                self._outcome.set_result(self._host.now() - self._sent_at[number[0]])
        elif isinstance(event, PeerRefused) and event.host == self._relayed.host:
            words = f"{event.code} {event.reason}".rstrip()
            self._outcome.set_result(NoEcho(f"{self._relayed} may not send ({words})", RelayStatus.REFUSED))
