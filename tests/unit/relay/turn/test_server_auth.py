"""Who is let in by our TURN server, what guessing costs, and what gives nothing away."""

from __future__ import annotations

import base64
import hmac
from collections import Counter
from itertools import pairwise
from random import Random, SystemRandom
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.testing import MemoryInternet
from relay import server
from relay.places import Relaying
from relay.relays import RelaySockets
from relay.stun import (
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    USERHASH,
    USERNAME,
    AlgorithmParameters,
    IntegrityKey,
    Message,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
    userhash,
)
from relay.stun_server import StunServer
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, AllocationEnded, AllocationMade, TurnOptions, TurnServer, TurnService
from relay.turn.server.auth import ATTEMPTS, ATTEMPTS_PER_S, LOOKS, LOOKS_PER_S, MAX_NETWORKS, MEMORY_S, Attempts
from relay.turn.server.service import MAX_RESERVATIONS_OF_USER, RESERVATION_S
from tests.unit.relay.turn.server_kit import CLIENT, OTHER, REALM_NAME, USERS, WALL, Client, Court, code

ID = bytes(range(12))
ELSEWHERE = TransportAddress("198.18.0.1", 5000)
NEIGHBOUR = CLIENT._replace(port=5001)


def rest_password(username: str, secret: str) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()


def rest_client(court: Court, username: str, secret: str, source: TransportAddress = CLIENT) -> Client:
    return Client(court, source, username, rest_password(username, secret))


def rest_court(*secrets: str) -> Court:
    return Court(accounts=Accounts(realm=REALM_NAME, users={"static": "password"}, secrets=secrets))


def signed(*pairs: Pair, key: IntegrityKey, **how: Any) -> bytes:
    """An Allocate."""
    message = build(Method.ALLOCATE, MessageClass.REQUEST, ID, (REQUESTED_TRANSPORT, 17), *pairs)
    return message.encode(key, fingerprint=False, **how)


def wrong_password(client: Client) -> list[bytes]:
    """What a guess is answered."""
    return client.court.deliver(client.request(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17)), client.source)


def guess_until_silence(court: Court, client: Client) -> int:
    """How many guesses were judged."""
    for count in range(100):
        court.pass_time(1.0)
        if not wrong_password(client):
            return count
    raise AssertionError("there is no end to it")


# --- time-limited names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "expected"), [(WALL - 3600, 401), (WALL, 401), (WALL + 1, 0), (WALL + 86400, 0)])
def test_a_name_is_good_until_its_time(ends: float, expected: int) -> None:
    assert code(rest_client(rest_court("s3cret"), f"{int(ends)}:me", "s3cret").allocate()) == expected


def test_a_name_ends_while_it_is_in_use() -> None:
    court = rest_court("s3cret")
    client = rest_client(court, f"{int(WALL) + 60}:me", "s3cret")
    assert code(client.allocate()) == 0
    court.pass_time(59.0)
    assert code(client.ask(Method.REFRESH)) == 0
    court.pass_time(1.0)
    assert code(client.ask(Method.REFRESH)) == 401


@pytest.mark.parametrize(
    ("secret", "expected"), [("newest", 0), ("older", 0), ("oldest", 0), ("gone", 401), ("newest ", 401), ("x", 401)]
)
def test_each_of_several_secrets_is_good(secret: str, expected: int) -> None:
    court = rest_court("newest", "older", "oldest")
    assert code(rest_client(court, f"{int(WALL) + 60}:me", secret).allocate()) == expected


@pytest.mark.parametrize(
    "username",
    [
        "abc:me",
        ":me",
        ":",
        "-1800000000:me",
        "+1800000000:me",
        " 1800000000:me",
        "1800000000 :me",
        "1_800_000_000:me",
        "1800000000.5:me",
        "18e8:me",
        "0x7fffffff:me",
        "inf:me",
        "0:me",
        "me:1800000000",
        "9" * 16 + ":me",
        "9" * 700 + ":me",
        "１８００００００００:me",
        "٣٣٣٣٣٣٣٣٣٣:me",
        "18000000²0:me",
        "\0001800000000:me",
    ],
)
def test_a_name_without_a_proper_time_is_none(username: str) -> None:
    """However well it is signed."""
    assert code(rest_client(rest_court("s3cret"), username, "s3cret").allocate()) == 401


