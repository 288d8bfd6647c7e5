"""What of a candidate is hidden; no multicast is sent."""

from __future__ import annotations

import asyncio

import pytest

from iceagent import CandidateType
from iceagent.gather.mdns import MdnsNames
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
