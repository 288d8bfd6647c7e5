"""Is every kind of NAT recognised, whatever gets lost, and is nothing claimed that was not seen?"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.nat import kinds
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, PacketDropped, Transmit
from iceagent.testing.allocation import Allocation
from iceagent.testing.catalogue import FIREWALL_KINDS, NAT_KINDS, box_of_kind
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.nat import Middlebox, NatModel
from iceagent.testing.network import Network
from iceagent.testing.peers import Peer, SessionPair
from iceagent.testing.stun_server import StunServerNode, add_stun_server
from relay.behaviour import BehaviourMeasured, BehaviourProbe, BehaviourReport, Filtering, Mapping
from relay.stun import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    Message,
    MessageClass,
    parse,
)
from relay.stun_server import StunServer, discovery_table

A1_P1, A1_P2 = TransportAddress("192.0.2.1", 3478), TransportAddress("192.0.2.1", 3479)
A2_P1, A2_P2 = TransportAddress("192.0.2.2", 3478), TransportAddress("192.0.2.2", 3479)
ELSEWHERE = TransportAddress("203.0.113.1", 3478)
MAPPING_BASE, FILTERING_BASE = TransportAddress("10.0.0.2", 40000), TransportAddress("10.0.0.2", 40001)
SEEN = [TransportAddress("198.51.100.1", port) for port in (50000, 50001, 50002)]
NAT_ADDRESS = "198.51.100.1"
BEHAVIOURS = [
    (mapping, filtering)
    for mapping in (Mapping.EIM, Mapping.ADM, Mapping.APDM)
    for filtering in (Filtering.EIF, Filtering.ADF, Filtering.APDF)
]


def new_probe(
    servers: Sequence[TransportAddress] = (A1_P1,),
    filtering_base: TransportAddress | None = FILTERING_BASE,
    seed: int = 1,
) -> BehaviourProbe:
    return BehaviourProbe(servers, MAPPING_BASE, filtering_base, system_rng=random.Random(seed))


def our_server(network: Network) -> Peer[StunServer]:
    """The server of this package, with behaviour discovery."""
    table = discovery_table([(A1_P1, A2_P2)])
    node = network.add_node("server", [A1_P1.host, A2_P2.host])
    node.ports = set(table)
    return Peer("server", StunServer(alternatives=table), node)


def measure(
    network: Network,
    box: Middlebox,
    *servers: Peer[StunServer] | Peer[StunServerNode],
    asked: Sequence[TransportAddress] = (A1_P1,),
    loss: float = 0.0,
    seed: int = 1,
) -> tuple[BehaviourReport, float]:
    """A probe behind ``box``, to its end: the report, and how many seconds it took."""
    node = network.add_node("client", [MAPPING_BASE.host], behind=network.add_nat("box", box))
    node.link.up.loss = node.link.down.loss = loss
    probe = new_probe(asked, seed=seed)
    probe.start(0.0)
    client = Peer("client", probe, node)
    pair = SessionPair(network, client, servers[0], *servers[1:])
    assert pair.run(lambda: probe.is_done, seconds=30), pair.trace()
    measured = [event for event in client.events if not isinstance(event, PacketDropped)]
    assert measured == [BehaviourMeasured(report=probe.report)]
    assert probe.poll_timeout() is None
    return probe.report, pair.now


# --- every kind --------------------------------------------------------------------------------------------------


def test_the_words_are_those_of_the_nat_models() -> None:
    assert Mapping is kinds.Mapping
    assert Filtering is kinds.Filtering


@pytest.mark.parametrize(("mapping", "filtering"), BEHAVIOURS, ids=lambda kind: str(kind.value))
@pytest.mark.parametrize("allocation", list(Allocation))
def test_every_kind_of_nat_is_found(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> None:
    network = Network.seeded(1)
    nat = NatModel([NAT_ADDRESS], network.rng, mapping=mapping, filtering=filtering, allocation=allocation)
    report, elapsed = measure(network, nat, our_server(network))
    assert (report.mapping, report.filtering) == (mapping, filtering), report.evidence
    assert {seen.mapped.host for seen in report.observations} == {NAT_ADDRESS}
    assert elapsed < 3


@pytest.mark.parametrize(("mapping", "filtering"), BEHAVIOURS, ids=lambda kind: str(kind.value))
def test_every_kind_of_nat_is_found_where_a_fifth_of_all_packets_is_lost(
    mapping: Mapping, filtering: Filtering
) -> None:
    """20 % each way on the client's link: 36 % of the answers do not come."""
    for seed in range(40):
        network = Network.seeded(seed)
        nat = NatModel([NAT_ADDRESS], network.rng, mapping=mapping, filtering=filtering)
        server = add_stun_server(network, "server", [A1_P1.host, A2_P2.host])
        report, elapsed = measure(network, nat, server, loss=0.2, seed=seed)
        assert (report.mapping, report.filtering) == (mapping, filtering), (seed, report.evidence)
        assert elapsed < 10


