"""A whole probe, on an Internet in memory and in virtual time: what it reports of every kind of NAT, and how soon."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import pytest

from iceagent.config import Config, IceServer
from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress
from iceagent.net.host import (
    DatagramReceiver,
    DatagramSocket,
    Host,
    Listener,
    Proxy,
    SocketOptions,
    Stream,
    StreamListener,
)
from iceagent.probe.measure import ProbeOptions, measure
from iceagent.probe.report import Allocation, NotTested, RelayRow, RelayStatus, Report, ServerStatus
from iceagent.probe.verdict import Outlook, outlook
from iceagent.testing import MemoryHost, MemoryInternet, Network, add_stun_server, box_of_kind, run
from iceagent.testing.nat import Middlebox
from relay.stun import USERHASH, parse

HOME = "192.168.1.2"
NAT = "30.0.0.1"
FULL, FULL_2 = "20.0.1.1", "20.0.1.2"
PLAIN, OTHER = "20.0.2.1", "20.0.3.1"
DEAD = "20.0.9.9"
SERVERS = {"full": [FULL, FULL_2], "plain": [PLAIN], "other": [OTHER], "six": ["2001:db8:5::1"]}
# No longer than this after the last answer: a probe does not wait for nothing.
SLACK_MS = 100


class Wrapped:
    """A host or a socket but for what a test changes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def refuse(stream: Stream) -> StreamListener:
    raise AssertionError("nobody comes")


