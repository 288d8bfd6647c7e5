"""RFC 7064, 3.1 and RFC 7065, 3.1: how a server is named, and what is said to what is no name."""

from __future__ import annotations

import pytest

from relay.uri import BadUri, ServerUri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("stun:Example.ORG", ServerUri(scheme="stun", host="example.org")),
        ("STUNS:192.0.2.1:5349", ServerUri(scheme="stuns", host="192.0.2.1", port=5349)),
        ("turn:[2001:DB8::1]:3478", ServerUri(scheme="turn", host="2001:db8::1", port=3478)),
        ("turns:example.org?transport=TCP", ServerUri(scheme="turns", host="example.org", transport="tcp")),
    ],
)
def test_a_server(text: str, uri: ServerUri) -> None:
    assert ServerUri.parse(text) == uri


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://example.org", "begins with stun:"),
        ("stun://example.org", "no // after"),
        ("stun:[::1", "is written"),
        ("stun:", "neither a host name"),
        ("stun:" + "a" * 100_000, "neither a host name"),
        ("stun:\x1b]0;title\x07", "neither a host name"),
        ("stun:\u202egro.elpmaxe", "neither a host name"),
        ("stun:192.0.2.1:0", "is not a port"),
        ("stun:192.0.2.1:" + "1" * 100_000, "is not a port"),
        ("stun:example.org?transport=udp", "takes no query"),
        ("turn:example.org?" + "x" * 100_000, "the query is"),
        ("x" * 100_000, "begins with stun:"),
    ],
)
def test_what_is_no_server(text: str, words: str) -> None:
    """The message quotes it, but neither all of it nor what a terminal would obey."""
    with pytest.raises(BadUri, match=words) as caught:
        ServerUri.parse(text)
    assert len(str(caught.value)) < 170 and str(caught.value).isprintable()
