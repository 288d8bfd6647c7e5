"""How does a test hold an ICE agent of another make?

:func:`compile_peer` builds ``libnice_peer.c``, a small program around one libnice agent. :class:`LibnicePeer` runs it
as a child process and speaks its protocol of lines (explained at the top of the C file) on stdin and stdout::

    async with await LibnicePeer.start(program, controlling=False) as peer:
        await peer.add_remote([*our_lines, "a=end-of-candidates"])
        their_lines = await peer.local_lines()
        await peer.wait_state("ready")
        await peer.send(b"hello")

Everything that waits has a limit in seconds and ends in :class:`LibniceError` with what the program has said so far.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from iceagent.net.address import TransportAddress, parse_address

__all__ = ["LibniceError", "LibnicePeer", "MissingPart", "compile_peer"]

SOURCE = Path(__file__).with_name("libnice_peer.c")
MODULE = "nice"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
COMPILE_TIMEOUT_S = 60.0

END_OF_CANDIDATES = "a=end-of-candidates"
TIMEOUT_S = 10.0
"""Libnice connects over loopback within a second; the rest is room for a busy machine."""
EXIT_TIMEOUT_S = 5.0
LINE_LIMIT = 1 << 18
"""Bytes: twice the largest datagram, in hexadecimal, with its keyword."""
DATAGRAM_LIMIT = 4096
"""Datagrams that wait for :meth:`LibnicePeer.recv`; later ones are dropped and counted."""
LOG_LIMIT = 200


class MissingPart(RuntimeError):
    """The compiler, pkg-config or libnice is not there, or the program does not compile with them."""


class LibniceError(AssertionError):
    """The peer did not do in time what the test expects, has ended, or could not obey a line."""


def compile_peer(tmp: Path, *, environment: Mapping[str, str] | None = None) -> Path:
    """Compile the peer into the folder ``tmp``, unless it is there already and no older than its source.

    Args:
        tmp: where the program is, or will be; the folder exists.
        environment: environment of the compiler and of pkg-config; this process's own by default.

    Returns:
        The path of the program.

    Raises:
        MissingPart: with what is missing and how to get it, or with what the compiler said.
    """
    program = tmp / SOURCE.stem
    if program.exists() and program.stat().st_mtime >= SOURCE.stat().st_mtime:
        return program
    variables = dict(os.environ if environment is None else environment)
    pkg_config, gcc = _tool("pkg-config", variables), _tool("gcc", variables)
    flags = _run([pkg_config, "--cflags", "--libs", MODULE], variables).split()
    _run([gcc, "-std=c11", "-O1", *WARNINGS, "-o", str(program), str(SOURCE), *flags], variables)
    return program


def _tool(name: str, variables: Mapping[str, str]) -> str:
    path = shutil.which(name, path=variables.get("PATH", os.defpath))
    if path is None:
        raise MissingPart(f"{name} is not installed; python tests/provision.py installs what these tests need")
    return path


def _run(command: Sequence[str], variables: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingPart(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        hint = "python tests/provision.py installs what these tests need"
        raise MissingPart(f"{' '.join(command)}: exit status {done.returncode}; {hint}\n{done.stderr}")
    return done.stdout


class LibnicePeer:
    """One libnice agent in a child process: one stream, one component, UDP.

    Make one with :meth:`start`; leaving the ``async with`` block ends the process, and raises :class:`LibniceError` if
    it crashed.

    Attributes:
        states: every component state that was reported, in order: ``gathering``, ``connecting``, ``connected``,
            ``ready``, ``failed``, ``disconnected``.
        selections: every selected pair that was reported, in order, each as (local, remote).
        errors: the lines that the peer could not obey, each as ``REASON: LINE``.
        options: what the agent is set to, by property name, read back from libnice.
        log: the last lines that are no part of the protocol, such as GLib's warnings.
        dropped: datagrams that came while :data:`DATAGRAM_LIMIT` others waited for :meth:`recv`.
    """

    def __init__(self, process: Process) -> None:
        self.states: list[str] = []
        self.selections: list[tuple[TransportAddress, TransportAddress]] = []
        self.errors: list[str] = []
        self.options: dict[str, bool] = {}
        self.log: deque[str] = deque(maxlen=LOG_LIMIT)
        self.dropped = 0
        self._process = process
        self._local: list[str] = []
        self._received: deque[bytes] = deque()
        self._changed = asyncio.Condition()
        self._ended = False
        self._killed = False
        self._is_echoing = False
        self._reader = asyncio.create_task(self._read(), name="libnice_peer stdout")

    @classmethod
    async def start(
        cls,
        program: Path,
        *,
        controlling: bool,
        addresses: Iterable[str] = ("127.0.0.1",),
        stun: TransportAddress | None = None,
        turn: TransportAddress | None = None,
        account: tuple[str, str] = ("", ""),
        nomination: Literal["regular", "aggressive"] = "regular",
        renomination: bool = False,
        trickle: bool = False,
        consent: bool = False,
        prefix: Sequence[str] = (),
    ) -> Self:
        """Start a peer; it gathers at once.

        Args:
            program: what :func:`compile_peer` returned.
            controlling: the role it begins with (RFC 8445, 6.1.1).
            addresses: IP addresses it gathers on, and no others; none at all means every interface but loopback.
            stun: a STUN server for server-reflexive candidates. Libnice 0.1.21 asks it in the manner of RFC 3489: its
                requests have no magic cookie, and an answer counts only with all 16 bytes of their transaction id.
            turn: a TURN server, over UDP, for a relayed candidate.
            account: user name (without a colon) and password at that server.
            nomination: how it nominates while controlling (RFC 5245); RFC 8445 knows ``regular`` only.
            renomination: whether it obeys a NOMINATION attribute.
            trickle: whether it tells candidates as it finds them (RFC 8838). It takes ours at any time either way.
                Libnice 0.1.21 notes the end of our candidates but never acts on it: with trickle too, it gives up 7 s
                after the last check began that nobody answers.
            consent: whether it needs our consent to go on sending (RFC 7675).
            prefix: a command that runs the peer, such as ``("ip", "netns", "exec", NAME)``.
        """
        command = [*prefix, str(program), f"--controlling={int(controlling)}", f"--{nomination}"]
        command += [f"--address={address}" for address in addresses]
        command += [f"--stun={stun}"] if stun is not None else []
        command += [f"--turn={':'.join(account)}@{turn}"] if turn is not None else []
        switches = {"--renomination": renomination, "--trickle": trickle, "--consent": consent}
        command += [switch for switch, is_on in switches.items() if is_on]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, limit=LINE_LIMIT
        )
        return cls(process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = await self.close()
        if status != 0 and not self._killed and kind is None:
            raise LibniceError(f"exit status {status}{self._story()}")

    async def add_remote(self, lines: Iterable[str]) -> None:
        """Tell it about our side: ``a=ice-ufrag:``, ``a=ice-pwd:``, ``a=candidate:`` and ``a=end-of-candidates`` lines.

        May be called again with more; candidates wait until both credentials are known. Other attributes are ignored.
        """
        await self._say(*lines)

    async def send(self, data: bytes) -> None:
        """Send one datagram over the selected pair; ``errors`` gets a line if there is none."""
        await self._say(f"send {data.hex()}")

    async def echo(self, is_on: bool = True) -> None:
        """Return every datagram over the selected pair, or no longer; :meth:`recv` sees them all the same.

        In force when this returns: the peer reads its stdin and its socket in no fixed order, so it confirms.
        """
        await self._say("echo on" if is_on else "echo off")
        await self._wait(lambda: self._is_echoing == is_on, "confirmation of echo", TIMEOUT_S)

    async def local_lines(self, timeout_s: float = TIMEOUT_S) -> list[str]:
        """Its credentials and candidates with ``a=end-of-candidates`` as the last line, once gathering is over."""
        await self._wait(lambda: END_OF_CANDIDATES in self._local, "end of candidates", timeout_s)
        return list(self._local)

    async def trickled_lines(self, timeout_s: float = TIMEOUT_S) -> AsyncIterator[str]:
        """The lines of :meth:`local_lines`, each as soon as it is there; ``timeout_s`` is for each."""
        line, index = "", 0
        while line != END_OF_CANDIDATES:
            line, index = await self._local_line(index, timeout_s), index + 1
            yield line

    async def recv(self, timeout_s: float = TIMEOUT_S) -> bytes:
        """The next datagram that reached it, in order of arrival."""
        await self._wait(lambda: len(self._received) > 0, "datagram", timeout_s)
        return self._received.popleft()

    async def wait_state(self, name: str, timeout_s: float = TIMEOUT_S) -> None:
        """Return once its component has been in this state, be it that it has left it since."""
        await self._wait(lambda: name in self.states, f"state {name}", timeout_s)

    async def wait_selected(
        self,
        local: TransportAddress | None = None,
        remote: TransportAddress | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> tuple[TransportAddress, TransportAddress]:
        """Return its selected pair as (local, remote) once there is one with these addresses; ``None`` means any."""

        def is_selected() -> bool:
            pair = self.selected
            return pair is not None and local in (None, pair[0]) and remote in (None, pair[1])

        await self._wait(is_selected, f"selected pair {local or 'any'} {remote or 'any'}", timeout_s)
        return self.selections[-1]

    async def wait_error(self, timeout_s: float = TIMEOUT_S) -> str:
        """The first line that it could not obey, as ``REASON: LINE``, once there is one."""
        await self._wait(lambda: len(self.errors) > 0, "error", timeout_s)
        return self.errors[0]

    async def kill(self) -> None:
        """End the process without a word: a peer that vanishes. Its sockets are closed by the system."""
        self._killed = True
        if self._process.returncode is None:
            self._process.kill()
        await self.close()

    async def close(self) -> int:
        """End the process by the end of its stdin, by force if that does not help. Idempotent.

        Returns:
            The exit status: 0 after a clean end, negative the number of the signal that ended it.
        """
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                status = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        await self._reader
        return status

    @property
    def selected(self) -> tuple[TransportAddress, TransportAddress] | None:
        """The selected pair as (local, remote), or ``None`` as long as there was none."""
        return self.selections[-1] if self.selections else None

    async def _say(self, *lines: str) -> None:
        stdin = self._process.stdin
        if stdin is None or self._ended:
            raise LibniceError(f"the peer has ended{self._story()}")
        stdin.write("".join(f"{line}\n" for line in lines).encode())
        try:
            await stdin.drain()
        except ConnectionError as error:
            raise LibniceError(f"the peer has ended{self._story()}") from error

    async def _local_line(self, index: int, timeout_s: float) -> str:
        await self._wait(lambda: len(self._local) > index, "further local line", timeout_s)
        return self._local[index]

    async def _wait(self, is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: is_so() or self._ended)
        except TimeoutError as error:
            raise LibniceError(f"no {what} within {timeout_s} s{self._story()}") from error
        if not is_so():
            raise LibniceError(f"no {what}: the peer has ended{self._story()}")

    def _story(self) -> str:
        facts = {"states": self.states, "selections": self.selections, "errors": self.errors, "log": list(self.log)}
        return "".join(f"\n  {name}: {value}" for name, value in facts.items() if value)

    async def _read(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None and (line := await stdout.readline()):
                async with self._changed:
                    self._on_line(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        finally:
            # Those who wait must not wait in vain, whatever ended this; close() raises it again.
            async with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _on_line(self, line: str) -> None:
        keyword, _, rest = line.partition(" ")
        if line.startswith("a="):
            self._local.append(line)
        elif keyword == "recv":
            self._on_datagram(bytes.fromhex(rest))
        elif keyword == "state":
            self.states.append(rest)
        elif keyword == "selected":
            local, _, remote = rest.partition(" ")
            self.selections.append((parse_address(local), parse_address(remote)))
        elif keyword == "echo":
            self._is_echoing = rest == "on"
        elif keyword == "error":
            self.errors.append(rest)
        elif keyword == "options":
            self.options = {name: value == "1" for name, _, value in (item.partition("=") for item in rest.split())}
        else:
            self.log.append(line)

    def _on_datagram(self, data: bytes) -> None:
        if len(self._received) < DATAGRAM_LIMIT:
            self._received.append(data)
        else:
            self.dropped += 1
