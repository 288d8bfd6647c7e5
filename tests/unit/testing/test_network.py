"""The simulated network: routes, time, chance, TTL."""

from __future__ import annotations

import errno
import itertools
import random
from collections import Counter

import pytest

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.net.address import TransportAddress as Address
from iceagent.net.core import Datagram, Transmit
from iceagent.testing.allocation import Allocation
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.links import Fate
from iceagent.testing.nat import NatModel
from iceagent.testing.network import IcmpError, NatNode, Network, Node

SERVER = Address("198.51.100.1", 3478)
X = Address("192.168.1.2", 5000)
W = "203.0.113.1"


def home(network: Network, name: str, external: str, behind: NatNode | None = None, **options: object) -> NatNode:
    return network.add_nat(name, NatModel([external], network.rng, **options), behind=behind)  # type: ignore[arg-type]


def send(
    network: Network,
    node: Node,
    base: Address,
    destination: Address,
    data: bytes = b"x",
    *,
    now: float = 0.0,
    ttl: int | None = None,
) -> int:
    return network.send(node, Transmit(base, destination, data, ttl), now)


def drain(network: Network, until: float = 1000.0) -> list[tuple[float, str, Datagram]]:
    """Everything that arrives, with its time and node, one step of the network at a time."""
    arrived = []
    while (at := network.poll_timeout()) is not None and at <= until:
        arrived += [(at, node.name, datagram) for node, datagram in network.deliver(at)]
    return arrived


# --- time


def test_a_packet_takes_the_latency_of_both_links() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", ["192.0.2.1"], latency_s=0.25)
    b = network.add_node("b", ["192.0.2.2"], latency_s=0.5)
    assert send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 2), b"hello", now=10.0) == 0
    assert network.poll_timeout() == 10.25
    assert network.deliver(10.749) == []
    assert network.poll_timeout() == 10.75
    assert network.deliver(10.75) == [(b, Datagram(Address("192.0.2.2", 2), Address("192.0.2.1", 1), b"hello"))]
    assert network.poll_timeout() is None
    assert network.counters == {Fate.SENT: 1, Fate.DELIVERED: 1}


def test_the_two_directions_of_a_link_are_independent_and_change_live() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", ["192.0.2.1"], latency_s=0.0)
    b = network.add_node("b", ["192.0.2.2"], latency_s=0.0)
    a.link.up.latency_s, a.link.down.latency_s = 0.125, 0.5
    send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 1))
    a.link.up.latency_s = 0.0625
    send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 2))
    send(network, b, Address("192.0.2.2", 3), Address("192.0.2.1", 3))
    assert [(at, datagram.base.port) for at, _, datagram in drain(network)] == [(0.0625, 2), (0.125, 1), (0.5, 3)]


def test_packets_of_one_instant_arrive_in_the_order_they_were_sent() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", ["192.0.2.1"])
    network.add_node("b", ["192.0.2.2"])
    for port in range(1, 101):
        send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", port))
    assert [datagram.base.port for _, _, datagram in drain(network)] == list(range(1, 101))


def test_one_late_delivery_is_as_good_as_many_steps() -> None:
    """NATs see each packet at its own time, however late the network is pumped."""
    arrived = []
    for is_late in (False, True):
        network = Network.seeded(1)
        nat = home(network, "nat", W, lifetime_s=30.0)
        a = network.add_node("a", [X.host], nat)
        server = network.add_node("server", [SERVER.host])
        send(network, a, X, SERVER, now=0.0)
        send(network, server, SERVER, Address(W, X.port), b"in time", now=20.0)
        send(network, server, SERVER, Address(W, X.port), b"too late", now=40.0)
        datagrams = (
            [datagram for _, datagram in network.deliver(100.0)] if is_late else [d for _, _, d in drain(network)]
        )
        arrived.append([datagram.data for datagram in datagrams])
    assert arrived == [[b"x", b"in time"], [b"x", b"in time"]]


# --- chance


def flood(network: Network, count: int = 10_000, interval_s: float = 0.001) -> list[tuple[float, bytes]]:
    a = network.nodes["a"]
    assert isinstance(a, Node)
    for index in range(count):
        send(
            network,
            a,
            Address("192.0.2.1", 1),
            Address("192.0.2.2", 2),
            index.to_bytes(4, "big"),
            now=index * interval_s,
        )
    return [(at, datagram.data) for at, _, datagram in drain(network)]


