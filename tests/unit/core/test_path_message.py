"""Is a path message written and read as docs/path-messages.md says?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.path_message import MAX_CANDIDATES, PathMessage
from iceagent.net.address import TransportAddress
from relay.stun import BadMessage

DOCS = Path(__file__).parents[3] / "docs" / "path-messages.md"

NEW = Candidate(
    foundation="1f",
    component=1,
    priority=1694498815,
    address=TransportAddress("203.0.113.7", 50000),
    type=CandidateType.SERVER_REFLEXIVE,
)
GONE = Candidate(
    foundation="h",
    component=1,
    priority=2130706431,
    address=TransportAddress("2001:db8::1", 5000),
    type=CandidateType.HOST,
)
MESSAGE = PathMessage(serial=7, check_after_s=0.02, added=(NEW,), withdrawn=(GONE,))
VECTOR = (
    "01 04 0014 00000007"
    " 01 04 0001 e242 64ffffff 02 ea12d545 3166"
    " 80 06 0001 329a 7effffff 01 0113a9fa2112a4422112a4422112a443 68"
)


def test_the_test_vector() -> None:
    data = bytes.fromhex(VECTOR.replace(" ", ""))
    assert MESSAGE.encode().hex() == data.hex()
    assert PathMessage.decode(data) == MESSAGE
    in_docs = "".join(DOCS.read_text().split("```text\n")[1].split("\n```")[0].split())
    assert in_docs == data.hex()


def test_flags() -> None:
    assert PathMessage(serial=1, nominate=True).encode().hex() == "0101000000000001"
    assert PathMessage(serial=2, closing=True).encode().hex() == "0102000000000002"
    assert PathMessage(serial=3, check_after_s=0.0).encode().hex() == "0104000000000003"
    assert PathMessage(serial=4, nominate=True, is_eaten=True).encode().hex() == "0109000000000004"
    # Unknown flags are for those who know them; a delay without its flag means nothing.
    assert PathMessage.decode(bytes.fromhex("01f1ffff00000004")) == PathMessage(serial=4, nominate=True)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "01000000000000",
        "0200000000000001",
        "0104138900000001",
        VECTOR[:-1].replace(" ", "") + "0",
        "0100000000000001" + "04" + "04000150 0064ffffff02ea12d5473166".replace(" ", ""),
        "0100000000000001" + "0105000150" + "0064ffffff02ea12d5473166",
        "0100000000000001" + "01040000e24264ffffff02ea12d5473166",
        "0100000000000001" + "01040101e24264ffffff02ea12d5473166",
        "0100000000000001" + "01040001e2420000000002ea12d5473166",
        "0100000000000001" + "01040001e242ffffffff02ea12d5473166",
        "0100000000000001" + "01040001e24264ffffff00ea12d547",
        "0100000000000001" + "01040001e24264ffffff21ea12d547" + "31" * 33,
        "0100000000000001" + "01040001e24264ffffff02ea12d5473120",
        "0100000000000001" + "01040001e24264ffffff02ea12d54731",
        "0100000000000001" + "01040001e24264ffffff02ea12d5473166" * 9,
    ],
)
def test_what_is_malformed_is_refused(data: str) -> None:
    with pytest.raises(BadMessage):
        PathMessage.decode(bytes.fromhex(data))


def test_no_more_candidates_than_are_read() -> None:
    full = PathMessage(serial=1, added=(NEW,) * (MAX_CANDIDATES - 1), withdrawn=(NEW,))
    assert PathMessage.decode(full.encode()) == full
    with pytest.raises(ValueError, match="more than 8"):
        PathMessage(serial=1, added=(NEW,) * MAX_CANDIDATES, withdrawn=(NEW,)).encode()


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message = PathMessage.decode(b"\x01" + data)
    except BadMessage:
        return
    assert PathMessage.decode(message.encode()) == message
