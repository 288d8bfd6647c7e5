"""What may an application import, and what does importing it load?"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import iceagent

ROOT = Path(__file__).parents[1]
PACKAGES = ("iceagent", "portmap", "relay")

# The public names: what an application may rely on. A change here is a change of the interface.
PUBLIC = [
    "Agent",
    "AgentClosed",
    "AgentState",
    "Candidate",
    "CandidateType",
    "Cause",
    "Config",
    "ConnectFailed",
    "ConsentLost",
    "DataReceived",
    "Description",
    "Event",
    "GatheringDone",
    "HistoryEntry",
    "IceAgentError",
    "IceRestarted",
    "IceServer",
    "InvalidCandidate",
    "InvalidDescription",
    "LocalCandidateFound",
    "MachineSlept",
    "NetworkChanged",
    "Nominated",
    "NoPath",
    "PacketDropped",
    "Path",
    "PeerError",
    "PathDiagnosed",
    "PathDoubted",
    "PathTrusted",
    "PeerClosed",
    "PortMapped",
    "PortMappingLost",
    "PortMappingUnavailable",
    "Proxy",
    "RelayLost",
    "RelayMoved",
    "RelayRefused",
    "RelaySilent",
    "RemoteCandidateAdded",
    "RemoteCandidateRefused",
    "RestartAdvised",
    "RoleChanged",
    "SelectedPathChanged",
    "ServerFailed",
    "ServerOptions",
    "ServerUnusable",
    "StateChanged",
    "TransportAddress",
    "TurnCredentials",
    "UnsupportedCandidate",
    "UnsupportedPlatform",
    "UsageError",
    "__version__",
    "create_datagram_endpoint",
    "parse_ice_servers",
    "serve",
    "server_ssl_context",
]

IMPORT_TIMEOUT_S = 30


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``statement``, beyond those it starts with."""
    program = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=IMPORT_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def is_ground_floor(module: str) -> bool:
    return module in ("iceagent", "iceagent.net") or module.startswith("iceagent.net.")


def test_the_public_names_are_these() -> None:
    assert sorted(iceagent.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(iceagent, name) is not None
    assert name in dir(iceagent)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'iceagent' has no attribute 'Nobody'"):
        iceagent.Nobody  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    """The table that is used at run time and the imports that a type checker reads say the same."""
    tree = ast.parse(Path(iceagent.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == iceagent._MODULES
    assert {*iceagent._MODULES, "__version__"} == set(PUBLIC)


@pytest.mark.parametrize("package", ["relay", "portmap"])
def test_relay_and_portmap_load_the_ground_floor_only(package: str) -> None:
    """DESIGN: ``import relay`` or ``import portmap`` loads iceagent.net and nothing else of iceagent."""
    ours = {module for module in loaded_by(f"import {package}") if module.partition(".")[0] == "iceagent"}
    assert {module for module in ours if not is_ground_floor(module)} == set()


def test_importing_iceagent_is_light() -> None:
    """pyroute2 alone takes a third of a second; nothing of the kind is loaded before it is used."""
    heavy = {"asyncio", "ssl", "pyroute2", "structlog", "click", "rich", "dns", "aioice", "aiortc", "cryptography"}
    loaded = loaded_by("import iceagent")
    assert "iceagent" in loaded
    assert {module.partition(".")[0] for module in loaded} & heavy == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_ours(package: str) -> None:
    """``relay`` and ``portmap`` also exist on PyPI as unrelated projects: those imported lie beside our iceagent."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    folder = Path(module.__file__).parent
    assert folder.parent == Path(iceagent.__file__).parents[1]
    assert (folder / "py.typed").is_file()
    assert (module.__doc__ or "").strip()


@pytest.mark.parametrize("module", ["relay.stun"])
def test_what_only_ours_have_is_there(module: str) -> None:
    """An unrelated project installed over ours would have the same folder, but not these modules."""
    assert importlib.util.find_spec(module) is not None
