"""Permissions and channels, against a server that knows every MUST (RFC 8656, 9 to 12)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EACCES, EHOSTUNREACH, ENOTCONN
from random import Random

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import PacketDropped
from relay.stun import (
    CHANNEL_NUMBER,
    DATA,
    ICMP,
    XOR_PEER_ADDRESS,
    Icmp,
    Message,
    MessageClass,
    Method,
    build,
    parse,
)
from relay.turn import (
    Allocation,
    AllocationLost,
    AllocationOptions,
    AllocationState,
    PeerRefused,
    PeerUnreachable,
)
from relay.turn.peers import FIRST_CHANNEL, LAST_CHANNEL, MAX_PERMISSIONS
from tests.fakes.turn_server import Channel, Options
from tests.unit.relay.turn.kit import CLIENT, PEER, SERVER, USER, Play

USERS = {"user": "secret"}
OTHER = TransportAddress("203.0.113.10", 7000)
THIRD = TransportAddress("203.0.113.11", 7000)
SIX = TransportAddress("2001:db8::9", 7000)
# Bytes: what goes over an Ethernet path with PPPoE and IPv6, and over most tunnels.
SMALLEST_MTU = 1280 - 48
CHANNELS = LAST_CHANNEL - FIRST_CHANNEL + 1


def kinds(play: Play, since: int = 0) -> list[str]:
    """What the client has sent, one name per datagram."""
    return ["ChannelData" if data[0] >= 0x40 else Method(parse(data).method).name for data in play.sent[since:]]


def asked(play: Play, method: Method) -> list[Message]:
    """The client's requests of a method, with every repetition."""
    return [message for data in play.sent if data[0] < 0x40 and (message := parse(data)).method == method]


def hosts_asked(play: Play) -> list[list[str]]:
    """Those of each CreatePermission request."""
    return [
        sorted(peer.host for peer in request.get_all(XOR_PEER_ADDRESS))
        for request in asked(play, Method.CREATE_PERMISSION)
    ]


def permitted(play: Play) -> set[str]:
    """Whom the server lets in now."""
    (allocation,) = play.server.allocations(play.now)
    return set(allocation.permissions)


def bound(play: Play) -> dict[int, TransportAddress]:
    """The channels that the server has now."""
    (allocation,) = play.server.allocations(play.now)
    return {number: channel.peer for number, channel in allocation.channels.items()}


def refused(play: Play) -> list[tuple[str, int]]:
    """Of every ``PeerRefused``."""
    return [(event.host, event.code) for event in play.events if isinstance(event, PeerRefused)]


def talk(play: Play, peer: TransportAddress = PEER) -> None:
    """Both send: a channel comes of it."""
    play.send(b"there", peer)
    play.run(0.2)
    play.from_peer(b"back", peer)
    play.run(0.2)


def losing(*methods: Method) -> Callable[[bytes], bool]:
    """For ``Play.loses``: these requests do not arrive."""
    return lambda data: data[0] < 0x40 and parse(data).method in methods


def losing_first(method: Method, count: int) -> Callable[[bytes], bool]:
    """For ``Play.loses``: the first ones of these do not arrive."""
    left = [count]

    def loses(data: bytes) -> bool:
        if data[0] >= 0x40 or parse(data).method != method or not left[0]:
            return False
        left[0] -= 1
        return True

    return loses


def channel_data(number: int, data: bytes) -> bytes:
    return struct.pack(">HH", number, len(data)) + data


def data_indication(peer: TransportAddress, data: bytes = b"x") -> bytes:
    pairs = ((XOR_PEER_ADDRESS, peer), (DATA, data))
    return build(Method.DATA, MessageClass.INDICATION, bytes(12), *pairs).encode(fingerprint=False)


def on_a_stream() -> Play:
    """A client that believes so."""
    play = Play()
    play.client = Allocation(CLIENT, SERVER, USER, Random(1), is_stream=True)
    return play


# --- permissions -----------------------------------------------------------------------------------------------------


def test_the_first_datagram_leaves_right_behind_the_request() -> None:
    """It costs no round trip, and arrives."""
    play = Play()
    relayed = play.allocate().relayed[0]
    before = len(play.sent)
    assert play.send(b"first") == 0
    assert kinds(play, before) == ["CREATE_PERMISSION", "SEND"]
    play.run(0.06)
    assert play.at_peers == [(relayed, PEER, b"first")]
    assert not play.server.counters["indication without permission"]