def test_no_secrets_and_an_empty_key_let_nobody_in() -> None:
    username = f"{int(WALL) + 60}:me"
    assert code(rest_client(rest_court(), username, "").allocate()) == 401
    assert code(rest_client(rest_court("s3cret"), username, "").allocate()) == 401
    with pytest.raises(ValueError, match="empty"):
        Accounts(realm=REALM_NAME, secrets=[""])


def test_the_password_of_one_name_is_not_that_of_another() -> None:
    court = rest_court("s3cret")
    ends = int(WALL) + 60
    stolen = rest_password(f"{ends}:me", "s3cret")
    for username in (f"{ends + 1}:me", f"{ends}:you", f"{ends}:me ", f"0{ends}:me"):
        assert code(Client(court, CLIENT, username, stolen).allocate()) == 401
    assert code(Client(court, CLIENT, f"{ends}:me", stolen).allocate()) == 0


@pytest.mark.parametrize(
    "username", ["%s%n%x%s%s", "' OR 1=1--", "user\n", "user\0", "\0", "u" * 512, "\x1b[2J", "ü" * 250, "", '"user"']
)
def test_hostile_names_are_wrong_like_any_other(username: str) -> None:
    court = Court()
    client = Client(court, CLIENT, "nobody", "secret")
    client.challenge()
    client.username = username
    (answer,) = wrong_password(client)
    assert code(parse(answer)) == 401


# --- nonces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [NEIGHBOUR, OTHER, ELSEWHERE, TransportAddress("2606:2800::5", 5000)])
def test_a_nonce_from_another_address_is_stale(source: TransportAddress) -> None:
    court = Court()
    thief, client = Client(court, source), Client(court)
    client.challenge()
    answer = thief.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17), nonce=client.nonce)
    assert code(answer) == 438 and answer.get(NONCE) != client.nonce
    assert not court.turn.allocations
    assert code(client.allocate()) == 0


def test_a_nonce_is_stale_after_ten_minutes() -> None:
    court = Court()
    client = Client(court)
    assert code(client.allocate((LIFETIME, 3600))) == 0
    court.pass_time(600.0)
    assert code(client.ask(Method.REFRESH)) == 0
    court.pass_time(1.0)
    assert code(client.ask(Method.REFRESH)) == 438


def test_a_nonce_that_was_tampered_with_is_stale() -> None:
    court = Court()
    client = Client(court)
    client.challenge()
    nonce = client.nonce
    later = f"{nonce[:13]}{int(nonce[13:21], 16) + 300:08x}{nonce[21:]}"
    changed = nonce[:-1] + ("0" if nonce[-1] != "0" else "1")
    hostile = ("", nonce[:13], nonce[:21], nonce[:-1], nonce + "0", later, changed, nonce.upper(), "é" * 30, "x" * 700)
    for each in hostile:
        court.pass_time(1.0)
        assert code(client.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17), nonce=each)) == 438, each
    # None of them was a wrong password.
    for _ in range(ATTEMPTS):
        court.pass_time(1.0)
        client.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17), nonce="")
    assert code(client.allocate()) == 0


@pytest.mark.parametrize("missing", [USERNAME, REALM, NONCE])
def test_what_is_signed_but_incomplete_is_a_bad_request(missing: int) -> None:
    court = Court()
    client = Client(court)
    client.challenge()
    pairs: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, client.nonce)]
    (answer,) = court.deliver(signed(*[pair for pair in pairs if pair[0] != missing], key=client.key))
    assert code(parse(answer)) == 400 and not court.turn.allocations


def test_another_realm_is_a_wrong_password() -> None:
    court = Court()
    client = Client(court)
    client.challenge()
    key = long_term_key("user", "example.net", "secret")
    pairs: list[Pair] = [(USERNAME, "user"), (REALM, "example.net"), (NONCE, client.nonce)]
    (answer,) = court.deliver(signed(*pairs, key=key))
    assert code(parse(answer)) == 401


