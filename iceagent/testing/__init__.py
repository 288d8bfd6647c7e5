"""How do I test a program that uses ICE, without a network and without waiting?

- :class:`Network` carries datagrams between machines and through NATs, in memory; :func:`box_of_kind` makes the usual
  NATs by name, :class:`NatModel` any of RFC 4787.
- :class:`SessionPair` runs two cores on it, step by step, without asyncio.
- :class:`MemoryInternet` and :class:`MemoryHost` run whole agents on it, on a :class:`VirtualLoop`: :func:`run` is
  ``asyncio.run`` in virtual time.
- ``iceagent/testing/pytest_plugin.py`` has all of that as fixtures.

The names below are loaded when they are first used (PEP 562): the pytest plugin lives in this package, and a test run
that does not use it pays for nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Allocation",
    "Deadlock",
    "Exchange",
    "Fate",
    "FirewallModel",
    "IcmpError",
    "Livelock",
    "MemoryHost",
    "MemoryInternet",
    "NatModel",
    "NatNode",
    "Network",
    "Node",
    "Peer",
    "Pooling",
    "SessionPair",
    "StepLimit",
    "StunServerNode",
    "TimeLimit",
    "UnhandledError",
    "VirtualClock",
    "VirtualLoop",
    "VirtualTimeError",
    "add_stun_server",
    "box_of_kind",
    "run",
    "virtual_loop",
]

# Public name → the module that it is loaded from. Type checkers read the imports below instead; a test compares both.
_MODULES = {
    "Allocation": "allocation",
    "Deadlock": "clock",
    "Exchange": "peers",
    "Fate": "links",
    "FirewallModel": "firewall",
    "IcmpError": "network",
    "Livelock": "clock",
    "MemoryHost": "host",
    "MemoryInternet": "internet",
    "NatModel": "nat",
    "NatNode": "topology",
    "Network": "network",
    "Node": "topology",
    "Peer": "peers",
    "Pooling": "nat",
    "SessionPair": "peers",
    "StepLimit": "peers",
    "StunServerNode": "stun_server",
    "TimeLimit": "clock",
    "UnhandledError": "clock",
    "VirtualClock": "clock",
    "VirtualLoop": "clock",
    "VirtualTimeError": "clock",
    "add_stun_server": "stun_server",
    "box_of_kind": "catalogue",
    "run": "clock",
    "virtual_loop": "clock",
}

if TYPE_CHECKING:
    from iceagent.testing.allocation import Allocation
    from iceagent.testing.catalogue import box_of_kind
    from iceagent.testing.clock import (
        Deadlock,
        Livelock,
        TimeLimit,
        UnhandledError,
        VirtualClock,
        VirtualLoop,
        VirtualTimeError,
        run,
        virtual_loop,
    )
    from iceagent.testing.firewall import FirewallModel
    from iceagent.testing.host import MemoryHost
    from iceagent.testing.internet import MemoryInternet
    from iceagent.testing.links import Fate
    from iceagent.testing.nat import NatModel, Pooling
    from iceagent.testing.network import IcmpError, Network
    from iceagent.testing.peers import Exchange, Peer, SessionPair, StepLimit
    from iceagent.testing.stun_server import StunServerNode, add_stun_server
    from iceagent.testing.topology import NatNode, Node
else:

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
