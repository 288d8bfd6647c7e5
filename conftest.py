"""What every test relies on, and what it must not do.

Where a test lives says what it may use:

- ``tests/unit``, ``tests/sim``, ``tests/shell``, ``tests/fuzz``: no real socket, no waiting. Both are refused here: a
  connect, bind or send of an Internet socket and a real sleep raise :class:`Forbidden`. An event loop may be used (its
  own wake-up socket pair is no Internet socket), and where a loop keeps virtual time, sleeping on it is fine.
- ``tests/loopback``: real sockets on loopback addresses; no root, no system package.
- ``tests/interop``: foreign ICE agents, from system packages (see ``tests/provision.py``).
- ``tests/lab``: real NATs of the kernel, in network namespaces; root, and system packages.
- ``tests/browser``: Chromium behind real NATs; root, and system packages.

Hypothesis: profile ``ci`` (where the variable CI is set) draws the same examples every time; ``dev`` draws new ones.
Neither has a deadline: a slow machine is no bug.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parent
PURE_FOLDERS = tuple(ROOT / "tests" / name for name in ("unit", "sim", "shell", "fuzz"))
SOCKET_METHODS = ("bind", "connect", "connect_ex", "sendto", "sendmsg")

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


class Forbidden(AssertionError):
    """A test did what the folder it lives in does not allow."""


@pytest.fixture(autouse=True)
def _pure_tests_stay_pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(request.path.is_relative_to(folder) for folder in PURE_FOLDERS):
        return
    for name in SOCKET_METHODS:
        monkeypatch.setattr(socket.socket, name, _refuse_internet(name, getattr(socket.socket, name)))
    monkeypatch.setattr(time, "sleep", _refuse_sleep)
    patient_sleep = _refuse_real_waiting(asyncio.sleep)
    monkeypatch.setattr(asyncio, "sleep", patient_sleep)
    monkeypatch.setattr(asyncio.tasks, "sleep", patient_sleep)


def _refuse_internet(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, *args: Any) -> Any:
        if self.family != socket.AF_UNIX:
            raise Forbidden(f"socket.{name}{args!r}: no real sockets here; see conftest.py for where they are allowed")
        return method(self, *args)

    return guarded


def _refuse_sleep(seconds: float) -> None:
    raise Forbidden(f"time.sleep({seconds}): no waiting here; pass `now` in, or use a virtual clock")


def _refuse_real_waiting(sleep: Callable[..., Any]) -> Callable[..., Any]:
    async def guarded(delay: float, result: Any = None) -> Any:
        if delay > 0 and _keeps_wall_time(asyncio.get_running_loop()):
            raise Forbidden(f"asyncio.sleep({delay}): no waiting here; pass `now` in, or use a virtual clock")
        return await sleep(delay, result)

    return guarded


def _keeps_wall_time(loop: asyncio.AbstractEventLoop) -> bool:
    stock = isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is asyncio.BaseEventLoop.time
    return stock or type(loop).__module__.startswith("uvloop")