@pytest.mark.parametrize("kind", NAT_KINDS)
def test_the_nats_of_the_catalogue_are_what_they_are_called(kind: str) -> None:
    network = Network.seeded(2)
    report, _ = measure(network, box_of_kind(kind, [NAT_ADDRESS], network.rng), our_server(network))
    assert report.mapping is NAT_KINDS[kind].get("mapping", Mapping.EIM)
    assert report.filtering is NAT_KINDS[kind].get("filtering", Filtering.APDF)


@pytest.mark.parametrize("filtering", [Filtering.EIF, Filtering.ADF, Filtering.APDF])
def test_a_firewall_does_not_translate(filtering: Filtering) -> None:
    network = Network.seeded(1)
    report, _ = measure(network, FirewallModel(filtering=filtering), our_server(network))
    assert (report.mapping, report.filtering) == (Mapping.NONE, filtering)
    assert set(FIREWALL_KINDS) == {"open", "firewall"}


def test_an_open_path_has_neither() -> None:
    network = Network.seeded(1)
    report, elapsed = measure(network, FirewallModel(is_open=True), our_server(network))
    assert (report.mapping, report.filtering) == (Mapping.NONE, Filtering.EIF)
    assert elapsed < 0.2, "nothing has to be waited for"


def test_ipv6_works_alike() -> None:
    network = Network.seeded(1)
    hosts = ["2001:db8::1", "2001:db8::2"]
    server = add_stun_server(network, "server", hosts)
    box = network.add_nat("box", FirewallModel(), ipv6=FirewallModel(filtering=Filtering.ADF))
    node = network.add_node("client", ["2001:db8:7::7"], behind=box)
    bases = TransportAddress("2001:db8:7::7", 40000), TransportAddress("2001:db8:7::7", 40001)
    probe = BehaviourProbe([TransportAddress(hosts[0], 3478)], *bases, system_rng=random.Random(1))
    probe.start(0.0)
    pair = SessionPair(network, Peer("client", probe, node), server)
    assert pair.run(lambda: probe.is_done, seconds=30)
    assert (probe.report.mapping, probe.report.filtering) == (Mapping.NONE, Filtering.ADF)


# --- servers without RFC 5780 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "found"),
    [(Mapping.EIM, Mapping.EIM), (Mapping.ADM, Mapping.UNKNOWN), (Mapping.APDM, Mapping.UNKNOWN)],
)
def test_two_plain_servers_tell_endpoint_independence_only(mapping: Mapping, found: Mapping) -> None:
    network = Network.seeded(3)
    nat = NatModel([NAT_ADDRESS], network.rng, mapping=mapping)
    one = add_stun_server(network, "one", [A1_P1.host])
    two = add_stun_server(network, "two", [A2_P1.host])
    report, _ = measure(network, nat, one, two, asked=(A1_P1, A2_P1))
    assert (report.mapping, report.filtering) == (found, Filtering.UNKNOWN)
    assert len(report.observations) == 2
    if found is Mapping.UNKNOWN:
        assert any("ADM or APDM" in sentence for sentence in report.evidence)


