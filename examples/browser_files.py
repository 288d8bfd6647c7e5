"""Files between a browser and a Python program, over WebRTC data channels on iceagent.

    pip install 'iceagent[webrtc]' aiohttp
    python examples/browser_files.py film.mkv --into uploads

and open http://127.0.0.1:8080. The page takes the file from here, and sends one here. To reach it from elsewhere, let
the page alone go through something safe, as ``ssh -L 8080:127.0.0.1:8080 HOST`` is (browsers compute a SHA-256 on pages
of 127.0.0.1 and https only). The files take the way that ICE finds, with ``--server stun:HOST``, or ``--server
turn:HOST --username … --credential …``, through NATs as well.

Signalling is a WebSocket, at /signalling, with messages of JSON:

- to the page, first: ``{"servers": [...]}``, what ``new RTCPeerConnection`` takes as ``iceServers``
- from the page: ``{"type": "offer", "sdp": ...}``; to it: ``{"type": "answer", "sdp": ...}``. Another offer on the
  same WebSocket is an ICE restart; the same one is answered again.
- both ways, at any time: ``{"candidate": ...}``, what ``addIceCandidate`` takes, ``null`` after the last one
- to the page: ``{"path": {"kind": "direct" or "relay", "local": ..., "remote": ...}}``, whenever that changes

Each file has a data channel of its own, made by the page and called ``download`` or ``upload``. What is said on it:
file_transfer.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCSessionDescription
from file_transfer import Progress, Receiving, Sending, TransferFailed

import iceagent
from iceagent.rtc import IceCandidateError, PeerConnection, candidate_from_json, candidate_to_json

HERE = Path(__file__).parent
# Beside it, and nothing else is loaded.
PAGES = {"/": "browser_files.html", "/browser_files.js": "browser_files.js"}

# A description has some kilobytes.
MAX_MESSAGE = 64 * 1024
# A page whose machine has gone is noticed after a missing pong.
HEARTBEAT_S = 20.0


class Visit:
    """One page: its WebSocket, its connection, and what goes over it. All of it ends with the WebSocket."""

    def __init__(self, socket: web.WebSocketResponse, arguments: argparse.Namespace) -> None:
        self._socket = socket
        self._arguments = arguments
        self._transfers: set[asyncio.Task[None]] = set()
        self.connection = PeerConnection(configuration(arguments))
        # That somebody listens to "icecandidate" is what makes it trickle.
        self.connection.on("icecandidate", lambda candidate: self._tell(candidate=candidate_to_json(candidate)))
        self.connection.on("icecandidateerror", self._on_error)
        self.connection.on("selectedcandidatepairchange", self._on_path)
        self.connection.on("iceconnectionstatechange", self._on_state)
        self.connection.on("datachannel", self._on_channel)
        self._to_tell: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._telling = asyncio.ensure_future(self._tell_all())

    async def run(self) -> None:
        """Until the page is closed."""
        self._tell(servers=[server(url, self._arguments) for url in self._arguments.server])
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self._take(message.json())
        except (ValueError, KeyError) as error:
            # No JSON, no description, no candidate: that is no page of ours.
            print(f"nonsense from the page: {error}", flush=True)
        finally:
            self._telling.cancel()
            await self.connection.close()
            await asyncio.gather(*self._transfers)
            await self._socket.close()

    async def _take(self, message: dict[str, Any]) -> None:
        if "candidate" in message:
            # Of a kind that is newer than this program, perhaps.
            with contextlib.suppress(iceagent.UnsupportedCandidate):
                await self.connection.addIceCandidate(candidate_from_json(message["candidate"]))
            return
        offer = RTCSessionDescription(sdp=message["sdp"], type=message["type"])
        await self.connection.setRemoteDescription(offer)
        # This returns at once; candidates follow, and may be told before the answer is.
        await self.connection.setLocalDescription(await self.connection.createAnswer())
        answer = self.connection.localDescription
        self._tell(type=answer.type, sdp=answer.sdp)

    def _on_error(self, error: IceCandidateError) -> None:
        print(f"{error.url or error.address}: {error.errorText}", flush=True)

    def _on_path(self) -> None:
        if (path := self.connection.path()) is not None:
            self._tell(path={"kind": path.kind, "local": str(path.local.address), "remote": str(path.remote.address)})

    def _on_state(self) -> None:
        print(f"ICE: {self.connection.iceConnectionState}", flush=True)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label == "upload":
            # Made here and now, for its messages come at once.
            receiving = Receiving(channel, self._arguments.into, Progress("received"))
            transfer = self._receive(receiving)
        elif channel.label == "download":
            transfer = self._send(Sending(channel, self._arguments.file, Progress("sent")))
        else:
            channel.close()
            return
        task = asyncio.ensure_future(transfer)
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)

    async def _send(self, sending: Sending) -> None:
        try:
            print(f"sent {self._arguments.file.name}; SHA-256 {await sending.run()}", flush=True)
        except (TransferFailed, OSError) as error:
            print(f"not sent: {error}", flush=True)

    async def _receive(self, receiving: Receiving) -> None:
        try:
            path, digest = await receiving.run()
            print(f"received {path}; SHA-256 {digest}", flush=True)
        except (TransferFailed, OSError) as error:
            print(f"not received: {error}", flush=True)

    def _tell(self, **message: Any) -> None:
        self._to_tell.put_nowait(message)

    async def _tell_all(self) -> None:
        # One at a time, and in order.
        while not self._socket.closed:
            await self._socket.send_json(await self._to_tell.get())


async def signalling(arguments: argparse.Namespace, request: web.Request) -> web.WebSocketResponse:
    """A page has opened its WebSocket."""
    # Browsers let every page in the world open a WebSocket to this one, and say whose it is.
    if urlsplit(request.headers.get("Origin", "")).netloc != request.host:
        raise web.HTTPForbidden(text="of another page")
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE)
    await socket.prepare(request)
    request.app[SOCKETS].add(socket)
    try:
        await Visit(socket, arguments).run()
    finally:
        request.app[SOCKETS].discard(socket)
    return socket


SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])


async def hang_up(app: web.Application) -> None:
    """The program ends: so do all visits."""
    for socket in set(app[SOCKETS]):
        await socket.close()


def server(url: str, arguments: argparse.Namespace) -> dict[str, str]:
    """One of W3C's ``iceServers``."""
    is_turn = url.startswith("turn")
    return {"urls": url, **({"username": arguments.username, "credential": arguments.credential} if is_turn else {})}


