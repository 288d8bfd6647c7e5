"""Do all dependencies point down?

One table, :data:`TABLE`, says for every path which layer it is in; the longest prefix that fits decides. Every import
of the three packages is judged from the syntax tree, wherever it stands in the file:

- value and core modules are pure: the standard library only as far as :data:`PURE_STDLIB` goes, and of ours only
  modules of the same layer or a lower one;
- a shell may import pure modules, and shells that stand on the same floor or a lower one; a surface anything of ours;
- ``iceagent.net`` imports nothing of ours but itself, ``portmap`` and ``relay`` only ``iceagent.net`` and themselves;
- a library is imported only where :data:`LIBRARIES` says.

An import for type checkers only (``if TYPE_CHECKING:``) counts like any other, except of the standard library.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("iceagent", "portmap", "relay")


class Layer(IntEnum):
    """What a module may do, from the purest to the freest."""

    VALUE = 0
    CORE = 1
    SHELL = 2
    SURFACE = 3


class Place(NamedTuple):
    """A layer, and for shells the floor: 0 the host, 1 what uses the host, 2 the agent, 3 what uses the agent."""

    layer: Layer
    floor: int = 0


VALUE = Place(Layer.VALUE)
CORE = Place(Layer.CORE)
HOST, SERVICE, AGENT, TOOL = (Place(Layer.SHELL, floor) for floor in range(4))
SURFACE = Place(Layer.SURFACE)

# A row is a file, or a folder with a slash at its end. A new file that fits no row fails the test: decide where it is.
TABLE = {
    "iceagent/candidate.py": VALUE,
    "iceagent/config.py": VALUE,
    "iceagent/credentials.py": VALUE,
    "iceagent/description.py": VALUE,
    "iceagent/errors.py": VALUE,
    "iceagent/events.py": VALUE,
    "iceagent/ice_servers.py": VALUE,
    "iceagent/priority.py": VALUE,
    "iceagent/net/__init__.py": VALUE,
    "iceagent/net/address.py": VALUE,
    "iceagent/net/behaviour.py": VALUE,
    "iceagent/net/core.py": VALUE,
    "iceagent/net/errno_words.py": VALUE,
    "iceagent/net/host.py": VALUE,
    "iceagent/net/nft_messages.py": VALUE,
    "iceagent/net/trains.py": VALUE,
    "relay/account.py": VALUE,
    "relay/backend.py": VALUE,
    "relay/uri.py": VALUE,
    "iceagent/net/links.py": CORE,
    "iceagent/history.py": CORE,
    "iceagent/gather/complaints.py": CORE,
    "iceagent/gather/diagnosis.py": CORE,
    "iceagent/gather/host.py": CORE,
    "iceagent/gather/stun_queries.py": CORE,
    "iceagent/gather/relay_race.py": CORE,
    "iceagent/statistics.py": CORE,
    "iceagent/core/": CORE,
    "iceagent/nat/": CORE,
    "portmap/errors.py": VALUE,
    "portmap/events.py": VALUE,
    "portmap/report.py": VALUE,
    "portmap/values.py": VALUE,
    "portmap/epoch.py": CORE,
    "portmap/natpmp/": CORE,
    "portmap/pcp/": CORE,
    "portmap/gateway.py": CORE,
    "portmap/pace.py": CORE,
    "portmap/server_link.py": CORE,
    "portmap/session.py": CORE,
    "portmap/upnp/": CORE,
    "relay/behaviour.py": CORE,
    "relay/error_limits.py": CORE,
    "relay/places.py": CORE,
    "relay/stun/": CORE,
    "relay/stun_server.py": CORE,
    "relay/turn/": CORE,
    "relay/preference.py": CORE,
    "relay/latch/__init__.py": CORE,
    "relay/latch/channel.py": CORE,
    "relay/latch/core.py": CORE,
    "relay/latch/replays.py": CORE,
    "relay/reflect/__init__.py": CORE,
    "relay/reflect/rules.py": CORE,
    "relay/upgrade.py": CORE,
    "iceagent/net/driver.py": HOST,
    "iceagent/net/interfaces.py": HOST,
    "iceagent/net/local.py": HOST,
    "iceagent/net/netlink.py": HOST,
    "iceagent/net/next_hop.py": HOST,
    "iceagent/net/nftables.py": HOST,
    "iceagent/net/proxy.py": HOST,
    "iceagent/net/resolve.py": HOST,
    "iceagent/net/routes.py": HOST,
    "iceagent/net/sockets.py": HOST,
    "iceagent/net/streams.py": HOST,
    "iceagent/net/tables.py": HOST,
    "iceagent/gather/": SERVICE,
    "portmap/http.py": SERVICE,
    "portmap/mapper.py": SERVICE,
    "portmap/mapping.py": SERVICE,
    "portmap/probe.py": SERVICE,
    "portmap/site.py": SERVICE,
    "portmap/sites.py": SERVICE,
    "portmap/watch.py": SERVICE,
    "relay/kernel.py": SERVICE,
    "relay/latch/": SERVICE,
    "relay/reflect/": SERVICE,
    "relay/client_path.py": SERVICE,
    "relay/connections.py": SERVICE,
    "relay/listening.py": SERVICE,
    "relay/udp_listening.py": SERVICE,
    "relay/tcp_relays.py": SERVICE,
    "relay/relays.py": SERVICE,
    "relay/server.py": SERVICE,
    "iceagent/eventstream.py": SERVICE,
    "iceagent/agent.py": AGENT,
    "iceagent/datapath.py": AGENT,
    "iceagent/outgoing.py": AGENT,
    "iceagent/mirror.py": AGENT,
    "iceagent/endpoint.py": AGENT,
    "iceagent/punch/": AGENT,
    "iceagent/serving.py": AGENT,
    "iceagent/lab/errors.py": VALUE,
    "iceagent/lab/kinds.py": CORE,
    "iceagent/lab/": TOOL,
    "iceagent/probe/": TOOL,
    "iceagent/rendezvous/": TOOL,
    "iceagent/rendezvous/mailbox.py": CORE,
    "iceagent/rendezvous/mailbox_http.py": CORE,
    "iceagent/rendezvous/waits.py": CORE,
    "iceagent/testing/": TOOL,
    "iceagent/__init__.py": SURFACE,
    "iceagent/__main__.py": SURFACE,
    "iceagent/cli/": SURFACE,
    "iceagent/logs.py": SURFACE,
    "iceagent/rtc/": SURFACE,
    "portmap/__init__.py": SURFACE,
    "relay/__init__.py": SURFACE,
}

# What the modules under a path may import of ours; a path that is not here may import all.
PACKAGE_RULES = {
    "iceagent/net/": ("iceagent/net/",),
    "portmap/": ("iceagent/net/", "portmap/"),
    "relay/": ("iceagent/net/", "relay/"),
}

# DESIGN: each library has one purpose, and the places that serve it.
LIBRARIES = {
    "aioice": ("iceagent/gather/mdns.py", "iceagent/lab/contenders.py", "iceagent/rtc/"),
    "aiortc": ("iceagent/rtc/",),
    "click": ("iceagent/cli/",),
    "dns": ("iceagent/gather/mdns.py", "iceagent/net/resolve.py"),
    "prometheus_client": ("iceagent/cli/metrics.py",),
    "h11": ("iceagent/rendezvous/http_client.py", "iceagent/rendezvous/mailbox_http.py", "portmap/http.py"),
    "pyroute2": ("iceagent/lab/", "iceagent/net/netlink.py"),
    "pytest": ("iceagent/testing/pytest_plugin.py",),
    "rich": ("iceagent/cli/", "iceagent/lab/render.py", "iceagent/probe/"),
    "structlog": ("iceagent/cli/", "iceagent/logs.py"),
    "uvloop": ("iceagent/cli/",),
}

# fmt: off
PURE_STDLIB = frozenset({
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "enum",
    "errno", "functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "operator", "random",
    "re", "struct", "types", "typing", "unicodedata", "xml", "zlib",
})
# fmt: on


class Import(NamedTuple):
    """One imported module, by its full name, and where that is written."""

    name: str
    line: int
    for_types_only: bool


def modules_of_ours() -> dict[str, str]:
    """Every module of the three packages: full name → path."""
    paths = (path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {module_name(path.as_posix()): path.as_posix() for path in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def longest_prefix(path: str, prefixes: Collection[str]) -> str | None:
    """The most exact of ``prefixes`` that covers ``path``: the path itself, or a folder around it."""
    fitting = [prefix for prefix in prefixes if path == prefix or (prefix.endswith("/") and path.startswith(prefix))]
    return max(fitting, key=len, default=None)


def place_of(path: str) -> Place | None:
    row = longest_prefix(path, TABLE)
    return None if row is None else TABLE[row]


def imports_of(path: str, tree: ast.Module, known: Collection[str]) -> Iterator[Import]:
    """Every import in ``tree``; ``from package import name`` is an import of the module ``package.name`` if known."""
    typing_only = {id(node) for block in type_checking_blocks(tree) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute_source(path, node)
            names = [name if (name := f"{source}.{alias.name}") in known else source for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            yield Import(name, node.lineno, id(node) in typing_only)


def type_checking_blocks(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that only a type checker runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from node.body


def absolute_source(path: str, node: ast.ImportFrom) -> str:
    """The full name of what ``node`` imports from: ``..net`` in ``iceagent/core/pair.py`` is ``iceagent.net``."""
    if node.level == 0:
        return node.module or ""
    package = path.split("/")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def judge(path: str, source: str, modules: dict[str, str]) -> list[str]:
    """Everything that is wrong with the imports of one file, a sentence each."""
    place = place_of(path)
    if place is None:
        return [f"{path}: no row of the table fits"]
    tree = ast.parse(source, filename=path)
    wrong = [
        f"{path}:{found.line}: {verdict}"
        for found in imports_of(path, tree, modules)
        if (verdict := judge_import(path, place, found, modules)) is not None
    ]
    if place.layer <= Layer.CORE:
        wrong += [f"{path}:{line}: {verdict}" for line, verdict in impure_calls(tree)]
    return wrong


def judge_import(path: str, place: Place, found: Import, modules: dict[str, str]) -> str | None:
    top = found.name.partition(".")[0]
    if top in PACKAGES:
        return judge_ours(path, place, found.name, modules)
    if top in sys.stdlib_module_names:
        impure = place.layer <= Layer.CORE and top not in PURE_STDLIB and not found.for_types_only
        return f"a {place.layer.name.lower()} may not import {found.name}" if impure else None
    if longest_prefix(path, LIBRARIES.get(top, ())) is None:
        return f"{top} may not be imported here"
    return None


def judge_ours(path: str, place: Place, name: str, modules: dict[str, str]) -> str | None:
    target = modules.get(name)
    if target is None:
        return f"there is no module {name}"
    rule = longest_prefix(path, PACKAGE_RULES)
    if rule is not None and longest_prefix(target, PACKAGE_RULES[rule]) is None:
        return f"{rule} may not import {name}"
    below = place_of(target)
    if below is not None and below > place:
        return f"a {place.layer.name.lower()} may not import {name}: dependencies point down"
    return None


def impure_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Randomness that was not handed in (``random`` is there for the type), and imports that hide in a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            for alias in node.names:
                if alias.name != "Random":
                    yield node.lineno, f"random.{alias.name}: randomness comes in as an argument"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random" and node.attr != "Random":
            yield node.lineno, f"random.{node.attr}: randomness comes in as an argument"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("random.Random", "Random"):
                yield node.lineno, f"{called}(): randomness comes in as an argument"
            elif called in ("__import__", "exec", "eval"):
                yield node.lineno, f"{called}(): imports stand where they can be seen"


# --- the judgement -----------------------------------------------------------------------------------------------


def test_every_file_is_in_the_table() -> None:
    """Every .py file of the three packages is matched by a row; a new file must be placed on purpose."""
    assert [path for path in sorted(modules_of_ours().values()) if place_of(path) is None] == []


def test_every_import_points_down() -> None:
    modules = modules_of_ours()
    assert modules
    wrong = [
        sentence
        for path in sorted(modules.values())
        for sentence in judge(path, (ROOT / path).read_text(encoding="utf-8"), modules)
    ]
    assert wrong == [], "\n" + "\n".join(wrong)


# --- the judge himself -------------------------------------------------------------------------------------------

SAMPLE = {
    module_name(path): path
    for path in (
        "iceagent/__init__.py",
        "iceagent/agent.py",
        "iceagent/candidate.py",
        "iceagent/cli/__init__.py",
        "iceagent/core/__init__.py",
        "iceagent/core/pair.py",
        "iceagent/core/session.py",
        "iceagent/gather/host.py",
        "iceagent/net/host.py",
        "iceagent/gather/mdns.py",
        "iceagent/logs.py",
        "iceagent/net/__init__.py",
        "iceagent/net/address.py",
        "iceagent/net/local.py",
        "iceagent/net/interfaces.py",
        "iceagent/net/links.py",
        "iceagent/probe/__init__.py",
        "iceagent/rtc/connection.py",
        "portmap/__init__.py",
        "portmap/mapper.py",
        "portmap/pcp.py",
        "relay/__init__.py",
        "relay/server.py",
        "relay/stun/__init__.py",
        "relay/upgrade.py",
    )
}


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("iceagent/core/pair.py", "import asyncio", "a core may not import asyncio"),
        ("iceagent/core/pair.py", "def f():\n    import time", "a core may not import time"),
        ("iceagent/core/pair.py", "import secrets", "a core may not import secrets"),
        ("iceagent/core/pair.py", "import os.path as p", "a core may not import os.path"),
        ("iceagent/candidate.py", "from socket import AF_INET", "a value may not import socket"),
        ("iceagent/candidate.py", "from iceagent.core import pair", "a value may not import iceagent.core.pair"),
        ("iceagent/core/pair.py", "from iceagent.agent import Agent", "a core may not import iceagent.agent"),
        ("iceagent/core/pair.py", "from ..net.local import LocalHost", "a core may not import iceagent.net.local"),
        ("iceagent/core/pair.py", "from .. import Agent", "a core may not import iceagent:"),
        ("iceagent/core/pair.py", "import random\nx = random.random()", "random.random: randomness comes in"),
        ("iceagent/core/pair.py", "import random\nx = random.Random(1)", "random.Random(): randomness comes in"),
        ("iceagent/core/pair.py", "from random import randint", "random.randint: randomness comes in"),
        ("iceagent/core/pair.py", "__import__('asyncio')", "__import__(): imports stand where"),
        ("iceagent/core/pair.py", "import structlog", "structlog may not be imported here"),
        ("iceagent/core/pair.py", "import iceagent.nothing", "there is no module iceagent.nothing"),
        (
            "iceagent/core/pair.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from iceagent.agent import Agent",
            "a core may not import iceagent.agent",
        ),
        ("iceagent/net/local.py", "from iceagent.core import session", "iceagent/net/ may not import iceagent.core"),
        ("iceagent/net/local.py", "from iceagent.candidate import Candidate", "iceagent/net/ may not import"),
        ("iceagent/net/address.py", "from iceagent.net.links import L", "a value may not import iceagent.net.links"),
        ("iceagent/net/local.py", "import dns.resolver", "dns may not be imported here"),
        ("relay/server.py", "from iceagent.core.session import IceSession", "relay/ may not import iceagent.core"),
        ("relay/server.py", "from iceagent import Agent", "relay/ may not import iceagent"),
        ("relay/server.py", "import portmap", "relay/ may not import portmap"),
        ("relay/upgrade.py", "from relay.server import Server", "a core may not import relay.server"),
        ("portmap/mapper.py", "from relay.stun import parse", "portmap/ may not import relay.stun"),
        ("iceagent/gather/mdns.py", "from iceagent.agent import Agent", "a shell may not import iceagent.agent"),
        ("iceagent/agent.py", "from iceagent.logs import log", "a shell may not import iceagent.logs"),
        ("iceagent/agent.py", "import iceagent.probe", "a shell may not import iceagent.probe"),
        ("iceagent/agent.py", "import pyroute2", "pyroute2 may not be imported here"),
        ("iceagent/rtc/connection.py", "import requests", "requests may not be imported here"),
        ("iceagent/stray.py", "", "no row of the table fits"),
        ("iceagent/net/stray.py", "", "no row of the table fits"),
    ],
)
def test_the_judge_catches(path: str, source: str, complaint: str) -> None:
    (sentence,) = judge(path, source, SAMPLE)
    assert sentence.startswith(path)
    assert complaint in sentence


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("iceagent/core/pair.py", "from __future__ import annotations\nimport struct, hmac, zlib"),
        ("iceagent/core/pair.py", "import random\ndef f(rng: random.Random) -> float: return rng.random()"),
        ("iceagent/core/pair.py", "from collections.abc import Iterator"),
        ("iceagent/core/pair.py", "from iceagent.net.links import Link\nfrom . import session"),
        ("iceagent/core/pair.py", "from relay.stun import parse\nfrom relay import upgrade"),
        ("iceagent/core/pair.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import asyncio"),
        ("iceagent/net/local.py", "import asyncio, socket\nfrom iceagent.net import address"),
        ("iceagent/net/netlink.py", "import pyroute2.netlink"),
        ("iceagent/gather/mdns.py", "from aioice import mdns\nfrom portmap import mapper"),
        ("iceagent/agent.py", "from iceagent.gather import host\nfrom iceagent.net.local import local_host"),
        ("iceagent/probe/__init__.py", "import rich.table\nfrom iceagent.agent import Agent"),
        ("iceagent/cli/__init__.py", "import click, rich, structlog\nfrom iceagent import Agent, logs"),
        ("relay/server.py", "from iceagent.net import local\nfrom relay.stun import parse"),
        ("portmap/mapper.py", "from . import pcp\nfrom iceagent.net.address import TransportAddress"),
    ],
)
def test_the_judge_lets_pass(path: str, source: str) -> None:
    assert judge(path, source, SAMPLE) == []


def test_the_most_exact_row_decides() -> None:
    assert longest_prefix("a/b/c.py", ["a/", "a/b/", "a/b/d.py"]) == "a/b/"
    assert longest_prefix("a/b/d.py", ["a/", "a/b/", "a/b/d.py"]) == "a/b/d.py"
    assert longest_prefix("a/bc.py", ["a/b", "a/b/"]) is None
