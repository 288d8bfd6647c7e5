"""The judge of our UPnP client, judged by messages written by hand from UPnP's specifications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress as Address
from tests.fakes.gateway import FakeGateway, HttpReply, Options, Xml

CLIENT = Address("192.168.1.2", 40000)
CLIENT6 = Address("2a0f:77::1", 40000)

# RFC 6886, 3.3: UDP, internal port 5000, suggested port 6000, an hour.
MAP_UDP = bytes.fromhex("0001 0000 1388 1770 00000e10")

IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"


def search(target: str = IGD, host: str = "192.168.1.1:1900") -> bytes:
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {host}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}", "", "")
    return "\r\n".join(lines).encode()


def searched(gateway: FakeGateway, **arguments: Any) -> list[dict[str, str]]:
    """The fields of all answers."""
    found = []
    for reply in gateway.answer_udp(search(**arguments), CLIENT, 1.0):
        first, *lines = reply.data.decode().split("\r\n")
        assert first == "HTTP/1.1 200 OK"
        assert lines[-2:] == ["", ""]
        found.append(dict(line.split(": ", 1) for line in lines[:-2]))
    return found


CONNECTION = "urn:schemas-upnp-org:service:WANIPConnection:2"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
ADD = {
    "NewRemoteHost": "",
    "NewExternalPort": "6000",
    "NewProtocol": "UDP",
    "NewInternalPort": "5000",
    "NewInternalClient": "192.168.1.2",
    "NewEnabled": "1",
    "NewPortMappingDescription": "iceagent",
    "NewLeaseDuration": "3600",
}
KEY = {"NewRemoteHost": "", "NewExternalPort": "6000", "NewProtocol": "UDP"}
NOTHING: dict[str, str] = {}


def soap(
    gateway: FakeGateway,
    action: str,
    arguments: Mapping[str, str] = NOTHING,
    *,
    path: str = "/ctl/IPConn",
    service: str = CONNECTION,
    source: Address | None = CLIENT,
    now: float = 100.0,
) -> HttpReply:
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{inside}</u:{action}></s:Body></s:Envelope>'
    )
    headers = (("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", f'"{service}#{action}"'))
    return gateway.answer_http("POST", path, headers, body.encode(), now, source=source)


def outputs(reply: HttpReply) -> dict[str, str]:
    assert reply.status == 200
    (response,) = ElementTree.fromstring(reply.body).findall("*/*")
    assert response.tag.endswith("Response")
    return {each.tag: each.text or "" for each in response}


def error_code(reply: HttpReply) -> int:
    assert reply.status == 500
    found = ElementTree.fromstring(reply.body).find(".//{urn:schemas-upnp-org:control-1-0}errorCode")
    assert found is not None
    assert found.text is not None
    return int(found.text)


def test_a_search_finds_the_gateway() -> None:
    gateway = FakeGateway()
    (found,) = searched(gateway)
    assert found["LOCATION"] == "http://192.168.1.1:5000/rootDesc.xml"
    assert (found["ST"], found["USN"]) == (IGD, f"uuid:{gateway.options.uuid}::{IGD}")
    assert len(searched(gateway, target="ssdp:all")) > 5
    assert searched(gateway, target="urn:schemas-upnp-org:device:InternetGatewayDevice:3") == []
    assert gateway.violations == []


def test_a_search_gets_what_the_faults_say() -> None:
    gateway = FakeGateway()
    faults = gateway.faults.ssdp
    faults.location, faults.without = "http://(null):49152/rootDesc.xml", frozenset({"ST", "EXT"})
    (found,) = searched(gateway)
    assert found["LOCATION"] == "http://(null):49152/rootDesc.xml"
    assert "ST" not in found
    faults.others = 1000
    assert len({each["LOCATION"] for each in searched(gateway)}) == 1001
    faults.ignores_unicast = True
    assert searched(gateway) == []
    group = Address("239.255.255.250", 1900)
    multicast = search(host="239.255.255.250:1900")
    assert len(gateway.answer_udp(multicast, CLIENT, 1.0, destination=group)) == 1001
    faults.ignores_multicast = True
    assert gateway.answer_udp(multicast, CLIENT, 1.0, destination=group) == []
    assert gateway.violations == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (search().replace(b'"', b""), "MAN is 'ssdp:discover'"),
        (search().replace(b"MX: 1", b"MX: 9"), "MX is '9'"),
        (search("internet gateway"), "ST is 'internet gateway'"),
        (search().replace(b"192.168.1.1", b"192.168.1.9"), "HOST is '192.168.1.9:1900'"),
        (search()[:-2], "it does not end with one empty line"),
        (search().replace(b"MX: 1", b"MX: 1\r\nMX: 1"), "MX twice"),
        (search().replace(b"MX: 1", b"MX=1"), "'MX=1' is no header field"),
        (search().replace(b"\r\n", b"\n"), "the first line is"),
    ],
)
def test_a_bad_search_is_a_violation(data: bytes, sentence: str) -> None:
    gateway = FakeGateway()
    gateway.answer_udp(data, CLIENT, 1.0)
    assert any(violation.startswith(f"upnp: M-SEARCH: {sentence}") for violation in gateway.violations)


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (Options(), ["InternetGatewayDevice:2", "WANIPConnection:2", "WANIPv6FirewallControl:1"]),
        (Options(igd_version=1), ["InternetGatewayDevice:1", "WANIPConnection:1"]),
        (Options(claims_v1=True), ["InternetGatewayDevice:1", "WANIPConnection:1", "WANIPv6FirewallControl:1"]),
        (Options(is_ppp=True, has_pinholes=False), ["InternetGatewayDevice:2", "WANPPPConnection:1"]),
    ],
)
def test_the_description_says_what_there_is(options: Options, types: list[str]) -> None:
    gateway = FakeGateway(options)
    reply = gateway.answer_http("GET", "/rootDesc.xml", {}, b"", 1.0)
    root = ElementTree.fromstring(reply.body)
    space = "{urn:schemas-upnp-org:device-1-0}"
    found = [each.text or "" for each in root.iter() if each.tag in (f"{space}deviceType", f"{space}serviceType")]
    kinds = [each.split(":", 3)[3] for each in found]
    assert [kind for kind in kinds if kind.split(":")[0] not in PASSED_OVER] == types
    for path in (each.text or "" for each in root.iter(f"{space}SCPDURL")):
        ElementTree.fromstring(gateway.answer_http("GET", path, {}, b"", 1.0).body)
    assert gateway.violations == []


PASSED_OVER = ("WANDevice", "WANConnectionDevice", "Layer3Forwarding", "WANCommonInterfaceConfig")


@pytest.mark.parametrize("xml", [Xml.EMPTY, Xml.HTML, Xml.TRUNCATED, Xml.NOT_UTF8])
def test_a_broken_description_is_no_xml(xml: Xml) -> None:
    gateway = FakeGateway()
    gateway.faults.http.xml = xml
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(gateway.answer_http("GET", "/rootDesc.xml", {}, b"", 1.0).body)


def test_a_description_may_be_huge_deep_or_explode() -> None:
    gateway = FakeGateway()
    bodies = {}
    for xml in Xml:
        gateway.faults.http.xml = xml
        bodies[xml] = gateway.answer_http("GET", "/rootDesc.xml", {}, b"", 1.0).body
    assert len(bodies[Xml.HUGE]) > 2_000_000
    assert bodies[Xml.DEEP].count(b"<a>") == 10_000
    assert bodies[Xml.ENTITY].count(b"<!ENTITY") == 10
    assert b"<!DOCTYPE root SYSTEM" in bodies[Xml.EXTERNAL_DTD]
    assert b"InternetGatewayDevice" not in bodies[Xml.NO_SERVICE]
    ElementTree.fromstring(bodies[Xml.UTF8_BOM])
    assert ElementTree.fromstring(bodies[Xml.NO_NAMESPACE]).tag == "root"


def test_a_port_mapping_is_made_shown_and_deleted() -> None:
    gateway = FakeGateway()
    assert outputs(soap(gateway, "AddPortMapping", ADD)) == {}
    entry = {name: ADD[name] for name in list(ADD)[3:]}
    assert outputs(soap(gateway, "GetSpecificPortMappingEntry", KEY)) == entry
    assert outputs(soap(gateway, "GetGenericPortMappingEntry", {"NewPortMappingIndex": "0"})) == ADD
    assert error_code(soap(gateway, "GetGenericPortMappingEntry", {"NewPortMappingIndex": "1"})) == 713
    assert outputs(soap(gateway, "DeletePortMapping", KEY)) == {}
    assert error_code(soap(gateway, "DeletePortMapping", KEY)) == 714
    assert error_code(soap(gateway, "GetSpecificPortMappingEntry", KEY)) == 714
    assert gateway.mappings == []
    assert gateway.violations == []


def test_a_port_of_another_host_is_a_conflict_or_another_port() -> None:
    gateway = FakeGateway()
    gateway.answer_udp(MAP_UDP, Address("192.168.1.3", 1), 1.0)
    assert error_code(soap(gateway, "AddPortMapping", ADD)) == 718
    assert outputs(soap(gateway, "AddAnyPortMapping", ADD)) == {"NewReservedPort": "6001"}
    assert error_code(soap(gateway, "DeletePortMapping", KEY)) == 606
    assert gateway.violations == ["upnp: 192.168.1.2 deletes a mapping to 192.168.1.3"]


def test_lease_0_is_a_week_on_an_igd_2_and_for_ever_on_an_igd_1() -> None:
    """RFC 6970, 4.1."""
    second = FakeGateway()
    soap(second, "AddPortMapping", ADD | {"NewLeaseDuration": "0"})
    assert outputs(soap(second, "GetSpecificPortMappingEntry", KEY))["NewLeaseDuration"] == "604800"
    first = FakeGateway(Options(igd_version=1))
    service = CONNECTION.replace(":2", ":1")
    soap(first, "AddPortMapping", ADD | {"NewLeaseDuration": "0"}, service=service)
    first.expire(1e9)
    assert len(first.mappings) == 1
    assert error_code(soap(first, "AddAnyPortMapping", ADD, service=service)) == 401
    assert first.violations == []


def test_actions_fail_as_the_faults_say() -> None:
    gateway = FakeGateway()
    faults = gateway.faults.soap
    faults.errors_once = {"AddPortMapping": [718, 0]}
    faults.permanent_only = 725
    assert error_code(soap(gateway, "AddPortMapping", ADD)) == 718
    assert error_code(soap(gateway, "AddPortMapping", ADD)) == 725
    assert outputs(soap(gateway, "AddPortMapping", ADD | {"NewLeaseDuration": "0"})) == {}
    faults.permanent_only, faults.same_ports_only = None, True
    assert error_code(soap(gateway, "AddPortMapping", ADD)) == 724
    faults.errors = {"": 501}
    assert error_code(soap(gateway, "GetStatusInfo")) == 501
    faults.errors = {}
    faults.arguments, faults.without = {"NewUptime": "<"}, frozenset({"NewLastConnectionError"})
    assert outputs(soap(gateway, "GetStatusInfo")) == {"NewConnectionStatus": "Connected", "NewUptime": "<"}
    faults.forgets_delete = True
    assert outputs(soap(gateway, "DeletePortMapping", KEY)) == {}
    assert len(gateway.mappings) == 1
    faults.body = b"?"
    assert soap(gateway, "GetStatusInfo").body == b"?"
    gateway.faults.http.control_status = 404
    assert soap(gateway, "GetStatusInfo").status == 404
    assert gateway.violations == []


def test_a_renewal_may_move_and_success_may_have_no_effect() -> None:
    gateway = FakeGateway()
    gateway.faults.mapping.is_renewed_elsewhere = True
    ports = [outputs(soap(gateway, "AddAnyPortMapping", ADD))["NewReservedPort"] for _ in range(2)]
    assert ports == ["6000", "6001"]
    assert len(gateway.mappings) == 1
    gateway.restart(200.0)
    gateway.faults.mapping.has_no_effect = True
    assert outputs(soap(gateway, "AddPortMapping", ADD)) == {}
    assert gateway.mappings == []


def test_of_two_connections_one_is_down() -> None:
    gateway = FakeGateway()
    gateway.faults.soap.has_dead_twin = True
    dead: dict[str, Any] = {"path": "/ctl/dead", "service": "urn:schemas-upnp-org:service:WANPPPConnection:1"}
    assert outputs(soap(gateway, "GetStatusInfo", **dead))["NewConnectionStatus"] == "Disconnected"
    assert error_code(soap(gateway, "AddPortMapping", ADD, **dead)) == 501
    assert outputs(soap(gateway, "GetStatusInfo"))["NewConnectionStatus"] == "Connected"
    assert gateway.violations == []


@pytest.mark.parametrize(
    ("control_url", "url_base", "target"),
    [
        ("ctl", None, "/ctl"),
        ("http://192.168.1.1:5000/a?b=c", None, "/a?b=c"),
        ("ctl", "http://192.168.1.1:5000/igd/", "/igd/ctl"),
        ("/ctl", "http://192.168.1.1:5000/igd/", "/ctl"),
    ],
)
def test_control_urls_are_relative_to_the_description_or_its_base(
    control_url: str, url_base: str | None, target: str
) -> None:
    gateway = FakeGateway()
    gateway.faults.http.control_url, gateway.faults.http.url_base = control_url, url_base
    outputs(soap(gateway, "GetStatusInfo", path=target))
    assert gateway.violations == []


def test_pinholes_open_change_and_close() -> None:
    gateway = FakeGateway()
    way: dict[str, Any] = {"path": "/ctl/IP6FCtl", "service": FIREWALL, "source": CLIENT6}
    add = {"RemoteHost": "", "RemotePort": "0", "InternalClient": CLIENT6.host, "InternalPort": "5000"}
    add |= {"Protocol": "17", "LeaseTime": "3600"}
    assert outputs(soap(gateway, "AddPinhole", add, **way)) == {"UniqueID": "1"}
    assert gateway.mappings[0].internal == Address(CLIENT6.host, 5000)
    assert outputs(soap(gateway, "UpdatePinhole", {"UniqueID": "1", "NewLeaseTime": "60"}, **way)) == {}
    assert gateway.mappings[0].expires_at == 160.0
    assert outputs(soap(gateway, "DeletePinhole", {"UniqueID": "1"}, **way)) == {}
    assert error_code(soap(gateway, "DeletePinhole", {"UniqueID": "1"}, **way)) == 704
    assert gateway.violations == []
    assert error_code(soap(gateway, "AddPinhole", add, **(way | {"source": CLIENT}))) == 606
    assert gateway.violations == [f"upnp: 192.168.1.2 asks for a mapping to {CLIENT6.host}"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"NewExternalPort": "0"}, 716),
        ({"NewExternalPort": "70000"}, 402),
        ({"NewInternalPort": "05000"}, 402),
        ({"NewProtocol": "udp"}, 402),
        ({"NewInternalClient": "192.168.1.7"}, 606),
        ({"NewInternalClient": "my-host"}, 402),
        ({"NewPortMappingDescription": "a&amp;b"}, 0),
        ({"NewRemoteHost": "192.0.2.1"}, 0),
        ({"NewEnabled": "true"}, 0),
        ({"NewMore": "1"}, 402),
    ],
)
def test_bad_arguments_are_violations(change: dict[str, str], code: int) -> None:
    gateway = FakeGateway()
    reply = soap(gateway, "AddPortMapping", ADD | change)
    assert (error_code(reply) if code else reply.status) == (code or 200)
    assert len(gateway.violations) == 1


def test_the_order_of_arguments_and_the_headers_are_judged() -> None:
    gateway = FakeGateway()
    assert error_code(soap(gateway, "DeletePortMapping", dict(reversed(KEY.items())))) == 402
    assert error_code(soap(gateway, "GetStatusInfo", service=CONNECTION.replace(":2", ":1"))) == 401
    assert gateway.answer_http("POST", "/ctl/IPConn", {}, b"", 1.0).status == 500
    assert gateway.answer_http("GET", "/", {}, b"", 1.0).status == 404
    assert gateway.answer_http("PUT", "/rootDesc.xml", {}, b"", 1.0).status == 405
    assert len(gateway.violations) == 6


def test_without_an_external_address_there_is_no_mapping() -> None:
    """What miniupnpd says."""
    gateway = FakeGateway(Options(external_host=""))
    assert error_code(soap(gateway, "AddPortMapping", ADD)) == 501
    assert outputs(soap(gateway, "GetExternalIPAddress")) == {"NewExternalIPAddress": ""}
    assert gateway.violations == []


def test_an_igd_2_that_claims_to_be_a_1_can_what_a_2_can() -> None:
    gateway = FakeGateway(Options(claims_v1=True))
    service = CONNECTION.replace(":2", ":1")
    assert outputs(soap(gateway, "AddAnyPortMapping", ADD, service=service)) == {"NewReservedPort": "6000"}
    assert gateway.violations == []


def test_who_deletes_a_shared_rule_by_upnp_deletes_it_for_natpmp() -> None:
    gateway = FakeGateway()
    gateway.answer_udp(MAP_UDP, CLIENT, 1.0)
    assert outputs(soap(gateway, "DeletePortMapping", KEY, now=1.0)) == {}
    assert gateway.mappings == []


@given(st.binary(max_size=60), st.booleans())
def test_no_body_breaks_the_gateway(body: bytes, is_control: bool) -> None:
    gateway = FakeGateway()
    headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{CONNECTION}#GetStatusInfo"'}
    target = "/ctl/IPConn" if is_control else "/"
    assert gateway.answer_http("POST", target, headers, body, 1.0).status == (500 if is_control else 404)
    assert gateway.violations