def test_one_request_for_all_that_is_sent_before_its_answer() -> None:
    play = Play()
    play.allocate()
    for number in range(5):
        play.send(bytes([number]), PEER._replace(port=7000 + number))
    play.run(0.2)
    assert [(peer.port, data) for _, peer, data in play.at_peers] == [(7000 + n, bytes([n])) for n in range(5)]
    assert hosts_asked(play) == [[PEER.host]]


def test_an_empty_datagram_is_one() -> None:
    """RFC 8656, 11.1 and 12.4: "0 is a valid length"."""
    play = Play()
    play.allocate()
    talk(play)
    play.send(b"")
    play.send(b"", OTHER)
    play.from_peer(b"")
    play.run(0.2)
    assert [(peer, data) for _, peer, data in play.at_peers[1:]] == [(PEER, b""), (OTHER, b"")]
    assert play.received()[-1] == (PEER, b"")


def test_nothing_is_sent_without_an_allocation() -> None:
    play = Play()
    assert play.send() == ENOTCONN
    play.client.allocate(play.now)
    assert play.send() == ENOTCONN
    play.run(1.0)
    assert play.send() == 0
    play.act(play.client.release)
    assert play.send(b"late", OTHER) == ENOTCONN
    play.run(1.0)
    assert [data for _, _, data in play.at_peers] == [b"hello"]


def test_what_was_permitted_before_there_is_an_allocation_is_asked_for_then() -> None:
    play = Play()
    play.act(play.client.permit, [PEER.host, OTHER.host])
    assert not play.sent
    play.allocate()
    assert hosts_asked(play) == [sorted([PEER.host, OTHER.host])]
    assert permitted(play) == {PEER.host, OTHER.host}


def test_another_set_lets_the_old_ones_expire_at_the_server() -> None:
    """RFC 8656, 9: there is no way to take a permission back; it lives for 300 s."""
    play = Play()
    play.allocate()
    began = play.now
    play.act(play.client.permit, [PEER.host, OTHER.host])
    play.run(1.0)
    play.act(play.client.permit, [OTHER.host, THIRD.host])
    play.run(began + 300.0 - play.now)
    assert permitted(play) == {PEER.host, OTHER.host, THIRD.host}
    play.run(0.1)
    assert permitted(play) == {OTHER.host, THIRD.host}
    play.run(3600)
    assert permitted(play) == {OTHER.host, THIRD.host}


def test_the_old_ones_are_heard_for_as_long_as_the_server_has_them() -> None:
    """``Allocation.permit``: "they keep what they have for 5 minutes"."""
    play = Play()
    play.allocate()
    play.act(play.client.permit, [PEER.host])
    play.run(1.0)
    play.act(play.client.permit, [])
    play.run(270.0)
    assert permitted(play) == {PEER.host}
    play.from_peer(b"still")
    play.run(0.2)
    assert play.received() == [(PEER, b"still")]


def test_a_host_that_is_not_permitted_any_more_is_kept_while_we_send_there() -> None:
    play = Play()
    play.allocate()
    play.act(play.client.permit, [PEER.host])
    play.act(play.client.permit, [])
    for _ in range(20):
        play.send()
        play.run(60.0)
    assert permitted(play) == {PEER.host} and len(play.at_peers) == 20


def test_a_host_that_is_permitted_twice_is_asked_for_once() -> None:
    play = Play()
    play.allocate()
    for _ in range(3):
        play.act(play.client.permit, [PEER.host, OTHER.host])
        play.run(1.0)
    assert len(hosts_asked(play)) == 1


def test_a_lost_request_for_a_permission_is_repeated() -> None:
    """RFC 8489, 6.2.1: after 0.5 and 1.5 s; what is sent until then the server drops."""
    play = Play()
    play.allocate()
    play.loses = losing_first(Method.CREATE_PERMISSION, 2)
    play.send(b"lost")
    play.run(1.4)
    play.send(b"too early")
    play.run(0.3)
    play.send(b"there")
    play.run(0.2)
    requests = asked(play, Method.CREATE_PERMISSION)
    assert len(requests) == 3 and len({request.transaction_id for request in requests}) == 1
    assert [data for _, _, data in play.at_peers] == [b"there"]