def test_a_list_of_algorithms_that_was_not_offered_is_refused() -> None:
    """RFC 8489, 9.2.4, against bidding down."""
    court = Court()
    client = Client(court)
    offered = client.challenge().get(PASSWORD_ALGORITHMS)
    assert offered is not None and len(offered) == 2
    who: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, client.nonce)]
    md5 = AlgorithmParameters(1)
    refused: list[list[Pair]] = [
        [(PASSWORD_ALGORITHMS, (md5,)), (PASSWORD_ALGORITHM, md5)],
        [(PASSWORD_ALGORITHMS, offered)],
        [(PASSWORD_ALGORITHM, md5)],
        [(PASSWORD_ALGORITHMS, offered), (PASSWORD_ALGORITHM, AlgorithmParameters(7))],
        [(PASSWORD_ALGORITHMS, offered), (PASSWORD_ALGORITHM, AlgorithmParameters(1, b"x"))],
        [(PASSWORD_ALGORITHMS, offered[::-1]), (PASSWORD_ALGORITHM, md5)],
        [(PASSWORD_ALGORITHMS, ()), (PASSWORD_ALGORITHM, md5)],
    ]
    for pairs in refused:
        court.pass_time(1.0)
        (answer,) = court.deliver(signed(*who, *pairs, key=client.key))
        assert code(parse(answer)) == 400
    (answer,) = court.deliver(signed(*who, (PASSWORD_ALGORITHMS, offered), (PASSWORD_ALGORITHM, md5), key=client.key))
    assert code(parse(answer)) == 0


def test_a_truncated_sha256_is_wrong() -> None:
    """RFC 8489, 14.6."""
    court = Court()
    client = Client(court)
    client.challenge()
    whole = signed((USERNAME, "user"), (REALM, REALM_NAME), (NONCE, client.nonce), key=client.key, sha256=True)
    for length in (16, 20, 28):
        court.pass_time(1.0)
        head = whole[:2] + (len(whole) - 20 - 32 + length).to_bytes(2, "big") + whole[4:-36]
        unsealed = head + (0x1C).to_bytes(2, "big") + length.to_bytes(2, "big")
        (answer,) = court.deliver(unsealed + client.key.sign_sha256(head)[:length])
        assert code(parse(answer)) == 401
    (answer,) = court.deliver(whole)
    assert code(parse(answer)) == 0


# --- guessing ----------------------------------------------------------------------------------------------------


def test_too_many_wrong_passwords_are_met_with_silence() -> None:
    court = Court()
    guesser = Client(court, password="guess")
    answered = guess_until_silence(court, guesser)
    assert ATTEMPTS <= answered <= ATTEMPTS + 5
    # Of the whole /24, and of no other network.
    neighbour = Client(court, NEIGHBOUR, password="another guess")
    assert wrong_password(neighbour) == []
    assert court.turn.counters["dropped: too many wrong passwords"] == 2
    assert court.turn.counters["wrong passwords"] == answered + 2
    assert len(wrong_password(Client(court, ELSEWHERE, password="guess"))) == 1
    assert len(wrong_password(Client(court, TransportAddress("192.0.3.1", 5000), password="guess"))) == 1
    court.pass_time(60.0)
    assert len(wrong_password(guesser)) == 1


def test_wrong_passwords_lock_nobody_out_who_has_the_right_one() -> None:
    """An office with one agent that has yesterday's password: the others are let in, those that come now as well."""
    court = Court()
    guesser = Client(court, password="guess")
    for number in range(LOOKS - 1):
        wrong_password(guesser)
        if not number % 50:
            good = Client(court, NEIGHBOUR._replace(port=6000 + number))
            assert code(good.allocate()) == 0, number
    assert court.turn.counters["wrong passwords"] == LOOKS - 1


def test_passwords_are_not_looked_at_for_ever() -> None:
    """Five hundred wrong ones from a network, and then five a second; the right one is none of those for as long."""
    court = Court()
    guesser, right = Client(court, password="guess"), Client(court, NEIGHBOUR)
    right.challenge()
    early = Client(court, OTHER)
    assert code(early.allocate()) == 0
    for _ in range(LOOKS + 100):
        wrong_password(guesser)
    assert court.turn.counters["wrong passwords"] == LOOKS
    assert court.deliver(right.request(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17)), NEIGHBOUR) == []
    # Who has an allocation already is heard, and so is every other network.
    assert code(early.ask(Method.REFRESH)) == 0
    assert code(Client(court, ELSEWHERE).allocate()) == 0
    court.pass_time(1.0)
    for _ in range(20):
        wrong_password(guesser)
    assert court.turn.counters["wrong passwords"] == LOOKS + LOOKS_PER_S
    court.pass_time(1.0)
    assert code(right.allocate()) == 0


def test_an_ipv6_network_is_a_64() -> None:
    court = Court()
    guess_until_silence(court, Client(court, TransportAddress("2a00:1:2:3::1", 5000), password="guess"))
    for host, expected in (("2a00:1:2:3:ffff::9", 0), ("2a00:1:2:4::1", 1)):
        guesser = Client(court, TransportAddress(host, 5000), password="guess")
        assert len(wrong_password(guesser)) == expected


