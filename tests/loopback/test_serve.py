"""The STUN server on real sockets, in this process and as ``iceagent serve``."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import (
    Interface,
    InterfaceAddress,
    InterfaceKind,
    Listener,
    SocketOptions,
    Stream,
    StreamListener,
    Subscription,
)
from iceagent.net.local import LocalHost
from iceagent.net.streams import connect_tcp
from relay.connections import MAX_UNREAD, MESSAGES_PER_TURN
from relay.places import Relaying
from relay.server import Listening, Server, ServerOptions, server_ssl_context
from relay.stun import (
    CHANGE_REQUEST,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.turn.server import Accounts, TurnOptions
from tests.certificates import make_certificate
from tests.loopback.loops import Ear, Inbox, LoopFactory, on_both_loops, run

ANY_PORT = TransportAddress("127.0.0.1", 0)
ANY_PORT_6 = TransportAddress("::1", 0)
REQUEST = build(Method.BINDING, MessageClass.REQUEST, bytes(range(12))).encode(fingerprint=False)

# The longest a test waits for a process, in seconds.
PATIENCE_S = 20


def address_of(server: Server, transport: str, host: str = "127.0.0.1") -> TransportAddress:
    (address,) = [
        each.address for each in server.listeners if each.transport == transport and each.address.host == host
    ]
    return address


async def ask_udp(
    host: LocalHost, destination: TransportAddress, local: TransportAddress, data: bytes = REQUEST
) -> tuple[TransportAddress, bytes, tuple[str, int]]:
    """Send one datagram; our own address, the answer, and who it came from."""
    inbox = Inbox()
    client = host.socket(local, inbox, SocketOptions())
    try:
        client.send(data, destination)
        await inbox.until(lambda: bool(inbox.received))
        answer, source = inbox.received[0]
        return client.address, answer, source
    finally:
        client.close()


async def ask_stream(stream: Stream, ear: Ear, data: bytes = REQUEST, answers: int = 1) -> list[bytes]:
    """Write; the next answers, 32 bytes each."""
    ear.data = b""
    stream.write(data)
    await ear.until(lambda: len(ear.data) >= 32 * answers)
    assert len(ear.data) == 32 * answers
    return [ear.data[start : start + 32] for start in range(0, len(ear.data), 32)]


async def settle() -> None:
    """Let transports finish closing."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for stun.example, and its key."""
    pem, key = make_certificate(tmp_path_factory.mktemp("tls"), "stun.example")
    return str(pem), str(key)


# --- the server --------------------------------------------------------------------------------------------------


@on_both_loops
def test_udp_and_tcp_of_both_ip_versions_are_answered(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        async with Server(host, [ANY_PORT, ANY_PORT_6]) as server:
            assert [each.transport for each in server.listeners] == ["udp", "tcp", "udp", "tcp"]
            for any_port in (ANY_PORT, ANY_PORT_6):
                udp = address_of(server, "udp", any_port.host)
                assert udp == address_of(server, "tcp", any_port.host), "one port for both"
                client, answer, source = await ask_udp(host, udp, any_port)
                assert source == udp
                assert parse(answer).get(XOR_MAPPED_ADDRESS) == client
            ear = Ear()
            stream = await connect_tcp(address_of(server, "tcp"), ear)
            (answer,) = await ask_stream(stream, ear)
            assert parse(answer).get(XOR_MAPPED_ADDRESS) == stream.local_address
            stream.close()
            assert server.counters["requests"] == 2
            assert server.stream_counters["requests"] == 1
        assert server.listeners == ()
        await settle()

    run(loop_factory, main())


@on_both_loops
def test_a_stream_may_be_cut_anywhere(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT]) as server:
            ear = Ear()
            stream = await connect_tcp(address_of(server, "tcp"), ear)
            await ask_stream(stream, ear, REQUEST * 50, answers=50)
            for position in range(len(REQUEST) - 1):
                stream.write(REQUEST[position : position + 1])
                await asyncio.sleep(0)
            await ask_stream(stream, ear, REQUEST[-1:])
            stream.close()
        await settle()

    run(loop_factory, main())


