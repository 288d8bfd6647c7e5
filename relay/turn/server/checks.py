"""Can what an operator says of a server be meant?

Whatever cannot is told with its name, its value, and what is expected in its place, before anything is opened. No
password is quoted. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iceagent.net.address import canonical_host, ip_address, is_reserved, quoted

__all__ = ["check_number", "check_ports", "hosts", "public_hosts", "texts", "type_name"]

MAX_PORT = 65535


def type_name(value: object) -> str:
    """For messages."""
    return type(value).__name__


def texts(name: str, value: Any, example: str) -> tuple[str, ...]:
    """Several texts.

    Args:
        name: of the setting.
        value: what was given for it. A single text is refused: it would be taken for as many as it has letters.
        example: how it is written.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str | bytes | bytearray):
        raise ValueError(f"{name} is one text, several are expected: {name}={example}")
    try:
        found = tuple(value)
    except TypeError:
        raise ValueError(f"{name} is of type {type_name(value)}, texts are expected: {name}={example}") from None
    for each in found:
        if not isinstance(each, str):
            raise ValueError(f"{name} has something of type {type_name(each)} in it, texts are expected: {example}")
    return found


def hosts(name: str, value: Any) -> tuple[str, ...]:
    """Several addresses of a host's own, canonical.

    Raises:
        ValueError: one is none.
    """
    return tuple(dict.fromkeys(_host(name, each) for each in texts(name, value, '("192.0.2.1",)')))


def public_hosts(name: str, value: Any) -> dict[str, str | None]:
    """Public address → local address, or ``None`` for every one of its IP version; canonical.

    Raises:
        ValueError: one is no address, or they do not go together.
    """
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} is of type {type_name(value)}, a mapping of public to local addresses is expected: "
            '{"192.0.2.1": "10.0.0.5"}'
        )
    found: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for public_text, local_text in value.items():
        public = _host(name, public_text)
        local = None if local_text is None else _host(name, local_text)
        version = ip_address(public).version
        if local is not None and ip_address(local).version != version:
            raise ValueError(f"{name}: {public} and {local} are of different IP versions")
        place = f"every IPv{version} address" if local is None else local
        if public in found:
            raise ValueError(f"{name}: {public} is given twice")
        if place in taken:
            raise ValueError(f"{name}: {place} is to have two public addresses, {taken[place]} and {public}")
        found[public], taken[place] = local, public
    return found


def check_number(name: str, value: Any, low: float, high: float | None = None) -> None:
    """See that it is a number within limits.

    Raises:
        ValueError: it is not.
    """
    limits = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is of type {type_name(value)}, a number is expected ({limits})")
    if not low <= value <= (float("inf") if high is None else high):
        raise ValueError(f"{name} is {value}, allowed is {limits}")


def check_ports(name: str, value: Any) -> tuple[int, int]:
    """First and last port.

    Raises:
        ValueError: they are none.
    """
    try:
        low, high = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, two ports are expected, as in (49152, 65535)") from None
    for port in (low, high):
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= MAX_PORT:
            raise ValueError(f"{name} is {value!r}, allowed are ports from 1 to {MAX_PORT}")
    if low > high:
        raise ValueError(f"{name} is {value!r}: the first port is higher than the last")
    return low, high


def _host(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{name} has something of type {type_name(text)} in it, IP addresses are expected, as texts")
    try:
        host = canonical_host(text)
    except ValueError:
        raise ValueError(f"{name}: {quoted(text)} is not an IP address") from None
    ip = ip_address(host)
    if ip.is_unspecified or ip.is_multicast or is_reserved(ip):
        raise ValueError(f"{name}: {host} is not the address of one host")
    return host
