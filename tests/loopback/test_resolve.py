"""Names: the system's resolver for what needs no network, and SRV against a name server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Iterator

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset
import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.net.resolve import MAX_SRV_RECORDS, resolve, resolve_srv
from iceagent.net.sockets import UdpSocket, open_socket
from tests.loopback.loops import Inbox, LoopFactory, on_both_loops, run

NAME = "_stun._udp.example.org."


class NameServer(Inbox):
    """Answers each question with what ``answer`` makes of it; ``None``: not at all."""

    def __init__(self, answer: Callable[[dns.message.Message], dns.message.Message | None]) -> None:
        super().__init__()
        self._answer = answer

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        super().datagram_received(socket, data, source)
        answer = self._answer(dns.message.from_wire(data))
        if answer is not None:
            socket.send(answer.to_wire(max_size=65_000), source)


@contextlib.contextmanager
def serving(server: NameServer) -> Iterator[dns.asyncresolver.Resolver]:
    sock: UdpSocket = open_socket(TransportAddress("127.0.0.1", 0), server, SocketOptions(), asyncio.get_running_loop())
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [sock.address.host]
    resolver.port = sock.address.port
    try:
        yield resolver
    finally:
        sock.close()


def records(*texts: str) -> Callable[[dns.message.Message], dns.message.Message]:
    def answer(question: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(question)
        response.answer.append(dns.rrset.from_text(NAME, 60, "IN", "SRV", *texts))
        return response

    return answer


@on_both_loops
@pytest.mark.parametrize(
    ("name", "host"),
    [("192.0.2.1", "192.0.2.1"), ("2001:DB8:0::1", "2001:db8::1"), ("::ffff:192.0.2.1", "192.0.2.1")],
)
def test_an_ip_address_is_its_own_answer(loop_factory: LoopFactory, name: str, host: str) -> None:
    async def main() -> None:
        assert list(await resolve(name)) == [host]

    run(loop_factory, main())


@on_both_loops
def test_localhost_is_in_the_systems_table(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        found = await resolve("localhost")
        assert "127.0.0.1" in found or "::1" in found
        assert len(found) == len(set(found))

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize(
    "name", ["", "a" * 64 + ".example", "x" * 254, "a..example", "nul\0.example", "a.b" * 120], ids=repr
)
def test_what_is_no_name_is_an_os_error(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await resolve(name)

    run(loop_factory, main())


@on_both_loops
def test_srv_records_come_in_the_order_of_their_priority(loop_factory: LoopFactory) -> None:
    """RFC 2782: a client MUST attempt to contact the target host with the lowest-numbered priority it can reach."""

    async def main() -> None:
        answer = records("20 0 3478 late.example.", "10 0 3479 first.example.", "30 5 3480 last.example.")
        with serving(NameServer(answer)) as resolver:
            found = await resolve_srv(NAME, resolver)
        assert [(record.host, record.port, record.priority, record.weight) for record in found] == [
            ("first.example", 3479, 10, 0),
            ("late.example", 3478, 20, 0),
            ("last.example", 3480, 30, 5),
        ]

    run(loop_factory, main())


@on_both_loops
def test_weights_steer_the_order_within_a_priority(loop_factory: LoopFactory) -> None:
    """RFC 2782: larger weights SHOULD be given a proportionately higher probability of being selected."""
    random.seed(1)

    async def main() -> None:
        firsts = []
        with serving(NameServer(records("10 90 1 heavy.example.", "10 10 2 light.example."))) as resolver:
            for _ in range(200):
                firsts.append((await resolve_srv(NAME, resolver))[0].host)
        assert 150 < firsts.count("heavy.example") < 200

    run(loop_factory, main())


@on_both_loops
def test_a_service_that_is_decidedly_not_there(loop_factory: LoopFactory) -> None:
    """RFC 2782: a Target of "." means that the service is decidedly not available at this domain."""

    async def main() -> None:
        with serving(NameServer(records("0 0 0 ."))) as resolver:
            assert list(await resolve_srv(NAME, resolver)) == []

    run(loop_factory, main())


@on_both_loops
def test_too_many_records_are_cut(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        texts = [f"{number} 0 3478 server{number}.example." for number in range(100)]
        with serving(NameServer(records(*texts))) as resolver:
            found = await resolve_srv(NAME, resolver)
        assert [record.priority for record in found] == list(range(MAX_SRV_RECORDS))

    run(loop_factory, main())


def refused(question: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(question)
    response.set_rcode(dns.rcode.REFUSED)
    return response


def no_such_name(question: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(question)
    response.set_rcode(dns.rcode.NXDOMAIN)
    return response


@on_both_loops
@pytest.mark.parametrize("answer", [refused, no_such_name, lambda _: None], ids=["refused", "no such name", "silence"])
def test_failure_is_an_empty_answer_within_two_seconds(
    loop_factory: LoopFactory, answer: Callable[[dns.message.Message], dns.message.Message | None]
) -> None:
    async def main() -> None:
        with serving(NameServer(answer)) as resolver:
            async with asyncio.timeout(4):
                assert list(await resolve_srv(NAME, resolver)) == []

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("name", ["192.0.2.1", "::1", "x" * 254, "a" * 64 + ".example", "a..b"], ids=repr)
def test_nobody_is_asked_about_what_is_no_name(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        server = NameServer(records("0 0 1 a.example."))
        with serving(server) as resolver:
            assert list(await resolve_srv(name, resolver)) == []
        assert server.received == []

    run(loop_factory, main())