@on_both_loops
def test_tls_is_answered(loop_factory: LoopFactory, certificate: tuple[str, str]) -> None:
    async def main() -> None:
        options = ServerOptions(tls=server_ssl_context(*certificate), tls_port=0)
        trust = ssl.create_default_context(cafile=certificate[0])
        async with Server(LocalHost(), [ANY_PORT], options=options) as server:
            ear = Ear()
            stream = await connect_tcp(
                address_of(server, "tls"), ear, tls_server_name="stun.example", ssl_context=trust
            )
            (answer,) = await ask_stream(stream, ear)
            assert parse(answer).get(XOR_MAPPED_ADDRESS) == stream.local_address
        await ear.until(lambda: bool(ear.lost))
        await settle()

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G",
        REQUEST + bytes.fromhex("40000004") + b"data",
        b"\0\1\0\0" + bytes(16),
        bytes.fromhex("000100032112a442"),
    ],
    ids=["HTTP", "one byte", "ChannelData", "no cookie", "odd length"],
)
def test_who_does_not_speak_stun_is_cut_off(loop_factory: LoopFactory, noise: bytes) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT]) as server:
            ear = Ear()
            await connect_tcp(address_of(server, "tcp"), ear)
            stream = await connect_tcp(address_of(server, "tcp"), ear)
            stream.write(noise)
            await ear.until(lambda: bool(ear.lost))
        await ear.until(lambda: len(ear.lost) == 2)

    run(loop_factory, main())


@on_both_loops
def test_idle_streams_are_closed(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT], options=ServerOptions(stream_idle_s=0.02)) as server:
            ear = Ear()
            await connect_tcp(address_of(server, "tcp"), ear)
            await ear.until(lambda: ear.lost == [0])
            assert server.stream_counters == {"closed: idle": 1}

    run(loop_factory, main())


@on_both_loops
def test_there_are_only_so_many_streams(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT], options=ServerOptions(max_streams=2)) as server:
            ears = [Ear() for _ in range(3)]
            for ear in ears:
                stream = await connect_tcp(address_of(server, "tcp"), ear)
                await ask_stream(stream, ear)
            await ears[0].until(lambda: ears[0].lost == [0])
            assert (ears[1].lost, ears[2].lost) == ([], [])
            assert server.stream_counters == {"requests": 3, "closed: too many streams": 1}
        await ears[2].until(lambda: bool(ears[1].lost and ears[2].lost))

    run(loop_factory, main())


@on_both_loops
def test_a_stream_that_the_client_ends_is_forgotten(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT], options=ServerOptions(max_streams=1)) as server:
            for _ in range(3):
                reader, writer = await asyncio.open_connection(*address_of(server, "tcp"))
                writer.write(REQUEST)
                writer.write_eof()
                async with asyncio.timeout(PATIENCE_S):
                    assert len(await reader.read()) == 32, "the answer, and then the server's end"
                writer.close()
                await writer.wait_closed()
            assert server.stream_counters == {"requests": 3}, "none had to give way to another"
        await settle()

    run(loop_factory, main())


@on_both_loops
def test_answers_come_from_the_socket_that_was_asked_for(loop_factory: LoopFactory) -> None:
    """RFC 5780, 6.1, table 1, on four real sockets."""

    async def main() -> None:
        host = LocalHost()
        listen = [ANY_PORT, TransportAddress("127.0.0.2", 0)]
        async with Server(host, listen, options=ServerOptions(behaviour_discovery=True)) as server:
            udp = [each.address for each in server.listeners if each.transport == "udp"]
            assert [address.host for address in udp] == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
            assert [address.port for address in udp] == [udp[0].port, udp[0].port + 1] * 2
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                change = build(
                    Method.BINDING, MessageClass.REQUEST, bytes(12), (CHANGE_REQUEST, ChangeRequest(bool(i), bool(j)))
                )
                client, answer, source = await ask_udp(host, udp[0], ANY_PORT, change.encode())
                message = parse(answer)
                assert source == message.get(RESPONSE_ORIGIN) == udp[2 * i + j]
                assert message.get(OTHER_ADDRESS) == udp[3]
                assert message.get(XOR_MAPPED_ADDRESS) == client

    run(loop_factory, main())


