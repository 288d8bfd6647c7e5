"""What is in an XML document that the network sent? Pure.

A small tree of elements without attributes, by expat, with bounds on everything: size, depth, number of elements, and
text. A document type, and with it every entity, is refused at its first character, so nothing can be expanded. Names
lose their prefix: devices use any.

Devices write XML by hand. What is forgiven: an ampersand that stands for itself, control characters, a wrong encoding
declaration, and whatever follows the end of the root element.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

__all__ = ["BadDocument", "Element", "parse_document"]

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_ELEMENTS = 4000
MAX_TEXT_LENGTH = 2048

_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")
# XML 1.0, 2.2: characters that no document may have.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class BadDocument(ValueError):
    """It is no XML, or too much of it; the text says which."""


@dataclass(slots=True)
class Element:
    """An element.

    Attributes:
        name: without prefix.
        text: what stands directly in it, without surrounding space; at most 2048 characters.
        children: in order.
    """

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        """It and all below it, in document order."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(reversed(element.children))

    def find(self, name: str) -> Element | None:
        """The first of that name, at any depth; of any case."""
        name = name.lower()
        return next((element for element in self.walk() if element.name.lower() == name), None)

    def child_text(self, name: str) -> str:
        """The text of the first child of that name; empty if there is none."""
        name = name.lower()
        return next((child.text for child in self.children if child.name.lower() == name), "")


def parse_document(data: bytes) -> Element:
    """Read a document.

    Returns:
        Its root element.

    Raises:
        BadDocument: and nothing else, whatever the bytes.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadDocument(f"more than {MAX_DOCUMENT_BYTES} bytes of XML")
    text = data.decode("utf-8-sig", "replace").strip()
    text = _BARE_AMPERSAND.sub("&amp;", _FORBIDDEN.sub("", text))
    builder = _Builder()
    # The encoding given here counts, not the declared one: no codec is looked up by a name from the network.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        if not builder.is_complete:
            raise BadDocument(f"not well-formed XML: {error}") from error
    if builder.root is None:
        raise BadDocument("XML without an element")
    return builder.root


class _Builder:
    """Hears what expat reads."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self.is_complete = False
        self._open: list[tuple[Element, list[str]]] = []
        self._count = 0

    def doctype(self, *_: object) -> None:
        raise BadDocument("XML with a document type, which no description needs")

    def start(self, name: str, _: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise BadDocument(f"XML with more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            raise BadDocument(f"XML with elements in more than {MAX_DEPTH} others")
        element = Element(name.rpartition(":")[2])
        if self._open:
            self._open[-1][0].children.append(element)
        else:
            self.root = element
        self._open.append((element, []))

    def end(self, _: str) -> None:
        element, parts = self._open.pop()
        element.text = "".join(parts).strip()[:MAX_TEXT_LENGTH]
        self.is_complete = not self._open

    def text(self, text: str) -> None:
        self._open[-1][1].append(text)
