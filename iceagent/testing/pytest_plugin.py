"""What does a test get by installing iceagent?

Fixtures for tests in memory and in virtual time. Nothing of ours is imported until a test asks for one, so the plugin
costs other people's test runs nothing.

- ``iceagent_seed``: an int, different for every test, the same at every run of it; ``--iceagent-seed`` overrides it. It
  is printed, so that pytest shows it with a failure.
- ``iceagent_network``: an ``iceagent.testing.Network`` of that seed.
- ``iceagent_virtual_loop``: an ``iceagent.testing.VirtualLoop``, closed afterwards; errors that nobody handled fail the
  test.
- ``iceagent_internet``: an ``iceagent.testing.MemoryInternet`` of that network on that loop.
- ``iceagent_run``: runs a coroutine on that loop.
- ``natlab``: an ``iceagent.lab.Lab``: real NATs of the kernel, in network namespaces. Needs Linux, nft(8), and root or
  ``unshare -Urnm pytest``. ``@pytest.mark.natlab_needs("turnserver", …)`` names what a test needs besides: programs,
  and ``/dev/net/tun`` where a cable has delay or loss. What is missing fails the test, with a sentence that says so;
  with ``--natlab-skip`` it is skipped.

An example::

    def test_two_hosts(iceagent_internet, iceagent_run):
        alice = iceagent_internet.host("alice", ["192.0.2.1"])
        bob = iceagent_internet.host("bob", ["192.0.2.2"])
        iceagent_run(talk(alice, bob))
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from iceagent.lab.lab import Lab
    from iceagent.testing.clock import VirtualLoop
    from iceagent.testing.internet import MemoryInternet
    from iceagent.testing.network import Network


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("iceagent")
    group.addoption("--iceagent-seed", type=int, default=None, help="seed of simulated networks (default: by test)")
    group.addoption(
        "--natlab-skip", action="store_true", help="skip tests of natlab where something is missing, instead of failing"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "natlab_needs(*things): programs, or /dev/net/tun, that a test needs")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("natlab_needs"):
        for thing in mark.args:
            missing = _missing_device(thing) if thing.startswith("/dev/") else _missing_program(thing)
            if missing:
                _give_up(item.config, missing)


@pytest.fixture
def iceagent_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test."""
    given: int | None = request.config.getoption("iceagent_seed", None)
    seed = zlib.crc32(request.node.nodeid.encode()) if given is None else given
    print(f"--iceagent-seed={seed}")
    return seed


@pytest.fixture
def iceagent_network(iceagent_seed: int) -> Network:
    """A simulated network."""
    from iceagent.testing.network import Network

    return Network.seeded(iceagent_seed)


@pytest.fixture
def iceagent_virtual_loop() -> Iterator[VirtualLoop]:
    """An event loop in virtual time."""
    from iceagent.testing.clock import virtual_loop

    loop = virtual_loop()
    try:
        yield loop
        loop.raise_failures()
    finally:
        loop.close()


@pytest.fixture
def iceagent_internet(iceagent_network: Network, iceagent_virtual_loop: VirtualLoop) -> Iterator[MemoryInternet]:
    """Hosts in memory."""
    from iceagent.testing.internet import MemoryInternet

    internet = MemoryInternet(iceagent_network, iceagent_virtual_loop)
    yield internet
    internet.close()


@pytest.fixture
def iceagent_run(iceagent_virtual_loop: VirtualLoop) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in virtual time and returns its result."""
    return iceagent_virtual_loop.run_until_complete


@pytest.fixture
def natlab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An Internet with real NATs."""
    from iceagent.lab.errors import LabError
    from iceagent.lab.lab import Lab

    missing = ""
    try:
        lab = Lab()
    except LabError as error:
        missing = str(error)
    if missing:
        _give_up(request.config, missing)
    with lab:
        yield lab


def _give_up(config: pytest.Config, reason: str) -> NoReturn:
    if config.getoption("natlab_skip", False):
        pytest.skip(reason)
    pytest.fail(reason, pytrace=False)


def _missing_program(name: str) -> str:
    """A sentence that says so, if it is."""
    from iceagent.lab.errors import MissingProgram
    from iceagent.lab.owner import search_path

    return str(MissingProgram(name)) if shutil.which(name, path=search_path()) is None else ""


def _missing_device(name: str) -> str:
    """The same of a device that may not be used."""
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{name} cannot be used: {error.strerror}"
    return ""