@on_both_loops
def test_behaviour_discovery_is_for_datagrams_only(loop_factory: LoopFactory) -> None:
    """RFC 5780, 6, of a server that cannot: no OTHER-ADDRESS "in any Response", 420 to "any Request with a
    CHANGE-REQUEST".
    """

    async def main() -> None:
        listen = [ANY_PORT, TransportAddress("127.0.0.2", 0)]
        change = build(Method.BINDING, MessageClass.REQUEST, bytes(12), (CHANGE_REQUEST, ChangeRequest(False, False)))
        async with Server(LocalHost(), listen, options=ServerOptions(behaviour_discovery=True)) as server:
            address = next(each.address for each in server.listeners if each.transport == "tcp")
            ear = Ear()
            stream = await connect_tcp(address, ear)
            (answer,) = await ask_stream(stream, ear)
            assert [code for code, _ in parse(answer).attributes] == [XOR_MAPPED_ADDRESS.code]
            ear.data = b""
            stream.write(change.encode())
            await ear.until(lambda: len(ear.data) > 20 and len(ear.data) == 20 + int.from_bytes(ear.data[2:4], "big"))
            error = parse(ear.data).error
            assert error is not None
            assert error.code == 420
            stream.close()

    run(loop_factory, main())


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["0.0.0.0", "127.0.0.2"], ["127.0.0.1", "127.0.0.2", "127.0.0.3"]])
def test_behaviour_discovery_needs_two_concrete_addresses(hosts: list[str]) -> None:
    options = ServerOptions(behaviour_discovery=True)
    with pytest.raises(ValueError, match="exactly two concrete IPv4 addresses"):
        Server(LocalHost(), [TransportAddress(host, 3478) for host in hosts], options=options)


def test_a_server_needs_an_address() -> None:
    with pytest.raises(ValueError, match="needs an address"):
        Server(LocalHost(), [])


@on_both_loops
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_port_in_use_is_told_and_nothing_stays_open(loop_factory: LoopFactory, kind: int) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, kind) as holder:
            holder.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                holder.listen()
            taken = TransportAddress(*holder.getsockname())
            server = Server(LocalHost(), [TransportAddress("127.0.0.2", taken.port), taken])
            with pytest.raises(OSError, match=rf"cannot listen on {taken} \(\w+\): the port is in use") as caught:
                await server.__aenter__()
            assert caught.value.errno == errno.EADDRINUSE
            assert server.listeners == ()
        for free in ("127.0.0.1", "127.0.0.2"):
            async with Server(LocalHost(), [TransportAddress(free, taken.port)]):
                pass

    run(loop_factory, main())


