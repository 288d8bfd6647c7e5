"""How a gateway is searched for, what an answer says, and which LOCATION is followed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from portmap.upnp.ssdp import BadReply, is_ssdp, parse_reply, search
from portmap.upnp.urls import BadUrl, Url, is_neighbour, parse_url, resolve_url, vet_location
from portmap.values import Gateway
from tests.unit.portmap.upnp_kit import GATEWAY, GATEWAY_6, IGD, reply

PUBLIC = Gateway(host="20.0.1.1", interface="eth0", index=2, source="20.0.1.10", network="20.0.1.0/24")
BASE = Url(TransportAddress("192.168.1.1", 5000), "/desc/root.xml?a=b")


# --- searching and answering -----------------------------------------------------------------------------------------


def test_a_search_is_what_the_device_architecture_says() -> None:
    """UDA 1.1, 1.3.2; MX is there in a unicast search as well."""
    assert search(IGD, 4) == (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    assert b"\r\nHOST: [FF02::C]:1900\r\n" in search(IGD, 6)


def test_an_answer_names_the_place_of_the_description() -> None:
    read = parse_reply(reply("http://192.168.1.1:5000/rootDesc.xml"))
    assert (read.location, read.names_gateway) == ("http://192.168.1.1:5000/rootDesc.xml", True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\nlocation:http://192.168.1.1/\nst:urn:schemas-upnp-org:device:InternetGatewayDevice:2\n\n",
        b"HTTP/1.0 200\r\nUsn: uuid:x::urn:schemas-upnp-org:service:WANIPConnection:1\r\n"
        b"LOCATION:  http://192.168.1.1/ ",
        b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:service:WANPPPConnection:1\r\nLocation: http://192.168.1.1/\r\n"
        b"Location: http://evil/\r\nno colon here\r\n\xff\xfe: \xff\r\n\r\nLOCATION: http://other/",
    ],
)
def test_an_answer_may_be_written_carelessly(data: bytes) -> None:
    read = parse_reply(data)
    assert (read.location, read.names_gateway) == ("http://192.168.1.1/", True)


def test_an_answer_without_st_names_nothing() -> None:
    read = parse_reply(b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/\r\nUSN: uuid:1234\r\n\r\n")
    assert not read.names_gateway


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an answer to a search"),
        (b"NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n", "not an answer to a search"),
        (b"HTTP/1.1 404 Not Found\r\nLOCATION: http://192.168.1.1/\r\n\r\n", "not an answer to a search"),
        (b"HTTP/1.1 200 OK\r\nST: " + IGD.encode() + b"\r\n\r\n", "SSDP answer without LOCATION"),
        (reply(target="urn:schemas-upnp-org:device:MediaServer:1"), "SSDP answer of another device"),
        (reply("http://192.168.1.1/" + "a" * 5000), "SSDP message too long"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100, "SSDP message has too many lines"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadReply) as caught:
        parse_reply(data)
    assert str(caught.value) == why


def test_ssdp_is_told_from_the_other_protocols_of_the_socket() -> None:
    assert is_ssdp(reply())
    assert is_ssdp(b"NOTIFY * HTTP/1.1\r\n")
    assert not is_ssdp(b"\x00\x80\x00\x00")
    assert not is_ssdp(b"\x02\x81" + bytes(22))
    assert not is_ssdp(b"")


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://192.168.1.1:5000/rootDesc.xml", "192.168.1.1", 5000, "/rootDesc.xml"),
        ("HTTP://192.168.1.1", "192.168.1.1", 80, "/"),
        ("http://192.168.1.1:/a?b=c#d", "192.168.1.1", 80, "/a?b=c"),
        ("http://192.168.1.1?x", "192.168.1.1", 80, "/?x"),
        ("  http://[2001:DB8::1]:5000/d\r\n", "2001:db8::1", 5000, "/d"),
    ],
)
def test_a_url_is_a_server_and_a_target(text: str, host: str, port: int, target: str) -> None:
    assert parse_url(text) == Url(TransportAddress(host, port), target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/rootDesc.xml",
        "192.168.1.1/rootDesc.xml",
        "https://192.168.1.1/",
        "ftp://192.168.1.1/",
        "file:///etc/passwd",
        "http://router.local/",
        "http://(null):49152/",
        "http://localhost/",
        "http://192.168.1.1:0/",
        "http://192.168.1.1:65536/",
        "http://192.168.1.1:-1/",
        "http://192.168.1.1:٣/",
        "http://192.168.1.1:80:80/",
        "http://user@192.168.1.1/",
        "http://192.168.1/",
        "http://3232235777/",
        "http://0300.0250.1.1/",
        "http://192.168.1.1.evil.example/",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "http://[192.168.1.1]/",
        "http://2001:db8::1/",
        "http:///",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/\r\nHost: evil",
        "http://192.168.1.1/" + "a" * 600,
    ],
)
def test_only_http_to_an_ip_address_is_a_url(text: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(text)


@pytest.mark.parametrize(
    ("reference", "resolved"),
    [
        ("/ctl/IPConn", "http://192.168.1.1:5000/ctl/IPConn"),
        ("ctl", "http://192.168.1.1:5000/desc/ctl"),
        ("control?WANIPConnection:1", "http://192.168.1.1:5000/desc/control?WANIPConnection:1"),
        ("?x", "http://192.168.1.1:5000/desc/root.xml?x"),
        ("http://192.168.1.1:5001/ctl", "http://192.168.1.1:5001/ctl"),
        ("//192.168.1.1/ctl", "http://192.168.1.1:80/ctl"),
        ("/ctl?u=http://x/", "http://192.168.1.1:5000/ctl?u=http://x/"),
    ],
)
def test_a_reference_stays_on_the_host(reference: str, resolved: str) -> None:
    assert str(resolve_url(BASE, reference)) == resolved


@pytest.mark.parametrize(
    "reference",
    ["", "http://192.168.1.2/ctl", "//192.168.1.2/ctl", "https://192.168.1.1/ctl", "http://8.8.8.8/", "a b", "a" * 513],
)
def test_a_reference_to_another_host_is_refused(reference: str) -> None:
    with pytest.raises(BadUrl):
        resolve_url(BASE, reference)


# --- LOCATION --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "sender", "gateway"),
    [
        ("http://192.168.1.1:5000/", "192.168.1.1", GATEWAY),
        # A gateway with a floating address answers from its own (tailscale#5502).
        ("http://192.168.1.2:5000/", "192.168.1.2", GATEWAY),
        ("http://192.168.1.1:5000/", "192.168.1.2", GATEWAY),
        ("http://20.0.1.1/", "20.0.1.1", PUBLIC),
        ("http://[2001:db8:1::1]:5000/", "fe80::1", GATEWAY_6),
        ("http://[2001:db8:1::1]:5000/", "2001:db8:1::1", GATEWAY_6),
    ],
)
def test_a_location_on_the_gateway_or_on_the_neighbour_that_says_so(
    location: str, sender: str, gateway: Gateway
) -> None:
    assert vet_location(location, sender, gateway) == parse_url(location)


@pytest.mark.parametrize(
    ("location", "sender", "gateway", "why"),
    [
        ("http://8.8.8.8/", "192.168.1.1", GATEWAY, "8.8.8.8 is neither the gateway nor in 192.168.1.0/24"),
        ("http://192.168.2.1/", "192.168.1.1", GATEWAY, "192.168.2.1 is neither the gateway nor in 192.168.1.0/24"),
        (
            "http://192.168.1.7/",
            "192.168.1.2",
            GATEWAY,
            "192.168.1.7 is neither the gateway nor 192.168.1.2, who said so",
        ),
        ("http://192.168.1.10/", "192.168.1.10", GATEWAY, "192.168.1.10 is this machine"),
        ("http://127.0.0.1/", "192.168.1.1", GATEWAY, "127.0.0.1 is not the address of a gateway"),
        ("http://0.0.0.0/", "192.168.1.1", GATEWAY, "0.0.0.0 is not the address of a gateway"),
        ("http://239.255.255.250/", "192.168.1.1", GATEWAY, "239.255.255.250 is not the address of a gateway"),
        ("http://[2001:db8:1::1]/", "192.168.1.1", GATEWAY, "2001:db8:1::1 is not an IPv4 address"),
        ("http://[::ffff:8.8.8.8]/", "192.168.1.1", GATEWAY, "8.8.8.8 is neither the gateway nor in 192.168.1.0/24"),
        ("http://20.0.1.7/", "20.0.1.7", PUBLIC, "20.0.1.7 is not the gateway, and not private"),
        ("http://192.168.1.1/", "fe80::1", GATEWAY_6, "192.168.1.1 is not an IPv6 address"),
        ("http://[fe80::1]/", "fe80::1", GATEWAY_6, "fe80::1 is link-local"),
        (
            "http://[2001:db8:2::1]/",
            "fe80::1",
            GATEWAY_6,
            "2001:db8:2::1 is neither the gateway nor in 2001:db8:1::/64",
        ),
        ("http://(null):49152/", "192.168.1.1", GATEWAY, "'(null):49152' is not an IP address"),
        ("https://192.168.1.1/", "192.168.1.1", GATEWAY, "'https://192.168.1.1/' is not http"),
        ("http://192.168.1.1:0/", "192.168.1.1", GATEWAY, "'0' is not a port (1 to 65535)"),
    ],
)
def test_any_other_location_is_refused_with_a_reason(location: str, sender: str, gateway: Gateway, why: str) -> None:
    with pytest.raises(BadUrl) as caught:
        vet_location(location, sender, gateway)
    assert str(caught.value) == why


def test_only_neighbours_are_listened_to() -> None:
    assert is_neighbour("192.168.1.1", GATEWAY)
    assert is_neighbour("192.168.1.77", GATEWAY)
    assert not is_neighbour("192.168.2.1", GATEWAY)
    assert not is_neighbour("fe80::1", GATEWAY)
    assert is_neighbour("fe80::1", GATEWAY_6)
    assert is_neighbour("fe80::77", GATEWAY_6)
    assert is_neighbour("2001:db8:1::77", GATEWAY_6)
    assert not is_neighbour("2001:db8:2::77", GATEWAY_6)
    assert not is_neighbour("192.168.1.1", GATEWAY_6)


# --- anything --------------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"\r\n",
        b"\n",
        b"LOCATION:",
        b"ST:",
        b"USN:",
        b" ",
        b"http://192.168.1.1/",
        IGD.encode(),
        b"\0",
    ]
)


@given(st.one_of(st.binary(max_size=300), st.lists(st.one_of(pieces, st.binary(max_size=5))).map(b"".join)))
def test_no_datagram_raises_anything_else(data: bytes) -> None:
    is_ssdp(data)
    with suppress(BadReply):
        parse_reply(data)


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "http://",
                    "[",
                    "]",
                    ":",
                    "/",
                    "?",
                    "#",
                    "@",
                    "%",
                    "192.168.1.1",
                    "fe80::1",
                    "2001:db8:1::1",
                    "0",
                    "80",
                    "a",
                    "..",
                ]
            )
        ).map("".join),
    )
)
def test_no_url_raises_anything_else(text: str) -> None:
    for gateway in (GATEWAY, GATEWAY_6):
        with suppress(BadUrl):
            url = vet_location(text, gateway.host, gateway)
            assert url.target.startswith("/") and 1 <= url.server.port <= 65535
    with suppress(BadUrl):
        assert resolve_url(BASE, text).server.host == "192.168.1.1"
