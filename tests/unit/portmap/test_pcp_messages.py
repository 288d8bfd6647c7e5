"""Are PCP's bytes those of RFC 6887? Made by hand here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from portmap.pcp import is_for_pcp
from portmap.pcp.messages import (
    PREFER_FAILURE,
    Filter,
    MapData,
    Option,
    Response,
    announce_request,
    map_request,
    parse_response,
    result_text,
)
from portmap.server_link import BadMessage

NONCE = bytes(range(12))
V4 = "00000000000000000000ffff"
CLIENT = V4 + "c0a8010a"
MAP_DATA = NONCE.hex() + "11000000" + "1388" + "9c40" + V4 + "cb007105"
SUCCESS = "02810000" + "00000e10" + "00000064" + "00" * 12 + MAP_DATA


def data(options: tuple[Option, ...] = ()) -> MapData:
    external = TransportAddress("203.0.113.5", 40000)
    return MapData(nonce=NONCE, protocol=17, internal_port=5000, external=external, options=options)


def test_an_announce_request_is_a_bare_header() -> None:
    assert announce_request("192.168.1.10").hex() == "02000000" + "00000000" + CLIENT


def test_a_map_request_has_nonce_protocol_ports_and_mapped_addresses() -> None:
    assert map_request("192.168.1.10", 3600, data()).hex() == "02010000" + "00000e10" + CLIENT + MAP_DATA


def test_an_ipv6_pinhole_has_plain_addresses_and_the_all_zeros_one() -> None:
    nowhere = TransportAddress("::", 0)
    wanted = MapData(nonce=NONCE, protocol=6, internal_port=80, external=nowhere)
    message = map_request("2001:db8::1", 120, wanted).hex()
    host = "20010db8" + "00" * 11 + "01"
    assert message == "02010000" + "00000078" + host + NONCE.hex() + "06000000" + "0050" + "0000" + "00" * 16


def test_options_follow_the_map_data() -> None:
    one = Filter(prefix_length=120, peer=TransportAddress("198.51.100.0", 0))
    message = map_request("192.168.1.10", 3600, data((PREFER_FAILURE, one))).hex()
    option = "03000014" + "00780000" + V4 + "c6336400"
    assert message == "02010000" + "00000e10" + CLIENT + MAP_DATA + "02000000" + option


@pytest.mark.parametrize(("host", "prefix"), [("198.51.100.0", 95), ("198.51.100.0", 129), ("2001:db8::", 129)])
def test_a_prefix_that_no_address_has_is_refused(host: str, prefix: int) -> None:
    with pytest.raises(ValueError, match="a prefix of"):
        map_request("192.168.1.10", 1, data((Filter(prefix_length=prefix, peer=TransportAddress(host, 0)),)))


def test_a_request_of_more_than_1100_bytes_is_refused() -> None:
    one = Filter(prefix_length=128, peer=TransportAddress("198.51.100.1", 0))
    assert len(map_request("192.168.1.10", 1, data((one,) * 43))) == 1092
    with pytest.raises(ValueError, match="1116 bytes"):
        map_request("192.168.1.10", 1, data((one,) * 44))


def test_a_nonce_of_another_length_is_refused() -> None:
    wrong = MapData(nonce=b"short", protocol=17, internal_port=1, external=TransportAddress("::", 0))
    with pytest.raises(ValueError, match="a nonce of 5 bytes"):
        map_request("192.168.1.10", 1, wrong)


def test_a_success_is_read() -> None:
    assert parse_response(bytes.fromhex(SUCCESS)) == Response(
        opcode=1, result=0, lifetime_s=3600, epoch_s=100, map=data()
    )


def test_reserved_bits_are_ignored() -> None:
    """7.2: "MUST be ignored when received"."""
    noisy = "0281ff00" + "00000e10" + "00000064" + "ff" * 12 + MAP_DATA.replace("11000000", "11ffffff")
    assert parse_response(bytes.fromhex(noisy)) == parse_response(bytes.fromhex(SUCCESS))


def test_known_options_are_read_and_others_ignored() -> None:
    """7.3: "PCP clients MUST ignore Options that they do not understand that appear in responses, including Options in
    the mandatory-to-process range"."""
    unknown = "05000003" + "61626300"
    options = unknown + "02000000" + "03000014" + "00600050" + V4 + "c6336401"
    response = parse_response(bytes.fromhex(SUCCESS + options))
    assert response.map is not None
    assert response.map.options == (
        PREFER_FAILURE,
        Filter(prefix_length=96, peer=TransportAddress("198.51.100.1", 80)),
    )


