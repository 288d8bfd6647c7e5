"""``iceagent serve`` as a process that relays: signals, files of accounts, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from iceagent import Agent, Config, IceServer
from iceagent.cli.metrics import MAX_CONNECTIONS
from iceagent.cli.run import ECHO_S
from iceagent.cli.serve import DRAIN_S
from iceagent.net.address import TransportAddress, parse_address
from iceagent.net.host import SocketOptions
from iceagent.net.local import local_host
from relay.places import Relaying
from relay.server import Server, ServerOptions
from relay.stun import (
    CHANNEL_NUMBER,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
)
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, TurnOptions
from tests.certificates import make_certificate
from tests.loopback.loops import Inbox
from tests.loopback.test_serve import PATIENCE_S, REQUEST, next_event, refused, serving

HOST = "127.86.4.1"


@asynccontextmanager
async def relayed(address: str, user: str = "me", password: str = "secret") -> AsyncIterator[int]:
    """An agent that is through with gathering; the number of relayed addresses that it has got."""
    server = IceServer(urls=(f"turn:{address}?transport=udp",), username=user, credential=password)
    config = Config(servers=(server,), relay_only=True, loopback=True, ipv6=False, gather_timeout_s=3.0)
    async with Agent(config, controlling=True) as agent:
        yield len((await agent.gather()).candidates)


def ready(process: subprocess.Popen[str]) -> dict[str, str]:
    """Where it listens, by transport."""
    event = next_event(process)
    assert event["event"] == "server.ready"
    assert event["relay_addresses"] == [HOST]
    return {each["transport"]: each["address"] for each in event["listeners"]}


# --- SIGTERM -----------------------------------------------------------------------------------------------------


async def test_sigterm_waits_for_allocations() -> None:
    """CLI contract: "SIGTERM drains: no new allocations, then ends"; without --drain for a few seconds."""
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json") as process:
        address = ready(process)["udp"]
        async with relayed(address) as count:
            assert count == 1
            process.send_signal(signal.SIGTERM)
            event = next_event(process)
            assert (event["event"], event["allocations"], event["limit_s"]) == ("server.draining", 1, DRAIN_S)
            async with relayed(address) as late:
                assert late == 0
            assert process.poll() is None
        assert (await asyncio.to_thread(next_event, process))["event"] == "server.stopped"
        assert process.wait(PATIENCE_S) == 0


async def test_the_limit_ends_it_whoever_still_relays() -> None:
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json", "--drain", "0.5") as process:
        async with relayed(ready(process)["udp"]):
            process.send_signal(signal.SIGTERM)
            assert next_event(process)["limit_s"] == 0.5
            assert (await asyncio.to_thread(next_event, process))["event"] == "server.stopped"
            assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
async def test_a_second_signal_ends_it_at_once(second: signal.Signals, code: int) -> None:
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json", "--drain", "3600") as process:
        async with relayed(ready(process)["udp"]):
            process.send_signal(signal.SIGTERM)
            assert next_event(process)["event"] == "server.draining"
            # Before that it would be the first one's copy.
            await asyncio.sleep(ECHO_S)
            process.send_signal(second)
            assert next_event(process)["event"] == "server.stopped"
            assert process.wait(PATIENCE_S) == code


async def test_who_is_told_not_to_wait_does_not() -> None:
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json", "--drain", "0") as process:
        async with relayed(ready(process)["udp"]) as count:
            assert count == 1
            process.send_signal(signal.SIGTERM)
            assert next_event(process)["event"] == "server.stopped"
        assert process.wait(PATIENCE_S) == 0


async def test_where_nobody_relays_there_is_nothing_to_wait_for() -> None:
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json", "--drain", "3600") as process:
        async with relayed(ready(process)["udp"]) as count:
            assert count == 1
        process.send_signal(signal.SIGTERM)
        assert next_event(process)["event"] == "server.stopped"
        assert process.wait(PATIENCE_S) == 0


def command_line(process: subprocess.Popen[str]) -> str:
    """What everybody on this machine sees of it."""
    return Path(f"/proc/{process.pid}/cmdline").read_text()


# --- SIGHUP ------------------------------------------------------------------------------------------------------


async def test_sighup_reads_users_again(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# ours\n\n me:secret \r\nyou:pass:word\n")
    with serving("--listen", f"{HOST}:0", "--users-file", str(file), "--user", "extra:x", "--json") as process:
        address = ready(process)["udp"]
        assert "secret" not in command_line(process)
        people = (("me", "secret", 1), ("you", "pass:word", 1), ("extra", "x", 1), ("new", "n", 0))
        for user, password, expected in people:
            async with relayed(address, user, password) as count:
                assert count == expected
        async with relayed(address) as count:
            file.write_text("new:n\n")
            process.send_signal(signal.SIGHUP)
            event = next_event(process)
            assert (event["event"], event["tls"], event["users"]) == ("server.reloaded", False, 2)
            for user, password, expected in (("me", "secret", 0), ("new", "n", 1), ("extra", "x", 1)):
                async with relayed(address, user, password) as count:
                    assert count == expected
        # One that cannot be used changes nothing.
        for text, complaint in (("new", "line 1: NAME:PASSWORD"), ("a:b\na:c", "line 2: 'a' is given twice")):
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            event = next_event(process)
            assert event["event"] == "server.reload_failed" and complaint in event["reason"]
        async with relayed(address, "new", "n") as count:
            assert count == 1
        # Who may not any more could not give his back either: it ends in its time.
        process.send_signal(signal.SIGTERM)
        event = next_event(process)
        assert (event["event"], event["allocations"]) == ("server.draining", 1)


def test_what_is_wrong_with_a_file_of_accounts(tmp_path: Path) -> None:
    users, secrets = tmp_path / "users", tmp_path / "secrets"
    for option in ("--users-file", "--secrets-file"):
        # Of a variable that is not set, say: not STUN alone without a word.
        assert f"{option}: a file name is expected" in refused(option, "")
    for file, option, content, complaint in (
        (users, "--users-file", b"a:b\nno colon\n", f"{users}, line 2: NAME:PASSWORD is expected"),
        (users, "--users-file", b"a:\n", "line 1: NAME:PASSWORD is expected"),
        (users, "--users-file", b"a:b\x07c\n", "line 1, 'a': U+0007 is not allowed"),
        (users, "--users-file", b"# nothing\n\n", "has no line that says anything"),
        (users, "--users-file", b"\xff\xfe", "it is no UTF-8 text"),
        (secrets, "--secrets-file", b"north\nso\x07uth", "line 2: U+0007 is not allowed"),
        (secrets, "--secrets-file", b"x" * (1 << 20) + b"y", "has more than 1,048,576 characters"),
    ):
        file.write_bytes(content)
        said = refused(option, str(file))
        assert complaint in said and "b\x07c" not in said and "uth" not in said


def peer_name(address: str, trust: Path) -> tuple[ssl.SSLSocket, str]:
    """A connection over TLS, and the server's name in its certificate."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(trust))
    context.check_hostname = False
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    secure = context.wrap_socket(plain, server_hostname="turn.example")
    found = secure.getpeercert() or {}
    return secure, dict(found["subjectAltName"])["DNS"]  # type: ignore[arg-type]


