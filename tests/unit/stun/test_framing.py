"""Messages cut out of a stream, however it arrives: RFC 8656, 12.5 and 12.6."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.stun import MAX_MESSAGE_LENGTH, BadMessage, MessageClass, Method, StreamFramer, build, parse
from relay.stun.attributes import DATA, SOFTWARE

ID = bytes(12)


def stun_message(size: int = 5) -> bytes:
    return build(Method.SEND, MessageClass.INDICATION, ID, (DATA, bytes(size))).encode()


def channel_data(payload: bytes, number: int = 0x4001) -> bytes:
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


def on_stream(message: bytes) -> bytes:
    """RFC 8656, 12.5: padded to a multiple of four; the padding may be anything."""
    return message + b"\xee" * (-len(message) % 4)


MESSAGES = [
    stun_message(),
    channel_data(b""),
    channel_data(b"a"),
    channel_data(b"abcd", 0x4FFF),
    build(Method.BINDING, MessageClass.REQUEST, ID).encode(fingerprint=False),
    channel_data(b"abcdefg", 0x7FFF),
    stun_message(1000),
    channel_data(bytes(1500)),
]
STREAM = b"".join([on_stream(message) for message in MESSAGES])


def test_messages_of_one_read_come_out_in_order_without_padding() -> None:
    framer = StreamFramer()
    assert framer.feed(STREAM) == MESSAGES
    assert framer.feed(b"") == []
    assert framer.feed(STREAM) == MESSAGES


def test_what_follows_a_message_can_be_taken_as_it_is() -> None:
    """RFC 6062, 5.4: behind a ConnectionBind there is data, which may look like anything."""
    framer, rest = StreamFramer(), b"\xff\xff no message " + STREAM
    framer.add(on_stream(MESSAGES[2]) + MESSAGES[0] + rest)
    assert framer.next_message() == MESSAGES[2] and framer.next_message() == MESSAGES[0]
    assert framer.take_rest() == rest
    assert framer.take_rest() == b"" and framer.next_message() is None
    framer.add(MESSAGES[0] + b"x")
    assert framer.next_message() == MESSAGES[0] and framer.next_message() is None and framer.take_rest() == b"x"


def test_messages_come_out_of_single_bytes() -> None:
    framer = StreamFramer()
    found = [message for index in range(len(STREAM)) for message in framer.feed(STREAM[index : index + 1])]
    assert found == MESSAGES


@given(st.lists(st.integers(min_value=1, max_value=400), max_size=60))
def test_messages_come_out_whatever_the_reads(sizes: list[int]) -> None:
    framer, found, position = StreamFramer(), [], 0
    for size in [*sizes, len(STREAM)]:
        found += framer.feed(STREAM[position : position + size])
        position += size
    assert found == MESSAGES


def test_message_comes_out_with_its_last_byte_and_not_before() -> None:
    for message in MESSAGES:
        framer, whole = StreamFramer(), on_stream(message)
        assert framer.feed(whole[:-1]) == []
        assert framer.feed(whole[-1:]) == [message]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x00\x00\x00", "first byte 0x80: neither STUN nor ChannelData"),
        (b"\xff" * 100, "first byte 0xff"),
        (b"\x16\x03\x01\x00\x02\x00\x01\x00", "magic cookie 0x02000100"),
        (b"\x00\x01\x00\x03", "a STUN message of length 3, not a multiple of 4"),
        (b"\x00\x01\x00\x00\x21\x12\xa4\x43", "magic cookie 0x2112a443, not 0x2112a442"),
        (STREAM + b"\x90\x00", "first byte 0x90"),
    ],
)
def test_garbage_ends_the_stream(data: bytes, reason: str) -> None:
    framer = StreamFramer()
    with pytest.raises(BadMessage, match=reason):
        framer.feed(data)
    with pytest.raises(BadMessage, match=reason):
        framer.feed(STREAM)


def test_cookie_is_checked_before_the_message_is_there() -> None:
    """A wrong cookie must not make us wait for 64 KiB."""
    framer = StreamFramer()
    with pytest.raises(BadMessage, match="magic cookie"):
        framer.feed(b"\x00\x01\xff\xfc\x00\x00\x00\x00")


def test_buffer_is_bounded_by_the_longest_message() -> None:
    longest = build(Method.SEND, MessageClass.INDICATION, ID, (DATA, bytes(0xFFFC - 4 - 8))).encode()
    assert len(longest) == MAX_MESSAGE_LENGTH
    framer = StreamFramer()
    assert framer.feed(longest[:-1]) == []
    assert len(framer._buffer) == MAX_MESSAGE_LENGTH - 1
    assert framer.feed(longest[-1:] + longest[:100]) == [longest]
    assert len(framer._buffer) == 100
    assert StreamFramer().feed(on_stream(channel_data(bytes(65_535)))) == [channel_data(bytes(65_535))]


def test_single_bytes_of_a_long_message_are_appended_in_place() -> None:
    """A framer that made a new buffer for each byte would copy 2 GiB for these 64 KiB."""
    longest = channel_data(bytes(65_532))
    framer = StreamFramer()
    buffer = framer._buffer
    for index in range(len(longest) - 1):
        assert framer.feed(longest[index : index + 1]) == []
        assert framer._buffer is buffer
    assert framer.feed(longest[-1:]) == [longest]
    assert framer._buffer is buffer


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_arbitrary_bytes_raise_nothing_else(chunks: list[bytes]) -> None:
    framer = StreamFramer()
    for chunk in chunks:
        try:
            messages = framer.feed(chunk)
        except BadMessage:
            return
        for message in messages:
            assert message[0] < 0x80
        assert len(framer._buffer) < MAX_MESSAGE_LENGTH


def test_stun_messages_of_a_stream_can_be_parsed() -> None:
    data = build(Method.BINDING, MessageClass.SUCCESS, ID, (SOFTWARE, "test")).encode()
    assert [parse(each).get(SOFTWARE) for each in StreamFramer().feed(data + data)] == ["test", "test"]
