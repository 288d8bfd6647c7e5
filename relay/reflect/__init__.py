"""A UDP reflector: whatever comes to its port goes back to where it came from.

Some NATs and carriers drop heartbeats that nobody answers; this answers them.
"""

from __future__ import annotations
