"""The reflector on real sockets of loopback addresses, and ``iceagent reflect`` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.net.local import LocalHost
from iceagent.net.sockets import UdpSocket
from relay.reflect.reflector import MAX_WAITING, Reflector
from relay.reflect.rules import ReflectLimits
from tests.loopback.loops import PATIENCE_S, Inbox, LoopFactory, on_both_loops, run

HOST = "127.86.5.1"
SIZES = (0, 1, 100, 101, 1200, 1472, 9000, 65_507)


class Trains(Inbox):
    """Keeps how many came at once as well."""

    def __init__(self) -> None:
        super().__init__()
        self.trains: list[int] = []

    def has(self, count: int) -> bool:
        """So many datagrams have come."""
        return len(self.received) >= count

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        self.trains.append(len(datagrams))
        self.received += [(data, source) for data in datagrams]
        self.tell()


@on_both_loops
@pytest.mark.parametrize("host", [HOST, "::1"])
def test_every_size_comes_back_identical_from_where_it_went(loop_factory: LoopFactory, host: str) -> None:
    async def main() -> None:
        local = LocalHost()
        async with Reflector(local, 0, backend="userspace", bind=[host]) as reflector:
            inbox = Inbox()
            client = local.socket(TransportAddress(host, 0), inbox, SocketOptions())
            for size in SIZES:
                inbox.received.clear()
                data = os.urandom(size)
                assert client.send(data, reflector.addresses[0]) == 0
                await inbox.until(lambda: bool(inbox.received))
                assert inbox.received == [(data, reflector.addresses[0])]
            client.close()
            # Of one's own address to one's own address: loopback is the exception that is meant.
            assert reflector.counters == {"answered": len(SIZES), "answered_bytes": sum(SIZES)}

    run(loop_factory, main())


@on_both_loops
def test_a_train_comes_back_as_one_and_a_limit_cuts_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        local = LocalHost()
        limits = ReflectLimits(per_source=1, burst=40)
        async with Reflector(local, 0, backend="userspace", bind=[HOST], limits=limits) as reflector:
            inbox = Trains()
            client = local.socket(TransportAddress(HOST, 0), inbox, SocketOptions())
            datagrams = [bytes([number]) * 100 for number in range(30)]
            for _ in range(2):
                assert client.send_many(datagrams, reflector.addresses[0]) == (30, 0)
            await inbox.until(lambda: len(inbox.received) == 40)
            assert [data for data, _ in inbox.received] == datagrams + datagrams[:10]
            assert inbox.trains == [30, 10]
            assert reflector.counters == {"answered": 40, "answered_bytes": 4000, "limited": 20}
            client.close()

    run(loop_factory, main())


@on_both_loops
def test_what_comes_in_one_turn_comes_back_in_order_to_each_source(loop_factory: LoopFactory) -> None:
    """Of any sizes, from several clients in turns, and more than waits for the end of a turn."""

    async def main() -> None:
        local = LocalHost()
        limits = ReflectLimits(per_source=100_000, total=1_000_000)
        async with Reflector(local, 0, backend="userspace", bind=[HOST, "::1"], limits=limits) as reflector:
            addresses = {address.version: address for address in reflector.addresses}
            inboxes = [Trains() for _ in range(6)]
            clients = [
                local.socket(TransportAddress("::1" if number % 2 else HOST, 0), inbox, SocketOptions())
                for number, inbox in enumerate(inboxes)
            ]
            sent: list[list[bytes]] = [[] for _ in clients]
            rounds = 4 * MAX_WAITING // len(clients)
            for turn in range(rounds):
                for client, datagrams in zip(clients, sent, strict=True):
                    datagrams.append(turn.to_bytes(2, "big") + bytes(turn % 3 * 50))
                    assert client.send(datagrams[-1], addresses[client.address.version]) == 0
                if turn % 40 == 39:
                    await asyncio.sleep(0.01)
            for inbox in inboxes:
                await inbox.until(partial(inbox.has, rounds))
            for client, inbox, datagrams in zip(clients, inboxes, sent, strict=True):
                assert inbox.received == [(data, addresses[client.address.version]) for data in datagrams]
                # What waited together left together.
                assert inbox.trains
                client.close()
            assert reflector.counters["answered"] == rounds * len(clients)

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("host", [HOST, "::1"])
def test_an_answer_has_one_hop_less_and_at_the_last_hop_there_is_none(loop_factory: LoopFactory, host: str) -> None:
    """So what circles between reflectors ends."""

    async def main() -> None:
        local = LocalHost()
        limits = ReflectLimits(per_source=100_000, total=1_000_000)
        async with Reflector(local, 0, backend="userspace", bind=[host], limits=limits) as reflector:
            ttls: list[int] = []

            class Client(Trains):
                def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
                    assert isinstance(socket, UdpSocket)
                    ttls.append(socket.received_ttl)
                    super().datagram_received(socket, data, source)

                def train_received(
                    self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]
                ) -> None:
                    assert isinstance(socket, UdpSocket)
                    ttls.append(socket.received_ttl)
                    super().train_received(socket, datagrams, source)

            inbox = Client()
            client = local.socket(TransportAddress(host, 0), inbox, SocketOptions(tells_ttl=True))
            assert isinstance(client, UdpSocket)
            for count, ttl in enumerate((64, 2, 255), 1):
                client.set_ttl(ttl)
                client.send(b"x", reflector.addresses[0])
                await inbox.until(partial(inbox.has, count))
            client.send_many([b"train"] * 5, reflector.addresses[0])
            await inbox.until(lambda: len(inbox.received) == 8)
            assert ttls == [63, 1, 254, 254] and inbox.trains == [5]
            client.set_ttl(1)
            client.send(b"x", reflector.addresses[0])
            client.send_many([b"train"] * 5, reflector.addresses[0])
            client.set_ttl(9)
            client.send(b"last", reflector.addresses[0])
            await inbox.until(lambda: len(inbox.received) == 9)
            assert ttls[-1] == 8
            assert reflector.counters["refused: TTL"] == reflector.counters["refused"] == 6
            client.close()

    run(loop_factory, main())


# --- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def reflecting(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``iceagent reflect`` in this process' stead of the kernel; it is ended at the latest when the block ends."""
    command = [sys.executable, "-m", "iceagent", "reflect", "--backend", "userspace", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=PATIENCE_S)
    event: dict[str, Any] = json.loads(line)
    return event


