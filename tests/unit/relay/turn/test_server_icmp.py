"""What a client of our TURN server hears of ICMP errors (RFC 8656, 11.5 and 18.13)."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    CHANNEL_NUMBER,
    DATA,
    ICMP,
    LIFETIME,
    XOR_PEER_ADDRESS,
    AddressFamily,
    Icmp,
    MessageClass,
    Method,
    parse,
)
from relay.turn.server.indications import ICMP_PER_S
from tests.unit.relay.turn.server_kit import PEER, PEER_2, PEER_6, Client, Court

UNREACHABLE = Icmp(3, 3, 0)


def permitted() -> tuple[Court, Client]:
    """An allocation of both families, with a permission for a host of each."""
    court = Court()
    client = Client(court)
    client.allocate((ADDITIONAL_ADDRESS_FAMILY, AddressFamily.IPV6), (LIFETIME, 3600))
    client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, PEER), (XOR_PEER_ADDRESS, PEER_6))
    return court, client


def told(court: Court, peer: TransportAddress, icmp: Icmp) -> Icmp | None:
    """What the client is told; ``None``: nothing."""
    data = court.turn.icmp_from_peer(court.allocation(), peer, icmp, court.now)
    if data is None:
        return None
    message = parse(data)
    assert (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION)
    assert message.get(XOR_PEER_ADDRESS) == peer and message.get(DATA) is None
    return message.get(ICMP)


@pytest.mark.parametrize("number", range(256))
def test_the_types_that_are_told(number: int) -> None:
    """11.5: "the type is either 3 or 11 for an ICMPv4 packet or either 1, 2, or 3 for an ICMPv6 packet"."""
    court, _ = permitted()
    assert (told(court, PEER, Icmp(number, 1, 0)) is not None) == (number in (3, 11))
    assert (told(court, PEER_6, Icmp(number, 1, 0)) is not None) == (number in (1, 2, 3))


def test_data_is_the_mtu_or_zero() -> None:
    """18.13: of type 3 with code 4, of ICMPv6 type 2; "For other … types and codes, … MUST be set to zero"."""
    court, _ = permitted()
    assert told(court, PEER, Icmp(3, 4, 1280)) == Icmp(3, 4, 1280)
    assert told(court, PEER_6, Icmp(2, 0, 1280)) == Icmp(2, 0, 1280)
    assert told(court, PEER, Icmp(3, 3, 99)) == UNREACHABLE
    assert told(court, PEER, Icmp(11, 4, 99)) == Icmp(11, 4, 0)
    assert told(court, PEER_6, Icmp(1, 4, 99)) == Icmp(1, 4, 0)


def test_it_needs_a_permission_for_the_destination() -> None:
    """11.5: "compares this address with the IP address associated with each permission …, port numbers are not"."""
    court, client = permitted()
    assert told(court, PEER_2, UNREACHABLE) is None
    assert told(court, PEER._replace(port=1), UNREACHABLE) == UNREACHABLE
    # A channel carries no attributes.
    client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, 0x4001), (XOR_PEER_ADDRESS, PEER))
    assert told(court, PEER, UNREACHABLE) == UNREACHABLE
    assert court.turn.counters["dropped: ICMP error"] == 1
    court.pass_time(300.0)
    assert told(court, PEER, UNREACHABLE) is None


def test_errors_are_limited_and_none_that_is_not_told_counts() -> None:
    """Whoever forges ICMP messages gets no more to the client than that."""
    court, _ = permitted()
    for _ in range(1000):
        assert told(court, PEER_2, UNREACHABLE) is None
    assert sum(told(court, PEER, UNREACHABLE) is not None for _ in range(1000)) == ICMP_PER_S
    court.pass_time(0.5)
    assert sum(told(court, PEER_6, Icmp(1, 4, 0)) is not None for _ in range(1000)) == ICMP_PER_S / 2
    # Nothing of it is data that was relayed.
    assert court.allocation().packets == court.allocation().octets == [0, 0]