def test_a_request_for_a_permission_without_an_answer_is_made_again_after_a_minute() -> None:
    """7 times in 39.5 s, then not for 60 s; meanwhile everything is sent all the same."""
    play = Play()
    play.allocate()
    play.loses = losing(Method.CREATE_PERMISSION)
    play.act(play.client.permit, [PEER.host])
    play.run(39.6)
    assert len(asked(play, Method.CREATE_PERMISSION)) == 7
    assert play.send(b"into the dark") == 0
    play.run(59.8)
    assert len(asked(play, Method.CREATE_PERMISSION)) == 7
    play.loses = lambda data: False
    play.run(0.2)
    play.from_peer(b"at last")
    play.run(0.2)
    assert play.received() == [(PEER, b"at last")] and not refused(play)
    assert len({request.transaction_id for request in asked(play, Method.CREATE_PERMISSION)}) == 2


# --- refused peers ---------------------------------------------------------------------------------------------------


def test_a_refused_peer_leaves_the_others_alone() -> None:
    """RFC 8656, 10.2: 403."""
    play = Play(Options(users=USERS, forbidden=frozenset({OTHER.host})))
    play.allocate()
    # Nobody knows yet.
    assert play.send(b"a") == play.send(b"b", OTHER) == 0
    play.run(0.2)
    assert play.send(b"c", OTHER) == play.send(b"d", OTHER._replace(port=1)) == EACCES
    assert play.send(b"e") == 0
    play.run(600.0)
    assert play.send(b"f", OTHER) == EACCES
    assert refused(play) == [(OTHER.host, 403)]
    assert [(peer, data) for _, peer, data in play.at_peers] == [(PEER, b"a"), (PEER, b"e")]
    assert not play.has(AllocationLost) and not play.server.violations


def test_of_several_in_one_request_each_is_asked_for_by_itself_when_one_is_refused() -> None:
    """The answer does not say which one it is."""
    bad = [f"198.18.0.{number}" for number in (1, 2)]
    play = Play(Options(users=USERS, forbidden=frozenset(bad)))
    play.allocate()
    play.act(play.client.permit, [PEER.host, *bad, OTHER.host])
    play.run(0.3)
    everybody = sorted([PEER.host, *bad, OTHER.host])
    assert hosts_asked(play)[0] == everybody
    assert sorted(hosts_asked(play)[1:]) == [[host] for host in everybody]
    assert sorted(refused(play)) == [(host, 403) for host in bad]
    assert permitted(play) == {PEER.host, OTHER.host}
    assert play.send(b"to a bad one", TransportAddress(bad[0], 1)) == EACCES
    assert play.send(b"to a good one") == 0
    # The good ones live on, and nobody asks for the bad ones any more.
    count = len(hosts_asked(play))
    play.run(3600)
    assert permitted(play) == {PEER.host, OTHER.host} and len(refused(play)) == 2
    assert not [hosts for hosts in hosts_asked(play)[count:] if set(hosts) & set(bad)]


def test_a_peer_that_is_refused_later() -> None:
    """When permissions are renewed together, the one that is forbidden by now takes no other one along."""
    play = Play()
    play.allocate()
    play.act(play.client.permit, [PEER.host, OTHER.host, THIRD.host])
    play.run(10.0)
    play.server.options.forbidden = frozenset({OTHER.host})
    play.run(400.0)
    assert refused(play) == [(OTHER.host, 403)]
    assert permitted(play) == {PEER.host, THIRD.host}
    assert play.send(b"x", OTHER) == EACCES and play.send(b"x", THIRD) == 0


def test_nothing_is_heard_from_a_refused_peer() -> None:
    """RFC 8656, 11.4: an "active permission" is none that was refused."""
    play = Play(Options(users=USERS, forbidden=frozenset({PEER.host})))
    play.allocate()
    play.act(play.client.permit, [PEER.host])
    play.run(0.2)
    assert refused(play) == [(PEER.host, 403)]
    play.to_client(data_indication(PEER))
    assert not play.received()


