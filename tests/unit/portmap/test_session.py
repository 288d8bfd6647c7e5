"""Which protocol maps, and what happens when it does not? Against the fake gateway, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import GatewayRestarted, Mapped, MappingLost, NoMapping, Unmapped
from portmap.session import GRACE_S, MAX_MAPPINGS
from portmap.upnp import MappingsListed
from portmap.values import PROTOCOLS, ProtocolName
from tests.fakes.gateway import FakeGateway
from tests.fakes.gateway.faults import LOCATIONS, Delivery, Xml
from tests.fakes.gateway.state import Options
from tests.unit.portmap.session_kit import Bench


def gateway(*protocols: ProtocolName, **options: object) -> FakeGateway:
    chosen = Options(protocols=frozenset(protocols or PROTOCOLS), **options)  # type: ignore[arg-type]
    return FakeGateway(chosen, now=1000.0, epoch=5000)


# --- which one maps --------------------------------------------------------------------------------------------------


def test_pcp_maps_where_all_three_are_spoken_and_it_takes_two_round_trips() -> None:
    bench = Bench(gateway())
    bench.map()
    took, mapped = bench.until(Mapped)
    assert (mapped.protocol, mapped.key, mapped.external) == ("pcp", 1, TransportAddress("11.22.33.44", 6000))
    assert took < 0.01
    bench.run(10.0)
    assert len(bench.gateway.mappings) == 1 and not bench.gateway.violations


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_that_is_alone_maps(name: ProtocolName) -> None:
    bench = Bench(gateway(name))
    bench.map()
    took, mapped = bench.until(Mapped)
    assert mapped.protocol == name
    assert took < 0.2, "the others' probe time is not waited for"
    assert not bench.gateway.violations


def test_a_better_protocol_has_50_ms_after_the_first_answer() -> None:
    """NAT-PMP answers at once, PCP 40 ms later: PCP maps; 60 ms later: it does not."""
    for delay_s, expected in ((0.040, "pcp"), (0.060, "nat-pmp")):
        bench = Bench(gateway("pcp", "nat-pmp"))
        bench.gateway.faults.pcp.delay_s = delay_s
        bench.map()
        _, mapped = bench.until(Mapped)
        assert mapped.protocol == expected
        bench.run(5.0)
        assert [each.protocols for each in bench.gateway.mappings] == [{expected}]
    assert GRACE_S == 0.05


def test_when_the_best_one_refuses_the_next_one_maps() -> None:
    bench = Bench(gateway())
    bench.gateway.faults.pcp.result = 2
    bench.map()
    _, mapped = bench.until(Mapped)
    assert mapped.protocol == "nat-pmp"
    bench.gateway.faults.natpmp.result = 2
    bench.map(2, port=6001)
    _, second = bench.until(Mapped)
    assert (second.key, second.protocol) == (2, "upnp")
    assert "MappingLost" not in bench.kinds()


def test_one_that_falls_silent_when_it_is_to_map_is_left_after_its_probe_time_and_nothing_is_deleted() -> None:
    """Its answers are lost, but it has made the mapping: on many routers that rule is the next protocol's as well."""
    bench = Bench(gateway("pcp", "nat-pmp"))
    bench.map()
    bench.gateway.faults.pcp.lose = 100
    took, mapped = bench.until(Mapped)
    assert mapped.protocol == "nat-pmp" and 0.7 < took < 0.9
    bench.run(60.0)
    assert bench.gateway.mappings, "nobody deleted the rule that both share"
    assert bench.kinds().count("Mapped") == 1


@pytest.mark.parametrize("name", ["pcp", "nat-pmp"])
def test_what_was_made_without_an_answer_is_deleted_when_nobody_wants_it_any_more(name: ProtocolName) -> None:
    """Else a port stays open, for an hour, for somebody who was told that it is not."""
    bench = Bench(gateway(name))
    bench.map()
    faults = bench.gateway.faults.pcp if name == "pcp" else bench.gateway.faults.natpmp
    faults.lose = 100
    bench.until(NoMapping)
    assert bench.gateway.mappings, "it was made, and the answers are lost"
    assert bench.unmap()
    took, _ = bench.until(Unmapped)
    assert took <= 0.5 and not bench.gateway.mappings


