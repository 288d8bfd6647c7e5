"""What a probe makes of what routers say to port mapping."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iceagent import Config
from iceagent.nat.kinds import Mapping
from iceagent.net.address import TransportAddress
from iceagent.probe.advice import advise
from iceagent.probe.changes import changes
from iceagent.probe.portmap import NO_ROUTER, ask_routers, portmap_json
from iceagent.probe.render import lines
from iceagent.probe.report import NotTested
from iceagent.probe.verdict import Outlook, layers, outlook
from portmap import Gateway, GatewayReport, ProtocolReport, Trust
from portmap.report import Status
from portmap.values import trust_of
from tests.fakes.gateway.faults import Delivery
from tests.shell.test_portmap import Home
from tests.shell.world import World, in_virtual_time
from tests.unit.probe.samples import EASY, GOOD, HERE, NAT, sight
from tests.unit.probe.test_verdict import A1, findings

GATEWAY = Gateway(host="192.168.1.1", interface="eth0", index=2, source="192.168.1.2", network="192.168.1.0/24")
HARD = replace(EASY, mapping=Mapping.APDM, is_dependent=True)


def reports(status: Status = "ok", external: str | None = NAT, reason: str = "") -> tuple[GatewayReport, ...]:
    """A router that does one of the three, at this address."""
    row = ProtocolReport(
        protocol="pcp",
        status=status,
        external=None if external is None else TransportAddress(external, 6000),
        lifetime_s=120 if status == "ok" else None,
        trust=trust_of(external) if status == "ok" else Trust.UNKNOWN,
        reason=reason,
    )
    silent = (
        replace(row, protocol="nat-pmp", status="no-answer", external=None, reason="no answer within 0.75 s"),
        replace(row, protocol="upnp", status="no-answer", external=None, reason="no gateway answered"),
    )
    return (GatewayReport(gateway=GATEWAY, protocols=(row, *silent)),)


# The samples' outside is of a documentation network, which nobody would reach.
OUTSIDE = "11.22.33.44"
SEEN = replace(GOOD, reflexive=(replace(GOOD.reflexive[0], address=TransportAddress(OUTSIDE, 5000)),))


def test_a_mapping_makes_a_hard_nat_one_that_can_be_reached_directly() -> None:
    hard = replace(SEEN, nat=HARD)
    assert outlook(hard) is Outlook.RELAY
    mapped = replace(hard, portmap=reports(external=OUTSIDE))
    assert outlook(mapped) is Outlook.DIRECT
    assert advise(mapped) == ("There is nothing to do.",)


@pytest.mark.parametrize("external", ["11.22.33.99", "100.64.0.7", "192.168.178.2", None])
def test_one_at_an_address_that_the_outside_does_not_see_does_not(external: str | None) -> None:
    report = replace(SEEN, nat=HARD, portmap=reports(external=external))
    assert outlook(report) is Outlook.RELAY
    words = "does not know its address outside" if external is None else "there is another NAT in front of it"
    assert any(words in sentence for sentence in advise(report))


def test_where_a_mapping_would_help_and_no_router_gives_one_it_is_said_what_each_said() -> None:
    refused = reports("refused", None, "2 NOT_AUTHORIZED")
    (sentence,) = (each for each in advise(replace(SEEN, nat=HARD, portmap=refused)) if "No router maps" in each)
    assert "pcp: 2 NOT_AUTHORIZED; nat-pmp: no answer within 0.75 s; upnp: no gateway answered" in sentence
    assert advise(replace(SEEN, portmap=refused)) == ("There is nothing to do.",)


def test_nats_behind_a_router_with_a_private_outside_are_two() -> None:
    nobody = NotTested(reason="no router was asked")
    seen = sight(A1, f"{OUTSIDE}:5000")
    assert layers(findings(seen), reports(external=OUTSIDE)) == 1
    assert layers(findings(seen), reports(external="100.64.0.7")) == 2
    assert layers(findings(seen), reports(external="44.33.22.11")) == 2
    assert layers(findings(seen), reports("refused", None)) == layers(findings(seen), nobody) == 1
    assert layers(findings(sight(A1, HERE)), reports(external="44.33.22.11")) == 0
    assert layers(findings(), reports(external="10.0.0.7")) == 2, "nobody outside need be asked for that"


def test_rows_in_the_report_and_on_the_screen() -> None:
    report = replace(GOOD, portmap=reports(external=OUTSIDE))
    row = report.as_json()["portmap"]["pcp"]
    assert (row["status"], row["external"], row["lifetime_s"], row["gateway"]) == (
        "ok",
        f"{OUTSIDE}:6000",
        120,
        "192.168.1.1",
    )
    assert report.as_json()["portmap"]["nat_pmp"]["reason"] == "no answer within 0.75 s"
    text = lines(report)
    at = text.index("Port mapping")
    assert text[at + 2].split() == ["192.168.1.1", "pcp", "ok", f"{OUTSIDE}:6000", "120", "s"]
    assert not any("port mapping" in line for line in text)


def test_a_router_that_changes_its_mind_is_a_change() -> None:
    old, new = replace(GOOD, portmap=reports(external=OUTSIDE)), replace(GOOD, portmap=reports("refused", None, "2 NO"))
    assert changes(old, new) == (f"port mapping pcp at 192.168.1.1: ok {OUTSIDE} → refused 2 NO",)


def test_of_two_routers_the_one_that_does_more_is_told() -> None:
    rows = portmap_json((*reports("refused", None, "2 NO"), *reports(external=OUTSIDE)))
    assert rows["pcp"]["status"] == "ok"
    assert {row["reason"] for row in portmap_json(()).values()} == {NO_ROUTER}


@in_virtual_time
async def test_the_routers_are_asked_as_configured() -> None:
    home = Home(World())

    async def ask(**config: object) -> tuple[GatewayReport, ...] | str:
        return await ask_routers(home.inside, Config(**config), 5.0, rng=home.world.rng, system_rng=home.world.rng)  # type: ignore[arg-type]

    async with home.shell():
        found = await ask()
        assert not isinstance(found, str) and [row.status for row in found[0].protocols] == ["ok"] * 3
        asked = len(home.gateway.requests)
        assert await ask(portmap=False) == "port mapping is switched off"
        assert await ask(interface_filter=lambda interface: interface.name == "wlan0") == ()
        assert await ask(bind_hosts=("127.0.0.1",)) == ()
        assert await ask(ipv4=False) == ()
        assert len(home.gateway.requests) == asked


@in_virtual_time
async def test_a_router_that_is_slow_does_not_hold_up_the_probe() -> None:
    home = Home(World())
    home.gateway.faults.http.control = Delivery.DRIP
    async with home.shell():
        started = home.world.now
        found = await ask_routers(home.inside, Config(), 0.5, rng=home.world.rng, system_rng=home.world.rng)
        assert found == "the routers took longer than 0.5 s"
        assert home.world.now - started < 1.5
