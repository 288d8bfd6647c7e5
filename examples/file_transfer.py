"""A file from one Python program to another, over a WebRTC data channel on iceagent.

    pip install 'iceagent[webrtc]'
    python examples/file_transfer.py send film.mkv --out offer.sdp --in answer.sdp --server stun:stun.example.org
    python examples/file_transfer.py receive films --in offer.sdp --out answer.sdp --server stun:stun.example.org

How the two texts travel is up to you: a synchronised folder, ``scp``, a chat window; ``-`` instead of a file's name
copies and pastes. A text that was read is removed: it is of no use to a second session. Both on one machine, to see it
work: add ``--loopback`` to each, and leave the server out. With a relay: ``--server turn:HOST --username … --credential
…``, or a TURN server beside the STUN server. A server that gives nothing is told of on stderr, and the rest goes on.

On the channel: the sender's first message is the file's name and size, in JSON; the file follows in pieces, and then
its SHA-256. The receiver answers with its own, or with what is wrong.

Exit code: 0 both have the same file, 1 there is no path, or the file did not arrive, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCSessionDescription

import iceagent
from iceagent.rtc import IceCandidateError, PeerConnection

# Every WebRTC implementation takes a message of this size.
PIECE = 16 * 1024
# So much waits in a channel at most; it is filled up when half of it has gone.
BUFFER = 1 << 20
LOOK_EVERY_S = 0.1
# So long the receiver waits for the sender to hang up, which has the last word to read.
LAST_WORD_S = 10.0

Show = Callable[[int, int], None]
"""Called with the bytes so far and the bytes in all."""


class TransferFailed(Exception):
    """The file did not arrive; the message says why."""


# --- the transfer: an open channel, and a file ------------------------------------------------------------------------


class Sending:
    """Sends a file over a channel that is open."""

    def __init__(self, channel: RTCDataChannel, path: Path, show: Show) -> None:
        self._channel = channel
        self._path = path
        self._show = show
        self._answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._has_room = asyncio.Event()
        channel.bufferedAmountLowThreshold = BUFFER // 2
        channel.on("bufferedamountlow", self._has_room.set)
        channel.on("message", self._on_message)
        channel.on("close", self._on_close)

    async def run(self) -> str:
        """Send; returns the SHA-256, once the receiver has said the same.

        Raises:
            TransferFailed: the receiver does not take it, has got something else, or is gone.
            OSError: the file cannot be read.
        """
        digest, sent = hashlib.sha256(), 0
        size = self._path.stat().st_size
        self._say(name=self._path.name, size=size)
        for piece in _pieces(self._path, size):
            # Else all of the file would wait in memory.
            while self._channel.bufferedAmount > BUFFER and not self._answer.done():
                self._has_room.clear()
                await self._has_room.wait()
            if self._answer.done():
                break
            self._channel.send(piece)
            digest.update(piece)
            sent += len(piece)
            self._show(sent, size)
        if not self._answer.done():
            self._say(sha256=digest.hexdigest())
        answer = await self._answer
        if answer.get("sha256") != digest.hexdigest():
            raise TransferFailed(str(answer.get("error", "the receiver has something else")))
        return digest.hexdigest()

    def _say(self, **message: object) -> None:
        if self._channel.readyState != "open":
            raise TransferFailed("the receiver is gone")
        self._channel.send(json.dumps(message))

    def _on_message(self, message: str | bytes) -> None:
        if not self._answer.done():
            self._answer.set_result(_parsed(message))
            self._has_room.set()

    def _on_close(self) -> None:
        self._on_message('{"error": "the receiver is gone"}')


class Receiving:
    """Takes a file from a channel into a folder. Make it as soon as there is a channel: messages come at once."""

    def __init__(self, channel: RTCDataChannel, folder: Path, show: Show) -> None:
        self._channel = channel
        self._folder = folder
        self._show = show
        self._digest = hashlib.sha256()
        self._path: Path | None = None
        self._size = self._received = 0
        self._part: IO[bytes] | None = None
        self._part_name = ""
        self._end: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        channel.on("message", self._on_message)
        channel.on("close", self._on_close)

    async def run(self) -> tuple[Path, str]:
        """Where the file is, and its SHA-256, which is the sender's.

        Raises:
            TransferFailed: it did not arrive; then nothing is left of it.
        """
        try:
            return await self._end, self._digest.hexdigest()
        finally:
            self._clean_up()

    def _on_message(self, message: str | bytes) -> None:
        if self._end.done():
            return
        try:
            if self._path is None or self._part is None:
                self._begin(_parsed(message))
            elif isinstance(message, bytes):
                self._take(message, self._part)
            else:
                self._finish(_parsed(message), self._path, self._part)
        except (TransferFailed, OSError) as error:
            self._say(error=str(error))
            self._fail(error)

    def _begin(self, header: dict[str, Any]) -> None:
        name, size = header.get("name"), header.get("size")
        if not isinstance(name, str) or not isinstance(size, int) or size < 0:
            raise TransferFailed("a name and a size were expected")
        # The name is the sender's: no way out of the folder, and nothing that a terminal obeys.
        if not name.isprintable() or name in ("", ".", "..") or set(name) & {"/", os.sep}:
            raise TransferFailed(f"{name!r} is no name for a file here")
        if (self._folder / name).exists():
            raise TransferFailed(f"there is a file {name} already")
        self._path, self._size = self._folder / name, size
        # It gets its name when all of it is there.
        handle, self._part_name = tempfile.mkstemp(dir=self._folder, prefix=".part-")
        self._part = os.fdopen(handle, "wb")

    def _take(self, piece: bytes, part: IO[bytes]) -> None:
        self._received += len(piece)
        if self._received > self._size:
            raise TransferFailed(f"more than the {self._size} bytes came that were announced")
        part.write(piece)
        self._digest.update(piece)
        self._show(self._received, self._size)

    def _finish(self, trailer: dict[str, Any], path: Path, part: IO[bytes]) -> None:
        if self._received != self._size:
            raise TransferFailed(f"{self._received} bytes came, {self._size} were announced")
        if trailer.get("sha256") != self._digest.hexdigest():
            raise TransferFailed("the SHA-256 is another one than the sender's")
        part.close()
        os.replace(self._part_name, path)
        self._say(sha256=self._digest.hexdigest())
        self._end.set_result(path)

    def _clean_up(self) -> None:
        if self._part is not None:
            self._part.close()
            Path(self._part_name).unlink(missing_ok=True)

    def _say(self, **message: object) -> None:
        if self._channel.readyState == "open":
            self._channel.send(json.dumps(message))

    def _on_close(self) -> None:
        self._fail(TransferFailed("the sender is gone"))

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        for start in range(0, size, PIECE):
            yield file.read(min(PIECE, size - start))


def _parsed(message: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


# --- signalling: one text each way ------------------------------------------------------------------------------------


def tell(description: RTCSessionDescription, where: str) -> None:
    """Show a description, or put it into a file that only its owner may read: there is a password in it."""
    if where == "-":
        print(f"\nFor the other side, the empty line included:\n\n{description.sdp}", flush=True)
        return
    handle, name = tempfile.mkstemp(dir=Path(where).parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(description.sdp)
    # So that nobody reads a half of it.
    os.replace(name, where)


async def hear(kind: str, where: str) -> RTCSessionDescription:
    """Wait for the other side's description, for as long as it takes."""
    text = await (_pasted() if where == "-" else _found(Path(where)))
    return RTCSessionDescription(sdp=text, type=kind)


