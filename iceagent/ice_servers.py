"""Which servers does a service hand out, in whatever shape?

One parser for what applications get from their signalling server or provider:

- W3C's ``RTCConfiguration.iceServers``: a list of ``{"urls": text or list, "username", "credential"}``; as the list
  itself, or in an object under ``iceServers`` or ``ice_servers``; or one entry alone; ``url`` for ``urls``, as before
  2014;
- the REST draft (draft-uberti-behave-turn-rest) and Matrix: ``{"username", "password", "ttl", "uris": […]}``.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from iceagent.config import IceServer
from iceagent.errors import UsageError
from relay.uri import BadUri, ServerUri

__all__ = ["parse_ice_servers"]

# Entries, and URLs in each; a page of a provider has a dozen.
_MAX_ENTRIES = 64

_EXPECTED = 'a list like [{"urls": "stun:host:3478"}] is expected'


def parse_ice_servers(value: str | bytes | bytearray | list[Any] | Mapping[str, Any]) -> tuple[IceServer, ...]:
    """Read a list of servers: JSON text, also as it comes out of an HTTP response, or what it says.

    What an entry without TURN URLs says of a user is left out: nobody is asked for it there.

    Raises:
        UsageError: it is something else, a URL is wrong, or a TURN server has no credentials. The message says which
            entry, and quotes no credential.
    """
    if isinstance(value, str | bytes | bytearray):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"this is no JSON: {error}") from error
    if isinstance(value, Mapping):
        value = value.get("iceServers", value.get("ice_servers", value))
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list | tuple):
        raise UsageError(_EXPECTED)
    if len(entries) > _MAX_ENTRIES:
        raise UsageError(f"{len(entries)} servers, at most {_MAX_ENTRIES} are taken")
    found: list[IceServer] = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_server(entry))
        except UsageError as error:
            raise UsageError(str(error) if len(entries) == 1 else f"entry {number}: {error}") from error
    return tuple(found)


def _server(entry: Any) -> IceServer:
    if not isinstance(entry, Mapping):
        raise UsageError(_EXPECTED)
    urls = next((entry[key] for key in ("urls", "url", "uris") if key in entry), None)
    found = [urls] if isinstance(urls, str) else urls
    if not isinstance(found, list | tuple) or not found or not all(isinstance(url, str) for url in found):
        raise UsageError('an entry has no "urls": a text or a list of texts is expected')
    if len(found) > _MAX_ENTRIES:
        raise UsageError(f"{len(found)} urls, at most {_MAX_ENTRIES} are taken")
    if not any(_is_turn(url) for url in found):
        return IceServer(urls=tuple(found))
    return IceServer(
        urls=tuple(found), username=entry.get("username"), credential=entry.get("credential", entry.get("password"))
    )


def _is_turn(url: str) -> bool:
    try:
        return ServerUri.parse(url).is_turn
    except BadUri as error:
        raise UsageError(str(error)) from error