def test_an_option_that_is_longer_than_its_message_is_refused() -> None:
    with pytest.raises(BadMessage, match="an option is longer"):
        parse_response(bytes.fromhex(SUCCESS + "05000005" + "61626364"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "shorter than 4 bytes"),
        ("028100", "shorter than 4 bytes"),
        (SUCCESS.replace("0281", "0201", 1), "R bit missing"),
        (SUCCESS.replace("0281", "0381", 1), "another version"),
        (SUCCESS.replace("0281", "0282", 1), "another opcode"),
        (SUCCESS + "0000", "a length that no answer has"),
        (SUCCESS[:46], "a length that no answer has"),
        (SUCCESS + "00" * 1044, "a length that no answer has"),
        (SUCCESS[:-8], "too short for MAP"),
        ("0080000000000064cb007105", "an answer to NAT-PMP"),
        ("02800001" + "00" * 20, "an answer to NAT-PMP"),
    ],
)
def test_what_is_no_response_is_refused(data: str, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse_response(bytes.fromhex(data))


def test_the_longest_response_is_read() -> None:
    assert parse_response(bytes.fromhex(SUCCESS + "00" * 1040)).lifetime_s == 3600


@pytest.mark.parametrize(
    ("data", "version", "lifetime_s"),
    [
        # RFC 6886, 3.5, as drawn there, and with the bit of a response.
        ("0000000100000064", 0, 1800),
        ("0080000100000064", 0, 1800),
        ("00810001", 0, 1800),
        # The whole request again.
        ("00810001" + "00000e10" + CLIENT + MAP_DATA, 0, 1800),
        ("01800001" + "00000078" + "00" * 16, 1, 120),
        ("03800001" + "ffffffff" + "00" * 16, 3, 1800),
        # 7.2: "the server copies the last 96 bits of the PCP Client's IP Address field": it was asked in PCP.
        ("02800001" + "00000258" + "00000064" + CLIENT[8:], 2, 600),
        ("02810001" + "00000708" + "00000064" + CLIENT[8:] + MAP_DATA, 2, 1800),
    ],
)
def test_a_server_of_another_version_says_so(data: str, version: int, lifetime_s: int) -> None:
    """9: "in 30 minutes or the returned Lifetime value, whichever is smaller"."""
    response = parse_response(bytes.fromhex(data))
    assert (response.version, response.result, response.lifetime_s) == (version, 1, lifetime_s)
    assert response.epoch_s is None


@pytest.mark.parametrize(
    ("data", "is_pcp"),
    [
        ("0000000100000064", True),
        ("0081000100000064", True),
        (SUCCESS, True),
        ("0380000100000000", True),
        ("028000010000000000000000", False),
        ("02800001" + "00" * 20, False),
        ("02810001" + "00000708" + "00000064" + CLIENT[8:] + MAP_DATA, True),
        ("008000000000000acb007105", False),
        ("0081000300000064", False),
        ("0080000300000064", False),
        ("0081", False),
        ("00", False),
    ],
)
def test_answers_about_the_version_go_to_the_other_protocol(data: str, is_pcp: bool) -> None:
    """RFC 6887, 9 and Appendix A: a server answers in the version that it speaks, whatever it was asked in."""
    assert is_for_pcp(bytes.fromhex(data)) is is_pcp


def test_result_codes_have_names_and_the_mismatch_is_explained() -> None:
    assert result_text(8) == "8 NO_RESOURCES"
    assert result_text(12) == "12 ADDRESS_MISMATCH: there is another NAT between us and the gateway"
    assert result_text(77) == "77 (unknown)"


@given(st.binary(max_size=1200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    is_for_pcp(data)
    try:
        parse_response(data)
    except BadMessage as error:
        assert len(str(error)) < 60


@given(st.binary(max_size=200), st.integers(0, 255), st.sampled_from([0, 1, 2, 12, 77]))
def test_no_tail_raises_anything_else(tail: bytes, opcode: int, result: int) -> None:
    try:
        parse_response(bytes([2, opcode, 0, result]) + tail)
    except BadMessage as error:
        assert len(str(error)) < 60
