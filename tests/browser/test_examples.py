"""The example with a page: files in both directions, with the program behind one NAT and the browser behind another."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, WebSocket, expect

from iceagent.lab import Lab, Machine
from tests.browser.chromium import Chromium
from tests.browser.conftest import PASSWORD, USER

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser_files.py"
HERE = "127.0.0.1"
PORT = 8080
PATIENCE_S = 30.0
CONTENT = bytes(range(251)) * 8_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()

pytestmark = pytest.mark.natlab_needs("turnserver")


@dataclass
class Seen:
    """What a page has done.

    Attributes:
        told, heard: its messages over the WebSocket, each way.
        urls: all that it has loaded.
        errors: of its script.
        has_two_answers: as after an ICE restart.
    """

    told: list[dict[str, Any]] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    has_two_answers: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, page: Page) -> None:
        page.on("websocket", self._on_socket)
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text))

    def _on_socket(self, web_socket: WebSocket) -> None:
        web_socket.on("framesent", lambda text: self.told.append(json.loads(text)))
        web_socket.on("framereceived", self._on_heard)

    def _on_heard(self, text: str | bytes) -> None:
        self.heard.append(json.loads(text))
        if sum(message.get("type") == "answer" for message in self.heard) == 2:
            self.has_two_answers.set()


@contextlib.asynccontextmanager
async def program(machine: Machine, *arguments: str | Path) -> AsyncIterator[subprocess.Popen[str]]:
    """The example, from when it listens; ended by Ctrl-C."""
    command = [sys.executable, "-u", "-W", "error", str(EXAMPLE), *map(str, arguments)]
    process = machine.popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert f"http://{HERE}:{PORT}" in await asyncio.to_thread(process.stdout.readline)
        yield process
    finally:
        process.send_signal(signal.SIGINT)


@contextlib.asynccontextmanager
async def forwarded(near: Machine, far: Machine) -> AsyncIterator[None]:
    """What ``ssh -L 8080:127.0.0.1:8080`` does between two machines."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = far.namespace.socket(kind=socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HERE, PORT))
        other_reader, other_writer = await asyncio.open_connection(sock=sock)
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))

    listening = near.namespace.socket(kind=socket.SOCK_STREAM)
    listening.bind((HERE, PORT))
    async with await asyncio.start_server(forward, sock=listening):
        yield


@contextlib.asynccontextmanager
async def opened(machine: Machine) -> AsyncIterator[tuple[Page, Seen]]:
    """The page, connected."""
    async with Chromium(machine) as browser:
        page, seen = await browser.page(), Seen()
        seen.watch(page)
        await page.goto(f"http://{HERE}:{PORT}/")
        await expect(page.locator("#download")).to_be_enabled(timeout=PATIENCE_S * 1000)
        yield page, seen
        await page.close()
        assert seen.errors == []


async def download(page: Page) -> str:
    """SHA-256 of what the browser has stored, once the page says that it is right."""
    async with page.expect_download(timeout=PATIENCE_S * 1000) as info:
        await page.locator("#download").click()
    stored = await info.value
    await expect(page.locator("#result")).to_contain_text(f"downloaded film.bin, {len(CONTENT)} bytes, SHA-256 ")
    assert stored.suggested_filename == "film.bin"
    path = await stored.path()
    return await asyncio.to_thread(lambda: hashlib.sha256(path.read_bytes()).hexdigest())


async def upload(page: Page, file: Path) -> str:
    """What the page says in the end."""
    await page.locator("#upload").set_input_files(file)
    result = page.locator("#result")
    await expect(result).not_to_be_empty(timeout=PATIENCE_S * 1000)
    return await result.inner_text()


def credentials(sdp: str) -> set[str]:
    """The ICE user name fragments of a description."""
    found = {line for line in sdp.split("\r\n") if line.startswith("a=ice-ufrag:")}
    assert found
    return found


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """What is downloaded, and where uploads go."""
    film, uploads = tmp_path / "film.bin", tmp_path / "uploads"
    film.write_bytes(CONTENT)
    uploads.mkdir()
    return film, uploads


