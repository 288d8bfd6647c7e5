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

from iceagent.lab.errors import LabError, MissingProgram
from iceagent.lab.kinds import KINDS, Egress, Kind
from iceagent.lab.lab import Lab
from iceagent.lab.machines import Machine, Router
from iceagent.lab.wire import Impairment

__all__ = ["KINDS", "Egress", "Impairment", "Kind", "Lab", "LabError", "Machine", "MissingProgram", "Router"]