def test_who_was_refused_has_nothing_to_delete() -> None:
    bench = Bench(gateway("pcp", "nat-pmp", external_host=""))
    bench.map()
    bench.until(NoMapping)
    assert not bench.unmap()


def test_nothing_here_is_known_within_a_second_and_a_half() -> None:
    bench = Bench(None)
    bench.map()
    took, nothing = bench.until(NoMapping)
    assert took <= 1.5
    assert set(nothing.reasons) == set(PROTOCOLS) and all(nothing.reasons.values())


def test_a_port_that_is_closed_says_so_at_once() -> None:
    bench = Bench(gateway("upnp"))
    bench.gateway.faults.closed_ports.add(5351)
    bench.map(protocols=("pcp", "nat-pmp"))
    took, nothing = bench.until(NoMapping)
    assert took < 0.05 and set(nothing.reasons.values()) == {"its port 5351 is closed"}


def test_a_router_behind_a_private_network_refuses_in_all_three_and_each_says_why() -> None:
    """It answers ANNOUNCE: only a real mapping tells."""
    bench = Bench(gateway(external_host=""))
    bench.map()
    _, nothing = bench.until(NoMapping)
    assert nothing.reasons["pcp"].startswith("8 NO_RESOURCES")
    assert nothing.reasons["nat-pmp"].startswith("3 ")
    assert nothing.reasons["upnp"].startswith("501")


def test_all_are_asked_again_later_and_later_until_one_maps() -> None:
    bench = Bench(gateway(external_host=""))
    bench.map()
    bench.run(600.0)
    times = [at for at, event in bench.events if isinstance(event, NoMapping)]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) >= 4 and all(gap >= 29.0 for gap in gaps) and gaps == sorted(gaps)
    bench.gateway.options.external_host = "11.22.33.44"
    _, mapped = bench.until(Mapped, 1000.0)
    assert mapped.key == 1


def test_a_change_of_the_network_asks_at_once() -> None:
    bench = Bench(gateway(external_host=""))
    bench.map()
    bench.until(NoMapping)
    bench.gateway.options.external_host = "11.22.33.44"
    bench.refresh()
    took, _ = bench.until(Mapped)
    assert took < 0.1


def test_what_is_known_of_a_gateway_is_not_asked_again() -> None:
    bench = Bench(gateway())
    bench.map()
    bench.until(Mapped)
    bench.run(2.0)
    before = len(bench.gateway.requests)
    bench.map(2, port=6001)
    took, _ = bench.until(Mapped)
    assert took < 0.01
    assert [each.kind for each in bench.gateway.requests[before:]] == ["MAP"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_that_is_known_to_be_spoken_is_asked_at_once(name: ProtocolName) -> None:
    bench = Bench(gateway())
    bench.map()
    bench.run(5.0)
    bench.map(2, port=6001, protocols=(name,))
    took, mapped = bench.until(Mapped)
    assert (mapped.protocol, mapped.key) == (name, 2) and took < 0.05


# --- life ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_mapping_lasts_a_day_and_is_deleted_in_the_end(name: ProtocolName) -> None:
    bench = Bench(gateway(name))
    bench.map()
    bench.until(Mapped)
    for _ in range(24):
        bench.run(3600.0)
        assert [each.protocols for each in bench.gateway.mappings] == [{name}]
    assert "MappingLost" not in bench.kinds() and not bench.gateway.violations
    assert bench.unmap()
    took, unmapped = bench.until(Unmapped)
    assert unmapped.is_confirmed and took <= 0.5
    assert not bench.gateway.mappings
    bench.run(7200.0)
    assert not bench.gateway.mappings and bench.session.poll_timeout() is None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_deleting_ends_within_half_a_second_though_the_gateway_hangs(name: ProtocolName) -> None:
    bench = Bench(gateway(name))
    bench.map()
    bench.until(Mapped)
    bench.is_there = False
    bench.unmap()
    took, unmapped = bench.until(Unmapped)
    assert took <= 0.5 and not unmapped.is_confirmed


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.01])
def test_what_is_deleted_while_it_is_being_made_is_not_left_behind(name: ProtocolName, after_s: float) -> None:
    bench = Bench(gateway(name))
    bench.map()
    bench.run(after_s)
    bench.unmap()
    bench.run(30.0)
    assert not bench.gateway.mappings


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_restart_that_loses_everything_is_noticed_and_mended(name: ProtocolName) -> None:
    bench = Bench(gateway(name))
    bench.map()
    bench.until(Mapped)
    bench.run(100.0)
    bench.gateway.restart(bench.now)
    bench.run(1900.0)
    assert len(bench.gateway.mappings) == 1
    assert "GatewayRestarted" in bench.kinds() or "MappingLost" in bench.kinds()


