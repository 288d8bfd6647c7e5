"""How does a test get a page of a real browser, on a machine of the laboratory?

:class:`Chromium` is Debian's ``chromium``, headless, driven by playwright over a pipe: two descriptors that the browser
inherits, so that it may run in another network than the test without a port being open in either. Playwright starts a
script of ours in the browser's place, which enters the machine's namespaces first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from playwright.async_api import BrowserContext, Error, Page, Playwright, Route, async_playwright

from iceagent.lab import Machine
from iceagent.lab.owner import VARIABLE, Owner, search_path

__all__ = ["SECURE", "Chromium", "ChromiumError"]

SECURE = "https://page.test/"
"""An empty page, which no network is needed for, that may use what only secure ones may: camera, cryptography."""

START_TIMEOUT_S = 45.0
END_TIMEOUT_S = 10.0

FLAGS = (
    *("--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # A camera that everybody may use, and that shows a clock.
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
# Of a page that may not use the camera a peer learns names in ``.local``, and no addresses.
SHOWS_ADDRESSES = "--disable-features=WebRtcHideLocalIpsWithMdns"


class ChromiumError(Exception):
    """The browser cannot be started; the message says why, and how to mend it."""


class Chromium:
    """A headless browser, from ``async with`` to its end. It belongs to the running loop.

    Args:
        machine: of the laboratory, where it runs; ``None``: where this process does.
        hides_addresses: host candidates have ``.local`` names, as they have with users; else addresses.

    Raises:
        ChromiumError: from ``async with``: it is not installed, or does not start.
    """

    def __init__(self, machine: Machine | None, *, hides_addresses: bool = False) -> None:
        self._machine = machine
        self._flags = list(FLAGS) if hides_addresses else [*FLAGS, SHOWS_ADDRESSES]
        self._stack = contextlib.AsyncExitStack()
        self._context: BrowserContext | None = None

    async def __aenter__(self) -> Self:
        program = shutil.which("chromium", path=search_path())
        if program is None:
            raise ChromiumError("chromium is not installed: install Debian's package chromium, or your system's")
        async with contextlib.AsyncExitStack() as stack:
            # Not the owner's: the path of a Unix socket in it would be too long.
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)))
            owner = Owner()
            # Whatever processes are left then.
            stack.callback(owner.close)
            playwright = await stack.enter_async_context(async_playwright())
            context = await self._launch(playwright, folder, program, owner.mark)
            stack.push_async_callback(_close, context)
            await context.route(SECURE, _give_empty)
            self._context = context
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context = None
        await self._stack.aclose()

    async def page(self, url: str = "about:blank") -> Page:
        """A new page, which ends with the browser, or when it is closed."""
        assert self._context is not None, "only inside of async with"
        page = await self._context.new_page()
        await page.goto(url)
        return page

    async def _launch(self, playwright: Playwright, folder: Path, program: str, mark: str) -> BrowserContext:
        own = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(folder))
        try:
            return await playwright.chromium.launch_persistent_context(
                folder / "profile",
                executable_path=self._wrapper(folder, program),
                args=self._flags,
                env={**os.environ, **own, VARIABLE: mark},
                timeout=START_TIMEOUT_S * 1000,
            )
        except Error as error:
            # Playwright has it twice.
            said = dict.fromkeys(line.partition("[err] ")[2] for line in error.message.splitlines() if "[err] " in line)
            raise ChromiumError(f"chromium does not start: {' '.join(said) or error.message}") from error

    def _wrapper(self, folder: Path, program: str) -> Path:
        """What playwright takes for the browser."""
        enter: list[str] = []
        if self._machine is not None:
            thread = self._machine.namespace.do(threading.get_native_id)
            enter = ["nsenter", f"--target={thread}", "--net", "--mount"]
        wrapper = folder / "chromium"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([*enter, program])} "$@"\n')
        wrapper.chmod(0o700)
        return wrapper


async def _give_empty(route: Route) -> None:
    await route.fulfill(content_type="text/html", body="<!doctype html>")


async def _close(context: BrowserContext) -> None:
    # Or it is ended with what is left.
    with contextlib.suppress(Error, TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            await context.close()