@pytest.mark.parametrize(
    ("mapping", "found"),
    [(Mapping.EIM, Mapping.UNKNOWN), (Mapping.ADM, Mapping.UNKNOWN), (Mapping.APDM, Mapping.APDM)],
)
def test_two_ports_of_one_plain_server_tell_port_dependence_only(mapping: Mapping, found: Mapping) -> None:
    network = Network.seeded(3)
    nat = NatModel([NAT_ADDRESS], network.rng, mapping=mapping)
    node = network.add_node("server", [A1_P1.host])
    server = Peer("server", StunServerNode([A1_P1, A1_P2]), node)
    report, _ = measure(network, nat, server, asked=(A1_P1, A1_P2))
    assert report.mapping is found


def test_plain_servers_that_see_our_own_address() -> None:
    network = Network.seeded(3)
    one = add_stun_server(network, "one", [A1_P1.host])
    report, _ = measure(network, FirewallModel(), one)
    assert report.mapping is Mapping.NONE


def test_one_plain_server_is_not_enough() -> None:
    network = Network.seeded(3)
    one = add_stun_server(network, "one", [A1_P1.host])
    report, _ = measure(network, NatModel([NAT_ADDRESS], network.rng), one)
    assert (report.mapping, report.filtering) == (Mapping.UNKNOWN, Filtering.UNKNOWN)
    assert report.observations[0].server == A1_P1
    assert report.observations[0].rtt_ms == pytest.approx(40.0)


def test_a_dead_server_beside_a_live_one_does_not_change_the_verdict() -> None:
    network = Network.seeded(3)
    live, dead = our_server(network), add_stun_server(network, "dead", [ELSEWHERE.host])
    dead.core.is_dead = True
    nat = NatModel([NAT_ADDRESS], network.rng, filtering=Filtering.EIF)
    report, elapsed = measure(network, nat, live, dead, asked=(ELSEWHERE, A1_P1))
    assert (report.mapping, report.filtering) == (Mapping.EIM, Filtering.EIF)
    assert f"{ELSEWHERE}: no answer" in report.evidence
    assert elapsed < 2.2, "it is not asked a second time"


def test_when_no_server_answers_each_is_asked_ten_times() -> None:
    network = Network.seeded(3)
    dead = add_stun_server(network, "dead", [A1_P1.host])
    dead.core.is_dead = True
    report, elapsed = measure(network, NatModel([NAT_ADDRESS], network.rng), dead)
    assert (report.mapping, report.filtering, report.observations) == (Mapping.UNKNOWN, Filtering.UNKNOWN, ())
    assert len(network.log) == 20, "sent and delivered"
    assert elapsed == pytest.approx(4.2)


# --- packet by packet --------------------------------------------------------------------------------------------


def sent(probe: BehaviourProbe) -> list[tuple[Transmit, Message]]:
    found = []
    while (transmit := probe.poll_transmit()) is not None:
        found.append((transmit, parse(transmit.data)))
    return found


def answer(
    probe: BehaviourProbe,
    question: tuple[Transmit, Message],
    mapped: TransportAddress,
    *,
    source: TransportAddress | None = None,
    other: TransportAddress | None = None,
    now: float = 0.02,
) -> None:
    """A success response to one question."""
    transmit, message = question
    pairs = [(XOR_MAPPED_ADDRESS, mapped)] if other is None else [(XOR_MAPPED_ADDRESS, mapped), (OTHER_ADDRESS, other)]
    data = message.success(*pairs).encode()
    probe.handle_datagram(Datagram(transmit.base, source or transmit.destination, data), now)