class Deaf:
    """Receives nothing."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        raise AssertionError("nobody sends here")

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        raise AssertionError("it sends nothing")


Prepare = Callable[[MemoryInternet, MemoryHost], None]


def uri(host: str) -> str:
    return f"stun:[{host}]:3478" if ":" in host else f"stun:{host}:3478"


def probe(
    servers: Sequence[str],
    *,
    box: str | None = None,
    addresses: Sequence[str] = (HOME,),
    config: Config | None = None,
    prepare: Prepare | None = None,
    timeout_s: float = 5.0,
    told: list[str] | None = None,
) -> Report:
    """Probe from a host behind a box of that kind, with one server of RFC 5780 and two plain ones outside."""

    async def main() -> Report:
        internet = MemoryInternet(Network(random.Random(1)))
        for name, hosts in SERVERS.items():
            internet.add_peer(add_stun_server(internet.network, name, hosts))
        model: Middlebox | None = None
        if box is not None:
            model = box_of_kind(box, [] if box in ("open", "firewall") else [NAT], random.Random(2))
        router = None if model is None else internet.network.add_nat("router", model)
        host = internet.host("me", addresses, router)
        if prepare is not None:
            prepare(internet, host)
        options = ProbeOptions(
            servers=tuple(IceServer(urls=(url,)) for url in servers), config=config or Config(), timeout_s=timeout_s
        )
        tell = (told if told is not None else []).append
        return await measure(options, host, system_rng=random.Random(3), tell=tell)

    return run(main())


def relays(report: Report) -> tuple[RelayRow, ...]:
    assert isinstance(report.relays, tuple), report.relays
    return report.relays


@pytest.mark.parametrize(
    ("box", "mapping", "filtering", "allocation", "expected"),
    [
        ("open", Mapping.NONE, Filtering.EIF, Allocation.PRESERVED, Outlook.DIRECT),
        ("firewall", Mapping.NONE, Filtering.APDF, Allocation.PRESERVED, Outlook.DIRECT),
        ("full-cone", Mapping.EIM, Filtering.EIF, Allocation.PRESERVED, Outlook.DIRECT),
        ("addr-restricted", Mapping.EIM, Filtering.ADF, Allocation.PRESERVED, Outlook.DIRECT),
        ("port-restricted", Mapping.EIM, Filtering.APDF, Allocation.PRESERVED, Outlook.DIRECT),
        ("eim-random-port", Mapping.EIM, Filtering.APDF, Allocation.RANDOM, Outlook.DIRECT),
        ("addr-symmetric", Mapping.ADM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
        ("symmetric", Mapping.APDM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
        ("symmetric-seq", Mapping.APDM, Filtering.APDF, Allocation.SEQUENTIAL, Outlook.RELAY),
        ("symmetric-fixed", Mapping.APDM, Filtering.APDF, Allocation.RANDOM, Outlook.RELAY),
    ],
)
def test_every_kind_of_box_is_told_by_a_server_of_rfc_5780(
    box: str, mapping: Mapping, filtering: Filtering, allocation: Allocation, expected: Outlook
) -> None:
    report = probe([uri(FULL)], box=box)
    nat = report.nat
    assert (nat.mapping, nat.filtering, nat.allocation, outlook(report)) == (mapping, filtering, allocation, expected)
    assert nat.port_preservation is (allocation is Allocation.PRESERVED)
    assert report.layers == (0 if mapping is Mapping.NONE else 1)
    assert (report.udp[4], report.udp[6]) == (True, NotTested(reason="no server has an IPv6 address"))
    assert report.duration_ms < 3_500


@pytest.mark.parametrize(
    ("box", "mapping", "expected"),
    [
        ("open", Mapping.NONE, Outlook.DIRECT),
        ("port-restricted", Mapping.EIM, Outlook.DIRECT),
        ("symmetric", Mapping.UNKNOWN, Outlook.RELAY),
    ],
)
def test_two_plain_servers_show_the_mapping_and_nothing_of_the_filtering(
    box: str, mapping: Mapping, expected: Outlook
) -> None:
    report = probe([uri(PLAIN), uri(OTHER)], box=box)
    assert (report.nat.mapping, report.nat.filtering, outlook(report)) == (mapping, Filtering.UNKNOWN, expected)
    assert {row.seen for row in report.reflexive} == ({1} if box == "symmetric" else {2})
    assert report.duration_ms < 80 + SLACK_MS


def test_one_plain_server_is_not_enough_and_says_so() -> None:
    report = probe([uri(PLAIN)], box="port-restricted")
    assert (report.nat.mapping, outlook(report)) == (Mapping.UNKNOWN, Outlook.DIRECT)
    assert any("name servers at two addresses" in sentence for sentence in report.advice)
    (row,) = report.reflexive
    assert (row.address.host, row.server, row.seen) == (NAT, uri(PLAIN), 1)
    assert row.rtt_ms == pytest.approx(40)


def test_candidates_are_those_of_an_agent() -> None:
    report = probe([uri(PLAIN)], box="port-restricted")
    assert [line.split()[7] for line in report.candidates] == ["host", "srflx"]
    assert [line.split()[4] for line in report.candidates] == [HOME, NAT]


# --- servers that fail -------------------------------------------------------------------------------------------


def test_a_silent_server_costs_two_seconds_where_another_one_answers() -> None:
    report = probe([uri(PLAIN), uri(DEAD)], box="port-restricted")
    assert [(row.uri, row.status) for row in report.servers] == [
        (uri(PLAIN), ServerStatus.ANSWERED),
        (uri(DEAD), ServerStatus.FAILED),
    ]
    assert 2_000 <= report.duration_ms < 2_500 + SLACK_MS
    assert outlook(report) is Outlook.DIRECT
    assert f"{uri(DEAD)} over IPv4: no response" in report.nat.evidence


def test_where_nobody_answers_it_ends_with_the_timeout() -> None:
    report = probe([uri(DEAD)], box="port-restricted", timeout_s=3.0)
    assert (report.udp[4], report.reflexive, outlook(report)) == (False, (), Outlook.NOTHING)
    assert 3_000 <= report.duration_ms < 3_500 + SLACK_MS
    assert report.nat.evidence[0] == "no server outside this host answered"


def test_the_timeout_cuts_the_tests_short_and_keeps_what_they_know() -> None:
    """The mapping takes two round trips; that nothing comes through the filter takes nearly 3 s."""
    report = probe([uri(FULL)], box="symmetric", timeout_s=1.0)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.APDM, Filtering.UNKNOWN)
    assert 1_000 <= report.duration_ms < 1_500 + SLACK_MS


def test_a_network_without_udp() -> None:
    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        host.node.link.realm.gateway.udp_ports = frozenset()  # type: ignore[union-attr]

    report = probe([uri(FULL), uri(PLAIN)], box="port-restricted", prepare=prepare)
    assert (report.udp[4], outlook(report)) == (False, Outlook.NOTHING)
    assert report.advice[0].startswith("No server answered over UDP")


def test_names_are_resolved_and_those_that_do_not_exist_are_told() -> None:
    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        internet.names["stun.example"] = [PLAIN, "2001:db8:5::1"]

    report = probe(["stun:stun.example", "stun:nowhere.example"], box="port-restricted", prepare=prepare)
    rows = {(row.uri, row.version): row for row in report.servers}
    assert rows["stun:stun.example", 4].status is ServerStatus.ANSWERED
    assert rows["stun:stun.example", 6].reason == "this host has no IPv6 route to it"
    assert rows["stun:nowhere.example", None].reason.startswith("its name does not resolve")
    assert report.udp[6] == NotTested(reason="this host has no IPv6 route to it")


def test_a_loss_of_a_fifth_deceives_nobody() -> None:
    """RFC 5780's tests are repeated: one lost packet is no verdict."""

    def prepare(internet: MemoryInternet, host: MemoryHost) -> None:
        host.link().up.loss = host.link().down.loss = 0.2

    report = probe([uri(FULL)], box="full-cone", prepare=prepare)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.EIM, Filtering.EIF)