def pair(seed: int = 1) -> tuple[Network, Node, Node]:
    network = Network.seeded(seed)
    return network, network.add_node("a", ["192.0.2.1"]), network.add_node("b", ["192.0.2.2"])


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.5, 1.0])
def test_loss_is_as_asked_and_counted(loss: float) -> None:
    network, a, _ = pair()
    a.link.up.loss = loss
    arrived = flood(network)
    assert network.counters[Fate.LOST] == 10_000 - len(arrived)
    # Four standard deviations of a binomial distribution.
    assert abs(network.counters[Fate.LOST] - 10_000 * loss) <= 4 * (10_000 * loss * (1 - loss)) ** 0.5


def test_the_same_seed_loses_the_same_packets_and_another_seed_others() -> None:
    runs = []
    for seed in (1, 1, 2):
        network, a, b = pair(seed)
        a.link.up.loss, b.link.down.jitter_s, b.link.down.reordering = 0.2, 0.01, 0.1
        runs.append(flood(network, 500))
    assert runs[0] == runs[1] != runs[2]


def test_duplicates_arrive_twice() -> None:
    network, a, _ = pair()
    a.link.up.duplication = 0.25
    arrived = Counter(data for _, data in flood(network))
    assert set(arrived.values()) == {1, 2}
    assert sum(arrived.values()) - 10_000 == network.counters[Fate.DUPLICATED]
    assert abs(network.counters[Fate.DUPLICATED] - 2500) <= 4 * (10_000 * 0.25 * 0.75) ** 0.5


def test_jitter_delays_and_never_reorders() -> None:
    network, a, _ = pair()
    a.link.up.jitter_s = 0.05
    arrived = flood(network, 1000)
    delays = [at - int.from_bytes(data, "big") * 0.001 for at, data in arrived]
    assert [data for _, data in arrived] == sorted(data for _, data in arrived)
    assert min(delays) >= 0.020 - 1e-9
    assert 0.060 < max(delays) <= 0.070 + 1e-9


def test_reordering_lets_later_packets_overtake() -> None:
    network, a, _ = pair()
    a.link.up.reordering = 0.2
    order = [int.from_bytes(data, "big") for _, data in flood(network, 1000)]
    inversions = sum(1 for earlier, later in itertools.pairwise(order) if later < earlier)
    assert sorted(order) == list(range(1000))
    assert inversions > 100
    assert abs(a.link.up.reordered - 200) <= 4 * (1000 * 0.2 * 0.8) ** 0.5


def test_a_cut_is_one_way_if_wanted_and_heals() -> None:
    network, a, b = pair()
    a.link.up.is_cut = True
    send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 2))
    send(network, b, Address("192.0.2.2", 2), Address("192.0.2.1", 1))
    assert [name for _, name, _ in drain(network)] == ["a"]
    assert network.counters[Fate.CUT] == 1
    a.link.cut()
    send(network, b, Address("192.0.2.2", 2), Address("192.0.2.1", 1))
    assert drain(network) == []
    a.link.restore()
    send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 2))
    assert [name for _, name, _ in drain(network)] == ["b"]


@pytest.mark.parametrize(
    ("hosts", "payload"), [(("192.0.2.1", "192.0.2.2"), 1472), (("2001:db8::1", "2001:db8::2"), 1452)]
)
def test_an_mtu_counts_the_headers(hosts: tuple[str, str], payload: int) -> None:
    network = Network.seeded(1)
    a = network.add_node("a", [hosts[0]])
    network.add_node("b", [hosts[1]])
    a.link.up.mtu = 1500
    for size in (payload, payload + 1):
        send(network, a, Address(hosts[0], 1), Address(hosts[1], 2), bytes(size))
    assert [len(datagram.data) for _, _, datagram in drain(network)] == [payload]
    assert network.counters[Fate.TOO_BIG] == 1


# --- NATs on the way