@pytest.mark.parametrize(
    ("here", "there", "kind"), [("port-restricted", "port-restricted", "direct"), ("symmetric", "symmetric", "relayed")]
)
async def test_files_go_both_ways(
    lab: Lab, servers: dict[str, str], files: tuple[Path, Path], here: str, there: str, kind: str
) -> None:
    """The program and the browser are behind NATs, and the page comes through a tunnel, as its header says."""
    film, uploads = files
    ours, theirs = (lab.machine(behind=lab.router(each)) for each in (here, there))
    url = f"turn:{servers['serve']}"
    account = ("--username", USER, "--credential", PASSWORD)
    async with program(ours, film, "--into", uploads, "--server", url, *account) as process, forwarded(theirs, ours):
        async with opened(theirs) as (page, seen):
            assert await download(page) == DIGEST
            note = film.with_name("note.bin")
            note.write_bytes(CONTENT)
            assert await upload(page, note) == f"uploaded note.bin, {len(CONTENT)} bytes, SHA-256 {DIGEST}"
            assert (uploads / "note.bin").read_bytes() == CONTENT
            await expect(page.locator("#path")).to_contain_text(f"{kind}: ")
            assert await page.locator("#state").inner_text() in ("connected", "completed")
            # The same name again: what is there is not replaced, and the page says why.
            assert await upload(page, note) == "there is a file note.bin already"
        process.send_signal(signal.SIGINT)
        said, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0
    assert f"sent film.bin; SHA-256 {DIGEST}\n" in said
    assert f"received {uploads / 'note.bin'}; SHA-256 {DIGEST}\n" in said
    assert [path.name for path in uploads.iterdir()] == ["note.bin"]
    # Candidates in both directions, beside the descriptions; and nothing from anywhere else.
    for messages in (seen.told, seen.heard):
        assert any(message.get("candidate") for message in messages)
    assert {url.rpartition("/")[0] for url in seen.urls if not url.startswith("blob:")} == {f"http://{HERE}:{PORT}"}


async def test_an_ice_restart_of_the_page_is_answered(lab: Lab, files: tuple[Path, Path]) -> None:
    """As a page asks for one that has failed: here while the path lives, which is not interrupted."""
    film, uploads = files
    machine = lab.machine()
    async with program(machine, film, "--into", uploads), opened(machine) as (page, seen):
        await page.evaluate("connection.restartIce()")
        async with asyncio.timeout(PATIENCE_S):
            await seen.has_two_answers.wait()
        assert await download(page) == DIGEST
        assert await page.locator("#state").inner_text() in ("connected", "completed", "checking")
    first, second = (credentials(message["sdp"]) for message in seen.heard if message.get("type") == "answer")
    assert first.isdisjoint(second)


async def test_an_offer_that_comes_twice_is_answered_twice_and_the_page_drops_what_it_has(
    lab: Lab, files: tuple[Path, Path]
) -> None:
    film, uploads = files
    machine = lab.machine()
    async with program(machine, film, "--into", uploads), opened(machine) as (page, seen):
        await page.evaluate("tell(connection.localDescription)")
        async with asyncio.timeout(PATIENCE_S):
            await seen.has_two_answers.wait()
        assert await download(page) == DIGEST
        assert await page.locator("#state").inner_text() in ("connected", "completed")
    offers = [message["sdp"] for message in seen.told if message.get("type") == "offer"]
    assert len(offers) == 2 and credentials(offers[0]) == credentials(offers[1])
    first, second = (message["sdp"] for message in seen.heard if message.get("type") == "answer")
    assert credentials(first) == credentials(second)


async def test_the_program_says_why_there_is_no_relay(
    lab: Lab, servers: dict[str, str], files: tuple[Path, Path]
) -> None:
    film, uploads = files
    machine = lab.machine()
    url = f"turn:{servers['serve']}"
    account = ("--username", USER, "--credential", "another")
    async with program(machine, film, "--into", uploads, "--server", url, *account) as process:
        async with opened(machine) as (page, _):
            assert await download(page) == DIGEST
        process.send_signal(signal.SIGINT)
        said, _ = await asyncio.to_thread(process.communicate)
    complaints = [line for line in said.splitlines() if line.startswith(f"{url}: ")]
    assert complaints and all("401" in line for line in complaints)


async def test_a_page_that_is_closed_ends_what_goes_over_its_channels(lab: Lab, files: tuple[Path, Path]) -> None:
    film, uploads = files
    with film.open("r+b") as file:
        file.truncate(200_000_000)
    machine = lab.machine()
    async with program(machine, film, "--into", uploads) as process:
        async with opened(machine) as (page, _):
            await page.locator("#download").click()
            await expect(page.locator("#progress")).not_to_have_attribute("value", "0")
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        async with asyncio.timeout(PATIENCE_S):
            while (line := await asyncio.to_thread(next, lines)) != "not sent: the receiver is gone\n":
                assert line.startswith(("ICE: ", "sent ", "(Press"))


async def test_a_page_of_somebody_else_gets_no_connection(lab: Lab, files: tuple[Path, Path]) -> None:
    """Browsers let every page open a WebSocket to 127.0.0.1, and say whose page it is."""
    film, uploads = files
    machine = lab.machine()
    async with program(machine, film, "--into", uploads), Chromium(machine) as browser:
        page = await browser.page()
        script = f"""new Promise(resolve => {{
            const socket = new WebSocket('ws://{HERE}:{PORT}/signalling');
            socket.onopen = () => resolve('open');
            socket.onerror = () => resolve('refused');
        }})"""
        assert await page.evaluate(script) == "refused"
