"""The fixtures of our own pytest plugin, whether or not the package is installed (then pytest finds them by itself)."""

from __future__ import annotations

from iceagent.testing.pytest_plugin import (
    iceagent_internet,
    iceagent_network,
    iceagent_run,
    iceagent_seed,
    iceagent_virtual_loop,
)

__all__ = ["iceagent_internet", "iceagent_network", "iceagent_run", "iceagent_seed", "iceagent_virtual_loop"]
