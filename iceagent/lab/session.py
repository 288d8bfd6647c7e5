"""One session of two agents in a laboratory: do they connect, over which pair, how fast, and does data go both ways?

Both sides gather, tell each other, and connect; the time runs from the moment that the later one was told. Ours play on
the running loop. An agent that opens its sockets by itself plays in a thread that is inside its machine's network, on
a loop of its own; so does any other asyncio program (:func:`run_inside`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.events import Event
from iceagent.lab.contenders import CONTENDERS, Contender, Relay
from iceagent.lab.errors import LabError
from iceagent.lab.machines import Machine
from iceagent.net.address import TransportAddress

__all__ = ["LIMIT_S", "Outcome", "Side", "connect", "run_inside"]

T = TypeVar("T")

LIMIT_S = 12.0
"""A session that is not connected by then has failed, whatever its agents still hope for."""

DATA_LIMIT_S = 2.0
# A direct path that is found by then follows a relayed one.
SETTLING_S = 3.0
DATA_STEP_S = 0.02
GATHER_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One end.

    Attributes:
        machine: where.
        late_s: seconds that it is told later than the other.
        on_event: hears every event of an agent of ours.
    """

    machine: Machine
    late_s: float = 0.0
    on_event: Callable[[Event], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a session ended.

    Attributes:
        connected: both sides said so, and data went both ways.
        elapsed_s: from the moment that the later side was told the other's description to the slower one's path;
            ``None``: not connected.
        remotes: types of the selected remote candidates, as the controlling and the controlled side see them.
        reason: why it is not connected; empty if it is.
    """

    connected: bool
    elapsed_s: float | None = None
    remotes: tuple[CandidateType, CandidateType] | None = None
    reason: str = ""

    @property
    def kind(self) -> str | None:
        """``direct`` or ``relay``; ``None``: not connected."""
        if self.remotes is None:
            return None
        return "relay" if CandidateType.RELAYED in self.remotes else "direct"

    def as_json(self) -> dict[str, Any]:
        """The fields of the event ``lab.result``."""
        return {
            "connected": self.connected,
            "kind": self.kind,
            "remotes": None if self.remotes is None else [each.value for each in self.remotes],
            "elapsed_ms": None if self.elapsed_s is None else round(self.elapsed_s * 1000, 3),
            "reason": self.reason,
        }


async def connect(
    controlling: Side,
    controlled: Side,
    *,
    agent: str = "iceagent",
    stun: TransportAddress | None,
    turn: Relay | None = None,
    config: Config | None = None,
    limit_s: float = LIMIT_S,
) -> Outcome:
    """Run a session to its end, and close both agents.

    Args:
        controlling: one end.
        controlled: the other.
        agent: a name of :data:`CONTENDERS`.
        stun: the laboratory's server.
        turn: the laboratory's relay; ``None``: there is none. With one, a session is watched for a while, until it has
            gone over to a direct path.
        config: of our agents.
        limit_s: see :data:`LIMIT_S`.
    """
    contender = CONTENDERS[agent]
    sides = (controlling, controlled)
    mail = _Mail(), _Mail()
    rounds: list[asyncio.Future[_Half]] = []
    for i, side in enumerate(sides):

        def play(side: Side = side, i: int = i) -> Coroutine[Any, Any, _Half]:
            def make() -> Contender:
                return contender(
                    side.machine, controlling=i == 0, stun=stun, turn=turn, config=config, on_event=side.on_event
                )

            return _play(make, mail[i], mail[1 - i], side.late_s, limit_s, SETTLING_S if turn else 0.0)

        rounds.append(
            asyncio.wrap_future(run_inside(side.machine, play))
            if contender.is_threaded
            else asyncio.ensure_future(play())
        )
    return _outcome(await asyncio.gather(*rounds))


def run_inside(machine: Machine, main: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run ``main()`` on a new loop in a thread that is inside a machine's network.

    Everything that it opens belongs there, whatever library opens it: this is how an asyncio program is put behind a
    NAT without a process of its own. So does what it leaves to the loop's threads (names that are looked up); threads
    that it starts otherwise are outside.
    """
    result: Future[T] = Future()

    def run() -> None:
        # From now on it cannot be cancelled: the program ends by itself.
        result.set_running_or_notify_cancel()
        try:
            machine.namespace.join()
            with asyncio.Runner() as runner:
                threads = ThreadPoolExecutor(
                    thread_name_prefix=f"inside {machine.name}", initializer=machine.namespace.join
                )
                runner.get_loop().set_default_executor(threads)
                result.set_result(runner.run(main()))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=f"inside {machine.name}", daemon=True).start()
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Half:
    """What one side saw; ``started_at`` and ``connected_at``: seconds, of the machine's monotonic clock."""

    started_at: float
    connected_at: float | None = None
    remote: CandidateType | None = None
    reason: str = ""


