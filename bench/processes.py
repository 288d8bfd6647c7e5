"""How is a measurement put into a process of its own, and spoken to?

Memory allocators, caches and imports of one contender must not touch the other's: every contender of every round is a
fresh ``python -m bench.worker MODULE:FUNCTION ARGUMENTS``, in the namespace it is to be measured in. Requests and
replies are lines of JSON on its standard input and output.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from iceagent.lab.namespace import Namespace

__all__ = ["ROOT", "Worker", "WorkerFailed", "call", "cpu_of", "end"]

ROOT = Path(__file__).resolve().parents[1]

REPLY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
_CHUNK = 1 << 16


class WorkerFailed(Exception):
    """A measuring process ended, or did not reply in time; what it wrote on standard error is on ours."""


class Worker:
    """A measuring process; use it in a ``with`` block, which ends it.

    Args:
        namespace: where it runs.
        function: ``module:function``, a coroutine function.
        arguments: its keyword arguments, as JSON takes them.
    """

    def __init__(self, namespace: Namespace, function: str, **arguments: Any) -> None:
        self._function = function
        self._received = bytearray()
        self._process = namespace.popen(
            [sys.executable, "-m", "bench.worker", function, json.dumps(arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, timeout_s: float = REPLY_TIMEOUT_S, **arguments: Any) -> Any:
        """Send a request and wait for its reply."""
        self.send(do, **arguments)
        return self.reply(timeout_s)

    def send(self, do: str, **arguments: Any) -> None:
        """Send a request; :meth:`reply` gives the reply."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise WorkerFailed(f"{self._function} ended early") from error

    def reply(self, timeout_s: float = REPLY_TIMEOUT_S) -> Any:
        """The next line of the process.

        Raises:
            WorkerFailed: there is none.
        """
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerFailed(f"{self._function} did not reply within {timeout_s:.0f} s")
            chunk = os.read(stdout.fileno(), _CHUNK)
            if not chunk:
                raise WorkerFailed(f"{self._function} ended early")
            self._received += chunk
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return json.loads(line)


def call(namespace: Namespace, function: str, **arguments: Any) -> Any:
    """Run one coroutine function in a process of its own, and return what it returned."""
    with Worker(namespace, function, **arguments) as worker:
        return worker.reply()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, and close its pipes."""
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def cpu_of(pid: int) -> float:
    """Seconds of processor time of another process, all its threads, in steps of 10 ms."""
    # proc(5): utime and stime are the 14th and 15th; what is before the bracket may contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