def drops(probe: BehaviourProbe) -> list[str]:
    reasons = []
    while (event := probe.poll_event()) is not None:
        if isinstance(event, PacketDropped):
            reasons.append(event.reason)
    return reasons


def started(servers: Sequence[TransportAddress] = (A1_P1,)) -> tuple[BehaviourProbe, list[tuple[Transmit, Message]]]:
    probe = new_probe(servers)
    probe.start(0.0)
    probe.start(0.0)
    return probe, sent(probe)


def discovering(other: TransportAddress = A2_P2) -> tuple[BehaviourProbe, list[tuple[Transmit, Message]]]:
    """A probe whose server has answered with OTHER-ADDRESS; what it asks then."""
    probe, (first,) = started()
    answer(probe, first, SEEN[0], other=other)
    return probe, sent(probe)


def test_the_questions_are_those_of_the_rfc() -> None:
    probe, (first,) = started()
    assert first[0][:2] == (MAPPING_BASE, A1_P1)
    assert len(first[0].data) == 20
    answer(probe, first, SEEN[0], other=A2_P2)
    second, filtering = sent(probe)
    assert second[0][:2] == (MAPPING_BASE, A2_P1)
    assert filtering[0][:2] == (FILTERING_BASE, A1_P1)
    answer(probe, second, SEEN[1])
    (third,) = sent(probe)
    assert third[0][:2] == (MAPPING_BASE, A2_P2)
    answer(probe, third, SEEN[2])
    answer(probe, filtering, SEEN[0])
    changes = sent(probe)
    assert {transmit[:2] for transmit, _ in changes} == {(FILTERING_BASE, A1_P1)}
    assert [message.get(CHANGE_REQUEST) for _, message in changes] == [
        ChangeRequest(True, True),
        ChangeRequest(True, True),
        ChangeRequest(False, True),
        ChangeRequest(False, True),
    ]
    answer(probe, changes[0], SEEN[0], source=A2_P2)
    assert probe.is_done
    assert (probe.report.mapping, probe.report.filtering) == (Mapping.APDM, Filtering.EIF)


def test_silence_is_ten_packets_and_then_a_verdict() -> None:
    """Each of tests II and III leaves ten times within two seconds; the verdict falls when the last could have come."""
    probe, (second, filtering) = discovering()
    answer(probe, second, SEEN[0])
    answer(probe, filtering, SEEN[0], now=0.0)
    times: list[float] = [0.0] * len(sent(probe))
    while (deadline := probe.poll_timeout()) is not None:
        probe.handle_timeout(deadline)
        times += [deadline] * len(sent(probe))
    assert [round(time, 3) for time in times] == sorted(
        2 * [0.0, 0.1, 0.3, 0.7, 1.5] + 2 * [0.0, 0.13, 0.39, 0.91, 1.95]
    )
    assert deadline is None
    assert probe.report.filtering is Filtering.APDF


def test_the_second_answer_of_a_pair_of_copies_is_no_news() -> None:
    probe, (second, filtering) = discovering()
    answer(probe, second, SEEN[0])
    answer(probe, filtering, SEEN[0])
    changes = sent(probe)
    answer(probe, changes[2], SEEN[0], source=A1_P2)
    answer(probe, changes[3], SEEN[0], source=A1_P2)
    assert drops(probe) == ["not an answer to us"]
    answer(probe, changes[1], SEEN[0], source=A2_P2)
    assert probe.report.filtering is Filtering.EIF


def test_a_server_that_ignores_change_request_proves_nothing() -> None:
    """Its answers come from where we sent to, which every NAT lets in."""
    probe, (second, filtering) = discovering()
    answer(probe, second, SEEN[0])
    answer(probe, filtering, SEEN[0])
    for question in sent(probe)[::2]:
        answer(probe, question, SEEN[0], source=A1_P1)
    assert probe.is_done
    assert probe.report.filtering is Filtering.UNKNOWN
    assert f"answered from {A1_P1}, not from {A2_P2} as asked" in probe.report.evidence[-1]


