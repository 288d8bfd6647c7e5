"""How datagrams are put together for one call, and taken apart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.trains import (
    MAX_SEGMENT,
    MAX_TRAIN,
    MAX_TRAIN_BYTES,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    cut,
    segment_size_option,
    trains,
)


def sizes(*numbers: int, max_segment: int = MAX_SEGMENT) -> list[list[int]]:
    return [[len(data) for data in train] for train in trains([bytes(number) for number in numbers], max_segment)]


@pytest.mark.parametrize(
    ("given_sizes", "expected"),
    [
        ((), []),
        ((5,), [[5]]),
        ((5, 5, 5), [[5, 5, 5]]),
        ((5, 5, 3), [[5, 5, 3]]),
        ((5, 3, 3), [[5, 3], [3]]),
        ((3, 5, 5), [[3], [5, 5]]),
        ((5, 0, 5), [[5], [0], [5]]),
        ((0, 0), [[0], [0]]),
        ((5, 5, 0), [[5, 5], [0]]),
    ],
)
def test_one_size_and_a_shorter_end(given_sizes: tuple[int, ...], expected: list[list[int]]) -> None:
    assert sizes(*given_sizes) == expected


def test_what_is_longer_than_the_limit_travels_alone() -> None:
    assert sizes(11, 11, 10, 10, 9, max_segment=10) == [[11], [11], [10, 10, 9]]
    assert sizes(10, 10, max_segment=0) == [[10], [10]]


def test_sixty_four_at_most_and_no_more_than_one_packet_can_have() -> None:
    assert [len(train) for train in sizes(*[1200] * 100)] == [54, 46]
    assert [len(train) for train in sizes(*[100] * 130)] == [64, 64, 2]


@given(st.lists(st.sampled_from([0, 1, 100, 1200, 1472, MAX_SEGMENT, MAX_SEGMENT + 1]), max_size=200), st.booleans())
def test_nothing_is_lost_and_every_train_is_one_that_the_kernel_takes(numbers: list[int], is_able: bool) -> None:
    datagrams = [bytes([index % 256]) * number for index, number in enumerate(numbers)]
    found = list(trains(datagrams, MAX_SEGMENT if is_able else 0))
    assert [data for train in found for data in train] == datagrams
    for train in found:
        *body, last = map(len, train)
        assert len(train) <= MAX_TRAIN
        if body:
            assert is_able
            assert set(body) == {body[0]}
            assert 0 < last <= body[0] <= MAX_SEGMENT
            assert sum(body) + last <= MAX_TRAIN_BYTES


def gro(size: int) -> list[tuple[int, int, bytes]]:
    return [(SOL_UDP, UDP_GRO, struct.pack("=i", size))]


def test_a_received_train_is_cut() -> None:
    assert list(cut(b"aabbc", gro(2))) == [b"aa", b"bb", b"c"]
    assert list(cut(b"aabb", gro(2))) == [b"aa", b"bb"]
    assert list(cut(b"a", gro(2))) == [b"a"]


def test_without_a_size_it_is_one_datagram() -> None:
    assert list(cut(b"aabb", [])) == [b"aabb"]
    assert list(cut(b"aabb", gro(0))) == [b"aabb"]
    assert list(cut(b"aabb", [(1, UDP_GRO, b"\x02\0\0\0")])) == [b"aabb"]
    assert list(cut(b"", [])) == [b""]


def test_the_control_message_has_sixteen_bits() -> None:
    assert segment_size_option(1200) == (SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1200))