def test_who_goes_on_guessing_has_ten_attempts_a_minute() -> None:
    court = Court()
    client = Client(court, password="guess")
    judged = 0
    for _ in range(1200):
        court.pass_time(0.5)
        client.nonce = court.service.gate.make_nonce(CLIENT, court.now)
        judged += len(wrong_password(client))
    assert 50 < judged <= ATTEMPTS + 600 * ATTEMPTS_PER_S + 1


def test_nobody_can_be_silenced_from_a_forged_address() -> None:
    """A wrong password counts only with a nonce that was received at this address."""
    court = Court()
    victim = Client(court)
    assert code(victim.allocate()) == 0
    forger = Client(court, OTHER, password="guess")
    for number in range(1000):
        forger.request(Method.REFRESH, nonce=f"obMatJos2gAAA{number:08x}{number:016x}")
        court.deliver(forger.last, OTHER)
        court.deliver(forger.last, CLIENT)
    court.pass_time(1.0)
    assert code(victim.ask(Method.REFRESH)) == 0


def test_a_used_up_network_is_not_forgotten_because_others_guess_as_well() -> None:
    """As ErrorLimiter has it: "forgetting one of them would fill it at once, which is what an attacker would want"."""
    attempts = Attempts()
    assert [attempts.note("192.0.2.1", 0.0) for _ in range(LOOKS)] == [True] * ATTEMPTS + [False] * (LOOKS - ATTEMPTS)
    assert attempts.are_used_up("192.0.2.1", 0.0)
    for number in range(MAX_NETWORKS - 1):
        assert attempts.note(f"2a00:1:2:{number:x}::1", 0.0)
    assert attempts.are_used_up("192.0.2.1", 0.0)
    # There is no room for another one: it is not answered, and let in with the right password.
    assert not attempts.note("198.18.0.1", 0.0) and not attempts.are_used_up("198.18.0.1", 0.0)
    assert attempts.note("198.18.0.1", MEMORY_S) and len(attempts._buckets) == 1


def test_an_unknown_user_and_a_wrong_password_look_the_same() -> None:
    who: list[list[Pair]] = [
        [(USERNAME, "user")],
        [(USERNAME, "nobody")],
        [(USERNAME, f"{int(WALL) + 60}:me")],
        [(USERNAME, f"{int(WALL) - 60}:me")],
        [(USERHASH, userhash("user", REALM_NAME))],
        [(USERHASH, userhash("nobody", REALM_NAME))],
    ]
    accounts = Accounts(realm=REALM_NAME, users=USERS, secrets=("s3cret",))
    answers = set()
    for pairs in who:
        court = Court(accounts=accounts)
        nonce = court.service.gate.make_nonce(CLIENT, court.now)
        key = long_term_key("user", REALM_NAME, "guess")
        (answer,) = court.deliver(signed(*pairs, (REALM, REALM_NAME), (NONCE, nonce), key=key))
        assert code(parse(answer)) == 401
        answers.add(answer)
    assert len(answers) == 1


# --- chance ------------------------------------------------------------------------------------------------------


class SeededCourt(Court):
    """A server that draws from a source of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        options = self.service.options
        self.service = TurnService(options, self.policy, self.ports, Random(seed), lambda: self.wall, self.limiter)
        self.turn = TurnServer(self.service)
        self.stun = StunServer(limiter=self.limiter, turn=self.turn)


def drawn(seed: int) -> tuple[str, bytes, bytes]:
    """Nonce, ticket and token of a server's first allocation."""
    client = Client(SeededCourt(seed))
    answer = client.allocate((MOBILITY_TICKET, b""), (EVEN_PORT, True))
    ticket, token = answer.get(MOBILITY_TICKET), answer.get(RESERVATION_TOKEN)
    assert ticket is not None and token is not None
    return client.nonce, ticket, token


def test_everything_secret_comes_from_the_given_source() -> None:
    """CVE-2025-69217. Two servers that start in the same second have nothing in common."""
    first, again, second = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert first[0][:21] == second[0][:21]  # cookie and time
    assert first[0][21:] != second[0][21:]
    assert first[1] != second[1] and first[2] != second[2]


