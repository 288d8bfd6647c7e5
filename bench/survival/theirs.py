"""Two agents of aioice that talk all the time: each has a process of its own, inside its machine's network.

Descriptions are exchanged once: aioice has no ICE restart, so whether signalling still works is the same to it. It
takes one STUN server and one TURN server. What it tells of a path's death is the end of ``recv``, by ConnectionError.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bench.processes import Worker
from bench.side import obey
from bench.survival.record import CLOSED, INTERVAL_S, SETTLE_S, Heard, Look, Record, Talkers, Told

if TYPE_CHECKING:
    # Not in a measuring process.
    from bench.survival.homes import Homes

__all__ = ["Aioice", "aioice_talking", "serve"]

CONNECT_LIMIT_S = 15.0
REPLY_LIMIT_S = 10.0
# A datagram that is younger may still be on its way.
LOSS_AGE_S = 0.5
STUN_PORT = 3478


class Aioice(Talkers):
    """Both of them, from outside."""

    def __init__(self, a: Worker, b: Worker) -> None:
        self._workers = {"a": a, "b": b}

    async def look(self, name: str) -> Look | None:
        """Where data of an end goes."""
        found = await self.ask(name, "look")
        return None if found is None else Look(found["kind"], tuple(found["hosts"]), found["base"])

    async def records(self) -> tuple[Record, Record]:
        """What there is by now, of both."""
        found = {name: await self.ask(name, "record") for name in self._workers}
        return _record("a", found["a"], found["b"]["sent_at"]), _record("b", found["b"], found["a"]["sent_at"])

    async def close(self, name: str) -> None:
        """The application of an end closes its agent."""
        await self.ask(name, "close")

    async def report_loss(self, name: str) -> None:
        """It cannot be told."""

    async def fall_silent(self, is_silent: bool) -> None:
        """Send nothing for a while, or again."""
        for name in self._workers:
            await self.ask(name, "fall_silent", is_silent=is_silent)

    def stop(self, name: str) -> None:
        """SIGSTOP an end's process."""
        os.kill(self._workers[name].pid, signal.SIGSTOP)

    def cont(self, name: str) -> None:
        """SIGCONT it."""
        os.kill(self._workers[name].pid, signal.SIGCONT)

    async def ask(self, name: str, do: str, **arguments: Any) -> Any:
        """Send one of the ends a request, and wait for its reply."""
        return await asyncio.to_thread(self._workers[name].ask, do, REPLY_LIMIT_S, **arguments)


@asynccontextmanager
async def aioice_talking(homes: Homes, *, controlling: str = "a", settle_s: float = SETTLE_S) -> AsyncIterator[Aioice]:
    """aioice on the machines of these homes has been talking for a while."""
    from bench.survival.homes import PASSWORD, USER

    stun = (homes.stun.removeprefix("stun:"), STUN_PORT)
    turn = (homes.services[0].machine.address, STUN_PORT) if homes.services else None
    with contextlib.ExitStack() as stack:
        a, b = (
            stack.enter_context(
                Worker(
                    machine.namespace,
                    "bench.survival.theirs:serve",
                    controlling=name == controlling,
                    stun=stun,
                    turn=turn,
                    account=(USER, PASSWORD),
                )
            )
            for name, machine in zip("ab", homes.machines, strict=True)
        )
        talk = Aioice(a, b)
        mine, theirs = await asyncio.gather(talk.ask("a", "gather"), talk.ask("b", "gather"))
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await asyncio.gather(
                talk.ask("a", "connect", description=theirs), talk.ask("b", "connect", description=mine)
            )
        await asyncio.sleep(settle_s)
        yield talk


def _record(name: str, found: dict[str, Any], sent_at: list[float]) -> Record:
    """Of what an end has told, and of when the other end had sent each number; what it sent since is left out."""
    heard = {int(number): at for number, at in found["heard"].items() if int(number) < len(sent_at)}
    old = sum(at <= time.monotonic() - LOSS_AGE_S for at in sent_at)
    return Record(
        name=name,
        heard=sorted(Heard(at, sent_at[number]) for number, at in heard.items()),
        sent=len(found["sent_at"]),
        lost=old - sum(number < old for number in heard),
        told=[] if found["closed_at"] is None else [Told(found["closed_at"], CLOSED, {})],
    )


# --- in the talking processes ----------------------------------------------------------------------------------------


async def serve(
    controlling: bool, stun: tuple[str, int], turn: tuple[str, int] | None, account: tuple[str, str]
) -> None:
    """Obey until standard input ends: see the methods of :class:`_Side`."""
    # JSON has no tuples, and aioice compares addresses.
    relay = None if turn is None else (turn[0], turn[1])
    await obey(_Side(controlling, (stun[0], stun[1]), relay, account))


class _Side:
    """One agent, and what it is asked."""

    def __init__(
        self, controlling: bool, stun: tuple[str, int], turn: tuple[str, int] | None, account: tuple[str, str]
    ) -> None:
        import aioice

        self._connection = aioice.Connection(
            controlling,
            stun_server=stun,
            turn_server=turn,
            turn_username=account[0],
            turn_password=account[1],
            use_ipv6=False,
        )
        self._sent_at: list[float] = []
        self._heard: dict[int, float] = {}
        self._closed_at: float | None = None
        self._talking: list[asyncio.Task[None]] = []
        self._is_silent = False

    async def gather(self) -> list[Any]:
        connection = self._connection
        await connection.gather_candidates()
        candidates = [candidate.to_sdp() for candidate in connection.local_candidates]
        return [connection.local_username, connection.local_password, candidates]

    async def connect(self, description: list[Any]) -> None:
        import aioice

        connection = self._connection
        connection.remote_username, connection.remote_password, candidates = description
        for candidate in candidates:
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
        await connection.add_remote_candidate(None)
        await connection.connect()
        self._talking = [asyncio.create_task(self._speak()), asyncio.create_task(self._listen())]

    async def look(self) -> dict[str, Any] | None:
        pair = self._connection._nominated.get(1)
        if pair is None:
            return None
        ends = (pair.local_candidate, pair.remote_candidate)
        kind = "relay" if "relay" in {end.type for end in ends} else "direct"
        base = pair.local_candidate.related_address or pair.local_candidate.host
        return {"kind": kind, "hosts": [end.host for end in ends], "base": base}

    async def record(self) -> dict[str, Any]:
        return {"heard": self._heard, "sent_at": self._sent_at, "closed_at": self._closed_at}

    async def close(self) -> None:
        await self._connection.close()

    async def fall_silent(self, is_silent: bool) -> None:
        self._is_silent = is_silent

    async def _speak(self) -> None:
        """Say one number after the other, for as long as it is connected."""
        while True:
            if not self._is_silent:
                try:
                    await self._connection.send(b"%d" % len(self._sent_at))
                except ConnectionError:
                    return
                self._sent_at.append(time.monotonic())
            await asyncio.sleep(INTERVAL_S)

    async def _listen(self) -> None:
        """Hear the other end, until it is told that this is over."""
        try:
            while True:
                self._heard.setdefault(int(await self._connection.recv()), time.monotonic())
        except ConnectionError:
            self._closed_at = time.monotonic()
