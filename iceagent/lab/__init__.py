"""The NAT laboratory: an Internet with real NATs, of network namespaces, in one process; Linux only.

```python
from iceagent import Agent
from iceagent.lab import Lab

with Lab() as lab:
    alice = lab.machine("alice", behind=lab.router("port-restricted"))
    bob = lab.machine("bob", behind=lab.router("full-cone"))
    agent = Agent(host=alice.host, controlling=True)  # in a running loop
    ping = alice.popen(["ping", "-c", "1", bob.address])  # or any program
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["KINDS", "Egress", "Impairment", "Kind", "Lab", "LabError", "Machine", "MissingProgram", "Router"]

# Loaded when they are asked for (PEP 562): a part of the laboratory does not load the agent that plays in it.
_MODULES = {
    "KINDS": "kinds",
    "Egress": "kinds",
    "Impairment": "wire",
    "Kind": "kinds",
    "Lab": "lab",
    "LabError": "errors",
    "Machine": "machines",
    "MissingProgram": "errors",
    "Router": "machines",
}

if TYPE_CHECKING:
    from iceagent.lab.errors import LabError, MissingProgram
    from iceagent.lab.kinds import KINDS, Egress, Kind
    from iceagent.lab.lab import Lab
    from iceagent.lab.machines import Machine, Router
    from iceagent.lab.wire import Impairment
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