def test_a_restart_that_pcp_notices_is_news_to_upnp() -> None:
    """Which had a mapping because PCP refused."""
    bench = Bench(gateway("pcp", "upnp"))
    bench.gateway.faults.pcp.result = 2
    bench.map()
    _, mapped = bench.until(Mapped)
    assert mapped.protocol == "upnp"
    bench.gateway.faults.pcp.result = 0
    bench.map(2, port=6001, protocols=("pcp",))
    bench.run(3600.0)
    bench.gateway.restart(bench.now)
    bench.refresh()
    bench.until(GatewayRestarted)
    bench.run(5.0)
    assert {each.internal.port for each in bench.gateway.mappings} == {6000, 6001}


def test_another_gateway_in_the_place_of_the_old_one_maps_by_what_it_speaks() -> None:
    bench = Bench(gateway("pcp"))
    bench.map()
    bench.until(Mapped)
    bench.gateway = gateway("upnp")
    _, _lost = bench.until(MappingLost, 4000.0)
    _, mapped = bench.until(Mapped)
    assert mapped.protocol == "upnp"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_another_external_address_is_told(name: ProtocolName) -> None:
    bench = Bench(gateway(name))
    bench.map()
    bench.until(Mapped)
    bench.gateway.change_external_host("11.22.33.99", bench.now)
    for _ in range(800):
        bench.run(5.0)
        hosts = [event.external.host for _, event in bench.events if isinstance(event, Mapped)]
        if hosts[-1] == "11.22.33.99":
            return
    raise AssertionError("nobody noticed within an hour")


def test_the_list_of_a_gateway_that_is_not_known_yet() -> None:
    bench = Bench(gateway())
    bench.map()
    bench.until(Mapped)
    bench.ask_for_list()
    _, listed = bench.until(MappingsListed)
    assert [each.external_port for each in listed.mappings] == [6000] and listed.reason is None


def test_there_are_only_so_many_mappings() -> None:
    bench = Bench(None)
    for key in range(MAX_MAPPINGS):
        bench.map(key + 1, port=1024 + key)
    with pytest.raises(ValueError, match="256 mappings"):
        bench.map(MAX_MAPPINGS + 1)


# --- faults ----------------------------------------------------------------------------------------------------------


def _set(what: str, name: str, value: object) -> Callable[[FakeGateway], None]:
    def turn(fake: FakeGateway) -> None:
        assert hasattr(getattr(fake.faults, what), name)
        setattr(getattr(fake.faults, what), name, value)

    return turn


