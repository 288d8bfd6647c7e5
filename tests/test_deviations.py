"""Is ``docs/deviations.md`` true? Every switch is a field of Config, every test that pins an entry exists, and a place
in the code says DEVIATION and names it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from iceagent.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "deviations.md"
ENTRY_TITLE = re.compile(r"RFC \d{4}, \S")
MARKED = re.compile(r"`([^`]+)`")
PACKAGES = ("iceagent", "portmap", "relay")
# The word, and what is said about it.
DEVIATION = re.compile(r"DEVIATION(?s:(?!DEVIATION).){0,300}")


class Entry(NamedTuple):
    """One section of the document: its title and the lines under it."""

    title: str
    lines: list[str]

    def values(self, label: str) -> list[str]:
        """What follows ``label:`` at the start of a line, to the end of the paragraph."""
        paragraphs = "\n".join(self.lines).split("\n\n")
        labelled = [text.strip() for text in paragraphs if text.strip().startswith(f"{label}:")]
        return [text.removeprefix(f"{label}:").strip() for text in labelled]


def entries() -> list[Entry]:
    sections = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    parsed = [Entry(section.splitlines()[0], section.splitlines()[1:]) for section in sections]
    return [entry for entry in parsed if ENTRY_TITLE.match(entry.title)]


def names_in(path: Path) -> set[str]:
    """The tests in one file: ``test_name`` or ``Class::test_name``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}::{method.name}" for method in methods}
    return {name for name in found if name.rpartition("::")[2].startswith("test")}


def deviations_in_code() -> str:
    """What the code says wherever it says DEVIATION."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return "\n".join(mark for path in files for mark in DEVIATION.findall(path.read_text(encoding="utf-8")))


ENTRIES = entries()
CODE = deviations_in_code()
by_entry = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.title for entry in ENTRIES])


def test_the_document_has_entries() -> None:
    assert len(ENTRIES) >= 8


@by_entry
def test_every_entry_quotes_the_rfc_and_says_what_and_why(entry: Entry) -> None:
    assert any(line.startswith("> ") for line in entry.lines)
    assert len(entry.values("What we do")) == 1
    assert len(entry.values("Why")) == 1


@by_entry
def test_every_switch_is_a_field_of_config(entry: Entry) -> None:
    (switch,) = entry.values("Switch")
    if switch.startswith("none. "):
        return
    fields = {f"Config.{field.name}" for field in dataclasses.fields(Config)}
    assert MARKED.findall(switch)
    assert set(MARKED.findall(switch)) <= fields


@by_entry
def test_every_entry_is_pinned_by_a_test_that_exists(entry: Entry) -> None:
    (pinned,) = entry.values("Pinned by")
    names = MARKED.findall(pinned)
    assert names, f"{entry.title}: 'Pinned by' names no test (`path::test_name`)"
    for name in names:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), f"{path} does not exist"
        assert function in names_in(ROOT / path), f"{path} has no {function}"


@by_entry
def test_a_place_in_the_code_says_so_and_names_the_test(entry: Entry) -> None:
    (pinned,) = entry.values("Pinned by")
    names = [name.rpartition("::")[2] for name in MARKED.findall(pinned)]
    assert any(re.search(rf"\b{name}\b", CODE) for name in names), f"{entry.title}: no DEVIATION names {names}"