def _outcome(halves: list[_Half]) -> Outcome:
    one, other = halves
    if one.connected_at is None or other.connected_at is None or one.remote is None or other.remote is None:
        return Outcome(connected=False, reason=one.reason or other.reason)
    elapsed_s = max(one.connected_at, other.connected_at) - max(one.started_at, other.started_at)
    return Outcome(connected=True, elapsed_s=elapsed_s, remotes=(one.remote, other.remote))


class _Mail:
    """What a side tells, once; and its late candidates, to whoever takes them by then. Across threads.

    Attributes:
        description: what it gathered, or why not.
        is_done: it has seen what it wanted to see.
        is_connected: it has a path.
        is_direct: its path is.
        is_over: it has ended, one way or the other.
    """

    def __init__(self) -> None:
        self.description: Future[Any] = Future()
        self.is_done = False
        self.is_connected = False
        self.is_direct = False
        self.is_over = False
        self._late: list[Any] = []
        self._take: Callable[[Any], None] | None = None
        self._lock = threading.Lock()

    def put_late(self, candidate: Any) -> None:
        with self._lock:
            take = self._take
            if take is None:
                self._late.append(candidate)
                return
        take(candidate)

    def take_late(self, take: Callable[[Any], None]) -> None:
        """Call ``take`` on the running loop with every late candidate, also with those that came before."""
        loop = asyncio.get_running_loop()

        def on_loop(candidate: Any) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: that side has ended.
                loop.call_soon_threadsafe(take, candidate)

        with self._lock:
            self._take = on_loop
            waiting, self._late = self._late, []
        for candidate in waiting:
            on_loop(candidate)


async def _play(
    make: Callable[[], Contender], mine: _Mail, theirs: _Mail, late_s: float, limit_s: float, settling_s: float
) -> _Half:
    """One side: gather, tell, connect, see that data goes both ways, and where it goes in the end."""
    started_at = time.monotonic()
    contender = make()
    try:
        async with asyncio.timeout(GATHER_LIMIT_S):
            description = await contender.gather()
        contender.on_late(mine.put_late)
        mine.description.set_result(description)
        told = await asyncio.wrap_future(theirs.description)
        await asyncio.sleep(late_s)
        started_at = time.monotonic()
        deadline = asyncio.get_running_loop().time() + limit_s
        async with asyncio.timeout_at(deadline):
            connecting = asyncio.ensure_future(contender.connect(told))
            theirs.take_late(contender.take_late)
            await connecting
        connected_at = time.monotonic()
        mine.is_connected = True
        if not await _talk(contender, mine, theirs):
            return _Half(started_at=started_at, reason="connected, but data did not go both ways")
        await _settle(contender, mine, theirs, settling_s)
        types = contender.types
        return _Half(started_at=started_at, connected_at=connected_at, remote=None if types is None else types[1])
    except TimeoutError:
        return _Half(started_at=started_at, reason=f"not connected within {limit_s:g} s")
    except Exception as error:  # Whatever an agent of any make raises is how its session ended.
        return _Half(started_at=started_at, reason=str(error) or type(error).__name__)
    finally:
        mine.is_over = True
        if not mine.description.done():
            mine.description.set_exception(LabError("the other side did not gather"))
        await contender.close()


async def _settle(contender: Contender, mine: _Mail, theirs: _Mail, limit_s: float) -> None:
    """Wait for a direct path, on both sides, and a moment longer than it takes the second one."""
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        types = contender.types
        mine.is_direct = types is not None and CandidateType.RELAYED not in types
        if (mine.is_direct and theirs.is_direct) or theirs.is_over:
            break
        await asyncio.sleep(DATA_STEP_S)


async def _talk(contender: Contender, mine: _Mail, theirs: _Mail) -> bool:
    """Say hello, or, once anything came, that it was heard; until that has come, and the other side knows as much. The
    other side may be told much later, and has its time from then on.
    """
    heard: set[bytes] = set()

    async def listen() -> None:
        while True:
            heard.add(await contender.recv())
            mine.is_done |= b"heard" in heard

    listening = asyncio.ensure_future(listen())
    ends_at = math.inf
    try:
        while not (mine.is_done and theirs.is_done) and time.monotonic() < ends_at:
            if theirs.is_over or listening.done():
                break
            if theirs.is_connected:
                ends_at = min(ends_at, time.monotonic() + DATA_LIMIT_S)
            await contender.send(b"heard" if heard else b"hello")
            # A path that the other side has not chosen yet brings nothing: both sides say it again and again.
            await asyncio.wait([listening], timeout=DATA_STEP_S)
    finally:
        listening.cancel()
    return mine.is_done