_UDP_FAULTS = {
    "is_silent": True,
    "lose": 1,
    "delay_s": 0.3,
    "copies": 3,
    "from_host": "192.168.1.77",
    "from_port": 5352,
    "length": 7,
    "garbage": b"\x02\x81garbage",
    "version": 1,
    "opcode": 5,
    "is_nonce_wrong": True,
    "internal_port": 1,
    "transport": 99,
    "is_error_short": True,
}
_SWITCHES = {
    **{f"pcp {name}": _set("pcp", name, value) for name, value in _UDP_FAULTS.items()},
    **{f"nat-pmp {name}": _set("natpmp", name, value) for name, value in _UDP_FAULTS.items()},
    **{f"pcp result {code}": _set("pcp", "result", code) for code in range(1, 15)},
    **{f"nat-pmp result {code}": _set("natpmp", "result", code) for code in range(1, 8)},
    **{f"location {name}": _set("ssdp", "location", text) for name, text in LOCATIONS.items()},
    **{f"description {each.name}": _set("http", "description", each) for each in Delivery},
    **{f"control {each.name}": _set("http", "control", each) for each in Delivery},
    "http status": _set("http", "status", 500),
    "http redirect": _set("http", "redirect", "http://192.0.2.99/rootDesc.xml"),
    "http control status": _set("http", "control_status", 404),
    "http control elsewhere": _set("http", "control_url", "http://192.0.2.99/ctl"),
    "http base elsewhere": _set("http", "url_base", "http://192.0.2.99/"),
    "ssdp ignores unicast": _set("ssdp", "ignores_unicast", True),
    "ssdp flood": _set("ssdp", "others", 1000),
    "ssdp copies": _set("ssdp", "copies", 5),
    "ssdp from a neighbour": _set("ssdp", "from_host", "192.168.1.77"),
    "ssdp from far away": _set("ssdp", "from_host", "192.0.2.99"),
    "ssdp garbage": _set("ssdp", "garbage", b"HTTP/1.1 200 OK\r\nLOCATION"),
    "soap permanent only": _set("soap", "permanent_only", 725),
    "soap permanent only as 402": _set("soap", "permanent_only", 402),
    "soap same ports only": _set("soap", "same_ports_only", True),
    "soap wildcard only": _set("soap", "wildcard_only", True),
    "soap not connected": _set("soap", "status", "Disconnected"),
    "soap dead twin": _set("soap", "has_dead_twin", True),
    "soap garbage": _set("soap", "body", b"<a><b>"),
    "soap forgets deletions": _set("soap", "forgets_delete", True),
    **{
        f"soap {code}": _set("soap", "errors", {"AddAnyPortMapping": code, "AddPortMapping": code})
        for code in (402, 501, 606, 718, 724, 725, 726, 727, 728, 729)
    },
    **{f"xml {xml.name}": _set("http", "xml", xml) for xml in Xml},
}


@pytest.mark.parametrize("fault", _SWITCHES)
def test_with_any_fault_of_one_protocol_another_maps(fault: str) -> None:
    """Within the first one's probe times, and nothing of ours goes anywhere but to the gateway."""
    bench = Bench(gateway())
    _SWITCHES[fault](bench.gateway)
    bench.map()
    took, mapped = bench.until(Mapped)
    assert took < 3.0
    if not fault.startswith(("pcp", "nat-pmp")):
        assert mapped.protocol == "pcp"
    bench.run(120.0)
    assert not bench.gateway.violations
    assert {fetch.server.host for fetch in bench.fetched} <= {"192.168.1.1"}
    bench.unmap()
    took, _ = bench.until(Unmapped)
    assert took <= 0.5


@pytest.mark.parametrize("fault", _SWITCHES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_with_any_fault_and_nobody_else_there_is_an_end(fault: str, name: ProtocolName) -> None:
    """A mapping, or a reason; and both within a few seconds."""
    bench = Bench(gateway(name))
    _SWITCHES[fault](bench.gateway)
    bench.map()
    for _ in range(2000):
        bench.run(0.005)
        outcome = [event for _, event in bench.events if isinstance(event, Mapped | NoMapping)]
        if outcome:
            break
    assert outcome, bench.kinds()
    if isinstance(outcome[0], NoMapping):
        assert all(outcome[0].reasons.values())
    bench.run(300.0)
    assert not bench.gateway.violations


def test_who_needs_one_badly_is_asked_twice_a_minute_though_all_refused() -> None:
    """A router whose port mapping is switched on later would be found after half an hour at worst."""

    def asked_until(is_urgent: bool) -> tuple[int, float]:
        bench = Bench(gateway(external_host=""))
        bench.map()
        for _ in range(120):
            bench.run(10.0)
            if is_urgent:
                bench.ask_again()
        refused = bench.kinds().count("NoMapping")
        bench.gateway.change_external_host("203.0.113.9", bench.now)
        if is_urgent:
            bench.ask_again()
        took, _ = bench.until(Mapped, 3600.0)
        return refused, took

    patient, urgent = asked_until(is_urgent=False), asked_until(is_urgent=True)
    assert patient[0] <= 7 and patient[1] > 600.0
    assert 38 <= urgent[0] <= 41 and urgent[1] <= 31.0
