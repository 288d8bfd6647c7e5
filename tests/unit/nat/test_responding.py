"""Whom does a far end answer, and with what?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.nat.responding import OUTPUT_LIMIT, USER, FarEnd, binding_indication, binding_request
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, PacketDropped, Transmit
from relay.error_limits import ERRORS_PER_SECOND
from relay.stun import (
    CHANGE_REQUEST,
    PADDING,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    Message,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from relay.stun.values import decode_bytes, encode_bytes

BASE, OTHER_BASE = TransportAddress("192.0.2.1", 3478), TransportAddress("192.0.2.2", 3478)
CLIENT = TransportAddress("198.51.100.7", 40_000)
ID = bytes(range(12))
KEY = short_term_key("a secret of both")
UNHEARD_OF: Attribute[bytes] = Attribute(0x7FFE, "UNHEARD-OF", encode_bytes, decode_bytes)


def far_end(*, key: bool = False) -> FarEnd:
    core = FarEnd(KEY if key else None)
    core.bases.update((BASE, OTHER_BASE))
    return core


def request(*pairs: tuple[Attribute[Any], Any], fingerprint: bool = False) -> bytes:
    return build(Method.BINDING, MessageClass.REQUEST, ID, *pairs).encode(fingerprint=fingerprint)


def ask(core: FarEnd, data: bytes, source: TransportAddress = CLIENT, now: float = 0.0) -> Transmit | None:
    core.handle_datagram(Datagram(BASE, source, data), now)
    answer = core.poll_transmit()
    assert core.poll_transmit() is None
    return answer


def reply(core: FarEnd, data: bytes) -> Message:
    answer = ask(core, data)
    assert answer is not None and (answer.base, answer.destination) == (BASE, CLIENT)
    return parse(answer.data)


def test_whoever_asks_is_told_his_address_at_exactly_that() -> None:
    core = far_end()
    message = reply(core, request())
    assert message.is_success and message.transaction_id == ID
    assert message.attributes == [(XOR_MAPPED_ADDRESS, CLIENT)]
    assert core.counters == {"requests": 1}
    assert core.poll_timeout() is None


@pytest.mark.parametrize("has_fingerprint", [False, True])
def test_an_answer_has_a_fingerprint_if_the_request_has(has_fingerprint: bool) -> None:
    """RFC 8489, 7: what is multiplexed with data is recognized by it; 12: a plain server "MUST NOT require it"."""
    assert reply(far_end(), request(fingerprint=has_fingerprint)).has_fingerprint is has_fingerprint


def test_twenty_bytes_get_thirty_two_and_signed_ones_fewer_than_they_are_times_two() -> None:
    answer = ask(far_end(), request())
    assert answer is not None and len(answer.data) == 32
    signed = binding_request(ID, KEY)
    answer = ask(far_end(key=True), signed)
    assert answer is not None and (len(signed), len(answer.data)) == (64, 64)


# --- RESPONSE-PORT ---------------------------------------------------------------------------------------------------


def test_an_answer_goes_to_another_port_of_the_same_address() -> None:
    """RFC 5780, 7.5."""
    answer = ask(far_end(), request((RESPONSE_PORT, 50_000)))
    assert answer is not None
    assert (answer.base, answer.destination) == (BASE, TransportAddress(CLIENT.host, 50_000))
    assert parse(answer.data).get(XOR_MAPPED_ADDRESS) == CLIENT


def test_the_answer_to_another_port_is_as_short_as_any() -> None:
    """DEVIATION from RFC 5780, 6.1: no MAPPED-ADDRESS beside the other one, and no RESPONSE-ORIGIN."""
    question = request((RESPONSE_PORT, 50_000))
    answer = ask(far_end(), question)
    assert answer is not None and (len(question), len(answer.data)) == (28, 32)
    assert parse(answer.data).attributes == [(XOR_MAPPED_ADDRESS, CLIENT)]


def test_no_answer_goes_to_port_0_or_to_one_of_our_own() -> None:
    core = far_end()
    message = reply(core, request((RESPONSE_PORT, 0)))
    assert message.error is not None and message.error.code == 400
    assert ask(core, request((RESPONSE_PORT, 3478)), TransportAddress(BASE.host, 50_000)) is None
    assert core.counters["dropped: source not answered"] == 1


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        ((CHANGE_REQUEST, ChangeRequest(True, False)), CHANGE_REQUEST.code),
        ((PADDING, bytes(64)), PADDING.code),
        ((UNHEARD_OF, b"what"), 0x7FFE),
    ],
    ids=["CHANGE-REQUEST", "PADDING", "unheard of"],
)
def test_what_it_does_not_do_is_420(pair: tuple[Attribute[Any], Any], code: int) -> None:
    """RFC 5780, 6.1: "does not have an alternate address and port … error response of type 420"."""
    for pairs in ((pair,), (pair, (RESPONSE_PORT, 50_000))):
        message = reply(far_end(), request(*pairs))
        assert message.error is not None and message.error.code == 420
        assert message.get(UNKNOWN_ATTRIBUTES) == (code,)


# --- the key ---------------------------------------------------------------------------------------------------------


def test_with_a_key_both_are_signed() -> None:
    core = far_end(key=True)
    message = reply(core, binding_request(ID, KEY))
    assert message.is_success and message.verify(KEY)


def test_where_sha256_is_there_it_alone_counts_and_signs_the_answer() -> None:
    """RFC 8489, 9.1.3: "Any response … to a request that contains a MESSAGE-INTEGRITY-SHA256 attribute MUST include
    the MESSAGE-INTEGRITY-SHA256 attribute"; "only one of these attributes can appear in a response".
    """
    named = build(Method.BINDING, MessageClass.REQUEST, ID, (USERNAME, USER))
    for data in (named.encode(KEY, sha256=True), named.encode(KEY, both=True)):
        message = reply(far_end(key=True), data)
        assert message.is_success and message.verify_sha256(KEY) and not message.has_integrity
    wrong = bytearray(named.encode(KEY, both=True, fingerprint=False))
    wrong[-1] ^= 1
    message = reply(far_end(key=True), bytes(wrong))
    assert message.error is not None and message.error.code == 401
    assert not message.has_integrity_sha256 and not message.has_integrity


@pytest.mark.parametrize(("pair", "code"), [((UNHEARD_OF, b"what"), 420), ((RESPONSE_PORT, 0), 400)])
def test_who_has_the_key_gets_refusals_signed_as_well(pair: tuple[Attribute[Any], Any], code: int) -> None:
    """RFC 8489, 9.1.3: "Any response generated by a server to a request that contains only a MESSAGE-INTEGRITY
    attribute MUST include the MESSAGE-INTEGRITY attribute".
    """
    message = reply(far_end(key=True), binding_request(ID, KEY, pair))
    assert message.error is not None and message.error.code == code and message.verify(KEY)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (request(), 400),
        (build(Method.BINDING, MessageClass.REQUEST, ID).encode(KEY), 400),
        (request((USERNAME, USER)), 400),
        (binding_request(ID, short_term_key("another one")), 401),
    ],
    ids=["unsigned", "without a name", "a name alone", "another key"],
)
def test_who_does_not_have_the_key_is_told_so(data: bytes, code: int) -> None:
    """RFC 8489, 9.1.3; the refusal is not signed, for it is not the key's."""
    core = far_end(key=True)
    message = reply(core, data)
    assert message.error is not None and message.error.code == code
    assert not message.has_integrity
    assert core.counters == {f"errors: {code}": 1}


