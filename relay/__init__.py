"""STUN and TURN: messages, client, server, the latching relay, the reflector, and when to leave a relay.

- :mod:`relay.stun`: the STUN codec, message integrity, transactions, stream framing (pure).

The names live in the submodules; importing ``relay`` alone loads none of them.
"""

from __future__ import annotations

__all__: list[str] = []
