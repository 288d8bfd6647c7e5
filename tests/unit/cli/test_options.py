"""The options that several commands share: what they become, and how they are refused."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import click
import pytest

from iceagent import cli
from iceagent.cli.options import (
    listen_options,
    output_options,
    parse_servers,
    path_options,
    seed_option,
    server_options,
)
from iceagent.config import IceServer
from iceagent.net.host import Interface, InterfaceKind

got: dict[str, Any] = {}


@click.command()
@server_options
@listen_options
@path_options
@click.option("--redact", is_flag=True)
@seed_option
@output_options
def command(**kwargs: Any) -> int:
    got.clear()
    got.update(kwargs)
    return 7


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ICEAGENT_SERVERS", raising=False)


def run(*arguments: str) -> dict[str, Any]:
    """The keyword arguments that the command was called with."""
    assert command.main(list(arguments), standalone_mode=False) == 7
    return got


def refusal(*arguments: str) -> str:
    """What the command line was refused with."""
    with pytest.raises(click.UsageError) as caught:
        command.main(list(arguments), standalone_mode=False)
    assert caught.value.exit_code == cli.EXIT_USAGE
    assert "\n" not in caught.value.message
    return caught.value.message


def test_without_options() -> None:
    config = run()["config"]
    assert (config.ipv4, config.ipv6, config.loopback, config.bind_hosts) == (True, True, False, ())
    assert (config.port_range, config.external_addresses, config.interface_filter) == (None, {}, None)
    assert (config.relay_first, config.standby, config.mirror) == (False, True, True)
    assert got["servers"] == ()
    assert not got["output"].as_json
    assert isinstance(got["rng"], random.SystemRandom)


# --- where we listen ---------------------------------------------------------------------------------------------


def test_families() -> None:
    assert not run("--no-ipv4")["config"].ipv4
    assert not run("--no-ipv6")["config"].ipv6
    assert "drop one of them" in refusal("--no-ipv4", "--no-ipv6")


def test_paths() -> None:
    """CLI contract: --relay-first starts data on the relay. The others spare what survival costs."""
    config = run("--relay-first", "--no-standby", "--no-mirror", "--no-ipv6")["config"]
    assert (config.relay_first, config.standby, config.mirror, config.ipv6) == (True, False, False, False)


def test_bind() -> None:
    assert run("--bind", "192.0.2.1", "--bind", "2001:DB8::0:1")["config"].bind_hosts == ("192.0.2.1", "2001:db8::1")
    assert not got["config"].loopback
    assert "--bind localhost: an IPv4 or IPv6 address is expected" in refusal("--bind", "localhost")


def test_loopback() -> None:
    """RFC 8445, 5.1.1.1: on request only; to bind to such an address is a request."""
    assert run("--loopback")["config"].loopback
    assert run("--bind", "127.0.0.2")["config"].loopback
    assert run("--bind", "::1")["config"].loopback


def test_interface() -> None:
    name = socket.if_nameindex()[0][1]
    wanted = run("--interface", name)["config"].interface_filter
    assert wanted(Interface(name=name, index=1, kind=InterfaceKind.OTHER))
    assert not wanted(Interface(name=name + "x", index=1, kind=InterfaceKind.OTHER))
    assert name in refusal("--interface", "no-such-one")


def test_port_range() -> None:
    assert run("--port-range", "40000-40100")["config"].port_range == (40000, 40100)
    assert run("--port-range", "1-65535")["config"].port_range == (1, 65535)


@pytest.mark.parametrize(
    "text", ["40000", "40100-40000", "0-1", "1-65536", "a-b", "-5-10", "1-2-3", "²-3", "", "1-000002"]
)
def test_a_wrong_port_range(text: str) -> None:
    assert refusal("--port-range", text).startswith(f"--port-range {text}: ")


def test_a_port_range_of_thousands_of_digits() -> None:
    """Python makes no number of them; and nobody wants to read them."""
    for text in ("1-" + "1" * 5000, "1" * 5000 + "-2", "0" * 5000 + "-0"):
        message = refusal("--port-range", text)
        assert message.startswith("--port-range ") and len(message) < 100


@pytest.mark.parametrize("option", ["--bind", "--port-range", "--external-address", "--server", "--interface"])
@pytest.mark.parametrize("text", ["x" * 100_000, "turn:" + "x" * 100_000, "192.0.2.1=" + "1" * 100_000])
def test_a_refusal_is_short(option: str, text: str) -> None:
    present = sum(len(name) + 2 for _, name in socket.if_nameindex())
    assert len(refusal(option, text)) < 200 + present


def test_external_address() -> None:
    config = run("--external-address", "203.0.113.1=10.0.0.1", "--external-address", "2001:DB8::1")["config"]
    assert config.external_addresses == {"203.0.113.1": "10.0.0.1", "2001:db8::1": None}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["host"], "an IPv4 or IPv6 address"),
        (["203.0.113.1="], "an IPv4 or IPv6 address"),
        (["203.0.113.1=::1"], "both must be IPv4, or both IPv6"),
        (["203.0.113.1=10.0.0.1", "203.0.113.1=10.0.0.2"], "another local address"),
    ],
)
def test_a_wrong_external_address(texts: list[str], words: str) -> None:
    assert words in refusal(*(word for text in texts for word in ("--external-address", text)))


# --- servers -----------------------------------------------------------------------------------------------------


def test_servers_by_option() -> None:
    servers = run("--server", "stun:192.0.2.1:3478", "--server", "stun:stun.example.org")["servers"]
    assert [server.urls for server in servers] == [("stun:192.0.2.1:3478",), ("stun:stun.example.org",)]


def test_turn_servers_by_option_are_ways_to_one_service() -> None:
    words = ["--server", "turn:192.0.2.1", "--server", "stun:192.0.2.1", "--server", "turns:relay.example:443"]
    servers = run(*words, "--username", "me", "--credential", "secret")["servers"]
    assert servers == (
        IceServer(urls=("stun:192.0.2.1",)),
        IceServer(urls=("turn:192.0.2.1", "turns:relay.example:443"), username="me", credential="secret"),
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--server", "turn:192.0.2.1"), "--server turn:192.0.2.1: add --username and --credential"),
        (("--server", "turn:192.0.2.1", "--username", "me"), "belong together"),
        (("--server", "stun:192.0.2.1", "--username", "me", "--credential", "x"), "are for turn: servers"),
        (("--server", "turn:192.0.2.1", "--username", "me", "--credential", ""), '"credential" is empty'),
        (("--server", "turn:192.0.2.1", "--username", "", "--credential", "x"), '"username" is empty'),
    ],
)
def test_credentials_that_do_not_fit(words: tuple[str, ...], complaint: str) -> None:
    assert complaint in refusal(*words)


@pytest.mark.parametrize("uri", ["192.0.2.1", "http://example.org", "stun://example.org", "stun:", "stun:host:0"])
def test_a_wrong_server(uri: str) -> None:
    assert refusal("--server", uri).startswith("--server: ")


LIST = [
    {"urls": "stun:192.0.2.1"},
    {"urls": ["stun:192.0.2.2:3479", "turn:192.0.2.2"], "username": "me", "credential": "secret"},
    {"url": "stun:[2001:db8::1]:3478"},
]
URLS = [("stun:192.0.2.1",), ("stun:192.0.2.2:3479", "turn:192.0.2.2"), ("stun:[2001:db8::1]:3478",)]


@pytest.mark.parametrize("value", [LIST, {"iceServers": LIST, "iceTransportPolicy": "all"}])
def test_a_servers_file(value: object, tmp_path: Path) -> None:
    """CLI contract: a W3C iceServers list."""
    (tmp_path / "servers").write_text(json.dumps(value))
    servers = run("--servers-file", str(tmp_path / "servers"))["servers"]
    assert [server.urls for server in servers] == URLS
    assert (servers[1].username, servers[1].credential) == ("me", "secret")


@pytest.mark.parametrize("uri", ["turn:\ud800\x1b[31mX\u202e", "turn:" + "x" * 100_000])
def test_a_list_does_not_fill_the_terminal(uri: str, tmp_path: Path) -> None:
    """It comes from whoever runs the servers."""
    (tmp_path / "servers").write_text(json.dumps([{"urls": uri, "username": "u", "credential": "secret"}]))
    complaint = refusal("--servers-file", str(tmp_path / "servers"))
    assert len(complaint) < 300 and "secret" not in complaint


def test_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLI contract: --servers-file FILE or the variable ICEAGENT_SERVERS; the list itself, or the name of its file."""
    monkeypatch.setenv("ICEAGENT_SERVERS", json.dumps(LIST))
    assert [server.urls for server in run()["servers"]] == URLS
    (tmp_path / "servers").write_text(json.dumps(LIST[:1]))
    monkeypatch.setenv("ICEAGENT_SERVERS", str(tmp_path / "servers"))
    assert run("--server", "stun:192.0.2.9")["servers"] == (
        IceServer(urls=("stun:192.0.2.9",)),
        IceServer(urls=("stun:192.0.2.1",)),
    )