async def _found(path: Path) -> str:
    text = before = ""
    # The same twice: whoever brings it is done.
    while not text or text != before:
        await asyncio.sleep(LOOK_EVERY_S)
        before, text = text, _read(path)
    os.unlink(path)
    return text


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


async def _pasted() -> str:
    print("Paste the other side's text here, and an empty line:", flush=True)
    loop = asyncio.get_running_loop()
    pasted: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        lines: list[bytes] = []
        # Unbuffered, by a thread that nobody waits for: Ctrl-C ends the program, and not a read of the terminal.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            while (line := stdin.readline()) and (line.strip() or not lines):
                lines += [line] if line.strip() else []
        text = b"".join(lines).decode(errors="replace")
        loop.call_soon_threadsafe(lambda: pasted.done() or pasted.set_result(text))

    threading.Thread(target=read, daemon=True).start()
    return await pasted


# --- the two programs -------------------------------------------------------------------------------------------------


async def send(connection: PeerConnection, arguments: argparse.Namespace) -> str:
    opened = _opening(connection)
    channel = connection.createDataChannel("file")
    channel.on("open", lambda: opened.done() or opened.set_result(channel))
    # Nobody listens to "icecandidate", so this returns when all candidates are known: one text is enough.
    await connection.setLocalDescription(await connection.createOffer())
    tell(connection.localDescription, arguments.outbox)
    await connection.setRemoteDescription(await hear("answer", arguments.inbox))
    await opened
    _show_path(connection)
    digest = await Sending(channel, arguments.file, Progress("sent")).run()
    return f"sent {arguments.file.name}; the receiver has it with the same SHA-256, {digest}"