def test_through_a_nat_and_back() -> None:
    network = Network.seeded(1)
    nat = home(network, "nat", W, allocation=Allocation.SEQUENTIAL, ports=range(20000, 20010))
    a = network.add_node("a", [X.host], nat)
    server = network.add_node("server", [SERVER.host])
    send(network, a, X, SERVER, b"request")
    assert network.deliver(1.0) == [(server, Datagram(SERVER, Address(W, 20000), b"request"))]
    send(network, server, SERVER, Address(W, 20000), b"answer", now=1.0)
    assert network.deliver(2.0) == [(a, Datagram(X, SERVER, b"answer"))]
    send(network, server, Address(SERVER.host, 3479), Address(W, 20000), b"stranger", now=2.0)
    assert network.deliver(3.0) == []
    assert network.counters[Fate.FILTERED] == 1


def test_nested_nats_translate_twice_and_are_as_strict_as_the_stricter() -> None:
    network = Network.seeded(1)
    carrier = home(
        network, "carrier", W, mapping=Mapping.APDM, allocation=Allocation.SEQUENTIAL, ports=range(20000, 20010)
    )
    inner = home(network, "home", "100.64.0.2", carrier, filtering=Filtering.EIF)
    a = network.add_node("a", [X.host], inner)
    server = network.add_node("server", [SERVER.host])
    send(network, a, X, SERVER)
    send(network, a, X, Address(SERVER.host, 3479))
    assert [datagram.source for _, _, datagram in drain(network)] == [Address(W, 20000), Address(W, 20001)]
    send(network, server, SERVER, Address(W, 20000), b"back", now=1.0)
    send(network, server, Address(SERVER.host, 9), Address(W, 20000), b"stranger", now=1.0)
    assert [(name, datagram) for _, name, datagram in drain(network)] == [("a", Datagram(X, SERVER, b"back"))]


def test_two_homes_have_the_same_private_addresses() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", [X.host], home(network, "nat-a", "203.0.113.1"))
    b = network.add_node("b", [X.host], home(network, "nat-b", "203.0.113.2"))
    send(network, a, X, Address("203.0.113.2", 5000))
    send(network, b, X, Address("203.0.113.1", 5000), b"y", now=1.0)
    assert drain(network) == [(1.02, "a", Datagram(X, Address("203.0.113.2", 5000), b"y"))]


def test_neighbours_talk_without_their_nat() -> None:
    network = Network.seeded(1)
    nat = home(network, "nat", W)
    a = network.add_node("a", ["192.168.1.2"], nat)
    network.add_node("b", ["192.168.1.3"], nat)
    send(network, a, X, Address("192.168.1.3", 7), ttl=1)
    assert [datagram.source for _, _, datagram in drain(network)] == [X]


@pytest.mark.parametrize("hairpin", [False, True])
def test_hairpin_shows_the_external_source(hairpin: bool) -> None:
    """RFC 4787, REQ-9: "A NAT Hairpinning behavior MUST be 'External source IP address and port'"."""
    network = Network.seeded(1)
    nat = home(network, "nat", W, filtering=Filtering.EIF, hairpin=hairpin)
    a = network.add_node("a", ["192.168.1.2"], nat)
    b = network.add_node("b", ["192.168.1.3"], nat)
    network.add_node("server", [SERVER.host])
    send(network, b, Address("192.168.1.3", 6000), SERVER)
    drain(network)
    send(network, a, X, Address(W, 6000), b"to b", now=1.0)
    expected = [("b", Datagram(Address("192.168.1.3", 6000), Address(W, 5000), b"to b"))] if hairpin else []
    assert [(name, datagram) for _, name, datagram in drain(network)] == expected
    assert network.counters[Fate.FILTERED] == (0 if hairpin else 1)


def test_hairpinned_packets_are_filtered_too() -> None:
    network = Network.seeded(1)
    nat = home(network, "nat", W, filtering=Filtering.APDF, hairpin=True)
    a = network.add_node("a", ["192.168.1.2"], nat)
    b = network.add_node("b", ["192.168.1.3"], nat)
    send(network, a, X, Address(W, 6000), b"first")
    send(network, b, Address("192.168.1.3", 6000), Address(W, 5000), b"second", now=1.0)
    send(network, a, X, Address(W, 6000), b"third", now=2.0)
    assert [datagram.data for _, _, datagram in drain(network)] == [b"second", b"third"]


