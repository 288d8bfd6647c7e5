"""Whose is a process, or a folder, of a laboratory, and is its owner still alive?

Namespaces have no names and end by themselves. What a killed laboratory leaves behind is the programs that it started,
and its folder of logs. Both carry a mark: the environment variable ``ICEAGENT_LAB``, which children inherit, and the
folder's name. It says who the owner is: PID and time namespaces, process id, and when that process began, so that a
later process with the same id is not taken for it. The next laboratory sweeps what belongs to the dead, as does
``iceagent lab clean``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VARIABLE", "Owner", "Swept", "search_path", "sweep"]

VARIABLE = "ICEAGENT_LAB"
_FOLDER = "iceagent-lab-"
_MARK = re.compile(
    r"(?P<namespaces>[0-9]{1,20}\.[0-9]{1,20})\.(?P<pid>[0-9]{1,10})\.(?P<started>[0-9]{1,20})\.[0-9]{1,10}"
)
# For those that are killed: a process in the middle of a write to a slow disk does not end at once.
END_TIMEOUT_S = 1.0
# The position of the start time behind the program's name, in proc_pid_stat(5).
_STARTED_FIELD = 19


@dataclass(frozen=True, slots=True)
class Swept:
    """What was taken away: so many processes and folders of laboratories whose owners are dead."""

    processes: int
    folders: int


def search_path() -> str:
    """Where programs are looked for: on the PATH, and where system programs are, which are not on everybody's."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Owner:
    """This process, for as long as a laboratory of it is open.

    Attributes:
        mark: identifies the laboratory among all others; value of the variable.
        folder: its own, for logs and configurations.
    """

    def __init__(self) -> None:
        pid = os.getpid()
        self.mark = f"{_namespaces()}.{pid}.{_started(pid)}.{secrets.randbits(32)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{self.mark}-"))

    def close(self, networks: Collection[int] = ()) -> None:
        """End what is left of our processes, and of those in these network namespaces; remove the folder. Idempotent.

        Args:
            networks: by inode. They are open still: the kernel gives the number of a closed one to the next.
        """
        _end_processes(lambda pid, mark: mark == self.mark or (bool(networks) and _network_of(pid) in networks))
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep() -> Swept:
    """End the programs, and remove the folders, of laboratories whose owner is dead."""
    processes = _end_processes(lambda _, mark: mark is not None and _is_dead(mark))
    folders = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        mark = folder.name.removeprefix(_FOLDER).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):  # Another laboratory was quicker.
            if folder.stat(follow_symlinks=False).st_uid == os.geteuid() and _is_dead(mark):
                shutil.rmtree(folder, ignore_errors=True)
                folders += not folder.exists()
    return Swept(processes, folders)


def _end_processes(is_wanted: Callable[[int, str | None], bool]) -> int:
    if os.readlink("/proc/self") != str(os.getpid()):
        # These are the numbers of another PID namespace.
        return 0
    with contextlib.ExitStack() as stack:
        ended = _kill(is_wanted, stack)
        # With the last process of a machine its network is taken down, which takes the kernel a moment.
        deadline = time.monotonic() + END_TIMEOUT_S
        for fd in ended:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(1000 * max(0.0, deadline - time.monotonic()))
    return len(ended)


def _kill(is_wanted: Callable[[int, str | None], bool], stack: contextlib.ExitStack) -> list[int]:
    """Descriptors of those that are told to end, closed with ``stack``."""
    killed = []
    for pid in _pids():
        mark = _mark_of(pid)
        if pid == os.getpid() or not is_wanted(pid, mark):
            continue
        with contextlib.suppress(OSError):  # It ended meanwhile, or is somebody else's.
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
            # The number may be another process's by now; the descriptor cannot become one.
            if _mark_of(pid) == mark:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                killed.append(fd)
    return killed


def _pids() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            yield int(entry.name)


def _mark_of(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    for variable in variables.split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == VARIABLE.encode():
            return value.decode(errors="replace")
    return None


def _network_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _is_dead(mark: str) -> bool:
    """Whether the owner of this mark is dead; of another PID namespace, and of what is no mark, we cannot tell."""
    found = _MARK.fullmatch(mark)
    if found is None or found["namespaces"] != _namespaces():
        return False
    return _started(int(found["pid"])) != found["started"]


def _namespaces() -> str:
    """Those that process ids and start times are counted in."""
    return f"{os.stat('/proc/self/ns/pid').st_ino}.{os.stat('/proc/self/ns/time').st_ino}"


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks since the machine did; ``None``: there is no such process, or it has ended
    and nobody has asked how.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else fields[_STARTED_FIELD].decode()