def test_the_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICEAGENT_SERVERS", "no list at all")
    (tmp_path / "servers").write_text("[]")
    assert run("--servers-file", str(tmp_path / "servers"))["servers"] == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no JSON"),
        ("[" * 100_000, "this is no JSON"),
        ("{}", 'no "urls"'),
        ('{"iceServers": 5}', "a list like"),
        ('[{"urls": "turn:192.0.2.1"}]', "has no username and credential"),
        ('[{"urls": "turn:192.0.2.1", "username": 5, "credential": "x"}]', '"username" is no text'),
        ('[{"urls": "turn:192.0.2.1", "username": "me", "credential": ""}]', '"credential" is empty'),
        ("[1]", "a list like"),
        ("[{}]", 'no "urls"'),
        ('[{"urls": []}]', 'no "urls"'),
        ('[{"urls": [1]}]', 'no "urls"'),
        ('[{"urls": "http://example.org"}]', "begins with stun:"),
    ],
)
def test_a_wrong_list(text: str, words: str) -> None:
    with pytest.raises(click.UsageError, match=words) as caught:
        parse_servers(text, "somewhere")
    assert caught.value.message.startswith("somewhere: ")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal("--servers-file", str(tmp_path / "missing"))
    assert "cannot be read" in refusal("--servers-file", str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "no UTF-8" in refusal("--servers-file", str(tmp_path / "binary"))
    monkeypatch.setenv("ICEAGENT_SERVERS", str(tmp_path / "missing"))
    assert refusal().startswith("ICEAGENT_SERVERS: ")


# --- seed, output ------------------------------------------------------------------------------------------------


def test_seed() -> None:
    """CLI contract: --seed N makes our own random choices repeatable."""
    assert run("--seed", "5")["rng"].random() == random.Random(5).random()


def test_json() -> None:
    assert run("--json")["output"].as_json


def test_redact() -> None:
    assert run("--redact")["output"].redacted("192.0.2.1") != "192.0.2.1"
    assert run()["output"].redacted("192.0.2.1") == "192.0.2.1"