def test_carrier_hairpin_joins_two_homes_behind_one_carrier() -> None:
    network = Network.seeded(1)
    carrier = home(network, "carrier", W, filtering=Filtering.EIF, hairpin=True)
    nat_a = home(network, "nat-a", "100.64.0.2", carrier)
    nat_b = home(network, "nat-b", "100.64.0.3", carrier)
    a = network.add_node("a", [X.host], nat_a)
    b = network.add_node("b", [X.host], nat_b)
    b_base = Address(X.host, 6000)
    send(network, b, b_base, Address(W, 5000), b"opens b's NATs")
    send(network, a, X, Address(W, 6000), b"arrives", now=1.0)
    assert [(name, d.source, d.data) for _, name, d in drain(network)] == [("b", Address(W, 5000), b"arrives")]


def test_a_firewall_keeps_addresses_and_strangers_out() -> None:
    network = Network.seeded(1)
    wall = network.add_nat("wall", FirewallModel())
    a = network.add_node("a", ["192.0.2.1"], wall)
    server = network.add_node("server", [SERVER.host])
    base = Address("192.0.2.1", 1)
    send(network, server, SERVER, base, b"stranger")
    send(network, a, base, SERVER, b"request", now=1.0)
    send(network, server, SERVER, base, b"answer", now=2.0)
    assert [(name, d.source, d.data) for _, name, d in drain(network)] == [
        ("server", base, b"request"),
        ("a", SERVER, b"answer"),
    ]


def test_ipv6_passes_a_firewall_beside_the_nat_and_nothing_without_one() -> None:
    network = Network.seeded(1)
    nat = network.add_nat("nat", NatModel([W], network.rng), ipv6=FirewallModel())
    bare = network.add_nat("bare", NatModel(["203.0.113.9"], network.rng))
    a = network.add_node("a", [X.host, "2001:db8:a::1", "fe80::1"], nat)
    b = network.add_node("b", [X.host, "2001:db8:b::1"], bare)
    network.add_node("server", ["2001:db8::1"])
    server = Address("2001:db8::1", 3478)
    send(network, a, Address("2001:db8:a::1", 1), server)
    send(network, b, Address("2001:db8:b::1", 1), server)
    send(network, a, Address("fe80::1", 1), server)
    assert [d.source.host for _, _, d in drain(network)] == ["2001:db8:a::1"]
    assert network.counters[Fate.UNROUTABLE] == 2


def test_egress_policies() -> None:
    network = Network.seeded(1)
    nat = home(network, "nat", W)
    nat.udp_ports = frozenset({53, 443})
    nat.blocked_hosts = {"198.51.100.2"}
    a = network.add_node("a", [X.host], nat)
    for host in ("198.51.100.1", "198.51.100.2"):
        network.add_node(host, [host])
        for port in (53, 443, 3478):
            send(network, a, X, Address(host, port))
    assert [d.base for _, _, d in drain(network)] == [Address("198.51.100.1", 53), Address("198.51.100.1", 443)]
    assert network.counters[Fate.BLOCKED] == 4


# --- TTL


@pytest.mark.parametrize(
    ("ttl", "has_mapping", "arrives"),
    [(1, False, False), (2, True, False), (3, True, False), (4, True, True)],
)
def test_ttl(ttl: int, has_mapping: bool, arrives: bool) -> None:
    """Every router takes one; a packet that dies on the Internet has opened the sender's NAT all the same."""
    network = Network.seeded(1)
    model_a, model_b = NatModel([W], network.rng), NatModel(["203.0.113.2"], network.rng, filtering=Filtering.EIF)
    a = network.add_node("a", [X.host], network.add_nat("nat-a", model_a))
    b = network.add_node("b", [X.host], network.add_nat("nat-b", model_b))
    network.add_node("server", [SERVER.host])
    send(network, b, X, SERVER)
    drain(network)
    send(network, a, X, Address("203.0.113.2", 5000), now=1.0, ttl=ttl)
    assert [name for _, name, _ in drain(network)] == (["b"] if arrives else [])
    assert (model_a.external_of(X, Address("203.0.113.2", 5000), 2.0) is not None) is has_mapping
    assert network.counters[Fate.TTL_EXPIRED] == (0 if arrives else 1)


