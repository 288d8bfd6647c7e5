"""The lines of RFC 8839 that two peers exchange."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.candidate import Candidate
from iceagent.credentials import Credentials
from iceagent.description import MAX_CANDIDATES, Description
from iceagent.errors import InvalidCandidate, InvalidDescription

CREDENTIALS = Credentials(ufrag="8hhY", password="asd88fgpdd777uzjYhagZg")
LINE = "candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host"
FULL = f"""a=ice-ufrag:8hhY
a=ice-pwd:asd88fgpdd777uzjYhagZg
a=ice-options:trickle ice2 renomination
a=ice-pacing:20
a=ice-lite
a={LINE}
a=end-of-candidates
"""
HEAD = "a=ice-ufrag:8hhY\na=ice-pwd:asd88fgpdd777uzjYhagZg\n"


def test_everything_round_trips() -> None:
    description = Description.parse(FULL)
    assert description == Description(
        credentials=CREDENTIALS,
        options=("trickle", "ice2", "renomination"),
        pacing_ms=20,
        lite=True,
        candidates=(Candidate.parse(LINE),),
        complete=True,
    )
    assert description.trickles
    assert description.to_sdp() == FULL


def test_the_least_there_is() -> None:
    description = Description.parse("ice-pwd:asd88fgpdd777uzjYhagZg\r\nice-ufrag:8hhY\r\n")
    assert description == Description(credentials=CREDENTIALS)
    assert not description.trickles


def test_unknown_lines_are_ignored() -> None:
    """RFC 8866, 5: they come from a newer peer."""
    text = FULL + "v=0\na=mid:0\nm=audio 9 UDP/TLS/RTP/SAVPF 111\nnonsense\n\n"
    assert Description.parse(text) == Description.parse(FULL)


def test_a_line_that_stands_twice_with_the_same_value_is_one() -> None:
    """Every m= section of a bundle repeats them."""
    assert Description.parse(FULL + HEAD).credentials == CREDENTIALS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the line a=ice-ufrag: is missing"),
        ("a=ice-ufrag:8hhY\n", "the line a=ice-pwd: is missing"),
        ("a=ice-ufrag:abc\na=ice-pwd:asd88fgpdd777uzjYhagZg", "ice-ufrag 'abc': 4 to 256"),
        ("a=ice-ufrag:8hhY\na=ice-pwd:short", "ice-pwd of 5 characters: 22 to 256"),
        (HEAD + "a=ice-ufrag:other", "ice-ufrag stands twice, with different values"),
        (HEAD + "a=ice-pacing:fast", "ice-pacing 'fast' is not a number of milliseconds"),
        (HEAD + "a=ice-pacing:", "ice-pacing ''"),
        (HEAD + "a=ice-pacing:-1", "ice-pacing '-1'"),
        (HEAD + "a=ice-pacing:" + "9" * 11, "is not a number of milliseconds"),
        # More digits than Python converts.
        (HEAD + "a=ice-pacing:" + "9" * 5000, "is not a number of milliseconds"),
        (HEAD + f"a={LINE}\n" * (MAX_CANDIDATES + 1), f"more than {MAX_CANDIDATES} candidates"),
    ],
)
def test_what_is_known_and_wrong_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidDescription) as caught:
        Description.parse(text)
    assert complaint in str(caught.value)


def test_a_wrong_candidate_is_named_as_such() -> None:
    with pytest.raises(InvalidCandidate, match="component '0'"):
        Description.parse(HEAD + "a=candidate:1 0 udp 1 192.0.2.1 5000 typ host")


NEWER = (
    "a=candidate:2 1 sctp 2130706431 192.0.2.1 5000 typ host",
    "a=candidate:3 1 udp 2130706431 192.0.2.1 5000 typ mapped",
    "a=candidate:4 1 udp 2130706431 fe80::1%eth0 5000 typ host",
)


def test_candidates_of_a_newer_peer_are_ignored_one_by_one() -> None:
    """RFC 8839, 5.1: an agent "MUST ignore "candidate" lines" of addresses that are "not supported or recognized"."""
    text = HEAD + "\r\n".join([NEWER[0], f"a={LINE}", *NEWER[1:]])
    description = Description.parse(text)
    assert description.candidates == (Candidate.parse(LINE),)
    assert description.ignored == NEWER
    assert description.to_sdp() == HEAD + f"a={LINE}\n"


def test_ignored_candidates_count_too() -> None:
    half = f"a={LINE}\n{NEWER[0]}\n" * (MAX_CANDIDATES // 2)
    description = Description.parse(HEAD + half)
    assert (len(description.candidates), len(description.ignored)) == (MAX_CANDIDATES // 2, MAX_CANDIDATES // 2)
    with pytest.raises(InvalidDescription, match=f"more than {MAX_CANDIDATES} candidates"):
        Description.parse(HEAD + half + NEWER[0])


@given(st.text(max_size=300))
def test_text_gives_a_description_or_one_of_two_errors(text: str) -> None:
    try:
        Description.parse(text)
    except (InvalidDescription, InvalidCandidate):
        return


lines = st.sampled_from(
    [*FULL.splitlines(), "a=ice-pacing:x", "a=candidate:", "a=ice-options:", "a=ice-ufrag:other1", "\u2028", "a="]
)


@given(st.lists(st.one_of(lines, st.text(max_size=20)), max_size=15))
def test_lines_in_any_order_give_a_description_or_one_of_two_errors(parts: list[str]) -> None:
    try:
        description = Description.parse("\n".join(parts))
    except (InvalidDescription, InvalidCandidate):
        return
    assert Description.parse(description.to_sdp()) == description
