"""What of a candidate is hidden; no multicast is sent."""

from __future__ import annotations

import asyncio

import dns.message
import dns.name
import pytest
from aioice.mdns import MDnsProtocol
from hypothesis import given
from hypothesis import strategies as st

from iceagent import CandidateType
from iceagent.gather.mdns import MdnsNames, answers_alone
from iceagent.net.address import TransportAddress
from tests.unit.gather.kit import base_on


@pytest.mark.parametrize(
    ("base", "mapped", "hidden"),
    [
        ("192.168.1.2", "203.0.113.1", "raddr 0.0.0.0 rport 9"),
        ("2001:db8::1", "2001:db8:ffff::1", "raddr :: rport 9"),
    ],
)
async def test_related_addresses_are_hidden_by_family(base: str, mapped: str, hidden: str) -> None:
    """RFC 8839, 5.1: "0.0.0.0" (for IPv4 candidates) or "::" (for IPv6 candidates) and the port to "9"."""
    names = MdnsNames(asyncio.get_running_loop())
    candidate = base_on(base, 1000).candidate(CandidateType.SERVER_REFLEXIVE, TransportAddress(mapped, 4000), "x")
    line = names.hide(candidate).to_sdp()
    assert line.endswith(f"{mapped} 4000 typ srflx {hidden}")
    await names.close()


async def test_a_host_candidate_without_a_name_stays_as_it_is() -> None:
    names = MdnsNames(asyncio.get_running_loop())
    base = base_on("192.168.1.2", 1000)
    candidate = base.candidate(CandidateType.HOST, base.address, "interface eth0")
    assert names.hide(candidate) == candidate
    await names.close()


# What Chromium 156 answers: an A record, and an NSEC record behind it.
CHROMIUM = bytes.fromhex(
    "0000840000000001000000012465376636626565362d353765612d343539342d613337662d613031376539646539386235056c6f63616c0000"
    "018001000000780004c0a801022465376636626565362d353765612d343539342d613337662d613031376539646539386235056c6f63616c00"
    "002f8001000000780005c046000140"
)


async def test_what_chromium_answers_is_understood() -> None:
    answers = answers_alone(CHROMIUM)
    assert answers is not None
    protocol = MDnsProtocol()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    protocol.queries[dns.name.from_text("e7f6bee6-57ea-4594-a37f-a017e9de98b5.local")] = {future}
    protocol.datagram_received(answers, ("192.168.1.2", 5353))
    assert await future == "192.168.1.2"


def test_questions_are_left_as_they_are() -> None:
    question = dns.message.make_query("x.local", "A").to_wire()
    assert answers_alone(question) is question


@pytest.mark.parametrize("size", range(70))
def test_what_is_cut_off_in_the_answers_is_none(size: int) -> None:
    answers = answers_alone(CHROMIUM[:size])
    assert answers is None or (size < 12 and answers == CHROMIUM[:size])


@given(st.binary(max_size=200))
def test_whatever_comes_is_answers_or_none(data: bytes) -> None:
    answers = answers_alone(data[:2] + b"\x84" + data[3:])
    assert answers is None or isinstance(answers, bytes)