def test_an_opener_guards_the_naive_nat_of_its_sender() -> None:
    """Without: the peer's early packet poisons the flow and nobody gets through. With: both do."""
    outcomes = {}
    for has_opener in (False, True):
        network = Network.seeded(1)
        model_a = NatModel([W], network.rng, early_packet_trap=True)
        model_b = NatModel(["203.0.113.2"], network.rng)
        a = network.add_node("a", [X.host], network.add_nat("nat-a", model_a))
        b = network.add_node("b", [X.host], network.add_nat("nat-b", model_b))
        if has_opener:
            send(network, a, X, Address("203.0.113.2", 5000), b"opener", now=0.0, ttl=2)
        send(network, b, X, Address(W, 5000), b"early", now=0.1)
        for now in (1.0, 2.0):
            send(network, a, X, Address("203.0.113.2", 5000), b"from a", now=now)
            send(network, b, X, Address(W, 5000), b"from b", now=now)
        outcomes[has_opener] = [(name, datagram.data) for _, name, datagram in drain(network)]
    assert outcomes[False] == []
    assert outcomes[True] == [("a", b"early")] + 2 * [("b", b"from a"), ("a", b"from b")]


# --- errors and bounds


def test_icmp_errors_reach_the_sender_when_enabled() -> None:
    network = Network.seeded(1, icmp_errors=True)
    a = network.add_node("a", ["192.0.2.1"])
    b = network.add_node("b", ["192.0.2.2"])
    b.ports = set()
    base = Address("192.0.2.1", 1)
    send(network, a, base, Address("192.0.2.2", 2))
    send(network, a, base, Address("192.0.2.3", 3), now=1.0)
    send(network, a, base, Address("192.0.2.2", 4), now=2.0, ttl=1)
    assert drain(network, until=0.039) == []
    assert network.poll_error() is None
    assert drain(network) == []
    assert [network.poll_error() for _ in range(4)] == [
        IcmpError(a, base, Address("192.0.2.2", 2), errno.ECONNREFUSED),
        IcmpError(a, base, Address("192.0.2.3", 3), errno.EHOSTUNREACH),
        IcmpError(a, base, Address("192.0.2.2", 4), errno.EHOSTUNREACH),
        None,
    ]


def test_icmp_errors_name_the_addresses_that_the_sender_knows() -> None:
    network = Network.seeded(1, icmp_errors=True)
    a = network.add_node("a", [X.host], home(network, "nat-a", W, allocation=Allocation.RANDOM))
    network.add_node("b", ["192.0.2.2"]).ports = set()
    send(network, a, X, Address("192.0.2.2", 2))
    drain(network)
    assert network.poll_error() == IcmpError(a, X, Address("192.0.2.2", 2), errno.ECONNREFUSED)


def test_icmp_errors_are_off_by_default() -> None:
    network, a, b = pair()
    b.ports = {Address("192.0.2.2", 2)}
    for port in (1, 2):
        send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", port))
    assert [d.base.port for _, _, d in drain(network)] == [2]
    assert network.counters[Fate.PORT_CLOSED] == 1
    assert network.poll_error() is None


@pytest.mark.parametrize(
    ("base", "destination", "size", "code"),
    [
        ("192.0.2.7", "192.0.2.2", 1, errno.EADDRNOTAVAIL),
        ("192.0.2.1", "2001:db8::1", 1, errno.EAFNOSUPPORT),
        ("192.0.2.1", "192.0.2.2", 65_508, errno.EMSGSIZE),
        ("192.0.2.1", "127.0.0.1", 1, 0),
        ("127.0.0.1", "192.0.2.2", 1, errno.EINVAL),
        ("192.0.2.1", "192.0.2.2", 65_507, 0),
    ],
)
def test_a_machine_refuses_what_it_cannot_send(base: str, destination: str, size: int, code: int) -> None:
    network, a, _ = pair()
    assert send(network, a, Address(base, 1), Address(destination, 2), bytes(size)) == code
    assert len(drain(network)) == (0 if code else 1)
    assert network.counters[Fate.SENT] == (0 if code else 1)


def test_a_machine_talks_to_itself_without_its_link() -> None:
    network, a, _ = pair()
    a.link.cut()
    send(network, a, Address("127.0.0.1", 1), Address("127.0.0.1", 2), now=3.0)
    send(network, a, Address("192.0.2.1", 1), Address("192.0.2.1", 2), now=3.0)
    assert [(at, name) for at, name, _ in drain(network)] == [(3.0, "a"), (3.0, "a")]