def test_refused_hosts_that_nobody_sends_to_any_more_take_no_room() -> None:
    """Else a peer with many bad candidates would fill the table for ever."""
    bad = [f"10.0.{number // 250}.{number % 250}" for number in range(MAX_PERMISSIONS)]
    play = Play(Options(users=USERS, forbidden=frozenset(bad)))
    play.allocate()
    for start in range(0, len(bad), 100):
        for host in bad[start : start + 100]:
            play.send(b"x", TransportAddress(host, 1))
        play.run(0.3)
    assert len(refused(play)) == MAX_PERMISSIONS
    for host in bad:
        assert play.send(b"x", TransportAddress(host, 1)) == EACCES
    play.run(600.0)
    assert play.send(b"good") == 0


# --- families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "good", "bad"), [(4, PEER, SIX), (6, SIX, PEER)])
def test_hosts_of_a_family_without_a_relayed_address(
    version: int, good: TransportAddress, bad: TransportAddress
) -> None:
    """RFC 8656, 10.1: "MUST only include XOR-PEER-ADDRESS attributes with addresses of the same address family"."""
    play = Play(asked=AllocationOptions(families=(version,)))
    play.allocate()
    play.act(play.client.permit, [good.host, bad.host])
    assert play.send(b"x", bad) == EHOSTUNREACH and play.send(b"x", good) == 0
    play.run(0.2)
    play.to_client(data_indication(bad))
    play.run(3600)
    assert {host for hosts in hosts_asked(play) for host in hosts} == {good.host}
    assert play.client.relayed_for(bad) is None and not play.received()
    assert not refused(play) and not play.server.counters["443"]


def test_a_channel_and_a_permission_of_each_family() -> None:
    play = Play(asked=AllocationOptions(families=(4, 6)))
    play.allocate()
    play.act(play.client.permit, [PEER.host, SIX.host])
    talk(play)
    talk(play, SIX)
    assert sorted(bound(play).values()) == sorted([PEER, SIX])
    assert hosts_asked(play) == [sorted([PEER.host, SIX.host])]
    play.from_peer(b"4")
    play.from_peer(b"6", SIX)
    play.run(0.2)
    assert play.received()[-2:] == [(PEER, b"4"), (SIX, b"6")]


# --- many hosts ------------------------------------------------------------------------------------------------------


def many(count: int, network: int = 10) -> list[str]:
    return [f"{network}.0.{number // 250}.{number % 250}" for number in range(count)]


