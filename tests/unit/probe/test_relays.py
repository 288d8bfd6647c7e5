"""TURN servers as a probe finds them, on an Internet in memory: a strict model of one (``tests/fakes``), and what goes
wrong on the way to it. Whatever happens, nothing is left there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from iceagent.config import Config, IceServer
from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions, Stream, StreamListener
from iceagent.probe.measure import ProbeOptions, measure
from iceagent.probe.relays import RelayInquiry
from iceagent.probe.report import RelayRow, RelayStatus, Report
from iceagent.probe.verdict import Outlook, outlook
from iceagent.testing import MemoryHost, MemoryInternet, Network, box_of_kind, run
from relay.stun import StreamFramer
from tests.fakes.turn_server import Options, TurnServer

HOME, NAT = "192.168.1.2", "30.0.0.1"
HOST, OTHER, DEAD = "20.0.1.1", "20.0.2.1", "20.0.9.9"
URL = f"turn:{HOST}:3478"
USER = {"user": "secret"}
# Base, destination, datagram.
Outgoing = list[tuple[TransportAddress, TransportAddress, bytes]]
OK, REFUSED, NO_ANSWER, NOT_TESTED = RelayStatus.OK, RelayStatus.REFUSED, RelayStatus.NO_ANSWER, RelayStatus.NOT_TESTED


class TurnMachine:
    """A TURN server over UDP and TCP, each with allocations of its own.

    Attributes:
        by_udp, by_tcp: the models.
        is_deaf: it takes what comes, and says nothing.
    """

    def __init__(self, host: MemoryHost, address: str, options: Options) -> None:
        where = TransportAddress(address, 3478)
        self.by_udp, self.by_tcp = (TurnServer(where, options, random.Random(seed)) for seed in (1, 2))
        self.is_deaf = False
        self._host = host
        self._where = where
        self._socket = host.socket(where, self, SocketOptions())

    async def listen(self) -> None:
        await self._host.listen_tcp(self._where, self._accept)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        for answer in self.answers(self.by_udp, TransportAddress._make(source), data):
            socket.send(answer, source)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """Nothing to do."""

    def answers(self, server: TurnServer, client: TransportAddress, data: bytes) -> list[bytes]:
        outgoing = [] if self.is_deaf else server.from_client(client, data, self._host.now())
        return [answer for _, destination, answer in outgoing if destination == client]

    def assert_nothing_is_left(self) -> None:
        for server in (self.by_udp, self.by_tcp):
            assert (server.violations, server.allocations(self._host.now())) == ([], [])

    def _accept(self, stream: Stream) -> StreamListener:
        return _Client(self)


class _Client:
    def __init__(self, machine: TurnMachine) -> None:
        self._machine = machine
        self._framer = StreamFramer()

    def data_received(self, stream: Stream, data: bytes) -> None:
        for message in self._framer.feed(data):
            for answer in self._machine.answers(self._machine.by_tcp, stream.remote_address, message):
                stream.write(answer)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """Nothing to do."""


class World:
    """A client behind a box, and servers.

    Attributes:
        turn: the server at HOST.
        client: the client.
    """

    def __init__(self, box: str, options: Options) -> None:
        internet = MemoryInternet(Network(random.Random(1)))
        router = internet.network.add_nat("router", box_of_kind(box, [NAT], random.Random(2)))
        self.internet = internet
        self.turn = TurnMachine(internet.host("turn", [HOST]), HOST, options)
        self.client = internet.host("me", [HOME], router)

    async def probe(self, *urls: str, password: str = "secret", config: Config | None = None) -> Report:
        server = IceServer(urls=urls, username="user", credential=password)
        options = ProbeOptions(servers=(server,), config=config or Config(), timeout_s=3.0)
        return await measure(options, self.client, rng=random.Random(4), system_rng=random.Random(3))


def probe(
    *urls: str,
    box: str = "port-restricted",
    options: Options | None = None,
    password: str = "secret",
    config: Config | None = None,
    prepare: Callable[[World], object] = lambda world: None,
) -> Report:
    async def main() -> Report:
        world = World(box, options or Options(users=USER))
        await world.turn.listen()
        prepare(world)
        report = await world.probe(*urls, password=password, config=config)
        world.turn.assert_nothing_is_left()
        return report

    return run(main())


def rows(report: Report) -> list[tuple[str, RelayStatus, str]]:
    assert isinstance(report.relays, tuple)
    return [(row.transport, row.status, row.reason) for row in report.relays]


def found_rows(report: Report) -> tuple[RelayRow, ...]:
    assert isinstance(report.relays, tuple)
    return report.relays


def relay(report: Report, index: int = 0) -> RelayRow:
    return found_rows(report)[index]


def test_a_url_without_a_transport_is_tried_over_udp_and_tcp() -> None:
    report = probe(URL)
    assert rows(report) == [("udp", OK, ""), ("tcp", OK, "")]
    assert relay(report).rtt_ms == pytest.approx(40)
    assert [address.version for address in relay(report).relayed] == [4, 6]
    assert report.duration_ms < 700


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_url_with_a_transport_is_tried_over_that(transport: str) -> None:
    assert rows(probe(f"{URL}?transport={transport}")) == [(transport, OK, "")]


def test_tls_is_tls_and_dtls_is_not_there() -> None:
    found = rows(probe(f"turns:{HOST}", f"turns:{HOST}?transport=tcp", f"turns:{HOST}?transport=udp"))
    assert [row[:2] for row in found] == [("tls", NO_ANSWER), ("tls", NO_ANSWER), ("dtls", REFUSED)]
    assert (found[0][2], found[2][2]) == ("Connection refused", "TURN over DTLS is not supported")


def test_a_family_that_is_refused_beside_one_that_is_given_is_told() -> None:
    report = probe(f"{URL}?transport=udp", options=Options(users=USER, ipv6_relay=False))
    assert rows(report) == [("udp", OK, relay(report).reason)]
    assert relay(report).reason.startswith("no address of the other family: 440")


def test_a_wrong_password_is_refused_and_no_server_is_asked_twice_for_it() -> None:
    report = probe(URL, password="guessed")
    assert [row[:2] for row in rows(report)] == [("udp", REFUSED), ("tcp", REFUSED)]
    assert relay(report).reason.startswith("401 user name or password are wrong")
    assert any(sentence.startswith(f"No relay works; mend or replace {URL} over UDP") for sentence in report.advice)


def test_a_password_that_cannot_be_sent_is_not_tried() -> None:
    found = rows(probe(URL, password="a\x00b"))
    assert [row[:2] for row in found] == [("udp", NOT_TESTED), ("tcp", NOT_TESTED)] and found[0][2]


def test_a_quota_is_told_in_the_servers_words() -> None:
    report = probe(URL, options=Options(users=USER, quota=0))
    assert [row[1] for row in rows(report)] == [REFUSED, REFUSED]
    assert relay(report).reason.startswith("486 ")


class Shared:
    """One count of allocations for both transports of a machine, as a server has it.

    Args:
        machine: whose.
        quota: allocations at once.

    Attributes:
        refusals: with 486.
        is_full: there is no place for another one, whatever there are.
    """

    def __init__(self, machine: TurnMachine, quota: int) -> None:
        self.refusals = 0
        self.is_full = False
        self._machine = machine
        for server, other in ((machine.by_udp, machine.by_tcp), (machine.by_tcp, machine.by_udp)):
            take = server.from_client

            def counted(
                client: TransportAddress,
                data: bytes,
                now: float,
                server: TurnServer = server,
                other: TurnServer = other,
                take: Callable[[TransportAddress, bytes, float], Outgoing] = take,
            ) -> Outgoing:
                server.options = replace(
                    server.options, quota=0 if self.is_full else quota - len(other.allocations(now))
                )
                before = server.counters["486"]
                answers = take(client, data, now)
                self.refusals += server.counters["486"] - before
                return answers

            server.from_client = counted  # type: ignore[method-assign]

    def held(self, now: float) -> int:
        """Allocations."""
        return sum(len(server.allocations(now)) for server in (self._machine.by_udp, self._machine.by_tcp))


@pytest.mark.parametrize("box", ["port-restricted", "symmetric"])
def test_a_user_with_one_allocation_has_it_over_every_transport(box: str) -> None:
    """Not "486" because another way of the same probe holds it."""
    shared: list[Shared] = []
    report = probe(URL, box=box, prepare=lambda world: shared.append(Shared(world.turn, 1)))
    assert rows(report) == [("udp", OK, ""), ("tcp", OK, "")]
    assert shared[0].refusals > 0
    assert report.duration_ms < 2_000


def test_where_no_allocation_was_ours_nobody_is_asked_again() -> None:
    shared: list[Shared] = []
    report = probe(URL, prepare=lambda world: shared.append(Shared(world.turn, 0)))
    assert [(row[1], row[2][:4]) for row in rows(report)] == [(REFUSED, "486 ")] * 2
    # Both ways, and the agent's two.
    assert shared[0].refusals == 4 and report.duration_ms < 1_000


def test_a_server_that_counts_what_was_given_back_for_a_second_more() -> None:
    """coturn 4.6 does."""

    def prepare(world: World) -> None:
        shared = Shared(world.turn, 1)
        answer, given_back_at = world.turn.answers, float("-inf")

        def slow(server: TurnServer, client: TransportAddress, data: bytes) -> list[bytes]:
            nonlocal given_back_at
            before, now = shared.held(world.client.now()), world.client.now()
            shared.is_full = now < given_back_at + 1.0
            answers = answer(server, client, data)
            if shared.held(now) < before:
                given_back_at = now
            return answers

        world.turn.answers = slow  # type: ignore[method-assign]

    report = probe(URL, prepare=prepare)
    assert rows(report) == [("udp", OK, ""), ("tcp", OK, "")]
    assert 1_200 < report.duration_ms < 4_000


def test_a_server_that_falls_silent_keeps_its_refusal() -> None:
    """To Allocate requests."""

    def prepare(world: World) -> None:
        Shared(world.turn, 1)
        answer = world.turn.answers

        def until_refused(server: TurnServer, client: TransportAddress, data: bytes) -> list[bytes]:
            is_silent = data[:2] == b"\0\3" and world.client.now() > 1.0
            return [] if is_silent else answer(server, client, data)

        world.turn.answers = until_refused  # type: ignore[method-assign]

    # A dead one beside it holds the first round up for three seconds.
    report = probe(URL, f"turn:{DEAD}?transport=udp", prepare=prepare)
    assert [(row[1], row[2][:4]) for row in rows(report)] == [(OK, ""), (REFUSED, "486 "), (NO_ANSWER, "no a")]


def test_who_answers_stun_alone_is_told_so() -> None:
    """A STUN server that does not even refuse an Allocate request."""

    def prepare(world: World) -> None:
        answer = world.turn.answers
        world.turn.answers = (  # type: ignore[method-assign]
            lambda server, client, data: answer(server, client, data) if data[:2] == b"\0\1" else []
        )

    report = probe(URL, f"turn:{DEAD}?transport=udp", prepare=prepare)
    assert rows(report) == [
        ("udp", NO_ANSWER, "it answers STUN, but not TURN: does it relay at all?"),
        ("tcp", NO_ANSWER, "it takes the connection, but does not answer"),
        ("udp", NO_ANSWER, "no answer"),
    ]
    assert any("does it relay at all?" in sentence for sentence in report.advice)


def test_who_is_sent_to_another_server_goes_there() -> None:
    """RFC 8489, 10: 300 (Try Alternate)."""
    others: list[TurnMachine] = []

    def prepare(world: World) -> None:
        others.append(TurnMachine(world.internet.host("other", [OTHER]), OTHER, Options(users=USER)))

    options = Options(users=USER, alternate=TransportAddress(OTHER, 3478))
    report = probe(f"{URL}?transport=udp", options=options, prepare=prepare)
    assert rows(report) == [("udp", OK, "")]
    others[0].assert_nothing_is_left()


def test_who_is_sent_in_a_circle_stops() -> None:
    options = Options(users=USER, alternate=TransportAddress(HOST, 3478))
    ((transport, status, reason),) = rows(probe(f"{URL}?transport=udp", options=options))
    assert (transport, status) == ("udp", REFUSED) and reason.endswith(f"(to {HOST}:3478)")


def test_silence_ends_with_the_timeout_and_says_how_far_it_went() -> None:
    report = probe(URL, f"turn:{DEAD}", prepare=lambda world: setattr(world.turn, "is_deaf", True))
    assert rows(report) == [
        ("udp", NO_ANSWER, "no answer"),
        ("tcp", NO_ANSWER, "it takes the connection, but does not answer"),
        ("udp", NO_ANSWER, "no answer"),
        ("tcp", NO_ANSWER, "No route to host"),
    ]
    # Nobody was heard: nobody gets a goodbye.
    assert 3_000 <= report.duration_ms < 4_100
    assert outlook(report) is Outlook.NOTHING


def test_a_name_that_does_not_exist() -> None:
    ((_, status, reason), _) = rows(probe("turn:nowhere.example"))
    assert status is NO_ANSWER and reason.startswith("its name does not resolve")


def test_an_address_that_nothing_leads_to_is_not_tested() -> None:
    assert rows(probe("turn:[2001:db8::1]")) == [
        ("udp", NOT_TESTED, "this host has no IPv6 route to it"),
        ("tcp", NOT_TESTED, "this host has no IPv6 route to it"),
    ]
    assert rows(probe(URL, config=Config(ipv4=False)))[0] == ("udp", NOT_TESTED, "IPv4 is switched off")


def test_a_name_with_a_dead_address_and_a_living_one() -> None:
    def prepare(world: World) -> None:
        world.internet.names["turn.example"] = ["2001:db8::1", HOST]

    assert [row[1] for row in rows(probe("turn:turn.example:3478", prepare=prepare))] == [OK, OK]


def test_a_server_that_knows_turn_alone_shows_what_udp_does() -> None:
    """Its answer to a Binding request is switched off by many: it amplifies attacks."""

    def prepare(world: World) -> None:
        take = world.turn.by_udp.from_client
        world.turn.by_udp.from_client = (  # type: ignore[method-assign]
            lambda client, data, now: [] if data[:2] == b"\0\1" else take(client, data, now)
        )

    report = probe(f"{URL}?transport=udp", prepare=prepare)
    assert (report.udp[4], report.layers, outlook(report)) == (True, 1, Outlook.DIRECT)
    (seen,) = report.reflexive
    assert (seen.address.host, seen.server) == (NAT, f"{URL}?transport=udp")


def test_where_tcp_alone_leads_out_a_relay_will_do() -> None:
    def prepare(world: World) -> None:
        world.client.node.link.realm.gateway.udp_ports = frozenset()  # type: ignore[union-attr]

    report = probe(URL, prepare=prepare)
    assert [row[1] for row in rows(report)] == [NO_ANSWER, OK]
    assert (report.udp[4], outlook(report)) == (False, Outlook.RELAY)
    assert (
        report.advice[0] == f"No server answered over UDP: peers can be reached by a relay only; {URL} over TCP works."
    )


def test_relays_over_streams_alone_are_no_test_of_udp() -> None:
    report = probe(f"{URL}?transport=tcp")
    assert not isinstance(report.udp[4], bool) and "asked over UDP" in report.udp[4].reason
    assert outlook(report) is Outlook.RELAY


def test_whoever_interrupts_it_leaves_nothing_behind() -> None:
    """Ctrl-C: what was allocated, and what was just being asked for, is given back."""

    async def main() -> None:
        for after_s in (0.03, 0.05, 0.07, 0.09, 0.2):
            world = World("port-restricted", Options(users=USER))
            await world.turn.listen()
            task = asyncio.ensure_future(world.probe(URL, f"turn:{DEAD}"))
            await asyncio.sleep(after_s)
            began = world.client.now()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert world.client.now() - began < 0.8
            world.turn.assert_nothing_is_left()

    run(main())


def test_the_goodbyes_are_waited_for() -> None:
    """An answer that is on its way may be a relayed address."""

    async def ask(inquiry: RelayInquiry) -> None:
        async with inquiry:
            await inquiry.run([IceServer(urls=(URL,), username="user", credential="secret")])

    async def main() -> None:
        for after_ms in range(10, 150, 10):
            world = World("port-restricted", Options(users=USER))
            await world.turn.listen()
            inquiry = RelayInquiry(
                world.client,
                await world.client.interfaces(),
                Config(),
                timeout_s=3.0,
                rng=random.Random(4),
                system_rng=random.Random(3),
                tell=lambda _: None,
            )
            task = asyncio.ensure_future(ask(inquiry))
            await asyncio.sleep(after_ms / 1000)
            task.cancel()
            await asyncio.wait([task])
            # What is closed without a goodbye would be allocated by now.
            await asyncio.sleep(0.2)
            world.turn.assert_nothing_is_left()

    run(main())


def test_the_same_way_is_tried_once() -> None:
    assert len(rows(probe(URL, URL, f"{URL}?transport=udp"))) == 3


def test_what_is_done_is_json() -> None:
    report = replace(probe(URL, f"turn:{DEAD}?transport=tcp"), duration_ms=0.0)
    first, _, last = report.as_json()["relays"]
    keys = {"server", "transport", "status", "rtt_ms", "relayed", "relayed_all", "reason", "data_rtt_ms", "mobility"}
    assert set(first) == keys
    assert (first["server"], first["transport"], first["status"], first["reason"]) == (URL, "udp", "ok", None)
    assert first["relayed"] == str(relay(report).relayed[0])
    assert (
        first["relayed_all"] == [str(address) for address in relay(report).relayed] and len(first["relayed_all"]) == 2
    )
    assert (first["mobility"], first["data_rtt_ms"]) == (False, None)
    assert (last["status"], last["rtt_ms"], last["relayed"]) == ("no-answer", None, None)
    assert (last["mobility"], last["data_rtt_ms"]) == (None, None)


# --- mobility ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"), [(True, True), (False, False), (None, False)], ids=["a ticket", "ignored", "405"]
)
def test_whether_the_server_gives_a_ticket(given: bool | None, expected: bool) -> None:
    """RFC 8016, 3.1: it gives one, ignores the attribute, or forbids it (405), and is asked again without."""
    report = probe(URL, options=Options(users=USER, mobility=given))
    assert [(row.status, row.mobility) for row in found_rows(report)] == [(OK, expected)] * 2


def test_of_a_relay_that_there_is_not_nothing_is_known() -> None:
    report = probe(URL, options=Options(users=USER, mobility=True), password="guessed")
    assert [row.mobility for row in found_rows(report)] == [None, None]


def test_what_is_no_answer_of_the_servers_is_no_ticket() -> None:
    """Noise, and a message of another kind, before the answer; neither harms."""

    def prepare(world: World) -> None:
        take = world.turn.by_udp.from_client

        def noisy(client: TransportAddress, data: bytes, now: float) -> Outgoing:
            here = TransportAddress(HOST, 3478)
            noise = [(here, client, b""), (here, client, b"\1\3\0"), (here, client, b"\x40\0\0\1x")]
            return noise + take(client, data, now)

        world.turn.by_udp.from_client = noisy  # type: ignore[method-assign]

    report = probe(f"{URL}?transport=udp", options=Options(users=USER, mobility=True), prepare=prepare)
    assert [(row.status, row.mobility) for row in found_rows(report)] == [(OK, True)]


# --- data --------------------------------------------------------------------------------------------------------


def test_a_named_server_is_not_sent_data() -> None:
    """Where its relayed address is behind a NAT of its own, it may not reach itself, and is none the worse."""
    sent: list[int] = []

    def prepare(world: World) -> None:
        take = world.turn.by_udp.from_client

        def note(client: TransportAddress, data: bytes, now: float) -> Outgoing:
            sent.append(int.from_bytes(data[:2], "big"))
            return take(client, data, now)

        world.turn.by_udp.from_client = note  # type: ignore[method-assign]

    probe(f"{URL}?transport=udp", prepare=prepare)
    # Binding, Allocate, Refresh: no CreatePermission, no Send.
    assert set(sent) == {0x001, 0x003, 0x004}


def ask_as_ours(options: Options, *, timeout_s: float = 3.0, seconds: float | None = None) -> tuple[RelayRow, ...]:
    """As if the server at HOST were ours; it drops what it should relay."""

    async def main() -> tuple[RelayRow, ...]:
        world = World("port-restricted", options)
        await world.turn.listen()
        inquiry = RelayInquiry(
            world.client,
            await world.client.interfaces(),
            Config(),
            timeout_s=timeout_s,
            rng=random.Random(4),
            system_rng=random.Random(3),
            tell=lambda _: None,
        )
        began = world.client.now()
        async with inquiry:
            await inquiry.run([IceServer(urls=(URL,), username="user", credential="secret")], are_ours=True)
        assert seconds is None or world.client.now() - began == pytest.approx(seconds, abs=0.3)
        assert inquiry.observations == []
        world.turn.assert_nothing_is_left()
        return inquiry.rows

    return run(main())


def test_a_relay_that_drops_data_is_no_answer() -> None:
    for row in ask_as_ours(Options(users=USER), seconds=1.5):
        assert (row.status, row.rtt_ms is not None, row.data_rtt_ms) == (NO_ANSWER, True, None)
        assert row.reason == f"a datagram through {row.relayed[0]} does not come back"


def test_a_relay_that_refuses_the_peer_is_refused() -> None:
    forbidden = Options(users=USER, forbidden=frozenset({"198.51.100.1"}))
    for row in ask_as_ours(forbidden, seconds=0.2):
        assert (row.status, row.reason) == (REFUSED, f"{row.relayed[0]} may not send (403 Forbidden)")


def test_what_does_not_come_through_before_the_timeout_says_so() -> None:
    for row in ask_as_ours(Options(users=USER), timeout_s=0.6, seconds=0.7):
        assert (row.status, row.reason, len(row.relayed)) == (NO_ANSWER, "no datagram came through in time", 2)
