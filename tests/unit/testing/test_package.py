"""What the test kit loads, and when; the pytest plugin."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import iceagent.testing
from iceagent.testing.internet import MemoryInternet
from iceagent.testing.network import Network

ROOT = Path(__file__).parents[3]

LOADED_BY_PLUGIN = """
import sys
import pytest
before = set(sys.modules)
import iceagent.testing.pytest_plugin
print(*sorted(set(sys.modules) - before))
"""

EXAMPLE = """
import asyncio

def test_names_a_seed(iceagent_seed, iceagent_network):
    assert iceagent_network.seed == iceagent_seed
    assert iceagent_seed == {seed}

def test_waits_an_hour(iceagent_virtual_loop, iceagent_run):
    iceagent_run(asyncio.sleep(3600))
    assert iceagent_virtual_loop.time() == 3600

def test_forgets_an_error(iceagent_virtual_loop, iceagent_run):
    iceagent_virtual_loop.call_soon(lambda: 1 / 0)
    iceagent_run(asyncio.sleep(1))

def test_fails(iceagent_internet):
    assert iceagent_internet.network.nodes
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Installed plugins stay out: ours would be registered twice.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *arguments]
    # No timeout of its own, with which it would poll by time.sleep: pytest's limit on a test ends a hanging run.
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_public_name_is_there_and_nothing_else_is() -> None:
    for name in iceagent.testing.__all__:
        assert getattr(iceagent.testing, name).__name__ == name
    assert sorted(iceagent.testing._MODULES) == iceagent.testing.__all__ == sorted(iceagent.testing.__all__)
    assert set(iceagent.testing.__all__) <= set(dir(iceagent.testing))
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = iceagent.testing.Nonsense  # type: ignore[attr-defined]


def test_public_names_are_public_where_they_come_from() -> None:
    for name, module in iceagent.testing._MODULES.items():
        assert name in importlib.import_module(f"iceagent.testing.{module}").__all__


def test_importing_the_plugin_imports_nothing_of_ours_but_the_plugin() -> None:
    done = python("-c", LOADED_BY_PLUGIN)
    assert done.stderr == ""
    assert done.stdout.split() == ["iceagent", "iceagent.testing", "iceagent.testing.pytest_plugin"]


def test_the_plugin_in_a_run_of_its_own(tmp_path: Path) -> None:
    """In a process of its own: seeds are printed with failures, and an error that nobody handled is one."""
    (tmp_path / "test_example.py").write_text(EXAMPLE.format(seed=77))
    plugin = ["-p", "iceagent.testing.pytest_plugin", "--iceagent-seed=77"]
    alone = ["-p", "no:cacheprovider", "-c", str(tmp_path / "none.ini"), "--rootdir", str(tmp_path)]
    (tmp_path / "none.ini").write_text("[pytest]\n")
    done = python("-m", "pytest", *plugin, *alone, str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 3 passed, 1 error" in done.stdout
    assert "ERROR at teardown of test_forgets_an_error" in done.stdout
    assert "UnhandledError" in done.stdout
    assert done.stdout.count("--iceagent-seed=77") == 1


def test_seeds_differ_by_test_and_stay(iceagent_seed: int, iceagent_network: Network) -> None:
    assert iceagent_network.seed == iceagent_seed
    assert iceagent_network.rng.random() == Network.seeded(iceagent_seed).rng.random()


def test_fixtures_are_one_world(iceagent_network: Network, iceagent_internet: MemoryInternet) -> None:
    assert iceagent_internet.network is iceagent_network
