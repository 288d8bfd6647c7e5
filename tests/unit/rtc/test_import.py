"""What does importing do? Nothing to aiortc, nothing without it, and only where it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

HIDING = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "aiortc":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""


def python(*code: str) -> str:
    """What a program of its own says; it must end well, and without a warning."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", "\n".join(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def test_without_aiortc_one_sentence_names_the_extra() -> None:
    said = python(
        HIDING,
        "import iceagent",
        "try:",
        "    import iceagent.rtc",
        "except ImportError as error:",
        "    print(type(error).__name__, error)",
    )
    assert said == "ImportError iceagent.rtc needs aiortc: pip install 'iceagent[webrtc]'"


def test_everything_else_works_without_aiortc() -> None:
    said = python(HIDING, "import iceagent", "print(all(getattr(iceagent, name) for name in iceagent.__all__))")
    assert said == "True"


def test_the_package_alone_does_not_import_aiortc() -> None:
    said = python(
        "import sys, iceagent",
        "[getattr(iceagent, name) for name in iceagent.__all__]",
        "print([name for name in sys.modules if name.partition('.')[0] in ('aiortc', 'av', 'pylibsrtp')])",
    )
    assert said == "[]"


def test_nothing_of_aiortc_and_aioice_is_patched() -> None:
    """Every global of every module of theirs, and every attribute of their classes, is the same object afterwards:
    after importing, and after a connection has lived.
    """
    said = python(
        "import asyncio, sys, inspect, pkgutil, importlib, aiortc, aioice",
        "for package in (aiortc, aioice):",
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):",
        "        importlib.import_module(module.name)",
        "def look():",
        "    found = {}",
        "    for name, module in list(sys.modules.items()):",
        "        if name.partition('.')[0] not in ('aiortc', 'aioice'):",
        "            continue",
        "        for key, value in vars(module).items():",
        "            found[name, key] = value",
        "            if inspect.isclass(value):",
        "                found.update({(name, key, each): what for each, what in vars(value).items()})",
        "    return found",
        "before = look()",
        "from iceagent.rtc import PeerConnection",
        "async def live():",
        "    nobody = aiortc.RTCConfiguration(iceServers=[])",
        "    connection = PeerConnection(nobody, loopback=True, bind_hosts=('127.0.0.1',))",
        "    connection.createDataChannel('x')",
        "    await connection.setLocalDescription()",
        "    await connection.close()",
        "asyncio.run(live())",
        "after = look()",
        "assert len(before) > 1000",
        "print(sorted(map(str, {key for key in before.keys() | after.keys()",
        "    if before.get(key) is not after.get(key) and key[-1] not in ('__abstractmethods__', '_abc_impl')})))",
    )
    assert said == "[]"