def test_a_420_proves_nothing() -> None:
    """RFC 5780, 5: "Clients MUST be prepared to receive a 420 for requests that include CHANGE-REQUEST"."""
    probe, (second, filtering) = discovering()
    answer(probe, second, SEEN[0])
    answer(probe, filtering, SEEN[0])
    for transmit, message in sent(probe)[::2]:
        data = message.error_response(420, "Unknown Attribute").encode()
        probe.handle_datagram(Datagram(transmit.base, A1_P1, data), 0.1)
    assert probe.report.filtering is Filtering.UNKNOWN
    assert "error 420" in probe.report.evidence[-1]


def run_out(probe: BehaviourProbe) -> int:
    """Let nothing more arrive; how many packets leave till the end."""
    packets = len(sent(probe))
    for _ in range(200):
        deadline = probe.poll_timeout()
        if deadline is None:
            return packets
        probe.handle_timeout(deadline)
        packets += len(sent(probe))
    raise AssertionError("the probe does not end")


def test_a_second_address_that_is_dead_gives_no_verdict() -> None:
    """A silent OTHER-ADDRESS looks like the strictest of NATs."""
    probe, (_, filtering) = discovering()
    answer(probe, filtering, SEEN[0])
    assert run_out(probe) <= 60
    assert (probe.report.mapping, probe.report.filtering) == (Mapping.UNKNOWN, Filtering.UNKNOWN)


def test_test_iii_alone_can_prove_endpoint_independence() -> None:
    probe, _ = discovering()
    third = None
    for _ in range(100):
        deadline = probe.poll_timeout()
        assert deadline is not None
        probe.handle_timeout(deadline)
        third = next((each for each in sent(probe) if each[0].destination == A2_P2), None)
        if third is not None:
            break
    assert third is not None
    answer(probe, third, SEEN[0])
    assert probe.report.mapping is Mapping.EIM


def test_a_second_port_that_is_dead_leaves_adm_and_apdm_open() -> None:
    probe, (second, _) = discovering()
    answer(probe, second, SEEN[1])
    run_out(probe)
    assert probe.report.mapping is Mapping.UNKNOWN
    assert any("ADM or APDM" in sentence for sentence in probe.report.evidence)


@pytest.mark.parametrize("later", [SEEN[1], MAPPING_BASE])
def test_servers_that_contradict_each_other_give_no_verdict(later: TransportAddress) -> None:
    probe, (one, two) = started((A1_P1, ELSEWHERE))
    answer(probe, one, SEEN[0], other=A2_P2)
    second, _ = sent(probe)
    answer(probe, second, SEEN[0])
    before = probe.report
    answer(probe, two, later)
    assert (before.mapping, probe.report.mapping) == (Mapping.EIM, Mapping.UNKNOWN)
    assert "another server saw another address" in probe.report.evidence[-2]


@pytest.mark.parametrize(
    "other",
    [
        TransportAddress("192.0.2.1", 3479),
        TransportAddress("192.0.2.2", 3478),
        TransportAddress("192.0.2.2", 0),
        TransportAddress("224.0.0.1", 3479),
        TransportAddress("0.0.0.0", 3479),
        TransportAddress("127.0.0.1", 22),
        TransportAddress("2001:db8::1", 3479),
    ],
    ids=str,
)
def test_an_other_address_that_cannot_be_one_is_not_sent_to(other: TransportAddress) -> None:
    probe, questions = discovering(other)
    assert questions == []
    assert probe.is_done
    assert probe.report.mapping is Mapping.UNKNOWN


def test_a_network_error_is_believed() -> None:
    probe, _ = started()
    probe.handle_error(MAPPING_BASE, ELSEWHERE, errno.ECONNREFUSED, 0.01)
    was_done = probe.is_done
    probe.handle_error(MAPPING_BASE, A1_P1, errno.ECONNREFUSED, 0.01)
    assert (was_done, probe.is_done) == (False, True)
    assert probe.poll_timeout() is None
    assert f"{A1_P1}: Connection refused" in probe.report.evidence