def configuration(arguments: argparse.Namespace) -> RTCConfiguration:
    """Of our side; the page has the same servers."""
    return RTCConfiguration(iceServers=[RTCIceServer(**server(url, arguments)) for url in arguments.server])


def application(arguments: argparse.Namespace) -> web.Application:
    """The page, its script, and the WebSocket."""
    app = web.Application()
    app[SOCKETS] = set()
    for path, name in PAGES.items():
        app.router.add_get(path, partial(page, HERE / name))
    app.router.add_get("/signalling", partial(signalling, arguments))
    app.on_shutdown.append(hang_up)
    return app


async def page(path: Path, request: web.Request) -> web.FileResponse:
    """One of the files beside this one."""
    return web.FileResponse(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Files between a browser and this program, over WebRTC.")
    parser.add_argument("file", type=Path, help="that pages may take")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where what they send goes")
    parser.add_argument("--host", default="127.0.0.1", help="where the page is (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="see there (default: %(default)s)")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="stun:, turn: or turns:")
    parser.add_argument("--username", help="for TURN; the page is told, too")
    parser.add_argument("--credential", help="see there")
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        parser.error(f"{arguments.file} is no file")
    if not arguments.into.is_dir():
        parser.error(f"{arguments.into} is no folder")
    try:
        PeerConnection(configuration(arguments))
    except iceagent.UsageError as error:
        parser.error(str(error))
    try:
        # It prints the address, and ends with Ctrl-C.
        web.run_app(application(arguments), host=arguments.host, port=arguments.port, shutdown_timeout=1.0)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
