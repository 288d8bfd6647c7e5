"""What is read in descriptions and answers: XML by people who did not read the specification."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from portmap.upnp.description import MAX_SERVICES, Service, services_of
from portmap.upnp.elements import MAX_DEPTH, MAX_ELEMENTS, BadDocument, parse_document
from portmap.upnp.soap import BadAnswer, Fault, encode_call, error_words, headers_of_call, parse_answer
from portmap.upnp.urls import Url
from tests.unit.portmap.upnp_kit import answer, description, fault, service_xml

LOCATION = Url(TransportAddress("192.168.1.1", 5000), "/desc/root.xml")
WAN = "WANIPConnection:1"
TYPE = "urn:schemas-upnp-org:service:WANIPConnection:1"


# --- XML -------------------------------------------------------------------------------------------------------------


def test_names_lose_their_prefix_and_texts_their_space() -> None:
    root = parse_document(b'<a:root xmlns:a="x"><b:Child> some\n text </b:Child><b:Child>second</b:Child></a:root>')
    assert root.name == "root"
    assert root.child_text("child") == "some\n text"
    assert [element.text for element in root.walk()] == ["", "some\n text", "second"]


def test_an_undeclared_prefix_is_forgiven() -> None:
    assert parse_document(b"<u:a><v:b>1</v:b></u:a>").child_text("b") == "1"


@pytest.mark.parametrize(
    "data",
    [
        b"<a><b>AT&T & Co &amp; &#65; &unknown;</b></a>",
        b"\xef\xbb\xbf<?xml version='1.0' encoding='x-no-such-codec'?><a><b>AT&T & Co &amp; A &unknown;</b></a>",
        b"\r\n <a><b>AT&T & Co &amp; \x07A &unknown;</b></a>\0\0",
        b"<a><b>AT&T & Co &amp; A &unknown;</b></a><html>and more",
    ],
)
def test_small_mistakes_are_forgiven(data: bytes) -> None:
    assert parse_document(data).child_text("b") == "AT&T & Co & A &unknown;"


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert (
        parse_document(b'<?xml version="1.0" encoding="iso-8859-1"?><a><b>M\xfcller</b></a>').child_text("b")
        == "M�ller"
    )


DOCTYPE = "XML with a document type, which no description needs"
BILLION_LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>
<lolz>&lol2;</lolz>"""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (BILLION_LAUGHS, DOCTYPE),
        (b'<!DOCTYPE a SYSTEM "http://8.8.8.8/x.dtd"><a/>', DOCTYPE),
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
            DOCTYPE,
        ),
        (b"<a>" * (MAX_DEPTH + 1), f"XML with elements in more than {MAX_DEPTH} others"),
        (b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>", f"XML with more than {MAX_ELEMENTS} elements"),
        (b"<a>" + b" " * 300_000 + b"</a>", "more than 262144 bytes of XML"),
    ],
)
def test_documents_made_to_hurt_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadDocument) as caught:
        parse_document(data)
    assert str(caught.value) == why


@pytest.mark.parametrize("data", [b"", b"\0", b"garbage", b"<a>", b"<a></b>", b"{}", b"\xff\xfe<\0a\0/\0>\0"])
def test_what_is_no_xml_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        parse_document(data)


def test_a_long_text_is_cut() -> None:
    assert len(parse_document(b"<a>" + b"x" * 100_000 + b"</a>").text) == 2048


# --- descriptions ----------------------------------------------------------------------------------------------------


def test_a_description_tells_its_services() -> None:
    page = description(
        ("Layer3Forwarding:1", "/ctl/L3F"), ("WANIPConnection:2", "/ctl/IPConn"), ("WANIPv6FirewallControl:1", "/ctl/6")
    )
    server = LOCATION.server
    assert services_of(page, LOCATION) == [
        Service(
            type="urn:schemas-upnp-org:service:WANIPConnection:2",
            version=2,
            is_firewall=False,
            control=Url(server, "/ctl/IPConn"),
        ),
        Service(
            type="urn:schemas-upnp-org:service:WANIPv6FirewallControl:1",
            version=1,
            is_firewall=True,
            control=Url(server, "/ctl/6"),
        ),
    ]


@pytest.mark.parametrize(
    ("control", "base", "resolved"),
    [
        ("/ctl/IPConn", "", "http://192.168.1.1:5000/ctl/IPConn"),
        ("IPConn", "", "http://192.168.1.1:5000/desc/IPConn"),
        ("http://192.168.1.1:5001/ctl", "", "http://192.168.1.1:5001/ctl"),
        ("/ctl", "http://192.168.1.1:5002", "http://192.168.1.1:5002/ctl"),
        ("ctl", "http://192.168.1.1:5002/up/", "http://192.168.1.1:5002/up/ctl"),
        # A URLBase elsewhere is ignored: the LOCATION worked, so that host does.
        ("/ctl", "http://10.0.0.1/", "http://192.168.1.1:5000/ctl"),
        ("/ctl", "http://(null):49152/", "http://192.168.1.1:5000/ctl"),
        ("/a?b&amp;c", "", "http://192.168.1.1:5000/a?b&c"),
    ],
)
def test_control_is_relative_to_url_base_or_location(control: str, base: str, resolved: str) -> None:
    [service] = services_of(description((WAN, control), base=base), LOCATION)
    assert str(service.control) == resolved