def test_no_ticket_token_or_nonce_comes_twice() -> None:
    court = Court()
    tickets, tokens, nonces = set(), set(), set()
    for number in range(500):
        client = Client(court, TransportAddress(f"11.0.{number // 250}.{number % 250}", 5000))
        client.nonce = court.service.gate.make_nonce(client.source, court.now)
        if number % MAX_RESERVATIONS_OF_USER == 0:
            court.pass_time(RESERVATION_S)
        answer = client.allocate((MOBILITY_TICKET, b""), (EVEN_PORT, True))
        tickets.add(answer.get(MOBILITY_TICKET))
        tokens.add(answer.get(RESERVATION_TOKEN))
        nonces.add(client.nonce)
    assert len(tickets) == len(tokens) == len(nonces) == 500
    assert {len(ticket or b"") for ticket in tickets} == {32}


def relayed_ports(internet: MemoryInternet, name: str, host: str, seed: int) -> list[int]:
    """Those of a server's first 400 relayed addresses."""
    relaying = Relaying(turn=TurnOptions(accounts=Accounts(realm=REALM_NAME)), hosts=(host,))
    machine = internet.host(name, [host])
    sockets = RelaySockets(machine, relaying, list, Random(seed), lambda allocation, message: None)
    ports = [sockets.open(4, host)[0].port for _ in range(400)]
    sockets.close_all()
    return ports


def test_relayed_ports_cannot_be_guessed(iceagent_internet: MemoryInternet) -> None:
    first = relayed_ports(iceagent_internet, "first", "93.184.216.1", 1)
    second = relayed_ports(iceagent_internet, "second", "93.184.216.2", 2)
    for ports in (first, second):
        assert len(set(ports)) == 400 and all(49152 <= port <= 65535 for port in ports)
        # 16 bins of 25 expected each: a chi-square of 15 degrees of freedom is above 45 once in 20,000 times.
        bins = Counter((port - 49152) // 1024 for port in ports)
        assert sum((bins[each] - 25) ** 2 / 25 for each in range(16)) < 45
        # Nor does one follow from the one before.
        assert len({(port - before) % 16384 for before, port in pairwise(ports)}) > 380
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5


def test_the_server_draws_from_the_system() -> None:
    assert isinstance(server._system_rng, SystemRandom)


# --- logs --------------------------------------------------------------------------------------------------------

HIDDEN = ("pa55word-of-me", "s3cret-of-the-server")


def texts_of(thing: object) -> str:
    return f"{thing!r} {thing!s} {thing}"


def test_what_is_logged_has_no_secrets() -> None:
    accounts = Accounts(realm=REALM_NAME, users={"me": HIDDEN[0]}, secrets=HIDDEN[1:])
    username = f"{int(WALL) + 6000}:me"
    court = Court(accounts=accounts)
    clients = [Client(court, CLIENT, "me", HIDDEN[0]), rest_client(court, username, HIDDEN[1], OTHER)]
    answers: list[Message] = []
    for client in clients:
        answers += client.allocate((MOBILITY_TICKET, b"")), client.ask(Method.REFRESH, (LIFETIME, 0))
    assert [code(answer) for answer in answers] == [0] * 4
    assert [type(event) for event in court.events] == [AllocationMade, AllocationEnded] * 2
    options = TurnOptions(accounts=accounts)
    things: list[object] = [accounts, options, Relaying(turn=options), court.service, court.service.gate, *court.events]
    things += [event.allocation for event in court.events if isinstance(event, AllocationMade | AllocationEnded)]
    for text in [texts_of(thing) for thing in things]:
        for secret in (*HIDDEN, rest_password(username, HIDDEN[1])):
            assert secret not in text


def test_an_event_does_not_tell_the_ticket() -> None:
    """Whoever has it and an account of the same name takes the allocation over (RFC 8016)."""
    court = Court()
    ticket = Client(court).allocate((MOBILITY_TICKET, b"")).get(MOBILITY_TICKET)
    assert ticket
    (event,) = court.events
    assert isinstance(event, AllocationMade) and event.allocation.ticket == ticket
    assert repr(ticket)[2:-1] not in repr(event)


def test_errors_of_configuration_do_not_quote_passwords() -> None:
    for accounts in ({"users": {"me": "pa55\x07word"}}, {"secrets": ["pa55\x07word"]}):
        with pytest.raises(ValueError, match="not allowed") as caught:
            Accounts(realm=REALM_NAME, **accounts)
        assert "pa55" not in str(caught.value) and "word" not in str(caught.value).replace("password", "")
