"""Rooms of a rendezvous server on real sockets: ``iceagent serve --rendezvous``, and who meets there."""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import SystemRandom

import pytest

from iceagent.description import Description
from iceagent.net.address import TransportAddress, parse_address
from iceagent.net.local import LocalHost
from iceagent.rendezvous.exchange import Refusal
from iceagent.rendezvous.mailbox import MAX_TEXT
from iceagent.rendezvous.mailbox_client import MailboxExchange, RoomUrl
from iceagent.rendezvous.mailbox_server import MailboxServer
from tests.certificates import make_certificate
from tests.loopback.loops import LoopFactory, on_both_loops, run
from tests.loopback.test_connect import PATIENCE_S, ROOT, Command, connect

ROOM = "our-secret.room_1"
ANY_PORT = TransportAddress("127.0.0.1", 0)
PING = ["--ping", "0.05", "--count", "5", "--json"]
# A change is to be seen within this time of the server's having it.
SEEN_S = 0.05


@asynccontextmanager
async def serve(*arguments: str, port: int = 0) -> AsyncIterator[tuple[Command, TransportAddress]]:
    """A server, and where its rooms are."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "serve", "--listen", "127.0.0.1:0"),
        *("--rendezvous", f"127.0.0.1:{port}", "--json", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    command = Command(process)
    try:
        await command.until(lambda: command.of("server.ready"))
        (address,) = [
            parse_address(each["address"])
            for each in command.of("server.ready")[0]["listeners"]
            if each["transport"] in ("http", "https")
        ]
        yield command, address
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*command.readers)


def ends(address: TransportAddress | str, scheme: str = "http") -> tuple[list[str], list[str]]:
    """The options of two commands that meet."""
    url = f"{scheme}://{address}/{ROOM}"
    return ["--role", "controlling", "--rendezvous", url], ["--role", "controlled", "--rendezvous", url]


# --- commands ----------------------------------------------------------------------------------------------------


async def test_two_commands_meet_in_a_room_and_again_right_after() -> None:
    """CLI contract: exit code 0 on a direct path. The second time nothing of the first is in the way."""
    async with serve() as (server, address):
        (ready,) = server.of("server.ready")
        assert ready["listeners"][-1] == {"transport": "http", "address": str(address)}
        first, second = ends(address)
        for _ in range(2):
            async with connect(*first, *PING) as a, connect(*second, *PING) as b:
                assert [await a.ended(), await b.ended()] == [0, 0]
            for command in (a, b):
                assert command.errors == []
                assert command.events[-1]["kind"] == "direct" and command.events[-1]["received"] == 5
                assert command.of("description.refused") == []
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.errors == []


async def test_over_https(tmp_path: Path) -> None:
    """With --tls-cert, descriptions are seen by nobody on the way; a certificate that is not to be trusted stops us."""
    pem, key = make_certificate(tmp_path, "localhost")
    tls_port = free_port()
    async with serve("--tls-cert", str(pem), "--tls-key", str(key), "--listen", f"127.0.0.1:{tls_port}") as (
        server,
        address,
    ):
        assert server.of("server.ready")[0]["listeners"][-1] == {"transport": "https", "address": str(address)}
        first, second = ends(f"localhost:{address.port}", "https")
        trusted = {"SSL_CERT_FILE": str(pem)}
        async with connect(*first, *PING, **trusted) as a, connect(*second, "--json") as b:
            await b.until(lambda: b.of("description.refused"))
            reason = b.of("description.refused")[0]["reason"]
            assert "its certificate is not valid: self-signed certificate" in reason and ROOM not in reason
            plain = [each.replace("https://", "http://") for each in second]
            async with connect(*plain, "--json") as c:
                await c.until(lambda: c.of("description.refused"))
                reason = c.of("description.refused")[0]["reason"]
                assert "it closes the connection without an answer: is this a port for https://?" in reason
            async with connect(*second, *PING, **trusted) as c:
                assert [await a.ended(), await c.ended()] == [0, 0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_comes_late_and_goes_early() -> None:
    """It is asked until it answers, and not needed any more once both are connected."""
    port = free_port()
    first, second = ends(TransportAddress("127.0.0.1", port))
    async with connect(*first, "--ping", "0.05", "--json") as a, connect(*second, "--json") as b:
        await a.until(lambda: a.of("description.refused"))
        assert a.of("description.refused")[0]["reason"] == f"http://127.0.0.1:{port}: Connection refused; asking again"
        async with serve(port=port):
            await a.until(lambda: a.of("ping.echoed"))
        seen = len(a.of("ping.echoed"))
        await a.until(lambda: len(a.of("ping.echoed")) > seen + 20)
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        a.process.send_signal(signal.SIGINT)
        # The other one hears that it closes.
        assert [await a.ended(), await b.ended()] == [130, 0]
        # A second for the command, and half of one for a busy machine.
        assert loop.time() - told_at < 1.5
        assert a.events[-1]["lost"] == 0


async def test_https_is_asked_for_where_http_is_spoken() -> None:
    async with serve() as (_, address), connect(*ends(address, "https")[0], "--json") as command:
        await command.until(lambda: command.of("description.refused"))
        assert "there is no TLS (wrong version number): is this a port for http://?" in command.errors[0]


async def test_interrupted_while_it_waits() -> None:
    """CLI contract: Ctrl-C ends cleanly within 1 s; and the room is empty at once."""
    async with serve() as (_, address):
        async with connect(*ends(address)[0], "--json") as a:
            await a.until(lambda: a.of("gathering.done"))
            connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
            await asyncio.to_thread(until_status, connection, 200)
            told_at = asyncio.get_running_loop().time()
            a.process.send_signal(signal.SIGINT)
            assert await a.ended() == 130
            assert asyncio.get_running_loop().time() - told_at < 1.5
        assert await asyncio.to_thread(status_of, connection) == 404
        connection.close()


def status_of(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", f"/{ROOM}/controlling")
    response = connection.getresponse()
    response.read()
    return response.status


def until_status(connection: http.client.HTTPConnection, wanted: int) -> None:
    for _ in range(1000):
        if status_of(connection) == wanted:
            return
    raise AssertionError(f"no {wanted}")


async def test_a_port_that_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "iceagent", "serve", "--listen", "127.0.0.1:0"),
            *("--rendezvous", f"127.0.0.1:{port}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        async with asyncio.timeout(PATIENCE_S):
            out, errors = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert errors.count(b"\n") == 1 and f"--rendezvous 127.0.0.1:{port}: ".encode() in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Give --out MINE and --in THEIRS, or --rendezvous URL"),
        (["--out", "x"], "Give --out MINE and --in THEIRS, or --rendezvous URL"),
        (["--rendezvous", f"http://h/{ROOM}", "--out", "x"], "--rendezvous URL stands in the place of --out and --in"),
        (["--rendezvous", f"h/{ROOM}"], "http://HOST[:PORT]/ROOM or https://HOST[:PORT]/ROOM is expected"),
        (["--rendezvous", "http://h/short"], "8 to 64 characters"),
    ],
)
async def test_wrong_usage(arguments: list[str], complaint: str) -> None:
    """CLI contract: 2 wrong usage, one line."""
    async with connect("--role", "controlling", *arguments) as command:
        assert await command.ended() == 2
    (line,) = command.errors
    assert complaint in line


async def test_an_address_without_a_port() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "iceagent", "serve", "--rendezvous", "127.0.0.1"),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    async with asyncio.timeout(PATIENCE_S):
        _, errors = await process.communicate()
    assert process.returncode == 2 and b"--rendezvous '127.0.0.1': the port is missing" in errors


# --- the parts, in this process ----------------------------------------------------------------------------------


@asynccontextmanager
async def mailbox() -> AsyncIterator[MailboxServer]:
    async with MailboxServer(LocalHost(), ANY_PORT, system_rng=SystemRandom()) as server:
        yield server


def exchange(server: MailboxServer, role: str, rng: random.Random) -> MailboxExchange:
    url = RoomUrl.parse(f"http://{server.address}/{ROOM}")
    return MailboxExchange(url, role=role, host=LocalHost(), rng=rng, system_rng=SystemRandom())


@on_both_loops
def test_changes_are_seen_within_50_ms(loop_factory: LoopFactory) -> None:
    """CLI contract. Half of them are to be: this machine may be busy in between."""

    async def main() -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(1)
        async with (
            mailbox() as server,
            exchange(server, "controlling", rng) as a,
            exchange(server, "controlled", rng) as b,
        ):
            found = b.descriptions()
            took_s = []
            for number in range(30):
                text = f"a=ice-ufrag:alice{number}\na=ice-pwd:0123456789012345678901\na=end-of-candidates\n"
                wanted = Description.parse(text)
                began_at = loop.time()
                a.publish(wanted)
                async with asyncio.timeout(PATIENCE_S):
                    assert await anext(found) == wanted
                took_s.append(loop.time() - began_at)
            assert sorted(took_s)[15] < SEEN_S, took_s
            assert server.counters["answered: 201"] == 1 and server.counters["answered: 204"] == 29

    run(loop_factory, main())


async def test_another_http_client_is_served() -> None:
    """Python's own, with a kept connection; and one that waits."""

    def story(address: TransportAddress) -> None:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        text = "a=ice-ufrag:alice\na=ice-pwd:0123456789012345678901\n"
        connection.request("PUT", f"/{ROOM}/controlling", text)
        written = connection.getresponse()
        assert (written.status, written.read()) == (201, b"")
        connection.request("GET", f"/{ROOM}/controlling")
        found = connection.getresponse()
        assert (found.status, found.read().decode(), found.headers["ETag"]) == (200, text, written.headers["ETag"])
        waiting = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        waiting.request("GET", f"/{ROOM}/controlling", headers={"If-None-Match": found.headers["ETag"]})
        token = {"Room-Token": written.headers["Room-Token"]}
        connection.request("PUT", f"/{ROOM}/controlling", text + "a=end-of-candidates\n", headers=token)
        replaced = connection.getresponse()
        assert (replaced.status, replaced.read()) == (204, b"")
        changed = waiting.getresponse()
        assert (changed.status, changed.read().decode()) == (200, text + "a=end-of-candidates\n")
        connection.request("DELETE", f"/{ROOM}/controlling", headers=token)
        assert connection.getresponse().status == 204
        connection.close()
        waiting.close()

    async with mailbox() as server:
        await asyncio.to_thread(story, server.address)