def ask(port: int, data: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, 0))
        client.settimeout(PATIENCE_S)
        client.sendto(data, (HOST, port))
        answer, source = client.recvfrom(70_000)
        assert source == (HOST, port)
        return answer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_the_command_answers_until_it_is_told_to_stop(number: signal.Signals, code: int) -> None:
    with reflecting("--port", "0", "--bind", HOST, "--json", "--every", "1") as process:
        ready = next_event(process)
        port = ready["port"]
        assert (ready["event"], ready["backend"], ready["addresses"]) == (
            "reflect.ready",
            "userspace",
            [f"{HOST}:{port}"],
        )
        assert ask(port) == b"hello"
        counters = next_event(process)
        counts = {"answered": 1, "answered_bytes": 5, "refused": 0, "limited": 0, "unsent": 0}
        assert counters == {"t": counters["t"], "event": "reflect.counters", **counts}
        assert ask(port, b"") == b""
        began = time.monotonic()
        process.send_signal(number)
        stopped = next_event(process)
        assert stopped == {"t": stopped["t"], "event": "reflect.stopped", **counts, "answered": 2}
        assert process.wait(PATIENCE_S) == code
        assert time.monotonic() - began < 1
        assert process.communicate() == ("", "")


def test_counters_that_do_not_change_are_not_told_again() -> None:
    with reflecting("--port", "0", "--bind", HOST, "--json", "--every", "1") as process:
        assert process.stdout is not None
        ask(next_event(process)["port"])
        assert next_event(process)["event"] == "reflect.counters"
        assert not select.select([process.stdout], [], [], 2.2)[0]