@pytest.mark.parametrize("control", ["http://192.168.1.2/ctl", "http://8.8.8.8/", "https://192.168.1.1/", "", "/a b"])
def test_control_elsewhere_is_refused(control: str) -> None:
    with pytest.raises(BadDocument, match="the controlURL of its WANIPConnection"):
        services_of(description((WAN, control)), LOCATION)


def test_a_service_elsewhere_does_not_cost_the_one_here() -> None:
    page = description((WAN, "http://8.8.8.8/"), ("WANPPPConnection:1", "/ctl"))
    assert [service.type for service in services_of(page, LOCATION)] == [
        "urn:schemas-upnp-org:service:WANPPPConnection:1"
    ]


@pytest.mark.parametrize(
    "page",
    [
        description(("ContentDirectory:1", "/ctl")),
        description(),
        description(("WANIPConnection:x", "/ctl")),
        description(('WANIPConnection:1"\r\nX: y', "/ctl")),
        b"<html><body>Log in</body></html>",
    ],
)
def test_what_has_no_service_for_mappings_is_refused(page: bytes) -> None:
    with pytest.raises(BadDocument, match="it has no WANIPConnection, WANPPPConnection or WANIPv6FirewallControl"):
        services_of(page, LOCATION)


def test_many_services_are_not_all_looked_at() -> None:
    page = description(*((WAN, f"/ctl/{number}") for number in range(20)))
    assert len(services_of(page, LOCATION)) == MAX_SERVICES


# --- SOAP ------------------------------------------------------------------------------------------------------------


def test_a_call_is_what_the_device_architecture_says() -> None:
    body = encode_call(TYPE, "AddPortMapping", [("NewRemoteHost", ""), ("NewPortMappingDescription", '<a>&"')])
    assert body == (
        b'<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        b' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        b'<u:AddPortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">'
        b'<NewRemoteHost></NewRemoteHost><NewPortMappingDescription>&lt;a&gt;&amp;"</NewPortMappingDescription>'
        b"</u:AddPortMapping></s:Body></s:Envelope>\r\n"
    )
    assert dict(headers_of_call(TYPE, "AddPortMapping"))["SOAPAction"] == f'"{TYPE}#AddPortMapping"'


def test_an_answer_is_its_output_arguments() -> None:
    body = answer("GetExternalIPAddress", NewExternalIPAddress="11.22.33.4", NewOther="&lt;")
    values = {"NewExternalIPAddress": "11.22.33.4", "NewOther": "<"}
    assert parse_answer(200, body, "GetExternalIPAddress") == values


def test_an_answer_may_have_any_prefix_or_none() -> None:
    body = b"<SOAP-ENV:Envelope><SOAP-ENV:Body><AResponse><X>1</X></AResponse></SOAP-ENV:Body></SOAP-ENV:Envelope>"
    assert parse_answer(200, body, "A") == {"X": "1"}


@pytest.mark.parametrize("status", [200, 500])
def test_a_fault_is_a_fault_whatever_the_status(status: int) -> None:
    with pytest.raises(Fault) as caught:
        parse_answer(status, fault(718, "Conflict"), "AddPortMapping")
    assert (caught.value.code, str(caught.value)) == (718, "718 ConflictInMappingEntry")


def test_an_unknown_code_has_the_words_of_the_device() -> None:
    with pytest.raises(Fault) as caught:
        parse_answer(500, fault(899, "Vendor\r\nsays no" + "!" * 100), "A")
    assert str(caught.value) == "899 Vendor says no" + "!" * 46
    assert error_words(899) == "unknown error"


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, b"<html>Not found", "HTTP 404"),
        (500, b"", "HTTP 500"),
        (401, b"<html></html>", "HTTP 401"),
        (302, answer("A"), "HTTP 302"),
        (200, b"", "not well-formed XML: no element found: line 1, column 0"),
        (200, answer("B"), "no answer to A in it"),
        (500, fault(718).replace(b"718", b"seven"), "an errorCode that is no number"),
        (500, fault(718).replace(b"718", b"7180"), "an errorCode that is no number"),
    ],
)
def test_what_is_no_answer_is_refused(status: int, body: bytes, why: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        parse_answer(status, body, "A")
    assert str(caught.value) == why


# --- anything --------------------------------------------------------------------------------------------------------

MARKUP = b"<a> </a> <a/> & &amp; &#x0; <!DOCTYPE <![CDATA[ ]]> <!-- --> <?xml ?> <errorCode> </errorCode> <service>"
pieces = st.sampled_from([*MARKUP.split(), service_xml(WAN, "/x").encode()])
documents = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=30).map(b"".join),
    st.builds(
        lambda page, at, what: page[: at % len(page)] + what + page[at % len(page) + len(what) :],
        st.sampled_from([description((WAN, "/ctl")), answer("A", X=1), fault(718)]),
        st.integers(0, 5000),
        st.binary(max_size=4),
    ),
)


@given(documents)
def test_no_document_raises_anything_else(data: bytes) -> None:
    with suppress(BadDocument):
        parse_document(data)
    with suppress(BadDocument):
        assert all(service.control.server.host == "192.168.1.1" for service in services_of(data, LOCATION))
    for status in (200, 500):
        with suppress(BadAnswer, Fault):
            parse_answer(status, data, "A")