def test_the_queue_is_bounded() -> None:
    network = Network(random.Random(1), queue_limit=10)
    a = network.add_node("a", ["192.0.2.1"])
    network.add_node("b", ["192.0.2.2"])
    for _ in range(15):
        send(network, a, Address("192.0.2.1", 1), Address("192.0.2.2", 2))
    assert network.in_flight == 10
    assert len(drain(network)) == 10
    assert network.counters[Fate.QUEUE_FULL] == 5


def test_every_packet_has_one_fate() -> None:
    network = Network.seeded(7)
    nat = home(network, "nat", W)
    a = network.add_node("a", [X.host], nat)
    server = network.add_node("server", [SERVER.host])
    server.ports = {SERVER}
    for pipe in (a.link.up, a.link.down, nat.link.up, nat.link.down, server.link.up):
        pipe.loss, pipe.duplication, pipe.reordering, pipe.jitter_s = 0.1, 0.2, 0.2, 0.01
    for index in range(500):
        send(network, a, X, Address(SERVER.host, 3478 + index % 3), now=index / 100, ttl=64 if index % 10 else 2)
        send(network, server, SERVER, Address(W, 5000 + index % 2), now=index / 100)
    drain(network)
    began = {Fate.SENT, Fate.DUPLICATED}
    assert sum(network.counters[fate] for fate in began) == sum(
        count for fate, count in network.counters.items() if fate not in began
    )
    assert min(network.counters[fate] for fate in (Fate.LOST, Fate.FILTERED, Fate.TTL_EXPIRED, Fate.PORT_CLOSED)) > 0


# --- changes of the world


def test_roaming_to_another_network() -> None:
    network = Network.seeded(1)
    wifi, lte = home(network, "wifi", "203.0.113.1"), home(network, "lte", "203.0.113.2")
    a = network.add_node("a", [X.host], wifi)
    server = network.add_node("server", [SERVER.host])
    send(network, a, X, SERVER)
    drain(network)
    send(network, server, SERVER, Address("203.0.113.1", 5000), b"on its way", now=1.0)
    network.detach(a.link)
    network.attach(a, ["10.0.0.2"], lte)
    assert drain(network) == []
    assert network.counters[Fate.UNROUTABLE] == 1
    assert send(network, a, X, SERVER, now=2.0) == errno.EADDRNOTAVAIL
    send(network, a, Address("10.0.0.2", 5000), SERVER, now=2.0)
    assert [d.source for _, _, d in drain(network)] == [Address("203.0.113.2", 5000)]


def test_a_second_link_is_used_for_its_own_addresses() -> None:
    network = Network.seeded(1)
    a = network.add_node("a", [X.host], home(network, "wifi", "203.0.113.1"))
    lte = network.attach(a, ["10.0.0.2"], home(network, "lte", "203.0.113.2"))
    network.add_node("server", [SERVER.host])
    a.link.cut()
    send(network, a, X, SERVER)
    send(network, a, Address("10.0.0.2", 5000), SERVER)
    assert [d.source.host for _, _, d in drain(network)] == ["203.0.113.2"]
    assert lte.name == "a/1"


def test_a_new_wan_address() -> None:
    network = Network.seeded(1)
    nat = home(network, "nat", W)
    a = network.add_node("a", [X.host], nat)
    server = network.add_node("server", [SERVER.host])
    send(network, a, X, SERVER)
    drain(network)
    network.readdress(nat, ["203.0.113.77"])
    send(network, server, SERVER, Address(W, 5000), now=1.0)
    assert drain(network) == []
    send(network, a, X, SERVER, now=2.0)
    assert [d.source for _, _, d in drain(network)] == [Address("203.0.113.77", 5000)]
    with pytest.raises(ValueError, match="does not translate"):
        network.readdress(network.add_nat("wall", FirewallModel()), [W])


def test_names_and_addresses_are_unique_where_they_must_be() -> None:
    network, a, _ = pair()
    with pytest.raises(ValueError, match="there is a node 'a' already"):
        network.add_node("a", ["192.0.2.9"])
    with pytest.raises(ValueError, match=r"192\.0\.2\.2 is taken in internet: b"):
        network.add_node("c", ["192.0.2.2"])
    with pytest.raises(ValueError, match="loopback"):
        network.add_address(a.link, "127.0.0.1")
