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


def parse_ice_servers(value: str | list[Any] | Mapping[str, Any]) -> tuple[IceServer, ...]:
    """Read a list of servers: JSON text, or what it says.

    Raises:
        UsageError: it is something else, a URL is wrong, or a TURN server has no credentials. The message quotes no
            credential.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"this is no JSON: {error}") from error
    if isinstance(value, Mapping):
        value = value.get("iceServers", value.get("ice_servers", value))
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UsageError(_EXPECTED)
    if len(entries) > _MAX_ENTRIES:
        raise UsageError(f"{len(entries)} servers, at most {_MAX_ENTRIES} are taken")
    return tuple(_server(entry) for entry in entries)


def _server(entry: Mapping[str, Any]) -> IceServer:
    urls = next((entry[key] for key in ("urls", "url", "uris") if key in entry), None)
    found = [urls] if isinstance(urls, str) else urls
    if not isinstance(found, list) or not found or not all(isinstance(url, str) for url in found):
        raise UsageError('an entry has no "urls": a text or a list of texts is expected')
    if len(found) > _MAX_ENTRIES:
        raise UsageError(f"{len(found)} urls, at most {_MAX_ENTRIES} are taken")
    username, credential = entry.get("username"), entry.get("credential", entry.get("password"))
    for name, text in (("username", username), ("credential", credential)):
        if text is not None and not isinstance(text, str):
            raise UsageError(f'"{name}" is no text')
    try:
        uris = [ServerUri.parse(url) for url in found]
    except BadUri as error:
        raise UsageError(str(error)) from error
    needs_name = next((url for url, uri in zip(found, uris, strict=True) if uri.is_turn), None)
    if needs_name is not None and (username is None or credential is None):
        raise UsageError(f"{needs_name} has no username and credential")
    return IceServer(urls=tuple(found), username=username, credential=credential)
