"""Two programs of ours that ping each other all the time, ``iceagent connect``: each has a process of its own.

Their descriptions are in two files, *mine* and *theirs* of each. Where signalling is to be frozen later, somebody
carries a copy from one end to the other until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.survival.homes import Homes
from bench.survival.record import INTERVAL_S, SETTLE_S, Heard, Look, Record, Talkers, Told
from iceagent import IceServer
from iceagent.lab import LabError

__all__ = ["Programs", "pinging"]

CONNECT_LIMIT_S = 15.0
LOOK_EVERY_S = 0.02
CARRY_EVERY_S = 0.02
# A ping that is younger may still be answered.
LOSS_AGE_S = 0.5
LINE_LIMIT = 1 << 20


class Program:
    """One end.

    Attributes:
        process: of ``iceagent connect``.
        told: its lines but those of pings.
        echoed: each ping's answer, by its number.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.told: list[Told] = []
        self.echoed: dict[int, Heard] = {}
        # Of its monotonic clock, when its own began: the shortest way that a line took tells.
        self._started = time.monotonic()

    async def follow(self) -> None:
        """Read its lines, to the end."""
        reader = asyncio.StreamReader(limit=LINE_LIMIT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self.process.stdout
        )
        with contextlib.closing(transport):
            while text := await reader.readline():
                self._take(json.loads(text))

    def _take(self, line: dict[str, Any]) -> None:
        t, name = line.pop("t"), line.pop("event")
        self._started = min(self._started, time.monotonic() - t) if self.told else time.monotonic() - t
        at = self._started + t
        if name == "ping.echoed":
            self.echoed[line["seq"]] = Heard(at, at - line["rtt_ms"] / 1000)
        else:
            self.told.append(Told(at, name, line))

    def record(self) -> Record:
        """What there is by now."""
        old = [seq for seq, heard in self.echoed.items() if heard.at <= time.monotonic() - LOSS_AGE_S]
        count = max(old, default=-1) + 1
        return Record(
            name=self.name,
            heard=sorted(self.echoed.values()),
            sent=max(self.echoed, default=-1) + 1,
            lost=count - sum(seq < count for seq in self.echoed),
            told=list(self.told),
            has_ended=self.process.poll() is not None,
        )


class Programs(Talkers):
    """Both of them."""

    def __init__(self, a: Program, b: Program) -> None:
        self.a, self.b = a, b

    async def look(self, name: str) -> Look | None:
        """Where data of an end goes; the base is not told."""
        path = self._program(name).record().path
        if path is None:
            return None
        local, remote = (path[end]["address"].rpartition(":")[0] for end in ("local", "remote"))
        return Look(path["kind"], (local, remote), "")

    async def records(self) -> tuple[Record, Record]:
        """What there is by now, of both."""
        return self.a.record(), self.b.record()

    def stop(self, name: str) -> None:
        """SIGSTOP an end's process."""
        os.kill(self._program(name).process.pid, signal.SIGSTOP)

    def cont(self, name: str) -> None:
        """SIGCONT it."""
        os.kill(self._program(name).process.pid, signal.SIGCONT)

    def _program(self, name: str) -> Program:
        return self.a if name == "a" else self.b


@asynccontextmanager
async def pinging(
    homes: Homes, *, controlling: str = "a", settle_s: float = SETTLE_S, is_frozen: bool = False
) -> AsyncIterator[Programs]:
    """Programs on the machines of these homes have been pinging for a while.

    Args:
        homes: where; with their servers.
        controlling: ``a`` or ``b``.
        settle_s: seconds that they have been pinging.
        is_frozen: signalling is, from then on.
    """
    folder = homes.a.folder / "signalling"
    folder.mkdir()
    a, b = folder / "a", folder / "b"
    read_by_a, read_by_b = (folder / "b-copy", folder / "a-copy") if is_frozen else (b, a)
    programs = []
    for name, machine, mine, theirs in (("a", homes.a, a, read_by_a), ("b", homes.b, b, read_by_b)):
        command = [sys.executable, "-P", "-m", "iceagent", "connect", "--json", "--no-portmap"]
        command += ["--role", "controlling" if name == controlling else "controlled"]
        command += ["--out", str(mine), "--in", str(theirs), "--ping", str(INTERVAL_S)]
        command += ["--servers-file", str(_servers_file(folder / f"servers-{name}", homes.servers))]
        process = machine.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        programs.append(Program(name, process))
    tasks = [asyncio.create_task(program.follow()) for program in programs]
    carrying = asyncio.create_task(_carry((a, read_by_b), (b, read_by_a))) if is_frozen else None
    try:
        ends_at = time.monotonic() + CONNECT_LIMIT_S
        while not all(program.echoed for program in programs):
            if time.monotonic() > ends_at:
                raise LabError(f"two programs did not connect within {CONNECT_LIMIT_S:.0f} s")
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(settle_s)
        if carrying is not None:
            carrying.cancel()
        yield Programs(*programs)
    finally:
        for program in programs:
            # It may be stopped.
            program.process.kill()
        for task in (*tasks, *([] if carrying is None else [carrying])):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(*ways: tuple[Path, Path]) -> None:
    """Copy each file to where the other end reads it, whenever it is another one."""
    texts: dict[Path, bytes] = {}
    while True:
        for source, target in ways:
            text = source.read_bytes() if source.exists() else b""
            if text and text != texts.get(source):
                texts[source] = text
                new = target.with_suffix(".new")
                new.write_bytes(text)
                os.replace(new, target)
        await asyncio.sleep(CARRY_EVERY_S)


def _servers_file(path: Path, servers: Sequence[IceServer]) -> Path:
    """The servers as a W3C list, which ``--servers-file`` reads; the password is the laboratory's."""
    entries = [{"urls": each.urls, "username": each.username, "credential": each.credential} for each in servers]
    path.write_text(json.dumps([{key: value for key, value in entry.items() if value} for entry in entries]))
    return path