async def receive(connection: PeerConnection, arguments: argparse.Namespace) -> str:
    opened = _opening(connection)

    @connection.on("datachannel")
    def on_channel(channel: RTCDataChannel) -> None:
        if not opened.done():
            opened.set_result(Receiving(channel, arguments.folder, Progress("received")))

    await connection.setRemoteDescription(await hear("offer", arguments.inbox))
    if connection.sctp is None:
        raise TransferFailed("the text is no offer of a data channel")
    await connection.setLocalDescription(await connection.createAnswer())
    tell(connection.localDescription, arguments.outbox)
    receiving = await opened
    _show_path(connection)
    path, digest = await receiving.run()
    await _hung_up(connection)
    return f"received {path}, with the sender's SHA-256, {digest}"


def _opening(connection: PeerConnection) -> asyncio.Future[Any]:
    """For what is there once the connection stands; with an exception if it never does."""
    opened = asyncio.get_running_loop().create_future()

    @connection.on("connectionstatechange")
    async def on_change() -> None:
        # "disconnected" may pass by itself. "failed" may end too, by an ICE restart, which has to be signalled: here,
        # nobody would hear of it. Closing the connection closes its channels, and they tell the transfer.
        if connection.connectionState == "failed":
            await connection.close()
        if connection.connectionState == "closed" and not opened.done():
            opened.set_exception(TransferFailed("there is no path to the other side"))
            # It may be that something else went wrong, and nobody waits for it any more.
            opened.exception()

    return opened


async def _hung_up(connection: PeerConnection) -> None:
    closed = asyncio.Event()

    @connection.on("connectionstatechange")
    def on_change() -> None:
        if connection.connectionState == "closed":
            closed.set()

    try:
        async with asyncio.timeout(LAST_WORD_S):
            if connection.connectionState != "closed":
                await closed.wait()
    except TimeoutError:
        pass


def _complain(error: IceCandidateError) -> None:
    print(f"{error.url or error.address}: {error.errorText}", file=sys.stderr, flush=True)


def _show_path(connection: PeerConnection) -> None:
    def show() -> None:
        if (path := connection.path()) is not None:
            print(f"connected: {path.local.address} → {path.remote.address} ({path.kind})", flush=True)

    show()
    # It may change at any time; the channel does not notice.
    connection.on("selectedcandidatepairchange", show)


class Progress:
    """A line for every tenth of a file."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._tenths = 0

    def __call__(self, done: int, size: int) -> None:
        if done * 10 // size > self._tenths:
            self._tenths = done * 10 // size
            print(f"{self._verb} {self._tenths * 10} % of {size:,} bytes", flush=True)


async def run(arguments: argparse.Namespace) -> str:
    account = {"username": arguments.username, "credential": arguments.credential}
    servers = [RTCIceServer(urls=url, **account) for url in arguments.server]
    # Nothing leaves the machine with --loopback, which a real program has no use for.
    options = {"loopback": True, "bind_hosts": ("127.0.0.1",)} if arguments.loopback else {}
    connection = PeerConnection(RTCConfiguration(iceServers=servers), **options)
    connection.on("icecandidateerror", _complain)
    try:
        return await (send if arguments.do == "send" else receive)(connection, arguments)
    finally:
        await connection.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A file from one program to another, over a WebRTC data channel.")
    commands = parser.add_subparsers(dest="do", required=True)
    for name, what in (("send", "file"), ("receive", "folder")):
        command = commands.add_parser(name)
        command.add_argument(what, type=Path)
        command.add_argument("--out", required=True, dest="outbox", metavar="FILE", help="our text; -: show it")
        command.add_argument("--in", required=True, dest="inbox", metavar="FILE", help="the other's; -: paste it")
        command.add_argument("--server", action="append", default=[], metavar="URL", help="stun:, turn: or turns:")
        command.add_argument("--username", help="for TURN")
        command.add_argument("--credential", help="for TURN")
        command.add_argument("--loopback", action="store_true", help="both sides are on this machine")
    arguments = parser.parse_args()
    if arguments.do == "send" and not arguments.file.is_file():
        parser.error(f"{arguments.file} is no file")
    if arguments.do == "receive" and not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder")
    return arguments


def main() -> int:
    arguments = parse()
    try:
        print(asyncio.run(run(arguments)))
    except iceagent.UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (TransferFailed, iceagent.IceAgentError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
