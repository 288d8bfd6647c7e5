"""Is all of aiortc and aioice there that the bridge stands on, is all that it uses in the list, and what if not?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import aiortc
import pytest

from iceagent.rtc import contract

BRIDGE = Path(contract.__file__).parent
HERE = "tests.unit.rtc.test_contract"

LISTED = sorted(
    {(where, name) for table in (contract.MEMBERS, contract.ATTRIBUTES) for where in table for name in table[where]}
)


class Stand:
    """Of another make: it has one method, one private one, and two attributes."""

    def __init__(self) -> None:
        self.shown = 1
        self.__hidden = 2

    def known(self) -> int:
        return self.__private()

    def __private(self) -> int:
        return self.__hidden


@pytest.mark.parametrize(("where", "name"), LISTED, ids=[f"{where}.{name}" for where, name in LISTED])
def test_the_installed_version_has_it(where: str, name: str) -> None:
    assert f"{where.replace(':', '.')}.{name}" not in contract.missing()


def test_the_installed_version_is_taken() -> None:
    assert contract.missing() == []
    contract.check(aiortc)


def test_what_is_there_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.MEMBERS, f"{HERE}:Stand", ("known", "__private"))
    monkeypatch.setitem(contract.ATTRIBUTES, f"{HERE}:Stand", ("shown", "__hidden"))
    monkeypatch.setitem(contract.MEMBERS, HERE, ("Stand", "BRIDGE"))
    assert contract.missing() == []


@pytest.mark.parametrize(
    ("table", "where", "name"),
    [
        ("MEMBERS", f"{HERE}:Stand", "unknown"),
        ("MEMBERS", f"{HERE}:Stand", "__unknown"),
        # Private to another class: not the same name.
        ("MEMBERS", f"{HERE}:Stand", "_known"),
        ("MEMBERS", f"{HERE}:Nobody", "known"),
        ("MEMBERS", HERE, "Nobody"),
        ("MEMBERS", "tests.unit.rtc.nowhere", "anything"),
        ("MEMBERS", "tests.unit.rtc.nowhere:Nobody", "anything"),
        ("ATTRIBUTES", f"{HERE}:Stand", "unknown"),
        ("ATTRIBUTES", f"{HERE}:Stand", "hidden"),
        ("ATTRIBUTES", f"{HERE}:Nobody", "shown"),
        ("ATTRIBUTES", "tests.unit.rtc.nowhere:Nobody", "shown"),
    ],
)
def test_what_is_not_there_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, table: str, where: str, name: str
) -> None:
    monkeypatch.setitem(getattr(contract, table), where, (name,))
    assert contract.missing() == [f"{where.replace(':', '.')}.{name}"]
    other = ModuleType("aiortc")
    other.__dict__["__version__"] = "7.0"
    with pytest.raises(ImportError) as caught:
        contract.check(other)
    assert str(caught.value) == (
        f"iceagent.rtc does not know aiortc 7.0: it has no {where.replace(':', '.')}.{name}; "
        f"supported are {contract.SUPPORTED}"
    )


def test_all_that_is_missing_is_named_and_a_version_that_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.MEMBERS, f"{HERE}:Stand", ("one", "known", "two"))
    with pytest.raises(ImportError, match=r"aiortc of unknown version: it has no \S+\.Stand\.one, \S+\.Stand\.two;"):
        contract.check(ModuleType("aiortc"))


# --- is the list whole? ------------------------------------------------------------------------------------------


def test_every_private_name_that_the_bridge_uses_is_in_the_list() -> None:
    """As ``_inner("__name")``, as an override, or as an attribute that aiortc mangles."""
    listed = {name for _, name in LISTED}
    used = set()
    for path in BRIDGE.glob("*.py"):
        text = path.read_text()
        used |= set(re.findall(r'"(__[a-zA-Z]\w*)"', text)) if path.name != "contract.py" else set()
        used |= {f"__{name}" for name in re.findall(r"_RTCPeerConnection__(\w+)", text)}
    assert {"__connect", "__configuration", "__gather"} <= used
    assert used - {"__version__"} <= listed


def imported() -> Iterator[tuple[str, str]]:
    """What the bridge imports of aiortc and aioice: (module, name)."""
    for path in BRIDGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("aiortc", "aioice"):
                yield from ((str(node.module), alias.name) for alias in node.names)


def test_every_name_that_the_bridge_imports_is_in_the_list() -> None:
    """Else its absence is a plain ``ImportError``, that says nothing of versions."""
    listed = {(where, name) for where, name in LISTED if ":" not in where}
    # A class whose members are listed is listed.
    listed |= {(where.partition(":")[0], where.partition(":")[2]) for where, _ in LISTED if ":" in where}
    found = {(module, name) for module, name in imported() if module != "aiortc"}
    assert found
    assert found <= listed
