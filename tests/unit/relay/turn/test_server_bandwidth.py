"""What is dropped for being too much, and for being nobody's: two different things to who reads the counters."""

from __future__ import annotations

from relay.stun import CHANNEL_NUMBER, DATA, XOR_PEER_ADDRESS, Method
from tests.unit.relay.turn.server_kit import PEER, PEER_2, Client, Court

TO_PEERS, FROM_PEERS = "dropped: over the bandwidth, to peers", "dropped: over the bandwidth, from peers"
SIZE = 500


def drops(court: Court) -> dict[str, int]:
    return {name: count for name, count in court.turn.counters.items() if name.startswith("dropped")}


def channel_data(court: Court, number: int = 0x4001, size: int = SIZE) -> bool:
    """As the shell does with what comes from a client; whether it is relayed."""
    message = number.to_bytes(2, "big") + size.to_bytes(2, "big") + bytes(size)
    if court.allocation().to_peer(message, court.now) is None:
        court.turn.note_dropped(court.allocation(), message, court.now)
        return False
    return True


def limited() -> tuple[Court, Client]:
    """Two datagrams a second, in both directions together."""
    court = Court(max_bytes_per_s=2 * SIZE)
    client = Client(court)
    client.allocate()
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    return court, client


def test_what_is_too_much_is_counted_in_each_direction() -> None:
    court, client = limited()
    assert [channel_data(court) for _ in range(4)] == [True, True, False, False]
    assert drops(court) == {TO_PEERS: 2}
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, PEER), (DATA, bytes(SIZE)))
    assert drops(court) == {TO_PEERS: 3}
    court.pass_time(1.0)
    relayed = [court.turn.from_peer(court.allocation(), PEER, bytes(SIZE), court.now) for _ in range(5)]
    assert [each is not None for each in relayed] == [True, True, False, False, False]
    assert drops(court) == {TO_PEERS: 3, FROM_PEERS: 3}
    assert court.allocation().packets == [2, 2]


def test_a_train_is_counted_datagram_by_datagram() -> None:
    court, _ = limited()
    relayed = court.turn.train_from_peer(court.allocation(), PEER, [bytes(SIZE)] * 5, court.now)
    assert len(relayed) == 2 and drops(court) == {FROM_PEERS: 3}


def test_what_is_nobodys_is_something_else() -> None:
    court, _ = limited()
    assert court.turn.from_peer(court.allocation(), PEER_2, b"x", court.now) is None
    assert not channel_data(court, 0x4002)
    court.turn.note_dropped(court.allocation(), b"\x40\x01\x00\x09x", court.now)
    court.turn.note_dropped(court.allocation(), b"\x40", court.now)
    court.now += 301.0
    assert not channel_data(court)
    assert drops(court) == {
        "dropped: peer without permission": 1,
        "dropped: channel data without a channel": 1,
        "dropped: channel data that is too short": 2,
        "dropped: channel data without permission": 1,
    }