def test_more_hosts_than_there_is_room_for() -> None:
    """1,000 are permitted, 24 in a request, so that it fits into any path's MTU; there is no word of the rest."""
    play = Play()
    play.allocate()
    before = len(play.sent)
    play.act(play.client.permit, many(MAX_PERMISSIONS + 50))
    play.run(0.3)
    assert len(permitted(play)) == MAX_PERMISSIONS
    assert len(hosts_asked(play)) == -(-MAX_PERMISSIONS // 24)
    assert max(len(data) for data in play.sent[before:]) <= SMALLEST_MTU
    assert play.send(b"x") == EHOSTUNREACH
    assert play.send(b"x", TransportAddress(many(1)[0], 1)) == 0
    play.act(play.client.permit, [])
    play.run(600.0)
    assert play.send(b"room again") == 0
    play.run(0.2)
    assert play.at_peers[-1][1:] == (PEER, b"room again") and not play.server.violations


def test_another_set_is_permitted_although_the_old_one_filled_the_table() -> None:
    """``Allocation.permit``: "These peers may send to us from now on": at the latest when there is room."""
    play = Play()
    play.allocate()
    play.act(play.client.permit, many(MAX_PERMISSIONS))
    play.run(10.0)
    play.act(play.client.permit, [PEER.host])
    play.run(400.0)
    assert permitted(play) == {PEER.host}


# --- channels --------------------------------------------------------------------------------------------------------


def test_a_channel_is_bound_once_the_peer_was_heard_and_used_both_ways() -> None:
    play = Play()
    relayed = play.allocate().relayed[0]
    arrived: list[bytes] = []

    def note(data: bytes) -> bytes:
        arrived.append(data)
        return data

    play.changes = note
    play.send(b"one")
    play.run(0.2)
    assert not asked(play, Method.CHANNEL_BIND)
    play.from_peer(b"two")
    play.run(0.2)
    (request,) = asked(play, Method.CHANNEL_BIND)
    assert (request.get(CHANNEL_NUMBER), request.get(XOR_PEER_ADDRESS)) == (FIRST_CHANNEL, PEER)
    assert bound(play) == {FIRST_CHANNEL: PEER}
    play.send(b"three")
    play.from_peer(b"four")
    play.run(0.2)
    assert play.sent[-1] == channel_data(FIRST_CHANNEL, b"three")
    assert arrived[-1] == channel_data(FIRST_CHANNEL, b"four")
    assert play.at_peers == [(relayed, PEER, b"one"), (relayed, PEER, b"three")]
    assert play.received() == [(PEER, b"two"), (PEER, b"four")]
    assert not play.server.violations


def test_indications_until_the_channel_is_confirmed() -> None:
    """RFC 8656, 12: "A client that wishes to be safe should … use Send indications until the channel binding is
    confirmed".
    """
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer()
    play.run(0.06)
    before = len(play.sent)
    play.send(b"asked for")
    play.run(0.1)
    play.send(b"confirmed")
    assert kinds(play, before) == ["SEND", "ChannelData"]


def test_a_peer_that_only_we_sent_to_gets_no_channel() -> None:
    play = Play()
    play.allocate()
    for _ in range(100):
        play.send()
        play.run(30.0)
    assert len(play.at_peers) == 100 and not asked(play, Method.CHANNEL_BIND)


def test_a_peer_that_we_never_sent_to_gets_no_channel() -> None:
    """Nor another port of a host that we did send to: who can send from many would have all numbers."""
    play = Play()
    play.allocate()
    play.act(play.client.permit, [OTHER.host])
    play.send()
    play.run(0.2)
    for peer in (OTHER, PEER._replace(port=7001)):
        play.from_peer(b"x", peer)
    play.run(0.2)
    assert [peer for peer, _ in play.received()] == [OTHER, PEER._replace(port=7001)]
    assert not asked(play, Method.CHANNEL_BIND)


def test_channel_data_before_the_answer_is_taken() -> None:
    """RFC 8656, 12: "SHOULD be prepared to receive ChannelData messages on the channel from the server as soon as it
    has sent the ChannelBind request".
    """
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.from_peer(b"first")
    play.run(0.06)
    assert asked(play, Method.CHANNEL_BIND) and not bound(play)
    play.to_client(channel_data(FIRST_CHANNEL, b"early"))
    assert play.received() == [(PEER, b"first"), (PEER, b"early")]


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0\0"])
def test_padded_channel_data_is_taken_over_udp(padding: bytes) -> None:
    """RFC 8656, 12.5: "the padding is not required but MAY be included"."""
    play = Play()
    play.allocate()
    talk(play)
    play.to_client(channel_data(FIRST_CHANNEL, b"abcde") + padding)
    assert play.received()[-1] == (PEER, b"abcde")


def test_channel_data_that_is_short_or_of_no_channel_is_dropped_and_counted() -> None:
    """RFC 8656, 12.6."""
    play = Play()
    play.allocate()
    talk(play)
    count = len(play.received())
    play.to_client(channel_data(FIRST_CHANNEL, b"whole")[:-1])
    play.to_client(channel_data(FIRST_CHANNEL + 1, b"whose?"))
    play.to_client(b"\x40\x00\x00")
    assert len(play.received()) == count
    assert play.client.counters["short channel data"] == 1
    assert play.client.counters["channel data that belongs to no channel"] == 1


def test_a_channel_bind_without_an_answer() -> None:
    """Indications go on; it is asked for again a minute later, by the same number, if the peer is still heard."""
    play = Play()
    play.allocate()
    play.loses = losing(Method.CHANNEL_BIND)
    talk(play)
    play.run(40.0)
    assert len(asked(play, Method.CHANNEL_BIND)) == 7
    before = len(play.sent)
    assert play.send(b"anyhow") == 0
    assert kinds(play, before) == ["SEND"]
    play.from_peer(b"likewise")
    play.run(50.0)
    assert play.at_peers[-1][1:] == (PEER, b"anyhow") and play.received()[-1] == (PEER, b"likewise")
    assert len(asked(play, Method.CHANNEL_BIND)) == 7
    play.loses = lambda data: False
    play.run(20.0)
    requests = asked(play, Method.CHANNEL_BIND)
    assert len({request.transaction_id for request in requests}) == 2 and len(requests) == 8
    assert bound(play) == {FIRST_CHANNEL: PEER}
    play.send(b"now")
    assert kinds(play)[-1] == "ChannelData"
    assert not play.server.violations


def test_a_lost_channel_bind_is_repeated() -> None:
    play = Play()
    play.allocate()
    play.loses = losing_first(Method.CHANNEL_BIND, 2)
    talk(play)
    play.run(2.0)
    requests = asked(play, Method.CHANNEL_BIND)
    assert len(requests) == 3 and len({request.transaction_id for request in requests}) == 1
    play.send(b"x")
    assert kinds(play)[-1] == "ChannelData"


def test_a_refused_channel_is_done_without() -> None:
    """RFC 8656, 12.2: 403; the permission that there is lasts."""
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    play.server.options.forbidden = frozenset({PEER.host})
    play.from_peer()
    play.run(0.2)
    assert play.server.counters["403"] == 1
    play.send(b"without")
    play.run(0.2)
    assert kinds(play)[-1] == "SEND" and play.at_peers[-1][1:] == (PEER, b"without")
    assert not play.has(AllocationLost)


def test_client_and_server_disagree_about_channels() -> None:
    """RFC 8656, 12.3: "it is RECOMMENDED that the client immediately delete the allocation and start afresh"."""
    play = Play()
    play.allocate()
    play.send()
    play.run(0.2)
    (allocation,) = play.server.allocations(play.now)
    allocation.channels[FIRST_CHANNEL] = Channel(OTHER, play.now + 600.0)
    play.from_peer()
    play.run(0.2)
    assert "400" in play.only(AllocationLost).reason


def test_a_channel_in_use_is_renewed_before_it_ends() -> None:
    """RFC 8656, 12: "A channel binding lasts for 10 minutes unless refreshed", whatever goes over it."""
    play = Play()
    play.allocate()
    talk(play)
    before = len(play.sent)
    for _ in range(60):
        play.send()
        play.run(60.0)
        assert bound(play) == {FIRST_CHANNEL: PEER}
    sends = [kind for kind in kinds(play, before) if kind in ("SEND", "ChannelData")]
    assert sends == ["ChannelData"] * 60
    assert len(asked(play, Method.CHANNEL_BIND)) == 1 + 3600 // 540
    assert len(play.at_peers) == 61 and not play.server.counters["channel data without permission"]


@pytest.mark.parametrize("pause_s", [700.0, 1800.0])
def test_the_same_peer_gets_the_same_number_again(pause_s: float) -> None:
    """RFC 8656, 12: "MUST wait 5 minutes after the channel binding expires before attempting to bind … the transport
    address to a different channel number".
    """
    play = Play()
    play.allocate()
    talk(play)
    talk(play, OTHER)
    play.run(pause_s)
    assert not bound(play)
    talk(play, OTHER)
    talk(play)
    assert bound(play) == {FIRST_CHANNEL: PEER, FIRST_CHANNEL + 1: OTHER}
    assert not play.server.violations


def test_a_channel_that_ended_is_used_no_more() -> None:
    """By the clock of the client, which starts when the request leaves."""
    play = Play()
    play.allocate()
    talk(play)
    play.run(601.0)
    before = len(play.sent)
    play.send(b"again")
    play.run(0.2)
    # The permission lives on: the channel had it renewed.
    assert kinds(play, before) == ["SEND"]
    assert play.at_peers[-1][1:] == (PEER, b"again")
    assert not play.server.counters["channel data on an unbound channel"]


# --- all the numbers -------------------------------------------------------------------------------------------------


def crowd(play: Play, count: int, start: int = 0) -> None:
    """Talk with many ports of one host; some hundred at a time."""
    for low in range(start, start + count, 512):
        ports = range(low, min(low + 512, start + count))
        for port in ports:
            play.send(b"x", PEER._replace(port=1000 + port))
        play.run(0.11)
        for port in ports:
            play.from_peer(b"y", PEER._replace(port=1000 + port))
        play.run(0.2)


def test_there_are_4096_channels_and_their_numbers_are_used_again() -> None:
    """RFC 8656, 12: 0x4000 to 0x4FFF. One more peer has none, and is none the worse, until another one's 10 minutes are
    over and "the client MUST wait 5 minutes after the channel binding expires". The server counts from when a request
    arrived that it took: of the first peer that is the second, as its nonce was stale, and of that the fourth
    repetition, 3.6 s after the client had begun to ask.
    """
    play = Play()
    play.allocate()
    play.send(b"x")
    play.run(0.2)
    began = play.now
    play.server.options.nonce_lifetime_s = 0.01
    play.from_peer(b"y")
    play.run(0.12)
    play.server.options.nonce_lifetime_s = 3600.0
    play.loses = losing_first(Method.CHANNEL_BIND, 3)
    play.run(4.0)
    assert bound(play) == {FIRST_CHANNEL: PEER} and len(asked(play, Method.CHANNEL_BIND)) == 5
    crowd(play, CHANNELS - 1)
    assert len(bound(play)) == CHANNELS
    newcomer = PEER._replace(port=999)
    before = len(play.sent)
    talk(play, newcomer)
    play.send(b"z", newcomer)
    play.run(0.2)
    assert not {"ChannelData", "CHANNEL_BIND"} & set(kinds(play, before))
    assert play.at_peers[-1][1:] == (newcomer, b"z")
    # Nobody uses a channel any more; the first one ends before all others.
    for seconds in (890.0, 900.3):
        play.run(began + seconds - play.now)
        talk(play, newcomer)
        assert not bound(play) or seconds > 900.0
    play.run(began + 990.0 - play.now)
    talk(play, newcomer)
    assert list(bound(play).values()) == [newcomer]
    assert not play.server.violations and not play.has(AllocationLost)


def test_all_channels_at_once_are_no_busy_loop_and_raise_nothing() -> None:
    """``iceagent/net/core.py``: a core does not raise; and who waits until ``poll_timeout`` does not turn round and
    round.
    """
    play = Play()
    play.allocate()
    play.loses = losing(Method.CHANNEL_BIND)
    peers = [PEER._replace(port=1000 + number) for number in range(CHANNELS + 10)]
    for peer in peers:
        play.send(b"x", peer)
    play.run(0.2)
    for peer in peers:
        play.to_client(data_indication(peer))
    # The first ten were forgotten, and are to be sent to once more.
    assert len(asked(play, Method.CHANNEL_BIND)) <= CHANNELS
    play.client.handle_timeout(play.now)
    deadline = play.client.poll_timeout()
    assert deadline is not None and deadline > play.now
    assert play.client.send(OTHER, b"x", play.now) == 0
    assert play.client.state is AllocationState.READY


# --- what the server indicates ---------------------------------------------------------------------------------------


def test_a_data_indication_without_a_permission_is_dropped_and_counted() -> None:
    """RFC 8656, 11.4: against who "manages to trick the server into installing permissions not desired by the
    client".
    """
    play = Play()
    play.allocate()
    talk(play)
    count = len(play.received())
    play.to_client(data_indication(OTHER))
    assert len(play.received()) == count
    assert play.client.counters["dropped: Data indication without a permission"] == 1
    dropped = play.only(PacketDropped)
    assert (dropped.base, dropped.source) == (CLIENT, SERVER) and "permission" in dropped.reason
    # Another port of a host that has one is another matter.
    play.to_client(data_indication(PEER._replace(port=1)))
    assert play.received()[-1] == (PEER._replace(port=1), b"x")


def test_an_icmp_error_is_told_for_a_permitted_peer_only() -> None:
    """RFC 8656, 11.6."""
    play = Play()
    relayed = play.allocate().relayed[0]
    play.send()
    play.run(0.2)
    icmp = Icmp(3, 3, 0)
    for peer in (PEER, OTHER):
        pairs = ((XOR_PEER_ADDRESS, peer), (ICMP, icmp))
        play.to_client(build(Method.DATA, MessageClass.INDICATION, bytes(12), *pairs).encode(fingerprint=False))
    assert play.only(PeerUnreachable) == PeerUnreachable(relayed=relayed, peer=PEER, icmp=icmp)
    assert play.client.counters["dropped: Data indication without a permission"] == 1
    assert not asked(play, Method.CHANNEL_BIND)


# --- over a stream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(6))
def test_channel_data_is_padded_over_a_stream(length: int) -> None:
    """RFC 8656, 12.5: "MUST be padded to a multiple of four bytes …. The padding is not reflected in the length"."""
    play = on_a_stream()
    play.allocate()
    talk(play)
    data = b"abcdef"[:length]
    play.send(data)
    play.run(0.2)
    assert play.sent[-1] == channel_data(FIRST_CHANNEL, data) + bytes(-length % 4)
    assert play.at_peers[-1][1:] == (PEER, data)
    play.to_client(channel_data(FIRST_CHANNEL, data))
    assert play.received()[-1] == (PEER, data)


def test_channel_data_is_not_padded_over_udp() -> None:
    play = Play()
    play.allocate()
    talk(play)
    play.send(b"abcde")
    assert play.sent[-1] == channel_data(FIRST_CHANNEL, b"abcde")


def test_requests_are_sent_once_over_a_stream() -> None:
    """RFC 8489, 6.2.2; after 39.5 s it is over, and the peer can be sent to all the same."""
    play = on_a_stream()
    play.allocate()
    play.loses = losing(Method.CREATE_PERMISSION, Method.CHANNEL_BIND)
    play.send()
    play.run(99.0)
    assert len(asked(play, Method.CREATE_PERMISSION)) == 1
    play.send(b"x")
    play.loses = losing(Method.CHANNEL_BIND)
    play.run(1.0)
    assert len(asked(play, Method.CREATE_PERMISSION)) == 2
    talk(play)
    play.run(38.0)
    assert len(asked(play, Method.CHANNEL_BIND)) == 1
    assert play.at_peers and not play.has(AllocationLost)


def test_two_hours_over_a_stream() -> None:
    play = on_a_stream()
    play.allocate()
    talk(play)
    for minute in range(120):
        play.send(str(minute).encode())
        play.from_peer(str(minute).encode())
        play.run(60.0)
    assert [data for _, _, data in play.at_peers[1:]] == [str(minute).encode() for minute in range(120)]
    assert [data for _, data in play.received()[1:]] == [str(minute).encode() for minute in range(120)]
    assert not play.server.violations


# --- stale nonces ----------------------------------------------------------------------------------------------------


def test_stale_nonces_in_the_middle_of_all_that() -> None:
    """RFC 8489, 9.2.5: 438 is no refusal. Every nonce is good for a second: permissions in several requests, one of
    them refused, channels, renewals, losses.
    """
    play = Play(Options(users=USERS, nonce_lifetime_s=1.0, forbidden=frozenset({OTHER.host})))
    play.allocate()
    hosts = [*many(60), PEER.host, OTHER.host]
    play.run(10.0)
    play.act(play.client.permit, hosts)
    play.run(2.0)
    assert permitted(play) == set(hosts) - {OTHER.host} and refused(play) == [(OTHER.host, 403)]
    play.loses = losing_first(Method.CHANNEL_BIND, 2)
    talk(play)
    play.run(5.0)
    play.loses = lambda data: False
    for _ in range(60):
        assert play.send(b"x") == 0
        play.from_peer(b"y")
        play.run(30.0)
        assert bound(play) == {FIRST_CHANNEL: PEER}
        assert permitted(play) == set(hosts) - {OTHER.host}
    assert len(play.at_peers) == 61 and len(play.received()) == 61
    assert play.server.counters["438"] > 10 and len(refused(play)) == 1
    assert not play.server.violations and not play.has(AllocationLost)


def test_the_first_datagram_behind_a_request_with_a_stale_nonce() -> None:
    """It is dropped by the server, as UDP may do; what is sent after the answer arrives."""
    play = Play(Options(users=USERS, nonce_lifetime_s=1.0))
    play.allocate()
    play.run(5.0)
    play.send(b"first")
    play.run(0.3)
    play.send(b"second")
    play.run(0.2)
    assert [data for _, _, data in play.at_peers] == [b"second"]
    assert len(asked(play, Method.CREATE_PERMISSION)) == 2 and play.server.counters["438"] == 1
