"""Two talk, and the network between them breaks: how soon do they hear each other again, or know that they will not?

The table is ``bench/survival/rows.py``, the laboratory's NATs are real. Every row of every round is played by ours
twice, side by side, with either side controlling, and by aioice once, with the sides controlling in turn; each time in
a process and a laboratory of its own. They mostly wait, so that :data:`PAIRS` pairs talk at a time.

What was measured is appended to a file at once, and is not measured again by the same source code: a run that was
broken off goes on where it was. aioice is watched until both its agents have closed by themselves, for 45 s at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.cases import Options
from bench.processes import ROOT, WorkerFailed
from bench.results import Metric

if TYPE_CHECKING:
    # See netns.py: not in a measuring process.
    from bench.survival.row import Row

__all__ = ["run"]

OURS, AIOICE = "iceagent", "aioice"
PAIRS = 5
# Beyond what a row itself takes: building, connecting, closing.
LIMIT_S = 90.0
END_LIMIT_S = 10.0
FOLDERS = ("bench", "iceagent", "portmap", "relay")
MAX_TOLD = 600


class Job(NamedTuple):
    """What one process does.

    Attributes:
        row: a name.
        contender: who talks.
        number: of the round, from 1.
    """

    row: str
    contender: str
    number: int

    @property
    def roles(self) -> str:
        """Which side is controlling; a letter a pair."""
        if self.contender == OURS:
            return "ab"
        return "ab"[(self.number - 1) % 2]


def run(options: Options) -> list[Metric]:
    """Everything that has not been measured yet, and then the table."""
    from bench.survival.rows import LONG, ROWS

    rows = [row for row in ROWS if not options.rows or row.name in options.rows]
    path = options.results or Path(tempfile.gettempdir()) / "iceagent-survival.jsonl"
    store = Store(path, _source())
    jobs = [
        Job(row.name, contender, number)
        for number in range(1, options.rounds + 1)
        # Those that take long first, so that none of them is left alone at the end.
        for row in sorted(rows, key=lambda row: row.name not in LONG)
        for contender in (OURS, AIOICE)
        if contender == OURS or not row.not_theirs
    ]
    left = [job for job in jobs if job not in store.found]
    options.tell(f"survival: {len(jobs) - len(left)} of {len(jobs)} are in {path}")
    asyncio.run(_measure(left, store, options))
    return _metrics(rows, {job: store.found[job] for job in jobs if job in store.found})


class Store:
    """What was measured by this source code, in a file of JSON lines.

    Args:
        path: of the file; made when there is something to keep.
        source: what the source code is known by.

    Attributes:
        found: the entries, as they are in the file.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._source = source
        self.found: dict[Job, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                # Half a line, of a run that was ended while it wrote.
                continue
            if entry["source"] == source:
                self.found[Job(entry["row"], entry["contender"], entry["round"])] = entry

    def add(self, job: Job, busy: float, results: list[dict[str, Any]]) -> None:
        """Keep it."""
        entry = {
            "source": self._source,
            "row": job.row,
            "contender": job.contender,
            "round": job.number,
            "busy": busy,
            "results": results,
        }
        # On a line of its own, whatever the last one of another run looks like.
        with self._path.open("a+") as file:
            file.write(f"\n{json.dumps(entry)}\n" if self._is_torn() else f"{json.dumps(entry)}\n")
        self.found[job] = entry

    def _is_torn(self) -> bool:
        text = self._path.read_bytes()
        return bool(text) and not text.endswith(b"\n")


def _source() -> str:
    """What is measured and how: a digest of all source code."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# --- measuring -------------------------------------------------------------------------------------------------------


async def _measure(jobs: Sequence[Job], store: Store, options: Options) -> None:
    """In this order, as many at a time as there may be pairs."""
    pairs = asyncio.Semaphore(PAIRS)
    done = 0

    async def do(job: Job) -> None:
        nonlocal done
        clock = Processors()
        try:
            results = await _play(job)
        except WorkerFailed as error:
            outcome = str(error)
        else:
            busy = clock.busy
            store.add(job, busy, results)
            outcome = f"{_outcome(results)}; CPU {busy:.0%}"
        finally:
            for _ in job.roles:
                pairs.release()
        done += 1
        options.tell(f"survival: {done} of {len(jobs)}: {_words(job)}: {outcome}")

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            for _ in job.roles:
                await pairs.acquire()
            group.create_task(do(job))


async def _play(job: Job) -> list[dict[str, Any]]:
    """In a process of its own.

    Raises:
        WorkerFailed: it found nothing out; the message has the end of what it said.
    """
    from bench.survival.rows import row_named

    row = row_named(job.row)
    arguments = {"row": job.row, "contender": job.contender, "roles": job.roles}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.worker", "bench.survival.play:measure", json.dumps(arguments)),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        async with asyncio.timeout(LIMIT_S + row.longest_s):
            out, errors = await process.communicate()
    except TimeoutError:
        raise WorkerFailed("it did not end in time") from None
    finally:
        await _end(process)
    lines = out.decode().splitlines()
    if process.returncode != 0 or not lines:
        raise WorkerFailed(f"it failed: {errors.decode(errors='replace').strip()[-MAX_TOLD:]}")
    found: list[dict[str, Any]] = json.loads(lines[-1])
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    """As Ctrl-C does, if it has not ended: it takes its laboratory down then."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(END_LIMIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class Processors:
    """How busy all processors have been since this was made."""

    def __init__(self) -> None:
        self._began = self._read()

    @property
    def busy(self) -> float:
        """0 … 1."""
        idle, total = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return 1.0 - idle / total if total else 0.0

    @staticmethod
    def _read() -> tuple[int, int]:
        # proc(5): user nice system idle iowait irq softirq steal, guests being part of the first two.
        ticks = [int(word) for word in Path("/proc/stat").read_text().split(None, 9)[1:9]]
        return ticks[3] + ticks[4], sum(ticks)


def _words(job: Job) -> str:
    return f"round {job.number}, {job.row}, {job.contender}"


def _outcome(results: Sequence[dict[str, Any]]) -> str:
    values = ["never" if each["value"] is None else f"{each['value']:.2f}" for each in results]
    complaints = [complaint for each in results for complaint in each["complaints"]]
    return "; ".join([" and ".join(values), *complaints])


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """All results of a row."""

    row: Row
    ours: Sequence[dict[str, Any]]
    theirs: Sequence[dict[str, Any]]


def _metrics(rows: Sequence[Row], entries: dict[Job, dict[str, Any]]) -> list[Metric]:
    found = [_Found(row, _of(entries, row, OURS), _of(entries, row, AIOICE)) for row in rows]
    missing = [each.row.name for each in found if not each.ours]
    if missing:
        raise WorkerFailed(f"nothing was found out of {', '.join(missing)}")
    return [*(_metric(each) for each in found), _complaints(found, [entry["busy"] for entry in entries.values()])]


def _of(entries: dict[Job, dict[str, Any]], row: Row, contender: str) -> list[dict[str, Any]]:
    fitting = [entry for job, entry in entries.items() if (job.row, job.contender) == (row.name, contender)]
    return [result for entry in fitting for result in entry["results"]]


def _metric(found: _Found) -> Metric:
    row = found.row
    return Metric(
        name=f"{row.title}: {row.measure.name}",
        unit=row.measure.unit,
        ours=[_value(row, result) for result in found.ours],
        peer=[_value(row, result) for result in found.theirs],
        worst_at_most=row.bound,
        note=_note(found),
    )


def _value(row: Row, result: dict[str, Any]) -> float:
    """What is measured; of what never came, how long it was waited for."""
    if result["contender"] == AIOICE and row.is_about_being_told:
        # All that it tells is its own end.
        closed: list[float | None] = result["closed_s"][-1:] if row.state is None else result["closed_s"]
        times = [each for each in closed if each is not None]
        return max(times) if len(times) == len(closed) else float(result["watched_s"])
    return float(result["watched_s"] if result["value"] is None else result["value"])


def _note(found: _Found) -> str:
    """What a figure does not tell."""
    if not found.theirs:
        return f"aioice not measured: {found.row.not_theirs}"
    told = []
    for side, name in enumerate("ab"):
        times = [each["closed_s"][side] for each in found.theirs]
        closed = [each for each in times if each is not None]
        if closed:
            told.append(f"{name} closed after {statistics.median(closed):.1f} s in {len(closed)} of {len(times)}")
        else:
            told.append(f"{name} did not close")
    restart = " (which has no restart)" if found.row.signalling == "files" else ""
    never = sum(each["value"] is None for each in found.theirs)
    if never and not found.row.is_about_being_told:
        told.append(f"never in {never} of {len(found.theirs)}, and the figure is how long it was watched")
    return f"aioice{restart}: {', '.join(told)}"


def _complaints(found: Sequence[_Found], busy: Sequence[float]) -> Metric:
    """How often ours was not as it has to be, whatever it was."""
    bad = [(each.row.name, result) for each in found for result in each.ours if result["complaints"]]
    texts = sorted({f"{name}: {result['complaints'][0]}" for name, result in bad})
    runs = sum(len(each.ours) for each in found)
    return Metric(
        name="not as it has to be, any of it",
        unit="runs",
        ours=[float(len(bad))],
        at_most=0.0,
        note=f"of {runs}; processors busy {statistics.median(busy):.0%} ({max(busy):.0%} at most)"
        + "".join(f"\n    {text}" for text in texts),
    )