class HostOfTwo(LocalHost):
    """This machine, as if it had only some loopback addresses, which change when :meth:`change` is called."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.hosts = hosts
        self.callback: Callable[[Sequence[Interface]], None] | None = None

    async def interfaces(self) -> Sequence[Interface]:
        addresses = tuple(InterfaceAddress(host=host, prefix_length=8) for host in self.hosts)
        return [Interface(name="lo", index=1, kind=InterfaceKind.LOOPBACK, addresses=addresses)]

    def watch_interfaces(self, callback: Callable[[Sequence[Interface]], None]) -> Subscription:
        self.callback = callback
        return Subscription(self._forget)

    async def change(self, *hosts: str) -> None:
        self.hosts = hosts
        assert self.callback is not None
        self.callback(await self.interfaces())

    def _forget(self) -> None:
        self.callback = None


@on_both_loops
def test_a_wildcard_answers_from_the_address_that_was_asked(loop_factory: LoopFactory) -> None:
    """RFC 8489, 6.3.1.2: "the source IP address and port of the response are equal to the destination IP address and
    port of the received request message". A socket on the wildcard would answer 127.0.0.2 from 127.0.0.1.
    """

    async def main() -> None:
        host = HostOfTwo("127.0.0.1", "127.0.0.2", "::1")
        async with Server(host, [TransportAddress("0.0.0.0", 0)]) as server:
            wildcard = address_of(server, "tcp", "0.0.0.0")
            assert server.listeners == (Listening("udp", wildcard), Listening("tcp", wildcard))
            for name in ("127.0.0.1", "127.0.0.2"):
                _, _, source = await ask_udp(host, wildcard._replace(host=name), ANY_PORT)
                assert source == (name, wildcard.port)
            await host.change("127.0.0.2", "127.0.0.3")
            _, _, source = await ask_udp(host, wildcard._replace(host="127.0.0.3"), ANY_PORT)
            assert source == ("127.0.0.3", wildcard.port)
            inbox = Inbox()
            client = host.socket(ANY_PORT, inbox, SocketOptions())
            client.send(REQUEST, wildcard._replace(host="127.0.0.1"))
            await inbox.until(lambda: bool(inbox.errors))
            client.close()
        assert host.callback is None
        await settle()

    run(loop_factory, main())


@on_both_loops
def test_an_address_that_has_gone_is_not_the_servers_own_any_more(loop_factory: LoopFactory) -> None:
    """Somebody else may have it: what is special about the server's own is over."""

    async def main() -> None:
        host = HostOfTwo("127.0.0.1", "127.0.0.2")
        turn = TurnOptions(accounts=Accounts(realm="x", users={"a": "b"}))
        relaying = Relaying(turn=turn, external={"198.41.0.4": "127.0.0.3"})
        async with Server(host, [TransportAddress("0.0.0.0", 0)], options=ServerOptions(relaying=relaying)) as server:
            assert server._service is not None
            own = server._service.policy.own
            assert own == {"127.0.0.1", "127.0.0.2", "127.0.0.3", "198.41.0.4"}
            await host.change("127.0.0.2", "127.0.0.3")
            assert own == {"127.0.0.2", "127.0.0.3", "198.41.0.4"}
            await host.change("127.0.0.1")
            # What was named stays.
            assert own == {"127.0.0.1", "127.0.0.3", "198.41.0.4"}

    run(loop_factory, main())


