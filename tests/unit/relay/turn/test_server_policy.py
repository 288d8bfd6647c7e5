"""Whom our TURN server relays to, and whom a hostile client cannot make it relay to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress, canonical_host
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.testing import MemoryHost, MemoryInternet
from relay.places import Relaying
from relay.server import Server, ServerOptions
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    CHANNEL_NUMBER,
    DATA,
    EVEN_PORT,
    LIFETIME,
    NONCE,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressFamily,
    Message,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
)
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, PeerPolicy, TurnOptions
from tests.unit.relay.turn.server_kit import (
    OTHER,
    PEER,
    PEER_2,
    PEER_6,
    REALM_NAME,
    RELAY_HOSTS,
    SERVER,
    Client,
    Court,
    code,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

# facts/turn.md, table 2.2.
SPECIAL_4 = (
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "100.64.0.1",
    "192.0.0.8",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
)
MAPPED = ("::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "::ffff:10.0.0.1")
SPECIAL_6 = (
    "::1",
    "::",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
)
# Spellings of global addresses that a host on the way would turn into others.
EMBEDDING = (
    "::5db8:d822",
    "64:ff9b::5db8:d822",
    "64:ff9b:1::5db8:d822",
    "2002:5db8:d822::1",
    "2001::5db8:d822",
    "::ffff:0:5db8:d822",
)
GLOBAL_4 = (
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "223.255.255.255",
)
GLOBAL_6 = ("2606:2800:220:1::1", "2a00:1450:4001::1", "2001:200::1", "2003::1")

FAMILY_6: Pair = (REQUESTED_ADDRESS_FAMILY, AddressFamily.IPV6)
DUAL: Pair = (ADDITIONAL_ADDRESS_FAMILY, AddressFamily.IPV6)


def at(host: str, port: int = 7000) -> TransportAddress:
    return TransportAddress(host, port)


def allocated(*pairs: Pair, **options: Any) -> tuple[Court, Client]:
    court = Court(**options)
    client = Client(court)
    assert code(client.allocate(*pairs)) == 0
    return court, client


def relayed_of(client: Client, *pairs: Pair) -> TransportAddress:
    address = client.allocate(*pairs).get(XOR_RELAYED_ADDRESS)
    assert address is not None
    return address


def answers(client: Client, peer: TransportAddress, number: int = 0x4000) -> tuple[int, int]:
    """To CreatePermission and ChannelBind."""
    permission = code(client.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, peer)))
    return permission, code(client.ask(Method.CHANNEL_BIND, (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer)))


def is_sent(client: Client, peer: TransportAddress) -> bool:
    """Whether a Send indication gets through to a peer that somehow has a permission."""
    court = client.court
    allocation = court.allocation(client.source)
    allocation.permit(canonical_host(peer.host), court.now)
    court.to_peers.clear()
    client.indicate(Method.SEND, (XOR_PEER_ADDRESS, peer), (DATA, b"x"))
    return bool(court.to_peers)


# --- table 2.2 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", SPECIAL_4)
def test_special_ipv4_peers_are_refused(host: str) -> None:
    court, client = allocated()
    assert answers(client, at(host)) == (403, 403)
    assert not court.allocation().permissions and not court.allocation().channels
    assert not is_sent(client, at(host))


@pytest.mark.parametrize("host", SPECIAL_6 + EMBEDDING)
def test_special_ipv6_peers_are_refused(host: str) -> None:
    court, client = allocated(FAMILY_6)
    assert answers(client, at(host)) == (403, 403)
    assert not court.allocation().permissions and not court.allocation().channels
    assert not is_sent(client, at(host))


@pytest.mark.parametrize("host", MAPPED)
def test_mapped_peers_are_refused_as_peers_of_the_wrong_family(host: str) -> None:
    """Our codec reads a mapped address as the IPv4 address that it is: 443 where there is no IPv4, else 403."""
    court, client = allocated(FAMILY_6)
    assert answers(client, at(host)) == (443, 443)
    assert not court.allocation().permissions and not is_sent(client, at(host))


@pytest.mark.parametrize("host", SPECIAL_4 + SPECIAL_6 + MAPPED + EMBEDDING)
def test_a_dual_allocation_refuses_all_of_them(host: str) -> None:
    _, client = allocated(DUAL)
    assert answers(client, at(host)) == (403, 403)
    assert not is_sent(client, at(host))


@pytest.mark.parametrize("host", [f"::ffff:{host}" for host in SPECIAL_4])
def test_mapped_spellings_of_every_special_range_are_refused(host: str) -> None:
    """CVE-2026-27624."""
    for pairs in ((), (DUAL,)):
        _, client = allocated(*pairs)
        assert answers(client, at(host)) == (403, 403)
        assert not is_sent(client, at(host))


def test_a_mapped_address_is_the_ipv4_address_that_it_contains() -> None:
    """To the codec already: it is judged as that, and what is sent there leaves from an IPv4 address."""
    _, client = allocated()
    assert answers(client, at(f"::ffff:{PEER.host}")) == (0, 0)
    assert is_sent(client, at(f"::ffff:{PEER.host}"))
    assert {peer for _, peer, _ in client.court.to_peers} == {PEER}
    _, other = allocated(FAMILY_6)
    assert answers(other, at(f"::ffff:{PEER.host}")) == (443, 443)


@pytest.mark.parametrize("host", GLOBAL_4)
def test_global_ipv4_peers_are_admitted(host: str) -> None:
    _, client = allocated()
    assert answers(client, at(host)) == (0, 0)
    assert is_sent(client, at(host))


@pytest.mark.parametrize("host", GLOBAL_6)
def test_global_ipv6_peers_are_admitted(host: str) -> None:
    _, client = allocated(FAMILY_6)
    assert answers(client, at(host)) == (0, 0)
    assert is_sent(client, at(host))


def test_a_peer_of_the_other_family_is_refused() -> None:
    _, client_4 = allocated()
    assert answers(client_4, PEER_6) == (443, 443) and not is_sent(client_4, PEER_6)
    _, client_6 = allocated(FAMILY_6)
    assert answers(client_6, PEER) == (443, 443) and not is_sent(client_6, PEER)


def test_one_bad_peer_spoils_the_whole_request() -> None:
    court, client = allocated()
    pairs = [(XOR_PEER_ADDRESS, PEER), (XOR_PEER_ADDRESS, at("127.0.0.1")), (XOR_PEER_ADDRESS, PEER_2)]
    assert code(client.ask(Method.CREATE_PERMISSION, *pairs)) == 403
    assert not court.allocation().permissions


def test_nothing_is_sent_to_port_0() -> None:
    _, client = allocated()
    assert answers(client, at(PEER.host, 0)) == (0, 403)
    assert not is_sent(client, at(PEER.host, 0)) and is_sent(client, PEER)


# --- the server's own addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [SERVER.host, RELAY_HOSTS[4], f"::ffff:{SERVER.host}", RELAY_HOSTS[6]])
@pytest.mark.parametrize("port", [0, 22, SERVER.port, 5349, 60000])
def test_own_addresses_are_no_peers(host: str, port: int) -> None:
    _, client = allocated(DUAL)
    assert answers(client, at(host, port))[1] == 403
    assert not is_sent(client, at(host, port))


def test_own_addresses_are_peers_where_they_are_allowed() -> None:
    """As docs/turn.md has it, for tests on one machine; over UDP and TCP."""
    court = Court(allow=("127.0.0.0/8", f"{RELAY_HOSTS[6]}/128"), deny=("127.0.0.9/32",))
    court.policy.own.update(("127.0.0.1", "127.0.0.9"))
    client = Client(court)
    client.allocate(DUAL)
    for number, peer in enumerate((at("127.0.0.1", 22), at("127.0.0.2", 22), at(RELAY_HOSTS[6], 22))):
        assert answers(client, peer, 0x4001 + number) == (0, 0) and is_sent(client, peer)
        assert court.policy.admits(peer, is_tcp=True)
    for peer in (at(SERVER.host, 22), at(RELAY_HOSTS[4], 22), at("127.0.0.9", 22), at("127.0.0.1", 0)):
        assert answers(client, peer)[1] == 403 and not is_sent(client, peer)
        assert not court.policy.admits(peer, is_tcp=True)


def test_what_the_server_listens_on_is_no_peer_whatever_is_allowed() -> None:
    """A client could else make the server speak to itself, or read its metrics."""
    court = Court(allow=("0.0.0.0/0", "::/0"))
    court.policy.own.update(("127.0.0.1", "::1"))
    court.policy.protect(SERVER)
    court.policy.protect(at("::", 9641))
    client = Client(court)
    client.allocate(DUAL)
    refused = [
        SERVER,
        *(at(host, 9641) for host in ("127.0.0.1", "127.0.0.77", "::1", SERVER.host, *RELAY_HOSTS.values())),
    ]
    for peer in refused:
        # A permission is for a host; its ports are judged when one is named.
        assert answers(client, peer) == (0, 403) and not is_sent(client, peer)
        assert not court.policy.admits(peer, is_tcp=True)
    admitted = [SERVER._replace(port=22), at("127.0.0.1", SERVER.port), at(PEER.host, 9641)]
    for number, peer in enumerate(admitted):
        assert answers(client, peer, 0x4001 + number) == (0, 0) and is_sent(client, peer)


def test_a_live_relayed_address_of_this_server_is_a_peer() -> None:
    court, client = allocated()
    other = Client(court, OTHER, "other", "password")
    relayed = relayed_of(other)
    assert answers(client, relayed) == (0, 0)
    assert is_sent(client, relayed)
    assert not is_sent(client, relayed._replace(port=relayed.port + 1))


def test_a_relayed_address_that_has_ended_is_no_peer() -> None:
    court, client = allocated()
    other = Client(court, OTHER, "other", "password")
    relayed = relayed_of(other)
    assert answers(client, relayed) == (0, 0)
    assert code(other.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert not is_sent(client, relayed)
    assert answers(client, relayed)[1] == 403


def test_a_channel_to_a_relayed_address_ends_with_it() -> None:
    """The port is anybody's on this host from then on: a resolver's, say."""
    court, client = allocated()
    other = Client(court, OTHER, "other", "password")
    relayed = relayed_of(other)
    assert answers(client, relayed, 0x4001) == (0, 0)
    data = b"\x40\x01\x00\x01x"
    found = court.allocation().to_peer(data, court.now)
    assert found is not None and found[1] == relayed
    assert code(other.ask(Method.REFRESH, (LIFETIME, 0))) == 0
    assert court.allocation().to_peer(data, court.now) is None


def test_a_reserved_port_is_no_peer_until_it_is_claimed() -> None:
    court, client = allocated()
    other = Client(court, OTHER, "other", "password")
    answer = other.allocate((EVEN_PORT, True))
    relayed, token = answer.get(XOR_RELAYED_ADDRESS), answer.get(RESERVATION_TOKEN)
    assert relayed is not None and token is not None
    reserved = relayed._replace(port=relayed.port + 1)
    assert reserved in court.ports.open_now
    assert answers(client, reserved)[1] == 403 and not is_sent(client, reserved)
    third = Client(court, at("192.0.2.3"), "other", "password")
    assert relayed_of(third, (RESERVATION_TOKEN, token)) == reserved
    assert answers(client, reserved) == (0, 0) and is_sent(client, reserved)


class Asker:
    """A client of a whole server, whose last answer counts."""

    def __init__(self, machine: MemoryHost, host: str, to: TransportAddress) -> None:
        self._to = to
        self._socket = machine.socket(at(host, 5000), self, SocketOptions())
        self._key = long_term_key("user", REALM_NAME, "secret")
        self._answers: list[Message] = []
        self.nonce = ""

    async def ask(self, method: int, *pairs: Pair) -> int:
        credentials: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, self.nonce)]
        identity = len(self._answers).to_bytes(12, "big")
        message = build(method, MessageClass.REQUEST, identity, *pairs, *credentials)
        self._socket.send(message.encode(self._key), self._to)
        await asyncio.sleep(1.0)
        assert self._answers[-1].transaction_id == identity
        self.nonce = self._answers[-1].get(NONCE) or self.nonce
        return code(self._answers[-1])

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self._answers.append(parse(data))

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        raise AssertionError(f"{destination}: {errno}")


@pytest.mark.parametrize("hosts", [(), ("93.184.216.2",)])
def test_the_shell_tells_which_addresses_are_its_own(
    iceagent_internet: MemoryInternet, iceagent_run: Run, hosts: tuple[str, ...]
) -> None:
    """Where it listens, and where relayed addresses are."""
    listen = at("93.184.216.1", 3478)
    machine = iceagent_internet.host("server", [listen.host, "93.184.216.2"])
    alice = iceagent_internet.host("alice", ["93.184.217.1"])
    turn = TurnOptions(accounts=Accounts(realm=REALM_NAME, users={"user": "secret"}))

    async def ask() -> list[int]:
        options = ServerOptions(relaying=Relaying(turn=turn, hosts=hosts))
        async with Server(machine, [listen], options=options):
            asker = Asker(alice, "93.184.217.1", listen)
            assert await asker.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17)) == 438
            assert await asker.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17)) == 0
            peers = [PEER, listen, *(at(host, 22) for host in (listen.host, *hosts))]
            pairs = [((CHANNEL_NUMBER, 0x4001 + number), (XOR_PEER_ADDRESS, peer)) for number, peer in enumerate(peers)]
            return [await asker.ask(Method.CHANNEL_BIND, *each) for each in pairs]

    answers = iceagent_run(ask())
    assert answers == [0] + [403] * (len(answers) - 1)


# --- the operator's exceptions -----------------------------------------------------------------------------------


def test_allow_admits_what_is_special_and_nothing_beside_it() -> None:
    _, client = allocated(DUAL, allow=("10.0.0.0/24", "fd00::/16"))
    assert answers(client, at("10.0.0.1"), 0x4001) == (0, 0) and is_sent(client, at("10.0.0.1"))
    assert answers(client, at("fd00::1"), 0x4002) == (0, 0) and is_sent(client, at("fd00::1"))
    for host in ("10.0.1.0", "127.0.0.1", "fd01::1", "::1"):
        assert answers(client, at(host)) == (403, 403) and not is_sent(client, at(host))


def test_deny_counts_more_than_allow() -> None:
    _, client = allocated(DUAL, allow=("10.0.0.0/8",), deny=("10.0.0.0/24", "93.184.216.34/32", "2606:2800::/32"))
    for host in ("10.0.0.1", PEER.host, f"::ffff:{PEER.host}", PEER_6.host):
        assert answers(client, at(host)) == (403, 403) and not is_sent(client, at(host))
    assert answers(client, PEER_2, 0x4001) == (0, 0)
    assert answers(client, at("10.0.1.1"), 0x4002) == (0, 0)


def test_deny_is_judged_by_bits_and_not_by_bytes() -> None:
    """coturn 6c13608c."""
    policy = PeerPolicy(deny=("2606:2800::2:0/111",))
    refused = ("2606:2800::2:0", "2606:2800::2:ff", "2606:2800::3:1", "2606:2800::3:ffff")
    assert not any(policy.admits(at(host)) for host in refused)
    assert policy.admits(at("2606:2800::1:ffff")) and policy.admits(at("2606:2800::4:0"))


def test_deny_counts_for_relayed_addresses_of_this_server_too() -> None:
    """A live relayed address "is a peer like any other", and "deny" counts more than anything else."""
    court, client = allocated(deny=(f"{RELAY_HOSTS[4]}/32",))
    relayed = relayed_of(Client(court, OTHER, "other", "password"))
    assert answers(client, relayed)[1] == 403
    assert not is_sent(client, relayed)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0-10.0.0.9", "localhost", "", "10.0.0.0/33", "fe80::1%eth0/64"])
def test_what_is_no_network_is_told_and_not_ignored(text: str) -> None:
    for lists in ({"allow": [text]}, {"deny": [text]}):
        with pytest.raises(ValueError, match="is no network"):
            PeerPolicy(**lists)