def test_answers_of_others_are_dropped() -> None:
    probe, (first,) = started()
    answer(probe, first, SEEN[0], source=ELSEWHERE)
    answer(probe, (first[0]._replace(base=FILTERING_BASE), first[1]), SEEN[0])
    stranger = Message(first[1].method, MessageClass.REQUEST, bytes(12))
    answer(probe, (first[0], stranger), SEEN[0])
    probe.handle_datagram(Datagram(MAPPING_BASE, A1_P1, first[0].data), 0.0)
    probe.handle_datagram(Datagram(MAPPING_BASE, A1_P1, first[1].success().encode()), 0.0)
    assert drops(probe) == [
        "not the answer that was asked for",
        "not an answer to us",
        "not an answer to us",
        "not the answer that was asked for",
        "not the answer that was asked for",
    ]
    assert probe.counters.total() == 5
    assert not probe.report.observations


def test_mapped_address_will_do() -> None:
    """A server of RFC 3489 has no XOR-MAPPED-ADDRESS."""
    probe, (first,) = started()
    data = first[1].success((MAPPED_ADDRESS, SEEN[0])).encode()
    probe.handle_datagram(Datagram(MAPPING_BASE, A1_P1, data), 0.05)
    (seen,) = probe.report.observations
    assert (seen.server, seen.base, seen.mapped) == (A1_P1, MAPPING_BASE, SEEN[0])
    assert seen.rtt_ms == pytest.approx(50.0)


def test_an_rtt_of_a_repeated_question_is_not_told() -> None:
    probe, (first,) = started()
    probe.handle_timeout(0.1)
    sent(probe)
    answer(probe, first, SEEN[0], now=0.15)
    assert probe.report.observations[0].rtt_ms is None


def test_without_a_fresh_base_filtering_is_not_tested() -> None:
    probe = new_probe(filtering_base=None)
    probe.start(0.0)
    answer(probe, sent(probe)[0], SEEN[0], other=A2_P2)
    (second,) = sent(probe)
    answer(probe, second, SEEN[0])
    assert probe.is_done
    assert (probe.report.mapping, probe.report.filtering) == (Mapping.EIM, Filtering.UNKNOWN)


@pytest.mark.parametrize(
    ("servers", "mapping_base", "filtering_base"),
    [
        ([], MAPPING_BASE, None),
        ([A1_P1, A1_P2, A2_P1, A2_P2], MAPPING_BASE, None),
        ([A1_P1], TransportAddress("2001:db8::1", 1), None),
        ([A1_P1], TransportAddress("0.0.0.0", 40000), None),
        ([A1_P1], MAPPING_BASE, MAPPING_BASE),
    ],
)
def test_what_cannot_be_measured_is_refused(
    servers: Sequence[TransportAddress], mapping_base: TransportAddress, filtering_base: TransportAddress | None
) -> None:
    with pytest.raises(ValueError, match=r"servers|bases|base"):
        BehaviourProbe(servers, mapping_base, filtering_base, system_rng=random.Random(1))


@given(st.lists(st.binary(max_size=80), max_size=5), st.integers(0, 255), st.integers(0, 200))
def test_nothing_on_the_network_raises(packets: list[bytes], value: int, position: int) -> None:
    probe, (first,) = started()
    mutant = bytearray(first[1].success((XOR_MAPPED_ADDRESS, SEEN[0]), (OTHER_ADDRESS, A2_P2)).encode())
    mutant[position % len(mutant)] = value
    for data in (*packets, bytes(mutant)):
        probe.handle_datagram(Datagram(MAPPING_BASE, A1_P1, data), 0.0)
    assert run_out(probe) <= 60
    assert probe.is_done