# --- IP versions and addresses -----------------------------------------------------------------------------------


def test_ipv6_is_asked_beside_ipv4() -> None:
    report = probe([uri(PLAIN), uri("2001:db8:5::1")], addresses=["20.0.8.1", "2001:db8:8::1"])
    assert (report.udp[4], report.udp[6], report.layers) == (True, True, 0)
    assert {row.address.host for row in report.reflexive} == {"20.0.8.1", "2001:db8:8::1"}
    assert report.nat.version == 4


def test_what_is_switched_off_is_not_asked() -> None:
    both = ["20.0.8.1", "2001:db8:8::1"]
    report = probe([uri(PLAIN), uri("2001:db8:5::1")], addresses=both, config=Config(ipv4=False))
    assert (report.udp[4], report.udp[6]) == (NotTested(reason="IPv4 is switched off"), True)
    assert {row.address.version for row in report.reflexive} == {6}
    assert (report.nat.version, report.nat.mapping, outlook(report)) == (6, Mapping.NONE, Outlook.DIRECT)


def test_it_asks_from_the_address_it_is_bound_to_and_from_its_port_range() -> None:
    config = Config(bind_hosts=("20.0.8.2",), port_range=(40000, 40100))
    report = probe([uri(FULL)], addresses=["20.0.8.1", "20.0.8.2"], config=config)
    (row,) = report.reflexive
    assert (row.address.host, 40000 <= row.address.port <= 40100) == ("20.0.8.2", True)


def test_a_range_of_ports_that_is_too_small_costs_only_what_needs_more() -> None:
    """Two ports: one for the agent, one for the question; none is left for new sockets or RFC 5780."""
    config = Config(port_range=(40000, 40001))
    report = probe([uri(FULL), uri(PLAIN)], box="port-restricted", config=config)
    assert (report.udp[4], report.nat.mapping, report.nat.filtering) == (True, Mapping.EIM, Filtering.UNKNOWN)
    assert report.nat.allocation == NotTested(reason="0 new sockets got an answer, 3 are needed")


def test_no_free_port_at_all_is_told() -> None:
    report = probe([uri(PLAIN)], box="port-restricted", config=Config(port_range=(40000, 40000)))
    (row,) = report.servers
    assert (row.status, row.reason[:9], outlook(report)) == (ServerStatus.FAILED, "no socket", Outlook.NOTHING)


# --- no server named ---------------------------------------------------------------------------------------------