def test_the_command_speaks_plain_text_too() -> None:
    with reflecting("--port", "0", "--bind", HOST) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "reflect.ready port=" in line and f"backend=userspace addresses=[{HOST}:" in line
        process.send_signal(signal.SIGTERM)
        assert "reflect.stopped answered=0 answered_bytes=0 refused=0 limited=0" in process.stdout.read()


def test_a_terminal_shows_the_counters_live() -> None:
    """And no event for them."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "iceagent", "reflect", "--backend", "userspace", "--port", "0", "--bind", HOST]
    with subprocess.Popen(
        [*command, "--every", "1"], stdout=follower, stderr=follower, env={**os.environ, "COLUMNS": "150"}
    ) as process:
        os.close(follower)
        seen = ""

        def read_until(text: str) -> None:
            nonlocal seen
            deadline = time.monotonic() + PATIENCE_S
            while text not in seen:
                assert select.select([leader], [], [], deadline - time.monotonic())[0], seen
                seen += os.read(leader, 65_536).decode()

        try:
            read_until("0 answered (0/s, 0 bytes)")
            ask(int(seen.partition("port=")[2].split()[0]))
            read_until("1 answered (")
            read_until("5 bytes) · 0 refused · 0 limited")
            process.send_signal(signal.SIGINT)
            read_until("reflect.stopped answered=1")
            assert process.wait(PATIENCE_S) == 130
            assert "reflect.counters" not in seen
        finally:
            process.kill()
            os.close(leader)


def test_prometheus_is_told() -> None:
    with reflecting("--port", "0", "--bind", HOST, "--json", "--every", "1", "--metrics", f"{HOST}:0") as process:
        ready = next_event(process)
        ask(ready["port"])
        assert next_event(process)["event"] == "reflect.counters"
        page = urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=PATIENCE_S).read().decode()
        assert "iceagent_reflect_answered_total 1.0" in page
        assert "iceagent_reflect_answered_bytes_total 5.0" in page
        assert "iceagent_reflect_limited_total 0.0" in page
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def refused(*arguments: str) -> str:
    """A command line that must be refused: exit code 2, and one line."""
    command = [sys.executable, "-m", "iceagent", "reflect", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use_is_wrong_usage() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
        said = refused("--port", str(port), "--bind", HOST, "--backend", "userspace")
        assert f"cannot listen on {HOST}:{port} (udp): the port is in use" in said


def test_metrics_that_cannot_be_end_it_before_it_is_ready() -> None:
    with socket.create_server((HOST, 0)) as holder:
        text = f"{HOST}:{holder.getsockname()[1]}"
        said = refused("--port", "0", "--bind", HOST, "--backend", "userspace", "--metrics", text, "--json")
        assert f"--metrics {text}: Address already in use" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing option '--port'"),
        (["--port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["--port", "x"], "'x' is not a valid integer"),
        (["--port", "0", "--backend", "ebpf"], "'ebpf' is not one of 'auto', 'userspace', 'nftables'"),
        (["--port", "0", "--no-ipv4", "--no-ipv6"], "--no-ipv4 and --no-ipv6 together leave no address"),
        (["--port", "0", "--no-ipv4", "--bind", HOST], f"bind: {HOST} is of an IP version that is not to be used"),
        (["--port", "0", "--bind", "here"], "--bind here: an IPv4 or IPv6 address is expected"),
        (["--port", "0", "--bind", "224.0.0.1"], "bind: 224.0.0.1 is a multicast or broadcast address"),
        (["--port", "0", "--bind", "192.0.2.99"], "cannot listen on 192.0.2.99:0 (udp)"),
        (["--port", "0", "--interface", "eth77"], "there is no interface eth77; there are lo"),
        (["--port", "0", "--per-source", "0"], "0 is not in the range 1<=x<=1000000000"),
        (["--port", "0", "--total", "many"], "'many' is not a valid integer"),
        (["--port", "0", "--every", "0.5"], "0.5 is not in the range"),
        (["--port", "0", "--metrics", "127.0.0.1"], "--metrics '127.0.0.1': the port is missing"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], complaint: str) -> None:
    assert complaint in refused(*arguments)