async def test_a_client_that_reads_nothing_is_not_answered_on_and_on() -> None:
    """What waits for it is bounded, and others are served meanwhile."""
    async with mailbox() as server:
        text = b"a=ice-ufrag:alice\na=ice-pwd:0123456789012345678901\n".ljust(MAX_TEXT, b"\n")
        path = f"/{ROOM}/controlling"
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(greedy, server.address)
            head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n".encode()
            await loop.sock_sendall(greedy, head + text)
            await loop.sock_sendall(greedy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 90)
            reader, writer = await asyncio.open_connection(*server.address)
            for _ in range(5):
                writer.write(f"GET {path.replace('ing', 'ed')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await reader.readuntil(b"nothing is here\n")).startswith(b"HTTP/1.1 404 ")
                await asyncio.sleep(0.05)
            writer.close()
            # The kernel holds some of them.
            assert 1 <= server.counters["answered: 200"] < 80
            stream = next(iter(server._streams.values()))
            assert stream._transport.get_write_buffer_size() < 4 * MAX_TEXT  # type: ignore[attr-defined]


async def test_noise_is_closed() -> None:
    async with mailbox() as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(os.urandom(100) + b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert server._core.connections == 0


@on_both_loops
def test_a_server_that_closes_leaves_nothing_behind(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        rng = random.Random(1)
        before = asyncio.all_tasks()
        async with mailbox() as server, exchange(server, "controlled", rng) as b:
            found = b.descriptions()
            while server._core._mailbox.waiting == 0:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            server.close()
            server.close()
            async with asyncio.timeout(PATIENCE_S):
                told = await anext(found)
            assert isinstance(told, Refusal) and "asking again" in told.reason
            await found.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before

    run(loop_factory, main())