def test_sighup_reads_certificate_and_key_again(tmp_path: Path) -> None:
    """Also one with another kind of key; who is connected stays."""
    pem, key = make_certificate(tmp_path, "first.example")
    words = ("--listen", f"{HOST}:0", "--user", "me:secret", "--tls-cert", str(pem), "--tls-key", str(key), "--json")
    with serving(*words) as process:
        address = ready(process)["tls"]
        early, name = peer_name(address, pem)
        assert name == "first.example"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=second.example"]
        make += ["-addext", "subjectAltName=DNS:second.example", "-out", str(pem), "-keyout", str(key)]
        subprocess.run(make, check=True, capture_output=True)
        process.send_signal(signal.SIGHUP)
        event = next_event(process)
        assert (event["event"], event["tls"], event["users"]) == ("server.reloaded", True, 0)
        late, name = peer_name(address, pem)
        assert name == "second.example"
        key.write_text("no key")
        process.send_signal(signal.SIGHUP)
        event = next_event(process)
        assert event["event"] == "server.reload_failed" and "no private key" in event["reason"]
        last, name = peer_name(address, pem)
        assert name == "second.example"
        for connection in (early, late, last):
            connection.sendall(REQUEST)
            assert len(connection.recv(100)) == 32
            connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving("--listen", f"{HOST}:0", "--secrets-file", str(pipe), "--json") as process:
        pipe.write_text("north\n")
        ready(process)
        process.send_signal(signal.SIGHUP)
        event = next_event(process)
        assert event["event"] == "server.reload_failed" and "is a pipe, which reads only once" in event["reason"]
        process.send_signal(signal.SIGTERM)
        assert next_event(process)["event"] == "server.stopped"


# --- metrics and logs --------------------------------------------------------------------------------------------