def test_without_a_server_it_asks_its_own_and_nobody_else() -> None:
    networks: list[Network] = []
    report = probe([], box="port-restricted", prepare=lambda internet, host: networks.append(internet.network))
    assert {entry.packet.destination.host for entry in networks[0].log} == {"127.0.0.1", "::1"}
    assert report.is_embedded
    assert [row.address.host for row in report.reflexive] == ["127.0.0.1", "::1"]
    assert all(row.status is ServerStatus.ANSWERED and not row.is_outside for row in report.servers)
    assert (report.nat.mapping, report.nat.filtering) == (Mapping.UNKNOWN, Filtering.UNKNOWN)
    assert report.nat.evidence[0] == "no server outside this host"
    assert report.layers == NotTested(reason="no server outside this host")
    assert [line.split()[4] for line in report.candidates] == [HOME]
    assert outlook(report) is Outlook.DIRECT
    assert report.duration_ms < SLACK_MS


def test_our_own_server_relays_over_every_transport_and_ip_version() -> None:
    report = probe([], box="port-restricted")
    rows = relays(report)
    assert [(row.server.rpartition(":")[0], row.transport) for row in rows] == [
        ("turn:127.0.0.1", "udp"),
        ("turn:127.0.0.1", "tcp"),
        ("turn:[::1]", "udp"),
        ("turn:[::1]", "tcp"),
    ]
    for row in rows:
        assert (row.status, row.reason, row.mobility) == (RelayStatus.OK, "", True)
        assert [address.host for address in row.relayed] == ["127.0.0.1", "::1"]
        assert row.rtt_ms is not None and row.data_rtt_ms is not None
    # It relays on this host alone: it is no server to reach a peer by, and gives no candidate.
    assert {line.split()[7] for line in report.candidates} == {"host"}
    assert [row.uri[:5] for row in report.servers] == ["stun:"] * 2


@pytest.mark.parametrize(("config", "host"), [(Config(ipv6=False), "127.0.0.1"), (Config(ipv4=False), "::1")])
def test_without_a_server_and_without_an_ip_version(config: Config, host: str) -> None:
    report = probe([], config=config)
    assert [row.address.host for row in report.reflexive] == [host]
    assert [row.transport for row in relays(report)] == ["udp", "tcp"]
    assert {address.host for row in relays(report) for address in row.relayed} == {host}
    assert outlook(report) is Outlook.DIRECT


def test_our_own_server_is_not_asked_through_a_proxy() -> None:
    report = probe([], config=Config(proxy=Proxy.parse("http://20.0.9.9:3128")))
    assert [row.status for row in relays(report)] == [RelayStatus.OK] * 4


def test_our_own_server_lets_in_nobody_but_this_probe() -> None:
    """Whoever comes from this host meanwhile has no password, and the next probe has another one."""
    asked: list[bytes] = []

    class Overhearing(Wrapped):
        def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
            class Ear(Wrapped):
                def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
                    asked.append(data)
                    self._inner.datagram_received(socket, data, source)

            opened: DatagramSocket = self._inner.socket(local, cast(DatagramReceiver, Ear(receiver)), options)
            return opened

    async def users() -> set[bytes | None]:
        asked.clear()
        host = MemoryInternet(Network(random.Random(1))).host("me", [HOME])
        await measure(ProbeOptions(), cast(Host, Overhearing(host)))
        messages = [parse(data) for data in asked if data[:2] == b"\0\3"]
        # Two over UDP, each first without and then with credentials.
        assert len(messages) == 4
        return {message.get(USERHASH) for message in messages}

    first, second = run(users()), run(users())
    assert (len(first), len(second), first & second) == (2, 2, {None})


