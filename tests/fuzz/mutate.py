"""STUN messages, and what chance makes of them.

A corpus of real messages, written by our own codec (so that it needs no files), and a mutator that is repeatable: the
same seed and number give the same bytes. Half of the mutants get a correct length and FINGERPRINT again, since
otherwise nearly all of them would be refused before their attributes are looked at.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections import Counter
from typing import Any

from iceagent.net.address import TransportAddress
from relay import stun
from relay.stun import Attribute, BadMessage, IntegrityKey, Message, MessageClass, Method, build, parse

KEY = IntegrityKey(b"fuzz")
V4 = TransportAddress("192.0.2.1", 32853)
V6 = TransportAddress("2001:db8::1:2", 443)
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 31, 32, 63, 64, 127, 128, 254, 255)
MAX_LENGTH = 2048
"""Bytes of a mutant, so that repeated insertions do not slow the run down."""

Pair = tuple[Attribute[Any], Any]

REQUEST, INDICATION = MessageClass.REQUEST, MessageClass.INDICATION
SUCCESS, ERROR = MessageClass.SUCCESS, MessageClass.ERROR

LONG_TERM: tuple[Pair, ...] = (
    (stun.USERNAME, "1700000000:alice"),
    (stun.REALM, "example.org"),
    (stun.NONCE, "obMatJos2gAAA0123456789"),
)
ALGORITHMS = (stun.AlgorithmParameters(2), stun.AlgorithmParameters(1), stun.AlgorithmParameters(9, b"salty"))
ICMP = stun.Icmp(3, 4, 1280)
CHANGE = stun.ChangeRequest(change_ip=True, change_port=True)

MESSAGES: tuple[tuple[int, MessageClass, tuple[Pair, ...]], ...] = (
    (Method.BINDING, REQUEST, ()),
    (Method.BINDING, INDICATION, ()),
    (
        Method.BINDING,
        REQUEST,
        (
            (stun.USERNAME, "evtj:h6vY"),
            (stun.PRIORITY, 0x6E0001FF),
            (stun.ICE_CONTROLLING, 0x932FF9B151263B36),
            (stun.USE_CANDIDATE, True),
            (stun.NOMINATION, 3),
            (stun.NETWORK_COST, stun.NetworkCost(1, 10)),
        ),
    ),
    (Method.BINDING, REQUEST, ((stun.USERNAME, "a:b"), (stun.ICE_CONTROLLED, 5), (stun.SOFTWARE, "fuzz"))),
    (Method.BINDING, REQUEST, ((stun.USERNAME, "a:b"), (stun.PATH_MESSAGE, bytes.fromhex("0104001400000007")))),
    (Method.BINDING, SUCCESS, ((stun.XOR_MAPPED_ADDRESS, V4),)),
    (Method.BINDING, SUCCESS, ((stun.XOR_MAPPED_ADDRESS, V6), (stun.MAPPED_ADDRESS, V6))),
    (Method.BINDING, ERROR, ((stun.ERROR_CODE, stun.ErrorCode(487, "Role Conflict")),)),
    (
        Method.BINDING,
        ERROR,
        ((stun.ERROR_CODE, stun.ErrorCode(420, "Unknown Attribute")), (stun.UNKNOWN_ATTRIBUTES, (0x30, 0x7001, 0x31))),
    ),
    (Method.BINDING, REQUEST, ((stun.CHANGE_REQUEST, CHANGE), (stun.RESPONSE_PORT, 99), (stun.PADDING, bytes(13)))),
    (Method.BINDING, SUCCESS, ((stun.RESPONSE_ORIGIN, V4), (stun.OTHER_ADDRESS, V6), (stun.MAPPED_ADDRESS, V4))),
    (
        Method.ALLOCATE,
        REQUEST,
        (
            (stun.REQUESTED_TRANSPORT, 17),
            (stun.LIFETIME, 600),
            (stun.EVEN_PORT, True),
            (stun.DONT_FRAGMENT, True),
            (stun.ADDITIONAL_ADDRESS_FAMILY, 2),
            (stun.MOBILITY_TICKET, b""),
            *LONG_TERM,
            (stun.PASSWORD_ALGORITHMS, ALGORITHMS),
            (stun.PASSWORD_ALGORITHM, ALGORITHMS[0]),
        ),
    ),
    (
        Method.ALLOCATE,
        SUCCESS,
        (
            (stun.XOR_RELAYED_ADDRESS, V4),
            (stun.XOR_RELAYED_ADDRESS, V6),
            (stun.XOR_MAPPED_ADDRESS, V4),
            (stun.LIFETIME, 600),
            (stun.RESERVATION_TOKEN, b"12345678"),
            (stun.MOBILITY_TICKET, b"a ticket"),
            (stun.ADDRESS_ERROR_CODE, stun.AddressErrorCode(2, 440, "Address Family not Supported")),
        ),
    ),
    (
        Method.ALLOCATE,
        ERROR,
        (
            (stun.ERROR_CODE, stun.ErrorCode(300, "Try Alternate")),
            (stun.ALTERNATE_SERVER, V6),
            (stun.ALTERNATE_DOMAIN, "turn.example.org"),
            *LONG_TERM[1:],
        ),
    ),
    (Method.REFRESH, REQUEST, ((stun.REQUESTED_ADDRESS_FAMILY, 1), (stun.USERHASH, bytes(range(32))), *LONG_TERM[1:])),
    (Method.CREATE_PERMISSION, REQUEST, ((stun.XOR_PEER_ADDRESS, V4), (stun.XOR_PEER_ADDRESS, V6), *LONG_TERM)),
    (Method.CHANNEL_BIND, REQUEST, ((stun.CHANNEL_NUMBER, 0x4001), (stun.XOR_PEER_ADDRESS, V6), *LONG_TERM)),
    (Method.SEND, INDICATION, ((stun.XOR_PEER_ADDRESS, V4), (stun.DATA, b"payload of seventeen"))),
    (Method.DATA, INDICATION, ((stun.XOR_PEER_ADDRESS, V6), (stun.ICMP, ICMP))),
    (Method.CONNECTION_BIND, REQUEST, ((stun.CONNECTION_ID, 0xDEADBEEF), *LONG_TERM)),
    (0x7FF, REQUEST, ((stun.SOFTWARE, "a method that nobody knows"),)),
)


def corpus() -> list[bytes]:
    """Each message bare, sealed as ICE does it, and with both kinds of integrity."""
    found = []
    for number, (method, message_class, pairs) in enumerate(MESSAGES):
        message = build(method, message_class, number.to_bytes(12, "big"), *pairs)
        found += [message.encode(fingerprint=False), message.encode(KEY), message.encode(KEY, both=True)]
    return found


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four changes to a message; then, half of the time, length and FINGERPRINT made right."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(CHANGES)(raw, others, rng)
        del raw[MAX_LENGTH:]
    if rng.random() < 0.5:
        _repair(raw)
    return bytes(raw)


def run(count: int, seed: int) -> Counter[str]:
    """Parse ``count`` mutants.

    Returns:
        How many were accepted, and how many refused, by the kind of reason.

    Raises:
        Exception: whatever parsing raises other than BadMessage, or handling an accepted message raises; the mutant is
            in a note.
    """
    rng, seeds, outcome = random.Random(seed), corpus(), Counter[str]()
    for each in seeds:
        parse(each).verify(KEY)
    for _ in range(count):
        mutant = mutate(rng.choice(seeds), seeds, rng)
        try:
            outcome[check(mutant)] += 1
        except Exception as error:  # to say with which bytes, whatever it is
            error.add_note(f"seed {seed}, mutant {mutant.hex()}")
            raise
    return outcome


def check(data: bytes) -> str:
    """Parse; what is accepted must be written, and read again, as it was."""
    try:
        message = parse(data)
    except BadMessage as error:
        return _kind(str(error))
    again = parse(message.encode())
    if _content(again) != _content(message):
        raise AssertionError(f"{message!r} became {again!r}")
    message.verify(KEY)
    message.verify_sha256(KEY)
    return "accepted"


def _content(message: Message) -> tuple[Any, ...]:
    return message.method, message.message_class, message.transaction_id, message.attributes


def _kind(reason: str) -> str:
    name, colon, _ = reason.partition(": ")
    if colon and not name.startswith("message type"):
        return "unknown attribute" if name.startswith("attribute 0x") else name
    return "header"


def _flip(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _set(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(len(raw))] = rng.choice(INTERESTING)


def _cut(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    del raw[rng.randrange(len(raw) + 1) :]


def _insert(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.randbytes(rng.choice((1, 2, 3, 4, 8, 20)))


def _remove(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    del raw[at : at + rng.choice((1, 2, 4, 8))]


def _repeat(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    start, stop = _attribute(raw, rng)
    raw[stop:stop] = raw[start:stop]


def _drop(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    start, stop = _attribute(raw, rng)
    del raw[start:stop]


def _graft(raw: bytearray, others: list[bytes], rng: random.Random) -> None:
    other = bytearray(rng.choice(others))
    start, stop = _attribute(other, rng)
    at, _ = _attribute(raw, rng)
    raw[at:at] = other[start:stop]


def _rename(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    start, stop = _attribute(raw, rng)
    if stop - start >= 4:
        raw[start : start + 2] = struct.pack(">H", rng.choice((*stun.ATTRIBUTES, 8, 0x1C, 0x8028, 0x7001)))


def _resize(raw: bytearray, _others: list[bytes], rng: random.Random) -> None:
    start, stop = _attribute(raw, rng)
    if stop - start >= 4:
        raw[start + 2 : start + 4] = struct.pack(">H", rng.choice((*INTERESTING, 509, 763, 764, 0xFFFF)))


CHANGES = (_flip, _flip, _set, _set, _cut, _insert, _remove, _repeat, _drop, _graft, _rename, _resize)


def _attribute(raw: bytearray, rng: random.Random) -> tuple[int, int]:
    # Where one attribute begins and ends, as far as it can be told.
    found = [(len(raw), len(raw))]
    position = 20
    while position + 4 <= len(raw):
        length = int.from_bytes(raw[position + 2 : position + 4], "big")
        stop = position + 4 + length + (-length % 4)
        if stop > len(raw):
            break
        found.append((position, stop))
        position = stop
    return rng.choice(found)


def _repair(raw: bytearray) -> None:
    del raw[len(raw) & ~3 :]
    if len(raw) < 20:
        return
    raw[0] &= 0x3F
    raw[2:4] = struct.pack(">H", len(raw) - 20)
    raw[4:8] = b"\x21\x12\xa4\x42"
    if len(raw) >= 28 and raw[-8:-4] == b"\x80\x28\0\4":
        raw[-4:] = struct.pack(">I", zlib.crc32(raw[:-8]) ^ 0x5354554E)