async def test_prometheus_tells_questions_from_wrong_passwords_by_code() -> None:
    words = ("--listen", f"{HOST}:0", "--user", "me:secret", "--metrics", f"{HOST}:0", "--json")
    with serving(*words, "--max-bps", "100000") as process:
        addresses = ready(process)
        async with relayed(addresses["udp"]), relayed(addresses["udp"], "me", "wrong"):
            url = f"http://{addresses['http']}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=PATIENCE_S).read().decode())
        values = dict(line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
        assert float(values['iceagent_errors_total{code="401",kind="turn"}']) == 3
        assert float(values["iceagent_wrong_passwords_total"]) == 1
        assert float(values["iceagent_allocations"]) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_connections_that_say_nothing_do_not_keep_prometheus_out() -> None:
    """Nor do they cost a thread each; and who hangs up rudely is not logged."""
    with serving("--listen", f"{HOST}:0", "--metrics", f"{HOST}:0", "--json") as process, ExitStack() as stack:
        event = next_event(process)
        host, _, port = event["listeners"][-1]["address"].partition(":")
        slow = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
        for _ in range(MAX_CONNECTIONS - 1):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.0 200"
        for _ in range(3 * MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S)).sendall(b"GET /")
        page = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE_S).read().decode()
        assert "iceagent_allocations 0.0" in page
        assert len(os.listdir(f"/proc/{process.pid}/task")) <= MAX_CONNECTIONS + 4
        for _ in range(20):
            rude = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.close()
        assert urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE_S).status == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


def test_counters_are_read_while_the_server_counts() -> None:
    """By the thread that answers Prometheus."""
    accounts = Accounts(realm="example", users={"me": "secret"})
    loop = asyncio.new_event_loop()

    async def main() -> None:
        relaying = Relaying(turn=TurnOptions(accounts=accounts))
        options = ServerOptions(relaying=relaying)
        async with Server(local_host(), [TransportAddress(HOST, 0)], options=options) as server:
            counters = server._path.on_datagrams.counters  # type: ignore[union-attr]
            counters.update({f"dropped: {number}": 1 for number in range(60)})

            def read() -> int:
                for _ in range(300):
                    assert server.turn_counters["dropped: 1"] == 1
                return 300

            reading = loop.run_in_executor(None, read)
            while not reading.done():
                for _ in range(100):
                    counters["dropped: passing"] += 1
                    del counters["dropped: passing"]
                await asyncio.sleep(0)
            assert await reading == 300

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        loop.run_until_complete(main())
    finally:
        sys.setswitchinterval(interval_s)
        loop.close()


def test_metrics_that_cannot_be_end_it_before_it_is_ready() -> None:
    with socket.create_server((HOST, 0)) as holder:
        text = f"{HOST}:{holder.getsockname()[1]}"
        said = refused("--listen", f"{HOST}:0", "--metrics", text, "--json")
        assert f"--metrics {text}: Address already in use" in said


async def test_the_metrics_port_is_no_peer() -> None:
    """Nor is what the server listens on, although the network is allowed; everything else on this machine is."""
    words = ("--listen", f"{HOST}:0", "--user", "me:secret", "--metrics", f"{HOST}:0", "--allow-peer", "127.0.0.0/8")
    with serving(*words, "--json") as process:
        addresses = ready(process)
        to, inbox = parse_address(addresses["udp"]), Inbox()
        client = local_host().socket(TransportAddress(HOST, 0), inbox, SocketOptions())
        nonce = ""

        async def ask(method: int, *pairs: Pair) -> int:
            nonlocal nonce
            who: list[Pair] = [(USERNAME, "me"), (REALM, "iceagent"), (NONCE, nonce)]
            message = build(method, MessageClass.REQUEST, os.urandom(12), *pairs, *who)
            inbox.received.clear()
            client.send(message.encode(long_term_key("me", "iceagent", "secret")), to)
            await inbox.until(lambda: bool(inbox.received))
            answer = parse(inbox.received.pop()[0])
            nonce = answer.get(NONCE) or nonce
            code = 0 if answer.error is None else answer.error.code
            return await ask(method, *pairs) if code == 438 else code

        assert await ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17)) == 0
        peers = ((addresses["http"], 403), (addresses["udp"], 403), (f"{HOST}:9", 0), ("127.0.0.1:9", 0))
        for number, (text, expected) in enumerate(peers):
            peer: Pair = (XOR_PEER_ADDRESS, parse_address(text))
            assert await ask(Method.CREATE_PERMISSION, peer) == 0
            assert await ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001 + number), peer) == expected, text
        client.close()


async def test_logs_say_what_they_count() -> None:
    with serving("--listen", f"{HOST}:0", "--user", "me:secret", "--json", "-v", "--log-json") as process:
        async with relayed(ready(process)["udp"]):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["event"] for line in lines] == ["allocation.made", "allocation.ended"]
    assert (lines[1]["bytes_to_peers"], lines[1]["bytes_from_peers"]) == (0, 0)