def test_our_own_relay_that_this_host_silences_is_told() -> None:
    """A firewall rule against it, say: it gives addresses, and nothing gets from one to the other."""

    class Silent(Wrapped):
        def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
            return cast(DatagramSocket, Mute(self._inner.socket(local, receiver, options)))

    class Mute(Wrapped):
        def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
            return 0 if destination == self._inner.address else self._inner.send(data, destination, ttl)

    async def main() -> Report:
        host = MemoryInternet(Network(random.Random(1))).host("me", [HOME])
        return await measure(ProbeOptions(), cast(Host, Silent(host)))

    report = run(main())
    assert {row.status for row in relays(report)} == {RelayStatus.NO_ANSWER}
    assert outlook(report) is Outlook.NOTHING
    assert report.advice[0].startswith("This host hinders our own server on loopback (turn:127.0.0.1:")
    assert "does not come back" in report.advice[0]


def test_nothing_of_our_own_server_is_left_also_after_an_interruption() -> None:
    """Every socket that was opened is closed, within a second."""

    class Counting(Wrapped):
        def __init__(self, inner: MemoryHost) -> None:
            super().__init__(inner)
            self.sockets: list[TransportAddress] = []
            self.listeners: list[TransportAddress] = []

        def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
            opened: DatagramSocket = self._inner.socket(local, receiver, options)
            self.sockets.append(opened.address)
            return opened

        async def listen_tcp(self, *arguments: Any, **options: Any) -> Listener:
            opened: Listener = await self._inner.listen_tcp(*arguments, **options)
            self.listeners.append(opened.address)
            return opened

    async def interrupt(steps: int, after_s: float) -> tuple[int, bool]:
        inner = MemoryInternet(Network(random.Random(1))).host("me", [HOME])
        host = Counting(inner)
        task = asyncio.ensure_future(measure(ProbeOptions(), cast(Host, host)))
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(after_s)
        began, was_done = inner.now(), task.done()
        task.cancel()
        await asyncio.wait([task])
        assert inner.now() - began < 0.8
        for address in host.sockets:
            # It is free again.
            inner.socket(address, Deaf(), SocketOptions()).close()
        for address in host.listeners:
            (await inner.listen_tcp(address, refuse)).close()
        return len(host.sockets) + len(host.listeners), was_done

    found = [run(interrupt(steps, 0.0)) for steps in range(60)]
    found += [run(interrupt(0, after_ms / 1000)) for after_ms in range(1, 120)]
    # From the first sockets to all of them: the server's four, what asks it, what is relayed, and the agent's.
    counts = [count for count, _ in found]
    assert min(counts) < 12 and max(counts) >= 4 + 4 + 8 + 1
    assert {was_done for _, was_done in found} == {False, True}


class WithoutTcp(Wrapped):
    """A host whose sandbox refuses listening TCP sockets."""

    async def listen_tcp(self, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_server_of_ours_that_cannot_start_is_told_and_nothing_else_fails() -> None:
    async def main() -> Report:
        host = MemoryInternet(Network(random.Random(1))).host("me", [HOME])
        return await measure(ProbeOptions(), cast(Host, WithoutTcp(host)))

    report = run(main())
    (row,) = report.servers
    assert (row.uri, row.status, outlook(report)) == ("our own server", ServerStatus.FAILED, Outlook.NOTHING)
    assert report.nat.evidence[-1] == f"our own server: {row.reason}"
    assert "Operation not permitted" in row.reason
    assert report.relays == NotTested(reason="our own server does not run")
    assert report.advice[0].startswith("This host hinders our own server on loopback (our own server: ")
    assert [line.split()[4] for line in report.candidates] == [HOME]


def test_only_the_servers_that_were_named_are_asked() -> None:
    """And the second address that one of them offers (RFC 5780): no gateway, no name server, no peer."""
    networks: list[Network] = []
    probe([uri(FULL)], box="symmetric", prepare=lambda internet, host: networks.append(internet.network))
    asked = {entry.packet.destination.host for entry in networks[0].log if entry.packet.source.host == NAT}
    assert asked == {FULL, FULL_2}


def test_what_is_done_is_told() -> None:
    told: list[str] = []
    probe([uri(FULL)], box="symmetric", told=told)
    assert told == ["reading the interfaces", f"asking {uri(FULL)}", f"testing the NAT with {uri(FULL)}"]
