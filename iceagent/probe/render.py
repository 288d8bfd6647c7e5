"""How is a report shown to a person?

The same sections twice: as tables of rich on a terminal (:func:`tables`), as aligned plain text elsewhere
(:func:`lines`). What was not tested says so, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from iceagent.candidate import Candidate
from iceagent.nat.kinds import Filtering, Mapping
from iceagent.probe.report import NotTested, Report, ServerStatus
from iceagent.probe.verdict import Outlook, outlook

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Section", "lines", "sections", "tables"]

Redact = Callable[[str], str]


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        title: above it.
        columns: heads; empty where they would say nothing.
        rows: texts, as many in each as there are columns, where there are any.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sections(report: Report) -> list[Section]:
    """The parts of a report in the order of reading, without those that are empty."""
    found = [
        Section("Interfaces", ("name", "kind", "mtu", "addresses"), list(_interfaces(report))),
        Section("Candidates", ("type", "address", "priority"), list(_candidates(report))),
        Section("Servers", ("server", "answers", "rtt", "sees us as"), list(_servers(report))),
        _relays(report),
        Section("Port mapping", ("router", "protocol", "status", "outside", "lifetime", ""), list(_portmap(report))),
        Section("NAT", (), list(_nat(report))),
        Section("Evidence", (), [(text,) for text in report.nat.evidence]),
        Section("Not tested", (), list(_not_tested(report))),
        Section("Outlook", (), [(_OUTLOOKS[report.is_embedded][outlook(report)],)]),
        Section("Advice", (), [(text,) for text in report.advice]),
    ]
    return [section for section in found if section.rows]


def lines(report: Report) -> list[str]:
    """Plain text: a title, then its rows, indented and in columns."""
    text: list[str] = []
    for section in sections(report):
        rows = [section.columns, *section.rows] if section.columns else section.rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text.append(section.title)
        text += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*text, f"Took {report.duration_ms:.0f} ms"]


def tables(report: Report, redact: Redact = str) -> Group:
    """The same for a terminal.

    Args:
        redact: goes over every text.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[Table | Text] = []
    for section in sections(report):
        table = Table(title=section.title, title_justify="left", title_style="bold", show_header=bool(section.columns))
        for column in section.columns or [""] * len(section.rows[0]):
            table.add_column(column, overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(redact(cell), style=_STYLES.get(cell, "")) for cell in row))
        shown.append(table)
    return Group(*shown, Text(f"Took {report.duration_ms:.0f} ms", style="dim"))


# With our own server alone, nothing is said about peers.
_OUTLOOKS = {
    False: {
        Outlook.DIRECT: "A direct path to most peers can be expected.",
        Outlook.RELAY: "Most peers can be reached through a relay only.",
        Outlook.NOTHING: "Neither a direct path nor a relay to most peers can be expected.",
    },
    True: {
        Outlook.DIRECT: "Everything that was tried on this host works.",
        Outlook.NOTHING: "Not everything that was tried on this host works.",
    },
}
# What the words of RFC 4787 mean.
_MEANINGS: dict[Enum, str] = {
    Mapping.NONE: "no NAT: the outside sees our own address",
    Mapping.EIM: "one outside address towards everybody",
    Mapping.ADM: "another outside address towards each host",
    Mapping.APDM: "another outside address towards each host and port",
    Filtering.EIF: "lets in whoever sends there",
    Filtering.ADF: "lets in hosts that we have sent to",
    Filtering.APDF: "lets in addresses and ports that we have sent to",
}
_STYLES = {
    "yes": "green",
    "no": "red",
    "down": "dim",
    "host": "cyan",
    "srflx": "magenta",
    "relay": "yellow",
    "ok": "green",
    "refused": "red",
    "no-answer": "red",
}


def _interfaces(report: Report) -> Iterator[tuple[str, ...]]:
    for row in report.interfaces:
        addresses = ", ".join(row.addresses) or "none"
        yield row.name, row.kind if row.is_up else f"{row.kind}, down", str(row.mtu), addresses


def _candidates(report: Report) -> Iterator[tuple[str, ...]]:
    for line in report.candidates:
        candidate = Candidate.parse(line)
        yield candidate.type.value, str(candidate.address), str(candidate.priority)


def _servers(report: Report) -> Iterator[tuple[str, ...]]:
    for each in report.reflexive:
        yield each.server, "yes", _rtt(each.rtt_ms), str(each.address)
    for row in report.servers:
        if row.status is not ServerStatus.ANSWERED:
            yield row.uri, "no" if row.status is ServerStatus.FAILED else "not asked", "-", "-"


def _relays(report: Report) -> Section:
    """Without the columns that say nothing about any row."""
    columns = ("server", "transport", "status", "rtt", "through it", "mobility", "relayed", "reason")
    rows = [
        (
            row.server,
            row.transport,
            row.status.value,
            _rtt(row.rtt_ms),
            _rtt(row.data_rtt_ms),
            "-" if row.mobility is None else _text(row.mobility),
            ", ".join(map(str, row.relayed)) or "-",
            row.reason,
        )
        for row in (() if isinstance(report.relays, NotTested) else report.relays)
    ]
    says_something = [any(cell not in ("-", "") for cell in column) for column in zip(*rows, strict=True)]
    return Section(
        "Relays", tuple(compress(columns, says_something)), [tuple(compress(r, says_something)) for r in rows]
    )


def _portmap(report: Report) -> Iterator[tuple[str, ...]]:
    for each in () if isinstance(report.portmap, NotTested) else report.portmap:
        for row in each.protocols:
            if row.status != "not-tested":
                external = "-" if row.external is None else str(row.external)
                lifetime = "-" if row.lifetime_s is None else f"{row.lifetime_s} s" if row.lifetime_s else "for ever"
                yield each.gateway.host, row.protocol, row.status, external, lifetime, row.reason


def _rtt(rtt_ms: float | None) -> str:
    return "-" if rtt_ms is None else f"{rtt_ms:.1f} ms"


def _nat(report: Report) -> Iterator[tuple[str, ...]]:
    nat = report.nat
    if report.is_embedded:
        # Nobody outside was asked: _not_tested says it once.
        return
    yield "UDP over IPv4", _text(report.udp[4])
    yield "UDP over IPv6", _text(report.udp[6])
    yield "mapping", _with_meaning(nat.mapping)
    yield "filtering", _with_meaning(nat.filtering)
    yield "port preserved", _text(nat.port_preservation)
    yield "port allocation", _text(nat.allocation)
    yield "NATs in front of us", _text(report.layers)


def _not_tested(report: Report) -> Iterator[tuple[str, ...]]:
    if report.is_embedded:
        yield "UDP and NAT", "no server outside this host was asked"
    for name, value in (("port mapping", report.portmap), ("relays", report.relays), ("NAT64", report.nat64)):
        if isinstance(value, NotTested):
            yield name, value.reason


def _with_meaning(kind: Mapping | Filtering) -> str:
    meaning = _MEANINGS.get(kind)
    return kind.value if meaning is None else f"{kind.value} ({meaning})"


def _text(value: bool | int | Enum | NotTested) -> str:
    if isinstance(value, NotTested):
        return f"not tested: {value.reason}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value.value if isinstance(value, Enum) else value)
