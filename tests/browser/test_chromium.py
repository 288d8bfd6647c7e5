"""The browser of these tests: it is where it should be, leaves nothing behind, and says what it lacks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceagent.lab import Lab, Machine
from tests.browser.chromium import SECURE, Chromium, ChromiumError


def processes_in(machine: Machine) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            is_there = entry.stat().st_ino == machine.namespace.inode
        except OSError:  # It has ended meanwhile.
            continue
        if is_there:
            found.add(int(entry.parts[2]))
    return found - {os.getpid()}


def left_in(folder: Path) -> list[str]:
    return os.listdir(folder)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the browser's folders are; pytest's own would be too long for a Unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


async def test_it_is_in_its_network_and_leaves_nothing_behind(natlab: Lab, temporary: Path) -> None:
    machine = natlab.machine(behind=natlab.router())
    async with Chromium(machine) as browser:
        page = await browser.page()
        assert page.url == "about:blank"
        assert "HeadlessChrome/" in await page.evaluate("navigator.userAgent")
        assert await (await browser.page(SECURE)).evaluate("isSecureContext")
        assert len(processes_in(machine)) >= 3
        assert left_in(temporary)
    assert (processes_in(machine), left_in(temporary)) == (set(), [])


async def test_what_fails_inside_of_the_block_leaves_nothing_behind_either(natlab: Lab, temporary: Path) -> None:
    machine = natlab.machine()
    with pytest.raises(ZeroDivisionError):
        async with Chromium(machine) as browser:
            await browser.page()
            raise ZeroDivisionError
    assert (processes_in(machine), left_in(temporary)) == (set(), [])


async def test_a_browser_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.browser.chromium.search_path", lambda: "/nowhere")
    with pytest.raises(ChromiumError, match=r"^chromium is not installed: install Debian's package chromium"):
        async with Chromium(None):
            pass


async def test_a_browser_that_does_not_start_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("tests.browser.chromium.search_path", lambda: str(tmp_path))
    with pytest.raises(ChromiumError, match=r"^chromium does not start: no display$"):
        async with Chromium(None):
            pass
    assert left_in(temporary) == []
