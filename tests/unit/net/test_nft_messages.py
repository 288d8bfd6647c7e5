"""The words of nftables, as bytes; what they do is seen in tests/lab/test_kernel.py and
tests/lab/test_kernel_relay.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.nft_messages import (
    Base,
    Checksum,
    Verdict,
    attribute,
    attributes,
    nested,
    number,
    store_payload,
    text,
    verdict,
)


def test_an_attribute_is_padded_to_four_bytes_and_says_its_own_length() -> None:
    assert attribute(3, b"abcde") == b"\x09\0\x03\0abcde\0\0\0"
    assert attribute(3, b"") == b"\x04\0\x03\0"


def test_numbers_are_big_endian_and_verdicts_are_negative() -> None:
    assert dict(attributes(number(1, 5))) == {1: b"\0\0\0\x05"}
    assert dict(attributes(number(1, -3))) == {1: b"\xff\xff\xff\xfd"}
    assert dict(attributes(number(1, 1 << 40, 8))) == {1: (1 << 40).to_bytes(8, "big")}


def test_an_attribute_of_attributes_is_taken_apart_like_one() -> None:
    ((kind, inner),) = attributes(nested(4, text(1, "name"), number(2, 7)))
    assert kind == 4
    assert list(attributes(inner)) == [(1, b"name\0"), (2, b"\0\0\0\x07")]


def test_an_expression_has_a_name_and_data() -> None:
    (_, name), (_, data) = attributes(verdict(Verdict.GOTO, "chain"))
    assert name == b"immediate\0"
    assert b"chain\0" in data


def test_both_checksums_are_two_attributes() -> None:
    def said(checksum: Checksum) -> tuple[int, int]:
        (_, _), (_, data) = attributes(store_payload(Base.NETWORK, 12, 4, 0, checksum, 10))
        fields = dict(attributes(data))
        return int.from_bytes(fields[6], "big"), int.from_bytes(fields[8], "big")

    assert [said(each) for each in Checksum] == [(0, 0), (1, 0), (0, 1), (1, 1)]


@given(st.binary(max_size=200))
def test_whatever_comes_is_taken_apart_and_ends(data: bytes) -> None:
    assert sum(len(value) for _, value in attributes(data)) <= len(data)