@on_both_loops
def test_closing_twice_is_fine_and_silences_everything(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        async with Server(host, [ANY_PORT]) as server:
            udp = address_of(server, "udp")
            ear = Ear()
            await connect_tcp(address_of(server, "tcp"), ear)
            before = asyncio.all_tasks()
        await server.aclose()
        await ear.until(lambda: bool(ear.lost))
        assert asyncio.all_tasks() <= before
        inbox = Inbox()
        client = host.socket(ANY_PORT, inbox, SocketOptions())
        client.send(REQUEST, udp)
        await inbox.until(lambda: bool(inbox.errors))
        client.close()

    run(loop_factory, main())


# --- in turns ----------------------------------------------------------------------------------------------------


class HeldStream:
    """A stream by hand: keeps what is written, and whether it is open."""

    def __init__(self, number: int) -> None:
        self.local_address = TransportAddress("127.0.0.1", 3478)
        self.remote_address = TransportAddress("127.0.0.1", 40000 + number)
        self.answers = 0
        self.is_open = True

    def write(self, data: bytes) -> None:
        assert self.is_open
        self.answers += 1

    def close(self) -> None:
        self.is_open = False


class PausableStream(HeldStream):
    """And remembers whether it may be read."""

    is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class HostOfStreams(LocalHost):
    """Listens for nothing: streams are handed to ``accept``."""

    accept: Callable[[Stream], StreamListener]

    async def listen_tcp(
        self,
        local: TransportAddress,
        accept: Callable[[Stream], StreamListener],
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Listener:
        self.accept = accept
        return await super().listen_tcp(local, accept, ssl_context=ssl_context)


@on_both_loops
def test_streams_are_read_in_turns_and_not_while_something_waits(loop_factory: LoopFactory) -> None:
    """A quarter of a mebibyte arrives in one read: 13,000 requests, half a second in which nobody else was answered."""

    async def main() -> None:
        host = HostOfStreams()
        async with Server(host, [ANY_PORT]) as server:
            streams = [PausableStream(number) for number in range(3)]
            for stream, count in zip(streams, (130, 1, 64), strict=True):
                host.accept(stream).data_received(stream, REQUEST * count)
            assert [stream.is_paused for stream in streams] == [True, True, True]
            found = []
            for _ in range(5):
                await asyncio.sleep(0)
                found.append([stream.answers for stream in streams])
            assert found == [[64, 0, 0], [64, 1, 63], [128, 1, 63], [130, 1, 64], [130, 1, 64]]
            assert [stream.is_paused for stream in streams] == [False, False, False]
            assert server.stream_counters == {"requests": 195}

    run(loop_factory, main())


@on_both_loops
def test_a_stream_that_cannot_be_paused_is_cut_off_when_too_much_waits(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = HostOfStreams()
        async with Server(host, [ANY_PORT]) as server:
            stream = HeldStream(0)
            ear = host.accept(stream)
            half = REQUEST * (MAX_UNREAD // 2 // len(REQUEST))
            ear.data_received(stream, half)
            await asyncio.sleep(0)
            ear.data_received(stream, half)
            before = (stream.is_open, stream.answers)
            ear.data_received(stream, half)
            assert (before, stream.is_open) == ((True, MESSAGES_PER_TURN), False)
            ear.data_received(stream, half)
            for _ in range(3):
                await asyncio.sleep(0)
            assert stream.answers == MESSAGES_PER_TURN
            assert server.stream_counters == {"requests": MESSAGES_PER_TURN}

    run(loop_factory, main())


@on_both_loops
def test_clients_that_pipeline_get_every_answer_and_delay_udp_by_a_few_turns(loop_factory: LoopFactory) -> None:
    clients, requests = 4, 2_000

    async def main() -> None:
        async with Server(LocalHost(), [ANY_PORT]) as server:
            ears = [Ear() for _ in range(clients)]
            for stream in [await connect_tcp(address_of(server, "tcp"), ear) for ear in ears]:
                stream.write(REQUEST * requests)
            most, before = 0, 0
            while before < clients * requests:
                await asyncio.sleep(0)
                now = server.stream_counters["requests"]
                most, before = max(most, now - before), now
            assert most == MESSAGES_PER_TURN
            for ear in ears:
                await ear.until(lambda ear=ear: len(ear.data) == 32 * requests)  # type: ignore[misc]
        await ears[-1].until(lambda: bool(ears[-1].lost))
        await settle()

    run(loop_factory, main())


# --- the command -------------------------------------------------------------------------------------------------


@contextmanager
def serving(*arguments: str, descriptors: tuple[int, int] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``iceagent serve`` as a process; it is ended at the latest when the block ends.

    ``descriptors``: the soft and hard limit that it begins with.
    """
    command = [sys.executable, "-m", "iceagent", "serve", *arguments]
    if descriptors is not None:
        command = ["prlimit", "--nofile={}:{}".format(*descriptors), *command]
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_the_command_answers_until_it_is_told_to_stop(number: signal.Signals, code: int) -> None:
    with serving("--listen", "127.0.0.1:0", "--json") as process:
        ready = next_event(process)
        assert ready["event"] == "server.ready"
        assert [each["transport"] for each in ready["listeners"]] == ["udp", "tcp"]
        host, _, port = ready["listeners"][0]["address"].partition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.sendto(REQUEST, (host, int(port)))
            assert parse(client.recv(100)).is_success
        process.send_signal(number)
        stopped = next_event(process)
        assert stopped["event"] == "server.stopped"
        assert (stopped["requests"], stopped["errors"]) == (1, 0)
        assert process.wait(PATIENCE_S) == code
        assert process.communicate() == ("", "")


def test_the_command_speaks_plain_text_too(certificate: tuple[str, str]) -> None:
    """TLS listens on 5349, which another program may hold; on an address of its own nothing is in the way."""
    arguments = ["--listen", "127.86.3.1:0", "--tls-cert", certificate[0], "--tls-key", certificate[1]]
    with serving(*arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "server.ready" in line
        assert "(transport=tls address=127.86.3.1:5349)" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("is_tls", [False, True], ids=["tcp", "tls"])
def test_silent_connections_do_not_exhaust_the_descriptors(certificate: tuple[str, str], is_tls: bool) -> None:
    """Twice as many as there are descriptors, under a hard limit: everybody else is answered, and nothing is logged."""
    arguments = ["--listen", "127.86.3.2:0", "--tls-cert", certificate[0], "--tls-key", certificate[1], "--json"]
    with serving(*arguments, descriptors=(100, 160)) as process, ExitStack() as stack:
        ready = next_event(process)
        addresses = {each["transport"]: each["address"].split(":") for each in ready["listeners"]}
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (160, 160)
        tcp, silent = (addresses["tcp"][0], int(addresses["tcp"][1])), addresses["tls" if is_tls else "tcp"]
        for _ in range(320):
            stack.enter_context(socket.create_connection((silent[0], int(silent[1])), timeout=PATIENCE_S))
        with socket.create_connection(tcp, timeout=PATIENCE_S) as client:
            client.sendall(REQUEST)
            assert len(client.recv(100)) == 32
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.sendto(REQUEST, tcp)
            assert len(client.recv(100)) == 32
        trust = ssl.create_default_context(cafile=certificate[0])
        plain = socket.create_connection((addresses["tls"][0], int(addresses["tls"][1])), timeout=PATIENCE_S)
        with trust.wrap_socket(plain, server_hostname="stun.example") as secure:
            secure.sendall(REQUEST)
            assert len(secure.recv(100)) == 32
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert next_event(process)["event"] == "server.stopped"
        assert process.communicate() == ("", "")


def refused(*arguments: str) -> str:
    """A command line that must be refused: exit code 2, and one line."""
    command = [sys.executable, "-m", "iceagent", "serve", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use_is_wrong_usage() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        text = f"127.0.0.1:{holder.getsockname()[1]}"
        assert f"cannot listen on {text} (udp): the port is in use; choose another" in refused("--listen", text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--listen", "example.com"], "'example.com' is not an IP address"),
        (["--listen", "127.0.0.1:x"], "'x' is not a port"),
        (["--listen", "224.0.0.1"], "--listen 224.0.0.1: a multicast or broadcast address belongs to no host"),
        (["--listen", "255.255.255.255:0"], "--listen 255.255.255.255: a multicast or broadcast address"),
        (["--listen", "[ff02::1]:3478"], "--listen ff02::1: a multicast or broadcast address"),
        (["--listen", "192.0.2.99:0"], "cannot listen on 192.0.2.99:0 (udp)"),
        (["--behaviour-discovery"], "exactly two concrete IPv4 addresses"),
        (["--behaviour-discovery", "--listen", "127.0.0.1"], "exactly two concrete IPv4 addresses"),
        (["--behaviour-discovery", "--listen", "127.0.0.1", "--listen", "127.0.0.1:9"], "differ in host and port"),
        (["--tls-cert", "x.pem"], "--tls-cert and --tls-key are given together"),
        (["--tls-cert", "/nowhere/x.pem", "--tls-key", "/nowhere/y.pem"], "No such file"),
        (["--user", "ab"], "NAME:PASSWORD is expected"),
        (["--user", "a:secret\n"], "--user, 'a': U+000A is not allowed"),
        (["--secret", "a\n"], "--secret: U+000A is not allowed"),
        (["--user", "a:b", "--user", "c:d", "--user", "a:e"], "--user: 'a' is given twice"),
        (["--user", "a:b", "--relay-address", "192.0.2.9"], "cannot relay on 192.0.2.9: it is no address of this host"),
        (["--user", "a:b", "--relay-address", "::"], "--relay-address: :: is not the address of one host"),
        (
            ["--user", "a:b", "--external-address", "198.41.0.4=192.0.2.9"],
            "--external-address: cannot relay on 192.0.2.9",
        ),
        (["--user", "a:b", "--external-address", "198.41.0.4=::1"], "both must be IPv4, or both IPv6"),
        (["--metrics", "127.0.0.1"], "--metrics '127.0.0.1': the port is missing"),
        (
            ["--allow-peer", "10.0.0.0/8"],
            "--allow-peer is about relaying, and nobody may relay: add --user or --secret",
        ),
        (["--max-allocations", "1000"], "--max-allocations is about relaying"),
        (["--realm", "x"], "--realm is about relaying"),
        (["--drain", "5"], "--drain is about relaying"),
        (["--users-file", "/nowhere"], "--users-file: /nowhere cannot be read: No such file"),
        (["--user", "a:b", "--allow-peer", "10.0.0.1/8"], "--allow-peer: '10.0.0.1/8' is no network"),
        (["--user", "a:b", "--relay-address", "here"], "--relay-address here: an IPv4 or IPv6 address is expected"),
        (["--user", "a:b", "--port-range", "9"], "two ports like"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], complaint: str) -> None:
    assert complaint in refused(*arguments)


def test_a_file_that_is_no_certificate_is_wrong_usage(tmp_path: Path, certificate: tuple[str, str]) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    pem, key = certificate
    assert f"--tls-cert {noise}: no certificate" in refused("--tls-cert", str(noise), "--tls-key", key)
    assert f"--tls-key {noise}: no private key" in refused("--tls-cert", pem, "--tls-key", str(noise))
    noise.write_text("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
    assert f"--tls-cert {noise}: damaged" in refused("--tls-cert", str(noise), "--tls-key", key)
    noise.write_text("-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n")
    assert f"--tls-key {noise}: the key is damaged" in refused("--tls-cert", pem, "--tls-key", str(noise))


def test_what_is_wrong_with_a_certificate_and_its_key(tmp_path: Path, certificate: tuple[str, str]) -> None:
    pem, key = certificate
    assert f"--tls-cert {key} has no certificate, but --tls-key {pem} has: swap the two" in refused(
        "--tls-cert", key, "--tls-key", pem
    )
    assert "--tls-key /nowhere/y.pem cannot be read: No such file" in refused(
        "--tls-cert", pem, "--tls-key", "/nowhere/y.pem"
    )
    assert f"--tls-cert {tmp_path} cannot be read: Is a directory" in refused(
        "--tls-cert", str(tmp_path), "--tls-key", key
    )
    for name, options in (("other", []), ("locked", ["-aes128", "-pass", "pass:secret"])):
        command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *options]
        subprocess.run([*command, "-out", str(tmp_path / name)], check=True, capture_output=True)
    other, locked = tmp_path / "other", tmp_path / "locked"
    assert f"--tls-key {other} is not the key of the certificate in --tls-cert {pem}" in refused(
        "--tls-cert", pem, "--tls-key", str(other)
    )
    assert f"--tls-key {locked}: the key is encrypted" in refused("--tls-cert", pem, "--tls-key", str(locked))
