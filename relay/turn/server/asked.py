"""What is asked of a TURN server, and by whom?

A signed request with where it came from: the handlers of ``core.py``, ``allocate.py`` and ``tcp.py`` take one. Some are
answered at once, those that wait for a connection later. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from iceagent.net.address import TransportAddress
from relay.stun import Message
from relay.turn.server.auth import Identity

__all__ = ["Asked", "FiveTuple"]

FiveTuple = tuple[TransportAddress, TransportAddress]
"""Our end and the client's; over what is clear from where it is used."""


class Asked(NamedTuple):
    """A request that is authentic.

    Attributes:
        request: itself.
        base: our end of the five-tuple that it came on.
        client: the other one.
        identity: who signed it.
    """

    request: Message
    base: TransportAddress
    client: TransportAddress
    identity: Identity

    @property
    def five_tuple(self) -> FiveTuple:
        """Where it came from, and where the answer goes."""
        return self.base, self.client