def test_who_does_not_have_the_key_does_not_learn_what_we_understand() -> None:
    message = reply(far_end(key=True), request((UNHEARD_OF, b"what")))
    assert message.error is not None and message.error.code == 400


def test_refusals_are_limited() -> None:
    core = far_end(key=True)
    answers = [ask(core, request(), now=100.0) for _ in range(50)]
    assert sum(answer is not None for answer in answers) == ERRORS_PER_SECOND
    assert core.counters["dropped: too many errors"] == 50 - ERRORS_PER_SECOND


# --- what is not answered --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "data", "reason"),
    [
        (CLIENT, b"hello", "not STUN"),
        (CLIENT, request()[:-1], "not STUN"),
        (CLIENT, request((USERNAME, "abcd"))[:-4], "not STUN"),
        (CLIENT, b"\x00\x01\x00\x04\x21\x12\xa4\x42" + ID + b"\x00\x06\x00\x99", "malformed"),
        (CLIENT, build(Method.ALLOCATE, MessageClass.REQUEST, ID).encode(), "method not supported"),
        (CLIENT, build(Method.BINDING, MessageClass.SUCCESS, ID).encode(), "response"),
        (CLIENT, build(Method.BINDING, MessageClass.ERROR, ID).encode(), "response"),
        (TransportAddress("198.51.100.7", 0), request(), "source not answered"),
        (TransportAddress("255.255.255.255", 1), request(), "source not answered"),
        (TransportAddress("224.0.0.1", 1), request(), "source not answered"),
        (TransportAddress("0.0.0.0", 1), request(), "source not answered"),
        (OTHER_BASE, request(), "source not answered"),
    ],
)
def test_the_rest_is_dropped_and_counted(source: TransportAddress, data: bytes, reason: str) -> None:
    """Nobody can make two far ends talk to each other: only requests are answered."""
    core = far_end()
    assert ask(core, data, source) is None
    assert core.poll_event() == PacketDropped(base=BASE, source=source, reason=reason, size=len(data))
    assert core.counters == {f"dropped: {reason}": 1}


def test_an_indication_is_not_answered_and_no_mistake() -> None:
    core = far_end()
    assert ask(core, binding_indication(ID)) is None
    assert core.counters == {"indications": 1} and core.poll_event() is None


def test_answers_that_nobody_fetches_are_bounded() -> None:
    core = far_end()
    for number in range(3 * OUTPUT_LIMIT):
        core.handle_datagram(Datagram(BASE, CLIENT._replace(port=1 + number), request()), 0.0)
        core.handle_datagram(Datagram(BASE, CLIENT, b"noise"), 0.0)
    assert sum(1 for _ in iter(core.poll_transmit, None)) == OUTPUT_LIMIT
    assert sum(1 for _ in iter(core.poll_event, None)) == OUTPUT_LIMIT


@given(data=st.binary(max_size=200), is_signed=st.booleans(), cut=st.integers(0, 90), flip=st.integers(0, 8 * 80))
def test_no_bytes_raise(data: bytes, is_signed: bool, cut: int, flip: int) -> None:
    core = far_end(key=is_signed)
    core.handle_datagram(Datagram(BASE, CLIENT, data), 0.0)
    whole = bytearray(binding_request(ID, KEY if is_signed else None, (RESPONSE_PORT, 5000)))
    if flip // 8 < len(whole):
        whole[flip // 8] ^= 1 << flip % 8
    core.handle_datagram(Datagram(BASE, CLIENT, bytes(whole[: len(whole) - cut])), 0.0)
    core.handle_error(BASE, CLIENT, 111, 0.0)
    core.handle_timeout(0.0)
    assert core.counters["network errors"] == 1
