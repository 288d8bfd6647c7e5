"""Are NAT-PMP's bytes those of RFC 6886? Made by hand here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portmap.natpmp.messages import (
    EXTERNAL_REQUEST,
    ErrorResponse,
    ExternalAddress,
    MapResponse,
    Opcode,
    Response,
    UnsupportedVersion,
    map_request,
    parse_response,
    result_text,
)
from portmap.server_link import BadMessage


def test_requests_have_2_and_12_bytes() -> None:
    assert EXTERNAL_REQUEST.hex() == "0000"
    assert map_request(Opcode.MAP_UDP, 5000, 40000, 7200).hex() == "00010000" + "1388" + "9c40" + "00001c20"
    assert map_request(Opcode.MAP_TCP, 80, 0, 0).hex() == "00020000" + "0050" + "0000" + "00000000"


def test_what_would_delete_the_mappings_of_other_programs_is_refused() -> None:
    """3.4: internal port and lifetime 0 are "the explicit deletion of all its UDP or TCP mappings"."""
    with pytest.raises(ValueError, match="the internal port is 0"):
        map_request(Opcode.MAP_UDP, 0, 0, 0)


def test_a_deletion_has_no_external_port() -> None:
    """3.4: "The Suggested External Port MUST be set to zero by the client on sending"."""
    with pytest.raises(ValueError, match="a deletion with external port 40000"):
        map_request(Opcode.MAP_UDP, 5000, 40000, 0)


@pytest.mark.parametrize(
    ("data", "response"),
    [
        ("00800000" + "00000064" + "cb007105", ExternalAddress(epoch_s=100, host="203.0.113.5")),
        (
            "00810000" + "00000064" + "1388" + "9c40" + "00001c20",
            MapResponse(opcode=1, epoch_s=100, internal_port=5000, external_port=40000, lifetime_s=7200),
        ),
        ("00800003" + "00000064" + "00000000", ErrorResponse(opcode=0, code=3, epoch_s=100, internal_port=None)),
        ("00800003" + "00000064", ErrorResponse(opcode=0, code=3, epoch_s=100, internal_port=None)),
        ("00820002" + "00000064", ErrorResponse(opcode=2, code=2, epoch_s=100, internal_port=None)),
        (
            "00820004" + "00000064" + "1388" + "0000" + "00000000",
            ErrorResponse(opcode=2, code=4, epoch_s=100, internal_port=5000),
        ),
        # "the entire request MUST be returned": the port is where the epoch would be.
        (
            "00820005" + "1388" + "9c40" + "00001c20",
            ErrorResponse(opcode=2, code=5, epoch_s=None, internal_port=5000),
        ),
        ("00800005", ErrorResponse(opcode=0, code=5, epoch_s=None, internal_port=None)),
        ("0081ffff" + "00000064", ErrorResponse(opcode=1, code=65535, epoch_s=100, internal_port=None)),
        ("02800001" + "00" * 20, UnsupportedVersion(version=2)),
        ("03800001" + "00" * 20, UnsupportedVersion(version=3)),
    ],
)
def test_responses_are_read(data: str, response: Response) -> None:
    assert parse_response(bytes.fromhex(data)) == response


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "shorter than 4 bytes"),
        ("008000", "shorter than 4 bytes"),
        ("0000", "shorter than 4 bytes"),
        ("00010000" + "13889c40" + "00001c20", "a request"),
        ("0080000100000064", "an answer to PCP"),
        ("0000000100000064", "an answer to PCP"),
        ("02810000" + "00" * 56, "another version"),
        ("00830000" + "00" * 12, "another opcode"),
        ("00800000" + "00000064" + "cb0071", "a length that no answer has"),
        ("00800000" + "00000064" + "cb00710500", "a length that no answer has"),
        ("00810000" + "00000064" + "1388" + "9c40" + "00001c", "a length that no answer has"),
        ("00810000" + "00000064" + "1388" + "9c40" + "00001c2000", "a length that no answer has"),
        ("0081000300", "a length that no answer has"),
        ("00810003" + "00" * 13, "a length that no answer has"),
    ],
)
def test_what_is_no_response_is_refused(data: str, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse_response(bytes.fromhex(data))


def test_result_codes_have_the_words_of_the_rfc() -> None:
    assert result_text(2) == "2 Not Authorized/Refused"
    assert result_text(77) == "77 (unknown)"


@given(st.one_of(st.binary(max_size=64), st.binary(max_size=16).map(lambda tail: b"\0\x81\0\0" + tail)))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        parse_response(data)
    except BadMessage as error:
        assert len(str(error)) < 60
