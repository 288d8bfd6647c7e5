"""Addresses as people write them, and what they are told when they did not."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress, parse_address, quoted


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("192.0.2.1:00080", ("192.0.2.1", 80)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[2001:DB8::0:1]:0", ("2001:db8::1", 0)),
        ("[::ffff:192.0.2.1]:5", ("192.0.2.1", 5)),
        ("[fe80::1%eth0]:5", ("fe80::1", 5)),
    ],
)
def test_an_address_with_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == TransportAddress(*address)


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.1:", "2001:db8::1", "[2001:db8::1]"])
def test_a_default_port(text: str) -> None:
    assert parse_address(text, 7).port == 7
    with pytest.raises(ValueError, match="the port is missing"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.1:65536", "'65536' is not a port"),
        ("192.0.2.1:000080", "'000080' is not a port"),
        ("192.0.2.1:-1", "'-1' is not a port"),
        ("192.0.2.1:٣", "is not a port"),
        ("192.0.2.1:" + "1" * 5000, "is not a port"),
        ("[2001:db8::1]x", "is written"),
        ("[2001:db8::1", "is written"),
        ("host:5", "'host' is not an IP address"),
        ("a" * 100_000 + ":5", "is not an IP address"),
        ("\x1b[2J\u202e:5", "is not an IP address"),
    ],
)
def test_what_is_no_address(text: str, words: str) -> None:
    """Whatever it is, and Python makes no number of 5000 digits, the message is short, one line, and can be shown."""
    with pytest.raises(ValueError, match=words) as caught:
        parse_address(text)
    message = str(caught.value)
    assert message.startswith(quoted(text) + ": ")
    assert len(message) < 160 and message.isprintable()


def test_quoted() -> None:
    assert quoted("it's") == '"it\'s"'
    assert quoted("x" * 40) == repr("x" * 40)
    assert quoted("x" * 41) == repr("x" * 40) + "…"
    assert quoted("\x1b\x9b\u202e\n") == r"'\x1b\x9b\u202e\n'"
