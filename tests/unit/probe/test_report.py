"""The keys of schema 1: what CLI.md promises to scripts."""

from __future__ import annotations

import json
from dataclasses import replace

from iceagent.nat.kinds import Filtering, Mapping
from iceagent.probe.report import NatReport, NotTested, Report
from tests.unit.probe.samples import GOOD, HERE, NAT, NO_RELAY, RELAY, TURN, URI

NOTHING = NotTested(reason="no server outside this host")
EMPTY = Report(
    interfaces=(),
    candidates=(),
    udp={4: NOTHING, 6: NOTHING},
    reflexive=(),
    nat=NatReport(port_preservation=NOTHING, allocation=NOTHING),
    layers=NOTHING,
)
KEYS = {
    "schema",
    "interfaces",
    "candidates",
    "udp",
    "reflexive",
    "nat",
    "portmap",
    "relays",
    "nat64",
    "layers",
    "advice",
    "duration_ms",
}


def test_all_keys_are_always_there() -> None:
    for report in (GOOD, EMPTY):
        found = report.as_json()
        assert set(found) == KEYS
        assert set(found["udp"]) == {"ipv4", "ipv6"}
        assert set(found["nat"]) == {"mapping", "filtering", "port_preservation", "allocation", "evidence"}
        assert set(found["portmap"]) == {"pcp", "nat_pmp", "upnp"}
        for row in found["portmap"].values():
            assert set(row) == {"status", "external", "lifetime_s", "reason", "trust", "rtt_ms", "gateway"}
        assert {"prefix", "how"} <= set(found["nat64"])


def test_what_was_not_tested_says_so_with_a_reason() -> None:
    found = EMPTY.as_json()
    untested = [*found["udp"].values(), *found["portmap"].values(), *found["relays"], found["nat64"], found["layers"]]
    untested += [found["nat"]["port_preservation"], found["nat"]["allocation"]]
    assert [each["status"] for each in untested] == ["not-tested"] * len(untested)
    assert all(each["reason"] for each in untested)


def test_values_are_json_as_the_contract_writes_them() -> None:
    found = GOOD.as_json()
    assert json.loads(json.dumps(found)) == found
    assert found["schema"] == 1
    assert found["interfaces"][1] == {
        "name": "eth0",
        "addresses": ["192.168.1.2", "2001:db8::2"],
        "mtu": 1500,
        "kind": "ethernet",
    }
    assert found["reflexive"] == [{"address": f"{NAT}:5000", "server": URI, "rtt_ms": 12.346, "seen": 1}]
    assert found["nat"] == {
        "mapping": "EIM",
        "filtering": "APDF",
        "port_preservation": True,
        "allocation": "preserved",
        "evidence": [f"{URI} sees {HERE} as {NAT}:5000"],
    }
    assert (found["udp"]["ipv4"], found["layers"], found["duration_ms"]) == (True, 1, 2850.0)


def test_relays_are_rows_with_all_keys() -> None:
    keys = {"server", "transport", "status", "rtt_ms", "relayed", "relayed_all", "reason", "data_rtt_ms", "mobility"}
    (nobody,) = EMPTY.as_json()["relays"]
    assert set(nobody) == keys
    mobile = replace(RELAY, data_rtt_ms=1.2345, mobility=True)
    assert replace(GOOD, relays=(mobile, NO_RELAY)).as_json()["relays"] == [
        {
            "server": TURN,
            "transport": "udp",
            "status": "ok",
            "rtt_ms": 20.123,
            "relayed": "198.51.100.9:49152",
            "relayed_all": ["198.51.100.9:49152", "[2001:db8::9]:49153"],
            "reason": None,
            "data_rtt_ms": 1.234,
            "mobility": True,
        },
        {
            "server": TURN,
            "transport": "tcp",
            "status": "refused",
            "rtt_ms": None,
            "relayed": None,
            "relayed_all": [],
            "reason": "486 Allocation Quota Reached",
            "data_rtt_ms": None,
            "mobility": None,
        },
    ]


def test_the_words_for_mapping_and_filtering() -> None:
    """CLI.md: mapping EIM, ADM, APDM, none or unknown; filtering EIF, ADF, APDF or unknown."""

    def words(mapping: Mapping, filtering: Filtering) -> tuple[str, str]:
        found = replace(GOOD.nat, mapping=mapping, filtering=filtering).as_json()
        return found["mapping"], found["filtering"]

    assert [words(each, Filtering.EIF)[0] for each in Mapping] == ["EIM", "ADM", "APDM", "none", "unknown"]
    assert [words(Mapping.EIM, each)[1] for each in Filtering] == ["EIF", "ADF", "APDF", "unknown"]
